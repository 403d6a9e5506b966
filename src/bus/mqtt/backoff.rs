//! How long to wait before the next attempt: doubling, with full jitter, so that a plant's nodes
//! don't all come back in the same second.

use std::time::Duration;

use crate::rng::Stream;

/// Waiting times between `min_ms` and `max_ms`.
#[derive(Debug)]
pub(super) struct Backoff {
    stream: Stream,
    min_ms: u32,
    max_ms: u32,
    ceiling_ms: u32,
}

impl Backoff {
    pub(super) fn new(seed: u64, min_ms: u32, max_ms: u32) -> Self {
        let stream = Stream::new(seed, "bus/backoff");
        Self { stream, min_ms, max_ms: max_ms.max(min_ms), ceiling_ms: min_ms }
    }

    /// The next waiting time. The first is `min_ms`; later ones lie between it and a growing bound.
    pub(super) fn next(&mut self) -> Duration {
        let waiting = self.stream.range(f64::from(self.min_ms), f64::from(self.ceiling_ms));
        self.ceiling_ms = self.ceiling_ms.saturating_mul(2).min(self.max_ms);
        Duration::from_secs_f64(waiting.max(0.0) / 1_000.0)
    }

    /// A connection has lasted: start small again.
    pub(super) fn reset(&mut self) {
        self.ceiling_ms = self.min_ms;
    }

    /// A connection that lives this long counts as good. One that the broker drops at once doesn't:
    /// a message that neither side can take would make us call every second for ever.
    pub(super) fn good_after(&self) -> Duration {
        Duration::from_millis(u64::from(self.min_ms) * 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_inside_the_bounds_and_repeat_with_the_seed() {
        let draw = |seed| {
            let mut backoff = Backoff::new(seed, 1_000, 60_000);
            (0..40).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        let waits = draw(1);
        assert_eq!(waits, draw(1));
        assert_ne!(waits, draw(2));
        assert_eq!(waits[0], Duration::from_secs(1));
        assert!(waits.iter().all(|w| (1.0..=60.0).contains(&w.as_secs_f64())));
        assert!(waits.iter().any(|w| w.as_secs() > 30));
    }

    #[test]
    fn good_connection_starts_small_again() {
        let mut backoff = Backoff::new(3, 1_000, 60_000);
        for _ in 0..10 {
            backoff.next();
        }
        backoff.reset();
        assert_eq!(backoff.next(), Duration::from_secs(1));
    }
}
