//! Whole networks over real brokers, each a process of its own that is killed in the middle of a
//! round: rounds complete, and no update is lost or counted twice.
//!
//! The embedded broker, mosquitto as it comes, and both with what `gaisnet acl` prints. A device
//! trains when the test lets it, so that the middle of a round is a state that can be waited for.
#![cfg(all(feature = "cli", feature = "broker"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use federation::{
    Links, Members, Plant, check_owner, events, learning, name, paused, root_key, until,
};
use gaisnet::actors::{Done, Task, Workbench};
use gaisnet::bus::memory::Faults;
use gaisnet::bus::mqtt::{MqttBus, MqttSettings, TlsSettings};
use gaisnet::ids::{NodeId, Side, UpdateId};
use gaisnet::ledger::Event;
use gaisnet::node::{Learning, Node};
use gaisnet::store::MemoryStore;
use gaisnet::trust::keyring::Role;
use gaisnet::trust::keyring_document::seal_document;
use support::{Mosquitto, free_port, settings};
use tempfile::TempDir;

/// Sites, devices a site, rounds; the third is the one whose contribution is cut off in flight.
const SIZE: (usize, usize, u64) = (2, 2, 3);
/// The device that waits for the test.
const LAST: &str = "dev1-0";

/// The configuration that is shipped.
const TLS: &str = include_str!("../brokers/mosquitto/tls.conf");

/// Lets a device train once a permit.
#[derive(Default)]
struct Gate {
    /// Trainings that wait, permits that are left.
    state: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let mut state = self.changed.wait_while(state, |(_, permits)| *permits == 0).unwrap();
        *state = (state.0 - 1, state.1 - 1);
    }

    fn permit(&self) {
        self.state.lock().unwrap().1 += 1;
        self.changed.notify_all();
    }

    fn is_waited_at(&self) -> bool {
        self.state.lock().unwrap().0 > 0
    }
}

/// A workbench behind a gate.
struct Gated {
    gate: Arc<Gate>,
    bench: Arc<Mutex<Box<dyn Workbench>>>,
}

impl Workbench for Gated {
    fn start(&mut self, task: Task, done: Done) {
        let (gate, bench) = (Arc::clone(&self.gate), Arc::clone(&self.bench));
        std::thread::spawn(move || {
            gate.pass();
            bench.lock().unwrap().start(task, done);
        });
    }
}

/// A broker process that can be killed and started again on its port.
enum Broker {
    Embedded { port: u16, access: Option<TempDir>, child: Child },
    Mosquitto(Mosquitto),
}

impl Broker {
    fn embedded(access: Option<TempDir>) -> Self {
        let port = free_port();
        let child = embedded(port, access.as_ref());
        Self::Embedded { port, access, child }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Embedded { port, .. } => *port,
            Self::Mosquitto(broker) => broker.port,
        }
    }

    /// kill -9.
    fn kill(&mut self) {
        match self {
            Self::Embedded { child, .. } => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Self::Mosquitto(broker) => broker.kill(),
        }
    }

    fn start_again(&mut self) {
        match self {
            Self::Embedded { port, access, child } => *child = embedded(*port, access.as_ref()),
            Self::Mosquitto(broker) => broker.start_again(),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Self::Embedded { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `gaisnet broker`, once it listens.
fn embedded(port: u16, access: Option<&TempDir>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaisnet"));
    command.args(["broker", "--json", "--listen", &format!("127.0.0.1:{port}")]);
    if let Some(folder) = access {
        let file = |name: &str| folder.path().join(name);
        command.arg("--users").arg(file("users")).arg("--acl").arg(file("gaisnet.acl"));
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.contains("port"), "gaisnet broker doesn't start: {told}");
    child
}

/// Which kind of broker stands at each place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `gaisnet broker` for everybody.
    Embedded,
    /// `gaisnet broker` with users and `gaisnet acl`'s list.
    EmbeddedWithAcl,
    /// mosquitto for everybody.
    Mosquitto,
    /// brokers/mosquitto/tls.conf: certificates, passwords, `gaisnet acl`'s list.
    MosquittoWithAll,
}

/// A federation over brokers; `_` is the federation's.
struct Network {
    kind: Kind,
    members: Members,
    brokers: BTreeMap<String, Broker>,
    stores: BTreeMap<NodeId, MemoryStore>,
    running: BTreeMap<NodeId, Node>,
    gate: Arc<Gate>,
}

impl Network {
    /// Brokers and nodes, all started. `forbidden` is a line that the access lists lack.
    /// `None`, counted, where the broker isn't installed.
    fn start(kind: Kind, forbidden: &str) -> Option<Self> {
        let members = Members::new(SIZE.0, SIZE.1);
        let mut brokers = BTreeMap::new();
        for site in ["_", "site0", "site1"] {
            let broker = match kind {
                Kind::Embedded => Broker::embedded(None),
                Kind::Mosquitto => {
                    Broker::Mosquitto(Mosquitto::start_with("allow_anonymous true")?)
                }
                Kind::EmbeddedWithAcl => {
                    let folder = TempDir::new().unwrap();
                    let list = access_list(&members, site, forbidden);
                    write_users(&members, &folder.path().join("users"));
                    std::fs::write(folder.path().join("gaisnet.acl"), list).unwrap();
                    Broker::embedded(Some(folder))
                }
                Kind::MosquittoWithAll => {
                    let list = access_list(&members, site, forbidden);
                    let users: Vec<&str> =
                        members.places.iter().map(|place| place.node.as_str()).collect();
                    Broker::Mosquitto(Mosquitto::shipped(TLS, &list, &users)?)
                }
            };
            brokers.insert(site.to_owned(), broker);
        }
        let store = |place: &federation::Place| (place.node.clone(), MemoryStore::new());
        let stores = members.places.iter().map(store).collect();
        let (running, gate) = (BTreeMap::new(), Arc::default());
        let mut this = Self { kind, members, brokers, stores, running, gate };
        let nodes: Vec<NodeId> = this.stores.keys().cloned().collect();
        for node in &nodes {
            this.start_node(node);
        }
        Some(this)
    }

    fn start_node(&mut self, node: &NodeId) {
        let place = self.members.place(node);
        let site = place.site.as_str();
        let mut links = Links::new();
        match place.role {
            Role::Cloud => self.link(&mut links, node, Side::Down, "_"),
            Role::Edge => {
                self.link(&mut links, node, Side::Down, site);
                self.link(&mut links, node, Side::Up, "_");
            }
            _ => self.link(&mut links, node, Side::Up, site),
        }
        // Impatient, so that a lost message is sent again within the test's patience.
        let learning =
            Learning { republish_ms: 1_000, pause_ms: 10, resync_ms: 2_000, ..learning(SIZE.2) };
        let store = Box::new(self.stores[node].clone());
        let mut parts = self.members.parts(node, 1, learning, store, links);
        if node.as_str() == LAST {
            let bench = Arc::new(Mutex::new(parts.bench));
            parts.bench = Box::new(Gated { gate: Arc::clone(&self.gate), bench });
        }
        self.running.insert(node.clone(), gaisnet::node::start(parts).unwrap());
    }

    fn link(&self, links: &mut Links, node: &NodeId, side: Side, broker: &str) {
        let (bus, events) = MqttBus::connect(self.login(node, broker), 1).unwrap();
        links.insert(side, (Arc::new(bus), events));
    }

    /// How a node gets into a broker.
    fn login(&self, node: &NodeId, broker: &str) -> MqttSettings {
        let broker = &self.brokers[broker];
        let mut login = settings(broker.port(), node.as_str());
        if matches!(self.kind, Kind::EmbeddedWithAcl | Kind::MosquittoWithAll) {
            (login.username, login.password) = (Some(node.to_string()), Some(node.to_string()));
        }
        if let (Kind::MosquittoWithAll, Broker::Mosquitto(broker)) = (self.kind, broker) {
            let file = |name: &str| broker.dir.path().join(name);
            login.host = "localhost".into();
            login.tls = Some(TlsSettings {
                ca_file: file("ca.pem"),
                client: Some((file("client.pem"), file("client.key"))),
            });
        }
        login
    }

    fn kill_brokers(&mut self) {
        self.brokers.values_mut().for_each(Broker::kill);
    }

    fn start_brokers(&mut self) {
        self.brokers.values_mut().for_each(Broker::start_again);
    }

    fn events(&self, node: &str) -> Vec<Event> {
        events(&self.stores[&name(node)])
    }

    /// Who is accepted in a round at an owner, with the ids.
    fn accepted(&self, owner: &str, wanted: u64) -> BTreeMap<NodeId, UpdateId> {
        let mut accepted = BTreeMap::new();
        for event in self.events(owner) {
            if let Event::Accept { round, sender, update, .. } = event
                && round == wanted
            {
                assert_eq!(accepted.insert(sender.clone(), update), None, "{owner}: {sender}");
            }
        }
        accepted
    }

    /// What a node has contributed to a round.
    fn contributed(&self, node: &NodeId, wanted: u64) -> Option<UpdateId> {
        self.events(node.as_str()).into_iter().find_map(|event| match event {
            Event::Contribute { round, update, .. } if round == wanted => Some(update),
            _ => None,
        })
    }

    /// Waits until everything but the last device's share of a round is in.
    async fn only_the_last_is_missing(&self, round: u64) {
        let what = format!("all of round {round} but {LAST}");
        until(&what, async || {
            self.gate.is_waited_at()
                && self.accepted("edge1", round).contains_key(&name("dev1-1"))
                && self.accepted("cloud", round).contains_key(&name("edge0"))
        })
        .await;
    }

    async fn everybody_notices(&self) {
        let links = |node: &NodeId| if self.members.place(node).role == Role::Edge { 2 } else { 1 };
        let is_down =
            |(name, node): (&NodeId, &Node)| node.figures.view().down.len() == links(name);
        until("broken links", async || self.running.iter().all(is_down)).await;
    }

    async fn everybody_has(&self, version: u64) {
        until(&format!("version {version} everywhere"), async || {
            for node in self.running.values() {
                if node.view().await.is_none_or(|view| view.version != version) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Each update that was made counts once where it was meant for, and nothing else does.
    fn ledgers_agree(&self) {
        for owner in ["cloud", "edge0", "edge1"] {
            check_owner(owner, self.events(owner));
            let members: Vec<&NodeId> = (self.members.places.iter())
                .filter(|place| place.parent == Some(name(owner)))
                .map(|place| &place.node)
                .collect();
            assert_eq!(members.len(), 2);
            for round in 1..=SIZE.2 {
                let sent = |node: &&NodeId| Some(((*node).clone(), self.contributed(node, round)?));
                let sent: BTreeMap<NodeId, UpdateId> = members.iter().filter_map(sent).collect();
                assert_eq!(sent.len(), members.len(), "{owner}, round {round}: {sent:?}");
                assert_eq!(self.accepted(owner, round), sent, "{owner}, round {round}");
            }
        }
        // The arithmetic says the same: one update too few or too many would show here.
        let expected = learned_without_faults();
        for node in self.running.values() {
            assert_eq!(node.serving.borrow().1, expected, "{}", node.me);
        }
    }

    fn counted(&self, reason: &str) -> u64 {
        let of = |node: &Node| node.figures.view().counted.get(reason).copied().unwrap_or(0);
        self.running.values().map(of).sum()
    }

    /// What the brokers wrote down as denied.
    fn denied(&self) -> Vec<String> {
        let mut denied = Vec::new();
        for broker in self.brokers.values() {
            let Broker::Mosquitto(broker) = broker else { continue };
            let log = std::fs::read_to_string(broker.dir.path().join("log")).unwrap();
            denied.extend(log.lines().filter(|line| line.contains("Denied")).map(str::to_owned));
        }
        denied
    }
}

/// The adapter that the same members come to where nothing fails.
fn learned_without_faults() -> Arc<Vec<u8>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    // A thread has one actix system at a time.
    let twin = std::thread::spawn(move || {
        paused(async move {
            let mut plant = Plant::new(SIZE.0, SIZE.1, SIZE.2, &Faults::none(1));
            plant.start_all();
            plant.converge(30).await;
            sender.send(Arc::clone(&plant.running[&name("cloud")].serving.borrow().1)).unwrap();
        });
    });
    twin.join().unwrap();
    receiver.recv().unwrap()
}

/// What `gaisnet acl` prints for a site's broker, or the federation's.
fn access_list(members: &Members, site: &str, forbidden: &str) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keyring");
    std::fs::write(&path, seal_document(&members.keyring, &[&root_key()]).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaisnet"));
    command.args(["acl", "--keyring"]).arg(path);
    match site {
        "_" => command.arg("--top"),
        site => command.args(["--site", site]),
    };
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let list = String::from_utf8(done.stdout).unwrap();
    list.lines().filter(|line| *line != forbidden).fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    })
}

/// Users of the embedded broker; passwords are the names.
fn write_users(members: &Members, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let lines = members.places.iter().map(|place| format!("{0}:{0}\n", place.node));
    std::fs::write(path, lines.collect::<String>()).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Three rounds; all brokers die in the second while an update isn't made yet, and in the third
/// while it is on its way.
fn rounds_survive(kind: Kind) {
    actix::System::new().block_on(async {
        let Some(mut network) = Network::start(kind, "") else { return };
        network.gate.permit();
        network.everybody_has(1).await;

        network.only_the_last_is_missing(2).await;
        network.kill_brokers();
        network.everybody_notices().await;
        network.gate.permit();
        let last = name(LAST);
        until("work without a broker", async || network.contributed(&last, 2).is_some()).await;
        assert!(!network.accepted("edge1", 2).contains_key(&last));
        network.start_brokers();
        network.everybody_has(2).await;

        network.only_the_last_is_missing(3).await;
        network.gate.permit();
        network.kill_brokers();
        network.everybody_notices().await;
        network.start_brokers();
        network.everybody_has(3).await;

        network.ledgers_agree();
        assert_eq!(network.counted("subscription_refused"), 0);
        assert_eq!(network.denied(), Vec::<String>::new());
    });
}

#[test]
fn rounds_survive_kills_of_the_embedded_broker() {
    rounds_survive(Kind::Embedded);
}

#[test]
fn rounds_survive_kills_of_the_embedded_broker_with_our_access_list() {
    rounds_survive(Kind::EmbeddedWithAcl);
}

#[test]
fn rounds_survive_kills_of_mosquitto() {
    rounds_survive(Kind::Mosquitto);
}

#[test]
fn rounds_survive_kills_of_mosquitto_with_tls_passwords_and_our_access_list() {
    rounds_survive(Kind::MosquittoWithAll);
}

/// The twin: a list without the line by which a device contributes.
#[test]
fn mosquitto_names_the_topic_that_a_missing_line_forbids() {
    actix::System::new().block_on(async {
        let branch = "gaisnet/v1/site0/line/dev0-0/m/";
        let line = "topic write gaisnet/v1/site0/line/dev0-0/m/#";
        let Some(network) = Network::start(Kind::MosquittoWithAll, line) else { return };
        network.gate.permit();
        let contribution = format!("{branch}contribution");
        let is_its = |refusal: &String| refusal.contains(&contribution);
        until("a refusal", async || network.denied().iter().any(is_its)).await;
        // A ledger head, too, when it comes up.
        for refusal in network.denied() {
            assert!(refusal.contains("PUBLISH from dev0-0") && refusal.contains(branch));
        }
        assert!(network.accepted("edge0", 1).len() < 2);
    });
}

/// The same where a device may not hear its parent: the embedded broker refuses the subscription.
#[test]
fn the_node_counts_a_subscription_that_a_missing_line_forbids() {
    actix::System::new().block_on(async {
        let line = "topic read gaisnet/v1/site0/_/edge0/m/#";
        let network = Network::start(Kind::EmbeddedWithAcl, line).unwrap();
        let counted = |node: &str| {
            network.running[&name(node)].figures.view().counted.contains_key("subscription_refused")
        };
        until("both refusals", async || counted("dev0-0") && counted("dev0-1")).await;
        assert!(!counted("dev1-0"));
    });
}
