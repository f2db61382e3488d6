//! What happened in a run, as the clients saw it: every operation with its begin, its end and its outcome. Plain data and the
//! recorder that fills it; it judges nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Microseconds since the run began, by the monotonic clock.
pub(crate) type Micros = u64;

/// A partition of a stream, by the stream's index in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub stream: u16,
    pub partition: u32,
}

/// What a client knows of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// The server confirmed it.
    Ok(T),
    /// It certainly did not happen: the server said so, or was not there to be asked (status 0).
    Refused { status: u16, code: String },
    /// The answer was lost: it may have happened, once.
    Unknown,
}

/// Where a part of an append came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub partition: u32,
    pub base: u64,
    pub next: u64,
}

/// A record that was sent. Its value follows from its id; see `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub id: u64,
    pub partition: Option<u32>,
    pub key: Option<u32>,
}

/// What makes an append idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub producer: u32,
    pub epoch: u64,
    pub seq: u64,
    /// Sent on purpose under an epoch that a newer one has replaced.
    pub zombie: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Append {
    pub stream: u16,
    pub sequence: Option<Sequence>,
    pub records: Vec<Sent>,
    /// The ranges are empty where the answer has none: Durable Streams, or a repeated append.
    pub outcome: Outcome<Vec<Range>>,
}

/// A record that was read. `id` is `None` where the value is not, byte for byte, what was sent under any id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub offset: u64,
    pub id: Option<u64>,
}

/// Records that the server reported as gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    pub from: u64,
    pub to: u64,
    pub reason: String,
}

/// One answer of reading a partition from `from` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub place: Place,
    pub from: u64,
    pub seen: Vec<Seen>,
    pub gaps: Vec<Gap>,
    /// Where the server says that reading goes on; `None` for a tail.
    pub next: Option<u64>,
}

/// What a shared group handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub delivery: String,
    pub partition: u32,
    pub seen: Seen,
}

/// How the server's process changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Process {
    Started,
    /// `/readyz` said so, this long after the start.
    Ready {
        after_us: Micros,
    },
    Killed,
    /// SIGTERM, and how it ended; `None` = it was killed while it drained.
    Terminated {
        code: Option<i32>,
    },
    /// It ended by itself, or never became ready.
    Died {
        how: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Append(Append),
    Read(Read),
    /// 416: the server says that `from` is beyond the tail.
    OutOfRange {
        place: Place,
        from: u64,
    },
    /// A join or heartbeat was answered: the server says that the member holds these.
    Held {
        group: u16,
        member: String,
        generation: u64,
        partitions: Vec<u32>,
    },
    /// A poll of an ordered group was answered.
    Polled {
        group: u16,
        member: String,
        generation: u64,
        seen: Vec<(u32, Seen)>,
    },
    Commit {
        group: u16,
        member: String,
        generation: u64,
        positions: Vec<(u32, u64)>,
        outcome: Outcome<()>,
    },
    /// The group was asked for its committed positions.
    Positions {
        group: u16,
        committed: Vec<(u32, u64)>,
    },
    /// A poll of a shared group was answered.
    Delivered {
        group: u16,
        deliveries: Vec<Delivery>,
    },
    /// Deliveries were acknowledged; with an `Ok`, those that the server says it took.
    Ack {
        group: u16,
        deliveries: Vec<String>,
        outcome: Outcome<Vec<String>>,
    },
    /// Deliveries were given back, so that they may come again at once.
    Nack {
        group: u16,
        deliveries: Vec<String>,
    },
    /// Everything that a partition holds, read after the last restart. `via` says by which protocol.
    Final {
        read: Read,
        via: &'static str,
    },
    /// Everything in the dead-letter stream of a shared group.
    DeadLetters {
        group: u16,
        ids: Vec<Option<u64>>,
    },
    Process(Process),
    /// An answer that a well-formed request must not get, or a promise about the process that was not kept.
    Unexpected {
        operation: &'static str,
        what: String,
    },
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub client: u32,
    pub start: Micros,
    pub end: Micros,
    pub event: Event,
}

/// What the plan promised about a stream.
#[derive(Debug, Clone)]
pub(crate) struct StreamFact {
    pub name: String,
    pub partitions: u32,
    /// Retention by number of records; `None` = everything stays.
    pub keep_records: Option<u64>,
}

/// What the plan promised about a group.
#[derive(Debug, Clone)]
pub(crate) struct GroupFact {
    pub name: String,
    pub stream: u16,
    pub shared: bool,
    pub ack_timeout_us: Micros,
}

/// A whole run.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub streams: Vec<StreamFact>,
    pub groups: Vec<GroupFact>,
    /// In the order in which they ended.
    pub entries: Vec<Entry>,
}

impl History {
    /// The final content of each partition, by the native protocol.
    pub(crate) fn finals(&self) -> BTreeMap<Place, (usize, &Read)> {
        let entries = self.entries.iter().enumerate();
        entries
            .filter_map(|(index, entry)| match &entry.event {
                Event::Final { read, via: NATIVE } => Some((read.place, (index, read))),
                _ => None,
            })
            .collect()
    }

    /// When the server's process ended: from the order to end to its end.
    pub(crate) fn ends(&self) -> Vec<(Micros, Micros)> {
        let ended = |entry: &&Entry| {
            matches!(entry.event, Event::Process(Process::Killed | Process::Terminated { .. } | Process::Died { .. }))
        };
        self.entries.iter().filter(ended).map(|entry| (entry.start, entry.end)).collect()
    }
}

/// The name of the protocol of API section 2 in `Event::Final`.
pub(crate) const NATIVE: &str = "/v1/streams";

/// Where clients write down what they saw; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    begin: Instant,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), entries: Arc::default() }
    }

    pub(crate) fn now(&self) -> Micros {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Notes an operation that began at `start` and ends now.
    pub(crate) fn note(&self, client: u32, start: Micros, event: Event) {
        let mut entries = self.lock();
        // Under the lock, so that the entries are in the order of their ends.
        let end = self.now();
        entries.push(Entry { client, start, end, event });
    }

    /// Takes everything out.
    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
