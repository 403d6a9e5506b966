//! A small federation for tests: places, keys, a learner whose arithmetic is exact, and what a node
//! is made of. Over the in-memory bus it is a [`Plant`]; tests with other buses or stores take
//! [`Members`] and make the rest themselves.
//!
//! Each test binary that uses it names it with `#[path]`, since not all have the feature `mqtt` that
//! the rest of this folder needs.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gaisnet::actors::{Bounds, Figures, InlineBench};
use gaisnet::bus::memory::{Faults, MemoryBroker};
use gaisnet::bus::{Bus, BusEvent};
use gaisnet::ids::{BootId, Digest, Name, NodeId, Side};
use gaisnet::learn::{
    ClassLogits, Control, Examples, LearnError, Learner, Progress, Tensor, TensorSet, TrainJob,
    Trained, Windows,
};
use gaisnet::ledger::{Entry, Event};
use gaisnet::node::{Identity, Learning, Node, NodeParts, SystemClock};
use gaisnet::privacy::{Gate, Profile};
use gaisnet::protocol::{ShareBounds, update};
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::telegram::ModelMeta;
use gaisnet::store::{MemoryStore, Store};
use gaisnet::time::{Clock, Wall};
use gaisnet::topic::{Branch, CommandName, Prefix};
use gaisnet::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use gaisnet::trust::keys::SigningKey;
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Body, Coding, Command, Plan};
use tokio::sync::mpsc;

pub(crate) const START: Wall = Wall(1_800_000_000_000);
pub(crate) const DAY_MS: u64 = 86_400_000;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Moves each weight towards a target of its own data, half the way: a mean of means is exact.
pub(crate) struct Toy(pub(crate) f32);

impl Learner for Toy {
    fn initial_adapter(&self) -> TensorSet {
        adapter(0.0)
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        progress(Progress { step: job.steps, loss: 1.0 });
        let start = job.start.tensors()[0].data[0];
        let adapter = adapter(start + (self.0 - start) / 2.0);
        Ok(Trained {
            class_logits: ClassLogits { mean_logits: vec![0.5; 4], counts: vec![60, 60] },
            steps: job.steps,
            ..Trained::of(adapter, data.num_examples(), &[1.0, 0.5])
        })
    }
}

/// A device's data.
pub(crate) fn windows() -> Examples {
    Windows { x: vec![0.0; 120], len: 1, labels: vec![0; 120], classes: 2 }.into()
}

pub(crate) fn adapter(value: f32) -> TensorSet {
    let tensor = Tensor { name: "head.weight".into(), shape: vec![4], data: vec![value; 4] };
    TensorSet::new(vec![tensor]).unwrap()
}

/// Where a node is and what it does.
pub(crate) struct Place {
    pub(crate) node: NodeId,
    pub(crate) site: Name,
    pub(crate) line: Name,
    pub(crate) parent: Option<NodeId>,
    pub(crate) role: Role,
}

impl Place {
    fn new(node: &str, site: &str, line: &str, parent: Option<&str>, role: Role) -> Self {
        let (node, site, line) = (name(node), name(site), name(line));
        Self { node, site, line, parent: parent.map(name), role }
    }
}

/// Links of a node with their events.
pub(crate) type Links = BTreeMap<Side, (Arc<dyn Bus>, mpsc::Receiver<BusEvent>)>;

/// One cloud, `sites` edges, `devices` a site, and their keyring.
pub(crate) struct Members {
    pub(crate) places: Vec<Place>,
    pub(crate) keyring: Arc<Keyring>,
}

impl Members {
    pub(crate) fn new(sites: usize, devices: usize) -> Self {
        let mut places = vec![Place::new("cloud", "_", "_", None, Role::Cloud)];
        for s in 0..sites {
            let (site, edge) = (format!("site{s}"), format!("edge{s}"));
            places.push(Place::new(&edge, &site, "_", Some("cloud"), Role::Edge));
            for d in 0..devices {
                let device = format!("dev{s}-{d}");
                places.push(Place::new(&device, &site, "line", Some(&edge), Role::Device));
            }
        }
        let keyring = Arc::new(keyring(&places));
        Self { places, keyring }
    }

    /// The same with `cloud-2`, which stands by for the cloud.
    pub(crate) fn with_standby(sites: usize, devices: usize) -> Self {
        let mut places = Self::new(sites, devices).places;
        places.push(Place::new("cloud-2", "_", "_", None, Role::Cloud));
        let keyring = Arc::new(keyring(&places));
        Self { places, keyring }
    }

    /// A cloud and one site with two edges, `devices` each, which go to the other edge while theirs is away.
    pub(crate) fn with_second_edges(devices: usize) -> Self {
        let mut places = Self::new(2, devices).places;
        for place in places.iter_mut().filter(|place| place.role != Role::Cloud) {
            place.site = name("site0");
        }
        let (mut keyring, [one, two]) = (keyring(&places), ["edge0", "edge1"].map(name));
        let until = START.plus_ms(365 * DAY_MS);
        for (edge, second) in [(&one, &two), (&two, &one)] {
            keyring = keyring.with_second_edge(edge, Some(second), START, until).unwrap();
        }
        Self { places, keyring: Arc::new(keyring) }
    }

    pub(crate) fn place(&self, node: &NodeId) -> &Place {
        self.places.iter().find(|place| place.node == *node).unwrap()
    }

    /// Everything that `node` is made of, for its start number `boot`.
    pub(crate) fn parts(
        &self,
        node: &NodeId,
        boot: u8,
        learning: Learning,
        store: Box<dyn Store>,
        links: Links,
    ) -> NodeParts {
        let at = self.places.iter().position(|place| place.node == *node).unwrap();
        let train = (self.places[at].role == Role::Device).then(|| {
            let learner: Box<dyn Learner> = Box::new(Toy(at as f32));
            (learner, windows())
        });
        NodeParts {
            identity: Identity {
                prefix: Prefix::new("gaisnet").unwrap(),
                me: node.clone(),
                key: key_of(node),
                keyring: Arc::clone(&self.keyring),
                boot: BootId([boot; 16]),
                config: Digest([0; 32]),
            },
            learning,
            store,
            links,
            clock: Arc::new(SystemClock::starting_at(START)),
            bench: Box::new(InlineBench::new(node.clone(), train)),
            answering: None,
            policy: CommandPolicy::new(["status", "pause", "resume", "round.start"]).unwrap(),
            figures: Arc::new(Figures::default()),
            resources: Arc::new(|| (0.0, 0.0)),
            bounds: Bounds::default(),
            adopt: None,
            bases: None,
            rollout: gaisnet::node::RolloutTerms::default(),
            book: gaisnet::scada::answer_book::BookLimits::default(),
            drift: None,
            fatal: Arc::new(|what| panic!("a node gave up: {what}")),
        }
    }
}

/// A federation on the in-memory bus, and what outlives a node: keys and stores.
pub(crate) struct Plant {
    pub(crate) federation_bus: MemoryBroker,
    pub(crate) site_buses: BTreeMap<Name, MemoryBroker>,
    pub(crate) members: Members,
    pub(crate) stores: BTreeMap<NodeId, MemoryStore>,
    pub(crate) running: BTreeMap<NodeId, Node>,
    /// One for all: a node that starts again doesn't go back in time.
    pub(crate) clock: Arc<dyn Clock>,
    boots: u8,
    pub(crate) versions: u64,
    /// Why nodes gave up, for a test that wants one to; without it, giving up fails the test.
    pub(crate) gave_up: Option<Arc<Mutex<Vec<String>>>>,
}

impl Plant {
    pub(crate) fn new(sites: usize, devices: usize, versions: u64, faults: &Faults) -> Self {
        Self::of(Members::new(sites, devices), sites, versions, faults)
    }

    pub(crate) fn of(members: Members, sites: usize, versions: u64, faults: &Faults) -> Self {
        let site = |s| (name(&format!("site{s}")), MemoryBroker::new(faults.clone()));
        let store = |place: &Place| (place.node.clone(), MemoryStore::new());
        Self {
            federation_bus: MemoryBroker::new(faults.clone()),
            site_buses: (0..sites).map(site).collect(),
            stores: members.places.iter().map(store).collect(),
            members,
            running: BTreeMap::new(),
            clock: Arc::new(SystemClock::starting_at(START)),
            boots: 0,
            versions,
            gave_up: None,
        }
    }

    pub(crate) fn start_all(&mut self) {
        let nodes: Vec<NodeId> = self.members.places.iter().map(|p| p.node.clone()).collect();
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
        self.parts_as(node.as_str(), node)
    }

    /// The same under another name at the brokers.
    pub(crate) fn parts_as(&mut self, client: &str, node: &NodeId) -> NodeParts {
        self.boots += 1;
        let place = self.members.place(node);
        let mut links = Links::new();
        let mut link = |side: Side, broker: &MemoryBroker| {
            let (bus, events) = broker.connect(client, None);
            links.insert(side, (Arc::new(bus), events));
        };
        match place.role {
            Role::Cloud => link(Side::Down, &self.federation_bus),
            Role::Edge => {
                link(Side::Down, &self.site_buses[&place.site]);
                link(Side::Up, &self.federation_bus);
            }
            _ => link(Side::Up, &self.site_buses[&place.site]),
        }
        let store = Box::new(self.stores[node].clone());
        let learning = learning(self.versions);
        let mut parts = self.members.parts(node, self.boots, learning, store, links);
        parts.clock = Arc::clone(&self.clock);
        if let Some(list) = self.gave_up.clone() {
            parts.fatal = Arc::new(move |what| list.lock().unwrap().push(what.to_owned()));
        }
        parts
    }

    /// Ends a node in order and starts it again, from its store alone.
    pub(crate) async fn restart(&mut self, node: &str) {
        self.running.remove(&name(node)).unwrap().stop("test", 0).await;
        self.start(&name(node));
        tokio::time::sleep(Duration::from_secs(2)).await;
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
        events(&self.stores[&name(node)])
    }

    pub(crate) fn check_owner(&self, node: &str) {
        check_owner(node, self.entries(node));
    }
}

/// What a ledger tells, in order.
pub(crate) fn events(store: &dyn Store) -> Vec<Event> {
    let all = store.entries(0, store.num_entries().unwrap()).unwrap();
    all.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
}

/// An owner closes each round once, and counts each of its accepted updates at most once.
pub(crate) fn check_owner(node: &str, events: Vec<Event>) {
    let (mut committed, mut accepted) = (BTreeSet::new(), BTreeSet::new());
    for event in events {
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

pub(crate) fn key_of(node: &NodeId) -> SigningKey {
    SigningKey::generate(&Digest::of(node.as_str().as_bytes()).0)
}

/// The key that signs the keyring.
pub(crate) fn root_key() -> SigningKey {
    SigningKey::generate(&[9; 32])
}

pub(crate) fn keyring(places: &[Place]) -> Keyring {
    let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*root_key().public()] };
    let until = START.plus_ms(365 * DAY_MS);
    let mut keyring = Keyring::first(name("fed"), root, START, until).unwrap();
    let operator = Place::new("ops", "_", "_", None, Role::Operator);
    let approver = Place::new("anna", "_", "_", None, Role::Approver);
    for place in places.iter().chain([&operator, &approver]) {
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
        let new = Enrolment { entry, proof };
        let cloud = keyring.node(&name("cloud")).map(|cloud| cloud.node.clone());
        keyring = match cloud.filter(|_| place.role == Role::Cloud) {
            Some(cloud) => keyring.enrol_standby(&new, &cloud, START, until).unwrap(),
            None => keyring.enrol(&new, START, until).unwrap(),
        };
    }
    keyring
}

/// Signs a command of `by` for the cloud, as `gaisnet cmd sign` would: topic and bytes.
pub(crate) fn signed(by: &str, command: &str) -> (String, Vec<u8>) {
    let prefix = || Prefix::new("gaisnet").unwrap();
    let branch = |node: &str| Branch {
        prefix: prefix(),
        site: name("_"),
        line: name("_"),
        node: name(node),
    };
    let mut sealer = Sealer::new(key_of(&name(by)), name("fed"), branch(by), BootId([77; 16]));
    let to = To::Command(branch("cloud"), CommandName::new("round.start").unwrap());
    let body = Body::Command(Command { name: command.into(), json: b"{}".to_vec() });
    sealer.seal(&to, &body, 0, 0, START).unwrap()
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
            context: None,
            adapters: vec![],
        },
        base: Digest([7; 32]),
        adapter: packed,
        plan: Plan {
            adapter_delta: true,
            class_logits: true,
            local_steps: 16,
            batch_size: 8,
            learning_rate: 0.1,
            final_rate: None,
            prox_mu: 0.0,
            distill_lambda: 0.0,
            rank: 4,
            alpha: 8.0,
            coding: Coding::F32,
            block: 0,
            min_cell: 20,
            seed: 1,
            local_epochs: None,
            knowledge: None,
            cluster_rounds: None,
        },
        gate: Gate::from(Profile::Standard),
        quorum: 0.6,
        deadline_ms: 60_000,
        relay_margin_ms: 20_000,
        republish_ms: 5_000,
        lease_ms: 8_000,
        pause_ms: 1_000,
        versions,
        schedule: gaisnet::learn::RateSchedule::Constant,
        max_staleness: 10,
        share_bounds: ShareBounds::default(),
        resync_ms: 15_000,
        chunk_bytes: 65_536,
        split: None,
        reference: None,
        distils: None,
        island: None,
        second_edge_after_ms: 40_000,
        triggers: None,
    }
}

/// Waits for a state in real time, for as long as any machine may take.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..4_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    panic!("didn't come: {what}");
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
