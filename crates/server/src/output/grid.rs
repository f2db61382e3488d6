//! A small table for people: all rows at once, the widths of their widest cells. Nothing in a cell commands the terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table, presets};

/// A table with a head; the columns named in `right` are numbers and stand to the right.
#[must_use]
pub fn grid(head: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty().set_content_arrangement(ContentArrangement::Disabled);
    let aligned = |at: usize, text: String| {
        let cell = Cell::new(super::table::printable(&text));
        if right.contains(&at) { cell.set_alignment(CellAlignment::Right) } else { cell }
    };
    let row = |cells: Vec<String>| Row::from(cells.into_iter().enumerate().map(|(at, text)| aligned(at, text)));
    table.set_header(row(head.iter().map(|text| (*text).to_owned()).collect()));
    for cells in rows {
        table.add_row(row(cells));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
