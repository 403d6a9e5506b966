//! What keeps training from going on: the machine works, a value forbids it, the plant's hours. Answers go on meanwhile.
//!
//! The lane that trains asks before each step, so it stops within one and goes on where it stood. The inferencer sets what tags say;
//! the hours are asked each time. Between two steps it also rests as long as the quota of processor time asks for.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why training waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// A tag that binds `idle` says that the machine works.
    Machine,
    /// A tag that binds `veto` has a value beyond its bounds.
    Veto,
    /// It isn't among the plant's idle hours.
    Hours,
}

impl Hold {
    /// Its word in metrics.
    pub fn counted(self) -> &'static str {
        match self {
            Self::Machine => "training_waits_machine",
            Self::Veto => "training_waits_veto",
            Self::Hours => "training_waits_hours",
        }
    }
}

/// Says whether these are hours in which the plant lets machines train.
pub type AreHours = Box<dyn Fn() -> bool + Send + Sync>;

/// See the module. Nothing holds it until somebody says so.
#[derive(Default)]
pub struct Busy {
    holds: Mutex<BTreeSet<Hold>>,
    changed: Condvar,
    hours: Option<AreHours>,
}

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Busy").field("holds", &self.holds).finish_non_exhaustive()
    }
}

impl Busy {
    /// Hours begin at most so much later than they should.
    const LOOK_EACH: Duration = Duration::from_secs(20);

    /// Trains in these hours only.
    pub fn with_hours(hours: Option<AreHours>) -> Self {
        Self { hours, ..Self::default() }
    }

    /// Something holds training now, or no longer.
    pub fn set(&self, hold: Hold, holds: bool) {
        let mut all = self.lock();
        let changed = if holds { all.insert(hold) } else { all.remove(&hold) };
        if changed {
            self.changed.notify_all();
        }
    }

    /// Blocks the calling thread while something holds it; `waits` hears why, once for each reason in turn.
    pub fn wait_until_idle(&self, waits: &mut dyn FnMut(Hold)) {
        let (mut all, mut said) = (self.lock(), None);
        while let Some(hold) = self.first(&all) {
            if said != Some(hold) {
                waits(hold);
                said = Some(hold);
            }
            let waited = self.changed.wait_timeout(all, Self::LOOK_EACH);
            all = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn first(&self, all: &BTreeSet<Hold>) -> Option<Hold> {
        let closed = || self.hours.as_ref().is_some_and(|are_hours| !are_hours());
        all.first().copied().or_else(|| closed().then_some(Hold::Hours))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Hold>> {
        // A set of flags is whole whoever panicked beside it.
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pause behind work of so many microseconds, so that the work takes this percentage of the time; at most ten seconds.
pub(super) fn rest_us(worked_us: u64, percent: u8) -> u64 {
    const MOST: u64 = 10_000_000;
    let percent = u64::from(percent.clamp(1, 100));
    (worked_us.saturating_mul(100 - percent) / percent).min(MOST)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn work_waits_until_nothing_holds_it_and_not_when_nothing_does() {
        let busy = Arc::new(Busy::default());
        busy.wait_until_idle(&mut |_| panic!("nothing holds it"));
        busy.set(Hold::Machine, true);
        busy.set(Hold::Veto, true);
        let order = Arc::new(Mutex::new(Vec::new()));
        let (waiting, seen) = (Arc::clone(&busy), Arc::clone(&order));
        let (said, heard) = std::sync::mpsc::channel();
        let lane = std::thread::spawn(move || {
            waiting.wait_until_idle(&mut |hold| said.send(hold).unwrap());
            seen.lock().unwrap().push("a step");
        });
        assert_eq!(heard.recv().unwrap(), Hold::Machine);
        busy.set(Hold::Machine, false);
        assert_eq!(heard.recv().unwrap(), Hold::Veto, "the other still does");
        order.lock().unwrap().push("nothing holds it");
        busy.set(Hold::Veto, false);
        lane.join().unwrap();
        assert_eq!(*order.lock().unwrap(), ["nothing holds it", "a step"]);
    }

    #[test]
    fn hours_are_asked_each_time() {
        let open = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&open);
        let busy = Busy::with_hours(Some(Box::new(move || asked.load(Ordering::SeqCst))));
        assert_eq!(busy.first(&busy.lock()), Some(Hold::Hours));
        open.store(true, Ordering::SeqCst);
        busy.wait_until_idle(&mut |_| panic!("it is open"));
    }

    #[test]
    fn rests_make_work_its_part_of_the_time() {
        assert_eq!(rest_us(1_000, 100), 0);
        assert_eq!(rest_us(1_000, 50), 1_000);
        assert_eq!(rest_us(1_000, 20), 4_000);
        assert_eq!(rest_us(1_000, 0), 99_000, "as 1 %");
        assert_eq!(rest_us(u64::MAX, 1), 10_000_000, "bounded");
    }
}
