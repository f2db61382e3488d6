//! A closed loop: so many lanes, each with one round trip under way, for a while. One thread, because the server needs the
//! other core; it keeps every latency and judges nothing.

use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use crate::process::own_cpu_seconds;

/// One caller that waits for its answer before it goes on.
pub trait Lane {
    /// One round trip. `turn` counts this lane's own.
    fn step(&mut self, turn: usize) -> impl Future<Output = ()>;
}

/// What a closed loop did.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Round trips that were answered.
    pub steps: u64,
    /// How long it took.
    pub seconds: f64,
    /// Every round trip's time, sorted.
    pub latencies_ms: Vec<f64>,
    /// Processor time of this program meanwhile.
    pub client_cpu_seconds: f64,
}

impl Outcome {
    /// Round trips a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.steps as f64 / self.seconds
    }

    /// The latency that this share of the round trips stays below.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> f64 {
        quantile(&self.latencies_ms, share)
    }
}

/// Of sorted values, the one that this share stays below.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// A runtime of one thread.
///
/// # Panics
/// When the system gives none.
#[must_use]
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Runs the lanes for this long; gives what they did, and themselves for the next time.
///
/// # Panics
/// When a lane does.
pub async fn closed_loop<L: Lane + 'static>(lanes: Vec<L>, length: Duration) -> (Outcome, Vec<L>) {
    let set = LocalSet::new();
    let cpu = own_cpu_seconds();
    let begun = Instant::now();
    let tasks: Vec<_> = lanes
        .into_iter()
        .map(|mut lane| {
            set.spawn_local(async move {
                let mut latencies = Vec::new();
                let mut now = Instant::now();
                while now - begun < length {
                    lane.step(latencies.len()).await;
                    let after = Instant::now();
                    latencies.push((after - now).as_secs_f64() * 1_000.0);
                    now = after;
                }
                (lane, latencies)
            })
        })
        .collect();
    let mut outcome = Outcome::default();
    let mut lanes = Vec::new();
    set.run_until(async {
        for task in tasks {
            let (lane, latencies) = task.await.expect("a lane does not fail");
            lanes.push(lane);
            outcome.latencies_ms.extend(latencies);
        }
    })
    .await;
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome.steps = outcome.latencies_ms.len() as u64;
    outcome.latencies_ms.sort_by(f64::total_cmp);
    outcome.client_cpu_seconds = own_cpu_seconds() - cpu;
    (outcome, lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(usize);

    impl Lane for Count {
        async fn step(&mut self, turn: usize) {
            assert_eq!(turn, self.0);
            self.0 += 1;
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn every_round_trip_of_every_lane_is_counted() {
        let (outcome, lanes) = runtime().block_on(closed_loop(vec![Count(0), Count(0)], Duration::from_millis(5)));
        assert_eq!(lanes.iter().map(|lane| lane.0 as u64).sum::<u64>(), outcome.steps);
        assert!(lanes.iter().all(|lane| lane.0 > 0) && outcome.seconds >= 0.005);
        assert!(outcome.quantile_ms(0.5) <= outcome.quantile_ms(0.99));
    }
}
