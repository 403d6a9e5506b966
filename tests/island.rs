//! Whole nodes of two sites whose cloud goes away, on the in-memory bus under tokio's paused clock: each site goes on
//! alone, and what it learned comes back as one contribution. Storms on the way are run by the simulator.
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

use std::time::Duration;

use federation::{Plant, name, paused};
use gaisnet::bus::memory::Faults;
use gaisnet::ids::UpdateId;
use gaisnet::ledger::Event;
use gaisnet::protocol::IslandTerms;

const TERMS: IslandTerms = IslandTerms { after_ms: 60_000, pause_ms: 1_000 };
const VERSIONS: u64 = 6;
const EDGES: [&str; 2] = ["edge0", "edge1"];
const NODES: [&str; 7] = ["cloud", "edge0", "edge1", "dev0-0", "dev0-1", "dev1-0", "dev1-1"];

async fn wait(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn start(node: &str, plant: &mut Plant, island: Option<IslandTerms>) {
    let mut parts = plant.parts(&name(node));
    parts.learning.island = island;
    plant.run(parts);
}

async fn stop(node: &str, plant: &mut Plant) {
    plant.running.remove(&name(node)).unwrap().stop("test", 0).await;
}

/// Two sites that have the second version, and no cloud any more.
async fn left_alone(island: Option<IslandTerms>) -> Plant {
    let mut plant = Plant::new(2, 2, VERSIONS, &Faults::none(1));
    for node in NODES {
        start(node, &mut plant, island);
    }
    while plant.versions().await.values().any(|version| *version < 2) {
        wait(1).await;
    }
    stop("cloud", &mut plant).await;
    plant
}

fn rounds(plant: &Plant, edge: &str) -> usize {
    let entries = plant.entries(edge);
    entries.iter().filter(|event| matches!(event, Event::RoundCommit { .. })).count()
}

/// Contributions of its own that an edge has recorded.
fn brought(plant: &Plant, edge: &str) -> Vec<UpdateId> {
    let own = |event: Event| match event {
        Event::Late { sender, update, .. } if sender.as_str() == edge => Some(update),
        _ => None,
    };
    plant.entries(edge).into_iter().filter_map(own).collect()
}

/// What an edge shows of itself, and how often since its start it has counted that it goes on alone, and that its
/// parent is back.
async fn shows(plant: &Plant, edge: &str) -> (&'static str, u64, u64) {
    let running = &plant.running[&name(edge)];
    let counted = running.figures.view().counted;
    let times = |word| counted.get(word).copied().unwrap_or(0);
    let phase = running.view().await.unwrap().phase;
    (phase, times("goes_on_alone"), times("parent_is_back"))
}

/// The adapter that a node answers with, and the version that it names.
fn serves(plant: &Plant, node: &str) -> (u64, Vec<u8>) {
    let serving = plant.running[&name(node)].serving.borrow().clone();
    (serving.0, serving.1.to_vec())
}

#[test]
fn sites_go_on_without_their_cloud_over_a_restart_and_come_together_again() {
    paused(async {
        let mut plant = left_alone(Some(TERMS)).await;
        let before = EDGES.map(|edge| rounds(&plant, edge));
        let at_first = serves(&plant, "dev0-0");
        wait(300).await;
        let soon = rounds(&plant, "edge0");
        assert!(soon > before[0] + 3, "{soon} rounds, {} before", before[0]);
        // What it knows of the island has to come from its store.
        stop("edge0", &mut plant).await;
        wait(30).await;
        start("edge0", &mut plant, Some(TERMS));
        wait(50).await;
        assert!(rounds(&plant, "edge0") > soon + 2, "it goes on without the same silence again");
        wait(600).await;
        for (edge, before) in EDGES.into_iter().zip(before) {
            assert!(rounds(&plant, edge) > before + 10, "{edge}");
            assert!(brought(&plant, edge).is_empty(), "nobody was there to take it");
        }
        assert_eq!(shows(&plant, "edge1").await, ("island", 1, 0), "once, not once a round");
        assert_eq!(shows(&plant, "edge0").await, ("island", 0, 0), "it was one when it started");
        let alone = serves(&plant, "dev0-0");
        assert_eq!(alone.0, at_first.0, "no version was made");
        assert_ne!(alone.1, at_first.1, "but the device answers with what its site has learned");
        assert_ne!(alone.1, serves(&plant, "dev1-0").1, "each site by itself");

        start("cloud", &mut plant, None);
        plant.converge(60).await;
        for edge in EDGES {
            assert_eq!(brought(&plant, edge).len(), 1, "{edge}: what it learned alone, once");
            let (phase, _, back) = shows(&plant, edge).await;
            assert!(phase != "island" && back == 1, "{edge} is {phase}, back {back} times");
            plant.check_owner(edge);
        }
        plant.check_owner("cloud");
        let all = NODES.map(|node| serves(&plant, node));
        assert!(all.iter().all(|one| *one == all[0] && one.0 == VERSIONS), "all came to the same");
    });
}

#[test]
fn without_the_setting_a_site_waits_for_its_cloud() {
    paused(async {
        let mut plant = left_alone(None).await;
        wait(120).await; // what was begun ends
        let before = EDGES.map(|edge| rounds(&plant, edge));
        wait(900).await;
        assert_eq!(EDGES.map(|edge| rounds(&plant, edge)), before);
        start("cloud", &mut plant, None);
        plant.converge(60).await;
        assert!(EDGES.iter().all(|edge| brought(&plant, edge).is_empty()));
    });
}
