//! Several federations at a time in one thread, each in its turn.

use super::scenario::Scenario;
use super::world::World;
use super::{Outcome, Progress, outcome};

/// A federation, until its end.
enum Run {
    Going { world: Box<World>, seed: u64 },
    Ended(Outcome),
}

/// Runs a scenario with each of these seeds, all of them at a time, a little virtual time of each in turn; gives their outcomes
/// in the order of seeds. `watch` hears the sum over all.
///
/// Ten federations of a hundred devices take the memory of one of a thousand so, and wait for it like that: the difference that
/// is left in time is that of the federation's size.
///
/// # Determinism
/// Each outcome is that of [`run`](super::run).
pub fn run_in_turns(
    scenario: &Scenario,
    seeds: impl IntoIterator<Item = u64>,
    watch: &mut dyn FnMut(Progress),
) -> Vec<Outcome> {
    let mut runs: Vec<Run> = seeds.into_iter().map(|seed| Run::new(scenario, seed)).collect();
    loop {
        let mut sum = Progress { versions: 0, of: 0 };
        let mut all_ended = true;
        for run in &mut runs {
            let Progress { versions, of } = run.turn(scenario.rounds.count);
            (sum.versions, sum.of) = (sum.versions + versions, sum.of + of);
            all_ended &= matches!(run, Run::Ended(_));
        }
        watch(sum);
        if all_ended {
            break;
        }
    }
    runs.into_iter()
        .map(|run| match run {
            Run::Going { world, seed } => outcome::of(&world, seed, None),
            Run::Ended(outcome) => outcome,
        })
        .collect()
}

impl Run {
    fn new(scenario: &Scenario, seed: u64) -> Self {
        match World::new(scenario, seed) {
            Ok(world) => Self::Going { world: Box::new(world), seed },
            Err(broken) => Self::Ended(outcome::of_nothing(scenario, seed, broken)),
        }
    }

    fn turn(&mut self, of: u64) -> Progress {
        if let Self::Going { world, seed } = self {
            match world.turn() {
                Ok(false) => return world.progress(),
                Ok(true) => *self = Self::Ended(outcome::of(world, *seed, None)),
                Err(broken) => *self = Self::Ended(outcome::of(world, *seed, Some(broken))),
            }
        }
        Progress { versions: of, of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{SHIPPED, run};

    fn shipped(name: &str) -> Scenario {
        let (_, text) = SHIPPED.iter().find(|(known, _)| *known == name).unwrap();
        Scenario::from_toml(name, name, text).unwrap()
    }

    #[test]
    fn in_turns_each_comes_to_what_it_comes_to_alone() {
        let scenario = shipped("faults");
        let mut told = Vec::new();
        let outcomes = run_in_turns(&scenario, 3..=5, &mut |progress| told.push(progress));
        let alone: Vec<Outcome> = (3..=5).map(|seed| run(&scenario, seed, &mut |_| ())).collect();
        assert_eq!(outcomes, alone);
        let all = 3 * scenario.rounds.count;
        assert_eq!(told.last(), Some(&Progress { versions: all, of: all }));
        assert!(told.iter().any(|progress| progress.versions < all), "{told:?}");
    }

    #[test]
    fn one_that_ends_early_keeps_none_from_going_on() {
        let mut scenario = shipped("small");
        let ends: Vec<u64> =
            (1..=3).map(|seed| run(&scenario, seed, &mut |_| ()).figures.virtual_ms).collect();
        let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
        assert!(first < last, "{ends:?}");
        scenario.pace.end_ms = *first;
        let broken: Vec<bool> = run_in_turns(&scenario, 1..=3, &mut |_| ())
            .iter()
            .map(|outcome| outcome.violation.is_some())
            .collect();
        let late: Vec<bool> = ends.iter().map(|end| end > first).collect();
        assert_eq!(broken, late);
    }

    #[test]
    fn nothing_to_run_comes_to_nothing() {
        assert_eq!(run_in_turns(&shipped("small"), [], &mut |_| ()), []);
    }
}
