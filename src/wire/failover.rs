//! What an owner of rounds and its standby say to each other, and to those who decide between them.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::blob::{Blob, Manifest};
use crate::ids::Epoch;

/// Who speaks for the owner of rounds, in the epoch of the head. Retained.
///
/// The time is a duration that whoever hears it measures from its arrival: no clock is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Good for this long, in milliseconds.
    pub ms: u64,
    /// It doesn't own the rounds yet: members are asked for their promises.
    pub asks: bool,
    /// What it says is held by nobody else. For whoever reads along: nothing is decided by it.
    pub alone: bool,
    /// Changes of the state, since there are rounds, that both of them know of or that were let out.
    pub told: u64,
}

/// A member listens to nobody below the epoch of the head from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The highest epoch that it had heard before that one.
    pub before: Epoch,
}

/// The state of the rounds, on its way between the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mirror {
    /// To the standby.
    Copy(StateCopy),
    /// From the standby.
    Have {
        /// Number of the newest copy of this epoch that is on its disk, 0 for none.
        seq: u64,
        /// It asks for a copy.
        wants: bool,
    },
}

/// What has changed since a copy that the standby has; all of it since copy 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateCopy {
    /// Its number in this epoch, from 1.
    pub seq: u64,
    /// Number of the copy that it builds on.
    pub since: u64,
    /// Whoever has it has all that was ever said up to this epoch; none: more was said meanwhile.
    pub basis: Option<Epoch>,
    /// Changes of the state behind it, since there are rounds.
    pub told: u64,
    /// A [`CopyPart`], encoded.
    pub part: Blob,
}

/// Values of the store by key, and the blobs that the state names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyPart {
    /// Set.
    pub puts: Vec<(String, ByteBuf)>,
    /// Removed.
    pub deletes: Vec<String>,
    /// Every blob that the whole state needs.
    pub blobs: Vec<Manifest>,
}
