//! Whether an operation on objects may be done now, and how fast its bytes pass. Every route asks here before it does anything; nothing
//! waits with a lock held, and what waits is a body, never an operation.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Uri;
use http_body::{Body as _, Frame, SizeHint};
use tidegate_batch::policy::{Access, PolicyCell, Refused};
use tidegate_batch::{Collection, ObjectKey};
use tidegate_core::{Clock, Moment, Principal};

use super::place;
use crate::body::PIECE_BYTES;
use crate::gate::App;
use crate::object_limit::RATE;
use crate::problem::Problem;

/// The collection of a path, if the operation may be done there.
pub(super) fn in_collection(
    app: &App,
    principal: &Principal,
    uri: &Uri,
    access: Access,
) -> Result<Collection, Problem> {
    let collection = place::in_collection(principal, uri)?;
    admit(&app.services.object_policy, app.services.clock.as_ref(), &collection, access)?;
    Ok(collection)
}

/// The object of a path, if the operation may be done to it.
pub(super) fn object(
    app: &App,
    principal: &Principal,
    uri: &Uri,
    access: Access,
) -> Result<(Collection, ObjectKey), Problem> {
    let (collection, key) = place::object(principal, uri)?;
    admit(&app.services.object_policy, app.services.clock.as_ref(), &collection, access)?;
    Ok((collection, key))
}

fn admit(policy: &PolicyCell, clock: &dyn Clock, collection: &Collection, access: Access) -> Result<(), Problem> {
    policy.admit(clock.now(), collection, access).map_err(|refused| problem(&refused))
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
        admit(&self.policy, self.clock.as_ref(), &self.collection, access)
    }

    /// What holds a body back whose bytes are limited. `length` is how many it has, where that is known. Refused while too much is owed.
    pub(super) fn shape(&self, length: Option<u64>) -> Result<Option<Shape>, Problem> {
        if length == Some(0) || !self.policy.is_shaped(&self.collection) {
            return Ok(None);
        }
        let first = (PIECE_BYTES as u64).min(length.unwrap_or(u64::MAX));
        let now = self.clock.now();
        let wait = self.policy.begin(now, &self.collection, first).map_err(|refused| problem(&refused))?;
        Ok(Some(Shape { admission: self.clone(), paid: first, ready: now.after(wait) }))
    }

    /// The same for the body of an operation that was admitted: if it may not begin, the operation has not been one.
    pub(super) fn shape_or_withdraw(&self, length: Option<u64>) -> Result<Option<Shape>, Problem> {
        self.shape(length).inspect_err(|_| self.policy.withdraw(self.clock.now(), &self.collection))
    }

    /// What holds back the answer to what is being read already, whose length nobody knows.
    pub(super) fn shape_answer(&self) -> Option<Shape> {
        let shaped = self.policy.is_shaped(&self.collection);
        shaped.then(|| Shape { admission: self.clone(), paid: 0, ready: Moment::ORIGIN })
    }
}

/// Holds one body back.
pub(super) struct Shape {
    admission: Admission,
    /// Bytes that were charged and have not come yet.
    paid: u64,
    /// When those that were charged may pass.
    ready: Moment,
}

impl Shape {
    /// Charges a piece; gives how long to wait before it is passed on, if at all.
    fn charge(&mut self, bytes: usize) -> Option<BoxFuture<'static, ()>> {
        let bytes = bytes as u64;
        let (policy, clock) = (&self.admission.policy, &self.admission.clock);
        let now = clock.now();
        let more = bytes.saturating_sub(self.paid);
        self.paid = self.paid.saturating_sub(bytes);
        if more > 0 {
            let wait = policy.charge(now, &self.admission.collection, more);
            self.ready = self.ready.max(now.after(wait));
        }
        if self.ready <= now {
            return None;
        }
        let (clock, ready) = (Arc::clone(clock), self.ready);
        Some(async move { clock.sleep_until(ready).await }.boxed())
    }

    /// Waits until so many bytes may be passed on.
    pub(super) async fn pass(&mut self, bytes: usize) {
        if let Some(wait) = self.charge(bytes) {
            wait.await;
        }
    }
}

impl Drop for Shape {
    fn drop(&mut self) {
        let Admission { policy, clock, collection } = &self.admission;
        if self.paid > 0 {
            policy.give_back(clock.now(), collection, self.paid);
        }
    }
}

/// An answer to an operation that was admitted, its bytes held back where they are limited.
pub(super) fn shaped(app: &App, collection: &Collection, response: Response) -> Result<Response, Problem> {
    if !app.services.object_policy.is_shaped(collection) {
        return Ok(response);
    }
    let shape = Admission::of(app, collection).shape_or_withdraw(response.body().size_hint().exact())?;
    Ok(held_back(response, shape))
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

/// Why an operation may not be done, with what a client needs to come back in time.
fn problem(refused: &Refused) -> Problem {
    let problem = Problem::of(refused);
    let (reason, problem) = match refused {
        Refused::Requests { rule, rate, .. } => {
            ("requests", limited(problem, *rule, rate.per_second, "requests_per_second"))
        }
        Refused::Bytes { rule, rate, .. } => ("bytes", limited(problem, *rule, rate.per_second, "bytes_per_second")),
        _ => ("disabled", problem),
    };
    metrics::counter!("tidegate_object_refused_total", "reason" => reason).increment(1);
    problem
}

fn limited(problem: Problem, rule: usize, limit: u64, unit: &str) -> Problem {
    problem.with("limit", limit).with("unit", unit).with("rule", format!("{RATE}[{rule}]"))
}
