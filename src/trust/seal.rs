//! Sealing: from a body to the bytes that travel.

use super::keys::SigningKey;
use super::pae::pae;
use crate::ids::{BootId, Epoch, Name, NodeId, RoundNo};
use crate::time::Wall;
use crate::topic::{Branch, CommandName};
use crate::wire::{Body, CodecError, Envelope, Head, Kind, Signature, encode};

/// Schema additions that this version knows.
pub(super) const MINOR: u8 = 0;

/// Seals what a node says. Holds its key, its start and its running number.
#[derive(Debug)]
pub struct Sealer {
    key: SigningKey,
    federation: Name,
    me: NodeId,
    branch: Branch,
    boot: BootId,
    seq: u64,
}

/// Where a sealed message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// Under `m/`, for whoever may read it.
    Anyone,
    /// Under `m/`, meant for one node.
    Named(NodeId),
    /// Under `to/{node}/`.
    Directly(NodeId),
    /// Into another node's `cmd/`.
    Command(Branch, CommandName),
}

impl Sealer {
    /// A sealer for one start of a node.
    pub fn new(key: SigningKey, federation: Name, branch: Branch, boot: BootId) -> Self {
        let me = branch.node.clone();
        Self { key, federation, me, branch, boot, seq: 0 }
    }

    /// Seals a body; gives the topic and the bytes to publish there.
    ///
    /// # Errors
    /// [`CodecError`] when the body breaks a bound of the wire.
    pub fn seal(
        &mut self,
        to: &To,
        body: &Body,
        round: RoundNo,
        epoch: Epoch,
        now: Wall,
    ) -> Result<(String, Vec<u8>), CodecError> {
        let kind = body.kind();
        let (topic, audience) = self.address(to, kind);
        self.seq += 1;
        let head = Head {
            minor: MINOR,
            federation: self.federation.clone(),
            sender: self.me.clone(),
            audience,
            topic: topic.clone(),
            epoch,
            round,
            seq: self.seq,
            boot: self.boot,
            issued_at: now,
            expires_at: now.plus_ms(kind.lifetime_ms()),
        };
        let mut payload = vec![ARRAY_OF_TWO];
        payload.extend(encode(&head)?);
        payload.extend(body.to_bytes()?);
        let payload_type = kind.payload_type();
        let signature = self.key.sign(&pae(&payload_type, &payload));
        let signatures = vec![Signature { key: self.key.public().key_id(), bytes: signature.0 }];
        let wire = Envelope { payload_type, payload, signatures }.to_bytes()?;
        if wire.len() > kind.cap_bytes() {
            return Err(CodecError::TooLarge { cap: kind.cap_bytes(), actual: wire.len() });
        }
        Ok((topic, wire))
    }

    /// Its start.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// The part of the topic tree that it writes to.
    pub fn branch(&self) -> &Branch {
        &self.branch
    }

    /// Signs other bytes of this node: the ledger's checkpoints.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    fn address(&self, to: &To, kind: Kind) -> (String, Option<NodeId>) {
        let word = kind.as_str();
        match to {
            To::Anyone => (self.branch.machine(word), None),
            To::Named(node) => (self.branch.machine(word), Some(node.clone())),
            To::Directly(node) => (self.branch.to(node, word), Some(node.clone())),
            To::Command(branch, name) => (branch.cmd(name), Some(branch.node.clone())),
        }
    }
}

const ARRAY_OF_TWO: u8 = 0x92;
