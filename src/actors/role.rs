//! The shell around a state machine: build the input, step, hand the effects to the runner.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;

use super::MAILBOX;
use super::runner::{Keep, Run, Runner};
use crate::bus::Ack;
use crate::ids::{Digest, RoundNo, Version};
use crate::protocol::{
    Effect, Failover, FailoverView, Input, Member, Relay, Round, RoundView, SplitDevice,
};
use crate::time::{Clock, Now};

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
}

impl From<RoundView> for MachineView {
    fn from(view: RoundView) -> Self {
        let RoundView { round, version, phase, accepted, expected, .. } = view;
        Self { round, version, phase, accepted, expected }
    }
}

/// A machine with its runner.
pub struct Role<M> {
    machine: M,
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

impl<M: Machine> Role<M> {
    /// Puts a machine to work; the runner has to know it by [`super::runner::Introduce`].
    pub fn new(machine: M, runner: Addr<Runner>, clock: Arc<dyn Clock>) -> Self {
        Self { machine, runner, clock }
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
        let effects = self.machine.step(self.clock.now(), input);
        let keep = effects.iter().any(Effect::frees_blobs).then(|| Keep(self.machine.blobs()));
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
        MessageResult(self.machine.view())
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
        MachineView { version: self.version(), ..Self::view(self).into() }
    }
}
