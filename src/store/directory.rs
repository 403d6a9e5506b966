//! A store's directory: readable by its owner only, held by one process, synced when it changes.
//!
//! Used by [`super::sqlite`] and [`super::blobs`]. A directory that already exists keeps its mode,
//! since it may be shared with other things; what we create in it is private all the same.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::store::StoreError;

/// Creates the directory (mode 0700) and its parents, unless it is there.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let found = fs::metadata(path).is_ok_and(|meta| meta.is_dir());
    if found {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| io_error(path, &error))?;
    path.parent().map_or(Ok(()), sync)
}

/// Creates a file (mode 0600) or truncates the one that is there.
pub(super) fn create_file(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(|error| io_error(path, &error))
}

/// Takes group and other bits from a file that somebody copied here.
pub(super) fn make_private(path: &Path) -> Result<(), StoreError> {
    let others = fs::metadata(path).map(|meta| meta.permissions().mode() & 0o077);
    if others.is_ok_and(|bits| bits == 0) {
        return Ok(());
    }
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(path, private).map_err(|error| io_error(path, &error))
}

/// Holds a directory until it is dropped or the process ends, in whatever way.
///
/// A file of its own, and not a lock on the database: so auditors can read while the node runs.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the directory, or tells that another process has it.
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let file = create_file(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => {
                Err(StoreError::Locked { path: dir.display().to_string() })
            }
            Err(TryLockError::Error(error)) => Err(io_error(&path, &error)),
        }
    }
}

impl Drop for Lock {
    /// Closing the file alone isn't enough: a child that another thread is just starting still has a copy of it.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// Makes the names in a directory durable: without it a power cut may undo a rename.
pub(super) fn sync(dir: &Path) -> Result<(), StoreError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|file| file.sync_all()).map_err(|error| io_error(dir, &error))
}

/// What the system said about `path`, sorted by what can be done about it.
pub(super) fn io_error(path: &Path, error: &io::Error) -> StoreError {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path },
        _ => StoreError::Io { path, message: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_lock_in_a_starting_child_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        assert_eq!(Lock::take(dir.path()).unwrap_err().kind(), "store_locked");
        let copy = lock.file.try_clone().unwrap(); // as a fork makes it
        drop(lock);
        Lock::take(dir.path()).unwrap();
        drop(copy);
    }
}
