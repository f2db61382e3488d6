//! A bar on stderr, on a terminal only. It is told of bytes or of items, and never slows them down.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::object::Meter;

const BYTES: &str = "{msg} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
const BYTES_ENDLESS: &str = "{msg} {spinner} {bytes}  {bytes_per_sec}  {elapsed}";
const ITEMS: &str = "{msg} {wide_bar} {pos}/{len}  {per_sec}  {eta}";
const ITEMS_ENDLESS: &str = "{msg} {spinner} {pos}  {per_sec}  {elapsed}";

/// A bar, or nothing.
#[derive(Clone)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Bytes; `None` = nobody knows how many.
    pub(super) fn bytes(shown: bool, what: &str, total: Option<u64>) -> Self {
        Self::new(shown, what, total, if total.is_some() { BYTES } else { BYTES_ENDLESS })
    }

    /// Items.
    pub(super) fn items(shown: bool, what: &str, total: Option<u64>) -> Self {
        Self::new(shown, what, total, if total.is_some() { ITEMS } else { ITEMS_ENDLESS })
    }

    fn new(shown: bool, what: &str, total: Option<u64>, template: &str) -> Self {
        if !shown || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(5));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Self(bar)
    }

    pub(super) fn add(&self, count: u64) {
        self.0.inc(count);
    }

    /// How much there is, as is known by now.
    pub(super) fn total(&self, total: u64) {
        self.0.set_length(total);
    }

    /// How much was there before.
    pub(super) fn at(&self, at: u64) {
        self.0.set_position(at);
    }

    /// A line above the bar, on stderr.
    pub(super) fn note(&self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }

    /// What a transfer tells of its bytes.
    pub(super) fn meter(&self) -> Meter {
        let bar = self.0.clone();
        Arc::new(move |bytes| {
            if bytes < 0 {
                bar.set_position(bar.position().saturating_sub(bytes.unsigned_abs()));
            } else {
                bar.inc(bytes.unsigned_abs());
            }
        })
    }
}

/// What nobody is told of.
pub(super) fn silent() -> Meter {
    Arc::new(|_| {})
}
