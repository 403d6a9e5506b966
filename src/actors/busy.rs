//! Whether the machine needs its computer for itself: training waits meanwhile, answers go on.
//!
//! Set by the inferencer from tags that bind `idle`; the lane that trains asks before each step.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module. Not busy until somebody says so.
#[derive(Debug, Default)]
pub struct Busy {
    busy: Mutex<bool>,
    changed: Condvar,
}

impl Busy {
    /// The machine works now, or stands still.
    pub fn set(&self, busy: bool) {
        *self.lock() = busy;
        self.changed.notify_all();
    }

    /// Blocks the calling thread while the machine works.
    pub fn wait_until_idle(&self) {
        let waited = self.changed.wait_while(self.lock(), |busy| *busy);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // A flag is whole whoever panicked beside it.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn work_waits_until_the_machine_stands_still_and_not_when_it_does() {
        let busy = Arc::new(Busy::default());
        busy.wait_until_idle();
        busy.set(true);
        let order = Arc::new(Mutex::new(Vec::new()));
        let (waiting, seen) = (Arc::clone(&busy), Arc::clone(&order));
        let lane = std::thread::spawn(move || {
            waiting.wait_until_idle();
            seen.lock().unwrap().push("a step");
        });
        order.lock().unwrap().push("it stands still");
        busy.set(false);
        lane.join().unwrap();
        assert_eq!(*order.lock().unwrap(), ["it stands still", "a step"]);
    }
}
