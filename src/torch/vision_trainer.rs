//! Trains adapters of a vision transformer on grey images, and answers with them.
//!
//! ```text
//! seeded batch -> scaled, three colours alike -> model(base + adapter) -> CE
//!     flat <- AdamW <- gradient + mu (w - start)
//! ```

use std::num::NonZeroU16;

use tch::{Kind, Tensor};

use super::adamw::{AdamW, AdamWConfig};
use super::adapter::AdapterPlan;
use super::cuttable::Cuttable;
use super::parts::Parts;
use super::peft::PeftConfig;
use super::trainer::{Distill, Terms, batch_loss, check_targets, log_prior};
use super::vision::{VisionConfig, VisionTransformer};
use super::weights::Weights;
use super::{dim, use_threads, values};
use crate::learn::{
    Batches, ClassLogits, Control, Examples, Images, LearnError, Learner, PassEnd, Prediction,
    Predictor, Progress, TensorSet, TrainJob, Trained,
};
use crate::rng::Stream;

/// What doesn't change from job to job.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionTrainerConfig {
    /// Sizes of the model; with classes.
    pub model: VisionConfig,
    /// Mean of the pixels after division by 255.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
    /// What trains.
    pub peft: PeftConfig,
    /// As of windows: [`super::TrainerConfig::correct_prior`].
    pub correct_prior: bool,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// Threads of libtorch on the lane that trains or answers.
    pub threads: NonZeroU16,
}

/// Trains adapters of one base.
#[derive(Debug)]
pub struct VisionLearner {
    config: VisionTrainerConfig,
    base: Weights,
    plan: AdapterPlan,
    initial: TensorSet,
}

impl VisionLearner {
    /// Takes a base; the adapter's factors start from `seed`, which all nodes share.
    ///
    /// # Errors
    /// [`LearnError`] when base, sizes and targets don't fit together.
    pub fn new(
        base: &TensorSet,
        config: VisionTrainerConfig,
        seed: u64,
    ) -> Result<Self, LearnError> {
        let (base, plan) = config.parts_of(base)?;
        Ok(Self { initial: plan.initial(&base, seed)?, base, plan, config })
    }
}

impl Learner for VisionLearner {
    fn initial_adapter(&self) -> TensorSet {
        self.initial.clone()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let Self { config, base, plan, .. } = self;
        let images = data.images()?;
        use_threads(config.threads);
        let (x, counts) = config.read(data)?;
        let steps = job.check_for(images.num_examples())?;
        job.without_lesson("a vision transformer")?;
        if let Some(targets) = &job.class_targets {
            check_targets(targets, images.classes)?;
        }
        let y = Tensor::f_from_slice(&images.labels)?.f_to_kind(Kind::Int64)?;
        let prior = config.correct_prior.then(|| log_prior(&counts)).transpose()?;
        let distill = match &job.class_targets {
            Some(targets) if job.distill_lambda > 0.0 => {
                Some(Distill::new(targets, job.distill_lambda)?)
            }
            _ => None,
        };
        let terms = Terms { log_prior: prior.as_ref(), distill: distill.as_ref() };
        let start = plan.flatten(&job.start)?;
        let mut flat = start.f_detach_copy()?.f_set_requires_grad(true)?;
        let mut adamw = AdamW::new(&flat, config.adamw)?;
        let mut batches = Batches::new(images.num_examples(), Stream::new(job.seed, "batch"))
            .ending(PassEnd::of(job, PassEnd::FilledUp));
        let mut losses = Vec::new();
        for step in 1..=steps {
            let batch = batches.next(job.batch_size as usize);
            let rows = batch.iter().map(|row| dim(*row)).collect::<Result<Vec<_>, _>>()?;
            let rows = Tensor::f_from_slice(&rows)?;
            let applied = plan.apply(base, &flat)?;
            let model = VisionTransformer::new(&applied.parts(), &config.model)?;
            let logits = model.forward(&coloured(&x.f_index_select(0, &rows)?)?)?;
            let loss = batch_loss(&logits, &y.f_index_select(0, &rows)?, &terms)?;
            let value = loss.f_double_value(&[])?;
            if !value.is_finite() {
                return Err(LearnError::NotFinite { name: "loss".into(), index: 0 });
            }
            let gradients = Tensor::f_run_backward(&[&loss], &[&flat], false, false)?;
            let Some(mut gradient) = gradients.into_iter().next() else {
                let message = "no gradient came back".into();
                return Err(LearnError::Engine { engine: "libtorch", message });
            };
            if job.prox_mu > 0.0 {
                let away = flat.f_detach()?.f_sub(&start)?;
                gradient = gradient.f_add(&away.f_mul_scalar(f64::from(job.prox_mu))?)?;
            }
            adamw.step(&mut flat, &gradient, job.rate_at(step, steps).into())?;
            #[expect(clippy::cast_possible_truncation, reason = "the loss was an f32")]
            let loss = value as f32;
            losses.push(loss);
            if progress(Progress { step, loss }) == Control::Stop {
                break;
            }
        }
        let class_logits = if job.class_logits {
            let labels: Vec<usize> = images.labels.iter().map(|label| (*label).into()).collect();
            let applied = plan.apply(base, &flat)?;
            let model = VisionTransformer::new(&applied.parts(), &config.model)?;
            ClassLogits::of(&logits(&model, &x)?, &labels, images.classes)
        } else {
            ClassLogits::default()
        };
        let adapter = plan.unflatten(&flat)?;
        adapter.check_finite()?;
        Ok(Trained { class_logits, ..Trained::of(adapter, images.num_examples(), &losses) })
    }
}

/// Answers with one base and the adapter that was loaded last.
#[derive(Debug)]
pub struct VisionPredictor {
    config: VisionTrainerConfig,
    base: Weights,
    plan: AdapterPlan,
    model: VisionTransformer,
}

impl VisionPredictor {
    /// Answers with the bare base until an adapter is loaded.
    ///
    /// # Errors
    /// [`LearnError`] when base, sizes and targets don't fit together.
    pub fn new(base: &TensorSet, config: VisionTrainerConfig) -> Result<Self, LearnError> {
        let (base, plan) = config.parts_of(base)?;
        let model = VisionTransformer::new(&Parts::bare(&base), &config.model)?;
        Ok(Self { config, base, plan, model })
    }
}

impl Predictor for VisionPredictor {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.config.threads);
        let applied = self.plan.apply(&self.base, &self.plan.flatten(adapter)?)?;
        self.model = VisionTransformer::new(&applied.parts(), &self.config.model)?;
        Ok(())
    }

    /// Predicts images of `len` pixels, 0 to 255.
    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
        let pixels = self.config.pixels();
        if len != pixels || !x.len().is_multiple_of(len) {
            return Err(LearnError::OutOfRange {
                what: "pixels of an image",
                expected: format!("{pixels}, and whole images"),
                actual: format!("{len}, {} in all", x.len()),
            });
        }
        if let Some(index) = x.iter().position(|pixel| !pixel.is_finite()) {
            return Err(LearnError::NotFinite { name: "image".into(), index });
        }
        if x.is_empty() {
            return Ok(Vec::new());
        }
        use_threads(self.config.threads);
        let logits = logits(&self.model, &self.config.input(&Tensor::f_from_slice(x)?)?)?;
        let classes = self.config.model.classes.unwrap_or(1) as usize;
        Ok(logits.chunks(classes).map(Prediction::of_logits).collect())
    }
}

impl VisionTrainerConfig {
    /// Checks sizes, scale and what trains.
    pub(super) fn check_model(&self) -> Result<(), LearnError> {
        let bad = |what, expected: &str, actual: String| {
            Err(LearnError::OutOfRange { what, expected: expected.to_owned(), actual })
        };
        self.model.check()?;
        if self.model.classes.is_none_or(|classes| classes < 2) {
            return bad("classes", "at least 2", format!("{:?}", self.model.classes));
        }
        if !(self.mean.is_finite() && self.deviation.is_finite() && self.deviation > 0.0) {
            let actual = format!("{}, {}", self.mean, self.deviation);
            return bad("mean and deviation of pixels", "finite, the latter positive", actual);
        }
        if self.peft.prompts > 0 {
            let actual = self.peft.prompts.to_string();
            return bad("prompts of a vision transformer", "none (take deep_prompts)", actual);
        }
        Ok(())
    }

    /// Checks the sizes, and gives the base as tensors with the plan of its adapter.
    fn parts_of(&self, base: &TensorSet) -> Result<(Weights, AdapterPlan), LearnError> {
        self.check_model()?;
        base.check_layout(&self.model.layout())?;
        base.check_finite()?;
        Ok((Weights::from_set(base)?, AdapterPlan::new(&base.layout(), &self.peft)?))
    }

    /// Pixels of an image.
    fn pixels(&self) -> usize {
        self.model.image as usize * self.model.image as usize
    }

    /// Pixels as the model takes them, but for the colours: `[n, 1, image, image]`.
    pub(super) fn input(&self, pixels: &Tensor) -> Result<Tensor, LearnError> {
        let side = i64::from(self.model.image);
        let x = pixels.f_reshape([-1, 1, side, side])?.f_to_kind(Kind::Float)?;
        // (p / 255 - mean) / deviation in two kernels
        let x = x.f_mul_scalar(1.0 / (255.0 * self.deviation))?;
        Ok(x.f_sub_scalar(self.mean / self.deviation)?)
    }

    pub(super) fn check_images(&self, images: &Images) -> Result<(), LearnError> {
        let bad = |what, expected: String, actual: String| {
            Err(LearnError::OutOfRange { what, expected, actual })
        };
        let Images { pixels, width, height, labels, classes } = images;
        let (side, wanted) = (self.model.image as usize, self.model.classes.unwrap_or(0) as usize);
        if (*height, *width) != (side, side) {
            return bad("images", format!("{side} x {side}"), format!("{height} x {width}"));
        }
        if *classes != wanted {
            return bad("classes", wanted.to_string(), classes.to_string());
        }
        if labels.is_empty() || pixels.len() != labels.len().saturating_mul(self.pixels()) {
            let expected = format!("{} images, at least one", labels.len());
            return bad("pixels", expected, pixels.len().to_string());
        }
        match labels.iter().find(|label| usize::from(**label) >= *classes) {
            Some(label) => bad("label", format!("below {classes}"), label.to_string()),
            None => Ok(()),
        }
    }
}

/// Images of each class, `[C]`.
pub(super) fn class_counts(images: &Images) -> Vec<u64> {
    let of = |class: usize| images.labels.iter().filter(move |at| usize::from(**at) == class);
    (0..images.classes).map(|class| of(class).count() as u64).collect()
}

/// Grey `[n, 1, h, w]` as three colours alike.
pub(super) fn coloured(x: &Tensor) -> Result<Tensor, LearnError> {
    Ok(x.f_expand([-1, 3, -1, -1], false)?)
}

/// Logits `[n, C]` row-major of scaled images, some at a time.
fn logits(model: &VisionTransformer, x: &Tensor) -> Result<Vec<f32>, LearnError> {
    let _guard = tch::no_grad_guard();
    let mut all = Vec::new();
    for part in x.f_split(ROWS, 0)? {
        all.extend(values(&model.forward(&coloured(&part)?)?)?);
    }
    Ok(all)
}

/// Images that are judged at once: bounds what an evaluation needs.
const ROWS: i64 = 256;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::torch::LoraConfig;

    pub(in crate::torch) fn config(peft: PeftConfig) -> VisionTrainerConfig {
        let model = VisionConfig {
            image: 12,
            patch: 4,
            d_model: 16,
            layers: 2,
            heads: 2,
            d_ff: 32,
            norm_eps: 1e-5,
            classes: Some(3),
        };
        VisionTrainerConfig {
            model,
            mean: 0.3,
            deviation: 0.3,
            peft,
            correct_prior: true,
            adamw: AdamWConfig::default(),
            threads: NonZeroU16::MIN,
        }
    }

    fn base() -> TensorSet {
        config(PeftConfig::none()).model.initial_weights(&mut Stream::new(1, "weights"))
    }

    /// Stripes in noise: across, upright, or a chequerboard; a patch is enough to tell.
    pub(in crate::torch) fn stripes(n: usize, seed: u64) -> Images {
        let mut stream = Stream::new(seed, "stripes");
        let mut images = Images { width: 12, height: 12, classes: 3, ..Images::default() };
        for label in (0..3).cycle().take(n) {
            for (y, x) in (0..144).map(|at| (at / 12, at % 12)) {
                let place = [y, x, x + y];
                let bright = if place[label] % 2 == 0 { 150 } else { 0 };
                images.pixels.push(bright + u8::try_from(stream.below(80)).unwrap());
            }
            images.labels.push(u8::try_from(label).unwrap());
        }
        images
    }

    fn job(start: TensorSet, steps: u32) -> TrainJob {
        TrainJob { class_logits: true, ..TrainJob::plain(start, steps, 12, 0.005, 4) }
    }

    fn share_right(predictor: &mut VisionPredictor, images: &Images) -> f32 {
        let x: Vec<f32> = images.pixels.iter().map(|pixel| f32::from(*pixel)).collect();
        let answers = predictor.predict(&x, 144).unwrap();
        let right = answers.iter().zip(&images.labels);
        let right = right.filter(|(answer, label)| answer.class == usize::from(**label)).count();
        f32::from(u8::try_from(right).unwrap()) / f32::from(u8::try_from(answers.len()).unwrap())
    }

    #[test]
    fn each_kind_of_adapter_learns_and_the_predictor_says_what_it_has_learned() {
        let head = PeftConfig::whole(vec!["head".into()]);
        let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
        for peft in [
            PeftConfig::whole(vec!["*".into()]),
            PeftConfig { lora: Some(lora), ..head.clone() },
            PeftConfig { deep_prompts: 2, ..head.clone() },
            PeftConfig { bottleneck: 4, ..head },
        ] {
            let mut learner = VisionLearner::new(&base(), config(peft.clone()), 3).unwrap();
            let start = learner.initial_adapter();
            let data = stripes(60, 1);
            let job = job(start.clone(), 100);
            let trained = learner.train(&data.clone().into(), &job, &mut |_| Control::Continue);
            let trained = trained.unwrap();
            let (first, last) = (trained.loss_first, trained.loss_last);
            assert!(last < 0.5 * first, "{peft:?} {first} {last}");
            let again = learner.train(&data.into(), &job, &mut |_| Control::Continue).unwrap();
            assert_eq!(again.adapter, trained.adapter, "a seed gives the same adapter");
            let mut predictor = VisionPredictor::new(&base(), config(peft)).unwrap();
            predictor.load(&trained.adapter).unwrap();
            assert!(share_right(&mut predictor, &stripes(60, 2)) > 0.9);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let whole = || config(PeftConfig::whole(vec!["*".into()]));
        let mut learner = VisionLearner::new(&base(), whole(), 3).unwrap();
        let job = job(learner.initial_adapter(), 1);
        let mut refused = |images: Images| {
            let told = learner.train(&images.into(), &job, &mut |_| Control::Continue);
            told.unwrap_err().kind()
        };
        let wide = Images { width: 24, height: 6, ..stripes(3, 1) };
        let many = Images { classes: 4, ..stripes(3, 1) };
        let short = Images { pixels: vec![0; 144], ..stripes(3, 1) };
        for bad in [wide, many, short, stripes(0, 1)] {
            assert_eq!(refused(bad), "out_of_range");
        }
        let headless = VisionTrainerConfig {
            model: VisionConfig { classes: None, ..whole().model },
            ..whole()
        };
        assert!(VisionLearner::new(&base(), headless, 3).is_err());
        let flat = VisionTrainerConfig { deviation: 0.0, ..whole() };
        assert!(VisionLearner::new(&base(), flat, 3).is_err());
        let prompts = config(PeftConfig { prompts: 2, ..PeftConfig::none() });
        assert!(VisionPredictor::new(&base(), prompts).is_err());
    }
}
