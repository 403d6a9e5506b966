//! Hostile input, a file an attack. Each attack is sent through a running node on the in-memory bus
//! (gateway, role, runner), or through the parser that it is about. It is refused under a counted
//! reason of its own, the node goes on, and the attack's valid twin is accepted in the same test.

#![cfg(feature = "runtime")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a test"
)]

mod age;
mod bad_plan;
mod bases;
mod broken_bytes;
mod chunks;
mod claims;
mod commands;
mod foreign_result;
mod frames;
mod keys;
mod misaddressed;
mod out_of_turn;
mod stage;
mod tensors;
mod twin;
mod unknown_kind;

#[path = "../support/federation.rs"]
mod federation;
