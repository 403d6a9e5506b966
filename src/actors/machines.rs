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
    /// A wildcard must not fill the memory.
    const MAX: usize = 256;

    pub(super) fn new(busy: Arc<Busy>) -> Self {
        Self { holding: BTreeSet::new(), busy }
    }

    /// A topic holds training now, or doesn't any longer.
    pub(super) fn said(&mut self, topic: &str, hold: Hold, holds: bool) {
        let key = (hold, topic.to_owned());
        if !holds {
            self.holding.remove(&key);
        } else if self.holding.len() < Self::MAX {
            self.holding.insert(key);
        }
        self.busy.set(hold, self.holding.iter().any(|(why, _)| *why == hold));
    }
}
