//! Which machines say that they work, from tags that bind `idle`: training waits while one does.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::busy::Busy;

/// See the module.
#[derive(Debug)]
pub(super) struct Machines {
    /// Topics that say that their machine works.
    working: BTreeSet<String>,
    busy: Arc<Busy>,
}

impl Machines {
    /// A wildcard must not fill the memory.
    const MAX: usize = 256;

    pub(super) fn new(busy: Arc<Busy>) -> Self {
        Self { working: BTreeSet::new(), busy }
    }

    /// The machine of a topic works now, or stands still.
    pub(super) fn said(&mut self, topic: &str, idle: bool) {
        if idle {
            self.working.remove(topic);
        } else if self.working.len() < Self::MAX {
            self.working.insert(topic.to_owned());
        }
        self.busy.set(!self.working.is_empty());
    }
}
