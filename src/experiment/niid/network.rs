//! The network of the table, as what a cell is about.

use std::num::NonZeroU16;

use super::{CLIENTS, Cell, CellSubject};
use crate::experiment::ExperimentError;
use crate::learn::{Images, Learner, Predictor};
use crate::torch::{CnnConfig, CnnLearner, CnnPredictor, CnnTrainerConfig};

/// The network with a learner for each client, a thread each, judged on `test`.
///
/// # Errors
/// [`ExperimentError::Learn`].
pub fn subject(cell: &Cell, test: Images, seed: u64) -> Result<CellSubject, ExperimentError> {
    let (mean, deviation) = cell.set.scale();
    let classes = u32::try_from(test.classes).unwrap_or(u32::MAX);
    let model = CnnConfig { classes, mean, deviation };
    let threads = NonZeroU16::MIN;
    let config = CnnTrainerConfig { model, momentum: MOMENTUM, threads };
    let mut learners: Vec<Box<dyn Learner>> = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        learners.push(Box::new(CnnLearner::new(config, seed)?));
    }
    let mut predictor = CnnPredictor::new(model, seed, threads)?;
    Ok(CellSubject {
        start: model.initial(seed)?,
        learners,
        judge: Box::new(move |weights| {
            predictor.load(weights)?;
            predictor.accuracy(&test)
        }),
        model: format!(
            "CNN of {} values, pixels scaled by {mean} and {deviation}, SGD with momentum {MOMENTUM}",
            model.initial(seed)?.num_values()
        ),
    })
}

const MOMENTUM: f64 = 0.9;
