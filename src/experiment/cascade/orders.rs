//! Models of work orders: the higher a tier, the more machines a model has learned from and the more it reads of a
//! text (libtorch).
//!
//! ```text
//!   device  softmax on 2,048 hashed runs of characters                        of its own machine, or averaged over all
//!   edge    the same and MiniLM's 384 values                                  averaged over its site's machines, or all
//!   cloud   the same and SmolLM2's 576 values                                 averaged over all machines
//! ```
//! No text leaves its machine: adapters are averaged as rounds do it, here without nodes or messages. An order is asked
//! at its own machine.

use std::num::NonZeroU16;
use std::path::Path;

use super::{CascadeOptions, CascadeSubject, Level, Pool, judge};
use crate::data::excavators::MACHINES;
use crate::data::systems::{Labelled, Systems};
use crate::experiment::ExperimentError;
use crate::experiment::score::predictions;
use crate::learn::{
    Accumulator, Control, Examples, FeatureMap, HashedRuns, LearnError, Learner, Prediction,
    Predictor, Share, SoftmaxLearner, SoftmaxPredictor, TensorSet, TextFeatures, TrainJob, Windows,
    weights,
};
use crate::rng::Stream;
use crate::torch::{TextVectors, load_adopted, shipped};

/// What is learned from, and what is asked.
struct Parts<'a> {
    learned: Vec<&'a Labelled>,
    /// First those of the training part that were kept back, then those that are judged.
    asked: Vec<&'a Labelled>,
    known: usize,
}

/// Whose orders the models of a tier have learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Machine,
    Site,
    All,
}

/// Two cascades, for each seed: one whose device and edge know their own machines alone, one where each tier's model
/// is averaged over all machines.
///
/// The cards of the two bases lie in `cards`, their weights in `models`. With `rehearse` a fifth of the training orders is
/// judged. Blocks until all is done.
///
/// # Errors
/// [`ExperimentError`]; the cards must be signed by a key that ships with the program.
pub fn run(
    set: &Systems,
    (cards, models): (&Path, &Path),
    rehearse: bool,
    seeds: &[u64],
    options: &CascadeOptions,
    news: &mut dyn FnMut(&str),
) -> Result<Vec<CascadeSubject>, ExperimentError> {
    let parts = parts(set, rehearse);
    let classes = set.names.len();
    let mut readers: Vec<Box<dyn TextFeatures>> = vec![Box::new(HashedRuns)];
    for card in ["minilm-l6.toml", "smollm2-135m.toml"] {
        let (_, base) = load_adopted(&cards.join(card), &shipped::trust()?, models)?;
        readers.push(Box::new(TextVectors::new(base, NonZeroU16::MIN)?));
    }
    news("the bases read the orders");
    let mut tiers = Vec::new();
    for most in 1..=readers.len() {
        let readers = readers.get_mut(..most).unwrap_or_default();
        let learned = windows(&parts.learned, readers, classes)?;
        tiers.push((learned, windows(&parts.asked, readers, classes)?));
    }
    let mut subjects = Vec::new();
    for seed in seeds {
        let options = CascadeOptions { seed: *seed, ..*options };
        for (who, what) in [
            ([Of::Machine, Of::Site, Of::All], "devices and edges know their own machines"),
            ([Of::All, Of::All, Of::All], "each tier's model is averaged over all machines"),
        ] {
            let mut levels = Vec::new();
            for ((of, name), (learned, asked)) in who.iter().zip(NAMES).zip(&tiers) {
                news(&format!("seed {seed}, {what}: {name}"));
                let answers = answers(*of, &parts, (learned, asked), *seed)?;
                levels.push(Level { name: name.to_owned(), answers });
            }
            let labels = parts.asked.iter().map(|order| order.system).collect();
            let pool = Pool { levels, labels, classes };
            let data = format!(
                "work orders, {what}: {} learned from, {} others judged",
                parts.learned.len(),
                parts.asked.len() - parts.known
            );
            let ways = judge(&pool, parts.known, &options)?;
            subjects.push(CascadeSubject { data, seed: *seed, ways });
        }
    }
    Ok(subjects)
}

/// Orders lie by machine and date; every fifth is kept back, so that each machine and time is in it. In a rehearsal
/// another fifth takes the test part's place.
fn parts(set: &Systems, rehearse: bool) -> Parts<'_> {
    let (mut learned, mut asked, mut judged) = (Vec::new(), Vec::new(), Vec::new());
    for (at, order) in set.train.iter().enumerate() {
        match at % 5 {
            4 => asked.push(order),
            3 if rehearse => judged.push(order),
            _ => learned.push(order),
        }
    }
    let known = asked.len();
    if rehearse {
        asked.extend(judged);
    } else {
        asked.extend(&set.test);
    }
    Parts { learned, asked, known }
}

/// What all readers make of each text, one behind the other.
fn windows(
    orders: &[&Labelled],
    readers: &mut [Box<dyn TextFeatures>],
    classes: usize,
) -> Result<Windows, LearnError> {
    let texts: Vec<&str> = orders.iter().map(|order| order.text.as_str()).collect();
    let mut parts = Vec::new();
    for reader in readers {
        parts.push((reader.width(), reader.features(&texts)?));
    }
    let len = parts.iter().map(|(width, _)| width).sum();
    let mut x = Vec::with_capacity(texts.len() * len);
    for at in 0..texts.len() {
        for (width, features) in &parts {
            x.extend(features.get(at * width..(at + 1) * width).unwrap_or_default());
        }
    }
    Ok(Windows { x, len, labels: orders.iter().map(|order| order.system).collect(), classes })
}

/// What the models of a tier say of each order, each asked at its own machine.
fn answers(
    of: Of,
    parts: &Parts<'_>,
    (learned, asked): (&Windows, &Windows),
    seed: u64,
) -> Result<Vec<Prediction>, ExperimentError> {
    let machines: Vec<Windows> =
        (0..MACHINES.len()).map(|machine| of_machine(&parts.learned, learned, machine)).collect();
    let groups: Vec<Vec<usize>> = match of {
        Of::Machine => (0..MACHINES.len()).map(|machine| vec![machine]).collect(),
        Of::Site => SITES.map(<[usize]>::to_vec).to_vec(),
        Of::All => vec![(0..MACHINES.len()).collect()],
    };
    let mut said: Vec<Option<Prediction>> = vec![None; parts.asked.len()];
    for group in groups {
        let data: Vec<&Windows> = group.iter().filter_map(|at| machines.get(*at)).collect();
        let adapter = averaged(&data, learned.len, learned.classes, seed)?;
        let mut predictor = SoftmaxPredictor::on(FeatureMap::given(learned.len)?, learned.classes)?;
        predictor.load(&adapter)?;
        for machine in &group {
            let own = of_machine(&parts.asked, asked, *machine);
            let mut own = predictions(&mut predictor, &own)?.into_iter();
            for (order, said) in parts.asked.iter().zip(&mut said) {
                if order.machine == *machine {
                    *said = own.next();
                }
            }
        }
    }
    said.into_iter().map(|said| said.ok_or(LearnError::NoUpdates.into())).collect()
}

fn of_machine(orders: &[&Labelled], all: &Windows, machine: usize) -> Windows {
    let mut own = Windows { len: all.len, classes: all.classes, ..Windows::default() };
    for (at, order) in orders.iter().enumerate().filter(|(_, order)| order.machine == machine) {
        own.x.extend(all.row(at).unwrap_or_default());
        own.labels.push(order.system);
    }
    own
}

/// A model that learns at each machine in turn and is averaged after each round, by numbers of examples.
fn averaged(
    machines: &[&Windows],
    width: usize,
    classes: usize,
    seed: u64,
) -> Result<TensorSet, LearnError> {
    let shares = machines
        .iter()
        .map(|data| Share { num_examples: data.num_examples() as u64, staleness: 0 });
    let weights = weights(&shares.enumerate().collect())?;
    let mut learner = SoftmaxLearner::on(FeatureMap::given(width)?, classes)?;
    let mut adapter = learner.initial_adapter();
    let data: Vec<Examples> = machines.iter().map(|data| (*data).clone().into()).collect();
    for round in 0..ROUNDS {
        let mut sum = Accumulator::new(&adapter.layout())?;
        for ((at, weight), data) in weights.iter().zip(&data) {
            let draw = Stream::new(seed, &format!("round {round} machine {at}")).next_u64();
            let job = TrainJob::plain(adapter.clone(), STEPS, BATCH, RATE, draw);
            sum.add(*weight, &learner.train(data, &job, &mut |_| Control::Continue)?.adapter)?;
        }
        adapter = sum.finish()?;
    }
    Ok(adapter)
}

/// The tiers, from the lowest.
const NAMES: [&str; 3] =
    ["device: softmax, runs", "edge: softmax, runs + MiniLM", "cloud: softmax, runs + both"];

/// Machines of the sites north (A, B, C) and south (D, E).
const SITES: [&[usize]; 2] = [&[0, 1, 2], &[3, 4]];

/// Rounds of averaging.
const ROUNDS: u64 = 10;

/// Steps of a machine in a round.
const STEPS: u32 = 100;

/// Orders a step.
const BATCH: u32 = 32;

/// Step size, as it was for MiniLM's vectors in an experiment before this one.
const RATE: f32 = 5.0;
