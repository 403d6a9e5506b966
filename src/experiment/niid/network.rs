//! The network of the table, as what a cell is about.

use std::num::NonZeroU16;

use super::{CLIENTS, Cell, CellSubject, Conditions, Learners, SITES};
use crate::experiment::ExperimentError;
use crate::experiment::federation::Part;
use crate::learn::{Images, Learner, Predictor, SplitBack, SplitFront};
use crate::torch::cnn::FLAT;
use crate::torch::{CnnBack, CnnConfig, CnnFront, CnnLearner, CnnPredictor, CnnTrainerConfig};

/// The network with a learner for each client, a thread each, or its halves; judged on `test`.
///
/// # Errors
/// [`ExperimentError::Learn`].
pub fn subject(cell: &Cell, test: Images, seed: u64) -> Result<CellSubject, ExperimentError> {
    let config = config(cell, test.classes);
    let model = config.model;
    let mut predictor = CnnPredictor::new(model, seed, config.threads)?;
    Ok(CellSubject {
        start: model.initial(seed)?,
        learners: learners(cell, config, seed)?,
        judge: Box::new(move |weights| {
            predictor.load(weights)?;
            predictor.accuracy(&test)
        }),
        model: described(&config, seed)?,
    })
}

/// The network of a cell and how it learns.
pub(super) fn config(cell: &Cell, classes: usize) -> CnnTrainerConfig {
    let ((mean, deviation), weight_decay) = match cell.conditions {
        Conditions::Scaled => (cell.set.scale(), 0.0),
        Conditions::NiidBench => ((0.0, 1.0), 0.000_01),
    };
    let classes = u32::try_from(classes).unwrap_or(u32::MAX);
    let model = CnnConfig { classes, mean, deviation };
    CnnTrainerConfig { model, momentum: MOMENTUM, weight_decay, threads: NonZeroU16::MIN }
}

/// The same in words.
pub(super) fn described(config: &CnnTrainerConfig, seed: u64) -> Result<String, ExperimentError> {
    let CnnConfig { mean, deviation, .. } = config.model;
    let decay = match config.weight_decay {
        0.0 => String::new(),
        decay => format!(", weight decay {decay}"),
    };
    Ok(format!(
        "CNN of {} values, started as PyTorch does, pixels scaled by {mean} and {deviation}, SGD with momentum {MOMENTUM}{decay}",
        config.model.initial(seed)?.num_values()
    ))
}

/// What one client trains.
pub(super) fn part(
    cell: &Cell,
    config: CnnTrainerConfig,
    seed: u64,
) -> Result<Part, ExperimentError> {
    Ok(match cell.strategy.cut() {
        None => Part::Whole(Box::new(CnnLearner::new(config, seed)?)),
        Some(cut) => Part::Front(Box::new(CnnFront::new(config, cut, seed)?)),
    })
}

/// What one edge trains, where the network is cut.
pub(super) fn back(
    cell: &Cell,
    config: CnnTrainerConfig,
    seed: u64,
) -> Result<Option<Box<dyn SplitBack>>, ExperimentError> {
    let Some(cut) = cell.strategy.cut() else { return Ok(None) };
    Ok(Some(Box::new(CnnBack::new(config, cut, seed)?)))
}

fn learners(cell: &Cell, config: CnnTrainerConfig, seed: u64) -> Result<Learners, ExperimentError> {
    let mut learners: Vec<Box<dyn Learner>> = Vec::new();
    let mut fronts: Vec<Box<dyn SplitFront>> = Vec::new();
    for _ in 0..CLIENTS {
        match part(cell, config, seed)? {
            Part::Whole(learner) => learners.push(learner),
            Part::Front(front) => fronts.push(front),
        }
    }
    let Some(cut) = cell.strategy.cut() else { return Ok(Learners::Whole(learners)) };
    let mut backs = Vec::with_capacity(SITES.len());
    for _ in SITES {
        backs.extend(back(cell, config, seed)?);
    }
    let values = CnnFront::new(config, cut, seed)?.num_values();
    Ok(Learners::Split { fronts, backs, resident: values, trained: values, width: FLAT })
}

const MOMENTUM: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_decide_pixels_and_weight_decay_and_are_told() {
        let of = |name: &str| {
            let config = config(&name.parse().unwrap(), 10);
            let CnnConfig { mean, deviation, .. } = config.model;
            ((mean, deviation, config.weight_decay), described(&config, 1).unwrap())
        };
        let (scaled, bench) =
            (of("fashion-mnist/iid/fedavg"), of("fashion-mnist/iid/fedavg/niid-bench"));
        assert_eq!(scaled.0, (0.286, 0.353, 0.0));
        assert_eq!(bench.0, (0.0, 1.0, 0.000_01));
        // The digest of a cell's settings is over the text.
        assert_ne!(scaled.1, bench.1);
    }
}
