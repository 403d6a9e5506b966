//! Whole networks on the in-memory bus under tokio's paused clock: real actors, machines, envelopes
//! and ledgers; faults by seed; an hour takes a moment. Learning is a toy, so that all is exact.

#![cfg(feature = "runtime")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use federation::{Plant, name, paused, signed};
use gaisnet::bus::memory::{Faults, Memory, MemoryBroker};
use gaisnet::bus::{Bus, Priority, Publish};
use gaisnet::ledger::Event;
use gaisnet::protocol::Input;
use gaisnet::store::{Failure, MemoryStore};

#[test]
fn three_sites_and_twelve_devices_reach_the_last_version_together() {
    paused(async {
        let mut plant = Plant::new(3, 4, 3, &Faults::none(1));
        plant.start_all();
        plant.converge(30).await;
        plant.check_owner("cloud");
        for edge in ["edge0", "edge1", "edge2"] {
            plant.check_owner(edge);
        }
    });
}

fn rough(seed: u64) -> Faults {
    Faults { seed, loss: 0.1, duplicate: 0.1, delay_ms: 0..=2_000, reorder: true }
}

#[test]
fn loss_repeats_delay_and_disorder_change_nothing_but_time() {
    for seed in 1..=3 {
        paused(async move {
            let mut plant = Plant::new(3, 4, 3, &rough(seed));
            plant.start_all();
            plant.converge(120).await;
            plant.check_owner("cloud");
        });
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        paused(async move {
            let mut plant = Plant::new(3, 4, 2, &rough(5));
            plant.start_all();
            tokio::time::sleep(Duration::from_secs(600)).await;
            let mut traces = vec![plant.federation_bus.trace()];
            traces.extend(plant.site_buses.values().map(MemoryBroker::trace));
            sender.send((traces, plant.versions().await)).unwrap();
        });
        receiver.recv().unwrap()
    };
    let (first, second) = (trace(), trace());
    assert!(first.0.iter().all(|trace| !trace.is_empty()));
    assert_eq!(first, second);
}

#[test]
fn brokers_that_forget_everything_in_mid_round_lose_no_update() {
    paused(async {
        let mut plant = Plant::new(2, 2, 4, &Faults::none(1));
        plant.start_all();
        for second in 0..40 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            if second % 5 == 0 {
                plant.federation_bus.restart(Memory::Lost, 2_000);
                plant.site_buses.values().for_each(|bus| bus.restart(Memory::Lost, 1_000));
            }
        }
        plant.converge(120).await;
        plant.check_owner("cloud");
    });
}

#[test]
fn a_partitioned_site_is_left_behind_and_catches_up() {
    paused(async {
        let mut plant = Plant::new(3, 2, 3, &Faults::none(1));
        plant.start_all();
        plant.federation_bus.partition("edge2");
        tokio::time::sleep(Duration::from_secs(600)).await;
        let versions = plant.versions().await;
        assert_eq!(versions[&name("cloud")], 3, "two of three sites are a quorum: {versions:?}");
        assert_eq!(versions[&name("dev2-0")], 0);
        plant.federation_bus.heal("edge2");
        plant.converge(60).await;
    });
}

#[test]
fn a_partition_in_a_rough_network_heals() {
    paused(async {
        let mut plant = Plant::new(3, 4, 3, &rough(4));
        plant.start_all();
        // Everybody is in the first round by then.
        tokio::time::sleep(Duration::from_secs(10)).await;
        plant.federation_bus.partition("edge2");
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(plant.versions().await[&name("dev2-0")], 0);
        plant.federation_bus.heal("edge2");
        plant.converge(120).await;
        for owner in ["cloud", "edge0", "edge1", "edge2"] {
            plant.check_owner(owner);
        }
    });
}

fn publish(bus: &dyn Bus, (topic, payload): (String, Vec<u8>), retain: bool) {
    let (at_least_once, priority) = (true, Priority::Control);
    bus.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
}

async fn a_moment() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

#[test]
fn a_captured_command_works_neither_again_nor_after_a_restart_but_it_would_without_the_store() {
    paused(async {
        let mut plant = Plant::new(1, 1, 0, &Faults::none(1));
        let (bus, _events) = plant.federation_bus.connect("ops", None);
        plant.start(&name("cloud"));
        a_moment().await;
        let captured = signed("ops", "round.start");
        publish(&bus, captured.clone(), false);
        a_moment().await;
        let round = async |plant: &Plant| plant.running[&name("cloud")].view().await.unwrap().round;
        assert_eq!(round(&plant).await, 1);
        plant.restart("cloud").await;
        publish(&bus, captured.clone(), false);
        a_moment().await;
        let view = plant.running[&name("cloud")].figures.view();
        assert_eq!(view.counted.get("replayed_command"), Some(&1));

        plant.stores.insert(name("cloud"), MemoryStore::new());
        plant.restart("cloud").await;
        assert_eq!(round(&plant).await, 0);
        publish(&bus, captured, false);
        a_moment().await;
        assert_eq!(round(&plant).await, 1, "nothing else stands in its way");
    });
}

#[test]
fn a_full_disk_ends_no_node_and_all_goes_on_when_there_is_room() {
    paused(async {
        let mut plant = Plant::new(1, 3, 4, &Faults::none(1));
        plant.start_all();
        for node in ["dev0-0", "edge0", "cloud"] {
            a_moment().await;
            let (store, running) = (&plant.stores[&name(node)], &plant.running[&name(node)]);
            store.set_full(true);
            tokio::time::sleep(Duration::from_secs(200)).await;
            assert!(running.figures.full().is_some(), "{node}");
            store.set_full(false);
        }
        plant.converge(120).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        plant.check_owner("cloud");
        plant.check_owner("edge0");
        assert!(plant.running.values().all(|node| node.figures.full().is_none()));
    });
}

#[test]
fn a_write_that_fails_otherwise_ends_the_node() {
    paused(async {
        let mut plant = Plant::new(1, 1, 0, &Faults::none(1));
        let gave_up = Arc::new(Mutex::new(Vec::new()));
        plant.gave_up = Some(Arc::clone(&gave_up));
        plant.start(&name("cloud"));
        a_moment().await;
        assert!(gave_up.lock().unwrap().is_empty());
        plant.stores[&name("cloud")].fail_commit(1, Failure::Io);
        plant.running[&name("cloud")].order(Input::StartRound).await;
        a_moment().await;
        assert!(gave_up.lock().unwrap()[0].contains("failpoint"));
    });
}

#[test]
fn from_ninety_percent_on_a_device_declines_and_with_room_it_takes_part_again() {
    paused(async {
        let mut plant = Plant::new(1, 3, 0, &Faults::none(1));
        plant.stores[&name("dev0-0")].set_fill(90);
        plant.start_all();
        let declined = |plant: &Plant| {
            let is = |event: &Event| match event {
                Event::Decline { sender, reason, .. } => {
                    sender.as_str() == "dev0-0" && reason.as_str() == "disk_full"
                }
                _ => false,
            };
            plant.entries("edge0").iter().filter(|event| is(event)).count()
        };
        let accepted = |plant: &Plant| {
            let by = |event: &Event| matches!(event, Event::Accept { sender, .. } if sender.as_str() == "dev0-0");
            plant.entries("edge0").iter().filter(|event| by(event)).count()
        };
        tokio::time::sleep(Duration::from_secs(30)).await;
        plant.running[&name("cloud")].order(Input::StartRound).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!((declined(&plant), accepted(&plant)), (1, 0));
        plant.stores[&name("dev0-0")].set_fill(89);
        tokio::time::sleep(Duration::from_secs(30)).await;
        plant.running[&name("cloud")].order(Input::StartRound).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!((declined(&plant), accepted(&plant)), (1, 1));
    });
}
