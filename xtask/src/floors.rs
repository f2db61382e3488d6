//! The floors: a normal or build dependency between the workspace's crates points strictly down. The rules are judged on
//! a model, so that a test can break each of them; nothing here reads a source file.

use std::fmt::Write as _;

use cargo_metadata::DependencyKind;

use crate::workspace::{Layers, Member, Workspace, read};

/// The one tool that may know no crate of the product, because it judges them.
const JUDGE: &str = "xtask";

/// How a graph is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    Tree,
    Mermaid,
}

/// `cargo xtask floors [--graph]`.
pub(crate) fn run(graph: Option<Form>) -> anyhow::Result<()> {
    let workspace = read()?;
    match graph {
        Some(Form::Tree) => print!("{}", tree(&workspace)),
        Some(Form::Mermaid) => print!("{}", mermaid(&workspace)),
        None => {
            crate::refuse("floors", &findings(&workspace))?;
            println!("floors: {} packages, every arrow points down", workspace.members.len());
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Floor(u64),
    Tests,
    Tool,
}

fn place(layers: &Layers, name: &str) -> Option<Place> {
    if let Some(floor) = layers.floors.get(name) {
        return Some(Place::Floor(*floor));
    }
    if layers.tests.contains(name) {
        return Some(Place::Tests);
    }
    layers.tools.contains(name).then_some(Place::Tool)
}

/// Every arrow and every list entry that breaks the floors, each as a sentence that says what to do.
pub(crate) fn findings(workspace: &Workspace) -> Vec<String> {
    let layers = &workspace.layers;
    let mut found = listing(workspace);
    for member in &workspace.members {
        let Some(from) = place(layers, &member.name) else { continue };
        for arrow in &member.arrows {
            let Some(to) = place(layers, &arrow.to) else { continue };
            if let Some(problem) = judge(&member.name, from, &arrow.to, to, arrow.kind) {
                found.push(problem);
            }
        }
    }
    found
}

fn listing(workspace: &Workspace) -> Vec<String> {
    let layers = &workspace.layers;
    let mut found = Vec::new();
    for Member { name, .. } in &workspace.members {
        let places = [layers.floors.contains_key(name), layers.tests.contains(name), layers.tools.contains(name)];
        match places.iter().filter(|listed| **listed).count() {
            1 => {}
            0 => found.push(format!(
                "{name} stands on no floor: list it in [workspace.metadata.floors] of the root Cargo.toml, or in \
                 [workspace.metadata.beside] when it is no part of the product"
            )),
            _ => found.push(format!("{name} is listed more than once in the root Cargo.toml's floors: keep one entry")),
        }
    }
    for name in layers.floors.keys().chain(&layers.tests).chain(&layers.tools) {
        if !workspace.members.iter().any(|member| &member.name == name) {
            found.push(format!("{name} is listed in the root Cargo.toml's floors but is no package: remove the entry"));
        }
    }
    found
}

fn judge(name: &str, from: Place, other: &str, to: Place, kind: DependencyKind) -> Option<String> {
    if to == Place::Tool {
        return Some(format!("{name} depends on the tool {other}: nothing may; move what it needs into a crate"));
    }
    if name == JUDGE {
        return Some(format!(
            "{name} depends on {other}: it judges the crates and may know none; remove the dependency"
        ));
    }
    if kind == DependencyKind::Development || from == Place::Tool {
        return None;
    }
    match (from, to) {
        (Place::Floor(floor), Place::Tests) => {
            Some(format!("{name} (floor {floor}) has a {kind} dependency on {other} (tests): make it a dev-dependency"))
        }
        (Place::Floor(floor), Place::Floor(below)) if below >= floor => Some(format!(
            "{name} (floor {floor}) has a {kind} dependency on {other} (floor {below}), which is {}: move what both need \
             to a crate below floor {}, or put a port (trait) there and implement it above",
            if below == floor { "beside it" } else { "above it" },
            floor.min(below),
        )),
        _ => None,
    }
}

/// The floors from the top down; under each crate, the crates that it needs.
pub(crate) fn tree(workspace: &Workspace) -> String {
    let mut out = String::new();
    for (title, members) in floors_down(workspace) {
        let _ = writeln!(out, "{title}");
        for member in members {
            let _ = writeln!(out, "  {}", member.name);
            for (kind, label) in KINDS {
                let names = needs(member, kind);
                if !names.is_empty() {
                    let _ = writeln!(out, "    {label}: {}", names.join(", "));
                }
            }
        }
    }
    out
}

/// The same as a Mermaid diagram, without dev-dependencies.
pub(crate) fn mermaid(workspace: &Workspace) -> String {
    let mut out = String::from("flowchart TD\n");
    for (number, (title, members)) in floors_down(workspace).into_iter().enumerate() {
        let _ = writeln!(out, "  subgraph s{number}[\"{title}\"]");
        for member in members {
            let _ = writeln!(out, "    {}", member.name);
        }
        out.push_str("  end\n");
    }
    for member in &workspace.members {
        for name in needs(member, DependencyKind::Normal) {
            let _ = writeln!(out, "  {} --> {name}", member.name);
        }
    }
    out
}

const KINDS: [(DependencyKind, &str); 3] = [
    (DependencyKind::Normal, "needs"),
    (DependencyKind::Build, "needs to build"),
    (DependencyKind::Development, "needs to test"),
];

fn needs(member: &Member, kind: DependencyKind) -> Vec<&str> {
    let mut names: Vec<&str> =
        member.arrows.iter().filter(|arrow| arrow.kind == kind).map(|arrow| arrow.to.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn floors_down(workspace: &Workspace) -> Vec<(String, Vec<&Member>)> {
    let layers = &workspace.layers;
    let on = |wanted: Place| -> Vec<&Member> {
        workspace.members.iter().filter(|member| place(layers, &member.name) == Some(wanted)).collect()
    };
    let mut numbers: Vec<u64> = layers.floors.values().copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut floors: Vec<_> =
        numbers.into_iter().rev().map(|floor| (format!("floor {floor}"), on(Place::Floor(floor)))).collect();
    floors.push(("tests".to_owned(), on(Place::Tests)));
    floors.push(("tools".to_owned(), on(Place::Tool)));
    floors.retain(|(_, members)| !members.is_empty());
    floors
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::workspace::Arrow;

    /// base (0), left (1), right (1), top (2), kit (tests), tool and xtask (tools), with one arrow more.
    fn made_up(from: &str, to: &str, kind: DependencyKind) -> Workspace {
        let member = |name: &str| {
            let arrows = if name == from { vec![Arrow { to: to.to_owned(), kind }] } else { Vec::new() };
            Member { name: name.to_owned(), folder: format!("crates/{name}"), arrows }
        };
        let floors = [("base", 0), ("left", 1), ("right", 1), ("top", 2)];
        Workspace {
            root: PathBuf::new(),
            target: PathBuf::new(),
            members: ["base", "kit", "left", "right", "tool", "top", "xtask"].map(member).to_vec(),
            layers: Layers {
                floors: floors.map(|(name, floor)| (name.to_owned(), floor)).into(),
                tests: ["kit".to_owned()].into(),
                tools: ["tool".to_owned(), "xtask".to_owned()].into(),
            },
        }
    }

    fn only_finding(from: &str, to: &str, kind: DependencyKind) -> String {
        let mut found = findings(&made_up(from, to, kind));
        assert_eq!(found.len(), 1, "{from} -> {to} ({kind:?}): {found:?}");
        found.remove(0)
    }

    #[test]
    fn every_arrow_of_the_real_workspace_points_down() {
        let found = findings(&read().unwrap());
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[test]
    fn an_arrow_up_or_sideways_is_refused_and_named() {
        for kind in [DependencyKind::Normal, DependencyKind::Build] {
            let up = only_finding("base", "top", kind);
            for part in ["base (floor 0)", "top (floor 2)", "above it", "below floor 0"] {
                assert!(up.contains(part), "{part:?} not in {up:?}");
            }
            let sideways = only_finding("left", "right", kind);
            assert!(sideways.contains("left (floor 1)") && sideways.contains("beside it"), "{sideways}");
        }
    }

    #[test]
    fn an_arrow_down_is_allowed_and_a_test_may_look_up() {
        assert!(findings(&made_up("top", "base", DependencyKind::Normal)).is_empty());
        assert!(findings(&made_up("base", "top", DependencyKind::Development)).is_empty());
        assert!(findings(&made_up("tool", "top", DependencyKind::Normal)).is_empty());
    }

    #[test]
    fn the_tests_kit_is_a_dev_dependency_only() {
        assert!(only_finding("left", "kit", DependencyKind::Normal).contains("make it a dev-dependency"));
        assert!(findings(&made_up("left", "kit", DependencyKind::Development)).is_empty());
        assert!(findings(&made_up("kit", "base", DependencyKind::Normal)).is_empty());
    }

    #[test]
    fn nobody_depends_on_a_tool_and_the_judge_on_nobody() {
        for kind in [DependencyKind::Normal, DependencyKind::Development, DependencyKind::Build] {
            assert!(only_finding("left", "tool", kind).contains("the tool tool"));
            assert!(only_finding("xtask", "base", kind).contains("it judges the crates"));
        }
    }

    #[test]
    fn a_package_without_a_floor_or_with_two_is_refused() {
        let mut workspace = made_up("top", "base", DependencyKind::Normal);
        workspace.layers.floors.remove("left");
        workspace.layers.floors.insert("kit".to_owned(), 1);
        workspace.layers.floors.insert("gone".to_owned(), 1);
        let found = findings(&workspace);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|finding| finding.starts_with("left stands on no floor")));
        assert!(found.iter().any(|finding| finding.starts_with("kit is listed more than once")));
        assert!(found.iter().any(|finding| finding.starts_with("gone is listed")));
    }

    #[test]
    fn the_graph_shows_every_crate_from_the_top_down() {
        let workspace = made_up("top", "base", DependencyKind::Normal);
        let tree = tree(&workspace);
        assert!(tree.find("floor 2") < tree.find("floor 0"));
        assert!(tree.contains("  top\n    needs: base\n"), "{tree}");
        assert!(mermaid(&workspace).contains("  top --> base\n"));
    }
}
