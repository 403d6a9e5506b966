//! What is wrong with the settings: all of it at once, each by the name of its key.

use std::fmt;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, `round.quorum` say; a file's name where the file as a whole is the problem.
    pub key: String,
    /// Where the value came from.
    pub origin: String,
    /// What was found and what is expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (from {})", self.key, self.message, self.origin)
    }
}

/// The settings can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", list(problems))]
pub struct SettingsError {
    /// Everything that is wrong, sorted by key. Never empty.
    pub problems: Vec<Problem>,
}

impl SettingsError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        "settings"
    }
}

fn list(problems: &[Problem]) -> String {
    let mut text = match problems.len() {
        1 => "1 problem in the settings:".to_owned(),
        n => format!("{n} problems in the settings:"),
    };
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}
