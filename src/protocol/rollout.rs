//! The rollout: a version goes from stage to stage, each behind a gate, and back at once where a gate breaks.
//!
//! ```text
//!   Registered       Plan            Begin
//!   candidate ----> planned ----> shadow -> canary -> area -> site -> federation ----> stable
//!                                   |  gate passed, time over, approved, not frozen |
//!                                   '--- broken, too late, given up by a node, halt '--> halted: nobody serves it
//! ```
//! What it promises: a version that isn't known, signed and of this model never starts; a stage never begins
//! before the one before it has passed its gate with its least answers and time, nor without its approvals; once
//! it is halted no assignment names the version any more; what a gate asks for is fixed before anything is seen.
//! Evidence is what nodes have seen so far in a life of theirs: repeats and disorder change nothing, and it
//! isn't on disk. Decisions are, with what they have spent of a gate's probability to be wrong, so that
//! a crash never makes a gate easier. Time is counted while it runs; a frozen time of day can only delay.
//!
//! It knows neither messages nor blobs: `steward.rs` feeds it on an edge or a cloud, and says what it decides.

mod gate;
mod plan;
mod registry;
mod seen;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use gate::{Expected, FIRST_LOOK, Gate, Judgement, Rule, Tally, look_at};
pub use plan::{Freeze, Plan, PlanError, RolloutConfig, Stage, StagePlan};
pub use registry::{Registry, VersionRecord};
pub use seen::Seen;

use crate::ids::{Digest, NodeId, Version};
use crate::ledger::{Event, Word};
use crate::time::{Mono, Now};
use crate::wire::{decode, encode};

/// See the module.
#[derive(Debug, Clone)]
pub struct Rollout {
    config: RolloutConfig,
    registry: Registry,
    state: State,
    /// What was seen in this stage.
    seen: Seen,
    /// Up to when time is counted.
    counted_to: Mono,
    /// Nothing of it is on disk yet.
    fresh: bool,
}

/// What of it is on disk beside the registry, under one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    /// What everybody serves who isn't told otherwise.
    stable: Version,
    /// Counts assignments: the highest is what holds.
    serial: u64,
    active: Option<Active>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Active {
    plan: Plan,
    by: NodeId,
    /// Who approved which stage.
    approvals: BTreeMap<Stage, BTreeSet<NodeId>>,
    /// None before it begins.
    run: Option<Run>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    /// Number of the stage in the plan.
    at: usize,
    /// Milliseconds in it, as far as they were counted.
    elapsed_ms: u64,
    /// Looks that were taken at its gate.
    looks: u32,
    /// Looks that were taken at what single nodes have seen.
    #[serde(default)]
    looks_at: BTreeMap<NodeId, u32>,
    /// The last one passed.
    passed: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Its owner started.
    Start,
    /// Its owner starts, and somebody else may have decided here since it last did.
    TakenBack {
        /// Number of the other one's last assignment.
        serial: u64,
        /// What that made stable.
        stable: Version,
    },
    /// Time goes by.
    Tick,
    /// A version was made.
    Registered(VersionRecord),
    /// A version mustn't be served any more.
    Barred {
        /// The version.
        version: Version,
        /// Why.
        reason: Word,
    },
    /// Somebody who may proposes a rollout.
    Plan {
        /// Who.
        by: NodeId,
        /// What.
        plan: Plan,
    },
    /// It may begin.
    Begin,
    /// Somebody who may approves a stage of a plan.
    Approve {
        /// Who.
        by: NodeId,
        /// The plan's digest.
        plan: Digest,
        /// The stage.
        stage: Stage,
    },
    /// A stage that is passed may lead to the next.
    Promote,
    /// It ends here.
    Halt,
    /// What a node has seen since an assignment.
    Evidence {
        /// The node.
        node: NodeId,
        /// Which life of it: what it saw before is forgotten there, and isn't here.
        life: u64,
        /// Number of the assignment.
        serial: u64,
        /// What.
        tally: Tally,
        /// Devices that it comes from: one, or those of a site that have given an answer.
        nodes: u64,
    },
    /// A node gave a version up by its own checks.
    GaveUp {
        /// The version.
        version: Version,
    },
}

/// What it wants done. All of a step's effects or none.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Durable state: set.
    Put(String, Vec<u8>),
    /// Durable state: remove.
    Delete(String),
    /// A ledger entry.
    Record(Event),
    /// From now on this is served.
    Assign(Assignment),
    /// Feed [`Input::Tick`] after this many milliseconds.
    Tick(u64),
    /// The input wasn't taken; the only effect then.
    Refuse(Refusal),
    /// Doubtful state: the process has to end.
    Fatal(String),
}

/// Who serves what. The highest serial holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Its number.
    pub serial: u64,
    /// What is served where nothing else is said.
    pub stable: Version,
    /// The version that is rolled out, if one is.
    pub candidate: Option<Version>,
    /// Nodes that serve it.
    pub serve: BTreeSet<NodeId>,
    /// Nodes whose answers by it nobody sees.
    pub shadow: BTreeSet<NodeId>,
    /// An answer that comes later is slow, milliseconds; 0: none is.
    pub slow_ms: u64,
}

/// Why an input isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The plan is no good.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// There is none.
    #[error("no rollout is planned")]
    NoPlan,
    /// It runs already.
    #[error("the rollout runs already")]
    Runs,
    /// It hasn't begun.
    #[error("the rollout hasn't begun")]
    NotBegun,
    /// An approval of another plan.
    #[error("that is another plan: it may have been changed since")]
    OtherPlan,
    /// The plan has no such stage.
    #[error("the plan has no such stage")]
    NoSuchStage,
    /// Who proposed it can't approve it.
    #[error("who proposed a rollout can't approve it")]
    OwnProposal,
    /// Not one of those who may approve.
    #[error("{0} may not approve rollouts")]
    NoApprover(NodeId),
    /// Approvals are missing.
    #[error("{stage} has {given} of {wanted} approvals")]
    Unapproved {
        /// The stage.
        stage: &'static str,
        /// Those it has.
        given: usize,
        /// Those it wants.
        wanted: u32,
    },
    /// Not now.
    #[error("nothing goes forward in a freeze")]
    Frozen,
    /// The gate isn't passed.
    #[error("the gate of {0} isn't passed yet")]
    NotPassed(&'static str),
    /// Evidence of something else, or nonsense.
    #[error("that says nothing of the stage that runs")]
    NoEvidence,
    /// The version isn't known.
    #[error("version {0} isn't known here")]
    Unknown(Version),
}

impl Refusal {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Plan(error) => error.kind(),
            Self::NoPlan => "no_plan",
            Self::Runs => "rollout_runs",
            Self::NotBegun => "rollout_not_begun",
            Self::OtherPlan => "other_plan",
            Self::NoSuchStage => "no_such_stage",
            Self::OwnProposal => "own_proposal",
            Self::NoApprover(_) => "no_approver",
            Self::Unapproved { .. } => "unapproved",
            Self::Frozen => "frozen",
            Self::NotPassed(_) => "gate_not_passed",
            Self::NoEvidence => "no_evidence",
            Self::Unknown(_) => "version_unknown",
        }
    }

    /// The way out, for the person who asked.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Plan(PlanError::CannotBeMet { .. }) => {
                "lower what the gate asks for, widen the bound, or expect (and wait for) more answers"
            }
            Self::Plan(PlanError::Overlaps(_)) => "rollout.halt ends it",
            Self::Plan(_) => "change the plan: docs/rollout.md has one to start from",
            Self::NoPlan => {
                "rollout.plan proposes one; rollout.status tells which versions are known"
            }
            Self::Runs | Self::NotPassed(_) => "rollout.status tells how far it is",
            Self::NotBegun => "rollout.start begins it",
            Self::OtherPlan => "read the plan that rollout.status names, and approve its digest",
            Self::NoSuchStage => "name one of the plan's stages",
            Self::OwnProposal => "somebody else has to approve it",
            Self::NoApprover(_) => "an operator or approver of the keyring has to",
            Self::Unapproved { .. } => "rollout.approve by as many people as the stage wants",
            Self::Frozen => "wait for the end of rollout.freezes; a halt is always possible",
            Self::NoEvidence | Self::Unknown(_) => "rollout.status tells which versions are known",
        }
    }
}

/// What may be seen of it from outside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RolloutView {
    /// What everybody serves who isn't told otherwise.
    pub stable: Version,
    /// Number of the assignment that holds.
    pub serial: u64,
    /// The version of the plan, if there is one.
    pub version: Option<Version>,
    /// Digest of the plan.
    pub plan: Option<Digest>,
    /// Who proposed it.
    pub by: Option<NodeId>,
    /// Who approved which stage.
    pub approvals: BTreeMap<Stage, BTreeSet<NodeId>>,
    /// The stage that runs.
    pub stage: Option<Stage>,
    /// Milliseconds in it, as far as they were counted.
    pub elapsed_ms: u64,
    /// What its nodes have seen.
    pub seen: Tally,
    /// Looks that were taken.
    pub looks: u32,
    /// The last one passed.
    pub passed: bool,
}

impl Rollout {
    /// Key prefix of its durable state.
    pub const PREFIX: &'static str = "rollout/";
    /// How often time is counted, and put down.
    pub const TICK_MS: u64 = 60_000;
    const STATE: &'static str = "rollout/state";
    const VERSION: &'static str = "rollout/version/";
    const STATE_CAP: usize = 1 << 22;

    /// A rollout as `state` left it.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(config: RolloutConfig, state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let mut rollout = Self {
            config,
            registry: Registry::default(),
            state: State { stable: 0, serial: 0, active: None },
            fresh: true,
            seen: Seen::default(),
            counted_to: Mono::default(),
        };
        rollout.state.stable = rollout.config.served;
        for (key, value) in state {
            if key == Self::STATE {
                rollout.fresh = false;
                rollout.state =
                    decode(value, Self::STATE_CAP).map_err(|error| format!("{key}: {error}"))?;
            } else if key.starts_with(Self::VERSION) {
                let record: VersionRecord =
                    decode(value, Self::STATE_CAP).map_err(|error| format!("{key}: {error}"))?;
                rollout.registry.add(record, &[]);
            }
        }
        Ok(rollout)
    }

    /// What a rollout has left in `state`, for whoever decides after it: the number of its last assignment, and the versions
    /// that it needs when it goes on.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn left(state: &[(String, Vec<u8>)]) -> Result<Option<(u64, Vec<Version>)>, String> {
        let stored = state.iter().find(|(key, _)| key == Self::STATE);
        let left = stored.map(|(key, value)| {
            let state: State =
                decode(value, Self::STATE_CAP).map_err(|error| format!("{key}: {error}"))?;
            let active = state.active.map(|active| active.plan.version);
            Ok::<_, String>((state.serial, active.into_iter().chain([state.stable]).collect()))
        });
        left.transpose()
    }

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        if let Err(refusal) = self.take(now, input, &mut out) {
            return vec![Effect::Refuse(refusal)];
        }
        out
    }

    /// The versions that are known.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether a node has a part in the stage that runs, itself or by those that it speaks for.
    pub fn takes_part(&self, node: &NodeId) -> bool {
        let speaks_for = self.config.speaks_for(node);
        self.running().is_some_and(|(_, _, stage)| !stage.nodes.is_disjoint(&speaks_for))
    }

    /// What may be seen from outside.
    pub fn view(&self) -> RolloutView {
        let active = self.state.active.as_ref();
        let run = active.and_then(|active| active.run.as_ref());
        RolloutView {
            stable: self.state.stable,
            serial: self.state.serial,
            version: active.map(|active| active.plan.version),
            plan: active.map(|active| active.plan.digest()),
            by: active.map(|active| active.by.clone()),
            approvals: active.map(|active| active.approvals.clone()).unwrap_or_default(),
            stage: self.running().map(|(_, _, stage)| stage.stage),
            elapsed_ms: run.map_or(0, |run| run.elapsed_ms),
            seen: self.seen.total(),
            looks: run.map_or(0, |run| run.looks),
            passed: run.is_some_and(|run| run.passed),
        }
    }

    /// What holds now.
    pub fn assignment(&self) -> Assignment {
        let (mut serve, mut shadow) = (BTreeSet::new(), BTreeSet::new());
        let (mut candidate, mut slow_ms) = (None, 0);
        if let Some((active, _, stage)) = self.running() {
            candidate = Some(active.plan.version);
            slow_ms = stage.gate.slow_ms;
            let nodes = if stage.stage == Stage::Shadow { &mut shadow } else { &mut serve };
            nodes.clone_from(&stage.nodes);
        }
        let State { serial, stable, .. } = self.state;
        Assignment { serial, stable, candidate, serve, shadow, slow_ms }
    }

    fn take(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match input {
            Input::Start => {
                self.counted_to = now.mono;
                if std::mem::take(&mut self.fresh) {
                    self.put(out); // what is served now stays so, whatever comes before the next start
                }
                out.push(Effect::Assign(self.assignment()));
                out.push(Effect::Tick(Self::TICK_MS));
            }
            Input::TakenBack { serial, stable } => self.take_back(serial, stable, out),
            Input::Tick => {
                self.count(now, out);
                self.advance_or_halt(now, out);
                out.push(Effect::Tick(Self::TICK_MS));
            }
            Input::Registered(record) => self.register(record, out),
            Input::Barred { version, reason } => self.bar(version, reason, out)?,
            Input::Plan { by, plan } => self.plan(by, plan, out)?,
            Input::Begin => self.begin(now, out)?,
            Input::Approve { by, plan, stage } => {
                self.approve(&by, plan, stage, out)?;
                self.advance_or_halt(now, out);
            }
            Input::Promote => {
                self.count(now, out);
                let (_, run, stage) = self.running().ok_or(Refusal::NotBegun)?;
                if !(run.passed && run.elapsed_ms >= stage.gate.least_ms) {
                    return Err(Refusal::NotPassed(stage.stage.as_str()));
                }
                self.next(now, out)?;
            }
            Input::Halt => {
                if self.state.active.is_none() {
                    return Err(Refusal::NoPlan);
                }
                self.halt("operator", out);
            }
            Input::Evidence { node, life, serial, tally, nodes } => {
                self.evidence(node.clone(), (life, serial), tally, nodes)?;
                self.look_at(&node, out);
                self.look(out);
                self.advance_or_halt(now, out);
            }
            Input::GaveUp { version } => {
                let (active, ..) = self.running().ok_or(Refusal::NotBegun)?;
                if active.plan.version != version {
                    return Err(Refusal::NoEvidence);
                }
                self.bar(version, Word::new("failed_checks"), out)?;
            }
        }
        Ok(())
    }

    /// What it had planned was for another time.
    fn take_back(&mut self, serial: u64, stable: Version, out: &mut Vec<Effect>) {
        if self.state.serial > serial {
            return; // it has decided since
        }
        self.record("halted", None, out);
        let serial = serial.saturating_add(1);
        self.state = State { stable, serial, active: None };
        self.fresh = false;
        self.put(out);
    }

    fn register(&mut self, mut record: VersionRecord, out: &mut Vec<Effect>) {
        record.contributors.truncate(Registry::MAX_CONTRIBUTORS);
        let version = record.version;
        if self.registry.get(version).is_some() {
            return; // its lineage is what it was when it was made
        }
        let active = self.state.active.as_ref().map(|active| active.plan.version);
        let needed: Vec<Version> = [version, self.state.stable].into_iter().chain(active).collect();
        let gone = self.registry.add(record, &needed);
        self.put_record(version, out);
        out.extend(gone.map(|version| Effect::Delete(key_of(version))));
    }

    /// A version that mustn't be served any more takes its rollout with it.
    fn bar(
        &mut self,
        version: Version,
        reason: Word,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let known = self.registry.bar(version, reason.clone()).is_some();
        let goes = self.state.active.as_ref().is_some_and(|active| active.plan.version == version);
        if known {
            self.put_record(version, out);
        }
        if goes {
            self.end(reason, out);
        }
        if known || goes { Ok(()) } else { Err(Refusal::Unknown(version)) }
    }

    fn plan(&mut self, by: NodeId, plan: Plan, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        if let Some(active) = &self.state.active {
            return Err(PlanError::Overlaps(active.plan.version).into());
        }
        let record = self.registry.get(plan.version);
        plan.check(&by, &self.config, record, self.state.stable)?;
        let approvals = BTreeMap::new();
        self.state.active = Some(Active { plan, by: by.clone(), approvals, run: None });
        self.put(out);
        self.record("planned", Some(by), out);
        Ok(())
    }

    fn begin(&mut self, now: Now, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let active = self.state.active.as_ref().ok_or(Refusal::NoPlan)?;
        if active.run.is_some() {
            return Err(Refusal::Runs);
        }
        self.may_enter(now, active, 0)?;
        self.enter(now, 0, out);
        Ok(())
    }

    fn approve(
        &mut self,
        by: &NodeId,
        plan: Digest,
        stage: Stage,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let active = self.state.active.as_mut().ok_or(Refusal::NoPlan)?;
        if active.plan.digest() != plan {
            return Err(Refusal::OtherPlan);
        }
        if !active.plan.stages.iter().any(|known| known.stage == stage) {
            return Err(Refusal::NoSuchStage);
        }
        if !self.config.approvers.contains(by) {
            return Err(Refusal::NoApprover(by.clone()));
        }
        if self.config.four_eyes && active.by == *by {
            return Err(Refusal::OwnProposal);
        }
        if active.approvals.entry(stage).or_default().insert(by.clone()) {
            self.put(out);
            self.record_at(stage, "approved", Some(by.clone()), out);
        }
        Ok(())
    }

    /// Whether the stage of this number may begin now, as far as people and calendars go.
    fn may_enter(&self, now: Now, active: &Active, at: usize) -> Result<(), Refusal> {
        if self.config.freezes.iter().any(|freeze| freeze.holds(now.wall)) {
            return Err(Refusal::Frozen);
        }
        let Some(plan) = active.plan.stage(at) else { return Ok(()) };
        let given = active.approvals.get(&plan.stage).map_or(0, BTreeSet::len);
        if u32::try_from(given).unwrap_or(u32::MAX) < plan.approvals {
            let (stage, wanted) = (plan.stage.as_str(), plan.approvals);
            return Err(Refusal::Unapproved { stage, given, wanted });
        }
        Ok(())
    }

    fn enter(&mut self, now: Now, at: usize, out: &mut Vec<Effect>) {
        if let Some(active) = &mut self.state.active {
            active.run =
                Some(Run { at, elapsed_ms: 0, looks: 0, looks_at: BTreeMap::new(), passed: false });
        }
        self.seen.clear();
        self.counted_to = now.mono;
        self.state.serial += 1;
        self.put(out);
        self.record("entered", None, out);
        out.push(Effect::Assign(self.assignment()));
    }

    fn evidence(
        &mut self,
        node: NodeId,
        (life, serial): (u64, u64),
        tally: Tally,
        nodes: u64,
    ) -> Result<(), Refusal> {
        let (_, _, stage) = self.running().ok_or(Refusal::NotBegun)?;
        let speaks_for = self.config.speaks_for(&node);
        let of_stage = stage.nodes.iter().filter(|node| speaks_for.contains(node)).count();
        let of_stage = u64::try_from(of_stage).unwrap_or(u64::MAX);
        if serial != self.state.serial || of_stage == 0 || !tally.makes_sense() {
            return Err(Refusal::NoEvidence);
        }
        self.seen.note(node, life, tally, nodes.min(of_stage));
        Ok(())
    }

    /// Looks at what one node has seen alone, each time that its own answers have doubled. It may break the gate, not pass it.
    fn look_at(&mut self, node: &NodeId, out: &mut Vec<Effect>) {
        let seen = self.seen.of(node);
        let Some((_, run, stage)) = self.running() else { return };
        let speakers = self.config.speakers(&stage.nodes);
        let before = run.looks_at.get(node).copied().unwrap_or(0);
        let Some(look) = due(before, seen.answers) else { return };
        let broken = stage.gate.broken_by_one(&seen, speakers, look);
        let run = self.state.active.as_mut().and_then(|active| active.run.as_mut());
        if let Some(run) = run {
            run.looks_at.insert(node.clone(), look + 1);
        }
        self.put(out);
        if let Some(rule) = broken {
            // It may be the node's fault: the version may be tried again.
            self.end(Word::new(rule.as_str()), out);
        }
    }

    /// Looks at the gate, if there are enough answers for another look.
    fn look(&mut self, out: &mut Vec<Effect>) {
        let (seen, nodes) = (self.seen.total(), self.seen.nodes());
        let Some((_, run, stage)) = self.running() else { return };
        let before = run.looks;
        // After the last one each answer is looked at by the last one's share: what came before doesn't stand for ever.
        let last = (before > gate::MAX_LOOKS).then_some(gate::MAX_LOOKS);
        let Some(look) = due(before, seen.answers).or(last) else { return };
        let judgement = stage.gate.judge(&seen, nodes, self.config.speakers(&stage.nodes), look);
        let Some(run) = self.state.active.as_mut().and_then(|active| active.run.as_mut()) else {
            return;
        };
        (run.looks, run.passed) = (look + 1, judgement.passed());
        self.put(out);
        match judgement.broken.first() {
            Some(rule) if self.is_its_fault(*rule, look) => self.broken(*rule, out),
            Some(rule) => self.end(Word::new(rule.as_str()), out),
            None => {}
        }
    }

    /// Whether a rule that is broken speaks against the version: not how the plant's inputs change, nor what one of several
    /// has seen alone.
    fn is_its_fault(&self, rule: Rule, look: u32) -> bool {
        let Some((_, _, stage)) = self.running() else { return false };
        let speakers = self.config.speakers(&stage.nodes);
        if rule == Rule::Drift || speakers < 2 {
            return rule != Rule::Drift;
        }
        let rest = self.seen.without_worst(|seen| gate::hits(rule, seen));
        stage.gate.judge(&rest, u64::MAX, speakers, look).broken.contains(&rule)
    }

    fn broken(&mut self, rule: Rule, out: &mut Vec<Effect>) {
        let reason = Word::new(rule.as_str());
        if let Some(active) = &self.state.active {
            let version = active.plan.version;
            self.registry.bar(version, reason.clone());
            self.put_record(version, out);
        }
        self.end(reason, out);
    }

    /// Counts the time that went by.
    fn count(&mut self, now: Now, out: &mut Vec<Effect>) {
        // A process that stood still for longer didn't watch anything either.
        let passed = now.mono.0.saturating_sub(self.counted_to.0).min(2 * Self::TICK_MS);
        self.counted_to = now.mono;
        let run = self.state.active.as_mut().and_then(|active| active.run.as_mut());
        if let Some(run) = run {
            run.elapsed_ms = run.elapsed_ms.saturating_add(passed);
            self.put(out);
        }
    }

    fn advance_or_halt(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some((active, run, stage)) = self.running() else { return };
        if run.passed && run.elapsed_ms >= stage.gate.least_ms {
            if active.plan.automatic {
                // What keeps it from going on is looked at again with each tick and approval.
                let _ = self.next(now, out);
            }
        } else if run.elapsed_ms >= stage.gate.most_ms {
            self.halt("too_late", out);
        }
    }

    /// Goes on to the next stage, or to the end.
    fn next(&mut self, now: Now, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let (active, run, _) = self.running().ok_or(Refusal::NotBegun)?;
        let at = run.at + 1;
        self.may_enter(now, active, at)?;
        if active.plan.stage(at).is_some() {
            self.record("passed", None, out);
            self.enter(now, at, out);
            return Ok(());
        }
        let version = active.plan.version;
        self.record("done", None, out);
        self.state.stable = version;
        self.leave(out);
        Ok(())
    }

    fn halt(&mut self, reason: &'static str, out: &mut Vec<Effect>) {
        self.end(Word::new(reason), out);
    }

    /// Nobody serves it any more.
    fn end(&mut self, reason: Word, out: &mut Vec<Effect>) {
        let ran = self.running().map(|(active, ..)| active.plan.version);
        self.record("halted", None, out);
        if let Some(from) = ran {
            out.push(Effect::Record(Event::Rollback { from, reason, to: self.state.stable }));
        }
        self.leave(out);
    }

    fn leave(&mut self, out: &mut Vec<Effect>) {
        self.state.active = None;
        self.state.serial += 1;
        self.seen.clear();
        self.put(out);
        out.push(Effect::Assign(self.assignment()));
    }

    fn running(&self) -> Option<(&Active, &Run, &StagePlan)> {
        let active = self.state.active.as_ref()?;
        let run = active.run.as_ref()?;
        Some((active, run, active.plan.stage(run.at)?))
    }

    fn record(&self, outcome: &'static str, by: Option<NodeId>, out: &mut Vec<Effect>) {
        let stage = self.running().map(|(_, _, stage)| stage.stage);
        let first = || self.state.active.as_ref()?.plan.stage(0).map(|plan| plan.stage);
        if let Some(stage) = stage.or_else(first) {
            self.record_at(stage, outcome, by, out);
        }
    }

    fn record_at(
        &self,
        stage: Stage,
        outcome: &'static str,
        by: Option<NodeId>,
        out: &mut Vec<Effect>,
    ) {
        let Some(active) = &self.state.active else { return };
        out.push(Effect::Record(Event::RolloutStep {
            by,
            outcome: Word::new(outcome),
            plan: active.plan.digest(),
            stage: Word::new(stage.as_str()),
            version: active.plan.version,
        }));
    }

    fn put(&self, out: &mut Vec<Effect>) {
        put(Self::STATE.to_owned(), &self.state, out);
    }

    fn put_record(&self, version: Version, out: &mut Vec<Effect>) {
        if let Some(record) = self.registry.get(version) {
            put(key_of(version), record, out);
        }
    }
}

/// The highest look that is due with so many answers: those that are skipped cost nothing.
fn due(before: u32, answers: u64) -> Option<u32> {
    (before..=gate::MAX_LOOKS).take_while(|look| look_at(*look) <= answers).last()
}

fn key_of(version: Version) -> String {
    format!("{}{version}", Rollout::VERSION)
}

fn put<T: Serialize>(key: String, value: &T, out: &mut Vec<Effect>) {
    out.push(match encode(value) {
        Ok(bytes) => Effect::Put(key, bytes),
        Err(error) => Effect::Fatal(format!("state {key} can't be encoded: {error}")),
    });
}

#[cfg(test)]
mod tests;
