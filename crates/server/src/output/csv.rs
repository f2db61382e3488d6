//! CSV by RFC 4180 with LF line ends. NULL is an empty field and an empty text is `""`, so that the two stay apart. Only in
//! a result of one column both are `""`: readers of CSV drop an empty line.

use std::io::{self, Write};

use csv_core::{WriteResult, Writer};

use super::cell::cells;
use super::{Output, OutputError};
use crate::client::{OpenLine, Summary};

/// Writes CSV.
pub struct CsvOutput {
    to: io::BufWriter<Box<dyn Write + Send>>,
    csv: Writer,
    columns: usize,
    row: u64,
}

impl CsvOutput {
    /// To this place.
    #[must_use]
    pub fn new(to: Box<dyn Write + Send>) -> Self {
        Self { to: io::BufWriter::with_capacity(64 * 1024, to), csv: Writer::new(), columns: 0, row: 0 }
    }

    fn record<'a>(&mut self, fields: impl Iterator<Item = Option<&'a str>>) -> io::Result<()> {
        let mut piece = [0; 1024];
        for (at, field) in fields.enumerate() {
            if at > 0 {
                let (_, written) = self.csv.delimiter(&mut piece);
                self.to.write_all(&piece[..written])?;
            }
            match field {
                None => {}
                // Alone in its record the writer quotes it by itself.
                Some("") if self.columns == 1 => {}
                Some("") => self.to.write_all(b"\"\"")?,
                Some(text) => {
                    let mut rest = text.as_bytes();
                    loop {
                        let (result, read, written) = self.csv.field(rest, &mut piece);
                        self.to.write_all(&piece[..written])?;
                        rest = &rest[read..];
                        if result == WriteResult::InputEmpty {
                            break;
                        }
                    }
                }
            }
        }
        let (_, written) = self.csv.terminator(&mut piece);
        self.to.write_all(&piece[..written])
    }
}

impl Output for CsvOutput {
    fn open(&mut self, open: &OpenLine, _: &[u8]) -> Result<(), OutputError> {
        self.columns = open.columns.len();
        Ok(self.record(open.columns.iter().map(|column| Some(column.name.as_str())))?)
    }

    fn row(&mut self, line: &[u8]) -> Result<(), OutputError> {
        let cells = cells(line, self.row, self.columns)?;
        self.row += 1;
        Ok(self.record(cells.iter().map(Option::as_deref))?)
    }

    fn pause(&mut self) -> Result<(), OutputError> {
        Ok(self.to.flush()?)
    }

    fn end(&mut self, _: Option<&Summary>) -> Result<(), OutputError> {
        Ok(self.to.flush()?)
    }
}
