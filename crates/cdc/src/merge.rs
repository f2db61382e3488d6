//! Reading several partitions as one: in the order of their appends, which is the same for every reader at every time, so that a
//! place in one partition says where in the others a reader was.

use tidegate_core::port::{Commit, ReadBounds};
use tidegate_core::position::{Offset, Partition};

use crate::error::ReadError;
use crate::feed::{Segment, Selection};
use crate::handle::StreamHandle;
use crate::record::Item;

/// Reads on from `positions` (a selected partition each); `None` where there is nothing.
pub(crate) async fn read_merged(
    handle: &StreamHandle,
    selection: Selection,
    positions: &[Offset],
    bounds: ReadBounds,
) -> Result<Option<Segment>, ReadError> {
    let (items, end) = match selection {
        Selection::One(partition) => {
            let from = positions.first().copied().unwrap_or(Offset::ZERO);
            let (items, next) = handle.read(partition, from, bounds).await?;
            (items, vec![next])
        }
        Selection::All if positions.len() == 1 => {
            let (items, next) = handle.read(Partition(0), positions[0], bounds).await?;
            (items, vec![next])
        }
        Selection::All => merge_all(handle, positions, bounds).await?,
    };
    if items.is_empty() {
        return Ok(None);
    }
    Ok(Some(Segment::new(positions.to_vec(), end, items)))
}

/// One partition's part: its items, each with the commit that it is ordered by, and what of it is not read yet.
struct Part {
    items: Vec<(Commit, Item)>,
    /// There is more before the cut: only what is ordered up to this may be given out.
    read_up_to: Option<Commit>,
}

async fn merge_all(
    handle: &StreamHandle,
    positions: &[Offset],
    bounds: ReadBounds,
) -> Result<(Vec<Item>, Vec<Offset>), ReadError> {
    // A consistent cut: what is beyond it may belong between appends that are not read here.
    let cut = handle.bounds().await?;
    let active = cut.iter().zip(positions).filter(|(cut, at)| cut.next > **at).count();
    if active == 0 {
        return Ok((Vec::new(), positions.to_vec()));
    }
    let share = ReadBounds {
        records: (bounds.records / u32::try_from(active).unwrap_or(u32::MAX)).max(1),
        bytes: (bounds.bytes / active as u64).max(1),
    };
    let mut parts = Vec::with_capacity(active);
    for (cut, at) in cut.iter().zip(positions).filter(|(cut, at)| cut.next > **at) {
        let (mut items, mut next) = handle.read(cut.partition, *at, share).await?;
        while items.last().is_some_and(|last| last.next() > cut.next) {
            match items.last_mut() {
                Some(Item::Gap(gap)) if gap.from < cut.next => gap.to = cut.next,
                _ => drop(items.pop()),
            }
        }
        next = next.min(cut.next);
        parts.push(part(items, next < cut.next));
    }
    let limit =
        parts.iter().enumerate().filter_map(|(place, part)| part.read_up_to.map(|commit| (commit, place))).min();
    let mut merged: Vec<(Commit, usize, Item)> = Vec::new();
    for (place, part) in parts.into_iter().enumerate() {
        for (commit, item) in part.items {
            if limit.is_none_or(|limit| (commit, place) <= limit) {
                merged.push((commit, place, item));
            }
        }
    }
    // Stable: the items of one partition stay in their order.
    merged.sort_by_key(|(commit, place, _)| (*commit, *place));
    let mut end = positions.to_vec();
    let items: Vec<Item> = merged.into_iter().map(|(_, _, item)| item).collect();
    for item in &items {
        end[item.partition().0 as usize] = item.next();
    }
    Ok((items, end))
}

/// A gap is ordered with the record after it, one at the end with the record before it.
fn part(items: Vec<Item>, more: bool) -> Part {
    let mut commits = Vec::with_capacity(items.len());
    let mut after = None;
    for item in items.iter().rev() {
        if let Item::Record(record) = item {
            after = Some(record.commit);
        }
        commits.push(after);
    }
    commits.reverse();
    let mut before = Commit(0);
    let items: Vec<(Commit, Item)> = items
        .into_iter()
        .zip(commits)
        .map(|(item, commit)| {
            before = commit.unwrap_or(before);
            (before, item)
        })
        .collect();
    let last = items.last().map_or(Commit(0), |(commit, _)| *commit);
    Part { read_up_to: more.then_some(last), items }
}

/// Where the others stand when a reader of all partitions has just read `offset` of `partition`: right after it in the order of
/// appends. Where that record is gone, right after the last one before it that is there: records may come again, none is lost.
/// Where the others' records of that time are gone, the reader is told of the whole gap, although it may have read a part of it.
pub(crate) async fn positions_after(
    handle: &StreamHandle,
    partition: Partition,
    offset: Offset,
) -> Result<Vec<Offset>, ReadError> {
    let bounds = handle.bounds().await?;
    let own = bounds.get(partition.0 as usize).copied().ok_or_else(|| handle.not_found())?;
    let next = offset.checked_add(1).unwrap_or(offset);
    if next > own.next {
        return Err(ReadError::OutOfRange { partition, asked: next, next: own.next, earliest: own.earliest });
    }
    let anchor = record_at_or_before(handle, partition, offset, own.earliest).await?;
    let mut positions = Vec::with_capacity(bounds.len());
    for other in &bounds {
        positions.push(match anchor {
            _ if other.partition == partition => next,
            // Nothing says where the reader was: it is told of all that is gone there.
            None => Offset::ZERO,
            Some(commit) => {
                let later = other.partition > partition;
                let first = handle
                    .first_where(other.partition, (other.earliest, other.next), move |record| {
                        if later { record.commit >= commit } else { record.commit > commit }
                    })
                    .await?;
                // What is there is all newer, so what is gone may have been too: it is told of, rather than passed over.
                if first == other.earliest { Offset::ZERO } else { first }
            }
        });
    }
    Ok(positions)
}

/// The commit of the record at `offset`, or of the last one before it that is there.
async fn record_at_or_before(
    handle: &StreamHandle,
    partition: Partition,
    offset: Offset,
    earliest: Offset,
) -> Result<Option<Commit>, ReadError> {
    let mut back = 0_u64;
    loop {
        let from = Offset(offset.0.saturating_sub(back).max(earliest.0));
        let mut at = from;
        let mut found = None;
        while at <= offset {
            let (items, next) = handle.read(partition, at, ReadBounds { records: 1_024, bytes: 1024 * 1024 }).await?;
            for item in items {
                if let Item::Record(record) = item
                    && record.offset <= offset
                {
                    found = Some(record.commit);
                }
            }
            if next <= at {
                break;
            }
            at = next;
        }
        if found.is_some() || from <= earliest {
            return Ok(found);
        }
        back = back.saturating_mul(4).max(64);
    }
}
