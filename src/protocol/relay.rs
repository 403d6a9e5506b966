//! The relay: a [`Round`] for its devices whose outcome is its contribution as a [`Member`] of its
//! parent's round; the parent's result flows down the same way.
//!
//! ```text
//!   cloud:  Round ---offer--->  Member ---opens---> Round ---offer---> Member   :device
//!                 <-contribution-      <--outcome--       <-contribution-
//!                 ---result--->        ---adopt--->       ---result-->
//! ```
//! Where [`RelayConfig::island`] says so, a relay whose parent has been silent for long goes on alone: it opens
//! rounds of its own, whose outcome is the site's next adapter. The version stays the parent's last one, offers are
//! marked (`wire::Offer::island`), and what the site has learned by then is kept as **one** contribution, from
//! that version to now. As soon as the parent is heard again, it waits for the next inner round as late work does:
//! it is recorded, weighed by how far behind it is, and goes up with what the devices do then.
//!
//! ```text
//!   silent for `after_ms`      round of its own     ...      heard: kept for the next inner round, recorded
//!   (who died meanwhile waits only as long as an answer takes)
//! ```
//! Where the outer offer asks for cluster rounds, such rounds of its own come one after the other *for* that offer: each starts
//! from what the one before came to, and all together are one contribution, which isn't shortened to the length of one
//! round. A round that comes to nothing, or a parent that has gone on, ends them with what there is.
//!
//! Called by the relay's actor.

use std::sync::Arc;

use super::effect::{CombineInput, Effect, Input, LocalWork, Timer, Work};
use super::member::Member;
use super::round::{Round, RoundView, put};
use super::session::{BackSessions, SplitTerms};
use super::update;
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Side, Version};
use crate::time::Now;
use crate::trust::Verified;
use crate::wire::{Blob, Body, Offer, Plan, Result as RoundResult, decode};

/// What only a relay has to know.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// The inner deadline is the outer one less this, but at least half of it, so that the outcome is
    /// there in time.
    pub margin_ms: u64,
    /// Its devices train the front of a split model: what it has agreed on with them.
    pub split: Option<SplitTerms>,
    /// Bytes a chunk of big blobs.
    pub chunk_bytes: u32,
    /// How it goes on while its parent is away; off: it waits.
    pub island: Option<IslandTerms>,
}

/// How a relay goes on while its parent is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IslandTerms {
    /// Its parent is away when nothing came for so long. More than a few times the time after which a member asks.
    pub after_ms: u64,
    /// Pause between its own rounds.
    pub pause_ms: u64,
}

/// What the site has learned in rounds of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Island {
    /// The outer offer whose cluster rounds these are; none while the parent is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outer: Option<Digest>,
    /// The parent's last version.
    version: Version,
    /// Its adapter.
    since: Blob,
    /// Blob of the site's own by now.
    adapter: Digest,
    /// Rounds behind it.
    rounds: u64,
    /// Distinct examples behind the last of them.
    num_examples: u64,
    /// Devices behind the last of them.
    num_devices: u32,
    /// Steps of all of them.
    steps: u32,
    /// Loss before the first.
    loss_first: f32,
    /// Loss after the last.
    loss_last: f32,
}

/// A relay. See the module.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    member: Member,
    round: Round,
    /// Outer offer that the inner round was opened for last.
    serving: Option<Digest>,
    /// The backs of its devices' fronts.
    backs: Option<BackSessions>,
    /// The blob that came in this step: its front is cut off of it.
    at_hand: Option<(Digest, Vec<u8>)>,
    /// What was learned in rounds of its own and isn't given to a round yet.
    island: Option<Island>,
    /// The parent is away.
    alone: bool,
}

impl Relay {
    /// Key prefix of its own durable state.
    pub const PREFIX: &'static str = "relay/";
    const ISLAND: &'static str = "relay/island";
    /// An adapter that is written in the record, and its figures.
    const STATE_CAP: usize = 128 * 1_024;

    /// Puts the two halves together, each built from its own part of the store; `state` is the relay's own.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(
        config: RelayConfig,
        member: Member,
        round: Round,
        state: &[(String, Vec<u8>)],
    ) -> Result<Self, String> {
        let serving = round.serving();
        let backs = config.split.map(BackSessions::new);
        let stored = state.iter().find(|(key, _)| key == Self::ISLAND);
        let island = stored.map(|(key, value)| {
            decode(value, Self::STATE_CAP).map_err(|error| format!("{key}: {error}"))
        });
        let island = island.transpose()?;
        Ok(Self { config, member, round, serving, backs, at_hand: None, island, alone: false })
    }

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        if self.config.split.is_some() {
            self.at_hand = match &input {
                Input::Fetched { digest, bytes } => Some((*digest, bytes.clone())),
                Input::Combined { outcome: Ok(Work { update: Some(bytes), .. }), .. } => {
                    Some((Digest::of(bytes), bytes.clone()))
                }
                _ => None,
            };
        }
        let effects = match input {
            Input::Message(message) if self.member.hears(message.sender()) => {
                self.above(now, message)
            }
            Input::Timer(Timer::Island) => self.go_on_alone(),
            Input::Timer(Timer::Resync)
            | Input::Worked { .. }
            | Input::Expired(_)
            | Input::Wish(_) => self.member.step(now, input),
            Input::Message(message) if matches!(message.body(), Body::Frame(_)) => {
                self.session(&message)
            }
            Input::Back { device, run, end } => {
                let mut out = Vec::new();
                let backs = self.backs.as_mut();
                let learned = backs.and_then(|backs| backs.ended(&device, run, end, &mut out));
                if let Some(learned) = learned {
                    self.round.learned(learned, &mut out);
                }
                out
            }
            Input::Message(_)
            | Input::Timer(_)
            | Input::Combined { .. }
            | Input::Distilled { .. }
            | Input::Front { .. } => self.round.step(now, input),
            Input::Start | Input::Pause(_) | Input::Full(_) | Input::Fetched { .. } => {
                let starts = matches!(input, Input::Start);
                let mut effects = self.round.step(now, input.clone());
                effects.extend(self.member.step(now, input));
                if starts {
                    self.start(&mut effects);
                }
                effects
            }
            // A relay's rounds are its parent's to start.
            Input::StartRound => vec![Effect::Count("not_for_a_relay")],
        };
        let out = self.join(now, effects);
        self.at_hand = None;
        out
    }

    /// Something came from the parent, or from its standby.
    fn above(&mut self, now: Now, message: Verified) -> Vec<Effect> {
        let sender = message.sender().clone();
        // Who only asks for the rounds opens none: it may ask in vain.
        let asks = matches!(message.body(), Body::Lease(lease) if lease.asks);
        let (kept_by_broker, before) = (message.was_retained(), self.heard_of());
        let mut effects = self.member.step(now, Input::Message(message));
        // What a broker has kept may be as old as the owner's last word.
        let is_news = !kept_by_broker || self.heard_of() != before;
        if !asks && is_news && *self.member.owner() == sender {
            self.parent_is_there(&mut effects);
        }
        effects
    }

    /// What a device says in a split run.
    fn session(&mut self, message: &Verified) -> Vec<Effect> {
        let mut out = Vec::new();
        match (&mut self.backs, message.body()) {
            (Some(backs), Body::Frame(frame)) if self.round.has_member(message.sender()) => {
                backs.frame(self.round.open_task().as_ref(), message, frame, &mut out);
            }
            (_, _) => out.push(Effect::Count("not_for_a_relay")),
        }
        out
    }

    /// What the devices get of an adapter: all of it, or the front with the digest of the whole.
    ///
    /// `None` when its bytes aren't at hand: they are asked for, and come in a step of their own.
    fn for_devices(&self, adapter: &Blob, out: &mut Vec<Effect>) -> Option<(Blob, Option<Digest>)> {
        let Some(SplitTerms { cut, .. }) = self.config.split else {
            return Some((adapter.clone(), None));
        };
        let whole = adapter.sha256();
        let bytes = match (adapter, &self.at_hand) {
            (Blob::Inline(bytes), _) => bytes,
            (Blob::Manifest(_), Some((digest, bytes))) if *digest == whole => bytes,
            (Blob::Manifest(manifest), _) => {
                let (from, side) = (self.member.owner().clone(), Side::Up);
                out.push(Effect::Fetch { from, side, manifest: manifest.clone() });
                return None;
            }
        };
        match update::part(bytes, |name| cut.is_front(name)) {
            Ok(front) => {
                let blob = Blob::of(&front, self.config.chunk_bytes);
                out.push(Effect::SaveBlob(front));
                Some((blob, Some(whole)))
            }
            // The member has checked it already.
            Err(error) => {
                out.push(Effect::Count(error.kind()));
                None
            }
        }
    }

    /// The inner round, as seen from outside.
    pub fn view(&self) -> RoundView {
        self.round.view()
    }

    /// The version that this node has.
    pub fn version(&self) -> Version {
        self.member.version()
    }

    /// Whether its parent is away, silent for [`IslandTerms::after_ms`], or away when this node died and not heard since: its site goes on
    /// alone, if it can.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// What its rounds hold.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn held(&self) -> super::Held {
        self.round.held()
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> std::collections::BTreeSet<Digest> {
        let mut keep = self.member.blobs();
        keep.extend(self.round.blobs());
        keep.extend(self.island.iter().flat_map(|island| [island.since.sha256(), island.adapter]));
        keep
    }

    /// Carries what one half says over to the other, in the same step: one transaction.
    ///
    /// All that the one half has to say comes first: what the other answers may change the same
    /// state (the end of one inner round opens the next), and the later `Put` of a key wins.
    fn join(&mut self, now: Now, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        let mut across = Vec::new();
        for effect in effects {
            match effect {
                Effect::Contribute { .. }
                | Effect::PassOn(_)
                | Effect::Local(_)
                | Effect::WishAbove(_) => {
                    across.push(effect);
                }
                other => out.push(other),
            }
        }
        for effect in across {
            match effect {
                // What its cluster rounds have come to by then counts.
                Effect::Contribute { outer, work: Err(_) } if self.has_learned_for(&outer) => {
                    self.end_cluster(outer, &mut out);
                }
                Effect::Contribute { outer, work } => {
                    let more = self.member.step(now, Input::Worked { offer: outer, work });
                    out.extend(self.join(now, more));
                }
                Effect::WishAbove(wishes) => {
                    out.extend(self.member.step(now, Input::Wish(wishes)));
                }
                Effect::Local(work) => self.learned_alone(work, &mut out),
                Effect::PassOn(result) => {
                    if let Some((adapter, whole)) = self.for_devices(&result.adapter, &mut out) {
                        let result = RoundResult { adapter, ..Arc::unwrap_or_clone(result) };
                        self.round.adopt(result, whole, &mut out);
                    }
                }
                other => out.push(other),
            }
        }
        self.open_inner(&mut out);
        out
    }

    fn start(&mut self, out: &mut Vec<Effect>) {
        self.answer_with_own(out);
        let Some(terms) = self.config.island else { return };
        // As far as is known: it was away when this node died.
        let alone = |island: &Island| island.outer.is_none();
        self.alone = self.island.as_ref().is_some_and(alone) || self.round.alone().is_some();
        // A parent that is back by then has been asked, and has had time to answer.
        let heard_within_ms = self.member.resync_ms().saturating_mul(2);
        let after_ms =
            if self.alone { terms.after_ms.min(heard_within_ms) } else { terms.after_ms };
        out.push(Effect::Timer { timer: Timer::Island, after_ms });
    }

    /// Nothing came from the parent for long.
    fn go_on_alone(&mut self) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(terms) = self.config.island else { return out };
        if !std::mem::replace(&mut self.alone, true) {
            out.push(Effect::Count("goes_on_alone"));
        }
        let may = self.config.split.is_none()
            && self.member.working_on().is_none()
            && self.round.can_be_alone()
            && self.member.adapter().is_some()
            && self.round.view().version == self.member.version();
        if may {
            let rounds = self.island.as_ref().map_or(0, |island| island.rounds);
            self.round.open_alone(rounds + 1, &mut out);
        }
        out.push(Effect::Timer { timer: Timer::Island, after_ms: terms.pause_ms.max(1) });
        out
    }

    /// A round of its own has ended.
    fn learned_alone(&mut self, work: LocalWork, out: &mut Vec<Effect>) {
        let LocalWork { version, outer, from, adapter, num_examples, num_devices, .. } = work;
        // The next version may have come while this was combined.
        if version == self.round.view().version
            && let Some((blob, whole)) = self.for_devices(&adapter, out)
        {
            self.round.take(version, blob, whole, work.class_targets, out);
        }
        // What a split model's devices started from is the front alone.
        let from = match self.member.working_on() {
            Some((digest, offer)) if outer == Some(digest) => offer.adapter.clone(),
            _ => from,
        };
        let goes_on = |island: &mut Island| {
            let same = island.version == version && island.outer == outer;
            same && (outer.is_some() || island.adapter == from.sha256())
        };
        let before = self.island.take_if(goes_on);
        // What was learned from another start is a contribution of its own.
        self.give_to_round(out);
        let (since, rounds, steps, loss_first) = before
            .map_or((from, 0, 0, work.loss_first), |island| {
                (island.since, island.rounds, island.steps, island.loss_first)
            });
        self.island = Some(Island {
            outer,
            version,
            since,
            adapter: adapter.sha256(),
            rounds: rounds + 1,
            num_examples,
            num_devices,
            steps: work.steps.saturating_add(steps),
            loss_first,
            loss_last: work.loss_last,
        });
        put(Self::ISLAND, &self.island, out);
        self.answer_with_own(out);
        if !self.alone && outer.is_none() {
            self.give_to_round(out); // the parent came back while it was combined
        }
    }

    /// Whether cluster rounds of this outer offer have come to something.
    fn has_learned_for(&self, outer: &Digest) -> bool {
        self.island.as_ref().is_some_and(|island| island.outer.as_ref() == Some(outer))
    }

    /// The next cluster round, or the end of them.
    fn go_on_with_cluster(&mut self, out: &mut Vec<Effect>) {
        let (Some((digest, offer)), Some(island)) = (self.member.working_on(), &self.island) else {
            return;
        };
        if self.round.view().phase != "idle" {
            return;
        }
        let rounds = u64::from(offer.plan.cluster_rounds.unwrap_or(1));
        // A parent that has gone on waits for nothing more.
        if island.rounds < rounds && self.round.view().version == island.version {
            let (number, deadline_ms) = (island.rounds + 1, self.inner_deadline(offer));
            return self.round.open_cluster(digest, number, deadline_ms, out);
        }
        self.end_cluster(digest, out);
    }

    /// What its cluster rounds have come to is its contribution to this outer offer.
    fn end_cluster(&mut self, outer: Digest, out: &mut Vec<Effect>) {
        let Some(island) = self.island.take() else { return };
        out.push(Effect::Delete(Self::ISLAND.into()));
        let (since, input) = (island.since.clone(), self.own_work(&island));
        self.round.close_own(outer, since, input, out);
    }

    /// The outer deadline less the margin, dealt out among its cluster rounds.
    fn inner_deadline(&self, offer: &Offer) -> u64 {
        let before_outer = offer.deadline_ms.saturating_sub(self.config.margin_ms);
        let all = before_outer.max(offer.deadline_ms / 2);
        (all / u64::from(offer.plan.cluster_rounds.unwrap_or(1))).max(1)
    }

    /// Answers with what the site has learned, as its devices do, unless a newer version is here.
    fn answer_with_own(&self, out: &mut Vec<Effect>) {
        if let Some(Island { version, adapter, .. }) = self.island
            && version == self.member.version()
        {
            out.push(Effect::Apply { version, adapter });
        }
    }

    /// The last that it knows of its parent.
    fn heard_of(&self) -> (Option<Digest>, Version) {
        (self.member.working_on().map(|(offer, _)| offer), self.member.version())
    }

    /// Something came from the parent.
    fn parent_is_there(&mut self, out: &mut Vec<Effect>) {
        let Some(terms) = self.config.island else { return };
        out.push(Effect::Timer { timer: Timer::Island, after_ms: terms.after_ms });
        if std::mem::take(&mut self.alone) {
            out.push(Effect::Count("parent_is_back"));
        }
        if self.round.alone() == Some(false) {
            // What came for it counts in the next round.
            self.round.abandon("parent_is_back", out);
        }
        let alone = |island: &Island| island.outer.is_none();
        if self.round.alone().is_none() && self.island.as_ref().is_some_and(alone) {
            self.give_to_round(out);
        }
    }

    /// What was learned alone counts in the next inner round, as one contribution of this node. That round
    /// starts where the parent's version is, or the same work would be in it twice.
    fn give_to_round(&mut self, out: &mut Vec<Effect>) {
        let Some(island) = self.island.take() else { return };
        out.push(Effect::Delete(Self::ISLAND.into()));
        self.round.bring(self.own_work(&island), out);
        self.round.go_back_to(island.version, island.since, out);
        // Answers come from the federation's version again.
        self.member.apply(out);
    }

    /// What was learned in rounds of its own, as a contribution of this node.
    fn own_work(&self, island: &Island) -> CombineInput {
        let update = self.member.name_of(self.round.view().round, &island.adapter);
        CombineInput {
            sender: self.member.me().clone(),
            update,
            num_examples: island.num_examples,
            num_devices: island.num_devices,
            steps: island.steps,
            version: island.version,
            staleness: 0,
            failed: 0,
            loss_first: island.loss_first,
            loss_last: island.loss_last,
            risk: None,
            delta: Some(island.adapter),
            back: None,
            stacked: false,
            whole: true,
            base: island.since.sha256(),
            class_logits: None,
            knowledge: None,
        }
    }

    /// Opens the inner round as soon as the member has an outer offer to work on.
    fn open_inner(&mut self, out: &mut Vec<Effect>) {
        let Some((digest, offer)) = self.member.working_on() else { return };
        if self.has_learned_for(&digest) {
            return self.go_on_with_cluster(out);
        }
        if self.serving == Some(digest) || self.round.alone() == Some(true) {
            return; // a round of its own that combines ends first
        }
        let knowledge = offer.plan.knowledge.is_some();
        let cut = (!knowledge).then(|| self.for_devices(&offer.adapter, out));
        if cut.as_ref().is_some_and(Option::is_none) {
            return;
        }
        self.serving = Some(digest);
        let deadline_ms = self.inner_deadline(offer);
        // Relays below this one have ordinary rounds.
        let (plan, cluster) =
            (Plan { cluster_rounds: None, ..offer.plan.clone() }, offer.plan.cluster_rounds);
        self.round.set_plan(plan, out);
        let (version, targets) = (offer.version, offer.class_targets.clone());
        match cut.flatten() {
            Some((adapter, whole)) => self.round.take(version, adapter, whole, targets, out),
            None => self.round.take_knowledge(version, targets, offer.knowledge.clone(), out),
        }
        match cluster {
            Some(_) => self.round.open_cluster(digest, 1, deadline_ms, out),
            None => self.round.open(Some(digest), deadline_ms, out),
        }
    }
}

#[cfg(test)]
#[path = "relay_split_tests.rs"]
mod split_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ids::NodeId;
    use crate::protocol::effect::{CombineJob, Job};
    use crate::protocol::fixture::{
        CHUNK_BYTES, contribution, first_adapter, member_config, plan, round_config, verified,
    };
    use crate::protocol::{Owner, update};
    use crate::wire::{Answer, Blob, Body, Coding, Offer, Result as RoundResult, Verdict, encode};

    struct Bench {
        relay: Relay,
        state: BTreeMap<String, Vec<u8>>,
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn relay(state: &BTreeMap<String, Vec<u8>>) -> Relay {
        relay_with(state, None)
    }

    fn relay_with(state: &BTreeMap<String, Vec<u8>>, island: Option<IslandTerms>) -> Relay {
        let of = |prefix: &str| -> Vec<_> {
            let own = state.iter().filter(|(key, _)| key.starts_with(prefix));
            own.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let members = ["d1", "d2"].map(node).into();
        let config = round_config(Owner::Relay, &members, plan(Coding::F32));
        let round = Round::new(config, &first_adapter(4), &of(Round::PREFIX)).unwrap();
        let config = member_config(&node("edge"), &node("cloud"), true);
        let member = Member::new(config, &of(Member::PREFIX)).unwrap();
        let config =
            RelayConfig { margin_ms: 5_000, split: None, chunk_bytes: CHUNK_BYTES, island };
        Relay::new(config, member, round, &of(Relay::PREFIX)).unwrap()
    }

    impl Bench {
        fn new() -> Self {
            let state = BTreeMap::new();
            let mut bench = Self { relay: relay(&state), state };
            bench.step(Input::Start);
            bench
        }

        fn step(&mut self, input: Input) -> Vec<Effect> {
            let effects = self.relay.step(Now::default(), input);
            for effect in &effects {
                match effect {
                    Effect::Put(key, value) => {
                        drop(self.state.insert(key.to_string(), value.clone()));
                    }
                    Effect::Delete(key) => drop(self.state.remove(&**key)),
                    Effect::Contribute { .. } | Effect::PassOn(_) => panic!("stays inside"),
                    _ => {}
                }
            }
            effects
        }

        fn restart(&mut self) -> Vec<Effect> {
            self.relay = relay(&self.state);
            self.step(Input::Start)
        }

        fn hear(&mut self, from: &str, round: u64, body: Body) -> Vec<Effect> {
            self.step(Input::Message(verified(&node(from), round, 1, body)))
        }

        fn contribute(&mut self, device: &str, inner: &(Digest, Offer)) -> Vec<Effect> {
            let work = contribution(inner.0, inner.1.version, &first_adapter(4));
            let body = Body::Contribution(work.into());
            self.hear(device, inner.1.round, body)
        }
    }

    fn outer(round: u64, version: Version, deadline_ms: u64) -> Offer {
        Offer {
            island: None,
            knowledge: None,
            round,
            model: node("m"),
            base: Digest([1; 32]),
            version,
            adapter: Blob::of(&first_adapter(4), 4096),
            class_targets: None,
            plan: plan(Coding::F32),
            deadline_ms,
            outer: None,
        }
    }

    fn digest(offer: &Offer) -> Digest {
        Digest::of(&Body::Offer(offer.clone().into()).to_bytes().unwrap())
    }

    fn sent<T>(effects: &[Effect], pick: impl Fn(&Body) -> Option<T>) -> Option<T> {
        effects.iter().find_map(|effect| match effect {
            Effect::Send { body, .. } => pick(body),
            _ => None,
        })
    }

    fn inner_offer(effects: &[Effect]) -> Option<(Digest, Offer)> {
        sent(effects, |body| match body {
            Body::Offer(offer) => Some((digest(offer), Offer::clone(offer))),
            _ => None,
        })
    }

    fn decline(effects: &[Effect]) -> Option<String> {
        sent(effects, |body| match body {
            Body::Answer(Answer { accepted: false, reason, .. }) => Some(reason.clone()),
            _ => None,
        })
    }

    fn job(effects: &[Effect]) -> Option<Box<CombineJob>> {
        effects.iter().find_map(|effect| match effect {
            Effect::Job(Job::Combine(job)) => Some(job.clone()),
            _ => None,
        })
    }

    fn combined(job: &CombineJob) -> Input {
        let blob = |_: &Digest| Some(first_adapter(4));
        Input::Combined { offer: job.offer, outcome: Ok(update::combine(job, &blob).unwrap()) }
    }

    #[test]
    fn an_outer_offer_opens_an_inner_round_with_a_shorter_deadline() {
        for (deadline_ms, expected) in [(20_000, 15_000), (6_000, 3_000), (1, 1)] {
            let mut bench = Bench::new();
            let offer = outer(1, 0, deadline_ms);
            let effects = bench.hear("cloud", 1, Body::Offer(offer.clone().into()));
            let (_, inner) = inner_offer(&effects).unwrap();
            assert_eq!((inner.outer, inner.deadline_ms), (Some(digest(&offer)), expected));
            assert!(inner_offer(&bench.hear("cloud", 1, Body::Offer(offer.into()))).is_none());
        }
    }

    #[test]
    fn what_the_devices_did_is_contributed_to_the_parent_whichever_phase_it_dies_in() {
        for dies_in in ["nowhere", "open", "accepted", "closing"] {
            let mut bench = Bench::new();
            let offer = outer(1, 0, 20_000);
            let opened = bench.hear("cloud", 1, Body::Offer(offer.clone().into()));
            let mut inner = inner_offer(&opened).unwrap();
            if dies_in == "open" {
                let again = inner_offer(&bench.restart()).unwrap();
                assert_eq!(again, inner);
                inner = again;
            }
            bench.contribute("d1", &inner);
            if dies_in == "accepted" {
                bench.restart();
            }
            let closing = bench.contribute("d2", &inner);
            let mut task = job(&closing).unwrap();
            if dies_in == "closing" {
                let again = job(&bench.restart()).unwrap();
                assert_eq!(again, task);
                task = again;
            }
            let effects = bench.step(combined(&task));
            let up = sent(&effects, |body| match body {
                Body::Contribution(contribution) => Some(contribution.clone()),
                _ => None,
            })
            .unwrap();
            assert_eq!((up.offer, up.stacked), (digest(&offer), true));
            assert_eq!((up.num_devices, up.num_examples), (2, 100));
            let effects = bench.restart();
            assert!(inner_offer(&effects).is_none() && job(&effects).is_none(), "{dies_in}");
        }
    }

    #[test]
    fn an_inner_round_that_opens_as_another_ends_outlives_a_restart() {
        let mut bench = Bench::new();
        let opened = bench.hear("cloud", 1, Body::Offer(outer(1, 0, 20_000).into()));
        let inner = inner_offer(&opened).unwrap();
        bench.contribute("d1", &inner);
        bench.hear("cloud", 2, Body::Offer(outer(2, 0, 20_000).into()));
        let task = job(&bench.contribute("d2", &inner)).unwrap();
        let next = inner_offer(&bench.step(combined(&task))).unwrap();
        bench.contribute("d1", &next);
        assert_eq!(inner_offer(&bench.restart()), Some(next.clone()));
        let inputs = job(&bench.contribute("d2", &next)).unwrap().inputs;
        assert_eq!(inputs.len(), 2);
    }

    #[test]
    fn a_missed_quorum_is_declined_above_and_what_came_counts_in_the_next_round() {
        let mut bench = Bench::new();
        let offer = outer(1, 0, 20_000);
        let effects = bench.hear("cloud", 1, Body::Offer(offer.clone().into()));
        let inner = inner_offer(&effects).unwrap();
        bench.contribute("d1", &inner);
        let effects = bench.step(Input::Timer(Timer::Deadline));
        assert_eq!(decline(&effects).as_deref(), Some("no_quorum"));
        let again = bench.hear("cloud", 1, Body::Offer(offer.into()));
        assert_eq!(decline(&again).as_deref(), Some("no_quorum"), "answers may be lost");
        let effects = bench.hear("cloud", 2, Body::Offer(outer(2, 0, 20_000).into()));
        let next = inner_offer(&effects).unwrap();
        bench.contribute("d1", &next);
        let inputs = job(&bench.contribute("d2", &next)).unwrap().inputs;
        assert_eq!(inputs.len(), 3);
    }

    #[test]
    fn a_result_passes_down_also_when_no_round_was_ever_served() {
        let mut bench = Bench::new();
        let result = Body::Result(
            RoundResult {
                knowledge: None,
                offer: Digest([9; 32]),
                version: 4,
                adapter: Blob::of(&first_adapter(4), 4096),
                class_targets: None,
                contributors: 3,
                contributor_set: Digest([8; 32]),
            }
            .into(),
        );
        let effects = bench.hear("cloud", 1, result.clone());
        let passed =
            |effects: &[Effect]| sent(effects, |body| (*body == result).then_some(())).is_some();
        assert!(passed(&effects));
        assert!(passed(&bench.restart()), "sealed anew in the next epoch");
        assert_eq!(bench.relay.version(), 4);
    }

    #[test]
    fn a_straggling_device_of_a_relay_is_late_there() {
        let mut bench = Bench::new();
        let effects = bench.hear("cloud", 1, Body::Offer(outer(1, 0, 20_000).into()));
        let inner = inner_offer(&effects).unwrap();
        bench.step(Input::Timer(Timer::Deadline));
        let effects = bench.contribute("d1", &inner);
        let verdict = sent(&effects, |body| match body {
            Body::Receipt(receipt) => Some(receipt.verdict.clone()),
            _ => None,
        });
        assert_eq!(verdict, Some(Verdict::Late));
    }

    #[test]
    fn who_was_alone_when_it_died_waits_as_long_as_an_answer_takes_and_nobody_else() {
        let waits = |outer: Option<Option<Digest>>| {
            let mut state = BTreeMap::new();
            if let Some(outer) = outer {
                let island = Island {
                    outer,
                    version: 0,
                    since: Blob::of(&first_adapter(4), CHUNK_BYTES),
                    adapter: Digest::of(&first_adapter(4)),
                    rounds: 1,
                    num_examples: 9,
                    num_devices: 1,
                    steps: 1,
                    loss_first: 1.0,
                    loss_last: 0.5,
                };
                state.insert(Relay::ISLAND.to_owned(), encode(&Some(island)).unwrap());
            }
            let terms = IslandTerms { after_ms: 60_000, pause_ms: 500 };
            let effects = relay_with(&state, Some(terms)).step(Now::default(), Input::Start);
            effects.iter().find_map(|effect| match effect {
                Effect::Timer { timer: Timer::Island, after_ms } => Some(*after_ms),
                _ => None,
            })
        };
        assert_eq!(waits(None), Some(60_000), "it heard its parent to the end");
        assert_eq!(waits(Some(Some(Digest([7; 32])))), Some(60_000), "its parent's round");
        assert_eq!(waits(Some(None)), Some(10_000), "it was alone");
    }
}
