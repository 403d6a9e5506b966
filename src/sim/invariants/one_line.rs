//! A cloud and its standby are one to everybody else: each version has one result, each contribution one
//! receipt, and what has a receipt counts once in the line of versions or waits (G1 to G4 over both).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::broken::Broken;
use super::super::nodes::{Nodes, Place};
use super::super::world::World;
use super::counted_once::CountedOnce;
use super::lately::Lately;
use crate::ids::{Digest, NodeId, RoundNo, UpdateId, Version};
use crate::protocol::{CombineInput, CombineJob, Round};
use crate::store::Store;
use crate::wire::{Receipt, Result as RoundResult, Verdict, decode};

pub(crate) const NAME: &str = "one_line";

/// What the two have let out lately, as if they were one.
#[derive(Debug, Default)]
pub(crate) struct OneLine {
    /// Sets that were combined, also those that nobody ever heard of.
    closings: VecDeque<Closing>,
    /// What was said first of each of the last versions.
    results: BTreeMap<Version, Said>,
    receipts: Lately<UpdateId, Verdict>,
    counted: Lately<UpdateId, ()>,
    works: Lately<(NodeId, Digest), ()>,
    /// What has a receipt and is in no result so far.
    owed: BTreeSet<UpdateId>,
}

#[derive(Debug, PartialEq, Eq)]
struct Closing {
    offer: Digest,
    set: Vec<(UpdateId, NodeId)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    offer: Digest,
    adapter: Digest,
    contributors: u32,
    contributor_set: Digest,
}

impl OneLine {
    /// Sets that are remembered: a round may be closed anew by each that comes to own it.
    const CLOSINGS: usize = 256;
    const VERSIONS: usize = Round::MEMORY + 4;

    /// A step of one of the two was committed.
    pub(crate) fn committed(&mut self, job: Option<&CombineJob>) {
        let Some(job) = job else { return };
        let set = job.inputs.iter().map(|input| (input.update, input.sender.clone())).collect();
        let closing = Closing { offer: job.offer, set };
        if !self.closings.contains(&closing) {
            self.closings.push_back(closing);
        }
        if self.closings.len() > Self::CLOSINGS {
            self.closings.pop_front();
        }
    }

    /// One of the two says a result, in its round `number`.
    ///
    /// # Errors
    /// [`Broken`] when the version has another one, or one of its parts counts already.
    pub(crate) fn result(
        &mut self,
        number: RoundNo,
        result: &RoundResult,
        nodes: &Nodes,
        sent: &CountedOnce,
    ) -> Result<(), Broken> {
        let wrong = |what: String| Err(Broken::new(NAME, what));
        let (version, contributors) = (result.version, result.contributors);
        let (adapter, contributor_set) = (result.adapter.sha256(), result.contributor_set);
        let said = Said { offer: result.offer, adapter, contributors, contributor_set };
        match self.results.get(&version) {
            Some(first) if *first == said => return Ok(()),
            Some(_) => return wrong(format!("version {version} has two results")),
            None => {}
        }
        if self.results.first_key_value().is_some_and(|(oldest, _)| version < *oldest) {
            return Ok(()); // of a version that was forgotten
        }
        self.results.insert(version, said);
        if self.results.len() > Self::VERSIONS {
            self.results.pop_first();
        }
        let Some(closing) = self.closings.iter().find(|closing| closing.is_behind(&said)) else {
            return wrong(format!("version {version} is of no set"));
        };
        for (update, sender) in &closing.set {
            let place = nodes.find(sender);
            let Some(offer) = place.and_then(|sender| sent.offer_of(sender, *update)) else {
                return wrong(format!("version {version} counts {update} that nobody sent"));
            };
            if self.counted.put(number, *update, ()).is_some() {
                return wrong(format!("{update} counts twice"));
            }
            if self.works.put(number, (sender.clone(), offer), ()).is_some() {
                return wrong(format!("{sender} counts twice for one offer"));
            }
            self.owed.remove(update);
        }
        Ok(())
    }

    /// One of the two says a receipt, in its round `number`.
    ///
    /// # Errors
    /// [`Broken`] when the contribution has another one.
    pub(crate) fn receipt(&mut self, number: RoundNo, receipt: &Receipt) -> Result<(), Broken> {
        let (update, verdict) = (receipt.update, &receipt.verdict);
        let wrong = |what: String| Err(Broken::new(NAME, what));
        let before = self.receipts.get(&update);
        if let Verdict::Refused(_) = verdict {
            return match before {
                // Of a round that the owner has forgotten: it can't know any more.
                Some((round, _)) if number < round + Round::MEMORY as u64 => {
                    wrong(format!("{update} is refused after its receipt"))
                }
                _ => Ok(()),
            };
        }
        match before {
            Some((_, first)) if first != verdict => wrong(format!("{update} has two receipts")),
            Some(_) => Ok(()),
            None => {
                self.receipts.put(number, update, verdict.clone());
                if self.counted.get(&update).is_none() {
                    self.owed.insert(update);
                }
                Ok(())
            }
        }
    }
}

impl Closing {
    fn is_behind(&self, said: &Said) -> bool {
        // As a round does it: over the ids in the order of the set.
        let ids: Vec<u8> = self.set.iter().flat_map(|(update, _)| update.0).collect();
        self.offer == said.offer
            && u32::try_from(self.set.len()).is_ok_and(|len| len == said.contributors)
            && Digest::of(&ids) == said.contributor_set
    }
}

/// At the end of a run: what has a receipt and is in no result waits at `owner`, which has the rounds then.
///
/// # Errors
/// [`Broken`]: something is lost, or counts and waits.
pub(crate) fn check(world: &World, owner: Place) -> Result<(), Broken> {
    let wrong = |what: String| Err(Broken::new(NAME, what));
    let line = &world.invariants.one_line;
    let owner = world.nodes.at(owner);
    let mut waits = BTreeSet::new();
    for prefix in ["round/accepted/", "round/late/"] {
        for (key, value) in owner.store.state(prefix)? {
            let input: CombineInput = decode(&value, 1 << 20)
                .map_err(|e| Broken::new(NAME, format!("{}: {key}: {e}", owner.id)))?;
            let update = input.update;
            if line.counted.get(&update).is_some() || !waits.insert(update) {
                return wrong(format!("{update} counts, and waits to be counted"));
            }
        }
    }
    match line.owed.difference(&waits).next() {
        Some(update) => wrong(format!("{update} has a receipt and is lost")),
        None => Ok(()),
    }
}
