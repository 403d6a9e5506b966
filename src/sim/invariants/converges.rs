//! Faults over: all nodes have the last version and the same adapter (unless each has its own), nothing
//! waits (G12).

use super::super::broken::Broken;
use super::super::node::{Machine, Node};
use super::super::nodes::Place;
use super::super::world::World;
use crate::store::Store;

pub(crate) const NAME: &str = "converges";

/// Looks at all nodes, those from `from` on first: gives the first that isn't there yet.
///
/// # Errors
/// The node and what it lacks.
pub(crate) fn check(world: &World, from: Place) -> Result<(), (Place, Broken)> {
    if !root_is_idle(world) {
        return Err((from, Broken::new(NAME, "the cloud's round has not ended".to_owned())));
    }
    let wanted = owner(world).and_then(|at| world.invariants.versions_rise.adapter(at));
    let each_its_own = world.settings.plan.knowledge.is_some();
    let first = world.nodes.places().skip_while(|place| *place < from);
    let rest = world.nodes.places().take_while(|place| *place < from);
    for place in first.chain(rest) {
        let node = world.nodes.at(place);
        let lacks = |what: String| {
            let what = format!("at {} ms {} {what}", world.now_ms, node.id);
            Err((place, Broken::new(NAME, what)))
        };
        if node.version() != Some(world.settings.rounds.count) {
            return lacks(format!("has version {:?}", node.version()));
        }
        // Who stands by serves nothing.
        let serves = node.failover_view().is_none_or(|view| view.post != "following");
        if serves && !each_its_own && world.invariants.versions_rise.adapter(place) != wanted {
            return lacks("has another adapter than the cloud".to_owned());
        }
        if waits(node) {
            return lacks("waits for a receipt".to_owned());
        }
    }
    Ok(())
}

/// Who owns the rounds of the federation, if somebody does: the cloud, or its standby.
pub(crate) fn owner(world: &World) -> Option<Place> {
    let standby = world.nodes.at(Place::CLOUD).peer.as_ref().map(|(place, _)| *place);
    let owns = |at: &Place| match &world.nodes.at(*at).machine {
        Some(Machine::Root(_)) => true,
        Some(Machine::Failover(failover)) => ["paired", "alone"].contains(&failover.view().post),
        _ => false,
    };
    [Place::CLOUD].into_iter().chain(standby).find(owns)
}

/// Whether the cloud has nothing to do, and its standby, where it has one, all that it has.
pub(crate) fn root_is_idle(world: &World) -> bool {
    match &world.nodes.at(Place::CLOUD).machine {
        Some(Machine::Root(round)) => round.view().phase == "idle",
        Some(Machine::Failover(failover)) => {
            let peer = world.nodes.at(Place::CLOUD).peer.as_ref();
            let other = peer.and_then(|(at, _)| world.nodes.at(*at).failover_view());
            let both: Vec<_> = other.into_iter().chain([failover.view()]).collect();
            let leading = both.iter().filter(|view| view.post == "paired").count();
            let idle = both.iter().all(|view| view.in_step && view.round.phase == "idle");
            both.len() == 2 && leading == 1 && idle
        }
        _ => false,
    }
}

fn waits(node: &Node) -> bool {
    node.store.outbox().is_ok_and(|outbox| outbox.iter().any(|item| !item.retain))
}
