//! Rollouts on one node, beside its machine and its slots: the [`Steward`] of a site or of all of them, the [`Deputy`] of a cloud
//! that is one, and the [`Follower`] of whoever serves what is assigned. An edge that answers follows itself.
//!
//! Called by `actors/role.rs`, which gives each input first to [`Rollouts::takes`] and shows what came of the others
//! to [`Rollouts::behind`], in the same step: one transaction.

use std::collections::BTreeSet;

use super::deputy::Deputy;
use super::effect::{Delivery, Effect, Input, Timer, To};
use super::follower::Follower;
use super::rollout::Refusal;
use super::slots::Slots;
use super::steward::{RolloutOrder, Steward, StewardView};
use crate::ids::{Digest, NodeId};
use crate::time::Now;
use crate::wire::{Body, Evidence, Get, Tally, Wanted};

/// See the module. The default takes part in none.
#[derive(Debug, Default)]
pub struct Rollouts {
    me: Option<NodeId>,
    leads: Leads,
    follower: Option<Follower>,
}

/// What a node says to others about who serves what.
#[derive(Debug, Default)]
pub enum Leads {
    /// Nothing.
    #[default]
    Nobody,
    /// What it decides itself.
    Steward(Steward),
    /// What its parent decides.
    Deputy(Deputy),
}

impl Rollouts {
    /// Rollouts of the node `me`.
    pub fn new(me: NodeId, leads: Leads, follower: Option<Follower>) -> Self {
        Self { me: Some(me), leads, follower }
    }

    /// Takes an input that is about rollouts; gives others back.
    ///
    /// # Errors
    /// The input, for the machine.
    #[expect(clippy::result_large_err, reason = "an input lives for one step")]
    pub fn takes(
        &mut self,
        now: Now,
        slots: &mut Slots,
        input: Input,
    ) -> Result<Vec<Effect>, Input> {
        let effects = match &input {
            Input::Message(message) => match (message.body(), &mut self.leads) {
                (Body::Assignment(told), Leads::Deputy(deputy))
                    if deputy.steward() == message.sender() =>
                {
                    deputy.assigned(now, told)
                }
                (Body::Assignment(told), _) => match &mut self.follower {
                    Some(follower) if follower.steward() == message.sender() => {
                        follower.assigned(slots, told)
                    }
                    _ => vec![Effect::Count("assignment_not_followed")],
                },
                (Body::Evidence(evidence), Leads::Steward(steward)) => {
                    steward.evidence(now, message.sender(), evidence)
                }
                (Body::Evidence(evidence), Leads::Deputy(deputy)) => {
                    deputy.evidence(message.sender(), evidence)
                }
                (Body::SiteEvidence(evidence), Leads::Steward(steward)) => {
                    steward.site_evidence(now, message.sender(), evidence)
                }
                (Body::Evidence(_) | Body::SiteEvidence(_), _) => vec![Effect::Count("no_steward")],
                (Body::Get(Get { wanted }), leads) => {
                    match leads.chunks(message.sender(), wanted) {
                        Some(chunks) => vec![chunks],
                        None => return Err(input),
                    }
                }
                _ => return Err(input),
            },
            Input::Timer(Timer::Steward) => match &mut self.leads {
                Leads::Steward(steward) => steward.tick(now),
                Leads::Deputy(deputy) => deputy.tick(now),
                Leads::Nobody => Vec::new(),
            },
            Input::Timer(Timer::Follow) => {
                self.follower.as_mut().map(|follower| follower.tick(slots)).unwrap_or_default()
            }
            _ => return Err(input),
        };
        Ok(self.settled(now, slots, effects))
    }

    /// What follows of a machine's effects; they come first in what is given back. `starts` with the node.
    pub fn behind(
        &mut self,
        now: Now,
        slots: &mut Slots,
        starts: bool,
        effects: Vec<Effect>,
    ) -> Vec<Effect> {
        let mut out = effects;
        let more = match &mut self.leads {
            Leads::Steward(steward) if starts => steward.start(now, &out),
            Leads::Steward(steward) => steward.watch(now, &out),
            Leads::Deputy(deputy) if starts => deputy.start(now, &out),
            Leads::Deputy(deputy) => deputy.watch(&out),
            Leads::Nobody => Vec::new(),
        };
        if let Some(follower) = &mut self.follower
            && starts
        {
            out.extend(follower.start(slots));
        }
        out.extend(self.settled(now, slots, more));
        out
    }

    /// A blob is here that may be an assigned adapter; the machine is told too.
    pub fn fetched(
        &mut self,
        now: Now,
        slots: &mut Slots,
        digest: Digest,
        bytes: &[u8],
    ) -> Vec<Effect> {
        let mut effects = match &mut self.leads {
            Leads::Deputy(deputy) => deputy.fetched(digest),
            Leads::Steward(_) | Leads::Nobody => Vec::new(),
        };
        if let Some(follower) = &mut self.follower {
            effects.extend(follower.fetched(slots, digest, bytes));
        }
        self.settled(now, slots, effects)
    }

    /// What was counted of a candidate, for the assignment of this serial.
    pub fn seen(&mut self, now: Now, slots: &mut Slots, serial: u64, tally: Tally) -> Vec<Effect> {
        let follower = self.follower.as_mut();
        let effects = follower.map(|follower| follower.seen(slots, serial, tally));
        self.settled(now, slots, effects.unwrap_or_default())
    }

    /// The slots changed by a check or an operator's word about this node.
    pub fn look(&mut self, now: Now, slots: &mut Slots) -> Vec<Effect> {
        let effects = self.follower.as_mut().map(|follower| follower.look(slots));
        self.settled(now, slots, effects.unwrap_or_default())
    }

    /// Carries out what an operator wants of a rollout; `None` where this node is no steward.
    pub fn order(
        &mut self,
        now: Now,
        slots: &mut Slots,
        by: &NodeId,
        order: RolloutOrder,
    ) -> Option<Result<Vec<Effect>, Refusal>> {
        let Leads::Steward(steward) = &mut self.leads else { return None };
        let effects = steward.order(now, by, order);
        Some(effects.map(|effects| self.settled(now, slots, effects)))
    }

    /// What may be seen of a steward from outside.
    pub fn view(&self) -> Option<StewardView> {
        match &self.leads {
            Leads::Steward(steward) => Some(steward.view()),
            Leads::Deputy(_) | Leads::Nobody => None,
        }
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep = match &self.leads {
            Leads::Steward(steward) => steward.blobs(),
            Leads::Deputy(deputy) => deputy.blobs(),
            Leads::Nobody => BTreeSet::new(),
        };
        keep.extend(self.follower.iter().flat_map(Follower::blobs));
        keep
    }

    /// Carries over what a node says to itself: its own assignments, and what it has seen itself.
    fn settled(&mut self, now: Now, slots: &mut Slots, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = effects;
        let mut from = 0;
        // A round of it may end a stage, and each plan has five at most.
        for _ in 0..8 {
            let told = out.iter().skip(from).rev().find_map(|effect| match effect {
                Effect::Send { body: Body::Assignment(told), .. } => Some(told.clone()),
                _ => None,
            });
            from = out.len();
            let leads = !matches!(self.leads, Leads::Nobody);
            if let (Some(told), true, Some(follower)) = (told, leads, &mut self.follower) {
                out.extend(follower.assigned(slots, &told));
            }
            let Some(says) = self.follower.as_mut().and_then(Follower::says) else { break };
            match (&mut self.leads, &self.me) {
                (Leads::Steward(steward), Some(me)) => out.extend(steward.evidence(now, me, &says)),
                (Leads::Deputy(deputy), Some(me)) => out.extend(deputy.evidence(me, &says)),
                _ => out.push(to_edge(says)),
            }
        }
        out
    }
}

impl Leads {
    /// Chunks of an adapter that is kept for a rollout.
    fn chunks(&self, to: &NodeId, wanted: &Wanted) -> Option<Effect> {
        match self {
            Self::Steward(steward) => steward.chunks(to, wanted),
            Self::Deputy(deputy) => deputy.chunks(to, wanted),
            Self::Nobody => None,
        }
    }
}

fn to_edge(evidence: Evidence) -> Effect {
    Effect::Send {
        to: To::Parent,
        body: Body::Evidence(evidence),
        round: 0,
        epoch: 0,
        delivery: Delivery::Volatile,
    }
}

#[cfg(test)]
#[path = "rollouts_tests.rs"]
mod tests;
