//! Lays out the answer to a batch: results become text as they come, and small parts go on together. It runs in the task that reads the
//! request, and never waits for the client.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use tidegate_batch::error::PutError;
use tidegate_batch::service::ObjectBytes;
use tidegate_batch::{ItemError, ObjectInfo};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use super::super::answer::{Times, identity, said};
use super::super::body::Pieces;
use super::part::{KEY, OP, Tag, encoded};
use super::reply::{Laid, Reply};
use super::run::Done;
use crate::body::PIECE_BYTES;
use crate::multipart::Writer;
use crate::problem::{PROBLEM_JSON, Problem};

const INDEX: &str = "x-tidegate-index";
const STATUS: &str = "x-tidegate-status";
/// An object's length, where its bytes do not follow.
const LENGTH: &str = "x-tidegate-length";

/// Up to this size a part's bytes are laid beside others into one piece.
const SMALL_BYTES: usize = 16 * 1_024;
/// What most heads need, with room.
const HEAD_BYTES: usize = 2 * 1_024;
/// Objects' bytes of one batch that may be laid out and not yet taken by the client without keeping their places of the window.
pub(super) const LAID_MAX_BYTES: usize = 1_024 * 1_024;

/// The client is gone.
pub(super) struct Gone;

/// Lays out one answer.
pub(super) struct Renderer {
    writer: Writer,
    times: Times,
    out: BytesMut,
    /// Of objects whose bytes are in `out`: of the first, and of those that found no room without theirs.
    places: Vec<OwnedSemaphorePermit>,
    /// Objects' bytes in `out`.
    of_objects: usize,
    /// Objects' bytes that are laid out and not taken.
    laid: Arc<AtomicUsize>,
    replies: UnboundedSender<Reply>,
}

/// The head of a part that is being laid out.
struct Head<'a> {
    writer: &'a Writer,
    out: &'a mut BytesMut,
}

impl Head<'_> {
    fn text(&mut self, name: &str, value: &[u8]) {
        self.writer.field(self.out, name, value);
    }

    fn number(&mut self, name: &str, value: u64) {
        let _ = write!(self.out, "{name}: {value}\r\n");
    }

    fn status(&mut self, status: StatusCode) {
        self.text(STATUS, status.as_str().as_bytes());
    }
}

impl Renderer {
    pub(super) fn new(writer: Writer, replies: UnboundedSender<Reply>) -> Self {
        Self {
            writer,
            times: Times::default(),
            out: BytesMut::new(),
            places: Vec::new(),
            of_objects: 0,
            laid: Arc::default(),
            replies,
        }
    }

    /// The reply to one part. Goes on when enough is laid out.
    pub(super) fn part(
        &mut self,
        tag: Tag,
        result: Result<Done, ItemError<Box<Problem>, Problem>>,
    ) -> Result<(), Gone> {
        if self.out.capacity() - self.out.len() < HEAD_BYTES {
            // The second time for all that goes on together, so that what is laid out is not moved again and again.
            let whole = PIECE_BYTES + SMALL_BYTES + HEAD_BYTES;
            self.out.reserve(if self.out.is_empty() {
                HEAD_BYTES
            } else {
                whole.saturating_sub(self.out.len()).max(HEAD_BYTES)
            });
        }
        self.writer.begin_part(&mut self.out);
        let head = &mut Head { writer: &self.writer, out: &mut self.out };
        head.number(INDEX, tag.index as u64);
        if let Some(kind) = tag.kind {
            head.text(OP.as_str(), kind.as_str().as_bytes());
        }
        if let Ok(Done::Written(written)) = &result {
            head.text(KEY.as_str(), encoded(&written.info.key).as_bytes());
        } else if let Some(key) = &tag.key {
            head.text(KEY.as_str(), key.as_bytes());
        }
        match result {
            Ok(Done::Written(written)) => {
                head.status(if written.created { StatusCode::CREATED } else { StatusCode::OK });
                // Not what its writer has just said.
                identity(&written.info, &mut self.times, &mut |name, value| head.text(name, value));
            }
            Ok(Done::Known(info)) => {
                head.status(StatusCode::OK);
                known(head, &info, &mut self.times);
                head.number(LENGTH, info.length);
            }
            Ok(Done::Got { info, first, rest }) => {
                head.status(StatusCode::OK);
                known(head, &info, &mut self.times);
                head.number(header::CONTENT_LENGTH.as_str(), info.length);
                self.writer.end_head(&mut self.out);
                return self.object(first, rest, info.length, tag.place);
            }
            Ok(Done::Deleted) => head.status(StatusCode::NO_CONTENT),
            Err(error) => return self.problem_of(error),
        }
        self.writer.end_head(&mut self.out);
        self.end_part()
    }

    fn problem_of(&mut self, error: ItemError<Box<Problem>, Problem>) -> Result<(), Gone> {
        let of_the_executor = |error: ItemError<PutError, PutError>| Problem::of(&error);
        match error {
            ItemError::Input(problem) => self.document(&problem),
            ItemError::Failed(problem) => self.document(&problem),
            ItemError::Panicked => self.document(&of_the_executor(ItemError::Panicked)),
            ItemError::TooLarge { weight_bytes, max_bytes } => {
                let error = ItemError::TooLarge { weight_bytes, max_bytes };
                self.document(&of_the_executor(error).with("max_bytes", max_bytes))
            }
            ItemError::Nested(error) => self.document(&Problem::of(&error)),
            _ => self.document(&of_the_executor(ItemError::Cancelled)),
        }
    }

    /// What is wrong with the body as a whole.
    pub(super) fn problem(&mut self, problem: &Problem) -> Result<(), Gone> {
        self.writer.begin_part(&mut self.out);
        self.document(problem)
    }

    /// The rest of a head, and a problem document.
    fn document(&mut self, problem: &Problem) -> Result<(), Gone> {
        let document = problem.document();
        let mut head = Head { writer: &self.writer, out: &mut self.out };
        head.status(problem.status());
        head.text(header::CONTENT_TYPE.as_str(), PROBLEM_JSON.as_bytes());
        head.number(header::CONTENT_LENGTH.as_str(), document.len() as u64);
        self.writer.end_head(&mut self.out);
        self.out.extend_from_slice(document.as_ref());
        self.end_part()
    }

    /// An object's bytes: beside others if they are few and at hand.
    fn object(
        &mut self,
        first: Bytes,
        rest: Option<ObjectBytes>,
        length: u64,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Gone> {
        if first.len() as u64 == length && first.len() <= SMALL_BYTES {
            self.out.extend_from_slice(&first);
            self.of_objects += first.len();
            let laid = self.laid.fetch_add(first.len(), Ordering::Relaxed) + first.len();
            // One place stays with each piece, so that the batch keeps its window until the client has taken all of it.
            if laid > LAID_MAX_BYTES || self.places.is_empty() {
                self.places.extend(place);
            }
            return self.end_part();
        }
        self.flush()?;
        let pieces = Pieces::new(first, rest, length);
        self.replies.send(Reply::Object { pieces, place }).map_err(|_| Gone)?;
        self.end_part()
    }

    fn end_part(&mut self) -> Result<(), Gone> {
        self.writer.end_part(&mut self.out);
        if self.out.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Hands on what is laid out.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        if self.out.is_empty() {
            return Ok(());
        }
        let bytes = self.out.split().freeze();
        let of_objects = std::mem::take(&mut self.of_objects);
        let places = std::mem::take(&mut self.places);
        let laid = Laid::new(of_objects, Arc::clone(&self.laid), places);
        self.replies.send(Reply::Bytes { bytes, laid }).map_err(|_| Gone)
    }

    /// The end of the answer.
    pub(super) fn end(mut self) -> Result<(), Gone> {
        self.writer.end(&mut self.out);
        self.flush()?;
        self.replies.send(Reply::End).map_err(|_| Gone)
    }
}

/// All that is known of an object, as far as it makes sense in a part of an answer.
fn known(head: &mut Head<'_>, info: &ObjectInfo, times: &mut Times) {
    identity(info, times, &mut |name, value| head.text(name, value));
    said(info, &mut |name, value| head.text(name, value));
}
