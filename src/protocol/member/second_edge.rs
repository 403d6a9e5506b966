//! A device whose edge is silent takes part in the rounds of a second one, and comes home when its own is heard again.
//!
//! ```text
//!            nothing from home for `after_ms`, the second edge is heard, and home, asked again, says nothing
//!   at home -----------------------------------------------------------------------------------------------> away
//!           <-----------------------------------------------------------------------------------------------
//!                                             anything new from home
//! ```
//! The two edges are members of the same rounds above, so a device that gave to both from one version would count twice
//! there: from a version that something was given from it gives to nobody else, whether the first one has confirmed it or not.
//! What waits for the receipt of an edge goes on waiting for that edge, wherever the device is.

use serde::{Deserialize, Serialize};

use super::{Current, Last, Member, Offered, brought, needed};
use crate::ids::{Epoch, NodeId, Version};
use crate::ledger::Event;
use crate::protocol::effect::{Delivery, Effect, Timer, To};
use crate::protocol::guard::{self, Guard};
use crate::protocol::round::put;
use crate::protocol::sense;
use crate::trust::Verified;
use crate::wire::{Body, Get, Offer, Wanted};

/// Where a device goes while its edge is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondEdge {
    /// The other edge.
    pub edge: NodeId,
    /// Its own is away when nothing new came from it for so long. More than twice the time after which it is asked.
    pub after_ms: u64,
}

/// What is known of the edge that a device isn't with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Elsewhere {
    edge: NodeId,
    epoch: Epoch,
    last: Option<Last>,
}

/// Where a device is, and what it has given to whom.
#[derive(Debug, Default)]
pub(super) struct Whereabouts {
    /// It is with the second edge.
    pub(super) away: bool,
    pub(super) elsewhere: Option<Elsewhere>,
    pub(super) given: Option<Given>,
    silence: Silence,
    /// What is on disk tells of a second edge that it has no longer.
    is_outdated: bool,
}

/// How long its own edge has said nothing new.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// Not for long.
    #[default]
    None,
    /// For long; but it may be that nobody was heard.
    Long,
    /// The other edge is heard, so this one was asked once more.
    Asked,
    /// It didn't answer.
    Gone,
}

/// The newest version that something was given from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Given {
    version: Version,
    edge: NodeId,
}

impl Whereabouts {
    pub(super) const AWAY: &'static str = "member/away";
    pub(super) const ELSEWHERE: &'static str = "member/elsewhere";
    pub(super) const GIVEN: &'static str = "member/given";
    /// An edge that is there has answered by then.
    const ANSWERS_WITHIN_MS: u64 = 5_000;
}

impl Member {
    /// The second edge may be another one since the last start, or none: then it is at home.
    pub(super) fn settle_in(&mut self) {
        let second = self.config.second.as_ref().map(|second| &second.edge);
        let with = if self.whereabouts.away { Some(&self.owner) } else { self.away_edge() };
        if with.is_some_and(|with| Some(with) != second) {
            if self.whereabouts.away {
                self.swap(&self.config.parent.clone());
                self.whereabouts.away = false;
            }
            self.whereabouts.elsewhere = None;
            self.whereabouts.is_outdated = true;
        }
        if !self.whereabouts.away && self.is_second(&self.owner) {
            // Its place in the keyring is another one: what is known is of what is now the other edge.
            (self.owner, self.parent_epoch, self.last) = (self.config.parent.clone(), 0, None);
            self.whereabouts.is_outdated = true;
        }
        let second = self.config.second.as_ref().map(|second| &second.edge);
        let of_nobody =
            |active: &mut Offered| active.second.is_some() && active.second.as_ref() != second;
        self.whereabouts.is_outdated |= self.active.take_if(of_nobody).is_some();
        if self.config.second.is_some() && self.whereabouts.given.is_none() {
            // From before that was noted.
            let edge = self.config.parent.clone();
            let given = |current: &Current| Given { version: current.version, edge };
            self.whereabouts.given = self.current.as_ref().map(given);
        }
    }

    fn away_edge(&self) -> Option<&NodeId> {
        self.whereabouts.elsewhere.as_ref().map(|other| &other.edge)
    }

    /// Begins to listen for its own edge.
    pub(super) fn wait_for_home(&mut self, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.whereabouts.is_outdated) {
            self.put_whereabouts(out);
        }
        if let Some(SecondEdge { after_ms, .. }) = self.config.second {
            out.push(Effect::Timer { timer: Timer::Edge, after_ms });
        }
    }

    /// Its own edge has been silent for long, or hasn't answered.
    pub(super) fn is_left_alone(&mut self, out: &mut Vec<Effect>) {
        self.whereabouts.silence = match self.whereabouts.silence {
            Silence::None | Silence::Long => Silence::Long,
            Silence::Asked | Silence::Gone => Silence::Gone,
        };
        if !self.whereabouts.away {
            self.ask_the_other(out);
        }
    }

    /// Whether this message is of the edge that it is with; hearing it, it may go there.
    pub(super) fn goes_with(&mut self, message: &Verified, out: &mut Vec<Effect>) -> bool {
        let Some(second) = &self.config.second else { return true };
        let is_second = *message.sender() == second.edge;
        let is_with = is_second == self.whereabouts.away;
        let known = if is_with { self.parent_epoch } else { self.epoch_elsewhere() };
        // What a broker has kept may be as old as an edge's last word.
        let is_news = !message.was_retained()
            && message.epoch() >= known
            && sense::in_reach(known, message.epoch());
        let silence = self.whereabouts.silence;
        if is_news && !is_second {
            self.whereabouts.silence = Silence::None;
            self.wait_for_home(out);
        }
        if is_news && is_second && !is_with && silence == Silence::Long {
            // Somebody is heard again, so its own edge may be there as well.
            self.whereabouts.silence = Silence::Asked;
            self.ask_latest(out);
            let after_ms = Whereabouts::ANSWERS_WITHIN_MS;
            out.push(Effect::Timer { timer: Timer::Edge, after_ms });
        }
        let goes = is_news && !is_with && (!is_second || silence == Silence::Gone);
        if goes {
            let to = message.sender().clone();
            self.go(&to, is_second, out);
        }
        is_with || goes
    }

    /// Of the edge that it isn't with only what concerns something given to it counts.
    pub(super) fn heard_elsewhere(&mut self, message: &Verified, out: &mut Vec<Effect>) {
        let (known, epoch) = (self.epoch_elsewhere(), message.epoch());
        if let Body::Get(get) = message.body() {
            return self.serve(message.sender(), get, out);
        }
        let Body::Receipt(receipt) = message.body() else { return };
        if !sense::in_reach(known, epoch) {
            return out.push(Effect::Count("number_out_of_reach"));
        }
        if epoch < known && guard::stands(Guard::Epochs) {
            return out.push(Effect::Count("stale_epoch"));
        }
        if let Some(other) = self.whereabouts.elsewhere.as_mut().filter(|_| epoch > known) {
            other.epoch = epoch;
            put(Whereabouts::ELSEWHERE, &self.whereabouts.elsewhere, out);
        }
        self.receipt(message.sender(), receipt, out);
    }

    /// Asks the edge that it isn't with for its latest, so that it is heard if it is there.
    pub(super) fn ask_the_other(&self, out: &mut Vec<Effect>) {
        let Some(second) = &self.config.second else { return };
        let to = if self.whereabouts.away { &self.config.parent } else { &second.edge };
        if self.whereabouts.away || self.whereabouts.silence != Silence::None {
            out.push(Effect::Send {
                to: self.to_one_of_them(to),
                body: Body::Get(Get { wanted: Wanted::Latest }),
                round: 0,
                epoch: self.epoch_elsewhere(),
                delivery: Delivery::Volatile,
            });
        }
    }

    /// Whether something was given from this version, or a newer one, to the other edge than the one that offers it.
    pub(super) fn counts_elsewhere(&self, offer: &Offer) -> bool {
        let second = self.config.second.as_ref().filter(|_| self.whereabouts.away);
        let with = second.map_or(&self.config.parent, |second| &second.edge);
        let given = self.whereabouts.given.as_ref().filter(|_| self.config.second.is_some());
        given.is_some_and(|given| given.edge != *with && offer.version <= given.version)
            && guard::stands(Guard::Given)
    }

    /// Remembers, with the contribution itself, whom it is for.
    pub(super) fn gives(&mut self, offered: &Offered, out: &mut Vec<Effect>) -> To {
        if self.config.relay {
            return To::Parent;
        }
        // Also where it has no second edge: the keyring may name one tomorrow.
        let edge = offered.second.as_ref().unwrap_or(&self.config.parent).clone();
        self.whereabouts.given = Some(Given { version: offered.offer.version, edge });
        put(Whereabouts::GIVEN, &self.whereabouts.given, out);
        offered.second.clone().map_or(To::Parent, To::Standby)
    }

    /// The edge that made this offer.
    pub(super) fn asker_of(&self, offered: &Offered) -> To {
        match &offered.second {
            Some(edge) => To::Standby(edge.clone()),
            None if self.whereabouts.away => To::Parent,
            None => self.above(),
        }
    }

    /// What became of an offer of the edge that it is with, or of the other one.
    pub(super) fn note(&mut self, offered: &Offered, last: Last, out: &mut Vec<Effect>) {
        if offered.second.is_some() == self.whereabouts.away {
            self.last = Some(last);
            put(Self::LAST, &self.last, out);
        } else if let Some(other) = &mut self.whereabouts.elsewhere {
            other.last = Some(last);
            put(Whereabouts::ELSEWHERE, &self.whereabouts.elsewhere, out);
        }
    }

    pub(super) fn is_second(&self, node: &NodeId) -> bool {
        self.config.second.as_ref().is_some_and(|second| second.edge == *node)
    }

    fn epoch_elsewhere(&self) -> Epoch {
        self.whereabouts.elsewhere.as_ref().map_or(0, |other| other.epoch)
    }

    /// Follows the rounds of the other edge from now on. Work under way ends, for whoever asked for it.
    fn go(&mut self, to: &NodeId, away: bool, out: &mut Vec<Effect>) {
        out.push(Effect::Record(Event::Move { from: self.owner.clone(), to: to.clone() }));
        self.swap(to);
        self.whereabouts.away = away;
        let (next, result) = (self.next.take(), self.result.take());
        self.forget(next.as_ref().and_then(|next| needed(&next.offer)), out);
        self.forget(result.as_ref().and_then(|waiting| brought(&waiting.result)), out);
        self.put_whereabouts(out);
        self.ask_latest(out);
    }

    fn put_whereabouts(&self, out: &mut Vec<Effect>) {
        put(Self::EPOCH, &self.parent_epoch, out);
        put(Self::OWNER, &self.owner, out);
        put(Self::LAST, &self.last, out);
        put(Whereabouts::AWAY, &self.whereabouts.away, out);
        put(Whereabouts::ELSEWHERE, &self.whereabouts.elsewhere, out);
        put(Self::ACTIVE, &self.active, out);
    }

    /// Exchanges what is known of the edge that it was with for what is known of this one.
    fn swap(&mut self, to: &NodeId) {
        let edge = std::mem::replace(&mut self.owner, to.clone());
        let (epoch, last) = (self.parent_epoch, self.last.take());
        let other = self.whereabouts.elsewhere.replace(Elsewhere { edge, epoch, last });
        let other = other.filter(|other| other.edge == *to);
        (self.parent_epoch, self.last) = other.map_or((0, None), |other| (other.epoch, other.last));
    }
}

#[cfg(test)]
#[path = "second_edge_tests.rs"]
mod tests;
