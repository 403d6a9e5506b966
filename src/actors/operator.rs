//! The operator's desk: commands with their replies, and what the node tells about itself.
//!
//! `status`, `meta` and `kpi` are retained telegrams under the node's branch on the plant's side.
//! Commands come as plain JSON where the settings allow it, else signed; each gets a reply on the
//! fixed topic `reply/{name}`, also when it is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde_json::json;

use super::MAILBOX;
use super::figures::Figures;
use super::role::{MachineView, Observe, Stimulus};
use super::runner::{Link, Run, Runner};
use crate::bus::{Ack, Bus, Priority, Publish};
use crate::ids::{BootId, Digest, KeyId, NodeId, Side};
use crate::ledger::{Event, Word};
use crate::protocol::{Effect, Input};
use crate::scada::command::{self, Action, Command, CommandError, CommandPolicy};
use crate::scada::replay::ReplayWindow;
use crate::scada::telegram::{Kpi, Meta, ModelMeta, Reply, Status};
use crate::time::{Clock, Wall};
use crate::topic::{Branch, CommandName};
use crate::trust::Verified;
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
    /// Records commands.
    pub runner: Addr<Runner>,
    /// The link on the plant's side.
    pub bus: Arc<dyn Bus>,
    /// Which of the two it is.
    pub plant: Side,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Processor seconds and peak memory in MiB of this process.
    pub resources: Arc<dyn Fn() -> (f64, f64) + Send + Sync>,
}

/// See the module.
pub struct Operator {
    parts: OperatorParts,
    started: Wall,
    replays: ReplayWindow,
    /// Highest number seen of each start of each signer.
    sequences: BTreeMap<(NodeId, BootId), u64>,
    view: MachineView,
}

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
    },
    /// Signed by an operator's key, and not stored at the broker.
    Signed(Box<Verified>),
}

impl Operator {
    const KPI_EVERY: Duration = Duration::from_secs(5);
    /// Starts of signers that are remembered.
    const MAX_SEQUENCES: usize = 256;

    /// A desk.
    pub fn new(parts: OperatorParts) -> Self {
        let started = parts.clock.now().wall;
        let (replays, sequences) = (ReplayWindow::default(), BTreeMap::new());
        Self { parts, started, replays, sequences, view: MachineView::default() }
    }

    /// The status telegram; with `online` false it is the last will.
    pub fn status(roles: &[String], online: bool, round: u64, started: Wall, ts: Wall) -> Status {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Status { online, roles: roles.to_vec(), version, round, started, ts }
    }

    fn publish<T: serde::Serialize>(&self, topic: String, telegram: &T, retain: bool) {
        let Ok(payload) = serde_json::to_vec(telegram) else { return };
        let (at_least_once, priority) = (true, Priority::Control);
        let message = Publish { topic, payload, at_least_once, retain, priority };
        if let Err(error) = self.parts.bus.publish(message) {
            self.parts.figures.count(error.kind());
        }
    }

    fn publish_status(&self) {
        let now = self.parts.clock.now().wall;
        let status = Self::status(&self.parts.roles, true, self.view.round, self.started, now);
        self.publish(self.parts.branch.status(), &status, true);
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
            model.version = self.view.version;
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
        let kpi = Kpi {
            accuracy: None,
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
                    let data = json!({
                        "phase": this.view.phase, "round": this.view.round,
                        "version": this.view.version, "accepted": this.view.accepted,
                        "expected": this.view.expected,
                        "outbox": this.parts.figures.view().outbox,
                    });
                    this.reply(&name, &Reply::ok(id, data));
                });
            }
            Action::ModelList => {
                return self.look(ctx, move |this| {
                    let mut models = this.parts.models.clone();
                    for model in &mut models {
                        model.version = this.view.version;
                    }
                    this.reply(&name, &Reply::ok(id, json!({ "models": models })));
                });
            }
            Action::RoundStart => Input::StartRound,
            Action::Pause => Input::Pause(true),
            Action::Resume => Input::Pause(false),
            Action::ConfigSet { .. } | Action::Rollback { .. } | Action::KeyringUpdate { .. } => {
                let hint = "change the file on the node and start it again";
                let text = format!("{name} can't be done over MQTT by this version");
                return self.reply(&name, &Reply::error(id, "not_supported", text, hint));
            }
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

    fn record(
        &self,
        name: &str,
        command: Digest,
        operator: Option<NodeId>,
        outcome: &'static str,
        ctx: &mut Context<Self>,
    ) {
        let name = Word::try_from(name.to_owned()).unwrap_or(Word::new("unnamed"));
        let outcome = Word::new(outcome);
        let event = Event::Command { command, name, operator, outcome };
        let runner = self.parts.runner.clone();
        let run = Run { effects: vec![Effect::Record(event)], ack: Ack::none() };
        ctx.wait(async move { runner.send(run).await.unwrap_or(()) }.into_actor(self));
    }

    fn refused(&self, name: &str, error: &CommandError) {
        self.parts.figures.count(error.kind());
        self.reply(name, &error.reply());
    }

    /// Numbers of one start only go up.
    fn is_new(&mut self, message: &Verified) -> bool {
        let (boot, seq) = message.sequence();
        let key = (message.sender().clone(), boot);
        if self.sequences.len() >= Self::MAX_SEQUENCES && !self.sequences.contains_key(&key) {
            self.sequences.pop_first();
        }
        let last = self.sequences.entry(key).or_default();
        let new = seq > *last;
        *last = seq.max(*last);
        new
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
        if up && side == self.parts.plant {
            self.look(ctx, |this| {
                this.publish_status();
                this.publish_meta();
                this.publish_kpi();
            });
        }
    }
}

impl Handler<Order> for Operator {
    type Result = ();

    fn handle(&mut self, order: Order, ctx: &mut Self::Context) {
        let now = self.parts.clock.now().wall;
        let (name, digest, operator, parsed) = match order {
            Order::Plain { name, payload, retained } => {
                let parsed = command::parse(&name, &payload, retained, now, &self.parts.policy);
                (name, Digest::of(&payload), None, parsed)
            }
            Order::Signed(message) => {
                let Body::Command(body) = message.body() else { return };
                if !self.is_new(&message) {
                    self.parts.figures.count("replayed_command");
                    let (digest, sender) = (message.body_digest(), message.sender().clone());
                    return self.record(&body.name, digest, Some(sender), "replayed_command", ctx);
                }
                let parsed = command::parse_signed(&body.name, &body.json, now);
                let sender = Some(message.sender().clone());
                (body.name.clone(), message.body_digest(), sender, parsed)
            }
        };
        let admitted = parsed.and_then(|command| {
            self.replays.admit(&command)?;
            Ok(command)
        });
        match admitted {
            Ok(command) => {
                self.record(&name, digest, operator, "ok", ctx);
                self.execute(&name, command, ctx);
            }
            Err(error) => {
                self.record(&name, digest, operator, error.kind(), ctx);
                self.refused(&name, &error);
            }
        }
    }
}
