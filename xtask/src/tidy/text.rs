//! The rules about lines of text: length of a file, headers, trailing whitespace, marks of unfinished work, paths of one
//! machine. They read text only, whatever language it is in.

use super::{File, Finding};

const LINES_MAX: usize = 600;
const HEADER_WITHIN_LINES: usize = 5;
/// Words of unfinished work, in two parts so that this file does not break its own rule.
const MARKS: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];
/// Top folders that a path of one machine begins with.
const MACHINE_FOLDERS: [&str; 4] = ["work", "home", "root", "tmp"];
/// Beginnings of paths that are plainly examples.
const GENERIC: [&str; 2] = ["tmp/tidegate", "home/you"];

pub(super) fn check(file: &File, found: &mut Vec<Finding>) {
    if !file.is_prose_or_source() {
        return;
    }
    let lines = file.text.lines().count();
    if lines > LINES_MAX {
        let what = format!("{lines} lines, at most {LINES_MAX}: split it by what its parts are");
        found.push(Finding::new(&file.path, 0, "length", what));
    }
    if file.is_rust() {
        header(file, found);
    }
    for (index, line) in file.text.lines().enumerate() {
        let number = index + 1;
        if line.trim_end() != line {
            found.push(Finding::new(&file.path, number, "whitespace", "whitespace at the line's end"));
        }
        for mark in MARKS {
            if has_word(line, mark) {
                found.push(Finding::new(&file.path, number, "mark", format!("`{mark}`: finish it or write it down")));
            }
        }
        if let Some(path) = machine_path(line) {
            let what = format!("`{path}` exists on one machine only: use a relative path or a temporary folder");
            found.push(Finding::new(&file.path, number, "machine-path", what));
        }
        if skips_doctest(line) {
            let what = "a doctest that is left out: make it compile (`no_run` is allowed), or mark it `text`";
            found.push(Finding::new(&file.path, number, "skipped-test", what));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        found.push(Finding::new(&file.path, lines, "whitespace", "the last line does not end"));
    }
}

fn header(file: &File, found: &mut Vec<Finding>) {
    let says = |line: &str| {
        line.starts_with("//!") || (line.starts_with("#![doc") && line.contains("include_str!(\"../README.md\")"))
    };
    if !file.text.lines().take(HEADER_WITHIN_LINES).any(says) {
        let what =
            format!("no `//!` in the first {HEADER_WITHIN_LINES} lines: say what the file is and what it never does");
        found.push(Finding::new(&file.path, 1, "header", what));
    }
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|letter: char| !letter.is_alphanumeric()).any(|part| part == word)
}

/// The first path in the line that begins at a folder of one machine.
fn machine_path(line: &str) -> Option<&str> {
    for (at, _) in line.match_indices('/') {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || "_.-~*})<>]".contains(letter)) {
            continue;
        }
        // The name after `://` is a host or a user; after `:///` a path begins.
        if line[..at].ends_with(":/") {
            continue;
        }
        let rest = &line[at + 1..];
        let folder = MACHINE_FOLDERS.iter().find(|folder| {
            let after = rest.strip_prefix(**folder).map(|after| after.chars().next());
            after.is_some_and(|letter| !letter.is_some_and(|letter| letter.is_alphanumeric() || "_-.".contains(letter)))
        });
        if folder.is_some() && !GENERIC.iter().any(|generic| rest.starts_with(generic)) {
            let end = rest.find(|letter: char| letter.is_whitespace() || "\"'`),;".contains(letter));
            return Some(&line[at..end.map_or(line.len(), |end| at + 1 + end)]);
        }
    }
    None
}

/// A fence like "```ignore", in Markdown or in a doc comment.
fn skips_doctest(line: &str) -> bool {
    let line = line.trim_start().trim_start_matches("///").trim_start_matches("//!").trim_start();
    line.strip_prefix("```")
        .is_some_and(|info| info.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == "ignore"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken;
    use super::*;

    #[test]
    fn a_file_over_600_lines_is_refused() {
        let text = format!("//! Long.\n{}", "// a\n".repeat(LINES_MAX));
        assert_eq!(broken(&[("xtask/src/a.rs", &text)]), ["length"]);
        assert!(broken(&[("xtask/src/a.rs", &text[..text.len() - 5])]).is_empty());
    }

    #[test]
    fn a_source_file_without_a_header_is_refused() {
        assert_eq!(broken(&[("xtask/src/a.rs", "fn a() {}\n")]), ["header"]);
        assert_eq!(broken(&[("xtask/src/a.rs", "\n\n\n\n\n//! Too late.\n")]), ["header"]);
        assert!(broken(&[("xtask/src/a.rs", "#![doc = include_str!(\"../README.md\")]\n")]).is_empty());
    }

    #[test]
    fn whitespace_at_a_lines_end_is_refused() {
        assert_eq!(broken(&[("docs/a.md", "a \nb\n")]), ["whitespace"]);
        assert_eq!(broken(&[("docs/a.md", "a")]), ["whitespace"]);
    }

    #[test]
    fn marks_of_unfinished_work_are_refused() {
        for mark in MARKS {
            assert_eq!(broken(&[("xtask/src/a.rs", &format!("//! A.\n// {mark}: later\n"))]), ["mark"]);
        }
        assert!(broken(&[("docs/a.md", &format!("`{}{}`\n", MARKS[1], MARKS[1]))]).is_empty());
    }

    #[test]
    fn paths_of_one_machine_are_refused() {
        for folder in MACHINE_FOLDERS {
            assert_eq!(broken(&[("docs/a.md", &format!("see /{folder}/x\n"))]), ["machine-path"], "{folder}");
            assert_eq!(
                broken(&[("xtask/src/a.rs", &format!("//! A.\n// \"sqlite:/{folder}/x\"\n"))]),
                ["machine-path"]
            );
        }
        let fine =
            format!("`{0}tidegate.db` `../{1}/x` `/{1}shop/x` `/v1/{1}/x` `x://{1}/x`\n", concat!("/tm", "p/"), "work");
        assert!(broken(&[("docs/a.md", &fine)]).is_empty());
    }

    #[test]
    fn a_doctest_that_is_left_out_is_refused() {
        let fence = concat!("```ig", "nore");
        assert_eq!(broken(&[("docs/a.md", &format!("{fence}\nx\n```\n"))]), ["skipped-test"]);
        assert_eq!(broken(&[("xtask/src/a.rs", &format!("//! A.\n/// {fence}\n/// ```\n"))]), ["skipped-test"]);
        assert!(broken(&[("docs/a.md", "```rust,no_run\nx\n```\n")]).is_empty());
    }
}
