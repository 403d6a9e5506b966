//! Runs of the whole network.

use std::collections::BTreeMap;

use super::broken::Broken;
use super::faults::{Crash, Moment};
use super::nodes::Place;
use super::scenario::{Amnesia, Churn, Faults, Partitions, Rounds, Scenario, Tiers, TrustKind};
use super::world::World;
use super::{Outcome, outcome};
use crate::ids::{Digest, NodeId};
use crate::protocol::guard::{Guard, tests::without};
use crate::protocol::{Distils, Input, RollbackBy, SlotOrder, SlotRefusal, SlotsView, fixture};
use crate::store::Store;
use crate::wire::{Blob, Coding, SpectraPlan};

mod clusters;
mod failover;
mod guards;
mod islands;
mod second_edges;

/// One cloud, three sites with four devices each; nothing goes wrong.
fn calm() -> Scenario {
    Scenario {
        name: "calm".into(),
        what: "a test".into(),
        trust: TrustKind::Assumed,
        ledgers: true,
        seeds: [1, 1],
        tiers: Tiers { edges: 3, devices: 4 },
        rounds: Rounds::default(),
        model: super::Model::default(),
        pace: super::Pace::default(),
        faults: Faults::default(),
        churn: Churn::default(),
        partitions: Partitions::default(),
        amnesia: Amnesia::default(),
        outages: Vec::new(),
        standby: None,
        second_edges: None,
        pauses: Vec::new(),
    }
}

/// The same where everything goes wrong, often.
fn storm() -> Scenario {
    Scenario {
        name: "storm".into(),
        faults: Faults {
            loss: 0.2,
            repeat: 0.2,
            delay_ms: 3_000,
            crash: 0.03,
            forged: 0.05,
            until_ms: 60_000,
            ..Faults::default()
        },
        churn: Churn { every_ms: 15_000, share: 0.3, ..Churn::default() },
        partitions: Partitions { each_ms: 7_000 },
        amnesia: Amnesia { every_ms: 11_000 },
        ..calm()
    }
}

/// Adapters of this size.
fn of_size(mut scenario: Scenario, width: usize, coding: Coding) -> Scenario {
    scenario.model = super::Model { width, coding };
    scenario
}

fn world(scenario: &Scenario, seed: u64) -> World {
    World::new(scenario, seed).unwrap()
}

/// The same where each node has a model of its own, and they say what they think of `samples` inputs.
fn knowing(scenario: &Scenario, seed: u64, samples: u32) -> World {
    let mut world = world(scenario, seed);
    world.settings.plan = fixture::knowledge_plan(samples);
    world.settings.knows = Some(fixture::knows(&world.settings.adapter));
    world.settings.distils = Some(Distils { steps: 4, learning_rate: 0.1, final_rate: None });
    world
}

/// The same where they say how classes sound, and owners' models hear the tier above.
fn sounding(scenario: &Scenario, seed: u64) -> World {
    let mut world = knowing(scenario, seed, 30);
    let plan = world.settings.plan.knowledge.as_mut().unwrap();
    (plan.prototypes, plan.reference_logits) = (false, false);
    plan.spectra = Some(SpectraPlan { bands: 8, grades: 2 });
    world
}

fn ends(world: &mut World) -> Result<(), Broken> {
    world.run(&mut |_| ())
}

/// Runs to the end, and fails with the seed and the command that shows it again.
fn passes(mut world: World, seed: u64) -> World {
    let broken = ends(&mut world).err();
    let outcome: Outcome = outcome::of(&world, seed, broken);
    assert!(outcome.violation.is_none(), "{outcome}");
    world
}

fn place(world: &World, name: &str) -> Place {
    world.nodes.find(&NodeId::new(name).unwrap()).unwrap()
}

fn entries(world: &World, name: &str) -> Vec<String> {
    let store = &world.nodes.at(place(world, name)).store;
    let entries = store.entries(0, 10_000).unwrap();
    entries.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
}

/// Runs worlds of seeds; also compares outcomes over all of them.
fn all_pass(seeds: std::ops::Range<u64>, make: impl Fn(u64) -> World) {
    let mut outcomes: BTreeMap<(Digest, Digest), Digest> = BTreeMap::new();
    for seed in seeds {
        let world = passes(make(seed), seed);
        for (key, outcome) in world.invariants.order_free.outcomes {
            let first = outcomes.entry(key).or_insert(outcome);
            assert_eq!(*first, outcome, "seed {seed}: the same set, another outcome");
        }
    }
}

#[test]
fn without_faults_all_take_part_and_agree() {
    let world = passes(world(&calm(), 1), 1);
    let cloud = world.invariants.order_free.sets(Place::CLOUD);
    assert_eq!(cloud.len(), 3);
    assert!(cloud.iter().all(|set| set.len() == 3));
    let edge = world.invariants.order_free.sets(place(&world, "edge-1"));
    assert!(edge.iter().all(|set| set.len() == 4));
    assert_eq!((world.figures.crashes, world.figures.forged), (0, 0));
}

#[test]
fn signed_messages_pass_the_real_gate_and_forged_ones_do_not() {
    let scenario = Scenario { trust: TrustKind::Signed, ..storm() };
    let (mut forged, mut counted) = (0, BTreeMap::new());
    for seed in 0..5 {
        let world = passes(world(&scenario, seed), seed);
        assert!(world.figures.refused >= world.figures.forged, "{:?}", world.figures);
        forged += world.figures.forged;
        counted.extend(world.figures.counted);
    }
    assert!(forged > 20, "{forged}");
    assert!(counted.contains_key("unknown_key") && counted.contains_key("bad_signature"));
}

#[test]
fn adapters_in_chunks_make_it_both_ways() {
    let scenario = of_size(storm(), 5_000, Coding::F32);
    for seed in 0..2 {
        let world = world(&scenario, seed);
        let blob = Blob::of(&world.settings.adapter, super::node::CHUNK_BYTES);
        assert!(matches!(blob, Blob::Manifest(_)));
        assert!(passes(world, seed).figures.chunks > 0);
    }
}

#[test]
fn storms_pass_and_nothing_is_lost_or_counted_twice_a() {
    all_pass(0..70, |seed| world(&storm(), seed));
}

#[test]
fn storms_pass_and_nothing_is_lost_or_counted_twice_b() {
    all_pass(70..140, |seed| world(&storm(), seed));
}

#[test]
fn storms_pass_and_nothing_is_lost_or_counted_twice_c() {
    all_pass(140..210, |seed| world(&storm(), seed));
}

#[test]
fn storms_pass_where_no_message_overtakes_another() {
    let mut scenario = storm();
    scenario.faults.reorder = false;
    all_pass(0..10, |seed| world(&scenario, seed));
}

#[test]
fn knowledge_passes_storms_and_each_tier_has_a_model_of_its_own() {
    all_pass(0..40, |seed| knowing(&storm(), seed, 30));
}

#[test]
fn knowledge_in_chunks_makes_it_both_ways() {
    all_pass(0..2, |seed| knowing(&storm(), seed, 5_000));
}

#[test]
fn spectra_pass_storms_and_an_owner_of_rounds_of_them_may_die_anywhere() {
    all_pass(0..20, |seed| sounding(&storm(), seed));
    for owner in ["cloud", "edge-2"] {
        crash_matrix_of(owner, |scenario| sounding(scenario, 3));
    }
}

#[test]
fn each_owner_learns_before_it_passes_on_and_the_ledger_says_so() {
    let world = passes(knowing(&calm(), 1, 30), 1);
    for (node, times) in [("cloud", 3), ("edge-1", 3), ("device-1-1", 0)] {
        let distilled = entries(&world, node).iter().filter(|e| e.contains("\"distil\"")).count();
        assert_eq!(distilled, times, "{node}");
    }
    let adapters: Vec<_> = ["cloud", "edge-1", "edge-2", "device-1-1", "device-2-1"]
        .map(|node| world.invariants.versions_rise.adapter(place(&world, node)).unwrap())
        .into();
    let different: std::collections::BTreeSet<_> = adapters.iter().collect();
    assert_eq!(different.len(), adapters.len(), "no adapter travelled");
}

#[test]
fn a_cloud_may_die_anywhere_in_rounds_of_knowledge() {
    crash_matrix_of("cloud", |scenario| knowing(scenario, 3, 30));
}

#[test]
fn a_relay_may_die_anywhere_in_rounds_of_knowledge() {
    crash_matrix_of("edge-2", |scenario| knowing(scenario, 3, 30));
}

#[test]
fn a_device_may_die_anywhere_in_rounds_of_knowledge() {
    crash_matrix_of("device-2-2", |scenario| knowing(scenario, 3, 30));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed, trust| {
        let scenario = Scenario { trust, ..storm() };
        passes(world(&scenario, seed), seed).trace()
    };
    for trust in [TrustKind::Assumed, TrustKind::Signed] {
        assert_eq!(trace(5, trust), trace(5, trust));
        assert_ne!(trace(5, trust), trace(6, trust));
    }
}

/// Dies in each step that changes the store, before the transaction and after 0 to 3 effects.
fn crash_matrix(node: &str) {
    crash_matrix_of(node, |scenario| world(scenario, 3));
}

fn crash_matrix_of(node: &str, make: impl Fn(&Scenario) -> World) {
    let mut scenario = calm();
    scenario.rounds.count = 2;
    let calm = passes(make(&scenario), 3);
    let steps = calm.nodes.at(place(&calm, node)).steps;
    assert!(steps > 4);
    let moments = (0..4).map(Moment::AfterEffects).chain([Moment::BeforeCommit]);
    for at in moments {
        for step in 0..steps {
            let mut world = make(&scenario);
            world.crashes = vec![Crash { node: node.into(), step, at }];
            ends(&mut world).unwrap_or_else(|what| panic!("{node} dies in {step}, {at:?}: {what}"));
        }
    }
}

#[test]
fn a_cloud_may_die_anywhere() {
    crash_matrix("cloud");
}

#[test]
fn a_relay_may_die_anywhere() {
    crash_matrix("edge-2");
}

#[test]
fn a_device_may_die_anywhere() {
    crash_matrix("device-2-2");
}

#[test]
fn a_round_that_nobody_takes_part_in_is_asked_for_anew() {
    let mut world = world(&calm(), 9);
    let edges = ["edge-1", "edge-2", "edge-3"].map(|edge| place(&world, edge));
    world.run_until(100).unwrap();
    for edge in edges {
        world.step(edge, Input::Pause(true)).unwrap();
    }
    world.run_until(60_000).unwrap();
    assert!(entries(&world, "cloud").iter().any(|entry| entry.contains("round_abandon")));
    for edge in edges {
        world.step(edge, Input::Pause(false)).unwrap();
    }
    ends(&mut world).unwrap();
}

#[test]
fn a_federation_without_its_cloud_waits_and_goes_on() {
    let mut scenario = calm();
    let cloud =
        super::Outage { node: "cloud".into(), from_ms: 600, until_ms: 90_600, crash: false };
    scenario.outages = vec![cloud];
    let world = passes(world(&scenario, 1), 1);
    assert!(world.now_ms > 90_600, "{}", world.now_ms);
}

/// An operator's word about the version that a node serves.
fn order(world: &mut World, at: Place, order: SlotOrder) -> Result<(), SlotRefusal> {
    let effects = world.nodes.at_mut(at).order(order)?;
    world.settle(at, &effects).unwrap();
    Ok(())
}

fn slots(world: &World, at: Place) -> SlotsView {
    world.nodes.at(at).slots().unwrap()
}

/// Gives an order, and gives it again where the node died before it was on disk, as whoever gets no reply does.
fn insist(world: &mut World, at: Place, what: SlotOrder, done: impl Fn(&SlotsView) -> bool) {
    for _ in 0..2 {
        if !world.nodes.at(at).slots().is_some_and(|slots| done(&slots)) {
            order(world, at, what).unwrap();
        }
        world.run_until(world.now_ms + 30_000).unwrap();
    }
    assert!(done(&slots(world, at)));
}

/// Rolls a node back, lets another round pass, and releases what it made; the node dies in each of the two.
fn goes_back_and_on(name: &str, moment: Option<Moment>) {
    let mut scenario = calm();
    scenario.rounds.count = 2;
    let mut world = passes(world(&scenario, 3), 3);
    let node = place(&world, name);
    let dies = |world: &mut World| {
        let step = world.nodes.at(node).steps;
        let crash = |at| Crash { node: name.into(), step, at };
        world.crashes = moment.map(crash).into_iter().collect();
    };
    let served = |world: &World| world.invariants.versions_rise.version(node);
    dies(&mut world);
    let back = SlotOrder::Rollback { to: Some(1), by: RollbackBy::Operator };
    insist(&mut world, node, back, |slots| slots.served == 1);
    assert_eq!((served(&world), slots(&world, node).held_since), (Some(1), Some(2)));
    world.crashes.clear();
    let cloud = place(&world, "cloud");
    world.step(cloud, Input::StartRound).unwrap();
    world.run_until(world.now_ms + 60_000).unwrap();
    assert_eq!(world.nodes.at(node).version(), Some(3), "it learns on");
    assert_eq!((served(&world), slots(&world, node).versions), (Some(1), vec![1, 2, 3]));
    dies(&mut world);
    insist(&mut world, node, SlotOrder::Release { least: 3 }, |slots| slots.served == 3);
    assert_eq!(served(&world), Some(3));
    let texts = entries(&world, name);
    let count = |what: &str| texts.iter().filter(|text| text.contains(what)).count();
    assert_eq!(count(r#""event":{"rollback":{"from":2,"reason":"operator","to":1}}"#), 1);
    assert_eq!(count(r#""event":{"rollout":"#), 3, "each version once");
    assert_eq!(slots(&world, node).versions, [1, 3], "the one before and the one in use");
}

#[test]
fn a_node_may_die_anywhere_in_a_rollback_and_its_release() {
    let moments = (0..3).map(Moment::AfterEffects).chain([Moment::BeforeCommit]);
    for at in moments.map(Some).chain([None]) {
        for node in ["cloud", "edge-2", "device-2-2"] {
            goes_back_and_on(node, at);
        }
    }
}

#[test]
fn what_could_be_served_is_on_disk_after_all_that_a_round_throws_away() {
    let world = passes(world(&storm(), 11), 11);
    for at in world.nodes.places() {
        let node = world.nodes.at(at);
        for blob in node.blobs() {
            assert!(node.store.blob(&blob).unwrap().is_some(), "{} lost {blob}", node.id);
        }
    }
}
