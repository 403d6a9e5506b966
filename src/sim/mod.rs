//! A whole federation in one thread: the pure machines over a network that loses, repeats, delays, reorders and forges, on
//! nodes that come, go and die anywhere; all drawn from one seed.
//!
//! ```text
//! scenario.rs    who is there, what they do, what goes wrong (config/scenarios/*.toml)
//! world.rs       the clock and what happens when
//! queue.rs       what is planned, by time
//! turns.rs       several federations at a time, each in its turn
//! network.rs     brokers, links, what becomes of a message on its way
//! carrying.rs    a step and its effects, in the order of the real runner
//! letter.rs      how messages are sealed, forged and opened
//! node.rs        a machine, its store, and what dies with it
//! learner.rs     training that costs nothing
//! invariants/    what must hold in each step, one file each
//! ```
//! Time jumps from event to event. Each step is carried out in the order that the real runner keeps: transaction first, then
//! whatever leaves; the invariants see each. What isn't here: sockets, disks, libtorch, and the actors.
//!
//! Called by `gaisnet sim`, and by tests. [`run`] is a pure function of a scenario and a seed; two runs with the same ones have the
//! same [`Outcome`], down to the digest of all messages.

mod broken;
mod carrying;
mod faults;
mod figures;
mod invariants;
mod learner;
mod letter;
mod network;
mod node;
mod nodes;
mod outcome;
mod queue;
mod scenario;
mod shipped;
#[cfg(test)]
mod tests;
mod turns;
mod world;

pub use figures::Figures;
pub use invariants::NAMES as INVARIANTS;
pub use outcome::{Outcome, Violation};
pub use scenario::{
    Amnesia, Churn, Faults, Model, Outage, Pace, Partitions, Pause, Rounds, Scenario,
    ScenarioError, Standby, Tiers, TrustKind,
};
pub use shipped::SHIPPED;
pub use turns::run_in_turns;

use world::World;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Versions that the cloud has made.
    pub versions: u64,
    /// Versions that it will.
    pub of: u64,
}

/// Runs a scenario with a seed, to its end or to the first invariant that is broken.
///
/// # Determinism
/// A pure function of its first two arguments.
pub fn run(scenario: &Scenario, seed: u64, watch: &mut dyn FnMut(Progress)) -> Outcome {
    match World::new(scenario, seed) {
        Ok(mut world) => {
            let broken = world.run(watch).err();
            outcome::of(&world, seed, broken)
        }
        Err(broken) => outcome::of_nothing(scenario, seed, broken),
    }
}
