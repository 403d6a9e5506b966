//! The versions that are known, with what made them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Name, NodeId, RoundNo, Version};
use crate::ledger::Word;

/// A version with its lineage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Its number.
    pub version: Version,
    /// The model.
    pub model: Name,
    /// The base that its adapter is for.
    pub base: Digest,
    /// Its adapter.
    pub adapter: Digest,
    /// The version that it was made from.
    pub parent: Version,
    /// The round that made it.
    pub round: RoundNo,
    /// Whose contributions are in it, in order; at most [`Registry::MAX_CONTRIBUTORS`].
    pub contributors: Vec<NodeId>,
    /// Examples behind it.
    pub num_examples: u64,
    /// Mean loss of its contributors before and after.
    pub losses: (f32, f32),
    /// How it was combined.
    pub strategy: Word,
    /// The program that made it.
    pub code: Word,
    /// Most that its adapter tells of those whose data made it, if that was measured.
    pub risk: Option<f64>,
    /// Its owner's signature was checked.
    pub signed: bool,
    /// Why it mustn't be served any more.
    pub barred: Option<Word>,
}

/// See the module. Bounded: the oldest that isn't needed goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registry {
    records: BTreeMap<Version, VersionRecord>,
}

impl Registry {
    /// Versions that are remembered.
    pub const MAX_VERSIONS: usize = 1_024;
    /// Contributors of one version that are named; an edge stands for its devices.
    pub const MAX_CONTRIBUTORS: usize = 1_024;

    /// What is known of a version.
    pub fn get(&self, version: Version) -> Option<&VersionRecord> {
        self.records.get(&version)
    }

    /// All of them, the lowest first.
    pub fn records(&self) -> impl Iterator<Item = &VersionRecord> {
        self.records.values()
    }

    /// The versions that one was made from, itself first, as far as they are known.
    pub fn lineage(&self, version: Version) -> Vec<Version> {
        let mut line = Vec::new();
        let mut next = self.records.get(&version);
        while let Some(record) = next {
            line.push(record.version);
            // A parent is lower, or there is none: this ends.
            next =
                self.records.get(&record.parent).filter(|parent| parent.version < record.version);
        }
        line
    }

    /// Takes a version; gives one that made room for it. A known version stays as it is.
    pub(super) fn add(&mut self, record: VersionRecord, needed: &[Version]) -> Option<Version> {
        self.records.entry(record.version).or_insert(record);
        if self.records.len() <= Self::MAX_VERSIONS {
            return None;
        }
        let oldest = self.records.keys().find(|version| !needed.contains(version)).copied()?;
        self.records.remove(&oldest);
        Some(oldest)
    }

    /// Never to be served again.
    pub(super) fn bar(&mut self, version: Version, reason: Word) -> Option<&VersionRecord> {
        let record = self.records.get_mut(&version)?;
        record.barred.get_or_insert(reason);
        Some(record)
    }
}
