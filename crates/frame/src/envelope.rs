//! The checked envelope around every structure at rest, and the only place that names bincode. It never opens what any
//! bit of which has changed, never reads past its end, and never panics on foreign bytes.
//!
//! The layout stands in this crate's README. Not for what a network peer sends.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::{BufMut as _, Bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::{ErrorKind, Failure};

/// The first bytes of every envelope.
pub const MAGIC: [u8; 4] = *b"TDGT";
/// The version of the layout that this module writes and reads.
pub const ENVELOPE_VERSION: u8 = 1;
/// Bytes before the payload: magic 4, envelope version 1, kind 2, schema version 2, payload length 4.
pub const HEADER_BYTES: usize = 13;
/// Bytes after the payload: CRC-32C.
pub const CHECKSUM_BYTES: usize = 4;
/// The most bytes that a payload may have. What is larger belongs into several structures.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;

const fn config() -> Configuration<LittleEndian, Varint, Limit<MAX_PAYLOAD_BYTES>> {
    bincode::config::standard().with_limit::<MAX_PAYLOAD_BYTES>()
}

/// What lies in an envelope. A number, once given, is never given to anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum Kind {
    /// Written and read back to see whether storage answers; and by the format's own tests.
    Probe = 1,
    /// A lease.
    Lease = 2,
    /// A cursor.
    Cursor = 3,
    /// What a change stream is.
    Stream = 4,
    /// A producer's epoch and sequence.
    Producer = 5,
    /// A partition's watermark.
    Watermark = 6,
    /// A part of a consumer group's state.
    Group = 7,
    /// Records of a change stream, appended together.
    Batch = 8,
    /// Bookkeeping of the log's own.
    LogState = 9,
    /// A value of the metadata store.
    Metadata = 10,
    /// When a stream was last used.
    StreamUse = 11,
    /// The last sequence that a stream's writers gave.
    WriterSequence = 12,
    /// What is known of an object.
    Object = 13,
    /// The bytes of a small object.
    ObjectBody = 14,
    /// A blob that is being written, or is to be deleted.
    BlobIntent = 15,
    /// A large object that is being uploaded in parts, one of its parts, or the secret of their ids.
    Upload = 16,
    /// Where a source of changes was read to, and by whom.
    Source = 17,
    /// What is known of one stream of a source of changes.
    SourceStream = 18,
    /// An entry in the log of a job's checkpoints: a term, a manifest, a commit.
    CheckpointEntry = 20,
    /// A part of the list of chunks of a checkpoint's state.
    CheckpointIndex = 21,
    /// Who is reading a checkpoint.
    CheckpointReader = 22,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Probe,
        Self::Lease,
        Self::Cursor,
        Self::Stream,
        Self::Producer,
        Self::Watermark,
        Self::Group,
        Self::Batch,
        Self::LogState,
        Self::Metadata,
        Self::StreamUse,
        Self::WriterSequence,
        Self::Object,
        Self::ObjectBody,
        Self::BlobIntent,
        Self::Upload,
        Self::Source,
        Self::SourceStream,
        Self::CheckpointEntry,
        Self::CheckpointIndex,
        Self::CheckpointReader,
    ];

    /// Its number in the envelope.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// Why a structure was not sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// It is larger than [`MAX_PAYLOAD_BYTES`].
    #[error("the structure is larger than an envelope may hold ({limit_bytes} bytes)")]
    TooLarge {
        /// The bound.
        limit_bytes: usize,
    },
    /// Its `Serialize` failed, or asks for what the format cannot hold (a sequence of unknown length).
    #[error("the structure cannot be encoded")]
    Unencodable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why bytes were not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There are fewer bytes than the smallest envelope has.
    #[error("{actual_bytes} bytes are too few for an envelope")]
    TooShort {
        /// How many there are.
        actual_bytes: usize,
    },
    /// They do not begin with [`MAGIC`].
    #[error("not an envelope: it does not begin with \"TDGT\"")]
    BadMagic,
    /// The envelope's own version is not one that this program reads.
    #[error("the envelope has version {version}, which this program does not read")]
    UnknownEnvelopeVersion {
        /// The version that it has.
        version: u8,
    },
    /// The header announces more than [`MAX_PAYLOAD_BYTES`].
    #[error("the envelope announces {payload_bytes} bytes, more than it may hold ({limit_bytes})")]
    TooLarge {
        /// What it announces.
        payload_bytes: u64,
        /// The bound.
        limit_bytes: usize,
    },
    /// There are more or fewer bytes than the header announces.
    #[error(
        "the envelope should have {expected_bytes} bytes and has {actual_bytes}: it was cut, or something was added"
    )]
    LengthMismatch {
        /// By its header.
        expected_bytes: u64,
        /// In fact.
        actual_bytes: u64,
    },
    /// The bytes are not those that were written.
    #[error("the envelope is damaged: its checksum is {expected:08x}, its bytes give {actual:08x}")]
    ChecksumMismatch {
        /// As written in the envelope.
        expected: u32,
        /// As computed from its bytes.
        actual: u32,
    },
    /// It holds something else.
    #[error("the envelope holds kind {actual}, kind {expected} was asked for")]
    WrongKind {
        /// The number of the kind that was asked for.
        expected: u16,
        /// The number that it has.
        actual: u16,
    },
    /// The structure's version is not among those that the caller reads.
    #[error("the structure has version {version}, which this program does not read")]
    UnknownSchemaVersion {
        /// The version that it has.
        version: u16,
    },
    /// The payload is not the structure's encoding.
    #[error("the payload is not the structure that its envelope names")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The structure ended before the payload did.
    #[error("{trailing_bytes} bytes follow the structure inside its payload")]
    TrailingPayload {
        /// How many.
        trailing_bytes: usize,
    },
}

impl Failure for OpenError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "envelope_too_short",
            Self::BadMagic => "envelope_bad_magic",
            Self::UnknownEnvelopeVersion { .. } => "envelope_unknown_version",
            Self::TooLarge { .. } => "envelope_too_large",
            Self::LengthMismatch { .. } => "envelope_length_mismatch",
            Self::ChecksumMismatch { .. } => "envelope_checksum_mismatch",
            Self::WrongKind { .. } => "envelope_wrong_kind",
            Self::UnknownSchemaVersion { .. } => "envelope_unknown_schema_version",
            Self::Malformed(_) => "envelope_malformed",
            Self::TrailingPayload { .. } => "envelope_trailing_payload",
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

/// Encodes a structure and puts the envelope around it. Cost: one pass to encode and one to sum up.
pub fn seal<T: Serialize + ?Sized>(kind: Kind, schema_version: u16, value: &T) -> Result<Bytes, SealError> {
    let mut sealed = Vec::with_capacity(128);
    sealed.put_slice(&MAGIC);
    sealed.put_u8(ENVELOPE_VERSION);
    sealed.put_u16_le(kind.number());
    sealed.put_u16_le(schema_version);
    sealed.put_u32_le(0);
    let mut payload = Payload { sealed: &mut sealed, overflowed: false };
    let encoded = bincode::serde::encode_into_writer(value, &mut payload, config());
    if payload.overflowed {
        return Err(SealError::TooLarge { limit_bytes: MAX_PAYLOAD_BYTES });
    }
    encoded.map_err(|error| SealError::Unencodable(Box::new(error)))?;
    let length = u32::try_from(sealed.len() - HEADER_BYTES).expect("a payload is at most MAX_PAYLOAD_BYTES");
    sealed[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c(&sealed);
    sealed.put_u32_le(checksum);
    Ok(sealed.into())
}

/// Checks an envelope and decodes what lies in it. `schema_versions` are those that `T` reads.
///
/// The checksum is compared before the kind, the schema version and the payload are believed.
pub fn open<T: DeserializeOwned>(kind: Kind, schema_versions: &[u16], sealed: &[u8]) -> Result<T, OpenError> {
    let payload = open_bytes(kind, schema_versions, sealed)?;
    let (value, used) =
        bincode::serde::decode_from_slice(payload, config()).map_err(|error| OpenError::Malformed(Box::new(error)))?;
    if used != payload.len() {
        return Err(OpenError::TrailingPayload { trailing_bytes: payload.len() - used });
    }
    Ok(value)
}

/// Puts the envelope around a payload that is bytes already, given in pieces that are laid one after the other. For what
/// is large and has a layout of its own: bincode never sees it. Cost: one copy and one pass to sum up.
pub fn seal_bytes(kind: Kind, schema_version: u16, pieces: &[&[u8]]) -> Result<Bytes, SealError> {
    let payload_bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    let too_large = SealError::TooLarge { limit_bytes: MAX_PAYLOAD_BYTES };
    if payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(too_large);
    }
    let mut sealed = Vec::with_capacity(HEADER_BYTES + payload_bytes + CHECKSUM_BYTES);
    sealed.put_slice(&MAGIC);
    sealed.put_u8(ENVELOPE_VERSION);
    sealed.put_u16_le(kind.number());
    sealed.put_u16_le(schema_version);
    sealed.put_u32_le(u32::try_from(payload_bytes).map_err(|_| too_large)?);
    for piece in pieces {
        sealed.put_slice(piece);
    }
    let checksum = crc32c::crc32c(&sealed);
    sealed.put_u32_le(checksum);
    Ok(sealed.into())
}

/// Checks an envelope and gives the payload as it lies there: bytes [`HEADER_BYTES`] to the fourth last of `sealed`.
/// `schema_versions` are those that the caller reads. Cost: one pass to sum up; copies nothing.
///
/// The checksum is compared before the kind and the schema version are believed.
pub fn open_bytes<'a>(kind: Kind, schema_versions: &[u16], sealed: &'a [u8]) -> Result<&'a [u8], OpenError> {
    let Some((header, rest)) = sealed.split_first_chunk::<HEADER_BYTES>() else {
        return Err(OpenError::TooShort { actual_bytes: sealed.len() });
    };
    let Some((payload, checksum)) = rest.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(OpenError::TooShort { actual_bytes: sealed.len() });
    };
    let [m0, m1, m2, m3, version, k0, k1, s0, s1, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(OpenError::BadMagic);
    }
    if version != ENVELOPE_VERSION {
        return Err(OpenError::UnknownEnvelopeVersion { version });
    }
    let payload_bytes = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
    if payload_bytes > MAX_PAYLOAD_BYTES as u64 {
        return Err(OpenError::TooLarge { payload_bytes, limit_bytes: MAX_PAYLOAD_BYTES });
    }
    if payload_bytes != payload.len() as u64 {
        return Err(OpenError::LengthMismatch {
            expected_bytes: payload_bytes + (HEADER_BYTES + CHECKSUM_BYTES) as u64,
            actual_bytes: sealed.len() as u64,
        });
    }
    let expected = u32::from_le_bytes(*checksum);
    let actual = crc32c::crc32c(&sealed[..sealed.len() - CHECKSUM_BYTES]);
    if expected != actual {
        return Err(OpenError::ChecksumMismatch { expected, actual });
    }
    let actual_kind = u16::from_le_bytes([k0, k1]);
    if actual_kind != kind.number() {
        return Err(OpenError::WrongKind { expected: kind.number(), actual: actual_kind });
    }
    let version = u16::from_le_bytes([s0, s1]);
    if !schema_versions.contains(&version) {
        return Err(OpenError::UnknownSchemaVersion { version });
    }
    Ok(payload)
}

/// Takes the payload up to its bound, so that sealing never allocates far beyond it.
struct Payload<'a> {
    sealed: &'a mut Vec<u8>,
    overflowed: bool,
}

impl bincode::enc::write::Writer for Payload<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        if bytes.len() > HEADER_BYTES + MAX_PAYLOAD_BYTES - self.sealed.len() {
            self.overflowed = true;
            return Err(bincode::error::EncodeError::UnexpectedEnd);
        }
        self.sealed.extend_from_slice(bytes);
        Ok(())
    }
}
