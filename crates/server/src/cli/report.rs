//! Errors on stderr: a line for people, or a JSON object with `--json`.

use std::error::Error;

/// Prints an error with its causes.
pub(crate) fn failure(error: &dyn Error, code: Option<&str>, json: bool) {
    self::error(&words(error), code, json);
}

/// An error with its causes, in one line.
pub(crate) fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some libraries put the cause's words into their own.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// Prints an error.
pub(crate) fn error(text: &str, code: Option<&str>, json: bool) {
    if json {
        let code = code.filter(|code| !code.is_empty());
        eprintln!("{}", serde_json::json!({ "error": { "code": code, "message": text } }));
    } else {
        eprintln!("error: {text}");
    }
}
