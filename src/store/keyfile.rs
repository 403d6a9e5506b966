//! Private keys on disk: 0600 in a 0700 folder, nothing else is touched or believed.
//!
//! A key that others could read is refused rather than repaired: whether it was read in the
//! meantime nobody knows, so a person has to decide. Writing never replaces a key.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::ids::BootId;
use crate::trust::keys::{KeyError, SigningKey, VerifyingKey};

/// A new key from the system's random numbers.
///
/// # Errors
/// [`KeyFileError::NoRandom`].
pub fn new_signing_key() -> Result<SigningKey, KeyFileError> {
    let mut seed = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(seed.as_mut()).map_err(|_| KeyFileError::NoRandom)?;
    Ok(SigningKey::generate(&seed))
}

/// Random name of a start, so that its sequence numbers are told from those of others.
///
/// # Errors
/// [`KeyFileError::NoRandom`].
pub fn new_boot_id() -> Result<BootId, KeyFileError> {
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).map_err(|_| KeyFileError::NoRandom)?;
    Ok(BootId(id))
}

/// Reads a private key; `expected` guards against the wrong file.
///
/// # Errors
/// [`KeyFileError`], with the way out in its text.
pub fn read_signing_key(
    path: &Path,
    expected: Option<&VerifyingKey>,
) -> Result<SigningKey, KeyFileError> {
    check_folder(folder_of(path))?;
    let named = fs::symlink_metadata(path).map_err(|source| failed(path, source))?;
    if !named.is_file() {
        return Err(KeyFileError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(|source| failed(path, source))?;
    let opened = file.metadata().map_err(|source| failed(path, source))?;
    // Somebody may have swapped the file since it was looked at; what counts is the opened one.
    if (opened.dev(), opened.ino()) != (named.dev(), named.ino()) {
        return Err(KeyFileError::NotAFile { path: path.to_owned() });
    }
    if open_to_others(&opened) {
        return Err(KeyFileError::Loose { path: path.to_owned(), mode: mode(&opened), fix: 0o600 });
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_LEN));
    let limit = u64::try_from(MAX_LEN).unwrap_or(u64::MAX);
    file.take(limit).read_to_string(&mut text).map_err(|source| failed(path, source))?;
    SigningKey::from_pem(&text, expected)
        .map_err(|source| KeyFileError::Key { path: path.to_owned(), source })
}

/// Writes a private key to a path where nothing is yet, and makes the last folder if it must.
///
/// The key is on disk and complete when this returns, or not there at all.
///
/// # Errors
/// [`KeyFileError`]; `Exists` when there is something at `path`.
pub fn write_signing_key(path: &Path, key: &SigningKey) -> Result<(), KeyFileError> {
    let folder = folder_of(path);
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed(folder, source));
        }
        _ => check_folder(folder)?,
    }
    let mut draft_name = path.file_name().unwrap_or_default().to_owned();
    draft_name.push(format!(".{}.draft", std::process::id()));
    let draft = folder.join(draft_name);
    let written = write_draft(&draft, key).and_then(|()| {
        // Unlike a rename, a link fails when the name is taken.
        fs::hard_link(&draft, path)
    });
    let removed = fs::remove_file(&draft);
    match written {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            return Err(KeyFileError::Exists { path: path.to_owned() });
        }
        other => other.and(removed).map_err(|source| failed(path, source))?,
    }
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(|source| failed(folder, source))
}

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The system has no random numbers.
    #[error("the system gives no random numbers: no key can be made")]
    NoRandom,
    /// Missing, no permission, disk.
    #[error("key file {path}: {source} (gaisnet init and gaisnet keys new make one)", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A symlink, a folder, a pipe.
    #[error("{path} is not a plain file (folder): give the real path of the key", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error(
        "{path} is open to others (mode {mode:03o}): if nobody else has read the key, `chmod {fix:03o} {path}`, else make a new one",
        path = path.display()
    )]
    Loose {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        fix: u32,
    },
    /// There is something already.
    #[error("{path} exists: a key is never replaced, move it away first", path = path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The content isn't the key.
    #[error("key file {path}: {source}", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
}

impl KeyFileError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoRandom => "keyfile_no_random",
            Self::Io { .. } => "keyfile_io",
            Self::NotAFile { .. } => "keyfile_not_a_file",
            Self::Loose { .. } => "keyfile_loose",
            Self::Exists { .. } => "keyfile_exists",
            Self::Key { source, .. } => source.kind(),
        }
    }
}

fn write_draft(draft: &Path, key: &SigningKey) -> io::Result<()> {
    // Left over from a process with the same number that died in the middle.
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(key.to_pem().as_bytes())?;
    file.sync_all()
}

fn check_folder(folder: &Path) -> Result<(), KeyFileError> {
    let found = fs::symlink_metadata(folder).map_err(|source| failed(folder, source))?;
    if !found.is_dir() {
        return Err(KeyFileError::NotAFile { path: folder.to_owned() });
    }
    if open_to_others(&found) {
        return Err(KeyFileError::Loose {
            path: folder.to_owned(),
            mode: mode(&found),
            fix: 0o700,
        });
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn open_to_others(found: &Metadata) -> bool {
    found.mode() & 0o077 != 0
}

fn mode(found: &Metadata) -> u32 {
    found.mode() & 0o777
}

fn failed(path: &Path, source: io::Error) -> KeyFileError {
    KeyFileError::Io { path: path.to_owned(), source }
}

/// Many times a key.
const MAX_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A folder of mode 0700 with a key in it.
    fn with_key() -> (tempfile::TempDir, PathBuf, SigningKey) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("keys").join("edge.pem");
        let key = SigningKey::generate(&[1; 32]);
        write_signing_key(&path, &key).unwrap();
        (scratch, path, key)
    }

    #[test]
    fn a_written_key_is_private_and_read_back() {
        let (_scratch, path, key) = with_key();
        assert_eq!(mode(&fs::metadata(&path).unwrap()), 0o600);
        assert_eq!(mode(&fs::metadata(path.parent().unwrap()).unwrap()), 0o700);
        let read = read_signing_key(&path, Some(key.public())).unwrap();
        assert_eq!(read.public(), key.public());
        // Nothing else is left in the folder.
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_is_never_replaced() {
        let (_scratch, path, key) = with_key();
        let other = new_signing_key().unwrap();
        assert_eq!(write_signing_key(&path, &other).unwrap_err().kind(), "keyfile_exists");
        assert_eq!(read_signing_key(&path, None).unwrap().public(), key.public());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn loose_permissions_are_refused_and_the_text_says_how_to_fix_them() {
        let (_scratch, path, _) = with_key();
        for loose in [0o640, 0o604, 0o620, 0o601] {
            chmod(&path, loose);
            let refused = read_signing_key(&path, None).unwrap_err();
            assert_eq!(refused.kind(), "keyfile_loose");
            assert!(refused.to_string().contains(&format!("`chmod 600 {}`", path.display())));
        }
        chmod(&path, 0o600);
        read_signing_key(&path, None).unwrap();
        let folder = path.parent().unwrap();
        chmod(folder, 0o750);
        let refused = read_signing_key(&path, None).unwrap_err();
        assert!(refused.to_string().contains(&format!("`chmod 700 {}`", folder.display())));
        let new = folder.join("new.pem");
        assert_eq!(
            write_signing_key(&new, &SigningKey::generate(&[2; 32])).unwrap_err().kind(),
            "keyfile_loose"
        );
        chmod(folder, 0o700);
        read_signing_key(&path, None).unwrap();
    }

    #[test]
    fn symlinks_and_folders_are_no_key_files() {
        let (_scratch, path, key) = with_key();
        let folder = path.parent().unwrap();
        let link = folder.join("link.pem");
        symlink(&path, &link).unwrap();
        assert_eq!(read_signing_key(&link, None).unwrap_err().kind(), "keyfile_not_a_file");
        assert_eq!(write_signing_key(&link, &key).unwrap_err().kind(), "keyfile_exists");
        let linked_folder = folder.parent().unwrap().join("linked");
        symlink(folder, &linked_folder).unwrap();
        let through = read_signing_key(&linked_folder.join("edge.pem"), None).unwrap_err();
        assert_eq!(through.kind(), "keyfile_not_a_file");
        let inner = folder.join("inner");
        fs::create_dir(&inner).unwrap();
        assert_eq!(read_signing_key(&inner, None).unwrap_err().kind(), "keyfile_not_a_file");
    }

    #[test]
    fn a_missing_wrong_or_damaged_key_is_named() {
        let (_scratch, path, key) = with_key();
        let missing = path.with_file_name("missing.pem");
        let refused = read_signing_key(&missing, None).unwrap_err();
        assert_eq!(refused.kind(), "keyfile_io");
        assert!(refused.to_string().contains("missing.pem"));
        let other = SigningKey::generate(&[2; 32]);
        let refused = read_signing_key(&path, Some(other.public())).unwrap_err();
        assert_eq!(refused.kind(), "key_mismatch");
        for damage in [b"".as_slice(), &[0xff; 10], key.public().to_pem().as_bytes(), &[b'a'; 9000]]
        {
            fs::write(&path, damage).unwrap();
            assert!(read_signing_key(&path, None).is_err());
        }
    }

    #[test]
    fn new_keys_differ() {
        let (one, two) = (new_signing_key().unwrap(), new_signing_key().unwrap());
        assert_ne!(one.public(), two.public());
    }
}
