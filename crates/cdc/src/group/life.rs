//! Groups come and go: creating, describing, listing and removing them. A group that is removed is first marked, so that a crash
//! in between leaves nothing that a later creation would take for its own.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::id::Name;
use tidegate_core::port::{CompareAndSwap, MetaRange, Revision, Swap, SwapOutcome};
use tidegate_core::principal::Principal;

use super::GroupService;
use super::cell::{self, Cell, Life, Stored, StoredMain, corrupt};
use super::command::{Command, Now, Outcome, Snapshot, Touched};
use super::error::GroupError;
use super::poll::unexpected;
use super::request::{CreatedGroup, GroupDescription, PositionInfo};
use super::spec::{GroupMode, GroupSpec, GroupStart};
use super::state::{Loaded, load_main, open_main};
use crate::error::{StoreError, StreamError};
use crate::handle::StreamHandle;
use crate::key;
use crate::service::{ATTEMPTS_MAX, SCAN_PAGE};

impl GroupService {
    /// Creates a group, durable when answered, with its positions pinned: at the first record that is there now, or at the tail
    /// as it is now. The same one again is [`CreatedGroup::Existed`], wherever it is by then.
    pub async fn create(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        spec: &GroupSpec,
    ) -> Result<CreatedGroup, GroupError> {
        spec.check(stream)?;
        let handle = self.streams.handle(principal, stream).await?;
        for _ in 0..ATTEMPTS_MAX {
            match load_main(&handle, group).await? {
                Some((main, revision)) if main.removing => clear_away(&handle, group, &main.life, revision).await?,
                Some((main, _)) => {
                    return match main.spec.difference(spec) {
                        None => Ok(CreatedGroup::Existed),
                        Some(difference) => {
                            Err(GroupError::Exists { name: group.clone(), difference: difference.into() })
                        }
                    };
                }
                None => {
                    self.check_dead_letter(principal, spec).await?;
                    self.check_quota(&handle).await?;
                    if self.establish(&handle, group, spec).await? {
                        return Ok(CreatedGroup::New);
                    }
                }
            }
        }
        Err(StoreError::Contended.into())
    }

    async fn check_dead_letter(&self, principal: &Principal, spec: &GroupSpec) -> Result<(), GroupError> {
        let Some(name) = &spec.dead_letter else { return Ok(()) };
        match self.streams.handle(principal, name).await {
            Ok(target) if target.meta().durable.is_some() => Err(GroupError::DeadLetterKind { name: name.clone() }),
            Ok(_) => Ok(()),
            Err(StreamError::NotFound { .. } | StreamError::Gone { .. }) => {
                Err(GroupError::DeadLetterNotFound { name: name.clone() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Groups that are created at the same moment may pass the bound by as many as they are.
    async fn check_quota(&self, handle: &StreamHandle) -> Result<(), GroupError> {
        let limit = self.streams.core.settings.freeze().limits_group_max_per_stream();
        let (mut current, mut from) = (0_u64, None);
        loop {
            let page = page(handle, from, SCAN_PAGE).await?;
            current += page.groups.len() as u64;
            if current >= limit {
                return Err(GroupError::Quota { limit, current });
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// `false`: somebody else was quicker.
    async fn establish(&self, handle: &StreamHandle, group: &Name, spec: &GroupSpec) -> Result<bool, GroupError> {
        let core = &self.streams.core;
        let mut life: Life = [0; 16];
        core.entropy.fill(&mut life)?;
        let bounds = handle.bounds().await?;
        let start = bounds.iter().map(|bound| match spec.start {
            GroupStart::Earliest => bound.earliest.0,
            GroupStart::Latest => bound.next.0,
        });
        let start = Stored::Start(start.collect());
        let main = Stored::Main(StoredMain {
            life,
            spec: spec.clone(),
            created_at_ms: core.clock.timestamp().unix_ms(),
            generation: 1,
            removing: false,
            members: Vec::new(),
        });
        let put = |cell: Cell, stored: &Stored| CompareAndSwap {
            key: cell.key(handle.incarnation(), group, &life),
            expected: None,
            swap: Swap::Put(stored.seal()),
        };
        let swaps = vec![handle.unchanged(), put(Cell::Main, &main), put(Cell::Start, &start)];
        match core.meta.compare_and_swap(swaps, core.durability).await.map_err(StoreError::from)? {
            SwapOutcome::Swapped(_) => Ok(true),
            SwapOutcome::Mismatch { index: 0, .. } => {
                core.refresh(handle).await?;
                Ok(false)
            }
            SwapOutcome::Mismatch { .. } => Ok(false),
        }
    }

    /// What a group is now.
    pub async fn describe(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
    ) -> Result<GroupDescription, GroupError> {
        let handle = self.streams.handle(principal, stream).await?;
        self.describe_group(&handle, group).await
    }

    async fn describe_group(&self, handle: &Arc<StreamHandle>, group: &Name) -> Result<GroupDescription, GroupError> {
        let not_found = || GroupError::NotFound { name: group.clone() };
        let (main, _) = load_main(handle, group).await?.ok_or_else(not_found)?;
        // One that is at work knows who was seen when; one that rests is read as it is stored, without waking it up.
        let outcome = if self.registry.find(handle, group).is_some() {
            self.registry.call(handle, group, Command::Describe).await?
        } else {
            let clock = &self.streams.core.clock;
            let now = Now { moment: clock.now(), wall: clock.timestamp() };
            let mut loaded = Loaded::load(handle, group, now, None).await?.ok_or_else(not_found)?;
            loaded.machine.apply(now, &Command::Describe, &mut Touched::default())
        };
        let Outcome::Described(snapshot) = outcome else { return Err(unexpected()) };
        let bounds = handle.bounds().await?;
        let shared = main.spec.mode == GroupMode::Shared;
        let in_flight = shared.then(|| snapshot.outstanding.iter().sum());
        let positions = bounds.iter().enumerate().filter_map(|(place, bound)| {
            let committed = *snapshot.committed.get(place)?;
            let (next, earliest) = (bound.next.0, bound.earliest.0);
            Some(PositionInfo {
                partition: bound.partition.0,
                committed,
                next,
                earliest,
                lag: lag(&snapshot, place, shared, next, earliest),
            })
        });
        Ok(GroupDescription {
            name: group.clone(),
            spec: main.spec,
            generation: snapshot.generation,
            positions: positions.collect(),
            members: snapshot.members,
            in_flight,
        })
    }

    /// The stream's groups in the order of their names, after `after`, at most `limit`.
    pub async fn list(
        &self,
        principal: &Principal,
        stream: &Name,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<GroupDescription>, GroupError> {
        let handle = self.streams.handle(principal, stream).await?;
        let mut from = after.map(|after| {
            let mut from = cell::main_key(handle.incarnation(), after).to_vec();
            from.push(0);
            Bytes::from(from)
        });
        let mut found = Vec::new();
        while found.len() < limit {
            let page = page(&handle, from, (limit - found.len()).min(SCAN_PAGE)).await?;
            for group in &page.groups {
                match self.describe_group(&handle, group).await {
                    Ok(described) => found.push(described),
                    // Removed between the two looks.
                    Err(GroupError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        Ok(found)
    }

    /// Removes a group with its positions, durable when answered. Its members are told that it is not there.
    pub async fn delete(&self, principal: &Principal, stream: &Name, group: &Name) -> Result<(), GroupError> {
        let handle = self.streams.handle(principal, stream).await?;
        let deleted = self.delete_group(&handle, group).await;
        // Whatever the answer: what the group's task knows may be no longer so.
        if let Some(actor) = self.registry.find(&handle, group) {
            actor.reload();
        }
        deleted
    }

    async fn delete_group(&self, handle: &StreamHandle, group: &Name) -> Result<(), GroupError> {
        let core = &self.streams.core;
        for _ in 0..ATTEMPTS_MAX {
            let Some((mut main, revision)) = load_main(handle, group).await? else {
                return Err(GroupError::NotFound { name: group.clone() });
            };
            if main.removing {
                clear_away(handle, group, &main.life, revision).await?;
                continue;
            }
            main.removing = true;
            let life = main.life;
            let mark = CompareAndSwap {
                key: cell::main_key(handle.incarnation(), group),
                expected: Some(revision),
                swap: Swap::Put(Stored::Main(main).seal()),
            };
            let swaps = vec![handle.unchanged(), mark];
            match core.meta.compare_and_swap(swaps, core.durability).await.map_err(StoreError::from)? {
                SwapOutcome::Swapped(revisions) => {
                    if let Some(revision) = revisions.last()
                        && let Err(error) = clear_away(handle, group, &life, *revision).await
                    {
                        // It is gone for everybody; what is left is cleared away when the name is used again.
                        tracing::warn!(%error, "what is left of a removed consumer group stays for now");
                    }
                    return Ok(());
                }
                SwapOutcome::Mismatch { index: 0, .. } => core.refresh(handle).await?,
                SwapOutcome::Mismatch { .. } => {}
            }
        }
        Err(StoreError::Contended.into())
    }
}

/// Records that are there and not done.
fn lag(snapshot: &Snapshot, place: usize, shared: bool, next: u64, earliest: u64) -> u64 {
    let at = |all: &[u64]| all.get(place).copied().unwrap_or(0);
    if shared {
        return next.saturating_sub(at(&snapshot.delivered).max(earliest)) + at(&snapshot.outstanding);
    }
    next.saturating_sub(at(&snapshot.committed).max(earliest))
}

/// Clears away what is left of a group that is marked as being removed. It may be done again after a crash.
async fn clear_away(handle: &StreamHandle, group: &Name, life: &Life, revision: Revision) -> Result<(), StoreError> {
    let core = &handle.core;
    core.remove_entries(cell::prefix(handle.incarnation(), life).freeze()).await?;
    let key = cell::main_key(handle.incarnation(), group);
    let swap = CompareAndSwap { key, expected: Some(revision), swap: Swap::Delete };
    // A mismatch: somebody else cleared it away.
    core.meta.compare_and_swap(vec![swap], core.durability).await?;
    Ok(())
}

/// Some of a stream's groups, and where to go on.
struct Page {
    groups: Vec<Name>,
    next: Option<Bytes>,
}

async fn page(handle: &StreamHandle, from: Option<Bytes>, limit: usize) -> Result<Page, StoreError> {
    let prefix = key::groups(handle.incarnation()).freeze();
    let range = MetaRange { prefix: prefix.clone(), from: from.unwrap_or_else(|| prefix.clone()), limit };
    let entries = handle.core.meta.scan(range).await?;
    let next = entries.last().filter(|_| entries.len() == limit).map(|last| {
        let mut next = last.key.to_vec();
        next.push(0);
        Bytes::from(next)
    });
    let mut groups = Vec::with_capacity(entries.len());
    for entry in entries {
        let Some(value) = &entry.value else { continue };
        if open_main(value)?.removing {
            continue;
        }
        let name = entry.key.get(prefix.len()..).and_then(|rest| rest.strip_suffix(&[0]));
        let name = name.and_then(|name| std::str::from_utf8(name).ok()).and_then(|name| Name::new(name).ok());
        groups.push(name.ok_or_else(|| corrupt("the name of a consumer group"))?);
    }
    Ok(Page { groups, next })
}
