//! Bounds on a rate of which some draws were seen.
//!
//! Called by the calibration of answers; gates of a rollout ask the same questions.

use statrs::function::beta::inv_beta_reg;

use super::count_weight;

/// Upper bound of a rate of which `hits` out of `draws` were seen, wrong with a probability of at most
/// `delta`; one-sided, exact for independent draws, wider beyond 2^20 of them. 1 without draws.
///
/// # Examples
/// ```
/// // The rule of three: nothing in 300 draws speaks for less than 3 / 300.
/// let bound = gaisnet::learn::upper_bound(0, 300, 0.05);
/// assert!((bound - 0.00994).abs() < 1e-5);
/// ```
/// # Source
/// Clopper and Pearson 1934, Biometrika 26(4).
pub fn upper_bound(hits: u64, draws: u64, delta: f64) -> f64 {
    let (hits, draws) = fewer(hits, draws);
    if hits >= draws {
        return 1.0;
    }
    let delta = delta.clamp(f64::MIN_POSITIVE, 1.0);
    inv_beta_reg(count_weight(hits) + 1.0, count_weight(draws - hits), 1.0 - delta)
}

/// The same rate in as many draws as the quantile's search is sure to end with: from 2^24 on it may not. Fewer draws
/// and a hit rounded up make a bound wider, never narrower.
fn fewer(hits: u64, draws: u64) -> (u64, u64) {
    const MOST: u64 = 1 << 20;
    if draws <= MOST {
        return (hits, draws);
    }
    let part = (u128::from(hits) * u128::from(MOST)).div_ceil(u128::from(draws));
    (u64::try_from(part).unwrap_or(MOST), MOST)
}

/// Lower bound of such a rate, wrong with a probability of at most `delta`; 0 without draws.
///
/// # Source
/// Clopper and Pearson 1934: the upper bound of the draws that missed, from above.
pub fn lower_bound(hits: u64, draws: u64, delta: f64) -> f64 {
    1.0 - upper_bound(draws.saturating_sub(hits), draws, delta)
}

/// Interval of a rate of which `hits` out of `draws` were seen, to look at: it holds the rate about 95 times in a hundred. Nothing
/// is decided by it; [`upper_bound`] promises. `None` without draws.
///
/// # Examples
/// ```
/// let (low, high) = gaisnet::learn::wilson_interval(81, 263).unwrap();
/// assert!((low - 0.2553).abs() < 6e-5 && (high - 0.3662).abs() < 6e-5);
/// ```
/// # Source
/// Wilson 1927, Journal of the American Statistical Association 22; method 3 of Newcombe 1998.
pub fn wilson_interval(hits: u64, draws: u64) -> Option<(f64, f64)> {
    const Z: f64 = 1.959_963_984_540_054; // the normal distribution's quantile of 0.975
    if draws == 0 {
        return None;
    }
    let draws = count_weight(draws);
    let rate = (count_weight(hits) / draws).min(1.0);
    let (square, all) = (Z * Z, draws + Z * Z);
    let middle = (rate * draws + square / 2.0) / all;
    let half = Z * (rate * (1.0 - rate) * draws + square / 4.0).sqrt() / all;
    Some(((middle - half).max(0.0), (middle + half).min(1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Probability of at most `hits` in `draws`, added up term by term.
    fn at_most(hits: u64, draws: u64, rate: f64) -> f64 {
        let mut term = (1.0 - rate).ln() * count_weight(draws);
        let mut sum = term.exp();
        for k in 1..=hits {
            term += (count_weight(draws - k + 1) / count_weight(k)).ln();
            term += rate.ln() - (1.0 - rate).ln();
            sum += term.exp();
        }
        sum
    }

    #[test]
    fn published_intervals_come_out() {
        // Two-sided 95 % intervals: Newcombe 1998, Statistics in Medicine 17, table I, method 5.
        let cases = [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (1, 29, 0.0009, 0.1776)];
        for (hits, draws, low, high) in cases {
            assert!((lower_bound(hits, draws, 0.025) - low).abs() < 6e-5, "{hits} of {draws}");
            assert!((upper_bound(hits, draws, 0.025) - high).abs() < 6e-5, "{hits} of {draws}");
        }
    }

    #[test]
    fn published_intervals_of_wilson_come_out() {
        // Newcombe 1998, table I, method 3; the last as scipy 1.17 says (binomtest(4, 4).proportion_ci(method="wilson")).
        let cases = [
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (4, 4, 0.5101, 1.0),
        ];
        for (hits, draws, low, high) in cases {
            let (below, above) = wilson_interval(hits, draws).unwrap();
            assert!(
                (below - low).abs() < 6e-5 && (above - high).abs() < 6e-5,
                "{hits} of {draws}: {below} {above}"
            );
        }
        assert_eq!(wilson_interval(0, 0), None);
    }

    #[test]
    fn nothing_seen_says_nothing() {
        assert!((upper_bound(0, 0, 0.05) - 1.0).abs() < f64::EPSILON);
        assert!((upper_bound(7, 7, 0.05) - 1.0).abs() < f64::EPSILON);
        assert!((upper_bound(9, 7, 0.05) - 1.0).abs() < f64::EPSILON);
        assert!(lower_bound(0, 0, 0.05).abs() < f64::EPSILON);
        assert!(lower_bound(0, 7, 0.05).abs() < f64::EPSILON);
    }

    #[test]
    fn bounds_of_counts_beyond_any_plant_end_and_hold_the_rate() {
        for draws in [1 << 21, 1 << 24, 1 << 30, (1 << 40) + 7, u64::MAX] {
            for hits in [0, 1, 3, draws / 1_000, draws / 2, draws - 3, draws - 1] {
                let rate = count_weight(hits) / count_weight(draws);
                let (low, high) = (lower_bound(hits, draws, 1e-9), upper_bound(hits, draws, 1e-9));
                assert!(low <= rate && rate <= high && high - low < 0.01, "{hits} of {draws}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_bound_is_where_so_few_hits_become_as_rare_as_delta(
            (draws, hits) in (1_u64..2_000).prop_flat_map(|n| (Just(n), 0..n)),
            delta in 0.001_f64..0.5,
        ) {
            let bound = upper_bound(hits, draws, delta);
            prop_assert!((at_most(hits, draws, bound) - delta).abs() < 1e-6);
        }
    }
}
