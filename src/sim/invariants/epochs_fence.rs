//! Who speaks with a lower epoch than the highest heard changes nothing (G4).

use super::super::node::Node;
use crate::ids::Epoch;
use crate::store::Store;
use crate::trust::Verified;
use crate::wire::{Body, decode};

/// Whether the message must change nothing at `node`.
pub(crate) fn is_outdated(node: &Node, message: &Verified) -> bool {
    let from_above = node.parent.as_ref() == Some(message.sender())
        || node.parent.is_some() && node.peer.as_ref() == Some(message.sender());
    if !from_above || matches!(message.body(), Body::Get(_)) {
        return false;
    }
    let known = node.store.state("member/parent_epoch").unwrap();
    let known = known.first().map_or(0, |(_, value)| decode::<Epoch>(value, 16).unwrap());
    message.epoch() < known
}
