//! The capacity's promises without loom: every way out gives the slot back, and the map of owners stays as small as
//! its use.

use super::*;
use proptest::prelude::*;

fn owner(subject: &str) -> Owner {
    Owner { tenant: "acme".into(), subject: subject.into() }
}

fn capacity(global: u64, per_owner: u64) -> Arc<Capacity> {
    Capacity::new(CapacityBounds { global, per_owner })
}

#[test]
fn a_refusal_tells_the_bound_and_the_count_and_takes_nothing() {
    let capacity = capacity(3, 2);
    let (ann, bob) = (owner("ann"), owner("bob"));
    let _held = [capacity.try_acquire(&ann).unwrap(), capacity.try_acquire(&ann).unwrap()];
    let quota = capacity.try_acquire(&ann).unwrap_err();
    assert_eq!(quota, CapacityExhausted { scope: CapacityScope::Owner, limit: 2, current: 2 });
    assert_eq!(quota.code(), "principal_stream_quota_exhausted");
    let _third = capacity.try_acquire(&bob).unwrap();
    let full = capacity.try_acquire(&bob).unwrap_err();
    assert_eq!(full, CapacityExhausted { scope: CapacityScope::Global, limit: 3, current: 3 });
    assert_eq!(full.code(), "stream_capacity_exhausted");
    for refusal in [quota, full] {
        assert_eq!(refusal.kind(), ErrorKind::Exhausted);
        assert_eq!(refusal.retry(), Retry::After(Duration::from_secs(1)));
    }
    assert_eq!((capacity.in_use(), capacity.in_use_by(&ann), capacity.in_use_by(&bob)), (3, 2, 1));
}

#[test]
fn a_refused_owner_leaves_no_trace() {
    let capacity = capacity(0, 1);
    for n in 0..1_000 {
        assert!(capacity.try_acquire(&owner(&n.to_string())).is_err());
    }
    assert_eq!(capacity.owners(), 0);
}

#[test]
fn two_tenants_subjects_of_one_name_have_two_quotas() {
    let capacity = capacity(9, 1);
    let other = Owner { tenant: "other".into(), subject: "ann".into() };
    let _held = [capacity.try_acquire(&owner("ann")).unwrap(), capacity.try_acquire(&other).unwrap()];
    assert!(capacity.try_acquire(&other).is_err());
}

#[test]
fn lower_bounds_revoke_nothing_and_count_for_whoever_comes_next() {
    let capacity = capacity(3, 3);
    let ann = owner("ann");
    let mut held: Vec<_> = (0..3).map(|_| capacity.try_acquire(&ann).unwrap()).collect();
    capacity.set_bounds(CapacityBounds { global: 1, per_owner: 5 });
    assert_eq!(capacity.in_use(), 3);
    let full = CapacityExhausted { scope: CapacityScope::Global, limit: 1, current: 3 };
    assert_eq!(capacity.try_acquire(&ann).unwrap_err(), full);
    held.truncate(1);
    assert!(capacity.try_acquire(&ann).is_err());
    held.clear();
    assert!(capacity.try_acquire(&ann).is_ok());
}

#[test]
fn a_panic_gives_the_slot_back() {
    let capacity = capacity(1, 1);
    let inner = Arc::clone(&capacity);
    let thread = std::thread::spawn(move || {
        let _slot = inner.try_acquire(&owner("ann")).unwrap();
        // resume_unwind unwinds as a panic does, without the hook's noise in the output.
        std::panic::resume_unwind(Box::new("the stream broke"));
    });
    assert!(thread.join().is_err());
    assert_eq!((capacity.in_use(), capacity.owners()), (0, 0));
    assert!(capacity.try_acquire(&owner("ann")).is_ok(), "the lock is not poisoned");
}

#[tokio::test]
async fn a_future_that_is_dropped_half_way_gives_the_slot_back() {
    let capacity = capacity(1, 1);
    let inner = Arc::clone(&capacity);
    let mut stream = Box::pin(async move {
        let _slot = inner.try_acquire(&owner("ann")).unwrap();
        std::future::pending::<()>().await;
    });
    tokio::select! {
        biased;
        () = &mut stream => panic!("it never ends"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(capacity.in_use(), 1);
    drop(stream);
    assert_eq!((capacity.in_use(), capacity.owners()), (0, 0));
}

#[tokio::test]
async fn a_task_that_is_aborted_or_panics_gives_the_slot_back() {
    let capacity = capacity(2, 2);
    let take = |then_panic: bool| {
        let capacity = Arc::clone(&capacity);
        tokio::spawn(async move {
            let _slot = capacity.try_acquire(&owner("ann")).unwrap();
            if then_panic {
                std::panic::resume_unwind(Box::new("the stream broke"));
            }
            std::future::pending::<()>().await;
        })
    };
    let (aborted, broken) = (take(false), take(true));
    assert!(broken.await.is_err());
    assert_eq!(capacity.in_use(), 1);
    aborted.abort();
    assert!(aborted.await.is_err());
    assert_eq!((capacity.in_use(), capacity.owners()), (0, 0));
}

proptest! {
    #[test]
    fn the_counters_are_always_the_slots_that_exist(
        steps in prop::collection::vec((0..4_u8, 0..5_u8, 0..6_u64, 0..6_u64), 0..200)
    ) {
        let capacity = capacity(4, 2);
        let mut held: Vec<Slot> = Vec::new();
        for (what, who, global, per_owner) in steps {
            let asker = owner(&who.to_string());
            let own = held.iter().filter(|slot| *slot.owner() == asker).count() as u64;
            match what {
                0 => drop((!held.is_empty()).then(|| held.swap_remove(usize::from(who) % held.len()))),
                1 => capacity.set_bounds(CapacityBounds { global, per_owner }),
                _ => {
                    let bounds = capacity.bounds();
                    let fits = own < bounds.per_owner && (held.len() as u64) < bounds.global;
                    let got = capacity.try_acquire(&asker);
                    prop_assert_eq!(got.is_ok(), fits);
                    held.extend(got);
                }
            }
            prop_assert_eq!(capacity.in_use(), held.len() as u64);
            let owners: std::collections::HashSet<_> = held.iter().map(Slot::owner).collect();
            prop_assert_eq!(capacity.owners(), owners.len());
            for who in owners {
                let own = held.iter().filter(|slot| slot.owner() == who).count() as u64;
                prop_assert_eq!(capacity.in_use_by(who), own);
            }
        }
        held.clear();
        prop_assert_eq!((capacity.in_use(), capacity.owners()), (0, 0));
    }
}
