//! `gaisnet experiment run cascade`: tiers that answer together, on bearings and work orders.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Exit;

/// Arguments of `gaisnet experiment run cascade`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Seed of splits, batches and weights
    #[arg(long)]
    seed: Option<u64>,
    /// Optimiser steps of each model
    #[arg(long, default_value_t = 240)]
    steps: u32,
    /// Writes cascade.json into this folder
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
}

pub(super) const RUN_HELP: &str = "\
Examples:
  gaisnet experiment run cascade --seed 2
  gaisnet experiment run cascade --out results --json

Fetches the data sets. The edge's encoder of texts: gaisnet model fetch minilm-l6.";

/// Runs `gaisnet experiment run cascade`.
#[cfg(feature = "torch")]
pub(super) fn run(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    use anyhow::Context;

    use super::{bar, told};
    use crate::data::Cache;
    use crate::data::bearings::{Bearings, fetch_bearings};
    use crate::data::systems::{Systems, fetch_systems};
    use crate::experiment::News;
    use crate::experiment::cascade::{CascadeOptions, CascadeReport, to_table};
    use crate::experiment::cascade_models::{bearings, systems};

    let cache = Cache::from_env()?;
    let bar = bar(args.json);
    bar.set_message("fetching the data");
    let recordings = fetch_bearings(&cache, &mut |_| bar.tick())?;
    let orders = fetch_systems(&cache, &mut |_| bar.tick())?;
    bar.suspend(|| told(args.json, &format!("{}\n{}", recordings.notice, orders.notice)));
    let seed = args.seed.unwrap_or(1);
    let options = CascadeOptions { alpha: 0.05, delta: 0.05, splits: 20, seed };
    let steps = args.steps;
    let mut news = |news: News| match news {
        News::Begins(what) => bar.set_message(what),
        News::Step { done, of } => {
            bar.set_length(of);
            bar.set_position(done);
        }
    };
    let set = Bearings::cached(&cache).context("the data set vanished")?.load()?;
    let base = std::path::Path::new("models/signal-bearing.toml");
    let mut subjects = vec![bearings(&set, base, steps, &options, &mut news)?];
    let set = Systems::cached(&cache)?.context("the data set vanished")?;
    let encoder = std::path::Path::new("models/minilm-l6.toml");
    subjects.push(systems(&set, encoder, &cache.models(), &options, &mut news)?);
    bar.finish_and_clear();
    let report = CascadeReport::of(subjects, &options);
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join("cascade.json");
        let text = format!("{:#}\n", serde_json::to_value(&report)?);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(&report)?)?;
    } else {
        writeln!(out, "{}", to_table(&report))?;
    }
    Ok(Exit::Ok)
}

/// Runs `gaisnet experiment run cascade`.
#[cfg(not(feature = "torch"))]
pub(super) fn run(_: &RunArgs, _: &mut dyn Write) -> anyhow::Result<Exit> {
    anyhow::bail!(
        "this gaisnet was built without libtorch: build it with the feature torch (make build)"
    )
}
