//! What cargo knows about the workspace, as the small model that the checks read. It never builds anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// The floors as the root manifest states them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Layers {
    /// Product crates with their floor.
    pub floors: BTreeMap<String, u64>,
    /// Packages that product crates may have as dev-dependencies only.
    pub tests: BTreeSet<String>,
    /// Packages that nobody may depend on.
    pub tools: BTreeSet<String>,
}

/// One package of the workspace.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub name: String,
    /// Its folder, relative to the root, with `/`.
    pub folder: String,
    /// Its dependencies on other members.
    pub arrows: Vec<Arrow>,
}

/// A dependency of one member on another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrow {
    pub to: String,
    pub kind: DependencyKind,
}

/// The workspace: its members, and the floors they stand on.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    pub members: Vec<Member>,
    pub layers: Layers,
}

/// The folder of the workspace that this binary was built from.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

/// Asks cargo about the workspace; with `deep`, about every package in the lock file too (which may need the network).
pub(crate) fn metadata(deep: bool) -> anyhow::Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.current_dir(root());
    if deep {
        command.other_options(vec!["--locked".to_owned()]);
    } else {
        command.no_deps();
    }
    command.exec().context("cargo metadata")
}

/// Reads the workspace with its floors.
pub(crate) fn read() -> anyhow::Result<Workspace> {
    from_metadata(&metadata(false)?)
}

fn from_metadata(metadata: &Metadata) -> anyhow::Result<Workspace> {
    let packages = metadata.workspace_packages();
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let root = metadata.workspace_root.as_std_path();
    let mut members: Vec<Member> = packages
        .iter()
        .map(|package| {
            let arrows = package
                .dependencies
                .iter()
                .filter(|dependency| names.contains(dependency.name.as_str()))
                .map(|dependency| Arrow { to: dependency.name.clone(), kind: dependency.kind })
                .collect();
            let folder = package.manifest_path.parent().map_or("", |folder| {
                folder.as_std_path().strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default()
            });
            Member { name: package.name.to_string(), folder: folder.to_owned(), arrows }
        })
        .collect();
    members.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(Workspace {
        root: root.to_path_buf(),
        target: metadata.target_directory.clone().into_std_path_buf(),
        members,
        layers: layers(&metadata.workspace_metadata)?,
    })
}

fn layers(value: &serde_json::Value) -> anyhow::Result<Layers> {
    let mut layers = Layers::default();
    let floors = value.get("floors").and_then(serde_json::Value::as_object);
    let floors =
        floors.context("Cargo.toml has no [workspace.metadata.floors]: list every product crate with its floor")?;
    for (name, floor) in floors {
        let floor =
            floor.as_u64().with_context(|| format!("[workspace.metadata.floors]: {name} needs a whole number"))?;
        layers.floors.insert(name.clone(), floor);
    }
    let listed = |key: &str| -> anyhow::Result<BTreeSet<String>> {
        let Some(list) = value.get("beside").and_then(|beside| beside.get(key)) else { return Ok(BTreeSet::new()) };
        serde_json::from_value(list.clone())
            .with_context(|| format!("[workspace.metadata.beside]: {key} is a list of package names"))
    };
    layers.tests = listed("tests")?;
    layers.tools = listed("tools")?;
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_of_the_wrong_type_are_refused() {
        assert!(layers(&serde_json::json!({})).is_err());
        assert!(layers(&serde_json::json!({"floors": {"a": "low"}})).is_err());
        assert!(layers(&serde_json::json!({"floors": {"a": -1}})).is_err());
        assert!(layers(&serde_json::json!({"floors": {"a": 0}, "beside": {"tests": "a"}})).is_err());
    }

    #[test]
    fn the_real_workspace_is_read_with_its_arrows() {
        let workspace = read().unwrap();
        let query = workspace.members.iter().find(|member| member.name == "tidegate-query").unwrap();
        assert_eq!(query.folder, "crates/query");
        assert!(query.arrows.contains(&Arrow { to: "tidegate-core".to_owned(), kind: DependencyKind::Normal }));
        assert!(workspace.layers.floors.contains_key("tidegate-core"));
    }
}
