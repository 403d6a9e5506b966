//! The only way in and out of msgpack.
//!
//! `rmp-serde` by itself takes trailing bytes, NaN, integers longer than need be, and recurses as
//! deep as the bytes say. So each input is walked once before it is decoded: one value, nothing
//! behind it, at most [`MAX_DEPTH`] levels, shortest forms only, finite floats, no extension
//! types, and no container that claims more elements than there are bytes left.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MAX_DEPTH;

/// Why bytes aren't one of our messages, or a value can't become bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// More bytes than this place takes.
    #[error("{actual} bytes are over the cap of {cap}")]
    TooLarge {
        /// The cap.
        cap: usize,
        /// What came.
        actual: usize,
    },
    /// The bytes end inside a value.
    #[error("truncated at byte {at}")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// Something follows the value.
    #[error("{count} trailing bytes")]
    Trailing {
        /// How much.
        count: usize,
    },
    /// Nested too deep.
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A number isn't in its shortest form, so two encodings would mean the same.
    #[error("not the shortest form at byte {at}")]
    NotCanonical {
        /// Where.
        at: usize,
    },
    /// NaN or infinity.
    #[error("a float that is not finite at byte {at}")]
    NotFinite {
        /// Where.
        at: usize,
    },
    /// A type that no message of ours has.
    #[error("unexpected type byte {byte:#04x} at byte {at}")]
    ForeignType {
        /// Where.
        at: usize,
        /// The marker.
        byte: u8,
    },
    /// What it unpacks to is over the cap: a decompression bomb.
    #[error("it unpacks to more than the cap of {cap} bytes")]
    Bomb {
        /// The cap.
        cap: usize,
    },
    /// The compressed bytes can't be unpacked.
    #[error("can't be unpacked: {0}")]
    Compression(String),
    /// More tensors than a set may have.
    #[error("{actual} tensors, a set has at most {cap}")]
    TooManyTensors {
        /// The cap.
        cap: usize,
        /// What came.
        actual: usize,
    },
    /// Not a dotted path, or not in order: it could be taken for a file's.
    #[error("tensor {name:?}: {what}")]
    TensorName {
        /// The name.
        name: String,
        /// The rule that it breaks.
        what: &'static str,
    },
    /// Shapes that the bytes don't bear, or that nothing could.
    #[error("{0}")]
    TensorShape(&'static str),
    /// Well-formed msgpack that isn't what was expected.
    #[error("wrong structure: {0}")]
    Structure(String),
}

impl CodecError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Truncated { .. } => "truncated",
            Self::Trailing { .. } => "trailing_bytes",
            Self::TooDeep => "too_deep",
            Self::NotCanonical { .. } => "not_canonical",
            Self::NotFinite { .. } => "not_finite",
            Self::ForeignType { .. } => "foreign_type",
            Self::Bomb { .. } => "decompression_bomb",
            Self::Compression(_) => "bad_compression",
            Self::TooManyTensors { .. } => "too_many_tensors",
            Self::TensorName { .. } => "bad_tensor_name",
            Self::TensorShape(_) => "bad_tensor_shape",
            Self::Structure(_) => "wrong_structure",
        }
    }
}

/// Encodes a value; structs become maps with field names.
///
/// # Errors
/// [`CodecError::Structure`] when serde can't (never for the types of this module), and
/// [`CodecError::NotFinite`] and kin when the value would not be taken back.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    // Most fit: written without growing, and kept in no more memory than they take.
    let mut roomy = Vec::with_capacity(ROOMY);
    rmp_serde::encode::write_named(&mut roomy, value)
        .map_err(|e| CodecError::Structure(e.to_string()))?;
    walk_all(&roomy)?;
    Ok(if roomy.len() <= ROOMY { roomy.as_slice().to_vec() } else { roomy })
}

const ROOMY: usize = 1024;

/// Decodes exactly one value of at most `cap` bytes.
///
/// # Errors
/// [`CodecError`] tells the first thing that is wrong.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, CodecError> {
    if bytes.len() > cap {
        return Err(CodecError::TooLarge { cap, actual: bytes.len() });
    }
    walk_all(bytes)?;
    rmp_serde::from_slice(bytes).map_err(|e| CodecError::Structure(e.to_string()))
}

/// Splits a msgpack array of two into the raw bytes of its elements.
///
/// Lets digests be taken over the bytes that were signed, never over a re-encoding.
///
/// # Errors
/// [`CodecError`] when the bytes aren't exactly one array of two values.
pub fn split_pair(bytes: &[u8], cap: usize) -> Result<(&[u8], &[u8]), CodecError> {
    if bytes.len() > cap {
        return Err(CodecError::TooLarge { cap, actual: bytes.len() });
    }
    walk_all(bytes)?;
    if bytes.first() != Some(&ARRAY_OF_TWO) {
        return Err(CodecError::Structure("expected an array of two".into()));
    }
    let mut walker = Walker { bytes, at: 1 };
    walker.value(1)?;
    let split = walker.at;
    Ok((slice(bytes, 1, split)?, slice(bytes, split, bytes.len())?))
}

const ARRAY_OF_TWO: u8 = 0x92;

fn walk_all(bytes: &[u8]) -> Result<(), CodecError> {
    let mut walker = Walker { bytes, at: 0 };
    walker.value(0)?;
    match bytes.len() - walker.at {
        0 => Ok(()),
        count => Err(CodecError::Trailing { count }),
    }
}

fn slice(bytes: &[u8], from: usize, to: usize) -> Result<&[u8], CodecError> {
    bytes.get(from..to).ok_or(CodecError::Truncated { at: bytes.len() })
}

/// Walks over values without building them; recursion is bounded by [`MAX_DEPTH`].
struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walker<'_> {
    fn value(&mut self, depth: usize) -> Result<(), CodecError> {
        let at = self.at;
        let marker = self.uint(1)?;
        #[expect(clippy::cast_possible_truncation, reason = "uint(1) is one byte")]
        let byte = marker as u8;
        match byte {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => Ok(()),
            0x80..=0x8f => self.container(2 * (marker & 0x0f), depth),
            0x90..=0x9f => self.container(marker & 0x0f, depth),
            0xa0..=0xbf => self.skip(marker & 0x1f),
            0xc4 | 0xd9 => {
                let least = if byte == 0xd9 { 32 } else { 0 };
                let len = self.length(at, 1, least)?;
                self.skip(len)
            }
            0xc5 | 0xda => self.length(at, 2, 1 << 8).and_then(|len| self.skip(len)),
            0xc6 | 0xdb => self.length(at, 4, 1 << 16).and_then(|len| self.skip(len)),
            0xca => {
                let bits = self.uint(4)?;
                #[expect(clippy::cast_possible_truncation, reason = "uint(4) is four bytes")]
                let value = f32::from_bits(bits as u32);
                if value.is_finite() { Ok(()) } else { Err(CodecError::NotFinite { at }) }
            }
            0xcb => {
                let value = f64::from_bits(self.uint(8)?);
                if value.is_finite() { Ok(()) } else { Err(CodecError::NotFinite { at }) }
            }
            0xcc => self.length(at, 1, 1 << 7).map(|_| ()),
            0xcd => self.length(at, 2, 1 << 8).map(|_| ()),
            0xce => self.length(at, 4, 1 << 16).map(|_| ()),
            0xcf => self.length(at, 8, 1 << 32).map(|_| ()),
            0xd0..=0xd3 => self.signed(at, byte),
            0xdc => self.length(at, 2, 1 << 4).and_then(|n| self.container(n, depth)),
            0xdd => self.length(at, 4, 1 << 16).and_then(|n| self.container(n, depth)),
            0xde => self.length(at, 2, 1 << 4).and_then(|n| self.container(2 * n, depth)),
            0xdf => self.length(at, 4, 1 << 16).and_then(|n| self.container(2 * n, depth)),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => Err(CodecError::ForeignType { at, byte }),
        }
    }

    fn container(&mut self, elements: u64, depth: usize) -> Result<(), CodecError> {
        if depth >= MAX_DEPTH {
            return Err(CodecError::TooDeep);
        }
        // Each element takes at least one byte, so this loop can't outrun the input.
        for _ in 0..elements {
            self.value(depth + 1)?;
        }
        Ok(())
    }

    /// Only negative numbers have signed forms, each in the shortest that holds it.
    fn signed(&mut self, at: usize, byte: u8) -> Result<(), CodecError> {
        let width = 1_usize << (byte - 0xd0);
        let bits = self.uint(width)?;
        let unused = 64 - 8 * width;
        #[expect(clippy::cast_possible_wrap, reason = "sign extension is the point")]
        let value = ((bits << unused) as i64) >> unused;
        let above = match width {
            1 => -32,
            2 => i64::from(i8::MIN),
            4 => i64::from(i16::MIN),
            _ => i64::from(i32::MIN),
        };
        if value < above { Ok(()) } else { Err(CodecError::NotCanonical { at }) }
    }

    /// A big-endian number of `width` bytes that must be at least `least`.
    fn length(&mut self, at: usize, width: usize, least: u64) -> Result<u64, CodecError> {
        let value = self.uint(width)?;
        if value < least { Err(CodecError::NotCanonical { at }) } else { Ok(value) }
    }

    fn uint(&mut self, width: usize) -> Result<u64, CodecError> {
        let end = self.at + width;
        let bytes = slice(self.bytes, self.at, end)?;
        self.at = end;
        Ok(bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    }

    fn skip(&mut self, count: u64) -> Result<(), CodecError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left => {
                self.at += count;
                Ok(())
            }
            _ => Err(CodecError::Truncated { at: self.bytes.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAP: usize = 1 << 20;

    fn refusal<T: DeserializeOwned>(bytes: &[u8]) -> &'static str {
        decode::<T>(bytes, CAP).err().expect("must be refused").kind()
    }

    #[test]
    fn what_rmp_takes_and_we_refuse_is_refused_and_its_twin_is_taken() {
        assert_eq!(refusal::<u8>(&[7, 7]), "trailing_bytes");
        assert_eq!(decode::<u8>(&[7], CAP), Ok(7));
        assert_eq!(refusal::<u8>(&[0xcc, 7]), "not_canonical");
        assert_eq!(decode::<u8>(&[0xcc, 200], CAP), Ok(200));
        assert_eq!(refusal::<i64>(&[0xd0, 0xf0]), "not_canonical"); // -16 fits one byte
        assert_eq!(decode::<i64>(&[0xd0, 0x90], CAP), Ok(-112));
        assert_eq!(refusal::<f32>(&[0xca, 0x7f, 0xc0, 0, 0]), "not_finite");
        assert_eq!(decode::<f32>(&[0xca, 0x3f, 0x80, 0, 0], CAP), Ok(1.0));
        assert_eq!(refusal::<Vec<u8>>(&[0xdd, 0xff, 0xff, 0xff, 0xff]), "truncated");
        assert_eq!(refusal::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff, b'a']), "truncated");
        assert_eq!(refusal::<u8>(&[0xc7, 0, 1]), "foreign_type");
        assert_eq!(refusal::<u8>(&[0xa1, b'a']), "wrong_structure");
        assert_eq!(decode::<u8>(&[7, 7], 1).unwrap_err().kind(), "too_large");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
        assert_eq!(walk_all(&nested(MAX_DEPTH)), Ok(()));
        assert_eq!(walk_all(&nested(MAX_DEPTH + 1)), Err(CodecError::TooDeep));
        assert_eq!(walk_all(&vec![0x91; 1 << 20]), Err(CodecError::TooDeep));
    }

    #[test]
    fn a_pair_is_split_into_its_raw_bytes() {
        let bytes = rmp_serde::to_vec(&("head", (1, 2, 3))).unwrap();
        let (head, body) = split_pair(&bytes, CAP).unwrap();
        assert_eq!(head, rmp_serde::to_vec("head").unwrap());
        assert_eq!(body, rmp_serde::to_vec(&(1, 2, 3)).unwrap());
        assert!(split_pair(&rmp_serde::to_vec(&(1, 2, 3)).unwrap(), CAP).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<(u64, String, Vec<f32>)>(&bytes, CAP);
            let _ = split_pair(&bytes, CAP);
        }

        #[test]
        fn whatever_we_encode_is_canonical(
            value in any::<(u64, i64, bool, String, Vec<i16>, Option<u32>)>()
        ) {
            let bytes = encode(&value).unwrap();
            prop_assert_eq!(decode::<(u64, i64, bool, String, Vec<i16>, Option<u32>)>(&bytes, CAP), Ok(value));
        }

        #[test]
        fn every_truncation_is_refused(value in any::<(u64, String, Vec<i16>)>()) {
            let bytes = encode(&value).unwrap();
            for end in 0..bytes.len() {
                prop_assert!(decode::<(u64, String, Vec<i16>)>(&bytes[..end], CAP).is_err());
            }
        }
    }
}
