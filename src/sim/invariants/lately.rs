//! What an owner did in its last rounds: older is forgotten, as the machines forget it.

use std::collections::BTreeMap;

use crate::ids::RoundNo;
use crate::protocol::Round;

/// Values by key, of the last rounds only.
#[derive(Debug)]
pub(super) struct Lately<K, V> {
    rounds: BTreeMap<RoundNo, BTreeMap<K, V>>,
}

impl<K, V> Default for Lately<K, V> {
    fn default() -> Self {
        Self { rounds: BTreeMap::new() }
    }
}

impl<K: Ord, V> Lately<K, V> {
    /// Rounds that are remembered: some more than a machine does.
    const ROUNDS: usize = Round::MEMORY + 4;

    /// Adds a value of a round; gives back the one that the key had before, in any round.
    pub(super) fn put(&mut self, round: RoundNo, key: K, value: V) -> Option<V> {
        let of_round = self.rounds.iter().find(|(_, keys)| keys.contains_key(&key));
        let before = of_round.map(|(round, _)| *round);
        let old = before.and_then(|round| self.rounds.get_mut(&round)?.remove(&key));
        self.rounds.entry(round).or_default().insert(key, value);
        while self.rounds.len() > Self::ROUNDS {
            self.rounds.pop_first();
        }
        old
    }

    /// The value of a key, and its round.
    pub(super) fn get(&self, key: &K) -> Option<(RoundNo, &V)> {
        // What is asked for is mostly new.
        self.rounds.iter().rev().find_map(|(round, keys)| Some((*round, keys.get(key)?)))
    }
}

#[cfg(test)]
impl<K: Ord, V> Lately<K, V> {
    /// All values.
    pub(super) fn values(&self) -> Vec<&V> {
        self.rounds.values().flat_map(BTreeMap::values).collect()
    }
}
