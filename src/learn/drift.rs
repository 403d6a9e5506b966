//! Whether what a model is asked, or how sure it is, has changed since a version began to answer.
//!
//! [`InputDrift`] holds the first windows against the latest, a feature at a time. [`ConfidenceDrift`] finds a
//! change in the mean of values between 0 and 1 wherever it lies. Both say how often they are wrong where nothing
//! changed, as long as what they see is independent: windows that overlap, or a machine that is long in one state and
//! then in another, make them louder. Memory is bounded. Called by `actors/drift_watch.rs`.

use std::collections::VecDeque;

use super::two_samples::two_samples;

/// What counts as drift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DriftConfig {
    /// Windows that the latest are held against: the first that a version is asked, > 0.
    pub reference: usize,
    /// Windows that are held against them at a time, > 0.
    pub recent: usize,
    /// One window in so many is looked at, > 0: neighbours are alike.
    pub every: u32,
    /// Most false alarms a look, in (0, 1).
    pub alpha: f64,
}

/// Features of a window that are compared.
pub const FEATURES: [&str; 4] = ["mean", "deviation", "peak", "roughness"];

/// A look at the inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputLook {
    /// Largest distance of a feature's distribution from its reference, 0 to 1 (Kolmogorov and Smirnov).
    pub distance: f64,
    /// The feature whose distance is the least likely.
    pub feature: &'static str,
    /// How likely that is where nothing changed, times the number of features (Bonferroni), at most 1.
    pub p_value: f64,
    /// That is less than [`DriftConfig::alpha`].
    pub drifted: bool,
}

/// Compares the inputs of a version with the first that it was asked.
#[derive(Debug, Clone)]
pub struct InputDrift {
    config: DriftConfig,
    reference: [Vec<f64>; 4],
    recent: [Vec<f64>; 4],
}

impl InputDrift {
    /// Has seen nothing.
    pub fn new(config: DriftConfig) -> Self {
        Self { config, reference: Default::default(), recent: Default::default() }
    }

    /// Takes in a window's features; gives a look once enough came since the last.
    pub fn see(&mut self, features: [f64; 4]) -> Option<InputLook> {
        let into = if self.reference[0].len() < self.config.reference {
            &mut self.reference
        } else {
            &mut self.recent
        };
        for (values, value) in into.iter_mut().zip(features) {
            values.push(value);
        }
        (self.recent[0].len() >= self.config.recent).then(|| self.look())
    }

    /// False alarms are no more likely than alpha: the probabilities of the features add up to it at most, however
    /// they hang together.
    fn look(&mut self) -> InputLook {
        let mut look =
            InputLook { distance: 0.0, feature: FEATURES[0], p_value: 1.0, drifted: false };
        let pairs = self.reference.iter().zip(&self.recent).zip(FEATURES);
        for ((before, now), feature) in pairs {
            let Some(test) = two_samples(before, now) else { continue };
            look.distance = look.distance.max(test.distance);
            let p_value = (test.p_value * 4.0).min(1.0);
            if p_value < look.p_value {
                (look.p_value, look.feature) = (p_value, feature);
            }
        }
        look.drifted = look.p_value < self.config.alpha;
        self.recent.iter_mut().for_each(Vec::clear);
        look
    }
}

/// What is compared of a window, as [`FEATURES`] names it: its mean; the deviation around it (root of the mean square);
/// the largest deviation, and the mean step from one sample to the next, both in parts of that deviation and 0 without one.
///
/// Not finite where the window isn't.
pub fn window_features(window: &[f32]) -> [f64; 4] {
    let mean_of = |values: &mut dyn Iterator<Item = f64>| {
        let (mut sum, mut count) = (0.0, 0.0_f64);
        for value in values {
            sum += value;
            count += 1.0;
        }
        sum / count.max(1.0)
    };
    let mean = mean_of(&mut window.iter().map(|x| f64::from(*x)));
    let from_mean = window.iter().map(|x| f64::from(*x) - mean);
    let deviation = mean_of(&mut from_mean.clone().map(|x| x * x)).sqrt();
    let peak = from_mean.map(f64::abs).fold(0.0, f64::max);
    let steps = window.iter().zip(window.iter().skip(1));
    let step = mean_of(&mut steps.map(|(x, next)| (f64::from(*next) - f64::from(*x)).abs()));
    let parts = if deviation > 0.0 { deviation } else { f64::INFINITY };
    [mean, deviation, peak / parts, step / parts]
}

/// Finds a change in the mean of independent values between 0 and 1.
///
/// It keeps the latest values in buckets. Each time that one is full, it looks at each way to cut what it has in two: where
/// the means of an older and a newer part are further apart than [`ConfidenceDrift::cut`] allows, the mean has changed,
/// and the older part is forgotten. A look is wrong no more often than delta where nothing changed, whatever the
/// distribution (Hoeffding), for the cuts share delta.
///
/// # Source
/// `ADWIN`: Bifet and Gavaldà 2007, SIAM International Conference on Data Mining, theorem 3.1; with buckets of one size and a bound on
/// their number in the place of the exponential histogram.
#[derive(Debug, Clone)]
pub struct ConfidenceDrift {
    delta: f64,
    /// Full ones, the oldest first.
    buckets: VecDeque<f64>,
    /// Sum and number of the values behind them.
    open: (f64, usize),
}

impl ConfidenceDrift {
    /// Values of a bucket.
    pub const BUCKET: usize = 32;
    /// Buckets at most.
    pub const BUCKETS: usize = 64;

    /// Has seen nothing; `delta` is the rate of false alarms a look, in (0, 1).
    pub fn new(delta: f64) -> Self {
        Self { delta, buckets: VecDeque::new(), open: (0.0, 0) }
    }

    /// Takes in a value. Gives by how much the mean changed, where it did.
    pub fn see(&mut self, value: f64) -> Option<f64> {
        let value = if value.is_finite() { value.clamp(0.0, 1.0) } else { 0.0 };
        self.open = (self.open.0 + value, self.open.1 + 1);
        if self.open.1 < Self::BUCKET {
            return None;
        }
        self.buckets.push_back(self.open.0);
        self.open = (0.0, 0);
        if self.buckets.len() > Self::BUCKETS {
            self.buckets.pop_front();
        }
        self.look()
    }

    /// How far the means of two parts may be apart, which have `older` and `newer` values; `cuts` are looked at.
    pub fn cut(delta: f64, cuts: f64, older: f64, newer: f64) -> f64 {
        let harmonic = 1.0 / (1.0 / older + 1.0 / newer);
        ((4.0 * cuts / delta).ln() / (2.0 * harmonic)).sqrt()
    }

    fn look(&mut self) -> Option<f64> {
        let count = |buckets: usize| as_f64(buckets * Self::BUCKET);
        let (all, sum) = (self.buckets.len(), self.buckets.iter().sum::<f64>());
        let mut before = 0.0;
        let mut found = None;
        for (at, bucket) in self.buckets.iter().enumerate().take(all.saturating_sub(1)) {
            before += bucket;
            let (older, newer) = (count(at + 1), count(all - at - 1));
            let change = (sum - before) / newer - before / older;
            if change.abs() >= Self::cut(self.delta, as_f64(all - 1), older, newer) {
                found = Some((at + 1, change));
            }
        }
        let (older, change) = found?;
        self.buckets.drain(..older);
        Some(change)
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of windows")]
fn as_f64(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
#[path = "drift_tests.rs"]
mod tests;
