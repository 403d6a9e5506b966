//! The envelope: opaque payload bytes with their type and signatures.
//!
//! ```text
//! msgpack array of 4: [ 1, payload type, payload bin, [[key id bin 8, signature bin 64], 1 to 8 of them] ]
//! ```
//! What is signed is DSSE's pre-authentication encoding of type and payload (`trust/pae.rs`).

use super::codec::{CodecError, decode, encode};
use crate::ids::KeyId;

/// Version of the envelope's own layout.
const LAYOUT: u8 = 1;

/// One signature with a hint to its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Which key to try; never a decision.
    pub key: KeyId,
    /// Ed25519.
    pub bytes: [u8; 64],
}

/// A payload as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// `application/vnd.gaisnet.<kind>.v1+msgpack`.
    pub payload_type: String,
    /// The signed bytes, not looked into.
    pub payload: Vec<u8>,
    /// 1 to 8.
    pub signatures: Vec<Signature>,
}

impl Envelope {
    /// Longest payload type in bytes.
    pub const MAX_TYPE_BYTES: usize = 96;
    /// Most signatures.
    pub const MAX_SIGNATURES: usize = 8;

    /// The bytes that travel.
    ///
    /// # Errors
    /// [`CodecError::Structure`] when a bound of the layout isn't kept.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        self.check()?;
        let signatures: Vec<_> =
            self.signatures.iter().map(|s| (s.key, serde_bytes::ByteArray::new(s.bytes))).collect();
        encode(&(LAYOUT, &self.payload_type, serde_bytes::Bytes::new(&self.payload), signatures))
    }

    /// Takes bytes of at most `cap` apart.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn from_bytes(bytes: &[u8], cap: usize) -> Result<Self, CodecError> {
        let (layout, payload_type, payload, signatures): Parts = decode(bytes, cap)?;
        if layout != LAYOUT {
            return Err(CodecError::Structure(format!("unknown envelope layout {layout}")));
        }
        let signatures = signatures
            .into_iter()
            .map(|(key, bytes)| Signature { key, bytes: bytes.into_array() })
            .collect();
        let envelope = Self { payload_type, payload: payload.into_vec(), signatures };
        envelope.check()?;
        Ok(envelope)
    }

    fn check(&self) -> Result<(), CodecError> {
        let bad = |what: &str| Err(CodecError::Structure(what.into()));
        if self.payload_type.len() > Self::MAX_TYPE_BYTES || !self.payload_type.is_ascii() {
            return bad("payload type is not ASCII of at most 96 bytes");
        }
        if !(1..=Self::MAX_SIGNATURES).contains(&self.signatures.len()) {
            return bad("expected 1 to 8 signatures");
        }
        Ok(())
    }
}

type Parts = (u8, String, serde_bytes::ByteBuf, Vec<(KeyId, serde_bytes::ByteArray<64>)>);
