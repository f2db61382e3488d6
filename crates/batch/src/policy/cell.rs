//! The rules in force and their buckets, shared. A lock is held for one decision and never while anything waits; without rules there is
//! no lock at all.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tidegate_core::time::Moment;

use super::bucket::Buckets;
use super::{Access, RateRule, Refused, Rules};
use crate::object::Collection;

/// Bytes that were charged: how long they wait, and under which rules it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charged {
    /// How long they wait before they pass.
    pub wait: Duration,
    /// How often the rules had been replaced.
    pub(super) change: u64,
}

impl Charged {
    /// Whether both were charged under the same rules, and can be given back as one.
    #[must_use]
    pub const fn is_with(self, other: Self) -> bool {
        self.change == other.change
    }
}

/// Rules that can be replaced while they are used.
///
/// ```
/// use std::time::Duration;
/// use tidegate_batch::policy::{Access, KillRule, PolicyCell, Rate, RateRule, Refused, Rules, Selector};
/// use tidegate_batch::{Collection, Scopes};
/// use tidegate_core::id::Name;
/// use tidegate_core::time::Moment;
///
/// let thumbnails = Selector { usecase: Some(Name::new("thumbnails").unwrap()), ..Selector::default() };
/// let kill = vec![KillRule { of: thumbnails, operations: vec![Access::Write] }];
/// let two = Some(Rate { per_second: 2, burst: 1 });
/// let rate = vec![RateRule { of: Selector::default(), requests: two, bytes: None, each: None }];
/// let policy = PolicyCell::new(Rules::new(kill, rate).unwrap(), Moment::ORIGIN);
///
/// let place = Collection {
///     tenant: Name::new("acme").unwrap(),
///     usecase: Name::new("thumbnails").unwrap(),
///     scopes: Scopes::parse("org=17").unwrap(),
/// };
/// assert!(matches!(policy.admit(Moment::ORIGIN, &place, Access::Write), Err(Refused::Disabled { .. })));
/// assert!(policy.admit(Moment::ORIGIN, &place, Access::Read).is_ok());
/// let refused = policy.admit(Moment::ORIGIN, &place, Access::Read);
/// assert!(matches!(refused, Err(Refused::Requests { rule: 0, wait, .. }) if wait == Duration::from_millis(500)));
/// ```
#[derive(Debug)]
pub struct PolicyCell {
    /// The same that the buckets have, to be looked at without their lock.
    rules: ArcSwap<Rules>,
    buckets: Mutex<Buckets>,
}

impl PolicyCell {
    /// Puts rules in force; all buckets are full.
    #[must_use]
    pub fn new(rules: Rules, now: Moment) -> Self {
        let rules = Arc::new(rules);
        Self { buckets: Mutex::new(Buckets::new(Arc::clone(&rules), now)), rules: ArcSwap::new(rules) }
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Puts other rules in force, for every decision from now on. Rate rules that were there before keep what their buckets have.
    pub fn replace(&self, rules: Rules, now: Moment) {
        let rules = Arc::new(rules);
        let mut buckets = self.buckets.lock();
        buckets.replace(Arc::clone(&rules), now);
        self.rules.store(rules);
    }

    /// Whether one operation may be done. It takes a token from the bucket of every rule that matches, or from none.
    pub fn admit(&self, now: Moment, collection: &Collection, access: Access) -> Result<(), Refused> {
        self.decide(now, collection, access, false)
    }

    /// The same for an operation with a body: refused too while the bodies that are on their way owe more than
    /// [`OWED_MAX`](super::OWED_MAX), before anything is done for it.
    pub fn admit_body(&self, now: Moment, collection: &Collection, access: Access) -> Result<(), Refused> {
        self.decide(now, collection, access, true)
    }

    fn decide(&self, now: Moment, collection: &Collection, access: Access, body: bool) -> Result<(), Refused> {
        let rules = self.rules.load();
        if let Some(refused) = rules.switched_off(collection, access) {
            return Err(refused);
        }
        let limits = |rule: &RateRule| rule.requests.is_some() || (body && rule.bytes.is_some());
        if !rules.rate().iter().any(|rule| limits(rule) && rule.of.matches(collection)) {
            return Ok(());
        }
        self.buckets.lock().admit(now, collection, body)
    }

    /// Whether the bytes of a collection's bodies are limited.
    #[must_use]
    pub fn is_shaped(&self, collection: &Collection) -> bool {
        self.rules.load().rate().iter().any(|rule| rule.bytes.is_some() && rule.of.matches(collection))
    }

    /// Lets a body begin whose first piece has so many bytes, and charges them; says how long they wait. Refused while the bodies that
    /// are on their way owe more than [`OWED_MAX`](super::OWED_MAX).
    pub fn begin(&self, now: Moment, collection: &Collection, bytes: u64) -> Result<Charged, Refused> {
        self.buckets.lock().begin(now, collection, bytes)
    }

    /// Charges a piece of a body that has begun; says how long it waits: for as long as all that was charged before it and has not
    /// passed needs, and itself. Pieces pass in the order in which they are charged. A body that charges a piece only when the last
    /// has passed, and gives back what does not pass, makes a bucket owe no more than a piece for each body that is open.
    #[must_use]
    pub fn charge(&self, now: Moment, collection: &Collection, bytes: u64) -> Charged {
        self.buckets.lock().charge(now, collection, bytes)
    }

    /// Gives back bytes that were charged and do not pass. Nothing, if the rules were replaced meanwhile.
    pub fn give_back(&self, now: Moment, collection: &Collection, bytes: u64, charged: Charged) {
        if bytes > 0 {
            self.buckets.lock().give_back(now, collection, bytes, charged);
        }
    }
}
