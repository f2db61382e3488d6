//! `[auth]`: static tokens and the keys of JWTs. It checks that each can be used, so that a bad key is found before the
//! server starts and not by the first caller; it never prints one.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jsonwebtoken::DecodingKey;
use tidegate_core::Scope;
use tidegate_core::id::Name;

use super::read::{Node, Section};
use super::{Auth, JwtAlgorithm, JwtKey, Secret, StaticToken};

/// RFC 7518, section 3.2: as long as the hash.
const HS256_SECRET_MIN_BYTES: usize = 32;

pub(super) fn read(section: Section<'_>) -> Option<Auth> {
    let audience = section.get("audience").map(|node| node.line());
    let issuer = section.get("issuer").map(|node| node.line());
    let tokens: Option<Vec<StaticToken>> = match section.get("tokens") {
        Some(node) => all(node.list()?.iter().map(token)),
        None => Some(Vec::new()),
    };
    let mut kids = BTreeSet::new();
    let keys: Option<Vec<JwtKey>> = match section.get("keys") {
        Some(node) => all(node.list()?.iter().map(|node| key(node, &mut kids))),
        None => Some(Vec::new()),
    };
    let jwks = section.get("jwks").map(|node| jwks(&node));
    let has_jwt = section.get("keys").is_some() || jwks.is_some();
    if has_jwt && audience.is_none() {
        let _ = section.require("audience");
    } else if !has_jwt && tokens.as_ref().is_some_and(Vec::is_empty) {
        section.refuse("lets nobody in: add [[auth.tokens]], [[auth.keys]] or jwks");
    }
    section.finish();
    Some(Auth { audience: flat(audience)?, issuer: flat(issuer)?, tokens: tokens?, keys: keys?, jwks: flat(jwks)? })
}

/// A key that is absent is fine; one that is there and wrong is not.
fn flat<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        Some(None) => None,
        Some(some) => Some(some),
        None => Some(None),
    }
}

/// Every item, so that every problem is found, and then all or nothing.
fn all<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let items: Vec<Option<T>> = items.collect();
    items.into_iter().collect()
}

fn token(node: &Node<'_>) -> Option<StaticToken> {
    let section = node.section()?;
    let sha256 = section.require("sha256").and_then(|node| sha256(&node));
    let subject = section.require("subject").and_then(|node| name(&node));
    let tenant = section.require("tenant").and_then(|node| name(&node));
    let scopes = section.require("scopes").and_then(|node| {
        let items = node.list()?;
        if items.is_empty() {
            node.warn("is empty: this token may do nothing");
        }
        all(items.iter().map(scope))
    });
    section.finish();
    Some(StaticToken { sha256: sha256?, subject: subject?, tenant: tenant?, scopes: scopes?.into_iter().collect() })
}

fn sha256(node: &Node<'_>) -> Option<[u8; 32]> {
    let text = node.text()?;
    let mut bytes = [0; 32];
    match hex::decode_to_slice(&text, &mut bytes) {
        Ok(()) => Some(bytes),
        Err(_) => {
            // The text is not shown: it may be the token itself.
            node.refuse(format!("must be 64 hexadecimal digits, these are {} characters", text.chars().count()));
            None
        }
    }
}

fn name(node: &Node<'_>) -> Option<String> {
    let text = node.text()?;
    match Name::new(text.as_str()) {
        Ok(_) => Some(text),
        Err(why) => {
            node.refuse(why.to_string());
            None
        }
    }
}

fn scope(node: &Node<'_>) -> Option<Scope> {
    let text = node.text()?;
    match text.parse() {
        Ok(scope) => Some(scope),
        Err(why) => {
            node.refuse(format!("{text:?} is {why}"));
            None
        }
    }
}

fn key(node: &Node<'_>, kids: &mut BTreeSet<String>) -> Option<JwtKey> {
    let section = node.section()?;
    let kid = section.require("kid").and_then(|node| name(&node));
    if let Some(kid) = &kid
        && !kids.insert(kid.clone())
    {
        section.refuse_key("kid", format!("{kid:?} is the kid of another key too"));
    }
    let algorithms = [
        ("EdDSA", JwtAlgorithm::EdDsa),
        ("ES256", JwtAlgorithm::Es256),
        ("RS256", JwtAlgorithm::Rs256),
        ("HS256", JwtAlgorithm::Hs256),
    ];
    let algorithm = section.require("alg").and_then(|node| node.choice(&algorithms));
    let material = algorithm.and_then(|algorithm| material(&section, algorithm));
    if algorithm.is_none() {
        // Which of the two is right is not known: neither is reported as unknown.
        let _ = (section.get("secret"), section.get("public_key"));
    }
    section.finish();
    Some(JwtKey { kid: kid?, algorithm: algorithm?, material: material? })
}

fn material(section: &Section<'_>, algorithm: JwtAlgorithm) -> Option<Secret> {
    let (wanted, other) = match algorithm {
        JwtAlgorithm::Hs256 => ("secret", "public_key"),
        JwtAlgorithm::EdDsa | JwtAlgorithm::Es256 | JwtAlgorithm::Rs256 => ("public_key", "secret"),
    };
    if section.get(other).is_some() {
        section.refuse_key(other, format!("does not go with this alg, which takes {wanted}"));
    }
    let node = section.require(wanted)?;
    let text = node.text()?;
    let parsed = match algorithm {
        JwtAlgorithm::Hs256 => {
            if text.is_empty() {
                node.refuse("must not be empty");
                return None;
            }
            if text.len() < HS256_SECRET_MIN_BYTES {
                node.warn(format!("is shorter than {HS256_SECRET_MIN_BYTES} bytes: it can be guessed (RFC 7518, 3.2)"));
            }
            return Some(Secret::new(text));
        }
        JwtAlgorithm::EdDsa => DecodingKey::from_ed_pem(text.as_bytes()),
        JwtAlgorithm::Es256 => DecodingKey::from_ec_pem(text.as_bytes()),
        JwtAlgorithm::Rs256 => DecodingKey::from_rsa_pem(text.as_bytes()),
    };
    match parsed {
        Ok(_) => Some(Secret::new(text)),
        Err(_) => {
            node.refuse("must be a public key of this alg in PEM (-----BEGIN PUBLIC KEY-----)");
            None
        }
    }
}

fn jwks(node: &Node<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(node.line()?);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(why) => {
            node.refuse(format!("cannot be read: {why}"));
            return None;
        }
    };
    // serde_json's message has the line and no value of the file.
    if let Err(why) = serde_json::from_str::<jsonwebtoken::jwk::JwkSet>(&text) {
        node.refuse(format!("is not a JWKS file: line {}, column {}", why.line(), why.column()));
        return None;
    }
    Some(path)
}
