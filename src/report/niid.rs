//! What the cells of a federated benchmark have come to: a terminal table, JSON, one HTML page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::chart::{self, Bar, Line};
use super::html::Escaped;
use super::page::{HEAD, figure};
use super::{AuditSummary, human_bytes, to_f64};

/// All that is told of the table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NiidReport {
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, or "unknown".
    pub commit: String,
    /// The cells, in the order to tell them; also those that weren't run.
    pub rows: Vec<CellRow>,
}

/// A cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CellRow {
    /// Name of the set.
    pub dataset: String,
    /// Name of the split.
    pub split: String,
    /// Name of the strategy.
    pub strategy: String,
    /// `scaled` pixels, or as `niid-bench` has images and weight decay.
    pub conditions: String,
    /// What its accuracies are of: `common_model`, or `mean_of_own_models` where each client has its own.
    pub judged: String,
    /// Rounds that are wanted.
    pub rounds: u64,
    /// Rounds that are done.
    pub rounds_done: u64,
    /// Passes of a client over its images in a round.
    pub local_epochs: u32,
    /// Its seed.
    pub seed: u64,
    /// SHA-256 of what decides its figures; empty where it wasn't begun.
    pub config: String,
    /// Commit that the program was built from when it ran; empty where it wasn't begun.
    pub commit: String,
    /// The machine that it ran on.
    pub machine: String,
    /// Whether all of it is there.
    pub finished: bool,
    /// Images of each client.
    pub client_sizes: Vec<usize>,
    /// What a client has of the network and what crosses the cut; none where it has all, or of a cell that
    /// wasn't begun.
    pub halves: Option<HalvesFigures>,
    /// Best accuracy after any round, 0 to 1.
    pub accuracy_best: f64,
    /// Accuracy after each round, the untrained model first.
    pub curve: Vec<f64>,
    /// What is published for it, and what one seed may differ by.
    pub published: Option<(f64, f64)>,
    /// Mean bytes that a client published in a round.
    pub bytes_up_per_client_round: u64,
    /// Wall time of all rounds.
    pub seconds: f64,
    /// The nodes' ledgers, once it is finished.
    pub audit: Option<AuditSummary>,
    /// Largest resident memory in MiB of each node that was a process of its own.
    pub peak_rss_mib: BTreeMap<String, f64>,
}

/// What a client has of a split network, and what it sends across the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HalvesFigures {
    /// Values that the whole network has.
    pub values: u64,
    /// Of these, values that a client holds.
    pub resident: u64,
    /// Of these, values that train at the client.
    pub trained: u64,
    /// Bytes of an image's activations as they are coded, before zstd; its gradient comes back in as many.
    pub activation_bytes_per_image: u64,
    /// The same as f32.
    pub activation_bytes_per_image_f32: u64,
}

impl NiidReport {
    /// A report of this program.
    pub fn new(rows: Vec<CellRow>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned(),
            rows,
        }
    }
}

impl CellRow {
    fn name(&self) -> String {
        let name = format!("{}/{}/{}", self.dataset, self.split, self.strategy);
        if self.conditions == "scaled" { name } else { format!("{name}/{}", self.conditions) }
    }

    fn state(&self) -> String {
        match (self.finished, self.rounds_done) {
            (true, _) => "finished".to_owned(),
            (false, 0) => "not run".to_owned(),
            (false, done) => format!("after round {done} of {}", self.rounds),
        }
    }

    /// Whether its figures are of ten models, and can't be compared with those of one.
    fn has_own_models(&self) -> bool {
        self.judged == "mean_of_own_models"
    }

    /// The node whose process took most memory, and how many MiB.
    fn largest(&self) -> Option<(&str, f64)> {
        let all = self.peak_rss_mib.iter().map(|(node, mib)| (node.as_str(), *mib));
        all.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Whether a finished cell is as close to its published figure as one seed should be.
    fn agrees(&self) -> Option<bool> {
        let (figure, tolerance) = self.published.filter(|_| self.finished)?;
        Some((self.accuracy_best - figure).abs() <= tolerance)
    }
}

/// The table as JSON; names and units of its keys are stable.
pub fn niid_to_json(report: &NiidReport) -> Value {
    let cell = |row: &CellRow| {
        json!({
            "dataset": row.dataset,
            "split": row.split,
            "strategy": row.strategy,
            "conditions": row.conditions,
            "judged": row.judged,
            "state": row.state(),
            "finished": row.finished,
            "rounds": row.rounds,
            "rounds_done": row.rounds_done,
            "local_epochs": row.local_epochs,
            "seed": row.seed,
            "config": row.config,
            "commit": row.commit,
            "machine": row.machine,
            "client_sizes": row.client_sizes,
            "halves": row.halves,
            "accuracy_best": if row.curve.is_empty() { Value::Null } else { json!(row.accuracy_best) },
            "accuracy": row.curve,
            "published": row.published.map(|(figure, tolerance)| {
                json!({ "accuracy_best": figure, "tolerance": tolerance, "agrees": row.agrees() })
            }),
            "bytes_up_per_client_round": row.bytes_up_per_client_round,
            "seconds": row.seconds,
            "audit": row.audit,
            "peak_rss_mib": (!row.peak_rss_mib.is_empty()).then_some(&row.peak_rss_mib),
        })
    };
    json!({
        "version": report.version,
        "commit": report.commit,
        "share_cap": "off",
        "norm_clipping": "off",
        "cells": report.rows.iter().map(cell).collect::<Vec<_>>(),
    })
}

/// Tells the table in plain text.
pub fn niid_to_table(report: &NiidReport) -> String {
    let mut lines = vec![format!("gaisnet {} ({})", report.version, report.commit)];
    lines.push("  the plain mean of ten clients: no cap on a share, no norm clipping".to_owned());
    lines.push(String::new());
    lines.push(format!(
        "  {:<40}{:>7}{:>7}{:>9}{:>16}{:>11}{:>9}  {}",
        "cell", "rounds", "passes", "best %", "published %", "up a round", "seconds", ""
    ));
    for row in &report.rows {
        let best = if row.curve.is_empty() { "-".to_owned() } else { percent(row.accuracy_best) };
        let published = row.published.map_or("-".to_owned(), |(figure, tolerance)| {
            format!("{} +- {}", percent(figure), percent(tolerance))
        });
        lines.push(format!(
            "  {:<40}{:>7}{:>7}{best:>9}{published:>16}{:>11}{:>9.0}  {}",
            row.name(),
            row.rounds,
            row.local_epochs,
            human_bytes(row.bytes_up_per_client_round),
            row.seconds,
            told(row),
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn told(row: &CellRow) -> String {
    let verified = row.audit.is_none_or(|audit| audit.verified);
    let ledgers = if verified { "" } else { ", LEDGERS NOT VERIFIED" };
    let agrees = match row.agrees() {
        Some(true) => ", as published",
        Some(false) => ", NOT as published",
        None => "",
    };
    let own = if row.has_own_models() { ", mean of the clients' own models" } else { "" };
    let halves = row.halves.map_or(String::new(), |halves| {
        format!(
            ", {} % of the network at a client",
            percent(to_f64(halves.resident) / to_f64(halves.values))
        )
    });
    let memory = row.largest().map_or(String::new(), |(node, mib)| {
        format!(", {mib:.0} MiB in the largest process ({node})")
    });
    format!("{}{agrees}{own}{halves}{memory}{ledgers}", row.state())
}

/// Tells the table as HTML that loads nothing.
pub fn niid_to_html(report: &NiidReport) -> String {
    let mut page = String::from(HEAD);
    let finished = report.rows.iter().filter(|row| row.finished).count();
    let _ = write!(
        page,
        "<p class=\"over\">gaisnet experiment</p>\n<h1>Ten clients with different images</h1>\n\
         <p class=\"lead\">Share of the test images that the common model names right; where clients \
         keep their own models, the mean of what these do. The plain mean of all clients: no cap on a share, no \
         norm clipping. {finished} of {} cells are finished.</p>\n",
        report.rows.len()
    );
    let begun = || report.rows.iter().filter(|row| !row.curve.is_empty());
    let bar = |row: &CellRow| Bar {
        name: row.name(),
        value: row.accuracy_best,
        shown: format!("{} %", percent(row.accuracy_best)),
        class: if row.finished { "together" } else { "down" },
    };
    figure(&mut page, "Best accuracy after any round", "", |label| {
        chart::bars(label, &begun().map(bar).collect::<Vec<_>>(), 1.0)
    });
    for row in begun() {
        let points = (0_u64..).zip(&row.curve).map(|(round, at)| (to_f64(round), *at)).collect();
        let name = format!("best {} %", percent(row.accuracy_best));
        let line = Line { name, class: "together", points };
        figure(&mut page, &format!("Accuracy after each round, {}", row.name()), "", |label| {
            chart::lines(label, &[line], 1.0)
        });
    }
    page.push_str("<section>\n<h2>Figures</h2>\n<table>\n<tr>");
    for head in ["cell", "rounds", "passes", "best %", "published %", "up a round", "seconds", ""] {
        let _ = write!(page, "<th scope=\"col\">{head}</th>");
    }
    page.push_str("</tr>\n");
    for row in &report.rows {
        let published = row.published.map_or(String::new(), |(figure, _)| percent(figure));
        let best = if row.curve.is_empty() { String::new() } else { percent(row.accuracy_best) };
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{best}</td><td>{published}</td>\
             <td>{}</td><td>{:.0}</td><td>{}</td></tr>",
            Escaped(&row.name()),
            row.rounds,
            row.local_epochs,
            human_bytes(row.bytes_up_per_client_round),
            row.seconds,
            Escaped(&told(row)),
        );
    }
    let (version, commit) = (Escaped(&report.version), Escaped(&report.commit));
    let _ = writeln!(page, "</table>\n<p>Told by gaisnet {version} ({commit}).</p>\n</section>");
    page + "</main>\n</body>\n</html>\n"
}

fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NiidReport {
        let row = CellRow {
            dataset: "fashion-mnist".into(),
            split: "dir0.5".into(),
            strategy: "fedavg".into(),
            conditions: "scaled".into(),
            judged: "common_model".into(),
            rounds: 50,
            rounds_done: 50,
            local_epochs: 10,
            seed: 1,
            config: "ab".into(),
            commit: "aae5a19".into(),
            machine: "a machine, 2 cores".into(),
            finished: true,
            client_sizes: vec![40, 60],
            halves: None,
            accuracy_best: 0.8812,
            curve: vec![0.1, 0.8, 0.8812],
            published: Some((0.8809, 0.006)),
            bytes_up_per_client_round: 179_000,
            seconds: 1_800.0,
            audit: Some(AuditSummary { entries: 900, verified: true }),
            peak_rss_mib: BTreeMap::new(),
        };
        let open = CellRow {
            split: "labels2".into(),
            rounds_done: 2,
            finished: false,
            accuracy_best: 0.5,
            audit: None,
            published: Some((0.781, 0.025)),
            ..row.clone()
        };
        let missing = CellRow {
            split: "iid".into(),
            rounds: 10,
            rounds_done: 0,
            finished: false,
            curve: Vec::new(),
            published: None,
            audit: None,
            bytes_up_per_client_round: 0,
            seconds: 0.0,
            accuracy_best: 0.0,
            ..row.clone()
        };
        let rows = vec![row, open, missing];
        NiidReport { version: "0.1.0".into(), commit: "aae5a19".into(), rows }
    }

    #[test]
    fn the_table_tells_each_cell_and_what_is_missing() {
        insta::assert_snapshot!(niid_to_table(&sample()));
    }

    #[test]
    fn figures_of_own_models_are_told_apart() {
        let mut report = sample();
        report.rows[1].judged = "mean_of_own_models".into();
        let table = niid_to_table(&report);
        assert_eq!(table.matches("mean of the clients' own models").count(), 1, "{table}");
        assert_eq!(niid_to_json(&report)["cells"][1]["judged"], "mean_of_own_models");
    }

    #[test]
    fn what_a_client_has_of_a_split_network_is_told() {
        let mut report = sample();
        report.rows[0].halves = Some(HalvesFigures {
            values: 200,
            resident: 25,
            trained: 25,
            activation_bytes_per_image: 258,
            activation_bytes_per_image_f32: 1_024,
        });
        let table = niid_to_table(&report);
        assert!(table.contains("12.50 % of the network at a client"), "{table}");
        let json = niid_to_json(&report);
        assert_eq!(json["cells"][0]["halves"]["activation_bytes_per_image"], 258);
        assert_eq!(json["cells"][1]["halves"], Value::Null);
    }

    #[test]
    fn the_memory_of_nodes_that_are_processes_is_told() {
        let mut report = sample();
        let peaks = [("cloud", 101.5), ("machine-7", 187.2), ("machine-8", 187.1)];
        report.rows[0].peak_rss_mib = peaks.map(|(node, mib)| (node.to_owned(), mib)).into();
        let table = niid_to_table(&report);
        assert!(table.contains(", 187 MiB in the largest process (machine-7)"), "{table}");
        let json = niid_to_json(&report);
        assert_eq!(json["cells"][0]["peak_rss_mib"]["cloud"], 101.5);
        assert_eq!(json["cells"][1]["peak_rss_mib"], Value::Null);
    }

    #[test]
    fn the_promised_keys_are_there() {
        let json = niid_to_json(&sample());
        let cell = &json["cells"][0];
        for key in ["dataset", "split", "strategy", "judged", "config"] {
            assert!(cell[key].is_string(), "{key}");
        }
        for key in ["rounds", "bytes_up_per_client_round", "seed"] {
            assert!(cell[key].is_u64(), "{key}");
        }
        assert!(cell["accuracy_best"].is_f64() && cell["seconds"].is_f64());
        assert_eq!(cell["published"]["agrees"], true);
        assert_eq!(cell["accuracy"].as_array().unwrap().len(), 3);
        assert_eq!(json["cells"][1]["state"], "after round 2 of 50");
        assert_eq!(json["cells"][1]["published"]["agrees"], Value::Null, "not finished");
        assert_eq!(json["cells"][2]["accuracy_best"], Value::Null);
    }

    #[test]
    fn a_figure_that_is_off_is_told() {
        let mut report = sample();
        report.rows[0].accuracy_best = 0.87;
        report.rows[0].audit = Some(AuditSummary { entries: 1, verified: false });
        let table = niid_to_table(&report);
        assert!(table.contains("NOT as published, LEDGERS NOT VERIFIED"), "{table}");
    }

    #[test]
    fn the_page_loads_nothing_and_escapes_everything() {
        let mut report = sample();
        let evil = "<script src=\"https://x\">'&";
        for text in [&mut report.version, &mut report.commit, &mut report.rows[0].dataset] {
            evil.clone_into(text);
        }
        report.rows[1].accuracy_best = f64::NAN;
        let page = niid_to_html(&report);
        for bad in ["<script", "src=\"", "href=", "url(", "@import"] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert!(page.contains("1 of 3 cells are finished"));
    }
}
