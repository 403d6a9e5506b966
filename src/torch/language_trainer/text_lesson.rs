//! What a language model is taught on reference texts, and what it says of them (`learn/top_logits.rs`).
//!
//! The texts are packed once, each by itself, and a second packing of their places' numbers tells which place of which
//! text stands where. Only a text's own tokens are places: its end isn't.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::{LanguageLearner, Rows, use_threads};
use crate::learn::{
    Frame, LearnError, Lesson, Packed, TaughtPlace, TextLesson, Texts, TopLogits, TrainJob, pack,
};
use crate::rng::Stream;
use crate::torch::cross_entropy::{Taught, each_place};
use crate::torch::tensor;

/// Reference texts as sequences.
struct Reading {
    packed: Packed,
    /// Number of the place at each target.
    numbers: Packed,
}

impl Reading {
    fn new(texts: &Texts, frame: Frame, length: usize) -> Result<Self, LearnError> {
        let alone = Frame { together: false, ..frame };
        let places = u32::try_from(texts.tokens.len()).unwrap_or(u32::MAX);
        let numbered =
            Texts { tokens: (0..places).collect(), lengths: texts.lengths.clone(), chars: 0 };
        let read = |texts: &Texts| -> Result<Packed, LearnError> {
            let mut packed = pack(texts.rows(), alone, length)?;
            for (target, judged) in packed.targets.iter_mut().zip(&packed.judged) {
                *target = target.filter(|_| *judged);
            }
            Ok(packed)
        };
        Ok(Self { packed: read(texts)?, numbers: read(&numbered)? })
    }

    /// Numbers of the places of some sequences, in the order of [`Rows::new`].
    fn numbers_of(&self, sequences: &[usize]) -> Vec<u32> {
        self.numbers.choose(sequences).targets.into_iter().flatten().collect()
    }
}

/// A job's lesson, and the order in which it is gone through.
pub(super) struct Course<'a> {
    lesson: &'a TextLesson,
    weight: f64,
    reading: Reading,
    /// Whether the teacher is listened to, place by place.
    heard: Vec<bool>,
    order: Vec<usize>,
    stream: Stream,
}

/// Sequences of a step with what is taught on them.
pub(super) struct Taken<'a> {
    course: &'a Course<'a>,
    sequences: Vec<usize>,
}

impl<'a> Course<'a> {
    /// What the job teaches; compares the teacher with what the model itself says before.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for a lesson that isn't one of texts in this model's tokens.
    pub(super) fn of(
        learner: &LanguageLearner,
        job: &'a TrainJob,
    ) -> Result<Option<Self>, LearnError> {
        let Some(lesson) = &job.lesson else { return Ok(None) };
        let Lesson { texts: Some(texts), weight, prototypes: None, .. } = lesson else {
            return job.without_lesson("a language model").map(|()| None);
        };
        check(texts, *weight, learner.base.config().vocab)?;
        let reading = Reading::new(
            &texts.tokens.texts,
            learner.config.frame,
            learner.config.sequence as usize,
        )?;
        let mut course = Self {
            lesson: texts,
            weight: f64::from(*weight),
            reading,
            heard: vec![false; texts.tokens.texts.tokens.len()],
            order: Vec::new(),
            stream: Stream::new(job.seed, "reference texts"),
        };
        if let Some(teacher) = &texts.teacher {
            let mine = learner.said(&learner.flatten(&job.start)?, &course)?.losses();
            let better = teacher.losses().into_iter().zip(mine).map(|(theirs, mine)| theirs < mine);
            let lengths = texts.tokens.texts.lengths.iter();
            let heard =
                better.zip(lengths).flat_map(|(better, len)| (0..*len).map(move |_| better));
            course.heard = heard.collect();
        }
        Ok(Some(course))
    }

    /// Whether there is anything to learn from it.
    pub(super) fn teaches(&self) -> bool {
        let heard = self.lesson.alpha < 1.0 && self.heard.contains(&true);
        self.weight > 0.0 && (self.lesson.alpha > 0.0 || heard)
    }

    /// The next so many sequences, each once before one comes again.
    pub(super) fn next(&mut self, count: usize) -> Vec<usize> {
        if self.order.is_empty() {
            self.order = (0..self.reading.packed.num()).collect();
            self.stream.shuffle(&mut self.order);
        }
        let from = self.order.len().saturating_sub(count);
        self.order.split_off(from)
    }

    /// These sequences with what is taught on them.
    pub(super) fn taken(&'a self, sequences: Vec<usize>) -> Taken<'a> {
        Taken { course: self, sequences }
    }

    /// What makes the lesson this one and no other.
    pub(super) fn words(&self) -> String {
        let TextLesson { tokens, teacher, alpha, top } = self.lesson;
        let teacher = teacher.as_ref().map(|teacher| teacher.digest());
        format!("{} {teacher:?} {alpha} {top} {}", tokens.digest(), self.weight)
    }
}

impl Taken<'_> {
    /// Rows of so many sequences at a time.
    pub(super) fn parts(
        &self,
        rows: usize,
        device: tch::Device,
    ) -> impl Iterator<Item = Result<Rows, LearnError>> {
        self.sequences.chunks(rows.max(1)).map(move |part| {
            let mut rows = Rows::new(&self.course.reading.packed, part, device)?;
            rows.taught = Some(self.taught(part, device)?);
            Ok(rows)
        })
    }

    /// What a step's sum of nats is divided by.
    pub(super) fn divisor(&self) -> f64 {
        self.places() / self.course.weight
    }

    /// Places that are learned from.
    #[expect(clippy::cast_precision_loss, reason = "a batch has few tokens")]
    pub(super) fn places(&self) -> f64 {
        self.course.reading.numbers_of(&self.sequences).len().max(1) as f64
    }

    fn taught(&self, sequences: &[usize], device: tch::Device) -> Result<Taught, LearnError> {
        let Course { lesson, heard, reading, .. } = self.course;
        let words = lesson.teacher.as_ref().map_or(0, |teacher| teacher.top()) + 1;
        let silence = TaughtPlace { ids: vec![0; words], shares: vec![0.0; words], rest: 0.0 };
        let (mut ids, mut shares) = (Vec::<i64>::new(), Vec::<f32>::new());
        let (mut rest, mut weight) = (Vec::<f32>::new(), Vec::<f32>::new());
        for number in reading.numbers_of(sequences) {
            let at = number as usize;
            let listens = heard.get(at).copied().unwrap_or(false);
            let teacher = lesson.teacher.as_ref().filter(|_| listens);
            let place = teacher.and_then(|teacher| teacher.place(at));
            weight.push(if place.is_some() { 1.0 - lesson.alpha } else { 0.0 });
            let place = place.as_ref().unwrap_or(&silence);
            ids.extend(place.ids.iter().map(|id| i64::from(*id)));
            shares.extend_from_slice(&place.shares);
            rest.push(place.rest);
        }
        let (n, k) = (i64::try_from(rest.len()).unwrap_or(0), i64::try_from(words).unwrap_or(0));
        let place = |values: &[f32], width| -> Result<Tensor, LearnError> {
            Ok(tensor(values, &[n, width])?.f_to(device)?)
        };
        Ok(Taught {
            ids: Tensor::f_from_slice(&ids)?.f_reshape([n, k])?.f_to(device)?,
            shares: place(&shares, k)?,
            rest: place(&rest, 1)?,
            weight: place(&weight, 1)?,
            alpha: f64::from(lesson.alpha),
        })
    }
}

impl LanguageLearner {
    /// What the model with this adapter says of a lesson's texts.
    pub(super) fn said(&self, flat: &Tensor, course: &Course<'_>) -> Result<TopLogits, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.config.threads);
        let attached = self.plan.attach(flat)?;
        let model = self.base.model(Some(&attached))?;
        let mut said = TopLogits::silent(&course.lesson.tokens.texts, course.lesson.top)?;
        for at in 0..course.reading.packed.num() {
            let rows = Rows::new(&course.reading.packed, &[at], self.base.device())?;
            let mut numbers = course.reading.numbers_of(&[at]).into_iter();
            let hidden = model.hidden(&rows.batch)?.f_flatten(0, 1)?;
            let chosen = hidden.f_index_select(0, &rows.places)?.f_to_kind(Kind::Float)?;
            each_place(&chosen, model.head(), &mut |shares| {
                numbers.next().map_or(Ok(()), |number| said.say(number as usize, shares))
            })?;
        }
        Ok(said)
    }
}

fn check(lesson: &TextLesson, weight: f32, vocab: u32) -> Result<(), LearnError> {
    let bad = |what, expected: String, actual: String| {
        Err(LearnError::OutOfRange { what, expected, actual })
    };
    if !(weight >= 0.0 && weight.is_finite()) {
        return bad("weight of reference texts", "0 or more".into(), weight.to_string());
    }
    if !(0.0..=1.0).contains(&lesson.alpha) {
        return bad("share of the texts' own tokens", "0 to 1".into(), lesson.alpha.to_string());
    }
    if lesson.tokens.vocab != vocab {
        let actual = lesson.tokens.vocab.to_string();
        return bad("ids of the reference texts' tokenizer", vocab.to_string(), actual);
    }
    let about = |teacher: &Arc<TopLogits>| teacher.is_about(&lesson.tokens.texts);
    if !lesson.teacher.as_ref().is_none_or(about) {
        return bad("teacher", "one of the lesson's own texts".into(), "one of others".into());
    }
    super::check_ids(&lesson.tokens.texts, vocab)
}
