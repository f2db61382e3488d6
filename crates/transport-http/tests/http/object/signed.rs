//! Signed addresses: who holds the key may let others read one object for a time.

use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::KeyPair;
use sha2::{Digest as _, Sha256};
use tidegate_batch::policy::{Access, KillRule, Rate, RateRule, Rules, Selector};
use tidegate_core::id::Name;
use tidegate_core::{Clock as _, Moment, Scope};
use tidegate_testkit::block_on;
use tidegate_transport_http::auth::{JwtAlgorithm, JwtKey, KeyMaterial, StaticToken};
use tidegate_transport_http::{AuthConfig, TokenConfig};

use super::super::client::{Answer, ask};
use super::super::world::{Setup, World};
use super::refused;

const PATH: &str = "/v1/objects/files/_/a%2Fb";

struct Signer {
    world: World,
    signs: EncodingKey,
}

impl Signer {
    fn start() -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let key = |kid: &str, tenant: Option<&str>| JwtKey {
            kid: kid.into(),
            alg: JwtAlgorithm::EdDsa,
            material: KeyMaterial::PublicPem(pair.public_key_pem()),
            tenant: tenant.map(|tenant| Name::new(tenant).unwrap()),
        };
        let writer = StaticToken {
            sha256: Sha256::digest(b"writer").into(),
            subject: Name::new("writer").unwrap(),
            tenant: Name::new("acme").unwrap(),
            scopes: [Scope::ObjectWrite].into_iter().collect(),
        };
        let auth = TokenConfig {
            audience: Some("tidegate".into()),
            tokens: vec![writer],
            keys: vec![key("k1", Some("acme")), key("evil", Some("evil")), key("none", None)],
            ..TokenConfig::default()
        };
        let world = Setup { auth: AuthConfig::Token(auth), ..Setup::default() }.start();
        Self { world, signs: EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap() }
    }

    /// A signature over what the documentation says is signed.
    fn sign(&self, method: &str, path: &str, query: &str) -> String {
        let text = format!("tidegate-presigned-v1\n{method}\n{path}\n{query}");
        jsonwebtoken::crypto::sign(text.as_bytes(), &self.signs, Algorithm::EdDSA).unwrap()
    }

    async fn ask(&self, method: &str, path: &str, query: &str) -> Answer {
        ask(self.world.address, method, &format!("{path}?{query}"), &[], b"").await
    }

    async fn signed(&self, method: &str, kid: &str, in_s: i64) -> Answer {
        let query = format!("expires={}&key_id={kid}", now_s() + in_s);
        let signature = self.sign(method, PATH, &query);
        self.ask(method, PATH, &format!("signature={signature}&{query}")).await
    }
}

fn now_s() -> i64 {
    tidegate_core::system::SystemClock::new().timestamp().unix_ms() / 1_000
}

#[test]
fn a_signed_address_lets_anybody_read_one_object_for_a_time() {
    block_on(async {
        let signer = Signer::start();
        let headers = [("authorization", "Bearer writer")];
        assert_eq!(ask(signer.world.address, "PUT", PATH, &headers, b"content").await.status(), 201);
        let got = signer.signed("GET", "k1", 600).await;
        assert_eq!((got.status(), got.body.as_slice()), (200, b"content".as_slice()));
        assert_eq!(signer.signed("HEAD", "k1", 600).await.status(), 200);
        assert_eq!(signer.signed("GET", "k1", 7 * 24 * 3_600).await.status(), 200);
        assert_eq!(signer.signed("GET", "k1", -30).await.status(), 200, "clocks may differ a little");
        assert_eq!(refused(&signer.signed("GET", "k1", -61).await), (403, "presigned_expired".into()));
        assert_eq!(
            refused(&signer.signed("GET", "k1", 7 * 24 * 3_600 + 120).await),
            (403, "presigned_too_long".into())
        );
        assert_eq!(signer.signed("GET", "evil", 600).await.status(), 404, "a key reads for its own tenant");
        for kid in ["none", "unknown"] {
            assert_eq!(refused(&signer.signed("GET", kid, 600).await), (403, "presigned_invalid".into()), "{kid}");
        }
    });
}

#[test]
fn a_signed_address_passes_the_same_switches_and_limits_as_a_token() {
    block_on(async {
        let signer = Signer::start();
        let headers = [("authorization", "Bearer writer")];
        assert_eq!(ask(signer.world.address, "PUT", PATH, &headers, b"content").await.status(), 201);
        let of = Selector { tenant: Some(Name::new("acme").unwrap()), ..Selector::default() };
        // A time beyond all others: no token comes in.
        let now = Moment::NEVER;
        let kill = vec![KillRule { of: of.clone(), operations: vec![Access::Read] }];
        signer.world.policy.replace(Rules::new(kill, Vec::new()).unwrap(), now);
        assert_eq!(refused(&signer.signed("GET", "k1", 600).await), (403, "operation_disabled".into()));
        assert_eq!(signer.signed("HEAD", "k1", 600).await.status(), 403);
        let slow = RateRule { of, requests: Some(Rate { per_second: 1, burst: 1 }), bytes: None, each: None };
        signer.world.policy.replace(Rules::new(Vec::new(), vec![slow; 2]).unwrap(), now);
        assert_eq!(signer.signed("GET", "k1", 600).await.status(), 200);
        assert_eq!(refused(&signer.signed("GET", "k1", 600).await), (429, "rate_limited".into()));
        // Who is not let in at all is told that, and takes nothing.
        assert_eq!(refused(&signer.signed("GET", "unknown", 600).await), (403, "presigned_invalid".into()));
    });
}

#[test]
fn a_signature_is_good_for_what_was_signed_and_for_nothing_else() {
    block_on(async {
        let signer = Signer::start();
        let query = format!("expires={}&key_id=k1", now_s() + 600);
        let signature = signer.sign("GET", PATH, &query);
        let later = format!("expires={}&key_id=k1", now_s() + 601);
        for (method, path, query) in [
            ("HEAD", PATH, format!("{query}&signature={signature}")),
            ("GET", "/v1/objects/files/_/a/b", format!("{query}&signature={signature}")),
            ("GET", PATH, format!("{later}&signature={signature}")),
            ("GET", PATH, format!("{query}&signature={}", "A".repeat(86))),
            ("GET", PATH, format!("{query}&signature=")),
            ("GET", PATH, format!("key_id=k1&signature={signature}")),
            ("GET", PATH, format!("expires=1&signature={signature}")),
        ] {
            let answer = signer.ask(method, path, &query).await;
            assert_eq!(answer.status(), 403, "{method} {path} {query}");
            if method == "GET" {
                assert_eq!(answer.code(), "presigned_invalid");
            }
        }
        // It is a right to read: where it is no parameter, it is refused, with or without a token.
        for method in ["PUT", "POST", "DELETE"] {
            let answer = signer.ask(method, PATH, &format!("{query}&signature={signature}")).await;
            assert_eq!(answer.status(), 401, "{method}");
        }
    });
}
