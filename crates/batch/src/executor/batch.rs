//! One batch: a window that was reserved, then the stream of results. It reads its input only when it is read itself, and only
//! while a place of its window is free.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use futures::{FutureExt as _, Stream};
use tokio::task::coop;

use super::flight::{Ended, Flight, HeldBytes, Place, SharedFlight, View};
use super::metric::{self, KindCounters};
use super::{AtCapacity, Held, ItemError, Operate, Work};
use crate::window::Sample;

/// Room for one batch. Dropped unused, it gives the room back.
#[must_use = "the room is given back when this is dropped"]
pub struct Reservation {
    held: Held,
}

impl Reservation {
    pub(super) fn new(held: Held) -> Self {
        Self { held }
    }

    /// How many operations of this batch may be in flight, or wait with their result to be taken, at one time.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.held.permits()
    }

    /// The results of running what comes out of `input`, in the order in which they are ready, each with the tag that its operation
    /// came with (an index, or whatever tells them apart). Errors of the input are passed through in passing.
    ///
    /// Nothing happens until the stream is read. It must be read within a tokio runtime, to which the operations are given; it
    /// panics elsewhere, as `tokio::spawn` does. A panic of `input` itself is the reader's, as it runs in the reader's task.
    pub fn run<S, T, W, I, P>(self, input: S, operate: P) -> Batch<S, T, W, P>
    where
        S: Stream<Item = (T, Result<W, I>)>,
        T: Send + 'static,
        W: Work,
        P: Operate<W>,
    {
        self.run_shared(input, Arc::new(operate))
    }

    /// The same, by what runs other batches too.
    pub fn run_shared<S, T, W, I, P>(self, input: S, operate: Arc<P>) -> Batch<S, T, W, P>
    where
        S: Stream<Item = (T, Result<W, I>)>,
        T: Send + 'static,
        W: Work,
        P: Operate<W>,
    {
        Batch {
            input: Some(Box::pin(input)),
            view: View { limit: 0, era: 0, blocked: false, done: 0 },
            flight: Flight::new(self.held, operate),
            begun: 0,
            yielded: 0,
            ready: VecDeque::new(),
            after_refusal: false,
            waited: false,
            counters: KindCounters::default(),
            ended: false,
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("window", &self.window()).finish_non_exhaustive()
    }
}

/// What comes of one operation.
type Outcome<W, P> = Result<<P as Operate<W>>::Output, Ended<<P as Operate<W>>::Error>>;

/// One item of a [`Batch`]: the tag, and the result.
pub type Item<T, W, P, I> = (T, Result<<P as Operate<W>>::Output, ItemError<<P as Operate<W>>::Error, I>>);

/// The results of one batch, a [`Stream`]. Made by [`Reservation::run`].
///
/// Dropped early, it drops the input unread; operations that were begun run to their end, and the room of the batch is given back
/// when the last one has ended.
#[must_use = "a batch does nothing until it is read"]
pub struct Batch<S, T, W: Work, P: Operate<W>> {
    /// `None` when it has ended.
    input: Option<Pin<Box<S>>>,
    flight: SharedFlight<P, T, P::Output, P::Error>,
    /// How `flight` was found last.
    view: View,
    /// Operations that were begun.
    begun: u64,
    /// Those of them whose result was handed out.
    yielded: u64,
    /// Results that were taken from `flight` and not handed out.
    ready: VecDeque<(T, Outcome<W, P>)>,
    /// What was handed out last had not been begun: a result goes first now, so that a flood of bad items holds none up.
    after_refusal: bool,
    /// The reader left its waker and went to sleep.
    waited: bool,
    counters: KindCounters,
    ended: bool,
}

impl<S, T, W, I, P> Stream for Batch<S, T, W, P>
where
    S: Stream<Item = (T, Result<W, I>)>,
    T: Send + 'static,
    W: Work,
    P: Operate<W>,
{
    type Item = Item<T, W, P, I>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let budget = ready!(coop::poll_proceed(context));
        let polled = self.get_mut().step(context);
        if polled.is_ready() {
            budget.made_progress();
        }
        polled
    }
}

// The input is boxed, nothing else is pinned.
impl<S, T, W: Work, P: Operate<W>> Unpin for Batch<S, T, W, P> {}

impl<S, T, W, I, P> Batch<S, T, W, P>
where
    S: Stream<Item = (T, Result<W, I>)>,
    T: Send + 'static,
    W: Work,
    P: Operate<W>,
{
    fn step(&mut self, context: &mut Context<'_>) -> Poll<Option<Item<T, W, P, I>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // While results are at hand the last view will do: the operations are not held up by a lock for each item.
        let mut view = if self.ready.is_empty() { self.flight.view() } else { self.view };
        if std::mem::take(&mut self.waited) && view.done > 0 && view.done * 2 < self.in_flight() {
            // Woken by the first of many: what else is about to end may do so before the reader goes on, else it would be woken
            // for every one. It costs one round of the runtime's queue, once a result that is taken after it.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if self.ready.is_empty() && view.done > 0 {
                self.flight.take(&mut self.ready);
                view.done = 0;
            }
            self.view = view;
            if self.after_refusal
                && let Some(item) = self.hand_out()
            {
                return Poll::Ready(Some(item));
            }
            let unbegun = self.read(&mut view, context);
            self.view = view;
            if let Some(item) = unbegun {
                self.after_refusal = true;
                return Poll::Ready(Some(item));
            }
            if let Some(item) = self.hand_out() {
                return Poll::Ready(Some(item));
            }
            if self.input.is_none() && self.outstanding() == 0 {
                self.close();
                return Poll::Ready(None);
            }
            if self.flight.wait(&view, context.waker()) {
                self.waited = true;
                return Poll::Pending;
            }
            view = self.flight.view();
        }
    }

    /// Begins what the input has ready and the window has places for. Gives an item that is not begun.
    fn read(&mut self, view: &mut View, context: &mut Context<'_>) -> Option<Item<T, W, P, I>> {
        while !view.blocked && self.outstanding() < u64::from(view.limit) {
            let input = self.input.as_mut()?;
            match input.as_mut().poll_next(context) {
                Poll::Pending => return None,
                Poll::Ready(None) => self.input = None,
                Poll::Ready(Some((tag, Err(error)))) => return Some((tag, Err(ItemError::Input(error)))),
                Poll::Ready(Some((tag, Ok(work)))) => match self.begin(tag, work, view.era) {
                    Ok(blocked) => view.blocked = blocked,
                    Err((tag, refused)) => return Some((tag, Err(refused))),
                },
            }
        }
        None
    }

    /// Gives an operation to a task of its own, in this era of the window. `Ok(true)` when it waits there for bytes.
    fn begin(&mut self, tag: T, work: W, era: u64) -> Result<bool, (T, ItemError<P::Error, I>)> {
        let core = &self.flight.core;
        if !core.rank.may_wait() {
            metric::refused("nested");
            return Err((tag, ItemError::Nested(AtCapacity::Nested)));
        }
        let operate = &self.flight.operate;
        let asked = catch_unwind(AssertUnwindSafe(|| (work.kind(), work.weight_bytes(), operate.is_at_hand(&work))));
        let Ok((kind, weight_bytes, at_hand)) = asked else {
            metric::panicked("unknown");
            return Err((tag, ItemError::Panicked));
        };
        let max_bytes = core.limits.bytes_in_flight;
        if weight_bytes > max_bytes {
            metric::refused("bytes");
            return Err((tag, ItemError::TooLarge { weight_bytes, max_bytes }));
        }
        let kind = self.counters.begun(&core.kinds, kind);
        let limits = core.limits;
        let units = weight_bytes.div_ceil(limits.unit()).min(limits.units());
        let units = u32::try_from(units).expect("at most 2^28 units");
        let admission = if units == 0 {
            Admission::Free
        } else if let Ok(permit) = core.bytes.try_acquire_many(units) {
            permit.forget();
            Admission::Held(HeldBytes::new(Arc::clone(core), units, weight_bytes))
        } else {
            self.flight.block();
            Admission::Waits { units, weight_bytes }
        };
        let waits = matches!(admission, Admission::Waits { .. });
        let place = Place::new(&self.flight, tag);
        let rank = core.rank;
        self.begun += 1;
        let in_flight = u32::try_from(self.in_flight()).unwrap_or(u32::MAX);
        let operation = rank.within(run(place, work, admission, kind, (in_flight, era)));
        // It is on its own from here.
        if !at_hand || waits {
            tokio::spawn(operation);
            return Ok(waits);
        }
        let mut operation = Box::pin(operation);
        // Whom it would wake does not matter: a task looks at it again when it has to wait.
        if operation.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::spawn(operation);
        }
        Ok(false)
    }

    fn hand_out(&mut self) -> Option<Item<T, W, P, I>> {
        let (tag, outcome) = self.ready.pop_front()?;
        self.yielded += 1;
        self.after_refusal = false;
        let result = outcome.map_err(|ended| match ended {
            Ended::Failed(error) => ItemError::Failed(error),
            Ended::Panicked => ItemError::Panicked,
            Ended::Cancelled => ItemError::Cancelled,
        });
        Some((tag, result))
    }
}

impl<S, T, W: Work, P: Operate<W>> Batch<S, T, W, P> {
    /// How many places of the window are taken: in flight, or with a result that waits.
    fn outstanding(&self) -> u64 {
        self.begun - self.yielded
    }

    /// How many of them run, or have ended since it was looked at last.
    fn in_flight(&self) -> usize {
        usize::try_from(self.outstanding()).unwrap_or(usize::MAX) - self.ready.len()
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.flight.close(self.begun);
        }
    }
}

impl<S, T, W: Work, P: Operate<W>> Drop for Batch<S, T, W, P> {
    fn drop(&mut self) {
        // First the room: what is dropped after this is the caller's and may panic.
        self.close();
    }
}

impl<S, T, W: Work, P: Operate<W>> fmt::Debug for Batch<S, T, W, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { begun, yielded, ended, .. } = self;
        f.debug_struct("Batch")
            .field("begun", begun)
            .field("yielded", yielded)
            .field("ended", ended)
            .finish_non_exhaustive()
    }
}

/// How an operation stands with the bytes in flight.
enum Admission {
    /// It weighs nothing.
    Free,
    /// It holds its bytes.
    Held(HeldBytes),
    /// It will wait for them.
    Waits { units: u32, weight_bytes: u64 },
}

/// One operation in its task: waits for bytes if it must, runs, gives the bytes back, lands.
///
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` keeps its arguments twice, and this is moved with each operation"
)]
fn run<T, W, P>(
    place: Place<P, T, P::Output, P::Error>,
    work: W,
    admission: Admission,
    kind: &'static str,
    (in_flight, era): (u32, u64),
) -> impl Future<Output = ()> + Send
where
    T: Send + 'static,
    W: Work,
    P: Operate<W>,
{
    async move {
        let core = &place.flight.core;
        let bytes = match admission {
            Admission::Free => None,
            Admission::Held(bytes) => Some(bytes),
            Admission::Waits { units, weight_bytes } => {
                core.bytes.acquire_many(units).await.expect("it is never closed").forget();
                place.unblock();
                Some(HeldBytes::new(Arc::clone(core), units, weight_bytes))
            }
        };
        let clock = core.adaptive.as_ref().map(|adaptive| &adaptive.clock);
        let begun = clock.map(|clock| clock.now());
        let operate = &*place.flight.operate;
        // The operation is dropped within, so that a panic of its drop is its own too. Boxed here, in its task: the reader then
        // moves little with each operation, however large the future of the backend is.
        let operation = AssertUnwindSafe(Box::pin(async move {
            let result = operate.operate(work).await;
            let overload = result.as_ref().is_err_and(|error| operate.is_overload(error));
            (result, overload)
        }));
        let (result, sample) = match operation.catch_unwind().await {
            Ok((Ok(output), _)) => {
                let sample = clock.zip(begun).map(|(clock, begun)| {
                    let latency = clock.now().saturating_since(begun);
                    Sample::Served { latency, in_flight, era }
                });
                (Ok(output), sample)
            }
            Ok((Err(error), overload)) => (Err(Ended::Failed(error)), overload.then_some(Sample::Overloaded { era })),
            Err(payload) => {
                metric::panicked(kind);
                discard(payload);
                (Err(Ended::Panicked), None)
            }
        };
        drop(bytes);
        place.land(result, sample);
    }
}

/// Drops what a panic carried, of which nobody is told. Its drop may panic in turn, with something whose drop panics: that
/// is let go.
fn discard(payload: Box<dyn std::any::Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
}
