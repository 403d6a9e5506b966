//! The cloud is away for a hundred rounds: sites go on, and come together again.

use super::super::faults::{Crash, Moment};
use super::super::node::Machine;
use super::super::nodes::Place;
use super::super::scenario::Scenario;
use super::super::world::World;
use super::{calm, ends, place, storm, world};
use crate::ids::{Digest, UpdateId, Version};
use crate::ledger::{Entry, Event};
use crate::protocol::{Input, IslandTerms};
use crate::store::Store;
use crate::wire::{Body, Kind};

const TERMS: IslandTerms = IslandTerms { after_ms: 20_000, pause_ms: 500 };
/// Long enough for a hundred rounds of a site.
const AWAY_MS: u64 = 300_000;
const SITES: [&str; 3] = ["edge-1", "edge-2", "edge-3"];

fn goes(world: &mut World) {
    world.leaves(Place::CLOUD, false);
}

fn returns(world: &mut World) {
    world.comes_back(Place::CLOUD).unwrap();
}

fn versions(world: &World) -> Vec<Version> {
    let version = |at| world.nodes.at(at).version().unwrap_or(0);
    world.nodes.places().map(version).collect()
}

/// A network whose cloud has made one version and is gone.
fn left_alone(scenario: &Scenario, seed: u64, island: Option<IslandTerms>) -> World {
    let mut world = world(scenario, seed);
    world.settings.island = island;
    while versions(&world).iter().any(|version| *version < 1) {
        let soon = world.now_ms + 20;
        world.run_until(soon).unwrap();
        world.now_ms = soon;
        assert!(world.now_ms < 100_000, "no first version");
    }
    goes(&mut world);
    world
}

fn events(world: &World, name: &str) -> Vec<Event> {
    let store = &world.nodes.at(place(world, name)).store;
    let all = store.entries(0, store.num_entries().unwrap()).unwrap();
    all.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
}

fn rounds(world: &World, name: &str) -> usize {
    let commits = |event: &&Event| matches!(event, Event::RoundCommit { .. });
    events(world, name).iter().filter(commits).count()
}

/// Contributions of its own that a relay has recorded, and where each is now.
fn brought(world: &World, name: &str) -> Vec<&'static str> {
    let (at, events) = (place(world, name), events(world, name));
    let late = world.nodes.at(at).store.state("round/late/").unwrap();
    let counted = |update: &UpdateId| {
        let own = Digest::of(&update.0);
        if world.invariants.counted_once.has_counted(at, at, own) {
            "counted"
        } else if late.iter().any(|(key, _)| key.ends_with(&update.to_string())) {
            "waits"
        } else {
            "lost"
        }
    };
    let own = events.iter().filter_map(|event| match event {
        Event::Late { sender, update, .. } if sender.as_str() == name => Some(update),
        _ => None,
    });
    own.map(counted).collect()
}

/// All through: the cloud goes, the sites go on, the cloud comes back.
fn through(seed: u64) -> World {
    let mut world = left_alone(&calm(), seed, Some(TERMS));
    let before = SITES.map(|site| rounds(&world, site));
    let device = place(&world, "device-1-1");
    let served = |world: &World| world.invariants.versions_rise.adapter(device);
    let at_first = served(&world);
    let back = world.now_ms + AWAY_MS;
    world.run_until(back).unwrap();
    for (site, before) in SITES.into_iter().zip(before) {
        let alone = rounds(&world, site) - before;
        assert!(alone >= 100, "{site} made {alone} rounds alone");
        assert!(brought(&world, site).is_empty(), "nobody was there to take it");
    }
    assert_ne!(served(&world), at_first, "devices answer with what the site has learned");
    assert!(versions(&world).iter().all(|version| *version <= 2), "no version was made");
    returns(&mut world);
    ends(&mut world).unwrap();
    world
}

#[test]
fn sites_go_on_for_a_hundred_rounds_without_the_cloud_and_come_together_again() {
    let world = through(1);
    for site in SITES {
        assert_eq!(brought(&world, site), ["counted"], "{site}: what it learned alone, once");
    }
    // `ends` has seen to it that all have the last version and the same adapter.
    assert!(versions(&world).iter().all(|version| *version == world.settings.rounds.count));
}

#[test]
fn the_same_seed_gives_the_same_island() {
    let trace = |seed| through(seed).trace();
    assert_eq!(trace(2), trace(2));
}

#[test]
fn without_the_setting_a_site_waits() {
    let mut world = left_alone(&calm(), 1, None);
    let back = world.now_ms + AWAY_MS;
    let before = rounds(&world, "edge-1");
    world.run_until(back).unwrap();
    assert!(rounds(&world, "edge-1") <= before + 1, "the round that was under way");
    returns(&mut world);
    ends(&mut world).unwrap();
    assert!(brought(&world, "edge-1").is_empty());
}

#[test]
fn a_cloud_that_is_there_and_has_nothing_to_say_makes_no_island() {
    let mut world = world(&calm(), 4);
    world.settings.island = Some(TERMS);
    ends(&mut world).unwrap();
    let before = rounds(&world, "edge-1");
    let later = world.now_ms + AWAY_MS;
    world.run_until(later).unwrap();
    assert_eq!(rounds(&world, "edge-1"), before);
}

#[test]
fn a_relay_may_die_anywhere_in_its_island() {
    let moments = [Moment::BeforeCommit, Moment::AfterEffects(0), Moment::AfterEffects(2)];
    for (at, step) in
        moments.into_iter().flat_map(|at| (20..60).step_by(3).map(move |step| (at, step)))
    {
        let mut world = left_alone(&calm(), 5, Some(TERMS));
        world.crashes = vec![Crash { node: "edge-2".into(), step, at }];
        let back = world.now_ms + 70_000;
        world.run_until(back).unwrap_or_else(|what| panic!("dies in {step}, {at:?}: {what}"));
        returns(&mut world);
        ends(&mut world).unwrap_or_else(|what| panic!("dies in {step}, {at:?}: {what}"));
        assert_eq!(brought(&world, "edge-2"), ["counted"], "dies in {step}, {at:?}");
    }
}

#[test]
fn islands_in_storms_lose_nothing() {
    for seed in 0..20 {
        let mut world = world(&storm(), seed);
        world.settings.island = Some(TERMS);
        let said = |what| panic!("seed {seed}: {what}");
        world.run_until(10_000).unwrap_or_else(said);
        goes(&mut world);
        world.run_until(70_000).unwrap_or_else(said);
        returns(&mut world);
        ends(&mut world).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        for site in SITES {
            assert!(!brought(&world, site).contains(&"lost"), "seed {seed}: {site}");
        }
    }
}

#[test]
fn an_offer_of_an_island_says_so_and_has_the_parents_version() {
    let mut world = left_alone(&calm(), 6, Some(TERMS));
    let soon = world.now_ms + 60_000;
    world.run_until(soon).unwrap();
    let edge = world.nodes.at(place(&world, "edge-1"));
    let letter = edge.broker.retained.get(&Kind::Offer).unwrap();
    let Body::Offer(offer) = letter.claim().unwrap().body() else { panic!("no offer") };
    assert!(offer.island.is_some_and(|number| number > 1) && offer.outer.is_none());
    assert_eq!(Some(offer.version), edge.version());
}

#[test]
fn a_word_that_ends_an_island_puts_the_site_back_and_one_that_a_broker_kept_does_not() {
    let mut world = left_alone(&calm(), 7, Some(TERMS));
    let edge = place(&world, "edge-1");
    let soon = world.now_ms + 60_000;
    world.run_until(soon).unwrap();
    let starts_from = |world: &World| match world.nodes.at(edge).machine.as_ref().unwrap() {
        Machine::Relay(relay) => relay.view().adapter,
        _ => panic!("no relay"),
    };
    let federations = world.invariants.versions_rise.adapter(Place::CLOUD).unwrap();
    assert_ne!(starts_from(&world), federations, "the site has learned");
    let broker = &world.nodes.at(Place::CLOUD).broker;
    let old = broker.retained.values().next().unwrap().claim().unwrap().clone();
    world.step(edge, Input::Message(old.clone().kept_by_broker())).unwrap();
    assert!(brought(&world, "edge-1").is_empty(), "nobody said it now");
    world.step(edge, Input::Message(old)).unwrap();
    let combined = world.now_ms + 5_000;
    world.run_until(combined).unwrap();
    assert_eq!(brought(&world, "edge-1"), ["waits"]);
    assert_eq!(starts_from(&world), federations, "or its work would be in the next round twice");
    let later = world.now_ms + 60_000;
    world.run_until(later).unwrap();
    assert_eq!(brought(&world, "edge-1"), ["counted"], "alone again, with that in its first round");
    returns(&mut world);
    ends(&mut world).unwrap();
    assert_eq!(brought(&world, "edge-1"), ["counted", "counted"], "each under a name of its own");
}
