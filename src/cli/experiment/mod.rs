//! `gaisnet experiment`: what the program can do beside what is known, on this machine, on real data.

mod cascade;
mod excavators;
mod niid;
#[cfg(feature = "torch")]
mod node;
mod paper;
mod relay;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::Exit;

/// Arguments of `gaisnet experiment`.
#[derive(Debug, Args)]
pub(super) struct ExperimentArgs {
    #[command(subcommand)]
    command: ExperimentCommand,
}

#[derive(Debug, Subcommand)]
enum ExperimentCommand {
    /// List the experiments
    #[command(after_help = LIST_HELP)]
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Run one of them
    Run {
        #[command(subcommand)]
        experiment: Experiment,
    },
    /// One node of a run whose nodes are processes; `run niid --processes` starts it
    #[cfg(feature = "torch")]
    #[command(hide = true, after_help = node::HELP)]
    Node,
}

#[derive(Debug, Subcommand)]
enum Experiment {
    /// Work orders of five excavators: each machine alone, federated, all texts in one place
    #[command(after_help = excavators::RUN_HELP)]
    Excavators(excavators::RunArgs),
    /// Images dealt out unevenly among ten clients, beside published figures
    #[command(after_help = niid::RUN_HELP)]
    Niid(niid::RunArgs),
    /// Tiers that answer together, on bearings and work orders
    #[command(after_help = cascade::RUN_HELP)]
    Cascade(cascade::RunArgs),
    /// Models of three kinds at three tiers teach each other, on bearings
    #[command(after_help = relay::RUN_HELP)]
    Relay(relay::RunArgs),
    /// With and without pre-training, federated, on bearings and images
    #[command(after_help = paper::RUN_HELP)]
    PaperA(paper::RunArgs),
    /// With and without fine-tuning, by method, on bearings and images
    #[command(after_help = paper::RUN_HELP)]
    PaperB(paper::RunArgs),
    /// What training and answers cost: federated, split, hybrid, all in one place; on bearings and images
    #[command(after_help = paper::RUN_HELP)]
    PaperC(paper::RunArgs),
    /// Devices with unlike examples, on bearings and images
    #[command(after_help = paper::RUN_HELP)]
    PaperD(paper::RunArgs),
    /// Devices in clusters, by likeness and by lot, on bearings and images
    #[command(after_help = paper::RUN_HELP)]
    PaperE(paper::RunArgs),
}

/// Runs `gaisnet experiment`.
pub(super) fn run(args: &ExperimentArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    match &args.command {
        ExperimentCommand::List { json } => list(*json, out),
        #[cfg(feature = "torch")]
        ExperimentCommand::Node => node::run(out),
        ExperimentCommand::Run { experiment: Experiment::Excavators(args) } => {
            excavators::run(args, out)
        }
        ExperimentCommand::Run { experiment: Experiment::Niid(args) } => niid::run(args, out),
        ExperimentCommand::Run { experiment: Experiment::Cascade(args) } => cascade::run(args, out),
        ExperimentCommand::Run { experiment: Experiment::Relay(args) } => relay::run(args, out),
        ExperimentCommand::Run { experiment: Experiment::PaperA(args) } => {
            paper::run('a', args, out)
        }
        ExperimentCommand::Run { experiment: Experiment::PaperB(args) } => {
            paper::run('b', args, out)
        }
        ExperimentCommand::Run { experiment: Experiment::PaperC(args) } => {
            paper::run('c', args, out)
        }
        ExperimentCommand::Run { experiment: Experiment::PaperD(args) } => {
            paper::run('d', args, out)
        }
        ExperimentCommand::Run { experiment: Experiment::PaperE(args) } => {
            paper::run('e', args, out)
        }
    }
}

fn list(json: bool, out: &mut dyn Write) -> anyhow::Result<Exit> {
    if json {
        let all = KNOWN.map(|(name, what)| serde_json::json!({ "experiment": name, "what": what }));
        writeln!(out, "{:#}", serde_json::Value::from(all.to_vec()))?;
        return Ok(Exit::Ok);
    }
    for (name, what) in KNOWN {
        writeln!(out, "{name:12} {what}")?;
    }
    Ok(Exit::Ok)
}

fn bar(quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    if let Ok(style) = ProgressStyle::with_template("{msg:>24} [{bar:30}] {pos}/{len} {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn told(quiet: bool, text: &str) {
    if !quiet {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// The folder of a run's results and nodes: the one asked for, unless nodes of another run are in it, or a
/// temporary one.
fn folder_of(out: Option<&Path>) -> anyhow::Result<(Option<Temporary>, PathBuf)> {
    let Some(out) = out else {
        let path = std::env::temp_dir().join(format!("gaisnet-experiment-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        return Ok((Some(Temporary(path.clone())), path));
    };
    let nodes = out.join("nodes");
    if nodes.exists() {
        anyhow::bail!("{} is there from another run: choose another folder", nodes.display());
    }
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    Ok((None, out.to_owned()))
}

/// A folder that goes when this does, where there is one.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!(path = %self.0.display(), %error, "temporary folder stays behind");
        }
    }
}

const KNOWN: [(&str, &str); 9] = [
    (
        "excavators",
        "a language model on the work orders of five machines: alone, federated, all in one place",
    ),
    (
        "niid",
        "images dealt out unevenly among ten clients: accuracy by data set, split and strategy",
    ),
    (
        "cascade",
        "a device, its edge, the cloud and a bound on wrong answers: who answers what, and how well",
    ),
    ("relay", "models of three kinds at three tiers teach each other, without weights or data"),
    ("paper-a", "a base that is pre-trained beside random weights, federated"),
    ("paper-b", "no fine-tuning beside seven methods of it, federated"),
    ("paper-c", "federated, split, hybrid, all in one place: bytes, seconds, memory"),
    ("paper-d", "devices with unlike examples, by how unlike they are"),
    ("paper-e", "devices in clusters, of their like or by lot"),
];

const LIST_HELP: &str = "\
Examples:
  gaisnet experiment list
  gaisnet experiment list --json | jq -r '.[].experiment'";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        _args: ExperimentArgs,
    }

    #[test]
    fn what_is_listed_can_be_run() {
        let command = Line::command();
        let run = command.find_subcommand("run").unwrap();
        let known: Vec<&str> = run.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(known, KNOWN.map(|(name, _)| name));
        let mut out = Vec::new();
        list(true, &mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json[1]["experiment"], "niid");
    }
}
