//! A whole federation in one thread: the pure machines over a network that loses, repeats, delays
//! and reorders, on nodes that die anywhere; all drawn from one seed.
//!
//! Time jumps from event to event. Each step is carried out in the order that the real runner
//! keeps: transaction first, then whatever leaves. After each step the [`invariants`] are checked.
//! A failure names its seed: `World::new(Faults::STORM, seed)` repeats it.

mod failover_tests;
mod faults;
mod history;
mod invariants;
mod learner;
mod letter;
mod node;
mod tests;
mod world;
