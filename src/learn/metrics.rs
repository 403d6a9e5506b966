//! How well a model answers: confusion matrix, accuracy, macro-F1; and percentiles of latencies.

use super::{LearnError, count_weight};

/// Counts of (true class, predicted class).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    /// No answers yet.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] unless there are 1 to 4,096 classes.
    pub fn new(classes: usize) -> Result<Self, LearnError> {
        if !(1..=MAX_CLASSES).contains(&classes) {
            return Err(LearnError::OutOfRange {
                what: "classes",
                expected: format!("1 to {MAX_CLASSES}"),
                actual: classes.to_string(),
            });
        }
        Ok(Self { classes, counts: vec![0; classes * classes] })
    }

    /// Counts one answer.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when a class doesn't exist.
    pub fn record(&mut self, truth: usize, predicted: usize) -> Result<(), LearnError> {
        let larger = truth.max(predicted);
        let cell = (larger < self.classes)
            .then(|| self.counts.get_mut(truth * self.classes + predicted))
            .flatten()
            .ok_or_else(|| LearnError::OutOfRange {
                what: "class",
                expected: format!("below {}", self.classes),
                actual: larger.to_string(),
            })?;
        *cell += 1;
        Ok(())
    }

    /// `[C, C]` row-major: row = true class, column = predicted class.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Number of answers.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of right answers; none without answers.
    pub fn accuracy(&self) -> Option<f64> {
        let right: u64 = self.counts.iter().step_by(self.classes + 1).sum();
        ratio(right, self.total())
    }

    /// Mean over the classes of `F1 = 2 TP / (2 TP + FP + FN)`; none without answers.
    ///
    /// A class that has no examples and was never predicted says nothing and is left out of the
    /// mean. One that has no examples but was predicted counts as 0.
    ///
    /// # Examples
    /// ```
    /// let mut confusion = gaisnet::learn::Confusion::new(3)?;
    /// for (truth, predicted) in [(0, 0), (0, 0), (0, 1), (1, 1)] {
    ///     confusion.record(truth, predicted)?;
    /// }
    /// // class 0: 4 / (4 + 0 + 1) = 0.8; class 1: 2 / (2 + 1 + 0) = 2/3; class 2 is left out
    /// assert_eq!(confusion.macro_f1(), Some((0.8 + 2.0 / 3.0) / 2.0));
    /// assert_eq!(confusion.accuracy(), Some(0.75));
    /// # Ok::<(), gaisnet::learn::LearnError>(())
    /// ```
    pub fn macro_f1(&self) -> Option<f64> {
        let mut predicted = vec![0_u64; self.classes];
        for row in self.counts.chunks(self.classes) {
            predicted.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
        }
        let (mut sum, mut classes) = (0.0, 0);
        for (class, row) in self.counts.chunks(self.classes).enumerate() {
            let right = row.get(class).copied().unwrap_or_default();
            let as_predicted = predicted.get(class).copied().unwrap_or_default();
            // TP + FN are the row, TP + FP the column, so their sum is 2 TP + FP + FN
            if let Some(f1) = ratio(2 * right, row.iter().sum::<u64>() + as_predicted) {
                sum += f1;
                classes += 1;
            }
        }
        (classes > 0).then(|| sum / f64::from(classes))
    }
}

/// The smallest of `values` that at least `percent` percent of them don't exceed (nearest rank).
///
/// None when there are no values or `percent` isn't in (0, 100].
///
/// # Units
/// That of the values.
/// # Examples
/// ```
/// use gaisnet::learn::percentile;
/// let latency_ms = [4.0, 1.0, 3.0, 90.0];
/// assert_eq!(percentile(&latency_ms, 50.0), Some(3.0));
/// assert_eq!(percentile(&latency_ms, 99.0), Some(90.0));
/// ```
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    if !(percent > 0.0 && percent <= 100.0) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let needed = count_weight(sorted.len().try_into().ok()?) * percent / 100.0;
    let enough = |at: &usize| u64::try_from(at + 1).is_ok_and(|n| count_weight(n) >= needed);
    (0..sorted.len()).find(enough).and_then(|at| sorted.get(at).copied())
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| count_weight(part) / count_weight(whole))
}

/// Far more than any head here; keeps a matrix below 128 MiB.
const MAX_CLASSES: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn confusion(answers: &[(usize, usize)]) -> Confusion {
        let mut confusion = Confusion::new(3).unwrap();
        for (truth, predicted) in answers {
            confusion.record(*truth, *predicted).unwrap();
        }
        confusion
    }

    #[test]
    fn rows_are_true_classes() {
        assert_eq!(confusion(&[(0, 2), (0, 2), (1, 0)]).counts(), [0, 0, 2, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn without_answers_there_is_no_figure() {
        let empty = confusion(&[]);
        assert_eq!((empty.accuracy(), empty.macro_f1(), empty.total()), (None, None, 0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn a_class_predicted_without_examples_costs_and_an_unseen_one_does_not() {
        assert_eq!(confusion(&[(0, 0), (1, 1)]).macro_f1(), Some(1.0));
        let with_false_alarm = confusion(&[(0, 0), (1, 1), (1, 2)]);
        assert_eq!(with_false_alarm.macro_f1(), Some((1.0 + 2.0 / 3.0 + 0.0) / 3.0));
    }

    #[test]
    fn classes_that_do_not_exist_are_refused() {
        let mut confusion = confusion(&[(0, 0)]);
        assert_eq!(confusion.record(3, 0).unwrap_err().kind(), "out_of_range");
        assert_eq!(confusion.record(0, usize::MAX).unwrap_err().kind(), "out_of_range");
        assert_eq!(confusion.total(), 1);
        assert!(Confusion::new(0).is_err() && Confusion::new(usize::MAX).is_err());
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 50.0), Some(50.0));
        assert_eq!(percentile(&values, 99.0), Some(99.0));
        assert_eq!(percentile(&values, 100.0), Some(100.0));
        for bad in [0.0, -1.0, 100.1, f64::NAN] {
            assert_eq!(percentile(&values, bad), None);
        }
    }

    proptest! {
        #[test]
        fn figures_are_shares_and_all_right_is_one(
            answers in prop::collection::vec((0..3_usize, 0..3_usize), 1..60),
        ) {
            let figures = confusion(&answers);
            prop_assert_eq!(figures.total(), answers.len() as u64);
            prop_assert!((0.0..=1.0).contains(&figures.accuracy().unwrap()));
            prop_assert!((0.0..=1.0).contains(&figures.macro_f1().unwrap()));
            let truths: Vec<(usize, usize)> = answers.iter().map(|(t, _)| (*t, *t)).collect();
            prop_assert_eq!(confusion(&truths).macro_f1(), Some(1.0));
        }
    }
}
