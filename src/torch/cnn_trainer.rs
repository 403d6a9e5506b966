//! Trains and serves the network of `cnn.rs`, as the federated benchmarks do: SGD with momentum, which
//! begins anew each round, mean cross-entropy, whole passes whose last batch may be short.

use std::num::NonZeroU16;

use tch::{Kind, Tensor};

use super::cnn::{Cnn, CnnConfig, SIDE, WIDTH, flattened};
use super::split::finite;
use super::trainer::{Distill, Pull, Terms, Towards, batch_loss, check_targets};
use super::{dim, use_threads, values};
use crate::learn::{
    Batches, ClassLogits, Control, Examples, Images, Layout, LearnError, Learner, Lesson, PassEnd,
    Prediction, Predictor, Progress, Prototypes, Tensor as Values, TensorSet, TrainJob, Trained,
};
use crate::rng::Stream;

/// What doesn't change from job to job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CnnTrainerConfig {
    /// The network.
    pub model: CnnConfig,
    /// Momentum of SGD, 0 up to but not 1.
    pub momentum: f64,
    /// Weight decay of SGD, 0 up to but not 1: so much of a weight is added to its gradient.
    pub weight_decay: f64,
    /// Threads of libtorch on the lane that trains.
    pub threads: NonZeroU16,
}

impl CnnTrainerConfig {
    /// Checks network, momentum and weight decay.
    pub(super) fn check(&self) -> Result<(), LearnError> {
        self.model.check()?;
        for (what, value) in [("momentum", self.momentum), ("weight decay", self.weight_decay)] {
            if !(0.0..1.0).contains(&value) {
                let (expected, actual) = ("0 up to but not 1".to_owned(), value.to_string());
                return Err(LearnError::OutOfRange { what, expected, actual });
            }
        }
        Ok(())
    }
}

/// Trains the whole network on one client's images.
#[derive(Debug)]
pub struct CnnLearner {
    config: CnnTrainerConfig,
    initial: TensorSet,
}

impl CnnLearner {
    /// The starting weights come from `seed`, which all nodes share.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the network or the momentum can't be.
    pub fn new(config: CnnTrainerConfig, seed: u64) -> Result<Self, LearnError> {
        config.check()?;
        Ok(Self { initial: config.model.initial(seed)?, config })
    }
}

impl Learner for CnnLearner {
    fn initial_adapter(&self) -> TensorSet {
        self.initial.clone()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let images = data.images()?;
        check_images(images, &self.config.model)?;
        let steps = job.check_for(images.num_examples())?;
        if let Some(lesson) = &job.lesson {
            check_lesson(lesson, images.classes)?;
        }
        if let Some(targets) = &job.class_targets {
            check_targets(targets, images.classes)?;
        }
        job.start.check_layout(&self.config.model.layout())?;
        use_threads(self.config.threads);
        // Scaled once a round, then batches are rows of it.
        let x = self.config.model.input(&Tensor::f_from_slice(&images.pixels)?)?;
        let y = Tensor::f_from_slice(&images.labels)?.f_to_kind(Kind::Int64)?;
        let distill = match &job.class_targets {
            Some(targets) if job.distill_lambda > 0.0 => {
                Some(Distill::new(targets, job.distill_lambda)?)
            }
            _ => None,
        };
        let terms = Terms { distill: distill.as_ref(), log_prior: None };
        let pull = Pull::of(job.lesson.as_ref(), WIDTH)?;
        let towards = Towards { prox_mu: job.prox_mu.into(), pull: pull.as_ref() };
        let mut run = Run::new(&job.start, job.start.layout(), &self.config)?;
        let mut passes = Batches::new(images.num_examples(), Stream::new(job.seed, "batch"))
            .ending(PassEnd::Short);
        let mut losses = Vec::new();
        for step in 1..=steps {
            let rows = rows_of(&passes.next(job.batch_size as usize))?;
            let (x, y) = (x.f_index_select(0, &rows)?, y.f_index_select(0, &rows)?);
            let loss = run.step(&x, &y, job.rate_at(step, steps), &terms, &towards)?;
            losses.push(loss);
            if progress(Progress { step, loss }) == Control::Stop {
                break;
            }
        }
        let (class_logits, prototypes) = if job.class_logits {
            let labels: Vec<usize> = images.labels.iter().map(|label| (*label).into()).collect();
            let (embeddings, logits) = both(&run.net, &x)?;
            let prototypes = Prototypes::of(&embeddings, &labels, images.classes)?;
            (ClassLogits::of(&logits, &labels, images.classes), Some(prototypes))
        } else {
            (ClassLogits::default(), None)
        };
        let trained = Trained::of(run.weights()?, images.num_examples(), &losses);
        Ok(Trained { class_logits, prototypes, ..trained })
    }
}

/// One training run of the network or a half of it: all weights in one buffer, so that the optimiser is a
/// few kernels.
#[derive(Debug)]
pub(super) struct Run {
    layout: Layout,
    start: Tensor,
    flat: Tensor,
    velocity: Tensor,
    momentum: f64,
    weight_decay: f64,
    pub(super) net: Cnn,
}

impl Run {
    pub(super) fn new(
        start: &TensorSet,
        layout: Layout,
        config: &CnnTrainerConfig,
    ) -> Result<Self, LearnError> {
        let start = flattened(start)?;
        let flat = start.f_detach_copy()?;
        let net = Cnn::over(&flat, &layout, true)?;
        let CnnTrainerConfig { momentum, weight_decay, .. } = *config;
        Ok(Self {
            layout,
            velocity: flat.f_zeros_like()?,
            momentum,
            weight_decay,
            start,
            flat,
            net,
        })
    }

    /// One step of the whole network; gives the mean loss without the proximal term.
    fn step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        rate: f32,
        terms: &Terms<'_>,
        towards: &Towards<'_>,
    ) -> Result<f32, LearnError> {
        let embeddings = self.net.embed(x)?;
        let mut loss = batch_loss(&self.net.classify(&embeddings)?, y, terms)?;
        if let Some(pull) = towards.pull {
            loss = loss.f_add(&pull.loss(&embeddings, y)?)?;
        }
        let value = finite(&loss)?;
        let (gradient, _) = self.gradient(&loss, None, towards.prox_mu)?;
        self.apply(&gradient, rate)?;
        Ok(value)
    }

    /// The gradient of `of` with weight decay and the proximal term, as one row; and that at a leaf outside, where one is
    /// asked for.
    pub(super) fn gradient(
        &self,
        of: &Tensor,
        outside: Option<&Tensor>,
        prox_mu: f64,
    ) -> Result<(Tensor, Option<Tensor>), LearnError> {
        let leaves: Vec<&Tensor> = self.net.leaves().iter().chain(outside).collect();
        let mut gradients = Tensor::f_run_backward(&[of], &leaves, false, false)?;
        let at_outside = outside.and_then(|_| gradients.pop());
        let _guard = tch::no_grad_guard();
        let mut parts = Vec::with_capacity(gradients.len());
        for gradient in &gradients {
            parts.push(gradient.f_flatten(0, -1)?);
        }
        let mut gradient = Tensor::f_cat(&parts, 0)?;
        if self.weight_decay > 0.0 {
            gradient = gradient.f_add(&self.flat.f_mul_scalar(self.weight_decay)?)?;
        }
        if prox_mu > 0.0 {
            let away = self.flat.f_sub(&self.start)?;
            gradient = gradient.f_add(&away.f_mul_scalar(prox_mu)?)?;
        }
        Ok((gradient, at_outside))
    }

    /// v <- m v + g, w <- w - rate v.
    pub(super) fn apply(&mut self, gradient: &Tensor, rate: f32) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let _ = self.velocity.f_mul_scalar_(self.momentum)?.f_add_(gradient)?;
        let moved = self.velocity.f_mul_scalar(f64::from(rate))?;
        let _ = self.flat.f_sub_(&moved)?;
        Ok(())
    }

    /// The weights as they are now.
    pub(super) fn weights(&self) -> Result<TensorSet, LearnError> {
        let mut flat = values(&self.flat)?.into_iter();
        let mut tensors = Vec::with_capacity(self.layout.0.len());
        for (name, shape) in &self.layout.0 {
            let data = flat.by_ref().take(shape.iter().product()).collect();
            tensors.push(Values { name: name.clone(), shape: shape.clone(), data });
        }
        let weights = TensorSet::new(tensors)?;
        weights.check_finite()?;
        Ok(weights)
    }
}

/// Answers with the weights that were loaded last; before, with those of its seed.
#[derive(Debug)]
pub struct CnnPredictor {
    config: CnnConfig,
    threads: NonZeroU16,
    net: Cnn,
}

impl CnnPredictor {
    /// A predictor that starts with the weights of `seed`.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the network can't be.
    pub fn new(config: CnnConfig, seed: u64, threads: NonZeroU16) -> Result<Self, LearnError> {
        config.check()?;
        let net = Cnn::over(&flattened(&config.initial(seed)?)?, &config.layout(), false)?;
        Ok(Self { config, threads, net })
    }

    /// Share of images whose class it names, 0 to 1; none of no images is 0.
    ///
    /// # Errors
    /// [`LearnError`] when the images aren't the network's.
    #[expect(clippy::cast_precision_loss, reason = "counts of images")]
    pub fn accuracy(&self, images: &Images) -> Result<f64, LearnError> {
        check_images(images, &self.config)?;
        use_threads(self.threads);
        let _guard = tch::no_grad_guard();
        let (size, mut right) = (SIDE * SIDE, 0_i64);
        for (pixels, labels) in images.pixels.chunks(ROWS * size).zip(images.labels.chunks(ROWS)) {
            let x = self.config.input(&Tensor::f_from_slice(pixels)?)?;
            let y = Tensor::f_from_slice(labels)?.f_to_kind(Kind::Int64)?;
            let named = self.net.forward(&x)?.f_argmax(1, false)?;
            right += named.f_eq_tensor(&y)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        }
        Ok(right as f64 / images.num_examples().max(1) as f64)
    }
}

impl Predictor for CnnPredictor {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        adapter.check_layout(&self.config.layout())?;
        adapter.check_finite()?;
        self.net = Cnn::over(&flattened(adapter)?, &self.config.layout(), false)?;
        Ok(())
    }

    /// Predicts images of `len` pixels, 0 to 255.
    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
        if len != SIDE * SIDE || !x.len().is_multiple_of(len) {
            return Err(LearnError::OutOfRange {
                what: "pixels of an image",
                expected: format!("{}, and whole images", SIDE * SIDE),
                actual: format!("{len}, {} in all", x.len()),
            });
        }
        if let Some(index) = x.iter().position(|pixel| !pixel.is_finite()) {
            return Err(LearnError::NotFinite { name: "image".into(), index });
        }
        if x.is_empty() {
            return Ok(Vec::new());
        }
        use_threads(self.threads);
        let (_, logits) = both(&self.net, &self.config.input(&Tensor::f_from_slice(x)?)?)?;
        Ok(logits.chunks(self.config.classes as usize).map(Prediction::of_logits).collect())
    }
}

/// Numbers of rows as libtorch takes them.
pub(super) fn rows_of(batch: &[usize]) -> Result<Tensor, LearnError> {
    let rows = batch.iter().map(|row| dim(*row)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_from_slice(&rows)?)
}

/// Embeddings `[n, WIDTH]` and logits `[n, C]`, row-major, of scaled images, a thousand at a time.
fn both(net: &Cnn, x: &Tensor) -> Result<(Vec<f32>, Vec<f32>), LearnError> {
    let _guard = tch::no_grad_guard();
    let (mut embeddings, mut logits) = (Vec::new(), Vec::new());
    for part in x.f_split(dim(ROWS)?, 0)? {
        let embedded = net.embed(&part)?;
        logits.extend(values(&net.classify(&embedded)?)?);
        embeddings.extend(values(&embedded)?);
    }
    Ok((embeddings, logits))
}

/// Prototypes can be taught; reference inputs are windows of samples, which no image is.
fn check_lesson(lesson: &Lesson, classes: usize) -> Result<(), LearnError> {
    let windows = lesson.windows.num_examples();
    if windows > 0 {
        return Err(LearnError::OutOfRange {
            what: "reference inputs",
            expected: "none: this network takes images".into(),
            actual: format!("{windows} windows"),
        });
    }
    if lesson.generator.is_some() {
        return Err(LearnError::OutOfRange {
            what: "generator of latents",
            expected: "none: this network learns of images and prototypes".into(),
            actual: "one".into(),
        });
    }
    lesson.check(classes)
}

pub(super) fn check_images(images: &Images, model: &CnnConfig) -> Result<(), LearnError> {
    let bad = |what, expected: String, actual: String| {
        Err(LearnError::OutOfRange { what, expected, actual })
    };
    let Images { pixels, width, height, labels, classes } = images;
    if (*height, *width) != (SIDE, SIDE) {
        return bad("images", format!("{SIDE} x {SIDE}"), format!("{height} x {width}"));
    }
    if *classes != model.classes as usize {
        return bad("classes", model.classes.to_string(), classes.to_string());
    }
    if labels.is_empty() || pixels.len() != labels.len().saturating_mul(SIDE * SIDE) {
        let expected = format!("{} images, at least one", labels.len());
        return bad("pixels", expected, pixels.len().to_string());
    }
    match labels.iter().find(|label| usize::from(**label) >= *classes) {
        Some(label) => bad("label", format!("below {classes}"), label.to_string()),
        None => Ok(()),
    }
}

/// Images that are judged at once: bounds what an evaluation needs.
const ROWS: usize = 1_000;

#[cfg(test)]
#[path = "cnn_trainer_tests.rs"]
pub(in crate::torch) mod tests;
