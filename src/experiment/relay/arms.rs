//! What each model comes to without a neighbour.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Bench, Model, SITES, SMALL_RATE, device_name, score_softmax, softmax};
use crate::data::bearings::PLANTS;
use crate::experiment::ExperimentError;
use crate::learn::{
    Control, Examples, Learner, Lesson, TensorSet, TrainJob, Windows, reference_targets,
};
use crate::rng::Stream;

/// Devices with their own recordings alone, the others as they were pre-trained.
pub(super) fn before(bench: &Bench<'_>) -> Result<BTreeMap<String, f64>, ExperimentError> {
    let mut scores = BTreeMap::new();
    for (plant, windows) in PLANTS.iter().zip(&bench.set.plants) {
        let adapter = device(bench, plant, windows, None)?;
        scores.insert(device_name(plant), score_softmax(&adapter, &bench.set.test)?);
    }
    for (node, model) in owners(bench) {
        let untrained = model.learner()?.initial_adapter();
        scores.insert(node, model.score(&untrained, &bench.set.test)?);
    }
    Ok(scores)
}

/// The same with a lesson of the reference inputs' labels, in as many steps as the federation takes.
pub(super) fn labels(bench: &Bench<'_>) -> Result<BTreeMap<String, f64>, ExperimentError> {
    let windows = &bench.reference.windows;
    let lesson = Lesson {
        windows: Arc::clone(windows),
        targets: reference_targets(None, &windows.labels, windows.classes, 1.0)?,
        weight: 1.0,
        prototypes: None,
        prototype_weight: 0.0,
    };
    let mut scores = BTreeMap::new();
    for (plant, windows) in PLANTS.iter().zip(&bench.set.plants) {
        let adapter = device(bench, plant, windows, Some(&lesson))?;
        scores.insert(device_name(plant), score_softmax(&adapter, &bench.set.test)?);
    }
    for (node, model) in owners(bench) {
        let rate = rate_of(bench, &node);
        let nothing = Windows { len: windows.len, classes: windows.classes, ..Windows::default() };
        let mut learner = model.learner()?;
        let start = learner.initial_adapter();
        let steps = bench.settings.knowledge.distil_steps;
        let data = nothing.into();
        let adapter =
            slices(bench, &mut learner, &data, start, (steps, rate), &node, Some(&lesson))?;
        scores.insert(node, model.score(&adapter, &bench.set.test)?);
    }
    Ok(scores)
}

/// The owners and their models.
pub(super) fn owners<'a>(bench: &'a Bench<'_>) -> Vec<(String, &'a Model)> {
    let mut owners = vec![("cloud".to_owned(), &bench.large)];
    owners.extend(SITES.map(|site| (format!("edge-{site}"), &bench.small)));
    owners
}

/// Learning rate of an owner's model.
#[expect(clippy::cast_possible_truncation, reason = "settings in the range of f32")]
pub(super) fn rate_of(bench: &Bench<'_>, node: &str) -> f32 {
    if node == "cloud" { bench.settings.knowledge.distil_rate as f32 } else { SMALL_RATE }
}

#[expect(clippy::cast_possible_truncation, reason = "settings in the range of f32")]
fn device(
    bench: &Bench<'_>,
    plant: &str,
    windows: &Windows,
    lesson: Option<&Lesson>,
) -> Result<TensorSet, ExperimentError> {
    let mut learner = softmax()?;
    let start = learner.initial_adapter();
    let strategy = &bench.settings.strategy;
    let how = (strategy.local_steps, strategy.learning_rate as f32);
    let data = windows.clone().into();
    slices(bench, &mut learner, &data, start, how, &device_name(plant), lesson)
}

/// In slices as long as a round: the optimiser starts anew as often as in the federation.
fn slices(
    bench: &Bench<'_>,
    learner: &mut dyn Learner,
    data: &Examples,
    start: TensorSet,
    (steps, learning_rate): (u32, f32),
    node: &str,
    lesson: Option<&Lesson>,
) -> Result<TensorSet, ExperimentError> {
    let mut adapter = start;
    for round in 1..=bench.settings.round.rounds {
        let job = TrainJob {
            start: adapter,
            steps,
            batch_size: bench.settings.strategy.batch_size,
            learning_rate,
            final_rate: None,
            prox_mu: 0.0,
            distill_lambda: 0.0,
            class_targets: None,
            lesson: lesson.cloned(),
            seed: Stream::new(bench.seed.wrapping_add(round), node).next_u64(),
            epochs: None,
            class_logits: false,
        };
        adapter = learner.train(data, &job, &mut |_| Control::Continue)?.adapter;
    }
    Ok(adapter)
}
