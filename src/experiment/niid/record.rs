//! What a cell has come to so far, on disk after each round: a run of hours survives its process.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Judged;
use crate::experiment::{ExperimentError, record_file};
use crate::report::{AuditSummary, HalvesFigures};

/// One cell's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellRecord {
    /// Name of the set.
    pub dataset: String,
    /// Name of the split.
    pub split: String,
    /// Name of the strategy.
    pub strategy: String,
    /// What the accuracies are of.
    #[serde(default)]
    pub judged: Judged,
    /// Rounds that are wanted.
    pub rounds: u64,
    /// Passes of a client over its images in a round.
    pub local_epochs: u32,
    /// Seed of weights, batches and draws of the split.
    pub seed: u64,
    /// SHA-256 of what decides the figures: settings, split, model.
    pub config: String,
    /// Commit that the program was built from, when the cell was last gone on with.
    #[serde(default)]
    pub commit: String,
    /// The machine that it ran on last.
    #[serde(default)]
    pub machine: String,
    /// Images of each client.
    pub client_sizes: Vec<usize>,
    /// What a client has of the network and what crosses the cut; none where it has all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halves: Option<HalvesFigures>,
    /// After each round, the untrained model as round 0.
    pub curve: Vec<RoundFigures>,
    /// The nodes' ledgers; none before the end.
    pub audit: Option<AuditSummary>,
    /// Largest resident memory in MiB of each node that was a process of its own; none before the end. Of a
    /// cell that was gone on with, the largest of the processes that came to their end.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peak_rss_mib: BTreeMap<String, f64>,
}

/// What is judged, after a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundFigures {
    /// Its number.
    pub round: u64,
    /// Share of the test images that are named right.
    pub accuracy: f64,
    /// Bytes that a client published in the round, mean over the clients.
    pub bytes_up: u64,
    /// Wall time since the round before, or since the process started.
    pub seconds: f64,
}

impl CellRecord {
    /// Whether all rounds are there.
    pub fn is_finished(&self) -> bool {
        self.rounds_done() >= self.rounds && self.audit.is_some()
    }

    /// The last round of the curve.
    pub fn rounds_done(&self) -> u64 {
        self.curve.last().map_or(0, |at| at.round)
    }

    /// Best accuracy after any round.
    pub fn accuracy_best(&self) -> f64 {
        self.curve.iter().map(|at| at.accuracy).fold(0.0, f64::max)
    }

    /// Mean bytes that a client published in a round.
    pub fn bytes_up_per_client_round(&self) -> u64 {
        let rounds = self.curve.iter().filter(|at| at.round > 0);
        let (sum, n) = rounds.fold((0, 0), |(sum, n), at| (sum + at.bytes_up, n + 1));
        sum / u64::max(n, 1)
    }

    /// Wall time of all rounds.
    pub fn seconds(&self) -> f64 {
        self.curve.iter().map(|at| at.seconds).sum()
    }

    /// Takes the figures of a round; those of one that is there are replaced.
    pub(super) fn push(&mut self, figures: RoundFigures) {
        self.curve.retain(|at| at.round < figures.round);
        self.curve.push(figures);
    }

    /// Takes what the nodes' processes have used at most.
    pub(super) fn take_peaks(&mut self, peaks: &BTreeMap<String, f64>) {
        for (node, mib) in peaks {
            let at = self.peak_rss_mib.entry(node.clone()).or_default();
            *at = at.max(*mib);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn record() -> CellRecord {
        let at = |round, accuracy| RoundFigures { round, accuracy, bytes_up: 100, seconds: 2.0 };
        CellRecord {
            dataset: "mnist".into(),
            split: "iid".into(),
            strategy: "fedavg".into(),
            judged: Judged::CommonModel,
            rounds: 3,
            local_epochs: 1,
            seed: 1,
            config: "00".into(),
            commit: "aae5a19".into(),
            machine: "a machine".into(),
            client_sizes: vec![3, 4],
            halves: None,
            curve: vec![
                RoundFigures { bytes_up: 0, seconds: 0.0, ..at(0, 0.1) },
                at(1, 0.7),
                at(2, 0.6),
            ],
            audit: None,
            peak_rss_mib: BTreeMap::new(),
        }
    }

    #[test]
    fn figures_are_those_of_the_curve() {
        let mut record = record();
        assert_eq!((record.accuracy_best(), record.seconds()), (0.7, 4.0));
        assert_eq!((record.rounds_done(), record.bytes_up_per_client_round()), (2, 100));
        record.push(RoundFigures { round: 2, accuracy: 0.8, bytes_up: 40, seconds: 2.0 });
        assert_eq!((record.curve.len(), record.accuracy_best()), (3, 0.8));
        assert_eq!(record.bytes_up_per_client_round(), 70);
        record.push(RoundFigures { round: 3, accuracy: 0.8, bytes_up: 40, seconds: 2.0 });
        assert!(!record.is_finished(), "its ledgers weren't read yet");
        record.audit = Some(AuditSummary { entries: 1, verified: true });
        assert!(record.is_finished());
    }

    #[test]
    fn the_memory_of_a_node_is_the_largest_of_its_processes() {
        let mut record = record();
        for peak in [120.0, 180.0, 90.0] {
            record.take_peaks(&BTreeMap::from([("machine-1".to_owned(), peak)]));
        }
        assert_eq!(record.peak_rss_mib, BTreeMap::from([("machine-1".to_owned(), 180.0)]));
        let folder = tempfile::tempdir().unwrap();
        record.write(folder.path()).unwrap();
        assert_eq!(CellRecord::read(folder.path()).unwrap(), Some(record));
    }

    #[test]
    fn it_comes_back_as_it_was_written_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(CellRecord::read(folder.path()).unwrap(), None);
        record().write(folder.path()).unwrap();
        assert_eq!(CellRecord::read(folder.path()).unwrap(), Some(record()));
        // As an earlier version wrote it, which knew nothing but a common model and no processes.
        let text = std::fs::read_to_string(folder.path().join("record.json")).unwrap();
        assert!(!text.contains("peak_rss_mib"), "{text}");
        let older = text.replace("  \"judged\": \"common_model\",\n", "");
        assert_ne!(older, text);
        std::fs::write(folder.path().join("record.json"), older).unwrap();
        assert_eq!(CellRecord::read(folder.path()).unwrap(), Some(record()));
        std::fs::write(folder.path().join("record.json"), "{\"rounds\": 3}").unwrap();
        let error = CellRecord::read(folder.path()).unwrap_err();
        assert_eq!(error.kind(), "record");
    }
}
