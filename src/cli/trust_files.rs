//! What several commands read and write: keyrings, keys, requests, the clock.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::SettingsArgs;
use super::exit::Misuse;
use crate::settings::Settings;
use crate::store::keyfile::read_signing_key;
use crate::time::Wall;
use crate::trust::keyring::Keyring;
use crate::trust::keyring_document::{MAX_DOCUMENT_BYTES, open_document, seal_document};
use crate::trust::keys::{SigningKey, VerifyingKey};

/// The machine's time.
pub(super) fn now() -> Wall {
    #[expect(clippy::disallowed_methods, reason = "a command has no node's clock")]
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

/// `2026-11-24 00:05:06.123`, in UTC, as people read a moment.
///
/// # Source
/// Days to a date by Howard Hinnant's `civil_from_days`.
pub(super) fn utc(at: Wall) -> String {
    let (days, ms) = (at.0 / DAY_MS, at.0 % DAY_MS);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on, so that the leap day is the last of the year.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + later;
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    let ms = ms % 1_000;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}")
}

/// The settings that the command line names, or nothing when it names none.
pub(super) fn settings_if_named(args: &SettingsArgs) -> anyhow::Result<Option<Settings>> {
    if args.config.is_none() {
        return Ok(None);
    }
    Ok(Some(args.layers().load().into_settings()?))
}

/// A path from the command line, else from the settings that it names.
pub(super) fn path_or_setting(
    given: Option<&PathBuf>,
    settings: Option<&Settings>,
    setting: impl Fn(&Settings) -> PathBuf,
    option: &str,
) -> anyhow::Result<PathBuf> {
    let found = given.cloned().or_else(|| settings.map(setting));
    found.ok_or_else(|| Misuse(format!("give {option}, or --config with the node's file")).into())
}

/// Opens the keyring at `path`: believed because it lies there, if its own root signed it.
pub(super) fn read_keyring(path: &Path) -> anyhow::Result<Keyring> {
    let bytes = read_capped(path, MAX_DOCUMENT_BYTES)?;
    open_document(&bytes, None).with_context(|| format!("keyring {}", path.display()))
}

/// Signs a keyring and puts it at `path`, complete or not at all.
pub(super) fn write_keyring(
    path: &Path,
    keyring: &Keyring,
    root: &[SigningKey],
) -> anyhow::Result<()> {
    let root: Vec<&SigningKey> = root.iter().collect();
    let document = seal_document(keyring, &root)?;
    // What nobody would take must not replace what everybody takes.
    open_document(&document, None)?;
    replace(path, &document)
}

/// Reads root keys.
pub(super) fn read_root_keys(paths: &[PathBuf]) -> anyhow::Result<Vec<SigningKey>> {
    paths.iter().map(|path| Ok(read_signing_key(path, None)?)).collect()
}

/// Reads a public key, or takes the public half of a private one.
pub(super) fn read_public_key(path: &Path) -> anyhow::Result<VerifyingKey> {
    let text = read_capped(path, MAX_KEY_BYTES)?;
    let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&text).into_owned());
    if text.contains("PRIVATE KEY-----") {
        return Ok(*read_signing_key(path, None)?.public());
    }
    VerifyingKey::from_pem(&text).with_context(|| path.display().to_string())
}

/// Path of the public half: `node.pub.pem` beside `node.pem`.
pub(super) fn public_path(private: &Path) -> PathBuf {
    private.with_extension("pub.pem")
}

/// Reads a file that has no business to be larger than `cap`.
pub(super) fn read_capped(path: &Path, cap: usize) -> anyhow::Result<Vec<u8>> {
    let size = path.metadata().with_context(|| path.display().to_string())?.len();
    if usize::try_from(size).map_or(true, |size| size > cap) {
        anyhow::bail!("{} has {size} bytes, at most {cap} are read", path.display());
    }
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Writes a file where nothing is yet.
pub(super) fn write_new(file: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let mut opened =
        opened.with_context(|| format!("can't make {}; nothing is overwritten", file.display()))?;
    opened.write_all(bytes).with_context(|| file.display().to_string())
}

/// Replaces a file in one step: a reader sees the old bytes or the new ones, also after a crash.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.draft", std::process::id()));
    let draft = PathBuf::from(draft);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

const DAY_MS: u64 = 86_400_000;
/// Many times a key.
const MAX_KEY_BYTES: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_in_utc() {
        assert_eq!(utc(Wall(0)), "1970-01-01 00:00:00.000");
        assert_eq!(utc(Wall(951_782_400_000)), "2000-02-29 00:00:00.000");
        assert_eq!(utc(Wall(1_767_225_599_999)), "2025-12-31 23:59:59.999");
        assert_eq!(utc(Wall(1_772_323_200_000)), "2026-03-01 00:00:00.000");
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_new_one_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert!(write_new(&path, b"three", 0o600).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(read_capped(&path, 2).is_err());
    }
}
