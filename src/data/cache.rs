//! The folder that all fetched packages share.

use std::path::{Path, PathBuf};

use super::DataError;

/// Where fetched data lives; each pin has a folder of its own below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$GAISNET_CACHE`, else `gaisnet` in `$XDG_CACHE_HOME`, else `~/.cache/gaisnet`.
    ///
    /// # Errors
    /// [`DataError::NoCache`] when neither these nor `HOME` are set.
    pub fn from_env() -> Result<Self, DataError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = || set("HOME").map(|home| Path::new(&home).join(".cache/gaisnet"));
        let shared = || set("XDG_CACHE_HOME").map(|root| Path::new(&root).join("gaisnet"));
        let root = set("GAISNET_CACHE").map(PathBuf::from).or_else(shared).or_else(home);
        Ok(Self { root: root.ok_or(DataError::NoCache)? })
    }

    /// A cache at `root`; it need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of data sets.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The folder of models.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }
}
