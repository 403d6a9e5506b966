//! `gaisnet experiment run cascade`: tiers that answer together, on bearings and work orders.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Exit;

/// Arguments of `gaisnet experiment run cascade`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// What is asked
    #[arg(long, value_enum)]
    data: Option<Data>,
    /// The first of three seeds
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds of splits, batches and reference inputs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10))]
    seeds: u64,
    /// Judge on a part of what is to be trained on, for choosing settings
    #[arg(long)]
    rehearse: bool,
    /// Seconds without any news until it gives up
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Writes cascade.json into this folder; the nodes' stores stay there too
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// What is asked; both without a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Data {
    /// Windows of bearings' vibration
    Bearings,
    /// Work orders of excavators
    Excavators,
}

pub(super) const RUN_HELP: &str = "\
Examples:
  gaisnet experiment run cascade
  gaisnet experiment run cascade --data excavators --rehearse --seeds 1
  gaisnet experiment run cascade --out results --json

Fetches the data sets. Bases that read texts: gaisnet model fetch minilm-l6, gaisnet model fetch smollm2-135m.";

/// Runs `gaisnet experiment run cascade`.
#[cfg(feature = "torch")]
pub(super) fn run(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    use std::num::NonZeroU16;
    use std::path::Path;

    use anyhow::Context;

    use super::{bar, folder_of, told};
    use crate::data::Cache;
    use crate::data::bearings::{Bearings, fetch_bearings};
    use crate::data::systems::{Systems, fetch_systems};
    use crate::experiment::cascade::{self, CascadeOptions, CascadeReport, to_table};
    use crate::experiment::relay::{self, RelayOptions};
    use crate::settings::{Layers, Tier};

    let cache = Cache::from_env()?;
    let bar = bar(args.json);
    let (_temporary, folder) = folder_of(args.out.as_deref())?;
    let first = args.seed.unwrap_or(1);
    let seeds: Vec<u64> = (first..first + args.seeds).collect();
    let options = CascadeOptions { alpha: 0.05, delta: 0.05, splits: 20, seed: first };
    let mut news = |what: &str| {
        bar.set_message(what.to_owned());
        tracing::info!(what, "experiment");
    };
    let mut subjects = Vec::new();
    if args.data != Some(Data::Excavators) {
        let fetched = fetch_bearings(&cache, &mut |_| bar.tick())?;
        bar.suspend(|| told(args.json, fetched.notice));
        let set = Bearings::cached(&cache).context("the data set vanished")?;
        let set = if args.rehearse { set.rehearsal()? } else { set.load()? };
        let mut layers = Layers::new();
        layers.tier(Tier::Cloud).text("experiment-relay", relay::SETTINGS);
        let settings = layers.load().into_settings()?;
        let card = Path::new("models/signal-bearing.toml");
        let (card, base) = crate::torch::load_base(card, &crate::torch::shipped::trust()?)?;
        let large = (card.sha256, card.architecture, base);
        let federation = RelayOptions {
            folder: folder.join("nodes"),
            seeds: seeds.clone(),
            strategies: Vec::new(),
            patience_s: args.patience,
            threads: NonZeroU16::MIN,
        };
        let of = cascade::bearings::run(&federation, &settings, &set, large, &options, &mut news);
        subjects.extend(of?);
    }
    if args.data != Some(Data::Bearings) {
        let fetched = fetch_systems(&cache, &mut |_| bar.tick())?;
        bar.suspend(|| told(args.json, fetched.notice));
        let set = Systems::cached(&cache)?.context("the data set vanished")?;
        let models = cache.models();
        let folders = (Path::new("models"), models.as_path());
        let of = cascade::orders::run(&set, folders, args.rehearse, &seeds, &options, &mut news);
        subjects.extend(of?);
    }
    bar.finish_and_clear();
    let report = CascadeReport::of(subjects, &options, args.rehearse);
    if args.out.is_some() {
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
