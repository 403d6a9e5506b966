//! What an owner of rounds remembers, and the keys that it has in the store.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::effect::{CombineInput, Effect};
use super::super::guard::{self, Guard};
use super::{Back, Round};
use crate::ids::{Digest, NodeId, RoundNo, UpdateId, Version};
use crate::wire::{
    Blob, ClassSummary, CodecError, Knowledge, KnowledgePlan, Offer, decode, encode,
};

pub(super) const EPOCH: &str = "round/epoch";
pub(super) const GLOBAL: &str = "round/global";
pub(super) const PLAN: &str = "round/plan";
pub(super) const PHASE: &str = "round/phase";
pub(super) const NUMBER: &str = "round/number";
pub(super) const NORMS: &str = "round/norms";
pub(super) const PAUSED: &str = "round/paused";
pub(super) const OWN: &str = "round/own";
pub(super) const WISHED: &str = "round/wished";
/// Most bytes of one state value when it is read back.
const STATE_CAP: usize = 64 << 20;
const LATE: &str = "round/late/";
const ACCEPTED: &str = "round/accepted/";
const RECENT: &str = "round/recent/";
pub(super) const BACK: &str = "round/back/";

/// What everyone should have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Global {
    pub(super) version: Version,
    pub(super) adapter: Digest,
    pub(super) adapter_blob: Blob,
    pub(super) class_targets: Option<ClassSummary>,
    /// The result that told the children of it, `None` when only an offer did.
    pub(super) told: Option<Told>,
    /// The adapter that `adapter` is the front of, where members train a front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) whole: Option<Digest>,
    /// What is known now, where knowledge travels and adapters don't.
    #[serde(default)]
    pub(super) knowledge: Option<Knowledge>,
    /// The plan that it was said under: under one with other inputs or other words it means nothing.
    #[serde(default)]
    pub(super) said_under: Option<KnowledgePlan>,
}

/// What a result says beside the version itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) offer: Digest,
    pub(super) contributors: u32,
    pub(super) contributor_set: Digest,
    /// It was a round of knowledge.
    #[serde(default)]
    pub(super) knowledge: bool,
}

/// What the node's own model has learned from its members; good on one base only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Own {
    pub(super) base: Digest,
    pub(super) adapter: Digest,
    /// What it is served as: one number a learned adapter.
    pub(super) version: Version,
}

/// What may be known about a round depends on where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Phase {
    Idle,
    Open(Open),
    Closing(Closing),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) digest: Digest,
    pub(super) offer: Arc<Offer>,
    pub(super) accepted: BTreeMap<NodeId, CombineInput>,
    pub(super) declined: BTreeSet<NodeId>,
    /// Guests that take part.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) guests: BTreeSet<NodeId>,
    pub(super) deadline_passed: bool,
    /// See [`Global::whole`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) whole: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Closing {
    pub(super) digest: Digest,
    pub(super) offer: Arc<Offer>,
    pub(super) set: Vec<CombineInput>,
    /// See [`Global::whole`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) whole: Option<Digest>,
}

impl Closing {
    /// It ends cluster rounds: nothing but the relay's own work is in it.
    pub(super) fn is_own(&self) -> bool {
        self.offer.outer.is_some() && self.set.iter().all(|input| input.whole)
    }
}

/// A closed round: enough to answer repeats and to weigh what comes late.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Recent {
    pub(super) offer: Digest,
    pub(super) task: Task,
    pub(super) counted: BTreeMap<NodeId, Counted>,
}

/// What a contribution has to agree with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) round: RoundNo,
    pub(super) version: Version,
    /// What a delta is against: the whole adapter, also where the members have the front of it alone.
    pub(super) adapter: Digest,
    pub(super) adapter_delta: bool,
    pub(super) class_logits: bool,
    #[serde(default)]
    pub(super) knowledge: Option<KnowledgePlan>,
}

/// A contribution that has its receipt. A repeat gets the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) update: UpdateId,
    pub(super) late: bool,
}

impl Recent {
    pub(super) fn put(&self, out: &mut Vec<Effect>) {
        put(recent(self.task.round), self, out);
    }
}

impl Task {
    pub(super) fn new(offer: &Offer, whole: Option<Digest>) -> Self {
        Self {
            round: offer.round,
            version: offer.version,
            adapter: whole.unwrap_or_else(|| offer.adapter.sha256()),
            adapter_delta: offer.plan.adapter_delta,
            class_logits: offer.plan.class_logits,
            knowledge: offer.plan.knowledge.clone(),
        }
    }
}

impl Round {
    /// Takes one value of the store back.
    pub(super) fn restore(
        &mut self,
        key: &str,
        value: &[u8],
        accepted: &mut BTreeMap<NodeId, CombineInput>,
    ) -> Result<(), CodecError> {
        match key {
            EPOCH => self.epoch = decode(value, STATE_CAP)?,
            GLOBAL => self.global = decode(value, STATE_CAP)?,
            PLAN => self.config.plan = decode(value, STATE_CAP)?,
            PHASE => self.phase = decode(value, STATE_CAP)?,
            NUMBER => self.number = decode(value, STATE_CAP)?,
            NORMS => self.norms = decode(value, STATE_CAP)?,
            PAUSED => self.paused = decode(value, STATE_CAP)?,
            _ if key.starts_with(BACK) => {
                let back: Back = decode(value, STATE_CAP)?;
                self.backs.insert((back.device.clone(), back.offer), back);
            }
            OWN => self.own = decode(value, STATE_CAP)?,
            WISHED => self.wished = decode(value, STATE_CAP)?,
            _ if key.starts_with(RECENT) => self.recent.push(decode(value, STATE_CAP)?),
            _ if key.starts_with(LATE) => {
                let input: CombineInput = decode(value, STATE_CAP)?;
                self.late.insert(input.update, input);
            }
            _ if key.starts_with(ACCEPTED) => {
                let input: CombineInput = decode(value, STATE_CAP)?;
                accepted.insert(input.sender.clone(), input);
            }
            _ => {}
        }
        Ok(())
    }

    /// The accepted ones have keys of their own, so that accepting one writes one.
    pub(super) fn put_phase(&self, out: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Open(open) => {
                let bare = Open { accepted: BTreeMap::new(), ..open.clone() };
                put(PHASE, &Phase::Open(bare), out);
            }
            phase @ (Phase::Idle | Phase::Closing(_)) => put(PHASE, phase, out),
        }
    }

    /// Keeps a contribution for the next round that closes.
    pub(super) fn keep_late(&mut self, input: CombineInput, out: &mut Vec<Effect>) {
        put(late(input.update), &input, out);
        self.late.insert(input.update, input);
    }

    /// Adds a closed round to those that are remembered.
    pub(super) fn remember(&mut self, open: &Open, out: &mut Vec<Effect>) {
        let counted = |(sender, input): (&NodeId, &CombineInput)| {
            (sender.clone(), Counted { update: input.update, late: false })
        };
        let closed = Recent {
            offer: open.digest,
            task: Task::new(&open.offer, open.whole),
            counted: open.accepted.iter().map(counted).collect(),
        };
        closed.put(out);
        self.recent.push(closed);
        let most = if guard::stands(Guard::Memory) { Self::MEMORY } else { usize::MAX };
        let surplus = self.recent.len().saturating_sub(most);
        for forgotten in self.recent.drain(..surplus) {
            out.push(Effect::Delete(recent(forgotten.task.round).into()));
        }
    }
}

/// Key of a closed round: each has one, so that closing one or counting one late doesn't write all of them.
pub(super) fn recent(round: RoundNo) -> String {
    format!("{RECENT}{round}")
}

/// Key of a late contribution: by its own id, since a sender may have several.
pub(super) fn late(update: UpdateId) -> String {
    format!("{LATE}{update}")
}

/// Key of a contribution in the open round: one a sender.
pub(super) fn accepted(sender: &NodeId) -> String {
    format!("{ACCEPTED}{sender}")
}

/// Adds a `Put` of a value; ours always encode.
pub(in crate::protocol) fn put<T: Serialize>(
    key: impl Into<Cow<'static, str>>,
    value: &T,
    out: &mut Vec<Effect>,
) {
    let key = key.into();
    out.push(match encode(value) {
        Ok(bytes) => Effect::Put(key, bytes),
        Err(e) => Effect::Fatal(format!("state {key} can't be encoded: {e}")),
    });
}
