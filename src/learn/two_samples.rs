//! Whether two samples come from one distribution: the test of Kolmogorov and Smirnov, with its exact probability.
//!
//! Called by [`super::InputDrift`].

/// What the test says of two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TwoSamples {
    /// Largest distance of the two empirical distribution functions, 0 to 1.
    pub distance: f64,
    /// Probability of a distance at least as large, where both samples are from one continuous distribution; where values
    /// are tied it is an upper bound.
    pub p_value: f64,
}

/// Tests whether two samples of independent draws come from one distribution, whatever it is.
///
/// `None` where one is empty or has a value that is no finite number. Takes time in the product of their lengths.
///
/// # Examples
/// ```
/// // Apart as far as can be: 2 of the 20 orders of three and three values do that.
/// let test = gaisnet::learn::two_samples(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]).unwrap();
/// assert!((test.distance - 1.0).abs() < 1e-12 && (test.p_value - 0.1).abs() < 1e-12);
/// ```
/// # Source
/// Smirnov 1939; the probability by counting lattice paths, Hodges 1958, Arkiv för Matematik 3(43).
pub fn two_samples(first: &[f64], second: &[f64]) -> Option<TwoSamples> {
    let (n, m) = (first.len(), second.len());
    let finite = first.iter().chain(second).all(|value| value.is_finite());
    if n == 0 || m == 0 || !finite {
        return None;
    }
    let steps = largest_distance(first, second);
    Some(TwoSamples { distance: as_f64(steps) / as_f64(n * m), p_value: at_least(steps, n, m) })
}

/// The distance, in parts of 1 / (n m).
fn largest_distance(first: &[f64], second: &[f64]) -> usize {
    let sorted = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted
    };
    let (first, second) = (sorted(first), sorted(second));
    let (n, m) = (first.len(), second.len());
    let (mut i, mut j, mut largest) = (0, 0, 0);
    // Both functions step at a value at once: all that is equal is passed before they are compared.
    while let Some(next) = smaller(first.get(i), second.get(j)) {
        i += first.iter().skip(i).take_while(|value| **value <= next).count();
        j += second.iter().skip(j).take_while(|value| **value <= next).count();
        largest = largest.max((i * m).abs_diff(j * n));
    }
    largest
}

fn smaller(a: Option<&f64>, b: Option<&f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(*b)),
        (one, other) => one.or(other).copied(),
    }
}

/// Probability that a path of `n` steps to the right and `m` upwards, each order as likely, gets as far from the diagonal as
/// `steps`. It comes to (i, j) from the left with probability i / (i + j): so the share of paths that stay nearer
/// is found column by column.
fn at_least(steps: usize, n: usize, m: usize) -> f64 {
    let is_near = |i: usize, j: usize| (i * m).abs_diff(j * n) < steps;
    let mut stays = vec![0.0; m + 1];
    for i in 0..=n {
        let mut below = 0.0;
        for (j, here) in stays.iter_mut().enumerate() {
            let all = as_f64(i + j);
            let share = match i + j {
                0 => 1.0,
                _ => (as_f64(i) * *here + as_f64(j) * below) / all,
            };
            *here = if is_near(i, j) { share } else { 0.0 };
            below = *here;
        }
    }
    (1.0 - stays.last().copied().unwrap_or(0.0)).clamp(0.0, 1.0)
}

#[expect(clippy::cast_precision_loss, reason = "lengths of samples")]
fn as_f64(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// x[i] = frac(i * sqrt(2)) and y[j] = frac(j * sqrt(3)) * stretch + shift, each from 1.
    fn samples(n: usize, m: usize, stretch: f64, shift: f64) -> (Vec<f64>, Vec<f64>) {
        let x = (1..=n).map(|i| (as_f64(i) * 2.0_f64.sqrt()).fract());
        let y = (1..=m).map(|j| (as_f64(j) * 3.0_f64.sqrt()).fract() * stretch + shift);
        (x.collect(), y.collect())
    }

    #[test]
    fn the_exact_test_of_scipy_comes_out() {
        // scipy 1.17.1: ks_2samp(x, y, method="exact"), samples as above.
        let cases = [
            (3, 3, 1.0, 0.0, 0.333_333_333_333_333_3, 1.0),
            (10, 7, 1.0, 0.1, 0.314_285_714_285_714_3, 0.692_307_692_307_692_4),
            (20, 20, 1.0, 0.3, 0.4, 0.081_057_711_613_401_49),
            (64, 32, 1.0, 0.05, 0.109_375, 0.955_596_806_459_191_9),
            (128, 64, 1.2, 0.1, 0.273_437_5, 0.003_041_387_822_805_279_6),
            (256, 128, 1.0, 0.2, 0.222_656_25, 0.000_383_312_017_546_892_83),
            (256, 128, 1.0, 0.02, 0.039_062_5, 0.999_343_266_807_973_7),
            (200, 150, 0.7, 0.4, 0.405, 4.574_673_242_879_141e-13),
        ];
        for (n, m, stretch, shift, distance, p_value) in cases {
            let (x, y) = samples(n, m, stretch, shift);
            let test = two_samples(&x, &y).unwrap();
            assert!((test.distance - distance).abs() < 1e-12, "{n} {m} {shift}: {test:?}");
            let error = (test.p_value - p_value).abs();
            assert!(error < 1e-9 * p_value + 1e-13, "{n} {m} {shift}: {test:?}, not {p_value}");
        }
    }

    #[test]
    fn ties_are_passed_at_once_and_what_is_alike_is_near() {
        let test = two_samples(&[0.0; 50], &[0.0; 30]).unwrap();
        assert!(test.distance.abs() < 1e-12 && (test.p_value - 1.0).abs() < 1e-12);
        // scipy 1.17.1: ks_2samp([0, 0, 1, 1], [0, 1, 1, 2], method="exact")
        let test = two_samples(&[0.0, 0.0, 1.0, 1.0], &[0.0, 1.0, 1.0, 2.0]).unwrap();
        assert!((test.distance - 0.25).abs() < 1e-12 && (test.p_value - 1.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_is_said_of_what_is_no_sample() {
        for (first, second) in
            [(vec![], vec![1.0]), (vec![1.0], vec![]), (vec![f64::NAN], vec![1.0])]
        {
            assert_eq!(two_samples(&first, &second), None);
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_which_sample_is_first_nor_in_which_unit_both_are(
            first in prop::collection::vec(-1e3_f64..1e3, 1..40),
            second in prop::collection::vec(-1e3_f64..1e3, 1..40),
        ) {
            let test = two_samples(&first, &second).unwrap();
            prop_assert!((0.0..=1.0).contains(&test.distance) && (0.0..=1.0).contains(&test.p_value));
            let other = two_samples(&second, &first).unwrap();
            prop_assert!((test.distance - other.distance).abs() < 1e-12);
            prop_assert!((test.p_value - other.p_value).abs() < 1e-9);
            let unit = |values: &[f64]| values.iter().map(|value| 4.0 * value).collect::<Vec<_>>();
            prop_assert_eq!(two_samples(&unit(&first), &unit(&second)), Some(test));
        }
    }
}
