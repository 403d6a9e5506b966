//! The rules of MQTT that the link and the embedded broker keep, each against real brokers: the
//! embedded one and, where it is installed, mosquitto.
#![cfg(all(feature = "mqtt", feature = "broker"))]
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
use std::net::SocketAddr;
use std::time::Duration;

use gaisnet::bus::embedded::{BrokerSettings, BrokerUser, EmbeddedBroker};
use gaisnet::bus::mqtt::TlsSettings;
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use support::{Mosquitto, Peer, Proxy, certificates, free_port, kept, message, settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// One of the brokers that a rule is tried with.
enum Broker {
    Embedded(EmbeddedBroker),
    Mosquitto(Mosquitto),
}

impl Broker {
    fn port(&self) -> u16 {
        match self {
            Self::Embedded(broker) => broker.address().port(),
            Self::Mosquitto(broker) => broker.port,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Mosquitto(_) => "mosquitto",
        }
    }

    /// Kills it and starts another one without memory on the same port.
    async fn replace(self) -> Self {
        match self {
            Self::Embedded(broker) => {
                let listen = broker.address();
                broker.stop().await;
                Self::Embedded(embedded(BrokerSettings { listen, ..free() }).await)
            }
            Self::Mosquitto(mut broker) => {
                broker.kill();
                broker.start_again();
                Self::Mosquitto(broker)
            }
        }
    }
}

fn free() -> BrokerSettings {
    BrokerSettings { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..BrokerSettings::default() }
}

async fn embedded(settings: BrokerSettings) -> EmbeddedBroker {
    EmbeddedBroker::start(settings).await.unwrap()
}

async fn brokers() -> Vec<Broker> {
    let mut brokers = vec![Broker::Embedded(embedded(free()).await)];
    brokers.extend(Mosquitto::start().map(Broker::Mosquitto));
    for broker in &brokers {
        eprintln!("{} listens on {}", broker.name(), broker.port());
    }
    brokers
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_session_delivers_what_came_meanwhile_without_subscribing_again() {
    for broker in brokers().await {
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x"]).await;
        listener.leave().await;
        let sender = Peer::up(broker.port(), "sender").await;
        for number in numbers(6) {
            sender.bus.publish(message("x", number)).unwrap();
        }
        sender.leave().await;
        let mut listener = Peer::new(settings(broker.port(), "listener"));
        assert!(!listener.connected().await, "{}", broker.name());
        assert_eq!(listener.payloads(6).await, numbers(6), "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_without_memory_is_subscribed_again() {
    for broker in brokers().await {
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x"]).await;
        let broker = broker.replace().await;
        assert!(listener.connected().await, "{}", broker.name());
        let sender = Peer::up(broker.port(), "sender").await;
        // The SUBSCRIBE of the listener and the message come over different connections.
        let patience = Instant::now() + support::PATIENCE;
        loop {
            assert!(Instant::now() < patience, "{}", broker.name());
            sender.bus.publish(message("x", "after")).unwrap();
            let event = timeout(Duration::from_millis(200), listener.events.recv()).await;
            if let Ok(Some(BusEvent::Delivery(delivery))) = event
                && delivery.topic == "x"
            {
                break;
            }
        }
    }
}

/// A node's `online` is such a message: whoever has read it may ask at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_waits_until_all_subscriptions_are_granted() {
    let broker = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let peer = Peer::new(settings(broker.local_addr().unwrap().port(), "node"));
    peer.bus.subscribe(&numbers(20)).unwrap();
    peer.bus.publish(message("status", "online")).unwrap();
    let (mut socket, _) = broker.accept().await.unwrap();
    let (connect, _) = packet(&mut socket).await;
    assert_eq!(connect >> 4, 1);
    socket.write_all(&[0x20, 2, 0, 0]).await.unwrap();
    let mut answers = Vec::new();
    for filters in [8, 8, 4] {
        let (kind, body) = packet(&mut socket).await;
        assert_eq!(kind, 0x82, "a SUBSCRIBE");
        let mut answer = vec![0x90, 2 + filters, body[0], body[1]];
        answer.extend(vec![1; usize::from(filters)]);
        answers.push(answer);
    }
    let last = answers.pop().unwrap();
    socket.write_all(&answers.concat()).await.unwrap();
    let early = timeout(Duration::from_millis(300), packet(&mut socket)).await;
    assert!(early.is_err(), "{early:?} with a subscription without an answer");
    socket.write_all(&last).await.unwrap();
    let (kind, body) = packet(&mut socket).await;
    assert!(kind >> 4 == 3 && body.ends_with(b"online"), "{kind:#x} {body:?}");
}

/// What a client says to a broker: the first byte, and what stands behind the length.
async fn packet(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    let kind = socket.read_u8().await.unwrap();
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = socket.read_u8().await.unwrap();
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.unwrap();
    (kind, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_error_with_messages_in_flight_loses_none() {
    for broker in brokers().await {
        let proxy = Proxy::before(broker.port()).await;
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x"]).await;
        let mut sender = Peer::up(proxy.port, "sender").await;
        proxy.freeze(true);
        for number in numbers(6) {
            sender.bus.publish(message("x", number)).unwrap();
        }
        sleep(Duration::from_millis(200)).await;
        proxy.cut();
        sender.disconnected().await;
        proxy.freeze(false);
        assert_eq!(listener.payloads(6).await, numbers(6), "{}", broker.name());
        sender.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_will_comes_when_the_link_breaks_and_not_after_a_goodbye() {
    for broker in brokers().await {
        let proxy = Proxy::before(broker.port()).await;
        let mut watcher = Peer::up(broker.port(), "watcher").await;
        watcher.listen(&["status/+"]).await;
        let mut with_will = settings(proxy.port, "n");
        with_will.will = Some(kept("status/n", "offline"));
        let mut node = Peer::new(with_will);
        node.connected().await;
        proxy.cut();
        let expected = ("status/n".to_owned(), "offline".to_owned(), false);
        assert_eq!(watcher.delivery().await, expected, "{}", broker.name());
        node.connected().await;
        node.bus.publish(kept("status/n", "online")).unwrap();
        assert_eq!(watcher.delivery().await.1, "online", "{}", broker.name());
        node.leave().await;
        watcher.bus.publish(message("status/w", "end")).unwrap();
        assert_eq!(watcher.delivery().await.1, "end", "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn take_over_publishes_the_old_will_and_keeps_the_new_one() {
    for broker in brokers().await {
        let mut watcher = Peer::up(broker.port(), "watcher").await;
        watcher.listen(&["status/+"]).await;
        for round in 0..10 {
            let will = |text: &str| Some(message("status/n", format!("{text} {round}")));
            let mut first = settings(broker.port(), "n");
            (first.will, first.retry_min_ms) = (will("old"), 60_000);
            let mut second = settings(broker.port(), "n");
            second.will = will("new");
            let mut first = Peer::new(first);
            first.connected().await;
            let mut second = Peer::new(second);
            second.connected().await;
            // mosquitto 2.0 keeps quiet when the session goes on, which the standard doesn't allow.
            if let Broker::Embedded(_) = broker {
                assert_eq!(watcher.delivery().await.1, format!("old {round}"));
            }
            first.disconnected().await;
            second.bus.publish(message("status/n", "alive")).unwrap();
            assert_eq!(watcher.delivery().await.1, "alive", "{}", broker.name());
            second.leave().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_message_is_refused_and_the_link_stays_up() {
    for broker in brokers().await {
        let mut peer = Peer::up(broker.port(), "peer").await;
        peer.listen(&["x"]).await;
        let error = peer.bus.publish(message("x", vec![0; 256 << 10])).unwrap_err();
        assert_eq!(error.kind(), "packet_too_large");
        peer.bus.publish(message("x", vec![b'a'; (256 << 10) - 100])).unwrap();
        peer.bus.publish(message("x", "small")).unwrap();
        assert_eq!(peer.delivery().await.1.len(), (256 << 10) - 100, "{}", broker.name());
        assert_eq!(peer.delivery().await.1, "small", "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packet_over_a_limit_is_named_as_the_cause() {
    let broker = embedded(free()).await;
    let port = broker.address().port();
    let mut large = settings(port, "large");
    large.max_packet_bytes = 1 << 20;
    let mut sender = Peer::new(large);
    sender.connected().await;
    sender.bus.publish(message("x", vec![0; 600 << 10])).unwrap();
    let reason = sender.disconnected().await;
    assert!(reason.contains("packet"), "{reason}");
    drop(sender);

    let mut small = settings(port, "small");
    small.max_packet_bytes = 2_000;
    let mut receiver = Peer::new(small);
    receiver.connected().await;
    receiver.listen(&["big"]).await;
    let other = Peer::up(port, "other").await;
    other.bus.publish(message("big", vec![0; 5_000])).unwrap();
    let reason = receiver.disconnected().await;
    assert!(reason.contains("max_packet_bytes = 2000"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packet_that_cannot_be_read_does_not_come_back_for_ever() {
    for broker in brokers().await {
        let mut small = settings(broker.port(), "small");
        small.max_packet_bytes = 2_000;
        let mut receiver = Peer::new(small);
        receiver.connected().await;
        receiver.listen(&["big"]).await;
        let other = Peer::up(broker.port(), "other").await;
        other.bus.publish(message("big", vec![0; 5_000])).unwrap();
        receiver.disconnected().await;
        receiver.connected().await;
        receiver.listen(&["big"]).await;
        other.bus.publish(message("big", "readable")).unwrap();
        assert_eq!(receiver.delivery().await.1, "readable", "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_may_come_in_any_order_and_none_comes_again() {
    for broker in brokers().await {
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x"]).await;
        let sender = Peer::up(broker.port(), "sender").await;
        for round in 0..3 {
            for number in numbers(10) {
                sender.bus.publish(message("x", format!("{round} {number}"))).unwrap();
            }
            let mut held = Vec::new();
            for number in numbers(10) {
                let delivery = listener.held().await;
                let expected = format!("{round} {number}").into_bytes();
                assert_eq!(delivery.payload, expected, "{}", broker.name());
                held.push(delivery.ack);
            }
            for ack in held.into_iter().rev() {
                ack.release();
            }
        }
        listener.leave().await;
        let mut listener = Peer::new(settings(broker.port(), "listener"));
        assert!(!listener.connected().await, "{}", broker.name());
        sender.bus.publish(message("x", "new")).unwrap();
        assert_eq!(listener.delivery().await.1, "new", "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unacknowledged_message_comes_again_and_so_does_a_dropped_one() {
    for broker in brokers().await {
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x"]).await;
        let sender = Peer::up(broker.port(), "sender").await;
        sender.bus.publish(message("x", "1")).unwrap();
        sender.leave().await;
        let late = listener.held().await;
        listener.bus.kick();
        assert!(!listener.connected().await, "{}", broker.name());
        // An acknowledgement of the old connection neither counts nor harms.
        late.ack.release();
        let again = listener.held().await;
        assert_eq!(again.payload, b"1", "{}", broker.name());
        drop(again);
        listener.connected().await;
        assert_eq!(listener.delivery().await.1, "1", "{}", broker.name());
        listener.bus.publish(message("x", "2")).unwrap();
        assert_eq!(listener.delivery().await.1, "2", "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_values_come_all_and_again_on_a_resumed_session() {
    for broker in brokers().await {
        let sender = Peer::up(broker.port(), "sender").await;
        for number in 0..350 {
            sender.bus.publish(kept(&format!("kept/{number:03}"), number.to_string())).unwrap();
        }
        sender.leave().await;
        for resumed in [false, true] {
            let mut listener = Peer::new(settings(broker.port(), "listener"));
            assert_eq!(!listener.connected().await, resumed, "{}", broker.name());
            listener.bus.subscribe(&["kept/+".into()]).unwrap();
            let mut topics = BTreeSet::new();
            while topics.len() < 350 {
                let (topic, _, retained) = listener.delivery().await;
                assert!(retained, "{}", broker.name());
                topics.insert(topic);
            }
            listener.leave().await;
        }
        // An empty message that isn't retained removes nothing; a retained one does.
        let mut peer = Peer::up(broker.port(), "peer").await;
        peer.listen(&["other/#"]).await;
        peer.bus.publish(message("kept/000", "")).unwrap();
        peer.bus.publish(kept("kept/001", "")).unwrap();
        peer.bus.publish(message("other/x", "done")).unwrap();
        assert_eq!(peer.delivery().await.1, "done", "{}", broker.name());
        peer.bus.subscribe(&["kept/000".into(), "kept/001".into(), "kept/002".into()]).unwrap();
        let heard = BTreeSet::from([peer.delivery().await.1, peer.delivery().await.1]);
        assert_eq!(heard, BTreeSet::from(["0".into(), "2".into()]), "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_and_client_ids_may_be_any_text() {
    for broker in brokers().await {
        for client in ["ü", "a+b", "$x", "#", "a/b"] {
            let mut peer = Peer::up(broker.port(), client).await;
            peer.listen(&["überwachung/+", "ö", "日本/#"]).await;
            for topic in ["überwachung/é", "ö", "日本/語"] {
                peer.bus.publish(message(topic, "ß")).unwrap();
                let (heard, payload, _) = peer.delivery().await;
                assert_eq!((heard.as_str(), payload.as_str()), (topic, "ß"), "{}", broker.name());
            }
            peer.leave().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_owner_slows_the_broker_down_and_loses_nothing() {
    for broker in brokers().await {
        let mut tight = settings(broker.port(), "listener");
        tight.inbox_bytes = 32 << 10;
        let mut listener = Peer::new(tight);
        listener.connected().await;
        listener.listen(&["x"]).await;
        let sender = Peer::up(broker.port(), "sender").await;
        for number in 0..200 {
            sender.bus.publish(message("x", format!("{number:08000}"))).unwrap();
        }
        sleep(Duration::from_millis(300)).await;
        // While it is behind, it still can send.
        listener.bus.publish(message("elsewhere", "x")).unwrap();
        for number in 0..200 {
            let delivery = listener.held().await;
            assert_eq!(delivery.payload, format!("{number:08000}").into_bytes());
            delivery.ack.release();
        }
        sender.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_overtake_chunks() {
    for broker in brokers().await {
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x/+"]).await;
        // Queued while the link is still being made.
        let proxy = Proxy::before(broker.port()).await;
        proxy.freeze(true);
        let sender = Peer::new(settings(proxy.port, "sender"));
        for _ in 0..60 {
            let chunk = message("x/chunk", vec![0; 64 << 10]);
            sender.bus.publish(Publish { priority: Priority::Bulk, ..chunk }).unwrap();
        }
        let command = message("x/command", "now");
        sender.bus.publish(Publish { priority: Priority::Control, ..command }).unwrap();
        proxy.freeze(false);
        let mut chunks = 0;
        while listener.delivery().await.0 != "x/command" {
            chunks += 1;
        }
        assert!(chunks <= 2 * Priority::BULK_WINDOW, "{}: {chunks}", broker.name());
        for _ in chunks..60 {
            listener.delivery().await;
        }
        sender.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_is_built_anew_loses_nothing_of_what_it_was_given() {
    for broker in brokers().await {
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x"]).await;
        let mut sender = Peer::up(broker.port(), "sender").await;
        for number in 0..300 {
            sender.bus.publish(message("x", number.to_string())).unwrap();
            if number % 100 == 50 {
                sender.bus.kick();
                sender.connected().await;
            }
        }
        let mut heard = BTreeSet::new();
        while heard.len() < 300 {
            heard.insert(listener.delivery().await.1);
        }
        while sender.bus.queued_bytes() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_that_acknowledges_nothing_makes_the_watchdog_build_a_new_client() {
    let broker = embedded(free()).await;
    let proxy = Proxy::before(broker.address().port()).await;
    let mut impatient = settings(proxy.port, "sender");
    impatient.stall_s = 1;
    let mut sender = Peer::new(impatient);
    sender.connected().await;
    proxy.freeze(true);
    sender.bus.publish(message("x", "1")).unwrap();
    let reason = sender.disconnected().await;
    assert!(reason.contains("acknowledged nothing for 1 s"), "{reason}");
    proxy.freeze(false);
    sender.connected().await;
    sender.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_broker_costs_no_message_of_a_sender_that_resends() {
    for mut broker in brokers().await {
        let mut listener = Peer::up(broker.port(), "listener").await;
        listener.listen(&["x"]).await;
        let sender = Peer::up(broker.port(), "sender").await;
        let mut missing: BTreeSet<usize> = (0..200).collect();
        for number in 0..200 {
            sender.bus.publish(message("x", number.to_string())).unwrap();
            if number == 100 {
                broker = broker.replace().await;
            }
        }
        let patience = Instant::now() + support::PATIENCE;
        while !missing.is_empty() {
            assert!(Instant::now() < patience, "{}: {missing:?}", broker.name());
            let heard = timeout(Duration::from_millis(300), listener.events.recv()).await;
            match heard {
                Ok(Some(BusEvent::Delivery(delivery))) => {
                    let text = String::from_utf8(delivery.payload).unwrap();
                    missing.remove(&text.parse().unwrap());
                    delivery.ack.release();
                }
                Ok(_) => {}
                // A PUBACK isn't durability: what the broker took with it is sent again.
                Err(_) => {
                    for number in &missing {
                        sender.bus.publish(message("x", number.to_string())).unwrap();
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_broker_is_said_and_tried_again_until_it_is_there() {
    let port = free_port();
    let mut peer = Peer::new(settings(port, "peer"));
    for _ in 0..3 {
        let reason = peer.disconnected().await;
        assert!(reason.contains("unreachable") && reason.contains(&port.to_string()), "{reason}");
    }
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let _broker = embedded(BrokerSettings { listen, ..free() }).await;
    assert!(peer.connected().await);
}

fn press() -> BrokerUser {
    BrokerUser {
        name: "press".into(),
        password: "right".into(),
        read: vec!["allowed/#".into(), "sync/#".into(), "$SYS/#".into()],
        write: vec!["allowed/#".into(), "sync/#".into()],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_password_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let with_password = Mosquitto::start_in(password_file(dir), "password_file DIR/passwords");
    let with_users = embedded(BrokerSettings { users: vec![press()], ..free() }).await;
    let mut both = vec![Broker::Embedded(with_users)];
    both.extend(with_password.map(Broker::Mosquitto));
    for broker in both {
        for (password, expected) in [(None, "password"), (Some("wrong"), "password")] {
            let mut login = settings(broker.port(), "peer");
            login.username = password.map(|_| "press".into());
            login.password = password.map(Into::into);
            let reason = Peer::new(login).disconnected().await;
            assert!(reason.contains(expected), "{}: {reason}", broker.name());
        }
        let mut login = settings(broker.port(), "peer");
        (login.username, login.password) = (Some("press".into()), Some("right".into()));
        Peer::new(login).connected().await;
    }
}

fn password_file(dir: tempfile::TempDir) -> tempfile::TempDir {
    let _ = std::process::Command::new("mosquitto_passwd")
        .args(["-c", "-b", "passwords", "press", "right"])
        .current_dir(dir.path())
        .output();
    dir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_subscription_is_named_and_the_others_hold() {
    let dir = tempfile::tempdir().unwrap();
    let rules = r#"{"defaultACLAccess": {"publishClientSend": true, "publishClientReceive": true,
        "subscribe": false, "unsubscribe": true}, "clients": [], "anonymousGroup": "all",
        "groups": [{"groupname": "all", "roles": [{"rolename": "some"}]}],
        "roles": [{"rolename": "some", "acls": [
            {"acltype": "subscribePattern", "topic": "allowed/#", "allow": true},
            {"acltype": "subscribePattern", "topic": "sync/#", "allow": true}]}]}"#;
    std::fs::write(dir.path().join("rules.json"), rules).unwrap();
    let plugin = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so";
    let lines =
        format!("allow_anonymous true\nplugin {plugin}\nplugin_opt_config_file DIR/rules.json");
    let with_users = embedded(BrokerSettings { users: vec![press()], ..free() }).await;
    let mut both = vec![Broker::Embedded(with_users)];
    if std::path::Path::new(plugin).exists() {
        both.extend(Mosquitto::start_in(dir, &lines).map(Broker::Mosquitto));
    } else {
        support::skip("mosquitto's dynamic security plugin is not installed");
    }
    for broker in both {
        let mut login = settings(broker.port(), "peer");
        (login.username, login.password) = (Some("press".into()), Some("right".into()));
        if let Broker::Mosquitto(_) = broker {
            (login.username, login.password) = (None, None);
        }
        let mut peer = Peer::new(login);
        peer.connected().await;
        peer.bus.subscribe(&["allowed/x".into(), "secret/x".into(), "#".into()]).unwrap();
        let mut refused = BTreeSet::new();
        while refused.len() < 2 {
            if let BusEvent::SubscriptionRefused { filter } = peer.next().await {
                refused.insert(filter);
            }
        }
        let expected = BTreeSet::from(["#".to_owned(), "secret/x".to_owned()]);
        assert_eq!(refused, expected, "{}", broker.name());
        peer.bus.publish(message("allowed/x", "1")).unwrap();
        assert_eq!(peer.delivery().await.1, "1", "{}", broker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_client_certificate_works_and_each_failure_is_said() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let Some(broker) = Mosquitto::start_in(
        dir,
        "allow_anonymous true\ncafile DIR/ca.pem\ncertfile DIR/server.pem\n\
         keyfile DIR/server.key\nrequire_certificate true",
    ) else {
        return;
    };
    let file = |name: &str| broker.dir.path().join(name);
    let with = |host: &str, ca: &str, client: Option<&str>| {
        let mut tls = settings(broker.port, "peer");
        tls.host = host.into();
        let pair = |c: &str| (file(&format!("{c}.pem")), file(&format!("{c}.key")));
        tls.tls = Some(TlsSettings { ca_file: file(ca), client: client.map(pair) });
        tls
    };
    let mut peer = Peer::new(with("localhost", "ca.pem", Some("client")));
    peer.connected().await;
    peer.listen(&["x"]).await;
    peer.bus.publish(message("x", "sealed")).unwrap();
    assert_eq!(peer.delivery().await.1, "sealed");
    peer.leave().await;

    for (bad, expected) in [
        (with("localhost", "stranger.pem", Some("client")), "authority"),
        (with("127.0.0.1", "ca.pem", Some("client")), "another name"),
        (with("localhost", "ca.pem", None), "client certificate"),
        (with("localhost", "ca.pem", Some("stranger")), "client certificate"),
    ] {
        let reason = Peer::new(bad).disconnected().await;
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    let plain = Peer::new(settings(broker.port, "peer")).disconnected().await;
    assert!(plain.contains("does it expect TLS") || plain.contains("closed"), "{plain}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_broker_survives_idle_peers_noise_and_old_or_new_protocols() {
    let broker = embedded(free()).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(TcpStream::connect(broker.address()).await.unwrap());
    }
    let v5_connect = b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x02ab";
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x20\x03\x00\xee\x00", &[0xff; 64], v5_connect]
    {
        let mut socket = TcpStream::connect(broker.address()).await.unwrap();
        socket.write_all(noise).await.unwrap();
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let expected: &[u8] = if noise == v5_connect { b"\x20\x02\x00\x01" } else { b"" };
        assert_eq!(answer, expected);
    }
    let mut peer = Peer::up(broker.address().port(), "peer").await;
    peer.listen(&["x"]).await;
    peer.bus.publish(message("x", "1")).unwrap();
    assert_eq!(peer.delivery().await.1, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_broker_counts_bytes_and_tells_them() {
    let broker = embedded(BrokerSettings { stats_every_ms: 200, ..free() }).await;
    let port = broker.address().port();
    let mut listener = Peer::up(port, "listener").await;
    listener.listen(&["x"]).await;
    let before = broker.stats();
    let sender = Peer::up(port, "sender").await;
    for _ in 0..10 {
        sender.bus.publish(message("x", vec![0; 1_000])).unwrap();
    }
    listener.payloads(10).await;
    sender.leave().await;
    // 10 PUBLISH of 1,008 bytes, CONNECT of 20, DISCONNECT of 2.
    while broker.stats().clients["sender"].bytes_in < 10 * 1_008 + 20 + 2 {
        sleep(Duration::from_millis(10)).await;
    }
    let stats = broker.stats();
    let sent = stats.clients["sender"];
    assert_eq!((sent.messages_in, sent.bytes_in), (10, 10 * 1_008 + 20 + 2));
    let heard = stats.clients["listener"].bytes_out - before.clients["listener"].bytes_out;
    assert_eq!(heard, 10 * 1_008);
    assert!(stats.total.bytes_in > sent.bytes_in);
    listener.bus.subscribe(&["$SYS/gaisnet/bytes".into()]).unwrap();
    loop {
        let (topic, figures, _) = listener.delivery().await;
        assert_eq!(topic, "$SYS/gaisnet/bytes");
        let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
        if figures["clients"]["sender"]["messages_in"] == 10 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_broker_passes_on_only_what_a_user_may_write() {
    let mut other = press();
    (other.name, other.read) = ("reader".into(), vec!["#".into()]);
    other.write = vec!["sync/#".into()];
    let broker = embedded(BrokerSettings { users: vec![press(), other], ..free() }).await;
    let login = |user: &str| {
        let mut login = settings(broker.address().port(), user);
        (login.username, login.password) = (Some(user.into()), Some("right".into()));
        login
    };
    let mut reader = Peer::new(login("reader"));
    reader.connected().await;
    reader.listen(&["#"]).await;
    let press = Peer::new(login("press"));
    press.bus.publish(message("forbidden/x", "no")).unwrap();
    press.bus.publish(kept("forbidden/y", "no")).unwrap();
    press.bus.publish(message("allowed/x", "yes")).unwrap();
    let heard = loop {
        let (topic, payload, _) = reader.delivery().await;
        if !topic.starts_with("sync/") {
            break payload;
        }
    };
    assert_eq!(heard, "yes");
    press.leave().await;
    assert_eq!(broker.stats().refused_messages, 2);
    let mut with_will = login("press");
    with_will.will = Some(message("forbidden/status", "x"));
    let reason = Peer::new(with_will).disconnected().await;
    assert!(reason.contains("last will"), "{reason}");
}

/// `cargo nextest run --run-ignored only measure_round_trip --no-capture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test"]
async fn measure_round_trip_and_rate() {
    for broker in brokers().await {
        let mut a = Peer::up(broker.port(), "a").await;
        a.listen(&["pong"]).await;
        let mut b = Peer::up(broker.port(), "b").await;
        b.listen(&["ping"]).await;
        let echo = tokio::spawn(async move {
            for _ in 0..2_000 {
                let delivery = b.held().await;
                b.bus.publish(message("pong", delivery.payload)).unwrap();
                delivery.ack.release();
            }
            b
        });
        let mut micros = Vec::new();
        for _ in 0..2_000 {
            let start = Instant::now();
            a.bus.publish(message("ping", vec![b'x'; 100])).unwrap();
            a.delivery().await;
            micros.push(start.elapsed().as_micros());
        }
        micros.sort_unstable();
        let mut b = echo.await.unwrap();
        for in_flight in [10, 100] {
            let mut fast = settings(broker.port(), "fast");
            fast.in_flight = in_flight;
            let mut fast = Peer::new(fast);
            fast.connected().await;
            let start = Instant::now();
            let sending = tokio::spawn(async move {
                for _ in 0..20_000 {
                    fast.bus.publish(message("ping", vec![b'x'; 100])).unwrap();
                }
                fast
            });
            for _ in 0..20_000 {
                b.delivery().await;
            }
            let rate = 20_000.0 / start.elapsed().as_secs_f64();
            eprintln!("{}: {rate:.0} messages/s with {in_flight} in flight", broker.name());
            sending.await.unwrap().leave().await;
        }
        let (p50, p99) = (micros[1_000], micros[1_980]);
        eprintln!("{}: A-B-A QoS 1 100 B: p50 {p50} us, p99 {p99} us", broker.name());
    }
}
