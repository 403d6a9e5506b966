//! What goes into the machines and what comes out of them.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::knowledge::PackedKnowledge;
use super::session::{BackEnd, BackTask, FrontEnd, FrontTask};
use crate::ids::{Digest, Epoch, NodeId, RoundNo, Side, UpdateId, Version};
use crate::ledger::Event;
use crate::trust::Verified;
use crate::wire::{Blob, Body, ClassSummary, Manifest, Plan, Result as RoundResult, Wishes};

/// Something that happened to a machine.
#[derive(Debug, Clone)]
pub enum Input {
    /// The node started: take a new epoch, go on where the store says.
    Start,
    /// A neighbour's message that passed every check.
    Message(Verified),
    /// A blob that was fetched is complete, checked and on disk.
    Fetched {
        /// Its SHA-256.
        digest: Digest,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A timer ran out.
    Timer(Timer),
    /// A training run ended, with its work or the reason why there is none.
    Worked {
        /// The offer it was for.
        offer: Digest,
        /// The work, or a short word.
        work: Result<Work, &'static str>,
    },
    /// A combination ended.
    Combined {
        /// The offer it was for.
        offer: Digest,
        /// Packed set, or a short word.
        outcome: Result<Work, &'static str>,
    },
    /// An owner's own model has learned what was merged, or a short word.
    Distilled {
        /// The offer it was for.
        offer: Digest,
        /// What it says now and its adapter (`knowledge` and `own`), or a short word.
        outcome: Result<Work, &'static str>,
    },
    /// An operator wants a round now.
    StartRound,
    /// Something was counted here that a round may be wanted for, or by a relay's devices: the parent is told.
    Wish(Wishes),
    /// An operator stops or resumes taking part.
    Pause(bool),
    /// The disk has no room for new work, or has some again.
    Full(bool),
    /// The lane of a device's front did a task.
    Front {
        /// The run that it was for.
        run: u64,
        /// What came of it, or a short word.
        end: Result<FrontEnd, &'static str>,
    },
    /// The lane of an edge's backs did a task.
    Back {
        /// The device that it was for.
        device: NodeId,
        /// The device's run.
        run: u64,
        /// What came of it, or a short word.
        end: Result<BackEnd, &'static str>,
    },
    /// What was kept under this key for resending is given up: it is too old, or too much waits.
    Expired(String),
}

/// Timers of the machines. Setting one again moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The open round's deadline.
    Deadline,
    /// The open round's offer is published once more.
    Republish,
    /// The next round may open.
    NextRound,
    /// The parent is asked for what we may have missed.
    Resync,
    /// Missing chunks are asked for again.
    Chunks,
    /// An answer in a split step is lost.
    Step,
    /// The parent has been silent for long: a relay may go on alone.
    Island,
    /// The edge has been silent for long: a device may go to its second one.
    Edge,
    /// A part of a lease has passed.
    Lease,
    /// An edge counts the time of a rollout's stage.
    Steward,
    /// A device looks again for what its edge assigned, and repeats what it has seen.
    Follow,
}

/// Something that a machine wants done. The runner does all of a step's effects or none.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Durable state: set.
    Put(Cow<'static, str>, Vec<u8>),
    /// Durable state: remove.
    Delete(Cow<'static, str>),
    /// A ledger entry.
    Record(Event),
    /// Bytes for the blob store, on disk before the state that names them.
    SaveBlob(Vec<u8>),
    /// Seal and send.
    Send {
        /// Whom to.
        to: To,
        /// What.
        body: Body,
        /// Round for the head.
        round: RoundNo,
        /// Epoch for the head.
        epoch: Epoch,
        /// How hard to try.
        delivery: Delivery,
    },
    /// What was kept under this key has arrived: stop resending.
    Settle(String),
    /// Publish the retained state for the children once more.
    Republish,
    /// Read chunks of a blob and send them.
    SendChunks {
        /// Asker.
        to: NodeId,
        /// Link it asked on.
        side: Side,
        /// The blob.
        sha256: Digest,
        /// Bytes of each chunk but the last, as its manifest says.
        chunk_bytes: u32,
        /// Which chunks.
        indices: Vec<u32>,
    },
    /// Get a blob in chunks, then feed [`Input::Fetched`]: at once when it is on disk already.
    Fetch {
        /// Who has it.
        from: NodeId,
        /// Link to it.
        side: Side,
        /// What it is cut into.
        manifest: Manifest,
    },
    /// The blob that is being got is wanted no more: another took its place.
    Forget(Digest),
    /// Feed [`Input::Timer`] after this long.
    Timer {
        /// Which.
        timer: Timer,
        /// Milliseconds from now.
        after_ms: u64,
    },
    /// Long work; its end comes back as an input.
    Job(Job),
    /// From now on answer with this adapter.
    Apply {
        /// Its version.
        version: Version,
        /// Its blob.
        adapter: Digest,
    },
    /// From now on count what is seen of a version that is rolled out; nothing any more without one.
    Watch(Option<Watch>),
    /// The outcome of an inner round or of a split run. Only a [`super::Relay`] or a
    /// [`super::SplitDevice`] sees it: it feeds its member.
    Contribute {
        /// Digest of the outer offer.
        outer: Digest,
        /// The work, or why there is none.
        work: Result<Work, &'static str>,
    },
    /// What an inner round that no outer one asked for came to. Only a [`super::Relay`] sees it.
    Local(LocalWork),
    /// Members want a round, which is not this owner's to open. Only a [`super::Relay`] sees it: it feeds its member.
    WishAbove(Wishes),
    /// A result from above for the devices below. Only a [`super::Relay`] sees it.
    PassOn(Arc<RoundResult>),
    /// Count something that was refused or is worth a look.
    Count(&'static str),
    /// A bug or doubtful state: the process has to end.
    Fatal(String),
}

impl Effect {
    /// Whether blobs of before may be of no use behind it: the store is looked through then.
    pub fn frees_blobs(&self) -> bool {
        match self {
            Self::Apply { .. } => true,
            // A copy of the owner's state took another one's place.
            Self::Put(key, _) => key == super::Failover::STAND,
            Self::Record(event) => matches!(
                event,
                Event::RoundCommit { .. }
                    | Event::RoundAbandon { .. }
                    | Event::ResultApplied { .. }
            ),
            _ => false,
        }
    }
}

/// What a node counts about a version that is rolled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Number of the assignment: another one begins at nothing.
    pub serial: u64,
    /// The version.
    pub candidate: Version,
    /// It answers beside the one that is served, unseen; else it is what is served.
    pub shadow: bool,
    /// Blob of the adapter that answers the same inputs unseen: the candidate's in the shadow, else that of the version
    /// before. None as long as it isn't here.
    pub beside: Option<Digest>,
    /// An answer that comes later is slow, milliseconds; 0: none is.
    pub slow_ms: u64,
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// All children at once.
    Children,
    /// One child.
    Child(NodeId),
    /// The parent. A contribution reaches its standby too.
    Parent,
    /// Another one above: the parent's standby, which owns its rounds now, or a device's second edge.
    Standby(NodeId),
}

/// How hard to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// Once; whoever misses it asks again.
    Volatile,
    /// Verbatim with back-off until [`Effect::Settle`] of this key.
    UntilSettled(String),
    /// As the topic's retained value, until a newer one replaces it.
    Latest,
}

/// Work that takes longer than a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Train on the device's own data.
    Train(Box<TrainTask>),
    /// Combine contributions.
    Combine(Box<CombineJob>),
    /// Run the front of a split model.
    Front(FrontTask),
    /// Run the back of a split model.
    Back {
        /// For this device.
        device: NodeId,
        /// For this run of it.
        run: u64,
        /// What to do.
        task: BackTask,
    },
    /// Teach the node's own model what was merged.
    Distil(Box<DistilTask>),
}

/// A device's training run.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainTask {
    /// The offer.
    pub offer: Digest,
    /// Its round.
    pub round: RoundNo,
    /// The epoch of its owner.
    pub epoch: Epoch,
    /// Blob of the adapter to start from.
    pub adapter: Digest,
    /// What to do.
    pub plan: Plan,
    /// Soft labels to learn from.
    pub class_targets: Option<ClassSummary>,
    /// Blob of the error that earlier compressions left, if any.
    pub residual: Option<Digest>,
    /// What the tiers above say, in a round of knowledge.
    pub knowledge: Option<Said>,
}

/// How an owner's own model learns: its own affair, so no part of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distils {
    /// Optimiser steps a round, > 0.
    pub steps: u32,
    /// Learning rate of the first step, > 0.
    pub learning_rate: f32,
    /// Behind a round's last step, where it isn't the same: a straight line leads there, >= 0.
    pub final_rate: Option<f32>,
}

/// An owner's own model learns what its members' knowledge was merged to.
#[derive(Debug, Clone, PartialEq)]
pub struct DistilTask {
    /// The offer.
    pub offer: Digest,
    /// Blob of the model's adapter.
    pub adapter: Digest,
    /// What was asked for.
    pub plan: Plan,
    /// How the model learns.
    pub how: Distils,
    /// Merged mean logits a class.
    pub class_targets: Option<ClassSummary>,
    /// Merged knowledge.
    pub knowledge: Option<PackedKnowledge>,
    /// What the tiers above said, where the model hears it: in rounds of spectra.
    pub offered: Option<Said>,
}

/// What somebody says in a round of knowledge, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Blob of the packed set.
    pub set: Digest,
    /// Examples behind each class's row.
    pub counts: Vec<u64>,
    /// The reference inputs that it speaks of.
    pub reference: Option<Digest>,
}

/// One contribution to combine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CombineInput {
    /// Who.
    pub sender: NodeId,
    /// Its update.
    pub update: UpdateId,
    /// Examples behind it.
    pub num_examples: u64,
    /// Devices behind it.
    pub num_devices: u32,
    /// Steps behind it.
    pub steps: u32,
    /// Version that it started from.
    pub version: Version,
    /// Versions that it is behind: 0 unless it came late.
    pub staleness: u64,
    /// Combinations that failed with it in them.
    pub failed: u32,
    /// Loss before.
    pub loss_first: f32,
    /// Loss after.
    pub loss_last: f32,
    /// What an attacker finds out about membership in its examples, as AUC, if that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<f32>,
    /// Blob of its delta.
    pub delta: Option<Digest>,
    /// Blob of the delta behind the cut, where the device trains the front of a split model only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Digest>,
    /// The delta is a relay's stack.
    pub stacked: bool,
    /// What is called the delta is the whole adapter that was learned: this node's own work, never a neighbour's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// Blob of the adapter that the delta is against.
    pub base: Digest,
    /// Its mean logits a class.
    pub class_logits: Option<ClassSummary>,
    /// What it says, in a round of knowledge.
    #[serde(default)]
    pub knowledge: Option<Said>,
}

/// A combination: its outcome is a pure function of this.
#[derive(Debug, Clone, PartialEq)]
pub struct CombineJob {
    /// The offer.
    pub offer: Digest,
    /// Blob of the adapter that was offered.
    pub global: Digest,
    /// What was asked for.
    pub plan: Plan,
    /// The offered soft labels, kept where nobody brings new ones.
    pub class_targets: Option<ClassSummary>,
    /// In the order of senders.
    pub inputs: Vec<CombineInput>,
    /// A relay stacks, the root makes the next adapter.
    pub relay: bool,
    /// Norms of earlier contributions, oldest first: what is usual.
    pub norms: Vec<f64>,
    /// What the tiers above said, in a round of knowledge.
    pub offered: Option<Said>,
    /// What keeps one member from owning the outcome.
    pub bounds: ShareBounds,
}

/// What keeps one member of a round from owning its outcome; a choice of whoever combines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShareBounds {
    /// Most that one of three or more members weighs, 0.5 to 1; 1 is no cap.
    pub max_share: f64,
    /// Contributions longer than the usual one are shortened to it.
    pub clip_norms: bool,
}

impl Default for ShareBounds {
    fn default() -> Self {
        Self { max_share: 0.5, clip_norms: true }
    }
}

/// What a relay's round of its own came to: the next adapter of its site, of the version that it was learned from.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalWork {
    /// That version.
    pub version: Version,
    /// The outer offer that it is a cluster round of; none while the parent is away.
    pub outer: Option<Digest>,
    /// The adapter that was offered.
    pub from: Blob,
    /// The one that came of it.
    pub adapter: Blob,
    /// Class targets that came of it.
    pub class_targets: Option<ClassSummary>,
    /// Distinct examples.
    pub num_examples: u64,
    /// Devices.
    pub num_devices: u32,
    /// Steps.
    pub steps: u32,
    /// Loss before.
    pub loss_first: f32,
    /// Loss after.
    pub loss_last: f32,
}

/// How much of a contribution counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// Who.
    pub sender: NodeId,
    /// Its update.
    pub update: UpdateId,
    /// Length of what it does.
    pub norm: f64,
    /// What was left of it by norm clipping, 0 to 1.
    pub factor: f64,
}

/// What training or combining came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Packed set: a delta from training or from a relay, the whole adapter from the root.
    pub update: Option<Vec<u8>>,
    /// Mean logits a class.
    pub class_logits: Option<ClassSummary>,
    /// What the model says, or what members' words were merged to, in a round of knowledge.
    pub knowledge: Option<PackedKnowledge>,
    /// Distinct examples.
    pub num_examples: u64,
    /// Devices.
    pub num_devices: u32,
    /// Steps.
    pub steps: u32,
    /// Loss before.
    pub loss_first: f32,
    /// Loss after.
    pub loss_last: f32,
    /// What an attacker finds out about membership in the examples, as AUC, if that was measured for all of them.
    pub risk: Option<f32>,
    /// What compression left out, for the next round (devices only).
    pub residual: Option<Vec<u8>>,
    /// The trained adapter, packed, where it stays here since only soft labels were asked for.
    pub own: Option<Vec<u8>>,
    /// How much of each delta counted, in the order of the job (combinations only).
    pub weighed: Vec<Weighed>,
}
