//! Faults over: all nodes have the last version and the same adapter (unless each has its own), nothing
//! waits (G12).

use std::collections::BTreeSet;

use super::super::world::{World, root_is_idle, view};
use crate::ids::NodeId;
use crate::store::Store;

pub(crate) fn check(world: &World) -> Result<(), String> {
    let versions = world.settings.versions;
    for node in world.nodes.values() {
        if node.version() != Some(versions) {
            let (at, id) = (world.now_ms, &node.id);
            return Err(format!("converges: at {at} ms {id} has version {:?}", node.version()));
        }
    }
    let last = |node| world.history.applied.get(node).and_then(|applied| applied.last());
    // Who stands by serves nothing.
    let serves = |node: &&NodeId| view(world, node.as_str()).is_none_or(|v| v.post != "following");
    let adapters: BTreeSet<_> = world.nodes.keys().filter(serves).map(last).collect();
    let each_its_own = world.settings.plan.knowledge.is_some();
    if adapters.len() != 1 && !each_its_own {
        return Err(format!("converges: {} different adapters", adapters.len()));
    }
    let waiting = |node: &super::super::node::Node| {
        node.store.outbox().unwrap().iter().any(|item| !item.retain)
    };
    if let Some(node) = world.nodes.values().find(|node| waiting(node)) {
        return Err(format!("converges: {} waits for a receipt", node.id));
    }
    if root_is_idle(world) { Ok(()) } else { Err("converges: the root is not idle".into()) }
}
