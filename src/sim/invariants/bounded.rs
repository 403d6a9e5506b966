//! No queue of an owner grows beyond its bound, whatever its members do.

use super::super::broken::Broken;
use super::super::node::Node;
use crate::protocol::{Fetches, Round};

pub(crate) const NAME: &str = "bounded";

/// Looks at what a node holds.
///
/// # Errors
/// [`Broken`] names the queue.
pub(crate) fn check(node: &Node) -> Result<(), Broken> {
    let members = node.children.len() + node.guests.len();
    let held = node.held().unwrap_or_default();
    let queues = [
        ("fetches", node.fetches.len(), Fetches::MAX_OPEN),
        ("contributions whose blob is on its way", held.waiting, members),
        ("accepted contributions", held.accepted, members),
        ("remembered rounds", held.recent, Round::MEMORY),
        // One of each member for each round that is remembered, and those whose combination failed.
        ("late contributions", held.late, members * (Round::MEMORY + 2)),
    ];
    match queues.iter().find(|(_, have, most)| have > most) {
        Some((queue, have, most)) => {
            let what = format!("{}: {have} {queue}, at most {most}", node.id);
            Err(Broken::new(NAME, what))
        }
        None => Ok(()),
    }
}
