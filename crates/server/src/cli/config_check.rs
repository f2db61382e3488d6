//! `tidegate config check FILE`.

use std::path::Path;

use super::{Exit, report};
use crate::config::{ConfigError, Flags, Inputs, Problem, load, process_env};

/// Prints `ok` and warnings, or every problem on a line of its own.
pub(super) fn run(file: &Path, insecure: bool, json: bool) -> Exit {
    let flags = Flags { insecure, ..Flags::default() };
    let (problems, warnings) = match load(&Inputs { file: Some(file), env: process_env(), flags }) {
        Ok(loaded) => (Vec::new(), loaded.warnings),
        Err(ConfigError::Wrong(problems)) => (problems, Vec::new()),
        Err(error) => {
            report::failure(&error, Some("config_unreadable"), json);
            return Exit::Failed;
        }
    };
    let ok = problems.is_empty();
    if json {
        let list = |problems: &[Problem]| problems.iter().map(Problem::to_json).collect::<Vec<_>>();
        println!("{}", serde_json::json!({ "ok": ok, "problems": list(&problems), "warnings": list(&warnings) }));
    } else {
        for problem in &problems {
            println!("{problem}");
        }
        for warning in &warnings {
            println!("warning: {warning}");
        }
        if ok {
            println!("ok");
        }
    }
    if ok { Exit::Ok } else { Exit::Failed }
}
