//! Ed25519 keys: signing, verifying, files that OpenSSL reads, and proof of possession.
//!
//! A [`VerifyingKey`] can't be built from an encoding that lets anybody sign for it (the points of
//! small order), so holding one means that it passed that check. A [`SigningKey`] shows no private
//! byte and wipes its seed; ring's expanded copy of it is beyond our reach and is not wiped.
//!
//! Files are read and written by `store/keyfile.rs`, random seeds come from there too.

use std::collections::BTreeSet;
use std::fmt;

use ring::digest::{Context, SHA256};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::keyring::Role;
use super::pem;
use crate::ids::{KeyId, Name, NodeId};

/// A private key that signs.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
    public: VerifyingKey,
}

impl SigningKey {
    /// The key of a seed of 32 random bytes. The same seed gives the same key.
    pub fn generate(seed: &[u8; 32]) -> Self {
        let mut der = Zeroizing::new([0; 48]);
        let (head, tail) = der.split_at_mut(PKCS8_V1.len());
        head.copy_from_slice(&PKCS8_V1);
        tail.copy_from_slice(seed);
        match Self::from_der(&*der) {
            Ok(key) => key,
            Err(_) => unreachable!("each 32 bytes are a seed, and clamping rules out small order"),
        }
    }

    /// Reads a PKCS#8 v1 key as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// Where the public key is known too, `expected` guards against the wrong file.
    ///
    /// # Errors
    /// [`KeyError::NotPrivate`] when it is anything else, [`KeyError::Mismatch`] when the derived
    /// public key isn't `expected`.
    pub fn from_pem(text: &str, expected: Option<&VerifyingKey>) -> Result<Self, KeyError> {
        let der = pem::decode(PRIVATE_LABEL, text).ok_or(KeyError::NotPrivate)?;
        let key = Self::from_der(&der)?;
        match expected {
            Some(public) if *public != key.public => {
                Err(KeyError::Mismatch { expected: public.key_id(), actual: key.public.key_id() })
            }
            _ => Ok(key),
        }
    }

    /// The PKCS#8 v1 form, which OpenSSL 3.0 reads (it can't read ring's v2).
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut der = Zeroizing::new(Vec::with_capacity(48));
        der.extend_from_slice(&PKCS8_V1);
        der.extend_from_slice(self.seed.as_ref());
        pem::encode(PRIVATE_LABEL, &der)
    }

    /// Signs the bytes of `message`. The caller separates domains; see `trust/pae.rs`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        Signature(bytes)
    }

    /// The public half.
    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    /// Shows that whoever asks for enrolment holds this key.
    pub fn prove_possession(
        &self,
        federation: &Name,
        node: &NodeId,
        roles: &BTreeSet<Role>,
    ) -> Signature {
        self.sign(&possession_statement(federation, node, roles, &self.public))
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        // ring takes v2 too; with 48 bytes only v1 is left, whose last 32 bytes are the seed.
        if der.len() != 48 {
            return Err(KeyError::NotPrivate);
        }
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::NotPrivate)?;
        let mut seed = Zeroizing::new([0; 32]);
        for (to, from) in seed.iter_mut().zip(der.iter().skip(PKCS8_V1.len())) {
            *to = *from;
        }
        let public = VerifyingKey::from_slice(pair.public_key().as_ref())?;
        Ok(Self { pair, seed, public })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.key_id())
    }
}

/// A public key whose signatures mean something: canonical and not of small order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// Checks and takes 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::NotCanonical`] or [`KeyError::SmallOrder`].
    pub fn new(bytes: [u8; 32]) -> Result<Self, KeyError> {
        // The top bit is the sign of x, the rest is y, little-endian.
        let mut y = bytes;
        y[31] &= 0x7f;
        if !y.iter().rev().lt(FIELD_PRIME.iter().rev()) {
            return Err(KeyError::NotCanonical);
        }
        if SMALL_ORDER_Y.contains(&y) {
            return Err(KeyError::SmallOrder);
        }
        Ok(Self(bytes))
    }

    /// As [`VerifyingKey::new`], from a slice.
    ///
    /// # Errors
    /// [`KeyError::NotPublic`] when it hasn't 32 bytes, and those of `new`.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        Self::new(bytes.try_into().map_err(|_| KeyError::NotPublic)?)
    }

    /// Reads a `PUBLIC KEY` block (`SubjectPublicKeyInfo`), as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// [`KeyError::NotPublic`] when it is anything else, and those of `new`.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = pem::decode(PUBLIC_LABEL, text).ok_or(KeyError::NotPublic)?;
        Self::from_slice(der.strip_prefix(SPKI.as_slice()).ok_or(KeyError::NotPublic)?)
    }

    /// The `SubjectPublicKeyInfo` form for OpenSSL.
    pub fn to_pem(&self) -> String {
        let mut der = SPKI.to_vec();
        der.extend_from_slice(&self.0);
        pem::encode(PUBLIC_LABEL, &der).to_string()
    }

    /// The 32 bytes of RFC 8032.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hint by which envelopes name this key; never a decision.
    pub fn key_id(&self) -> KeyId {
        key_id(&self.0)
    }

    /// Checks a signature over the bytes of `message`.
    ///
    /// # Errors
    /// [`KeyError::BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, &signature.0)
            .map_err(|_| KeyError::BadSignature { key: self.key_id() })
    }

    /// Checks what [`SigningKey::prove_possession`] made.
    ///
    /// # Errors
    /// [`KeyError::BadSignature`].
    pub fn verify_possession(
        &self,
        federation: &Name,
        node: &NodeId,
        roles: &BTreeSet<Role>,
        proof: &Signature,
    ) -> Result<(), KeyError> {
        self.verify(&possession_statement(federation, node, roles, self), proof)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for VerifyingKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(&self.0, s)
    }
}

impl<'de> Deserialize<'de> for VerifyingKey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(deserialize_bytes(d)?).map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(&self.0, s)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        deserialize_bytes(d).map(Self)
    }
}

/// First 8 bytes of SHA-256 over `"gaisnet-key-v1\n"` and the public key.
pub fn key_id(public: &[u8; 32]) -> KeyId {
    let mut hash = Context::new(&SHA256);
    hash.update(b"gaisnet-key-v1\n");
    hash.update(public);
    let mut id = [0; 8];
    for (to, from) in id.iter_mut().zip(hash.finish().as_ref()) {
        *to = *from;
    }
    KeyId(id)
}

/// Why a key or a signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a private key in the one form that is read.
    #[error(
        "not an Ed25519 private key in PKCS#8 v1 PEM: make one with `gaisnet keys new` or `openssl genpkey -algorithm ed25519`"
    )]
    NotPrivate,
    /// Not a public key in the one form that is read.
    #[error("not an Ed25519 public key: expected 32 bytes, or `openssl pkey -pubout` PEM")]
    NotPublic,
    /// The encoding isn't the one that a private key gives.
    #[error("public key is not canonically encoded")]
    NotCanonical,
    /// Anybody can sign for such a key.
    #[error("public key is of small order: anybody could sign for it")]
    SmallOrder,
    /// The private key isn't the one that belongs to the public key.
    #[error("private key belongs to {actual}, expected {expected}")]
    Mismatch {
        /// Id of the public key that was given.
        expected: KeyId,
        /// Id of the derived one.
        actual: KeyId,
    },
    /// The signature isn't one of this key over these bytes.
    #[error("signature does not verify with key {key}")]
    BadSignature {
        /// The key that was tried.
        key: KeyId,
    },
}

impl KeyError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotPrivate => "key_not_private",
            Self::NotPublic => "key_not_public",
            Self::NotCanonical => "key_not_canonical",
            Self::SmallOrder => "key_small_order",
            Self::Mismatch { .. } => "key_mismatch",
            Self::BadSignature { .. } => "bad_signature",
        }
    }
}

/// What a proof of possession signs. Names have no line breaks, so the lines are unambiguous, and
/// neither an envelope (`DSSEv1 `) nor a checkpoint (`gaisnet/`) begins like this.
fn possession_statement(
    federation: &Name,
    node: &NodeId,
    roles: &BTreeSet<Role>,
    public: &VerifyingKey,
) -> Vec<u8> {
    let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    let roles = roles.join(",");
    format!("gaisnet-possession-v1\n{federation}\n{node}\n{roles}\n{public:?}\n").into_bytes()
}

fn serialize_bytes<const N: usize, S: serde::Serializer>(
    bytes: &[u8; N],
    s: S,
) -> Result<S::Ok, S::Error> {
    if s.is_human_readable() {
        s.serialize_str(&hex::encode(bytes))
    } else {
        s.serialize_bytes(bytes)
    }
}

fn deserialize_bytes<'de, const N: usize, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<[u8; N], D::Error> {
    if d.is_human_readable() {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        let mut bytes = [0; N];
        hex::decode_to_slice(text.as_bytes(), &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(bytes)
    } else {
        Ok(<serde_bytes::ByteArray<N>>::deserialize(d)?.into_array())
    }
}

const PRIVATE_LABEL: &str = "PRIVATE KEY";
const PUBLIC_LABEL: &str = "PUBLIC KEY";

/// DER of `OneAsymmetricKey` v1 for Ed25519 (RFC 8410) up to the 32 bytes of the seed.
const PKCS8_V1: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// DER of `SubjectPublicKeyInfo` for Ed25519 (RFC 8410) up to the 32 bytes of the key.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// p = 2^255 - 19, little-endian.
const FIELD_PRIME: [u8; 32] = {
    let mut p = [0xff; 32];
    p[0] = 0xed;
    p[31] = 0x7f;
    p
};

/// The y coordinates of the eight points whose order divides 8, with either sign of x:
/// 1 (order 1), -1 (2), 0 (4), and the two of order 8.
const SMALL_ORDER_Y: [[u8; 32]; 5] = [
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    {
        let mut minus_one = FIELD_PRIME;
        minus_one[0] = 0xec;
        minus_one
    },
    [0; 32],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trust::openssl::openssl;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn rfc_8032_vector_gives_its_key_and_signature() {
        // RFC 8032, 7.1, test 2.
        let seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        let key = SigningKey::generate(&hex::decode(seed).unwrap().try_into().unwrap());
        assert_eq!(format!("{:?}", key.public()), public);
        assert_eq!(format!("{:?}", key.sign(&[0x72])), signature);
        key.public().verify(&[0x72], &key.sign(&[0x72])).unwrap();
        assert_eq!(
            key.public().verify(&[0x73], &key.sign(&[0x72])).unwrap_err().kind(),
            "bad_signature"
        );
    }

    #[test]
    fn debug_shows_no_private_byte() {
        let key = SigningKey::generate(&[0xa7; 32]);
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("SigningKey({})", key.public().key_id()));
        assert!(!shown.contains("a7a7"));
    }

    #[test]
    fn a_pem_key_is_read_back_and_checked_against_the_public_one() {
        let key = SigningKey::generate(&[1; 32]);
        let other = SigningKey::generate(&[2; 32]);
        let pem = key.to_pem();
        let read = SigningKey::from_pem(&pem, Some(key.public())).unwrap();
        assert_eq!(read.public(), key.public());
        assert_eq!(
            SigningKey::from_pem(&pem, Some(other.public())).unwrap_err().kind(),
            "key_mismatch"
        );
        assert_eq!(VerifyingKey::from_pem(&key.public().to_pem()).unwrap(), *key.public());
        // A public key is no private one, and the other way round.
        assert_eq!(
            SigningKey::from_pem(&key.public().to_pem(), None).unwrap_err(),
            KeyError::NotPrivate
        );
        assert_eq!(VerifyingKey::from_pem(&pem).unwrap_err(), KeyError::NotPublic);
    }

    #[test]
    fn a_version_2_key_is_refused() {
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let pem = pem::encode(PRIVATE_LABEL, document.as_ref());
        assert_eq!(SigningKey::from_pem(&pem, None).unwrap_err(), KeyError::NotPrivate);
    }

    /// The small-order points with both signs, and all encodings of a y that isn't below p.
    fn hostile_keys() -> Vec<[u8; 32]> {
        let mut keys = SMALL_ORDER_Y.to_vec();
        for above in 0..19 {
            let mut y = FIELD_PRIME;
            y[0] += above;
            keys.push(y);
        }
        let negative = keys.clone().into_iter().map(|mut y| {
            y[31] |= 0x80;
            y
        });
        keys.extend(negative.collect::<Vec<_>>());
        keys
    }

    #[test]
    fn keys_that_anybody_can_sign_for_are_refused_and_bare_ring_takes_them() {
        // R = the neutral element, S = 0: valid whenever hash * A vanishes, so for a point of
        // order 8 at least every eighth message is "signed".
        let mut forged = [0; 64];
        forged[0] = 1;
        let forgeable = |key: &[u8; 32]| {
            (0..=255_u8)
                .any(|m| UnparsedPublicKey::new(&ED25519, key).verify(&[m], &forged).is_ok())
        };
        let mut num_forgeable = 0;
        for key in hostile_keys() {
            assert!(VerifyingKey::new(key).is_err(), "{}", hex::encode(key));
            num_forgeable += usize::from(forgeable(&key));
        }
        // Eight points, some of them with a second encoding that ring takes as well.
        assert!(num_forgeable >= 8, "{num_forgeable}");
        let good = *SigningKey::generate(&[3; 32]).public().as_bytes();
        assert!(VerifyingKey::new(good).is_ok() && !forgeable(&good));
    }

    #[test]
    fn a_small_order_key_does_not_pass_deserialisation() {
        let good = *SigningKey::generate(&[3; 32]).public();
        let packed = rmp_serde::to_vec(&good).unwrap();
        assert_eq!(rmp_serde::from_slice::<VerifyingKey>(&packed).unwrap(), good);
        let json = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<VerifyingKey>(&json).unwrap(), good);

        let bad = rmp_serde::to_vec(serde_bytes::Bytes::new(&SMALL_ORDER_Y[3])).unwrap();
        assert!(rmp_serde::from_slice::<VerifyingKey>(&bad).is_err());
        assert!(serde_json::from_str::<VerifyingKey>(&format!("\"{}\"", "00".repeat(32))).is_err());
    }

    #[test]
    fn possession_is_bound_to_federation_node_roles_and_key() {
        let key = SigningKey::generate(&[1; 32]);
        let other = SigningKey::generate(&[2; 32]);
        let roles = BTreeSet::from([Role::Device]);
        let (fed, node) = (name("plant"), name("press-7"));
        let proof = key.prove_possession(&fed, &node, &roles);
        key.public().verify_possession(&fed, &node, &roles, &proof).unwrap();

        let edge = BTreeSet::from([Role::Edge]);
        let public = key.public();
        assert!(public.verify_possession(&name("other"), &node, &roles, &proof).is_err());
        assert!(public.verify_possession(&fed, &name("press-8"), &roles, &proof).is_err());
        assert!(public.verify_possession(&fed, &node, &edge, &proof).is_err());
        assert!(other.public().verify_possession(&fed, &node, &roles, &proof).is_err());
    }

    #[test]
    fn openssl_reads_our_keys_and_we_read_its() {
        let Some(ssl) = openssl("keys") else { return };
        let key = SigningKey::generate(&[9; 32]);
        ssl.write("private.pem", key.to_pem().as_bytes());
        ssl.write("message", b"torque 17 Nm");

        // OpenSSL derives the same public key and signs the same bytes.
        assert_eq!(
            ssl.run("pkey -in private.pem -pubout").unwrap(),
            key.public().to_pem().as_bytes()
        );
        let theirs = ssl.run("pkeyutl -sign -inkey private.pem -rawin -in message").unwrap();
        assert_eq!(theirs, key.sign(b"torque 17 Nm").0);

        // It verifies our signature with our public key, and not over another message.
        ssl.write("public.pem", key.public().to_pem().as_bytes());
        ssl.write("sig", &key.sign(b"torque 17 Nm").0);
        let verify = "pkeyutl -verify -pubin -inkey public.pem -rawin -sigfile sig -in";
        ssl.run(&format!("{verify} message")).unwrap();
        ssl.write("other", b"torque 18 Nm");
        assert!(ssl.run(&format!("{verify} other")).is_err());

        // And a key that it made is read here.
        let made = String::from_utf8(ssl.run("genpkey -algorithm ed25519").unwrap()).unwrap();
        ssl.write("made.pem", made.as_bytes());
        let read = SigningKey::from_pem(&made, None).unwrap();
        assert_eq!(
            ssl.run("pkey -in made.pem -pubout").unwrap(),
            read.public().to_pem().as_bytes()
        );
        assert_eq!(*read.to_pem(), made);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = VerifyingKey::from_slice(&bytes);
            let _ = SigningKey::from_pem(&pem::encode(PRIVATE_LABEL, &bytes), None);
            let _ = VerifyingKey::from_pem(&pem::encode(PUBLIC_LABEL, &bytes));
            let _ = rmp_serde::from_slice::<VerifyingKey>(&bytes);
            let _ = SigningKey::from_pem(&String::from_utf8_lossy(&bytes), None);
        }

        #[test]
        fn a_signature_with_a_flipped_bit_is_refused(seed: [u8; 32], at in 0..512_usize) {
            let key = SigningKey::generate(&seed);
            let good = key.sign(b"x");
            prop_assert!(key.public().verify(b"x", &good).is_ok());
            let mut bad = good;
            bad.0[at / 8] ^= 1 << (at % 8);
            prop_assert!(key.public().verify(b"x", &bad).is_err());
        }
    }
}
