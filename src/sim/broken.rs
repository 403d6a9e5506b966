//! Why a run ends early.

use crate::store::StoreError;

/// An invariant that doesn't hold, or something that must never happen in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub(crate) struct Broken {
    /// Name of the invariant.
    pub(crate) invariant: &'static str,
    /// What was seen.
    pub(crate) what: String,
}

impl Broken {
    pub(crate) fn new(invariant: &'static str, what: String) -> Self {
        Self { invariant, what }
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::new("memory_store", error.to_string())
    }
}
