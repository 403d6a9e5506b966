//! One offer has one set, and one set one outcome, whatever the order in which its parts came (G3, G5).

use std::collections::BTreeMap;

use super::super::broken::Broken;
use super::super::node::Node;
use super::super::nodes::{ByNode, Place};
use super::lately::Lately;
use super::set_of;
use crate::ids::{Digest, RoundNo, UpdateId};
use crate::ledger::Event;
use crate::protocol::{CombineJob, Effect};

pub(crate) const NAME: &str = "order_free";

/// Sets and outcomes.
#[derive(Debug, Default)]
pub(crate) struct OrderFree {
    /// Sets that an owner closed, by offer.
    closed: ByNode<Lately<Digest, Vec<UpdateId>>>,
    /// Offer and set of an owner's rounds.
    rounds: ByNode<Lately<RoundNo, (Digest, Digest)>>,
    /// Outcomes by offer and set.
    pub(crate) outcomes: BTreeMap<(Digest, Digest), Digest>,
}

impl OrderFree {
    pub(crate) fn committed(
        &mut self,
        node: &Node,
        at: Place,
        effects: &[Effect],
        job: Option<&CombineJob>,
    ) -> Result<(), Broken> {
        let wrong = |what: String| Err(Broken::new(NAME, format!("{}: {what}", node.id)));
        for effect in effects {
            match effect {
                Effect::Record(Event::RoundClose { round, set, .. }) => {
                    let Some(job) = job else {
                        return wrong(format!("round {round} closes and isn't combined"));
                    };
                    self.closed.at(at).put(*round, job.offer, set_of(job));
                    self.rounds.at(at).put(*round, *round, (job.offer, *set));
                }
                Effect::Record(Event::RoundCommit { round, result, .. }) => {
                    let Some((_, key)) = self.rounds.at(at).get(round) else {
                        return wrong(format!("round {round} has an outcome and no set"));
                    };
                    if *self.outcomes.entry(*key).or_insert(*result) != *result {
                        return wrong(format!("round {round} has two outcomes"));
                    }
                }
                _ => {}
            }
        }
        let Some(job) = job else { return Ok(()) };
        match self.closed.at(at).get(&job.offer) {
            Some((_, set)) if *set == set_of(job) => Ok(()),
            Some(_) => wrong(format!("the set of {} has changed", job.offer)),
            None => wrong(format!("{} is combined and was never closed", job.offer)),
        }
    }

    /// Sets of an owner's last rounds.
    #[cfg(test)]
    pub(crate) fn sets(&self, at: Place) -> Vec<&Vec<UpdateId>> {
        self.closed.get(at).map(Lately::values).unwrap_or_default()
    }
}
