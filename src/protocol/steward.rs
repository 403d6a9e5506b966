//! The steward of rollouts: an edge for its site, or a cloud for all sites, that runs [`Rollout`] beside its rounds.
//!
//! ```text
//!   its rounds' effects: combined, sent up, handed down --> versions with their lineage
//!   operators' signed commands ---------------------------> Rollout --> Assign --> m/assignment (retained, signed)
//!   signed evidence of devices, or of sites ---------------'
//! ```
//! It watches what its rounds do and changes none of it: what is learned goes on, whatever is served. Versions that
//! were handed down last are kept with their chunks, so that a device that lacks an assigned one can get it.
//!
//! Called by [`super::Rollouts`]. All of its state is on disk with the step that changed it; what devices have seen
//! isn't, they say it again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::deputy::Deputy;
use super::effect::{CombineJob, Delivery, Effect, Job, Timer, To};
use super::kept::{Kept, handed_down};
use super::rollout::{
    self, Input, Plan, PlanError, Refusal, Rollout, RolloutConfig, RolloutView, Stage,
    VersionRecord,
};
use super::round::put;
use super::update::{highest_risk, mean_loss};
use crate::ids::{Digest, NodeId, RoundNo, Version};
use crate::ledger::Word;
use crate::time::{Mono, Now};
use crate::wire::{
    self, Assignment, Blob, Body, Candidate, Contribution, Evidence, Kind, Manifest, SiteEvidence,
    Wanted, decode,
};

/// What a steward has to know.
#[derive(Debug, Clone)]
pub struct StewardConfig {
    /// What plans are checked by.
    pub rollout: RolloutConfig,
    /// Chunks of the untrained adapter: version 0.
    pub untrained: Manifest,
    /// Bytes a chunk of adapters that travel inside their message otherwise.
    pub chunk_bytes: u32,
    /// The program.
    pub code: Word,
}

/// See the module.
#[derive(Debug)]
pub struct Steward {
    config: StewardConfig,
    rollout: Rollout,
    /// The versions that can be assigned.
    kept: Kept,
    /// What is known of the version that is being made.
    making: Making,
    /// Number and stable version of the last assignment of a deputy here, if there was one.
    left: Option<(u64, Version)>,
    /// When the assignment was last sealed.
    told_at: Mono,
}

/// What this node gave to a version that isn't known yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Making {
    contributors: Vec<NodeId>,
    strategy: Option<Word>,
    /// The version that it was made from.
    from: Version,
    num_examples: u64,
    losses: (f32, f32),
    #[serde(default)]
    risk: Option<f32>,
}

/// What an operator wants of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum RolloutOrder {
    /// Propose one.
    Plan(Plan),
    /// Begin what was proposed.
    Start,
    /// Approve a stage of a plan.
    Approve {
        /// The plan's digest.
        plan: Digest,
        /// The stage.
        stage: Stage,
    },
    /// Go on to the next stage: the one that runs has passed.
    Promote,
    /// End it here.
    Halt,
    /// Tell how far it is.
    Status,
}

/// What may be seen of it from outside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StewardView {
    /// The rollout.
    #[serde(flatten)]
    pub rollout: RolloutView,
    /// The newest versions that are known, the lowest first.
    pub versions: Vec<KnownVersion>,
}

/// A version with its lineage, as a status tells it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KnownVersion {
    /// Its number.
    pub version: Version,
    /// Digest of its adapter.
    pub adapter: String,
    /// The version that it was made from.
    pub parent: Version,
    /// The round in which it was handed down.
    pub round: RoundNo,
    /// This node's members in it; the first ones.
    pub contributors: Vec<NodeId>,
    /// Examples behind it, as far as they went through this node.
    pub num_examples: u64,
    /// Most that an attacker finds out about membership in the examples of this node's members, in the round that made it, as
    /// AUC; none where it wasn't measured for all.
    pub risk: Option<f64>,
    /// How it was combined.
    pub strategy: String,
    /// The program that handed it down.
    pub code: String,
    /// Its adapter is kept here, so it can be planned.
    pub kept: bool,
    /// Why it mustn't be served any more.
    pub barred: Option<String>,
}

impl Steward {
    /// Key prefix of its durable state.
    pub const PREFIX: &'static str = Rollout::PREFIX;
    const MAKING: &'static str = "rollout/making";
    const STATE_CAP: usize = 1 << 17;
    /// Versions and contributors that a status names.
    const MAX_TOLD: usize = 8;
    const MAX_NAMED: usize = 32;
    /// A retained assignment is good for 30 days: it is sealed anew long before.
    pub(super) const TELL_AGAIN_MS: u64 = 24 * 60 * 60 * 1_000;

    /// A steward as `state` left it.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(config: StewardConfig, state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let left = Deputy::left(state)?;
        let rollout = Rollout::new(config.rollout.clone(), state)?;
        let stored = state.iter().find(|(key, _)| key == Self::MAKING);
        let making = stored.map(|(key, value)| {
            decode(value, Self::STATE_CAP).map_err(|error| format!("{key}: {error}"))
        });
        let kept = Kept::new(config.untrained.clone(), config.chunk_bytes, state)?;
        let making = making.transpose()?.unwrap_or_default();
        Ok(Self { config, rollout, kept, making, left, told_at: Mono::default() })
    }

    /// The node starts; `effects` are those of its relay's start.
    pub fn start(&mut self, now: Now, effects: &[Effect]) -> Vec<Effect> {
        let mut out = Vec::new();
        if let Some((serial, stable)) = self.left.take() {
            // Turning it on changes nothing that is served.
            let taken = self.rollout.step(now, Input::TakenBack { serial, stable });
            self.carry_all(now, taken, &mut out);
        }
        out.extend(self.watch(now, effects));
        let started = self.rollout.step(now, Input::Start);
        self.carry_all(now, started, &mut out);
        out
    }

    /// What its rounds do: a version may come of it.
    pub fn watch(&mut self, now: Now, effects: &[Effect]) -> Vec<Effect> {
        let mut out = Vec::new();
        for effect in effects {
            match effect {
                Effect::Job(Job::Combine(job)) => self.combined(job, &mut out),
                Effect::Send { body: Body::Contribution(contribution), .. } => {
                    self.sent_up(contribution, &mut out);
                }
                _ => {}
            }
        }
        for (version, adapter, round) in handed_down(effects) {
            self.handed_down(now, version, adapter, round, &mut out);
        }
        out
    }

    /// Time goes by.
    pub fn tick(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let ticked = self.rollout.step(now, Input::Tick);
        self.carry_all(now, ticked, &mut out);
        if now.mono.0.saturating_sub(self.told_at.0) >= Self::TELL_AGAIN_MS {
            self.tell(now, &mut out);
        }
        out
    }

    /// What a device says that it has seen.
    pub fn evidence(&mut self, now: Now, node: &NodeId, evidence: &Evidence) -> Vec<Effect> {
        let Evidence { serial, version, life, tally, gave_up } = *evidence;
        let nodes = u64::from(tally.answers > 0);
        let node = node.clone();
        let seen = Input::Evidence { node: node.clone(), life, serial, tally, nodes };
        self.seen(now, (serial, version), (&node, seen), gave_up)
    }

    /// What an edge says that its devices have seen. An edge has one life: it remembers what was seen.
    pub fn site_evidence(
        &mut self,
        now: Now,
        node: &NodeId,
        evidence: &SiteEvidence,
    ) -> Vec<Effect> {
        let SiteEvidence { serial, version, tally, nodes, gave_up } = *evidence;
        let seen = Input::Evidence { node: node.clone(), life: 0, serial, tally, nodes };
        self.seen(now, (serial, version), (node, seen), gave_up)
    }

    fn seen(
        &mut self,
        now: Now,
        (serial, version): (u64, Version),
        (node, seen): (&NodeId, Input),
        gave_up: bool,
    ) -> Vec<Effect> {
        let assigned = self.rollout.assignment();
        if (serial, Some(version)) != (assigned.serial, assigned.candidate) {
            // On its way while the stage ended.
            return vec![Effect::Count("evidence_of_another_stage")];
        }
        let mut out = Vec::new();
        let takes_part = self.rollout.takes_part(node);
        let stepped = self.rollout.step(now, seen);
        self.carry_all(now, stepped, &mut out);
        if gave_up && takes_part && self.rollout.assignment().candidate == Some(version) {
            let stepped = self.rollout.step(now, Input::GaveUp { version });
            self.carry_all(now, stepped, &mut out);
        }
        out
    }

    /// Carries out what an operator wants.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn order(
        &mut self,
        now: Now,
        by: &NodeId,
        order: RolloutOrder,
    ) -> Result<Vec<Effect>, Refusal> {
        let by = by.clone();
        let input = match order {
            RolloutOrder::Plan(plan) => {
                self.can_be_told(&plan)?;
                Input::Plan { by, plan }
            }
            RolloutOrder::Start => Input::Begin,
            RolloutOrder::Approve { plan, stage } => Input::Approve { by, plan, stage },
            RolloutOrder::Promote => Input::Promote,
            RolloutOrder::Halt => Input::Halt,
            RolloutOrder::Status => return Ok(Vec::new()),
        };
        let mut out = Vec::new();
        let effects = self.rollout.step(now, input);
        if let [rollout::Effect::Refuse(refusal)] = effects.as_slice() {
            return Err(refusal.clone());
        }
        self.carry_all(now, effects, &mut out);
        Ok(out)
    }

    /// Chunks of a kept adapter, for a node that asks for them.
    pub fn chunks(&self, to: &NodeId, wanted: &Wanted) -> Option<Effect> {
        self.kept.chunks(to, wanted)
    }

    /// Who serves what, as it is told.
    pub fn assignment(&self) -> Assignment {
        let rollout::Assignment { serial, stable, candidate, serve, shadow, slow_ms } =
            self.rollout.assignment();
        let candidate = candidate.and_then(|version| {
            let adapter = self.kept.get(version)?.clone();
            Some(Candidate { version, adapter, serve, shadow, slow_ms })
        });
        let model = self.config.rollout.model.clone();
        let stable_adapter = self.kept.get(stable).cloned();
        Assignment { model, serial, stable, stable_adapter, candidate }
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.kept.blobs()
    }

    /// What may be seen from outside.
    pub fn view(&self) -> StewardView {
        let known = self.rollout.registry().records().map(|record| KnownVersion {
            version: record.version,
            adapter: record.adapter.to_string(),
            parent: record.parent,
            round: record.round,
            contributors: record.contributors.iter().take(Self::MAX_NAMED).cloned().collect(),
            num_examples: record.num_examples,
            risk: record.risk,
            strategy: record.strategy.as_str().to_owned(),
            code: record.code.as_str().to_owned(),
            kept: self.kept.get(record.version).is_some(),
            barred: record.barred.as_ref().map(|why| why.as_str().to_owned()),
        });
        let mut versions: Vec<KnownVersion> = known.collect();
        versions.drain(..versions.len().saturating_sub(Self::MAX_TOLD));
        StewardView { rollout: self.rollout.view(), versions }
    }

    fn combined(&mut self, job: &CombineJob, out: &mut Vec<Effect>) {
        let name = if job.plan.prox_mu > 0.0 { "fed_prox" } else { "fed_avg" };
        let inputs = &job.inputs;
        let senders: BTreeSet<&NodeId> = inputs.iter().map(|input| &input.sender).collect();
        let most = rollout::Registry::MAX_CONTRIBUTORS;
        self.making.contributors = senders.into_iter().take(most).cloned().collect();
        self.making.strategy = Some(Word::new(name));
        self.making.risk = highest_risk(inputs);
        if !job.relay {
            // What a relay makes of it, it says when it sends that up.
            let offered = inputs.iter().map(|input| input.version + input.staleness);
            self.making.from = offered.max().unwrap_or(0);
            let examples = inputs.iter().map(|input| input.num_examples);
            let examples = examples.fold(0, u64::saturating_add);
            self.making.num_examples = examples;
            self.making.losses = (
                mean_loss(inputs, examples, |input| input.loss_first),
                mean_loss(inputs, examples, |input| input.loss_last),
            );
        }
        put(Self::MAKING, &self.making, out);
    }

    fn sent_up(&mut self, contribution: &Contribution, out: &mut Vec<Effect>) {
        self.making.from = contribution.version;
        self.making.num_examples = contribution.num_examples;
        self.making.losses = (contribution.loss_first, contribution.loss_last);
        put(Self::MAKING, &self.making, out);
    }

    fn handed_down(
        &mut self,
        now: Now,
        version: Version,
        adapter: &Blob,
        round: RoundNo,
        out: &mut Vec<Effect>,
    ) {
        let known = self.rollout.registry().get(version).is_some();
        if known && self.kept.get(version).is_some() {
            return;
        }
        if !known {
            let registry = self.rollout.registry();
            let before = registry.records().map(|record| record.version).filter(|v| *v < version);
            let parent = before.max().unwrap_or(0);
            // Of a version that this site gave nothing to, others know who made it.
            let made_here = self.making.from + 1 == version && !self.making.contributors.is_empty();
            let making =
                if made_here { std::mem::take(&mut self.making) } else { Making::default() };
            let record = VersionRecord {
                version,
                model: self.config.rollout.model.clone(),
                base: self.config.rollout.base,
                adapter: adapter.sha256(),
                parent: if made_here { making.from } else { parent },
                round,
                contributors: making.contributors,
                num_examples: making.num_examples,
                losses: making.losses,
                strategy: making.strategy.unwrap_or(Word::new("elsewhere")),
                code: self.config.code.clone(),
                risk: making.risk.map(f64::from),
                // Nothing is handed down but what the parent has signed, or was made here.
                signed: true,
                barred: None,
            };
            if made_here {
                put(Self::MAKING, &self.making, out);
            }
            let registered = self.rollout.step(now, Input::Registered(record));
            self.carry_all(now, registered, out);
        }
        let RolloutView { stable, version: active, .. } = self.rollout.view();
        let needed: Vec<Version> = active.into_iter().chain([stable]).collect();
        self.kept.keep(version, adapter, &needed, out);
        if self.rollout.assignment().stable == version {
            self.tell(now, out); // now devices can get it, too
        }
    }

    /// Whether each stage of a plan could be told to the devices.
    fn can_be_told(&self, plan: &Plan) -> Result<(), PlanError> {
        let known = self.rollout.registry().get(plan.version).is_some();
        let Some(adapter) = self.kept.get(plan.version) else {
            let version = plan.version;
            return Err(if known {
                PlanError::NotKept(version)
            } else {
                PlanError::Unknown(version)
            });
        };
        let most = plan.stages.iter().max_by_key(|stage| stage.nodes.len());
        let (serve, slow_ms) =
            most.map(|stage| (stage.nodes.clone(), u64::MAX)).unwrap_or_default();
        let shadow = BTreeSet::new();
        let candidate =
            Candidate { version: plan.version, adapter: adapter.clone(), serve, shadow, slow_ms };
        let told = Assignment { candidate: Some(candidate), ..self.assignment() };
        let bytes = wire::encode(&told).map_or(usize::MAX, |bytes| bytes.len());
        let (cap, actual) = (Kind::Assignment.cap_bytes(), bytes.saturating_add(Self::AROUND));
        if actual > cap { Err(PlanError::TooLarge { cap, actual }) } else { Ok(()) }
    }

    /// Bytes around an assignment: envelope, head, signature, and a stable version that changes.
    pub(super) const AROUND: usize = 2 * 1024;

    fn carry_all(&mut self, now: Now, effects: Vec<rollout::Effect>, out: &mut Vec<Effect>) {
        for effect in effects {
            match effect {
                rollout::Effect::Put(key, value) => out.push(Effect::Put(key.into(), value)),
                rollout::Effect::Delete(key) => out.push(Effect::Delete(key.into())),
                rollout::Effect::Record(event) => out.push(Effect::Record(event)),
                rollout::Effect::Assign(_) => self.tell(now, out),
                rollout::Effect::Tick(after_ms) => {
                    out.push(Effect::Timer { timer: Timer::Steward, after_ms });
                }
                rollout::Effect::Refuse(refusal) => out.push(Effect::Count(refusal.kind())),
                rollout::Effect::Fatal(what) => out.push(Effect::Fatal(what)),
            }
        }
    }

    fn tell(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.told_at = now.mono;
        out.push(Effect::Send {
            to: To::Children,
            body: Body::Assignment(self.assignment()),
            round: 0,
            epoch: 0,
            delivery: Delivery::Latest,
        });
    }
}
