//! Knowledge as prototypes: the mean embedding a class, a point in a space that members share.
//!
//! Any two models whose embeddings have one width and meaning can teach each other so: here every learner
//! that starts from the same features or the same base. A class that a member never saw gets a
//! point from those that did.
//!
//! Source: Tan et al. 2021, arXiv:2105.00243 (`FedProto`).

use std::collections::BTreeMap;

use super::{LearnError, MergeRule, count_weight, narrow};
use crate::ids::NodeId;

/// Mean embedding a class with counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Prototypes {
    /// `[C, E]` row-major: row c is the mean embedding over examples of class c; zeros where suppressed.
    pub means: Vec<f32>,
    /// `[C]`: examples behind each row; 0 where suppressed.
    pub counts: Vec<u64>,
}

/// Largest absolute value of an embedding that is believed.
pub const EMBEDDING_BOUND: f32 = 1e3;

impl Prototypes {
    /// Means over examples: embeddings `[n, E]` row-major, labels `[n]`.
    ///
    /// Nothing is suppressed here but classes without any example; the privacy gate does the rest.
    /// # Determinism
    /// Sums in f64 in the order of the examples.
    /// # Errors
    /// [`LearnError::OutOfRange`] when the sizes don't fit or a label isn't below `classes`.
    /// # Examples
    /// ```
    /// use gaisnet::learn::Prototypes;
    /// let two = Prototypes::of(&[1.0, 5.0, 3.0, 7.0], &[1, 1], 2)?;
    /// assert_eq!((two.means, two.counts), (vec![0.0, 0.0, 2.0, 6.0], vec![0, 2]));
    /// # Ok::<(), gaisnet::learn::LearnError>(())
    /// ```
    pub fn of(embeddings: &[f32], labels: &[usize], classes: usize) -> Result<Self, LearnError> {
        let n = labels.len();
        if n == 0 || classes == 0 || !embeddings.len().is_multiple_of(n) || embeddings.is_empty() {
            return Err(LearnError::OutOfRange {
                what: "number of embedding values",
                expected: format!("a multiple of {n}, which isn't 0"),
                actual: embeddings.len().to_string(),
            });
        }
        let width = embeddings.len() / n;
        let mut sums = vec![0.0_f64; classes.saturating_mul(width)];
        let mut counts = vec![0_u64; classes];
        for (row, label) in embeddings.chunks_exact(width).zip(labels) {
            let cells = sums.chunks_exact_mut(width).nth(*label);
            let (Some(cells), Some(count)) = (cells, counts.get_mut(*label)) else {
                return Err(LearnError::OutOfRange {
                    what: "label",
                    expected: format!("below {classes}"),
                    actual: label.to_string(),
                });
            };
            *count += 1;
            cells.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let means = sums.chunks_exact(width).zip(&counts).flat_map(|(row, n)| {
            let n = count_weight((*n).max(1));
            row.iter().map(move |sum| narrow(sum / n))
        });
        Ok(Self { means: means.collect(), counts })
    }

    /// Values of a row, E; 0 for none.
    pub fn width(&self) -> usize {
        self.means.len().checked_div(self.counts.len()).unwrap_or_default()
    }

    /// The class's point, where enough examples are behind it.
    pub fn row(&self, class: usize) -> Option<&[f32]> {
        let known = self.counts.get(class).is_some_and(|count| *count > 0);
        self.means.chunks_exact(self.width().max(1)).nth(class).filter(|_| known)
    }

    /// Checks sizes and values.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] unless there are `[classes, width]` values and `[classes]` counts,
    /// [`LearnError::NotFinite`], [`LearnError::OutOfRange`] beyond [`EMBEDDING_BOUND`].
    pub fn check(&self, classes: usize, width: usize) -> Result<(), LearnError> {
        let sizes = (self.means.len(), self.counts.len());
        if width == 0 || classes.checked_mul(width) != Some(sizes.0) || sizes.1 != classes {
            return Err(LearnError::LayoutMismatch {
                name: "prototypes".into(),
                expected: format!("[{classes}, {width}] values and [{classes}] counts"),
                actual: format!("{} values and {} counts", sizes.0, sizes.1),
            });
        }
        if let Some(index) = self.means.iter().position(|x| !x.is_finite()) {
            return Err(LearnError::NotFinite { name: "prototypes".into(), index });
        }
        match self.means.iter().find(|x| x.abs() > EMBEDDING_BOUND) {
            Some(x) => Err(LearnError::OutOfRange {
                what: "value of a prototype",
                expected: format!("within {EMBEDDING_BOUND} of 0"),
                actual: x.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// Empties each class with fewer than `min_count` examples: zeros, count 0.
    pub fn suppress(&mut self, min_count: u64) {
        let width = self.width().max(1);
        for (count, row) in self.counts.iter_mut().zip(self.means.chunks_exact_mut(width)) {
            if *count < min_count {
                *count = 0;
                row.fill(0.0);
            }
        }
    }
}

/// Merges prototypes class by class over the members that have examples of it.
///
/// With [`MergeRule::Mean`] members weigh as many examples as they say they have; the other rules
/// count heads. A class that nobody has is zeros with count 0. Counts add up.
///
/// # Determinism
/// In the order of sender ids.
/// # Errors
/// [`LearnError::NoUpdates`] without members, and those of [`Prototypes::check`].
pub fn merge_prototypes(
    classes: usize,
    width: usize,
    rule: MergeRule,
    members: &BTreeMap<NodeId, Prototypes>,
) -> Result<Prototypes, LearnError> {
    if members.is_empty() {
        return Err(LearnError::NoUpdates);
    }
    members.values().try_for_each(|member| member.check(classes, width))?;
    let (mut means, mut counts) = (Vec::with_capacity(classes * width), Vec::new());
    for class in 0..classes {
        let count = |member: &Prototypes| member.counts.get(class).copied().unwrap_or_default();
        let having = members.values().filter_map(|m| Some((m.row(class)?, count_weight(count(m)))));
        let rows: Vec<(&[f32], f64)> = having.collect();
        if rows.is_empty() {
            means.extend(std::iter::repeat_n(0.0, width));
        } else {
            means.extend(rule.merge(&rows)?);
        }
        counts.push(members.values().fold(0, |sum: u64, member| sum.saturating_add(count(member))));
    }
    Ok(Prototypes { means, counts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(all: &[Prototypes]) -> BTreeMap<NodeId, Prototypes> {
        let named = all.iter().cloned().enumerate();
        named.map(|(at, p)| (NodeId::new(format!("n{at}")).unwrap(), p)).collect()
    }

    fn points(means: &[f32], counts: &[u64]) -> Prototypes {
        Prototypes { means: means.to_vec(), counts: counts.to_vec() }
    }

    #[test]
    fn a_class_that_one_lacks_comes_from_the_others() {
        let all = members(&[points(&[2.0, 4.0], &[30, 0]), points(&[6.0, 8.0], &[10, 20])]);
        let mean = merge_prototypes(2, 1, MergeRule::Mean, &all).unwrap();
        assert_eq!(mean, points(&[3.0, 8.0], &[40, 20]));
        let median = merge_prototypes(2, 1, MergeRule::Median, &all).unwrap();
        assert_eq!(median, points(&[4.0, 8.0], &[40, 20]));
        assert_eq!((mean.row(0), points(&[3.0, 8.0], &[4, 0]).row(1)), (Some(&[3.0][..]), None));
    }

    #[test]
    fn counts_that_lie_own_the_mean_and_not_the_median() {
        let honest = points(&[1.0], &[100]);
        let liar = points(&[-900.0], &[u64::MAX]);
        let five = [honest.clone(), honest.clone(), honest.clone(), honest, liar];
        let merge = |rule| merge_prototypes(1, 1, rule, &members(&five)).unwrap().means[0];
        assert!(merge(MergeRule::Mean) < -899.0);
        assert!((merge(MergeRule::Median) - 1.0).abs() < 1e-6);
        assert!((merge(MergeRule::Trimmed) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn few_examples_are_suppressed() {
        let mut few = points(&[1.0, 2.0, 3.0, 4.0], &[19, 20]);
        few.suppress(20);
        assert_eq!(few, points(&[0.0, 0.0, 3.0, 4.0], &[0, 20]));
    }

    #[test]
    fn bad_sizes_and_values_are_refused_and_their_twin_is_taken() {
        let kind = |p: &Prototypes| p.check(2, 2).map_or_else(|e| e.kind(), |()| "ok");
        assert_eq!(kind(&points(&[1.0; 4], &[1, 1])), "ok");
        assert_eq!(kind(&points(&[1.0; 3], &[1, 1])), "layout_mismatch");
        assert_eq!(kind(&points(&[1.0; 4], &[1])), "layout_mismatch");
        assert_eq!(kind(&points(&[1.0, 1.0, f32::INFINITY, 1.0], &[1, 1])), "not_finite");
        assert_eq!(kind(&points(&[1.0, 1.0, 2e3, 1.0], &[1, 1])), "out_of_range");
        assert_eq!(points(&[], &[]).width(), 0);
        assert!(Prototypes::of(&[1.0; 3], &[0, 1], 2).is_err());
        assert!(Prototypes::of(&[1.0; 2], &[0, 2], 2).is_err());
        assert!(Prototypes::of(&[], &[], 2).is_err());
    }
}
