//! Content-addressed files: `blobs/ab/abcd…` holds the bytes whose SHA-256 is `abcd…`.
//!
//! A file has its name only once it is complete and synced (temporary file, fsync, rename, fsync of
//! the directory), so a crash leaves a blob or none. Every read checks the digest. Which blobs are
//! still needed is the caller's knowledge: nothing is deleted but by [`BlobDir::retain`].

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::fail;
use crate::ids::Digest;
use crate::store::{BlobReader, StoreError, directory, sha256};

/// How much may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobCaps {
    /// Bytes of one blob.
    pub max_blob_bytes: u64,
    /// Bytes of all blobs; above it is [`StoreError::Full`].
    pub max_total_bytes: u64,
}

impl Default for BlobCaps {
    /// 1 GiB a blob (a small base model), 8 GiB in all.
    fn default() -> Self {
        Self { max_blob_bytes: 1 << 30, max_total_bytes: 8 << 30 }
    }
}

/// The directory of blobs. One process writes, see [`directory::Lock`]; clones only read.
#[derive(Debug, Clone)]
pub(super) struct BlobDir {
    root: PathBuf,
    caps: BlobCaps,
    used_bytes: u64,
}

impl BlobDir {
    /// Opens the directory, creates it if need be, and clears away what a crash left half-written.
    pub(super) fn open(root: &Path, caps: BlobCaps) -> Result<Self, StoreError> {
        directory::create(root)?;
        let mut blobs = Self { root: root.to_path_buf(), caps, used_bytes: 0 };
        for file in blobs.files()? {
            if file.digest.is_some() {
                blobs.used_bytes = blobs.used_bytes.saturating_add(file.bytes);
            } else if file.path.extension().is_some_and(|extension| extension == UNFINISHED) {
                remove(&file.path)?;
            }
        }
        Ok(blobs)
    }

    /// For reading alone: touches nothing.
    pub(super) fn open_read_only(root: &Path) -> Self {
        let caps = BlobCaps { max_blob_bytes: u64::MAX, max_total_bytes: 0 };
        Self { root: root.to_path_buf(), caps, used_bytes: 0 }
    }

    /// Writes `bytes`, whose SHA-256 is `digest`, durable when this returns. A blob that is there
    /// already isn't written again.
    pub(super) fn put(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(digest);
        let size = bytes.len() as u64;
        if size > self.caps.max_blob_bytes {
            let limit = self.caps.max_blob_bytes;
            let message = format!("a blob of {size} bytes is over the cap of {limit}");
            return Err(StoreError::Io { path: path.display().to_string(), message });
        }
        let shard = self.shard(digest);
        directory::create(&shard)?;
        let old_size = size_of_file(&path)?;
        if old_size != Some(size) {
            self.write(&path, bytes, old_size.unwrap_or(0))?;
        }
        // Also for a known blob: the process may have died between its rename and this.
        directory::sync(&shard)
    }

    /// Deletes all blobs but those in `keep`.
    pub(super) fn retain(&mut self, keep: &BTreeSet<Digest>) -> Result<(), StoreError> {
        for file in self.files()? {
            if file.digest.is_some_and(|digest| !keep.contains(&digest)) {
                remove(&file.path)?;
                self.used_bytes = self.used_bytes.saturating_sub(file.bytes);
            }
        }
        Ok(())
    }

    /// Reads a blob; `None` if it isn't here, `Corrupt` if its bytes are others.
    pub(super) fn get(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(digest);
        let damaged = |what: String| StoreError::Corrupt { path: path.display().to_string(), what };
        let size = match size_of_file(&path)? {
            None => return Ok(None),
            Some(size) if size > self.caps.max_blob_bytes => {
                return Err(damaged(format!("{size} bytes are over the cap of a blob")));
            }
            Some(size) => size,
        };
        let bytes = fs::read(&path).map_err(|error| directory::io_error(&path, &error))?;
        let found = sha256(&bytes);
        if found == *digest {
            Ok(Some(bytes))
        } else {
            Err(damaged(format!("its {size} bytes have the digest {found}")))
        }
    }

    /// Part of the cap on all blobs that is used; 100 means full.
    pub(super) fn fill_percent(&self) -> u64 {
        let used = u128::from(self.used_bytes) * 100;
        u64::try_from(used / u128::from(self.caps.max_total_bytes.max(1))).unwrap_or(100)
    }

    fn write(&mut self, path: &Path, bytes: &[u8], old_size: u64) -> Result<(), StoreError> {
        let used = self.used_bytes.saturating_sub(old_size).saturating_add(bytes.len() as u64);
        let limit = self.caps.max_total_bytes;
        if used > limit {
            let path = format!("{} (its cap is {limit} bytes)", self.root.display());
            return Err(StoreError::Full { path });
        }
        let unfinished = path.with_extension(UNFINISHED);
        let written = directory::create_file(&unfinished).and_then(|mut file| {
            file.write_all(bytes)
                .inspect(|()| fail::here("blob-written", ""))
                .and_then(|()| file.sync_all())
                .inspect(|()| fail::here("blob-synced", ""))
                .and_then(|()| fs::rename(&unfinished, path))
                .inspect(|()| fail::here("blob-named", ""))
                .map_err(|error| directory::io_error(path, &error))
        });
        if written.is_ok() {
            self.used_bytes = used;
        } else {
            remove(&unfinished)?; // its room is what others may need
        }
        written
    }

    fn shard(&self, digest: &Digest) -> PathBuf {
        let [first, ..] = digest.0;
        self.root.join(hex::encode([first]))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.shard(digest).join(digest.to_string())
    }

    fn files(&self) -> Result<Vec<Found>, StoreError> {
        let mut files = Vec::new();
        for shard in list(&self.root)? {
            if !shard.is_dir() {
                continue;
            }
            for path in list(&shard)? {
                let name = path.file_name().and_then(|name| name.to_str());
                let digest = name.and_then(|name| name.parse().ok());
                let bytes = size_of_file(&path)?.unwrap_or(0);
                files.push(Found { path, digest, bytes });
            }
        }
        Ok(files)
    }
}

struct Found {
    path: PathBuf,
    digest: Option<Digest>,
    bytes: u64,
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(|error| directory::io_error(dir, &error))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|error| directory::io_error(dir, &error))?.path());
    }
    Ok(paths)
}

fn size_of_file(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(directory::io_error(path, &error)),
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(directory::io_error(path, &error))
        }
        _ => Ok(()),
    }
}

/// Extension of a file whose bytes aren't all there yet.
const UNFINISHED: &str = "new";

impl BlobReader for BlobDir {
    fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const CAPS: BlobCaps = BlobCaps { max_blob_bytes: 100, max_total_bytes: 250 };

    fn open(dir: &tempfile::TempDir) -> BlobDir {
        BlobDir::open(&dir.path().join("blobs"), CAPS).unwrap()
    }

    fn put(blobs: &mut BlobDir, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = sha256(bytes);
        blobs.put(&digest, bytes).map(|()| digest)
    }

    #[test]
    fn blob_has_its_digest_as_name_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let digest = put(&mut open(&dir), b"abc").unwrap();
        let name = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), name);
        let path = dir.path().join("blobs/ba").join(name);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&dir.path().join("blobs")), 0o700);
    }

    #[test]
    fn blob_with_other_bytes_is_corrupt_and_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut blobs = open(&dir);
        let digest = put(&mut blobs, b"abc").unwrap();
        for damage in [b"abd".as_slice(), b"ab", b"", &[7; 101]] {
            fs::write(blobs.path(&digest), damage).unwrap();
            let error = blobs.get(&digest).unwrap_err();
            assert_eq!(error.kind(), "store_corrupt");
            assert!(error.to_string().contains(&digest.to_string()), "{error}");
        }
        fs::write(blobs.path(&digest), b"ab").unwrap();
        put(&mut blobs, b"abc").unwrap(); // a shortened one is written anew
        assert_eq!(blobs.get(&digest).unwrap().unwrap(), b"abc");
    }

    #[test]
    fn caps_hold_and_retain_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut blobs = open(&dir);
        assert_eq!(put(&mut blobs, &[0; 101]).unwrap_err().kind(), "store_io");
        let first = put(&mut blobs, &[1; 100]).unwrap();
        let second = put(&mut blobs, &[2; 100]).unwrap();
        put(&mut blobs, &[2; 100]).unwrap(); // known: counts once
        assert_eq!(put(&mut blobs, &[3; 51]).unwrap_err().kind(), "store_full");
        drop(blobs);
        let mut reopened = open(&dir);
        assert_eq!(put(&mut reopened, &[3; 51]).unwrap_err().kind(), "store_full");
        reopened.retain(&BTreeSet::from([second])).unwrap();
        assert_eq!(reopened.get(&first).unwrap(), None);
        put(&mut reopened, &[3; 51]).unwrap();
        assert_eq!(reopened.get(&second).unwrap().unwrap(), [2; 100]);
    }

    #[test]
    fn half_written_blob_of_a_crash_is_cleared_and_strangers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let digest = put(&mut open(&dir), b"abc").unwrap();
        let shard = dir.path().join("blobs/ba");
        let half = shard.join(format!("{digest}.{UNFINISHED}"));
        fs::write(&half, b"a").unwrap();
        fs::write(shard.join("README"), b"notes").unwrap();
        let mut blobs = open(&dir);
        assert!(!half.exists());
        blobs.retain(&BTreeSet::new()).unwrap();
        assert!(shard.join("README").exists());
        assert_eq!(blobs.get(&digest).unwrap(), None);
    }
}
