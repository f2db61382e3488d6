//! Checkpoints for people: tables, and one with all that it says.

use serde_json::Value;
use tidegate_checkpoint::{Damage, Generation};

use super::{grid, printable};

/// A member of a document as text; `-` where there is none.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn cells(document: &Value, keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| text(&document[*key])).collect()
}

/// The jobs with their newest checkpoints.
pub(super) fn jobs(jobs: &[Value]) -> String {
    let rows = jobs.iter().map(|job| {
        let newest = &job["newest"];
        let mut row = vec![text(&job["job"])];
        row.extend(cells(newest, &["generation", "epoch", "state", "created", "watermark", "size_bytes"]));
        row.push(text(&job["corrupt"]));
        row
    });
    grid(&["job", "newest", "epoch", "state", "created", "watermark", "bytes", "corrupt"], &[1, 2, 6, 7], rows)
}

/// The checkpoints of one job; of a damaged one the object and what is wrong.
pub(super) fn checkpoints(checkpoints: &[Value]) -> String {
    let rows = checkpoints.iter().map(|checkpoint| {
        let mut row =
            cells(checkpoint, &["generation", "epoch", "state", "created", "watermark", "size_bytes", "savepoint"]);
        row.push(match checkpoint["object"].as_str() {
            Some(object) => format!("{object}: {}", text(&checkpoint["code"])),
            None => String::new(),
        });
        row
    });
    let head = ["generation", "epoch", "state", "created", "watermark", "bytes", "savepoint", "damaged"];
    grid(&head, &[0, 1, 5], rows)
}

/// One checkpoint.
pub(super) fn checkpoint(job: &str, document: &Value) -> String {
    let mut lines = vec![format!("job         {job}")];
    let mut line = |label: &str, value: String| lines.push(format!("{label:<11} {value}"));
    for (label, key) in [
        ("generation", "generation"),
        ("epoch", "epoch"),
        ("state", "state"),
        ("created", "created"),
        ("watermark", "watermark"),
        ("bytes", "size_bytes"),
        ("savepoint", "savepoint"),
        ("object", "object"),
        ("code", "code"),
        ("detail", "detail"),
    ] {
        if let Some(value) = document.get(key).filter(|value| !value.is_null()) {
            line(label, text(value));
        }
    }
    for (source, partitions) in document["positions"].as_object().into_iter().flatten() {
        for (partition, next) in partitions.as_object().into_iter().flatten() {
            line("next", format!("{source} partition {partition}: {}", text(next)));
        }
    }
    for (state, bytes) in document["states"].as_object().into_iter().flatten() {
        line("state of", format!("{state}: {} bytes", text(bytes)));
    }
    for sink in document["sinks"].as_array().into_iter().flatten() {
        line("sink", text(sink));
    }
    for parent in document["parents"].as_array().into_iter().flatten() {
        let [generation, epoch, created] = ["generation", "epoch", "created"].map(|key| text(&parent[key]));
        line("parent", format!("{generation} (epoch {epoch}, {created})"));
    }
    printable(&lines.join("\n"))
}

/// What is wrong with a folder whose job nobody can tell.
pub(super) const NAMELESS: &str = "no entry of the log in it is readable as this folder's";

/// The same, for people.
pub(super) fn nameless(folder: &str) -> String {
    printable(&format!("{folder}: DAMAGED\n  {folder}: {NAMELESS}"))
}

/// What a verification found in one checkpoint.
pub(super) fn verified(job: &str, generation: Generation, damages: &[Damage]) -> String {
    let mut lines =
        vec![format!("{job} generation {generation}: {}", if damages.is_empty() { "ok" } else { "DAMAGED" })];
    lines.extend(damages.iter().map(|damage| format!("  {}: {}", damage.object, damage.kind)));
    printable(&lines.join("\n"))
}
