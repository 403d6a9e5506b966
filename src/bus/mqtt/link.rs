//! The link's thread: builds the client, polls it, and throws it away when it has to start afresh.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Packet,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use super::acks::{AckQueue, Ticket};
use super::backoff::Backoff;
use super::budget::{Budget, Share};
use super::outbox::Outbox;
use super::reason::{is_too_large, reason};
use super::sender;
use super::settings::MqttSettings;
use crate::bus::{Ack, BusEvent, Delivery};

/// What the owner's handle, the poll task and the sender task share.
pub(super) struct Link {
    pub(super) settings: MqttSettings,
    state: Mutex<State>,
    wake: Notify,
    budget: Arc<Budget>,
}

/// Behind the lock, which is never held over an await.
pub(super) struct State {
    pub(super) outbox: Outbox,
    pub(super) acks: AckQueue,
    /// All filters the owner wants.
    pub(super) filters: BTreeSet<String>,
    /// Those of them that have to be sent to the broker.
    pub(super) unsubscribed: BTreeSet<String>,
    /// Those that the broker refused: asked again at each connection, since its access list may have
    /// been mended.
    pub(super) refused: BTreeSet<String>,
    pub(super) connected: bool,
    /// The next client begins a new session: the old one holds a packet that can't be read.
    forget_session: bool,
    pub(super) order: Order,
}

/// What the owner or the watchdog wants of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Go on.
    Run,
    /// Throw the client away and build a new one.
    Rebuild { reason: String },
    /// Say goodbye when all is sent, at the latest after this time.
    Close { drain_ms: u64 },
}

impl State {
    /// All filters have to be sent to the broker.
    fn resubscribe(&mut self) {
        self.unsubscribed.clone_from(&self.filters);
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.order, Order::Close { .. })
    }
}

impl Link {
    pub(super) fn new(settings: MqttSettings) -> Self {
        let state = State {
            outbox: Outbox::new(settings.outbox_bytes, settings.in_flight.into()),
            acks: AckQueue::default(),
            filters: BTreeSet::new(),
            unsubscribed: BTreeSet::new(),
            refused: BTreeSet::new(),
            connected: false,
            forget_session: false,
            order: Order::Run,
        };
        let budget = Budget::new(settings.inbox_bytes);
        Self { settings, state: Mutex::new(state), wake: Notify::new(), budget }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one short block without a panic: it is whole even then.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake_sender(&self) {
        self.wake.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn kick(&self, reason: &str) {
        let mut state = self.state();
        if state.order == Order::Run {
            state.order = Order::Rebuild { reason: reason.into() };
        }
        drop(state);
        self.wake_sender();
    }

    pub(super) fn close(&self, drain_ms: u64) {
        let mut state = self.state();
        if !state.is_closing() {
            state.order = Order::Close { drain_ms };
        }
        drop(state);
        self.wake_sender();
    }

    fn connected(&self, fresh: bool) {
        let mut state = self.state();
        state.connected = true;
        let refused = std::mem::take(&mut state.refused);
        state.unsubscribed.extend(refused);
        if fresh {
            state.resubscribe();
        }
        drop(state);
        self.wake_sender();
    }

    fn disconnected(&self) {
        let mut state = self.state();
        state.connected = false;
        state.acks.reset();
    }

    /// The client is gone. Why another one is to be built; `None` if the link is closed.
    fn start_over(&self) -> Option<String> {
        let mut state = self.state();
        state.outbox.all_again();
        state.resubscribe();
        let Order::Rebuild { reason } = &state.order else { return None };
        let reason = reason.clone();
        state.order = Order::Run;
        Some(reason)
    }

    fn release(&self, ticket: Ticket) {
        let mut state = self.state();
        state.acks.release(ticket);
        let ready = state.acks.is_ready();
        drop(state);
        if ready {
            self.wake_sender();
        }
    }
}

/// Runs until the owner closes the link. The events' channel ends with it.
pub(super) async fn run(
    link: Arc<Link>,
    options: MqttOptions,
    events: mpsc::Sender<BusEvent>,
    seed: u64,
) {
    let (inbox, arrivals) = mpsc::unbounded_channel();
    let forwarder = tokio::spawn(forward(Arc::clone(&link), arrivals, events));
    let mut backoff = Backoff::new(seed, link.settings.retry_min_ms, link.settings.retry_max_ms);
    loop {
        let forgets = std::mem::take(&mut link.state().forget_session);
        let mut options = options.clone();
        options.set_clean_session(forgets);
        let (client, mut event_loop) =
            match AsyncClient::builder(options).capacity(REQUESTS).try_build() {
                Ok(built) => built,
                Err(error) => {
                    let _ = inbox.send(BusEvent::Disconnected { reason: error.to_string() });
                    break;
                }
            };
        event_loop.set_network_options(network_options(&link.settings));
        let signals = Arc::new(Signals::default());
        let sending = tokio::spawn(sender::run(
            Arc::clone(&link),
            client.clone(),
            inbox.clone(),
            Arc::clone(&signals),
        ));
        poll(&link, &client, &mut event_loop, &signals, &inbox, &mut backoff, forgets).await;
        drop(event_loop);
        sending.abort();
        let _ = sending.await;

        link.disconnected();
        let Some(reason) = link.start_over() else { break };
        let _ = inbox.send(BusEvent::Disconnected { reason });
        sleep(backoff.next()).await;
    }
    drop(inbox);
    let _ = forwarder.await;
}

/// Between the poll task and the sender task of one client.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// The sender has put something into the client's queue.
    pub(super) queued: Notify,
    /// The client is to be dropped, now.
    pub(super) stop: Notify,
}

/// Polls until the client is done for. Nothing here waits for the owner but [`throttle`].
async fn poll(
    link: &Arc<Link>,
    client: &AsyncClient,
    event_loop: &mut EventLoop,
    signals: &Signals,
    inbox: &mpsc::UnboundedSender<BusEvent>,
    backoff: &mut Backoff,
    forgets: bool,
) {
    let mut up_since = None;
    loop {
        throttle(link, client, signals).await;
        // Not cancel-safe, and needn't be: after `stop` the event loop is dropped.
        let polled = tokio::select! {
            biased;
            () = signals.stop.notified() => return,
            polled = event_loop.poll() => polled,
        };
        match polled {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                let fresh = !ack.session_present;
                up_since = Some(Instant::now());
                let _ = inbox.send(BusEvent::Connected { fresh });
                link.connected(fresh);
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                if let Some(delivery) = arrive(link, client, publish) {
                    let _ = inbox.send(BusEvent::Delivery(delivery));
                }
            }
            Ok(_) => {}
            Err(ConnectionError::RequestsDone | ConnectionError::DisconnectTimeout) => return,
            Err(error) => {
                // What was read before the error is sent again by the broker.
                event_loop.state.events.clear();
                link.disconnected();
                let unreadable = is_too_large(&error);
                let reason = reason(&error, &link.settings);
                let _ = inbox.send(BusEvent::Disconnected { reason: reason.clone() });
                if unreadable || forgets {
                    // A session that holds it would bring it at each connection; the one without
                    // memory is for one connection only.
                    link.state().forget_session = unreadable && !forgets;
                    link.kick(&reason);
                }
                let lived = up_since.take().map(|since: Instant| since.elapsed());
                if lived.is_some_and(|lived| lived >= backoff.good_after()) {
                    backoff.reset();
                }
                tokio::select! {
                    biased;
                    () = signals.stop.notified() => return,
                    () = sleep(backoff.next()) => {}
                }
            }
        }
    }
}

/// Stops reading while the owner is behind; the socket's window then slows the broker down.
///
/// What we have to send still goes out, and half a keep-alive of silence is broken: rumqttc sends no
/// ping while there is something to read. An UNSUBSCRIBE of a filter that nobody has is the only
/// request without a side effect that a client may make at any time.
async fn throttle(link: &Link, client: &AsyncClient, signals: &Signals) {
    while link.budget.is_used_up() {
        tokio::select! {
            biased;
            () = link.budget.freed() => {}
            () = signals.queued.notified() => return,
            () = sleep(Duration::from_secs(link.settings.keep_alive_s.into()) / 2) => {
                let _ = client.try_unsubscribe("gaisnet/keep-alive");
                return;
            }
        }
    }
}

fn arrive(link: &Arc<Link>, client: &AsyncClient, publish: rumqttc::Publish) -> Option<Delivery> {
    let ticket = client.prepare_ack(&publish).map(|ack| link.state().acks.arrived(ack));
    let Ok(topic) = String::from_utf8(publish.topic.to_vec()) else {
        tracing::warn!("a topic that isn't UTF-8 was dropped");
        if let Some(ticket) = ticket {
            link.release(ticket);
        }
        return None;
    };
    let share = link.budget.take(topic.len() + publish.payload.len() + OVERHEAD_BYTES);
    let ack = match ticket {
        Some(ticket) => {
            let held = Held { link: Arc::clone(link), ticket, _share: share };
            Ack::new(move || held.link.release(held.ticket))
        }
        None => Ack::new(move || drop(share)),
    };
    let payload = Vec::from(publish.payload);
    Some(Delivery { topic, payload, retained: publish.retain, ack })
}

/// An arrival in the owner's hands.
struct Held {
    link: Arc<Link>,
    ticket: Ticket,
    _share: Share,
}

impl Drop for Held {
    /// Dropped without [`Ack::release`], it would hold back all later acknowledgements, and the
    /// broker sends it again only over a new connection: so make one.
    fn drop(&mut self) {
        if self.link.state().acks.is_open(self.ticket) {
            self.link.kick("a delivery was dropped without being acknowledged");
        }
    }
}

/// Hands events to the owner, who may be slow.
async fn forward(
    link: Arc<Link>,
    mut arrivals: mpsc::UnboundedReceiver<BusEvent>,
    events: mpsc::Sender<BusEvent>,
) {
    loop {
        let arrival = tokio::select! {
            biased;
            () = events.closed() => None,
            arrival = arrivals.recv() => arrival,
        };
        let Some(event) = arrival else { break };
        if events.send(event).await.is_err() {
            break;
        }
    }
    link.close(0);
}

fn network_options(settings: &MqttSettings) -> NetworkOptions {
    let mut options = NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options.set_connection_timeout(settings.connection_timeout_s);
    options
}

/// Requests that wait inside the client: the window of messages, subscriptions and acknowledgements.
const REQUESTS: usize = 256;
/// What an arrival costs beside its bytes.
const OVERHEAD_BYTES: usize = 256;
