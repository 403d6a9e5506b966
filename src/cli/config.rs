//! `gaisnet config`: what is set, by whom, and whether it is right.

use std::io::Write;

use clap::{Args, Subcommand};

use super::{Exit, SettingsArgs};

/// Arguments of `gaisnet config`.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print all settings and where each value came from
    #[command(after_help = PRINT_HELP)]
    Print {
        /// One JSON object in place of TOML
        #[arg(long)]
        json: bool,
    },
    /// Check all settings, report every problem at once
    #[command(after_help = CHECK_HELP)]
    Check,
}

/// Runs `gaisnet config`.
pub(super) fn run(
    args: &ConfigArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let loaded = settings.layers().load();
    match args.command {
        ConfigCommand::Print { json: true } => {
            let origins: serde_json::Map<String, serde_json::Value> = loaded
                .values()
                .map(|(key, _, origin)| (key.to_owned(), origin.to_string().into()))
                .collect();
            let settings = loaded.settings().ok();
            let shown = serde_json::json!({ "settings": settings, "origins": origins });
            writeln!(out, "{shown:#}")?;
        }
        ConfigCommand::Print { json: false } => {
            for (key, value, origin) in loaded.values() {
                // An array of tables can't be written as dotted keys: as a comment.
                let mark = if key.contains('[') { "# " } else { "" };
                let line = format!("{mark}{key} = {value}");
                writeln!(out, "{line:<56} # {origin}")?;
            }
        }
        ConfigCommand::Check => {
            let settings = loaded.settings().map_err(Clone::clone)?;
            writeln!(out, "settings of {} are good", settings.node.branch())?;
        }
    }
    loaded.into_settings()?;
    Ok(Exit::Ok)
}

const PRINT_HELP: &str = "\
Examples:
  gaisnet config print --tier edge
  gaisnet config print --config gaisnet.toml --json | jq .settings.round

What is printed is TOML; values that are wrong are printed too, and reported on standard error.";

const CHECK_HELP: &str = "\
Example:
  gaisnet config check --config gaisnet.toml && systemctl restart gaisnet";

#[cfg(test)]
mod tests {
    use super::super::tests::gaisnet;
    use super::*;
    use crate::settings::{Layers, SettingsError};

    const GOOD: [&str; 6] =
        ["--tier", "cloud", "--set", "node.name=cloud", "--set", "round.quorum=0.75"];

    #[test]
    fn print_tells_values_and_origins_and_can_be_read_back() {
        let (exit, text) = gaisnet(&[&["config", "print"], &GOOD[..]].concat());
        assert_eq!(exit.unwrap(), Exit::Ok);
        let line = text.lines().find(|line| line.starts_with("round.quorum")).unwrap();
        assert!(line.starts_with("round.quorum = 0.75 ") && line.ends_with("# --set"), "{line}");
        let mut again = Layers::new();
        again.text("printed", &text);
        let quorum = again.load().into_settings().unwrap().round.quorum;
        assert!((quorum - 0.75).abs() < f64::EPSILON);
    }

    #[test]
    fn print_json_has_typed_settings_and_origins() {
        let (exit, text) = gaisnet(&[&["config", "print", "--json"], &GOOD[..]].concat());
        assert_eq!(exit.unwrap(), Exit::Ok);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["settings"]["round"]["quorum"], 0.75);
        assert_eq!(json["origins"]["round.quorum"], "--set");
        assert_eq!(json["origins"]["node.site"], "cloud");
    }

    #[test]
    fn wrong_settings_are_printed_and_then_refused() {
        let (exit, text) = gaisnet(&["config", "print", "--set", "round.quorum=7"]);
        assert!(text.contains("round.quorum = 7"), "{text}");
        let error = exit.unwrap_err().downcast::<SettingsError>().unwrap();
        assert_eq!(error.problems.len(), 3);
        let (exit, text) = gaisnet(&["config", "check", "--set", "round.quorum=7"]);
        assert!(exit.is_err() && text.is_empty());
    }

    #[test]
    fn check_says_whose_settings_are_good() {
        let (exit, text) = gaisnet(&[&["config", "check"], &GOOD[..]].concat());
        assert_eq!(exit.unwrap(), Exit::Ok);
        assert_eq!(text, "settings of gaisnet/v1/_/_/cloud are good\n");
    }
}
