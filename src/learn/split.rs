//! The ports to a model in two halves: the front on a device, the back on its edge.
//!
//! ```text
//!   device: FrontRun                          edge: BackCopy
//!   forward  x -> activations  ----------->   step  activations, labels -> loss, gradient at the cut
//!   backward gradient          <-----------   (its own change waits)
//!            changes its adapter, says how long its gradient was
//!   forward  the next batch    ----------->   settle: changes its adapter by the same clip
//! ```
//! A step counts on both halves or on none: the back holds its gradient until the front has said that
//! it took its part. With that, and with the gradient's length over both halves, split training is the
//! same arithmetic as training in one place, whatever is lost on the way between.
//!
//! Where labels stay on the device (U-shape), the head does too, and a step has one more turn:
//! the back answers with its output, the front computes the loss and gives back its gradient.
//!
//! Called by the lanes (`actors/`), implemented in `torch/`. Who says what to whom is the business of
//! `protocol/session.rs`.
//!
//! # Source
//! Split learning with averaged halves: Thapa et al. 2020, arXiv:2004.12088 (`SplitFed`); with LoRA: Lin et
//! al. 2024, arXiv:2407.00952. Holding the back's change until the front has taken its own is ours.

use super::{
    Activations, ClassLogits, Examples, Layout, LearnError, Prediction, Predictor, TensorSet,
    TrainJob,
};
use crate::ids::NodeId;

/// Where a model is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Blocks in the front, behind the embedding; of an image network its convolutions.
    pub blocks: u32,
    /// Labels stay on the device, and the head with them.
    pub head_in_front: bool,
}

impl Cut {
    /// Checks the cut against a model of so many blocks.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for a cut beyond the model.
    pub fn check(&self, blocks: u32) -> Result<(), LearnError> {
        if (1..=blocks).contains(&self.blocks) {
            return Ok(());
        }
        Err(LearnError::OutOfRange {
            what: "cut",
            expected: format!("after block 1 to {blocks}, the blocks of this model"),
            actual: self.blocks.to_string(),
        })
    }

    /// Whether a tensor of the model, or one that an adapter puts beside it, lies in the front.
    ///
    /// Names are those of `torch`: `embed.*`, `blocks.<i>.*` counted from 0, `norm.*`, `head.*`; of an image
    /// network `conv<i>.*` counted from 1, and `fc<i>.*` behind them.
    pub fn is_front(&self, name: &str) -> bool {
        let mut levels = name.split('.');
        match levels.next() {
            Some("embed") => true,
            Some("head") => self.head_in_front,
            Some("blocks") => {
                levels.next().and_then(|i| i.parse::<u32>().ok()).is_some_and(|i| i < self.blocks)
            }
            Some(level) => level
                .strip_prefix("conv")
                .and_then(|i| i.parse::<u32>().ok())
                .is_some_and(|i| i <= self.blocks),
            None => false,
        }
    }

    /// The front's part of a layout.
    pub fn front_of(&self, layout: &Layout) -> Layout {
        let front = layout.0.iter().filter(|(name, _)| self.is_front(name));
        Layout(front.cloned().collect())
    }

    /// The back's part of a layout.
    pub fn back_of(&self, layout: &Layout) -> Layout {
        let back = layout.0.iter().filter(|(name, _)| !self.is_front(name));
        Layout(back.cloned().collect())
    }
}

/// What a run of the front knows once it has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontBegun {
    /// Distinct examples on this device.
    pub num_examples: u64,
    /// `[C]`, examples of each class; empty where labels stay here.
    pub class_counts: Vec<u64>,
    /// Batches of the run.
    pub steps: u32,
}

/// What the front gives for one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Smashed {
    /// `[n, tokens, d]` or `[n, d]` at the cut.
    pub activations: Activations,
    /// `[n]` class of each example; empty where labels stay on the device.
    pub labels: Vec<u32>,
}

/// Runs the front half.
pub trait SplitFront: Send {
    /// Its part of the untrained adapter.
    fn initial_adapter(&self) -> TensorSet;

    /// Begins a run from `job.start`, the front's part of the adapter.
    ///
    /// # Errors
    /// [`LearnError`] when job or data don't fit the model.
    fn begin(&self, data: &Examples, job: &TrainJob) -> Result<Box<dyn FrontRun>, LearnError>;
}

/// One run of a front.
pub trait FrontRun: Send {
    /// What it learns from.
    fn begun(&self) -> FrontBegun;

    /// The next batch up to the cut. An earlier one that waits for its gradient is forgotten.
    ///
    /// # Errors
    /// [`LearnError`] when the engine fails or a value isn't finite.
    fn forward(&mut self, data: &Examples) -> Result<Smashed, LearnError>;

    /// Where the head is here: mean loss of the batch in nats, and its gradient at the back's output.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when no batch waits, the shape is another or the head isn't here.
    fn head(&mut self, output: &Activations) -> Result<(f32, Activations), LearnError>;

    /// Takes the gradient at the cut and changes the front's adapter. `back_squared` is the squared
    /// length of the back's gradient; the front's own comes back.
    ///
    /// # Errors
    /// [`LearnError`] when no batch waits or the shape is another; nothing is changed then.
    fn backward(&mut self, gradient: &Activations, back_squared: f64) -> Result<f64, LearnError>;

    /// The front's part of the adapter as it is now.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] when training diverged.
    fn adapter(&self) -> Result<TensorSet, LearnError>;
}

/// What a copy of the back is to do.
#[derive(Debug, Clone)]
pub struct BackJob {
    /// The back's part of the adapter to start from; also the anchor of the proximal term.
    pub start: TensorSet,
    /// Learning rate, > 0.
    pub learning_rate: f32,
    /// See [`TrainJob::prox_mu`].
    pub prox_mu: f32,
    /// See [`TrainJob::distill_lambda`].
    pub distill_lambda: f32,
    /// See [`TrainJob::class_targets`].
    pub class_targets: Option<ClassLogits>,
}

/// What the back answers.
#[derive(Debug, Clone, PartialEq)]
pub struct BackStep {
    /// Mean loss of the batch in nats; 0 where the device computed it.
    pub loss: f32,
    /// Gradient of the mean loss at the cut, in the shape of the activations.
    pub gradient: Activations,
    /// Squared length of the gradient of the back's adapter.
    pub squared: f64,
}

/// Runs the back half.
pub trait SplitBack: Send {
    /// Its part of the untrained adapter.
    fn initial_adapter(&self) -> TensorSet;

    /// Makes a copy that trains.
    ///
    /// # Errors
    /// [`LearnError`] when the job doesn't fit the model.
    fn open(&self, job: &BackJob) -> Result<Box<dyn BackCopy>, LearnError>;
}

/// One copy of the back: for one device, or for all that share it.
pub trait BackCopy: Send {
    /// Loss and gradient of a device's batch with its labels; the copy's own change waits for
    /// [`BackCopy::settle`]. `class_counts` are the device's examples a class.
    ///
    /// # Errors
    /// [`LearnError`] when a shape or label doesn't fit; nothing waits then.
    fn step(
        &mut self,
        who: &NodeId,
        smashed: &Smashed,
        class_counts: &[u64],
    ) -> Result<BackStep, LearnError>;

    /// The output `[n, d]` that the head of a device needs.
    ///
    /// # Errors
    /// [`LearnError`] when the shape doesn't fit.
    fn forward(&mut self, who: &NodeId, at_cut: &Activations) -> Result<Activations, LearnError>;

    /// The second half of a step whose loss the device computed.
    ///
    /// # Errors
    /// [`LearnError`] when no forward pass waits or the shape is another.
    fn backward(&mut self, who: &NodeId, gradient: &Activations) -> Result<BackStep, LearnError>;

    /// The device took its part of the step that waits, with a gradient of this squared length, or
    /// (`None`) it did not: then the back forgets its own.
    ///
    /// # Errors
    /// [`LearnError`] when the engine fails.
    fn settle(&mut self, who: &NodeId, front_squared: Option<f64>) -> Result<(), LearnError>;

    /// The back's part of the adapter as it is now.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] when training diverged.
    fn adapter(&self) -> Result<TensorSet, LearnError>;
}

/// Answers windows as far as the front of a model goes, with the adapter that was loaded last.
pub trait FrontPredictor: Send {
    /// Swaps the front's part of the adapter; on an error the old one stays.
    ///
    /// # Errors
    /// [`LearnError`] when it doesn't fit the front.
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError>;

    /// Windows `[n, len]` to activations at the cut, `[n, tokens, d]`.
    ///
    /// # Errors
    /// [`LearnError`] when `len` isn't the model's or a value isn't finite.
    fn pass(&mut self, x: &[f32], len: usize) -> Result<Activations, LearnError>;
}

/// A whole model that also goes on from where a front has stopped.
pub trait BackPredictor: Predictor {
    /// Activations at the cut, `[n, tokens, d]`, to n predictions.
    ///
    /// # Errors
    /// [`LearnError`] when the shape isn't that of the cut, a value isn't finite, or no adapter was loaded
    /// before the one in use.
    fn finish(&mut self, at_cut: &Activations, with: Kept) -> Result<Vec<Prediction>, LearnError>;
}

/// Which of the adapters that a [`BackPredictor`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The one in use.
    Last,
    /// The one that was in use before it: fronts swap a little later.
    Before,
}

impl<P: FrontPredictor + ?Sized> FrontPredictor for Box<P> {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        (**self).load(adapter)
    }

    fn pass(&mut self, x: &[f32], len: usize) -> Result<Activations, LearnError> {
        (**self).pass(x, len)
    }
}

impl<P: BackPredictor + ?Sized> BackPredictor for Box<P> {
    fn finish(&mut self, at_cut: &Activations, with: Kept) -> Result<Vec<Prediction>, LearnError> {
        (**self).finish(at_cut, with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lie_on_one_side_each() {
        let two = Cut { blocks: 2, head_in_front: false };
        let front =
            ["embed.weight", "embed.position", "blocks.0.attn.q.lora_a", "blocks.1.norm1.bias"];
        let back =
            ["blocks.2.attn.q.lora_a", "blocks.10.mlp.up.weight", "norm.weight", "head.bias"];
        assert!(front.iter().all(|name| two.is_front(name)));
        assert!(!back.iter().any(|name| two.is_front(name)));
        assert!(Cut { head_in_front: true, ..two }.is_front("head.bias"));
        assert!(two.is_front("conv1.bias") && two.is_front("conv2.weight"));
        assert!(!["conv3.bias", "conv.bias", "fc1.weight"].iter().any(|name| two.is_front(name)));
        let names = front.iter().chain(&back).map(|name| ((*name).to_owned(), vec![1]));
        let all = Layout(names.collect());
        assert_eq!(two.front_of(&all).0.len() + two.back_of(&all).0.len(), all.0.len());
    }

    #[test]
    fn a_cut_beyond_the_model_is_a_clear_error() {
        let cut = |blocks| Cut { blocks, head_in_front: false }.check(3);
        assert!(cut(1).is_ok() && cut(3).is_ok());
        for bad in [0, 4] {
            let text = cut(bad).unwrap_err().to_string();
            assert!(text.contains("block 1 to 3") && text.contains(&bad.to_string()), "{text}");
        }
    }
}
