//! The memory that all writes of large objects may hold, in rooms of one part each, and what one tenant may have of it. It never takes back
//! what it gave, and never lets anybody wait without a bound.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_core::id::Name;
use tidegate_core::time::Clock;
use tokio::sync::oneshot;

use super::PART_BYTES;
use crate::error::PutError;

/// The bytes that all writes of large objects may hold together. A write asks for room for a part when it has the part's first byte, and gives
/// it back when the blob store has the part. How long that takes is up to who sends the bytes and how fast they may pass, so one
/// tenant's writes hold at most as many rooms as they leave free, rounded up (half of all, where nobody else writes): slow senders, however
/// many, keep others waiting only where they are of many tenants. (Such a bound is a dynamic threshold: Choudhury and Hahne, "Dynamic Queue
/// Length Thresholds for Shared-Memory Packet Switches", 1998.) A write that waits holds nothing but parts that are on their way to
/// the blob store, which waits for nobody. Who asks first is served first, of those who may have more.
pub(crate) struct Budget {
    rooms: Arc<Rooms>,
    wait: Duration,
    clock: Arc<dyn Clock>,
}

struct Rooms {
    count: u64,
    state: Mutex<State>,
}

struct State {
    free: u64,
    /// Of those who hold some; so there are at most as many as rooms.
    held: HashMap<Name, u64>,
    /// In the order in which they asked. None of them may have a room now, each is a write that is going on.
    waiting: VecDeque<Waiting>,
    asked: u64,
}

struct Waiting {
    number: u64,
    tenant: Name,
    room: oneshot::Sender<Room>,
}

/// Room for one part, given back when it is dropped.
pub(super) struct Room {
    rooms: Arc<Rooms>,
    tenant: Name,
}

impl Budget {
    pub(crate) fn new(bytes: u64, wait: Duration, clock: Arc<dyn Clock>) -> Self {
        // One part at least: else nothing could be written at all.
        let count = (bytes / PART_BYTES as u64).max(1);
        let state = State { free: count, held: HashMap::new(), waiting: VecDeque::new(), asked: 0 };
        Self { rooms: Arc::new(Rooms { count, state: Mutex::new(state) }), wait, clock }
    }

    /// Bytes that are held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        (self.rooms.count - self.rooms.state.lock().free) * PART_BYTES as u64
    }

    /// Room for one part, for a write of this tenant.
    pub(super) async fn take(&self, tenant: &Name) -> Result<Room, PutError> {
        let rooms = &self.rooms;
        let (number, room) = {
            let mut state = rooms.state.lock();
            if state.may_have(tenant) {
                state.give(tenant);
                return Ok(Room { rooms: Arc::clone(rooms), tenant: tenant.clone() });
            }
            let (sender, room) = oneshot::channel();
            state.asked += 1;
            let number = state.asked;
            state.waiting.push_back(Waiting { number, tenant: tenant.clone(), room: sender });
            (number, room)
        };
        let _place = Place { rooms, number };
        let deadline = self.clock.now().after(self.wait);
        tokio::select! {
            biased;
            room = room => Ok(room.expect("who waits is forgotten only with the room or when it goes")),
            () = self.clock.sleep_until(deadline) => {
                metrics::counter!("tidegate_object_writes_refused_total").increment(1);
                Err(PutError::Busy { limit_bytes: rooms.count * PART_BYTES as u64 })
            }
        }
    }
}

impl State {
    fn may_have(&self, tenant: &Name) -> bool {
        self.held.get(tenant).copied().unwrap_or(0) < self.free
    }

    fn give(&mut self, tenant: &Name) {
        self.free -= 1;
        *self.held.entry(tenant.clone()).or_default() += 1;
    }

    fn take_back(&mut self, tenant: &Name) {
        self.free += 1;
        if let Some(held) = self.held.get_mut(tenant) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(tenant);
            }
        }
    }

    /// Those who may have a room now that one is free. Whoever is given one leaves less to the others, so one look is enough.
    fn next(&mut self) -> Vec<Waiting> {
        let mut served = Vec::new();
        for waiting in mem::take(&mut self.waiting) {
            if self.may_have(&waiting.tenant) {
                self.give(&waiting.tenant);
                served.push(waiting);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        served
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let served = {
            let mut state = self.rooms.state.lock();
            state.take_back(&self.tenant);
            state.next()
        };
        for Waiting { tenant, room, .. } in served {
            // If nobody waits any more it comes back, and is dropped here.
            drop(room.send(Self { rooms: Arc::clone(&self.rooms), tenant }));
        }
    }
}

/// The place in the queue of one who waits; left, however the waiting ends.
struct Place<'a> {
    rooms: &'a Rooms,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.rooms.state.lock().waiting.retain(|waiting| waiting.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tidegate_testkit::ManualClock;

    use super::*;

    fn budget(parts: u64) -> (Budget, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new());
        (Budget::new(parts * PART_BYTES as u64, Duration::from_secs(10), clock.clone()), clock)
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn a_tenant_has_at_most_as_much_as_it_leaves_and_one_who_has_nothing_gets_the_last() {
        let (budget, _clock) = budget(8);
        let take = |tenant: &str| budget.take(&name(tenant)).now_or_never().and_then(Result::ok);
        let all = |tenant: &str| std::iter::from_fn(|| take(tenant)).collect::<Vec<_>>();
        let held: Vec<_> = ["a", "b", "c", "d", "e"].map(all).into();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [4, 2, 1, 1, 0]);
        drop(held);
        assert_eq!(budget.held_bytes(), 0);
        let state = budget.rooms.state.lock();
        assert_eq!((state.held.len(), state.waiting.len()), (0, 0));
    }

    #[test]
    fn who_asks_first_is_served_first_and_who_has_its_share_holds_up_nobody() {
        let (budget, clock) = budget(2);
        let (ann, bob, eve) = (name("ann"), name("bob"), name("eve"));
        let held = budget.take(&ann).now_or_never().unwrap().unwrap();
        let mut more = Box::pin(budget.take(&ann));
        assert!((&mut more).now_or_never().is_none(), "it has its share");
        let other = budget.take(&bob).now_or_never().unwrap().unwrap();
        let mut late = Box::pin(budget.take(&eve));
        assert!((&mut late).now_or_never().is_none());
        drop(other);
        let late = late.now_or_never().unwrap().unwrap();
        assert!((&mut more).now_or_never().is_none(), "a room is free for others only");
        drop(held);
        let more = more.now_or_never().unwrap().unwrap();
        let mut refused = Box::pin(budget.take(&bob));
        assert!((&mut refused).now_or_never().is_none());
        clock.advance(Duration::from_secs(11));
        assert!(matches!(refused.now_or_never(), Some(Err(PutError::Busy { .. }))));
        drop((late, more));
        assert_eq!((budget.held_bytes(), budget.rooms.state.lock().waiting.len()), (0, 0));
    }

    #[test]
    fn a_room_for_one_who_went_away_is_given_on() {
        let (budget, _clock) = budget(1);
        let held = budget.take(&name("ann")).now_or_never().unwrap().unwrap();
        let (bob, eve) = (name("bob"), name("eve"));
        let mut gone = Box::pin(budget.take(&bob));
        let mut next = Box::pin(budget.take(&eve));
        assert!((&mut gone).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        drop(held);
        drop(gone);
        assert!(next.now_or_never().unwrap().is_ok());
        assert_eq!(budget.held_bytes(), 0);
    }
}
