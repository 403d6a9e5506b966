//! Knowledge as logits on reference inputs: what a model says of signals that belong to nobody.
//!
//! Models of any size and kind can teach each other so, since all they need to share is the inputs and
//! the classes. Two ways to merge what several say:
//! ```text
//!   labels known:   each sample is taught by whoever has the lowest loss on it      (FedMKT)
//!   labels unknown: softmax(mean of the probabilities / T), T = 0.1: sharper again   (DS-FL)
//! ```
//! The first can't be led astray by a member that says wrong things, however loudly: it's never the
//! one with the lowest loss, and where nobody does better than by chance the label teaches. The second takes
//! a [`MergeRule`].
//!
//! Called by `protocol/knowledge.rs`.

use std::collections::BTreeMap;

use super::{LOGIT_BOUND, LearnError, MergeRule, count_weight, narrow};
use crate::ids::NodeId;

/// Largest absolute logit that is believed: beyond, no model that was trained goes.
pub const REFERENCE_LOGIT_BOUND: f32 = 60.0;

/// Temperature of [`entropy_reduction`].
pub const ENTROPY_TEMPERATURE: f64 = 0.1;

/// Checks `[rows, classes]` logits: size, and values that a trained model can give.
///
/// # Errors
/// [`LearnError::WrongLength`], [`LearnError::NotFinite`], and [`LearnError::OutOfRange`] beyond
/// [`REFERENCE_LOGIT_BOUND`].
pub fn check_reference_logits(
    logits: &[f32],
    rows: usize,
    classes: usize,
) -> Result<(), LearnError> {
    let expected = rows.saturating_mul(classes);
    if logits.len() != expected || expected == 0 {
        let (expected, actual) = (expected.saturating_mul(4), logits.len().saturating_mul(4));
        return Err(LearnError::WrongLength { what: "reference logits", expected, actual });
    }
    if let Some(index) = logits.iter().position(|z| !z.is_finite()) {
        return Err(LearnError::NotFinite { name: "reference logits".into(), index });
    }
    match logits.iter().find(|z| z.abs() > REFERENCE_LOGIT_BOUND) {
        Some(z) => Err(LearnError::OutOfRange {
            what: "reference logit",
            expected: format!("within {REFERENCE_LOGIT_BOUND} of 0"),
            actual: z.to_string(),
        }),
        None => Ok(()),
    }
}

/// Lets the member with the lowest loss teach each sample; equal losses: the first sender.
///
/// A sample on which nobody does better than chance is taught by its label, as logits of 0 and
/// [`LOGIT_BOUND`]: what all get wrong is no knowledge.
///
/// # Shapes
/// `[n, classes]` logits a member, labels `[n]`; `[n, classes]` logits come out, each row less its mean.
/// # Determinism
/// A row is copied from one member; nothing is summed over members.
/// # Errors
/// [`LearnError::NoUpdates`] without members, [`LearnError::OutOfRange`] for a label that is no class, and
/// those of [`check_reference_logits`].
/// # Source
/// Fan et al. 2024, arXiv:2406.02224 (`FedMKT`): the side with the lower loss is the teacher.
pub fn lowest_loss(
    members: &BTreeMap<NodeId, Vec<f32>>,
    labels: &[usize],
    classes: usize,
) -> Result<Vec<f32>, LearnError> {
    check_all(members, labels.len(), classes)?;
    let chance = count_weight(classes as u64).ln();
    let mut merged = Vec::with_capacity(labels.len().saturating_mul(classes));
    for (at, label) in labels.iter().enumerate() {
        let mut best: Option<(f64, &[f32])> = None;
        for logits in members.values() {
            let row = logits.chunks_exact(classes).nth(at).unwrap_or_default();
            let loss = loss_of(row, *label)?;
            if best.is_none_or(|(lowest, _)| loss < lowest) {
                best = Some((loss, row));
            }
        }
        if let Some((_, row)) = best.filter(|(loss, _)| *loss < chance) {
            merged.extend(centred(row));
        } else {
            let by_label = (0..classes).map(|c| if c == *label { LOGIT_BOUND } else { 0.0 });
            merged.extend(centred(&by_label.collect::<Vec<f32>>()));
        }
    }
    Ok(merged)
}

/// Merges what members say of inputs without labels, and makes it as sharp again as each was.
///
/// # Shapes
/// `[n, classes]` logits a member; `[n, classes]` logits come out: the merged probabilities / `temperature`.
/// # Errors
/// [`LearnError::NoUpdates`] without members, [`LearnError::OutOfRange`] unless the temperature is positive,
/// and those of [`check_reference_logits`].
/// # Source
/// Itahara et al. 2020, arXiv:2008.06180 (DS-FL): softmax(p / T) with T = 0.1.
pub fn entropy_reduction(
    members: &BTreeMap<NodeId, Vec<f32>>,
    rows: usize,
    classes: usize,
    temperature: f64,
    rule: MergeRule,
) -> Result<Vec<f32>, LearnError> {
    check_all(members, rows, classes)?;
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(LearnError::OutOfRange {
            what: "temperature",
            expected: "positive".into(),
            actual: temperature.to_string(),
        });
    }
    let all: Vec<Vec<f32>> = members
        .values()
        .map(|logits| logits.chunks_exact(classes).flat_map(probabilities).collect())
        .collect();
    let weighed: Vec<(&[f32], f64)> = all.iter().map(|p| (p.as_slice(), 1.0)).collect();
    let mut merged = rule.merge(&weighed)?;
    for row in merged.chunks_exact_mut(classes) {
        // Medians of probabilities need not sum to one.
        let sum: f64 = row.iter().map(|p| f64::from(*p)).sum();
        for p in row {
            *p = narrow(f64::from(*p) / sum.max(f64::MIN_POSITIVE) / temperature);
        }
    }
    Ok(merged)
}

/// Softmax of one row.
pub(super) fn probabilities(row: &[f32]) -> Vec<f32> {
    super::softmax_head::softmax(row.iter().map(|z| f64::from(*z)).collect())
        .into_iter()
        .map(narrow)
        .collect()
}

/// Cross-entropy of one row with its label, in nats.
fn loss_of(row: &[f32], label: usize) -> Result<f64, LearnError> {
    let Some(own) = row.get(label) else {
        return Err(LearnError::OutOfRange {
            what: "label of a reference sample",
            expected: format!("below {}", row.len()),
            actual: label.to_string(),
        });
    };
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|z| f64::from(z - top).exp()).sum();
    Ok(sum.ln() - f64::from(own - top))
}

/// The row less its mean: softmax doesn't see it, and coded values stay near 0.
#[expect(clippy::cast_precision_loss, reason = "a number of classes")]
fn centred(row: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let mean = row.iter().map(|z| f64::from(*z)).sum::<f64>() / row.len().max(1) as f64;
    row.iter().map(move |z| narrow(f64::from(*z) - mean))
}

fn check_all(
    members: &BTreeMap<NodeId, Vec<f32>>,
    rows: usize,
    classes: usize,
) -> Result<(), LearnError> {
    if members.is_empty() {
        return Err(LearnError::NoUpdates);
    }
    members.values().try_for_each(|logits| check_reference_logits(logits, rows, classes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(all: &[&[f32]]) -> BTreeMap<NodeId, Vec<f32>> {
        let named = all.iter().enumerate();
        named.map(|(at, z)| (NodeId::new(format!("n{at}")).unwrap(), z.to_vec())).collect()
    }

    #[test]
    fn each_sample_is_taught_by_whoever_knows_it_best() {
        let knows_first: &[f32] = &[3.0, -3.0, 1.0, -1.0];
        let knows_second: &[f32] = &[-1.0, 1.0, -4.0, 4.0];
        let merged = lowest_loss(&members(&[knows_first, knows_second]), &[0, 1], 2).unwrap();
        assert_eq!(merged, [3.0, -3.0, -4.0, 4.0]);
        // Values from the formula by hand: ln(1 + e^-6) and ln(1 + e^2).
        assert!((loss_of(&[3.0, -3.0], 0).unwrap() - 0.002_475_7).abs() < 1e-6);
        assert!((loss_of(&[1.0, -1.0], 1).unwrap() - 2.126_928).abs() < 1e-6);
    }

    #[test]
    fn where_nobody_does_better_than_chance_the_label_teaches() {
        let all = members(&[&[3.0, -3.0], &[0.5, -0.5]]);
        assert_eq!(lowest_loss(&all, &[1], 2).unwrap(), [-5.0, 5.0]);
        assert_eq!(lowest_loss(&all, &[0], 2).unwrap(), [3.0, -3.0]);
    }

    #[test]
    fn a_member_that_lies_loudly_teaches_nothing_and_in_the_mean_it_does() {
        let honest: &[f32] = &[2.0, -2.0, -1.0, 1.0];
        let liar: Vec<f32> = honest.iter().map(|z| -20.0 * z).collect();
        let all = members(&[honest, honest, &liar]);
        assert_eq!(lowest_loss(&all, &[0, 1], 2).unwrap(), honest);
        let right = |merged: Vec<f32>| merged[0] > merged[1] && merged[3] > merged[2];
        let five = members(&[honest, honest, honest, honest, &liar]);
        let reduced = |rule| entropy_reduction(&five, 2, 2, 0.1, rule).unwrap();
        assert!(right(reduced(MergeRule::Median)));
        let three = members(&[&[0.2, -0.2, -0.1, 0.1], &[0.1, -0.1, -0.2, 0.2], &liar]);
        assert!(!right(entropy_reduction(&three, 2, 2, 0.1, MergeRule::Mean).unwrap()));
        assert!(right(entropy_reduction(&three, 2, 2, 0.1, MergeRule::Median).unwrap()));
    }

    #[test]
    fn entropy_reduction_is_the_formula_of_its_paper() {
        let third = 3.0_f32.ln();
        // Probabilities 3/4, 1/4 and 1/2, 1/2: mean 5/8, 3/8; over 0.1 that is 6.25 and 3.75.
        let all = members(&[&[third, 0.0], &[1.0, 1.0]]);
        let merged = entropy_reduction(&all, 1, 2, ENTROPY_TEMPERATURE, MergeRule::Mean).unwrap();
        assert!((merged[0] - 6.25).abs() < 1e-5 && (merged[1] - 3.75).abs() < 1e-5, "{merged:?}");
        let sharp = probabilities(&merged);
        assert!((sharp[0] - 0.924_142).abs() < 1e-5, "{sharp:?}");
    }

    #[test]
    fn bad_sizes_values_and_labels_are_refused_and_their_twin_is_taken() {
        assert!(check_reference_logits(&[0.0; 6], 2, 3).is_ok());
        assert_eq!(check_reference_logits(&[0.0; 5], 2, 3).unwrap_err().kind(), "wrong_length");
        assert_eq!(check_reference_logits(&[], 0, 3).unwrap_err().kind(), "wrong_length");
        let huge = usize::MAX;
        assert_eq!(check_reference_logits(&[0.0], huge, huge).unwrap_err().kind(), "wrong_length");
        assert_eq!(check_reference_logits(&[f32::NAN], 1, 1).unwrap_err().kind(), "not_finite");
        assert_eq!(check_reference_logits(&[61.0], 1, 1).unwrap_err().kind(), "out_of_range");
        let all = members(&[&[1.0, 0.0]]);
        assert_eq!(lowest_loss(&all, &[2], 2).unwrap_err().kind(), "out_of_range");
        assert_eq!(lowest_loss(&BTreeMap::new(), &[0], 2).unwrap_err(), LearnError::NoUpdates);
        let cold = entropy_reduction(&all, 1, 2, 0.0, MergeRule::Mean);
        assert_eq!(cold.unwrap_err().kind(), "out_of_range");
    }

    proptest! {
        #[test]
        fn the_teacher_is_never_worse_than_any_member(
            logits in prop::collection::vec(prop::collection::vec(-30.0_f32..30.0, 6), 1..5),
            labels in prop::collection::vec(0..3_usize, 2),
        ) {
            let rows: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
            let merged = lowest_loss(&members(&rows), &labels, 3).unwrap();
            for (at, label) in labels.iter().enumerate() {
                let taught = loss_of(&merged[at * 3..at * 3 + 3], *label).unwrap();
                for z in &rows {
                    prop_assert!(taught <= loss_of(&z[at * 3..at * 3 + 3], *label).unwrap() + 1e-4);
                }
            }
        }

        #[test]
        fn the_order_of_arrival_changes_nothing(
            logits in prop::collection::vec(prop::collection::vec(-9.0_f32..9.0, 4), 5),
        ) {
            let rows: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
            let all = members(&rows);
            let again: BTreeMap<_, _> = all.clone().into_iter().rev().collect();
            for rule in [MergeRule::Mean, MergeRule::Median, MergeRule::Trimmed] {
                let merge = |m| entropy_reduction(m, 2, 2, 0.1, rule).unwrap();
                prop_assert_eq!(merge(&all), merge(&again));
            }
        }
    }
}
