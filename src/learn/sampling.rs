//! Picks the next token from a model's logits: the likeliest, or drawn by temperature and top-p.

use super::LearnError;
use crate::rng::Stream;

/// How tokens are picked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    temperature: f64,
    top_p: f64,
}

/// Picks tokens, one after the other, with its own stream of random numbers.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    stream: Stream,
}

impl Sampling {
    /// The likeliest token each time.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0 };
    /// Above it all tokens are nearly alike.
    pub const MAX_TEMPERATURE: f64 = 10.0;

    /// Logits are divided by `temperature`, 0 to 10 (0 is greedy); of the likeliest tokens so many are
    /// drawn from that their probabilities sum to at least `top_p`, above 0 to 1 (1 is all).
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`].
    /// # Source
    /// Holtzman et al. 2020, arXiv:1904.09751 (nucleus sampling).
    pub fn new(temperature: f64, top_p: f64) -> Result<Self, LearnError> {
        let out = |what, expected: &str, actual: f64| LearnError::OutOfRange {
            what,
            expected: expected.to_owned(),
            actual: actual.to_string(),
        };
        if !(0.0..=Self::MAX_TEMPERATURE).contains(&temperature) {
            return Err(out("temperature", "0 to 10", temperature));
        }
        if top_p > 0.0 && top_p <= 1.0 {
            Ok(Self { temperature, top_p })
        } else {
            Err(out("top_p", "above 0, at most 1", top_p))
        }
    }
}

impl Sampler {
    /// A sampler; the same seed and logits give the same tokens.
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        Self { sampling, stream: Stream::new(seed, "sampling") }
    }

    /// The next token's id from logits `[vocab]`; minus infinity rules a token out. Of equal ones the
    /// first is the likelier.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] when a logit is NaN or plus infinity, or no token is left.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32, LearnError> {
        let best = best_of(logits)?;
        if self.sampling.temperature <= 0.0 {
            return Ok(best.0);
        }
        let temperature = self.sampling.temperature;
        let power = |z: f32| (f64::from(z - best.1) / temperature).exp();
        let sum: f64 = logits.iter().map(|z| power(*z)).sum();
        // Tokens below the cut-off have less than 1 - top_p in all: those above reach top_p.
        let cut = sum * (1.0 - self.sampling.top_p) / width(logits.len());
        let mut nucleus: Vec<(u32, f64)> =
            (0..).zip(logits).map(|(id, z)| (id, power(*z))).filter(|(_, p)| *p >= cut).collect();
        if self.sampling.top_p < 1.0 {
            nucleus.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            let mut reached = 0.0;
            let mut enough = |p: f64| {
                let before = reached;
                reached += p;
                before < self.sampling.top_p * sum
            };
            let kept = nucleus.iter().take_while(|(_, p)| enough(*p)).count();
            nucleus.truncate(kept.max(1));
        }
        let all: f64 = nucleus.iter().map(|(_, p)| p).sum();
        let mut left = self.stream.unit() * all;
        for (id, p) in &nucleus {
            left -= p;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        Ok(best.0) // rounding let the draw pass the end
    }
}

/// Id and logit of the largest, the first of equal ones.
fn best_of(logits: &[f32]) -> Result<(u32, f32), LearnError> {
    let mut best: Option<(u32, f32)> = None;
    for (id, z) in (0..).zip(logits) {
        if z.is_nan() || *z == f32::INFINITY {
            let index = usize::try_from(id).unwrap_or(usize::MAX);
            return Err(LearnError::NotFinite { name: "logits".to_owned(), index });
        }
        if *z > best.map_or(f32::NEG_INFINITY, |(_, top)| top) {
            best = Some((id, *z));
        }
    }
    best.ok_or_else(|| LearnError::NotFinite { name: "logits".to_owned(), index: 0 })
}

#[expect(clippy::cast_precision_loss, reason = "a vocabulary is far below 2^53")]
fn width(vocab: usize) -> f64 {
    vocab.max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Logits of these probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    fn counts(sampling: Sampling, logits: &[f32], draws: u32) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, 7);
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.pick(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_largest_and_the_first_of_equal_ones() {
        let mut greedy = Sampler::new(Sampling::GREEDY, 1);
        assert_eq!(greedy.pick(&[0.5, 2.0, 1.0]), Ok(1));
        assert_eq!(greedy.pick(&[0.5, 2.0, 2.0]), Ok(1));
        assert_eq!(greedy.pick(&[-3.0, f32::NEG_INFINITY]), Ok(0));
    }

    #[test]
    fn draws_have_the_softmaxs_frequencies() {
        let plain = Sampling::new(1.0, 1.0).unwrap();
        let seen = counts(plain, &logits(&[0.5, 0.3, 0.2]), 10_000);
        // Three standard deviations of a binomial are below 150.
        for (seen, wanted) in seen.iter().zip([5_000_i64, 3_000, 2_000]) {
            assert!((i64::from(*seen) - wanted).abs() < 150, "{seen} {wanted}");
        }
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        // p^2 of (0.8, 0.2) is (0.64, 0.04): 0.9412 of the draws; p^(1/2) is (0.894, 0.447): 0.6667.
        let seen = |temperature| {
            counts(Sampling::new(temperature, 1.0).unwrap(), &logits(&[0.8, 0.2]), 10_000)[0]
        };
        assert!((9_340..9_484).contains(&seen(0.5)), "{}", seen(0.5));
        assert!((6_525..6_809).contains(&seen(2.0)), "{}", seen(2.0));
    }

    #[test]
    fn top_p_draws_from_the_smallest_set_that_reaches_it() {
        let of = |top_p| {
            counts(Sampling::new(1.0, top_p).unwrap(), &logits(&[0.1, 0.5, 0.15, 0.25]), 4_000)
        };
        let never = |seen: &[u32]| -> Vec<usize> { (0..4).filter(|i| seen[*i] == 0).collect() };
        assert_eq!(never(&of(0.4)), [0, 2, 3], "the likeliest alone is enough");
        assert_eq!(never(&of(0.7)), [0, 2]);
        assert_eq!(never(&of(0.8)), [0]);
        assert!(never(&of(1.0)).is_empty());
        // In the nucleus of 0.7 they are 2 to 1.
        let seen = of(0.7);
        assert!((2_577..2_757).contains(&seen[1]), "{seen:?}");
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(Sampling::new(1.0, 0.9).unwrap(), seed);
            (0..20).map(|_| sampler.pick(&[0.0; 50]).unwrap()).collect()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn what_is_no_distribution_is_an_error() {
        let mut sampler = Sampler::new(Sampling::new(1.0, 0.9).unwrap(), 1);
        for bad in [&[0.0, f32::NAN][..], &[f32::INFINITY], &[f32::NEG_INFINITY; 3], &[]] {
            assert_eq!(sampler.pick(bad).unwrap_err().kind(), "not_finite", "{bad:?}");
        }
        for (temperature, top_p) in
            [(-0.1, 1.0), (f64::NAN, 1.0), (11.0, 1.0), (1.0, 0.0), (1.0, 1.1)]
        {
            assert!(Sampling::new(temperature, top_p).is_err(), "{temperature} {top_p}");
        }
    }

    proptest! {
        /// What top-p lets through, worked out in the slow and obvious way.
        #[test]
        fn only_the_nucleus_is_ever_drawn(
            logits in prop::collection::vec(-8.0_f32..8.0, 1..40),
            temperature in 0.2_f64..3.0,
            top_p in 0.05_f64..1.0,
            seed in any::<u64>(),
        ) {
            let powers: Vec<f64> =
                logits.iter().map(|z| (f64::from(*z) / temperature).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let mut sampler = Sampler::new(Sampling::new(temperature, top_p).unwrap(), seed);
            for _ in 0..20 {
                let picked = sampler.pick(&logits).unwrap() as usize;
                let likelier: f64 = powers.iter().filter(|p| **p > powers[picked]).sum();
                prop_assert!(likelier / sum < top_p + 1e-9, "{} of {}", likelier / sum, top_p);
            }
        }
    }
}
