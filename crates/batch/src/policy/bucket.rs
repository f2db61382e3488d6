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

use super::cell::Charged;
use super::{BUCKET_MAX_COUNT, Each, OWED_MAX, Rate, RateRule, Refused, Rules};
use crate::object::{Collection, Scopes};

/// A token in billionths.
const TOKEN: i128 = 1_000_000_000;
const MILLISECOND_NS: i128 = 1_000_000;
/// How many of those that were used least lately are looked at for one that is full, before one is forgotten.
const LOOKED_AT: usize = 32;

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

    /// Whether nobody would notice if it were forgotten.
    fn is_full(&self, rule: &RateRule, now: Moment) -> bool {
        let full = |bucket: Option<Bucket>, rate: Option<Rate>| match (bucket, rate) {
            (Some(mut bucket), Some(rate)) => {
                bucket.fill(rate, now);
                bucket.level == i128::from(rate.burst) * TOKEN
            }
            _ => true,
        };
        full(self.requests, rule.requests) && full(self.bytes, rule.bytes)
    }
}

/// Whose bucket, of a rule's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    tenant: Name,
    usecase: Option<Name>,
    scopes: Option<Scopes>,
}

impl Key {
    fn of(each: Each, collection: &Collection) -> Self {
        Self {
            tenant: collection.tenant.clone(),
            usecase: (each != Each::Tenant).then(|| collection.usecase.clone()),
            scopes: (each == Each::Scopes).then(|| collection.scopes.clone()),
        }
    }
}

/// What one rule has.
#[derive(Debug)]
enum Kept {
    One(Pair),
    /// Those of each rule are bounded by themselves: what is asked of one makes no other forget what it is owed.
    Each(LruCache<Key, Pair>),
}

impl Kept {
    fn full(rule: &RateRule, bound: NonZeroUsize, now: Moment) -> Self {
        if rule.each.is_none() {
            return Self::One(Pair::full(rule, now));
        }
        // It grows with its content rather than at once.
        let mut each = LruCache::unbounded();
        each.resize(bound);
        Self::Each(each)
    }
}

/// All buckets of the rules in force.
#[derive(Debug)]
pub(super) struct Buckets {
    rules: Arc<Rules>,
    /// How often they were replaced.
    change: u64,
    /// One for each rule.
    kept: Vec<Kept>,
}

impl Buckets {
    /// All full.
    pub(super) fn new(rules: Arc<Rules>, now: Moment) -> Self {
        let bound = bound(&rules);
        let kept = rules.rate().iter().map(|rule| Kept::full(rule, bound, now)).collect();
        Self { rules, change: 0, kept }
    }

    /// Puts other rules in force. A rule that was there and is there keeps its buckets, wherever it stands; the others begin full.
    pub(super) fn replace(&mut self, rules: Arc<Rules>, now: Moment) {
        let bound = bound(&rules);
        let mut before: Vec<(&RateRule, Option<Kept>)> =
            self.rules.rate().iter().zip(self.kept.drain(..).map(Some)).collect();
        let mut stays = |rule: &RateRule| {
            let mut same = before.iter_mut().filter(|(old, kept)| *old == rule && kept.is_some());
            let mut kept = same.next()?.1.take()?;
            if let Kept::Each(each) = &mut kept {
                each.resize(bound);
            }
            Some(kept)
        };
        let kept =
            rules.rate().iter().map(|rule| stays(rule).unwrap_or_else(|| Kept::full(rule, bound, now))).collect();
        *self = Self { rules, change: self.change + 1, kept };
    }

    /// Lets one operation in, and takes a token from every bucket that a rule gives for it. With a body it is refused too while a bucket
    /// of bytes owes too much. Who is refused has taken nothing from any.
    pub(super) fn admit(&mut self, now: Moment, collection: &Collection, body: bool) -> Result<(), Refused> {
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
        let over = if body { self.over(now, collection) } else { None };
        if let Some((wait, rule, rate)) = over
            && wait >= last.map_or(0, |(longest, ..)| longest)
        {
            return Err(Refused::Bytes { rule, rate, wait: in_ms(wait), shared: rules.is_shared(rule) });
        }
        if let Some((wait, rule, rate)) = last {
            return Err(Refused::Requests { rule, rate, wait: in_ms(wait), shared: rules.is_shared(rule) });
        }
        for (at, rule, _) in limits() {
            if let Some(bucket) = self.pair(at, rule, collection, now).requests.as_mut() {
                bucket.level -= TOKEN;
            }
        }
        Ok(())
    }

    /// Lets a body of at least so many bytes begin, and charges them; says how long they wait.
    pub(super) fn begin(&mut self, now: Moment, collection: &Collection, bytes: u64) -> Result<Charged, Refused> {
        match self.over(now, collection) {
            Some((wait, rule, rate)) => {
                Err(Refused::Bytes { rule, rate, wait: in_ms(wait), shared: self.rules.is_shared(rule) })
            }
            None => Ok(self.charge(now, collection, bytes)),
        }
    }

    /// The rule that is owed the most beyond what may be owed when a body begins: for how long, which, and its rate.
    fn over(&mut self, now: Moment, collection: &Collection) -> Option<(i128, usize, Rate)> {
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
        last
    }

    /// Takes bytes whether they are there or not; says how long they wait: until all that was charged before is paid, and they.
    pub(super) fn charge(&mut self, now: Moment, collection: &Collection, bytes: u64) -> Charged {
        let rules = Arc::clone(&self.rules);
        let mut longest = 0;
        for (at, rule, rate) in of(&rules, collection, |rule| rule.bytes) {
            let Some(bucket) = self.pair(at, rule, collection, now).bytes.as_mut() else { continue };
            bucket.fill(rate, now);
            bucket.level -= i128::from(bytes) * TOKEN;
            longest = longest.max(bucket.until(0, rate));
        }
        let wait = Duration::from_nanos(u64::try_from(longest).unwrap_or(u64::MAX));
        Charged { wait, change: self.change }
    }

    /// Gives back bytes that were charged and did not pass. Once the rules are others there is nobody to give them to: a bucket that
    /// was never charged must not get them.
    pub(super) fn give_back(&mut self, now: Moment, collection: &Collection, bytes: u64, charged: Charged) {
        if charged.change != self.change {
            return;
        }
        let rules = Arc::clone(&self.rules);
        for (at, rule, rate) in of(&rules, collection, |rule| rule.bytes) {
            let Some(bucket) = self.pair(at, rule, collection, now).bytes.as_mut() else { continue };
            bucket.level += i128::from(bytes) * TOKEN;
            bucket.fill(rate, now);
        }
    }

    fn pair(&mut self, at: usize, rule: &RateRule, collection: &Collection, now: Moment) -> &mut Pair {
        match &mut self.kept[at] {
            Kept::One(pair) => pair,
            Kept::Each(pairs) => {
                let key = Key::of(rule.each.unwrap_or(Each::Scopes), collection);
                if pairs.len() == pairs.cap().get() && !pairs.contains(&key) {
                    // What is full is the same when it comes again; what owes would owe nothing.
                    let mut oldest = pairs.iter().rev().take(LOOKED_AT);
                    let full = oldest.find(|(_, pair)| pair.is_full(rule, now)).map(|(key, _)| key.clone());
                    if let Some(full) = full {
                        pairs.pop(&full);
                    }
                }
                pairs.get_or_insert_mut(key, || Pair::full(rule, now))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.kept.iter().map(|kept| if let Kept::Each(pairs) = kept { pairs.len() } else { 0 }).sum()
    }
}

/// How many buckets each rule with `each` keeps.
fn bound(rules: &Rules) -> NonZeroUsize {
    let sharing = rules.rate().iter().filter(|rule| rule.each.is_some()).count();
    NonZeroUsize::new(BUCKET_MAX_COUNT / sharing.max(1)).unwrap_or(NonZeroUsize::MIN)
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
