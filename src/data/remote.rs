//! Reads a file from an address in pieces, and goes on where the last try stopped.
//!
//! Each piece is a request of its own for a range of bytes, appended to the unfinished file, so that a
//! broken connection costs one piece. The addresses are those of the crate `object_store`: http(s),
//! s3 (with the usual `AWS_...` variables) and file.

use std::path::Path;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt, ObjectStoreScheme, RetryConfig, path,
};
use reqwest::Url;

use super::DataError;
use super::partial::Partial;
use crate::trust::pins::FilePin;

/// Fills `partial` up to the file's size; `progress` gets the bytes that are there.
///
/// # Errors
/// [`DataError::BadAddress`]; [`DataError::Address`] when the server fails: what came stays;
/// [`DataError::WrongSize`], [`DataError::Busy`], disk errors.
pub(super) fn download(
    folder: &str,
    pin: &FilePin,
    partial: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), DataError> {
    let address = format!("{}/{}", folder.trim_end_matches('/'), pin.path());
    let (store, place) = open(&address)?;
    let mut file = Partial::open(partial, pin.bytes)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| DataError::io(partial, e))?;
    let told = |detail: String, kept| DataError::Address {
        address: address.clone(),
        detail,
        kept,
        bytes: pin.bytes,
    };
    while file.bytes() < pin.bytes {
        let done = file.bytes();
        progress(done);
        let end = pin.bytes.min(done + PIECE_BYTES);
        let piece = match runtime.block_on(store.get_range(&place, done..end)) {
            Ok(piece) => piece,
            Err(object_store::Error::NotSupported { .. }) if done == 0 => {
                let whole = runtime.block_on(whole(&*store, &place, pin));
                whole.map_err(|error| told(error, done))?
            }
            Err(error) => return Err(told(reason(&error), done)),
        };
        if piece.is_empty() || done + piece.len() as u64 > pin.bytes {
            let (expected, actual) = (pin.bytes, done + piece.len() as u64);
            return Err(DataError::WrongSize { file: pin.name.clone(), expected, actual });
        }
        file.append(&piece)?;
    }
    progress(file.bytes());
    file.sync()
}

/// The client for an address, and the path in it.
fn open(address: &str) -> Result<(Box<dyn ObjectStore>, path::Path), DataError> {
    let bad = |detail: String| DataError::BadAddress { address: address.to_owned(), detail };
    let url = Url::parse(address).map_err(|e| bad(e.to_string()))?;
    let (scheme, place) = ObjectStoreScheme::parse(&url).map_err(|e| bad(e.to_string()))?;
    let retry = RetryConfig {
        max_retries: 4,
        retry_timeout: Duration::from_secs(60),
        ..RetryConfig::default()
    };
    let options = || {
        ClientOptions::new()
            .with_allow_http(true) // what comes is compared with a signed digest
            .with_connect_timeout(Duration::from_secs(10))
            .with_timeout(Duration::from_secs(120))
    };
    // The only TLS provider here; somebody else may have named it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store: Box<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local => Box::new(LocalFileSystem::new()),
        ObjectStoreScheme::Http => {
            let server = url.join("/").map_err(|e| bad(e.to_string()))?;
            let builder = HttpBuilder::new().with_url(server);
            let built = builder.with_retry(retry).with_client_options(options()).build();
            Box::new(built.map_err(|e| bad(reason(&e)))?)
        }
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env().with_url(address).with_retry(retry);
            Box::new(builder.build().map_err(|e| bad(reason(&e)))?)
        }
        _ => return Err(bad("no client for this kind of address".to_owned())),
    };
    Ok((store, place))
}

/// For servers that give whole files only.
async fn whole(
    store: &dyn ObjectStore,
    place: &path::Path,
    pin: &FilePin,
) -> Result<bytes::Bytes, String> {
    let found = store.get(place).await.map_err(|e| reason(&e))?;
    if found.meta.size != pin.bytes || pin.bytes > MAX_WHOLE_BYTES {
        return Err(format!(
            "the server gives whole files only, and this one has {} bytes (expected {}, at most {MAX_WHOLE_BYTES})",
            found.meta.size, pin.bytes
        ));
    }
    found.bytes().await.map_err(|e| reason(&e))
}

/// An error with its causes, in one line.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(400).collect()
}

const PIECE_BYTES: u64 = 4 << 20;
const MAX_WHOLE_BYTES: u64 = 1 << 30;
