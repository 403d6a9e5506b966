//! All counters of a node, in one struct that is passed in.
//!
//! Names are `gaisnet_<noun>_<unit>[_total]`. Labels are static words, so their number is bounded
//! whatever comes in from outside. Shown by `web/` on `/metrics`; the KPIs read some of them.

use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::resources;
use crate::ids::Side;

/// Counts what a node does. Every method may be called from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    refused: Family<Reason, Counter>,
    messages: Family<Message, Counter>,
    bytes: Family<Link, Counter>,
    round: Level,
    version: Level,
    outbox: Level,
    ledger: Level,
    answers: Histogram,
    train_steps: Counter,
    commits: Counter,
    labelled: Counter,
    right: Counter,
    drifts: Counter,
}

/// A number that may be set to any value.
type Level = Gauge<u64, AtomicU64>;

/// Which way something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To us.
    In,
    /// From us.
    Out,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Message {
    kind: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Link {
    side: &'static str,
    direction: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("gaisnet"),
            refused: Family::default(),
            messages: Family::default(),
            bytes: Family::default(),
            round: Level::default(),
            version: Level::default(),
            outbox: Level::default(),
            ledger: Level::default(),
            answers: Histogram::new(ANSWER_BUCKETS_SECONDS),
            train_steps: Counter::default(),
            commits: Counter::default(),
            labelled: Counter::default(),
            right: Counter::default(),
            drifts: Counter::default(),
        };
        metrics.register();
        metrics
    }

    /// Counts a message that was refused; `reason` is an error's `kind()`.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a message of the wire.
    pub fn message(&self, kind: &'static str, direction: Direction) {
        self.messages.get_or_create(&Message { kind, direction: direction.as_str() }).inc();
    }

    /// Adds payload and topic bytes of a link.
    pub fn bytes(&self, side: Side, direction: Direction, bytes: u64) {
        self.bytes.get_or_create(&link(side, direction)).inc_by(bytes);
    }

    /// Sets the number of the current round.
    pub fn set_round(&self, round: u64) {
        self.round.set(round);
    }

    /// Sets the adapter version that answers.
    pub fn set_version(&self, version: u64) {
        self.version.set(version);
    }

    /// Sets the number of messages that wait for a receipt.
    pub fn set_outbox(&self, messages: u64) {
        self.outbox.set(messages);
    }

    /// Sets the number of ledger entries.
    pub fn set_ledger(&self, entries: u64) {
        self.ledger.set(entries);
    }

    /// Notes one answer, from the request's arrival to its publishing.
    pub fn answered(&self, seconds: f64) {
        self.answers.observe(seconds);
    }

    /// Adds optimiser steps.
    pub fn trained(&self, steps: u64) {
        self.train_steps.inc_by(steps);
    }

    /// Counts a transaction of the store.
    pub fn committed(&self) {
        self.commits.inc();
    }

    /// Counts answers that got a label later, and those of them that were right.
    pub fn labelled(&self, answers: u64, right: u64) {
        self.labelled.inc_by(answers);
        self.right.inc_by(right);
    }

    /// Counts drifts that were told of.
    pub fn drifted(&self, drifts: u64) {
        self.drifts.inc_by(drifts);
    }

    /// Messages refused for this reason so far.
    pub fn refused_by_reason(&self, reason: &'static str) -> u64 {
        self.refused.get(&Reason { reason }).map_or(0, |counter| counter.get())
    }

    /// Bytes of a link so far.
    pub fn bytes_so_far(&self, side: Side, direction: Direction) -> u64 {
        self.bytes.get(&link(side, direction)).map_or(0, |counter| counter.get())
    }

    /// Everything in the text format of Prometheus / `OpenMetrics` 1.0.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing into a String can't fail; an encoder's error would show as a cut page.
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics can't be encoded");
        }
        text
    }

    fn register(&mut self) {
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        let registry = &mut self.registry;
        registry.register("build", "The program", version);
        registry.register("refused_messages", "Messages refused, by reason", self.refused.clone());
        registry.register("messages", "Messages of the wire", self.messages.clone());
        let help = "Payload and topic bytes by link: down to the children, up to the parent";
        registry.register_with_unit("bus", help, Unit::Bytes, self.bytes.clone());
        registry.register("round_number", "Current round", self.round.clone());
        registry.register("adapter_version", "Adapter version that answers", self.version.clone());
        let help = "Messages that wait for a receipt";
        registry.register("outbox_messages", help, self.outbox.clone());
        registry.register("ledger_entries", "Entries of the audit log", self.ledger.clone());
        let help = "Time from request to answer";
        registry.register_with_unit("answer", help, Unit::Seconds, self.answers.clone());
        registry.register("train_steps", "Optimiser steps", self.train_steps.clone());
        registry.register("store_commits", "Transactions of the store", self.commits.clone());
        let help = "Answers of this node that got a label later";
        registry.register("labelled_answers", help, self.labelled.clone());
        registry.register("right_answers", "Those that were right", self.right.clone());
        registry.register("drifts", "Drifts of inputs or confidence", self.drifts.clone());
        registry.register_collector(Box::new(Process));
    }
}

fn link(side: Side, direction: Direction) -> Link {
    let side = match side {
        Side::Down => "down",
        Side::Up => "up",
    };
    Link { side, direction: direction.as_str() }
}

/// What the process uses, asked when the page is shown.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Ok(usage) = resources::usage() else { return Ok(()) };
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let help = "User and system time of all threads";
        cpu.encode(encoder.encode_descriptor(
            "cpu",
            help,
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)?;
        let peak = ConstGauge::new(usage.peak_rss_bytes);
        let help = "Largest resident set so far";
        peak.encode(encoder.encode_descriptor(
            "peak_rss",
            help,
            Some(&Unit::Bytes),
            peak.metric_type(),
        )?)
    }
}

/// Upper bounds: from a broker's round trip to a slow generation.
const ANSWER_BUCKETS_SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_shown_under_its_name_with_its_unit() {
        let metrics = Metrics::new();
        metrics.refused("bad_signature");
        metrics.refused("bad_signature");
        metrics.message("offer", Direction::In);
        metrics.bytes(Side::Up, Direction::Out, 1500);
        metrics.set_round(7);
        metrics.set_version(6);
        metrics.set_outbox(2);
        metrics.set_ledger(40);
        metrics.answered(0.003);
        metrics.trained(16);
        metrics.committed();
        let text = metrics.to_text();
        for line in [
            "gaisnet_refused_messages_total{reason=\"bad_signature\"} 2",
            "gaisnet_messages_total{kind=\"offer\",direction=\"in\"} 1",
            "gaisnet_bus_bytes_total{side=\"up\",direction=\"out\"} 1500",
            "gaisnet_round_number 7",
            "gaisnet_adapter_version 6",
            "gaisnet_outbox_messages 2",
            "gaisnet_ledger_entries 40",
            "gaisnet_answer_seconds_count 1",
            "gaisnet_answer_seconds_bucket{le=\"0.002\"} 0",
            "gaisnet_answer_seconds_bucket{le=\"0.005\"} 1",
            "gaisnet_train_steps_total 16",
            "gaisnet_store_commits_total 1",
            concat!("gaisnet_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
        for start in ["gaisnet_cpu_seconds_total ", "gaisnet_peak_rss_bytes "] {
            assert!(text.lines().any(|found| found.starts_with(start)), "{start}\nnot in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn counters_can_be_read_back_without_making_them() {
        let metrics = Metrics::new();
        assert_eq!(metrics.refused_by_reason("expired"), 0);
        assert_eq!(metrics.bytes_so_far(Side::Down, Direction::In), 0);
        assert!(!metrics.to_text().contains("expired"));
        metrics.bytes(Side::Down, Direction::In, 3);
        metrics.bytes(Side::Down, Direction::In, 4);
        assert_eq!(metrics.bytes_so_far(Side::Down, Direction::In), 7);
    }
}
