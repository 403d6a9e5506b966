//! A site with two edges as processes over mosquitto, which lets through what `gaisnet acl` prints: one edge is killed, its
//! device goes on with the other one, and comes home.
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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use gaisnet::ids::UpdateId;
use gaisnet::ledger::Event;
use support::process::{Federation, Running, gaisnet, text};
use support::{Mosquitto, skip};

/// An edge is away after seven seconds, and one of the two is enough.
const SETTINGS: [&str; 8] = [
    "round.auto_start=true",
    "round.rounds=1000",
    "round.quorum=0.5",
    "round.deadline_s=4",
    "round.relay_margin_s=1",
    "round.pause_s=1",
    "round.republish_s=1",
    "privacy.profile=lab",
];

/// Two edges of a site with a device each, a cloud at a broker of its own.
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
        for (edge, device) in [("edge-a", "p1"), ("edge-b", "p2")] {
            federation.init(&["edge", "--name", edge, "--site", "north", "--parent", "cloud"]);
            federation.init(&["device", "--name", device, "--site", "north", "--parent", edge]);
        }
        let (root, keyring) = (federation.path("root/root.pem"), federation.path("keyring"));
        let change = ["--root", &root, "--keyring", &keyring];
        let pair = [&["keys", "second-edge", "edge-a", "edge-b"], &change[..]].concat();
        assert!(gaisnet(&pair).status.success());
        let itself = [&["keys", "second-edge", "edge-b", "edge-b"], &change[..]].concat();
        let refused = gaisnet(&itself);
        assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
        let shown = text(&gaisnet(&["keyring", "show", &keyring]));
        assert!(shown.contains("or edge-b while that is away"), "{shown}");

        let list = gaisnet(&["acl", "--keyring", &keyring, "--site", "north"]);
        let list = String::from_utf8(list.stdout).unwrap();
        let site =
            Mosquitto::shipped(Mosquitto::GUARDED, &list, &["edge-a", "edge-b", "p1", "p2"])?;
        let top = Mosquitto::start()?;
        let mut world = Self { federation, site, top, nodes: BTreeMap::new() };
        for node in ["cloud", "edge-a", "edge-b", "p1", "p2"] {
            world.run(node);
        }
        Some(world)
    }

    fn run(&mut self, node: &'static str) {
        let mut set: Vec<String> = SETTINGS.map(str::to_owned).to_vec();
        let mut port = self.top.port;
        if node != "cloud" {
            port = self.site.port;
            let password = self.federation.password(node);
            set.push(format!("bus.site.username={node}"));
            set.push(format!("bus.site.password_file={password}"));
        }
        if node.starts_with("edge") {
            set.push("bus.parent.host=127.0.0.1".to_owned());
            set.push(format!("bus.parent.port={}", self.top.port));
        }
        if let Some(number) = node.strip_prefix('p') {
            set.extend(["data.set=bearings".to_owned(), format!("data.client=P{number}")]);
        }
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let mut running = self.federation.run(node, port, &set);
        running.says("is running");
        self.nodes.insert(node, running);
    }

    fn accepted(&self, edge: &str) -> BTreeSet<UpdateId> {
        let of_p1 = |event: Event| match event {
            Event::Accept { sender, update, .. } | Event::Late { sender, update, .. }
                if sender.as_str() == "p1" =>
            {
                Some(update)
            }
            _ => None,
        };
        self.federation.entries(edge).into_iter().filter_map(of_p1).collect()
    }

    /// Waits, far longer than it takes, until an edge has so many contributions of the device.
    fn until(&self, edge: &str, count: usize) {
        for _ in 0..600 {
            if self.accepted(edge).len() >= count {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(200));
        }
        let logs: Vec<String> = self.nodes.values().map(Running::log).collect();
        panic!("{edge} never had {count} contributions of p1\n{}", logs.join("\n\n"));
    }
}

#[test]
fn a_device_of_a_killed_edge_takes_part_at_the_second_one_and_comes_home() {
    let Some(mut world) = World::start() else { return };
    world.until("edge-a", 2);
    world.nodes.get_mut("edge-a").unwrap().kill();
    world.until("edge-b", 2);
    world.run("edge-a");
    let at_home = world.accepted("edge-a").len();
    world.until("edge-a", at_home + 2);
    for (node, running) in &mut world.nodes {
        assert_eq!(running.terminate(), Some(0), "{node}: {}", running.log());
    }
    let moves = world.federation.entries("p1").into_iter().filter_map(|event| match event {
        Event::Move { from, to } => Some((from.to_string(), to.to_string())),
        _ => None,
    });
    let (there, back) = (("edge-a".into(), "edge-b".into()), ("edge-b".into(), "edge-a".into()));
    assert_eq!(moves.collect::<Vec<(String, String)>>(), [there, back]);
    let (home, away) = (world.accepted("edge-a"), world.accepted("edge-b"));
    assert!(home.is_disjoint(&away), "counted at both");
    let receipts = world.federation.entries("p1").into_iter().filter_map(|event| match event {
        Event::ReceiptGot { update, .. } => Some(update),
        _ => None,
    });
    assert!(receipts.collect::<BTreeSet<_>>().is_subset(&home.union(&away).copied().collect()));
}
