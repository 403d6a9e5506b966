//! The file in a cell's folder that tells how far it is: read when a run goes on, replaced whole after each round.
//!
//! What stands in it is the experiment's own. Called by `niid` and `paper`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ExperimentError;

/// Reads the record in a cell's folder, if there is one.
///
/// # Errors
/// [`ExperimentError::Record`] when it isn't one, [`ExperimentError::Io`].
pub(super) fn read<T: DeserializeOwned>(folder: &Path) -> Result<Option<T>, ExperimentError> {
    let path = place(folder);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ExperimentError::Io(path, error)),
    };
    let record = serde_json::from_slice(&bytes);
    record.map(Some).map_err(|error| ExperimentError::Record(path, error.to_string()))
}

/// Writes it, whole or not at all.
///
/// # Errors
/// [`ExperimentError::Io`].
pub(super) fn write<T: Serialize>(record: &T, folder: &Path) -> Result<(), ExperimentError> {
    let path = place(folder);
    let fresh = path.with_extension("new");
    let at = |error| ExperimentError::Io(path.clone(), error);
    let mut text = serde_json::to_vec_pretty(record).map_err(|error| at(error.into()))?;
    text.push(b'\n');
    fs::write(&fresh, text).map_err(at)?;
    fs::File::open(&fresh).and_then(|file| file.sync_all()).map_err(at)?;
    fs::rename(&fresh, &path).map_err(at)
}

fn place(folder: &Path) -> PathBuf {
    folder.join("record.json")
}
