//! A file of a base on its way: it only grows at its end, so that a later try goes on from its length. One process
//! at a time has it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::DataError;

/// See the module.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Partial {
    /// Opens or begins the file at `path`, which is to have `bytes` bytes; one that is longer begins anew.
    ///
    /// # Errors
    /// [`DataError::Busy`] when another process has it; disk errors.
    pub fn open(path: &Path, bytes: u64) -> Result<Self, DataError> {
        let io = |error| DataError::io(path, error);
        let file =
            OpenOptions::new().create(true).append(true).read(true).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let mut partial = Self { file, path: path.to_owned(), bytes: 0 };
        partial.bytes = partial.file.metadata().map_err(io)?.len();
        if partial.bytes > bytes {
            partial.keep(0)?;
        }
        Ok(partial)
    }

    /// Bytes that are there.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Cuts it to so many bytes.
    ///
    /// # Errors
    /// Disk errors.
    pub fn keep(&mut self, bytes: u64) -> Result<(), DataError> {
        if bytes < self.bytes {
            self.file.set_len(bytes).map_err(|e| DataError::io(&self.path, e))?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    /// Disk errors.
    pub fn append(&mut self, data: &[u8]) -> Result<(), DataError> {
        self.file.write_all(data).map_err(|e| DataError::io(&self.path, e))?;
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// Back when all of it is on the disk.
    ///
    /// # Errors
    /// Disk errors.
    pub fn sync(&self) -> Result<(), DataError> {
        self.file.sync_all().map_err(|e| DataError::io(&self.path, e))
    }
}

impl Drop for Partial {
    /// Closing the file alone isn't enough: a child that another thread is just starting still has a copy of it.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_file_in_another_process_holds_nothing() {
        let room = tempfile::tempdir().unwrap();
        let partial = Partial::open(&room.path().join("x"), 6).unwrap();
        let copy = partial.file.try_clone().unwrap(); // as a fork makes it
        drop(partial);
        Partial::open(&room.path().join("x"), 6).unwrap();
        drop(copy);
    }

    #[test]
    fn a_file_goes_on_where_it_was_and_one_that_is_too_long_begins_anew() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("x");
        let mut partial = Partial::open(&path, 6).unwrap();
        partial.append(b"abcd").unwrap();
        let busy = Partial::open(&path, 6).unwrap_err();
        assert_eq!(busy.kind(), "busy");
        drop(partial);
        let mut partial = Partial::open(&path, 6).unwrap();
        assert_eq!(partial.bytes(), 4);
        partial.keep(2).unwrap();
        partial.append(b"xy").unwrap();
        partial.sync().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abxy");
        drop(partial);
        assert_eq!(Partial::open(&path, 3).unwrap().bytes(), 0);
    }
}
