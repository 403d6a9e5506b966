//! Learning without a federation, with as many steps: one machine's texts, or all in one place.

use super::{ExperimentError, Machine, Shared};
use crate::learn::{Control, Examples, Learner, TensorSet, Texts, TrainJob, half_cosine};
use crate::node::plan_of;
use crate::settings::{Schedule, Settings};

/// Trains from the untrained adapter on `texts` alone, `times` as many steps as one machine takes.
///
/// In slices as long as a round, so the optimiser starts anew as often as in the federation, with the
/// learning rate of the round.
pub(super) fn train(
    learner: &Shared,
    settings: &Settings,
    texts: &Texts,
    times: u32,
    stepped: &mut dyn FnMut(),
) -> Result<TensorSet, ExperimentError> {
    let plan = plan_of(settings);
    let rounds = settings.round.rounds;
    let data = Examples::Texts(texts.clone());
    let mut learner = learner.clone();
    let mut adapter = learner.initial_adapter();
    for round in 0..rounds {
        let decay = match settings.strategy.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine => half_cosine(round, rounds),
        };
        let job = TrainJob {
            start: adapter,
            steps: plan.local_steps.saturating_mul(times),
            batch_size: plan.batch_size,
            learning_rate: plan.learning_rate * decay,
            prox_mu: 0.0,
            distill_lambda: 0.0,
            class_targets: None,
            lesson: None,
            seed: plan.seed.wrapping_add(round),
        };
        let mut progress = |_| {
            stepped();
            Control::Continue
        };
        adapter = learner.train(&data, &job, &mut progress)?.adapter;
    }
    Ok(adapter)
}

/// The training texts of all machines.
pub(super) fn pooled(machines: &[Machine]) -> Texts {
    let mut all = Texts::default();
    for machine in machines {
        all.tokens.extend_from_slice(&machine.train.tokens);
        all.lengths.extend_from_slice(&machine.train.lengths);
        all.chars += machine.train.chars;
    }
    all
}
