//! What an owner did in its last rounds: older is forgotten, as the machines forget it.

use std::collections::BTreeMap;
use std::hash::Hash;

use super::super::nodes::Lookup;
use crate::ids::RoundNo;
use crate::protocol::Round;

/// Values by key, of the last rounds only.
#[derive(Debug)]
pub(super) struct Lately<K, V> {
    values: Lookup<K, (RoundNo, V)>,
    /// Keys that were put in each round.
    rounds: BTreeMap<RoundNo, Vec<K>>,
}

impl<K, V> Default for Lately<K, V> {
    fn default() -> Self {
        Self { values: Lookup::default(), rounds: BTreeMap::new() }
    }
}

impl<K: Hash + Eq + Clone, V> Lately<K, V> {
    /// Rounds that are remembered: some more than a machine does.
    const ROUNDS: usize = Round::MEMORY + 4;

    /// Adds a value of a round; gives back the one that the key had before, in any round.
    pub(super) fn put(&mut self, round: RoundNo, key: K, value: V) -> Option<V> {
        self.rounds.entry(round).or_default().push(key.clone());
        let old = self.values.insert(key, (round, value)).map(|(_, value)| value);
        while self.rounds.len() > Self::ROUNDS {
            let Some((gone, keys)) = self.rounds.pop_first() else { break };
            for key in keys {
                if self.values.get(&key).is_some_and(|(round, _)| *round == gone) {
                    self.values.remove(&key);
                }
            }
        }
        old
    }

    /// The value of a key, and its round.
    pub(super) fn get(&self, key: &K) -> Option<(RoundNo, &V)> {
        self.values.get(key).map(|(round, value)| (*round, value))
    }
}

#[cfg(test)]
impl<K, V> Lately<K, V> {
    /// All values, in no order.
    pub(super) fn values(&self) -> Vec<&V> {
        self.values.values().map(|(_, value)| value).collect()
    }
}
