//! The dependency tree as a whole: licences, registries, banned packages, one TLS provider. It reads what cargo says about
//! the lock file and asks no advisory database (`cargo deny check advisories` does, where it is installed).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::Context as _;
use cargo_metadata::Metadata;
use spdx::{Expression, ParseMode};

use crate::workspace;

/// Licences that may be in what we ship, as in `deny.toml`.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
const ALLOWED_EXCEPTION: &str = "LLVM-exception";
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Packages that must not be built, each with the reason.
const BANNED: [(&str, &str); 6] = [
    ("ring", "aws-lc-rs is the only cryptographic provider: choose the dependency's `aws_lc_rs` feature"),
    ("openssl", "TLS is rustls: switch off the dependency's native TLS"),
    ("openssl-sys", "TLS is rustls: switch off the dependency's native TLS"),
    ("native-tls", "TLS is rustls: switch off the dependency's native TLS"),
    ("openssl-src", "TLS is rustls: switch off the dependency's native TLS"),
    ("boring", "aws-lc-rs is the only cryptographic provider"),
];
/// Packages of which the tree holds exactly one version.
const SINGLE: [&str; 6] = ["rustls", "aws-lc-rs", "aws-lc-sys", "tokio", "bytes", "libsqlite3-sys"];
/// Packages held at one version, each with the reason.
const PINNED: [(&str, &str, &str); 1] = [("bincode", "2.0.1", "3.0 is an empty tombstone (RUSTSEC-2025-0141)")];

/// One package of the lock file.
#[derive(Debug, Clone)]
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    /// None for a package of this workspace.
    source: Option<String>,
}

/// `cargo xtask deps`.
pub(crate) fn run() -> anyhow::Result<()> {
    let packages = packages(&workspace::metadata(true)?);
    let built = built()?;
    crate::refuse("deps", &findings(&packages, &built))?;
    println!("deps: {} packages, of which {} are built on some target", packages.len(), built.len());
    Ok(())
}

fn packages(metadata: &Metadata) -> Vec<Package> {
    let own: BTreeSet<_> = metadata.workspace_members.iter().collect();
    metadata
        .packages
        .iter()
        .map(|package| Package {
            name: package.name.to_string(),
            version: package.version.to_string(),
            licence: package.license.clone(),
            source: (!own.contains(&package.id)).then(|| {
                package.source.as_ref().map_or_else(|| "a local path".to_owned(), |source| source.repr.clone())
            }),
        })
        .collect()
}

/// The names of the packages that some build of the workspace really compiles: the lock file also lists optional ones.
fn built() -> anyhow::Result<BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--workspace", "--locked", "--target", "all", "--edges", "normal,build,dev"])
        .args(["--prefix", "none", "--format", "{p}", "--color", "never"])
        .current_dir(workspace::root())
        .output()
        .context("cargo tree")?;
    anyhow::ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout).context("cargo tree printed no UTF-8")?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

fn findings(packages: &[Package], built: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let Package { name, version, .. } = package;
        versions.entry(name).or_default().insert(version);
        if let Some(problem) = licence_problem(package.licence.as_deref()) {
            found.push(format!("{name} {version}: {problem}"));
        }
        if let Some(source) = package.source.as_deref().filter(|source| *source != REGISTRY) {
            found.push(format!("{name} {version} comes from {source}: only crates.io is allowed"));
        }
    }
    for (name, reason) in BANNED {
        if built.contains(name) {
            found.push(format!("{name} is built: {reason} (`cargo tree --workspace -i {name}` shows who asks for it)"));
        }
    }
    for name in SINGLE {
        if let Some(several) = versions.get(name).filter(|several| several.len() > 1) {
            let list: Vec<_> = several.iter().copied().collect();
            found.push(format!("{name} is in the tree {} times ({}): one is allowed", list.len(), list.join(", ")));
        }
    }
    for (name, wanted, reason) in PINNED {
        for version in versions.get(name).into_iter().flatten().filter(|version| **version != wanted) {
            found.push(format!("{name} {version}: only {wanted} is allowed, because {reason}"));
        }
    }
    found
}

fn licence_problem(licence: Option<&str>) -> Option<String> {
    let Some(licence) = licence else { return Some("it states no licence".to_owned()) };
    match Expression::parse_mode(licence, ParseMode::LAX) {
        Err(error) => Some(format!("its licence `{licence}` is not an SPDX expression: {}", error.reason)),
        Ok(expression) => {
            let allowed = expression.evaluate(|requirement| {
                let known = requirement.license.id().is_some_and(|id| ALLOWED.contains(&id.name));
                let addition = requirement.addition.as_ref().map(ToString::to_string);
                known && addition.is_none_or(|addition| addition == ALLOWED_EXCEPTION)
            });
            (!allowed).then(|| format!("its licence `{licence}` is not among those allowed: {}", ALLOWED.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: Some("MIT OR Apache-2.0".to_owned()),
            source: Some(REGISTRY.to_owned()),
        }
    }

    fn only_finding(packages: &[Package], built: &[&str]) -> String {
        let mut found = findings(packages, &built.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn licences_that_bind_the_user_are_refused() {
        for licence in ["GPL-3.0-only", "MIT AND AGPL-3.0", "GPL-2.0 WITH Classpath-exception-2.0", "made up"] {
            let bad = Package { licence: Some(licence.to_owned()), ..package("a", "1.0.0") };
            assert!(only_finding(&[bad], &[]).contains(licence), "{licence}");
        }
        assert!(only_finding(&[Package { licence: None, ..package("a", "1.0.0") }], &[]).contains("no licence"));
    }

    #[test]
    fn licences_that_leave_a_choice_are_judged_by_the_best_one() {
        for licence in [
            "MIT/Apache-2.0",
            "MIT OR LGPL-2.1-or-later",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert_eq!(licence_problem(Some(licence)), None, "{licence}");
        }
    }

    #[test]
    fn cargo_deny_is_told_the_same() {
        let deny = std::fs::read_to_string(workspace::root().join("deny.toml")).unwrap();
        let licences: Vec<&str> = deny
            .split_once("\nallow = [")
            .and_then(|(_, rest)| rest.split_once(']'))
            .map(|(list, _)| list.split('"').skip(1).step_by(2).filter(|name| !name.contains(" WITH ")).collect())
            .unwrap();
        assert_eq!(licences, ALLOWED);
        for name in BANNED.iter().map(|(name, _)| name).chain(&SINGLE) {
            assert!(deny.contains(&format!("crate = \"{name}\"")), "{name} is not in deny.toml");
        }
    }

    #[test]
    fn packages_from_elsewhere_are_refused() {
        for source in ["git+https://example.com/a", "registry+https://example.com/index", "a local path"] {
            let bad = Package { source: Some(source.to_owned()), ..package("a", "1.0.0") };
            assert!(only_finding(&[bad], &[]).contains(source), "{source}");
        }
        assert!(findings(&[Package { source: None, ..package("a", "1.0.0") }], &BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_second_tls_provider_is_refused_only_when_it_is_built() {
        assert!(only_finding(&[package("ring", "0.17.0")], &["ring"]).starts_with("ring is built"));
        assert!(findings(&[package("ring", "0.17.0")], &BTreeSet::new()).is_empty());
        assert!(only_finding(&[package("rustls", "0.22.0"), package("rustls", "0.23.0")], &[]).contains("2 times"));
    }

    #[test]
    fn the_codec_is_held_at_its_last_version_with_code() {
        assert!(only_finding(&[package("bincode", "3.0.0")], &[]).contains("only 2.0.1"));
        assert!(findings(&[package("bincode", "2.0.1")], &BTreeSet::new()).is_empty());
    }
}
