//! `gaisnet experiment run relay`: models of three kinds at three tiers teach each other, on bearings or work orders.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Exit;

/// Arguments of `gaisnet experiment run relay`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// What is learned
    #[arg(long, value_enum, default_value_t = Data::Bearings)]
    data: Data,
    /// The first of five seeds
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds
    #[arg(long, default_value_t = SEEDS, value_parser = clap::value_parser!(u64).range(1..=10))]
    seeds: u64,
    /// Rounds of each strategy
    #[arg(long)]
    rounds: Option<u64>,
    /// What travels, of `reference_logits`, `unlabelled`, `class_logits`, `prototypes`, `both`, `weights`, `generator`, and of bearings
    /// `spectra` and `spectra_and_prototypes` [default: all]
    #[arg(long, value_delimiter = ',')]
    strategies: Vec<String>,
    /// Judge on a part of what is to be trained on, for choosing settings
    #[arg(long)]
    rehearse: bool,
    /// Threads of a training lane
    #[arg(long)]
    threads: Option<u16>,
    /// Seconds without any news until it gives up
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Writes report.json into this folder; the nodes' stores stay there too
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Data {
    /// Recordings of bearings
    Bearings,
    /// Work orders of excavators
    Excavators,
}

pub(super) const RUN_HELP: &str = "\
Examples:
  gaisnet experiment run relay
  gaisnet experiment run relay --seed 4 --out results --json
  gaisnet experiment run relay --data excavators --seeds 3";

/// Runs `gaisnet experiment run relay`.
#[cfg(not(feature = "torch"))]
pub(super) fn run(_: &RunArgs, _: &mut dyn Write) -> anyhow::Result<Exit> {
    anyhow::bail!(
        "this gaisnet was built without libtorch: build it with the feature torch (make build)"
    )
}

/// Seeds of the experiment: as many as named before it was run.
const SEEDS: u64 = 5;

/// Runs `gaisnet experiment run relay`: some seeds from the first on, each strategy.
#[cfg(feature = "torch")]
pub(super) fn run(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    use std::num::NonZeroU16;
    use std::path::Path;

    use anyhow::{Context, bail};

    use super::{bar, folder_of, told};
    use crate::data::Cache;
    use crate::data::bearings::{Bearings, fetch_bearings};
    use crate::data::systems::{Systems, fetch_systems};
    use crate::experiment::relay::{self, RelayOptions, Strategy};
    use crate::settings::{Layers, Tier};

    let mut layers = Layers::new();
    let text = match args.data {
        Data::Bearings => relay::SETTINGS,
        Data::Excavators => relay::texts::SETTINGS,
    };
    layers.tier(Tier::Cloud).text("experiment-relay", text);
    if let Some(rounds) = args.rounds {
        layers.set(&format!("round.rounds={rounds}"));
    }
    let settings = layers.load().into_settings()?;
    let bar = bar(args.json);
    let cache = Cache::from_env()?;
    let (_temporary, folder) = folder_of(args.out.as_deref())?;
    let first = args.seed.unwrap_or(1);
    let mut strategies = Vec::new();
    for word in &args.strategies {
        let known = Strategy::ALL.into_iter().find(|strategy| strategy.as_str() == word);
        strategies.push(known.with_context(|| {
            let all = Strategy::ALL.map(Strategy::as_str).join(", ");
            format!("no strategy {word:?}: it is one of {all}")
        })?);
    }
    let texts = matches!(args.data, Data::Excavators);
    if strategies.is_empty() {
        strategies = Strategy::ALL.to_vec();
        strategies.retain(|strategy| !(texts && strategy.is_of_windows()));
    }
    if let Some(strategy) = strategies.iter().find(|strategy| texts && strategy.is_of_windows()) {
        bail!(
            "{} is about vibrations, and texts have none: take it out, or say --data bearings",
            strategy.as_str()
        );
    }
    let options = RelayOptions {
        folder: folder.join("nodes"),
        seeds: (first..first + args.seeds).collect(),
        strategies,
        patience_s: args.patience,
        threads: args.threads.and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN),
    };
    let mut news = |what: &str| {
        bar.set_message(what.to_owned());
        tracing::info!(what, "experiment");
    };
    let report = match args.data {
        Data::Bearings => {
            bar.set_message("fetching the recordings");
            let fetched = fetch_bearings(&cache, &mut |_| bar.tick())?;
            bar.suspend(|| told(args.json, fetched.notice));
            let set = Bearings::cached(&cache).context("the data set vanished")?;
            let set = if args.rehearse { set.rehearsal()? } else { set.load()? };
            let trust = crate::torch::shipped::trust()?;
            let card = Path::new("models/signal-bearing.toml");
            let (card, base) = crate::torch::load_base(card, &trust)?;
            let large = (card.sha256, card.architecture, base);
            relay::run(&options, &settings, &set, large, &mut news)
        }
        Data::Excavators => {
            bar.set_message("fetching the work orders");
            let fetched = fetch_systems(&cache, &mut |_| bar.tick())?;
            bar.suspend(|| told(args.json, fetched.notice));
            let set = Systems::cached(&cache)?.context("the data set vanished")?;
            let models = cache.models();
            let folders = (Path::new("models"), models.as_path());
            relay::texts::run(&options, &settings, &set, folders, args.rehearse, &mut news)
        }
    };
    bar.finish_and_clear();
    let report = report?;
    let json = serde_json::to_string_pretty(&report)?;
    if args.out.is_some() {
        let path = folder.join("report.json");
        std::fs::write(&path, format!("{json}\n")).with_context(|| path.display().to_string())?;
    }
    if args.json {
        writeln!(out, "{json}")?;
    } else {
        write!(out, "{}", relay::to_table(&report))?;
    }
    let sound = report.sent.values().all(|sent| sent.audit);
    Ok(if sound { Exit::Ok } else { Exit::Refused })
}
