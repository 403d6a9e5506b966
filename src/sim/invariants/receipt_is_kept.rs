//! What has a receipt is in a closed set, in the open round or waits for the next one (G1).

use std::collections::BTreeSet;

use super::super::history::History;
use super::super::node::Node;
use crate::ids::UpdateId;
use crate::protocol::CombineInput;
use crate::store::Store;
use crate::wire::decode;

pub(crate) fn check(history: &History, node: &Node) -> Result<(), String> {
    let Some(promised) = history.promised.get(&node.id) else { return Ok(()) };
    let closed = history.closed.get(&node.id).into_iter().flatten().flat_map(|(_, set)| set);
    let mut kept: BTreeSet<UpdateId> = closed.copied().collect();
    for prefix in ["round/accepted/", "round/late/"] {
        for (_, value) in node.store.state(prefix).map_err(|e| e.to_string())? {
            let input: CombineInput = decode(&value, 1 << 20).map_err(|e| e.to_string())?;
            kept.insert(input.update);
        }
    }
    match promised.keys().find(|update| !kept.contains(update)) {
        Some(update) => Err(format!("receipt_is_kept: {} has lost {update}", node.id)),
        None => Ok(()),
    }
}
