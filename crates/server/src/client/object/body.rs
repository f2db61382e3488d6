//! Bytes on their way to a server: pieces of files and whatever else can be read, a small piece in memory at a time. A server that takes
//! nothing for too long is told from a source that gives nothing: only the first is given up.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures::stream;
use parking_lot::Mutex;
use reqwest::{Body, RequestBuilder};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _};

use super::super::call::{Answer, Fault};
use super::super::error::Interruption;
use super::super::{Client, ClientError};

/// What is read and sent at once, in bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// Told of every run of bytes that was sent; a negative number takes back what has to be sent again.
pub type Meter = Arc<dyn Fn(i64) + Send + Sync>;

/// A piece of a file.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which file.
    pub path: PathBuf,
    /// Its first byte.
    pub from: u64,
    /// How many bytes.
    pub length: u64,
}

impl Piece {
    /// The SHA-256 of its bytes.
    pub(super) async fn sha256(&self) -> io::Result<[u8; 32]> {
        let Self { path, from, length } = self.clone();
        let hashing = tokio::task::spawn_blocking(move || sha256(&path, from, length));
        hashing.await.map_err(io::Error::other)?
    }
}

/// The SHA-256 of a piece of a file. Blocks.
///
/// # Errors
/// The file cannot be read, or ends before the piece does.
pub fn sha256(path: &Path, from: u64, length: u64) -> io::Result<[u8; 32]> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let (mut hash, mut left) = (Sha256::new(), length);
    let mut buffer = vec![0; PIECE_BYTES];
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match file.read(&mut buffer[..room])? {
            0 => return Err(shorter()),
            read => {
                hash.update(&buffer[..read]);
                left -= read as u64;
            }
        }
    }
    Ok(hash.finalize().into())
}

fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was read")
}

/// A digest as HTTP has it (RFC 9530).
pub(super) fn content_digest(sha256: &[u8; 32]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(sha256))
}

/// How far a body is.
pub(super) struct Motion {
    moved: AtomicU64,
    /// The source is asked for more: what is waited for is no fault of the server's.
    reading: AtomicBool,
    failure: Mutex<Option<io::Error>>,
    meter: Meter,
}

impl Motion {
    pub(super) fn new(meter: &Meter) -> Arc<Self> {
        Arc::new(Self {
            moved: AtomicU64::new(0),
            reading: AtomicBool::new(false),
            failure: Mutex::new(None),
            meter: Arc::clone(meter),
        })
    }

    /// What was sent has to be sent again.
    pub(super) fn take_back(&self) {
        let moved = self.moved.swap(0, Ordering::Relaxed);
        (self.meter)(i64::try_from(moved).unwrap_or(i64::MAX).saturating_neg());
    }

    fn add(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        (self.meter)(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// The body of a piece of a file.
pub(super) async fn file_body(piece: &Piece, motion: &Arc<Motion>) -> io::Result<Body> {
    let mut file = tokio::fs::File::open(&piece.path).await?;
    file.seek(SeekFrom::Start(piece.from)).await?;
    Ok(body(file, Some(piece.length), motion))
}

/// The body of all that a reader gives.
pub(super) fn reader_body(reader: impl AsyncRead + Send + Unpin + 'static, motion: &Arc<Motion>) -> Body {
    body(reader, None, motion)
}

fn body(reader: impl AsyncRead + Send + Unpin + 'static, left: Option<u64>, motion: &Arc<Motion>) -> Body {
    let motion = Arc::clone(motion);
    Body::wrap_stream(stream::try_unfold((reader, left), move |(mut reader, left)| {
        let motion = Arc::clone(&motion);
        async move {
            let room = left.map_or(PIECE_BYTES, |left| usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES));
            if room == 0 {
                return Ok(None);
            }
            let mut piece = BytesMut::with_capacity(room);
            motion.reading.store(true, Ordering::Relaxed);
            let read = (&mut reader).take(room as u64).read_buf(&mut piece).await;
            motion.reading.store(false, Ordering::Relaxed);
            let read = match (read, left) {
                (Ok(0), None) => return Ok(None),
                (Ok(0), Some(_)) => Err(shorter()),
                (read, _) => read,
            };
            match read {
                Ok(read) => {
                    motion.add(read);
                    Ok(Some((piece.freeze(), (reader, left.map(|left| left - read as u64)))))
                }
                Err(error) => {
                    let words = io::Error::new(error.kind(), error.to_string());
                    *motion.failure.lock() = Some(error);
                    Err(words)
                }
            }
        }
    }))
}

impl Client {
    /// Sends a request whose body is in motion, and reads its answer. It may take as long as something moves.
    pub(super) async fn ask_moving(&self, request: RequestBuilder, motion: &Motion) -> Result<Answer, Fault> {
        let patience = self.options.stall_timeout;
        let mut asked = std::pin::pin!(self.ask_without_end(request));
        let mut seen = 0;
        loop {
            match tokio::time::timeout(patience, &mut asked).await {
                Ok(answered) => {
                    return match motion.failure.lock().take() {
                        Some(error) => Err(Fault::Never(ClientError::Source(error))),
                        None => answered,
                    };
                }
                Err(_) => {
                    let moved = motion.moved.load(Ordering::Relaxed);
                    if moved == seen && !motion.reading.load(Ordering::Relaxed) {
                        return Err(Fault::Again(Interruption::Stalled(patience)));
                    }
                    seen = moved;
                }
            }
        }
    }
}
