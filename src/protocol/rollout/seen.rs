//! What each life of each node has seen of the version that is rolled out, in the stage that runs.
//!
//! Repeats and disorder change nothing: within a life the highest counts hold, and what a life before has seen counts on.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gate::Tally;
use crate::ids::NodeId;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen(BTreeMap<NodeId, Lives>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Lives {
    life: u64,
    before: Tally,
    now: Tally,
    /// Devices that it speaks for and that have given an answer.
    nodes: u64,
}

impl Seen {
    /// Takes what a node has seen so far in this life of it, for so many devices.
    pub fn note(&mut self, node: NodeId, life: u64, tally: Tally, nodes: u64) {
        let none = Tally::default();
        let known = self.0.entry(node).or_insert(Lives { life, before: none, now: none, nodes: 0 });
        match life.cmp(&known.life) {
            Ordering::Less => return,
            Ordering::Equal => known.now = known.now.later(tally),
            Ordering::Greater => {
                // It started again: what it saw before counts on.
                known.before = Tally::sum([&known.before, &known.now]);
                (known.life, known.now) = (life, tally);
            }
        }
        known.nodes = known.nodes.max(nodes);
    }

    /// What a node has seen, in all of its lives.
    pub fn of(&self, node: &NodeId) -> Tally {
        let lives = self.0.get(node);
        lives.map(|lives| Tally::sum([&lives.before, &lives.now])).unwrap_or_default()
    }

    /// All of it.
    pub fn total(&self) -> Tally {
        Tally::sum(self.0.values().flat_map(|lives| [&lives.before, &lives.now]))
    }

    /// The same with no more of one node than that in any count.
    pub fn total_within(&self, most: u64) -> Tally {
        let each = |lives: &Lives| Tally::sum([&lives.before, &lives.now]).bounded(most);
        Tally::sum(&self.0.values().map(each).collect::<Vec<_>>())
    }

    /// All but what the node has seen that has most of something.
    pub fn without_worst(&self, of: impl Fn(&Tally) -> u64) -> Tally {
        let worst = self.0.keys().max_by_key(|node| of(&self.of(node)));
        let others = self.0.iter().filter(|(node, _)| Some(*node) != worst);
        Tally::sum(others.flat_map(|(_, lives)| [&lives.before, &lives.now]))
    }

    /// Devices that have given an answer.
    pub fn nodes(&self) -> u64 {
        self.0.values().fold(0, |sum, lives| sum.saturating_add(lives.nodes))
    }

    /// A stage begins.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
