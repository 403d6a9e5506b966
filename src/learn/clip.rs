//! Norm clipping: no update is longer than the usual one.
//!
//! ```text
//! D <- D * min(1, S / ||D||)        S = median of the last norms
//! ```
//! While fewer than half of the norms are an attacker's, S stays within the honest ones.
//! The norms are remembered as they came, not as they were clipped.
//!
//! So that the result doesn't depend on who arrived first, a round's owner first observes all norms
//! of the round in the order of sender ids, then clips: the first round has its bound too.
//!
//! Source: Sun et al. 2019, arXiv:1911.07963 (a fixed bound; here the running median).

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use super::{LearnError, TensorSet, narrow};

/// What clipping did to one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipReport {
    /// Euclidean norm before.
    pub norm: f64,
    /// The bound S; none while no norm has been observed.
    pub bound: Option<f64>,
    /// What the update was multiplied with, 0 to 1; 1 means untouched.
    pub factor: f64,
}

/// The running median of the last norms.
#[derive(Debug, Clone, PartialEq)]
pub struct NormClip {
    norms: VecDeque<f64>,
    capacity: NonZeroUsize,
}

impl NormClip {
    /// Remembers the last `capacity` norms.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { norms: VecDeque::new(), capacity }
    }

    /// Remembers a norm; the oldest goes when there are too many.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when it is negative, infinite or NaN.
    pub fn observe(&mut self, norm: f64) -> Result<(), LearnError> {
        if !(norm.is_finite() && norm >= 0.0) {
            return Err(LearnError::OutOfRange {
                what: "norm of an update",
                expected: "finite, not negative".into(),
                actual: norm.to_string(),
            });
        }
        if self.norms.len() >= self.capacity.get() {
            self.norms.pop_front();
        }
        self.norms.push_back(norm);
        Ok(())
    }

    /// Shortens `delta` to the bound when it is longer.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] when a value isn't finite; then nothing has changed.
    /// # Examples
    /// ```
    /// use gaisnet::learn::{NormClip, Tensor, TensorSet};
    /// let mut clip = NormClip::new(100.try_into().unwrap());
    /// for norm in [2.0, 2.5, 1000.0] { clip.observe(norm)?; } // the median is 2.5
    /// let data = vec![3.0, 4.0]; // norm 5
    /// let mut delta = TensorSet::new(vec![Tensor { name: "w".into(), shape: vec![2], data }])?;
    /// assert_eq!(clip.clip(&mut delta)?.factor, 0.5);
    /// assert_eq!(delta.tensors()[0].data, [1.5, 2.0]);
    /// # Ok::<(), gaisnet::learn::LearnError>(())
    /// ```
    pub fn clip(&self, delta: &mut TensorSet) -> Result<ClipReport, LearnError> {
        delta.check_finite()?;
        let norm = delta.norm();
        let bound = self.bound();
        let factor = match bound {
            Some(bound) if norm > bound => bound / norm,
            _ => 1.0,
        };
        if factor < 1.0 {
            for values in delta.values_mut() {
                for x in values {
                    *x = narrow(f64::from(*x) * factor);
                }
            }
        }
        Ok(ClipReport { norm, bound, factor })
    }

    /// The bound S: the median, the mean of the middle two when their number is even.
    pub fn bound(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.norms.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(lower.midpoint(upper))
    }

    /// The remembered norms, oldest first, to be stored.
    pub fn norms(&self) -> impl Iterator<Item = f64> + '_ {
        self.norms.iter().copied()
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::Tensor;

    fn set(data: &[f32]) -> TensorSet {
        let tensor = Tensor { name: "w".into(), shape: vec![data.len()], data: data.to_vec() };
        TensorSet::new(vec![tensor]).unwrap()
    }

    fn clip_after(norms: &[f64], capacity: usize) -> NormClip {
        let mut clip = NormClip::new(capacity.try_into().unwrap());
        for norm in norms {
            clip.observe(*norm).unwrap();
        }
        clip
    }

    #[test]
    fn the_bound_is_the_median_of_the_last_norms() {
        assert_eq!(clip_after(&[], 3).bound(), None);
        assert_eq!(clip_after(&[4.0], 3).bound(), Some(4.0));
        assert_eq!(clip_after(&[4.0, 2.0], 3).bound(), Some(3.0));
        let full = clip_after(&[100.0, 4.0, 2.0, 3.0], 3);
        assert_eq!((full.bound(), full.norms().count()), (Some(3.0), 3));
    }

    #[test]
    fn without_any_norm_nothing_is_clipped() {
        let mut delta = set(&[3.0, 4.0]);
        let report = clip_after(&[], 3).clip(&mut delta).unwrap();
        assert_eq!(report, ClipReport { norm: 5.0, bound: None, factor: 1.0 });
        assert_eq!(delta, set(&[3.0, 4.0]));
    }

    #[test]
    fn a_median_of_zero_silences_an_update_and_a_zero_update_stays_zero() {
        let clip = clip_after(&[0.0], 3);
        let (mut delta, mut zero) = (set(&[3.0, 4.0]), set(&[0.0, 0.0]));
        assert_eq!(clip.clip(&mut delta).unwrap().factor, 0.0);
        assert_eq!(clip.clip(&mut zero).unwrap().factor, 1.0);
        assert_eq!((delta, zero), (set(&[0.0, 0.0]), set(&[0.0, 0.0])));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let mut clip = clip_after(&[1.0], 3);
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(clip.observe(bad).unwrap_err().kind(), "out_of_range");
        }
        assert_eq!(clip.clip(&mut set(&[f32::NAN])).unwrap_err().kind(), "not_finite");
        assert_eq!(clip, clip_after(&[1.0], 3));
    }

    proptest! {
        #[test]
        fn a_clipped_update_is_no_longer_than_the_bound_and_points_the_same_way(
            values in prop::collection::vec(-1e3_f32..1e3, 1..20), norm in 1e-3_f64..1e4,
        ) {
            let before = set(&values);
            let mut after = before.clone();
            let report = clip_after(&[norm], 9).clip(&mut after).unwrap();
            prop_assert!(after.norm() <= norm * (1.0 + 1e-6));
            prop_assert!((0.0..=1.0).contains(&report.factor));
            for (x, y) in before.tensors()[0].data.iter().zip(&after.tensors()[0].data) {
                prop_assert!((f64::from(*x) * report.factor - f64::from(*y)).abs() < 1e-3);
            }
        }

        #[test]
        fn a_minority_cannot_move_the_bound_beyond_the_honest_norms(
            honest in prop::collection::vec(1.0_f64..2.0, 5..9),
            attack in prop::collection::vec(0.0_f64..1e9, 0..4),
        ) {
            let norms: Vec<f64> = honest.into_iter().chain(attack).collect();
            let bound = clip_after(&norms, 100).bound().unwrap();
            prop_assert!((1.0..2.0).contains(&bound));
        }
    }
}
