//! TLS: both HTTP versions, client certificates where they are asked for, and files that cannot be used.

use std::path::{Path, PathBuf};
use std::sync::Once;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tidegate_testkit::block_on;
use tidegate_transport_http::TlsConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{Setup, World};

/// reqwest has no provider of its own here.
pub(crate) fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        install_provider();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A certificate and its key, in PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn config(&self, asks_clients: bool) -> TlsConfig {
        let (cert, key) = self.issue("localhost");
        TlsConfig {
            cert: self.file("server.pem", &cert),
            key: self.file("server.key", &key),
            client_ca: asks_clients.then(|| self.file("ca.pem", &self.issuer.pem())),
        }
    }

    fn client(&self, world: &World) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(self.issuer.pem().as_bytes()).unwrap()])
            .resolve("localhost", world.address)
    }
}

fn url(world: &World) -> String {
    format!("https://localhost:{}/v1/version", world.address.port())
}

#[test]
fn both_http_versions_are_spoken_over_tls() {
    block_on(async {
        let authority = Authority::new();
        let world = Setup { tls: Some(authority.config(false)), ..Setup::default() }.start();
        let answer = authority.client(&world).build().unwrap().get(url(&world)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
        let answer = authority.client(&world).http1_only().build().unwrap().get(url(&world)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_11));
        // A client that speaks no TLS is let go of, and nobody else notices.
        let mut plain = tokio::net::TcpStream::connect(world.address).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        let _ = plain.read_to_end(&mut said).await;
        assert!(!said.starts_with(b"HTTP/"));
        let answer = authority.client(&world).build().unwrap().get(url(&world)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    });
}

#[test]
fn where_client_certificates_are_asked_for_only_theirs_are_good() {
    block_on(async {
        let authority = Authority::new();
        let stranger = Authority::new();
        let world = Setup { tls: Some(authority.config(true)), ..Setup::default() }.start();
        let with = |issuer: &Authority| {
            let (cert, key) = issuer.issue("client");
            reqwest::Identity::from_pem(format!("{cert}{key}").as_bytes()).unwrap()
        };
        let known = authority.client(&world).identity(with(&authority)).build().unwrap();
        assert_eq!(known.get(url(&world)).send().await.unwrap().status(), 200);
        assert!(authority.client(&world).build().unwrap().get(url(&world)).send().await.is_err(), "none");
        let foreign = authority.client(&world).identity(with(&stranger)).build().unwrap();
        assert!(foreign.get(url(&world)).send().await.is_err(), "another authority's");
    });
}

#[test]
fn files_that_cannot_be_used_are_named_before_anything_starts() {
    block_on(async {
        let authority = Authority::new();
        let good = authority.config(true);
        let (_, other_key) = authority.issue("localhost");
        let empty = authority.file("empty.pem", "");
        let missing = Path::new("/nonexistent/cert.pem").to_path_buf();
        for (config, name) in [
            (TlsConfig { cert: missing, ..good.clone() }, "/nonexistent/cert.pem"),
            (TlsConfig { cert: empty.clone(), ..good.clone() }, "empty.pem"),
            (TlsConfig { key: empty.clone(), ..good.clone() }, "empty.pem"),
            (TlsConfig { key: authority.file("other.key", &other_key), ..good.clone() }, "other.key"),
            (TlsConfig { client_ca: Some(empty), ..good.clone() }, "empty.pem"),
        ] {
            let error = Setup { tls: Some(config), ..Setup::default() }.try_start().err().expect(name);
            assert!(error.to_string().contains(name), "{error}");
        }
    });
}
