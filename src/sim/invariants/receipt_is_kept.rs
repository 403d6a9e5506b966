//! What has a receipt waits in the owner's store until a set is closed with it (G1).

use std::collections::BTreeMap;

use super::super::broken::Broken;
use super::super::node::Node;
use super::super::nodes::{ByNode, Place};
use super::lately::Lately;
use crate::ids::{RoundNo, UpdateId};
use crate::ledger::Event;
use crate::protocol::{CombineInput, CombineJob, Effect};
use crate::wire::{Verdict, decode};

pub(crate) const NAME: &str = "receipt_is_kept";

/// What waits at each owner, and what was combined in its last rounds.
#[derive(Debug, Default)]
pub(crate) struct ReceiptIsKept {
    owners: ByNode<Owner>,
}

#[derive(Debug, Default)]
struct Owner {
    /// By key of the store.
    waits: BTreeMap<String, UpdateId>,
    combined: Lately<UpdateId, ()>,
}

impl ReceiptIsKept {
    pub(crate) fn committed(
        &mut self,
        node: &Node,
        at: Place,
        effects: &[Effect],
        job: Option<&CombineJob>,
    ) -> Result<(), Broken> {
        let owner = self.owners.at(at);
        if let Some(job) = job {
            let round = effects.iter().find_map(closed);
            // Without one it is a restart, which combines again.
            for input in job.inputs.iter().filter(|_| round.is_some()) {
                owner.combined.put(round.unwrap_or_default(), input.update, ());
            }
        }
        let mut dropped = Vec::new();
        for effect in effects {
            match effect {
                Effect::Put(key, value) if is_input(key) => {
                    let input: CombineInput = decode(value, 1 << 20)
                        .map_err(|e| Broken::new(NAME, format!("{}: {key}: {e}", node.id)))?;
                    owner.waits.insert(key.to_string(), input.update);
                }
                Effect::Delete(key) if is_input(key) => dropped.extend(owner.waits.remove(&**key)),
                _ => {}
            }
        }
        match dropped.iter().find(|update| !owner.has(update)) {
            Some(update) => Err(Broken::new(NAME, format!("{} has lost {update}", node.id))),
            None => Ok(()),
        }
    }

    pub(crate) fn receipt(
        &mut self,
        node: &Node,
        at: Place,
        update: UpdateId,
        verdict: &Verdict,
    ) -> Result<(), Broken> {
        if matches!(verdict, Verdict::Refused(_)) || self.owners.at(at).has(&update) {
            return Ok(());
        }
        let what = format!("{} says {verdict:?} to {update}, and hasn't got it", node.id);
        Err(Broken::new(NAME, what))
    }
}

impl Owner {
    fn has(&self, update: &UpdateId) -> bool {
        self.combined.get(update).is_some() || self.waits.values().any(|waits| waits == update)
    }
}

fn closed(effect: &Effect) -> Option<RoundNo> {
    match effect {
        Effect::Record(Event::RoundClose { round, .. }) => Some(*round),
        _ => None,
    }
}

fn is_input(key: &str) -> bool {
    key.starts_with("round/accepted/") || key.starts_with("round/late/")
}
