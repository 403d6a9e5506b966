//! Released base models: a card, and the seal of a release key on its bytes.
//!
//! ```text
//! <name>.toml          the card: digest of the weights, sizes, licence
//! <name>.sig           envelope( application/vnd.gaisnet.model-card.v1+toml, the card's bytes, signatures )
//! <name>.safetensors   the weights, pinned by the card
//! ```
//! Who takes part in a federation runs what the base computes, so a node loads none that nobody
//! answers for. One living release key suffices; where there is none, the root may stand in, with as
//! many of its keys as its threshold says. Files are read by `torch/card.rs`.

use std::collections::BTreeSet;

use super::keyring::{Keyring, Role, RootRole};
use super::keys::{SigningKey, VerifyingKey};
use super::signers::{seal_for_all, signers_of};
use crate::ids::KeyId;
use crate::wire::{CodecError, Envelope};

/// Longest card in bytes.
pub const MAX_CARD_BYTES: usize = 16 * 1024;
/// Longest seal in bytes: a card and eight signatures.
pub const MAX_SEAL_BYTES: usize = 18 * 1024;

/// Seals the bytes of a card with release keys.
///
/// # Errors
/// [`CodecError`] without a key, with more than eight, or for a card over [`MAX_CARD_BYTES`].
pub fn seal_card(card: &[u8], release: &[&SigningKey]) -> Result<Vec<u8>, CodecError> {
    if card.len() > MAX_CARD_BYTES {
        return Err(CodecError::TooLarge { cap: MAX_CARD_BYTES, actual: card.len() });
    }
    seal_for_all(PAYLOAD_TYPE.to_owned(), card.to_vec(), release)
}

/// Whose seal on a card a node believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseTrust {
    keys: BTreeSet<VerifyingKey>,
    root: Option<RootRole>,
}

impl ReleaseTrust {
    /// The key that a node's settings name, and no other.
    pub fn pinned(key: VerifyingKey) -> Self {
        Self { keys: BTreeSet::from([key]), root: None }
    }

    /// Also this key.
    #[must_use]
    pub fn and_key(mut self, key: VerifyingKey) -> Self {
        self.keys.insert(key);
        self
    }

    /// Also the keyring's living keys of the role `release`, and its root; none that it revoked.
    #[must_use]
    pub fn and_keyring(mut self, keyring: &Keyring) -> Self {
        let release = keyring.nodes().filter(|entry| entry.roles.contains(&Role::Release));
        self.keys.extend(release.map(|entry| entry.key));
        self.keys.retain(|key| !keyring.revoked().contains(&key.key_id()));
        self.root = Some(keyring.root().clone());
        self
    }

    /// Checks that a seal is one of a trusted key on exactly this card; gives the keys that count.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn check(&self, card: &[u8], seal: &[u8]) -> Result<BTreeSet<VerifyingKey>, ReleaseError> {
        let envelope = Envelope::from_bytes(seal, MAX_SEAL_BYTES)?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(ReleaseError::WrongType);
        }
        let root_keys = self.root.iter().flat_map(|root| &root.keys);
        let known: Vec<VerifyingKey> = self.keys.iter().chain(root_keys).copied().collect();
        let signers = signers_of(&envelope, &known).map_err(|key| ReleaseError::Bad { key })?;
        let by_root = self.root.as_ref().is_some_and(|root| root.is_met_by(&signers));
        if !by_root && self.keys.is_disjoint(&signers) {
            let keys = envelope.signatures.iter().map(|signature| signature.key).collect();
            return Err(ReleaseError::Foreign { keys });
        }
        if envelope.payload != card {
            return Err(ReleaseError::OtherCard);
        }
        Ok(signers)
    }
}

/// Why a base isn't accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Not an envelope.
    #[error("the signature is damaged: {0}; fetch it again from where the base came from")]
    Codec(#[from] CodecError),
    /// An envelope of something else.
    #[error("the signature is one of something else than a model's card")]
    WrongType,
    /// A known key is named, but its signature is wrong.
    #[error("the signature by release key {key} does not verify: it was changed")]
    Bad {
        /// The key.
        key: KeyId,
    },
    /// Nobody whom this node trusts with releases signed it.
    #[error(
        "signed by {}, which may not release models here: name its public half in \
         model.release_key, or enrol it with the role release", listed(.keys)
    )]
    Foreign {
        /// The keys that are named.
        keys: Vec<KeyId>,
    },
    /// The signature is good, but another card was signed.
    #[error("the card is not the one that was signed: take card and signature from one place")]
    OtherCard,
}

impl ReleaseError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Codec(_) => "release_malformed",
            Self::WrongType => "release_wrong_type",
            Self::Bad { .. } => "release_bad_signature",
            Self::Foreign { .. } => "release_foreign_key",
            Self::OtherCard => "release_other_card",
        }
    }
}

fn listed(keys: &[KeyId]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

const PAYLOAD_TYPE: &str = "application/vnd.gaisnet.model-card.v1+toml";

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::ids::Name;
    use crate::time::Wall;
    use crate::trust::keyring::{Enrolment, NodeEntry};
    use crate::trust::keyring_document::seal_document;

    const CARD: &[u8] = b"name = \"tiny\"\n";

    fn key(seed: u8) -> SigningKey {
        SigningKey::generate(&[seed; 32])
    }

    fn keyring(threshold: u32, root: &[u8]) -> Keyring {
        let keys = root.iter().map(|seed| *key(*seed).public()).collect();
        let root = RootRole { threshold: NonZeroU32::new(threshold).unwrap(), keys };
        Keyring::first(Name::new("fed").unwrap(), root, Wall(1), Wall(100)).unwrap()
    }

    fn with_release(ring: &Keyring, seed: u8) -> Keyring {
        let name = |text: &str| Name::new(text.to_owned()).unwrap();
        let roles = BTreeSet::from([Role::Release]);
        let proof = key(seed).prove_possession(ring.federation(), &name("models"), &roles);
        let (site, line) = (name("_"), name("_"));
        let key = *key(seed).public();
        let entry = NodeEntry { node: name("models"), site, line, roles, parent: None, key };
        ring.enrol(&Enrolment { entry, proof }, Wall(2), Wall(100)).unwrap()
    }

    fn kind(trust: &ReleaseTrust, card: &[u8], seal: &[u8]) -> &'static str {
        trust.check(card, seal).map_or_else(|error| error.kind(), |_| "ok")
    }

    fn pinned(seed: u8) -> ReleaseTrust {
        ReleaseTrust::pinned(*key(seed).public())
    }

    #[test]
    fn the_pinned_key_releases_and_a_foreign_one_does_not() {
        let seal = seal_card(CARD, &[&key(1)]).unwrap();
        assert_eq!(kind(&pinned(1), CARD, &seal), "ok");
        assert_eq!(kind(&pinned(2), CARD, &seal), "release_foreign_key");
        let text = pinned(2).check(CARD, &seal).unwrap_err().to_string();
        assert!(text.contains(&key(1).public().key_id().to_string()), "{text}");
        assert!(text.contains("model.release_key"), "{text}");
    }

    #[test]
    fn another_card_under_a_good_seal_is_refused() {
        let seal = seal_card(CARD, &[&key(1)]).unwrap();
        assert_eq!(kind(&pinned(1), b"name = \"tinz\"\n", &seal), "release_other_card");
        assert_eq!(kind(&pinned(1), b"", &seal), "release_other_card");
    }

    #[test]
    fn the_keyrings_release_role_counts_until_it_is_revoked() {
        let ring = with_release(&keyring(1, &[200]), 7);
        let seal = seal_card(CARD, &[&key(7)]).unwrap();
        let trust = |ring: &Keyring| pinned(1).and_keyring(ring);
        assert_eq!(kind(&pinned(1), CARD, &seal), "release_foreign_key");
        assert_eq!(kind(&trust(&ring), CARD, &seal), "ok");
        let revoked = ring.revoke(key(7).public().key_id(), Wall(3), Wall(100)).unwrap();
        assert_eq!(kind(&trust(&revoked), CARD, &seal), "release_foreign_key");
        let both = pinned(7).and_keyring(&revoked);
        assert_eq!(kind(&both, CARD, &seal), "release_foreign_key", "also where it is pinned");
    }

    #[test]
    fn the_root_stands_in_with_its_threshold() {
        let ring = keyring(2, &[200, 201, 202]);
        let trust = pinned(1).and_keyring(&ring);
        let one = seal_card(CARD, &[&key(200)]).unwrap();
        let two = seal_card(CARD, &[&key(200), &key(202)]).unwrap();
        assert_eq!(kind(&trust, CARD, &one), "release_foreign_key");
        assert_eq!(kind(&trust, CARD, &two), "ok");
    }

    #[test]
    fn a_seal_on_something_else_is_none_on_a_card() {
        let ring = keyring(1, &[200]);
        let document = seal_document(&ring, &[&key(200)]).unwrap();
        let trust = pinned(1).and_keyring(&ring);
        assert_eq!(kind(&trust, CARD, &document), "release_wrong_type");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let good = seal_card(CARD, &[&key(1)]).unwrap();
        for at in 0..good.len() {
            assert!(pinned(1).check(CARD, &good[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(pinned(1).check(CARD, &bad).is_err(), "bit {bit} flipped at {at}");
            }
        }
        assert!(pinned(1).check(CARD, &[&good[..], &[0]].concat()).is_err());
        assert!(seal_card(CARD, &[]).is_err());
        assert!(seal_card(&vec![b' '; MAX_CARD_BYTES + 1], &[&key(1)]).is_err());
    }
}
