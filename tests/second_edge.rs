//! Whole nodes of a site with two edges, on the in-memory bus under tokio's paused clock: one edge goes away, its
//! devices go on with the other one and come home. What may go wrong on the way is run by the simulator.
#![cfg(feature = "runtime")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;

use std::collections::BTreeSet;
use std::time::Duration;

use federation::{Members, Plant, name, paused};
use gaisnet::bus::memory::Faults;
use gaisnet::ids::UpdateId;
use gaisnet::ledger::Event;

const VERSIONS: u64 = 12;

async fn until(plant: &Plant, version: u64) {
    while plant.versions().await[&name("cloud")] < version {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn start(node: &str, plant: &mut Plant) {
    let mut parts = plant.parts(&name(node));
    // One of two edges is enough.
    parts.learning.quorum = 0.5;
    plant.run(parts);
}

fn accepted(plant: &Plant, edge: &str, device: &str) -> BTreeSet<UpdateId> {
    let of_device = |event: Event| match event {
        Event::Accept { sender, update, .. } | Event::Late { sender, update, .. }
            if sender.as_str() == device =>
        {
            Some(update)
        }
        _ => None,
    };
    plant.entries(edge).into_iter().filter_map(of_device).collect()
}

fn moves(plant: &Plant, device: &str) -> Vec<(String, String)> {
    let all = plant.entries(device).into_iter();
    let moves = all.filter_map(|event| match event {
        Event::Move { from, to } => Some((from.to_string(), to.to_string())),
        _ => None,
    });
    moves.collect()
}

#[test]
fn devices_of_an_edge_that_is_gone_take_part_at_the_other_one_and_come_home() {
    paused(async {
        let members = Members::with_second_edges(2);
        let mut plant = Plant::of(members, 1, VERSIONS, &Faults::none(1));
        for node in ["cloud", "edge0", "edge1", "dev0-0", "dev0-1", "dev1-0", "dev1-1"] {
            start(node, &mut plant);
        }
        until(&plant, 2).await;
        plant.running.remove(&name("edge0")).unwrap().stop("test", 0).await;
        let mut waited = 0;
        while accepted(&plant, "edge1", "dev0-0").is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            waited += 1;
            assert!(waited < 600, "{:?}", plant.versions().await);
        }
        assert!(waited < 200, "forty seconds of silence and a round: {waited} s");
        start("edge0", &mut plant);
        plant.converge(60).await;
        let (there, back) = (("edge0".into(), "edge1".into()), ("edge1".into(), "edge0".into()));
        for device in ["dev0-0", "dev0-1"] {
            assert_eq!(moves(&plant, device), [there.clone(), back.clone()]);
            let (home, away) =
                (accepted(&plant, "edge0", device), accepted(&plant, "edge1", device));
            assert!(!home.is_empty() && !away.is_empty());
            assert!(home.is_disjoint(&away), "{device} was counted at both");
            let given = plant.entries(device).into_iter().filter_map(|event| match event {
                Event::Contribute { update, .. } => Some(update),
                _ => None,
            });
            let given: BTreeSet<UpdateId> = given.collect();
            assert_eq!(given, home.union(&away).copied().collect(), "nothing was lost");
        }
        assert_eq!(moves(&plant, "dev1-0"), []);
        for owner in ["cloud", "edge0", "edge1"] {
            plant.check_owner(owner);
        }
    });
}
