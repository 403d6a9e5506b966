//! Each version as it came out, in a folder of its own, so that a second start knows the first
//! one's rounds: `versions/7.json` (figures by then) and `versions/7.adapter` (packed).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::heard::Counts;
use super::{DemoError, DemoOptions};
use crate::ids::Version;

/// A version as it came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Its number.
    pub(super) version: Version,
    /// Mean training loss of the devices by then, in nats.
    pub(super) loss: Option<f64>,
    /// What was heard by then.
    pub(super) counts: Counts,
    /// The adapter, packed.
    #[serde(skip)]
    pub(super) adapter: Vec<u8>,
}

/// Where they lie.
pub(super) fn folder(options: &DemoOptions) -> PathBuf {
    options.folder.join("versions")
}

/// Writes one down; the figures last, so that they never speak of an adapter that isn't there.
pub(super) fn save(options: &DemoOptions, seen: &Seen) -> Result<(), DemoError> {
    let folder = folder(options);
    let adapter = folder.join(format!("{}.adapter", seen.version));
    std::fs::write(&adapter, &seen.adapter).map_err(DemoError::file(&adapter))?;
    let figures = folder.join(format!("{}.json", seen.version));
    let draft = folder.join("draft");
    let text = serde_json::to_vec(seen).map_err(|error| DemoError::start(&error))?;
    std::fs::write(&draft, text).map_err(DemoError::file(&draft))?;
    std::fs::rename(&draft, &figures).map_err(DemoError::file(&figures))
}

/// Reads what an earlier start has written, oldest first.
pub(super) fn load(options: &DemoOptions) -> Result<Vec<Seen>, DemoError> {
    let folder = folder(options);
    let mut all = Vec::new();
    for file in std::fs::read_dir(&folder).map_err(DemoError::file(&folder))? {
        let path = file.map_err(DemoError::file(&folder))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read(&path).map_err(DemoError::file(&path))?;
        let mut seen: Seen = serde_json::from_slice(&text)
            .map_err(|error| DemoError::start(&format!("{}: {error}", path.display())))?;
        let adapter = path.with_extension("adapter");
        seen.adapter = std::fs::read(&adapter).map_err(DemoError::file(&adapter))?;
        all.push(seen);
    }
    all.sort_by_key(|seen| seen.version);
    Ok(all)
}
