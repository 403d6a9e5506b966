//! The risk meter: how well an attacker tells who was in the training data, from what was really sent.
//!
//! Scores of attacks are made elsewhere (a loss, a likelihood ratio, nearness to a class's mean); here they
//! are brought to one scale and judged: area under the ROC curve, and the rate of members found at one
//! false alarm in a hundred. Half and one in a hundred mean: no better than guessing. A low figure is no
//! proof of privacy; it says that these attacks don't succeed.
//!
//! Called by `actors/risk_meter.rs`, where a device measures each round on its own data, and by the tests in
//! `privacy/risk_tests.rs`, which attack class means and confidences of a model that learned generated windows;
//! those alone train the shadow models that a likelihood ratio needs.

/// What an attack reaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Membership {
    /// Area under the ROC curve, in [0, 1]: the chance that a member scores above a non-member.
    pub auc: f64,
    /// Share of the members that are found when at most one non-member in a hundred is taken for one.
    pub tpr_at_1_percent: f64,
}

/// Share of non-members that may be taken for members.
const FALSE_ALARMS: f64 = 0.01;

impl Membership {
    /// Judges scores: higher speaks for a member. Nothing without members or non-members, or when a score
    /// is NaN.
    ///
    /// # Determinism
    /// Depends on the sets of scores only; equal scores of a member and a non-member count half.
    pub fn of(members: &[f64], others: &[f64]) -> Option<Self> {
        if members.is_empty()
            || others.is_empty()
            || members.iter().chain(others).any(|s| s.is_nan())
        {
            return None;
        }
        let (members, others) = (descending(members), descending(others));
        // For each member: how many others score below it, and how many as high.
        let above = |score: f64| others.partition_point(|other| *other > score);
        let not_below = |score: f64| others.partition_point(|other| *other >= score);
        let wins = members.iter().map(|score| {
            let (above, not_below) = (above(*score), not_below(*score));
            count(others.len() - not_below) + 0.5 * count(not_below - above)
        });
        let auc = wins.sum::<f64>() / (count(members.len()) * count(others.len()));
        // A threshold right above the first non-member that would be one too many.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
        let allowed = (FALSE_ALARMS * count(others.len())) as usize;
        let found = others.get(allowed).map_or(members.len(), |one_too_many| {
            members.partition_point(|score| score > one_too_many)
        });
        Some(Self { auc, tpr_at_1_percent: count(found) / count(members.len()) })
    }
}

/// Likelihood-ratio scores without models that had the example: how unusual each example's confidence is
/// among models that never saw it.
///
/// # Shapes
/// `observed` `[n]`: probability that the attacked model gives each example's own class; `shadows`: the same
/// of each shadow model, `None` where the example was in its training data. Scores `[n]`, 0 to 1; one
/// half for an example that each shadow saw.
/// # Source
/// Carlini et al. 2022, arXiv:2112.03570, the offline attack, with one variance for all examples as they advise
/// for few shadow models.
pub fn likelihood_ratios(observed: &[f32], shadows: &[Vec<Option<f32>>]) -> Vec<f64> {
    let outside: Vec<Vec<f64>> = (0..observed.len())
        .map(|at| {
            shadows.iter().filter_map(|of| of.get(at).copied().flatten()).map(log_odds).collect()
        })
        .collect();
    let means: Vec<Option<f64>> = outside.iter().map(|of| mean(of)).collect();
    let squares = outside.iter().zip(&means).flat_map(|(of, mean)| {
        of.iter().filter(|_| of.len() > 1).map(move |odds| (odds - mean.unwrap_or(*odds)).powi(2))
    });
    let (sum, n) = squares.fold((0.0, 0.0), |(sum, n), square| (sum + square, n + 1.0));
    let degrees: f64 = n - count(outside.iter().filter(|of| of.len() > 1).count());
    let deviation = (sum / degrees.max(1.0)).sqrt().max(LEAST_DEVIATION);
    let score = |(observed, mean): (&f32, &Option<f64>)| {
        mean.map_or(0.5, |mean| normal_cdf((log_odds(*observed) - mean) / deviation))
    };
    observed.iter().zip(&means).map(score).collect()
}

/// Logarithm of p / (1 - p), kept finite.
fn log_odds(probability: f32) -> f64 {
    let p = f64::from(probability).clamp(LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY);
    (p / (1.0 - p)).ln()
}

const LEAST_PROBABILITY: f64 = 1e-7;

/// Models that agree to the last digit would make each difference a certainty.
const LEAST_DEVIATION: f64 = 1e-3;

fn normal_cdf(z: f64) -> f64 {
    0.5 * statrs::function::erf::erfc(-z / std::f64::consts::SQRT_2)
}

fn mean(of: &[f64]) -> Option<f64> {
    (!of.is_empty()).then(|| of.iter().sum::<f64>() / count(of.len()))
}

fn descending(scores: &[f64]) -> Vec<f64> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

#[expect(clippy::cast_precision_loss, reason = "numbers of examples")]
fn count(of: usize) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Stream;

    #[test]
    fn guessing_is_a_half_and_knowing_is_one() {
        let same: Vec<f64> = (0..1_000).map(f64::from).collect();
        let blind = Membership::of(&same, &same).unwrap();
        assert!((blind.auc - 0.5).abs() < 1e-12);
        assert!((blind.tpr_at_1_percent - 0.01).abs() < 1e-3);
        let sure = Membership::of(&[2.0, 3.0], &[0.0, 1.0]).unwrap();
        assert_eq!(sure, Membership { auc: 1.0, tpr_at_1_percent: 1.0 });
        let wrong = Membership::of(&[0.0], &[1.0]).unwrap();
        assert_eq!(wrong, Membership { auc: 0.0, tpr_at_1_percent: 0.0 });
        assert_eq!(Membership::of(&[], &[1.0]), None);
        assert_eq!(Membership::of(&[f64::NAN], &[1.0]), None);
    }

    #[test]
    fn few_members_that_stand_out_show_at_one_percent_and_hardly_in_the_area() {
        let mut stream = Stream::new(5, "risk");
        let others: Vec<f64> = (0..2_000).map(|_| stream.normal()).collect();
        let mut members: Vec<f64> = (0..1_900).map(|_| stream.normal()).collect();
        members.extend((0..100).map(|_| 10.0 + stream.normal()));
        let found = Membership::of(&members, &others).unwrap();
        assert!(found.auc < 0.56, "{found:?}");
        assert!(found.tpr_at_1_percent > 0.05, "{found:?}");
    }

    #[test]
    fn the_likelihood_ratio_beats_the_plain_confidence_where_examples_differ_in_hardness() {
        let mut stream = Stream::new(9, "lira");
        #[expect(clippy::cast_possible_truncation, reason = "a probability")]
        let odds = |z: f64| (1.0 / (1.0 + (-z).exp())) as f32;
        let (mut observed, mut shadows) = (Vec::new(), vec![Vec::new(); 8]);
        for at in 0..2_000 {
            let hardness = 3.0 * stream.normal();
            let bonus = if at < 1_000 { 1.5 } else { 0.0 };
            observed.push(odds(hardness + bonus + 0.5 * stream.normal()));
            for shadow in &mut shadows {
                shadow.push(Some(odds(hardness + 0.5 * stream.normal())));
            }
        }
        let split = |scores: &[f64]| Membership::of(&scores[..1_000], &scores[1_000..]).unwrap();
        let plain = split(&observed.iter().map(|p| f64::from(*p)).collect::<Vec<_>>());
        let ratio = split(&likelihood_ratios(&observed, &shadows));
        assert!(plain.auc < 0.7 && ratio.auc > 0.9, "{plain:?} {ratio:?}");
        assert!(ratio.tpr_at_1_percent > 5.0 * plain.tpr_at_1_percent, "{plain:?} {ratio:?}");
    }

    #[test]
    fn an_example_that_each_shadow_saw_says_nothing() {
        let shadows = vec![vec![None, Some(0.5)], vec![None, Some(0.6)]];
        let scores = likelihood_ratios(&[0.99, 0.99], &shadows);
        assert!((scores[0] - 0.5).abs() < 1e-12 && scores[1] > 0.9, "{scores:?}");
        assert_eq!(likelihood_ratios(&[], &shadows), Vec::<f64>::new());
        assert!(likelihood_ratios(&[1.0], &[vec![Some(1.0)]])[0].is_finite());
    }

    proptest! {
        #[test]
        fn the_area_is_the_share_of_pairs_in_order(
            members in prop::collection::vec(0_u8..9, 1..40),
            others in prop::collection::vec(0_u8..9, 1..40),
        ) {
            let [m, o] = [&members, &others].map(|of| of.iter().map(|s| f64::from(*s)).collect::<Vec<_>>());
            let found = Membership::of(&m, &o).unwrap();
            let pairs = m.iter().flat_map(|a| o.iter().map(move |b| {
                if a > b { 1.0 } else if a < b { 0.0 } else { 0.5 }
            }));
            let area = pairs.sum::<f64>() / count(m.len() * o.len());
            prop_assert!((found.auc - area).abs() < 1e-9);
            // The other way round is the other area.
            prop_assert!((Membership::of(&o, &m).unwrap().auc - (1.0 - area)).abs() < 1e-9);
        }
    }
}

#[cfg(test)]
#[path = "risk_tests.rs"]
#[expect(clippy::cast_possible_truncation, reason = "logits")]
mod attacks;
