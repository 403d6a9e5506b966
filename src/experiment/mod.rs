//! Experiments: a model and texts of several machines, learned from in three ways at an equal total of
//! tokens, judged on texts that nobody trained on.
//!
//! ```text
//! excavators.rs   the work orders as machines
//! arms.rs         each machine alone, all texts in one place
//! federation.rs   the same machines as devices on two sites: real nodes over the memory bus
//! brokers.rs      what carries their messages: in memory, or real
//! places.rs       who they are, and their keys
//! apart.rs        a node that is a process of its own, seen from outside
//! alone.rs        the same from inside (libtorch)
//! turns.rs        who of them trains when
//! versions.rs     what they have come to
//! niid/           images dealt out unevenly, a table of published figures to compare with
//! cascade/        another question: tiers that answer together, on bearings and work orders
//! judge.rs        bits per character, a machine and together
//! language.rs     the language model that learns and judges (libtorch)
//! relay/          another experiment: models of three kinds teach each other (libtorch)
//! paper/          five comparisons that the GaisNet paper asks for, cell by cell (libtorch)
//! over.rs         a figure over several seeds, with its interval
//! score.rs        answers beside labels
//! ```
//! Everything runs in one process (but nodes of `niid`, where it is asked for) and shares one base in memory; one
//! learner works for all machines in turn, so a small computer is enough. Called by `gaisnet experiment`; the choice of every setting
//! belongs on training texts ([`Options::rehearse`]), the test part is read once.

#[cfg(feature = "torch")]
mod alone;
mod apart;
mod arms;
mod brokers;
pub mod cascade;
pub mod excavators;
mod federation;
mod judge;
#[cfg(feature = "torch")]
pub mod language;
pub mod niid;
pub mod over;
#[cfg(feature = "torch")]
pub mod paper;
mod places;
mod record_file;
#[cfg(feature = "torch")]
pub mod relay;
#[cfg(feature = "torch")]
mod score;
mod turns;
mod versions;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::Digest;
use crate::learn::{
    Control, Examples, Judge, LearnError, Learner, Progress, TensorSet, Texts, TrainJob, Trained,
};
use crate::node::SystemClock;
use crate::report::{ArmKind, AuditSummary, ExperimentReport, LossPoint, TextArm};
use crate::settings::Settings;
use crate::time::Clock;

/// What is run, beside what the settings say.
#[derive(Debug, Clone)]
pub struct Options {
    /// Stores of the nodes go here.
    pub folder: PathBuf,
    /// Which arms; the untrained base is always judged.
    pub arms: Vec<ArmKind>,
    /// Gives up when the federation makes no progress for so long.
    pub patience_s: u64,
    /// Judges on the last fifth of the training texts and leaves the test part alone: to choose
    /// settings by.
    pub rehearse: bool,
}

/// One machine's texts.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// What its learner sees.
    pub train: Texts,
    /// What it is judged on.
    pub test: Texts,
}

/// What learns and is judged.
pub struct Subject {
    /// Trains, for all machines in turn.
    pub learner: Box<dyn Learner>,
    /// Judges.
    pub judge: Box<dyn Judge>,
    /// Digest of the base.
    pub base: Digest,
    /// In a few words.
    pub model: String,
    /// Places of token ids a step, padding included.
    pub tokens_per_step: u64,
}

/// What an experiment tells on its way.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// An arm begins.
    Begins(&'static str),
    /// An optimiser step was done, of so many in the arm.
    Step {
        /// Steps so far.
        done: u64,
        /// All of them.
        of: u64,
    },
}

/// Why an experiment can't go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// Learning or judging.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The base.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Weights(#[from] crate::torch::weights_error::WeightsError),
    /// The keys that ship with the program.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    ShippedKey(#[from] crate::trust::keys::KeyError),
    /// Packing an adapter.
    #[error(transparent)]
    Update(#[from] crate::protocol::update::UpdateError),
    /// Settings that don't make a node.
    #[error(transparent)]
    Settings(#[from] crate::node::SettingsProblem),
    /// A node.
    #[error(transparent)]
    Node(#[from] crate::node::NodeError),
    /// A node's store.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] crate::trust::keyring::KeyringError),
    /// Random bytes.
    #[error(transparent)]
    Key(#[from] crate::store::keyfile::KeyFileError),
    /// A thread.
    #[error("no thread: {0}")]
    Thread(std::io::Error),
    /// The keyring's document.
    #[error(transparent)]
    Document(#[from] crate::trust::keyring_document::DocumentError),
    /// A file.
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// What a cell has come to can't be read.
    #[error("{0} is damaged: {1}")]
    Record(PathBuf, String),
    /// A folder has a part of a run with other settings.
    #[error(
        "{0} has a part of a run with other settings, data or another model: go on with the same ones, or \
         choose another folder"
    )]
    OtherRun(PathBuf),
    /// Settings that can't be.
    #[error(transparent)]
    BadSettings(#[from] crate::settings::SettingsError),
    /// A name that can't be a node's.
    #[error("{0:?} can't be the name of a node or site: use letters, digits, '-' and '_'")]
    Name(String),
    /// A node gave up.
    #[error("a node gave up: {0}")]
    GaveUp(String),
    /// A node's process, or the broker's, ended before its time.
    #[error("{name} ended: {status}; the end of its log, {}:\n{tail}", .log.display())]
    Ended {
        /// Which.
        name: String,
        /// How it ended, or what it said.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// What a node's process was told isn't an order.
    #[error(
        "no order on standard input: {0}; `gaisnet experiment run niid --processes` starts this command"
    )]
    Order(String),
    /// No version came in time.
    #[error(
        "no new version for {seconds} s after version {version}: see the log (RUST_LOG=debug), or wait \
         longer with --patience"
    )]
    Stuck {
        /// How long.
        seconds: u64,
        /// The last version.
        version: u64,
    },
}

impl ExperimentError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Learn(error) => error.kind(),
            #[cfg(feature = "torch")]
            Self::Weights(error) => error.kind(),
            #[cfg(feature = "torch")]
            Self::ShippedKey(_) => "shipped_key",
            Self::Update(error) => error.kind(),
            Self::Settings(_) => "settings",
            Self::Node(_) => "node",
            Self::Store(error) => error.kind(),
            Self::Keyring(_) => "keyring",
            Self::Key(error) => error.kind(),
            Self::Document(error) => error.kind(),
            Self::Io(..) => "io",
            Self::Record(..) => "record",
            Self::OtherRun(_) => "other_run",
            Self::BadSettings(_) => "bad_settings",
            Self::Thread(_) => "thread",
            Self::Name(_) => "name",
            Self::GaveUp(_) => "gave_up",
            Self::Ended { .. } => "ended",
            Self::Order(_) => "order",
            Self::Stuck { .. } => "stuck",
        }
    }
}

/// Runs the arms in turn and judges each. Blocks until all is done.
///
/// `data` says in a few words what is learned from. Each machine takes `round.rounds` times `strategy.local_steps` steps, alone and federated; the pooled
/// learner as many as all machines together.
///
/// # Errors
/// [`ExperimentError`].
pub fn run(
    options: &Options,
    settings: &Settings,
    subject: Subject,
    machines: &[Machine],
    data: &str,
    news: &mut dyn FnMut(News),
) -> Result<ExperimentReport, ExperimentError> {
    let clock = SystemClock::new();
    let began = clock.now();
    let Subject { learner, mut judge, base, model, tokens_per_step } = subject;
    let start = learner.initial_adapter();
    let shared = Shared(Arc::new(Mutex::new(learner)));
    let mut arms = Vec::new();
    let mut push = |kind, (machines, all), steps, since: u64| {
        let seconds = seconds(since);
        arms.push(TextArm { kind, machines, all, steps, seconds });
    };

    news(News::Begins("judging the base"));
    let zero_shot = judge::of_one(judge.as_mut(), &start, machines)?;
    // It takes no training, so no time.
    push(ArmKind::ZeroShot, zero_shot, 0, 0);

    let steps = settings.round.rounds * u64::from(settings.strategy.local_steps);
    let total = steps * machines.len() as u64;
    if options.arms.contains(&ArmKind::Alone) {
        news(News::Begins("each machine alone"));
        let since = clock.now();
        let mut done = 0;
        let mut adapters = Vec::new();
        for machine in machines {
            let texts = Examples::Texts(machine.train.clone());
            adapters.push(arms::train(&shared, settings, &texts, 1, &mut || {
                done += 1;
                news(News::Step { done, of: total });
            })?);
        }
        let took = clock.now().micros - since.micros;
        push(ArmKind::Alone, judge::of_each(judge.as_mut(), &adapters, machines)?, steps, took);
    }

    let mut federated = federation::Outcome::default();
    if options.arms.contains(&ArmKind::Federated) {
        news(News::Begins("federated"));
        let since = clock.now();
        let federation = federation::Federation {
            settings,
            base,
            folder: &options.folder,
            patience_s: options.patience_s,
            at_once: 1,
            broker: None,
            apart: None,
        };
        let party = |machine: &Machine| federation::Party {
            name: machine.name.clone(),
            site: machine.site.clone(),
            data: Arc::new(Examples::Texts(machine.train.clone())),
            part: federation::Part::Whole(Box::new(shared.clone())),
        };
        let parties = machines.iter().map(party).collect();
        federated = federation.run(&start, parties, Vec::new(), &mut |told| {
            if let federation::Told::Steps(done) = told {
                news(News::Step { done, of: total });
            }
        })?;
        let took = clock.now().micros - since.micros;
        let bits = judge::of_one(judge.as_mut(), &federated.adapter, machines)?;
        push(ArmKind::Federated, bits, steps, took);
    }

    if options.arms.contains(&ArmKind::Pooled) {
        news(News::Begins("all texts in one place"));
        let since = clock.now();
        let mut done = 0;
        let all = Examples::Texts(arms::pooled(machines));
        let times = u32::try_from(machines.len()).unwrap_or(u32::MAX);
        let adapter = arms::train(&shared, settings, &all, times, &mut || {
            done += 1;
            news(News::Step { done, of: total });
        })?;
        let took = clock.now().micros - since.micros;
        push(ArmKind::Pooled, judge::of_one(judge.as_mut(), &adapter, machines)?, total, took);
    }

    let part = if options.rehearse { ", REHEARSAL: judged on training texts" } else { "" };
    let federation::Outcome { losses, bytes_up, work, audit, .. } = federated;
    Ok(ExperimentReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned(),
        data: format!("{data}{part}"),
        model: format!("{model}, {} values in the adapter", start.num_values()),
        settings: described(settings),
        machines: machines.iter().map(|machine| machine.name.clone()).collect(),
        arms,
        curve: (1..).zip(losses).map(|(round, loss)| LossPoint { round, loss }).collect(),
        bytes_up_per_device_round: bytes_up,
        work_per_device_round: work,
        raw_f32_per_device_round: start.num_values() as u64 * 4,
        tokens_per_step,
        seconds: seconds(clock.now().micros - began.micros),
        audit: audit.unwrap_or(AuditSummary { entries: 0, verified: true }),
    })
}

fn described(settings: &Settings) -> Vec<(String, String)> {
    let strategy = &settings.strategy;
    [
        ("rounds", settings.round.rounds.to_string()),
        ("steps a machine and round", strategy.local_steps.to_string()),
        ("sequences a step", strategy.batch_size.to_string()),
        ("learning rate", strategy.learning_rate.to_string()),
        ("schedule", format!("{:?}", strategy.schedule).to_lowercase()),
        ("rank, alpha", format!("{}, {}", strategy.rank, strategy.alpha)),
        ("compression", format!("{:?}", strategy.compression).to_lowercase()),
        ("privacy profile", format!("{:?}", settings.privacy.profile).to_lowercase()),
        ("seed", strategy.seed.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// One learner for several lanes: whoever trains has it to himself.
#[derive(Clone)]
struct Shared(Arc<Mutex<Box<dyn Learner>>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut dyn Learner) -> T) -> T {
        // A learner that panicked has ended the process (`actors/lanes.rs`).
        work(self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut())
    }
}

impl Learner for Shared {
    fn initial_adapter(&self) -> TensorSet {
        self.with(|learner| learner.initial_adapter())
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        self.with(|learner| learner.train(data, job, progress))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests;
