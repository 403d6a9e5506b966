//! A cloud decides about a rollout over two sites, as processes: each site's mosquitto and that of the federation let through
//! what `gaisnet acl` prints, an operator signs on the command line, an edge is killed on the way.
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
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use gaisnet::ledger::Event;
use support::process::{Federation, Running, gaisnet, mosquitto_pub, text, wait_for};
use support::{Mosquitto, skip};

const SITES: [(&str, &str, &str); 2] = [("north", "edge-n", "p1"), ("south", "edge-s", "p2")];

struct World {
    federation: Federation,
    brokers: BTreeMap<&'static str, Mosquitto>,
    nodes: BTreeMap<&'static str, Running>,
    gateways: Vec<Child>,
}

impl World {
    fn start() -> Option<Self> {
        if Bearings::cached(&Cache::from_env().unwrap()).is_none() {
            skip("data set bearings is not in the cache (gaisnet data fetch bearings)");
            return None;
        }
        let federation = Federation::with_cloud();
        for (site, edge, device) in SITES {
            federation.init(&["edge", "--name", edge, "--site", site, "--parent", "cloud"]);
            federation.init(&["device", "--name", device, "--site", site, "--parent", edge]);
            let tag = "\n[[tags]]\ntopic = \"plant/x\"\nformat = \"json\"\npointer = \"/values\"\n\
                       binds = \"feature\"\nmodel = \"bearing\"\n";
            let settings = federation.path(&format!("{device}/gaisnet.toml"));
            let own = std::fs::read_to_string(&settings).unwrap();
            std::fs::write(settings, own + &tag.replace('x', device)).unwrap();
        }
        let key = federation.path("ops/anna.pem");
        assert!(gaisnet(&["keys", "new", &key]).status.success());
        let request = federation.path("anna.json");
        let who = ["--name", "anna", "--federation", "pilot", "--role", "operator"];
        let proof = [&["keys", "prove", "--key", &key, "--out", &request], &who[..]].concat();
        assert!(gaisnet(&proof).status.success());
        federation.enrol(&request);

        let keyring = federation.path("keyring");
        let list = |more: &[&str]| {
            let line = [&["acl", "--keyring", &keyring], more].concat();
            String::from_utf8(gaisnet(&line).stdout).unwrap()
        };
        let mut brokers = BTreeMap::new();
        let top = Mosquitto::shipped(
            Mosquitto::GUARDED,
            &list(&["--top"]),
            &["cloud", "edge-n", "edge-s", "anna"],
        );
        brokers.insert("_", top?);
        for (site, edge, device) in SITES {
            let list = list(&["--site", site, "--tags", "plant/+"]);
            brokers.insert(
                site,
                Mosquitto::shipped(Mosquitto::GUARDED, &list, &[edge, device, "feed"])?,
            );
        }
        let mut world = Self { federation, brokers, nodes: BTreeMap::new(), gateways: Vec::new() };
        for node in ["cloud", "edge-n", "edge-s", "p1", "p2"] {
            world.run(node);
        }
        for (site, _, device) in SITES {
            world.feed(site, device);
        }
        Some(world)
    }

    fn run(&mut self, node: &'static str) {
        let password = self.federation.password(node);
        let site = SITES.iter().find(|(_, edge, device)| node == *edge || node == *device);
        let port = self.brokers[site.map_or("_", |(site, ..)| site)].port;
        let mut set = vec![
            "privacy.profile=lab".to_owned(),
            format!("bus.site.username={node}"),
            format!("bus.site.password_file={password}"),
        ];
        match node.chars().next() {
            Some('c') => set.extend(
                ["round.auto_start=true", "round.rounds=1", "rollout.steward=true"]
                    .map(str::to_owned),
            ),
            Some('e') => {
                set.push("rollout.follow=true".to_owned());
                set.push("bus.parent.host=127.0.0.1".to_owned());
                set.push(format!("bus.parent.port={}", self.brokers["_"].port));
                set.push(format!("bus.parent.username={node}"));
                set.push(format!("bus.parent.password_file={password}"));
            }
            _ => {
                set.extend(["rollout.follow=true", "data.set=bearings"].map(str::to_owned));
                set.push(format!("data.client=P{}", &node[1..]));
            }
        }
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let mut running = self.federation.run(node, port, &set);
        running.says("is running");
        self.nodes.insert(node, running);
    }

    /// A sensor gateway plays the device's recordings.
    fn feed(&mut self, site: &str, device: &str) {
        let (to, topic) =
            (format!("127.0.0.1:{}", self.brokers[site].port), format!("plant/{device}"));
        let (plant, password) = (device.to_uppercase(), self.federation.password("feed"));
        let child = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
            .args(["feed", "--plant", &plant, "--to", &to, "--topic", &topic, "--loop"])
            .args(["--username", "feed", "--password-file", &password, "--client-id", device])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.gateways.push(child.unwrap());
    }

    /// Waits until a node's ledger has such an entry.
    fn until(&self, node: &str, what: &str, is_it: impl Fn(&Event) -> bool) {
        wait_for(&format!("{what} of {node}"), || {
            let entries = self.federation.entries(node);
            if entries.iter().any(&is_it) { Ok(()) } else { Err(self.nodes[node].log()) }
        });
    }

    /// What an operator does: signs a command on the command line, and pipes it into `mosquitto_pub`.
    fn orders(&self, words: &[&str]) {
        let (key, keyring) =
            (self.federation.path("ops/anna.pem"), self.federation.path("keyring"));
        let line = [words, &["--to", "_/_/cloud", "--key", &key, "--keyring", &keyring]].concat();
        let signed = gaisnet(&line);
        assert!(signed.status.success(), "{}", text(&signed));
        let message = self.federation.path("message");
        std::fs::write(&message, &signed.stdout).unwrap();
        let topic = String::from_utf8(signed.stderr).unwrap();
        let user = ["-u", "anna", "-P", "anna", "-t", topic.trim(), "-f", &message];
        mosquitto_pub(self.brokers["_"].port, &user);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for gateway in &mut self.gateways {
            let _ = gateway.kill();
            let _ = gateway.wait();
        }
    }
}

/// Up to which stage a version has come: canary at one site, then both.
fn entered(wanted: &str) -> impl Fn(&Event) -> bool {
    move |event| match event {
        Event::RolloutStep { outcome, stage, .. } => {
            stage.as_str() == wanted && outcome.as_str() == "entered"
        }
        _ => false,
    }
}

fn serves(wanted: u64) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Rollout { version, .. } if *version == wanted)
}

#[test]
fn a_cloud_takes_a_version_over_two_sites_behind_access_lists_and_an_edge_dies_on_the_way() {
    let Some(mut world) = World::start() else { return };
    let is_closed = |event: &Event| matches!(event, Event::RoundCommit { .. });
    world.until("cloud", "the first round", is_closed);
    for (_, edge, device) in SITES {
        for node in [edge, device] {
            world.until(node, "its share", |event| matches!(event, Event::ReceiptGot { .. }));
        }
    }
    let gate = r#"{"least_answers":32,"least_nodes":NODES,"least_ms":1000,"most_ms":600000,"delta":0.1,
        "max_errors":0.2,"expected":{"answers":2000}}"#;
    let stage = |stage: &str, nodes: &str, least: &str| {
        let gate = gate.replace("NODES", least);
        format!(r#"{{"stage":"{stage}","nodes":{nodes},"gate":{gate}}}"#)
    };
    let stages =
        [stage("canary", r#"["p1"]"#, "1"), stage("federation", r#"["p1","p2","cloud"]"#, "2")]
            .join(",");
    let plan =
        format!(r#"{{"model":"bearing","version":1,"automatic":false,"stages":[{stages}]}}"#);
    let file = world.federation.path("plan.json");
    std::fs::write(&file, plan).unwrap();
    let is_planned = |event: &Event| matches!(event, Event::RolloutStep { outcome, .. } if outcome.as_str() == "planned");
    // The version has to be handed down before it can be planned; a plan of what isn't known is refused.
    wait_for("the plan", || {
        world.orders(&["rollout", "plan", "--file", &file]);
        std::thread::park_timeout(Duration::from_millis(500));
        let planned = world.federation.entries("cloud").iter().any(is_planned);
        if planned { Ok(()) } else { Err(world.nodes["cloud"].log()) }
    });
    world.orders(&["rollout", "start", "--model", "bearing"]);
    world.until("p1", "the canary", serves(1));
    assert!(!world.federation.entries("p2").iter().any(serves(1)), "the other site waits");
    // The other site's edge dies, and the canary's, which has seen something.
    for edge in ["edge-s", "edge-n"] {
        world.nodes.get_mut(edge).unwrap().kill();
        world.run(edge);
    }
    wait_for("the next stage", || {
        world.orders(&["rollout", "promote", "--model", "bearing"]);
        std::thread::park_timeout(Duration::from_millis(500));
        let entered = world.federation.entries("cloud").iter().any(entered("federation"));
        if entered { Ok(()) } else { Err(world.nodes["cloud"].log()) }
    });
    world.until("p2", "the version", serves(1));
    let is_over = |event: &Event| matches!(event, Event::RolloutStep { outcome, .. } if outcome.as_str() == "done");
    wait_for("the end", || {
        world.orders(&["rollout", "promote", "--model", "bearing"]);
        std::thread::park_timeout(Duration::from_millis(500));
        if world.federation.entries("cloud").iter().any(is_over) {
            Ok(())
        } else {
            Err(world.nodes["cloud"].log())
        }
    });
    for (node, running) in &mut world.nodes {
        assert_eq!(running.terminate(), Some(0), "{node}: {}", running.log());
    }
    let path = |broker: &Mosquitto| broker.dir.path().join("log");
    for (site, broker) in &world.brokers {
        let log = std::fs::read_to_string(path(broker)).unwrap();
        let denied = |line: &&str| line.contains("Denied") || line.contains("not authorised");
        assert_eq!(log.lines().find(denied), None, "{site}");
        // What single devices have seen stays at their site.
        assert_eq!(log.contains("/evidence'"), *site != "_", "{site}");
        assert_eq!(log.contains("/site_evidence'"), *site == "_", "{site}");
    }
}
