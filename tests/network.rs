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

#[path = "support/plant.rs"]
mod plant;

use std::time::Duration;

use gaisnet::bus::memory::{Faults, Memory};
use plant::{Plant, name, paused};
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
            let mut plant = Plant::new(2, 2, 2, &rough(5));
            plant.start_all();
            tokio::time::sleep(Duration::from_secs(600)).await;
            sender.send((plant.federation_bus.trace(), plant.versions().await)).unwrap();
        });
        receiver.recv().unwrap()
    };
    let (first, second) = (trace(), trace());
    assert!(!first.0.is_empty());
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
