//! The runtime's promises that need no process: late records, stopping, being taken over, sinks that fail.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tidegate_checkpoint::coordinator::Schedule;
use tidegate_checkpoint::runtime::{
    Cause, Ended, LatePolicy, Operator, ProcessorSpec, Records, RunError, Source, Sourced, TwoPhaseSink, WatermarkSpec,
    run,
};
use tidegate_checkpoint::{KeyedState, Mode, Next};
use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::position::{Offset, Partition};
use tidegate_testkit::{block_on_threads, within};
use tokio::sync::Notify;

use crate::world::{TTL, World, name};

/// Records of one partition by their event times; after them it waits, or ends.
struct Times {
    times: Vec<i64>,
    ends: bool,
    waiting: Arc<Notify>,
}

#[async_trait]
impl Source for Times {
    type Record = u64;

    fn name(&self) -> Name {
        name("times")
    }

    fn partitions(&self) -> Vec<Partition> {
        vec![Partition(0)]
    }

    async fn open(&mut self, _: Partition, next: Option<Next>) -> Result<Records<u64>, Cause> {
        let from = match next {
            Some(Next::Offset(Offset(next))) => next,
            _ => 0,
        };
        let times: Vec<_> = self.times.iter().copied().zip(0_u64..).skip(usize::try_from(from)?).collect();
        let records = futures::stream::iter(times).map(|(time, offset)| {
            Ok(Sourced {
                next: Next::Offset(Offset(offset + 1)),
                time: Timestamp::from_unix_ms(time),
                key: Bytes::from_static(b"k"),
                record: offset,
            })
        });
        if self.ends {
            return Ok(records.boxed());
        }
        let waiting = Arc::clone(&self.waiting);
        let forever = futures::stream::once(async move {
            waiting.notify_one();
            std::future::pending().await
        });
        Ok(records.chain(forever).boxed())
    }
}

/// Puts every record out.
struct Through;

impl Operator<u64> for Through {
    type Output = u64;

    fn name(&self) -> Name {
        name("through")
    }

    fn record(&mut self, state: &mut KeyedState, record: &Sourced<u64>, out: &mut Vec<u64>) -> Result<(), Cause> {
        state.insert(record.key.clone(), Bytes::copy_from_slice(&record.record.to_le_bytes()))?;
        out.push(record.record);
        Ok(())
    }

    fn watermark(&mut self, _: &mut KeyedState, _: Timestamp, _: &mut Vec<u64>) -> Result<(), Cause> {
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Outside {
    staged: Vec<u64>,
    prepared: Option<(u64, Vec<u64>)>,
    committed: Vec<u64>,
    tokens: u64,
    /// Commits that fail before one succeeds.
    failing: u32,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Outside>>);

#[async_trait]
impl TwoPhaseSink<u64> for Sink {
    fn name(&self) -> Name {
        name("sink")
    }

    async fn write(&mut self, outputs: Vec<u64>) -> Result<(), Cause> {
        self.0.lock().staged.extend(outputs);
        Ok(())
    }

    async fn pre_commit(&mut self) -> Result<Option<Vec<u8>>, Cause> {
        let mut outside = self.0.lock();
        outside.tokens += 1;
        let mut all = outside.prepared.take().map_or_else(Vec::new, |(_, all)| all);
        all.append(&mut outside.staged);
        if all.is_empty() {
            return Ok(None);
        }
        let token = outside.tokens;
        outside.prepared = Some((token, all));
        Ok(Some(token.to_le_bytes().to_vec()))
    }

    async fn commit(&mut self, token: &[u8]) -> Result<(), Cause> {
        let mut outside = self.0.lock();
        if outside.failing > 0 {
            outside.failing -= 1;
            return Err("the sink is away".into());
        }
        let token = u64::from_le_bytes(token.try_into()?);
        if let Some((_, all)) = outside.prepared.take_if(|(prepared, _)| *prepared == token) {
            outside.committed.extend(all);
        }
        Ok(())
    }

    async fn abort_others(&mut self, keep: Option<&[u8]>) -> Result<(), Cause> {
        let mut outside = self.0.lock();
        outside.staged.clear();
        let keep = keep.map(<[u8; 8]>::try_from).transpose()?.map(u64::from_le_bytes);
        outside.prepared.take_if(|(token, _)| Some(*token) != keep);
        Ok(())
    }
}

fn spec(late: LatePolicy) -> ProcessorSpec {
    ProcessorSpec {
        holder: name("me"),
        ttl: TTL,
        mode: Mode::IfFree,
        schedule: Schedule::default(),
        watermark: WatermarkSpec { disorder: Duration::from_millis(5), late, ..WatermarkSpec::default() },
    }
}

fn times(times: &[i64], ends: bool) -> Times {
    Times { times: times.to_vec(), ends, waiting: Arc::default() }
}

/// Advances the clock whenever somebody waits for it, so that what is due comes.
async fn with_time<T>(world: &World, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    within("the run", async {
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::task::yield_now() => if world.clock.waiters() > 0 {
                    world.clock.advance(Duration::from_millis(5));
                },
            }
        }
    })
    .await
}

async fn go(
    world: &World,
    seed: u64,
    late: LatePolicy,
    source: Times,
    sink: &Sink,
    stop: impl Future<Output = ()> + Send,
) -> Result<Ended, RunError> {
    let job = world.job(seed);
    with_time(world, run(&job, spec(late), source, Through, sink.clone(), stop)).await
}

async fn counts(world: &World) -> (u64, u64) {
    let page = world.job(99).list(None, 1).await.unwrap();
    let counts = &page.checkpoints[0].checkpoint.manifest.counts;
    (counts[&name("records")], counts[&name("late")])
}

#[test]
fn late_records_are_left_out_taken_or_refused_as_was_said_and_counted() {
    block_on_threads(async {
        let events = [100, 110, 90, 104, 106, 120];
        let never = std::future::pending;
        for (late, put_out) in [(LatePolicy::Drop, vec![0, 1, 4, 5]), (LatePolicy::Take, vec![0, 1, 2, 3, 4, 5])] {
            let (world, sink) = (World::new(), Sink::default());
            assert_eq!(go(&world, 1, late, times(&events, true), &sink, never()).await.unwrap(), Ended::Finished);
            assert_eq!(sink.0.lock().committed, put_out);
            assert_eq!(counts(&world).await, (6, 2));
        }
        let (world, sink) = (World::new(), Sink::default());
        let failed = go(&world, 1, LatePolicy::Fail, times(&events, true), &sink, never()).await.unwrap_err();
        assert!(matches!(failed, RunError::Late { time } if time == Timestamp::from_unix_ms(90)));
        assert!(sink.0.lock().committed.is_empty());
    });
}

#[test]
fn who_is_told_to_stop_commits_what_was_read_and_the_next_one_goes_on_there() {
    block_on_threads(async {
        let (world, sink) = (World::new(), Sink::default());
        let first = times(&[1, 2, 3], false);
        let stop = Arc::clone(&first.waiting);
        let stop = async move { stop.notified().await };
        assert_eq!(go(&world, 1, LatePolicy::Take, first, &sink, stop).await.unwrap(), Ended::Stopped);
        assert_eq!(sink.0.lock().committed, [0, 1, 2]);
        let all = times(&[1, 2, 3, 4, 5], true);
        let ended = go(&world, 2, LatePolicy::Take, all, &sink, std::future::pending()).await.unwrap();
        assert_eq!(ended, Ended::Finished);
        assert_eq!(sink.0.lock().committed, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn a_sink_that_is_away_for_a_while_commits_once_it_is_back() {
    block_on_threads(async {
        let (world, sink) = (World::new(), Sink::default());
        sink.0.lock().failing = 3;
        let ended = go(&world, 1, LatePolicy::Take, times(&[1, 2, 3], true), &sink, std::future::pending()).await;
        assert_eq!(ended.unwrap(), Ended::Finished);
        assert_eq!(sink.0.lock().committed, [0, 1, 2]);
    });
}

#[test]
fn who_is_taken_over_ends_as_fenced_and_commits_nothing_more() {
    block_on_threads(async {
        let (world, sink) = (World::new(), Sink::default());
        let source = times(&[1, 2, 3], false);
        let waiting = Arc::clone(&source.waiting);
        let job = world.job(1);
        let spec = spec(LatePolicy::Take);
        let running = run(&job, spec, source, Through, sink.clone(), std::future::pending());
        let taking_over = async {
            waiting.notified().await;
            world.claim(2, Mode::Force).await
        };
        let (ended, (second, _)) = with_time(&world, futures::future::join(running, taking_over)).await;
        assert_eq!(ended.unwrap(), Ended::Fenced);
        assert!(second.epoch().get() >= 2);
        let committed = sink.0.lock().committed.clone();
        assert!(committed.is_empty() || committed == [0, 1, 2]);
    });
}
