//! What is going to happen, in the order of time and, at the same millisecond, of entry.

use std::collections::BTreeMap;

use crate::bus::Publish;

/// Something that happens at a known millisecond.
#[derive(Debug)]
pub(super) enum Due {
    /// A client's message reaches the broker over this connection.
    Arrive { client: String, connection: u64, id: u64, message: Publish },
    /// The broker's message reaches a client over this connection.
    Deliver { client: String, connection: u64, id: u64 },
    /// A client's queue may move on.
    Flow { client: String },
    /// A client tries to connect.
    Connect { client: String, instance: u64 },
    /// A closing client waits no longer.
    Close { client: String, instance: u64 },
    /// The broker is there again.
    Up,
}

/// Entries by time.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    entries: BTreeMap<(u64, u64), Due>,
    entered: u64,
}

impl Agenda {
    pub(super) fn enter(&mut self, at_ms: u64, due: Due) {
        self.entries.insert((at_ms, self.entered), due);
        self.entered += 1;
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.entries.keys().next().map(|&(at_ms, _)| at_ms)
    }

    /// Takes the first entry if it is due.
    pub(super) fn take(&mut self, now_ms: u64) -> Option<Due> {
        if self.next_ms()? > now_ms {
            return None;
        }
        self.entries.pop_first().map(|(_, due)| due)
    }

    /// Takes out what was on its way over a connection that is cut.
    pub(super) fn cut(&mut self, cut: u64) {
        self.entries.retain(|_, due| match due {
            Due::Arrive { connection, .. } | Due::Deliver { connection, .. } => *connection != cut,
            _ => true,
        });
    }
}
