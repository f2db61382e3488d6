//! The capacity under every interleaving of two or three threads: the caps are never exceeded, and nothing leaks. Run
//! by `RUSTFLAGS="--cfg loom" cargo test -p tidegate-lease --release --lib loom`.

use std::sync::atomic::{AtomicU64, Ordering};

use ::loom::{model, thread};

use super::*;

fn owner(subject: &str) -> Owner {
    Owner { tenant: "acme".into(), subject: subject.into() }
}

/// What threads hold by their own count. Not one of loom's atomics on purpose: it watches and must add no
/// interleavings.
#[derive(Default)]
struct Witness {
    all: AtomicU64,
    ann: AtomicU64,
}

impl Witness {
    /// Takes a slot if there is one, and while it is held checks both caps from outside.
    fn take(&self, capacity: &Arc<Capacity>, who: &Owner, bounds: CapacityBounds) -> bool {
        let is_ann = &*who.subject == "ann";
        let Ok(slot) = capacity.try_acquire(who) else { return false };
        assert!(self.all.fetch_add(1, Ordering::SeqCst) < bounds.global, "the global cap was exceeded");
        if is_ann {
            assert!(self.ann.fetch_add(1, Ordering::SeqCst) < bounds.per_owner, "an owner's cap was exceeded");
        }
        thread::yield_now();
        assert!(capacity.in_use() <= bounds.global);
        assert!(capacity.in_use_by(who) >= 1, "a slot that is held is counted");
        if is_ann {
            self.ann.fetch_sub(1, Ordering::SeqCst);
        }
        self.all.fetch_sub(1, Ordering::SeqCst);
        drop(slot);
        true
    }
}

fn race(bounds: CapacityBounds, owners: &'static [&'static str]) {
    model(move || {
        let capacity = Capacity::new(bounds);
        let witness = Arc::new(Witness::default());
        let threads: Vec<_> = owners
            .iter()
            .map(|who| {
                let (capacity, witness) = (Arc::clone(&capacity), Arc::clone(&witness));
                thread::spawn(move || witness.take(&capacity, &owner(who), bounds))
            })
            .collect();
        let taken = threads.into_iter().map(|t| t.join().expect("no thread panics"));
        assert!(taken.fold(false, |any, taken| any | taken), "with a slot free somebody gets it");
        assert_eq!((capacity.in_use(), capacity.owners()), (0, 0), "nothing leaks");
    });
}

#[test]
fn one_slot_two_owners() {
    race(CapacityBounds { global: 1, per_owner: 1 }, &["ann", "bob"]);
}

#[test]
fn one_owners_quota_two_threads() {
    race(CapacityBounds { global: 2, per_owner: 1 }, &["ann", "ann"]);
}

#[test]
fn two_slots_three_threads() {
    race(CapacityBounds { global: 2, per_owner: 1 }, &["ann", "ann", "bob"]);
}

#[test]
fn a_slot_that_moves_to_another_thread_is_given_back_once() {
    model(|| {
        let capacity = Capacity::new(CapacityBounds { global: 2, per_owner: 2 });
        let ann = owner("ann");
        let slot = capacity.try_acquire(&ann).expect("all are free");
        let dropped = thread::spawn(move || drop(slot));
        let taker = {
            let (capacity, ann) = (Arc::clone(&capacity), ann.clone());
            thread::spawn(move || capacity.try_acquire(&ann).expect("there are two"))
        };
        dropped.join().expect("no thread panics");
        let slot = taker.join().expect("no thread panics");
        assert_eq!((capacity.in_use(), capacity.in_use_by(&ann)), (1, 1));
        drop(slot);
        assert_eq!((capacity.in_use(), capacity.owners()), (0, 0));
    });
}

#[test]
fn lowering_the_bounds_during_a_race_leaks_nothing() {
    model(|| {
        let high = CapacityBounds { global: 2, per_owner: 2 };
        let capacity = Capacity::new(high);
        let ann = owner("ann");
        let taker = {
            let (capacity, ann) = (Arc::clone(&capacity), ann.clone());
            thread::spawn(move || drop([capacity.try_acquire(&ann), capacity.try_acquire(&ann)]))
        };
        capacity.set_bounds(CapacityBounds { global: 1, per_owner: 1 });
        if let Err(refusal) = capacity.try_acquire(&ann) {
            assert_eq!(refusal.limit, 1);
            assert!((1..=2).contains(&refusal.current));
        }
        taker.join().expect("no thread panics");
        assert_eq!((capacity.in_use(), capacity.owners()), (0, 0));
    });
}
