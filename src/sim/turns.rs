//! Several federations at a time in one thread, each in its turn.

use std::ops::ControlFlow;

use super::scenario::Scenario;
use super::world::World;
use super::{Outcome, Progress, outcome};

/// A federation, and what it came to once it has. It is kept until all have ended, so that memory stays what it was.
struct Run {
    seed: u64,
    world: World,
    outcome: Option<Outcome>,
}

/// Runs a scenario with each of these seeds, all of them at a time, a little virtual time of each in turn; gives their outcomes
/// in the order of seeds. `watch` hears the sum over all after each sweep.
///
/// Ten federations of a hundred devices take about the memory of one of a thousand so, and wait for it about as long.
///
/// # Determinism
/// Each outcome is that of [`run`](super::run).
pub fn run_in_turns(
    scenario: &Scenario,
    seeds: impl IntoIterator<Item = u64>,
    watch: &mut dyn FnMut(Progress),
) -> Vec<Outcome> {
    let (mut runs, mut outcomes) = (Vec::new(), Vec::new());
    for seed in seeds {
        match World::new(scenario, seed) {
            Ok(world) => runs.push(Run { seed, world, outcome: None }),
            Err(broken) => outcomes.push(outcome::of_nothing(scenario, seed, broken)),
        }
    }
    while runs.iter().any(|run| run.outcome.is_none()) {
        runs.iter_mut().for_each(Run::turn);
        let mut sum = Progress { versions: 0, of: 0 };
        for Progress { versions, of } in runs.iter().map(|run| run.world.progress()) {
            sum = Progress { versions: sum.versions + versions, of: sum.of + of };
        }
        watch(sum);
    }
    outcomes.extend(runs.into_iter().filter_map(|run| run.outcome));
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

impl Run {
    fn turn(&mut self) {
        if self.outcome.is_some() {
            return;
        }
        let broken = match self.world.turn() {
            Ok(ControlFlow::Continue(())) => return,
            Ok(ControlFlow::Break(())) => None,
            Err(broken) => Some(broken),
        };
        self.outcome = Some(outcome::of(&self.world, self.seed, broken));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Outage, SHIPPED, run};

    fn shipped(name: &str) -> Scenario {
        let (_, text) = SHIPPED.iter().find(|(known, _)| *known == name).unwrap();
        Scenario::from_toml(name, name, text).unwrap()
    }

    fn alone(scenario: &Scenario, seeds: std::ops::RangeInclusive<u64>) -> Vec<Outcome> {
        seeds.map(|seed| run(scenario, seed, &mut |_| ())).collect()
    }

    #[test]
    fn in_turns_each_comes_to_what_it_comes_to_alone() {
        let scenario = shipped("faults");
        let mut told = Vec::new();
        let outcomes = run_in_turns(&scenario, 3..=5, &mut |progress| told.push(progress));
        assert_eq!(outcomes, alone(&scenario, 3..=5));
        let all = 3 * scenario.rounds.count;
        assert_eq!(told.last(), Some(&Progress { versions: all, of: all }));
        let rises = |two: &[Progress]| two[0].versions <= two[1].versions;
        assert!(told.windows(2).all(rises) && told[0].versions == 0, "{told:?}");
    }

    #[test]
    fn a_turn_is_short() {
        let mut world = World::new(&shipped("small"), 1).unwrap();
        let starts_until_ms = 50;
        assert_eq!(world.turn().unwrap(), ControlFlow::Continue(()));
        assert!((1..=starts_until_ms + World::TURN_MS).contains(&world.now_ms));
    }

    #[test]
    fn each_that_is_not_at_rest_by_the_end_is_told() {
        let mut scenario = shipped("small");
        let calm = alone(&scenario, 1..=3);
        let ends: Vec<u64> = calm.iter().map(|outcome| outcome.figures.virtual_ms).collect();
        let (first, last) = (*ends.iter().min().unwrap(), *ends.iter().max().unwrap());
        assert!(first < last, "{ends:?}");
        scenario.pace.end_ms = first;
        let outcomes = run_in_turns(&scenario, 1..=3, &mut |_| ());
        for (outcome, end) in outcomes.iter().zip(ends) {
            assert_eq!(outcome.violation.is_some(), end > first, "{outcome}");
        }
    }

    #[test]
    fn what_cannot_begin_is_told_and_nothing_to_run_comes_to_nothing() {
        let mut scenario = shipped("small");
        assert_eq!(run_in_turns(&scenario, [], &mut |_| ()), []);
        let node = "nobody".to_owned();
        scenario.outages = vec![Outage { node, from_ms: 1, until_ms: 2, crash: false }];
        let outcomes = run_in_turns(&scenario, [4, 3], &mut |_| ());
        assert_eq!(outcomes, alone(&scenario, 3..=4));
        assert!(outcomes.iter().all(|outcome| outcome.violation.is_some()));
    }
}
