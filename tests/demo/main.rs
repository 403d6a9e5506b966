//! The demo as its users run it: the program, its processes, its brokers or mosquitto, the real
//! recordings; with the linear learner, which needs no libtorch.
#![cfg(all(feature = "cli", feature = "broker"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod account;
mod kill;
mod mosquitto;
mod resume;
mod rollout;
mod stage;
#[path = "../support/mod.rs"]
mod support;
