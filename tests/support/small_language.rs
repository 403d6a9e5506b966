//! A tiny language model of libtorch with random weights, and an adapter of its own for each version: real
//! products and caches, in a moment also without optimisation.
#![allow(dead_code, reason = "each test uses a part")]

use std::num::NonZeroU16;

use gaisnet::learn::{Generator, Sampler, Sampling, Tensor, TensorSet, Tokens};
use gaisnet::rng::Stream;
use gaisnet::torch::adapter::AdapterPlan;
use gaisnet::torch::generate::LanguageGenerator;
use gaisnet::torch::language::{LanguageBase, LanguageConfig, Precision};
use gaisnet::torch::weights::Weights;
use gaisnet::torch::{LoraConfig, PeftConfig};

use super::toy_generator::ToyTokens;

/// Tokens of an answer.
pub(crate) const LETTERS: u32 = 12;

/// 28 tokens (the toy's letters), two blocks, random weights.
pub(crate) fn base() -> LanguageBase {
    let config = LanguageConfig {
        vocab: 28,
        d_model: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        d_ff: 64,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        context: 64,
        tied: false,
    };
    let mut stream = Stream::new(1, "tests/base");
    let tensors = config.layout().0.into_iter().map(|(name, shape)| {
        let size: usize = shape.iter().product();
        let is_norm = name.contains("norm");
        let draw = |_| if is_norm { 1.0 } else { 0.3 * stream.normal() as f32 };
        let data = (0..size).map(draw).collect();
        Tensor { name, shape, data }
    });
    let weights = Weights::from_set(&TensorSet::new(tensors.collect()).unwrap()).unwrap();
    LanguageBase::new(config, weights, Precision::F32, tch::Device::Cpu).unwrap()
}

pub(crate) fn peft() -> PeftConfig {
    PeftConfig::lora(LoraConfig { rank: 4, ..LoraConfig::default() })
}

pub(crate) fn generator() -> LanguageGenerator {
    LanguageGenerator::new(base(), &peft(), NonZeroU16::MIN).unwrap()
}

/// Version 0: nothing is changed yet.
pub(crate) fn untrained() -> TensorSet {
    let base = base();
    let plan = AdapterPlan::new(&base.weights().layout(), &peft()).unwrap();
    plan.initial(base.weights(), 1).unwrap()
}

/// An adapter of its own for each version.
pub(crate) fn adapter(version: u64) -> TensorSet {
    let initial = untrained();
    let mut stream = Stream::new(version, "tests/adapter");
    let drawn = initial.tensors().iter().map(|tensor| {
        let data = tensor.data.iter().map(|_| 0.5 * stream.normal() as f32).collect();
        Tensor { data, ..tensor.clone() }
    });
    TensorSet::new(drawn.collect()).unwrap()
}

/// What the adapter in slot 1 writes when nothing else runs, token by token without a scheduler.
pub(crate) fn alone(generator: &mut LanguageGenerator, prompt: &str) -> String {
    let mut sampler = Sampler::new(Sampling::GREEDY, 1);
    let mut logits = generator.start(0, 1, &ToyTokens.encode(prompt).unwrap()).unwrap();
    let mut ids = Vec::new();
    loop {
        let token = sampler.pick(&logits).unwrap();
        if ToyTokens.is_end(token) {
            break;
        }
        ids.push(token);
        if ids.len() == LETTERS as usize {
            break;
        }
        logits = generator.step(&[(0, token)]).unwrap().remove(0);
    }
    generator.end(0);
    ToyTokens.decode(&ids).unwrap()
}

pub(crate) fn prompt(ticket: u64) -> String {
    let letter = |n: u64| char::from(b'a' + (n % 25) as u8);
    (0..=ticket % 4).map(|i| letter(ticket * 7 + i * 3)).collect()
}
