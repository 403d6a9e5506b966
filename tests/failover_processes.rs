//! A cloud with a standby as processes over mosquitto: one is killed, the other one is stopped and goes on, and a
//! copy of a cloud's folder is started beside it.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use gaisnet::bus::Bus;
use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use gaisnet::ledger::{Entry, Event};
use gaisnet::store::{SqliteStore, Store};
use serde_json::Value;
use support::process::{Federation, Running};
use support::{Mosquitto, Peer, message, skip};

const SITES: [(&str, &str, &str); 3] =
    [("edge-a", "press-a", "P1"), ("edge-b", "press-b", "P2"), ("edge-c", "press-c", "P3")];
const SETTINGS: [&str; 8] = [
    "round.auto_start=true",
    "round.rounds=1000",
    "round.quorum=1",
    "round.pause_s=1",
    "round.republish_s=2",
    "round.lease_s=3",
    "strategy.local_steps=4",
    "privacy.profile=lab",
];

/// A federation whose nodes all are at one broker.
struct World {
    federation: Federation,
    broker: Mosquitto,
    nodes: BTreeMap<&'static str, Running>,
    scada: Peer,
    asked: u64,
}

impl World {
    async fn start(standby: bool) -> Option<Self> {
        if Bearings::cached(&Cache::from_env().unwrap()).is_none() {
            skip("data set bearings is not in the cache (gaisnet data fetch bearings)");
            return None;
        }
        let broker = Mosquitto::start()?;
        let federation = Federation::with_cloud();
        if standby {
            federation.init_standby("cloud-2");
        }
        for (edge, device, _) in SITES {
            federation.init(&["edge", "--name", edge, "--site", edge, "--parent", "cloud"]);
            federation.init(&["device", "--name", device, "--site", edge, "--parent", edge]);
        }
        let mut scada = Peer::up(broker.port, "scada").await;
        scada.listen(&["gaisnet/v1/_/_/+/reply/status"]).await;
        let mut world = Self { federation, broker, nodes: BTreeMap::new(), scada, asked: 0 };
        let clouds: &[&'static str] = if standby { &["cloud", "cloud-2"] } else { &["cloud"] };
        for cloud in clouds {
            world.run(cloud, &[]);
        }
        for (edge, device, client) in SITES {
            world.run(edge, &[]);
            world.run(device, &["data.set=bearings", &format!("data.client={client}")]);
        }
        Some(world)
    }

    fn run(&mut self, node: &'static str, more: &[&str]) {
        let set = [&SETTINGS[..], more].concat();
        let mut running = self.federation.run(node, self.broker.port, &set);
        running.says("is running");
        self.nodes.insert(node, running);
    }

    /// What a cloud says of itself.
    async fn status(&mut self, cloud: &str) -> Value {
        self.asked += 1;
        let id = format!("q-{}", self.asked);
        let request = message(
            &format!("gaisnet/v1/_/_/{cloud}/cmd/status"),
            serde_json::json!({ "id": id }).to_string(),
        );
        self.scada.bus.publish(request).unwrap();
        loop {
            let (_, payload, _) = self.scada.delivery().await;
            let reply: Value = serde_json::from_str(&payload).unwrap();
            if reply["id"] == id.as_str() {
                return reply["data"].clone();
            }
        }
    }

    /// Waits until it says what is wanted, far longer than it takes; its version then.
    async fn until(&mut self, cloud: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> u64 {
        let mut last = Value::Null;
        for _ in 0..400 {
            last = self.status(cloud).await;
            if is_so(&last) {
                return last["version"].as_u64().unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        }
        let logs = self.nodes.values().map(Running::log).collect::<Vec<_>>().join("\n\n");
        panic!("{cloud} never was {what}: {last}\n{logs}");
    }

    async fn until_version(&mut self, cloud: &str, version: u64) -> u64 {
        self.until(cloud, &format!("at version {version}"), |says| {
            says["version"].as_u64().unwrap() >= version
        })
        .await
    }

    /// Each node's ledger, once all have stopped.
    fn ledgers(&mut self) -> BTreeMap<&'static str, Vec<Event>> {
        let mut all = BTreeMap::new();
        for (node, running) in &mut self.nodes {
            assert_eq!(running.terminate(), Some(0), "{node}: {}", running.log());
            let store = self.federation.path(&format!("{node}/store"));
            let store = SqliteStore::open_read_only(Path::new(&store)).unwrap();
            let entries = store.entries(0, store.num_entries().unwrap()).unwrap();
            let events = entries.iter().map(|bytes| Entry::parse(bytes).unwrap().event);
            all.insert(*node, events.collect());
        }
        all
    }
}

fn is_leading(says: &Value) -> bool {
    !["following", "standing"].contains(&says["phase"].as_str().unwrap())
}

fn is_following(says: &Value) -> bool {
    says["phase"] == "following"
}

/// Every set has each edge once, whoever closed it, and a round that both closed has one set.
fn check_sets(ledgers: &BTreeMap<&'static str, Vec<Event>>, last: u64) {
    let mut sets = BTreeMap::new();
    let mut versions = BTreeMap::new();
    for cloud in ["cloud", "cloud-2"] {
        for event in &ledgers[cloud] {
            match event {
                Event::RoundClose { contributions, round, set, .. } => {
                    assert_eq!(*contributions, 3, "{cloud}: round {round}");
                    assert_eq!(*sets.entry(*round).or_insert(*set), *set, "round {round}");
                }
                Event::RoundCommit { version, result, .. } => {
                    let first = versions.entry(*version).or_insert(*result);
                    assert_eq!(first, result, "version {version}");
                }
                Event::Equivocation { sender, .. } => panic!("{sender} equivocated at {cloud}"),
                _ => {}
            }
        }
    }
    let made: Vec<u64> = versions.keys().copied().collect();
    assert!(made.len() as u64 >= last && made == (1..=made.len() as u64).collect::<Vec<_>>());
    for (edge, _, _) in SITES {
        let mut rounds = BTreeMap::new();
        for event in &ledgers[edge] {
            if let Event::ReceiptGot { round, update, verdict, .. } = event {
                assert_eq!(verdict.as_str(), "accepted", "{edge}: round {round}");
                assert_eq!(*rounds.entry(*round).or_insert(*update), *update, "{edge}: {round}");
            }
        }
        assert!(rounds.len() as u64 >= last, "{edge} has receipts of {rounds:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_and_a_stopped_cloud_are_replaced_and_no_contribution_is_lost_or_twice() {
    let Some(mut world) = World::start(true).await else { return };
    world.until_version("cloud-2", 2).await;

    world.nodes.get_mut("cloud").unwrap().kill();
    let version = world.until("cloud-2", "leading", is_leading).await;
    world.until_version("cloud-2", version + 2).await;
    world.run("cloud", &[]);
    world.until("cloud", "following", is_following).await;
    let version = world.until_version("cloud", version + 3).await;

    // The other way round, and this one wakes up.
    world.nodes["cloud-2"].signal("-STOP");
    let before = world.until("cloud", "leading", is_leading).await;
    assert!(before >= version);
    world.until_version("cloud", before + 2).await;
    world.nodes["cloud-2"].signal("-CONT");
    world.until("cloud-2", "following", is_following).await;
    let last = world.until_version("cloud-2", before + 4).await;
    assert!(is_leading(&world.status("cloud").await));
    let ledgers = world.ledgers();
    check_sets(&ledgers, last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_clouds_folder_beside_it_says_what_it_is_and_stops() {
    let Some(mut world) = World::start(true).await else { return };
    world.until_version("cloud-2", 2).await;
    let (folder, copy) = (world.federation.path("cloud"), world.federation.path("copy"));
    world.nodes["cloud"].signal("-STOP");
    let copied = Command::new("cp").args(["-a", &folder, &copy]).status().unwrap();
    world.nodes["cloud"].signal("-CONT");
    assert!(copied.success());
    let version = world.until_version("cloud-2", 2).await;
    world.until_version("cloud-2", version + 2).await;

    let mut twin = world.federation.run("copy", world.broker.port, &SETTINGS);
    assert_eq!(twin.ends(), Some(1), "{}", twin.log());
    assert!(twin.log().contains("copy of its disk"), "{}", twin.log());
    assert!(world.nodes.get_mut("cloud").unwrap().is_running());
    let version = world.until_version("cloud-2", version + 3).await;
    let last = world.until_version("cloud", version + 2).await;
    let ledgers = world.ledgers();
    check_sets(&ledgers, last);
}
