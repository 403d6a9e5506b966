//! `gaisnet experiment`: ways to learn side by side, on this machine, on real texts.

use std::io::Write;
#[cfg(feature = "torch")]
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::Exit;
use super::exit::Misuse;
use crate::data::Cache;
use crate::data::excavators::{Excavators, fetch_excavators};
use crate::experiment::{self, News, Options, Subject, excavators};
use crate::learn::LearnError;
use crate::report::{
    ArmKind, ExperimentReport, experiment_to_html, experiment_to_json, experiment_to_table,
};
use crate::settings::{Layers, Settings, Tier};

/// Arguments of `gaisnet experiment`.
#[derive(Debug, Args)]
pub(super) struct ExperimentArgs {
    #[command(subcommand)]
    command: ExperimentCommand,
}

#[derive(Debug, Subcommand)]
enum ExperimentCommand {
    /// Run the arms of an experiment: each machine alone, federated, all texts in one place
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Which
    #[arg(value_enum)]
    experiment: Experiment,
    /// Optimiser steps of each machine, all rounds together
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: Option<u32>,
    /// Rounds of the federation; the steps are shared out among them
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// Learning rate
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Seed of every draw
    #[arg(long)]
    seed: Option<u64>,
    /// How adapter changes travel
    #[arg(long, value_enum)]
    compression: Option<Coding>,
    /// Only these arms; the base as it came is always judged
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["alone", "federated", "pooled"])]
    arms: Vec<Arm>,
    /// Judge on the last fifth of the training texts, and leave the test part alone: to choose settings by
    #[arg(long)]
    rehearse: bool,
    /// Card of the base
    #[arg(long, value_name = "CARD", default_value = "models/smollm2-135m.toml")]
    base: PathBuf,
    /// Threads of libtorch [default: all cores]
    #[arg(long)]
    threads: Option<u16>,
    /// Where report.html and the nodes' stores go; without it nothing is kept
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Give up after so many seconds without progress
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    patience: u64,
    /// One JSON object at the end, no bars, no table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Experiment {
    /// Work orders of five excavators, the language model of the template maintenance-text
    Excavators,
    /// Models of three kinds at three tiers teach each other on bearings (of the options only --seed,
    /// --rounds, --rehearse, --threads, --out, --patience and --json count)
    Relay,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Coding {
    None,
    Int8,
    Int4,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Arm {
    Alone,
    Federated,
    Pooled,
}

/// Runs `gaisnet experiment`.
pub(super) fn run(args: &ExperimentArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let ExperimentCommand::Run(args) = &args.command;
    if matches!(args.experiment, Experiment::Relay) {
        return relay(args, out);
    }
    let settings = settings_of(args)?;
    let cache = Cache::from_env()?;
    let bar = bar(args.json);
    bar.set_message("fetching the work orders");
    let fetched = fetch_excavators(&cache, &mut |_| bar.tick())?;
    let set = Excavators::cached(&cache).context("the data set vanished")?.load()?;
    bar.suspend(|| told(args, fetched.notice));

    bar.set_message("loading the base");
    let (subject, mut encode) = subject_of(args, &settings)?;
    let machines = excavators::machines(&set, args.rehearse, &mut *encode)?;
    let data = excavators::described(&machines);

    let (_temporary, folder) = folder_of(args)?;
    let options = Options {
        folder: folder.join("nodes"),
        arms: args.arms.iter().map(|arm| arm.kind()).collect(),
        patience_s: args.patience,
        rehearse: args.rehearse,
    };
    let report =
        experiment::run(&options, &settings, subject, &machines, &data, &mut |news| match news {
            News::Begins(arm) => {
                bar.set_position(0);
                bar.set_length(0);
                bar.set_message(arm);
            }
            News::Step { done, of } => {
                bar.set_length(of);
                bar.set_position(done);
            }
        });
    bar.finish_and_clear();
    let report = report?;
    show(args, &folder, &report, out)
}

#[cfg(not(feature = "torch"))]
fn relay(_: &RunArgs, _: &mut dyn Write) -> anyhow::Result<Exit> {
    bail!("this gaisnet was built without libtorch: build it with the feature torch (make build)")
}

/// Seeds of the relay experiment: as many as named before it was run.
#[cfg(feature = "torch")]
const RELAY_SEEDS: u64 = 5;

/// Some seeds from the first on, each strategy.
#[cfg(feature = "torch")]
fn relay(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    use crate::data::bearings::{Bearings, fetch_bearings};
    use crate::experiment::relay::{self, RelayOptions, Strategy};

    let mut layers = Layers::new();
    layers.tier(Tier::Cloud).text("experiment-relay", relay::SETTINGS);
    layers.environment(std::env::vars());
    if let Some(rounds) = args.rounds {
        layers.set(&format!("round.rounds={rounds}"));
    }
    let settings = layers.load().into_settings()?;
    let bar = bar(args.json);
    let cache = Cache::from_env()?;
    bar.set_message("fetching the recordings");
    let fetched = fetch_bearings(&cache, &mut |_| bar.tick())?;
    bar.suspend(|| told(args, fetched.notice));
    let set = Bearings::cached(&cache).context("the data set vanished")?;
    let set = if args.rehearse { set.rehearsal()? } else { set.load()? };
    let trust = crate::torch::shipped::trust()?;
    let (card, base) = crate::torch::load_base(Path::new("models/signal-bearing.toml"), &trust)?;
    let (_temporary, folder) = folder_of(args)?;
    let first = args.seed.unwrap_or(1);
    let options = RelayOptions {
        folder: folder.join("nodes"),
        seeds: (first..first + RELAY_SEEDS).collect(),
        strategies: vec![
            Strategy::ReferenceLogits,
            Strategy::ClassLogits,
            Strategy::Prototypes,
            Strategy::Both,
            Strategy::Weights,
        ],
        patience_s: args.patience,
        threads: args.threads.and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN),
    };
    let large = (card.sha256, card.architecture, base);
    let report = relay::run(&options, &settings, &set, large, &mut |what| {
        bar.set_message(what.to_owned());
        tracing::info!(what, "experiment");
    });
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

fn show(
    args: &RunArgs,
    folder: &Path,
    report: &ExperimentReport,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    if args.out.is_some() {
        for (name, text) in [
            ("report.html", experiment_to_html(report)),
            ("report.json", format!("{:#}\n", experiment_to_json(report))),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
    }
    if args.json {
        writeln!(out, "{:#}", experiment_to_json(report))?;
    } else {
        writeln!(out, "{}", experiment_to_table(report))?;
        if args.out.is_some() {
            writeln!(out, "The report with its plots: {}", folder.join("report.html").display())?;
        }
    }
    Ok(if report.audit.verified { Exit::Ok } else { Exit::Refused })
}

/// The template's settings with what the command line changes.
fn settings_of(args: &RunArgs) -> anyhow::Result<Settings> {
    let mut layers = Layers::new();
    layers.tier(Tier::Cloud).text("maintenance-text", excavators::TEMPLATE);
    let base = serde_json::Value::from(args.base.display().to_string());
    layers.text("experiment", &format!("model.base = {base}\n"));
    for fixed in [
        "node.name=cloud",
        "node.site=_",
        "node.roles=aggregator,inferencer",
        "round.auto_start=true",
        // One computer does the work of five: a round takes as long as it takes.
        "round.quorum=1",
        "round.deadline_s=604800",
        "round.republish_s=5",
        "round.pause_s=0",
    ] {
        layers.set(fixed);
    }
    let compression = args.compression.map(|coding| match coding {
        Coding::None => "none",
        Coding::Int8 => "int8",
        Coding::Int4 => "int4",
    });
    for (key, value) in [
        ("round.rounds", args.rounds.map(|n| n.to_string())),
        ("strategy.learning_rate", args.learning_rate.map(|rate| rate.to_string())),
        ("strategy.seed", args.seed.map(|seed| seed.to_string())),
        ("strategy.compression", compression.map(str::to_owned)),
    ] {
        if let Some(value) = value {
            layers.set(&format!("{key}={value}"));
        }
    }
    if args.rehearse {
        // A fifth of its training texts less, and the smallest machine has too few for any other profile.
        layers.set("privacy.profile=lab");
    }
    let mut settings = layers.load().into_settings()?;
    if let Some(steps) = args.steps {
        let rounds = u32::try_from(settings.round.rounds).unwrap_or(u32::MAX);
        if !steps.is_multiple_of(rounds) {
            let problem = format!("--steps {steps} can't be shared out among {rounds} rounds");
            return Err(Misuse(problem).into());
        }
        settings.strategy.local_steps = steps / rounds;
    }
    Ok(settings)
}

/// Turns a text into token ids.
type Encode = Box<dyn FnMut(&str) -> Result<Vec<u32>, LearnError>>;
#[cfg(feature = "torch")]
fn subject_of(args: &RunArgs, settings: &Settings) -> anyhow::Result<(Subject, Encode)> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let threads = args.threads.map_or(cores, usize::from);
    let threads = u16::try_from(threads).ok().and_then(NonZeroU16::new);
    let threads = threads.unwrap_or(NonZeroU16::MIN);
    let (subject, tokenizer) = crate::experiment::language::subject(
        &args.base,
        &Cache::from_env()?.models(),
        settings,
        threads,
    )?;
    Ok((subject, Box::new(move |text| tokenizer.encode(text))))
}

#[cfg(not(feature = "torch"))]
fn subject_of(_: &RunArgs, _: &Settings) -> anyhow::Result<(Subject, Encode)> {
    bail!("this gaisnet was built without libtorch: build it with the feature torch (make build)")
}

/// A folder that stays, or one that goes with the guard.
fn folder_of(args: &RunArgs) -> anyhow::Result<(Option<Temporary>, PathBuf)> {
    let Some(out) = &args.out else {
        let path = std::env::temp_dir().join(format!("gaisnet-experiment-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        return Ok((Some(Temporary(path.clone())), path));
    };
    let nodes = out.join("nodes");
    if nodes.exists() {
        bail!("{} is there from another run: choose another folder", nodes.display());
    }
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    Ok((None, out.clone()))
}

/// A folder that goes when this does.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "temporary folder stays behind");
        }
    }
}

impl Arm {
    fn kind(self) -> ArmKind {
        match self {
            Self::Alone => ArmKind::Alone,
            Self::Federated => ArmKind::Federated,
            Self::Pooled => ArmKind::Pooled,
        }
    }
}

fn bar(quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    if let Ok(style) = ProgressStyle::with_template("{msg:>24} [{bar:30}] {pos}/{len} {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn told(args: &RunArgs, text: &str) {
    if !args.json {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

const RUN_HELP: &str = "\
Examples:
  gaisnet experiment run excavators
  gaisnet experiment run excavators --rehearse --arms federated --learning-rate 0.002
  gaisnet experiment run excavators --json | jq .bits_per_char.federated
  gaisnet experiment run excavators --out results     results/report.html has the plots

Settings are those of the template maintenance-text (a rehearsal has the privacy profile lab: it leaves
machine A with 96 texts). The base: gaisnet model fetch smollm2-135m.";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn args(line: &[&str]) -> RunArgs {
        Line::try_parse_from([&["run", "excavators"], line].concat()).unwrap().args
    }

    #[test]
    fn the_template_gives_sixty_steps_a_machine_and_arguments_change_them() {
        let settings = settings_of(&args(&[])).unwrap();
        assert_eq!(settings.round.rounds * u64::from(settings.strategy.local_steps), 60);
        let line = ["--steps", "80", "--rounds", "5", "--seed", "7", "--compression", "none"];
        let settings = settings_of(&args(&line)).unwrap();
        assert_eq!(settings.privacy.profile, crate::settings::PrivacyProfile::Standard);
        let rehearsal = settings_of(&args(&["--rehearse"])).unwrap();
        assert_eq!(rehearsal.privacy.profile, crate::settings::PrivacyProfile::Lab);
        assert_eq!((settings.round.rounds, settings.strategy.local_steps), (5, 16));
        assert_eq!(settings.strategy.seed, 7);
        assert_eq!(settings.strategy.compression, crate::settings::Compression::None);
    }

    #[test]
    fn steps_that_rounds_cannot_share_are_wrong_usage() {
        let error = settings_of(&args(&["--steps", "50"])).unwrap_err();
        assert!(error.is::<Misuse>(), "{error}");
    }

    #[test]
    fn a_folder_with_nodes_of_another_run_is_left_alone() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().to_str().unwrap();
        let args = args(&["--out", path]);
        assert!(folder_of(&args).unwrap().0.is_none());
        std::fs::create_dir(room.path().join("nodes")).unwrap();
        let error = folder_of(&args).err().unwrap().to_string();
        assert!(error.contains("choose another folder"), "{error}");
    }
}
