//! Who takes part in a group. A membership is a lease on the member's own name: a sign of life renews it, leaving releases it,
//! and its expiry removes the member. It never reads a clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::id::Epoch;
use tidegate_core::principal::Owner;
use tidegate_core::{Moment, Timestamp};
use tidegate_lease::machine::{Command, LeaseMachine, MachineBounds, Outcome};

use super::cell::{Life, StoredMain, StoredMember};
use super::command::{Now, Refusal};
use super::request::{MemberInfo, MemberStamp};
use super::spec::GroupSpec;

pub(crate) type MemberId = Arc<str>;

/// The members of a group with their sessions.
#[derive(Debug)]
pub(crate) struct Members {
    known: BTreeMap<MemberId, Member>,
    sessions: LeaseMachine<MemberId>,
    session: Duration,
    holder: Owner,
}

#[derive(Debug)]
struct Member {
    client: Box<str>,
    last_seen: Timestamp,
    lease: Epoch,
}

/// A machine that remembers nothing of what ended: its resources never come back under the same name. How many are held is
/// bounded by who asks it.
pub(crate) fn unbounded_leases<R: Eq + std::hash::Hash + Clone>() -> LeaseMachine<R> {
    LeaseMachine::new(MachineBounds { held_max: usize::MAX, remembered_max: 0, sweep_max: usize::MAX })
}

/// In a group's own machines nobody competes for a lease: all are the group's.
pub(crate) fn holder() -> Owner {
    Owner { tenant: "".into(), subject: "".into() }
}

impl Members {
    /// The members as they are stored. Each has a whole session from now, or what is left of it if `before` knows it.
    pub(crate) fn restore(stored: &[StoredMember], session_ms: u64, now: Now, before: Option<&Self>) -> Self {
        let session = Duration::from_millis(session_ms);
        let mut members = Self { known: BTreeMap::new(), sessions: unbounded_leases(), session, holder: holder() };
        for one in stored {
            let id: MemberId = Arc::from(&*one.id);
            let left = before.filter(|before| before.known.contains_key(&id)).map_or(session, |before| {
                let lease = before.sessions.find(now.moment, &id);
                lease.map_or(Duration::ZERO, |lease| lease.expires_at.saturating_since(now.moment))
            });
            let last_seen = Timestamp::from_unix_ms(one.last_seen_ms);
            members.enter(now.moment, id, one.client.clone(), last_seen, left);
        }
        members
    }

    fn enter(&mut self, now: Moment, id: MemberId, client: Box<str>, last_seen: Timestamp, ttl: Duration) -> bool {
        let acquire = Command::Acquire { resource: Arc::clone(&id), holder: self.holder.clone(), ttl };
        let Outcome::Acquired { epoch: lease, .. } = self.sessions.apply(now, acquire) else { return false };
        self.known.insert(id, Member { client, last_seen, lease });
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &MemberId> {
        self.known.keys()
    }

    /// A new member, or `None` if there is one of that name.
    pub(crate) fn join(&mut self, now: Now, id: &str, client: &str) -> Option<MemberId> {
        let id: MemberId = Arc::from(id);
        self.enter(now.moment, Arc::clone(&id), client.into(), now.wall, self.session).then_some(id)
    }

    /// A sign of life.
    pub(crate) fn seen(&mut self, now: Now, id: &str) -> Result<MemberId, Refusal> {
        let unknown = || Refusal::UnknownMember { member: id.into() };
        let (name, member) = self.known.get_key_value(id).ok_or_else(unknown)?;
        let name = Arc::clone(name);
        let renew = Command::Renew { resource: Arc::clone(&name), epoch: member.lease, ttl: self.session };
        match self.sessions.apply(now.moment, renew) {
            Outcome::Renewed { .. } => {}
            _ => return Err(unknown()),
        }
        if let Some(member) = self.known.get_mut(&name) {
            member.last_seen = now.wall;
        }
        Ok(name)
    }

    /// The member goes.
    pub(crate) fn leave(&mut self, now: Now, id: &str) -> Result<(), Refusal> {
        let unknown = || Refusal::UnknownMember { member: id.into() };
        let (name, member) = self.known.remove_entry(id).ok_or_else(unknown)?;
        match self.sessions.apply(now.moment, Command::Release { resource: name, epoch: member.lease }) {
            Outcome::Released => Ok(()),
            _ => Err(unknown()),
        }
    }

    /// Removes whose session is over; how many that were.
    pub(crate) fn expire(&mut self, now: Moment) -> usize {
        if self.sessions.next_deadline().is_none_or(|deadline| deadline > now) {
            return 0;
        }
        match self.sessions.apply(now, Command::Expire) {
            Outcome::Swept { expired, .. } => {
                expired.iter().filter(|lease| self.known.remove(&lease.resource).is_some()).count()
            }
            _ => 0,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.sessions.next_deadline()
    }
}

/// What every group has, whatever its mode.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) life: Life,
    pub(crate) spec: GroupSpec,
    created_at_ms: i64,
    pub(crate) generation: u64,
    pub(crate) members: Members,
}

impl Head {
    pub(crate) fn restore(main: &StoredMain, now: Now, before: Option<&Members>) -> Self {
        Self {
            life: main.life,
            spec: main.spec.clone(),
            created_at_ms: main.created_at_ms,
            generation: main.generation,
            members: Members::restore(&main.members, main.spec.session_ms, now, before),
        }
    }

    /// The head as it is stored; `held` says which partitions a member holds.
    pub(crate) fn stored(&self, held: impl Fn(&MemberId) -> Vec<u32>) -> StoredMain {
        let members = self.members.known.iter().map(|(id, member)| StoredMember {
            id: (&**id).into(),
            client: member.client.clone(),
            last_seen_ms: member.last_seen.unix_ms(),
            partitions: held(id),
        });
        StoredMain {
            life: self.life,
            spec: self.spec.clone(),
            created_at_ms: self.created_at_ms,
            generation: self.generation,
            removing: false,
            members: members.collect(),
        }
    }

    pub(crate) fn infos(&self, held: impl Fn(&MemberId) -> Vec<u32>) -> Vec<MemberInfo> {
        let infos = self.members.known.iter().map(|(id, member)| MemberInfo {
            member: (&**id).into(),
            client: member.client.clone(),
            partitions: held(id),
            last_seen: member.last_seen,
        });
        infos.collect()
    }

    /// The generation after this one. It never comes back.
    pub(crate) fn raise(&mut self) {
        // One a change of the group: 2^64 of them do not happen.
        self.generation = self.generation.saturating_add(1);
    }

    /// A sign of life of a member that knows the present generation.
    pub(crate) fn admit(&mut self, now: Now, stamp: &MemberStamp) -> Result<MemberId, Refusal> {
        let member = self.members.seen(now, &stamp.member)?;
        if stamp.generation != self.generation {
            return Err(Refusal::Fenced { generation: self.generation });
        }
        Ok(member)
    }

    /// A heartbeat: it may know an older generation, but none that never was.
    pub(crate) fn heartbeat(&mut self, now: Now, member: &str, generation: u64) -> Result<MemberId, Refusal> {
        let member = self.members.seen(now, member)?;
        if generation > self.generation {
            return Err(Refusal::Fenced { generation: self.generation });
        }
        Ok(member)
    }

    pub(crate) fn join(&mut self, now: Now, id: &str, client: &str, member_max: u64) -> Result<MemberId, Refusal> {
        let current = self.members.len() as u64;
        if current >= member_max {
            return Err(Refusal::MemberQuota { limit: member_max, current });
        }
        // 128 random bits do not come twice; if they did, the second does not become the first.
        self.members.join(now, id, client).ok_or_else(|| Refusal::UnknownMember { member: id.into() })
    }
}
