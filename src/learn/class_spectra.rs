//! Knowledge as spectra: how the windows of each class sound on average, and reference inputs that sound so too.
//!
//! Generated inputs have the right impacts and the wrong machine around them. What a plant can say about its machine
//! without saying anything of one window is the mean power spectrum of each class; whoever has reference inputs
//! filters those of a class so that their own mean spectrum becomes that one:
//! ```text
//!   L_c[b] = log10 of the mean over windows of class c of (power in band b / mean power of all bands)
//!   gain(f) = 10^(s (L_c[f] - L_ref,c[f]) / 2), within 0.03 and 1 / 0.03, between the middles of bands on a straight line
//! ```
//! Windows have mean 0 and variance 1 before and after, so that no gain of a sensor matters. Bands are of equal
//! width from 0 to half the sampling rate, which members must share.
//!
//! The rows are [`Prototypes`]: counted, suppressed and merged as those are, which on logarithms is a geometric mean.
//! s goes from 0 to 1 in grades, a turn of the classes each: where all inputs of a class sound the same, a model learns the
//! sound and forgets the impacts. Unless every class has a spectrum nothing is filtered: whether an input was would tell
//! its class.
//!
//! Called by `actors/workbench.rs` (own windows) and `protocol/knowledge.rs` (reference inputs).

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use super::spectrum::{engine, to_f64};
use super::{LearnError, Prototypes, Windows, narrow, normalise_window};

/// Largest absolute logarithm of a band's power that is believed; what is measured stays a decade within it, since coding
/// rounds.
pub const SPECTRUM_BOUND: f32 = 6.0;

/// Most grades: each has gains of its own, which are kept while inputs are filtered.
pub const MAX_GRADES: u16 = 100;

/// The mean spectrum of each class over so many bands.
///
/// # Shapes
/// `[n, len]` windows; `[C, bands]` base-10 logarithms come out, 0 where all bands are alike.
/// # Determinism
/// Sums in f64 in the order of the windows.
/// # Errors
/// [`LearnError::OutOfRange`] unless each band has a bin of its own, without windows, or for one that is constant;
/// [`LearnError::NotFinite`].
pub fn class_spectra(windows: &Windows, bands: usize) -> Result<Prototypes, LearnError> {
    let mut fourier = Fourier::new(windows.len, bands)?;
    let mut powers = Vec::with_capacity(windows.labels.len().saturating_mul(bands));
    for window in windows.x.chunks_exact(windows.len) {
        powers.extend(fourier.powers(window)?);
    }
    let mut spectra = Prototypes::of(&powers, &windows.labels, windows.classes)?;
    for power in &mut spectra.means {
        *power = power.max(LEAST_POWER).log10();
    }
    Ok(spectra)
}

/// The windows, those of each class filtered towards its spectrum: one turn of the classes stays as it is, the next ones are
/// filtered more and more, the last of so many grades wholly. With one grade all are. Nothing where a class has no spectrum.
///
/// # Errors
/// Those of [`class_spectra`].
pub fn recolour(
    windows: &Windows,
    spectra: &Prototypes,
    grades: usize,
) -> Result<Option<Windows>, LearnError> {
    let bands = spectra.width();
    let known: Option<Vec<&[f32]>> = (0..windows.classes).map(|class| spectra.row(class)).collect();
    let Some(known) = known else { return Ok(None) };
    let own = class_spectra(windows, bands)?;
    let mut fourier = Fourier::new(windows.len, bands)?;
    let steps = grades.max(2) - 1;
    // By grade, the first one above none, and class.
    let gains: Vec<Vec<Vec<f64>>> = (1..=steps)
        .map(|grade| {
            let share = to_f64(grade) / to_f64(steps);
            let of = |(class, wanted): (usize, &&[f32])| {
                fourier.gains(wanted, own.row(class).unwrap_or(wanted), share)
            };
            known.iter().enumerate().map(of).collect()
        })
        .collect();
    let mut coloured = windows.clone();
    let turns = coloured.x.chunks_exact_mut(windows.len).zip(&windows.labels).enumerate();
    for (at, (window, label)) in turns {
        let grade = if grades > 1 { at / windows.classes.max(1) % grades } else { steps };
        let of_grade = grade.checked_sub(1).and_then(|above_none| gains.get(above_none));
        let Some(gains) = of_grade.and_then(|of| of.get(*label)) else { continue };
        window.copy_from_slice(&normalise_window(&fourier.filtered(window, gains)?)?);
    }
    Ok(Some(coloured))
}

/// Transforms windows of one length.
struct Fourier {
    len: usize,
    bands: usize,
    planner: RealFftPlanner<f64>,
}

impl Fourier {
    fn new(len: usize, bands: usize) -> Result<Self, LearnError> {
        if bands == 0 || bands > len / 2 {
            return Err(LearnError::OutOfRange {
                what: "bands of a spectrum",
                expected: format!("1 to {} for windows of {len} samples", len / 2),
                actual: bands.to_string(),
            });
        }
        Ok(Self { len, bands, planner: RealFftPlanner::new() })
    }

    /// Power of each band against the mean of all, `[bands]`.
    fn powers(&mut self, window: &[f32]) -> Result<Vec<f32>, LearnError> {
        let spectrum = self.transform(window)?;
        let mut sums = vec![(0.0_f64, 0.0_f64); self.bands];
        for (bin, z) in spectrum.iter().enumerate().skip(1) {
            if let Some((sum, n)) = sums.get_mut(self.band(bin)) {
                *sum += z.norm_sqr();
                *n += 1.0;
            }
        }
        let means: Vec<f64> = sums.iter().map(|(sum, n)| sum / n.max(1.0)).collect();
        let all = means.iter().sum::<f64>() / to_f64(self.bands);
        Ok(means.iter().map(|mean| narrow(mean / all)).collect())
    }

    /// Gain at each bin, `[len / 2 + 1]`: from one spectrum so much of the way to the other.
    fn gains(&self, wanted: &[f32], own: &[f32], share: f64) -> Vec<f64> {
        let log = |(wanted, own): (&f32, &f32)| share * f64::from(wanted - own) / 2.0;
        let logs: Vec<f64> = wanted.iter().zip(own).map(log).collect();
        let last = to_f64(self.bands - 1);
        let gain = |bin: usize| {
            // Where the bin lies among the middles of bands, the first of which begins with bin 1.
            let place = (to_f64(bin) - 0.5) * to_f64(self.bands) / to_f64(self.len / 2) - 0.5;
            let place = place.clamp(0.0, last);
            let (low, part) = (place.floor(), place.fract());
            let at = |band: f64| logs.get(to_index(band)).copied().unwrap_or_default();
            let log = at(low) + (at((low + 1.0).min(last)) - at(low)) * part;
            10_f64.powf(log).clamp(LEAST_GAIN, 1.0 / LEAST_GAIN)
        };
        (0..=self.len / 2).map(gain).collect()
    }

    fn filtered(&mut self, window: &[f32], gains: &[f64]) -> Result<Vec<f32>, LearnError> {
        let mut spectrum = self.transform(window)?;
        for (z, gain) in spectrum.iter_mut().zip(gains) {
            *z *= *gain;
        }
        let inverse = self.planner.plan_fft_inverse(self.len);
        let mut x = inverse.make_output_vec();
        inverse.process(&mut spectrum, &mut x).map_err(engine)?;
        Ok(x.into_iter().map(narrow).collect())
    }

    fn transform(&mut self, window: &[f32]) -> Result<Vec<Complex<f64>>, LearnError> {
        let mut x: Vec<f64> = normalise_window(window)?.into_iter().map(f64::from).collect();
        let forward = self.planner.plan_fft_forward(self.len);
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut x, &mut spectrum).map_err(engine)?;
        Ok(spectrum)
    }

    /// Band of a bin above 0.
    fn band(&self, bin: usize) -> usize {
        ((bin - 1) * self.bands / (self.len / 2)).min(self.bands - 1)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place among bands, which is no more than their number"
)]
fn to_index(place: f64) -> usize {
    place as usize
}

/// A band has at least so much power against the mean of all; at most it has that of all, which are 1,024.
const LEAST_POWER: f32 = 1e-5;

/// A filter leaves at least this of any frequency, and makes at most 1 / it of it.
const LEAST_GAIN: f64 = 0.03;

#[cfg(test)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "made-up signals")]
mod tests {
    use std::f32::consts::TAU;

    use proptest::prelude::*;

    use super::*;
    use crate::rng::Stream;

    const LEN: usize = 256;
    const BANDS: usize = 16;

    /// `n` windows of noise, two classes in turn; class 1 is `rough`: the difference of neighbours.
    fn noise(seed: u64, n: usize, rough: bool) -> Windows {
        let mut stream = Stream::new(seed, "noise");
        let mut windows = Windows { len: LEN, classes: 2, ..Windows::default() };
        for at in 0..n {
            let x: Vec<f32> = (0..=LEN).map(|_| stream.normal() as f32).collect();
            let difference =
                |pair: &[f32]| if rough && at % 2 == 1 { pair[1] - pair[0] } else { pair[0] };
            windows.x.extend(x.windows(2).map(difference));
            windows.labels.push(at % 2);
        }
        windows
    }

    fn far(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_tone_is_all_of_its_band() {
        let x = (0..8).map(|t| 3.0 + 0.1 * (TAU * t as f32 / 8.0).cos()).collect();
        let tone = Windows { x, len: 8, labels: vec![1], classes: 2 };
        let spectra = class_spectra(&tone, 4).unwrap();
        assert_eq!(spectra.counts, [0, 1]);
        assert_eq!(spectra.row(0), None);
        // Four times the mean of four bands, and nothing in the others.
        assert!(far(spectra.row(1).unwrap(), &[4.0_f32.log10(), -5.0, -5.0, -5.0]) < 1e-5);
    }

    #[test]
    fn the_difference_of_white_noise_rises_as_theory_says() {
        let spectra = class_spectra(&noise(1, 2_000, true), BANDS).unwrap();
        // |1 - e^-iw|^2 = 2 - 2 cos w against its mean 2, the mean over a band's bins.
        let bins = LEN / 2 / BANDS;
        let power = |bin: usize| 1.0 - (TAU * bin as f32 / LEN as f32).cos();
        let mean =
            |band: usize| (1..=bins).map(|bin| power(band * bins + bin)).sum::<f32>() / bins as f32;
        let theory: Vec<f32> = (0..BANDS).map(|band| mean(band).log10()).collect();
        // Loud bands leak into the quiet ones at the bottom: windows have edges.
        assert!(far(&spectra.row(1).unwrap()[3..], &theory[3..]) < 0.02, "{spectra:?} {theory:?}");
        assert!(far(spectra.row(0).unwrap(), &[0.0; BANDS]) < 0.05, "white is flat");
    }

    #[test]
    fn filtered_inputs_sound_as_is_said_and_with_grades_more_and_more() {
        let (wanted, plain) =
            (class_spectra(&noise(2, 600, true), BANDS).unwrap(), noise(3, 600, false));
        let all = recolour(&plain, &wanted, 1).unwrap().unwrap();
        let sounds = class_spectra(&all, BANDS).unwrap();
        // Within the lowest band of class 1 the spectrum is steeper than straight lines between bands.
        let low = BANDS;
        assert!(far(&sounds.means[..low], &wanted.means[..low]) < 0.02);
        assert!(far(&sounds.means[low + 1..], &wanted.means[low + 1..]) < 0.04);
        assert!(far(&sounds.means[low..=low], &wanted.means[low..=low]) < 0.2);
        // Three grades: as it was, half of the way, wholly.
        let graded = recolour(&plain, &wanted, 3).unwrap().unwrap();
        let same = |a: &Windows, at: usize| graded.row(at) == a.row(at);
        let turns = (0..600).map(|at| (at / 2 % 3, same(&plain, at), same(&all, at)));
        for (grade, plain, all) in turns {
            assert_eq!((plain, all), (grade == 0, grade == 2), "grade {grade}");
        }
        let halves = (0..600).filter(|at| at / 2 % 3 == 1);
        let mut half = Windows { len: LEN, classes: 2, ..Windows::default() };
        for at in halves {
            half.x.extend_from_slice(graded.row(at).unwrap());
            half.labels.push(at % 2);
        }
        let half = class_spectra(&half, BANDS).unwrap();
        let high = |spectra: &Prototypes| spectra.row(1).unwrap()[BANDS - 1];
        assert!((0.1..0.2).contains(&high(&half)) && high(&wanted) > 0.25, "{half:?}");
        assert_eq!((graded.labels, graded.len), (plain.labels, LEN));
    }

    #[test]
    fn unless_each_class_has_a_spectrum_nothing_is_filtered() {
        let plain = noise(4, 40, false);
        let mut wanted = class_spectra(&noise(5, 78, true), BANDS).unwrap();
        wanted.suppress(39);
        assert_ne!(recolour(&plain, &wanted, 1).unwrap().unwrap(), plain);
        wanted.counts[1] = 38;
        wanted.suppress(39);
        assert_eq!(recolour(&plain, &wanted, 1).unwrap(), None);
    }

    #[test]
    fn however_loud_a_spectrum_is_gains_have_a_bound() {
        let fourier = Fourier::new(LEN, 4).unwrap();
        let loud = [SPECTRUM_BOUND, -SPECTRUM_BOUND, SPECTRUM_BOUND, -SPECTRUM_BOUND];
        let quiet = loud.map(|log| -log);
        let gains = fourier.gains(&loud, &quiet, 1.0);
        assert_eq!(gains.len(), LEN / 2 + 1);
        let (least, most) = (LEAST_GAIN, 1.0 / LEAST_GAIN);
        assert!(gains.iter().all(|gain| (least..=most).contains(gain)));
        assert!(gains[1] >= most && gains[LEN / 2] <= least, "{gains:?}");
    }

    #[test]
    fn with_as_many_bands_as_bins_each_bin_has_its_own_gain() {
        let fourier = Fourier::new(16, 8).unwrap();
        let wanted: Vec<f32> = (0..8_u8).map(|band| f32::from(band % 2)).collect();
        let gains = fourier.gains(&wanted, &[0.0; 8], 1.0);
        for (bin, gain) in gains.iter().enumerate().skip(1) {
            let own = if bin % 2 == 1 { 1.0 } else { 10_f64.sqrt() };
            assert!((gain - own).abs() < 1e-9, "bin {bin}: {gain}");
        }
    }

    #[test]
    fn windows_and_bands_that_do_not_fit_are_refused() {
        let kind = |windows: &Windows, bands| class_spectra(windows, bands).unwrap_err().kind();
        let sound = noise(7, 4, false);
        assert!(class_spectra(&sound, LEN / 2).is_ok());
        assert_eq!(kind(&sound, 0), "out_of_range");
        assert_eq!(kind(&sound, LEN / 2 + 1), "out_of_range");
        assert_eq!(kind(&Windows { labels: vec![0, 1, 0, 2], ..sound.clone() }, 4), "out_of_range");
        assert_eq!(
            kind(&Windows { x: Vec::new(), labels: Vec::new(), ..sound.clone() }, 4),
            "out_of_range"
        );
        assert_eq!(kind(&Windows { x: vec![0.5; 4 * LEN], ..sound.clone() }, 4), "out_of_range");
        let mut broken = sound;
        broken.x[9] = f32::NAN;
        assert_eq!(kind(&broken, 4), "not_finite");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn gain_and_offset_of_a_sensor_make_no_difference(
            seed: u64, gain in 1e-2_f32..1e2, offset in -5.0_f32..5.0,
        ) {
            let plain = noise(seed, 12, true);
            let mut moved = plain.clone();
            moved.x.iter_mut().for_each(|x| *x = *x * gain + offset * gain);
            let (a, b) = (class_spectra(&plain, BANDS).unwrap(), class_spectra(&moved, BANDS).unwrap());
            prop_assert!(far(&a.means, &b.means) < 1e-3);
        }
    }
}
