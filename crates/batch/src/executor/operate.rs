//! What the executor asks of operations and of who runs them. It runs none.

use std::future::Future;

use crate::operation::Operation;

/// One operation, as the executor sees it. Both answers must be quick; they are asked once, before the operation begins.
pub trait Work: Send + 'static {
    /// What it does, as a label of metrics: a name known beforehand, never a key. An executor tells
    /// [`KIND_MAX_COUNT`](super::KIND_MAX_COUNT) apart, the rest are counted as `other`.
    fn kind(&self) -> &'static str;
    /// How many bytes it holds while it runs, such as its payload. They are counted from before it begins until it has ended.
    fn weight_bytes(&self) -> u64;
}

impl Work for Operation {
    fn kind(&self) -> &'static str {
        Self::kind(self).as_str()
    }

    fn weight_bytes(&self) -> u64 {
        self.payload_bytes()
    }
}

/// An operation of a foreign type that weighs nothing, and of whose kind nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unweighed<O>(
    /// The operation.
    pub O,
);

impl<O: Send + 'static> Work for Unweighed<O> {
    fn kind(&self) -> &'static str {
        "operation"
    }

    fn weight_bytes(&self) -> u64 {
        0
    }
}

/// What runs operations: a store, a service. Every `Fn(W) -> impl Future<Output = Result<T, E>>` is one.
///
/// Each operation is run in a task of its own and never waited for by who reads the results: it may take as long as it likes, may
/// panic, and is run to its end even if nobody waits for the result. What is [at hand](Self::is_at_hand) is given no task while it needs
/// none.
pub trait Operate<W: Work>: Send + Sync + 'static {
    /// What comes of an operation.
    type Output: Send + 'static;
    /// Why one failed.
    type Error: Send + 'static;

    /// Runs one operation.
    fn operate(&self, work: W) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send;

    /// Whether this operation is expected to end without waiting for anything and within a microsecond or so, such as a look into memory: a
    /// task of its own would cost more than the operation. It is then begun in place, with the same promises: its panic is its own, and
    /// if it has to wait nevertheless, it goes on in a task of its own at once. What computes for long, or blocks, must not be said to
    /// be at hand: it would hold up the operations behind it. `false` unless overridden.
    fn is_at_hand(&self, work: &W) -> bool {
        let _ = work;
        false
    }

    /// Whether this failure says that the store has too much to do (a time-out, 429, 503): the adaptive window is halved. Other
    /// failures tell it nothing. `false` unless overridden.
    fn is_overload(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

impl<W, F, R, T, E> Operate<W> for F
where
    W: Work,
    F: Fn(W) -> R + Send + Sync + 'static,
    R: Future<Output = Result<T, E>> + Send,
    T: Send + 'static,
    E: Send + 'static,
{
    type Output = T;
    type Error = E;

    fn operate(&self, work: W) -> impl Future<Output = Result<T, E>> + Send {
        self(work)
    }
}
