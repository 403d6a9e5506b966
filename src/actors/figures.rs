//! What a node counts about itself: for the KPI telegram, the report, `/metrics` and the tests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ids::{Side, Version};
use crate::learn::{percentile, wilson_interval};
use crate::privacy::Membership;
use crate::scada::answer_book::Online;

/// Counters of one node, shared by its actors.
#[derive(Debug, Default)]
pub struct Figures(Mutex<FiguresView>);

/// A copy of the counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FiguresView {
    /// Messages and requests refused, and other events worth a look, by reason.
    pub counted: BTreeMap<&'static str, u64>,
    /// Payload bytes published, by link.
    pub bytes_out: BTreeMap<Side, u64>,
    /// Payload bytes received, by link.
    pub bytes_in: BTreeMap<Side, u64>,
    /// Bytes of packed deltas that left, and their number.
    pub deltas: (u64, u64),
    /// Answers given.
    pub answers: u64,
    /// Requests that the tier above was asked.
    pub escalated: u64,
    /// Latest answer latencies in milliseconds, at most [`Figures::LATENCIES`].
    pub latencies_ms: VecDeque<f64>,
    /// Answers that agreed with the machine's label, and all that had one.
    pub judged: (u64, u64),
    /// Answers that got a label later.
    pub labels: u64,
    /// Times that a drift was told of.
    pub drifts: u64,
    /// Distance of the inputs from those of before at the last look, 0 to 1, and how likely that is where nothing changed.
    pub input_drift: Option<(f64, f64)>,
    /// What such labels said, by version.
    pub online: BTreeMap<Version, Online>,
    /// Mean loss at the end of the last training run, in nats.
    pub loss: Option<f64>,
    /// What attacks on the last training run reached, where that is measured.
    pub privacy_risk: Option<Membership>,
    /// Training steps done.
    pub train_steps: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Ledger entries written.
    pub entries: u64,
    /// Messages that wait for a receipt.
    pub outbox: u64,
    /// Messages of the wire that were let in, by kind.
    pub received: BTreeMap<&'static str, u64>,
    /// Messages of the wire that were sealed and sent, by kind; what is sent again counts once.
    pub sent: BTreeMap<&'static str, u64>,
    /// Links that are down, and why.
    pub down: BTreeMap<Side, String>,
    /// Why no new work is taken, if so.
    pub full: Option<String>,
    /// A step waits for room on the disk: nothing durable can be taken in.
    pub stalled: bool,
    /// Topic filters that a broker refused.
    pub refused_filters: BTreeMap<Side, BTreeSet<String>>,
}

impl Figures {
    /// Latencies that are remembered for the percentiles.
    pub const LATENCIES: usize = 10_000;

    /// Counts one event of this reason.
    pub fn count(&self, reason: &'static str) {
        *self.lock().counted.entry(reason).or_default() += 1;
    }

    /// Changes the counters.
    pub fn update(&self, change: impl FnOnce(&mut FiguresView)) {
        change(&mut self.lock());
    }

    /// Counts an answer.
    pub fn answered(&self, latency_ms: f64) {
        let mut view = self.lock();
        view.answers += 1;
        if view.latencies_ms.len() == Self::LATENCIES {
            view.latencies_ms.pop_front();
        }
        view.latencies_ms.push_back(latency_ms);
    }

    /// A copy of the counters.
    pub fn view(&self) -> FiguresView {
        self.lock().clone()
    }

    /// Mean loss at the end of the last training run, in nats.
    pub fn loss(&self) -> Option<f64> {
        self.lock().loss
    }

    /// Why no new work is taken, if so.
    pub fn full(&self) -> Option<String> {
        self.lock().full.clone()
    }

    /// Whether a step waits for room on the disk, so that nothing durable can be taken in.
    pub fn is_stalled(&self) -> bool {
        self.lock().stalled
    }

    /// Whether every link of the node is up.
    pub fn is_connected(&self) -> bool {
        self.lock().down.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, FiguresView> {
        // Counters stay usable whatever a panicking thread left.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FiguresView {
    /// All that was refused or counted as odd.
    pub fn refused(&self) -> u64 {
        self.counted.values().sum()
    }

    /// Share of right answers on what had a label, 0 to 1; none before the first label.
    #[expect(clippy::cast_precision_loss, reason = "counts of answers")]
    pub fn accuracy(&self) -> Option<f64> {
        let (right, all) = self.judged;
        (all > 0).then(|| right as f64 / all as f64)
    }

    /// Share of a version's answers that late labels call right, and the interval of Wilson around it; none before the
    /// first label.
    #[expect(clippy::cast_precision_loss, reason = "counts of answers")]
    pub fn online_accuracy(&self, version: Version) -> Option<(f64, (f64, f64))> {
        let Online { right, labelled, .. } = *self.online.get(&version)?;
        let interval = wilson_interval(right, labelled)?;
        Some((right as f64 / labelled as f64, interval))
    }

    /// What late labels said of each version, for a reply.
    #[expect(clippy::cast_precision_loss, reason = "counts of answers")]
    pub fn online_figures(&self) -> serde_json::Value {
        let versions = self.online.iter().filter_map(|(version, online)| {
            let (accuracy, (low, high)) = self.online_accuracy(*version)?;
            let confidence = online.confidence / online.labelled as f64;
            Some(serde_json::json!({
                "version": version, "labelled": online.labelled, "right": online.right,
                "accuracy": accuracy, "low": low, "high": high, "confidence": confidence,
            }))
        });
        versions.collect()
    }

    /// A percentile of the answer latency in milliseconds, none before the first answer.
    pub fn latency_ms(&self, percent: f64) -> Option<f64> {
        let all: Vec<f64> = self.latencies_ms.iter().copied().collect();
        percentile(&all, percent)
    }
}
