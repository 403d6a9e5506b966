//! Runs of a network whose cloud has a standby.

use super::super::faults::{Crash, Moment};
use super::super::invariants::one_line;
use super::super::node::Node;
use super::super::scenario::{Pause, Scenario, Standby};
use super::super::world::World;
use super::{Outcome, calm, ends, entries, knowing, of_size, outcome, passes, place, storm, world};
use crate::protocol::guard::{Guard, tests::without};
use crate::protocol::{FailoverView, IslandTerms};
use crate::rng::Stream;
use crate::sim::TrustKind;
use crate::sim::broken::Broken;
use crate::store::Store;
use crate::wire::Coding;

const LEASE_MS: u64 = 8_000;
const FOR_EVER: u64 = u64::MAX;

fn with_standby(scenario: Scenario) -> Scenario {
    let standby = Standby { lease_ms: LEASE_MS, ..Standby::default() };
    Scenario { standby: Some(standby), ..scenario }
}

fn pause(node: &str, span: std::ops::Range<u64>) -> Pause {
    Pause { node: node.into(), from_ms: span.start, until_ms: span.end }
}

/// A network with a standby and these pauses, in which nothing else goes wrong.
fn paired<const N: usize>(seed: u64, count: u64, pauses: [Pause; N]) -> World {
    let mut scenario = with_standby(calm());
    scenario.rounds.count = count;
    scenario.pauses = pauses.into();
    world(&scenario, seed)
}

/// What one of the two shows.
fn view(world: &World, name: &str) -> FailoverView {
    world.nodes.at(place(world, name)).failover_view().unwrap()
}

fn leads(world: &World, name: &str) -> bool {
    ["paired", "alone"].contains(&view(world, name).post)
}

fn leader(world: &World) -> Option<&'static str> {
    ["cloud", "cloud-2"].into_iter().find(|name| leads(world, name))
}

fn is_one_line(world: &World, leader: &str) -> Result<(), Broken> {
    one_line::check(world, place(world, leader))
}

/// Versions of all but the two.
fn versions_below(world: &World) -> Vec<Option<u64>> {
    let nodes = world.nodes.places().map(|at| world.nodes.at(at));
    nodes.filter(|node| node.parent.is_some()).map(Node::version).collect()
}

#[test]
fn without_faults_a_standby_changes_nothing_and_has_everything() {
    let mut world = paired(1, 3, []);
    ends(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
    let state = |node| world.nodes.at(place(&world, node)).store.state("round/").unwrap();
    assert_eq!(state("cloud"), state("cloud-2"));
}

#[test]
fn a_standby_takes_over_within_a_lease_and_five_seconds_and_the_rounds_go_on() {
    for stops_at in (600..4_200).step_by(200) {
        let mut world = paired(2, 3, [pause("cloud", stops_at..FOR_EVER)]);
        world.run_until(stops_at).unwrap();
        assert!(view(&world, "cloud-2").in_step, "at {stops_at} ms");
        world.run_until(stops_at + LEASE_MS + 5_000).unwrap();
        assert_eq!(view(&world, "cloud-2").post, "alone", "stopped at {stops_at} ms");
        world.run_until(stops_at + LEASE_MS + 60_000).unwrap();
        assert!(versions_below(&world).iter().all(|v| *v == Some(3)), "stopped at {stops_at} ms");
        is_one_line(&world, "cloud-2").unwrap();
    }
}

#[test]
fn an_owner_that_wakes_stands_by_from_then_on() {
    for stops_at in (600..4_200).step_by(300) {
        let mut world = paired(3, 5, [pause("cloud", stops_at..stops_at + 14_000)]);
        ends(&mut world).unwrap_or_else(|what| panic!("stopped at {stops_at} ms: {what}"));
        assert_eq!(leader(&world), Some("cloud-2"), "stopped at {stops_at} ms");
        assert_eq!(view(&world, "cloud").post, "following");
    }
}

#[test]
fn the_other_way_round_the_first_takes_over_again() {
    let mut world =
        paired(4, 30, [pause("cloud", 1_500..20_000), pause("cloud-2", 30_000..50_000)]);
    world.run_until(50_000).unwrap();
    ends(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
    assert!(view(&world, "cloud").epoch >= 4);
}

#[test]
fn an_owner_whose_standby_is_gone_goes_on_alone_and_takes_it_back() {
    let mut world = paired(5, 6, [pause("cloud-2", 1_500..40_000)]);
    world.run_until(39_000).unwrap();
    assert_eq!(view(&world, "cloud").post, "alone");
    assert!(versions_below(&world).iter().all(|v| *v == Some(6)));
    ends(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
}

#[test]
fn a_standby_that_never_had_it_all_does_not_take_over() {
    let mut world = paired(6, 3, [pause("cloud-2", 0..8_000), pause("cloud", 7_000..FOR_EVER)]);
    world.run_until(120_000).unwrap();
    let standby = view(&world, "cloud-2");
    assert_eq!((standby.post, standby.in_step), ("following", false));
}

/// The standby stops, the owner goes on alone and then stops for good, the standby wakes.
fn an_outdated_standby(stops_at: u64) -> Result<&'static str, Broken> {
    let mut world =
        paired(1, 8, [pause("cloud-2", stops_at..60_000), pause("cloud", 50_000..FOR_EVER)]);
    world.run_until(150_000)?;
    assert!(versions_below(&world).iter().all(|v| *v == Some(8)));
    Ok(view(&world, "cloud-2").post)
}

#[test]
fn a_standby_that_is_behind_is_not_promised_the_rounds_and_else_a_version_would_have_two_results() {
    let moments = || (1_200..3_200).step_by(50);
    for stops_at in moments() {
        assert_eq!(an_outdated_standby(stops_at), Ok("standing"), "stopped at {stops_at} ms");
    }
    let broken = without(Guard::Promises, || {
        let breaks =
            |at: &u64| an_outdated_standby(*at).is_err_and(|e| e.what.contains("two results"));
        moments().filter(breaks).count()
    });
    assert!(broken > 0);
}

#[test]
fn what_leaves_before_its_copy_would_be_lost_with_its_owner() {
    let lost = |seed: u64| {
        let mut scenario = with_standby(storm());
        scenario.pauses = vec![pause("cloud", 12_000..FOR_EVER)];
        let mut world = world(&scenario, seed);
        world.run_until(200_000)?;
        let has_taken_over = leads(&world, "cloud-2");
        if has_taken_over {
            is_one_line(&world, "cloud-2")?;
        }
        Ok::<_, Broken>(has_taken_over)
    };
    let taken_over =
        (0..20).filter(|seed| lost(*seed).unwrap_or_else(|what| panic!("seed {seed}: {what}")));
    assert!(taken_over.count() > 10);
    let broken = without(Guard::Copies, || (0..20).filter(|seed| lost(*seed).is_err()).count());
    assert!(broken > 0);
}

#[test]
fn two_that_do_not_hear_each_other_are_told_apart_by_the_members() {
    for seed in 0..25 {
        let mut scenario = with_standby(calm());
        scenario.rounds.count = 6;
        scenario.standby =
            Some(Standby { lease_ms: LEASE_MS, apart_ms: [1_000 + 100 * seed, 45_000] });
        let mut world = world(&scenario, seed);
        ends(&mut world).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

#[test]
fn two_that_never_hear_each_other_again_go_on_with_one_that_leads() {
    for since in (1_000..4_200).step_by(200) {
        let mut scenario = with_standby(calm());
        scenario.rounds.count = 40;
        scenario.standby = Some(Standby { lease_ms: LEASE_MS, apart_ms: [since, 10_000_000] });
        let mut world = world(&scenario, 3);
        world.run_until(150_000).unwrap_or_else(|what| panic!("apart at {since} ms: {what}"));
        let one = ["cloud", "cloud-2"].map(|name| leads(&world, name));
        assert!(one[0] != one[1], "apart at {since} ms: {one:?}");
        let versions = versions_below(&world);
        assert!(versions.iter().all(|v| *v == Some(40)), "apart at {since} ms: {versions:?}");
        is_one_line(&world, leader(&world).unwrap()).unwrap();
    }
}

/// A storm in which each of the two stops now and then, and so does an edge.
fn storm_of(seed: u64) -> Result<World, Box<Outcome>> {
    let mut scenario = with_standby(storm());
    let mut draw = Stream::new(seed, "pauses");
    for node in ["cloud", "cloud-2", "cloud", "cloud-2", "edge-1"] {
        let from = draw.below(50_000) as u64;
        let span = from..from + 500 + draw.below(25_000) as u64;
        scenario.pauses.push(pause(node, span));
    }
    let mut world = world(&scenario, seed);
    match ends(&mut world) {
        Ok(()) => Ok(world),
        Err(broken) => Err(Box::new(outcome::of(&world, seed, Some(broken)))),
    }
}

fn storms(seeds: std::ops::Range<u64>) {
    let mut taken_over = 0;
    let mut failed = Vec::new();
    for seed in seeds {
        match storm_of(seed) {
            Ok(world) => taken_over += usize::from(view(&world, "cloud").epoch > 2),
            Err(outcome) => failed.push(outcome.to_string()),
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
    let mut scenario = of_size(with_standby(calm()), 5_000, Coding::Int8);
    scenario.pauses = vec![pause("cloud", 4_000..30_000)];
    let mut world = world(&scenario, 7);
    ends(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud-2"));
}

#[test]
fn rounds_of_knowledge_go_on_under_a_standby() {
    for stops_at in [1_000, 2_000, 3_000] {
        let mut scenario = with_standby(calm());
        scenario.pauses = vec![pause("cloud", stops_at..25_000)];
        let mut world = knowing(&scenario, 8, 30);
        ends(&mut world).unwrap_or_else(|what| panic!("stopped at {stops_at} ms: {what}"));
        assert_eq!(leader(&world), Some("cloud-2"));
    }
}

#[test]
fn a_standby_may_die_anywhere_while_it_takes_over() {
    const STOPS_AT: u64 = 1_700;
    let make = || paired(9, 3, [pause("cloud", STOPS_AT..40_000)]);
    let steps_until = |ms| {
        let mut calm = make();
        calm.run_until(ms).unwrap();
        calm.nodes.at(place(&calm, "cloud-2")).steps
    };
    let steps = steps_until(STOPS_AT)..steps_until(STOPS_AT + LEASE_MS + 6_000);
    assert!(steps.len() > 8, "{steps:?}");
    let moments = (0..4).map(Moment::AfterEffects).chain([Moment::BeforeCommit]);
    for at in moments {
        for step in steps.clone() {
            let mut world = make();
            world.crashes = vec![Crash { node: "cloud-2".into(), step, at }];
            ends(&mut world).unwrap_or_else(|what| panic!("it dies in {step}, {at:?}: {what}"));
            assert_eq!(leader(&world), Some("cloud-2"), "it dies in {step}, {at:?}");
        }
    }
}

#[test]
fn an_owner_with_a_standby_may_die_anywhere() {
    let make = || paired(10, 2, []);
    let mut calm = make();
    ends(&mut calm).unwrap();
    for at in [Moment::BeforeCommit, Moment::AfterEffects(0), Moment::AfterEffects(2)] {
        for step in 0..calm.nodes.at(place(&calm, "cloud")).steps {
            let mut world = make();
            world.crashes = vec![Crash { node: "cloud".into(), step, at }];
            ends(&mut world).unwrap_or_else(|what| panic!("it dies in {step}, {at:?}: {what}"));
        }
    }
}

#[test]
fn signed_messages_of_two_clouds_pass_the_real_gate() {
    let mut scenario = with_standby(Scenario { trust: TrustKind::Signed, ..storm() });
    scenario.pauses = vec![pause("cloud", 20_000..70_000)];
    for seed in 0..5 {
        let world = passes(world(&scenario, seed), seed);
        assert!(world.figures.forged > 0);
    }
}

/// The standby is away while the cloud goes on alone, and then the cloud stops: the standby asks for the rounds in vain.
fn asked_in_vain(seed: u64) -> World {
    let mut world =
        paired(seed, 60, [pause("cloud-2", 1_500..45_000), pause("cloud", 40_000..300_000)]);
    world.settings.island = Some(IslandTerms { after_ms: 20_000, pause_ms: 500 });
    world
}

#[test]
fn a_site_goes_on_alone_while_a_standby_asks_in_vain_and_comes_back_to_the_cloud() {
    let mut world = asked_in_vain(1);
    let rounds = |world: &World| {
        let entries = entries(world, "edge-1");
        entries.iter().filter(|entry| entry.contains("round_commit")).count()
    };
    world.run_until(60_000).unwrap();
    let before = rounds(&world);
    world.run_until(290_000).unwrap();
    assert_eq!(view(&world, "cloud-2").post, "standing");
    assert!(rounds(&world) > before + 50, "{} after {before}", rounds(&world));
    ends(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
}

#[test]
fn a_standby_that_takes_over_makes_no_island() {
    let mut world = paired(1, 30, [pause("cloud", 5_000..120_000)]);
    world.settings.island = Some(IslandTerms { after_ms: 20_000, pause_ms: 500 });
    ends(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud-2"));
    let alone =
        |entry: &String| entry.contains(r#""late":"#) && entry.contains(r#""sender":"edge-1""#);
    assert!(!entries(&world, "edge-1").iter().any(alone));
}

#[cfg(feature = "sim")]
#[test]
fn the_shipped_scenario_passes_and_the_two_take_turns() {
    let (name, text) =
        crate::sim::SHIPPED.into_iter().find(|(name, _)| *name == "standby").unwrap();
    let scenario = Scenario::from_toml(name, name, text).unwrap();
    for seed in scenario.seeds[0]..=scenario.seeds[1] {
        let world = passes(world(&scenario, seed), seed);
        assert!(view(&world, "cloud").epoch > 2, "seed {seed}: nobody took over");
        assert!(world.now_ms > 110_000);
    }
}
