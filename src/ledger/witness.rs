//! A witness: the neighbour tier, which cosigns a ledger's head only if it grew.
//!
//! So a node can't show one history to its parent and another to an auditor: the parent
//! remembers the last head it saw, and asks for the proof that the next one is its continuation.

use std::collections::BTreeMap;

use super::checkpoint::{Origin, SignedCheckpoint};
use super::tree::{self, Head};
use super::{LedgerError, Tree};
use crate::ids::Digest;
use crate::time::Wall;
use crate::trust::keys::{SigningKey, VerifyingKey};

/// What a witness remembers: the last head of each ledger it watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    name: Origin,
    seen: BTreeMap<Origin, Head>,
}

impl Witness {
    /// A witness with what it has seen so far, from the store.
    pub fn new(name: Origin, seen: BTreeMap<Origin, Head>) -> Self {
        Self { name, seen }
    }

    /// Checks a checkpoint of a ledger against what was seen and cosigns it.
    ///
    /// `proof` leads from the last head seen (nothing, at first or when it is the same head).
    /// Commit [`Witness::seen`] before the cosignature leaves.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing is remembered then. `TwoHeads` is worth an alarm.
    pub fn cosign(
        &mut self,
        note: &SignedCheckpoint,
        ledger: (&Origin, &VerifyingKey),
        proof: &[Digest],
        key: &SigningKey,
        at: Wall,
    ) -> Result<SignedCheckpoint, LedgerError> {
        let (origin, ledger_key) = ledger;
        note.verify(origin, &[*ledger_key])?;
        let new = note.checkpoint().head;
        let old = self.seen.get(origin).copied().unwrap_or(Tree::default().head());
        if new.size == old.size && new.root != old.root {
            let (first, second) = (old.root, new.root);
            return Err(LedgerError::TwoHeads { size: new.size, first, second });
        }
        tree::verify_consistency(&old, &new, proof)?;
        self.seen.insert(origin.clone(), new);
        let mut cosigned = note.clone();
        cosigned.cosign(&self.name, key, at);
        Ok(cosigned)
    }

    /// The last head of each ledger.
    pub fn seen(&self) -> &BTreeMap<Origin, Head> {
        &self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;
    use crate::ledger::log::Replay;
    use crate::ledger::{Event, Log};

    fn origin(node: &str) -> Origin {
        Origin { federation: Name::new("fed").unwrap(), node: Name::new(node).unwrap() }
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::generate(&[seed; 32])
    }

    fn grow(log: &mut Log, leaves: &mut Vec<Digest>, first: u8, count: u8) -> SignedCheckpoint {
        for n in first..first + count {
            let bytes = log.append(Wall(0), Event::ConfigChange { config: Digest([n; 32]) });
            leaves.push(tree::leaf_hash(&bytes));
        }
        log.checkpoint(&key(1))
    }

    #[test]
    fn only_a_head_that_grew_out_of_the_last_is_cosigned() {
        let edge = origin("edge");
        let mut log = Replay::new(edge.clone(), &[]).unwrap().finish().unwrap();
        let mut other = log.clone();
        let mut leaves = Vec::new();
        let three = grow(&mut log, &mut leaves, 0, 3);
        let five = grow(&mut log, &mut leaves, 3, 2);
        let proof = tree::consistency_proof(&leaves, 3).unwrap();
        let mut forged_leaves = Vec::new();
        let forged_three = grow(&mut other, &mut forged_leaves, 100, 3);
        let forged_five = grow(&mut other, &mut forged_leaves, 103, 2);
        let forged_proof = tree::consistency_proof(&forged_leaves, 3).unwrap();

        let mut witness = Witness::new(origin("cloud"), BTreeMap::new());
        let signer = key(1);
        let mut ask = |note: &SignedCheckpoint, proof: &[Digest]| {
            let ledger = (&edge, signer.public());
            witness.cosign(note, ledger, proof, &key(2), Wall(7_000)).map_err(|e| e.kind())
        };
        let cosigned = ask(&three, &[]).unwrap();
        cosigned.verify(&edge, &[*signer.public()]).unwrap();
        let at = cosigned.verify_cosignature(&origin("cloud"), key(2).public()).unwrap();
        assert_eq!(at, Wall(7_000));
        assert_eq!(ask(&three, &[]).unwrap(), cosigned);

        assert_eq!(ask(&forged_three, &[]), Err("ledger_two_heads"));
        assert_eq!(ask(&five, &[]), Err("ledger_bad_proof"));
        assert_eq!(ask(&forged_five, &forged_proof), Err("ledger_bad_proof"));
        assert_eq!(ask(&forged_five, &proof), Err("ledger_bad_proof"));
        ask(&five, &proof).unwrap();
        assert_eq!(ask(&three, &[]), Err("ledger_shrunk"));
        assert_eq!(witness.seen()[&edge].size, 5);
    }

    #[test]
    fn a_checkpoint_that_its_node_did_not_sign_is_not_cosigned() {
        let edge = origin("edge");
        let log = Replay::new(edge.clone(), &[]).unwrap().finish().unwrap();
        let note = log.checkpoint(&key(9));
        let mut witness = Witness::new(origin("cloud"), BTreeMap::new());
        let refused = witness.cosign(&note, (&edge, key(1).public()), &[], &key(2), Wall(0));
        assert_eq!(refused.unwrap_err().kind(), "ledger_bad_signature");
        assert!(witness.seen().is_empty());
    }
}
