//! Why a node isn't ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Open reasons for which a node isn't ready; shared by whoever can find or settle one.
///
/// Keys are fixed words (`start`, `site_bus`, `disk`), so the map is bounded.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    reasons: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// With the reason `start`: clear it when the node is up.
    pub fn starting() -> Self {
        let readiness = Self::default();
        readiness.block("start", "the node is starting");
        readiness
    }

    /// Adds or replaces a reason.
    pub fn block(&self, key: &'static str, reason: impl Into<String>) {
        self.open().insert(key, reason.into());
    }

    /// Settles a reason.
    pub fn clear(&self, key: &'static str) {
        self.open().remove(key);
    }

    /// The open reasons; none means ready.
    pub fn reasons(&self) -> BTreeMap<&'static str, String> {
        self.open().clone()
    }

    /// A map of texts stays whole whoever panicked beside it.
    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_each_reason_is_settled() {
        let readiness = Readiness::starting();
        let other_hand = readiness.clone();
        other_hand.block("site_bus", "no broker at 127.0.0.1:1883");
        readiness.clear("start");
        assert_eq!(readiness.reasons().keys().collect::<Vec<_>>(), [&"site_bus"]);
        other_hand.block("site_bus", "wrong password");
        assert_eq!(readiness.reasons()["site_bus"], "wrong password");
        other_hand.clear("site_bus");
        assert!(readiness.reasons().is_empty());
    }
}
