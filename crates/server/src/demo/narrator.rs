//! How the story is told: short paragraphs on stdout, numbers that people can read.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};

/// The narrator.
#[derive(Debug, Default)]
pub struct Narrator {
    scene: usize,
}

impl Narrator {
    /// One who has said nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a scene.
    pub fn title(&mut self, title: &str) -> io::Result<()> {
        self.scene += 1;
        writeln!(io::stdout(), "\n{}. {title}", self.scene)
    }

    /// Says a sentence or two.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "   {text}")?;
        stdout.flush()
    }

    /// Shows lines as they are.
    pub fn lines(&mut self, lines: &[String]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for line in lines {
            writeln!(stdout, "     {line}")?;
        }
        stdout.flush()
    }
}

/// `135,233`
pub(super) fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// `12.3 MiB`
pub(super) fn bytes(number: u64) -> String {
    HumanBytes(number).to_string()
}

/// `1.24 s` or `3.1 ms`
pub(super) fn time(duration: Duration) -> String {
    if duration >= Duration::from_secs(1) {
        format!("{:.2} s", duration.as_secs_f64())
    } else {
        format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
    }
}

/// So many in that time, a second.
pub(super) fn rate(number: u64, duration: Duration) -> u64 {
    let nanoseconds = duration.as_nanos().max(1);
    u64::try_from(u128::from(number) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}
