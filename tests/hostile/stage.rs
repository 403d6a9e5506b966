//! One node at work, and everybody else played by the attacker, who can write to both brokers and has
//! whichever keys a test gives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gaisnet::bus::memory::{Faults, MemoryBroker, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::ids::{BootId, Digest, NodeId, UpdateId};
use gaisnet::ledger::Event;
use gaisnet::protocol::update;
use gaisnet::time::Wall;
use gaisnet::topic::Branch;
use gaisnet::trust::keys::SigningKey;
use gaisnet::trust::update_id;
use gaisnet::wire::{
    Answer, Blob, Body, Coding, Contribution, Envelope, Head, Kind, Offer, Result as RoundResult,
    Signature, Verdict, encode, split_pair,
};
use tokio::sync::mpsc;

use super::federation::{Plant, adapter, key_of, learning, name, paused};

/// See the module.
pub(crate) struct Stage {
    pub(crate) plant: Plant,
    target: NodeId,
    federation: Wire,
    site: Wire,
    seq: u64,
}

/// The attacker's link to a broker, and all that was said there.
struct Wire {
    bus: MemoryBus,
    heard: Arc<Mutex<Heard>>,
}

/// Topics and payloads in their order.
type Heard = Vec<(String, Vec<u8>)>;

/// A message as its forger likes it. Begins as a sound one.
#[derive(Clone)]
pub(crate) struct Forged {
    /// Where it is published.
    pub(crate) topic: String,
    pub(crate) payload_type: String,
    pub(crate) head: Head,
    /// The body's bytes.
    pub(crate) body: Vec<u8>,
    /// Whose keys sign it.
    pub(crate) signers: Vec<NodeId>,
}

/// Which way a message goes to the target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Above,
    Below,
}

/// Plays a test on a stage whose node is called `target`.
pub(crate) fn on_stage<F: Future<Output = ()>>(
    target: &'static str,
    test: impl FnOnce(Stage) -> F + 'static,
) {
    paused(async move {
        let mut stage = Stage::new(target);
        stage.begin().await;
        test(stage).await;
    });
}

impl Stage {
    /// A stage before its node started.
    pub(crate) fn new(target: &str) -> Self {
        let plant = Plant::new(3, 2, 9, &Faults::none(1));
        let federation = Wire::to(&plant.federation_bus);
        let site = Wire::to(&plant.site_buses[&name("site0")]);
        Self { plant, target: name(target), federation, site, seq: 0 }
    }

    /// Starts the node; a cloud opens its first round.
    pub(crate) async fn begin(&mut self) {
        let target = self.target.clone();
        self.plant.start(&target);
        a_moment().await;
    }

    /// Publishes this on the broker above or below the target.
    pub(crate) fn send(&self, from: From, topic: &str, payload: Vec<u8>, retain: bool) {
        let (topic, at_least_once) = (topic.to_owned(), true);
        let message =
            Publish { topic, payload, at_least_once, retain, priority: Priority::Control };
        self.wire(from).bus.publish(message).unwrap();
    }

    /// Sends it and wants it refused for this reason, once, with the node going on.
    pub(crate) async fn refuses(&mut self, from: From, bad: &Forged, reason: &str) {
        self.refuses_bytes(from, &bad.topic, bad.wire(), reason).await;
    }

    /// The same with bytes that nobody sealed.
    pub(crate) async fn refuses_bytes(
        &mut self,
        from: From,
        topic: &str,
        payload: Vec<u8>,
        reason: &str,
    ) {
        let before = self.counted();
        self.send(from, topic, payload, false);
        a_moment().await;
        assert_eq!(self.since(&before), BTreeMap::from([(reason.to_owned(), 1)]));
        self.plant.running[&self.target].view().await.expect("the node lives");
    }

    /// Sends a contribution from below and wants an accepting receipt, and nothing refused.
    pub(crate) async fn accepts(&mut self, good: &Forged) {
        let before = self.counted();
        self.send(From::Below, &good.topic, good.wire(), false);
        a_moment().await;
        assert_eq!(self.since(&before), BTreeMap::new(), "the valid twin is refused");
        assert_eq!(self.verdict(good), Some(Verdict::Accepted));
    }

    /// Sends an offer from above and wants it taken: a device contributes, an edge asks its devices.
    pub(crate) async fn takes(&mut self, good: &Forged) {
        let before = self.counted();
        self.send(From::Above, &good.topic, good.wire(), false);
        a_moment().await;
        assert_eq!(self.since(&before), BTreeMap::new(), "the valid twin is refused");
        let digest = Digest::of(&good.body);
        let taken = self.said().into_iter().any(|(_, body)| match body {
            Body::Contribution(contribution) => contribution.offer == digest,
            Body::Offer(offer) => offer.outer == Some(digest),
            _ => false,
        });
        assert!(taken, "the valid offer isn't taken");
    }

    /// A sound message of `sender`; it goes to the target alone.
    pub(crate) fn forge(&mut self, sender: &str, round: u64, epoch: u64, body: &Body) -> Forged {
        self.seq += 1;
        let kind = body.kind();
        let branch = self.branch(sender);
        let directly =
            matches!(kind, Kind::Get | Kind::Receipt | Kind::Answer | Kind::Base | Kind::Frame)
                || matches!(
                    kind,
                    Kind::Promise | Kind::Mirror | Kind::Evidence | Kind::SiteEvidence
                );
        let topic = if directly {
            branch.to(&self.target, kind.as_str())
        } else {
            branch.machine(kind.as_str())
        };
        let now = self.now();
        let head = Head {
            minor: 0,
            federation: name("fed"),
            sender: name(sender),
            audience: Some(self.target.clone()),
            topic: topic.clone(),
            epoch,
            round,
            seq: self.seq,
            boot: BootId([66; 16]),
            issued_at: now,
            expires_at: now.plus_ms(kind.lifetime_ms()),
        };
        let (payload_type, body) = (kind.payload_type(), body.to_bytes().unwrap());
        Forged { topic, payload_type, head, body, signers: vec![name(sender)] }
    }

    /// A sound contribution to the target's open round, in the name of a child.
    pub(crate) fn contribution(&mut self, sender: &str) -> Forged {
        self.contribution_with(sender, |_| {})
    }

    /// The same with changes.
    pub(crate) fn contribution_with(
        &mut self,
        sender: &str,
        change: impl FnOnce(&mut Contribution),
    ) -> Forged {
        let (digest, offer) = self.offer();
        let mut contribution = Contribution {
            offer: digest,
            version: offer.version,
            num_examples: 120,
            num_devices: 1,
            steps: 16,
            loss_first: 1.0,
            loss_last: 0.5,
            risk: None,
            stacked: false,
            delta: Some(Blob::Inline(packed(0.25))),
            class_logits: None,
            knowledge: None,
        };
        change(&mut contribution);
        self.forge(sender, offer.round, 1, &Body::Contribution(contribution.into()))
    }

    /// An offer of the target's parent.
    pub(crate) fn offer_with(&mut self, round: u64, change: impl FnOnce(&mut Offer)) -> Forged {
        let learning = learning(9);
        let mut offer = Offer {
            island: None,
            round,
            model: name("toy"),
            base: learning.base,
            version: 0,
            adapter: Blob::Inline(learning.adapter),
            class_targets: None,
            plan: learning.plan,
            deadline_ms: 60_000,
            outer: None,
            knowledge: None,
        };
        change(&mut offer);
        let parent = self.parent();
        let mut forged = self.forge(&parent, round, 1, &Body::Offer(offer.into()));
        forged.head.audience = None;
        forged
    }

    /// A result of the target's parent.
    pub(crate) fn result(&mut self, version: u64, adapter: Blob) -> Forged {
        let result = RoundResult {
            offer: Digest([0; 32]),
            version,
            adapter,
            class_targets: None,
            contributors: 2,
            contributor_set: Digest([0; 32]),
            knowledge: None,
        };
        let parent = self.parent();
        let mut forged = self.forge(&parent, 1, 1, &Body::Result(result.into()));
        forged.head.audience = None;
        forged
    }

    /// The newest offer that the target published, with its digest.
    pub(crate) fn offer(&self) -> (Digest, Offer) {
        let offers = self.said().into_iter().rev().find_map(|(bytes, body)| match body {
            Body::Offer(offer) => Some((Digest::of(&bytes), Offer::clone(&offer))),
            _ => None,
        });
        offers.expect("the target offered nothing")
    }

    /// The last receipt of a contribution.
    pub(crate) fn verdict(&self, of: &Forged) -> Option<Verdict> {
        let update = of.update();
        self.said().into_iter().rev().find_map(|(_, body)| match body {
            Body::Receipt(receipt) if receipt.update == update => Some(receipt.verdict),
            _ => None,
        })
    }

    /// The target's last answer to an offer: taken, or the reason.
    pub(crate) fn answer(&self, to: &Forged) -> Option<Answer> {
        let offer = Digest::of(&to.body);
        self.said().into_iter().rev().find_map(|(_, body)| match body {
            Body::Answer(answer) if answer.offer == offer => Some(answer),
            _ => None,
        })
    }

    /// Bodies of all signed messages that the target sent, with their bytes.
    pub(crate) fn said(&self) -> Vec<(Vec<u8>, Body)> {
        let own = self.branch(self.target.as_str()).to_string() + "/";
        let all = self.heard().into_iter().filter(|(topic, _)| topic.starts_with(&own));
        all.filter_map(|(topic, payload)| read(&topic, &payload)).collect()
    }

    /// Everything on both brokers.
    pub(crate) fn heard(&self) -> Heard {
        let site = self.site.heard.lock().unwrap().clone();
        let federation = self.federation.heard.lock().unwrap().clone();
        federation.into_iter().chain(site).collect()
    }

    /// The last JSON on this leaf of the target's branch.
    pub(crate) fn json(&self, leaf: &str) -> Option<serde_json::Value> {
        let topic = format!("{}/{leaf}", self.branch(self.target.as_str()));
        let payload = self.heard().into_iter().rev().find(|(t, _)| *t == topic)?.1;
        Some(serde_json::from_slice(&payload).unwrap())
    }

    /// What the target's ledger says about refusals: reason, and who is blamed.
    pub(crate) fn refusals(&self) -> Vec<(String, Option<String>)> {
        let events = self.plant.entries(self.target.as_str());
        let refusals = events.into_iter().filter_map(|event| match event {
            Event::Refusal { reason, sender, .. } => {
                Some((reason.as_str().to_owned(), sender.map(|node| node.to_string())))
            }
            _ => None,
        });
        refusals.collect()
    }

    pub(crate) fn counted(&self) -> BTreeMap<String, u64> {
        let view = self.plant.running[&self.target].figures.view();
        view.counted.into_iter().map(|(reason, n)| (reason.to_owned(), n)).collect()
    }

    /// What was counted since.
    pub(crate) fn since(&self, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let mut more = self.counted();
        for (reason, n) in before {
            *more.get_mut(reason).unwrap() -= n;
        }
        more.retain(|_, n| *n > 0);
        more
    }

    /// The part of the tree that a node writes to.
    pub(crate) fn branch(&self, node: &str) -> Branch {
        let prefix = gaisnet::topic::Prefix::new("gaisnet").unwrap();
        let place = self.plant.members.places.iter().find(|place| place.node.as_str() == node);
        let (site, line) = match place {
            Some(place) => (place.site.clone(), place.line.clone()),
            None => (name("_"), name("_")), // the operator
        };
        Branch { prefix, site, line, node: name(node) }
    }

    pub(crate) fn now(&self) -> Wall {
        self.plant.clock.now().wall
    }

    /// The version that the target answers with.
    pub(crate) fn served(&self) -> u64 {
        self.plant.running[&self.target].serving.borrow().0
    }

    fn parent(&self) -> String {
        let place =
            self.plant.members.places.iter().find(|place| place.node == self.target).unwrap();
        place.parent.as_ref().unwrap().to_string()
    }

    fn wire(&self, from: From) -> &Wire {
        let on_federation = match self.target.as_str() {
            "cloud" => true,
            edge if edge.starts_with("edge") => from == From::Above,
            _ => false,
        };
        if on_federation { &self.federation } else { &self.site }
    }
}

/// Long enough for everything that was sent to be done.
pub(crate) async fn a_moment() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

impl Wire {
    fn to(broker: &MemoryBroker) -> Self {
        let (bus, events) = broker.connect("mallory", None);
        bus.subscribe(&["gaisnet/#".to_owned()]).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(listen(events, Arc::clone(&heard)));
        Self { bus, heard }
    }
}

async fn listen(mut events: mpsc::Receiver<BusEvent>, heard: Arc<Mutex<Heard>>) {
    while let Some(event) = events.recv().await {
        if let BusEvent::Delivery(delivery) = event {
            heard.lock().unwrap().push((delivery.topic, delivery.payload));
            delivery.ack.release();
        }
    }
}

impl Forged {
    /// The sealed bytes.
    pub(crate) fn wire(&self) -> Vec<u8> {
        self.wire_of(&self.payload())
    }

    /// Head and body, as they are signed.
    pub(crate) fn payload(&self) -> Vec<u8> {
        [vec![0x92], encode(&self.head).unwrap(), self.body.clone()].concat()
    }

    /// Seals another payload in the same way.
    pub(crate) fn wire_of(&self, payload: &[u8]) -> Vec<u8> {
        let keys: Vec<SigningKey> = self.signers.iter().map(key_of).collect();
        seal(&self.payload_type, payload, &keys)
    }

    /// Its topic is this, outside and inside.
    pub(crate) fn at(mut self, topic: &str) -> Self {
        topic.clone_into(&mut self.topic);
        topic.clone_into(&mut self.head.topic);
        self
    }

    fn update(&self) -> UpdateId {
        let head = &self.head;
        update_id(&head.federation, head.round, &head.sender, &Digest::of(&self.body))
    }
}

/// Signs with each of the keys, as DSSE has it.
pub(crate) fn seal(payload_type: &str, payload: &[u8], keys: &[SigningKey]) -> Vec<u8> {
    let lengths = (payload_type.len(), payload.len());
    let signed = format!("DSSEv1 {} {payload_type} {} ", lengths.0, lengths.1);
    let signed = [signed.as_bytes(), payload].concat();
    let signature =
        |key: &SigningKey| Signature { key: key.public().key_id(), bytes: key.sign(&signed).0 };
    let signatures = keys.iter().map(signature).collect();
    let (payload_type, payload) = (payload_type.to_owned(), payload.to_vec());
    Envelope { payload_type, payload, signatures }.to_bytes().unwrap()
}

/// A delta as sound members send it.
pub(crate) fn packed(value: f32) -> Vec<u8> {
    update::pack(&adapter(value), Coding::F32, 0).unwrap()
}

/// The body of a sealed message, with its bytes; nothing is checked.
fn read(topic: &str, payload: &[u8]) -> Option<(Vec<u8>, Body)> {
    let kind = Kind::parse(topic.rsplit('/').next()?)?;
    let envelope = Envelope::from_bytes(payload, kind.cap_bytes()).ok()?;
    let (_, body) = split_pair(&envelope.payload, kind.cap_bytes()).ok()?;
    Some((body.to_vec(), Body::from_bytes(kind, body).ok()?))
}
