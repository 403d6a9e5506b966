//! Models of three kinds at three tiers teach each other: `gaisnet experiment run relay`.
//!
//! ```text
//!   cloud   signal transformer, 3 blocks of 64, pre-trained on physics, LoRA      no data
//!   edges   signal transformer, 1 block of 32, pre-trained for a short while     no data
//!   devices softmax on 45 spectral features                                      a plant's recordings each
//!
//!   arms.rs         what each model comes to without a neighbour: alone, and with the reference's labels
//!   federation.rs   real nodes over brokers in memory, one strategy
//!   texts.rs        another subject: work orders, and reference texts that a language model wrote
//! ```
//! Every choice is in `config/experiment-relay.toml` and in the constants here, made on training recordings
//! (`Bearings::rehearsal`). Judged on the test
//! recordings, macro-F1; several seeds, with Student's interval of 95 % over them. The seeds draw the order of
//! examples and the reference inputs anew, and neither the recordings nor the two bases: an interval says how much luck
//! is in a figure, not how other bearings would do.

mod arms;
mod federation;
pub mod texts;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::ExperimentError;
pub use super::over::Over;
use super::over::{less, over};
use super::score::{answers, predictions};
use crate::data::bearings::{CLASSES, Dataset, PLANTS, RATE_HZ, WINDOW_LEN};
use crate::ids::Digest;
use crate::learn::{
    BEARING_PHYSICS, Control, LearnError, Learner, MachineSpeeds, Prediction, Predictor,
    ReferenceSet, SoftmaxLearner, SoftmaxPredictor, TensorSet, Windows,
};
use crate::node::distils_of;
use crate::protocol::Distils;
use crate::scada::telegram::ModelMeta;
use crate::settings::Settings;
use crate::torch::{
    LoraConfig, PeftConfig, PretrainConfig, SignalLearner, SignalPredictor,
    SignalTransformerConfig, TrainerConfig, pretrain,
};
use crate::trust::keyring::Role;

/// Settings of the experiment.
pub const SETTINGS: &str = include_str!("../../../config/experiment-relay.toml");

/// What is run, beside what the settings say.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// Stores of the nodes go here.
    pub folder: PathBuf,
    /// Seeds, one run of everything each.
    pub seeds: Vec<u64>,
    /// Strategies to compare.
    pub strategies: Vec<Strategy>,
    /// Gives up when a federation makes no progress for so long.
    pub patience_s: u64,
    /// Threads of libtorch.
    pub threads: NonZeroU16,
}

/// What travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Logits of the reference inputs.
    ReferenceLogits,
    /// Mean logits a class.
    ClassLogits,
    /// Mean features a class, between the devices; the owners' models learn the reference's labels only.
    Prototypes,
    /// Logits of the reference inputs, whose labels nobody uses: the median of what is said teaches.
    Unlabelled,
    /// Logits of the reference inputs, and mean features a class.
    Both,
    /// Changes of an adapter of the cloud's model, which all nodes have then.
    Weights,
    /// Classification layers of the devices, and a generator of latents that the cloud trains against them.
    Generator,
    /// Mean spectra of the classes: models learn reference inputs that sound so.
    Spectra,
    /// The same, and mean features a class.
    SpectraAndPrototypes,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::ReferenceLogits,
        Self::Unlabelled,
        Self::ClassLogits,
        Self::Prototypes,
        Self::Both,
        Self::Weights,
        Self::Generator,
        Self::Spectra,
        Self::SpectraAndPrototypes,
    ];

    /// Whether it is about vibrations, which texts don't have.
    pub fn is_of_windows(self) -> bool {
        matches!(self, Self::Spectra | Self::SpectraAndPrototypes)
    }

    /// The word in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReferenceLogits => "reference_logits",
            Self::ClassLogits => "class_logits",
            Self::Prototypes => "prototypes",
            Self::Unlabelled => "unlabelled",
            Self::Both => "both",
            Self::Weights => "weights",
            Self::Generator => "generator",
            Self::Spectra => "spectra",
            Self::SpectraAndPrototypes => "spectra_and_prototypes",
        }
    }
}

/// What a node's model came to, macro-F1 on what is judged by.
#[derive(Debug, Clone, Serialize)]
pub struct NodeScores {
    /// The node.
    pub node: String,
    /// Its model.
    pub model: &'static str,
    /// Before: devices with their own recordings alone, the others as pre-trained.
    pub before: Over,
    /// The same with the labels of the reference inputs, and no neighbour.
    pub labels: Over,
    /// After all rounds, by strategy.
    pub after: BTreeMap<&'static str, Over>,
    /// After less before, seed by seed.
    pub gain: BTreeMap<&'static str, Over>,
    /// After less labels, seed by seed: what the neighbours gave.
    pub gain_over_labels: BTreeMap<&'static str, Over>,
    /// Accuracy, by strategy and before.
    pub accuracy: BTreeMap<&'static str, Over>,
}

/// What a strategy sends, means over rounds and seeds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sent {
    /// Bytes of a device's work in a round, without the message around it.
    pub work_up: f64,
    /// Bytes that a device published in a round.
    pub device_up: f64,
    /// Bytes that an edge published in a round towards the cloud.
    pub edge_up: f64,
    /// Bytes that an edge published in a round towards its devices.
    pub edge_down: f64,
    /// Bytes that the cloud published in a round.
    pub cloud_down: f64,
    /// Whether all ledgers were verified.
    pub audit: bool,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct RelayReport {
    /// Version of the program.
    pub version: &'static str,
    /// Commit that it was built from.
    pub commit: &'static str,
    /// SHA-256 of the settings, as JSON.
    pub config: String,
    /// What ran it.
    pub machine: String,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Rounds of each federation.
    pub rounds: u64,
    /// A node each.
    pub nodes: Vec<NodeScores>,
    /// By strategy.
    pub sent: BTreeMap<&'static str, Sent>,
}

/// What models learn and are judged by: recordings of bearings, or work orders. One seed of it.
trait Subject {
    /// Settings of the federation.
    fn settings(&self) -> &Settings;
    /// Seed of what is drawn.
    fn seed(&self) -> u64;
    /// Devices and their sites.
    fn parties(&self) -> Vec<(&'static str, &'static str)>;
    /// What a device has.
    fn own(&self, party: usize) -> Option<&Windows>;
    /// The reference inputs as the nodes of a tier see them.
    ///
    /// # Errors
    /// [`ExperimentError`] for a tier that takes no part.
    fn reference(&self, role: Role) -> Result<&Arc<ReferenceSet>, ExperimentError>;
    /// What all models answer.
    fn model(&self) -> ModelMeta;
    /// Base and learner of a tier's nodes.
    fn learner(
        &self,
        role: Role,
        strategy: Strategy,
    ) -> Result<(Digest, Box<dyn Learner>), ExperimentError>;
    /// How an owner's model learns.
    fn how(&self, role: Role) -> Distils;
    /// Learning rate where all train one model.
    fn rate_of_weights(&self) -> f64;
    /// What is judged by, as a tier's model sees it.
    ///
    /// # Errors
    /// [`ExperimentError`] for a tier that takes no part.
    fn test(&self, role: Role, strategy: Strategy) -> Result<&Windows, ExperimentError>;
    /// A tier's model with this adapter.
    fn predictor(
        &self,
        role: Role,
        strategy: Strategy,
        adapter: &TensorSet,
    ) -> Result<Box<dyn Predictor>, ExperimentError>;

    /// What a tier's model with this adapter comes to.
    ///
    /// # Errors
    /// Those of [`Self::test`] and [`Self::predictor`].
    fn score(
        &self,
        role: Role,
        strategy: Strategy,
        adapter: &TensorSet,
    ) -> Result<Score, ExperimentError> {
        let mut predictor = self.predictor(role, strategy, adapter)?;
        let confusion = answers(predictor.as_mut(), self.test(role, strategy)?)?;
        Ok(Score {
            macro_f1: confusion.macro_f1().unwrap_or(0.0),
            accuracy: confusion.accuracy().unwrap_or(0.0),
        })
    }
}

/// What each node's model answers, by node: one prediction a question.
pub type Answers = BTreeMap<String, Vec<Prediction>>;

/// Digest of the card, architecture and values of the large base.
pub type LargeBase = (Digest, SignalTransformerConfig, TensorSet);

/// What a model comes to.
#[derive(Debug, Clone, Copy)]
struct Score {
    macro_f1: f64,
    accuracy: f64,
}

/// The bearings.
struct Bench<'a> {
    settings: &'a Settings,
    set: &'a Dataset,
    reference: Arc<ReferenceSet>,
    large: Model,
    small: Model,
    seed: u64,
}

/// A base with what trains of it.
#[derive(Clone)]
struct Model {
    digest: Digest,
    base: Arc<TensorSet>,
    config: TrainerConfig,
}

impl Model {
    fn learner(&self) -> Result<SignalLearner, LearnError> {
        SignalLearner::new(&self.base, self.config.clone(), ADAPTER_SEED)
    }

    fn predictor(&self) -> Result<SignalPredictor, LearnError> {
        let TrainerConfig { model, peft, threads, .. } = &self.config;
        SignalPredictor::new(&self.base, *model, peft, *threads)
    }
}

impl Subject for Bench<'_> {
    fn settings(&self) -> &Settings {
        self.settings
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn parties(&self) -> Vec<(&'static str, &'static str)> {
        PLANTS.iter().enumerate().map(|(at, plant)| (*plant, site_of(at))).collect()
    }

    fn own(&self, party: usize) -> Option<&Windows> {
        self.set.plants.get(party)
    }

    fn reference(&self, _: Role) -> Result<&Arc<ReferenceSet>, ExperimentError> {
        Ok(&self.reference)
    }

    fn model(&self) -> ModelMeta {
        ModelMeta {
            name: self.settings.model.name.clone(),
            version: 0,
            window: 0,
            rate_hz: f64::from(RATE_HZ),
            labels: CLASSES.iter().map(|class| (*class).to_owned()).collect(),
            context: None,
            adapters: vec![],
        }
    }

    fn learner(
        &self,
        role: Role,
        strategy: Strategy,
    ) -> Result<(Digest, Box<dyn Learner>), ExperimentError> {
        Ok(match (strategy, role) {
            (Strategy::Weights, _) | (_, Role::Cloud) => {
                (self.large.digest, Box::new(self.large.learner()?))
            }
            (_, Role::Edge) => (self.small.digest, Box::new(self.small.learner()?)),
            _ => (Digest::of(b"softmax"), Box::new(softmax()?)),
        })
    }

    fn how(&self, role: Role) -> Distils {
        let cloud = distils_of(&self.settings.knowledge);
        if role == Role::Cloud {
            return cloud;
        }
        // What little an edge's model has to learn by takes the whole round.
        Distils { learning_rate: SMALL_RATE, final_rate: None, ..cloud }
    }

    fn rate_of_weights(&self) -> f64 {
        RATE_OF_WEIGHTS
    }

    fn test(&self, _: Role, _: Strategy) -> Result<&Windows, ExperimentError> {
        Ok(&self.set.test)
    }

    fn predictor(
        &self,
        role: Role,
        strategy: Strategy,
        adapter: &TensorSet,
    ) -> Result<Box<dyn Predictor>, ExperimentError> {
        let mut predictor: Box<dyn Predictor> = match (strategy, role) {
            (Strategy::Weights, _) | (_, Role::Cloud) => Box::new(self.large.predictor()?),
            (_, Role::Edge) => Box::new(self.small.predictor()?),
            _ => {
                let (speeds, classes) = (MachineSpeeds::default(), CLASSES.len());
                Box::new(SoftmaxPredictor::new(speeds, WINDOW_LEN, classes)?)
            }
        };
        predictor.load(adapter)?;
        Ok(predictor)
    }
}

/// Runs all arms with all seeds. Blocks until all is done.
///
/// `news` is told what begins.
///
/// # Errors
/// [`ExperimentError`].
pub fn run(
    options: &RelayOptions,
    settings: &Settings,
    set: &Dataset,
    large: LargeBase,
    news: &mut dyn FnMut(&str),
) -> Result<RelayReport, ExperimentError> {
    let subject = benches(options, settings, set, large, news)?;
    let models = [
        (Role::Cloud, "signal transformer 3 x 64, LoRA"),
        (Role::Edge, "signal transformer 1 x 32"),
        (Role::Device, "softmax on 45 features"),
    ];
    run_all(options, settings, &subject, models, news)
}

/// What each node's model answers to the test windows: an entry a seed; by arm, `before` and the strategies; by node.
///
/// # Errors
/// [`ExperimentError`].
pub fn said(
    options: &RelayOptions,
    settings: &Settings,
    set: &Dataset,
    large: LargeBase,
    news: &mut dyn FnMut(&str),
) -> Result<Vec<BTreeMap<&'static str, Answers>>, ExperimentError> {
    let subject = benches(options, settings, set, large, news)?;
    let mut all = Vec::new();
    for seed in &options.seeds {
        let one = subject(*seed)?;
        let answers = |strategy, adapters: &BTreeMap<String, TensorSet>| {
            let of = |(node, role): (String, Role)| {
                let Some(adapter) = adapters.get(&node) else {
                    return Err(ExperimentError::Name(node));
                };
                let mut predictor = one.predictor(role, strategy, adapter)?;
                let said = predictions(predictor.as_mut(), one.test(role, strategy)?)?;
                Ok((node, said))
            };
            nodes_of(&one).into_iter().map(of).collect::<Result<Answers, ExperimentError>>()
        };
        news(&format!("seed {seed}: each model without a neighbour"));
        let mut arms = BTreeMap::from([(BEFORE, answers(arms::ALONE, &arms::before(&one)?)?)]);
        for strategy in &options.strategies {
            news(&format!("seed {seed}: {}", strategy.as_str()));
            let folder = options.folder.join(format!("{seed}-{}", strategy.as_str()));
            let outcome = federation::run(&one, *strategy, &folder, options.patience_s)?;
            arms.insert(strategy.as_str(), answers(*strategy, &outcome.adapters)?);
        }
        all.push(arms);
    }
    Ok(all)
}

/// What makes a seed of the bearings.
fn benches<'a>(
    options: &RelayOptions,
    settings: &'a Settings,
    set: &'a Dataset,
    (digest, architecture, base): LargeBase,
    news: &mut dyn FnMut(&str),
) -> Result<impl Fn(u64) -> Result<Bench<'a>, ExperimentError> + 'a, ExperimentError> {
    let large = Model {
        digest,
        base: Arc::new(base),
        config: TrainerConfig {
            model: architecture,
            peft: PeftConfig { lora: Some(LoraConfig::default()), ..PeftConfig::default() },
            threads: options.threads,
            ..TrainerConfig::default()
        },
    };
    news("pre-training the edges' small base");
    let small = small_model(options.threads)?;
    Ok(move |seed| {
        let count = settings.knowledge.reference_count;
        let reference = Arc::new(ReferenceSet::make(BEARING_PHYSICS, seed, count)?);
        let (large, small) = (large.clone(), small.clone());
        Ok(Bench { settings, set, reference, large, small, seed })
    })
}

/// Runs all arms with all seeds of any subject; `models` says what each tier has, in words.
fn run_all<S: Subject>(
    options: &RelayOptions,
    settings: &Settings,
    subject: &dyn Fn(u64) -> Result<S, ExperimentError>,
    models: [(Role, &'static str); 3],
    news: &mut dyn FnMut(&str),
) -> Result<RelayReport, ExperimentError> {
    let mut scores: BTreeMap<(String, &'static str), Vec<Score>> = BTreeMap::new();
    let mut sent: BTreeMap<&'static str, Sent> = BTreeMap::new();
    let mut nodes: Vec<(String, Role)> = Vec::new();
    for seed in &options.seeds {
        let one = subject(*seed)?;
        nodes = nodes_of(&one);
        let mut note = |arm: &'static str, strategy, all: BTreeMap<String, TensorSet>| {
            for (node, role) in nodes_of(&one) {
                let Some(adapter) = all.get(&node) else { continue };
                let score = one.score(role, strategy, adapter)?;
                scores.entry((node, arm)).or_default().push(score);
            }
            Ok::<_, ExperimentError>(())
        };
        news(&format!("seed {seed}: each model without a neighbour"));
        note(BEFORE, arms::ALONE, arms::before(&one)?)?;
        note(LABELS, arms::ALONE, arms::labels(&one)?)?;
        for strategy in &options.strategies {
            news(&format!("seed {seed}: {}", strategy.as_str()));
            let folder = options.folder.join(format!("{seed}-{}", strategy.as_str()));
            let outcome = federation::run(&one, *strategy, &folder, options.patience_s)?;
            note(strategy.as_str(), *strategy, outcome.adapters)?;
            let none = Sent { audit: true, ..Sent::default() };
            add(sent.entry(strategy.as_str()).or_insert(none), &outcome.sent, options.seeds.len());
        }
    }
    let config = serde_json::to_vec(settings).map(|json| Digest::of(&json).to_string());
    let config = config.map_err(|e| ExperimentError::Record(PathBuf::new(), e.to_string()))?;
    let arms: Vec<&'static str> = options.strategies.iter().map(|s| s.as_str()).collect();
    let node = |(node, role): (String, Role)| {
        let all = |arm, figure: &dyn Fn(&Score) -> f64| -> Vec<f64> {
            scores.get(&(node.clone(), arm)).into_iter().flatten().map(figure).collect()
        };
        let of = |arm| all(arm, &|score| score.macro_f1);
        let (before, labels) = (of(BEFORE), of(LABELS));
        let by = |f: &dyn Fn(Vec<f64>) -> Vec<f64>| {
            arms.iter().map(|arm| (*arm, over(f(of(arm))))).collect::<BTreeMap<_, _>>()
        };
        let accuracy = |arm: &&'static str| (*arm, over(all(arm, &|score| score.accuracy)));
        NodeScores {
            after: by(&|after| after),
            gain: by(&|after| less(&after, &before)),
            gain_over_labels: by(&|after| less(&after, &labels)),
            accuracy: arms.iter().chain([&BEFORE, &LABELS]).map(accuracy).collect(),
            before: over(before),
            labels: over(labels),
            model: models.iter().find(|(of, _)| *of == role).map_or("", |(_, model)| model),
            node,
        }
    };
    Ok(RelayReport {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("GAISNET_COMMIT").unwrap_or("unknown"),
        config,
        machine: crate::telemetry::machine(),
        seeds: options.seeds.clone(),
        rounds: settings.round.rounds,
        nodes: nodes.into_iter().map(node).collect(),
        sent,
    })
}

/// The report as a table for people.
pub fn to_table(report: &RelayReport) -> String {
    let show = |over: &Over| match over.plus_minus {
        Some(half) => format!("{:.3} +- {half:.3}", over.mean),
        None => format!("{:.3}", over.mean),
    };
    let mut lines = vec![format!(
        "Macro-F1 on what is judged by, mean and interval of 95 % over {} seeds, {} rounds",
        report.seeds.len(),
        report.rounds
    )];
    for node in &report.nodes {
        lines.push(format!("\n{} ({})", node.node, node.model));
        lines.push(format!("  {:<22} {}", "before", show(&node.before)));
        lines.push(format!("  {:<22} {}", "reference labels", show(&node.labels)));
        for (arm, after) in &node.after {
            let gain = node.gain.get(arm).map(show).unwrap_or_default();
            let more = node.gain_over_labels.get(arm).map(show).unwrap_or_default();
            let after = show(after);
            lines.push(format!("  {arm:<22} {after}   gain {gain}   over the labels {more}"));
        }
    }
    lines.push(format!(
        "\n{:<26} {:>12} {:>10} {:>8} {:>10} {:>11}",
        "Bytes a round", "work/device", "device up", "edge up", "edge down", "cloud down"
    ));
    for (arm, sent) in &report.sent {
        let ledgers = if sent.audit { "ledgers verified" } else { "A LEDGER IS DAMAGED" };
        lines.push(format!(
            "  {arm:<24} {:>12.0} {:>10.0} {:>8.0} {:>10.0} {:>11.0}   {ledgers}",
            sent.work_up, sent.device_up, sent.edge_up, sent.edge_down, sent.cloud_down
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The nodes that own rounds.
fn owners() -> Vec<(String, Role)> {
    let mut owners = vec![(CLOUD.to_owned(), Role::Cloud)];
    owners.extend(SITES.map(|site| (edge_name(site), Role::Edge)));
    owners
}

/// All nodes.
fn nodes_of(subject: &dyn Subject) -> Vec<(String, Role)> {
    let mut nodes = owners();
    nodes.extend(subject.parties().iter().map(|(party, _)| (device_name(party), Role::Device)));
    nodes
}

/// The node of a plant.
pub(super) fn device_name(plant: &str) -> String {
    format!("machine-{plant}")
}

/// The node of a site.
pub(super) fn edge_name(site: &str) -> String {
    format!("edge-{site}")
}

/// The site of a plant of the bearings.
pub(super) fn site_of(plant: usize) -> &'static str {
    SITES.get(plant * SITES.len() / PLANTS.len()).copied().unwrap_or("north")
}

/// The node at the top.
pub(super) const CLOUD: &str = "cloud";

/// A small base of another architecture than the cloud's, from a short pre-training on physics.
fn small_model(threads: NonZeroU16) -> Result<Model, LearnError> {
    let mut model = SignalTransformerConfig { layers: 1, stride: 64, ..Default::default() };
    model.block.d_model = 32;
    model.block.heads = 2;
    model.block.d_ff = 64;
    let config = PretrainConfig {
        model,
        steps: SMALL_STEPS,
        batch_size: 32,
        learning_rate: 3e-3,
        threads,
        ..PretrainConfig::default()
    };
    let base = pretrain(&config, &mut |_| Control::Continue)?;
    let peft = PeftConfig::whole(vec!["*".into()]);
    let bytes = base.tensors().iter().flat_map(|t| &t.data).flat_map(|x| x.to_le_bytes());
    Ok(Model {
        digest: Digest::of(&bytes.collect::<Vec<u8>>()),
        base: Arc::new(base),
        config: TrainerConfig { model, peft, threads, ..TrainerConfig::default() },
    })
}

fn softmax() -> Result<SoftmaxLearner, LearnError> {
    SoftmaxLearner::new(MachineSpeeds::default(), WINDOW_LEN, CLASSES.len())
}

#[expect(clippy::cast_precision_loss, reason = "a handful of seeds")]
fn add(to: &mut Sent, one: &Sent, seeds: usize) {
    let share = 1.0 / seeds.max(1) as f64;
    to.work_up += share * one.work_up;
    to.device_up += share * one.device_up;
    to.edge_up += share * one.edge_up;
    to.edge_down += share * one.edge_down;
    to.cloud_down += share * one.cloud_down;
    to.audit &= one.audit;
}

/// The arm of models that no neighbour has taught.
pub const BEFORE: &str = "before";
const LABELS: &str = "labels";

/// Sites, in the order of their plants: two plants each.
const SITES: [&str; 2] = ["north", "south"];

/// The factors of version 0 are the same on each node.
const ADAPTER_SEED: u64 = 1;

/// Steps of the small base's pre-training: a base that leaves something to learn.
const SMALL_STEPS: u32 = 300;

/// Learning rate of a transformer's LoRA on recordings.
const RATE_OF_WEIGHTS: f64 = 2e-3;

/// Learning rate of the edges' models, which train whole.
const SMALL_RATE: f32 = 5e-4;
