//! Who asks. A principal comes from a verified token and nothing else; this module never reads a header.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A right that a token can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Query-result streams.
    #[serde(rename = "query")]
    Query,
    /// Reading change streams.
    #[serde(rename = "stream:read")]
    StreamRead,
    /// Writing change streams.
    #[serde(rename = "stream:write")]
    StreamWrite,
    /// Reading objects.
    #[serde(rename = "object:read")]
    ObjectRead,
    /// Writing objects.
    #[serde(rename = "object:write")]
    ObjectWrite,
    /// Deleting objects.
    #[serde(rename = "object:delete")]
    ObjectDelete,
    /// The connector hub.
    #[serde(rename = "hub")]
    Hub,
    /// Settings and everybody's leases.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Query,
        Self::StreamRead,
        Self::StreamWrite,
        Self::ObjectRead,
        Self::ObjectWrite,
        Self::ObjectDelete,
        Self::Hub,
        Self::Admin,
    ];

    /// The name in tokens and in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::StreamRead => "stream:read",
            Self::StreamWrite => "stream:write",
            Self::ObjectRead => "object:read",
            Self::ObjectWrite => "object:write",
            Self::ObjectDelete => "object:delete",
            Self::Hub => "hub",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no [`Scope`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a scope; the scopes are query, stream:read, stream:write, object:read, object:write, object:delete, hub, admin"
)]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or(UnknownScope)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// No right at all.
    pub const NONE: Self = Self(0);
    /// Every right.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether the set has this scope.
    #[must_use]
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Scope::ALL.iter().filter(|scope| self.contains(**scope)).map(|s| s.as_str())).finish()
    }
}

/// Who asks: a subject of a tenant. Two tenants' subjects of the same name are different owners.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The tenant: names of two tenants never meet.
    pub tenant: Arc<str>,
    /// The subject within the tenant.
    pub subject: Arc<str>,
}

/// An owner with the rights that its token carried. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Who it is.
    pub owner: Owner,
    /// What it may do.
    pub scopes: ScopeSet,
    /// When its token expires; `None` = never.
    pub token_expires_at: Option<crate::time::Timestamp>,
}

impl Principal {
    /// The caller of a server without authentication: `anonymous` of tenant `default`, with every right.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            owner: Owner { tenant: "default".into(), subject: "anonymous".into() },
            scopes: ScopeSet::ALL,
            token_expires_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_is_read_back_from_its_name_and_from_nothing_else() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse::<Scope>(), Ok(scope));
            assert_eq!(serde_json::to_string(&scope).unwrap(), format!("\"{scope}\""));
            let set: ScopeSet = [scope].into_iter().collect();
            for other in Scope::ALL {
                assert_eq!(set.contains(other), scope == other);
            }
        }
        assert!("Query".parse::<Scope>().is_err());
        assert!("".parse::<Scope>().is_err());
    }
}
