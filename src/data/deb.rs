//! Unpacks named files of a Debian package, with caps, and writes nowhere else.
//!
//! A `.deb` is an `ar` archive of three members; the files are in the one called `data.tar.xz`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use lzma_rust2::XzReader;

use super::DataError;

/// Takes `files`, whole paths in the package without a leading `./`, into `target` by the last part of
/// their names.
///
/// Returns sizes by that name. `progress` gets the number of files so far. Nothing of the package runs, and
/// its own names never become paths.
///
/// # Errors
/// [`DataError::BadArchive`] when it is no such package, a file isn't there, isn't plain or is past a cap; a
/// disk error.
pub(super) fn unpack(
    archive: &Path,
    files: &[&str],
    target: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<BTreeMap<String, u64>, DataError> {
    let file = File::open(archive).map_err(|e| DataError::io(archive, e))?;
    let data = data_of(BufReader::new(file)).map_err(|error| told(archive, error))?;
    let mut entries = tar::Archive::new(files_of(data));
    let mut sizes = BTreeMap::new();
    for entry in entries.entries().map_err(|error| told(archive, error))? {
        let mut entry = entry.map_err(|error| told(archive, error))?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(wanted) = files.iter().find(|file| path.strip_prefix("./") == Some(**file)) else {
            continue;
        };
        let refused = |why| DataError::BadArchive { entry: path.clone(), why };
        if !entry.header().entry_type().is_file() {
            return Err(refused("not a plain file"));
        }
        if entry.size() > MAX_FILE_BYTES {
            return Err(refused("larger than 64 MiB"));
        }
        let name = wanted.rsplit('/').next().unwrap_or(wanted);
        if sizes.contains_key(name) {
            return Err(refused("comes twice"));
        }
        let place = target.join(name);
        let mut out = File::create_new(&place).map_err(|e| DataError::io(&place, e))?;
        let size = io::copy(&mut entry, &mut out).map_err(|error| told(&place, error))?;
        sizes.insert(name.to_owned(), size);
        progress(sizes.len());
    }
    if let Some(missing) = files.iter().find(|file| {
        let name = file.rsplit('/').next().unwrap_or(file);
        !sizes.contains_key(name)
    }) {
        let why = "the package has no such file";
        return Err(DataError::BadArchive { entry: (*missing).to_owned(), why });
    }
    Ok(sizes)
}

/// The bytes of the member `data.tar.xz`.
fn data_of<R: Read>(mut archive: R) -> io::Result<io::Take<R>> {
    let mut magic = [0; MAGIC.len()];
    archive.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(invalid("not a Debian package"));
    }
    for _ in 0..MAX_MEMBERS {
        let mut head = [0; 60];
        archive.read_exact(&mut head)?;
        let (name, rest) = head.split_at(16);
        let size = rest.get(32..42).and_then(|text| str::from_utf8(text).ok());
        let size: Option<u64> = size.and_then(|text| text.trim_end().parse().ok());
        let Some(size) = size.filter(|_| rest.ends_with(b"`\n")) else {
            return Err(invalid("the head of a member is damaged"));
        };
        if name.trim_ascii_end() == b"data.tar.xz" {
            return Ok(archive.take(size));
        }
        if size > MAX_FILE_BYTES {
            return Err(invalid("a member before the files is larger than 64 MiB"));
        }
        // Members begin at even places.
        let skipped = size + size % 2;
        if io::copy(&mut archive.by_ref().take(skipped), &mut io::sink())? < skipped {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Err(invalid("it has no member data.tar.xz"))
}

/// The tar of a member; neither it nor its dictionary may grow without bound.
fn files_of<R: Read>(member: R) -> io::Take<XzReader<R>> {
    XzReader::new_mem_limit(member, false, MAX_DICTIONARY_KIB).take(MAX_STREAM_BYTES)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// What is wrong with the bytes isn't a fault of the disk.
fn told(path: &Path, error: io::Error) -> DataError {
    match error.kind() {
        io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Unsupported
        | io::ErrorKind::Other => {
            let entry = path.file_name().map(|name| name.to_string_lossy().into_owned());
            DataError::BadArchive {
                entry: entry.unwrap_or_default(),
                why: "its bytes are damaged, or it is no Debian package with data.tar.xz",
            }
        }
        _ => DataError::io(path, error),
    }
}

const MAGIC: &[u8; 8] = b"!<arch>\n";
/// Caps against a bomb: members before the files, what one file and what all of them may be.
const MAX_MEMBERS: usize = 8;
const MAX_FILE_BYTES: u64 = 64 << 20;
const MAX_STREAM_BYTES: u64 = 512 << 20;
const MAX_DICTIONARY_KIB: u32 = 128 << 10;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// `xz --format=xz` of a tar with `./usr/share/a.txt` ("1\n") and a link `./usr/share/l`.
    const DATA: &[u8] = include_bytes!("../../tests/golden/data/two-entries.tar.xz");

    fn member(name: &str, bytes: &[u8]) -> Vec<u8> {
        let mut member =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, bytes.len());
        if bytes.len() % 2 == 1 {
            member.push('\n');
        }
        let mut member = member.into_bytes();
        let at = 60;
        member.splice(at..at, bytes.iter().copied());
        member
    }

    fn package() -> Vec<u8> {
        let parts = [member("debian-binary", b"2.0"), member("data.tar.xz", DATA)];
        [MAGIC.to_vec(), parts.concat()].concat()
    }

    fn unpacked(package: &[u8], file: &str) -> Result<BTreeMap<String, u64>, DataError> {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("a.deb");
        fs::write(&path, package).unwrap();
        let target = room.path().join("out");
        fs::create_dir(&target).unwrap();
        unpack(&path, &[file], &target, &mut |_| {})
    }

    #[test]
    fn a_wanted_file_is_unpacked_and_what_is_missing_or_no_file_is_named() {
        let sizes = unpacked(&package(), "usr/share/a.txt").unwrap();
        assert_eq!(sizes, BTreeMap::from([("a.txt".to_owned(), 2)]));
        for entry in ["usr/share/b.txt", "usr/share/l", "share/a.txt"] {
            let error = unpacked(&package(), entry).unwrap_err();
            assert_eq!(error.kind(), "bad_archive");
            assert!(error.to_string().contains(entry), "{error}");
        }
    }

    #[test]
    fn a_cut_or_changed_package_is_an_error() {
        let whole = package();
        for cut in [0, 4, 8, 30, 68, 72, 131, whole.len() - 40] {
            let error = unpacked(&whole[..cut], "usr/share/a.txt").unwrap_err();
            assert_eq!(error.kind(), "bad_archive", "{cut} bytes");
        }
        for at in [0, 8 + 50, 8 + 59, 8 + 64 + 60 + 20] {
            let mut changed = whole.clone();
            changed[at] ^= 0x55;
            assert!(unpacked(&changed, "usr/share/a.txt").is_err(), "byte {at}");
        }
        let endless = [MAGIC.to_vec(), member("x", b"").repeat(100)].concat();
        assert_eq!(unpacked(&endless, "a").unwrap_err().kind(), "bad_archive");
    }
}
