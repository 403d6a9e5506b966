//! Documents that several keys sign: one envelope, and who of the known keys signed it.

use std::collections::BTreeSet;

use super::keys::{self, SigningKey, VerifyingKey};
use super::pae::pae;
use crate::ids::KeyId;
use crate::wire::{CodecError, Envelope, Signature};

/// Signs a payload with every key; the same key twice counts once.
///
/// # Errors
/// [`CodecError`] without a key, or with more than eight.
pub(super) fn seal_for_all(
    payload_type: String,
    payload: Vec<u8>,
    keys: &[&SigningKey],
) -> Result<Vec<u8>, CodecError> {
    let signed = pae(&payload_type, &payload);
    let mut signatures: Vec<Signature> = Vec::new();
    for key in keys {
        let id = key.public().key_id();
        if signatures.iter().all(|earlier| earlier.key != id) {
            signatures.push(Signature { key: id, bytes: key.sign(&signed).0 });
        }
    }
    Envelope { payload_type, payload, signatures }.to_bytes()
}

/// Those of `known` whose signature is in the envelope and verifies; unknown keys count for nothing.
///
/// # Errors
/// The key that is named and known, but whose signature is wrong: the payload was changed.
pub(super) fn signers_of(
    envelope: &Envelope,
    known: &[VerifyingKey],
) -> Result<BTreeSet<VerifyingKey>, KeyId> {
    let signed = pae(&envelope.payload_type, &envelope.payload);
    let mut signers = BTreeSet::new();
    for signature in &envelope.signatures {
        // A key id is a hint: all keys that it may mean are tried.
        let mut named = known.iter().filter(|key| key.key_id() == signature.key).peekable();
        if named.peek().is_none() {
            continue;
        }
        let bytes = keys::Signature(signature.bytes);
        match named.find(|key| key.verify(&signed, &bytes).is_ok()) {
            Some(key) => signers.insert(*key),
            None => return Err(signature.key),
        };
    }
    Ok(signers)
}
