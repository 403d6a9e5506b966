//! `gaisnet doctor`: what would keep this node from working, and what to do about it.
//!
//! Each check stands for itself; a failed one doesn't stop the others. `local.rs` looks at this
//! machine, `broker.rs` at the brokers, through `probe.rs`.

mod broker;
mod local;
mod probe;
mod stream;

use std::io::Write;

use clap::Args;
use serde::Serialize;

use super::{Exit, SettingsArgs};
use crate::settings::{LinkSettings, Settings};

/// Arguments of `gaisnet doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// One JSON array in place of a table
    #[arg(long)]
    json: bool,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at.
    name: String,
    /// Whether the node can work with it.
    ok: bool,
    /// What was found.
    found: String,
    /// What to do; also where something works that could be better.
    what_to_do: Option<String>,
}

impl Check {
    fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), ok: true, found: found.into(), what_to_do: None }
    }

    fn bad(
        name: impl Into<String>,
        found: impl Into<String>,
        what_to_do: impl Into<String>,
    ) -> Self {
        let what_to_do = Some(what_to_do.into());
        Self { name: name.into(), ok: false, found: found.into(), what_to_do }
    }

    fn advise(mut self, what_to_do: impl Into<String>) -> Self {
        self.what_to_do = Some(what_to_do.into());
        self
    }
}

/// Runs `gaisnet doctor`.
pub(super) fn run(
    args: &DoctorArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let checks = match settings.layers().load().into_settings() {
        Ok(settings) => {
            let good = Check::good("settings", format!("good, of {}", settings.node.branch()));
            [vec![good], examine(&settings)].concat()
        }
        Err(error) => {
            let advice = "correct these keys; `gaisnet config print` shows where they come from";
            let problems = error.problems.iter();
            problems.map(|problem| Check::bad("settings", problem.to_string(), advice)).collect()
        }
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&checks)?)?;
    } else {
        print_table(&checks, out)?;
    }
    let all_good = checks.iter().all(|check| check.ok);
    Ok(if all_good { Exit::Ok } else { Exit::Refused })
}

fn examine(settings: &Settings) -> Vec<Check> {
    let mut checks = local::examine(settings);
    let links =
        [("bus.site", Some(&settings.bus.site)), ("bus.parent", settings.bus.parent.as_ref())];
    for (name, link) in links {
        if let Some(link) = link {
            checks.extend(broker::examine(name, link, settings));
        }
    }
    checks
}

fn print_table(checks: &[Check], out: &mut dyn Write) -> std::io::Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let verdict = if check.ok { "ok  " } else { "FAIL" };
        writeln!(out, "{verdict}  {:width$}  {}", check.name, check.found)?;
        if let Some(what_to_do) = &check.what_to_do {
            writeln!(out, "      {:width$}  -> {what_to_do}", "")?;
        }
    }
    let failed = checks.iter().filter(|check| !check.ok).count();
    writeln!(out, "{} checks, {failed} failed", checks.len())
}

/// The broker's address as people write it.
fn address(link: &LinkSettings) -> String {
    format!("{}:{}", link.host, link.port)
}

/// Examples for `--help`.
pub(super) const HELP: &str = "\
Examples:
  gaisnet doctor --config gaisnet.toml
  gaisnet doctor --config gaisnet.toml --json | jq '.[] | select(.ok | not)'

Ends with 3 when a check failed. On the broker it connects under a client id of its own and writes
to <branch>/event/doctor only.";

#[cfg(test)]
mod tests {
    use super::super::tests::gaisnet;
    use super::*;

    #[test]
    fn wrong_settings_are_one_failed_check_a_problem() {
        let (exit, text) = gaisnet(&["doctor", "--json", "--set", "round.quorum=7"]);
        assert_eq!(exit.unwrap(), Exit::Refused);
        let checks: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(checks.as_array().unwrap().len(), 3);
        assert_eq!(checks[2]["name"], "settings");
        assert_eq!(checks[2]["ok"], false);
        assert!(checks[2]["found"].as_str().unwrap().starts_with("round.quorum: found 7"));
        assert!(checks[2]["what_to_do"].is_string());
    }

    #[test]
    fn the_table_has_a_line_for_what_was_found_and_one_for_what_to_do() {
        let mut out = Vec::new();
        let checks = [Check::good("disk", "20 GB free"), Check::bad("clock", "1970", "set it")];
        print_table(&checks, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = "ok    disk   20 GB free\nFAIL  clock  1970\n             -> set it\n\
                        2 checks, 1 failed\n";
        assert_eq!(text, expected);
    }
}
