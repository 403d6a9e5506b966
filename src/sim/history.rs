//! What a run has shown so far, as the invariants need it. Fed by committed steps only.

use std::collections::{BTreeMap, BTreeSet};

use super::invariants::one_line::OneLine;
use crate::ids::{Digest, NodeId, RoundNo, UpdateId, Version};
use crate::ledger::Event;
use crate::protocol::{CombineJob, Delivery, Effect, Job, Member};
use crate::wire::{Body, Receipt, Verdict};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What each contribution is: its sender and its offer.
    pub(crate) contributions: BTreeMap<UpdateId, (NodeId, Digest)>,
    /// Updates that an owner's ledger says are on disk.
    pub(crate) recorded: BTreeMap<NodeId, BTreeSet<UpdateId>>,
    /// Receipts that left an owner, the first of each update.
    pub(crate) promised: BTreeMap<NodeId, BTreeMap<UpdateId, Verdict>>,
    /// Sets that an owner closed, by offer.
    pub(crate) closed: BTreeMap<NodeId, BTreeMap<Digest, Vec<UpdateId>>>,
    /// Offers and sets by owner and round.
    rounds: BTreeMap<(NodeId, RoundNo), (Digest, Digest)>,
    /// Outcomes by offer and set.
    pub(crate) outcomes: BTreeMap<(Digest, Digest), Digest>,
    /// Versions in the order in which a node applied them.
    pub(crate) applied: BTreeMap<NodeId, Vec<(Version, Digest)>>,
    /// What an owner and its standby have said, as if they were one.
    pub(crate) pair: OneLine,
    /// What was seen to be wrong on the way.
    pub(crate) wrong: Vec<String>,
}

impl History {
    /// A step of `node` was committed.
    pub(crate) fn committed(&mut self, node: &NodeId, effects: &[Effect]) {
        let job = effects.iter().find_map(|effect| match effect {
            Effect::Job(Job::Combine(job)) => Some(job),
            _ => None,
        });
        for effect in effects {
            match effect {
                Effect::Record(event) => self.event(node, event, job),
                Effect::Send {
                    body: Body::Contribution(contribution),
                    delivery: Delivery::UntilSettled(key),
                    ..
                } => {
                    let known = (node.clone(), contribution.offer);
                    let update = key.trim_start_matches(Member::SUMMARY).parse().unwrap();
                    self.contributions.insert(update, known);
                }
                Effect::Apply { version, adapter } => {
                    self.applied.entry(node.clone()).or_default().push((*version, *adapter));
                }
                Effect::Fatal(what) => self.wrong.push(format!("{node}: {what}")),
                _ => {}
            }
        }
        if let Some(job) = job {
            let set: Vec<UpdateId> = job.inputs.iter().map(|input| input.update).collect();
            let closed = self.closed.entry(node.clone()).or_default();
            if *closed.entry(job.offer).or_insert_with(|| set.clone()) != set {
                self.wrong.push(format!("{node}: the set of {} has changed", job.offer));
            }
        }
    }

    /// A receipt left `node`.
    pub(crate) fn receipt(&mut self, node: &NodeId, receipt: &Receipt) {
        if matches!(receipt.verdict, Verdict::Refused(_)) {
            let promised = self.promised.get(node).and_then(|p| p.get(&receipt.update));
            if promised.is_some() {
                self.wrong.push(format!("{node}: refuses {} after its receipt", receipt.update));
            }
            return;
        }
        let promised = self.promised.entry(node.clone()).or_default();
        let first = promised.entry(receipt.update).or_insert_with(|| receipt.verdict.clone());
        if *first != receipt.verdict {
            self.wrong.push(format!("{node}: another receipt for {}", receipt.update));
        }
    }

    /// A step of an owner with a standby, or of that, was committed. What it does before the other one has
    /// it counts for nothing, so its ledger isn't looked at.
    pub(crate) fn committed_by_pair(&mut self, node: &NodeId, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Job(Job::Combine(job)) => {
                    let set = job.inputs.iter().map(|input| input.update).collect();
                    self.pair.closings.push((job.offer, set));
                }
                Effect::Apply { version, adapter } => {
                    self.applied.entry(node.clone()).or_default().push((*version, *adapter));
                }
                Effect::Fatal(what) => self.wrong.push(format!("{node}: {what}")),
                _ => {}
            }
        }
    }

    /// Something left an owner with a standby, or that.
    pub(crate) fn said_by_pair(&mut self, node: &NodeId, body: &Body) {
        let wrong = match body {
            Body::Receipt(receipt) => self.pair.receipt(receipt),
            Body::Result(result) => self.pair.result(result),
            _ => None,
        };
        self.wrong.extend(wrong.map(|what| format!("{node}: {what}")));
    }

    fn event(&mut self, node: &NodeId, event: &Event, job: Option<&CombineJob>) {
        match event {
            Event::Accept { update, .. } | Event::Late { update, .. } => {
                let is_new = self.recorded.entry(node.clone()).or_default().insert(*update);
                let twice = (!is_new).then(|| format!("{node}: records {update} twice"));
                self.wrong.extend(twice);
            }
            Event::RoundClose { round, set, .. } => {
                let offer = job.expect("a round closes with its combination").offer;
                self.rounds.insert((node.clone(), *round), (offer, *set));
            }
            Event::RoundCommit { round, result, .. } => {
                let key = self.rounds[&(node.clone(), *round)];
                if *self.outcomes.entry(key).or_insert(*result) != *result {
                    self.wrong.push(format!("{node}: round {round} has two outcomes"));
                }
            }
            _ => {}
        }
    }
}
