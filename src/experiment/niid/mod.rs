//! The table of a federated benchmark: image sets dealt out unevenly among ten clients, a small network
//! trained by real nodes with real stores, accuracy after each round.
//!
//! ```text
//! cell.rs     what is measured: set, split, strategy
//! record.rs   what came of it, on disk after each round
//! network.rs  the network that learns and is judged (libtorch)
//! order.rs    what a node that is a process of its own is told
//! node.rs     such a process (libtorch)
//! ```
//! Ten devices on two sites, an edge each, and a cloud; all take part in each round. The bounds that keep
//! one member from owning the outcome are off, so that it is the plain mean which published figures are
//! of. Where clients keep networks of their own, each of them is judged, and their mean is told. Where a
//! network is cut, the devices have its convolutions and the edges the rest.

mod cell;
#[cfg(feature = "torch")]
mod network;
#[cfg(feature = "torch")]
mod node;
mod order;
mod record;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

pub use cell::{CLIENTS, Cell, Conditions, Judged, SplitRule, Strategy};
#[cfg(feature = "torch")]
pub use network::subject;
#[cfg(feature = "torch")]
pub use node::run_node;
pub use order::{Order, Size};
pub use record::{CellRecord, RoundFigures};

use super::ExperimentError;
use super::apart::Apart;
pub use super::brokers::Broker;
use super::federation::{Federation, Part, Party, Told};
use crate::ids::{Digest, NodeId};
use crate::learn::{
    ActivationCoding, Examples, Images, LearnError, Learner, SplitBack, SplitFront, TensorSet,
};
use crate::node::{SystemClock, plan_of, split_of};
use crate::report::HalvesFigures;
use crate::settings::{Layers, Settings, SettingsError, Tier};
use crate::time::Clock;

/// What is run, beside the cell.
#[derive(Debug, Clone)]
pub struct CellOptions {
    /// The cell's record and the nodes' stores go here.
    pub folder: PathBuf,
    /// Rounds; those that are there already count.
    pub rounds: u64,
    /// Passes of a client over its images in a round.
    pub local_epochs: u32,
    /// Seed of weights, batches and draws of the split.
    pub seed: u64,
    /// Clients that train at the same time.
    pub lanes: usize,
    /// Only so many images of each client; for a quick look.
    pub most_images: Option<usize>,
    /// Gives up when the federation makes no progress for so long.
    pub patience_s: u64,
    /// A real broker for all links, instead of brokers in memory.
    pub broker: Option<Broker>,
    /// The `gaisnet` program: each node is a process of it, with the network of [`subject`], over a broker of
    /// its own if there is no other. Then `lanes` bounds nothing.
    pub processes: Option<PathBuf>,
}

/// What learns and is judged in a cell.
pub struct CellSubject {
    /// Weights that all start from.
    pub start: TensorSet,
    /// What trains.
    pub learners: Learners,
    /// Judges each version.
    pub judge: Judge,
    /// In a few words; another model has another text.
    pub model: String,
}

/// What trains in a cell.
pub enum Learners {
    /// The whole model, one for each client.
    Whole(Vec<Box<dyn Learner>>),
    /// The halves of a model that is cut.
    Split {
        /// One for each client.
        fronts: Vec<Box<dyn SplitFront>>,
        /// One for each site's edge.
        backs: Vec<Box<dyn SplitBack>>,
        /// Values of the model that a client holds.
        resident: u64,
        /// Values that train at a client.
        trained: u64,
        /// Values of an example at the cut.
        width: usize,
    },
}

/// Says what share of the test images some weights name right; of several, their mean is told.
pub type Judge = Box<dyn FnMut(&TensorSet) -> Result<f64, LearnError> + Send>;

/// What a cell tells on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CellNews {
    /// Optimiser steps in this process, of so many that are left.
    Step {
        /// Steps so far.
        done: u64,
        /// All of them.
        of: u64,
    },
}

/// Settings of a cell: SGD on batches of 64 for whole local passes, the plain mean, nothing compressed.
///
/// # Errors
/// [`SettingsError`] when the options are out of the range of settings.
pub fn settings(cell: &Cell, options: &CellOptions) -> Result<Settings, SettingsError> {
    let mut layers = Layers::new();
    layers.tier(Tier::Cloud);
    for fixed in [
        "node.name=cloud",
        "node.site=_",
        "model.name=niid",
        "round.auto_start=true",
        // One computer does the work of ten: a round takes as long as it takes.
        "round.quorum=1",
        "round.deadline_s=604800",
        "round.republish_s=5",
        "round.pause_s=0",
        // A whole update in one chunk.
        "bus.site.max_packet_bytes=524288",
        "bus.site.chunk_bytes=262144",
        "strategy.batch_size=64",
        "strategy.learning_rate=0.01",
        "strategy.schedule=constant",
        "strategy.compression=none",
        "strategy.max_share=1",
        "strategy.clip_norms=false",
        "split.version=v1",
        "split.labels=edge",
        "split.step_timeout_s=600",
        // Dirichlet draws leave a client with ten images sometimes.
        "privacy.profile=lab",
    ] {
        layers.set(fixed);
    }
    for of_strategy in cell.strategy.settings() {
        layers.set(of_strategy);
    }
    layers.set(&format!("round.rounds={}", options.rounds));
    let clusters = cell.strategy.cluster_rounds().min(options.local_epochs);
    layers.set(&format!("strategy.local_epochs={}", options.local_epochs / clusters.max(1)));
    layers.set(&format!("strategy.cluster_rounds={}", clusters.max(1)));
    layers.set(&format!("strategy.seed={}", options.seed));
    let mut settings = layers.load().into_settings()?;
    // Set behind the rules, since they know no model of images that could be cut.
    settings.split.cut = cell.strategy.cut().map(|cut| cut.blocks);
    Ok(settings)
}

/// Runs a cell, or goes on with it where its folder has a part of it. Blocks until it is done.
///
/// # Errors
/// [`ExperimentError`]; what was done stays on disk. [`ExperimentError::OtherRun`] when the folder's part
/// was made with other settings.
pub fn run_cell(
    cell: &Cell,
    options: &CellOptions,
    train: &Images,
    subject: CellSubject,
    news: &mut dyn FnMut(CellNews),
) -> Result<CellRecord, ExperimentError> {
    let settings = settings(cell, options)?;
    let mut split = cell.deal(train, options.seed)?;
    for rows in &mut split {
        rows.truncate(options.most_images.unwrap_or(usize::MAX));
    }
    let config = config_digest(cell.strategy, &settings, &split, &subject.model)?;
    let nodes = options.folder.join("nodes");
    std::fs::create_dir_all(&nodes).map_err(|e| ExperimentError::Io(nodes.clone(), e))?;
    let found = CellRecord::read(&options.folder)?;
    let mut record = found.unwrap_or_else(|| CellRecord {
        dataset: cell.set.name().to_owned(),
        split: cell.split.to_string(),
        strategy: cell.strategy.name().to_owned(),
        judged: cell.strategy.judged(),
        rounds: options.rounds,
        local_epochs: options.local_epochs,
        seed: options.seed,
        config: config.clone(),
        commit: String::new(),
        machine: String::new(),
        client_sizes: split.iter().map(Vec::len).collect(),
        halves: halves_figures(&settings, &subject),
        curve: Vec::new(),
        audit: None,
        peak_rss_mib: BTreeMap::new(),
    });
    if record.config != config {
        return Err(ExperimentError::OtherRun(options.folder.clone()));
    }
    record.rounds = options.rounds;
    if record.is_finished() {
        return Ok(record);
    }
    option_env!("GAISNET_COMMIT").unwrap_or("unknown").clone_into(&mut record.commit);
    record.machine = crate::telemetry::machine();
    let CellSubject { start, learners, mut judge, model } = subject;
    let known = record.rounds_done();
    if record.curve.is_empty() {
        let accuracy = judge(&start)?;
        record.push(RoundFigures { round: 0, accuracy, bytes_up: 0, seconds: 0.0 });
        record.write(&options.folder)?;
    }
    let images: usize = split.iter().map(|rows| rows.len().div_ceil(BATCH)).sum();
    let of = (images as u64 * u64::from(options.local_epochs)) * (options.rounds - known);
    let (parts, backs) = match learners {
        Learners::Whole(all) => (all.into_iter().map(Part::Whole).collect(), Vec::new()),
        Learners::Split { fronts, backs, .. } => {
            (fronts.into_iter().map(Part::Front).collect(), backs)
        }
    };
    let parties = parties(train, &split, parts);
    let order = |node: &NodeId, broker: &Broker, data: Option<&Examples>| {
        let order = Order {
            node: node.clone(),
            folder: nodes.clone(),
            host: broker.host.clone(),
            port: broker.port,
            cell: cell.to_string(),
            config: config.clone(),
            model: model.clone(),
            classes: train.classes,
            rounds: options.rounds,
            local_epochs: options.local_epochs,
            seed: options.seed,
            images: None,
        };
        order.write(data.map(Examples::images).transpose()?)
    };
    let program = options.processes.as_deref();
    let federation = Federation {
        settings: &settings,
        base: Digest::of(config.as_bytes()),
        folder: &nodes,
        patience_s: options.patience_s,
        at_once: options.lanes,
        broker: options.broker.as_ref(),
        apart: program.map(|program| Apart { program, order: &order }),
    };
    let clock = SystemClock::new();
    let mut since = clock.now().micros;
    let (judging, rounds) = Judging::begin(judge, record, options.folder.clone())?;
    let outcome = federation.run(&start, parties, backs, &mut |told| match told {
        Told::Steps(done) => news(CellNews::Step { done, of }),
        Told::Version { version, .. } if version <= known => {}
        Told::Version { version, models, bytes_up } => {
            let now = clock.now().micros;
            let seconds = super::seconds(now - since);
            since = now;
            // It is gone after an error only, which its end tells.
            let _ = rounds.send((version, models.to_vec(), bytes_up, seconds));
        }
    });
    drop(rounds);
    let mut record = judging.end()?;
    let outcome = outcome?;
    record.audit = outcome.audit;
    record.take_peaks(&outcome.peak_rss_mib);
    record.write(&options.folder)?;
    Ok(record)
}

/// Five devices on each of two sites.
fn parties(train: &Images, split: &[Vec<usize>], parts: Vec<Part>) -> Vec<Party> {
    let [north, south] = SITES;
    let party = |(at, (rows, part)): (usize, (&Vec<usize>, Part))| Party {
        name: format!("{at}"),
        site: if at < CLIENTS / 2 { north } else { south }.to_owned(),
        data: Arc::new(train.choose(rows).into()),
        part,
    };
    split.iter().zip(parts).enumerate().map(party).collect()
}

/// What a client has of a split model, and what crosses the cut.
fn halves_figures(settings: &Settings, subject: &CellSubject) -> Option<HalvesFigures> {
    let Learners::Split { resident, trained, width, .. } = subject.learners else { return None };
    let coding = split_of(settings)?.terms.coding.into();
    let bytes = |coding: ActivationCoding| coding.num_bytes(&[1, width]).unwrap_or_default() as u64;
    Some(HalvesFigures {
        values: subject.start.num_values() as u64,
        resident,
        trained,
        activation_bytes_per_image: bytes(coding),
        activation_bytes_per_image_f32: bytes(ActivationCoding::F32),
    })
}

/// A thread that judges version after version, so that no node waits for it.
struct Judging(JoinHandle<Result<CellRecord, ExperimentError>>);

/// Version, weights of its model or models, bytes up, seconds.
type ToJudge = (u64, Vec<TensorSet>, u64, f64);

impl Judging {
    fn begin(
        mut judge: Judge,
        mut record: CellRecord,
        folder: PathBuf,
    ) -> Result<(Self, Sender<ToJudge>), ExperimentError> {
        let (sender, rounds): (_, Receiver<ToJudge>) = channel();
        let work = move || {
            for (round, models, bytes_up, seconds) in rounds {
                let accuracy = mean_accuracy(&mut judge, &models)?;
                tracing::info!(round, accuracy, seconds, "judged");
                record.push(RoundFigures { round, accuracy, bytes_up, seconds });
                record.write(&folder)?;
            }
            Ok(record)
        };
        let thread = std::thread::Builder::new().name("gaisnet-judge".to_owned()).spawn(work);
        Ok((Self(thread.map_err(ExperimentError::Thread)?), sender))
    }

    fn end(self) -> Result<CellRecord, ExperimentError> {
        let died = |_| ExperimentError::GaveUp("the judge's thread died".to_owned());
        self.0.join().map_err(died)?
    }
}

#[expect(clippy::cast_precision_loss, reason = "ten models")]
fn mean_accuracy(judge: &mut Judge, models: &[TensorSet]) -> Result<f64, LearnError> {
    let mut sum = 0.0;
    for weights in models {
        sum += judge(weights)?;
    }
    Ok(sum / models.len().max(1) as f64)
}

/// What decides the figures. The number of rounds isn't in it: a cell may be gone on with for more; and no
/// other settings are, so that a later version of the program may go on with it.
fn config_digest(
    how: Strategy,
    settings: &Settings,
    split: &[Vec<usize>],
    model: &str,
) -> Result<String, ExperimentError> {
    let strategy = &settings.strategy;
    let bounds = (strategy.max_share, strategy.clip_norms);
    let plan = plan_of(settings);
    let text = match how {
        // Its plan tells all.
        Strategy::FedAvg | Strategy::FedProx => serde_json::to_vec(&(plan, bounds, split, model)),
        _ => serde_json::to_vec(&(plan, bounds, split, model, how.settings())),
    };
    let text = text.map_err(|e| ExperimentError::Record(PathBuf::new(), e.to_string()))?;
    Ok(Digest::of(&text).to_string())
}

/// Whether a folder has a part of a cell already.
pub fn has_begun(folder: &Path) -> bool {
    folder.join("record.json").exists() || folder.join("nodes").exists()
}

/// The sites, an edge each.
const SITES: [&str; 2] = ["north", "south"];

/// Images a step, as in the settings of a cell.
const BATCH: usize = 64;

#[cfg(test)]
mod tests;
