//! The signal transformer: windows of a vibration signal to class logits.
//!
//! ```text
//! [n, window] -> zero mean, unit variance -> patches -> log power spectrum -> linear + position
//!             -> blocks -> norm -> mean over tokens -> head -> [n, classes]
//! ```
//! A patch enters as its log spectrum, not as its samples: a fault shows as *when* the structure
//! rings and *where* in the spectrum, and where a patch happens to cut the oscillation means
//! nothing. The tokens over time keep the rhythm of the impacts for the blocks to find.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::linear::Linear;
use super::norm::{Norm, NormKind};
use super::parts::Parts;
use super::peft::PeftConfig;
use super::prompted::{Prompted, through};
use super::transformer::{BlockConfig, drawn_weights, linear_tensors, norm_tensors};
use super::{dim, tensor};
use crate::learn::{Layout, LearnError, TensorSet};
use crate::rng::Stream;

/// Sizes of a signal transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalTransformerConfig {
    /// Samples a window.
    pub window: u32,
    /// Samples a patch; even.
    pub patch: u32,
    /// Samples from one patch to the next.
    pub stride: u32,
    /// Number of blocks.
    pub layers: u32,
    /// Sizes of each block.
    pub block: BlockConfig,
    /// Number of classes C.
    pub classes: u32,
}

impl Default for SignalTransformerConfig {
    fn default() -> Self {
        Self {
            window: 2_048,
            patch: 64,
            stride: 48,
            layers: 3,
            block: BlockConfig::default(),
            classes: 3,
        }
    }
}

impl SignalTransformerConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first that doesn't.
    pub fn check(&self) -> Result<(), LearnError> {
        let bad = |what, expected: String, actual: u32| {
            Err(LearnError::OutOfRange { what, expected, actual: actual.to_string() })
        };
        self.block.check()?;
        if self.patch < 2 || !self.patch.is_multiple_of(2) || self.patch > self.window {
            return bad("patch", format!("even, 2 to {}", self.window), self.patch);
        }
        if self.stride == 0 || self.stride > self.patch {
            return bad("stride", format!("1 to {}", self.patch), self.stride);
        }
        if self.layers == 0 || self.layers > MAX_LAYERS {
            return bad("layers", format!("1 to {MAX_LAYERS}"), self.layers);
        }
        if self.classes < 2 {
            return bad("classes", "at least 2".into(), self.classes);
        }
        Ok(())
    }

    /// Checks that this model has a place for all that is to train: there is none for tokens in front of
    /// the whole input (those in front of each block are `deep_prompts`).
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`].
    pub(super) fn check_peft(peft: &PeftConfig) -> Result<(), LearnError> {
        match peft.prompts {
            0 => Ok(()),
            n => Err(LearnError::OutOfRange {
                what: "prompts of a signal transformer",
                expected: "none (take deep_prompts)".into(),
                actual: n.to_string(),
            }),
        }
    }

    /// Checks windows `[n, len]` that are to be answered.
    ///
    /// # Errors
    /// [`LearnError`] when `len` isn't the model's or a sample isn't finite.
    pub fn check_windows(&self, x: &[f32], len: usize) -> Result<(), LearnError> {
        if len != self.window as usize {
            return Err(LearnError::OutOfRange {
                what: "samples a window",
                expected: self.window.to_string(),
                actual: len.to_string(),
            });
        }
        match x.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(LearnError::NotFinite { name: "window".into(), index }),
            None => Ok(()),
        }
    }

    /// Patches (tokens) a window.
    pub fn tokens(&self) -> u32 {
        self.window.saturating_sub(self.patch) / self.stride.max(1) + 1
    }

    /// Bins of a patch's spectrum.
    pub fn bins(&self) -> u32 {
        self.patch / 2 + 1
    }

    /// Names and shapes of all weights.
    pub fn layout(&self) -> Layout {
        let d = self.block.d_model as usize;
        let mut all = linear_tensors("embed", d, self.bins() as usize);
        all.push(("embed.position".into(), vec![self.tokens() as usize, d]));
        for layer in 0..self.layers {
            let block = self.block.spec().tensors();
            all.extend(block.into_iter().map(|(n, s)| (format!("blocks.{layer}.{n}"), s)));
        }
        all.extend(norm_tensors("norm", d, NormKind::Layer));
        all.extend(linear_tensors("head", self.classes as usize, d));
        all.sort();
        Layout(all)
    }

    /// Weights to pre-train from; as `drawn_weights` tells.
    ///
    /// # Determinism
    /// The same stream gives the same values.
    pub fn initial_weights(&self, stream: &mut Stream) -> TensorSet {
        drawn_weights(&self.layout(), stream)
    }
}

/// Turns windows into patches' log power spectra; it has constants only, no weights.
#[derive(Debug)]
pub struct Spectra {
    /// `[patch, 2 bins]`: Hann-windowed cosines, then sines.
    basis: Tensor,
    window: i64,
    patch: i64,
    stride: i64,
    bins: i64,
}

impl Spectra {
    /// Makes the Fourier basis.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    #[expect(clippy::cast_possible_truncation, reason = "cosines fit an f32")]
    pub fn new(config: &SignalTransformerConfig) -> Result<Self, LearnError> {
        use std::f64::consts::TAU;
        let (patch, bins) = (config.patch, config.bins());
        let hann = |i: u32| 0.5 - 0.5 * (TAU * (f64::from(i) + 0.5) / f64::from(patch)).cos();
        let energy: f64 = (0..patch).map(|i| hann(i).powi(2)).sum();
        let mut basis = Vec::new();
        for i in 0..patch {
            let taper = hann(i) / energy.sqrt();
            let angle = |bin: u32| TAU * f64::from(bin) * f64::from(i) / f64::from(patch);
            basis.extend((0..bins).map(|bin| (taper * angle(bin).cos()) as f32));
            basis.extend((0..bins).map(|bin| (taper * angle(bin).sin()) as f32));
        }
        Ok(Self {
            basis: tensor(&basis, &[patch.into(), i64::from(bins) * 2])?,
            window: config.window.into(),
            patch: patch.into(),
            stride: config.stride.into(),
            bins: bins.into(),
        })
    }

    /// `[n, window]` row-major samples to `[n, tokens, bins]`.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the samples aren't whole windows.
    pub fn forward(&self, x: &[f32]) -> Result<Tensor, LearnError> {
        let len = dim(x.len())?;
        if len % self.window != 0 {
            return Err(LearnError::OutOfRange {
                what: "samples",
                expected: format!("a multiple of {}", self.window),
                actual: len.to_string(),
            });
        }
        let _guard = tch::no_grad_guard();
        let x = tensor(x, &[len / self.window, self.window])?;
        let x = x.f_sub(&x.f_mean_dim([1].as_slice(), true, Kind::Float)?)?;
        let power = x.f_square()?.f_mean_dim([1].as_slice(), true, Kind::Float)?;
        let x = x.f_div(&power.f_add_scalar(1e-12)?.f_sqrt()?)?;
        let parts = x.f_unfold(1, self.patch, self.stride)?.f_matmul(&self.basis)?.f_square()?;
        let cosines = parts.f_narrow(2, 0, self.bins)?;
        let power = cosines.f_add(&parts.f_narrow(2, self.bins, self.bins)?)?;
        Ok(power.f_add_scalar(POWER_FLOOR)?.f_log()?)
    }
}

/// The model on one set of weights.
#[derive(Debug)]
pub struct SignalTransformer {
    stem: SignalStem,
    top: SignalTop,
    head: Linear,
}

/// The model's first part: the embedding and some blocks.
#[derive(Debug)]
pub struct SignalStem {
    embed: Linear,
    position: Tensor,
    blocks: Vec<Prompted>,
}

/// The model's second part: the other blocks, norm and mean, without the head.
#[derive(Debug)]
pub struct SignalTop {
    blocks: Vec<Prompted>,
    norm: Norm,
}

impl SignalTransformer {
    /// Takes the tensors of [`SignalTransformerConfig::layout`].
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(parts: &Parts<'_>, config: &SignalTransformerConfig) -> Result<Self, LearnError> {
        Ok(Self {
            stem: SignalStem::new(parts, config, config.layers)?,
            top: SignalTop::new(parts, config, config.layers)?,
            head: config.head(parts)?,
        })
    }

    /// Spectra `[n, tokens, bins]` to logits `[n, classes]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub fn forward(&self, spectra: &Tensor) -> Result<Tensor, LearnError> {
        self.classify(&self.embed(spectra)?)
    }

    /// Spectra `[n, tokens, bins]` to embeddings `[n, d_model]`: what the head sees.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub fn embed(&self, spectra: &Tensor) -> Result<Tensor, LearnError> {
        self.top.forward(&self.stem.forward(spectra)?)
    }

    /// Embeddings `[n, d_model]` to logits `[n, classes]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub fn classify(&self, embeddings: &Tensor) -> Result<Tensor, LearnError> {
        self.head.forward(embeddings)
    }
}

impl SignalStem {
    /// The embedding and blocks `0..cut`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a tensor is absent or has another shape.
    pub fn new(
        parts: &Parts<'_>,
        config: &SignalTransformerConfig,
        cut: u32,
    ) -> Result<Self, LearnError> {
        let d = config.block.d_model;
        Ok(Self {
            embed: Linear::new(parts, "embed", d, config.bins())?,
            position: parts.get("embed.position", &[config.tokens().into(), d.into()])?,
            blocks: config.blocks(parts, 0..cut)?,
        })
    }

    /// Spectra `[n, tokens, bins]` to activations `[n, tokens, d]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub fn forward(&self, spectra: &Tensor) -> Result<Tensor, LearnError> {
        through(&self.blocks, self.embed.forward(spectra)?.f_add(&self.position)?)
    }
}

impl SignalTop {
    /// Blocks `cut..layers` and the norm.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a tensor is absent or has another shape.
    pub fn new(
        parts: &Parts<'_>,
        config: &SignalTransformerConfig,
        cut: u32,
    ) -> Result<Self, LearnError> {
        let (d, spec) = (config.block.d_model, config.block.spec());
        Ok(Self {
            blocks: config.blocks(parts, cut..config.layers)?,
            norm: Norm::new(parts, "norm", d, spec.norm, spec.eps)?,
        })
    }

    /// Activations `[n, tokens, d]` to what the head takes, `[n, d]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub fn forward(&self, activations: &Tensor) -> Result<Tensor, LearnError> {
        let x = through(&self.blocks, activations.shallow_clone())?;
        Ok(self.norm.forward(&x)?.f_mean_dim([1].as_slice(), false, Kind::Float)?)
    }
}

impl SignalTransformerConfig {
    /// The head: `[n, d]` to logits `[n, classes]`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a tensor is absent or has another shape.
    pub fn head(&self, parts: &Parts<'_>) -> Result<Linear, LearnError> {
        Linear::new(parts, "head", self.classes, self.block.d_model)
    }

    fn blocks(
        &self,
        parts: &Parts<'_>,
        range: std::ops::Range<u32>,
    ) -> Result<Vec<Prompted>, LearnError> {
        let spec = self.block.spec();
        range.map(|i| Prompted::new(parts, &format!("blocks.{i}"), &spec)).collect()
    }
}

/// Added to each bin's power (1 on average for white noise) before the logarithm.
const POWER_FLOOR: f64 = 1e-3;

/// More layers than this aren't a model for sensor windows.
const MAX_LAYERS: u32 = 64;

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, clippy::float_cmp, reason = "test signals are f32")]
pub(super) mod tests {
    use super::*;
    use crate::torch::values;
    use crate::torch::weights::Weights;

    /// A model small enough for finite differences.
    pub(in crate::torch) fn tiny() -> SignalTransformerConfig {
        SignalTransformerConfig {
            window: 64,
            patch: 16,
            stride: 8,
            layers: 2,
            block: BlockConfig { d_model: 8, heads: 2, d_ff: 16 },
            classes: 3,
        }
    }

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed, "test");
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    #[test]
    fn the_default_stays_below_2_mb_and_its_names_say_what_they_are() {
        let config = SignalTransformerConfig::default();
        let layout = config.layout();
        let values: usize = layout.0.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        let names: Vec<&str> = layout.0.iter().map(|(n, _)| n.as_str()).collect();
        assert!(names.contains(&"blocks.1.attn.q.weight") && names.contains(&"head.bias"));
        assert!(values * 4 < 2_000_000, "{values}");
    }

    #[test]
    fn the_spectrum_of_a_tone_peaks_at_its_bin_and_ignores_gain() {
        let config = tiny();
        let spectra = Spectra::new(&config).unwrap();
        let tone: Vec<f32> = (0..64_u8)
            .map(|i| (std::f32::consts::TAU * 4.0 * f32::from(i) / 16.0 + 0.4).sin())
            .collect();
        let got = spectra.forward(&tone).unwrap();
        assert_eq!(got.size(), [1, 7, 9]);
        let got = values(&got).unwrap();
        for patch in got.chunks(9) {
            let top = patch.iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(patch[4], top, "bin 4 of 16 samples");
        }
        let louder: Vec<f32> = tone.iter().map(|x| 50.0 * x + 7.0).collect();
        let louder = values(&spectra.forward(&louder).unwrap()).unwrap();
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-2;
        assert!(got.iter().zip(&louder).all(close));
    }

    #[test]
    fn a_constant_window_stays_finite() {
        let spectra = Spectra::new(&tiny()).unwrap();
        let flat = values(&spectra.forward(&[3.0; 64]).unwrap()).unwrap();
        assert!(flat.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn white_noise_has_power_1_in_the_mean() {
        let spectra = Spectra::new(&tiny()).unwrap();
        let logs = values(&spectra.forward(&noise(64 * 400, 1)).unwrap()).unwrap();
        let inner = logs.chunks(9).flat_map(|bins| &bins[1..8]).map(|l| f64::from(l.exp()));
        let (sum, n) = inner.fold((0.0, 0), |(sum, n), p| (sum + p, n + 1));
        assert!((sum / f64::from(n) - 1.0).abs() < 0.05, "{}", sum / f64::from(n));
    }

    #[test]
    fn each_window_has_its_own_logits() {
        let config = tiny();
        let weights = config.initial_weights(&mut Stream::new(1, "weights"));
        let model =
            SignalTransformer::new(&Parts::bare(&Weights::from_set(&weights).unwrap()), &config)
                .unwrap();
        let spectra = Spectra::new(&config).unwrap();
        let x = noise(3 * 64, 2);
        let logits =
            |x: &[f32]| values(&model.forward(&spectra.forward(x).unwrap()).unwrap()).unwrap();
        let together = logits(&x);
        let apart: Vec<f32> = x.chunks(64).flat_map(logits).collect();
        assert_eq!(together.len(), 9);
        assert!(together.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn weights_of_another_shape_are_refused_with_both_shapes() {
        let weights = tiny().initial_weights(&mut Stream::new(1, "weights"));
        let weights = Weights::from_set(&weights).unwrap();
        let wider = SignalTransformerConfig { classes: 4, ..tiny() };
        let error = SignalTransformer::new(&Parts::bare(&weights), &wider).unwrap_err().to_string();
        assert!(error.contains("head") && error.contains("[4, 8]") && error.contains("[3, 8]"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert!(tiny().check().is_ok());
        let odd = SignalTransformerConfig { patch: 15, ..tiny() };
        let gap = SignalTransformerConfig { stride: 17, ..tiny() };
        let none = SignalTransformerConfig { layers: 0, ..tiny() };
        let heads = BlockConfig { heads: 3, ..tiny().block };
        let split = SignalTransformerConfig { block: heads, ..tiny() };
        for bad in [odd, gap, none, split] {
            assert_eq!(bad.check().unwrap_err().kind(), "out_of_range", "{bad:?}");
        }
    }
}
