//! A built-in input, to see whether a version of a model answers at all.
//!
//! It says nothing of how good the answer is: who doubts that asks with examples of their own. Called by the
//! inferencer, whose findings decide whether a node keeps the version that it serves.

use super::{LearnError, Prediction};

/// A window of `len` samples: two tones and a fading ring, within -1 and 1, the same each time.
#[expect(clippy::cast_possible_truncation, reason = "samples fit an f32")]
pub fn probe_window(len: usize) -> Vec<f32> {
    let sample = |n: u32| {
        let turns = f64::from(n) / 64.0;
        let tones = 0.4 * (turns * 6.1).sin() + 0.2 * (turns * 23.7).sin();
        let ring = 0.3 * (-f64::from(n % 97) / 20.0).exp() * (turns * 151.0).cos();
        (tones + ring) as f32
    };
    (0..=u32::MAX).map(sample).take(len).collect()
}

/// Takes a prediction only if it is one: probabilities from 0 to 1 that sum to 1, and the class is one of them.
///
/// # Errors
/// [`LearnError::NotFinite`] or [`LearnError::OutOfRange`].
pub fn sound(prediction: Prediction) -> Result<Prediction, LearnError> {
    let probabilities = &prediction.probabilities;
    if let Some(index) = probabilities.iter().position(|p| !p.is_finite()) {
        return Err(LearnError::NotFinite { name: "an answer's probabilities".into(), index });
    }
    let sum: f64 = probabilities.iter().copied().map(f64::from).sum();
    let within = probabilities.iter().all(|p| (0.0..=1.0).contains(p));
    if !within || (sum - 1.0).abs() > TOLERANCE || prediction.class >= probabilities.len() {
        return Err(LearnError::OutOfRange {
            what: "an answer's probabilities",
            expected: "from 0 to 1, with the sum 1, and a class among them".to_owned(),
            actual: format!(
                "{} that sum to {sum}, class {}",
                probabilities.len(),
                prediction.class
            ),
        });
    }
    Ok(prediction)
}

/// What rounding and a rescaled temperature may leave of a sum.
const TOLERANCE: f64 = 1e-2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_as_long_as_asked_and_never_silent_nor_loud() {
        for len in [1, 64, 2_048] {
            let window = probe_window(len);
            assert_eq!(window.len(), len);
            assert!(window.iter().all(|x| x.abs() <= 1.0));
            assert!(window.iter().any(|x| *x != 0.0));
        }
        assert_eq!(probe_window(64), probe_window(64));
    }

    #[test]
    fn what_is_no_probability_is_no_answer() {
        let answer = |probabilities: &[f32], class| {
            sound(Prediction { probabilities: probabilities.to_vec(), class })
        };
        answer(&[0.25, 0.75], 1).unwrap();
        answer(&[1.0], 0).unwrap();
        let kind = |probabilities: &[f32], class| answer(probabilities, class).unwrap_err().kind();
        assert_eq!(kind(&[f32::NAN, 0.5], 1), "not_finite");
        assert_eq!(kind(&[f32::INFINITY, 0.0], 0), "not_finite");
        for (bad, class) in [(&[0.5, 0.6][..], 0), (&[-0.5, 1.5], 1), (&[0.5, 0.5], 2), (&[], 0)] {
            assert_eq!(kind(bad, class), "out_of_range");
        }
    }
}
