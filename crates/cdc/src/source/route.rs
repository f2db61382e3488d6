//! Where the records of a source go: each table's to its stream, or, while that refuses them, to a log that is kept for it. All of
//! it and the source's position are one append. It never drops a record, and never lets one overtake another of its stream.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::id::Name;
use tidegate_core::port::{
    AppendBatch, CompareAndSwap, Durability, LogSpec, MetaRange, PartitionAppend, Retention, Revision, StreamAppend,
    StreamId, Trim,
};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::principal::{Owner, Principal, ScopeSet};

use super::driver::Driver;
use super::error::{Halt, closed, refusal, stream_refusal};
use super::machine::{Command, Outcome};
use super::prepare::{Prepared, TablePart, place};
use super::status::SourceStreamStatus;
use super::stored::{StoredSource, StoredSpill, StoredTable};
use crate::durable::MessageKind;
use crate::error::{CreateError, StoreError, StreamError};
use crate::handle::StreamHandle;
use crate::key::{self, Incarnation};
use crate::service::{Core, SCAN_PAGE};
use crate::spec::StreamSpec;

/// Tables of one source; beyond it the source stops and says so.
pub(crate) const TABLES_MAX: usize = 65_536;

/// What is known of one table.
pub(crate) struct Table {
    pub(crate) key: Bytes,
    /// The stream's name; `None` where the table's is too long for one.
    pub(crate) name: Option<Name>,
    pub(crate) stored: StoredTable,
    pub(crate) revision: Option<Revision>,
    /// The entry was changed, and its revision is not known yet.
    pub(crate) stale: bool,
    pub(crate) handle: Option<Arc<StreamHandle>>,
    /// A log for what is refused that was made and is in no entry yet.
    made: Option<Incarnation>,
}

pub(crate) type Tables = HashMap<Box<str>, Table>;

/// An append that was decided on, with what it changes.
pub(crate) struct Plan {
    pub(crate) batch: AppendBatch,
    pub(crate) next: StoredSource,
    /// Whose condition each piece of state is, after the first, which is the source's own.
    pub(crate) guards: Vec<Box<str>>,
    /// Whose each stream of the batch is.
    pub(crate) streams: Vec<Box<str>>,
    pub(crate) changed: Vec<(Box<str>, StoredTable)>,
    /// What streams refused: table, records, bytes, why.
    pub(crate) spilled: Vec<(Box<str>, u64, u64, &'static str)>,
}

impl Driver {
    /// Who the source's streams belong to.
    fn principal(&self) -> Principal {
        let tenant = self.spec.tenant.as_str().into();
        let owner = Owner { tenant, subject: format!("source:{}", self.spec.name).into() };
        Principal { owner, scopes: ScopeSet::ALL, token_expires_at: None }
    }

    pub(crate) fn table(&mut self, table: &str) -> Result<&mut Table, Halt> {
        if !self.tables.contains_key(table) {
            if self.tables.len() >= TABLES_MAX {
                return Err(Halt::TooManyTables { limit: TABLES_MAX });
            }
            let known = self.known(table, StoredTable::default(), None);
            self.tables.insert(table.into(), known);
        }
        Ok(self.tables.get_mut(table).expect("it was put in where it was missing"))
    }

    fn known(&self, table: &str, stored: StoredTable, revision: Option<Revision>) -> Table {
        let name = Name::new(format!("{}.{table}", self.spec.name)).ok();
        self.shared.live.lock().streams.entry(table.into()).or_insert_with(|| SourceStreamStatus {
            name: format!("{}.{table}", self.spec.name).into(),
            ..SourceStreamStatus::default()
        });
        let key = key::source_stream(&self.spec.tenant, &self.spec.name, table);
        Table { key, name, stored, revision, stale: false, handle: None, made: None }
    }

    /// Reads what is stored of every table, and how much waits for each stream.
    pub(crate) async fn load_tables(&mut self) -> Result<(), Halt> {
        self.tables.clear();
        self.machine.forget_lags();
        let prefix = self.key.clone();
        let mut from = prefix.clone();
        loop {
            let range = MetaRange { prefix: prefix.clone(), from: from.clone(), limit: SCAN_PAGE };
            let entries = self.core.meta.scan(range).await.map_err(StoreError::from)?;
            let whole = entries.len() == SCAN_PAGE;
            for entry in entries {
                let mut next = entry.key.to_vec();
                next.push(0);
                from = next.into();
                let table = std::str::from_utf8(&entry.key[prefix.len()..]).ok().filter(|table| !table.is_empty());
                let (Some(table), Some(value)) = (table, &entry.value) else { continue };
                let mut stored = StoredTable::open(value)?;
                let waits = self.waits(&mut stored).await?;
                let after = stored.spill.as_ref().and_then(|spill| spill.after.clone());
                let known = self.known(table, stored, Some(entry.revision));
                self.tables.insert(table.into(), known);
                if let Some((records, bytes)) = waits.filter(|(records, _)| *records > 0) {
                    let now = self.core.clock.now();
                    let _ = self.machine.apply(now, Command::Spilled { table: table.into(), records, bytes });
                    self.show_lag(table, after, Some("stream_refuses"));
                } else {
                    self.show_lag(table, None, None);
                }
            }
            if !whole {
                return Ok(());
            }
        }
    }

    /// How many records, and bytes, wait in the log that is kept for a stream. Those that it got go: a crash may have come between.
    async fn waits(&self, stored: &mut StoredTable) -> Result<Option<(u64, u64)>, Halt> {
        let Some(spill) = &stored.spill else { return Ok(None) };
        let id = spill.log_id(&self.spec.tenant);
        let Some(mut bounds) = self.core.log.bounds(&id).await.map_err(StoreError::from)?.first().copied() else {
            let what = format!("the log of what was kept for a stream of source {:?} is gone", self.spec.name.as_str());
            return Err(StoreError::Corrupt { what: what.into() }.into());
        };
        if bounds.earliest.0 < spill.next {
            let trim = Trim::Before { partition: Partition(0), before: Offset(spill.next) };
            let trimmed = self.core.log.trim(&id, trim).await.map_err(StoreError::from)?;
            bounds = trimmed.first().copied().unwrap_or(bounds);
        }
        Ok(Some((bounds.next.0.saturating_sub(spill.next), bounds.bytes)))
    }

    /// A table's entry with its revision, read again where it was changed.
    pub(crate) async fn table_revision(&mut self, table: &str) -> Result<Option<Revision>, Halt> {
        let meta = Arc::clone(&self.core.meta);
        let known = self.table(table)?;
        if known.stale {
            known.revision = meta.get(&known.key).await.map_err(StoreError::from)?.map(|entry| entry.revision);
            known.stale = false;
        }
        Ok(known.revision)
    }

    /// The stream of a table, made if it is missing; or why it takes nothing.
    pub(crate) async fn open_stream(&mut self, table: &str) -> Result<Result<Arc<StreamHandle>, &'static str>, Halt> {
        let (core, streams) = (Arc::clone(&self.core), self.streams.clone());
        let (principal, partitions) = (self.principal(), self.spec.partitions);
        let tenant = self.spec.tenant.clone();
        let description = format!("Changes of {table}, from source {}", self.spec.name).into();
        let known = self.table(table)?;
        let Some(name) = known.name.clone() else { return Ok(Err("stream_name_invalid")) };
        let kept = known.handle.take().filter(|handle| !handle.is_removed());
        let handle = match kept {
            Some(handle) => handle,
            None => {
                let id = StreamId { tenant, stream: name.clone() };
                match Core::find(&core, &id).await {
                    Ok(handle) => handle,
                    // Somebody removed it, and does not want it: it is not made again behind their back.
                    Err(StreamError::NotFound { .. }) if known.stored.life.is_some() => {
                        return Ok(Err("stream_removed"));
                    }
                    Err(StreamError::NotFound { .. }) => {
                        let spec = StreamSpec { partitions, description: Some(description), ..StreamSpec::default() };
                        match streams.create(&principal, &name, &spec).await {
                            // Made at the same moment by somebody else: it is used as it is.
                            Ok(_) | Err(CreateError::Exists { .. }) => {}
                            Err(error) => return refusal(error).map(Err),
                        }
                        match Core::find(&core, &id).await {
                            Ok(handle) => handle,
                            Err(error) => return stream_refusal(error).map(Err),
                        }
                    }
                    Err(error) => return stream_refusal(error).map(Err),
                }
            }
        };
        if let Err(error) = streams.check_life(&handle).await {
            return stream_refusal(error).map(Err);
        }
        let meta = handle.meta();
        if let Some(durable) = &meta.durable {
            if durable.closed {
                return Ok(Err(closed()));
            }
            if durable.kind() != MessageKind::Json {
                return Ok(Err("content_type_mismatch"));
            }
        }
        known.handle = Some(Arc::clone(&handle));
        Ok(Ok(handle))
    }

    /// Decides on the append of what was gathered.
    pub(crate) async fn plan(&mut self, prepared: &Prepared) -> Result<Plan, Halt> {
        let held = self.held.as_ref().ok_or(Halt::Fenced)?;
        let mut next = held.stored.clone();
        next.beat += 1;
        next.records += prepared.records;
        if let Some(resume) = &prepared.resume {
            next.position = Some(resume.position.0.clone());
            next.state = resume.state.to_vec();
        }
        // What was handed over may be forgotten by the source: it must outlive the machine, whatever the streams' own setting.
        let batch = AppendBatch {
            streams: Vec::with_capacity(prepared.parts.len()),
            state: vec![next.swap(&self.key, held.revision)],
            durability: Durability::Fsync,
        };
        let mut plan =
            Plan { batch, next, guards: Vec::new(), streams: Vec::new(), changed: Vec::new(), spilled: Vec::new() };
        for part in &prepared.parts {
            let lags = self.machine.lag(&part.table).is_some();
            let opened = if lags { Err(self.why_refused(&part.table)) } else { self.open_stream(&part.table).await? };
            match opened {
                Ok(handle) => self.plan_stream(&mut plan, part, &handle).await?,
                Err(code) => self.plan_spill(&mut plan, part, lags, code).await?,
            }
        }
        let (records, bytes) =
            plan.spilled.iter().fold((0, 0), |(records, bytes), spilled| (records + spilled.1, bytes + spilled.2));
        if records > 0 && self.machine.apply(self.core.clock.now(), Command::Spill { records, bytes }) == Outcome::Full
        {
            let lags = self.machine.lags().values();
            let (records, bytes) =
                lags.fold((0, 0), |(records, bytes), lag| (records + lag.records, bytes + lag.bytes));
            return Err(Halt::SpillFull { records, bytes });
        }
        Ok(plan)
    }

    async fn plan_stream(&mut self, plan: &mut Plan, part: &TablePart, handle: &StreamHandle) -> Result<(), Halt> {
        let (meta, revision) = handle.known();
        plan.guards.push(part.table.clone());
        plan.batch.state.push(handle.unchanged_at(revision));
        let now = self.core.clock.timestamp();
        let partitions = place(&part.records, meta.partitions, meta.tombstone_grace_ms.is_some(), now);
        plan.batch.streams.push(StreamAppend { stream: handle.log_id.clone(), partitions });
        plan.streams.push(part.table.clone());
        let mut stored = self.table(&part.table)?.stored.clone();
        if stored.life != Some(meta.incarnation) {
            stored.life = Some(meta.incarnation);
            self.plan_entry(plan, &part.table, stored).await?;
        }
        Ok(())
    }

    async fn plan_spill(
        &mut self,
        plan: &mut Plan,
        part: &TablePart,
        lags: bool,
        code: &'static str,
    ) -> Result<(), Halt> {
        let (records, bytes) = (part.records.len() as u64, part.bytes + part.records.len() as u64);
        if !lags {
            let after = self.held.as_ref().and_then(|held| held.stored.position.clone());
            let tenant = self.spec.tenant.clone();
            let core = Arc::clone(&self.core);
            let known = self.table(&part.table)?;
            let mut stored = known.stored.clone();
            match &mut stored.spill {
                Some(spill) => spill.after = after,
                None => {
                    let log = match known.made {
                        Some(log) => log,
                        None => {
                            let mut bits = [0; 16];
                            core.entropy.fill(&mut bits)?;
                            *known.made.insert(Incarnation(bits))
                        }
                    };
                    let spill = StoredSpill { log, next: 0, after };
                    let spec = LogSpec {
                        partitions: 1,
                        start: Offset::ZERO,
                        retention: Retention::default(),
                        compaction: None,
                    };
                    core.log.create(&spill.log_id(&tenant), &spec).await.map_err(StoreError::from)?;
                    stored.spill = Some(spill);
                }
            }
            self.plan_entry(plan, &part.table, stored).await?;
        }
        let changed = plan.changed.iter().find(|(table, _)| *table == part.table).map(|(_, stored)| stored.clone());
        let stored = match changed {
            Some(stored) => stored,
            None => self.table(&part.table)?.stored.clone(),
        };
        let Some(spill) = stored.spill else {
            let what = format!("what was kept for {:?} of source {:?}", part.table, self.spec.name.as_str());
            return Err(StoreError::Corrupt { what: what.into() }.into());
        };
        let append = PartitionAppend {
            partition: Partition(0),
            expected_next: None,
            records: part.records.iter().map(super::prepare::Encoded::to_spill).collect(),
            append_time: self.core.clock.timestamp(),
        };
        plan.batch.streams.push(StreamAppend { stream: spill.log_id(&self.spec.tenant), partitions: vec![append] });
        plan.streams.push(part.table.clone());
        plan.spilled.push((part.table.clone(), records, bytes, code));
        Ok(())
    }

    pub(crate) async fn plan_entry(&mut self, plan: &mut Plan, table: &str, stored: StoredTable) -> Result<(), Halt> {
        let swap = self.table_swap(table, &stored).await?;
        plan.guards.push(table.into());
        plan.batch.state.push(swap);
        plan.changed.push((table.into(), stored));
        Ok(())
    }

    pub(crate) async fn table_swap(&mut self, table: &str, stored: &StoredTable) -> Result<CompareAndSwap, Halt> {
        let revision = self.table_revision(table).await?;
        Ok(stored.swap(&self.table(table)?.key, revision))
    }

    fn why_refused(&self, table: &str) -> &'static str {
        let live = self.shared.live.lock();
        live.streams.get(table).and_then(|stream| stream.refused_because).unwrap_or("stream_refuses")
    }

    /// Tells what waits for a stream, and why.
    pub(crate) fn show_lag(&self, table: &str, after: Option<Box<str>>, code: Option<&'static str>) {
        let lag = self.machine.lag(table).copied().unwrap_or_default();
        let mut live = self.shared.live.lock();
        let Some(stream) = live.streams.get_mut(table) else { return };
        (stream.spilled_records, stream.spilled_bytes) = (lag.records, lag.bytes);
        stream.refused_because = code.filter(|_| lag.records > 0);
        if lag.records == 0 {
            stream.position = None;
        } else if after.is_some() {
            stream.position = after;
        }
    }

    /// Looks again at what an append was refused for.
    pub(crate) async fn look_again(&mut self, table: &str) -> Result<(), Halt> {
        let core = Arc::clone(&self.core);
        let known = self.table(table)?;
        // Its entry may have been changed by an append that was not answered.
        known.stale = true;
        if let Some(handle) = known.handle.take() {
            match core.refresh(&handle).await {
                Ok(()) => known.handle = Some(handle),
                Err(StreamError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
