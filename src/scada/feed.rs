//! A recording as a sensor gateway would send it: which payload at which moment. No IO.
//!
//! A gateway sends a telegram when its last sample is measured, so the first one comes after a
//! whole chunk's time. Faster replay shortens the time between telegrams, not the recording.

use std::num::{NonZeroU32, NonZeroUsize};

use serde::Serialize;

use crate::time::Wall;

/// Schedule of a recording's telegrams: an iterator over [`Telegram`]s.
#[derive(Debug, Clone)]
pub struct Feed<'a> {
    samples: &'a [f32],
    sent: usize,
    chunk: usize,
    samples_per_ms: f64,
    start: Wall,
}

/// One telegram of a sensor gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telegram {
    /// When to send it, in milliseconds after the start.
    pub offset_ms: u64,
    /// `{"ts": .., "values": [..]}`; a sample that is no finite number is `null`.
    pub payload: Vec<u8>,
}

#[derive(Serialize)]
struct Body<'a> {
    /// Epoch milliseconds at which the last value was measured (in the replay's time).
    ts: Wall,
    values: &'a [f32],
}

/// A speed that no recording can be played at.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the speed must be between {} and {}, got {got}", Feed::MIN_SPEED, Feed::MAX_SPEED)]
pub struct FeedSpeedError {
    got: f64,
}

impl<'a> Feed<'a> {
    /// Slowest replay.
    pub const MIN_SPEED: f64 = 0.001;
    /// Fastest replay.
    pub const MAX_SPEED: f64 = 10_000.0;

    /// Plays `samples`, recorded at `rate_hz`, in telegrams of `chunk` samples from `start` on.
    /// `speed` 2 sends them twice as fast as they were measured. The last telegram may be shorter.
    ///
    /// # Errors
    /// [`FeedSpeedError`] when the speed is out of its range.
    pub fn new(
        samples: &'a [f32],
        rate_hz: NonZeroU32,
        chunk: NonZeroUsize,
        speed: f64,
        start: Wall,
    ) -> Result<Self, FeedSpeedError> {
        if !(Self::MIN_SPEED..=Self::MAX_SPEED).contains(&speed) {
            return Err(FeedSpeedError { got: speed });
        }
        let samples_per_ms = f64::from(rate_hz.get()) * speed / 1_000.0;
        Ok(Self { samples, sent: 0, chunk: chunk.get(), samples_per_ms, start })
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sample counts are below 2^53; the quotient is finite and not negative"
    )]
    fn offset_ms(&self, samples: usize) -> u64 {
        (samples as f64 / self.samples_per_ms).round() as u64
    }
}

impl Iterator for Feed<'_> {
    type Item = Telegram;

    fn next(&mut self) -> Option<Telegram> {
        let rest = self.samples.get(self.sent..).unwrap_or_default();
        let values = rest.get(..self.chunk).unwrap_or(rest);
        if values.is_empty() {
            return None;
        }
        self.sent += values.len();
        let offset_ms = self.offset_ms(self.sent);
        let body = Body { ts: self.start.plus_ms(offset_ms), values };
        let payload = serde_json::to_vec(&body).ok()?; // plain numbers always serialise
        Some(Telegram { offset_ms, payload })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn feed(samples: &[f32], rate: u32, chunk: usize, speed: f64) -> Feed<'_> {
        let rate = NonZeroU32::new(rate).unwrap();
        Feed::new(samples, rate, NonZeroUsize::new(chunk).unwrap(), speed, Wall(1_000)).unwrap()
    }

    fn body(telegram: &Telegram) -> Value {
        serde_json::from_slice(&telegram.payload).unwrap()
    }

    #[test]
    fn telegrams_come_when_their_last_sample_is_measured() {
        let samples = [1.0, 2.0, 3.0, 4.0, 5.0];
        let telegrams: Vec<Telegram> = feed(&samples, 100, 2, 1.0).collect();
        let offsets: Vec<u64> = telegrams.iter().map(|t| t.offset_ms).collect();
        assert_eq!(offsets, [20, 40, 50]);
        assert_eq!(body(&telegrams[1]), json!({"ts": 1_040, "values": [3.0, 4.0]}));
        assert_eq!(body(&telegrams[2]), json!({"ts": 1_050, "values": [5.0]}));
    }

    #[test]
    fn speed_shortens_the_time_between_telegrams_and_keeps_the_samples() {
        let samples = [0.5; 8];
        let fast: Vec<Telegram> = feed(&samples, 100, 4, 10.0).collect();
        assert_eq!(fast.iter().map(|t| t.offset_ms).collect::<Vec<_>>(), [4, 8]);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let one = NonZeroU32::MIN;
            assert!(Feed::new(&samples, one, NonZeroUsize::MIN, bad, Wall(0)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sample_that_is_no_number_is_null() {
        let telegram = feed(&[1.0, f32::NAN], 1, 2, 1.0).next().unwrap();
        assert_eq!(body(&telegram)["values"], json!([1.0, null]));
    }

    proptest! {
        #[test]
        fn every_sample_is_sent_once_and_in_order(
            samples in prop::collection::vec(-1e6_f32..1e6, 0..200),
            rate in 1_u32..100_000, chunk in 1_usize..64, speed in 0.001_f64..10_000.0,
        ) {
            let telegrams: Vec<Telegram> = feed(&samples, rate, chunk, speed).collect();
            let mut sent = Vec::new();
            for telegram in &telegrams {
                for value in body(telegram)["values"].as_array().unwrap() {
                    sent.push(crate::scada::tags::narrow(value.as_f64().unwrap()));
                }
            }
            prop_assert_eq!(sent, samples);
            prop_assert!(telegrams.windows(2).all(|pair| pair[0].offset_ms <= pair[1].offset_ms));
        }
    }
}
