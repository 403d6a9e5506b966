//! Knowledge as a classification layer: what a generator of latents is trained against.
//!
//! A row a class over the values of an embedding, and a bias; and where embeddings lie, the mean and spread of each
//! value over all examples. The mean of several such layers' logits is what
//! the mean of the layers says, so their mean **is** the ensemble of the members; the median and the trimmed mean are
//! that without a few bad ones.
//!
//! Only differences between rows count in a softmax. What leaves is therefore taken less the mean of the classes that
//! the member knows: a class that it never saw would else be in all its rows, as what they are not.
//!
//! Called by the learners, `actors/workbench.rs` and `protocol/heads.rs`.

use std::collections::BTreeMap;

use super::{
    EMBEDDING_BOUND, LearnError, MergeRule, Prototypes, count_weight, merge_prototypes, narrow,
};
use crate::ids::NodeId;

/// Largest length of a class's row that is believed.
pub const HEAD_BOUND: f64 = 64.0;

/// A classification layer with counts, and the embeddings that it is made for.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassHead {
    /// `[C, E + 1]` row-major, weights of a class and then its bias; zeros and a count of 0 where suppressed.
    pub rows: Prototypes,
    /// `[2, E]` row-major: mean of each value over all examples, then its standard deviation.
    pub moments: Vec<f32>,
}

impl ClassHead {
    /// A layer of weights `[C, E]` and biases `[C]`, learned from embeddings `[n, E]` with labels `[n]`; all row-major.
    ///
    /// # Determinism
    /// Sums in f64 in the order of the examples.
    /// # Examples
    /// ```
    /// let head = gaisnet::learn::ClassHead::of(&[3.0, -3.0], &[0.5, 0.0], &[1.0, 5.0], &[1, 1]);
    /// assert_eq!((head.rows.means, head.rows.counts), (vec![3.0, 0.5, -3.0, 0.0], vec![0, 2]));
    /// assert_eq!(head.moments, [3.0, 2.0]);
    /// ```
    pub fn of(weights: &[f32], biases: &[f32], embeddings: &[f32], labels: &[usize]) -> Self {
        let width = weights.len().checked_div(biases.len()).unwrap_or_default().max(1);
        let rows = weights.chunks(width).zip(biases);
        let means = rows.flat_map(|(row, bias)| row.iter().chain([bias])).copied().collect();
        let mut counts = vec![0_u64; biases.len()];
        for label in labels {
            if let Some(count) = counts.get_mut(*label) {
                *count += 1;
            }
        }
        let n = count_weight(labels.len().max(1) as u64);
        let mut sums = vec![(0.0_f64, 0.0_f64); width];
        for row in embeddings.chunks_exact(width) {
            for ((sum, squares), x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x) / n;
                *squares += f64::from(*x).powi(2) / n;
            }
        }
        let mean = sums.iter().map(|(mean, _)| narrow(*mean));
        let spread = sums.iter().map(|(mean, squares)| (squares - mean * mean).max(0.0).sqrt());
        let moments = mean.chain(spread.map(narrow)).collect();
        Self { rows: Prototypes { means, counts }, moments }
    }

    /// Mean and standard deviation of each value of an embedding.
    pub fn places(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let spreads = self.moments.iter().skip(self.width());
        let pairs = self.moments.iter().zip(spreads);
        pairs.map(|(mean, spread)| (f64::from(*mean), f64::from(*spread)))
    }

    /// Values of an embedding, E; 0 for none.
    pub fn width(&self) -> usize {
        self.rows.width().saturating_sub(1)
    }

    /// Classes, C.
    pub fn classes(&self) -> usize {
        self.rows.counts.len()
    }

    /// Checks sizes, values and lengths.
    ///
    /// # Errors
    /// Those of [`Prototypes::check`] with a width of `width + 1`; [`LearnError::OutOfRange`] without a value of an
    /// embedding, and for a row that is longer than [`HEAD_BOUND`].
    pub fn check(&self, classes: usize, width: usize) -> Result<(), LearnError> {
        self.rows.check(classes, width.saturating_add(1))?;
        let bad = |what, expected: String, actual: String| {
            Err(LearnError::OutOfRange { what, expected, actual })
        };
        if width == 0 {
            return bad("values of an embedding", "1 or more".into(), "0".into());
        }
        let longest = self.rows.means.chunks_exact(width + 1).map(length).fold(0.0, f64::max);
        if longest > HEAD_BOUND {
            return bad(
                "length of a class's row",
                format!("{HEAD_BOUND} at most"),
                longest.to_string(),
            );
        }
        let wanted = width.saturating_mul(2);
        if self.moments.len() != wanted {
            let (expected, actual) = (wanted * 4, self.moments.len() * 4);
            return Err(LearnError::WrongLength {
                what: "moments of embeddings",
                expected,
                actual,
            });
        }
        if let Some(index) = self.moments.iter().position(|x| !x.is_finite()) {
            return Err(LearnError::NotFinite { name: "moments of embeddings".into(), index });
        }
        if let Some(x) = self.moments.iter().find(|x| x.abs() > EMBEDDING_BOUND) {
            return bad(
                "moments of embeddings",
                format!("within {EMBEDDING_BOUND} of 0"),
                x.to_string(),
            );
        }
        Ok(())
    }

    /// Makes it fit to leave: classes with fewer than `min_count` examples are emptied, the others taken less
    /// their mean, and rows shortened to what is believed.
    ///
    /// # Examples
    /// ```
    /// let mut head = gaisnet::learn::ClassHead::of(&[3.0, 1.0, -9.0], &[0.0; 3], &[1.0; 5], &[0, 1, 1, 0, 2]);
    /// head.trim(2);
    /// assert_eq!(head.rows.means, [1.0, 0.0, -1.0, 0.0, 0.0, 0.0]);
    /// assert_eq!(head.rows.counts, [2, 2, 0]);
    /// ```
    pub fn trim(&mut self, min_count: u64) {
        self.rows.suppress(min_count);
        let known: Vec<usize> =
            (0..self.classes()).filter(|c| self.rows.row(*c).is_some()).collect();
        let mut mean = vec![0.0_f64; self.rows.width()];
        for row in known.iter().filter_map(|class| self.rows.row(*class)) {
            mean.iter_mut().zip(row).for_each(|(mean, w)| *mean += f64::from(*w));
        }
        let n = count_weight(known.len().max(1) as u64);
        let counts = self.rows.counts.iter();
        for (row, _) in
            self.rows.means.chunks_exact_mut(mean.len().max(1)).zip(counts).filter(|(_, n)| **n > 0)
        {
            row.iter_mut().zip(&mean).for_each(|(w, mean)| *w = narrow(f64::from(*w) - mean / n));
            // Coding rounds, so the bound is kept with some room.
            let factor = 0.95 * HEAD_BOUND / length(row);
            if factor < 1.0 {
                for w in row {
                    *w = narrow(f64::from(*w) * factor);
                }
            }
        }
    }
}

/// Merges layers class by class over the members that know it, as [`merge_prototypes`] does points.
///
/// # Errors
/// [`LearnError::NoUpdates`] without members, and those of [`ClassHead::check`].
pub fn merge_heads(
    classes: usize,
    width: usize,
    rule: MergeRule,
    members: &BTreeMap<NodeId, ClassHead>,
) -> Result<ClassHead, LearnError> {
    members.values().try_for_each(|head| head.check(classes, width))?;
    let rows = members.iter().map(|(sender, head)| (sender.clone(), head.rows.clone())).collect();
    let weight = |head: &ClassHead| head.rows.counts.iter().map(|n| count_weight(*n)).sum();
    let moments: Vec<(&[f32], f64)> =
        members.values().map(|head| (head.moments.as_slice(), weight(head))).collect();
    let rows = merge_prototypes(classes, width.saturating_add(1), rule, &rows)?;
    // Where nobody has enough examples of anything there is no mean.
    let moments = rule.merge(&moments).unwrap_or_else(|_| vec![0.0; width.saturating_mul(2)]);
    Ok(ClassHead { rows, moments })
}

fn length(row: &[f32]) -> f64 {
    row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(rows: &[f32], counts: &[u64]) -> ClassHead {
        let rows = Prototypes { means: rows.to_vec(), counts: counts.to_vec() };
        ClassHead { rows, moments: vec![0.5, 1.0] }
    }

    fn merge(rule: MergeRule, heads: &[ClassHead]) -> ClassHead {
        let named = heads.iter().cloned().enumerate();
        let named = named.map(|(at, h)| (NodeId::new(format!("n{at}")).unwrap(), h)).collect();
        merge_heads(2, 1, rule, &named).unwrap()
    }

    #[test]
    fn the_mean_of_the_layers_says_what_the_mean_of_their_logits_says() {
        let two = [head(&[1.0, 0.5, -1.0, -0.5], &[9, 9]), head(&[3.0, -0.5, -3.0, 0.5], &[9, 9])];
        let merged = merge(MergeRule::Mean, &two);
        let says = |head: &ClassHead, x: f32| {
            head.rows.means.chunks(2).map(|row| row[0] * x + row[1]).collect::<Vec<f32>>()
        };
        let each: Vec<Vec<f32>> = two.iter().map(|head| says(head, 1.7)).collect();
        for (merged, (a, b)) in says(&merged, 1.7).iter().zip(each[0].iter().zip(&each[1])) {
            assert!((merged - (a + b) / 2.0).abs() < 1e-6);
        }
    }

    #[test]
    fn a_class_comes_from_those_that_know_it_and_a_loud_member_does_not_own_it() {
        let knows_one = head(&[2.0, 0.0, 0.0, 0.0], &[9, 0]);
        let knows_both = head(&[4.0, 0.0, -4.0, 0.0], &[9, 9]);
        let merged = merge(MergeRule::Median, &[knows_one, knows_both.clone()]);
        assert_eq!(merged, head(&[3.0, 0.0, -4.0, 0.0], &[18, 9]));
        let liar = head(&[-60.0, 0.0, 60.0, 0.0], &[u64::MAX, u64::MAX]);
        let five = [[liar].as_slice(), &vec![knows_both; 4]].concat();
        assert!((merge(MergeRule::Median, &five).rows.means[0] - 4.0).abs() < 1e-6);
        assert!(merge(MergeRule::Mean, &five).rows.means[0] < -59.0);
    }

    #[test]
    fn without_its_mean_a_layer_says_the_same_of_the_classes_that_it_knows() {
        let mut trimmed = head(&[1.0, 2.0, 5.0, 1.0, 7.0, 7.0], &[30, 40, 3]);
        let gap = |head: &ClassHead| {
            let rows: Vec<&[f32]> = head.rows.means.chunks(2).collect();
            (rows[0][0] - rows[1][0], rows[0][1] - rows[1][1])
        };
        let before = gap(&trimmed);
        trimmed.trim(5);
        assert_eq!(gap(&trimmed), before);
        assert_eq!(trimmed.rows.row(2), None);
        let mut long = head(&[900.0, 0.0, -900.0, 0.0], &[9, 9]);
        assert_eq!(long.check(2, 1).unwrap_err().kind(), "out_of_range");
        long.trim(5);
        assert_eq!(long.check(2, 1), Ok(()));
        assert!(long.rows.means[0] > 60.0 && long.rows.means[2] < -60.0);
    }

    #[test]
    fn bad_sizes_and_values_are_refused_and_their_twin_is_taken() {
        let kind = |head: ClassHead| head.check(2, 1).map_or_else(|e| e.kind(), |()| "ok");
        assert_eq!(kind(head(&[63.0; 4], &[1, 1])), "out_of_range", "each value is in bounds");
        assert_eq!(kind(head(&[45.0; 4], &[1, 1])), "ok");
        assert_eq!(kind(head(&[1.0; 6], &[1, 1])), "layout_mismatch");
        assert_eq!(kind(head(&[1.0; 4], &[1])), "layout_mismatch");
        assert_eq!(kind(head(&[1.0, f32::NAN, 1.0, 1.0], &[1, 1])), "not_finite");
        assert_eq!(head(&[1.0; 2], &[1, 1]).check(2, 0).unwrap_err().kind(), "out_of_range");
        let of =
            |moments: &[f32]| ClassHead { moments: moments.to_vec(), ..head(&[1.0; 4], &[1, 1]) };
        assert_eq!(kind(of(&[0.0])), "wrong_length");
        assert_eq!(kind(of(&[0.0, f32::INFINITY])), "not_finite");
        assert_eq!(kind(of(&[0.0, 1001.0])), "out_of_range");
        assert_eq!(ClassHead::of(&[], &[], &[], &[]).width(), 0);
    }
}
