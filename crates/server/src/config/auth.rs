//! `[auth]`: static tokens and the keys of JWTs. Each is tried as the server will use it, so that a bad key is found before
//! the server starts and not by the first caller; none is ever printed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::Scope;
use tidegate_core::id::Name;
use tidegate_core::system::SystemClock;
use tidegate_transport_http::auth::{AuthConfigError, JwtAlgorithm, JwtKey, KeyMaterial, StaticToken};
use tidegate_transport_http::{AuthConfig, Authenticator, TokenConfig};

use super::read::{Node, Section};

pub(super) fn read(section: Section<'_>) -> Option<TokenConfig> {
    let audience = section.get("audience").map(|node| node.line());
    if let Some(node) = section.get("issuer") {
        // A rule about who may call is not taken before it is kept.
        node.refuse("is not in this version: a token's iss is not looked at");
    }
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
    Some(TokenConfig {
        audience: flat(audience)?,
        tokens: tokens?,
        keys: keys?,
        jwks: flat(jwks)?,
        leeway: Duration::ZERO,
    })
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

fn name(node: &Node<'_>) -> Option<Name> {
    let text = node.text()?;
    match Name::new(text) {
        Ok(name) => Some(name),
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
    let kid = section.require("kid").and_then(|node| name(&node)).map(|name| name.as_str().to_owned());
    if let Some(kid) = &kid
        && !kids.insert(kid.clone())
    {
        section.refuse_key("kid", format!("{kid:?} is the kid of another key too"));
    }
    let algorithms = [JwtAlgorithm::EdDsa, JwtAlgorithm::Es256, JwtAlgorithm::Rs256, JwtAlgorithm::Hs256]
        .map(|algorithm| (algorithm.as_str(), algorithm));
    let algorithm = section.require("alg").and_then(|node| node.choice(&algorithms));
    let material = algorithm.and_then(|algorithm| material(&section, algorithm));
    if algorithm.is_none() {
        // Which of the two is right is not known: neither is reported as unknown.
        let _ = (section.get("secret"), section.get("public_key"));
    }
    let tenant = section.get("tenant").map(|node| name(&node));
    section.finish();
    Some(JwtKey { kid: kid?, alg: algorithm?, material: material?, tenant: flat(tenant)? })
}

fn material(section: &Section<'_>, algorithm: JwtAlgorithm) -> Option<KeyMaterial> {
    let (wanted, other) = match algorithm {
        JwtAlgorithm::Hs256 => ("secret", "public_key"),
        JwtAlgorithm::EdDsa | JwtAlgorithm::Es256 | JwtAlgorithm::Rs256 => ("public_key", "secret"),
    };
    if section.get(other).is_some() {
        section.refuse_key(other, format!("does not go with this alg, which takes {wanted}"));
    }
    let node = section.require(wanted)?;
    let text = node.text()?;
    let material = match algorithm {
        JwtAlgorithm::Hs256 => KeyMaterial::Secret(text.into_bytes()),
        JwtAlgorithm::EdDsa | JwtAlgorithm::Es256 | JwtAlgorithm::Rs256 => KeyMaterial::PublicPem(text),
    };
    let key = JwtKey { kid: String::new(), alg: algorithm, material: material.clone(), tenant: None };
    match tried(TokenConfig { keys: vec![key], ..TokenConfig::default() }) {
        Ok(()) => Some(material),
        Err(AuthConfigError::Key { reason, .. }) => {
            node.refuse(format!("cannot be used for {}: {reason}", algorithm.as_str()));
            None
        }
        Err(error) => {
            node.refuse(error.to_string());
            None
        }
    }
}

fn jwks(node: &Node<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(node.line()?);
    match tried(TokenConfig { jwks: Some(path.clone()), ..TokenConfig::default() }) {
        Ok(()) => Some(path),
        Err(error) => {
            node.refuse(error.to_string());
            None
        }
    }
}

/// Whether the transport could work with this, by the transport's own judgement.
fn tried(config: TokenConfig) -> Result<(), AuthConfigError> {
    // The audience is asked for elsewhere, with a place of its own.
    let config = TokenConfig { audience: Some(String::new()), ..config };
    Authenticator::new(AuthConfig::Token(config), Arc::new(SystemClock::new())).map(|_| ())
}
