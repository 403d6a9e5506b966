//! A whole plant on in-memory buses under tokio's paused clock: one cloud, sites with devices, their
//! keys, keyring and stores. Learning is a toy, so that all is exact.
//!
//! Each test binary uses a part of it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use gaisnet::actors::{Figures, InlineBench};
use gaisnet::bus::Bus;
use gaisnet::bus::memory::{Faults, MemoryBroker};
use gaisnet::ids::{BootId, Digest, Name, NodeId, Side};
use gaisnet::learn::{
    ClassLogits, Control, LearnError, Learner, Progress, Tensor, TensorSet, TrainJob, Trained,
    Windows,
};
use gaisnet::ledger::{Entry, Event};
use gaisnet::node::{Identity, Learning, Node, NodeParts, SystemClock};
use gaisnet::privacy::{Gate, Profile};
use gaisnet::protocol::update;
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::telegram::ModelMeta;
use gaisnet::store::{MemoryStore, Store};
use gaisnet::time::{Clock, Wall};
use gaisnet::topic::Prefix;
use gaisnet::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use gaisnet::trust::keys::SigningKey;
use gaisnet::wire::{Coding, Plan};

pub(crate) const START: Wall = Wall(1_800_000_000_000);
pub(crate) const DAY_MS: u64 = 86_400_000;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Moves each weight towards a target of its own data, half the way: a mean of means is exact.
pub(crate) struct Toy(f32);

impl Learner for Toy {
    fn initial_adapter(&self) -> TensorSet {
        adapter(0.0)
    }

    fn train(
        &mut self,
        data: &Windows,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        progress(Progress { step: job.steps, loss: 1.0 });
        let start = job.start.tensors()[0].data[0];
        Ok(Trained {
            adapter: adapter(start + (self.0 - start) / 2.0),
            class_logits: ClassLogits { mean_logits: vec![0.5; 4], counts: vec![60, 60] },
            num_examples: data.num_examples() as u64,
            steps: job.steps,
            loss_first: 1.0,
            loss_last: 0.5,
        })
    }
}

pub(crate) fn adapter(value: f32) -> TensorSet {
    let tensor = Tensor { name: "head.weight".into(), shape: vec![4], data: vec![value; 4] };
    TensorSet::new(vec![tensor]).unwrap()
}

/// Where a node stands.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) node: NodeId,
    pub(crate) site: Name,
    pub(crate) line: Name,
    pub(crate) parent: Option<NodeId>,
    pub(crate) role: Role,
}

/// One cloud, `sites` edges, `devices` a site, and what outlives a node: keys and stores.
pub(crate) struct Plant {
    pub(crate) federation_bus: MemoryBroker,
    pub(crate) site_buses: BTreeMap<Name, MemoryBroker>,
    pub(crate) places: Vec<Place>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) stores: BTreeMap<NodeId, MemoryStore>,
    pub(crate) running: BTreeMap<NodeId, Node>,
    /// One for all: a node that starts again doesn't go back in time.
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) boots: u8,
    pub(crate) versions: u64,
}

impl Plant {
    pub(crate) fn new(sites: usize, devices: usize, versions: u64, faults: &Faults) -> Self {
        let mut places = vec![Place {
            node: name("cloud"),
            site: name("_"),
            line: name("_"),
            parent: None,
            role: Role::Cloud,
        }];
        let mut site_buses = BTreeMap::new();
        for s in 0..sites {
            let site = name(&format!("site{s}"));
            let edge = name(&format!("edge{s}"));
            site_buses.insert(site.clone(), MemoryBroker::new(faults.clone()));
            places.push(Place {
                node: edge.clone(),
                site: site.clone(),
                line: name("_"),
                parent: Some(name("cloud")),
                role: Role::Edge,
            });
            for d in 0..devices {
                places.push(Place {
                    node: name(&format!("dev{s}-{d}")),
                    site: site.clone(),
                    line: name("line"),
                    parent: Some(edge.clone()),
                    role: Role::Device,
                });
            }
        }
        let keyring = Arc::new(keyring(&places));
        let stores = places.iter().map(|p| (p.node.clone(), MemoryStore::new())).collect();
        Self {
            federation_bus: MemoryBroker::new(faults.clone()),
            site_buses,
            places,
            keyring,
            stores,
            running: BTreeMap::new(),
            clock: Arc::new(SystemClock::starting_at(START)),
            boots: 0,
            versions,
        }
    }

    pub(crate) fn start_all(&mut self) {
        let nodes: Vec<NodeId> = self.places.iter().map(|place| place.node.clone()).collect();
        for node in &nodes {
            self.start(node);
        }
    }

    pub(crate) fn start(&mut self, node: &NodeId) {
        let parts = self.parts(node);
        self.run(parts);
    }

    /// Starts a node of these parts.
    pub(crate) fn run(&mut self, parts: NodeParts) {
        let me = parts.identity.me.clone();
        self.running.insert(me, gaisnet::node::start(parts).unwrap());
    }

    /// What a node is started from, connected already: a test may put other things in the place of
    /// some.
    pub(crate) fn parts(&mut self, node: &NodeId) -> NodeParts {
        self.boots += 1;
        let at = self.places.iter().position(|place| place.node == *node).unwrap();
        let place = self.places[at].clone();
        let me = place.node.clone();
        let mut links: BTreeMap<Side, _> = BTreeMap::new();
        for (side, broker) in self.brokers(&place) {
            let (bus, events) = broker.connect(me.as_str(), None);
            let bus: Arc<dyn Bus> = Arc::new(bus);
            links.insert(side, (bus, events));
        }
        let train = (place.role == Role::Device).then(|| {
            let learner: Box<dyn Learner> = Box::new(Toy(at as f32));
            (learner, Windows { x: vec![0.0; 120], len: 1, labels: vec![0; 120], classes: 2 })
        });
        NodeParts {
            identity: Identity {
                prefix: Prefix::new("gaisnet").unwrap(),
                me: me.clone(),
                key: key_of(&me),
                keyring: Arc::clone(&self.keyring),
                boot: BootId([self.boots; 16]),
                config: Digest([0; 32]),
            },
            learning: learning(self.versions),
            store: Box::new(self.stores[&me].clone()),
            links,
            clock: Arc::clone(&self.clock),
            bench: Box::new(InlineBench::new(me.clone(), train)),
            answering: None,
            policy: CommandPolicy::new(["status", "pause", "resume", "round.start"]).unwrap(),
            figures: Arc::new(Figures::default()),
            resources: Arc::new(|| (0.0, 0.0)),
            fatal: Arc::new(|what| panic!("a node gave up: {what}")),
        }
    }

    /// The brokers that a node of this place has links to.
    pub(crate) fn brokers(&self, place: &Place) -> Vec<(Side, MemoryBroker)> {
        let federation = || self.federation_bus.clone();
        let site = || self.site_buses[&place.site].clone();
        match place.role {
            Role::Cloud => vec![(Side::Down, federation())],
            Role::Edge => vec![(Side::Down, site()), (Side::Up, federation())],
            _ => vec![(Side::Up, site())],
        }
    }

    pub(crate) async fn versions(&self) -> BTreeMap<NodeId, u64> {
        let mut out = BTreeMap::new();
        for (node, running) in &self.running {
            out.insert(node.clone(), running.view().await.unwrap().version);
        }
        out
    }

    /// Lets virtual time pass until every node has the last version.
    pub(crate) async fn converge(&self, minutes: u64) {
        for _ in 0..minutes * 60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let versions = self.versions().await;
            if versions.values().all(|version| *version == self.versions) {
                return;
            }
        }
        panic!("no convergence: {:?}", self.versions().await);
    }

    pub(crate) fn entries(&self, node: &str) -> Vec<Event> {
        let store = &self.stores[&name(node)];
        let all = store.entries(0, store.num_entries().unwrap()).unwrap();
        all.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
    }

    /// An owner closes each round once, and counts each of its accepted updates at most once.
    pub(crate) fn check_owner(&self, node: &str) {
        let (mut committed, mut accepted) = (BTreeSet::new(), BTreeSet::new());
        for event in self.entries(node) {
            match event {
                Event::RoundCommit { round, .. } => {
                    assert!(committed.insert(round), "{node} committed round {round} twice");
                }
                Event::Accept { update, .. } => {
                    assert!(accepted.insert(update), "{node} accepted {update} twice");
                }
                Event::Equivocation { sender, .. } => panic!("{sender} equivocated at {node}"),
                _ => {}
            }
        }
        assert!(!committed.is_empty(), "{node} committed nothing");
    }
}

pub(crate) fn key_of(node: &NodeId) -> SigningKey {
    SigningKey::generate(&Digest::of(node.as_str().as_bytes()).0)
}

/// The one key of the root.
pub(crate) fn root_key() -> SigningKey {
    SigningKey::generate(&[9; 32])
}

pub(crate) fn keyring(places: &[Place]) -> Keyring {
    let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*root_key().public()] };
    let until = START.plus_ms(365 * DAY_MS);
    let mut keyring = Keyring::first(name("fed"), root, START, until).unwrap();
    let operator = Place {
        node: name("ops"),
        site: name("_"),
        line: name("_"),
        parent: None,
        role: Role::Operator,
    };
    for place in places.iter().chain([&operator]) {
        let key = key_of(&place.node);
        let roles = BTreeSet::from([place.role]);
        let proof = key.prove_possession(&name("fed"), &place.node, &roles);
        let entry = NodeEntry {
            node: place.node.clone(),
            site: place.site.clone(),
            line: place.line.clone(),
            roles,
            parent: place.parent.clone(),
            key: *key.public(),
        };
        keyring = keyring.enrol(&Enrolment { entry, proof }, START, until).unwrap();
    }
    keyring
}

pub(crate) fn learning(versions: u64) -> Learning {
    let packed = update::pack(&adapter(0.0), Coding::F32, 0).unwrap();
    Learning {
        model: ModelMeta {
            name: name("toy"),
            version: 0,
            window: 1,
            rate_hz: 1.0,
            labels: vec!["a".into(), "b".into()],
        },
        base: Digest([7; 32]),
        adapter: packed,
        plan: Plan {
            adapter_delta: true,
            class_logits: true,
            local_steps: 16,
            batch_size: 8,
            learning_rate: 0.1,
            prox_mu: 0.0,
            distill_lambda: 0.0,
            rank: 4,
            alpha: 8.0,
            coding: Coding::F32,
            block: 0,
            min_cell: 20,
            seed: 1,
        },
        gate: Gate::from(Profile::Standard),
        quorum: 0.6,
        deadline_ms: 60_000,
        relay_margin_ms: 20_000,
        republish_ms: 5_000,
        pause_ms: 1_000,
        versions,
        cosine: false,
        max_staleness: 10,
        resync_ms: 15_000,
        chunk_bytes: 65_536,
    }
}

/// Runs a test on an actix system whose clock stands still unless everyone waits.
pub(crate) fn paused<F: Future<Output = ()>>(test: F) {
    let system = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    });
    system.block_on(test);
}

/// Long enough for everything that was sent to be done.
pub(crate) async fn a_moment() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}
