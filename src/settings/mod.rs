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

mod cascade;
mod check;
mod feedback;
mod keys;
mod layers;
mod learning;
mod problem;
mod rollout;
mod schedule;
mod schema;
mod tier;

pub use cascade::{CascadeSettings, WhileUncalibrated, WithoutReply};
pub use feedback::{DriftSettings, FeedbackSettings, TriggerName};
pub use layers::{Layers, Loaded, Origin};
pub use learning::{
    AdapterSettings, Compression, Contribute, DataSettings, KnowledgeSettings, LearnerName,
    MergingName, ModelSettings, PrivacyProfile, PrivacySettings, RoundSettings, Schedule,
    SplitCodingName, SplitLabels, SplitSettings, SplitVersion, StrategyName, StrategySettings,
    TagBinds, TagFormat, TagSettings,
};
pub use problem::{Problem, SettingsError};
pub use rollout::{FreezeSettings, RolloutSettings};
pub use schedule::{ScheduleSettings, WindowSettings};
pub use schema::{
    BusSettings, CommandSettings, LimitSettings, LinkSettings, LogFormat, NodeRole, NodeSettings,
    PathSettings, Settings, TelemetrySettings, TlsSettings,
};
pub use tier::Tier;

/// Settings that all nodes of the pilot share; a layer for the demo.
pub const PILOT: &str = include_str!("../../config/pilot.toml");

/// Whole pilots to start from, one a kind of plant problem: name and TOML. Each has all that a node needs
/// but its own name, site and parent.
pub const TEMPLATES: [(&str, &str); 3] = [
    ("maintenance-text", include_str!("../../config/templates/maintenance-text.toml")),
    ("vibration", include_str!("../../config/templates/vibration.toml")),
    ("tabular-quality", include_str!("../../config/templates/tabular-quality.toml")),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, more: &[&str]) -> Settings {
        let mut layers = Layers::new();
        layers.text("template", text);
        for assignment in more {
            layers.set(assignment);
        }
        layers.load().into_settings().unwrap()
    }

    #[test]
    fn each_template_is_good_for_each_tier_of_its_pilot() {
        for (name, text) in TEMPLATES {
            let device = ["node.name=d", "node.site=north", "node.parent=edge"];
            let settings = with(text, &device);
            assert!(settings.node.has(NodeRole::Trainer), "{name}");
            let edge = ["node.name=e", "node.site=north", "node.parent=cloud"];
            with(text, &[&edge[..], &["node.roles=relay,inferencer"]].concat());
            let cloud = ["node.name=c", "node.site=_", "node.roles=aggregator,inferencer"];
            with(text, &cloud);
        }
    }

    #[test]
    fn what_is_off_in_a_template_is_good_when_it_is_switched_on() {
        for (name, text) in TEMPLATES {
            // A device has no second broker.
            let (before, rest) = text.split_once("# [bus.parent]").unwrap();
            let (_, after) = rest.split_once("\n\n").unwrap();
            let mut on = String::new();
            for line in before.lines().chain(after.lines()) {
                on.extend([line.strip_prefix("# ").unwrap_or(line), "\n"]);
            }
            let mut layers = Layers::new();
            layers.text(name, &on);
            let loaded = layers.load();
            assert!(loaded.settings().is_ok(), "{name}: {:?}", loaded.settings());
            assert!(on.contains("\nparent = "), "{name}");
        }
    }

    #[test]
    fn a_template_says_what_must_be_changed_and_how_private_it_is() {
        for (name, text) in TEMPLATES {
            assert!(text.matches("CHANGE").count() >= 4, "{name}");
            assert!(text.contains("[privacy]\n## "), "{name} doesn't explain its profile");
        }
    }

    #[test]
    fn the_standard_profile_lets_the_smallest_machine_of_the_orders_take_part() {
        let (_, text) = TEMPLATES[0];
        let settings = with(text, &["node.name=a", "node.site=north", "node.parent=edge"]);
        assert_eq!(settings.privacy.profile, PrivacyProfile::Standard);
        let gate = crate::privacy::Gate::from(crate::privacy::Profile::Standard);
        assert_eq!(gate.allows_update(settings.strategy.local_steps, 120), Ok(()));
        let strict = crate::privacy::Gate::from(crate::privacy::Profile::Strict);
        assert!(strict.allows_update(settings.strategy.local_steps, 120).is_err());
    }
}
