//! Which kind of rounds suits a federation: its rounds are of one kind for all, whatever would suit a single member best.

use serde_json::{Value, json};

use super::show::{Planned, named, word};
use crate::ids::NodeId;
use crate::learn::Way;

/// A kind of rounds, and who could take part in them.
#[derive(Debug, Clone)]
pub(super) struct Kind<'a> {
    /// What it asks for; the whole adapter stands for one in parts, too.
    way: Way,
    members: Vec<&'a NodeId>,
    others: Vec<&'a NodeId>,
}

/// The kinds that somebody could take part in, the one for most members first; of equals the one that says most.
pub(super) fn kinds(planned: &[Planned]) -> Vec<Kind<'_>> {
    let kind = |way| {
        let can = |planned: &&Planned| {
            let mut ways = planned.proposal.considered.iter();
            ways.any(|considered| {
                let split = way == Way::Whole && matches!(considered.way, Way::Split { .. });
                (considered.way == way || split) && considered.obstacles.is_empty()
            })
        };
        let (members, others): (Vec<_>, Vec<_>) = planned.iter().partition(can);
        Kind { way, members: names(&members), others: names(&others) }
    };
    let mut kinds = [Way::Whole, Way::ReferenceLogits, Way::ClassLogits].map(kind).to_vec();
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
        let name = match self.way {
            Way::Whole => "adapters, whole or split".to_owned(),
            way => named(way),
        };
        format!("{name}: {}{without}", names(&self.members))
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let word = if self.way == Way::Whole { "adapters" } else { word(self.way) };
        json!({ "kind": word, "members": self.members, "without": self.others })
    }
}
