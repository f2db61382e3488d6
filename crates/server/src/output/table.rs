//! A table in pages: a result of any length is one table and needs the memory of one page. The first page's rows give the
//! widths; a later page with wider cells widens its columns from there on. A cell that is wider than a column may be
//! ends with `…`: nothing is cut in silence.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table, Width, presets};

use super::cell::cells;
use super::{Output, OutputError, is_number};
use crate::client::{Column, OpenLine, Summary};

/// Rows that are looked at before the widths are fixed.
const FIRST_PAGE_ROWS: usize = 100;
/// Rows of every later page.
const PAGE_ROWS: usize = 500;
/// The widest that a column may be, in columns of the terminal.
const WIDTH_MAX: u16 = 60;
/// The narrowest that one is made to fit the terminal.
const WIDTH_MIN: u16 = 6;

/// Writes a table.
pub struct TableOutput {
    to: io::BufWriter<Box<dyn Write + Send>>,
    terminal: Option<u16>,
    columns: Vec<Column>,
    page: Vec<Vec<String>>,
    widths: Option<Vec<u16>>,
    rows: u64,
}

impl TableOutput {
    /// To this place; `width` = the terminal's, to fit into.
    #[must_use]
    pub fn new(to: Box<dyn Write + Send>, width: Option<u16>) -> Self {
        let to = io::BufWriter::with_capacity(64 * 1024, to);
        Self { to, terminal: width, columns: Vec::new(), page: Vec::new(), widths: None, rows: 0 }
    }

    fn write_page(&mut self) -> Result<(), OutputError> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty().set_content_arrangement(ContentArrangement::Disabled);
        table.set_truncation_indicator("…");
        let first = self.widths.is_none();
        if first {
            let mut head = Row::from(self.columns.iter().map(|column| Cell::new(printable(&column.name))));
            head.max_height(1);
            table.set_header(head);
        }
        for cells in self.page.drain(..) {
            let cells = cells.into_iter().zip(&self.columns).map(|(text, column)| {
                let cell = Cell::new(text);
                if is_number(column) { cell.set_alignment(CellAlignment::Right) } else { cell }
            });
            let mut row = Row::from(cells);
            row.max_height(1);
            table.add_row(row);
        }
        let mut widths = table.column_max_content_widths();
        for (width, before) in widths.iter_mut().zip(self.widths.iter().flatten()) {
            *width = (*width).max(*before);
        }
        let widths = self.widths.insert(fit(widths, self.terminal));
        if table.column_count() > 0 {
            // One column of space on either side is comfy-table's own.
            let fixed = widths.iter().map(|width| ColumnConstraint::Absolute(Width::Fixed(width.saturating_add(2))));
            table.set_constraints(fixed);
            for (at, line) in table.lines().enumerate() {
                writeln!(self.to, "{}", line.trim_end())?;
                if first && at == 0 {
                    let rule: Vec<String> = widths.iter().map(|width| "─".repeat(usize::from(*width) + 2)).collect();
                    writeln!(self.to, "{}", rule.join(""))?;
                }
            }
        }
        Ok(self.to.flush()?)
    }
}

/// Widths that fit the terminal, if they can: the widest columns give way first.
fn fit(mut widths: Vec<u16>, terminal: Option<u16>) -> Vec<u16> {
    for width in &mut widths {
        *width = (*width).clamp(1, WIDTH_MAX);
    }
    let Some(terminal) = terminal else { return widths };
    let total = |widths: &[u16]| widths.iter().map(|width| u32::from(*width) + 2).sum::<u32>();
    while total(&widths) > u32::from(terminal) {
        match widths.iter_mut().max() {
            Some(widest) if *widest > WIDTH_MIN => *widest -= 1,
            _ => break,
        }
    }
    widths
}

/// Characters of a cell that are kept: more than are shown, so that comfy-table sees that there is more.
const KEPT_CHARS: usize = 4 * WIDTH_MAX as usize;

/// One line, in which nothing commands the terminal, of bounded length.
pub(super) fn printable(text: &str) -> String {
    escaped(text.chars().take(KEPT_CHARS))
}

/// Characters of one line, in which nothing commands the terminal.
pub(super) fn escaped(text: impl Iterator<Item = char>) -> String {
    let mut shown = String::new();
    for c in text {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

impl Output for TableOutput {
    fn open(&mut self, open: &OpenLine, _: &[u8]) -> Result<(), OutputError> {
        self.columns.clone_from(&open.columns);
        Ok(())
    }

    fn row(&mut self, line: &[u8]) -> Result<(), OutputError> {
        let cells = cells(line, self.rows, self.columns.len())?;
        self.rows += 1;
        self.page.push(
            cells.into_iter().map(|cell| cell.map_or_else(|| "NULL".to_owned(), |text| printable(&text))).collect(),
        );
        let full = if self.widths.is_none() { FIRST_PAGE_ROWS } else { PAGE_ROWS };
        if self.page.len() >= full { self.write_page() } else { Ok(()) }
    }

    fn pause(&mut self) -> Result<(), OutputError> {
        // Before the first page is full nothing is shown, so that widths are not guessed from a single row.
        if self.widths.is_some() && !self.page.is_empty() { self.write_page() } else { Ok(()) }
    }

    fn end(&mut self, _: Option<&Summary>) -> Result<(), OutputError> {
        if self.widths.is_none() || !self.page.is_empty() { self.write_page() } else { Ok(()) }
    }
}
