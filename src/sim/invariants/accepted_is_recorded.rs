//! A receipt says what the ledger says, and leaves after it (G1), as long as the owner remembers the round.

use super::super::broken::Broken;
use super::super::node::Node;
use super::super::nodes::{ByNode, Place};
use super::lately::Lately;
use crate::ids::{RoundNo, UpdateId};
use crate::ledger::Event;
use crate::protocol::{Effect, Round};
use crate::wire::Verdict;

pub(crate) const NAME: &str = "accepted_is_recorded";

/// What each owner's ledger says of the updates of its last rounds.
#[derive(Debug, Default)]
pub(crate) struct AcceptedIsRecorded {
    recorded: ByNode<Lately<UpdateId, Verdict>>,
}

impl AcceptedIsRecorded {
    pub(crate) fn committed(&mut self, at: Place, effects: &[Effect]) {
        for effect in effects {
            let (round, update, verdict) = match effect {
                Effect::Record(Event::Accept { update, round, .. }) => {
                    (*round, *update, Verdict::Accepted)
                }
                Effect::Record(Event::Late { update, round, .. }) => {
                    (*round, *update, Verdict::Late)
                }
                _ => continue,
            };
            self.recorded.at(at).put(round, update, verdict);
        }
    }

    pub(crate) fn receipt(
        &mut self,
        node: &Node,
        at: Place,
        number: RoundNo,
        update: UpdateId,
        verdict: &Verdict,
    ) -> Result<(), Broken> {
        let wrong = |what: String| Err(Broken::new(NAME, format!("{} {what}", node.id)));
        match (self.recorded.at(at).get(&update), verdict) {
            (Some((_, recorded)), said) if recorded == said => Ok(()),
            (None, Verdict::Refused(_)) => Ok(()),
            (None, said) => wrong(format!("says {said:?} to {update}, its ledger doesn't")),
            // Of a round that the owner has forgotten: it can't know any more.
            (Some((round, _)), Verdict::Refused(_)) if number >= round + Round::MEMORY as u64 => {
                Ok(())
            }
            (Some((_, recorded)), said) => {
                wrong(format!("says {said:?} to {update}, its ledger {recorded:?}"))
            }
        }
    }
}
