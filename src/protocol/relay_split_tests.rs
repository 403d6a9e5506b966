//! A relay whose devices have the front of a model alone.

use std::collections::BTreeMap;

use super::super::effect::{CombineJob, Job};
use super::super::fixture::{
    CHUNK_BYTES, contribution, layout_of, member_config, plan, round_config, verified,
};
use super::super::session::{BackEnd, BackTask};
use super::super::{Backs, Owner};
use super::*;
use crate::ids::NodeId;
use crate::learn::{Cut, Tensor, TensorSet};
use crate::wire::{Coding, Frame, SplitCoding, SplitMessage, Verdict};

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn terms() -> SplitTerms {
    let cut = Cut { blocks: 1, head_in_front: false };
    SplitTerms { cut, coding: SplitCoding::F32, part_bytes: 4096 }
}

/// A front of three values and a back of two.
fn adapter(front: f32, back: f32) -> Vec<u8> {
    let tensor = |name: &str, n: usize, value: f32| Tensor {
        name: name.into(),
        shape: vec![n],
        data: vec![value; n],
    };
    let tensors = vec![tensor("blocks.0.norm1.bias", 3, front), tensor("head.bias", 2, back)];
    update::pack(&TensorSet::new(tensors).unwrap(), Coding::F32, 0).unwrap()
}

fn front(value: f32) -> Vec<u8> {
    update::part(&adapter(value, 0.0), |name| terms().cut.is_front(name)).unwrap()
}

fn back(value: f32) -> Vec<u8> {
    update::part(&adapter(0.0, value), |name| !terms().cut.is_front(name)).unwrap()
}

struct Bench {
    relay: Relay,
    backs: Backs,
    state: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Bench {
    fn new(backs: Backs) -> Self {
        let state = BTreeMap::new();
        let relay = Self::relay(backs, &state);
        let mut bench = Self { relay, backs, state, blobs: BTreeMap::new() };
        bench.step(Input::Start);
        bench
    }

    fn relay(backs: Backs, state: &BTreeMap<String, Vec<u8>>) -> Relay {
        let of = |prefix: &str| -> Vec<_> {
            let own = state.iter().filter(|(key, _)| key.starts_with(prefix));
            own.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let members = ["d1", "d2"].map(node).into();
        let mut config = round_config(Owner::Relay, &members, plan(Coding::F32));
        config.split = Some(backs);
        let round = Round::new(config, &front(0.0), &of(Round::PREFIX)).unwrap();
        let mut config = member_config(&node("edge"), &node("cloud"), true);
        config.layout = layout_of(&adapter(0.0, 0.0)).into();
        let member = Member::new(config, &of(Member::PREFIX)).unwrap();
        let config = RelayConfig {
            margin_ms: 5_000,
            split: Some(terms()),
            chunk_bytes: CHUNK_BYTES,
            island: None,
        };
        Relay::new(config, member, round, &of(Relay::PREFIX)).unwrap()
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.relay.step(Now::default(), input);
        for effect in &effects {
            match effect {
                Effect::Put(key, value) => drop(self.state.insert(key.to_string(), value.clone())),
                Effect::Delete(key) => drop(self.state.remove(&**key)),
                Effect::SaveBlob(bytes) => {
                    self.blobs.insert(Digest::of(bytes), bytes.clone());
                }
                _ => {}
            }
        }
        effects
    }

    /// From what is on disk alone; a session and its back die with the process.
    fn restart(&mut self) -> Vec<Effect> {
        self.relay = Self::relay(self.backs, &self.state);
        self.step(Input::Start)
    }

    fn hear(&mut self, from: &str, round: u64, body: Body) -> Vec<Effect> {
        self.step(Input::Message(verified(&node(from), round, 1, body)))
    }

    fn open(&mut self) -> (Digest, Offer) {
        self.open_with(plan(Coding::F32))
    }

    fn open_with(&mut self, plan: Plan) -> (Digest, Offer) {
        let outer = Offer {
            island: None,
            round: 1,
            model: crate::ids::Name::new("m").unwrap(),
            base: Digest([1; 32]),
            version: 0,
            adapter: Blob::of(&adapter(1.0, 2.0), CHUNK_BYTES),
            class_targets: None,
            knowledge: None,
            plan,
            deadline_ms: 20_000,
            outer: None,
        };
        offered(&self.hear("cloud", 1, Body::Offer(outer.into()))).unwrap()
    }

    /// A session of a device, whose back learns this much.
    fn session(&mut self, device: &str, inner: &(Digest, Offer), learned: f32) -> Vec<Effect> {
        self.session_from(&adapter(1.0, 2.0), device, inner, learned)
    }

    /// The same, where the whole adapter behind the offered front is this one.
    fn session_from(
        &mut self,
        whole: &[u8],
        device: &str,
        inner: &(Digest, Offer),
        learned: f32,
    ) -> Vec<Effect> {
        let open = SplitMessage::Open {
            offer: inner.0,
            cut: 1,
            head_in_front: false,
            coding: SplitCoding::F32,
            class_counts: vec![20, 20],
        };
        let whole = Digest::of(whole);
        match self.say(device, 1, &open, inner.1.round).as_slice() {
            [Effect::Job(Job::Back { task: BackTask::Open { adapter, .. }, .. })] => {
                assert_eq!(*adapter, whole, "a back starts from the whole adapter");
            }
            other => panic!("{other:?}"),
        }
        let run = inner.1.round;
        let ended = |end| Input::Back { device: node(device), run, end: Ok(end) };
        self.step(ended(BackEnd::Opened));
        self.say(device, 2, &SplitMessage::Finish { settled: None }, inner.1.round);
        self.step(ended(BackEnd::Learned(back(learned))))
    }

    fn say(&mut self, from: &str, step: u32, said: &SplitMessage, round: u64) -> Vec<Effect> {
        let data = said.to_bytes().unwrap();
        let frame = Frame { run: round, step, turn: 0, part: 0, parts: 1, data };
        self.hear(from, round, Body::Frame(frame))
    }

    fn contribute(&mut self, device: &str, inner: &(Digest, Offer), delta: f32) -> Vec<Effect> {
        let work = contribution(inner.0, inner.1.version, &front(delta));
        let body = Body::Contribution(work.into());
        self.hear(device, inner.1.round, body)
    }

    fn combined(&mut self, job: &CombineJob) -> Work {
        let mut blobs = self.blobs.clone();
        blobs.insert(Digest::of(&adapter(1.0, 2.0)), adapter(1.0, 2.0));
        update::combine(job, &|digest| blobs.get(digest).cloned()).unwrap()
    }

    fn combine(&mut self, job: &CombineJob) -> TensorSet {
        update::unpack(&self.combined(job).update.unwrap()).unwrap()
    }

    /// Both devices learn as much in front of the cut, and behind it; what that leads to.
    fn round(
        &mut self,
        whole: &[u8],
        inner: &(Digest, Offer),
        learned: (f32, f32),
    ) -> Box<CombineJob> {
        let mut last = Vec::new();
        for device in ["d1", "d2"] {
            self.session_from(whole, device, inner, learned.1);
            last = self.contribute(device, inner, learned.0);
        }
        job(&last)
    }

    fn end(&mut self, job: &CombineJob) -> Vec<Effect> {
        let work = self.combined(job);
        self.step(Input::Combined { offer: job.offer, outcome: Ok(work) })
    }
}

fn sent<T>(effects: &[Effect], pick: impl Fn(&Body) -> Option<T>) -> Option<T> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { body, .. } => pick(body),
        _ => None,
    })
}

fn offered(effects: &[Effect]) -> Option<(Digest, Offer)> {
    sent(effects, |body| match body {
        Body::Offer(offer) => Some((Digest::of(&body.to_bytes().unwrap()), Offer::clone(offer))),
        _ => None,
    })
}

fn verdict(effects: &[Effect]) -> Option<Verdict> {
    sent(effects, |body| match body {
        Body::Receipt(receipt) => Some(receipt.verdict.clone()),
        _ => None,
    })
}

fn job(effects: &[Effect]) -> Box<CombineJob> {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Job(Job::Combine(job)) => Some(job.clone()),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn devices_are_offered_the_front_alone_and_results_come_down_so_too() {
    let mut bench = Bench::new(Backs::Each);
    let (_, offer) = bench.open();
    assert_eq!(offer.adapter.sha256(), Digest::of(&front(1.0)));
    assert!(bench.relay.blobs().contains(&Digest::of(&adapter(1.0, 2.0))), "the backs need it");
    let result = RoundResult {
        offer: Digest([9; 32]),
        version: 3,
        adapter: Blob::of(&adapter(5.0, 6.0), CHUNK_BYTES),
        class_targets: None,
        knowledge: None,
        contributors: 2,
        contributor_set: Digest([8; 32]),
    };
    let down = |effects: &[Effect]| {
        sent(effects, |body| match body {
            Body::Result(result) => Some(result.adapter.sha256()),
            _ => None,
        })
    };
    let effects = bench.hear("cloud", 1, Body::Result(result.into()));
    assert_eq!(down(&effects), Some(Digest::of(&front(5.0))));
    assert_eq!(down(&bench.restart()), Some(Digest::of(&front(5.0))));
    assert_eq!(bench.relay.version(), 3);
}

#[test]
fn a_contribution_without_its_other_half_is_refused_and_with_it_survives_a_restart() {
    let mut bench = Bench::new(Backs::Each);
    let inner = bench.open();
    let effects = bench.contribute("d1", &inner, 0.5);
    assert_eq!(verdict(&effects), Some(Verdict::Refused("no_back_half".into())));
    let effects = bench.session("d1", &inner, 0.25);
    let save = effects.iter().position(|e| matches!(e, Effect::SaveBlob(_))).unwrap();
    let told = effects.iter().position(|e| matches!(e, Effect::Send { .. })).unwrap();
    assert!(save < told, "on disk in the step in which the device hears of it");
    bench.restart();
    let effects = bench.contribute("d1", &inner, 0.5);
    assert_eq!(verdict(&effects), Some(Verdict::Accepted));
    assert!(bench.relay.blobs().contains(&Digest::of(&back(0.25))));
    bench.session("d2", &inner, 0.75);
    let task = job(&bench.contribute("d2", &inner, 1.5));
    assert_eq!(job(&bench.restart()), task, "the same set again");
    let got = bench.combine(&task);
    // Differences from what was offered: means over both devices, of both halves.
    assert_eq!(got.get("blocks.0.norm1.bias").unwrap().data, [1.0; 3]);
    assert_eq!(got.get("head.bias").unwrap().data, [0.5; 2]);
}

#[test]
fn with_one_back_for_all_each_contribution_has_what_it_had_learned_at_last() {
    for (backs, expected) in [(Backs::Each, 0.5), (Backs::Shared, 0.75)] {
        let mut bench = Bench::new(backs);
        let inner = bench.open();
        bench.session("d1", &inner, 0.25);
        bench.contribute("d1", &inner, 0.5);
        bench.session("d2", &inner, 0.75);
        let task = job(&bench.contribute("d2", &inner, 0.5));
        assert_eq!(bench.combine(&task).get("head.bias").unwrap().data, [expected; 2]);
    }
}

#[test]
fn a_front_of_before_a_restart_keeps_the_back_that_it_trained_with() {
    let mut bench = Bench::new(Backs::Shared);
    let inner = bench.open();
    bench.session("d1", &inner, 0.25);
    bench.contribute("d1", &inner, 0.5);
    bench.restart();
    bench.session("d2", &inner, 0.75);
    let task = job(&bench.contribute("d2", &inner, 0.5));
    let backs: Vec<_> = task.inputs.iter().map(|input| input.back.unwrap()).collect();
    assert_eq!(backs, [0.25, 0.75].map(|learned| Digest::of(&back(learned))));
}

#[test]
fn a_contribution_finds_its_back_also_when_the_device_has_trained_another_since() {
    let mut bench = Bench::new(Backs::Each);
    let first = bench.open();
    bench.session("d1", &first, 0.25);
    bench.relay.round.abandon("superseded", &mut Vec::new());
    bench.relay.serving = None;
    let mut out = Vec::new();
    bench.relay.open_inner(&mut out);
    let second = offered(&out).unwrap();
    assert_ne!(second.0, first.0);
    let (device, delta) = (node("d1"), Digest::of(&back(0.75)));
    let learned = crate::protocol::session::Learned { offer: second.0, device, delta };
    bench.relay.round.learned(learned, &mut Vec::new());
    assert_eq!(verdict(&bench.contribute("d1", &first, 0.5)), Some(Verdict::Late));
    assert_eq!(verdict(&bench.contribute("d1", &second, 0.5)), Some(Verdict::Accepted));
    let kept = bench.relay.blobs();
    assert!([0.25, 0.75].iter().all(|learned| kept.contains(&Digest::of(&back(*learned)))));
}

#[test]
fn cluster_rounds_average_halves_on_the_site_and_one_contribution_tells_their_sum() {
    for dies in [false, true] {
        let mut bench = Bench::new(Backs::Each);
        let plan = Plan { cluster_rounds: Some(3), ..plan(Coding::F32) };
        let mut inner = bench.open_with(plan);
        assert_eq!((inner.1.island, inner.1.plan.cluster_rounds), (Some(1), None));
        for (number, (value, whole)) in
            [(1.0, 2.0), (1.5, 2.25), (2.0, 2.5)].into_iter().enumerate()
        {
            assert_eq!(inner.1.adapter.sha256(), Digest::of(&front(value)), "the site's own front");
            let task = bench.round(&adapter(value, whole), &inner, (0.5, 0.25));
            let mut effects = bench.end(&task);
            let up = sent(&effects, |body| matches!(body, Body::Contribution(_)).then_some(()));
            assert_eq!(up, None, "not before they are over");
            if dies {
                effects = bench.restart();
            }
            if number < 2 {
                inner = offered(&effects).unwrap();
                assert_eq!(inner.1.island, Some(number as u64 + 2));
            } else {
                let all = job(&effects);
                let got = bench.combine(&all);
                assert_eq!(got.get("blocks.0.norm1.bias").unwrap().data, [1.5; 3], "no clipping");
                assert_eq!(got.get("head.bias").unwrap().data, [0.75; 2]);
                let effects = bench.end(&all);
                let up = sent(&effects, |body| match body {
                    Body::Contribution(up) => Some((up.num_examples, up.num_devices, up.steps)),
                    _ => None,
                });
                assert_eq!(up, Some((100, 2, 12)));
            }
        }
    }
}

#[test]
fn cluster_rounds_that_miss_a_quorum_or_the_parents_round_give_what_they_have() {
    for missed in ["quorum", "round"] {
        let mut bench = Bench::new(Backs::Each);
        let plan = Plan { cluster_rounds: Some(3), ..plan(Coding::F32) };
        let first = bench.open_with(plan);
        let task = bench.round(&adapter(1.0, 2.0), &first, (0.5, 0.25));
        let second = offered(&bench.end(&task)).unwrap();
        let effects = if missed == "quorum" {
            bench.step(Input::Timer(Timer::Deadline))
        } else {
            let result = RoundResult {
                offer: Digest([9; 32]),
                version: 1,
                adapter: Blob::of(&adapter(5.0, 6.0), CHUNK_BYTES),
                class_targets: None,
                knowledge: None,
                contributors: 2,
                contributor_set: Digest([8; 32]),
            };
            bench.hear("cloud", 1, Body::Result(result.into()));
            let task = bench.round(&adapter(1.5, 2.25), &second, (0.5, 0.25));
            bench.end(&task)
        };
        let expected = if missed == "quorum" { 0.5 } else { 1.0 };
        let got = bench.combine(&job(&effects));
        assert_eq!(got.get("blocks.0.norm1.bias").unwrap().data, [expected; 3], "{missed}");
    }
}

#[test]
fn a_stranger_and_a_relay_without_backs_get_no_session() {
    let mut bench = Bench::new(Backs::Each);
    let inner = bench.open();
    let finish = SplitMessage::Finish { settled: None };
    let effects = bench.say("d9", 1, &finish, inner.1.round);
    assert_eq!(effects, [Effect::Count("not_for_a_relay")]);
    let effects = bench.say("d1", 1, &finish, inner.1.round);
    assert_eq!(effects[0], Effect::Count("unknown_run"), "the twin is answered");
    let input = Input::Back { device: node("d9"), run: 1, end: Ok(BackEnd::Opened) };
    assert_eq!(bench.step(input), [Effect::Count("back_stale")]);
}
