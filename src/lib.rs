//! gaisnet: a plant's small models and a company's large model teach each other over MQTT.
//!
//! The layers, lowest first; imports go downwards only (ARCHITECTURE.md draws the picture):
//! - L0 [`ids`], [`time`], [`rng`]: identifiers, time and seeded randomness as plain values.
//! - L1 [`wire`], [`topic`], [`trust`], [`ledger`], [`learn`], [`privacy`]: pure functions and types.
//! - L2 [`protocol`]: state machines, `(now, Input) -> Vec<Effect>`.
//! - L3 adapters, one vendor each, every one behind a Cargo feature.
//! - L4 actors, L5 wiring.
//!
//! L0 to L2 have no IO, no async, no threads and no clock: `cargo check --no-default-features --lib`
//! builds just them.

// Files that unit tests share with those under tests/ name the library.
#[cfg(test)]
extern crate self as gaisnet;

#[cfg(feature = "runtime")]
pub mod actors;
#[cfg(feature = "runtime")]
pub mod bus;
#[cfg(feature = "cli")]
mod child;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod data;
#[cfg(all(feature = "cli", feature = "broker"))]
pub mod demo;
#[cfg(feature = "cli")]
pub mod experiment;
mod fail;
pub mod ids;
pub mod learn;
pub mod ledger;
#[cfg(feature = "runtime")]
pub mod node;
pub mod privacy;
pub mod protocol;
#[cfg(feature = "cli")]
pub mod report;
pub mod rng;
pub mod scada;
#[cfg(feature = "cli")]
pub mod settings;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod store;
#[cfg(feature = "runtime")]
pub mod telemetry;
pub mod time;
pub mod topic;
#[cfg(feature = "torch")]
pub mod torch;
pub mod trust;
#[cfg(feature = "web")]
pub mod web;
pub mod wire;
