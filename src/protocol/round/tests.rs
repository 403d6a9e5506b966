use super::state::{self, PHASE};
use super::*;
use crate::learn::{NORMS_REMEMBERED, Tensor, TensorSet};
use crate::protocol::effect::{CombineJob, Job, Weighed};
use crate::protocol::fixture::{contribution, first_adapter, plan, round_config, verified};
use crate::protocol::guard::{Guard, tests::without};
use crate::wire::{ClassSummary, Coding, Contribution, Receipt, Verdict};

mod knowledge;
mod triggers;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn config(owner: Owner) -> RoundConfig {
    let members = ["a", "b", "c"].map(node).into();
    round_config(owner, &members, plan(Coding::F32))
}

/// A root and what it has put into its store.
struct Bench {
    round: Round,
    state: BTreeMap<String, Vec<u8>>,
    now: Now,
}

impl Bench {
    fn new(owner: Owner) -> Self {
        Self::of(config(owner), Now::default())
    }

    fn of(config: RoundConfig, now: Now) -> Self {
        let round = Round::new(config, &first_adapter(4), &[]).unwrap();
        let mut bench = Self { round, state: BTreeMap::new(), now };
        bench.step(Input::Start);
        bench
    }

    fn open() -> Self {
        let mut bench = Self::new(Owner::Root);
        bench.step(Input::StartRound);
        bench
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.round.step(self.now, input);
        self.keep(&effects);
        effects
    }

    fn keep(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Put(key, value) => drop(self.state.insert(key.to_string(), value.clone())),
                Effect::Delete(key) => drop(self.state.remove(&**key)),
                _ => {}
            }
        }
    }

    fn restart(&mut self) -> Vec<Effect> {
        let state: Vec<_> = self.state.clone().into_iter().collect();
        self.round = Round::new(self.round.config.clone(), &first_adapter(4), &state).unwrap();
        self.step(Input::Start)
    }

    fn offer(&self) -> (Digest, Offer) {
        match &self.round.phase {
            Phase::Open(open) => (open.digest, Offer::clone(&open.offer)),
            Phase::Closing(closing) => (closing.digest, Offer::clone(&closing.offer)),
            Phase::Idle => panic!("no round is open"),
        }
    }

    fn work(&self, seed: u8) -> Contribution {
        let (offer, body) = self.offer();
        let delta = delta(f32::from(seed));
        Contribution { num_examples: 100, ..contribution(offer, body.version, &delta) }
    }

    fn send(&mut self, sender: &str, work: &Contribution) -> Vec<Effect> {
        let round = self.round_of(&work.offer);
        self.step(message(sender, round, Body::Contribution(work.clone().into())))
    }

    fn round_of(&self, offer: &Digest) -> RoundNo {
        let recent = self.round.recent.iter().find(|r| r.offer == *offer);
        recent.map_or(self.round.number, |r| r.task.round)
    }

    fn answer(&mut self, sender: &str, accepted: bool) -> Vec<Effect> {
        let (offer, _) = self.offer();
        let body = Body::Answer(Answer { offer, accepted, reason: "paused".into() });
        self.step(message(sender, 1, body))
    }

    fn phase(&self) -> &'static str {
        self.round.view().phase
    }

    fn combine(&mut self) -> Vec<Effect> {
        self.combine_weighed(Vec::new())
    }

    fn combine_weighed(&mut self, weighed: Vec<Weighed>) -> Vec<Effect> {
        let (offer, _) = self.offer();
        let outcome = Ok(Work {
            knowledge: None,
            update: Some(first_adapter(4)),
            class_logits: None,
            num_examples: 300,
            num_devices: 3,
            steps: 4,
            loss_first: 1.0,
            loss_last: 0.5,
            risk: None,
            residual: None,
            own: None,
            weighed,
        });
        self.step(Input::Combined { offer, outcome })
    }
}

fn message(sender: &str, round: RoundNo, body: Body) -> Input {
    Input::Message(verified(&node(sender), round, 1, body))
}

fn delta(step: f32) -> Vec<u8> {
    let mut set = update::unpack(&first_adapter(4)).unwrap();
    set.values_mut().flatten().for_each(|value| *value = step / 100.0);
    update::pack(&set, Coding::F32, 0).unwrap()
}

fn verdict(effects: &[Effect]) -> Option<Verdict> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { body: Body::Receipt(Receipt { verdict, .. }), .. } => Some(verdict.clone()),
        _ => None,
    })
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what `verdict` gives")]
fn refused(reason: &str) -> Option<Verdict> {
    Some(Verdict::Refused(reason.into()))
}

fn job(effects: &[Effect]) -> Option<Box<CombineJob>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Job(Job::Combine(job)) => Some(job.clone()),
        _ => None,
    })
}

fn changes_state(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Put(..) | Effect::Delete(_) | Effect::SaveBlob(_)))
}

#[test]
fn a_round_offers_the_current_version_and_sets_its_deadline() {
    let mut bench = Bench::new(Owner::Root);
    let effects = bench.step(Input::StartRound);
    let (_, offer) = bench.offer();
    assert_eq!((offer.round, offer.version, offer.deadline_ms), (1, 0, 20_000));
    assert!(effects.contains(&Effect::Timer { timer: Timer::Deadline, after_ms: 20_000 }));
    assert!(effects.iter().any(|e| matches!(
        e,
        Effect::Send { to: To::Children, body: Body::Offer(_), delivery: Delivery::Latest, .. }
    )));
    assert_eq!(bench.step(Input::StartRound), [], "one at a time");
}

#[test]
fn an_offer_says_where_the_learning_rate_goes() {
    let mut bench = Bench::new(Owner::Root);
    bench.round.config.schedule = RateSchedule::CosineSteps;
    bench.round.config.versions = 2;
    bench.step(Input::StartRound);
    let plan = bench.offer().1.plan;
    assert!((plan.learning_rate - 0.1).abs() < 1e-6);
    assert!((plan.final_rate.unwrap() - 0.05).abs() < 1e-6);
}

#[test]
fn all_in_closes_at_once_and_the_result_is_published() {
    let mut bench = Bench::open();
    for sender in ["b", "c"] {
        let work = bench.work(1);
        assert_eq!(verdict(&bench.send(sender, &work)), Some(Verdict::Accepted));
        assert_eq!(bench.phase(), "open");
    }
    let work = bench.work(2);
    let effects = bench.send("a", &work);
    let senders: Vec<_> = job(&effects).unwrap().inputs.into_iter().map(|i| i.sender).collect();
    assert_eq!(senders, ["a", "b", "c"].map(node));
    let effects = bench.combine();
    let result = effects.iter().find_map(|effect| match effect {
        Effect::Send { body: Body::Result(result), .. } => Some(result.clone()),
        _ => None,
    });
    assert_eq!(result.map(|r| (r.version, r.contributors)), Some((1, 3)));
    assert!(effects.contains(&Effect::Timer { timer: Timer::NextRound, after_ms: 500 }));
}

#[test]
fn the_quorum_is_enough_after_the_deadline_and_not_before() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    bench.send("a", &work);
    bench.step(Input::Timer(Timer::Deadline));
    assert_eq!(bench.phase(), "open", "one of three is no quorum");
    assert!(job(&bench.send("b", &work)).is_some());
}

#[test]
fn a_quorum_is_a_part_rounded_up_in_whole_members() {
    let mut bench = Bench::open();
    for (members, quorum, expected) in [(3, 0.6, 2), (20, 0.55, 11), (10, 0.7, 7), (1, 0.1, 1)] {
        bench.round.config.members = (0..members).map(|n| node(&format!("n{n}"))).collect();
        bench.round.config.quorum = quorum;
        let Phase::Open(open) = &bench.round.phase else { panic!("no round is open") };
        assert_eq!(bench.round.quorum(open), expected);
    }
}

#[test]
fn a_guest_is_waited_for_once_it_takes_part_and_no_longer_when_it_declines() {
    let mut bench = Bench::open();
    bench.round.config.guests = [node("guest")].into();
    assert_eq!(bench.round.view().expected, 3, "nobody waits for who may be elsewhere");
    bench.answer("guest", true);
    assert_eq!(bench.round.view().expected, 4);
    for (sender, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        let work = bench.work(seed);
        bench.send(sender, &work);
    }
    assert_eq!(bench.phase(), "open", "its work may come");
    bench.restart();
    assert_eq!(bench.round.view().expected, 4, "that is on disk");
    let work = bench.work(4);
    let closed = bench.send("guest", &work);
    assert_eq!(job(&closed).unwrap().inputs.len(), 4);
}

#[test]
fn a_guest_that_declines_holds_nothing_up_and_a_stranger_is_none() {
    let mut bench = Bench::open();
    bench.round.config.guests = [node("guest")].into();
    bench.answer("guest", true);
    bench.answer("guest", false);
    assert_eq!(bench.round.view().expected, 3);
    let work = bench.work(1);
    assert_eq!(bench.send("stranger", &work), [Effect::Count("not_a_member")]);
    bench.send("guest", &work);
    assert_eq!(bench.round.view().accepted, 1, "whoever contributes takes part");
    assert_eq!(bench.round.view().expected, 4);
    bench.restart();
    assert_eq!(bench.round.view().expected, 4, "also after a restart");
}

#[test]
fn a_repeat_gets_the_same_receipt_and_changes_nothing_in_each_phase() {
    let mut bench = Bench::open();
    let works = ["a", "b", "c"].map(|sender| (sender, bench.work(sender.as_bytes()[0])));
    for (sender, work) in &works {
        bench.send(sender, work);
        let again = bench.send(sender, work);
        assert_eq!(verdict(&again), Some(Verdict::Accepted));
        assert_eq!(again.len(), 1);
    }
    assert_eq!(bench.phase(), "closing");
    bench.combine();
    bench.restart();
    for (sender, work) in &works {
        let again = bench.send(sender, work);
        assert_eq!((verdict(&again), again.len()), (Some(Verdict::Accepted), 1));
    }
}

#[test]
fn without_the_memory_of_repeats_a_repeat_would_count_again() {
    let trial = || {
        let mut bench = Bench::open();
        let work = bench.work(1);
        for sender in ["a", "b", "c"] {
            bench.send(sender, &work);
        }
        bench.combine();
        bench.send("a", &work);
        bench.round.late.len()
    };
    assert_eq!(trial(), 0);
    assert_eq!(without(Guard::Repeats, trial), 1);
}

#[test]
fn another_body_for_the_same_offer_is_equivocation() {
    let mut bench = Bench::open();
    let (one, two) = (bench.work(1), bench.work(2));
    bench.send("a", &one);
    let effects = bench.send("a", &two);
    assert_eq!(verdict(&effects), refused("equivocation"));
    assert!(effects.iter().any(|e| matches!(e, Effect::Record(Event::Equivocation { .. }))));
    assert!(!changes_state(&effects));
}

#[test]
fn a_straggler_counts_in_the_next_round_as_stale() {
    for when in ["closing", "idle", "open"] {
        let mut bench = Bench::open();
        let work = bench.work(1);
        bench.send("a", &work);
        bench.send("b", &work);
        bench.step(Input::Timer(Timer::Deadline));
        if when != "closing" {
            bench.combine();
        }
        if when == "open" {
            bench.step(Input::StartRound);
        }
        assert_eq!(bench.phase(), when);
        assert_eq!(verdict(&bench.send("c", &work)), Some(Verdict::Late));
        assert_eq!(verdict(&bench.send("c", &work)), Some(Verdict::Late), "repeat");
        bench.restart();
        if when == "closing" {
            bench.combine();
        }
        bench.step(Input::StartRound);
        let work = bench.work(3);
        for sender in ["a", "b"] {
            bench.send(sender, &work);
        }
        let inputs = job(&bench.send("c", &work)).unwrap().inputs;
        let stale: Vec<_> = inputs.iter().filter(|i| i.staleness == 1).map(|i| &i.sender).collect();
        assert_eq!((inputs.len(), stale), (4, vec![&node("c")]), "{when}");
        bench.combine();
        assert_eq!(bench.round.late, BTreeMap::new());
        assert!(!bench.state.keys().any(|key| key.starts_with("round/late/")));
    }
}

#[test]
fn two_late_ones_of_one_sender_both_count() {
    let mut bench = Bench::open();
    let mut missed = Vec::new();
    for seed in 1..3 {
        let work = bench.work(seed);
        bench.send("a", &work);
        bench.send("b", &work);
        bench.step(Input::Timer(Timer::Deadline));
        missed.push(work);
        bench.combine();
        bench.step(Input::StartRound);
    }
    for work in &missed {
        assert_eq!(verdict(&bench.send("c", work)), Some(Verdict::Late));
    }
    let work = bench.work(9);
    for sender in ["a", "b"] {
        bench.send(sender, &work);
    }
    let inputs = job(&bench.send("c", &work)).unwrap().inputs;
    let of_c: Vec<u64> =
        inputs.iter().filter(|i| i.sender == node("c")).map(|i| i.staleness).collect();
    assert_eq!(of_c.len(), 3);
    assert_eq!(of_c.iter().sum::<u64>(), 3, "0 + 1 + 2 versions behind");
}

#[test]
fn a_late_one_counts_even_when_its_offer_is_forgotten_by_then() {
    let mut bench = Bench::open();
    let first = bench.work(1);
    bench.send("a", &first);
    bench.send("b", &first);
    bench.step(Input::Timer(Timer::Deadline));
    bench.combine();
    bench.send("c", &first);
    bench.round.recent.clear();
    bench.step(Input::StartRound);
    let work = bench.work(2);
    for sender in ["a", "b"] {
        bench.send(sender, &work);
    }
    assert_eq!(job(&bench.send("c", &work)).unwrap().inputs.len(), 4);
}

#[test]
fn each_closed_round_has_a_key_of_its_own_and_they_come_back_in_order() {
    let mut bench = Bench::new(Owner::Root);
    let mut works = Vec::new();
    for seed in 0..14 {
        bench.step(Input::StartRound);
        works.push(bench.work(seed));
        for sender in ["a", "b"] {
            bench.send(sender, &works[works.len() - 1]);
        }
        bench.step(Input::Timer(Timer::Deadline));
        bench.combine();
    }
    let kept = |bench: &Bench| {
        let is_kept = |round: &RoundNo| bench.state.contains_key(&state::recent(*round));
        (1..=20).filter(is_kept).collect::<Vec<_>>()
    };
    assert_eq!(kept(&bench), (3..=14).collect::<Vec<_>>(), "the last twelve");

    let late = bench.send("c", &works[13]);
    let put: Vec<_> = late
        .iter()
        .filter_map(|effect| match effect {
            Effect::Put(key, _) if key.starts_with("round/recent/") => Some(key.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(put, [state::recent(14)], "the others stay as they are");

    let before = bench.round.recent.clone();
    bench.restart();
    assert_eq!(bench.round.recent, before, "by number: as text, 10 would come before 9");
}

#[test]
fn a_restart_takes_a_higher_epoch_and_offers_the_same_digest() {
    let mut bench = Bench::open();
    let (before, _) = bench.offer();
    let work = bench.work(1);
    bench.send("a", &work);
    let effects = bench.restart();
    let offered = effects.iter().find_map(|effect| match effect {
        Effect::Send { body: body @ Body::Offer(_), epoch, .. } => {
            Some((Digest::of(&body.to_bytes().unwrap()), *epoch))
        }
        _ => None,
    });
    assert_eq!(offered, Some((before, 2)));
    assert!(effects.iter().any(|e| matches!(e, Effect::Timer { timer: Timer::Deadline, .. })));
    bench.send("b", &work);
    assert_eq!(job(&bench.send("c", &work)).unwrap().inputs.len(), 3);
}

#[test]
fn a_restart_while_closing_combines_the_same_set_again() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    bench.send("a", &work);
    bench.send("b", &work);
    let before = job(&bench.send("c", &work));
    assert!(before.is_some());
    assert_eq!(job(&bench.restart()), before);
}

#[test]
fn lengths_are_remembered_over_rounds_and_restarts_and_what_was_clipped_is_recorded() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    for sender in ["a", "b", "c"] {
        bench.send(sender, &work);
    }
    let weighed = |name: &str, norm, factor| Weighed {
        sender: node(name),
        update: UpdateId([1; 16]),
        norm,
        factor,
    };
    let all = vec![weighed("a", 2.0, 1.0), weighed("b", 8.0, 0.25), weighed("c", 1.0, 1.0)];
    let effects = bench.combine_weighed(all);
    let clipped: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Record(Event::Clip { sender, kept_ppm, .. }) => {
                Some((sender.as_str(), *kept_ppm))
            }
            _ => None,
        })
        .collect();
    assert_eq!(clipped, [("b", 250_000)]);
    bench.restart();
    bench.step(Input::StartRound);
    let work = bench.work(2);
    bench.send("a", &work);
    bench.send("b", &work);
    let before = job(&bench.send("c", &work)).unwrap();
    assert_eq!(before.norms, [2.0, 8.0, 1.0]);
    assert_eq!(job(&bench.restart()).unwrap(), before, "dies while it combines");
    let (offer, _) = bench.offer();
    bench.step(Input::Combined { offer, outcome: Err("not_finite") });
    assert_eq!(bench.round.norms, before.norms, "a failed combination tells nothing");
    let many = (0..100).map(|_| weighed("a", 3.0, 1.0)).collect();
    bench.step(Input::StartRound);
    let work = bench.work(3);
    for sender in ["a", "b", "c"] {
        bench.send(sender, &work);
    }
    bench.combine_weighed(many);
    assert_eq!(bench.round.norms, [3.0; NORMS_REMEMBERED], "bounded");
}

#[test]
fn an_idle_root_seals_its_result_anew_after_a_restart() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    for sender in ["a", "b", "c"] {
        bench.send(sender, &work);
    }
    bench.combine();
    let effects = bench.restart();
    assert!(effects.iter().any(|e| matches!(
        e,
        Effect::Send { body: Body::Result(result), epoch: 2, .. }
            if result.version == 1 && result.contributors == 3
    )));
    assert!(effects.iter().any(|e| matches!(e, Effect::Timer { timer: Timer::NextRound, .. })));
    assert!(effects.iter().any(|e| matches!(e, Effect::Apply { version: 1, .. })));
}

#[test]
fn what_does_not_fit_its_offer_is_refused_before_any_receipt_and_its_twin_is_taken() {
    let mut bench = Bench::open();
    let good = bench.work(1);
    let manifest =
        crate::wire::Manifest { bytes: 1, ..crate::wire::Manifest::of(&[0; 9_000], 4096) };
    let summary = ClassSummary { mean_logits: vec![0; 4], counts: vec![1] };
    let cases = [
        (Contribution { offer: Digest([7; 32]), ..good.clone() }, "unknown_offer"),
        (Contribution { version: 1, ..good.clone() }, "wrong_version"),
        (Contribution { num_examples: 0, ..good.clone() }, "no_examples"),
        (Contribution { num_examples: u64::MAX, ..good.clone() }, "too_many_examples"),
        (Contribution { delta: None, ..good.clone() }, "wrong_contribution_kind"),
        (Contribution { class_logits: Some(summary), ..good.clone() }, "wrong_contribution_kind"),
        (Contribution { delta: Some(Blob::Manifest(manifest)), ..good.clone() }, "unsound_blob"),
        (Contribution { delta: Some(Blob::Inline(vec![1, 2])), ..good.clone() }, "bad_compression"),
        (Contribution { delta: Some(Blob::Inline(nan())), ..good.clone() }, "not_finite"),
        (Contribution { delta: Some(Blob::Inline(delta(1e9))), ..good.clone() }, "out_of_range"),
        (
            Contribution { delta: Some(Blob::Inline(first_adapter(5))), ..good.clone() },
            "layout_mismatch",
        ),
    ];
    for (bad, reason) in cases {
        let effects = bench.send("a", &bad);
        assert_eq!(verdict(&effects), refused(reason));
        assert!(!changes_state(&effects), "{reason}");
    }
    let foreign_round = message("a", 5, Body::Contribution(good.clone().into()));
    assert_eq!(verdict(&bench.step(foreign_round)), refused("wrong_round"));
    assert_eq!(verdict(&bench.send("a", &good)), Some(Verdict::Accepted));
}

/// A packed set with a NaN, which `pack` wouldn't make.
fn nan() -> Vec<u8> {
    let set = update::unpack(&first_adapter(4)).unwrap();
    let shape = |t: &Tensor| t.shape.iter().map(|d| u32::try_from(*d).unwrap()).collect();
    let tensors = set
        .tensors()
        .iter()
        .map(|t| crate::wire::PackedTensor { name: t.name.clone(), shape: shape(t) })
        .collect();
    let data = f32::NAN.to_le_bytes().repeat(TensorSet::num_values(&set));
    crate::wire::PackedSet { tensors, coding: Coding::F32, block: 0, data }.to_bytes().unwrap()
}

#[test]
fn strangers_are_not_listened_to() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    assert_eq!(bench.send("x", &work), [Effect::Count("not_a_member")]);
}

fn in_chunks(bench: &Bench) -> (Contribution, Vec<u8>) {
    let bytes = delta(1.0);
    let manifest = crate::wire::Manifest::of(&bytes, 4096);
    (Contribution { delta: Some(Blob::Manifest(manifest)), ..bench.work(1) }, bytes)
}

#[test]
fn a_delta_in_chunks_has_its_receipt_when_all_bytes_are_here() {
    let mut bench = Bench::open();
    let (work, bytes) = in_chunks(&bench);
    let effects = bench.send("a", &work);
    assert!(matches!(effects.as_slice(), [Effect::Fetch { .. }]));
    let digest = Digest::of(&bytes);
    let effects = bench.step(Input::Fetched { digest, bytes: bytes.clone() });
    assert_eq!(verdict(&effects), Some(Verdict::Accepted));
    assert_eq!(bench.step(Input::Fetched { digest, bytes }), []);
    assert!(bench.round.waiting.is_empty());
    assert!(bench.round.blobs().contains(&digest));
}

#[test]
fn a_delta_whose_round_closed_while_it_was_fetched_is_late_and_not_lost() {
    let mut bench = Bench::open();
    let (work, bytes) = in_chunks(&bench);
    bench.send("c", &work);
    let inline = bench.work(2);
    bench.send("a", &inline);
    bench.send("b", &inline);
    bench.step(Input::Timer(Timer::Deadline));
    assert_eq!(bench.phase(), "closing");
    let effects = bench.step(Input::Fetched { digest: Digest::of(&bytes), bytes });
    assert_eq!(verdict(&effects), Some(Verdict::Late));
}

#[test]
fn a_round_whose_quorum_cannot_come_is_given_up_after_its_deadline_and_asked_anew() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    bench.send("a", &work);
    bench.answer("b", false);
    bench.answer("c", false);
    assert_eq!(bench.phase(), "open", "they may come back before the deadline");
    bench.restart();
    let effects = bench.step(Input::Timer(Timer::Deadline));
    assert_eq!(bench.phase(), "idle");
    assert!(effects.contains(&Effect::Timer { timer: Timer::NextRound, after_ms: 500 }));
    assert_eq!(verdict(&bench.send("a", &work)), Some(Verdict::Accepted), "same receipt");
    bench.step(Input::Timer(Timer::NextRound));
    let fresh = bench.work(2);
    bench.send("a", &fresh);
    bench.send("b", &fresh);
    let inputs = job(&bench.send("c", &fresh)).unwrap().inputs;
    assert_eq!(inputs.len(), 4, "what was accepted counts beside the new one");
    assert!(inputs.iter().all(|input| input.staleness == 0));
    bench.combine();
    assert_eq!(verdict(&bench.send("a", &fresh)), Some(Verdict::Accepted));
}

#[test]
fn a_decline_after_the_contribution_changes_nothing() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    bench.send("a", &work);
    assert_eq!(bench.answer("a", false), []);
    assert_eq!(bench.round.view().expected, 3);
    bench.answer("b", false);
    assert_eq!(bench.round.view().expected, 2);
    bench.answer("b", true);
    assert_eq!(bench.round.view().expected, 3);
}

#[test]
fn what_was_accepted_outlives_one_failed_combination_but_not_all() {
    let mut bench = Bench::open();
    for (turn, waiting) in [(1, 3), (2, 3), (3, 3)] {
        let work = bench.work(turn);
        let mut inputs = 0;
        for sender in ["a", "b", "c"] {
            inputs = job(&bench.send(sender, &work)).map_or(inputs, |job| job.inputs.len());
        }
        assert_eq!(inputs, if turn == 1 { 3 } else { 6 });
        let (offer, _) = bench.offer();
        bench.step(Input::Combined { offer, outcome: Err("engine") });
        assert_eq!((bench.phase(), bench.round.late.len()), ("idle", waiting));
        bench.step(Input::StartRound);
    }
}

#[test]
fn a_paused_root_opens_no_round_and_goes_on_when_it_is_resumed() {
    let mut bench = Bench::new(Owner::Root);
    bench.step(Input::Pause(true));
    assert_eq!(bench.step(Input::Timer(Timer::NextRound)), []);
    bench.restart();
    assert_eq!(bench.step(Input::Timer(Timer::NextRound)), [], "pausing outlives a restart");
    let effects = bench.step(Input::Pause(false));
    assert!(effects.contains(&Effect::Timer { timer: Timer::NextRound, after_ms: 500 }));
    bench.step(Input::StartRound);
    assert_eq!(bench.step(Input::Timer(Timer::NextRound)), [], "one round at a time");
}

#[test]
fn a_relay_adopts_while_its_round_is_open_and_its_round_goes_on_as_offered() {
    let mut bench = Bench::new(Owner::Relay);
    let mut effects = Vec::new();
    bench.round.open(Some(Digest([5; 32])), 9_000, &mut effects);
    let result = RoundResult {
        knowledge: None,
        offer: Digest([4; 32]),
        version: 2,
        adapter: Blob::of(&first_adapter(4), 4096),
        class_targets: None,
        contributors: 7,
        contributor_set: Digest([3; 32]),
    };
    let mut adopted = Vec::new();
    bench.round.adopt(result.clone(), None, &mut adopted);
    let passed_on = Body::Result(result.clone().into());
    assert!(adopted.iter().any(|e| matches!(e, Effect::Send { body, .. } if *body == passed_on)));
    bench.round.adopt(RoundResult { version: 1, ..result }, None, &mut adopted);
    assert_eq!(bench.round.view().version, 2, "versions never go back");
    let work = bench.work(1);
    assert_eq!(work.version, 0);
    for sender in ["a", "b"] {
        assert_eq!(verdict(&bench.send(sender, &work)), Some(Verdict::Accepted));
    }
    let inputs = job(&bench.send("c", &work)).unwrap().inputs;
    assert!(inputs.iter().all(|input| input.staleness == 0));
}

#[test]
fn only_what_is_offered_is_given_out_in_chunks() {
    let big = first_adapter(8_000);
    let mut round = Round::new(config(Owner::Root), &big, &[]).unwrap();
    let get = |sha256| {
        let wanted = Wanted::Chunks { sha256, indices: vec![0, 1] };
        message("a", 0, Body::Get(Get { wanted }))
    };
    let effects = round.step(Now::default(), get(Digest::of(&big)));
    assert!(matches!(effects.as_slice(), [Effect::SendChunks { chunk_bytes: 4096, .. }]));
    let effects = round.step(Now::default(), get(Digest([1; 32])));
    assert_eq!(effects, [Effect::Count("blob_not_offered")]);
    let latest = message("a", 0, Body::Get(Get { wanted: Wanted::Latest }));
    assert_eq!(round.step(Now::default(), latest), [Effect::Republish]);
}

#[test]
fn a_damaged_state_names_its_key() {
    for key in [PHASE, &state::recent(7)] {
        let state = [(key.to_owned(), vec![0xc1])];
        let error = Round::new(config(Owner::Root), &first_adapter(4), &state).unwrap_err();
        assert!(error.starts_with(key), "{error}");
    }
}

#[test]
fn without_room_no_round_opens_and_contributions_wait_at_their_senders() {
    let mut bench = Bench::open();
    let work = bench.work(1);
    bench.step(Input::Full(true));
    let waits = bench.send("a", &work);
    assert_eq!(waits, [Effect::Count("disk_full")], "no receipt, so it comes again");
    bench.step(Input::Full(false));
    assert_eq!(verdict(&bench.send("a", &work)), Some(Verdict::Accepted));

    let mut idle = Bench::new(Owner::Root);
    idle.step(Input::Full(true));
    assert_eq!(idle.step(Input::StartRound), [Effect::Count("disk_full")]);
    assert_eq!(idle.phase(), "idle");
    let again = idle.step(Input::Full(false));
    assert!(again.iter().all(|effect| matches!(effect, Effect::Timer { .. })), "{again:?}");
    idle.step(Input::StartRound);
    assert_eq!(idle.phase(), "open");
}
