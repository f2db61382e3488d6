//! How an end-to-end benchmark tells what it measured: a line for people, a line of JSON for `cargo xtask bench`.

use std::fs::OpenOptions;
use std::io::Write;

/// The measures of one area.
#[derive(Debug)]
pub struct Report {
    area: &'static str,
    lines: Vec<serde_json::Value>,
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(area: &'static str) -> Self {
        Self { area, lines: Vec::new() }
    }

    /// Rows a second: the median of the rounds, with the lowest and the highest.
    pub fn rate(&mut self, name: &str, rounds: &[f64], baseline: Option<&str>) {
        let (low, high) = spread(rounds);
        self.line(name, median(rounds), "row/s", true, Some((low, high)), baseline);
    }

    /// The median of the rounds, with the lowest and the highest.
    pub fn rounds(&mut self, name: &str, rounds: &[f64], unit: &str, higher_is_better: bool, baseline: Option<&str>) {
        let (low, high) = spread(rounds);
        self.line(name, median(rounds), unit, higher_is_better, Some((low, high)), baseline);
    }

    /// One point of a curve: `x` is what `series` names, such as the records of a batch.
    pub fn point(&mut self, series: &str, x: f64, rounds: &[f64], unit: &str) {
        let (low, high) = spread(rounds);
        self.line(&format!("{series} = {x}"), median(rounds), unit, false, Some((low, high)), None);
        if let Some(last) = self.lines.last_mut() {
            last["series"] = series.into();
            last["x"] = x.into();
        }
    }

    /// Milliseconds: the median, with the least and the 99th in a hundred.
    pub fn latency(&mut self, name: &str, times_ms: &[f64]) {
        let mut sorted = times_ms.to_vec();
        sorted.sort_by(f64::total_cmp);
        let p99 = sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)];
        self.line(name, median(times_ms), "ms", false, Some((sorted[0], p99)), None);
    }

    /// One number.
    pub fn value(&mut self, name: &str, value: f64, unit: &str, higher_is_better: bool) {
        self.line(name, value, unit, higher_is_better, None, None);
    }

    fn line(
        &mut self,
        name: &str,
        value: f64,
        unit: &str,
        higher_is_better: bool,
        spread: Option<(f64, f64)>,
        baseline: Option<&str>,
    ) {
        let range = spread.map_or(String::new(), |(low, high)| format!("  ({low:.3} .. {high:.3})"));
        println!("{:<44} {value:>16.3} {unit}{range}", format!("{}/{name}", self.area));
        let mut json = serde_json::json!({
            "area": self.area, "name": name, "value": value, "unit": unit, "higher_is_better": higher_is_better,
        });
        if let Some((low, high)) = spread {
            json["low"] = low.into();
            json["high"] = high.into();
        }
        if let Some(baseline) = baseline {
            json["baseline"] = baseline.into();
        }
        self.lines.push(json);
    }

    /// Writes the lines into the folder named by `TIDEGATE_BENCH_DIR`, if there is one.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn finish(self) {
        let Some(folder) = std::env::var_os("TIDEGATE_BENCH_DIR") else { return };
        let path = std::path::Path::new(&folder).join(format!("{}.jsonl", self.area));
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).open(path).expect("the folder can be written");
        for line in self.lines {
            writeln!(file, "{line}").expect("the disk takes it");
        }
    }
}

/// The middle value.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)))
}
