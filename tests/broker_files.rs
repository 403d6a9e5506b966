//! The mosquitto configurations in `brokers/` do what they say; only paths and ports differ here.
#![cfg(feature = "mqtt")]
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
use gaisnet::bus::mqtt::{MqttSettings, TlsSettings};
use support::{Mosquitto, Peer, kept, message, settings};

const USERS: [&str; 4] = ["press-3", "edge", "scada", "operator"];
const PRESS: &str = "gaisnet/v1/north/line-1/press-3";

const PLAIN: &str = include_str!("../brokers/mosquitto/plain.conf");
const ACL: &str = include_str!("../brokers/mosquitto/acl.conf");
const TLS: &str = include_str!("../brokers/mosquitto/tls.conf");

/// Starts mosquitto with a shipped configuration and the shipped example of a list.
fn shipped(config: &str) -> Option<Mosquitto> {
    Mosquitto::shipped(config, include_str!("../brokers/mosquitto/acl.example"), &USERS)
}

fn login(broker: &Mosquitto, user: &str) -> MqttSettings {
    let mut login = settings(broker.port, user);
    (login.username, login.password) = (Some(user.into()), Some(user.into()));
    login
}

/// SCADA hears a press's figures, and nothing that another one claims about it.
async fn rights_hold(press: MqttSettings, edge: MqttSettings, scada: MqttSettings) {
    let press = Peer::new(press);
    let edge = Peer::new(edge);
    press.bus.publish(kept(&format!("{PRESS}/kpi"), "true")).unwrap();
    edge.bus.publish(kept(&format!("{PRESS}/status"), "forged")).unwrap();
    press.leave().await;
    edge.leave().await;
    let mut scada = Peer::new(scada);
    scada.connected().await;
    scada.bus.subscribe(&["gaisnet/v1/north/+/+/status".into()]).unwrap();
    scada.bus.subscribe(&["gaisnet/v1/north/+/+/kpi".into()]).unwrap();
    let (topic, payload, retained) = scada.delivery().await;
    assert_eq!((topic, payload, retained), (format!("{PRESS}/kpi"), "true".into(), true));
    scada.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_configuration_keeps_retained_values_over_a_restart() {
    let Some(mut broker) = shipped(PLAIN) else { return };
    let mut peer = Peer::up(broker.port, "peer").await;
    peer.listen(&["x"]).await;
    peer.bus.publish(kept("kept", "here")).unwrap();
    peer.bus.publish(message("x", "1")).unwrap();
    assert_eq!(peer.delivery().await.1, "1");
    // autosave_interval 1 counts changes, not seconds: it is on disk now.
    broker.kill();
    broker.start_again();
    peer.connected().await;
    peer.bus.subscribe(&["kept".into()]).unwrap();
    // What wasn't acknowledged when it died may come again first.
    let kept = loop {
        let (topic, payload, retained) = peer.delivery().await;
        if topic == "kept" {
            break (payload, retained);
        }
    };
    assert_eq!(kept, ("here".into(), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_list_lets_nodes_write_their_own_branch_only() {
    let Some(broker) = shipped(ACL) else { return };
    let of = |user| login(&broker, user);
    rights_hold(of("press-3"), of("edge"), of("scada")).await;
    let reason = Peer::new(settings(broker.port, "nobody")).disconnected().await;
    assert!(reason.contains("password"), "{reason}");
}

/// The login of a user over TLS, with our certificate or without one.
fn sealed(broker: &Mosquitto, user: &str, with_certificate: bool) -> MqttSettings {
    let file = |name: &str| broker.dir.path().join(name);
    let mut sealed = login(broker, user);
    sealed.host = "localhost".into();
    let client = with_certificate.then(|| (file("client.pem"), file("client.key")));
    sealed.tls = Some(TlsSettings { ca_file: file("ca.pem"), client });
    sealed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_configuration_wants_certificate_and_password() {
    let Some(broker) = shipped(TLS) else { return };
    let of = |user| sealed(&broker, user, true);
    rights_hold(of("press-3"), of("edge"), of("scada")).await;
    let mut stranger = of("press-3");
    stranger.password = Some("wrong".into());
    let reason = Peer::new(stranger).disconnected().await;
    assert!(reason.contains("password"), "{reason}");
    let reason = Peer::new(sealed(&broker, "press-3", false)).disconnected().await;
    assert!(reason.contains("client certificate"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_configuration_without_its_line_about_certificates_wants_the_password_only() {
    let line = "require_certificate true";
    assert!(TLS.contains(line));
    let Some(broker) = shipped(&TLS.replace(line, "")) else { return };
    let of = |user| sealed(&broker, user, false);
    rights_hold(of("press-3"), of("edge"), of("scada")).await;
    let mut stranger = of("press-3");
    stranger.password = Some("wrong".into());
    let reason = Peer::new(stranger).disconnected().await;
    assert!(reason.contains("password"), "{reason}");
}

/// `gaisnet broker --file` with the shipped file, its example of a user switched on.
#[cfg(all(feature = "cli", feature = "broker"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_configuration_with_a_user_gives_it_what_it_says() {
    use std::io::BufRead;
    use std::os::unix::fs::PermissionsExt;

    let (general, user) =
        include_str!("../brokers/embedded.toml").split_once("# [[users]]").unwrap();
    let text = format!("{general}[[users]]{}", user.replace("\n# ", "\n"));
    let text = text.replace("127.0.0.1:1883", "127.0.0.1:0");
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("embedded.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_gaisnet"))
        .args(["broker", "--json", "--file"])
        .arg(path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut told).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let port = u16::try_from(told["port"].as_u64().unwrap()).unwrap();

    let mut press = settings(port, "press-3");
    (press.username, press.password) = (Some("press-3".into()), Some("change me".into()));
    let mut stranger = press.clone();
    stranger.password = Some("wrong".into());
    let mut peer = Peer::new(press);
    peer.connected().await;
    let own = format!("{PRESS}/cmd/+");
    peer.bus.subscribe(&[own, "gaisnet/v1/north/line-1/press-4/cmd/+".into()]).unwrap();
    let refused = loop {
        if let gaisnet::bus::BusEvent::SubscriptionRefused { filter } = peer.next().await {
            break filter;
        }
    };
    assert!(refused.contains("press-4"), "{refused}");
    let reason = Peer::new(stranger).disconnected().await;
    assert!(reason.contains("password"), "{reason}");
    child.kill().unwrap();
    child.wait().unwrap();
}
