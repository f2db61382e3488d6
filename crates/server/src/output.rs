//! Rows and records on their way to a person or a file: table, CSV or NDJSON. Memory is bounded by one page of rows, whatever the
//! length of the result; nothing here waits for the network.

use std::io;

use crate::client::{Column, OpenLine, RowShape, Summary};

mod cell;
mod csv;
mod grid;
mod ndjson;
mod record;
mod table;

pub use self::csv::CsvOutput;
pub use self::grid::{grid, shortened};
pub use self::ndjson::NdjsonOutput;
pub use self::record::{RecordOutput, gap_line};
pub use self::table::TableOutput;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people.
    Table,
    /// One JSON object a row.
    Ndjson,
    /// Comma-separated values with a head line (RFC 4180); NULL is an empty field.
    Csv,
}

impl Format {
    /// In which shape rows must come for this format.
    #[must_use]
    pub const fn shape(self) -> RowShape {
        match self {
            // By position: columns that share a name stay apart.
            Self::Table | Self::Csv => RowShape::Array,
            Self::Ndjson => RowShape::Object,
        }
    }
}

/// Why a row was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The place where it goes takes no more.
    #[error("the output cannot be written")]
    Io(#[from] io::Error),
    /// The row is not JSON of the announced shape.
    #[error("row {row} is not a row of {columns} columns")]
    Row {
        /// Which row, from 0.
        row: u64,
        /// How many columns were announced.
        columns: usize,
        /// Why.
        source: Option<serde_json::Error>,
    },
}

impl OutputError {
    /// Whether the reader of a pipe went away, which is no failure of ours.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Where the rows of one stream go.
pub trait Output: Send {
    /// The first line of the stream, with its bytes.
    fn open(&mut self, open: &OpenLine, line: &[u8]) -> Result<(), OutputError>;
    /// A row line, whole.
    fn row(&mut self, line: &[u8]) -> Result<(), OutputError>;
    /// Nothing more is at hand for now: what is held back should be seen.
    fn pause(&mut self) -> Result<(), OutputError>;
    /// All rows came. `None`: the caller wanted no more.
    fn end(&mut self, summary: Option<&Summary>) -> Result<(), OutputError>;
}

/// The output for a format.
#[must_use]
pub fn output(format: Format, raw: bool, to: Box<dyn io::Write + Send>, width: Option<u16>) -> Box<dyn Output> {
    match format {
        Format::Table => Box::new(TableOutput::new(to, width)),
        Format::Csv => Box::new(CsvOutput::new(to)),
        Format::Ndjson => Box::new(NdjsonOutput::new(to, raw)),
    }
}

fn is_number(column: &Column) -> bool {
    matches!(column.kind.as_str(), "integer" | "real" | "numeric")
}

#[cfg(test)]
mod tests;
