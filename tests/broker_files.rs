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

/// Starts mosquitto with a shipped file and the shipped example of a list.
fn shipped(file: &str) -> Option<Mosquitto> {
    Mosquitto::shipped(file, include_str!("../brokers/mosquitto/acl.example"), &USERS)
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
    let Some(mut broker) = shipped("plain.conf") else { return };
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
    let Some(broker) = shipped("acl.conf") else { return };
    let of = |user| login(&broker, user);
    rights_hold(of("press-3"), of("edge"), of("scada")).await;
    let reason = Peer::new(settings(broker.port, "nobody")).disconnected().await;
    assert!(reason.contains("password"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_configuration_wants_certificate_and_password() {
    let Some(broker) = shipped("tls.conf") else { return };
    let file = |name: &str| broker.dir.path().join(name);
    let of = |user| {
        let mut sealed = login(&broker, user);
        sealed.host = "localhost".into();
        let client = Some((file("client.pem"), file("client.key")));
        sealed.tls = Some(TlsSettings { ca_file: file("ca.pem"), client });
        sealed
    };
    rights_hold(of("press-3"), of("edge"), of("scada")).await;
    let mut stranger = of("press-3");
    stranger.password = Some("wrong".into());
    let reason = Peer::new(stranger).disconnected().await;
    assert!(reason.contains("password"), "{reason}");
}
