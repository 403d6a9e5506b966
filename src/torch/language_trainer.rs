//! Local training of a language model's adapter on one device's texts.
//!
//! ```text
//! seeded order -> packed sequences -> blocks (frozen base + adapter) -> chunked cross-entropy
//!      flat <- AdamW <- gradient + mu (w - start)
//! ```
//! Under a memory cap a batch goes through in parts (gradient accumulation), and where even one
//! sequence's activations are too many, a block at a time: its input is kept, the rest is computed again
//! for the backward pass (arXiv:1604.06174). Its runs can be kept on disk ([`super::checkpoint`]).

use std::num::NonZeroU16;

use tch::{Kind, Tensor};

use super::adamw::{AdamW, AdamWConfig};
use super::adapter::AdapterPlan;
use super::checkpoint::{Checkpoints, Midway};
use super::cross_entropy::{Taught, head_loss, nats_of, taught_loss};
use super::language::{LanguageBase, LanguageModel, TokenBatch};
use super::memory::{Budget, Plan};
use super::peft::PeftConfig;
use super::{tensor, use_threads, values};
use crate::learn::{
    Control, Examples, Frame, LearnError, Learner, Packed, Progress, TensorSet, Texts, TrainJob,
    Trained, pack,
};
use crate::rng::Stream;
use text_lesson::{Course, Taken};

mod text_lesson;

/// What doesn't change from job to job.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageTrainerConfig {
    /// What trains.
    pub peft: PeftConfig,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// Tokens a sequence; several texts share one.
    pub sequence: u32,
    /// What stands around each text.
    pub frame: Frame,
    /// Memory that base and training may take together, in MiB.
    pub max_memory_mib: Option<u32>,
    /// Threads of libtorch on the lane that trains.
    pub threads: NonZeroU16,
}

/// Trains adapters of one base.
#[derive(Debug)]
pub struct LanguageLearner {
    config: LanguageTrainerConfig,
    base: LanguageBase,
    plan: AdapterPlan,
    initial: TensorSet,
    checkpoints: Option<Checkpoints>,
}

impl LanguageLearner {
    /// Takes a base; what is drawn in the adapter comes from `seed`, which all nodes share.
    ///
    /// # Errors
    /// [`LearnError`] when base and config don't fit together.
    pub fn new(
        base: LanguageBase,
        config: LanguageTrainerConfig,
        seed: u64,
    ) -> Result<Self, LearnError> {
        let plan = AdapterPlan::new(&base.weights().layout(), &config.peft)?;
        let initial = plan.initial(base.weights(), seed)?;
        Ok(Self { config, base, plan, initial, checkpoints: None })
    }

    /// The same, keeping its runs: a job that was cut off goes on after the last step that was kept.
    #[must_use]
    pub fn keeping(self, checkpoints: Checkpoints) -> Self {
        Self { checkpoints: Some(checkpoints), ..self }
    }

    /// What trains.
    pub fn plan(&self) -> &AdapterPlan {
        &self.plan
    }

    /// Nats of all texts' tokens (their end tokens aside) with an adapter, and their characters.
    ///
    /// # Errors
    /// [`LearnError`] when the adapter isn't one of this base.
    pub fn nats(&self, texts: &Texts, adapter: &TensorSet) -> Result<f64, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.config.threads);
        let attached = self.plan.attach(&self.flatten(adapter)?)?;
        let model = self.base.model(Some(&attached))?;
        let packed = pack(texts.rows(), self.config.frame, self.config.sequence as usize)?;
        let mut nats = 0.0;
        for at in 0..packed.num() {
            let part = Rows::new(&packed, &[at], self.base.device())?;
            let judged = part.judged(&packed, at)?;
            let hidden = model.hidden(&part.batch)?.f_flatten(0, 1)?;
            let chosen = hidden.f_index_select(0, &part.places)?;
            let each = nats_of(&chosen, model.head(), &part.targets)?;
            nats += each.f_mul(&judged)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        Ok(nats)
    }

    /// Starts a run at `start`; each [`LanguageRun::step`] changes it by one batch.
    ///
    /// # Errors
    /// [`LearnError`] when the adapter isn't one of this base, or a step wouldn't fit in memory.
    pub fn run(&self, start: &TensorSet, rows: usize) -> Result<LanguageRun<'_>, LearnError> {
        let tokens = self.config.sequence as usize;
        let budget = Budget::of(&self.base, &self.plan, tokens)?;
        let how = budget.plan(rows, self.config.max_memory_mib)?;
        let start = self.flatten(start)?;
        let flat = start.f_detach_copy()?.f_set_requires_grad(true)?;
        let adamw = AdamW::new(&flat, self.config.adamw)?;
        Ok(LanguageRun { learner: self, start, flat, adamw, how })
    }

    fn flatten(&self, adapter: &TensorSet) -> Result<Tensor, LearnError> {
        Ok(self.plan.flatten(adapter)?.f_to(self.base.device())?)
    }
}

impl Learner for LanguageLearner {
    fn initial_adapter(&self) -> TensorSet {
        self.initial.clone()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let texts = data.texts()?;
        check_ids(texts, self.base.config().vocab)?;
        without_targets(job)?;
        job.check()?;
        let mut course = Course::of(self, job)?;
        let taught = course.as_ref().is_some_and(Course::teaches);
        // An owner's model has no texts of its own, and nothing to do before somebody has said something.
        let alone = texts.lengths.is_empty() && course.is_some();
        let mut sequences =
            if alone { None } else { Some(Sequences::new(texts, &self.config, job)?) };
        let pass = sequences.as_mut().map_or(Ok(0), Sequences::a_pass)?;
        let steps = job.check_for(pass)?;
        let steps = if alone && !taught { 0 } else { steps };
        use_threads(self.config.threads);
        let rows = job.batch_size as usize;
        let mut run = self.run(&job.start, rows)?;
        let mut draw = |course: &mut Option<Course<'_>>| -> Result<_, LearnError> {
            let own = sequences.as_mut().map(|sequences| sequences.next(rows)).transpose()?;
            let reference = course.as_mut().filter(|_| taught).map(|course| course.next(rows));
            Ok((own, reference))
        };
        let mut losses = Vec::new();
        let lesson = course.as_ref().map(Course::words);
        let config = format!("{:?}{}", self.config, lesson.unwrap_or_default());
        let id = |kept: &Checkpoints| kept.job(job, texts, &config);
        let kept = self.checkpoints.as_ref().map(|kept| (kept, id(kept)));
        if let Some(midway) = kept.as_ref().and_then(|(kept, id)| kept.read(id)) {
            run.go_on(&midway)?;
            for _ in &midway.losses {
                draw(&mut course)?;
            }
            losses = midway.losses;
            losses.truncate(steps as usize);
        }
        let done = u32::try_from(losses.len()).unwrap_or(u32::MAX);
        for step in done + 1..=steps {
            let (own, reference) = draw(&mut course)?;
            if self.config.peft.lora.as_ref().is_some_and(|l| l.dropout > 0.0) {
                // libtorch draws what drops out: its generator is one for the process, so it is set
                // anew each step.
                tch::manual_seed(job.seed.wrapping_add(u64::from(step)).cast_signed());
            }
            let taken = course.as_ref().zip(reference).map(|(course, chosen)| course.taken(chosen));
            let rate = job.rate_at(step, steps).into();
            let loss = run.step_on(own.as_ref(), taken.as_ref(), rate, job.prox_mu.into())?;
            losses.push(loss);
            if let Some((kept, id)) = &kept
                && kept.due(losses.len())
            {
                kept.write(id, run.midway(losses.clone())?);
            }
            if progress(Progress { step, loss }) == Control::Stop {
                break;
            }
        }
        let adapter = run.adapter()?;
        adapter.check_finite()?;
        let said = course.as_ref().map(|course| self.said(&run.flat, course)).transpose()?;
        Ok(Trained { top_logits: said, ..Trained::of(adapter, texts.lengths.len(), &losses) })
    }
}

/// One training run: a flat buffer and its optimiser.
#[derive(Debug)]
pub struct LanguageRun<'a> {
    learner: &'a LanguageLearner,
    start: Tensor,
    flat: Tensor,
    adamw: AdamW,
    how: Plan,
}

impl LanguageRun<'_> {
    /// One optimiser step on packed sequences; gives the mean loss a target in nats, without the
    /// proximal term.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] when the loss isn't finite: nothing has changed then.
    pub fn step(&mut self, packed: &Packed, rate: f64, prox_mu: f64) -> Result<f32, LearnError> {
        self.step_on(Some(packed), None, rate, prox_mu)
    }

    /// The same with what is taught on reference texts; the loss is that of the own texts, where there are any.
    fn step_on(
        &mut self,
        own: Option<&Packed>,
        taken: Option<&Taken<'_>>,
        rate: f64,
        prox_mu: f64,
    ) -> Result<f32, LearnError> {
        let (device, at_once) = (self.learner.base.device(), self.how.rows.max(1));
        let mut gradient: Option<Tensor> = None;
        let mut back = |rows: &Rows, divisor| -> Result<f64, LearnError> {
            let (nats, more) = self.backward(rows, divisor)?;
            gradient = Some(match gradient.take() {
                Some(gradient) => gradient.f_add(&more)?,
                None => more,
            });
            Ok(nats)
        };
        let mut loss = None;
        if let Some(packed) = own {
            let all: Vec<usize> = (0..packed.num()).collect();
            #[expect(clippy::cast_precision_loss, reason = "a batch has few tokens")]
            let divisor = packed.num_targets().max(1) as f64;
            let mut sum = 0.0;
            for part in all.chunks(at_once) {
                sum += back(&Rows::new(packed, part, device)?, divisor)?;
            }
            loss = Some(sum / divisor);
        }
        if let Some(taken) = taken {
            let mut sum = 0.0;
            for rows in taken.parts(at_once, device) {
                sum += back(&rows?, taken.divisor())?;
            }
            let taught = sum / taken.places();
            // Whichever is told, neither may be beyond all bounds.
            loss = Some(loss.map_or(taught, |own| if taught.is_finite() { own } else { taught }));
        }
        let loss = loss.unwrap_or(f64::NAN);
        let (true, Some(gradient)) = (loss.is_finite(), gradient) else {
            return Err(LearnError::NotFinite { name: "loss".into(), index: 0 });
        };
        let gradient = if prox_mu > 0.0 {
            let away = self.flat.f_detach()?.f_sub(&self.start)?;
            gradient.f_add(&away.f_mul_scalar(prox_mu)?)?
        } else {
            gradient
        };
        self.adamw.step(&mut self.flat, &gradient, rate)?;
        #[expect(clippy::cast_possible_truncation, reason = "a loss fits an f32")]
        Ok(loss as f32)
    }

    /// The adapter as it is now.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn adapter(&self) -> Result<TensorSet, LearnError> {
        self.learner.plan.unflatten(&self.flat)
    }

    /// What it takes to go on from here.
    fn midway(&self, losses: Vec<f32>) -> Result<Midway, LearnError> {
        let (mean, square) = self.adamw.means();
        let (flat, mean, square) = (values(&self.flat)?, values(mean)?, values(square)?);
        Ok(Midway { losses, flat, mean, square })
    }

    /// Goes to where an earlier run of the same job stood.
    fn go_on(&mut self, midway: &Midway) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let steps = i32::try_from(midway.losses.len()).unwrap_or(i32::MAX);
        let (shape, device) = (self.flat.size(), self.flat.device());
        let buffer =
            |values: &[f32]| tensor(values, &shape)?.f_to(device).map_err(LearnError::from);
        self.adamw.go_on(buffer(&midway.mean)?, buffer(&midway.square)?, steps);
        self.flat.f_copy_(&buffer(&midway.flat)?)?;
        Ok(())
    }

    /// One step of the optimiser on a copy, for whoever wants to know what it costs.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn optimiser_step(&self) -> Result<(), LearnError> {
        let mut flat = self.flat.f_detach_copy()?;
        let gradient = flat.f_zeros_like()?;
        AdamW::new(&flat, self.learner.config.adamw)?.step(&mut flat, &gradient, 1e-3)
    }

    /// Sum of the nats of some rows, and the gradient of `sum / divisor`.
    fn backward(&self, rows: &Rows, divisor: f64) -> Result<(f64, Tensor), LearnError> {
        let attached = self.learner.plan.attach(&self.flat)?;
        let model = self.learner.base.model(Some(&attached))?;
        if self.how.a_block_at_a_time {
            return self.backward_by_blocks(&model, rows, divisor);
        }
        let hidden = model.hidden(&rows.batch)?;
        let (sum, loss) = loss_of(&model, &hidden, rows, divisor)?;
        Ok((sum, gradient(&loss, &self.flat)?))
    }

    /// The same, with the input of each block kept and the rest computed twice.
    fn backward_by_blocks(
        &self,
        model: &LanguageModel,
        rows: &Rows,
        divisor: f64,
    ) -> Result<(f64, Tensor), LearnError> {
        let way = model.enter(&rows.batch)?;
        let mut inputs = Vec::with_capacity(model.layers());
        let mut x = way.x.f_detach()?;
        {
            let _guard = tch::no_grad_guard();
            for i in 0..model.layers() {
                inputs.push(x.shallow_clone());
                x = model.block(i, &x, &way)?;
            }
        }
        let top = x.f_detach()?.f_set_requires_grad(true)?;
        let (sum, loss) = loss_of(model, &model.leave(&top, &way)?, rows, divisor)?;
        let mut total = self.flat.f_detach()?.f_zeros_like()?;
        let mut above = pull(&loss, &top, &self.flat, &mut total)?;
        for (i, x) in inputs.into_iter().enumerate().rev() {
            let x = x.f_set_requires_grad(true)?;
            let y = model.block(i, &x, &way)?;
            let through = y.f_mul(&above)?.f_sum(Kind::Float)?;
            above = pull(&through, &x, &self.flat, &mut total)?;
        }
        if way.x.requires_grad() {
            let through = way.x.f_mul(&above)?.f_sum(Kind::Float)?;
            let _ = total.f_add_(&gradient(&through, &self.flat)?)?;
        }
        Ok((sum, total))
    }
}

/// Sum of the nats, and a scalar whose gradient is that of `sum / divisor`.
fn loss_of(
    model: &LanguageModel,
    hidden: &Tensor,
    rows: &Rows,
    divisor: f64,
) -> Result<(f64, Tensor), LearnError> {
    let chosen = hidden.f_flatten(0, 1)?.f_index_select(0, &rows.places)?;
    let targets = &rows.targets;
    if model.head().requires_grad() {
        let shares = model.logits(&chosen)?.f_log_softmax(-1, Kind::Float)?;
        let nats = match &rows.taught {
            Some(taught) => taught.nats(&shares, targets)?,
            None => shares.f_gather(1, &targets.f_unsqueeze(1)?, false)?.f_neg()?,
        };
        let sum = nats.f_sum(Kind::Float)?;
        return Ok((sum.f_double_value(&[])?, sum.f_div_scalar(divisor)?));
    }
    let loss = match &rows.taught {
        Some(taught) => taught_loss(&chosen, model.head(), targets, taught, divisor)?,
        None => head_loss(&chosen, model.head(), targets, divisor)?,
    };
    Ok((loss.sum, chosen.f_mul(&loss.gradient)?.f_sum(Kind::Float)?))
}

/// Gradient of a scalar with respect to `flat`.
fn gradient(of: &Tensor, flat: &Tensor) -> Result<Tensor, LearnError> {
    let gradients = Tensor::f_run_backward(&[of], &[flat], false, false)?;
    gradients.into_iter().next().ok_or_else(|| LearnError::Engine {
        engine: "libtorch",
        message: "no gradient came back".into(),
    })
}

/// Gradient of a scalar with respect to `x`; that with respect to `flat` goes into `total`.
fn pull(of: &Tensor, x: &Tensor, flat: &Tensor, total: &mut Tensor) -> Result<Tensor, LearnError> {
    // Zero times the buffer: a block without an adapter of its own has a gradient for it as well.
    let of = of.f_add(&flat.f_narrow(0, 0, 1)?.f_sum(Kind::Float)?.f_mul_scalar(0.0)?)?;
    let gradients = Tensor::f_run_backward(&[&of], &[x, flat], true, false)?;
    let [for_x, for_flat] = gradients.as_slice() else {
        let message = "no gradients came back".into();
        return Err(LearnError::Engine { engine: "libtorch", message });
    };
    let _ = total.f_add_(for_flat)?;
    Ok(for_x.shallow_clone())
}

/// Some packed sequences as tensors.
#[derive(Debug)]
struct Rows {
    batch: TokenBatch,
    /// Places with a target, in the flattened rows.
    places: Tensor,
    /// Their targets.
    targets: Tensor,
    /// What a teacher says at them.
    taught: Option<Taught>,
}

impl Rows {
    fn new(packed: &Packed, rows: &[usize], device: tch::Device) -> Result<Self, LearnError> {
        let len = packed.length;
        let mut ids = Vec::with_capacity(rows.len() * len);
        let (mut positions, mut segments) = (ids.clone(), ids.clone());
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for row in rows {
            let range = row * len..(row + 1) * len;
            let pick = |all: &[u32], into: &mut Vec<i64>| {
                into.extend(
                    all.get(range.clone()).unwrap_or_default().iter().map(|x| i64::from(*x)),
                );
            };
            let first = i64::try_from(ids.len()).unwrap_or(i64::MAX);
            pick(&packed.inputs, &mut ids);
            pick(&packed.positions, &mut positions);
            pick(&packed.segments, &mut segments);
            let wanted = packed.targets.get(range.clone()).unwrap_or_default();
            for (place, target) in (first..).zip(wanted) {
                if let Some(target) = target {
                    places.push(place);
                    targets.push(i64::from(*target));
                }
            }
        }
        let one_text_each = segments.chunks(len.max(1)).all(|row| row.iter().all(|s| *s == 1));
        let shape = [i64::try_from(rows.len()).unwrap_or(0), -1];
        let matrix = |values: &[i64]| -> Result<Tensor, LearnError> {
            Ok(Tensor::f_from_slice(values)?.f_reshape(shape)?.f_to(device)?)
        };
        let batch = TokenBatch {
            ids: matrix(&ids)?,
            positions: if one_text_each { None } else { Some(matrix(&positions)?) },
            segments: if one_text_each { None } else { Some(matrix(&segments)?) },
        };
        let places = Tensor::f_from_slice(&places)?.f_to(device)?;
        let targets = Tensor::f_from_slice(&targets)?.f_to(device)?;
        Ok(Self { batch, places, targets, taught: None })
    }

    /// 1 at targets that are judged, 0 at those that are only learned.
    fn judged(&self, packed: &Packed, row: usize) -> Result<Tensor, LearnError> {
        let range = row * packed.length..(row + 1) * packed.length;
        let targets = packed.targets.get(range.clone()).unwrap_or_default();
        let judged = packed.judged.get(range).unwrap_or_default();
        let wanted = targets.iter().zip(judged).filter(|(target, _)| target.is_some());
        let weights: Vec<f32> = wanted.map(|(_, judged)| f32::from(u8::from(*judged))).collect();
        Ok(Tensor::f_from_slice(&weights)?.f_to(self.targets.device())?)
    }
}

/// Sequences of a device's texts, in an order that a seed decides, over and over.
///
/// Each time anew cut, and batches of one size; where a job asks for whole passes, cut once, so that a pass
/// is as many sequences each time, with a last batch as short as it comes.
struct Sequences<'a> {
    texts: Vec<&'a [u32]>,
    frame: Frame,
    length: usize,
    stream: Stream,
    /// All texts as they were cut last.
    cut: Packed,
    /// Those of its sequences that are still to come.
    order: Vec<usize>,
    whole_passes: bool,
}

impl<'a> Sequences<'a> {
    fn new(
        texts: &'a Texts,
        config: &LanguageTrainerConfig,
        job: &TrainJob,
    ) -> Result<Self, LearnError> {
        let rows: Vec<&[u32]> = texts.rows().filter(|row| !row.is_empty()).collect();
        if rows.is_empty() {
            return Err(LearnError::OutOfRange {
                what: "texts",
                expected: "at least one".into(),
                actual: "none".into(),
            });
        }
        let length = config.sequence as usize;
        let stream = Stream::new(job.seed, "texts");
        let (cut, order, whole_passes) = (Packed::default(), Vec::new(), job.epochs.is_some());
        Ok(Self { texts: rows, frame: config.frame, length, stream, cut, order, whole_passes })
    }

    /// Sequences of a whole pass; as many as texts where nobody asks for passes.
    fn a_pass(&mut self) -> Result<usize, LearnError> {
        if !self.whole_passes {
            return Ok(self.texts.len());
        }
        if self.cut.num() == 0 {
            self.cut_anew()?;
        }
        Ok(self.cut.num())
    }

    /// The next `count` sequences; where the texts end, they are cut anew, or a whole pass is over.
    fn next(&mut self, count: usize) -> Result<Packed, LearnError> {
        if self.whole_passes {
            if self.order.is_empty() {
                self.order = (0..self.a_pass()?).collect();
                self.stream.shuffle(&mut self.order);
            }
            let from = self.order.len().saturating_sub(count);
            return Ok(self.cut.choose(&self.order.split_off(from)));
        }
        let mut chosen = Vec::with_capacity(count);
        let mut batch = Packed { length: self.length, ..Packed::default() };
        while batch.num() + chosen.len() < count {
            if let Some(at) = self.order.pop() {
                chosen.push(at);
            } else {
                batch.append(&self.cut.choose(&chosen));
                chosen.clear();
                self.cut_anew()?;
            }
        }
        batch.append(&self.cut.choose(&chosen));
        Ok(batch)
    }

    /// Packs all texts once more: a log book from another text on (what comes before its first text then is
    /// its end), texts by themselves in another order, so that beginnings and neighbours differ.
    fn cut_anew(&mut self) -> Result<(), LearnError> {
        if self.frame.together {
            let first = self.stream.below(self.texts.len());
            self.texts.rotate_left(first);
        } else {
            self.stream.shuffle(&mut self.texts);
        }
        self.cut = pack(self.texts.iter().copied(), self.frame, self.length)?;
        self.order = (0..self.cut.num()).collect();
        self.stream.shuffle(&mut self.order);
        Ok(())
    }
}

/// Class targets teach classifiers; with a weight they would be expected to teach here.
fn without_targets(job: &TrainJob) -> Result<(), LearnError> {
    if job.class_targets.is_none() || job.distill_lambda <= 0.0 {
        return Ok(());
    }
    Err(LearnError::OutOfRange {
        what: "class targets",
        expected: "none: a language model has no classes (take distill_lambda = 0)".into(),
        actual: format!("some, of weight {}", job.distill_lambda),
    })
}

fn check_ids(texts: &Texts, vocab: u32) -> Result<(), LearnError> {
    match texts.tokens.iter().find(|id| **id >= vocab) {
        None => Ok(()),
        Some(id) => Err(LearnError::OutOfRange {
            what: "token id",
            expected: format!("below {vocab}; is this the model's own tokenizer?"),
            actual: id.to_string(),
        }),
    }
}

#[cfg(test)]
#[path = "language_tests.rs"]
mod tests;
