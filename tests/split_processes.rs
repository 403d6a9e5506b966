//! A site with split devices as processes: an edge and two devices with the front of the model over mosquitto
//! with the printed access list, a cloud over another one. They learn a round, answer by halves, and say so
//! when the edge is gone.
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

use gaisnet::bus::Bus;
use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use serde_json::{Value, json};
use support::process::{Federation, Running, gaisnet, page_says};
use support::{Mosquitto, Peer, message, skip};

const P1: &str = "gaisnet/v1/north/_/p1";
const MODEL: [&str; 5] = [
    "model.learner=signal-transformer",
    concat!("model.base=", env!("CARGO_MANIFEST_DIR"), "/models/signal-bearing.toml"),
    "strategy.local_steps=16",
    "strategy.batch_size=8",
    "privacy.profile=lab",
];

/// Waits for a telegram on this topic that holds `words`.
async fn hears(peer: &mut Peer, leaf: &str, words: &str) -> Value {
    loop {
        let (topic, payload, _) = peer.delivery().await;
        if topic.ends_with(leaf) && payload.contains(words) {
            return serde_json::from_str(&payload).unwrap();
        }
    }
}

fn start(federation: &Federation, node: &str, port: u16, more: &[String]) -> Running {
    let mut set: Vec<String> = MODEL.map(str::to_owned).to_vec();
    set.extend(more.iter().cloned());
    set.push("telemetry.metrics_listen=127.0.0.1:0".to_owned());
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    federation.run(node, port, &set)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_of_processes_learns_a_round_and_answers_by_halves() {
    if Bearings::cached(&Cache::from_env().unwrap()).is_none() {
        return skip("data set bearings is not in the cache (gaisnet data fetch bearings)");
    }
    let federation = Federation::with_cloud();
    federation.init(&["edge", "--name", "edge-n", "--site", "north", "--parent", "cloud"]);
    for device in ["p1", "p2"] {
        federation.init(&["device", "--name", device, "--site", "north", "--parent", "edge-n"]);
    }
    let keyring = federation.path("keyring");
    let line = ["acl", "--keyring", &keyring, "--site", "north", "--cascade"];
    let list = String::from_utf8(gaisnet(&line).stdout).unwrap();
    let users = ["edge-n", "p1", "p2", "operator"];
    let Some(site) = Mosquitto::shipped(Mosquitto::GUARDED, &list, &users) else { return };
    let Some(top) = Mosquitto::start() else { return };
    let user = |node: &str| {
        let password = federation.password(node);
        vec![
            format!("bus.site.username={node}"),
            format!("bus.site.password_file={password}"),
            "split.cut=1".to_owned(),
            "cascade.wait_ms=3000".to_owned(),
        ]
    };
    let mut cloud = start(&federation, "cloud", top.port, &[]);
    let parent = ["bus.parent.host=127.0.0.1".to_owned(), format!("bus.parent.port={}", top.port)];
    let edge_set = [user("edge-n"), parent.to_vec()].concat();
    let mut edge = start(&federation, "edge-n", site.port, &edge_set);
    let mut devices: Vec<Running> = [("p1", "P1"), ("p2", "P2")]
        .map(|(node, client)| {
            let data = ["data.set=bearings".to_owned(), format!("data.client={client}")];
            start(&federation, node, site.port, &[user(node), data.to_vec()].concat())
        })
        .into();
    for node in [&mut cloud, &mut edge].into_iter().chain(&mut devices) {
        let page = node.page();
        page_says(&page, "/readyz", 200);
    }
    let mut asker = support::settings(site.port, "asker");
    (asker.username, asker.password) = (Some("operator".into()), Some("operator".into()));
    let mut asker = Peer::new(asker);
    asker.connected().await;
    asker.bus.subscribe(&[format!("{P1}/reply/infer")]).unwrap();
    let window: Vec<f64> = (0..2_048).map(|at| f64::from(at).sin()).collect();
    let ask = |id: &str| {
        let request = json!({"id": id, "input": window}).to_string();
        message(&format!("{P1}/infer/bearing"), request)
    };
    asker.bus.publish(ask("untrained")).unwrap();
    let answer = hears(&mut asker, "/reply/infer", r#""id":"untrained""#).await;
    let who = |answer: &Value| {
        json!([answer["tier"], answer["node"], answer["split"], answer["model_version"]])
    };
    assert_eq!(who(&answer), json!(["edge", "edge-n", true, 0]), "{answer}");

    support::process::mosquitto_pub(
        top.port,
        &["-t", "gaisnet/v1/_/_/cloud/cmd/round.start", "-m", "{}"],
    );
    let mut version = Value::Null;
    for attempt in 0..200 {
        asker.bus.publish(ask(&format!("q-{attempt}"))).unwrap();
        let answer = hears(&mut asker, "/reply/infer", &format!(r#""id":"q-{attempt}""#)).await;
        version = answer["model_version"].clone();
        let whole = answer["split"] == true && answer["value"].is_number();
        assert!(whole || answer["degraded"] == "version", "{answer}");
        if version == 1 && whole {
            assert_eq!((&answer["quality"], &answer["tier"]), (&json!("good"), &json!("edge")));
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
    assert_eq!(version, 1, "{}\n{}", edge.log(), devices[0].log());

    edge.kill();
    asker.bus.publish(ask("alone")).unwrap();
    let answer = hears(&mut asker, "/reply/infer", r#""id":"alone""#).await;
    assert_eq!((&answer["value"], &answer["quality"]), (&Value::Null, &json!("bad")), "{answer}");
    assert_eq!(answer["degraded"], "deadline", "{answer}");
    for node in [&mut cloud].into_iter().chain(&mut devices) {
        assert_eq!(node.terminate(), Some(0), "{}", node.log());
    }
}
