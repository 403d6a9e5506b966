//! Local training of an adapter on one device's windows.
//!
//! ```text
//! seeded batch -> augmented -> spectra -> model(base + adapter) -> CE (+ FedDistill, FedProto)
//! reference batch ----------> spectra -> model(base + adapter) -> CE with a lesson's targets
//! generated latents --------------------> its last layer alone -> CE with their classes
//!      flat  <- AdamW <- gradient + mu (w - start)
//! ```

use std::num::NonZeroU16;

use tch::{Kind, Reduction, Tensor};

use super::adamw::{AdamW, AdamWConfig};
use super::adapter::{AdapterPlan, Applied};
use super::peft::PeftConfig;
use super::signal::{SignalTransformer, SignalTransformerConfig, Spectra};
use super::weights::Weights;
use super::{dim, evaluate, tensor, use_threads};
use crate::learn::{
    Augment, Batches, ClassHead, ClassLogits, Control, Examples, Latents, LearnError, Learner,
    Lesson, PassEnd, Progress, Prototypes, TensorSet, TrainJob, Trained, Windows,
};
use crate::rng::Stream;

/// What doesn't change from job to job.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerConfig {
    /// Sizes of the model.
    pub model: SignalTransformerConfig,
    /// What trains.
    pub peft: PeftConfig,
    /// Changes of the windows that keep their labels.
    pub augment: Augment,
    /// Add the logarithm of each class's share on this device to the logits inside the loss, so that
    /// a plant that never saw a class doesn't teach the others that there is none
    /// (arXiv:2007.10740, arXiv:2304.05260).
    pub correct_prior: bool,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// Threads of libtorch on the lane that trains.
    pub threads: NonZeroU16,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            model: SignalTransformerConfig::default(),
            peft: PeftConfig::default(),
            augment: Augment::default(),
            correct_prior: true,
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
        SignalTransformerConfig::check_peft(&config.peft)?;
        base.check_layout(&config.model.layout())?;
        base.check_finite()?;
        let plan = AdapterPlan::new(&base.layout(), &config.peft)?;
        let base = Weights::from_set(base)?;
        Ok(Self {
            initial: plan.initial(&base, seed)?,
            base,
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

    /// Gives the job's steps over the data.
    fn check(&self, data: &Windows, job: &TrainJob) -> Result<u32, LearnError> {
        let model = &self.config.model;
        let lesson = job.lesson.as_ref();
        let taught = lesson.filter(|lesson| lesson.windows.num_examples() > 0);
        let generated =
            lesson.is_some_and(|l| l.generator_for(model.block.d_model as usize).is_some());
        if data.num_examples() > 0 || (taught.is_none() && !generated) {
            check_windows(data, model)?;
        }
        if let Some(lesson) = taught {
            check_windows(&lesson.windows, model)?;
        }
        if let Some(lesson) = lesson {
            lesson.check(model.classes as usize)?;
        }
        if let Some(targets) = &job.class_targets {
            check_targets(targets, data.classes)?;
        }
        job.check_for(data.num_examples())
    }

    /// Spectra and targets of reference samples, as they are.
    fn teach(
        &self,
        lesson: &Lesson,
        batch: &[usize],
        classes: usize,
    ) -> Result<Taught, LearnError> {
        let mut x = Vec::with_capacity(batch.len() * lesson.windows.len);
        let mut targets = Vec::with_capacity(batch.len() * classes);
        for at in batch {
            let target = lesson.targets.chunks_exact(classes).nth(*at);
            let (Some(row), Some(target)) = (lesson.windows.row(*at), target) else { continue };
            x.extend_from_slice(row);
            targets.extend_from_slice(target);
        }
        let shape = [dim(targets.len() / classes)?, dim(classes)?];
        Ok(Taught {
            x: self.spectra.forward(&x)?,
            targets: tensor(&targets, &shape)?,
            weight: lesson.weight.into(),
            embedded: false,
        })
    }
}

impl Learner for SignalLearner {
    fn initial_adapter(&self) -> TensorSet {
        self.initial.clone()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let data = data.windows()?;
        let steps = self.check(data, job)?;
        use_threads(self.config.threads);
        let mut run = self.run(&job.start)?;
        let mut batches = Batches::new(data.num_examples(), Stream::new(job.seed, "batch"))
            .ending(PassEnd::of(job, PassEnd::FilledUp));
        let mut changes = Stream::new(job.seed, "augment");
        let distill = match &job.class_targets {
            Some(targets) if job.distill_lambda > 0.0 => {
                Some(Distill::new(targets, job.distill_lambda)?)
            }
            _ => None,
        };
        let lesson = job.lesson.as_ref().filter(|lesson| lesson.windows.num_examples() > 0);
        let own = data.num_examples() > 0;
        // Without a weight the reference counts only where there is nothing else.
        let mut references = lesson.filter(|lesson| lesson.weight > 0.0 || !own).map(|lesson| {
            Batches::new(lesson.windows.num_examples(), Stream::new(job.seed, "reference"))
        });
        let classes = self.config.model.classes as usize;
        let width = self.config.model.block.d_model as usize;
        let pull = Pull::of(job.lesson.as_ref(), width)?;
        let generator = job.lesson.as_ref().and_then(|lesson| lesson.generator_for(width));
        let mut draws = Stream::new(job.seed, "latents");
        let prior = if own && self.config.correct_prior {
            Some(log_prior(&class_counts(data))?)
        } else {
            None
        };
        let terms = Terms { log_prior: prior.as_ref(), distill: distill.as_ref() };
        let towards = Towards { prox_mu: job.prox_mu.into(), pull: pull.as_ref() };
        let size = job.batch_size as usize;
        let mut losses = Vec::new();
        for step in 1..=steps {
            let batch = if own {
                Some(self.gather(data, &batches.next(size), &mut changes)?)
            } else {
                None
            };
            let mut taught = Vec::new();
            if let (Some(lesson), Some(references)) = (lesson, &mut references) {
                taught.push(self.teach(lesson, &references.next(size), classes)?);
            }
            if let (Some(lesson), Some(generator)) = (&job.lesson, generator) {
                let latents = generator.latents(size, &mut draws);
                taught.push(Taught::of_latents(&latents, classes, lesson.generator_weight)?);
            }
            let batch = batch.as_ref().map(|(x, y)| (x, y));
            let rate = job.rate_at(step, steps).into();
            let loss = run.step(batch, &taught, rate, &terms, &towards)?;
            losses.push(loss);
            if progress(Progress { step, loss }) == Control::Stop {
                break;
            }
        }
        let applied = run.applied()?;
        let model = SignalTransformer::new(&applied.parts(), &self.config.model)?;
        let (class_logits, prototypes, head) = if job.class_logits {
            let (embeddings, logits) = evaluate::both(&model, &self.spectra, &data.x, data.len)?;
            let prototypes = Prototypes::of(&embeddings, &data.labels, classes).ok();
            let class_logits = ClassLogits::of(&logits, &data.labels, classes);
            let (weights, biases) = evaluate::head(&model, width)?;
            let head = ClassHead::of(&weights, &biases, &embeddings, &data.labels);
            (class_logits, prototypes, Some(head))
        } else {
            (ClassLogits::default(), None, None)
        };
        let reference_logits = match lesson {
            Some(Lesson { windows, .. }) => {
                evaluate::logits(&model, &self.spectra, &windows.x, windows.len)?
            }
            None => Vec::new(),
        };
        let adapter = self.plan.unflatten(&run.flat)?;
        adapter.check_finite()?;
        let trained = Trained::of(adapter, data.num_examples(), &losses);
        Ok(Trained { class_logits, reference_logits, prototypes, head, ..trained })
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
        let (x, labels) = windows_of(data, batch, &self.config.augment, changes);
        Ok((self.spectra.forward(&x)?, labels_of(&labels)?))
    }
}

/// Samples and labels of a batch, augmented.
pub(super) fn windows_of(
    data: &Windows,
    batch: &[usize],
    augment: &Augment,
    changes: &mut Stream,
) -> (Vec<f32>, Vec<usize>) {
    let mut x = Vec::with_capacity(batch.len() * data.len);
    let mut labels = Vec::with_capacity(batch.len());
    for at in batch {
        let (Some(row), Some(label)) = (data.row(*at), data.labels.get(*at)) else { continue };
        let from = x.len();
        x.extend_from_slice(row);
        if let Some(window) = x.get_mut(from..) {
            augment.apply(changes, window);
        }
        labels.push(*label);
    }
    (x, labels)
}

/// Labels as libtorch takes them, `[n]`.
pub(super) fn labels_of(labels: &[usize]) -> Result<Tensor, LearnError> {
    let labels = labels.iter().map(|label| dim(*label)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_from_slice(&labels)?)
}

/// Examples of each class, `[C]`.
pub(super) fn class_counts(data: &Windows) -> Vec<u64> {
    let count = |class| data.labels.iter().filter(|label| **label == class).count() as u64;
    (0..data.classes).map(count).collect()
}

/// Checks the federation's mean logits a class.
pub(super) fn check_targets(targets: &ClassLogits, classes: usize) -> Result<(), LearnError> {
    if targets.counts.len() != classes || targets.mean_logits.len() != classes * classes {
        return Err(LearnError::OutOfRange {
            what: "class targets",
            expected: format!("{classes} and {}", classes * classes),
            actual: format!("{} and {}", targets.counts.len(), targets.mean_logits.len()),
        });
    }
    match targets.mean_logits.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(LearnError::NotFinite { name: "class targets".into(), index }),
        None => Ok(()),
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

/// Terms on logits beside the cross-entropy on labels, for [`batch_loss`].
#[derive(Debug, Default)]
pub(super) struct Terms<'a> {
    /// `[C]`, see [`log_prior`].
    pub(super) log_prior: Option<&'a Tensor>,
    /// The federation's soft labels.
    pub(super) distill: Option<&'a Distill>,
}

/// What draws a run of the whole model somewhere, for [`Run::step`].
#[derive(Debug, Default)]
pub(super) struct Towards<'a> {
    /// FedProx mu, towards the start.
    pub(super) prox_mu: f64,
    /// Embeddings towards the federation's prototypes.
    pub(super) pull: Option<&'a Pull>,
}

/// A batch of a lesson.
#[derive(Debug)]
pub(super) struct Taught {
    /// `[n, tokens, bins]`, or `[n, E]`.
    x: Tensor,
    /// `[n, C]` probabilities.
    targets: Tensor,
    weight: f64,
    /// Latents, of which the classification layer alone learns.
    embedded: bool,
}

impl Taught {
    fn of_latents(latents: &Latents, classes: usize, weight: f32) -> Result<Self, LearnError> {
        let n = latents.labels.len();
        let x = tensor(&latents.x, &[dim(n)?, -1])?;
        let targets =
            labels_of(&latents.labels)?.f_one_hot(dim(classes)?)?.f_to_kind(Kind::Float)?;
        Ok(Self { x, targets, weight: weight.into(), embedded: true })
    }
}

/// The squared distance to the class's prototype (`FedProto`, arXiv:2105.00243).
#[derive(Debug)]
pub(super) struct Pull {
    /// `[C, E]`.
    points: Tensor,
    /// `[C]`: lambda where the class has a point, else 0.
    weights: Tensor,
}

impl Pull {
    /// What a lesson draws embeddings of this width to, if it has points of that width.
    pub(super) fn of(lesson: Option<&Lesson>, width: usize) -> Result<Option<Self>, LearnError> {
        match lesson {
            Some(Lesson { prototypes: Some(points), prototype_weight, .. })
                if points.width() == width && *prototype_weight > 0.0 =>
            {
                Self::new(points, *prototype_weight).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn new(prototypes: &Prototypes, weight: f32) -> Result<Self, LearnError> {
        let classes = dim(prototypes.counts.len())?;
        let known = |n: &u64| if *n > 0 { weight } else { 0.0 };
        let weights: Vec<f32> = prototypes.counts.iter().map(known).collect();
        Ok(Self {
            points: tensor(&prototypes.means, &[classes, dim(prototypes.width())?])?,
            weights: tensor(&weights, &[classes])?,
        })
    }

    /// Mean over the batch and over the values of an embedding.
    pub(super) fn loss(&self, embeddings: &Tensor, y: &Tensor) -> Result<Tensor, LearnError> {
        let away = embeddings.f_sub(&self.points.f_index_select(0, y)?)?.f_square()?;
        let each = away.f_mean_dim([1].as_slice(), false, Kind::Float)?;
        Ok(each.f_mul(&self.weights.f_index_select(0, y)?)?.f_mean(Kind::Float)?)
    }
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
    pub(super) fn new(targets: &ClassLogits, lambda: f32) -> Result<Self, LearnError> {
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
    /// One optimiser step on own spectra `[n, tokens, bins]` with labels `[n]`, on a lesson's batches, or on
    /// both; gives the mean loss on the own ones (else on the lesson) without the proximal term.
    pub(super) fn step(
        &mut self,
        own: Option<(&Tensor, &Tensor)>,
        taught: &[Taught],
        learning_rate: f64,
        terms: &Terms<'_>,
        towards: &Towards<'_>,
    ) -> Result<f32, LearnError> {
        let applied = self.applied()?;
        let model = SignalTransformer::new(&applied.parts(), &self.learner.config.model)?;
        let mut parts = Vec::new();
        if let Some((x, y)) = own {
            let embeddings = model.embed(x)?;
            let mut loss = batch_loss(&model.classify(&embeddings)?, y, terms)?;
            if let Some(pull) = towards.pull {
                loss = loss.f_add(&pull.loss(&embeddings, y)?)?;
            }
            parts.push(loss);
        }
        for taught in taught {
            let said = if taught.embedded {
                model.classify(&taught.x)?
            } else {
                model.forward(&taught.x)?
            };
            let said = said.f_log_softmax(-1, Kind::Float)?;
            let cross = said.f_mul(&taught.targets)?;
            let each = cross.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
            parts.push(each.f_mean(Kind::Float)?.f_mul_scalar(-taught.weight)?);
        }
        let Some(first) = parts.first() else {
            return Err(LearnError::NoUpdates);
        };
        let value = first.f_double_value(&[])?;
        let mut loss = first.shallow_clone();
        for more in parts.iter().skip(1) {
            loss = loss.f_add(more)?;
        }
        if !value.is_finite() {
            return Err(LearnError::NotFinite { name: "loss".into(), index: 0 });
        }
        let gradients = Tensor::f_run_backward(&[&loss], &[&self.flat], false, false)?;
        let Some(gradient) = gradients.into_iter().next() else {
            let message = "no gradient came back".into();
            return Err(LearnError::Engine { engine: "libtorch", message });
        };
        let gradient = if towards.prox_mu > 0.0 {
            let away = self.flat.f_detach()?.f_sub(&self.start)?;
            gradient.f_add(&away.f_mul_scalar(towards.prox_mu)?)?
        } else {
            gradient
        };
        self.adamw.step(&mut self.flat, &gradient, learning_rate)?;
        #[expect(clippy::cast_possible_truncation, reason = "the loss was an f32")]
        Ok(value as f32)
    }

    /// The base with the adapter as it is now.
    fn applied(&self) -> Result<Applied, LearnError> {
        self.learner.plan.apply(&self.learner.base, &self.flat)
    }

    /// The adapter as it is now.
    pub(super) fn adapter(&self) -> Result<TensorSet, LearnError> {
        self.learner.plan.unflatten(&self.flat)
    }
}

/// Cross-entropy of logits `[n, C]` with labels `[n]`, mean over the batch, plus FedDistill's.
pub(super) fn batch_loss(
    logits: &Tensor,
    y: &Tensor,
    terms: &Terms<'_>,
) -> Result<Tensor, LearnError> {
    let with_prior = match terms.log_prior {
        Some(prior) => logits.f_add(prior)?,
        None => logits.shallow_clone(),
    };
    let log_probabilities = with_prior.f_log_softmax(-1, Kind::Float)?;
    let loss = log_probabilities.f_nll_loss(y, None::<&Tensor>, Reduction::Mean, -100)?;
    match terms.distill {
        Some(distill) => {
            let plain = logits.f_log_softmax(-1, Kind::Float)?;
            Ok(loss.f_add(&distill.loss(&plain, y)?)?)
        }
        None => Ok(loss),
    }
}

/// Logarithm of each class's share on a device, from its examples a class, `[C]`; absent classes get -10,000.
///
/// Added to the logits inside the loss only, it makes the model explain its labels *given* the
/// device's mix. Without it a plant that never saw a class would teach everyone that there is none,
/// and devices with different mixes would pull the shared head apart.
///
/// # Source
/// Ren et al. 2020, arXiv:2007.10740 (balanced softmax); Legate et al. 2023, arXiv:2304.05260, for
/// federations.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "f32 logits")]
pub(super) fn log_prior(counts: &[u64]) -> Result<Tensor, LearnError> {
    let all: u64 = counts.iter().fold(0, |sum, n| sum.saturating_add(*n));
    let share = |n: &u64| if *n == 0 { ABSENT } else { (*n as f64 / all as f64).ln() as f32 };
    let prior: Vec<f32> = counts.iter().map(share).collect();
    tensor(&prior, &[dim(counts.len())?])
}

/// Far below any logit, yet finite.
const ABSENT: f32 = -1e4;

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test signals are f32")]
pub(super) mod tests {
    use super::*;
    use crate::torch::signal::tests::tiny;
    use crate::torch::{LoraConfig, values};

    fn base() -> TensorSet {
        tiny().initial_weights(&mut Stream::new(1, "weights"))
    }

    fn config() -> TrainerConfig {
        let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect();
        TrainerConfig {
            model: tiny(),
            peft: PeftConfig {
                lora: Some(LoraConfig {
                    rank: 2,
                    alpha: 4.0,
                    targets: words(&["q", "up"]),
                    ..LoraConfig::default()
                }),
                ..PeftConfig::default()
            },
            ..TrainerConfig::default()
        }
    }

    fn learner() -> SignalLearner {
        SignalLearner::new(&base(), config(), 3).unwrap()
    }

    /// Tones of three pitches in noise: a task that so small a model can learn.
    pub(in crate::torch) fn tones(n: usize, seed: u64) -> Windows {
        let mut stream = Stream::new(seed, "tones");
        let mut data = Windows { len: 64, classes: 3, ..Windows::default() };
        for label in (0..3).cycle().take(n) {
            let rate = [0.4, 1.1, 2.2][label];
            let phase = stream.range(0.0, 6.3);
            let noisy = |i: i32| (rate * f64::from(i) + phase).sin() + 0.3 * stream.normal();
            data.x.extend((0..64).map(noisy).map(|x| x as f32));
            data.labels.push(label);
        }
        data
    }

    fn job(learner: &SignalLearner, steps: u32) -> TrainJob {
        TrainJob {
            class_logits: true,
            ..TrainJob::plain(learner.initial_adapter(), steps, 12, 0.02, 4)
        }
    }

    fn train(job: &TrainJob) -> Trained {
        learner().train(&tones(30, 1).into(), job, &mut |_| Control::Continue).unwrap()
    }

    fn distance(a: &TensorSet, b: &TensorSet) -> f64 {
        let pairs = a.tensors().iter().zip(b.tensors());
        let squares = pairs.flat_map(|(a, b)| a.data.iter().zip(&b.data)).map(|(a, b)| a - b);
        squares.map(|d| f64::from(d).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        gradient_is_that_of_differences(&learner());
    }

    /// They can't be merged into the base's weights.
    #[test]
    fn so_it_is_of_tokens_and_bottlenecks_beside_the_base() {
        let peft = PeftConfig { deep_prompts: 2, bottleneck: 3, ..PeftConfig::none() };
        let learner = SignalLearner::new(&base(), TrainerConfig { peft, ..config() }, 3).unwrap();
        let names: Vec<String> = learner.plan.layout().0.into_iter().map(|(n, _)| n).collect();
        assert!(names.contains(&"blocks.1.prompts".to_owned()), "{names:?}");
        gradient_is_that_of_differences(&learner);
        let peft = PeftConfig { prompts: 2, ..PeftConfig::none() };
        let error = SignalLearner::new(&base(), TrainerConfig { peft, ..config() }, 3).unwrap_err();
        assert!(error.to_string().contains("deep_prompts"), "{error}");
    }

    fn gradient_is_that_of_differences(learner: &SignalLearner) {
        let (plan, model) = (&learner.plan, &learner.config.model);
        // Away from the start, where B = 0 would hide the gradient of A.
        let mut at = learner.initial_adapter();
        let mut stream = Stream::new(9, "move");
        for data in at.values_mut() {
            for x in data {
                *x += 0.1 * stream.normal() as f32;
            }
        }
        let data = tones(6, 2);
        let x = learner.spectra.forward(&data.x).unwrap();
        let y = Tensor::f_from_slice(&[0_i64, 1, 2, 0, 1, 2]).unwrap();
        let loss = |flat: &Tensor| {
            let applied = plan.apply(&learner.base, flat).unwrap();
            let model = SignalTransformer::new(&applied.parts(), model).unwrap();
            let logits = model.forward(&x).unwrap();
            batch_loss(&logits, &y, &Terms::default()).unwrap()
        };
        let flat = plan.flatten(&at).unwrap().f_set_requires_grad(true).unwrap();
        let gradients = Tensor::f_run_backward(&[&loss(&flat)], &[&flat], false, false).unwrap();
        let gradient = values(&gradients[0]).unwrap();
        let mut offset = 0;
        for tensor in at.tensors() {
            // Along a random direction within each tensor: all its entries count.
            let n = tensor.data.len();
            let mut direction = vec![0.0_f32; gradient.len()];
            for d in &mut direction[offset..offset + n] {
                *d = stream.normal() as f32;
            }
            offset += n;
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            let along = crate::torch::tensor(&direction, &flat.size()).unwrap();
            let value = |step: f64| {
                let moved = flat.f_detach().unwrap() + &along * step;
                loss(&moved).f_double_value(&[]).unwrap()
            };
            let differences = (value(1e-2) - value(-1e-2)) / 2e-2;
            let tolerance = 2e-3 + 0.02 * slope.abs();
            assert!(
                (slope - differences).abs() < tolerance,
                "{}: {slope} {differences}",
                tensor.name
            );
            assert!(slope.abs() > 1e-6, "{} has no gradient", tensor.name);
        }
    }

    #[test]
    fn training_lowers_the_loss_and_moves_nothing_but_the_adapter() {
        let mut learner = learner();
        let data = tones(30, 1);
        let start = job(&learner, 60);
        let trained = learner.train(&data.into(), &start, &mut |_| Control::Continue).unwrap();
        assert!(trained.loss_last < 0.6 * trained.loss_first, "{trained:?}");
        assert_eq!(learner.base.to_set().unwrap(), base(), "the base is frozen");
        assert_eq!(learner.initial_adapter(), start.start);
        assert_eq!(trained.adapter.layout(), start.start.layout());
        for (before, after) in start.start.tensors().iter().zip(trained.adapter.tensors()) {
            assert_ne!(before.data, after.data, "{} trains", before.name);
        }
        assert_eq!((trained.num_examples, trained.steps), (30, 60));
        assert_eq!(trained.class_logits.counts, [10, 10, 10]);
        let rows: Vec<&[f32]> = trained.class_logits.mean_logits.chunks(3).collect();
        assert!(rows[0][0] > rows[0][1] && rows[1][1] > rows[1][2] && rows[2][2] > rows[2][0]);
    }

    #[test]
    fn one_seed_gives_one_adapter() {
        let plain = job(&learner(), 5);
        assert_eq!(train(&plain).adapter, train(&plain).adapter);
        let other = TrainJob { seed: 5, ..plain.clone() };
        assert_ne!(train(&plain).adapter, train(&other).adapter);
    }

    #[test]
    fn the_proximal_term_holds_the_adapter_near_its_start() {
        let free = job(&learner(), 30);
        let held = TrainJob { prox_mu: 10.0, ..free.clone() };
        let moved = |job: &TrainJob| distance(&train(job).adapter, &job.start);
        assert!(moved(&held) < 0.5 * moved(&free), "{} {}", moved(&held), moved(&free));
    }

    #[test]
    fn distillation_adds_the_cross_entropy_with_the_target_of_the_class() {
        let third = 3.0_f32.ln();
        // Class 0 has the target softmax(ln 3, 0) = 3/4, 1/4; class 1 has none.
        let targets = ClassLogits { mean_logits: vec![third, 0.0, 9.0, 9.0], counts: vec![5, 0] };
        let distill = Distill::new(&targets, 0.5).unwrap();
        let logits = tensor(&[0.0, 0.0, 0.0, third], &[2, 2]).unwrap();
        let y = Tensor::f_from_slice(&[0_i64, 1]).unwrap();
        let taught = Terms { distill: Some(&distill), ..Terms::default() };
        let plain =
            batch_loss(&logits, &y, &Terms::default()).unwrap().f_double_value(&[]).unwrap();
        let both = batch_loss(&logits, &y, &taught).unwrap().f_double_value(&[]).unwrap();
        let (ln2, ln43) = (2.0_f64.ln(), (4.0_f64 / 3.0).ln());
        assert!((plain - ln2.midpoint(ln43)).abs() < 1e-6);
        // Mean over two examples of 0.5 x ln 2 (uniform prediction) and 0.
        assert!((both - plain - 0.25 * ln2).abs() < 1e-6, "{both} {plain}");
        let job = job(&learner(), 2);
        let soft = ClassLogits { mean_logits: vec![0.5; 9], counts: vec![20; 3] };
        let taught = TrainJob { class_targets: Some(soft), distill_lambda: 1.0, ..job.clone() };
        assert_ne!(train(&job).adapter, train(&taught).adapter);
    }

    #[test]
    fn a_class_that_a_device_never_saw_is_not_unlearned() {
        // Examples of classes 0 and 1 only: the third logit must get no gradient at all.
        let prior = log_prior(&[1, 3, 0]).unwrap();
        let terms = Terms { log_prior: Some(&prior), ..Terms::default() };
        let y = Tensor::f_from_slice(&[0_i64, 1]).unwrap();
        let gradient = |terms: &Terms<'_>| {
            let logits = tensor(&[0.3, -0.2, 0.9, 0.0, 0.1, 0.5], &[2, 3]).unwrap();
            let logits = logits.f_set_requires_grad(true).unwrap();
            let loss = batch_loss(&logits, &y, terms).unwrap();
            let all = Tensor::f_run_backward(&[&loss], &[&logits], false, false).unwrap();
            values(&all[0]).unwrap()
        };
        let (with, without) = (gradient(&terms), gradient(&Terms::default()));
        assert_eq!((with[2], with[5]), (0.0, 0.0));
        assert!(without[2] > 0.1 && without[5] > 0.1, "pushed down without it");
        // Equal logits: the answer is the mix itself, so the mean gradient over the mix is 0.
        let even = tensor(&[0.0; 12], &[4, 3]).unwrap().f_set_requires_grad(true).unwrap();
        let y = Tensor::f_from_slice(&[0_i64, 1, 1, 1]).unwrap();
        let loss = batch_loss(&even, &y, &terms).unwrap();
        let all = Tensor::f_run_backward(&[&loss], &[&even], false, false).unwrap();
        let each = values(&all[0]).unwrap();
        let column: f32 = each.chunks(3).map(|row| row[0]).sum();
        assert!(column.abs() < 1e-6, "{each:?}");
    }

    #[test]
    fn whole_passes_end_with_a_short_batch() {
        let job = TrainJob { epochs: Some(2), ..job(&learner(), 1) };
        let mut steps = 0;
        let trained = learner()
            .train(&tones(30, 1).into(), &job, &mut |_| {
                steps += 1;
                Control::Continue
            })
            .unwrap();
        assert_eq!((trained.steps, steps), (6, 6), "12, 12 and 6, twice");
        // Six steps of twelve would take other examples in the third.
        assert_ne!(trained.adapter, train(&TrainJob { steps: 6, epochs: None, ..job }).adapter);
    }

    #[test]
    fn what_is_said_a_class_comes_when_it_is_asked_for_and_changes_nothing_else() {
        let telling = train(&job(&learner(), 3));
        let silent = train(&TrainJob { class_logits: false, ..job(&learner(), 3) });
        assert_eq!((silent.class_logits, silent.prototypes), (ClassLogits::default(), None));
        assert_eq!(silent.adapter, telling.adapter);
        assert!(telling.prototypes.is_some() && telling.class_logits.counts == [10, 10, 10]);
    }

    #[test]
    fn a_lesson_without_weight_costs_no_step_and_its_inputs_are_answered() {
        let windows = tones(9, 7);
        let targets = crate::learn::reference_targets(None, &windows.labels, 3, 1.0).unwrap();
        let lesson = Lesson {
            windows: std::sync::Arc::new(windows),
            targets,
            weight: 0.0,
            ..Lesson::default()
        };
        let plain = job(&learner(), 4);
        let taught = train(&TrainJob { lesson: Some(lesson), ..plain.clone() });
        assert_eq!(taught.adapter, train(&plain).adapter);
        assert_eq!(taught.reference_logits.len(), 27);
    }

    #[test]
    fn the_layer_that_is_told_says_what_the_model_says() {
        let head = train(&job(&learner(), 20)).head.unwrap();
        let mut learner = learner();
        let trained = train(&job(&learner, 20));
        assert_eq!((head.classes(), head.rows.counts.as_slice()), (3, [10, 10, 10].as_slice()));
        // Mean logits of a class are what the layer says of its mean embedding.
        let points = trained.prototypes.unwrap();
        for class in 0..3 {
            let point = points.row(class).unwrap();
            for said in 0..3 {
                let (weights, bias) = head.rows.row(said).unwrap().split_at(head.width());
                let sum: f32 = point.iter().zip(weights).map(|(x, w)| x * w).sum();
                let wanted = trained.class_logits.mean_logits[class * 3 + said];
                assert!((sum + bias[0] - wanted).abs() < 1e-3, "{class} {said}");
            }
        }
        // Latents alone move the last layer, and nothing else.
        let mut trimmed = head;
        trimmed.trim(5);
        let generator = Some(crate::learn::LatentGenerator::train(&trimmed, 3).unwrap());
        let lesson = Lesson { generator, generator_weight: 1.0, ..Lesson::default() };
        learner.plan =
            AdapterPlan::new(&base().layout(), &PeftConfig::whole(vec!["*".into()])).unwrap();
        learner.initial = learner.plan.initial(&learner.base, 3).unwrap();
        let job = TrainJob { lesson: Some(lesson), class_logits: false, ..job(&learner, 1) };
        let nothing = Windows { len: 64, classes: 3, ..Windows::default() };
        let taught = learner.train(&nothing.into(), &job, &mut |_| Control::Continue).unwrap();
        for (before, after) in job.start.tensors().iter().zip(taught.adapter.tensors()) {
            let moved = before.data.iter().zip(&after.data).any(|(a, b)| (a - b).abs() > 1e-3);
            assert_eq!(moved, before.name.starts_with("head"), "{}", before.name);
        }
    }

    #[test]
    fn a_run_stops_when_it_is_told_to() {
        let mut steps = Vec::new();
        let mut learner = learner();
        let job = job(&learner, 9);
        let stop_at_3 = &mut |at: Progress| {
            steps.push(at.step);
            if at.step == 3 { Control::Stop } else { Control::Continue }
        };
        let trained = learner.train(&tones(12, 1).into(), &job, stop_at_3).unwrap();
        assert_eq!((trained.steps, steps), (3, vec![1, 2, 3]));
    }

    #[test]
    fn jobs_and_windows_that_do_not_fit_are_refused() {
        let mut learner = learner();
        let good = job(&learner, 1);
        let data = tones(6, 1);
        let mut kind = |data: &Windows, job: &TrainJob| {
            learner
                .train(&data.clone().into(), job, &mut |_| Control::Continue)
                .map_or_else(|e| e.kind(), |_| "ok")
        };
        assert_eq!(kind(&data, &good), "ok");
        let range = "out_of_range";
        assert_eq!(kind(&data, &TrainJob { steps: 0, ..good.clone() }), range);
        assert_eq!(kind(&data, &TrainJob { batch_size: 0, ..good.clone() }), range);
        assert_eq!(kind(&data, &TrainJob { learning_rate: f32::NAN, ..good.clone() }), range);
        assert_eq!(kind(&data, &TrainJob { prox_mu: -1.0, ..good.clone() }), range);
        let soft = ClassLogits { mean_logits: vec![0.0; 4], counts: vec![1; 2] };
        assert_eq!(kind(&data, &TrainJob { class_targets: Some(soft), ..good.clone() }), range);
        let start = TensorSet::default();
        assert_eq!(kind(&data, &TrainJob { start, ..good.clone() }), "layout_mismatch");
        assert_eq!(kind(&Windows { len: 63, ..data.clone() }, &good), range);
        assert_eq!(kind(&Windows { classes: 4, ..data.clone() }, &good), range);
        assert_eq!(kind(&Windows { labels: vec![3; 6], ..data.clone() }, &good), range);
        assert_eq!(kind(&Windows { labels: vec![], x: vec![], ..data.clone() }, &good), range);
        let mut broken = data.clone();
        broken.x[70] = f32::INFINITY;
        assert_eq!(kind(&broken, &good), "not_finite");
    }

    #[test]
    fn a_base_of_another_model_is_refused() {
        let wrong = SignalTransformerConfig { layers: 1, ..tiny() };
        let config = TrainerConfig { model: wrong, ..config() };
        let error = SignalLearner::new(&base(), config, 1).unwrap_err();
        assert_eq!(error.kind(), "layout_mismatch");
    }

    #[test]
    fn the_predictor_answers_with_the_trained_adapter_and_keeps_it_on_an_error() {
        use crate::learn::Predictor;
        use crate::torch::SignalPredictor;
        let data = tones(30, 1);
        let trained = train(&job(&learner(), 80));
        let peft = config().peft;
        let threads = NonZeroU16::MIN;
        let mut predictor = SignalPredictor::new(&base(), tiny(), &peft, threads).unwrap();
        let bare = predictor.predict(&data.x, 64).unwrap();
        predictor.load(&learner().initial_adapter()).unwrap();
        let untrained = predictor.predict(&data.x, 64).unwrap();
        for (a, b) in bare.iter().zip(&untrained) {
            let gap = a.probabilities.iter().zip(&b.probabilities).map(|(a, b)| (a - b).abs());
            assert!(gap.fold(0.0, f32::max) < 1e-6, "version 0 is the base");
        }
        predictor.load(&trained.adapter).unwrap();
        let after = predictor.predict(&data.x, 64).unwrap();
        let right = after.iter().zip(&data.labels).filter(|(p, label)| p.class == **label).count();
        assert!(right >= 27, "{right} of 30");
        let logits = predictor.logits(&data.x, 64).unwrap();
        assert_eq!(ClassLogits::of(&logits, &data.labels, 3), trained.class_logits);
        assert_eq!(predictor.load(&TensorSet::default()).unwrap_err().kind(), "layout_mismatch");
        assert_eq!(predictor.predict(&data.x, 64).unwrap(), after);
        assert_eq!(predictor.predict(&data.x, 32).unwrap_err().kind(), "out_of_range");
        assert_eq!(predictor.predict(&[f32::NAN; 64], 64).unwrap_err().kind(), "not_finite");
        assert_eq!(predictor.predict(&[], 64).unwrap(), []);
    }
}
