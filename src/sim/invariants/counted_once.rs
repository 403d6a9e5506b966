//! An update is recorded once. Each (offer, sender) counts at most once in all sets that an owner closed (G2), and nobody
//! counts who didn't send.

use std::collections::{BTreeMap, VecDeque};

use super::super::broken::Broken;
use super::super::node::Node;
use super::super::nodes::{ByNode, Place};
use super::lately::Lately;
use crate::ids::{Digest, NodeId, UpdateId};
use crate::ledger::Event;
use crate::protocol::{CombineJob, Delivery, Effect, Member, Round};
use crate::wire::Body;

pub(crate) const NAME: &str = "counted_once";

/// What each node contributed, and what each owner has counted.
#[derive(Debug, Default)]
pub(crate) struct CountedOnce {
    /// The last ones of each sender, with their offers.
    sent: BTreeMap<NodeId, VecDeque<(UpdateId, Digest)>>,
    recorded: ByNode<Lately<UpdateId, ()>>,
    counted: ByNode<Lately<(NodeId, Digest), ()>>,
    /// All that ever counted: place, sender, offer.
    #[cfg(test)]
    ever: Vec<(Place, NodeId, Digest)>,
}

impl CountedOnce {
    /// Contributions of a sender that are remembered: more than an owner remembers offers.
    const SENT: usize = Round::MEMORY + 8;

    /// Whether an owner has counted what a sender made of an offer.
    #[cfg(test)]
    pub(crate) fn has_counted(&self, at: Place, sender: &str, offer: Digest) -> bool {
        self.ever
            .iter()
            .any(|(place, by, of)| *place == at && by.as_str() == sender && *of == offer)
    }

    /// The offer that a sender's contribution is for, as long as it is remembered.
    pub(super) fn offer_of(&self, sender: &NodeId, update: UpdateId) -> Option<Digest> {
        let sent = self.sent.get(sender)?;
        sent.iter().rev().find(|(named, _)| *named == update).map(|(_, offer)| *offer)
    }

    pub(crate) fn committed(
        &mut self,
        node: &Node,
        at: Place,
        effects: &[Effect],
        job: Option<&CombineJob>,
    ) -> Result<(), Broken> {
        let mut round = None;
        for effect in effects {
            if let Effect::Record(Event::Late { update, sender, .. }) = effect
                && *sender == node.id
            {
                // A relay's own work, learned while it was alone: its one contribution under this name.
                let sent = self.sent.entry(node.id.clone()).or_default();
                sent.push_back((*update, Digest::of(&update.0)));
                if sent.len() > Self::SENT {
                    sent.pop_front();
                }
            }
            match effect {
                Effect::Send {
                    body: Body::Contribution(contribution),
                    delivery: Delivery::UntilSettled(key),
                    ..
                } => {
                    let update = key.trim_start_matches(Member::SUMMARY).parse();
                    let update = update.map_err(|_| {
                        Broken::new(NAME, format!("{}: no update has the name {key}", node.id))
                    })?;
                    let sent = self.sent.entry(node.id.clone()).or_default();
                    sent.push_back((update, contribution.offer));
                    if sent.len() > Self::SENT {
                        sent.pop_front();
                    }
                }
                Effect::Record(
                    Event::Accept { update, round, .. } | Event::Late { update, round, .. },
                ) if self.recorded.at(at).put(*round, *update, ()).is_some() => {
                    let what = format!("{} records {update} twice", node.id);
                    return Err(Broken::new(NAME, what));
                }
                Effect::Record(Event::RoundClose { round: closed, .. }) => round = Some(*closed),
                _ => {}
            }
        }
        let (Some(job), Some(round)) = (job, round) else { return Ok(()) };
        for input in &job.inputs {
            let Some(offer) = self.offer_of(&input.sender, input.update) else {
                let what = format!("{} counts {} that nobody sent", node.id, input.update);
                return Err(Broken::new(NAME, what));
            };
            let key = (input.sender.clone(), offer);
            #[cfg(test)]
            self.ever.push((at, input.sender.clone(), offer));
            // What a combination failed with comes back as it was.
            if self.counted.at(at).put(round, key, ()).is_some() && input.failed == 0 {
                let what = format!("{} counts {} twice for one offer", node.id, input.sender);
                return Err(Broken::new(NAME, what));
            }
        }
        Ok(())
    }
}
