//! Local training of an adapter on one device's windows.
//!
//! ```text
//! seeded batch -> augmented -> spectra -> model(base + adapter) -> CE (+ FedDistill)
//!      flat  <- AdamW <- gradient + mu (w - start)
//! ```

use std::num::NonZeroU16;

use tch::{Kind, Reduction, Tensor};

use super::adamw::{AdamW, AdamWConfig};
use super::lora::{AdapterPlan, LoraConfig};
use super::signal::{SignalTransformer, SignalTransformerConfig, Spectra};
use super::weights::Weights;
use super::{dim, evaluate, tensor, use_threads};
use crate::learn::{
    Augment, Batches, ClassLogits, Control, LearnError, Learner, Progress, TensorSet, TrainJob,
    Trained, Windows,
};
use crate::rng::Stream;

/// What doesn't change from job to job.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerConfig {
    /// Sizes of the model.
    pub model: SignalTransformerConfig,
    /// What trains.
    pub lora: LoraConfig,
    /// Changes of the windows that keep their labels.
    pub augment: Augment,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// Threads of libtorch on the lane that trains.
    pub threads: NonZeroU16,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            model: SignalTransformerConfig::default(),
            lora: LoraConfig::default(),
            augment: Augment::default(),
            adamw: AdamWConfig::default(),
            threads: NonZeroU16::MIN,
        }
    }
}

/// Trains adapters of one base.
#[derive(Debug)]
pub struct SignalLearner {
    config: TrainerConfig,
    base: Weights,
    plan: AdapterPlan,
    spectra: Spectra,
    initial: TensorSet,
}

impl SignalLearner {
    /// Takes a base; the adapter's factors start from `seed`, which all nodes share.
    ///
    /// # Errors
    /// [`LearnError`] when base, sizes and targets don't fit together.
    pub fn new(base: &TensorSet, config: TrainerConfig, seed: u64) -> Result<Self, LearnError> {
        config.model.check()?;
        base.check_layout(&config.model.layout())?;
        base.check_finite()?;
        let plan = AdapterPlan::new(&base.layout(), &config.lora)?;
        Ok(Self {
            initial: plan.initial(base, seed)?,
            base: Weights::from_set(base)?,
            spectra: Spectra::new(&config.model)?,
            plan,
            config,
        })
    }

    /// Starts a run at `start`; each [`Run::step`] changes it by one batch.
    ///
    /// # Errors
    /// [`LearnError`] when the adapter isn't one of this base.
    pub(super) fn run(&self, start: &TensorSet) -> Result<Run<'_>, LearnError> {
        let start = self.plan.flatten(start)?;
        let flat = start.f_detach_copy()?.f_set_requires_grad(true)?;
        let adamw = AdamW::new(&flat, self.config.adamw)?;
        Ok(Run { learner: self, start, flat, adamw })
    }

    fn check(&self, data: &Windows, job: &TrainJob) -> Result<(), LearnError> {
        let model = &self.config.model;
        let bad = |what, expected: String, actual: String| {
            Err(LearnError::OutOfRange { what, expected, actual })
        };
        check_windows(data, model)?;
        if job.steps == 0 || job.batch_size == 0 {
            let actual = format!("{} x {}", job.steps, job.batch_size);
            return bad("steps and batch size", "both positive".into(), actual);
        }
        let positive = job.learning_rate > 0.0 && job.learning_rate.is_finite();
        if !positive {
            return bad("learning rate", "positive".into(), job.learning_rate.to_string());
        }
        for (what, weight) in
            [("FedProx mu", job.prox_mu), ("FedDistill lambda", job.distill_lambda)]
        {
            if !(weight >= 0.0 && weight.is_finite()) {
                return bad(what, "0 or more".into(), weight.to_string());
            }
        }
        if let Some(targets) = &job.class_targets {
            let classes = data.classes;
            if targets.counts.len() != classes || targets.mean_logits.len() != classes * classes {
                let actual = format!("{} and {}", targets.counts.len(), targets.mean_logits.len());
                return bad(
                    "class targets",
                    format!("{classes} and {}", classes * classes),
                    actual,
                );
            }
            if let Some(index) = targets.mean_logits.iter().position(|x| !x.is_finite()) {
                return Err(LearnError::NotFinite { name: "class targets".into(), index });
            }
        }
        Ok(())
    }
}

impl Learner for SignalLearner {
    fn initial_adapter(&self) -> TensorSet {
        self.initial.clone()
    }

    fn train(
        &mut self,
        data: &Windows,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        self.check(data, job)?;
        use_threads(self.config.threads);
        let mut run = self.run(&job.start)?;
        let mut batches = Batches::new(data.num_examples(), Stream::new(job.seed, "batch"));
        let mut changes = Stream::new(job.seed, "augment");
        let distill = match &job.class_targets {
            Some(targets) if job.distill_lambda > 0.0 => {
                Some(Distill::new(targets, job.distill_lambda)?)
            }
            _ => None,
        };
        let mut losses = Vec::new();
        for step in 1..=job.steps {
            let (x, y) = self.gather(data, &batches.next(job.batch_size as usize), &mut changes)?;
            let terms = Terms { prox_mu: job.prox_mu.into(), distill: distill.as_ref() };
            let loss = run.step(&x, &y, job.learning_rate.into(), &terms)?;
            losses.push(loss);
            if progress(Progress { step, loss }) == Control::Stop {
                break;
            }
        }
        let weights = run.weights()?;
        let model = SignalTransformer::new(&weights, &self.config.model)?;
        let logits = evaluate::logits(&model, &self.spectra, &data.x, data.len)?;
        let adapter = self.plan.unflatten(&run.flat)?;
        adapter.check_finite()?;
        Ok(Trained {
            adapter,
            class_logits: ClassLogits::of(&logits, &data.labels, data.classes),
            num_examples: data.num_examples() as u64,
            steps: u32::try_from(losses.len()).unwrap_or(u32::MAX),
            loss_first: mean(losses.iter().take(losses.len().div_ceil(10))),
            loss_last: mean(losses.iter().rev().take(losses.len().div_ceil(10))),
        })
    }
}

impl SignalLearner {
    /// Spectra and labels of a batch, augmented.
    pub(super) fn gather(
        &self,
        data: &Windows,
        batch: &[usize],
        changes: &mut Stream,
    ) -> Result<(Tensor, Tensor), LearnError> {
        let mut x = Vec::with_capacity(batch.len() * data.len);
        let mut y = Vec::with_capacity(batch.len());
        for at in batch {
            let (Some(row), Some(label)) = (data.row(*at), data.labels.get(*at)) else { continue };
            let from = x.len();
            x.extend_from_slice(row);
            if let Some(window) = x.get_mut(from..) {
                self.config.augment.apply(changes, window);
            }
            y.push(dim(*label)?);
        }
        Ok((self.spectra.forward(&x)?, Tensor::f_from_slice(&y)?))
    }
}

/// Checks that windows fit a model.
pub(super) fn check_windows(
    data: &Windows,
    model: &SignalTransformerConfig,
) -> Result<(), LearnError> {
    let bad = |what, expected: String, actual: String| {
        Err(LearnError::OutOfRange { what, expected, actual })
    };
    if data.len != model.window as usize {
        return bad("samples a window", model.window.to_string(), data.len.to_string());
    }
    if data.classes != model.classes as usize {
        return bad("classes", model.classes.to_string(), data.classes.to_string());
    }
    if data.labels.is_empty() || data.x.len() != data.labels.len().saturating_mul(data.len) {
        let expected = format!("{} windows of {}, at least one", data.labels.len(), data.len);
        return bad("samples", expected, data.x.len().to_string());
    }
    if let Some(label) = data.labels.iter().find(|l| **l >= data.classes) {
        return bad("label", format!("below {}", data.classes), label.to_string());
    }
    if let Some(index) = data.x.iter().position(|x| !x.is_finite()) {
        return Err(LearnError::NotFinite { name: "windows".into(), index });
    }
    Ok(())
}

/// Terms beside the cross-entropy on labels.
#[derive(Debug, Default)]
pub(super) struct Terms<'a> {
    /// FedProx mu.
    pub(super) prox_mu: f64,
    /// The federation's soft labels.
    pub(super) distill: Option<&'a Distill>,
}

/// FedDistill's targets: a softmax a class (arXiv:1811.11479).
#[derive(Debug)]
pub(super) struct Distill {
    /// `[C, C]` probabilities.
    targets: Tensor,
    /// `[C]`: lambda where the class has a target, else 0.
    weights: Tensor,
}

impl Distill {
    fn new(targets: &ClassLogits, lambda: f32) -> Result<Self, LearnError> {
        let classes = dim(targets.counts.len())?;
        let logits = tensor(&targets.mean_logits, &[classes, classes])?;
        let weight = |n: &u64| if *n > 0 { lambda } else { 0.0 };
        let weights: Vec<f32> = targets.counts.iter().map(weight).collect();
        Ok(Self {
            targets: logits.f_softmax(1, Kind::Float)?,
            weights: tensor(&weights, &[classes])?,
        })
    }

    /// Weighted cross-entropy against the target of each example's class, mean over the batch.
    fn loss(&self, log_probabilities: &Tensor, y: &Tensor) -> Result<Tensor, LearnError> {
        let targets = self.targets.f_index_select(0, y)?;
        let cross = log_probabilities.f_mul(&targets)?;
        let each = cross.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?.f_neg()?;
        Ok(each.f_mul(&self.weights.f_index_select(0, y)?)?.f_mean(Kind::Float)?)
    }
}

/// One training run: a flat buffer and its optimiser.
#[derive(Debug)]
pub(super) struct Run<'a> {
    learner: &'a SignalLearner,
    start: Tensor,
    flat: Tensor,
    adamw: AdamW,
}

impl Run<'_> {
    /// One optimiser step on spectra `[n, tokens, bins]` and labels `[n]`; gives the mean loss
    /// without the proximal term.
    pub(super) fn step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        learning_rate: f64,
        terms: &Terms<'_>,
    ) -> Result<f32, LearnError> {
        let weights = self.weights()?;
        let model = SignalTransformer::new(&weights, &self.learner.config.model)?;
        let loss = batch_loss(&model.forward(x)?, y, terms.distill)?;
        let value = loss.f_double_value(&[])?;
        if !value.is_finite() {
            return Err(LearnError::NotFinite { name: "loss".into(), index: 0 });
        }
        let gradients = Tensor::f_run_backward(&[&loss], &[&self.flat], false, false)?;
        let Some(gradient) = gradients.into_iter().next() else {
            let message = "no gradient came back".into();
            return Err(LearnError::Engine { engine: "libtorch", message });
        };
        let gradient = if terms.prox_mu > 0.0 {
            let away = self.flat.f_detach()?.f_sub(&self.start)?;
            gradient.f_add(&away.f_mul_scalar(terms.prox_mu)?)?
        } else {
            gradient
        };
        self.adamw.step(&mut self.flat, &gradient, learning_rate)?;
        #[expect(clippy::cast_possible_truncation, reason = "the loss was an f32")]
        Ok(value as f32)
    }

    /// The base with the adapter as it is now.
    pub(super) fn weights(&self) -> Result<Weights, LearnError> {
        self.learner.plan.effective(&self.learner.base, &self.flat)
    }

    /// The adapter as it is now.
    pub(super) fn adapter(&self) -> Result<TensorSet, LearnError> {
        self.learner.plan.unflatten(&self.flat)
    }
}

/// Cross-entropy of logits `[n, C]` with labels `[n]`, mean over the batch, plus FedDistill's.
fn batch_loss(
    logits: &Tensor,
    y: &Tensor,
    distill: Option<&Distill>,
) -> Result<Tensor, LearnError> {
    let log_probabilities = logits.f_log_softmax(-1, Kind::Float)?;
    let loss = log_probabilities.f_nll_loss(y, None::<&Tensor>, Reduction::Mean, -100)?;
    match distill {
        Some(distill) => Ok(loss.f_add(&distill.loss(&log_probabilities, y)?)?),
        None => Ok(loss),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "few losses")]
fn mean<'a>(losses: impl ExactSizeIterator<Item = &'a f32>) -> f32 {
    let n = losses.len().max(1) as f64;
    (losses.map(|l| f64::from(*l)).sum::<f64>() / n) as f32
}
