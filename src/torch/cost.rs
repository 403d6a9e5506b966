//! What the signal transformer costs, and what this machine does in a second: the figures that planning needs.
//!
//! Called by `node/plan.rs`; what follows from the figures is the business of `learn/plan.rs`.

use std::num::NonZeroU16;

use tch::{Device, Kind, Tensor};

use super::adapter::AdapterPlan;
use super::peft::PeftConfig;
use super::signal::SignalTransformerConfig;
use super::use_threads;
use crate::learn::{LearnError, MachineSpeeds, ModelCost, PartCost, SoftmaxPredictor, Spectrum};

impl SignalTransformerConfig {
    /// What each part of the model costs with this adapter.
    ///
    /// Operations are those of matrix products, two a multiplication with its addition; the rest is small
    /// beside them. `own` is the plain softmax on spectral features that a member may have instead.
    ///
    /// # Errors
    /// [`LearnError`] when sizes and targets don't fit together.
    pub fn cost(&self, peft: &PeftConfig) -> Result<ModelCost, LearnError> {
        self.check()?;
        let layout = self.layout();
        let adapter = AdapterPlan::new(&layout, peft)?.layout();
        let part = |prefix: &str, flops: f64, kept: u64| {
            let of = |layout: &crate::learn::Layout| {
                let own = layout.0.iter().filter(|(name, _)| name.starts_with(prefix));
                own.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum::<u64>()
            };
            PartCost { values: of(&layout), trains: of(&adapter), flops, kept }
        };
        let block = &self.block;
        let (tokens, d, ff) = (self.tokens(), f64::from(block.d_model), f64::from(block.d_ff));
        let (t, bins) = (f64::from(tokens), f64::from(self.bins()));
        let spectra = 2.0 * t * f64::from(self.patch) * 2.0 * bins;
        let products = 2.0 * t * (4.0 * d * d + 2.0 * d * ff);
        let attention = 4.0 * t * t * d;
        // As `SignalFront::num_bytes` has it: inputs and norms, queries to heads, hidden layer twice,
        // attention's row.
        let row = u64::from(block.heads) * u64::from(tokens);
        let kept =
            u64::from(tokens) * (8 * u64::from(block.d_model) + 2 * u64::from(block.d_ff) + row);
        let blocks =
            (0..self.layers).map(|i| part(&format!("blocks.{i}."), products + attention, kept));
        let classes = u64::from(self.classes);
        let mut head = part("head.", 2.0 * d * f64::from(self.classes), 0);
        let norm = part("norm.", 0.0, 0);
        (head.values, head.trains) = (head.values + norm.values, head.trains + norm.trains);
        Ok(ModelCost {
            stem: part("embed.", spectra + 2.0 * t * bins * d, 0),
            blocks: blocks.collect(),
            head,
            tokens: tokens.into(),
            width: block.d_model.into(),
            classes,
            example_bytes: 4 * u64::from(self.window),
            engine_bytes: ENGINE_BYTES,
            own: self.own()?,
        })
    }

    fn own(&self) -> Result<PartCost, LearnError> {
        let (len, classes) = (self.window as usize, self.classes as usize);
        let features = Spectrum::new(MachineSpeeds::default(), len)?.num_features() as u64;
        // It can't be made for classes that it hasn't.
        SoftmaxPredictor::new(MachineSpeeds::default(), len, classes)?;
        let values = (features + 1) * u64::from(self.classes);
        let n = f64::from(self.window);
        #[expect(clippy::cast_precision_loss, reason = "some hundred features")]
        let head = 2.0 * features as f64 * f64::from(self.classes);
        let flops = 5.0 * n * n.log2() + head;
        Ok(PartCost { values, trains: values, flops, kept: features })
    }
}

/// Floating-point operations a second in products of `[rows, inner]` with `[inner, columns]`, as they come up in
/// training: the best of some runs, which take about half a second in all.
///
/// `micros` is a clock that only rises.
///
/// # Errors
/// [`LearnError::Engine`] when libtorch refuses; [`LearnError::OutOfRange`] for sizes that are none.
pub fn flops_per_s(
    [rows, inner, columns]: [u32; 3],
    threads: NonZeroU16,
    micros: &mut dyn FnMut() -> u64,
) -> Result<f64, LearnError> {
    if rows == 0 || inner == 0 || columns == 0 {
        return Err(LearnError::OutOfRange {
            what: "sizes of a product",
            expected: "above 0".into(),
            actual: format!("{rows}, {inner}, {columns}"),
        });
    }
    let _guard = tch::no_grad_guard();
    use_threads(threads);
    let options = (Kind::Float, Device::Cpu);
    let a = Tensor::f_ones([rows.into(), inner.into()], options)?;
    let b = Tensor::f_ones([inner.into(), columns.into()], options)?;
    let once = 2.0 * f64::from(rows) * f64::from(inner) * f64::from(columns);
    let (begun, mut best) = (micros(), 0.0_f64);
    for run in 0..MOST_RUNS {
        let from = micros();
        for _ in 0..PRODUCTS {
            drop(a.f_matmul(&b)?);
        }
        let now = micros();
        // A clock that stands still measures nothing.
        let seconds =
            f64::from(u32::try_from(now.saturating_sub(from).max(1)).unwrap_or(u32::MAX)) / 1e6;
        // The first run warms up.
        if run > 0 {
            best = best.max(once * f64::from(PRODUCTS) / seconds);
        }
        if run > 0 && now.saturating_sub(begun) > MOST_MICROS {
            break;
        }
    }
    Ok(best)
}

/// What a process takes before it holds a model: 146 MiB at the peak of one that only multiplies, on x86-64.
const ENGINE_BYTES: u64 = 160 << 20;
const PRODUCTS: u32 = 20;
const MOST_RUNS: u32 = 200;
const MOST_MICROS: u64 = 500_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::{Cut, training_bytes};
    use crate::torch::{LoraConfig, SignalFront, SignalLearner, TrainerConfig};

    fn peft() -> PeftConfig {
        PeftConfig { lora: Some(LoraConfig::default()), ..PeftConfig::default() }
    }

    #[test]
    fn the_parts_are_those_of_the_model_that_is_made() {
        let config = TrainerConfig { peft: peft(), ..TrainerConfig::default() };
        let (model, layout) = (config.model, config.model.layout());
        let cost = model.cost(&config.peft).unwrap();
        let sum = |of: fn(&PartCost) -> u64| {
            of(&cost.stem) + of(&cost.head) + cost.blocks.iter().map(of).sum::<u64>()
        };
        let values: usize = layout.0.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        assert_eq!(sum(|part| part.values), values as u64);
        let base = model.initial_weights(&mut crate::rng::Stream::new(1, "weights"));
        let learner = SignalLearner::new(&base, config.clone(), 3).unwrap();
        let trains = crate::learn::Learner::initial_adapter(&learner).num_values();
        assert_eq!(sum(|part| part.trains), trains as u64);
        for blocks in 1..model.layers {
            let cut = Cut { blocks, head_in_front: false };
            let part = base.filtered(|name| cut.is_front(name));
            let front = SignalFront::new(&part, config.clone(), cut, 3).unwrap();
            let (_, trains) = front.num_values();
            let mut planned = cost.stem;
            for block in cost.blocks.iter().take(blocks as usize) {
                planned.values += block.values;
                planned.trains += block.trains;
                planned.kept += block.kept;
            }
            assert_eq!(
                training_bytes(&planned, 32),
                SignalFront::num_bytes(&model, cut, trains, 32)
            );
        }
    }

    #[test]
    fn a_blocks_operations_are_those_of_its_products() {
        let cost = SignalTransformerConfig::default().cost(&peft()).unwrap();
        // 42 tokens of 64, a hidden layer of 128: by hand.
        let by_hand = 2 * 42 * (4 * 64 * 64 + 2 * 64 * 128) + 4 * 42 * 42 * 64;
        assert!(
            (cost.blocks[0].flops - f64::from(by_hand)).abs() < 0.5,
            "{}",
            cost.blocks[0].flops
        );
        assert_eq!((cost.tokens, cost.width, cost.classes), (42, 64, 3));
    }

    #[test]
    fn a_measurement_is_by_the_clock_that_it_is_given() {
        let mut now = 0;
        let mut clock = || {
            now += 1_000;
            now
        };
        let got = flops_per_s([8, 4, 2], NonZeroU16::MIN, &mut clock).unwrap();
        // Twenty products of 128 operations in a millisecond each time.
        assert!((got - 20.0 * 128.0 / 1e-3).abs() < 1e-3, "{got}");
        assert!(flops_per_s([8, 0, 2], NonZeroU16::MIN, &mut clock).is_err());
        let standing = flops_per_s([8, 4, 2], NonZeroU16::MIN, &mut || 7).unwrap();
        assert!(standing.is_finite() && standing > 0.0);
    }
}
