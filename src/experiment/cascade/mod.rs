//! Tiers that answer together, on bearings and on work orders: how much the lower ones answer, how often they
//! are wrong, and what the whole costs in accuracy.
//!
//! ```text
//!   a question, at the device of one plant
//!     device: its own model   --unsure-->   its site's edge: a larger model   --unsure-->   cloud: the largest
//!
//!   mod.rs        who answers what, and how often that is wrong
//!   report.rs     figures, over splits and over seeds
//!   bearings.rs   models that a relay between real nodes taught (libtorch)
//!   orders.rs     models of texts whose adapters are averaged up the tiers (libtorch)
//! ```
//! Models learn from a part of the training data, and their answers are judged in three ways:
//!
//! - **test part, halves**: the test part is cut at random into what thresholds are taken from and what is judged,
//!   twenty times;
//! - **all unseen, halves**: the same with everything that no model has learned from, twice as many. Of both the bound
//!   promises something;
//! - **as in a plant**: thresholds come from the rest of the training part and the test part is judged: other
//!   recordings, or later orders. No bound covers that.
//!
//! Each tier is measured on what reaches it: the edge on those of the calibration questions that devices pass on. A tier
//! has one temperature and one threshold, of all its nodes' answers together: nodes of a plant each have their own. Here
//! are no brokers between the tiers that answer; latencies are measured over real ones elsewhere. Called by
//! `gaisnet experiment`.

#[cfg(feature = "torch")]
pub mod bearings;
#[cfg(feature = "torch")]
pub mod orders;
mod report;

use serde::Serialize;

use self::report::figures;
pub use self::report::{
    CascadeFigures, CascadeReport, CascadeSubject, Summary, TierFigures, to_table,
};
use crate::learn::{LEAST_HELD_OUT, LearnError, Prediction, at_temperature, calibrate};
use crate::rng::Stream;

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct CascadeOptions {
    /// Rate of wrong answers that is allowed.
    pub alpha: f64,
    /// Probability of being misled that is allowed.
    pub delta: f64,
    /// Random splits.
    pub splits: usize,
    /// The seed of the splits.
    pub seed: u64,
}

/// A tier's answers to the questions of a pool, each by the node of it that the question reaches.
#[derive(Debug, Clone)]
pub struct Level {
    /// What it is.
    pub name: String,
    /// One a question.
    pub answers: Vec<Prediction>,
}

/// Questions, their true classes, and what each tier says.
#[derive(Debug, Clone)]
pub struct Pool {
    /// From the lowest to the highest.
    pub levels: Vec<Level>,
    /// `[n]`
    pub labels: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
}

/// What came of one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// One a tier: questions that it answered, and how many of them wrong.
    pub answered: Vec<(u64, u64)>,
    /// One a tier: the bound that it gave, where it had one.
    pub bounds: Vec<Option<f64>>,
}

/// Plays the questions of `judged` through the tiers, with thresholds taken from those of `calibration`.
///
/// # Errors
/// [`LearnError`] when probabilities and labels don't fit.
pub fn once(
    pool: &Pool,
    calibration: &[usize],
    judged: &[usize],
    options: &CascadeOptions,
) -> Result<Outcome, LearnError> {
    let (mut known, mut asked) = (calibration.to_vec(), judged.to_vec());
    let (mut answered, mut bounds) = (Vec::new(), Vec::new());
    for (at, level) in pool.levels.iter().enumerate() {
        let is_last = at + 1 == pool.levels.len();
        let measured = if known.len() >= LEAST_HELD_OUT {
            let rows = known.iter().filter_map(|i| level.answers.get(*i));
            let probabilities: Vec<f32> = rows.flat_map(|p| p.probabilities.clone()).collect();
            let labels: Vec<usize> =
                known.iter().filter_map(|i| pool.labels.get(*i)).copied().collect();
            let (alpha, delta) = (options.alpha, options.delta);
            Some(calibrate(&probabilities, &labels, pool.classes, alpha, delta)?)
        } else {
            None
        };
        let is_sure = |i: &usize| {
            let threshold = measured.and_then(|known| Some((known.temperature, known.threshold?)));
            let answer = level.answers.get(*i);
            threshold.zip(answer).is_some_and(|((temperature, threshold), answer)| {
                let scaled = at_temperature(&answer.probabilities, temperature);
                scaled.get(answer.class).is_some_and(|p| *p >= threshold.confidence)
            })
        };
        let (here, above): (Vec<usize>, Vec<usize>) =
            asked.iter().partition(|i| is_last || is_sure(i));
        let wrong = here.iter().filter(|i| !pool.is_right(at, **i)).count() as u64;
        answered.push((here.len() as u64, wrong));
        bounds
            .push(measured.and_then(|known| known.threshold).map(|t| t.bound).filter(|_| !is_last));
        known.retain(|i| !is_sure(i));
        asked = above;
    }
    Ok(Outcome { answered, bounds })
}

/// Judges a pool whose first `known` questions are the rest of the training part, and whose others are the
/// test part.
///
/// # Errors
/// As [`once`].
pub fn judge(
    pool: &Pool,
    known: usize,
    options: &CascadeOptions,
) -> Result<Vec<CascadeFigures>, LearnError> {
    let all: Vec<usize> = (0..pool.labels.len()).collect();
    let (kept, test) = all.split_at(known.min(all.len()));
    let mut ways = Vec::new();
    for (way, of) in [("test part, halves", test), (MAIN_WAY, all.as_slice())] {
        let mut order = of.to_vec();
        let mut stream = Stream::new(options.seed, "calibration splits");
        let half = order.len() / 2;
        let mut outcomes = Vec::new();
        for _ in 0..options.splits {
            stream.shuffle(&mut order);
            let (calibration, judged) = order.split_at(half);
            outcomes.push(once(pool, calibration, judged, options)?);
        }
        let sizes = (half, order.len() - half);
        ways.push(figures(way, pool, of, sizes, &outcomes, options.alpha));
    }
    let outcome = once(pool, kept, test, options)?;
    let sizes = (kept.len(), test.len());
    ways.push(figures("as in a plant", pool, test, sizes, &[outcome], options.alpha));
    Ok(ways)
}

/// The way that the goals are judged by.
pub const MAIN_WAY: &str = "all unseen, halves";

/// Most violations in so many splits that chance alone gives with a probability of 99 %.
pub fn violations_allowed(splits: usize, delta: f64) -> u64 {
    let n = count(splits as u64);
    let mut term = (1.0 - delta).powf(n);
    let (mut sum, mut k) = (term, 0_u64);
    while sum < 0.99 && k < splits as u64 {
        k += 1;
        term *= (n - count(k) + 1.0) / count(k) * delta / (1.0 - delta);
        sum += term;
    }
    k
}

impl Pool {
    fn is_right(&self, level: usize, question: usize) -> bool {
        let answer = self.levels.get(level).and_then(|level| level.answers.get(question));
        answer.map(|answer| answer.class) == self.labels.get(question).copied()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of questions")]
fn count(of: u64) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: CascadeOptions =
        CascadeOptions { alpha: 0.05, delta: 0.05, splits: 20, seed: 1 };

    /// Answers of a model that is right below a difficulty, and as sure as the question is easy.
    fn level(skill: f32, difficulties: &[f32]) -> Level {
        let one = |d: &f32| {
            let confidence = 0.99 - 0.45 * d;
            let class = usize::from(*d >= skill);
            let mut probabilities = vec![1.0 - confidence; 2];
            probabilities[class] = confidence;
            Prediction { probabilities, class }
        };
        Level { name: format!("skill {skill}"), answers: difficulties.iter().map(one).collect() }
    }

    fn pool(skills: &[f32], n: usize) -> Pool {
        let mut stream = Stream::new(3, "difficulties");
        let difficulties: Vec<f32> = (0..n)
            .map(|_| f32::from(u16::try_from(stream.below(1_000)).unwrap()) / 1_000.0)
            .collect();
        let levels = skills.iter().map(|skill| level(*skill, &difficulties)).collect();
        Pool { levels, labels: vec![0; n], classes: 2 }
    }

    #[test]
    fn each_tier_answers_what_it_can_and_the_whole_is_as_good_as_the_best() {
        let ways = judge(&pool(&[0.5, 0.8, 1.0], 6_000), 2_000, &OPTIONS).unwrap();
        let figures = &ways[0];
        assert_eq!((ways[1].calibrated_on, ways[1].judged), (3_000, 3_000));
        assert_eq!((figures.calibrated_on, figures.judged, figures.splits), (2_000, 2_000, 20));
        assert_eq!((ways[2].calibrated_on, ways[2].judged), (2_000, 4_000));
        let [low, middle, top] = figures.tiers.as_slice() else { panic!("{figures:?}") };
        assert!((0.48..0.56).contains(&low.share), "{low:?}");
        assert!((0.25..0.36).contains(&middle.share), "{middle:?}");
        assert!((low.share + middle.share + top.share - 1.0).abs() < 1e-9);
        assert!(low.wrong.unwrap() <= 0.05 && low.bound.unwrap() <= 0.05);
        assert_eq!((top.bound, top.sure), (None, 0), "nobody is above it");
        assert!(low.violations <= violations_allowed(20, 0.05));
        assert!(figures.accuracy > figures.best_alone - 0.05);
    }

    #[test]
    fn a_tier_with_too_few_examples_answers_nothing() {
        let pool = pool(&[1.0, 1.0], 300);
        let all: Vec<usize> = (0..300).collect();
        let outcome = once(&pool, &all[..99], &all[99..], &OPTIONS).unwrap();
        assert_eq!(outcome.answered, [(0, 0), (201, 0)]);
        assert_eq!(outcome.bounds, [None, None]);
    }

    #[test]
    fn the_upper_tier_is_measured_on_what_reaches_it() {
        // On all questions the upper one is good enough; on the hard ones that reach it, it isn't.
        let pool = pool(&[0.9, 0.91], 8_000);
        let all: Vec<usize> = (0..8_000).collect();
        let outcome = once(&pool, &all[..4_000], &all[4_000..], &OPTIONS).unwrap();
        assert!(outcome.answered[0].0 > 3_000);
        let easy = once(
            &Pool { levels: vec![pool.levels[1].clone(), pool.levels[1].clone()], ..pool.clone() },
            &all[..4_000],
            &all[4_000..],
            &OPTIONS,
        );
        assert!(easy.unwrap().bounds[0].is_some(), "alone it has a bound");
        assert_eq!(outcome.bounds[1], None, "here nobody is above it, and it isn't sure");
    }

    #[test]
    fn violations_that_chance_allows_are_those_of_the_binomial() {
        // P(X <= 3) = 0.984, P(X <= 4) = 0.997 for 20 draws of 0.05.
        assert_eq!(violations_allowed(20, 0.05), 4);
        assert_eq!(violations_allowed(1, 0.05), 1);
        assert_eq!(violations_allowed(20, 1e-6), 0);
    }
}
