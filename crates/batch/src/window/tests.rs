//! What the adaptive window promises, against stores whose latency is a formula. It measures nothing.

use proptest::prelude::*;

use super::*;

/// The next of a row of numbers without a pattern (a linear congruential generator), in `[0, 1)`.
fn noise(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f64 / (1u64 << 24) as f64
}

/// A store that works on `width` operations at one time and lets the rest queue, always asked for as much as the window
/// allows; an operation alone takes `base_ms`, up to `spread` times as long by chance. Gives the windows at the end.
fn settle(window: &mut Vegas, width: u32, base_ms: f64, spread: f64, samples: u32) -> Vec<u32> {
    let mut seed = u64::from(width);
    let mut last = Vec::new();
    for index in 0..samples {
        let in_flight = window.limit();
        let queueing = (f64::from(in_flight) / f64::from(width)).max(1.0);
        let chance = 1.0 + noise(&mut seed) * (spread - 1.0);
        let latency = Duration::from_secs_f64(base_ms / 1_000.0 * queueing * chance);
        let limit = window.apply(Sample::Served { latency, in_flight, era: window.era() });
        if index * 10 >= samples * 9 {
            last.push(limit);
        }
    }
    last
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_settles_at_what_the_store_works_on_at_one_time_when_latency_rises_with_concurrency(
        width in 1_u32..200, base_ms in 1.0..50.0_f64,
    ) {
        let mut window = Vegas::new(1_000);
        let last = settle(&mut window, width, base_ms, 1.0, 40_000);
        let (low, high) = (*last.iter().min().unwrap(), *last.iter().max().unwrap());
        let allowed = width + thresholds(width).1 + 2 * thresholds(width).2 + 8;
        prop_assert!(high <= allowed, "{high} in flight at a store of width {width}");
        // A probe runs with half of it.
        prop_assert!(low * 2 + 1 >= width, "{low} in flight at a store of width {width}");
    }

    #[test]
    fn it_comes_down_to_the_new_width_when_the_store_narrows(width in 20_u32..200) {
        let mut window = Vegas::new(1_000);
        settle(&mut window, width, 5.0, 1.0, 30_000);
        let last = settle(&mut window, width / 10, 5.0, 1.0, 30_000);
        prop_assert!(last.iter().all(|limit| *limit <= width / 10 + 14), "{last:?}");
    }

    #[test]
    fn it_takes_the_whole_reservation_when_latency_does_not_rise(max in 1_u32..500, spread in 1.0..4.0_f64) {
        let mut window = Vegas::new(max);
        let last = settle(&mut window, u32::MAX, 5.0, spread, 60_000);
        // Latencies that are spread look like a short queue at times, so a fifth may be missing.
        let most = *last.iter().max().unwrap();
        prop_assert!(most * 10 >= max * 8, "{} of {}", most, max);
        let whole = last.iter().filter(|limit| **limit * 10 >= max * 8).count();
        prop_assert!(whole * 10 >= last.len() * 7, "{} of {} near {}", whole, last.len(), max);
    }

    #[test]
    fn it_never_leaves_its_bounds_whatever_it_is_told(
        max in 0_u32..10_000,
        samples in prop::collection::vec((any::<Option<u64>>(), any::<u32>(), 0_u64..3, prop::option::weighted(0.01, 0_u32..500)), 0..2_000),
    ) {
        let mut window = Vegas::new(max);
        let mut max = max.max(1);
        for (nanos, in_flight, before, bound) in samples {
            if let Some(bound) = bound {
                max = bound.max(1);
                window = window.with_max(bound);
            }
            let era = window.era().saturating_sub(before);
            let sample = nanos.map_or(Sample::Overloaded { era }, |nanos| {
                Sample::Served { latency: Duration::from_nanos(nanos), in_flight, era }
            });
            let limit = window.apply(sample);
            prop_assert!((1..=max).contains(&limit) && limit == window.limit());
        }
    }
}

#[test]
fn a_store_that_became_slower_for_good_is_not_taken_for_a_queue_for_ever() {
    let mut window = Vegas::new(100);
    settle(&mut window, u32::MAX, 1.0, 1.0, 20_000);
    assert_eq!(window.limit(), 100);
    settle(&mut window, u32::MAX, 10.0, 1.0, 2_000);
    let last = settle(&mut window, u32::MAX, 10.0, 1.0, 200_000);
    assert_eq!(last.into_iter().max(), Some(100));
    assert_eq!(window.base(), Some(Duration::from_millis(10)));
}

#[test]
fn a_store_that_refuses_a_whole_window_halves_it_once_and_again_only_when_it_refuses_the_next() {
    let mut window = Vegas::new(64);
    settle(&mut window, u32::MAX, 1.0, 1.0, 2_000);
    let mut before = window.limit();
    assert_eq!(before, 64);
    while before > 1 {
        let era = window.era();
        // Some of them fail otherwise and tell nothing.
        for _ in 0..before - before / 4 {
            assert_eq!(window.apply(Sample::Overloaded { era }), before / 2);
        }
        before /= 2;
    }
    assert_eq!(window.apply(Sample::Overloaded { era: window.era() }), 1);
}

#[test]
fn what_waited_with_a_refused_operation_tells_nothing_of_the_window_that_there_is_since_and_what_follows_does() {
    let mut window = Vegas::new(64);
    settle(&mut window, u32::MAX, 1.0, 1.0, 2_000);
    let era = window.era();
    assert_eq!(window.apply(Sample::Overloaded { era }), 32);
    for in_flight in 2..=64 {
        let queued = Sample::Served { latency: Duration::from_secs(1), in_flight, era };
        assert_eq!(window.apply(queued), 32);
    }
    assert_eq!(window.apply(Sample::Overloaded { era: window.era() }), 16);
}

#[test]
fn a_window_that_shrinks_because_of_a_queue_shrinks_once_a_round_trip_too() {
    let mut window = Vegas::new(64);
    settle(&mut window, u32::MAX, 1.0, 1.0, 1_000);
    let era = window.era();
    for in_flight in 1..=640 {
        window.apply(Sample::Served { latency: Duration::from_secs(1), in_flight: in_flight.min(64), era });
    }
    assert_eq!(window.limit(), 32);
}

#[test]
fn who_uses_little_of_the_window_does_not_widen_it() {
    let mut window = Vegas::new(1_000);
    for _ in 0..10_000 {
        window.apply(Sample::Served { latency: Duration::from_millis(1), in_flight: 1, era: 0 });
    }
    assert_eq!(window.limit(), FIRST_WINDOW);
}

#[test]
fn what_was_learnt_outlives_a_small_reservation() {
    let mut window = Vegas::new(100);
    settle(&mut window, u32::MAX, 1.0, 1.0, 20_000);
    let mut window = window.with_max(5);
    assert_eq!(window.limit(), 5);
    settle(&mut window, u32::MAX, 1.0, 1.0, 20);
    assert_eq!(window.with_max(100).limit(), 100);
}
