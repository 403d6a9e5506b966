//! The shell around a state machine: build the input, step, hand the effects to the runner.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;

use super::MAILBOX;
use super::runner::{Finish, Keep, Run, Runner};
use crate::bus::Ack;
use crate::ids::{Digest, NodeId, RoundNo, Version};
use crate::ledger::{Event, Word};
use crate::protocol::{
    Check, Effect, Failover, FailoverView, Input, Member, Relay, RolloutOrder, Rollouts, Round,
    RoundView, SlotOrder, SlotRefusal, Slots, SlotsView, SplitDevice, StewardView, rollout,
};
use crate::time::{Clock, Now};
use crate::wire::Tally;

/// A pure machine, as an actor sees it.
pub trait Machine: Unpin + 'static {
    /// One step.
    fn step(&mut self, now: Now, input: Input) -> Vec<Effect>;
    /// Blobs that must be kept.
    fn blobs(&self) -> BTreeSet<Digest>;
    /// What may be seen from outside.
    fn view(&self) -> MachineView;
}

/// See [`Machine::view`].
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct MachineView {
    /// Newest round that it knows of.
    pub round: RoundNo,
    /// Version that it has.
    pub version: Version,
    /// What it is doing.
    pub phase: &'static str,
    /// Contributions in the open round, of an owner.
    pub accepted: usize,
    /// Members that could be in it, of an owner.
    pub expected: usize,
    /// Which version is served, and which could be.
    pub slots: SlotsView,
}

impl From<RoundView> for MachineView {
    fn from(view: RoundView) -> Self {
        let RoundView { round, version, phase, accepted, expected, .. } = view;
        Self { round, version, phase, accepted, expected, ..Self::default() }
    }
}

/// A machine with its runner, the slots that decide which of its versions are served, and the rollouts that steer them.
pub struct Role<M> {
    machine: M,
    slots: Slots,
    rollouts: Rollouts,
    runner: Addr<Runner>,
    clock: Arc<dyn Clock>,
}

/// A device's actor.
pub type Trainer = Role<Member>;
/// An edge's actor.
pub type RelayActor = Role<Relay>;
/// A cloud's actor.
pub type Aggregator = Role<Round>;

/// An input, and the delivery to acknowledge once its effects are on disk.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stimulus {
    /// What happened.
    pub input: Input,
    /// Released after the commit.
    pub ack: Ack,
}

/// Asks for [`MachineView`].
#[derive(Debug, Message)]
#[rtype(result = "MachineView")]
pub struct Observe;

/// What is put down about a command, whatever becomes of it.
#[derive(Debug)]
pub struct Note {
    /// Its name.
    pub name: String,
    /// Digest of the command as it came.
    pub command: Digest,
    /// Who signed it; nobody where it only asks.
    pub operator: Option<NodeId>,
    /// So that it doesn't work twice: on disk together with its entry in the ledger.
    pub guard: Vec<Effect>,
    /// Released after the commit.
    pub ack: Ack,
}

impl Note {
    /// One transaction: its guard, its entry, and behind them what it changes.
    pub(super) fn ends(self, outcome: &'static str, changes: Vec<Effect>) -> Run {
        let Self { name, command, operator, guard: mut effects, ack } = self;
        let name = Word::try_from(name).unwrap_or(Word::new("unnamed"));
        let outcome = Word::new(outcome);
        effects.push(Effect::Record(Event::Command { command, name, operator, outcome }));
        effects.extend(changes);
        Run { effects, ack }
    }
}

/// An operator's word about the version that is served. Answered when it is on disk, together with what is put
/// down about the command, also where it is refused.
#[derive(Debug, Message)]
#[rtype(result = "Result<SlotsView, SlotRefusal>")]
pub struct Steer {
    /// What is wanted.
    pub order: SlotOrder,
    /// What is put down.
    pub note: Note,
}

/// An operator's word about a rollout, to the steward of a site. Answered as [`Steer`] is.
#[derive(Debug, Message)]
#[rtype(result = "Result<StewardView, rollout::Refusal>")]
pub struct Decide {
    /// What is wanted.
    pub order: RolloutOrder,
    /// What is put down.
    pub note: Note,
}

/// What was counted of a version that is rolled out.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Seen {
    /// Number of the assignment.
    pub serial: u64,
    /// All of it, in this life of the node.
    pub tally: Tally,
}

/// A look at the version that is served ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Checked {
    /// The version.
    pub version: Version,
    /// Blob of its adapter: a version may come to have another one.
    pub adapter: Digest,
    /// What came of it.
    pub check: Check,
}

impl<M: Machine> Role<M> {
    /// Puts a machine to work; the runner has to know it by [`super::runner::Introduce`].
    pub fn new(
        machine: M,
        slots: Slots,
        rollouts: Rollouts,
        runner: Addr<Runner>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { machine, slots, rollouts, runner, clock }
    }

    /// One step of all that is here.
    fn step(&mut self, input: Input) -> Vec<Effect> {
        let (now, starts) = (self.clock.now(), matches!(input, Input::Start));
        let input = match self.rollouts.takes(now, &mut self.slots, input) {
            Ok(effects) => return effects,
            Err(input) => input,
        };
        let mut out = match &input {
            Input::Fetched { digest, bytes } => {
                self.rollouts.fetched(now, &mut self.slots, *digest, bytes)
            }
            _ => Vec::new(),
        };
        let effects = self.machine.step(now, input);
        let effects = if starts { self.slots.start(effects) } else { self.slots.take(effects) };
        out.extend(self.rollouts.behind(now, &mut self.slots, starts, effects));
        out
    }

    fn hand_over(&self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        if effects.is_empty() {
            return;
        }
        let runner = self.runner.clone();
        let run = Run { effects, ack: Ack::none() };
        ctx.wait(async move { runner.send(run).await.unwrap_or(()) }.into_actor(self));
    }

    /// Answers once this is on disk.
    fn on_disk<T: 'static>(&self, run: Run, outcome: T) -> AtomicResponse<Self, T> {
        let runner = self.runner.clone();
        let hand_over = async move {
            let _ = runner.send(run).await;
            let _ = runner.send(Finish).await;
            outcome
        };
        AtomicResponse::new(Box::pin(hand_over.into_actor(self)))
    }

    /// What is still needed, if these effects may leave something that isn't.
    fn keep(&self, effects: &[Effect]) -> Option<Keep> {
        effects.iter().any(Effect::frees_blobs).then(|| {
            let mut blobs = self.machine.blobs();
            blobs.extend(self.slots.blobs());
            blobs.extend(self.rollouts.blobs());
            Keep(blobs)
        })
    }
}

impl<M: Machine> Actor for Role<M> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl<M: Machine> Handler<Stimulus> for Role<M> {
    type Result = ();

    fn handle(&mut self, Stimulus { input, ack }: Stimulus, ctx: &mut Self::Context) {
        let effects = self.step(input);
        let keep = self.keep(&effects);
        let runner = self.runner.clone();
        // Waiting here keeps the order of steps and pushes back on whoever feeds us.
        let hand_over = async move {
            let _ = runner.send(Run { effects, ack }).await;
            if let Some(keep) = keep {
                let _ = runner.send(keep).await;
            }
        };
        ctx.wait(hand_over.into_actor(self));
    }
}

impl<M: Machine> Handler<Observe> for Role<M> {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        MessageResult(MachineView { slots: self.slots.view(), ..self.machine.view() })
    }
}

impl<M: Machine> Handler<Steer> for Role<M> {
    type Result = AtomicResponse<Self, Result<SlotsView, SlotRefusal>>;

    fn handle(&mut self, steer: Steer, _: &mut Self::Context) -> Self::Result {
        let Steer { order, note } = steer;
        let (outcome, changes) = match self.slots.order(order) {
            Ok(mut changes) => {
                changes.extend(self.rollouts.look(self.clock.now(), &mut self.slots));
                (Ok(self.slots.view()), changes)
            }
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        let word = outcome.as_ref().map_or_else(SlotRefusal::kind, |_| "ok");
        self.on_disk(note.ends(word, changes), outcome)
    }
}

impl<M: Machine> Handler<Checked> for Role<M> {
    type Result = ();

    fn handle(&mut self, checked: Checked, ctx: &mut Self::Context) {
        let Checked { version, adapter, check } = checked;
        let mut effects = self.slots.checked(version, adapter, check);
        if !effects.is_empty() {
            effects.extend(self.rollouts.look(self.clock.now(), &mut self.slots));
        }
        self.hand_over(effects, ctx);
    }
}

impl<M: Machine> Handler<Decide> for Role<M> {
    type Result = AtomicResponse<Self, Result<StewardView, rollout::Refusal>>;

    fn handle(&mut self, decide: Decide, _: &mut Self::Context) -> Self::Result {
        let Decide { order, note } = decide;
        let now = self.clock.now();
        // What only asks may come without a signature.
        let decided = match (&note.operator, order) {
            (_, RolloutOrder::Status) => Some(Ok(Vec::new())),
            (Some(by), order) => self.rollouts.order(now, &mut self.slots, by, order),
            (None, _) => None,
        };
        let (outcome, changes) = match (decided, self.rollouts.view()) {
            (Some(Ok(changes)), Some(view)) => (Ok(view), changes),
            (Some(Err(refusal)), _) => (Err(refusal), Vec::new()),
            (..) => (Err(rollout::Refusal::NoPlan), Vec::new()), // the desk asks stewards only
        };
        let word = outcome.as_ref().map_or_else(rollout::Refusal::kind, |_| "ok");
        self.on_disk(note.ends(word, changes), outcome)
    }
}

impl<M: Machine> Handler<Seen> for Role<M> {
    type Result = ();

    fn handle(&mut self, Seen { serial, tally }: Seen, ctx: &mut Self::Context) {
        let effects = self.rollouts.seen(self.clock.now(), &mut self.slots, serial, tally);
        self.hand_over(effects, ctx);
    }
}

impl Machine for Member {
    fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        Self::step(self, now, input)
    }

    fn blobs(&self) -> BTreeSet<Digest> {
        Self::blobs(self)
    }

    fn view(&self) -> MachineView {
        let phase = if self.working_on().is_some() { "training" } else { "idle" };
        let (round, version) = (self.round(), self.version());
        MachineView { round, version, phase, ..MachineView::default() }
    }
}

impl Machine for SplitDevice {
    fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        Self::step(self, now, input)
    }

    fn blobs(&self) -> BTreeSet<Digest> {
        Self::blobs(self)
    }

    fn view(&self) -> MachineView {
        Machine::view(self.member())
    }
}

impl Machine for Round {
    fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        Self::step(self, now, input)
    }

    fn blobs(&self) -> BTreeSet<Digest> {
        Self::blobs(self)
    }

    fn view(&self) -> MachineView {
        Self::view(self).into()
    }
}

impl Machine for Failover {
    fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        Self::step(self, now, input)
    }

    fn blobs(&self) -> BTreeSet<Digest> {
        Self::blobs(self)
    }

    fn view(&self) -> MachineView {
        let FailoverView { round, post, .. } = Self::view(self);
        // Whoever doesn't own the rounds shows that instead of their phase.
        let phase = if ["paired", "alone"].contains(&post) { round.phase } else { post };
        MachineView { phase, ..round.into() }
    }
}

impl Machine for Relay {
    fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        Self::step(self, now, input)
    }

    fn blobs(&self) -> BTreeSet<Digest> {
        Self::blobs(self)
    }

    fn view(&self) -> MachineView {
        let view = Self::view(self);
        let phase = if self.is_alone() { "island" } else { view.phase };
        MachineView { version: self.version(), phase, ..view.into() }
    }
}
