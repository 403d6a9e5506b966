//! Changes of a vibration window that leave its label as it is.
//!
//! A fault doesn't depend on when the window starts, on which way the sensor was screwed in, nor on
//! how the path from bearing to sensor colours the spectrum. A device that has seen one rig only
//! would else read the rig instead of the fault.

use crate::rng::Stream;

/// Which changes are drawn, and how strong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// Start the window anywhere (circular) and turn its sign or not.
    pub shift_and_flip: bool,
    /// Standard deviation of the taps of a random 9-tap filter around the identity; 0 for none.
    pub filter: f32,
    /// White noise as a fraction of the window's RMS, drawn up to this; 0 for none.
    pub noise: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Self { shift_and_flip: true, filter: 0.15, noise: 0.1 }
    }
}

impl Augment {
    /// No change at all.
    pub const NONE: Self = Self { shift_and_flip: false, filter: 0.0, noise: 0.0 };

    /// Changes one window in place.
    #[expect(clippy::cast_possible_truncation, reason = "draws are small; f32 is their precision")]
    pub fn apply(&self, stream: &mut Stream, window: &mut [f32]) {
        if window.is_empty() {
            return;
        }
        if self.shift_and_flip {
            window.rotate_left(stream.below(window.len()));
            if stream.unit() < 0.5 {
                for x in window.iter_mut() {
                    *x = -*x;
                }
            }
        }
        if self.filter > 0.0 {
            let mut taps = [0.0_f32; 9];
            for (at, tap) in taps.iter_mut().enumerate() {
                let identity = if at == 0 { 1.0 } else { 0.0 };
                *tap = identity + self.filter * stream.normal() as f32;
            }
            filter_circular(window, &taps);
        }
        if self.noise > 0.0 {
            let sigma = self.noise * stream.unit() as f32 * rms(window);
            for x in window.iter_mut() {
                *x += sigma * stream.normal() as f32;
            }
        }
    }
}

fn filter_circular(window: &mut [f32], taps: &[f32]) {
    let mut filtered = vec![0.0; window.len()];
    for (delay, tap) in taps.iter().enumerate() {
        // Sample `at` of the result takes sample `at - delay` of the window, around its end.
        let delayed = window.iter().cycle().skip(window.len() - delay % window.len());
        filtered.iter_mut().zip(delayed).for_each(|(sum, x)| *sum += tap * x);
    }
    window.copy_from_slice(&filtered);
}

#[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^24")]
fn rms(window: &[f32]) -> f32 {
    (window.iter().map(|x| x * x).sum::<f32>() / window.len() as f32).sqrt()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these sums are exact")]
mod tests {
    use super::*;

    #[test]
    fn none_changes_nothing() {
        let mut window = [1.0, -2.0, 3.0];
        Augment::NONE.apply(&mut Stream::new(1, "augment"), &mut window);
        assert_eq!(window, [1.0, -2.0, 3.0]);
    }

    #[test]
    fn shift_and_flip_keep_the_samples() {
        let augment = Augment { shift_and_flip: true, ..Augment::NONE };
        let mut window: Vec<f32> = (1..=9_u8).map(f32::from).collect();
        let before = window.clone();
        augment.apply(&mut Stream::new(2, "augment"), &mut window);
        assert_ne!(window, before);
        let mut sizes: Vec<f32> = window.iter().map(|x| x.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        assert_eq!(sizes, before);
    }

    #[test]
    fn the_filter_is_a_circular_convolution() {
        let mut window = [1.0, 2.0, 3.0, 4.0];
        filter_circular(&mut window, &[1.0, 0.5]);
        assert_eq!(window, [1.0 + 2.0, 2.0 + 0.5, 3.0 + 1.0, 4.0 + 1.5]);
        let mut short = [1.0, 10.0];
        filter_circular(&mut short, &[0.0, 0.0, 1.0]);
        assert_eq!(short, [1.0, 10.0], "a delay of the whole length is none");
    }
}
