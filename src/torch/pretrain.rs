//! Makes a base for vibration from bearing physics alone; no plant data is used.

use std::num::NonZeroU16;

use super::adamw::AdamWConfig;
use super::peft::PeftConfig;
use super::signal::SignalTransformerConfig;
use super::trainer::{SignalLearner, Terms, Towards, TrainerConfig};
use super::use_threads;
use crate::learn::{Augment, Control, LearnError, Progress, TensorSet, physics};
use crate::rng::Stream;

/// How a base is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PretrainConfig {
    /// Sizes of the model; windows and classes must be those of [`physics`].
    pub model: SignalTransformerConfig,
    /// Seed of the signals and of the initial weights.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u32,
    /// Fresh windows a step.
    pub batch_size: u32,
    /// Peak learning rate: a warm-up over the first 5 %, then a cosine down to 0.
    pub learning_rate: f64,
    /// Threads of libtorch.
    pub threads: NonZeroU16,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            model: SignalTransformerConfig::default(),
            seed: 1,
            steps: 1_600,
            batch_size: 64,
            learning_rate: 2e-3,
            threads: NonZeroU16::MIN,
        }
    }
}

/// Trains all weights on generated windows; each window is seen once.
///
/// # Determinism
/// One seed on one machine with one thread gives the same weights.
/// # Errors
/// [`LearnError`] when the sizes don't fit the physics or the loss isn't finite.
pub fn pretrain(
    config: &PretrainConfig,
    progress: &mut dyn FnMut(Progress) -> Control,
) -> Result<TensorSet, LearnError> {
    let model = config.model;
    if model.window as usize != physics::WINDOW_LEN
        || model.classes as usize != physics::CLASSES.len()
    {
        return Err(LearnError::OutOfRange {
            what: "window and classes",
            expected: format!("{} and {}", physics::WINDOW_LEN, physics::CLASSES.len()),
            actual: format!("{} and {}", model.window, model.classes),
        });
    }
    model.check()?;
    use_threads(config.threads);
    let initial = model.initial_weights(&mut Stream::new(config.seed, "weights"));
    let trainer = TrainerConfig {
        model,
        peft: PeftConfig::whole(vec!["*".into()]),
        augment: Augment::NONE,
        correct_prior: false, // classes take turns
        adamw: AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() },
        threads: config.threads,
    };
    let learner = SignalLearner::new(&initial, trainer, config.seed)?;
    let mut run = learner.run(&initial)?;
    let mut signals = Stream::new(config.seed, "physics");
    for step in 1..=config.steps {
        let data = physics::windows(&mut signals, config.batch_size as usize);
        let all: Vec<usize> = (0..data.num_examples()).collect();
        let (x, y) = learner.gather(&data, &all, &mut signals)?;
        let rate = config.learning_rate * schedule(step, config.steps);
        let (terms, towards) = (Terms::default(), Towards::default());
        let loss = run.step(Some((&x, &y)), &[], rate, &terms, &towards)?;
        if progress(Progress { step, loss }) == Control::Stop {
            break;
        }
    }
    let weights = run.adapter()?;
    weights.check_finite()?;
    Ok(weights)
}

/// Fraction of the peak learning rate at a step.
fn schedule(step: u32, steps: u32) -> f64 {
    let at = f64::from(step) / f64::from(steps.max(1));
    let warm_up = (at / 0.05).min(1.0);
    warm_up * 0.5 * (1.0 + (std::f64::consts::PI * at).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::transformer::BlockConfig;

    fn small(steps: u32) -> PretrainConfig {
        let model = SignalTransformerConfig {
            layers: 1,
            patch: 64,
            stride: 64,
            block: BlockConfig { d_model: 16, heads: 2, d_ff: 16 },
            ..SignalTransformerConfig::default()
        };
        PretrainConfig { model, steps, batch_size: 6, ..PretrainConfig::default() }
    }

    #[test]
    fn a_seed_makes_the_same_base_and_each_weight_trains() {
        let make = |config| pretrain(&config, &mut |_| Control::Continue).unwrap();
        let base = make(small(3));
        assert_eq!(base, make(small(3)));
        assert_ne!(base, make(PretrainConfig { seed: 2, ..small(3) }));
        let initial = small(3).model.initial_weights(&mut Stream::new(1, "weights"));
        for (before, after) in initial.tensors().iter().zip(base.tensors()) {
            assert_ne!(before.data, after.data, "{} trains", before.name);
        }
    }

    #[test]
    fn a_model_for_other_windows_is_refused() {
        let mut config = small(1);
        config.model.window = 1_024;
        assert_eq!(
            pretrain(&config, &mut |_| Control::Continue).unwrap_err().kind(),
            "out_of_range"
        );
    }

    #[test]
    fn the_learning_rate_rises_then_falls_to_nothing() {
        assert!(schedule(1, 1_000) < schedule(50, 1_000));
        assert!(schedule(50, 1_000) > 0.99);
        assert!(schedule(1_000, 1_000).abs() < 1e-12);
    }
}
