//! The broker's side of a client (its session) and the client's side of the link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

use super::Shared;
use crate::bus::{BusEvent, Publish};

/// A message on its way to a client.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) topic: String,
    pub(super) payload: Arc<[u8]>,
    pub(super) at_least_once: bool,
    pub(super) retained: bool,
}

/// What the broker keeps of a client, connected or not.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) filters: BTreeSet<String>,
    pub(super) queue: VecDeque<Outgoing>,
    pub(super) in_flight: BTreeMap<u64, Outgoing>,
    /// When the last message on this way arrives: the next one comes not earlier.
    pub(super) last_ms: u64,
}

impl Session {
    /// The connection is new: what wasn't acknowledged goes out again, QoS 0 excepted.
    pub(super) fn resume(&mut self) {
        let unacknowledged = std::mem::take(&mut self.in_flight);
        for (_, message) in unacknowledged.into_iter().rev() {
            if message.at_least_once {
                self.queue.push_front(message);
            }
        }
    }

    /// Queues a message unless the queue is full.
    pub(super) fn push(&mut self, message: Outgoing) -> bool {
        let room = self.queue.len() < QUEUE;
        if room {
            self.queue.push_back(message);
        }
        room
    }
}

/// A client's end of its link.
#[derive(Debug)]
pub(super) struct Client {
    /// Tells this life of the client from an earlier one with the same id.
    pub(super) instance: u64,
    pub(super) events: mpsc::Sender<BusEvent>,
    pub(super) filters: BTreeSet<String>,
    pub(super) will: Option<Publish>,
    /// Messages that wait for a connection.
    pub(super) outbox: VecDeque<Publish>,
    /// QoS 1 messages on the way to the broker.
    pub(super) sent: BTreeMap<u64, Publish>,
    pub(super) outbox_bytes: usize,
    pub(super) connection: Option<u64>,
    pub(super) cut_off: bool,
    pub(super) closing: bool,
    pub(super) last_ms: u64,
}

impl Client {
    pub(super) fn new(
        instance: u64,
        will: Option<Publish>,
        events: mpsc::Sender<BusEvent>,
        cut_off: bool,
    ) -> Self {
        Self {
            instance,
            events,
            filters: BTreeSet::new(),
            will,
            outbox: VecDeque::new(),
            sent: BTreeMap::new(),
            outbox_bytes: 0,
            connection: None,
            cut_off,
            closing: false,
            last_ms: 0,
        }
    }

    /// Tells the owner about its link.
    pub(super) fn tell(&self, event: BusEvent) {
        if self.events.try_send(event).is_err() {
            tracing::debug!("an owner doesn't read its link's events");
        }
    }
}

/// A delivery whose owner is done with it.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) client: String,
    pub(super) connection: u64,
    pub(super) id: u64,
    pub(super) acknowledged: bool,
}

/// A delivery in its owner's hands.
pub(super) struct Held {
    shared: Weak<Shared>,
    returned: Option<Returned>,
}

impl Held {
    pub(super) fn new(shared: Weak<Shared>, client: String, connection: u64, id: u64) -> Self {
        let returned = Returned { client, connection, id, acknowledged: false };
        Self { shared, returned: Some(returned) }
    }

    pub(super) fn acknowledge(mut self) {
        if let Some(returned) = &mut self.returned {
            returned.acknowledged = true;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(shared), Some(returned)) = (self.shared.upgrade(), self.returned.take()) {
            shared.give_back(returned);
        }
    }
}

/// Messages that a session queues at most, as mosquitto has it.
const QUEUE: usize = 1_000;
