//! Links between the project's documents: what they point at must be there. It never asks the network.

use pulldown_cmark::{Event, Parser, Tag};

use super::{File, Finding, Project};

pub(super) fn check(project: &Project, file: &File, found: &mut Vec<Finding>) {
    if file.extension() != "md" {
        return;
    }
    for (event, range) in Parser::new(&file.text).into_offset_iter() {
        let (Event::Start(Tag::Link { dest_url, .. }) | Event::Start(Tag::Image { dest_url, .. })) = event else {
            continue;
        };
        let Some(target) = file_target(&file.path, &dest_url) else { continue };
        if !resolve(&file.path, target).is_some_and(|path| project.has(&path)) {
            let line = file.text[..range.start].matches('\n').count() + 1;
            let what = format!("the link to `{target}` leads nowhere: no such file in the project");
            found.push(Finding::new(&file.path, line, "link", what));
        }
    }
}

/// The part of a link that names a file; none for a web address, a heading of this page or an item of rustdoc.
fn file_target<'a>(path: &str, link: &'a str) -> Option<&'a str> {
    let target = link.split(['#', '?']).next().unwrap_or_default();
    let scheme = target.split('/').next().is_some_and(|first| first.contains(':'));
    // A crate's README is its rustdoc page too, where a bare word is an item.
    let item = path.starts_with("crates/") && !target.contains(['/', '.']);
    (!target.is_empty() && !scheme && !item).then_some(target)
}

/// The path from the root; none when it leaves the project.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        parts.clear();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken;

    const COMMANDS: &str = "`cargo run --release -- demo` `cargo test --workspace`\n";

    #[test]
    fn a_link_to_a_missing_file_is_refused() {
        assert_eq!(broken(&[("docs/a.md", "[b](b.md)\n")]), ["link"]);
        assert_eq!(broken(&[("docs/a.md", "[b](../../b.md)\n")]), ["link"]);
        assert_eq!(broken(&[("crates/one/README.md", "[b](../two/src/b.rs)\n")]), ["link"]);
        assert_eq!(broken(&[("README.md", &format!("{COMMANDS}![b](docs/b.svg)\n"))]), ["link"]);
    }

    #[test]
    fn links_that_lead_somewhere_are_allowed() {
        let text = "[web](https://example.com/x) [here](#there) [file](adr/x.md#part) [folder](adr) [up](../README.md)\n\
                    `[code](gone.md)`\n";
        assert!(
            broken(&[("docs/a.md", text), ("docs/adr/x.md", ""), ("README.md", COMMANDS)]).iter().all(|r| *r == "adr")
        );
        assert!(broken(&[("crates/one/README.md", "[item](crate::Thing) [other](Thing)\n")]).is_empty());
    }
}
