//! Tiers that answer together, on bearings and on work orders: how much the lower one answers, how often it
//! is wrong, and what the whole costs in accuracy.
//!
//! ```text
//! bearings     device: softmax on spectral features     --unsure-->  edge: the signal transformer with LoRA
//! work orders  device: softmax on hashed character runs --unsure-->  edge: softmax on MiniLM's vectors
//! ```
//! Both tiers learn from a part of the training data: of bearings the first of each recording, of work orders
//! four of five. Then their answers are judged in two ways:
//!
//! - **like for like**: the test part is cut at random into what the threshold is taken from and what is
//!   judged, twenty times. This is what the bound promises something about.
//! - **as in a plant**: the threshold comes from the rest of the training part and the test part is judged:
//!   other recordings, or later orders. Of bearings the rest is the end of each recording, as on a device
//!   that keeps the end of its own data back. No bound covers that.
//!
//! Each tier is measured on what reaches it: the edge on those of the calibration questions that the device
//! passes on. Here are no brokers; latencies are measured over real ones elsewhere. There is no third
//! model: a cloud that answers the rest would be one. Called by `gaisnet experiment`.

use serde::Serialize;

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
    /// Seed of training and splits.
    pub seed: u64,
}

/// A tier's answers to the questions of a pool.
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

/// A tier over all splits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierFigures {
    /// What it is.
    pub name: String,
    /// Accuracy if it answered everything.
    pub alone: f64,
    /// Share of the questions that it answered, mean.
    pub share: f64,
    /// Rate of wrong ones among its answers, all splits together; none where it gave none.
    pub wrong: Option<f64>,
    /// Bound that it gave, mean.
    pub bound: Option<f64>,
    /// Splits in which more of its sure answers were wrong than `alpha`.
    pub violations: u64,
    /// Splits in which it had a threshold.
    pub sure: u64,
}

/// One way to judge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CascadeFigures {
    /// In a few words.
    pub way: String,
    /// Questions that thresholds are taken from, in each split.
    pub calibrated_on: usize,
    /// Questions that are judged, in each split.
    pub judged: usize,
    /// Number of splits.
    pub splits: usize,
    /// The tiers.
    pub tiers: Vec<TierFigures>,
    /// Accuracy of the cascade, mean.
    pub accuracy: f64,
    /// Accuracy of the better tier alone.
    pub best_alone: f64,
}

/// One data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CascadeSubject {
    /// Data and models, in a few words.
    pub data: String,
    /// The ways.
    pub ways: Vec<CascadeFigures>,
}

/// All that is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CascadeReport {
    /// Version of the program.
    pub version: String,
    /// Rate of wrong answers that was allowed.
    pub alpha: f64,
    /// Probability of being misled that was allowed.
    pub delta: f64,
    /// Most violations that chance alone gives in all but one of a hundred such series.
    pub violations_allowed: u64,
    /// The data sets.
    pub subjects: Vec<CascadeSubject>,
}

impl CascadeReport {
    /// What came of these subjects.
    pub fn of(subjects: Vec<CascadeSubject>, options: &CascadeOptions) -> Self {
        let CascadeOptions { alpha, delta, splits, .. } = *options;
        let (version, violations_allowed) =
            (env!("CARGO_PKG_VERSION").to_owned(), violations_allowed(splits, delta));
        Self { version, alpha, delta, violations_allowed, subjects }
    }
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
    let mut order = test.to_vec();
    let mut stream = Stream::new(options.seed, "calibration splits");
    let half = order.len() / 2;
    let mut outcomes = Vec::new();
    for _ in 0..options.splits {
        stream.shuffle(&mut order);
        let (calibration, judged) = order.split_at(half);
        outcomes.push(once(pool, calibration, judged, options)?);
    }
    let sizes = (half, order.len() - half);
    let alike = figures("like for like", pool, test, sizes, &outcomes, options.alpha);
    let outcome = once(pool, kept, test, options)?;
    let sizes = (kept.len(), test.len());
    let plant = figures("as in a plant", pool, test, sizes, &[outcome], options.alpha);
    Ok(vec![alike, plant])
}

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

fn figures(
    way: &str,
    pool: &Pool,
    judged_alone: &[usize],
    (calibrated_on, judged): (usize, usize),
    outcomes: &[Outcome],
    alpha: f64,
) -> CascadeFigures {
    let all = count((judged * outcomes.len()) as u64);
    let tier = |(at, level): (usize, &Level)| {
        let right = judged_alone.iter().filter(|i| pool.is_right(at, **i)).count();
        let of = outcomes
            .iter()
            .filter_map(|outcome| Some((*outcome.answered.get(at)?, *outcome.bounds.get(at)?)));
        let (mut answered, mut wrong, mut violations) = (0, 0, 0);
        let mut bounds = Vec::new();
        for ((n, bad), bound) in of {
            (answered, wrong) = (answered + n, wrong + bad);
            if let Some(bound) = bound {
                bounds.push(bound);
                violations += u64::from(count(bad) > alpha * count(n));
            }
        }
        let sure = bounds.len() as u64;
        TierFigures {
            name: level.name.clone(),
            alone: count(right as u64) / count(judged_alone.len() as u64),
            share: count(answered) / all,
            wrong: (answered > 0).then(|| count(wrong) / count(answered)),
            bound: (sure > 0).then(|| bounds.iter().sum::<f64>() / count(sure)),
            violations,
            sure,
        }
    };
    let tiers: Vec<TierFigures> = pool.levels.iter().enumerate().map(tier).collect();
    let wrong: u64 = outcomes.iter().flat_map(|o| &o.answered).map(|(_, wrong)| wrong).sum();
    CascadeFigures {
        way: way.to_owned(),
        calibrated_on,
        judged,
        splits: outcomes.len(),
        best_alone: tiers.iter().map(|tier| tier.alone).fold(0.0, f64::max),
        tiers,
        accuracy: 1.0 - count(wrong) / all,
    }
}

/// Tells it in plain text.
pub fn to_table(report: &CascadeReport) -> String {
    let (alpha, delta, allowed) = (report.alpha, report.delta, report.violations_allowed);
    let mut rows = vec![format!("gaisnet {}: alpha {alpha}, delta {delta}", report.version)];
    for subject in &report.subjects {
        rows.push(format!("\n{}", subject.data));
        for way in &subject.ways {
            rows.push(format!(
                "\n  {}: {} splits, thresholds from {} questions, {} judged\n  {:<34}{:>8}{:>10}{:>8}{:>8}{:>12}",
                way.way,
                way.splits,
                way.calibrated_on,
                way.judged,
                "tier",
                "alone",
                "answered",
                "wrong",
                "bound",
                "violations"
            ));
            rows.extend(way.tiers.iter().map(row));
            rows.push(format!(
                "  accuracy of the cascade {:.3}, of the better tier alone {:.3}",
                way.accuracy, way.best_alone
            ));
        }
    }
    rows.push(format!("\nviolations that chance allows in a series of splits (99 %): {allowed}"));
    rows.join("\n")
}

fn row(tier: &TierFigures) -> String {
    let part = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
    let broken = match tier.sure {
        0 => "-".to_owned(),
        sure => format!("{} of {sure}", tier.violations),
    };
    format!(
        "  {:<34}{:>8.3}{:>10.3}{:>8}{:>8}{:>12}",
        tier.name,
        tier.alone,
        tier.share,
        part(tier.wrong),
        part(tier.bound),
        broken
    )
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
        assert_eq!((figures.calibrated_on, figures.judged, figures.splits), (2_000, 2_000, 20));
        assert_eq!((ways[1].calibrated_on, ways[1].judged), (2_000, 4_000));
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
