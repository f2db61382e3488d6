//! Parts of a batch, read as they arrive. What is wrong with a part is that part's error; what is wrong with the body ends the reading
//! and is told once, after everything else.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use tidegate_batch::error::PutError;
use tidegate_batch::object::PATH_MAX_BYTES;
use tidegate_batch::operation::INSERT_MAX_BYTES;
use tidegate_batch::policy::Access;
use tidegate_batch::{Metadata, ObjectKey, Operation, OperationKind};
use tidegate_core::{Clock, Principal, Retry};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::super::admission::{Admission, Shape};
use super::super::body::Pace;
use super::super::metadata::{digest, metadata};
use super::super::place::key_of;
use super::super::problem::put_problem;
use super::input::Item;
use super::{BODY_MAX_BYTES, PART_MAX_COUNT, body_too_large};
use crate::auth::AuthError;
use crate::body::BodyError;
use crate::gate::App;
use crate::multipart::{Event, HEAD_MAX_BYTES, HEAD_MAX_COUNT, HeadError, NotMultipart, PartHead, Reader};
use crate::problem::Problem;
use crate::route::name::is_encoded_text;

pub(super) const OP: HeaderName = HeaderName::from_static("x-tidegate-op");
pub(super) const KEY: HeaderName = HeaderName::from_static("x-tidegate-key");

/// What a batch does not take: it would not be heeded, and the client would think that it was.
const NOT_TAKEN: [HeaderName; 6] = [
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
];

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A key as a header's value.
pub(super) fn encoded(key: &ObjectKey) -> HeaderValue {
    let text = utf8_percent_encode(key.as_str(), ENCODED).to_string();
    HeaderValue::try_from(text).expect("percent-encoded text is a header value")
}

/// Which part a result is of.
pub(super) struct Tag {
    pub(super) index: usize,
    pub(super) kind: Option<OperationKind>,
    /// As it was sent.
    pub(super) key: Option<HeaderValue>,
    /// Where a get's bytes may lie.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// The parts of one request.
pub(super) struct Parts {
    body: Body,
    reader: Reader,
    clock: Arc<dyn Clock>,
    pace: Pace,
    principal: Principal,
    admission: Admission,
    /// Holds the body back where its bytes are limited.
    shape: Option<Shape>,
    read_bytes: u64,
    count: usize,
    open: Option<Draft>,
    /// What is wrong with the body.
    last: Arc<OnceLock<Problem>>,
    ended: bool,
    /// It has not come to its end.
    drains: bool,
    /// Where what is left of a body goes of which nothing more is needed.
    rest: Option<oneshot::Sender<Rest>>,
}

/// What is left of a body of which nothing more is needed.
pub(super) struct Rest(Parts);

impl Rest {
    /// Reads it, so that a client that sends everything before it reads gets to the answer, and the connection can be used again. At its
    /// own speed, however fast objects may come: nothing is done with it.
    pub(super) async fn drain(mut self) {
        while let Ok(true) = self.0.more().await {}
    }
}

impl Parts {
    pub(super) fn new(
        app: &App,
        principal: Principal,
        admission: Admission,
        shape: Option<Shape>,
        body: Body,
        boundary: &str,
        last: Arc<OnceLock<Problem>>,
    ) -> Self {
        Self {
            body,
            reader: Reader::new(boundary),
            clock: Arc::clone(&app.services.clock),
            pace: Pace::new(app.services.streams.settings().freeze().limits_body_timeout_ms()),
            principal,
            admission,
            shape,
            read_bytes: 0,
            count: 0,
            open: None,
            last,
            ended: false,
            drains: false,
            rest: None,
        }
    }

    /// Waits for the first bytes.
    pub(super) async fn begin(&mut self) -> Result<(), Problem> {
        match self.more().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(BodyError::Incomplete.into()),
            Err(problem) => Err(*problem),
        }
    }

    /// The parts, and what comes when nothing more of the body is needed: it is for somebody to read who holds nothing that others wait for.
    pub(super) fn stream(mut self) -> (BoxStream<'static, Item>, oneshot::Receiver<Rest>) {
        let (sender, rest) = oneshot::channel();
        self.rest = Some(sender);
        let parts = stream::unfold(Some(self), |parts| async {
            let mut parts = parts?;
            if let Some(item) = parts.next().await {
                return Some((item, Some(parts)));
            }
            parts.give_rest();
            None
        });
        (parts.boxed(), rest)
    }

    fn give_rest(mut self) {
        if let Some(rest) = self.rest.take()
            && self.drains
        {
            self.reader = Reader::ended();
            self.shape = None;
            // If nobody wants it the answer is gone.
            drop(rest.send(Rest(self)));
        }
    }

    async fn next(&mut self) -> Option<Item> {
        while !self.ended {
            match self.reader.next() {
                Ok(Some(Event::Part(_))) if self.count == PART_MAX_COUNT => {
                    let detail = format!("a batch has at most {PART_MAX_COUNT} parts; those up to there were executed");
                    let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_parts", detail);
                    self.fail(problem.with("max", PART_MAX_COUNT));
                    self.leave();
                }
                Ok(Some(Event::Part(head))) => {
                    self.open = Some(Draft::new(self.count, &head, &self.principal, &self.admission));
                    self.count += 1;
                }
                Ok(Some(Event::Data(bytes))) => {
                    if let Some(open) = &mut self.open {
                        open.take(&bytes);
                    }
                }
                Ok(Some(Event::PartEnd)) => {
                    if let Some(open) = self.open.take() {
                        return Some(open.finish());
                    }
                }
                Ok(Some(Event::End)) => self.leave(),
                Ok(None) => match self.more().await {
                    Ok(true) => {}
                    Ok(false) => self.broke_off(BodyError::Incomplete.into()),
                    Err(problem) => self.broke_off(*problem),
                },
                Err(NotMultipart) => {
                    let detail = "the body does not begin with the boundary that Content-Type names";
                    self.fail(Problem::new(StatusCode::BAD_REQUEST, "malformed_multipart", detail));
                    self.leave();
                }
            }
        }
        None
    }

    /// Takes in more of the body; `false` at its end.
    async fn more(&mut self) -> Result<bool, Box<Problem>> {
        // Who waits for a reply before the next part is no slow sender.
        let between = self.open.is_none() && self.reader.is_between();
        let now = self.clock.now();
        let deadline = if between { self.pace.begin_between(now) } else { self.pace.begin(now) };
        loop {
            let frame = tokio::select! {
                // First, so that a piece that is there already costs no timer.
                biased;
                frame = self.body.frame() => frame,
                () = self.clock.sleep_until(deadline) => {
                    return Err(Box::new(self.pace.over().into()));
                }
            };
            let Some(frame) = frame else { return Ok(false) };
            let Ok(frame) = frame else { return Err(Box::new(BodyError::Incomplete.into())) };
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else { continue };
            self.pace.came(self.clock.now(), data.len());
            self.read_bytes += data.len() as u64;
            if self.read_bytes > BODY_MAX_BYTES {
                return Err(Box::new(body_too_large()));
            }
            // Its sender is given all the time that this takes.
            if let Some(shape) = &mut self.shape {
                shape.pass(data.len()).await;
            }
            self.reader.push(&data);
            return Ok(true);
        }
    }

    /// The body ended within a part, or between two.
    fn broke_off(&mut self, problem: Problem) {
        self.ended = true;
        let whole = self.count - usize::from(self.open.take().is_some());
        // What was read has been executed: sending all of it again is not the same as sending it once.
        self.fail(problem.with_retry(Retry::Never).with("parts", whole));
    }

    fn fail(&mut self, problem: Problem) {
        let _ = self.last.set(problem);
    }

    /// Nothing more of the body is needed.
    fn leave(&mut self) {
        self.ended = true;
        self.drains = true;
    }
}

/// A part that is being read.
struct Draft {
    tag: Tag,
    plan: Result<Plan, Box<Problem>>,
    payload: Vec<u8>,
}

/// What shall be done when the part is whole.
enum Plan {
    Insert { key: Option<ObjectKey>, metadata: Metadata, sha256: Option<[u8; 32]>, length: Option<u64> },
    Other(Operation),
}

impl Plan {
    /// An operation that needs nothing but a key.
    fn of(kind: OperationKind, key: ObjectKey) -> Self {
        Self::Other(match kind {
            OperationKind::Get => Operation::Get { key },
            OperationKind::Head => Operation::Head { key },
            OperationKind::Delete | OperationKind::Insert => Operation::Delete { key },
        })
    }

    fn access(&self) -> Access {
        match self {
            Self::Insert { .. } => Access::Write,
            Self::Other(operation) => operation.kind().into(),
        }
    }
}

impl Draft {
    fn new(index: usize, head: &PartHead, principal: &Principal, admission: &Admission) -> Self {
        let mut tag = Tag { index, kind: None, key: None, place: None };
        let plan = match plain(head, &mut tag, principal) {
            Some(plan) => plan,
            None => head.fields().map_err(head_problem).and_then(|head| plan(head, &mut tag, principal)),
        };
        let plan = plan.and_then(|plan| {
            admission.admit(plan.access())?;
            Ok(plan)
        });
        let plan = plan.map_err(Box::new);
        Self { tag, plan, payload: Vec::new() }
    }

    fn take(&mut self, bytes: &Bytes) {
        let problem = match &self.plan {
            Err(_) => return,
            Ok(Plan::Insert { .. }) if self.payload.len() + bytes.len() <= INSERT_MAX_BYTES => {
                self.payload.extend_from_slice(bytes);
                return;
            }
            Ok(Plan::Insert { .. }) => put_problem(PutError::TooLarge { limit_bytes: INSERT_MAX_BYTES as u64 }),
            Ok(Plan::Other(operation)) => {
                let detail = format!("a part that is {} has no bytes", operation.kind().as_str());
                Problem::new(StatusCode::BAD_REQUEST, "unexpected_body", detail)
            }
        };
        self.plan = Err(Box::new(problem));
        self.payload = Vec::new();
    }

    fn finish(self) -> Item {
        let Self { tag, plan, mut payload } = self;
        let operation = plan.and_then(|plan| match plan {
            Plan::Other(operation) => Ok(operation),
            Plan::Insert { length: Some(length), .. } if payload.len() as u64 != length => {
                Err(Box::new(not_as_long("the part is not as long as it says")))
            }
            Plan::Insert { sha256: Some(wanted), .. } if *Sha256::digest(&payload) != wanted => {
                Err(Box::new(put_problem(PutError::Checksum)))
            }
            Plan::Insert { key, metadata, .. } => {
                // What is counted as in flight is what is held.
                payload.shrink_to_fit();
                Ok(Operation::Insert { key, metadata, payload: payload.into() })
            }
        });
        (tag, operation.map_err(|problem| *problem))
    }
}

fn head_problem(error: HeadError) -> Problem {
    match error {
        HeadError::TooLarge => {
            let detail = format!("a part's head has at most {HEAD_MAX_BYTES} bytes and {HEAD_MAX_COUNT} fields");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "part_head_too_large", detail).with("max_bytes", HEAD_MAX_BYTES)
        }
        HeadError::Malformed => {
            Problem::new(StatusCode::BAD_REQUEST, "malformed_part_head", "a part's head is not made of header fields")
        }
    }
}

/// What a head asks for that has an operation without bytes and a key, and nothing else: most heads of a batch of gets. `None` = look at
/// all of its fields.
fn plain(head: &PartHead, tag: &mut Tag, principal: &Principal) -> Option<Result<Plan, Problem>> {
    let [op, key] = head.just([OP.as_str(), KEY.as_str()])?;
    let kind = OperationKind::parse(op).filter(|kind| *kind != OperationKind::Insert)?;
    if key.len() > 3 * PATH_MAX_BYTES || !principal.scopes.contains(kind.permission()) {
        return None;
    }
    tag.key = Some(HeaderValue::from_str(key).ok()?);
    tag.kind = Some(kind);
    Some(decoded(key.as_bytes()).map(|key| Plan::of(kind, key)))
}

/// What a head asks for.
fn plan(mut head: HeaderMap, tag: &mut Tag, principal: &Principal) -> Result<Plan, Problem> {
    // Echoed whatever it is worth, as long as it is not longer than any key.
    tag.key = head.get(&KEY).filter(|value| value.len() <= 3 * PATH_MAX_BYTES).cloned();
    let Some(op) = only(&mut head, &OP)? else {
        let detail = format!("{OP} is missing: it is insert, get, head or delete");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "missing_field", detail).with("field", OP.as_str()));
    };
    let Some(kind) = op.to_str().ok().and_then(OperationKind::parse) else {
        let detail = format!("{OP} must be insert, get, head or delete");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "unknown_operation", detail).with("field", OP.as_str()));
    };
    tag.kind = Some(kind);
    let scope = kind.permission();
    if !principal.scopes.contains(scope) {
        return Err(AuthError::ScopeMissing { scope }.into());
    }
    let key = only(&mut head, &KEY)?.map(|value| decoded(value.as_bytes())).transpose()?;
    if let Some(name) = NOT_TAKEN.iter().find(|name| head.contains_key(*name)) {
        let detail = format!("{name}: a batch takes neither conditions nor ranges");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_field", detail).with("field", name.as_str()));
    }
    if kind == OperationKind::Insert {
        let length = length(&mut head)?;
        return Ok(Plan::Insert { key, sha256: digest(&head)?, metadata: metadata(&head)?, length });
    }
    if let Some(name) = head.keys().find(|name| name.as_str().starts_with("x-tidegate-")) {
        let detail = format!("{name} is not known to {}", kind.as_str());
        return Err(Problem::new(StatusCode::BAD_REQUEST, "unknown_field", detail).with("field", name.as_str()));
    }
    let Some(key) = key else {
        let detail = format!("{KEY} is missing");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "missing_field", detail).with("field", KEY.as_str()));
    };
    Ok(Plan::of(kind, key))
}

/// How many bytes a part says that it has.
fn length(head: &mut HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = only(head, &header::CONTENT_LENGTH)? else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    match text.and_then(|text| text.parse().ok()) {
        Some(length) => Ok(Some(length)),
        None => Err(not_as_long("it is not a number of bytes")),
    }
}

fn not_as_long(what: &str) -> Problem {
    let name = header::CONTENT_LENGTH;
    Problem::new(StatusCode::BAD_REQUEST, "invalid_field", format!("{name}: {what}")).with("field", name.as_str())
}

/// Takes out a field that may be there once.
fn only(head: &mut HeaderMap, name: &HeaderName) -> Result<Option<HeaderValue>, Problem> {
    if head.get_all(name).iter().nth(1).is_some() {
        let detail = format!("{name} stands there twice");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "duplicate_field", detail).with("field", name.as_str()));
    }
    Ok(head.remove(name))
}

fn decoded(value: &[u8]) -> Result<ObjectKey, Problem> {
    let text = std::str::from_utf8(value).ok().filter(|text| is_encoded_text(text));
    let text = text.and_then(|text| percent_decode_str(text).decode_utf8().ok()).ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_name", format!("{KEY} is not percent-encoded UTF-8"))
            .with("max_bytes", PATH_MAX_BYTES)
    })?;
    key_of(&text)
}
