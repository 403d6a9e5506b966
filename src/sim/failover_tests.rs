//! Runs of a network whose cloud has a standby.

use super::faults::{Crash, Faults, Moment, Pause};
use super::invariants::one_line;
use super::node::LEASE_MS;
use super::world::{World, id, view};
use crate::protocol::guard::{Guard, tests::without};
use crate::rng::Stream;
use crate::store::Store;

fn pause(node: &str, span: std::ops::Range<u64>) -> Pause {
    Pause { node: node.into(), span }
}

fn leader(world: &World) -> Option<&'static str> {
    let leads = |node: &&str| view(world, node).is_some_and(|v| ["paired", "alone"].contains(&v.post));
    ["cloud", "cloud-2"].into_iter().find(leads)
}

fn run(world: &mut World) -> Result<(), String> {
    world.run()?;
    one_line::check(world, leader(world).ok_or("nobody leads")?)
}

#[test]
fn without_faults_a_standby_changes_nothing_and_has_everything() {
    let mut world = World::with_standby(Faults::NONE, 1);
    run(&mut world).unwrap();
    assert_eq!(leader(&world), Some("cloud"));
    let state = |node| {
        let mut all = world.nodes[&id(node)].store.state("round/").unwrap();
        all.retain(|(key, _)| key != "round/epoch");
        all
    };
    assert_eq!(state("cloud"), state("cloud-2"));
}
