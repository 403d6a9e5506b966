//! A device that trains the front of a split model: a [`Member`] whose work is done in a session with its
//! edge.
//!
//! ```text
//!   offer -> Member --work--> FrontSession <--frames--> edge
//!                   <-outcome--                          contribution, receipt, result: as any member's
//! ```
//! The member knows nothing of it: it has the front's part of the adapter, and contributes its delta.
//!
//! Called by the trainer's actor.

use std::collections::BTreeSet;

use super::effect::{Effect, Input, Job, Timer};
use super::member::Member;
use super::session::{FrontConfig, FrontSession};
use crate::ids::{Digest, NodeId};
use crate::time::Now;
use crate::wire::Body;

/// See the module.
#[derive(Debug)]
pub struct SplitDevice {
    parent: NodeId,
    member: Member,
    session: FrontSession,
}

impl SplitDevice {
    /// Puts a member and a session together, as `state` left the session.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(
        parent: NodeId,
        config: FrontConfig,
        member: Member,
        state: &[(String, Vec<u8>)],
    ) -> Result<Self, String> {
        Ok(Self { parent, member, session: FrontSession::new(config, state)? })
    }

    /// Key prefix of the session's durable state.
    pub const PREFIX: &'static str = FrontSession::PREFIX;

    /// One step.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Message(message) => match message.body() {
                Body::Frame(frame) if *message.sender() == self.parent => {
                    self.session.frame(&message, frame, &mut effects);
                }
                _ => effects = self.member.step(now, Input::Message(message)),
            },
            Input::Timer(Timer::Step) => self.session.timeout(&mut effects),
            Input::Front { run, end } => self.session.ended(run, end, &mut effects),
            other => effects = self.member.step(now, other),
        }
        self.join(now, effects)
    }

    /// The member, as seen from outside.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.member.blobs()
    }

    /// Carries the work over to the session and its outcome back, in the same step.
    fn join(&mut self, now: Now, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        let mut across = Vec::new();
        for effect in effects {
            match effect {
                Effect::Contribute { .. } | Effect::Job(Job::Train(_)) => across.push(effect),
                other => out.push(other),
            }
        }
        for effect in across {
            let mut more = Vec::new();
            match effect {
                Effect::Job(Job::Train(task)) => self.session.begin(task, &mut more),
                Effect::Contribute { outer, work } => {
                    more = self.member.step(now, Input::Worked { offer: outer, work });
                }
                other => more.push(other),
            }
            out.extend(self.join(now, more));
        }
        out
    }
}
