//! Who may say what: keys, the keyring, sealing and opening messages.
//!
//! [`open()`] is the only way to a [`Verified`] message, and the state machines take nothing else.
//! What is signed is the bytes that travel, never a re-encoding.
//!
//! Called by `actors/gateway.rs` (open) and `actors/runner.rs` (seal).

pub mod keyring;
pub mod keyring_document;
pub mod keys;
mod message;
mod open;
#[cfg(test)]
pub(crate) mod openssl;
mod pae;
mod pem;
pub mod pins;
pub mod release;
mod seal;
mod sequences;
mod signers;
#[cfg(test)]
pub(crate) mod zone_tests;

pub use message::{Verified, update_id};
pub use open::{Door, Refusal, open};
pub use pae::pae;
pub use seal::{Sealer, To};
pub use sequences::{Sequences, StateChanges};
