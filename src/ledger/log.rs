//! A node's own ledger as it runs, and how it comes back after a restart.

use std::collections::VecDeque;

use super::checkpoint::{Checkpoint, Origin, SignedCheckpoint};
use super::tree::{self, Head, Tree};
use super::{Entry, Event, LedgerError};
use crate::time::Wall;
use crate::trust::keys::SigningKey;

/// A ledger that is written to. It can only be had through [`Replay`], so that no head is signed
/// that contradicts an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    origin: Origin,
    tree: Tree,
}

impl Log {
    /// Records an event; gives the canonical bytes, to be committed with the state they tell of.
    ///
    /// If that commit fails this value is ahead of the store: go on with a clone from before.
    pub fn append(&mut self, at: Wall, event: Event) -> Vec<u8> {
        let bytes = Entry::new(self.origin.node.clone(), at, event).to_bytes();
        self.tree.append(tree::leaf_hash(&bytes));
        bytes
    }

    /// Signs the present head.
    pub fn checkpoint(&self, key: &SigningKey) -> SignedCheckpoint {
        let head = self.tree.head();
        Checkpoint { origin: self.origin.clone(), head }.sign(key)
    }

    /// Whose ledger it is.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its size and root.
    pub fn head(&self) -> Head {
        self.tree.head()
    }
}

/// Reads a ledger's stored entries in order and holds them against heads that were signed.
#[derive(Debug)]
pub struct Replay {
    origin: Origin,
    tree: Tree,
    /// Signed heads that are still ahead, ascending.
    signed: VecDeque<Head>,
    /// Entries below this are vouched for by a signed head.
    vouched: u64,
}

impl Replay {
    /// Starts at the first entry. On restart the last signed head is enough; an audit gives all,
    /// in the order in which they were signed. A new node gives none.
    ///
    /// # Errors
    /// [`LedgerError::Shrunk`] when a head is smaller than one before it,
    /// [`LedgerError::TwoHeads`] when two of one size differ.
    pub fn new(origin: Origin, signed: &[Head]) -> Result<Self, LedgerError> {
        for (first, second) in signed.iter().zip(signed.iter().skip(1)) {
            if second.size < first.size {
                return Err(LedgerError::Shrunk { signed: first.size, actual: second.size });
            }
            if second.size == first.size && second.root != first.root {
                return Err(LedgerError::TwoHeads {
                    size: first.size,
                    first: first.root,
                    second: second.root,
                });
            }
        }
        let signed = signed.iter().copied().collect();
        let mut replay = Self { origin, tree: Tree::default(), signed, vouched: 0 };
        replay.compare()?;
        Ok(replay)
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// [`LedgerError::BadEntry`] when it isn't an entry of this node, [`LedgerError::Forked`]
    /// when a signed head covers other entries.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Entry, LedgerError> {
        let index = self.tree.size();
        let entry = Entry::parse(bytes).map_err(|what| LedgerError::BadEntry { index, what })?;
        if entry.node != self.origin.node {
            let what = format!("it is of node {}, expected {}", entry.node, self.origin.node);
            return Err(LedgerError::BadEntry { index, what });
        }
        self.tree.append(tree::leaf_hash(bytes));
        self.compare()?;
        Ok(entry)
    }

    /// The ledger, after its last entry.
    ///
    /// # Errors
    /// [`LedgerError::Shrunk`] when a signed head covers more entries than there are.
    pub fn finish(self) -> Result<Log, LedgerError> {
        match self.signed.back() {
            Some(head) => Err(LedgerError::Shrunk { signed: head.size, actual: self.tree.size() }),
            None => Ok(Log { origin: self.origin, tree: self.tree }),
        }
    }

    fn compare(&mut self) -> Result<(), LedgerError> {
        let size = self.tree.size();
        while let Some(head) = self.signed.front().filter(|head| head.size == size) {
            let (signed, derived) = (head.root, self.tree.head().root);
            if signed != derived {
                return Err(LedgerError::Forked { from: self.vouched, size, signed, derived });
            }
            self.signed.pop_front();
            self.vouched = size;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Digest, Name};

    fn origin() -> Origin {
        Origin { federation: Name::new("fed").unwrap(), node: Name::new("edge").unwrap() }
    }

    fn event(n: u8) -> Event {
        Event::ConfigChange { config: Digest([n; 32]) }
    }

    fn empty() -> Log {
        Replay::new(origin(), &[]).unwrap().finish().unwrap()
    }

    fn restart(entries: &[Vec<u8>], signed: &[Head]) -> Result<Log, LedgerError> {
        let mut replay = Replay::new(origin(), signed)?;
        for entry in entries {
            replay.push(entry)?;
        }
        replay.finish()
    }

    /// Five entries, and the head after each.
    fn history() -> (Vec<Vec<u8>>, Vec<Head>) {
        let mut log = empty();
        (0..5).map(|n| (log.append(Wall(n.into()), event(n)), log.head())).unzip()
    }

    #[test]
    fn a_restarted_ledger_goes_on_where_it_was() {
        let (entries, heads) = history();
        let mut log = restart(&entries[..3], &heads[2..3]).unwrap();
        assert_eq!(log.head(), heads[2]);
        log.append(Wall(3), event(3));
        log.append(Wall(4), event(4));
        assert_eq!(log.head(), heads[4]);
        // Entries after the last checkpoint are kept; all heads may be given too.
        assert_eq!(restart(&entries, &heads[2..3]).unwrap(), log);
        assert_eq!(restart(&entries, &heads).unwrap(), log);
    }

    #[test]
    fn a_ledger_that_lost_entries_does_not_start() {
        let (entries, heads) = history();
        let refused = restart(&entries[..4], &heads[4..]).unwrap_err();
        assert_eq!(refused, LedgerError::Shrunk { signed: 5, actual: 4 });
        assert_eq!(restart(&[], &heads[..1]).unwrap_err().kind(), "ledger_shrunk");
    }

    #[test]
    fn a_ledger_with_a_changed_entry_does_not_start_and_the_error_says_where() {
        let (mut entries, heads) = history();
        entries[3] = Entry::new(origin().node, Wall(3), event(99)).to_bytes();
        let LedgerError::Forked { from, size, .. } = restart(&entries, &heads).unwrap_err() else {
            panic!("expected a fork")
        };
        assert_eq!((from, size), (3, 4));
        let LedgerError::Forked { from, size, .. } = restart(&entries, &heads[4..]).unwrap_err()
        else {
            panic!("expected a fork")
        };
        assert_eq!((from, size), (0, 5));
        entries.swap(0, 1);
        assert_eq!(restart(&entries, &heads).unwrap_err().kind(), "ledger_forked");
    }

    #[test]
    fn an_entry_of_another_node_or_no_entry_is_named() {
        let (mut entries, heads) = history();
        let stranger = Name::new("cloud").unwrap();
        entries[2] = Entry::new(stranger, Wall(2), event(2)).to_bytes();
        let refused = restart(&entries, &heads).unwrap_err();
        assert!(matches!(refused, LedgerError::BadEntry { index: 2, .. }), "{refused}");
        entries[2] = b"{}".to_vec();
        let refused = restart(&entries, &heads).unwrap_err();
        assert!(matches!(refused, LedgerError::BadEntry { index: 2, .. }), "{refused}");
    }

    #[test]
    fn heads_that_contradict_each_other_are_refused() {
        let (entries, mut heads) = history();
        heads.swap(1, 2);
        assert_eq!(restart(&entries, &heads).unwrap_err().kind(), "ledger_shrunk");
        let (_, mut heads) = history();
        heads.insert(3, Head { root: Digest([1; 32]), ..heads[2] });
        assert_eq!(restart(&entries, &heads).unwrap_err().kind(), "ledger_two_heads");
        let wrong_empty = Head { size: 0, root: Digest([1; 32]) };
        assert_eq!(restart(&[], &[wrong_empty]).unwrap_err().kind(), "ledger_forked");
        restart(&[], &[empty().head()]).unwrap();
    }
}
