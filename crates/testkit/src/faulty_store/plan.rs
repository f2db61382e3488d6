//! What a faulty store does to which call: the handle that a test holds. It never touches the store itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::entropy::SeededEntropy;
use crate::wait::within;

/// A method of the two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// `ChangeLog::create`.
    Create,
    /// `ChangeLog::append`.
    Append,
    /// `ChangeLog::trim`.
    Trim,
    /// `MetaStore::compare_and_swap`.
    Swap,
    /// `ChangeLog::read`.
    Read,
    /// `ChangeLog::bounds`.
    Bounds,
    /// `ChangeLog::watch`.
    WatchLog,
    /// `MetaStore::get`.
    Get,
    /// `MetaStore::scan`.
    Scan,
    /// `MetaStore::watch`.
    WatchMeta,
}

impl Call {
    /// Every call.
    pub const ALL: [Self; 10] = [
        Self::Create,
        Self::Append,
        Self::Trim,
        Self::Swap,
        Self::Read,
        Self::Bounds,
        Self::WatchLog,
        Self::Get,
        Self::Scan,
        Self::WatchMeta,
    ];

    /// Whether the call can change anything.
    #[must_use]
    pub const fn changes(self) -> bool {
        matches!(self, Self::Create | Self::Append | Self::Trim | Self::Swap)
    }
}

/// A fault. On a call that only reads, every fault is `Unavailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store does not answer; certainly nothing happened.
    Unavailable,
    /// The store does not answer; it happened, or not, as told here and not to the caller. Where the store itself fails,
    /// its own error is answered.
    Indeterminate {
        /// Whether it happened.
        applied: bool,
    },
    /// There is no space; nothing happened.
    Full,
}

/// The handle of a [`FaultyStore`](super::FaultyStore): what goes wrong, what is held, what was called. Clones share it.
#[derive(Debug, Clone)]
pub struct FaultPlan {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    entropy: SeededEntropy,
    faults: Mutex<Faults>,
    held: watch::Sender<Held>,
    waiting: watch::Sender<usize>,
    wakes: watch::Sender<Wakes>,
}

#[derive(Debug, Default)]
struct Faults {
    next: BTreeMap<Call, VecDeque<Fault>>,
    next_change: VecDeque<Fault>,
    chances: Vec<(bool, f64, Fault)>,
    calls: BTreeMap<Call, u64>,
    injected: u64,
}

#[derive(Debug, Default, Clone)]
struct Held {
    before: BTreeSet<Call>,
    after: BTreeSet<Call>,
}

/// When watchers wake for nothing: so often by hand, and after every true wake or not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wakes {
    pub(super) by_hand: u64,
    pub(super) always: bool,
}

impl FaultPlan {
    /// A plan without faults, whose chances are drawn from `seed`.
    #[must_use]
    pub(super) fn new(seed: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                entropy: SeededEntropy::new(seed),
                faults: Mutex::default(),
                held: watch::Sender::default(),
                waiting: watch::Sender::default(),
                wakes: watch::Sender::default(),
            }),
        }
    }

    /// The next `count` calls that can change something fail so, of whatever kind, after what was told to their kind.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.shared.faults.lock().next_change.extend(std::iter::repeat_n(fault, count));
    }

    /// The next `count` calls of this kind fail so.
    pub fn fail_next_of(&self, call: Call, count: usize, fault: Fault) {
        self.shared.faults.lock().next.entry(call).or_default().extend(std::iter::repeat_n(fault, count));
    }

    /// From now on every changing call fails so with this probability (0 to 1), drawn from the seed. Several chances add up:
    /// they are drawn one after the other.
    pub fn fail_with_probability(&self, probability: f64, fault: Fault) {
        self.shared.faults.lock().chances.push((true, probability, fault));
    }

    /// From now on every call that only reads is unavailable with this probability.
    pub fn fail_reads_with_probability(&self, probability: f64) {
        self.shared.faults.lock().chances.push((false, probability, Fault::Unavailable));
    }

    /// No more faults: what was told and did not happen yet is forgotten. What is held stays so.
    pub fn heal(&self) {
        let mut faults = self.shared.faults.lock();
        faults.next.clear();
        faults.next_change.clear();
        faults.chances.clear();
    }

    /// Holds every call from now on, before anything happens, until [`resume`](Self::resume). A held call that is dropped
    /// never happened.
    pub fn pause(&self) {
        self.shared.held.send_modify(|held| held.before.extend(Call::ALL));
    }

    /// Holds calls of this kind before anything happens.
    pub fn hold(&self, call: Call) {
        self.shared.held.send_modify(|held| {
            held.before.insert(call);
        });
    }

    /// Holds the answers to calls of this kind: what was asked for happened. A caller that is dropped does not know.
    pub fn hold_answers(&self, call: Call) {
        self.shared.held.send_modify(|held| {
            held.after.insert(call);
        });
    }

    /// Lets everything go on.
    pub fn resume(&self) {
        self.shared.held.send_replace(Held::default());
    }

    /// How many calls are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        *self.shared.waiting.borrow()
    }

    /// Waits until at least `count` calls are held.
    ///
    /// # Panics
    /// When it does not happen within the patience of a test.
    pub async fn wait_for_held(&self, count: usize) {
        let mut waiting = self.shared.waiting.subscribe();
        let enough = waiting.wait_for(|waiting| *waiting >= count);
        within("calls that the faulty store holds", enough).await.expect("the plan holds the sender");
    }

    /// Wakes every watcher once for nothing: it gets what is there now.
    pub fn wake_watchers(&self) {
        self.shared.wakes.send_modify(|wakes| wakes.by_hand += 1);
    }

    /// Whether every watcher that is woken is then woken once more for nothing.
    pub fn wake_twice(&self, always: bool) {
        self.shared.wakes.send_modify(|wakes| wakes.always = always);
    }

    /// How many calls of this kind there were, failed ones too.
    #[must_use]
    pub fn calls(&self, call: Call) -> u64 {
        self.shared.faults.lock().calls.get(&call).copied().unwrap_or(0)
    }

    /// How many faults happened.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.shared.faults.lock().injected
    }

    pub(super) fn wakes(&self) -> watch::Receiver<Wakes> {
        self.shared.wakes.subscribe()
    }

    /// Counts a call and says what happens to it.
    pub(super) fn draw(&self, call: Call) -> Option<Fault> {
        let mut faults = self.shared.faults.lock();
        *faults.calls.entry(call).or_default() += 1;
        let mut told = faults.next.get_mut(&call).and_then(VecDeque::pop_front);
        if told.is_none() && call.changes() {
            told = faults.next_change.pop_front();
        }
        let fault = told.or_else(|| {
            let chances = faults.chances.iter().filter(|(changing, ..)| *changing == call.changes());
            chances.into_iter().find(|(_, chance, _)| self.shared.entropy.chance(*chance)).map(|(_, _, fault)| *fault)
        });
        faults.injected += u64::from(fault.is_some());
        fault.map(|fault| if call.changes() { fault } else { Fault::Unavailable })
    }

    /// Waits while calls of this kind are held before they happen.
    pub(super) async fn pass(&self, call: Call) {
        self.wait_while(|held| held.before.contains(&call)).await;
    }

    /// Waits while answers to calls of this kind are held.
    pub(super) async fn pass_answer(&self, call: Call) {
        self.wait_while(|held| held.after.contains(&call)).await;
    }

    async fn wait_while(&self, is_held: impl Fn(&Held) -> bool) {
        let mut held = self.shared.held.subscribe();
        if !is_held(&held.borrow_and_update()) {
            return;
        }
        self.shared.waiting.send_modify(|waiting| *waiting += 1);
        let _waiting = Waiting(&self.shared);
        held.wait_for(|held| !is_held(held)).await.expect("the plan holds the sender");
    }
}

/// Counts a held call for as long as its future lives.
struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}
