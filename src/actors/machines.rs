//! What tags say about a device's machines: that one works (`idle`), that a value forbids training (`veto`).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::busy::{Busy, Hold};

/// See the module.
#[derive(Debug)]
pub(super) struct Machines {
    /// Topics that hold training now, and why.
    holding: BTreeSet<(Hold, String)>,
    busy: Arc<Busy>,
}

impl Machines {
    /// Of each kind: a wildcard must not fill the memory, nor the places of the other kind.
    const MAX: usize = 256;

    pub(super) fn new(busy: Arc<Busy>) -> Self {
        Self { holding: BTreeSet::new(), busy }
    }

    /// A topic holds training now, or doesn't any longer.
    pub(super) fn said(&mut self, topic: &str, hold: Hold, holds: bool) {
        let key = (hold, topic.to_owned());
        if !holds {
            self.holding.remove(&key);
        } else if self.of(hold) < Self::MAX {
            self.holding.insert(key);
        }
        self.busy.set(hold, self.of(hold) > 0);
    }

    fn of(&self, hold: Hold) -> usize {
        self.holding.iter().filter(|(why, _)| *why == hold).count()
    }
}
