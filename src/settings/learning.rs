//! The settings as types: what is learned, from what, and how.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::feedback::TriggerName;
use crate::ids::Name;
use crate::learn::RateSchedule;

/// Section `[round]`: the aggregator's and the relay's rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundSettings {
    /// Opens rounds by itself.
    pub auto_start: bool,
    /// Stops after so many.
    pub rounds: u64,
    /// Share of the expected members that a deadline needs to close a round.
    pub quorum: f64,
    /// Closes at the latest after so long.
    pub deadline_s: u64,
    /// A relay's round ends so much before its parent's.
    pub relay_margin_s: u64,
    /// Publishes an open round's offer again this often.
    pub republish_s: u64,
    /// Pause between two rounds.
    pub pause_s: u64,
    /// Versions that a late contribution may be behind; 0 drops it.
    pub late_max_staleness: u64,
    /// A relay goes on alone when its parent has been silent for so long; 0: it waits.
    pub island_after_s: u64,
    /// A device goes to its second edge when its own was silent for so long; 0: seven times `republish_s`.
    pub second_edge_after_s: u64,
    /// An owner that was not heard for so long is taken for gone by its standby.
    pub lease_s: u64,
    /// What opens a round of a cloud that doesn't open one after the other.
    pub triggers: Vec<TriggerName>,
    /// Time between rounds, `on_schedule`.
    pub every_s: u64,
    /// Drifts that are enough, `on_drift`.
    pub drifts: u64,
    /// Labels that are enough, `on_n_labels`.
    pub labels: u64,
    /// Least time between rounds that triggers open.
    pub apart_s: u64,
}

/// Section `[strategy]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrategySettings {
    /// How contributions are made and combined.
    pub name: StrategyName,
    /// What members send.
    pub contribute: Vec<Contribute>,
    /// Optimiser steps in a round.
    pub local_steps: u32,
    /// Examples in a step.
    pub batch_size: u32,
    /// Step size.
    pub learning_rate: f64,
    /// How the learning rate goes on over the rounds.
    pub schedule: Schedule,
    /// Pull towards the round's start (`FedProx`).
    pub prox_mu: f64,
    /// Weight of the soft labels in the loss.
    pub distill_lambda: f64,
    /// Rank of `LoRA`'s factors.
    pub rank: u32,
    /// Numerator of `LoRA`'s scaling.
    pub alpha: f64,
    /// How adapter deltas travel.
    pub compression: Compression,
    /// Values that share a scale.
    pub block: u32,
    /// Seed of the run.
    pub seed: u64,
    /// Whole passes over a member's examples in a round, instead of `local_steps`; 0 is off.
    pub local_epochs: u32,
    /// Most that one of three or more members weighs; 1 is no cap.
    pub max_share: f64,
    /// Shortens contributions that are longer than the usual one.
    pub clip_norms: bool,
    /// Rounds that a relay right below the root runs with its members for one of the root's.
    pub cluster_rounds: u32,
}

/// How contributions are made and combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// Weighted mean of deltas (`FedAvg`).
    Fedavg,
    /// The same with a proximal term in the members' loss (`FedProx`).
    Fedprox,
}

/// A kind of contribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contribute {
    /// The change of the adapter.
    AdapterDelta,
    /// Class means of logits.
    ClassLogits,
    /// Class means of embeddings, in rounds of knowledge.
    Prototypes,
    /// Logits of the reference inputs, in rounds of knowledge.
    ReferenceLogits,
    /// The classification layer, in rounds of knowledge; a generator of latents that was trained against those comes back.
    Generator,
    /// Mean spectra of the classes' windows.
    Spectra,
}

/// Section `[knowledge]`: rounds where each node has a model of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnowledgeSettings {
    /// Nodes have models of their own, and no adapter travels.
    pub own_models: bool,
    /// Generator of the reference inputs.
    pub reference: Option<String>,
    /// Its seed.
    pub reference_seed: u64,
    /// How many.
    pub reference_count: u32,
    /// Texts that a model wrote, instead of a generator's inputs.
    pub reference_file: Option<PathBuf>,
    /// SHA-256 that the file must have.
    pub reference_digest: Option<String>,
    /// Labels of reference inputs are learned from, where there are any.
    pub reference_labels: bool,
    /// Share of a reference input's own label in its target.
    pub label_share: f64,
    /// Weight of the reference inputs in the members' loss.
    pub reference_weight: f64,
    /// Weight of the prototypes in the members' loss.
    pub prototype_weight: f64,
    /// Steps that a relay's or an aggregator's own model takes a round.
    pub distil_steps: u32,
    /// Step size of those.
    pub distil_rate: f64,
    /// It falls to 0 within a round.
    pub distil_falls: bool,
    /// How members' values become one.
    pub merging: MergingName,
    /// Weight of generated latents in the members' loss.
    pub generator_weight: f64,
    /// Bands of a spectrum.
    pub spectra_bands: u32,
    /// Grades in which reference inputs are filtered.
    pub spectra_grades: u32,
    /// Tokens a place that a model that writes names.
    pub top_logits: u32,
}

/// How members' values become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergingName {
    /// Their mean.
    Mean,
    /// The middle one.
    Median,
    /// The mean without the largest and smallest fifth.
    Trimmed,
}

/// How the learning rate goes on over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// As it is.
    Constant,
    /// Down to zero along a half cosine, a level a round.
    Cosine,
    /// Down along it within the rounds too.
    CosineSteps,
}

impl From<Schedule> for RateSchedule {
    fn from(schedule: Schedule) -> Self {
        match schedule {
            Schedule::Constant => Self::Constant,
            Schedule::Cosine => Self::Cosine,
            Schedule::CosineSteps => Self::CosineSteps,
        }
    }
}

/// How adapter deltas travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// As f32.
    None,
    /// Eight bits a value.
    Int8,
    /// Four bits a value.
    Int4,
}

/// Section `[model]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A level of its topics.
    pub name: Name,
    /// What learns.
    pub learner: LearnerName,
    /// Card of the frozen base model.
    pub base: Option<PathBuf>,
    /// Public key whose signature on the card is believed.
    pub release_key: Option<PathBuf>,
    /// Where a language model computes: `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// A base whose weights aren't here is fetched from the parent.
    pub from_parent: bool,
    /// Adapters of the node's own that requests may name.
    #[serde(default)]
    pub adapters: Vec<AdapterSettings>,
}

/// One block `[[model.adapters]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSettings {
    /// What requests call it.
    pub name: Name,
    /// Its folder, in Hugging Face's PEFT format or ours.
    pub path: PathBuf,
}

/// What learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LearnerName {
    /// Softmax regression on spectral features; plain Rust.
    Softmax,
    /// Transformer on signal patches with `LoRA`; libtorch.
    SignalTransformer,
    /// Language model with `LoRA`; libtorch.
    Language,
    /// Softmax regression on runs of a text's characters; plain Rust.
    TextSoftmax,
    /// Softmax regression on a text's vector, by an encoder or a language model; libtorch.
    TextEncoder,
}

impl LearnerName {
    /// Whether it tells what texts are about.
    pub fn classifies_texts(self) -> bool {
        matches!(self, Self::TextSoftmax | Self::TextEncoder)
    }
}

/// Section `[split]`: a site whose devices train the front of the model, and its edge the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSettings {
    /// Blocks of the model on the device; absent: models aren't split.
    pub cut: Option<u32>,
    /// How many backs the edge trains.
    pub version: SplitVersion,
    /// Where the labels are, and the head with them.
    pub labels: SplitLabels,
    /// How activations and gradients travel.
    pub coding: SplitCodingName,
    /// An answer that takes longer is lost, and its step with it.
    pub step_timeout_s: u32,
}

/// How many backs the edge trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitVersion {
    /// One a device, averaged with its front.
    V1,
    /// One for all, in the order of arrival.
    V2,
}

/// Where the labels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitLabels {
    /// They go to the edge with the activations.
    Edge,
    /// They stay on the device.
    Device,
}

/// How activations and gradients travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitCodingName {
    /// Eight bits a value, a scale a token.
    Int8,
    /// As they are.
    F32,
}

/// Section `[data]`: what a device learns from, a known data set or a file of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Its name.
    pub set: Option<String>,
    /// Which of its natural clients this node is.
    pub client: Option<Name>,
    /// Texts of the plant's own, instead of a set.
    pub file: Option<PathBuf>,
    /// Title of their column; without it each line is a text.
    pub column: Option<String>,
    /// Title of the column with their classes, for a model that classifies texts.
    pub labels: Option<String>,
    /// Folder of downloads.
    pub cache: Option<PathBuf>,
}

/// One block `[[tags]]`: binds a plant topic to an input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagSettings {
    /// Topic filter at the site's broker.
    pub topic: String,
    /// JSON pointer to the value; empty or absent: the payload is the value.
    pub pointer: Option<String>,
    /// What its payload is; absent: JSON.
    pub format: Option<TagFormat>,
    /// What the value is.
    pub binds: TagBinds,
    /// A veto forbids training above this.
    pub above: Option<f64>,
    /// A veto forbids training below this.
    pub below: Option<f64>,
    /// The model that it feeds, if a feature.
    pub model: Option<Name>,
    /// Samples from the start of one window to the start of the next; absent: no overlap.
    pub hop: Option<u32>,
    /// Pause that breaks a window; absent: five seconds.
    pub max_gap_ms: Option<u64>,
}

/// What a tag's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TagFormat {
    /// JSON, also a bare number or array.
    Json,
    /// Numbers between separators, or one word.
    Csv,
    /// Little-endian 32-bit floats.
    F32le,
}

/// What a tag's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TagBinds {
    /// An input of the model.
    Feature,
    /// What the machine does: answers are judged by it.
    Label,
    /// Whether the machine stands still: training waits while it doesn't.
    Idle,
    /// A measurement beyond whose bounds training waits.
    Veto,
}

/// Section `[privacy]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacySettings {
    /// How many examples must stand behind what leaves.
    pub profile: PrivacyProfile,
    /// A device measures what an attacker would find out about its examples.
    pub risk_meter: bool,
}

/// How many examples must stand behind what leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrivacyProfile {
    /// The default.
    Standard,
    /// For plants that ask for more.
    Strict,
    /// For experiments on public data.
    Lab,
}
