//! What one of the five comparisons has come to: a terminal table, JSON, one HTML page.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::chart::{self, Bar, Line};
use super::html::Escaped;
use super::page::{HEAD, figure};
use super::{human_bytes, to_f64};

/// All that is told of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PaperReport {
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, or "unknown".
    pub commit: String,
    /// Name of the experiment.
    pub experiment: String,
    /// What it asks.
    pub question: String,
    /// Cells that differ in their seed only, together; in the order to tell them.
    pub arms: Vec<PaperArm>,
    /// Things that were wanted before it was run.
    pub checks: Vec<PaperCheck>,
    /// All cells, also those that weren't run.
    pub cells: Vec<PaperCell>,
}

/// A cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PaperCell {
    /// Its name.
    pub name: String,
    /// `finished`, `not run`, or `failed` with the reason.
    pub state: String,
    /// All figures of a finished one.
    pub record: Value,
}

/// Cells that differ in their seed only: means over those that are finished.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PaperArm {
    /// Its name.
    pub name: String,
    /// Finished cells.
    pub seeds: usize,
    /// All of them.
    pub of: usize,
    /// Mean F1 of the classes at the end, with half of Student's interval of 95 % where there are seeds for it.
    pub macro_f1: Option<(f64, Option<f64>)>,
    /// Share of right answers at the end.
    pub accuracy: f64,
    /// Mean F1 before training.
    pub macro_f1_untrained: f64,
    /// Mean F1 after each round.
    pub curve: Vec<(u64, f64)>,
    /// Values that train.
    pub trained: u64,
    /// Share of the model that a device holds, and of what trains that it trains.
    pub on_device: (f64, f64),
    /// Bytes a round: that a device published and received, that an edge published towards the cloud.
    pub bytes: Option<(u64, u64, u64)>,
    /// Wall time and processor time of training, all nodes together.
    pub training: (f64, f64),
    /// Largest resident set, where the cell had a process of its own.
    pub peak_memory_mib: Option<f64>,
    /// Processor time of an answer.
    pub answer_cpu_ms: f64,
    /// Mean distance of class shares inside a site.
    pub spread_in_sites: f64,
}

/// Something that was wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PaperCheck {
    /// What.
    pub what: String,
    /// The bound.
    pub wanted: String,
    /// What came out; empty where cells are missing.
    pub got: String,
    /// Whether it is met; none where cells are missing.
    pub met: Option<bool>,
}

impl PaperReport {
    fn finished(&self) -> usize {
        self.cells.iter().filter(|cell| !cell.record.is_null()).count()
    }
}

impl PaperArm {
    fn score(&self) -> String {
        match self.macro_f1 {
            Some((mean, Some(half))) => format!("{mean:.3} +- {half:.3}"),
            Some((mean, None)) => format!("{mean:.3}"),
            None => "-".to_owned(),
        }
    }

    /// What it reaches, in the order of [`REACHES`].
    fn reaches(&self) -> [String; 5] {
        let shown = |value: f64| shown(self.macro_f1.map(|_| format!("{value:.3}")));
        [
            format!("{} of {}", self.seeds, self.of),
            self.score(),
            shown(self.accuracy),
            shown(self.macro_f1_untrained),
            shown(self.spread_in_sites),
        ]
    }

    /// What it costs, in the order of [`COSTS`].
    fn costs(&self) -> [String; 10] {
        let there = |text: String| shown(self.macro_f1.map(|_| text));
        let bytes = |pick: fn(&(u64, u64, u64)) -> u64| {
            shown(self.bytes.as_ref().map(|bytes| human_bytes(pick(bytes))))
        };
        [
            there(self.trained.to_string()),
            there(format!("{:.0} %", 100.0 * self.on_device.0)),
            there(format!("{:.0} %", 100.0 * self.on_device.1)),
            bytes(|bytes| bytes.0),
            bytes(|bytes| bytes.1),
            bytes(|bytes| bytes.2),
            there(format!("{:.1}", self.training.0)),
            there(format!("{:.1}", self.training.1)),
            shown(self.peak_memory_mib.map(|mib| format!("{mib:.0}"))),
            there(format!("{:.2}", self.answer_cpu_ms)),
        ]
    }
}

/// The comparison as JSON; names and units of its keys are stable.
pub fn paper_to_json(report: &PaperReport) -> Value {
    let arm = |arm: &PaperArm| {
        json!({
            "arm": arm.name,
            "seeds": arm.seeds,
            "seeds_wanted": arm.of,
            "macro_f1": arm.macro_f1.map(|(mean, _)| mean),
            "macro_f1_plus_minus": arm.macro_f1.and_then(|(_, half)| half),
            "accuracy": arm.macro_f1.map(|_| arm.accuracy),
            "macro_f1_untrained": arm.macro_f1.map(|_| arm.macro_f1_untrained),
            "macro_f1_after_round": arm.curve,
            "values_trained": arm.trained,
            "share_on_device": arm.on_device.0,
            "share_trained_on_device": arm.on_device.1,
            "device_up_bytes_per_round": arm.bytes.map(|(up, ..)| up),
            "device_down_bytes_per_round": arm.bytes.map(|(_, down, _)| down),
            "edge_up_bytes_per_round": arm.bytes.map(|(.., edge)| edge),
            "training_seconds": arm.training.0,
            "training_cpu_seconds": arm.training.1,
            "peak_memory_mib": arm.peak_memory_mib,
            "answer_cpu_ms": arm.answer_cpu_ms,
            "spread_in_sites": arm.spread_in_sites,
        })
    };
    json!({
        "version": report.version,
        "commit": report.commit,
        "experiment": report.experiment,
        "question": report.question,
        "arms": report.arms.iter().map(arm).collect::<Vec<_>>(),
        "checks": report.checks,
        "cells": report.cells,
    })
}

/// Tells the comparison in plain text.
pub fn paper_to_table(report: &PaperReport) -> String {
    let mut lines = vec![format!("gaisnet {} ({})", report.version, report.commit)];
    lines.push(format!("  {}: {}", report.experiment, report.question));
    lines.push(String::new());
    table(&mut lines, &REACHES, report.arms.iter().map(|arm| (&arm.name, arm.reaches())));
    lines.push(String::new());
    table(&mut lines, &COSTS, report.arms.iter().map(|arm| (&arm.name, arm.costs())));
    for check in &report.checks {
        lines.push(String::new());
        lines.push(format!("  {}: wanted {}, {}", check.what, check.wanted, outcome(check)));
    }
    let open = report.cells.iter().filter(|cell| cell.record.is_null());
    for cell in open {
        lines.push(format!("  {:<32}{}", cell.name, cell.state));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn outcome(check: &PaperCheck) -> String {
    match check.met {
        Some(true) => format!("got {}: met", check.got),
        Some(false) => format!("got {}: NOT met", check.got),
        None => "cells are missing".to_owned(),
    }
}

fn table<'a, const N: usize>(
    lines: &mut Vec<String>,
    heads: &[&str; N],
    rows: impl Iterator<Item = (&'a String, [String; N])>,
) {
    let row = |name: &str, cells: &[String]| {
        let width = |head: &str| head.len().max(8) + 2;
        let cells = cells.iter().zip(heads).map(|(cell, head)| {
            let wide = width(head);
            format!("{cell:>wide$}")
        });
        format!("  {name:<30}{}", cells.collect::<String>())
    };
    lines.push(row("arm", &heads.map(str::to_owned)));
    lines.extend(rows.map(|(name, cells)| row(name, &cells)));
}

/// Tells the comparison as HTML that loads nothing.
pub fn paper_to_html(report: &PaperReport) -> String {
    let mut page = String::from(HEAD);
    let _ = write!(
        page,
        "<p class=\"over\">gaisnet experiment {}</p>\n<h1>{}</h1>\n<p class=\"lead\">Mean F1 of the \
         classes on the test part, mean over the seeds. {} of {} cells are finished.</p>\n",
        Escaped(&report.experiment),
        Escaped(&report.question),
        report.finished(),
        report.cells.len()
    );
    let begun = || report.arms.iter().filter(|arm| arm.macro_f1.is_some());
    let bar = |arm: &PaperArm| Bar {
        name: arm.name.clone(),
        value: arm.macro_f1.map_or(0.0, |(mean, _)| mean),
        shown: arm.score(),
        class: if arm.seeds == arm.of { "together" } else { "down" },
    };
    figure(&mut page, "Macro-F1 at the end", "", |label| {
        chart::bars(label, &begun().map(bar).collect::<Vec<_>>(), 1.0)
    });
    for arm in begun().filter(|arm| arm.curve.len() > 1) {
        let points = arm.curve.iter().map(|(round, at)| (to_f64(*round), *at)).collect();
        let line = Line { name: arm.score(), class: "together", points };
        figure(&mut page, &format!("Macro-F1 after each round, {}", arm.name), "", |label| {
            chart::lines(label, &[line], 1.0)
        });
    }
    html_table(
        &mut page,
        "What it reaches",
        &REACHES,
        report.arms.iter().map(|arm| (&arm.name, arm.reaches())),
    );
    html_table(
        &mut page,
        "What it costs",
        &COSTS,
        report.arms.iter().map(|arm| (&arm.name, arm.costs())),
    );
    let checks = report.checks.iter().map(|check| {
        let told = outcome(check);
        (&check.what, [check.wanted.clone(), told])
    });
    html_table(&mut page, "What was wanted", &["wanted", "got"], checks);
    let open = report.cells.iter().filter(|cell| cell.record.is_null());
    html_table(
        &mut page,
        "What is missing",
        &["state"],
        open.map(|cell| (&cell.name, [cell.state.clone()])),
    );
    let (version, commit) = (Escaped(&report.version), Escaped(&report.commit));
    let _ = writeln!(page, "<p>Told by gaisnet {version} ({commit}).</p>");
    page + "</main>\n</body>\n</html>\n"
}

fn html_table<'a, const N: usize>(
    page: &mut String,
    title: &str,
    heads: &[&str; N],
    rows: impl Iterator<Item = (&'a String, [String; N])>,
) {
    let mut body = String::new();
    for (name, cells) in rows {
        let _ = write!(body, "<tr><th scope=\"row\">{}</th>", Escaped(name));
        for cell in &cells {
            let _ = write!(body, "<td>{}</td>", Escaped(cell));
        }
        body.push_str("</tr>\n");
    }
    if body.is_empty() {
        return;
    }
    let _ = write!(page, "<section>\n<h2>{title}</h2>\n<table>\n<tr><th scope=\"col\"></th>");
    for head in heads {
        let _ = write!(page, "<th scope=\"col\">{head}</th>");
    }
    let _ = writeln!(page, "</tr>\n{body}</table>\n</section>");
}

fn shown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

const REACHES: [&str; 5] =
    ["seeds", "macro-F1, 95 %", "accuracy", "F1 untrained", "spread in sites"];
const COSTS: [&str; 10] = [
    "values trained",
    "device holds",
    "device trains",
    "device up",
    "device down",
    "edge up",
    "seconds",
    "CPU seconds",
    "peak MiB",
    "ms an answer",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PaperReport {
        let arm = PaperArm {
            name: "hfsl".into(),
            seeds: 3,
            of: 3,
            macro_f1: Some((0.91, Some(0.02))),
            accuracy: 0.9,
            macro_f1_untrained: 0.5,
            curve: vec![(0, 0.5), (1, 0.91)],
            trained: 5_000,
            on_device: (0.14, 0.12),
            bytes: Some((83_000, 84_000, 9_000)),
            training: (12.0, 20.5),
            peak_memory_mib: Some(300.0),
            answer_cpu_ms: 1.25,
            spread_in_sites: 0.4,
        };
        let missing = PaperArm { name: "sl".into(), of: 3, ..PaperArm::default() };
        let cell = |name: &str, state: &str, record| PaperCell {
            name: name.into(),
            state: state.into(),
            record,
        };
        PaperReport {
            version: "0.1.0".into(),
            commit: "aae5a19".into(),
            experiment: "paper-c".into(),
            question: "What does it cost?".into(),
            arms: vec![arm, missing],
            checks: vec![
                PaperCheck {
                    what: "parameters on a device".into(),
                    wanted: "at most 20 %".into(),
                    got: "14 %".into(),
                    met: Some(true),
                },
                PaperCheck {
                    what: "bytes".into(),
                    wanted: "a quarter".into(),
                    ..Default::default()
                },
            ],
            cells: vec![
                cell("hfsl-1", "finished", json!({"config": "ab"})),
                cell("sl-1", "not run", Value::Null),
                cell("sl-2", "failed: no new version", Value::Null),
            ],
        }
    }

    #[test]
    fn the_table_tells_each_arm_and_what_is_missing() {
        insta::assert_snapshot!(paper_to_table(&sample()));
    }

    #[test]
    fn the_promised_keys_are_there() {
        let json = paper_to_json(&sample());
        assert_eq!(json["arms"][0]["device_up_bytes_per_round"], 83_000);
        assert_eq!(json["arms"][1]["macro_f1"], Value::Null, "none of it was run");
        assert_eq!(json["cells"][1]["state"], "not run");
        assert_eq!(json["checks"][1]["met"], Value::Null);
    }

    #[test]
    fn the_page_loads_nothing_and_escapes_everything() {
        let mut report = sample();
        let evil = "<script src=\"https://x\">'&";
        for text in [
            &mut report.version,
            &mut report.question,
            &mut report.arms[0].name,
            &mut report.cells[1].name,
            &mut report.checks[0].got,
        ] {
            evil.clone_into(text);
        }
        evil.clone_into(&mut report.cells[2].state);
        report.arms[0].curve = vec![(0, f64::NAN), (1, f64::INFINITY)];
        let page = paper_to_html(&report);
        for bad in ["<script", "src=\"", "href=", "url(", "@import"] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert!(page.contains("1 of 3 cells are finished"));
    }
}
