//! An update is recorded once. Each (offer, sender) counts at most once in all sets that an owner closed (G2), and nobody
//! counts who didn't send.

use std::collections::VecDeque;

use super::super::broken::Broken;
use super::super::nodes::{ByNode, Nodes, Place};
use super::lately::Lately;
use crate::ids::{Digest, UpdateId};
use crate::ledger::Event;
use crate::protocol::{CombineJob, Delivery, Effect, Member, Round, To};
use crate::wire::Body;

pub(crate) const NAME: &str = "counted_once";

/// What each node contributed, and what each owner has counted.
#[derive(Debug, Default)]
pub(crate) struct CountedOnce {
    /// The last ones of each sender to its parent, and to its second edge, with their offers. While one of the two is
    /// away, many may go to the other.
    sent: ByNode<[VecDeque<(UpdateId, Digest)>; 2]>,
    recorded: ByNode<Lately<UpdateId, ()>>,
    /// Sender and offer.
    counted: ByNode<Lately<(Place, Digest), ()>>,
    /// All that ever counted: owner, sender, offer.
    #[cfg(test)]
    ever: Vec<(Place, Place, Digest)>,
}

impl CountedOnce {
    /// Contributions of a sender to one owner that are remembered: more than an owner remembers offers.
    const SENT: usize = Round::MEMORY + 8;

    /// Whether an owner has counted what a sender made of an offer.
    #[cfg(test)]
    pub(crate) fn has_counted(&self, at: Place, sender: Place, offer: Digest) -> bool {
        self.ever.contains(&(at, sender, offer))
    }

    /// The offer that a sender's contribution is for, as long as it is remembered.
    pub(super) fn offer_of(&self, sender: Place, update: UpdateId) -> Option<Digest> {
        let mut sent = self.sent.get(sender)?.iter().flat_map(|sent| sent.iter().rev());
        sent.find(|(named, _)| *named == update).map(|(_, offer)| *offer)
    }

    pub(crate) fn committed(
        &mut self,
        nodes: &Nodes,
        at: Place,
        effects: &[Effect],
        job: Option<&CombineJob>,
    ) -> Result<(), Broken> {
        let node = nodes.at(at);
        let mut round = None;
        for effect in effects {
            if let Effect::Record(Event::Late { update, sender, .. }) = effect
                && *sender == node.id
            {
                // A relay's own work, learned while it was alone: its one contribution under this name.
                self.has_sent(at, 0, *update, Digest::of(&update.0));
            }
            match effect {
                Effect::Send {
                    to,
                    body: Body::Contribution(contribution),
                    delivery: Delivery::UntilSettled(key),
                    ..
                } => {
                    let update = key.trim_start_matches(Member::SUMMARY).parse();
                    let update = update.map_err(|_| {
                        Broken::new(NAME, format!("{}: no update has the name {key}", node.id))
                    })?;
                    let owner = usize::from(matches!(to, To::Standby(_)));
                    self.has_sent(at, owner, update, contribution.offer);
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
            let sender = nodes.find(&input.sender);
            let offer = sender.and_then(|sender| self.offer_of(sender, input.update));
            let (Some(sender), Some(offer)) = (sender, offer) else {
                let what = format!("{} counts {} that nobody sent", node.id, input.update);
                return Err(Broken::new(NAME, what));
            };
            #[cfg(test)]
            self.ever.push((at, sender, offer));
            // What a combination failed with comes back as it was.
            if self.counted.at(at).put(round, (sender, offer), ()).is_some() && input.failed == 0 {
                let what = format!("{} counts {} twice for one offer", node.id, input.sender);
                return Err(Broken::new(NAME, what));
            }
        }
        Ok(())
    }

    fn has_sent(&mut self, sender: Place, owner: usize, update: UpdateId, offer: Digest) {
        let Some(sent) = self.sent.at(sender).get_mut(owner) else { return };
        sent.push_back((update, offer));
        if sent.len() > Self::SENT {
            sent.pop_front();
        }
    }
}
