//! Bytes that may be too big for one packet: inside the message, or as a signed list of chunks.

use serde::{Deserialize, Serialize};

use super::{MAX_INLINE_BYTES, MAX_UPDATE_BYTES};
use crate::ids::Digest;

/// Bytes inside their message, or the manifest of chunks that are asked for one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blob {
    /// The bytes themselves, at most [`MAX_INLINE_BYTES`].
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// What they are cut into.
    Manifest(Manifest),
}

/// Signed list of a blob's chunks: the chunks themselves travel unsigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// SHA-256 of all bytes: the blob's name.
    pub sha256: Digest,
    /// All bytes.
    pub bytes: u64,
    /// Bytes of each chunk but the last.
    pub chunk_bytes: u32,
    /// SHA-256 of each chunk.
    pub chunks: Vec<Digest>,
}

impl Blob {
    /// Takes bytes: inline when small, else the manifest for chunks of `chunk_bytes`.
    pub fn of(bytes: &[u8], chunk_bytes: u32) -> Self {
        if bytes.len() <= MAX_INLINE_BYTES {
            Self::Inline(bytes.to_vec())
        } else {
            Self::Manifest(Manifest::of(bytes, chunk_bytes))
        }
    }

    /// SHA-256 of the bytes.
    pub fn sha256(&self) -> Digest {
        match self {
            Self::Inline(bytes) => Digest::of(bytes),
            Self::Manifest(manifest) => manifest.sha256,
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Manifest(manifest) => manifest.bytes,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the sizes agree with each other and keep the caps.
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Inline(bytes) => bytes.len() <= MAX_INLINE_BYTES,
            Self::Manifest(manifest) => manifest.is_sound(),
        }
    }
}

impl Manifest {
    /// Smallest and largest chunk in bytes; the last one of a blob may be smaller.
    pub const CHUNK_BYTES: std::ops::RangeInclusive<u32> = 4096..=512 * 1024;
    /// Most chunks of one blob: 64 MiB in chunks of 64 KiB.
    pub const MAX_CHUNKS: usize = 1024;

    /// Cuts bytes into chunks.
    pub fn of(bytes: &[u8], chunk_bytes: u32) -> Self {
        let size = usize::try_from(chunk_bytes).unwrap_or(usize::MAX).max(1);
        Self {
            sha256: Digest::of(bytes),
            bytes: bytes.len() as u64,
            chunk_bytes,
            chunks: bytes.chunks(size).map(Digest::of).collect(),
        }
    }

    /// Bytes that chunk `index` must have, `None` beyond the last.
    pub fn chunk_len(&self, index: u32) -> Option<u64> {
        let from = u64::from(index).checked_mul(u64::from(self.chunk_bytes))?;
        let left = self.bytes.checked_sub(from).filter(|left| *left > 0)?;
        Some(left.min(u64::from(self.chunk_bytes)))
    }

    /// Whether the sizes agree with each other and keep the caps.
    pub fn is_sound(&self) -> bool {
        Self::CHUNK_BYTES.contains(&self.chunk_bytes)
            && self.bytes <= MAX_UPDATE_BYTES
            && (1..=Self::MAX_CHUNKS).contains(&self.chunks.len())
            && self.bytes.div_ceil(u64::from(self.chunk_bytes)) == self.chunks.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_bytes_are_inline_and_large_ones_are_cut() {
        assert!(matches!(Blob::of(&vec![1; MAX_INLINE_BYTES], 4096), Blob::Inline(_)));
        let Blob::Manifest(manifest) = Blob::of(&vec![1; 65_537], 65_536) else { panic!("inline") };
        assert_eq!(manifest.chunks.len(), 2);
        assert_eq!((manifest.chunk_len(0), manifest.chunk_len(1)), (Some(65_536), Some(1)));
        assert_eq!(manifest.chunk_len(2), None);
        assert!(manifest.is_sound());
    }

    #[test]
    fn a_manifest_whose_sizes_disagree_is_unsound() {
        let good = Manifest::of(&vec![1; 100_000], 65_536);
        let more = Manifest { bytes: 200_000, ..good.clone() };
        let huge = Manifest { bytes: u64::MAX, ..good.clone() };
        let tiny = Manifest { chunk_bytes: 0, ..good.clone() };
        assert!(Blob::Manifest(good).is_sound());
        for bad in [more, huge, tiny] {
            assert!(!Blob::Manifest(bad).is_sound());
        }
    }
}
