//! What the benchmarks measured: criterion's estimates, and the lines that end-to-end benchmarks write. It computes ratios
//! within a run, and judges nothing.
//!
//! An end-to-end benchmark writes `<folder>/<name>.jsonl`, where the folder is in `TIDEGATE_BENCH_DIR` (`target/bench` when
//! it is not set), one JSON object a line: `area`, `name`, `value`, `unit`, and if they apply `low` and `high` (the spread
//! of the value), `higher_is_better` (false unless given) and `baseline` (the `name` of a line of the same area and unit); a point of a
//! curve has `series` and `x` too.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// Criterion's results are nested this deep at most: group, function, value.
const FOLDER_DEPTH_MAX: usize = 5;
/// Within a group of criterion, the function whose name begins so is what the others are compared with.
const BASELINE_PREFIX: &str = "bare";

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measure {
    /// The bench target or group: what is compared with what.
    pub area: String,
    pub name: String,
    pub value: f64,
    pub unit: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    #[serde(default)]
    pub higher_is_better: bool,
    /// The name of the measure that this one is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// The curve that this is a point of, named after what `x` counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
    /// Where on that curve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// How good it is as a share of its baseline: 1 is as good, 2 is twice as good. Computed, never read.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    function_id: Option<String>,
    value_str: Option<String>,
    throughput: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// The files of lines in the folder, sorted.
pub(super) fn line_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads what end-to-end benchmarks wrote. A line that is not a measure is an error that names it.
pub(super) fn lines(folder: &Path) -> anyhow::Result<Vec<Measure>> {
    let mut measures = Vec::new();
    for path in line_files(folder)? {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("{}:{}", path.display(), index + 1);
            let measure: Measure = serde_json::from_str(line).with_context(place)?;
            ensure!(measure.value.is_finite(), "{}: the value is no number", place());
            measures.push(measure);
        }
    }
    Ok(measures)
}

/// Reads what criterion measured since then: the median, as a time or as a throughput where the benchmark states one.
pub(super) fn criterion(folder: &Path, since: SystemTime) -> anyhow::Result<Vec<Measure>> {
    let mut files = Vec::new();
    find_estimates(folder, FOLDER_DEPTH_MAX, &mut files);
    files.sort();
    let mut measures = Vec::new();
    for path in files {
        if fs::metadata(&path)?.modified()? < since {
            continue;
        }
        let context = || format!("reading {}", path.display());
        let estimates: Estimates = serde_json::from_slice(&fs::read(&path)?).with_context(context)?;
        let benchmark = fs::read(path.with_file_name("benchmark.json")).with_context(context)?;
        measures.push(of_criterion(serde_json::from_slice(&benchmark).with_context(context)?, &estimates.median));
    }
    name_baselines(&mut measures);
    Ok(measures)
}

fn find_estimates(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.ends_with("new/estimates.json") {
            files.push(path);
        } else if depth > 0 && path.is_dir() {
            find_estimates(&path, depth - 1, files);
        }
    }
}

fn of_criterion(benchmark: Benchmark, median: &Estimate) -> Measure {
    let mut name = benchmark.function_id.unwrap_or_default();
    if let Some(value) = benchmark.value_str {
        name = if name.is_empty() { value } else { format!("{name}/{value}") };
    }
    let interval = &median.confidence_interval;
    let mut measure = Measure {
        area: benchmark.group_id,
        name: if name.is_empty() { "whole".to_owned() } else { name },
        value: median.point_estimate,
        unit: "ns".to_owned(),
        low: Some(interval.lower_bound),
        high: Some(interval.upper_bound),
        higher_is_better: false,
        baseline: None,
        series: None,
        x: None,
        ratio: None,
    };
    if let Some((amount, unit)) = benchmark.throughput.as_ref().and_then(amount_an_iteration) {
        let a_second = |nanoseconds: f64| amount / nanoseconds * 1e9;
        measure.value = a_second(median.point_estimate);
        measure.low = Some(a_second(interval.upper_bound));
        measure.high = Some(a_second(interval.lower_bound));
        measure.unit = format!("{unit}/s");
        measure.higher_is_better = true;
    }
    measure
}

/// Criterion writes a throughput as `{"Bytes": 1024}` or `{"Elements": 10}`.
fn amount_an_iteration(throughput: &serde_json::Value) -> Option<(f64, &'static str)> {
    let (kind, amount) = throughput.as_object()?.iter().next()?;
    let unit = match kind.as_str() {
        "Bytes" | "BytesDecimal" => "byte",
        "Elements" => "row",
        _ => return None,
    };
    amount.as_f64().map(|amount| (amount, unit))
}

/// Within an area, what does not begin with `bare` is compared with what does (of the same value, where there are values).
fn name_baselines(measures: &mut [Measure]) {
    let bare: Vec<(String, String)> = measures
        .iter()
        .filter(|measure| measure.name.starts_with(BASELINE_PREFIX))
        .map(|measure| (measure.area.clone(), measure.name.clone()))
        .collect();
    let value = |name: &str| name.split_once('/').map(|(_, value)| value.to_owned());
    for measure in measures.iter_mut().filter(|measure| !measure.name.starts_with(BASELINE_PREFIX)) {
        let of_area = || bare.iter().filter(|(area, _)| *area == measure.area);
        let same_value = of_area().find(|(_, name)| value(name) == value(&measure.name));
        measure.baseline = same_value.or_else(|| of_area().next()).map(|(_, name)| name.clone());
    }
}

/// Adds the ratios to the baselines, and sorts by area.
pub(super) fn with_ratios(mut measures: Vec<Measure>) -> Vec<Measure> {
    let all = measures.clone();
    for measure in &mut measures {
        let Some(name) = &measure.baseline else { continue };
        let baseline =
            all.iter().find(|other| other.area == measure.area && &other.name == name && other.unit == measure.unit);
        measure.ratio = baseline
            .map(|base| if measure.higher_is_better { measure.value / base.value } else { base.value / measure.value })
            .filter(|ratio| ratio.is_finite());
    }
    measures.sort_by(|left, right| left.area.cmp(&right.area));
    measures
}

/// A value with its unit, short enough to read: three or four digits and a prefix.
pub(super) fn readable(value: f64, unit: &str) -> String {
    if unit == "ns" {
        let (scale, unit) = match value {
            value if value >= 1e9 => (1e9, "s"),
            value if value >= 1e6 => (1e6, "ms"),
            value if value >= 1e3 => (1e3, "µs"),
            _ => (1.0, "ns"),
        };
        return format!("{:.2} {unit}", value / scale);
    }
    let (scale, prefix) = match value.abs() {
        value if value >= 1e9 => (1e9, "G"),
        value if value >= 1e6 => (1e6, "M"),
        value if value >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    format!("{:.2} {prefix}{unit}", value / scale)
}

/// The table that a person reads.
pub(super) fn table(measures: &[Measure]) -> String {
    let width = measures.iter().map(|measure| measure.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    let mut area = None;
    for measure in measures {
        if area != Some(&measure.area) {
            area = Some(&measure.area);
            let _ = writeln!(out, "\n{}", measure.area);
        }
        let ratio = match (&measure.ratio, &measure.baseline) {
            (Some(ratio), Some(baseline)) => format!("  {ratio:.2} of {baseline}"),
            _ => String::new(),
        };
        let value = readable(measure.value, &measure.unit);
        let _ = writeln!(out, "  {:width$}  {value:>16}{ratio}", measure.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(name: &str, value: f64) -> Measure {
        serde_json::from_value(serde_json::json!({"area": "query", "name": name, "value": value, "unit": "row/s", "higher_is_better": true}))
            .unwrap()
    }

    fn write_criterion(folder: &Path, function: &str, nanoseconds: f64, throughput: &str) {
        let new = folder.join("encode").join(function).join("new");
        fs::create_dir_all(&new).unwrap();
        let interval = format!(
            r#"{{"confidence_level":0.95,"lower_bound":{},"upper_bound":{}}}"#,
            nanoseconds - 1.0,
            nanoseconds + 1.0
        );
        let estimate =
            format!(r#"{{"point_estimate":{nanoseconds},"standard_error":1.0,"confidence_interval":{interval}}}"#);
        fs::write(new.join("estimates.json"), format!(r#"{{"median":{estimate},"mean":{estimate}}}"#)).unwrap();
        fs::write(
            new.join("benchmark.json"),
            format!(r#"{{"group_id":"encode","function_id":"{function}","value_str":null,"throughput":{throughput},"full_id":"x"}}"#),
        )
        .unwrap();
    }

    #[test]
    fn criterions_results_become_throughputs_compared_with_the_bare_loop() {
        let folder = tempfile::tempdir().unwrap();
        write_criterion(folder.path(), "bare_loop", 1e9, r#"{"Elements":1000}"#);
        write_criterion(folder.path(), "ndjson", 2e9, r#"{"Elements":1000}"#);
        let measures = with_ratios(criterion(folder.path(), SystemTime::UNIX_EPOCH).unwrap());
        assert_eq!(measures.len(), 2);
        assert_eq!(
            (measures[1].name.as_str(), measures[1].value, measures[1].unit.as_str()),
            ("ndjson", 500.0, "row/s")
        );
        assert!((measures[1].ratio.unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(measures[0].ratio, None);
    }

    #[test]
    fn results_of_an_earlier_run_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        write_criterion(folder.path(), "ndjson", 2.0, "null");
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        assert!(criterion(folder.path(), later).unwrap().is_empty());
        assert!(criterion(&folder.path().join("missing"), later).unwrap().is_empty());
    }

    #[test]
    fn a_time_is_better_when_it_is_shorter() {
        let time = |name: &str, value, baseline: Option<&str>| Measure {
            unit: "ns".to_owned(),
            higher_is_better: false,
            baseline: baseline.map(str::to_owned),
            ..measure(name, value)
        };
        let measures = with_ratios(vec![time("bare", 100.0, None), time("ours", 200.0, Some("bare"))]);
        assert_eq!(measures[1].ratio, Some(0.5));
        let table = table(&measures);
        assert!(table.contains("200.00 ns") && table.contains("0.50 of bare"), "{table}");
    }

    #[test]
    fn a_line_that_is_no_measure_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let good = r#"{"area":"query","name":"http","value":10,"unit":"row/s"}"#;
        for bad in ["nonsense", r#"{"area":"query"}"#, r#"{"area":"q","name":"n","value":1,"unit":"u","more":1}"#] {
            fs::write(folder.path().join("a.jsonl"), format!("{good}\n{bad}\n")).unwrap();
            let error = format!("{:#}", lines(folder.path()).unwrap_err());
            assert!(error.contains("a.jsonl:2"), "{error}");
        }
        fs::write(folder.path().join("a.jsonl"), format!("{good}\n\n{good}\n")).unwrap();
        assert_eq!(lines(folder.path()).unwrap().len(), 2);
    }

    #[test]
    fn values_are_readable() {
        assert_eq!(readable(1_234.0, "ns"), "1.23 µs");
        assert_eq!(readable(2_500_000.0, "row/s"), "2.50 Mrow/s");
        assert_eq!(readable(0.61, ""), "0.61 ");
    }
}
