//! What all connections share, and the loop that accepts them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{Packet, Publish};
use rumqttd::{Router, RouterConfig};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::access::Access;
use super::packet::Ended;
use super::retained::Retained;
use super::stats::Stats;
use super::{BrokerSettings, connection, names};

/// Links a client to the router: its name there, and whether its session is to be forgotten.
type Connector = Box<dyn Fn(&str, bool) -> Result<(LinkTx, LinkRx), Ended> + Send + Sync>;

/// The broker's state beside the router's.
pub(super) struct Front {
    pub(super) settings: BrokerSettings,
    pub(super) access: Access,
    pub(super) stats: Stats,
    pub(super) stopped: watch::Receiver<bool>,
    connector: Connector,
    retained: Mutex<Retained>,
    clients: Mutex<Clients>,
}

/// Clients by their inner name.
#[derive(Debug, Default)]
pub(super) struct Clients {
    slots: BTreeMap<String, Slot>,
    nameless: BTreeSet<u64>,
}

/// A client id's place: one connection at a time.
#[derive(Debug, Default)]
struct Slot {
    /// Throws the present connection out.
    current: Option<Arc<Notify>>,
    /// Held by the present connection until it has ended.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether the client wants a session that outlives its connection.
    keeps: bool,
    /// That session, while no connection has it.
    session: Option<Session>,
}

/// What the front keeps of a client that will come back; the router keeps its messages.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Filters with the QoS granted.
    pub(super) filters: BTreeMap<String, u8>,
    /// Topics whose retained value was to be delivered with QoS 1 and isn't acknowledged.
    pub(super) owed: BTreeSet<String>,
}

/// A connection's claim on its client id.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) name: String,
    pub(super) thrown_out: Arc<Notify>,
    /// The session that was kept, if one was.
    pub(super) session: Option<Session>,
    nameless: Option<u64>,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Front {
    pub(super) fn new(settings: BrokerSettings, stopped: watch::Receiver<bool>) -> Self {
        let config = RouterConfig {
            // The house has a connection too, and one that ends overlaps the one that follows.
            max_connections: settings.max_connections * 2 + 1,
            max_outgoing_packet_count: 200,
            max_segment_size: settings.segment_bytes,
            max_segment_count: settings.segments,
            ..RouterConfig::default()
        };
        let router = Router::new(0, config).spawn();
        let connector: Connector = Box::new(move |name, forget| {
            let link = LinkBuilder::new(name, router.clone()).clean_session(forget).build();
            let (to_router, from_router, _) =
                link.map_err(|error| Ended::Router(error.to_string()))?;
            Ok((to_router, from_router))
        });
        Self {
            access: Access::new(settings.users.clone()),
            stats: Stats::default(),
            stopped,
            connector,
            retained: Mutex::new(Retained::new(settings.max_retained)),
            clients: Mutex::default(),
            settings,
        }
    }

    /// Waits for the router's answer, which takes microseconds.
    pub(super) fn link(&self, name: &str, forget: bool) -> Result<(LinkTx, LinkRx), Ended> {
        (self.connector)(name, forget)
    }

    pub(super) fn retained(&self) -> MutexGuard<'_, Retained> {
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a retained value and gives the message to the router. The router sees QoS 0 (its
    /// acknowledgements would say nothing that ours don't) and never a retain flag.
    pub(super) async fn publish(
        &self,
        to_router: &mut LinkTx,
        topic: &str,
        payload: bytes::Bytes,
        qos: u8,
        retain: bool,
    ) -> Result<(), Ended> {
        if retain && !self.retained().set(topic, &payload, qos) {
            tracing::warn!(topic, "no room for another retained value (max_retained)");
        }
        let inner = bytes::Bytes::from(names::inner_topic(topic, qos));
        let packet = Packet::Publish(Publish::new(inner, payload, false), None);
        to_router.send(packet).await.map_err(|error| Ended::Router(error.to_string()))?;
        Ok(())
    }

    /// Throws out the connection that holds the id, and waits until it is gone with its will
    /// published. Without an id the client gets a name that nobody else has.
    ///
    /// `None` when no more sessions are kept.
    pub(super) async fn claim(&self, user: &str, client: &str, forget: bool) -> Option<Claim> {
        let thrown_out = Arc::new(Notify::new());
        let (name, nameless, turn) = {
            let mut clients = self.clients();
            let nameless = client.is_empty().then(|| clients.number());
            let name = match nameless {
                Some(number) => names::inner_nameless(number),
                None => names::inner_client(user, client),
            };
            let slot = clients.slots.entry(name.clone()).or_default();
            if let Some(current) = slot.current.replace(Arc::clone(&thrown_out)) {
                current.notify_one();
            }
            (name, nameless, Arc::clone(&slot.turn))
        };
        let mut claim =
            Claim { name, thrown_out, session: None, nameless, _turn: turn.lock_owned().await };

        let mut clients = self.clients();
        let kept = clients.slots.values().filter(|slot| slot.keeps).count();
        let slot = clients.slots.entry(claim.name.clone()).or_default();
        let session = slot.session.take();
        if forget {
            slot.keeps = false;
        } else if slot.keeps || kept < self.settings.max_sessions {
            slot.keeps = true;
            claim.session = session;
        } else {
            drop(clients);
            self.release(claim, None);
            return None;
        }
        drop(clients);
        Some(claim)
    }

    /// Gives a client id back, with the session if it is to be kept; then it is the next one's turn.
    pub(super) fn release(&self, claim: Claim, session: Option<Session>) {
        let mut clients = self.clients();
        if let Some(number) = claim.nameless {
            clients.nameless.remove(&number);
        }
        if let Some(slot) = clients.slots.get_mut(&claim.name) {
            let ours = |current: &Arc<Notify>| Arc::ptr_eq(current, &claim.thrown_out);
            slot.session = session;
            if slot.current.as_ref().is_some_and(ours) {
                slot.current = None;
                if !slot.keeps {
                    clients.slots.remove(&claim.name);
                }
            }
        }
        drop(clients);
        drop(claim);
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clients {
    /// The lowest number that no nameless client has. The router remembers each name for ever, so
    /// they are used again.
    fn number(&mut self) -> u64 {
        let mut number = 0;
        while !self.nameless.insert(number) {
            number += 1;
        }
        number
    }
}

/// Accepts connections until the broker stops; then waits for them to end.
pub(super) async fn accept(front: Arc<Front>, listener: TcpListener) {
    let mut stopped = front.stopped.clone();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop(&mut stopped) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) if connections.len() < front.settings.max_connections => {
                connections.spawn(connection::serve(Arc::clone(&front), socket, peer));
            }
            Ok((_, peer)) => tracing::warn!(%peer, "no room for another connection"),
            Err(error) => {
                // Out of file descriptors, mostly: it gets better when somebody leaves.
                tracing::warn!(%error, "cannot accept");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(GOODBYE, all_ended).await;
}

/// Waits until the broker stops.
pub(super) async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Wait after a failed accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What connections may take to end when the broker stops.
const GOODBYE: Duration = Duration::from_secs(2);
