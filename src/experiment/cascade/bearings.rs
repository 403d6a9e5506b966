//! Models that a relay between real nodes taught, on bearings: a softmax on each plant's device, a small transformer
//! on each site's edge, a larger one in the cloud (libtorch).
//!
//! A device has the first 60 % of its own plant's recordings, and nobody else has any. The rest of a recording is asked
//! at its own plant; the windows of the test recordings, which belong to no plant, at the four plants in turn: any of
//! them may come upon a fault that it never saw.

use super::{CascadeOptions, CascadeSubject, Level, Pool, judge};
use crate::data::bearings::{Dataset, PLANTS};
use crate::experiment::ExperimentError;
use crate::experiment::relay::{
    self, Answers, BEFORE, LargeBase, RelayOptions, Strategy, device_name, edge_name, site_of,
};
use crate::learn::{Prediction, Windows, hold_out};
use crate::settings::Settings;

/// The cascade before and after a relay of logits on reference inputs and of prototypes, for each seed of `federation`.
/// Blocks until all is done; its strategies aren't looked at.
///
/// # Errors
/// [`ExperimentError`].
pub fn run(
    federation: &RelayOptions,
    settings: &Settings,
    set: &Dataset,
    large: LargeBase,
    options: &CascadeOptions,
    news: &mut dyn FnMut(&str),
) -> Result<Vec<CascadeSubject>, ExperimentError> {
    let none = || Windows { len: set.test.len, classes: set.test.classes, ..Windows::default() };
    let (mut plants, mut questions, mut asked_at) = (Vec::new(), none(), Vec::new());
    let mut learned = 0;
    for (plant, windows) in set.plants.iter().enumerate() {
        let (own, kept) = hold_out(windows, KEPT);
        learned += own.num_examples();
        asked_at.extend(std::iter::repeat_n(plant, kept.num_examples()));
        questions.x.extend(kept.x);
        questions.labels.extend(kept.labels);
        plants.push(own);
    }
    let known = questions.num_examples();
    asked_at.extend((0..set.test.num_examples()).map(|at| at % PLANTS.len()));
    questions.x.extend(&set.test.x);
    questions.labels.extend(&set.test.labels);
    let (labels, classes) = (questions.labels.clone(), questions.classes);
    let set = Dataset { plants, pooled: none(), test: questions };

    let arm = Strategy::Both;
    let federation = RelayOptions { strategies: vec![arm], ..federation.clone() };
    let all = relay::said(&federation, settings, &set, large, news)?;
    let mut subjects = Vec::new();
    for (seed, arms) in federation.seeds.iter().zip(all) {
        let options = CascadeOptions { seed: *seed, ..*options };
        for (arm, when) in [
            (BEFORE, "before the relay"),
            (arm.as_str(), "after the relay (reference logits and prototypes)"),
        ] {
            let answers = arms.get(arm).ok_or_else(|| ExperimentError::Name(arm.into()))?;
            let levels = levels(answers, &asked_at)?;
            let pool = Pool { levels, labels: labels.clone(), classes };
            let ways = judge(&pool, known, &options)?;
            let judged = labels.len() - known;
            let data = format!(
                "bearings, {when}: {learned} windows of 14 recordings on four devices, {judged} of others judged"
            );
            subjects.push(CascadeSubject { data, seed: *seed, ways });
        }
    }
    Ok(subjects)
}

/// What the nodes say that a question reaches.
fn levels(answers: &Answers, asked_at: &[usize]) -> Result<Vec<Level>, ExperimentError> {
    let of = |name: &str, node: &dyn Fn(usize) -> String| {
        let mut said = Vec::with_capacity(asked_at.len());
        for (question, plant) in asked_at.iter().enumerate() {
            said.push(answer(answers, node(*plant), question)?.clone());
        }
        Ok::<_, ExperimentError>(Level { name: name.to_owned(), answers: said })
    };
    let plant = |at: usize| PLANTS.get(at).copied().unwrap_or_default();
    Ok(vec![
        of("device: softmax, 45 features", &|at| device_name(plant(at)))?,
        of("edge: transformer, 1 x 32", &|at| edge_name(site_of(at)))?,
        of("cloud: transformer, 3 x 64, LoRA", &|_| relay::CLOUD.to_owned())?,
    ])
}

fn answer(
    answers: &Answers,
    node: String,
    question: usize,
) -> Result<&Prediction, ExperimentError> {
    let said = answers.get(&node).and_then(|said| said.get(question));
    said.ok_or(ExperimentError::Name(node))
}

/// Share of a recording that no model learns from.
const KEPT: f64 = 0.4;
