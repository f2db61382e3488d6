//! The one lease machine: who holds what, until when, under which epoch. It never reads a clock, draws a number,
//! waits or calls anybody: time is an argument, and every answer is a value. The README has its state table.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tidegate_core::Moment;
use tidegate_core::id::Epoch;
use tidegate_core::principal::Owner;

#[cfg(all(test, not(loom)))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

/// How much a machine keeps and does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineBounds {
    /// Leases that are held at one time, those included whose expiry was not swept yet. Beyond it [`Outcome::Full`].
    pub held_max: usize,
    /// Resources whose last lease has ended and that are still known by name. Beyond it the one that ended first is
    /// forgotten; its epoch is not (see [`LeaseMachine`]).
    pub remembered_max: usize,
    /// Leases that one [`Command::Expire`] ends at most; at least 1 is taken.
    pub sweep_max: usize,
}

impl Default for MachineBounds {
    /// 65,536 held, 4,096 remembered, 256 a sweep.
    fn default() -> Self {
        Self { held_max: 65_536, remembered_max: 4_096, sweep_max: 256 }
    }
}

/// What can be asked of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<R> {
    /// A lease on a resource that nobody holds.
    Acquire {
        /// On what.
        resource: R,
        /// For whom.
        holder: Owner,
        /// For how long from now.
        ttl: Duration,
    },
    /// A later deadline for a lease that is held.
    Renew {
        /// On what.
        resource: R,
        /// Which lease: the epoch that [`Outcome::Acquired`] told.
        epoch: Epoch,
        /// For how long from now. It never brings the deadline forward.
        ttl: Duration,
    },
    /// The end of a lease that is held.
    Release {
        /// On what.
        resource: R,
        /// Which lease.
        epoch: Epoch,
    },
    /// A lease on a resource whether or not somebody holds it; whoever does is fenced.
    Fence {
        /// On what.
        resource: R,
        /// For whom.
        holder: Owner,
        /// For how long from now.
        ttl: Duration,
    },
    /// How a lease stands. Changes nothing.
    Check {
        /// On what.
        resource: R,
        /// Which lease.
        epoch: Epoch,
    },
    /// The end of leases whose time is up, earliest deadline first, at most [`MachineBounds::sweep_max`] of them.
    Expire,
}

/// What became of a command. A value in every case: a lost race is an answer, not a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the outcome says whether the command did anything"]
pub enum Outcome<R> {
    /// The lease is held now, under this epoch.
    Acquired {
        /// Higher than every epoch that this resource had before.
        epoch: Epoch,
        /// The moment at which it is expired unless renewed.
        expires_at: Moment,
        /// The lease that this one put an end to: it was fenced, or it had expired and no sweep had told. Told here and
        /// nowhere else.
        displaced: Option<Epoch>,
    },
    /// Somebody holds the resource, be it the same owner: a lease is not re-entrant. Nothing changed.
    HeldBy {
        /// The holder's epoch.
        epoch: Epoch,
        /// Until when, unless renewed.
        expires_at: Moment,
    },
    /// The lease is held, until this deadline: the answer to a renewal that was granted.
    Renewed {
        /// The new deadline, never before the old one.
        expires_at: Moment,
    },
    /// The lease is held: the answer to [`Command::Check`].
    Held {
        /// Until when, unless renewed.
        expires_at: Moment,
    },
    /// The lease was released, by this command or before.
    Released,
    /// A later epoch took over; whoever asked must stop.
    Fenced {
        /// The resource's latest epoch.
        current: Epoch,
    },
    /// The lease's time is up. It is never renewed.
    Expired,
    /// No such lease: never granted, or ended so long ago that it was forgotten.
    Unknown,
    /// The resource has had epoch 2^64 - 1: there is no higher one, and none is given twice. Nothing changed.
    EpochExhausted,
    /// [`MachineBounds::held_max`] leases are held. Nothing changed.
    Full {
        /// The bound.
        limit: usize,
    },
    /// The answer to [`Command::Expire`].
    Swept {
        /// What ended, earliest deadline first. Each lease is told once.
        expired: Vec<ExpiredLease<R>>,
        /// Whether more are due: sweep again.
        more: bool,
    },
}

/// A lease that a sweep ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiredLease<R> {
    /// On what.
    pub resource: R,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Whose it was.
    pub holder: Owner,
    /// When its time was up.
    pub expired_at: Moment,
}

/// A lease that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease<'a, R> {
    /// On what.
    pub resource: &'a R,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Whose it is.
    pub holder: &'a Owner,
    /// Until when, unless renewed.
    pub expires_at: Moment,
}

/// The machine. Every command costs O(log n) in what is held and remembered; a sweep that for each lease that it ends.
///
/// **Epochs never go back, and memory is bounded.** A resource that nobody holds is remembered with its last epoch.
/// When too many are, the one that ended first is forgotten, and the machine keeps one number for all of those: the
/// highest epoch that it ever forgot. A resource that it does not know starts above that number. So a forgotten
/// resource that comes back gets a higher epoch than it ever had, and the price is that a new resource need not start
/// at [`Epoch::FIRST`]. (Fencing tokens: Gray and Cheriton 1989 for leases, Burrows 2006, "The Chubby lock service",
/// for sequencers.)
#[derive(Debug, Clone)]
pub struct LeaseMachine<R> {
    bounds: MachineBounds,
    /// The latest time that any command told.
    now: Moment,
    /// The highest epoch that was forgotten with its resource.
    floor: Option<Epoch>,
    /// Numbers the places in the two queues, so that equal times keep their order.
    ticket: u64,
    resources: HashMap<R, Resource>,
    /// Held leases by deadline.
    deadlines: BTreeMap<(Moment, u64), R>,
    /// Ended leases in the order in which they ended.
    ended: BTreeMap<u64, R>,
}

#[derive(Debug, Clone)]
struct Resource {
    epoch: Epoch,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Held { holder: Owner, expires_at: Moment, ticket: u64 },
    Ended { how: End, ticket: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Released,
    Expired,
}

impl<R: Eq + Hash + Clone> LeaseMachine<R> {
    /// A machine that knows of no lease.
    #[must_use]
    pub fn new(bounds: MachineBounds) -> Self {
        Self {
            bounds,
            now: Moment::ORIGIN,
            floor: None,
            ticket: 0,
            resources: HashMap::new(),
            deadlines: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// A machine whose epochs all lie above `floor`: for one that goes on where another, whose
    /// [`Self::highest_epoch`] was kept, left off.
    #[must_use]
    pub fn above(bounds: MachineBounds, floor: Epoch) -> Self {
        Self { floor: Some(floor), ..Self::new(bounds) }
    }

    /// Applies one command at this time. A time before that of an earlier command counts as that of the earlier one:
    /// no time has passed. At its deadline a lease is expired.
    pub fn apply(&mut self, now: Moment, command: Command<R>) -> Outcome<R> {
        self.now = self.now.max(now);
        match command {
            Command::Acquire { resource, holder, ttl } => self.grant(resource, holder, ttl, false),
            Command::Fence { resource, holder, ttl } => self.grant(resource, holder, ttl, true),
            Command::Renew { resource, epoch, ttl } => self.renew(&resource, epoch, ttl),
            Command::Release { resource, epoch } => self.release(&resource, epoch),
            Command::Check { resource, epoch } => match self.judge(&resource, epoch) {
                Ok(expires_at) => Outcome::Held { expires_at },
                Err(refusal) => refusal,
            },
            Command::Expire => self.expire(),
        }
    }

    /// The earliest deadline of what is held: when to send [`Command::Expire`] next. It may be in the past.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        self.deadlines.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// The lease on this resource, if it is held and its time is not up.
    #[must_use]
    pub fn find<'a>(&'a self, now: Moment, resource: &R) -> Option<HeldLease<'a, R>> {
        let (resource, entry) = self.resources.get_key_value(resource)?;
        self.view(now, resource, entry)
    }

    /// The leases of one owner that are held and whose time is not up, in no order. Costs O(n) in what is known.
    pub fn leases_of<'a>(&'a self, now: Moment, owner: &'a Owner) -> impl Iterator<Item = HeldLease<'a, R>> {
        self.resources
            .iter()
            .filter_map(move |(resource, entry)| self.view(now, resource, entry))
            .filter(move |lease| lease.holder == owner)
    }

    /// How many leases are held, those included whose expiry was not swept yet.
    #[must_use]
    pub fn held(&self) -> usize {
        self.deadlines.len()
    }

    /// How many resources are remembered whose lease has ended.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.ended.len()
    }

    /// The highest epoch that any resource ever had; `None` before the first lease. Costs O(n) in what is known.
    #[must_use]
    pub fn highest_epoch(&self) -> Option<Epoch> {
        self.resources.values().map(|entry| entry.epoch).chain(self.floor).max()
    }

    fn view<'a>(&'a self, now: Moment, resource: &'a R, entry: &'a Resource) -> Option<HeldLease<'a, R>> {
        match &entry.state {
            State::Held { holder, expires_at, .. } if *expires_at > self.now.max(now) => {
                Some(HeldLease { resource, epoch: entry.epoch, holder, expires_at: *expires_at })
            }
            State::Held { .. } | State::Ended { .. } => None,
        }
    }

    fn next_ticket(&mut self) -> u64 {
        // One a command: 2^64 of them take 584 years at one a nanosecond.
        self.ticket += 1;
        self.ticket
    }

    /// How the lease of `epoch` stands: its deadline if it is held, else why it is not.
    fn judge(&self, resource: &R, epoch: Epoch) -> Result<Moment, Outcome<R>> {
        let Some(entry) = self.resources.get(resource) else { return Err(Outcome::Unknown) };
        if epoch < entry.epoch {
            return Err(Outcome::Fenced { current: entry.epoch });
        }
        if epoch > entry.epoch {
            return Err(Outcome::Unknown);
        }
        match entry.state {
            State::Held { expires_at, .. } if expires_at > self.now => Ok(expires_at),
            State::Held { .. } | State::Ended { how: End::Expired, .. } => Err(Outcome::Expired),
            State::Ended { how: End::Released, .. } => Err(Outcome::Released),
        }
    }

    fn grant(&mut self, resource: R, holder: Owner, ttl: Duration, by_force: bool) -> Outcome<R> {
        let before = self.resources.get(&resource);
        let mut displaced = None;
        if let Some(Resource { epoch, state: State::Held { expires_at, .. } }) = before {
            if *expires_at > self.now && !by_force {
                return Outcome::HeldBy { epoch: *epoch, expires_at: *expires_at };
            }
            displaced = Some(*epoch);
        } else if self.deadlines.len() >= self.bounds.held_max {
            return Outcome::Full { limit: self.bounds.held_max };
        }
        let next = match before.map(|entry| entry.epoch).or(self.floor) {
            Some(last) => last.next(),
            None => Some(Epoch::FIRST),
        };
        let Some(epoch) = next else { return Outcome::EpochExhausted };
        match before.map(|entry| &entry.state) {
            Some(State::Held { expires_at, ticket, .. }) => drop(self.deadlines.remove(&(*expires_at, *ticket))),
            Some(State::Ended { ticket, .. }) => drop(self.ended.remove(ticket)),
            None => {}
        }
        let expires_at = self.now.after(ttl);
        let ticket = self.next_ticket();
        self.deadlines.insert((expires_at, ticket), resource.clone());
        self.resources.insert(resource, Resource { epoch, state: State::Held { holder, expires_at, ticket } });
        Outcome::Acquired { epoch, expires_at, displaced }
    }

    fn renew(&mut self, resource: &R, epoch: Epoch, ttl: Duration) -> Outcome<R> {
        let deadline = match self.judge(resource, epoch) {
            Ok(deadline) => deadline,
            Err(refusal) => return refusal,
        };
        let renewed = self.now.after(ttl);
        if renewed > deadline
            && let Some(Resource { state: State::Held { expires_at, ticket, .. }, .. }) =
                self.resources.get_mut(resource)
            && let Some(key) = self.deadlines.remove(&(deadline, *ticket))
        {
            *expires_at = renewed;
            self.deadlines.insert((renewed, *ticket), key);
        }
        Outcome::Renewed { expires_at: renewed.max(deadline) }
    }

    fn release(&mut self, resource: &R, epoch: Epoch) -> Outcome<R> {
        match self.judge(resource, epoch) {
            Ok(_) => {
                self.end(resource.clone(), End::Released);
                Outcome::Released
            }
            Err(refusal) => refusal,
        }
    }

    fn expire(&mut self) -> Outcome<R> {
        let mut expired = Vec::new();
        while expired.len() < self.bounds.sweep_max.max(1) {
            match self.deadlines.first_entry() {
                Some(first) if first.key().0 <= self.now => {
                    let resource = first.get().clone();
                    let Some((epoch, State::Held { holder, expires_at, .. })) =
                        self.end(resource.clone(), End::Expired)
                    else {
                        // What stands in `deadlines` is held: `end` took it out there.
                        break;
                    };
                    expired.push(ExpiredLease { resource, epoch, holder, expired_at: expires_at });
                }
                _ => break,
            }
        }
        let more = self.next_deadline().is_some_and(|deadline| deadline <= self.now);
        Outcome::Swept { expired, more }
    }

    /// Ends the lease on a resource that is held, and forgets the resource that ended first if there are too many.
    /// Gives the epoch and the state before.
    fn end(&mut self, resource: R, how: End) -> Option<(Epoch, State)> {
        let ticket = self.next_ticket();
        let entry = self.resources.get_mut(&resource)?;
        let before = std::mem::replace(&mut entry.state, State::Ended { how, ticket });
        let epoch = entry.epoch;
        if let State::Held { expires_at, ticket, .. } = &before {
            self.deadlines.remove(&(*expires_at, *ticket));
        }
        self.ended.insert(ticket, resource);
        while self.ended.len() > self.bounds.remembered_max {
            let Some((_, oldest)) = self.ended.pop_first() else { break };
            let forgotten = self.resources.remove(&oldest).map(|entry| entry.epoch);
            self.floor = self.floor.max(forgotten);
        }
        Some((epoch, before))
    }
}
