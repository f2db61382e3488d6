//! A curve: points over a logarithmic axis, with their spread. The vertical axis begins at zero, so that what is flat looks flat.

use std::fmt::Write as _;

use super::escape;
use crate::bench::measure::{Measure, readable};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 40.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;

/// Draws the points in the order of their `x`; all of them have one.
pub(super) fn plot(group: &[&Measure]) -> String {
    let mut points: Vec<(f64, &Measure)> =
        group.iter().filter_map(|measure| Some((measure.x?.max(1.0).log10(), *measure))).collect();
    points.sort_by(|(left, _), (right, _)| left.total_cmp(right));
    let (Some((first, _)), Some((last, _))) = (points.first(), points.last()) else { return String::new() };
    let (first, span) = (*first, (last - first).max(f64::EPSILON));
    let highest = points.iter().flat_map(|(_, point)| [Some(point.value), point.high]).flatten().fold(0.0, f64::max);
    let highest = if highest > 0.0 { highest } else { 1.0 };
    let across = |x: f64| LEFT + (x - first) / span * (WIDTH - LEFT - RIGHT);
    let up = |value: f64| TOP + (1.0 - value / highest) * (HEIGHT - TOP - BOTTOM);

    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
    let (bottom, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let _ = writeln!(out, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
    let line: Vec<String> =
        points.iter().map(|(x, point)| format!("{:.1},{:.1}", across(*x), up(point.value))).collect();
    let _ = writeln!(out, "<polyline class=\"curve\" points=\"{}\"/>", line.join(" "));
    for (x, point) in &points {
        let (x, y) = (across(*x), up(point.value));
        if let (Some(low), Some(high)) = (point.low, point.high) {
            let (low, high) = (up(low), up(high));
            let _ =
                writeln!(out, "<line class=\"spread\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>");
        }
        let value = readable(point.value, "");
        let place = readable(point.x.unwrap_or_default(), "");
        let _ = writeln!(out, "<circle class=\"ours\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        let above = y - 8.0;
        let _ =
            writeln!(out, "<text x=\"{x:.1}\" y=\"{above:.1}\" text-anchor=\"middle\">{}</text>", escape(value.trim()));
        let below = HEIGHT - 8.0;
        let _ =
            writeln!(out, "<text x=\"{x:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>", escape(place.trim()));
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, value: f64) -> Measure {
        serde_json::from_value(serde_json::json!({
            "area": "scaling", "name": "n", "value": value, "unit": "us/record", "series": "streams", "x": x,
        }))
        .unwrap()
    }

    #[test]
    fn a_curve_goes_through_its_points_from_left_to_right() {
        let (few, many) = (point(1.0, 4.0), point(10_000.0, 2.0));
        let drawn = plot(&[&many, &few]);
        assert!(drawn.contains("points=\"40.0,30.0 600.0,120.0\""), "{drawn}");
        assert!(drawn.contains(">4.00<") && drawn.contains(">10.00 k<"), "{drawn}");
    }

    #[test]
    fn a_single_point_and_zero_are_drawn() {
        let drawn = plot(&[&point(0.0, 0.0)]);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        assert_eq!(plot(&[]), "");
    }
}
