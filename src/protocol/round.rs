//! The owner of rounds: a cloud for its sites, a relay for its devices.
//!
//! ```text
//!            open                 all in, or deadline + quorum          combined
//!   Idle ------------> Open ---------------------------------> Closing ----------> Idle
//!                       |  accept, refuse, receipt                |  set recorded first
//!                       '--- quorum missed: stays open            '--- crash: combines again
//! ```
//! What it promises: an accepted contribution is on disk before its receipt leaves (G1); each
//! (offer, sender) counts at most once (G2); the contributor set is recorded before it is combined,
//! and the outcome is a pure function of it (G3); each start takes a higher epoch (G4); nothing
//! depends on the order of arrival or on anyone's clock (G5).
//!
//! Called by the aggregator's actor, and by [`super::Relay`].

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::effect::{CombineInput, CombineJob, Delivery, Effect, Input, Job, Timer, To, Work};
use super::update;
use crate::ids::{Digest, Epoch, Name, NodeId, RoundNo, Side, UpdateId, Version};
use crate::learn::Layout;
use crate::ledger::{Event, Word};
use crate::time::Now;
use crate::trust::Verified;
use crate::wire::{
    Answer, Blob, Body, ClassSummary, Contribution, Get, Offer, Plan, Receipt,
    Result as RoundResult, Verdict, Wanted, decode, encode,
};

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
    round: RoundNo,
    phase: Phase,
    /// Offers of the last rounds: what comes late is measured against them.
    recent: Vec<Recent>,
    /// Contributions of closed rounds that wait for the next one.
    late: BTreeMap<NodeId, CombineInput>,
    /// Contributions whose blob is being fetched.
    waiting: BTreeMap<NodeId, Verified>,
    paused: bool,
}

/// What everyone should have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Global {
    version: Version,
    adapter: Digest,
    adapter_blob: Blob,
    class_targets: Option<ClassSummary>,
}

/// What may be known about a round depends on where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Phase {
    Idle,
    Open(Open),
    Closing(Closing),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    digest: Digest,
    offer: Offer,
    accepted: BTreeMap<NodeId, CombineInput>,
    declined: BTreeSet<NodeId>,
    deadline_passed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Closing {
    digest: Digest,
    offer: Offer,
    set: Vec<CombineInput>,
}

/// A closed round: enough to answer repeats and to weigh what comes late.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Recent {
    offer: Digest,
    round: RoundNo,
    version: Version,
    adapter: Digest,
    updates: BTreeMap<NodeId, UpdateId>,
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

impl Round {
    /// Key prefix of its durable state.
    pub const PREFIX: &'static str = "round/";
    const EPOCH: &'static str = "round/epoch";
    const GLOBAL: &'static str = "round/global";
    const PHASE: &'static str = "round/phase";
    const NUMBER: &'static str = "round/number";
    const RECENT: &'static str = "round/recent";
    const LATE: &'static str = "round/late/";
    const ACCEPTED: &'static str = "round/accepted/";
    /// Closed rounds that are remembered.
    const MEMORY: usize = 12;
    /// Most bytes of one state value when it is read back.
    const STATE_CAP: usize = 64 << 20;

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
            },
            config,
            epoch: 0,
            round: 0,
            phase: Phase::Idle,
            recent: Vec::new(),
            late: BTreeMap::new(),
            waiting: BTreeMap::new(),
            paused: false,
        };
        let mut accepted = BTreeMap::new();
        for (key, value) in state {
            round.restore(key, value, &mut accepted).map_err(|e| format!("{key}: {e}"))?;
        }
        if let Phase::Open(open) = &mut round.phase {
            open.accepted = accepted;
        }
        Ok(round)
    }

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Start => self.start(&mut out),
            Input::Message(message) => self.message(&message, &mut out),
            Input::Fetched { digest, bytes } => self.fetched(digest, &bytes, &mut out),
            Input::Timer(timer) => self.timer(timer, &mut out),
            Input::Combined { offer, outcome } => self.combined(offer, outcome, &mut out),
            Input::StartRound => self.open(None, self.config.deadline_ms, &mut out),
            Input::Pause(paused) => self.paused = paused,
            Input::Worked { .. } => {}
        }
        let _ = now;
        out
    }

    /// Opens a round. A relay names the outer offer; an open inner round of an older one is dropped.
    pub fn open(&mut self, outer: Option<Digest>, deadline_ms: u64, out: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Idle => {}
            Phase::Open(open) if self.config.owner == Owner::Relay && open.offer.outer != outer => {
                self.abandon("superseded", out);
            }
            Phase::Open(_) | Phase::Closing(_) => return,
        }
        self.round += 1;
        let mut plan = self.config.plan.clone();
        plan.seed = plan.seed.wrapping_add(self.round);
        let offer = Offer {
            round: self.round,
            model: self.config.model.clone(),
            base: self.config.base,
            version: self.global.version,
            adapter: self.global.adapter_blob.clone(),
            class_targets: self.global.class_targets.clone(),
            plan,
            deadline_ms,
            outer,
        };
        let body = Body::Offer(offer.clone());
        let digest = match body.to_bytes() {
            Ok(bytes) => Digest::of(&bytes),
            Err(e) => return out.push(Effect::Fatal(format!("an offer can't be encoded: {e}"))),
        };
        out.push(Effect::Record(Event::RoundOpen {
            epoch: self.epoch,
            offer: digest,
            round: self.round,
        }));
        self.phase = Phase::Open(Open {
            digest,
            offer,
            accepted: BTreeMap::new(),
            declined: BTreeSet::new(),
            deadline_passed: false,
        });
        put(Self::NUMBER, &self.round, out);
        self.put_phase(out);
        out.push(self.send(To::Children, body, Delivery::Latest));
        out.push(Effect::Timer { timer: Timer::Deadline, after_ms: deadline_ms });
        out.push(Effect::Timer { timer: Timer::Republish, after_ms: self.config.republish_ms });
    }

    /// Takes a version from above (relay) and passes it on to the children.
    pub fn adopt(
        &mut self,
        version: Version,
        adapter: Blob,
        class_targets: Option<ClassSummary>,
        out: &mut Vec<Effect>,
    ) {
        let Some(served) = self.recent.last().map(|recent| recent.offer) else {
            self.take(version, adapter, class_targets, out);
            return;
        };
        self.take(version, adapter, class_targets, out);
        self.publish_result(served, 0, Digest::of(b""), out);
    }

    /// Sets what everyone should start from, without telling anybody (a relay gets it by an offer).
    pub fn take(
        &mut self,
        version: Version,
        adapter: Blob,
        class_targets: Option<ClassSummary>,
        out: &mut Vec<Effect>,
    ) {
        let adapter_blob = adapter;
        self.global =
            Global { version, adapter: adapter_blob.sha256(), adapter_blob, class_targets };
        put(Self::GLOBAL, &self.global, out);
    }

    /// Changes what members are asked to do, from the next round on (a relay passes its offer's on).
    pub fn set_plan(&mut self, plan: Plan) {
        self.config.plan = plan;
    }

    /// Gives up the open round: nothing of it is combined, its contributions count as late ones.
    pub fn abandon(&mut self, reason: &'static str, out: &mut Vec<Effect>) {
        let Phase::Open(open) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        out.push(Effect::Record(Event::RoundAbandon {
            epoch: self.epoch,
            reason: Word::new(reason),
            round: open.offer.round,
        }));
        self.remember(&open.digest, &open.offer, open.accepted.values(), out);
        for (sender, input) in open.accepted {
            out.push(Effect::Delete(format!("{}{sender}", Self::ACCEPTED)));
            put(&format!("{}{sender}", Self::LATE), &input, out);
            self.late.insert(sender, input);
        }
        self.put_phase(out);
    }

    /// The outer offer that the inner round serves or served last.
    pub fn serving(&self) -> Option<Digest> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Open(Open { offer, .. }) | Phase::Closing(Closing { offer, .. }) => offer.outer,
        }
    }

    /// What may be seen from outside.
    pub fn view(&self) -> RoundView {
        let (phase, accepted, expected) = match &self.phase {
            Phase::Idle => ("idle", 0, self.config.members.len()),
            Phase::Open(open) => ("open", open.accepted.len(), self.expected(open)),
            Phase::Closing(closing) => ("closing", closing.set.len(), closing.set.len()),
        };
        RoundView {
            round: self.round,
            phase,
            version: self.global.version,
            adapter: self.global.adapter,
            epoch: self.epoch,
            accepted,
            expected,
        }
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep = BTreeSet::from([self.global.adapter]);
        keep.extend(self.recent.iter().map(|recent| recent.adapter));
        let current: Vec<&CombineInput> = match &self.phase {
            Phase::Idle => Vec::new(),
            Phase::Open(open) => open.accepted.values().collect(),
            Phase::Closing(closing) => closing.set.iter().collect(),
        };
        for message in self.waiting.values() {
            if let Body::Contribution(contribution) = message.body() {
                keep.extend(contribution.delta.as_ref().map(Blob::sha256));
            }
        }
        for input in current.into_iter().chain(self.late.values()) {
            keep.insert(input.base);
            keep.extend(input.delta);
        }
        keep
    }

    fn start(&mut self, out: &mut Vec<Effect>) {
        self.epoch += 1;
        put(Self::EPOCH, &self.epoch, out);
        match &self.phase {
            Phase::Idle => {
                put(Self::GLOBAL, &self.global, out);
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
        match message.body() {
            Body::Contribution(contribution) => self.contribution(message, contribution, out),
            Body::Answer(answer) => self.answer(message.sender(), answer, out),
            Body::Get(Get { wanted: Wanted::Latest }) => out.push(Effect::Republish),
            Body::Get(Get { wanted: Wanted::Chunks { sha256, indices } }) => {
                out.push(Effect::SendChunks {
                    to: message.sender().clone(),
                    side: Side::Down,
                    sha256: *sha256,
                    indices: indices.iter().copied().take(Wanted::MAX_CHUNKS).collect(),
                });
            }
            Body::Offer(_)
            | Body::Receipt(_)
            | Body::Result(_)
            | Body::Keyring(_)
            | Body::Checkpoint(_)
            | Body::Command(_) => out.push(Effect::Count("not_for_an_owner")),
        }
    }

    fn answer(&mut self, sender: &NodeId, answer: &Answer, out: &mut Vec<Effect>) {
        let Phase::Open(open) = &mut self.phase else { return };
        if open.digest != answer.offer || !self.config.members.contains(sender) {
            return;
        }
        if answer.accepted {
            open.declined.remove(sender);
        } else if open.declined.insert(sender.clone()) {
            out.push(Effect::Record(Event::Decline {
                reason: Word::try_from(answer.reason.clone()).unwrap_or(Word::new("unnamed")),
                round: open.offer.round,
                sender: sender.clone(),
            }));
            self.close_if_due(out);
        }
    }

    fn contribution(
        &mut self,
        message: &Verified,
        contribution: &Contribution,
        out: &mut Vec<Effect>,
    ) {
        let sender = message.sender();
        let update = message.update_id();
        if let Some(known) = self.known(sender, &contribution.offer) {
            if known == update {
                let verdict = self.verdict_of(sender, &contribution.offer);
                out.push(self.receipt(sender, update, verdict));
            } else {
                out.push(Effect::Record(Event::Equivocation {
                    first: known,
                    round: message.round(),
                    second: update,
                    sender: sender.clone(),
                }));
                self.refuse(message, "equivocation", out);
            }
            return;
        }
        if let Err(reason) = self.check(contribution) {
            self.refuse(message, reason, out);
            return;
        }
        match &contribution.delta {
            Some(Blob::Manifest(manifest)) => {
                out.push(Effect::Fetch {
                    from: sender.clone(),
                    side: Side::Down,
                    manifest: manifest.clone(),
                });
                self.waiting.insert(sender.clone(), message.clone());
            }
            Some(Blob::Inline(bytes)) => {
                out.push(Effect::SaveBlob(bytes.clone()));
                self.accept(message, contribution, Some(bytes), out);
            }
            None => self.accept(message, contribution, None, out),
        }
    }

    fn fetched(&mut self, digest: Digest, bytes: &[u8], out: &mut Vec<Effect>) {
        let complete = |message: &&Verified| match message.body() {
            Body::Contribution(c) => c.delta.as_ref().is_some_and(|blob| blob.sha256() == digest),
            _ => false,
        };
        let ready: Vec<Verified> = self.waiting.values().filter(complete).cloned().collect();
        for message in ready {
            self.waiting.remove(message.sender());
            if let Body::Contribution(contribution) = message.body() {
                // Its round may have closed meanwhile, so the whole way again, now with the bytes.
                match self.known(message.sender(), &contribution.offer) {
                    Some(_) => {}
                    None => self.accept(&message, contribution, Some(bytes), out),
                }
            }
        }
    }

    /// Counts it in the open round, or in a later one when its own is closed.
    fn accept(
        &mut self,
        message: &Verified,
        contribution: &Contribution,
        delta: Option<&[u8]>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(bytes) = delta
            && let Err(error) = update::check(bytes, &self.layout, contribution.stacked)
        {
            self.refuse(message, error.kind(), out);
            return;
        }
        let sender = message.sender().clone();
        let update = message.update_id();
        let input = |base: Digest| CombineInput {
            sender: sender.clone(),
            update,
            num_examples: contribution.num_examples,
            num_devices: contribution.num_devices,
            steps: contribution.steps,
            staleness: 0,
            loss_first: contribution.loss_first,
            loss_last: contribution.loss_last,
            delta: contribution.delta.as_ref().map(Blob::sha256),
            stacked: contribution.stacked,
            base,
            class_logits: contribution.class_logits.clone(),
        };
        if let Phase::Open(open) = &mut self.phase
            && open.digest == contribution.offer
        {
            let input = input(open.offer.adapter.sha256());
            out.push(Effect::Record(Event::Accept {
                body: message.body_digest(),
                round: open.offer.round,
                sender: sender.clone(),
                update,
            }));
            put(&format!("{}{sender}", Self::ACCEPTED), &input, out);
            open.declined.remove(&sender);
            open.accepted.insert(sender.clone(), input);
            out.push(self.receipt(&sender, update, Verdict::Accepted));
            self.close_if_due(out);
            return;
        }
        let version = self.global.version;
        let limit = self.config.max_staleness;
        let Some(recent) = self.recent.iter_mut().find(|r| r.offer == contribution.offer) else {
            self.refuse(message, "unknown_offer", out);
            return;
        };
        // A version that its round made is one step ahead of the one it started from.
        let behind = version.saturating_sub(recent.version);
        let (round, base) = (recent.round, recent.adapter);
        if behind > limit {
            self.refuse(message, "too_stale", out);
            return;
        }
        recent.updates.insert(sender.clone(), update);
        put(Self::RECENT, &self.recent, out);
        let input = input(base);
        put(&format!("{}{sender}", Self::LATE), &input, out);
        out.push(Effect::Record(Event::Late { round, sender: sender.clone(), update }));
        self.late.insert(sender.clone(), input);
        out.push(self.receipt(&sender, update, Verdict::Late));
    }

    /// Checks what can be told without the blob.
    fn check(&self, contribution: &Contribution) -> Result<(), &'static str> {
        let (plan, known) = match &self.phase {
            Phase::Open(Open { digest, offer, .. })
            | Phase::Closing(Closing { digest, offer, .. })
                if *digest == contribution.offer =>
            {
                (&offer.plan, offer.version)
            }
            _ => match self.recent.iter().find(|r| r.offer == contribution.offer) {
                Some(recent) => (&self.config.plan, recent.version),
                None => return Err("unknown_offer"),
            },
        };
        if contribution.version != known {
            return Err("wrong_version");
        }
        if contribution.num_examples == 0 || contribution.num_devices == 0 {
            return Err("no_examples");
        }
        if plan.adapter_delta != contribution.delta.is_some() {
            return Err("wrong_contribution_kind");
        }
        if !contribution.delta.as_ref().is_none_or(Blob::is_sound) {
            return Err("unsound_blob");
        }
        Ok(())
    }

    /// The update that already counts for this sender and offer.
    fn known(&self, sender: &NodeId, offer: &Digest) -> Option<UpdateId> {
        let current = match &self.phase {
            Phase::Open(open) if open.digest == *offer => {
                open.accepted.get(sender).map(|i| i.update)
            }
            Phase::Closing(closing) if closing.digest == *offer => {
                closing.set.iter().find(|i| i.sender == *sender).map(|i| i.update)
            }
            Phase::Idle | Phase::Open(_) | Phase::Closing(_) => None,
        };
        let recent =
            || self.recent.iter().find(|r| r.offer == *offer)?.updates.get(sender).copied();
        current.or_else(recent)
    }

    fn verdict_of(&self, sender: &NodeId, offer: &Digest) -> Verdict {
        let waits = self.late.get(sender).is_some_and(|input| {
            self.recent
                .iter()
                .any(|r| r.offer == *offer && r.updates.get(sender) == Some(&input.update))
        });
        if waits { Verdict::Late } else { Verdict::Accepted }
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
                if self.phase == Phase::Idle && !self.paused && self.wants_more() {
                    self.open(None, self.config.deadline_ms, out);
                }
            }
            Timer::Resync | Timer::Chunks => {}
        }
    }

    /// A relay can't wait for its quorum: the outer round goes on without it.
    fn give_up_if_hopeless(&mut self, out: &mut Vec<Effect>) {
        if self.config.owner == Owner::Relay
            && let Phase::Open(open) = &self.phase
            && let Some(outer) = open.offer.outer
        {
            self.abandon("no_quorum", out);
            out.push(Effect::Contribute { outer, work: Err("no_quorum") });
        }
    }

    fn close_if_due(&mut self, out: &mut Vec<Effect>) {
        let Phase::Open(open) = &self.phase else { return };
        let expected = self.expected(open);
        let have = open.accepted.len();
        let enough = have >= self.quorum_of(self.config.members.len());
        let everyone = have > 0 && have >= expected;
        if !(everyone && enough || open.deadline_passed && enough) {
            return;
        }
        let Phase::Open(open) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        self.close(open, out);
    }

    /// Fixes the contributor set, on disk before anything is computed from it.
    fn close(&mut self, open: Open, out: &mut Vec<Effect>) {
        let mut set: BTreeMap<NodeId, Vec<CombineInput>> = BTreeMap::new();
        for (sender, input) in open.accepted {
            out.push(Effect::Delete(format!("{}{sender}", Self::ACCEPTED)));
            set.entry(sender).or_default().push(input);
        }
        for (sender, mut input) in std::mem::take(&mut self.late) {
            out.push(Effect::Delete(format!("{}{sender}", Self::LATE)));
            let started = self.recent.iter().find(|r| r.adapter == input.base).map(|r| r.version);
            let Some(started) = started else {
                out.push(Effect::Count("late_base_forgotten"));
                continue;
            };
            input.staleness = self.global.version.saturating_sub(started);
            if input.staleness > self.config.max_staleness {
                out.push(Effect::Count("too_stale"));
                continue;
            }
            set.entry(sender).or_default().push(input);
        }
        let set: Vec<CombineInput> = set.into_values().flatten().collect();
        out.push(Effect::Record(Event::RoundClose {
            contributions: set.len() as u64,
            epoch: self.epoch,
            round: open.offer.round,
            set: contributor_set(&set),
        }));
        let closing = Closing { digest: open.digest, offer: open.offer, set };
        out.push(Effect::Job(self.combine_job(&closing)));
        self.phase = Phase::Closing(closing);
        self.put_phase(out);
    }

    fn combine_job(&self, closing: &Closing) -> Job {
        Job::Combine(CombineJob {
            offer: closing.digest,
            global: closing.offer.adapter.sha256(),
            plan: closing.offer.plan.clone(),
            class_targets: closing.offer.class_targets.clone(),
            inputs: closing.set.clone(),
            relay: self.config.owner == Owner::Relay,
        })
    }

    fn combined(
        &mut self,
        offer: Digest,
        outcome: Result<Work, &'static str>,
        out: &mut Vec<Effect>,
    ) {
        let Phase::Closing(closing) = &self.phase else { return };
        if closing.digest != offer {
            return;
        }
        let closing = closing.clone();
        self.phase = Phase::Idle;
        self.remember(&closing.digest, &closing.offer, closing.set.iter(), out);
        match (outcome, closing.offer.outer) {
            (Ok(work), None) => self.commit(&closing, work, out),
            (Ok(work), Some(outer)) => {
                out.push(Effect::Record(Event::RoundCommit {
                    epoch: self.epoch,
                    result: work.update.as_deref().map_or(Digest::of(b""), Digest::of),
                    round: closing.offer.round,
                    version: closing.offer.version,
                }));
                out.push(Effect::Contribute { outer, work: Ok(work) });
            }
            (Err(reason), outer) => {
                out.push(Effect::Record(Event::RoundAbandon {
                    epoch: self.epoch,
                    reason: Word::new(reason),
                    round: closing.offer.round,
                }));
                if let Some(outer) = outer {
                    out.push(Effect::Contribute { outer, work: Err(reason) });
                }
            }
        }
        self.put_phase(out);
        self.schedule_next(out);
    }

    fn commit(&mut self, closing: &Closing, work: Work, out: &mut Vec<Effect>) {
        let version = closing.offer.version + 1;
        let adapter = match work.update {
            Some(bytes) => {
                let blob = Blob::of(&bytes, self.config.chunk_bytes);
                out.push(Effect::SaveBlob(bytes));
                blob
            }
            None => closing.offer.adapter.clone(),
        };
        let result = adapter.sha256();
        let class_targets = work.class_logits.or_else(|| closing.offer.class_targets.clone());
        self.take(version, adapter, class_targets, out);
        out.push(Effect::Record(Event::RoundCommit {
            epoch: self.epoch,
            result,
            round: closing.offer.round,
            version,
        }));
        let contributors = u32::try_from(closing.set.len()).unwrap_or(u32::MAX);
        self.publish_result(closing.digest, contributors, contributor_set(&closing.set), out);
        out.push(Effect::Apply { version, adapter: result });
    }

    fn publish_result(
        &self,
        offer: Digest,
        contributors: u32,
        contributor_set: Digest,
        out: &mut Vec<Effect>,
    ) {
        let body = Body::Result(RoundResult {
            offer,
            version: self.global.version,
            adapter: self.global.adapter_blob.clone(),
            class_targets: self.global.class_targets.clone(),
            contributors,
            contributor_set,
        });
        out.push(self.send(To::Children, body, Delivery::Latest));
    }

    fn remember<'a>(
        &mut self,
        digest: &Digest,
        offer: &Offer,
        set: impl Iterator<Item = &'a CombineInput>,
        out: &mut Vec<Effect>,
    ) {
        // A late one of an earlier round is remembered there already.
        let own = set.filter(|input| input.staleness == 0);
        self.recent.push(Recent {
            offer: *digest,
            round: offer.round,
            version: offer.version,
            adapter: offer.adapter.sha256(),
            updates: own.map(|input| (input.sender.clone(), input.update)).collect(),
        });
        let surplus = self.recent.len().saturating_sub(Self::MEMORY);
        self.recent.drain(..surplus);
        put(Self::RECENT, &self.recent, out);
    }

    fn schedule_next(&self, out: &mut Vec<Effect>) {
        if self.config.owner == Owner::Root && self.wants_more() {
            out.push(Effect::Timer { timer: Timer::NextRound, after_ms: self.config.pause_ms });
        }
    }

    fn wants_more(&self) -> bool {
        self.global.version < self.config.versions
    }

    fn expected(&self, open: &Open) -> usize {
        self.config.members.len() - open.declined.intersection(&self.config.members).count()
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a number of members, at least one"
    )]
    fn quorum_of(&self, members: usize) -> usize {
        ((self.config.quorum * members as f64).ceil() as usize).max(1)
    }

    fn refuse(&self, message: &Verified, reason: &'static str, out: &mut Vec<Effect>) {
        let (sender, body) = (message.sender(), message.body_digest());
        out.push(Effect::Count(reason));
        out.push(Effect::Record(Event::Refusal {
            message: body,
            reason: Word::new(reason),
            sender: Some(sender.clone()),
        }));
        let verdict = Verdict::Refused(reason.to_owned());
        out.push(self.receipt(sender, message.update_id(), verdict));
    }

    fn receipt(&self, to: &NodeId, update: UpdateId, verdict: Verdict) -> Effect {
        let body = Body::Receipt(Receipt { update, verdict });
        self.send(To::Child(to.clone()), body, Delivery::Volatile)
    }

    fn send(&self, to: To, body: Body, delivery: Delivery) -> Effect {
        Effect::Send { to, body, round: self.round, epoch: self.epoch, delivery }
    }

    /// The accepted ones have keys of their own, so that accepting one writes one.
    fn put_phase(&self, out: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Open(open) => {
                let bare = Open { accepted: BTreeMap::new(), ..open.clone() };
                put(Self::PHASE, &Phase::Open(bare), out);
            }
            phase @ (Phase::Idle | Phase::Closing(_)) => put(Self::PHASE, phase, out),
        }
    }

    fn restore(
        &mut self,
        key: &str,
        value: &[u8],
        accepted: &mut BTreeMap<NodeId, CombineInput>,
    ) -> Result<(), crate::wire::CodecError> {
        let cap = Self::STATE_CAP;
        match key {
            Self::EPOCH => self.epoch = decode(value, cap)?,
            Self::GLOBAL => self.global = decode(value, cap)?,
            Self::PHASE => self.phase = decode(value, cap)?,
            Self::NUMBER => self.round = decode(value, cap)?,
            Self::RECENT => self.recent = decode(value, cap)?,
            _ if key.starts_with(Self::LATE) => {
                let input: CombineInput = decode(value, cap)?;
                self.late.insert(input.sender.clone(), input);
            }
            _ if key.starts_with(Self::ACCEPTED) => {
                let input: CombineInput = decode(value, cap)?;
                accepted.insert(input.sender.clone(), input);
            }
            _ => {}
        }
        Ok(())
    }
}

/// SHA-256 over the update ids in the order of the set.
fn contributor_set(set: &[CombineInput]) -> Digest {
    let mut hash = Context::new(&SHA256);
    for input in set {
        hash.update(&input.update.0);
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    Digest(out)
}

/// Adds a `Put` of a value; ours always encode.
pub(super) fn put<T: Serialize>(key: &str, value: &T, out: &mut Vec<Effect>) {
    out.push(match encode(value) {
        Ok(bytes) => Effect::Put(key.to_owned(), bytes),
        Err(e) => Effect::Fatal(format!("state {key} can't be encoded: {e}")),
    });
}
