//! Runs of the whole network.

use std::collections::BTreeMap;

use super::faults::{Crash, Faults, Moment};
use super::world::{World, id, is_cut};
use crate::ids::Digest;
use crate::protocol::guard::{Guard, tests::without};
use crate::protocol::{Input, RollbackBy, SlotOrder, SlotsView};
use crate::store::Store;
use crate::wire::Coding;

fn storm(seed: u64) -> Result<World, String> {
    let mut world = World::new(Faults::STORM, seed);
    world.run().map_err(|what| format!("seed {seed}: {what}"))?;
    Ok(world)
}

/// Runs seeds; also compares outcomes over all of them.
fn storms(seeds: std::ops::Range<u64>) {
    let mut outcomes: BTreeMap<(Digest, Digest), Digest> = BTreeMap::new();
    for seed in seeds {
        let world = storm(seed).unwrap();
        for (key, outcome) in world.history.outcomes {
            let first = outcomes.entry(key).or_insert(outcome);
            assert_eq!(*first, outcome, "seed {seed}: the same set, another outcome");
        }
    }
}

#[test]
fn without_faults_all_take_part_and_agree() {
    let mut world = World::new(Faults::NONE, 1);
    world.run().unwrap();
    let cloud = &world.history.closed[&id("cloud")];
    assert_eq!(cloud.len(), 3);
    assert!(cloud.values().all(|set| set.len() == 3));
    assert!(world.history.closed[&id("edge-a")].values().all(|set| set.len() == 4));
}

#[test]
fn adapters_in_chunks_make_it_both_ways() {
    for seed in 0..2 {
        let mut world = World::of_size(Faults::STORM, seed, 5_000, Coding::F32);
        assert!(is_cut(&world.settings.adapter));
        world.run().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

#[test]
fn storms_pass_and_nothing_is_lost_or_counted_twice_a() {
    storms(0..70);
}

#[test]
fn storms_pass_and_nothing_is_lost_or_counted_twice_b() {
    storms(70..140);
}

#[test]
fn storms_pass_and_nothing_is_lost_or_counted_twice_c() {
    storms(140..210);
}

#[test]
#[ignore = "minutes: thousands of seeds"]
fn many_storms_pass() {
    storms(1_000..3_000);
}

/// Storms over rounds of knowledge; what travels is inline or in chunks.
fn storms_of_knowledge(seeds: std::ops::Range<u64>, samples: u32) {
    let mut outcomes: BTreeMap<(Digest, Digest), Digest> = BTreeMap::new();
    for seed in seeds {
        let mut world = World::of_knowledge(Faults::STORM, seed, samples);
        world.run().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        for (key, outcome) in world.history.outcomes {
            let first = outcomes.entry(key).or_insert(outcome);
            assert_eq!(*first, outcome, "seed {seed}: the same set, another outcome");
        }
    }
}

#[test]
fn knowledge_passes_storms_and_each_tier_has_a_model_of_its_own() {
    storms_of_knowledge(0..40, 30);
}

#[test]
fn knowledge_in_chunks_makes_it_both_ways() {
    storms_of_knowledge(0..2, 5_000);
}

#[test]
fn each_owner_learns_before_it_passes_on_and_the_ledger_says_so() {
    let mut world = World::of_knowledge(Faults::NONE, 1, 30);
    world.run().unwrap();
    for (node, times) in [("cloud", 3), ("edge-a", 3), ("a1", 0)] {
        let entries = world.nodes[&id(node)].store.entries(0, 1_000).unwrap();
        let texts: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(entry)).collect();
        let distilled = texts.iter().filter(|text| text.contains("\"distil\"")).count();
        assert_eq!(distilled, times, "{node}");
    }
    let adapters: Vec<_> = ["cloud", "edge-a", "edge-b", "a1", "b1"]
        .map(|node| world.history.applied[&id(node)].last().unwrap().1)
        .into();
    let different: std::collections::BTreeSet<_> = adapters.iter().collect();
    assert_eq!(different.len(), adapters.len(), "no adapter travelled");
}

#[test]
fn a_cloud_may_die_anywhere_in_rounds_of_knowledge() {
    crash_matrix_of("cloud", || World::of_knowledge(Faults::NONE, 3, 30));
}

#[test]
fn a_relay_may_die_anywhere_in_rounds_of_knowledge() {
    crash_matrix_of("edge-b", || World::of_knowledge(Faults::NONE, 3, 30));
}

#[test]
fn a_device_may_die_anywhere_in_rounds_of_knowledge() {
    crash_matrix_of("b2", || World::of_knowledge(Faults::NONE, 3, 30));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| storm(seed).unwrap().trace();
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

/// Dies in each step that changes the store, before the transaction and after 0 to 3 effects.
fn crash_matrix(node: &str) {
    crash_matrix_of(node, || World::new(Faults::NONE, 3));
}

fn crash_matrix_of(node: &str, world: impl Fn() -> World) {
    let mut calm = world();
    calm.settings.versions = 2;
    calm.run().unwrap();
    let steps = calm.nodes[&id(node)].steps;
    assert!(steps > 4);
    let moments = (0..4).map(Moment::AfterEffects).chain([Moment::BeforeCommit]);
    for at in moments {
        for step in 0..steps {
            let mut world = world();
            world.settings.versions = 2;
            world.crashes = vec![Crash { node: node.into(), step, at }];
            world.run().unwrap_or_else(|what| panic!("{node} dies in {step}, {at:?}: {what}"));
        }
    }
}

#[test]
fn a_cloud_may_die_anywhere() {
    crash_matrix("cloud");
}

#[test]
fn a_relay_may_die_anywhere() {
    crash_matrix("edge-b");
}

#[test]
fn a_device_may_die_anywhere() {
    crash_matrix("b2");
}

#[test]
fn a_receipt_before_its_commit_would_promise_what_a_crash_takes_away() {
    let broken = (0..20).filter(|seed| {
        let mut world = World::new(Faults::STORM, *seed);
        world.commit_first = false;
        world.run().is_err_and(|what| what.contains("accepted_is_recorded"))
    });
    assert!(broken.count() > 0);
}

#[test]
fn without_the_memory_of_repeats_one_contribution_would_count_twice() {
    let broken = without(Guard::Repeats, || {
        let fails = |seed: &u64| storm(*seed).is_err();
        (0..20).filter(fails).count()
    });
    assert!(broken > 0);
}

#[test]
fn a_round_that_nobody_takes_part_in_is_asked_for_anew() {
    let mut world = World::new(Faults::NONE, 9);
    for edge in ["edge-a", "edge-b", "edge-c"] {
        world.run_until(100).unwrap();
        world.tell(edge, Input::Pause(true)).unwrap();
    }
    world.run_until(60_000).unwrap();
    let rounds = world.nodes[&id("cloud")].store.entries(0, 1_000).unwrap();
    let given_up = |entry: &Vec<u8>| String::from_utf8_lossy(entry).contains("round_abandon");
    assert!(rounds.iter().any(given_up));
    for edge in ["edge-a", "edge-b", "edge-c"] {
        world.tell(edge, Input::Pause(false)).unwrap();
    }
    world.run().unwrap();
}

/// Gives an order, and gives it again where the node died before it was on disk, as whoever gets no reply does.
fn insist(world: &mut World, node: &str, order: SlotOrder, done: impl Fn(&SlotsView) -> bool) {
    for _ in 0..2 {
        if !world.nodes[&id(node)].slots().is_some_and(|slots| done(&slots)) {
            world.order(node, order).unwrap();
        }
        world.run_until(world.now_ms + 30_000).unwrap();
    }
    assert!(done(&world.nodes[&id(node)].slots().unwrap()));
}

/// Rolls a node back, lets another round pass, and releases what it made; the node dies in each of the two.
fn goes_back_and_on(node: &str, at: Option<Moment>) {
    let mut world = World::new(Faults::NONE, 3);
    world.settings.versions = 2;
    world.run().unwrap();
    let dies = |world: &mut World| {
        let step = world.nodes[&id(node)].steps;
        world.crashes = at.map(|at| Crash { node: node.into(), step, at }).into_iter().collect();
    };
    let served = |world: &World| world.history.applied[&id(node)].last().unwrap().0;
    let slots = |world: &World| world.nodes[&id(node)].slots().unwrap();
    dies(&mut world);
    let back = SlotOrder::Rollback { to: Some(1), by: RollbackBy::Operator };
    insist(&mut world, node, back, |slots| slots.served == 1);
    assert_eq!((served(&world), slots(&world).held_since), (1, Some(2)));
    world.crashes.clear();
    world.tell("cloud", Input::StartRound).unwrap();
    world.run_until(world.now_ms + 60_000).unwrap();
    assert_eq!(world.nodes[&id(node)].version(), Some(3), "it learns on");
    assert_eq!((served(&world), slots(&world).versions), (1, vec![1, 2, 3]));
    dies(&mut world);
    insist(&mut world, node, SlotOrder::Release { least: 3 }, |slots| slots.served == 3);
    assert_eq!(served(&world), 3);
    let entries = world.nodes[&id(node)].store.entries(0, 10_000).unwrap();
    let texts: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(entry)).collect();
    let count = |what: &str| texts.iter().filter(|text| text.contains(what)).count();
    assert_eq!(count(r#""event":{"rollback":{"from":2,"reason":"operator","to":1}}"#), 1);
    assert_eq!(count(r#""event":{"rollout":"#), 3, "each version once");
    for blob in slots(&world).versions {
        assert!(blob == 1 || blob == 3, "the one before and the one in use");
    }
}

#[test]
fn a_node_may_die_anywhere_in_a_rollback_and_its_release() {
    let moments = (0..3).map(Moment::AfterEffects).chain([Moment::BeforeCommit]);
    for at in moments.map(Some).chain([None]) {
        for node in ["cloud", "edge-b", "b2"] {
            goes_back_and_on(node, at);
        }
    }
}

#[test]
fn what_could_be_served_is_on_disk_after_all_that_a_round_throws_away() {
    let mut world = World::new(Faults::STORM, 11);
    world.run().unwrap();
    for node in world.nodes.values() {
        for blob in node.blobs() {
            assert!(node.store.blob(&blob).unwrap().is_some(), "{} lost {blob}", node.id);
        }
    }
}
