//! What a source is doing, for people and monitors. It never says more of a record than its count.

use std::collections::BTreeMap;

use tidegate_core::Timestamp;
use tidegate_core::port::CopyStatus;

/// What a source is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceState {
    /// The first copy is being made.
    Copying,
    /// Changes come as they are made.
    Streaming,
    /// It waits: for the source or storage to answer, for another process's term to end, or for room for what streams refuse.
    Waiting,
    /// Changes come, and at least one stream refuses its own, which are kept for it.
    Spilling,
    /// The source no longer has what comes next: it stops until a person says how to go on.
    Gap,
    /// A person must mend something; it is tried again from time to time.
    Failed,
}

impl SourceState {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Copying, Self::Streaming, Self::Waiting, Self::Spilling, Self::Gap, Self::Failed];

    /// Whether it does not go on before somebody does something.
    #[must_use]
    pub const fn needs_a_person(self) -> bool {
        matches!(self, Self::Gap | Self::Failed)
    }

    /// Its name on every wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Streaming => "streaming",
            Self::Waiting => "waiting",
            Self::Spilling => "spilling",
            Self::Gap => "gap",
            Self::Failed => "failed",
        }
    }
}

/// What is known of a source.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    /// Its name.
    pub name: Box<str>,
    /// What kind of system it is.
    pub kind: Box<str>,
    /// What it is doing.
    pub state: SourceState,
    /// Up to where everything is durable here.
    pub position: Option<Box<str>>,
    /// Up to where the source was told that it may forget.
    pub confirmed: Option<Box<str>>,
    /// Bytes that the source keeps beyond that, as it said last; `None` = it was not asked yet.
    pub lag_bytes: Option<u64>,
    /// How long ago the last change happened that is durable here, in seconds; 0 where nothing is behind.
    pub lag_seconds: u64,
    /// How much of the first copy is done, as the source said last.
    pub copy: Option<CopyStatus>,
    /// Records that were appended for it, ever.
    pub records: u64,
    /// The number of its present term.
    pub epoch: u64,
    /// Its streams that are known to this process, in the order of their names.
    pub streams: Vec<SourceStreamStatus>,
    /// What went wrong last.
    pub last_error: Option<SourceFault>,
    /// What is lost, where it is in a gap.
    pub gap: Option<SourceGap>,
}

/// What is known of one stream of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceStreamStatus {
    /// Its name.
    pub name: Box<str>,
    /// Up to where it has the source's changes: the source's own position where nothing is kept for it.
    pub position: Option<Box<str>>,
    /// Records that it refused and that are kept for it.
    pub spilled_records: u64,
    /// Their bytes.
    pub spilled_bytes: u64,
    /// Why it refuses: a code.
    pub refused_because: Option<&'static str>,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFault {
    /// A stable code.
    pub code: &'static str,
    /// What, for people.
    pub message: Box<str>,
    /// When.
    pub at: Timestamp,
}

/// Changes that the source no longer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceGap {
    /// What comes after this position is lost.
    pub from: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// Since when it is known.
    pub since: Timestamp,
}

/// What the driver tells and who asks reads.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) state: SourceState,
    pub(crate) position: Option<Box<str>>,
    pub(crate) confirmed: Option<Box<str>>,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) copy: Option<CopyStatus>,
    pub(crate) records: u64,
    pub(crate) epoch: u64,
    /// The time of the last change that is durable here.
    pub(crate) event_time: Option<Timestamp>,
    /// Whether changes are known that are not durable here yet.
    pub(crate) behind: bool,
    pub(crate) streams: BTreeMap<Box<str>, SourceStreamStatus>,
    pub(crate) last_error: Option<SourceFault>,
    pub(crate) gap: Option<SourceGap>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self {
            state: SourceState::Waiting,
            position: None,
            confirmed: None,
            lag_bytes: None,
            copy: None,
            records: 0,
            epoch: 0,
            event_time: None,
            behind: false,
            streams: BTreeMap::new(),
            last_error: None,
            gap: None,
        }
    }

    pub(crate) fn lag_seconds(&self, now: Timestamp) -> u64 {
        let behind = self.behind || self.lag_bytes.is_some_and(|bytes| bytes > 0) || self.state == SourceState::Gap;
        match self.event_time {
            Some(time) if behind => u64::try_from(now.unix_ms().saturating_sub(time.unix_ms())).unwrap_or(0) / 1_000,
            _ => 0,
        }
    }

    pub(crate) fn status(&self, name: &str, kind: &str, now: Timestamp) -> SourceStatus {
        let streams = self.streams.values().map(|stream| {
            let position = stream.position.clone().filter(|_| stream.spilled_records > 0);
            SourceStreamStatus { position: position.or_else(|| self.position.clone()), ..stream.clone() }
        });
        SourceStatus {
            name: name.into(),
            kind: kind.into(),
            state: self.state,
            position: self.position.clone(),
            confirmed: self.confirmed.clone(),
            lag_bytes: self.lag_bytes,
            lag_seconds: self.lag_seconds(now),
            copy: self.copy.clone(),
            records: self.records,
            epoch: self.epoch,
            streams: streams.collect(),
            last_error: self.last_error.clone(),
            gap: self.gap.clone(),
        }
    }
}
