//! The sender task: the only one that gives the client something to do, never waiting for room.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ClientError, PublishOptions, QoS, SubscribeFilterInput, SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::link::{Link, Order, Signals};
use super::outbox::{Message, Place};
use crate::bus::BusEvent;

/// Serves one client until the link is closed or the client is to be thrown away.
pub(super) async fn run(
    link: Arc<Link>,
    client: AsyncClient,
    inbox: mpsc::UnboundedSender<BusEvent>,
    signals: Arc<Signals>,
) {
    let mut sender = Sender {
        link: Arc::clone(&link),
        client,
        inbox,
        published: JoinSet::new(),
        subscribed: JoinSet::new(),
        last_progress: Instant::now(),
        close_at: None,
    };
    loop {
        if sender.pump() {
            signals.queued.notify_one();
        }
        if sender.is_over() {
            // In line behind the acknowledgements that were just queued.
            let _ = sender.client.try_disconnect_with_timeout(GOODBYE);
            signals.queued.notify_one();
            sleep(GOODBYE).await;
            signals.stop.notify_one();
            return;
        }
        tokio::select! {
            biased;
            () = link.woken() => {}
            Some(settled) = sender.published.join_next() => {
                sender.settle(settled.ok());
                while let Some(settled) = sender.published.try_join_next() {
                    sender.settle(settled.ok());
                }
            }
            Some(answered) = sender.subscribed.join_next() => sender.subscribed(answered.ok()),
            () = sleep(TICK) => {}
        }
    }
}

struct Sender {
    link: Arc<Link>,
    client: AsyncClient,
    inbox: mpsc::UnboundedSender<BusEvent>,
    /// Place of each message in flight, and whether the broker has it.
    published: JoinSet<(Place, bool)>,
    /// Filters of each SUBSCRIBE, and whether each was granted; `None` if it got no answer.
    subscribed: JoinSet<(Vec<String>, Option<Vec<bool>>)>,
    last_progress: Instant,
    close_at: Option<Instant>,
}

impl Sender {
    /// Gives the client what it can take. Tells whether it gave anything.
    fn pump(&mut self) -> bool {
        let link = Arc::clone(&self.link);
        let mut state = link.state();
        if !state.connected {
            return false;
        }
        let mut given = false;
        while state.acks.send_next(|ack| self.client.try_manual_ack(ack).is_ok()) {
            given = true;
        }
        while !state.unsubscribed.is_empty() {
            let some: Vec<String> =
                state.unsubscribed.iter().take(FILTERS_A_PACKET).cloned().collect();
            if !self.subscribe(&some) {
                break;
            }
            state.unsubscribed.retain(|filter| !some.contains(filter));
            given = true;
        }
        // What is published goes out when all subscriptions are granted: rumqttc would let it overtake,
        // and an answer could be missed. A node that says it is online hears what it is asked.
        if !self.subscribed.is_empty() || !state.unsubscribed.is_empty() {
            return given;
        }
        while let Some((place, message)) = state.outbox.next() {
            match self.publish(place, message) {
                Ok(()) => given = true,
                Err(ClientError::InvalidRequest(request)) => {
                    tracing::error!(?request, "not a topic, never sent");
                    state.outbox.done(place);
                }
                Err(_) => {
                    state.outbox.again(place);
                    break;
                }
            }
        }
        given
    }

    fn publish(&mut self, place: Place, message: Message) -> Result<(), ClientError> {
        let qos = if message.at_least_once { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let options = PublishOptions::new(qos).retain(message.retain);
        let notice = self.client.try_publish_tracked(message.topic, message.payload, options)?;
        self.published.spawn(async move { (place, notice.wait_async().await.is_ok()) });
        Ok(())
    }

    fn subscribe(&mut self, filters: &[String]) -> bool {
        let wanted = filters.iter().map(|f| SubscribeFilterInput::new(f, QoS::AtLeastOnce));
        let Ok(notice) = self.client.try_subscribe_many_tracked(wanted) else { return false };
        let filters = filters.to_vec();
        self.subscribed.spawn(async move {
            let granted = notice.wait_async().await.ok().map(|ack| {
                ack.return_codes.iter().map(|c| *c != SubscribeReasonCode::Failure).collect()
            });
            (filters, granted)
        });
        true
    }

    fn settle(&mut self, settled: Option<(Place, bool)>) {
        let Some((place, arrived)) = settled else { return };
        let mut state = self.link.state();
        if arrived {
            state.outbox.done(place);
            self.last_progress = Instant::now();
        } else {
            state.outbox.again(place);
        }
    }

    fn subscribed(&mut self, answered: Option<(Vec<String>, Option<Vec<bool>>)>) {
        let Some((filters, granted)) = answered else { return };
        let Some(granted) = granted else {
            self.link.state().unsubscribed.extend(filters);
            return;
        };
        for (filter, granted) in filters.into_iter().zip(granted) {
            if !granted {
                self.link.state().refused.insert(filter.clone());
                let _ = self.inbox.send(BusEvent::SubscriptionRefused { filter });
            }
        }
    }

    /// Whether this client has come to its end: closed and drained, or to be replaced.
    fn is_over(&mut self) -> bool {
        let state = self.link.state();
        match state.order.clone() {
            Order::Rebuild { .. } => true,
            Order::Close { drain_ms } => {
                let close_at = *self
                    .close_at
                    .get_or_insert_with(|| Instant::now() + Duration::from_millis(drain_ms));
                let drained = state.outbox.is_empty() && !state.acks.is_ready();
                drained || Instant::now() >= close_at
            }
            Order::Run => {
                let waits = state.outbox.in_flight() > 0 || !self.subscribed.is_empty();
                if !state.connected || !waits {
                    self.last_progress = Instant::now();
                }
                drop(state);
                let stall_s = self.link.settings.stall_s;
                if self.last_progress.elapsed() < Duration::from_secs(stall_s) {
                    return false;
                }
                self.link.kick(&format!("the broker acknowledged nothing for {stall_s} s"));
                true
            }
        }
    }
}

/// Amazon's broker takes no more filters in one SUBSCRIBE.
const FILTERS_A_PACKET: usize = 8;
/// How often the watchdog looks, and what waits for room in the client is tried again.
const TICK: Duration = Duration::from_millis(250);
/// What a DISCONNECT may take.
const GOODBYE: Duration = Duration::from_millis(300);
