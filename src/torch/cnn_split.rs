//! The network of `cnn.rs` in two halves, cut behind its convolutions, each with its own SGD.
//!
//! ```text
//! device  image -> conv1 -> conv2 --[n, 256]--> fc1 -> fc2 -> fc3 -> loss  edge
//!           w <- SGD <- J^T g     <--gradient g--        w <- SGD, once the front has
//! ```
//! All of both halves trains. Labels go to the edge with the activations. There is no bound on a gradient's
//! length, so the halves need nothing of each other but the gradient at the cut; all else is as in `split.rs`.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::cnn::{CONVOLUTIONS, FLAT};
use super::cnn_trainer::{CnnTrainerConfig, Run, check_images, rows_of};
use super::split::{finite, inside, out_of_turn, outside};
use super::trainer::{Distill, Terms, batch_loss, check_targets, labels_of};
use super::{dim, use_threads};
use crate::ids::NodeId;
use crate::learn::{
    Activations, BackCopy, BackJob, BackStep, Batches, Cut, Examples, FrontBegun, FrontRun, Layout,
    LearnError, PassEnd, Smashed, SplitBack, SplitFront, TensorSet, TrainJob,
};
use crate::rng::Stream;

/// Where this network can be cut: behind its convolutions, labels at the edge.
pub const CNN_CUT: Cut = Cut { blocks: CONVOLUTIONS, head_in_front: false };

/// One half: what doesn't change from run to run.
#[derive(Debug)]
struct Half {
    config: CnnTrainerConfig,
    initial: TensorSet,
}

impl Half {
    fn new(config: CnnTrainerConfig, cut: Cut, front: bool, seed: u64) -> Result<Self, LearnError> {
        config.check()?;
        if cut != CNN_CUT {
            return Err(LearnError::OutOfRange {
                what: "cut",
                expected: format!("behind convolution {CONVOLUTIONS}, labels at the edge"),
                actual: format!("behind {}, head in front: {}", cut.blocks, cut.head_in_front),
            });
        }
        let whole = config.model.initial(seed)?;
        Ok(Self { initial: whole.filtered(|name| cut.is_front(name) == front), config })
    }

    fn layout(&self) -> Layout {
        self.initial.layout()
    }

    fn run(&self, start: &TensorSet) -> Result<Run, LearnError> {
        start.check_layout(&self.layout())?;
        use_threads(self.config.threads);
        Run::new(start, self.layout(), &self.config)
    }
}

/// The front half, on a device: the convolutions.
#[derive(Debug)]
pub struct CnnFront(Half);

impl CnnFront {
    /// The starting weights come from `seed`, which all nodes share.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the network, the momentum or the cut can't be.
    pub fn new(config: CnnTrainerConfig, cut: Cut, seed: u64) -> Result<Self, LearnError> {
        Half::new(config, cut, true, seed).map(Self)
    }

    /// Values that this half holds; all of them train.
    pub fn num_values(&self) -> u64 {
        self.0.initial.num_values() as u64
    }
}

impl SplitFront for CnnFront {
    fn initial_adapter(&self) -> TensorSet {
        self.0.initial.clone()
    }

    fn begin(&self, data: &Examples, job: &TrainJob) -> Result<Box<dyn FrontRun>, LearnError> {
        let images = data.images()?;
        let model = &self.0.config.model;
        check_images(images, model)?;
        let steps = job.check_for(images.num_examples())?;
        job.without_lesson("a split model")?;
        job.without_final_rate("a split model")?;
        let run = self.0.run(&job.start)?;
        let count =
            |class| images.labels.iter().filter(|label| usize::from(**label) == class).count();
        Ok(Box::new(CnnFrontRun {
            x: model.input(&Tensor::f_from_slice(&images.pixels)?)?,
            labels: images.labels.iter().map(|label| u32::from(*label)).collect(),
            batches: Batches::new(images.num_examples(), Stream::new(job.seed, "batch"))
                .ending(PassEnd::Short),
            batch_size: job.batch_size as usize,
            learning_rate: job.learning_rate,
            prox_mu: job.prox_mu.into(),
            begun: FrontBegun {
                num_examples: images.num_examples() as u64,
                class_counts: (0..images.classes).map(|class| count(class) as u64).collect(),
                steps,
            },
            run,
            waiting: None,
        }))
    }
}

struct CnnFrontRun {
    /// Scaled once a run, then batches are rows of it.
    x: Tensor,
    labels: Vec<u32>,
    run: Run,
    batches: Batches,
    batch_size: usize,
    learning_rate: f32,
    prox_mu: f64,
    begun: FrontBegun,
    /// Activations that wait for their gradient.
    waiting: Option<Tensor>,
}

impl FrontRun for CnnFrontRun {
    fn begun(&self) -> FrontBegun {
        self.begun.clone()
    }

    fn forward(&mut self, _: &Examples) -> Result<Smashed, LearnError> {
        self.waiting = None;
        let batch = self.batches.next(self.batch_size);
        let x = self.x.f_index_select(0, &rows_of(&batch)?)?;
        let activations = self.run.net.convolve(&x)?;
        let labels = batch.iter().filter_map(|row| self.labels.get(*row).copied()).collect();
        let smashed = Smashed { activations: outside(&activations)?, labels };
        self.waiting = Some(activations);
        Ok(smashed)
    }

    fn head(&mut self, _: &Activations) -> Result<(f32, Activations), LearnError> {
        Err(out_of_turn("an output of the back: the head is at the edge"))
    }

    fn backward(&mut self, gradient: &Activations, back_squared: f64) -> Result<f64, LearnError> {
        let Some(activations) = &self.waiting else { return Err(out_of_turn("a gradient")) };
        if !(back_squared >= 0.0 && back_squared.is_finite()) {
            return Err(LearnError::NotFinite { name: "the back's gradient".into(), index: 0 });
        }
        let gradient = inside(gradient, &activations.size())?;
        let product = activations.f_mul(&gradient)?.f_sum(Kind::Float)?;
        let (own, _) = self.run.gradient(&product, None, self.prox_mu)?;
        let squared = squared(&own)?;
        self.run.apply(&own, self.learning_rate)?;
        self.waiting = None;
        Ok(squared)
    }

    fn adapter(&self) -> Result<TensorSet, LearnError> {
        self.run.weights()
    }
}

/// The back half, on an edge: the dense layers.
#[derive(Debug)]
pub struct CnnBack(Half);

impl CnnBack {
    /// See [`CnnFront::new`].
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the network, the momentum or the cut can't be.
    pub fn new(config: CnnTrainerConfig, cut: Cut, seed: u64) -> Result<Self, LearnError> {
        Half::new(config, cut, false, seed).map(Self)
    }
}

impl SplitBack for CnnBack {
    fn initial_adapter(&self) -> TensorSet {
        self.0.initial.clone()
    }

    fn open(&self, job: &BackJob) -> Result<Box<dyn BackCopy>, LearnError> {
        let distill = match &job.class_targets {
            Some(targets) if job.distill_lambda > 0.0 => {
                check_targets(targets, self.0.config.model.classes as usize)?;
                Some(Distill::new(targets, job.distill_lambda)?)
            }
            _ => None,
        };
        Ok(Box::new(CnnBackCopy {
            run: self.0.run(&job.start)?,
            classes: self.0.config.model.classes,
            distill,
            learning_rate: job.learning_rate,
            prox_mu: job.prox_mu.into(),
            pending: BTreeMap::new(),
        }))
    }
}

struct CnnBackCopy {
    run: Run,
    classes: u32,
    distill: Option<Distill>,
    learning_rate: f32,
    prox_mu: f64,
    /// Gradients that wait for their front.
    pending: BTreeMap<NodeId, Tensor>,
}

impl BackCopy for CnnBackCopy {
    fn step(&mut self, who: &NodeId, smashed: &Smashed, _: &[u64]) -> Result<BackStep, LearnError> {
        self.pending.remove(who);
        let Smashed { activations, labels } = smashed;
        let n = activations.shape.first().copied().unwrap_or_default();
        let known = labels.iter().all(|label| *label < self.classes);
        if labels.len() != n || !known {
            return Err(LearnError::OutOfRange {
                what: "labels of a batch",
                expected: format!("{n}, each below {}", self.classes),
                actual: format!("{}, {}", labels.len(), if known { "known" } else { "unknown" }),
            });
        }
        let leaf = inside(activations, &[dim(n)?, dim(FLAT)?])?.f_set_requires_grad(true)?;
        let labels: Vec<usize> = labels.iter().map(|label| *label as usize).collect();
        let logits = self.run.net.classify(&self.run.net.hidden(&leaf)?)?;
        let terms = Terms { log_prior: None, distill: self.distill.as_ref() };
        let loss = batch_loss(&logits, &labels_of(&labels)?, &terms)?;
        let value = finite(&loss)?;
        let (own, at_cut) = self.run.gradient(&loss, Some(&leaf), self.prox_mu)?;
        let gradient = outside(&at_cut.ok_or_else(super::split::no_gradient)?)?;
        let squared = squared(&own)?;
        self.pending.insert(who.clone(), own);
        Ok(BackStep { loss: value, gradient, squared })
    }

    fn forward(&mut self, who: &NodeId, _: &Activations) -> Result<Activations, LearnError> {
        self.pending.remove(who);
        Err(out_of_turn("activations without labels: the head is here"))
    }

    fn backward(&mut self, _: &NodeId, _: &Activations) -> Result<BackStep, LearnError> {
        Err(out_of_turn("a gradient"))
    }

    fn settle(&mut self, who: &NodeId, front_squared: Option<f64>) -> Result<(), LearnError> {
        match (self.pending.remove(who), front_squared) {
            (Some(own), Some(_)) => self.run.apply(&own, self.learning_rate),
            _ => Ok(()),
        }
    }

    fn adapter(&self) -> Result<TensorSet, LearnError> {
        self.run.weights()
    }
}

fn squared(gradient: &Tensor) -> Result<f64, LearnError> {
    let norm = gradient.f_norm()?.f_to_kind(Kind::Double)?.f_double_value(&[])?;
    if !norm.is_finite() {
        return Err(LearnError::NotFinite { name: "gradient".into(), index: 0 });
    }
    Ok(norm * norm)
}

#[cfg(test)]
#[path = "cnn_split_tests.rs"]
mod tests;
