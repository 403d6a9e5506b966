//! Devices that go to another edge while theirs is away.

use super::super::scenario::{Outage, SecondEdges};
use super::*;
use crate::protocol::IslandTerms;

/// Three edges of one site; the first dies in mid-run and stays away for long, then the second.
fn two_edges(mut scenario: Scenario) -> Scenario {
    let outage = |edge: &str, from_ms, until_ms| Outage {
        node: edge.into(),
        from_ms,
        until_ms,
        crash: true,
    };
    scenario.second_edges = Some(SecondEdges { after_ms: 15_000 });
    scenario.rounds.count = 12;
    scenario.outages = vec![outage("edge-1", 3_000, 90_000), outage("edge-2", 120_000, 170_000)];
    scenario
}

fn versions_given_by(world: &World, device: &str, edge: &str) -> usize {
    let counts = |entry: &&String| entry.contains("\"accept\"") && entry.contains(device);
    entries(world, edge).iter().filter(counts).count()
}

fn moves(world: &World, device: &str) -> usize {
    entries(world, device).iter().filter(|entry| entry.contains("\"move\"")).count()
}

#[test]
fn devices_of_an_edge_that_dies_go_on_with_the_next_one_and_come_home() {
    let world = passes(world(&two_edges(calm()), 1), 1);
    assert!(moves(&world, "device-1-1") >= 2, "there and back");
    assert!(versions_given_by(&world, "device-1-1", "edge-2") > 0);
    assert_eq!(moves(&world, "device-3-1"), 0, "its edge was never away");
}

#[test]
fn without_a_second_edge_they_wait() {
    let mut scenario = two_edges(calm());
    scenario.second_edges = None;
    let world = passes(world(&scenario, 1), 1);
    assert_eq!(versions_given_by(&world, "device-1-1", "edge-2"), 0);
}

#[test]
fn without_the_rule_a_device_counts_at_two_edges_from_one_version() {
    let broken = |seed| {
        let mut world = world(&two_edges(storm()), seed);
        without(Guard::Given, || ends(&mut world)).err().map(|broken| broken.invariant)
    };
    let found = (1..=30).find_map(broken);
    assert_eq!(found, Some("one_edge"));
}

fn storms(seeds: std::ops::Range<u64>) {
    all_pass(seeds, |seed| world(&two_edges(storm()), seed));
}

#[test]
fn storms_with_edges_that_die_count_each_device_once_a() {
    storms(1..30);
}

#[test]
fn storms_with_edges_that_die_count_each_device_once_b() {
    storms(30..60);
}

#[test]
fn signed_storms_pass_the_gate_too() {
    let scenario = Scenario { trust: TrustKind::Signed, ..two_edges(storm()) };
    all_pass(1..6, |seed| world(&scenario, seed));
}

#[test]
fn edges_that_go_on_alone_take_in_devices_and_still_none_counts_twice() {
    all_pass(1..6, |seed| {
        let mut scenario = two_edges(storm());
        let (from_ms, until_ms) = (40_000, 110_000);
        scenario.outages.push(Outage { node: "cloud".into(), from_ms, until_ms, crash: true });
        let mut world = world(&scenario, seed);
        world.settings.island = Some(IslandTerms { after_ms: 20_000, pause_ms: 500 });
        world
    });
}

/// The steps of a device, of those that change its store, up to which somebody has gone to another edge.
fn steps_of_moves(scenario: &Scenario, device: &str) -> Vec<usize> {
    let mut world = world(scenario, 1);
    let (at, mut steps) = (place(&world, device), Vec::new());
    for ms in (0..200_000).step_by(50) {
        let moves = world.figures.moves;
        world.run_until(ms).unwrap();
        if world.figures.moves > moves {
            steps.push(world.nodes.at(at).steps);
        }
    }
    steps
}

#[test]
fn a_device_may_die_anywhere_in_a_move() {
    let scenario = two_edges(calm());
    let steps = steps_of_moves(&scenario, "device-1-1");
    assert!(steps.len() >= 2, "there and back");
    for step in steps.into_iter().flat_map(|step| step.saturating_sub(2)..step + 2) {
        for at in [Moment::BeforeCommit, Moment::AfterEffects(0), Moment::AfterEffects(2)] {
            let mut world = world(&scenario, 1);
            world.crashes.push(Crash { node: "device-1-1".into(), step, at });
            passes(world, 1);
        }
    }
}
