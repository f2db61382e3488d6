//! The bucket that large objects lie in: opened, and asked once, before anything is served, whether it does what is needed of it. It
//! never leaves more than the one object `probe` behind, which the next start removes.

use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload,
    RetryConfig,
};
use tidegate_core::port::{Entropy, EntropyUnavailable};
use tidegate_core::system::OsEntropy;
use tidegate_core::time::Clock;

use crate::config::{Addressing, S3};

/// The one object that is written to find out.
const PROBE: &str = "probe";
/// Between two tries at a bucket that is away.
const PAUSE: Duration = Duration::from_millis(500);

/// What says who asks, where the configuration does not: the variables that all of Amazon's programs know.
const CREDENTIALS: [(&str, AmazonS3ConfigKey); 10] = [
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", AmazonS3ConfigKey::MetadataEndpoint),
];
const REGIONS: [(&str, AmazonS3ConfigKey); 2] =
    [("AWS_DEFAULT_REGION", AmazonS3ConfigKey::Region), ("AWS_REGION", AmazonS3ConfigKey::Region)];

/// A bucket with a prefix.
pub(super) type Bucket = PrefixStore<AmazonS3>;

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The file of certificates cannot be read.
    #[error("its certificate authorities, {}, cannot be read", path.display())]
    CertificateAuthority {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is said of it makes no client.
    #[error("what is said of it cannot be used")]
    Settings(#[source] Error),
    /// It does not do something that is needed.
    #[error("it did not {step}")]
    Step {
        /// What.
        step: &'static str,
        /// Why.
        #[source]
        source: Error,
    },
    /// It writes over what is there although it was told not to.
    #[error("it does not honour If-None-Match: told to write only where nothing is, it wrote over what was there")]
    Unconditional,
    /// It gave other bytes than it was given.
    #[error("it did not {step}: other bytes came back than were written")]
    Differs {
        /// What it was asked.
        step: &'static str,
    },
    /// It still has what it was told to delete.
    #[error("it did not delete an object, or another server is starting with the same bucket and prefix")]
    StillThere,
    /// It did not answer in time.
    #[error("it did not answer within {} ms", limit.as_millis())]
    TookTooLong {
        /// The bound.
        limit: Duration,
    },
    /// The system gives no randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyUnavailable),
}

/// Makes a client of the bucket. Asks it nothing.
pub(super) fn client(s3: &S3, variables: &dyn Fn(&str) -> Option<String>) -> Result<Bucket, BucketError> {
    Ok(PrefixStore::new(without_prefix(s3, variables)?, Path::from(s3.prefix.as_str())))
}

fn without_prefix(s3: &S3, variables: &dyn Fn(&str) -> Option<String>) -> Result<AmazonS3, BucketError> {
    let mut options = ClientOptions::new()
        .with_user_agent(http_header(concat!("tidegate/", env!("CARGO_PKG_VERSION"))))
        .with_allow_http(s3.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http:")))
        .with_connect_timeout(s3.connect_timeout)
        .with_read_timeout(s3.read_timeout)
        // A large object takes as long as its reader does.
        .with_timeout_disabled();
    if let Some(path) = &s3.ca {
        let pem =
            std::fs::read(path).map_err(|source| BucketError::CertificateAuthority { path: path.clone(), source })?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(BucketError::Settings)? {
            options = options.with_root_certificate(certificate);
        }
    }
    let retry = RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() },
        max_retries: s3.retry_max,
        retry_timeout: s3.retry_timeout,
    };
    let mut builder = AmazonS3Builder::new();
    let mut take = |known: &[(&str, AmazonS3ConfigKey)]| {
        for (name, key) in known {
            if let Some(value) = variables(name).filter(|value| !value.is_empty()) {
                builder = std::mem::take(&mut builder).with_config(*key, value);
            }
        }
    };
    if s3.credentials.is_none() {
        take(&CREDENTIALS);
    }
    take(&REGIONS);
    if let Some(credentials) = &s3.credentials {
        builder = builder
            .with_access_key_id(&credentials.access_key_id)
            .with_secret_access_key(credentials.secret_access_key.reveal());
        if let Some(token) = &credentials.session_token {
            builder = builder.with_token(token.reveal());
        }
    }
    if let Some(region) = &s3.region {
        builder = builder.with_region(region);
    }
    let virtual_hosted = match s3.addressing {
        Some(addressing) => addressing == Addressing::Virtual,
        None => s3.endpoint.is_none(),
    };
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(match endpoint.split_once("://") {
            // The library takes the address as it is and adds no bucket to the host's name.
            Some((scheme, host)) if virtual_hosted => format!("{scheme}://{}.{host}", s3.bucket),
            _ => endpoint.clone(),
        });
    }
    builder
        .with_bucket_name(&s3.bucket)
        .with_virtual_hosted_style_request(virtual_hosted)
        .with_client_options(options)
        .with_retry(retry)
        // Blobs are deleted one by one; not every store knows the request for many.
        .with_disable_bulk_delete(true)
        .build()
        .map_err(BucketError::Settings)
}

fn http_header(text: &'static str) -> reqwest::header::HeaderValue {
    reqwest::header::HeaderValue::from_static(text)
}

/// Asks the bucket for everything that is needed of it; while it is away, again, until `limit` is over.
pub(super) async fn probe(
    store: &(impl ObjectStore + MultipartStore),
    clock: &dyn Clock,
    limit: Duration,
) -> Result<(), BucketError> {
    let deadline = clock.now().after(limit);
    let tries = async {
        loop {
            let error = match probe_once(store).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !is_away(&error) || clock.now().after(PAUSE) >= deadline {
                return Err(error);
            }
            tracing::warn!(error = %Chain(&error), "the bucket of large objects does not answer yet");
            clock.sleep_until(clock.now().after(PAUSE)).await;
        }
    };
    tokio::select! {
        tried = tries => tried,
        // What one request may take may be longer than all of it.
        () = clock.sleep_until(deadline) => Err(BucketError::TookTooLong { limit }),
    }
}

/// An error with its causes, on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Whether trying again may help: a refusal stays one.
fn is_away(error: &BucketError) -> bool {
    matches!(error, BucketError::Step { source: Error::Generic { .. }, .. })
}

fn step(step: &'static str) -> impl Fn(Error) -> BucketError {
    move |source| BucketError::Step { step, source }
}

async fn probe_once(store: &(impl ObjectStore + MultipartStore)) -> Result<(), BucketError> {
    let mut bytes = [0; 64];
    OsEntropy.fill(&mut bytes)?;
    let (first, second) = bytes.split_at(32);
    let at = Path::from(PROBE);
    let probed = probe_at(store, &at, Bytes::copy_from_slice(first), Bytes::copy_from_slice(second)).await;
    if probed.is_err() {
        // As far as it goes: the next start begins with it.
        let _ = remove(store, &at).await;
    }
    probed
}

async fn remove(store: &impl ObjectStore, at: &Path) -> Result<(), Error> {
    match store.delete(at).await {
        Err(Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}

async fn probe_at(
    store: &(impl ObjectStore + MultipartStore),
    at: &Path,
    first: Bytes,
    second: Bytes,
) -> Result<(), BucketError> {
    const READ: &str = "give a part of an object (GET with a range)";
    const PARTS: &str = "take an object in parts (CreateMultipartUpload, UploadPart, CompleteMultipartUpload)";
    let payload = |bytes: &Bytes| PutPayload::from(bytes.clone());
    remove(store, at).await.map_err(step("delete an object"))?;
    match store.put_opts(at, payload(&first), PutMode::Create.into()).await {
        Ok(_) => {}
        Err(Error::AlreadyExists { .. }) => return Err(BucketError::StillThere),
        Err(error) => return Err(step("take an object (PUT with If-None-Match)")(error)),
    }
    match store.put_opts(at, payload(&second), PutMode::Create.into()).await {
        Ok(_) => return Err(BucketError::Unconditional),
        Err(Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(step("refuse to write over an object (PUT with If-None-Match)")(error)),
    }
    if store.get_range(at, 8..24).await.map_err(step(READ))? != first[8..24] {
        return Err(BucketError::Differs { step: READ });
    }
    let id = store.create_multipart(at).await.map_err(step(PARTS))?;
    let part = store.put_part(at, &id, 0, payload(&second)).await.map_err(step(PARTS))?;
    store.complete_multipart(at, &id, vec![part]).await.map_err(step(PARTS))?;
    let found = async { store.get(at).await?.bytes().await }.await.map_err(step("give an object (GET)"))?;
    if found != second {
        return Err(BucketError::Differs { step: PARTS });
    }
    let abort = step("give up an object in parts (AbortMultipartUpload)");
    let id = store.create_multipart(at).await.map_err(step(PARTS))?;
    store.put_part(at, &id, 0, payload(&first)).await.map_err(step(PARTS))?;
    store.abort_multipart(at, &id).await.map_err(abort)?;
    remove(store, at).await.map_err(step("delete an object"))?;
    match store.head(at).await {
        Err(Error::NotFound { .. }) => Ok(()),
        Ok(_) => Err(BucketError::StillThere),
        Err(error) => Err(step("say that an object is not there (HEAD)")(error)),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::signer::Signer as _;
    use tidegate_core::system::SystemClock;
    use tidegate_testkit::block_on;

    use super::*;
    use crate::config::{Cold, Flags, Inputs, load};

    fn s3(settings: &[(&str, &str)]) -> S3 {
        let mut flags = Flags::default();
        flags.set("--set", "objects.cold", "s3://my-bucket/p");
        for (key, value) in settings {
            flags.set("--set", &format!("objects.s3.{key}"), *value);
        }
        match load(&Inputs { flags, ..Inputs::default() }).unwrap().config.objects.cold {
            Cold::S3(s3) => *s3,
            other => panic!("{other:?}"),
        }
    }

    const ENVIRONMENT: [(&str, &str); 4] = [
        ("AWS_ACCESS_KEY_ID", "of-environment"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_SESSION_TOKEN", "t"),
        ("AWS_REGION", "us-west-2"),
    ];

    fn open(settings: &[(&str, &str)]) -> AmazonS3 {
        crate::client::install_crypto();
        let variables =
            |name: &str| ENVIRONMENT.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        without_prefix(&s3(settings), &variables).unwrap()
    }

    #[test]
    fn a_bucket_is_named_in_the_host_at_amazon_and_in_the_path_elsewhere_unless_told() {
        block_on(async {
            for (settings, place) in [
                (&[][..], "https://my-bucket.s3.us-west-2.amazonaws.com/x"),
                (&[("addressing", "path"), ("region", "eu")], "https://s3.eu.amazonaws.com/my-bucket/x"),
                (&[("endpoint", "https://h:9000/")], "https://h:9000/my-bucket/x"),
                (&[("endpoint", "https://h:9000"), ("addressing", "virtual")], "https://my-bucket.h:9000/x"),
            ] {
                let signed = open(settings).signed_url(reqwest::Method::GET, &Path::from("x"), PAUSE).await.unwrap();
                assert_eq!(signed.as_str().split('?').next(), Some(place));
            }
        });
    }

    #[test]
    fn who_asks_is_what_the_configuration_says_whole_or_else_the_environment() {
        block_on(async {
            let of_environment = open(&[]).credentials().get_credential().await.unwrap();
            assert_eq!(of_environment.key_id, "of-environment");
            assert_eq!(of_environment.token.as_deref(), Some("t"));
            let settings = [("access_key_id", "mine"), ("secret_access_key", "m")];
            let mine = open(&settings).credentials().get_credential().await.unwrap();
            // The environment's token belongs to the environment's key.
            assert_eq!((mine.key_id.as_str(), mine.secret_key.as_str(), &mine.token), ("mine", "m", &None));
        });
    }

    #[test]
    fn a_store_that_does_all_that_is_asked_of_it_is_taken_and_nothing_is_left_in_it() {
        block_on(async {
            let store = InMemory::new();
            store.put(&Path::from(PROBE), "left by a start that was killed".into()).await.unwrap();
            probe(&store, &SystemClock::new(), PAUSE).await.unwrap();
            assert!(matches!(store.head(&Path::from(PROBE)).await, Err(Error::NotFound { .. })));
        });
    }
}
