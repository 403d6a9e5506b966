//! What the story hears at the brokers: who answers by which version, what edges assign, what nodes reply; and when.
//! Pure; it believes what it reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::heard::{Counts, News};
use super::super::plant::{PREFIX, place_of};
use crate::ids::{NodeId, Version};
use crate::topic::{self, Leaf, Prefix};
use crate::wire::{Body, Kind, Tally};

/// See the module. Moments are microseconds of the demo's clock.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// What every demo counts.
    pub(super) counts: Counts,
    /// Answers of all nodes.
    pub(super) answers: u64,
    /// Those that name no version.
    pub(super) without_version: u64,
    /// The newest version that the cloud has published.
    pub(super) newest: Version,
    runs: BTreeMap<&'static str, Vec<Run>>,
    assigned: BTreeMap<&'static str, Vec<Assigned>>,
    seen: BTreeMap<(&'static str, u64), Tally>,
    replies: BTreeMap<(&'static str, String), Reply>,
}

/// Answers of a node one after the other by the same version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) version: Version,
    /// When the first one came.
    pub(super) from: u64,
    pub(super) answers: u64,
}

/// Who serves what, as an edge has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) at: u64,
    pub(super) serial: u64,
    pub(super) stable: Version,
    pub(super) candidate: Option<Version>,
    pub(super) serve: BTreeSet<NodeId>,
}

/// What a node replied to a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    pub(super) at: u64,
    pub(super) said: Value,
}

impl Reply {
    /// Why the command wasn't carried out: a short word, and what the node says of it.
    pub(super) fn problem(&self) -> Option<(String, String)> {
        let error = self.said.get("error")?.as_object()?;
        let text =
            |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some((text("kind"), format!("{}; {}", text("message"), text("hint"))))
    }
}

impl Wire {
    /// Nothing was heard yet, in the federation that `counts` knows the keys of.
    pub(super) fn new(counts: Counts) -> Self {
        Self { counts, ..Self::default() }
    }

    /// Takes a message that `site`'s broker passed on at `at`.
    pub(super) fn hear(
        &mut self,
        at: u64,
        site: &str,
        topic: &str,
        payload: &[u8],
        retained: bool,
    ) {
        if let Some(News::Out { version, .. }) = self.counts.hear(site, topic, payload, retained) {
            self.newest = self.newest.max(version);
        }
        let Some(parsed) = Prefix::new(PREFIX).ok().and_then(|prefix| topic::parse(&prefix, topic))
        else {
            return;
        };
        let Some(place) = place_of(parsed.branch.node.as_str()) else { return };
        match parsed.leaf {
            Leaf::Inference(_) if !retained => self.answered(place.name, at, payload),
            Leaf::Reply(command) if !retained => {
                if let Ok(said) = serde_json::from_slice(payload) {
                    self.replies.insert((place.name, command.to_string()), Reply { at, said });
                }
            }
            Leaf::Machine(kind) if kind.as_str() == Kind::Assignment.as_str() => {
                self.assigned(place.name, at, payload);
            }
            Leaf::To(_, kind) if kind.as_str() == Kind::Evidence.as_str() => {
                if let Some((_, Body::Evidence(told))) = self.counts.read(Kind::Evidence, payload) {
                    let seen = self.seen.entry((place.name, told.serial)).or_default();
                    *seen = seen.later(told.tally);
                }
            }
            _ => {}
        }
    }

    /// The version by which a node gave its last answers.
    pub(super) fn last_run(&self, node: &str) -> Option<Run> {
        self.runs.get(node).and_then(|runs| runs.last()).copied()
    }

    /// Answers of a node by a version.
    pub(super) fn answers_by(&self, node: &str, version: Version) -> u64 {
        let runs = self.runs.get(node).into_iter().flatten();
        runs.filter(|run| run.version == version).map(|run| run.answers).sum()
    }

    /// The nodes that gave an answer by a version.
    pub(super) fn who_answered_by(&self, version: Version) -> Vec<&'static str> {
        let nodes = self.runs.keys().copied();
        nodes.filter(|node| self.answers_by(node, version) > 0).collect()
    }

    /// What an edge has said last about who serves what.
    pub(super) fn last_assigned(&self, edge: &str) -> Option<&Assigned> {
        self.assigned.get(edge).and_then(|all| all.last())
    }

    /// The first that it has said after the one of this serial.
    pub(super) fn assigned_after(&self, edge: &str, serial: u64) -> Option<&Assigned> {
        self.assigned.get(edge)?.iter().find(|told| told.serial > serial)
    }

    /// What a node told last of the assignment of this serial.
    pub(super) fn seen_by(&self, node: &'static str, serial: u64) -> Tally {
        self.seen.get(&(node, serial)).copied().unwrap_or_default()
    }

    /// A node's reply to a command.
    pub(super) fn reply(&self, node: &'static str, command: &str) -> Option<&Reply> {
        self.replies.get(&(node, command.to_owned()))
    }

    /// The command is given anew: what was replied before is no reply to it.
    pub(super) fn forget_reply(&mut self, node: &'static str, command: &str) {
        self.replies.remove(&(node, command.to_owned()));
    }

    fn answered(&mut self, node: &'static str, at: u64, payload: &[u8]) {
        self.answers += 1;
        let answer: Value = serde_json::from_slice(payload).unwrap_or_default();
        let Some(version) = answer.get("model_version").and_then(Value::as_u64) else {
            self.without_version += 1;
            return;
        };
        let runs = self.runs.entry(node).or_default();
        match runs.last_mut().filter(|run| run.version == version) {
            Some(run) => run.answers += 1,
            None => runs.push(Run { version, from: at, answers: 1 }),
        }
    }

    fn assigned(&mut self, edge: &'static str, at: u64, payload: &[u8]) {
        let Some((_, Body::Assignment(told))) = self.counts.read(Kind::Assignment, payload) else {
            return;
        };
        let all = self.assigned.entry(edge).or_default();
        if all.last().is_none_or(|last| last.serial < told.serial) {
            let candidate = told.candidate.as_ref().map(|candidate| candidate.version);
            let serve = told.candidate.map(|candidate| candidate.serve).unwrap_or_default();
            all.push(Assigned { at, serial: told.serial, stable: told.stable, candidate, serve });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P1: &str = "gaisnet/v1/north/bearings/p1";

    #[test]
    fn answers_are_told_apart_by_their_version_and_one_without_is_counted() {
        let mut wire = Wire::default();
        let topic = format!("{P1}/inference/bearing");
        for (at, version) in [(10, 3), (20, 3), (30, 4), (40, 3)] {
            let answer = format!("{{\"label\":\"outer\",\"model_version\":{version}}}");
            wire.hear(at, "north", &topic, answer.as_bytes(), false);
        }
        wire.hear(50, "north", &topic, b"{\"label\":\"outer\"}", false);
        wire.hear(60, "north", &topic, b"{\"model_version\":9}", true);
        assert_eq!((wire.answers, wire.without_version), (5, 1));
        assert_eq!((wire.answers_by("p1", 3), wire.answers_by("p1", 4)), (3, 1));
        assert_eq!(wire.last_run("p1"), Some(Run { version: 3, from: 40, answers: 1 }));
        assert_eq!((wire.who_answered_by(4), wire.who_answered_by(9)), (vec!["p1"], vec![]));
    }

    #[test]
    fn a_reply_is_that_to_the_last_command_and_says_what_was_wrong() {
        let mut wire = Wire::default();
        let topic = format!("{P1}/reply/rollback");
        let refused =
            br#"{"status":"error","error":{"kind":"nothing_before","message":"no","hint":"wait"}}"#;
        wire.hear(10, "north", &topic, refused, false);
        let problem = wire.reply("p1", "rollback").unwrap().problem().unwrap();
        assert_eq!(problem, ("nothing_before".to_owned(), "no; wait".to_owned()));
        wire.forget_reply("p1", "rollback");
        assert_eq!(wire.reply("p1", "rollback"), None);
        wire.hear(20, "north", &topic, br#"{"status":"ok","error":null}"#, false);
        assert_eq!(wire.reply("p1", "rollback").unwrap().problem(), None);
    }
}
