//! The keyring: which key speaks for which node, with which roles, under which parent.
//!
//! A [`Keyring`] value is always consistent: it can only be built through its check, also when it
//! comes off the wire. Its signatures are the envelope's business; [`Keyring::accept`] takes the
//! keys that were found to have signed and decides whether they suffice.
//!
//! ```text
//! version N  --accept(N+1, signers)-->  version N+1     threshold of N's root and of N+1's root
//! ```
//! Invariants: a version never goes back; a key that leaves is named in `revoked` and never comes
//! back; one key a node, one node a key; devices hang under edges, edges under edges or the cloud.
//! An expired keyring stops change, never inference: see [`Standing`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::keys::{KeyError, Signature, VerifyingKey};
use crate::ids::{KeyId, Name, NodeId};
use crate::time::Wall;

/// What a key may speak for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Signs keyrings. Offline; such keys stand in [`RootRole`], never with a node.
    Root,
    /// Signs base models and programs.
    Release,
    /// Signs what is served where.
    Rollout,
    /// Aggregates for the federation.
    Cloud,
    /// Relays between its devices and its parent.
    Edge,
    /// Owns data, trains and infers.
    Device,
    /// A person or console that sends commands.
    Operator,
    /// A person who confirms a rollout.
    Approver,
    /// Signs checkpoints of a ledger.
    AuditLog,
    /// Cosigns checkpoints of others.
    Witness,
}

impl Role {
    /// All roles, in their order.
    pub const ALL: [Self; 10] = [
        Self::Root,
        Self::Release,
        Self::Rollout,
        Self::Cloud,
        Self::Edge,
        Self::Device,
        Self::Operator,
        Self::Approver,
        Self::AuditLog,
        Self::Witness,
    ];

    /// The word on the wire and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Release => "release",
            Self::Rollout => "rollout",
            Self::Cloud => "cloud",
            Self::Edge => "edge",
            Self::Device => "device",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::AuditLog => "audit_log",
            Self::Witness => "witness",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = KeyringError;
    fn from_str(text: &str) -> Result<Self, KeyringError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| KeyringError::UnknownRole { text: text.chars().take(32).collect() })
    }
}

/// The keys that sign keyrings, and how many of them it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRole {
    /// Number of different keys that must sign.
    pub threshold: NonZeroU32,
    /// The keys.
    pub keys: Vec<VerifyingKey>,
}

impl RootRole {
    /// Says if enough of the root's keys are among these signers.
    pub fn is_met_by(&self, signers: &BTreeSet<VerifyingKey>) -> bool {
        u32::try_from(self.count(signers)).is_ok_and(|found| found >= self.threshold.get())
    }

    fn count(&self, signers: &BTreeSet<VerifyingKey>) -> usize {
        self.keys.iter().filter(|key| signers.contains(key)).count()
    }
}

/// One node and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name, unique in the federation.
    pub node: NodeId,
    /// Second level of its topics.
    pub site: Name,
    /// Third level of its topics.
    pub line: Name,
    /// What its key may speak for.
    pub roles: BTreeSet<Role>,
    /// The node above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<NodeId>,
    /// Its key.
    pub key: VerifyingKey,
}

/// A request to be enrolled: the entry, and the proof that the asker holds its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// What is asked for.
    pub entry: NodeEntry,
    /// [`super::keys::SigningKey::prove_possession`] with the entry's node and roles.
    pub proof: Signature,
}

/// Whether a keyring may still carry changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// In time.
    Valid,
    /// Out of date: refuse what changes models or trust; answers go on.
    Expired,
}

/// A consistent keyring. Serialises as a named map, in JSON and msgpack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Keyring {
    federation: Name,
    version: u64,
    issued_at: Wall,
    expires_at: Wall,
    root: RootRole,
    nodes: BTreeMap<NodeId, NodeEntry>,
    revoked: BTreeSet<KeyId>,
    /// The standby of an owner of rounds.
    standbys: BTreeMap<NodeId, NodeId>,
    /// The edge to which an edge's devices go while theirs is away.
    second_edges: BTreeMap<NodeId, NodeId>,
    by_key: BTreeMap<KeyId, NodeId>,
}

impl Keyring {
    /// Version 1: a root and nobody else.
    ///
    /// # Errors
    /// [`KeyringError`] when the root is unusable or the times are the wrong way round.
    pub fn first(
        federation: Name,
        root: RootRole,
        issued_at: Wall,
        expires_at: Wall,
    ) -> Result<Self, KeyringError> {
        Self::try_from(Parts {
            federation,
            version: 1,
            issued_at,
            expires_at,
            root,
            nodes: Vec::new(),
            revoked: Vec::new(),
            standbys: BTreeMap::new(),
            second_edges: BTreeMap::new(),
        })
    }

    /// The next version with one node more, or with a new key for a node whose key was revoked.
    ///
    /// # Errors
    /// [`KeyringError::Possession`] when the proof doesn't verify, [`KeyringError::NodeTaken`]
    /// when the node has a living key, [`KeyringError::KeyRevoked`] for a key that was given up,
    /// and whatever the consistency check finds.
    pub fn enrol(&self, new: &Enrolment, at: Wall, expires_at: Wall) -> Result<Self, KeyringError> {
        let NodeEntry { node, roles, key, .. } = &new.entry;
        if self.node(node).is_some() {
            return Err(KeyringError::NodeTaken { node: node.clone() });
        }
        if self.revoked.contains(&key.key_id()) {
            return Err(KeyringError::KeyRevoked { key: key.key_id() });
        }
        key.verify_possession(&self.federation, node, roles, &new.proof)
            .map_err(|source| KeyringError::Possession { node: node.clone(), source })?;
        let mut next = self.next_parts(at, expires_at);
        next.nodes.retain(|entry| entry.node != *node);
        next.nodes.push(new.entry.clone());
        Self::try_from(next)
    }

    /// The next version with one node more, which takes over from `owner` when that is gone.
    ///
    /// Without its key, once that is revoked, `owner` has no standby; a new key makes it one again.
    ///
    /// # Errors
    /// Those of [`Keyring::enrol`], and [`KeyringError::Misplaced`] when the two don't fit.
    pub fn enrol_standby(
        &self,
        new: &Enrolment,
        owner: &NodeId,
        at: Wall,
        expires_at: Wall,
    ) -> Result<Self, KeyringError> {
        let mut paired = self.clone();
        paired.standbys.insert(owner.clone(), new.entry.node.clone());
        paired.enrol(new, at, expires_at)
    }

    /// The next version in which devices of `edge` go to `second` while their own edge is away; with none they wait.
    ///
    /// # Errors
    /// [`KeyringError::Misplaced`] when the two don't fit.
    pub fn with_second_edge(
        &self,
        edge: &NodeId,
        second: Option<&NodeId>,
        at: Wall,
        expires_at: Wall,
    ) -> Result<Self, KeyringError> {
        let mut next = self.next_parts(at, expires_at);
        match second {
            Some(second) => next.second_edges.insert(edge.clone(), second.clone()),
            None => next.second_edges.remove(edge),
        };
        Self::try_from(next)
    }

    /// The next version with a new key for a node, whose old one is revoked.
    ///
    /// # Errors
    /// [`KeyringError::UnknownNode`], and those of [`Keyring::enrol`].
    pub fn rotate(
        &self,
        new: &Enrolment,
        at: Wall,
        expires_at: Wall,
    ) -> Result<Self, KeyringError> {
        let node = &new.entry.node;
        let Some(old) = self.node(node) else {
            return Err(KeyringError::UnknownNode { node: node.clone() });
        };
        let mut next = self.revoke(old.key.key_id(), at, expires_at)?.enrol(new, at, expires_at)?;
        next.version = self.next_version();
        Ok(next)
    }

    /// The next version without trust in this key of a node.
    ///
    /// The node keeps its name and place, so that its children aren't orphaned, but no lookup
    /// finds it until a new key is enrolled.
    ///
    /// # Errors
    /// [`KeyringError::UnknownKey`] when no node has it.
    pub fn revoke(&self, key: KeyId, at: Wall, expires_at: Wall) -> Result<Self, KeyringError> {
        if self.by_key(key).is_none() {
            return Err(KeyringError::UnknownKey { key });
        }
        let mut next = self.next_parts(at, expires_at);
        next.revoked.push(key);
        Self::try_from(next)
    }

    /// The next version with another root; keys that leave it are revoked.
    ///
    /// # Errors
    /// Whatever the consistency check finds.
    pub fn with_root(
        &self,
        root: RootRole,
        at: Wall,
        expires_at: Wall,
    ) -> Result<Self, KeyringError> {
        let mut next = self.next_parts(at, expires_at);
        let leaving = self.root.keys.iter().filter(|key| !root.keys.contains(key));
        next.revoked.extend(leaving.map(VerifyingKey::key_id));
        next.root = root;
        Self::try_from(next)
    }

    /// Checks that this keyring, the first that a node sees, is signed by its own root.
    ///
    /// Whose root that is, a person has to compare once (`gaisnet keys show`).
    ///
    /// # Errors
    /// [`KeyringError::TooFewSigners`].
    pub fn check_signers(&self, signers: &BTreeSet<VerifyingKey>) -> Result<(), KeyringError> {
        if self.root.is_met_by(signers) {
            return Ok(());
        }
        let (needed, found) = (self.root.threshold.get(), self.root.count(signers));
        Err(KeyringError::TooFewSigners { version: self.version, needed, found })
    }

    /// Decides whether `next` may follow this one; `signers` are the keys whose signature over
    /// `next` was verified.
    ///
    /// A version may be jumped over: this root signed `next` itself, so nothing is gained by
    /// demanding those between. A node that slept through a change of the root needs them.
    ///
    /// # Errors
    /// [`KeyringError::NotNewer`] for an old or the same version, `WrongFederation`,
    /// `TooFewSigners`, and `NotRevoked` when a key disappears without being revoked.
    pub fn accept(
        &self,
        next: Self,
        signers: &BTreeSet<VerifyingKey>,
    ) -> Result<Self, KeyringError> {
        if next.federation != self.federation {
            return Err(KeyringError::WrongFederation {
                expected: self.federation.clone(),
                actual: next.federation,
            });
        }
        if next.version <= self.version {
            return Err(KeyringError::NotNewer { have: self.version, got: next.version });
        }
        self.check_signers(signers)?;
        next.check_signers(signers)?;
        let mut old_keys: BTreeSet<KeyId> = self.by_key.keys().copied().collect();
        old_keys.extend(self.root.keys.iter().map(VerifyingKey::key_id));
        let mut new_keys: BTreeSet<KeyId> = next.by_key.keys().copied().collect();
        new_keys.extend(next.root.keys.iter().map(VerifyingKey::key_id));
        let gone = old_keys.difference(&new_keys).chain(&self.revoked);
        if let Some(key) = gone.into_iter().find(|key| !next.revoked.contains(key)) {
            return Err(KeyringError::NotRevoked { key: *key });
        }
        Ok(next)
    }

    /// The federation.
    pub fn federation(&self) -> &Name {
        &self.federation
    }

    /// Version, from 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When it was made.
    pub fn issued_at(&self) -> Wall {
        self.issued_at
    }

    /// When it stops carrying changes.
    pub fn expires_at(&self) -> Wall {
        self.expires_at
    }

    /// The root.
    pub fn root(&self) -> &RootRole {
        &self.root
    }

    /// Ids of keys that nobody trusts any more.
    pub fn revoked(&self) -> &BTreeSet<KeyId> {
        &self.revoked
    }

    /// Whether it may still carry changes.
    pub fn standing(&self, now: Wall) -> Standing {
        if now < self.expires_at { Standing::Valid } else { Standing::Expired }
    }

    /// All nodes with a living key, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values().filter(|entry| !self.revoked.contains(&entry.key.key_id()))
    }

    /// A node with a living key.
    pub fn node(&self, node: &NodeId) -> Option<&NodeEntry> {
        self.nodes.get(node).filter(|entry| !self.revoked.contains(&entry.key.key_id()))
    }

    /// The node that a living key speaks for.
    pub fn by_key(&self, key: KeyId) -> Option<&NodeEntry> {
        if self.revoked.contains(&key) { None } else { self.nodes.get(self.by_key.get(&key)?) }
    }

    /// A key of the root.
    pub fn root_key(&self, key: KeyId) -> Option<&VerifyingKey> {
        self.root.keys.iter().find(|root| root.key_id() == key)
    }

    /// The nodes right below this one that have a living key, by name.
    pub fn children_of(&self, parent: &NodeId) -> impl Iterator<Item = &NodeEntry> {
        self.nodes().filter(move |entry| entry.parent.as_ref() == Some(parent))
    }

    /// The node with a living key that takes over from this one.
    pub fn standby_of(&self, owner: &NodeId) -> Option<&NodeEntry> {
        self.node(self.standbys.get(owner)?)
    }

    /// The node that this one takes over from, also where its key is revoked: that is what a standby is for.
    pub fn stands_by(&self, standby: &NodeId) -> Option<&NodeId> {
        self.standbys.iter().find(|(_, named)| *named == standby).map(|(owner, _)| owner)
    }

    /// The other one of an owner and its standby. An owner has none whose key is revoked.
    pub fn peer_of(&self, node: &NodeId) -> Option<&NodeId> {
        self.standby_of(node).map(|entry| &entry.node).or_else(|| self.stands_by(node))
    }

    /// Nodes that may own this one's rounds: its parent, and the standby of that.
    pub fn owners_of(&self, node: &NodeId) -> impl Iterator<Item = &NodeEntry> {
        let parent = self.node(node).and_then(|entry| entry.parent.as_ref());
        let both = |parent| self.node(parent).into_iter().chain(self.standby_of(parent));
        parent.into_iter().flat_map(both)
    }

    /// Members of the rounds that this node owns, or may come to own.
    pub fn members_of<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a NodeEntry> {
        self.children_of(self.stands_by(node).unwrap_or(node))
    }

    /// The edge that takes this device in while its own is away.
    pub fn second_edge_of(&self, device: &NodeId) -> Option<&NodeEntry> {
        let device = self.node(device).filter(|entry| entry.is_any(&[Role::Device]))?;
        self.node(self.second_edges.get(device.parent.as_ref()?)?)
    }

    /// Devices that this edge takes in while theirs is away, by name.
    pub fn guests_of<'a>(&'a self, edge: &'a NodeId) -> impl Iterator<Item = &'a NodeEntry> {
        let from = |parent: &NodeId| self.second_edges.get(parent) == Some(edge);
        self.nodes().filter(move |entry| {
            entry.is_any(&[Role::Device]) && entry.parent.as_ref().is_some_and(from)
        })
    }

    fn next_version(&self) -> u64 {
        self.version.saturating_add(1)
    }

    fn next_parts(&self, issued_at: Wall, expires_at: Wall) -> Parts {
        let version = self.next_version();
        Parts { version, issued_at, expires_at, ..Parts::from(self.clone()) }
    }

    fn check(&self) -> Result<(), KeyringError> {
        if self.version == 0 || self.expires_at <= self.issued_at {
            return Err(KeyringError::BadTimes { version: self.version });
        }
        let mut root = BTreeSet::new();
        for key in &self.root.keys {
            let id = key.key_id();
            if !root.insert(id) || self.by_key.contains_key(&id) {
                return Err(KeyringError::KeyTaken { key: id });
            }
            if self.revoked.contains(&id) {
                return Err(KeyringError::RootRevoked { key: id });
            }
        }
        if usize::try_from(self.root.threshold.get()).map_or(true, |needed| needed > root.len()) {
            return Err(KeyringError::Threshold {
                threshold: self.root.threshold.get(),
                keys: root.len(),
            });
        }
        let mut clouds = self.nodes.values().filter(|entry| {
            entry.is_any(&[Role::Cloud]) && !self.standbys.values().any(|node| *node == entry.node)
        });
        if let (Some(first), Some(second)) = (clouds.next(), clouds.next()) {
            return Err(KeyringError::TwoClouds {
                first: first.node.clone(),
                second: second.node.clone(),
            });
        }
        self.nodes.values().try_for_each(|entry| self.check_entry(entry))?;
        self.standbys.iter().try_for_each(|(owner, standby)| self.check_standby(owner, standby))?;
        self.second_edges.iter().try_for_each(|(edge, second)| self.check_second(edge, second))
    }

    fn check_second(&self, edge: &NodeId, second: &NodeId) -> Result<(), KeyringError> {
        let refuse = |why| Err(KeyringError::Misplaced { node: second.clone(), why });
        let (Some(first), Some(other)) = (self.nodes.get(edge), self.nodes.get(second)) else {
            return refuse("it, or the edge that it takes devices of, is not in the keyring");
        };
        if edge == second {
            return refuse("an edge is no second edge for its own devices");
        }
        if [first, other].iter().any(|entry| !entry.is_any(&[Role::Edge])) {
            return refuse("a second edge is an edge, for devices of an edge");
        }
        if first.site != other.site {
            return refuse("devices stay in their site: their second edge has to be in it");
        }
        // Else versions of the two are no versions of one line.
        if first.parent != other.parent {
            return refuse("an edge and the second one of its devices hang under the same node");
        }
        Ok(())
    }

    fn check_standby(&self, owner: &NodeId, standby: &NodeId) -> Result<(), KeyringError> {
        let refuse = |why| Err(KeyringError::Misplaced { node: standby.clone(), why });
        let is_cloud =
            |node: &NodeId| self.nodes.get(node).is_some_and(|entry| entry.is_any(&[Role::Cloud]));
        if !is_cloud(owner) || !is_cloud(standby) {
            return refuse("a cloud stands by for a cloud, and nothing else does so far");
        }
        if self.standbys.contains_key(standby) {
            return refuse("it has a standby itself, or stands by for itself");
        }
        if self.standbys.values().filter(|named| *named == standby).count() > 1 {
            return refuse("it stands by for two");
        }
        let child = self.nodes.values().find(|entry| entry.parent.as_ref() == Some(standby));
        if child.is_some() { refuse("nothing hangs under a standby") } else { Ok(()) }
    }

    fn check_entry(&self, entry: &NodeEntry) -> Result<(), KeyringError> {
        let refuse = |why| Err(KeyringError::Misplaced { node: entry.node.clone(), why });
        let roles = &entry.roles;
        if roles.is_empty() {
            return refuse("it has no role");
        }
        if roles.contains(&Role::Root) {
            return refuse("root keys stand in the root, not with a node");
        }
        let parent = match &entry.parent {
            None => None,
            Some(parent) => match self.nodes.get(parent) {
                None => return refuse("its parent is not in the keyring"),
                found => found,
            },
        };
        // The highest tier among a node's roles decides where it hangs.
        if roles.contains(&Role::Cloud) {
            if parent.is_some() {
                return refuse("a cloud has no parent");
            }
        } else if roles.contains(&Role::Edge) {
            match parent {
                Some(above) if above.is_any(&[Role::Cloud, Role::Edge]) => {}
                _ => return refuse("an edge needs a cloud or an edge as parent"),
            }
        } else if roles.contains(&Role::Device) {
            match parent {
                Some(above) if above.is_any(&[Role::Edge]) && above.site == entry.site => {}
                _ => return refuse("a device needs an edge of its site as parent"),
            }
        }
        // Walking up must end; the only cycles possible are among edges.
        let mut above = parent;
        for _ in 0..MAX_TIERS {
            match above {
                None => return Ok(()),
                Some(node) => above = node.parent.as_ref().and_then(|up| self.nodes.get(up)),
            }
        }
        refuse("its line of parents is a cycle, or longer than 16")
    }
}

impl NodeEntry {
    fn is_any(&self, roles: &[Role]) -> bool {
        roles.iter().any(|role| self.roles.contains(role))
    }
}

/// The wire form, before the check.
#[derive(Serialize, Deserialize)]
struct Parts {
    federation: Name,
    version: u64,
    issued_at: Wall,
    expires_at: Wall,
    root: RootRole,
    nodes: Vec<NodeEntry>,
    revoked: Vec<KeyId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    standbys: BTreeMap<NodeId, NodeId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    second_edges: BTreeMap<NodeId, NodeId>,
}

impl From<Keyring> for Parts {
    fn from(ring: Keyring) -> Self {
        Self {
            federation: ring.federation,
            version: ring.version,
            issued_at: ring.issued_at,
            expires_at: ring.expires_at,
            root: ring.root,
            nodes: ring.nodes.into_values().collect(),
            revoked: ring.revoked.into_iter().collect(),
            standbys: ring.standbys,
            second_edges: ring.second_edges,
        }
    }
}

impl TryFrom<Parts> for Keyring {
    type Error = KeyringError;
    fn try_from(parts: Parts) -> Result<Self, KeyringError> {
        let sizes = [
            ("nodes", parts.nodes.len(), MAX_NODES),
            ("revoked keys", parts.revoked.len(), MAX_REVOKED),
            ("root keys", parts.root.keys.len(), MAX_ROOT_KEYS),
            ("standbys", parts.standbys.len(), MAX_NODES),
            ("second edges", parts.second_edges.len(), MAX_NODES),
        ];
        for (what, count, most) in sizes {
            if count > most {
                return Err(KeyringError::TooMany { what, count, most });
            }
        }
        let mut ring = Self {
            federation: parts.federation,
            version: parts.version,
            issued_at: parts.issued_at,
            expires_at: parts.expires_at,
            root: parts.root,
            nodes: BTreeMap::new(),
            revoked: parts.revoked.into_iter().collect(),
            standbys: parts.standbys,
            second_edges: parts.second_edges,
            by_key: BTreeMap::new(),
        };
        for entry in parts.nodes {
            let (key, node) = (entry.key.key_id(), entry.node.clone());
            if ring.by_key.insert(key, node.clone()).is_some() {
                return Err(KeyringError::KeyTaken { key });
            }
            if ring.nodes.insert(node.clone(), entry).is_some() {
                return Err(KeyringError::NodeTaken { node });
            }
        }
        ring.check()?;
        Ok(ring)
    }
}

/// Why a keyring, or a change to it, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// Not one of the ten roles.
    #[error(
        "unknown role {text:?}: use root, release, rollout, cloud, edge, device, operator, approver, audit_log or witness"
    )]
    UnknownRole {
        /// What was given, shortened.
        text: String,
    },
    /// A list is longer than any real one.
    #[error("keyring has {count} {what}, the limit is {most}")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// Its length.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// Version 0, or it expires before it is issued.
    #[error(
        "keyring version {version}: versions start at 1, and it must expire after it is issued"
    )]
    BadTimes {
        /// Its version.
        version: u64,
    },
    /// The root asks for more signatures than it has keys.
    #[error("root threshold {threshold} is out of reach with {keys} keys")]
    Threshold {
        /// Signatures asked for.
        threshold: u32,
        /// Different keys.
        keys: usize,
    },
    /// A revoked key is in the root.
    #[error("root key {key} is revoked")]
    RootRevoked {
        /// The key.
        key: KeyId,
    },
    /// A revoked key doesn't come back.
    #[error("key {key} is revoked: make a new one")]
    KeyRevoked {
        /// The key.
        key: KeyId,
    },
    /// Two nodes, or a node and the root, have one key.
    #[error("key {key} is already in use: one key a node, one node a key")]
    KeyTaken {
        /// The key.
        key: KeyId,
    },
    /// The name is in use.
    #[error("node {node} already has a key: rotate or revoke it")]
    NodeTaken {
        /// The node.
        node: NodeId,
    },
    /// A federation has one cloud.
    #[error("both {first} and {second} have the role cloud: a federation has one")]
    TwoClouds {
        /// One of them.
        first: NodeId,
        /// Another.
        second: NodeId,
    },
    /// The node doesn't fit into the tree cloud, edge, device.
    #[error("node {node}: {why}")]
    Misplaced {
        /// The node.
        node: NodeId,
        /// The broken rule.
        why: &'static str,
    },
    /// The proof of possession is wrong.
    #[error("node {node} does not show that it holds its key: {source}")]
    Possession {
        /// The node.
        node: NodeId,
        /// The failed check.
        source: KeyError,
    },
    /// No such node with a living key.
    #[error("node {node} has no living key in this keyring")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// No node has this key, or it is revoked already.
    #[error("key {key} is no node's living key")]
    UnknownKey {
        /// The key.
        key: KeyId,
    },
    /// Meant for others.
    #[error("keyring is of federation {actual}, expected {expected}")]
    WrongFederation {
        /// Ours.
        expected: Name,
        /// Its.
        actual: Name,
    },
    /// An old or the same version; a repeat is nothing to worry about.
    #[error("keyring version {got} is not newer than {have}")]
    NotNewer {
        /// Version at hand.
        have: u64,
        /// Version offered.
        got: u64,
    },
    /// The threshold of a root isn't met.
    #[error("keyring needs {needed} signatures of the root of version {version}, found {found}")]
    TooFewSigners {
        /// Version whose root is meant.
        version: u64,
        /// Threshold.
        needed: u32,
        /// Signers among its keys.
        found: usize,
    },
    /// A key vanished, or a revocation was taken back.
    #[error("key {key} must be among the revoked ones: keys don't vanish and don't come back")]
    NotRevoked {
        /// The key.
        key: KeyId,
    },
}

impl KeyringError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownRole { .. } => "keyring_unknown_role",
            Self::TooMany { .. } => "keyring_too_many",
            Self::BadTimes { .. } => "keyring_bad_times",
            Self::Threshold { .. } => "keyring_threshold",
            Self::RootRevoked { .. } => "keyring_root_revoked",
            Self::KeyRevoked { .. } => "keyring_key_revoked",
            Self::KeyTaken { .. } => "keyring_key_taken",
            Self::NodeTaken { .. } => "keyring_node_taken",
            Self::TwoClouds { .. } => "keyring_two_clouds",
            Self::Misplaced { .. } => "keyring_misplaced",
            Self::Possession { .. } => "keyring_possession",
            Self::UnknownNode { .. } => "keyring_unknown_node",
            Self::UnknownKey { .. } => "keyring_unknown_key",
            Self::WrongFederation { .. } => "keyring_wrong_federation",
            Self::NotNewer { .. } => "keyring_not_newer",
            Self::TooFewSigners { .. } => "keyring_too_few_signers",
            Self::NotRevoked { .. } => "keyring_not_revoked",
        }
    }
}

const MAX_NODES: usize = 10_000;
const MAX_REVOKED: usize = 10_000;
const MAX_ROOT_KEYS: usize = 16;
const MAX_TIERS: usize = 16;

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
