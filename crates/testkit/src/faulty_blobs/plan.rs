//! What a faulty blob store does to which call: the handle that a test holds. It never touches the store itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::faulty_store::Fault;
use crate::wait::within;

/// A call of a blob store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobCall {
    /// A blob in one piece, or a copy of one.
    Put,
    /// The beginning of a blob in parts.
    Begin,
    /// A part.
    Part,
    /// The end of a blob in parts: it is there.
    Complete,
    /// A blob in parts is given up.
    Abort,
    /// A blob, a range of it, or what is known of it.
    Get,
    /// A blob is removed.
    Delete,
    /// Blobs are listed. It cannot be held.
    List,
}

impl BlobCall {
    /// The calls that bring bytes.
    pub const WRITES: [Self; 4] = [Self::Put, Self::Begin, Self::Part, Self::Complete];
}

/// The handle of a [`FaultyBlobs`](super::FaultyBlobs): what goes wrong, what is held, how often something went wrong. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct BlobPlan {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    faults: Mutex<Faults>,
    held: watch::Sender<BTreeSet<BlobCall>>,
    waiting: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Faults {
    /// How, and how often still; `None` = until it is healed.
    told: BTreeMap<BlobCall, (Fault, Option<u64>)>,
    cut: Option<u64>,
    injected: u64,
}

impl BlobPlan {
    /// Calls of this kind fail so until [`heal`](Self::heal).
    pub fn fail(&self, call: BlobCall, fault: Fault) {
        self.shared.faults.lock().told.insert(call, (fault, None));
    }

    /// The next `count` calls of this kind fail so.
    pub fn fail_next(&self, call: BlobCall, count: u64, fault: Fault) {
        self.shared.faults.lock().told.insert(call, (fault, Some(count)));
    }

    /// There is no space for anything that brings bytes until [`heal`](Self::heal).
    pub fn fill(&self) {
        for call in BlobCall::WRITES {
            self.fail(call, Fault::Full);
        }
    }

    /// What is read breaks off after so many bytes, those of the piece with the next byte too, until [`heal`](Self::heal).
    pub fn cut_reads_after(&self, bytes: u64) {
        self.shared.faults.lock().cut = Some(bytes);
    }

    /// No more faults. What is held stays so.
    pub fn heal(&self) {
        let mut faults = self.shared.faults.lock();
        faults.told.clear();
        faults.cut = None;
    }

    /// Holds calls of this kind before anything happens, until [`resume`](Self::resume): storage that is slow.
    pub fn hold(&self, call: BlobCall) {
        self.shared.held.send_modify(|held| {
            held.insert(call);
        });
    }

    /// Lets everything go on.
    pub fn resume(&self) {
        self.shared.held.send_replace(BTreeSet::new());
    }

    /// Waits until at least `count` calls are held.
    ///
    /// # Panics
    /// When it does not happen within the patience of a test.
    pub async fn wait_for_held(&self, count: usize) {
        let mut waiting = self.shared.waiting.subscribe();
        let enough = waiting.wait_for(|waiting| *waiting >= count);
        within("calls that the faulty blob store holds", enough).await.expect("the plan holds the sender");
    }

    /// How many faults happened.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.shared.faults.lock().injected
    }

    /// What happens to a call.
    pub(super) fn draw(&self, call: BlobCall) -> Option<Fault> {
        let mut faults = self.shared.faults.lock();
        let (fault, left) = faults.told.get_mut(&call)?;
        let fault = *fault;
        match left {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        faults.injected += 1;
        Some(fault)
    }

    /// After how many bytes what is read breaks off.
    pub(super) fn cut(&self) -> Option<u64> {
        self.shared.faults.lock().cut
    }

    pub(super) fn count(&self) {
        self.shared.faults.lock().injected += 1;
    }

    /// Waits while calls of this kind are held.
    pub(super) async fn pass(&self, call: BlobCall) {
        let mut held = self.shared.held.subscribe();
        if !held.borrow_and_update().contains(&call) {
            return;
        }
        self.shared.waiting.send_modify(|waiting| *waiting += 1);
        let _waiting = Waiting(&self.shared);
        held.wait_for(|held| !held.contains(&call)).await.expect("the plan holds the sender");
    }
}

/// Counts a held call for as long as its future lives.
struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}
