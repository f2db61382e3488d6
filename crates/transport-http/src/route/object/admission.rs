//! Whether an operation on objects may be done now, and how fast its bytes pass. Every route asks here before it does anything; nothing
//! waits with a lock held, and what waits is a body, never an operation.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Uri;
use http_body::{Body as _, Frame, SizeHint};
use tidegate_batch::policy::{Access, Charged, PolicyCell, Refused};
use tidegate_batch::{Collection, ObjectKey};
use tidegate_core::{Clock, Moment, Principal, Retry};

use super::place;
use crate::body::PIECE_BYTES;
use crate::gate::App;
use crate::object_limit::RATE;
use crate::problem::Problem;

/// What an operation moves: with a body it is judged by what the bodies that are on their way owe, before anything is done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moves {
    Nothing,
    Body,
}

impl Moves {
    /// What a request's body is; one that is empty is none.
    pub(super) fn with(body: &Body) -> Self {
        if body.size_hint().exact() == Some(0) { Self::Nothing } else { Self::Body }
    }
}

/// The collection of a path, if the operation may be done there.
pub(super) fn in_collection(
    app: &App,
    principal: &Principal,
    uri: &Uri,
    access: Access,
    moves: Moves,
) -> Result<Collection, Problem> {
    let collection = place::in_collection(principal, uri)?;
    admit(&app.services.object_policy, app.services.clock.as_ref(), &collection, access, moves)?;
    Ok(collection)
}

/// The object of a path, if the operation may be done to it.
pub(super) fn object(
    app: &App,
    principal: &Principal,
    uri: &Uri,
    access: Access,
    moves: Moves,
) -> Result<(Collection, ObjectKey), Problem> {
    let (collection, key) = place::object(principal, uri)?;
    admit(&app.services.object_policy, app.services.clock.as_ref(), &collection, access, moves)?;
    Ok((collection, key))
}

fn admit(
    policy: &PolicyCell,
    clock: &dyn Clock,
    collection: &Collection,
    access: Access,
    moves: Moves,
) -> Result<(), Problem> {
    let admitted = match moves {
        Moves::Nothing => policy.admit(clock.now(), collection, access),
        Moves::Body => policy.admit_body(clock.now(), collection, access),
    };
    admitted.map_err(|refused| problem(&refused))
}

/// What decides for one collection.
#[derive(Clone)]
pub(super) struct Admission {
    policy: Arc<PolicyCell>,
    clock: Arc<dyn Clock>,
    collection: Collection,
}

impl Admission {
    pub(super) fn of(app: &App, collection: &Collection) -> Self {
        Self {
            policy: Arc::clone(&app.services.object_policy),
            clock: Arc::clone(&app.services.clock),
            collection: collection.clone(),
        }
    }

    /// Whether one operation may be done; it counts if so.
    pub(super) fn admit(&self, access: Access) -> Result<(), Problem> {
        admit(&self.policy, self.clock.as_ref(), &self.collection, access, Moves::Nothing)
    }

    /// What holds a body back whose bytes are limited. `length` is how many it has, where that is known. Refused while too much is owed.
    pub(super) fn shape(&self, length: Option<u64>) -> Result<Option<Shape>, Problem> {
        let Some(first) = self.first_piece(length) else { return Ok(None) };
        let charged = self.policy.begin(self.clock.now(), &self.collection, first);
        Ok(Some(self.paid(first, charged.map_err(|refused| problem(&refused))?)))
    }

    /// The same for the body of an operation that was admitted with it.
    pub(super) fn shape_admitted(&self, length: Option<u64>) -> Option<Shape> {
        let first = self.first_piece(length)?;
        Some(self.paid(first, self.policy.charge(self.clock.now(), &self.collection, first)))
    }

    /// What holds back the answer to what is being read already, whose length nobody knows.
    pub(super) fn shape_answer(&self) -> Option<Shape> {
        let shaped = self.policy.is_shaped(&self.collection);
        shaped.then(|| Shape { admission: self.clone(), paid: 0, owed: 0, charged: None, ready: Moment::ORIGIN })
    }

    /// What is charged of a body before it comes; `None` = its bytes are not limited.
    fn first_piece(&self, length: Option<u64>) -> Option<u64> {
        let shaped = length != Some(0) && self.policy.is_shaped(&self.collection);
        shaped.then(|| (PIECE_BYTES as u64).min(length.unwrap_or(u64::MAX)))
    }

    fn paid(&self, first: u64, charged: Charged) -> Shape {
        let ready = self.clock.now().after(charged.wait);
        Shape { admission: self.clone(), paid: first, owed: first, charged: Some(charged), ready }
    }
}

/// Holds one body back. Who reads it asks for a piece when the last has passed: it owes one piece at most, and none when it is dropped.
pub(super) struct Shape {
    admission: Admission,
    /// Bytes that were charged and have not come yet.
    paid: u64,
    /// Bytes that were charged as `charged` and have not passed: those that have not come, and those that wait.
    owed: u64,
    charged: Option<Charged>,
    /// When those that were charged may pass.
    ready: Moment,
}

impl Shape {
    /// Charges a piece; gives how long to wait before it is passed on, if at all. After the wait it [has passed](Self::passed).
    fn charge(&mut self, bytes: usize) -> Option<BoxFuture<'static, ()>> {
        let bytes = bytes as u64;
        let (policy, clock) = (&self.admission.policy, &self.admission.clock);
        let now = clock.now();
        let more = bytes.saturating_sub(self.paid);
        self.paid = self.paid.saturating_sub(bytes);
        if more > 0 {
            let charged = policy.charge(now, &self.admission.collection, more);
            // What was charged under other rules is owed no more.
            let before = if self.charged.is_some_and(|before| before.is_with(charged)) { self.owed } else { 0 };
            self.owed = before.saturating_add(more);
            self.charged = Some(charged);
            self.ready = self.ready.max(now.after(charged.wait));
        }
        if self.ready <= now {
            self.passed();
            return None;
        }
        let (clock, ready) = (Arc::clone(clock), self.ready);
        Some(async move { clock.sleep_until(ready).await }.boxed())
    }

    /// What has come has passed.
    fn passed(&mut self) {
        self.owed = self.owed.min(self.paid);
    }

    /// Waits until so many bytes may be passed on.
    pub(super) async fn pass(&mut self, bytes: usize) {
        if let Some(wait) = self.charge(bytes) {
            wait.await;
            self.passed();
        }
    }
}

impl Drop for Shape {
    fn drop(&mut self) {
        let Admission { policy, clock, collection } = &self.admission;
        if let Some(charged) = self.charged
            && self.owed > 0
        {
            policy.give_back(clock.now(), collection, self.owed, charged);
        }
    }
}

/// An answer to an operation that was admitted with its body, its bytes held back where they are limited.
pub(super) fn shaped(app: &App, collection: &Collection, response: Response) -> Response {
    if !app.services.object_policy.is_shaped(collection) {
        return response;
    }
    let shape = Admission::of(app, collection).shape_admitted(response.body().size_hint().exact());
    held_back(response, shape)
}

/// An answer with its bytes held back.
pub(super) fn held_back(response: Response, shape: Option<Shape>) -> Response {
    match shape {
        None => response,
        Some(shape) => response.map(|body| Body::new(ShapedBody { body, shape, held: None })),
    }
}

/// A body, each piece of which waits for its bytes.
struct ShapedBody {
    body: Body,
    shape: Shape,
    held: Option<(Frame<Bytes>, BoxFuture<'static, ()>)>,
}

impl http_body::Body for ShapedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let shaped = self.get_mut();
        if shaped.held.is_none() {
            let frame = match ready!(Pin::new(&mut shaped.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match shaped.shape.charge(bytes) {
                None => return Poll::Ready(Some(Ok(frame))),
                Some(wait) => shaped.held = Some((frame, wait)),
            }
        }
        if let Some((_, wait)) = &mut shaped.held {
            ready!(wait.poll_unpin(context));
            shaped.shape.passed();
        }
        Poll::Ready(shaped.held.take().map(|(frame, _)| Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.as_ref().and_then(|(frame, _)| frame.data_ref()).map_or(0, Bytes::len) as u64;
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(hint.lower().saturating_add(held));
        hint
    }
}

/// Why an operation may not be done, with what a client needs to come back in time. Which rule it was is for the operator alone; and where
/// other tenants use the same bucket the wait is told in whole seconds, so that it does not say what they do.
fn problem(refused: &Refused) -> Problem {
    let problem = Problem::of(refused);
    let (reason, problem) = match refused {
        Refused::Requests { rule, rate, wait, shared } => {
            tracing::debug!(rule, key = RATE, "an operation on objects is refused for its rate");
            ("requests", limited(problem, *wait, *shared, rate.per_second, "requests_per_second"))
        }
        Refused::Bytes { rule, rate, wait, shared } => {
            tracing::debug!(rule, key = RATE, "a body of objects is refused for what the others owe");
            ("bytes", limited(problem, *wait, *shared, rate.per_second, "bytes_per_second"))
        }
        _ => ("disabled", problem),
    };
    metrics::counter!("tidegate_object_refused_total", "reason" => reason).increment(1);
    problem
}

fn limited(problem: Problem, wait: Duration, shared: bool, limit: u64, unit: &str) -> Problem {
    let rounded = Duration::from_secs(u64::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX));
    let wait = if shared { rounded } else { wait };
    problem.with_retry(Retry::After(wait)).with("limit", limit).with("unit", unit)
}
