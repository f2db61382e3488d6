//! What a consumer group is: the specification that its creator gave, and its bounds. It never says where a group is.

use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;

use super::error::GroupError;

/// How a group's members share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupMode {
    /// Each partition belongs to at most one member; a position a partition says what is done.
    #[default]
    Ordered,
    /// Each record is handed to whoever polls, and is acknowledged by itself.
    Shared,
}

/// Where a new group begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupStart {
    /// At the first record that is there when the group is created.
    #[default]
    Earliest,
    /// At the tail as it is when the group is created.
    Latest,
}

/// What a poll does where records are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGap {
    /// It reports the gap once and goes on behind it.
    #[default]
    Report,
    /// It is refused with the gap until somebody seeks.
    Stop,
}

/// What a group is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupSpec {
    /// How the work is shared.
    pub mode: GroupMode,
    /// Where it begins.
    pub start: GroupStart,
    /// A member that gives no sign of life for this long is removed, in milliseconds: [`SESSION_MS_MIN`] to [`SPAN_MS_MAX`].
    pub session_ms: u64,
    /// A record of a shared group that is not acknowledged for this long is delivered again, in milliseconds:
    /// [`ACK_TIMEOUT_MS_MIN`] to [`SPAN_MS_MAX`].
    pub ack_timeout_ms: u64,
    /// A record of a shared group that was delivered so often goes to `dead_letter`: 1 to [`DELIVERIES_MAX`]. Without a
    /// `dead_letter` it is delivered again for ever.
    pub max_deliveries: u32,
    /// The stream, of the same tenant, that gets what could not be processed; for shared groups only.
    pub dead_letter: Option<Name>,
    /// What a poll does where records are gone.
    pub on_gap: OnGap,
}

/// The least that `session_ms` may be.
pub const SESSION_MS_MIN: u64 = 100;
/// The least that `ack_timeout_ms` may be.
pub const ACK_TIMEOUT_MS_MIN: u64 = 10;
/// The most that a span of a group may be: one day.
pub const SPAN_MS_MAX: u64 = 86_400_000;
/// The most that `max_deliveries` may be.
pub const DELIVERIES_MAX: u32 = 1_000;

impl Default for GroupSpec {
    /// An ordered group from the earliest record on; 10 s a session, 30 s to acknowledge, 5 deliveries.
    fn default() -> Self {
        Self {
            mode: GroupMode::default(),
            start: GroupStart::default(),
            session_ms: 10_000,
            ack_timeout_ms: 30_000,
            max_deliveries: 5,
            dead_letter: None,
            on_gap: OnGap::default(),
        }
    }
}

impl GroupSpec {
    /// Checks the bounds. `stream` is the one that the group reads.
    pub(crate) fn check(&self, stream: &Name) -> Result<(), GroupError> {
        let spans = [
            ("session_ms", self.session_ms, SESSION_MS_MIN, SPAN_MS_MAX),
            ("ack_timeout_ms", self.ack_timeout_ms, ACK_TIMEOUT_MS_MIN, SPAN_MS_MAX),
            ("max_deliveries", u64::from(self.max_deliveries), 1, u64::from(DELIVERIES_MAX)),
        ];
        for (field, given, min, max) in spans {
            if !(min..=max).contains(&given) {
                return Err(GroupError::InvalidSpec { field, given, min, max });
            }
        }
        match &self.dead_letter {
            Some(_) if self.mode == GroupMode::Ordered => Err(GroupError::DeadLetterOfOrdered),
            Some(name) if name == stream => Err(GroupError::DeadLetterIsSource),
            _ => Ok(()),
        }
    }

    /// What parts this one from another, in the words of a request.
    pub(crate) fn difference(&self, asked: &Self) -> Option<String> {
        let parts = [
            ("mode", self.mode != asked.mode),
            ("start", self.start != asked.start),
            ("session_ms", self.session_ms != asked.session_ms),
            ("ack_timeout_ms", self.ack_timeout_ms != asked.ack_timeout_ms),
            ("max_deliveries", self.max_deliveries != asked.max_deliveries),
            ("dead_letter", self.dead_letter != asked.dead_letter),
            ("on_gap", self.on_gap != asked.on_gap),
        ];
        let different: Vec<&str> = parts.iter().filter(|(_, differs)| *differs).map(|(field, _)| *field).collect();
        (!different.is_empty()).then(|| format!("{} is another", different.join(", ")))
    }
}
