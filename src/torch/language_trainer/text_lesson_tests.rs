//! What is taught on reference texts: the gradient of the formula, whose words count, and that topics cross between
//! adapters of different kinds.

use std::sync::Arc;

use super::*;
use crate::learn::{Lesson, ReferenceTokens, TextLesson, TopLogits};
use crate::torch::language_trainer::text_lesson::Course;

const TOP: u16 = 5;

fn lesson(texts: &Texts, teacher: Option<&TopLogits>, alpha: f32) -> Lesson {
    let tokenizer = Digest([0; 32]);
    let tokens = Arc::new(ReferenceTokens { texts: texts.clone(), vocab: 24, tokenizer });
    let teacher = teacher.cloned().map(Arc::new);
    Lesson {
        weight: 2.0,
        texts: Some(TextLesson { tokens, teacher, alpha, top: TOP }),
        ..Lesson::default()
    }
}

/// A teacher of noise that knows the tokens of the first text and is wrong about all others.
fn knows_the_first(texts: &Texts) -> TopLogits {
    let mut said = TopLogits::silent(texts, TOP).unwrap();
    for (place, token) in texts.tokens.iter().enumerate() {
        let mut logits = noise(&format!("teacher {place}"), 24);
        let first = place < texts.lengths[0] as usize;
        logits[*token as usize] += if first { 6.0 } else { -6.0 };
        let sum: f32 = logits.iter().map(|z| z.exp()).sum();
        let shares: Vec<f32> = logits.iter().map(|z| z - sum.ln()).collect();
        said.say(place, &shares).unwrap();
    }
    said
}

/// The loss of all texts as the formula has it, each by itself and all words in memory; divided by 10.
fn naive(
    learner: &LanguageLearner,
    flat: &Tensor,
    texts: &Texts,
    teacher: &TopLogits,
    alpha: f64,
) -> Tensor {
    let attached = learner.plan.attach(flat).unwrap();
    let model = learner.base.model(Some(&attached)).unwrap();
    let mut loss = Tensor::from(0.0_f32);
    let mut place = 0;
    for (at, text) in texts.rows().enumerate() {
        let input = [&[0], &text[..text.len() - 1]].concat();
        let batch = TokenBatch { ids: ids(&input), positions: None, segments: None };
        let log = model.logits(&model.hidden(&batch).unwrap()).unwrap().squeeze_dim(0);
        let log = log.log_softmax(-1, Kind::Float);
        for (row, token) in (0_i64..).zip(text) {
            let log = log.get(row);
            loss += log.get(i64::from(*token)) * -alpha;
            let taught = teacher.place(place).unwrap();
            place += 1;
            if at != 0 {
                continue;
            }
            let mut others = vec![1.0_f32; 24];
            let mut named = Tensor::from(0.0_f32);
            for (id, share) in taught.ids.iter().zip(&taught.shares) {
                others[*id as usize] = 0.0;
                named += log.get(i64::from(*id)) * f64::from(*share);
            }
            let others = (log.exp() * Tensor::from_slice(&others)).sum(Kind::Float).log();
            loss += (named + others * f64::from(taught.rest)) * (alpha - 1.0);
        }
    }
    loss / 10.0
}

#[test]
fn a_lesson_has_the_gradient_of_its_formula_for_each_kind_and_counts_where_the_teacher_is_better() {
    let base = base(false);
    let texts = as_examples(&texts());
    let teacher = knows_the_first(&texts);
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let job = TrainJob {
            start: adapter(&learner),
            lesson: Some(lesson(&texts, Some(&teacher), 0.75)),
            ..job_of(&learner)
        };
        let mut course = Course::of(&learner, &job).unwrap().unwrap();
        let run = learner.run(&job.start, 9).unwrap();
        let all = course.next(99);
        let taken = course.taken(all);
        let rows: Vec<Rows> = taken.parts(99, Device::Cpu).collect::<Result<_, _>>().unwrap();
        let [rows] = rows.as_slice() else { panic!("{kind}: {} parts", rows.len()) };
        let weights = values(&rows.taught.as_ref().unwrap().weight).unwrap();
        let heard = weights.iter().filter(|weight| (**weight - 0.25).abs() < 1e-6).count();
        let silent = weights.iter().filter(|weight| **weight == 0.0).count();
        assert_eq!((heard, silent), (5, texts.tokens.len() - 5), "{kind}");
        let (sum, gradient) = run.backward(rows, 10.0).unwrap();
        let expected = naive(&learner, &run.flat, &texts, &teacher, 0.75);
        assert!((sum / 10.0 - expected.double_value(&[])).abs() < 1e-4, "{kind}: {sum}");
        let expected = values(&super::gradient(&expected, &run.flat).unwrap()).unwrap();
        let apart = distance(&values(&gradient).unwrap(), &expected);
        assert!(apart < 1e-4, "{kind}: {apart}");
    }
}

#[test]
fn what_a_model_says_are_its_own_shares_wherever_the_texts_are_packed() {
    let base = base(true);
    let learner = learner(&base, &lora(&["q", "v"]));
    let texts = as_examples(&texts());
    let job = TrainJob {
        start: adapter(&learner),
        lesson: Some(lesson(&texts, None, 0.0)),
        ..job_of(&learner)
    };
    let course = Course::of(&learner, &job).unwrap().unwrap();
    let said = learner.said(&learner.flatten(&job.start).unwrap(), &course).unwrap();
    let mut place = 0;
    for text in texts.rows() {
        let input = [&[0], text].concat();
        let logits = logits(&base, &learner, &job.start, &input);
        for row in logits.chunks(24).take(text.len()) {
            let sum: f32 = row.iter().map(|z| z.exp()).sum();
            let taught = said.place(place).unwrap();
            for (id, share) in taught.ids.iter().zip(&taught.shares).take(usize::from(TOP)) {
                let real = row[*id as usize].exp() / sum;
                assert!((share - real).abs() < 2e-3 * real + 1e-6, "{share} {real}");
            }
            place += 1;
        }
    }
    let nats = learner.nats(&texts, &job.start).unwrap();
    let lengths = texts.lengths.iter().map(|len| f64::from(*len));
    let sum: f64 = said.losses().iter().zip(lengths).map(|(loss, len)| loss * len).sum();
    assert!((nats - sum).abs() < 0.05, "{nats} {sum}");
}

/// In a topic each word is followed by the third after it.
fn of_topic(topic: u32, starts: std::ops::Range<u32>) -> Texts {
    let text = |start: u32| (0..6).map(|j| 2 + 10 * topic + (start + 3 * j) % 10).collect();
    as_examples(&starts.map(text).collect::<Vec<Vec<u32>>>())
}

fn both(a: &Texts, b: &Texts) -> Texts {
    Texts {
        tokens: [a.tokens.as_slice(), &b.tokens].concat(),
        lengths: [a.lengths.as_slice(), &b.lengths].concat(),
        chars: 1,
    }
}

fn trained(learner: &mut LanguageLearner, data: &Texts, lesson: Option<Lesson>) -> Trained {
    let start = learner.initial_adapter();
    let job = TrainJob { lesson, ..TrainJob::plain(start, 120, 4, 0.02, 5) };
    learner.train(&data.clone().into(), &job, &mut |_| Control::Continue).unwrap()
}

#[test]
fn a_topic_crosses_between_adapters_of_different_kinds_and_without_the_teacher_it_does_not() {
    let base = base(true);
    let reference = both(&of_topic(0, 0..5), &of_topic(1, 0..5));
    let unseen = of_topic(1, 5..10);
    let mut knows = learner(&base, &lora(&["*"]));
    let silent = Some(lesson(&reference, None, 0.0));
    let said = trained(&mut knows, &of_topic(1, 0..5), silent.clone()).top_logits.unwrap();
    let mut pupil =
        learner(&base, &PeftConfig { ia3: names(&["k", "v"]), ..lora(&["q", "up", "down"]) });
    let own = of_topic(0, 0..5);
    let mut nats = |lesson: Option<Lesson>| {
        let trained = trained(&mut pupil, &own, lesson);
        let each = |texts: &Texts| pupil.nats(texts, &trained.adapter).unwrap() / 30.0;
        (each(&unseen), each(&own))
    };
    let (with, own_with) = nats(Some(lesson(&reference, Some(&said), 0.0)));
    let (without, own_without) = nats(silent);
    assert!(with < 0.75 * without, "{with} {without}");
    assert!(own_with < own_without + 0.3, "its own topic stays: {own_with} {own_without}");
    // What it says itself is nothing new to it.
    let again = TrainJob {
        lesson: Some(lesson(&reference, Some(&said), 0.0)),
        ..TrainJob::plain(trained(&mut knows, &of_topic(1, 0..5), None).adapter, 7, 2, 0.01, 5)
    };
    assert!(!Course::of(&knows, &again).unwrap().unwrap().teaches());
}

#[test]
fn an_owner_without_texts_learns_from_what_is_said_and_says_only_what_it_knows_before() {
    let base = base(true);
    let mut owner = learner(&base, &lora(&["*"]));
    let reference = as_examples(&texts());
    let none = Texts::default();
    let silence = trained(&mut owner, &none, Some(lesson(&reference, None, 0.0)));
    assert_eq!((silence.steps, silence.num_examples), (0, 0));
    assert_eq!(silence.adapter, owner.initial_adapter());
    let teacher = knows_the_first(&reference);
    let taught = trained(&mut owner, &none, Some(lesson(&reference, Some(&teacher), 0.0)));
    let (before, after) =
        (silence.top_logits.unwrap().losses(), taught.top_logits.unwrap().losses());
    assert!(taught.steps == 120 && after[0] < 0.5 * before[0], "{before:?} {after:?}");
    assert!(taught.loss_last.is_finite());
    // Its texts' own tokens teach as well, where they have a share.
    let by_itself = trained(&mut owner, &none, Some(lesson(&reference, None, 0.5)));
    assert!(by_itself.top_logits.unwrap().losses()[1] < before[1]);
    // Without a lesson there is nothing.
    let job = job_of(&owner);
    assert!(owner.train(&none.into(), &job, &mut |_| Control::Continue).is_err());
}

#[test]
fn a_run_with_a_lesson_that_was_cut_off_goes_on_and_one_with_another_lesson_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(true);
    let texts = as_examples(&texts());
    let teacher = knows_the_first(&texts);
    let mut learner = {
        let every = std::num::NonZeroU32::new(2).unwrap();
        let kept = Checkpoints::new(folder.path().join("training"), every, Digest([1; 32]));
        learner(&base, &lora(&["q", "v"])).keeping(kept)
    };
    let job = |alpha| TrainJob {
        lesson: Some(lesson(&texts, Some(&teacher), alpha)),
        ..TrainJob::plain(self::learner(&base, &lora(&["q"])).initial_adapter(), 7, 2, 0.01, 5)
    };
    let start = learner.initial_adapter();
    let job = |alpha| TrainJob { start: start.clone(), ..job(alpha) };
    let data = Examples::from(texts.clone());
    let whole = self::learner(&base, &lora(&["q", "v"]))
        .train(&data, &job(0.5), &mut |_| Control::Continue)
        .unwrap();
    let mut steps = |alpha, last| {
        let mut seen = Vec::new();
        let trained = learner.train(&data, &job(alpha), &mut |at| {
            seen.push(at.step);
            if at.step == last { Control::Stop } else { Control::Continue }
        });
        (seen, trained.unwrap())
    };
    assert_eq!(steps(0.5, 5).0, [1, 2, 3, 4, 5]);
    let (seen, resumed) = steps(0.5, 7);
    assert_eq!(seen, [5, 6, 7]);
    assert_eq!((resumed.adapter, resumed.top_logits), (whole.adapter, whole.top_logits));
    assert_eq!(steps(0.25, 7).0, [1, 2, 3, 4, 5, 6, 7], "another lesson");
}

#[test]
fn lessons_in_other_tokens_are_refused_and_their_twin_is_taken() {
    let base = base(true);
    let mut learner = learner(&base, &lora(&["q"]));
    let reference = as_examples(&texts());
    let mut said = |change: &dyn Fn(&mut Lesson, &mut TextLesson)| {
        let mut lesson = lesson(&reference, Some(&knows_the_first(&reference)), 0.5);
        let mut texts = lesson.texts.take().unwrap();
        change(&mut lesson, &mut texts);
        lesson.texts = Some(texts);
        let job = TrainJob { lesson: Some(lesson), ..job_of(&learner) };
        let result = learner.train(&reference.clone().into(), &job, &mut |_| Control::Stop);
        result.map_or_else(|error| error.to_string(), |_| "ok".into())
    };
    assert_eq!(said(&|_, _| ()), "ok");
    assert!(said(&|_, texts| texts.alpha = 1.5).contains("own tokens"));
    assert!(said(&|lesson, _| lesson.weight = f32::NAN).contains("weight"));
    assert!(said(&|_, texts| Arc::make_mut(&mut texts.tokens).vocab = 25).contains("tokenizer"));
    assert!(
        said(&|_, texts| Arc::make_mut(&mut texts.tokens).texts.tokens[0] = 7).contains("teacher")
    );
    assert!(said(&|_, texts| texts.top = 0).contains("words a place"));
}
