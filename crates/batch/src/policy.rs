//! Who may use objects, and how much of it: kill switches and rate limits, by tenant, usecase and scopes. The rules here say what they
//! match and nothing else; [`PolicyCell`] judges operations by them. Nothing here reads a clock or waits.
//!
//! A bucket takes its time as an argument and can be looked at before it is taken from, which no published rate limiter gives: an
//! operation that several rules match must find room in all of them or take nothing from any (ADR 0014).

mod bucket;
mod cell;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tidegate_core::id::Name;
use tidegate_core::limit::Limit;
use tidegate_core::{ErrorKind, Failure, Retry};

use crate::object::{Collection, Scopes};
use crate::operation::OperationKind;

pub use cell::{Charged, PolicyCell};

/// The most kill switches, and the most rate rules.
pub const RULE_MAX_COUNT: usize = 256;
/// The most requests a second that a rule can allow, and the largest burst of them.
pub const REQUESTS_MAX: u64 = 1_000_000_000;
/// The fewest bytes a second that a rule can allow: less would hold one piece of a body for longer than clients wait.
pub const BYTES_MIN: u64 = 16 * 1_024;
/// The most bytes a second that a rule can allow, and the largest burst of them.
pub const BYTES_MAX: u64 = 1 << 40;
/// The most buckets that rules with `each` keep, shared out among them in equal parts. Beyond its part a rule forgets one that is full,
/// or the one that was used least lately: it is full when it comes again.
pub const BUCKET_MAX_COUNT: usize = 65_536;
/// While a bucket of bytes owes more than this, no new body begins.
pub const OWED_MAX: Duration = Duration::from_secs(5);

/// The bounds of this module.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "object_rule_max_count",
        value: RULE_MAX_COUNT as u64,
        meaning: "Rules in limits.object.kill, and in limits.object.rate; more are 400 invalid_field.",
    },
    Limit {
        name: "object_rate_bucket_max_count",
        value: BUCKET_MAX_COUNT as u64,
        meaning: "Buckets that rules with each keep, one for each value, in equal parts; beyond its part a rule forgets a full one.",
    },
    Limit {
        name: "object_rate_owed_max_ms",
        value: OWED_MAX.as_millis() as u64,
        meaning: "While bodies wait for longer than this for a rule's bytes_per_second, a new one is 429 rate_limited.",
    },
];

/// What an operation does to objects: the right that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Reads objects, or lists them.
    Read,
    /// Writes objects, or any step of an upload in parts.
    Write,
    /// Removes objects.
    Delete,
}

impl Access {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Delete];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|access| access.as_str() == text)
    }
}

impl From<OperationKind> for Access {
    fn from(kind: OperationKind) -> Self {
        match kind {
            OperationKind::Insert => Self::Write,
            OperationKind::Get | OperationKind::Head => Self::Read,
            OperationKind::Delete => Self::Delete,
        }
    }
}

/// Which collections a rule is for. What is `None` matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// Of this tenant.
    pub tenant: Option<Name>,
    /// Of this usecase.
    pub usecase: Option<Name>,
    /// Of these scopes, and of all that begin with them: `org=17` is for `org=17;project=42` too, and not for `org=170`. `_` is for
    /// what has no scopes.
    pub scopes: Option<Scopes>,
}

impl Selector {
    /// Whether the rule is for a collection.
    #[must_use]
    pub fn matches(&self, collection: &Collection) -> bool {
        let begins = |scopes: &Scopes| {
            let rest = collection.scopes.as_str().strip_prefix(scopes.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(';'))
        };
        self.tenant.as_ref().is_none_or(|tenant| *tenant == collection.tenant)
            && self.usecase.as_ref().is_none_or(|usecase| *usecase == collection.usecase)
            && self.scopes.as_ref().is_none_or(begins)
    }
}

/// A kill switch: what it matches is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KillRule {
    /// Where.
    pub of: Selector,
    /// What; empty = everything.
    pub operations: Vec<Access>,
}

impl KillRule {
    /// Whether it refuses an operation.
    #[must_use]
    pub fn matches(&self, collection: &Collection, access: Access) -> bool {
        (self.operations.is_empty() || self.operations.contains(&access)) && self.of.matches(collection)
    }
}

/// A rate: so many a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many a second; not 0.
    pub per_second: u64,
    /// How many at once; not 0.
    pub burst: u64,
}

/// What each has a bucket of its own. Those of two tenants are never one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Each {
    /// Each tenant.
    Tenant,
    /// Each usecase of each tenant.
    Usecase,
    /// Each collection: tenant, usecase and whole scopes.
    Scopes,
}

impl Each {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tenant, Self::Usecase, Self::Scopes];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Usecase => "usecase",
            Self::Scopes => "scopes",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.as_str() == text)
    }
}

/// A rate limit: all that it matches shares one bucket, or each value of `each` has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateRule {
    /// Where.
    pub of: Selector,
    /// Operations; one beyond it is refused.
    pub requests: Option<Rate>,
    /// Bytes of bodies, in and out; those beyond it wait.
    pub bytes: Option<Rate>,
    /// What has a bucket of its own; `None` = one bucket for all.
    pub each: Option<Each>,
}

/// Why rules were not taken. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// More than [`RULE_MAX_COUNT`] of a kind.
    #[error("there may be {RULE_MAX_COUNT} rules of a kind, these are {count}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// A rate rule limits nothing.
    #[error("rule {rule} limits neither requests nor bytes")]
    Nothing {
        /// Which, from 0.
        rule: usize,
    },
    /// A rate is outside its range.
    #[error("rule {rule}: a rate or a burst is outside its range")]
    OutOfRange {
        /// Which, from 0.
        rule: usize,
    },
}

/// All rules that are in force together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    kill: Vec<KillRule>,
    rate: Vec<RateRule>,
}

impl Rules {
    /// Checks rules: their number, and that each rate is within [`REQUESTS_MAX`], or within [`BYTES_MIN`] and [`BYTES_MAX`].
    pub fn new(kill: Vec<KillRule>, rate: Vec<RateRule>) -> Result<Self, RulesError> {
        let count = kill.len().max(rate.len());
        if count > RULE_MAX_COUNT {
            return Err(RulesError::TooMany { count });
        }
        for (at, rule) in rate.iter().enumerate() {
            let within = |rate: &Option<Rate>, min: u64, max: u64| {
                rate.is_none_or(|rate| (min..=max).contains(&rate.per_second) && (1..=max).contains(&rate.burst))
            };
            if rule.requests.is_none() && rule.bytes.is_none() {
                return Err(RulesError::Nothing { rule: at });
            }
            if !within(&rule.requests, 1, REQUESTS_MAX) || !within(&rule.bytes, BYTES_MIN, BYTES_MAX) {
                return Err(RulesError::OutOfRange { rule: at });
            }
        }
        Ok(Self { kill, rate })
    }

    /// The kill switches.
    #[must_use]
    pub fn kill(&self) -> &[KillRule] {
        &self.kill
    }

    /// The rate limits.
    #[must_use]
    pub fn rate(&self) -> &[RateRule] {
        &self.rate
    }

    /// Whether all that a rate rule matches shares one bucket with what other tenants do.
    fn is_shared(&self, rule: usize) -> bool {
        self.rate.get(rule).is_some_and(|rule| rule.each.is_none() && rule.of.tenant.is_none())
    }

    /// Whether an operation is switched off.
    fn switched_off(&self, collection: &Collection, access: Access) -> Option<Refused> {
        let killed = self.kill.iter().any(|rule| rule.matches(collection, access));
        killed.then(|| Refused::Disabled { usecase: collection.usecase.clone(), access })
    }
}

/// Why an operation may not begin. Nothing was taken from any bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A kill switch matches it.
    #[error("to {} objects of usecase {:?} is switched off", access.as_str(), usecase.as_str())]
    Disabled {
        /// The usecase that was asked for.
        usecase: Name,
        /// What was to be done.
        access: Access,
    },
    /// A rule's requests are used up.
    #[error("there are at most {} requests a second here, and {} at once", rate.per_second, rate.burst)]
    Requests {
        /// The rule that lets it in last, from 0.
        rule: usize,
        /// What it allows.
        rate: Rate,
        /// In this time one is let in, in whole milliseconds, if nobody else comes.
        wait: Duration,
        /// Whether the bucket is other tenants' too: the wait says what they do.
        shared: bool,
    },
    /// More bodies wait for a rule's bytes than there may.
    #[error("there are at most {} bytes a second here, and the bodies that are on their way wait for theirs", rate.per_second)]
    Bytes {
        /// The rule that lets it in last, from 0.
        rule: usize,
        /// What it allows.
        rate: Rate,
        /// In this time one is let in, in whole milliseconds, if no other begins.
        wait: Duration,
        /// Whether the bucket is other tenants' too: the wait says what they do.
        shared: bool,
    },
}

impl Failure for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::Disabled { .. } => "operation_disabled",
            Self::Requests { .. } | Self::Bytes { .. } => "rate_limited",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Disabled { .. } => ErrorKind::Forbidden,
            Self::Requests { .. } | Self::Bytes { .. } => ErrorKind::Exhausted,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Disabled { .. } => Retry::Never,
            Self::Requests { wait, .. } | Self::Bytes { wait, .. } => Retry::After(*wait),
        }
    }
}
