//! The version that a node serves never goes back, also not over its deaths, but by a rollback in its ledger.

use super::super::broken::Broken;
use super::super::node::Node;
use super::super::nodes::{ByNode, Place};
use crate::ids::{Digest, Version};
use crate::ledger::Event;
use crate::protocol::Effect;

pub(crate) const NAME: &str = "versions_rise";

/// What each node applied last.
#[derive(Debug, Default)]
pub(crate) struct VersionsRise {
    last: ByNode<Option<(Version, Digest)>>,
}

impl VersionsRise {
    pub(crate) fn committed(
        &mut self,
        node: &Node,
        at: Place,
        effects: &[Effect],
    ) -> Result<(), Broken> {
        for effect in effects {
            if let Effect::Record(Event::Rollback { .. }) = effect {
                // From here on they rise again.
                *self.last.at(at) = None;
            }
            let Effect::Apply { version, adapter } = effect else { continue };
            let last = self.last.at(at);
            if let Some((before, _)) = last
                && version < before
            {
                let what = format!("{} went from {before} to {version}", node.id);
                return Err(Broken::new(NAME, what));
            }
            *last = Some((*version, *adapter));
        }
        Ok(())
    }

    /// The version that a node applied last.
    #[cfg(test)]
    pub(crate) fn version(&self, at: Place) -> Option<Version> {
        self.last.get(at)?.map(|(version, _)| version)
    }

    /// The adapter that a node applied last.
    pub(crate) fn adapter(&self, at: Place) -> Option<Digest> {
        self.last.get(at)?.map(|(_, adapter)| adapter)
    }
}
