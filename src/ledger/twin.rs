//! Whether somebody else goes on with this node's ledger: a copy of its disk that runs beside it, or a store
//! that was put back from a backup.
//!
//! A node hears what is said under its own name. Heads of its own ledger come back to it; another start of
//! the same key signs other ones. One that is heard after a head of one's own was, and ends no earlier, is of
//! somebody who lives, not of before. The one with the longer ledger stays, which may be the copy: a fresh one that is busier
//! than a quiet original outgrows it. Which is which no ledger tells. Called by the runner.

use super::tree::Head;
use crate::ids::BootId;
use crate::time::Wall;

/// What this start has heard under its own name.
#[derive(Debug)]
pub struct OwnWord {
    boot: BootId,
    /// When the first of its own heads that came back ends.
    first: Option<Wall>,
}

/// What another start with the same key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twin {
    /// It lives, and has the longer ledger: one of the two is a copy, and this one ends.
    Lives,
    /// It has signed more than is in this store, whenever that was.
    KnewMore,
    /// It has signed less, maybe before this one started. If it lives it should hear how long this ledger is.
    KnewLess,
}

impl OwnWord {
    /// For the start `boot`.
    pub fn new(boot: BootId) -> Self {
        Self { boot, first: None }
    }

    /// A head that was signed with this node's key in the start `boot`, in a message that is good until `end`;
    /// `own` is its ledger as it is now.
    ///
    /// Of two of one length the greater root stays.
    pub fn hears(&mut self, boot: BootId, end: Wall, said: &Head, own: &Head) -> Option<Twin> {
        if boot == self.boot {
            self.first.get_or_insert(end);
            return None;
        }
        let longer = (said.size, said.root.0) > (own.size, own.root.0);
        match (longer, self.first) {
            (true, Some(first)) if end >= first => Some(Twin::Lives),
            (true, _) => Some(Twin::KnewMore),
            (false, Some(_)) if said != own => Some(Twin::KnewLess),
            (false, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;

    const MINE: BootId = BootId([1; 16]);
    const OTHER: BootId = BootId([2; 16]);

    fn head(size: u64, root: u8) -> Head {
        Head { size, root: Digest([root; 32]) }
    }

    #[test]
    fn of_two_that_live_exactly_the_shorter_one_finds_out() {
        for (a, b) in [((9, 1), (7, 2)), ((9, 1), (9, 2))] {
            let (a, b) = (head(a.0, a.1), head(b.0, b.1));
            let finds_out = |own: &Head, said: &Head| {
                let mut word = OwnWord::new(MINE);
                assert_eq!(word.hears(MINE, Wall(5), own, own), None);
                word.hears(OTHER, Wall(6), said, own) == Some(Twin::Lives)
            };
            assert!(finds_out(&a, &b) != finds_out(&b, &a), "{a:?} {b:?}");
        }
    }

    #[test]
    fn what_it_said_before_it_started_is_nothing_and_more_than_it_knows_is_told() {
        let mut word = OwnWord::new(MINE);
        let own = head(7, 1);
        let mut hears = |boot, end, size| word.hears(boot, Wall(end), &head(size, 1), &own);
        assert_eq!(hears(OTHER, 5, 5), None);
        assert_eq!(hears(OTHER, 5, 7), None);
        assert_eq!(hears(OTHER, 5, 8), Some(Twin::KnewMore));
        hears(MINE, 6, 7);
        hears(MINE, 9, 7);
        assert_eq!(hears(OTHER, 7, 7), None);
        assert_eq!(hears(OTHER, 7, 5), Some(Twin::KnewLess));
        assert_eq!(
            hears(OTHER, 5, 8),
            Some(Twin::KnewMore),
            "somebody says again what was said before"
        );
        assert_eq!(hears(OTHER, 7, 8), Some(Twin::Lives));
    }
}
