//! What the canary story came to: a terminal table and JSON.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::AuditSummary;
use crate::ids::Version;

/// All that is told of a story.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoryReport {
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, or "unknown".
    pub commit: String,
    /// What learned, in a few words.
    pub model: String,
    /// Wall time from the first process on.
    pub seconds: f64,
    /// The version that an operator goes back to in the end.
    pub first: Version,
    /// The version that went over both sites in stages.
    pub good: Version,
    /// One entry for each stage that was passed.
    pub stages: Vec<StoryStage>,
    /// The version that was stopped.
    pub bad: StoryBad,
    /// An operator's rollbacks.
    pub orders: Vec<StoryOrder>,
    /// Answers that were heard at the brokers.
    pub answers: u64,
    /// Those that named no version.
    pub answers_without_version: u64,
    /// What the ledgers of edges and devices have of it.
    pub recorded: Vec<StoryEntry>,
    /// What they should have, and haven't.
    pub missing: Vec<String>,
    /// All ledgers.
    pub audit: AuditSummary,
}

/// A stage that a version has passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoryStage {
    /// The site.
    pub site: String,
    /// The version.
    pub version: Version,
    /// The stage.
    pub stage: String,
    /// Answers by which its gate was passed.
    pub answers: u64,
    /// Those that were none.
    pub errors: u64,
    /// Those with a label.
    pub judged: u64,
    /// Those that were wrong.
    pub wrong: u64,
    /// The same of the version before.
    pub base_judged: u64,
    /// The same of the version before.
    pub base_wrong: u64,
    /// From its beginning, or from the one before at the other site, to its promotion, milliseconds.
    pub ms: f64,
}

/// A version that was stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoryBad {
    /// The version.
    pub version: Version,
    /// The device that served it.
    pub canary: String,
    /// The stage in which it was halted, as the edge has recorded it.
    pub halted_at: String,
    /// The rule that broke.
    pub rule: String,
    /// Answers that the gate had seen then.
    pub answers: u64,
    /// Those with a label.
    pub judged: u64,
    /// Those that were wrong.
    pub wrong: u64,
    /// The same of the version before.
    pub base_judged: u64,
    /// The same of the version before.
    pub base_wrong: u64,
    /// Answers that a version needs to pass: it was to be found out by then.
    pub budget: u64,
    /// Answers by it that were heard.
    pub answers_on_the_wire: u64,
    /// Nodes that gave one.
    pub answered_by: Vec<String>,
    /// From its assignment to the halt, milliseconds.
    pub halted_after_ms: f64,
    /// From the halt to the canary's first answer by the version before, milliseconds.
    pub back_after_ms: f64,
}

/// A rollback that an operator ordered at some nodes at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoryOrder {
    /// The nodes.
    pub nodes: Vec<String>,
    /// From the order to the last reply, milliseconds.
    pub reply_ms: f64,
    /// From the order to the last first answer by the earlier version, milliseconds.
    pub answer_ms: f64,
    /// What that is to take at most.
    pub target_ms: u64,
}

/// An entry of a ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoryEntry {
    /// Whose.
    pub node: String,
    /// `rollback`, or what became of the stage.
    pub what: String,
    /// The version.
    pub version: Version,
    /// The stage, of a step.
    pub stage: String,
    /// The version that is served instead, of a rollback.
    pub to: Option<Version>,
    /// Why, of a rollback.
    pub why: String,
}

impl StoryEntry {
    /// A step of a rollout.
    pub fn step(node: &str, version: Version, stage: &str, what: &str) -> Self {
        let (node, what, stage) = (node.to_owned(), what.to_owned(), stage.to_owned());
        Self { node, what, version, stage, to: None, why: String::new() }
    }

    /// A rollback.
    pub fn rollback(node: &str, (from, to): (Version, Version), why: &str) -> Self {
        let (node, why) = (node.to_owned(), why.to_owned());
        let (what, stage) = ("rollback".to_owned(), String::new());
        Self { node, what, version: from, stage, to: Some(to), why }
    }

    /// Whether it tells of this way back.
    pub fn is_rollback(&self, from: Version, to: Version) -> bool {
        self.what == "rollback" && (self.version, self.to) == (from, Some(to))
    }

    /// Whether it is what is wanted; where that gives no reason, for any.
    pub fn is(&self, wanted: &Self) -> bool {
        let why = if wanted.why.is_empty() { String::new() } else { self.why.clone() };
        Self { why, ..self.clone() } == *wanted
    }
}

impl fmt::Display for StoryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, what, version, stage, to, why } = self;
        match to {
            Some(to) => write!(f, "{node}: rollback from {version} to {to} {why}"),
            None => write!(f, "{node}: version {version} {what} at {stage}"),
        }
    }
}

impl StoryReport {
    /// Whether it went as it is told: the bad version was stopped at its canary within its budget, nobody else ever served it, no
    /// answer was without a version, and the ledgers have all of it. How long things took isn't part of it.
    pub fn holds(&self) -> bool {
        let bad = &self.bad;
        let stopped = bad.halted_at == "canary" && bad.answers <= bad.budget;
        let alone = bad.answered_by == [bad.canary.clone()];
        let told = self.answers > 0 && self.answers_without_version == 0;
        stopped && alone && told && self.missing.is_empty() && self.audit.verified
    }
}

/// The story as JSON.
pub fn story_to_json(report: &StoryReport) -> Value {
    let mut value = json!(report);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("holds".to_owned(), json!(report.holds()));
    }
    value
}

/// The story as a table in plain text.
pub fn story_to_table(report: &StoryReport) -> String {
    let StoryReport { first, good, bad, .. } = report;
    let mut rows =
        vec![format!("gaisnet {} ({}), {}", report.version, report.commit, report.model)];
    rows.push(String::new());
    rows.push(format!(
        "  {:<34}{:>9}{:>16}{:>16}",
        "passed its gate", "answers", "wrong", "before: wrong"
    ));
    for stage in &report.stages {
        let of = |wrong: u64, judged: u64| format!("{wrong} of {judged}");
        rows.push(format!(
            "  {:<34}{:>9}{:>16}{:>16}",
            format!("version {}, {} {}", stage.version, stage.site, stage.stage),
            stage.answers,
            of(stage.wrong, stage.judged),
            of(stage.base_wrong, stage.base_judged),
        ));
    }
    rows.push(String::new());
    let mut row = |name: &str, value: String, target: String| {
        rows.push(format!("  {name:<52}{value:>17}{target:>12}"));
    };
    row(
        &format!("version {}, made from wrong labels", bad.version),
        String::new(),
        "target".to_owned(),
    );
    row("  halted by its gate at the", bad.halted_at.clone(), "canary".to_owned());
    row("  rule that broke", bad.rule.clone(), String::new());
    row("  answers that took", bad.answers.to_string(), format!("<= {}", bad.budget));
    row("    of those wrong", format!("{} of {}", bad.wrong, bad.judged), String::new());
    row(
        &format!("    of version {good} wrong on the same windows"),
        format!("{} of {}", bad.base_wrong, bad.base_judged),
        String::new(),
    );
    row("  answers by it that were heard", bad.answers_on_the_wire.to_string(), String::new());
    row("  nodes that gave one", bad.answered_by.join(" "), bad.canary.clone());
    row("  from its assignment to the halt, s", in_seconds(bad.halted_after_ms), String::new());
    let target = |ms: u64| format!("<= {}", ms / 1_000);
    row(
        &format!("  from the halt to the first answer by version {good}, s"),
        in_seconds(bad.back_after_ms),
        target(5_000),
    );
    for order in &report.orders {
        row(
            &format!("order to go back to version {first}: {}", order.nodes.join(" ")),
            String::new(),
            String::new(),
        );
        row("  last reply, s", in_seconds(order.reply_ms), target(order.target_ms));
        row("  last first answer by it, s", in_seconds(order.answer_ms), target(order.target_ms));
    }
    row("answers heard", report.answers.to_string(), String::new());
    row("  without a version", report.answers_without_version.to_string(), "0".to_owned());
    let rollbacks = report.recorded.iter().filter(|entry| entry.to.is_some()).count();
    let steps = report.recorded.len() - rollbacks;
    row("entries rollout_step in ledgers", steps.to_string(), String::new());
    row("entries rollback in ledgers", rollbacks.to_string(), String::new());
    row("  missing", report.missing.len().to_string(), "0".to_owned());
    row("audit entries", report.audit.entries.to_string(), String::new());
    row(
        "audit verified",
        if report.audit.verified { "yes" } else { "NO" }.to_owned(),
        "yes".to_owned(),
    );
    row("seconds in all", format!("{:.0}", report.seconds), String::new());
    for missing in &report.missing {
        rows.push(format!("  MISSING {missing}"));
    }
    rows.push(String::new());
    rows.join("\n")
}

fn in_seconds(ms: f64) -> String {
    format!("{:.2}", ms / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> StoryReport {
        let stage = StoryStage {
            site: "north".into(),
            version: 6,
            stage: "canary".into(),
            answers: 64,
            errors: 0,
            judged: 60,
            wrong: 2,
            base_judged: 60,
            base_wrong: 9,
            ms: 13_100.0,
        };
        let bad = StoryBad {
            version: 9,
            canary: "p1".into(),
            halted_at: "canary".into(),
            rule: "worse".into(),
            answers: 17,
            judged: 17,
            wrong: 16,
            base_judged: 16,
            base_wrong: 1,
            budget: 64,
            answers_on_the_wire: 19,
            answered_by: vec!["p1".into()],
            halted_after_ms: 4_020.0,
            back_after_ms: 180.0,
        };
        let order = StoryOrder {
            nodes: vec!["p2".into()],
            reply_ms: 20.0,
            answer_ms: 210.0,
            target_ms: 5_000,
        };
        StoryReport {
            version: "0.1.0".into(),
            commit: "aae5a19".into(),
            model: "softmax regression on spectra".into(),
            seconds: 112.4,
            first: 3,
            good: 6,
            stages: vec![stage],
            bad,
            orders: vec![order],
            answers: 1_900,
            answers_without_version: 0,
            recorded: vec![StoryEntry::rollback("p1", (9, 6), "assigned")],
            missing: Vec::new(),
            audit: AuditSummary { entries: 700, verified: true },
        }
    }

    #[test]
    fn a_story_holds_only_if_all_of_it_does() {
        assert!(sample().holds());
        let changes: [fn(&mut StoryReport); 7] = [
            |report| report.bad.halted_at = "site".into(),
            |report| report.bad.answers = 65,
            |report| report.bad.answered_by.push("p2".into()),
            |report| report.answers_without_version = 1,
            |report| report.answers = 0,
            |report| report.missing.push("p1: no rollback".into()),
            |report| report.audit.verified = false,
        ];
        for change in changes {
            let mut report = sample();
            change(&mut report);
            assert!(!report.holds(), "{report:?}");
        }
        assert_eq!(story_to_json(&sample())["holds"], true);
    }

    #[test]
    fn the_table_tells_figures_beside_their_targets() {
        let table = story_to_table(&sample());
        for words in
            [["answers that took", "17", "<= 64"], ["first answer by version 6, s", "0.18", "<= 5"]]
        {
            let row = table.lines().find(|line| line.contains(words[0])).unwrap();
            assert!(words.iter().all(|word| row.contains(word)), "{row}");
        }
        assert!(table.contains("version 6, north canary") && table.contains("2 of 60"), "{table}");
    }

    #[test]
    fn an_entry_without_a_reason_is_found_with_any() {
        let wanted = StoryEntry::rollback("edge", (9, 6), "");
        assert!(StoryEntry::rollback("edge", (9, 6), "worse").is(&wanted));
        assert!(!StoryEntry::rollback("edge", (9, 5), "worse").is(&wanted));
        assert!(!StoryEntry::step("edge", 9, "canary", "halted").is(&wanted));
    }
}
