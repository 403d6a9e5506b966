//! The link to the plant's broker: MQTT 3.1.1 through rumqttc.
//!
//! ```text
//! publish() -> Outbox (three priorities, bytes bounded) -> sender task -> rumqttc -> broker
//! receiver  <- forwarder task <- byte budget <- poll task <- rumqttc <- broker
//! ```
//! A link has its own OS thread with a small runtime, so that nothing the node does can keep it
//! from answering the broker's keep-alive. The poll task only forwards; the sender task is the only
//! one that publishes, subscribes and acknowledges, and it never waits for room in the client's
//! queue. The session is persistent (stable client id, `clean_session = false`).
//!
//! Invariants: a message that was taken is sent until the broker acknowledged it or the link is
//! closed; an arrival is acknowledged only after [`crate::bus::Ack::release`], in the order of arrival; a full
//! inbox slows the broker down instead of dropping; what is too big is refused before it is queued.

mod acks;
mod backoff;
mod budget;
mod link;
mod outbox;
mod reason;
mod sender;
mod settings;

use std::sync::Arc;
use std::thread;

use tokio::sync::mpsc;

pub use settings::{MqttError, MqttSettings, TlsSettings};

use crate::bus::{Bus, BusError, BusEvent, Publish, filter};
use link::Link;
use outbox::Message;

/// A link to one broker over MQTT 3.1.1.
///
/// Dropped, it closes at once. When the link has ended, the receiver of its events ends too.
pub struct MqttBus {
    link: Arc<Link>,
    max_packet_bytes: usize,
}

impl MqttBus {
    /// Starts the link's thread and returns at once; [`BusEvent::Connected`] tells when it is up.
    ///
    /// `seed` makes the waiting times between attempts repeatable.
    ///
    /// # Errors
    /// [`MqttError`] when the settings can't work: a file of the TLS part is missing or holds no
    /// certificate or key, the client id is empty, a limit is 0. An unreachable broker is no error.
    pub fn connect(
        settings: MqttSettings,
        seed: u64,
    ) -> Result<(Self, mpsc::Receiver<BusEvent>), MqttError> {
        let options = settings.options()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(MqttError::Start)?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let max_packet_bytes = settings.max_packet_bytes;
        let name = format!("mqtt {}", settings.client_id);
        let link = Arc::new(Link::new(settings));
        let worker = Arc::clone(&link);
        thread::Builder::new()
            .name(name)
            .spawn(move || runtime.block_on(link::run(worker, options, events, seed)))
            .map_err(MqttError::Start)?;
        Ok((Self { link, max_packet_bytes }, receiver))
    }

    /// Throws the client away and builds a new one; what is queued or unacknowledged is sent again.
    ///
    /// For the owner who sees that nothing arrives any more although the link says it is up. The
    /// link does so by itself when the broker acknowledges nothing for `stall_s`.
    pub fn kick(&self) {
        self.link.kick("asked to start again");
    }

    /// Bytes that wait to be sent or acknowledged by the broker.
    pub fn queued_bytes(&self) -> usize {
        self.link.state().outbox.bytes()
    }
}

impl Bus for MqttBus {
    fn subscribe(&self, filters: &[String]) -> Result<(), BusError> {
        let mut state = self.link.state();
        if state.is_closing() {
            return Err(BusError::Closed);
        }
        for wanted in filters {
            if !filter::is_filter(wanted) {
                tracing::error!(filter = %wanted, "not a topic filter, never subscribed");
                continue;
            }
            state.filters.insert(wanted.clone());
            state.unsubscribed.insert(wanted.clone());
        }
        drop(state);
        self.link.wake_sender();
        Ok(())
    }

    fn publish(&self, message: Publish) -> Result<(), BusError> {
        let bytes = packet_bytes(&message);
        if bytes > self.max_packet_bytes || u16::try_from(message.topic.len()).is_err() {
            let limit = self.max_packet_bytes;
            return Err(BusError::TooLarge { topic: message.topic, bytes, limit });
        }
        let mut state = self.link.state();
        if state.is_closing() {
            return Err(BusError::Closed);
        }
        state.outbox.push(message.priority, Message::from(message))?;
        drop(state);
        self.link.wake_sender();
        Ok(())
    }

    /// Returns at once; the events' receiver ends when the goodbye was said.
    fn close(&self, drain_ms: u64) {
        self.link.close(drain_ms);
    }
}

impl Drop for MqttBus {
    fn drop(&mut self) {
        self.link.close(0);
    }
}

/// Size of the whole PUBLISH packet: fixed header, topic, packet identifier, payload.
fn packet_bytes(message: &Publish) -> usize {
    let identifier = if message.at_least_once { 2 } else { 0 };
    let remaining = 2 + message.topic.len() + identifier + message.payload.len();
    let length_bytes = match remaining {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    };
    1 + length_bytes + remaining
}

/// Events that wait for the owner; what comes after waits inside the byte budget.
const EVENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Priority;

    fn message(payload: usize) -> Publish {
        Publish {
            topic: "a/b".into(),
            payload: vec![0; payload],
            at_least_once: true,
            retain: false,
            priority: Priority::Update,
        }
    }

    #[test]
    fn packet_bytes_counts_what_goes_over_the_wire() {
        // 2 + 3 (topic) + 2 (identifier) + payload, plus 1 + 1..4 bytes of fixed header.
        assert_eq!(packet_bytes(&message(0)), 9);
        assert_eq!(packet_bytes(&message(120)), 2 + 127);
        assert_eq!(packet_bytes(&message(121)), 3 + 128);
        assert_eq!(packet_bytes(&message(16_377)), 4 + 16_384);
    }

    #[test]
    fn message_over_the_limit_is_refused_before_it_is_queued() {
        let mut settings = MqttSettings::new("127.0.0.1", 1, "n");
        settings.max_packet_bytes = 2_000;
        let (bus, _events) = MqttBus::connect(settings, 1).unwrap();
        let refused = bus.publish(message(2_000)).unwrap_err();
        assert_eq!(refused.kind(), "packet_too_large");
        assert_eq!(bus.queued_bytes(), 0);
        bus.publish(message(900)).unwrap();
        assert!(bus.queued_bytes() > 900);
    }

    #[test]
    fn closed_link_takes_nothing() {
        let (bus, _events) = MqttBus::connect(MqttSettings::new("127.0.0.1", 1, "n"), 1).unwrap();
        bus.close(0);
        assert_eq!(bus.publish(message(1)), Err(BusError::Closed));
        assert_eq!(bus.subscribe(&["a".into()]), Err(BusError::Closed));
    }
}
