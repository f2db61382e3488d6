//! The promises of the ports `ChangeLog` and `MetaStore`, one function each. Every store runs all of them; no
//! store-specific case is here, and no promise waits for a time to pass.

mod append;
mod compact;
mod concurrent;
mod fault;
mod forget;
mod meta;
mod meta_watch;
mod model;
mod model_meta;
mod read;
mod reopen;
mod scale;
mod several;
mod stream;
#[cfg(test)]
mod trial;
mod vocabulary;
mod watch;

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{ChangeLog, MetaStore};

use crate::clock::ManualClock;

pub use append::*;
pub use compact::*;
pub use concurrent::*;
pub use fault::*;
pub use forget::*;
pub use meta::*;
pub use meta_watch::*;
pub use model::*;
pub use model_meta::*;
pub use read::*;
pub use reopen::*;
pub use scale::*;
pub use several::*;
pub use stream::*;
pub use vocabulary::*;
pub use watch::*;

/// A fresh, empty store of one kind. What a test appends while the store's clock stands still is appended at one time.
#[async_trait]
pub trait StoreWorld: Sized + Send + Sync + 'static {
    /// What implements both ports.
    type Store: ChangeLog + MetaStore;

    /// How many random command sequences the model tests try.
    const CASES: u32 = 48;

    /// Makes the store, empty, with a clock of its own.
    async fn fresh() -> Self;

    /// The store; the same one for every call until it is reopened.
    fn store(&self) -> Arc<Self::Store>;

    /// The clock that the store goes by.
    fn clock(&self) -> ManualClock;

    /// Makes the store do what it does on its timer (retention by age, compaction, tombstones), as of its clock, to the end.
    async fn maintain(&self);

    /// Closes the store in order and opens it again on what it left. A store that keeps nothing stays as it is. Nobody
    /// holds the store or a watch of it any longer.
    async fn reopen(self) -> Self {
        self
    }
}

/// Makes one test a promise of [`ChangeLog`](tidegate_core::port::ChangeLog). The argument is a [`StoreWorld`]; nothing
/// needs to be imported.
#[macro_export]
macro_rules! change_log_suite {
    ($world:ty) => {
        $crate::store_suite! { @promises $world,
            a_new_stream_is_new_and_an_equal_one_existed
            a_different_stream_of_the_name_is_told_and_changes_nothing
            a_stream_starts_where_its_spec_says
            a_stream_without_partitions_is_refused
            a_missing_stream_is_told
            a_missing_partition_is_told_and_nothing_is_appended
            streams_of_any_name_are_streams_of_their_own
            two_tenants_never_meet
            a_removed_stream_leaves_nothing_behind
            removing_what_is_not_there_is_not_an_error
            offsets_are_dense_and_answered
            a_record_comes_back_as_it_was
            an_append_to_several_partitions_is_one_step
            an_offset_that_is_not_next_changes_nothing
            state_that_moved_changes_nothing
            state_is_swapped_with_the_records
            state_says_where_its_records_lie
            a_partition_twice_in_a_batch_is_refused
            a_partition_without_records_is_refused
            append_time_never_goes_back
            an_append_may_be_left_to_the_operating_system
            an_append_to_several_streams_is_one_step
            several_streams_are_appended_to_all_or_none
            state_says_where_the_records_of_several_streams_lie
            offsets_end_at_the_greatest_number
            a_read_is_bounded_by_records
            a_read_is_bounded_by_bytes
            a_read_gives_at_least_one_record
            a_read_begins_at_any_offset
            a_read_at_the_tail_gives_nothing
            a_read_beyond_the_tail_is_refused
            a_trim_forgets_exactly_what_was_asked
            a_trim_never_goes_back
            a_trim_beyond_the_tail_is_refused
            a_trim_of_everything_leaves_the_tail
            a_reader_inside_a_gap_gets_the_rest_of_it
            retention_keeps_the_newest_records
            retention_keeps_at_most_the_bytes
            retention_forgets_what_is_too_old
            retention_by_age_needs_no_append
            gaps_of_one_reason_join_and_of_two_stay_apart
            compaction_keeps_the_newest_record_of_each_key
            compaction_goes_by_the_bytes_of_the_key_in_one_partition
            a_tombstone_stays_for_its_grace
            a_record_after_a_tombstone_stays
            without_compaction_keys_mean_nothing
            gaps_of_every_kind_stand_in_their_places
            a_watcher_wakes_after_an_append_and_a_trim
            a_watcher_wakes_after_maintenance
            a_slow_watcher_gets_the_newest_state
            a_slow_watcher_hears_of_every_partition
            a_watch_ends_when_the_stream_is_removed
            a_record_of_16_mib_comes_back
            a_batch_of_10_000_records_is_one_step
            ten_thousand_small_streams_are_kept_apart
            a_reopened_log_has_everything
            a_reopened_log_goes_on_where_it_was
            a_reopened_log_has_nothing_of_what_was_removed
        }
        $crate::store_suite! { @parallel $world,
            concurrent_appenders_get_disjoint_dense_ranges
            one_of_many_who_expect_an_offset_wins
            one_of_many_who_expect_a_revision_wins
            commits_order_all_appends_the_same_way_in_every_partition
            what_can_be_read_has_nothing_unread_before_it
            no_reader_sees_half_of_several_streams
            one_of_many_who_create_a_stream_makes_it
            who_watches_and_then_reads_misses_nothing
            one_append_wakes_a_thousand_watchers
        }
        $crate::store_suite! { @properties $world, any_commands_leave_what_the_model_of_the_log_says }
    };
}

/// Makes one test a promise of [`MetaStore`](tidegate_core::port::MetaStore). The argument is a [`StoreWorld`].
#[macro_export]
macro_rules! meta_store_suite {
    ($world:ty) => {
        $crate::store_suite! { @promises $world,
            a_put_needs_the_revision_that_it_expects
            a_delete_needs_the_revision_that_it_expects
            a_check_changes_nothing
            a_revision_never_comes_back
            a_mismatch_says_what_is_there_and_changes_nothing
            swaps_of_several_keys_are_one_step
            revisions_come_in_the_order_of_the_swaps
            a_scan_is_in_the_order_of_the_bytes
            a_scan_gives_what_has_the_prefix
            a_scan_is_bounded_and_goes_on
            an_empty_prefix_is_everything
            keys_and_values_are_any_bytes
            a_value_of_1_mib_comes_back
            a_watch_tells_puts_and_deletes
            a_watch_tells_what_has_the_prefix
            a_slow_watcher_of_entries_gets_the_newest_state
            an_append_wakes_who_watches_its_state
            reopened_entries_are_as_they_were
        }
        $crate::store_suite! { @parallel $world,
            one_of_many_who_swap_wins
            increments_of_many_are_all_counted
            a_scan_never_sees_half_a_step
            who_watches_and_then_gets_misses_nothing
        }
        $crate::store_suite! { @properties $world, any_swaps_leave_what_the_model_of_the_entries_says }
    };
}

/// Makes one test a promise of a [`FaultyStore`](crate::FaultyStore) around the store of a [`StoreWorld`]: what a fault
/// leaves behind, and that everything goes on after it.
#[macro_export]
macro_rules! fault_suite {
    ($world:ty) => {
        $crate::store_suite! { @promises $world,
            unavailable_changes_nothing
            a_full_disk_changes_nothing_and_reads_go_on
            indeterminate_happened_or_not_as_told
            a_held_call_happens_after_the_release
            a_held_call_that_is_dropped_never_happened
            a_held_answer_is_to_what_happened
            watchers_bear_wakes_for_nothing
            who_reads_before_trying_again_loses_and_repeats_nothing
        }
    };
}

/// What the macros above expand to.
#[doc(hidden)]
#[macro_export]
macro_rules! store_suite {
    (@promises $world:ty, $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::block_on($crate::store_suite::$promise::<$world>());
            }
        )*
    };
    // On one thread, where whoever blocks it is found out, and on several, where calls truly overlap.
    (@parallel $world:ty, $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::block_on($crate::store_suite::$promise::<$world>());
                $crate::block_on_threads($crate::store_suite::$promise::<$world>());
            }
        )*
    };
    (@properties $world:ty, $($property:ident)*) => {
        $(
            #[test]
            fn $property() {
                $crate::store_suite::$property::<$world>();
            }
        )*
    };
}
