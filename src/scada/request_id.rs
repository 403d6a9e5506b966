//! The asker's own mark on a request or command, echoed in its reply.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 1 to 64 bytes without control characters, chosen by the asker.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(String);

impl RequestId {
    /// Longest id in bytes.
    pub const MAX_LEN: usize = 64;

    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`RequestIdError`] when it is empty, over 64 bytes or has a control character.
    pub fn new(text: impl Into<String>) -> Result<Self, RequestIdError> {
        let text = text.into();
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        if fits && !text.chars().any(char::is_control) {
            Ok(Self(text))
        } else {
            Err(RequestIdError)
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RequestId {
    type Error = RequestIdError;
    fn try_from(text: String) -> Result<Self, RequestIdError> {
        Self::new(text)
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A text that can't be an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id has 1 to 64 bytes and no control characters")]
pub struct RequestIdError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_printable() {
        for good in ["7", "a b", "größe", &"x".repeat(64)] {
            assert!(RequestId::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a\nb", &"x".repeat(65)] {
            assert!(RequestId::new(bad).is_err(), "{bad:?}");
        }
    }
}
