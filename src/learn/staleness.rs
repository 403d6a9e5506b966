//! How much a late update counts, and how many updates a buffer waits for (`FedBuff`).
//!
//! Staleness tau is the number of versions that were published since the update's base.
//! Source: Nguyen et al. 2021, arXiv:2106.06639.

use super::count_weight;

/// Updates that are more versions behind than this are dropped.
pub const MAX_STALENESS: u64 = 10;

/// Weight factor of an update that is `staleness` versions behind: `1 / sqrt(1 + tau)`.
///
/// # Examples
/// ```
/// assert_eq!(gaisnet::learn::staleness_factor(0), 1.0);
/// assert_eq!(gaisnet::learn::staleness_factor(3), 0.5);
/// ```
pub fn staleness_factor(staleness: u64) -> f64 {
    1.0 / (1.0 + count_weight(staleness)).sqrt()
}

/// Says if an update is so late that it is dropped (tau > [`MAX_STALENESS`]).
pub fn is_too_stale(staleness: u64) -> bool {
    staleness > MAX_STALENESS
}

/// Number of updates that are gathered before the model moves: a quarter of the members, rounded
/// up, at least 2 and at most 10.
///
/// # Examples
/// ```
/// use gaisnet::learn::buffer_size;
/// assert_eq!([buffer_size(4), buffer_size(9), buffer_size(1000)], [2, 3, 10]);
/// ```
pub fn buffer_size(members: usize) -> usize {
    members.div_ceil(4).clamp(2, 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_falls_with_staleness_and_stays_positive() {
        let factors: Vec<f64> = (0..=MAX_STALENESS).map(staleness_factor).collect();
        assert!(factors.windows(2).all(|pair| pair[1] < pair[0]));
        assert!(staleness_factor(u64::MAX) > 0.0);
    }

    #[test]
    fn ten_versions_behind_is_kept_and_eleven_is_not() {
        assert!(!is_too_stale(10) && is_too_stale(11));
    }

    #[test]
    fn the_buffer_has_both_bounds() {
        assert_eq!([0, 1, 8, 9, 40, 41].map(buffer_size), [2, 2, 2, 3, 10, 10]);
    }
}
