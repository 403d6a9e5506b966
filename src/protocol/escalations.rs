//! What is recorded of the requests that leave a site for the tier above: how many, and a digest of them.
//!
//! The first is told at once, those of the next minute together in one entry: a ledger that grows by an
//! entry a request would be larger than what left. A process that is killed takes at most the count of a
//! minute with it, never the fact that something left.

use crate::ids::Digest;
use crate::time::Mono;

/// See the module.
#[derive(Debug, Default)]
pub struct Escalations {
    told_at: Option<Mono>,
    untold: Left,
}

/// Requests that left since the last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Their number.
    pub requests: u64,
    /// SHA-256 over the one before (zeros at first) and the SHA-256 of each request's bytes, one after
    /// the other in this way.
    pub digest: Digest,
}

impl Default for Left {
    fn default() -> Self {
        Self { requests: 0, digest: Digest([0; 32]) }
    }
}

impl Escalations {
    /// Entries come no more often than this.
    pub const EVERY_MS: u64 = 60_000;

    /// A request leaves; what is to be recorded now, if anything.
    pub fn left(&mut self, now: Mono, request: &Digest) -> Option<Left> {
        let Left { requests, digest } = self.untold;
        let digest = Digest::of(&[digest.0, request.0].concat());
        self.untold = Left { requests: requests + 1, digest };
        self.due(now)
    }

    /// What is to be recorded by now.
    pub fn due(&mut self, now: Mono) -> Option<Left> {
        let waits = self.told_at.is_some_and(|at| now.0.saturating_sub(at.0) < Self::EVERY_MS);
        if waits { None } else { self.rest(now) }
    }

    /// What wasn't recorded yet: the node stops.
    pub fn rest(&mut self, now: Mono) -> Option<Left> {
        let left = std::mem::take(&mut self.untold);
        if left.requests == 0 {
            return None;
        }
        self.told_at = Some(now);
        Some(left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_those_of_a_minute_together() {
        let mut escalations = Escalations::default();
        let [a, b] = [Digest([1; 32]), Digest([2; 32])];
        let first = escalations.left(Mono(5), &a).unwrap();
        assert_eq!(first, Left { requests: 1, digest: Digest::of(&[[0; 32], a.0].concat()) });
        assert_eq!(escalations.left(Mono(6), &a), None);
        assert_eq!(escalations.left(Mono(60_000), &b), None);
        assert_eq!(escalations.due(Mono(60_004)), None);
        let both = Digest::of(&[first.digest.0, b.0].concat());
        assert_eq!(escalations.due(Mono(60_005)), Some(Left { requests: 2, digest: both }));
        assert_eq!(escalations.due(Mono(500_000)), None, "nothing left");
        assert_eq!(escalations.left(Mono(500_000), &a).map(|left| left.requests), Some(1));
        assert_eq!(escalations.left(Mono(500_001), &a), None);
        assert_eq!(escalations.rest(Mono(500_001)).map(|left| left.requests), Some(1));
        assert_eq!(escalations.rest(Mono(500_002)), None);
    }

    proptest! {
        #[test]
        fn each_is_told_once_and_entries_are_rare(pauses in prop::collection::vec(0..20_000_u64, 0..80)) {
            let mut escalations = Escalations::default();
            let (mut now, mut told, mut entries) = (0, 0, 0);
            for pause in &pauses {
                now += pause;
                if let Some(left) = escalations.left(Mono(now), &Digest([3; 32])) {
                    told += left.requests;
                    entries += 1;
                }
            }
            told += escalations.rest(Mono(now)).map_or(0, |left| left.requests);
            prop_assert_eq!(told, pauses.len() as u64);
            prop_assert!(entries <= 1 + now / Escalations::EVERY_MS);
        }
    }
}
