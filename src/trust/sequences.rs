//! Numbers of signed commands: each works once, also after a restart.
//!
//! A signer counts its messages from each start of its own on, so a number that isn't above the
//! highest seen of that start is a repeat. Memory is bounded without a clock: when it is full the
//! entry that expires first makes room, and from then on nothing is taken that expires no later than
//! what was forgotten.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::Verified;
use crate::ids::{BootId, NodeId};
use crate::time::Wall;
use crate::wire::{decode, encode};

/// The highest number of each start of each signer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequences {
    seen: BTreeMap<(NodeId, BootId), Seen>,
    /// Whatever expires no later may have been forgotten.
    floor: Wall,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    signer: NodeId,
    boot: BootId,
    seq: u64,
    expires_at: Wall,
}

/// Changes of the durable state: key and new value, `None` deletes.
pub type StateChanges = Vec<(String, Option<Vec<u8>>)>;

impl Sequences {
    /// Key prefix of its durable state.
    pub const PREFIX: &str = "sequence/";
    /// Starts that are remembered; a person's tool makes one a command.
    pub const CAPACITY: usize = 1_024;
    const FLOOR: &str = "sequence/floor";
    const STATE_CAP: usize = 1_024;

    /// What `state` says.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn from_state(state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let mut sequences = Self::default();
        let damaged = |key: &str| format!("{key}: not a number of a command");
        for (key, value) in state.iter().filter(|(key, _)| key.starts_with(Self::PREFIX)) {
            if key == Self::FLOOR {
                sequences.floor = decode(value, Self::STATE_CAP).map_err(|_| damaged(key))?;
            } else {
                let seen: Seen = decode(value, Self::STATE_CAP).map_err(|_| damaged(key))?;
                sequences.seen.insert((seen.signer.clone(), seen.boot), seen);
            }
        }
        Ok(sequences)
    }

    /// Takes note of a command, if it is new: then what has to be on disk before it is carried out.
    pub fn admit(&mut self, message: &Verified) -> Option<StateChanges> {
        let (signer, (boot, seq)) = (message.sender().clone(), message.sequence());
        let expires_at = message.expires_at();
        let key = (signer.clone(), boot);
        let known = self.seen.get(&key);
        let is_new = match known {
            Some(seen) => seq > seen.seq,
            None => expires_at > self.floor,
        };
        if !is_new {
            return None;
        }
        let mut changes = StateChanges::new();
        if known.is_none() && self.seen.len() >= Self::CAPACITY {
            self.forget_one(&mut changes);
        }
        let latest = known_expiry(self.seen.get(&key)).max(expires_at);
        let seen = Seen { signer, boot, seq, expires_at: latest };
        changes.push((state_key(&key), encode(&seen).ok()));
        self.seen.insert(key, seen);
        Some(changes)
    }

    fn forget_one(&mut self, changes: &mut StateChanges) {
        let oldest =
            self.seen.values().min_by_key(|seen| (seen.expires_at, &seen.signer, seen.boot));
        let Some(oldest) = oldest.cloned() else { return };
        let key = (oldest.signer, oldest.boot);
        self.seen.remove(&key);
        self.floor = self.floor.max(oldest.expires_at);
        changes.push((state_key(&key), None));
        changes.push((Self::FLOOR.to_owned(), encode(&self.floor).ok()));
    }
}

fn known_expiry(seen: Option<&Seen>) -> Wall {
    seen.map_or(Wall::default(), |seen| seen.expires_at)
}

fn state_key((signer, boot): &(NodeId, BootId)) -> String {
    format!("{}{signer}/{boot}", Sequences::PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;
    use crate::wire::{Body, Command, Head};

    fn command(boot: u16, seq: u64, expires_at: u64) -> Verified {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&boot.to_be_bytes());
        let head = Head {
            minor: 0,
            federation: Name::new("fed").unwrap(),
            sender: Name::new("ops").unwrap(),
            audience: None,
            topic: "t".into(),
            epoch: 0,
            round: 0,
            seq,
            boot: BootId(id),
            issued_at: Wall(0),
            expires_at: Wall(expires_at),
        };
        Verified::for_test(head, Body::Command(Command { name: "pause".into(), json: vec![] }))
    }

    /// What a store would hold after these changes.
    fn apply(state: &mut BTreeMap<String, Vec<u8>>, changes: StateChanges) {
        for (key, value) in changes {
            match value {
                Some(value) => state.insert(key, value),
                None => state.remove(&key),
            };
        }
    }

    fn restarted(state: &BTreeMap<String, Vec<u8>>) -> Sequences {
        let all: Vec<_> = state.clone().into_iter().collect();
        Sequences::from_state(&all).unwrap()
    }

    #[test]
    fn a_number_works_once_also_after_a_restart_and_without_the_state_it_would_work_again() {
        let (mut state, mut now) = (BTreeMap::new(), Sequences::default());
        let captured = command(1, 5, 100);
        apply(&mut state, now.admit(&captured).unwrap());
        assert_eq!(now.admit(&captured), None);
        let mut after = restarted(&state);
        assert_eq!(after, now);
        assert_eq!(after.admit(&captured), None);
        assert_eq!(after.admit(&command(1, 4, 100)), None);
        assert!(after.admit(&command(1, 6, 100)).is_some());
        assert!(after.admit(&command(2, 1, 100)).is_some(), "another start counts anew");
        assert!(Sequences::default().admit(&captured).is_some());
    }

    #[test]
    fn memory_is_bounded_and_what_was_forgotten_is_still_no_way_in() {
        let (mut state, mut sequences) = (BTreeMap::new(), Sequences::default());
        let many = u16::try_from(Sequences::CAPACITY).unwrap() + 10;
        for boot in 0..many {
            let changes = sequences.admit(&command(boot, 1, 1_000 + u64::from(boot))).unwrap();
            apply(&mut state, changes);
        }
        assert_eq!(sequences.seen.len(), Sequences::CAPACITY);
        assert_eq!(restarted(&state), sequences);
        for boot in 0..many {
            let again = sequences.admit(&command(boot, 1, 1_000 + u64::from(boot)));
            assert_eq!(again, None, "{boot}");
        }
        assert!(sequences.admit(&command(many, 1, 1_000 + u64::from(many))).is_some());
    }

    #[test]
    fn a_damaged_value_is_named() {
        let state = [("sequence/ops/00".to_owned(), b"??".to_vec())];
        assert!(Sequences::from_state(&state).unwrap_err().starts_with("sequence/ops/00"));
    }
}
