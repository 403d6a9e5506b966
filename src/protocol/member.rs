//! A member of its parent's rounds: a device, or the upper half of a relay.
//!
//! ```text
//!   offer --> have its adapter? --no--> fetch --.
//!               | yes                           |
//!               v  <----------------------------'
//!            Working --work--> sent --receipt--> settled       result: adopt the version, apply it
//! ```
//! What it promises: one contribution an offer, sealed once and resent verbatim until its receipt;
//! an offer that comes while it works waits, the newest one wins, and the work that is under way is
//! contributed even if its round was closed meanwhile (the owner weighs it as late); owners of a
//! lower epoch than the highest seen are refused; versions never go back. Answers are volatile: an
//! offer that was declined is answered again each time that it is published, and taken after all
//! when nothing stands against it any more.
//!
//! In a round of knowledge (`wire/knowledge.rs`) it keeps to its own model, whatever the base of the others:
//! what it fetches, learns from and contributes is what models say.
//!
//! A device may have a second edge to go to (`second_edge.rs`).
//!
//! Called by the trainer's actor, and by [`super::Relay`].

mod second_edge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use second_edge::SecondEdge;
use second_edge::Whereabouts;

use serde::{Deserialize, Serialize};

use super::effect::{Delivery, Effect, Input, Job, Said, Timer, To, TrainTask, Work};
use super::guard::{self, Guard};
use super::round::put;
use super::sense;
use super::update::check_summary;
use crate::ids::{Digest, Epoch, Name, NodeId, RoundNo, Side, UpdateId, Version};
use crate::learn::Layout;
use crate::ledger::{Event, Word};
use crate::privacy::Gate;
use crate::time::Now;
use crate::trust::{Verified, update_id};
use crate::wire::{
    Answer, Blob, Body, Contribution, Get, Knowledge, KnowledgePlan, Offer, Promise, Receipt,
    Result as RoundResult, TopLogitsPlan, Verdict, Wanted, Wishes, decode, encode,
};

/// What a member has to know.
#[derive(Debug, Clone)]
pub struct MemberConfig {
    /// Federation, for update ids.
    pub federation: Name,
    /// Itself.
    pub me: NodeId,
    /// Its parent.
    pub parent: NodeId,
    /// Who takes over when the parent is gone.
    pub standby: Option<NodeId>,
    /// Where a device goes while its edge is away.
    pub second: Option<SecondEdge>,
    /// The model it takes part for.
    pub model: Name,
    /// The base it has.
    pub base: Digest,
    /// Names and shapes of every version of its adapter.
    pub layout: Arc<Layout>,
    /// A relay's work is an inner round, not a training run.
    pub relay: bool,
    /// What may leave.
    pub gate: Gate,
    /// Asks the parent for what it may have missed when nothing came for so long.
    pub resync_ms: u64,
    /// Bytes a chunk of big blobs.
    pub chunk_bytes: u32,
    /// What it needs to take part in rounds of knowledge; without it, it declines them.
    pub knows: Option<Knows>,
    /// Its site trains fronts and backs: at one learning rate a round.
    pub split: bool,
}

/// What a member needs to take part in rounds of knowledge.
#[derive(Debug, Clone)]
pub struct Knows {
    /// Blob of the untrained adapter of its own model.
    pub untrained: Digest,
    /// Reference sets that it has made.
    pub references: BTreeSet<Digest>,
    /// Names and order of its classes.
    pub labels: Digest,
    /// Tokens of its model, where it writes.
    pub top_logits: Option<TopLogitsPlan>,
}

/// A member. See the module.
#[derive(Debug)]
pub struct Member {
    config: MemberConfig,
    parent_epoch: Epoch,
    /// The highest epoch that was heard before that one.
    epoch_before: Epoch,
    /// Who speaks with that epoch: the parent, its standby, or the second edge.
    owner: NodeId,
    /// With which edge it is.
    whereabouts: Whereabouts,
    current: Option<Current>,
    /// The newest offer that was begun or declined: older ones are nothing new.
    last: Option<Last>,
    /// The offer that is being worked on.
    active: Option<Offered>,
    /// Contributions that wait for their receipts.
    sent: BTreeMap<UpdateId, Sent>,
    /// An offer that waits for its adapter, or for the work under way.
    next: Option<Offered>,
    /// A result that waits for its adapter.
    result: Option<Announced>,
    /// Body of the last result that was refused: it is published again and again, and recorded once.
    refused: Option<Digest>,
    residual: Option<Digest>,
    /// The adapter that this device trains for itself while rounds ask for soft labels alone.
    own: Option<Own>,
    /// What was counted here, or below, that a round may be wanted for.
    wishes: Wishes,
    paused: bool,
    /// The disk has no room for new work.
    full: bool,
    heard: bool,
}

/// The version that this node has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Current {
    version: Version,
    adapter: Digest,
    /// It is a version of what is known, and the adapter is this node's own untrained one.
    #[serde(default)]
    knowledge: bool,
}

/// What a device has trained for itself; good on one base only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Own {
    base: Digest,
    adapter: Digest,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Offered {
    digest: Digest,
    epoch: Epoch,
    offer: Arc<Offer>,
    /// The second edge that has made it, if one has.
    #[serde(default)]
    second: Option<NodeId>,
}

#[derive(Debug)]
struct Announced {
    /// Digest of its body.
    body: Digest,
    result: Arc<RoundResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Last {
    round: RoundNo,
    digest: Digest,
    course: Course,
}

/// What became of an offer here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Course {
    /// Work was or is done for it.
    Taken,
    /// Declined; it is looked at anew when it comes again.
    Declined,
    /// The work came to nothing, for this reason; that stays so.
    GaveUp(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sent {
    round: RoundNo,
    /// Blob that the parent may ask for, and bytes of its chunks.
    delta: Option<(Digest, u32)>,
    /// The blob is knowledge, no update.
    #[serde(default)]
    knowledge: bool,
    /// The second edge that it was given to, if it was to one.
    #[serde(default)]
    second: Option<NodeId>,
}

impl Sent {
    /// Its key in the outbox: tells what may be dropped when too much waits.
    fn key(&self, update: UpdateId) -> String {
        if self.is_update() { update.to_string() } else { format!("{}{update}", Member::SUMMARY) }
    }

    fn is_update(&self) -> bool {
        self.delta.is_some() && !self.knowledge
    }
}

impl Member {
    /// Start of the outbox keys of contributions that carry no update, soft labels or knowledge alone.
    pub const SUMMARY: &'static str = "summary/";
    /// Key prefix of its durable state.
    pub const PREFIX: &'static str = "member/";
    /// After a start what a broker has kept is there within moments.
    const FIRST_RESYNC_MS: u64 = 1_000;
    const EPOCH: &'static str = "member/parent_epoch";
    const EPOCH_BEFORE: &'static str = "member/epoch_before";
    const OWNER: &'static str = "member/owner";
    const CURRENT: &'static str = "member/current";
    const LAST: &'static str = "member/last";
    const ACTIVE: &'static str = "member/active";
    const RESIDUAL: &'static str = "member/residual";
    const OWN: &'static str = "member/own";
    const SENT: &'static str = "member/sent";
    const PAUSED: &'static str = "member/paused";
    const WISHES: &'static str = "member/wishes";
    const STATE_CAP: usize = 1 << 20;

    /// A member as `state` left it.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(config: MemberConfig, state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let mut member = Self {
            owner: config.parent.clone(),
            config,
            parent_epoch: 0,
            epoch_before: 0,
            whereabouts: Whereabouts::default(),
            current: None,
            last: None,
            active: None,
            sent: BTreeMap::new(),
            next: None,
            result: None,
            refused: None,
            residual: None,
            own: None,
            wishes: Wishes::default(),
            paused: false,
            full: false,
            heard: false,
        };
        for (key, value) in state {
            let cap = Self::STATE_CAP;
            match key.as_str() {
                Self::EPOCH => decode(value, cap).map(|v| member.parent_epoch = v),
                Self::EPOCH_BEFORE => decode(value, cap).map(|v| member.epoch_before = v),
                Self::OWNER => decode(value, cap).map(|v| member.owner = v),
                Self::CURRENT => decode(value, cap).map(|v| member.current = v),
                Self::LAST => decode(value, cap).map(|v| member.last = v),
                Self::ACTIVE => decode(value, cap).map(|v| member.active = v),
                Self::RESIDUAL => decode(value, cap).map(|v| member.residual = v),
                Self::OWN => decode(value, cap).map(|v| member.own = v),
                Self::SENT => decode(value, cap).map(|v| member.sent = v),
                Self::PAUSED => decode(value, cap).map(|v| member.paused = v),
                Self::WISHES => decode(value, cap).map(|v| member.wishes = v),
                Whereabouts::AWAY => decode(value, cap).map(|v| member.whereabouts.away = v),
                Whereabouts::ELSEWHERE => {
                    decode(value, cap).map(|v| member.whereabouts.elsewhere = v)
                }
                Whereabouts::GIVEN => decode(value, cap).map(|v| member.whereabouts.given = v),
                _ => Ok(()),
            }
            .map_err(|e| format!("{key}: {e}"))?;
        }
        member.settle_in();
        if !member.hears(&member.owner) {
            member.owner = member.config.parent.clone(); // another keyring, another standby
        }
        let base = member.config.base;
        member.own.take_if(|own| own.base != base);
        Ok(member)
    }

    /// The adapter that a device with this `state` trains for itself, if it does.
    pub fn own_adapter(state: &[(String, Vec<u8>)]) -> Option<Digest> {
        let (_, value) = state.iter().find(|(key, _)| key == Self::OWN)?;
        decode::<Option<Own>>(value, Self::STATE_CAP).ok().flatten().map(|own| own.adapter)
    }

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let _ = now;
        let mut out = Vec::new();
        match input {
            Input::Start => self.start(&mut out),
            Input::Message(message) => self.message(&message, &mut out),
            Input::Fetched { digest, bytes } => self.fetched(digest, &bytes, &mut out),
            Input::Timer(Timer::Resync) => self.resync(&mut out),
            Input::Timer(Timer::Edge) => self.is_left_alone(&mut out),
            Input::Worked { offer, work } => self.worked(offer, work, &mut out),
            Input::Pause(paused) => {
                self.paused = paused;
                put(Self::PAUSED, &paused, &mut out);
            }
            Input::Wish(more) => {
                self.wishes = self.wishes.plus(more);
                put(Self::WISHES, &self.wishes, &mut out);
                self.tell_wishes(&mut out);
            }
            // An offer that was declined for it is looked at anew when it comes again.
            Input::Full(full) => self.full = full,
            Input::Expired(key) => self.give_up(&key, &mut out),
            Input::Timer(_)
            | Input::Combined { .. }
            | Input::Front { .. }
            | Input::Back { .. }
            | Input::Distilled { .. }
            | Input::StartRound => {}
        }
        out
    }

    /// Milliseconds of silence after which it asks its parent for the latest.
    pub(super) fn resync_ms(&self) -> u64 {
        self.config.resync_ms
    }

    /// The version that this node has, 0 before any.
    pub fn version(&self) -> Version {
        self.current.as_ref().map_or(0, |current| current.version)
    }

    /// The offer that is being worked on.
    pub fn working_on(&self) -> Option<(Digest, &Offer)> {
        self.active.as_ref().map(|active| (active.digest, &*active.offer))
    }

    /// Blob of the adapter of that version, if it has one from above.
    pub fn adapter(&self) -> Option<Digest> {
        self.current.as_ref().map(|current| current.adapter)
    }

    /// Name of a work of this node, known by `digest`, that no offer asked for.
    pub fn name_of(&self, round: RoundNo, digest: &Digest) -> UpdateId {
        update_id(&self.config.federation, round, &self.config.me, digest)
    }

    /// This node.
    pub fn me(&self) -> &NodeId {
        &self.config.me
    }

    /// Number of the newest round that it knows of.
    pub fn round(&self) -> RoundNo {
        self.last.as_ref().map_or(0, |last| last.round)
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep = BTreeSet::new();
        keep.extend(self.current.as_ref().map(|current| current.adapter));
        let offers = self.active.iter().chain(&self.next);
        keep.extend(offers.filter_map(|offered| needed(&offered.offer)).map(Blob::sha256));
        keep.extend(self.config.knows.as_ref().map(|knows| knows.untrained));
        keep.extend(self.sent.values().filter_map(|sent| sent.delta).map(|(delta, _)| delta));
        keep.extend(
            self.result.as_ref().and_then(|waiting| brought(&waiting.result)).map(Blob::sha256),
        );
        keep.extend(self.residual);
        keep.extend(self.own.as_ref().map(|own| own.adapter));
        keep
    }

    fn start(&mut self, out: &mut Vec<Effect>) {
        self.apply(out);
        if let Some(active) = &self.active {
            self.work(active, out);
        }
        // A broker hands over what it keeps of the parent. It is asked only where nothing comes, for it answers to
        // all of its members.
        let after_ms = self.config.resync_ms.min(Self::FIRST_RESYNC_MS);
        out.push(Effect::Timer { timer: Timer::Resync, after_ms });
        self.wait_for_home(out);
    }

    fn resync(&mut self, out: &mut Vec<Effect>) {
        if !self.heard {
            self.ask_latest(out);
        }
        self.heard = false;
        self.ask_the_other(out);
        // What was told may be lost, and a parent that counted it counts nothing twice.
        if self.wishes != Wishes::default() {
            self.tell_wishes(out);
        }
        out.push(Effect::Timer { timer: Timer::Resync, after_ms: self.config.resync_ms });
    }

    fn message(&mut self, message: &Verified, out: &mut Vec<Effect>) {
        let sender = message.sender();
        if !self.hears(sender) {
            return out.push(Effect::Count("not_from_the_parent"));
        }
        if !self.goes_with(message, out) {
            return self.heard_elsewhere(message, out);
        }
        if let Body::Get(get) = message.body() {
            return self.serve(sender, get, out);
        }
        let epoch = message.epoch();
        if !self.in_reach(message) {
            // Remembered, it would be a bound that no honest owner can come over again.
            return out.push(Effect::Count("number_out_of_reach"));
        }
        if epoch < self.parent_epoch && guard::stands(Guard::Epochs) {
            out.push(Effect::Count("stale_epoch"));
            if let Body::Lease(lease) = message.body()
                && !lease.asks
                && !message.was_retained()
                && self.config.standby.is_some()
            {
                // It lives and leads, and nobody who hears the other one may have told it. Below what is
                // promised here it would speak in vain for ever.
                out.push(self.promise_to(sender));
            }
            return;
        }
        if epoch == self.parent_epoch && *sender != self.owner && epoch > 0 {
            // The two never share an epoch, so one of them has lost its memory.
            return out.push(Effect::Count("two_owners_of_an_epoch"));
        }
        if epoch > self.parent_epoch {
            self.epoch_before = std::mem::replace(&mut self.parent_epoch, epoch);
            put(Self::EPOCH, &epoch, out);
            if self.config.standby.is_some() {
                put(Self::EPOCH_BEFORE, &self.epoch_before, out);
            }
            if self.owner != *sender {
                self.owner = sender.clone();
                put(Self::OWNER, &self.owner, out);
            }
        }
        // A lease says nothing of offers and results that may have been missed.
        self.heard |= !matches!(message.body(), Body::Lease(_));
        match message.body() {
            Body::Offer(offer) => {
                let second = self.whereabouts.away.then(|| sender.clone());
                let digest = message.body_digest();
                let offered = Offered { digest, epoch, offer: offer.clone(), second };
                self.offered(offered, out);
            }
            Body::Receipt(receipt) => self.receipt(sender, receipt, out),
            Body::Lease(lease) if lease.asks => out.push(self.promise_to(sender)),
            Body::Lease(_) => {}
            Body::Result(result) => {
                let body = message.body_digest();
                self.result(Announced { body, result: result.clone() }, out);
            }
            Body::Answer(_)
            | Body::Contribution(_)
            | Body::Get(_)
            | Body::Keyring(_)
            | Body::Checkpoint(_)
            | Body::Command(_)
            | Body::Base(_)
            | Body::Frame(_)
            | Body::Promise(_)
            | Body::Mirror(_)
            | Body::Assignment(_)
            | Body::Evidence(_)
            | Body::SiteEvidence(_) => out.push(Effect::Count("not_for_a_member")),
        }
    }

    /// Whether an owner can have come to the numbers of this message, from those that are known here.
    fn in_reach(&self, message: &Verified) -> bool {
        let (round, version) = match message.body() {
            Body::Offer(offer) => (offer.round, offer.version),
            Body::Result(result) => (0, result.version),
            _ => (0, 0),
        };
        sense::in_reach(self.parent_epoch, message.epoch())
            && sense::in_reach(self.round(), round)
            && sense::in_reach(self.version(), version)
    }

    /// Whether it listens to this node: its parent, the standby of it, or the second edge.
    pub fn hears(&self, node: &NodeId) -> bool {
        *node == self.config.parent
            || self.config.standby.as_ref() == Some(node)
            || self.is_second(node)
    }

    /// Who owns the rounds, as far as it knows: the parent, its standby, or the second edge.
    pub fn owner(&self) -> &NodeId {
        &self.owner
    }

    /// Where what is for the owner alone goes.
    fn above(&self) -> To {
        self.to_one_of_them(&self.owner)
    }

    fn to_one_of_them(&self, node: &NodeId) -> To {
        if *node == self.config.parent { To::Parent } else { To::Standby(node.clone()) }
    }

    /// Tells whoever asks for the rounds, or leads below what was promised, what it had heard before. It is on disk by then that no lower
    /// epoch is listened to.
    fn promise_to(&self, node: &NodeId) -> Effect {
        Effect::Send {
            to: self.to_one_of_them(node),
            body: Body::Promise(Promise { before: self.epoch_before }),
            round: 0,
            epoch: self.parent_epoch,
            delivery: Delivery::Volatile,
        }
    }

    fn serve(&self, asker: &NodeId, get: &Get, out: &mut Vec<Effect>) {
        match &get.wanted {
            Wanted::Latest | Wanted::Base { .. } | Wanted::Round(_) => {
                out.push(Effect::Count("not_for_a_member"));
            }
            Wanted::Chunks { sha256, indices } => {
                // What waits for its receipt, and nothing else in the store.
                let second = self.is_second(asker).then_some(asker);
                let theirs = self.sent.values().filter(|sent| sent.second.as_ref() == second);
                let mut deltas = theirs.filter_map(|sent| sent.delta);
                out.push(match deltas.find(|(delta, _)| delta == sha256) {
                    Some((sha256, chunk_bytes)) => Effect::SendChunks {
                        to: asker.clone(),
                        side: Side::Up,
                        sha256,
                        chunk_bytes,
                        indices: indices.iter().copied().take(Wanted::MAX_CHUNKS).collect(),
                    },
                    None => Effect::Count("blob_not_offered"),
                });
            }
        }
    }

    fn offered(&mut self, offered: Offered, out: &mut Vec<Effect>) {
        let round = offered.offer.round;
        if let Some(last) = &self.last {
            let repeat = last.digest == offered.digest;
            match &last.course {
                _ if round < last.round => return,
                Course::GaveUp(reason) if repeat => {
                    return out.push(self.answer(&offered, false, reason));
                }
                Course::Taken if repeat => return,
                Course::Taken | Course::Declined | Course::GaveUp(_) => {}
            }
        }
        if self.next.as_ref().is_some_and(|next| round < next.offer.round) {
            return;
        }
        if let Err(reason) = sense::check_offer(&offered.offer) {
            return self.refuse_offer(&offered, reason, out);
        }
        if let Err(reason) = self.willing(&offered.offer) {
            return self.turn_down(&offered, reason, out);
        }
        match needed(&offered.offer).cloned() {
            None => {
                self.waits(offered, out);
                self.begin_next(out);
            }
            Some(Blob::Inline(bytes)) => {
                if let Err(reason) = self.fits(&offered.offer, &bytes) {
                    return self.refuse_offer(&offered, reason, out);
                }
                self.waits(offered, out);
                out.push(Effect::SaveBlob(bytes));
                self.begin_next(out);
            }
            Some(Blob::Manifest(manifest)) => {
                self.waits(offered, out);
                out.push(Effect::Fetch { from: self.owner.clone(), side: Side::Up, manifest });
            }
        }
    }

    /// Declines what no parent should ever ask for; counted.
    fn refuse_offer(&mut self, offered: &Offered, reason: &'static str, out: &mut Vec<Effect>) {
        out.push(Effect::Count(reason));
        self.turn_down(offered, reason, out);
    }

    /// Declines an offer before any work; recorded once.
    fn turn_down(&mut self, offered: &Offered, reason: &'static str, out: &mut Vec<Effect>) {
        let (round, digest) = (offered.offer.round, offered.digest);
        let last = Some(Last { round, digest, course: Course::Declined });
        if self.last != last {
            self.last = last;
            put(Self::LAST, &self.last, out);
            out.push(Effect::Record(self.decline(round, reason)));
        }
        out.push(self.answer(offered, false, reason));
    }

    fn willing(&self, offer: &Offer) -> Result<(), &'static str> {
        if self.paused {
            return Err("paused");
        }
        if self.full {
            return Err("disk_full");
        }
        if offer.model != self.config.model {
            return Err("unknown_model");
        }
        if let Some(plan) = &offer.plan.knowledge {
            self.understands(plan)?;
        } else if offer.base != self.config.base {
            return Err("base_mismatch");
        }
        if offer.version < self.version() {
            return Err("version_goes_back");
        }
        if self.counts_elsewhere(offer) {
            return Err("counts_elsewhere");
        }
        if self.config.split && offer.plan.final_rate.is_some() {
            return Err("plan_not_for_split");
        }
        if self.config.relay || offer.plan.local_epochs.is_some() {
            // How many steps whole passes are shows when they are done; the gate asks then.
            Ok(())
        } else {
            self.config.gate.allows_plan(offer.plan.local_steps)
        }
    }

    /// Whether it can take part in a round of knowledge: its classes are those of the others, in their order,
    /// and it has the same reference inputs; of models that write, those with its own tokens.
    fn understands(&self, plan: &KnowledgePlan) -> Result<(), &'static str> {
        let knows = self.config.knows.as_ref().ok_or("no_rounds_of_knowledge")?;
        if plan.labels != knows.labels {
            return Err("other_classes");
        }
        match &plan.reference {
            Some(reference) if !knows.references.contains(&reference.digest) => {
                return Err("unknown_reference_digest");
            }
            _ => {}
        }
        match (&plan.top_logits, &knows.top_logits) {
            (Some(theirs), Some(mine)) if !theirs.has_tokens_of(mine) => Err("other_tokenizer"),
            (Some(_), None) => Err("model_does_not_write"),
            (None, Some(_)) => Err("model_only_writes"),
            _ => Ok(()),
        }
    }

    /// Whether what an offer brings can be used here.
    fn fits(&self, offer: &Offer, bytes: &[u8]) -> Result<(), &'static str> {
        match (&offer.plan.knowledge, &offer.knowledge) {
            (Some(plan), Some(said)) => sense::check_knowledge(plan, bytes, &said.counts),
            _ => sense::check_adapter(bytes, &self.config.layout),
        }
    }

    fn decline(&self, round: RoundNo, reason: &'static str) -> Event {
        Event::Decline { reason: Word::new(reason), round, sender: self.config.me.clone() }
    }

    /// It takes the place of the offer that waited.
    fn waits(&mut self, offered: Offered, out: &mut Vec<Effect>) {
        let before = self.next.replace(offered);
        self.forget(before.as_ref().and_then(|before| needed(&before.offer)), out);
    }

    /// Gives up the fetch of a blob that nothing waits for any more.
    fn forget(&self, blob: Option<&Blob>, out: &mut Vec<Effect>) {
        let Some(Blob::Manifest(manifest)) = blob else { return };
        let next = self.next.as_ref().and_then(|next| needed(&next.offer));
        let result = self.result.as_ref().and_then(|waiting| brought(&waiting.result));
        if [next, result].into_iter().flatten().all(|blob| blob.sha256() != manifest.sha256) {
            out.push(Effect::Forget(manifest.sha256));
        }
    }

    /// Begins the waiting offer unless work is under way. Its adapter is on disk.
    fn begin_next(&mut self, out: &mut Vec<Effect>) {
        if self.active.is_some() {
            return;
        }
        let Some(offered) = self.next.take() else { return };
        // It may have waited long: a newer version may be here, an operator may have paused us.
        if let Err(reason) = self.willing(&offered.offer) {
            return self.turn_down(&offered, reason, out);
        }
        let (round, digest) = (offered.offer.round, offered.digest);
        self.last = Some(Last { round, digest, course: Course::Taken });
        put(Self::LAST, &self.last, out);
        // Who sends its adapter starts from everybody's again.
        if offered.offer.plan.adapter_delta && self.own.take().is_some() {
            put(Self::OWN, &self.own, out);
            self.apply(out);
        }
        if offered.offer.plan.knowledge.is_some() {
            self.take_knowledge(offered.offer.version, out);
        } else {
            self.take(offered.offer.version, offered.offer.adapter.sha256(), out);
        }
        out.push(self.answer(&offered, true, ""));
        self.work(&offered, out);
        self.active = Some(offered);
        put(Self::ACTIVE, &self.active, out);
    }

    fn work(&self, offered: &Offered, out: &mut Vec<Effect>) {
        if self.config.relay {
            return; // the relay sees `working_on` and opens its inner round
        }
        let Offer { adapter, plan, class_targets, knowledge, .. } = &*offered.offer;
        let start = match (&plan.knowledge, &self.config.knows) {
            (Some(_), Some(knows)) => knows.untrained,
            _ => adapter.sha256(),
        };
        let reference = plan.knowledge.as_ref().and_then(|plan| plan.reference.as_ref());
        out.push(Effect::Job(Job::Train(Box::new(TrainTask {
            offer: offered.digest,
            round: offered.offer.round,
            epoch: offered.epoch,
            adapter: self.own_or(start),
            plan: plan.clone(),
            class_targets: class_targets.clone(),
            residual: self.residual,
            knowledge: knowledge.as_ref().map(|knowledge| Said {
                set: knowledge.set.sha256(),
                counts: knowledge.counts.clone(),
                reference: reference.map(|reference| reference.digest),
            }),
        }))));
    }

    fn worked(&mut self, offer: Digest, work: Result<Work, &'static str>, out: &mut Vec<Effect>) {
        let Some(offered) = self.active.take_if(|active| active.digest == offer) else { return };
        put(Self::ACTIVE, &self.active, out);
        let gated = work.and_then(|work| sound(&work).map(|()| work)).and_then(|work| {
            let gate = self.gated(&work);
            if let Err(rule) = gate {
                out.push(Effect::Count(rule));
                out.push(Effect::Record(Event::PrivacyRefusal {
                    message: Word::new("contribution"),
                    reason: Word::new(rule),
                    round: Some(offered.offer.round),
                }));
            }
            gate.map(|()| work)
        });
        match gated {
            Ok(work) => self.contribute(&offered, work, out),
            Err(reason) => {
                let (round, digest) = (offered.offer.round, offered.digest);
                let course = Course::GaveUp(reason.to_owned());
                self.note(&offered, Last { round, digest, course }, out);
                out.push(Effect::Record(self.decline(round, reason)));
                out.push(self.answer(&offered, false, reason));
            }
        }
        self.begin_next_if_there(out);
    }

    fn gated(&self, work: &Work) -> Result<(), &'static str> {
        self.config.gate.allows_update(work.steps, work.num_examples)?;
        let counts = work.class_logits.as_ref().map_or(&[] as &[u64], |summary| &summary.counts);
        self.config.gate.allows_cells(counts)?;
        let counts = work.knowledge.as_ref().map_or(&[] as &[u64], |known| &known.counts);
        self.config.gate.allows_cells(counts)
    }

    fn contribute(&mut self, offered: &Offered, work: Work, out: &mut Vec<Effect>) {
        let summary = work.class_logits.as_ref().and_then(|summary| encode(summary).ok());
        let known = work.knowledge.as_ref().map(|known| &known.bytes);
        let bytes = [work.update.as_ref(), summary.as_ref(), known].into_iter().flatten();
        let bytes = bytes.map(|bytes| bytes.len() as u64).sum();
        let delta = work.update.map(|bytes| {
            let blob = Blob::of(&bytes, self.config.chunk_bytes);
            out.push(Effect::SaveBlob(bytes));
            blob
        });
        let knowledge = work.knowledge.map(|known| {
            let set = Blob::of(&known.bytes, self.config.chunk_bytes);
            out.push(Effect::SaveBlob(known.bytes));
            Knowledge { set, counts: known.counts }
        });
        let is_knowledge = knowledge.is_some();
        let blob = delta.as_ref().or(knowledge.as_ref().map(|knowledge| &knowledge.set));
        let named = blob.map(|blob| (blob.sha256(), self.config.chunk_bytes));
        self.residual = work.residual.map(|bytes| {
            let digest = Digest::of(&bytes);
            out.push(Effect::SaveBlob(bytes));
            digest
        });
        put(Self::RESIDUAL, &self.residual, out);
        if let Some(bytes) = work.own {
            self.own = Some(Own { base: self.config.base, adapter: Digest::of(&bytes) });
            out.push(Effect::SaveBlob(bytes));
            put(Self::OWN, &self.own, out);
            self.apply(out);
        }
        let body = Body::Contribution(Arc::new(Contribution {
            offer: offered.digest,
            version: offered.offer.version,
            num_examples: work.num_examples,
            num_devices: work.num_devices,
            steps: work.steps,
            loss_first: work.loss_first,
            loss_last: work.loss_last,
            risk: work.risk,
            stacked: self.config.relay,
            delta,
            class_logits: work.class_logits,
            knowledge,
        }));
        let digest = match body.to_bytes() {
            Ok(bytes) => Digest::of(&bytes),
            Err(e) => {
                return out.push(Effect::Fatal(format!("a contribution can't be encoded: {e}")));
            }
        };
        let round = offered.offer.round;
        let update = update_id(&self.config.federation, round, &self.config.me, &digest);
        out.push(Effect::Record(Event::Contribute { body: digest, bytes, round, update }));
        let second = offered.second.clone();
        let sent = Sent { round, delta: named, knowledge: is_knowledge, second };
        let key = sent.key(update);
        self.sent.insert(update, sent);
        put(Self::SENT, &self.sent, out);
        let to = self.gives(offered, out);
        out.push(Effect::Send {
            to,
            body,
            round,
            epoch: offered.epoch,
            delivery: Delivery::UntilSettled(key),
        });
    }

    fn receipt(&mut self, from: &NodeId, receipt: &Receipt, out: &mut Vec<Effect>) {
        let waits = self.sent.get(&receipt.update);
        let second = self.is_second(from).then_some(from);
        if waits.is_none_or(|sent| sent.second.as_ref() != second) {
            return out.push(Effect::Count("receipt_of_nothing"));
        }
        let Some(sent) = self.sent.remove(&receipt.update) else { return };
        put(Self::SENT, &self.sent, out);
        out.push(Effect::Settle(sent.key(receipt.update)));
        let verdict = match &receipt.verdict {
            Verdict::Accepted => "accepted",
            Verdict::Late => "late",
            Verdict::Refused(_) => "refused",
        };
        out.push(Effect::Record(Event::ReceiptGot {
            from: from.clone(),
            round: sent.round,
            update: receipt.update,
            verdict: Word::new(verdict),
        }));
    }

    /// A summary that waited too long for its receipt is dropped; an update never is.
    fn give_up(&mut self, key: &str, out: &mut Vec<Effect>) {
        let waiting = self.sent.iter().find(|(update, sent)| sent.key(**update) == key);
        let Some((update, sent)) = waiting.map(|(update, sent)| (*update, sent.clone())) else {
            return;
        };
        if sent.is_update() {
            return out.push(Effect::Count("updates_are_never_dropped"));
        }
        self.sent.remove(&update);
        put(Self::SENT, &self.sent, out);
        out.push(Effect::Settle(key.to_owned()));
        out.push(Effect::Count("outbox_overflow"));
        out.push(Effect::Record(self.decline(sent.round, "outbox_overflow")));
    }

    fn result(&mut self, news: Announced, out: &mut Vec<Effect>) {
        let version = news.result.version;
        if self.current.is_some()
            && version <= self.version()
            && (guard::stands(Guard::Versions) || version == self.version())
        {
            if version < self.version() {
                out.push(Effect::Count("older_version"));
            }
            return;
        }
        if self.result.as_ref().is_some_and(|waiting| waiting.result.version > version) {
            return;
        }
        if let Err(reason) = sense::check_result(&news.result) {
            return self.refuse_result(&news, reason, out);
        }
        if news.result.adapter.is_empty() && self.config.knows.is_none() {
            return self.refuse_result(&news, "no_rounds_of_knowledge", out);
        }
        match brought(&news.result).cloned() {
            None => self.adopt(&news.result, out),
            Some(Blob::Inline(bytes)) => match self.can_use(&news.result, &bytes) {
                Ok(()) => {
                    out.push(Effect::SaveBlob(bytes));
                    self.adopt(&news.result, out);
                }
                Err(reason) => self.refuse_result(&news, reason, out),
            },
            Some(Blob::Manifest(manifest)) => {
                let before = self.result.replace(news);
                self.forget(before.as_ref().and_then(|before| brought(&before.result)), out);
                let from = self.owner.clone();
                out.push(Effect::Fetch { from, side: Side::Up, manifest });
            }
        }
    }

    /// What isn't an adapter of our model is never served nor passed on.
    fn refuse_result(&mut self, news: &Announced, reason: &'static str, out: &mut Vec<Effect>) {
        out.push(Effect::Count(reason));
        if self.refused.replace(news.body) != Some(news.body) {
            out.push(Effect::Record(Event::Refusal {
                message: news.body,
                reason: Word::new(reason),
                sender: Some(self.owner.clone()),
            }));
        }
    }

    /// Whether what a result brings can be used here; knowledge is checked by whoever learns from it.
    fn can_use(&self, result: &RoundResult, bytes: &[u8]) -> Result<(), &'static str> {
        if result.adapter.is_empty() {
            return sense::check_packed(bytes);
        }
        sense::check_adapter(bytes, &self.config.layout)
    }

    fn adopt(&mut self, result: &Arc<RoundResult>, out: &mut Vec<Effect>) {
        let adapter = result.adapter.sha256();
        out.push(Effect::Record(Event::ResultApplied {
            result: brought(result).map_or(adapter, Blob::sha256),
            round: self.round(),
            version: result.version,
        }));
        if result.adapter.is_empty() {
            self.take_knowledge(result.version, out);
        } else {
            self.take(result.version, adapter, out);
        }
        if self.config.relay {
            out.push(Effect::PassOn(result.clone()));
        }
    }

    fn fetched(&mut self, digest: Digest, bytes: &[u8], out: &mut Vec<Effect>) {
        let is_it = |blob: Option<&Blob>| blob.is_some_and(|blob| blob.sha256() == digest);
        if let Some(news) = self.result.take_if(|news| is_it(brought(&news.result)))
            && news.result.version > self.version()
        {
            match self.can_use(&news.result, bytes) {
                Ok(()) => self.adopt(&news.result, out),
                Err(reason) => self.refuse_result(&news, reason, out),
            }
        }
        if let Some(offered) = self.next.take_if(|offered| is_it(needed(&offered.offer))) {
            match self.fits(&offered.offer, bytes) {
                Ok(()) => {
                    self.next = Some(offered);
                    self.begin_next(out);
                }
                Err(reason) => self.refuse_offer(&offered, reason, out),
            }
        }
    }

    /// After the work under way ended: the offer that waited begins, once its adapter is here.
    fn begin_next_if_there(&mut self, out: &mut Vec<Effect>) {
        let Some(offered) = &self.next else { return };
        match needed(&offered.offer) {
            None | Some(Blob::Inline(_)) => self.begin_next(out),
            // Fetching what is on disk already is answered at once.
            Some(Blob::Manifest(manifest)) => out.push(Effect::Fetch {
                from: self.owner.clone(),
                side: Side::Up,
                manifest: manifest.clone(),
            }),
        }
    }

    /// The version is ours now; equal versions with the same adapter change nothing.
    fn take(&mut self, version: Version, adapter: Digest, out: &mut Vec<Effect>) {
        self.set_current(Current { version, adapter, knowledge: false }, out);
    }

    /// A version of what is known is ours now: nothing else changes, since each node has its own model.
    fn take_knowledge(&mut self, version: Version, out: &mut Vec<Effect>) {
        let Some(knows) = &self.config.knows else { return };
        let adapter = knows.untrained;
        self.set_current(Current { version, adapter, knowledge: true }, out);
    }

    fn set_current(&mut self, current: Current, out: &mut Vec<Effect>) {
        let version = current.version;
        let goes_back = version < self.version() && guard::stands(Guard::Versions);
        if self.current.as_ref() == Some(&current) || goes_back {
            return;
        }
        self.current = Some(current);
        put(Self::CURRENT, &self.current, out);
        self.apply(out);
    }

    /// Answers with the current version from now on: the device's own adapter, where it has one.
    pub(super) fn apply(&self, out: &mut Vec<Effect>) {
        if let Some(Current { version, adapter, knowledge }) = self.current
            // A relay's own model learns, and is served, by its other half.
            && !(knowledge && self.config.relay)
        {
            out.push(Effect::Apply { version, adapter: self.own_or(adapter) });
        }
    }

    fn own_or(&self, adapter: Digest) -> Digest {
        self.own.as_ref().map_or(adapter, |own| own.adapter)
    }

    fn ask_latest(&self, out: &mut Vec<Effect>) {
        self.ask(Wanted::Latest, out);
    }

    fn tell_wishes(&self, out: &mut Vec<Effect>) {
        if self.whereabouts.away {
            return; // told to two edges it would count twice above
        }
        self.ask(Wanted::Round(self.wishes), out);
    }

    fn ask(&self, wanted: Wanted, out: &mut Vec<Effect>) {
        out.push(Effect::Send {
            to: self.above(),
            body: Body::Get(Get { wanted }),
            round: self.round(),
            epoch: self.parent_epoch,
            delivery: Delivery::Volatile,
        });
    }

    fn answer(&self, offered: &Offered, accepted: bool, reason: &str) -> Effect {
        Effect::Send {
            to: self.asker_of(offered),
            body: Body::Answer(Answer {
                offer: offered.digest,
                accepted,
                reason: reason.chars().take(200).collect(),
            }),
            round: offered.offer.round,
            epoch: offered.epoch,
            delivery: Delivery::Volatile,
        }
    }
}

/// What has to be on disk before an offer is begun: its adapter, or what the tiers above say.
fn needed(offer: &Offer) -> Option<&Blob> {
    match &offer.plan.knowledge {
        Some(_) => offer.knowledge.as_ref().map(|knowledge| &knowledge.set),
        None => Some(&offer.adapter),
    }
}

/// What a result brings: an adapter, or what is known now.
fn brought(result: &RoundResult) -> Option<&Blob> {
    if result.adapter.is_empty() {
        result.knowledge.as_ref().map(|knowledge| &knowledge.set)
    } else {
        Some(&result.adapter)
    }
}

/// Whether the numbers of a work can be sent at all: a training run may have diverged.
fn sound(work: &Work) -> Result<(), &'static str> {
    if !(work.loss_first.is_finite() && work.loss_last.is_finite()) {
        return Err("not_finite");
    }
    let summary = work.class_logits.as_ref();
    summary.map_or(Ok(()), check_summary).map_err(|error| error.kind())
}

#[cfg(test)]
mod tests;
