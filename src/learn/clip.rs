//! Norm clipping: no update counts as longer than the usual one.
//!
//! ```text
//! D <- D * min(1, S / ||D||)        S = median of the norms of this round and of the last ones
//! ```
//! D is what an update *does* (`effect_norm`), not how its factors are written. So that the result
//! doesn't depend on who arrived first, a round's owner first observes all norms of the round in the
//! order of sender ids, then clips: the first round has its bound too. Norms are remembered as they
//! came, not as they were clipped, so that S can rise when everybody's work grows.
//!
//! While fewer than half of the norms are an attacker's, S stays within the honest ones. Two members
//! can't outvote each other: nobody can tell which of two norms is the odd one, so nothing is clipped
//! until [`LEAST_NORMS`] are known, which an owner of two members reaches in its second round. What
//! clipping bounds is length; a lie of the usual length still counts by its weight.
//!
//! Source: Sun et al. 2019, arXiv:1911.07963 (a fixed bound; here the running median).

use super::LearnError;

/// Norms that are remembered from round to round; a round's own all count.
pub const NORMS_REMEMBERED: usize = 32;

/// Below this number of norms a median is no majority, and nothing is clipped.
pub const LEAST_NORMS: usize = 3;

/// The running median of the last norms.
#[derive(Debug, Clone, PartialEq)]
pub struct NormClip {
    /// Oldest first.
    norms: Vec<f64>,
    earlier: usize,
}

impl NormClip {
    /// Starts a round on the norms that earlier ones left, oldest first.
    ///
    /// # Errors
    /// Those of [`NormClip::observe`].
    pub fn resume(earlier: &[f64]) -> Result<Self, LearnError> {
        let mut clip = Self { norms: Vec::new(), earlier: 0 };
        for norm in earlier {
            clip.observe(*norm)?;
        }
        clip.earlier = clip.norms.len();
        Ok(clip)
    }

    /// Takes a norm of this round. It pushes out the oldest of the earlier ones when there are more
    /// than [`NORMS_REMEMBERED`].
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
        if self.norms.len() >= NORMS_REMEMBERED && self.earlier > 0 {
            self.norms.remove(0);
            self.earlier -= 1;
        }
        self.norms.push(norm);
        Ok(())
    }

    /// What an update of this norm is to be multiplied with, 0 to 1; 1 leaves it alone.
    ///
    /// # Examples
    /// ```
    /// use gaisnet::learn::NormClip;
    /// let mut clip = NormClip::resume(&[])?;
    /// for norm in [2.0, 2.5, 1000.0] { clip.observe(norm)?; } // the median is 2.5
    /// assert_eq!([2.0, 5.0, 1000.0].map(|norm| clip.factor(norm)), [1.0, 0.5, 0.0025]);
    /// # Ok::<(), gaisnet::learn::LearnError>(())
    /// ```
    pub fn factor(&self, norm: f64) -> f64 {
        match self.bound() {
            Some(bound) if norm > bound => bound / norm,
            _ => 1.0,
        }
    }

    /// The bound S: the median, the mean of the middle two when their number is even; none while
    /// fewer than [`LEAST_NORMS`] norms are known.
    pub fn bound(&self) -> Option<f64> {
        if self.norms.len() < LEAST_NORMS {
            return None;
        }
        let mut sorted = self.norms.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(lower.midpoint(upper))
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bound_is_the_median_of_the_last_norms_once_there_are_three() {
        let bound = |norms: &[f64]| NormClip::resume(norms).unwrap().bound();
        assert_eq!(bound(&[]), None);
        assert_eq!(bound(&[4.0, 1000.0]), None, "two can't outvote each other");
        assert_eq!(bound(&[4.0, 1000.0, 3.0]), Some(4.0));
        assert_eq!(bound(&[4.0, 2.0, 3.0, 9.0]), Some(3.5));
    }

    #[test]
    fn a_round_pushes_old_norms_out_and_keeps_its_own() {
        let old = vec![1.0; NORMS_REMEMBERED];
        let mut clip = NormClip::resume(&old).unwrap();
        for _ in 0..NORMS_REMEMBERED {
            clip.observe(5.0).unwrap();
        }
        assert_eq!(clip.bound(), Some(5.0));
        for _ in 0..3 * NORMS_REMEMBERED {
            clip.observe(7.0).unwrap();
        }
        assert_eq!(clip.bound(), Some(7.0), "all of a big round count");
    }

    #[test]
    fn a_median_of_zero_silences_an_update_and_a_zero_update_stays() {
        let clip = NormClip::resume(&[0.0; 3]).unwrap();
        assert_eq!((clip.factor(5.0), clip.factor(0.0)), (0.0, 1.0));
    }

    #[test]
    fn norms_that_are_not_finite_are_refused() {
        let mut clip = NormClip::resume(&[1.0]).unwrap();
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(clip.observe(bad).unwrap_err().kind(), "out_of_range");
        }
        assert_eq!(clip, NormClip::resume(&[1.0]).unwrap());
    }

    proptest! {
        #[test]
        fn what_counts_is_no_longer_than_the_bound(
            norms in prop::collection::vec(0.0_f64..1e4, 3..40),
        ) {
            let clip = NormClip::resume(&norms).unwrap();
            let bound = clip.bound().unwrap();
            for norm in norms {
                let factor = clip.factor(norm);
                prop_assert!((0.0..=1.0).contains(&factor));
                prop_assert!(norm * factor <= bound * (1.0 + 1e-12));
                prop_assert!(factor == 1.0 || norm > bound);
            }
        }

        #[test]
        fn a_minority_cannot_move_the_bound_beyond_the_honest_norms(
            honest in prop::collection::vec(1.0_f64..2.0, 5..9),
            attack in prop::collection::vec(0.0_f64..1e9, 0..4),
        ) {
            let norms: Vec<f64> = honest.into_iter().chain(attack).collect();
            let bound = NormClip::resume(&norms).unwrap().bound().unwrap();
            prop_assert!((1.0..2.0).contains(&bound));
        }
    }
}
