//! Sites that run several rounds of their own for one of the federation.

use super::super::faults::{Crash, Moment};
use super::super::scenario::Scenario;
use super::super::world::World;
use super::{all_pass, calm, ends, passes, place, storm, world};
use crate::ledger::{Entry, Event};
use crate::store::Store;

const ROUNDS: u32 = 3;

fn clustered(scenario: &Scenario, seed: u64) -> World {
    let mut world = world(scenario, seed);
    world.settings.plan.cluster_rounds = Some(ROUNDS);
    world
}

fn num_events(world: &World, name: &str, counts: impl Fn(&Event) -> bool) -> usize {
    let store = &world.nodes.at(place(world, name)).store;
    let all = store.entries(0, store.num_entries().unwrap()).unwrap();
    all.iter().filter(|bytes| counts(&Entry::parse(bytes).unwrap().event)).count()
}

#[test]
fn a_site_has_its_rounds_and_contributes_once_for_each_of_the_federations() {
    let world = passes(clustered(&calm(), 1), 1);
    let versions = usize::try_from(world.settings.rounds.count).unwrap();
    for edge in ["edge-1", "edge-2", "edge-3"] {
        let opened = num_events(&world, edge, |event| matches!(event, Event::RoundOpen { .. }));
        assert_eq!(opened, versions * ROUNDS as usize, "{edge}");
        let up = num_events(&world, edge, |event| matches!(event, Event::Contribute { .. }));
        assert_eq!(up, versions, "{edge}");
    }
    let device =
        num_events(&world, "device-1-1", |event| matches!(event, Event::Contribute { .. }));
    assert_eq!(device, versions * ROUNDS as usize);
}

#[test]
fn a_relay_may_die_anywhere_in_its_cluster_rounds() {
    let moments = [Moment::BeforeCommit, Moment::AfterEffects(0), Moment::AfterEffects(2)];
    let places = moments.into_iter().flat_map(|at| (1..60).step_by(3).map(move |step| (at, step)));
    for (at, step) in places {
        let mut world = clustered(&calm(), 5);
        world.crashes = vec![Crash { node: "edge-2".into(), step, at }];
        ends(&mut world).unwrap_or_else(|what| panic!("dies in {step}, {at:?}: {what}"));
    }
}

#[test]
fn storms_over_cluster_rounds_lose_nothing() {
    all_pass(0..15, |seed| clustered(&storm(), seed));
}
