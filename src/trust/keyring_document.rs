//! The signed keyring as one document: what lies on disk, and what `m/keyring` passes on.
//!
//! ```text
//! envelope( application/vnd.gaisnet.keyring.v1+msgpack, msgpack of the Keyring, root signatures )
//! ```
//! The same envelope and signing as every message, so `openssl` can check it too. Only keys of a
//! root count, and a root key signs nothing else; a node that passes the document on wraps it into
//! a message of its own, whose signature says nothing about the keyring.

use std::collections::BTreeSet;

use super::keyring::{Keyring, KeyringError, RootRole};
use super::keys::{SigningKey, VerifyingKey};
use super::signers::{seal_for_all, signers_of};
use crate::ids::{Digest, KeyId};
use crate::wire::{CodecError, Envelope, Kind, decode, encode};

/// Longest document in bytes: ten thousand nodes. Up to some four hundred it fits into one message.
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;

/// Signs a keyring with root keys; the same key twice counts once.
///
/// Whether they suffice is decided by who opens it.
///
/// # Errors
/// [`DocumentError::Codec`] without a key, with more than eight, or for a keyring over
/// [`MAX_DOCUMENT_BYTES`].
pub fn seal_document(keyring: &Keyring, root: &[&SigningKey]) -> Result<Vec<u8>, DocumentError> {
    let bytes = seal_for_all(Kind::Keyring.payload_type(), encode(keyring)?, root)?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        let (cap, actual) = (MAX_DOCUMENT_BYTES, bytes.len());
        return Err(CodecError::TooLarge { cap, actual }.into());
    }
    Ok(bytes)
}

/// Opens a document.
///
/// With a `trusted` keyring the new one must be allowed to follow it ([`Keyring::accept`]), and
/// nothing of it is decoded before the trusted root signed it. Without one it must be signed by the
/// root that it names itself: whose that is, a person has to compare ([`root_fingerprint`]).
///
/// # Errors
/// [`DocumentError`]. A signature by a key of a root that doesn't verify spoils the document; those
/// of unknown keys count for nothing.
pub fn open_document(bytes: &[u8], trusted: Option<&Keyring>) -> Result<Keyring, DocumentError> {
    let envelope = Envelope::from_bytes(bytes, MAX_DOCUMENT_BYTES)?;
    if envelope.payload_type != Kind::Keyring.payload_type() {
        return Err(DocumentError::WrongType);
    }
    let mut signers = BTreeSet::new();
    if let Some(trusted) = trusted {
        signers = root_signers(&envelope, trusted.root())?;
        trusted.check_signers(&signers)?;
    }
    let keyring: Keyring = decode(&envelope.payload, MAX_DOCUMENT_BYTES)?;
    signers.extend(root_signers(&envelope, keyring.root())?);
    if let Some(trusted) = trusted {
        return Ok(trusted.accept(keyring, &signers)?);
    }
    keyring.check_signers(&signers)?;
    Ok(keyring)
}

/// What people compare before they trust a federation's first keyring: SHA-256 over the root's
/// threshold and its keys in their order.
pub fn root_fingerprint(root: &RootRole) -> Digest {
    let keys: BTreeSet<&VerifyingKey> = root.keys.iter().collect();
    let mut statement = format!("gaisnet-root-v1\n{}\n", root.threshold).into_bytes();
    for key in keys {
        statement.extend_from_slice(key.as_bytes());
    }
    Digest::of(&statement)
}

fn root_signers(
    envelope: &Envelope,
    root: &RootRole,
) -> Result<BTreeSet<VerifyingKey>, DocumentError> {
    signers_of(envelope, &root.keys).map_err(|key| DocumentError::BadSignature { key })
}

/// Why a keyring document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Not an envelope, or not a keyring in it.
    #[error("not a keyring document: {0}")]
    Codec(#[from] CodecError),
    /// An envelope of something else.
    #[error("not a keyring document: it is signed as something else")]
    WrongType,
    /// A root key is named, but its signature is wrong.
    #[error("the signature by root key {key} does not verify: the keyring was changed")]
    BadSignature {
        /// The key.
        key: KeyId,
    },
    /// It isn't signed by enough keys, or may not follow.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

impl DocumentError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Codec(_) => "document_malformed",
            Self::WrongType => "document_wrong_type",
            Self::BadSignature { .. } => "document_bad_signature",
            Self::Keyring(error) => error.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::Name;
    use crate::time::Wall;
    use crate::trust::keyring::{Enrolment, NodeEntry, Role};
    use crate::trust::pae::pae;
    use crate::wire::Signature;

    fn key(seed: u8) -> SigningKey {
        SigningKey::generate(&[seed; 32])
    }

    fn root_of(threshold: u32, seeds: &[u8]) -> RootRole {
        let keys = seeds.iter().map(|seed| *key(*seed).public()).collect();
        RootRole { threshold: NonZeroU32::new(threshold).unwrap(), keys }
    }

    fn first(root: RootRole) -> Keyring {
        Keyring::first(Name::new("fed").unwrap(), root, Wall(1), Wall(100)).unwrap()
    }

    fn with_cloud(ring: &Keyring) -> Keyring {
        let node = Name::new("cloud").unwrap();
        let roles = BTreeSet::from([Role::Cloud]);
        let proof = key(1).prove_possession(ring.federation(), &node, &roles);
        let (site, line) = (Name::new("_").unwrap(), Name::new("_").unwrap());
        let entry = NodeEntry { node, site, line, roles, parent: None, key: *key(1).public() };
        ring.enrol(&Enrolment { entry, proof }, Wall(2), Wall(100)).unwrap()
    }

    fn refusal(bytes: &[u8], trusted: Option<&Keyring>) -> &'static str {
        open_document(bytes, trusted).unwrap_err().kind()
    }

    #[test]
    fn a_first_keyring_is_taken_when_its_own_root_signed_it() {
        let ring = first(root_of(2, &[200, 201, 202]));
        let good = seal_document(&ring, &[&key(202), &key(200)]).unwrap();
        assert_eq!(open_document(&good, None).unwrap(), ring);
        let twice = seal_document(&ring, &[&key(200), &key(200)]).unwrap();
        assert_eq!(refusal(&twice, None), "keyring_too_few_signers");
        let stranger = seal_document(&ring, &[&key(200), &key(9)]).unwrap();
        assert_eq!(refusal(&stranger, None), "keyring_too_few_signers");
        assert!(seal_document(&ring, &[]).is_err());
    }

    #[test]
    fn a_next_keyring_needs_the_root_that_is_trusted() {
        let one = first(root_of(1, &[200]));
        let two = with_cloud(&one);
        let good = seal_document(&two, &[&key(200)]).unwrap();
        assert_eq!(open_document(&good, Some(&one)).unwrap(), two);
        assert_eq!(refusal(&good, Some(&two)), "keyring_not_newer");
        let foreign = with_cloud(&first(root_of(1, &[201])));
        let foreign = seal_document(&foreign, &[&key(201)]).unwrap();
        assert!(open_document(&foreign, None).is_ok());
        assert_eq!(refusal(&foreign, Some(&one)), "keyring_too_few_signers");
    }

    #[test]
    fn a_new_root_takes_over_with_the_signatures_of_both() {
        let one = first(root_of(1, &[200]));
        let two = one.with_root(root_of(1, &[201]), Wall(2), Wall(100)).unwrap();
        let both = seal_document(&two, &[&key(200), &key(201)]).unwrap();
        assert_eq!(open_document(&both, Some(&one)).unwrap(), two);
        for half in [200, 201] {
            let half = seal_document(&two, &[&key(half)]).unwrap();
            assert_eq!(refusal(&half, Some(&one)), "keyring_too_few_signers");
        }
        assert_ne!(root_fingerprint(one.root()), root_fingerprint(two.root()));
    }

    #[test]
    fn a_fingerprint_does_not_depend_on_the_order_of_keys_but_on_the_threshold() {
        let print = |threshold, seeds: &[u8]| root_fingerprint(&root_of(threshold, seeds));
        assert_eq!(print(1, &[1, 2]), print(1, &[2, 1]));
        assert_ne!(print(1, &[1, 2]), print(2, &[1, 2]));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let ring = with_cloud(&first(root_of(1, &[200])));
        let good = seal_document(&ring, &[&key(200)]).unwrap();
        for at in 0..good.len() {
            assert!(open_document(&good[..at], None).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(open_document(&bad, None).is_err(), "bit flipped at {at}");
        }
        assert!(open_document(&[&good[..], &[0]].concat(), None).is_err());
    }

    #[test]
    fn a_message_that_passes_a_keyring_on_is_no_keyring() {
        let ring = first(root_of(1, &[200]));
        let payload_type = Kind::Offer.payload_type();
        let payload = encode(&ring).unwrap();
        let bytes = key(200).sign(&pae(&payload_type, &payload)).0;
        let signatures = vec![Signature { key: key(200).public().key_id(), bytes }];
        let other = Envelope { payload_type, payload, signatures }.to_bytes().unwrap();
        assert_eq!(refusal(&other, None), "document_wrong_type");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open_document(&bytes, None).is_err());
        }
    }
}
