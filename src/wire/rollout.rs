//! What is said about a rollout in stages: who serves what, and what was seen of it.
//!
//! Who serves what goes from its steward down: an edge to its devices, a cloud to its edges, which pass it on. What a device has
//! seen stays between it and its edge; an edge tells its cloud sums. The rules are those of `protocol/rollout.rs`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::blob::Manifest;
use crate::ids::{Name, NodeId, Version};

/// Who serves what, from an edge to all its devices, or from a cloud to all its edges. The highest serial holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The model.
    pub model: Name,
    /// Its number: each is higher than the one before.
    pub serial: u64,
    /// What is served where nothing else is said.
    pub stable: Version,
    /// Chunks of the stable version's adapter, as long as the steward has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_adapter: Option<Manifest>,
    /// The version that is rolled out, while a stage runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
}

/// See [`Assignment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The version.
    pub version: Version,
    /// Chunks of its adapter.
    pub adapter: Manifest,
    /// Devices that serve it.
    pub serve: BTreeSet<NodeId>,
    /// Devices whose answers by it nobody sees.
    pub shadow: BTreeSet<NodeId>,
    /// An answer that comes later counts as slow, milliseconds; 0: none does.
    pub slow_ms: u64,
}

/// What a device has seen of a candidate, to its edge. Each says all that was seen so far, so one that is lost or comes
/// twice changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Number of the assignment that it is about.
    pub serial: u64,
    /// The candidate.
    pub version: Version,
    /// Which life of the device: what it saw before is forgotten there.
    pub life: u64,
    /// What it has seen in it.
    pub tally: Tally,
    /// It has gone back from the candidate by its own checks.
    pub gave_up: bool,
}

/// What a site's devices have seen of a candidate together, from their edge to its cloud. Each says all that was seen since the
/// stage began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteEvidence {
    /// Number of the cloud's assignment that it is about.
    pub serial: u64,
    /// The candidate.
    pub version: Version,
    /// Sums over the site's devices.
    pub tally: Tally,
    /// Devices that they come from.
    pub nodes: u64,
    /// One of them has gone back from the candidate by its own checks.
    pub gave_up: bool,
}

/// What a node has seen of the new version since a stage began, in this life of it; each only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Inputs that the new version was asked.
    pub answers: u64,
    /// Of those, without an answer.
    pub errors: u64,
    /// Of those, answered later than the limit.
    pub slow: u64,
    /// Its answers whose label is known.
    pub judged: u64,
    /// Of those, wrong.
    pub wrong: u64,
    /// Answers of the version before whose label is known.
    pub base_judged: u64,
    /// Of those, wrong.
    pub base_wrong: u64,
    /// Inputs that both versions answered.
    pub compared: u64,
    /// Of those, answered differently.
    pub disagreed: u64,
    /// Furthest that its inputs were off from those that it saw first, as a distance of distributions; 0: it didn't look.
    pub drift: f64,
}
