//! An owner of rounds that doesn't have to live: it and its standby are one [`Failover`] each.
//!
//! ```text
//!            lease ran out, or the other one doesn't confirm           most members promise
//!   Following ------------------------------------> Standing ------------------------------> Leading alone
//!      ^  ^  copies come in, each is confirmed          |  the other one confirms                 |
//!      |  '---------- a higher epoch is heard ----------+----------------> Leading paired <-------'
//!      '------------------------------------------------------------------------'  it confirms
//! ```
//! The state of a [`Round`] is copied value by value, so taking over is what starting is: the round is
//! built from the store and told to go on. What it promises:
//! - **Nothing leaves a paired leader that its standby hasn't on disk**: receipts, offers, results and the
//!   version to serve wait for the confirmation (held back, they may be lost: all of them are said again).
//! - **Nobody leads alone without most of the members**, each of which listens to no lower epoch from then
//!   on and says which one it had heard before: more than the state at hand accounts for is no promise.
//!   The other one, too, confirms nobody who knows less than itself. So whoever leads has everything that was ever let out, and no two do. An owner that begins, or was
//!   alone when it stopped, has it by itself.
//! - The two never share an epoch: one takes even numbers, the other odd ones.
//! - No clock counts: a lease is so many ticks of whoever waits for it.
//!
//! Only for the root of a federation. Called by the aggregator's actor, where the keyring names a standby.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::copies::{Incoming, Outgoing, Progress};
use super::effect::{Delivery, Effect, Input, Timer, To};
use super::guard::{self, Guard};
use super::round::{Round, RoundConfig, RoundView, put};
use super::sense;
use crate::ids::{Digest, Epoch, NodeId, Side};
use crate::time::Now;
use crate::trust::Verified;
use crate::wire::{Body, Get, Lease, Manifest, Mirror, Wanted, decode};

mod copies;
#[cfg(test)]
mod tests;

/// What one of the two has to know.
#[derive(Debug, Clone)]
pub struct FailoverConfig {
    /// The other one.
    pub peer: NodeId,
    /// It is the owner that the members have as their parent, and begins.
    pub first: bool,
    /// A leader counts as gone when nothing was heard of it for so long.
    pub lease_ms: u64,
    /// Bytes a chunk of big blobs.
    pub chunk_bytes: u32,
}

/// One of the two. See the module.
#[derive(Debug)]
pub struct Failover {
    config: FailoverConfig,
    round: RoundConfig,
    adapter: Vec<u8>,
    stand: Stand,
    /// What the store has under [`Round::PREFIX`].
    state: BTreeMap<String, Vec<u8>>,
    /// Blobs that the state names, all on disk.
    blobs: BTreeMap<Digest, Manifest>,
    place: Place,
    /// Changes of the state since there are rounds.
    told: u64,
    /// As many of them, at least, are on the other one's disk too, or were let out. Who has fewer than that
    /// lacks something: its store was put back from a backup.
    known: u64,
    /// Nothing of it was on disk.
    is_new: bool,
    /// Ticks until promises count: whoever has just started hears the other one first.
    listens: u64,
    /// A member's word of a higher epoch counts: none has in this tick.
    heeds: bool,
    full: bool,
}

/// What has to outlive a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stand {
    /// The highest epoch that was heard or taken.
    epoch: Epoch,
    post: Post,
    /// The state has all that was ever let out up to this epoch; none: it may lack something.
    basis: Option<Epoch>,
    /// The last copy that was taken, and its epoch.
    have: u64,
    of: Epoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Post {
    Following,
    Standing,
    /// What is said has to be confirmed first.
    Paired,
    /// Nobody else has what is said.
    Alone,
}

/// What it does, and what that takes in memory.
#[derive(Debug)]
enum Place {
    Following { incoming: Option<Incoming>, ticks_left: u64 },
    Standing { outgoing: Outgoing, promised: BTreeSet<NodeId> },
    Leading { round: Box<Round>, outgoing: Outgoing, held: Vec<(u64, Effect)> },
}

/// What may be seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverView {
    /// The rounds, as this one knows them.
    pub round: RoundView,
    /// `following`, `standing`, `paired` or `alone`.
    pub post: &'static str,
    /// It could take over: it has all that was ever said, as far as it knows.
    pub in_step: bool,
    /// The highest epoch that it knows of.
    pub epoch: Epoch,
}

impl Failover {
    /// Key prefix of its durable state, beside that of the round.
    pub const PREFIX: &'static str = "failover/";
    pub(super) const STAND: &'static str = "failover/stand";
    const TOLD: &'static str = "failover/told";
    const KNOWN: &'static str = "failover/known";
    const STATE_CAP: usize = 1 << 16;
    /// Parts of a lease in which a leader says that it is there.
    const TICKS: u64 = 4;
    /// A leader's word for more than this many of ours counts as this many.
    const MOST_TICKS: u64 = 60;
    /// Effects that wait for a confirmation. Of more, those are dropped that are said again later.
    const MOST_HELD: usize = 4_096;

    /// One of the two, where the store left it: `own` is what is under [`Failover::PREFIX`], `state` under
    /// [`Round::PREFIX`], `blobs` are those on disk that [`Failover::needs`] names.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(
        config: FailoverConfig,
        round: RoundConfig,
        adapter: &[u8],
        own: &[(String, Vec<u8>)],
        state: &[(String, Vec<u8>)],
        blobs: Vec<Manifest>,
    ) -> Result<Self, String> {
        let begins = Round::new(round.clone(), adapter, state)?.view().epoch;
        let mut stand = Stand {
            epoch: begins,
            post: if config.first { Post::Alone } else { Post::Following },
            basis: None,
            have: 0,
            of: 0,
        };
        let is_new = !own.iter().any(|(key, _)| key == Self::STAND);
        if let Some((key, value)) = own.iter().find(|(key, _)| key == Self::STAND) {
            stand = decode(value, Self::STATE_CAP).map_err(|e| format!("{key}: {e}"))?;
        }
        let mut told = 0;
        if let Some((key, value)) = own.iter().find(|(key, _)| key == Self::TOLD) {
            told = decode(value, Self::STATE_CAP).map_err(|e| format!("{key}: {e}"))?;
        }
        let mut known = 0;
        if let Some((key, value)) = own.iter().find(|(key, _)| key == Self::KNOWN) {
            known = decode(value, Self::STATE_CAP).map_err(|e| format!("{key}: {e}"))?;
        }
        let mut blobs: BTreeMap<_, _> = blobs.into_iter().map(|blob| (blob.sha256, blob)).collect();
        let untrained = Manifest::of(adapter, config.chunk_bytes);
        blobs.insert(untrained.sha256, untrained);
        Ok(Self {
            config,
            round,
            adapter: adapter.to_vec(),
            stand,
            state: state.iter().cloned().collect(),
            blobs,
            place: Place::Following { incoming: None, ticks_left: Self::TICKS + 1 },
            told,
            known,
            is_new,
            listens: 0,
            heeds: false,
            full: false,
        })
    }

    /// Blobs that a round with this state names.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn needs(
        round: &RoundConfig,
        adapter: &[u8],
        state: &[(String, Vec<u8>)],
    ) -> Result<BTreeSet<Digest>, String> {
        Ok(Round::new(round.clone(), adapter, state)?.named_blobs())
    }

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Start => self.start(now, &mut out),
            Input::Timer(Timer::Lease) => self.tick(now, &mut out),
            Input::Message(message) if *message.sender() == self.config.peer => {
                self.peer(now, &message, &mut out);
            }
            Input::Message(message) if matches!(message.body(), Body::Promise(_)) => {
                self.promise(now, &message, &mut out);
            }
            Input::Full(full) => {
                self.full = full;
                self.lead_on(now, input, &mut out);
            }
            Input::Fetched { digest, ref bytes } => {
                if let Place::Following { .. } = self.place {
                    self.fetched(digest, bytes, &mut out);
                } else {
                    let blob = Manifest::of(bytes, self.config.chunk_bytes);
                    self.blobs.insert(digest, blob);
                    self.lead_on(now, input, &mut out);
                }
            }
            _ => self.lead_on(now, input, &mut out),
        }
        out
    }

    /// What may be seen from outside.
    pub fn view(&self) -> FailoverView {
        let post = match self.stand.post {
            _ if self.listens_first() => "standing",
            Post::Following => "following",
            Post::Standing => "standing",
            Post::Paired => "paired",
            Post::Alone => "alone",
        };
        let round = match &self.place {
            Place::Leading { round, .. } => round.view(),
            Place::Following { .. } | Place::Standing { .. } => self.at_rest().view(),
        };
        let in_step = self.stand.basis.is_some() || self.stand.post == Post::Alone;
        FailoverView { round, post, in_step, epoch: self.stand.epoch }
    }

    /// What its rounds hold while it leads.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn held(&self) -> Option<super::Held> {
        match &self.place {
            Place::Leading { round, .. } => Some(round.held()),
            Place::Following { .. } | Place::Standing { .. } => None,
        }
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep: BTreeSet<Digest> = self.blobs.keys().copied().collect();
        match &self.place {
            Place::Following { incoming, .. } => {
                keep.extend(incoming.iter().flat_map(Incoming::blobs));
            }
            Place::Standing { outgoing, .. } => keep.extend(outgoing.blobs()),
            Place::Leading { round, outgoing, .. } => {
                keep.extend(round.blobs());
                keep.extend(outgoing.blobs());
            }
        }
        keep
    }

    fn start(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.listens = Self::TICKS;
        match self.stand.post {
            Post::Following => {
                let wish = self.have(true);
                out.push(wish);
                self.follow(out);
            }
            Post::Standing => self.ask(out),
            // Whether the standby has taken over meanwhile shows when it confirms, or doesn't.
            Post::Paired => self.stand_up(out),
            Post::Alone if self.is_new => self.lead(now, Post::Alone, Outgoing::default(), out),
            // The disk may be that of a backup, and the other one may have gone on since.
            Post::Alone => {
                let ticks_left = Self::TICKS + 2; // it asks within one more than a lease
                self.place = Place::Following { incoming: None, ticks_left };
                out.push(self.next_tick());
            }
        }
    }

    /// Whether it led alone when it stopped, and hasn't said anything since.
    fn listens_first(&self) -> bool {
        self.stand.post == Post::Alone && matches!(self.place, Place::Following { .. })
    }

    /// What the other one says before we have said anything.
    fn hear_first(&mut self, now: Now, message: &Verified, out: &mut Vec<Effect>) {
        let Body::Lease(lease) = message.body() else {
            return out.push(Effect::Count("not_following"));
        };
        let epoch = message.epoch();
        if epoch < self.stand.epoch {
            return out.push(Effect::Count("stale_epoch"));
        }
        let is_higher = epoch > self.stand.epoch;
        self.stand.epoch = epoch;
        if message.was_retained() {
            put(Self::STAND, &self.stand, out);
        } else if lease.told > self.told && guard::stands(Guard::Told) {
            self.step_down(out);
        } else if is_higher {
            self.lead(now, Post::Alone, Outgoing::default(), out);
        }
    }

    /// A part of a lease has passed.
    fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.listens = self.listens.saturating_sub(1);
        self.heeds = true;
        match &mut self.place {
            Place::Following { ticks_left, .. } => {
                *ticks_left = ticks_left.saturating_sub(1);
                let gone = *ticks_left == 0;
                if self.stand.post == Post::Alone {
                    if gone {
                        return self.lead(now, Post::Alone, Outgoing::default(), out);
                    }
                    return out.push(self.next_tick());
                }
                if gone && self.stand.basis.is_some() {
                    return self.stand_up(out);
                }
                if gone {
                    // Whoever took over now would forget what was promised.
                    out.push(Effect::Count("standby_not_in_step"));
                }
                // A copy that is on its way may name what its sender no longer has: a newer one helps.
                if self.stand.basis != Some(self.stand.epoch) {
                    let wish = self.have(true);
                    out.push(wish);
                }
                out.push(self.next_tick());
            }
            Place::Standing { .. } => {
                if !self.lead_if_promised(now, out) {
                    self.ask(out);
                }
            }
            Place::Leading { outgoing, .. } => {
                if self.stand.post == Post::Paired && outgoing.waits_too_long(Self::TICKS) {
                    return self.stand_up(out);
                }
                let resend = self.stand.post == Post::Paired && outgoing.is_waiting();
                out.push(self.lease(false));
                if resend {
                    self.send_copy(out);
                }
                out.push(self.next_tick());
            }
        }
    }

    /// What the other one says.
    fn peer(&mut self, now: Now, message: &Verified, out: &mut Vec<Effect>) {
        if let Body::Get(Get { wanted: Wanted::Chunks { sha256, indices } }) = message.body() {
            return self.serve(*sha256, indices, out);
        }
        let epoch = message.epoch();
        let is_wish = matches!(message.body(), Body::Mirror(Mirror::Have { .. }));
        if !sense::in_reach(self.stand.epoch, epoch) {
            return out.push(Effect::Count("number_out_of_reach"));
        }
        if self.listens_first() {
            return self.hear_first(now, message, out);
        }
        if epoch < self.stand.epoch && !is_wish && guard::stands(Guard::Epochs) {
            return out.push(Effect::Count("stale_epoch"));
        }
        if epoch > self.stand.epoch {
            // Who leads alone has all that was ever let out, unless its disk is that of a backup.
            let knows_more = match message.body() {
                Body::Lease(lease) => lease.told > self.told && guard::stands(Guard::Told),
                _ => false,
            };
            if self.stand.post == Post::Alone && (!knows_more || message.was_retained()) {
                // It can't lead: most members have promised to us, and what we know is all there is.
                self.stand.epoch = epoch;
                return self.lead(now, Post::Alone, Outgoing::default(), out);
            }
            if is_wish {
                return out.push(Effect::Count("epoch_of_nobody"));
            }
            self.stand.epoch = epoch;
            self.step_down(out);
        }
        match message.body() {
            Body::Lease(lease) => self.leased(lease, out),
            Body::Mirror(Mirror::Have { seq, wants }) => {
                let seq = if epoch == self.stand.epoch { *seq } else { 0 };
                self.confirmed(now, seq, *wants, out);
            }
            Body::Mirror(Mirror::Copy(copy)) => {
                let known = |own| copy.basis.is_some_and(|basis| basis < own);
                if self.stand.basis.is_some_and(known) {
                    // It asks for the rounds, and wasn't there when more was said than it knows of.
                    return out.push(Effect::Count("copy_behind"));
                }
                let is_first = self.stand.of != epoch;
                if is_first && copy.told < self.known && guard::stands(Guard::Told) {
                    // It has forgotten what it once told us. We stand, if we may, and it hears what we know.
                    out.push(Effect::Count("copy_knows_less"));
                    if matches!(self.place, Place::Following { .. }) && self.stand.basis.is_some() {
                        self.stand_up(out);
                    }
                    return;
                }
                if let Place::Following { incoming, ticks_left } = &mut self.place {
                    *ticks_left = (*ticks_left).max(Self::TICKS + 1);
                    if self.full {
                        return out.push(Effect::Count("disk_full"));
                    }
                    let have = if self.stand.of == epoch { self.stand.have } else { 0 };
                    if copy.since > have {
                        let wish = self.have(true);
                        return out.push(wish);
                    }
                    if copy.seq > have {
                        let new = Incoming::new(epoch, copy.clone());
                        // The other one gives out what its newest copy needs.
                        let wanted = new.wants(&self.blobs);
                        let before = incoming.replace(new).and_then(|old| old.wants(&self.blobs));
                        out.extend(before.filter(|_| before != wanted).map(Effect::Forget));
                        return self.go_on_copying(out);
                    }
                    let known = self.have(false);
                    out.push(known);
                } else {
                    out.push(Effect::Count("not_following"));
                }
            }
            // Offers, results and receipts of the other one are its members' affair.
            _ => {}
        }
    }

    fn leased(&mut self, lease: &Lease, out: &mut Vec<Effect>) {
        let tick = self.tick_ms();
        let Place::Following { ticks_left, .. } = &mut self.place else {
            return out.push(Effect::Count("not_following"));
        };
        // Who only asks must not keep us from standing: it may ask in vain.
        if lease.asks {
            return;
        }
        *ticks_left = lease.ms.div_ceil(tick).min(Self::MOST_TICKS) + 1;
    }

    /// A member listens to us, and to nobody below.
    fn promise(&mut self, now: Now, message: &Verified, out: &mut Vec<Effect>) {
        let Body::Promise(promise) = message.body() else { return };
        let promised = match &mut self.place {
            Place::Standing { promised, .. } => promised,
            Place::Leading { .. } if self.stand.post == Post::Alone => {
                return self.lead_above(now, message, out);
            }
            Place::Following { .. } | Place::Leading { .. } => return,
        };
        if message.epoch() != self.stand.epoch || !self.round.members.contains(message.sender()) {
            return out.push(Effect::Count("promise_of_another_epoch"));
        }
        let accounted = self.stand.basis.is_some_and(|basis| promise.before <= basis);
        if !accounted && guard::stands(Guard::Promises) {
            // Somebody has led since, and what it said isn't here.
            return out.push(Effect::Count("standby_behind"));
        }
        promised.insert(message.sender().clone());
        self.lead_if_promised(now, out);
    }

    /// A member has heard the other one ask in a higher epoch, and listens to none below. Who leads alone is whom
    /// most have promised to, so the other one asked in vain: it goes on above.
    ///
    /// Once a tick, for each time is a restart of the round.
    fn lead_above(&mut self, now: Now, message: &Verified, out: &mut Vec<Effect>) {
        let epoch = message.epoch();
        let of_a_member = self.round.members.contains(message.sender());
        if !of_a_member || epoch <= self.stand.epoch || !std::mem::take(&mut self.heeds) {
            return;
        }
        if !sense::in_reach(self.stand.epoch, epoch) {
            return out.push(Effect::Count("number_out_of_reach"));
        }
        self.stand.epoch = epoch;
        self.lead(now, Post::Alone, Outgoing::default(), out);
    }

    /// Says whether most members have promised, and it leads.
    fn lead_if_promised(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        let Place::Standing { promised, outgoing } = &mut self.place else { return false };
        let most = promised.len() * 2 > self.round.members.len();
        if most && self.listens == 0 {
            let outgoing = std::mem::take(outgoing);
            self.lead(now, Post::Alone, outgoing, out);
        }
        most && self.listens == 0
    }

    /// The other one has a copy on disk, or wishes one.
    fn confirmed(&mut self, now: Now, seq: u64, wants: bool, out: &mut Vec<Effect>) {
        match &mut self.place {
            Place::Following { .. } => {}
            Place::Standing { outgoing, .. } => {
                if outgoing.confirm(seq) {
                    let outgoing = std::mem::take(outgoing);
                    return self.lead(now, Post::Paired, outgoing, out);
                }
                if !wants {
                    return; // each answer to a copy that is on its way would be another copy
                }
            }
            Place::Leading { outgoing, held, .. } => {
                let newer = outgoing.confirm(seq);
                if newer && self.stand.post == Post::Alone {
                    self.stand.post = Post::Paired;
                    self.stand.basis = Some(self.stand.epoch);
                    outgoing.touch(); // the next copy tells it that it is in step
                    put(Self::STAND, &self.stand, out);
                }
                let confirmed = outgoing.confirmed();
                if newer {
                    // Each number is one change of the state at most. It goes to disk with the next one.
                    let unconfirmed = outgoing.number().saturating_sub(confirmed);
                    self.known = self.known.max(self.told.saturating_sub(unconfirmed));
                }
                let freed = held.iter().take_while(|(seq, _)| *seq <= confirmed).count();
                out.extend(held.drain(..freed).map(|(_, effect)| effect));
                if wants && seq < confirmed {
                    outgoing.begin_anew(); // it has lost what it had
                }
                if !(newer && outgoing.is_waiting() || wants) {
                    return;
                }
            }
        }
        if !matches!(self.place, Place::Following { .. }) {
            self.send_copy(out);
        }
    }

    /// Asks for the rounds in an epoch of its own.
    fn stand_up(&mut self, out: &mut Vec<Effect>) {
        self.stand.epoch = self.next_epoch();
        self.stand.post = Post::Standing;
        put(Self::STAND, &self.stand, out);
        out.push(Effect::Count("standing_for_the_rounds"));
        self.place = nothing();
        self.ask(out);
    }

    fn ask(&mut self, out: &mut Vec<Effect>) {
        if !matches!(self.place, Place::Standing { .. }) {
            let (mut outgoing, promised) = (Outgoing::default(), BTreeSet::new());
            outgoing.touch();
            self.place = Place::Standing { outgoing, promised };
        }
        out.push(self.lease(true));
        self.send_copy(out);
        out.push(self.next_tick());
    }

    /// Builds the round from what is on disk and has it go on, as after a restart.
    fn lead(&mut self, now: Now, post: Post, mut outgoing: Outgoing, out: &mut Vec<Effect>) {
        if self.stand.post != Post::Standing {
            self.stand.epoch = self.next_epoch();
        }
        self.stand.post = post;
        self.stand.basis = (post == Post::Paired).then_some(self.stand.epoch);
        put(Self::STAND, &self.stand, out);
        // The other one has all of it, or nobody waits for that.
        self.known = self.told;
        put(Self::KNOWN, &self.known, out);
        outgoing.touch();
        let mut round = Box::new(self.at_rest());
        round.raise_epoch(self.stand.epoch);
        self.place = Place::Leading { round, outgoing, held: Vec::new() };
        out.push(Effect::Count("leading_the_rounds"));
        out.push(self.lease(false));
        out.push(self.next_tick());
        if self.full {
            self.lead_on(now, Input::Full(true), out);
        }
        self.lead_on(now, Input::Start, out);
    }

    fn step_down(&mut self, out: &mut Vec<Effect>) {
        if !matches!(self.stand.post, Post::Following) {
            out.push(Effect::Count("stepped_down"));
        }
        self.stand.post = Post::Following;
        put(Self::STAND, &self.stand, out);
        self.place = nothing();
        let wish = self.have(true);
        out.push(wish);
        self.follow(out);
    }

    fn follow(&mut self, out: &mut Vec<Effect>) {
        self.place = Place::Following { incoming: None, ticks_left: Self::TICKS + 1 };
        out.push(self.next_tick());
    }

    /// Has the round take a step, notes what it changes, and holds back what has to be confirmed first.
    fn lead_on(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        let Place::Leading { round, outgoing, held } = &mut self.place else {
            if let Input::Message(_) | Input::StartRound | Input::Pause(_) = input {
                out.push(Effect::Count("not_leading")); // it comes again
            }
            return;
        };
        if let Input::Combined { offer, outcome: Ok(work) } = &input
            && round.closes_over_others(*offer, &work.weighed)
        {
            // Begun before the other one led, and closed the same round over more or less. Ours is under way.
            return out.push(Effect::Count("outcome_of_another_set"));
        }
        let effects = round.step(now, input);
        let mut said = Vec::new();
        let mut changed = BTreeSet::new();
        for effect in effects {
            match &effect {
                Effect::Put(key, value) => {
                    self.state.insert(key.to_string(), value.clone());
                    changed.insert(key.to_string());
                }
                Effect::Delete(key) => {
                    self.state.remove(&**key);
                    changed.insert(key.to_string());
                }
                Effect::SaveBlob(bytes) => {
                    let blob = Manifest::of(bytes, self.config.chunk_bytes);
                    self.blobs.insert(blob.sha256, blob);
                }
                Effect::Send { .. }
                | Effect::SendChunks { .. }
                | Effect::Apply { .. }
                | Effect::Republish => {
                    said.push(effect);
                    continue;
                }
                _ => {}
            }
            out.push(effect);
        }
        let news = !changed.is_empty();
        if news {
            outgoing.changed(changed);
            self.told += 1;
            if self.stand.post == Post::Alone {
                self.known = self.told;
            }
            put(Self::TOLD, &self.told, out);
            put(Self::KNOWN, &self.known, out);
            let needs = round.named_blobs();
            self.blobs.retain(|digest, _| needs.contains(digest));
        }
        let held_back = outgoing.is_waiting() && guard::stands(Guard::Copies);
        if self.stand.post == Post::Alone || !held_back {
            return out.extend(said);
        }
        let number = outgoing.number();
        held.extend(said.into_iter().map(|effect| (number, effect)));
        if held.len() > Self::MOST_HELD {
            shorten(held, Self::MOST_HELD);
            out.push(Effect::Count("too_much_held_back"));
        }
        if news {
            self.send_copy(out);
        }
    }

    /// Sends all that the other one lacks.
    fn send_copy(&mut self, out: &mut Vec<Effect>) {
        let needs = self.needed();
        if needs.iter().any(|digest| !self.blobs.contains_key(digest)) {
            return out.push(Effect::Count("blob_not_at_hand"));
        }
        let blobs = needs.iter().filter_map(|digest| self.blobs.get(digest).cloned()).collect();
        // Alone, more is said than any copy has.
        let basis = if self.stand.post == Post::Alone { None } else { self.stand.basis };
        let (Place::Standing { outgoing, .. } | Place::Leading { outgoing, .. }) = &mut self.place
        else {
            return;
        };
        match outgoing.copy(&self.state, blobs, (basis, self.told), self.config.chunk_bytes) {
            Ok((copy, saved)) => {
                out.extend(saved.map(Effect::SaveBlob));
                out.push(self.to_peer(Mirror::Copy(copy)));
            }
            Err(error) => out.push(Effect::Fatal(format!("a copy can't be encoded: {error}"))),
        }
    }

    fn go_on_copying(&mut self, out: &mut Vec<Effect>) {
        let Place::Following { incoming, .. } = &mut self.place else { return };
        let Some(copy) = incoming else { return };
        match copy.progress(&self.blobs) {
            Progress::Lacks(manifest) => {
                let from = self.config.peer.clone();
                out.push(Effect::Fetch { from, side: Side::Down, manifest });
                let busy = self.have(false);
                out.push(busy);
            }
            Progress::Senseless(reason) => {
                *incoming = None;
                out.push(Effect::Count(reason));
            }
            Progress::Complete => self.take_copy(out),
        }
    }

    fn fetched(&mut self, digest: Digest, bytes: &[u8], out: &mut Vec<Effect>) {
        let Place::Following { incoming: Some(copy), .. } = &mut self.place else { return };
        copy.fetched(digest, bytes);
        self.go_on_copying(out);
    }

    /// A copy and its blobs are here: they are the state from now on.
    fn take_copy(&mut self, out: &mut Vec<Effect>) {
        let Place::Following { incoming, .. } = &mut self.place else { return };
        let Some(copy) = incoming.take() else { return };
        let (seq, basis, epoch) = (copy.seq(), copy.basis(), copy.epoch());
        let told = copy.told();
        let next = copy.applied_to(&self.state);
        // A state that no round can be built from would be found out in an emergency.
        let pairs: Vec<_> = next.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let blobs = copy.into_blobs();
        match Round::new(self.round.clone(), &self.adapter, &pairs) {
            Ok(round) if round.named_blobs().iter().all(|digest| blobs.contains_key(digest)) => {}
            Ok(_) => return out.push(Effect::Count("copy_lacks_blobs")),
            Err(_) => return out.push(Effect::Count("senseless_copy")),
        }
        for key in self.state.keys().filter(|key| !next.contains_key(*key)) {
            out.push(Effect::Delete(key.clone().into()));
        }
        for (key, value) in next.iter().filter(|(key, value)| self.state.get(*key) != Some(value)) {
            out.push(Effect::Put(key.clone().into(), value.clone()));
        }
        self.state = next;
        self.blobs = blobs;
        (self.stand.have, self.stand.of, self.stand.basis) = (seq, epoch, basis);
        put(Self::STAND, &self.stand, out);
        (self.told, self.known) = (told, told);
        put(Self::TOLD, &self.told, out);
        put(Self::KNOWN, &self.known, out);
        let known = self.have(false);
        out.push(known);
    }

    /// Gives chunks of what the state names, and of the copy itself.
    fn serve(&self, sha256: Digest, indices: &[u32], out: &mut Vec<Effect>) {
        let (Place::Standing { outgoing, .. } | Place::Leading { outgoing, .. }) = &self.place
        else {
            return out.push(Effect::Count("not_leading"));
        };
        let known = self.blobs.contains_key(&sha256) || outgoing.blobs().any(|d| d == sha256);
        out.push(if known {
            Effect::SendChunks {
                to: self.config.peer.clone(),
                side: Side::Down,
                sha256,
                chunk_bytes: self.config.chunk_bytes,
                indices: indices.iter().copied().take(Wanted::MAX_CHUNKS).collect(),
            }
        } else {
            Effect::Count("blob_not_offered")
        });
    }

    /// The round as the store has it. It was built from the same values before.
    fn at_rest(&self) -> Round {
        let state: Vec<_> = self.state.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        match Round::new(self.round.clone(), &self.adapter, &state) {
            Ok(round) => round,
            Err(_) => unreachable!("each value was read when it came in"),
        }
    }

    fn needed(&self) -> BTreeSet<Digest> {
        match &self.place {
            Place::Leading { round, .. } => round.named_blobs(),
            Place::Following { .. } | Place::Standing { .. } => self.at_rest().named_blobs(),
        }
    }

    fn have(&self, wants: bool) -> Effect {
        let seq = if self.stand.of == self.stand.epoch { self.stand.have } else { 0 };
        self.to_peer(Mirror::Have { seq, wants })
    }

    fn to_peer(&self, mirror: Mirror) -> Effect {
        Effect::Send {
            to: To::Child(self.config.peer.clone()),
            body: Body::Mirror(mirror),
            round: 0,
            epoch: self.stand.epoch,
            delivery: Delivery::Volatile,
        }
    }

    fn lease(&self, asks: bool) -> Effect {
        let alone = self.stand.post == Post::Alone;
        Effect::Send {
            to: To::Children,
            body: Body::Lease(Lease { ms: self.config.lease_ms, asks, alone, told: self.known }),
            round: 0,
            epoch: self.stand.epoch,
            delivery: Delivery::Latest,
        }
    }

    fn next_tick(&self) -> Effect {
        Effect::Timer { timer: Timer::Lease, after_ms: self.tick_ms() }
    }

    fn tick_ms(&self) -> u64 {
        (self.config.lease_ms / Self::TICKS).max(1)
    }

    /// The next number of its own: even ones are the owner's, odd ones its standby's.
    fn next_epoch(&self) -> Epoch {
        let next = self.stand.epoch + 1;
        if next.is_multiple_of(2) == self.config.first { next } else { next + 1 }
    }
}

/// Drops what a newer one stands for, and of what is said only once, since whoever misses it asks again, the
/// oldest. An offer, a result and the version to serve aren't said again: their newest ones stay.
fn shorten(held: &mut Vec<(u64, Effect)>, most: usize) {
    let mut newer: Vec<(u64, Effect)> = Vec::new();
    let mut stays = 0;
    for (number, effect) in std::mem::take(held).into_iter().rev() {
        let is_once = match &effect {
            Effect::Send { delivery, .. } => *delivery == Delivery::Volatile,
            Effect::SendChunks { .. } => true,
            _ => false,
        };
        if is_once {
            newer.push((number, effect));
        } else if !newer.iter().any(|(_, newer)| stands_for(newer, &effect)) {
            stays += 1;
            newer.push((number, effect));
        }
    }
    let mut room = most.saturating_sub(stays);
    newer.retain(|(_, effect)| match effect {
        Effect::SendChunks { .. } | Effect::Send { delivery: Delivery::Volatile, .. } => {
            let fits = room > 0;
            room = room.saturating_sub(1);
            fits
        }
        _ => true,
    });
    newer.reverse();
    *held = newer;
}

/// Whether nothing is lost where only the newer one of two is said.
fn stands_for(newer: &Effect, older: &Effect) -> bool {
    match (newer, older) {
        (
            Effect::Send { to, body, delivery: Delivery::Latest, .. },
            Effect::Send { to: to_too, body: older, delivery: Delivery::Latest, .. },
        ) => to == to_too && body.kind() == older.kind(),
        (Effect::Apply { .. }, Effect::Apply { .. }) | (Effect::Republish, Effect::Republish) => {
            true
        }
        _ => false,
    }
}

fn nothing() -> Place {
    Place::Following { incoming: None, ticks_left: 0 }
}
