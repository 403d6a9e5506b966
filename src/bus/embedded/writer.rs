//! Everything that goes to one client, and the bookkeeping that it shares with what comes from it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use rumqttd::Notification;
use rumqttd::local::LinkRx;
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::{Packet, Protocol, Publish, SubAck, SubscribeReasonCode};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::front::{Front, Session};
use super::names;
use super::packet::{Ended, Head, put_publish};
use super::stats::{Counters, count};

/// What one connection has in the air.
#[derive(Debug, Default)]
pub(super) struct Flow {
    inner: Mutex<Inner>,
    /// An acknowledgement can go to the router.
    released: Notify,
    /// The writer may send more retained values.
    room: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    filters: BTreeMap<String, u8>,
    /// SUBSCRIBEs without an answer: filters with the QoS granted, `None` if refused.
    asked: BTreeMap<u16, Answers>,
    /// The router's packet identifiers in its order, and whether the client has the message.
    in_flight: VecDeque<(u16, bool)>,
    /// Topics whose retained value is to be sent, with the QoS granted.
    owed: VecDeque<(String, u8)>,
    /// Topics whose retained value was sent with QoS 1, by packet identifier.
    sent: BTreeMap<u16, String>,
    last_pkid: u16,
}

type Answers = Vec<(String, Option<u8>)>;

impl Flow {
    pub(super) fn new(session: Session) -> Self {
        let owed = session.owed.into_iter().map(|topic| (topic, 1)).collect();
        let inner = Inner { filters: session.filters, owed, ..Inner::default() };
        Self { inner: Mutex::new(inner), ..Self::default() }
    }

    /// What the client finds when it comes back.
    pub(super) fn session(&self) -> Session {
        let inner = self.lock();
        let unsent = inner.owed.iter().filter(|(_, qos)| *qos > 0).map(|(topic, _)| topic);
        let owed: BTreeSet<String> = unsent.chain(inner.sent.values()).cloned().collect();
        Session { filters: inner.filters.clone(), owed }
    }

    /// Notes a SUBSCRIBE that goes to the router. False if it can't.
    pub(super) fn asked(&self, pkid: u16, answers: Answers) -> bool {
        let mut inner = self.lock();
        let full = inner.filters.len() + answers.len() > FILTERS || inner.asked.len() > FILTERS;
        !full && inner.asked.insert(pkid, answers).is_none()
    }

    /// Forgets a filter. False if it wasn't there.
    pub(super) fn unsubscribed(&self, filter: &str) -> bool {
        self.lock().filters.remove(filter).is_some()
    }

    /// The client has a message, whoever numbered it.
    pub(super) fn acknowledged(&self, pkid: u16) {
        let mut inner = self.lock();
        if pkid >= FIRST_PKID {
            inner.sent.remove(&pkid);
            drop(inner);
            self.room.notify_one();
        } else if let Some(entry) =
            inner.in_flight.iter_mut().find(|(id, done)| *id == pkid && !done)
        {
            entry.1 = true;
        }
    }

    /// The next acknowledgement that the router may see.
    pub(super) fn next_acknowledged(&self) -> Option<u16> {
        let mut inner = self.lock();
        match inner.in_flight.front() {
            Some((_, true)) => inner.in_flight.pop_front().map(|(pkid, _)| pkid),
            _ => None,
        }
    }

    /// Waits until [`Self::next_acknowledged`] may have something that the client didn't cause.
    pub(super) async fn released(&self) {
        self.released.notified().await;
    }

    /// A message with the router's identifier goes out; it needs no acknowledgement by the client if
    /// it was published with QoS 0.
    fn forwarded(&self, pkid: u16, wants_ack: bool) {
        self.lock().in_flight.push_back((pkid, !wants_ack));
        if !wants_ack {
            self.released.notify_one();
        }
    }

    /// The router has answered a SUBSCRIBE.
    fn answered(&self, pkid: u16, retained: impl Fn(&str) -> Vec<String>) -> Option<SubAck> {
        let mut inner = self.lock();
        let answers = inner.asked.remove(&pkid)?;
        let mut return_codes = Vec::with_capacity(answers.len());
        for (filter, granted) in answers {
            let Some(qos) = granted else {
                return_codes.push(SubscribeReasonCode::Failure);
                continue;
            };
            inner.owed.extend(retained(&filter).into_iter().map(|topic| (topic, qos)));
            inner.filters.insert(filter, qos);
            let code = if qos == 0 { SubscribeReasonCode::QoS0 } else { SubscribeReasonCode::QoS1 };
            return_codes.push(code);
        }
        Some(SubAck { pkid, return_codes })
    }

    /// The next retained value's topic with the QoS granted, if one may be sent now.
    fn next_owed(&self) -> Option<(String, u8)> {
        let mut inner = self.lock();
        if inner.sent.len() >= WINDOW {
            return None;
        }
        inner.owed.pop_front()
    }

    /// A free packet identifier for a retained value.
    fn number(&self, topic: String) -> u16 {
        let mut inner = self.lock();
        loop {
            let next = inner.last_pkid.checked_add(1).unwrap_or(FIRST_PKID).max(FIRST_PKID);
            inner.last_pkid = next;
            if let Entry::Vacant(free) = inner.sent.entry(next) {
                free.insert(topic);
                return next;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes until the socket or the router fails.
pub(super) async fn run(
    front: Arc<Front>,
    flow: Arc<Flow>,
    mut socket: OwnedWriteHalf,
    mut replies: mpsc::Receiver<Packet>,
    mut from_router: LinkRx,
    counters: Arc<Counters>,
) -> Result<(), Ended> {
    let mut writer = Writer { front, flow: Arc::clone(&flow), counters, out: BytesMut::new() };
    loop {
        let mut paused = false;
        tokio::select! {
            biased;
            reply = replies.recv() => match reply {
                Some(packet) => writer.put(packet)?,
                None => return Ok(()),
            },
            notification = from_router.next() => {
                paused = writer.notified(notification.map_err(|e| Ended::Router(e.to_string()))?)?;
            }
            () = flow.room.notified() => {}
        }
        while writer.out.len() < BATCH_BYTES {
            if let Ok(packet) = replies.try_recv() {
                writer.put(packet)?;
            } else if let Some(notification) = at_once(from_router.next()).await {
                let notification = notification.map_err(|e| Ended::Router(e.to_string()))?;
                paused |= writer.notified(notification)?;
            } else if !writer.retained() {
                break;
            }
        }
        if writer.out.len() >= BATCH_BYTES {
            // There may be more of everything: come back even if nobody wakes us.
            flow.room.notify_one();
        }
        count(&writer.counters.bytes_out, writer.out.len());
        let writing = socket.write_all_buf(&mut writer.out);
        timeout(PATIENCE, writing).await.map_err(|_| Ended::Stalled)??;
        if paused {
            from_router.ready().map_err(|e| Ended::Router(e.to_string()))?;
        }
    }
}

struct Writer {
    front: Arc<Front>,
    flow: Arc<Flow>,
    counters: Arc<Counters>,
    out: BytesMut,
}

impl Writer {
    fn put(&mut self, packet: Packet) -> Result<(), Ended> {
        V4.write(packet, &mut self.out)?;
        Ok(())
    }

    /// Handles what the router says; true if it waits for us to ask for more.
    fn notified(&mut self, notification: Option<Notification>) -> Result<bool, Ended> {
        match notification {
            Some(Notification::Forward(forward)) => self.forward(&forward.publish),
            Some(Notification::Unschedule) => return Ok(true),
            Some(Notification::Disconnect(..)) => {
                return Err(Ended::Router("it threw the client out".into()));
            }
            Some(notification @ Notification::DeviceAck(_)) => {
                if let Some(Packet::SubAck(ack, _)) = notification.into() {
                    let retained = |filter: &str| self.front.retained().topics(filter);
                    if let Some(answer) = self.flow.answered(ack.pkid, retained) {
                        self.put(Packet::SubAck(answer, None))?;
                    }
                }
            }
            _ => {}
        }
        Ok(false)
    }

    fn forward(&mut self, publish: &Publish) {
        let Head { qos, pkid } = Head::of(publish);
        let Some((published_qos, topic)) =
            std::str::from_utf8(&publish.topic).ok().and_then(names::outer_topic)
        else {
            tracing::error!(topic = ?publish.topic, "the router passed on a topic that isn't ours");
            return;
        };
        let wants_ack = qos > 0 && published_qos > 0;
        if qos > 0 {
            self.flow.forwarded(pkid, wants_ack);
        }
        let pkid = wants_ack.then_some(pkid);
        put_publish(&mut self.out, topic, &publish.payload, pkid, false);
        count(&self.counters.messages_out, 1);
    }

    /// Writes one retained value; false if there is none to write now.
    fn retained(&mut self) -> bool {
        let Some((topic, granted)) = self.flow.next_owed() else { return false };
        let value = self.front.retained().get(&topic).cloned();
        if let Some(value) = value {
            let pkid = (granted.min(value.qos) > 0).then(|| self.flow.number(topic.clone()));
            put_publish(&mut self.out, &topic, &value.payload, pkid, true);
            count(&self.counters.messages_out, 1);
        }
        true
    }
}

/// What a future has to say without waiting.
async fn at_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The router numbers its messages from 1 to 100; retained values are numbered from here.
const FIRST_PKID: u16 = 1_000;
/// Retained values that a client hasn't acknowledged, at most.
const WINDOW: usize = 100;
/// Filters of one client.
const FILTERS: usize = 10_000;
/// Bytes that are written at a time.
const BATCH_BYTES: usize = 64 << 10;
/// A client that takes nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn router_sees_acknowledgements_in_its_own_order() {
        let flow = Flow::default();
        for (pkid, wants_ack) in [(1, true), (2, false), (3, true)] {
            flow.forwarded(pkid, wants_ack);
        }
        flow.acknowledged(3);
        flow.acknowledged(77);
        assert_eq!(flow.next_acknowledged(), None);
        flow.acknowledged(1);
        let passed: Vec<u16> = std::iter::from_fn(|| flow.next_acknowledged()).collect();
        assert_eq!(passed, [1, 2, 3]);
    }

    #[test]
    fn refused_filter_is_answered_in_its_place() {
        let flow = Flow::default();
        let answers = vec![("a".into(), Some(1)), ("b".into(), None), ("c".into(), Some(0))];
        assert!(flow.asked(7, answers.clone()) && !flow.asked(7, answers));
        let ack = flow.answered(7, |filter| vec![format!("{filter}/kept")]).unwrap();
        let expected =
            [SubscribeReasonCode::QoS1, SubscribeReasonCode::Failure, SubscribeReasonCode::QoS0];
        assert_eq!(ack.return_codes, expected);
        assert!(flow.answered(0, |_| Vec::new()).is_none());
        assert_eq!(flow.next_owed(), Some(("a/kept".into(), 1)));
        assert!(flow.unsubscribed("a") && !flow.unsubscribed("b"));
    }

    #[test]
    fn retained_values_wait_for_room_and_are_owed_after_a_reconnect() {
        let owed: BTreeSet<String> = (0..150).map(|n| format!("t/{n:03}")).collect();
        let flow = Flow::new(Session { filters: BTreeMap::new(), owed: owed.clone() });
        let mut first = None;
        while let Some((topic, _)) = flow.next_owed() {
            first.get_or_insert(flow.number(topic));
        }
        assert_eq!(flow.session().owed, owed);
        flow.acknowledged(first.unwrap());
        assert_eq!(flow.session().owed.len(), 149);
        assert_eq!(flow.next_owed().unwrap().0, "t/100");
    }
}
