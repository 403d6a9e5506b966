//! `gaisnet experiment node`: one node of an experiment in a process of its own. The experiment starts it; nobody
//! else knows what it wants to be told.

use std::io::{Write, stdin};

use anyhow::Context;

use crate::cli::{Exit, exit};
use crate::experiment::niid::{Order, run_node};
use crate::telemetry::logging;

pub(super) const HELP: &str = "\
Example:
  gaisnet experiment run niid --quick --processes     starts thirteen of it";

/// Runs the node until standard input closes.
pub(super) fn run(out: &mut dyn Write) -> anyhow::Result<Exit> {
    logging::init(false, "info", std::env::var("RUST_LOG").ok().as_deref())?;
    let (order, images) = Order::read(&mut stdin().lock())?;
    exit::end_with_stdin().context("no thread that watches standard input")?;
    run_node(&order, images, out)?;
    Ok(Exit::Ok)
}
