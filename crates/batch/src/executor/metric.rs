//! What executors count. Labels are names of kinds that the program knows beforehand, at most [`KIND_MAX_COUNT`]; never a key.

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;

/// How many kinds of operations an executor tells apart in its metrics; the rest are counted as `other`.
pub const KIND_MAX_COUNT: usize = 16;

const PERMITS: &str = "tidegate_batch_permits_in_use";
const BYTES: &str = "tidegate_batch_bytes_in_flight";
const REFUSED: &str = "tidegate_batch_refused_total";
const OPERATIONS: &str = "tidegate_batch_operations_total";
const PANICS: &str = "tidegate_batch_panics_total";

/// Says what each metric means to whoever collects them.
pub(super) fn describe() {
    describe_gauge!(PERMITS, "Operations that batches have reserved room for");
    describe_gauge!(BYTES, Unit::Bytes, "Bytes that operations of batches hold");
    describe_counter!(REFUSED, "Batches and operations that were refused, by reason");
    describe_counter!(OPERATIONS, "Operations that were begun, by kind");
    describe_counter!(PANICS, "Operations that panicked, by kind");
}

pub(super) fn permits(by: f64) {
    gauge!(PERMITS).increment(by);
}

pub(super) fn bytes(by: f64) {
    gauge!(BYTES).increment(by);
}

pub(super) fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

pub(super) fn panicked(kind: &'static str) {
    counter!(PANICS, "kind" => kind).increment(1);
    tracing::error!(kind, "an operation of a batch panicked");
}

/// The kinds that an executor has met.
#[derive(Debug, Default)]
pub(super) struct Kinds(Mutex<Vec<&'static str>>);

impl Kinds {
    /// The label for this kind: itself, or `other` when there are too many.
    fn label(&self, kind: &'static str) -> &'static str {
        let mut known = self.0.lock();
        if known.contains(&kind) {
            return kind;
        }
        if known.len() < KIND_MAX_COUNT {
            known.push(kind);
            return kind;
        }
        "other"
    }
}

/// The counters that one batch has used, so that an operation costs no look-up.
#[derive(Default)]
pub(super) struct KindCounters(Vec<(&'static str, &'static str, Counter)>);

impl KindCounters {
    /// Counts one operation and gives the label of its kind.
    pub(super) fn begun(&mut self, kinds: &Kinds, kind: &'static str) -> &'static str {
        // The same kind is the same text in all but odd programs: compared by address first.
        let met = self.0.iter().find(|(name, ..)| std::ptr::eq(*name, kind) || *name == kind);
        if let Some((_, label, counter)) = met {
            counter.increment(1);
            return label;
        }
        let label = kinds.label(kind);
        let counter = counter!(OPERATIONS, "kind" => label);
        counter.increment(1);
        if self.0.len() < KIND_MAX_COUNT {
            self.0.push((kind, label, counter));
        }
        label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_beyond_the_bound_are_counted_as_other() {
        let names: Vec<&'static str> = (0..40).map(|n| &*format!("kind-{n}").leak()).collect();
        let kinds = Kinds::default();
        let mut counters = KindCounters::default();
        let labels: Vec<_> = names.iter().map(|name| counters.begun(&kinds, name)).collect();
        assert_eq!(labels[..KIND_MAX_COUNT], names[..KIND_MAX_COUNT]);
        assert!(labels[KIND_MAX_COUNT..].iter().all(|label| *label == "other"));
        assert_eq!(counters.begun(&kinds, names[0]), names[0]);
        assert_eq!((counters.0.len(), kinds.0.lock().len()), (KIND_MAX_COUNT, KIND_MAX_COUNT));
    }
}
