//! Who asks: a bearer token becomes a principal, or a refusal. Tenant and subject come from the token and from nothing
//! else: no other header is read here.

mod key;
mod key_file;
mod presigned;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use tidegate_core::id::Name;
use tidegate_core::principal::Owner;
use tidegate_core::{Clock, ErrorKind, Failure, Principal, Scope, ScopeSet, Timestamp};

pub use key::{JwtAlgorithm, JwtKey, KeyMaterial};
pub use presigned::{PRESIGNED_MAX_S, PRESIGNED_SKEW_S, PresignedError};

use crate::problem::Problem;
use key::{KeySet, VerifyError};
use key_file::KeyFile;

/// The longest token that is looked at; a longer one is `token_malformed`.
pub const TOKEN_MAX_BYTES: usize = 16 * 1024;

/// How far a token issuer's clock may be off, at most.
pub const LEEWAY_MAX: Duration = Duration::from_secs(5);

/// How callers are known. Plain data: the server fills it from its configuration.
#[derive(Debug, Clone, Default)]
pub enum AuthConfig {
    /// Every caller is `anonymous` of tenant `default`, with every scope.
    #[default]
    Anonymous,
    /// Every caller needs a token.
    Token(TokenConfig),
}

/// Which tokens are good.
#[derive(Debug, Clone, Default)]
pub struct TokenConfig {
    /// What a JWT's `aud` must name. Required as soon as there are JWT keys.
    pub audience: Option<String>,
    /// Static tokens.
    pub tokens: Vec<StaticToken>,
    /// JWT keys.
    pub keys: Vec<JwtKey>,
    /// A JWKS file with more keys. Read again when it changes; a broken one leaves the keys as they were.
    pub jwks: Option<PathBuf>,
    /// How far an issuer's clock may be off: 0 to [`LEEWAY_MAX`].
    pub leeway: Duration,
}

/// A static token, known by its hash.
#[derive(Debug, Clone)]
pub struct StaticToken {
    /// SHA-256 of the token's bytes.
    pub sha256: [u8; 32],
    /// Who holds it.
    pub subject: Name,
    /// Of which tenant.
    pub tenant: Name,
    /// What they may do.
    pub scopes: ScopeSet,
}

/// Why an [`AuthConfig`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthConfigError {
    /// No token could ever be good.
    #[error("[auth] has neither tokens nor keys nor jwks: nobody could call")]
    Empty,
    /// JWT keys without an audience.
    #[error("[auth] has JWT keys but no audience; without one, tokens for other services would be accepted")]
    AudienceMissing,
    /// The leeway is too long.
    #[error("the leeway is {given_ms} ms, it may be at most {max_ms} ms", max_ms = LEEWAY_MAX.as_millis())]
    LeewayTooLong {
        /// What was given.
        given_ms: u128,
    },
    /// Two keys share a `kid`.
    #[error("two keys have the kid {kid:?}")]
    DuplicateKey {
        /// Which.
        kid: Box<str>,
    },
    /// A key is not what its algorithm needs.
    #[error("key {kid:?} cannot be used for {alg}: {reason}")]
    Key {
        /// Which.
        kid: Box<str>,
        /// For what.
        alg: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// The JWKS file cannot be read.
    #[error("the JWKS file {path} cannot be used: {reason}")]
    KeyFile {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: Box<str>,
    },
}

/// Why a caller was refused. What exactly is wrong with a token is not told: `token_invalid` is one answer for an unknown
/// key, a bad signature and a wrong audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// There is none.
    #[error("this server needs a token: send the header Authorization: Bearer <token>")]
    Missing,
    /// It is not a bearer token that could be read.
    #[error("the Authorization header does not hold one well-formed bearer token of at most 16384 bytes")]
    Malformed,
    /// Its time is over.
    #[error("the token has expired; get a new one")]
    Expired,
    /// It is not good here.
    #[error("the token is not valid for this server")]
    Invalid,
    /// It does not carry the right.
    #[error("the token does not carry the scope {scope}")]
    ScopeMissing {
        /// Which.
        scope: Scope,
    },
}

impl Failure for AuthError {
    fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Malformed => "token_malformed",
            Self::Expired => "token_expired",
            Self::Invalid => "token_invalid",
            Self::ScopeMissing { .. } => "scope_missing",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing | Self::Malformed | Self::Expired | Self::Invalid => ErrorKind::Unauthenticated,
            Self::ScopeMissing { .. } => ErrorKind::Forbidden,
        }
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        // RFC 6750, section 3.1: no error code where no token was sent.
        let challenge = match error {
            AuthError::Missing => HeaderValue::from_static(r#"Bearer realm="tidegate""#),
            AuthError::Malformed => HeaderValue::from_static(r#"Bearer realm="tidegate", error="invalid_request""#),
            AuthError::Expired => HeaderValue::from_static(
                r#"Bearer realm="tidegate", error="invalid_token", error_description="the token has expired""#,
            ),
            AuthError::Invalid => HeaderValue::from_static(r#"Bearer realm="tidegate", error="invalid_token""#),
            AuthError::ScopeMissing { scope } => {
                let value = format!(r#"Bearer realm="tidegate", error="insufficient_scope", scope="{scope}""#);
                HeaderValue::try_from(value).expect("a scope's name is a header value")
            }
        };
        let problem = Problem::of(&error).with_header(header::WWW_AUTHENTICATE, challenge);
        match error {
            AuthError::ScopeMissing { scope } => problem.with("scope", scope.as_str()),
            _ => problem,
        }
    }
}

/// Turns tokens into principals. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    mode: Arc<Mode>,
    clock: Arc<dyn Clock>,
}

enum Mode {
    Anonymous(Principal),
    Token(TokenMode),
}

struct TokenMode {
    tokens: Vec<KnownToken>,
    keys: KeySet,
    key_file: Option<KeyFile>,
    /// `None` only where there is no key either.
    audience: Option<String>,
    leeway: Duration,
}

struct KnownToken {
    sha256: [u8; 32],
    principal: Principal,
}

impl Authenticator {
    /// Checks the configuration and reads the keys, the JWKS file too (blocking, once).
    pub fn new(config: AuthConfig, clock: Arc<dyn Clock>) -> Result<Self, AuthConfigError> {
        let mode = match config {
            AuthConfig::Anonymous => Mode::Anonymous(Principal::anonymous()),
            AuthConfig::Token(config) => Mode::Token(TokenMode::new(config, clock.as_ref())?),
        };
        Ok(Self { mode: Arc::new(mode), clock })
    }

    /// Whether every caller is `anonymous`.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        matches!(*self.mode, Mode::Anonymous(_))
    }

    /// Who reads at a signed address: `path` and `query` as they were sent. Costs one signature check.
    pub fn verify_presigned(
        &self,
        method: &http::Method,
        path: &str,
        query: &str,
        now: Timestamp,
    ) -> Result<Principal, PresignedError> {
        match &*self.mode {
            // Without keys there is nothing that could be signed.
            Mode::Anonymous(_) => Err(PresignedError::Invalid),
            Mode::Token(mode) => presigned::verify(&mode.keys, method, path, query, now),
        }
    }

    /// Who sent these headers. Costs one SHA-256 over the token, and for a JWT one signature check.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, AuthError> {
        match &*self.mode {
            // A token that nobody checks says nothing: it is not read.
            Mode::Anonymous(principal) => Ok(principal.clone()),
            Mode::Token(mode) => mode.authenticate(bearer_token(headers)?, self.clock.as_ref()).await,
        }
    }
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("anonymous", &self.is_anonymous()).finish_non_exhaustive()
    }
}

impl TokenMode {
    fn new(config: TokenConfig, clock: &dyn Clock) -> Result<Self, AuthConfigError> {
        if config.tokens.is_empty() && config.keys.is_empty() && config.jwks.is_none() {
            return Err(AuthConfigError::Empty);
        }
        if config.audience.is_none() && (!config.keys.is_empty() || config.jwks.is_some()) {
            return Err(AuthConfigError::AudienceMissing);
        }
        if config.leeway > LEEWAY_MAX {
            return Err(AuthConfigError::LeewayTooLong { given_ms: config.leeway.as_millis() });
        }
        let tokens = config.tokens.into_iter().map(|token| KnownToken {
            sha256: token.sha256,
            principal: Principal {
                owner: Owner { tenant: token.tenant.as_str().into(), subject: token.subject.as_str().into() },
                scopes: token.scopes,
                token_expires_at: None,
            },
        });
        Ok(Self {
            tokens: tokens.collect(),
            keys: KeySet::from_config(&config.keys)?,
            key_file: config.jwks.map(|path| KeyFile::open(path, clock)).transpose()?,
            audience: config.audience,
            leeway: config.leeway,
        })
    }

    async fn authenticate(&self, token: &str, clock: &dyn Clock) -> Result<Principal, AuthError> {
        if let Some(principal) = self.static_token(token) {
            return Ok(principal);
        }
        let Some(audience) = &self.audience else { return Err(AuthError::Invalid) };
        let verified = match &self.key_file {
            None => self.keys.verify(token),
            Some(file) => {
                file.refresh(clock).await;
                match self.keys.verify(token) {
                    Err(VerifyError::UnknownKey) => file.keys().verify(token),
                    verified => verified,
                }
            }
        };
        let claims = verified.map_err(|error| match error {
            VerifyError::Malformed if self.tokens.is_empty() => AuthError::Malformed,
            // It may have been meant as a static token, so all that can be said is that it is not one.
            VerifyError::Malformed | VerifyError::UnknownKey | VerifyError::Refused => AuthError::Invalid,
        })?;
        if !claims.aud.contains(audience) {
            return Err(AuthError::Invalid);
        }
        // Compared by the injected clock; the JWT library would read the system's.
        let now_ms = i128::from(clock.timestamp().unix_ms());
        let leeway_ms = i128::try_from(self.leeway.as_millis()).unwrap_or_default();
        if now_ms >= seconds_to_ms(claims.exp) + leeway_ms {
            return Err(AuthError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now_ms + leeway_ms < seconds_to_ms(nbf)) {
            return Err(AuthError::Invalid);
        }
        let subject = Name::new(claims.sub).map_err(|_| AuthError::Invalid)?;
        let tenant = Name::new(claims.tenant).map_err(|_| AuthError::Invalid)?;
        // A scope of another service's gives no right here and is no reason to refuse.
        let scopes = claims.scope.split_ascii_whitespace().filter_map(|scope| scope.parse().ok()).collect();
        let expires_ms = i64::try_from(seconds_to_ms(claims.exp)).unwrap_or(i64::MAX);
        Ok(Principal {
            owner: Owner { tenant: tenant.as_str().into(), subject: subject.as_str().into() },
            scopes,
            token_expires_at: Some(Timestamp::from_unix_ms(expires_ms)),
        })
    }

    /// Compares with every entry, always, so that the time tells neither whether nor where it matched.
    fn static_token(&self, token: &str) -> Option<Principal> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = u64::MAX;
        for (index, known) in (0_u64..).zip(&self.tokens) {
            found.conditional_assign(&index, known.sha256.ct_eq(&digest));
        }
        let index = usize::try_from(found).ok()?;
        self.tokens.get(index).map(|known| known.principal.clone())
    }
}

/// A JWT's times are seconds since 1970, possibly with a fraction.
fn seconds_to_ms(seconds: f64) -> i128 {
    #[allow(clippy::cast_possible_truncation, reason = "a cast from f64 saturates, and so must a time without end")]
    let ms = (seconds * 1_000.0).floor() as i64;
    i128::from(ms)
}

/// The one bearer token of a request (RFC 6750, section 2.1). A token in the query string or the body is never looked at.
fn bearer_token(headers: &HeaderMap) -> Result<&str, AuthError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(AuthError::Missing)?;
    if values.next().is_some() {
        return Err(AuthError::Malformed);
    }
    let text = value.to_str().map_err(|_| AuthError::Malformed)?;
    let (scheme, token) = text.split_once(' ').ok_or(AuthError::Malformed)?;
    let token = token.trim_matches(' ');
    // Static tokens may have any visible characters; a space or a comma would be a second parameter.
    let well_formed = token.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > TOKEN_MAX_BYTES || !well_formed {
        return Err(AuthError::Malformed);
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_of(values: &[&str]) -> Result<String, AuthError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        bearer_token(&headers).map(str::to_owned)
    }

    #[test]
    fn one_bearer_token_is_read_and_anything_else_is_refused() {
        assert_eq!(token_of(&["Bearer abc"]), Ok("abc".to_owned()));
        assert_eq!(token_of(&["bearer  abc "]), Ok("abc".to_owned()));
        assert_eq!(token_of(&[]), Err(AuthError::Missing));
        let longest = format!("Bearer {}", "x".repeat(TOKEN_MAX_BYTES));
        assert!(token_of(&[&longest]).is_ok());
        for bad in ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "Bearer a,b", "Bearer \u{e4}", "abc"] {
            assert_eq!(token_of(&[bad]), Err(AuthError::Malformed), "{bad:?}");
        }
        assert_eq!(token_of(&[&format!("{longest}x")]), Err(AuthError::Malformed));
        assert_eq!(token_of(&["Bearer a", "Bearer b"]), Err(AuthError::Malformed));
    }

    #[test]
    fn a_time_without_end_saturates() {
        assert_eq!(seconds_to_ms(1.5), 1_500);
        assert_eq!(seconds_to_ms(1e300), i128::from(i64::MAX));
        assert_eq!(seconds_to_ms(-1e300), i128::from(i64::MIN));
    }
}
