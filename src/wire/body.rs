//! What messages say: one struct a kind, each a msgpack map with named fields.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::blob::Blob;
use super::codec::{CodecError, decode, encode};
use super::failover::{Lease, Mirror, Promise};
use super::frame::Frame;
use super::knowledge::{Knowledge, KnowledgePlan};
use super::packed::Coding;
use super::rollout::{Assignment, Evidence, SiteEvidence};
use crate::ids::{Digest, Name, RoundNo, UpdateId, Version};

/// The kinds of signed messages, and the last level of their topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A round's owner offers work.
    Offer,
    /// A member says whether it takes part.
    Answer,
    /// A member's work.
    Contribution,
    /// What became of a contribution.
    Receipt,
    /// What a round came to.
    Result,
    /// A request for the latest result or for chunks.
    Get,
    /// A signed keyring, passed on.
    Keyring,
    /// Head of a node's ledger.
    Checkpoint,
    /// An operator's command that needs a signature.
    Command,
    /// A chunk of a base's file.
    Base,
    /// A part of what a device and its edge exchange while a split model trains.
    Frame,
    /// Who speaks for an owner of rounds, itself or its standby.
    Lease,
    /// A member's word that it listens to no lower epoch.
    Promise,
    /// The state of an owner's rounds, on its way to the standby.
    Mirror,
    /// A steward says which device serves which version.
    Assignment,
    /// A device says what it has seen of a version that is rolled out.
    Evidence,
    /// An edge says what its devices have seen of it together.
    SiteEvidence,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Offer,
        Self::Answer,
        Self::Contribution,
        Self::Receipt,
        Self::Result,
        Self::Get,
        Self::Keyring,
        Self::Checkpoint,
        Self::Command,
        Self::Base,
        Self::Frame,
        Self::Lease,
        Self::Promise,
        Self::Mirror,
        Self::Assignment,
        Self::Evidence,
        Self::SiteEvidence,
    ];

    /// Last level of the topic, and the word in the payload type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::Answer => "answer",
            Self::Contribution => "contribution",
            Self::Receipt => "receipt",
            Self::Result => "result",
            Self::Get => "get",
            Self::Keyring => "keyring",
            Self::Checkpoint => "checkpoint",
            Self::Command => "command",
            Self::Base => "base",
            Self::Frame => "frame",
            Self::Lease => "lease",
            Self::Promise => "promise",
            Self::Mirror => "mirror",
            Self::Assignment => "assignment",
            Self::Evidence => "evidence",
            Self::SiteEvidence => "site_evidence",
        }
    }

    /// The kind of a topic's last level.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Goes to one neighbour, on a topic of its own, wherever that is.
    pub fn is_direct(self) -> bool {
        matches!(
            self,
            Self::Get
                | Self::Receipt
                | Self::Answer
                | Self::Frame
                | Self::Promise
                | Self::Evidence
                | Self::SiteEvidence
        )
    }

    /// DSSE payload type.
    pub fn payload_type(self) -> String {
        format!("application/vnd.gaisnet.{}.v1+msgpack", self.as_str())
    }

    /// Most bytes of a sealed message.
    pub fn cap_bytes(self) -> usize {
        match self {
            Self::Receipt
            | Self::Answer
            | Self::Lease
            | Self::Promise
            | Self::Evidence
            | Self::SiteEvidence => 2 * 1024,
            Self::Get => 4 * 1024,
            Self::Checkpoint | Self::Command => 16 * 1024,
            Self::Keyring => 64 * 1024,
            Self::Base => BaseChunk::MAX_BYTES + BaseChunk::OVERHEAD_BYTES,
            Self::Offer
            | Self::Contribution
            | Self::Result
            | Self::Frame
            | Self::Mirror
            | Self::Assignment => super::MAX_MESSAGE_BYTES,
        }
    }

    /// How long a message can still change anything after it was sealed.
    pub fn lifetime_ms(self) -> u64 {
        const MINUTE: u64 = 60_000;
        const DAY: u64 = 24 * 60 * MINUTE;
        match self {
            Self::Command => 5 * MINUTE,
            Self::Answer
            | Self::Get
            | Self::Base
            | Self::Frame
            | Self::Promise
            | Self::Mirror
            | Self::Evidence
            | Self::SiteEvidence => 60 * MINUTE,
            Self::Offer
            | Self::Contribution
            | Self::Receipt
            | Self::Result
            | Self::Assignment
            // Retained: an old one tells of an epoch, and extends a lease once.
            | Self::Lease => 30 * DAY,
            Self::Checkpoint | Self::Keyring => 365 * DAY,
        }
    }
}

/// What a round's members are asked to do. Part of the offer, so of its digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Contribute the trained adapter's delta.
    pub adapter_delta: bool,
    /// Contribute mean logits a class.
    pub class_logits: bool,
    /// Optimiser steps a member does, > 0.
    pub local_steps: u32,
    /// Examples a step, > 0.
    pub batch_size: u32,
    /// Learning rate, > 0.
    pub learning_rate: f32,
    /// FedProx mu, 0 for plain FedAvg.
    pub prox_mu: f32,
    /// Weight of the distillation term where class targets are given.
    pub distill_lambda: f32,
    /// Rank of the aggregated LoRA factors, > 0.
    pub rank: u32,
    /// LoRA alpha: scaling is alpha / rank of the factors.
    pub alpha: f32,
    /// How deltas travel.
    pub coding: Coding,
    /// Values a scale, 0 for f32.
    pub block: u16,
    /// Fewest examples behind a class's mean logits.
    pub min_cell: u32,
    /// Seed of the round; members mix in their names.
    pub seed: u64,
    /// Learning rate behind the last step, reached on a straight line; absent where it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_rate: Option<f32>,
    /// Whole passes over its own examples that a member does, > 0, instead of `local_steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_epochs: Option<u32>,
    /// A round of knowledge: each node has a model of its own, and none of it travels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<KnowledgePlan>,
    /// Rounds that a relay right below the root runs with its own members before it contributes, > 1; absent
    /// for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_rounds: Option<u32>,
}

/// A round's owner offers work. Its digest names the round's task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The round's number at its owner.
    pub round: RoundNo,
    /// The model.
    pub model: Name,
    /// SHA-256 of the base model that everyone must have.
    pub base: Digest,
    /// Version of the adapter to start from.
    pub version: Version,
    /// That adapter, as a packed set.
    pub adapter: Blob,
    /// Mean logits a class over the federation, for distillation.
    pub class_targets: Option<ClassSummary>,
    /// What to do.
    pub plan: Plan,
    /// The owner closes this long after it opened, in milliseconds.
    pub deadline_ms: u64,
    /// A relay's inner round names the outer offer that it serves.
    pub outer: Option<Digest>,
    /// What the tiers above know, in a round of knowledge; the adapter is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<Knowledge>,
    /// A relay's round of its own, the how-manieth: a cluster round where `outer` names an offer, else one while its
    /// parent is away. The adapter is the site's own then, learned from that of `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub island: Option<u64>,
}

impl Offer {
    /// A relay's round of its own while its parent is away.
    pub fn is_alone(&self) -> bool {
        self.island.is_some() && self.outer.is_none()
    }
}

/// A member says whether it takes part. Not durable: the contribution is what counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Digest of the offer.
    pub offer: Digest,
    /// Takes part.
    pub accepted: bool,
    /// Why not; a short word, empty when it does.
    pub reason: String,
}

/// A member's work in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contribution {
    /// Digest of the offer it answers.
    pub offer: Digest,
    /// Version that it started from.
    pub version: Version,
    /// Distinct training examples behind it.
    pub num_examples: u64,
    /// Devices behind it: 1 for a device, more for a relay.
    pub num_devices: u32,
    /// Optimiser steps really done (the least over the devices of a relay).
    pub steps: u32,
    /// Mean training loss at the beginning, in nats.
    pub loss_first: f32,
    /// Mean training loss at the end, in nats.
    pub loss_last: f32,
    /// What an attacker finds out about membership in the examples, as AUC, if that was measured for all of them; the highest
    /// over the devices of a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<f32>,
    /// The factors in `delta` are a relay's weighted stacks, not differences from the offered ones.
    pub stacked: bool,
    /// Delta of the adapter against the offered one, as a packed set.
    pub delta: Option<Blob>,
    /// Mean logits a class.
    pub class_logits: Option<ClassSummary>,
    /// What the member's model says, in a round of knowledge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<Knowledge>,
}

/// Mean logits a class with counts, in the bytes of the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassSummary {
    /// `[C, C]` little-endian f32, row-major; a suppressed row is zero.
    #[serde(with = "serde_bytes")]
    pub mean_logits: Vec<u8>,
    /// `[C]`, 0 where suppressed.
    pub counts: Vec<u64>,
}

/// What became of a contribution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The contribution.
    pub update: UpdateId,
    /// What became of it.
    pub verdict: Verdict,
}

/// See [`Receipt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// On disk; it counts in its round.
    Accepted,
    /// On disk; its round was closed, it counts in a later one with a smaller weight.
    Late,
    /// It counts nowhere; a short word says why.
    Refused(String),
}

/// What a round came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Result {
    /// Digest of the offer.
    pub offer: Digest,
    /// Version of the new adapter.
    pub version: Version,
    /// The new adapter, as a packed set in f32.
    pub adapter: Blob,
    /// The new mean logits a class.
    pub class_targets: Option<ClassSummary>,
    /// Number of contributions in it.
    pub contributors: u32,
    /// SHA-256 over the update ids in the order of their senders.
    pub contributor_set: Digest,
    /// What the owner knows now, in a round of knowledge; the adapter is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<Knowledge>,
}

/// Asks a neighbour for something that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// What.
    pub wanted: Wanted,
}

/// See [`Get`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// The current offer and result.
    Latest,
    /// Chunks of a blob.
    Chunks {
        /// The blob.
        sha256: Digest,
        /// Their indices, at most [`Wanted::MAX_CHUNKS`].
        indices: Vec<u32>,
    },
    /// Chunks of a base's file.
    Base {
        /// The file, as its card pins it.
        sha256: Digest,
        /// Their indices, at most [`Wanted::MAX_CHUNKS`].
        indices: Vec<u32>,
    },
    /// A round, if that is enough: all that the sender has counted so far, not only what is new.
    Round(Wishes),
}

/// Why a round may be wanted. Each number only grows, over restarts too; an edge's are those of all its devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// Times that a device found its inputs, or its confidence, changed.
    pub drifts: u64,
    /// Answers that got a label from quality inspection.
    pub labels: u64,
}

impl Wishes {
    /// Both together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            drifts: self.drifts.saturating_add(more.drifts),
            labels: self.labels.saturating_add(more.labels),
        }
    }
}

impl Wanted {
    /// Chunks that may be asked for at once.
    pub const MAX_CHUNKS: usize = 8;
}

/// A piece of a blob. Travels unsigned, is believed by the manifest's digest only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// The blob.
    pub sha256: Digest,
    /// Which piece.
    pub index: u32,
    /// Its bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl Chunk {
    /// Bytes around the data of a chunk: digest, names, lengths.
    pub const OVERHEAD_BYTES: usize = 128;
}

/// What a parent has of a base's file. Signed, since there is no manifest: the card pins the whole file only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseFile {
    /// The file, as its card pins it.
    pub sha256: Digest,
    /// A chunk of it; none: the sender hasn't the file.
    pub chunk: Option<BaseChunk>,
}

/// See [`BaseFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseChunk {
    /// Which.
    pub index: u32,
    /// Bytes of each chunk but the last: the sender says into what it cuts the file.
    pub chunk_bytes: u32,
    /// Its bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl BaseChunk {
    /// Most bytes of data.
    pub const MAX_BYTES: usize = 64 * 1024;
    /// Bytes around the data: envelope, head, names, signature.
    pub const OVERHEAD_BYTES: usize = 2 * 1024;
}

/// A signed document that is passed on as it is: a keyring, a ledger's checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The document's bytes with its own signatures.
    #[serde(with = "serde_bytes")]
    pub document: Vec<u8>,
}

/// An operator's command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Its name, the last level of `cmd/{name}`.
    pub name: String,
    /// The JSON payload that an unsigned command would have.
    #[serde(with = "serde_bytes")]
    pub json: Vec<u8>,
}

/// A body of any kind. The big ones are shared by all who hear or remember them.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the struct of its name")]
pub enum Body {
    Offer(Arc<Offer>),
    Answer(Answer),
    Contribution(Arc<Contribution>),
    Receipt(Receipt),
    Result(Arc<Result>),
    Get(Get),
    Keyring(Checkpoint),
    Checkpoint(Checkpoint),
    Command(Command),
    Base(BaseFile),
    Frame(Frame),
    Lease(Lease),
    Promise(Promise),
    Mirror(Mirror),
    Assignment(Assignment),
    Evidence(Evidence),
    SiteEvidence(SiteEvidence),
}

impl Body {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Offer(_) => Kind::Offer,
            Self::Answer(_) => Kind::Answer,
            Self::Contribution(_) => Kind::Contribution,
            Self::Receipt(_) => Kind::Receipt,
            Self::Result(_) => Kind::Result,
            Self::Get(_) => Kind::Get,
            Self::Keyring(_) => Kind::Keyring,
            Self::Checkpoint(_) => Kind::Checkpoint,
            Self::Command(_) => Kind::Command,
            Self::Base(_) => Kind::Base,
            Self::Frame(_) => Kind::Frame,
            Self::Lease(_) => Kind::Lease,
            Self::Promise(_) => Kind::Promise,
            Self::Mirror(_) => Kind::Mirror,
            Self::Assignment(_) => Kind::Assignment,
            Self::Evidence(_) => Kind::Evidence,
            Self::SiteEvidence(_) => Kind::SiteEvidence,
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn to_bytes(&self) -> std::result::Result<Vec<u8>, CodecError> {
        match self {
            Self::Offer(body) => encode(body),
            Self::Answer(body) => encode(body),
            Self::Contribution(body) => encode(body),
            Self::Receipt(body) => encode(body),
            Self::Result(body) => encode(body),
            Self::Get(body) => encode(body),
            Self::Keyring(body) | Self::Checkpoint(body) => encode(body),
            Self::Command(body) => encode(body),
            Self::Base(body) => encode(body),
            Self::Frame(body) => encode(body),
            Self::Lease(body) => encode(body),
            Self::Promise(body) => encode(body),
            Self::Mirror(body) => encode(body),
            Self::Assignment(body) => encode(body),
            Self::Evidence(body) => encode(body),
            Self::SiteEvidence(body) => encode(body),
        }
    }

    /// Decodes the bytes of a body of this kind.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn from_bytes(kind: Kind, bytes: &[u8]) -> std::result::Result<Self, CodecError> {
        let cap = kind.cap_bytes();
        Ok(match kind {
            Kind::Offer => Self::Offer(Arc::new(decode(bytes, cap)?)),
            Kind::Answer => Self::Answer(decode(bytes, cap)?),
            Kind::Contribution => Self::Contribution(Arc::new(decode(bytes, cap)?)),
            Kind::Receipt => Self::Receipt(decode(bytes, cap)?),
            Kind::Result => Self::Result(Arc::new(decode(bytes, cap)?)),
            Kind::Get => Self::Get(decode(bytes, cap)?),
            Kind::Keyring => Self::Keyring(decode(bytes, cap)?),
            Kind::Checkpoint => Self::Checkpoint(decode(bytes, cap)?),
            Kind::Command => Self::Command(decode(bytes, cap)?),
            Kind::Base => Self::Base(decode(bytes, cap)?),
            Kind::Frame => Self::Frame(decode(bytes, cap)?),
            Kind::Lease => Self::Lease(decode(bytes, cap)?),
            Kind::Promise => Self::Promise(decode(bytes, cap)?),
            Kind::Mirror => Self::Mirror(decode(bytes, cap)?),
            Kind::Assignment => Self::Assignment(decode(bytes, cap)?),
            Kind::Evidence => Self::Evidence(decode(bytes, cap)?),
            Kind::SiteEvidence => Self::SiteEvidence(decode(bytes, cap)?),
        })
    }
}
