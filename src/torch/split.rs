//! A model in two halves, each with its part of the adapter and its own AdamW. Which models: `cuttable.rs`.
//!
//! ```text
//! device  batch -> embedding -> blocks 0..k --activations--> blocks k.. -> norm -> mean or class token -> head -> loss  edge
//!                    flat <- AdamW <- J^T g   <---gradient g---              flat <- AdamW, once the front has
//! ```
//! The front is made from its own tensors of the base; it never sees the others. A gradient `g` that comes
//! back goes on through the front as that of `sum(activations * g)`, which is the same.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use tch::{Kind, Tensor};

use super::adamw::AdamW;
use super::adapter::AdapterPlan;
use super::cuttable::{Cuttable, Sizes, Training};
use super::signal::SignalTransformerConfig;
use super::split_predictor::SignalFrontPredictor;
use super::trainer::{
    Distill, Terms, TrainerConfig, batch_loss, check_targets, labels_of, log_prior,
};
use super::weights::Weights;
use super::{dim, tensor, use_threads, values};
use crate::ids::NodeId;
use crate::learn::{
    Activations, BackCopy, BackJob, BackStep, Batches, Cut, Examples, FrontBegun, FrontRun, Layout,
    LearnError, PassEnd, Smashed, SplitBack, SplitFront, TensorSet, TrainJob,
};
use crate::rng::Stream;

/// One half of a cut model: its part of the base, frozen, and what trains in it.
#[derive(Debug)]
struct Half<C> {
    config: C,
    cut: Cut,
    base: Weights,
    plan: AdapterPlan,
    initial: TensorSet,
}

impl<C: Cuttable> Half<C> {
    fn new(
        base: &TensorSet,
        layout: &Layout,
        config: C,
        cut: Cut,
        front: bool,
        seed: u64,
    ) -> Result<Self, LearnError> {
        config.check()?;
        cut.check(config.sizes().layers)?;
        base.check_layout(layout)?;
        base.check_finite()?;
        let whole = AdapterPlan::new(&config.layout(), config.training().peft)?;
        let plan = whole.part(|name| cut.is_front(name) == front)?;
        let base = Weights::from_set(base)?;
        Ok(Self { initial: plan.initial(&base, seed)?, config, cut, base, plan })
    }

    fn trainable(&self, start: &TensorSet) -> Result<Trainable, LearnError> {
        let start = self.plan.flatten(start)?;
        let flat = start.f_detach_copy()?.f_set_requires_grad(true)?;
        let adamw = AdamW::new(&flat, self.config.training().adamw)?;
        let (base, plan) = (self.base.share(), self.plan.clone());
        Ok(Trainable { base, plan, start, flat, adamw })
    }
}

/// What trains in one run of a half.
struct Trainable {
    base: Weights,
    plan: AdapterPlan,
    start: Tensor,
    flat: Tensor,
    adamw: AdamW,
}

impl Trainable {
    fn weights(&self) -> Result<Weights, LearnError> {
        self.plan.merge(&self.base, &self.flat)
    }

    /// The values as they are now, for a graph that outlives the next change of them.
    fn frozen(&self) -> Result<Tensor, LearnError> {
        Ok(self.flat.f_detach_copy()?.f_set_requires_grad(true)?)
    }

    /// The gradient with the proximal term, and its squared length.
    fn whole(&self, gradient: Tensor, prox_mu: f64) -> Result<(Tensor, f64), LearnError> {
        let _guard = tch::no_grad_guard();
        let gradient = if prox_mu > 0.0 {
            let away = self.flat.f_detach()?.f_sub(&self.start)?;
            gradient.f_add(&away.f_mul_scalar(prox_mu)?)?
        } else {
            gradient
        };
        let norm = gradient.f_norm()?.f_to_kind(Kind::Double)?.f_double_value(&[])?;
        if !norm.is_finite() {
            return Err(LearnError::NotFinite { name: "gradient".into(), index: 0 });
        }
        Ok((gradient, norm * norm))
    }

    fn step(&mut self, gradient: &Tensor, squared: f64, rate: f64) -> Result<(), LearnError> {
        self.adamw.step_of(&mut self.flat, gradient, squared.sqrt(), rate)
    }

    fn adapter(&self) -> Result<TensorSet, LearnError> {
        let adapter = self.plan.unflatten(&self.flat)?;
        adapter.check_finite()?;
        Ok(adapter)
    }
}

/// The front half, on a device.
#[derive(Debug)]
pub struct Front<C> {
    half: Half<C>,
    max_memory_mib: Option<u32>,
}

/// The front half of the signal transformer.
pub type SignalFront = Front<TrainerConfig>;

impl<C: Cuttable> Front<C> {
    /// Takes the front's tensors of the base ([`Cut::front_of`] its layout); the adapter's factors start from
    /// `seed`, which all nodes share.
    ///
    /// # Errors
    /// [`LearnError`] when base, sizes, targets and cut don't fit together.
    pub fn new(base: &TensorSet, config: C, cut: Cut, seed: u64) -> Result<Self, LearnError> {
        let layout = cut.front_of(&config.layout());
        Ok(Self { half: Half::new(base, &layout, config, cut, true, seed)?, max_memory_mib: None })
    }

    /// The same under a cap in MiB: a run whose batches would take more is refused.
    #[must_use]
    pub fn within(self, max_memory_mib: Option<u32>) -> Self {
        Self { max_memory_mib, ..self }
    }

    /// Checks what batches of this size would take against the cap.
    fn check_memory(&self, batch: u32) -> Result<(), LearnError> {
        let Half { config, cut, .. } = &self.half;
        let (_, trains) = self.num_values();
        let need =
            config.sizes().front_bytes(&config.layout(), *cut, trains, batch).div_ceil(1 << 20);
        match self.max_memory_mib.filter(|cap| need > u64::from(*cap)) {
            None => Ok(()),
            Some(cap) => Err(LearnError::OutOfRange {
                what: "max_memory_mib",
                expected: format!(
                    "at least {need} for the front of this model (cut {}, batches of {batch})",
                    cut.blocks
                ),
                actual: cap.to_string(),
            }),
        }
    }

    /// Values that this half holds, and values that train in it.
    pub fn num_values(&self) -> (u64, u64) {
        (self.half.base.num_bytes() / 4, self.half.plan.num_values().unsigned_abs())
    }
}

impl SignalFront {
    /// What answers with this half: it shares the base's values.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn predictor(&self, threads: NonZeroU16) -> Result<SignalFrontPredictor, LearnError> {
        let Half { config, cut, base, plan, .. } = &self.half;
        SignalFrontPredictor::new(base.share(), plan.clone(), config.model, *cut, threads)
    }

    /// About how many bytes a run with batches of this size takes, libtorch's own aside.
    pub fn num_bytes(model: &SignalTransformerConfig, cut: Cut, trains: u64, batch: u32) -> u64 {
        Sizes::of_signal(model).front_bytes(&model.layout(), cut, trains, batch)
    }
}

impl<C: Cuttable> SplitFront for Front<C> {
    fn initial_adapter(&self) -> TensorSet {
        self.half.initial.clone()
    }

    fn begin(&self, data: &Examples, job: &TrainJob) -> Result<Box<dyn FrontRun>, LearnError> {
        let Half { config, cut, .. } = &self.half;
        let Training { correct_prior, threads, .. } = config.training();
        self.check_memory(job.batch_size)?;
        use_threads(threads);
        let (reader, counts) = config.read(data)?;
        let num_examples = data.num_examples();
        let steps = job.check_for(num_examples)?;
        job.without_lesson("a split model")?;
        job.without_final_rate("a split model")?;
        let head = if cut.head_in_front {
            let prior = correct_prior.then(|| log_prior(&counts)).transpose()?;
            let classes = config.sizes().classes;
            Some(LossTerms::new(prior, job.class_targets.as_ref(), job.distill_lambda, classes)?)
        } else {
            None
        };
        Ok(Box::new(RunOfFront {
            reader,
            config: config.clone(),
            cut: *cut,
            half: self.half.trainable(&job.start)?,
            batches: Batches::new(num_examples, Stream::new(job.seed, "batch"))
                .ending(PassEnd::of(job, PassEnd::FilledUp)),
            changes: Stream::new(job.seed, "augment"),
            batch_size: job.batch_size as usize,
            learning_rate: job.learning_rate.into(),
            prox_mu: job.prox_mu.into(),
            begun: FrontBegun {
                num_examples: num_examples as u64,
                class_counts: if cut.head_in_front { Vec::new() } else { counts },
                steps,
            },
            head,
            waiting: None,
        }))
    }
}

struct RunOfFront<C: Cuttable> {
    config: C,
    cut: Cut,
    reader: C::Reader,
    half: Trainable,
    batches: Batches,
    changes: Stream,
    batch_size: usize,
    learning_rate: f64,
    prox_mu: f64,
    begun: FrontBegun,
    head: Option<LossTerms>,
    waiting: Option<Waiting>,
}

/// A batch that waits for its gradient.
struct Waiting {
    activations: Tensor,
    weights: Weights,
    y: Tensor,
    /// Of the head, where it is here.
    from_head: Option<Tensor>,
}

impl<C: Cuttable> FrontRun for RunOfFront<C> {
    fn begun(&self) -> FrontBegun {
        self.begun.clone()
    }

    fn forward(&mut self, data: &Examples) -> Result<Smashed, LearnError> {
        self.waiting = None;
        let rows = self.batches.next(self.batch_size);
        let (x, labels) = self.config.batch(&self.reader, data, &rows, &mut self.changes)?;
        let y = labels_of(&labels)?;
        let weights = self.half.weights()?;
        let activations = self.config.stem(&weights, self.cut.blocks, &x)?;
        let smashed = Smashed {
            activations: outside(&activations)?,
            labels: if self.cut.head_in_front {
                Vec::new()
            } else {
                labels.iter().map(|label| u32::try_from(*label).unwrap_or(u32::MAX)).collect()
            },
        };
        self.waiting = Some(Waiting { activations, weights, y, from_head: None });
        Ok(smashed)
    }

    fn head(&mut self, output: &Activations) -> Result<(f32, Activations), LearnError> {
        let (Some(waiting), Some(terms)) = (&mut self.waiting, &self.head) else {
            return Err(out_of_turn("an output of the back"));
        };
        let n = waiting.activations.size().first().copied().unwrap_or_default();
        let leaf = inside(output, &[n, self.config.sizes().width.into()])?;
        let leaf = leaf.f_set_requires_grad(true)?;
        let logits = self.config.head(&waiting.weights, &leaf)?;
        let loss = batch_loss(&logits, &waiting.y, &terms.terms())?;
        let value = finite(&loss)?;
        // The weights' way to the flat buffer is walked a second time, by `backward`.
        let gradients = Tensor::f_run_backward(&[&loss], &[&leaf, &self.half.flat], true, false)?;
        let [at_output, of_head] = two(gradients)?;
        waiting.from_head = Some(of_head);
        Ok((value, outside(&at_output)?))
    }

    fn backward(&mut self, gradient: &Activations, back_squared: f64) -> Result<f64, LearnError> {
        let Some(waiting) = &self.waiting else {
            return Err(out_of_turn("a gradient"));
        };
        if self.cut.head_in_front && waiting.from_head.is_none() {
            return Err(out_of_turn("a gradient"));
        }
        if !(back_squared >= 0.0 && back_squared.is_finite()) {
            return Err(LearnError::NotFinite { name: "the back's gradient".into(), index: 0 });
        }
        let gradient = inside(gradient, &waiting.activations.size())?;
        let product = waiting.activations.f_mul(&gradient)?.f_sum(Kind::Float)?;
        let gradients = Tensor::f_run_backward(&[&product], &[&self.half.flat], false, false)?;
        let [own] = <[Tensor; 1]>::try_from(gradients).map_err(|_| no_gradient())?;
        let own = match &waiting.from_head {
            Some(of_head) => own.f_add(of_head)?,
            None => own,
        };
        let (own, squared) = self.half.whole(own, self.prox_mu)?;
        self.half.step(&own, squared + back_squared, self.learning_rate)?;
        self.waiting = None;
        Ok(squared)
    }

    fn adapter(&self) -> Result<TensorSet, LearnError> {
        self.half.adapter()
    }
}

/// The back half, on an edge.
#[derive(Debug)]
pub struct Back<C>(Half<C>);

/// The back half of the signal transformer.
pub type SignalBack = Back<TrainerConfig>;

impl<C: Cuttable> Back<C> {
    /// Takes the back's tensors of the base.
    ///
    /// # Errors
    /// [`LearnError`] when base, sizes, targets and cut don't fit together.
    pub fn new(base: &TensorSet, config: C, cut: Cut, seed: u64) -> Result<Self, LearnError> {
        let layout = cut.back_of(&config.layout());
        Ok(Self(Half::new(base, &layout, config, cut, false, seed)?))
    }
}

impl<C: Cuttable> SplitBack for Back<C> {
    fn initial_adapter(&self) -> TensorSet {
        self.0.initial.clone()
    }

    fn open(&self, job: &BackJob) -> Result<Box<dyn BackCopy>, LearnError> {
        let Half { config, cut, .. } = &self.0;
        use_threads(config.training().threads);
        let (targets, classes) = (job.class_targets.as_ref(), config.sizes().classes);
        Ok(Box::new(OpenBack {
            config: config.clone(),
            cut: *cut,
            half: self.0.trainable(&job.start)?,
            distill: LossTerms::new(None, targets, job.distill_lambda, classes)?.distill,
            learning_rate: job.learning_rate.into(),
            prox_mu: job.prox_mu.into(),
            passed: BTreeMap::new(),
            pending: BTreeMap::new(),
        }))
    }
}

struct OpenBack<C> {
    config: C,
    cut: Cut,
    half: Trainable,
    distill: Option<Distill>,
    learning_rate: f64,
    prox_mu: f64,
    /// Forward passes that wait for the gradient of a device's head.
    passed: BTreeMap<NodeId, Passed>,
    /// Gradients that wait for their front: with their squared lengths.
    pending: BTreeMap<NodeId, (Tensor, f64)>,
}

/// A forward pass with all that its gradient needs: another device's step may change the weights before
/// it comes.
struct Passed {
    leaf: Tensor,
    output: Tensor,
    /// The weights that it was made with.
    flat: Tensor,
}

impl<C: Cuttable> OpenBack<C> {
    /// The input as a leaf, and the back's output; gradients flow to both ends.
    fn pass(
        &self,
        at_cut: &Activations,
        weights: &Weights,
    ) -> Result<(Tensor, Tensor), LearnError> {
        let Sizes { tokens, width, .. } = self.config.sizes();
        let n = at_cut.shape.first().copied().unwrap_or_default();
        let shape = [dim(n)?, tokens.into(), width.into()];
        let leaf = inside(at_cut, &shape)?.f_set_requires_grad(true)?;
        let output = self.config.top(weights, self.cut.blocks, &leaf)?;
        Ok((leaf, output))
    }

    fn answer(
        &mut self,
        who: &NodeId,
        loss: f32,
        of: &Tensor,
        [leaf, flat]: [&Tensor; 2],
    ) -> Result<BackStep, LearnError> {
        let gradients = Tensor::f_run_backward(&[of], &[leaf, flat], false, false)?;
        let [at_cut, own] = two(gradients)?;
        let (own, squared) = self.half.whole(own, self.prox_mu)?;
        let gradient = outside(&at_cut)?;
        self.pending.insert(who.clone(), (own, squared));
        Ok(BackStep { loss, gradient, squared })
    }
}

impl<C: Cuttable> BackCopy for OpenBack<C> {
    fn step(
        &mut self,
        who: &NodeId,
        smashed: &Smashed,
        class_counts: &[u64],
    ) -> Result<BackStep, LearnError> {
        self.pending.remove(who);
        if self.cut.head_in_front {
            return Err(out_of_turn("labels: the head is on the device"));
        }
        let classes = self.config.sizes().classes;
        let n = smashed.activations.shape.first().copied().unwrap_or_default();
        let fits = smashed.labels.len() == n && class_counts.len() == classes as usize;
        if let Some(label) = smashed.labels.iter().find(|label| **label >= classes || !fits) {
            return Err(LearnError::OutOfRange {
                what: "labels of a batch",
                expected: format!("{n}, each below {classes}, and {classes} counts"),
                actual: format!("{}, one {label}", smashed.labels.len()),
            });
        }
        if !fits {
            return Err(out_of_turn("a batch without labels"));
        }
        let weights = self.half.weights()?;
        let (leaf, output) = self.pass(&smashed.activations, &weights)?;
        let logits = self.config.head(&weights, &output)?;
        let labels: Vec<usize> = smashed.labels.iter().map(|label| *label as usize).collect();
        let prior = self.config.training().correct_prior;
        let prior = prior.then(|| log_prior(class_counts)).transpose()?;
        let terms = Terms { log_prior: prior.as_ref(), distill: self.distill.as_ref() };
        let loss = batch_loss(&logits, &labels_of(&labels)?, &terms)?;
        let value = finite(&loss)?;
        let flat = self.half.flat.shallow_clone();
        self.answer(who, value, &loss, [&leaf, &flat])
    }

    fn forward(&mut self, who: &NodeId, at_cut: &Activations) -> Result<Activations, LearnError> {
        self.pending.remove(who);
        if !self.cut.head_in_front {
            return Err(out_of_turn("activations without labels: the head is here"));
        }
        self.passed.remove(who);
        let flat = self.half.frozen()?;
        let weights = self.half.plan.merge(&self.half.base, &flat)?;
        let (leaf, output) = self.pass(at_cut, &weights)?;
        let outward = outside(&output)?;
        self.passed.insert(who.clone(), Passed { leaf, output, flat });
        Ok(outward)
    }

    fn backward(&mut self, who: &NodeId, gradient: &Activations) -> Result<BackStep, LearnError> {
        let Some(Passed { leaf, output, flat }) = self.passed.remove(who) else {
            return Err(out_of_turn("a gradient"));
        };
        let gradient = inside(gradient, &output.size())?;
        let product = output.f_mul(&gradient)?.f_sum(Kind::Float)?;
        self.answer(who, 0.0, &product, [&leaf, &flat])
    }

    fn settle(&mut self, who: &NodeId, front_squared: Option<f64>) -> Result<(), LearnError> {
        let (Some((gradient, squared)), Some(front)) = (self.pending.remove(who), front_squared)
        else {
            return Ok(());
        };
        if !(front >= 0.0 && front.is_finite()) {
            return Err(LearnError::NotFinite { name: "the front's gradient".into(), index: 0 });
        }
        self.half.step(&gradient, squared + front, self.learning_rate)
    }

    fn adapter(&self) -> Result<TensorSet, LearnError> {
        self.half.adapter()
    }
}

/// What the loss has beside the labels' cross-entropy.
struct LossTerms {
    prior: Option<Tensor>,
    distill: Option<Distill>,
}

impl LossTerms {
    fn new(
        prior: Option<Tensor>,
        targets: Option<&crate::learn::ClassLogits>,
        lambda: f32,
        classes: u32,
    ) -> Result<Self, LearnError> {
        let distill = match targets {
            Some(targets) if lambda > 0.0 => {
                check_targets(targets, classes as usize)?;
                Some(Distill::new(targets, lambda)?)
            }
            _ => None,
        };
        Ok(Self { prior, distill })
    }

    fn terms(&self) -> Terms<'_> {
        Terms { log_prior: self.prior.as_ref(), distill: self.distill.as_ref() }
    }
}

/// A tensor's values, as they travel.
pub(super) fn outside(tensor: &Tensor) -> Result<Activations, LearnError> {
    let shape = tensor.size().iter().map(|d| usize::try_from(*d).unwrap_or_default()).collect();
    let data = values(tensor)?;
    if let Some(index) = data.iter().position(|x| !x.is_finite()) {
        return Err(LearnError::NotFinite { name: "activations".into(), index });
    }
    Activations::new(shape, data)
}

/// Values that came, which must have this shape.
pub(super) fn inside(activations: &Activations, shape: &[i64]) -> Result<Tensor, LearnError> {
    let same = activations.shape.iter().map(|d| dim(*d)).collect::<Result<Vec<_>, _>>()? == shape;
    if !same || shape.contains(&0) {
        return Err(LearnError::OutOfRange {
            what: "shape at the cut",
            expected: format!("{shape:?}"),
            actual: format!("{:?}", activations.shape),
        });
    }
    if let Some(index) = activations.data.iter().position(|x| !x.is_finite()) {
        return Err(LearnError::NotFinite { name: "activations".into(), index });
    }
    tensor(&activations.data, shape)
}

pub(super) fn finite(loss: &Tensor) -> Result<f32, LearnError> {
    let value = loss.f_double_value(&[])?;
    if !value.is_finite() {
        return Err(LearnError::NotFinite { name: "loss".into(), index: 0 });
    }
    #[expect(clippy::cast_possible_truncation, reason = "the loss was an f32")]
    Ok(value as f32)
}

fn two(gradients: Vec<Tensor>) -> Result<[Tensor; 2], LearnError> {
    gradients.try_into().map_err(|_| no_gradient())
}

pub(super) fn no_gradient() -> LearnError {
    LearnError::Engine { engine: "libtorch", message: "no gradient came back".into() }
}

pub(super) fn out_of_turn(what: &str) -> LearnError {
    LearnError::OutOfRange {
        what: "turn of a split step",
        expected: "the one that waits".into(),
        actual: what.to_owned(),
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
