//! Moving a group: by offsets, to either end, or to a time. A seek is allowed while members are there: it raises the generation,
//! so whatever they have from before is fenced, and they go on after their next heartbeat.

use std::collections::BTreeMap;

use tidegate_core::id::Name;
use tidegate_core::position::{Offset, Partition};
use tidegate_core::principal::Principal;

use super::GroupService;
use super::command::{Command, Outcome};
use super::error::GroupError;
use super::poll::unexpected;
use super::request::SeekTo;
use crate::handle::StreamHandle;

impl GroupService {
    /// Moves a group, durable when answered; the answer is the new committed positions. An ordered group goes on there. A
    /// shared one forgets, of the partitions that move, what was delivered and what was acknowledged: every record from there
    /// on is delivered as if for the first time, and earlier deliveries are unknown. The members' generation is fenced.
    pub async fn seek(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        to: SeekTo,
    ) -> Result<BTreeMap<u32, u64>, GroupError> {
        let handle = self.streams.handle(principal, stream).await?;
        let positions = resolve(&handle, to).await?;
        match self.registry.call(&handle, group, Command::Seek { positions }).await? {
            Outcome::Positions(positions) => Ok(positions),
            _ => Err(unexpected()),
        }
    }
}

async fn resolve(handle: &StreamHandle, to: SeekTo) -> Result<BTreeMap<u32, u64>, GroupError> {
    let bounds = handle.bounds().await?;
    let all = bounds.iter().map(|bound| (bound.partition.0, bound));
    Ok(match to {
        SeekTo::Earliest => all.map(|(partition, bound)| (partition, bound.earliest.0)).collect(),
        SeekTo::Latest => all.map(|(partition, bound)| (partition, bound.next.0)).collect(),
        SeekTo::Time(time) => {
            let mut positions = BTreeMap::new();
            for (partition, bound) in all {
                let range = (bound.earliest, bound.next);
                let reached = move |record: &crate::record::Record| record.append_time >= time;
                positions.insert(partition, handle.first_where(bound.partition, range, reached).await?.0);
            }
            positions
        }
        SeekTo::Positions(positions) => {
            for (&partition, &offset) in &positions {
                let partition = Partition(partition);
                handle.check_partition(partition)?;
                let Some(bound) = bounds.get(partition.0 as usize) else { continue };
                if !(bound.earliest.0..=bound.next.0).contains(&offset) {
                    let (asked, next, earliest) = (Offset(offset), bound.next, bound.earliest);
                    return Err(GroupError::OutOfRange { partition, asked, next, earliest });
                }
            }
            positions
        }
    })
}
