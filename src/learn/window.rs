//! What is done to a sensor window before any model sees it.

use super::LearnError;

/// Shifts and scales a window to mean 0 and variance 1, so that a sensor's offset and gain are gone.
///
/// # Determinism
/// Sums in f64, in order.
/// # Errors
/// [`LearnError::NotFinite`] on NaN or infinity; [`LearnError::OutOfRange`] when the window is
/// empty or constant (a dead sensor: its variance is below what f32 can tell from its mean).
pub fn normalise_window(raw: &[f32]) -> Result<Vec<f32>, LearnError> {
    if let Some(index) = raw.iter().position(|x| !x.is_finite()) {
        return Err(LearnError::NotFinite { name: "window".into(), index });
    }
    let (mean, deviation) = mean_and_deviation(raw);
    if !is_alive(mean, deviation) {
        return Err(LearnError::OutOfRange {
            what: "standard deviation of the window",
            expected: "> 0 (the sensor moves)".into(),
            actual: deviation.to_string(),
        });
    }
    Ok(raw.iter().map(|x| to_f32((f64::from(*x) - mean) / deviation)).collect())
}

/// Mean and population standard deviation; NaN for an empty window.
fn mean_and_deviation(raw: &[f32]) -> (f64, f64) {
    let n = to_f64(raw.len());
    let mean = raw.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = raw.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt())
}

/// False for an empty or constant window: f32 samples carry 24 bits, rounding noise isn't signal.
fn is_alive(mean: f64, deviation: f64) -> bool {
    deviation > mean.abs() * f64::from(f32::EPSILON)
}

#[expect(clippy::cast_precision_loss, reason = "windows are shorter than 2^52")]
fn to_f64(n: usize) -> f64 {
    n as f64
}

#[expect(clippy::cast_possible_truncation, reason = "rounds a value of order 1 to the wire's type")]
fn to_f32(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_samples_by_hand() {
        let window = normalise_window(&[1.0, 2.0, 3.0]).unwrap();
        let side = 1.5_f32.sqrt();
        assert_eq!(window, [-side, 0.0, side]);
    }

    #[test]
    fn dead_and_broken_sensors_are_refused() {
        assert_eq!(normalise_window(&[]).unwrap_err().kind(), "out_of_range");
        assert_eq!(normalise_window(&[0.0; 8]).unwrap_err().kind(), "out_of_range");
        assert_eq!(normalise_window(&[0.1; 8]).unwrap_err().kind(), "out_of_range");
        for bad in [f32::NAN, f32::INFINITY] {
            let error = normalise_window(&[1.0, bad]).unwrap_err();
            assert_eq!(error, LearnError::NotFinite { name: "window".into(), index: 1 });
        }
    }

    proptest! {
        #[test]
        fn offset_and_gain_make_no_difference(
            raw in prop::collection::vec(-1.0_f32..1.0, 16..64), gain in 0.1_f32..9.0,
            offset in -9.0_f32..9.0,
        ) {
            let moved: Vec<f32> = raw.iter().map(|x| x * gain + offset).collect();
            let (Ok(a), Ok(b)) = (normalise_window(&raw), normalise_window(&moved)) else {
                return Ok(());
            };
            for (a, b) in a.iter().zip(&b) {
                prop_assert!((a - b).abs() < 1e-3, "{a} {b}");
            }
        }
    }
}
