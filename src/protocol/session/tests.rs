//! Both ends over a wire that loses, repeats, delays and reorders, with lanes whose arithmetic tells which
//! batch an answer is for.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::effect::{Input, Job, Timer, TrainTask, Work};
use super::super::fixture::{plan, verified};
use super::*;
use crate::ids::{Digest, NodeId};
use crate::learn::{BackStep, FrontBegun, Smashed};
use crate::rng::Stream;
use crate::trust::Verified;
use crate::wire::{Coding, Settled};

const TIMEOUT_MS: u64 = 1_000;
const ROUND: u64 = 4;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn terms(head_in_front: bool) -> SplitTerms {
    let cut = Cut { blocks: 1, head_in_front };
    SplitTerms { cut, coding: SplitCoding::F32, part_bytes: 1024 }
}

fn task(steps: u32) -> TrainTask {
    let mut plan = plan(Coding::F32);
    plan.local_steps = steps;
    TrainTask {
        offer: Digest([7; 32]),
        round: ROUND,
        epoch: 1,
        adapter: Digest([8; 32]),
        plan,
        class_targets: None,
        knowledge: None,
        residual: None,
    }
}

fn open_task(steps: u32) -> OpenTask {
    let TrainTask { offer, round, epoch, plan, class_targets, .. } = task(steps);
    OpenTask { offer, round, epoch, whole: Digest([9; 32]), plan, class_targets }
}

/// A batch is known by its number, which is also its activation, its gradient and its length.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn values(batch: u32) -> Activations {
    // More than a part, so that parts can be lost, too.
    Activations::new(vec![2, 150, 1], vec![batch as f32; 300]).unwrap()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
fn batch_of(values: &Activations) -> u32 {
    values.data[0] as u32
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    loss: f64,
    repeat: f64,
    most_delay_ms: usize,
}

enum Event {
    Frame { to_edge: bool, frame: Frame },
    Timer(u64),
    Front(FrontTask),
    Back(u64, Box<BackTask>),
}

struct World {
    head_in_front: bool,
    device: FrontSession,
    edge: BackSessions,
    open: Option<OpenTask>,
    faults: Faults,
    /// From this time on nothing arrives.
    deaf: std::ops::Range<u64>,
    edge_dies_at: Vec<u64>,
    rng: Stream,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    events: u64,
    timers: u64,
    state: Vec<(String, Vec<u8>)>,
    counts: BTreeMap<&'static str, u32>,
    outcome: Option<Result<Work, &'static str>>,
    learned: Vec<Learned>,
    /// Batches so far, the one that waits, and those by which the front has changed.
    batches: u32,
    front: Vec<u32>,
    /// Batches of a run by whole passes, which the front alone knows.
    passes: Option<u32>,
    /// The run of the back, the batch whose change waits, those by which it has changed, all it has seen.
    back_run: u64,
    pending: Option<u32>,
    back: Vec<u32>,
    seen: Vec<u32>,
}

impl World {
    fn new(head_in_front: bool, faults: Faults, seed: u64) -> Self {
        Self {
            head_in_front,
            device: device(head_in_front, &[]),
            edge: BackSessions::new(terms(head_in_front)),
            open: None,
            faults,
            deaf: 0..0,
            edge_dies_at: Vec::new(),
            rng: Stream::new(seed, "session"),
            now: 0,
            queue: BTreeMap::new(),
            events: 0,
            timers: 0,
            state: Vec::new(),
            counts: BTreeMap::new(),
            outcome: None,
            learned: Vec::new(),
            batches: 0,
            front: Vec::new(),
            passes: None,
            back_run: 0,
            pending: None,
            back: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.events += 1;
        self.queue.insert((self.now + ms, self.events), event);
    }

    fn begin(&mut self, steps: u32) {
        self.open = Some(open_task(steps));
        let mut out = Vec::new();
        self.device.begin(task(steps).into(), &mut out);
        self.carry_out(false, out);
    }

    /// Until the device has an outcome, or nothing is left to happen.
    fn run(&mut self) -> Result<Work, &'static str> {
        while self.outcome.is_none() {
            let Some(((at, _), event)) = self.queue.pop_first() else { panic!("it hangs") };
            assert!(at < 10_000_000, "it never ends");
            self.now = at;
            if self.edge_dies_at.first().is_some_and(|dies| *dies <= at) {
                self.edge_dies_at.remove(0);
                self.edge = BackSessions::new(terms(self.head_in_front));
            }
            self.event(event);
        }
        self.outcome.clone().unwrap()
    }

    fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        let to_edge = match event {
            Event::Frame { to_edge, frame } => {
                let sender = node(if to_edge { "d1" } else { "edge" });
                let message = verified(&sender, ROUND, 1, Body::Frame(frame.clone()));
                if to_edge {
                    self.edge.frame(self.open.as_ref(), &message, &frame, &mut out);
                } else {
                    self.device.frame(&message, &frame, &mut out);
                }
                to_edge
            }
            Event::Timer(number) if number == self.timers => {
                self.device.timeout(&mut out);
                false
            }
            Event::Timer(_) => return,
            Event::Front(task) => {
                let (run, end) = (task.run(), self.front(&task));
                self.device.ended(run, Ok(end), &mut out);
                false
            }
            Event::Back(run, task) => {
                let end = self.back(run, &task);
                let learned = self.edge.ended(&node("d1"), run, Ok(end), &mut out);
                self.learned.extend(learned);
                true
            }
        };
        self.carry_out(to_edge, out);
    }

    fn carry_out(&mut self, edge: bool, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { to, body: Body::Frame(frame), delivery, round, .. } => {
                    assert_eq!((delivery, round), (Delivery::Volatile, ROUND));
                    assert_eq!(to == To::Parent, !edge);
                    self.post(!edge, &frame);
                }
                Effect::Timer { timer: Timer::Step, after_ms } => {
                    self.timers += 1;
                    self.after(after_ms, Event::Timer(self.timers));
                }
                Effect::Job(Job::Front(task)) => self.after(5, Event::Front(task)),
                Effect::Job(Job::Back { run, task, .. }) => {
                    self.after(5, Event::Back(run, Box::new(task)));
                }
                Effect::Count(reason) => *self.counts.entry(reason).or_default() += 1,
                Effect::Put(key, value) => self.state = vec![(key.into_owned(), value)],
                Effect::Contribute { work, .. } => self.outcome = Some(work),
                Effect::SaveBlob(_) => assert!(edge),
                other => panic!("{other:?}"),
            }
        }
    }

    fn post(&mut self, to_edge: bool, frame: &Frame) {
        if self.deaf.contains(&self.now) || self.rng.range(0.0, 1.0) < self.faults.loss {
            return;
        }
        let copies = if self.rng.range(0.0, 1.0) < self.faults.repeat { 2 } else { 1 };
        for _ in 0..copies {
            let delay = 1 + self.rng.below(self.faults.most_delay_ms + 1) as u64;
            self.after(delay, Event::Frame { to_edge, frame: frame.clone() });
        }
    }

    /// A front that only keeps the books.
    fn front(&mut self, task: &FrontTask) -> FrontEnd {
        match task {
            FrontTask::Begin { task, .. } => {
                self.front.clear();
                FrontEnd::Begun(FrontBegun {
                    num_examples: 100,
                    class_counts: vec![60, 40],
                    steps: self.passes.unwrap_or(task.plan.local_steps),
                })
            }
            FrontTask::Forward { .. } => {
                self.batches += 1;
                let labels = if self.head_in_front { vec![] } else { vec![0, 1] };
                FrontEnd::Smashed(Smashed { activations: values(self.batches), labels })
            }
            FrontTask::Head { output, .. } => {
                assert_eq!(batch_of(output), self.batches, "an output of another batch");
                FrontEnd::Headed { loss: 0.5, gradient: output.clone() }
            }
            FrontTask::Backward { gradient, .. } => {
                assert_eq!(batch_of(gradient), self.batches, "a gradient of another batch");
                self.front.push(self.batches);
                FrontEnd::Applied(f64::from(self.batches))
            }
            FrontTask::Finish { .. } => FrontEnd::Learned { update: vec![1], residual: None },
        }
    }

    fn back(&mut self, run: u64, task: &BackTask) -> BackEnd {
        if let BackTask::Open { .. } = task {
            self.back_run = run;
            self.pending = None;
            self.back.clear();
            return BackEnd::Opened;
        }
        assert_eq!(run, self.back_run);
        let settle = |this: &mut Self, settled: Option<f64>| {
            if let Some(squared) = settled {
                let batch = this.pending.expect("something waits");
                assert!((squared - f64::from(batch)).abs() < 0.5, "settled with another batch");
                this.back.push(batch);
            }
            this.pending = None;
        };
        match task {
            BackTask::Open { .. } => BackEnd::Opened,
            BackTask::Step { settled, smashed, class_counts } => {
                assert_eq!(
                    (class_counts.as_slice(), smashed.labels.len()),
                    ([60, 40].as_slice(), 2)
                );
                settle(self, *settled);
                let gradient = smashed.activations.clone();
                self.seen.push(batch_of(&gradient));
                self.pending = Some(batch_of(&gradient));
                BackEnd::Stepped(BackStep { loss: 0.5, gradient, squared: 1.0 })
            }
            BackTask::Forward { settled, activations } => {
                settle(self, *settled);
                self.seen.push(batch_of(activations));
                BackEnd::Output(activations.clone())
            }
            BackTask::Backward { gradient } => {
                self.pending = Some(batch_of(gradient));
                let gradient = gradient.clone();
                BackEnd::Stepped(BackStep { loss: 0.0, gradient, squared: 1.0 })
            }
            BackTask::Finish { settled } => {
                settle(self, *settled);
                BackEnd::Learned(vec![2])
            }
        }
    }

    fn count(&self, reason: &str) -> u32 {
        self.counts.get(reason).copied().unwrap_or_default()
    }
}

fn device(head_in_front: bool, state: &[(String, Vec<u8>)]) -> FrontSession {
    let config =
        FrontConfig { terms: terms(head_in_front), min_steps: 3, step_timeout_ms: TIMEOUT_MS };
    FrontSession::new(config, state).unwrap()
}

#[test]
fn nothing_lost_means_each_step_on_both_sides() {
    for head_in_front in [false, true] {
        let mut world = World::new(head_in_front, Faults::default(), 1);
        world.begin(20);
        let work = world.run().unwrap();
        assert_eq!(world.front, (1..=20).collect::<Vec<u32>>());
        assert_eq!(world.back, world.front);
        assert_eq!((work.steps, work.num_examples, work.num_devices), (20, 100, 1));
        assert!((work.loss_first - 0.5).abs() < 1e-6 && work.class_logits.is_none());
        assert_eq!(world.learned.len(), 1);
        assert_eq!(world.learned[0].delta, Digest::of(&[2]));
        assert!(world.counts.is_empty(), "{:?}", world.counts);
    }
}

#[test]
fn a_run_is_as_long_as_the_front_says_and_not_as_the_plans_steps() {
    for (passes, steps) in [(Some(12), 12), (Some(2), 2), (None, 7)] {
        let mut world = World::new(false, Faults::default(), 1);
        world.passes = passes;
        world.begin(7);
        assert_eq!(world.run().unwrap().steps, steps);
        assert_eq!(world.back, (1..=steps).collect::<Vec<u32>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn loss_repeats_and_disorder_cost_steps_and_never_the_run_nor_the_halves_agreement(
        seed in any::<u64>(), head_in_front in any::<bool>(),
    ) {
        // Delays beyond the timeout: answers come late, and behind newer ones.
        let faults = Faults { loss: 0.05, repeat: 0.2, most_delay_ms: 600 };
        let mut world = World::new(head_in_front, faults, seed);
        world.begin(40);
        match world.run() {
            Ok(work) => {
                prop_assert_eq!(&world.back, &world.front);
                prop_assert_eq!(work.steps as usize, world.front.len());
                prop_assert!(work.steps >= 3);
                // Late frames of a run change nothing any more.
                while let Some((_, event)) = world.queue.pop_first() {
                    world.event(event);
                }
                prop_assert_eq!(&world.back, &world.front);
            }
            Err(reason) => prop_assert_eq!(reason, "partner_gone"),
        }
        prop_assert!(world.device.working_on().is_none());
    }
}

#[test]
fn a_back_that_did_not_wait_would_have_learned_from_what_its_front_never_did() {
    let faults = Faults { loss: 0.1, ..Faults::default() };
    let mut world = World::new(false, faults, 5);
    world.begin(60);
    world.run().unwrap();
    assert_eq!(world.back, world.front);
    let never_taken = world.seen.iter().filter(|batch| !world.front.contains(batch)).count();
    assert!(never_taken > 0, "some answers got lost");
    assert!(world.count("split_step_lost") > 0);
}

#[test]
fn one_lost_answer_costs_one_step() {
    let mut world = World::new(false, Faults::default(), 1);
    world.begin(10);
    // Opening takes 20 ms or so: these fall on a step or two in the middle.
    world.deaf = 60..61;
    let work = world.run().unwrap();
    assert_eq!(work.steps + world.count("split_step_lost"), 10);
    assert!(world.count("split_step_lost") <= 1);
    assert_eq!(world.back, world.front);
}

#[test]
fn a_partner_that_is_never_there_is_declined_and_one_that_goes_ends_the_run_with_what_is_learned() {
    let mut world = World::new(false, Faults::default(), 1);
    world.deaf = 0..u64::MAX;
    world.begin(10);
    assert_eq!(world.run(), Err("partner_gone"));
    // Away too early: less than the gate lets out.
    let mut world = World::new(false, Faults::default(), 1);
    world.deaf = 40..u64::MAX;
    world.begin(100);
    assert_eq!(world.run(), Err("partner_gone"));
    assert!(world.front.len() < 3);
    // Away for long enough to end the run, then there again: the steps so far count.
    let mut world = World::new(false, Faults::default(), 1);
    world.deaf = 300..300 + TIMEOUT_MS * u64::from(FrontSession::MOST_MISSED) + 500;
    world.begin(1_000);
    let work = world.run().unwrap();
    assert!(work.steps >= 3 && work.steps < 100, "{}", work.steps);
    assert_eq!(world.back, world.front);
    // Away for ever after enough steps: what the back learned is gone with it.
    let mut world = World::new(false, Faults::default(), 1);
    world.deaf = 300..u64::MAX;
    world.begin(1_000);
    assert_eq!(world.run(), Err("partner_gone"));
}

#[test]
fn an_edge_that_starts_again_makes_the_device_begin_its_run_again_but_not_for_ever() {
    let mut world = World::new(false, Faults::default(), 1);
    world.edge_dies_at = vec![200];
    world.begin(30);
    let work = world.run().unwrap();
    assert_eq!((work.steps, world.front.len()), (30, 30));
    assert_eq!(world.back, world.front);
    assert!(world.batches > 30, "some were for nothing");
    assert_eq!((world.count("run_begun_again"), world.count("unknown_run")), (1, 1));
    let mut world = World::new(false, Faults::default(), 1);
    world.edge_dies_at = vec![200, 400, 600, 800];
    world.begin(1_000);
    assert_eq!(world.run(), Err("partner_gone"));
    assert_eq!(world.count("run_begun_again") + 1, FrontSession::MOST_BEGINS);
}

#[test]
fn a_device_that_starts_again_has_a_newer_run_and_what_was_said_in_the_old_one_is_stale() {
    let mut world = World::new(false, Faults::default(), 1);
    world.begin(30);
    while world.front.len() < 5 {
        let ((at, _), event) = world.queue.pop_first().unwrap();
        world.now = at;
        world.event(event);
    }
    world.device = device(false, &world.state);
    world.begin(30);
    let work = world.run().unwrap();
    assert_eq!((work.steps, world.back_run), (30, 2));
    assert_eq!(world.back, world.front);
}

/// The device's frame of a message, as the edge gets it.
fn from_device(run: u64, step: u32, said: &SplitMessage) -> (Verified, Frame) {
    let data = said.to_bytes().unwrap();
    let frame = Frame { run, step, turn: 0, part: 0, parts: 1, data };
    (verified(&node("d1"), ROUND, 1, Body::Frame(frame.clone())), frame)
}

fn opening() -> SplitMessage {
    SplitMessage::Open {
        offer: Digest([7; 32]),
        cut: 1,
        head_in_front: false,
        coding: SplitCoding::F32,
        class_counts: vec![60, 40],
    }
}

/// What an edge with an open run makes of a message.
fn told(run: u64, step: u32, said: &SplitMessage) -> Vec<Effect> {
    let mut edge = BackSessions::new(terms(false));
    let mut out = Vec::new();
    let (message, frame) = from_device(1, 1, &opening());
    edge.frame(Some(&open_task(5)), &message, &frame, &mut out);
    edge.ended(&node("d1"), 1, Ok(BackEnd::Opened), &mut out);
    let (message, frame) = from_device(run, step, said);
    let mut out = Vec::new();
    edge.frame(Some(&open_task(5)), &message, &frame, &mut out);
    out
}

fn forward(cells: Cells, labels: Vec<u32>) -> SplitMessage {
    SplitMessage::Forward { settled: None, activations: cells, labels }
}

#[test]
fn hostile_activations_are_refused_and_counted_and_their_twin_is_worked_on() {
    let good = terms(false).cells(&values(1)).unwrap();
    let reason = |said: &SplitMessage| match told(1, 2, said).as_slice() {
        [Effect::Count(reason)] => *reason,
        [Effect::Job(Job::Back { task: BackTask::Step { .. }, .. })] => "worked on",
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&forward(good.clone(), vec![0, 1])), "worked on");
    let shaped = |shape: &[u32]| Cells { shape: shape.to_vec(), ..good.clone() };
    for shape in [&[2_u32, 151, 1] as &[u32], &[], &[0, 300, 1], &[u32::MAX; 4], &[1; 9]] {
        assert_eq!(reason(&forward(shaped(shape), vec![0, 1])), "split_shape", "{shape:?}");
    }
    let mut nan = good.clone();
    nan.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(reason(&forward(nan, vec![0, 1])), "split_not_finite");
    let other = Cells { coding: SplitCoding::Int8, ..good.clone() };
    assert_eq!(reason(&forward(other, vec![0, 1])), "split_coding");
    assert_eq!(reason(&forward(good.clone(), vec![])), "split_labels");
    assert_eq!(reason(&SplitMessage::Opened), "frame_out_of_turn");
    assert_eq!(reason(&SplitMessage::OutputGradient { gradient: good }), "frame_out_of_turn");
}

#[test]
fn frames_out_of_order_change_nothing() {
    let good = terms(false).cells(&values(1)).unwrap();
    let said = forward(good, vec![0, 1]);
    assert_eq!(told(1, 1, &said), [Effect::Count("frame_repeated")], "its number is used up");
    assert_eq!(told(1, 0, &said), [Effect::Count("frame_stale")]);
    assert_eq!(told(0, 9, &said), [Effect::Count("frame_stale")], "an older run");
    let unknown = told(2, 1, &said);
    assert_eq!(unknown[0], Effect::Count("unknown_run"));
    assert!(matches!(&unknown[1], Effect::Send { body: Body::Frame(_), .. }));
}

#[test]
fn openings_that_do_not_fit_are_refused_with_a_word() {
    let refused = |open: Option<&OpenTask>, said: &SplitMessage| {
        let mut edge = BackSessions::new(terms(false));
        let mut out = Vec::new();
        let (message, frame) = from_device(1, 1, said);
        edge.frame(open, &message, &frame, &mut out);
        match out.as_slice() {
            [Effect::Count(reason), Effect::Send { .. }] => *reason,
            [Effect::Job(_)] => "opened",
            other => panic!("{other:?}"),
        }
    };
    let open = open_task(5);
    assert_eq!(refused(Some(&open), &opening()), "opened");
    assert_eq!(refused(None, &opening()), "unknown_offer");
    let later = OpenTask { offer: Digest([1; 32]), ..open.clone() };
    assert_eq!(refused(Some(&later), &opening()), "unknown_offer");
    let SplitMessage::Open { offer, head_in_front, coding, class_counts, .. } = opening() else {
        panic!()
    };
    let deeper = SplitMessage::Open { offer, cut: 2, head_in_front, coding, class_counts };
    assert_eq!(refused(Some(&open), &deeper), "other_split");
}

#[test]
fn an_engine_that_fails_costs_a_step_at_the_edge_and_the_work_on_the_device() {
    let mut edge = BackSessions::new(terms(false));
    let mut out = Vec::new();
    let (message, frame) = from_device(1, 1, &opening());
    edge.frame(Some(&open_task(5)), &message, &frame, &mut out);
    out.clear();
    edge.ended(&node("d1"), 1, Err("layout_mismatch"), &mut out);
    assert!(matches!(out.as_slice(), [Effect::Count("layout_mismatch"), Effect::Send { .. }]));
    edge.ended(&node("d1"), 1, Ok(BackEnd::Opened), &mut out);
    assert_eq!(out.last(), Some(&Effect::Count("back_stale")));
    let mut device = device(false, &[]);
    let mut out = Vec::new();
    device.begin(task(5).into(), &mut out);
    device.ended(9, Err("engine"), &mut out);
    assert_eq!(out.last(), Some(&Effect::Count("front_stale")));
    device.ended(1, Err("engine"), &mut out);
    let ended = Effect::Contribute { outer: Digest([7; 32]), work: Err("engine") };
    assert_eq!(out.last(), Some(&ended));
    let mut out = Vec::new();
    let mut summary = task(5);
    summary.plan.adapter_delta = false;
    device.begin(summary.into(), &mut out);
    assert!(matches!(
        out.as_slice(),
        [Effect::Contribute { work: Err("split_needs_adapter_delta"), .. }]
    ));
}

#[test]
fn a_settled_step_that_is_not_the_one_that_waits_counts_nowhere() {
    let mut edge = BackSessions::new(terms(false));
    let mut out = Vec::new();
    let mut hear = |edge: &mut BackSessions, step, said: &SplitMessage| {
        let (message, frame) = from_device(1, step, said);
        out.clear();
        edge.frame(Some(&open_task(5)), &message, &frame, &mut out);
        out.clone()
    };
    hear(&mut edge, 1, &opening());
    edge.ended(&node("d1"), 1, Ok(BackEnd::Opened), &mut Vec::new());
    let cells = terms(false).cells(&values(1)).unwrap();
    let mut settled_of = |step, settled| {
        let said =
            SplitMessage::Forward { settled, activations: cells.clone(), labels: vec![0, 1] };
        let effects = hear(&mut edge, step, &said);
        let stepped = BackStep { loss: 0.1, gradient: values(1), squared: 1.0 };
        edge.ended(&node("d1"), 1, Ok(BackEnd::Stepped(stepped)), &mut Vec::new());
        match effects.as_slice() {
            [Effect::Job(Job::Back { task: BackTask::Step { settled, .. }, .. })] => *settled,
            other => panic!("{other:?}"),
        }
    };
    let claims = |step| Some(Settled { step, squared: 4.0 });
    assert_eq!(settled_of(2, claims(1)), None, "nothing waits yet");
    assert_eq!(settled_of(3, claims(9)), None);
    assert_eq!(settled_of(4, claims(3)), Some(4.0), "the twin");
    assert_eq!(settled_of(5, None), None);
}

#[test]
fn inputs_of_sessions_change_nothing_in_other_machines() {
    use super::super::fixture::{first_adapter, member_config};
    use super::super::{Member, Owner, Round};
    use crate::time::Now;
    let mut member = Member::new(member_config(&node("d1"), &node("edge"), false), &[]).unwrap();
    let config =
        super::super::fixture::round_config(Owner::Root, &[node("d1")].into(), plan(Coding::F32));
    let mut round = Round::new(config, &first_adapter(4), &[]).unwrap();
    let (message, _) = from_device(1, 1, &opening());
    let from_edge = verified(&node("edge"), 1, 0, message.body().clone());
    let inputs = [
        Input::Timer(Timer::Step),
        Input::Front { run: 1, end: Err("x") },
        Input::Back { device: node("d1"), run: 1, end: Err("x") },
    ];
    for input in inputs {
        assert_eq!(member.step(Now::default(), input.clone()), []);
        assert_eq!(round.step(Now::default(), input), []);
    }
    let told = member.step(Now::default(), Input::Message(from_edge));
    assert_eq!(told, [Effect::Count("not_for_a_member")]);
    let told = round.step(Now::default(), Input::Message(message));
    assert_eq!(told, [Effect::Count("not_for_an_owner")]);
}
