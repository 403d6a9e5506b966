//! One entry's proof as a file that stands alone: C2SP `tlog-proof`.
//!
//! ```text
//! c2sp.org/tlog-proof@v1
//! index 3
//! base64 of a hash, from the leaf's sibling upwards
//!
//! the checkpoint, verbatim
//! ```

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::checkpoint::{Origin, SignedCheckpoint, base64_array};
use super::tree::{self, MAX_PROOF};
use super::{Entry, LedgerError};
use crate::ids::Digest;
use crate::trust::keys::VerifyingKey;

/// Shows that an entry is in a ledger, to whoever has the ledger's key and the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    index: u64,
    hashes: Vec<Digest>,
    checkpoint: SignedCheckpoint,
}

impl InclusionProof {
    /// Proves entry `index` out of the hashes of at least the leaves that `checkpoint` covers.
    ///
    /// # Errors
    /// [`LedgerError::OutOfRange`] when the entry isn't covered, [`LedgerError::Shrunk`] when
    /// leaves are missing.
    pub fn new(
        leaves: &[Digest],
        index: u64,
        checkpoint: SignedCheckpoint,
    ) -> Result<Self, LedgerError> {
        let signed = checkpoint.checkpoint().head.size;
        let covered = usize::try_from(signed).ok().and_then(|size| leaves.get(..size));
        let Some(covered) = covered else {
            let actual = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
            return Err(LedgerError::Shrunk { signed, actual });
        };
        let hashes = tree::inclusion_proof(covered, index)?;
        Ok(Self { index, hashes, checkpoint })
    }

    /// Reads a proof. Extra data, which nothing authenticates, is refused.
    ///
    /// # Errors
    /// [`LedgerError::BadCheckpoint`] with the rule that is broken.
    pub fn parse(text: &[u8]) -> Result<Self, LedgerError> {
        let refuse = |what| LedgerError::BadCheckpoint { what };
        if text.len() > MAX_LEN {
            return Err(refuse("proof longer than 12288 bytes"));
        }
        let text = std::str::from_utf8(text).map_err(|_| refuse("proof isn't UTF-8"))?;
        let (path, note) = text.split_once("\n\n").ok_or(refuse("proof has no checkpoint"))?;
        let mut lines = path.split('\n');
        if lines.next() != Some(HEADER) {
            return Err(refuse("not a proof of c2sp.org/tlog-proof@v1"));
        }
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let index = index.and_then(|text| text.parse().ok()).ok_or(refuse("proof has no index"))?;
        let mut hashes = Vec::new();
        for line in lines {
            if hashes.len() == MAX_PROOF {
                return Err(refuse("proof has more than 64 hashes"));
            }
            hashes.push(Digest(base64_array(line).ok_or(refuse("proof has a bad hash"))?));
        }
        let checkpoint = SignedCheckpoint::parse(note.as_bytes())?;
        let parsed = Self { index, hashes, checkpoint };
        if parsed.to_text() == text { Ok(parsed) } else { Err(refuse("not in canonical form")) }
    }

    /// The proof as text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\nindex {}\n", self.index);
        for hash in &self.hashes {
            // Writing into a string can't fail.
            let _ = writeln!(text, "{}", STANDARD.encode(hash.0));
        }
        text.push('\n');
        text.push_str(&self.checkpoint.to_text());
        text
    }

    /// Checks the checkpoint's signature, then that `leaf` is the entry at this index.
    ///
    /// # Errors
    /// Those of [`SignedCheckpoint::verify`], [`LedgerError::BadProof`], and
    /// [`LedgerError::BadEntry`] for a leaf that is proven but no entry.
    pub fn verify(
        &self,
        origin: &Origin,
        keys: &[VerifyingKey],
        leaf: &[u8],
    ) -> Result<Entry, LedgerError> {
        self.checkpoint.verify(origin, keys)?;
        let head = &self.checkpoint.checkpoint().head;
        tree::verify_inclusion(head, self.index, leaf, &self.hashes)?;
        let index = self.index;
        Entry::parse(leaf).map_err(|what| LedgerError::BadEntry { index, what })
    }

    /// Index of the entry, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }
}

const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// A checkpoint, and 64 hashes of 45 characters.
const MAX_LEN: usize = SignedCheckpoint::MAX_LEN + 4096;
