//! A tensor set as it travels: coded values, compressed, behind caps.
//!
//! Only the container is here. How values become `int8` blocks is in `learn/quant.rs`; the two
//! meet in `protocol/update.rs`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::codec::{CodecError, decode, encode};
use super::compression::{compress, decompress};

/// How the values of a tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coding {
    /// Little-endian f32, no scales.
    F32,
    /// One signed byte a value, one f16 scale a block.
    Int8,
    /// Two values a byte (low nibble first), one f16 scale a block.
    Int4,
}

impl Coding {
    /// The word in configuration files and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// Name and shape of one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedTensor {
    /// Dotted path.
    pub name: String,
    /// Sizes, outermost first.
    #[serde(deserialize_with = "one_more_than::<_, _, { PackedSet::MAX_DIMS }>")]
    pub shape: Vec<u32>,
}

/// Tensors in the order of their names, with the values of all of them in one piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedSet {
    /// At most [`PackedSet::MAX_TENSORS`].
    #[serde(deserialize_with = "one_more_than::<_, _, { PackedSet::MAX_TENSORS }>")]
    pub tensors: Vec<PackedTensor>,
    /// How `data` is written.
    pub coding: Coding,
    /// Values that share a scale; 0 for [`Coding::F32`].
    pub block: u16,
    /// Little-endian f32, or what `learn::Quantizer` makes: its lengths are checked there.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl PackedSet {
    /// Most tensors.
    pub const MAX_TENSORS: usize = 4096;
    /// Most dimensions of a tensor.
    pub const MAX_DIMS: usize = 8;
    /// Longest name in bytes.
    pub const MAX_NAME_BYTES: usize = 256;
    /// Largest window of a zstd frame, as a power of two: that of [`super::MAX_UPDATE_BYTES`].
    const MAX_WINDOW_LOG: u32 = 26;
    /// zstd's level: updates are nearly random, higher ones gain less than 1 %.
    const LEVEL: i32 = 3;

    /// Encodes and compresses.
    ///
    /// # Errors
    /// The cap that isn't kept, or [`CodecError::Compression`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        self.check()?;
        compress(&encode(self)?, Self::LEVEL)
    }

    /// Decompresses to at most `cap` bytes, decodes and checks.
    ///
    /// # Errors
    /// [`CodecError::Bomb`] for a decompression bomb; else what is wrong first.
    pub fn from_bytes(bytes: &[u8], cap: usize) -> Result<Self, CodecError> {
        let set: Self = decode(&decompress(bytes, cap, Self::MAX_WINDOW_LOG)?, cap)?;
        set.check()?;
        Ok(set)
    }

    /// Number of values in all tensors; `None` when it overflows.
    pub fn num_values(&self) -> Option<usize> {
        let mut sum = 0_usize;
        for tensor in &self.tensors {
            let size = |n: usize, d: &u32| n.checked_mul(usize::try_from(*d).ok()?);
            sum = sum.checked_add(tensor.shape.iter().try_fold(1, size)?)?;
        }
        Some(sum)
    }

    fn check(&self) -> Result<(), CodecError> {
        let (cap, actual) = (Self::MAX_TENSORS, self.tensors.len());
        if actual > cap {
            return Err(CodecError::TooManyTensors { cap, actual });
        }
        for (a, b) in self.tensors.iter().zip(self.tensors.iter().skip(1)) {
            if a.name >= b.name {
                let what = "it is not behind the one before it in the order of names";
                return Err(CodecError::TensorName { name: b.shown(), what });
            }
        }
        self.tensors.iter().try_for_each(PackedTensor::check)?;
        let Some(values) = self.num_values() else {
            return Err(CodecError::TensorShape("a shape overflows"));
        };
        let sizes_agree = match self.coding {
            Coding::F32 => self.block == 0 && values.checked_mul(4) == Some(self.data.len()),
            Coding::Int8 | Coding::Int4 => self.block > 0,
        };
        if sizes_agree {
            Ok(())
        } else {
            Err(CodecError::TensorShape("the shapes don't agree with the number of bytes"))
        }
    }
}

impl PackedTensor {
    fn check(&self) -> Result<(), CodecError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let named = self.name.len() <= PackedSet::MAX_NAME_BYTES
            && self.name.bytes().all(plain)
            && self.name.split('.').all(|part| !part.is_empty());
        if !named {
            let what = "the name is not a dotted path of [A-Za-z0-9_-] up to 256 bytes";
            return Err(CodecError::TensorName { name: self.shown(), what });
        }
        if self.shape.len() > PackedSet::MAX_DIMS {
            return Err(CodecError::TensorShape("a tensor has more than 8 dimensions"));
        }
        Ok(())
    }

    /// Its name for an error's text: nobody's megabytes.
    fn shown(&self) -> String {
        self.name.chars().take(64).collect()
    }
}

/// Reads a sequence of any length, but keeps one element more than `N` at most: enough to be refused,
/// and a few kilobytes of bomb can't become a gigabyte of elements.
fn one_more_than<'de, D, T, const N: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Kept<T, const N: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Kept<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            let mut kept = Vec::new();
            while kept.len() <= N {
                match elements.next_element()? {
                    Some(element) => kept.push(element),
                    None => return Ok(kept),
                }
            }
            while elements.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }

    deserializer.deserialize_seq(Kept::<T, N>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: usize = 1 << 20;

    fn set(tensors: &[(&str, &[u32])], bytes: usize) -> PackedSet {
        let tensor = |(name, shape): &(&str, &[u32])| PackedTensor {
            name: (*name).into(),
            shape: shape.to_vec(),
        };
        let tensors = tensors.iter().map(tensor).collect();
        PackedSet { tensors, coding: Coding::F32, block: 0, data: vec![0; bytes] }
    }

    fn taken(set: &PackedSet) -> Result<PackedSet, CodecError> {
        let plain = encode(set).unwrap();
        PackedSet::from_bytes(&zstd::bulk::compress(&plain, 3).unwrap(), CAP)
    }

    #[test]
    fn a_sound_set_makes_the_round_trip() {
        let set = set(&[("a.w", &[2, 3]), ("b", &[])], 28);
        assert_eq!(PackedSet::from_bytes(&set.to_bytes().unwrap(), CAP), Ok(set));
    }

    #[test]
    fn path_like_names_are_refused() {
        for name in ["../../etc/x", "a/b", "", "a..b", ".a", "a.", "a b", "\u{e4}"] {
            assert!(taken(&set(&[(name, &[1])], 4)).is_err(), "{name}");
        }
        assert!(taken(&set(&[("a.b_c-0", &[1])], 4)).is_ok());
    }

    #[test]
    fn claims_that_the_bytes_do_not_bear_are_refused() {
        assert!(taken(&set(&[("a", &[u32::MAX, u32::MAX, u32::MAX])], 4)).is_err());
        assert!(taken(&set(&[("a", &[2])], 4)).is_err());
        assert!(taken(&set(&[("a", &[1; 9])], 4)).is_err());
        assert!(taken(&set(&[("b", &[1]), ("a", &[1])], 8)).is_err());
        assert!(taken(&set(&[("a", &[1]), ("b", &[1])], 8)).is_ok());
    }

    #[test]
    fn a_decompression_bomb_stops_at_the_cap() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert!(bomb.len() < 8192);
        let refused = PackedSet::from_bytes(&bomb, CAP).unwrap_err();
        assert_eq!(refused, CodecError::Bomb { cap: CAP });
    }

    #[test]
    fn more_elements_than_a_set_may_have_are_counted_but_not_kept() {
        let many: Vec<String> = (0..5_000).map(|n| format!("t{n:05}")).collect();
        let shape: &[u32] = &[0];
        let tensors: Vec<(&str, &[u32])> = many.iter().map(|n| (n.as_str(), shape)).collect();
        let (cap, actual) = (PackedSet::MAX_TENSORS, PackedSet::MAX_TENSORS + 1);
        assert_eq!(taken(&set(&tensors, 0)), Err(CodecError::TooManyTensors { cap, actual }));
        assert!(taken(&set(&tensors[..cap], 0)).is_ok());
        let deep = taken(&set(&[("a", &vec![1; 1_000_000])], 4)).unwrap_err();
        assert_eq!(deep.kind(), "bad_tensor_shape");
    }
}
