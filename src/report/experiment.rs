//! What an experiment with texts has shown: bits per character of each arm, told as a terminal table, as
//! JSON, as one HTML page.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::chart::{self, Bar, Line};
use super::html::Escaped;
use super::page::{HEAD, figure};
use super::{AuditSummary, human_bytes, to_f64};

/// All that is told of one experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExperimentReport {
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, or "unknown".
    pub commit: String,
    /// What was learned from and judged on, in a few words.
    pub data: String,
    /// What learned, in a few words.
    pub model: String,
    /// Settings worth telling, in the order to tell them.
    pub settings: Vec<(String, String)>,
    /// Names of the machines, in the order of the figures.
    pub machines: Vec<String>,
    /// The arms that were run, the untrained model first.
    pub arms: Vec<TextArm>,
    /// One entry a round of the federated arm.
    pub curve: Vec<LossPoint>,
    /// Everything that a device published in a round, bytes of payload, mean over devices and rounds.
    pub bytes_up_per_device_round: u64,
    /// Of it, the coded work alone.
    pub work_per_device_round: u64,
    /// The same adapter as raw f32.
    pub raw_f32_per_device_round: u64,
    /// Places of token ids that a step trains on, padding included.
    pub tokens_per_step: u64,
    /// Wall time of everything.
    pub seconds: f64,
    /// The ledgers of the federated arm.
    pub audit: AuditSummary,
}

/// One way to learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextArm {
    /// Which.
    pub kind: ArmKind,
    /// Bits per character on each machine's own test texts.
    pub machines: Vec<f64>,
    /// Bits per character on all test texts together.
    pub all: f64,
    /// Optimiser steps: of each machine, where each has its own.
    pub steps: u64,
    /// Wall time of its training.
    pub seconds: f64,
}

/// The ways that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmKind {
    /// The base as it came.
    ZeroShot,
    /// Each machine with its own texts; judged on its own.
    Alone,
    /// All machines together, no text leaves its own.
    Federated,
    /// One learner that has all texts.
    Pooled,
}

impl ArmKind {
    /// Its name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::ZeroShot => "zero_shot",
            Self::Alone => "alone",
            Self::Federated => "federated",
            Self::Pooled => "pooled",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::ZeroShot => "the base as it came",
            Self::Alone => "each machine alone",
            Self::Federated => "federated",
            Self::Pooled => "all texts in one place",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::ZeroShot => "down",
            Self::Alone => "alone",
            Self::Federated => "together",
            Self::Pooled => "pooled",
        }
    }
}

/// The federated arm after a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Number of the round, from 1.
    pub round: u64,
    /// Mean training loss of the machines at its end, in nats a token.
    pub loss: f64,
}

impl ExperimentReport {
    /// An arm, if it was run.
    pub fn arm(&self, kind: ArmKind) -> Option<&TextArm> {
        self.arms.iter().find(|arm| arm.kind == kind)
    }
}

/// The experiment as JSON; names and units of its keys are stable.
pub fn experiment_to_json(report: &ExperimentReport) -> Value {
    let by_arm = |pick: &dyn Fn(&TextArm) -> Value| -> Value {
        let pairs = report.arms.iter().map(|arm| (arm.kind.key().to_owned(), pick(arm)));
        Value::Object(pairs.collect())
    };
    let bits = |arm: &TextArm| -> Value {
        let each = report.machines.iter().zip(&arm.machines);
        let mut all: Map<String, Value> =
            each.map(|(name, bits)| (name.clone(), json!(bits))).collect();
        all.insert("all".to_owned(), json!(arm.all));
        Value::Object(all)
    };
    json!({
        "version": report.version,
        "commit": report.commit,
        "data": report.data,
        "model": report.model,
        "settings": report.settings.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "machines": report.machines,
        "bits_per_char": by_arm(&bits),
        "steps": by_arm(&|arm| json!(arm.steps)),
        "seconds": report.seconds,
        "seconds_by_arm": by_arm(&|arm| json!(arm.seconds)),
        "tokens_per_step": report.tokens_per_step,
        "bytes_up_per_device_round": report.bytes_up_per_device_round,
        "work_per_device_round": report.work_per_device_round,
        "raw_f32_per_device_round": report.raw_f32_per_device_round,
        "curve": report.curve,
        "audit": report.audit,
    })
}

/// Tells the experiment in plain text.
pub fn experiment_to_table(report: &ExperimentReport) -> String {
    let mut rows = vec![format!("gaisnet {} ({})", report.version, report.commit)];
    rows.push(format!("  data   {}", report.data));
    rows.push(format!("  model  {}", report.model));
    rows.push(String::new());
    let mut head = format!("  {:<26}", "bits per character");
    for machine in &report.machines {
        let _ = write!(head, "{machine:>8}");
    }
    rows.push(format!("{head}{:>8}{:>8}{:>9}", "all", "steps", "seconds"));
    for arm in &report.arms {
        let mut row = format!("  {:<26}", arm.kind.title());
        for bits in &arm.machines {
            let _ = write!(row, "{bits:>8.3}");
        }
        rows.push(format!("{row}{:>8.3}{:>8}{:>9.0}", arm.all, arm.steps, arm.seconds));
    }
    rows.push(String::new());
    let mut row = |name: &str, value: String| rows.push(format!("  {name:<34}{value:>10}"));
    if report.arm(ArmKind::Federated).is_some() {
        row("uplink of a device and round", human_bytes(report.bytes_up_per_device_round));
        row("  of it the coded work", human_bytes(report.work_per_device_round));
        row("  the same as raw f32", human_bytes(report.raw_f32_per_device_round));
        row("audit entries", report.audit.entries.to_string());
        row("audit verified", if report.audit.verified { "yes" } else { "NO" }.to_owned());
    }
    row("tokens a step", report.tokens_per_step.to_string());
    row("seconds", format!("{:.0}", report.seconds));
    rows.push(String::new());
    rows.join("\n")
}

/// Tells the experiment as HTML that loads nothing.
pub fn experiment_to_html(report: &ExperimentReport) -> String {
    let mut page = String::from(HEAD);
    headline(report, &mut page);
    plots(report, &mut page);
    numbers(report, &mut page);
    page + "</main>\n</body>\n</html>\n"
}

fn headline(report: &ExperimentReport, page: &mut String) {
    let all = |kind| report.arm(kind).map_or(f64::NAN, |arm| arm.all);
    let (before, together) = (all(ArmKind::ZeroShot), all(ArmKind::Federated));
    let answer = if together < before {
        "Learning together, the machines' texts became easier to foresee"
    } else {
        "In this run, learning together did not help"
    };
    let card = |value: f64, name: &str, class: &str| {
        let shown = if value.is_finite() { format!("{value:.3}") } else { "not run".to_owned() };
        format!("<div class=\"card {class}\"><b>{shown}</b><span>{name}</span></div>\n")
    };
    let _ = write!(
        page,
        "<p class=\"over\">gaisnet experiment</p>\n<h1>{answer}</h1>\n<p class=\"lead\">{data}. \
         Quality is bits per character on texts that nobody trained on: lower is better.</p>\n\
         <div class=\"cards\">\n{}{}{}{}</div>\n",
        card(together, "learned together", "main"),
        card(before, "the base as it came", ""),
        card(all(ArmKind::Alone), "each machine alone, on its own texts", ""),
        card(all(ArmKind::Pooled), "all texts in one place<br>reference", ""),
        data = Escaped(&report.data),
    );
}

fn plots(report: &ExperimentReport, page: &mut String) {
    let values = report.arms.iter().flat_map(|arm| arm.machines.iter().chain([&arm.all]));
    let top = values.copied().filter(|bits| bits.is_finite()).fold(0.1, f64::max);
    let bars = |pick: &dyn Fn(&TextArm) -> f64| -> Vec<Bar> {
        let bar = |arm: &TextArm| Bar {
            name: arm.kind.title().to_owned(),
            value: pick(arm),
            shown: format!("{:.3}", pick(arm)),
            class: arm.kind.class(),
        };
        report.arms.iter().map(bar).collect()
    };
    figure(page, "Bits per character, all machines", "", |label| {
        chart::bars(label, &bars(&|arm| arm.all), top)
    });
    for (at, machine) in report.machines.iter().enumerate() {
        figure(page, &format!("Bits per character, machine {machine}"), "", |label| {
            let own = |arm: &TextArm| arm.machines.get(at).copied().unwrap_or(f64::NAN);
            chart::bars(label, &bars(&own), top)
        });
    }
    if !report.curve.is_empty() {
        let points = report.curve.iter().map(|at| (to_f64(at.round), at.loss)).collect();
        let line = Line { name: "training loss".into(), class: "together", points };
        let highest = report.curve.iter().map(|at| at.loss).fold(0.1, f64::max);
        figure(page, "Training loss after each federated round (nats a token)", "", |label| {
            chart::lines(label, &[line], highest)
        });
        let way = |name: &str, bytes| Bar {
            name: name.to_owned(),
            value: to_f64(bytes),
            shown: human_bytes(bytes),
            class: "together",
        };
        let ways = [
            way("raw f32", report.raw_f32_per_device_round),
            way("coded work", report.work_per_device_round),
            way("all that was sent", report.bytes_up_per_device_round),
        ];
        let most = ways.iter().map(|way| way.value).fold(0.0, f64::max);
        figure(page, "What one device sends in one round", "", |label| {
            chart::bars(label, &ways, most)
        });
    }
}

fn numbers(report: &ExperimentReport, page: &mut String) {
    page.push_str("<section>\n<h2>How to repeat it</h2>\n<table>\n");
    let mut row = |name: &str, value: &str| {
        let (name, value) = (Escaped(name), Escaped(value));
        let _ = writeln!(page, "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>");
    };
    row("gaisnet", &format!("{} ({})", report.version, report.commit));
    row("model", &report.model);
    row("tokens a step", &report.tokens_per_step.to_string());
    for arm in &report.arms {
        let text = format!("{} steps, {:.0} s", arm.steps, arm.seconds);
        row(arm.kind.title(), &text);
    }
    for (key, value) in &report.settings {
        row(key, value);
    }
    row("Time", &format!("{:.0} s", report.seconds));
    let verified = if report.audit.verified { "all verified" } else { "NOT verified" };
    row("Audit log", &format!("{} entries, {verified}", report.audit.entries));
    page.push_str("</table>\n</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ExperimentReport {
        let arm = |kind, shift: f64, steps| TextArm {
            kind,
            machines: vec![2.4 - shift, 2.1 - shift],
            all: 2.2 - shift,
            steps,
            seconds: 61.4,
        };
        ExperimentReport {
            version: "0.1.0".into(),
            commit: "aae5a19".into(),
            data: "orders: 2 machines, 600 to learn from, 150 to judge by".into(),
            model: "a small model with LoRA".into(),
            settings: vec![("rounds".into(), "3".into()), ("seed".into(), "1".into())],
            machines: vec!["A".into(), "B".into()],
            arms: vec![
                arm(ArmKind::ZeroShot, 0.0, 0),
                arm(ArmKind::Alone, 0.2, 60),
                arm(ArmKind::Federated, 0.4, 60),
                arm(ArmKind::Pooled, 0.45, 120),
            ],
            curve: vec![LossPoint { round: 1, loss: 3.0 }, LossPoint { round: 2, loss: 2.5 }],
            bytes_up_per_device_round: 451_000,
            work_per_device_round: 447_000,
            raw_f32_per_device_round: 1_843_200,
            tokens_per_step: 256,
            seconds: 301.0,
            audit: AuditSummary { entries: 120, verified: true },
        }
    }

    #[test]
    fn the_table_tells_the_experiment() {
        insta::assert_snapshot!(experiment_to_table(&sample()));
    }

    #[test]
    fn the_promised_keys_are_there() {
        let json = experiment_to_json(&sample());
        for arm in ["zero_shot", "alone", "federated", "pooled"] {
            for machine in ["A", "B", "all"] {
                assert!(json["bits_per_char"][arm][machine].is_f64(), "{arm} {machine}");
            }
            assert!(json["steps"][arm].is_u64(), "{arm}");
        }
        assert_eq!(json["bits_per_char"]["federated"]["A"], 2.0);
        assert_eq!(json["bytes_up_per_device_round"], 451_000);
        assert!(json["seconds"].is_f64());
    }

    #[test]
    fn the_page_loads_nothing_escapes_everything_and_is_honest() {
        let mut report = sample();
        assert!(experiment_to_html(&report).contains("easier to foresee"));
        let evil = "<script src=\"https://x\">'&";
        for text in [&mut report.version, &mut report.commit, &mut report.data, &mut report.model] {
            evil.clone_into(text);
        }
        report.machines[0] = evil.into();
        report.settings.push((evil.into(), evil.into()));
        report.arms[2].all = 2.3;
        report.arms.remove(3);
        let page = experiment_to_html(&report);
        for bad in ["<script", "src=\"", "href=", "url(", "@import", "NaN"] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert!(page.contains("did not help") && page.contains("not run"));
    }
}
