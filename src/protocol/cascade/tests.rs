use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::Name;
use crate::learn::Threshold;
use crate::scada::telegram::{Quality, Tier};

const CONFIG: CascadeConfig = CascadeConfig {
    above: true,
    wait_ms: 1_000,
    in_flight: 2,
    on_no_reply: OnNoReply::Own,
    uncalibrated: Uncalibrated::Escalate,
};

/// Version 3 answers from 0.8 on, at a temperature of 2.
fn known(version: Version) -> Calibrated {
    let threshold = Some(Threshold { confidence: 0.8, share: 0.7, bound: 0.04 });
    let calibration = Calibration { temperature: 2.0, threshold, held_out: 500 };
    Calibrated { version, adapter: Digest([1; 32]), alpha: 0.05, delta: 0.05, calibration }
}

fn machine(config: CascadeConfig) -> Cascade {
    let mut machine = Cascade::new(config);
    machine.step(Mono(0), Input::Link(true));
    machine.step(Mono(0), Input::Calibrated(Some(known(3))));
    machine
}

fn prediction(top: f32) -> Prediction {
    Prediction { probabilities: vec![1.0 - top, top], class: 1 }
}

fn answered(ticket: Ticket, top: f32) -> Input {
    Input::Answered { ticket, prediction: prediction(top), version: 3, deadline: None, hops: 0 }
}

fn heard() -> Heard {
    Heard {
        value: 0.0,
        label: None,
        confidence: 0.9,
        quality: Quality::Good,
        model_version: 3,
        tier: Tier::Edge,
        node: Name::new("edge").unwrap(),
        bound: None,
        degraded: None,
    }
}

/// The one ending, with its confidence rounded.
fn own(effects: &[Effect]) -> (Option<f64>, Option<Degraded>, f32) {
    let [Effect::End { ending: Ending::Own { confidence, bound, degraded, .. }, .. }] = effects
    else {
        panic!("{effects:?}")
    };
    (*bound, *degraded, (confidence * 100.0).round() / 100.0)
}

#[test]
fn sure_answers_stay_and_carry_the_bound_and_unsure_ones_go_up() {
    let mut machine = machine(CONFIG);
    // At temperature 2 the odds of 0.95 are sqrt(19): 0.81. Those of 0.9 are 3: 0.75.
    assert_eq!(own(&machine.step(Mono(5), answered(0, 0.95))), (Some(0.04), None, 0.81));
    let up = machine.step(Mono(5), answered(1, 0.9));
    assert_eq!(up, [Effect::Escalate { ticket: 1, wait_ms: 1_000 }]);
    let end = machine.step(Mono(9), Input::Reply { ticket: 1, reply: Ok(heard()) });
    assert_eq!(end, [Effect::End { ticket: 1, ending: Ending::Above(heard()) }]);
}

#[test]
fn the_raw_confidence_is_not_what_is_compared() {
    let mut cold = machine(CONFIG);
    let mut hot = known(3);
    hot.calibration.temperature = 1.0;
    assert!(matches!(cold.step(Mono(0), answered(0, 0.9))[..], [Effect::Escalate { .. }]));
    cold.step(Mono(0), Input::Calibrated(Some(hot)));
    assert_eq!(own(&cold.step(Mono(0), answered(1, 0.9))), (Some(0.04), None, 0.9));
}

#[test]
fn without_a_reply_the_own_answer_is_marked_by_what_went_wrong() {
    let mut machine = machine(CONFIG);
    machine.step(Mono(0), answered(0, 0.6));
    machine.step(Mono(0), answered(1, 0.6));
    let third = machine.step(Mono(0), answered(2, 0.6));
    assert_eq!(own(&third).1, Some(Degraded::Busy), "two are under way");
    let busy = machine.step(Mono(1), Input::Reply { ticket: 0, reply: Err(Degraded::Busy) });
    assert_eq!(own(&busy).1, Some(Degraded::Busy));
    assert_eq!(
        machine.step(Mono(999), Input::Deadline(1)),
        [Effect::Wait { ticket: 1, after_ms: 1 }]
    );
    assert_eq!(own(&machine.step(Mono(1_000), Input::Deadline(1))).1, Some(Degraded::Deadline));
    machine.step(Mono(1_000), answered(3, 0.6));
    let down = machine.step(Mono(1_100), Input::Link(false));
    assert_eq!(own(&down), (None, Some(Degraded::LinkDown), 0.55));
    assert_eq!(own(&machine.step(Mono(1_200), answered(4, 0.6))).1, Some(Degraded::LinkDown));
    assert_eq!(own(&machine.step(Mono(1_200), answered(5, 0.99))), (Some(0.04), None, 0.91));
}

#[test]
fn abstaining_is_what_the_settings_make_of_the_same() {
    let mut machine = machine(CascadeConfig { on_no_reply: OnNoReply::Abstain, ..CONFIG });
    machine.step(Mono(0), answered(0, 0.6));
    let end = machine.step(Mono(1_000), Input::Deadline(0));
    let ending = Ending::Abstained { version: 3, degraded: Degraded::Deadline };
    assert_eq!(end, [Effect::End { ticket: 0, ending }]);
}

#[test]
fn a_request_waits_until_its_own_deadline() {
    let mut machine = machine(CONFIG);
    let with = |ticket, deadline| Input::Answered {
        ticket,
        prediction: prediction(0.6),
        version: 3,
        deadline: Some(Mono(deadline)),
        hops: 0,
    };
    let up = machine.step(Mono(100), with(0, 350));
    assert_eq!(up, [Effect::Escalate { ticket: 0, wait_ms: 250 }]);
    let late = machine.step(Mono(400), with(1, 400));
    assert_eq!(own(&late).1, Some(Degraded::Deadline), "its own answer took too long");
}

#[test]
fn late_repeated_and_unknown_replies_are_dropped_and_counted() {
    let mut machine = machine(CONFIG);
    let reply = |ticket| Input::Reply { ticket, reply: Ok(heard()) };
    machine.step(Mono(0), answered(0, 0.6));
    machine.step(Mono(1_000), Input::Deadline(0));
    assert_eq!(machine.step(Mono(1_001), reply(0)), [Effect::Count("cascade_late_reply")]);
    assert_eq!(machine.step(Mono(1_001), reply(7)), [Effect::Count("cascade_no_such_request")]);
    assert_eq!(machine.step(Mono(1_001), Input::Deadline(0)), []);
    let again = machine.step(Mono(1_002), answered(0, 0.6));
    assert_eq!(again, [Effect::Count("cascade_ticket_twice")]);
}

#[test]
fn a_version_without_a_calibration_does_as_configured() {
    let of_four = |ticket| Input::Answered {
        ticket,
        prediction: prediction(0.99),
        version: 4,
        deadline: None,
        hops: 0,
    };
    let mut machine = machine(CONFIG);
    let up = machine.step(Mono(0), of_four(0));
    assert!(matches!(up[..], [Effect::Escalate { .. }]), "what 3 was worth says nothing of 4");
    machine.step(Mono(0), Input::Calibrated(Some(known(4))));
    assert_eq!(own(&machine.step(Mono(0), of_four(1))).0, Some(0.04));
    let config = CascadeConfig { uncalibrated: Uncalibrated::Own, ..CONFIG };
    let mut trusting = self::machine(config);
    assert_eq!(
        own(&trusting.step(Mono(0), of_four(0))),
        (None, Some(Degraded::Uncalibrated), 0.99)
    );
    let mut never_sure = known(3);
    never_sure.calibration.threshold = None;
    trusting.step(Mono(0), Input::Calibrated(Some(never_sure)));
    let up = trusting.step(Mono(0), answered(1, 0.99));
    assert!(matches!(up[..], [Effect::Escalate { .. }]), "it was measured, and isn't good enough");
}

#[test]
fn who_has_nobody_above_answers_everything() {
    let mut top = machine(CascadeConfig { above: false, ..CONFIG });
    assert_eq!(own(&top.step(Mono(0), answered(0, 0.6))), (None, None, 0.55));
    assert_eq!(own(&top.step(Mono(0), answered(1, 0.95))), (Some(0.04), None, 0.81));
}

#[test]
fn a_request_goes_through_so_many_hands_and_no_more() {
    let mut machine = machine(CONFIG);
    let hops = |ticket, hops| Input::Answered {
        ticket,
        prediction: prediction(0.6),
        version: 3,
        deadline: None,
        hops,
    };
    assert!(matches!(machine.step(Mono(0), hops(0, MAX_HOPS - 1))[..], [Effect::Escalate { .. }]));
    assert_eq!(own(&machine.step(Mono(0), hops(1, MAX_HOPS))), (None, None, 0.55));
}

#[test]
fn a_confidence_that_is_no_number_is_not_sure() {
    let mut machine = machine(CONFIG);
    for (ticket, prediction) in (0..).zip([
        Prediction { probabilities: vec![f32::NAN, 0.2], class: 0 },
        Prediction { probabilities: vec![0.5, 0.5], class: 9 },
    ]) {
        let input = Input::Answered { ticket, prediction, version: 3, deadline: None, hops: 0 };
        assert!(matches!(machine.step(Mono(0), input)[..], [Effect::Escalate { .. }]));
    }
}

#[test]
fn what_was_measured_survives_the_store_and_damage_is_an_error() {
    let bytes = known(3).to_bytes().unwrap();
    assert_eq!(Calibrated::from_bytes(&bytes), Ok(known(3)));
    assert!(Calibrated::from_bytes(&bytes[1..]).is_err());
    assert!(Calibrated::from_bytes(&vec![0; 2_000]).is_err());
}

/// What the world does next.
#[derive(Debug, Clone)]
enum Turn {
    /// A request with this confidence, and a deadline so far ahead.
    Ask(f32, Option<u64>),
    /// A reply to the n-th request so far, also one that never was.
    Reply(u64, bool),
    Pass(u64),
    Link(bool),
    Calibrate(Version),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => (0.5_f32..1.0, prop::option::of(0..3_000_u64)).prop_map(|(c, d)| Turn::Ask(c, d)),
        4 => (0..40_u64, any::<bool>()).prop_map(|(t, good)| Turn::Reply(t, good)),
        2 => (0..2_000_u64).prop_map(Turn::Pass),
        1 => prop::bool::weighted(0.7).prop_map(Turn::Link),
        1 => (2..5_u64).prop_map(Turn::Calibrate),
    ]
}

fn halfway(ticket: Ticket) -> Input {
    Input::Halfway { ticket, version: 3, deadline: None, hops: 0 }
}

fn nothing(ticket: Ticket, degraded: Degraded) -> Effect {
    Effect::End { ticket, ending: Ending::Abstained { version: 3, degraded } }
}

#[test]
fn a_front_asks_each_time_and_has_nothing_of_its_own_to_give() {
    // What is known of a whole model and what is done without a reply change nothing.
    for on_no_reply in [OnNoReply::Own, OnNoReply::Abstain] {
        let mut machine = machine(CascadeConfig { on_no_reply, ..CONFIG });
        let up = |ticket| [Effect::Escalate { ticket, wait_ms: 1_000 }];
        assert_eq!(machine.step(Mono(0), halfway(0)), up(0));
        assert_eq!(machine.step(Mono(0), halfway(1)), up(1));
        assert_eq!(machine.step(Mono(0), halfway(2)), [nothing(2, Degraded::Busy)]);
        let end = machine.step(Mono(5), Input::Reply { ticket: 0, reply: Ok(heard()) });
        assert_eq!(end, [Effect::End { ticket: 0, ending: Ending::Above(heard()) }]);
        let late = machine.step(Mono(6), Input::Reply { ticket: 0, reply: Ok(heard()) });
        assert_eq!(late, [Effect::Count("cascade_late_reply")]);
        assert_eq!(machine.step(Mono(1_000), Input::Deadline(1)), [nothing(1, Degraded::Deadline)]);
        assert_eq!(machine.step(Mono(1_000), halfway(3)), up(3));
        let down = machine.step(Mono(1_001), Input::Link(false));
        assert_eq!(down, [nothing(3, Degraded::LinkDown)]);
        assert_eq!(machine.step(Mono(1_002), halfway(4)), [nothing(4, Degraded::LinkDown)]);
        assert_eq!(machine.step(Mono(1_002), halfway(4)), [Effect::Count("cascade_ticket_twice")]);
        let passed_on = Input::Halfway { ticket: 5, version: 3, deadline: None, hops: MAX_HOPS };
        assert_eq!(machine.step(Mono(1_003), passed_on), [nothing(5, Degraded::Refused)]);
        assert_eq!(machine.waiting(), 0);
    }
    let mut alone = machine(CascadeConfig { above: false, ..CONFIG });
    assert_eq!(alone.step(Mono(0), halfway(0)), [nothing(0, Degraded::Refused)]);
}

#[test]
fn halves_of_other_versions_make_no_answer_and_a_whole_model_above_may_be_of_any() {
    let mut machine = machine(CONFIG);
    let older = Heard { model_version: 2, ..heard() };
    let reply = |ticket| Input::Reply { ticket, reply: Ok(older.clone()) };
    machine.step(Mono(0), halfway(0));
    assert_eq!(machine.step(Mono(1), reply(0)), [nothing(0, Degraded::Version)]);
    machine.step(Mono(2), answered(1, 0.6));
    let end = machine.step(Mono(3), reply(1));
    assert_eq!(end, [Effect::End { ticket: 1, ending: Ending::Above(older) }]);
}

proptest! {
    #[test]
    fn each_request_ends_exactly_once_whatever_is_lost_late_or_repeated(
        turns in prop::collection::vec(turn(), 0..120), in_flight in 1..6_usize, abstain in any::<bool>(),
        own in any::<bool>(),
    ) {
        let mut machine = machine(CascadeConfig {
            in_flight,
            on_no_reply: if abstain { OnNoReply::Abstain } else { OnNoReply::Own },
            uncalibrated: if own { Uncalibrated::Own } else { Uncalibrated::Escalate },
            ..CONFIG
        });
        let (mut now, mut asked) = (0, 0);
        let mut endings: BTreeMap<Ticket, u32> = BTreeMap::new();
        let mut timers: Vec<(u64, Ticket)> = Vec::new();
        for turn in turns.into_iter().chain([Turn::Pass(4_000)]) {
            let mut inputs = Vec::new();
            match turn {
                Turn::Ask(top, ahead) => {
                    let deadline = ahead.map(|ahead| Mono(now + ahead));
                    let (ticket, prediction) = (asked, prediction(top));
                    inputs.push(Input::Answered { ticket, prediction, version: 3, deadline, hops: 0 });
                    asked += 1;
                }
                Turn::Reply(ticket, good) => {
                    let reply = if good { Ok(heard()) } else { Err(Degraded::Refused) };
                    inputs.push(Input::Reply { ticket, reply });
                }
                Turn::Pass(ms) => {
                    now += ms;
                    timers.sort_unstable();
                    let due = timers.partition_point(|(at, _)| *at <= now);
                    inputs.extend(timers.drain(..due).map(|(_, ticket)| Input::Deadline(ticket)));
                }
                Turn::Link(up) => inputs.push(Input::Link(up)),
                Turn::Calibrate(version) => inputs.push(Input::Calibrated(Some(known(version)))),
            }
            for input in inputs {
                for effect in machine.step(Mono(now), input) {
                    match effect {
                        Effect::Escalate { ticket, wait_ms } => timers.push((now + wait_ms, ticket)),
                        Effect::Wait { ticket, after_ms } => timers.push((now + after_ms, ticket)),
                        Effect::End { ticket, .. } => *endings.entry(ticket).or_default() += 1,
                        Effect::Count(_) => {}
                    }
                }
                prop_assert!(machine.waiting() <= in_flight);
            }
        }
        prop_assert_eq!(machine.waiting(), 0, "all time has passed");
        prop_assert_eq!(endings.len() as u64, asked);
        prop_assert!(endings.values().all(|times| *times == 1), "{:?}", endings);
    }
}
