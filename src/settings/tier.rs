//! The three tiers and the settings that each of them starts from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Owns data, trains and answers.
    Device,
    /// Relays between the devices of a site and the cloud.
    Edge,
    /// Owns the rounds.
    Cloud,
}

impl Tier {
    /// All of them, from the plant upwards.
    pub const ALL: [Self; 3] = [Self::Device, Self::Edge, Self::Cloud];

    /// Its name in commands and file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Edge => "edge",
            Self::Cloud => "cloud",
        }
    }

    /// Its commented settings, `config/<tier>.toml`.
    pub fn settings(self) -> &'static str {
        match self {
            Self::Device => include_str!("../../config/device.toml"),
            Self::Edge => include_str!("../../config/edge.toml"),
            Self::Cloud => include_str!("../../config/cloud.toml"),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
