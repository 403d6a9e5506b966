//! An owner and its standby are one to everybody else: each version has one result, each contribution one
//! receipt, and what has a receipt counts once in the line of versions or waits (G1 to G4 over both).

use std::collections::{BTreeMap, BTreeSet};

use super::super::world::{World, id};
use crate::ids::{Digest, UpdateId, Version};
use crate::protocol::CombineInput;
use crate::store::Store;
use crate::wire::{Receipt, Result as RoundResult, Verdict, decode};

/// What the two have let out.
#[derive(Debug, Default)]
pub(crate) struct OneLine {
    /// Offers and sets that were combined, also those that nobody ever heard of.
    pub(crate) closings: Vec<(Digest, Vec<UpdateId>)>,
    /// Offer, adapter, number and digest of the contributors, by version.
    results: BTreeMap<Version, (Digest, Digest, u32, Digest)>,
    receipts: BTreeMap<UpdateId, Verdict>,
}

impl OneLine {
    pub(crate) fn result(&mut self, result: &RoundResult) -> Option<String> {
        let (set, count) = (result.contributor_set, result.contributors);
        let said = (result.offer, result.adapter.sha256(), count, set);
        let first = *self.results.entry(result.version).or_insert(said);
        (first != said).then(|| format!("one_line: version {} has two results", result.version))
    }

    pub(crate) fn receipt(&mut self, receipt: &Receipt) -> Option<String> {
        let (update, verdict) = (receipt.update, receipt.verdict.clone());
        if let Verdict::Refused(_) = verdict {
            return self
                .receipts
                .contains_key(&update)
                .then(|| format!("one_line: {update} is refused after its receipt"));
        }
        let first = self.receipts.entry(update).or_insert_with(|| verdict.clone());
        (*first != verdict).then(|| format!("one_line: {update} has two receipts"))
    }
}

/// At the end of a run, where all agree on a line of versions.
///
/// # Errors
/// What is lost, or counts twice.
pub(crate) fn check(world: &World, leader: &str) -> Result<(), String> {
    let pair = &world.history.pair;
    let mut counted = BTreeMap::new();
    for (offer, _, number, set) in pair.results.values() {
        let is_it = |closing: &&(Digest, Vec<UpdateId>)| {
            closing.0 == *offer
                && closing.1.len() == usize::try_from(*number).unwrap()
                && digest_of(&closing.1) == *set
        };
        let (_, updates) =
            pair.closings.iter().find(is_it).ok_or("one_line: a result of no set")?;
        for update in updates {
            *counted.entry(*update).or_insert(0) += 1;
        }
    }
    let store = &world.nodes[&id(leader)].store;
    for prefix in ["round/accepted/", "round/late/"] {
        for (_, value) in store.state(prefix).unwrap() {
            let input: CombineInput = decode(&value, 1 << 20).unwrap();
            *counted.entry(input.update).or_insert(0) += 1;
        }
    }
    if let Some((update, times)) = counted.iter().find(|(_, times)| **times > 1) {
        return Err(format!("one_line: {update} counts {times} times"));
    }
    let by_work: BTreeSet<_> =
        counted.keys().map(|update| world.history.contributions.get(update)).collect();
    if by_work.len() != counted.len() || by_work.contains(&None) {
        return Err("one_line: a member counts twice for one offer".into());
    }
    match pair.receipts.keys().find(|update| !counted.contains_key(update)) {
        Some(update) => Err(format!("one_line: {update} has a receipt and is lost")),
        None => Ok(()),
    }
}

/// As a round does it: over the ids in the order of the set.
fn digest_of(updates: &[UpdateId]) -> Digest {
    Digest::of(&updates.iter().flat_map(|update| update.0).collect::<Vec<u8>>())
}
