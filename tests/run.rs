//! `gaisnet run` as a process against mosquitto: what a service manager, Prometheus and an operator
//! with `mosquitto_pub` see of a node.
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

use gaisnet::bus::Bus;
use serde_json::Value;
use support::process::{Federation, gaisnet, mosquitto_pub, page_says, text};
use support::{Mosquitto, Peer, kept};

const CLOUD: &str = "gaisnet/v1/_/_/cloud";
const PAGE: &str = "telemetry.metrics_listen=127.0.0.1:0";

/// Waits for a telegram on this topic that holds `words`.
async fn hears(peer: &mut Peer, leaf: &str, words: &str) -> (Value, bool) {
    loop {
        let (topic, payload, retained) = peer.delivery().await;
        if topic.ends_with(leaf) && payload.contains(words) {
            return (serde_json::from_str(&payload).unwrap(), retained);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_answers_mosquitto_pub_and_says_goodbye_on_sigterm() {
    let Some(broker) = Mosquitto::start() else { return };
    let federation = Federation::with_cloud();
    let mut cloud = federation.run("cloud", broker.port, &[PAGE]);
    let page = cloud.page();
    page_says(&page, "/readyz", 200);
    page_says(&page, "/livez", 200);
    let metrics = page_says(&page, "/metrics", 200);
    for part in ["gaisnet_build_info{", "gaisnet_ledger_entries 1\n", "gaisnet_store_commits"] {
        assert!(metrics.contains(part), "{part} is missing in\n{metrics}");
    }

    let mut scada = Peer::up(broker.port, "scada").await;
    scada.listen(&[&format!("{CLOUD}/reply/+")]).await;
    mosquitto_pub(broker.port, &["-t", &format!("{CLOUD}/cmd/status"), "-m", r#"{"id":"q-1"}"#]);
    let (reply, _) = hears(&mut scada, "/reply/status", "q-1").await;
    assert_eq!((&reply["status"], &reply["data"]["version"]), (&"ok".into(), &0.into()));

    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
    scada.bus.subscribe(&[format!("{CLOUD}/status")]).unwrap();
    let (status, retained) = hears(&mut scada, "/status", "").await;
    assert_eq!((&status["online"], retained), (&false.into(), true));
    let store = federation.path("cloud/store");
    let show = gaisnet(&["audit", "show", "--store", &store, "--tail", "1"]);
    assert!(text(&show).contains("node_stop"), "{}", text(&show));
    let verify = gaisnet(&["audit", "verify", "--store", &store]);
    assert!(verify.status.success(), "{}", text(&verify));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_offline_by_its_last_will_and_a_lie_about_a_living_one_is_corrected() {
    let Some(broker) = Mosquitto::start() else { return };
    let federation = Federation::with_cloud();
    let mut cloud = federation.run("cloud", broker.port, &[]);
    let mut scada = Peer::up(broker.port, "scada").await;
    scada.bus.subscribe(&[format!("{CLOUD}/status")]).unwrap();
    hears(&mut scada, "/status", r#""online":true"#).await;
    scada.bus.publish(kept(&format!("{CLOUD}/status"), r#"{"online":false}"#)).unwrap();
    hears(&mut scada, "/status", r#""online":false"#).await;
    hears(&mut scada, "/status", r#""online":true"#).await;
    cloud.kill();
    hears(&mut scada, "/status", r#""online":false"#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_is_present_at_both_brokers_and_away_at_both_when_it_dies() {
    let (Some(site), Some(top)) = (Mosquitto::start(), Mosquitto::start()) else { return };
    let federation = Federation::with_cloud();
    federation.init(&["edge", "--name", "edge-n", "--site", "north", "--parent", "cloud"]);
    let parent = format!("bus.parent.port={}", top.port);
    let set = ["bus.parent.host=127.0.0.1", &parent, PAGE];
    let mut edge = federation.run("edge-n", site.port, &set);
    let page = edge.page();
    let topic = "gaisnet/v1/north/_/edge-n/status";
    let mut peers = Vec::new();
    for port in [site.port, top.port] {
        let mut peer = Peer::up(port, "watch").await;
        peer.bus.subscribe(&[topic.into()]).unwrap();
        hears(&mut peer, "/status", r#""online":true"#).await;
        peers.push(peer);
    }
    page_says(&page, "/readyz", 200);
    edge.kill();
    for peer in &mut peers {
        hears(peer, "/status", r#""online":false"#).await;
    }
}

#[test]
fn a_node_without_its_broker_lives_and_says_why_it_is_not_ready() {
    let federation = Federation::with_cloud();
    let port = support::free_port();
    let mut cloud = federation.run("cloud", port, &[PAGE]);
    let page = cloud.page();
    page_says(&page, "/livez", 200);
    let answer = page_says(&page, "/readyz", 503);
    assert!(answer.contains("link_down"), "{answer}");
    cloud.logs("nothing listens there");
    support::process::wait_for("the reason", || {
        let (_, answer) = support::process::get(&page, "/readyz");
        let body = answer.contains(&format!("127.0.0.1:{port} is unreachable"));
        if body { Ok(()) } else { Err(answer) }
    });
    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
}
