//! The network: brokers, links, and what becomes of a message on its way.

use std::sync::Arc;

use super::broken::Broken;
use super::invariants::{epochs_fence, verified_only};
use super::letter::Letter;
use super::nodes::Place;
use super::world::{Event, World};
use crate::ids::Side;
use crate::protocol::Input;

/// Ways of a message's copies in milliseconds: none, one or two.
pub(super) type Fate = [Option<u64>; 2];

impl World {
    /// A message for one node leaves another.
    pub(super) fn send(&mut self, to: Place, letter: &Arc<Letter>) {
        let from = letter.from;
        self.trace.update(&self.now_ms.to_le_bytes());
        self.trace.update(&from.0.to_le_bytes());
        self.trace.update(&to.0.to_le_bytes());
        self.trace.update(&letter.mark.0);
        self.figures.sent += 1;
        self.figures.bytes += letter.bytes as u64;
        let lapses = self.nodes.at(self.owner_of_link(from, to)).broker.lapses;
        let fate = self.fate(from, to);
        for arrival in fate.into_iter().flatten() {
            self.at(arrival, Event::Letter { to, letter: letter.clone(), lapses, kept: false });
        }
        let forged = self.scenario.faults.forged;
        if forged > 0.0
            && self.has_faults()
            && self.rng.unit() < forged
            && let Some(forgery) = self.post.forge(letter)
        {
            let delay = 1 + self.below(self.longest_way());
            let letter = Arc::new(forgery);
            self.after(delay, Event::Letter { to, letter, lapses, kept: false });
        }
    }

    /// Arrivals of a message's copies; none when it is lost.
    pub(super) fn fate(&mut self, from: Place, to: Place) -> Fate {
        let faults = self.scenario.faults;
        let on = self.has_faults();
        if !self.is_linked(from, to) || on && faults.loss > 0.0 && self.rng.unit() < faults.loss {
            self.figures.lost += 1;
            return [None, None];
        }
        let twice = on && faults.repeat > 0.0 && self.rng.unit() < faults.repeat;
        self.figures.repeated += u64::from(twice);
        [Some(self.arrival(from, to)), twice.then(|| self.arrival(from, to))]
    }

    /// Whether what was sent is there now: nobody is away, and the broker has not forgotten it.
    pub(super) fn arrives(&mut self, from: Place, to: Place, lapses: u32) -> bool {
        let kept = self.nodes.at(self.owner_of_link(from, to)).broker.lapses == lapses;
        let node = self.nodes.at(to);
        let arrives = kept && node.away == 0 && node.machine.is_some();
        *(if arrives { &mut self.figures.delivered } else { &mut self.figures.lost }) += 1;
        arrives
    }

    pub(super) fn deliver(
        &mut self,
        to: Place,
        letter: &Letter,
        lapses: u32,
        kept: bool,
    ) -> Result<(), Broken> {
        if !self.arrives(letter.from, to, lapses) {
            return Ok(());
        }
        self.figures.forged += u64::from(letter.forged);
        let node = self.nodes.at(to);
        let side = if node.is_below(letter.from) { Side::Up } else { Side::Down };
        let opened = self.post.open(letter, &node.id, side, self.now().wall);
        let message = match (opened, letter.claim()) {
            (Ok(message), _) => message,
            (Err(_), Some(claim)) if !self.guards.gate => claim.clone(),
            (Err(reason), _) => {
                self.figures.refused += 1;
                *self.figures.counted.entry(reason).or_default() += 1;
                return Ok(());
            }
        };
        let message = if kept { message.kept_by_broker() } else { message };
        let outdated = self.invariants.epochs_fence.is_outdated(node, to, &message);
        let epoch = message.epoch();
        let changed = self.step(to, Input::Message(message))?;
        let node = self.nodes.at(to);
        if letter.forged {
            verified_only::check(node, letter.kind, changed)?;
        }
        if outdated {
            epochs_fence::check(node, epoch, changed)?;
        }
        Ok(())
    }

    /// A broker gives a node that has just subscribed what those that it listens to have retained.
    pub(super) fn hand_over_retained(&mut self, at: Place) {
        let node = self.nodes.at(at);
        if node.away > 0 {
            return;
        }
        let above = node.parent.iter().chain(&node.peer).chain(&node.second);
        let heard: Vec<Place> = above.map(|(place, _)| *place).collect();
        for from in heard {
            if self.is_cut(from, at) {
                continue;
            }
            let lapses = self.nodes.at(self.owner_of_link(from, at)).broker.lapses;
            let retained = &self.nodes.at(from).broker.retained;
            let retained: Vec<Arc<Letter>> = retained.values().cloned().collect();
            for letter in retained {
                let arrival = self.arrival(from, at);
                self.at(arrival, Event::Letter { to: at, letter, lapses, kept: true });
            }
        }
    }

    /// A device looks whether it goes.
    pub(super) fn may_leave(&mut self, at: Place) {
        let churn = self.scenario.churn;
        if !self.has_faults() {
            return;
        }
        self.after(churn.every_ms, Event::Churn { node: at });
        if self.nodes.at(at).away == 0 && self.rng.unit() < churn.share {
            let crash = self.rng.unit() < churn.crash;
            self.leaves(at, crash);
            let [shortest, longest] = churn.away_ms;
            let away = shortest + self.below(longest - shortest + 1);
            self.after(away, Event::Back { node: at });
        }
    }

    /// No message reaches the node from now on. With `crash` it loses all that isn't in its store.
    pub(super) fn leaves(&mut self, at: Place, crash: bool) {
        self.figures.departures += 1;
        let node = self.nodes.at_mut(at);
        node.away += 1;
        if crash && node.machine.is_some() {
            node.die();
            self.figures.crashes += 1;
        }
    }

    /// The node is reachable again; starts again if it died, else subscribes again.
    pub(super) fn comes_back(&mut self, at: Place) -> Result<(), Broken> {
        let node = self.nodes.at_mut(at);
        node.away = node.away.saturating_sub(1);
        if node.away > 0 {
            return Ok(());
        }
        if node.machine.is_none() {
            return self.revive(at);
        }
        self.plan_resend(at, 1);
        self.hand_over_retained(at);
        Ok(())
    }

    /// Cuts a site off, or ends that.
    pub(super) fn partition(&mut self) {
        let edges = self.nodes.at(Place::CLOUD).children.clone();
        let pick = self.rng.below(edges.len());
        self.cut = match self.cut {
            Some(_) => None,
            None => edges.get(pick).copied(),
        };
        self.figures.cuts += u64::from(self.cut.is_some());
        if self.has_faults() {
            self.after(self.scenario.partitions.each_ms, Event::Partition);
        } else {
            self.cut = None;
        }
    }

    /// A broker forgets what it keeps and what is on its way: the federation's, or a site's.
    pub(super) fn forget(&mut self) {
        if !self.has_faults() {
            return;
        }
        let edges = self.nodes.at(Place::CLOUD).children.clone();
        let pick = self.rng.below(edges.len() + 1);
        let owner = edges.get(pick).copied().unwrap_or(Place::CLOUD);
        self.nodes.at_mut(owner).broker.lapses += 1;
        let standby = self.nodes.at(owner).peer.as_ref().map(|(place, _)| *place);
        let standby = standby.filter(|_| owner == Place::CLOUD);
        for publisher in [owner].into_iter().chain(standby) {
            self.nodes.at_mut(publisher).broker.retained.clear();
        }
        self.figures.lapses += 1;
        self.after(self.scenario.amnesia.every_ms, Event::Amnesia);
    }

    /// The node whose children share this link's broker with it. A standby shares the cloud's.
    pub(super) fn owner_of_link(&self, from: Place, to: Place) -> Place {
        if self.is_root(from) || self.is_root(to) {
            return Place::CLOUD;
        }
        if self.nodes.at(to).is_below(from) { from } else { to }
    }

    fn is_linked(&self, from: Place, to: Place) -> bool {
        self.nodes.at(from).away == 0 && self.nodes.at(to).away == 0 && !self.is_cut(from, to)
    }

    fn is_cut(&self, from: Place, to: Place) -> bool {
        let between = |site| from == site && self.is_root(to) || to == site && self.is_root(from);
        let apart = |[since, until]: [u64; 2]| (since..until).contains(&self.now_ms);
        self.cut.is_some_and(between)
            || self.scenario.standby.is_some_and(|standby| apart(standby.apart_ms))
                && self.is_root(from)
                && self.is_root(to)
    }

    fn is_root(&self, place: Place) -> bool {
        self.nodes.at(place).parent.is_none()
    }

    fn longest_way(&self) -> u64 {
        let (calm, storm) = (self.scenario.pace.delay_ms, self.scenario.faults.delay_ms);
        if self.has_faults() && storm > 0 { storm } else { calm }
    }

    fn arrival(&mut self, from: Place, to: Place) -> u64 {
        let longest = self.longest_way();
        let arrival = self.now_ms + 1 + self.below(longest);
        if self.scenario.faults.reorder {
            return arrival;
        }
        // One link a child: down is its first direction, up its second.
        let down = self.owner_of_link(from, to) == from;
        let child = self.nodes.at_mut(if down { to } else { from });
        let [last_down, last_up] = &mut child.last_arrival;
        let last = if down { last_down } else { last_up };
        *last = arrival.max(*last);
        *last
    }
}
