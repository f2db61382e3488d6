//! The newest records of a stream in memory, made once for all who follow it: one append wakes ten thousand followers, who share
//! one piece of bytes in the form of their wire. It never holds up a follower for another, and forgets the oldest first.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tidegate_core::port::ReadBounds;
use tidegate_core::position::{Gap, Offset, Partition};

use crate::durable::MessageKind;
use crate::error::ReadError;
use crate::handle::StreamHandle;
use crate::merge::read_merged;
use crate::record::Item;
use crate::render;

/// What a follower follows: one partition, or all of them merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Selection {
    /// One partition.
    One(Partition),
    /// All, in the order of their appends.
    All,
}

impl Selection {
    pub(crate) fn partitions(self, of: u32) -> impl Iterator<Item = Partition> {
        let (from, to) = match self {
            Self::One(partition) => (partition.0, partition.0 + 1),
            Self::All => (0, of),
        };
        (from..to).map(Partition)
    }
}

/// Some records and gaps in a row, rendered at most once in each form.
#[derive(Debug)]
pub struct Segment {
    /// The positions before it, a selected partition each.
    pub(crate) start: Vec<Offset>,
    /// The positions after it.
    pub(crate) end: Vec<Offset>,
    items: Vec<Item>,
    bytes: u64,
    ndjson: OnceLock<Bytes>,
    sse: OnceLock<Bytes>,
    durable: OnceLock<Bytes>,
}

impl Segment {
    pub(crate) fn new(start: Vec<Offset>, end: Vec<Offset>, items: Vec<Item>) -> Self {
        let bytes = items.iter().map(item_bytes).sum();
        Self { start, end, items, bytes, ndjson: OnceLock::new(), sse: OnceLock::new(), durable: OnceLock::new() }
    }

    /// What is in it, in order.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Its lines: `{"record":{...}}` and `{"gap":{...}}`. Rendered once, shared after that.
    #[must_use]
    pub fn ndjson(&self) -> Bytes {
        self.ndjson.get_or_init(|| render::ndjson(&self.items)).clone()
    }

    /// The same lines for who is alone in reading them: in several pieces where records are so large that their texts are better
    /// shared with the log than copied.
    #[must_use]
    pub fn ndjson_pieces(&self) -> Vec<Bytes> {
        if self.ndjson.get().is_none() && render::shares(&self.items) {
            return render::ndjson_pieces(&self.items);
        }
        vec![self.ndjson()]
    }

    /// Its server-sent events. Rendered once, shared after that.
    #[must_use]
    pub fn sse(&self) -> Bytes {
        self.sse.get_or_init(|| render::sse(&self.items)).clone()
    }

    /// Its records as one `data` event of the Durable Streams protocol, empty where it has none. Rendered once, shared after
    /// that: `kind` is always that of the stream.
    #[must_use]
    pub fn durable_sse(&self, kind: MessageKind) -> Bytes {
        self.durable.get_or_init(|| crate::durable::event(&self.items, kind)).clone()
    }

    /// The offset after it, of a segment of one partition.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.end.first().copied().unwrap_or(Offset::ZERO)
    }

    /// Where one goes on after it, by partition.
    pub(crate) fn part_after(&self, positions: &[Offset], selection: Selection) -> Self {
        let first = match selection {
            Selection::One(partition) => partition.0,
            Selection::All => 0,
        };
        let mut items = Vec::new();
        for item in &self.items {
            let at = positions.get((item.partition().0 - first) as usize).copied().unwrap_or(Offset::ZERO);
            match item {
                _ if item.next() <= at => {}
                // Of a gap only what the reader has not passed.
                Item::Gap(gap) => items.push(Item::Gap(Gap { from: gap.from.max(at), ..*gap })),
                Item::Record(record) => items.push(Item::Record(record.clone())),
            }
        }
        Self::new(positions.to_vec(), self.end.clone(), items)
    }
}

/// About what an item takes in memory, rendered twice at most.
fn item_bytes(item: &Item) -> u64 {
    match item {
        Item::Record(record) => 256 + 3 * record.bytes(),
        Item::Gap(_) => 128,
    }
}

/// The feeds of one stream: one a selection that is followed.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    by_selection: Mutex<HashMap<Selection, Arc<Feed>>>,
}

impl Feeds {
    pub(crate) fn get(&self, selection: Selection) -> Arc<Feed> {
        Arc::clone(self.by_selection.lock().entry(selection).or_default())
    }

    /// Reads what is new into each feed at whose end somebody waits, so that who is woken finds it there: one read for all, and
    /// no follower waits for another one's.
    pub(crate) async fn fill(&self, handle: &StreamHandle) {
        let feeds: Vec<_> = self.by_selection.lock().iter().map(|(of, feed)| (*of, Arc::clone(feed))).collect();
        for (selection, feed) in &feeds {
            feed.fill(handle, *selection).await;
        }
        drop(feeds);
        // Whose last reader went meanwhile was held here.
        self.sweep();
    }

    /// Forgets the feeds that nobody holds.
    pub(crate) fn sweep(&self) {
        self.by_selection.lock().retain(|_, feed| Arc::strong_count(feed) > 1);
    }
}

/// The newest segments of a selection, in a row: each begins where the one before it ends.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    segments: Mutex<Ring>,
    /// Held by who reads the log for all. It is waited for by who has nothing to read otherwise.
    filling: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Ring {
    segments: VecDeque<Arc<Segment>>,
    bytes: u64,
    /// Of all feeds together; kept so that a dropped ring gives back what it holds.
    total: Option<Arc<AtomicU64>>,
    /// Somebody has been at the end since the last fill.
    asked: bool,
    /// The last fill found nothing more. What comes after it comes with the next fill, of which everybody is told.
    quiet: bool,
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Ring {
    fn clear(&mut self) {
        if let Some(total) = &self.total {
            total.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        (self.bytes, self.quiet) = (0, false);
        self.segments.clear();
    }

    fn pop(&mut self) {
        if let Some(segment) = self.segments.pop_front() {
            self.bytes -= segment.bytes;
            if let Some(total) = &self.total {
                total.fetch_sub(segment.bytes, Ordering::Relaxed);
            }
        }
    }

    fn push(&mut self, segment: Arc<Segment>, total: &Arc<AtomicU64>, limit: u64) {
        self.total.get_or_insert_with(|| Arc::clone(total));
        self.bytes += segment.bytes;
        let mut all = total.fetch_add(segment.bytes, Ordering::Relaxed) + segment.bytes;
        self.segments.push_back(segment);
        // The newest is kept in any case: without it every follower would read for itself.
        while (self.bytes > FEED_MAX_BYTES || all > limit) && self.segments.len() > 1 {
            let before = self.bytes;
            self.pop();
            all -= before - self.bytes;
        }
    }

    fn find(&self, positions: &[Offset]) -> Found {
        // Who is at the tail is the common case, and who is behind mostly only by the newest segments.
        if self.segments.back().is_some_and(|last| last.end == positions) {
            return Found::Edge { fresh: false };
        }
        for segment in self.segments.iter().rev() {
            if segment.start == positions {
                return Found::Whole(Arc::clone(segment));
            }
            if at_or_after(&segment.end, positions)
                && segment.end != positions
                && at_or_after(positions, &segment.start)
            {
                return Found::Part(Arc::clone(segment));
            }
        }
        match self.segments.back() {
            None => Found::Edge { fresh: true },
            // The feed stood still while this reader went ahead on its own.
            Some(last) if at_or_after(positions, &last.end) => Found::Edge { fresh: true },
            Some(_) => Found::Behind,
        }
    }
}

fn at_or_after(a: &[Offset], b: &[Offset]) -> bool {
    a.iter().zip(b).all(|(a, b)| a >= b)
}

enum Found {
    Whole(Arc<Segment>),
    Part(Arc<Segment>),
    /// Nothing newer is in memory: read the log for all.
    Edge {
        fresh: bool,
    },
    /// Older than what is in memory: read for oneself.
    Behind,
}

/// What one feed keeps at most.
pub(crate) const FEED_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// What is read for all at a time.
const FILL: ReadBounds = ReadBounds { records: 4_096, bytes: 256 * 1024 };
/// So many times in a row at most, before who waits is told.
const FILLS_IN_A_ROW: usize = 4;

impl Feed {
    /// What comes after `positions`, shared where others are there too; `None` at the tail. `told`: the caller has looked before and
    /// is told of what comes, so that at the end of what was read for all there is nothing for it to look for.
    pub(crate) async fn next(
        &self,
        handle: &StreamHandle,
        selection: Selection,
        positions: &[Offset],
        bounds: ReadBounds,
        told: bool,
    ) -> Result<Option<Arc<Segment>>, ReadError> {
        let found = {
            let mut ring = self.segments.lock();
            let found = ring.find(positions);
            if matches!(found, Found::Edge { .. }) {
                ring.asked = true;
            }
            // Of a stream that is closed the last records may be there, and not yet have been told of.
            if told && ring.quiet && matches!(found, Found::Edge { fresh: false }) && !handle.is_closed() {
                return Ok(None);
            }
            found
        };
        match found {
            Found::Whole(segment) => return Ok(Some(segment)),
            Found::Part(segment) => return Ok(Some(Arc::new(segment.part_after(positions, selection)))),
            Found::Behind => {
                let read = read_merged(handle, selection, positions, bounds).await?;
                return Ok(read.map(Arc::new));
            }
            Found::Edge { .. } => {}
        }
        let _filling = self.filling.lock().await;
        let found = self.segments.lock().find(positions);
        let fresh = match found {
            Found::Whole(segment) => return Ok(Some(segment)),
            Found::Part(segment) => return Ok(Some(Arc::new(segment.part_after(positions, selection)))),
            Found::Behind => {
                let read = read_merged(handle, selection, positions, bounds).await?;
                return Ok(read.map(Arc::new));
            }
            Found::Edge { fresh } => fresh,
        };
        let Some(read) = read_merged(handle, selection, positions, FILL).await? else { return Ok(None) };
        let read = Arc::new(read);
        self.keep(handle, &read, fresh);
        Ok(Some(read))
    }

    /// Reads what is new, if somebody waits for it where the newest segment ends.
    async fn fill(&self, handle: &StreamHandle, selection: Selection) {
        let _filling = self.filling.lock().await;
        let end = |ring: &mut Ring| {
            ring.quiet = false;
            ring.segments.back().map(|last| last.end.clone())
        };
        let mut from = {
            let mut ring = self.segments.lock();
            let end = end(&mut ring);
            end.filter(|_| std::mem::take(&mut ring.asked))
        };
        for _ in 0..FILLS_IN_A_ROW {
            let Some(positions) = from else { return };
            // Who waits meets an error for itself.
            let Ok(read) = read_merged(handle, selection, &positions, FILL).await else { return };
            let Some(read) = read else {
                let mut ring = self.segments.lock();
                // They wait on at this end.
                ring.quiet = ring.segments.back().is_some_and(|last| last.end == positions);
                return;
            };
            self.keep(handle, &Arc::new(read), false);
            from = end(&mut self.segments.lock());
        }
    }

    fn keep(&self, handle: &StreamHandle, segment: &Arc<Segment>, fresh: bool) {
        let limit = handle.core.settings.freeze().limits_tail_kept_max_bytes();
        let mut ring = self.segments.lock();
        if fresh {
            ring.clear();
        }
        ring.push(Arc::clone(segment), &handle.core.kept, limit);
    }
}
