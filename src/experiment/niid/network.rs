//! The network of the table, as what a cell is about.

use std::num::NonZeroU16;

use super::{CLIENTS, Cell, CellSubject, Learners, SITES};
use crate::experiment::ExperimentError;
use crate::learn::{Cut, Images, Learner, Predictor, SplitBack, SplitFront};
use crate::torch::cnn::FLAT;
use crate::torch::{CnnBack, CnnConfig, CnnFront, CnnLearner, CnnPredictor, CnnTrainerConfig};

/// The network with a learner for each client, a thread each, or its halves; judged on `test`.
///
/// # Errors
/// [`ExperimentError::Learn`].
pub fn subject(cell: &Cell, test: Images, seed: u64) -> Result<CellSubject, ExperimentError> {
    let (mean, deviation) = cell.set.scale();
    let classes = u32::try_from(test.classes).unwrap_or(u32::MAX);
    let model = CnnConfig { classes, mean, deviation };
    let threads = NonZeroU16::MIN;
    let config = CnnTrainerConfig { model, momentum: MOMENTUM, threads };
    let learners = match cell.strategy.cut() {
        None => {
            let mut learners: Vec<Box<dyn Learner>> = Vec::with_capacity(CLIENTS);
            for _ in 0..CLIENTS {
                learners.push(Box::new(CnnLearner::new(config, seed)?));
            }
            Learners::Whole(learners)
        }
        Some(cut) => halves(config, cut, seed)?,
    };
    let mut predictor = CnnPredictor::new(model, seed, threads)?;
    Ok(CellSubject {
        start: model.initial(seed)?,
        learners,
        judge: Box::new(move |weights| {
            predictor.load(weights)?;
            predictor.accuracy(&test)
        }),
        model: format!(
            "CNN of {} values, started as PyTorch does, pixels scaled by {mean} and {deviation}, SGD with momentum {MOMENTUM}",
            model.initial(seed)?.num_values()
        ),
    })
}

fn halves(config: CnnTrainerConfig, cut: Cut, seed: u64) -> Result<Learners, ExperimentError> {
    let mut fronts: Vec<Box<dyn SplitFront>> = Vec::with_capacity(CLIENTS);
    let mut values = 0;
    for _ in 0..CLIENTS {
        let front = CnnFront::new(config, cut, seed)?;
        values = front.num_values();
        fronts.push(Box::new(front));
    }
    let mut backs: Vec<Box<dyn SplitBack>> = Vec::with_capacity(SITES.len());
    for _ in SITES {
        backs.push(Box::new(CnnBack::new(config, cut, seed)?));
    }
    Ok(Learners::Split { fronts, backs, resident: values, trained: values, width: FLAT })
}

const MOMENTUM: f64 = 0.9;
