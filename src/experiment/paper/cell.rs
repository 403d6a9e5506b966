//! What is measured: one federation, or one learner that has all data, with one seed.

use serde::{Deserialize, Serialize};

use crate::torch::{LoraConfig, PeftConfig};

/// One cell of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What is compared; cells that differ in their seed only have the same.
    pub arm: String,
    /// What is learned from.
    pub set: Set,
    /// What is learned from it with.
    pub base: Base,
    /// What of the base trains.
    pub method: Method,
    /// Who learns together, and how.
    pub how: How,
    /// How the examples are dealt out.
    pub deal: Deal,
    /// Devices that they are dealt out to.
    pub devices: usize,
    /// Sites that the devices are at.
    pub sites: usize,
    /// Who is at whose site.
    pub grouping: Grouping,
    /// Rounds.
    pub rounds: u64,
    /// Optimiser steps of a device in a round.
    pub local_steps: u32,
    /// Examples a step.
    pub batch_size: u32,
    /// Learning rate, the same in all rounds.
    pub learning_rate: f64,
    /// Seed of weights that aren't the base's, batches, draws of the deal and of random groups.
    pub seed: u64,
    /// Only so many examples of each device, and so many to judge by; for a quick look.
    pub most_examples: Option<usize>,
}

/// What is learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Set {
    /// Vibration windows of bearings, three classes.
    Bearings,
    /// A part of Fashion-MNIST, ten classes.
    FashionMnist,
}

/// The model that learning starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// The signal transformer that comes along: 3 blocks, pre-trained on generated physics.
    Shipped,
    /// The architecture of the set's pre-trained base with random weights, drawn anew by each seed.
    Random,
    /// 8 blocks, pre-trained for a short while on generated physics by the experiment itself.
    Deep {
        /// Steps of its pre-training.
        steps: u32,
    },
    /// A small vision transformer, pre-trained for a short while on digits (MNIST) by the experiment itself.
    Digits {
        /// Steps of its pre-training.
        steps: u32,
    },
}

/// What of a base trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Nothing: the base answers as it is.
    Nothing,
    /// The head.
    Head,
    /// `LoRA` of rank 8 on queries and values, and the head.
    Lora,
    /// Eight tokens in front of each block, and the head.
    DeepPrompts,
    /// Scales on keys, values and the MLP's hidden layer, and the head.
    Ia3,
    /// Bottlenecks of width 8 behind attention and MLP, and the head.
    Bottleneck,
    /// All biases, and the head.
    BitFit,
    /// Everything.
    Full,
}

/// Who learns together, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Nobody: the model is judged as it is.
    Untrained,
    /// Each device trains the whole model; adapters are averaged.
    Federated,
    /// Each device trains the first block, its edge the rest.
    Split {
        /// One back for all devices of a site, in the order of arrival; else one a device, averaged.
        shared: bool,
        /// Activations travel in eight bits; else as f32.
        int8: bool,
    },
    /// One learner has all examples, and takes as many steps as all devices together.
    Pooled,
}

/// How examples are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deal {
    /// As they came: a plant's recordings each.
    Plants,
    /// Evenly.
    Iid,
    /// By Dirichlet draws of this alpha.
    Dirichlet(f64),
    /// So many labels each.
    Labels(usize),
}

/// Who is at whose site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Neighbours in the order of the devices.
    InOrder,
    /// Those with similar shares of the classes.
    Alike,
    /// By lot.
    Random,
}

impl Cell {
    /// A name for people and its folder; unlike those of other cells of an experiment.
    pub fn name(&self) -> String {
        format!("{}-{}", self.arm_name(), self.seed)
    }

    /// Its arm with the set: the same for cells that differ in their seed only.
    pub fn arm_name(&self) -> String {
        format!("{}-{}", self.set.as_str(), self.arm)
    }
}

impl Set {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearings => "bearings",
            Self::FashionMnist => "fashion-mnist",
        }
    }

    /// Bytes of a sample or pixel as a device has it.
    pub(super) fn value_bytes(self) -> u64 {
        match self {
            Self::Bearings => 4,
            Self::FashionMnist => 1,
        }
    }
}

impl Method {
    /// What trains; nothing trains of a model that isn't trained, so there it is the head that is left alone.
    pub fn peft(self) -> PeftConfig {
        let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect();
        let head = PeftConfig::whole(words(&["head"]));
        match self {
            Self::Nothing | Self::Head => head,
            Self::Lora => PeftConfig { lora: Some(LoraConfig::default()), ..head },
            Self::DeepPrompts => PeftConfig { deep_prompts: 8, ..head },
            Self::Ia3 => {
                PeftConfig { ia3: words(&["k", "v"]), ia3_inputs: words(&["down"]), ..head }
            }
            Self::Bottleneck => PeftConfig { bottleneck: 8, ..head },
            Self::BitFit => PeftConfig::whole(words(&["head", "*.bias"])),
            Self::Full => PeftConfig::whole(words(&["*"])),
        }
    }
}
