//! Who gets which partition: balanced within one, and as few as possible change hands. It follows the idea of Kafka's
//! sticky assignor (KIP-54), for one stream. It never looks at anything but who holds what.

use std::collections::BTreeMap;

use crate::group::member::MemberId;

/// The holders after the members became these, in their order. O((partitions + members) log members).
pub(super) fn assign(before: &[Option<MemberId>], members: &[&MemberId]) -> Vec<Option<MemberId>> {
    if members.is_empty() {
        return vec![None; before.len()];
    }
    let mut held: BTreeMap<&MemberId, usize> = members.iter().map(|id| (*id, 0)).collect();
    for holder in before.iter().flatten() {
        if let Some(count) = held.get_mut(holder) {
            *count += 1;
        }
    }
    // One more than the least goes to those who hold most: so nobody gives away what the balance does not ask for.
    let (least, extra) = (before.len() / members.len(), before.len() % members.len());
    let mut by_held: Vec<(&MemberId, usize)> = held.into_iter().collect();
    by_held.sort_by(|(a, held_a), (b, held_b)| held_b.cmp(held_a).then_with(|| a.cmp(b)));
    let quotas = by_held.iter().enumerate().map(|(place, (id, _))| (*id, least + usize::from(place < extra)));
    let mut left: BTreeMap<&MemberId, usize> = quotas.collect();
    let mut after: Vec<Option<MemberId>> = Vec::with_capacity(before.len());
    for holder in before {
        let kept = holder.as_ref().filter(|id| match left.get_mut(*id) {
            Some(quota) if *quota > 0 => {
                *quota -= 1;
                true
            }
            _ => false,
        });
        after.push(kept.cloned());
    }
    let mut takers = left.into_iter().flat_map(|(id, quota)| std::iter::repeat_n(id, quota));
    for free in after.iter_mut().filter(|holder| holder.is_none()) {
        // The quotas add up to the partitions.
        *free = takers.next().cloned();
    }
    after
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn count(holders: &[Option<MemberId>], id: &MemberId) -> usize {
        holders.iter().flatten().filter(|holder| *holder == id).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn an_assignment_is_balanced_within_one_and_moves_as_few_partitions_as_possible(
            before in prop::collection::vec(prop::option::of(0_u8..8), 0..40),
            present in prop::collection::btree_set(0_u8..8, 1..8),
        ) {
            let id = |number: u8| -> MemberId { Arc::from(format!("m{number}").as_str()) };
            let before: Vec<Option<MemberId>> = before.into_iter().map(|one| one.map(id)).collect();
            let members: Vec<MemberId> = present.into_iter().map(id).collect();
            let after = assign(&before, &members.iter().collect::<Vec<_>>());
            prop_assert!(after.iter().all(Option::is_some));
            let counts: Vec<usize> = members.iter().map(|id| count(&after, id)).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
            prop_assert_eq!(counts.iter().sum::<usize>(), before.len());
            // The fewest moves: each member keeps as much as a balance allows, and the balance gives its extra ones to those
            // who hold most.
            let (least, extra) = (before.len() / members.len(), before.len() % members.len());
            let mut held: Vec<usize> = members.iter().map(|id| count(&before, id)).collect();
            held.sort_unstable_by(|a, b| b.cmp(a));
            let keep = |(place, held): (usize, &usize)| (*held).min(least + usize::from(place < extra));
            let kept: usize = held.iter().enumerate().map(keep).sum();
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            prop_assert_eq!(moved, before.len() - kept);
        }
    }
}
