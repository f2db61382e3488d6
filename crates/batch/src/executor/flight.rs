//! What a batch has in flight, shared by its reader and its operations' tasks. The window goes back when the reader is gone
//! and the last operation has ended, never earlier. No lock is held while somebody else's code runs.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;

use super::{Core, Held};
use crate::window::{Sample, Vegas};

/// One batch in flight: what runs its operations, and its items' results, `R`, until they are taken.
pub(super) struct Flight<P, R> {
    pub(super) core: Arc<Core>,
    pub(super) operate: Arc<P>,
    state: Mutex<State<R>>,
}

struct State<R> {
    /// Ended and not yet taken. Bounded by the window, as each holds one of its places.
    done: VecDeque<R>,
    /// How many operations have ended.
    landed: u64,
    /// How many were begun in all, once the reader is gone: `landed` grows to it.
    begun: Option<u64>,
    /// One operation waits for bytes: nothing more is read until it has them.
    blocked: bool,
    /// The reader, when it waits.
    reader: Option<Waker>,
    window: Option<Vegas>,
    limit: u32,
    held: Option<Held>,
}

/// What the reader needs to know of its operations.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub(super) limit: u32,
    /// Of the window, when it had this limit.
    pub(super) era: u64,
    pub(super) blocked: bool,
    /// Results that have not been taken yet.
    pub(super) done: usize,
}

/// Why an operation that was begun has no output.
pub(super) enum Ended<E> {
    Failed(E),
    Panicked,
    Cancelled,
}

impl<P, R> Flight<P, R> {
    pub(super) fn new(held: Held, operate: Arc<P>) -> Arc<Self> {
        let core = Arc::clone(held.core());
        let window = held.window();
        let limit = window.as_ref().map_or(held.permits(), Vegas::limit);
        let state = State {
            done: VecDeque::new(),
            landed: 0,
            begun: None,
            blocked: false,
            reader: None,
            window,
            limit,
            held: Some(held),
        };
        Arc::new(Self { core, operate, state: Mutex::new(state) })
    }

    /// Moves what has ended into `taken`, which is empty.
    pub(super) fn take(&self, taken: &mut VecDeque<R>) {
        mem::swap(&mut self.state.lock().done, taken);
    }

    /// How much may be in flight.
    pub(super) fn view(&self) -> View {
        let state = self.state.lock();
        let era = state.window.as_ref().map_or(0, Vegas::era);
        View { limit: state.limit, era, blocked: state.blocked, done: state.done.len() }
    }

    /// Leaves a waker, unless something has happened since `seen`: then `false`.
    pub(super) fn wait(&self, seen: &View, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if !state.done.is_empty() || state.blocked != seen.blocked || state.limit != seen.limit {
            return false;
        }
        match &mut state.reader {
            Some(reader) => reader.clone_from(waker),
            None => state.reader = Some(waker.clone()),
        }
        true
    }

    /// An operation was read for which there are not enough bytes now.
    pub(super) fn block(&self) {
        self.state.lock().blocked = true;
    }

    /// It has them.
    fn unblock(&self) {
        let reader = {
            let mut state = self.state.lock();
            state.blocked = false;
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// One operation has ended.
    fn land(&self, result: R, sample: Option<Sample>) {
        let mut state = self.state.lock();
        state.landed += 1;
        if let (Some(window), Some(sample)) = (&mut state.window, sample) {
            state.limit = window.apply(sample);
        }
        if state.begun.is_some() {
            let held = state.release();
            drop(state);
            drop((result, held));
            return;
        }
        state.done.push_back(result);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The reader is gone; it had begun so many operations.
    pub(super) fn close(&self, begun: u64) {
        let mut state = self.state.lock();
        state.begun = Some(begun);
        let done = mem::take(&mut state.done);
        let reader = state.reader.take();
        let held = state.release();
        drop(state);
        drop((done, reader, held));
    }
}

impl<R> State<R> {
    /// The window, when nobody needs it any more.
    fn release(&mut self) -> Option<Held> {
        if self.begun != Some(self.landed) {
            return None;
        }
        if let (Some(held), Some(window)) = (&self.held, self.window.take()) {
            held.learn(window);
        }
        self.held.take()
    }
}

/// A batch in flight whose items have a tag, and an output or why there is none.
pub(super) type SharedFlight<P, T, O, E> = Arc<Flight<P, (T, Result<O, Ended<E>>)>>;

/// The place of one operation. Whatever becomes of its task, the place is landed once.
pub(super) struct Place<P, T, O, E> {
    pub(super) flight: SharedFlight<P, T, O, E>,
    /// `None` once it was landed.
    tag: Option<T>,
}

impl<P, T, O, E> Place<P, T, O, E> {
    pub(super) fn new(flight: &SharedFlight<P, T, O, E>, tag: T) -> Self {
        Self { flight: Arc::clone(flight), tag: Some(tag) }
    }

    /// Its operation has the bytes that it waited for.
    pub(super) fn unblock(&self) {
        self.flight.unblock();
    }

    pub(super) fn land(mut self, result: Result<O, Ended<E>>, sample: Option<Sample>) {
        if let Some(tag) = self.tag.take() {
            self.flight.land((tag, result), sample);
        }
    }
}

impl<P, T, O, E> Drop for Place<P, T, O, E> {
    fn drop(&mut self) {
        if let Some(tag) = self.tag.take() {
            // It may have been the one that waited for bytes.
            self.flight.unblock();
            self.flight.land((tag, Err(Ended::Cancelled)), None);
        }
    }
}

/// Bytes that an operation holds.
pub(super) struct HeldBytes {
    core: Arc<Core>,
    units: u32,
    weight_bytes: u64,
}

impl HeldBytes {
    /// Counts bytes whose units were taken from the executor's semaphore.
    pub(super) fn new(core: Arc<Core>, units: u32, weight_bytes: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        super::metric::bytes(weight_bytes as f64);
        Self { core, units, weight_bytes }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.core.bytes.add_permits(self.units as usize);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        super::metric::bytes(-(self.weight_bytes as f64));
    }
}
