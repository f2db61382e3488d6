//! The buckets of rate rules: the machine. Time is an argument; it takes whole tokens from every bucket that a rule gives, or none.
//!
//! A bucket's content is counted in billionths of a token, so that a rate of `n` a second is `n` of them a nanosecond: every level and
//! every wait is exact, whatever the rate.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tidegate_core::id::Name;
use tidegate_core::time::Moment;

use super::{BUCKET_MAX_COUNT, Each, OWED_MAX, Rate, RateRule, Refused, Rules, WAIT_MAX};
use crate::object::{Collection, Scopes};

/// A token in billionths.
const TOKEN: i128 = 1_000_000_000;
const MILLISECOND_NS: i128 = 1_000_000;

/// What one bucket has, negative where it owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    level: i128,
    at: Moment,
}

impl Bucket {
    fn full(rate: Rate, now: Moment) -> Self {
        Self { level: i128::from(rate.burst) * TOKEN, at: now }
    }

    /// What has come in since it was last looked at. A time that has been is no time at all.
    fn fill(&mut self, rate: Rate, now: Moment) {
        // Below 2^64 ns and 2^40 a second: no overflow.
        let passed = i128::try_from(now.saturating_since(self.at).as_nanos()).unwrap_or(i128::MAX >> 64);
        self.level = (self.level + passed * i128::from(rate.per_second)).min(i128::from(rate.burst) * TOKEN);
        self.at = self.at.max(now);
    }

    /// How many nanoseconds until it has `level`.
    fn until(&self, level: i128, rate: Rate) -> i128 {
        let missing = (level - self.level).max(0);
        let per_ns = i128::from(rate.per_second.max(1));
        missing / per_ns + i128::from(missing % per_ns != 0)
    }
}

/// In whole milliseconds, never too early.
fn in_ms(ns: i128) -> Duration {
    let ms = ns / MILLISECOND_NS + i128::from(ns % MILLISECOND_NS != 0);
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
}

/// The buckets of one rule, or of one value of what it has `each` for.
#[derive(Debug, Clone, Copy)]
struct Pair {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Pair {
    fn full(rule: &RateRule, now: Moment) -> Self {
        let full = |rate| Bucket::full(rate, now);
        Self { requests: rule.requests.map(full), bytes: rule.bytes.map(full) }
    }
}

/// Whose bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    rule: usize,
    tenant: Name,
    usecase: Option<Name>,
    scopes: Option<Scopes>,
}

impl Key {
    fn of(rule: usize, each: Each, collection: &Collection) -> Self {
        Self {
            rule,
            tenant: collection.tenant.clone(),
            usecase: (each != Each::Tenant).then(|| collection.usecase.clone()),
            scopes: (each == Each::Scopes).then(|| collection.scopes.clone()),
        }
    }
}

/// All buckets of the rules in force.
#[derive(Debug)]
pub(super) struct Buckets {
    rules: Arc<Rules>,
    /// One for each rule; of no use for those with `each`.
    shared: Vec<Pair>,
    each: LruCache<Key, Pair>,
}

impl Buckets {
    /// All full.
    pub(super) fn new(rules: Arc<Rules>, now: Moment) -> Self {
        let shared = rules.rate().iter().map(|rule| Pair::full(rule, now)).collect();
        let bound = NonZeroUsize::new(BUCKET_MAX_COUNT).expect("it is not 0");
        // It grows with its content rather than at once.
        let mut each = LruCache::unbounded();
        each.resize(bound);
        Self { rules, shared, each }
    }

    /// Puts other rules in force. A rule that was there and is there keeps its buckets, wherever it stands; the others begin full.
    pub(super) fn replace(&mut self, rules: Arc<Rules>, now: Moment) {
        let mut next = Self::new(Arc::clone(&rules), now);
        let mut moved: Vec<Option<usize>> = vec![None; self.rules.rate().len()];
        for (to, rule) in rules.rate().iter().enumerate() {
            let same = |(from, old): (usize, &RateRule)| moved[from].is_none() && old == rule;
            if let Some(from) = self.rules.rate().iter().enumerate().position(same) {
                moved[from] = Some(to);
                next.shared[to] = self.shared[from];
            }
        }
        // From the least lately used on, so that the order stays.
        while let Some((key, pair)) = self.each.pop_lru() {
            if let Some(rule) = moved[key.rule] {
                next.each.put(Key { rule, ..key }, pair);
            }
        }
        *self = next;
    }

    /// Lets one operation in, and takes a token from every bucket that a rule gives for it.
    pub(super) fn admit(&mut self, now: Moment, collection: &Collection) -> Result<(), Refused> {
        let rules = Arc::clone(&self.rules);
        let mut last: Option<(i128, usize, Rate)> = None;
        let limits = || of(&rules, collection, |rule| rule.requests);
        for (at, rule, rate) in limits() {
            let Some(bucket) = self.pair(at, rule, collection, now).requests.as_mut() else { continue };
            bucket.fill(rate, now);
            let wait = bucket.until(TOKEN, rate);
            if wait > last.map_or(0, |(longest, ..)| longest) {
                last = Some((wait, at, rate));
            }
        }
        if let Some((wait, rule, rate)) = last {
            return Err(Refused::Requests { rule, rate, wait: in_ms(wait) });
        }
        for (at, rule, _) in limits() {
            if let Some(bucket) = self.pair(at, rule, collection, now).requests.as_mut() {
                bucket.level -= TOKEN;
            }
        }
        Ok(())
    }

    /// Gives back what an operation took that was let in and not begun.
    pub(super) fn withdraw(&mut self, now: Moment, collection: &Collection) {
        let rules = Arc::clone(&self.rules);
        for (at, rule, rate) in of(&rules, collection, |rule| rule.requests) {
            if let Some(bucket) = self.pair(at, rule, collection, now).requests.as_mut() {
                bucket.level += TOKEN;
                bucket.fill(rate, now);
            }
        }
    }

    /// Lets a body of at least so many bytes begin, and charges them; says how long they wait.
    pub(super) fn begin(&mut self, now: Moment, collection: &Collection, bytes: u64) -> Result<Duration, Refused> {
        let rules = Arc::clone(&self.rules);
        let mut last: Option<(i128, usize, Rate)> = None;
        let owed_max = i128::try_from(OWED_MAX.as_nanos()).unwrap_or(i128::MAX);
        for (at, rule, rate) in of(&rules, collection, |rule| rule.bytes) {
            let Some(bucket) = self.pair(at, rule, collection, now).bytes.as_mut() else { continue };
            bucket.fill(rate, now);
            let over = bucket.until(0, rate) - owed_max;
            if over > last.map_or(0, |(longest, ..)| longest) {
                last = Some((over, at, rate));
            }
        }
        match last {
            Some((wait, rule, rate)) => Err(Refused::Bytes { rule, rate, wait: in_ms(wait) }),
            None => Ok(self.charge(now, collection, bytes)),
        }
    }

    /// Takes bytes whether they are there or not; says how long they wait, [`WAIT_MAX`] at most.
    pub(super) fn charge(&mut self, now: Moment, collection: &Collection, bytes: u64) -> Duration {
        let rules = Arc::clone(&self.rules);
        let mut longest = 0;
        for (at, rule, rate) in of(&rules, collection, |rule| rule.bytes) {
            let Some(bucket) = self.pair(at, rule, collection, now).bytes.as_mut() else { continue };
            bucket.fill(rate, now);
            bucket.level -= i128::from(bytes) * TOKEN;
            longest = longest.max(bucket.until(0, rate));
        }
        Duration::from_nanos(u64::try_from(longest).unwrap_or(u64::MAX)).min(WAIT_MAX)
    }

    /// Gives back bytes that were charged and did not come.
    pub(super) fn give_back(&mut self, now: Moment, collection: &Collection, bytes: u64) {
        let rules = Arc::clone(&self.rules);
        for (at, rule, rate) in of(&rules, collection, |rule| rule.bytes) {
            let Some(bucket) = self.pair(at, rule, collection, now).bytes.as_mut() else { continue };
            bucket.level += i128::from(bytes) * TOKEN;
            bucket.fill(rate, now);
        }
    }

    fn pair(&mut self, at: usize, rule: &RateRule, collection: &Collection, now: Moment) -> &mut Pair {
        match rule.each {
            None => &mut self.shared[at],
            Some(each) => {
                let key = Key::of(at, each, collection);
                self.each.get_or_insert_mut(key, || Pair::full(rule, now))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.each.len()
    }
}

/// The rules that limit something of a collection, with how much.
fn of<'r>(
    rules: &'r Rules,
    collection: &'r Collection,
    what: impl Fn(&RateRule) -> Option<Rate> + 'r,
) -> impl Iterator<Item = (usize, &'r RateRule, Rate)> {
    let rules = rules.rate().iter().enumerate().filter(|(_, rule)| rule.of.matches(collection));
    rules.filter_map(move |(at, rule)| Some((at, rule, what(rule)?)))
}
