//! Tiers of different skill for tests: models whose arithmetic is exact.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gaisnet::actors::Measure;
use gaisnet::learn::{LearnError, Prediction, Predictor, TensorSet, Windows};
use gaisnet::protocol::cascade::{CascadeConfig, OnNoReply, Uncalibrated};

/// Right where a question's difficulty is below its skill. A window is one sample: the whole number is
/// the true class, the rest the difficulty. The confidence falls with the difficulty.
pub(crate) struct Toy {
    pub(crate) skill: f32,
    /// Windows that it was asked.
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Predictor for Toy {
    fn load(&mut self, _: &TensorSet) -> Result<(), LearnError> {
        Ok(())
    }

    fn predict(&mut self, x: &[f32], _: usize) -> Result<Vec<Prediction>, LearnError> {
        self.asked.fetch_add(x.len(), Ordering::Relaxed);
        let one = |x: &f32| {
            let (truth, difficulty) = (*x >= 1.0, x.fract());
            let class = usize::from(truth == (difficulty < self.skill));
            let confidence = 0.99 - 0.45 * difficulty;
            let mut probabilities = vec![1.0 - confidence; 2];
            probabilities[class] = confidence;
            Prediction { probabilities, class }
        };
        Ok(x.iter().map(one).collect())
    }
}

/// Skill of device, edge and cloud: a question of 0.1 is for the first, of 0.65 for the second, of 0.95
/// for the last.
pub(crate) const SKILLS: [f32; 3] = [0.5, 0.8, 1.0];

/// Questions of all difficulties, with their answers.
pub(crate) fn measure() -> Measure {
    let difficulty = |i: u16| f32::from(i / 2) / 200.0;
    let x = (0..400_u16).map(|i| f32::from(i % 2) + difficulty(i)).collect();
    let held_out = Windows { x, len: 1, labels: (0..400).map(|i| i % 2).collect(), classes: 2 };
    Measure { held_out: Arc::new(held_out), alpha: 0.05, delta: 0.05 }
}

pub(crate) const CONFIG: CascadeConfig = CascadeConfig {
    above: true,
    wait_ms: 2_000,
    in_flight: 4,
    on_no_reply: OnNoReply::Own,
    uncalibrated: Uncalibrated::Escalate,
};
