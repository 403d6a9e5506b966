//! Who speaks with a lower epoch than the highest heard changes nothing (G4).

use super::super::broken::Broken;
use super::super::node::{AWAY, Node, PARENT_EPOCH, parent_epoch, with_second};
use super::super::nodes::{ByNode, Place};
use crate::ids::Epoch;
use crate::protocol::Effect;
use crate::trust::Verified;
use crate::wire::Body;

pub(crate) const NAME: &str = "epochs_fence";

/// The highest epoch of each node's parent that it has written down, and of a device's second edge.
#[derive(Debug, Default)]
pub(crate) struct EpochsFence {
    known: ByNode<[Epoch; 2]>,
    away: ByNode<bool>,
}

impl EpochsFence {
    pub(crate) fn committed(&mut self, at: Place, effects: &[Effect]) {
        let put = |wanted: &'static str| {
            effects.iter().find_map(move |effect| match effect {
                Effect::Put(key, value) if key == wanted => Some(value),
                _ => None,
            })
        };
        if let Some(away) = put(AWAY).and_then(|value| with_second(value)) {
            *self.away.at(at) = away;
        }
        let away = *self.away.at(at);
        if let Some(epoch) = put(PARENT_EPOCH).and_then(|value| parent_epoch(value)) {
            let [home, second] = self.known.at(at);
            *(if away { second } else { home }) = epoch;
        }
    }

    /// Whether the message must change nothing at this node.
    pub(crate) fn is_outdated(&self, node: &Node, at: Place, message: &Verified) -> bool {
        let mut above = node.parent.iter().chain(&node.peer);
        let from_above = above.any(|(_, above)| above == message.sender());
        let from_second = node.second.as_ref().is_some_and(|(_, edge)| edge == message.sender());
        let known = self
            .known
            .get(at)
            .map_or(0, |[home, second]| if from_second { *second } else { *home });
        node.parent.is_some()
            && (from_above || from_second)
            && !matches!(message.body(), Body::Get(_))
            && message.epoch() < known
    }
}

/// An outdated message came, and the node has changed or not.
///
/// # Errors
/// [`Broken`] when it has.
pub(crate) fn check(node: &Node, epoch: Epoch, changed: bool) -> Result<(), Broken> {
    if changed {
        let what = format!("{} changed by epoch {epoch}, it knows a higher one", node.id);
        return Err(Broken::new(NAME, what));
    }
    Ok(())
}
