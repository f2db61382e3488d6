//! What happens to the server: a seeded sequence of starts, kills, drains and faults of the disk. It judges only what it orders
//! itself: that the server starts, and that it writes again when the disk does.

use std::time::{Duration, Instant};

use super::fault::Disk;
use super::history::{Append, Event, Outcome};
use super::server::{Launch, Server};
use super::workload::{self, Actor, Context};

/// In percent of the starts: killed before it is ready, after at most `START_MS`.
const KILLED_EARLY: u32 = 12;
const START_MS: u64 = 250;
/// A life, once ready; the logarithm is evenly spread.
const LIFE_MS: (f64, f64) = (50.0, 3000.0);
/// In percent of the lives: long enough that sessions and deliveries run out.
const CALM: u32 = 6;
const CALM_MS: u64 = 6000;
/// In percent of the ends.
const TERMINATED: u32 = 10;
const KILLED_IN_DRAIN: u32 = 8;
/// In percent of the lives, where faults are injected.
const BROKEN: u32 = 60;
const BROKEN_MS: u64 = 2500;
/// A disk with space again is written to within this.
const RESUME_BOUND: Duration = Duration::from_secs(10);
/// How often a life looks whether the server still runs, and whether the run was interrupted.
const LOOK_UP: Duration = Duration::from_millis(50);

/// What a storm needs.
pub(crate) struct Storm<'a> {
    pub launch: &'a Launch,
    pub context: &'a std::sync::Arc<Context>,
    pub disk: &'a Disk,
    pub random: fastrand::Rng,
    pub probe: Actor,
    pub end: Instant,
}

impl Storm<'_> {
    /// Until the end; gives a server that is ready.
    pub(crate) async fn rage(&mut self, first: Server) -> anyhow::Result<Server> {
        let mut server = first;
        loop {
            self.live(&mut server).await?;
            if self.over() {
                return Ok(server);
            }
            self.end_it(server).await?;
            server = self.start().await?;
        }
    }

    fn over(&self) -> bool {
        Instant::now() >= self.end || self.context.stopped()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    async fn start(&mut self) -> anyhow::Result<Server> {
        self.disk.heal()?;
        loop {
            let pause = self.random.u64(0..100);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let mut server = self.launch.start(&self.context.recorder)?;
            if self.chance(KILLED_EARLY) && !self.over() {
                let ms = self.random.u64(0..START_MS);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                server.kill().await?;
                continue;
            }
            server.ready().await?;
            return Ok(server);
        }
    }

    async fn live(&mut self, server: &mut Server) -> anyhow::Result<()> {
        let (low, high) = (LIFE_MS.0.ln(), LIFE_MS.1.ln());
        let life = (low + (high - low) * self.random.f64()).exp() as u64;
        let life = if self.chance(CALM) { CALM_MS } else { life };
        if !matches!(self.disk, Disk::Sound) && self.chance(BROKEN) {
            self.wait(server, life / 2).await?;
            self.suffer(server).await?;
        }
        self.wait(server, life).await
    }

    async fn wait(&mut self, server: &mut Server, ms: u64) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < until && !self.context.stopped() {
            if !server.alive()? {
                anyhow::bail!("the server ended by itself");
            }
            tokio::time::sleep(LOOK_UP.min(until.saturating_duration_since(Instant::now()))).await;
        }
        Ok(())
    }

    /// The disk fails for a while; half of the times the server is killed meanwhile.
    async fn suffer(&mut self, server: &mut Server) -> anyhow::Result<()> {
        let how = self.disk.break_it(self.random.u32(..))?;
        let ms = self.random.u64(100..BROKEN_MS);
        self.wait(server, ms).await?;
        let stream = self.context.plan.streams[0].clone();
        let read = workload::read_all(&mut self.probe, &stream, 0).await.is_some();
        // After a failed write nobody knows what is on the disk: a store may open itself anew before it reads on.
        if !read && matches!(self.disk, Disk::Full { .. }) {
            let what = format!("no read while {how}");
            self.probe.note(self.probe.now(), Event::Unexpected { operation: "fault", what });
        }
        if self.chance(50) {
            return Ok(());
        }
        self.disk.heal()?;
        let since = Instant::now();
        while since.elapsed() < RESUME_BOUND && !self.context.stopped() {
            let start = self.probe.now();
            let append: Append = workload::append_one(&mut self.probe, &stream).await;
            let done = matches!(append.outcome, Outcome::Ok(_));
            self.probe.note(start, Event::Append(append));
            if done {
                return Ok(());
            }
        }
        if !self.context.stopped() {
            let what = format!("no append within {} s after this was over: {how}", RESUME_BOUND.as_secs());
            self.probe.note(self.probe.now(), Event::Unexpected { operation: "fault", what });
        }
        Ok(())
    }

    async fn end_it(&mut self, server: Server) -> anyhow::Result<()> {
        let way = self.random.u32(0..100);
        if way < TERMINATED && !self.context.faults {
            server.terminate(None).await
        } else if way < TERMINATED + KILLED_IN_DRAIN {
            let ms = self.random.u64(0..500);
            server.terminate(Some(Duration::from_millis(ms))).await
        } else {
            server.kill().await
        }
    }
}
