//! Signed addresses: who holds the private half of a key that names a tenant may let anybody read one object for a time, without a
//! token. It gives the right to read and no other, and never for longer than the address says.

use http::Method;
use tidegate_core::principal::Owner;
use tidegate_core::{ErrorKind, Failure, Principal, Scope, Timestamp};

use super::key::KeySet;
use crate::parameter::digits;
use crate::problem::Problem;

/// The furthest that an address may be good, in seconds.
pub const PRESIGNED_MAX_S: u64 = 7 * 24 * 3_600;
/// How far the signer's clock may be off, in seconds.
pub const PRESIGNED_SKEW_S: u64 = 60;

/// Why a signed address was refused. What exactly is wrong with a signature is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PresignedError {
    /// The key is not known or may not sign, the signature is not its, or the address is not whole.
    #[error("the address is not signed by a key that may sign for it")]
    Invalid,
    /// Its time is over.
    #[error("the signed address has expired")]
    Expired,
    /// It is good for too long.
    #[error("a signed address may be good for {PRESIGNED_MAX_S} s at most")]
    TooLong,
}

impl Failure for PresignedError {
    fn code(&self) -> &'static str {
        match self {
            Self::Invalid => "presigned_invalid",
            Self::Expired => "presigned_expired",
            Self::TooLong => "presigned_too_long",
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Forbidden
    }
}

impl From<PresignedError> for Problem {
    fn from(error: PresignedError) -> Self {
        let problem = Self::of(&error);
        match error {
            PresignedError::TooLong => problem.with("max_s", PRESIGNED_MAX_S),
            PresignedError::Invalid | PresignedError::Expired => problem,
        }
    }
}

/// The text that is signed: a line that says what it is, the method, the path as it is sent, and the query string's other parameters as
/// they are sent, sorted by their bytes. No newline at the end.
fn canonical(method: &Method, path: &str, query: &str) -> String {
    let mut others: Vec<&str> =
        query.split('&').filter(|part| !part.is_empty() && !part.starts_with("signature=")).collect();
    others.sort_unstable();
    format!("tidegate-presigned-v1\n{method}\n{path}\n{}", others.join("&"))
}

/// Judges an address; gives who reads.
pub(super) fn verify(
    keys: &KeySet,
    method: &Method,
    path: &str,
    query: &str,
    now: Timestamp,
) -> Result<Principal, PresignedError> {
    // As it is sent: the signature covers these bytes, and what is encoded needlessly is another text.
    let parameter = |name: &str| {
        let mut found = query.split('&').filter_map(|part| part.split_once('=')).filter(|(known, _)| *known == name);
        found.next().map(|(_, value)| value).filter(|_| found.next().is_none()).ok_or(PresignedError::Invalid)
    };
    let kid = parameter("key_id")?;
    let kid = percent_encoding::percent_decode_str(kid).decode_utf8().map_err(|_| PresignedError::Invalid)?;
    let expires = digits(parameter("expires")?).ok_or(PresignedError::Invalid)?;
    let message = canonical(method, path, query);
    let tenant = keys.signed_by(&kid, message.as_bytes(), parameter("signature")?).ok_or(PresignedError::Invalid)?;
    let now = u64::try_from(now.unix_ms().div_euclid(1_000)).unwrap_or_default();
    if now >= expires.saturating_add(PRESIGNED_SKEW_S) {
        return Err(PresignedError::Expired);
    }
    if expires > now + PRESIGNED_MAX_S + PRESIGNED_SKEW_S {
        return Err(PresignedError::TooLong);
    }
    Ok(Principal {
        owner: Owner { tenant: tenant.as_str().into(), subject: format!("presigned:{kid}").as_str().into() },
        scopes: [Scope::ObjectRead].into_iter().collect(),
        token_expires_at: i64::try_from(expires.saturating_mul(1_000)).ok().map(Timestamp::from_unix_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_the_same_for_every_order_of_parameters() {
        let text = "tidegate-presigned-v1\nGET\n/v1/objects/u/_/a%2Fb\nexpires=1&key_id=k";
        for query in
            ["expires=1&key_id=k&signature=x", "signature=x&key_id=k&expires=1", "&key_id=k&&expires=1&signature=x"]
        {
            assert_eq!(canonical(&Method::GET, "/v1/objects/u/_/a%2Fb", query), text);
        }
    }
}
