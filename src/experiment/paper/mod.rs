//! Five comparisons that the `GaisNet` paper (arXiv:2401.02668) asks for and gives no figures of that one
//! could repeat: `gaisnet experiment run paper-a` to `paper-e`.
//!
//! ```text
//! cell.rs     what is measured: one federation (or one learner that has all), with one seed
//! plan.rs     which cells make each comparison
//! material.rs what is dealt out and judged by
//! deal.rs     who gets which examples, who is at whose site
//! model.rs    bases, what learns from them and answers
//! record.rs   what came of a cell, on disk
//! summary.rs  cells with several seeds as arms, for the report
//! ```
//! A cell that has its record isn't run again; one that was interrupted begins anew. Settings that all cells
//! have in common are in `config/experiment-paper.toml`. None was chosen by looking at the test part, and none
//! was tuned: learning rates are those of the default settings and of the pre-training.

mod cell;
mod deal;
mod material;
mod model;
mod plan;
mod record;
mod summary;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub use cell::{Base, Cell, Deal, Grouping, How, Method, Set};
pub use material::Material;
use material::{Pool, thin_windows};
use model::{CUT, Judge, Model};
pub use plan::Paper;
pub use record::{Answers, Bytes, Cost, Point, Record, Values};
pub use summary::{State, summary};

use super::federation::{Federation, Outcome, Part, Party, Told};
use super::{ExperimentError, Shared, arms};
use crate::ids::Digest;
use crate::learn::{Examples, TensorSet, Windows};
use crate::node::{SystemClock, plan_of};
use crate::settings::{Layers, Settings, SettingsError, SplitCodingName, SplitVersion, Tier};
use crate::telemetry::{machine, usage};
use crate::time::Clock;

/// Settings that all cells have in common.
pub const SETTINGS: &str = include_str!("../../../config/experiment-paper.toml");

/// How cells are run.
#[derive(Debug, Clone)]
pub struct CellOptions {
    /// Of the whole comparison; a cell has a folder of its name in it.
    pub folder: PathBuf,
    /// Devices that train at the same time, on a thread each.
    pub lanes: usize,
    /// Gives up when a federation makes no progress for so long.
    pub patience_s: u64,
    /// Nothing but this cell is run in this process: its peak of memory is told.
    pub alone: bool,
}

/// Runs a cell, unless its folder has the record of it. Blocks until it is done.
///
/// # Errors
/// [`ExperimentError`]; [`ExperimentError::OtherRun`] when the record is one of other settings.
pub fn run_cell(
    cell: &Cell,
    set: &Material,
    options: &CellOptions,
    told: &mut dyn FnMut(&str),
) -> Result<Record, ExperimentError> {
    let settings = settings(cell)?;
    let model = Model::of(cell, set.elsewhere.as_ref(), &options.folder, told)?;
    let plants: Vec<Pool> = set.plants.iter().map(|plant| plant.thin(cell.most_examples)).collect();
    let pooled = set.pooled.thin(cell.most_examples.map(|most| most * cell.devices));
    let test = thin_windows(&set.test, cell.most_examples);
    let devices = deal::deal(cell, &plants, &pooled)?;
    let class_counts = deal::class_counts(&devices);
    let sites = deal::sites(cell, &class_counts);
    let config = config_digest(cell, &settings, &model, &class_counts, &sites)?;
    let folder = options.folder.join(cell.name());
    if let Some(record) = Record::read(&folder)? {
        return if record.config == config {
            Ok(record)
        } else {
            Err(ExperimentError::OtherRun(folder))
        };
    }
    let nodes = folder.join("nodes");
    let at = |error| ExperimentError::Io(nodes.clone(), error);
    if nodes.exists() {
        // Of a run that was interrupted.
        std::fs::remove_dir_all(&nodes).map_err(at)?;
    }
    std::fs::create_dir_all(&nodes).map_err(at)?;

    told("training");
    let start = model.learner()?.initial_adapter();
    let examples: u64 = devices.iter().map(Pool::num_bytes).sum();
    let meter = Meter::begin();
    let learned = match cell.how {
        How::Untrained => Learned::default(),
        How::Pooled => pool(cell, &settings, &model, &devices)?,
        How::Federated | How::Split { .. } => {
            federate(&settings, &model, (devices, &sites), &start, &nodes, options)?
        }
    };
    let training = meter.end();

    told("judging");
    let mut judge = model.judge()?;
    let mut curve = vec![judge.point(0, &start, &test)?];
    let mut answers = Answers::default();
    let (last, earlier) = match learned.versions.split_last() {
        Some(((round, adapter), earlier)) => ((*round, adapter), earlier),
        None => ((0, &start), [].as_slice()),
    };
    for (round, adapter) in earlier {
        curve.push(judge.point(*round, adapter, &test)?);
    }
    let point = answer(&mut judge, last, (&test, cell.set), &mut answers)?;
    if last.0 > 0 {
        curve.push(point);
    }
    let record = Record {
        config,
        commit: option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned(),
        machine: machine(),
        model: model.describe(),
        spread_in_sites: deal::spread(&class_counts, &sites),
        values: model.values(cell.how)?,
        class_counts,
        sites,
        curve,
        bytes: learned.bytes,
        examples_bytes_per_device: examples / (cell.devices as u64).max(1),
        training,
        peak_memory_mib: options
            .alone
            .then(|| usage().ok().map(|used| used.peak_rss_mib()))
            .flatten(),
        answers,
        audit: learned.audit,
        cell: cell.clone(),
    };
    record.write(&folder)?;
    Ok(record)
}

/// Settings of a cell.
///
/// # Errors
/// [`SettingsError`] when a figure of it is out of the range of settings.
pub fn settings(cell: &Cell) -> Result<Settings, SettingsError> {
    let mut layers = Layers::new();
    layers.tier(Tier::Cloud).text("experiment-paper", SETTINGS);
    // A model that isn't trained has no round; settings know no such federation.
    layers.set(&format!("round.rounds={}", cell.rounds.max(1)));
    layers.set(&format!("strategy.local_steps={}", cell.local_steps));
    layers.set(&format!("strategy.batch_size={}", cell.batch_size));
    layers.set(&format!("strategy.learning_rate={}", cell.learning_rate));
    layers.set(&format!("strategy.seed={}", cell.seed));
    let mut settings = layers.load().into_settings()?;
    // Checked settings are those of one node, and a cloud has no part in a split: these are its sites'.
    if let How::Split { shared, int8 } = cell.how {
        settings.split.cut = Some(CUT);
        settings.split.version = if shared { SplitVersion::V2 } else { SplitVersion::V1 };
        settings.split.coding = if int8 { SplitCodingName::Int8 } else { SplitCodingName::F32 };
    }
    Ok(settings)
}

/// What training came to.
#[derive(Default)]
struct Learned {
    /// The adapter after rounds.
    versions: Vec<(u64, TensorSet)>,
    bytes: Option<Bytes>,
    audit: Option<crate::report::AuditSummary>,
}

/// Real nodes over brokers in memory.
fn federate(
    settings: &Settings,
    model: &Model,
    (devices, sites): (Vec<Pool>, &[usize]),
    start: &TensorSet,
    nodes: &std::path::Path,
    options: &CellOptions,
) -> Result<Learned, ExperimentError> {
    let mut parties = Vec::with_capacity(devices.len());
    for (at, (examples, site)) in devices.into_iter().zip(sites).enumerate() {
        let part = match model.front()? {
            Some(front) => Part::Front(front),
            None => Part::Whole(model.learner()?),
        };
        let data = Arc::new(Examples::from(examples));
        parties.push(Party { name: format!("{at}"), site: format!("site-{site}"), data, part });
    }
    let edges =
        if settings.split.cut.is_some() { sites.iter().collect::<BTreeSet<_>>().len() } else { 0 };
    let backs = (0..edges).map(|_| model.back()).collect::<Result<_, _>>()?;
    let federation = Federation {
        settings,
        base: model.digest,
        folder: nodes,
        patience_s: options.patience_s,
        at_once: options.lanes,
        broker: None,
        apart: None,
    };
    let mut versions = Vec::new();
    let outcome = federation.run(start, parties, backs, &mut |told| {
        if let Told::Version { version, models, .. } = told {
            versions.extend(models.first().map(|adapter| (version, adapter.clone())));
        }
    })?;
    let Outcome { work, traffic, audit, .. } = outcome;
    let rounds = settings.round.rounds.max(1);
    let bytes = Some(Bytes {
        device_up: traffic.device_up / rounds,
        device_down: traffic.device_down / rounds,
        edge_up: traffic.edge_up / rounds,
        edge_down: traffic.edge_down / rounds,
        work,
    });
    Ok(Learned { versions, bytes, audit })
}

/// One learner with the examples of all devices, as many steps as they take together.
fn pool(
    cell: &Cell,
    settings: &Settings,
    model: &Model,
    devices: &[Pool],
) -> Result<Learned, ExperimentError> {
    let Some(all) = Pool::together(devices) else { return Ok(Learned::default()) };
    let learner = Shared(Arc::new(Mutex::new(model.learner()?)));
    let times = u32::try_from(cell.devices).unwrap_or(u32::MAX);
    let adapter = arms::train(&learner, settings, &all.into(), times, &mut || {})?;
    Ok(Learned { versions: vec![(cell.rounds, adapter)], ..Learned::default() })
}

/// Judges an adapter and measures what its answers take.
fn answer(
    judge: &mut Judge,
    (round, adapter): (u64, &TensorSet),
    (test, set): (&Windows, Set),
    answers: &mut Answers,
) -> Result<Point, ExperimentError> {
    let meter = Meter::begin();
    let point = judge.point(round, adapter, test)?;
    *answers = Answers {
        count: test.num_examples() as u64,
        cost: meter.end(),
        example_bytes: test.len as u64 * set.value_bytes(),
    };
    Ok(point)
}

/// Measures what is done between its begin and its end.
struct Meter {
    clock: SystemClock,
    since: u64,
    cpu: f64,
}

impl Meter {
    fn begin() -> Self {
        let clock = SystemClock::new();
        Self { since: clock.now().micros, clock, cpu: Self::cpu() }
    }

    fn end(&self) -> Cost {
        let seconds = super::seconds(self.clock.now().micros - self.since);
        Cost { seconds, cpu_seconds: Self::cpu() - self.cpu }
    }

    fn cpu() -> f64 {
        usage().map_or(f64::NAN, |used| used.cpu_seconds)
    }
}

/// What decides the figures.
fn config_digest(
    cell: &Cell,
    settings: &Settings,
    model: &Model,
    class_counts: &[Vec<u64>],
    sites: &[usize],
) -> Result<String, ExperimentError> {
    let strategy = &settings.strategy;
    let bounds = (strategy.max_share, strategy.clip_norms);
    let base = model.digest.to_string();
    let text = serde_json::to_vec(&(cell, plan_of(settings), bounds, base, class_counts, sites));
    let text = text.map_err(|e| ExperimentError::Record(PathBuf::new(), e.to_string()))?;
    Ok(Digest::of(&text).to_string())
}

#[cfg(test)]
mod tests;
