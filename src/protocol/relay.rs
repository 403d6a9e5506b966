//! The relay: a [`Round`] for its devices whose outcome is its contribution as a [`Member`] of its
//! parent's round; the parent's result flows down the same way.
//!
//! ```text
//!   cloud:  Round ---offer--->  Member ---opens---> Round ---offer---> Member   :device
//!                 <-contribution-      <--outcome--       <-contribution-
//!                 ---result--->        ---adopt--->       ---result-->
//! ```
//! Called by the relay's actor.

use super::effect::{Effect, Input, Timer};
use super::member::Member;
use super::round::{Round, RoundView};
use crate::ids::{Digest, NodeId, Version};
use crate::time::Now;

/// What only a relay has to know.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Its parent.
    pub parent: NodeId,
    /// The inner deadline is the outer one less this, but at least half of it, so that the outcome is
    /// there in time.
    pub margin_ms: u64,
}

/// A relay. See the module.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    member: Member,
    round: Round,
    /// Outer offer that the inner round was opened for last.
    serving: Option<Digest>,
}

impl Relay {
    /// Puts the two halves together; each was built from its own part of the store.
    pub fn new(config: RelayConfig, member: Member, round: Round) -> Self {
        let serving = round.serving();
        Self { config, member, round, serving }
    }

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let effects = match input {
            Input::Message(message) if *message.sender() == self.config.parent => {
                self.member.step(now, Input::Message(message))
            }
            Input::Timer(Timer::Resync) | Input::Worked { .. } => self.member.step(now, input),
            Input::Message(_) | Input::Timer(_) | Input::Combined { .. } => {
                self.round.step(now, input)
            }
            Input::Start | Input::Pause(_) | Input::Fetched { .. } => {
                let mut effects = self.round.step(now, input.clone());
                effects.extend(self.member.step(now, input));
                effects
            }
            // A relay's rounds are its parent's to start.
            Input::StartRound => vec![Effect::Count("not_for_a_relay")],
        };
        self.join(now, effects)
    }

    /// The inner round, as seen from outside.
    pub fn view(&self) -> RoundView {
        self.round.view()
    }

    /// The version that this node has.
    pub fn version(&self) -> Version {
        self.member.version()
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> std::collections::BTreeSet<Digest> {
        let mut keep = self.member.blobs();
        keep.extend(self.round.blobs());
        keep
    }

    /// Carries what one half says over to the other, in the same step: one transaction.
    fn join(&mut self, now: Now, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        for effect in effects {
            match effect {
                Effect::Contribute { outer, work } => {
                    let more = self.member.step(now, Input::Worked { offer: outer, work });
                    out.extend(self.join(now, more));
                }
                Effect::PassOn(result) => self.round.adopt(result, &mut out),
                other => out.push(other),
            }
        }
        self.open_inner(&mut out);
        out
    }

    /// Opens the inner round as soon as the member has an outer offer to work on.
    fn open_inner(&mut self, out: &mut Vec<Effect>) {
        let Some((digest, offer)) = self.member.working_on() else { return };
        if self.serving == Some(digest) {
            return;
        }
        self.serving = Some(digest);
        let deadline_ms = 
            offer.deadline_ms.saturating_sub(self.config.margin_ms).max(offer.deadline_ms / 2).max(1);
        self.round.set_plan(offer.plan.clone());
        let (version, adapter) = (offer.version, offer.adapter.clone());
        self.round.take(version, adapter, offer.class_targets.clone(), out);
        self.round.open(Some(digest), deadline_ms, out);
    }
}
