//! How the learning rate goes on over a run.

/// Half a cosine: 1 at step 0 of `steps`, towards 0 at the last; 1 where no last one is known.
///
/// # Source
/// Loshchilov and Hutter, arXiv:1608.03983, without restarts.
#[expect(clippy::cast_precision_loss, reason = "rounds and versions are small")]
pub fn half_cosine(step: u64, steps: u64) -> f32 {
    if steps == 0 {
        return 1.0;
    }
    let part = (step as f32 / steps as f32).min(1.0);
    0.5 * (1.0 + (std::f32::consts::PI * part).cos())
}

#[cfg(test)]
mod tests {
    use super::half_cosine;

    #[test]
    fn it_goes_from_one_by_a_half_to_zero() {
        let at = |step| half_cosine(step, 10);
        assert!((at(0) - 1.0).abs() < 1e-6 && (at(5) - 0.5).abs() < 1e-6);
        assert!(at(10).abs() < 1e-6 && at(99).abs() < 1e-6);
        assert!((half_cosine(7, 0) - 1.0).abs() < 1e-6);
    }
}
