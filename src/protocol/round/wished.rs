//! When an owner opens a round because something happened: a drift, enough labels, enough time.
//!
//! Members say all that they have counted so far, again and again, so nothing depends on what gets lost or comes twice: what is
//! more than was known is new. What is new counts towards the next round until one opens, in the same transaction
//! as that, and is kept over a restart: an owner that dies forgets no wish and answers none twice. The round's own clock
//! decides; after a restart the wall's, which at worst waits once more for as long as it should.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::time::{Mono, Now, Wall};
use crate::wire::Wishes;

/// What opens a round, where the owner doesn't open one after the other. Any of them does; 0 switches one off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Triggers {
    /// Time since the last round opened.
    pub every_ms: u64,
    /// Drifts that members told of since then.
    pub drifts: u64,
    /// Labels that members took since then.
    pub labels: u64,
    /// Least time between two rounds, whatever happens.
    pub apart_ms: u64,
}

/// What members want, and since when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wished {
    /// All that each member has told.
    told: BTreeMap<NodeId, Wishes>,
    /// What of it no round was opened for.
    fresh: Wishes,
    /// The last round came to nothing: what it was opened for is still wanted.
    owed: bool,
    /// When the last round opened, or this owner was first started.
    since: Wall,
    /// The same in this life of the process.
    #[serde(skip)]
    mono: Option<Mono>,
}

impl Wished {
    /// A member says what it has counted; gives what is new of it.
    pub(super) fn told(&mut self, member: &NodeId, wishes: Wishes) -> Wishes {
        let known = self.told.entry(member.clone()).or_default();
        let fresh = Wishes {
            drifts: wishes.drifts.saturating_sub(known.drifts),
            labels: wishes.labels.saturating_sub(known.labels),
        };
        *known = known.plus(fresh);
        self.fresh = self.fresh.plus(fresh);
        fresh
    }

    /// A round opens.
    pub(super) fn opened(&mut self, now: Now) {
        (self.fresh, self.owed) = (Wishes::default(), false);
        (self.since, self.mono) = (now.wall, Some(now.mono));
    }

    /// That round came to nothing.
    pub(super) fn failed(&mut self) {
        self.owed = true;
    }

    /// Whether an owner was ever started with it.
    pub(super) fn is_new(&self) -> bool {
        self.since == Wall::default()
    }

    /// How long until a round may open, with what is known now; `None` while nothing asks for one.
    pub(super) fn wait_ms(&self, triggers: Triggers, now: Now) -> Option<u64> {
        let gone = match self.mono {
            Some(mono) => now.mono.0.saturating_sub(mono.0),
            None => now.wall.0.saturating_sub(self.since.0),
        };
        let enough = |wanted: u64, fresh: u64| wanted > 0 && fresh >= wanted;
        let Triggers { every_ms, drifts, labels, apart_ms } = triggers;
        let fires =
            self.owed || enough(drifts, self.fresh.drifts) || enough(labels, self.fresh.labels);
        let after = match (fires, every_ms) {
            (true, _) => apart_ms,
            (false, 0) => return None,
            (false, every_ms) => every_ms.max(apart_ms),
        };
        Some(after.saturating_sub(gone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Triggers = Triggers { every_ms: 1_000, drifts: 2, labels: 10, apart_ms: 100 };

    fn at(ms: u64) -> Now {
        Now { mono: Mono(ms), micros: ms * 1_000, wall: Wall(1_000_000 + ms) }
    }

    fn told(wished: &mut Wished, member: &str, drifts: u64, labels: u64) -> Wishes {
        wished.told(&NodeId::new(member).unwrap(), Wishes { drifts, labels })
    }

    fn started() -> Wished {
        let mut wished = Wished::default();
        wished.opened(at(0));
        wished
    }

    #[test]
    fn what_comes_again_or_late_is_nothing_new() {
        let mut wished = started();
        assert_eq!(told(&mut wished, "a", 1, 4), Wishes { drifts: 1, labels: 4 });
        assert_eq!(told(&mut wished, "a", 1, 4), Wishes::default());
        assert_eq!(told(&mut wished, "a", 0, 2), Wishes::default(), "an older one");
        assert_eq!(told(&mut wished, "a", 1, 7), Wishes { drifts: 0, labels: 3 });
        wished.opened(at(10));
        assert_eq!(told(&mut wished, "a", 1, 7), Wishes::default());
        assert_eq!(wished.fresh, Wishes::default());
    }

    #[test]
    fn each_trigger_fires_at_its_number_and_not_before_and_never_too_close_to_the_last_round() {
        let off = Triggers { every_ms: 0, ..ALL };
        for (triggers, drifts, labels, wait) in [
            (ALL, 0, 0, Some(950)),
            (off, 0, 0, None),
            (off, 1, 9, None),
            (off, 2, 0, Some(50)),
            (off, 0, 10, Some(50)),
            (Triggers { drifts: 0, ..off }, 99, 0, None),
            (Triggers { labels: 0, ..off }, 0, 99, None),
            (Triggers { every_ms: 20, ..ALL }, 0, 0, Some(50)),
        ] {
            let mut wished = started();
            told(&mut wished, "a", drifts.min(1), labels);
            told(&mut wished, "b", drifts.saturating_sub(1), 0);
            assert_eq!(wished.wait_ms(triggers, at(50)), wait, "{triggers:?} {drifts} {labels}");
        }
        let mut wished = started();
        told(&mut wished, "a", 2, 0);
        assert_eq!(wished.wait_ms(ALL, at(5_000)), Some(0));
    }

    #[test]
    fn what_a_round_that_failed_was_opened_for_is_wanted_until_one_opens() {
        let mut wished = started();
        wished.failed();
        assert_eq!(wished.wait_ms(Triggers { every_ms: 0, ..ALL }, at(30)), Some(70));
        wished.opened(at(100));
        assert_eq!(wished.wait_ms(Triggers { every_ms: 0, ..ALL }, at(130)), None);
    }

    #[test]
    fn after_a_restart_the_wall_counts_and_one_that_went_back_waits_once_more() {
        let mut wished = started();
        told(&mut wished, "a", 2, 0);
        wished.mono = None;
        assert_eq!(wished.wait_ms(ALL, at(40)), Some(60));
        let back = Now { wall: Wall(5), ..at(40) };
        assert_eq!(wished.wait_ms(ALL, back), Some(100));
        let far = Now { wall: Wall(u64::MAX), ..at(40) };
        assert_eq!(wished.wait_ms(ALL, far), Some(0));
    }
}
