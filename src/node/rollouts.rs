//! Who takes part in rollouts: an edge or a cloud that is the steward, an edge that passes on what its cloud decides, and nodes
//! that serve what is assigned.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Digest, NodeId, Version};
use crate::ledger::Word;
use crate::protocol::rollout::{Freeze, RolloutConfig, Stage};
use crate::protocol::{
    Deputy, DeputyConfig, Follower, FollowerConfig, Steward, StewardConfig, update,
};
use crate::trust::keyring::{Keyring, NodeEntry, Role};
use crate::wire::Manifest;

use super::{Learning, NodeError};

/// How a node takes part in rollouts; by default in none.
#[derive(Debug, Clone, Default)]
pub struct RolloutTerms {
    /// An edge decides for its site, a cloud for all sites; each serves what it assigns to itself.
    pub steward: bool,
    /// A device serves what its edge assigns, an edge passes on what its cloud assigns.
    pub follow: bool,
    /// Who proposed a plan can't approve it, and each plan needs an approval.
    pub four_eyes: bool,
    /// When nothing goes forward.
    pub freezes: Vec<Freeze>,
}

/// What a steward checks plans by: its devices, or those of its edges, itself if it answers, and the people of the keyring.
pub fn rollout_config(
    keyring: &Keyring,
    steward: &NodeId,
    learning: (&crate::ids::Name, Digest),
    (answers, served): (bool, Version),
    terms: &RolloutTerms,
) -> RolloutConfig {
    let has = |entry: &NodeEntry, role| entry.roles.contains(&role);
    let is_cloud = keyring.node(steward).is_some_and(|entry| has(entry, Role::Cloud));
    let edges = keyring.children_of(steward).filter(|entry| is_cloud && has(entry, Role::Edge));
    let site = |edge: &NodeEntry| (edge.node.clone(), devices_of(keyring, &edge.node));
    let sites: BTreeMap<NodeId, BTreeSet<NodeId>> = edges.map(site).collect();
    let mut members: BTreeSet<NodeId> = if is_cloud {
        sites.values().flatten().cloned().collect()
    } else {
        devices_of(keyring, steward)
    };
    if answers {
        members.insert(steward.clone());
    }
    let people =
        keyring.nodes().filter(|entry| has(entry, Role::Operator) || has(entry, Role::Approver));
    RolloutConfig {
        model: learning.0.clone(),
        base: learning.1,
        served,
        widest: if is_cloud { Stage::Federation } else { Stage::Site },
        members,
        sites,
        approvers: people.map(|entry| entry.node.clone()).collect(),
        four_eyes: terms.four_eyes,
        freezes: terms.freezes.clone(),
    }
}

fn devices_of(keyring: &Keyring, edge: &NodeId) -> BTreeSet<NodeId> {
    let devices = keyring.children_of(edge).filter(|entry| entry.roles.contains(&Role::Device));
    devices.map(|entry| entry.node.clone()).collect()
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

pub(super) fn deputy(
    keyring: &Keyring,
    edge: &NodeId,
    cloud: &NodeId,
    learning: &Learning,
    state: &[(String, Vec<u8>)],
) -> Result<Deputy, NodeError> {
    let config = DeputyConfig {
        steward: cloud.clone(),
        model: learning.model.name.clone(),
        members: devices_of(keyring, edge),
        untrained: Manifest::of(&learning.adapter, learning.chunk_bytes),
        chunk_bytes: learning.chunk_bytes,
    };
    Deputy::new(config, state).map_err(NodeError::State)
}

pub(super) fn follower(
    me: &NodeId,
    (steward, source): (&NodeId, &NodeId),
    learning: &Learning,
    state: &[(String, Vec<u8>)],
) -> Result<Follower, NodeError> {
    let adapter = update::unpack(&learning.adapter);
    let layout = adapter.map_err(|error| NodeError::State(error.to_string()))?.layout();
    let config = FollowerConfig {
        me: me.clone(),
        steward: steward.clone(),
        source: source.clone(),
        model: learning.model.name.clone(),
        layout,
    };
    Follower::new(config, state).map_err(NodeError::State)
}
