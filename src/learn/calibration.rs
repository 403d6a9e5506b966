//! How far a model's confidence can be trusted: a temperature, and the confidence from which on its
//! answers are wrong rarely enough.
//!
//! Both are measured on held-out examples that the model didn't learn from, and hold for one version of
//! it. Who answers what with them is `protocol/cascade.rs`'s business.

use serde::{Deserialize, Serialize};

use super::{LearnError, upper_bound};

/// Fewest held-out examples that a threshold is taken from.
pub const LEAST_HELD_OUT: usize = 100;

/// Confidence of one held-out answer, and whether it was right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Probability of the answered class, in (0, 1].
    pub confidence: f32,
    /// The class was the true one.
    pub right: bool,
}

/// What answers at or above a confidence are worth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// Answer from this confidence on.
    pub confidence: f32,
    /// Share of the held-out examples that are answered so, in (0, 1].
    pub share: f64,
    /// Upper bound of the rate of wrong ones among those answers.
    pub bound: f64,
}

/// All that is measured of one version of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Divide the logarithms of its probabilities by it.
    pub temperature: f32,
    /// From which confidence, at that temperature, its answers are good enough; none where never.
    pub threshold: Option<Threshold>,
    /// Examples that this rests on.
    pub held_out: u64,
}

/// Temperature and threshold of a model from its probabilities `[n, C]` on held-out examples `[n]`.
///
/// Both come from the same examples. The temperature is one number, which changes the order of
/// confidences only where there are more than two classes, and then little; tests on made-up and on real
/// examples look at what is promised as a whole.
///
/// # Errors
/// As [`temperature`] and [`threshold`].
pub fn calibrate(
    probabilities: &[f32],
    labels: &[usize],
    classes: usize,
    alpha: f64,
    delta: f64,
) -> Result<Calibration, LearnError> {
    let temperature = temperature(probabilities, labels, classes)?;
    let judged = |(row, label): (&[f32], &usize)| {
        let scaled = at_temperature(row, temperature);
        let (class, confidence) = first_largest(&scaled);
        Judged { confidence, right: class == Some(*label) }
    };
    let rows = probabilities.chunks(classes.max(1)).zip(labels);
    let judged: Vec<Judged> = rows.map(judged).collect();
    let threshold = threshold(&judged, alpha, delta)?;
    Ok(Calibration { temperature, threshold, held_out: judged.len() as u64 })
}

/// Lowest confidence from which on the rate of wrong answers is at most `alpha`, but for a probability of
/// `delta` that the held-out examples misled; nothing where no confidence is enough.
///
/// Candidates are the confidences at fixed shares of the examples, the surest first. Each is tested with what the one
/// before hands on: all that it had itself if its Clopper-Pearson bound was at most `alpha`, else nothing. `delta` comes in at five
/// shares, a fifth at each, since one early mistake of the surest few would end a single walk. Such a fallback needs no
/// correction for the number of tests, as long as less sure answers aren't right more often. Taking the lowest of all that pass, without it, breaks the promise: a test shows it.
///
/// # Errors
/// [`LearnError::OutOfRange`] with fewer than [`LEAST_HELD_OUT`] examples, or `alpha` or `delta` outside
/// (0, 1); [`LearnError::NotFinite`] when a confidence is.
/// # Source
/// Angelopoulos et al., arXiv:2110.01052 (testing of risks in a sequence); Wiens and Dmitrienko 2005 (fallback procedure).
pub fn threshold(
    judged: &[Judged],
    alpha: f64,
    delta: f64,
) -> Result<Option<Threshold>, LearnError> {
    check(judged, alpha, delta)?;
    let mut sure_first = judged.to_vec();
    sure_first.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let ranked = Ranked::new(&sure_first);
    let mut starts = STARTS.iter().peekable();
    let (mut at_hand, mut lowest) = (0.0, None);
    for level in &ranked.levels {
        while starts.next_if(|start| level.share >= **start).is_some() {
            at_hand += delta / count(STARTS.len());
        }
        if at_hand <= 0.0 {
            continue;
        }
        let bound = upper_bound(level.wrong, level.answered, at_hand);
        if bound <= alpha {
            let (confidence, share) = (level.confidence, level.share);
            lowest = Some(Threshold { confidence, share, bound });
        } else {
            at_hand = 0.0;
        }
    }
    Ok(lowest)
}

/// Temperature that makes probabilities `[n, C]` fit their labels `[n]` best: divide their logarithms by it.
///
/// 1 leaves them as they are, more makes them less sure. Found by golden section on the mean negative
/// log-likelihood, which has one valley in the temperature's inverse.
///
/// # Errors
/// [`LearnError::OutOfRange`] with fewer than [`LEAST_HELD_OUT`] examples, or when sizes or labels don't
/// fit.
/// # Source
/// Guo et al. 2017, arXiv:1706.04599.
pub fn temperature(
    probabilities: &[f32],
    labels: &[usize],
    classes: usize,
) -> Result<f32, LearnError> {
    enough(labels.len())?;
    let sizes_fit = classes.checked_mul(labels.len()) == Some(probabilities.len());
    if !sizes_fit || labels.iter().any(|label| *label >= classes) {
        return Err(LearnError::OutOfRange {
            what: "held-out answers",
            expected: format!("{} rows of {classes} probabilities, labels below", labels.len()),
            actual: format!("{} probabilities", probabilities.len()),
        });
    }
    let rows: Vec<Vec<f64>> = probabilities.chunks(classes.max(1)).map(logarithms).collect();
    let loss = |log_inverse: f64| {
        let inverse = log_inverse.exp();
        let of = |(row, label): (&Vec<f64>, &usize)| {
            let sum: f64 = row.iter().map(|z| (z * inverse).exp()).sum();
            sum.ln() - row.get(*label).copied().unwrap_or_default() * inverse
        };
        rows.iter().zip(labels).map(of).sum::<f64>()
    };
    #[expect(clippy::cast_possible_truncation, reason = "between 1/20 and 20")]
    Ok((-lowest_of(loss, -WIDEST.ln(), WIDEST.ln())).exp() as f32)
}

/// Probabilities `[C]` at another temperature; they sum to 1 again.
#[expect(clippy::cast_possible_truncation, reason = "probabilities fit an f32")]
pub fn at_temperature(probabilities: &[f32], temperature: f32) -> Vec<f32> {
    let scaled: Vec<f64> =
        logarithms(probabilities).iter().map(|z| (z / f64::from(temperature)).exp()).collect();
    let sum: f64 = scaled.iter().sum();
    scaled.iter().map(|p| (p / sum) as f32).collect()
}

/// The class that is answered with such probabilities, as [`super::Prediction::of_logits`] has it, and its
/// probability.
fn first_largest(probabilities: &[f32]) -> (Option<usize>, f32) {
    let larger = |top: f32, p: f32| if p > top || p.is_nan() { p } else { top };
    let top = probabilities.iter().copied().fold(f32::NEG_INFINITY, larger);
    (probabilities.iter().position(|p| *p >= top), top)
}

/// Shares of the held-out examples at which a part of delta comes in.
const STARTS: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

/// Candidates are so many shares of the examples.
const LEVELS: usize = 100;

/// Temperatures are looked for from one over this to this.
const WIDEST: f64 = 20.0;

/// Below this a probability is taken for it, so that its logarithm is finite.
const LEAST: f64 = 1e-12;

/// What is answered from a confidence on.
struct Level {
    confidence: f32,
    share: f64,
    answered: u64,
    wrong: u64,
}

/// Levels from the surest to the least sure.
struct Ranked {
    levels: Vec<Level>,
}

impl Ranked {
    /// Examples of one confidence stand or fall together.
    fn new(sure_first: &[Judged]) -> Self {
        let total = count(sure_first.len());
        let mut levels: Vec<Level> = Vec::with_capacity(LEVELS);
        let (mut answered, mut wrong) = (0_u64, 0_u64);
        let mut next = 1;
        for (at, one) in sure_first.iter().enumerate() {
            answered += 1;
            wrong += u64::from(!one.right);
            let same = sure_first.get(at + 1).is_some_and(|n| n.confidence >= one.confidence);
            let share = count(at + 1) / total;
            if same || share * count(LEVELS) < count(next) {
                continue;
            }
            levels.push(Level { confidence: one.confidence, share, answered, wrong });
            next = levels.len() + 1;
            while count(next) <= share * count(LEVELS) {
                next += 1;
            }
        }
        Self { levels }
    }
}

fn check(judged: &[Judged], alpha: f64, delta: f64) -> Result<(), LearnError> {
    enough(judged.len())?;
    for (what, value) in [("alpha", alpha), ("delta", delta)] {
        if !(value > 0.0 && value < 1.0) {
            let (expected, actual) = ("between 0 and 1".into(), value.to_string());
            return Err(LearnError::OutOfRange { what, expected, actual });
        }
    }
    match judged.iter().position(|one| !one.confidence.is_finite()) {
        Some(index) => Err(LearnError::NotFinite { name: "confidence".into(), index }),
        None => Ok(()),
    }
}

fn enough(examples: usize) -> Result<(), LearnError> {
    if examples < LEAST_HELD_OUT {
        return Err(LearnError::OutOfRange {
            what: "held-out examples",
            expected: format!("{LEAST_HELD_OUT} or more"),
            actual: examples.to_string(),
        });
    }
    Ok(())
}

fn logarithms(probabilities: &[f32]) -> Vec<f64> {
    probabilities.iter().map(|p| f64::from(*p).max(LEAST).ln()).collect()
}

/// Where a function with one valley is lowest, by golden section.
fn lowest_of(of: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    let part = (5.0_f64.sqrt() - 1.0) / 2.0;
    let (mut left, mut right) = (high - part * (high - low), low + part * (high - low));
    let (mut at_left, mut at_right) = (of(left), of(right));
    while high - low > 1e-6 {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - part * (high - low);
            at_left = of(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + part * (high - low);
            at_right = of(right);
        }
    }
    f64::midpoint(low, high)
}

#[expect(clippy::cast_precision_loss, reason = "held-out sets are small")]
fn count(of: usize) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::narrow;
    use crate::rng::Stream;

    /// Answers of confidences between a half and one, wrong in 0.3 (1 - confidence) of the cases.
    fn answers(stream: &mut Stream, n: usize) -> Vec<Judged> {
        let one = |_| {
            let confidence = stream.range(0.5, 1.0);
            let wrong = stream.range(0.0, 1.0) < 0.3 * (1.0 - confidence);
            Judged { confidence: narrow(confidence), right: !wrong }
        };
        (0..n).map(one).collect()
    }

    /// The true rate of wrong ones at or above a confidence.
    fn true_rate(confidence: f32) -> f64 {
        0.15 * (1.0 - f64::from(confidence))
    }

    #[test]
    fn of_equal_probabilities_the_first_is_the_answer_as_it_is_served() {
        let calibrate = |label| calibrate(&[0.5; 600], &[label; 300], 2, 0.05, 0.1).unwrap();
        assert_eq!(crate::learn::Prediction::of_logits(&[0.7, 0.7]).class, 0);
        assert!(calibrate(0).threshold.is_some(), "each answer is right");
        assert!(calibrate(1).threshold.is_none(), "each answer is wrong");
    }

    #[test]
    fn the_promise_is_broken_no_more_often_than_delta_and_by_single_tests_it_is() {
        let (alpha, delta, runs) = (0.05, 0.1, 400);
        let mut stream = Stream::new(7, "calibration");
        let (mut broken, mut broken_without, mut answered) = (0, 0, 0);
        for _ in 0..runs {
            let judged = answers(&mut stream, 500);
            if let Some(found) = threshold(&judged, alpha, delta).unwrap() {
                answered += 1;
                broken += u32::from(true_rate(found.confidence) > alpha);
            }
            // The lowest of all confidences that pass, each tested as if it were the only one.
            let lowest = judged.iter().map(|one| one.confidence).filter(|from| {
                let taken = judged.iter().filter(|one| one.confidence >= *from);
                let (draws, wrong) =
                    taken.fold((0, 0), |(n, w), j| (n + 1, w + u64::from(!j.right)));
                upper_bound(wrong, draws, delta) <= alpha
            });
            let lowest = lowest.min_by(f32::total_cmp);
            broken_without += u32::from(lowest.is_some_and(|c| true_rate(c) > alpha));
        }
        assert!(answered > runs / 10, "{answered} of {runs} found one");
        assert!(f64::from(broken) <= delta * f64::from(runs), "{broken} of {runs}");
        assert!(broken_without > broken, "{broken_without} and {broken}");
    }

    #[test]
    fn more_examples_let_more_be_answered() {
        let mut stream = Stream::new(3, "calibration");
        let shares: Vec<f64> = [500, 5_000, 50_000]
            .map(|n| threshold(&answers(&mut stream, n), 0.05, 0.05).unwrap())
            .map(|found| found.map_or(0.0, |found| found.share))
            .into();
        // Confidences above two thirds are wrong in a twentieth of the cases: two thirds of all.
        assert!(shares[0] <= shares[1] && shares[1] <= shares[2], "{shares:?}");
        assert!((0.6..=0.68).contains(&shares[2]), "{shares:?}");
    }

    #[test]
    fn a_model_that_is_always_right_answers_all_and_one_that_never_is_answers_none() {
        let with = |right| {
            let one = |i: u16| Judged { confidence: 0.5 + f32::from(i) / 1_000.0, right };
            threshold(&(0..500).map(one).collect::<Vec<_>>(), 0.05, 0.05).unwrap()
        };
        let all = with(true).unwrap();
        // The fifth of 0.1 is lost, for fifty are too few; those of the four other shares were handed on.
        assert!((all.bound - upper_bound(0, 500, 0.04)).abs() < 1e-9);
        assert!((all.share - 1.0).abs() < f64::EPSILON && (all.confidence - 0.5).abs() < 1e-6);
        assert_eq!(with(false), None);
    }

    #[test]
    fn what_is_at_hand_is_lost_with_a_test_that_fails_and_comes_in_again_at_the_next_share() {
        // Of a thousand, the surest first, fifty are wrong from the 350th on: that is too much until most are answered.
        let one = |i: u16| Judged {
            confidence: 1.0 - f32::from(i) / 2_000.0,
            right: !(350..400).contains(&i),
        };
        let judged: Vec<_> = (0..1_000).map(one).collect();
        let found = threshold(&judged, 0.09, 0.05).unwrap().unwrap();
        assert!((found.share - 1.0).abs() < 1e-9);
        let with = |at_hand| (found.bound - upper_bound(50, 1_000, at_hand)).abs();
        assert!(with(0.01) < 1e-9, "the fifth of 0.9 alone: {found:?}");
        assert!(with(0.05) > 1e-3);
    }

    #[test]
    fn equal_confidences_stand_or_fall_together() {
        let one = |i: usize| Judged { confidence: 0.9, right: i >= 250 };
        let judged: Vec<_> = (0..500).map(one).collect();
        assert_eq!(threshold(&judged, 0.05, 0.05).unwrap(), None, "half of them are wrong");
    }

    #[test]
    fn the_temperature_undoes_what_overconfidence_did() {
        let mut stream = Stream::new(11, "temperature");
        let (mut probabilities, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            let honest = narrow(stream.range(0.05, 0.95));
            labels.push(usize::from(stream.range(0.0, 1.0) < f64::from(honest)));
            probabilities.extend(at_temperature(&[1.0 - honest, honest], 0.4));
        }
        let found = temperature(&probabilities, &labels, 2).unwrap();
        assert!((found - 2.5).abs() < 0.1, "{found}");
        let back = at_temperature(&at_temperature(&[0.2, 0.8], 0.4), 2.5);
        assert!((back[1] - 0.8).abs() < 1e-5);
    }

    /// Probabilities `[n, 3]` of a model that is more sure than it should be, and true labels.
    fn overconfident(stream: &mut Stream, n: usize) -> (Vec<f32>, Vec<usize>) {
        let (mut probabilities, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let logits = [0; 3].map(|_| 2.5 * stream.normal());
            let honest = crate::learn::Prediction::of_logits(&logits.map(narrow));
            let (mut class, mut left) = (0, stream.unit() - f64::from(honest.probabilities[0]));
            while left > 0.0 && class < 2 {
                class += 1;
                left -= f64::from(honest.probabilities[class]);
            }
            labels.push(class);
            probabilities.extend(at_temperature(&honest.probabilities, 0.5));
        }
        (probabilities, labels)
    }

    #[test]
    fn temperature_and_threshold_of_the_same_examples_keep_the_promise() {
        let (alpha, delta, runs) = (0.1, 0.1, 100);
        let mut stream = Stream::new(5, "calibrate");
        let (fresh, truth) = overconfident(&mut stream, 20_000);
        let (mut broken, mut found) = (0, 0);
        for _ in 0..runs {
            let (probabilities, labels) = overconfident(&mut stream, 400);
            let known = calibrate(&probabilities, &labels, 3, alpha, delta).unwrap();
            assert!((known.temperature - 2.0).abs() < 0.6, "{}", known.temperature);
            let Some(threshold) = known.threshold else { continue };
            let (mut answered, mut wrong) = (0_u32, 0_u32);
            for (row, label) in fresh.chunks(3).zip(&truth) {
                let scaled = at_temperature(row, known.temperature);
                let top = scaled.iter().copied().fold(0.0, f32::max);
                if top >= threshold.confidence {
                    answered += 1;
                    wrong += u32::from(scaled[*label] < top);
                }
            }
            found += 1;
            broken += u32::from(f64::from(wrong) > alpha * f64::from(answered));
        }
        assert!(found > runs / 2, "{found} of {runs}");
        assert!(f64::from(broken) <= delta * f64::from(runs), "{broken} of {runs}");
    }

    #[test]
    fn what_cannot_be_calibrated_on_is_refused() {
        let good = vec![Judged { confidence: 0.9, right: true }; 100];
        assert!(threshold(&good, 0.05, 0.05).is_ok());
        assert_eq!(threshold(&good[1..], 0.05, 0.05).unwrap_err().kind(), "out_of_range");
        assert_eq!(threshold(&good, 0.0, 0.05).unwrap_err().kind(), "out_of_range");
        assert_eq!(threshold(&good, 0.05, 1.0).unwrap_err().kind(), "out_of_range");
        let mut bad = good;
        bad[7].confidence = f32::NAN;
        assert_eq!(threshold(&bad, 0.05, 0.05).unwrap_err().kind(), "not_finite");
        assert!(temperature(&[0.5; 200], &[0; 100], 2).is_ok());
        assert!(temperature(&[0.5; 199], &[0; 100], 2).is_err());
        assert!(temperature(&[0.5; 200], &[2; 100], 2).is_err());
    }
}
