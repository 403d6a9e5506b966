use proptest::prelude::*;

use super::*;
use crate::ids::Name;
use crate::rng::Stream;
use crate::time::Wall;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn nodes(names: &[&str]) -> BTreeSet<NodeId> {
    names.iter().map(|name| node(name)).collect()
}

const ALL: [&str; 6] = ["a1", "a2", "a3", "b1", "b2", "c1"];

fn config() -> RolloutConfig {
    RolloutConfig {
        model: Name::new("m").unwrap(),
        base: Digest([1; 32]),
        served: 0,
        widest: Stage::Federation,
        members: nodes(&ALL),
        sites: BTreeMap::new(),
        approvers: nodes(&["anna", "ben", "cleo"]),
        four_eyes: true,
        freezes: vec![Freeze { from: Wall(5_000_000), until: Wall(6_000_000) }],
    }
}

fn record(version: Version) -> VersionRecord {
    VersionRecord {
        version,
        model: Name::new("m").unwrap(),
        base: Digest([1; 32]),
        adapter: Digest::of(&version.to_be_bytes()),
        parent: version - 1,
        round: version,
        contributors: vec![node("edge-a"), node("edge-b")],
        num_examples: 500,
        losses: (1.0, 0.5),
        strategy: Word::new("fed_avg"),
        code: Word::new("gaisnet-0.1.0"),
        risk: Some(0.52),
        signed: true,
        barred: None,
    }
}

fn gate() -> Gate {
    Gate {
        least_answers: 200,
        least_nodes: 1,
        least_ms: 120_000,
        most_ms: 3_600_000,
        delta: 0.05,
        max_errors: Some(0.1),
        max_slow: None,
        slow_ms: 0,
        max_worse: None,
        max_disagreement: None,
        max_drift: Some(0.5),
        max_risk: None,
        expected: Expected { answers: 2_000, ..Expected::default() },
    }
}

fn stage(stage: Stage, names: &[&str], approvals: u32) -> StagePlan {
    StagePlan { stage, nodes: nodes(names), approvals, gate: gate() }
}

fn plan(version: Version) -> Plan {
    let stages = vec![
        stage(Stage::Shadow, &["b1", "b2"], 0),
        stage(Stage::Canary, &["a1"], 0),
        stage(Stage::Site, &["a1", "a2", "a3"], 1),
        stage(Stage::Federation, &ALL, 2),
    ];
    Plan { model: Name::new("m").unwrap(), version, stages, automatic: true }
}

/// Answers so far, of which some are none.
fn seen(answers: u64, errors: u64) -> Tally {
    Tally { answers, errors, drift: 0.1, ..Tally::default() }
}

#[derive(Clone)]
struct Bench {
    rollout: Rollout,
    disk: BTreeMap<String, Vec<u8>>,
    now_ms: u64,
    /// Assignments as they came.
    told: Vec<Assignment>,
    events: Vec<Event>,
}

impl Bench {
    fn new() -> Self {
        let rollout = Rollout::new(config(), &[]).unwrap();
        let (disk, told, events) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut bench = Self { rollout, disk, now_ms: 0, told, events };
        bench.step(Input::Start);
        for version in 1..=3 {
            bench.step(Input::Registered(record(version)));
        }
        bench
    }

    fn now(&self) -> Now {
        let ms = self.now_ms;
        Now { mono: Mono(ms), micros: ms * 1_000, wall: Wall(ms) }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.rollout.step(self.now(), input);
        for effect in &effects {
            match effect {
                Effect::Put(key, value) => drop(self.disk.insert(key.clone(), value.clone())),
                Effect::Delete(key) => drop(self.disk.remove(key)),
                Effect::Record(event) => self.events.push(event.clone()),
                Effect::Assign(assignment) => self.told.push(assignment.clone()),
                Effect::Tick(_) | Effect::Refuse(_) => {}
                Effect::Fatal(what) => panic!("{what}"),
            }
        }
        effects
    }

    fn refused(&mut self, input: Input) -> Refusal {
        match self.step(input).as_slice() {
            [Effect::Refuse(refusal)] => refusal.clone(),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn propose(&mut self, plan: Plan) -> Result<(), Refusal> {
        match self.step(Input::Plan { by: node("anna"), plan }).as_slice() {
            [Effect::Refuse(refusal)] => Err(refusal.clone()),
            _ => Ok(()),
        }
    }

    fn wait(&mut self, minutes: u64) {
        for _ in 0..minutes {
            self.now_ms += Rollout::TICK_MS;
            self.step(Input::Tick);
        }
    }

    fn evidence(&mut self, name: &str, tally: Tally) -> Vec<Effect> {
        let serial = self.rollout.assignment().serial;
        self.step(Input::Evidence { node: node(name), life: 1, serial, tally, nodes: 1 })
    }

    fn approve(&mut self, by: &str, stage: Stage) -> Vec<Effect> {
        let plan = self.rollout.view().plan.unwrap();
        self.step(Input::Approve { by: node(by), plan, stage })
    }

    fn restart(&mut self) {
        let state: Vec<_> = self.disk.clone().into_iter().collect();
        self.rollout = Rollout::new(config(), &state).unwrap();
        self.step(Input::Start);
    }

    fn stage(&self) -> Option<Stage> {
        self.rollout.view().stage
    }

    /// Lets the stage that runs see enough, and pass.
    fn pass(&mut self) {
        let assignment = self.rollout.assignment();
        let name = assignment.serve.iter().chain(&assignment.shadow).next().unwrap().clone();
        self.evidence(name.as_str(), seen(512, 0));
        self.wait(2);
    }

    fn outcomes(&self) -> Vec<String> {
        let of = |event: &Event| match event {
            Event::RolloutStep { outcome, stage, .. } => {
                Some(format!("{} {}", stage.as_str(), outcome.as_str()))
            }
            Event::Rollback { from, reason, to } => {
                Some(format!("{from} to {to}: {}", reason.as_str()))
            }
            _ => None,
        };
        self.events.iter().filter_map(of).collect()
    }
}

#[test]
fn a_version_goes_from_stage_to_stage_and_is_what_everybody_serves_in_the_end() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    let told = bench.told.last().unwrap().clone();
    assert_eq!((told.candidate, told.serve.len(), told.shadow), (Some(2), 0, nodes(&["b1", "b2"])));
    bench.pass();
    assert_eq!(bench.told.last().unwrap().serve, nodes(&["a1"]));
    bench.pass();
    assert_eq!(bench.stage(), Some(Stage::Canary), "the site wants an approval");
    bench.approve("ben", Stage::Site);
    assert_eq!(bench.stage(), Some(Stage::Site));
    bench.pass();
    bench.approve("ben", Stage::Federation);
    assert_eq!(bench.stage(), Some(Stage::Site));
    bench.approve("cleo", Stage::Federation);
    assert_eq!(bench.told.last().unwrap().serve, nodes(&ALL));
    bench.pass();
    let told = bench.told.last().unwrap();
    assert_eq!((told.stable, told.candidate), (2, None));
    let expected = [
        "shadow planned",
        "shadow entered",
        "shadow passed",
        "canary entered",
        "site approved",
        "canary passed",
        "site entered",
        "federation approved",
        "federation approved",
        "site passed",
        "federation entered",
        "federation done",
    ];
    assert_eq!(bench.outcomes(), expected);
    assert_eq!(bench.rollout.registry().lineage(3), [3, 2, 1]);
}

#[test]
fn versions_that_are_unknown_unsigned_barred_foreign_or_old_never_start() {
    let mut bench = Bench::new();
    let error = |bench: &mut Bench, version| match bench.propose(plan(version)) {
        Err(Refusal::Plan(error)) => error.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(error(&mut bench, 9), "version_unknown");
    bench.step(Input::Registered(VersionRecord { signed: false, ..record(4) }));
    assert_eq!(error(&mut bench, 4), "version_unsigned");
    bench.step(Input::Registered(VersionRecord { base: Digest([2; 32]), ..record(5) }));
    assert_eq!(error(&mut bench, 5), "version_foreign");
    bench.step(Input::Registered(VersionRecord { model: Name::new("n").unwrap(), ..record(6) }));
    assert_eq!(error(&mut bench, 6), "version_foreign");
    bench.step(Input::Barred { version: 3, reason: Word::new("recall") });
    assert_eq!(error(&mut bench, 3), "version_barred");
    bench.restart();
    assert_eq!(error(&mut bench, 3), "version_barred");
    // Registering it again changes nothing.
    bench.step(Input::Registered(record(3)));
    assert_eq!(error(&mut bench, 3), "version_barred");
    bench.propose(plan(2)).unwrap();
    assert_eq!(error(&mut bench, 1), "rollout_overlaps");
    let mut bench = Bench::new();
    bench.rollout.state.stable = 2;
    assert_eq!(error(&mut bench, 2), "version_not_newer");
}

#[test]
fn what_can_never_be_passed_is_said_when_it_is_planned() {
    let kind = |change: &dyn Fn(&mut Plan)| {
        let mut bad = plan(2);
        change(&mut bad);
        match Bench::new().propose(bad) {
            Err(Refusal::Plan(error)) => format!("{}: {error}", error.kind()),
            other => panic!("{other:?}"),
        }
    };
    let says = |change: &dyn Fn(&mut Plan), kind_: &str, text: &str| {
        let said = kind(change);
        assert!(said.starts_with(kind_) && said.contains(text), "{said}");
    };
    let unmet = "gate_cannot_be_met";
    // 100 answers without an error don't show a rate below 0.1 % ...
    says(&|p| p.stages[1].gate.max_errors = Some(0.001), unmet, "canary");
    // ... nor do 20 expected ones make 200.
    says(&|p| p.stages[0].gate.expected.answers = 20, unmet, "answers stays open");
    says(&|p| p.stages[1].gate.max_worse = Some(0.05), unmet, "worse");
    says(&|p| p.stages[0].gate.max_disagreement = Some(0.05), unmet, "disagreement");
    says(&|p| p.stages[1].gate.least_nodes = 2, unmet, "nodes");
    says(&|p| p.stages[0].gate.max_risk = Some(0.5), unmet, "risk");
    says(&|p| p.stages[1].gate.max_disagreement = Some(0.1), "gate_is_none", "shadow");
    says(&|p| p.stages[1].gate.max_errors = Some(0.0), "gate_is_none", "no bound");
    says(&|p| p.stages[1].gate.max_errors = None, "gate_is_none", "everything through");
    says(&|p| p.stages[1].gate.delta = 0.0, "gate_is_none", "delta");
    says(&|p| p.stages[1].gate.most_ms = 1, "gate_is_none", "most_ms");
    says(&|p| p.stages[1].gate.slow_ms = 9, "gate_is_none", "belong together");
    let slow = |p: &mut Plan, at: usize| {
        (p.stages[at].gate.max_slow, p.stages[at].gate.slow_ms) = (Some(0.1), 500);
    };
    says(&|p| slow(p, 0), "gate_is_none", "nobody waits");
    says(&|p| p.stages[3].approvals = 0, "stages_make_no_way", "four eyes");
    let all_at_the_canary = |p: &mut Plan| {
        p.stages[1].nodes = nodes(&ALL);
        p.stages[2].nodes = nodes(&ALL);
    };
    says(&all_at_the_canary, "stages_make_no_way", "four eyes");
    says(&|p| p.stages[3].approvals = 3, "too_few_approvers", "2 people could");
    let way = "stages_make_no_way";
    says(&|p| drop(p.stages.pop()), way, "federation");
    says(&|p| p.stages.swap(1, 2), way, "further");
    says(&|p| p.stages[2].nodes = nodes(&["a2"]), way, "in the next");
    says(&|p| p.stages[0].nodes = nodes(&["stranger"]), way, "serve this model");
    says(&|p| p.stages.clear(), way, "federation");
    // Its twin: with the labels that it needs the rule on wrong answers can be met.
    let mut good = plan(2);
    good.stages[1].gate.max_worse = Some(0.05);
    good.stages[1].gate.expected =
        Expected { answers: 2_000, judged: 1_000, base_judged: 1_000, compared: 0 };
    Bench::new().propose(good).unwrap();
}

#[test]
fn a_broken_gate_halts_at_once_and_the_version_never_comes_back() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    bench.pass();
    bench.evidence("a1", seen(64, 40));
    let told = bench.told.last().unwrap().clone();
    assert_eq!((told.stable, told.candidate, told.serve.len()), (0, None, 0));
    assert_eq!(bench.outcomes().last().unwrap(), "2 to 0: errors");
    bench.restart();
    assert_eq!(bench.told.last().unwrap(), &told);
    assert_eq!(bench.propose(plan(2)), Err(PlanError::Barred(2, "errors".into()).into()));
    bench.propose(plan(3)).unwrap();
}

#[test]
fn a_node_that_gives_it_up_halts_it_everywhere() {
    let mut bench = Bench::new();
    assert_eq!(bench.refused(Input::GaveUp { version: 2 }), Refusal::NotBegun);
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    assert_eq!(bench.refused(Input::GaveUp { version: 1 }), Refusal::NoEvidence);
    bench.step(Input::GaveUp { version: 2 });
    assert_eq!(bench.stage(), None);
    assert_eq!(bench.outcomes().last().unwrap(), "2 to 0: failed_checks");
}

#[test]
fn a_stage_that_sees_too_little_for_too_long_is_halted_and_may_be_tried_again() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    bench.evidence("b1", seen(150, 0));
    bench.wait(59);
    assert_eq!(bench.stage(), Some(Stage::Shadow));
    bench.wait(1);
    assert_eq!(bench.stage(), None);
    assert_eq!(bench.outcomes().last().unwrap(), "2 to 0: too_late");
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Halt);
    assert_eq!(bench.refused(Input::Halt), Refusal::NoPlan);
}

#[test]
fn who_proposes_cannot_approve_and_nobody_approves_what_he_has_not_read() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    let approve = |by: &str, plan, stage| Input::Approve { by: node(by), plan, stage };
    let digest = bench.rollout.view().plan.unwrap();
    assert_eq!(bench.refused(approve("anna", digest, Stage::Site)), Refusal::OwnProposal);
    let stranger = bench.refused(approve("a1", digest, Stage::Site));
    assert_eq!(stranger, Refusal::NoApprover(node("a1")));
    assert_eq!(bench.refused(approve("ben", Digest([0; 32]), Stage::Site)), Refusal::OtherPlan);
    assert_eq!(bench.refused(approve("ben", digest, Stage::Area)), Refusal::NoSuchStage);
    bench.step(approve("ben", digest, Stage::Federation));
    bench.step(approve("ben", digest, Stage::Federation)); // one person, one approval
    bench.step(approve("ben", digest, Stage::Site));
    bench.step(Input::Begin);
    (0..3).for_each(|_| bench.pass());
    assert_eq!(bench.stage(), Some(Stage::Site));
    bench.step(approve("cleo", digest, Stage::Federation));
    assert_eq!(bench.stage(), Some(Stage::Federation));
}

#[test]
fn nothing_goes_forward_in_a_freeze_and_halts_do() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.now_ms = 5_500_000;
    assert_eq!(bench.refused(Input::Begin), Refusal::Frozen);
    bench.now_ms = 4_940_000;
    bench.step(Input::Begin);
    bench.evidence("b1", seen(512, 0));
    bench.wait(10); // into the freeze
    assert_eq!(bench.stage(), Some(Stage::Shadow));
    assert_eq!(bench.refused(Input::Promote), Refusal::Frozen);
    bench.wait(8); // out of it
    assert_eq!(bench.stage(), Some(Stage::Canary));
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    bench.now_ms = 5_500_000;
    bench.step(Input::Halt);
    assert_eq!(bench.stage(), None);
}

#[test]
fn without_automatic_promotion_somebody_has_to_and_only_what_has_passed() {
    let mut bench = Bench::new();
    bench.propose(Plan { automatic: false, ..plan(2) }).unwrap();
    assert_eq!(bench.refused(Input::Promote), Refusal::NotBegun);
    bench.step(Input::Begin);
    assert_eq!(bench.refused(Input::Begin), Refusal::Runs);
    assert_eq!(bench.refused(Input::Promote), Refusal::NotPassed("shadow"));
    bench.evidence("b1", seen(512, 0));
    assert_eq!(bench.refused(Input::Promote), Refusal::NotPassed("shadow"), "not long enough");
    bench.wait(5);
    assert_eq!(bench.stage(), Some(Stage::Shadow));
    bench.step(Input::Promote);
    assert_eq!(bench.stage(), Some(Stage::Canary));
}

#[test]
fn repeats_and_disorder_of_evidence_change_nothing_and_a_restarted_node_counts_on() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    let serial = bench.rollout.assignment().serial;
    let of = |name: &str, life, tally| Input::Evidence {
        node: node(name),
        life,
        serial,
        tally,
        nodes: 1,
    };
    let inputs = [
        of("b1", 1, seen(5, 0)),
        of("b1", 1, seen(9, 1)),
        of("b2", 4, seen(3, 0)),
        of("b1", 1, seen(7, 1)),
    ];
    for input in inputs.iter().chain(inputs.iter().rev()) {
        bench.step(input.clone());
    }
    assert_eq!(bench.rollout.view().seen, seen(12, 1));
    bench.step(of("b1", 2, seen(2, 0)));
    bench.step(inputs[1].clone()); // from its life before
    assert_eq!(bench.rollout.view().seen, seen(14, 1));
    for bad in [
        of("a1", 1, seen(5, 0)),
        of("b1", 2, seen(5, 6)),
        of("b1", 2, Tally { drift: f64::NAN, ..seen(5, 0) }),
        of("b1", 2, seen(u64::MAX, 0)),
        Input::Evidence {
            node: node("b1"),
            life: 2,
            serial: serial - 1,
            tally: seen(5, 0),
            nodes: 1,
        },
    ] {
        assert_eq!(bench.refused(bad), Refusal::NoEvidence);
    }
    assert_eq!(bench.rollout.view().seen, seen(14, 1));
}

#[test]
fn a_restart_takes_neither_a_stage_nor_a_look_back() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    bench.evidence("b1", seen(100, 0));
    bench.wait(1);
    let before = bench.rollout.view();
    assert_eq!(before.looks, 3); // at 16, 32, 64
    bench.restart();
    let after = bench.rollout.view();
    assert_eq!(after, RolloutView { seen: Tally::default(), ..before });
    assert_eq!(bench.told.last().unwrap(), &bench.rollout.assignment());
    bench.evidence("b1", seen(127, 0));
    assert_eq!(bench.rollout.view().looks, 3, "what was spent stays spent");
    bench.evidence("b1", seen(128, 0));
    assert_eq!(bench.rollout.view().looks, 4);
}

#[test]
fn drift_and_slow_answers_halt_too() {
    let halts = |change: &dyn Fn(&mut Gate), tally: Tally| {
        let mut bench = Bench::new();
        let mut plan = plan(2);
        change(&mut plan.stages[0].gate);
        // How slow it is shows where somebody waits for the answer.
        let shadow = plan.stages[0].gate.max_slow.is_none();
        if !shadow {
            let slow = plan.stages.remove(0).gate;
            plan.stages[0].gate = slow;
        }
        bench.propose(plan).unwrap();
        bench.step(Input::Begin);
        bench.evidence(if shadow { "b1" } else { "a1" }, tally);
        bench.outcomes().last().unwrap().clone()
    };
    let slow = Tally { slow: 40, ..seen(64, 0) };
    let asked = |gate: &mut Gate| (gate.max_slow, gate.slow_ms) = (Some(0.1), 500);
    assert_eq!(halts(&asked, slow), "2 to 0: slow");
    assert_eq!(halts(&|_| {}, slow), "shadow entered", "not asked for");
    assert_eq!(halts(&|_| {}, Tally { drift: 0.8, ..seen(64, 0) }), "2 to 0: drift");
    let differ = Tally { compared: 64, disagreed: 40, ..seen(64, 0) };
    let asked = |gate: &mut Gate| {
        gate.max_disagreement = Some(0.1);
        gate.expected.compared = 2_000;
    };
    assert_eq!(halts(&asked, differ), "2 to 0: disagreement");
    let worse = Tally { judged: 64, wrong: 40, base_judged: 64, base_wrong: 2, ..seen(64, 0) };
    let asked = |gate: &mut Gate| {
        gate.max_worse = Some(0.1);
        (gate.expected.judged, gate.expected.base_judged) = (2_000, 2_000);
    };
    assert_eq!(halts(&asked, worse), "2 to 0: worse");
}

/// Share of gates that pass a version whose rate of errors is `rate`, looked at by `passes` after each answer.
fn passed_at(rate: f64, runs: u64, passes: &dyn Fn(&Tally) -> bool) -> u32 {
    let mut passed = 0;
    for run in 0..runs {
        let mut stream = Stream::new(run, "rollout gate");
        let mut tally = Tally::default();
        for _ in 0..2_048 {
            tally.answers += 1;
            tally.errors += u64::from(stream.unit() < rate);
            if passes(&tally) {
                passed += 1;
                break;
            }
        }
    }
    passed
}

#[test]
fn a_version_at_the_limit_passes_as_rarely_as_delta_says_and_without_the_bounds_it_would_not() {
    let gate = Gate { least_answers: 16, max_drift: None, ..gate() };
    let looks: Vec<u64> = (0..8).map(look_at).collect();
    let guarded = |tally: &Tally| {
        let look = looks.iter().position(|at| *at == tally.answers);
        look.is_some_and(|look| gate.judge(tally, 1, 1, u32::try_from(look).unwrap()).passed())
    };
    let runs = 400;
    assert!(passed_at(0.1, runs, &guarded) <= 20, "delta is 0.05 of 400");
    assert!(passed_at(0.02, runs, &guarded) >= 390, "a good one passes");
    // One bound of delta, looked at after each answer.
    let always = |tally: &Tally| {
        tally.answers >= 16 && crate::learn::upper_bound(tally.errors, tally.answers, 0.05) <= 0.1
    };
    assert!(passed_at(0.1, runs, &always) > 40);
    // The rate itself.
    let naive = |tally: &Tally| tally.answers >= 16 && tally.errors * 10 < tally.answers;
    assert!(passed_at(0.1, runs, &naive) > 200);
}

/// The version on two nodes of a site, of which one lies.
fn two_see(sees: &[(u64, u64)], lies: &[(u64, u64)]) -> (Bench, Vec<String>) {
    let mut bench = Bench::new();
    let mut plan = plan(2);
    plan.stages.remove(0);
    plan.stages[0].nodes = nodes(&["a1", "a2"]);
    bench.propose(plan).unwrap();
    bench.step(Input::Begin);
    let mut all: Vec<(&str, Tally)> = lies.iter().map(|(n, bad)| ("a2", seen(*n, *bad))).collect();
    all.extend(sees.iter().map(|(n, bad)| ("a1", seen(*n, *bad))));
    for (node, tally) in all {
        bench.evidence(node, tally);
    }
    let outcomes = bench.outcomes();
    (bench, outcomes)
}

#[test]
fn nobodys_good_answers_drown_what_another_one_sees_fail_whenever_that_is() {
    // Billions of good answers have passed the gate; then the other one begins to see, and every other answer fails.
    for lie in [1 << 20, 1 << 39, Tally::MAX_COUNT] {
        let (bench, outcomes) = two_see(&[(16, 8), (32, 16), (64, 32)], &[(lie, 0)]);
        assert_eq!(outcomes.last().unwrap(), "2 to 0: errors", "{lie}");
        // It may be that one node: nothing is barred.
        let known = bench.rollout.registry().get(2).unwrap();
        assert_eq!(known.barred, None);
    }
    let (_, outcomes) = two_see(&[(16, 1), (32, 2), (64, 3)], &[(1 << 39, 0)]);
    assert_eq!(outcomes.last().unwrap(), "canary entered", "as many as may fail");
}

#[test]
fn one_node_that_fails_late_halts_a_version_and_does_not_bar_it() {
    // Its own look at 2,048 isn't due yet when that of all is.
    let (bench, outcomes) = two_see(&[(1_000, 0), (1_500, 500)], &[(548, 0)]);
    assert_eq!(outcomes.last().unwrap(), "2 to 0: errors");
    assert_eq!(bench.rollout.registry().get(2).unwrap().barred, None);
    // Both see it.
    let (bench, _) = two_see(&[(60, 30)], &[(4, 2)]);
    assert!(bench.rollout.registry().get(2).unwrap().barred.is_none(), "one is too few to tell");
    let (bench, outcomes) = two_see(&[(15, 10)], &[(15, 10)]);
    assert_eq!(outcomes.last().unwrap(), "2 to 0: errors");
    assert!(bench.rollout.registry().get(2).unwrap().barred.is_some());
}

#[test]
fn a_good_version_is_halted_as_rarely_as_delta_says_however_many_say_what_they_see() {
    let gate = gate();
    let mut halted = 0;
    for run in 0..200 {
        let mut draw = Stream::new(run, "nodes");
        let (mut nodes, mut looks) = ([seen(0, 0); 20], [0; 21]);
        let mut is_halted = false;
        while !is_halted && Tally::sum(&nodes).answers < 4_096 {
            let at = draw.below(20);
            nodes[at].answers += 1;
            nodes[at].errors += u64::from(draw.below(10) == 0); // the rate that is just allowed
            if let Some(look) = due(looks[at], nodes[at].answers) {
                looks[at] = look + 1;
                is_halted |= gate.broken_by_one(&nodes[at], 20, look).is_some();
            }
            let total = Tally::sum(&nodes);
            if let Some(look) = due(looks[20], total.answers) {
                looks[20] = look + 1;
                is_halted |= !gate.judge(&total, 20, 20, look).broken.is_empty();
            }
        }
        halted += u32::from(is_halted);
    }
    assert!(halted <= 10, "delta is 0.05 of 200: {halted}");
}

#[test]
fn gates_whose_numbers_are_none_are_refused() {
    assert_eq!(gate().check(), Ok(()));
    for change in [
        |gate: &mut Gate| gate.max_drift = Some(0.0),
        |gate: &mut Gate| gate.max_drift = Some(1.0),
        |gate: &mut Gate| gate.max_risk = Some(f64::NAN),
        |gate: &mut Gate| gate.delta = 0.6,
    ] {
        let mut changed = gate();
        change(&mut changed);
        assert!(changed.check().is_err(), "{changed:?}");
    }
}

#[derive(Debug, Clone)]
enum Happens {
    Propose(u64),
    Begin,
    Approve(usize, usize),
    Promote,
    Halt,
    See { node: usize, life: u64, answers: u64, errors: u64 },
    GiveUp(u64),
    Bar(u64),
    Wait(u64),
    Restart,
}

fn happens() -> impl Strategy<Value = Happens> {
    let see = (0..ALL.len(), 1..3_u64, 1..2_000_u64, 0..4_u64);
    prop_oneof![
        2 => (1..5_u64).prop_map(Happens::Propose),
        2 => Just(Happens::Begin),
        3 => (0..4_usize, 0..5_usize).prop_map(|(by, stage)| Happens::Approve(by, stage)),
        1 => Just(Happens::Promote),
        1 => Just(Happens::Halt),
        10 => see.prop_map(|(node, life, answers, part)| Happens::See {
            node,
            life,
            answers,
            errors: if part == 3 { answers / 3 } else { 0 },
        }),
        1 => (1..4_u64).prop_map(Happens::GiveUp),
        1 => (1..4_u64).prop_map(Happens::Bar),
        6 => (1..30_u64).prop_map(Happens::Wait),
        1 => Just(Happens::Restart),
    ]
}

const STAGES: [Stage; 5] =
    [Stage::Shadow, Stage::Canary, Stage::Area, Stage::Site, Stage::Federation];

proptest! {
    #[test]
    fn storms_of_events_keep_what_is_promised(
        events in prop::collection::vec(happens(), 1..120),
        automatic: bool,
    ) {
        let mut bench = Bench::new();
        // What this test counts for itself about the stage that runs.
        let (mut most_seen, mut in_stage_ms) = (0_u64, 0_u64);
        let mut barred: BTreeSet<Version> = BTreeSet::new();
        for event in events {
            let (before, told) = (bench.rollout.view(), bench.told.len());
            let (disk, serial) = (bench.disk.clone(), bench.rollout.assignment().serial);
            let effects = match event {
                Happens::Propose(version) => {
                    bench.step(Input::Plan { by: node("anna"), plan: Plan { automatic, ..plan(version) } })
                }
                Happens::Begin => bench.step(Input::Begin),
                Happens::Approve(by, stage) => {
                    let by = node(["anna", "ben", "cleo", "a1"][by]);
                    let plan = before.plan.unwrap_or(Digest([0; 32]));
                    bench.step(Input::Approve { by, plan, stage: STAGES[stage] })
                }
                Happens::Promote => bench.step(Input::Promote),
                Happens::Halt => bench.step(Input::Halt),
                Happens::See { node: at, life, answers, errors } => {
                    let (node, tally) = (node(ALL[at]), seen(answers, errors));
                    most_seen = most_seen.saturating_add(answers);
                    bench.step(Input::Evidence { node, life, serial, tally, nodes: 1 })
                }
                Happens::GiveUp(version) => bench.step(Input::GaveUp { version }),
                Happens::Bar(version) => {
                    barred.insert(version);
                    bench.step(Input::Barred { version, reason: Word::new("recall") })
                }
                Happens::Wait(minutes) => {
                    let told = bench.told.len();
                    for _ in 0..minutes {
                        in_stage_ms += Rollout::TICK_MS;
                        bench.wait(1);
                        if bench.told.len() > told {
                            break;
                        }
                    }
                    Vec::new()
                }
                Happens::Restart => {
                    bench.restart();
                    Vec::new()
                }
            };
            let after = bench.rollout.view();
            // What is refused changes nothing.
            if effects.iter().any(|effect| matches!(effect, Effect::Refuse(_))) {
                prop_assert_eq!(effects.len(), 1);
                prop_assert_eq!((&after, &bench.disk), (&before, &disk));
            }
            // Serials rise with whatever is told, but where it is told again after a start.
            for pair in bench.told.windows(2) {
                prop_assert!(pair[0].serial < pair[1].serial || pair[0] == pair[1]);
            }
            // A candidate is served by the nodes of the stage that runs and by nobody else.
            let assignment = bench.rollout.assignment();
            if let (Some(stage), Some(version)) = (after.stage, after.version) {
                let plan = plan(version);
                let planned = plan.stages.iter().find(|planned| planned.stage == stage).unwrap();
                let all: BTreeSet<_> = assignment.serve.union(&assignment.shadow).cloned().collect();
                prop_assert_eq!(&all, &planned.nodes);
                prop_assert_eq!(assignment.serve.is_empty(), stage == Stage::Shadow);
                prop_assert!(!barred.contains(&version));
            } else {
                prop_assert_eq!((assignment.candidate, assignment.serve.len()), (None, 0));
            }
            // Forward by one stage at a time, after enough answers and time.
            let entered = after.stage.filter(|_| bench.told.len() > told && after.stage != before.stage);
            if let (Some(from), Some(to)) = (before.stage, entered) {
                let place = |stage| plan(2).stages.iter().position(|planned| planned.stage == stage);
                prop_assert_eq!(place(from).unwrap() + 1, place(to).unwrap());
            }
            let forward = entered.is_some() || after.stable != before.stable;
            if forward && before.stage.is_some() {
                prop_assert!(most_seen >= gate().least_answers, "only {} answers", most_seen);
                prop_assert!(in_stage_ms >= gate().least_ms);
            }
            if after.stable != before.stable {
                prop_assert_eq!(before.stage, Some(Stage::Federation));
            }
            if after.stage != before.stage || after.plan != before.plan {
                (most_seen, in_stage_ms) = (0, 0);
            }
            // A crash here would lose what was seen, and no decision.
            let state: Vec<_> = bench.disk.clone().into_iter().collect();
            let again = Rollout::new(config(), &state).unwrap();
            prop_assert_eq!(again.view(), RolloutView { seen: Tally::default(), ..after });
            prop_assert_eq!(again.assignment(), assignment);
            prop_assert_eq!(again.registry(), bench.rollout.registry());
        }
    }
}

#[test]
fn what_passed_after_the_last_look_does_not_stay_so_when_errors_come() {
    let mut bench = Bench::new();
    bench.propose(plan(2)).unwrap();
    bench.step(Input::Begin);
    let last = look_at(u32::MAX);
    bench.evidence("b1", seen(last, 0));
    assert!(bench.rollout.view().passed);
    bench.evidence("b1", seen(2 * last, last));
    assert_eq!(bench.outcomes().last().unwrap(), "2 to 0: errors");
}
