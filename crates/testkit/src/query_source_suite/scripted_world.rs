//! The suite's own trial: a scripted source takes part in every promise that needs no SQL to be read.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{ColumnType, QuerySource};

use super::{ALL, QuerySourceWorld, item};
use crate::cell::OwnedCell;
use crate::scripted::{Gate, Script, ScriptedSource, column};

struct ScriptedWorld(ScriptedSource);

#[async_trait]
impl QuerySourceWorld for ScriptedWorld {
    const MAX_SNAPSHOTS: usize = 3;
    const ENDLESS: &'static str = "endless";
    const WRITES: &'static [&'static str] = &[];

    fn parameter(number: usize) -> String {
        format!("?{number}")
    }

    async fn fresh(rows: u64) -> Option<Self> {
        let columns =
            vec![column("id", ColumnType::Integer), column("name", ColumnType::Text), column("n", ColumnType::Integer)];
        let script = Script::new(columns, rows, |version, row| {
            let mut cells = item(row.cast_signed() + 1);
            if version > 1 && row == 20 {
                cells[1] = OwnedCell::text("one that is longer than all the others are");
            }
            cells
        });
        let source = ScriptedSource::new(script.clone());
        source.set_max_snapshots(Self::MAX_SNAPSHOTS);
        source.on(ALL, script);
        source.on(Self::ENDLESS, Script::numbers(1).hold_at(0, &Gate::closed()));
        Some(Self(source))
    }

    fn source(&self) -> Arc<dyn QuerySource> {
        Arc::new(self.0.clone())
    }

    async fn write(&self, _: &str) {
        self.0.commit();
    }
}

crate::query_source_suite! { @tests ScriptedWorld,
    a_full_sink_stops_the_source
    a_dropped_run_stops_and_the_next_run_gives_the_same_rows
    a_dropped_run_stops_even_before_its_first_row
    runs_on_one_snapshot_take_turns
    a_closed_reader_ends_the_run
    a_row_that_is_too_large_ends_the_run
    a_running_query_does_not_block_the_runtime
    close_is_idempotent_and_ends_the_snapshot
    close_ends_a_run_that_goes_on
    connections_are_bounded_and_given_back
    a_dropped_snapshot_gives_its_connection_back
    a_source_answers_a_ping
}
