//! What goes wrong at a real node: each time the cause and the way out are said, the process ends
//! with a code where it can't go on, and lives on where it can.
//!
//! Hostile messages are elsewhere; here it is plain bad luck and mistakes.
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

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use support::process::{Federation, get, mosquitto_pub, page_says, wait_for};
use support::{Mosquitto, Peer, free_port};

const CLOUD: &str = "gaisnet/v1/_/_/cloud";
const PAGE: &str = "telemetry.metrics_listen=127.0.0.1:0";

/// Starts the cloud, which has to end with 1 or 3 and to say all of this.
fn cannot_start(federation: &Federation, words: &[&str]) {
    let mut cloud = federation.run("cloud", free_port(), &[]);
    let code = cloud.ends();
    assert!(matches!(code, Some(1 | 3)), "{code:?}: {}", cloud.log());
    let log = cloud.log();
    for word in words {
        assert!(log.contains(word), "{word:?} is missing in: {log}");
    }
}

/// The twin: with the trouble mended it starts and ends in order.
fn starts(federation: &Federation) {
    let mut cloud = federation.run("cloud", free_port(), &[]);
    cloud.says("is running");
    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
}

fn chmod(path: &str, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let federation = Federation::with_cloud();
    let key = federation.path("cloud/keys/node.pem");
    chmod(&key, 0o644);
    cannot_start(&federation, &["open to others (mode 644)", &format!("chmod 600 {key}")]);
    chmod(&key, 0o600);
    starts(&federation);
}

#[test]
fn a_key_that_is_missing_or_no_key_is_named_with_the_way_out() {
    let federation = Federation::with_cloud();
    let key = federation.path("cloud/keys/node.pem");
    let good = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    cannot_start(&federation, &[&key, "gaisnet keys new"]);
    std::fs::write(&key, "not a key\n").unwrap();
    chmod(&key, 0o600);
    cannot_start(&federation, &[&key]);
    std::fs::write(&key, good).unwrap();
    starts(&federation);
}

#[test]
fn another_nodes_key_and_a_missing_keyring_are_told_apart() {
    let federation = Federation::with_cloud();
    let (key, keyring) = (federation.path("cloud/keys/node.pem"), federation.path("keyring"));
    let good = std::fs::read(&key).unwrap();
    federation.init(&["edge", "--name", "edge-n", "--site", "north", "--parent", "cloud"]);
    std::fs::copy(federation.path("edge-n/keys/node.pem"), &key).unwrap();
    cannot_start(&federation, &["is not the one that the keyring has for cloud"]);
    std::fs::write(&key, good).unwrap();
    let document = std::fs::read(&keyring).unwrap();
    std::fs::remove_file(&keyring).unwrap();
    cannot_start(&federation, &[&keyring, "gaisnet keyring accept"]);
    std::fs::write(&keyring, document).unwrap();
    starts(&federation);
}

#[test]
fn a_damaged_store_stops_the_start_and_names_the_file_and_the_way_back() {
    let federation = Federation::with_cloud();
    starts(&federation);
    let file = federation.path("cloud/store/node.sqlite");
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad.iter_mut().skip(4_096).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&file, &bad).unwrap();
    cannot_start(&federation, &[&file, "is damaged", "restore it from a backup"]);
    std::fs::write(&file, b"").unwrap();
    cannot_start(&federation, &[&file, "is damaged"]);
    std::fs::write(&file, &good).unwrap();
    starts(&federation);
}

#[test]
fn a_second_process_of_the_same_node_does_not_start() {
    let federation = Federation::with_cloud();
    let mut first = federation.run("cloud", free_port(), &[]);
    first.says("is running");
    let log = first.log();
    cannot_start(&federation, &["is in use by another process"]);
    assert!(first.is_running(), "{log}");
}

#[test]
fn a_health_page_on_a_taken_port_is_said_at_once() {
    let federation = Federation::with_cloud();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let page = format!("telemetry.metrics_listen={address}");
    let mut cloud = federation.run("cloud", free_port(), &[&page]);
    assert_eq!(cloud.ends(), Some(1));
    assert!(cloud.log().contains(&address) && cloud.log().contains("choose another"));
}

#[test]
fn a_wrong_password_is_said_and_the_right_one_later_lets_the_node_in() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    std::fs::write(&users, "").unwrap();
    let made =
        Command::new("mosquitto_passwd").arg("-b").arg(&users).args(["cloud", "right"]).output();
    if made.is_err() {
        return support::skip("mosquitto_passwd is not installed (apt install mosquitto)");
    }
    let lines = "allow_anonymous false\npassword_file DIR/users";
    let Some(broker) = Mosquitto::start_in(dir, lines) else { return };
    let federation = Federation::with_cloud();
    let password = federation.path("cloud/password");
    let file = format!("bus.site.password_file={password}");
    let set = ["bus.site.username=cloud", file.as_str(), PAGE];
    std::fs::write(&password, "wrong\n").unwrap();
    let mut cloud = federation.run("cloud", broker.port, &set);
    let page = cloud.page();
    cloud.logs("password");
    wait_for("the reason", || {
        let (code, answer) = get(&page, "/readyz");
        let said = code == 503 && answer.contains("user cloud");
        if said { Ok(()) } else { Err(answer) }
    });
    assert_eq!(cloud.terminate(), Some(0));
    std::fs::write(&password, "right\n").unwrap();
    let mut cloud = federation.run("cloud", broker.port, &set);
    let page = cloud.page();
    page_says(&page, "/readyz", 200);
}

/// Commands that are no good: each is answered with what is wrong, and the node is as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_commands_and_requests_are_answered_and_harm_nothing() {
    let Some(broker) = Mosquitto::start() else { return };
    let federation = Federation::with_cloud();
    let pause = format!("{CLOUD}/cmd/pause");
    mosquitto_pub(broker.port, &["-r", "-t", &pause, "-m", r#"{"id":"kept"}"#]);
    let mut scada = Peer::up(broker.port, "scada").await;
    scada.listen(&[&format!("{CLOUD}/reply/+")]).await;
    let mut cloud = federation.run("cloud", broker.port, &[PAGE]);
    let page = cloud.page();
    hears(&mut scada, "/reply/pause", "retained").await;
    page_says(&page, "/readyz", 200);

    let large = federation.path("large");
    std::fs::write(&large, vec![b'['; 10_000_000]).unwrap();
    for (leaf, payload, kind) in [
        ("cmd/status", "{id:1}", "not_json"),
        ("cmd/status", r#"{"argz":1}"#, "unknown_field"),
        ("cmd/rollback", "{}", "needs_signature"),
        ("infer/bearing", r#"{"input":[1,2,3]}"#, "wrong_length"),
        ("infer/other", "{}", ""),
    ] {
        mosquitto_pub(broker.port, &["-t", &format!("{CLOUD}/{leaf}"), "-m", payload]);
        let leaf = if leaf.starts_with("infer") { "infer" } else { leaf.split_at(4).1 };
        let reply = hears(&mut scada, &format!("/reply/{leaf}"), kind).await;
        assert_eq!(reply["status"], "error", "{reply}");
        assert!(!reply["error"]["hint"].as_str().unwrap().is_empty(), "{reply}");
    }
    mosquitto_pub(broker.port, &["-t", &format!("{CLOUD}/cmd/status"), "-f", &large]);
    hears(&mut scada, "/reply/status", "too_large").await;
    mosquitto_pub(broker.port, &["-t", &format!("{CLOUD}/cmd/status"), "-m", r#"{"id":"q"}"#]);
    let reply = hears(&mut scada, "/reply/status", "\"q\"").await;
    assert_eq!((&reply["status"], &reply["data"]["phase"]), (&"ok".into(), &"idle".into()));
    page_says(&page, "/readyz", 200);
    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
}

/// Waits for a reply on this topic that holds `words`.
async fn hears(peer: &mut Peer, leaf: &str, words: &str) -> Value {
    loop {
        let (topic, payload, _) = peer.delivery().await;
        if topic.ends_with(leaf) && payload.contains(words) {
            return serde_json::from_str(&payload).unwrap();
        }
    }
}

/// The embedded broker as a process; its port.
#[cfg(feature = "broker")]
fn embedded(line: &[&str]) -> (std::process::Child, u16) {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
        .args(["broker", "--listen", "127.0.0.1:0", "--json"])
        .args(line)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut told).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    (child, u16::try_from(told["port"].as_u64().unwrap()).unwrap())
}

#[cfg(feature = "broker")]
#[test]
fn a_refused_subscription_is_an_error_that_names_the_topic() {
    let federation = Federation::with_cloud();
    let (users, acl) = (federation.path("users"), federation.path("acl"));
    std::fs::write(&users, "cloud:secret\n").unwrap();
    chmod(&users, 0o600);
    let rights = format!("user cloud\ntopic write {CLOUD}/#\ntopic read {CLOUD}/status\n");
    std::fs::write(&acl, rights).unwrap();
    let (mut broker, port) = embedded(&["--users", &users, "--acl", &acl]);
    let password = federation.path("cloud/password");
    std::fs::write(&password, "secret\n").unwrap();
    let file = format!("bus.site.password_file={password}");
    let set = ["bus.site.username=cloud", file.as_str(), PAGE];
    let mut cloud = federation.run("cloud", port, &set);
    let page = cloud.page();
    cloud.logs(&format!("{CLOUD}/cmd/+"));
    let answer = page_says(&page, "/readyz", 503);
    let said = |answer: &str| answer.contains("subscription_down") && answer.contains("cmd/+");
    wait_for("the topic", || {
        let (_, answer) = get(&page, "/readyz");
        if said(&answer) { Ok(()) } else { Err(answer) }
    });
    assert!(!answer.contains("ready\":true"));
    broker.kill().unwrap();
    broker.wait().unwrap();
}
