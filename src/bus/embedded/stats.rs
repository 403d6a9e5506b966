//! Traffic, counted where it passes: whole MQTT packets, at the broker's side of the socket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// What went in (from clients) and out (to clients).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes from clients, all packets.
    pub bytes_in: u64,
    /// Bytes to clients, all packets.
    pub bytes_out: u64,
    /// PUBLISH packets from clients.
    pub messages_in: u64,
    /// PUBLISH packets to clients.
    pub messages_out: u64,
}

/// A broker's traffic since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BrokerStats {
    /// All clients together, also those that aren't listed.
    pub total: Traffic,
    /// By client id, as the client gave it; clients without one are in the total only.
    pub clients: BTreeMap<String, Traffic>,
    /// Logins with a wrong user name or password.
    pub refused_logins: u64,
    /// Subscriptions without permission.
    pub refused_subscriptions: u64,
    /// Messages without permission, over a limit, or on a name that is no topic.
    pub refused_messages: u64,
}

/// Counters of one client.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) messages_in: AtomicU64,
    pub(super) messages_out: AtomicU64,
}

/// All counters.
#[derive(Debug, Default)]
pub(super) struct Stats {
    clients: Mutex<BTreeMap<String, Arc<Counters>>>,
    /// Clients without an id, and those that came when the list was full.
    others: Arc<Counters>,
    pub(super) refused_logins: AtomicU64,
    pub(super) refused_subscriptions: AtomicU64,
    pub(super) refused_messages: AtomicU64,
}

impl Counters {
    fn traffic(&self) -> Traffic {
        Traffic {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            messages_in: self.messages_in.load(Ordering::Relaxed),
            messages_out: self.messages_out.load(Ordering::Relaxed),
        }
    }
}

impl Stats {
    /// The counters of a client, the same over reconnects.
    pub(super) fn counters(&self, client: &str) -> Arc<Counters> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(client) {
            return Arc::clone(known);
        }
        if client.is_empty() || clients.len() >= LISTED {
            return Arc::clone(&self.others);
        }
        Arc::clone(clients.entry(client.into()).or_default())
    }

    pub(super) fn snapshot(&self) -> BrokerStats {
        let clients: BTreeMap<String, Traffic> = self
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(client, counters)| (client.clone(), counters.traffic()))
            .collect();
        let mut total = self.others.traffic();
        for traffic in clients.values() {
            total.bytes_in += traffic.bytes_in;
            total.bytes_out += traffic.bytes_out;
            total.messages_in += traffic.messages_in;
            total.messages_out += traffic.messages_out;
        }
        BrokerStats {
            total,
            clients,
            refused_logins: self.refused_logins.load(Ordering::Relaxed),
            refused_subscriptions: self.refused_subscriptions.load(Ordering::Relaxed),
            refused_messages: self.refused_messages.load(Ordering::Relaxed),
        }
    }
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// Clients that are counted one by one.
const LISTED: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_alone_and_together() {
        let stats = Stats::default();
        count(&stats.counters("a").bytes_in, 3);
        count(&stats.counters("a").bytes_in, 4);
        count(&stats.counters("").bytes_in, 5);
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.total.bytes_in, 12);
        assert_eq!(snapshot.clients["a"].bytes_in, 7);
        assert_eq!(snapshot.clients.len(), 1);
    }
}
