//! The owner of rounds: a cloud for its sites, a relay for its devices.
//!
//! ```text
//!            open                 all in, or deadline + quorum          combined
//!   Idle ------------> Open ---------------------------------> Closing ----------> Idle
//!                       |  accept, refuse, receipt                |  set recorded first
//!                       |  quorum missed: stays open               '--- crash: combines again
//!                       '--- quorum out of reach: given up ------> Idle, what came counts as late
//! ```
//! In a round of knowledge (`wire/knowledge.rs`) no adapter travels. An owner that has a model of its own
//! teaches it what was merged before it goes on, still `Closing`: a crash merges and teaches again.
//! What it promises: an accepted contribution is on disk before its receipt leaves, and counts in
//! its round or in a later one (G1); each (offer, sender) counts at most once (G2); the contributor set is recorded before it is combined,
//! and the outcome is a pure function of it (G3); each start takes a higher epoch (G4); nothing
//! depends on the order of arrival or on anyone's clock (G5).
//!
//! Called by the aggregator's actor, and by [`super::Relay`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use self::state::{
    Closing, EPOCH, GLOBAL, Global, NUMBER, Open, Own, PAUSED, PLAN, Phase, Recent, Told, WISHED,
    accepted,
};
use super::effect::{CombineInput, Delivery, Distils, Effect, Input, ShareBounds, Timer, To, Work};
use super::update;
use crate::ids::{Digest, Epoch, Name, NodeId, RoundNo, Side, UpdateId, Version};
use crate::learn::{Layout, RateSchedule};
use crate::ledger::{Event, Word};
use crate::time::Now;
use crate::trust::Verified;
use crate::wire::{
    Answer, Blob, Body, ClassSummary, Get, Knowledge, KnowledgePlan, Offer, Plan,
    Result as RoundResult, Wanted, Wishes,
};

mod backs;
mod closing;
mod intake;
mod state;
#[cfg(test)]
mod tests;
mod wished;

use backs::Back;
pub use backs::Backs;
pub(super) use state::put;
pub use wished::Triggers;
use wished::Wished;

/// Whose rounds these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nobody above: the outcome is the next version.
    Root,
    /// A relay: the outcome is its contribution, the next version comes from above.
    Relay,
}

/// What an owner of rounds has to know.
#[derive(Debug, Clone)]
pub struct RoundConfig {
    /// Root or relay.
    pub owner: Owner,
    /// Children that may take part.
    pub members: BTreeSet<NodeId>,
    /// Devices of another edge: one of them is a member of a round once it has said that it takes part.
    pub guests: BTreeSet<NodeId>,
    /// Part of the members that is enough once the deadline has passed, in (0, 1].
    pub quorum: f64,
    /// A round closes this long after it opened, if the quorum is there.
    pub deadline_ms: u64,
    /// An open round's offer is published again this often.
    pub republish_ms: u64,
    /// Pause between rounds.
    pub pause_ms: u64,
    /// The root stops at this version; 0 waits for [`Input::StartRound`] each time.
    pub versions: Version,
    /// How the learning rate goes on over the versions; a relay passes on what it is offered.
    pub schedule: RateSchedule,
    /// Late contributions that are further behind count nowhere.
    pub max_staleness: u64,
    /// Bytes a chunk of big blobs.
    pub chunk_bytes: u32,
    /// The model.
    pub model: Name,
    /// Its base.
    pub base: Digest,
    /// What members are asked to do.
    pub plan: Plan,
    /// What keeps one member from owning the outcome.
    pub bounds: ShareBounds,
    /// Members train the front of a split model, this node the backs: how.
    pub split: Option<Backs>,
    /// How the node's own model learns what its members know, if it has one.
    pub distils: Option<Distils>,
    /// What opens a root's rounds, instead of one after the other up to `versions`.
    pub triggers: Option<Triggers>,
}

/// A round's owner. See the module.
#[derive(Debug)]
pub struct Round {
    config: RoundConfig,
    epoch: Epoch,
    global: Global,
    /// Names and shapes of every version of the adapter.
    layout: Layout,
    /// Number of the last opened round.
    number: RoundNo,
    phase: Phase,
    /// Offers of the last rounds: what comes late is measured against them.
    recent: Vec<Recent>,
    /// Contributions of closed rounds that wait for the next one.
    late: BTreeMap<UpdateId, CombineInput>,
    /// Contributions whose blob is being fetched.
    waiting: BTreeMap<NodeId, Verified>,
    /// What this node has learned behind the cut, by member: the last of each.
    backs: BTreeMap<(NodeId, Digest), Back>,
    /// Lengths of the last combined contributions, oldest first: what is usual.
    norms: Vec<f64>,
    /// The untrained adapter of the node's own model.
    untrained: Digest,
    /// What its own model has learned.
    own: Option<Own>,
    /// What was merged, while the node's own model learns it.
    merged: Option<Work>,
    /// Why members want a round.
    wished: Wished,
    /// The time of the step.
    now: Now,
    paused: bool,
    /// The disk has no room for new work.
    full: bool,
}

/// What may be seen from outside: dashboard, status telegram, tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoundView {
    /// Number of the last opened round.
    pub round: RoundNo,
    /// `idle`, `open` or `closing`.
    pub phase: &'static str,
    /// Current version.
    pub version: Version,
    /// Blob of the current adapter.
    pub adapter: Digest,
    /// Fencing number.
    pub epoch: Epoch,
    /// Contributions in the open round.
    pub accepted: usize,
    /// Members that could be in it.
    pub expected: usize,
}

/// Sizes of what an owner holds.
#[cfg(any(test, feature = "sim"))]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held {
    /// Contributions whose blob is being fetched.
    pub(crate) waiting: usize,
    /// Contributions in the open round.
    pub(crate) accepted: usize,
    /// Contributions that wait for the next one.
    pub(crate) late: usize,
    /// Rounds that are remembered.
    pub(crate) recent: usize,
}

impl Round {
    /// Key prefix of its durable state.
    pub const PREFIX: &'static str = "round/";
    /// Closed rounds that are remembered.
    pub(crate) const MEMORY: usize = 12;
    /// Failed combinations that a contribution may be in before it is given up.
    const MOST_FAILED: u32 = 2;

    /// An owner that starts with `adapter` (a packed set) as version 0, or where `state` says.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(
        config: RoundConfig,
        adapter: &[u8],
        state: &[(String, Vec<u8>)],
    ) -> Result<Self, String> {
        let layout = update::unpack(adapter).map_err(|e| e.to_string())?.layout();
        let mut round = Self {
            layout,
            global: Global {
                version: 0,
                adapter: Digest::of(adapter),
                adapter_blob: Blob::of(adapter, config.chunk_bytes),
                class_targets: None,
                told: None,
                whole: None,
                knowledge: None,
                said_under: None,
            },
            untrained: Digest::of(adapter),
            own: None,
            merged: None,
            config,
            epoch: 0,
            number: 0,
            phase: Phase::Idle,
            recent: Vec::new(),
            late: BTreeMap::new(),
            waiting: BTreeMap::new(),
            backs: BTreeMap::new(),
            norms: Vec::new(),
            wished: Wished::default(),
            now: Now::default(),
            paused: false,
            full: false,
        };
        let mut accepted = BTreeMap::new();
        for (key, value) in state {
            round.restore(key, value, &mut accepted).map_err(|e| format!("{key}: {e}"))?;
        }
        round.recent.sort_by_key(|recent| recent.task.round);
        let base = round.config.base;
        round.own.take_if(|own| own.base != base);
        match &mut round.phase {
            Phase::Open(open) => {
                // A guest's yes may have been lost, its work wasn't.
                let guests = accepted.keys().filter(|node| round.config.guests.contains(*node));
                open.guests.extend(guests.cloned());
                open.accepted = accepted;
            }
            Phase::Idle | Phase::Closing(_) => {
                if let Some(sender) = accepted.keys().next() {
                    return Err(format!("{}: no round is open for it", state::accepted(sender)));
                }
            }
        }
        Ok(round)
    }

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.now = now;
        match input {
            Input::Start => self.start(&mut out),
            Input::Message(message) => self.message(&message, &mut out),
            Input::Fetched { digest, bytes } => self.fetched(digest, &bytes, &mut out),
            Input::Timer(timer) => self.timer(timer, &mut out),
            Input::Combined { offer, outcome } => self.combined(offer, outcome, &mut out),
            Input::Distilled { offer, outcome } => self.distilled(offer, outcome, &mut out),
            Input::StartRound => self.open(None, self.config.deadline_ms, &mut out),
            Input::Pause(paused) => self.pause(paused, &mut out),
            Input::Full(full) => self.full(full, &mut out),
            // A root answers as well, but its inputs are its sites'.
            Input::Wish(_)
            | Input::Worked { .. }
            | Input::Expired(_)
            | Input::Front { .. }
            | Input::Back { .. } => {}
        }
        out
    }

    /// Opens a round. A relay names the outer offer; an open inner round of an older one is dropped.
    pub fn open(&mut self, outer: Option<Digest>, deadline_ms: u64, out: &mut Vec<Effect>) {
        self.open_as(outer, None, deadline_ms, out);
    }

    /// Opens a cluster round, the `number`-th for this outer offer: its outcome is the site's next adapter, of the
    /// same version.
    pub fn open_cluster(
        &mut self,
        outer: Digest,
        number: u64,
        deadline_ms: u64,
        out: &mut Vec<Effect>,
    ) {
        self.open_as(Some(outer), Some(number), deadline_ms, out);
    }

    /// Opens a relay's round of its own, the `number`-th since its parent is away: likewise.
    pub fn open_alone(&mut self, number: u64, out: &mut Vec<Effect>) {
        if !self.paused {
            self.open_as(None, Some(number), self.config.deadline_ms, out);
        }
    }

    fn open_as(
        &mut self,
        outer: Option<Digest>,
        island: Option<u64>,
        deadline_ms: u64,
        out: &mut Vec<Effect>,
    ) {
        if self.full {
            return out.push(Effect::Count("disk_full"));
        }
        match &self.phase {
            Phase::Idle => {}
            Phase::Open(open) if self.config.owner == Owner::Relay && open.offer.outer != outer => {
                self.abandon("superseded", out);
            }
            Phase::Open(_) | Phase::Closing(_) => return,
        }
        self.number += 1;
        let mut plan = self.config.plan.clone();
        plan.seed = plan.seed.wrapping_add(self.number);
        if self.config.owner == Owner::Root {
            let (version, versions) = (self.global.version, self.config.versions);
            let rates = self.config.schedule.rates(plan.learning_rate, version, versions);
            (plan.learning_rate, plan.final_rate) = (rates.first, rates.last);
        }
        let offer = Arc::new(Offer {
            round: self.number,
            model: self.config.model.clone(),
            base: self.config.base,
            version: self.global.version,
            adapter: self.adapter_for(plan.knowledge.is_some()),
            class_targets: self.global.class_targets.clone(),
            knowledge: self.known_under(plan.knowledge.as_ref()),
            plan,
            deadline_ms,
            outer,
            island,
        });
        let body = Body::Offer(offer.clone());
        let Some(digest) = digest_of_offer(&body, out) else { return };
        out.push(Effect::Record(Event::RoundOpen {
            epoch: self.epoch,
            offer: digest,
            round: self.number,
        }));
        self.phase = Phase::Open(Open {
            digest,
            offer,
            whole: self.global.whole,
            accepted: BTreeMap::new(),
            declined: BTreeSet::new(),
            guests: BTreeSet::new(),
            deadline_passed: false,
        });
        put(NUMBER, &self.number, out);
        if self.config.triggers.is_some() {
            self.wished.opened(self.now);
            put(WISHED, &self.wished, out);
        }
        self.put_phase(out);
        out.push(self.send(To::Children, body, Delivery::Latest));
        out.push(Effect::Timer { timer: Timer::Deadline, after_ms: deadline_ms });
        out.push(Effect::Timer { timer: Timer::Republish, after_ms: self.config.republish_ms });
    }

    /// Takes a version from above (relay) and passes the result on to the children as it came. Where the
    /// members have the front of it alone, `whole` is the adapter that it is of.
    pub fn adopt(&mut self, result: RoundResult, whole: Option<Digest>, out: &mut Vec<Effect>) {
        if result.version < self.global.version {
            return;
        }
        let told = Told {
            offer: result.offer,
            contributors: result.contributors,
            contributor_set: result.contributor_set,
            knowledge: result.adapter.is_empty(),
        };
        self.know(result.knowledge, self.config.plan.knowledge.clone());
        let adapter =
            if told.knowledge { self.global.adapter_blob.clone() } else { result.adapter };
        self.set_global(result.version, adapter, whole, result.class_targets, Some(told), out);
        self.publish_result(out);
    }

    /// The same for a round of knowledge: everybody has an adapter of his own.
    pub fn take_knowledge(
        &mut self,
        version: Version,
        class_targets: Option<ClassSummary>,
        knowledge: Option<Knowledge>,
        out: &mut Vec<Effect>,
    ) {
        if version < self.global.version {
            return;
        }
        self.know(knowledge, self.config.plan.knowledge.clone());
        self.take(version, self.global.adapter_blob.clone(), None, class_targets, out);
    }

    /// Sets what everyone should start from, without telling anybody (a relay gets it by an offer). `whole`
    /// as in [`Round::adopt`].
    pub fn take(
        &mut self,
        version: Version,
        adapter: Blob,
        whole: Option<Digest>,
        class_targets: Option<ClassSummary>,
        out: &mut Vec<Effect>,
    ) {
        if version < self.global.version {
            return;
        }
        let same = self.global.version == version && self.global.adapter == adapter.sha256();
        let told = self.global.told.take_if(|_| same);
        self.set_global(version, adapter, whole, class_targets, told, out);
    }

    /// Changes what members are asked to do, from the next round on (a relay passes its offer's on). It is
    /// remembered: a round of the relay's own goes by it, also after a restart.
    pub fn set_plan(&mut self, plan: Plan, out: &mut Vec<Effect>) {
        put(PLAN, &plan, out);
        self.config.plan = plan;
    }

    /// Has the next start take this epoch, or a higher one: what others have heard counts too.
    pub(super) fn raise_epoch(&mut self, next: Epoch) {
        self.epoch = self.epoch.max(next.saturating_sub(1));
    }

    /// Has its next round start from the adapter that its version came with, whatever was learned alone since.
    pub fn go_back_to(&mut self, version: Version, adapter: Blob, out: &mut Vec<Effect>) {
        if version == self.global.version && adapter.sha256() != self.global.adapter {
            let targets = self.global.class_targets.clone();
            self.set_global(version, adapter, None, targets, None, out);
        }
    }

    /// Gives up the open round: nothing of it is combined, its contributions count as late ones.
    pub fn abandon(&mut self, reason: &'static str, out: &mut Vec<Effect>) {
        let Phase::Open(open) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        out.push(Effect::Record(Event::RoundAbandon {
            epoch: self.epoch,
            reason: Word::new(reason),
            round: open.offer.round,
        }));
        self.wants_again(out);
        self.remember(&open, out);
        for (sender, input) in open.accepted {
            out.push(Effect::Delete(accepted(&sender).into()));
            self.keep_late(input, out);
        }
        self.put_phase(out);
    }

    /// Keeps the relay's own work for the next round that closes, and records it.
    pub fn bring(&mut self, input: CombineInput, out: &mut Vec<Effect>) {
        let (sender, update) = (input.sender.clone(), input.update);
        out.push(Effect::Record(Event::Late { round: self.number, sender, update }));
        self.keep_late(input, out);
    }

    /// Ends the cluster rounds of an outer offer: what they came to is all that its outcome is made of. `since` is what
    /// the parent offered, whole.
    pub fn close_own(
        &mut self,
        outer: Digest,
        since: Blob,
        input: CombineInput,
        out: &mut Vec<Effect>,
    ) {
        let offer = Arc::new(Offer {
            round: self.number,
            model: self.config.model.clone(),
            base: self.config.base,
            version: input.version,
            adapter: since,
            class_targets: self.global.class_targets.clone(),
            knowledge: None,
            plan: self.config.plan.clone(),
            deadline_ms: self.config.deadline_ms,
            outer: Some(outer),
            island: None,
        });
        let Some(digest) = digest_of_offer(&Body::Offer(offer.clone()), out) else { return };
        let (sender, update) = (input.sender.clone(), input.update);
        out.push(Effect::Record(Event::Late { round: self.number, sender, update }));
        self.fix(digest, offer, None, vec![input], out);
    }

    /// The round that a relay runs while its parent is away: whether it is closed already.
    pub fn alone(&self) -> Option<bool> {
        match &self.phase {
            Phase::Open(Open { offer, .. }) => offer.is_alone().then_some(false),
            Phase::Closing(Closing { offer, .. }) => offer.is_alone().then_some(true),
            Phase::Idle => None,
        }
    }

    /// Whether a relay can go on alone: nothing is under way, and adapters are what its members learn.
    pub fn can_be_alone(&self) -> bool {
        let plan = &self.config.plan;
        self.phase == Phase::Idle && plan.adapter_delta && plan.knowledge.is_none()
    }

    /// The outer offer that the inner round serves or served last.
    pub fn serving(&self) -> Option<Digest> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Open(Open { offer, .. }) | Phase::Closing(Closing { offer, .. }) => offer.outer,
        }
    }

    /// Whether it may take part.
    pub fn has_member(&self, node: &NodeId) -> bool {
        self.config.members.contains(node)
    }

    /// What may be seen from outside.
    pub fn view(&self) -> RoundView {
        let (phase, accepted, expected) = match &self.phase {
            Phase::Idle => ("idle", 0, self.config.members.len()),
            Phase::Open(open) => ("open", open.accepted.len(), self.expected(open)),
            Phase::Closing(closing) => ("closing", closing.set.len(), closing.set.len()),
        };
        RoundView {
            round: self.number,
            phase,
            version: self.global.version,
            adapter: self.global.adapter,
            epoch: self.epoch,
            accepted,
            expected,
        }
    }

    /// What it holds of its members' words: the simulator looks whether that stays within bounds.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn held(&self) -> Held {
        let accepted = match &self.phase {
            Phase::Open(open) => open.accepted.len(),
            Phase::Idle | Phase::Closing(_) => 0,
        };
        let (waiting, late, recent) = (self.waiting.len(), self.late.len(), self.recent.len());
        Held { waiting, accepted, late, recent }
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep = self.named_blobs();
        for message in self.waiting.values() {
            if let Body::Contribution(contribution) = message.body() {
                keep.extend(intake::blob_of(contribution).map(Blob::sha256));
            }
        }
        keep
    }

    /// Blobs that its durable state names, all on disk.
    pub(super) fn named_blobs(&self) -> BTreeSet<Digest> {
        let mut keep = BTreeSet::from([self.global.adapter, self.untrained]);
        keep.extend(self.own.as_ref().map(|own| own.adapter));
        keep.extend(self.global.knowledge.as_ref().map(|knowledge| knowledge.set.sha256()));
        keep.extend(self.global.whole);
        keep.extend(self.backs.values().map(|back| back.delta));
        keep.extend(self.recent.iter().map(|recent| recent.task.adapter));
        let (offer, whole, current): (_, _, Vec<&CombineInput>) = match &self.phase {
            Phase::Idle => (None, None, Vec::new()),
            Phase::Open(Open { offer, whole, accepted, .. }) => {
                (Some(offer), *whole, accepted.values().collect())
            }
            Phase::Closing(Closing { offer, whole, set, .. }) => {
                (Some(offer), *whole, set.iter().collect())
            }
        };
        keep.extend(whole);
        keep.extend(offer.map(|offer| offer.adapter.sha256()));
        keep.extend(offer.and_then(|offer| offer.knowledge.as_ref()).map(|k| k.set.sha256()));
        for input in current.into_iter().chain(self.late.values()) {
            keep.insert(input.base);
            keep.extend(input.delta);
            keep.extend(input.back);
            keep.extend(input.knowledge.as_ref().map(|said| said.set));
        }
        keep.remove(&Digest::of(b"")); // no adapter travels in rounds of knowledge
        keep
    }

    fn start(&mut self, out: &mut Vec<Effect>) {
        self.epoch += 1;
        put(EPOCH, &self.epoch, out);
        if let Some(Own { version, adapter, .. }) = self.own {
            out.push(Effect::Apply { version, adapter });
        } else if self.config.owner == Owner::Root && self.global.version > 0 {
            let (version, adapter) = (self.global.version, self.global.adapter);
            out.push(Effect::Apply { version, adapter });
        }
        // Sealed anew: whoever has heard of this epoch refuses what was sealed in the one before.
        self.publish_result(out);
        match &self.phase {
            Phase::Idle => {
                put(GLOBAL, &self.global, out);
                if self.config.triggers.is_some() && self.wished.is_new() {
                    self.wished.opened(self.now);
                    put(WISHED, &self.wished, out);
                }
                self.schedule_next(out);
            }
            Phase::Open(open) => {
                // Same body, so the same digest: what members did for it stays good.
                let body = Body::Offer(open.offer.clone());
                let after_ms = if open.deadline_passed { 1 } else { open.offer.deadline_ms };
                out.push(self.send(To::Children, body, Delivery::Latest));
                out.push(Effect::Timer { timer: Timer::Deadline, after_ms });
                let after_ms = self.config.republish_ms;
                out.push(Effect::Timer { timer: Timer::Republish, after_ms });
            }
            Phase::Closing(closing) => out.push(Effect::Job(self.combine_job(closing))),
        }
    }

    fn message(&mut self, message: &Verified, out: &mut Vec<Effect>) {
        let sender = message.sender();
        if !self.config.members.contains(sender) && !self.config.guests.contains(sender) {
            return out.push(Effect::Count("not_a_member"));
        }
        match message.body() {
            Body::Contribution(contribution) => self.contribution(message, contribution, out),
            Body::Answer(answer) => self.answer(message.sender(), answer, out),
            Body::Get(Get { wanted: Wanted::Latest }) => out.push(Effect::Republish),
            Body::Get(Get { wanted: Wanted::Chunks { sha256, indices } }) => {
                self.serve(message.sender(), *sha256, indices, out);
            }
            Body::Get(Get { wanted: Wanted::Round(wishes) }) => {
                self.wish(message.sender(), *wishes, out);
            }
            // A base's chunks are given out beside the machines.
            Body::Get(Get { wanted: Wanted::Base { .. } })
            | Body::Offer(_)
            | Body::Receipt(_)
            | Body::Result(_)
            | Body::Keyring(_)
            | Body::Checkpoint(_)
            | Body::Command(_)
            | Body::Base(_)
            | Body::Frame(_)
            | Body::Lease(_)
            | Body::Promise(_)
            | Body::Mirror(_)
            | Body::Assignment(_)
            | Body::Evidence(_)
            | Body::SiteEvidence(_) => out.push(Effect::Count("not_for_an_owner")),
        }
    }

    /// Gives chunks of what was offered, and of nothing else in the store.
    fn serve(&self, to: &NodeId, sha256: Digest, indices: &[u32], out: &mut Vec<Effect>) {
        let (offered, taught) = match &self.phase {
            Phase::Idle => (None, None),
            Phase::Open(Open { offer, .. }) | Phase::Closing(Closing { offer, .. }) => {
                (Some(&offer.adapter), offer.knowledge.as_ref())
            }
        };
        let known = self.global.knowledge.as_ref();
        let sets = [known, taught].map(|knowledge| knowledge.map(|knowledge| &knowledge.set));
        let blobs = [Some(&self.global.adapter_blob), offered].into_iter().chain(sets);
        let manifest = blobs.flatten().find_map(|blob| match blob {
            Blob::Manifest(manifest) if manifest.sha256 == sha256 => Some(manifest),
            Blob::Manifest(_) | Blob::Inline(_) => None,
        });
        out.push(match manifest {
            Some(manifest) => Effect::SendChunks {
                to: to.clone(),
                side: Side::Down,
                sha256,
                chunk_bytes: manifest.chunk_bytes,
                indices: indices.iter().copied().take(Wanted::MAX_CHUNKS).collect(),
            },
            None => Effect::Count("blob_not_offered"),
        });
    }

    fn answer(&mut self, sender: &NodeId, answer: &Answer, out: &mut Vec<Effect>) {
        let Phase::Open(open) = &mut self.phase else { return };
        if open.digest != answer.offer || open.accepted.contains_key(sender) {
            return;
        }
        let changed = match (self.config.guests.contains(sender), answer.accepted) {
            (false, true) => open.declined.remove(sender),
            (false, false) => open.declined.insert(sender.clone()),
            (true, true) => open.guests.insert(sender.clone()),
            (true, false) => open.guests.remove(sender),
        };
        if !changed {
            return;
        }
        if !answer.accepted {
            out.push(Effect::Record(Event::Decline {
                reason: Word::try_from(answer.reason.clone()).unwrap_or(Word::new("unnamed")),
                round: open.offer.round,
                sender: sender.clone(),
            }));
        }
        self.put_phase(out);
        self.close_if_due(out);
        self.give_up_if_hopeless(out);
    }

    fn pause(&mut self, paused: bool, out: &mut Vec<Effect>) {
        self.paused = paused;
        put(PAUSED, &self.paused, out);
        if !paused && self.phase == Phase::Idle {
            self.schedule_next(out);
        }
    }

    /// Without room no round is opened and no contribution taken: it waits at its sender, without a
    /// receipt, and comes again.
    fn full(&mut self, full: bool, out: &mut Vec<Effect>) {
        self.full = full;
        if !full && !self.paused && self.phase == Phase::Idle {
            self.schedule_next(out);
        }
    }

    fn timer(&mut self, timer: Timer, out: &mut Vec<Effect>) {
        match timer {
            Timer::Deadline => {
                if let Phase::Open(open) = &mut self.phase {
                    open.deadline_passed = true;
                    self.put_phase(out);
                    self.close_if_due(out);
                    self.give_up_if_hopeless(out);
                }
            }
            Timer::Republish => {
                if matches!(self.phase, Phase::Open(_)) {
                    out.push(Effect::Republish);
                    let after_ms = self.config.republish_ms;
                    out.push(Effect::Timer { timer: Timer::Republish, after_ms });
                }
            }
            Timer::NextRound => {
                if self.phase != Phase::Idle || self.paused || !self.wants_more() {
                    return;
                }
                match self.wait_ms() {
                    Some(wait_ms) if wait_ms > 0 && self.config.triggers.is_some() => {
                        self.schedule_next(out);
                    }
                    Some(_) => self.open(None, self.config.deadline_ms, out),
                    None => {}
                }
            }
            Timer::Resync
            | Timer::Chunks
            | Timer::Step
            | Timer::Island
            | Timer::Edge
            | Timer::Lease
            | Timer::Steward
            | Timer::Follow => {}
        }
    }

    /// After the deadline: a relay can't wait for its quorum, since the outer round goes on without
    /// it; a root waits as long as the quorum can still come, and asks anew when it can't.
    fn give_up_if_hopeless(&mut self, out: &mut Vec<Effect>) {
        let Phase::Open(open) = &self.phase else { return };
        let can_come = self.expected(open) >= self.quorum(open);
        if !open.deadline_passed || self.config.owner == Owner::Root && can_come {
            return;
        }
        let outer = open.offer.outer;
        self.abandon("no_quorum", out);
        match outer {
            Some(outer) => out.push(Effect::Contribute { outer, work: Err("no_quorum") }),
            None => self.schedule_next(out),
        }
    }

    fn close_if_due(&mut self, out: &mut Vec<Effect>) {
        let Phase::Open(open) = &self.phase else { return };
        let expected = self.expected(open);
        let have = open.accepted.len();
        let enough = have >= self.quorum(open);
        let everyone = have > 0 && have >= expected;
        if !enough || !(everyone || open.deadline_passed) {
            return;
        }
        let Phase::Open(open) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        self.close(open, out);
    }

    fn know(&mut self, known: Option<Knowledge>, plan: Option<KnowledgePlan>) {
        self.global.said_under = plan.filter(|_| known.is_some());
        self.global.knowledge = known;
    }

    /// What is known, where this plan asks for the same words about the same inputs.
    fn known_under(&self, plan: Option<&KnowledgePlan>) -> Option<Knowledge> {
        let same = |said: &KnowledgePlan, asked: &KnowledgePlan| {
            (said.prototypes, said.reference_logits) == (asked.prototypes, asked.reference_logits)
                && said.generator_weight.is_some() == asked.generator_weight.is_some()
                && (said.reference == asked.reference && said.labels == asked.labels)
                && (said.top_logits == asked.top_logits && said.spectra == asked.spectra)
        };
        let fits = self.global.said_under.as_ref().zip(plan).is_some_and(|(s, a)| same(s, a));
        self.global.knowledge.clone().filter(|_| fits)
    }

    /// The adapter that travels: none where each node has its own.
    fn adapter_for(&self, knowledge: bool) -> Blob {
        if knowledge { Blob::Inline(Vec::new()) } else { self.global.adapter_blob.clone() }
    }

    fn set_global(
        &mut self,
        version: Version,
        adapter_blob: Blob,
        whole: Option<Digest>,
        class_targets: Option<ClassSummary>,
        told: Option<Told>,
        out: &mut Vec<Effect>,
    ) {
        let adapter = adapter_blob.sha256();
        let (knowledge, said_under) = (self.global.knowledge.take(), self.global.said_under.take());
        self.global = Global {
            version,
            adapter,
            adapter_blob,
            class_targets,
            told,
            whole,
            knowledge,
            said_under,
        };
        put(GLOBAL, &self.global, out);
    }

    /// Tells the children of the version, if that was ever done.
    fn publish_result(&self, out: &mut Vec<Effect>) {
        let Some(told) = &self.global.told else { return };
        let body = Body::Result(Arc::new(RoundResult {
            offer: told.offer,
            version: self.global.version,
            adapter: self.adapter_for(told.knowledge),
            class_targets: self.global.class_targets.clone(),
            contributors: told.contributors,
            contributor_set: told.contributor_set,
            knowledge: self.global.knowledge.clone().filter(|_| told.knowledge),
        }));
        out.push(self.send(To::Children, body, Delivery::Latest));
    }

    fn schedule_next(&self, out: &mut Vec<Effect>) {
        if self.config.owner == Owner::Root
            && self.wants_more()
            && let Some(after_ms) = self.wait_ms()
        {
            out.push(Effect::Timer { timer: Timer::NextRound, after_ms });
        }
    }

    fn wants_more(&self) -> bool {
        self.config.triggers.is_some() || self.global.version < self.config.versions
    }

    /// How long until the next round may open; `None` while nothing asks for one.
    fn wait_ms(&self) -> Option<u64> {
        match self.config.triggers {
            None => Some(self.config.pause_ms),
            Some(triggers) => self.wished.wait_ms(triggers, self.now),
        }
    }

    /// A round came to nothing.
    fn wants_again(&mut self, out: &mut Vec<Effect>) {
        if self.config.triggers.is_some() {
            self.wished.failed();
            put(WISHED, &self.wished, out);
        }
    }

    /// A member says all that it has counted that a round may be wanted for.
    fn wish(&mut self, member: &NodeId, wishes: Wishes, out: &mut Vec<Effect>) {
        let relays = self.config.owner == Owner::Relay;
        if !relays && self.config.triggers.is_none() {
            return; // rounds open as they do
        }
        let fresh = self.wished.told(member, wishes);
        if fresh == Wishes::default() {
            return;
        }
        put(WISHED, &self.wished, out);
        if relays {
            out.push(Effect::WishAbove(fresh));
        } else if self.phase == Phase::Idle && !self.paused {
            self.schedule_next(out);
        }
    }

    fn expected(&self, open: &Open) -> usize {
        let declined = open.declined.intersection(&self.config.members).count();
        self.config.members.len() + open.guests.len() - declined
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a number of members, at least one"
    )]
    fn quorum(&self, open: &Open) -> usize {
        const ROUNDING: f64 = 1e-9; // 0.55 of 20 is 11, not 12
        let members = (self.config.members.len() + open.guests.len()) as f64;
        ((self.config.quorum * members - ROUNDING).ceil() as usize).max(1)
    }

    fn send(&self, to: To, body: Body, delivery: Delivery) -> Effect {
        Effect::Send { to, body, round: self.number, epoch: self.epoch, delivery }
    }
}

/// The name of an offer's task; ours always encode.
fn digest_of_offer(offer: &Body, out: &mut Vec<Effect>) -> Option<Digest> {
    match offer.to_bytes() {
        Ok(bytes) => Some(Digest::of(&bytes)),
        Err(e) => {
            out.push(Effect::Fatal(format!("an offer can't be encoded: {e}")));
            None
        }
    }
}
