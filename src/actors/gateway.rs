//! Where everything from a broker comes in: sorted by topic, opened, handed on.
//!
//! Signed messages go through [`trust::open`] and to the role; chunks to the runner; wishes for a base
//! to its desk; commands to the operator's desk; requests, labels and plant tags to the inferencer. What isn't let in is counted by
//! reason, recorded, and acknowledged, so that it doesn't come back; its sender learns nothing.

use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::mpsc;

use super::MAILBOX;
use super::base_desk::WantsBase;
use super::figures::Figures;
use super::inferencer::{AboveSaid, LateLabel, Request, TagSample};
use super::operator::{Operator, Order, Presence};
use super::role::Stimulus;
use super::runner::{ChunkArrived, Link, OwnHead, Run, Runner};
use crate::bus::{Ack, Bus, BusEvent, Delivery};
use crate::ids::{Digest, Name, NodeId, Side};
use crate::ledger::{Event, SignedCheckpoint, Word};
use crate::protocol::{Effect, Input};
use crate::scada::command::is_signed;
use crate::time::Clock;
use crate::topic::{self, Branch, Leaf, Prefix};
use crate::trust::keyring::{Keyring, Role};
use crate::trust::{self, Door, Refusal};
use crate::wire::{Body, Checkpoint, Chunk, Get, Kind, Wanted, decode};

/// What a gateway works with.
pub struct GatewayParts {
    /// Federation.
    pub federation: Name,
    /// First levels of our topics.
    pub prefix: Prefix,
    /// This node.
    pub me: NodeId,
    /// Whom it knows.
    pub keyring: Arc<Keyring>,
    /// The machine.
    pub role: Recipient<Stimulus>,
    /// The runner.
    pub runner: Addr<Runner>,
    /// Answers requests.
    pub requests: Option<Recipient<Request>>,
    /// Takes labels, of the plant's side only.
    pub labels: Option<Recipient<LateLabel>>,
    /// Which link that is.
    pub plant: Side,
    /// Takes what the plant says.
    pub samples: Option<Recipient<TagSample>>,
    /// Commands.
    pub operator: Option<Addr<Operator>>,
    /// Gives children the files of the base.
    pub bases: Option<Recipient<WantsBase>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Largest chunk that is taken.
    pub chunk_bytes: u32,
    /// The tier above, where it is asked for answers.
    pub above: Option<AboveLink>,
}

/// Who hears what the tier above answers, and whether it can be reached.
pub struct AboveLink {
    /// Its part of the topic tree.
    pub branch: Branch,
    /// Takes what it says on `reply/infer`.
    pub replies: Recipient<AboveSaid>,
    /// Learns of the link to it.
    pub links: Recipient<Link>,
}

/// See the module.
pub struct Gateway {
    parts: GatewayParts,
}

/// An event of a link.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Incoming {
    /// Which link.
    pub side: Side,
    /// What happened.
    pub event: BusEvent,
}

impl Gateway {
    /// A gateway.
    pub fn new(parts: GatewayParts) -> Self {
        Self { parts }
    }

    fn delivery(&mut self, side: Side, delivery: Delivery, ctx: &mut Context<Self>) {
        let Delivery { topic, payload, retained, ack } = delivery;
        let bytes = payload.len() as u64;
        self.parts.figures.update(|view| *view.bytes_in.entry(side).or_default() += bytes);
        let Some(parsed) = topic::parse(&self.parts.prefix, &topic) else {
            return self.tag(topic, payload, ack, ctx);
        };
        let mine = parsed.branch.node == self.parts.me;
        match parsed.leaf {
            Leaf::To(node, kind) if kind.as_str() == "chunk" && node == self.parts.me => {
                self.chunk(&payload, ack, ctx);
            }
            Leaf::Machine(_) | Leaf::To(..) if !mine => {
                self.signed(side, &topic, &payload, retained, ack, ctx);
            }
            Leaf::Machine(kind) if mine && kind.as_str() == Kind::Checkpoint.as_str() => {
                self.own_head(side, &topic, &payload, ack, ctx);
            }
            Leaf::Cmd(name) if mine => {
                let order = if is_signed(&payload) && retained {
                    return self.refuse(&Refusal::RetainedCommand, &payload, ack, ctx);
                } else if is_signed(&payload) {
                    match self.open(side, &topic, &payload) {
                        Ok(message) => Order::Signed { message: Box::new(message), ack },
                        Err(refusal) => return self.refuse(&refusal, &payload, ack, ctx),
                    }
                } else {
                    Order::Plain { name: name.as_str().to_owned(), payload, retained, ack }
                };
                // It is acknowledged by the desk, once it is recorded.
                self.pass(
                    self.parts.operator.clone().map(Addr::recipient),
                    order,
                    Ack::none(),
                    ctx,
                );
            }
            // What the broker kept from before is overwritten at each connection anyway.
            Leaf::Status if mine && !retained => {
                let seen = Presence { side, payload };
                self.pass(self.parts.operator.clone().map(Addr::recipient), seen, ack, ctx);
            }
            Leaf::Infer(model) if mine => {
                let request = Request { model, payload, retained };
                self.pass(self.parts.requests.clone(), request, ack, ctx);
            }
            Leaf::Feedback(model) if mine => {
                // A label tells of a sample: it comes from the site, and goes nowhere from here.
                if side != self.parts.plant || self.parts.labels.is_none() {
                    self.parts.figures.count("feedback_not_here");
                    return ack.release();
                }
                let label = LateLabel { model, payload, retained };
                self.pass(self.parts.labels.clone(), label, ack, ctx);
            }
            Leaf::Reply(name) if !mine && name.as_str() == "infer" && side == Side::Up => {
                let above = self.parts.above.as_ref().filter(|above| above.branch == parsed.branch);
                let replies = above.map(|above| above.replies.clone());
                self.pass(replies, AboveSaid { payload, retained }, ack, ctx);
            }
            _ => ack.release(), // our own messages, and what a wide filter brings along
        }
    }

    fn open(&self, side: Side, topic: &str, payload: &[u8]) -> Result<trust::Verified, Refusal> {
        let door = Door {
            federation: &self.parts.federation,
            prefix: &self.parts.prefix,
            me: &self.parts.me,
            keyring: &self.parts.keyring,
        };
        let opened = trust::open(door, side, topic, payload, self.parts.clock.now().wall);
        if let Ok(message) = &opened {
            let kind = message.body().kind().as_str();
            self.parts.figures.update(|view| *view.received.entry(kind).or_default() += 1);
            tracing::debug!(kind, sender = %message.sender(), round = message.round(), "let in");
        }
        opened
    }

    /// The head of a ledger under our own name: mostly our own that comes back.
    fn own_head(
        &mut self,
        side: Side,
        topic: &str,
        payload: &[u8],
        ack: Ack,
        ctx: &mut Context<Self>,
    ) {
        ack.release();
        let message = match self.open(side, topic, payload) {
            Ok(message) => message,
            Err(refusal) => return self.parts.figures.count(refusal.kind()),
        };
        let Body::Checkpoint(Checkpoint { document }) = message.body() else { return };
        match SignedCheckpoint::parse(document) {
            Ok(note) => {
                let (boot, _) = message.sequence();
                let (expires_at, head) = (message.expires_at(), note.checkpoint().head);
                let told = OwnHead { boot, expires_at, head };
                self.pass(Some(self.parts.runner.clone().recipient()), told, Ack::none(), ctx);
            }
            Err(error) => self.parts.figures.count(error.kind()),
        }
    }

    fn signed(
        &mut self,
        side: Side,
        topic: &str,
        payload: &[u8],
        retained: bool,
        ack: Ack,
        ctx: &mut Context<Self>,
    ) {
        if self.parts.figures.is_stalled() {
            // It could not be recorded. Whatever matters comes again: it waits at its sender for a
            // receipt, is retained, or is asked for.
            self.parts.figures.count("disk_full");
            return ack.release();
        }
        let opened = self.open(side, topic, payload);
        match opened.map(|message| if retained { message.kept_by_broker() } else { message }) {
            // A neighbour's head is kept by whoever witnesses it; the machines don't need it.
            Ok(message) if matches!(message.body(), Body::Checkpoint(_) | Body::Keyring(_)) => {
                ack.release();
            }
            Ok(message) => {
                if let Body::Get(Get { wanted: Wanted::Base { sha256, indices } }) = message.body()
                    && side == Side::Down
                {
                    let (child, sha256) = (message.sender().clone(), *sha256);
                    let wants = WantsBase { child, sha256, indices: indices.clone() };
                    return self.pass(self.parts.bases.clone(), wants, ack, ctx);
                }
                if let Body::Base(_) = message.body() {
                    self.parts.figures.count("base_not_asked_for"); // the base is here
                    return ack.release();
                }
                let role = self.parts.role.clone();
                let stimulus = Stimulus { input: Input::Message(message), ack };
                ctx.wait(async move { role.send(stimulus).await.unwrap_or(()) }.into_actor(self));
            }
            // On one broker everyone sees everyone's messages.
            Err(refusal) if refusal.is_for_others() => {
                self.parts.figures.count(refusal.kind());
                ack.release();
            }
            Err(refusal) => self.refuse(&refusal, payload, ack, ctx),
        }
    }

    fn refuse(&self, refusal: &Refusal, payload: &[u8], ack: Ack, ctx: &mut Context<Self>) {
        tracing::warn!(reason = refusal.kind(), %refusal, "a message was refused");
        if let Refusal::Expired { .. } | Refusal::FromTheFuture { .. } = refusal {
            tracing::warn!(
                "is this node's clock right, and the sender's? gaisnet doctor looks at ours"
            );
        }
        if self.parts.figures.is_stalled() {
            self.parts.figures.count(refusal.kind());
            return ack.release();
        }
        // Without a good signature, whom the message names is hearsay.
        let effects = vec![
            Effect::Count(refusal.kind()),
            Effect::Record(Event::Refusal {
                message: Digest::of(payload),
                reason: Word::new(refusal.kind()),
                sender: refusal.culprit().cloned(),
            }),
        ];
        let runner = self.parts.runner.clone();
        let run = Run { effects, ack };
        ctx.wait(async move { runner.send(run).await.unwrap_or(()) }.into_actor(self));
    }

    fn chunk(&mut self, payload: &[u8], ack: Ack, ctx: &mut Context<Self>) {
        let size = usize::try_from(self.parts.chunk_bytes).unwrap_or(usize::MAX);
        match decode::<Chunk>(payload, size.saturating_add(Chunk::OVERHEAD_BYTES)) {
            Ok(chunk) => {
                let runner = self.parts.runner.clone();
                let arrived = async move {
                    let _ = runner.send(ChunkArrived(chunk)).await;
                    ack.release();
                };
                ctx.wait(arrived.into_actor(self));
            }
            Err(error) => {
                tracing::warn!(%error, "a malformed chunk was refused");
                self.parts.figures.count("malformed_chunk");
                ack.release();
            }
        }
    }

    /// Everything outside our own tree is the plant's: a tag, if the settings name it.
    fn tag(&mut self, topic: String, payload: Vec<u8>, ack: Ack, ctx: &mut Context<Self>) {
        let to = self.parts.samples.clone();
        self.pass(to, TagSample { topic, payload }, ack, ctx);
    }

    /// Hands something volatile on; it is acknowledged once it is taken.
    fn pass<M>(&mut self, to: Option<Recipient<M>>, message: M, ack: Ack, ctx: &mut Context<Self>)
    where
        M: Message<Result = ()> + Send + 'static,
    {
        let Some(to) = to else { return ack.release() };
        let handed = async move {
            let _ = to.send(message).await;
            ack.release();
        };
        ctx.wait(handed.into_actor(self));
    }

    fn link(&self, side: Side, up: bool, ctx: &mut Context<Self>) {
        let runner = self.parts.runner.clone();
        let operator = self.parts.operator.clone();
        let above = self.parts.above.as_ref().filter(|_| side == Side::Up);
        let above = above.map(|above| above.links.clone());
        let told = async move {
            let _ = runner.send(Link { side, up }).await;
            if let Some(above) = above {
                let _ = above.send(Link { side, up }).await;
            }
            if let Some(operator) = operator {
                let _ = operator.send(Link { side, up }).await;
            }
        };
        ctx.wait(told.into_actor(self));
    }
}

impl Actor for Gateway {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Incoming> for Gateway {
    type Result = ();

    fn handle(&mut self, Incoming { side, event }: Incoming, ctx: &mut Self::Context) {
        match event {
            BusEvent::Connected { fresh } => {
                tracing::info!(?side, fresh, "connected");
                self.parts.figures.update(|view| {
                    view.down.remove(&side);
                    view.refused_filters.remove(&side);
                });
                self.link(side, true, ctx);
            }
            BusEvent::Disconnected { reason } => {
                tracing::warn!(?side, reason, "the link is down; trying again");
                self.parts.figures.count("disconnected");
                self.parts.figures.update(|view| {
                    view.down.insert(side, reason);
                });
                self.link(side, false, ctx);
            }
            BusEvent::SubscriptionRefused { filter } => {
                tracing::error!(
                    ?side,
                    filter,
                    "the broker refuses a subscription: give this user read access to it \
                     (gaisnet acl prints the lines)"
                );
                self.parts.figures.count("subscription_refused");
                self.parts.figures.update(|view| {
                    view.refused_filters.entry(side).or_default().insert(filter);
                });
            }
            BusEvent::Delivery(delivery) => {
                let _span = tracing::info_span!("message", ?side, topic = delivery.topic).entered();
                self.delivery(side, delivery, ctx);
            }
        }
    }
}

/// Moves a link's events into the gateway, as fast as it takes them. Ends with the link.
pub async fn pump(side: Side, mut events: mpsc::Receiver<BusEvent>, gateway: Addr<Gateway>) {
    while let Some(event) = events.recv().await {
        if gateway.send(Incoming { side, event }).await.is_err() {
            return;
        }
    }
}

/// Topic filters of a node, by link: exact branches, since some brokers judge the filter itself.
pub fn subscriptions(
    keyring: &Keyring,
    prefix: &Prefix,
    me: &NodeId,
    sides: &[Side],
    tags: &[String],
) -> Vec<(Side, Vec<String>)> {
    let branch = |node: &NodeId| {
        let entry = keyring.node(node)?;
        let (site, line) = (entry.site.clone(), entry.line.clone());
        Some(topic::Branch { prefix: prefix.clone(), site, line, node: node.clone() })
    };
    let mut up = Vec::new();
    let mut down = Vec::new();
    if let Some(own) = branch(me) {
        // On each side: whoever says that we are away is answered.
        // And whoever else signs as we do is noticed, before anything else is heard.
        let heard = [own.machine(Kind::Checkpoint.as_str()), own.status()];
        up.extend(heard.clone());
        down.extend(heard);
        // The plant's side: where the site's SCADA is.
        let plant = if sides.contains(&Side::Down) { &mut down } else { &mut up };
        plant.extend([format!("{own}/cmd/+"), format!("{own}/infer/+")]);
        // The cloud has no plant.
        if keyring.node(me).is_some_and(|entry| !entry.roles.contains(&Role::Cloud)) {
            plant.push(format!("{own}/feedback/+"));
        }
        plant.extend(tags.iter().cloned());
    }
    // Between a device and its edge all that is for us. On a link of the federation only what is known to
    // belong there: frames carry what must not leave a site.
    let is_device =
        |node: &NodeId| keyring.node(node).is_some_and(|entry| entry.roles.contains(&Role::Device));
    let to_us = |neighbour: &topic::Branch, kinds: &[&str]| -> Vec<String> {
        kinds.iter().map(|kind| format!("{neighbour}/to/{me}/{kind}")).collect()
    };
    let direct = |neighbour: &topic::Branch, in_site: bool, kinds: &[&str]| {
        let mut filters = vec![format!("{neighbour}/m/+")];
        filters.extend(to_us(neighbour, if in_site { &["+"] } else { kinds }));
        filters
    };
    for owner in keyring.owners_of(me) {
        if let Some(owner) = branch(&owner.node) {
            up.extend(direct(&owner, is_device(me), &["receipt", "get", "chunk", "base"]));
        }
    }
    let paired = keyring.peer_of(me);
    for child in keyring.members_of(me) {
        if let Some(branch) = branch(&child.node) {
            let in_site = is_device(&child.node);
            down.extend(direct(&branch, in_site, &["answer", "get", "chunk", "site_evidence"]));
            if paired.is_some() {
                down.push(branch.to(me, "promise"));
            }
        }
    }
    // Of the other edge, only what a member of its rounds hears; of a guest, only what it sends to us.
    if let Some(second) = keyring.second_edge_of(me).and_then(|entry| branch(&entry.node)) {
        let said = [Kind::Offer, Kind::Result].map(|kind| second.machine(kind.as_str()));
        up.extend(said.into_iter().chain(to_us(&second, &["receipt", "get", "chunk"])));
    }
    for guest in keyring.guests_of(me).filter_map(|entry| branch(&entry.node)) {
        down.extend(to_us(&guest, &["answer", "contribution", "get", "chunk"]));
    }
    if let Some(peer) = paired.and_then(branch) {
        down.extend(direct(&peer, false, &["mirror", "get", "chunk"]));
    }
    [(Side::Up, up), (Side::Down, down)]
        .into_iter()
        .filter(|(side, _)| sides.contains(side))
        .collect()
}

/// Subscribes a node's links.
pub fn subscribe(
    buses: &std::collections::BTreeMap<Side, Arc<dyn Bus>>,
    filters: &[(Side, Vec<String>)],
) {
    for (side, filters) in filters {
        if let Some(bus) = buses.get(side)
            && let Err(error) = bus.subscribe(filters)
        {
            tracing::error!(?side, %error, "can't subscribe");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::zone_tests::site;

    #[test]
    fn no_link_of_the_federation_subscribes_to_frames_and_each_link_of_a_site_does() {
        let prefix = Prefix::new("gaisnet").unwrap();
        let keyring = site();
        let hears = |me: &str, side: Side| {
            let me = NodeId::new(me).unwrap();
            let all = subscriptions(&keyring, &prefix, &me, &[Side::Up, Side::Down], &[]);
            let filters: Vec<_> =
                all.into_iter().filter(|(at, _)| *at == side).flat_map(|(_, all)| all).collect();
            let topics = keyring.nodes().map(|entry| {
                let (site, line) = (entry.site.clone(), entry.line.clone());
                let node = entry.node.clone();
                let branch = topic::Branch { prefix: prefix.clone(), site, line, node };
                branch.to(&me, "frame")
            });
            let hit = |topic: &String| {
                filters.iter().any(|filter| {
                    let filter: topic::filter::Filter = filter.parse().unwrap();
                    filter.covers(topic)
                })
            };
            topics.filter(hit).count()
        };
        assert_eq!((hears("d1", Side::Up), hears("edge", Side::Down)), (1, 2));
        assert_eq!(hears("edge", Side::Up), 0);
        assert_eq!(hears("cloud", Side::Down), 0);
        assert_eq!(hears("over", Side::Up) + hears("over", Side::Down), 0, "an edge over edges");
    }
}
