//! The version that a node serves never goes back, also not over its deaths, but by a rollback in its ledger.

use super::super::history::History;
use super::super::node::Node;

pub(crate) fn check(history: &History, node: &Node) -> Result<(), String> {
    let applied = history.applied.get(&node.id).map_or(&[] as &[_], Vec::as_slice);
    match applied.windows(2).find(|pair| pair[1].0 < pair[0].0) {
        Some(pair) => {
            Err(format!("versions_rise: {} went from {} to {}", node.id, pair[0].0, pair[1].0))
        }
        None => Ok(()),
    }
}
