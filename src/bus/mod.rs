//! The port to a broker, and its implementations: MQTT 3.1.1 and one in memory for tests.
//!
//! A bus moves bytes. It knows no kinds, keys or rounds. What it promises is little: a message
//! that was acknowledged by us doesn't come back by itself; everything else (loss, repeats, old
//! retained values, late arrival) is the business of the layers above.
//!
//! Called by `actors/gateway.rs` (deliveries) and `actors/runner.rs` (publishing).

mod border;
#[cfg(feature = "broker")]
pub mod embedded;
mod filter;
pub mod memory;
#[cfg(feature = "mqtt")]
pub mod mqtt;

use std::fmt;

pub use border::{Border, Crossing, Line, Outgoing, SealError, ToCloud};

use crate::wire::StaysInSite;

/// What a link reports, in order, through a bounded channel.
#[derive(Debug)]
pub enum BusEvent {
    /// The broker accepted us. `fresh` when it kept no session: what was in flight is gone.
    Connected {
        /// No session was kept.
        fresh: bool,
    },
    /// The link is down; the bus tries again by itself with a jittered back-off.
    Disconnected {
        /// Cause, with the way out where we know one (wrong password, unreachable, TLS...).
        reason: String,
    },
    /// The broker refused a subscription (SUBACK 0x80): usually a missing ACL line.
    SubscriptionRefused {
        /// The filter it refused.
        filter: String,
    },
    /// A message arrived.
    Delivery(Delivery),
}

/// One message from the broker.
#[derive(Debug)]
pub struct Delivery {
    /// Topic name as the broker gave it: any UTF-8.
    pub topic: String,
    /// At most the configured packet size.
    pub payload: Vec<u8>,
    /// It was stored at the broker before we subscribed.
    pub retained: bool,
    /// Call when its effects are on disk.
    pub ack: Ack,
}

/// Acknowledges one delivery towards the broker. Dropped unused, the broker will send it again.
///
/// May be used in any order and from any thread: the bus releases acknowledgements in the order of
/// arrival, since some brokers disconnect otherwise.
pub struct Ack(Option<Box<dyn FnOnce() + Send>>);

impl Ack {
    /// Acknowledges through `release`.
    pub fn new(release: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(release)))
    }

    /// For QoS 0 and for tests: nothing to release.
    pub fn none() -> Self {
        Self(None)
    }

    /// Releases the delivery.
    pub fn release(self) {
        if let Some(release) = self.0 {
            release();
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ack")
    }
}

/// Which queue of a link a message waits in; lower ones never delay higher ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Presence, commands, replies, answers, receipts, offers.
    Control,
    /// Contributions and results.
    Update,
    /// Chunks: at most [`Priority::BULK_WINDOW`] in flight.
    Bulk,
    /// Chunks of a base: at most [`Priority::IDLE_WINDOW`] in flight, and at most
    /// [`Priority::IDLE_BYTES`] of them in the queue.
    Idle,
}

impl Priority {
    /// Chunks in flight at most.
    pub const BULK_WINDOW: usize = 8;
    /// What can wait, in flight at most.
    pub const IDLE_WINDOW: usize = 4;
    /// What can wait takes no more of a link's queue: the rest is left for rounds.
    pub const IDLE_BYTES: usize = 1 << 20;
}

/// A message for the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Topic name.
    pub topic: String,
    /// Bytes; checked against the packet limit before they are queued.
    pub payload: Vec<u8>,
    /// QoS 1 if true, else 0. QoS 2 is used nowhere.
    pub at_least_once: bool,
    /// The broker keeps it as the topic's last value.
    pub retain: bool,
    /// Its queue.
    pub priority: Priority,
}

/// Why a message or subscription wasn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The link's queue is full: try again later.
    #[error("the outgoing queue is full ({limit_bytes} bytes)")]
    Full {
        /// Its bound.
        limit_bytes: usize,
    },
    /// Larger than the broker takes: it would kill the connection again and again.
    #[error("message of {bytes} bytes on {topic} is over the packet limit of {limit} bytes")]
    TooLarge {
        /// Topic it was meant for.
        topic: String,
        /// Its size with header.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The link leaves the site, and the message may not.
    #[error(transparent)]
    StaysInSite(#[from] StaysInSite),
    /// The link was shut down.
    #[error("the link is closed")]
    Closed,
}

impl BusError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Full { .. } => "bus_full",
            Self::TooLarge { .. } => "packet_too_large",
            Self::StaysInSite(_) => StaysInSite::KIND,
            Self::Closed => "bus_closed",
        }
    }
}

/// A link to one broker. Its events come through the channel that was made with it.
pub trait Bus: Send + Sync {
    /// Adds topic filters; they are subscribed now and after each reconnect without a session.
    ///
    /// # Errors
    /// [`BusError::Closed`].
    fn subscribe(&self, filters: &[String]) -> Result<(), BusError>;

    /// Queues a message. `Ok` means queued, no more: only a signed receipt proves arrival.
    ///
    /// # Errors
    /// [`BusError`].
    fn publish(&self, message: Publish) -> Result<(), BusError>;

    /// Says goodbye: what is queued goes out first, for at most `drain_ms`.
    fn close(&self, drain_ms: u64);
}
