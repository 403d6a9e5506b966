//! What a run came to.

use serde::Serialize;

use super::broken::Broken;
use super::figures::Figures;
use super::scenario::Scenario;
use super::world::World;
use crate::ids::Digest;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// Devices.
    pub devices: u32,
    /// SHA-256 over everything that was sent: equal runs have equal ones.
    pub trace: Digest,
    /// What it counted.
    pub figures: Figures,
    /// The invariant that is broken, if one is: the run ended there.
    pub violation: Option<Violation>,
}

/// An invariant that is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Its name.
    pub invariant: String,
    /// What was seen.
    pub what: String,
    /// The step of all machines, from 1, in which it was seen first.
    pub step: u64,
    /// Virtual time in milliseconds.
    pub at_ms: u64,
}

impl Outcome {
    /// What tells a violation again.
    pub fn command(&self) -> String {
        format!("gaisnet sim {} --seed {}", self.scenario, self.seed)
    }
}

impl std::fmt::Display for Outcome {
    /// One line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scenario, seed, violation, .. } = self;
        match violation {
            None => write!(f, "{scenario} with seed {seed}: no violation"),
            Some(Violation { invariant, what, step, at_ms }) => write!(
                f,
                "{scenario} with seed {seed}, step {step}, at {at_ms} ms: {invariant}: {what} (again: {})",
                self.command()
            ),
        }
    }
}

pub(super) fn of(world: &World, seed: u64, broken: Option<Broken>) -> Outcome {
    let figures = Figures { virtual_ms: world.now_ms, ..world.figures.clone() };
    let violation = broken.map(|Broken { invariant, what }| Violation {
        invariant: invariant.to_owned(),
        what,
        step: figures.steps,
        at_ms: world.now_ms,
    });
    let scenario = &world.scenario;
    let (name, devices) = (scenario.name.clone(), scenario.num_devices());
    Outcome { scenario: name, seed, devices, trace: world.trace(), figures, violation }
}

/// What a run came to that couldn't begin.
pub(super) fn of_nothing(scenario: &Scenario, seed: u64, broken: Broken) -> Outcome {
    let Broken { invariant, what } = broken;
    let violation = Violation { invariant: invariant.to_owned(), what, step: 0, at_ms: 0 };
    Outcome {
        scenario: scenario.name.clone(),
        seed,
        devices: scenario.num_devices(),
        trace: Digest::of(b""),
        figures: Figures::default(),
        violation: Some(violation),
    }
}
