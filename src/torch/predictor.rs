//! Answers with one base and the adapter that was loaded last.

use std::num::NonZeroU16;

use super::adapter::{AdapterPlan, Applied};
use super::parts::Parts;
use super::peft::PeftConfig;
use super::signal::{SignalTransformer, SignalTransformerConfig, Spectra};
use super::weights::Weights;
use super::{evaluate, use_threads};
use crate::learn::{LearnError, Prediction, Predictor, TensorSet};

/// Serves windows. An adapter that can be merged is, when it is loaded, so that an answer costs what it
/// costs without one.
#[derive(Debug)]
pub struct SignalPredictor {
    config: SignalTransformerConfig,
    threads: NonZeroU16,
    base: Weights,
    plan: AdapterPlan,
    spectra: Spectra,
    model: SignalTransformer,
}

impl SignalPredictor {
    /// Serves the bare base until an adapter is loaded.
    ///
    /// # Errors
    /// [`LearnError`] when base, sizes and targets don't fit together.
    pub fn new(
        base: &TensorSet,
        config: SignalTransformerConfig,
        peft: &PeftConfig,
        threads: NonZeroU16,
    ) -> Result<Self, LearnError> {
        config.check()?;
        SignalTransformerConfig::check_peft(peft)?;
        base.check_layout(&config.layout())?;
        base.check_finite()?;
        let weights = Weights::from_set(base)?;
        Ok(Self {
            model: SignalTransformer::new(&Parts::bare(&weights), &config)?,
            plan: AdapterPlan::new(&base.layout(), peft)?,
            spectra: Spectra::new(&config)?,
            base: weights,
            config,
            threads,
        })
    }

    /// Logits `[n, classes]` row-major of windows `[n, window]`.
    ///
    /// # Errors
    /// [`LearnError`] when `len` isn't the model's or an input isn't finite.
    pub fn logits(&self, x: &[f32], len: usize) -> Result<Vec<f32>, LearnError> {
        self.config.check_windows(x, len)?;
        use_threads(self.threads);
        evaluate::logits(&self.model, &self.spectra, x, len)
    }

    /// The base alone.
    pub(super) fn base(&self) -> &Weights {
        &self.base
    }

    /// Threads that an answer takes.
    pub(super) fn threads(&self) -> NonZeroU16 {
        self.threads
    }

    /// The base with an adapter.
    pub(super) fn applied(&self, adapter: &TensorSet) -> Result<Applied, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        self.plan.apply(&self.base, &self.plan.flatten(adapter)?)
    }

    /// Answers by it from now on.
    pub(super) fn put(&mut self, applied: &Applied) -> Result<(), LearnError> {
        self.model = SignalTransformer::new(&applied.parts(), &self.config)?;
        Ok(())
    }
}

impl Predictor for SignalPredictor {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        let applied = self.applied(adapter)?;
        self.put(&applied)
    }

    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
        let logits = self.logits(x, len)?;
        Ok(logits.chunks(self.config.classes as usize).map(Prediction::of_logits).collect())
    }
}
