//! What a run counts.

use std::collections::BTreeMap;

use serde::Serialize;

/// Counts of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Virtual time at the end, in milliseconds.
    pub virtual_ms: u64,
    /// Versions that the cloud made.
    pub versions: u64,
    /// Steps of all machines.
    pub steps: u64,
    /// Transactions of all stores.
    pub commits: u64,
    /// Messages that were sent, one for each addressee.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that arrived.
    pub delivered: u64,
    /// Messages that did not, whatever the reason.
    pub lost: u64,
    /// Copies of messages that were sent once.
    pub repeated: u64,
    /// Chunks of big blobs that were sent.
    pub chunks: u64,
    /// Forged messages that arrived.
    pub forged: u64,
    /// Messages that the gate refused.
    pub refused: u64,
    /// Deaths of nodes.
    pub crashes: u64,
    /// Times that a node went away.
    pub departures: u64,
    /// Times that a broker forgot everything.
    pub lapses: u64,
    /// Times that a site was cut off.
    pub cuts: u64,
    /// Times that a device went to another edge.
    pub moves: u64,
    /// Contributions that were accepted for the open round, at all owners.
    pub accepted: u64,
    /// Contributions that were taken for a later round.
    pub late: u64,
    /// What machines counted, by their word for it.
    pub counted: BTreeMap<&'static str, u64>,
}
