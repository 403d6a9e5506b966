//! Who speaks with a lower epoch than the highest heard changes nothing (G4).

use super::super::broken::Broken;
use super::super::node::{Node, PARENT_EPOCH, parent_epoch};
use super::super::nodes::{ByNode, Place};
use crate::ids::Epoch;
use crate::protocol::Effect;
use crate::trust::Verified;
use crate::wire::Body;

pub(crate) const NAME: &str = "epochs_fence";

/// The highest epoch of its parent that each node has written down.
#[derive(Debug, Default)]
pub(crate) struct EpochsFence {
    known: ByNode<Epoch>,
}

impl EpochsFence {
    pub(crate) fn committed(&mut self, at: Place, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Put(key, value) = effect
                && key == PARENT_EPOCH
                && let Some(epoch) = parent_epoch(value)
            {
                *self.known.at(at) = epoch;
            }
        }
    }

    /// Whether the message must change nothing at this node.
    pub(crate) fn is_outdated(&self, node: &Node, at: Place, message: &Verified) -> bool {
        let mut above = node.parent.iter().chain(&node.peer);
        let from_above = above.any(|(_, above)| above == message.sender());
        node.parent.is_some()
            && from_above
            && !matches!(message.body(), Body::Get(_))
            && self.known.get(at).is_some_and(|known| message.epoch() < *known)
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
