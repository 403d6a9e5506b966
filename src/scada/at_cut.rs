//! A question whose input is half an answer: what the front of a split model made of a window.
//!
//! It travels as the `input` of a request on `infer/{model}` of the edge, `{"activations": {..}}`. Values are
//! base64 of the bytes that `learn::Activations` has: this file checks the form, `protocol/halves.rs` the
//! values. Nothing here is private: much of a window can be read back from it, so it stays inside the site.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{Digest, Version};

/// What a front made of one window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtCut {
    /// The front that made it.
    pub front: FrontMark,
    /// How `data` is written.
    pub coding: Coding,
    /// Sizes, outermost first; the last is the width of a token.
    pub shape: Vec<u32>,
    /// The values.
    pub data: Vec<u8>,
}

/// Which front: only the back of the same one may go on from where it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontMark {
    /// Version of the adapter.
    pub version: Version,
    /// SHA-256 over the digests of the base and of the front's part of the adapter, packed: a version number
    /// may come back with another adapter.
    pub digest: Digest,
}

impl FrontMark {
    /// The front of this version: its part of the adapter, packed, on this base.
    pub fn new(version: Version, base: &Digest, front: &[u8]) -> Self {
        let both = [base.0, Digest::of(front).0].concat();
        Self { version, digest: Digest::of(&both) }
    }
}

/// How the values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coding {
    /// As they are.
    F32,
    /// Eight bits a value, a scale a token.
    Int8,
}

/// What a request's `input` has to be, for people.
pub(super) const EXPECTED: &str =
    "an object of version, front (64 hex digits), coding (int8 or f32), shape and data (base64)";

/// As it stands in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: Version,
    front: Digest,
    coding: Coding,
    shape: Vec<u32>,
    data: String,
}

impl AtCut {
    /// Reads what [`Self::to_json`] wrote; nothing when it is something else.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let Raw { version, front, coding, shape, data } = Raw::deserialize(value).ok()?;
        let data = STANDARD.decode(data).ok()?;
        Some(Self { front: FrontMark { version, digest: front }, coding, shape, data })
    }

    /// The object under `activations`.
    pub(super) fn to_json(&self) -> impl Serialize {
        let Self { front, coding, shape, data } = self;
        Raw {
            version: front.version,
            front: front.digest,
            coding: *coding,
            shape: shape.clone(),
            data: STANDARD.encode(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at_cut() -> AtCut {
        let front = FrontMark { version: 3, digest: Digest([0xab; 32]) };
        AtCut { front, coding: Coding::Int8, shape: vec![1, 1, 2], data: vec![0x80, 0x3f, 1, 255] }
    }

    #[test]
    fn its_json_never_changes() {
        let text = serde_json::to_string(&at_cut().to_json()).unwrap();
        let front = "ab".repeat(32);
        assert_eq!(
            text,
            format!(
                r#"{{"version":3,"front":"{front}","coding":"int8","shape":[1,1,2],"data":"gD8B/w=="}}"#
            )
        );
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(AtCut::from_json(&read), Some(at_cut()));
    }

    #[test]
    fn what_is_no_such_object_is_refused() {
        let good = serde_json::to_value(at_cut().to_json()).unwrap();
        for (key, value) in [
            ("version", json!(-1)),
            ("front", json!("ab")),
            ("front", json!(null)),
            ("coding", json!("int4")),
            ("shape", json!([1, -1])),
            ("shape", json!([1, 4_294_967_296_u64])),
            ("shape", json!(7)),
            ("data", json!("gD8B/w")),
            ("data", json!("!")),
            ("more", json!(1)),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            assert_eq!(AtCut::from_json(&bad), None, "{bad}");
        }
        assert_eq!(AtCut::from_json(&json!([1, 2])), None);
    }

    #[test]
    fn a_front_is_known_by_its_version_its_base_and_its_adapter() {
        let of = |version, base, front: &[u8]| FrontMark::new(version, &Digest([base; 32]), front);
        assert_eq!(of(1, 2, b"a"), of(1, 2, b"a"));
        for other in [of(2, 2, b"a"), of(1, 3, b"a"), of(1, 2, b"b")] {
            assert_ne!(of(1, 2, b"a"), other);
        }
    }

    proptest! {
        #[test]
        fn any_values_come_back(
            version: u64,
            shape in prop::collection::vec(any::<u32>(), 0..6),
            data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let front = FrontMark { version, digest: Digest([7; 32]) };
            let at_cut = AtCut { front, coding: Coding::F32, shape, data };
            let json = serde_json::to_value(at_cut.to_json()).unwrap();
            prop_assert_eq!(AtCut::from_json(&json), Some(at_cut));
        }
    }
}
