//! Averages soft-label summaries: the mean logits a class that members relay instead of weights.
//!
//! Few bytes (4 C^2 for C classes) and no model: members may have other architectures. A summary of
//! few examples tells who was in it, so rows below a minimum count are suppressed before they leave
//! a device. Rows are weighted by what members say they counted.
//!
//! Source: Jeong et al. 2018, arXiv:1811.11479 (`FedDistill`).

use std::collections::BTreeMap;

use super::{ClassLogits, LearnError, MergeRule, count_weight, narrow};
use crate::ids::NodeId;

/// Default bound B: averaged logits are clipped to [-B, B].
pub const LOGIT_BOUND: f32 = 10.0;

/// A class's mean logits whose largest leads by more than this are no mean over many examples: they leak
/// a single one, or were made up. Two bounds of [`LOGIT_BOUND`]: probability 1 - 2e-9.
pub const MAX_MARGIN: f32 = 2.0 * LOGIT_BOUND;

impl ClassLogits {
    /// Checks sizes and values against the number of classes.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] unless there are `[C, C]` logits and `[C]` counts,
    /// [`LearnError::NotFinite`] when a logit isn't.
    pub fn check(&self, classes: usize) -> Result<(), LearnError> {
        let sizes = (self.mean_logits.len(), self.counts.len());
        if classes.checked_mul(classes) != Some(sizes.0) || sizes.1 != classes {
            return Err(LearnError::LayoutMismatch {
                name: "class_logits".into(),
                expected: format!("[{classes}, {classes}] logits and [{classes}] counts"),
                actual: format!("{} logits and {} counts", sizes.0, sizes.1),
            });
        }
        match self.mean_logits.iter().position(|z| !z.is_finite()) {
            Some(index) => Err(LearnError::NotFinite { name: "class_logits".into(), index }),
            None => Ok(()),
        }
    }

    /// Checks what only a liar or a model without restraint would send: a class as good as one-hot, and
    /// more examples than are behind the whole contribution.
    ///
    /// # Errors
    /// A word for the receipt and the ledger.
    pub fn check_plausible(&self, num_examples: u64) -> Result<(), &'static str> {
        let said = self.counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        if said > num_examples {
            return Err("counts_exceed_examples");
        }
        let rows = self.mean_logits.chunks(self.counts.len().max(1));
        for (_, row) in self.counts.iter().zip(rows).filter(|(count, _)| **count > 0) {
            let mut sorted = row.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            if let [first, second, ..] = sorted.as_slice()
                && first - second > MAX_MARGIN
            {
                return Err("one_hot_cell");
            }
        }
        Ok(())
    }

    /// Brings each logit back to within [`LOGIT_BOUND`], so that no class leads by more than
    /// [`MAX_MARGIN`].
    pub fn clip(&mut self) {
        self.mean_logits.iter_mut().for_each(|z| *z = z.clamp(-LOGIT_BOUND, LOGIT_BOUND));
    }

    /// Empties each class with fewer than `min_count` examples: zeros, count 0.
    ///
    /// # Examples
    /// ```
    /// let mut summary = gaisnet::learn::ClassLogits {
    ///     mean_logits: vec![2.0, -2.0, -3.0, 3.0],
    ///     counts: vec![19, 20],
    /// };
    /// summary.suppress(20);
    /// assert_eq!(summary.mean_logits, [0.0, 0.0, -3.0, 3.0]);
    /// assert_eq!(summary.counts, [0, 20]);
    /// ```
    pub fn suppress(&mut self, min_count: u64) {
        let rows = self.mean_logits.chunks_mut(self.counts.len().max(1));
        for (count, row) in self.counts.iter_mut().zip(rows) {
            if *count < min_count {
                *count = 0;
                row.fill(0.0);
            }
        }
    }
}

/// Averages summaries: row c by the members' counts of class c, each logit clipped to
/// [-`bound`, `bound`] first.
///
/// A class that a member has no example of takes nothing from it; one that nobody has is zeros with
/// count 0, which receivers leave out of their loss. Counts add up (and stay at the largest u64).
///
/// # Shapes
/// C x C logits and C counts in each summary and in the result.
/// # Determinism
/// Sums in f64 in the order of sender ids. One member's summary within the bound is its own mean.
/// # Errors
/// [`LearnError::NoUpdates`] without members, [`LearnError::OutOfRange`] unless `bound` is positive
/// and finite, and those of [`ClassLogits::check`].
/// # Source
/// Jeong et al. 2018, arXiv:1811.11479, algorithm 1.
pub fn average_class_logits(
    classes: usize,
    bound: f32,
    members: &BTreeMap<NodeId, &ClassLogits>,
) -> Result<ClassLogits, LearnError> {
    if members.is_empty() {
        return Err(LearnError::NoUpdates);
    }
    if !(bound.is_finite() && bound > 0.0) {
        return Err(LearnError::OutOfRange {
            what: "bound of logits",
            expected: "positive and finite".into(),
            actual: bound.to_string(),
        });
    }
    for summary in members.values() {
        summary.check(classes)?;
    }
    let mut mean_logits = Vec::with_capacity(classes * classes);
    let mut counts = Vec::with_capacity(classes);
    for class in 0..classes {
        let mut sums = vec![0.0_f64; classes];
        let mut total = 0.0_f64;
        let mut count = 0_u64;
        for summary in members.values() {
            let own = summary.counts.get(class).copied().unwrap_or_default();
            let row = summary.mean_logits.chunks(classes).nth(class).unwrap_or_default();
            let weight = count_weight(own);
            for (sum, z) in sums.iter_mut().zip(row) {
                *sum += weight * f64::from(z.clamp(-bound, bound));
            }
            total += weight;
            count = count.saturating_add(own);
        }
        let mean = |sum: f64| if count == 0 { 0.0 } else { narrow(sum / total) };
        mean_logits.extend(sums.into_iter().map(mean));
        counts.push(count);
    }
    Ok(ClassLogits { mean_logits, counts })
}

/// Merges summaries with a rule that a few bad members can't move far; [`MergeRule::Mean`] is
/// [`average_class_logits`].
///
/// The median and the trimmed mean count heads: what members say they counted isn't looked at, but that it
/// isn't 0.
///
/// # Errors
/// As [`average_class_logits`].
pub fn merge_class_logits(
    classes: usize,
    bound: f32,
    rule: MergeRule,
    members: &BTreeMap<NodeId, &ClassLogits>,
) -> Result<ClassLogits, LearnError> {
    // Checks everything, and adds up the counts.
    let mean = average_class_logits(classes, bound, members)?;
    if rule == MergeRule::Mean {
        return Ok(mean);
    }
    let mut mean_logits = Vec::with_capacity(mean.mean_logits.len());
    for class in 0..classes {
        let having = members.values().filter(|m| m.counts.get(class).is_some_and(|n| *n > 0));
        let clipped: Vec<Vec<f32>> = having
            .map(|m| {
                let row = m.mean_logits.chunks(classes).nth(class).unwrap_or_default();
                row.iter().map(|z| z.clamp(-bound, bound)).collect()
            })
            .collect();
        if clipped.is_empty() {
            mean_logits.extend(std::iter::repeat_n(0.0, classes));
            continue;
        }
        let rows: Vec<(&[f32], f64)> = clipped.iter().map(|row| (row.as_slice(), 1.0)).collect();
        mean_logits.extend(rule.merge(&rows)?);
    }
    Ok(ClassLogits { mean_logits, counts: mean.counts })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(at: usize) -> NodeId {
        NodeId::new(format!("n{at:03}")).unwrap()
    }

    fn average(members: &[ClassLogits]) -> Result<ClassLogits, LearnError> {
        let by_sender = members.iter().enumerate().map(|(at, m)| (node(at), m)).collect();
        average_class_logits(2, LOGIT_BOUND, &by_sender)
    }

    fn summary(mean_logits: [f32; 4], counts: [u64; 2]) -> ClassLogits {
        ClassLogits { mean_logits: mean_logits.into(), counts: counts.into() }
    }

    #[test]
    fn rows_are_weighted_by_the_counts_of_their_class() {
        let mean = average(&[
            summary([1.0, 0.0, 0.0, 4.0], [30, 10]),
            summary([5.0, 0.0, 0.0, -4.0], [10, 30]),
        ]);
        assert_eq!(mean.unwrap(), summary([2.0, 0.0, 0.0, -2.0], [40, 40]));
    }

    #[test]
    fn a_class_that_one_or_all_members_lack_is_left_out() {
        let mean = average(&[
            summary([1.0, 2.0, 0.0, 0.0], [7, 0]),
            summary([9.0, 9.0, 0.0, 0.0], [0, 0]),
        ]);
        assert_eq!(mean.unwrap(), summary([1.0, 2.0, 0.0, 0.0], [7, 0]));
    }

    #[test]
    fn one_member_cannot_pull_a_class_beyond_the_bound() {
        let mean = average(&[summary([1e30, -1e30, 0.0, 0.0], [u64::MAX, 1])]).unwrap();
        assert_eq!(mean, summary([10.0, -10.0, 0.0, 0.0], [u64::MAX, 1]));
    }

    #[test]
    fn a_flipped_and_a_hundredfold_member_of_five_moves_the_mean_and_not_the_median() {
        let honest = summary([4.0, -4.0, -4.0, 4.0], [30, 30]);
        let flipped = summary([-4.0, 4.0, 4.0, -4.0], [1 << 40, 1 << 40]);
        let hundredfold = summary([-400.0, 400.0, 400.0, -400.0], [30, 30]);
        for bad in [flipped, hundredfold] {
            let five = [honest.clone(), honest.clone(), honest.clone(), honest.clone(), bad];
            let members = five.iter().enumerate().map(|(at, m)| (node(at), m)).collect();
            let merge = |rule| merge_class_logits(2, LOGIT_BOUND, rule, &members).unwrap();
            assert_eq!(merge(MergeRule::Median).mean_logits, honest.mean_logits);
            assert_eq!(merge(MergeRule::Trimmed).mean_logits, honest.mean_logits);
            assert!((merge(MergeRule::Mean).mean_logits[0] - 4.0).abs() > 2.0);
        }
    }

    #[test]
    fn one_hot_cells_and_counts_that_lie_are_told_from_honest_ones() {
        assert_eq!(summary([9.0, -9.0, -3.0, 3.0], [20, 20]).check_plausible(40), Ok(()));
        let sharp = summary([11.0, -9.1, 0.0, 0.0], [20, 20]);
        assert_eq!(sharp.check_plausible(40), Err("one_hot_cell"));
        let suppressed = summary([11.0, -9.1, 0.0, 0.0], [0, 20]);
        assert_eq!(suppressed.check_plausible(40), Ok(()), "nothing is said of that class");
        let lying = summary([1.0, 0.0, 0.0, 1.0], [1 << 63, 1 << 63]);
        assert_eq!(lying.check_plausible(1 << 40), Err("counts_exceed_examples"));
    }

    #[test]
    fn wrong_sizes_bad_values_and_no_members_are_refused() {
        let good = summary([0.0; 4], [1, 1]);
        let short = ClassLogits { mean_logits: vec![0.0; 3], counts: vec![1, 1] };
        let counts = ClassLogits { mean_logits: vec![0.0; 4], counts: vec![1] };
        for bad in [short, counts] {
            assert_eq!(average(&[good.clone(), bad]).unwrap_err().kind(), "layout_mismatch");
        }
        let bad = summary([0.0, 0.0, f32::NAN, 0.0], [1, 1]);
        assert_eq!(average(&[good.clone(), bad]).unwrap_err().kind(), "not_finite");
        assert_eq!(average(&[]).unwrap_err(), LearnError::NoUpdates);
        let one = BTreeMap::from([(node(0), &good)]);
        for bound in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(average_class_logits(2, bound, &one).unwrap_err().kind(), "out_of_range");
        }
    }

    fn any_summary() -> impl Strategy<Value = ClassLogits> {
        let logits = prop::collection::vec(-10.0_f32..=10.0, 9);
        let counts = prop::collection::vec(prop_oneof![Just(0), 1..1000_u64, any::<u64>()], 3);
        (logits, counts).prop_map(|(mean_logits, counts)| {
            let mut summary = ClassLogits { mean_logits, counts };
            summary.suppress(1);
            summary
        })
    }

    proptest! {
        #[test]
        fn one_member_is_its_own_mean(summary in any_summary()) {
            let alone = BTreeMap::from([(node(0), &summary)]);
            prop_assert_eq!(average_class_logits(3, LOGIT_BOUND, &alone).unwrap(), summary);
        }

        #[test]
        fn the_mean_ignores_arrival_order_and_stays_between_its_members(
            (members, arrival) in prop::collection::vec(any_summary(), 1..9).prop_flat_map(|m| {
                let order: Vec<usize> = (0..m.len()).collect();
                (Just(m), Just(order).prop_shuffle())
            }),
        ) {
            let in_order = (0..members.len()).map(|at| (node(at), &members[at])).collect();
            let arrived = arrival.into_iter().map(|at| (node(at), &members[at])).collect();
            let mean = average_class_logits(3, LOGIT_BOUND, &in_order).unwrap();
            prop_assert_eq!(&mean, &average_class_logits(3, LOGIT_BOUND, &arrived).unwrap());
            for (at, z) in mean.mean_logits.iter().enumerate() {
                let having = members.iter().filter(|m| m.counts[at / 3] > 0);
                let logits: Vec<f32> = having.map(|m| m.mean_logits[at]).collect();
                let low = logits.iter().copied().fold(f32::INFINITY, f32::min);
                let high = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                prop_assert!(logits.is_empty() && *z == 0.0 || (low..=high).contains(z));
            }
        }
    }
}
