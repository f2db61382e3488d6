//! What the tests stand on: streams over a store in memory.

use std::sync::Arc;

use tidegate_cdc::{
    NewRecord, ProducerStamp, PublishError, PublishRequest, Published, ReadFrom, Selection, StreamParts, StreamService,
    StreamSpec,
};
use tidegate_core::id::Name;
use tidegate_core::port::{ChangeLog, Durability, MetaStore, ReadBounds};
use tidegate_core::position::Partition;
use tidegate_core::principal::{Owner, Principal};
use tidegate_lease::frozen::SettingsCell;
use tidegate_testkit::{ManualClock, MemoryStore, SeededEntropy};

pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) settings: Arc<SettingsCell>,
    pub(crate) streams: StreamService,
    pub(crate) ann: Principal,
}

pub(crate) const BOUNDS: ReadBounds = ReadBounds { records: 1_000, bytes: 1024 * 1024 };

impl World {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let store = MemoryStore::new(Arc::clone(&clock) as Arc<dyn tidegate_core::Clock>);
        let settings = Arc::new(SettingsCell::new(tidegate_core::limit::Settings::default()));
        let streams = service(&clock, &store, &settings);
        Self { clock, store, settings, streams, ann: principal("acme", "ann") }
    }

    /// What the clock on the wall says.
    pub(crate) fn clock_time(&self) -> tidegate_core::Timestamp {
        tidegate_core::Clock::timestamp(self.clock.as_ref())
    }

    /// Another service over the same store, as after a restart.
    pub(crate) fn restarted(&self) -> StreamService {
        service(&self.clock, &self.store, &self.settings)
    }

    pub(crate) async fn create(&self, stream: &str, spec: StreamSpec) {
        self.streams.create(&self.ann, &name(stream), &spec).await.unwrap();
    }

    pub(crate) async fn publish(&self, stream: &str, records: Vec<NewRecord>) -> Published {
        self.try_publish(stream, records, None).await.unwrap()
    }

    pub(crate) async fn try_publish(
        &self,
        stream: &str,
        records: Vec<NewRecord>,
        producer: Option<ProducerStamp>,
    ) -> Result<Published, PublishError> {
        self.streams.publish(&self.ann, &name(stream), PublishRequest { records, producer }).await
    }

    /// Everything of a stream that can be read now, as NDJSON lines.
    pub(crate) async fn lines(&self, stream: &str, selection: Selection, from: ReadFrom) -> Vec<String> {
        let mut reader = self.streams.read(&self.ann, &name(stream), selection, from, false).await.unwrap();
        let mut lines = Vec::new();
        while let Some(segment) = reader.next(BOUNDS).await.unwrap() {
            let text = String::from_utf8(segment.ndjson().to_vec()).unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
        lines
    }

    /// The values of the records of a stream.
    pub(crate) async fn values(&self, stream: &str, selection: Selection) -> Vec<String> {
        let lines = self.lines(stream, selection, ReadFrom::Earliest).await;
        lines.iter().map(|line| document(line)["record"]["value"].to_string()).collect()
    }
}

pub(crate) fn service<S: ChangeLog + MetaStore>(
    clock: &Arc<ManualClock>,
    store: &Arc<S>,
    settings: &Arc<SettingsCell>,
) -> StreamService {
    let clock = Arc::clone(clock) as Arc<dyn tidegate_core::Clock>;
    StreamService::new(StreamParts {
        log: Arc::clone(store) as Arc<dyn ChangeLog>,
        meta: Arc::clone(store) as Arc<dyn MetaStore>,
        settings: Arc::clone(settings),
        clock: Arc::clone(&clock),
        entropy: Arc::new(SeededEntropy::new(7)),
        durability: Durability::Fsync,
    })
}

pub(crate) fn principal(tenant: &str, subject: &str) -> Principal {
    Principal { owner: Owner { tenant: tenant.into(), subject: subject.into() }, ..Principal::anonymous() }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn message(value: impl ToString) -> NewRecord {
    NewRecord::message(value.to_string())
}

pub(crate) fn keyed(key: &str, value: impl ToString) -> NewRecord {
    NewRecord { key: Some(key.to_owned().into()), ..message(value) }
}

pub(crate) fn placed(partition: u32, value: impl ToString) -> NewRecord {
    NewRecord { partition: Some(Partition(partition)), ..message(value) }
}

pub(crate) fn spec(partitions: u32) -> StreamSpec {
    StreamSpec { partitions, ..StreamSpec::default() }
}

pub(crate) fn document(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}
