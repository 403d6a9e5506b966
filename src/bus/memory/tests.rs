use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::*;
use crate::bus::Priority;

fn message(topic: &str, payload: &str) -> Publish {
    Publish {
        topic: topic.into(),
        payload: payload.into(),
        at_least_once: true,
        retain: false,
        priority: Priority::Control,
    }
}

fn kept(topic: &str, payload: &str) -> Publish {
    Publish { retain: true, ..message(topic, payload) }
}

/// Reads until nothing comes for a virtual minute; acknowledges deliveries.
async fn heard(events: &mut mpsc::Receiver<BusEvent>) -> Vec<String> {
    let mut heard = Vec::new();
    while let Ok(Some(event)) = timeout(Duration::from_secs(60), events.recv()).await {
        heard.push(match event {
            BusEvent::Connected { fresh } => format!("connected fresh={fresh}"),
            BusEvent::Disconnected { reason } => reason,
            BusEvent::SubscriptionRefused { filter } => format!("refused {filter}"),
            BusEvent::Delivery(delivery) => {
                let text = String::from_utf8(delivery.payload).unwrap();
                delivery.ack.release();
                let mark = if delivery.retained { " (kept)" } else { "" };
                format!("{} {text}{mark}", delivery.topic)
            }
        });
    }
    heard
}

#[tokio::test(start_paused = true)]
async fn messages_reach_those_who_asked_and_retained_ones_those_who_come_late() {
    let broker = MemoryBroker::new(Faults::none(1));
    let (a, _a_events) = broker.connect("a", None);
    let (b, mut b_events) = broker.connect("b", None);
    b.subscribe(&["x/+".into()]).unwrap();
    a.publish(message("x/1", "one")).unwrap();
    a.publish(message("y/1", "other")).unwrap();
    a.publish(kept("x/ü", "two")).unwrap();
    assert_eq!(heard(&mut b_events).await, ["connected fresh=true", "x/1 one", "x/ü two"]);
    b.subscribe(&["#".into()]).unwrap();
    assert_eq!(heard(&mut b_events).await, ["x/ü two (kept)"]);
    a.publish(kept("x/ü", "")).unwrap();
    heard(&mut b_events).await;
    assert!(broker.retained().is_empty());
}

#[tokio::test(start_paused = true)]
async fn client_that_was_cut_off_gets_and_sends_everything_later() {
    let broker = MemoryBroker::new(Faults::none(1));
    let (a, _a_events) = broker.connect("a", None);
    let (b, mut b_events) = broker.connect("b", Some(kept("b/status", "offline")));
    let (c, mut c_events) = broker.connect("c", None);
    b.subscribe(&["x".into()]).unwrap();
    c.subscribe(&["#".into()]).unwrap();
    broker.partition("b");
    a.publish(message("x", "1")).unwrap();
    b.publish(message("y", "2")).unwrap();
    assert_eq!(heard(&mut c_events).await[1..], ["b/status offline", "x 1"]);
    broker.heal("b");
    let expected = ["connected fresh=true", "the network is cut", "connected fresh=false", "x 1"];
    assert_eq!(heard(&mut b_events).await, expected);
    assert_eq!(heard(&mut c_events).await, ["y 2"]);
}

#[tokio::test(start_paused = true)]
async fn unacknowledged_delivery_comes_again_after_a_reconnect() {
    let broker = MemoryBroker::new(Faults::none(1));
    let (a, _a_events) = broker.connect("a", None);
    let (b, mut b_events) = broker.connect("b", None);
    b.subscribe(&["x".into()]).unwrap();
    a.publish(message("x", "1")).unwrap();
    sleep(Duration::from_millis(5)).await;
    b_events.recv().await.unwrap();
    let BusEvent::Delivery(unread) = b_events.recv().await.unwrap() else { panic!("no delivery") };
    broker.partition("b");
    broker.heal("b");
    // An acknowledgement of the old connection is worthless.
    unread.ack.release();
    assert_eq!(heard(&mut b_events).await[2..], ["x 1"]);
    assert!(heard(&mut b_events).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn dropped_delivery_comes_again() {
    let broker = MemoryBroker::new(Faults::none(1));
    let (a, mut a_events) = broker.connect("a", None);
    a.subscribe(&["x".into()]).unwrap();
    a.publish(message("x", "1")).unwrap();
    a_events.recv().await.unwrap();
    drop(a_events.recv().await.unwrap());
    assert_eq!(heard(&mut a_events).await, ["x 1"]);
}

#[tokio::test(start_paused = true)]
async fn restart_without_memory_loses_sessions_and_clients_subscribe_again() {
    for (memory, fresh, expected) in
        [(Memory::Kept, false, vec!["x 1"]), (Memory::Lost, true, vec![])]
    {
        let broker = MemoryBroker::new(Faults::none(1));
        let (a, _a_events) = broker.connect("a", None);
        let (b, mut b_events) = broker.connect("b", None);
        b.subscribe(&["x".into()]).unwrap();
        broker.partition("b");
        a.publish(message("x", "1")).unwrap();
        sleep(Duration::from_millis(5)).await;
        broker.restart(memory, 5_000);
        broker.heal("b");
        let all = heard(&mut b_events).await;
        assert_eq!(all[2], format!("connected fresh={fresh}"));
        assert_eq!(all[3..], expected);
        a.publish(message("x", "2")).unwrap();
        assert_eq!(heard(&mut b_events).await, ["x 2"]);
    }
}

#[tokio::test(start_paused = true)]
async fn take_over_publishes_the_old_will_and_keeps_the_session() {
    let broker = MemoryBroker::new(Faults::none(1));
    let (watcher, mut watched) = broker.connect("watcher", None);
    watcher.subscribe(&["#".into()]).unwrap();
    let (first, mut first_events) = broker.connect("n", Some(message("n/status", "gone")));
    first.subscribe(&["x".into()]).unwrap();
    let (second, mut second_events) = broker.connect("n", None);
    assert_eq!(first.publish(message("x", "0")), Err(BusError::Closed));
    assert_eq!(heard(&mut watched).await[1..], ["n/status gone"]);
    second.publish(message("x", "1")).unwrap();
    assert_eq!(heard(&mut second_events).await, ["connected fresh=false", "x 1"]);
    drop(first);
    second.publish(message("x", "2")).unwrap();
    assert_eq!(heard(&mut second_events).await, ["x 2"]);
    assert_eq!(heard(&mut first_events).await[1..], ["another client took this id"]);
}

#[tokio::test(start_paused = true)]
async fn close_sends_what_is_queued_and_leaves_no_will() {
    let faults = Faults { delay_ms: 10..=10, ..Faults::none(1) };
    let broker = MemoryBroker::new(faults);
    let (watcher, mut watched) = broker.connect("watcher", None);
    watcher.subscribe(&["#".into()]).unwrap();
    let (a, mut a_events) = broker.connect("a", Some(message("a/status", "gone")));
    a.publish(message("a", "last words")).unwrap();
    a.close(1_000);
    assert_eq!(a.publish(message("a", "too late")), Err(BusError::Closed));
    drop(a);
    assert_eq!(heard(&mut watched).await[1..], ["a last words"]);
    assert_eq!(heard(&mut a_events).await, ["connected fresh=true", "closed"]);
    let (b, _b_events) = broker.connect("b", Some(message("b/status", "gone")));
    drop(b);
    assert_eq!(heard(&mut watched).await, ["b/status gone"]);
}

/// Three clients that all hear each other, with every fault at once.
async fn stormy(seed: u64) -> (Vec<TraceEntry>, Losses) {
    let broker = MemoryBroker::new(Faults {
        seed,
        loss: 0.1,
        duplicate: 0.1,
        delay_ms: 1..=200,
        reorder: true,
    });
    let mut links = Vec::new();
    for client in ["a", "b", "c"] {
        let (bus, mut events) = broker.connect(client, Some(kept("status", client)));
        bus.subscribe(&["#".into()]).unwrap();
        tokio::spawn(async move { while !heard(&mut events).await.is_empty() {} });
        links.push(bus);
    }
    for step in 0..100 {
        for (position, bus) in links.iter().enumerate() {
            bus.publish(message(&format!("t/{position}"), &step.to_string())).unwrap();
        }
        match step {
            20 => broker.partition("b"),
            40 => broker.heal("b"),
            60 => broker.restart(Memory::Kept, 500),
            _ => {}
        }
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_secs(10)).await;
    (broker.trace(), broker.losses())
}

#[tokio::test(start_paused = true)]
async fn same_seed_gives_the_same_trace_and_another_seed_another() {
    let (first, losses) = stormy(7).await;
    let (again, _) = stormy(7).await;
    let (other, _) = stormy(8).await;
    assert!(first.len() > 400 && losses.faults > 20, "{} {losses:?}", first.len());
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[tokio::test(start_paused = true)]
async fn without_reordering_delays_keep_the_order_and_faults_can_end() {
    let faults = Faults { loss: 1.0, delay_ms: 1..=500, ..Faults::none(3) };
    let broker = MemoryBroker::new(faults.clone());
    let (a, mut events) = broker.connect("a", None);
    a.subscribe(&["x".into()]).unwrap();
    a.publish(message("x", "lost")).unwrap();
    broker.set_faults(Faults { loss: 0.0, ..faults });
    for step in 0..200 {
        a.publish(message("x", &step.to_string())).unwrap();
    }
    let expected: Vec<String> = (0..200).map(|step| format!("x {step}")).collect();
    assert_eq!(heard(&mut events).await[1..], expected);
    assert_eq!(broker.losses().faults, 1);
}

#[tokio::test(start_paused = true)]
async fn queues_are_bounded() {
    let broker = MemoryBroker::new(Faults::none(1));
    let (a, _a_events) = broker.connect("a", None);
    let (b, _b_events) = broker.connect("b", None);
    b.subscribe(&["x".into()]).unwrap();
    broker.partition("b");
    for _ in 0..1_500 {
        a.publish(message("x", "1")).unwrap();
    }
    sleep(Duration::from_millis(5)).await;
    assert_eq!(broker.losses().overflow, 500);
    let big = "x".repeat(PACKET_BYTES - 100);
    let full = (0..100).find_map(|_| b.publish(message("x", &big)).err());
    assert_eq!(full.unwrap().kind(), "bus_full");
    let large = b.publish(message("x", &"x".repeat(PACKET_BYTES))).unwrap_err();
    assert_eq!(large.kind(), "packet_too_large");
}
