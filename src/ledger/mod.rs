//! The audit ledger: an append-only log that anybody with the public key can check.
//!
//! ```text
//! Entry --canonical JSON--> leaf --RFC 6962--> Tree --head--> Checkpoint --Ed25519--> signed note
//!                                                                 |  neighbours cosign it
//! Replay: stored entries + signed heads -> Log (on restart) or Report (audit)
//! tiles:  the same data as files that any static server and third-party verifier can read
//! ```
//! What is here is pure: the store keeps the entries, and commits them with the state they tell of.
//! Invariant: no smaller and no different head is ever signed. The ledger only grows; damage is an
//! error that names the entry.

pub mod checkpoint;
pub mod entry;
mod error;
pub mod log;
pub mod proof;
pub mod tiles;
pub mod tree;
pub mod twin;
pub mod verify;
pub mod witness;

pub use checkpoint::{Checkpoint, Origin, SignedCheckpoint};
pub use entry::{Entry, Event, Word};
pub use error::LedgerError;
pub use log::{Log, Replay};
pub use proof::InclusionProof;
pub use tree::{Head, Tree};
pub use twin::{OwnWord, Twin};
pub use verify::{Report, verify};
pub use witness::Witness;
