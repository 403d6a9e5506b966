//! The first learner: softmax regression on the features of a [`FeatureMap`], plain Rust: gain-free ones of a window,
//! or those of a text.
//!
//! Its adapter is the whole model: `head.weight` `[C, F]` and `head.bias` `[C]`. Small enough to
//! check by hand, strong enough to show what federation gives, and a node needs no libtorch for it.
//!
//! The objective of a batch of b examples with labels y, probabilities p = softmax(W f + c):
//! ```text
//!   mean CE(y, p)                                        data
//! + lambda mean CE(softmax(target of class y), p)        FedDistill, where the class has a target
//! + mu/2 ||w - start||^2                                 FedProx, over weight and bias
//! + weight mean CE(target, p(reference))                 a lesson on reference windows
//! + prototype weight mean CE(y, p(prototype of y))       a lesson's prototypes, as examples: the features
//!                                                        can't move towards them, the head can
//! + generator weight mean CE(y, p(latent of y))          a lesson's generator: its latents are features
//! + l2/2 ||W||^2                                         keeps separable classes from running away
//! ```
//! minimised by plain SGD: no optimiser state has to survive from round to round.

use std::sync::Arc;

use super::softmax_head::Head;
use super::{
    Batches, ClassLogits, Control, Examples, FeatureMap, Latents, LearnError, Learner, Lesson,
    MachineSpeeds, PassEnd, Prediction, Predictor, Progress, Prototypes, Spectrum, TensorSet,
    TrainJob, Trained, Windows, mean_class_logits, narrow,
};
use crate::rng::Stream;

/// Trains a softmax head on one device's windows or texts.
#[derive(Debug)]
pub struct SoftmaxLearner {
    map: FeatureMap,
    classes: usize,
    /// Features of the windows seen last: they don't change from round to round.
    seen: Option<(Vec<f32>, Vec<f64>)>,
    /// The same of the reference windows, which are shared and may be many: known by where they lie.
    seen_reference: Option<(Arc<Windows>, Vec<f64>)>,
}

impl SoftmaxLearner {
    /// A learner for windows of `window_len` samples and `classes` classes.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when [`Spectrum::new`] refuses or there are fewer than 2 classes.
    pub fn new(
        speeds: MachineSpeeds,
        window_len: usize,
        classes: usize,
    ) -> Result<Self, LearnError> {
        Self::on(FeatureMap::Spectrum(Spectrum::new(speeds, window_len)?), classes)
    }

    /// A learner on any features.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when there are fewer than 2 classes.
    pub fn on(map: FeatureMap, classes: usize) -> Result<Self, LearnError> {
        check_classes(classes)?;
        Ok(Self { map, classes, seen: None, seen_reference: None })
    }
}

/// Features of all windows, `[n, F]`, worked out once for those seen last.
fn remembered<K>(
    seen: &mut Option<(K, Vec<f64>)>,
    same: impl FnOnce(&K) -> bool,
    key: impl FnOnce() -> K,
    features: impl FnOnce() -> Result<Vec<f64>, LearnError>,
) -> Result<&[f64], LearnError> {
    if !seen.as_ref().is_some_and(|(seen, _)| same(seen)) {
        let features = features()?;
        *seen = Some((key(), features));
    }
    Ok(seen.as_ref().map_or(&[], |(_, features)| features.as_slice()))
}

impl Learner for SoftmaxLearner {
    fn initial_adapter(&self) -> TensorSet {
        Head::zeros(self.classes, self.map.num_features()).to_tensors()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let data = data.windows()?;
        let steps = job.check_for(data.num_examples())?;
        let (len, classes) = (self.map.input_len(), self.classes);
        let width = self.map.num_features();
        check_data(data, (len, width), classes, job.lesson.as_ref())?;
        let start = Head::from_tensors(&job.start, self.classes, width)?;
        let targets = soft_targets(job, self.classes)?;
        let map = &self.map;
        let of = |x: &[f32]| map.features(x);
        let (same, key) = (|x: &Vec<f32>| *x == data.x, || data.x.clone());
        let features = remembered(&mut self.seen, same, key, || of(&data.x))?;
        let rows: Vec<&[f64]> = features.chunks_exact(width).collect();
        let reference = match &job.lesson {
            Some(Lesson { windows, .. }) => {
                let same = |seen: &Arc<Windows>| Arc::ptr_eq(seen, windows);
                let key = || Arc::clone(windows);
                remembered(&mut self.seen_reference, same, key, || of(&windows.x))?
            }
            None => &[],
        };
        let taught =
            job.lesson.as_ref().map(|lesson| Taught::new(lesson, reference, width, classes));
        let mut head = start.clone();
        let size = to_usize(job.batch_size);
        let end = PassEnd::of(job, PassEnd::LeftOut);
        let mut batches = Batches::new(rows.len(), Stream::new(job.seed, "batch")).ending(end);
        let mut lessons = Batches::new(reference.len() / width, Stream::new(job.seed, "reference"))
            .ending(PassEnd::LeftOut);
        let generator = job.lesson.as_ref().and_then(|lesson| lesson.generator_for(width));
        let mut latents = Stream::new(job.seed, "latents");
        let mut losses = Vec::new();
        for step in 1..=steps {
            let picked = batches.next(size);
            let batch = picked.iter().filter_map(|i| Some((*rows.get(*i)?, *data.labels.get(*i)?)));
            let weight_decay = map.weight_decay();
            let objective = Objective { start: &start, targets: &targets, weight_decay, job };
            let (own, mut gradient) = objective.gradient(&head, batch);
            let mut lesson = match &taught {
                Some(taught) => {
                    // Without a weight the reference counts only where there is nothing else.
                    let counts = taught.lesson.weight > 0.0 || rows.is_empty();
                    let batch = if counts { lessons.next(size) } else { Vec::new() };
                    taught.add_gradient(&head, &batch, &mut gradient)
                }
                None => 0.0,
            };
            if let (Some(taught), Some(generator)) = (&taught, generator) {
                let batch = generator.latents(size, &mut latents);
                lesson += taught.add_latents(&head, &batch, &mut gradient);
            }
            // What is shown is the loss on own examples, where there are any.
            let loss = if rows.is_empty() { lesson } else { own };
            if !loss.is_finite() {
                return Err(LearnError::NotFinite { name: "loss".into(), index: to_usize(step) });
            }
            head.add_scaled(-f64::from(job.rate_at(step, steps)), &gradient);
            losses.push(to_f32(loss));
            if progress(Progress { step, loss: to_f32(loss) }) == Control::Stop {
                break;
            }
        }
        let adapter = head.to_tensors();
        adapter.check_finite()?;
        let (class_logits, prototypes, layer) = if job.class_logits {
            let logits: Vec<f64> = rows.iter().flat_map(|row| head.logits(row)).collect();
            let embeddings: Vec<f32> = features.iter().map(|x| narrow(*x)).collect();
            let prototypes = Prototypes::of(&embeddings, &data.labels, classes).ok();
            let class_logits = mean_class_logits(&logits, &data.labels, classes)?;
            let layer = head.to_class_head(&embeddings, &data.labels);
            (class_logits, prototypes, Some(layer))
        } else {
            (ClassLogits::default(), None, None)
        };
        let said = reference.chunks_exact(width).flat_map(|row| head.logits(row)).map(narrow);
        Ok(Trained {
            class_logits,
            reference_logits: said.collect(),
            prototypes,
            head: layer,
            ..Trained::of(adapter, rows.len(), &losses)
        })
    }
}

/// Answers with a softmax head; before the first [`Predictor::load`] all classes are equally likely.
#[derive(Debug)]
pub struct SoftmaxPredictor {
    map: FeatureMap,
    head: Head,
}

impl SoftmaxPredictor {
    /// A predictor for windows of `window_len` samples and `classes` classes.
    ///
    /// # Errors
    /// As [`SoftmaxLearner::new`].
    pub fn new(
        speeds: MachineSpeeds,
        window_len: usize,
        classes: usize,
    ) -> Result<Self, LearnError> {
        Self::on(FeatureMap::Spectrum(Spectrum::new(speeds, window_len)?), classes)
    }

    /// A predictor on any features.
    ///
    /// # Errors
    /// As [`SoftmaxLearner::on`].
    pub fn on(map: FeatureMap, classes: usize) -> Result<Self, LearnError> {
        check_classes(classes)?;
        let head = Head::zeros(classes, map.num_features());
        Ok(Self { map, head })
    }
}

impl Predictor for SoftmaxPredictor {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        let classes = self.head.classes();
        self.head = Head::from_tensors(adapter, classes, self.map.num_features())?;
        Ok(())
    }

    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
        if len != self.map.input_len() || !x.len().is_multiple_of(len) {
            return Err(LearnError::OutOfRange {
                what: "window length",
                expected: format!("{}, and whole windows", self.map.input_len()),
                actual: format!("{len}, {} samples in all", x.len()),
            });
        }
        let features = self.map.features(x)?;
        let rows = features.chunks_exact(self.map.num_features());
        Ok(rows.map(|row| self.head.prediction(row)).collect())
    }
}

/// What one step minimises.
struct Objective<'a> {
    start: &'a Head,
    /// One entry a class: the federation's probabilities for it, where there are any.
    targets: &'a [Option<Vec<f64>>],
    weight_decay: f64,
    job: &'a TrainJob,
}

impl Objective<'_> {
    /// Mean cross-entropy of the data (nats), and the gradient of the whole objective.
    fn gradient<'a>(
        &self,
        head: &Head,
        batch: impl Iterator<Item = (&'a [f64], usize)>,
    ) -> (f64, Head) {
        let lambda = f64::from(self.job.distill_lambda);
        let mut gradient = Head::zeros_like(head);
        let (mut loss, mut examples) = (0.0, 0_u32);
        for (row, label) in batch {
            let p = head.probabilities(row);
            loss -= p.get(label).map_or(0.0, |p| p.max(f64::MIN_POSITIVE).ln());
            let target = self.targets.get(label).and_then(Option::as_ref);
            let error = p.iter().enumerate().map(|(class, p)| {
                let hard = p - if class == label { 1.0 } else { 0.0 };
                let soft = target.and_then(|t| t.get(class)).map_or(0.0, |q| p - q);
                hard + lambda * soft
            });
            gradient.add_outer(error, row);
            examples += 1;
        }
        let n = f64::from(examples.max(1));
        gradient.scale(1.0 / n);
        gradient.add_scaled(f64::from(self.job.prox_mu), head);
        gradient.add_scaled(-f64::from(self.job.prox_mu), self.start);
        gradient.add_scaled_weight(self.weight_decay, head);
        (loss / n, gradient)
    }
}

/// What a lesson teaches, as features.
struct Taught<'a> {
    lesson: &'a Lesson,
    /// `[n]` rows of features.
    rows: Vec<&'a [f64]>,
    /// A point in the space of features a class, with its class.
    points: Vec<(Vec<f64>, usize)>,
    classes: usize,
}

impl<'a> Taught<'a> {
    fn new(lesson: &'a Lesson, reference: &'a [f64], width: usize, classes: usize) -> Self {
        let fitting = lesson.prototypes.as_ref().filter(|prototypes| prototypes.width() == width);
        let point = |class| {
            let row = fitting?.row(class)?;
            Some((row.iter().map(|x| f64::from(*x)).collect(), class))
        };
        Self {
            lesson,
            rows: reference.chunks_exact(width).collect(),
            points: (0..classes).filter_map(point).collect(),
            classes,
        }
    }

    /// Adds the lesson's gradient over a batch; gives its mean cross-entropy.
    fn add_gradient(&self, head: &Head, batch: &[usize], gradient: &mut Head) -> f64 {
        let mut loss = 0.0;
        let share = f64::from(self.lesson.weight) / count_of(batch.len());
        for at in batch {
            let target = self.lesson.targets.chunks_exact(self.classes).nth(*at);
            let (Some(row), Some(target)) = (self.rows.get(*at), target) else { continue };
            let p = head.probabilities(row);
            for (p, t) in p.iter().zip(target) {
                loss -= f64::from(*t) * p.max(f64::MIN_POSITIVE).ln() / count_of(batch.len());
            }
            let error = p.iter().zip(target).map(|(p, t)| share * (p - f64::from(*t)));
            gradient.add_outer(error, row);
        }
        let share = f64::from(self.lesson.prototype_weight) / count_of(self.points.len());
        for (row, class) in &self.points {
            add_example(head, row, *class, share, gradient);
        }
        loss
    }

    /// Adds the gradient over generated latents; gives their mean cross-entropy.
    fn add_latents(&self, head: &Head, batch: &Latents, gradient: &mut Head) -> f64 {
        let n = count_of(batch.labels.len());
        let share = f64::from(self.lesson.generator_weight) / n;
        let width = batch.x.len().checked_div(batch.labels.len()).unwrap_or_default().max(1);
        let mut loss = 0.0;
        for (row, class) in batch.x.chunks_exact(width).zip(&batch.labels) {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            loss += add_example(head, &row, *class, share, gradient) / n;
        }
        loss
    }
}

/// Adds the gradient of `share` times the cross-entropy of features with their class; gives that.
fn add_example(head: &Head, row: &[f64], class: usize, share: f64, gradient: &mut Head) -> f64 {
    let p = head.probabilities(row);
    let hard = |at| if at == class { 1.0 } else { 0.0 };
    gradient.add_outer(p.iter().enumerate().map(|(at, p)| share * (p - hard(at))), row);
    -p.get(class).map_or(0.0, |p| p.max(f64::MIN_POSITIVE).ln())
}

/// Softmax of each class's target logits; none where the class was suppressed.
fn soft_targets(job: &TrainJob, classes: usize) -> Result<Vec<Option<Vec<f64>>>, LearnError> {
    let Some(ClassLogits { mean_logits, counts }) = &job.class_targets else {
        return Ok(Vec::new());
    };
    let shape = (mean_logits.len(), counts.len());
    if shape != (classes * classes, classes) {
        return Err(out_of_range("class targets", format!("{classes} x {classes}"), &shape));
    }
    if let Some(index) = mean_logits.iter().position(|x| !x.is_finite()) {
        return Err(LearnError::NotFinite { name: "class targets".into(), index });
    }
    let rows = mean_logits.chunks_exact(classes).zip(counts);
    let soft = |(row, count): (&[f32], &u64)| {
        let logits = row.iter().map(|x| f64::from(*x)).collect();
        (*count > 0).then(|| super::softmax_head::softmax(logits))
    };
    Ok(rows.map(soft).collect())
}

fn check_classes(classes: usize) -> Result<(), LearnError> {
    if (2..=MAX_CLASSES).contains(&classes) {
        return Ok(());
    }
    Err(out_of_range("number of classes", format!("2 to {MAX_CLASSES}"), &classes))
}

fn check_data(
    data: &Windows,
    (len, width): (usize, usize),
    classes: usize,
    lesson: Option<&Lesson>,
) -> Result<(), LearnError> {
    let n = data.num_examples();
    let taught = lesson.map_or(0, |lesson| lesson.windows.num_examples());
    if let Some(lesson) = lesson {
        lesson.check(classes)?;
        if taught > 0 && lesson.windows.len != len {
            return Err(out_of_range("reference windows", len.to_string(), &lesson.windows.len));
        }
    }
    let generated = lesson.is_some_and(|lesson| lesson.generator_for(width).is_some());
    if n == 0 && (taught > 0 || generated) {
        return Ok(());
    }
    if n == 0 {
        return Err(out_of_range("training examples", "at least 1".into(), &n));
    }
    if data.len != len || n.checked_mul(len) != Some(data.x.len()) {
        let shape = (data.x.len(), data.len);
        return Err(out_of_range("samples and window length", format!("{n} x {len}"), &shape));
    }
    match data.labels.iter().find(|label| **label >= classes) {
        Some(label) => Err(out_of_range("label", format!("below {classes}"), label)),
        None => Ok(()),
    }
}

fn out_of_range(what: &'static str, expected: String, actual: &dyn std::fmt::Debug) -> LearnError {
    LearnError::OutOfRange { what, expected, actual: format!("{actual:?}") }
}

#[expect(clippy::cast_possible_truncation, reason = "a loss is shown, not computed with")]
fn to_f32(x: f64) -> f32 {
    x as f32
}

#[expect(clippy::cast_precision_loss, reason = "a batch or a number of classes")]
fn count_of(n: usize) -> f64 {
    n.max(1) as f64
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// More classes than any machine has states; bounds what a job can make us allocate.
const MAX_CLASSES: usize = 4_096;

#[cfg(test)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "made-up signals")]
mod tests {
    use super::*;

    const LEN: usize = 512;

    fn learner() -> SoftmaxLearner {
        SoftmaxLearner::new(MachineSpeeds::default(), LEN, 2).unwrap()
    }

    fn predictor() -> SoftmaxPredictor {
        SoftmaxPredictor::new(MachineSpeeds::default(), LEN, 2).unwrap()
    }

    /// Class 0 is white noise, class 1 has a tone in it.
    fn windows(seed: u64, n: usize) -> Windows {
        let mut stream = Stream::new(seed, "windows");
        let labels: Vec<usize> = (0..n).map(|i| i % 2).collect();
        let mut x = Vec::new();
        for label in &labels {
            let tone = |t: usize| 2.0 * *label as f64 * (t as f64 * 0.7).sin();
            x.extend((0..LEN).map(|t| (stream.normal() + tone(t)) as f32));
        }
        Windows { x, len: LEN, labels, classes: 2 }
    }

    fn job() -> TrainJob {
        TrainJob {
            class_logits: true,
            ..TrainJob::plain(learner().initial_adapter(), 60, 8, 0.1, 1)
        }
    }

    fn train(job: &TrainJob) -> Trained {
        learner().train(&windows(1, 32).into(), job, &mut |_| Control::Continue).unwrap()
    }

    fn targets() -> ClassLogits {
        ClassLogits { mean_logits: vec![2.0, -1.0, 0.0, 0.0], counts: vec![30, 0] }
    }

    #[test]
    fn a_falling_rate_moves_less_and_leaves_the_first_step_as_it_is() {
        let moved = |steps, final_rate| {
            let trained = train(&TrainJob { steps, final_rate, ..job() });
            trained.adapter.tensors().iter().flat_map(|t| t.data.clone()).collect::<Vec<f32>>()
        };
        assert_eq!(moved(1, Some(0.0)), moved(1, None));
        assert_eq!(moved(60, Some(0.1)), moved(60, None));
        let length = |values: Vec<f32>| values.iter().map(|v| v * v).sum::<f32>();
        assert!(length(moved(60, Some(0.0))) < 0.9 * length(moved(60, None)));
        let refused = TrainJob { final_rate: Some(f32::NAN), ..job() };
        assert_eq!(refused.check().unwrap_err().kind(), "out_of_range");
    }

    #[test]
    fn it_learns_to_tell_a_tone_from_noise() {
        let trained = train(&job());
        assert!(trained.loss_last < trained.loss_first, "{trained:?}");
        assert_eq!((trained.num_examples, trained.steps), (32, 60));
        let mut predictor = predictor();
        predictor.load(&trained.adapter).unwrap();
        let other = windows(2, 40);
        let answers = predictor.predict(&other.x, LEN).unwrap();
        let right = answers.iter().zip(&other.labels).filter(|(a, y)| a.class == **y).count();
        assert!(right >= 38, "{right} of 40");
        for answer in answers {
            assert!((answer.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_objective() {
        let width = 3;
        let mut stream = Stream::new(3, "gradient");
        let mut random_head = || {
            let mut head = Head::zeros(2, width);
            head.values_mut().for_each(|x| *x = stream.normal());
            head
        };
        let (head, start) = (random_head(), random_head());
        let rows = [[0.3, -1.0, 2.0], [1.5, 0.2, -0.4], [0.0, 0.7, 0.1]];
        let labels = [0, 1, 0];
        let batch = || rows.iter().map(<[f64; 3]>::as_slice).zip(labels);
        let job =
            TrainJob { prox_mu: 0.3, distill_lambda: 0.7, class_targets: Some(targets()), ..job() };
        let soft = soft_targets(&job, 2).unwrap();
        let objective = Objective { start: &start, targets: &soft, weight_decay: 0.01, job: &job };
        let value = |head: &Head| {
            let (ce, _) = objective.gradient(head, batch());
            let mut distill = 0.0;
            for (row, label) in batch() {
                if let Some(q) = &soft[label] {
                    let p = head.probabilities(row);
                    distill -= q.iter().zip(&p).map(|(q, p)| q * p.ln()).sum::<f64>() / 3.0;
                }
            }
            let mut apart = head.clone();
            apart.add_scaled(-1.0, &start);
            let prox = apart.values_mut().map(|x| *x * *x).sum::<f64>() * 0.15_f64;
            let mut only_weight = Head::zeros(2, width);
            only_weight.add_scaled_weight(1.0, head);
            let decay = only_weight.values_mut().map(|x| *x * *x).sum::<f64>();
            ce + f64::from(0.7_f32) * distill + prox + 0.01 / 2.0 * decay
        };
        let (_, mut gradient) = objective.gradient(&head, batch());
        for (at, slope) in gradient.values_mut().enumerate() {
            let moved = |by: f64| {
                let mut head = head.clone();
                *head.values_mut().nth(at).unwrap() += by;
                value(&head)
            };
            let wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((*slope - wanted).abs() < 1e-6, "value {at}: {slope} {wanted}");
        }
    }

    #[test]
    fn the_proximal_term_keeps_the_adapter_near_its_start() {
        let free = train(&job()).adapter.norm();
        let held = train(&TrainJob { prox_mu: 1.0, ..job() }).adapter.norm();
        assert!(held < 0.8 * free, "the start is zero: {held} {free}");
    }

    #[test]
    fn class_targets_pull_the_logits_of_their_class() {
        let flat = ClassLogits { mean_logits: vec![0.0; 4], counts: vec![30, 30] };
        let pulled = TrainJob { distill_lambda: 4.0, class_targets: Some(flat), ..job() };
        let gap = |t: &Trained| t.class_logits.mean_logits[0] - t.class_logits.mean_logits[1];
        let (free, pulled) = (train(&job()), train(&pulled));
        assert!(gap(&pulled) < 0.7 * gap(&free), "{} {}", gap(&pulled), gap(&free));
        assert_eq!(free.class_logits.counts, [16, 16]);
    }

    /// Distributions of two classes over the reference windows, from their labels.
    fn lesson(reference: Windows, alpha: f32, teacher: Option<&[f32]>) -> Lesson {
        let targets =
            crate::learn::reference_targets(teacher, &reference.labels, 2, alpha).unwrap();
        Lesson { windows: Arc::new(reference), targets, weight: 1.0, ..Lesson::default() }
    }

    fn right(adapter: &TensorSet) -> usize {
        let mut predictor = predictor();
        predictor.load(adapter).unwrap();
        let unseen = windows(6, 40);
        let answers = predictor.predict(&unseen.x, LEN).unwrap();
        answers.iter().zip(&unseen.labels).filter(|(a, y)| a.class == **y).count()
    }

    fn nothing() -> Windows {
        Windows { len: LEN, classes: 2, ..Windows::default() }
    }

    #[test]
    fn without_examples_of_its_own_it_learns_from_the_lesson() {
        let taught = TrainJob { lesson: Some(lesson(windows(5, 40), 1.0, None)), ..job() };
        let train =
            |job: &TrainJob| learner().train(&nothing().into(), job, &mut |_| Control::Continue);
        let trained = train(&taught).unwrap();
        assert!(right(&trained.adapter) >= 38);
        assert_eq!((trained.num_examples, trained.reference_logits.len()), (0, 80));
        assert_eq!(train(&job()).unwrap_err().kind(), "out_of_range", "nothing to learn from");
    }

    #[test]
    fn a_teacher_of_the_opposite_turns_what_the_labels_say() {
        let reference = windows(5, 40);
        let turned = |y: &usize| if *y == 0 { [-5.0, 5.0] } else { [5.0, -5.0] };
        let opposite: Vec<f32> = reference.labels.iter().flat_map(turned).collect();
        let says = |alpha| {
            let lesson = Some(lesson(reference.clone(), alpha, Some(&opposite)));
            let job = TrainJob { lesson, ..job() };
            let trained = learner().train(&nothing().into(), &job, &mut |_| Control::Continue);
            let said = trained.unwrap().reference_logits;
            said[0] - said[1]
        };
        assert!(says(0.9) > 0.0 && says(0.1) < 0.0);
    }

    #[test]
    fn prototypes_teach_a_class_that_was_never_seen() {
        let both = windows(5, 40);
        let trained = learner().train(&both.into(), &job(), &mut |_| Control::Continue).unwrap();
        let prototypes = trained.prototypes.unwrap();
        assert_eq!(prototypes.counts, [20, 20]);
        // Only windows of class 0, to be told from class 1 by its prototype.
        let mut one_sided = windows(7, 40);
        let firsts = one_sided.x.chunks_exact(LEN).step_by(2);
        one_sided.x = firsts.flatten().copied().collect();
        one_sided.labels = vec![0; 20];
        let knows = |weight| {
            let mut lesson = lesson(nothing(), 1.0, None);
            lesson.prototypes = Some(prototypes.clone());
            lesson.prototype_weight = weight;
            let job = TrainJob { lesson: Some(lesson), ..job() };
            let data = one_sided.clone().into();
            right(&learner().train(&data, &job, &mut |_| Control::Continue).unwrap().adapter)
        };
        assert_eq!(knows(0.0), 20, "it has only ever seen class 0");
        assert!(knows(1.0) >= 38);
    }

    /// Windows of class 0 only, and a lesson of a generator that those who know both classes came to.
    fn generated(weight: f32) -> (Windows, Lesson) {
        let both = windows(5, 40);
        let trained = learner().train(&both.into(), &job(), &mut |_| Control::Continue).unwrap();
        let mut head = trained.head.unwrap();
        assert_eq!(head.rows.counts, [20, 20]);
        head.trim(5);
        let mut one_sided = windows(7, 40);
        one_sided.x = one_sided.x.chunks_exact(LEN).step_by(2).flatten().copied().collect();
        one_sided.labels = vec![0; 20];
        let generator = Some(crate::learn::LatentGenerator::train(&head, 3).unwrap());
        let lesson = lesson(nothing(), 1.0, None);
        (one_sided, Lesson { generator, generator_weight: weight, ..lesson })
    }

    #[test]
    fn a_generator_teaches_a_class_that_was_never_seen_and_without_it_nobody_does() {
        let knows = |weight| {
            let (one_sided, lesson) = generated(weight);
            let job = TrainJob { lesson: Some(lesson), ..job() };
            let trained = learner().train(&one_sided.into(), &job, &mut |_| Control::Continue);
            right(&trained.unwrap().adapter)
        };
        assert_eq!(knows(0.0), 20, "it has only ever seen class 0");
        let known = knows(1.0);
        assert!(known >= 36, "{known} of 40");
    }

    #[test]
    fn latents_alone_teach_too_and_those_of_another_width_are_left_out() {
        let (_, lesson) = generated(1.0);
        let train = |lesson: Lesson| {
            let job = TrainJob { lesson: Some(lesson), ..job() };
            learner().train(&nothing().into(), &job, &mut |_| Control::Continue)
        };
        let known = right(&train(lesson.clone()).unwrap().adapter);
        assert!(known >= 30, "{known} of 40");
        let rows = Prototypes { means: vec![1.0, 0.0, -1.0, 0.0], counts: vec![9, 9] };
        let head = crate::learn::ClassHead { rows, moments: vec![0.0, 1.0] };
        let narrow = Some(crate::learn::LatentGenerator::train(&head, 3).unwrap());
        let other = Lesson { generator: narrow, ..lesson.clone() };
        assert_eq!(train(other).unwrap_err().kind(), "out_of_range", "nothing to learn from");
        let rows = Prototypes { means: vec![1.0; 3 * 46], counts: vec![9; 3] };
        let head = crate::learn::ClassHead { rows, moments: vec![1.0; 2 * 45] };
        let three = crate::learn::LatentGenerator::train(&head, 3).unwrap();
        let three = Lesson { generator: Some(three), ..lesson };
        assert_eq!(train(three).unwrap_err().kind(), "out_of_range", "other classes");
    }

    #[test]
    fn the_same_job_gives_the_same_bits_and_another_seed_does_not() {
        assert_eq!(train(&job()).adapter, train(&job()).adapter);
        assert_ne!(train(&job()).adapter, train(&TrainJob { seed: 2, ..job() }).adapter);
        let mut twice = learner();
        let mut again = || twice.train(&windows(1, 32).into(), &job(), &mut |_| Control::Continue);
        assert_eq!(again().unwrap().adapter, again().unwrap().adapter, "with kept features");
    }

    #[test]
    fn whole_passes_take_each_window_once() {
        // One window of 33 has class 1; at so low a rate its bias tells in which batches it was.
        let mut data = windows(1, 33);
        data.labels = vec![0; 33];
        data.labels[32] = 1;
        let examples: Examples = data.into();
        for seed in 0..20 {
            let job = TrainJob { epochs: Some(1), learning_rate: 1e-6, seed, ..job() };
            let trained = learner().train(&examples, &job, &mut |_| Control::Continue).unwrap();
            assert_eq!(trained.steps, 5);
            let bias = f64::from(trained.adapter.get("head.bias").unwrap().data[1]) / 1e-6;
            // Five steps down by a half; up by 1/8 in a batch of 8, by 1 in the short one.
            let once = [-2.375, -1.5].iter().any(|once| (bias - once).abs() < 1e-2);
            assert!(once, "{seed}: {bias}");
        }
    }

    #[test]
    fn what_is_said_a_class_comes_when_it_is_asked_for_and_changes_nothing_else() {
        let silent = train(&TrainJob { class_logits: false, ..job() });
        assert_eq!(silent.class_logits, ClassLogits::default());
        assert_eq!(silent.prototypes, None);
        let telling = train(&job());
        assert_eq!((telling.adapter, telling.class_logits.counts), (silent.adapter, vec![16, 16]));
        assert!(telling.prototypes.is_some());
    }

    #[test]
    fn reference_windows_are_known_by_where_they_lie_and_a_lesson_without_weight_costs_no_step() {
        let taught = lesson(windows(5, 40), 1.0, None);
        let mut learner = learner();
        let mut with = |lesson: Lesson| {
            let job = TrainJob { lesson: Some(lesson), ..job() };
            learner.train(&windows(1, 32).into(), &job, &mut |_| Control::Continue).unwrap()
        };
        let first = with(taught.clone());
        let again = with(taught.clone());
        assert_eq!(first.reference_logits, again.reference_logits);
        // Other windows elsewhere: their features are worked out anew.
        let other = with(lesson(windows(9, 40), 1.0, None));
        assert_ne!(first.reference_logits, other.reference_logits);
        let unweighted = with(Lesson { weight: 0.0, ..taught });
        assert_eq!(unweighted.adapter, train(&job()).adapter);
        assert_eq!(unweighted.reference_logits.len(), 80);
        assert_eq!(Arc::strong_count(&learner.seen_reference.unwrap().0), 1);
    }

    #[test]
    fn a_stopped_run_keeps_what_it_learned() {
        let stop = &mut |p: Progress| if p.step == 5 { Control::Stop } else { Control::Continue };
        let trained = learner().train(&windows(1, 32).into(), &job(), stop).unwrap();
        assert_eq!(trained.steps, 5);
        assert!(trained.adapter.norm() > 0.0);
    }

    #[test]
    fn jobs_and_data_that_do_not_fit_are_refused() {
        let refused = |data: &Windows, job: TrainJob| {
            learner()
                .train(&data.clone().into(), &job, &mut |_| Control::Continue)
                .unwrap_err()
                .kind()
        };
        let good = windows(1, 4);
        assert_eq!(refused(&good, TrainJob { steps: 0, ..job() }), "out_of_range");
        assert_eq!(refused(&good, TrainJob { learning_rate: f32::NAN, ..job() }), "out_of_range");
        assert_eq!(refused(&good, TrainJob { prox_mu: -1.0, ..job() }), "out_of_range");
        let start = TensorSet::default();
        assert_eq!(refused(&good, TrainJob { start, ..job() }), "layout_mismatch");
        let class_targets = Some(ClassLogits { mean_logits: vec![0.0; 9], counts: vec![1; 3] });
        assert_eq!(refused(&good, TrainJob { class_targets, ..job() }), "out_of_range");
        assert_eq!(
            refused(&Windows { labels: vec![0, 1, 2, 0], ..windows(1, 4) }, job()),
            "out_of_range"
        );
        assert_eq!(refused(&Windows { len: LEN / 2, ..windows(1, 4) }, job()), "out_of_range");
        assert_eq!(refused(&Windows::default(), job()), "out_of_range");
        assert_eq!(refused(&good, TrainJob { learning_rate: 1e38, ..job() }), "not_finite");
        assert!(SoftmaxLearner::new(MachineSpeeds::default(), LEN, 1).is_err());
    }

    #[test]
    fn a_bad_adapter_leaves_the_old_one_in_place() {
        let mut predictor = predictor();
        let window = windows(1, 2).x;
        predictor.load(&train(&job()).adapter).unwrap();
        let before = predictor.predict(&window, LEN).unwrap();
        assert!(predictor.load(&TensorSet::default()).is_err());
        assert_eq!(predictor.predict(&window, LEN).unwrap(), before);
        assert!(predictor.predict(&window, LEN / 2).is_err());
        assert!(predictor.predict(&window[1..], LEN).is_err());
    }
}
