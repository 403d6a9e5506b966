//! What a run says in the end: the line that a script reads, and the same as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::count::Counts;

/// What came of a run, also of several federations.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) federations: u64,
    /// Recovery times by kind of fault, in milliseconds.
    pub(crate) recovered: BTreeMap<String, Vec<u64>>,
    /// What of it this machine can't do, and why.
    pub(crate) skipped: BTreeMap<String, u64>,
    pub(crate) counts: Counts,
    /// Versions whose result was compared with that of a run without faults, and how many were others.
    pub(crate) compared: u64,
    pub(crate) differing: u64,
    /// Ends of nodes that no fault brought about.
    pub(crate) deaths: u64,
    /// What else is wrong: no recovery, an audit that fails.
    pub(crate) failures: Vec<String>,
}

impl Report {
    pub(crate) fn note(&mut self, kind: &str, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.recovered.entry(kind.to_owned()).or_default().push(millis);
    }

    /// Adds what another federation came to.
    pub(crate) fn add(&mut self, other: Self) {
        for (kind, times) in other.recovered {
            self.recovered.entry(kind).or_default().extend(times);
        }
        self.federations += 1;
        self.counts.lost += other.counts.lost;
        self.counts.double_counted += other.counts.double_counted;
        self.counts.stale_epoch += other.counts.stale_epoch;
        self.counts.receipts += other.counts.receipts;
        self.counts.abandoned += other.counts.abandoned;
        self.counts.findings.extend(other.counts.findings);
        self.compared += other.compared;
        self.differing += other.differing;
        self.deaths += other.deaths;
        self.failures.extend(other.failures);
        for (what, times) in other.skipped {
            *self.skipped.entry(what).or_default() += times;
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        let Counts { lost, double_counted, stale_epoch, .. } = self.counts;
        let wrong = lost + double_counted + stale_epoch + self.differing;
        wrong == 0 && self.failures.is_empty() && !self.recovered.is_empty()
    }

    /// The last line of a run.
    pub(crate) fn line(&self) -> String {
        let all = self.times();
        let Counts { lost, double_counted, stale_epoch, .. } = self.counts;
        format!(
            "faults {} lost {lost} double_counted {double_counted} stale_epoch {stale_epoch} recovery_p50_ms {} \
             recovery_max_ms {}",
            all.len(),
            all.get(all.len() / 2).copied().unwrap_or(0),
            all.last().copied().unwrap_or(0),
        )
    }

    pub(crate) fn json(&self) -> Value {
        let all = self.times();
        let kinds: serde_json::Map<String, Value> = self.recovered.iter().map(|(kind, times)| {
            let mut times = times.clone();
            times.sort_unstable();
            let p50 = times[times.len() / 2];
            let row = json!({ "faults": times.len(), "recovery_p50_ms": p50, "recovery_max_ms": times.last() });
            (kind.clone(), row)
        }).collect();
        json!({
            "faults": all.len(),
            "lost": self.counts.lost,
            "double_counted": self.counts.double_counted,
            "stale_epoch": self.counts.stale_epoch,
            "recovery_p50_ms": all.get(all.len() / 2),
            "recovery_max_ms": all.last(),
            "kinds": kinds,
            "skipped": self.skipped,
            "federations": self.federations,
            "receipts": self.counts.receipts,
            "rounds_abandoned": self.counts.abandoned,
            "results_compared": self.compared,
            "results_differing": self.differing,
            "unprovoked_ends": self.deaths,
            "findings": self.counts.findings,
            "failures": self.failures,
            "seed": self.seed,
            "seconds": self.seconds,
        })
    }

    fn times(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.recovered.values().flatten().copied().collect();
        all.sort_unstable();
        all
    }
}
