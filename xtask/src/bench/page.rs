//! The page with plots: one HTML file that needs nothing else, bars and curves drawn as inline SVG. It loads nothing from anywhere.

mod curve;

use std::fmt::Write as _;

use super::measure::{Measure, readable};

const WIDTH: f64 = 640.0;
const BAR_HEIGHT: f64 = 22.0;
const ROW_HEIGHT: f64 = 44.0;
const STYLE: &str = ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;\
                     padding:0 1rem}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}svg{width:100%;height:auto}\
                     text{font:13px system-ui,sans-serif;fill:currentColor}.ours{fill:#2a6fbb}.base{fill:#8a8a8a}\
                     .spread{stroke:currentColor;stroke-width:2}.curve{fill:none;stroke:#2a6fbb;stroke-width:2}\
                     .axis{stroke:#8a8a8a;stroke-width:1}";

/// The whole page.
pub(super) fn html(measures: &[Measure]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Tidegate: benchmarks</title>\n<style>{STYLE}</style>\n<h1>Tidegate: benchmarks</h1>\n\
         <p>All numbers are of one run on one machine: compare the bars of a plot, not plots of different runs.\n\
         A line across a bar's end is the spread.</p>\n"
    );
    for (title, group) in groups(measures) {
        let drawn = if group.iter().all(|measure| measure.x.is_some()) { curve::plot(&group) } else { plot(&group) };
        let _ = writeln!(out, "<h2>{}</h2>\n{drawn}", escape(&title));
    }
    out.push_str("</html>\n");
    out
}

/// What shares an axis: the same area and unit, in the order of the measures.
fn groups(measures: &[Measure]) -> Vec<(String, Vec<&Measure>)> {
    let mut groups: Vec<(String, Vec<&Measure>)> = Vec::new();
    for measure in measures {
        let better = if measure.higher_is_better { "longer is better" } else { "shorter is better" };
        let of = measure.series.as_ref().map_or(String::new(), |series| format!(", by {series}"));
        let unit = if measure.unit == "ns" { "time" } else { &measure.unit };
        let title = format!("{}: {unit}{of} ({better})", measure.area);
        match groups.iter_mut().find(|(known, _)| *known == title) {
            Some((_, group)) => group.push(measure),
            None => groups.push((title, vec![measure])),
        }
    }
    groups
}

fn plot(group: &[&Measure]) -> String {
    let longest = group.iter().flat_map(|measure| [Some(measure.value), measure.high]).flatten().fold(0.0, f64::max);
    let scale = if longest > 0.0 { WIDTH / longest } else { 0.0 };
    let height = ROW_HEIGHT * group.len() as f64;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n");
    for (index, measure) in group.iter().enumerate() {
        let top = ROW_HEIGHT * index as f64;
        let bar = top + 18.0;
        let class = if measure.baseline.is_some() { "ours" } else { "base" };
        let mut label = format!("{}: {}", measure.name, readable(measure.value, &measure.unit));
        if let (Some(ratio), Some(baseline)) = (measure.ratio, &measure.baseline) {
            let _ = write!(label, " ({ratio:.2} of {baseline})");
        }
        let _ = writeln!(out, "<text x=\"0\" y=\"{}\">{}</text>", top + 13.0, escape(&label));
        let length = (measure.value * scale).max(1.0);
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"0\" y=\"{bar}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\"/>"
        );
        if let (Some(low), Some(high)) = (measure.low, measure.high) {
            let (low, high, middle) = (low * scale, high * scale, bar + BAR_HEIGHT / 2.0);
            let _ = writeln!(
                out,
                "<line class=\"spread\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>"
            );
        }
    }
    out.push_str("</svg>");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(name: &str, value: f64, unit: &str) -> Measure {
        serde_json::from_value(serde_json::json!({"area": "query", "name": name, "value": value, "unit": unit}))
            .unwrap()
    }

    #[test]
    fn the_page_needs_nothing_else_and_shows_every_measure() {
        let page = html(&[measure("bare", 100.0, "ns"), measure("http", 50.0, "ns"), measure("peak", 7.0, "MiB")]);
        for part in ["bare: 100.00 ns", "http: 50.00 ns", "peak: 7.00 MiB", "query: time (shorter is better)"] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(!page.contains("src=") && !page.contains("href="));
    }

    #[test]
    fn names_are_escaped_and_zeros_drawn() {
        let page = html(&[measure("<script>", 0.0, "\"x\"")]);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
