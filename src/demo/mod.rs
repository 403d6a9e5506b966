//! The pilot on one machine: three brokers, a cloud, two sites with an edge and two devices each,
//! real recordings, real MQTT; then the two arms to compare with, the audit, and the report.
//!
//! ```text
//! run.rs         data, folder, keys; the federation; the arms; the report
//! federation.rs  children.rs  gaisnet broker x 3 (or brokers.rs: yours), gaisnet run x 7
//!                feeder.rs    recordings onto plant topics
//!                listener.rs -> heard.rs   what anybody sees at the brokers: progress, bytes, answers
//!                progress.rs  each version as it came out, on disk: a second start goes on from it
//! ledgers.rs     what the nodes have recorded, and whether it verifies
//! compare.rs     arms.rs      each device alone, all data in one place
//! story/         a rollout that goes well and one that its canary stops, on the same pilot
//! ```
//! Every node and broker is a process of its own, started from settings that lie in the demo's
//! folder: what runs here is what runs in a plant. Called by `gaisnet demo`.

mod arms;
mod brokers;
mod children;
mod compare;
mod federation;
mod feeder;
mod heard;
mod ledgers;
mod listener;
mod plant;
mod prices;
mod progress;
mod run;
mod story;

use std::path::PathBuf;

use crate::settings::{Compression, Contribute, LearnerName};

pub use run::{prepare, run};
pub use story::tell;

/// What the demo is asked for.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The `gaisnet` program that the nodes and brokers are processes of.
    pub program: PathBuf,
    /// Where keys, settings, stores, logs and the report go.
    pub folder: PathBuf,
    /// A file that says where the pilot's three brokers are; without it the demo runs its own.
    pub brokers: Option<PathBuf>,
    /// Model.
    pub learner: LearnerName,
    /// Rounds of the federation.
    pub rounds: u64,
    /// Optimiser steps a device and round.
    pub local_steps: u32,
    /// Learning rate.
    pub learning_rate: f64,
    /// How deltas travel.
    pub compression: Compression,
    /// What devices contribute.
    pub contribute: Vec<Contribute>,
    /// Seed of all draws.
    pub seed: u64,
    /// How fast the sensor gateways play, 1 for real time.
    pub speed: f64,
    /// Forget an unfinished run.
    pub fresh: bool,
    /// Give up after so many seconds without progress.
    pub patience_s: u64,
    /// No progress bars.
    pub quiet: bool,
    /// A story to tell instead of the comparison.
    pub story: Option<Story>,
}

/// What a demo may tell instead of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Story {
    /// A good version goes over the sites in stages, and a bad one is stopped at its canary.
    Rollout,
}

impl Story {
    /// Who gives its commands.
    fn operator(self) -> &'static str {
        match self {
            Self::Rollout => "anna",
        }
    }
}

/// Why the demo can't go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// Settings of a node.
    #[error(transparent)]
    Settings(#[from] crate::settings::SettingsError),
    /// Parts of a node.
    #[error(transparent)]
    Parts(#[from] crate::node::SettingsProblem),
    /// A link to a broker.
    #[error(transparent)]
    Link(#[from] crate::bus::mqtt::MqttError),
    /// The file that tells where the brokers are.
    #[error("{path}: {problem}")]
    Brokers {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A broker doesn't let the demo in.
    #[error("the broker of {site} can't be used: {reason}")]
    Broker {
        /// `federation` or a site.
        site: String,
        /// Why.
        reason: String,
    },
    /// A node or broker ends again and again.
    #[error("{name} doesn't stay up ({status}); the end of its log, {log}:\n{tail}")]
    Child {
        /// Which.
        name: String,
        /// How it ended last.
        status: String,
        /// Its log.
        log: String,
        /// The log's last lines.
        tail: String,
    },
    /// The data set.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// Learning.
    #[error(transparent)]
    Learn(#[from] crate::learn::LearnError),
    /// A key file.
    #[error(transparent)]
    Key(#[from] crate::store::keyfile::KeyFileError),
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] crate::trust::keyring::KeyringError),
    /// The keyring's document.
    #[error(transparent)]
    Document(#[from] crate::trust::keyring_document::DocumentError),
    /// A store.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// Files.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A thread or runtime.
    #[error("the demo can't start: {0}")]
    Start(String),
    /// An adapter.
    #[error(transparent)]
    Update(#[from] crate::protocol::update::UpdateError),
    /// No round was finished in time.
    #[error("no progress for {seconds} s at version {version}: {hint}")]
    Stuck {
        /// How long.
        seconds: u64,
        /// Where.
        version: u64,
        /// Who keeps still, and on which topic.
        hint: String,
    },
    /// Something that a story waits for didn't come.
    #[error("{what}: that didn't come within {seconds} s; {hint}")]
    Late {
        /// What.
        what: String,
        /// How long it was waited for.
        seconds: u64,
        /// What was heard last, and where to look.
        hint: String,
    },
    /// A node doesn't take a command of the story.
    #[error("{node} doesn't take {command}: {problem}")]
    Refused {
        /// The node.
        node: String,
        /// The command.
        command: String,
        /// What it says.
        problem: String,
    },
    /// The story went another way than it is told.
    #[error("the story went another way: {0}")]
    AnotherWay(String),
    /// The user stopped a story.
    #[error("stopped; a story begins anew with the next start")]
    StoryStopped,
    /// The user stopped it; a second start goes on from here.
    #[error("stopped; start it again to go on from version {version}")]
    Interrupted {
        /// Where.
        version: u64,
    },
}

impl DemoError {
    /// A file that can't be read or written.
    fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |error| Self::File { path, error }
    }

    /// Something that isn't there to begin with.
    fn start(what: &dyn std::fmt::Display) -> Self {
        Self::Start(what.to_string())
    }
}
