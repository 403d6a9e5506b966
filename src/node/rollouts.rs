//! Who takes part in rollouts: an edge that is the steward of its site, and nodes that serve what is assigned.

use std::collections::BTreeSet;

use crate::ids::{Digest, NodeId, Version};
use crate::ledger::Word;
use crate::protocol::rollout::{Freeze, RolloutConfig, Stage};
use crate::protocol::{Follower, FollowerConfig, Steward, StewardConfig, update};
use crate::trust::keyring::{Keyring, NodeEntry, Role};
use crate::wire::Manifest;

use super::{Learning, NodeError};

/// How a node takes part in rollouts; by default in none.
#[derive(Debug, Clone, Default)]
pub struct RolloutTerms {
    /// An edge: it decides for its site, and serves what it assigns to itself.
    pub steward: bool,
    /// A device: it serves what its edge assigns.
    pub follow: bool,
    /// Who proposed a plan can't approve it, and each plan needs an approval.
    pub four_eyes: bool,
    /// When nothing goes forward.
    pub freezes: Vec<Freeze>,
}

/// What a steward checks plans by: its devices, itself if it answers, and the people of the keyring.
pub fn rollout_config(
    keyring: &Keyring,
    edge: &NodeId,
    learning: (&crate::ids::Name, Digest),
    (answers, served): (bool, Version),
    terms: &RolloutTerms,
) -> RolloutConfig {
    let has = |entry: &NodeEntry, role| entry.roles.contains(&role);
    let devices = keyring.children_of(edge).filter(|entry| has(entry, Role::Device));
    let mut members: BTreeSet<NodeId> = devices.map(|entry| entry.node.clone()).collect();
    if answers {
        members.insert(edge.clone());
    }
    let people =
        keyring.nodes().filter(|entry| has(entry, Role::Operator) || has(entry, Role::Approver));
    RolloutConfig {
        model: learning.0.clone(),
        base: learning.1,
        served,
        widest: Stage::Site,
        members,
        approvers: people.map(|entry| entry.node.clone()).collect(),
        four_eyes: terms.four_eyes,
        freezes: terms.freezes.clone(),
    }
}

pub(super) fn steward(
    rollout: RolloutConfig,
    learning: &Learning,
    state: &[(String, Vec<u8>)],
) -> Result<Steward, NodeError> {
    let config = StewardConfig {
        rollout,
        untrained: Manifest::of(&learning.adapter, learning.chunk_bytes),
        chunk_bytes: learning.chunk_bytes,
        code: Word::new(concat!("gaisnet-", env!("CARGO_PKG_VERSION"))),
    };
    Steward::new(config, state).map_err(NodeError::State)
}

pub(super) fn follower(
    me: &NodeId,
    steward: &NodeId,
    learning: &Learning,
    state: &[(String, Vec<u8>)],
) -> Result<Follower, NodeError> {
    let adapter = update::unpack(&learning.adapter);
    let layout = adapter.map_err(|error| NodeError::State(error.to_string()))?.layout();
    let (me, steward, model) = (me.clone(), steward.clone(), learning.model.name.clone());
    Follower::new(FollowerConfig { me, steward, model, layout }, state).map_err(NodeError::State)
}
