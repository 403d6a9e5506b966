//! What can go wrong with the database, before it is known which file it was.

use std::path::Path;

use rusqlite::{ErrorCode, ffi};

use crate::store::StoreError;

/// A failure of SQLite, or damage that we found ourselves.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(rusqlite::Error),
    Damage(String),
    TooNew { found: i64, known: i64 },
    NoWal,
}

impl Fault {
    /// The error of the port, for `file`.
    pub(super) fn at(self, file: &Path) -> StoreError {
        let path = file.display().to_string();
        match self {
            Self::Sql(error) => from_sql(path, &error),
            Self::Damage(what) => StoreError::Corrupt { path, what },
            Self::TooNew { found, known } => StoreError::TooNew { path, found, known },
            Self::NoWal => {
                let message = "this file system can't hold it: use a local disk, not a share";
                StoreError::Io { path, message: message.to_owned() }
            }
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

fn from_sql(path: String, error: &rusqlite::Error) -> StoreError {
    let message = error.to_string();
    let rusqlite::Error::SqliteFailure(cause, _) = error else {
        // Our statements are fixed: values of another type or shape weren't written by us.
        return StoreError::Corrupt { path, what: message };
    };
    match cause.code {
        ErrorCode::DiskFull => StoreError::Full { path },
        // The index of the log couldn't grow: that too is a lack of room.
        _ if cause.extended_code == ffi::SQLITE_IOERR_SHMSIZE => StoreError::Full { path },
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Locked { path },
        ErrorCode::DatabaseCorrupt
        | ErrorCode::NotADatabase
        | ErrorCode::ConstraintViolation
        | ErrorCode::TypeMismatch
        | ErrorCode::Unknown => StoreError::Corrupt { path, what: message },
        _ => StoreError::Io { path, message },
    }
}
