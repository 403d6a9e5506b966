//! What came of a cell, on disk once it is finished: a comparison goes on cell by cell.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use crate::experiment::{ExperimentError, record_file};
use crate::report::AuditSummary;

/// A finished cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What was run.
    pub cell: Cell,
    /// SHA-256 of what decides its figures: the cell, the round's plan, the base, the examples.
    pub config: String,
    /// Commit that the program was built from.
    pub commit: String,
    /// The machine that it ran on.
    pub machine: String,
    /// The model in a few words.
    pub model: String,
    /// Examples of each class, a device each.
    pub class_counts: Vec<Vec<u64>>,
    /// Site of each device.
    pub sites: Vec<usize>,
    /// Mean distance of the class shares of two devices of a site, 0 to 2.
    pub spread_in_sites: f64,
    /// Values of the model and of its adapter.
    pub values: Values,
    /// The model after each round, the untrained one as round 0; of a pooled learner the first and the last.
    pub curve: Vec<Point>,
    /// Payload bytes; none where nothing travels.
    pub bytes: Option<Bytes>,
    /// What a device's examples take (samples as f32, a byte a pixel), computed: what it would send to have
    /// them learned from elsewhere.
    pub examples_bytes_per_device: u64,
    /// Training, with all that a federation does.
    pub training: Cost,
    /// Largest resident set of a process that did nothing but this cell; none where it did others, too.
    pub peak_memory_mib: Option<f64>,
    /// The last model's answers, on one thread.
    pub answers: Answers,
    /// The nodes' ledgers; none without nodes.
    pub audit: Option<AuditSummary>,
}

/// Numbers of values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// Of the whole model.
    pub model: u64,
    /// That train in it.
    pub trained: u64,
    /// Of the model that a device holds.
    pub on_device: u64,
    /// That a device trains.
    pub trained_on_device: u64,
}

/// The model after a round, on the test part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Its number.
    pub round: u64,
    /// Mean F1 of the classes.
    pub macro_f1: f64,
    /// Share of right answers.
    pub accuracy: f64,
}

/// Payload bytes in a round, means over the nodes of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bytes {
    /// That a device published.
    pub device_up: u64,
    /// That a device received.
    pub device_down: u64,
    /// That an edge published towards the cloud.
    pub edge_up: u64,
    /// That an edge received from the cloud.
    pub edge_down: u64,
    /// Of what a device published, its coded work.
    pub work: u64,
}

/// What something took, of all nodes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Wall time.
    pub seconds: f64,
    /// Processor time of all threads.
    pub cpu_seconds: f64,
}

/// What answers took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// How many.
    pub count: u64,
    /// What all of them took.
    pub cost: Cost,
    /// What an example takes, computed: sent where the whole model is elsewhere.
    pub example_bytes: u64,
}

impl Record {
    /// The model after the last round.
    pub fn last(&self) -> Option<Point> {
        self.curve.last().copied()
    }

    /// Reads the record in a cell's folder, if there is one.
    ///
    /// # Errors
    /// [`ExperimentError::Record`] when it isn't one, [`ExperimentError::Io`].
    pub fn read(folder: &Path) -> Result<Option<Self>, ExperimentError> {
        record_file::read(folder)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// [`ExperimentError::Io`].
    pub(super) fn write(&self, folder: &Path) -> Result<(), ExperimentError> {
        record_file::write(self, folder)
    }
}
