//! What becomes of a delivered record: done, given back, prolonged, expired, buried. Every way out of one state into another
//! stands here, so that a record is in exactly one. It never touches the log.

use std::time::Duration;

use tidegate_core::Moment;
use tidegate_lease::machine::{Command as LeaseCommand, Outcome as LeaseOutcome};

use super::delivery::{DeliveryId, nonce};
use super::{Entry, Place, Shared, State, holder, lease};
use crate::group::cell::Cell;
use crate::group::command::{Now, Outcome, Touched};
use crate::group::request::{Settle, Settled};

impl Shared {
    pub(super) fn entry(&self, place: Place) -> Option<&Entry> {
        self.lanes.get(place.0 as usize)?.entries.get(&place.1)
    }

    pub(super) fn entry_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.lanes.get_mut(place.0 as usize)?.entries.get_mut(&place.1)
    }

    /// Somebody has the record for this long.
    pub(super) fn lease(&mut self, now: Moment, place: Place, ttl: Duration) {
        let acquire = LeaseCommand::Acquire { resource: place, holder: holder(), ttl };
        let outcome = self.leases.apply(now, acquire);
        let (lease::Outcome::Acquired { epoch, .. }, Some(entry)) = (outcome, self.entry_mut(place)) else {
            // Nobody else leases offsets of this group, and a record is leased by one delivery at a time.
            return self.give_back(place);
        };
        entry.state = State::Held(epoch);
    }

    /// The record is not to be delivered for this long.
    pub(super) fn delay(&mut self, now: Moment, place: Place, delay: Duration) {
        let until = now.after(delay);
        if let Some(entry) = self.entry_mut(place) {
            entry.state = State::Delayed(until);
            self.delayed.insert((until, place));
        }
    }

    /// The record is to be delivered again, or, after its last delivery, to go to the dead letters.
    pub(super) fn give_back(&mut self, place: Place) {
        let spec = &self.head.spec;
        let (has_dead_letter, max) = (spec.dead_letter.is_some(), spec.max_deliveries);
        let Some(entry) = self.entry_mut(place) else { return };
        if has_dead_letter && entry.count >= max {
            entry.state = State::Dead;
            self.dead.insert(place);
        } else {
            self.make_ready(place);
        }
    }

    fn make_ready(&mut self, place: Place) {
        self.ticket += 1;
        let ticket = self.ticket;
        if let Some(entry) = self.entry_mut(place) {
            entry.state = State::Ready(ticket);
            self.ready.insert(ticket, place);
            self.wakes += 1;
        }
    }

    /// Takes the record out of the queues that it stands in.
    pub(super) fn unqueue(&mut self, place: Place) {
        match self.entry(place).map(|entry| entry.state.clone()) {
            Some(State::Delayed(until)) => drop(self.delayed.remove(&(until, place))),
            Some(State::Ready(ticket)) => drop(self.ready.remove(&ticket)),
            Some(State::Dead) => drop(self.dead.remove(&place)),
            Some(State::Held(_)) | None => {}
        }
    }

    /// Ends the lease on a record, if it is held: whether it was.
    pub(super) fn release(&mut self, now: Moment, place: Place) -> bool {
        let Some(Entry { state: State::Held(epoch), .. }) = self.entry(place) else { return false };
        let release = LeaseCommand::Release { resource: place, epoch: *epoch };
        matches!(self.leases.apply(now, release), LeaseOutcome::Released)
    }

    /// The record is done, or gone. Its lease must have ended.
    pub(super) fn forget(&mut self, place: Place) {
        self.unqueue(place);
        if let Some(lane) = self.lanes.get_mut(place.0 as usize)
            && lane.entries.remove(&place.1).is_some()
        {
            self.outstanding -= 1;
            if std::mem::take(&mut self.full) {
                self.wakes += 1;
            }
        }
    }

    pub(super) fn pass_time(&mut self, now: Now, touched: &mut Touched) {
        if self.head.members.expire(now.moment) > 0 {
            touched.durable(Cell::Main);
        }
        if self.leases.next_deadline().is_some_and(|deadline| deadline <= now.moment)
            && let LeaseOutcome::Swept { expired, .. } = self.leases.apply(now.moment, LeaseCommand::Expire)
        {
            for one in expired {
                self.give_back(one.resource);
            }
        }
        while let Some((until, place)) = self.delayed.first().copied()
            && until <= now.moment
        {
            self.delayed.pop_first();
            self.give_back(place);
        }
    }

    /// The record of a delivery that is still held.
    fn held(&self, text: &str) -> Option<Place> {
        let id = DeliveryId::parse(text)?;
        let place = (id.partition, id.offset);
        let entry = self.entry(place)?;
        let same = id.nonce == nonce(&self.head.life) && id.count == entry.count && id.generation == entry.generation;
        (same && matches!(entry.state, State::Held(_))).then_some(place)
    }

    pub(super) fn settle(&mut self, now: Now, request: &Settle, touched: &mut Touched) -> Settled {
        let mut settled = Settled::default();
        for id in &request.ack {
            match self.held(id).filter(|place| self.release(now.moment, *place)) {
                Some(place) => {
                    self.forget(place);
                    touched.durable(Cell::block_of(place.0, place.1));
                    settled.acked += 1;
                }
                None => settled.unknown.push(id.clone()),
            }
        }
        for nack in &request.nack {
            match self.held(&nack.id).filter(|place| self.release(now.moment, *place)) {
                Some(place) => {
                    let delay = Duration::from_millis(nack.delay_ms);
                    if let Some(entry) = self.entry_mut(place) {
                        entry.hold(now, delay);
                    }
                    if delay.is_zero() {
                        self.give_back(place);
                    } else {
                        self.delay(now.moment, place, delay);
                    }
                    touched.durable(Cell::block_of(place.0, place.1));
                    settled.nacked += 1;
                }
                None => settled.unknown.push(nack.id.clone()),
            }
        }
        for extend in &request.extend {
            match self.held(&extend.id).filter(|place| self.prolong(now, *place, Duration::from_millis(extend.ms))) {
                Some(place) => {
                    touched.durable(Cell::block_of(place.0, place.1));
                    settled.extended += 1;
                }
                None => settled.unknown.push(extend.id.clone()),
            }
        }
        settled
    }

    fn prolong(&mut self, now: Now, place: Place, ttl: Duration) -> bool {
        let Some(Entry { state: State::Held(epoch), .. }) = self.entry(place) else { return false };
        let renew = LeaseCommand::Renew { resource: place, epoch: *epoch, ttl };
        let LeaseOutcome::Renewed { expires_at } = self.leases.apply(now.moment, renew) else { return false };
        let left = expires_at.saturating_since(now.moment);
        if let Some(entry) = self.entry_mut(place) {
            entry.hold(now, left);
        }
        true
    }

    /// A delivery that did not reach anybody does not count.
    pub(super) fn unclaim(&mut self, now: Now, id: &str, touched: &mut Touched) {
        let Some(place) = self.held(id).filter(|place| self.release(now.moment, *place)) else { return };
        if let Some(entry) = self.entry_mut(place) {
            entry.count = entry.count.saturating_sub(1);
        }
        self.make_ready(place);
        touched.handed_out(Cell::block_of(place.0, place.1));
    }

    /// All of them, or nothing where one is no longer dead.
    pub(super) fn bury(&mut self, buried: &[Place], gone: &[Place], touched: &mut Touched) -> Outcome {
        if !buried.iter().chain(gone).all(|place| self.dead.contains(place)) {
            return Outcome::LostRace;
        }
        for place in buried {
            self.forget(*place);
            touched.durable(Cell::block_of(place.0, place.1));
        }
        for place in gone {
            // The next poll finds the gap and reports it.
            self.unqueue(*place);
            self.make_ready(*place);
        }
        Outcome::Done
    }
}
