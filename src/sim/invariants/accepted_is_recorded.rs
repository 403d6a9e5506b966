//! A receipt that says "accepted" or "late" leaves only after the ledger says so (G1).

use super::super::history::History;
use super::super::node::Node;

pub(crate) fn check(history: &History, node: &Node) -> Result<(), String> {
    let Some(promised) = history.promised.get(&node.id) else { return Ok(()) };
    let recorded = history.recorded.get(&node.id);
    match promised.keys().find(|update| !recorded.is_some_and(|r| r.contains(update))) {
        Some(update) => Err(format!("accepted_is_recorded: {} promised {update}", node.id)),
        None => Ok(()),
    }
}
