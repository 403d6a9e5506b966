//! Opening: every check that a message has to pass, in one order.
//!
//! Size, topic, envelope, key and place, signature, role, payload, head against topic and audience,
//! age. Nothing is allocated from a foreign number before the signature is good, and nobody is blamed
//! for what they didn't sign. What comes after (repeats, epochs, the meaning) is the machines'
//! business. Whoever is refused learns nothing.

use super::keyring::{Keyring, NodeEntry, Role, Standing};
use super::keys;
use super::message::Verified;
use super::pae::pae;
use super::seal::MINOR;
use crate::ids::{Name, NodeId, Side};
use crate::time::Wall;
use crate::topic::{self, Branch, Leaf, Prefix};
use crate::wire::{Body, CodecError, Envelope, Head, Kind, decode, split_pair};

/// What a node knows when somebody knocks.
#[derive(Debug, Clone, Copy)]
pub struct Door<'a> {
    /// Its federation.
    pub federation: &'a Name,
    /// First levels of every topic.
    pub prefix: &'a Prefix,
    /// Itself.
    pub me: &'a NodeId,
    /// Whom it knows.
    pub keyring: &'a Keyring,
}

/// Why a message isn't let in. Each is counted under its own name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// More bytes than its kind may have.
    #[error("{actual} bytes, a {kind} has at most {cap}")]
    OverCap {
        /// The kind.
        kind: &'static str,
        /// Its cap.
        cap: usize,
        /// What came.
        actual: usize,
    },
    /// Not a topic of machines, or of a kind that nobody knows.
    #[error("no message of ours belongs on this topic")]
    UnknownKind,
    /// The envelope, head or body isn't well formed.
    #[error("malformed {part}: {error}")]
    Malformed {
        /// Which part.
        part: Part,
        /// What is wrong.
        error: CodecError,
    },
    /// The payload type isn't that of the topic's kind.
    #[error("the payload type isn't that of its topic")]
    WrongType,
    /// A schema that this version doesn't know.
    #[error("schema minor {0} is unknown")]
    UnknownVersion(u8),
    /// Nodes sign alone.
    #[error("{0} signatures, a node's message has one")]
    SignatureCount(usize),
    /// No living key of the keyring.
    #[error("signed by an unknown key")]
    UnknownKey,
    /// A key that was revoked.
    #[error("signed by a revoked key")]
    RevokedKey,
    /// The signature doesn't fit.
    #[error("bad signature")]
    BadSignature,
    /// The signer isn't the owner of the branch that the topic lies in.
    #[error("published in a branch that is not the sender's")]
    ForeignBranch,
    /// None of the sender's roles may ever say this. It did sign it.
    #[error("{sender} has no role that may send a {kind}")]
    RoleNotAllowed {
        /// Who.
        sender: NodeId,
        /// What.
        kind: &'static str,
    },
    /// The sender may say this, but to others or on another link: what a shared broker brings along.
    #[error("{sender} may not send a {kind} to us on this link")]
    NotOurNeighbour {
        /// Who.
        sender: NodeId,
        /// What.
        kind: &'static str,
    },
    /// Of another federation.
    #[error("of another federation")]
    WrongFederation,
    /// The head names another sender.
    #[error("the head names another sender than the key")]
    WrongSender,
    /// Meant for somebody else.
    #[error("meant for another node")]
    WrongAudience,
    /// Signed for another topic.
    #[error("signed for another topic")]
    WrongTopic,
    /// Too old to change anything.
    #[error("expired at {expires_at:?}, it is {now:?}")]
    Expired {
        /// When.
        expires_at: Wall,
        /// Our clock.
        now: Wall,
    },
    /// Sealed later than any sound clock could say.
    #[error(
        "sealed at {issued_at:?}, it is {now:?}: one of the two clocks is wrong, set it (gaisnet doctor)"
    )]
    FromTheFuture {
        /// When.
        issued_at: Wall,
        /// Our clock.
        now: Wall,
    },
    /// Wants to be able to change something for longer than its kind may.
    #[error("good for {ms} ms, a {kind} is for at most {most_ms}")]
    OverlongLife {
        /// The kind.
        kind: &'static str,
        /// What it claims, in milliseconds.
        ms: u64,
        /// Its kind's, in milliseconds.
        most_ms: u64,
    },
    /// Our keyring is too old to let anything change.
    #[error("the keyring has expired: nothing may change until a newer one is here")]
    KeyringExpired,
    /// Commands must not come as retained messages.
    #[error("a retained command is stale")]
    RetainedCommand,
}

/// Part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Type, payload, signatures.
    Envelope,
    /// Array of head and body.
    Payload,
    /// Who, where, when.
    Head,
    /// What.
    Body,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Envelope => "envelope",
            Self::Payload => "payload",
            Self::Head => "head",
            Self::Body => "body",
        })
    }
}

impl Refusal {
    /// A short word for counters and the ledger.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OverCap { .. } => "over_cap",
            Self::UnknownKind => "unknown_kind",
            Self::Malformed { part: Part::Envelope, .. } => "malformed_envelope",
            Self::Malformed { part: Part::Payload, .. } => "malformed_payload",
            Self::Malformed { part: Part::Head, .. } => "malformed_head",
            Self::Malformed { part: Part::Body, .. } => "malformed_body",
            Self::WrongType => "wrong_type",
            Self::UnknownVersion(_) => "unknown_version",
            Self::SignatureCount(_) => "signature_count",
            Self::UnknownKey => "unknown_key",
            Self::RevokedKey => "revoked_key",
            Self::BadSignature => "bad_signature",
            Self::ForeignBranch => "foreign_branch",
            Self::RoleNotAllowed { .. } => "role_not_allowed",
            Self::NotOurNeighbour { .. } => "not_our_neighbour",
            Self::WrongFederation => "wrong_federation",
            Self::WrongSender => "wrong_sender",
            Self::WrongAudience => "wrong_audience",
            Self::WrongTopic => "wrong_topic",
            Self::Expired { .. } => "expired",
            Self::FromTheFuture { .. } => "from_the_future",
            Self::OverlongLife { .. } => "overlong_life",
            Self::KeyringExpired => "keyring_expired",
            Self::RetainedCommand => "retained_command",
        }
    }

    /// Who is to blame, where a good signature proves it.
    pub fn culprit(&self) -> Option<&NodeId> {
        match self {
            Self::RoleNotAllowed { sender, .. } => Some(sender),
            _ => None,
        }
    }

    /// Whether it is no offence: on one broker everyone sees what is meant for others.
    pub fn is_for_others(&self) -> bool {
        matches!(self, Self::WrongAudience | Self::NotOurNeighbour { .. })
    }
}

/// Opens a message that came on `side` under `topic`.
///
/// # Errors
/// [`Refusal`]: the first check that failed.
pub fn open(
    door: Door<'_>,
    side: Side,
    topic: &str,
    wire: &[u8],
    now: Wall,
) -> Result<Verified, Refusal> {
    let parsed = topic::parse(door.prefix, topic).ok_or(Refusal::UnknownKind)?;
    let kind = kind_of(&parsed.leaf)?;
    if wire.len() > kind.cap_bytes() {
        let cap = kind.cap_bytes();
        return Err(Refusal::OverCap { kind: kind.as_str(), cap, actual: wire.len() });
    }
    let malformed = |part| move |error| Refusal::Malformed { part, error };
    let envelope =
        Envelope::from_bytes(wire, kind.cap_bytes()).map_err(malformed(Part::Envelope))?;
    if envelope.payload_type != kind.payload_type() {
        return Err(Refusal::WrongType);
    }
    let sender = signer(door.keyring, &envelope)?;
    check_place(door, sender, &parsed.branch, kind)?;
    check_signature(sender, &envelope)?;
    check_allowed(door, side, sender, kind, &parsed.leaf)?;

    let (head, body_bytes) =
        split_pair(&envelope.payload, kind.cap_bytes()).map_err(malformed(Part::Payload))?;
    let head: Head = decode(head, kind.cap_bytes()).map_err(malformed(Part::Head))?;
    check_head(door, &head, sender, topic, kind)?;
    check_age(&head, kind, now)?;
    if changes_something(kind) && door.keyring.standing(now) == Standing::Expired {
        return Err(Refusal::KeyringExpired);
    }
    let body = Body::from_bytes(kind, body_bytes).map_err(malformed(Part::Body))?;
    if let (Body::Command(command), Leaf::Cmd(name)) = (&body, &parsed.leaf)
        && command.name != name.as_str()
    {
        return Err(Refusal::WrongTopic);
    }
    Ok(Verified::new(head, body, body_bytes))
}

fn kind_of(leaf: &Leaf) -> Result<Kind, Refusal> {
    match leaf {
        Leaf::Machine(word) | Leaf::To(_, word) => {
            let kind = Kind::parse(word.as_str()).filter(|kind| *kind != Kind::Command);
            kind.ok_or(Refusal::UnknownKind)
        }
        Leaf::Cmd(_) => Ok(Kind::Command),
        _ => Err(Refusal::UnknownKind),
    }
}

/// The node of the key that the envelope names. Nodes sign alone.
fn signer<'a>(keyring: &'a Keyring, envelope: &Envelope) -> Result<&'a NodeEntry, Refusal> {
    let count = envelope.signatures.len();
    let [signature] = envelope.signatures.as_slice() else {
        return Err(Refusal::SignatureCount(count));
    };
    match keyring.by_key(signature.key) {
        Some(entry) => Ok(entry),
        None if keyring.revoked().contains(&signature.key) => Err(Refusal::RevokedKey),
        None => Err(Refusal::UnknownKey),
    }
}

/// A node writes in its own branch; a command lies in ours.
fn check_place(
    door: Door<'_>,
    sender: &NodeEntry,
    branch: &Branch,
    kind: Kind,
) -> Result<(), Refusal> {
    let own =
        branch.node == sender.node && branch.site == sender.site && branch.line == sender.line;
    let place = if kind == Kind::Command { branch.node == *door.me } else { own };
    if place { Ok(()) } else { Err(Refusal::ForeignBranch) }
}

/// Parents talk to children on the link above, children to parents on the link below.
fn check_allowed(
    door: Door<'_>,
    side: Side,
    sender: &NodeEntry,
    kind: Kind,
    leaf: &Leaf,
) -> Result<(), Refusal> {
    let mine = door.keyring.node(door.me);
    let from_parent =
        side == Side::Up && door.keyring.owners_of(door.me).any(|owner| owner.node == sender.node);
    let from_child = side == Side::Down
        && door.keyring.owners_of(&sender.node).any(|owner| owner.node == *door.me);
    let from_peer = side == Side::Down && door.keyring.peer_of(door.me) == Some(&sender.node);
    let is_second_of = |edge: &NodeId, device: &NodeId| {
        door.keyring.second_edge_of(device).is_some_and(|second| second.node == *edge)
    };
    let from_second = side == Side::Up && is_second_of(&sender.node, door.me);
    let from_guest = side == Side::Down && is_second_of(door.me, &sender.node);
    let has = |role: Role| sender.roles.contains(&role);
    let owner = has(Role::Cloud) || has(Role::Edge);
    let worker = has(Role::Device) || has(Role::Edge);
    let am = |role: Role| mine.is_some_and(|me| me.roles.contains(&role));
    let (role, neighbour) = match kind {
        Kind::Offer | Kind::Receipt | Kind::Result => (owner, from_parent || from_second),
        Kind::Keyring | Kind::Base => (owner, from_parent),
        Kind::Answer | Kind::Contribution => (worker, from_child || from_guest),
        Kind::Get => {
            let above = from_parent || from_second;
            let below = from_child || from_guest;
            (owner || worker, (above && owner) || (below && worker) || from_peer)
        }
        Kind::Lease => (owner, from_parent || from_peer),
        Kind::Promise => (worker, from_child),
        Kind::Mirror => (has(Role::Cloud), from_peer),
        // One's own comes back, or that of a copy with the same key.
        Kind::Checkpoint => (owner || worker, from_parent || from_child || sender.node == *door.me),
        // Who approves does nothing else.
        Kind::Command => {
            let approval = matches!(leaf, Leaf::Cmd(name) if name.as_str() == "rollout.approve");
            (has(Role::Operator) || (approval && has(Role::Approver)), true)
        }
        // What is served: from an edge to its devices, from a cloud to its edges.
        Kind::Assignment => {
            let inside = has(Role::Edge) && am(Role::Device);
            (owner, from_parent && (inside || has(Role::Cloud) && am(Role::Edge)))
        }
        Kind::Evidence => (has(Role::Device), from_child && am(Role::Edge)),
        Kind::SiteEvidence => (has(Role::Edge), from_child && am(Role::Cloud)),
        // Per-sample data stays inside its site: between a device and its own edge, nowhere else.
        Kind::Frame => {
            let from_my_edge = from_parent && has(Role::Edge) && am(Role::Device);
            let from_my_device = from_child && has(Role::Device) && am(Role::Edge);
            (worker, from_my_edge || from_my_device)
        }
    };
    let (sender, kind) = (sender.node.clone(), kind.as_str());
    match (role, neighbour) {
        (false, _) => Err(Refusal::RoleNotAllowed { sender, kind }),
        (true, false) => Err(Refusal::NotOurNeighbour { sender, kind }),
        (true, true) => Ok(()),
    }
}

fn check_signature(sender: &NodeEntry, envelope: &Envelope) -> Result<(), Refusal> {
    let signed = pae(&envelope.payload_type, &envelope.payload);
    let [signature] = envelope.signatures.as_slice() else { return Err(Refusal::BadSignature) };
    let signature = keys::Signature(signature.bytes);
    sender.key.verify(&signed, &signature).map_err(|_| Refusal::BadSignature)
}

fn check_head(
    door: Door<'_>,
    head: &Head,
    sender: &NodeEntry,
    topic: &str,
    kind: Kind,
) -> Result<(), Refusal> {
    if head.minor > MINOR {
        return Err(Refusal::UnknownVersion(head.minor));
    }
    if head.federation != *door.federation {
        return Err(Refusal::WrongFederation);
    }
    if head.sender != sender.node {
        return Err(Refusal::WrongSender);
    }
    if head.topic != topic {
        return Err(Refusal::WrongTopic);
    }
    // What was sealed for one of an owner and its standby is good for the other: it is resent verbatim.
    let peer = door.keyring.peer_of(door.me);
    let for_us = |audience: &NodeId| {
        audience == door.me || kind == Kind::Contribution && Some(audience) == peer
    };
    if !head.audience.as_ref().is_none_or(for_us) {
        return Err(Refusal::WrongAudience);
    }
    Ok(())
}

/// Clocks may differ by as much as a message of the kind lives; nothing lives longer than its kind.
fn check_age(head: &Head, kind: Kind, now: Wall) -> Result<(), Refusal> {
    let (issued_at, expires_at, most_ms) = (head.issued_at, head.expires_at, kind.lifetime_ms());
    if expires_at < now {
        return Err(Refusal::Expired { expires_at, now });
    }
    if issued_at > now.plus_ms(most_ms) {
        return Err(Refusal::FromTheFuture { issued_at, now });
    }
    let ms = expires_at.0.saturating_sub(issued_at.0);
    if ms > most_ms {
        return Err(Refusal::OverlongLife { kind: kind.as_str(), ms, most_ms });
    }
    Ok(())
}

/// An expired keyring stops change, never looking or answering.
fn changes_something(kind: Kind) -> bool {
    match kind {
        Kind::Offer
        | Kind::Contribution
        | Kind::Result
        | Kind::Command
        | Kind::Assignment
        | Kind::Mirror => true,
        Kind::Answer
        | Kind::Receipt
        | Kind::Get
        | Kind::Keyring
        | Kind::Checkpoint
        | Kind::Base
        | Kind::Frame
        | Kind::Lease
        | Kind::Promise
        | Kind::Evidence
        | Kind::SiteEvidence => false,
    }
}
