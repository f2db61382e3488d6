//! A group's machine, whichever its mode. It never does more than pass on.

use std::collections::BTreeMap;

use tidegate_core::Moment;

use super::cell::{Cell, Stored, StoredEntry, StoredMain, StoredPlace, corrupt};
use super::command::{Command, Now, Outcome, Touched};
use super::member::{Head, Members};
use super::ordered::Ordered;
use super::shared::Shared;
use super::spec::GroupMode;
use crate::error::StoreError;

/// A group.
#[derive(Debug)]
pub(crate) enum Machine {
    Ordered(Box<Ordered>),
    Shared(Box<Shared>),
}

/// What is stored of a group beside what it is.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    pub(crate) start: Option<Vec<u64>>,
    places: BTreeMap<u32, StoredPlace>,
    lanes: BTreeMap<u32, u64>,
    blocks: BTreeMap<(u32, u64), Vec<StoredEntry>>,
}

impl Cells {
    /// Takes one cell in.
    pub(crate) fn put(&mut self, cell: Cell, stored: Stored) -> Result<(), StoreError> {
        match (cell, stored) {
            (Cell::Start, Stored::Start(start)) => self.start = Some(start),
            (Cell::Partition(partition), Stored::Place(place)) => drop(self.places.insert(partition, place)),
            (Cell::Partition(partition), Stored::Lane(next)) => drop(self.lanes.insert(partition, next)),
            (Cell::Block(partition, block), Stored::Block(entries)) => {
                drop(self.blocks.insert((partition, block), entries));
            }
            _ => return Err(corrupt("a consumer group has a cell under the key of another")),
        }
        Ok(())
    }
}

impl Machine {
    /// The group as it is stored; `before` are members whose sessions go on.
    pub(crate) fn restore(
        main: &StoredMain,
        cells: &Cells,
        now: Now,
        before: Option<&Members>,
    ) -> Result<Self, StoreError> {
        let start = cells.start.as_deref().ok_or_else(|| corrupt("a consumer group does not say where it began"))?;
        Ok(match main.spec.mode {
            GroupMode::Ordered => Self::Ordered(Box::new(Ordered::restore(main, start, &cells.places, now, before))),
            GroupMode::Shared => {
                let (lanes, blocks) = (&cells.lanes, &cells.blocks);
                Self::Shared(Box::new(Shared::restore(main, start, lanes, blocks, now, before)))
            }
        })
    }

    pub(crate) fn apply(&mut self, now: Now, command: &Command, touched: &mut Touched) -> Outcome {
        match self {
            Self::Ordered(ordered) => ordered.apply(now, command, touched),
            Self::Shared(shared) => shared.apply(now, command, touched),
        }
    }

    pub(crate) fn stored(&self, cell: Cell) -> Option<Stored> {
        match self {
            Self::Ordered(ordered) => ordered.stored(cell),
            Self::Shared(shared) => shared.stored(cell),
        }
    }

    pub(crate) fn head(&self) -> &Head {
        match self {
            Self::Ordered(ordered) => ordered.head(),
            Self::Shared(shared) => shared.head(),
        }
    }

    /// What is left of a group that has to be read again: the sessions of its members.
    pub(crate) fn into_members(self) -> Members {
        match self {
            Self::Ordered(ordered) => ordered.into_members(),
            Self::Shared(shared) => shared.into_members(),
        }
    }

    pub(crate) fn wakes(&self) -> u64 {
        match self {
            Self::Ordered(ordered) => ordered.wakes(),
            Self::Shared(shared) => shared.wakes(),
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        match self {
            Self::Ordered(ordered) => ordered.next_deadline(),
            Self::Shared(shared) => shared.next_deadline(),
        }
    }

    /// What is to go to the dead letters: partition, offset, deliveries.
    pub(crate) fn dead(&self, limit: usize) -> Vec<(u32, u64, u32)> {
        match self {
            Self::Ordered(_) => Vec::new(),
            Self::Shared(shared) => shared.dead(limit),
        }
    }
}
