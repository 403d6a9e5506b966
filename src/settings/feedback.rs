//! The settings as types: labels that come late.

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
