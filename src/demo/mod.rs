//! The pilot on one machine: three brokers, a cloud, two sites with an edge and two devices each,
//! real recordings, real MQTT; then the two arms to compare with, the audit, and the report.
//!
//! Called by `gaisnet demo`. Nodes are the same as those of `gaisnet run`; each has an arbiter
//! (a thread) of its own here.

mod arms;
mod brokers;
mod feeder;
mod plant;
mod run;
mod tap;

use std::path::PathBuf;

use crate::settings::{Compression, Contribute, LearnerName};

pub use run::run;

/// What the demo is asked for.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where keys, stores and the report go.
    pub folder: PathBuf,
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
    /// No progress bars.
    pub quiet: bool,
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
    /// A node.
    #[error(transparent)]
    Node(#[from] crate::node::NodeError),
    /// The data set.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// Learning.
    #[error(transparent)]
    Learn(#[from] crate::learn::LearnError),
    /// A broker.
    #[error(transparent)]
    Broker(#[from] crate::bus::embedded::BrokerError),
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
    #[error("no progress for {seconds} s at version {version}: see the log (RUST_LOG=info)")]
    Stuck {
        /// How long.
        seconds: u64,
        /// Where.
        version: u64,
    },
    /// The user stopped it; a second start goes on from here.
    #[error("stopped; start it again to go on from version {version}")]
    Interrupted {
        /// Where.
        version: u64,
    },
}
