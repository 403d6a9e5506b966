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
//! Here is what it knows and whom it hears. Offers are in `offers.rs`, what becomes of work in `contributing.rs`, results in `results.rs`; a
//! device may have a second edge to go to (`second_edge.rs`).
//!
//! Called by the trainer's actor, and by [`super::Relay`].

mod contributing;
mod offers;
mod results;
mod second_edge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use offers::needed;
use results::brought;
pub use second_edge::SecondEdge;
use second_edge::Whereabouts;

use serde::{Deserialize, Serialize};

use super::effect::{Delivery, Effect, Input, Timer, To};
use super::guard::{self, Guard};
use super::round::put;
use super::sense;
use crate::ids::{Digest, Epoch, Name, NodeId, RoundNo, Side, UpdateId, Version};
use crate::learn::Layout;
use crate::privacy::Gate;
use crate::time::Now;
use crate::trust::{Verified, update_id};
use crate::wire::{
    Answer, Blob, Body, Get, Offer, Promise, Result as RoundResult, TopLogitsPlan, Wanted, Wishes,
    decode,
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

#[cfg(test)]
mod tests;
