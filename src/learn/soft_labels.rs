//! Makes a device's soft-label summary from the logits of its own examples.

use super::{ClassLogits, LearnError};

/// Averages logits a class: row c of the result is the mean over the examples with label c.
///
/// Nothing is suppressed or clipped here; whoever sends the summary does that.
///
/// # Shapes
/// `logits` is `[n, classes]` row-major, `labels` is `[n]`.
/// # Determinism
/// Sums in f64 in the order of the examples.
/// # Errors
/// [`LearnError::OutOfRange`] when the sizes don't fit or a label isn't below `classes`.
/// # Source
/// Jeong et al. 2018, arXiv:1811.11479.
/// # Examples
/// ```
/// let logits = [1.0, -1.0, 3.0, -3.0];
/// let summary = gaisnet::learn::mean_class_logits(&logits, &[0, 0], 2)?;
/// assert_eq!(summary.mean_logits, [2.0, -2.0, 0.0, 0.0]);
/// assert_eq!(summary.counts, [2, 0]);
/// # Ok::<(), gaisnet::learn::LearnError>(())
/// ```
pub fn mean_class_logits(
    logits: &[f64],
    labels: &[usize],
    classes: usize,
) -> Result<ClassLogits, LearnError> {
    if labels.len().checked_mul(classes) != Some(logits.len()) || classes == 0 {
        return Err(LearnError::OutOfRange {
            what: "number of logits",
            expected: format!("{} x {classes}", labels.len()),
            actual: logits.len().to_string(),
        });
    }
    let mut sums = vec![0.0; classes * classes];
    let mut counts = vec![0_u64; classes];
    for (row, label) in logits.chunks_exact(classes).zip(labels) {
        let (Some(count), Some(sum)) =
            (counts.get_mut(*label), sums.chunks_exact_mut(classes).nth(*label))
        else {
            return Err(LearnError::OutOfRange {
                what: "label",
                expected: format!("below {classes}"),
                actual: label.to_string(),
            });
        };
        *count += 1;
        for (sum, logit) in sum.iter_mut().zip(row) {
            *sum += logit;
        }
    }
    let mut mean_logits = Vec::with_capacity(sums.len());
    for (row, count) in sums.chunks_exact(classes).zip(&counts) {
        mean_logits.extend(row.iter().map(|sum| mean(*sum, *count)));
    }
    Ok(ClassLogits { mean_logits, counts })
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "counts are far below 2^52; a summary is sent as f32"
)]
fn mean(sum: f64, count: u64) -> f32 {
    (sum / count.max(1) as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_own_mean() {
        let logits = [1.0, 2.0, 5.0, 6.0, 3.0, 4.0];
        let summary = mean_class_logits(&logits, &[1, 0, 1], 2).unwrap();
        assert_eq!(summary.mean_logits, [5.0, 6.0, 2.0, 3.0]);
        assert_eq!(summary.counts, [1, 2]);
    }

    #[test]
    fn sizes_and_labels_are_checked() {
        assert!(mean_class_logits(&[0.0; 3], &[0, 1], 2).is_err());
        assert!(mean_class_logits(&[0.0; 2], &[2], 2).is_err());
        assert!(mean_class_logits(&[], &[], 0).is_err());
    }
}
