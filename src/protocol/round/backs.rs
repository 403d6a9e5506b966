//! The halves behind the cut: what this node has learned there for each of its members.
//!
//! A member that trains the front of a split model contributes the front's delta, signed as ever. Only
//! here is it joined to the back's, so that one whole delta a member is combined. The back's is on disk
//! before the member hears that its run is over, so a contribution that comes finds it.

use serde::{Deserialize, Serialize};

use super::super::effect::Effect;
use super::super::session::{Learned, OpenTask};
use super::state::{BACK, Phase, put};
use super::{Open, Round};
use crate::ids::{Digest, NodeId};

/// How many backs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backs {
    /// One a member, averaged with the rest: the outcome doesn't depend on order (`SplitFed` v1).
    Each,
    /// One for all, in the order of arrival (`SplitFed` v2).
    Shared,
}

/// What was learned behind the cut in a member's last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Back {
    pub(super) device: NodeId,
    offer: Digest,
    /// Its blob.
    pub(super) delta: Digest,
    /// Rises with each: the highest is the newest.
    number: u64,
}

impl Round {
    /// What a session needs to know of the open round.
    pub(in crate::protocol) fn open_task(&self) -> Option<OpenTask> {
        let Phase::Open(Open { digest, offer, whole, .. }) = &self.phase else { return None };
        Some(OpenTask {
            offer: *digest,
            round: offer.round,
            epoch: self.epoch,
            whole: (*whole)?,
            plan: offer.plan.clone(),
            class_targets: offer.class_targets.clone(),
        })
    }

    /// Keeps what was learned behind the cut; its bytes are in the same step.
    pub(in crate::protocol) fn learned(&mut self, learned: Learned, out: &mut Vec<Effect>) {
        let Learned { offer, device, delta } = learned;
        let number = self.backs.values().map(|back| back.number + 1).max().unwrap_or_default();
        let back = Back { device: device.clone(), offer, delta, number };
        put(&format!("{BACK}{device}"), &back, out);
        self.backs.insert(device, back);
    }

    /// What was learned behind the cut for this member's run of an offer.
    pub(super) fn back(&self, device: &NodeId, offer: &Digest) -> Option<Digest> {
        self.backs.get(device).filter(|back| back.offer == *offer).map(|back| back.delta)
    }

    /// Where all share one back: what it had learned when the last of them was done.
    pub(super) fn shared_back(&self, offer: &Digest) -> Option<Digest> {
        if self.config.split != Some(Backs::Shared) {
            return None;
        }
        let of_offer = self.backs.values().filter(|back| back.offer == *offer);
        of_offer.max_by_key(|back| back.number).map(|back| back.delta)
    }
}
