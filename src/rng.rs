//! Seeded randomness: each use has a named stream, so that adding one never shifts another.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use ring::digest::{Context, SHA256};

/// A deterministic stream of random numbers (`ChaCha8`, the same on each machine).
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream `name` of `seed`. Other names give independent streams.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(b"gaisnet-rng-v1\n");
        hash.update(&seed.to_le_bytes());
        hash.update(name.as_bytes());
        let mut key = [0; 32];
        key.copy_from_slice(hash.finish().as_ref());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `[0, 1)`, 53 bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n` (Lemire's multiply-shift; the bias is below 2^-32 for n < 2^32).
    ///
    /// # Panics
    /// In debug builds when `n` is 0.
    #[expect(clippy::cast_possible_truncation, reason = "the high half is below n")]
    pub fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0, "no number is below 0");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal (Box-Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_name() {
        let draw = |seed, name| -> Vec<u64> {
            let mut stream = Stream::new(seed, name);
            (0..4).map(|_| stream.next_u64()).collect()
        };
        assert_eq!(draw(1, "batch"), draw(1, "batch"));
        assert_ne!(draw(1, "batch"), draw(1, "noise"));
        assert_ne!(draw(1, "batch"), draw(2, "batch"));
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut stream = Stream::new(7, "normal");
        let draws: Vec<f64> = (0..20_000).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
