//! Whole networks on the in-memory bus under tokio's paused clock: real actors, machines, envelopes
//! and ledgers; faults by seed; an hour takes a moment. Learning is a toy, so that all is exact.

#![cfg(feature = "runtime")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gaisnet::actors::{Bounds, Figures, InlineBench};
use gaisnet::bus::memory::{Faults, Memory, MemoryBroker};
use gaisnet::bus::{Bus, Priority, Publish};
use gaisnet::ids::{BootId, Digest, Name, NodeId, Side};
use gaisnet::learn::{
    ClassLogits, Control, LearnError, Learner, Progress, Tensor, TensorSet, TrainJob, Trained,
    Windows,
};
use gaisnet::ledger::{Entry, Event};
use gaisnet::node::{Identity, Learning, Node, NodeParts, SystemClock};
use gaisnet::privacy::{Gate, Profile};
use gaisnet::protocol::{Input, update};
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::telegram::ModelMeta;
use gaisnet::store::{Failure, MemoryStore, Store};
use gaisnet::time::Wall;
use gaisnet::topic::{Branch, CommandName, Prefix};
use gaisnet::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use gaisnet::trust::keys::SigningKey;
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Body, Coding, Command, Plan};

const START: Wall = Wall(1_800_000_000_000);
const DAY_MS: u64 = 86_400_000;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Moves each weight towards a target of its own data, half the way: a mean of means is exact.
struct Toy(f32);

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

fn adapter(value: f32) -> TensorSet {
    let tensor = Tensor { name: "head.weight".into(), shape: vec![4], data: vec![value; 4] };
    TensorSet::new(vec![tensor]).unwrap()
}

struct Place {
    node: NodeId,
    site: Name,
    line: Name,
    parent: Option<NodeId>,
    role: Role,
}

/// One cloud, `sites` edges, `devices` a site, and what outlives a node: keys and stores.
struct Plant {
    federation_bus: MemoryBroker,
    site_buses: BTreeMap<Name, MemoryBroker>,
    places: Vec<Place>,
    keyring: Arc<Keyring>,
    stores: BTreeMap<NodeId, MemoryStore>,
    running: BTreeMap<NodeId, Node>,
    boots: u8,
    versions: u64,
    /// Why nodes gave up, for a test that wants one to; without it, giving up fails the test.
    gave_up: Option<Arc<Mutex<Vec<String>>>>,
}

impl Plant {
    fn new(sites: usize, devices: usize, versions: u64, faults: &Faults) -> Self {
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
            boots: 0,
            versions,
            gave_up: None,
        }
    }

    fn start_all(&mut self) {
        let nodes: Vec<NodeId> = self.places.iter().map(|place| place.node.clone()).collect();
        for node in &nodes {
            self.start(node);
        }
    }

    fn start(&mut self, node: &NodeId) {
        self.boots += 1;
        let at = self.places.iter().position(|place| place.node == *node).unwrap();
        let place = &self.places[at];
        let me = place.node.clone();
        let mut links: BTreeMap<Side, _> = BTreeMap::new();
        let mut link = |side: Side, broker: &MemoryBroker, client: &str| {
            let (bus, events) = broker.connect(client, None);
            let bus: Arc<dyn Bus> = Arc::new(bus);
            links.insert(side, (bus, events));
        };
        match place.role {
            Role::Cloud => link(Side::Down, &self.federation_bus, me.as_str()),
            Role::Edge => {
                link(Side::Down, &self.site_buses[&place.site], me.as_str());
                link(Side::Up, &self.federation_bus, me.as_str());
            }
            _ => link(Side::Up, &self.site_buses[&place.site], me.as_str()),
        }
        let train = (place.role == Role::Device).then(|| {
            let learner: Box<dyn Learner> = Box::new(Toy(at as f32));
            (learner, Windows { x: vec![0.0; 120], len: 1, labels: vec![0; 120], classes: 2 })
        });
        let parts = NodeParts {
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
            clock: Arc::new(SystemClock::starting_at(START)),
            bench: Box::new(InlineBench::new(me.clone(), train)),
            answering: None,
            policy: CommandPolicy::new(["status", "pause", "resume", "round.start"]).unwrap(),
            figures: Arc::new(Figures::default()),
            resources: Arc::new(|| (0.0, 0.0)),
            bounds: Bounds::default(),
            fatal: match self.gave_up.clone() {
                Some(list) => Arc::new(move |what| list.lock().unwrap().push(what.to_owned())),
                None => Arc::new(|what| panic!("a node gave up: {what}")),
            },
        };
        self.running.insert(me, gaisnet::node::start(parts).unwrap());
    }

    /// Ends a node in order and starts it again, from its store alone.
    async fn restart(&mut self, node: &str) {
        self.running.remove(&name(node)).unwrap().stop("test", 0).await;
        self.start(&name(node));
        a_moment().await;
    }

    async fn versions(&self) -> BTreeMap<NodeId, u64> {
        let mut out = BTreeMap::new();
        for (node, running) in &self.running {
            out.insert(node.clone(), running.view().await.unwrap().version);
        }
        out
    }

    /// Lets virtual time pass until every node has the last version.
    async fn converge(&self, minutes: u64) {
        for _ in 0..minutes * 60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let versions = self.versions().await;
            if versions.values().all(|version| *version == self.versions) {
                return;
            }
        }
        panic!("no convergence: {:?}", self.versions().await);
    }

    fn entries(&self, node: &str) -> Vec<Event> {
        let store = &self.stores[&name(node)];
        let all = store.entries(0, store.num_entries().unwrap()).unwrap();
        all.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
    }

    /// An owner closes each round once, and counts each of its accepted updates at most once.
    fn check_owner(&self, node: &str) {
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

fn key_of(node: &NodeId) -> SigningKey {
    SigningKey::generate(&Digest::of(node.as_str().as_bytes()).0)
}

fn keyring(places: &[Place]) -> Keyring {
    let root = SigningKey::generate(&[9; 32]);
    let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*root.public()] };
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

/// Signs a command of `by` for the cloud, as `gaisnet cmd sign` would: topic and bytes.
fn signed(by: &str, command: &str) -> (String, Vec<u8>) {
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

fn learning(versions: u64) -> Learning {
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
fn paused<F: Future<Output = ()>>(test: F) {
    let system = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    });
    system.block_on(test);
}

#[test]
fn three_sites_and_twelve_devices_reach_the_last_version_together() {
    paused(async {
        let mut plant = Plant::new(3, 4, 3, &Faults::none(1));
        plant.start_all();
        plant.converge(30).await;
        plant.check_owner("cloud");
        for edge in ["edge0", "edge1", "edge2"] {
            plant.check_owner(edge);
        }
    });
}

fn rough(seed: u64) -> Faults {
    Faults { seed, loss: 0.1, duplicate: 0.1, delay_ms: 0..=2_000, reorder: true }
}

#[test]
fn loss_repeats_delay_and_disorder_change_nothing_but_time() {
    for seed in 1..=3 {
        paused(async move {
            let mut plant = Plant::new(3, 4, 3, &rough(seed));
            plant.start_all();
            plant.converge(120).await;
            plant.check_owner("cloud");
        });
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        paused(async move {
            let mut plant = Plant::new(2, 2, 2, &rough(5));
            plant.start_all();
            tokio::time::sleep(Duration::from_secs(600)).await;
            sender.send((plant.federation_bus.trace(), plant.versions().await)).unwrap();
        });
        receiver.recv().unwrap()
    };
    let (first, second) = (trace(), trace());
    assert!(!first.0.is_empty());
    assert_eq!(first, second);
}

#[test]
fn brokers_that_forget_everything_in_mid_round_lose_no_update() {
    paused(async {
        let mut plant = Plant::new(2, 2, 4, &Faults::none(1));
        plant.start_all();
        for second in 0..40 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            if second % 5 == 0 {
                plant.federation_bus.restart(Memory::Lost, 2_000);
                plant.site_buses.values().for_each(|bus| bus.restart(Memory::Lost, 1_000));
            }
        }
        plant.converge(120).await;
        plant.check_owner("cloud");
    });
}

#[test]
fn a_partitioned_site_is_left_behind_and_catches_up() {
    paused(async {
        let mut plant = Plant::new(3, 2, 3, &Faults::none(1));
        plant.start_all();
        plant.federation_bus.partition("edge2");
        tokio::time::sleep(Duration::from_secs(600)).await;
        let versions = plant.versions().await;
        assert_eq!(versions[&name("cloud")], 3, "two of three sites are a quorum: {versions:?}");
        assert_eq!(versions[&name("dev2-0")], 0);
        plant.federation_bus.heal("edge2");
        plant.converge(60).await;
    });
}

fn publish(bus: &dyn Bus, (topic, payload): (String, Vec<u8>), retain: bool) {
    let (at_least_once, priority) = (true, Priority::Control);
    bus.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
}

async fn a_moment() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

#[test]
fn a_signed_command_works_once_and_by_an_operator_only() {
    paused(async {
        let mut plant = Plant::new(1, 1, 0, &Faults::none(1));
        let (bus, _events) = plant.federation_bus.connect("ops", None);
        plant.start(&name("cloud"));
        a_moment().await;
        let counted = |plant: &Plant, reason: &str| {
            let view = plant.running[&name("cloud")].figures.view();
            view.counted.get(reason).copied().unwrap_or(0)
        };
        let good = signed("ops", "round.start");
        // Another name in the body than in the topic; a device's key; then the twin that is right.
        publish(&bus, signed("ops", "pause"), false);
        publish(&bus, signed("dev0-0", "round.start"), false);
        a_moment().await;
        assert_eq!((counted(&plant, "wrong_topic"), counted(&plant, "not_allowed")), (1, 1));
        let round = plant.running[&name("cloud")].view().await.unwrap().round;
        assert_eq!(round, 0);
        publish(&bus, good.clone(), false);
        a_moment().await;
        assert_eq!(plant.running[&name("cloud")].view().await.unwrap().round, 1);
        publish(&bus, good, false);
        a_moment().await;
        assert_eq!(counted(&plant, "replayed_command"), 1);
        let mut outcomes = Vec::new();
        for event in plant.entries("cloud") {
            match event {
                Event::Command { outcome, operator, .. } => {
                    assert_eq!(operator, Some(name("ops")));
                    outcomes.push(outcome.as_str().to_owned());
                }
                // The device's signature was never looked at: nobody is named.
                Event::Refusal { sender, .. } => assert_eq!(sender, None),
                _ => {}
            }
        }
        assert_eq!(outcomes, ["ok", "replayed_command"]);
    });
}

#[test]
fn a_command_that_was_kept_by_the_broker_is_refused() {
    paused(async {
        let mut plant = Plant::new(1, 1, 0, &Faults::none(1));
        let (bus, _events) = plant.federation_bus.connect("ops", None);
        publish(&bus, signed("ops", "round.start"), true);
        a_moment().await;
        plant.start(&name("cloud"));
        a_moment().await;
        let cloud = &plant.running[&name("cloud")];
        assert_eq!(cloud.figures.view().counted.get("retained_command"), Some(&1));
        assert_eq!(cloud.view().await.unwrap().round, 0);
    });
}

#[test]
fn a_captured_command_works_neither_again_nor_after_a_restart_but_it_would_without_the_store() {
    paused(async {
        let mut plant = Plant::new(1, 1, 0, &Faults::none(1));
        let (bus, _events) = plant.federation_bus.connect("ops", None);
        plant.start(&name("cloud"));
        a_moment().await;
        let captured = signed("ops", "round.start");
        publish(&bus, captured.clone(), false);
        a_moment().await;
        let round = async |plant: &Plant| plant.running[&name("cloud")].view().await.unwrap().round;
        assert_eq!(round(&plant).await, 1);
        plant.restart("cloud").await;
        publish(&bus, captured.clone(), false);
        a_moment().await;
        let view = plant.running[&name("cloud")].figures.view();
        assert_eq!(view.counted.get("replayed_command"), Some(&1));

        plant.stores.insert(name("cloud"), MemoryStore::new());
        plant.restart("cloud").await;
        assert_eq!(round(&plant).await, 0);
        publish(&bus, captured, false);
        a_moment().await;
        assert_eq!(round(&plant).await, 1, "nothing else stands in its way");
    });
}

#[test]
fn a_full_disk_ends_no_node_and_all_goes_on_when_there_is_room() {
    paused(async {
        let mut plant = Plant::new(1, 3, 4, &Faults::none(1));
        plant.start_all();
        for node in ["dev0-0", "edge0", "cloud"] {
            a_moment().await;
            let (store, running) = (&plant.stores[&name(node)], &plant.running[&name(node)]);
            store.set_full(true);
            tokio::time::sleep(Duration::from_secs(200)).await;
            assert!(running.figures.full().is_some(), "{node}");
            store.set_full(false);
        }
        plant.converge(120).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        plant.check_owner("cloud");
        plant.check_owner("edge0");
        assert!(plant.running.values().all(|node| node.figures.full().is_none()));
    });
}

#[test]
fn a_write_that_fails_otherwise_ends_the_node() {
    paused(async {
        let mut plant = Plant::new(1, 1, 0, &Faults::none(1));
        let gave_up = Arc::new(Mutex::new(Vec::new()));
        plant.gave_up = Some(Arc::clone(&gave_up));
        plant.start(&name("cloud"));
        a_moment().await;
        assert!(gave_up.lock().unwrap().is_empty());
        plant.stores[&name("cloud")].fail_commit(1, Failure::Io);
        plant.running[&name("cloud")].order(Input::StartRound).await;
        a_moment().await;
        assert!(gave_up.lock().unwrap()[0].contains("failpoint"));
    });
}

#[test]
fn from_ninety_percent_on_a_device_declines_and_with_room_it_takes_part_again() {
    paused(async {
        let mut plant = Plant::new(1, 3, 0, &Faults::none(1));
        plant.stores[&name("dev0-0")].set_fill(90);
        plant.start_all();
        let declined = |plant: &Plant| {
            let is = |event: &Event| match event {
                Event::Decline { sender, reason, .. } => {
                    sender.as_str() == "dev0-0" && reason.as_str() == "disk_full"
                }
                _ => false,
            };
            plant.entries("edge0").iter().filter(|event| is(event)).count()
        };
        let accepted = |plant: &Plant| {
            let by = |event: &Event| matches!(event, Event::Accept { sender, .. } if sender.as_str() == "dev0-0");
            plant.entries("edge0").iter().filter(|event| by(event)).count()
        };
        tokio::time::sleep(Duration::from_secs(30)).await;
        plant.running[&name("cloud")].order(Input::StartRound).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!((declined(&plant), accepted(&plant)), (1, 0));
        plant.stores[&name("dev0-0")].set_fill(89);
        tokio::time::sleep(Duration::from_secs(30)).await;
        plant.running[&name("cloud")].order(Input::StartRound).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!((declined(&plant), accepted(&plant)), (1, 1));
    });
}
