//! Unpacks chosen folders of a `.tar.gz`, with caps, and writes nowhere else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use flate2::read::GzDecoder;

use super::DataError;

/// Takes the plain files of `folders` (paths below the archive's top folder) into `target`, flat:
/// `top/data/signals/real_test/a.csv` becomes `target/real_test/a.csv`.
///
/// Returns sizes by relative path. `progress` gets the number of files so far.
///
/// # Errors
/// [`DataError::BadArchive`] on an entry in a wanted folder that isn't a plain file with a plain
/// name, or past a cap; a disk error.
pub(super) fn unpack(
    archive: &Path,
    folders: &[&str],
    target: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<BTreeMap<String, u64>, DataError> {
    let file = File::open(archive).map_err(|e| DataError::io(archive, e))?;
    let broken = |e| DataError::io(archive, e);
    let stream = GzDecoder::new(file).take(MAX_STREAM_BYTES);
    let mut entries = tar::Archive::new(stream);
    let mut sizes = BTreeMap::new();
    for entry in entries.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((folder, name)) = wanted(&path, folders) else { continue };
        let refused = |why| DataError::BadArchive { entry: path.clone(), why };
        if name.is_empty() && entry.header().entry_type().is_dir() {
            continue;
        }
        if !entry.header().entry_type().is_file() {
            return Err(refused("not a plain file"));
        }
        if !is_plain_name(name) {
            return Err(refused("name is not plain letters, digits, '_', '-' and '.'"));
        }
        if entry.size() > MAX_FILE_BYTES {
            return Err(refused("larger than 64 MiB"));
        }
        if sizes.len() >= MAX_FILES {
            return Err(refused("more than 256 files"));
        }
        let relative = format!("{folder}/{name}");
        if sizes.contains_key(&relative) {
            return Err(refused("comes twice"));
        }
        let directory = target.join(folder);
        fs::create_dir_all(&directory).map_err(|e| DataError::io(&directory, e))?;
        let place = directory.join(name);
        let mut out = File::create_new(&place).map_err(|e| DataError::io(&place, e))?;
        let size = io::copy(&mut entry, &mut out).map_err(|e| DataError::io(&place, e))?;
        sizes.insert(relative, size);
        progress(sizes.len());
    }
    Ok(sizes)
}

/// Splits `top/<folder>/<name>`, when `<folder>` is wanted, into the folder's last part and name.
fn wanted<'a>(path: &'a str, folders: &[&'a str]) -> Option<(&'a str, &'a str)> {
    let (_, below_top) = path.split_once('/')?;
    let inside = |folder: &&'a str| {
        let name = below_top.strip_prefix(*folder)?.strip_prefix('/')?;
        Some((folder.rsplit('/').next()?, name))
    };
    folders.iter().find_map(inside)
}

fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !name.starts_with('.') && !name.is_empty() && name.len() <= 128 && name.chars().all(plain)
}

/// Caps against a bomb: what one file, the number of files and the whole stream may be.
const MAX_FILE_BYTES: u64 = 64 << 20;
const MAX_FILES: usize = 256;
const MAX_STREAM_BYTES: u64 = 512 << 20;

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use tar::{Builder, EntryType, Header};

    use super::*;

    /// Unpacks an archive of one entry whose name is written raw, as an attacker would.
    fn unpack_one(name: &str, kind: EntryType) -> Result<BTreeMap<String, u64>, DataError> {
        let room = tempfile::tempdir().unwrap();
        let archive = room.path().join("a.tar.gz");
        let mut builder =
            Builder::new(GzEncoder::new(File::create(&archive).unwrap(), Compression::fast()));
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(if kind == EntryType::Regular { 2 } else { 0 });
        header.set_mode(0o644);
        header.set_cksum();
        let body: &[u8] = if kind == EntryType::Regular { b"1\n" } else { b"" };
        builder.append(&header, body).unwrap();
        builder.into_inner().unwrap().finish().unwrap();
        let target = room.path().join("out");
        fs::create_dir(&target).unwrap();
        let sizes = unpack(&archive, &["data/real"], &target, &mut |_| {})?;
        for file in sizes.keys() {
            assert!(target.join(file).is_file());
        }
        Ok(sizes)
    }

    #[test]
    fn a_wanted_file_is_unpacked_and_others_are_passed_over() {
        let sizes = unpack_one("top/data/real/a.csv", EntryType::Regular).unwrap();
        assert_eq!(sizes, BTreeMap::from([("real/a.csv".to_owned(), 2)]));
        assert!(unpack_one("top/data/real2/a.csv", EntryType::Regular).unwrap().is_empty());
        assert!(unpack_one("top/setup.py", EntryType::Regular).unwrap().is_empty());
    }

    #[test]
    fn path_like_names_are_refused() {
        for name in ["../a.csv", "sub/a.csv", "..", ".hidden", "a b.csv", "", "/etc/passwd"] {
            let error = unpack_one(&format!("top/data/real/{name}"), EntryType::Regular);
            assert_eq!(error.unwrap_err().kind(), "bad_archive", "{name:?}");
        }
    }

    #[test]
    fn links_are_refused() {
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Fifo] {
            let error = unpack_one("top/data/real/a.csv", kind).unwrap_err();
            assert_eq!(error.kind(), "bad_archive");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_one_path_component(name in ".{0,40}") {
            if is_plain_name(&name) {
                let parts: Vec<_> = Path::new(&name).components().collect();
                prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]));
            }
        }
    }
}
