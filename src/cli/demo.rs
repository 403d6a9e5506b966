//! `gaisnet demo`: the pilot on this machine, then the table, the page and the figures.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::Exit;
use super::exit::Misuse;
use crate::demo::{self, DemoError, DemoOptions};
use crate::report;
use crate::settings::{Compression, Contribute, LearnerName};

/// Examples under the options.
pub(super) const HELP: &str = "\
Examples:
  gaisnet demo                              the whole pilot; open demo/report.html afterwards
  gaisnet demo --learner softmax            without libtorch: a linear model on spectra
  gaisnet demo --compression int4 --seed 2
  gaisnet demo --json | jq .macro_f1
  gaisnet demo --broker-config brokers.toml     the same on your brokers, brokers/mosquitto/demo.md
  gaisnet demo --story rollout              a bad version is stopped at its canary, docs/rollout.md

Each node and broker is a process of its own, with its settings, store and log in a folder of its
name. An unfinished run is taken up again; --fresh forgets it.";

/// Arguments of `gaisnet demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Where keys, stores and the report go [default: demo, or demo-rollout with that story]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Tell a story instead of the comparison
    #[arg(long, value_enum)]
    story: Option<Story>,
    /// The model that learns
    #[arg(long, value_enum)]
    learner: Option<Learner>,
    /// Rounds of the federation, or behind each version of a story [default: 20 with softmax, 15 with the transformer, 3 in a
    /// story]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: Option<u64>,
    /// Optimiser steps a device and round
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=10_000))]
    local_steps: Option<u32>,
    /// How adapter deltas travel
    #[arg(long, value_enum, default_value = "int8")]
    compression: Coding,
    /// What devices contribute
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["adapter-delta"])]
    contribute: Vec<Kind>,
    /// Seed of every draw
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Speed of the sensor gateways, 1 for real time [default: 0.1, 0.2 in a story]
    #[arg(long)]
    speed: Option<f64>,
    /// Each node and broker is a process of its own. It always is; for scripts that say it
    #[arg(long)]
    processes: bool,
    /// Where the pilot's three brokers are, a TOML file; else the demo runs its own
    #[arg(long, value_name = "FILE")]
    broker_config: Option<PathBuf>,
    /// Only make keys and keyring, from which `gaisnet acl` makes access lists, and end
    #[arg(long)]
    prepare: bool,
    /// Give up after so many seconds without progress
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    patience: u64,
    /// Forget an unfinished run
    #[arg(long)]
    fresh: bool,
    /// One JSON object at the end, no bars, no table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Story {
    /// A good version goes over both sites in stages; a bad one is stopped at its canary
    Rollout,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Learner {
    /// Softmax regression on gain-free spectral features
    Softmax,
    /// Pre-trained transformer with LoRA (needs libtorch)
    SignalTransformer,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Coding {
    None,
    Int8,
    Int4,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    AdapterDelta,
    ClassLogits,
}

/// Runs the command.
///
/// # Errors
/// What stopped the demo.
pub(super) fn run(args: &DemoArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let options = options_of(args)?;
    if args.prepare {
        demo::prepare(&options)?;
        writeln!(out, "keyring  {}", options.folder.join("keyring").display())?;
        return Ok(Exit::Ok);
    }
    let ended = match options.story {
        Some(_) => tell(args, &options, out),
        None => compare(args, &options, out),
    };
    match ended {
        Err(error) if was_stopped(&error) => {
            writeln!(out, "{error}")?;
            Ok(Exit::Ok)
        }
        ended => ended,
    }
}

fn options_of(args: &DemoArgs) -> anyhow::Result<DemoOptions> {
    let default = if cfg!(feature = "torch") && args.story.is_none() {
        Learner::SignalTransformer
    } else {
        Learner::Softmax
    };
    let learner = args.learner.unwrap_or(default);
    let (rounds, local_steps, learning_rate, speed) = match (learner, args.story) {
        (Learner::Softmax, None) => (20, 20, 0.1, 0.1),
        (Learner::SignalTransformer, None) => (15, 16, 0.001, 0.1),
        (Learner::Softmax, Some(Story::Rollout)) => (3, 40, 0.5, 0.2),
        (Learner::SignalTransformer, Some(_)) => {
            let why = "a story is told with the linear model, so that it takes two minutes: --learner softmax";
            return Err(Misuse(why.to_owned()).into());
        }
    };
    let folder = args.folder.clone().unwrap_or_else(|| match args.story {
        Some(Story::Rollout) => "demo-rollout".into(),
        None => "demo".into(),
    });
    let folder = std::path::absolute(&folder).with_context(|| folder.display().to_string())?;
    Ok(DemoOptions {
        program: std::env::current_exe().context("the program doesn't find itself")?,
        folder,
        brokers: args.broker_config.clone(),
        learner: match learner {
            Learner::Softmax => LearnerName::Softmax,
            Learner::SignalTransformer => LearnerName::SignalTransformer,
        },
        rounds: args.rounds.unwrap_or(rounds),
        local_steps: args.local_steps.unwrap_or(local_steps),
        learning_rate,
        compression: match args.compression {
            Coding::None => Compression::None,
            Coding::Int8 => Compression::Int8,
            Coding::Int4 => Compression::Int4,
        },
        contribute: args
            .contribute
            .iter()
            .map(|kind| match kind {
                Kind::AdapterDelta => Contribute::AdapterDelta,
                Kind::ClassLogits => Contribute::ClassLogits,
            })
            .collect(),
        seed: args.seed,
        speed: args.speed.unwrap_or(speed),
        // A story is told from its beginning.
        fresh: args.fresh || args.story.is_some(),
        patience_s: args.patience,
        quiet: args.json,
        story: args.story.map(|Story::Rollout| demo::Story::Rollout),
    })
}

fn was_stopped(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<DemoError>();
    matches!(error, Some(DemoError::Interrupted { .. } | DemoError::StoryStopped))
}

fn tell(args: &DemoArgs, options: &DemoOptions, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let report = demo::tell(options)?;
    if args.json {
        writeln!(out, "{}", report::story_to_json(&report))?;
    } else {
        writeln!(out, "{}", report::story_to_table(&report))?;
    }
    Ok(if report.holds() { Exit::Ok } else { Exit::Refused })
}

fn compare(args: &DemoArgs, options: &DemoOptions, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let report = demo::run(options)?;
    let page = options.folder.join("report.html");
    std::fs::write(&page, report::to_html(&report))
        .with_context(|| format!("can't write {}", page.display()))?;
    if args.json {
        writeln!(out, "{}", report::to_json(&report))?;
    } else {
        writeln!(
            out,
            "{}\nThe report with its plots: {}",
            report::to_table(&report),
            page.display()
        )?;
    }
    Ok(if report.audit.verified { Exit::Ok } else { Exit::Refused })
}
