//! A message that passed every check. Only `open.rs` can make one, and the simulator, where a run assumes trust.

use std::sync::Arc;

use ring::digest::{Context, SHA256};

use crate::ids::{BootId, Digest, Epoch, Name, NodeId, RoundNo, UpdateId};
use crate::time::Wall;
use crate::wire::{Body, Head};

/// A message whose sender, place, age and form were checked.
///
/// Its fields can't be set from outside of `trust`, so holding one is the proof. Clones share what was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    said: Arc<Said>,
    retained: bool,
}

#[derive(Debug, PartialEq)]
struct Said {
    head: Head,
    body: Body,
    body_digest: Digest,
}

impl Verified {
    /// For `open.rs`, after its last check.
    pub(super) fn new(head: Head, body: Body, body_bytes: &[u8]) -> Self {
        let body_digest = Digest::of(body_bytes);
        Self { said: Arc::new(Said { head, body, body_digest }), retained: false }
    }

    /// The same, given out by a broker that had kept it: it may be old, and its sender away.
    pub fn kept_by_broker(self) -> Self {
        Self { retained: true, ..self }
    }

    /// Whether a broker had kept it.
    pub fn was_retained(&self) -> bool {
        self.retained
    }

    /// For `sim/`, where thousands of nodes believe each other: as if it had come through the gate. A program that
    /// is built without the feature `sim` hasn't got it.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn assumed(head: Head, body: Body, body_bytes: &[u8]) -> Self {
        Self::new(head, body, body_bytes)
    }

    /// What machines' tests start from: as if it had come through the gate.
    #[cfg(test)]
    pub(crate) fn for_test(head: Head, body: Body) -> Self {
        let bytes = body.to_bytes().expect("a test's body encodes");
        Self::new(head, body, &bytes)
    }

    /// The node whose key signed it.
    pub fn sender(&self) -> &NodeId {
        &self.said.head.sender
    }

    /// What it says.
    pub fn body(&self) -> &Body {
        &self.said.body
    }

    /// SHA-256 of the body's bytes as they were signed.
    pub fn body_digest(&self) -> Digest {
        self.said.body_digest
    }

    /// Fencing number that the sender knows.
    pub fn epoch(&self) -> Epoch {
        self.said.head.epoch
    }

    /// Round that it belongs to.
    pub fn round(&self) -> RoundNo {
        self.said.head.round
    }

    /// The sender's start and the message's number in it: guards commands against replay.
    pub fn sequence(&self) -> (BootId, u64) {
        (self.said.head.boot, self.said.head.seq)
    }

    /// From when on it changes nothing any more, by its sender's clock.
    pub fn expires_at(&self) -> Wall {
        self.said.head.expires_at
    }

    /// Name of the contribution that it carries.
    pub fn update_id(&self) -> UpdateId {
        let Said { head, body_digest, .. } = &*self.said;
        update_id(&head.federation, head.round, &head.sender, body_digest)
    }
}

/// `SHA-256(federation, round, sender, body digest)[..16]`: the same work has the same name however
/// often it is sent, and other work of the same sender and round another one.
pub fn update_id(federation: &Name, round: RoundNo, sender: &NodeId, body: &Digest) -> UpdateId {
    let mut hash = Context::new(&SHA256);
    hash.update(b"gaisnet-update-v1\n");
    // Names can't hold a line feed, so the parts can't run into each other.
    hash.update(format!("{federation}\n{round}\n{sender}\n").as_bytes());
    hash.update(&body.0);
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(hash.finish().as_ref()) {
        *to = *from;
    }
    UpdateId(id)
}
