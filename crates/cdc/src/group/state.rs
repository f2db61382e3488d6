//! A group's cells in the metadata store: read whole, changed by compare-and-swap of what was known, so that whoever is behind
//! writes nothing. It never decides anything.

use std::collections::HashMap;

use tidegate_core::id::Name;
use tidegate_core::port::{CompareAndSwap, MetaRange, Revision, Swap};

use super::cell::{self, Cell, Stored, StoredMain, corrupt};
use super::command::{Now, Touched};
use super::machine::{Cells, Machine};
use super::member::Members;
use crate::error::StoreError;
use crate::handle::StreamHandle;
use crate::service::{ATTEMPTS_MAX, SCAN_PAGE};

/// A group with the revisions of its cells.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) machine: Machine,
    revisions: HashMap<Cell, Revision>,
}

/// Changes of cells, ready to be made in one step with others: the stream's own comes first.
#[derive(Debug)]
pub(crate) struct Change {
    cells: Vec<Cell>,
    pub(crate) swaps: Vec<CompareAndSwap>,
}

/// What a group is, with its revision; also one that is being removed.
pub(crate) async fn load_main(
    handle: &StreamHandle,
    group: &Name,
) -> Result<Option<(StoredMain, Revision)>, StoreError> {
    let entry = handle.core.meta.get(&cell::main_key(handle.incarnation(), group)).await?;
    let Some(entry) = entry else { return Ok(None) };
    let Some(value) = entry.value else { return Ok(None) };
    Ok(Some((open_main(&value)?, entry.revision)))
}

pub(crate) fn open_main(value: &[u8]) -> Result<StoredMain, StoreError> {
    match Stored::unseal(value)? {
        Stored::Main(main) => Ok(main),
        _ => Err(corrupt("a consumer group has a cell under the key of another")),
    }
}

impl Loaded {
    /// Reads a group. `None`: there is none. `before`: members whose sessions go on.
    pub(crate) async fn load(
        handle: &StreamHandle,
        group: &Name,
        now: Now,
        before: Option<&Members>,
    ) -> Result<Option<Self>, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some((main, revision)) = load_main(handle, group).await? else { return Ok(None) };
            if main.removing {
                return Ok(None);
            }
            let mut revisions = HashMap::from([(Cell::Main, revision)]);
            let mut cells = Cells::default();
            let prefix = cell::prefix(handle.incarnation(), &main.life).freeze();
            let mut from = prefix.clone();
            let mut pages = 0_u32;
            loop {
                let range = MetaRange { prefix: prefix.clone(), from: from.clone(), limit: SCAN_PAGE };
                let entries = handle.core.meta.scan(range).await?;
                let whole = entries.len() == SCAN_PAGE;
                pages += 1;
                for entry in entries {
                    let place = Cell::from_rest(&entry.key[prefix.len()..]);
                    let place = place.ok_or_else(|| corrupt("a consumer group has a cell under an unknown key"))?;
                    let mut next = entry.key.to_vec();
                    next.push(0);
                    from = next.into();
                    let Some(value) = entry.value else { continue };
                    revisions.insert(place, entry.revision);
                    cells.put(place, Stored::unseal(&value)?)?;
                }
                if !whole {
                    break;
                }
            }
            // Several pages are no consistent cut: what the group is must not have changed while they were read.
            if (pages > 1 || cells.start.is_none())
                && load_main(handle, group).await?.is_none_or(|(_, now)| now != revision)
            {
                continue;
            }
            let machine = Machine::restore(&main, &cells, now, before)?;
            return Ok(Some(Self { machine, revisions }));
        }
        Err(StoreError::Contended)
    }

    /// The swaps that store what was touched, under the condition that nobody else changed it, what the group is, or the
    /// stream.
    pub(crate) fn change(&self, handle: &StreamHandle, group: &Name, touched: &Touched) -> Change {
        let mut change = Change { cells: Vec::new(), swaps: vec![handle.unchanged()] };
        let incarnation = handle.incarnation();
        let life = self.machine.head().life;
        if !touched.cells.contains(&Cell::Main) {
            change.cells.push(Cell::Main);
            change.swaps.push(CompareAndSwap {
                key: cell::main_key(incarnation, group),
                expected: self.revisions.get(&Cell::Main).copied(),
                swap: Swap::Check,
            });
        }
        for cell in &touched.cells {
            let expected = self.revisions.get(cell).copied();
            let swap = match self.machine.stored(*cell) {
                Some(stored) => Swap::Put(stored.seal()),
                None if expected.is_some() => Swap::Delete,
                // It came and went before it was ever stored.
                None => continue,
            };
            change.cells.push(*cell);
            change.swaps.push(CompareAndSwap { key: cell.key(incarnation, group, &life), expected, swap });
        }
        change
    }

    /// Takes in the revisions that a change got, the stream's included.
    pub(crate) fn changed(&mut self, change: &Change, revisions: &[Revision]) {
        let ours = change.cells.iter().zip(change.swaps.iter().zip(revisions).skip(1));
        for (cell, (swap, revision)) in ours {
            match swap.swap {
                Swap::Delete => drop(self.revisions.remove(cell)),
                Swap::Put(_) | Swap::PutWithRanges(_) => drop(self.revisions.insert(*cell, *revision)),
                Swap::Check => {}
            }
        }
    }

    /// Looks up the revisions that a change got which was made together with an append. `false`: somebody changed a cell since.
    pub(crate) async fn look_up(&mut self, handle: &StreamHandle, change: &Change) -> Result<bool, StoreError> {
        for (cell, swap) in change.cells.iter().zip(change.swaps.iter().skip(1)) {
            let wanted = match &swap.swap {
                Swap::Check => continue,
                Swap::Put(value) | Swap::PutWithRanges(value) => Some(value),
                Swap::Delete => None,
            };
            let entry = handle.core.meta.get(&swap.key).await?;
            let found = entry.as_ref().and_then(|entry| entry.value.as_ref());
            if found != wanted {
                return Ok(false);
            }
            match entry {
                Some(entry) if wanted.is_some() => drop(self.revisions.insert(*cell, entry.revision)),
                _ => drop(self.revisions.remove(cell)),
            }
        }
        Ok(true)
    }
}
