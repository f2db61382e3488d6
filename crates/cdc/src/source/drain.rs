//! What a stream refused goes to it once it takes records again: in the order in which it came, whole transactions, each once. It never
//! lets a later record of the stream pass.

use std::sync::Arc;

use tidegate_core::port::{
    AppendBatch, AppendOutcome, Commit, Durability, LogReadItem, ReadBounds, StreamAppend, StreamId, Trim,
};
use tidegate_core::position::{Offset, Partition};

use super::driver::Driver;
use super::error::Halt;
use super::machine::Command;
use super::prepare::{Encoded, place};
use crate::error::StoreError;

/// How much is taken out at a time, beyond which no further transaction is begun.
const STEP: ReadBounds = ReadBounds { records: 8_192, bytes: 4 * 1024 * 1024 };

/// Records of whole transactions.
struct Step {
    records: Vec<Encoded>,
    bytes: u64,
    next: Offset,
}

impl Driver {
    /// Tries the stream that is due, one step. `false` = none is, or it still refuses.
    pub(crate) async fn drain_due(&mut self) -> Result<bool, Halt> {
        let now = self.core.clock.now();
        let Some(table) = self.machine.next_retry().filter(|(at, _)| *at <= now).map(|(_, table)| Box::from(table))
        else {
            return Ok(false);
        };
        let handle = match self.open_stream(&table).await? {
            Ok(handle) => handle,
            Err(code) => {
                let chance = self.chance()?;
                let _ = self.machine.apply(now, Command::Refused { table: table.clone(), chance });
                self.show_lag(&table, None, Some(code));
                return Ok(false);
            }
        };
        let mut stored = self.table(&table)?.stored.clone();
        let Some(spill) = stored.spill.as_mut() else { return Ok(false) };
        let log_id = spill.log_id(&self.spec.tenant);
        let step = self.read_spill(&log_id, Offset(spill.next)).await?;
        spill.next = step.next.0;
        let (meta, revision) = handle.known();
        stored.life = Some(meta.incarnation);
        let held = self.held.as_ref().ok_or(Halt::Fenced)?;
        let mut next = held.stored.clone();
        next.beat += 1;
        let source = next.swap(&self.key, held.revision);
        let entry = self.table_swap(&table, &stored).await?;
        let now_wall = self.core.clock.timestamp();
        let partitions = place(&step.records, meta.partitions, meta.tombstone_grace_ms.is_some(), now_wall);
        let batch = AppendBatch {
            streams: vec![StreamAppend { stream: handle.log_id.clone(), partitions }],
            state: vec![source, handle.unchanged_at(revision), entry],
            durability: Durability::Fsync,
        };
        match self.core.log.append(batch).await.map_err(StoreError::from)? {
            AppendOutcome::Appended(_) => {
                self.settle(next).await?;
                let known = self.table(&table)?;
                (known.stored, known.stale) = (stored, true);
                let records = step.records.len() as u64;
                let drained = Command::Drained { table: table.clone(), records, bytes: step.bytes };
                let _ = self.machine.apply(self.core.clock.now(), drained);
                metrics::counter!("tidegate_source_drained_records_total", "source" => self.spec.name.to_string())
                    .increment(records);
                self.show_lag(&table, None, Some("stream_catching_up"));
                if self.machine.lag(&table).is_none() {
                    tracing::info!(source = %self.spec.name, table = &*table, "the stream has what it had refused");
                }
                // Only space: where it fails the next start makes it good.
                let trim = Trim::Before { partition: Partition(0), before: step.next };
                if let Err(error) = self.core.log.trim(&log_id, trim).await {
                    tracing::warn!(%error, source = %self.spec.name, "what a stream got was not forgotten yet");
                }
                handle.touch();
                Ok(true)
            }
            AppendOutcome::StateMismatch { index: 0, .. } => Err(self.overtaken().await?),
            _ => {
                self.look_again(&table).await?;
                let chance = self.chance()?;
                let _ = self.machine.apply(self.core.clock.now(), Command::Refused { table, chance });
                Ok(false)
            }
        }
    }

    /// The oldest transactions that wait, whole.
    async fn read_spill(&self, log: &StreamId, from: Offset) -> Result<Step, Halt> {
        let mut found: Vec<(Commit, Offset, Encoded, u64)> = Vec::new();
        let mut at = from;
        let whole = loop {
            let read = self.core.log.read(log, Partition(0), at, STEP).await.map_err(StoreError::from)?;
            if read.items.is_empty() {
                break true;
            }
            for item in read.items {
                let LogReadItem::Record { offset, commit, bytes, .. } = item else {
                    return Err(self.spill_damaged(at));
                };
                let len = bytes.len() as u64;
                let record = Encoded::from_spill(bytes).ok_or_else(|| self.spill_damaged(offset))?;
                found.push((commit, offset, record, len));
            }
            at = read.next;
            let bytes: u64 = found.iter().map(|one| one.3).sum();
            let full = found.len() as u64 >= u64::from(STEP.records) || bytes >= STEP.bytes;
            // The last transaction may go on behind what was read; one that is alone is read to its end.
            if full && found.first().map(|one| one.0) != found.last().map(|one| one.0) {
                break false;
            }
        };
        if !whole {
            let last = found.last().map(|one| one.0);
            while found.last().map(|one| one.0) == last {
                found.pop();
            }
        }
        if found.is_empty() {
            return Err(self.spill_damaged(from));
        }
        let next = found.last().map_or(from, |one| Offset(one.1.0 + 1));
        let bytes = found.iter().map(|one| one.3).sum();
        Ok(Step { records: found.into_iter().map(|one| one.2).collect(), bytes, next })
    }

    fn spill_damaged(&self, at: Offset) -> Halt {
        let name = self.spec.name.as_str();
        let what = format!("what was kept for a stream of source {name:?}, offset {}", at.0);
        StoreError::Corrupt { what: what.into() }.into()
    }

    /// Randomness for a back-off.
    pub(crate) fn chance(&self) -> Result<u64, Halt> {
        let mut bits = [0; 8];
        let entropy = Arc::clone(&self.core.entropy);
        entropy.fill(&mut bits)?;
        Ok(u64::from_le_bytes(bits))
    }
}
