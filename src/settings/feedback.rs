//! The settings as types: labels that come late, drift, and what opens a round.

use serde::{Deserialize, Serialize};

/// Section `[feedback]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedbackSettings {
    /// Answers that are remembered for a label.
    pub keep_answers: usize,
    /// For so long.
    pub keep_hours: u32,
}

/// Section `[drift]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftSettings {
    /// Compares inputs and confidence with those of before.
    pub watch: bool,
    /// Windows that the latest are held against.
    pub reference: usize,
    /// Windows of a look.
    pub recent: usize,
    /// One window in so many is looked at.
    pub every: u32,
    /// Most false alarms a look.
    pub alpha: f64,
}

/// What opens a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerName {
    /// Time.
    OnSchedule,
    /// Drift that devices found.
    OnDrift,
    /// Labels that devices took.
    OnNLabels,
}
