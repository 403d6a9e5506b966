//! What the nodes keep on disk: whether their ledgers verify, what they refused, what devices learned
//! for themselves.

use std::collections::BTreeMap;

use super::plant::{self, PLACES, Place};
use super::{DemoError, DemoOptions};
use crate::learn::TensorSet;
use crate::ledger::{Entry, Event, Origin, verify};
use crate::protocol::{Member, update};
use crate::report::AuditSummary;
use crate::settings::Tier;
use crate::store::{SqliteStore, Store};
use crate::trust::keyring::Keyring;

/// All ledgers, read once.
pub(super) struct Ledgers {
    pub(super) audit: AuditSummary,
    /// Refused messages and commands by reason. A node records a bounded number a sender.
    pub(super) refused: BTreeMap<String, u64>,
    /// Bytes of the work that devices contributed, without the message around it, and how often.
    work: (u64, u64),
}

impl Ledgers {
    /// Mean bytes of a device's work in a round.
    pub(super) fn work_per_round(&self) -> u64 {
        self.work.0 / self.work.1.max(1)
    }
}

/// Derives each node's ledger from its store, checks every signed head, and counts.
pub(super) fn read(options: &DemoOptions, keyring: &Keyring) -> Result<Ledgers, DemoError> {
    let mut audit = AuditSummary { entries: 0, verified: true };
    let mut refused: BTreeMap<String, u64> = BTreeMap::new();
    let mut work = (0, 0);
    for place in &PLACES {
        let store = SqliteStore::open_read_only(&place.folder(options).join("store"))?;
        let total = store.num_entries()?;
        let entries = store.entries(0, total)?;
        let notes = store.checkpoints()?;
        let node = plant::name(place.name);
        let origin = Origin { federation: keyring.federation().clone(), node: node.clone() };
        let keys: Vec<_> = keyring.node(&node).map(|entry| entry.key).into_iter().collect();
        audit.entries += total;
        if let Err(error) = verify(&origin, &keys, &entries, &notes) {
            tracing::error!(node = place.name, %error, "the ledger can't be verified");
            audit.verified = false;
        }
        for event in entries.iter().filter_map(|bytes| Some(Entry::parse(bytes).ok()?.event)) {
            if let Event::Contribute { bytes, .. } = &event
                && place.tier == Tier::Device
            {
                work = (work.0 + bytes, work.1 + 1);
            }
            if let Some(reason) = reason_of(event) {
                *refused.entry(reason).or_default() += 1;
            }
        }
    }
    Ok(Ledgers { audit, refused, work })
}

/// What a node has recorded, oldest first.
pub(super) fn events(options: &DemoOptions, place: &Place) -> Result<Vec<Event>, DemoError> {
    let store = SqliteStore::open_read_only(&place.folder(options).join("store"))?;
    let entries = store.entries(0, store.num_entries()?)?;
    Ok(entries.iter().filter_map(|bytes| Some(Entry::parse(bytes).ok()?.event)).collect())
}

/// The adapters that the devices have trained for themselves; needed where only soft labels travel.
pub(super) fn own_adapters(options: &DemoOptions) -> Result<Vec<TensorSet>, DemoError> {
    let mut adapters = Vec::new();
    for place in PLACES.iter().filter(|place| place.tier == Tier::Device) {
        let store = SqliteStore::open_read_only(&place.folder(options).join("store"))?;
        let own = Member::own_adapter(&store.state(Member::PREFIX)?);
        let bytes = own.map(|digest| store.blob(&digest)).transpose()?.flatten();
        let missing = || DemoError::start(&format!("{} has learned nothing", place.name));
        adapters.push(update::unpack(&bytes.ok_or_else(missing)?)?);
    }
    Ok(adapters)
}

fn reason_of(event: Event) -> Option<String> {
    match event {
        Event::Refusal { reason, .. } => Some(reason.as_str().to_owned()),
        Event::Equivocation { .. } => Some("equivocation".to_owned()),
        Event::Command { outcome, .. } if outcome.as_str() != "ok" => {
            Some(outcome.as_str().to_owned())
        }
        _ => None,
    }
}
