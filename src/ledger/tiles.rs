//! A ledger as files: C2SP `tlog-tiles`, for any static file server and third-party verifier.
//!
//! ```text
//! checkpoint                  the last signed note
//! history                     all of them, oldest first (ours; other tools don't look at it)
//! tile/0/000, tile/0/001.p/7  256 leaf hashes a tile; `.p/7` is a partial one of 7
//! tile/1/000.p/1              level 1: each hash is the root of a full tile of level 0
//! tile/entries/000            256 entries, each behind its length as a big-endian u16
//! ```
//! Only what the last checkpoint covers is exported. [`verify_export`] derives all of it again.

use std::collections::BTreeMap;

use super::checkpoint::{Origin, SignedCheckpoint};
use super::tree::{self, leaf_hash};
use super::verify::{Report, verify};
use super::{Entry, LedgerError};
use crate::ids::Digest;
use crate::trust::keys::VerifyingKey;

/// Path within the export, always with `/`, and content.
pub type File = (String, Vec<u8>);

/// Makes all files. `checkpoints` are notes in the order in which they were signed.
///
/// # Errors
/// [`LedgerError::BadExport`] without a checkpoint, [`LedgerError::BadCheckpoint`],
/// [`LedgerError::Shrunk`] when entries are missing that the last one covers, and
/// [`LedgerError::BadEntry`] for one that is too long.
pub fn export<E: AsRef<[u8]>, C: AsRef<[u8]>>(
    entries: &[E],
    checkpoints: &[C],
) -> Result<Vec<File>, LedgerError> {
    let last = checkpoints.last().ok_or_else(|| bad(CHECKPOINT, "is missing"))?;
    let signed = SignedCheckpoint::parse(last.as_ref())?.checkpoint().head.size;
    let covered = usize::try_from(signed).ok().and_then(|size| entries.get(..size));
    let Some(covered) = covered else {
        let actual = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        return Err(LedgerError::Shrunk { signed, actual });
    };

    let mut files = vec![
        (CHECKPOINT.to_owned(), last.as_ref().to_vec()),
        (HISTORY.to_owned(), checkpoints.iter().flat_map(AsRef::as_ref).copied().collect()),
    ];
    for (tile, chunk) in covered.chunks(WIDTH).enumerate() {
        let mut bundle = Vec::new();
        for (entry, within) in chunk.iter().map(AsRef::as_ref).zip(0..) {
            let length = u16::try_from(entry.len()).ok().filter(|_| entry.len() <= Entry::MAX_LEN);
            let Some(length) = length else {
                let index = index_of(tile, within);
                return Err(LedgerError::BadEntry { index, what: "too long".into() });
            };
            bundle.extend_from_slice(&length.to_be_bytes());
            bundle.extend_from_slice(entry);
        }
        files.push((path("entries", tile, chunk.len()), bundle));
    }
    let mut hashes: Vec<Digest> = covered.iter().map(|entry| leaf_hash(entry.as_ref())).collect();
    for level in 0.. {
        if hashes.is_empty() {
            break;
        }
        let name = u8::to_string(&level);
        for (tile, chunk) in hashes.chunks(WIDTH).enumerate() {
            let bytes = chunk.iter().flat_map(|hash| hash.0).collect();
            files.push((path(&name, tile, chunk.len()), bytes));
        }
        hashes = hashes.chunks_exact(WIDTH).map(tree::root_of).collect();
    }
    Ok(files)
}

/// Audits an export: as [`verify`], and each tile is what the entries give.
///
/// # Errors
/// [`LedgerError`]: where the tile's hash tells which entry was changed, that entry is named.
pub fn verify_export(
    files: &BTreeMap<String, Vec<u8>>,
    origin: &Origin,
    keys: &[VerifyingKey],
) -> Result<Report, LedgerError> {
    let checkpoint = file(files, CHECKPOINT)?;
    let history = split_history(file(files, HISTORY)?);
    if history.last() != Some(&checkpoint) {
        return Err(bad(HISTORY, "doesn't end with the checkpoint"));
    }
    let signed = SignedCheckpoint::parse(checkpoint)?;
    signed.verify(origin, keys)?;
    let size = usize::try_from(signed.checkpoint().head.size).unwrap_or(usize::MAX);

    let mut entries: Vec<&[u8]> = Vec::new();
    for (tile, first) in (0..size).step_by(WIDTH).enumerate() {
        let width = (size - first).min(WIDTH);
        let name = path("entries", tile, width);
        let bundle = split_bundle(file(files, &name)?).filter(|bundle| bundle.len() == width);
        entries.extend(bundle.ok_or_else(|| bad(&name, "isn't a bundle of so many entries"))?);
    }
    let report = match verify(origin, keys, &entries, &history) {
        Ok(report) => report,
        Err(error) => return Err(first_changed(files, &entries).unwrap_or(error)),
    };
    let expected: BTreeMap<String, Vec<u8>> = export(&entries, &history)?.into_iter().collect();
    for (name, bytes) in &expected {
        if file(files, name)? != bytes.as_slice() {
            return Err(bad(name, "isn't what the entries give"));
        }
    }
    let ours = |name: &&String| name.starts_with("tile/") && !expected.contains_key(*name);
    match files.keys().find(ours) {
        Some(name) => Err(bad(name, "doesn't belong to a ledger of this size")),
        None => Ok(report),
    }
}

/// The first entry whose hash isn't the one in its tile.
fn first_changed(files: &BTreeMap<String, Vec<u8>>, entries: &[&[u8]]) -> Option<LedgerError> {
    for (tile, chunk) in entries.chunks(WIDTH).enumerate() {
        let (hashes, _) = files.get(&path("0", tile, chunk.len()))?.as_chunks::<32>();
        for ((hash, entry), within) in hashes.iter().zip(chunk).zip(0..) {
            let (expected, actual) = (Digest(*hash), leaf_hash(entry));
            if expected != actual {
                let index = index_of(tile, within);
                return Some(LedgerError::ChangedEntry { index, expected, actual });
            }
        }
    }
    None
}

/// Cuts concatenated notes apart: a line that isn't a signature, after one that is, begins a note.
fn split_history(history: &[u8]) -> Vec<&[u8]> {
    let is_signature = |line: &[u8]| line.starts_with("\u{2014} ".as_bytes());
    let (mut notes, mut begin, mut at, mut signatures) = (Vec::new(), 0, 0, false);
    for line in history.split_inclusive(|byte| *byte == b'\n') {
        if signatures && !is_signature(line) {
            notes.extend(history.get(begin..at));
            begin = at;
        }
        signatures = is_signature(line);
        at += line.len();
    }
    notes.extend(history.get(begin..at));
    notes
}

/// Cuts a bundle into its entries; `None` when a length leads beyond its end.
fn split_bundle(mut bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bundle.is_empty() {
        let (length, rest) = bundle.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        entries.push(entry);
        bundle = rest;
    }
    Some(entries)
}

/// Path of a tile: its index in groups of three digits, all but the last behind an `x`.
fn path(level: &str, tile: usize, width: usize) -> String {
    let mut index = format!("{:03}", tile % 1000);
    let mut rest = tile / 1000;
    while rest > 0 {
        index = format!("x{:03}/{index}", rest % 1000);
        rest /= 1000;
    }
    if width == WIDTH {
        format!("tile/{level}/{index}")
    } else {
        format!("tile/{level}/{index}.p/{width}")
    }
}

fn index_of(tile: usize, within: u64) -> u64 {
    u64::try_from(tile * WIDTH).unwrap_or(u64::MAX).saturating_add(within)
}

fn file<'a>(files: &'a BTreeMap<String, Vec<u8>>, name: &str) -> Result<&'a [u8], LedgerError> {
    files.get(name).map(Vec::as_slice).ok_or_else(|| bad(name, "is missing"))
}

fn bad(name: &str, what: &'static str) -> LedgerError {
    LedgerError::BadExport { path: name.to_owned(), what }
}

const WIDTH: usize = 256;
const CHECKPOINT: &str = "checkpoint";
const HISTORY: &str = "history";

#[cfg(test)]
#[path = "tamper_tests.rs"]
mod tamper_tests;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(path("0", 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(path("2", 0, 1), "tile/2/000.p/1");
        assert_eq!(path("entries", 999, 255), "tile/entries/999.p/255");
        assert_eq!(path("entries", 1000, 256), "tile/entries/x001/000");
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_without_loss(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(split_history(&bytes).concat(), bytes.clone());
            if let Some(entries) = split_bundle(&bytes) {
                let size: usize = entries.iter().map(|entry| entry.len() + 2).sum();
                prop_assert_eq!(size, bytes.len());
            }
        }
    }
}
