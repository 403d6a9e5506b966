//! Runs of a network whose cloud has a standby.

use super::faults::{Crash, Faults, Moment, Pause};
use super::invariants::one_line;
use super::node::LEASE_MS;
use super::world::{World, id, view};
use crate::protocol::guard::{Guard, tests::without};
use crate::rng::Stream;
use crate::store::Store;

const FOR_EVER: u64 = u64::MAX;

fn pause(node: &str, span: std::ops::Range<u64>) -> Pause {
    Pause { node: node.into(), span }
}

fn leader(world: &World) -> Option<&'static str> {
    let leads =
        |node: &&str| view(world, node).is_some_and(|v| ["paired", "alone"].contains(&v.post));
    ["cloud", "cloud-2"].into_iter().find(leads)
}

/// Runs until the two agree, and asks what came of each contribution.
fn run(world: &mut World) -> Result<(), String> {
    world.run()?;
    one_line::check(world, leader(world).ok_or("nobody leads")?)
}

/// Versions of all but the two.
fn versions_below(world: &World) -> Vec<Option<u64>> {
    let below = world.nodes.values().filter(|node| node.parent.is_some());
    below.map(super::node::Node::version).collect()
}

#[test]
fn without_faults_a_standby_changes_nothing_and_has_everything() {
    let mut world = World::with_standby(Faults::NONE, 1);
    run(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
    let state = |node| world.nodes[&id(node)].store.state("round/").unwrap();
    assert_eq!(state("cloud"), state("cloud-2"));
}

#[test]
fn a_standby_takes_over_within_a_lease_and_five_seconds_and_the_rounds_go_on() {
    for stops_at in (600..4_200).step_by(200) {
        let mut world = World::with_standby(Faults::NONE, 2);
        world.pauses = vec![pause("cloud", stops_at..FOR_EVER)];
        world.run_until(stops_at).unwrap();
        assert!(view(&world, "cloud-2").unwrap().in_step, "at {stops_at} ms");
        world.run_until(stops_at + LEASE_MS + 5_000).unwrap();
        assert_eq!(view(&world, "cloud-2").unwrap().post, "alone", "stopped at {stops_at} ms");
        world.run_until(stops_at + LEASE_MS + 60_000).unwrap();
        assert!(versions_below(&world).iter().all(|v| *v == Some(3)), "stopped at {stops_at} ms");
        one_line::check(&world, "cloud-2").unwrap();
    }
}

#[test]
fn an_owner_that_wakes_stands_by_from_then_on() {
    for stops_at in (600..4_200).step_by(300) {
        let mut world = World::with_standby(Faults::NONE, 3);
        world.settings.versions = 5;
        world.pauses = vec![pause("cloud", stops_at..stops_at + 14_000)];
        run(&mut world).unwrap_or_else(|what| panic!("stopped at {stops_at} ms: {what}"));
        assert_eq!(leader(&world), Some("cloud-2"), "stopped at {stops_at} ms");
        assert_eq!(view(&world, "cloud").unwrap().post, "following");
    }
}

#[test]
fn the_other_way_round_the_first_takes_over_again() {
    let mut world = World::with_standby(Faults::NONE, 4);
    world.settings.versions = 30;
    world.pauses = vec![pause("cloud", 1_500..20_000), pause("cloud-2", 30_000..50_000)];
    world.run_until(50_000).unwrap();
    run(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
    assert!(view(&world, "cloud").unwrap().epoch >= 4);
}

#[test]
fn an_owner_whose_standby_is_gone_goes_on_alone_and_takes_it_back() {
    let mut world = World::with_standby(Faults::NONE, 5);
    world.settings.versions = 6;
    world.pauses = vec![pause("cloud-2", 1_500..40_000)];
    world.run_until(39_000).unwrap();
    assert_eq!(view(&world, "cloud").unwrap().post, "alone");
    assert!(versions_below(&world).iter().all(|v| *v == Some(6)));
    run(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
}

#[test]
fn a_standby_that_never_had_it_all_does_not_take_over() {
    let mut world = World::with_standby(Faults::NONE, 6);
    world.pauses = vec![pause("cloud-2", 0..8_000), pause("cloud", 7_000..FOR_EVER)];
    world.run_until(120_000).unwrap();
    let standby = view(&world, "cloud-2").unwrap();
    assert_eq!((standby.post, standby.in_step), ("following", false));
}

/// The standby stops, the owner goes on alone and then stops for good, the standby wakes.
fn an_outdated_standby(stops_at: u64) -> Result<&'static str, String> {
    let mut world = World::with_standby(Faults::NONE, 1);
    world.settings.versions = 8;
    world.pauses = vec![pause("cloud-2", stops_at..60_000), pause("cloud", 50_000..FOR_EVER)];
    world.run_until(150_000)?;
    assert!(versions_below(&world).iter().all(|v| *v == Some(8)));
    Ok(view(&world, "cloud-2").unwrap().post)
}

#[test]
fn a_standby_that_is_behind_is_not_promised_the_rounds_and_else_a_version_would_have_two_results() {
    let moments = || (1_200..3_200).step_by(50);
    for stops_at in moments() {
        assert_eq!(an_outdated_standby(stops_at), Ok("standing"), "stopped at {stops_at} ms");
    }
    let broken = without(Guard::Promises, || {
        let breaks = |at: &u64| an_outdated_standby(*at).is_err_and(|e| e.contains("two results"));
        moments().filter(breaks).count()
    });
    assert!(broken > 0);
}

#[test]
fn what_leaves_before_its_copy_would_be_lost_with_its_owner() {
    let lost = |seed: u64| {
        let mut world = World::with_standby(Faults::STORM, seed);
        world.pauses = vec![pause("cloud", 12_000..FOR_EVER)];
        world.run_until(200_000).and_then(|()| match leader(&world) {
            Some("cloud-2") => one_line::check(&world, "cloud-2"),
            _ => Ok(()),
        })
    };
    for seed in 0..20 {
        lost(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
    let broken = without(Guard::Copies, || (0..20).filter(|seed| lost(*seed).is_err()).count());
    assert!(broken > 0);
}

#[test]
fn two_that_do_not_hear_each_other_are_told_apart_by_the_members() {
    for seed in 0..25 {
        let mut world = World::with_standby(Faults::NONE, seed);
        world.settings.versions = 6;
        world.apart = 1_000 + 100 * seed..45_000;
        run(&mut world).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

/// A storm in which each of the two stops now and then, and so does an edge.
fn storm(seed: u64) -> Result<World, String> {
    let mut world = World::with_standby(Faults::STORM, seed);
    let mut draw = Stream::new(seed, "pauses");
    for node in ["cloud", "cloud-2", "cloud", "cloud-2", "edge-a"] {
        let from = draw.below(50_000) as u64;
        let span = from..from + 500 + draw.below(25_000) as u64;
        world.pauses.push(pause(node, span));
    }
    run(&mut world).map_err(|what| format!("seed {seed}: {what}"))?;
    Ok(world)
}

fn storms(seeds: std::ops::Range<u64>) {
    let mut taken_over = 0;
    let mut failed = Vec::new();
    for seed in seeds {
        match storm(seed) {
            Ok(world) => taken_over += usize::from(view(&world, "cloud").unwrap().epoch > 2),
            Err(what) => failed.push(what),
        }
    }
    assert_eq!(failed, Vec::<String>::new());
    assert!(taken_over > 0);
}

#[test]
fn storms_with_pauses_pass_and_the_two_are_as_one_a() {
    storms(0..30);
}

#[test]
fn storms_with_pauses_pass_and_the_two_are_as_one_b() {
    storms(30..60);
}

#[test]
#[ignore = "minutes: hundreds of seeds"]
fn many_storms_with_pauses_pass() {
    storms(60..500);
}

#[test]
fn adapters_in_chunks_reach_the_standby_too() {
    let mut world = World::with_standby_of_size(Faults::NONE, 7, 5_000);
    world.pauses = vec![pause("cloud", 4_000..30_000)];
    run(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud-2"));
}

#[test]
fn rounds_of_knowledge_go_on_under_a_standby() {
    for stops_at in [1_000, 2_000, 3_000] {
        let mut world = World::with_standby(Faults::NONE, 8);
        world.settings.plan = crate::protocol::fixture::knowledge_plan(30);
        world.pauses = vec![pause("cloud", stops_at..25_000)];
        run(&mut world).unwrap_or_else(|what| panic!("stopped at {stops_at} ms: {what}"));
        assert_eq!(leader(&world), Some("cloud-2"));
    }
}

#[test]
fn a_standby_may_die_anywhere_while_it_takes_over() {
    const STOPS_AT: u64 = 1_700;
    let world = || {
        let mut world = World::with_standby(Faults::NONE, 9);
        world.pauses = vec![pause("cloud", STOPS_AT..40_000)];
        world
    };
    let steps_until = |ms| {
        let mut calm = world();
        calm.run_until(ms).unwrap();
        calm.nodes[&id("cloud-2")].steps
    };
    let steps = steps_until(STOPS_AT)..steps_until(STOPS_AT + LEASE_MS + 6_000);
    assert!(steps.len() > 8, "{steps:?}");
    let moments = (0..4).map(Moment::AfterEffects).chain([Moment::BeforeCommit]);
    for at in moments {
        for step in steps.clone() {
            let mut world = world();
            world.crashes = vec![Crash { node: "cloud-2".into(), step, at }];
            run(&mut world).unwrap_or_else(|what| panic!("it dies in {step}, {at:?}: {what}"));
            assert_eq!(leader(&world), Some("cloud-2"), "it dies in {step}, {at:?}");
        }
    }
}

#[test]
fn an_owner_with_a_standby_may_die_anywhere() {
    let world = || {
        let mut world = World::with_standby(Faults::NONE, 10);
        world.settings.versions = 2;
        world
    };
    let mut calm = world();
    run(&mut calm).unwrap();
    for at in [Moment::BeforeCommit, Moment::AfterEffects(0), Moment::AfterEffects(2)] {
        for step in 0..calm.nodes[&id("cloud")].steps {
            let mut world = world();
            world.crashes = vec![Crash { node: "cloud".into(), step, at }];
            run(&mut world).unwrap_or_else(|what| panic!("it dies in {step}, {at:?}: {what}"));
        }
    }
}
