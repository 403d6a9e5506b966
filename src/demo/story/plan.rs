//! The plans that the story proposes: the same stages and gates for the good version and the bad one.

use serde_json::{Value, json};

use super::super::plant::{PLACES, Place};
use crate::ids::Version;
use crate::protocol::rollout::Stage;
use crate::settings::Tier;

/// A site with its devices: the first is its canary, the second answers in the shadow.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) edge: &'static Place,
    pub(super) devices: Vec<&'static Place>,
}

impl Site {
    /// Those of the pilot.
    pub(super) fn all() -> Vec<Self> {
        let edges = PLACES.iter().filter(|place| place.tier == Tier::Edge);
        edges.map(|edge| Self { edge, devices: edge.children().collect() }).collect()
    }

    /// Its canary.
    pub(super) fn canary(&self) -> Option<&'static Place> {
        self.devices.first().copied()
    }

    /// The node in whose shadow a version answers first.
    pub(super) fn shadow(&self) -> Option<&'static Place> {
        self.devices.get(1).copied()
    }

    /// A plan's file: this version over these stages, each with the same gate in every plan.
    pub(super) fn plan(&self, version: Version, stages: &[Stage]) -> Value {
        let stages: Vec<Value> = stages.iter().map(|stage| self.stage(*stage)).collect();
        json!({"model": MODEL, "version": version, "automatic": false, "stages": stages})
    }

    fn stage(&self, stage: Stage) -> Value {
        let one = |place: Option<&'static Place>| place.map(|place| vec![place.name]);
        // An edge answers too, if anybody asks it.
        let all = || self.devices.iter().chain([&self.edge]).map(|place| place.name).collect();
        let (nodes, least_answers, max_worse) = match stage {
            Stage::Shadow => (one(self.shadow()), 32, None),
            Stage::Canary => (one(self.canary()), BUDGET, Some(0.3)),
            _ => (Some(all()), 64, None),
        };
        let mut gate = json!({
            "least_answers": least_answers, "least_nodes": 1, "least_ms": 1_000, "most_ms": 900_000, "delta": 0.1,
            "max_errors": 0.2,
            "expected": {"answers": 2_000, "judged": 1_000, "base_judged": 1_000},
        });
        if let (Some(gate), Some(most)) = (gate.as_object_mut(), max_worse) {
            gate.insert("max_worse".to_owned(), json!(most));
        }
        json!({"stage": stage.as_str(), "nodes": nodes, "gate": gate})
    }
}

/// The pilot's model.
pub(super) const MODEL: &str = "bearing";
/// Answers that a version has to give before its canary can pass: a bad one is to be found out by then.
pub(super) const BUDGET: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;
    use crate::protocol::rollout::Plan;

    #[test]
    fn each_plan_is_one_that_can_be_read_and_met() {
        for site in Site::all() {
            let told = site.plan(4, &[Stage::Shadow, Stage::Canary, Stage::Site]);
            let model = Name::new(MODEL).unwrap();
            let plan = Plan::read(model, 4, false, &told["stages"]).unwrap();
            for stage in &plan.stages {
                assert_eq!(stage.gate.check(), Ok(()));
                assert_eq!(stage.gate.cannot_be_met(), None, "{:?}", stage.stage);
            }
        }
    }
}
