//! `[limits.object]`: kill switches and rate limits, read by the same rules as a change at run time.

use tidegate_batch::policy::Rules;
use tidegate_transport_http::object_limit::{KILL, RATE, check_count, kill_rule, rate_rule};
use tidegate_transport_http::problem::Problem;

use super::read::{Node, Section};

/// The table's name in `limits`.
pub(super) const TABLE: &str = "object";

pub(super) fn read(root: &Section<'_>) -> Option<Rules> {
    let Some(limits) = root.get("limits") else { return Some(Rules::default()) };
    let Some(node) = limits.section()?.get(TABLE) else { return Some(Rules::default()) };
    let section = node.section()?;
    let kill = rules(section.get("kill"), KILL, kill_rule);
    let rate = rules(section.get("rate"), RATE, rate_rule);
    section.finish();
    match Rules::new(kill?, rate?) {
        Ok(rules) => Some(rules),
        Err(error) => {
            node.refuse(error.to_string());
            None
        }
    }
}

/// Every rule is looked at, whatever is wrong with those before it.
fn rules<T>(node: Option<Node<'_>>, key: &str, rule: impl Fn(&str, &str) -> Result<T, Problem>) -> Option<Vec<T>> {
    let Some(node) = node else { return Some(Vec::new()) };
    let items = node.list()?;
    if let Err(problem) = check_count(key, items.len()) {
        node.refuse(problem.detail());
        return None;
    }
    let read: Vec<Option<T>> = items
        .iter()
        .enumerate()
        .map(|(at, item)| {
            let read = rule(&item.json()?, &format!("{key}[{at}]"));
            read.inspect_err(|problem| item.refuse(problem.detail())).ok()
        })
        .collect();
    read.into_iter().collect()
}
