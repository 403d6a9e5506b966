//! The settings as types: who answers what, where several tiers answer together.

use serde::{Deserialize, Serialize};

/// Section `[cascade]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CascadeSettings {
    /// This node answers as one of several tiers.
    pub enabled: bool,
    /// Rate of wrong answers that is allowed among those it gives as sure.
    pub alpha: f64,
    /// Probability that the held-out examples mislead about it.
    pub delta: f64,
    /// Share of a device's labelled examples that is kept back to measure by.
    pub holdout: f64,
    /// Waits so long for the tier above when the asker named no deadline.
    pub wait_ms: u64,
    /// Requests that wait for the tier above at a time.
    pub in_flight: usize,
    /// What to do while the served version isn't measured.
    pub uncalibrated: WhileUncalibrated,
    /// What to do without a reply of the tier above.
    pub on_no_reply: WithoutReply,
    /// The label to fall back to.
    pub safe_default: Option<String>,
    /// An edge asks the cloud: inputs leave the site.
    pub to_cloud: bool,
}

/// What to do while the served version isn't measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhileUncalibrated {
    /// Ask the tier above.
    Escalate,
    /// Answer, and mark it.
    Local,
}

/// What to do without a reply of the tier above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutReply {
    /// Answer, and mark it.
    Local,
    /// Give the safe default.
    Abstain,
}
