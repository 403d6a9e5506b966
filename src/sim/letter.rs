//! A message on its way: sealed once, so that each resend is verbatim.

use crate::ids::{Epoch, NodeId, RoundNo};
use crate::protocol::fixture::verified;
use crate::trust::Verified;
use crate::wire::{Body, Kind, decode, encode};

/// What stands in an outbox item's `wire`.
type Parts = (u8, RoundNo, Epoch, serde_bytes::ByteBuf);

/// Seals a body.
pub(crate) fn seal(body: &Body, round: RoundNo, epoch: Epoch) -> Vec<u8> {
    let kind = Kind::ALL.iter().position(|kind| *kind == body.kind()).unwrap();
    let bytes = serde_bytes::ByteBuf::from(body.to_bytes().unwrap());
    encode(&(u8::try_from(kind).unwrap(), round, epoch, bytes)).unwrap()
}

/// Opens it, as if the gate had let it through.
pub(crate) fn open(sender: &NodeId, wire: &[u8]) -> Verified {
    let (kind, round, epoch, bytes): Parts = decode(wire, 1 << 20).unwrap();
    let body = Body::from_bytes(Kind::ALL[usize::from(kind)], &bytes).unwrap();
    verified(sender, round, epoch, body)
}
