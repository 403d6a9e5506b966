//! Answers of the signal transformer in two halves.
//!
//! ```text
//! device  windows -> spectra -> embedding -> blocks 0..k --activations--> blocks k.. -> head -> answer  edge
//! ```
//! The back stands beside the whole model, which answers windows, and shares its weights. It keeps the
//! adapter before the one in use as well: a front takes a new version a little later than its edge. How
//! activations travel and who asks whom is no business of this file (`protocol/halves.rs`).

use std::num::NonZeroU16;

use super::adapter::AdapterPlan;
use super::linear::Linear;
use super::parts::Parts;
use super::peft::PeftConfig;
use super::predictor::SignalPredictor;
use super::signal::{SignalStem, SignalTop, SignalTransformerConfig, Spectra};
use super::split::{inside, outside};
use super::weights::Weights;
use super::{dim, use_threads, values};
use crate::learn::{
    Activations, BackPredictor, Cut, FrontPredictor, Kept, LearnError, Prediction, Predictor,
    TensorSet,
};

/// A device's half.
#[derive(Debug)]
pub struct SignalFrontPredictor {
    config: SignalTransformerConfig,
    cut: Cut,
    threads: NonZeroU16,
    base: Weights,
    plan: AdapterPlan,
    spectra: Spectra,
    stem: SignalStem,
}

impl SignalFrontPredictor {
    /// On the front's tensors of a base, whose values it may share with whoever trains; bare until an adapter
    /// is loaded. `plan` has the front's part of the adapter.
    pub(super) fn new(
        base: Weights,
        plan: AdapterPlan,
        config: SignalTransformerConfig,
        cut: Cut,
        threads: NonZeroU16,
    ) -> Result<Self, LearnError> {
        let spectra = Spectra::new(&config)?;
        let stem = SignalStem::new(&Parts::bare(&base), &config, cut.blocks)?;
        Ok(Self { config, cut, threads, base, plan, spectra, stem })
    }
}

impl FrontPredictor for SignalFrontPredictor {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        let applied = self.plan.apply(&self.base, &self.plan.flatten(adapter)?)?;
        self.stem = SignalStem::new(&applied.parts(), &self.config, self.cut.blocks)?;
        Ok(())
    }

    fn pass(&mut self, x: &[f32], len: usize) -> Result<Activations, LearnError> {
        self.config.check_windows(x, len)?;
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        outside(&self.stem.forward(&self.spectra.forward(x)?)?)
    }
}

/// The whole model of an edge, and its back.
#[derive(Debug)]
pub struct SplitPredictor {
    whole: SignalPredictor,
    config: SignalTransformerConfig,
    cut: Cut,
    last: Back,
    before: Option<Back>,
}

/// What is behind the cut, on one set of weights.
#[derive(Debug)]
struct Back {
    top: SignalTop,
    head: Linear,
}

impl Back {
    fn new(
        parts: &Parts<'_>,
        config: &SignalTransformerConfig,
        cut: Cut,
    ) -> Result<Self, LearnError> {
        Ok(Self { top: SignalTop::new(parts, config, cut.blocks)?, head: config.head(parts)? })
    }
}

impl SplitPredictor {
    /// Serves the bare base, whole and from the cut on, until an adapter is loaded.
    ///
    /// # Errors
    /// [`LearnError`] when base, sizes, targets and cut don't fit together, or the head isn't behind the cut.
    pub fn new(
        base: &TensorSet,
        config: SignalTransformerConfig,
        peft: &PeftConfig,
        cut: Cut,
        threads: NonZeroU16,
    ) -> Result<Self, LearnError> {
        cut.check(config.layers)?;
        if cut.head_in_front {
            return Err(LearnError::OutOfRange {
                what: "place of the head",
                expected: "behind the cut: who has it answers".into(),
                actual: "in the front".into(),
            });
        }
        let whole = SignalPredictor::new(base, config, peft, threads)?;
        let last = Back::new(&Parts::bare(whole.base()), &config, cut)?;
        Ok(Self { whole, config, cut, last, before: None })
    }
}

impl Predictor for SplitPredictor {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        // The back first: when it can't be made the whole stays as it is.
        let applied = self.whole.applied(adapter)?;
        let next = Back::new(&applied.parts(), &self.config, self.cut)?;
        self.whole.put(&applied)?;
        self.before = Some(std::mem::replace(&mut self.last, next));
        Ok(())
    }

    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
        self.whole.predict(x, len)
    }
}

impl BackPredictor for SplitPredictor {
    fn finish(&mut self, at_cut: &Activations, with: Kept) -> Result<Vec<Prediction>, LearnError> {
        let back = match with {
            Kept::Last => Some(&self.last),
            Kept::Before => self.before.as_ref(),
        };
        let Back { top, head } = back.ok_or_else(|| LearnError::OutOfRange {
            what: "adapter of a back",
            expected: "one that is kept".into(),
            actual: "one before the first".into(),
        })?;
        let n = at_cut.shape.first().copied().unwrap_or_default();
        let SignalTransformerConfig { block, classes, .. } = self.config;
        let shape = [dim(n)?, self.config.tokens().into(), block.d_model.into()];
        let _guard = tch::no_grad_guard();
        use_threads(self.whole.threads());
        let logits = values(&head.forward(&top.forward(&inside(at_cut, &shape)?)?)?)?;
        if let Some(index) = logits.iter().position(|z| !z.is_finite()) {
            return Err(LearnError::NotFinite { name: "logits".into(), index });
        }
        Ok(logits.chunks(classes as usize).map(Prediction::of_logits).collect())
    }
}

#[cfg(test)]
#[path = "split_predictor_tests.rs"]
mod tests;
