//! Reading several partitions for one poll: each from its own position, the records and bytes that the poll may have fairly
//! shared. It never moves a position.

use tidegate_core::port::ReadBounds;
use tidegate_core::position::{Gap, Offset, Partition};

use super::command::Plan;
use super::error::GroupError;
use super::spec::OnGap;
use crate::handle::StreamHandle;
use crate::record::{Item, Record};

/// What a poll may still have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    pub(crate) records: u32,
    pub(crate) bytes: u64,
    /// Nothing was taken yet: the first record is, however large.
    pub(crate) untouched: bool,
}

impl Left {
    /// Takes a record if there is room for it.
    fn take(&mut self, record: &Record) -> bool {
        let bytes = record.bytes();
        if self.records == 0 || (!self.untouched && bytes > self.bytes) {
            return false;
        }
        self.records -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.untouched = false;
        true
    }

    fn is_used_up(&self) -> bool {
        self.records == 0 || (!self.untouched && self.bytes == 0)
    }
}

/// What was read of one partition.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) partition: u32,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) gaps: Vec<Gap>,
}

/// Reads on from the plan's positions. `Err` inside: the group stops at this gap.
pub(crate) async fn gather(
    handle: &StreamHandle,
    plan: &Plan,
    left: &mut Left,
    on_gap: OnGap,
) -> Result<Result<Vec<Part>, Gap>, GroupError> {
    let bounds = handle.bounds().await?;
    let mut waiting = Vec::new();
    for &(partition, from) in &plan.places {
        let Some(bound) = bounds.get(partition as usize) else { continue };
        if from > bound.next.0 {
            let (asked, next, earliest) = (Offset(from), bound.next, bound.earliest);
            return Err(GroupError::OutOfRange { partition: Partition(partition), asked, next, earliest });
        }
        if from < bound.next.0 {
            waiting.push((partition, from));
        }
    }
    if waiting.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let turn = usize::try_from(plan.turn % waiting.len() as u64).expect("below a length");
    waiting.rotate_left(turn);
    // Where the group stood at a gap comes first, so that each poll says so.
    waiting.sort_by_key(|(partition, _)| !plan.stopped.contains(partition));
    let mut parts = Vec::with_capacity(waiting.len());
    let count = waiting.len();
    for (place, (partition, from)) in waiting.into_iter().enumerate() {
        let stood = plan.stopped.contains(&partition);
        if left.is_used_up() && !stood {
            break;
        }
        let others = (count - place) as u64;
        let share = ReadBounds {
            records: left.records.div_ceil(u32::try_from(others).unwrap_or(u32::MAX)).max(1),
            bytes: left.bytes.div_ceil(others).max(1),
        };
        let (items, _) = handle.read(Partition(partition), Offset(from), share).await?;
        let mut part = Part { partition, from, to: from, records: Vec::new(), gaps: Vec::new() };
        for item in items {
            match item {
                Item::Gap(gap) if on_gap == OnGap::Stop => {
                    if part.to == from {
                        return Ok(Err(gap));
                    }
                    // What comes before it is delivered first.
                    break;
                }
                Item::Gap(gap) => {
                    part.to = gap.to.0;
                    part.gaps.push(gap);
                }
                Item::Record(record) => {
                    if !left.take(&record) {
                        break;
                    }
                    part.to = record.offset.0 + 1;
                    part.records.push(record);
                }
            }
        }
        if part.to > part.from {
            parts.push(part);
        }
    }
    Ok(Ok(parts))
}

/// Records that are to be delivered again: those that are there, and the places of those that are gone.
#[derive(Debug, Default)]
pub(crate) struct Again {
    pub(crate) records: Vec<Record>,
    pub(crate) gone: Vec<(u32, u64)>,
    pub(crate) gaps: Vec<Gap>,
}

/// Reads records at these places, as many as there is room for.
pub(crate) async fn gather_again(
    handle: &StreamHandle,
    places: &[(u32, u64)],
    left: &mut Left,
) -> Result<Again, GroupError> {
    let mut again = Again::default();
    let mut places = places.to_vec();
    places.sort_unstable();
    let mut rest = &places[..];
    while let Some(&(partition, first)) = rest.first() {
        if left.is_used_up() {
            break;
        }
        let run = (0_u64..).zip(rest).take_while(|(number, place)| **place == (partition, first + number)).count();
        let (now, later) = rest.split_at(run);
        rest = later;
        let end = first + run as u64;
        let mut at = first;
        while at < end && !left.is_used_up() {
            let bounds = ReadBounds {
                records: left.records.min(u32::try_from(end - at).unwrap_or(u32::MAX)),
                bytes: left.bytes.max(1),
            };
            let (items, next) = handle.read(Partition(partition), Offset(at), bounds).await?;
            if next.0 <= at {
                break;
            }
            at = next.0;
            for item in items {
                match item {
                    Item::Record(record) if record.offset.0 < end => {
                        if !left.take(&record) {
                            at = end;
                            break;
                        }
                        again.records.push(record);
                    }
                    Item::Record(_) => {}
                    Item::Gap(gap) => {
                        let (from, to) = (gap.from.0.max(first), gap.to.0.min(end));
                        if from < to {
                            again.gaps.push(Gap { from: Offset(from), to: Offset(to), ..gap });
                            again.gone.extend(now.iter().filter(|(_, offset)| (from..to).contains(offset)));
                        }
                    }
                }
            }
        }
    }
    Ok(again)
}
