//! The audit: entries and signed checkpoints in, a report or the first damage out.
//!
//! Everything is derived again: each entry's form, each root, each signature, and that no head was
//! signed which is smaller than, or different from, one before it. What can't be seen from one
//! node's files alone is a second history shown to others; cosignatures are there for that.

use std::collections::BTreeMap;

use super::checkpoint::{Origin, SignedCheckpoint};
use super::log::Replay;
use super::{Head, LedgerError};
use crate::time::Wall;
use crate::trust::keys::VerifyingKey;

/// What an audit found in a sound ledger.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Size and root of all entries.
    pub head: Head,
    /// Entries that the last checkpoint covers; those after it nobody has signed yet.
    pub signed_entries: u64,
    /// Number of checkpoints.
    pub checkpoints: u64,
    /// Number of entries by kind of event.
    pub events: BTreeMap<&'static str, u64>,
    /// Time of the first entry by the node's clock.
    pub first_at: Option<Wall>,
    /// Time of the last entry by the node's clock.
    pub last_at: Option<Wall>,
}

/// Checks a whole ledger. Checkpoints are notes in the order in which they were signed; `keys` are
/// all that the node had, as keys rotate.
///
/// # Errors
/// [`LedgerError`]: the first damage, with the entry or the range of entries it is in.
pub fn verify<E: AsRef<[u8]>, C: AsRef<[u8]>>(
    origin: &Origin,
    keys: &[VerifyingKey],
    entries: impl IntoIterator<Item = E>,
    checkpoints: impl IntoIterator<Item = C>,
) -> Result<Report, LedgerError> {
    let mut signed = Vec::new();
    for note in checkpoints {
        let note = SignedCheckpoint::parse(note.as_ref())?;
        note.verify(origin, keys)?;
        signed.push(note.checkpoint().head);
    }
    let mut replay = Replay::new(origin.clone(), &signed)?;
    let mut events = BTreeMap::new();
    let (mut first_at, mut last_at) = (None, None);
    for bytes in entries {
        let entry = replay.push(bytes.as_ref())?;
        *events.entry(entry.event.name()).or_default() += 1;
        first_at = first_at.or(Some(entry.at));
        last_at = Some(entry.at);
    }
    Ok(Report {
        head: replay.finish()?.head(),
        signed_entries: signed.last().map_or(0, |head| head.size),
        checkpoints: u64::try_from(signed.len()).unwrap_or(u64::MAX),
        events,
        first_at,
        last_at,
    })
}
