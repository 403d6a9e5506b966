//! Which transformers can be cut in two, and what each half of them computes: those of signals and of images. How their
//! halves train is the same (`split.rs`). The convolutional network of the benchmarks is cut by itself (`cnn_split.rs`).

use std::fmt;

use tch::Tensor;

use super::adamw::AdamWConfig;
use super::dim;
use super::parts::Parts;
use super::peft::PeftConfig;
use super::signal::{SignalStem, SignalTop, SignalTransformerConfig, Spectra};
use super::trainer::{TrainerConfig, check_windows, class_counts, windows_of};
use super::vision::{VisionStem, VisionTop};
use super::vision_trainer::{self, VisionTrainerConfig, coloured};
use super::weights::Weights;
use crate::learn::{Cut, Examples, Layout, LearnError};
use crate::rng::Stream;

/// A model of blocks behind an embedding, with how it trains. Both that there are lie in this file.
pub trait Cuttable: Clone + fmt::Debug + Send + 'static {
    /// What of a run's examples is made ready once.
    type Reader: Send;

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first that can't be.
    fn check(&self) -> Result<(), LearnError>;
    /// Names and shapes of the whole base.
    fn layout(&self) -> Layout;
    /// Sizes of blocks, and what goes through them.
    fn sizes(&self) -> Sizes;
    /// What trains and how.
    fn training(&self) -> Training<'_>;

    /// Makes examples ready, and counts those of each class, `[C]`.
    ///
    /// # Errors
    /// [`LearnError`] when they aren't the model's.
    fn read(&self, data: &Examples) -> Result<(Self::Reader, Vec<u64>), LearnError>;
    /// A batch as the front takes it, with its labels.
    ///
    /// # Errors
    /// [`LearnError`] when the examples aren't those that were read.
    fn batch(
        &self,
        reader: &Self::Reader,
        data: &Examples,
        rows: &[usize],
        changes: &mut Stream,
    ) -> Result<(Tensor, Vec<usize>), LearnError>;

    /// The embedding and blocks `0..cut`: `[n, tokens, width]`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`], [`LearnError::Engine`].
    fn stem(&self, weights: &Weights, cut: u32, batch: &Tensor) -> Result<Tensor, LearnError>;
    /// The other blocks: of `[n, tokens, width]` the `[n, width]` that the head sees.
    ///
    /// # Errors
    /// As [`Cuttable::stem`].
    fn top(&self, weights: &Weights, cut: u32, at_cut: &Tensor) -> Result<Tensor, LearnError>;
    /// The head: logits `[n, C]`.
    ///
    /// # Errors
    /// As [`Cuttable::stem`].
    fn head(&self, weights: &Weights, seen: &Tensor) -> Result<Tensor, LearnError>;
}

/// Sizes of a model's blocks.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub(super) layers: u32,
    pub(super) tokens: u32,
    pub(super) width: u32,
    pub(super) hidden: u32,
    pub(super) heads: u32,
    pub(super) classes: u32,
}

/// How a model trains, whichever half.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    pub(super) peft: &'a PeftConfig,
    pub(super) adamw: AdamWConfig,
    pub(super) correct_prior: bool,
    pub(super) threads: std::num::NonZeroU16,
}

impl Sizes {
    pub(super) fn of_signal(model: &SignalTransformerConfig) -> Self {
        Self {
            layers: model.layers,
            tokens: model.tokens(),
            width: model.block.d_model,
            hidden: model.block.d_ff,
            heads: model.block.heads,
            classes: model.classes,
        }
    }

    /// About how many bytes a run of the front takes with batches of this size, libtorch's own aside.
    ///
    /// Weights, the adapter with its gradient and moments, and what the blocks keep for the backward pass.
    pub(super) fn front_bytes(self, layout: &Layout, cut: Cut, trains: u64, batch: u32) -> u64 {
        let front = cut.front_of(layout).0;
        let weights: usize = front.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        let (d, f) = (u64::from(self.width), u64::from(self.hidden));
        let tokens = u64::from(self.tokens);
        // A token and block: inputs and norms, queries to heads, hidden layer twice, attention's row.
        let kept = 8 * d + 2 * f + u64::from(self.heads) * tokens;
        let activations = u64::from(batch) * tokens * kept * u64::from(cut.blocks);
        // The merged weights lie beside the base's.
        4 * (2 * weights as u64 + 4 * trains + activations)
    }
}

/// Windows of a signal.
impl Cuttable for TrainerConfig {
    type Reader = Spectra;

    fn check(&self) -> Result<(), LearnError> {
        self.model.check()
    }

    fn layout(&self) -> Layout {
        self.model.layout()
    }

    fn sizes(&self) -> Sizes {
        Sizes::of_signal(&self.model)
    }

    fn training(&self) -> Training<'_> {
        let Self { peft, adamw, correct_prior, threads, .. } = self;
        Training { peft, adamw: *adamw, correct_prior: *correct_prior, threads: *threads }
    }

    fn read(&self, data: &Examples) -> Result<(Spectra, Vec<u64>), LearnError> {
        let data = data.windows()?;
        check_windows(data, &self.model)?;
        Ok((Spectra::new(&self.model)?, class_counts(data)))
    }

    fn batch(
        &self,
        spectra: &Spectra,
        data: &Examples,
        rows: &[usize],
        changes: &mut Stream,
    ) -> Result<(Tensor, Vec<usize>), LearnError> {
        let (x, labels) = windows_of(data.windows()?, rows, &self.augment, changes);
        Ok((spectra.forward(&x)?, labels))
    }

    fn stem(&self, weights: &Weights, cut: u32, batch: &Tensor) -> Result<Tensor, LearnError> {
        SignalStem::new(&Parts::bare(weights), &self.model, cut)?.forward(batch)
    }

    fn top(&self, weights: &Weights, cut: u32, at_cut: &Tensor) -> Result<Tensor, LearnError> {
        SignalTop::new(&Parts::bare(weights), &self.model, cut)?.forward(at_cut)
    }

    fn head(&self, weights: &Weights, seen: &Tensor) -> Result<Tensor, LearnError> {
        self.model.head(&Parts::bare(weights))?.forward(seen)
    }
}

/// Grey images, scaled once a run.
impl Cuttable for VisionTrainerConfig {
    type Reader = Tensor;

    fn check(&self) -> Result<(), LearnError> {
        self.check_model()
    }

    fn layout(&self) -> Layout {
        self.model.layout()
    }

    fn sizes(&self) -> Sizes {
        let model = &self.model;
        Sizes {
            layers: model.layers,
            tokens: model.tokens(),
            width: model.d_model,
            hidden: model.d_ff,
            heads: model.heads,
            classes: model.classes.unwrap_or(0),
        }
    }

    fn training(&self) -> Training<'_> {
        let Self { peft, adamw, correct_prior, threads, .. } = self;
        Training { peft, adamw: *adamw, correct_prior: *correct_prior, threads: *threads }
    }

    fn read(&self, data: &Examples) -> Result<(Tensor, Vec<u64>), LearnError> {
        let images = data.images()?;
        self.check_images(images)?;
        let x = self.input(&Tensor::f_from_slice(&images.pixels)?)?;
        Ok((x, vision_trainer::class_counts(images)))
    }

    fn batch(
        &self,
        x: &Tensor,
        data: &Examples,
        rows: &[usize],
        _: &mut Stream,
    ) -> Result<(Tensor, Vec<usize>), LearnError> {
        let labels = &data.images()?.labels;
        let labels = rows.iter().filter_map(|row| labels.get(*row).map(|label| (*label).into()));
        let numbers = rows.iter().map(|row| dim(*row)).collect::<Result<Vec<_>, _>>()?;
        Ok((x.f_index_select(0, &Tensor::f_from_slice(&numbers)?)?, labels.collect()))
    }

    fn stem(&self, weights: &Weights, cut: u32, batch: &Tensor) -> Result<Tensor, LearnError> {
        VisionStem::new(&Parts::bare(weights), &self.model, cut)?.forward(&coloured(batch)?)
    }

    fn top(&self, weights: &Weights, cut: u32, at_cut: &Tensor) -> Result<Tensor, LearnError> {
        VisionTop::new(&Parts::bare(weights), &self.model, cut)?.forward(at_cut)
    }

    fn head(&self, weights: &Weights, seen: &Tensor) -> Result<Tensor, LearnError> {
        self.model.head(&Parts::bare(weights))?.forward(seen)
    }
}
