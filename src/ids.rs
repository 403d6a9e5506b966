//! Identifiers: node names, rounds, epochs, digests. Plain values without behaviour.
//!
//! Names come from outside, so [`Name`] can only be built through its check. Binary identifiers
//! travel as msgpack `bin` and print as lower-case hex.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// One level of a topic: a federation, site, line, node or model name.
///
/// 1 to 64 characters of `[A-Za-z0-9_-]`, which every broker and SCADA system accepts. Clones share the text: a name is
/// in each message, each setting and each key of a map.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(Arc<str>);

/// Name of a node, unique in its federation.
pub type NodeId = Name;

impl Name {
    /// Longest name in bytes.
    pub const MAX_LEN: usize = 64;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`NameError`] when the text is empty, longer than 64 bytes or has another character.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text: String = text.into();
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if fits && plain { Ok(Self(text.into())) } else { Err(NameError { text }) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that can't be a topic level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no valid name: use 1 to 64 characters of A-Z a-z 0-9 _ -")]
pub struct NameError {
    text: String,
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    s.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    let bytes = <serde_bytes::ByteArray<$len>>::deserialize(d)?;
                    Ok(Self(bytes.into_array()))
                }
            }
        }
    };
}

bytes_id!(
    /// A SHA-256 digest.
    Digest, 32
);
impl Digest {
    /// SHA-256 of the bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(out)
    }
}

bytes_id!(
    /// First 8 bytes of a domain-separated hash of a public key: a hint, never a decision.
    KeyId, 8
);
bytes_id!(
    /// Identifies one contribution; see [`crate::trust::update_id`].
    UpdateId, 16
);
bytes_id!(
    /// Random per start of a node: separates its sequence numbers from those of earlier starts.
    BootId, 16
);

/// Number of a round, from 1; 0 means "before any round".
pub type RoundNo = u64;

/// Fencing number of a round's owner: grows with each of its starts.
pub type Epoch = u64;

/// Number of an adapter version, from 0 (the untrained one) upwards.
pub type Version = u64;

/// Which of a node's two links: towards its children, or towards its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The bus that is shared with the children (and, in a site, with SCADA).
    Down,
    /// The bus that is shared with the parent.
    Up,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_topic_levels() {
        for good in ["a", "press-7", "_", "A_b-9"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a/b", "+", "#", "$SYS", "größe", "a b", &"x".repeat(65)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_are_hex_for_people_and_bin_for_machines() {
        let digest = Digest([0xab; 32]);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(32)));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        let packed = rmp_serde::to_vec(&digest).unwrap();
        assert_eq!(packed.len(), 34); // bin8 header + 32
        assert_eq!(rmp_serde::from_slice::<Digest>(&packed).unwrap(), digest);
    }
}
