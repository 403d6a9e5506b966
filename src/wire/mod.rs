//! What travels between machines: the one msgpack codec, the envelope, the head, the bodies.
//!
//! A released message never changes: a new field is optional with a default, any other change is a
//! new version with new golden files (`tests/golden/wire`). Whether a message may be believed is
//! the business of [`crate::trust`].

mod blob;
mod body;
mod codec;
mod compression;
mod envelope;
mod failover;
mod frame;
#[cfg(test)]
mod golden_tests;
mod head;
mod knowledge;
mod leaves;
mod packed;
mod rollout;

pub use blob::{Blob, Manifest};
pub use body::{
    Answer, BaseChunk, BaseFile, Body, Checkpoint, Chunk, ClassSummary, Command, Contribution, Get,
    Kind, Offer, Plan, Receipt, Result, Verdict, Wanted, Wishes,
};
pub use codec::{CodecError, decode, encode, split_pair};
pub use envelope::{Envelope, Signature};
pub use failover::{CopyPart, Lease, Mirror, Promise, StateCopy};
pub use frame::{Cells, Frame, MAX_SPLIT_BYTES, Settled, SplitCoding, SplitMessage};
pub use head::Head;
pub use knowledge::{Knowledge, KnowledgePlan, Merging, Reference, SpectraPlan, TopLogitsPlan};
pub use leaves::{LeavesSite, Leaving, StaysInSite};
pub use packed::{Coding, PackedSet, PackedTensor};
pub use rollout::{Assignment, Candidate, Evidence, SiteEvidence, Tally};

/// Largest sealed control message in bytes: head, envelope and a body of inlined state.
pub const MAX_MESSAGE_BYTES: usize = 72 * 1024;

/// Largest update (adapter, contribution) in bytes, as one blob.
pub const MAX_UPDATE_BYTES: u64 = 64 * 1024 * 1024;

/// Blobs up to this size travel inside their message, larger ones as chunks.
pub const MAX_INLINE_BYTES: usize = 32 * 1024;

/// Depth of nested msgpack containers.
pub const MAX_DEPTH: usize = 8;
