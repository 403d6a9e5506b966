//! `gaisnet experiment run excavators`: ways to learn side by side, on this machine, on real texts.

use std::io::Write;
#[cfg(feature = "torch")]
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::{bar, folder_of, told};
use crate::cli::Exit;
use crate::cli::exit::Misuse;
use crate::data::Cache;
use crate::data::excavators::{Excavators, fetch_excavators};
use crate::experiment::{self, News, Options, Subject, excavators};
use crate::learn::LearnError;
use crate::report::{
    ArmKind, ExperimentReport, experiment_to_html, experiment_to_json, experiment_to_table,
};
use crate::settings::{Layers, Settings, Tier};

/// Arguments of `gaisnet experiment run excavators`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
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

/// Runs `gaisnet experiment run excavators`.
pub(super) fn run(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let settings = settings_of(args)?;
    let cache = Cache::from_env()?;
    let bar = bar(args.json);
    bar.set_message("fetching the work orders");
    let fetched = fetch_excavators(&cache, &mut |_| bar.tick())?;
    let set = Excavators::cached(&cache).context("the data set vanished")?.load()?;
    bar.suspend(|| told(args.json, fetched.notice));

    bar.set_message("loading the base");
    let (subject, mut encode) = subject_of(args, &settings)?;
    let machines = excavators::machines(&set, args.rehearse, &mut *encode)?;
    let data = excavators::described(&machines);

    let (_temporary, folder) = folder_of(args.out.as_deref())?;
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
    anyhow::bail!(
        "this gaisnet was built without libtorch: build it with the feature torch (make build)"
    )
}

/// A folder that stays, or one that goes with the guard.
impl Arm {
    fn kind(self) -> ArmKind {
        match self {
            Self::Alone => ArmKind::Alone,
            Self::Federated => ArmKind::Federated,
            Self::Pooled => ArmKind::Pooled,
        }
    }
}

pub(super) const RUN_HELP: &str = "\
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
        Line::try_parse_from([&["excavators"], line].concat()).unwrap().args
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
        assert!(folder_of(args.out.as_deref()).unwrap().0.is_none());
        std::fs::create_dir(room.path().join("nodes")).unwrap();
        let error = folder_of(args.out.as_deref()).err().unwrap().to_string();
        assert!(error.contains("choose another folder"), "{error}");
    }
}
