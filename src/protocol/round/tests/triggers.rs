//! Rounds that open because something happened.

use proptest::prelude::*;

use super::*;
use crate::time::{Mono, Wall};

const APART_MS: u64 = 1_000;

fn triggers(every_ms: u64, drifts: u64, labels: u64) -> Triggers {
    Triggers { every_ms, drifts, labels, apart_ms: APART_MS }
}

/// A cloud with its timer, its clock and what its members have counted.
struct Storm {
    bench: Bench,
    /// When its next look is, of the process's clock.
    look: Option<u64>,
    counted: BTreeMap<&'static str, u64>,
    /// When a round opened, of the wall's clock.
    opened: Vec<u64>,
}

impl Storm {
    fn new(triggers: Triggers) -> Self {
        let config = RoundConfig { triggers: Some(triggers), versions: 0, ..config(Owner::Root) };
        let bench = Bench::of(config, Now { wall: Wall(1_000_000), ..Now::default() });
        let mut storm = Self { bench, look: None, counted: BTreeMap::new(), opened: Vec::new() };
        storm.restarts();
        storm
    }

    fn step(&mut self, input: Input) {
        let effects = self.bench.step(input);
        self.note(&effects);
    }

    fn note(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Timer { timer: Timer::NextRound, after_ms } => {
                    self.look = Some(self.bench.now.mono.0 + after_ms);
                }
                Effect::Record(Event::RoundOpen { .. }) => self.opened.push(self.bench.now.wall.0),
                _ => {}
            }
        }
    }

    /// A member has counted `drifts` in all, and says so.
    fn told(&mut self, member: &str, drifts: u64) {
        let wanted = Wanted::Round(Wishes { drifts, labels: 0 });
        self.step(message(member, 0, Body::Get(Get { wanted })));
    }

    fn passes(&mut self, ms: u64) {
        let now = &mut self.bench.now;
        (now.mono, now.wall) = (Mono(now.mono.0 + ms), Wall(now.wall.0 + ms));
        if self.look.is_some_and(|look| look <= self.bench.now.mono.0) {
            self.look = None;
            self.step(Input::Timer(Timer::NextRound));
        }
    }

    /// The process dies; the next one begins its own clock.
    fn restarts(&mut self) {
        (self.bench.now.mono, self.look) = (Mono(0), None);
        let effects = self.bench.restart();
        self.note(&effects);
    }

    /// The open round ends, with a result or by itself.
    fn ends(&mut self, well: bool) {
        if self.bench.phase() != "open" {
            return;
        }
        if !well {
            for member in ["a", "b", "c"] {
                let effects = self.bench.answer(member, false);
                self.note(&effects);
            }
            return self.step(Input::Timer(Timer::Deadline));
        }
        for member in ["a", "b", "c"] {
            let work = self.bench.work(1);
            let effects = self.bench.send(member, &work);
            self.note(&effects);
        }
        let effects = self.bench.combine();
        self.note(&effects);
    }
}

#[test]
fn a_root_without_triggers_opens_rounds_as_before_whatever_members_count() {
    let mut bench = Bench::new(Owner::Root);
    let state = bench.state.clone();
    let wanted = Wanted::Round(Wishes { drifts: 9, labels: 900 });
    assert_eq!(bench.step(message("a", 0, Body::Get(Get { wanted }))), []);
    assert_eq!(bench.state, state);
}

#[test]
fn a_relay_passes_on_what_is_new_and_opens_nothing() {
    let mut bench = Bench::new(Owner::Relay);
    let mut says = |drifts, labels| {
        let wanted = Wanted::Round(Wishes { drifts, labels });
        let mut effects = bench.step(message("a", 0, Body::Get(Get { wanted })));
        effects.retain(|effect| !matches!(effect, Effect::Put(..)));
        effects
    };
    assert_eq!(says(1, 5), [Effect::WishAbove(Wishes { drifts: 1, labels: 5 })]);
    assert_eq!(says(1, 5), []);
    assert_eq!(says(1, 6), [Effect::WishAbove(Wishes { drifts: 0, labels: 1 })]);
}

#[test]
fn a_drift_opens_one_round_and_a_schedule_the_next_and_an_operator_any() {
    let mut storm = Storm::new(triggers(10_000, 1, 0));
    storm.passes(9_999);
    assert!(storm.opened.is_empty());
    storm.told("a", 1);
    storm.passes(0);
    assert_eq!(storm.opened, [1_009_999]);
    storm.told("a", 1);
    storm.ends(true);
    for _ in 0..99 {
        storm.passes(100);
    }
    assert_eq!(storm.opened.len(), 1, "the same drift opens no second one");
    storm.passes(100);
    assert_eq!(storm.opened, [1_009_999, 1_019_999]);
    storm.ends(true);
    storm.step(Input::StartRound);
    assert_eq!(storm.opened.len(), 3, "a person need not wait");
}

#[test]
fn a_round_that_comes_to_nothing_is_opened_again() {
    let mut storm = Storm::new(triggers(0, 1, 0));
    storm.told("a", 1);
    storm.passes(2_000);
    storm.ends(false);
    assert_eq!((storm.opened.len(), storm.bench.phase()), (1, "idle"));
    storm.passes(APART_MS - 1);
    assert_eq!(storm.opened.len(), 1);
    storm.restarts();
    storm.passes(1);
    assert_eq!(storm.opened.len(), 2);
    storm.ends(true);
    storm.passes(100_000);
    assert_eq!(storm.opened.len(), 2);
}

#[test]
fn what_comes_while_it_is_paused_or_a_round_is_open_counts_for_the_next() {
    let mut storm = Storm::new(triggers(0, 1, 0));
    storm.step(Input::Pause(true));
    storm.told("a", 1);
    storm.passes(5_000);
    assert!(storm.opened.is_empty());
    storm.step(Input::Pause(false));
    storm.passes(0);
    storm.told("b", 1);
    storm.ends(true);
    storm.passes(5_000);
    assert_eq!(storm.opened.len(), 2);
}

#[derive(Debug, Clone)]
enum Happens {
    Counts(&'static str),
    Tells(&'static str),
    TellsOld(&'static str, u64),
    Passes(u64),
    Restarts,
    /// It dies before what this member says is on disk.
    DiesHearing(&'static str),
    /// It dies before what its timer does is on disk.
    DiesOpening,
    Ends,
}

fn happens() -> impl Strategy<Value = Happens> {
    let member = || prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        4 => member().prop_map(Happens::Counts),
        4 => member().prop_map(Happens::Tells),
        2 => (member(), 0_u64..5).prop_map(|(member, ago)| Happens::TellsOld(member, ago)),
        4 => (1_u64..900).prop_map(Happens::Passes),
        1 => Just(Happens::Restarts),
        1 => member().prop_map(Happens::DiesHearing),
        1 => Just(Happens::DiesOpening),
        3 => Just(Happens::Ends),
    ]
}

proptest! {
    #[test]
    fn no_wish_is_lost_none_opens_two_rounds_and_rounds_keep_apart_in_any_storm(
        story in prop::collection::vec(happens(), 0..120), enough in 1_u64..4,
    ) {
        let mut storm = Storm::new(triggers(0, enough, 0));
        for what in story {
            match what {
                Happens::Counts(member) => *storm.counted.entry(member).or_default() += 1,
                Happens::Tells(member) => {
                    let counted = storm.counted.get(member).copied().unwrap_or(0);
                    storm.told(member, counted);
                }
                Happens::TellsOld(member, ago) => {
                    let counted = storm.counted.get(member).copied().unwrap_or(0);
                    storm.told(member, counted.saturating_sub(ago));
                }
                Happens::Passes(ms) => storm.passes(ms),
                Happens::Restarts => storm.restarts(),
                Happens::DiesHearing(member) => {
                    let drifts = storm.counted.get(member).copied().unwrap_or(0);
                    let wanted = Wanted::Round(Wishes { drifts, labels: 0 });
                    let now = storm.bench.now;
                    storm.bench.round.step(now, message(member, 0, Body::Get(Get { wanted })));
                    storm.restarts();
                }
                Happens::DiesOpening => {
                    let now = storm.bench.now;
                    storm.bench.round.step(now, Input::Timer(Timer::NextRound));
                    storm.restarts();
                }
                Happens::Ends => storm.ends(true),
            }
            let counted: u64 = storm.counted.values().sum();
            prop_assert!(storm.opened.len() as u64 * enough <= counted, "a wish opened two");
        }
        let apart = storm.opened.windows(2).all(|two| two[1] - two[0] >= APART_MS);
        prop_assert!(apart, "{:?}", storm.opened);
        // The storm is over: each says all that it has counted once more.
        for member in ["a", "b", "c"] {
            storm.told(member, storm.counted.get(member).copied().unwrap_or(0));
        }
        for _ in 0..3 {
            storm.ends(true);
            storm.passes(APART_MS);
        }
        storm.ends(true);
        let left = storm.bench.round.wished.clone();
        prop_assert!(left.wait_ms(triggers(0, enough, 0), storm.bench.now).is_none(), "{left:?}");
        let counted: u64 = storm.counted.values().sum();
        prop_assert!(counted < enough || !storm.opened.is_empty(), "lost");
    }
}
