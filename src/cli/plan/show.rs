//! What was planned, for people and for programs.

use std::io::Write;

use serde_json::{Value, json};

use super::rounds::{Kind, kinds};
use crate::ids::NodeId;
use crate::learn::{AnsweredBy, Cost, MemberFigures, Obstacle, Proposal, RoundWork, SHARE, Way};
use crate::telemetry::mib;

/// A member and what it should do.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) name: NodeId,
    pub(super) model: String,
    pub(super) edge: Option<NodeId>,
    pub(super) figures: MemberFigures,
    pub(super) work: RoundWork,
    pub(super) proposal: Proposal,
    /// The cut of the other devices of its edge, where that changes or concerns it.
    pub(super) shared_cut: Option<u32>,
}

/// A table, and below it why.
pub(super) fn as_table(planned: &[Planned], out: &mut dyn Write) -> std::io::Result<()> {
    let rows: Vec<[String; 5]> = planned.iter().map(row).collect();
    let titles = ["member", "does", "memory", "computes", "sends"].map(str::to_owned);
    let mut widths = [0; 5];
    for row in rows.iter().chain([&titles]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in [&titles].into_iter().chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    for planned in planned {
        writeln!(out, "\n{}", planned.name)?;
        for reason in reasons(planned) {
            writeln!(out, "  {reason}")?;
        }
    }
    let kinds = kinds(planned);
    if planned.len() > 1 && !kinds.is_empty() {
        writeln!(out, "\nrounds are of one kind for all; for most members first")?;
        for kind in &kinds {
            writeln!(out, "  {}", kind.told())?;
        }
    }
    Ok(())
}

fn row(planned: &Planned) -> [String; 5] {
    let Planned { figures, work, proposal, .. } = planned;
    let Cost { memory_bytes, compute_s, sent_bytes } = proposal.cost;
    let seconds = SHARE * work.budget_s;
    [
        planned.name.to_string(),
        named(proposal.way),
        format!("{} of {} MiB", of_mib(memory_bytes), of_mib(figures.free_bytes)),
        format!("{} of {} s", rounded(compute_s), rounded(seconds)),
        format!("{} of {}", bytes(sent_bytes), bytes_f64(figures.uplink_bytes_per_s * seconds)),
    ]
}

fn reasons(planned: &Planned) -> Vec<String> {
    let Proposal { way, answered_by, considered, .. } = &planned.proposal;
    let mut lines = Vec::new();
    for other in considered.iter().take_while(|other| other.way != *way) {
        // Each later cut fails as the one before it; two lines say it.
        let next_cut = matches!((other.way, way), (Way::Split { cut }, Way::Split { cut: own }) if cut == own + 1);
        let first = matches!(other.way, Way::Split { .. })
            && !lines.iter().any(|line: &String| line.starts_with("not split"));
        if !matches!(other.way, Way::Split { .. }) || first || next_cut {
            let why: Vec<String> = other.obstacles.iter().map(told).collect();
            if !why.is_empty() {
                lines.push(format!("not {}: {}", named(other.way), why.join("; ")));
            }
        }
    }
    if let Some(cut) = planned.shared_cut {
        let edge = planned.edge.as_ref().map_or("its edge", NodeId::as_str);
        lines.push(if *way == Way::Whole {
            format!(
                "others of {edge} are split (cut {cut}), and an edge has one cut for all: give this one an edge of \
                 its own, or split it too"
            )
        } else {
            format!("cut {cut} since another device of {edge} fits no later one, and an edge has one cut for all")
        });
    }
    lines.push(match way {
        Way::Whole => "does all of the training: nothing speaks against it".to_owned(),
        Way::Split { cut } => format!("set split.cut = {cut} here and on its edge; its windows stay, activations go to the edge"),
        Way::ReferenceLogits => "set knowledge.own_models = true and strategy.contribute = [\"reference_logits\"]".to_owned(),
        Way::ClassLogits => "set strategy.contribute = [\"class_logits\"] with a small model of its own".to_owned(),
        Way::Answers => "no contribution of it is possible".to_owned(),
    });
    lines.push(
        match answered_by {
            AnsweredBy::Itself => "answers by itself",
            AnsweredBy::Halves { .. } => "answers with its edge: the front here, the back there",
            AnsweredBy::Edge => "can't hold the model to answer: bind its tags at its edge",
            AnsweredBy::Nobody => "can't hold the model to answer, and no edge is there to do it",
        }
        .to_owned(),
    );
    lines
}

pub(super) fn named(way: Way) -> String {
    match way {
        Way::Whole => "whole adapter".to_owned(),
        Way::Split { cut } => format!("split, cut {cut}"),
        Way::ReferenceLogits => "logits of reference inputs".to_owned(),
        Way::ClassLogits => "mean logits a class".to_owned(),
        Way::Answers => "answers only".to_owned(),
    }
}

fn told(obstacle: &Obstacle) -> String {
    match *obstacle {
        Obstacle::Memory { needs, free } => {
            format!("takes {} MiB of memory, {} are free", of_mib(needs), of_mib(free))
        }
        Obstacle::Compute { needs_s, has_s } => {
            format!("computes {} s, a round has {} for that", rounded(needs_s), rounded(has_s))
        }
        Obstacle::Uplink { needs, has } => {
            format!("sends {}, {} go up in a round's time for that", bytes(needs), bytes(has))
        }
        Obstacle::Examples { needs, has } => {
            format!("its profile wants {needs} examples behind an update, there are {has}")
        }
        Obstacle::ClassExamples { needs, has } => {
            format!("its profile wants {needs} examples behind a class, there are about {has}")
        }
        Obstacle::Steps { needs, has } => {
            format!(
                "its profile wants {needs} steps behind an update, strategy.local_steps is {has}"
            )
        }
        Obstacle::Activations => "its profile keeps activations on the device".to_owned(),
        Obstacle::NoEdge => "it has no edge in its site".to_owned(),
        Obstacle::NoReferences => "knowledge.reference isn't set".to_owned(),
    }
}

/// All of it, for programs.
pub(super) fn as_json(planned: &[Planned]) -> Value {
    let members: Vec<Value> = planned.iter().map(member_json).collect();
    let rounds: Vec<Value> = kinds(planned).iter().map(Kind::json).collect();
    json!({ "members": members, "rounds": rounds })
}

fn member_json(planned: &Planned) -> Value {
    let Planned { name, model, edge, figures, work, proposal, shared_cut } = planned;
    let considered: Vec<Value> = proposal
        .considered
        .iter()
        .map(|other| {
            let against: Vec<String> = other.obstacles.iter().map(told).collect();
            json!({ "way": word(other.way), "cut": cut(other.way), "cost": cost(&other.cost), "against": against })
        })
        .collect();
    json!({
        "name": name,
        "model": model,
        "edge": edge,
        "way": word(proposal.way),
        "cut": cut(proposal.way),
        "shared_cut": shared_cut,
        "answered_by": match proposal.answered_by {
            AnsweredBy::Itself => "itself",
            AnsweredBy::Halves { .. } => "halves",
            AnsweredBy::Edge => "edge",
            AnsweredBy::Nobody => "nobody",
        },
        "cost": cost(&proposal.cost),
        "reasons": reasons(planned),
        "figures": {
            "flops_per_s": figures.flops_per_s,
            "free_bytes": figures.free_bytes,
            "uplink_bytes_per_s": figures.uplink_bytes_per_s,
            "examples": figures.examples,
            "kept_back": figures.kept_back,
            "budget_s": work.budget_s,
        },
        "considered": considered,
    })
}

fn cost(cost: &Cost) -> Value {
    let Cost { memory_bytes, compute_s, sent_bytes } = cost;
    json!({ "memory_bytes": memory_bytes, "compute_s": compute_s, "sent_bytes": sent_bytes })
}

pub(super) fn word(way: Way) -> &'static str {
    match way {
        Way::Whole => "whole",
        Way::Split { .. } => "split",
        Way::ReferenceLogits => "reference_logits",
        Way::ClassLogits => "class_logits",
        Way::Answers => "answers",
    }
}

fn cut(way: Way) -> Option<u32> {
    if let Way::Split { cut } = way { Some(cut) } else { None }
}

fn of_mib(bytes: u64) -> String {
    format!("{:.0}", mib(bytes).ceil())
}

fn rounded(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1}") } else { format!("{seconds:.0}") }
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
fn bytes(bytes: u64) -> String {
    bytes_f64(bytes as f64)
}

fn bytes_f64(bytes: f64) -> String {
    if bytes < 1e3 {
        format!("{bytes:.0} B")
    } else if bytes < 1e6 {
        format!("{:.1} kB", bytes / 1e3)
    } else {
        format!("{:.1} MB", bytes / 1e6)
    }
}
