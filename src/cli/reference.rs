//! `gaisnet reference`: reference inputs, made from generator, seed and count.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Exit;
use crate::learn::{BEARING_PHYSICS, ReferenceSet};

/// Arguments of `gaisnet reference`.
#[derive(Debug, Args)]
pub(super) struct ReferenceArgs {
    #[command(subcommand)]
    command: ReferenceCommand,
}

#[derive(Debug, Subcommand)]
enum ReferenceCommand {
    /// Make a set and tell its digest: nodes with the same digest understand each other
    #[command(after_help = MAKE_HELP)]
    Make(MakeArgs),
}

#[derive(Debug, Args)]
struct MakeArgs {
    /// What makes the inputs
    #[arg(long, default_value = BEARING_PHYSICS)]
    generator: String,
    /// Its seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A generator that isn't known here.
pub(super) fn run(args: &ReferenceArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let ReferenceCommand::Make(args) = &args.command;
    let set = ReferenceSet::make(&args.generator, args.seed, args.count)?;
    let (classes, len) = (set.windows.classes, set.windows.len);
    if args.json {
        let made = json!({
            "generator": args.generator, "seed": args.seed, "count": args.count,
            "classes": classes, "window": len, "digest": set.digest.to_string(),
        });
        writeln!(out, "{made:#}")?;
    } else {
        writeln!(out, "{} inputs of {len} samples, {classes} classes in turn", args.count)?;
        writeln!(out, "digest {}", set.digest)?;
    }
    Ok(Exit::Ok)
}

const MAKE_HELP: &str = "\
Examples:
  gaisnet reference make                         what a node with the default [knowledge] settings makes
  gaisnet reference make --seed 7 --count 2000
  gaisnet reference make --json | jq -r .digest

A set is made anew by each node and travels nowhere. If two machines print different digests for the
same words, their mathematics library differs: they can't learn from reference inputs together.";
