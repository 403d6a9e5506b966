//! The audit ledger.
pub mod entry;
pub use entry::{Entry, Event, Word};
