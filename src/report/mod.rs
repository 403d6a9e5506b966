//! What a run has shown: one value, told as a terminal table, as one HTML page, as JSON.
//!
//! Whoever ran the arms fills a [`DemoReport`], or an [`ExperimentReport`] with texts; nothing here measures or decides. Texts come from
//! settings and file names, so the page escapes all of them; it loads nothing from elsewhere.

mod chart;
mod experiment;
mod html;
mod json;
mod niid;
mod page;
mod paper;
#[cfg(feature = "sim")]
mod sim;
mod story;
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use experiment::{
    ArmKind, ExperimentReport, LossPoint, TextArm, experiment_to_html, experiment_to_json,
    experiment_to_table,
};
pub use json::to_json;
pub use niid::{CellRow, HalvesFigures, NiidReport, niid_to_html, niid_to_json, niid_to_table};
pub use page::to_html;
pub use paper::{
    PaperArm, PaperCell, PaperCheck, PaperReport, paper_to_html, paper_to_json, paper_to_table,
};
#[cfg(feature = "sim")]
pub use sim::{SimReport, SimRow, SimViolation, sim_to_html, sim_to_json, sim_to_table};
pub use story::{
    StoryBad, StoryEntry, StoryOrder, StoryReport, StoryStage, story_to_json, story_to_table,
};
pub use table::to_table;

/// All that is told of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, or "unknown".
    pub commit: String,
    /// What was learned from, in a few words.
    pub data: String,
    /// What learned, in a few words.
    pub model: String,
    /// Settings worth telling, in the order to tell them.
    pub settings: Vec<(String, String)>,
    /// One entry a plant: what it reaches with its own data only.
    pub alone: Vec<Arm>,
    /// What the plants reach together.
    pub federated: Score,
    /// What one model reaches with all data in one place.
    pub pooled: Score,
    /// One entry a round of the federated arm.
    pub curve: Vec<RoundPoint>,
    /// The federated model on the test part.
    pub confusion: ConfusionTable,
    /// Bytes of learning by tier, counted at the brokers.
    pub traffic: Vec<TierTraffic>,
    /// Bytes of answers and telegrams (up) and of samples and commands (down) inside the sites.
    pub in_sites: TierTraffic,
    /// Bytes of what one device contributes in one round, as coded, mean over the run.
    pub up_per_device_round: u64,
    /// The same with the signed message around it: a few hundred bytes more, whatever the model.
    pub message_per_device_round: u64,
    /// The same adapter as raw f32, in bytes.
    pub raw_f32_per_device_round: u64,
    /// Everything that crossed from the sites to the federation.
    pub crossings: Vec<Crossing>,
    /// Ways to contribute, the uncompressed one first; the others are measured against it.
    pub contributions: Vec<Contribution>,
    /// Wall time of the federated arm.
    pub seconds: f64,
    /// CPU time of all processes of the federated arm.
    pub cpu_seconds: f64,
    /// Largest resident memory of each process, summed; shared libraries count once a process.
    pub peak_rss_mib: f64,
    /// Answers over MQTT while training ran.
    pub latency_ms: Latency,
    /// Refused messages by reason.
    pub refused: BTreeMap<String, u64>,
    /// The ledger.
    pub audit: AuditSummary,
}

impl DemoReport {
    /// Rounds of the federated arm, also where only the last ones were watched.
    pub fn rounds(&self) -> u64 {
        self.curve.last().map_or(0, |point| point.round)
    }

    /// Bytes of learning towards the cloud, all tiers.
    pub fn bytes_up(&self) -> u64 {
        self.traffic.iter().map(|tier| tier.up).sum()
    }

    /// Bytes of learning towards the devices, all tiers.
    pub fn bytes_down(&self) -> u64 {
        self.traffic.iter().map(|tier| tier.down).sum()
    }

    /// How many times smaller a device's uplink is than the adapter as raw f32, if it sent any.
    pub fn compression(&self) -> Option<f64> {
        let (raw, sent) = (self.raw_f32_per_device_round, self.up_per_device_round);
        (sent > 0).then(|| to_f64(raw) / to_f64(sent))
    }

    /// How many times smaller a way is than the first, as people read it.
    fn times_smaller(&self, way: &Contribution) -> String {
        let first = self.contributions.first().map_or(0, |first| first.bytes_per_device_round);
        format!("{:.2} x", to_f64(first) / to_f64(way.bytes_per_device_round.max(1)))
    }

    /// The best plant on its own.
    pub fn best_alone(&self) -> Option<&Arm> {
        self.alone.iter().max_by(|a, b| a.score.macro_f1.total_cmp(&b.score.macro_f1))
    }

    /// Refused messages, all reasons.
    pub fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// Quality on the test part, both in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean over the classes of F1.
    pub macro_f1: f64,
    /// Share of right answers.
    pub accuracy: f64,
}

/// One plant on its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// What it reaches.
    pub score: Score,
}

/// One round of the federated arm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoundPoint {
    /// Number of the round, from 1.
    pub round: u64,
    /// Mean training loss of the members, in nats.
    pub loss: f64,
    /// Macro-F1 of the round's model on the training recordings.
    pub macro_f1: f64,
    /// Bytes from the sites to the federation in this round.
    pub bytes_up: u64,
    /// Bytes from the federation to the sites in this round.
    pub bytes_down: u64,
}

/// Bytes between two tiers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TierTraffic {
    /// Which, e.g. `device - relay`.
    pub tier: String,
    /// Towards the cloud.
    pub up: u64,
    /// Towards the devices.
    pub down: u64,
}

/// One kind of message that left the sites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Crossing {
    /// Its kind.
    pub what: String,
    /// How many.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether it tells anything about a single sample.
    pub per_sample: bool,
}

/// One way to contribute, and its price.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// Its name, e.g. `int8`.
    pub kind: String,
    /// Bytes of one device's work in one round, without the signed message around it.
    pub bytes_per_device_round: u64,
    /// What the federation reaches with it, where this run did it.
    pub macro_f1: Option<f64>,
}

/// Counts of answers: `counts[true][answered]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfusionTable {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// One row a true class.
    pub counts: Vec<Vec<u64>>,
}

/// Time from request to answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Answers behind both.
    pub answers: u64,
}

/// The ledger's state at the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AuditSummary {
    /// Entries in all nodes' ledgers.
    pub entries: u64,
    /// Whether each was verified.
    pub verified: bool,
}

/// Bytes as people read them: `178 kB`, powers of 1000.
fn human_bytes(bytes: u64) -> String {
    let mut value = to_f64(bytes);
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1_000.0;
    }
    format!("{value:.1} TB")
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn to_f64(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made-up numbers with every field in use.
    pub(super) fn sample() -> DemoReport {
        let arm = |name: &str, macro_f1, accuracy| Arm {
            name: name.into(),
            score: Score { macro_f1, accuracy },
        };
        let point = |round: u64| {
            let t = to_f64(round);
            RoundPoint {
                round,
                loss: 1.1 * (-t / 6.0).exp() + 0.12,
                macro_f1: 0.935 - 0.6 * (-t / 3.0).exp(),
                bytes_up: 212_400 + 900 * (round % 3),
                bytes_down: 184_100,
            }
        };
        let tier = |tier: &str, up, down| TierTraffic { tier: tier.into(), up, down };
        let crossing = |what: &str, messages, bytes| Crossing {
            what: what.into(),
            messages,
            bytes,
            per_sample: false,
        };
        let way = |kind: &str, bytes_per_device_round, macro_f1| Contribution {
            kind: kind.into(),
            bytes_per_device_round,
            macro_f1,
        };
        DemoReport {
            version: "0.1.0".into(),
            commit: "aae5a19".into(),
            data: "bearings: 4 plants on 2 sites, judged on 6 recordings that no plant has".into(),
            model: "softmax regression on 45 spectral features".into(),
            settings: vec![
                ("strategy".into(), "fed_avg".into()),
                ("local steps".into(), "20".into()),
                ("seed".into(), "1".into()),
            ],
            alone: vec![
                arm("P1", 0.600, 0.712),
                arm("P2", 0.595, 0.705),
                arm("P3", 0.489, 0.620),
                arm("P4", 0.552, 0.655),
            ],
            federated: Score { macro_f1: 0.934, accuracy: 0.931 },
            pooled: Score { macro_f1: 0.941, accuracy: 0.939 },
            curve: (1..=20).map(point).collect(),
            confusion: ConfusionTable {
                classes: vec!["healthy".into(), "inner".into(), "outer".into()],
                counts: vec![vec![140, 0, 3], vec![0, 138, 4], vec![12, 20, 253]],
            },
            traffic: vec![
                tier("device - relay", 3_120_400, 2_810_000),
                tier("relay - cloud", 1_145_600, 880_000),
            ],
            in_sites: tier("answers, samples inside the sites", 512_000, 9_400_000),
            up_per_device_round: 12_480,
            message_per_device_round: 12_880,
            raw_f32_per_device_round: 48_640,
            crossings: vec![
                crossing("adapter delta", 40, 1_020_000),
                crossing("class logits", 40, 5_200),
                crossing("receipts and status", 240, 120_400),
            ],
            contributions: vec![
                way("raw f32", 48_640, None),
                way("int8", 12_480, Some(0.934)),
                way("int4", 6_600, None),
                way("class logits", 130, None),
            ],
            seconds: 48.2,
            cpu_seconds: 61.7,
            peak_rss_mib: 412.0,
            latency_ms: Latency { p50: 3.42, p99: 11.8, answers: 1_204 },
            refused: BTreeMap::from([("bad_signature".into(), 2), ("expired".into(), 1)]),
            audit: AuditSummary { entries: 1_842, verified: true },
        }
    }

    #[test]
    fn bytes_are_told_as_people_read_them() {
        let told: Vec<String> =
            [0, 999, 1_000, 12_480, 99_960, 999_600, 3_120_400].map(human_bytes).into();
        assert_eq!(told, ["0 B", "999 B", "1.0 kB", "12.5 kB", "100 kB", "1.0 MB", "3.1 MB"]);
    }

    #[test]
    fn totals_are_sums() {
        let report = sample();
        assert_eq!(report.bytes_up(), 4_266_000);
        assert_eq!(report.best_alone().unwrap().name, "P1");
        assert!((report.compression().unwrap() - 3.897).abs() < 1e-3);
        assert_eq!(report.refused_total(), 3);
    }
}
