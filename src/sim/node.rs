//! A node: its machine, its durable store, and what dies with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::broken::Broken;
use super::letter::Letter;
use super::nodes::Place;
use crate::ids::{Digest, Epoch, Name, NodeId, Version};
use crate::learn::{Layout, RateSchedule};
use crate::privacy::{Gate, Profile};
use crate::protocol::{
    Distils, Effect, Failover, FailoverConfig, FailoverView, Fetches, Held, Input, IslandTerms,
    Knows, Member, MemberConfig, Owner, Relay, RelayConfig, Round, RoundConfig, SecondEdge,
    ShareBounds, Slots, SlotsConfig, Timer,
};
#[cfg(test)]
use crate::protocol::{SlotOrder, SlotRefusal, SlotsView};
use crate::store::{MemoryStore, Store};
use crate::time::Now;
use crate::wire::{Kind, Manifest, Plan};

/// Small enough that little is needed to have two chunks.
pub(crate) const CHUNK_BYTES: u32 = 4096;

/// Which machine a node runs.
#[derive(Debug)]
pub(crate) enum Machine {
    Root(Box<Round>),
    /// A cloud that has a standby, or that standby.
    Failover(Box<Failover>),
    Relay(Box<Relay>),
    Device(Box<Member>),
}

/// A node of the network.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) parent: Option<(Place, NodeId)>,
    /// The other one of a cloud and its standby; of an edge, its parent's standby.
    pub(crate) peer: Option<(Place, NodeId)>,
    pub(crate) children: Arc<[Place]>,
    /// Where a device goes while its edge is away.
    pub(crate) second: Option<(Place, NodeId)>,
    /// Devices that come here while theirs is.
    pub(crate) guests: Arc<[Place]>,
    guest_names: BTreeSet<NodeId>,
    members: BTreeSet<NodeId>,
    pub(crate) store: MemoryStore,
    /// `None` while it is dead.
    pub(crate) machine: Option<Machine>,
    /// Which version it serves; `None` while it is dead.
    slots: Option<Box<Slots>>,
    /// Starts so far: what was begun in an earlier life ends nowhere.
    pub(crate) life: u32,
    pub(crate) timers: BTreeMap<Timer, u64>,
    pub(crate) fetches: Fetches,
    /// Steps that changed the store.
    pub(crate) steps: usize,
    /// Reasons for which no message reaches it.
    pub(crate) away: u32,
    /// When it sends again what waits for a receipt.
    pub(crate) resend_at: Option<u64>,
    /// Until it does so once more.
    pub(crate) resend_ms: u64,
    /// Whether it is planned that missing chunks are asked for again.
    pub(crate) looks_overdue: bool,
    /// When it last published its retained state again.
    pub(crate) republished_ms: Option<u64>,
    /// Arrival of the last message from its parent and to it, where nothing overtakes.
    pub(crate) last_arrival: [u64; 2],
    /// The broker that it shares with its children.
    pub(crate) broker: Broker,
}

/// What a broker keeps.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    /// Times that it forgot everything: what was on its way before is lost.
    pub(crate) lapses: u32,
    /// The owner's retained messages.
    pub(crate) retained: BTreeMap<Kind, Arc<Letter>>,
}

/// What all nodes of a network agree on.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) adapter: Vec<u8>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) plan: Plan,
    pub(crate) rounds: super::Rounds,
    pub(crate) federation: Name,
    pub(crate) model: Name,
    /// What nodes need for rounds of knowledge.
    pub(crate) knows: Option<Knows>,
    pub(crate) distils: Option<Distils>,
    /// How relays go on while the cloud is away.
    pub(crate) island: Option<IslandTerms>,
    /// How long a cloud counts as there after it was heard, where it has a standby.
    pub(crate) lease_ms: u64,
    /// How long a device waits before it goes to its second edge, where it has one.
    pub(crate) second_edge_after_ms: u64,
}

impl Node {
    pub(crate) fn new(id: NodeId, parent: Option<(Place, NodeId)>) -> Self {
        Self {
            id,
            parent,
            peer: None,
            children: Arc::new([]),
            second: None,
            guests: Arc::new([]),
            guest_names: BTreeSet::new(),
            members: BTreeSet::new(),
            store: MemoryStore::new(),
            machine: None,
            slots: None,
            life: 0,
            timers: BTreeMap::new(),
            fetches: Fetches::default(),
            steps: 0,
            away: 0,
            resend_at: None,
            resend_ms: 0,
            looks_overdue: false,
            republished_ms: None,
            last_arrival: [0; 2],
            broker: Broker::default(),
        }
    }

    /// Tells it who its children are.
    pub(crate) fn adopt(&mut self, children: &[(Place, NodeId)]) {
        self.children = children.iter().map(|(place, _)| *place).collect();
        self.members = children.iter().map(|(_, id)| id.clone()).collect();
    }

    pub(crate) fn take_in(&mut self, guests: &[(Place, NodeId)]) {
        self.guests = guests.iter().map(|(place, _)| *place).collect();
        self.guest_names = guests.iter().map(|(_, id)| id.clone()).collect();
    }

    /// Whether it is a cloud that has a standby, or that standby.
    pub(crate) fn is_paired(&self) -> bool {
        self.parent.is_none() && self.peer.is_some()
    }

    /// Whether that node may own its rounds: its parent, and the standby of that.
    pub(crate) fn is_below(&self, place: Place) -> bool {
        let mut above = self.parent.iter().chain(&self.peer).chain(&self.second);
        self.parent.is_some() && above.any(|(above, _)| *above == place)
    }

    /// Builds the machine from what the store holds. Start is recovery.
    ///
    /// # Errors
    /// [`Broken`] when the store can't be read: a machine must be able to read what it wrote.
    pub(crate) fn revive(&mut self, settings: &Settings) -> Result<(), Broken> {
        self.life += 1;
        self.store.put_blob(&settings.adapter)?;
        let restart = |what| Broken::new("restarts", format!("{}: {what}", self.id));
        let round = |owner| {
            let state = self.store.state(Round::PREFIX)?;
            let config = self.round_config(owner, settings);
            Round::new(config, &settings.adapter, &state).map_err(restart)
        };
        let member = |parent: &NodeId, relay| {
            let state = self.store.state(Member::PREFIX)?;
            let config = self.member_config(parent, relay, settings);
            Member::new(config, &state).map_err(restart)
        };
        let slots = SlotsConfig {
            base: BASE,
            untrained: Digest::of(&settings.adapter),
            checks: false,
            follow: false,
        };
        let state = self.store.state(Slots::KEY)?;
        let slots = Slots::new(slots, &state).map_err(restart)?;
        let machine = match (&self.parent, &self.peer) {
            (None, Some((place, peer))) => {
                Machine::Failover(Box::new(self.failover(*place, peer, settings)?))
            }
            (None, None) => Machine::Root(Box::new(round(Owner::Root)?)),
            (Some((_, parent)), _) if self.children.is_empty() => {
                Machine::Device(Box::new(member(parent, false)?))
            }
            (Some((_, parent)), _) => {
                let config = RelayConfig {
                    margin_ms: settings.rounds.relay_margin_ms,
                    split: None,
                    chunk_bytes: CHUNK_BYTES,
                    island: settings.island,
                };
                let state = self.store.state(Relay::PREFIX)?;
                let (member, round) = (member(parent, true)?, round(Owner::Relay)?);
                let relay = Relay::new(config, member, round, &state).map_err(restart)?;
                Machine::Relay(Box::new(relay))
            }
        };
        (self.machine, self.slots) = (Some(machine), Some(Box::new(slots)));
        Ok(())
    }

    fn failover(
        &self,
        place: Place,
        peer: &NodeId,
        settings: &Settings,
    ) -> Result<Failover, Broken> {
        let restart = |what| Broken::new("restarts", format!("{}: {what}", self.id));
        let round = self.round_config(Owner::Root, settings);
        let state = self.store.state(Round::PREFIX)?;
        let mut blobs = Vec::new();
        for digest in Failover::needs(&round, &settings.adapter, &state).map_err(restart)? {
            let bytes = self.store.blob(&digest)?;
            blobs.extend(bytes.map(|bytes| Manifest::of(&bytes, CHUNK_BYTES)));
        }
        let config = FailoverConfig {
            peer: peer.clone(),
            first: place != Place::CLOUD,
            lease_ms: settings.lease_ms,
            chunk_bytes: CHUNK_BYTES,
        };
        let own = self.store.state(Failover::PREFIX)?;
        Failover::new(config, round, &settings.adapter, &own, &state, blobs).map_err(restart)
    }

    /// Everything that isn't in the store is gone.
    pub(crate) fn die(&mut self) {
        self.machine = None;
        self.slots = None;
        self.timers.clear();
        self.fetches = Fetches::default();
        (self.resend_at, self.looks_overdue, self.republished_ms) = (None, false, None);
    }

    pub(crate) fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let starts = matches!(input, Input::Start);
        let effects = match &mut self.machine {
            None => Vec::new(),
            Some(Machine::Root(round)) => round.step(now, input),
            Some(Machine::Failover(failover)) => failover.step(now, input),
            Some(Machine::Relay(relay)) => relay.step(now, input),
            Some(Machine::Device(member)) => member.step(now, input),
        };
        match &mut self.slots {
            None => Vec::new(),
            Some(slots) if starts => slots.start(effects),
            Some(slots) => slots.take(effects),
        }
    }

    /// Whether it runs, and no later life than this one.
    pub(crate) fn lives(&self, life: u32) -> bool {
        self.machine.is_some() && self.life == life
    }

    /// An operator's word about the version that it serves.
    #[cfg(test)]
    pub(crate) fn order(&mut self, order: SlotOrder) -> Result<Vec<Effect>, SlotRefusal> {
        self.slots.as_mut().map_or(Ok(Vec::new()), |slots| slots.order(order))
    }

    /// Which version it serves, `None` while it is dead.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> Option<SlotsView> {
        self.slots.as_deref().map(Slots::view)
    }

    /// What a cloud with a standby shows, or that standby; `None` while it is dead.
    pub(crate) fn failover_view(&self) -> Option<FailoverView> {
        match &self.machine {
            Some(Machine::Failover(failover)) => Some(failover.view()),
            _ => None,
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

    /// What its rounds hold, where it owns some and lives.
    pub(crate) fn held(&self) -> Option<Held> {
        match self.machine.as_ref()? {
            Machine::Root(round) => Some(round.held()),
            Machine::Failover(failover) => failover.held(),
            Machine::Relay(relay) => Some(relay.held()),
            Machine::Device(_) => None,
        }
    }

    /// Blobs that its machine wants kept.
    pub(crate) fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep = match &self.machine {
            None => BTreeSet::new(),
            Some(Machine::Root(round)) => round.blobs(),
            Some(Machine::Failover(failover)) => failover.blobs(),
            Some(Machine::Relay(relay)) => relay.blobs(),
            Some(Machine::Device(member)) => member.blobs(),
        };
        keep.extend(self.slots.as_deref().map(Slots::blobs).unwrap_or_default());
        keep
    }

    fn round_config(&self, owner: Owner, settings: &Settings) -> RoundConfig {
        let rounds = settings.rounds;
        RoundConfig {
            owner,
            members: self.members.clone(),
            guests: self.guest_names.clone(),
            quorum: rounds.quorum,
            deadline_ms: rounds.deadline_ms,
            republish_ms: rounds.republish_ms,
            pause_ms: rounds.pause_ms,
            versions: rounds.count,
            schedule: RateSchedule::Constant,
            max_staleness: rounds.late_max_staleness,
            chunk_bytes: CHUNK_BYTES,
            model: settings.model.clone(),
            base: BASE,
            plan: settings.plan.clone(),
            bounds: ShareBounds::default(),
            split: None,
            distils: settings.distils,
            triggers: None,
        }
    }

    fn member_config(&self, parent: &NodeId, relay: bool, settings: &Settings) -> MemberConfig {
        MemberConfig {
            federation: settings.federation.clone(),
            me: self.id.clone(),
            parent: parent.clone(),
            standby: self.peer.as_ref().map(|(_, standby)| standby.clone()),
            second: self.second.as_ref().map(|(_, edge)| SecondEdge {
                edge: edge.clone(),
                after_ms: settings.second_edge_after_ms,
            }),
            model: settings.model.clone(),
            base: BASE,
            layout: settings.layout.clone(),
            relay,
            gate: Gate::from(Profile::Lab),
            resync_ms: settings.rounds.resync_ms,
            chunk_bytes: CHUNK_BYTES,
            knows: settings.knows.clone(),
            split: false,
        }
    }
}

/// Highest epoch of a parent that a node remembers, from the value that it keeps.
pub(crate) const PARENT_EPOCH: &str = "member/parent_epoch";

/// Whether a device is with its second edge, likewise.
pub(crate) const AWAY: &str = "member/away";

/// Decodes that value.
pub(crate) fn with_second(value: &[u8]) -> Option<bool> {
    crate::wire::decode(value, 16).ok()
}

/// Decodes the highest epoch of a parent.
pub(crate) fn parent_epoch(value: &[u8]) -> Option<Epoch> {
    crate::wire::decode(value, 16).ok()
}

const BASE: Digest = Digest([1; 32]);
