//! The settings as types: rollouts of versions in stages.

use serde::{Deserialize, Serialize};

use crate::time::Wall;

/// Section `[rollout]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutSettings {
    /// An edge decides about rollouts for its site.
    pub steward: bool,
    /// A device serves what its edge assigns.
    pub follow: bool,
    /// Who proposed a plan can't approve it, and each plan needs an approval.
    pub four_eyes: bool,
    /// When nothing goes forward.
    #[serde(default)]
    pub freezes: Vec<FreezeSettings>,
}

/// Section `[[rollout.freezes]]`: a time in which nothing goes forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeSettings {
    /// From here on, UTC.
    pub from: String,
    /// Up to here, UTC.
    pub until: String,
}

impl FreezeSettings {
    /// Both ends; nothing where one isn't a moment.
    pub fn times(&self) -> Option<(Wall, Wall)> {
        Some((Wall::parse_utc(&self.from)?, Wall::parse_utc(&self.until)?))
    }
}
