//! Merging values of several members so that a few bad ones can't move them far: coordinate by coordinate.
//!
//! Nothing here protects below [`MIN_MEMBERS`] members: of four, one bad and one unlucky are half. The
//! functions work with fewer, since a round has to come to something; whoever runs the round logs how many
//! there were (`actors/workbench.rs`).

use super::{LearnError, narrow};

/// Members from which on the median and the trimmed mean promise anything: one bad of five.
pub const MIN_MEMBERS: usize = 5;

/// Part of the members that [`MergeRule::Trimmed`] leaves out at each end.
pub const TRIM: f64 = 0.2;

/// How values of several members become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MergeRule {
    /// The mean, weighted where the caller has weights: one member can move it anywhere within bounds.
    Mean,
    /// The middle one of each coordinate, weights are not looked at.
    #[default]
    Median,
    /// The mean of each coordinate without the [`TRIM`] smallest and largest, weights are not looked at.
    Trimmed,
}

impl MergeRule {
    /// Merges rows of one length, each with its weight.
    ///
    /// # Determinism
    /// The median and the trimmed mean don't depend on the order of the rows, the mean sums in f64 in
    /// their order.
    /// # Errors
    /// [`LearnError::NoUpdates`] without rows or where all weights are zero, [`LearnError::WrongLength`] when
    /// rows differ in length, [`LearnError::NotFinite`].
    /// # Source
    /// Yin et al. 2018, arXiv:1803.01498 (coordinate-wise median and trimmed mean).
    /// # Examples
    /// ```
    /// use gaisnet::learn::MergeRule;
    /// let rows: [&[f32]; 3] = [&[1.0, 0.0], &[2.0, 0.5], &[900.0, 0.25]];
    /// let merge = |rule: MergeRule| rule.merge(&rows.map(|row| (row, 1.0)));
    /// assert_eq!(merge(MergeRule::Median)?, [2.0, 0.25]);
    /// assert_eq!(merge(MergeRule::Mean)?, [301.0, 0.25]);
    /// # Ok::<(), gaisnet::learn::LearnError>(())
    /// ```
    pub fn merge(self, rows: &[(&[f32], f64)]) -> Result<Vec<f32>, LearnError> {
        let Some((first, _)) = rows.first() else { return Err(LearnError::NoUpdates) };
        let total: f64 = rows.iter().map(|(_, weight)| weight).sum();
        if self == Self::Mean && !(total > 0.0 && total.is_finite()) {
            return Err(LearnError::NoUpdates);
        }
        for (row, _) in rows {
            if row.len() != first.len() {
                let (expected, actual) = (first.len() * 4, row.len() * 4);
                return Err(LearnError::WrongLength { what: "row to merge", expected, actual });
            }
            if let Some(index) = row.iter().position(|x| !x.is_finite()) {
                return Err(LearnError::NotFinite { name: "row to merge".into(), index });
            }
        }
        let mut merged = Vec::with_capacity(first.len());
        let mut column: Vec<(f64, f64)> = Vec::with_capacity(rows.len());
        for at in 0..first.len() {
            column.clear();
            column.extend(rows.iter().filter_map(|(row, w)| Some((f64::from(*row.get(at)?), *w))));
            merged.push(narrow(match self {
                Self::Mean => column.iter().map(|(x, w)| x * w).sum::<f64>() / total,
                Self::Median => middle(&mut column, rows.len().saturating_sub(1) / 2),
                Self::Trimmed => middle(&mut column, cut(rows.len())),
            }));
        }
        Ok(merged)
    }
}

/// Values left out at each end of `n`, at least one where that leaves any.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a part of a number of members"
)]
fn cut(n: usize) -> usize {
    let wanted = ((n as f64 * TRIM) as usize).max(1);
    wanted.min(n.saturating_sub(1) / 2)
}

/// Mean of the sorted column without `cut` values at each end.
#[expect(clippy::cast_precision_loss, reason = "a number of members")]
fn middle(column: &mut [(f64, f64)], cut: usize) -> f64 {
    column.sort_by(|a, b| a.0.total_cmp(&b.0));
    let kept = column.get(cut..column.len().saturating_sub(cut)).unwrap_or_default();
    kept.iter().map(|(x, _)| x).sum::<f64>() / kept.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [MergeRule; 3] = [MergeRule::Mean, MergeRule::Median, MergeRule::Trimmed];

    fn merge(rule: MergeRule, rows: &[Vec<f32>]) -> Result<Vec<f32>, LearnError> {
        let rows: Vec<(&[f32], f64)> = rows.iter().map(|row| (row.as_slice(), 1.0)).collect();
        rule.merge(&rows)
    }

    #[test]
    fn the_middle_of_even_and_odd_numbers() {
        let rows = |n: u8| (1..=n).map(|x| vec![f32::from(x)]).collect::<Vec<_>>();
        let median = |n| merge(MergeRule::Median, &rows(n)).unwrap()[0];
        assert!(
            [(1, 1.0), (2, 1.5), (3, 2.0), (4, 2.5), (5, 3.0)]
                .iter()
                .all(|(n, m)| (median(*n) - m).abs() < 1e-6)
        );
        let trimmed = |n| merge(MergeRule::Trimmed, &rows(n)).unwrap()[0];
        assert!(
            [(1, 1.0), (2, 1.5), (5, 3.0), (10, 5.5)]
                .iter()
                .all(|(n, m)| (trimmed(*n) - m).abs() < 1e-6)
        );
    }

    #[test]
    fn weights_count_in_the_mean_and_nowhere_else() {
        let rows: [(&[f32], f64); 3] = [(&[0.0], 1.0), (&[1.0], 1.0), (&[9.0], 1e18)];
        assert!(MergeRule::Mean.merge(&rows).unwrap()[0] > 8.9);
        assert_eq!(MergeRule::Median.merge(&rows).unwrap(), [1.0]);
        assert_eq!(MergeRule::Trimmed.merge(&rows).unwrap(), [1.0]);
    }

    #[test]
    fn what_can_not_be_merged_is_refused() {
        for rule in ALL {
            assert_eq!(merge(rule, &[]).unwrap_err(), LearnError::NoUpdates);
            let uneven = [vec![1.0], vec![1.0, 2.0]];
            assert_eq!(merge(rule, &uneven).unwrap_err().kind(), "wrong_length");
            let broken = [vec![1.0], vec![f32::NAN]];
            assert_eq!(merge(rule, &broken).unwrap_err().kind(), "not_finite");
        }
        assert_eq!(MergeRule::Mean.merge(&[(&[1.0], 0.0)]).unwrap_err(), LearnError::NoUpdates);
    }

    proptest! {
        /// One bad of five moves the median and the trimmed mean no further than the good ones lie
        /// apart; the mean it moves anywhere.
        #[test]
        fn one_bad_of_five_stays_among_the_good(
            good in prop::collection::vec(-10.0_f32..10.0, 4), bad in prop_oneof![-1e30_f32..-1e3, 1e3_f32..1e30],
            at in 0..5_usize,
        ) {
            let (low, high) = good.iter().fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
            let mut rows: Vec<Vec<f32>> = good.iter().map(|x| vec![*x]).collect();
            rows.insert(at, vec![bad]);
            for rule in [MergeRule::Median, MergeRule::Trimmed] {
                let merged = merge(rule, &rows).unwrap()[0];
                prop_assert!((low..=high).contains(&merged), "{:?}: {}", rule, merged);
            }
            prop_assert!(!(low..=high).contains(&merge(MergeRule::Mean, &rows).unwrap()[0]));
        }

        #[test]
        fn equal_members_are_their_own_middle(row in prop::collection::vec(-9.0_f32..9.0, 1..6), n in 1..7_usize) {
            for rule in [MergeRule::Median, MergeRule::Trimmed] {
                let merged = merge(rule, &vec![row.clone(); n]).unwrap();
                prop_assert!(merged.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }
}
