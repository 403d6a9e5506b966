//! Which examples a device keeps back to measure its model by.
//!
//! Called when a node is put together; what is kept back never reaches the learner.

use super::Windows;

/// Cuts off the last `share` of each run of windows with one label: what is learned from, and what is
/// kept back.
///
/// Windows lie in the order of their recordings, and neighbours resemble each other. So no draw is made:
/// the future of each recording is kept back, and every label is in both parts. Each part of a run is
/// rounded down for the one that is kept back.
///
/// # Examples
/// ```
/// use gaisnet::learn::{Windows, hold_out};
///
/// let windows = Windows { x: vec![1., 2., 3., 4., 5., 6.], len: 1, labels: vec![0, 0, 0, 0, 1, 1], classes: 2 };
/// let (learned, kept) = hold_out(&windows, 0.5);
/// assert_eq!((learned.x, kept.x), (vec![1., 2., 5.], vec![3., 4., 6.]));
/// ```
pub fn hold_out(windows: &Windows, share: f64) -> (Windows, Windows) {
    let none = || Windows { len: windows.len, classes: windows.classes, ..Windows::default() };
    let (mut learned, mut kept) = (none(), none());
    let mut at = 0;
    for run in windows.labels.chunk_by(|a, b| a == b) {
        let back = part(run.len(), share);
        for (i, label) in run.iter().enumerate() {
            let to = if i + back < run.len() { &mut learned } else { &mut kept };
            to.x.extend_from_slice(windows.row(at + i).unwrap_or_default());
            to.labels.push(*label);
        }
        at += run.len();
    }
    (learned, kept)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "at most the length of a run"
)]
fn part(of: usize, share: f64) -> usize {
    (of as f64 * share.clamp(0.0, 1.0)) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_of_each_recording_is_kept_back() {
        let labels: Vec<usize> = [vec![0; 10], vec![2; 5], vec![0; 4]].concat();
        let x = (0_u8..19).map(f32::from).collect();
        let windows = Windows { x, len: 1, labels, classes: 3 };
        let (learned, kept) = hold_out(&windows, 0.2);
        assert_eq!(kept.x, [8.0, 9.0, 14.0], "a run of four is too short for a fifth");
        assert_eq!(kept.labels, [0, 0, 2]);
        assert_eq!((learned.num_examples(), learned.len, learned.classes), (16, 1, 3));
    }

    proptest! {
        #[test]
        fn each_window_is_in_one_part(labels in prop::collection::vec(0..3_usize, 0..60), share in 0.0..1.0) {
            let x: Vec<f32> = (0_u8..).map(f32::from).take(labels.len()).collect();
            let windows = Windows { x: x.clone(), len: 1, labels, classes: 3 };
            let (learned, kept) = hold_out(&windows, share);
            prop_assert_eq!(learned.x.len(), learned.labels.len());
            let mut all = [learned.x, kept.x].concat();
            all.sort_by(f32::total_cmp);
            prop_assert_eq!(all, x);
        }
    }
}
