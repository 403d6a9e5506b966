//! The port to whatever learns: plain Rust here, libtorch in `torch/`.
//!
//! Called by the lanes (`actors/`): one thread trains, one serves, each owns its learner.

use super::{ClassHead, LearnError, Lesson, Prototypes, TensorSet, TopLogits};

/// Sensor windows with their labels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Windows {
    /// `[n, len]` row-major, one window a row.
    pub x: Vec<f32>,
    /// Samples a window.
    pub len: usize,
    /// `[n]`, class index of each window.
    pub labels: Vec<usize>,
    /// Number of classes C; each label is below it.
    pub classes: usize,
}

impl Windows {
    /// Number of windows n.
    pub fn num_examples(&self) -> usize {
        self.labels.len()
    }

    /// Samples of window `i`, `[len]`.
    pub fn row(&self, i: usize) -> Option<&[f32]> {
        self.x.get(i.checked_mul(self.len)?..(i + 1).checked_mul(self.len)?)
    }
}

/// Texts as token ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts {
    /// Ids of all texts, laid end to end.
    pub tokens: Vec<u32>,
    /// Tokens of each text; they sum to the number of `tokens`.
    pub lengths: Vec<u32>,
    /// Characters of all texts.
    pub chars: u64,
}

impl Texts {
    /// Texts as token ids.
    ///
    /// # Errors
    /// What `encode` says.
    pub fn encoded(
        texts: &[String],
        encode: &mut dyn FnMut(&str) -> Result<Vec<u32>, LearnError>,
    ) -> Result<Self, LearnError> {
        let mut all = Self::default();
        for text in texts {
            let ids = encode(text)?;
            all.lengths.push(u32::try_from(ids.len()).unwrap_or(u32::MAX));
            all.tokens.extend(ids);
            all.chars += text.chars().count() as u64;
        }
        Ok(all)
    }

    /// The texts' ids, one after the other.
    pub fn rows(&self) -> impl Iterator<Item = &[u32]> {
        let mut rest = self.tokens.as_slice();
        self.lengths.iter().map_while(move |len| {
            let (row, after) = rest.split_at_checked(*len as usize)?;
            rest = after;
            Some(row)
        })
    }
}

/// Grey images with their labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Images {
    /// `[n, height, width]` row-major, 0 to 255.
    pub pixels: Vec<u8>,
    /// Pixels a row.
    pub width: usize,
    /// Rows an image.
    pub height: usize,
    /// `[n]`, class index of each image.
    pub labels: Vec<u8>,
    /// Number of classes C; each label is below it.
    pub classes: usize,
}

impl Images {
    /// Number of images n.
    pub fn num_examples(&self) -> usize {
        self.labels.len()
    }

    /// The images of these rows, in this order; rows that aren't there are left out.
    pub fn choose(&self, rows: &[usize]) -> Self {
        let size = self.width * self.height;
        let mut chosen = Self { pixels: Vec::with_capacity(size * rows.len()), ..self.bare() };
        for row in rows {
            let pixels = row.checked_mul(size).and_then(|at| self.pixels.get(at..at + size));
            if let (Some(pixels), Some(label)) = (pixels, self.labels.get(*row)) {
                chosen.pixels.extend_from_slice(pixels);
                chosen.labels.push(*label);
            }
        }
        chosen
    }

    fn bare(&self) -> Self {
        let Self { width, height, classes, .. } = *self;
        Self { pixels: Vec::new(), labels: Vec::new(), width, height, classes }
    }
}

/// What a device learns from.
#[derive(Debug, Clone, PartialEq)]
pub enum Examples {
    /// Sensor windows with labels.
    Windows(Windows),
    /// Texts.
    Texts(Texts),
    /// Images with labels.
    Images(Images),
}

impl Examples {
    /// Number of windows, texts or images.
    pub fn num_examples(&self) -> usize {
        match self {
            Self::Windows(windows) => windows.num_examples(),
            Self::Texts(texts) => texts.lengths.len(),
            Self::Images(images) => images.num_examples(),
        }
    }

    /// The windows.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when it holds something else.
    pub fn windows(&self) -> Result<&Windows, LearnError> {
        match self {
            Self::Windows(windows) => Ok(windows),
            other => Err(other_kind("sensor windows", other.kind())),
        }
    }

    /// The texts.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when it holds something else.
    pub fn texts(&self) -> Result<&Texts, LearnError> {
        match self {
            Self::Texts(texts) => Ok(texts),
            other => Err(other_kind("texts", other.kind())),
        }
    }

    /// The images.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when it holds something else.
    pub fn images(&self) -> Result<&Images, LearnError> {
        match self {
            Self::Images(images) => Ok(images),
            other => Err(other_kind("images", other.kind())),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Windows(_) => "sensor windows",
            Self::Texts(_) => "texts",
            Self::Images(_) => "images",
        }
    }
}

impl From<Windows> for Examples {
    fn from(windows: Windows) -> Self {
        Self::Windows(windows)
    }
}

impl From<Texts> for Examples {
    fn from(texts: Texts) -> Self {
        Self::Texts(texts)
    }
}

impl From<Images> for Examples {
    fn from(images: Images) -> Self {
        Self::Images(images)
    }
}

fn other_kind(expected: &str, actual: &str) -> LearnError {
    let (expected, actual) = (expected.to_owned(), actual.to_owned());
    LearnError::OutOfRange { what: "examples for this model", expected, actual }
}

/// Mean logits a class with counts: the soft-label summary of FedDistill (arXiv:1811.11479).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClassLogits {
    /// `[C, C]` row-major: row c is the mean logits over examples of class c; zeros where suppressed.
    pub mean_logits: Vec<f32>,
    /// `[C]`: examples behind each row; 0 where suppressed.
    pub counts: Vec<u64>,
}

impl ClassLogits {
    /// Means and counts over examples: logits `[n, C]` row-major, labels `[n]`.
    ///
    /// Nothing is suppressed here but classes without any example; the privacy gate does the rest.
    /// # Determinism
    /// Sums in f64 in the order of the examples.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "f32 logits")]
    pub fn of(logits: &[f32], labels: &[usize], classes: usize) -> Self {
        let mut sums = vec![0.0_f64; classes * classes];
        let mut counts = vec![0_u64; classes];
        for (row, label) in logits.chunks(classes.max(1)).zip(labels) {
            let cells = sums.chunks_mut(classes.max(1)).nth(*label);
            let (Some(cells), Some(count)) = (cells, counts.get_mut(*label)) else { continue };
            *count += 1;
            cells.iter_mut().zip(row).for_each(|(sum, z)| *sum += f64::from(*z));
        }
        let rows = sums.chunks(classes.max(1)).zip(&counts);
        let mean = |(row, n): (&[f64], &u64)| -> Vec<f32> {
            row.iter().map(|sum| (sum / (*n).max(1) as f64) as f32).collect()
        };
        Self { mean_logits: rows.flat_map(mean).collect(), counts }
    }
}

/// What a local training run is to do.
#[derive(Debug, Clone)]
pub struct TrainJob {
    /// Adapter to start from; also the anchor of the proximal term.
    pub start: TensorSet,
    /// Optimiser steps, > 0.
    pub steps: u32,
    /// Examples a step, > 0.
    pub batch_size: u32,
    /// Learning rate of the first step, > 0.
    pub learning_rate: f32,
    /// Learning rate behind the last step, >= 0, reached on a straight line; absent where it stays.
    pub final_rate: Option<f32>,
    /// FedProx mu, >= 0; adds mu/2 ||w - start||^2 (arXiv:1812.06127).
    pub prox_mu: f32,
    /// Weight lambda of the distillation term; used with `class_targets`.
    pub distill_lambda: f32,
    /// The federation's mean logits a class, when it relays knowledge that way.
    pub class_targets: Option<ClassLogits>,
    /// What is taught on reference inputs and by prototypes, when knowledge travels that way.
    pub lesson: Option<Lesson>,
    /// Seed of the batch order and of every other draw.
    pub seed: u64,
    /// Whole passes over the examples, > 0, instead of `steps`.
    pub epochs: Option<u32>,
    /// Give what is said a class, too, mean logits, prototypes and the classification layer: a pass over all own examples, which a
    /// learner may leave out else.
    pub class_logits: bool,
}

/// Most optimiser steps of one job, counted in steps or in whole passes: nobody ends a run from outside.
pub const MAX_STEPS: u32 = 1_000_000;

impl TrainJob {
    /// So many steps at one rate, and nothing else: no pull, no lesson, no passes, nothing said.
    pub fn plain(
        start: TensorSet,
        steps: u32,
        batch_size: u32,
        learning_rate: f32,
        seed: u64,
    ) -> Self {
        Self {
            start,
            steps,
            batch_size,
            learning_rate,
            final_rate: None,
            prox_mu: 0.0,
            distill_lambda: 0.0,
            class_targets: None,
            lesson: None,
            seed,
            epochs: None,
            class_logits: false,
        }
    }

    /// Learning rate of a step, from 1 to the run's `steps`.
    #[expect(clippy::cast_precision_loss, reason = "a million steps at most")]
    pub fn rate_at(&self, step: u32, steps: u32) -> f32 {
        let Some(last) = self.final_rate else { return self.learning_rate };
        let part = step.saturating_sub(1) as f32 / steps.max(1) as f32;
        self.learning_rate + (last - self.learning_rate) * part.min(1.0)
    }

    /// Optimiser steps over so many examples: `steps`, or those of the whole passes where there is an
    /// example to pass over.
    ///
    /// The last batch of a pass may be a short one.
    /// # Examples
    /// ```
    /// # use gaisnet::learn::{TensorSet, TrainJob};
    /// let plain = TrainJob::plain(TensorSet::default(), 40, 64, 0.01, 1);
    /// let job = TrainJob { epochs: Some(2), ..plain };
    /// assert_eq!(job.steps_over(130), 6); // 64, 64 and 2, twice
    /// assert_eq!(TrainJob { epochs: None, ..job }.steps_over(130), 40);
    /// ```
    pub fn steps_over(&self, examples: usize) -> u32 {
        let Some(epochs) = self.epochs.filter(|_| examples > 0) else { return self.steps };
        let batches = examples.div_ceil(usize::try_from(self.batch_size).unwrap_or(1).max(1));
        u32::try_from(batches).unwrap_or(u32::MAX).saturating_mul(epochs)
    }

    /// Checks the numbers, and gives the optimiser steps over so many own examples.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] as [`TrainJob::check`], and for more than [`MAX_STEPS`].
    pub fn check_for(&self, examples: usize) -> Result<u32, LearnError> {
        self.check()?;
        let steps = self.steps_over(examples);
        if steps <= MAX_STEPS {
            return Ok(steps);
        }
        let passes = self.epochs.map_or(String::new(), |passes| {
            format!(" in {passes} passes over {examples} examples, {} a step", self.batch_size)
        });
        Err(LearnError::OutOfRange {
            what: "optimiser steps of a round",
            expected: format!("at most {MAX_STEPS}: take fewer passes or larger batches"),
            actual: format!("{steps}{passes}"),
        })
    }

    /// Refuses a lesson, for a learner that can't follow any.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the job has one.
    pub fn without_lesson(&self, model: &str) -> Result<(), LearnError> {
        if self.lesson.is_none() {
            return Ok(());
        }
        Err(LearnError::OutOfRange {
            what: "lesson",
            expected: format!("none: {model} learns no reference inputs, prototypes or latents"),
            actual: "one".into(),
        })
    }

    /// Refuses a rate that falls within the run, for a learner that knows one rate.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the job has one.
    pub fn without_final_rate(&self, model: &str) -> Result<(), LearnError> {
        let Some(last) = self.final_rate else { return Ok(()) };
        Err(LearnError::OutOfRange {
            what: "final learning rate",
            expected: format!("none: {model} learns at one rate (no cosine_steps)"),
            actual: last.to_string(),
        })
    }

    /// Checks the numbers that no learner can follow.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first.
    pub fn check(&self) -> Result<(), LearnError> {
        let bad = |what, expected: &str, actual: String| {
            Err(LearnError::OutOfRange { what, expected: expected.into(), actual })
        };
        if self.steps == 0 || self.batch_size == 0 || self.epochs == Some(0) {
            let actual = format!("{} x {}", self.steps, self.batch_size);
            return bad("steps, passes and batch size", "all positive", actual);
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return bad("learning rate", "positive", self.learning_rate.to_string());
        }
        if let Some(last) = self.final_rate.filter(|last| !(*last >= 0.0 && last.is_finite())) {
            return bad("final learning rate", "0 or more", last.to_string());
        }
        for (what, weight) in
            [("FedProx mu", self.prox_mu), ("FedDistill lambda", self.distill_lambda)]
        {
            if !(weight >= 0.0 && weight.is_finite()) {
                return bad(what, "0 or more", weight.to_string());
            }
        }
        Ok(())
    }
}

/// Reported after each optimiser step.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub step: u32,
    /// Mean loss of the step's batch, in nats.
    pub loss: f32,
}

/// The answer to a [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Stop after this step; what is learned so far is the result.
    Stop,
}

/// What a local training run gave.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Adapter after the last step, in the layout of `TrainJob::start`.
    pub adapter: TensorSet,
    /// Mean logits a class over the training examples, with the trained adapter; empty where they
    /// weren't asked for or there are no classes.
    pub class_logits: ClassLogits,
    /// `[n, C]` logits of the lesson's reference inputs, with the trained adapter; empty without any.
    pub reference_logits: Vec<f32>,
    /// Mean embeddings a class over the training examples; none where the model gives none.
    pub prototypes: Option<Prototypes>,
    /// The classification layer over those embeddings; none where the model has none or it wasn't asked for.
    pub head: Option<ClassHead>,
    /// What it foresees in the lesson's reference texts, with the trained adapter; none without any.
    pub top_logits: Option<TopLogits>,
    /// Distinct training examples on this device.
    pub num_examples: u64,
    /// Steps really done.
    pub steps: u32,
    /// Mean loss over the first and over the last tenth of the steps, in nats.
    pub loss_first: f32,
    /// See `loss_first`.
    pub loss_last: f32,
    /// What an attacker finds out about membership in the training examples, as AUC (0.5: nothing), if that was measured.
    pub risk: Option<f32>,
}

impl Trained {
    /// An adapter after as many steps as there are losses, one each, and nothing else said.
    pub fn of(adapter: TensorSet, num_examples: usize, losses: &[f32]) -> Self {
        let (loss_first, loss_last) = loss_ends(losses);
        Self {
            adapter,
            class_logits: ClassLogits::default(),
            reference_logits: Vec::new(),
            prototypes: None,
            head: None,
            top_logits: None,
            num_examples: num_examples as u64,
            steps: u32::try_from(losses.len()).unwrap_or(u32::MAX),
            loss_first,
            loss_last,
            risk: None,
        }
    }
}

/// Mean loss over the first and over the last tenth of the steps, rounded up; 0 without any.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "few losses")]
pub fn loss_ends(losses: &[f32]) -> (f32, f32) {
    let tenth = losses.len().div_ceil(10);
    let mean = |losses: &mut dyn Iterator<Item = &f32>| {
        (losses.map(|loss| f64::from(*loss)).sum::<f64>() / tenth.max(1) as f64) as f32
    };
    (mean(&mut losses.iter().take(tenth)), mean(&mut losses.iter().rev().take(tenth)))
}

/// Trains an adapter on the data of its device.
pub trait Learner: Send {
    /// The untrained adapter (version 0): the same values on each node for one base.
    fn initial_adapter(&self) -> TensorSet;

    /// Trains on the local data; without any example of its own, on the job's lesson alone.
    ///
    /// `progress` is called after each step and may stop the run.
    ///
    /// # Determinism
    /// The same job on the same data and machine gives the same adapter.
    /// # Errors
    /// [`LearnError`] when the job doesn't fit the model or a loss isn't finite.
    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError>;
}

/// Class probabilities of one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// `[C]` probabilities that sum to 1.
    pub probabilities: Vec<f32>,
    /// Index of the largest.
    pub class: usize,
}

impl Prediction {
    /// Softmax of logits `[C]`; the first of equal ones wins.
    #[expect(clippy::cast_possible_truncation, reason = "probabilities fit an f32")]
    pub fn of_logits(logits: &[f32]) -> Self {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = logits.iter().map(|z| f64::from(z - top).exp()).collect();
        let sum: f64 = powers.iter().sum();
        Self {
            probabilities: powers.iter().map(|p| (p / sum) as f32).collect(),
            class: logits.iter().position(|z| *z >= top).unwrap_or(0),
        }
    }
}

/// Answers with one base and the adapter that was loaded last.
pub trait Predictor: Send {
    /// Swaps the adapter; on an error the old one stays.
    ///
    /// # Errors
    /// [`LearnError`] when the adapter doesn't fit the model.
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError>;

    /// Predicts `[n, len]` windows (labels are not read).
    ///
    /// # Errors
    /// [`LearnError`] when `len` isn't the model's or an input isn't finite.
    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError>;
}

impl<L: Learner + ?Sized> Learner for Box<L> {
    fn initial_adapter(&self) -> TensorSet {
        (**self).initial_adapter()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        (**self).train(data, job, progress)
    }
}

impl<P: Predictor + ?Sized> Predictor for Box<P> {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        (**self).load(adapter)
    }

    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
        (**self).predict(x, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_logits_are_means_over_each_class() {
        let summary = ClassLogits::of(&[1.0, 2.0, 3.0, 4.0, 5.0, 8.0], &[0, 1, 1], 2);
        assert_eq!(summary.mean_logits, [1.0, 2.0, 4.0, 6.0]);
        assert_eq!(summary.counts, [1, 2]);
        let one_sided = ClassLogits::of(&[1.0, 2.0], &[1], 2);
        assert_eq!(one_sided.mean_logits, [0.0, 0.0, 1.0, 2.0]);
        assert_eq!(one_sided.counts, [0, 1]);
    }

    #[test]
    fn losses_are_told_by_the_first_and_the_last_tenth_rounded_up() {
        let losses: Vec<f32> = (1..=21_u8).map(f32::from).collect();
        assert_eq!(loss_ends(&losses), (2.0, 20.0), "three of each");
        assert_eq!((loss_ends(&[0.5]), loss_ends(&[])), ((0.5, 0.5), (0.0, 0.0)));
        let trained = Trained::of(TensorSet::default(), 7, &losses);
        assert_eq!((trained.num_examples, trained.steps), (7, 21));
    }

    #[test]
    fn images_are_chosen_by_row_and_rows_that_are_not_there_are_left_out() {
        let images = Images {
            pixels: vec![1, 2, 3, 4, 5, 6],
            width: 2,
            height: 1,
            labels: vec![0, 1, 2],
            classes: 3,
        };
        let chosen = images.choose(&[2, 0, 7, usize::MAX]);
        assert_eq!((chosen.pixels, chosen.labels), (vec![5, 6, 1, 2], vec![2, 0]));
        assert_eq!(Examples::from(images).texts().unwrap_err().kind(), "out_of_range");
    }

    fn job(steps: u32, batch_size: u32, epochs: Option<u32>) -> TrainJob {
        TrainJob { epochs, ..TrainJob::plain(TensorSet::default(), steps, batch_size, 0.1, 1) }
    }

    #[test]
    fn passes_are_bounded_in_steps_like_steps() {
        assert_eq!(job(MAX_STEPS, 1, None).check_for(5), Ok(MAX_STEPS));
        assert_eq!(job(MAX_STEPS + 1, 1, None).check_for(5).unwrap_err().kind(), "out_of_range");
        // Each number by itself is one that a plan may have.
        let endless = job(1, 1, Some(10_000)).check_for(50_000).unwrap_err().to_string();
        assert!(endless.contains("10000 passes over 50000 examples"), "{endless}");
        assert_eq!(job(1, 500, Some(10_000)).check_for(50_000), Ok(MAX_STEPS));
        assert_eq!(job(1, 499, Some(10_000)).check_for(50_000).unwrap_err().kind(), "out_of_range");
    }

    #[test]
    fn without_examples_there_is_nothing_to_pass_over_and_the_steps_count() {
        assert_eq!(job(40, 8, Some(2)).steps_over(0), 40);
        assert_eq!(job(40, 8, Some(2)).check_for(0), Ok(40));
        assert_eq!(job(40, 8, Some(2)).check_for(9), Ok(4));
    }

    #[test]
    fn a_prediction_is_the_softmax_and_does_not_overflow() {
        let even = Prediction::of_logits(&[500.0, 500.0]);
        assert_eq!(even.probabilities, [0.5, 0.5]);
        assert_eq!(even.class, 0);
        let sure = Prediction::of_logits(&[0.0, 2.0_f32.ln(), 0.0]);
        assert!((sure.probabilities[1] - 0.5).abs() < 1e-6);
        assert_eq!(sure.class, 1);
    }
}
