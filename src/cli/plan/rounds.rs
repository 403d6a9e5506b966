//! Which kind of rounds suits a federation: its rounds are of one kind for all, whatever would suit a single member best.

use serde_json::{Value, json};

use super::show::Planned;
use crate::ids::NodeId;
use crate::learn::Way;

/// A kind of rounds, and who could take part in them.
#[derive(Debug)]
pub(super) struct Kind<'a> {
    name: &'static str,
    members: Vec<&'a NodeId>,
    others: Vec<&'a NodeId>,
}

const ADAPTERS: &str = "adapters, whole or split";
const REFERENCE_LOGITS: &str = "logits of reference inputs";
const CLASS_LOGITS: &str = "mean logits a class";

/// The kinds that somebody could take part in, the one for most members first; of equals the one that says most.
pub(super) fn kinds(planned: &[Planned]) -> Vec<Kind<'_>> {
    let kind = |name, is_of: fn(Way) -> bool| {
        let can = |planned: &&Planned| {
            let mut ways = planned.proposal.considered.iter();
            ways.any(|considered| is_of(considered.way) && considered.obstacles.is_empty())
        };
        let (members, others): (Vec<_>, Vec<_>) = planned.iter().partition(can);
        Kind { name, members: names(&members), others: names(&others) }
    };
    let mut kinds = vec![
        kind(ADAPTERS, |way| matches!(way, Way::Whole | Way::Split { .. })),
        kind(REFERENCE_LOGITS, |way| way == Way::ReferenceLogits),
        kind(CLASS_LOGITS, |way| way == Way::ClassLogits),
    ];
    kinds.retain(|kind| !kind.members.is_empty());
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.members.len()));
    kinds
}

fn names<'a>(planned: &[&'a Planned]) -> Vec<&'a NodeId> {
    planned.iter().map(|planned| &planned.name).collect()
}

impl Kind<'_> {
    /// A line for people.
    pub(super) fn told(&self) -> String {
        let names =
            |all: &[&NodeId]| all.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let without = match self.others.as_slice() {
            [] => String::new(),
            others => format!("; without {}", names(others)),
        };
        format!("{}: {}{without}", self.name, names(&self.members))
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let word = match self.name {
            ADAPTERS => "adapters",
            REFERENCE_LOGITS => "reference_logits",
            _ => "class_logits",
        };
        json!({ "kind": word, "members": self.members, "without": self.others })
    }
}
