//! The arguments that say which settings to use, the same for every command.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::settings::{Layers, Tier};

/// Layers that are named on the command line.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingsArgs {
    /// Start from the settings of a tier
    #[arg(long, global = true, value_enum)]
    tier: Option<TierArg>,
    /// Settings of this node, a TOML file
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Change one setting; may be repeated, wins over everything else
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE")]
    assignments: Vec<String>,
}

/// The tiers as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TierArg {
    /// Holds data, trains and answers
    Device,
    /// Relays between a site's devices and the cloud
    Edge,
    /// Owns the rounds
    Cloud,
}

impl From<TierArg> for Tier {
    fn from(tier: TierArg) -> Self {
        match tier {
            TierArg::Device => Self::Device,
            TierArg::Edge => Self::Edge,
            TierArg::Cloud => Self::Cloud,
        }
    }
}

impl SettingsArgs {
    /// The layers in their order, with this process's environment.
    pub fn layers(&self) -> Layers {
        let vars = std::env::vars_os();
        let vars = vars.filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        });
        self.layers_with(vars)
    }

    fn layers_with(&self, vars: impl IntoIterator<Item = (String, String)>) -> Layers {
        let mut layers = Layers::new();
        if let Some(tier) = self.tier {
            layers.tier(tier.into());
        }
        if let Some(file) = &self.config {
            layers.file(file);
        }
        layers.environment(vars);
        for assignment in &self.assignments {
            layers.set(assignment);
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_win_over_the_environment_and_that_over_the_tier() {
        let args = SettingsArgs {
            tier: Some(TierArg::Cloud),
            config: None,
            assignments: vec!["node.name=c".to_owned(), "round.rounds=3".to_owned()],
        };
        let vars = [("GAISNET__ROUND__ROUNDS", "4"), ("GAISNET__ROUND__PAUSE_S", "5")];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = args.layers_with(vars).load().into_settings().unwrap();
        assert_eq!((settings.round.rounds, settings.round.pause_s), (3, 5));
        assert_eq!(settings.node.site.as_str(), "_");
    }
}
