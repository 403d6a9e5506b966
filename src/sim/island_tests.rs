//! The cloud is away for a hundred rounds: sites go on, and come together again.

use std::collections::BTreeMap;

use super::faults::{Crash, Faults, Moment};
use super::world::{World, id};
use crate::ids::{Digest, NodeId};
use crate::ledger::{Entry, Event};
use crate::protocol::IslandTerms;
use crate::store::Store;

const TERMS: IslandTerms = IslandTerms { after_ms: 20_000, pause_ms: 500 };
/// Long enough for a hundred rounds of a site.
const AWAY_MS: u64 = 300_000;
const SITES: [&str; 3] = ["edge-a", "edge-b", "edge-c"];

/// A network whose cloud has made one version and is gone.
fn left_alone(faults: Faults, seed: u64, island: Option<IslandTerms>) -> World {
    let mut world = World::new(faults, seed);
    world.settings.island = island;
    while !world.nodes.values().all(|node| node.version() >= Some(1)) {
        world.run_until(world.now_ms + 20).unwrap();
        world.now_ms += 20;
        assert!(world.now_ms < 100_000, "no first version");
    }
    world.away = Some(id("cloud"));
    world
}

fn events(world: &World, node: &str) -> Vec<Event> {
    let store = &world.nodes[&id(node)].store;
    let all = store.entries(0, store.num_entries().unwrap()).unwrap();
    all.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
}

fn rounds(world: &World, node: &str) -> usize {
    let commits = |event: &&Event| matches!(event, Event::RoundCommit { .. });
    events(world, node).iter().filter(commits).count()
}

fn applied(world: &World, node: &str) -> usize {
    world.history.applied.get(&id(node)).map_or(0, Vec::len)
}

/// Contributions of its own that a relay has recorded, and where each is now.
fn brought(world: &World, node: &str) -> Vec<&'static str> {
    let counted = |update| {
        let closed = world.history.closed.get(&id(node)).into_iter().flatten();
        let late = world.nodes[&id(node)].store.state("round/late/").unwrap();
        if closed.flat_map(|(_, set)| set).any(|counts| *counts == update) {
            "counted"
        } else if late.iter().any(|(key, _)| key.ends_with(&update.to_string())) {
            "waits"
        } else {
            "lost"
        }
    };
    let own = events(world, node).into_iter().filter_map(|event| match event {
        Event::Late { sender, update, .. } if sender == id(node) => Some(update),
        _ => None,
    });
    own.map(counted).collect()
}

/// All through: the cloud goes, the sites go on, the cloud comes back.
fn through(seed: u64) -> World {
    let mut world = left_alone(Faults::NONE, seed, Some(TERMS));
    let before: BTreeMap<&str, usize> = SITES.map(|site| (site, rounds(&world, site))).into();
    let served = applied(&world, "a1");
    let back = world.now_ms + AWAY_MS;
    world.run_until(back).unwrap();
    for site in SITES {
        let alone = rounds(&world, site) - before[site];
        assert!(alone >= 100, "{site} made {alone} rounds alone");
        assert!(brought(&world, site).is_empty(), "nobody was there to take it");
    }
    assert!(applied(&world, "a1") > served + 90, "devices answer with what the site has learned");
    let versions: Vec<_> = world.nodes.values().map(|node| node.version().unwrap()).collect();
    assert!(versions.iter().all(|version| *version <= 2), "no version was made: {versions:?}");
    world.away = None;
    world.run().unwrap();
    world
}

#[test]
fn sites_go_on_for_a_hundred_rounds_without_the_cloud_and_come_together_again() {
    let world = through(1);
    for site in SITES {
        assert_eq!(brought(&world, site), ["counted"], "{site}: what it learned alone, once");
    }
    // `run` has seen to it that all have the last version and the same adapter.
    let last: Vec<(u64, Digest)> =
        world.history.applied.values().map(|applied| *applied.last().unwrap()).collect();
    assert!(last.iter().all(|of| *of == last[0]) && last[0].0 == world.settings.versions);
}

#[test]
fn the_same_seed_gives_the_same_island() {
    let trace = |seed| through(seed).trace();
    assert_eq!(trace(2), trace(2));
}

#[test]
fn without_the_setting_a_site_waits() {
    let mut world = left_alone(Faults::NONE, 1, None);
    let back = world.now_ms + AWAY_MS;
    let before = rounds(&world, "edge-a");
    world.run_until(back).unwrap();
    assert!(rounds(&world, "edge-a") <= before + 1, "the round that was under way");
    world.away = None;
    world.run().unwrap();
    assert!(brought(&world, "edge-a").is_empty());
}

#[test]
fn a_cloud_that_is_there_and_has_nothing_to_say_makes_no_island() {
    let mut world = World::new(Faults::NONE, 4);
    world.settings.island = Some(TERMS);
    world.run().unwrap();
    let before = rounds(&world, "edge-a");
    let later = world.now_ms + AWAY_MS;
    world.run_until(later).unwrap();
    assert_eq!(rounds(&world, "edge-a"), before);
}

#[test]
fn a_relay_may_die_anywhere_in_its_island() {
    let moments = [Moment::BeforeCommit, Moment::AfterEffects(0), Moment::AfterEffects(2)];
    for (at, step) in
        moments.into_iter().flat_map(|at| (20..60).step_by(3).map(move |step| (at, step)))
    {
        let mut world = left_alone(Faults::NONE, 5, Some(TERMS));
        world.crashes = vec![Crash { node: "edge-b".into(), step, at }];
        let back = world.now_ms + 70_000;
        world.run_until(back).unwrap_or_else(|what| panic!("dies in {step}, {at:?}: {what}"));
        world.away = None;
        world.run().unwrap_or_else(|what| panic!("dies in {step}, {at:?}: {what}"));
        assert_eq!(brought(&world, "edge-b"), ["counted"], "dies in {step}, {at:?}");
    }
}

#[test]
fn islands_in_storms_lose_nothing() {
    for seed in 0..20 {
        let mut world = World::new(Faults::STORM, seed);
        world.settings.island = Some(TERMS);
        let said = |what| panic!("seed {seed}: {what}");
        world.run_until(10_000).unwrap_or_else(said);
        world.away = Some(id("cloud"));
        world.run_until(70_000).unwrap_or_else(said);
        world.away = None;
        world.run().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        for site in SITES {
            assert!(!brought(&world, site).contains(&"lost"), "seed {seed}: {site}");
        }
    }
}

#[test]
fn an_offer_of_an_island_says_so_and_has_the_parents_version() {
    let mut world = left_alone(Faults::NONE, 6, Some(TERMS));
    let soon = world.now_ms + 60_000;
    world.run_until(soon).unwrap();
    let item = world.nodes[&id("edge-a")].store.outbox().unwrap().into_iter();
    let offers: Vec<_> = item.filter(|item| item.topic == "offer").collect();
    let edge: NodeId = id("edge-a");
    let message = super::letter::open(&edge, &offers[0].wire);
    let crate::wire::Body::Offer(offer) = message.body() else { panic!("no offer") };
    assert!(offer.island.is_some_and(|number| number > 1) && offer.outer.is_none());
    assert_eq!(Some(offer.version), world.nodes[&edge].version());
}
