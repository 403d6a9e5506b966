//! The machine's clock: the only place that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::time::{Clock, Mono, Now, Wall};

/// Reads tokio's monotonic clock (which tests can pause) and the system's wall clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    /// Wall time at `start`, where the wall clock is derived from the monotonic one.
    fixed: Option<Wall>,
}

impl SystemClock {
    /// The machine's clock.
    #[expect(clippy::new_without_default, reason = "a clock starts at a moment, not at a default")]
    pub fn new() -> Self {
        Self { start: Instant::now(), fixed: None }
    }

    /// A clock whose wall time runs with tokio's: paused and moved together with it.
    pub fn starting_at(wall: Wall) -> Self {
        Self { start: Instant::now(), fixed: Some(wall) }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the home of clocks")]
    fn now(&self) -> Now {
        let since = Instant::now().saturating_duration_since(self.start);
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let wall = if let Some(start) = self.fixed {
            start.plus_ms(ms)
        } else {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Wall(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
        };
        Now { mono: Mono(ms), micros: u64::try_from(since.as_micros()).unwrap_or(u64::MAX), wall }
    }
}
