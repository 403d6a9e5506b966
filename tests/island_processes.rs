//! A site as processes over mosquitto whose broker of the federation is killed: its edge goes on alone, also after a
//! kill -9 while nobody above can be reached, and gives what was learned to the federation when that is back.
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
use std::time::Duration;

use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use gaisnet::ids::RoundNo;
use gaisnet::ledger::Event;
use support::process::{Federation, Running, gaisnet};
use support::{Mosquitto, skip};

const SETTINGS: [&str; 9] = [
    "round.auto_start=true",
    "round.rounds=1000",
    "round.quorum=1",
    "round.deadline_s=30",
    "round.relay_margin_s=1",
    "round.pause_s=1",
    "round.republish_s=1",
    "strategy.local_steps=4",
    "privacy.profile=lab",
];

/// A site behind a mosquitto with the printed access list, and a cloud at a broker of its own.
struct World {
    federation: Federation,
    site: Mosquitto,
    top: Mosquitto,
    nodes: BTreeMap<&'static str, Running>,
}

impl World {
    fn start() -> Option<Self> {
        if Bearings::cached(&Cache::from_env().unwrap()).is_none() {
            skip("data set bearings is not in the cache (gaisnet data fetch bearings)");
            return None;
        }
        let federation = Federation::with_cloud();
        federation.init(&["edge", "--name", "edge-a", "--site", "north", "--parent", "cloud"]);
        federation.init(&["device", "--name", "p1", "--site", "north", "--parent", "edge-a"]);
        let keyring = federation.path("keyring");
        let list = gaisnet(&["acl", "--keyring", &keyring, "--site", "north"]);
        let list = String::from_utf8(list.stdout).unwrap();
        let site = Mosquitto::shipped(Mosquitto::GUARDED, &list, &["edge-a", "p1"])?;
        let mut world = Self { federation, site, top: Mosquitto::start()?, nodes: BTreeMap::new() };
        world.run("cloud", &[]);
        world.run_edge();
        world.run("p1", &["data.set=bearings", "data.client=P1"]);
        Some(world)
    }

    fn run_edge(&mut self) {
        let port = format!("bus.parent.port={}", self.top.port);
        self.run("edge-a", &["round.island_after_s=15", "bus.parent.host=127.0.0.1", &port]);
    }

    fn run(&mut self, node: &'static str, more: &[&str]) {
        let user = format!("bus.site.username={node}");
        let file = format!("bus.site.password_file={}", self.federation.password(node));
        let (port, login): (u16, &[&str]) = match node {
            "cloud" => (self.top.port, &[]),
            _ => (self.site.port, &[&user, &file]),
        };
        let mut running = self.federation.run(node, port, &[&SETTINGS, login, more].concat());
        running.says("is running");
        self.nodes.insert(node, running);
    }

    fn count(&self, node: &str, is_it: fn(&Event) -> bool) -> usize {
        self.federation.entries(node).iter().filter(|event| is_it(event)).count()
    }

    /// Waits, far longer than it takes, until a node's ledger has so many of them.
    fn until(&self, node: &str, what: &str, is_it: fn(&Event) -> bool, count: usize) {
        for _ in 0..600 {
            if self.count(node, is_it) >= count {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(200));
        }
        let logs: Vec<String> = self.nodes.values().map(Running::log).collect();
        panic!("{node} never had {count} {what}\n{}", logs.join("\n\n"));
    }
}

fn round(event: &Event) -> bool {
    matches!(event, Event::RoundCommit { .. })
}

fn from_above(event: &Event) -> bool {
    matches!(event, Event::ResultApplied { .. })
}

fn receipt(event: &Event) -> bool {
    matches!(event, Event::ReceiptGot { verdict, .. } if verdict.as_str() != "refused")
}

/// The edge's own work, as a contribution to itself.
fn own_work(event: &Event) -> bool {
    matches!(event, Event::Late { sender, .. } if sender.as_str() == "edge-a")
}

/// The size of each set that is closed behind the first entry that `begins`, and of those that it has to be of: what was
/// accepted for it, and what came late since the one before.
fn sets(entries: &[Event], begins: fn(&Event) -> bool) -> Vec<(u64, u64)> {
    let first = entries.iter().position(begins).expect("it is there");
    let (mut accepted, mut late, mut sets) = (BTreeMap::<RoundNo, u64>::new(), 0, Vec::new());
    for (at, event) in entries.iter().enumerate() {
        match event {
            Event::Accept { round, .. } => *accepted.entry(*round).or_default() += 1,
            Event::Late { .. } => late += 1,
            Event::RoundClose { contributions, round, .. } => {
                let of = accepted.remove(round).unwrap_or_default() + std::mem::take(&mut late);
                if at > first {
                    sets.push((*contributions, of));
                }
            }
            _ => {}
        }
    }
    sets
}

#[test]
fn a_site_cut_off_from_its_cloud_goes_on_and_brings_what_it_learned() {
    let Some(mut world) = World::start() else { return };
    world.until("edge-a", "versions from above", from_above, 2);
    world.top.kill();
    let (before, heard) = (world.count("edge-a", round), world.count("edge-a", from_above));
    let answered = world.count("p1", receipt);
    // One that was open may end yet.
    world.until("edge-a", "rounds alone", round, before + 4);
    world.nodes.get_mut("edge-a").unwrap().kill();
    world.run_edge();
    let before = world.count("edge-a", round);
    world.until("edge-a", "rounds alone after a kill", round, before + 3);
    world.until("p1", "receipts of an edge that is alone", receipt, answered + 5);
    assert!(world.count("edge-a", from_above) <= heard + 1, "at most what was on its way");
    assert_eq!(world.count("edge-a", own_work), 0, "nobody was there to take it");

    world.top.start_again();
    world.until("edge-a", "work of its own", own_work, 1);
    let heard = world.count("edge-a", from_above);
    world.until("edge-a", "versions from above", from_above, heard + 2);
    for (node, running) in &mut world.nodes {
        assert_eq!(running.terminate(), Some(0), "{node}: {}", running.log());
    }
    let entries = world.federation.entries("edge-a");
    assert_eq!(entries.iter().filter(|event| own_work(event)).count(), 1, "once");
    let sets = sets(&entries, own_work);
    assert!(sets.len() >= 2, "{sets:?}");
    assert!(sets.iter().all(|(has, of)| has == of), "each contribution is in one set: {sets:?}");
}
