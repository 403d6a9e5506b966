//! Adapters of the signal transformer, whose layers have biases.

use std::num::NonZeroU16;

use tch::Kind;

use super::*;
use crate::torch::parts::Parts;
use crate::torch::signal::{SignalTransformer, SignalTransformerConfig, tests::tiny};
use crate::torch::use_threads;

fn base() -> (SignalTransformerConfig, Weights) {
    use_threads(NonZeroU16::MIN);
    let config = tiny();
    let set = config.initial_weights(&mut Stream::new(2, "base"));
    (config, Weights::from_set(&set).unwrap())
}

#[expect(clippy::cast_possible_truncation, reason = "test values are f32")]
fn noise(name: &str, n: usize) -> Vec<f32> {
    let mut stream = Stream::new(4, name);
    (0..n).map(|_| (0.3 * stream.normal()) as f32).collect()
}

fn answer(config: &SignalTransformerConfig, parts: &Parts<'_>) -> Tensor {
    let (tokens, bins) = (i64::from(config.tokens()), i64::from(config.bins()));
    let n = usize::try_from(2 * tokens * bins).unwrap();
    let spectra = tensor(&noise("spectra", n), &[2, tokens, bins]).unwrap();
    SignalTransformer::new(parts, config).unwrap().forward(&spectra).unwrap()
}

/// Bias terms, scales, factors and bottlenecks, each somewhere off its start.
fn kinds() -> Vec<PeftConfig> {
    let all = vec!["*".to_owned()];
    vec![
        PeftConfig::whole(vec!["*.bias".into()]),
        PeftConfig { ia3: all.clone(), ..PeftConfig::none() },
        PeftConfig { ia3_inputs: all.clone(), ..PeftConfig::none() },
        PeftConfig::lora(LoraConfig { targets: all, ..LoraConfig::default() }),
        PeftConfig { bottleneck: 3, ..PeftConfig::none() },
        PeftConfig { prefix: 2, ..PeftConfig::none() },
    ]
}

fn off_start(plan: &AdapterPlan, weights: &Weights) -> Tensor {
    let start = plan.flatten(&plan.initial(weights, 1).unwrap()).unwrap();
    let n = usize::try_from(plan.num_values()).unwrap();
    start.f_add(&tensor(&noise("adapter", n), &[-1]).unwrap()).unwrap()
}

#[test]
fn bitfit_trains_each_bias_and_nothing_else() {
    let (config, _) = base();
    let plan =
        AdapterPlan::new(&config.layout(), &PeftConfig::whole(vec!["*.bias".into()])).unwrap();
    let biases = config.layout().0.into_iter().filter(|(_, shape)| shape.len() == 1);
    let biases = biases.filter(|(name, _)| name.rsplit('.').next() == Some("bias"));
    assert_eq!(plan.layout(), Layout(biases.collect()));
}

#[test]
fn gradients_of_a_model_with_biases_are_those_of_finite_differences() {
    const STEP: f64 = 5e-3;
    let (config, weights) = base();
    for peft in kinds() {
        let plan = AdapterPlan::new(&config.layout(), &peft).unwrap();
        let loss = |flat: &Tensor| {
            let attached = plan.attach(flat).unwrap();
            answer(&config, &Parts::with(&weights, &attached)).square().sum(Kind::Double)
        };
        let flat = off_start(&plan, &weights).set_requires_grad(true);
        let gradient = Tensor::run_backward(&[loss(&flat)], &[&flat], false, false).remove(0);
        let _guard = tch::no_grad_guard();
        let mut start = 0;
        for entry in &plan.entries {
            let own = gradient.narrow(0, start, entry.len);
            let length = own.norm().double_value(&[]);
            // Keys' biases change no share of attention: their true gradient is 0.
            let free = entry.name.ends_with("attn.k.bias");
            assert!(length > 1e-5 || free, "{peft:?}: nothing reaches {}", entry.name);
            let direction = gradient.zeros_like();
            direction.narrow(0, start, entry.len).copy_(&(&own / length.max(1e-12)));
            let at = |step: f64| loss(&(&flat + &direction * step)).double_value(&[]);
            let measured = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let apart = (measured - length).abs();
            assert!(free || apart < 2e-3 + 2e-2 * length, "{}: {measured} {length}", entry.name);
            start += entry.len;
        }
    }
}

#[test]
fn biases_scales_and_factors_merge_into_layers_with_biases() {
    let _guard = tch::no_grad_guard();
    let (config, weights) = base();
    for peft in kinds().into_iter().take(4) {
        let plan = AdapterPlan::new(&config.layout(), &peft).unwrap();
        let flat = off_start(&plan, &weights);
        let attached = plan.attach(&flat).unwrap();
        let beside = answer(&config, &Parts::with(&weights, &attached));
        let merged = plan.merge(&weights, &flat).unwrap();
        let inside = answer(&config, &Parts::bare(&merged));
        let apart = (&beside - inside).abs().max().double_value(&[]);
        assert!(apart < 1e-5, "{peft:?}: {apart}");
        let bare = answer(&config, &Parts::bare(&weights));
        assert!((beside - bare).abs().max().double_value(&[]) > 1e-3, "{peft:?} changes nothing");
    }
}
