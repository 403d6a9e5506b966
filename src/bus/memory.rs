//! A broker in memory, for tests and the simulator: whole networks in one process, on tokio's clock.
//!
//! It does what an MQTT 3.1.1 broker with persistent sessions does (filters, retained values, last
//! wills, QoS 1 with redelivery, take-over of a client id) and, where [`Faults`] say so, what networks
//! do: lose, repeat, delay and reorder messages on the way to the broker and on the way from it, cut
//! a client off, restart the broker.
//!
//! Under `tokio::time::pause` on a current-thread runtime a run is a function of its seed: the same
//! seed gives the same [`MemoryBroker::trace`]. All queues are bounded.

mod agenda;
mod session;
mod state;

use std::collections::BTreeMap;
use std::future;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, mpsc};
use tokio::time::sleep_until;

use crate::bus::{Bus, BusError, BusEvent, Publish, filter};
use session::Returned;
use state::State;

/// What goes wrong on the way to the broker, and again on the way from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Names the run: which messages are hit.
    pub seed: u64,
    /// Probability that a message vanishes, whatever its QoS (a queue that overflowed, a broker
    /// that died after its acknowledgement).
    pub loss: f64,
    /// Probability that a QoS 1 message comes twice.
    pub duplicate: f64,
    /// Milliseconds on the way, uniform.
    pub delay_ms: RangeInclusive<u64>,
    /// Whether a later message may overtake an earlier one.
    pub reorder: bool,
}

impl Faults {
    /// A network that does no harm.
    pub fn none(seed: u64) -> Self {
        Self { seed, loss: 0.0, duplicate: 0.0, delay_ms: 0..=0, reorder: false }
    }
}

/// What a broker remembers over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Sessions, queues and retained values, as mosquitto with persistence.
    Kept,
    /// Nothing, as a broker that was killed.
    Lost,
}

/// One delivery, as the trace keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEntry {
    /// Virtual milliseconds since the broker was made.
    pub at_ms: u64,
    /// Who got it.
    pub client: String,
    /// On which topic.
    pub topic: String,
    /// First 8 bytes of the payload's SHA-256.
    pub digest: [u8; 8],
}

/// Messages that a network or a bounded queue swallowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// By [`Faults::loss`].
    pub faults: u64,
    /// Because a session's queue was full.
    pub overflow: u64,
}

/// A broker in memory. Clones are handles to the same one.
#[derive(Clone)]
pub struct MemoryBroker(Arc<Shared>);

impl MemoryBroker {
    /// Makes a broker. Must be called inside a tokio runtime, whose clock it lives by.
    pub fn new(faults: Faults) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(faults)),
            returned: Mutex::new(Vec::new()),
            wake: Arc::new(Notify::new()),
        });
        tokio::spawn(drive(Arc::downgrade(&shared), Arc::clone(&shared.wake)));
        Self(shared)
    }

    /// Connects a client with a persistent session. A client of the same id is thrown out, and its
    /// will published.
    pub fn connect(
        &self,
        client: &str,
        will: Option<Publish>,
    ) -> (MemoryBus, mpsc::Receiver<BusEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let instance = self.0.change(|state| state.join(client, will, events));
        (MemoryBus { shared: Arc::clone(&self.0), client: client.into(), instance }, receiver)
    }

    /// Other faults from now on; the seed of the first ones goes on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.change(|state| state.faults = faults);
    }

    /// Cuts a client off: the broker publishes its will and keeps its session.
    pub fn partition(&self, client: &str) {
        self.0.change(|state| state.partition(client));
    }

    /// Lets a client that was cut off come back.
    pub fn heal(&self, client: &str) {
        self.0.change(|state| state.heal(client));
    }

    /// Stops the broker for `down_ms`; clients come back within a second after it.
    pub fn restart(&self, memory: Memory, down_ms: u64) {
        self.0.change(|state| state.restart(memory, down_ms));
    }

    /// All deliveries so far, in order.
    pub fn trace(&self) -> Vec<TraceEntry> {
        self.0.state().trace.clone()
    }

    /// What was swallowed so far.
    pub fn losses(&self) -> Losses {
        self.0.state().losses
    }

    /// The retained values, by topic.
    pub fn retained(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.state().retained_values()
    }
}

/// A client's link to a [`MemoryBroker`]. Dropped without [`Bus::close`] it is a crash: the broker
/// publishes the will.
pub struct MemoryBus {
    shared: Arc<Shared>,
    client: String,
    instance: u64,
}

impl Bus for MemoryBus {
    fn subscribe(&self, filters: &[String]) -> Result<(), BusError> {
        let valid: Vec<String> = filters.iter().filter(|f| filter::is_filter(f)).cloned().collect();
        self.shared.change(|state| state.subscribe(&self.client, self.instance, &valid))
    }

    fn publish(&self, message: Publish) -> Result<(), BusError> {
        let bytes = message.topic.len() + message.payload.len() + HEADER_BYTES;
        if bytes > PACKET_BYTES {
            let (topic, limit) = (message.topic, PACKET_BYTES);
            return Err(BusError::TooLarge { topic, bytes, limit });
        }
        self.shared.change(|state| state.publish(&self.client, self.instance, message))
    }

    fn close(&self, drain_ms: u64) {
        self.shared.change(|state| state.close(&self.client, self.instance, drain_ms));
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.shared.change(|state| state.crash(&self.client, self.instance));
    }
}

/// What the handles and the driver share.
struct Shared {
    state: Mutex<State>,
    /// Deliveries that owners are done with. Apart from the state, because a delivery may be dropped
    /// while the state is locked.
    returned: Mutex<Vec<Returned>>,
    wake: Arc<Notify>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.wake.notify_one();
        changed
    }

    fn give_back(&self, returned: Returned) {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).push(returned);
        self.wake.notify_one();
    }

    fn take_returned(&self) -> Vec<Returned> {
        std::mem::take(&mut *self.returned.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// Does what is due until the last handle is gone.
async fn drive(shared: Weak<Shared>, wake: Arc<Notify>) {
    loop {
        let next = {
            let Some(shared) = shared.upgrade() else { return };
            let returned = shared.take_returned();
            let mut state = shared.state();
            for one in returned {
                state.take_back(one);
            }
            state.run_due(&Arc::downgrade(&shared));
            state.next_due()
        };
        tokio::select! {
            biased;
            () = wake.notified() => {}
            () = async {
                match next {
                    Some(due) => sleep_until(due).await,
                    None => future::pending().await,
                }
            } => {}
        }
    }
}

/// Events that wait for a client: its window of deliveries and a reserve for news of the link.
const EVENTS: usize = 256;
/// Largest message, as EMQX has it.
const PACKET_BYTES: usize = 1 << 20;
/// Fixed header, lengths and packet identifier, at most.
const HEADER_BYTES: usize = 9;

#[cfg(test)]
mod tests;
