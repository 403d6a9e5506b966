//! Time as plain values. Nothing here reads a clock; `now` is always an argument.
//!
//! Two kinds that must not be mixed: [`Mono`] orders timers inside one process; [`Wall`] is what
//! people read and what expiry compares. Safety never rests on the wall clock: it can only make a
//! node refuse a change.

use serde::{Deserialize, Serialize};

/// Milliseconds since the process started. Never goes back, means nothing elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(pub u64);

/// Milliseconds since 1970-01-01 UTC, as far as the machine's clock can be believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wall(pub u64);

/// Both readings, taken together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// Microseconds since the process started, for latencies.
    pub micros: u64,
    /// For people and for expiry.
    pub wall: Wall,
}

/// Where a node gets its time from: the machine's clock, or a test's.
pub trait Clock: Send + Sync {
    /// Both readings.
    fn now(&self) -> Now;
}

impl Wall {
    /// This moment plus `ms` milliseconds, at most the end of time.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
