//! Idempotent producers: a pure machine that says of an append whether it is new, a repetition, out of turn or of an epoch
//! that was fenced. It follows the Durable Streams protocol 1.0, which took the idea from Kafka's KIP-98.

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tidegate_core::Timestamp;
use tidegate_frame::envelope::Kind;

use crate::error::StoreError;

/// The most bytes of a producer's id.
pub const PRODUCER_ID_MAX_BYTES: usize = 255;
/// The most that an epoch or a sequence may be: what every JSON reader holds exactly.
pub const PRODUCER_NUMBER_MAX: u64 = (1 << 53) - 1;
/// Of this many of a producer's latest appends the places are remembered, so that a repetition gets the same answer.
pub const PRODUCER_REMEMBERED: usize = 8;

/// What a producer says about an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerStamp {
    /// Who: 1 to [`PRODUCER_ID_MAX_BYTES`] bytes.
    pub id: Box<str>,
    /// Which of its lives; a higher one fences the lower ones.
    pub epoch: u64,
    /// The append's number within the epoch, from 0, without holes.
    pub seq: u64,
}

/// Where records of an append came to lie: partition, first offset, offset after the last.
pub(crate) type Places = Vec<(u32, u64, u64)>;

/// What is stored of a producer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProducerState {
    pub(crate) epoch: u64,
    pub(crate) last_seq: u64,
    /// When it last appended, for forgetting it.
    pub(crate) last_ms: i64,
    /// The latest appends of this epoch, the newest last. Where the newest came to lie is not known when this is written: the
    /// log puts it behind (see [`open`]).
    pub(crate) recent: VecDeque<Remembered>,
}

/// An append that is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) seq: u64,
    pub(crate) count: u64,
    pub(crate) places: Places,
}

/// The state as it is stored: how long its envelope is, the envelope, and behind it what the log adds.
pub(crate) fn seal(state: &ProducerState) -> Bytes {
    let sealed = crate::handle::seal(Kind::Producer, SCHEMA_VERSION, state);
    let mut whole = BytesMut::with_capacity(4 + sealed.len());
    whole.put_u32(u32::try_from(sealed.len()).expect("a few hundred bytes"));
    whole.put_slice(&sealed);
    whole.freeze()
}

/// Reads the stored state, with the places of the newest append, which the log put behind it.
pub(crate) fn open(mut stored: Bytes) -> Result<ProducerState, StoreError> {
    let corrupt = || StoreError::Corrupt { what: "a producer's state".into() };
    if stored.len() < 4 {
        return Err(corrupt());
    }
    let length = stored.get_u32() as usize;
    if length > stored.len() {
        return Err(corrupt());
    }
    let sealed = stored.split_to(length);
    let mut state: ProducerState =
        crate::handle::unseal(Kind::Producer, SCHEMA_VERSION, "a producer's state", &sealed)?;
    if !stored.len().is_multiple_of(RANGE_BYTES) {
        return Err(corrupt());
    }
    let mut places = Places::new();
    while stored.has_remaining() {
        places.push((stored.get_u32(), stored.get_u64(), stored.get_u64()));
    }
    if let Some(newest) = state.recent.back_mut() {
        newest.places = places;
    }
    Ok(state)
}

const SCHEMA_VERSION: u16 = 1;
/// A partition and two offsets.
const RANGE_BYTES: usize = 4 + 8 + 8;

/// What is to become of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is new: append it.
    Append,
    /// It was appended before: say so again.
    Duplicate {
        /// The highest sequence of the epoch.
        last_seq: u64,
        remembered: Option<Remembered>,
    },
    /// A higher epoch is known.
    Fenced { current: u64 },
    /// An append in between is missing.
    Gap { expected: u64 },
    /// A new epoch must begin with sequence 0.
    EpochStart,
}

/// Decides. `state` is what is stored of the producer, if anything is.
pub(crate) fn decide(state: Option<&ProducerState>, stamp: &ProducerStamp) -> Decision {
    match state {
        None if stamp.seq == 0 => Decision::Append,
        None => Decision::Gap { expected: 0 },
        Some(state) if stamp.epoch < state.epoch => Decision::Fenced { current: state.epoch },
        Some(state) if stamp.epoch > state.epoch => match stamp.seq {
            0 => Decision::Append,
            _ => Decision::EpochStart,
        },
        Some(state) if stamp.seq <= state.last_seq => Decision::Duplicate {
            last_seq: state.last_seq,
            remembered: state.recent.iter().find(|one| one.seq == stamp.seq).cloned(),
        },
        Some(state) if stamp.seq == state.last_seq + 1 => Decision::Append,
        Some(state) => Decision::Gap { expected: state.last_seq + 1 },
    }
}

/// What is stored after the append with `stamp` was made.
pub(crate) fn after(
    state: Option<&ProducerState>,
    stamp: &ProducerStamp,
    made: Remembered,
    now: Timestamp,
) -> ProducerState {
    let mut recent = match state {
        Some(state) if state.epoch == stamp.epoch => state.recent.clone(),
        _ => VecDeque::new(),
    };
    recent.push_back(made);
    while recent.len() > PRODUCER_REMEMBERED {
        recent.pop_front();
    }
    ProducerState { epoch: stamp.epoch, last_seq: stamp.seq, last_ms: now.unix_ms(), recent }
}
