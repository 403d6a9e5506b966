//! How long answers take by the tier that gives them, over real mosquittos, with the cloud near and far.
//!
//! ```sh
//! cargo test --release --all-features --test cascade_latency -- --ignored --nocapture
//! ```
//! Nodes are whole but for their models, which are toys: what is measured is the way, not the model.
#![cfg(all(feature = "mqtt", feature = "cli"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/delay.rs"]
mod delay;
#[path = "support/federation.rs"]
mod federation;
mod support;
#[path = "support/toy_tiers.rs"]
mod toy_tiers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use delay::DelayProxy;
use federation::{Links, Members, learning, name};
use gaisnet::actors::Busy;
use gaisnet::actors::lanes::serve_lane;
use gaisnet::bus::Bus;
use gaisnet::bus::mqtt::MqttBus;
use gaisnet::ids::Side;
use gaisnet::learn::percentile;
use gaisnet::node::{AnswerLane, Answering, Cascading, Node};
use gaisnet::scada::command::CommandPolicy;
use gaisnet::store::MemoryStore;
use serde_json::{Value, json};
use support::{Mosquitto, Peer, message, settings};
use tokio::time::Instant;
use toy_tiers::{CONFIG, SKILLS, Toy, measure};

const DEVICE: &str = "gaisnet/v1/site0/line/dev0-0";

/// Questions a tier.
const QUESTIONS: usize = 200;

fn start(members: &Members, node: &str, ports: &[(Side, u16)]) -> Node {
    let tier = ["dev0-0", "edge0", "cloud"].iter().position(|tier| *tier == node).unwrap();
    let mut links = Links::new();
    for (side, port) in ports {
        let client = format!("{node}-{side:?}");
        let (bus, events) = MqttBus::connect(settings(*port, &client), 1).unwrap();
        links.insert(*side, (Arc::new(bus), events));
    }
    let store = Box::new(MemoryStore::new());
    let mut parts = members.parts(&name(node), 1, learning(1), store, links);
    parts.policy = CommandPolicy::new(["infer"]).unwrap();
    let toy = Toy { skill: SKILLS[tier], asked: Arc::default() };
    parts.answering = Some(Answering {
        lane: AnswerLane::Windows(serve_lane(toy, 128).unwrap()),
        tags: vec![],
        busy: Arc::new(Busy::default()),
        max_gap_ms: 5_000,
        stale_after_ms: 600_000,
        cascade: Some(Cascading {
            config: CONFIG,
            to_cloud: true,
            safe_default: None,
            measure: (tier < 2).then(measure),
        }),
    });
    gaisnet::node::start(parts).unwrap()
}

/// Asks the device and waits: the answer, and how long it took.
async fn ask(peer: &mut Peer, number: usize, question: f32) -> (Value, f64) {
    let id = format!("q-{number}");
    let payload = json!({"id": id, "input": [question], "deadline_ms": 10_000}).to_string();
    let since = Instant::now();
    peer.bus.publish(message(&format!("{DEVICE}/infer/toy"), payload)).unwrap();
    loop {
        let (_, answer, _) = peer.delivery().await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        if answer["id"] == *id {
            return (answer, since.elapsed().as_secs_f64() * 1_000.0);
        }
    }
}

async fn measured(round_trip_ms: u64) -> Option<BTreeMap<String, Vec<f64>>> {
    let (site, federation) = (Mosquitto::start()?, Mosquitto::start()?);
    let one_way = Duration::from_micros(round_trip_ms * 500);
    let far = DelayProxy::before(federation.port, one_way).await;
    let members = Members::new(1, 1);
    let nodes = [
        start(&members, "cloud", &[(Side::Down, federation.port)]),
        start(&members, "edge0", &[(Side::Down, site.port), (Side::Up, far.port)]),
        start(&members, "dev0-0", &[(Side::Up, site.port)]),
    ];
    let mut peer = Peer::up(site.port, "hmi").await;
    peer.listen(&[&format!("{DEVICE}/reply/infer")]).await;
    let mut asked = 0;
    // Until links are up, the first version is there and it is measured.
    let ready = async |peer: &mut Peer, asked: &mut usize, question, tier: &str| {
        for _ in 0..600 {
            *asked += 1;
            let second = Duration::from_secs(1);
            let heard = tokio::time::timeout(second, ask(peer, *asked, question)).await;
            let is_his = |answer: &Value| {
                let measured = tier == "cloud" || answer["bound"].is_f64();
                answer["tier"] == tier && answer["model_version"] == 1 && measured
            };
            if heard.is_ok_and(|(answer, _)| is_his(&answer)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{tier} doesn't answer");
    };
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (question, tier) in [(0.1, "device"), (0.65, "edge"), (0.95, "cloud")] {
        ready(&mut peer, &mut asked, question, tier).await;
        for _ in 0..QUESTIONS {
            asked += 1;
            let (answer, ms) = ask(&mut peer, asked, question).await;
            assert_eq!(answer["tier"], tier, "{answer}");
            assert_eq!(answer["degraded"], Value::Null, "{answer}");
            all.entry(tier.to_owned()).or_default().push(ms);
        }
    }
    peer.leave().await;
    for node in nodes {
        node.stop("test", 100).await;
    }
    Some(all)
}

#[test]
#[ignore = "measures: takes a minute, and a machine with nothing else to do"]
fn latencies_by_tier_with_the_cloud_near_and_far() {
    println!("| round trip to the cloud | device p50 / p99 | edge p50 / p99 | cloud p50 / p99 |");
    println!("|---|---|---|---|");
    for round_trip_ms in [0, 50, 200] {
        let found = actix::System::new().block_on(measured(round_trip_ms));
        let Some(found) = found else { return };
        let tier = |name: &str| {
            let at = |percent| percentile(&found[name], percent).unwrap();
            format!("{:.1} / {:.1} ms", at(50.0), at(99.0))
        };
        println!(
            "| {round_trip_ms} ms | {} | {} | {} |",
            tier("device"),
            tier("edge"),
            tier("cloud")
        );
    }
}
