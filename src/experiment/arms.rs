//! Learning without a federation, with as many steps: one machine's examples, or all in one place.

use super::{ExperimentError, Machine, Shared};
use crate::learn::{Control, Examples, Learner, RateSchedule, TensorSet, Texts, TrainJob};
use crate::node::plan_of;
use crate::settings::Settings;

/// Trains from the untrained adapter on `data` alone, `times` as many steps as one machine takes.
///
/// In slices as long as a round, so the optimiser starts anew as often as in the federation, with the
/// learning rate of the round.
pub(super) fn train(
    learner: &Shared,
    settings: &Settings,
    data: &Examples,
    times: u32,
    stepped: &mut dyn FnMut(),
) -> Result<TensorSet, ExperimentError> {
    let plan = plan_of(settings);
    let rounds = settings.round.rounds;
    let schedule = RateSchedule::from(settings.strategy.schedule);
    let mut learner = learner.clone();
    let mut adapter = learner.initial_adapter();
    for round in 0..rounds {
        let rates = schedule.rates(plan.learning_rate, round, rounds);
        let job = TrainJob {
            final_rate: rates.last,
            epochs: plan.local_epochs,
            ..TrainJob::plain(
                adapter,
                plan.local_steps.saturating_mul(times),
                plan.batch_size,
                rates.first,
                plan.seed.wrapping_add(round),
            )
        };
        let mut progress = |_| {
            stepped();
            Control::Continue
        };
        adapter = learner.train(data, &job, &mut progress)?.adapter;
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
