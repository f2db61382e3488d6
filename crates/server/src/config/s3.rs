//! `[objects.s3]` and the `s3://` URL of `objects.cold`: which bucket, where it is, who asks, how long anything may take. It asks no
//! bucket anything: whether one answers is found when the server starts.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::Secret;
use super::check::certificates;
use super::read::{Node, Section};

/// The largest time that can be set.
const TIME_MAX_MS: u64 = 3_600_000;

/// A bucket of S3, or of what speaks its protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    /// The bucket.
    pub bucket: String,
    /// What the names of all blobs begin with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Where it is; `None` = Amazon's own, in the region.
    pub endpoint: Option<String>,
    /// The region; `None` = what the environment says, else `us-east-1`.
    pub region: Option<String>,
    /// How the bucket is named in a request; `None` = in the host's name at Amazon, in the path elsewhere.
    pub addressing: Option<Addressing>,
    /// Who asks; `None` = as the usual variables of the environment or the machine's role say.
    pub credentials: Option<S3Credentials>,
    /// Who signs the endpoint's certificate (PEM), beside those that the system trusts.
    pub ca: Option<PathBuf>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long an answer, or its next bytes, may take.
    pub read_timeout: Duration,
    /// How often a request is sent again.
    pub retry_max: usize,
    /// From its beginning on, how long a request is sent again.
    pub retry_timeout: Duration,
    /// How long the bucket may be away when the server starts.
    pub start_timeout: Duration,
}

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// `https://host/bucket/key`.
    Path,
    /// `https://bucket.host/key`.
    Virtual,
}

impl Addressing {
    /// Its name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Virtual => "virtual",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// The key's name.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: Secret,
    /// What makes a key that was lent count.
    pub session_token: Option<Secret>,
}

impl S3 {
    /// The bucket and where it is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let at = self.endpoint.as_deref().unwrap_or("Amazon S3");
        format!("s3://{}{slash}{} at {at}", self.bucket, self.prefix)
    }
}

/// Bucket and prefix of an `s3://` URL.
pub(super) fn bucket(node: &Node<'_>, url: &str) -> Option<(String, String)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let end = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let of_bucket = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    let bytes = bucket.as_bytes();
    if !(3..=63).contains(&bytes.len())
        || !bytes.iter().all(|byte| of_bucket(*byte))
        || !end(bytes.first())
        || !end(bytes.last())
    {
        node.refuse(
            "must be s3:// and a bucket of 3 to 63 small letters, digits, dots and hyphens: s3://bucket/prefix",
        );
        return None;
    }
    let of_prefix = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!*'()=".contains(&byte);
    let good = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(of_prefix);
    if !prefix.is_empty() && (prefix.len() > 512 || !prefix.split('/').all(good)) {
        node.refuse("has a prefix that is not letters, digits and -_.!*'()= with single slashes between them");
        return None;
    }
    Some((bucket.to_owned(), prefix.to_owned()))
}

/// Reads `[objects.s3]`, which may be absent.
pub(super) fn read(section: Option<Section<'_>>, (bucket, prefix): (String, String)) -> Option<S3> {
    let mut s3 = S3 {
        bucket,
        prefix,
        endpoint: None,
        region: None,
        addressing: None,
        credentials: None,
        ca: None,
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(60),
        retry_max: 3,
        retry_timeout: Duration::from_secs(10),
        start_timeout: Duration::from_secs(30),
    };
    let Some(section) = section else { return Some(s3) };
    let allow_http = section.get("allow_http").map(|node| node.boolean());
    let endpoint = section.get("endpoint").map(|node| endpoint(&node, allow_http == Some(Some(true))));
    let region = section.get("region").map(|node| node.line());
    let styles = [("path", Addressing::Path), ("virtual", Addressing::Virtual)];
    let addressing = section.get("addressing").map(|node| node.choice(&styles));
    let credentials = credentials(&section);
    let ca = section.get("ca").map(|node| certificates(&node));
    let mut good = allow_http != Some(None);
    for (key, time) in [
        ("connect_timeout_ms", &mut s3.connect_timeout),
        ("read_timeout_ms", &mut s3.read_timeout),
        ("retry_timeout_ms", &mut s3.retry_timeout),
        ("start_timeout_ms", &mut s3.start_timeout),
    ] {
        if let Some(node) = section.get(key) {
            match within(&node, 1, TIME_MAX_MS) {
                Some(ms) => *time = Duration::from_millis(ms),
                None => good = false,
            }
        }
    }
    let retry_max = section.get("retry_max").map(|node| within(&node, 0, 100));
    section.finish();
    if !good {
        return None;
    }
    s3.endpoint = flat(endpoint)?;
    s3.region = flat(region)?;
    s3.addressing = flat(addressing)?;
    s3.credentials = credentials?;
    s3.ca = flat(ca)?;
    s3.retry_max = flat(retry_max)?.and_then(|times| usize::try_from(times).ok()).unwrap_or(s3.retry_max);
    Some(s3)
}

/// A key that is absent is fine; one that is there and wrong is not.
fn flat<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        Some(None) => None,
        Some(some) => Some(some),
        None => Some(None),
    }
}

fn within(node: &Node<'_>, min: u64, max: u64) -> Option<u64> {
    let value = node.integer()?;
    if !(min..=max).contains(&value) {
        node.refuse(format!("is {value}, it must be from {min} to {max}"));
        return None;
    }
    Some(value)
}

/// Without TLS everybody on the way reads and changes the objects, so it must be said that this is meant.
fn endpoint(node: &Node<'_>, allow_http: bool) -> Option<String> {
    let text = node.line()?;
    let Some(url) = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    else {
        node.refuse("must be https:// (or http://) and a host: https://minio.example:9000");
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        // A secret would stand where nobody takes it for one.
        node.refuse("must have no user and no password in it: they are access_key_id and secret_access_key");
        return None;
    }
    if url.query().is_some() || url.fragment().is_some() {
        node.refuse("must have no ? and no # in it");
        return None;
    }
    let is_loopback = match url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']')) {
        Some("localhost") => true,
        Some(host) => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    if url.scheme() == "http" && !is_loopback {
        let open = "everybody on the way can read and change the objects";
        if !allow_http {
            node.refuse(format!("is http:// to another machine: {open}; use https://, or say allow_http = true"));
            return None;
        }
        node.warn(format!("is http:// to another machine: {open}"));
    }
    Some(text.trim_end_matches('/').to_owned())
}

fn credentials(section: &Section<'_>) -> Option<Option<S3Credentials>> {
    let id = section.get("access_key_id").map(|node| node.line());
    let key = section.get("secret_access_key").map(|node| node.line().map(Secret::new));
    let token = section.get("session_token").map(|node| node.line().map(Secret::new));
    match (id, key, token) {
        (None, None, None) => Some(None),
        (Some(id), Some(key), token) => {
            Some(Some(S3Credentials { access_key_id: id?, secret_access_key: key?, session_token: flat(token)? }))
        }
        _ => {
            section.refuse(
                "access_key_id and secret_access_key go together (with session_token where the key is lent): name both, or \
                 none and let the environment or the machine's role say who asks",
            );
            None
        }
    }
}
