//! What `tidegate top` draws: streams with their rates above, the chosen stream's groups below. It asks nobody anything: it
//! shows the last look, and says when that was not renewed.

use std::cmp::Ordering;

use indicatif::{HumanBytes, HumanCount};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState};

use super::sample::{Sample, StreamRow};
use crate::client::{ClientError, printable};
use crate::output::shortened;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Quit,
    Up,
    Down,
    SortLeft,
    SortRight,
    Reverse,
}

/// What the streams are sorted by.
const COLUMNS: [&str; 6] = ["stream", "partitions", "records/s", "appended", "bytes", "lag"];

/// The view.
pub(super) struct View {
    server: String,
    sample: Option<Sample>,
    failure: Option<String>,
    sort: usize,
    reverse: bool,
    chosen: Option<String>,
    state: TableState,
    /// The streams on the screen, whose groups the next look asks for.
    visible: Vec<String>,
}

impl View {
    pub(super) fn new(server: String) -> Self {
        Self {
            server,
            sample: None,
            failure: None,
            sort: 2,
            reverse: true,
            chosen: None,
            state: TableState::default(),
            visible: Vec::new(),
        }
    }

    /// A new look.
    pub(super) fn show(&mut self, mut sample: Sample) {
        self.failure = None;
        // What was not asked for this time is as it was.
        if let Some(before) = &mut self.sample {
            for row in &mut sample.streams {
                if row.groups.is_none() {
                    let known = before.streams.iter_mut().find(|known| known.name == row.name);
                    row.groups = known.and_then(|known| known.groups.take());
                }
            }
        }
        self.sample = Some(sample);
        self.arrange();
    }

    /// A look that failed.
    pub(super) fn fail(&mut self, error: &ClientError) {
        self.failure = Some(printable(&error.to_string()));
    }

    /// What a key asks for.
    pub(super) fn act(&mut self, act: Act) {
        match act {
            Act::Quit => {}
            Act::Up => self.choose(-1),
            Act::Down => self.choose(1),
            Act::SortLeft => self.sort = (self.sort + COLUMNS.len() - 1) % COLUMNS.len(),
            Act::SortRight => self.sort = (self.sort + 1) % COLUMNS.len(),
            Act::Reverse => self.reverse = !self.reverse,
        }
        self.arrange();
    }

    /// The streams whose groups are worth a question.
    pub(super) fn visible(&self) -> Vec<String> {
        let chosen = self.chosen.iter().cloned();
        chosen.chain(self.visible.iter().filter(|name| Some(*name) != self.chosen.as_ref()).cloned()).collect()
    }

    fn choose(&mut self, step: isize) {
        let Some(sample) = &self.sample else { return };
        let last = sample.streams.len().saturating_sub(1);
        let at = self.state.selected().unwrap_or(0).saturating_add_signed(step).min(last);
        self.chosen = sample.streams.get(at).map(|row| row.name.clone());
    }

    /// Sorts, and finds the chosen stream again.
    fn arrange(&mut self) {
        let (sort, reverse) = (self.sort, self.reverse);
        let Some(sample) = &mut self.sample else { return };
        sample.streams.sort_by(|a, b| {
            let order = compare(a, b, sort);
            (if reverse { order.reverse() } else { order }).then_with(|| a.name.cmp(&b.name))
        });
        let found = self.chosen.as_ref().and_then(|name| sample.streams.iter().position(|row| row.name == *name));
        let at = found.unwrap_or(0);
        self.state.select((!sample.streams.is_empty()).then_some(at));
        if found.is_none() {
            self.chosen = sample.streams.first().map(|row| row.name.clone());
        }
    }

    /// Draws it all.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, streams, groups, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Percentage(60),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_head(frame, head);
        self.draw_streams(frame, streams);
        self.draw_groups(frame, groups);
        let keys = Line::from(" q quit   ↑↓ choose   ←→ sort by   r reverse").style(Style::new().fg(Color::DarkGray));
        frame.render_widget(keys, foot);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let text = match (&self.failure, &self.sample) {
            (Some(failure), _) => Line::from(format!(" NOT RENEWED: {failure}"))
                .style(Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)),
            (None, Some(sample)) => {
                let more = if sample.more { " and more" } else { "" };
                let rate: f64 = sample.streams.iter().filter_map(|row| row.rate).sum();
                Line::from(format!(
                    " tidegate {}   {} streams{more}   {} records/s",
                    self.server,
                    sample.streams.len(),
                    per_second(rate)
                ))
                .style(Style::new().add_modifier(Modifier::BOLD))
            }
            (None, None) => Line::from(format!(" tidegate {}", self.server)),
        };
        frame.render_widget(text, area);
    }

    fn draw_streams(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.sample.as_ref().map(|sample| sample.streams.as_slice()).unwrap_or_default();
        let head = COLUMNS.iter().enumerate().map(|(at, name)| {
            let mark = match (at == self.sort, self.reverse) {
                (false, _) => "",
                (true, true) => "▼",
                (true, false) => "▲",
            };
            let text = Text::from(format!("{name}{mark}"));
            Cell::from(if at == 0 { text } else { text.alignment(Alignment::Right) })
        });
        let width = first_width(&stream_widths(), area);
        let table = Table::new(rows.iter().map(|row| stream_row(row, width)), stream_widths())
            .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::new().borders(Borders::TOP));
        frame.render_stateful_widget(table, area, &mut self.state);
        let shown = usize::from(area.height.saturating_sub(2));
        self.visible = rows.iter().skip(self.state.offset()).take(shown).map(|row| row.name.clone()).collect();
    }

    fn draw_groups(&self, frame: &mut Frame<'_>, area: Rect) {
        let sample = self.sample.as_ref();
        let row = sample.zip(self.state.selected()).and_then(|(sample, at)| sample.streams.get(at));
        let Some(row) = row else {
            frame.render_widget(Paragraph::new(" no streams yet").block(Block::new().borders(Borders::TOP)), area);
            return;
        };
        let title = format!(" groups of {} ", name_in(&row.name, usize::from(area.width).saturating_sub(12)));
        let groups = row.groups.as_deref().unwrap_or_default();
        let widths = [
            Constraint::Fill(2),
            Constraint::Length(8),
            Constraint::Length(14),
            Constraint::Length(11),
            Constraint::Fill(4),
        ];
        let width = first_width(&widths, area);
        let right = |text: String| Cell::from(Text::from(text).alignment(Alignment::Right));
        let rows = groups.iter().map(|group| {
            let members: Vec<String> = group
                .members
                .iter()
                .map(|member| {
                    let partitions: Vec<String> = member.partitions.iter().map(u32::to_string).collect();
                    printable(&format!("{} [{}]", member.client, partitions.join(",")))
                })
                .collect();
            Row::new([
                Cell::from(name_in(&group.name, width)),
                Cell::from(printable(&group.mode)),
                right(HumanCount(group.lag()).to_string()),
                right(group.generation.to_string()),
                Cell::from(format!(" {}", members.join("  "))),
            ])
        });
        let head = Row::new([
            Cell::from("group"),
            Cell::from("mode"),
            right("lag".to_owned()),
            right("generation".to_owned()),
            Cell::from(" members"),
        ]);
        let table = Table::new(rows, widths)
            .header(head.style(Style::new().add_modifier(Modifier::BOLD)))
            .block(Block::new().borders(Borders::TOP).title(title));
        frame.render_widget(table, area);
    }
}

fn compare(a: &StreamRow, b: &StreamRow, column: usize) -> Ordering {
    match column {
        1 => a.partitions.cmp(&b.partitions),
        2 => a.rate.unwrap_or(0.0).total_cmp(&b.rate.unwrap_or(0.0)),
        3 => a.appended.cmp(&b.appended),
        4 => a.bytes.cmp(&b.bytes),
        5 => a.lag().cmp(&b.lag()),
        _ => a.name.cmp(&b.name).reverse(),
    }
}

fn stream_widths() -> [Constraint; 6] {
    [
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(16),
        Constraint::Length(12),
        Constraint::Length(14),
    ]
}

/// How wide the first of these columns of a table is.
fn first_width(widths: &[Constraint], area: Rect) -> usize {
    let columns = Layout::horizontal(widths).spacing(1).split(area);
    columns.first().map_or(0, |column| usize::from(column.width))
}

/// A name in its column: both ends of a long one.
fn name_in(name: &str, width: usize) -> String {
    shortened(&printable(name), width).into_owned()
}

fn stream_row(row: &StreamRow, width: usize) -> Row<'static> {
    let right = |text: String| Cell::from(Text::from(text).alignment(Alignment::Right));
    Row::new([
        Cell::from(name_in(&row.name, width)),
        right(row.partitions.to_string()),
        right(row.rate.map_or_else(|| "-".to_owned(), per_second)),
        right(HumanCount(row.appended).to_string()),
        right(HumanBytes(row.bytes).to_string()),
        right(row.lag().map_or_else(|| "-".to_owned(), |lag| HumanCount(lag).to_string())),
    ])
}

fn per_second(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::client::change::GroupInfo;

    fn row(name: &str, rate: f64, bytes: u64) -> StreamRow {
        let group: GroupInfo = serde_json::from_str(
            r#"{"name":"workers","mode":"ordered","generation":4,"members":[{"member":"m","client":"one","partitions":[0,1]}],"positions":[{"partition":0,"committed":1,"next":5,"lag":4}]}"#,
        )
        .unwrap();
        StreamRow {
            name: name.into(),
            partitions: 2,
            appended: 12_345,
            bytes,
            rate: Some(rate),
            groups: Some(vec![group]),
        }
    }

    fn screen(view: &mut View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 16)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = (0..16).map(|y| (0..100).map(|x| buffer[(x, y)].symbol()).collect::<String>());
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn streams_groups_rates_members_and_lag_are_on_the_screen() {
        let mut view = View::new("http://h/".to_owned());
        view.show(Sample {
            at: Instant::now(),
            streams: vec![row("slow", 1.0, 9000), row("fa\u{1b}st", 5000.0, 10)],
            more: false,
        });
        let text = screen(&mut view);
        for word in
            ["2 streams", "5001 records/s", "12,345", "8.79 KiB", "workers", "ordered", "one [0,1]", "records/s▼"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains('\u{1b}') && text.find("fa").unwrap() < text.find("slow").unwrap(), "{text}");
    }

    #[test]
    fn a_long_name_keeps_both_ends_in_its_column() {
        let mut view = View::new("http://h/".to_owned());
        let name = format!("eu.{}.orders", "x".repeat(245));
        let mut long = row(&name, 1.0, 1);
        for group in long.groups.iter_mut().flatten() {
            group.name = name.clone();
        }
        view.show(Sample { at: Instant::now(), streams: vec![long], more: false });
        let text = screen(&mut view);
        let shown: Vec<&str> = text.lines().filter(|line| line.contains('…')).collect();
        assert_eq!(shown.len(), 3, "the stream, the title of its groups, and the group: {text}");
        assert!(shown.iter().all(|line| line.contains("eu.x") && line.contains("x.orders")), "{text}");
    }

    #[test]
    fn the_chosen_stream_stays_chosen_when_the_order_changes() {
        let mut view = View::new("http://h/".to_owned());
        let look = |rates: [f64; 2]| Sample {
            at: Instant::now(),
            streams: vec![row("a", rates[0], 1), row("b", rates[1], 2)],
            more: false,
        };
        view.show(look([9.0, 1.0]));
        view.act(Act::Down);
        assert_eq!(view.chosen.as_deref(), Some("b"));
        view.show(look([1.0, 9.0]));
        assert_eq!((view.chosen.as_deref(), view.state.selected()), (Some("b"), Some(0)));
        for _ in 0..5 {
            view.act(Act::Down);
        }
        assert_eq!(view.chosen.as_deref(), Some("a"));
        screen(&mut view);
        assert_eq!(view.visible(), ["a", "b"], "the chosen one is asked about first");
        view.show(Sample { at: Instant::now(), streams: vec![], more: false });
        assert!(screen(&mut view).contains("no streams yet"));
    }

    #[test]
    fn a_look_that_failed_is_said_and_the_last_one_stays() {
        let mut view = View::new("http://h/".to_owned());
        view.show(Sample { at: Instant::now(), streams: vec![row("kept", 1.0, 1)], more: true });
        view.fail(&ClientError::Protocol { what: "nonsense" });
        let text = screen(&mut view);
        assert!(text.contains("NOT RENEWED") && text.contains("kept"), "{text}");
    }
}
