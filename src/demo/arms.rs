//! The arms to compare with: each device alone, and all data in one place. Both get as many
//! optimiser steps as a device of the federation.

use super::DemoError;
use crate::learn::{
    Confusion, Control, Examples, LearnError, Learner, Predictor, RateSchedule, TensorSet,
    TrainJob, Windows,
};
use crate::node::{Brain, plan_of};
use crate::report::Score;
use crate::settings::Settings;

/// Trains from the untrained adapter on `data` alone.
pub(super) fn train(
    brain: &mut Brain,
    settings: &Settings,
    data: &Examples,
    progress: &mut dyn FnMut(),
) -> Result<TensorSet, DemoError> {
    let plan = plan_of(settings);
    let mut adapter = brain.learner.initial_adapter();
    // In slices as long as a round: the optimiser starts anew as often as in the federation.
    let schedule = RateSchedule::from(settings.strategy.schedule);
    for round in 1..=settings.round.rounds {
        let rates = schedule.rates(plan.learning_rate, round - 1, settings.round.rounds);
        let job = TrainJob {
            final_rate: rates.last,
            epochs: plan.local_epochs,
            ..TrainJob::plain(
                adapter,
                plan.local_steps,
                plan.batch_size,
                rates.first,
                plan.seed.wrapping_add(round),
            )
        };
        adapter = brain.learner.train(data, &job, &mut |_| Control::Continue)?.adapter;
        progress();
    }
    Ok(adapter)
}

/// Predicts `data` with each of `adapters` and counts all answers together.
pub(super) fn confusion(
    predictor: &mut dyn Predictor,
    adapters: &[TensorSet],
    data: &Windows,
) -> Result<Confusion, LearnError> {
    let mut confusion = Confusion::new(data.classes)?;
    for adapter in adapters {
        predictor.load(adapter)?;
        // In pieces, so that memory stays small whatever the set.
        for (piece, labels) in data.x.chunks(data.len * PIECE).zip(data.labels.chunks(PIECE)) {
            for (prediction, label) in predictor.predict(piece, data.len)?.iter().zip(labels) {
                confusion.record(*label, prediction.class)?;
            }
        }
    }
    Ok(confusion)
}

/// The two figures of an arm.
pub(super) fn score(confusion: &Confusion) -> Score {
    Score {
        macro_f1: confusion.macro_f1().unwrap_or(0.0),
        accuracy: confusion.accuracy().unwrap_or(0.0),
    }
}

const PIECE: usize = 64;
