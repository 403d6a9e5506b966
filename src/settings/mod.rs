//! What a node is told before it starts, in layers; the later one wins.
//!
//! ```text
//! config/default.toml < config/<tier>.toml < --config FILE < GAISNET__SECTION__KEY < --set key=value
//! ```
//! [`Layers`] collects them, [`Layers::load`] merges and checks them against the table of keys, and
//! [`Loaded`] holds typed [`Settings`], or every problem at once, and where each value came from.
//! Default and tier files are built into the program.
//!
//! No secret is a setting: a setting names the file that holds it. Called by `cli/` and `node/`.

mod check;
mod keys;
mod layers;
mod learning;
mod problem;
mod schema;
mod tier;

pub use layers::{Layers, Loaded, Origin};
pub use learning::{
    Compression, Contribute, DataSettings, LearnerName, ModelSettings, PrivacyProfile,
    PrivacySettings, RoundSettings, Schedule, StrategyName, StrategySettings, TagBinds, TagFormat,
    TagSettings,
};
pub use problem::{Problem, SettingsError};
pub use schema::{
    BusSettings, CommandSettings, LimitSettings, LinkSettings, LogFormat, NodeRole, NodeSettings,
    PathSettings, Settings, TelemetrySettings, TlsSettings,
};
pub use tier::Tier;

/// Settings that all nodes of the pilot share; a layer for the demo.
pub const PILOT: &str = include_str!("../../config/pilot.toml");
