//! What waits for the broker: four priorities, bounded in bytes, each message kept until the
//! broker acknowledged it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::bus::{BusError, Priority, Publish};

/// A message without its priority; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) at_least_once: bool,
    pub(super) retain: bool,
}

impl From<Publish> for Message {
    fn from(publish: Publish) -> Self {
        let Publish { topic, payload, at_least_once, retain, .. } = publish;
        Self { topic, payload: payload.into(), at_least_once, retain }
    }
}

/// A place in line: by priority, then by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(Priority, u64);

/// The queue in front of the client.
///
/// At most `window` messages are in flight, at most [`Priority::BULK_WINDOW`] of them chunks and
/// [`Priority::IDLE_WINDOW`] of a base, and one place is always left for [`Priority::Control`].
#[derive(Debug)]
pub(super) struct Outbox {
    waiting: BTreeMap<Place, Message>,
    in_flight: BTreeMap<Place, Message>,
    next: u64,
    bytes: usize,
    /// Of these, what has the lowest priority.
    idle_bytes: usize,
    limit_bytes: usize,
    window: usize,
}

impl Outbox {
    pub(super) fn new(limit_bytes: usize, window: usize) -> Self {
        let (waiting, in_flight) = (BTreeMap::new(), BTreeMap::new());
        Self {
            waiting,
            in_flight,
            next: 0,
            bytes: 0,
            idle_bytes: 0,
            limit_bytes,
            window: window.max(2),
        }
    }

    /// Queues a message.
    ///
    /// # Errors
    /// [`BusError::Full`].
    pub(super) fn push(&mut self, priority: Priority, message: Message) -> Result<(), BusError> {
        let bytes = cost(&message);
        if self.bytes + bytes > self.limit_bytes {
            return Err(BusError::Full { limit_bytes: self.limit_bytes });
        }
        if priority == Priority::Idle {
            let limit_bytes = Priority::IDLE_BYTES.min(self.limit_bytes / 2);
            if self.idle_bytes + bytes > limit_bytes {
                return Err(BusError::Full { limit_bytes });
            }
            self.idle_bytes += bytes;
        }
        self.bytes += bytes;
        self.waiting.insert(Place(priority, self.next), message);
        self.next += 1;
        Ok(())
    }

    /// The next message that may go out now; it is in flight from here on.
    pub(super) fn next(&mut self) -> Option<(Place, Message)> {
        let (&place, _) = self.waiting.first_key_value()?;
        let flying = |priority| self.in_flight.keys().filter(|p| p.0 == priority).count();
        let free = match place.0 {
            Priority::Control => self.in_flight.len() < self.window,
            Priority::Update => self.in_flight.len() + 1 < self.window,
            Priority::Bulk => {
                self.in_flight.len() + 1 < self.window
                    && flying(Priority::Bulk) < Priority::BULK_WINDOW
            }
            Priority::Idle => {
                self.in_flight.len() + 1 < self.window
                    && flying(Priority::Idle) < Priority::IDLE_WINDOW
            }
        };
        if !free {
            return None;
        }
        let (_, message) = self.waiting.pop_first()?;
        self.in_flight.insert(place, message.clone());
        Some((place, message))
    }

    /// The broker has it.
    pub(super) fn done(&mut self, place: Place) {
        if let Some(message) = self.in_flight.remove(&place) {
            let bytes = cost(&message);
            self.bytes = self.bytes.saturating_sub(bytes);
            if place.0 == Priority::Idle {
                self.idle_bytes = self.idle_bytes.saturating_sub(bytes);
            }
        }
    }

    /// It has to be sent again, at its old place in line.
    pub(super) fn again(&mut self, place: Place) {
        if let Some(message) = self.in_flight.remove(&place) {
            self.waiting.insert(place, message);
        }
    }

    /// The client is gone and with it what it had in flight.
    pub(super) fn all_again(&mut self) {
        self.waiting.append(&mut self.in_flight);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes that a queued message is counted with: empty ones cost memory too.
fn cost(message: &Message) -> usize {
    message.topic.len() + message.payload.len() + 64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(topic: &str) -> Message {
        Message {
            topic: topic.into(),
            payload: Bytes::from_static(b"x"),
            at_least_once: true,
            retain: false,
        }
    }

    fn topics(outbox: &mut Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.next()).map(|(_, message)| message.topic).collect()
    }

    #[test]
    fn control_overtakes_updates_and_updates_overtake_chunks() {
        let mut outbox = Outbox::new(10_000, 10);
        for (priority, topic) in [
            (Priority::Bulk, "chunk"),
            (Priority::Update, "update"),
            (Priority::Control, "ping"),
            (Priority::Control, "pong"),
        ] {
            outbox.push(priority, message(topic)).unwrap();
        }
        assert_eq!(topics(&mut outbox), ["ping", "pong", "update", "chunk"]);
    }

    #[test]
    fn chunks_never_take_the_whole_window() {
        let mut outbox = Outbox::new(100_000, 10);
        for _ in 0..50 {
            outbox.push(Priority::Bulk, message("chunk")).unwrap();
        }
        assert_eq!(topics(&mut outbox).len(), Priority::BULK_WINDOW);
        for _ in 0..50 {
            outbox.push(Priority::Update, message("update")).unwrap();
        }
        assert_eq!(topics(&mut outbox).len(), 1);
        outbox.push(Priority::Control, message("ping")).unwrap();
        assert_eq!(topics(&mut outbox), ["ping"]);
        outbox.push(Priority::Control, message("pong")).unwrap();
        assert!(topics(&mut outbox).is_empty());
    }

    #[test]
    fn a_base_goes_out_when_nothing_else_waits_and_leaves_the_queue_to_rounds() {
        let mut outbox = Outbox::new(100_000, 10);
        while outbox.push(Priority::Idle, message("base")).is_ok() {}
        assert_eq!(outbox.bytes() / 1_000, 49, "half of a small queue");
        assert_eq!(topics(&mut outbox).len(), Priority::IDLE_WINDOW);
        for _ in 0..8 {
            outbox.push(Priority::Bulk, message("chunk")).unwrap();
        }
        assert_eq!(topics(&mut outbox), ["chunk"; 5], "chunks of a round overtake");
        let base = outbox.in_flight.keys().copied().filter(|p| p.0 == Priority::Idle);
        let base: Vec<Place> = base.collect();
        for place in base {
            outbox.done(place);
        }
        assert_eq!(topics(&mut outbox)[..3], ["chunk"; 3]);
        outbox.push(Priority::Idle, message("base")).unwrap();
    }

    #[test]
    fn message_sent_again_keeps_its_place() {
        let mut outbox = Outbox::new(10_000, 10);
        for topic in ["a", "b", "c"] {
            outbox.push(Priority::Update, message(topic)).unwrap();
        }
        let (first, _) = outbox.next().unwrap();
        outbox.next().unwrap();
        outbox.again(first);
        assert_eq!(topics(&mut outbox), ["a", "c"]);
        outbox.all_again();
        assert_eq!(topics(&mut outbox), ["a", "b", "c"]);
    }

    #[test]
    fn bytes_are_bounded_until_the_broker_has_them() {
        let mut outbox = Outbox::new(140, 10);
        outbox.push(Priority::Control, message("a")).unwrap();
        outbox.push(Priority::Control, message("b")).unwrap();
        let full = outbox.push(Priority::Control, message("c")).unwrap_err();
        assert_eq!(full, BusError::Full { limit_bytes: 140 });
        let (place, _) = outbox.next().unwrap();
        assert!(outbox.push(Priority::Control, message("c")).is_err());
        outbox.done(place);
        outbox.push(Priority::Control, message("c")).unwrap();
        assert!(!outbox.is_empty() && outbox.in_flight() == 0);
    }
}
