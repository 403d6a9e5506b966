//! The head: who says what to whom, where and when. Part of what is signed.

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, Epoch, Name, NodeId, RoundNo};
use crate::time::Wall;

/// First element of each payload; travels as a fixed array in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Minor version of the schema: additions only.
    pub minor: u8,
    /// Federation that this message belongs to.
    pub federation: Name,
    /// Node that sealed it.
    pub sender: NodeId,
    /// The one node it is meant for, or all that may read the topic.
    pub audience: Option<NodeId>,
    /// Topic that it is published on.
    pub topic: String,
    /// Fencing number of the round's owner, as far as the sender knows it.
    pub epoch: Epoch,
    /// Round it belongs to, 0 for none.
    pub round: RoundNo,
    /// Number of this message since the sender's start; guards commands.
    pub seq: u64,
    /// The sender's start.
    pub boot: BootId,
    /// When it was sealed, by the sender's clock.
    pub issued_at: Wall,
    /// When it stops to be able to change anything.
    pub expires_at: Wall,
}

/// The layout: audience `*` is everybody.
type Parts = (u8, Name, NodeId, String, String, Epoch, RoundNo, u64, BootId, Wall, Wall);

impl Serialize for Head {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let audience = self.audience.as_ref().map_or("*", |node| node.as_str());
        (
            self.minor,
            &self.federation,
            &self.sender,
            audience,
            &self.topic,
            self.epoch,
            self.round,
            self.seq,
            self.boot,
            self.issued_at,
            self.expires_at,
        )
            .serialize(s)
    }
}

impl<'de> Deserialize<'de> for Head {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (
            minor,
            federation,
            sender,
            audience,
            topic,
            epoch,
            round,
            seq,
            boot,
            issued_at,
            expires_at,
        ) = Parts::deserialize(d)?;
        let audience = match audience.as_str() {
            "*" => None,
            _ => Some(NodeId::new(audience).map_err(serde::de::Error::custom)?),
        };
        Ok(Self {
            minor,
            federation,
            sender,
            audience,
            topic,
            epoch,
            round,
            seq,
            boot,
            issued_at,
            expires_at,
        })
    }
}
