//! A node: its machine, its durable store, and what dies with it.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Digest, NodeId, Version};
use crate::protocol::{
    Distils, Effect, Failover, FailoverConfig, Fetches, Input, Member, Owner, Relay, RelayConfig,
    Round, Timer, fixture,
};
use crate::store::{MemoryStore, Store};
use crate::time::Now;
use crate::wire::{Manifest, Plan};

/// How long an owner counts as there after it was heard.
pub(crate) const LEASE_MS: u64 = 8_000;

/// Which machine a node runs.
#[derive(Debug)]
pub(crate) enum Machine {
    Root(Box<Round>),
    Failover(Box<Failover>),
    Relay(Box<Relay>),
    Device(Box<Member>),
}

/// A node of the network.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) parent: Option<NodeId>,
    /// The other one of an owner and its standby; of a member, its parent's standby.
    pub(crate) peer: Option<NodeId>,
    pub(crate) children: BTreeSet<NodeId>,
    pub(crate) store: MemoryStore,
    /// `None` while it is dead.
    pub(crate) machine: Option<Machine>,
    /// Starts so far: what was begun in an earlier life ends nowhere.
    pub(crate) life: u64,
    pub(crate) timers: BTreeMap<Timer, u64>,
    pub(crate) fetches: Fetches,
    /// Steps that changed the store.
    pub(crate) steps: usize,
}

/// What all nodes of a network agree on.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) adapter: Vec<u8>,
    pub(crate) plan: Plan,
    pub(crate) versions: Version,
}

impl Node {
    pub(crate) fn new(id: NodeId, parent: Option<NodeId>, children: BTreeSet<NodeId>) -> Self {
        Self {
            id,
            parent,
            peer: None,
            children,
            store: MemoryStore::new(),
            machine: None,
            life: 0,
            timers: BTreeMap::new(),
            fetches: Fetches::default(),
            steps: 0,
        }
    }

    /// Builds the machine from what the store holds. Start is recovery.
    pub(crate) fn revive(&mut self, settings: &Settings) {
        self.life += 1;
        self.store.put_blob(&settings.adapter).unwrap();
        let of = |prefix: &str| self.store.state(prefix).unwrap();
        let member = |parent: &NodeId, relay| {
            let mut config = fixture::member_config(&self.id, parent, relay);
            config.layout = fixture::layout_of(&settings.adapter);
            config.knows = Some(fixture::knows(&settings.adapter));
            config.standby = self.peer.clone();
            Member::new(config, &of(Member::PREFIX)).unwrap()
        };
        let round_config = |owner| {
            let plan = settings.plan.clone();
            let mut config = fixture::round_config(owner, &self.children, plan);
            config.versions = settings.versions;
            config.distils = Some(Distils { steps: 4, learning_rate: 0.1 });
            config
        };
        let round =
            |owner| Round::new(round_config(owner), &settings.adapter, &of(Round::PREFIX)).unwrap();
        let failover = |peer: &NodeId| {
            let (config, state) = (round_config(Owner::Root), of(Round::PREFIX));
            let needs = Failover::needs(&config, &settings.adapter, &state).unwrap();
            let here = |digest: &Digest| self.store.blob(digest).unwrap();
            let here = needs.iter().filter_map(here);
            let blobs = here.map(|bytes| Manifest::of(&bytes, fixture::CHUNK_BYTES)).collect();
            let pair = FailoverConfig {
                peer: peer.clone(),
                first: self.id.as_str() == "cloud",
                lease_ms: LEASE_MS,
                chunk_bytes: fixture::CHUNK_BYTES,
            };
            let own = of(Failover::PREFIX);
            Failover::new(pair, config, &settings.adapter, &own, &state, blobs).unwrap()
        };
        self.machine = Some(match (&self.parent, &self.peer) {
            (None, Some(peer)) => Machine::Failover(Box::new(failover(peer))),
            (None, None) => Machine::Root(Box::new(round(Owner::Root))),
            (Some(parent), _) if self.children.is_empty() => {
                Machine::Device(Box::new(member(parent, false)))
            }
            (Some(parent), _) => {
                let config = RelayConfig {
                    parent: parent.clone(),
                    margin_ms: 5_000,
                    split: None,
                    chunk_bytes: fixture::CHUNK_BYTES,
                };
                let relay = Relay::new(config, member(parent, true), round(Owner::Relay));
                Machine::Relay(Box::new(relay))
            }
        });
    }

    /// Everything that isn't in the store is gone.
    pub(crate) fn die(&mut self) {
        self.machine = None;
        self.timers.clear();
        self.fetches = Fetches::default();
    }

    pub(crate) fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        match &mut self.machine {
            None => Vec::new(),
            Some(Machine::Root(round)) => round.step(now, input),
            Some(Machine::Failover(failover)) => failover.step(now, input),
            Some(Machine::Relay(relay)) => relay.step(now, input),
            Some(Machine::Device(member)) => member.step(now, input),
        }
    }

    /// The version that it has, `None` while it is dead.
    pub(crate) fn version(&self) -> Option<Version> {
        match self.machine.as_ref()? {
            Machine::Root(round) => Some(round.view().version),
            Machine::Failover(failover) => Some(failover.view().round.version),
            Machine::Relay(relay) => Some(relay.version()),
            Machine::Device(member) => Some(member.version()),
        }
    }

    /// Blobs that its machine wants kept.
    pub(crate) fn blobs(&self) -> BTreeSet<Digest> {
        match &self.machine {
            None => BTreeSet::new(),
            Some(Machine::Root(round)) => round.blobs(),
            Some(Machine::Failover(failover)) => failover.blobs(),
            Some(Machine::Relay(relay)) => relay.blobs(),
            Some(Machine::Device(member)) => member.blobs(),
        }
    }
}
