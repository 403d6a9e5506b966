//! What can be wrong with a ledger, a checkpoint or a proof.

use crate::ids::Digest;

/// Why a ledger, a checkpoint or a proof is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The entry's bytes aren't the one canonical form.
    #[error("ledger entry {index} is damaged: {what}")]
    BadEntry {
        /// Its index, from 0.
        index: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The entry doesn't have the hash that its tile holds.
    #[error("ledger entry {index} was changed: its hash is {actual}, the tile says {expected}")]
    ChangedEntry {
        /// Its index, from 0.
        index: u64,
        /// Hash in the tile.
        expected: Digest,
        /// Hash of the entry.
        actual: Digest,
    },
    /// The entries don't give the root that was signed.
    #[error(
        "ledger entries {from}..{size} were changed: the signed root is {signed}, they give {derived}"
    )]
    Forked {
        /// First entry not vouched for by an earlier checkpoint.
        from: u64,
        /// Size of the signed head.
        size: u64,
        /// Its root.
        signed: Digest,
        /// The root that the entries give.
        derived: Digest,
    },
    /// Two roots of one size were signed: the ledger's owner shows two histories.
    #[error("two roots of size {size} were signed: {first} and {second}")]
    TwoHeads {
        /// The size.
        size: u64,
        /// The earlier root.
        first: Digest,
        /// The later root.
        second: Digest,
    },
    /// Entries that a signed head covers are gone, or a smaller head follows a bigger one.
    #[error("ledger shrank: a head of size {signed} was signed, there are {actual} entries")]
    Shrunk {
        /// Size of the signed head.
        signed: u64,
        /// Size found.
        actual: u64,
    },
    /// A text isn't a checkpoint.
    #[error("not a checkpoint: {what}")]
    BadCheckpoint {
        /// The broken rule.
        what: &'static str,
    },
    /// The checkpoint is of another ledger.
    #[error("checkpoint is of {actual}, expected {expected}")]
    WrongOrigin {
        /// Ours.
        expected: String,
        /// Its.
        actual: String,
    },
    /// No line of the checkpoint is signed by the key, or the signature doesn't verify.
    #[error("checkpoint of size {size} is not signed by {name} with the given key")]
    BadSignature {
        /// Size of the head.
        size: u64,
        /// Key name that was looked for.
        name: String,
    },
    /// The proof doesn't lead to the root.
    #[error("{what} proof does not lead to the root of size {size}")]
    BadProof {
        /// Which kind.
        what: &'static str,
        /// Size of the head.
        size: u64,
    },
    /// There is no such entry or head in this ledger.
    #[error("no entry or head {index} in a ledger of {size} entries")]
    OutOfRange {
        /// What was asked for.
        index: u64,
        /// Number of entries.
        size: u64,
    },
    /// A file of an export is missing, too many, or not what the entries give.
    #[error("export: {path} {what}")]
    BadExport {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl LedgerError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::BadEntry { .. } => "ledger_bad_entry",
            Self::ChangedEntry { .. } => "ledger_changed_entry",
            Self::Forked { .. } => "ledger_forked",
            Self::TwoHeads { .. } => "ledger_two_heads",
            Self::Shrunk { .. } => "ledger_shrunk",
            Self::BadCheckpoint { .. } => "ledger_bad_checkpoint",
            Self::WrongOrigin { .. } => "ledger_wrong_origin",
            Self::BadSignature { .. } => "ledger_bad_signature",
            Self::BadProof { .. } => "ledger_bad_proof",
            Self::OutOfRange { .. } => "ledger_out_of_range",
            Self::BadExport { .. } => "ledger_bad_export",
        }
    }
}
