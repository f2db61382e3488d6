//! JWT keys and the check of a signature. Each key is pinned to one algorithm: what a token's header says chooses among
//! keys, it never changes how a key is used. Times and the audience are the caller's to judge.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation};
use serde::Deserialize;
use tidegate_core::id::Name;

use super::AuthConfigError;

/// The algorithms that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JwtAlgorithm {
    /// Ed25519.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, keys of 2048 to 8192 bits.
    Rs256,
    /// HMAC with SHA-256.
    Hs256,
}

impl JwtAlgorithm {
    /// Its name in a token's header and in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
            Self::Hs256 => "HS256",
        }
    }

    const fn library(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDSA,
            Self::Es256 => Algorithm::ES256,
            Self::Rs256 => Algorithm::RS256,
            Self::Hs256 => Algorithm::HS256,
        }
    }
}

/// A text that names no [`JwtAlgorithm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an accepted algorithm; they are EdDSA, ES256, RS256, HS256")]
pub struct UnknownAlgorithm;

impl std::str::FromStr for JwtAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        [Self::EdDsa, Self::Es256, Self::Rs256, Self::Hs256]
            .into_iter()
            .find(|alg| alg.as_str() == text)
            .ok_or(UnknownAlgorithm)
    }
}

/// A key from the configuration.
#[derive(Debug, Clone)]
pub struct JwtKey {
    /// Which tokens it is for: those whose header has this `kid`.
    pub kid: String,
    /// How they are signed, and in no other way.
    pub alg: JwtAlgorithm,
    /// The key itself.
    pub material: KeyMaterial,
    /// With it the key is that tenant's: its tokens are good for no other, and an Ed25519 key may sign addresses of objects too.
    pub tenant: Option<Name>,
}

/// What a signature is checked with.
#[derive(Clone)]
pub enum KeyMaterial {
    /// A public key in PEM (`PUBLIC KEY`, for RSA also `RSA PUBLIC KEY`).
    PublicPem(String),
    /// The bytes shared with the issuer, at least 32 (RFC 7518, section 3.2).
    Secret(Vec<u8>),
}

impl std::fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PublicPem(_) => "PublicPem(..)",
            Self::Secret(_) => "Secret(..)",
        })
    }
}

/// The claims of a token whose signature is good.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) sub: String,
    pub(super) tenant: String,
    #[serde(default)]
    pub(super) scope: String,
    pub(super) exp: f64,
    #[serde(default)]
    pub(super) nbf: Option<f64>,
    pub(super) aud: Audience,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    pub(super) fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

/// Why a token's signature was not found good. For the code alone; the caller is not told more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VerifyError {
    /// It is no JWT with a header that could be read.
    Malformed,
    /// No key here has its `kid`.
    UnknownKey,
    /// Its algorithm, signature, critical headers or claims are not good.
    Refused,
}

struct VerifyKey {
    kid: Box<str>,
    alg: Algorithm,
    key: DecodingKey,
    tenant: Option<Name>,
}

/// Keys by `kid`.
#[derive(Default)]
pub(super) struct KeySet {
    keys: Vec<VerifyKey>,
}

impl KeySet {
    pub(super) fn from_config(config: &[JwtKey]) -> Result<Self, AuthConfigError> {
        let mut set = Self::default();
        for key in config {
            set.add(&key.kid, key.alg, decoding_key(key.alg, &key.material), key.tenant.clone())?;
        }
        Ok(set)
    }

    /// The usable signing keys of a JWKS document (RFC 7517). Keys for other uses and of other kinds are passed over.
    pub(super) fn from_jwks(document: &[u8]) -> Result<Self, Box<str>> {
        let jwks: JwkSet = serde_json::from_slice(document).map_err(|error| error.to_string())?;
        let mut set = Self::default();
        for jwk in &jwks.keys {
            let (Some(kid), Some(alg)) = (&jwk.common.key_id, algorithm_of(jwk)) else {
                tracing::debug!(kid = jwk.common.key_id, "a JWKS key is for nothing that this server does");
                continue;
            };
            let key = DecodingKey::from_jwk(jwk).map_err(|_| "its fields are not valid base64url");
            set.add(kid, alg, key.and_then(|key| checked(alg, key)), None).map_err(|error| error.to_string())?;
        }
        if set.keys.is_empty() {
            return Err("it has no key that could be used".into());
        }
        Ok(set)
    }

    fn add(
        &mut self,
        kid: &str,
        alg: JwtAlgorithm,
        key: Result<DecodingKey, &'static str>,
        tenant: Option<Name>,
    ) -> Result<(), AuthConfigError> {
        let key = key.map_err(|reason| AuthConfigError::Key { kid: kid.into(), alg: alg.as_str(), reason })?;
        if self.keys.iter().any(|known| &*known.kid == kid) {
            return Err(AuthConfigError::DuplicateKey { kid: kid.into() });
        }
        self.keys.push(VerifyKey { kid: kid.into(), alg: alg.library(), key, tenant });
        Ok(())
    }

    /// Checks the signature and reads the claims.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, VerifyError> {
        // `none` and algorithms that the library does not know fail here.
        let header = jsonwebtoken::decode_header(token).map_err(|_| VerifyError::Malformed)?;
        // RFC 7515, section 4.1.11: who does not understand a critical header must refuse; none is understood here.
        if header.crit.is_some() {
            return Err(VerifyError::Refused);
        }
        let key = self.key_for(header.kid.as_deref(), header.alg).ok_or(VerifyError::UnknownKey)?;
        if key.alg != header.alg {
            return Err(VerifyError::Refused);
        }
        let mut validation = Validation::new(key.alg);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let verified =
            jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(|_| VerifyError::Refused)?;
        let claims = verified.claims;
        if key.tenant.as_ref().is_some_and(|tenant| tenant.as_str() != claims.tenant) {
            return Err(VerifyError::Refused);
        }
        Ok(claims)
    }

    /// The tenant whose Ed25519 key made this signature (base64url without padding).
    pub(super) fn signed_by(&self, kid: &str, message: &[u8], signature: &str) -> Option<&Name> {
        let key = self.keys.iter().find(|key| &*key.kid == kid && key.alg == Algorithm::EdDSA)?;
        let tenant = key.tenant.as_ref()?;
        let good = jsonwebtoken::crypto::verify(signature, message, &key.key, Algorithm::EdDSA);
        good.unwrap_or_default().then_some(tenant)
    }

    /// A token without a `kid` is checked with the one key of its algorithm, if there is exactly one.
    fn key_for(&self, kid: Option<&str>, alg: Algorithm) -> Option<&VerifyKey> {
        if let Some(kid) = kid {
            return self.keys.iter().find(|key| &*key.kid == kid);
        }
        let mut candidates = self.keys.iter().filter(|key| key.alg == alg);
        let only = candidates.next()?;
        candidates.next().is_none().then_some(only)
    }
}

fn decoding_key(alg: JwtAlgorithm, material: &KeyMaterial) -> Result<DecodingKey, &'static str> {
    let key = match (alg, material) {
        (JwtAlgorithm::Hs256, KeyMaterial::Secret(secret)) => DecodingKey::from_secret(secret),
        (JwtAlgorithm::Hs256, KeyMaterial::PublicPem(_)) => return Err("it needs a secret, not a public key"),
        (_, KeyMaterial::Secret(_)) => return Err("it needs a public key, not a secret"),
        (_, KeyMaterial::PublicPem(pem)) => {
            // The library would also take a private key or a certificate and pick bits out of it.
            if !pem.contains("-----BEGIN PUBLIC KEY-----") && !pem.contains("-----BEGIN RSA PUBLIC KEY-----") {
                return Err("it is not a public key in PEM");
            }
            match alg {
                JwtAlgorithm::EdDsa => DecodingKey::from_ed_pem(pem.as_bytes()),
                JwtAlgorithm::Es256 => DecodingKey::from_ec_pem(pem.as_bytes()),
                JwtAlgorithm::Rs256 => DecodingKey::from_rsa_pem(pem.as_bytes()),
                JwtAlgorithm::Hs256 => return Err("it needs a secret, not a public key"),
            }
            .map_err(|_| "the PEM does not hold a key of this kind")?
        }
    };
    checked(alg, key)
}

/// Refuses at the start what could never verify anything, or is too weak to be trusted.
fn checked(alg: JwtAlgorithm, key: DecodingKey) -> Result<DecodingKey, &'static str> {
    // Of a key in DER only the check of a signature tells the size: one that is too short never verifies.
    if let DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind() {
        let bytes = n.iter().skip_while(|byte| **byte == 0).count();
        return if bytes < 256 { Err("the modulus has fewer than 2048 bits") } else { Ok(key) };
    }
    let bytes = key.try_get_as_bytes().unwrap_or_default();
    match alg {
        JwtAlgorithm::Hs256 if bytes.len() < 32 => Err("the secret has fewer than 32 bytes"),
        JwtAlgorithm::EdDsa if bytes.len() != 32 => Err("it is not an Ed25519 key"),
        JwtAlgorithm::Es256 if bytes.len() != 65 || bytes[0] != 4 => Err("it is not an uncompressed point of P-256"),
        _ => Ok(key),
    }
}

/// What a JWKS key is for: its `alg`, or what its kind of key alone can mean here.
fn algorithm_of(jwk: &Jwk) -> Option<JwtAlgorithm> {
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let by_kind = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => JwtAlgorithm::EdDsa,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => JwtAlgorithm::Es256,
        AlgorithmParameters::RSA(_) => JwtAlgorithm::Rs256,
        AlgorithmParameters::OctetKey(_) => JwtAlgorithm::Hs256,
        _ => return None,
    };
    let named = match jwk.common.key_algorithm {
        None => return Some(by_kind),
        Some(KeyAlgorithm::EdDSA) => JwtAlgorithm::EdDsa,
        Some(KeyAlgorithm::ES256) => JwtAlgorithm::Es256,
        Some(KeyAlgorithm::RS256) => JwtAlgorithm::Rs256,
        Some(KeyAlgorithm::HS256) => JwtAlgorithm::Hs256,
        Some(_) => return None,
    };
    (named == by_kind).then_some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(kid: &str, bytes: usize) -> JwtKey {
        JwtKey {
            kid: kid.into(),
            alg: JwtAlgorithm::Hs256,
            material: KeyMaterial::Secret(vec![7; bytes]),
            tenant: None,
        }
    }

    #[test]
    fn a_key_that_is_weak_or_of_another_kind_is_refused_at_the_start() {
        assert!(KeySet::from_config(&[secret("a", 32)]).is_ok());
        assert!(KeySet::from_config(&[secret("a", 31)]).is_err());
        assert!(matches!(
            KeySet::from_config(&[secret("a", 32), secret("a", 33)]),
            Err(AuthConfigError::DuplicateKey { .. })
        ));
        for alg in [JwtAlgorithm::EdDsa, JwtAlgorithm::Es256, JwtAlgorithm::Rs256] {
            for material in [
                KeyMaterial::Secret(vec![7; 64]),
                KeyMaterial::PublicPem(String::new()),
                KeyMaterial::PublicPem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".into()),
            ] {
                let key = JwtKey { kid: "k".into(), alg, material, tenant: None };
                assert!(KeySet::from_config(&[key]).is_err(), "{}", alg.as_str());
            }
        }
    }

    #[test]
    fn a_jwks_key_is_used_only_for_what_it_says() {
        let k = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
        let usable = |extra: &str| {
            let document = format!(r#"{{"keys":[{{"kty":"oct","kid":"k","k":"{k}"{extra}}}]}}"#);
            KeySet::from_jwks(document.as_bytes()).is_ok()
        };
        assert!(usable(""));
        assert!(usable(r#","alg":"HS256","use":"sig""#));
        assert!(!usable(r#","use":"enc""#));
        assert!(!usable(r#","alg":"HS512""#));
        assert!(!usable(r#","alg":"RS256""#));
        for broken in ["", "{}", "[]", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","kid":"k","k":"AA"}]}"#] {
            assert!(KeySet::from_jwks(broken.as_bytes()).is_err(), "{broken:?}");
        }
    }
}
