//! Whole nodes with a standby of the cloud, on the in-memory bus under tokio's paused clock. What may go wrong
//! on the way is run by the simulator (`src/sim`), over thousands of messages more.

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

use std::time::Duration;

use federation::{Members, Plant, name, paused};
use gaisnet::bus::memory::Faults;
use gaisnet::ledger::Event;

#[test]
fn a_standby_takes_over_from_a_cloud_that_is_gone_and_the_cloud_stands_by_when_it_is_back() {
    paused(async {
        let mut plant = Plant::of(Members::with_standby(2, 2), 2, 40, &Faults::none(1));
        plant.start_all();
        while plant.versions().await[&name("cloud-2")] < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        plant.running.remove(&name("cloud")).unwrap().stop("test", 0).await;
        let before = plant.versions().await[&name("edge0")];
        assert!(before < 40);
        plant.converge(20).await;
        let committed = |event: &Event| matches!(event, Event::RoundCommit { .. });
        assert!(plant.entries("cloud-2").iter().any(committed));

        plant.start(&name("cloud"));
        plant.converge(20).await;
        let view = plant.running[&name("cloud")].view().await.unwrap();
        assert_eq!(view.phase, "following");
    });
}

#[test]
fn a_cloud_goes_on_without_its_standby() {
    paused(async {
        let mut plant = Plant::of(Members::with_standby(2, 2), 2, 40, &Faults::none(2));
        plant.start_all();
        while plant.versions().await[&name("cloud-2")] < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        plant.running.remove(&name("cloud-2")).unwrap().stop("test", 0).await;
        plant.converge(20).await;
        plant.start(&name("cloud-2"));
        plant.converge(20).await;
    });
}
