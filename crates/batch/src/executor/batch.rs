//! One batch: a window that was reserved, then the stream of results. It reads its input only when it is read itself, and only
//! while a place of its window is free.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::{FutureExt as _, Stream};
use tokio::task::coop;

use super::flight::{Flight, HeldBytes, Place, View};
use super::metric::{self, KindCounters};
use super::{AtCapacity, Core, Held, ItemError, Operate, Work};
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
            operate,
            core: Arc::clone(self.held.core()),
            flight: Flight::new(self.held),
            begun: 0,
            yielded: 0,
            ready: VecDeque::new(),
            after_refusal: false,
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

/// Why an operation that was begun has no output.
pub(super) enum Ended<E> {
    Failed(E),
    Panicked,
    Cancelled,
}

/// The results of one batch, a [`Stream`]. Made by [`Reservation::run`].
///
/// Dropped early, it drops the input unread; operations that were begun run to their end, and the room of the batch is given back
/// when the last one has ended.
#[must_use = "a batch does nothing until it is read"]
pub struct Batch<S, T, W: Work, P: Operate<W>> {
    /// `None` when it has ended.
    input: Option<Pin<Box<S>>>,
    operate: Arc<P>,
    core: Arc<Core>,
    flight: Arc<Flight<(T, Outcome<W, P>)>>,
    /// Operations that were begun.
    begun: u64,
    /// Those of them whose result was handed out.
    yielded: u64,
    /// Results that were taken from `flight` and not handed out.
    ready: VecDeque<(T, Outcome<W, P>)>,
    /// What was handed out last had not been begun: a result goes first now, so that a flood of bad items holds none up.
    after_refusal: bool,
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
        let mut view = self.look();
        loop {
            if self.after_refusal
                && let Some(item) = self.hand_out()
            {
                return Poll::Ready(Some(item));
            }
            if let Some(item) = self.read(&mut view, context) {
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
                return Poll::Pending;
            }
            view = self.look();
        }
    }

    /// What has changed in flight.
    fn look(&mut self) -> View {
        if self.ready.is_empty() { self.flight.take(&mut self.ready) } else { self.flight.view() }
    }

    /// Begins what the input has ready and the window has places for. Gives an item that is not begun.
    fn read(&mut self, view: &mut View, context: &mut Context<'_>) -> Option<Item<T, W, P, I>> {
        while !view.blocked && self.outstanding() < u64::from(view.limit) {
            let input = self.input.as_mut()?;
            match input.as_mut().poll_next(context) {
                Poll::Pending => return None,
                Poll::Ready(None) => self.input = None,
                Poll::Ready(Some((tag, Err(error)))) => return Some((tag, Err(ItemError::Input(error)))),
                Poll::Ready(Some((tag, Ok(work)))) => match self.begin(tag, work) {
                    Ok(blocked) => view.blocked = blocked,
                    Err((tag, refused)) => return Some((tag, Err(refused))),
                },
            }
        }
        None
    }

    /// Gives an operation to a task of its own. `Ok(true)` when it waits there for bytes.
    fn begin(&mut self, tag: T, work: W) -> Result<bool, (T, ItemError<P::Error, I>)> {
        let core = &self.core;
        if !core.rank.may_wait() {
            metric::refused("nested");
            return Err((tag, ItemError::Nested(AtCapacity::Nested)));
        }
        let Ok((kind, weight_bytes)) = catch_unwind(AssertUnwindSafe(|| (work.kind(), work.weight_bytes()))) else {
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
        let bytes = match core.bytes.try_acquire_many(units) {
            Ok(permit) => {
                permit.forget();
                (units > 0).then(|| HeldBytes::new(Arc::clone(core), units, weight_bytes))
            }
            Err(_) => None,
        };
        let waits = units > 0 && bytes.is_none();
        if waits {
            self.flight.block();
        }
        let waits = waits.then_some((units, weight_bytes));
        self.begun += 1;
        let in_flight = u32::try_from(self.outstanding() - self.ready.len() as u64).unwrap_or(u32::MAX);
        let place = Place::new(Arc::clone(&self.flight), tag, Err(Ended::Cancelled));
        let task = Task { place, core: Arc::clone(core), operate: Arc::clone(&self.operate), kind, in_flight };
        // The task is on its own from here.
        tokio::spawn(core.rank.within(task.run(work, bytes, waits)));
        Ok(waits.is_some())
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

/// One operation in its task.
struct Task<T, W: Work, P: Operate<W>> {
    place: Place<T, Outcome<W, P>>,
    core: Arc<Core>,
    operate: Arc<P>,
    kind: &'static str,
    in_flight: u32,
}

impl<T: Send + 'static, W: Work, P: Operate<W>> Task<T, W, P> {
    /// Waits for bytes if it must (`waits`: units and bytes), runs, gives the bytes back, lands.
    async fn run(self, work: W, mut bytes: Option<HeldBytes>, waits: Option<(u32, u64)>) {
        let Self { place, core, operate, kind, in_flight } = self;
        if let Some((units, weight_bytes)) = waits {
            core.bytes.acquire_many(units).await.expect("it is never closed").forget();
            bytes = Some(HeldBytes::new(Arc::clone(&core), units, weight_bytes));
            place.unblock();
        }
        let clock = core.adaptive.as_ref().map(|adaptive| &adaptive.clock);
        let begun = clock.map(|clock| clock.now());
        // All that is the caller's is dropped within, so that a panic of a drop is the operation's too.
        let run = AssertUnwindSafe(async move {
            let result = operate.operate(work).await;
            let overload = result.as_ref().is_err_and(|error| operate.is_overload(error));
            (result, overload)
        });
        let (result, sample) = match run.catch_unwind().await {
            Ok((Ok(output), _)) => {
                let sample = clock.zip(begun).map(|(clock, begun)| {
                    let latency = clock.now().saturating_since(begun);
                    Sample::Served { latency, in_flight }
                });
                (Ok(output), sample)
            }
            Ok((Err(error), overload)) => (Err(Ended::Failed(error)), overload.then_some(Sample::Overloaded)),
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
