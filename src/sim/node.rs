//! A node: its machine, its durable store, and what dies with it.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Digest, NodeId, Version};
use crate::protocol::{
    Distils, Effect, Fetches, Input, Member, Owner, Relay, RelayConfig, Round, SlotOrder,
    SlotRefusal, Slots, SlotsConfig, SlotsView, Timer, fixture,
};
use crate::store::{MemoryStore, Store};
use crate::time::Now;
use crate::wire::Plan;

/// Which machine a node runs.
#[derive(Debug)]
pub(crate) enum Machine {
    Root(Box<Round>),
    Relay(Box<Relay>),
    Device(Box<Member>),
}

/// A node of the network.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) parent: Option<NodeId>,
    pub(crate) children: BTreeSet<NodeId>,
    pub(crate) store: MemoryStore,
    /// `None` while it is dead.
    pub(crate) machine: Option<Machine>,
    /// Which version it serves; `None` while it is dead.
    slots: Option<Slots>,
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
            children,
            store: MemoryStore::new(),
            machine: None,
            slots: None,
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
        let round = |owner| {
            let plan = settings.plan.clone();
            let mut config = fixture::round_config(owner, &self.children, plan);
            config.versions = settings.versions;
            config.distils = Some(Distils { steps: 4, learning_rate: 0.1 });
            Round::new(config, &settings.adapter, &of(Round::PREFIX)).unwrap()
        };
        let member = |parent: &NodeId, relay| {
            let mut config = fixture::member_config(&self.id, parent, relay);
            config.layout = fixture::layout_of(&settings.adapter);
            config.knows = Some(fixture::knows(&settings.adapter));
            Member::new(config, &of(Member::PREFIX)).unwrap()
        };
        let slots = SlotsConfig {
            base: Digest([1; 32]),
            untrained: Digest::of(&settings.adapter),
            checks: false,
        };
        self.slots = Some(Slots::new(slots, &of(Slots::KEY)).unwrap());
        self.machine = Some(match &self.parent {
            None => Machine::Root(Box::new(round(Owner::Root))),
            Some(parent) if self.children.is_empty() => {
                Machine::Device(Box::new(member(parent, false)))
            }
            Some(parent) => {
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
        self.slots = None;
        self.timers.clear();
        self.fetches = Fetches::default();
    }

    pub(crate) fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let starts = matches!(input, Input::Start);
        let effects = match &mut self.machine {
            None => Vec::new(),
            Some(Machine::Root(round)) => round.step(now, input),
            Some(Machine::Relay(relay)) => relay.step(now, input),
            Some(Machine::Device(member)) => member.step(now, input),
        };
        match &mut self.slots {
            None => Vec::new(),
            Some(slots) if starts => slots.start(effects),
            Some(slots) => slots.take(effects),
        }
    }

    /// An operator's word about the version that it serves.
    pub(crate) fn order(&mut self, order: SlotOrder) -> Result<Vec<Effect>, SlotRefusal> {
        self.slots.as_mut().map_or(Ok(Vec::new()), |slots| slots.order(order))
    }

    /// Which version it serves, `None` while it is dead.
    pub(crate) fn slots(&self) -> Option<SlotsView> {
        self.slots.as_ref().map(Slots::view)
    }

    /// The version that it has, `None` while it is dead.
    pub(crate) fn version(&self) -> Option<Version> {
        match self.machine.as_ref()? {
            Machine::Root(round) => Some(round.view().version),
            Machine::Relay(relay) => Some(relay.version()),
            Machine::Device(member) => Some(member.version()),
        }
    }

    /// Blobs that its machine wants kept.
    pub(crate) fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep = match &self.machine {
            None => BTreeSet::new(),
            Some(Machine::Root(round)) => round.blobs(),
            Some(Machine::Relay(relay)) => relay.blobs(),
            Some(Machine::Device(member)) => member.blobs(),
        };
        keep.extend(self.slots.as_ref().map(Slots::blobs).unwrap_or_default());
        keep
    }
}
