//! `gaisnet plan`: what each member should do in a round, and why.
//!
//! Reads settings and figures, or measures this machine; the rule itself is `learn/plan.rs`.

mod members;
mod rounds;
mod show;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use self::members::Entry;
use self::show::{Planned, as_json, as_table};
use super::exit::Misuse;
use super::{Exit, SettingsArgs};
use crate::ids::NodeId;
use crate::learn::{AnsweredBy, MemberFigures, Proposal, Way, align, propose};
use crate::node::{PlannedModel, SystemClock, floor_of, learned_of, planned_model, round_work};
use crate::settings::{Layers, NodeRole, Settings};
use crate::telemetry;
use crate::time::Clock;

/// Arguments of `gaisnet plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Settings of a member, a TOML file; may be repeated. Without it those that --config names
    #[arg(long = "settings", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What was measured of members: [[members]] in TOML, or JSON
    #[arg(long, value_name = "FILE")]
    members: Option<PathBuf>,
    /// Measure this machine, for members that the file says nothing of: a matrix product for half a second, and free
    /// memory
    #[arg(long)]
    measure: bool,
    /// 1000 bits a second towards the edge, for members without a figure of their own
    #[arg(long, value_name = "N")]
    uplink_kbps: Option<f64>,
    /// Examples of members without a figure of their own
    #[arg(long, value_name = "N")]
    examples: Option<u64>,
    /// Seconds of a round for a member's part; else its deadline less the relay's margin, of the settings
    #[arg(long, value_name = "SECONDS")]
    budget_s: Option<f64>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `gaisnet plan`.
pub(super) fn run(
    args: &PlanArgs,
    global: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let settings = settings_of(args, global)?;
    let mut entries: BTreeMap<NodeId, Entry> = match &args.members {
        Some(path) => members::read(path)?.into_iter().map(|e| (e.name.clone(), e)).collect(),
        None => BTreeMap::new(),
    };
    let mut planned = Vec::new();
    let mut measured = None;
    for settings in &settings {
        let name = &settings.node.name;
        let model = planned_model(settings).with_context(|| format!("settings of {name}"))?;
        let entry = match entries.remove(name) {
            Some(entry) => entry,
            None if args.measure => {
                let here = match &measured {
                    Some(here) => here,
                    None => measured.insert(measure(&model, settings)?),
                };
                Entry { name: name.clone(), ..here.clone() }
            }
            None => return Err(no_figures(name).into()),
        };
        planned.push(member(args, settings, &model, &entry)?);
    }
    // Members of whom there are only figures do what the first settings say.
    let first = settings.first().ok_or_else(no_settings)?;
    for entry in entries.values() {
        let model = planned_model(first)?;
        planned.push(member(args, first, &model, entry)?);
    }
    share_cuts(&mut planned);
    let lost = planned.iter().any(|planned| planned.proposal.answered_by == AnsweredBy::Nobody);
    if args.json {
        writeln!(out, "{:#}", as_json(&planned))?;
    } else {
        as_table(&planned, out)?;
    }
    Ok(if lost { Exit::Refused } else { Exit::Ok })
}

fn settings_of(args: &PlanArgs, global: &SettingsArgs) -> anyhow::Result<Vec<Settings>> {
    if args.files.is_empty() {
        if global.config.is_none() {
            return Err(no_settings().into());
        }
        return Ok(vec![global.layers().load().into_settings()?]);
    }
    let read = |path: &PathBuf| {
        let mut layers = Layers::new();
        layers.file(path);
        let settings = layers.load().into_settings();
        settings.with_context(|| format!("{}", path.display()))
    };
    args.files.iter().map(read).collect()
}

fn no_settings() -> Misuse {
    Misuse(
        "name the settings of members with --settings FILE, or one node's with --config FILE"
            .into(),
    )
}

fn no_figures(name: &NodeId) -> Misuse {
    Misuse(format!(
        "nothing is known of {name}: run this with --measure on its machine, or give it a [[members]] entry in \
         the file of --members (name, gflops, free_memory_mib, uplink_kbps, examples)"
    ))
}

/// What this machine has to give.
fn measure(model: &PlannedModel, settings: &Settings) -> anyhow::Result<Entry> {
    // Before libtorch takes its own.
    let free_memory_mib = telemetry::mib(telemetry::available_memory_bytes()?);
    let clock = SystemClock::new();
    let flops = model.measure(settings, &mut || clock.now().micros)?;
    Ok(Entry {
        name: settings.node.name.clone(),
        gflops: flops / 1e9,
        free_memory_mib,
        uplink_kbps: None,
        examples: None,
        profile: None,
        edge: None,
    })
}

fn member(
    args: &PlanArgs,
    settings: &Settings,
    model: &PlannedModel,
    entry: &Entry,
) -> anyhow::Result<Planned> {
    let Entry { name, gflops, free_memory_mib, .. } = entry;
    let missing = |what: &str, option: &str| {
        Misuse(format!(
            "no {what} of {name}: give it in the file of --members, or {option} for all without"
        ))
    };
    let kbps = entry.uplink_kbps.or(args.uplink_kbps);
    let kbps = kbps.ok_or_else(|| missing("uplink_kbps", "--uplink-kbps"))?;
    let examples = entry.examples.or(args.examples);
    let examples = examples.ok_or_else(|| missing("examples", "--examples"))?;
    let round = &settings.round;
    let seconds = round.deadline_s.saturating_sub(round.relay_margin_s).max(1);
    let budget_s = args.budget_s.unwrap_or(f64::from(u32::try_from(seconds).unwrap_or(u32::MAX)));
    let profile = entry.profile.unwrap_or(settings.privacy.profile);
    let (gate, shows_activations) = floor_of(profile);
    let edge = match &entry.edge {
        Some(edge) if edge.is_empty() => None,
        Some(edge) => Some(
            NodeId::new(edge.clone())
                .map_err(|error| Misuse(format!("edge of {name}: {error}")))?,
        ),
        None => settings.node.parent.clone().filter(|_| settings.node.has(NodeRole::Trainer)),
    };
    let mut work = round_work(settings, budget_s);
    work.min_steps = gate.min_steps;
    let cap = u64::from(settings.limits.max_memory_mib) << 20;
    let free_bytes = mebibytes(*free_memory_mib);
    let learned = learned_of(settings, examples);
    let figures = MemberFigures {
        flops_per_s: gflops * 1e9,
        free_bytes: if cap > 0 { free_bytes.min(cap) } else { free_bytes },
        uplink_bytes_per_s: kbps * 125.0,
        examples: learned,
        kept_back: examples - learned,
        has_edge: edge.is_some(),
        min_examples: gate.min_examples,
        min_cell: gate.min_cell,
        shows_activations,
    };
    let proposal = propose(&model.cost, &work, &figures);
    let proposal = proposal.map_err(|error| Misuse(format!("figures of {name}: {error}")))?;
    Ok(Planned {
        name: name.clone(),
        model: model.name.clone(),
        edge,
        figures,
        work,
        proposal,
        shared_cut: None,
    })
}

/// Devices of one edge have one cut.
fn share_cuts(planned: &mut [Planned]) {
    let mut by_edge: BTreeMap<(NodeId, String), Vec<&mut Planned>> = BTreeMap::new();
    for planned in planned {
        if let Some(edge) = &planned.edge {
            by_edge.entry((edge.clone(), planned.model.clone())).or_default().push(planned);
        }
    }
    for members in by_edge.values_mut() {
        let before: Vec<Way> = members.iter().map(|planned| planned.proposal.way).collect();
        let proposals =
            members.iter_mut().map(|planned| -> &mut Proposal { &mut planned.proposal });
        let cut = align(proposals);
        for (planned, before) in members.iter_mut().zip(before) {
            planned.shared_cut =
                cut.filter(|_| before != planned.proposal.way || before == Way::Whole);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of MiB, rounded down; `as` saturates"
)]
fn mebibytes(mib: f64) -> u64 {
    (mib * f64::from(1 << 20)) as u64
}

pub(super) const HELP: &str = "\
Examples:
  gaisnet plan --config gaisnet.toml --measure --uplink-kbps 2000 --examples 900
  gaisnet plan --settings press-7.toml --settings press-8.toml --members figures.toml
  gaisnet plan --settings press-7.toml --members figures.json --json | jq '.members[] | {name, way}'

figures.toml has one block a member:
  [[members]]
  name = \"press-7\"
  gflops = 2.5            # as --measure tells it
  free_memory_mib = 256
  uplink_kbps = 2000
  examples = 900
  profile = \"strict\"      # or left out: that of its settings
  edge = \"edge-north\"     # or left out: its parent in its settings; \"\": none

Ways, the first that fits is proposed: the whole adapter, split behind the latest block, logits of reference
inputs, mean logits a class, answers only. --json tells all of them, with what speaks against each.
Ends with 3 when somebody can neither contribute nor be answered for. docs/learning/plan.md explains the rule.";

#[cfg(test)]
mod tests;
