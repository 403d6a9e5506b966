use proptest::prelude::*;

use super::*;
use crate::protocol::guard::tests::without;

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

fn apply(version: Version) -> Effect {
    Effect::Apply { version, adapter: digest(version) }
}

/// Slots with what is on disk of them.
#[derive(Clone)]
struct Bench {
    slots: Slots,
    disk: Vec<(String, Vec<u8>)>,
    checks: bool,
}

impl Bench {
    fn new(checks: bool) -> Self {
        Self { slots: build(checks, &[]), disk: Vec::new(), checks }
    }

    /// Versions that passed their checks, one after the other.
    fn with(versions: impl IntoIterator<Item = Version>) -> Self {
        let mut bench = Self::new(true);
        for version in versions {
            bench.offer(version);
            bench.check(version, Check::Passed);
        }
        bench
    }

    fn keep(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        for effect in &effects {
            if let Effect::Put(key, value) = effect {
                self.disk = vec![(key.to_string(), value.clone())];
            }
        }
        effects
    }

    fn offer(&mut self, version: Version) -> Vec<Effect> {
        let effects = self.slots.take(vec![apply(version)]);
        self.keep(effects)
    }

    fn check(&mut self, version: Version, check: Check) -> Vec<Effect> {
        let served = self.slots.state.served;
        let adapter = if served.version == version { served.adapter } else { digest(version) };
        let effects = self.slots.checked(version, adapter, check);
        self.keep(effects)
    }

    fn order(&mut self, order: SlotOrder) -> Result<Vec<Effect>, SlotRefusal> {
        self.slots.order(order).map(|effects| self.keep(effects))
    }

    fn roll_back(
        &mut self,
        to: Option<Version>,
        by: RollbackBy,
    ) -> Result<Vec<Effect>, SlotRefusal> {
        self.order(SlotOrder::Rollback { to, by })
    }

    /// Starts again; the machine has `version`.
    fn restart(&mut self, version: Version) -> Vec<Effect> {
        self.slots = build(self.checks, &self.disk);
        let effects = self.slots.start(vec![apply(version)]);
        self.keep(effects)
    }

    fn served(&self) -> Version {
        self.slots.view().served
    }
}

fn build(checks: bool, disk: &[(String, Vec<u8>)]) -> Slots {
    let config = SlotsConfig { base: digest(1_000), untrained: digest(0), checks, follow: false };
    Slots::new(config, disk).unwrap()
}

fn applied(effects: &[Effect]) -> Vec<Version> {
    let version = |effect: &Effect| match effect {
        Effect::Apply { version, .. } => Some(*version),
        _ => None,
    };
    effects.iter().filter_map(version).collect()
}

fn recorded(effects: &[Effect]) -> Vec<&Event> {
    fn event(effect: &Effect) -> Option<&Event> {
        if let Effect::Record(event) = effect { Some(event) } else { None }
    }
    effects.iter().filter_map(event).collect()
}

#[test]
fn versions_are_served_as_they_come_and_the_one_before_stays_on_disk() {
    let mut bench = Bench::new(false);
    for version in 1..=3 {
        let effects = bench.offer(version);
        assert_eq!(applied(&effects), [version]);
        let (adapter, expected) = (digest(version), version);
        assert_eq!(recorded(&effects), [&Event::Rollout { adapter, version: expected }]);
    }
    assert_eq!(bench.slots.view().versions, [2, 3]);
    assert_eq!(bench.slots.blobs(), [0, 2, 3].map(digest).into());
    assert!(bench.offer(3).is_empty());
    assert_eq!(bench.offer(2), [Effect::Count("older_version")]);
}

#[test]
fn a_rollback_goes_to_the_version_before_and_holds_what_is_newer() {
    for to in [None, Some(4)] {
        let mut bench = Bench::with([4, 5]);
        let effects = bench.roll_back(to, RollbackBy::Operator).unwrap();
        assert_eq!(applied(&effects), [4]);
        let reason = Word::new("operator");
        assert_eq!(recorded(&effects), [&Event::Rollback { from: 5, reason, to: 4 }]);
        // What the next rounds make of the version that was given up waits.
        for version in [5, 6, 7] {
            assert!(applied(&bench.offer(version)).is_empty());
        }
        assert_eq!(applied(&bench.restart(7)), [4]);
        let view = bench.slots.view();
        assert_eq!((view.served, view.versions, view.held_since), (4, vec![4, 5, 7], Some(5)));
        let effects = bench.order(SlotOrder::Release { least: 6 }).unwrap();
        assert_eq!(applied(&effects), [7]);
        assert_eq!(bench.slots.view().versions, [4, 7], "the known good one stays within reach");
        assert_eq!(bench.slots.view().held_since, None);
    }
}

#[test]
fn without_the_hold_the_next_round_brings_back_what_was_given_up() {
    let served = || {
        let mut bench = Bench::with([4, 5]);
        bench.roll_back(None, RollbackBy::Operator).unwrap();
        bench.offer(6);
        bench.served()
    };
    assert_eq!(served(), 4);
    assert_eq!(without(Guard::Hold, served), 6);
}

#[test]
fn a_release_may_come_before_its_version() {
    let mut bench = Bench::with([4, 5]);
    assert_eq!(bench.order(SlotOrder::Release { least: 6 }), Err(SlotRefusal::NotHeld));
    bench.roll_back(None, RollbackBy::Operator).unwrap();
    assert!(applied(&bench.order(SlotOrder::Release { least: 7 }).unwrap()).is_empty());
    assert!(applied(&bench.offer(6)).is_empty());
    assert!(applied(&bench.restart(6)) == [4]);
    assert_eq!(applied(&bench.offer(7)), [7]);
    assert_eq!(applied(&bench.offer(8)), [8], "the hold is over");
    // What was given up comes back where an operator says so.
    let mut bench = Bench::with([4, 5]);
    bench.roll_back(None, RollbackBy::Operator).unwrap();
    assert_eq!(applied(&bench.order(SlotOrder::Release { least: 5 }).unwrap()), [5]);
    assert_eq!(bench.slots.view().versions, [4, 5]);
}

#[test]
fn a_version_that_was_never_here_is_refused_with_those_that_are() {
    let mut bench = Bench::with([3, 4, 5]);
    let refused = bench.roll_back(Some(3), RollbackBy::Operator).unwrap_err();
    assert_eq!(refused.to_string(), "version 3 isn't on this node; it has 4, 5");
    let refused = bench.roll_back(Some(5), RollbackBy::Operator).unwrap_err();
    assert_eq!(refused, SlotRefusal::AlreadyServed { version: 5 });
    bench.roll_back(Some(4), RollbackBy::Operator).unwrap();
    let refused = bench.roll_back(Some(5), RollbackBy::Operator).unwrap_err();
    assert_eq!(refused, SlotRefusal::Newer { version: 5, served: 4 });
    let refused = bench.roll_back(None, RollbackBy::Operator).unwrap_err();
    assert_eq!(refused, SlotRefusal::NothingBefore { served: 4, have: vec![4, 5] });
    let mut fresh = Bench::new(true);
    assert!(fresh.roll_back(None, RollbackBy::Local).is_err());
    fresh.offer(1);
    assert_eq!(applied(&fresh.roll_back(None, RollbackBy::Local).unwrap()), [0]);
}

#[test]
fn nobody_but_a_signer_goes_below_the_floor() {
    let floored = || {
        let mut bench = Bench::with([4, 5]);
        bench.order(SlotOrder::Floor { least: 5 }).unwrap();
        bench
    };
    let refused = SlotRefusal::BelowFloor { version: 4, floor: 5 };
    assert_eq!(floored().roll_back(None, RollbackBy::Local), Err(refused.clone()));
    assert_eq!(floored().roll_back(Some(4), RollbackBy::Local), Err(refused));
    let mut bench = floored();
    bench.roll_back(Some(4), RollbackBy::Operator).unwrap();
    assert_eq!(bench.served(), 4);
    // Failed checks don't either: the version stays, and that is counted.
    let mut bench = floored();
    for _ in 0..5 {
        bench.check(5, Check::Failed);
    }
    assert_eq!(bench.served(), 5);
    assert_eq!(bench.check(5, Check::Failed), [Effect::Count("nothing_to_go_back_to")]);
    for least in [4, 6] {
        let refused = SlotRefusal::FloorOutOfReach { floor: 5, served: 5 };
        assert_eq!(floored().order(SlotOrder::Floor { least }), Err(refused));
    }
}

#[test]
fn three_failed_checks_in_a_row_go_back_and_two_do_not() {
    let mut bench = Bench::with([4]);
    bench.offer(5);
    for _ in 0..4 {
        bench.check(5, Check::Failed);
        assert!(applied(&bench.check(5, Check::Failed)).is_empty());
        bench.check(5, Check::Passed);
    }
    bench.check(5, Check::Failed);
    bench.check(4, Check::Failed); // old news
    bench.restart(5);
    bench.check(5, Check::Failed);
    let effects = bench.check(5, Check::Failed);
    assert_eq!(applied(&effects), [4]);
    let reason = Word::new("failed_checks");
    assert_eq!(recorded(&effects), [&Event::Rollback { from: 5, reason, to: 4 }]);
    assert_eq!(bench.slots.view().held_since, Some(5));
    bench.offer(6);
    assert_eq!(bench.served(), 4);
}

#[test]
fn an_adapter_that_does_not_fit_goes_at_once() {
    let mut bench = Bench::with([4]);
    bench.offer(5);
    assert_eq!(applied(&bench.check(5, Check::Unfit)), [4]);
}

#[test]
fn what_ends_the_process_each_time_is_given_up_before_the_third_restart_serves_it() {
    let mut bench = Bench::with([4]);
    bench.offer(5);
    assert_eq!(applied(&bench.restart(5)), [5]);
    assert_eq!(applied(&bench.restart(5)), [5]);
    assert_eq!(applied(&bench.restart(5)), [4]);
    // A version that has proven itself may be started as often as one likes.
    let mut bench = Bench::with([4, 5]);
    for _ in 0..10 {
        assert_eq!(applied(&bench.restart(5)), [5]);
    }
    // So may one that nobody checks.
    let mut bench = Bench::new(false);
    bench.offer(4);
    bench.offer(5);
    for _ in 0..10 {
        assert_eq!(applied(&bench.restart(5)), [5]);
    }
}

#[test]
fn the_last_version_that_passed_a_check_stays_within_reach() {
    let mut bench = Bench::with([4]);
    for version in 5..=9 {
        bench.offer(version);
    }
    assert_eq!(bench.slots.view().versions, [4, 9]);
    bench.check(9, Check::Unfit);
    assert_eq!(bench.served(), 4);
}

#[test]
fn another_adapter_of_the_same_version_takes_its_place_and_proves_itself_anew() {
    let mut bench = Bench::with([4, 5]);
    let own = Effect::Apply { version: 5, adapter: digest(55) };
    let effects = bench.slots.take(vec![own.clone()]);
    let effects = bench.keep(effects);
    assert!(effects.contains(&own));
    let told = Effect::Record(Event::Rollout { adapter: digest(55), version: 5 });
    assert!(effects.contains(&told), "the ledger names each adapter that answers");
    assert_eq!(bench.slots.blobs(), [digest(0), digest(4), digest(55)].into());
}

#[test]
fn versions_of_another_base_are_forgotten() {
    let mut bench = Bench::with([4, 5]);
    bench.roll_back(None, RollbackBy::Operator).unwrap();
    let config =
        SlotsConfig { base: digest(2_000), untrained: digest(0), checks: true, follow: false };
    let mut slots = Slots::new(config, &bench.disk).unwrap();
    assert_eq!(applied(&slots.start(vec![apply(1)])), [1]);
    let damaged = vec![(Slots::KEY.to_owned(), vec![0xc1])];
    let config =
        SlotsConfig { base: digest(1_000), untrained: digest(0), checks: true, follow: false };
    assert!(Slots::new(config, &damaged).unwrap_err().starts_with(Slots::KEY));
}

#[derive(Debug, Clone, Copy)]
enum Happens {
    NextVersion,
    Again,
    Check(u64, Check),
    RollBack(Option<u64>, RollbackBy),
    Release(u64),
    Floor(u64),
    Restart,
    /// The step before is lost: the node dies before its commit, and starts.
    Lost,
}

fn happens() -> impl Strategy<Value = Happens> {
    let check = prop_oneof![Just(Check::Passed), Just(Check::Failed), Just(Check::Unfit)];
    let by =
        prop_oneof![Just(RollbackBy::Operator), Just(RollbackBy::Local), Just(RollbackBy::Checks)];
    prop_oneof![
        3 => Just(Happens::NextVersion),
        1 => Just(Happens::Again),
        3 => (0..2_u64, check).prop_map(|(behind, check)| Happens::Check(behind, check)),
        2 => (prop::option::of(0..4_u64), by).prop_map(|(back, by)| Happens::RollBack(back, by)),
        1 => (0..4_u64).prop_map(Happens::Release),
        1 => (0..4_u64).prop_map(Happens::Floor),
        1 => Just(Happens::Restart),
        1 => Just(Happens::Lost),
    ]
}

proptest! {
    #[test]
    fn storms_of_events_keep_what_is_promised(
        checks: bool,
        events in prop::collection::vec(happens(), 1..80),
    ) {
        let mut bench = Bench::new(checks);
        let (mut newest, mut given_up) = (0, None);
        for event in events {
            let before = bench.clone();
            let served = bench.served();
            let effects = match event {
                Happens::NextVersion => {
                    newest += 1;
                    bench.offer(newest)
                }
                Happens::Again => bench.offer(newest),
                Happens::Check(behind, check) => bench.check(served.saturating_sub(behind), check),
                Happens::RollBack(back, by) => {
                    let to = back.map(|back| served.saturating_sub(back));
                    bench.roll_back(to, by).unwrap_or_default()
                }
                Happens::Release(ahead) => {
                    let least = served + ahead;
                    let released = bench.order(SlotOrder::Release { least });
                    if released.is_ok() {
                        given_up = None;
                    }
                    released.unwrap_or_default()
                }
                Happens::Floor(back) => {
                    let least = served.saturating_sub(back);
                    bench.order(SlotOrder::Floor { least }).unwrap_or_default()
                }
                Happens::Restart => bench.restart(newest),
                Happens::Lost => {
                    // The machine would have lost it with the same transaction, and has it here already.
                    bench.slots = before.slots;
                    bench.restart(newest)
                }
            };
            let after = bench.served();
            let back = recorded(&effects).into_iter().find_map(|event| match event {
                Event::Rollback { from, to, reason } => Some((*from, *to, reason.clone())),
                _ => None,
            });
            // The pointer goes back with an entry that says so, and no other way.
            prop_assert_eq!(after < served, back.is_some());
            if let Some((from, to, reason)) = back {
                prop_assert_eq!((from, to), (served, after));
                prop_assert!(to >= bench.slots.view().floor || reason.as_str() == "operator");
                given_up = Some(from);
            }
            // Held versions aren't served.
            if given_up.is_some() {
                prop_assert!(after <= served);
            }
            // What is served, or could be, is kept; never more than three besides the untrained one.
            let blobs = bench.slots.blobs();
            let view = bench.slots.view();
            prop_assert!(view.versions.iter().all(|version| blobs.contains(&digest(*version))));
            prop_assert!(view.versions.contains(&after) && blobs.len() <= 4);
            // What is told is what is on disk, and told once.
            prop_assert!(applied(&effects).len() <= 1);
            prop_assert!(applied(&effects).iter().all(|version| *version == after));
            if !bench.disk.is_empty() {
                prop_assert_eq!(build(checks, &bench.disk).view(), view);
            }
        }
    }
}

fn following() -> Slots {
    let mut slots = build(true, &[]);
    slots.config.follow = true;
    slots
}

fn assign(slots: &mut Slots, version: Version, adapter: Digest) -> Result<(), &'static str> {
    let effects = slots.order(SlotOrder::Assigned { version, adapter });
    effects.map(drop).map_err(|refusal| refusal.kind())
}

#[test]
fn what_an_operator_took_away_is_not_assigned_from_above_either() {
    let serve = || {
        let mut slots = following();
        assign(&mut slots, 1, digest(1)).unwrap();
        let by = RollbackBy::Operator;
        slots.order(SlotOrder::Rollback { to: None, by }).unwrap();
        assert_eq!(assign(&mut slots, 2, digest(2)), Err("held_version"));
        slots.order(SlotOrder::Release { least: 2 }).unwrap();
        assign(&mut slots, 2, digest(2)).unwrap();
        assert_eq!(slots.view().held_since, None, "something newer is served");
        let from_above = assign(&mut slots, 1, digest(1));
        slots.order(SlotOrder::Release { least: 1 }).map(drop).unwrap_or_default();
        (from_above, assign(&mut slots, 1, digest(1)))
    };
    assert_eq!(serve(), (Err("held_version"), Ok(())));
    assert_eq!(without(Guard::Hold, serve), (Ok(()), Ok(())));
}

#[test]
fn what_this_node_gave_up_is_not_assigned_from_above_either() {
    let mut slots = following();
    assign(&mut slots, 1, digest(1)).unwrap();
    slots.checked(1, digest(1), Check::Unfit);
    assert_eq!((slots.served(), slots.given_up()), (0, Some(1)));
    assign(&mut slots, 2, digest(2)).unwrap();
    assert_eq!(assign(&mut slots, 1, digest(1)), Err("given_up_version"));
    assert_eq!(slots.served(), 2);
}

#[test]
fn another_adapter_of_the_served_version_comes_by_an_assignment_alone() {
    let serve = || {
        let mut slots = following();
        assign(&mut slots, 1, digest(1)).unwrap();
        slots.take(vec![Effect::Apply { version: 1, adapter: digest(11) }]);
        slots.in_use()
    };
    assert_eq!(serve(), (1, digest(1)));
    assert_eq!(without(Guard::Assigned, serve), (1, digest(11)));
    let mut slots = following();
    assign(&mut slots, 1, digest(1)).unwrap();
    assign(&mut slots, 1, digest(11)).unwrap();
    assert_eq!((slots.in_use(), slots.view().versions), ((1, digest(11)), vec![0, 1]));
}

#[test]
fn a_candidate_that_comes_to_nothing_leaves_the_version_before_within_reach() {
    // By its gate, and by this node's own checks.
    for by_checks in [false, true] {
        let mut slots = following();
        for version in 1..=3 {
            assign(&mut slots, version, digest(version)).unwrap();
            if !(by_checks && version == 3) {
                slots.checked(version, digest(version), Check::Passed);
            }
        }
        if by_checks {
            slots.checked(3, digest(3), Check::Unfit);
        }
        assign(&mut slots, 2, digest(2)).unwrap();
        assert!(slots.blobs().contains(&digest(1)));
        let back = SlotOrder::Rollback { to: Some(1), by: RollbackBy::Operator };
        slots.order(back).unwrap();
        assert_eq!(slots.in_use(), (1, digest(1)));
        // And an operator lets it go on again.
        assert_eq!(assign(&mut slots, 2, digest(2)), Err("held_version"));
        slots.order(SlotOrder::Release { least: 2 }).unwrap();
        assign(&mut slots, 2, digest(2)).unwrap();
        assert_eq!(slots.served(), 2);
    }
}
