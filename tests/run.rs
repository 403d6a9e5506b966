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
use support::{Mosquitto, Peer, kept, message};

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
    page_says(&page, "/readyz", 503);
    // The page answers before the node has begun, and says that it is starting.
    support::process::wait_for("its link is down", || {
        let (_, answer) = support::process::get(&page, "/readyz");
        if answer.contains("link_down") { Ok(()) } else { Err(answer) }
    });
    cloud.logs("nothing listens there");
    support::process::wait_for("the reason", || {
        let (_, answer) = support::process::get(&page, "/readyz");
        let body = answer.contains(&format!("127.0.0.1:{port} is unreachable"));
        if body { Ok(()) } else { Err(answer) }
    });
    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_asks_its_edge_where_the_access_list_lets_it_and_else_answers_itself() {
    let federation = Federation::with_cloud();
    federation.init(&["edge", "--name", "edge-n", "--site", "north", "--parent", "cloud"]);
    federation.init(&["device", "--name", "p1", "--site", "north", "--parent", "edge-n"]);
    let keyring = federation.path("keyring");
    for (more, tier, degraded) in
        [(&["--cascade"][..], "edge", Value::Null), (&[], "device", "deadline".into())]
    {
        let line = ["acl", "--keyring", &keyring, "--site", "north"];
        let list = String::from_utf8(gaisnet(&[&line[..], more].concat()).stdout).unwrap();
        let users = ["edge-n", "p1", "operator"];
        let Some(broker) = Mosquitto::shipped(Mosquitto::GUARDED, &list, &users) else { return };
        let run = |node: &str| {
            let user = format!("bus.site.username={node}");
            let password = format!("bus.site.password_file={}", federation.password(node));
            let set = [&user, &password, "cascade.enabled=true", "cascade.wait_ms=1000"];
            federation.run(node, broker.port, &set)
        };
        let mut asker = support::settings(broker.port, "asker");
        (asker.username, asker.password) = (Some("operator".into()), Some("operator".into()));
        let mut asker = Peer::new(asker);
        asker.connected().await;
        let b = "gaisnet/v1/north/_/p1";
        let topics = [format!("{b}/reply/infer"), "gaisnet/v1/north/+/+/status".into()];
        asker.bus.subscribe(&topics).unwrap();
        let mut nodes = Vec::new();
        for node in ["edge-n", "p1"] {
            nodes.push(run(node));
            hears(&mut asker, &format!("{node}/status"), r#""online":true"#).await;
        }
        let window: Vec<f64> = (0..2_048).map(|at| f64::from(at).sin()).collect();
        let request = serde_json::json!({"id": "q", "input": window}).to_string();
        asker.bus.publish(message(&format!("{b}/infer/bearing"), request)).unwrap();
        let (answer, _) = hears(&mut asker, "/reply/infer", r#""id":"q""#).await;
        let found = (&answer["tier"], &answer["degraded"], &answer["bound"]);
        assert_eq!(found, (&tier.into(), &degraded, &Value::Null), "{answer}");
        for mut node in nodes {
            assert_eq!(node.terminate(), Some(0), "{}", node.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_make_accuracy_of_the_answers_on_what_they_are_true_of() {
    let Some(broker) = Mosquitto::start() else { return };
    let federation = Federation::with_cloud();
    let tags = "\n[[tags]]\ntopic = \"plant/vibration\"\nbinds = \"feature\"\nmodel = \"bearing\"\nhop = 4096\n\
                [[tags]]\ntopic = \"plant/state\"\nbinds = \"label\"\n";
    let file = federation.path("cloud/gaisnet.toml");
    let settings = std::fs::read_to_string(&file).unwrap() + tags;
    std::fs::write(&file, settings).unwrap();
    let mut scada = Peer::up(broker.port, "scada").await;
    scada.listen(&[&format!("{CLOUD}/status"), &format!("{CLOUD}/inference/+")]).await;
    let mut cloud = federation.run("cloud", broker.port, &[]);
    hears(&mut scada, "/status", r#""online":true"#).await;
    let samples: Vec<f64> = (0..2_048).map(|at| f64::from(at).sin()).collect();
    // Half a window before the label: the window that it lies in isn't judged.
    let half = serde_json::to_vec(&samples[..1_024]).unwrap();
    let samples = serde_json::to_vec(&samples).unwrap();
    let say = |topic: &str, payload: &[u8]| scada.bus.publish(message(topic, payload)).unwrap();
    say("plant/vibration", &half);
    say("plant/state", br#""healthy""#);
    say("plant/vibration", &half);
    // With a hop of two windows the next one is left out.
    say("plant/vibration", &samples);
    say("plant/vibration", &samples);
    say("plant/state", br#""outer""#);
    say("plant/vibration", &samples);
    say("plant/vibration", &samples);
    for _ in 0..3 {
        hears(&mut scada, "/inference/bearing", r#""quality":"uncertain""#).await;
    }
    scada.bus.subscribe(&[format!("{CLOUD}/kpi")]).unwrap();
    let (kpi, _) = hears(&mut scada, "/kpi", r#""answers":3"#).await;
    // An untrained model says the first class each time: right once of two.
    assert_eq!(kpi["accuracy"], 0.5, "{kpi}");
    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_keyring_update_starts_the_node_again_and_a_wrong_one_changes_nothing() {
    let Some(broker) = Mosquitto::start() else { return };
    let federation = Federation::with_cloud();
    let (key, request) = (federation.path("ops/anna.pem"), federation.path("anna.json"));
    assert!(gaisnet(&["keys", "new", &key]).status.success());
    let who = ["--name", "anna", "--federation", "pilot", "--role", "operator"];
    let prove = gaisnet(&[&["keys", "prove", "--key", &key, "--out", &request], &who[..]].concat());
    assert!(prove.status.success(), "{}", text(&prove));
    federation.enrol(&request);
    let mut cloud = federation.run("cloud", broker.port, &[]);
    cloud.says("is running");
    let mut scada = Peer::up(broker.port, "scada").await;
    scada.listen(&[&format!("{CLOUD}/reply/+")]).await;

    federation.init(&["edge", "--name", "edge-n", "--site", "north", "--parent", "cloud"]);
    let keyring = federation.path("keyring");
    let bytes = std::fs::read(&keyring).unwrap();
    let right = gaisnet::ids::Digest::of(&bytes).to_string();
    for (digest, words) in [("0".repeat(64), "the command names"), (right, r#""status":"ok""#)] {
        let args = serde_json::json!({ "args": { "version": 4, "digest": digest } }).to_string();
        let line = ["cmd", "sign", "keyring.update", "--to", "_/_/cloud", "--json", &args];
        let signed = gaisnet(&[&line[..], &["--key", &key, "--keyring", &keyring]].concat());
        assert!(signed.status.success(), "{}", text(&signed));
        scada.bus.publish(message(&format!("{CLOUD}/cmd/keyring.update"), signed.stdout)).unwrap();
        hears(&mut scada, "/reply/keyring.update", words).await;
    }
    cloud.says("has stopped");
    cloud.says("is running");
    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
    let store = federation.path("cloud/store");
    let show = text(&gaisnet(&["audit", "show", "--store", &store, "--json"]));
    for words in ["keyring_refused", "key_add", "edge-n"] {
        assert!(show.contains(words), "{words} is missing in {show}");
    }
    assert_eq!(show.matches("node_start").count(), 2, "{show}");
}

/// A press with data of its own, whose work a tag tells, and a cabinet that may be too hot.
fn a_press(federation: &Federation) {
    federation.init(&["edge", "--name", "edge-n", "--site", "north", "--parent", "cloud"]);
    federation.init(&["device", "--name", "p1", "--site", "north", "--parent", "edge-n"]);
    let tags = "\n[[tags]]\ntopic = \"plant/p1/idle\"\nbinds = \"idle\"\n\
                [[tags]]\ntopic = \"plant/p1/heat\"\nbinds = \"veto\"\nabove = 55.0\n";
    let file = federation.path("p1/gaisnet.toml");
    let settings = std::fs::read_to_string(&file).unwrap() + tags;
    std::fs::write(&file, settings).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_press_trains_while_it_stands_still_and_cool_and_a_label_finds_its_answer() {
    let cache = gaisnet::data::Cache::from_env().unwrap();
    if gaisnet::data::bearings::Bearings::cached(&cache).is_none() {
        return support::skip(
            "data set bearings is not in the cache (gaisnet data fetch bearings)",
        );
    }
    let Some(broker) = Mosquitto::start() else { return };
    let federation = Federation::with_cloud();
    a_press(&federation);
    let mut scada = Peer::up(broker.port, "scada").await;
    // The gateway's last words, which the broker keeps: it works.
    scada.bus.publish(kept("plant/p1/idle", "false")).unwrap();
    scada.bus.publish(kept("plant/p1/heat", "70")).unwrap();
    let b = "gaisnet/v1/north/_/p1";
    let topics = [format!("{b}/reply/+"), format!("{b}/status"), format!("{CLOUD}/status")];
    scada.bus.subscribe(&topics).unwrap();
    let at = broker.port;
    let mut p1 = federation.run(
        "p1",
        at,
        &[
            PAGE,
            "data.set=bearings",
            "data.client=P1",
            "commands.unsigned=[\"infer\",\"feedback\"]",
        ],
    );
    let page = p1.page();
    let counted = async |what: &str| {
        for _ in 0..300 {
            if support::process::get(&page, "/metrics").1.contains(what) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        panic!("{what} never came: {}", support::process::get(&page, "/metrics").1);
    };
    hears(&mut scada, "p1/status", r#""online":true"#).await;
    let set = ["round.auto_start=true", "round.rounds=1", "privacy.profile=lab"];
    let mut cloud = federation.run("cloud", at, &set);
    let parent = [&format!("bus.parent.port={at}"), "bus.parent.host=127.0.0.1", set[2]];
    let mut edge = federation.run("edge-n", at, &parent);
    counted("training_waits_machine").await;
    // It answers meanwhile, and what was right after all finds that answer, once.
    let window: Vec<f64> = (0..2_048).map(|at| f64::from(at).sin()).collect();
    let request = serde_json::json!({"id": "q", "input": window}).to_string();
    scada.bus.publish(message(&format!("{b}/infer/bearing"), request)).unwrap();
    let (answer, _) = hears(&mut scada, "/reply/infer", r#""id":"q""#).await;
    assert_eq!(answer["model_version"], 0, "{answer}");
    for (label, word) in
        [("outer", r#""labelled":1"#), ("outer", r#""repeated":1"#), ("inner", "contradict")]
    {
        let label = serde_json::json!({"id": "q", "label": label}).to_string();
        scada.bus.publish(message(&format!("{b}/feedback/bearing"), label)).unwrap();
        hears(&mut scada, "/reply/feedback", word).await;
    }
    scada
        .bus
        .publish(message(&format!("{b}/feedback/bearing"), r#"{"id":"nobody","label":"outer"}"#))
        .unwrap();
    hears(&mut scada, "/reply/feedback", r#""status":"error""#).await;
    // It stands still, and is too hot; then it is cool.
    scada.bus.publish(kept("plant/p1/idle", "true")).unwrap();
    counted("training_waits_veto").await;
    assert!(!cloud.log().contains("the result is fixed"), "it waits");
    scada.bus.publish(kept("plant/p1/heat", "40")).unwrap();
    cloud.logs("the result is fixed");
    for (node, running) in [("cloud", &mut cloud), ("edge-n", &mut edge), ("p1", &mut p1)] {
        assert_eq!(running.terminate(), Some(0), "{node}: {}", running.log());
    }
}
