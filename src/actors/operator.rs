//! The operator's desk: commands with their replies, and what the node tells about itself.
//!
//! `status`, `meta` and `kpi` are retained telegrams under the node's branch on the plant's side;
//! `status` on the parent's side too. Whoever says there that the node is away (an old last will, a
//! second process of its name) is answered with its status.
//! Commands come as plain JSON where the settings allow it, else signed; each gets a reply on the
//! fixed topic `reply/{name}`, also when it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde_json::json;
use tokio::sync::Notify;

use super::MAILBOX;
use super::figures::Figures;
use super::role::{Decide, MachineView, Note, Observe, Steer, Stimulus};
use super::runner::{Link, Runner};
use crate::bus::{Ack, Bus, Crossing, Line, Priority, Publish};
use crate::ids::{Digest, KeyId, Name, Side};
use crate::ledger::Event;
use crate::protocol::rollout::{Plan, Stage};
use crate::protocol::{Effect, Input, RollbackBy, RolloutOrder, SlotOrder};
use crate::scada::RequestId;
use crate::scada::command::{
    self, Action, Command, CommandError, CommandFault, CommandPolicy, RolloutVerb,
};
use crate::scada::replay::ReplayWindow;
use crate::scada::telegram::{Kpi, Meta, ModelMeta, Reply, Status};
use crate::time::{Clock, Wall};
use crate::topic::{Branch, CommandName};
use crate::trust::{Sequences, Verified};
use crate::wire::Body;

/// What an operator's desk works with.
pub struct OperatorParts {
    /// The part of the topic tree that it writes to.
    pub branch: Branch,
    /// Roles for the status telegram.
    pub roles: Vec<String>,
    /// Models for the meta telegram; their version is filled in.
    pub models: Vec<ModelMeta>,
    /// The node's key.
    pub key_id: KeyId,
    /// What may be asked for without a signature.
    pub policy: CommandPolicy,
    /// The machine.
    pub role: Recipient<Stimulus>,
    /// Asks it.
    pub observe: Recipient<Observe>,
    /// Changes which of its versions is served; none where front and back of a split model have to be of one
    /// version.
    pub steer: Option<Recipient<Steer>>,
    /// Decides about rollouts, on an edge that is the steward of its site.
    pub decide: Option<Recipient<Decide>>,
    /// The model that it rolls out.
    pub rolls_out: Option<Name>,
    /// Records commands.
    pub runner: Addr<Runner>,
    /// The link on the plant's side.
    pub bus: Arc<dyn Bus>,
    /// Which of the two it is.
    pub plant: Side,
    /// All links: presence is told on each.
    pub lines: BTreeMap<Side, Line>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Ids of commands that were carried out.
    pub replays: ReplayWindow,
    /// Numbers of signed commands.
    pub sequences: Sequences,
    /// Takes over a newer keyring, where the node has it in a file.
    pub adopt: Option<Adopt>,
    /// Told when the node has to start again.
    pub again: Arc<Notify>,
    /// Processor seconds and peak memory in MiB of this process.
    pub resources: Arc<dyn Fn() -> (f64, f64) + Send + Sync>,
}

/// Checks the keyring that lies ready: version and digest as the command says, and allowed to follow the
/// one in use. Gives what changes for the ledger, or what is wrong.
pub type Adopt = Arc<dyn Fn(u64, &Digest) -> Result<Vec<Event>, String> + Send + Sync>;

/// See the module.
pub struct Operator {
    parts: OperatorParts,
    started: Wall,
    view: MachineView,
    /// Links on which somebody said that this node is away.
    doubted: BTreeSet<Side>,
    leaving: bool,
}

/// What stands on this node's own status topic, whoever wrote it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Presence {
    /// The link.
    pub side: Side,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// The node ends in order: say so, and nothing else any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Leave;

/// A command as it came.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum Order {
    /// JSON that anybody could have written.
    Plain {
        /// Last level of its topic.
        name: String,
        /// Its bytes.
        payload: Vec<u8>,
        /// It was stored at the broker: not executed.
        retained: bool,
        /// Released once it is recorded.
        ack: Ack,
    },
    /// Signed by an operator's key, and not stored at the broker.
    Signed {
        /// What passed every check.
        message: Box<Verified>,
        /// Released once it is recorded.
        ack: Ack,
    },
}

impl Operator {
    const KPI_EVERY: Duration = Duration::from_secs(5);
    /// Longer ones aren't ours.
    const MAX_STATUS_BYTES: usize = 4 * 1024;
    /// Two processes of one name would answer each other for ever; this is how fast at most.
    const PRESENCE_PAUSE: Duration = Duration::from_secs(1);

    /// A desk.
    pub fn new(parts: OperatorParts) -> Self {
        let started = parts.clock.now().wall;
        Self {
            parts,
            started,
            view: MachineView::default(),
            doubted: BTreeSet::new(),
            leaving: false,
        }
    }

    /// The status telegram; with `online` false it is the last will.
    pub fn status(roles: &[String], online: bool, round: u64, started: Wall, ts: Wall) -> Status {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (roles, fetching_base) = (roles.to_vec(), None);
        Status { online, roles, version, round, started, ts, fetching_base }
    }

    fn publish<T: serde::Serialize>(&self, topic: String, telegram: &T, retain: bool) {
        let Ok(payload) = serde_json::to_vec(telegram) else { return };
        let (at_least_once, priority) = (true, Priority::Control);
        let message = Publish { topic, payload, at_least_once, retain, priority };
        if let Err(error) = self.parts.bus.publish(message) {
            self.parts.figures.count(error.kind());
        }
    }

    fn publish_status(&self, side: Side) {
        let Some(line) = self.parts.lines.get(&side) else { return };
        let (now, online) = (self.parts.clock.now().wall, !self.leaving);
        let status = Self::status(&self.parts.roles, online, self.view.round, self.started, now);
        let Ok(crossing) = Crossing::presence(&self.parts.branch, &status) else { return };
        if let Err(error) = line.publish(crossing.into()) {
            self.parts.figures.count(error.kind());
        }
    }

    fn publish_meta(&self) {
        let branch = &self.parts.branch;
        let mut topics = BTreeMap::new();
        for leaf in ["status", "kpi", "cmd/+", "infer/+", "inference/+"] {
            topics.insert(leaf.to_owned(), format!("{branch}/{leaf}"));
        }
        let unit = |(key, unit): (&str, &str)| (key.to_owned(), unit.to_owned());
        let units = [
            ("latency_ms", "ms"),
            ("latency_ms_p50", "ms"),
            ("latency_ms_p99", "ms"),
            ("bytes_up", "B"),
            ("bytes_down", "B"),
            ("cpu_seconds", "s"),
            ("peak_rss_mib", "MiB"),
            ("loss", "nat"),
        ];
        let mut models = self.parts.models.clone();
        for model in &mut models {
            model.version = self.view.slots.served;
        }
        let meta = Meta {
            models,
            units: units.into_iter().map(unit).collect(),
            topics,
            key_id: self.parts.key_id,
            ts: self.parts.clock.now().wall,
        };
        self.publish(branch.meta(), &meta, true);
    }

    fn publish_kpi(&self) {
        let view = self.parts.figures.view();
        let (cpu_seconds, peak_rss_mib) = (self.parts.resources)();
        let online = view.online_accuracy(self.view.slots.served);
        let kpi = Kpi {
            online_accuracy: online.map(|(accuracy, _)| accuracy),
            online_accuracy_low: online.map(|(_, (low, _))| low),
            online_accuracy_high: online.map(|(_, (_, high))| high),
            labels: view.labels,
            input_drift: view.input_drift.map(|(distance, _)| distance),
            input_drift_p: view.input_drift.map(|(_, p_value)| p_value),
            drifts: view.drifts,
            accuracy: view.accuracy(),
            loss: view.loss,
            latency_ms_p50: view.latency_ms(50.0),
            latency_ms_p99: view.latency_ms(99.0),
            answers: view.answers,
            bytes_up: view.bytes_out.values().sum(),
            bytes_down: view.bytes_in.values().sum(),
            cpu_seconds,
            peak_rss_mib,
            refused: view.refused(),
            round: self.view.round,
            outbox: view.outbox,
            privacy_risk: view.privacy_risk.map(|risk| risk.tpr_at_1_percent),
            privacy_risk_auc: view.privacy_risk.map(|risk| risk.auc),
            ts: self.parts.clock.now().wall,
        };
        self.publish(self.parts.branch.kpi(), &kpi, true);
    }

    /// Takes a fresh look at the machine, then does `then`.
    fn look(&mut self, ctx: &mut Context<Self>, then: impl FnOnce(&mut Self) + 'static) {
        let observe = self.parts.observe.clone();
        let seen = async move { observe.send(Observe).await };
        ctx.spawn(seen.into_actor(self).map(move |view, this, _| {
            if let Ok(view) = view {
                this.view = view;
            }
            then(this);
        }));
    }

    fn execute(&mut self, name: &str, command: Command, ctx: &mut Context<Self>) {
        let Command { id, action } = command;
        let name = name.to_owned();
        let input = match action {
            Action::Status => {
                return self.look(ctx, move |this| {
                    let view = this.parts.figures.view();
                    let data = json!({
                        "phase": this.view.phase, "round": this.view.round,
                        "version": this.view.version, "served": this.view.slots.served,
                        "accepted": this.view.accepted,
                        "expected": this.view.expected,
                        "outbox": view.outbox,
                        "online": view.online_figures(),
                        "full": view.full,
                    });
                    this.reply(&name, &Reply::ok(id, data));
                });
            }
            Action::ModelList => {
                return self.look(ctx, move |this| {
                    let mut models = this.parts.models.clone();
                    for model in &mut models {
                        model.version = this.view.slots.served;
                    }
                    let data = json!({ "models": models, "serving": this.view.slots });
                    this.reply(&name, &Reply::ok(id, data));
                });
            }
            Action::RoundStart => match self.parts.figures.full() {
                None => Input::StartRound,
                Some(reason) => {
                    let hint = "a round is new work: the node takes it again when there is room";
                    return self.reply(&name, &Reply::error(id, "disk_full", reason, hint));
                }
            },
            Action::Pause => Input::Pause(true),
            Action::Resume => Input::Pause(false),
            Action::KeyringUpdate { version, .. } => {
                self.reply(&name, &Reply::ok(id, json!({ "version": version })));
                return self.parts.again.notify_one();
            }
            // Refused in `check`, or steered.
            Action::ConfigSet { .. }
            | Action::Rollback { .. }
            | Action::VersionRelease { .. }
            | Action::VersionFloor { .. }
            | Action::Rollout { .. } => return,
        };
        let role = self.parts.role.clone();
        let done = async move { role.send(Stimulus { input, ack: Ack::none() }).await };
        ctx.spawn(done.into_actor(self).map(move |_, this, _| {
            this.reply(&name, &Reply::ok(id, json!({})));
        }));
    }

    fn reply(&self, name: &str, reply: &Reply) {
        // An unknown command has no reply topic of its own.
        let known = CommandName::new(name).or_else(|_| CommandName::new("error"));
        if let Ok(name) = known {
            self.publish(self.parts.branch.reply(&name), reply, false);
        }
    }

    /// What the command does comes behind this at the runner: never on disk without it.
    fn record(&self, note: Note, outcome: &'static str, ctx: &mut Context<Self>) {
        let runner = self.parts.runner.clone();
        let run = note.ends(outcome, Vec::new());
        ctx.wait(async move { runner.send(run).await.unwrap_or(()) }.into_actor(self));
    }

    /// Changes which version is served: with the command's entry, in one transaction.
    fn steer(&self, note: Note, id: Option<RequestId>, order: SlotOrder, ctx: &mut Context<Self>) {
        // `check` has answered where there is none.
        let Some(role) = self.parts.steer.clone() else { return };
        let (name, steer) = (note.name.clone(), Steer { order, note });
        let done = async move { role.send(steer).await };
        ctx.wait(done.into_actor(self).map(move |steered, this, ctx| {
            let Ok(outcome) = steered else { return };
            match outcome {
                Ok(slots) => {
                    this.reply(&name, &Reply::ok(id, json!({ "serving": slots })));
                    this.look(ctx, |this| this.publish_meta());
                }
                Err(refusal) => {
                    let (kind, hint) = (refusal.kind(), refusal.hint());
                    let fault = CommandFault::Version { kind, problem: refusal.to_string(), hint };
                    this.refused(&name, &CommandError { id, fault });
                }
            }
        }));
    }

    /// Has the steward decide: with the command's entry, in one transaction.
    fn decide(
        &self,
        note: Note,
        id: Option<RequestId>,
        order: RolloutOrder,
        ctx: &mut Context<Self>,
    ) {
        // `check` has answered where there is none.
        let Some(role) = self.parts.decide.clone() else { return };
        let (name, decide) = (note.name.clone(), Decide { order, note });
        let done = async move { role.send(decide).await };
        ctx.wait(done.into_actor(self).map(move |decided, this, _| {
            let Ok(outcome) = decided else { return };
            match outcome {
                Ok(view) => this.reply(&name, &Reply::ok(id, json!({ "rollout": view }))),
                Err(refusal) => {
                    let (kind, hint) = (refusal.kind(), refusal.hint());
                    let fault = CommandFault::Version { kind, problem: refusal.to_string(), hint };
                    this.refused(&name, &CommandError { id, fault });
                }
            }
        }));
    }

    /// What only a look at the node can tell. What it changes in the ledger goes with its guard.
    fn check(&self, command: &Command, guard: &mut Vec<Effect>) -> Result<(), CommandError> {
        let fail = |fault| Err(CommandError { id: command.id.clone(), fault });
        let not_supported = |name, instead| fail(CommandFault::NotSupported { name, instead });
        match &command.action {
            Action::ConfigSet { .. } => not_supported(
                "config.set",
                "settings are read at the start: change the file on the node and start it again",
            ),
            Action::Rollback { model, .. }
            | Action::VersionRelease { model, .. }
            | Action::VersionFloor { model, .. } => {
                if self.parts.steer.is_none() {
                    let instead = "front and back of a split model are of one version: take split.cut out on the \
                                   whole site first, or have another round made";
                    let name = match &command.action {
                        Action::Rollback { .. } => "rollback",
                        Action::VersionRelease { .. } => "version.release",
                        _ => "version.floor",
                    };
                    return not_supported(name, instead);
                }
                if self.parts.models.iter().any(|known| known.name == *model) {
                    return Ok(());
                }
                let problem = format!("this node doesn't answer by a model {model}");
                let hint = "model.list tells which it has";
                fail(CommandFault::Version { kind: "unknown_model", problem, hint })
            }
            Action::Rollout { model, verb } => {
                let (Some(_), Some(mine)) = (&self.parts.decide, &self.parts.rolls_out) else {
                    let instead = "rollouts are decided where the settings say rollout.steward = true: by the \
                                   edge of a site, or by the cloud";
                    return not_supported(verb.command().as_str(), instead);
                };
                if model.as_ref().is_none_or(|model| model == mine) {
                    return rollout_order(mine, verb).map(drop).or_else(fail);
                }
                let problem = "this node rolls out another model".to_owned();
                let hint = "name the model of its settings, model.name";
                fail(CommandFault::Version { kind: "unknown_model", problem, hint })
            }
            Action::KeyringUpdate { version, digest } => {
                let Some(adopt) = &self.parts.adopt else {
                    let instead =
                        "this node has no keyring file: start it again with the newer one";
                    return not_supported("keyring.update", instead);
                };
                match adopt(*version, digest) {
                    Ok(events) => {
                        guard.extend(events.into_iter().map(Effect::Record));
                        Ok(())
                    }
                    Err(problem) => fail(CommandFault::Keyring { problem }),
                }
            }
            Action::Status
            | Action::RoundStart
            | Action::Pause
            | Action::Resume
            | Action::ModelList => Ok(()),
        }
    }

    /// Nothing can be recorded now, so nothing but questions is carried out.
    fn without_a_record(&mut self, order: Order, ctx: &mut Context<Self>) {
        let now = self.parts.clock.now().wall;
        let (name, parsed, ack) = match order {
            Order::Plain { name, payload, retained, ack } => {
                let parsed = command::parse(&name, &payload, retained, now, &self.parts.policy);
                (name, parsed, ack)
            }
            Order::Signed { message, ack } => {
                let Body::Command(body) = message.body() else { return ack.release() };
                (body.name.clone(), command::parse_signed(&body.name, &body.json, now), ack)
            }
        };
        ack.release();
        match parsed {
            Ok(Command { id, action: Action::Rollout { .. } }) => {
                self.refused(&name, &CommandError { id, fault: CommandFault::DiskFull });
            }
            Ok(command) if command.action.only_asks() => self.execute(&name, command, ctx),
            Ok(Command { id, .. }) => {
                self.refused(&name, &CommandError { id, fault: CommandFault::DiskFull });
            }
            Err(error) => self.refused(&name, &error),
        }
    }

    fn refused(&self, name: &str, error: &CommandError) {
        self.parts.figures.count(error.kind());
        self.reply(name, &error.reply());
    }
}

impl Actor for Operator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(Self::KPI_EVERY, |this, ctx| this.look(ctx, |this| this.publish_kpi()));
    }
}

impl Handler<Link> for Operator {
    type Result = ();

    fn handle(&mut self, Link { side, up }: Link, ctx: &mut Self::Context) {
        if up && !self.leaving {
            self.look(ctx, move |this| {
                this.publish_status(side);
                if side == this.parts.plant {
                    this.publish_meta();
                    this.publish_kpi();
                }
            });
        }
    }
}

impl Handler<Presence> for Operator {
    type Result = ();

    fn handle(&mut self, Presence { side, payload }: Presence, ctx: &mut Self::Context) {
        let online = payload.len() <= Self::MAX_STATUS_BYTES
            && serde_json::from_slice::<Status>(&payload).is_ok_and(|status| status.online);
        if online || self.leaving || !self.doubted.insert(side) {
            return;
        }
        self.parts.figures.count("said_to_be_offline");
        ctx.run_later(Self::PRESENCE_PAUSE, move |this, _| {
            this.doubted.remove(&side);
            this.publish_status(side);
        });
    }
}

impl Handler<Leave> for Operator {
    type Result = ();

    fn handle(&mut self, _: Leave, _: &mut Self::Context) {
        self.leaving = true;
        // A link that is down has its last will for this.
        self.parts.lines.keys().for_each(|side| self.publish_status(*side));
    }
}

impl Handler<Order> for Operator {
    type Result = ();

    fn handle(&mut self, order: Order, ctx: &mut Self::Context) {
        if self.parts.figures.is_stalled() {
            return self.without_a_record(order, ctx);
        }
        let now = self.parts.clock.now().wall;
        let (mut note, parsed) = match order {
            Order::Plain { name, payload, retained, ack } => {
                let parsed = command::parse(&name, &payload, retained, now, &self.parts.policy);
                let (command, guard) = (Digest::of(&payload), Vec::new());
                (Note { name, command, operator: None, guard, ack }, parsed)
            }
            Order::Signed { message, ack } => {
                let Body::Command(body) = message.body() else { return ack.release() };
                let (name, command) = (body.name.clone(), message.body_digest());
                let operator = Some(message.sender().clone());
                let Some(changes) = self.parts.sequences.admit(&message) else {
                    self.parts.figures.count("replayed_command");
                    let note = Note { name, command, operator, guard: Vec::new(), ack };
                    return self.record(note, "replayed_command", ctx);
                };
                let parsed = command::parse_signed(&body.name, &body.json, now);
                let guard = changes.into_iter().map(put).collect();
                (Note { name, command, operator, guard, ack }, parsed)
            }
        };
        let admitted = parsed.and_then(|command| {
            let noted = self.parts.replays.admit(&command)?;
            note.guard.extend(noted.map(|(key, value)| Effect::Put(key.into(), value)));
            self.check(&command, &mut note.guard)?;
            Ok(command)
        });
        let name = note.name.clone();
        match admitted {
            Ok(Command { id, action }) => {
                let order = match (&action, &self.parts.rolls_out) {
                    (Action::Rollout { verb, .. }, Some(mine)) => rollout_order(mine, verb).ok(),
                    _ => None,
                };
                if let Some(order) = order {
                    self.decide(note, id, order, ctx);
                } else if let Some(order) = slot_order(&action) {
                    self.steer(note, id, order, ctx);
                } else {
                    self.record(note, "ok", ctx);
                    self.execute(&name, Command { id, action }, ctx);
                }
            }
            Err(error) => {
                self.record(note, error.kind(), ctx);
                self.refused(&name, &error);
            }
        }
    }
}

/// What a command says about the version that is served. It was signed: none of these comes plain.
fn slot_order(action: &Action) -> Option<SlotOrder> {
    match action {
        Action::Rollback { version, .. } => {
            Some(SlotOrder::Rollback { to: *version, by: RollbackBy::Operator })
        }
        Action::VersionRelease { version, .. } => Some(SlotOrder::Release { least: *version }),
        Action::VersionFloor { version, .. } => Some(SlotOrder::Floor { least: *version }),
        _ => None,
    }
}

/// What a command says about a rollout.
fn rollout_order(model: &Name, verb: &RolloutVerb) -> Result<RolloutOrder, CommandFault> {
    Ok(match verb {
        RolloutVerb::Plan { version, automatic, stages } => {
            let plan = Plan::read(model.clone(), *version, *automatic, stages);
            RolloutOrder::Plan(plan.map_err(|error| CommandFault::Version {
                kind: error.kind(),
                problem: error.to_string(),
                hint: "docs/rollout.md has a plan to start from",
            })?)
        }
        RolloutVerb::Start => RolloutOrder::Start,
        RolloutVerb::Approve { plan, stage } => {
            let stage = Stage::parse(stage).ok_or_else(|| CommandFault::Version {
                kind: "no_such_stage",
                problem: format!("there is no stage {stage}"),
                hint: "stages are shadow, canary, area, site, federation",
            })?;
            RolloutOrder::Approve { plan: *plan, stage }
        }
        RolloutVerb::Promote => RolloutOrder::Promote,
        RolloutVerb::Halt => RolloutOrder::Halt,
        RolloutVerb::Status => RolloutOrder::Status,
    })
}

fn put((key, value): (String, Option<Vec<u8>>)) -> Effect {
    match value {
        Some(value) => Effect::Put(key.into(), value),
        None => Effect::Delete(key.into()),
    }
}
