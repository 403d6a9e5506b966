//! Going back on a node that doesn't run: no network, no model, nothing but its store and its key.

use super::{NodeError, replay};
use crate::ids::{Digest, Name, NodeId, Version};
use crate::protocol::{Effect, RollbackBy, SlotOrder, SlotRefusal, Slots, SlotsView};
use crate::store::{Batch, Store, StoreError};
use crate::time::Wall;
use crate::trust::keys::SigningKey;

/// Why a stopped node isn't rolled back. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AtRestError {
    /// What it asks for can't be.
    #[error(transparent)]
    Refused(#[from] SlotRefusal),
    /// It has served nothing but its untrained adapter.
    #[error("this node has served no version yet: there is nothing to go back to")]
    NothingServed,
    /// The adapter isn't in the store.
    #[error("the adapter {0} of that version isn't in the store")]
    NoAdapter(Digest),
    /// The store or its ledger.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl From<StoreError> for AtRestError {
    fn from(error: StoreError) -> Self {
        Self::Node(error.into())
    }
}

/// Moves the pointer of a stopped node to `to`, or to the version before, and records it under a head that
/// the node's key signs: one transaction. Back is what it serves from its next start on.
///
/// # Errors
/// [`AtRestError`].
pub fn roll_back_at_rest(
    store: &mut dyn Store,
    key: &SigningKey,
    federation: &Name,
    me: &NodeId,
    to: Option<Version>,
    now: Wall,
) -> Result<SlotsView, AtRestError> {
    let mut log = replay(store, federation, me)?;
    let slots = Slots::at_rest(&store.state(Slots::KEY)?).map_err(NodeError::State)?;
    let mut slots = slots.ok_or(AtRestError::NothingServed)?;
    let mut batch = Batch { at: now, ..Batch::default() };
    for effect in slots.order(SlotOrder::Rollback { to, by: RollbackBy::Local })? {
        match effect {
            Effect::Put(key, value) => batch.state.push((key, Some(value))),
            Effect::Record(event) => batch.entries.push(log.append(now, event)),
            // Loaded when it starts; what isn't there would leave it without answers.
            Effect::Apply { adapter, .. } if store.blob(&adapter)?.is_none() => {
                return Err(AtRestError::NoAdapter(adapter));
            }
            _ => {}
        }
    }
    batch.checkpoint = Some(log.checkpoint(key).to_text().into_bytes());
    store.commit(&[batch])?;
    Ok(slots.view())
}
