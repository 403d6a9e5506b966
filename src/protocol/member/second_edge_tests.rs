use std::collections::BTreeMap;

use super::*;
use crate::ids::{Digest, RoundNo};
use crate::protocol::effect::{Input, Job};
use crate::protocol::fixture::{member_config, verified};
use crate::protocol::guard::tests::without;
use crate::protocol::member::tests::{digest, offer, work};
use crate::time::Now;
use crate::wire::{Answer, Receipt, Verdict};

/// A device between two edges, and what it has on disk.
struct Bench {
    member: Member,
    state: BTreeMap<String, Vec<u8>>,
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn reborn(state: &BTreeMap<String, Vec<u8>>, second: Option<&str>) -> Member {
    let mut config = member_config(&node("d1"), &node("home"), false);
    config.second = second.map(|edge| SecondEdge { edge: node(edge), after_ms: 60_000 });
    let state: Vec<_> = state.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Member::new(config, &state).unwrap()
}

impl Bench {
    fn new() -> Self {
        let state = BTreeMap::new();
        Self { member: reborn(&state, Some("other")), state }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.member.step(Now::default(), input);
        for effect in &effects {
            if let Effect::Put(key, value) = effect {
                self.state.insert(key.to_string(), value.clone());
            }
        }
        effects
    }

    fn hear(&mut self, from: &str, epoch: Epoch, body: Body) -> Vec<Effect> {
        let round = if let Body::Offer(offer) = &body { offer.round } else { 0 };
        self.step(Input::Message(verified(&node(from), round, epoch, body)))
    }

    fn offers(&mut self, from: &str, round: RoundNo, version: Version) -> Vec<Effect> {
        self.hear(from, 1, Body::Offer(offer(round, version).into()))
    }

    /// Nothing from home for long, also when it is asked again since the other one is heard.
    fn silence(&mut self) -> Vec<Effect> {
        let asks = self.step(Input::Timer(Timer::Edge));
        self.hear("other", 50, Body::Get(Get { wanted: Wanted::Latest }));
        self.step(Input::Timer(Timer::Edge));
        asks
    }

    fn done(&mut self, round: RoundNo, version: Version) -> Vec<Effect> {
        self.step(Input::Worked { offer: digest(&offer(round, version)), work: Ok(work()) })
    }

    /// At the second edge, which offers round 1 of this version.
    fn away(version: Version) -> Self {
        let mut bench = Self::new();
        bench.silence();
        bench.offers("other", 1, version);
        bench
    }
}

/// Whom it answered, and what.
fn answered(effects: &[Effect]) -> Option<(To, String)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { to, body: Body::Answer(Answer { accepted, reason, .. }), .. } => {
            Some((to.clone(), if *accepted { "yes".to_owned() } else { reason.clone() }))
        }
        _ => None,
    })
}

/// Whom something was given to, and under which key it waits.
fn given(effects: &[Effect]) -> Option<(To, String)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send {
            to,
            body: Body::Contribution(_),
            delivery: Delivery::UntilSettled(key),
            ..
        } => Some((to.clone(), key.clone())),
        _ => None,
    })
}

fn moves(effects: &[Effect]) -> Option<(String, String)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Record(Event::Move { from, to }) => Some((from.to_string(), to.to_string())),
        _ => None,
    })
}

fn trains(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Job(Job::Train(_))))
}

fn receipt(given: &(To, String)) -> Body {
    let update = given.1.parse().unwrap();
    Body::Receipt(Receipt { update, verdict: Verdict::Accepted })
}

fn settles(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Settle(_)))
}

fn other() -> To {
    To::Standby(node("other"))
}

#[test]
fn a_device_goes_to_its_second_edge_only_when_its_own_is_silent_and_the_other_is_heard() {
    let mut bench = Bench::new();
    assert_eq!(bench.offers("other", 1, 1), [], "its own edge may be there");
    let asks = bench.silence();
    assert!(moves(&asks).is_none());
    let is_get = |effect: &Effect| matches!(effect, Effect::Send { to, body: Body::Get(_), .. } if *to == other());
    assert!(asks.iter().any(is_get), "who has nothing to say has to be asked");
    let goes = bench.offers("other", 1, 1);
    assert_eq!(moves(&goes), Some(("home".into(), "other".into())));
    assert_eq!(answered(&goes), Some((other(), "yes".into())));
    assert!(trains(&goes));
    assert_eq!(given(&bench.done(1, 1)).unwrap().0, other());
}

#[test]
fn it_comes_home_at_the_first_new_word_and_not_for_what_a_broker_kept() {
    let mut bench = Bench::away(1);
    let kept = verified(&node("home"), 9, 1, Body::Offer(offer(9, 2).into())).kept_by_broker();
    assert_eq!(moves(&bench.step(Input::Message(kept))), None);
    let back = bench.offers("home", 9, 2);
    assert_eq!(moves(&back), Some(("other".into(), "home".into())));
    assert!(!trains(&back), "what is under way ends first");
    let (to, _) = given(&bench.done(1, 1)).unwrap();
    assert_eq!(to, other(), "for whoever asked for it");
    assert_eq!(bench.offers("other", 2, 2), [], "and now it is at home");
}

#[test]
fn from_one_version_it_gives_to_one_edge_and_without_that_it_would_count_twice() {
    let twice = || {
        let mut bench = Bench::new();
        bench.offers("home", 7, 3);
        let first = given(&bench.done(7, 3)).unwrap();
        bench.silence();
        let declined = answered(&bench.offers("other", 1, 3)).unwrap();
        let second = given(&bench.done(1, 3));
        (first.0, declined.1, second.is_some())
    };
    assert_eq!(twice(), (To::Parent, "counts_elsewhere".into(), false));
    assert_eq!(without(Guard::Given, twice), (To::Parent, "yes".into(), true));
}

#[test]
fn the_next_version_is_for_the_edge_that_it_is_with_and_at_home_likewise() {
    let mut bench = Bench::new();
    bench.offers("home", 7, 3);
    bench.done(7, 3);
    bench.silence();
    bench.offers("other", 1, 3);
    assert!(trains(&bench.offers("other", 2, 4)));
    bench.done(2, 4);
    assert_eq!(
        answered(&bench.offers("home", 8, 4)),
        Some((To::Parent, "counts_elsewhere".into()))
    );
    assert!(trains(&bench.offers("home", 9, 5)));
    assert_eq!(given(&bench.done(9, 5)).unwrap().0, To::Parent);
}

#[test]
fn work_that_was_under_way_is_for_the_edge_that_asked_and_then_nothing_from_its_version() {
    let mut bench = Bench::new();
    bench.offers("home", 7, 3);
    bench.silence();
    let goes = bench.offers("other", 1, 3);
    assert!(moves(&goes).is_some() && !trains(&goes));
    let ends = bench.done(7, 3);
    assert_eq!(given(&ends).unwrap().0, To::Parent);
    assert_eq!(answered(&ends), Some((other(), "counts_elsewhere".into())));
}

#[test]
fn a_receipt_counts_from_the_edge_that_it_was_given_to_wherever_the_device_is() {
    let mut bench = Bench::new();
    bench.offers("home", 7, 3);
    let first = given(&bench.done(7, 3)).unwrap();
    bench.silence();
    bench.offers("other", 1, 4);
    assert!(!settles(&bench.hear("other", 1, receipt(&first))));
    let second = given(&bench.done(1, 4)).unwrap();
    let kept = verified(&node("home"), 0, 1, receipt(&first)).kept_by_broker();
    assert!(settles(&bench.step(Input::Message(kept))), "also without coming home");
    bench.offers("home", 9, 5);
    assert!(!settles(&bench.hear("home", 1, receipt(&second))));
    assert!(settles(&bench.hear("other", 1, receipt(&second))));
}

#[test]
fn a_restart_changes_neither_where_it_is_nor_whom_it_heard() {
    let mut bench = Bench::away(1);
    bench.hear("other", 5, Body::Offer(offer(2, 1).into()));
    bench.member = reborn(&bench.state, Some("other"));
    bench.step(Input::Start);
    let old = bench.hear("other", 4, Body::Offer(offer(3, 2).into()));
    assert!(old.contains(&Effect::Count("stale_epoch")));
    assert!(moves(&bench.hear("home", 1, Body::Offer(offer(1, 3).into()))).is_some());
    bench.silence();
    assert!(
        moves(&bench.hear("other", 4, Body::Offer(offer(3, 4).into()))).is_none(),
        "the fence stays"
    );
    assert!(moves(&bench.hear("other", 5, Body::Offer(offer(3, 4).into()))).is_some());
}

#[test]
fn with_another_second_edge_or_none_it_starts_at_home() {
    for second in [None, Some("third")] {
        let mut bench = Bench::away(1);
        bench.done(1, 1);
        bench.member = reborn(&bench.state, second);
        bench.step(Input::Start);
        let offered = bench.offers("home", 7, 2);
        assert_eq!(answered(&offered), Some((To::Parent, "yes".into())));
        assert_eq!(moves(&offered), None);
        bench.member = reborn(&bench.state, Some("other"));
        let ignored = bench.offers("other", 2, 3);
        assert_eq!(ignored, [], "it is at home, also where the old one is named again");
    }
}

#[test]
fn a_device_that_was_cut_off_itself_asks_its_own_edge_before_it_goes() {
    let mut bench = Bench::new();
    bench.step(Input::Timer(Timer::Edge));
    let heard = bench.offers("other", 1, 1);
    assert_eq!(moves(&heard), None);
    let asks_home =
        |effect: &Effect| matches!(effect, Effect::Send { to: To::Parent, body: Body::Get(_), .. });
    assert!(heard.iter().any(asks_home), "whoever was cut off hears nobody");
    assert!(trains(&bench.offers("home", 7, 1)));
    bench.step(Input::Timer(Timer::Edge));
    assert_eq!(moves(&bench.offers("other", 2, 1)), None, "it has to be silent anew");
}

#[test]
fn what_was_given_counts_also_where_the_keyring_names_an_edge_only_later() {
    let mut bench = Bench::new();
    bench.member = reborn(&bench.state, None);
    bench.offers("home", 7, 5);
    bench.done(7, 5);
    bench.member = reborn(&bench.state, Some("other"));
    bench.silence();
    let refused = bench.offers("other", 1, 5);
    assert_eq!(answered(&refused), Some((other(), "counts_elsewhere".into())));
}

#[test]
fn what_was_given_to_an_edge_counts_against_the_one_that_takes_its_place() {
    let mut bench = Bench::away(1);
    bench.done(1, 1);
    bench.member = reborn(&bench.state, Some("third"));
    bench.step(Input::Start);
    for _ in 0..2 {
        bench.step(Input::Timer(Timer::Edge));
        bench.hear("third", 1, Body::Get(Get { wanted: Wanted::Latest }));
    }
    let refused = bench.offers("third", 1, 1);
    let third = To::Standby(node("third"));
    assert_eq!(answered(&refused), Some((third, "counts_elsewhere".into())));
}

#[test]
fn work_for_an_edge_that_is_no_longer_named_is_given_to_nobody() {
    let mut bench = Bench::away(1);
    bench.member = reborn(&bench.state, None);
    assert!(!trains(&bench.step(Input::Start)));
    assert_eq!(given(&bench.done(1, 1)), None);
}

#[test]
fn only_the_edge_that_it_was_given_to_is_given_its_bytes() {
    let mut bench = Bench::new();
    bench.offers("home", 7, 3);
    let sent = bench.done(7, 3);
    let saved = sent.iter().find_map(|effect| match effect {
        Effect::SaveBlob(bytes) => Some(Digest::of(bytes)),
        _ => None,
    });
    let wanted = Wanted::Chunks { sha256: saved.unwrap(), indices: vec![0] };
    let asks = |edge: &str, bench: &mut Bench| {
        let answer = bench.hear(edge, 1, Body::Get(Get { wanted: wanted.clone() }));
        answer.iter().any(|effect| matches!(effect, Effect::SendChunks { .. }))
    };
    assert_eq!((asks("home", &mut bench), asks("other", &mut bench)), (true, false));
}
