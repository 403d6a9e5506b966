//! The halves behind the cut: what this node has learned there for each of its members.
//!
//! A member that trains the front of a split model contributes the front's delta, signed as ever. Only
//! here is it joined to the back's, so that one whole delta a member is combined. The back's is on disk
//! before the member hears that its run is over, so a contribution that comes finds it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::effect::Effect;
use super::super::session::{Learned, OpenTask};
use super::state::{BACK, Phase, put};
use super::{Open, Round};
use crate::ids::{Digest, Epoch, NodeId};

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
    pub(super) offer: Digest,
    /// Its blob.
    pub(super) delta: Digest,
    /// Rises with each: the highest is the newest.
    number: u64,
    /// The start of this node that trained it: a shared back doesn't outlive it.
    epoch: Epoch,
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
        // A contribution can still come for offers that are open or remembered, and for no others.
        let mut alive: BTreeSet<Digest> = self.recent.iter().map(|recent| recent.offer).collect();
        alive.insert(offer);
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.backs)
            .into_iter()
            .partition(|(_, b)| alive.contains(&b.offer));
        self.backs = kept;
        out.extend(gone.values().map(|back| Effect::Delete(back.key().into())));
        let number = self.backs.values().map(|back| back.number + 1).max().unwrap_or_default();
        let back = Back { device: device.clone(), offer, delta, number, epoch: self.epoch };
        put(back.key(), &back, out);
        self.backs.insert((device, offer), back);
    }

    /// What was learned behind the cut for this member's run of an offer.
    pub(super) fn back(&self, device: &NodeId, offer: &Digest) -> Option<Digest> {
        self.backs.get(&(device.clone(), *offer)).map(|back| back.delta)
    }

    /// What is joined to a device's front: its own back, or where all share one, what that had learned when
    /// the last of them was done. After a restart another one is shared, which the fronts of before have
    /// never seen.
    pub(super) fn back_for(&self, device: &NodeId, offer: &Digest) -> Option<Digest> {
        let own = self.backs.get(&(device.clone(), *offer))?;
        if self.config.split != Some(Backs::Shared) {
            return Some(own.delta);
        }
        let shared = |back: &&Back| back.offer == own.offer && back.epoch == own.epoch;
        self.backs.values().filter(shared).max_by_key(|back| back.number).map(|back| back.delta)
    }
}

impl Back {
    fn key(&self) -> String {
        format!("{BACK}{}/{}", self.device, self.offer)
    }
}
