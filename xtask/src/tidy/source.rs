//! The rules about Rust code, judged on tokens: what must not stand in the product, and what must not stand anywhere.

use std::collections::BTreeSet;

use super::token::{Token, modules_for_tests, read};
use super::{File, Finding, Project, layout};

/// The only module that may name the codec of structures at rest, and the manifests that may.
const CODEC: &str = "bincode";
const CODEC_MODULE: [&str; 2] = ["crates/frame/src/envelope.rs", "crates/frame/src/envelope/"];
const CODEC_MANIFESTS: [&str; 3] = ["Cargo.toml", "crates/frame/Cargo.toml", "deny.toml"];

pub(super) fn check(project: &Project, found: &mut Vec<Finding>) {
    let mut files = Vec::new();
    for file in project.files.iter().filter(|file| file.is_rust()) {
        match read(&file.text) {
            Some(tokens) => files.push((file, tokens)),
            None => found.push(Finding::new(&file.path, 0, "syntax", "not made of Rust tokens")),
        }
    }
    let for_tests: BTreeSet<String> = files
        .iter()
        .flat_map(|(file, tokens)| modules_for_tests(tokens).into_iter().map(|module| module_path(&file.path, module)))
        .collect();
    for (file, tokens) in &files {
        anywhere(file, tokens, found);
        let Some(package) = project.package_of(&file.path).filter(|package| package.product) else { continue };
        if !file.path.starts_with(&format!("{}/src/", package.folder)) || is_for_tests(&for_tests, &file.path) {
            continue;
        }
        unwraps(file, tokens, found);
        // A package with a program talks to a person; one without talks to its caller.
        if project.file(&format!("{}/src/main.rs", package.folder)).is_none() {
            prints(file, tokens, found);
        }
    }
    for file in project.files.iter().filter(|file| file.extension() == "toml") {
        let names = file.text.lines().any(|line| line.trim_start().starts_with(CODEC));
        if names && !CODEC_MANIFESTS.contains(&file.path.as_str()) {
            let what = format!("`{CODEC}` belongs to the envelope of tidegate-frame alone");
            found.push(Finding::new(&file.path, 0, "codec", what));
        }
    }
}

/// Where the module `name` of the file `path` lies, without the extension.
fn module_path(path: &str, name: &str) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    match file {
        "lib.rs" | "main.rs" => format!("{folder}/{name}"),
        other => format!("{folder}/{}/{name}", other.trim_end_matches(".rs")),
    }
}

fn is_for_tests(modules: &BTreeSet<String>, path: &str) -> bool {
    modules
        .iter()
        .any(|module| path.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')))
}

/// Whether the tokens from `index` on read so.
fn reads(tokens: &[Token], index: usize, wanted: &[&str]) -> bool {
    wanted.iter().enumerate().all(|(offset, text)| tokens.get(index + offset).is_some_and(|token| token.text == *text))
}

fn anywhere(file: &File, tokens: &[Token], found: &mut Vec<Finding>) {
    let may_name_codec = CODEC_MODULE.iter().any(|module| file.path.starts_with(module));
    for (index, token) in tokens.iter().enumerate() {
        for unfinished in ["todo", "unimplemented"] {
            if reads(tokens, index, &[unfinished, "!"]) {
                let what = format!("`{unfinished}!`: write it, or return an error that says so");
                found.push(Finding::new(&file.path, token.line, "unfinished", what));
            }
        }
        if reads(tokens, index, &["#", "[", "ignore"]) {
            let what = "an ignored test proves nothing: repair it or remove it";
            found.push(Finding::new(&file.path, token.line, "skipped-test", what));
        }
        if token.text == CODEC && !may_name_codec {
            let what = format!("`{CODEC}` outside {}: go through the envelope", CODEC_MODULE[0]);
            found.push(Finding::new(&file.path, token.line, "codec", what));
        }
        if matches!(token.text.as_str(), "struct" | "enum" | "trait" | "type" | "union" | "mod") {
            let Some(name) = tokens.get(index + 1).map(|name| name.text.as_str()) else { continue };
            if words(name).iter().any(|word| layout::is_empty_name(word)) {
                let what = format!("`{name}` says nothing: name it after what it does");
                found.push(Finding::new(&file.path, token.line, "empty-name", what));
            }
        }
    }
}

/// The words of a name in CamelCase or snake_case, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter.is_uppercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| letter != '_') {
            word.extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn unwraps(file: &File, tokens: &[Token], found: &mut Vec<Finding>) {
    for (index, token) in tokens.iter().enumerate().filter(|(_, token)| !token.tested) {
        if reads(tokens, index, &[".", "unwrap", "(", ")"]) {
            let what = "`.unwrap()` outside tests: return an error, or `expect` with the invariant";
            found.push(Finding::new(&file.path, token.line, "unwrap", what));
        }
    }
}

fn prints(file: &File, tokens: &[Token], found: &mut Vec<Finding>) {
    for (index, token) in tokens.iter().enumerate().filter(|(_, token)| !token.tested) {
        for print in ["println", "print", "eprintln", "eprint"] {
            if reads(tokens, index, &[print, "!"]) {
                let what = format!("`{print}!` in a library: return it, or use `tracing`");
                found.push(Finding::new(&file.path, token.line, "print", what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken;

    const LIBRARY: (&str, &str) = ("crates/one/src/lib.rs", "#![doc = include_str!(\"../README.md\")]\n");

    fn broken_by(code: &str) -> Vec<&'static str> {
        broken(&[LIBRARY, ("crates/one/src/a.rs", &format!("//! A.\n{code}\n"))])
    }

    #[test]
    fn unfinished_code_is_refused() {
        assert_eq!(broken_by("fn a() { todo!() }"), ["unfinished"]);
        assert_eq!(broken_by("fn a() { if b { unimplemented!(\"c\") } }"), ["unfinished"]);
        assert!(broken_by("// todo!()\nfn a() -> &'static str { \"todo!()\" }").is_empty());
    }

    #[test]
    fn an_ignored_test_is_refused() {
        assert_eq!(broken_by("#[cfg(test)] mod tests { #[test] #[ignore] fn a() {} }"), ["skipped-test"]);
        assert_eq!(broken_by("#[test] #[ignore = \"slow\"] fn a() {}"), ["skipped-test"]);
    }

    #[test]
    fn unwrap_in_the_product_is_refused_and_in_its_tests_allowed() {
        assert_eq!(broken_by("fn a() { b.unwrap(); }"), ["unwrap"]);
        assert_eq!(broken_by("fn a() { assert!(b.unwrap()); }"), ["unwrap"]);
        assert!(broken_by("fn a() { b.unwrap_or_default(); }").is_empty());
        assert!(broken_by("#[cfg(test)] mod tests { #[test] fn a() { b.unwrap(); } }").is_empty());
        assert!(broken(&[("crates/one/tests/a.rs", "//! A.\nfn a() { b.unwrap(); }\n")]).is_empty());
        assert!(broken(&[("crates/kit/src/a.rs", "//! A.\nfn a() { b.unwrap(); }\n")]).is_empty());
    }

    #[test]
    fn a_module_for_tests_in_a_file_of_its_own_is_tests_too() {
        let proof = ("crates/one/src/a/proof.rs", "//! Proof.\nfn a() { b.unwrap(); }\n");
        let declares = ("crates/one/src/a.rs", "//! A.\n#[cfg(test)]\nmod proof;\n");
        assert!(broken(&[LIBRARY, declares, proof]).is_empty());
        assert_eq!(broken(&[LIBRARY, ("crates/one/src/a.rs", "//! A.\nmod proof;\n"), proof]), ["unwrap"]);
    }

    #[test]
    fn printing_in_a_library_is_refused() {
        assert_eq!(broken_by("fn a() { println!(\"b\"); }"), ["print"]);
        let main = ("crates/one/src/main.rs", "//! A.\nfn main() { println!(\"b\"); }\n");
        assert!(broken(&[main]).is_empty());
        assert!(broken(&[main, LIBRARY, ("crates/one/src/a.rs", main.1)]).is_empty());
        assert!(broken(&[("crates/kit/src/a.rs", main.1)]).is_empty());
        assert!(broken(&[LIBRARY, ("crates/one/build.rs", "//! A.\nfn main() { println!(\"b\"); }\n")]).is_empty());
    }

    #[test]
    fn types_and_modules_that_say_nothing_are_refused() {
        for code in
            ["struct LeaseManager;", "enum CommonError {}", "trait QueryHelper {}", "mod utils {}", "type Misc = u8;"]
        {
            assert_eq!(broken_by(code), ["empty-name"], "{code}");
        }
        assert!(broken_by("struct Utility; struct Commoner; fn manager() {}").is_empty());
    }

    #[test]
    fn the_codec_of_structures_at_rest_stays_in_the_envelope() {
        let code = "//! A.\nfn a() { bincode::serde::decode(b) }\n";
        assert_eq!(broken(&[("crates/one/src/a.rs", code)]), ["codec"]);
        assert_eq!(broken(&[("crates/frame/src/chunk.rs", code)]), ["codec"]);
        assert!(broken(&[("crates/frame/src/envelope.rs", code)]).is_empty());
        assert!(broken(&[("crates/frame/src/envelope/vector.rs", code)]).is_empty());
        let manifest = "[dependencies]\nbincode.workspace = true\n";
        assert_eq!(broken(&[("crates/one/Cargo.toml", manifest)]), ["codec"]);
        assert!(broken(&[("crates/frame/Cargo.toml", manifest)]).is_empty());
    }

    #[test]
    fn a_file_that_is_not_rust_is_refused() {
        assert_eq!(broken(&[("crates/one/src/a.rs", "//! A.\nfn a( {\n")]), ["syntax"]);
    }
}
