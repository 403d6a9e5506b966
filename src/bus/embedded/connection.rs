//! One client: handshake, everything it sends, and its end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttd::local::LinkTx;
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectReasonCode, Error as CodecError, Filter,
    LastWill, Login, Packet, PingResp, Protocol, PubAck, PubAckReason, PubComp, PubCompReason,
    PubRec, PubRecReason, Publish, QoS, RetainForwardRule, SubAck, Subscribe, SubscribeReasonCode,
    UnsubAck, Unsubscribe,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::access::Rights;
use super::front::{self, Claim, Front, Session};
use super::names;
use super::packet::{Ended, Head, PacketReader};
use super::stats::count;
use super::writer::{self, Flow};
use crate::bus::filter;

/// Serves a client until one of both is gone.
pub(super) async fn serve(front: Arc<Front>, socket: TcpStream, peer: SocketAddr) {
    // Without it a QoS 1 round trip takes 44 ms.
    let _ = socket.set_nodelay(true);
    let (read, mut write) = socket.into_split();
    let max_bytes = front.settings.max_payload_bytes + HEADER_BYTES;
    let mut packets = PacketReader::new(read, max_bytes, Arc::default());
    let hello = match timeout(HANDSHAKE, packets.next()).await {
        Ok(Ok(Packet::Connect(connect, _, will, _, login))) => Hello {
            keep_alive: connect.keep_alive,
            client: connect.client_id,
            forget: connect.clean_session,
            will,
            login,
        },
        Ok(Err(Ended::Codec(CodecError::InvalidProtocolLevel(level)))) => {
            tracing::info!(%peer, level, "refused: only MQTT 3.1.1 (level 4) is spoken here");
            refuse(&mut write, ConnectReturnCode::RefusedProtocolVersion).await;
            return;
        }
        _ => return,
    };
    packets.count_for(front.stats.counters(&hello.client));
    packets.set_keep_alive(hello.keep_alive);
    let client = hello.client.clone();
    match admit(&front, &hello).await {
        Ok((claim, rights)) => {
            let ended = Connection::run(&front, packets, write, hello, claim, rights).await;
            if let Err(error) = ended {
                tracing::info!(%peer, client, %error, "connection ended");
            }
        }
        Err((code, why)) => {
            tracing::warn!(%peer, client, why, "refused");
            refuse(&mut write, code).await;
        }
    }
}

/// What a client says first.
struct Hello {
    keep_alive: u16,
    client: String,
    forget: bool,
    will: Option<LastWill>,
    login: Option<Login>,
}

async fn admit(
    front: &Front,
    hello: &Hello,
) -> Result<(Claim, Rights), (ConnectReturnCode, &'static str)> {
    let (name, password) =
        hello.login.as_ref().map_or(("", ""), |login| (&login.username, &login.password));
    let Some(rights) = front.access.admit(name, password) else {
        count(&front.stats.refused_logins, 1);
        return Err((ConnectReturnCode::BadUserNamePassword, "wrong user name or password"));
    };
    if hello.client.is_empty() && !hello.forget {
        let code = ConnectReturnCode::ClientIdentifierNotValid;
        return Err((code, "a session needs a client id"));
    }
    if let Some(will) = &hello.will {
        let topic = std::str::from_utf8(&will.topic).unwrap_or_default();
        if !filter::is_topic(topic) || !rights.may_write(topic) {
            return Err((ConnectReturnCode::NotAuthorized, "its will is on a forbidden topic"));
        }
    }
    let claim = front.claim(&rights.user, &hello.client, hello.forget).await;
    let full = (ConnectReturnCode::ServiceUnavailable, "max_sessions is reached");
    claim.map(|claim| (claim, rights)).ok_or(full)
}

async fn refuse(write: &mut OwnedWriteHalf, code: ConnectReturnCode) {
    let mut out = BytesMut::new();
    let answer = Packet::ConnAck(ConnAck { session_present: false, code }, None);
    if V4.write(answer, &mut out).is_ok() {
        let _ = write.write_all(&out).await;
    }
}

/// A client that was admitted.
struct Connection<'a> {
    front: &'a Arc<Front>,
    client: String,
    rights: Rights,
    to_router: LinkTx,
    flow: Arc<Flow>,
    replies: mpsc::Sender<Packet>,
    /// QoS 2 messages that were passed on and aren't completed.
    received: BTreeSet<u16>,
}

impl<'a> Connection<'a> {
    async fn run(
        front: &'a Arc<Front>,
        mut packets: PacketReader<OwnedReadHalf>,
        write: OwnedWriteHalf,
        hello: Hello,
        mut claim: Claim,
        rights: Rights,
    ) -> Result<(), Ended> {
        let Hello { client, forget, mut will, .. } = hello;
        let session = claim.session.take();
        let session_present = session.is_some();
        let (mut to_router, from_router) = match front.link(&claim.name, forget) {
            Ok(link) => link,
            Err(error) => {
                front.release(claim, session);
                return Err(error);
            }
        };
        let session = session.unwrap_or_default();
        resubscribe(&mut to_router, &session).await?;
        let flow = Arc::new(Flow::new(session));
        let (replies, to_write) = mpsc::channel(REPLIES);
        let code = ConnectReturnCode::Success;
        let _ = replies.try_send(Packet::ConnAck(ConnAck { session_present, code }, None));
        let counters = Arc::clone(&packets.counters);
        let mut writing = tokio::spawn(writer::run(
            Arc::clone(front),
            Arc::clone(&flow),
            write,
            to_write,
            from_router,
            counters,
        ));
        let mut this =
            Self { front, client, rights, to_router, flow, replies, received: BTreeSet::new() };
        let mut stopped = front.stopped.clone();
        let ended = loop {
            tokio::select! {
                biased;
                () = front::stop(&mut stopped) => {
                    will = None;
                    break Err(Ended::Stopping);
                }
                () = claim.thrown_out.notified() => break Err(Ended::TakenOver),
                written = &mut writing => break written.unwrap_or(Err(Ended::Stalled)),
                () = this.flow.released() => {
                    if let Err(error) = this.pass_acknowledgements().await {
                        break Err(error);
                    }
                }
                packet = packets.next() => match packet {
                    Ok(Packet::Disconnect(..)) => {
                        will = None;
                        break Ok(());
                    }
                    Ok(packet) => {
                        if let Packet::Publish(..) = packet {
                            count(&packets.counters.messages_in, 1);
                        }
                        if let Err(error) = this.handle(packet).await {
                            break Err(error);
                        }
                    }
                    Err(error) => break Err(error),
                },
            }
        };
        writing.abort();
        if let Some(will) = will {
            this.publish_will(will).await;
        }
        // Without this the router would hold the session as connected for ever.
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        let goodbye = Packet::Disconnect(Disconnect { reason_code }, None);
        let _ = this.to_router.send(goodbye).await;
        let session = (!forget).then(|| this.flow.session());
        front.release(claim, session);
        ended
    }

    async fn handle(&mut self, packet: Packet) -> Result<(), Ended> {
        match packet {
            Packet::Publish(publish, _) => self.publish(publish).await,
            Packet::PubAck(ack, _) => {
                self.flow.acknowledged(ack.pkid);
                self.pass_acknowledgements().await
            }
            Packet::PubRel(release, _) => {
                self.received.remove(&release.pkid);
                let reason = PubCompReason::Success;
                self.reply(Packet::PubComp(PubComp { pkid: release.pkid, reason }, None))
            }
            Packet::Subscribe(subscribe, _) => self.subscribe(subscribe).await,
            Packet::Unsubscribe(unsubscribe, _) => self.unsubscribe(unsubscribe).await,
            Packet::PingReq(_) => self.reply(Packet::PingResp(PingResp)),
            Packet::Connect(..) => Err(Ended::Protocol("a second CONNECT")),
            _ => Err(Ended::Protocol("a packet that only brokers send")),
        }
    }

    /// A message that may not be published is acknowledged and dropped, as mosquitto does it: 3.1.1
    /// has no way to say no but to hang up, and then the client would send it again.
    async fn publish(&mut self, publish: Publish) -> Result<(), Ended> {
        let Head { qos, pkid } = Head::of(&publish);
        let limit = self.front.settings.max_payload_bytes;
        if publish.payload.len() > limit {
            return Err(Ended::TooLarge { bytes: publish.payload.len(), limit });
        }
        let topic = std::str::from_utf8(&publish.topic)
            .map_err(|_| Ended::Protocol("a topic that isn't UTF-8"))?;
        let repeated = qos == 2 && !self.received.insert(pkid);
        if self.received.len() > REPLIES {
            return Err(Ended::Protocol("too many QoS 2 messages that aren't completed"));
        }
        if !filter::is_topic(topic) || !self.rights.may_write(topic) {
            count(&self.front.stats.refused_messages, 1);
            tracing::warn!(client = self.client, topic, "a message was refused: no permission");
        } else if !repeated {
            let payload = publish.payload.clone();
            self.front.publish(&mut self.to_router, topic, payload, qos, publish.retain).await?;
        }
        match qos {
            0 => Ok(()),
            1 => self.reply(Packet::PubAck(PubAck { pkid, reason: PubAckReason::Success }, None)),
            _ => self.reply(Packet::PubRec(PubRec { pkid, reason: PubRecReason::Success }, None)),
        }
    }

    async fn publish_will(&mut self, will: LastWill) {
        let Ok(topic) = std::str::from_utf8(&will.topic) else { return };
        let qos = will.qos as u8;
        let published =
            self.front.publish(&mut self.to_router, topic, will.message, qos, will.retain).await;
        if let Err(error) = published {
            tracing::error!(topic, %error, "a will was lost");
        }
    }

    async fn subscribe(&mut self, subscribe: Subscribe) -> Result<(), Ended> {
        let pkid = subscribe.pkid;
        if pkid == 0 {
            return Err(Ended::Protocol("a SUBSCRIBE without identifier"));
        }
        let mut answers = Vec::new();
        let mut granted = Vec::new();
        for wanted in subscribe.filters {
            let path = wanted.path;
            let shared = path.starts_with("$share/");
            if shared || !filter::is_filter(&path) || !self.rights.may_read(&path) {
                count(&self.front.stats.refused_subscriptions, 1);
                tracing::warn!(client = self.client, filter = path, "a subscription was refused");
                answers.push((path, None));
                continue;
            }
            let qos = (wanted.qos as u8).min(1);
            granted.push(inner(&path, qos));
            answers.push((path, Some(qos)));
        }
        if granted.is_empty() {
            let return_codes = vec![SubscribeReasonCode::Failure; answers.len()];
            return self.reply(Packet::SubAck(SubAck { pkid, return_codes }, None));
        }
        if !self.flow.asked(pkid, answers) {
            return Err(Ended::Protocol("too many filters, or the same SUBSCRIBE twice"));
        }
        self.route(Packet::Subscribe(Subscribe { pkid, filters: granted }, None)).await
    }

    async fn unsubscribe(&mut self, unsubscribe: Unsubscribe) -> Result<(), Ended> {
        let Unsubscribe { pkid, filters } = unsubscribe;
        for path in &filters {
            if self.flow.unsubscribed(path) {
                let filters = vec![names::inner_filter(path)];
                self.route(Packet::Unsubscribe(Unsubscribe { pkid, filters }, None)).await?;
            }
        }
        self.reply(Packet::UnsubAck(UnsubAck { pkid, reasons: Vec::new() }, None))
    }

    /// Tells the router what the client has, in the order the router wants.
    async fn pass_acknowledgements(&mut self) -> Result<(), Ended> {
        while let Some(pkid) = self.flow.next_acknowledged() {
            let reason = PubAckReason::Success;
            self.route(Packet::PubAck(PubAck { pkid, reason }, None)).await?;
        }
        Ok(())
    }

    async fn route(&mut self, packet: Packet) -> Result<(), Ended> {
        let sent = self.to_router.send(packet).await;
        sent.map(|_| ()).map_err(|error| Ended::Router(error.to_string()))
    }

    fn reply(&self, packet: Packet) -> Result<(), Ended> {
        self.replies.try_send(packet).map_err(|_| Ended::Stalled)
    }
}

/// A kept session's filters must be known to the router's new connection, else it couldn't give
/// them up later.
async fn resubscribe(to_router: &mut LinkTx, session: &Session) -> Result<(), Ended> {
    if session.filters.is_empty() {
        return Ok(());
    }
    let filters = session.filters.iter().map(|(path, qos)| inner(path, *qos)).collect();
    let packet = Packet::Subscribe(Subscribe { pkid: 0, filters }, None);
    let sent = to_router.send(packet).await;
    sent.map(|_| ()).map_err(|error| Ended::Router(error.to_string()))
}

fn inner(path: &str, qos: u8) -> Filter {
    Filter {
        path: names::inner_filter(path),
        qos: if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce },
        nolocal: false,
        preserve_retain: false,
        retain_forward_rule: RetainForwardRule::Never,
    }
}

/// What a client may take to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Answers that may wait for a client to read them.
const REPLIES: usize = 10_000;
/// A topic of any length and its packet identifier.
const HEADER_BYTES: usize = 65_535 + 4;
