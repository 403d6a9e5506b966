//! The models of the experiment on tiers: a small one and a larger one for each data set (libtorch).

use std::num::NonZeroU16;
use std::path::Path;

use super::cascade::{CascadeOptions, CascadeSubject, Level, Pool, judge};
use super::{ExperimentError, News};
use crate::data::bearings;
use crate::data::systems::{Labelled, Systems};
use crate::learn::{
    Control, Examples, FitConfig, LearnError, Learner, LinearClassifier, MachineSpeeds, Prediction,
    Predictor, Progress, SoftmaxLearner, SoftmaxPredictor, TrainJob, hashed_ngrams, hold_out,
};
use crate::torch::encoder::Encoder;
use crate::torch::huggingface::LoadedEncoder;
use crate::torch::parts::Parts;
use crate::torch::{
    AdoptedBase, LoraConfig, PeftConfig, SignalLearner, SignalPredictor, TrainerConfig,
    load_adopted, load_base, shipped, use_threads,
};

/// The bearings: both models learn from the first 60 % of each training recording.
///
/// # Errors
/// [`ExperimentError`].
pub fn bearings(
    set: &bearings::Dataset,
    base: &Path,
    steps: u32,
    options: &CascadeOptions,
    news: &mut dyn FnMut(News),
) -> Result<CascadeSubject, ExperimentError> {
    let (learned, kept) = hold_out(&set.pooled, 0.4);
    let questions = Examples::from(learned);
    let speeds = MachineSpeeds::default();
    let (len, classes) = (set.test.len, set.test.classes);
    let mut train = |learner: &mut dyn Learner, name, learning_rate, final_rate| {
        news(News::Begins(name));
        let job = TrainJob {
            final_rate,
            ..TrainJob::plain(learner.initial_adapter(), steps, 32, learning_rate, options.seed)
        };
        let mut progress = |at: Progress| {
            news(News::Step { done: at.step.into(), of: steps.into() });
            Control::Continue
        };
        Ok::<_, LearnError>(learner.train(&questions, &job, &mut progress)?.adapter)
    };
    let mut small = SoftmaxPredictor::new(speeds, len, classes)?;
    let mut learner = SoftmaxLearner::new(speeds, len, classes)?;
    small.load(&train(&mut learner, "the device's model", 0.1, None)?)?;

    let (card, weights) = load_base(base, &shipped::trust()?)?;
    let peft = PeftConfig::lora(LoraConfig::default());
    let model = card.architecture;
    let config = TrainerConfig { model, peft: peft.clone(), ..TrainerConfig::default() };
    let mut learner = SignalLearner::new(&weights, config, options.seed)?;
    let mut large = SignalPredictor::new(&weights, model, &peft, NonZeroU16::MIN)?;
    large.load(&train(&mut learner, "the edge's model", 0.003, Some(0.0))?)?;

    news(News::Begins("judging"));
    let known = kept.num_examples();
    let x = [kept.x, set.test.x.clone()].concat();
    let labels = [kept.labels, set.test.labels.clone()].concat();
    let levels = vec![
        level("device: softmax on spectra", small.predict(&x, len)?),
        level("edge: signal transformer, LoRA", large.predict(&x, len)?),
    ];
    let ways = judge(&Pool { levels, labels, classes }, known, options)?;
    let (learned, judged) = (questions.num_examples(), set.test.num_examples());
    let data = format!(
        "bearings: {learned} windows of 14 recordings learned from in {steps} steps, {judged} of 6 others judged"
    );
    Ok(CascadeSubject { data, ways })
}

/// The work orders and their systems: both models learn from four of five training orders of all machines;
/// every fifth is kept back.
///
/// # Errors
/// [`ExperimentError`]; the encoder's card must be signed by a key that ships with the program.
pub fn systems(
    set: &Systems,
    encoder: &Path,
    models: &Path,
    options: &CascadeOptions,
    news: &mut dyn FnMut(News),
) -> Result<CascadeSubject, ExperimentError> {
    let classes = set.names.len();
    // Orders lie by machine and date; every fifth is kept back, so that each machine and time is in it.
    let (mut learned, mut rest): (Vec<&Labelled>, Vec<&Labelled>) = (Vec::new(), Vec::new());
    for (at, order) in set.train.iter().enumerate() {
        if at % 5 == 4 { &mut rest } else { &mut learned }.push(order);
    }
    let known = rest.len();
    rest.extend(&set.test);
    let of = |orders: &[&Labelled]| orders.iter().map(|order| order.system).collect::<Vec<_>>();
    let (learned_labels, labels) = (of(&learned), of(&rest));
    let fit = |features: &[f32], width, steps, learning_rate| {
        let seed = options.seed;
        let config = FitConfig { steps, batch: 32, learning_rate, weight_decay: 1e-5, seed };
        LinearClassifier::fit(features, width, &learned_labels, classes, &config)
    };

    news(News::Begins("the device's model"));
    let runs = |orders: &[&Labelled]| -> Vec<f32> {
        orders.iter().flat_map(|order| hashed_ngrams(&order.text, NGRAM_PLACES)).collect()
    };
    let small = fit(&runs(&learned), NGRAM_PLACES, 1_500, 2.0)?;
    let device = small.predict(&runs(&rest));

    news(News::Begins("the edge's model"));
    let (card, base) = load_adopted(encoder, &shipped::trust()?, models)?;
    let AdoptedBase::Encoder(loaded) = base else {
        return Err(ExperimentError::Learn(LearnError::OutOfRange {
            what: "base",
            expected: "a text encoder".into(),
            actual: card.name,
        }));
    };
    let width = loaded.config.d_model as usize;
    let mut vectors = |orders: &[&Labelled]| vectors_of(&loaded, orders, news);
    let (ours, theirs) = (vectors(&learned)?, vectors(&rest)?);
    let large = fit(&ours, width, 3_000, 5.0)?;
    let edge = large.predict(&theirs);

    let levels = vec![
        level("device: softmax on character runs", device),
        level("edge: softmax on MiniLM", edge),
    ];
    let judged = set.test.len();
    let ways = judge(&Pool { levels, labels, classes }, known, options)?;
    let data = format!(
        "excavators: work order to one of {classes} systems, {} learned from, the last {judged} by date judged",
        learned.len()
    );
    Ok(CascadeSubject { data, ways })
}

/// Vectors `[n, d]` of the orders' texts.
fn vectors_of(
    loaded: &LoadedEncoder,
    orders: &[&Labelled],
    news: &mut dyn FnMut(News),
) -> Result<Vec<f32>, ExperimentError> {
    let _guard = tch::no_grad_guard();
    use_threads(NonZeroU16::MIN);
    let encoder = Encoder::new(&Parts::bare(&loaded.weights), &loaded.config)?;
    let mut all = Vec::new();
    let mut done = 0;
    for batch in orders.chunks(32) {
        let ids = batch.iter().map(|order| loaded.tokenizer.encode(&order.text));
        let vectors = encoder.vectors(&ids.collect::<Result<Vec<_>, _>>()?)?;
        all.extend(crate::torch::values(&vectors)?);
        done += batch.len() as u64;
        news(News::Step { done, of: orders.len() as u64 });
    }
    Ok(all)
}

fn level(name: &str, answers: Vec<Prediction>) -> Level {
    Level { name: name.to_owned(), answers }
}

/// Places that runs of characters are hashed to.
const NGRAM_PLACES: usize = 2_048;
