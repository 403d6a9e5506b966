//! Messages on their way: how they are sealed, forged and opened. The one place that knows how a run checks trust.
//!
//! With signed trust each letter is what a node publishes: `trust::Sealer` makes it, [`crate::trust::open`] lets it in. With assumed
//! trust the sender's place is believed, and a message is decoded once for all who get it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::broken::Broken;
use super::nodes::{ByNode, Place};
use crate::ids::{BootId, Digest, Epoch, Name, NodeId, RoundNo, Side};
use crate::rng::Stream;
use crate::store::OutboxItem;
use crate::time::Wall;
use crate::topic::{Branch, Prefix};
use crate::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use crate::trust::keys::SigningKey;
use crate::trust::{Door, Sealer, To as Address, Verified, open};
use crate::wire::{Body, Head, Kind, Verdict, decode, encode};

/// A sealed message. Whoever it is for gets a handle to the same one.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) from: Place,
    pub(crate) kind: Kind,
    /// Bytes that travel.
    pub(crate) bytes: usize,
    /// Digest of what travels, for the trace.
    pub(crate) mark: Digest,
    /// Not from whom it says.
    pub(crate) forged: bool,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Taken for checked, and the bytes of what it says.
    Assumed { checked: Verified, bytes: Vec<u8> },
    /// To be opened. `claim` is what whoever doesn't check would read; kept for what may be forged.
    Sealed { topic: String, wire: Vec<u8>, claim: Option<Verified> },
}

/// What a message says and where it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saying<'a> {
    pub(crate) to: &'a Address,
    pub(crate) body: &'a Body,
    pub(crate) round: RoundNo,
    pub(crate) epoch: Epoch,
}

/// Seals and opens the letters of all nodes.
#[derive(Debug)]
pub(crate) struct PostOffice {
    federation: Name,
    rng: Stream,
    signing: Option<Signing>,
}

/// Keys and places of all nodes, where messages are signed.
#[derive(Debug)]
struct Signing {
    prefix: Prefix,
    keyring: Keyring,
    /// Key seed and branch of each node.
    identities: ByNode<Option<([u8; 32], Branch)>>,
    /// One a life.
    sealers: ByNode<Option<Sealer>>,
}

/// Who somebody is: for the keyring.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) place: Place,
    pub(crate) id: NodeId,
    pub(crate) role: Role,
    pub(crate) parent: Option<NodeId>,
    pub(crate) site: Name,
    pub(crate) line: Name,
    /// The cloud that it takes over from.
    pub(crate) stands_by: Option<NodeId>,
    /// The edge that takes in this one's devices.
    pub(crate) second_edge: Option<NodeId>,
}

impl PostOffice {
    /// A post office where senders are believed.
    pub(crate) fn assuming(federation: Name, seed: u64) -> Self {
        Self { federation, rng: Stream::new(seed, "letters"), signing: None }
    }

    /// A post office with a key for each of these.
    ///
    /// # Errors
    /// [`Broken`] when the keyring takes one of them not.
    pub(crate) fn signing(federation: Name, seed: u64, all: &[Identity]) -> Result<Self, Broken> {
        const FOREVER: Wall = Wall(1 << 52);
        let failed = |what: String| Broken::new("simulator", what);
        let mut rng = Stream::new(seed, "letters");
        let prefix = Prefix::new("sim").map_err(|e| failed(e.to_string()))?;
        let root = SigningKey::generate(&bytes_of(&mut rng));
        let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*root.public()] };
        let mut keyring = Keyring::first(federation.clone(), root, Wall(0), FOREVER)
            .map_err(|e| failed(e.to_string()))?;
        let mut identities: ByNode<Option<([u8; 32], Branch)>> = ByNode::default();
        for identity in all {
            let Identity { id, role, parent, site, line, .. } = identity.clone();
            let key_seed = bytes_of(&mut rng);
            let key = SigningKey::generate(&key_seed);
            let roles = BTreeSet::from([role]);
            let proof = key.prove_possession(&federation, &id, &roles);
            let branch = Branch {
                prefix: prefix.clone(),
                site: site.clone(),
                line: line.clone(),
                node: id.clone(),
            };
            let key = *key.public();
            let entry = NodeEntry { node: id, site, line, roles, parent, key };
            let enrolment = Enrolment { entry, proof };
            let enrolled = match &identity.stands_by {
                Some(owner) => keyring.enrol_standby(&enrolment, owner, Wall(0), FOREVER),
                None => keyring.enrol(&enrolment, Wall(0), FOREVER),
            };
            keyring = enrolled.map_err(|e| failed(e.to_string()))?;
            *identities.at(identity.place) = Some((key_seed, branch));
        }
        for Identity { id, second_edge, .. } in all.iter().filter(|one| one.second_edge.is_some()) {
            let paired = keyring.with_second_edge(id, second_edge.as_ref(), Wall(0), FOREVER);
            keyring = paired.map_err(|e| failed(e.to_string()))?;
        }
        let sealers = ByNode::default();
        let signing = Signing { prefix, keyring, identities, sealers };
        Ok(Self { federation, rng, signing: Some(signing) })
    }

    /// A node starts: its messages are of a new start.
    pub(crate) fn starts(&mut self, node: Place) {
        let boot = BootId(bytes_of(&mut self.rng));
        let Some(signing) = &mut self.signing else { return };
        let Some((seed, branch)) = signing.identities.at(node) else { return };
        let key = SigningKey::generate(seed);
        let sealer = Sealer::new(key, self.federation.clone(), branch.clone(), boot);
        *signing.sealers.at(node) = Some(sealer);
    }

    /// Seals a message of a node.
    ///
    /// # Errors
    /// [`Broken`] when it can't be encoded: ours always can.
    pub(crate) fn seal(
        &mut self,
        from: Place,
        sender: &NodeId,
        saying: Saying<'_>,
        now: Wall,
    ) -> Result<Letter, Broken> {
        let unsealed = |error| Broken::new("sealed", format!("{sender}: {error}"));
        let kind = saying.body.kind();
        let bytes = saying.body.to_bytes().map_err(unsealed)?;
        let checked = self.checked(sender, saying, &bytes);
        let Some(signing) = &mut self.signing else {
            return Ok(Letter::assumed(from, kind, checked, bytes));
        };
        let Some(sealer) = signing.sealers.at(from) else {
            return Err(Broken::new("sealed", format!("{sender} has not started")));
        };
        let Saying { to, body, round, epoch } = saying;
        let (topic, wire) = sealer.seal(to, body, round, epoch, now).map_err(unsealed)?;
        let (mark, bytes) = (Digest::of(&wire), wire.len());
        let content = Content::Sealed { topic, wire, claim: Some(checked) };
        Ok(Letter { from, kind, bytes, mark, forged: false, content })
    }

    /// The same letter again from what a store has kept of it.
    ///
    /// # Errors
    /// [`Broken`] when that can't be read.
    pub(crate) fn again(
        &self,
        from: Place,
        sender: &NodeId,
        item: &OutboxItem,
    ) -> Result<Letter, Broken> {
        let unread = |what: String| Broken::new("sealed", format!("{sender}: {what}"));
        if self.signing.is_some() {
            let (topic, wire) = (item.topic.clone(), item.wire.clone());
            let word = topic.rsplit('/').next().and_then(Kind::parse);
            let kind = word.ok_or_else(|| unread(format!("kept under {topic}")))?;
            let (mark, bytes) = (Digest::of(&wire), wire.len());
            let content = Content::Sealed { topic, wire, claim: None };
            return Ok(Letter { from, kind, bytes, mark, forged: false, content });
        }
        let parts: Parts = decode(&item.wire, usize::MAX).map_err(|e| unread(e.to_string()))?;
        let (number, round, epoch, bytes) = parts;
        let kind = Kind::ALL.get(usize::from(number)).copied();
        let kind = kind.ok_or_else(|| unread(format!("kind {number}")))?;
        let body = Body::from_bytes(kind, &bytes).map_err(|e| unread(e.to_string()))?;
        let saying = Saying { to: &Address::Anyone, body: &body, round, epoch };
        let checked = self.checked(sender, saying, &bytes);
        Ok(Letter::assumed(from, kind, checked, bytes.into_vec()))
    }

    /// A copy that says something else, by somebody who has no key that anybody knows.
    pub(crate) fn forge(&mut self, letter: &Letter) -> Option<Letter> {
        let original = letter.claim()?;
        let (body, round) = falsified(original);
        let bytes = body.to_bytes().ok()?;
        let (to, epoch) = (&Address::Anyone, original.epoch());
        let saying = Saying { to, body: &body, round, epoch };
        let claim = self.checked(original.sender(), saying, &bytes);
        let (from, kind) = (letter.from, letter.kind);
        let Content::Sealed { topic, wire, .. } = &letter.content else {
            return Some(Letter { forged: true, ..Letter::assumed(from, kind, claim, bytes) });
        };
        let wire = if self.rng.below(2) == 0 {
            // One bit of the true one: its signature no longer fits.
            let (at, mut wire) = (self.rng.below(wire.len()), wire.clone());
            *wire.get_mut(at)? ^= 1 << self.rng.below(8);
            wire
        } else {
            let (key, boot) = (bytes_of(&mut self.rng), BootId(bytes_of(&mut self.rng)));
            let (_, branch) = self.signing.as_mut()?.identities.at(from).as_ref()?;
            let key = SigningKey::generate(&key);
            let mut stranger = Sealer::new(key, self.federation.clone(), branch.clone(), boot);
            stranger.seal(to, &body, round, epoch, Wall(0)).ok()?.1
        };
        let (mark, bytes) = (Digest::of(&wire), wire.len());
        let (topic, claim) = (topic.clone(), Some(claim));
        let content = Content::Sealed { topic, wire, claim };
        Some(Letter { from, kind, bytes, mark, forged: true, content })
    }

    /// Opens a letter at `me`, which gets it on `side`.
    ///
    /// # Errors
    /// A word for the counter: it isn't let in.
    pub(crate) fn open(
        &self,
        letter: &Letter,
        me: &NodeId,
        side: Side,
        now: Wall,
    ) -> Result<Verified, &'static str> {
        match (&letter.content, &self.signing) {
            (Content::Sealed { topic, wire, .. }, Some(signing)) => {
                let Signing { prefix, keyring, .. } = signing;
                let door = Door { federation: &self.federation, prefix, me, keyring };
                open(door, side, topic, wire, now).map_err(|refusal| refusal.kind())
            }
            (Content::Assumed { .. }, _) if letter.forged => Err("forged"),
            (Content::Assumed { checked, .. }, _) => Ok(checked.clone()),
            (Content::Sealed { .. }, None) => Err("no_keyring"),
        }
    }

    fn checked(&self, sender: &NodeId, saying: Saying<'_>, bytes: &[u8]) -> Verified {
        let head = Head {
            minor: 0,
            federation: self.federation.clone(),
            sender: sender.clone(),
            audience: None,
            topic: String::new(),
            epoch: saying.epoch,
            round: saying.round,
            seq: 1,
            boot: BootId([0; 16]),
            issued_at: Wall(0),
            expires_at: Wall(u64::MAX),
        };
        Verified::assumed(head, saying.body.clone(), bytes)
    }
}

impl Letter {
    fn assumed(from: Place, kind: Kind, checked: Verified, bytes: Vec<u8>) -> Self {
        let (mark, size) = (checked.body_digest(), bytes.len());
        let content = Content::Assumed { checked, bytes };
        Self { from, kind, bytes: size, mark, forged: false, content }
    }

    /// Topic and bytes that a store keeps of it.
    ///
    /// # Errors
    /// [`Broken`] when it can't be encoded: ours always can.
    pub(crate) fn kept(&self) -> Result<(String, Vec<u8>), Broken> {
        let (checked, bytes) = match &self.content {
            Content::Sealed { topic, wire, .. } => return Ok((topic.clone(), wire.clone())),
            Content::Assumed { checked, bytes } => (checked, bytes),
        };
        let number = Kind::ALL.iter().position(|kind| *kind == self.kind);
        let number = number.and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX);
        let bytes = serde_bytes::Bytes::new(bytes);
        let parts = encode(&(number, checked.round(), checked.epoch(), bytes));
        let parts = parts.map_err(|e| Broken::new("sealed", e.to_string()))?;
        Ok((self.kind.as_str().to_owned(), parts))
    }

    /// What whoever doesn't check would read.
    pub(crate) fn claim(&self) -> Option<&Verified> {
        match &self.content {
            Content::Assumed { checked, .. } => Some(checked),
            Content::Sealed { claim, .. } => claim.as_ref(),
        }
    }
}

/// What stands in an outbox item's `wire` where trust is assumed.
type Parts = (u8, RoundNo, Epoch, serde_bytes::ByteBuf);

/// What a forger would have somebody believe.
fn falsified(original: &Verified) -> (Body, RoundNo) {
    let (mut body, mut round) = (original.body().clone(), original.round());
    match &mut body {
        Body::Offer(offer) => {
            Arc::make_mut(offer).round += 1;
            round += 1;
        }
        Body::Contribution(said) => Arc::make_mut(said).num_examples += 1_000,
        Body::Result(result) => Arc::make_mut(result).version += 1,
        Body::Receipt(receipt) => receipt.verdict = Verdict::Accepted,
        Body::Answer(answer) => answer.accepted = !answer.accepted,
        Body::Lease(lease) => lease.asks = !lease.asks,
        Body::Promise(promise) => promise.before = 0,
        _ => {}
    }
    (body, round)
}

fn bytes_of<const N: usize>(rng: &mut Stream) -> [u8; N] {
    std::array::from_fn(|_| rng.next_u64().to_le_bytes()[0])
}
