//! Spectral features of a vibration window that don't depend on the sensor's gain.
//!
//! Two views of one window. *Where* the energy lies: the power spectrum in logarithmic bands, as
//! shares of the whole. *How it beats*: a damaged race rings the structure each time a ball passes
//! it, so the envelope of a resonance band carries a line at that passing rate (and its harmonics),
//! while the carrier says little. Kurtosis and crest factor tell how impulsive the window is.
//!
//! Each feature is `(log10(ratio) - offset) / scale`, clipped to [-3, 3], with constants that are
//! written down here: bounded, of order one, and the same on every node without any exchange.
//!
//! Source: Randall & Antoni 2011, "Rolling element bearing diagnostics: a tutorial" (envelope
//! analysis); the bands and constants are ours.

use std::f64::consts::TAU;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use super::{LearnError, normalise_window};

/// What the spectrum must know of the sensor and the machine. All in Hz.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MachineSpeeds {
    /// Samples a second.
    pub rate_hz: f64,
    /// Turns of the shaft a second.
    pub shaft_hz: f64,
    /// Balls passing a point of the outer race a second (BPFO).
    pub outer_hz: f64,
    /// Balls passing a point of the inner race a second (BPFI).
    pub inner_hz: f64,
}

impl Default for MachineSpeeds {
    /// The rig of the `bearings` data set at 25 turns a second.
    fn default() -> Self {
        Self { rate_hz: 48_828.0, shaft_hz: 25.0, outer_hz: 81.125, inner_hz: 118.875 }
    }
}

/// Turns windows of one length into features; the tables and plans are made once.
pub struct Spectrum {
    len: usize,
    forward: Arc<dyn RealToComplex<f64>>,
    inverse: Arc<dyn ComplexToReal<f64>>,
    /// `[len]`, Hann.
    taper: Vec<f64>,
    /// Spectral bins of each power band.
    bands: Vec<Range<usize>>,
    /// Spectral bins of each resonance band.
    resonances: Vec<Range<usize>>,
    /// One tapered complex exponential of `len` samples for each envelope line.
    lines: Vec<Vec<Complex<f64>>>,
}

impl Spectrum {
    /// Plans for windows of `len` samples.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the window is too short for its lowest band or a frequency
    /// isn't below half the sampling rate.
    pub fn new(speeds: MachineSpeeds, len: usize) -> Result<Self, LearnError> {
        let MachineSpeeds { rate_hz, shaft_hz, outer_hz, inner_hz } = speeds;
        let nyquist_hz = rate_hz / 2.0;
        let top_line_hz = 3.0 * outer_hz.max(inner_hz).max(shaft_hz);
        let positive = [rate_hz, shaft_hz, outer_hz, inner_hz].iter().all(|f| *f > 0.0);
        if !(positive && top_line_hz < nyquist_hz && nyquist_hz > RESONANCES_HZ[2].0) {
            return Err(LearnError::OutOfRange {
                what: "machine speeds",
                expected: "above 0, harmonics and resonance bands below half the rate".into(),
                actual: format!("{speeds:?}"),
            });
        }
        if !(MIN_LEN..=MAX_LEN).contains(&len) {
            return Err(LearnError::OutOfRange {
                what: "window length",
                expected: format!("{MIN_LEN} to {MAX_LEN} samples"),
                actual: len.to_string(),
            });
        }
        let mut planner = RealFftPlanner::new();
        let bin_hz = rate_hz / to_f64(len);
        let bins = |low: f64, high: f64| {
            let start = to_bin(low / bin_hz).max(1);
            start..to_bin(high.min(nyquist_hz) / bin_hz).max(start + 1).min(len / 2)
        };
        let ratio = nyquist_hz / LOWEST_BAND_HZ;
        let edge = |i: usize| LOWEST_BAND_HZ * ratio.powf(to_f64(i) / to_f64(NUM_BANDS));
        let taper: Vec<f64> =
            (0..len).map(|t| 0.5 - 0.5 * (TAU * (to_f64(t) + 0.5) / to_f64(len)).cos()).collect();
        let weight = 2.0 / taper.iter().sum::<f64>();
        let exponential = |hz: f64| {
            let at = |(t, taper): (usize, &f64)| {
                Complex::from_polar(taper * weight, -TAU * hz * to_f64(t) / rate_hz)
            };
            taper.iter().enumerate().map(at).collect()
        };
        let harmonics = [(outer_hz, 3_u8), (inner_hz, 3), (shaft_hz, 2)];
        let line_hz = harmonics.iter().flat_map(|(hz, n)| (1..=*n).map(move |h| f64::from(h) * hz));
        Ok(Self {
            len,
            forward: planner.plan_fft_forward(len),
            inverse: planner.plan_fft_inverse(len),
            bands: (0..NUM_BANDS).map(|i| bins(edge(i), edge(i + 1))).collect(),
            resonances: RESONANCES_HZ.iter().map(|(low, high)| bins(*low, *high)).collect(),
            lines: line_hz.map(exponential).collect(),
            taper,
        })
    }

    /// Samples a window.
    pub fn window_len(&self) -> usize {
        self.len
    }

    /// Number of features F.
    pub fn num_features(&self) -> usize {
        self.bands.len() + self.resonances.len() * (1 + self.lines.len()) + 2
    }

    /// The features of one window, `[F]`, each in [-3, 3].
    ///
    /// The window may have any offset and gain.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the length is another or the window is constant;
    /// [`LearnError::NotFinite`].
    pub fn features(&self, window: &[f32]) -> Result<Vec<f32>, LearnError> {
        if window.len() != self.len {
            return Err(LearnError::OutOfRange {
                what: "window length",
                expected: self.len.to_string(),
                actual: window.len().to_string(),
            });
        }
        let x: Vec<f64> = normalise_window(window)?.into_iter().map(f64::from).collect();
        let mut features = Vec::with_capacity(self.num_features());
        self.push_bands(&x, &mut features)?;
        self.push_envelopes(&x, &mut features)?;
        push_impulsiveness(&x, &mut features);
        Ok(features)
    }

    /// Density of each power band as a ratio to the whole window's.
    fn push_bands(&self, x: &[f64], features: &mut Vec<f32>) -> Result<(), LearnError> {
        let tapered = x.iter().zip(&self.taper).map(|(x, w)| x * w).collect();
        let spectrum = self.transform(tapered)?;
        let power: Vec<f64> = spectrum.iter().map(Complex::norm_sqr).collect();
        let whole = mean(power.get(1..).unwrap_or_default());
        for band in &self.bands {
            let density = mean(power.get(band.clone()).unwrap_or_default());
            features.push(scaled(density / whole + 1e-4, 0.0, 0.4));
        }
        Ok(())
    }

    /// Depth of each resonance band's envelope, and how much of it beats at each line.
    fn push_envelopes(&self, x: &[f64], features: &mut Vec<f32>) -> Result<(), LearnError> {
        let spectrum = self.transform(x.to_vec())?;
        for band in &self.resonances {
            let envelope = self.envelope(&spectrum, band)?;
            let level = mean(&envelope).max(f64::MIN_POSITIVE);
            let beat: Vec<f64> = envelope.iter().map(|e| e / level - 1.0).collect();
            let depth = rms(&beat).max(1e-6);
            features.push(scaled(depth, -0.3, 0.2));
            for line in &self.lines {
                let sum: Complex<f64> = line.iter().zip(&beat).map(|(e, b)| e * b).sum();
                features.push(scaled(sum.norm() / depth + 1e-2, -0.6, 0.4));
            }
        }
        Ok(())
    }

    /// Magnitude of the analytic signal of one band, `[len]`, up to a constant factor.
    fn envelope(
        &self,
        spectrum: &[Complex<f64>],
        band: &Range<usize>,
    ) -> Result<Vec<f64>, LearnError> {
        let only = |turn: Complex<f64>| -> Vec<Complex<f64>> {
            let keep = |(bin, z): (usize, &Complex<f64>)| {
                if band.contains(&bin) { z * turn } else { Complex::ZERO }
            };
            spectrum.iter().enumerate().map(keep).collect()
        };
        let in_phase = self.back(only(Complex::ONE))?;
        let quadrature = self.back(only(-Complex::I))?;
        Ok(in_phase.iter().zip(&quadrature).map(|(a, b)| a.hypot(*b)).collect())
    }

    fn transform(&self, mut x: Vec<f64>) -> Result<Vec<Complex<f64>>, LearnError> {
        let mut spectrum = self.forward.make_output_vec();
        self.forward.process(&mut x, &mut spectrum).map_err(engine)?;
        Ok(spectrum)
    }

    fn back(&self, mut spectrum: Vec<Complex<f64>>) -> Result<Vec<f64>, LearnError> {
        let mut x = self.inverse.make_output_vec();
        self.inverse.process(&mut spectrum, &mut x).map_err(engine)?;
        Ok(x)
    }
}

impl fmt::Debug for Spectrum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spectrum").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Kurtosis against a Gaussian's 3, crest factor against 4; `x` has variance 1.
fn push_impulsiveness(x: &[f64], features: &mut Vec<f32>) {
    let fourth: Vec<f64> = x.iter().map(|x| x.powi(4)).collect();
    let peak = x.iter().fold(0.0_f64, |peak, x| peak.max(x.abs()));
    features.push(scaled(mean(&fourth) / 3.0, 0.0, 0.4));
    features.push(scaled(peak / 4.0, 0.0, 0.2));
}

/// The bounded transform that all features share.
#[expect(clippy::cast_possible_truncation, reason = "a value in [-3, 3] rounds to f32")]
fn scaled(ratio: f64, offset: f64, scale: f64) -> f32 {
    ((ratio.log10() - offset) / scale).clamp(-3.0, 3.0) as f32
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / to_f64(x.len())
}

fn rms(x: &[f64]) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / to_f64(x.len())).sqrt()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(super) fn engine(error: realfft::FftError) -> LearnError {
    LearnError::Engine { engine: "realfft", message: error.to_string() }
}

#[expect(clippy::cast_precision_loss, reason = "window lengths are at most MAX_LEN")]
pub(super) fn to_f64(n: usize) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a ratio of positive frequencies, at most half of MAX_LEN"
)]
fn to_bin(bins: f64) -> usize {
    bins.ceil() as usize
}

/// Below this a window has no bin in the lowest bands, above it no window is that long.
const MIN_LEN: usize = 512;
const MAX_LEN: usize = 1 << 20;

/// Power bands: equal ratios from here to half the sampling rate.
const NUM_BANDS: usize = 16;
const LOWEST_BAND_HZ: f64 = 100.0;

/// Where structures ring, in three octave-like pieces; the last is cut at half the rate.
const RESONANCES_HZ: [(f64, f64); 3] =
    [(1_000.0, 4_000.0), (4_000.0, 10_000.0), (10_000.0, 20_000.0)];

#[cfg(test)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "made-up signals")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Stream;

    const LEN: usize = 2_048;

    fn spectrum() -> Spectrum {
        Spectrum::new(MachineSpeeds::default(), LEN).unwrap()
    }

    fn noise(seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed, "noise");
        (0..LEN).map(|_| stream.normal() as f32).collect()
    }

    /// Noise plus a 6 kHz resonance that is rung `hz` times a second.
    fn rung(seed: u64, hz: f64) -> Vec<f32> {
        let ring = |t: usize| {
            let seconds = t as f64 / 48_828.0;
            let since = seconds % (1.0 / hz);
            (TAU * 6_000.0 * since).sin() * (-since * 1_500.0).exp() * 8.0
        };
        noise(seed).iter().enumerate().map(|(t, x)| x + ring(t) as f32).collect()
    }

    #[test]
    fn the_envelope_tells_the_race_that_rings() {
        let spectrum = spectrum();
        let middle = NUM_BANDS + 1 + spectrum.lines.len();
        let line = |x: Vec<f32>, at: usize| spectrum.features(&x).unwrap()[middle + 1 + at];
        assert!(line(rung(1, 81.125), 0) > line(rung(1, 118.875), 0) + 0.5);
        assert!(line(rung(1, 118.875), 3) > line(rung(1, 81.125), 3) + 0.5);
    }

    #[test]
    fn impulses_raise_the_kurtosis() {
        let spectrum = spectrum();
        let kurtosis = |x: Vec<f32>| spectrum.features(&x).unwrap()[spectrum.num_features() - 2];
        assert!(kurtosis(noise(2)).abs() < 0.3, "noise is Gaussian");
        assert!(kurtosis(rung(2, 81.125)) > 0.3);
    }

    #[test]
    fn windows_that_say_nothing_are_refused() {
        let spectrum = spectrum();
        assert_eq!(spectrum.features(&[0.5; LEN]).unwrap_err().kind(), "out_of_range");
        assert_eq!(spectrum.features(&[0.5; 7]).unwrap_err().kind(), "out_of_range");
        let mut broken = noise(3);
        broken[9] = f32::NAN;
        assert_eq!(spectrum.features(&broken).unwrap_err().kind(), "not_finite");
        assert!(Spectrum::new(MachineSpeeds::default(), 100).is_err());
        let slow = MachineSpeeds { rate_hz: 8_000.0, ..MachineSpeeds::default() };
        assert!(Spectrum::new(slow, LEN).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn gain_makes_no_difference(seed: u64, hz in 20.0_f64..200.0, gain in 1e-3_f32..1e3) {
            let spectrum = spectrum();
            let x = rung(seed, hz);
            let louder: Vec<f32> = x.iter().map(|x| x * gain).collect();
            let (a, b) = (spectrum.features(&x).unwrap(), spectrum.features(&louder).unwrap());
            prop_assert_eq!(a.len(), spectrum.num_features());
            for (at, (a, b)) in a.iter().zip(&b).enumerate() {
                prop_assert!(a.is_finite() && a.abs() <= 3.0);
                prop_assert!((a - b).abs() < 1e-4, "feature {}: {} {}", at, a, b);
            }
        }
    }
}
