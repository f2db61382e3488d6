//! A small table for people: all rows at once, the widths of their widest cells. Nothing in a cell commands the terminal, and what is
//! left out of one is shown by `…`: names have up to 255 bytes. Who wants them whole asks for JSON.

use std::borrow::Cow;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table, presets};
use ratatui::text::Span;

/// The widest that a cell may be, in columns of the terminal.
const WIDTH_MAX: usize = 40;

/// The text in at most `width` columns of the terminal; of a longer one the beginning and the end, which tell names apart best.
#[must_use]
pub fn shortened(text: &str, width: usize) -> Cow<'_, str> {
    if Span::raw(text).width() <= width {
        return Cow::Borrowed(text);
    }
    let room = width.saturating_sub(1);
    let of = |c: char| Span::raw(c.encode_utf8(&mut [0; 4]) as &str).width();
    let mut head = String::new();
    let mut left = room - room / 2;
    for c in text.chars() {
        let Some(rest) = left.checked_sub(of(c)) else { break };
        left = rest;
        head.push(c);
    }
    let mut left = room / 2;
    let mut tail = Vec::new();
    for c in text.chars().rev() {
        let Some(rest) = left.checked_sub(of(c)) else { break };
        left = rest;
        tail.push(c);
    }
    // A mark that goes with a character before it has lost it.
    while tail.last().is_some_and(|c| of(*c) == 0) {
        tail.pop();
    }
    Cow::Owned(head.chars().chain(['…']).chain(tail.into_iter().rev()).collect())
}

/// A table with a head; the columns named in `right` are numbers and stand to the right.
#[must_use]
pub fn grid(head: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty().set_content_arrangement(ContentArrangement::Disabled);
    let aligned = |at: usize, text: String| {
        let cell = Cell::new(shortened(&super::table::escaped(text.chars()), WIDTH_MAX));
        if right.contains(&at) { cell.set_alignment(CellAlignment::Right) } else { cell }
    };
    let row = |cells: Vec<String>| Row::from(cells.into_iter().enumerate().map(|(at, text)| aligned(at, text)));
    table.set_header(row(head.iter().map(|text| (*text).to_owned()).collect()));
    for cells in rows {
        table.add_row(row(cells));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_length_leaves_the_table_readable_and_shows_that_something_is_left_out() {
        let names = ["a".repeat(255), format!("{}-1", "b".repeat(253)), "界".repeat(85), "short".to_owned()];
        let rows = names.iter().map(|name| vec![name.clone(), "18446744073709551615".to_owned()]);
        let text = grid(&["stream", "bytes"], &[1], rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        for line in &lines {
            assert!(Span::raw(*line).width() <= 2 * 2 + WIDTH_MAX + 20, "{line}");
            assert_eq!(line.contains('…'), !line.contains("short") && !line.contains("stream"), "{line}");
        }
        assert!(lines[2].contains("bbb") && lines[2].contains("b-1 "), "both ends are shown: {text}");
    }

    #[test]
    fn nothing_in_a_cell_commands_the_terminal_or_breaks_its_line() {
        let text = grid(&["name"], &[], [vec!["a\n\u{1b}[2J".to_owned()]]);
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("a\\n\\u{1b}[2J"), "{text:?}");
    }

    #[test]
    fn what_fits_stays_as_it_is_and_what_does_not_keeps_both_ends() {
        for (text, width, shown) in [
            ("orders", 6, "orders"),
            ("orders", 5, "or…rs"),
            ("orders", 4, "or…s"),
            ("orders", 1, "…"),
            ("orders", 0, "…"),
            ("", 0, ""),
            ("界界界界", 7, "界…界"),
            ("abcdee\u{301}", 4, "ab…e\u{301}"),
        ] {
            assert_eq!(shortened(text, width), shown, "{text} in {width}");
        }
    }
}
