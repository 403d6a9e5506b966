//! Vibration of rolling bearings as physics tells it: what a base model is pre-trained on.
//!
//! A bearing with a damaged race hits the defect at a rate that its geometry sets, and each hit
//! makes the structure ring:
//! ```text
//! impacts at BPFO or BPFI (with slip)  x  load zone (inner race: turns with the shaft)
//!        -> resonances (decaying sinusoids)
//!        +  the same resonances and coloured noise from the healthy machine
//!        +  harmonics of the shaft and foreign tones
//! ```
//! Every quantity is drawn anew for each window, so that nothing is specific to one machine, and
//! healthy windows ring at the same kind of resonances: the spectrum's shape tells nothing, only
//! the impacts do. No plant data is used. Windows aren't normalised; the model does that.

use std::f64::consts::TAU;

use super::Windows;
use crate::rng::Stream;

/// Samples a second of the generated signals and of the shipped recordings.
pub const SAMPLE_RATE_HZ: f64 = 48_828.0;

/// Samples a window.
pub const WINDOW_LEN: usize = 2_048;

/// Names of the classes, in the order of their indices.
pub const CLASSES: [&str; 3] = ["healthy", "inner", "outer"];

/// State of a bearing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// No defect.
    Healthy,
    /// A defect that turns with the shaft, in and out of the load zone.
    InnerRace,
    /// A defect that stands still in the load zone.
    OuterRace,
}

impl Condition {
    /// All conditions, in the order of [`CLASSES`].
    pub const ALL: [Self; 3] = [Self::Healthy, Self::InnerRace, Self::OuterRace];
}

/// Speed and geometry of one bearing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Turns of the shaft a second.
    pub shaft_hz: f64,
    /// Number of rolling elements.
    pub rollers: f64,
    /// Roller diameter / pitch diameter x cosine of the contact angle.
    pub ratio: f64,
}

impl Geometry {
    /// Ball-pass frequency of the outer race.
    ///
    /// # Examples
    /// Eight rollers, ratio 0.19, 25 Hz: 81.0 a second.
    pub fn bpfo_hz(&self) -> f64 {
        0.5 * self.rollers * self.shaft_hz * (1.0 - self.ratio)
    }

    /// Ball-pass frequency of the inner race.
    pub fn bpfi_hz(&self) -> f64 {
        0.5 * self.rollers * self.shaft_hz * (1.0 + self.ratio)
    }

    fn draw(stream: &mut Stream) -> Self {
        let cosine = stream.range(0.85, 1.0);
        Self {
            shaft_hz: stream.range(18.0, 40.0),
            rollers: 7.0 + stream.range(0.0, 6.0).floor(),
            ratio: stream.range(0.14, 0.30) * cosine,
        }
    }
}

/// One mode of the structure.
#[derive(Debug, Clone, Copy)]
struct Resonance {
    hz: f64,
    decay_s: f64,
    weight: f64,
}

/// Generates `n` windows, classes in turn, each from fresh machine parameters.
pub fn windows(stream: &mut Stream, n: usize) -> Windows {
    let mut out = Windows { len: WINDOW_LEN, classes: CLASSES.len(), ..Windows::default() };
    let conditions = Condition::ALL.into_iter().enumerate().cycle();
    for (label, condition) in conditions.take(n) {
        out.x.extend(window(stream, condition));
        out.labels.push(label);
    }
    out
}

/// Generates one window, `[WINDOW_LEN]`.
#[expect(clippy::cast_possible_truncation, reason = "samples are small; f32 is their precision")]
pub fn window(stream: &mut Stream, condition: Condition) -> Vec<f32> {
    let geometry = Geometry::draw(stream);
    let modes: Vec<Resonance> = (0..=stream.below(3)).map(|_| draw_mode(stream)).collect();
    let mut signal = background(stream, &modes);
    add_tones(stream, &mut signal, geometry.shaft_hz);
    let noise = rms(&signal);
    if condition != Condition::Healthy {
        let mut ringing = vec![0.0; WINDOW_LEN];
        add_impacts(stream, &mut ringing, geometry, condition, &modes);
        let ratio = 10_f64.powf(stream.range(-8.0, 14.0) / 20.0);
        let scale = ratio * noise / rms(&ringing).max(1e-9);
        for (sample, ring) in signal.iter_mut().zip(&ringing) {
            *sample += scale * ring;
        }
    }
    let gain = 10_f64.powf(stream.range(-1.0, 1.0));
    signal.iter().map(|x| (gain * x) as f32).collect()
}

fn draw_mode(stream: &mut Stream) -> Resonance {
    let hz = 900.0 * (16_000.0_f64 / 900.0).powf(stream.unit());
    // Between 2 and 25 periods until it has decayed to 1/e.
    let periods = stream.range(2.0, 25.0);
    Resonance { hz, decay_s: (periods / hz).min(4e-3), weight: stream.range(0.3, 1.0) }
}

/// What a healthy machine gives: white and coloured noise, and its structure ringing to it.
fn background(stream: &mut Stream, modes: &[Resonance]) -> Vec<f64> {
    let white = stream.range(0.1, 1.0);
    let coloured = stream.range(0.0, 1.5);
    let pole = stream.range(0.3, 0.97);
    let ringing = stream.range(0.0, 1.5);
    let mut signal = vec![0.0; WINDOW_LEN];
    let mut low = 0.0;
    for sample in &mut signal {
        low = pole * low + (1.0 - pole * pole).sqrt() * stream.normal();
        *sample = white * stream.normal() + coloured * low;
    }
    let extra = draw_mode(stream);
    for mode in modes.iter().chain([&extra]) {
        let mut ring = resonate(stream, mode);
        let scale = ringing * mode.weight / rms(&ring).max(1e-9);
        ring.iter_mut().zip(&mut signal).for_each(|(r, sample)| *sample += scale * *r);
    }
    signal
}

/// White noise through the two-pole resonator of a mode.
fn resonate(stream: &mut Stream, mode: &Resonance) -> Vec<f64> {
    let radius = (-1.0 / (mode.decay_s * SAMPLE_RATE_HZ)).exp();
    let (a1, a2) = (2.0 * radius * (TAU * mode.hz / SAMPLE_RATE_HZ).cos(), -radius * radius);
    let (mut y1, mut y2) = (0.0, 0.0);
    let mut ring = Vec::with_capacity(WINDOW_LEN);
    for at in 0..WINDOW_LEN + WARM_UP {
        let y = a1 * y1 + a2 * y2 + stream.normal();
        (y2, y1) = (y1, y);
        if at >= WARM_UP {
            ring.push(y);
        }
    }
    ring
}

/// Harmonics of the shaft (imbalance, misalignment) and up to two tones from elsewhere.
fn add_tones(stream: &mut Stream, signal: &mut [f64], shaft_hz: f64) {
    let level = rms(signal) * stream.unit().powi(2);
    let mut tones: Vec<(f64, f64)> =
        (1..=5).map(|k| (f64::from(k) * shaft_hz, level * stream.unit() / f64::from(k))).collect();
    for _ in 0..stream.below(3) {
        tones.push((stream.range(100.0, 6_000.0), 0.5 * level * stream.unit()));
    }
    for (hz, amplitude) in tones {
        let phase = stream.range(0.0, TAU);
        for (t, sample) in times().zip(signal.iter_mut()) {
            *sample += amplitude * (TAU * hz * t + phase).sin();
        }
    }
}

/// Adds the ringing after each hit on the defect.
fn add_impacts(
    stream: &mut Stream,
    signal: &mut [f64],
    geometry: Geometry,
    condition: Condition,
    modes: &[Resonance],
) {
    let inner = condition == Condition::InnerRace;
    let rate_hz = if inner { geometry.bpfi_hz() } else { geometry.bpfo_hz() };
    let slip = stream.range(0.002, 0.02);
    let spread = stream.range(0.05, 0.35);
    let zone = LoadZone::draw(stream);
    let end_s = times().last().unwrap_or(0.0);
    let longest = modes.iter().map(|m| m.decay_s).fold(0.0, f64::max);
    let mut at_s = -DECAYS * longest - stream.unit() / rate_hz;
    while at_s < end_s {
        // The inner defect passes the load once a turn; the outer one stays where it is.
        let load = if inner { zone.at(geometry.shaft_hz * at_s) } else { 1.0 };
        let strength = load * (spread * stream.normal()).exp();
        for mode in modes {
            ring_from(signal, at_s, strength * mode.weight, mode);
        }
        at_s += (1.0 + slip * stream.normal()) / rate_hz;
    }
}

/// Stribeck's load distribution: a power of the cosine inside the zone, little outside.
struct LoadZone {
    extent: f64,
    phase_turns: f64,
    floor: f64,
}

impl LoadZone {
    fn draw(stream: &mut Stream) -> Self {
        Self {
            extent: stream.range(0.3, 0.7),
            phase_turns: stream.unit(),
            floor: stream.range(0.0, 0.25),
        }
    }

    fn at(&self, turns: f64) -> f64 {
        let cosine = (TAU * (turns + self.phase_turns)).cos();
        let inside = 1.0 - (1.0 - cosine) / (2.0 * self.extent);
        self.floor + (1.0 - self.floor) * inside.max(0.0).powf(1.5)
    }
}

fn ring_from(signal: &mut [f64], at_s: f64, strength: f64, mode: &Resonance) {
    for (t, sample) in times().zip(signal.iter_mut()) {
        let since = t - at_s;
        if since > DECAYS * mode.decay_s {
            break;
        }
        if since >= 0.0 {
            *sample += strength * (-since / mode.decay_s).exp() * (TAU * mode.hz * since).sin();
        }
    }
}

/// Seconds of each sample since the window's start.
fn times() -> impl Iterator<Item = f64> {
    (0_u32..).take(WINDOW_LEN).map(|i| f64::from(i) / SAMPLE_RATE_HZ)
}

#[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^53")]
fn rms(signal: &[f64]) -> f64 {
    (signal.iter().map(|x| x * x).sum::<f64>() / signal.len().max(1) as f64).sqrt()
}

/// Samples until a resonator has forgotten that it started from rest.
const WARM_UP: usize = 400;

/// Time constants after which a ringing is over (e^-6 = 0.25 %).
const DECAYS: f64 = 6.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_frequencies_are_those_of_the_textbook() {
        // NICE bearing of the MFPT rig: 8 rollers, 0.235 / 1.245 inch, contact angle 0, 25 Hz.
        let rig = Geometry { shaft_hz: 25.0, rollers: 8.0, ratio: 0.235 / 1.245 };
        assert!((rig.bpfo_hz() - 81.125).abs() < 0.05, "{}", rig.bpfo_hz());
        assert!((rig.bpfi_hz() - 118.875).abs() < 0.05, "{}", rig.bpfi_hz());
        assert!((rig.bpfo_hz() + rig.bpfi_hz() - 200.0).abs() < 1e-9, "they sum to n f");
    }

    #[test]
    fn a_seed_gives_the_same_windows_and_classes_take_turns() {
        let draw = |seed| windows(&mut Stream::new(seed, "physics"), 5);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).x, draw(2).x);
        assert_eq!(draw(1).labels, [0, 1, 2, 0, 1]);
        assert_eq!(draw(1).x.len(), 5 * WINDOW_LEN);
        assert!(draw(1).x.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn faults_are_more_impulsive_than_health() {
        let mut stream = Stream::new(3, "physics");
        let mut mean_kurtosis = |condition| {
            (0..60).map(|_| kurtosis(&window(&mut stream, condition))).sum::<f64>() / 60.0
        };
        let healthy = mean_kurtosis(Condition::Healthy);
        let inner = mean_kurtosis(Condition::InnerRace);
        let outer = mean_kurtosis(Condition::OuterRace);
        assert!(healthy < 3.5, "{healthy}");
        assert!(inner > 1.5 * healthy && outer > 1.5 * healthy, "{healthy} {inner} {outer}");
    }

    #[test]
    fn the_load_zone_is_strongest_in_its_middle() {
        let zone = LoadZone { extent: 0.5, phase_turns: 0.0, floor: 0.1 };
        assert!((zone.at(0.0) - 1.0).abs() < 1e-12);
        assert!((zone.at(0.5) - 0.1).abs() < 1e-12);
        assert!(zone.at(0.1) > zone.at(0.2));
        assert!((zone.at(0.3) - zone.at(1.3)).abs() < 1e-9, "one period a turn");
    }

    #[expect(clippy::cast_precision_loss, reason = "a window's length")]
    fn kurtosis(x: &[f32]) -> f64 {
        let n = x.len() as f64;
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let moment = |k| x.iter().map(|v| (f64::from(*v) - mean).powi(k)).sum::<f64>() / n;
        moment(4) / moment(2).powi(2)
    }
}
