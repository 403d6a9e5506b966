//! The pilot of the template `maintenance-text` as a person would start it: a cloud, an edge and a device, each a
//! process of `gaisnet run` with SmolLM2, behind mosquitto. One round of a few steps on texts of the device's own.
//!
//! The base comes by `gaisnet model fetch smollm2-135m`; where it isn't in the cache, the test says so and is
//! counted.
#![cfg(all(feature = "cli", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use gaisnet::bus::{Bus, BusEvent};
use gaisnet::data::Cache;
use gaisnet::torch::AdoptedCard;
use serde_json::{Value, json};
use support::process::{Federation, Running, gaisnet, text};
use support::{Mosquitto, Peer, message, skip};
use tokio::time::{sleep, timeout};

const NODES: [&str; 3] = ["cloud", "edge-north", "excavator-a"];
const DEVICE: &str = "gaisnet/v1/north/_/excavator-a";
const EDGE: &str = "gaisnet/v1/north/_/edge-north";
const CLOUD: &str = "gaisnet/v1/_/_/cloud";
/// What differs from the template: a round that a test can wait for, started by hand.
const SET: [&str; 5] = [
    "strategy.local_steps=2",
    "privacy.profile=lab",
    "round.rounds=1",
    "round.auto_start=false",
    "commands.unsigned=status,infer,round.start",
];
/// The weights are unpacked without optimisation here, by three processes at once.
const LONG: Duration = Duration::from_secs(600);

/// Whether the base is in the user's cache.
fn is_fetched() -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m.toml");
    let card = AdoptedCard::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    match card.place(&path, &Cache::from_env().unwrap().models()) {
        Ok(_) => true,
        Err(error) => {
            skip(&error.to_string());
            false
        }
    }
}

/// The three folders, and the device's texts.
fn folders() -> Federation {
    let federation = Federation::named("maintenance-text");
    let init = |line: &[&str]| {
        federation.init(&[line, &["--template", "maintenance-text"]].concat());
    };
    init(&["cloud", "--name", "cloud"]);
    init(&["edge", "--name", "edge-north", "--site", "north", "--parent", "cloud"]);
    init(&["device", "--name", "excavator-a", "--site", "north", "--parent", "edge-north"]);
    let mut orders = "date,short_text\n".to_owned();
    for day in 1..=28 {
        let part = ["bucket teeth", "hydraulic hose", "track roller", "seat belt"][day % 4];
        writeln!(orders, "2024-02-{day:02},replaced {part} after {} h", day * 37).unwrap();
    }
    std::fs::write(federation.path("orders.csv"), orders).unwrap();
    let file = federation.path("excavator-a/gaisnet.toml");
    let data =
        format!("\n[data]\nfile = {:?}\ncolumn = \"short_text\"\n", federation.path("orders.csv"));
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + &data).unwrap();
    federation
}

/// Somebody at the broker.
struct Asker {
    peer: Peer,
    asked: u32,
}

impl Asker {
    /// The next telegram on a topic.
    async fn hears(&mut self, wanted: &str) -> Value {
        let waited = timeout(LONG, async {
            loop {
                if let BusEvent::Delivery(delivery) = self.peer.events.recv().await.unwrap() {
                    delivery.ack.release();
                    if delivery.topic == wanted {
                        return serde_json::from_slice(&delivery.payload).unwrap();
                    }
                }
            }
        });
        waited.await.unwrap_or_else(|_| panic!("nothing came on {wanted}"))
    }

    /// Waits until all say that they are online: a node that runs has not subscribed yet.
    async fn until_online(&mut self, branches: &[&str]) {
        let mut missing: BTreeSet<String> =
            branches.iter().map(|branch| format!("{branch}/status")).collect();
        let waited = timeout(LONG, async {
            while !missing.is_empty() {
                if let BusEvent::Delivery(delivery) = self.peer.events.recv().await.unwrap() {
                    delivery.ack.release();
                    let said: Value = serde_json::from_slice(&delivery.payload).unwrap();
                    if said["online"] == true {
                        missing.remove(&delivery.topic);
                    }
                }
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not all came online"));
    }

    async fn ask(&mut self, branch: &str, more: &Value) -> Value {
        self.asked += 1;
        let mut request = json!({"id": format!("q-{}", self.asked), "prompt": "Bucket teeth worn,",
            "max_tokens": 2, "deadline_ms": 120_000});
        for (key, value) in more.as_object().unwrap() {
            request[key] = value.clone();
        }
        let topic = format!("{branch}/infer/orders");
        self.peer.bus.publish(message(&topic, request.to_string())).unwrap();
        let reply = self.hears(&format!("{branch}/reply/infer")).await;
        assert_eq!((&reply["status"], &reply["id"]), (&json!("ok"), &request["id"]), "{reply}");
        assert_eq!(reply["quality"], "good", "{reply}");
        reply
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_with_smollm2_learn_in_a_round_and_answer_with_it() {
    if !is_fetched() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let federation = folders();
    let mut peer = Peer::up(broker.port, "hmi").await;
    let branches = [DEVICE, EDGE, CLOUD];
    let heard = ["reply/+", "status"].map(|leaf| branches.map(|branch| format!("{branch}/{leaf}")));
    peer.listen(&heard.as_flattened().iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut hmi = Asker { peer, asked: 0 };
    let mut nodes = NODES.map(|node| federation.run(node, broker.port, &SET));
    for node in &mut nodes {
        node.says("is running");
    }

    hmi.until_online(&[DEVICE, EDGE, CLOUD]).await;
    let before = hmi.ask(DEVICE, &json!({})).await;
    assert_eq!((&before["model_version"], &before["tier"]), (&json!(0), &json!("device")));
    assert_eq!((&before["tokens"], &before["finish"]), (&json!(2), &json!("length")));

    let topic = format!("{CLOUD}/cmd/round.start");
    hmi.peer.bus.publish(message(&topic, r#"{"id":"go"}"#)).unwrap();
    let started = hmi.hears(&format!("{CLOUD}/reply/round.start")).await;
    assert_eq!(started["status"], "ok", "{started}");
    let after = learned(&mut hmi, DEVICE, &nodes).await;
    let edge = learned(&mut hmi, EDGE, &nodes).await;
    assert_eq!(edge["text"], after["text"], "one version is one adapter, wherever it answers");
    let bare = hmi.ask(DEVICE, &json!({"adapter": 0})).await;
    assert_eq!((&bare["text"], &bare["model_version"]), (&before["text"], &json!(0)));

    for (name, mut node) in NODES.iter().zip(nodes) {
        assert_eq!(node.terminate(), Some(0), "{}", node.log());
        let store = federation.path(&format!("{name}/store"));
        let verify = gaisnet(&["audit", "verify", "--store", &store]);
        assert!(verify.status.success(), "{}", text(&verify));
    }
    let show = |name: &str| {
        let store = federation.path(&format!("{name}/store"));
        text(&gaisnet(&["audit", "show", "--store", &store, "--json"]))
    };
    for owner in ["edge-north", "cloud"] {
        assert!(show(owner).contains("round_commit"), "{}", show(owner));
    }
}

/// Asks until the answer is of version 1.
async fn learned(hmi: &mut Asker, branch: &str, nodes: &[Running]) -> Value {
    for _ in 0..LONG.as_secs() {
        // One token comes with the prompt, which libtorch reads: the cheapest question.
        if hmi.ask(branch, &json!({"max_tokens": 1})).await["model_version"] == 1 {
            return hmi.ask(branch, &json!({"adapter": 1})).await;
        }
        sleep(Duration::from_secs(1)).await;
    }
    let logs: Vec<String> = nodes.iter().map(Running::log).collect();
    panic!("no version 1 at {branch}: {}", logs.join("\n"));
}
