//! Each invariant beside the guard that keeps it: without the guard a run breaks it, says where, and does so again.

use super::*;
use crate::sim::faults::Guards;

/// The first seed whose run is broken, with its outcome.
fn first_broken(scenario: &Scenario, guards: Guards, seeds: u64) -> Option<Outcome> {
    (0..seeds).find_map(|seed| {
        let outcome = outcome_of(scenario, guards, seed);
        outcome.violation.is_some().then_some(outcome)
    })
}

fn outcome_of(scenario: &Scenario, guards: Guards, seed: u64) -> Outcome {
    let mut world = world(scenario, seed);
    world.guards = guards;
    let broken = ends(&mut world).err();
    outcome::of(&world, seed, broken)
}

/// With the guard no seed is broken; without it one is, by this invariant, and the same seed shows the same again.
fn is_what_keeps(
    scenario: &Scenario,
    invariant: &str,
    without: &dyn Fn(&Scenario) -> Option<Outcome>,
) {
    let broken = without(scenario).expect("some seed is broken without the guard");
    let violation = broken.violation.as_ref().unwrap();
    assert_eq!(violation.invariant, invariant, "{broken}");
    let told = broken.to_string();
    for part in [
        format!("seed {}", broken.seed),
        format!("step {}", violation.step),
        format!("gaisnet sim {} --seed {}", scenario.name, broken.seed),
    ] {
        assert!(told.contains(&part), "{part:?} isn't in {told:?}");
    }
    assert_eq!(without(scenario).as_ref(), Some(&broken), "the same seed, the same trace");
    let guarded = outcome_of(scenario, Guards::ALL, broken.seed);
    assert!(guarded.violation.is_none(), "{guarded}");
}

#[test]
fn without_the_gate_a_forged_message_would_change_a_node() {
    let guards = Guards { gate: false, ..Guards::ALL };
    for trust in [TrustKind::Assumed, TrustKind::Signed] {
        let scenario = Scenario { trust, ..storm() };
        is_what_keeps(&scenario, "verified_only", &|scenario| first_broken(scenario, guards, 20));
    }
}

#[test]
fn a_receipt_before_its_commit_would_say_what_no_ledger_does() {
    let guards = Guards { commit_first: false, ..Guards::ALL };
    is_what_keeps(&storm(), "accepted_is_recorded", &|scenario| first_broken(scenario, guards, 20));
}

#[test]
fn without_the_memory_of_repeats_one_contribution_would_be_recorded_twice() {
    is_what_keeps(&storm(), "counted_once", &|scenario| {
        without(Guard::Repeats, || first_broken(scenario, Guards::ALL, 20))
    });
}

#[test]
fn without_the_fence_a_stale_epoch_would_change_a_node() {
    is_what_keeps(&storm(), "epochs_fence", &|scenario| {
        without(Guard::Epochs, || first_broken(scenario, Guards::ALL, 20))
    });
}

#[test]
fn without_its_guard_a_version_would_go_back() {
    is_what_keeps(&storm(), "versions_rise", &|scenario| {
        without(Guard::Versions, || first_broken(scenario, Guards::ALL, 20))
    });
}

#[test]
fn without_a_bound_closed_rounds_would_be_remembered_for_ever() {
    let mut scenario = calm();
    scenario.rounds.count = 16;
    is_what_keeps(&scenario, "bounded", &|scenario| {
        without(Guard::Memory, || first_broken(scenario, Guards::ALL, 1))
    });
}

#[test]
fn what_is_not_sent_again_would_never_arrive() {
    let guards = Guards { resend: false, ..Guards::ALL };
    is_what_keeps(&storm(), "converges", &|scenario| first_broken(scenario, guards, 3));
}
