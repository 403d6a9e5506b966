//! How fast a device trains: while nothing holds it ([`Busy`]), and no more of the time than its quota.
//!
//! Asked by the lanes that train, on their own threads, between two steps.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::busy::{Busy, rest_us};
use super::figures::Figures;
use crate::time::Clock;

/// See the module.
pub struct Pace {
    busy: Arc<Busy>,
    clock: Arc<dyn Clock>,
    percent: u8,
}

impl Pace {
    /// Trains in `percent` of the time that nothing holds it, 1 to 100.
    pub fn new(busy: Arc<Busy>, clock: Arc<dyn Clock>, percent: u8) -> Self {
        Self { busy, clock, percent }
    }

    /// Never waits, never rests.
    pub fn free(clock: Arc<dyn Clock>) -> Self {
        Self::new(Arc::new(Busy::default()), clock, 100)
    }

    /// Microseconds by the node's clock.
    pub(super) fn now(&self) -> u64 {
        self.clock.now().micros
    }

    /// Waits while something holds training, counted by its reason.
    pub(super) fn wait(&self, figures: &Figures) {
        self.busy.wait_until_idle(&mut |hold| {
            tracing::info!(?hold, "training waits");
            figures.count(hold.counted());
        });
    }

    /// Rests for the work that began then.
    #[expect(clippy::disallowed_methods, reason = "a lane's own thread, which nobody waits for")]
    pub(super) fn rest_since(&self, begun_us: u64) {
        if self.percent < 100 {
            let worked_us = self.now().saturating_sub(begun_us);
            thread::sleep(Duration::from_micros(rest_us(worked_us, self.percent)));
        }
    }

    /// Behind a step that began then: gives when the next one does.
    pub(super) fn step(&self, begun_us: Option<u64>, figures: &Figures) -> u64 {
        if let Some(begun_us) = begun_us {
            self.rest_since(begun_us);
        }
        self.wait(figures);
        self.now()
    }
}
