//! All of the broker, behind one lock: who is connected, what is queued, what happens next.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::agenda::{Agenda, Due};
use super::session::{Client, Held, Outgoing, Returned, Session};
use super::{Faults, Losses, Memory, Shared, TraceEntry};
use crate::bus::{Ack, BusError, BusEvent, Delivery, Publish, filter};
use crate::rng::Stream;

pub(super) struct State {
    pub(super) faults: Faults,
    pub(super) trace: Vec<TraceEntry>,
    pub(super) losses: Losses,
    dice: Stream,
    start: Instant,
    agenda: Agenda,
    /// Numbers connections, instances and messages.
    last_id: u64,
    clients: BTreeMap<String, Client>,
    sessions: BTreeMap<String, Session>,
    retained: BTreeMap<String, Outgoing>,
    is_up: bool,
}

impl State {
    pub(super) fn new(faults: Faults) -> Self {
        Self {
            dice: Stream::new(faults.seed, "bus/memory"),
            faults,
            trace: Vec::new(),
            losses: Losses::default(),
            start: Instant::now(),
            agenda: Agenda::default(),
            last_id: 0,
            clients: BTreeMap::new(),
            sessions: BTreeMap::new(),
            retained: BTreeMap::new(),
            is_up: true,
        }
    }

    /// A client starts. Returns its instance.
    pub(super) fn join(
        &mut self,
        client: &str,
        will: Option<Publish>,
        events: mpsc::Sender<BusEvent>,
    ) -> u64 {
        let was_cut_off = self.clients.get(client).is_some_and(|old| old.cut_off);
        self.disconnect(client, "another client took this id", true);
        let instance = self.id();
        let joined = Client::new(instance, will, events, was_cut_off);
        self.clients.insert(client.into(), joined);
        self.connect(client);
        instance
    }

    pub(super) fn subscribe(
        &mut self,
        client: &str,
        instance: u64,
        filters: &[String],
    ) -> Result<(), BusError> {
        let this = self.open(client, instance)?;
        this.filters.extend(filters.iter().cloned());
        if this.connection.is_some() {
            self.grant(client, filters);
        }
        Ok(())
    }

    pub(super) fn publish(
        &mut self,
        client: &str,
        instance: u64,
        message: Publish,
    ) -> Result<(), BusError> {
        let this = self.open(client, instance)?;
        let bytes = message.topic.len() + message.payload.len();
        if this.outbox_bytes + bytes > OUTBOX_BYTES {
            return Err(BusError::Full { limit_bytes: OUTBOX_BYTES });
        }
        this.outbox_bytes += bytes;
        this.outbox.push_back(message);
        self.flush(client);
        Ok(())
    }

    pub(super) fn close(&mut self, client: &str, instance: u64, drain_ms: u64) {
        if let Ok(this) = self.open(client, instance) {
            this.closing = true;
            let due = Due::Close { client: client.into(), instance };
            self.agenda.enter(self.now_ms() + drain_ms, due);
            self.leave_if_drained(client);
        }
    }

    /// The owner is gone without a goodbye.
    pub(super) fn crash(&mut self, client: &str, instance: u64) {
        if self.clients.get(client).is_some_and(|this| this.instance == instance && !this.closing) {
            self.disconnect(client, "crashed", true);
            self.clients.remove(client);
        }
    }

    pub(super) fn partition(&mut self, client: &str) {
        if let Some(this) = self.clients.get_mut(client) {
            this.cut_off = true;
            self.disconnect(client, "the network is cut", true);
        }
    }

    pub(super) fn heal(&mut self, client: &str) {
        if let Some(this) = self.clients.get_mut(client) {
            this.cut_off = false;
            self.connect(client);
        }
    }

    pub(super) fn restart(&mut self, memory: Memory, down_ms: u64) {
        self.is_up = false;
        for client in self.clients.keys().cloned().collect::<Vec<_>>() {
            self.disconnect(&client, "the broker is down", false);
        }
        if memory == Memory::Lost {
            self.sessions.clear();
            self.retained.clear();
        }
        self.agenda.enter(self.now_ms() + down_ms, Due::Up);
    }

    /// An owner is done with a delivery.
    pub(super) fn take_back(&mut self, returned: Returned) {
        let Returned { client, connection, id, acknowledged } = returned;
        let current = self.clients.get(&client).and_then(|this| this.connection);
        if current == Some(connection)
            && let Some(session) = self.sessions.get_mut(&client)
            && let Some(message) = session.in_flight.remove(&id)
            && message.at_least_once
            && !acknowledged
        {
            session.queue.push_front(message);
            self.agenda.enter(self.now_ms() + REDELIVER_MS, Due::Flow { client });
            return;
        }
        self.flow(&client);
    }

    /// Does all that is due by now.
    pub(super) fn run_due(&mut self, shared: &Weak<Shared>) {
        let now_ms = self.now_ms();
        while let Some(due) = self.agenda.take(now_ms) {
            match due {
                Due::Arrive { client, connection, id, message } => {
                    self.arrive(&client, connection, id, message);
                }
                Due::Deliver { client, connection, id } => {
                    self.deliver(client, connection, id, shared);
                }
                Due::Flow { client } => self.flow(&client),
                Due::Connect { client, instance } => {
                    if self.clients.get(&client).is_some_and(|this| this.instance == instance) {
                        self.connect(&client);
                    }
                }
                Due::Close { client, instance } => {
                    if self.clients.get(&client).is_some_and(|this| this.instance == instance) {
                        self.leave(&client);
                    }
                }
                Due::Up => self.come_up(),
            }
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.agenda.next_ms().map(|at_ms| self.start + Duration::from_millis(at_ms))
    }

    pub(super) fn retained_values(&self) -> BTreeMap<String, Vec<u8>> {
        self.retained.iter().map(|(topic, kept)| (topic.clone(), kept.payload.to_vec())).collect()
    }

    fn connect(&mut self, client: &str) {
        let connection = self.id();
        let Some(this) = self.clients.get_mut(client) else { return };
        if !self.is_up || this.cut_off || this.connection.is_some() {
            return;
        }
        this.connection = Some(connection);
        let filters: Vec<String> = this.filters.iter().cloned().collect();
        let fresh = !self.sessions.contains_key(client);
        this.tell(BusEvent::Connected { fresh });
        self.sessions.entry(client.into()).or_default().resume();
        if fresh {
            self.grant(client, &filters);
        }
        self.flow(client);
        self.flush(client);
    }

    /// Ends a connection: what was on its way to the broker is sent again, if it is QoS 1.
    fn disconnect(&mut self, client: &str, reason: &str, with_will: bool) {
        let Some(this) = self.clients.get_mut(client) else { return };
        let Some(connection) = this.connection.take() else { return };
        self.agenda.cut(connection);
        for (_, message) in std::mem::take(&mut this.sent).into_iter().rev() {
            this.outbox.push_front(message);
        }
        this.outbox_bytes = this.outbox.iter().map(|m| m.topic.len() + m.payload.len()).sum();
        this.tell(BusEvent::Disconnected { reason: reason.into() });
        if with_will && let Some(will) = this.will.clone() {
            self.route(will);
        }
    }

    /// Registers filters in the session and sends what is retained under them.
    fn grant(&mut self, client: &str, filters: &[String]) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        session.filters.extend(filters.iter().cloned());
        for (topic, kept) in &self.retained {
            if filters.iter().any(|f| filter::matches(f, topic)) && !session.push(kept.clone()) {
                self.losses.overflow += 1;
            }
        }
        self.flow(client);
    }

    /// Sends what waits for a connection.
    fn flush(&mut self, client: &str) {
        loop {
            let Some(this) = self.clients.get_mut(client) else { return };
            let Some(connection) = this.connection else { return };
            let Some(message) = this.outbox.pop_front() else { return };
            let bytes = message.topic.len() + message.payload.len();
            if self.dice.unit() < self.faults.loss {
                self.losses.faults += 1;
                this.outbox_bytes = this.outbox_bytes.saturating_sub(bytes);
                continue;
            }
            let twice = message.at_least_once && self.dice.unit() < self.faults.duplicate;
            let id = self.id();
            for _ in 0..=usize::from(twice) {
                let at_ms = self.arrival_ms(client, Way::ToBroker);
                let message = message.clone();
                let client = client.to_owned();
                self.agenda.enter(at_ms, Due::Arrive { client, connection, id, message });
            }
            if let Some(this) = self.clients.get_mut(client) {
                if message.at_least_once {
                    this.sent.insert(id, message);
                } else {
                    this.outbox_bytes = this.outbox_bytes.saturating_sub(bytes);
                }
            }
        }
    }

    fn arrive(&mut self, client: &str, connection: u64, id: u64, message: Publish) {
        let Some(this) = self.clients.get_mut(client) else { return };
        if this.connection != Some(connection) {
            return;
        }
        if let Some(sent) = this.sent.remove(&id) {
            let bytes = sent.topic.len() + sent.payload.len();
            this.outbox_bytes = this.outbox_bytes.saturating_sub(bytes);
        }
        self.route(message);
        self.leave_if_drained(client);
    }

    /// Gives a message to every session that asked for its topic, once.
    fn route(&mut self, message: Publish) {
        if !self.is_up || !filter::is_topic(&message.topic) {
            return;
        }
        let Publish { topic, payload, at_least_once, retain, .. } = message;
        let live = Outgoing { topic, payload: payload.into(), at_least_once, retained: false };
        if retain && live.payload.is_empty() {
            self.retained.remove(&live.topic);
        } else if retain {
            let kept = Outgoing { retained: true, ..live.clone() };
            self.retained.insert(live.topic.clone(), kept);
        }
        let mut reached = Vec::new();
        for (client, session) in &mut self.sessions {
            if !session.filters.iter().any(|f| filter::matches(f, &live.topic)) {
                continue;
            }
            let online = self.clients.get(client).is_some_and(|c| c.connection.is_some());
            if !online && !at_least_once {
                continue;
            }
            if session.push(live.clone()) {
                reached.push(client.clone());
            } else {
                self.losses.overflow += 1;
            }
        }
        for client in reached {
            self.flow(&client);
        }
    }

    /// Puts queued messages on their way while the client's window has room.
    fn flow(&mut self, client: &str) {
        let Some(connection) = self.clients.get(client).and_then(|this| this.connection) else {
            return;
        };
        loop {
            let Some(session) = self.sessions.get_mut(client) else { return };
            if session.in_flight.len() >= WINDOW {
                return;
            }
            let Some(message) = session.queue.pop_front() else { return };
            if self.dice.unit() < self.faults.loss {
                self.losses.faults += 1;
                continue;
            }
            let twice = message.at_least_once && self.dice.unit() < self.faults.duplicate;
            for _ in 0..=usize::from(twice) {
                let id = self.id();
                let at_ms = self.arrival_ms(client, Way::ToClient);
                if let Some(session) = self.sessions.get_mut(client) {
                    session.in_flight.insert(id, message.clone());
                }
                self.agenda.enter(at_ms, Due::Deliver { client: client.into(), connection, id });
            }
        }
    }

    fn deliver(&mut self, client: String, connection: u64, id: u64, shared: &Weak<Shared>) {
        let at_ms = self.now_ms();
        let Some(this) = self.clients.get(&client) else { return };
        let Some(session) = self.sessions.get_mut(&client) else { return };
        if this.connection != Some(connection) {
            return;
        }
        let Some(message) = session.in_flight.get(&id).cloned() else { return };
        let Ok(place) = this.events.try_reserve() else {
            // Only after a reconnect: old deliveries still wait to be read.
            session.in_flight.remove(&id);
            session.queue.push_front(message);
            self.agenda.enter(at_ms + REDELIVER_MS, Due::Flow { client });
            return;
        };
        let held = Held::new(shared.clone(), client.clone(), connection, id);
        let Outgoing { topic, payload, retained, .. } = message;
        let mut short = [0; 8];
        short.copy_from_slice(digest(&SHA256, &payload).as_ref().split_at(8).0);
        self.trace.push(TraceEntry { at_ms, client, topic: topic.clone(), digest: short });
        let ack = Ack::new(move || held.acknowledge());
        place.send(BusEvent::Delivery(Delivery {
            topic,
            payload: payload.to_vec(),
            retained,
            ack,
        }));
    }

    fn come_up(&mut self) {
        self.is_up = true;
        let now_ms = self.now_ms();
        let waiting: Vec<(String, u64)> =
            self.clients.iter().map(|(client, this)| (client.clone(), this.instance)).collect();
        for (client, instance) in waiting {
            let at_ms = now_ms + self.dice.below(RECONNECT_MS) as u64;
            self.agenda.enter(at_ms, Due::Connect { client, instance });
        }
    }

    fn leave_if_drained(&mut self, client: &str) {
        let drained = self
            .clients
            .get(client)
            .is_some_and(|this| this.closing && this.outbox.is_empty() && this.sent.is_empty());
        if drained {
            self.leave(client);
        }
    }

    /// A goodbye: no will. The session stays.
    fn leave(&mut self, client: &str) {
        self.disconnect(client, "closed", false);
        self.clients.remove(client);
    }

    /// When a message that starts now arrives.
    fn arrival_ms(&mut self, client: &str, way: Way) -> u64 {
        let (shortest, longest) = (*self.faults.delay_ms.start(), *self.faults.delay_ms.end());
        let spread = usize::try_from(longest.saturating_sub(shortest)).unwrap_or(usize::MAX - 1);
        let at_ms = self.now_ms() + shortest + self.dice.below(spread + 1) as u64;
        let last_ms = match way {
            Way::ToBroker => self.clients.get_mut(client).map(|this| &mut this.last_ms),
            Way::ToClient => self.sessions.get_mut(client).map(|session| &mut session.last_ms),
        };
        match last_ms {
            Some(last_ms) if !self.faults.reorder => {
                *last_ms = at_ms.max(*last_ms);
                *last_ms
            }
            _ => at_ms,
        }
    }

    fn open(&mut self, client: &str, instance: u64) -> Result<&mut Client, BusError> {
        match self.clients.get_mut(client) {
            Some(this) if this.instance == instance && !this.closing => Ok(this),
            _ => Err(BusError::Closed),
        }
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[derive(Debug, Clone, Copy)]
enum Way {
    ToBroker,
    ToClient,
}

/// Unacknowledged deliveries of a client at a time.
const WINDOW: usize = 64;
/// Bytes that a client queues at most.
const OUTBOX_BYTES: usize = 64 << 20;
/// A delivery that was dropped unacknowledged comes again after this time.
const REDELIVER_MS: u64 = 1_000;
/// Within this time after the broker's return all clients are back.
const RECONNECT_MS: usize = 1_000;
