//! Each (offer, sender) counts at most once in all sets that an owner closed (G2).

use std::collections::BTreeSet;

use super::super::history::History;
use super::super::node::Node;

pub(crate) fn check(history: &History, node: &Node) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for update in history.closed.get(&node.id).into_iter().flatten().flat_map(|(_, set)| set) {
        let Some(contribution) = history.contributions.get(update) else {
            return Err(format!("counted_once: {} counts {update} that nobody sent", node.id));
        };
        if !seen.insert(contribution) {
            return Err(format!("counted_once: {} counts {contribution:?} twice", node.id));
        }
    }
    Ok(())
}
