//! The port to a node's durable memory, and its implementations: SQLite, and one in memory.
//!
//! One [`Batch`] is one transaction: state, ledger entries and outbox change together or not at
//! all. Blobs are content-addressed and on disk before the batch that names them.
//!
//! Called by `actors/runner.rs` only, and by commands that read (`gaisnet audit`).

use std::borrow::Cow;

use crate::ids::{Digest, Side};
#[cfg(feature = "store")]
pub mod keyfile;

use crate::time::Wall;

#[cfg(feature = "store")]
mod blobs;
mod compact;
#[cfg(test)]
mod conformance;
#[cfg(feature = "store")]
mod directory;
mod memory;
#[cfg(feature = "store")]
mod sqlite;

#[cfg(feature = "store")]
pub use blobs::BlobCaps;
pub use memory::{Failure, MemoryStore};
#[cfg(feature = "store")]
pub use sqlite::SqliteStore;

/// Samples of the KPI table that are kept, over all names; the oldest go first.
pub const MAX_KPIS: usize = 100_000;

/// A sealed message that has to reach somebody, kept until it is settled or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxItem {
    /// Unique: the update id in hex for what waits for a receipt, the topic for retained state.
    pub key: String,
    /// Link to send it on.
    pub side: Side,
    /// Topic name.
    pub topic: String,
    /// The sealed bytes: every resend is verbatim.
    pub wire: Vec<u8>,
    /// Kept by the broker, and sent again only on connect or demand: a value, not a letter.
    pub retain: bool,
    /// When it was sealed.
    pub sealed_at: Wall,
}

/// Everything that one step of a machine changes. Applied as one transaction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// When the step was taken; dates its KPI samples.
    pub at: Wall,
    /// State: key and new value, `None` deletes. Later wins.
    pub state: Vec<(Cow<'static, str>, Option<Vec<u8>>)>,
    /// Canonical bytes of ledger entries, to be appended in this order.
    pub entries: Vec<Vec<u8>>,
    /// Added at the end, in place of an earlier item of the same key.
    pub outbox_put: Vec<OutboxItem>,
    /// Keys of settled items. They go before `outbox_put` comes; an unknown key is no error.
    pub outbox_delete: Vec<String>,
    /// A signed ledger checkpoint over all entries up to and including this batch's. One over as
    /// many entries as the last takes its place.
    pub checkpoint: Option<Vec<u8>>,
    /// Samples for the KPI table: (name, value). At most [`MAX_KPIS`] are kept.
    pub kpis: Vec<(String, f64)>,
}

/// Why the store can't go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("{path} is in use by another process: stop it, or give this node its own store path")]
    Locked {
        /// The file.
        path: String,
    },
    /// Damaged: integrity check or a digest failed.
    #[error(
        "{path} is damaged ({what}); restore it from a backup, or move it away and enrol again"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// What was found.
        what: String,
    },
    /// Made by a newer gaisnet.
    #[error("{path} has schema version {found}, this gaisnet knows up to {known}: use a newer one")]
    TooNew {
        /// The file.
        path: String,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// No room. Inference goes on; new work is refused.
    #[error("no space left for {path}: free some, the node recovers by itself")]
    Full {
        /// The file.
        path: String,
    },
    /// Any other failure of the disk. A failed fsync is one of these and ends the process.
    #[error("{path}: {message}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        message: String,
    },
}

impl StoreError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "store_locked",
            Self::Corrupt { .. } => "store_corrupt",
            Self::TooNew { .. } => "store_too_new",
            Self::Full { .. } => "store_full",
            Self::Io { .. } => "store_io",
        }
    }
}

/// A node's durable memory.
pub trait Store: Send {
    /// Applies the batches in order as ONE transaction, durable when this returns (group commit).
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the batches is applied then.
    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError>;

    /// State values whose key starts with `prefix`, sorted by key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn state(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// All outbox items in the order in which they were put.
    ///
    /// # Errors
    /// [`StoreError`].
    fn outbox(&self) -> Result<Vec<OutboxItem>, StoreError>;

    /// Number of ledger entries.
    ///
    /// # Errors
    /// [`StoreError`].
    fn num_entries(&self) -> Result<u64, StoreError>;

    /// Ledger entries `from..to` as far as they exist, canonical bytes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names the first entry that is missing or damaged.
    fn entries(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, StoreError>;

    /// All checkpoints, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn checkpoints(&self) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Samples of the KPI `name`, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn kpis(&self, name: &str) -> Result<Vec<(Wall, f64)>, StoreError>;

    /// Writes a blob (durable when this returns) and gives its SHA-256; a known one costs nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn put_blob(&mut self, bytes: &[u8]) -> Result<Digest, StoreError>;

    /// The same for bytes whose digest the caller has just checked: it isn't taken again.
    ///
    /// # Errors
    /// [`StoreError`].
    fn put_checked_blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError>;

    /// Reads a blob and checks its digest.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes don't have this digest.
    fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError>;

    /// Part of the store's own quota that is used, in percent.
    fn fill_percent(&self) -> u64;

    /// Reads blobs too, from another thread.
    fn blob_reader(&self) -> Box<dyn BlobReader>;

    /// Deletes blobs that aren't in `keep`, as room has to be made.
    ///
    /// # Errors
    /// [`StoreError`].
    fn retain_blobs(&mut self, keep: &std::collections::BTreeSet<Digest>)
    -> Result<(), StoreError>;
}

/// Reads a store's blobs beside its owner: long work takes them one by one.
pub trait BlobReader: Send + std::fmt::Debug {
    /// As [`Store::blob`].
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes don't have this digest.
    fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError>;
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    digest
}
