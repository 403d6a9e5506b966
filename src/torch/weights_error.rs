//! Why a model isn't loaded: one enum for all formats, from damaged bytes to a missing signature.

use std::path::PathBuf;

use crate::ids::Digest;
use crate::learn::LearnError;
use crate::trust::release::ReleaseError;

/// Why weights were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// More bytes, tensors or dimensions than weights have.
    #[error("{what}: at most {max}, got {actual}")]
    TooBig {
        /// The quantity.
        what: &'static str,
        /// Its cap.
        max: u64,
        /// What was found.
        actual: u64,
    },
    /// Not safetensors.
    #[error("not a safetensors file: {0}")]
    Malformed(String),
    /// Not GGUF, or GGUF that isn't whole.
    #[error("not a GGUF file that can be read: {0}")]
    BadGguf(String),
    /// A kind of model, tokenizer or number format that isn't known here.
    #[error("{what} {found:?} isn't supported: {known}")]
    Unsupported {
        /// What it is.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What would do.
        known: &'static str,
    },
    /// A tokenizer contradicts itself.
    #[error("not a tokenizer that can be used: {0}")]
    BadTokenizer(String),
    /// The tokenizer belongs to another model.
    #[error(
        "the tokenizer has {tokens} tokens, the model's embedding {rows} rows: take both from one place"
    )]
    OtherTokenizer {
        /// Ids that the tokenizer can give.
        tokens: u32,
        /// Rows of the embedding.
        rows: u32,
    },
    /// A file that may hold a Python program.
    #[error(
        "{} may be a pickle: loading one can run a program, so it isn't opened; \
         convert it to safetensors where it comes from", path.display()
    )]
    Pickle {
        /// Which file.
        path: PathBuf,
    },
    /// A tensor's name isn't a plain dotted path.
    #[error("tensor name {0:?} isn't a dotted path of letters, digits, _ and -")]
    BadName(String),
    /// A tensor isn't f32.
    #[error("tensor {name:?} is {actual}, expected F32")]
    BadDtype {
        /// Which tensor.
        name: String,
        /// Its type.
        actual: String,
    },
    /// A size is 0.
    #[error("tensor {name:?} has shape {shape:?}: no size may be 0")]
    BadShape {
        /// Which tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The bytes aren't those that the card pins.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    BadDigest {
        /// By the card.
        expected: Digest,
        /// Of the file.
        actual: Digest,
    },
    /// A card isn't TOML with the keys of one.
    #[error("not the card of a model: {0}")]
    BadCard(String),
    /// The files of a base are nowhere.
    #[error(
        "the files of {name} are neither beside its card nor in {}: gaisnet model fetch {name}",
        folder.display()
    )]
    NotFetched {
        /// Name of the base.
        name: String,
        /// Where the cache would have them.
        folder: PathBuf,
    },
    /// A card has no seal.
    #[error(
        "{} is missing: a base is only taken with the signature of a release key on its card; \
         fetch it from where the base came from, or sign it (gaisnet model sign)", path.display()
    )]
    Unsigned {
        /// Where the seal should be.
        path: PathBuf,
    },
    /// An adapter's config or manifest is wrong.
    #[error("not an adapter that can be used: {0}")]
    BadAdapter(String),
    /// An adapter belongs to another base.
    #[error(
        "the adapter is for the base {actual}, not for {expected}: take the base that it was trained on"
    )]
    OtherBase {
        /// Digest of the base at hand.
        expected: Digest,
        /// By the adapter.
        actual: Digest,
    },
    /// Nobody who may release models sealed the card.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Names, shapes or values aren't those that the model wants.
    #[error(transparent)]
    Learn(#[from] LearnError),
}

impl WeightsError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::TooBig { .. } => "too_big",
            Self::Malformed(_) => "malformed",
            Self::BadGguf(_) => "bad_gguf",
            Self::Unsupported { .. } => "unsupported",
            Self::BadTokenizer(_) => "bad_tokenizer",
            Self::OtherTokenizer { .. } => "other_tokenizer",
            Self::Pickle { .. } => "pickle",
            Self::BadName(_) => "bad_name",
            Self::BadDtype { .. } => "bad_dtype",
            Self::BadShape { .. } => "bad_shape",
            Self::BadDigest { .. } => "bad_digest",
            Self::BadCard(_) => "bad_card",
            Self::NotFetched { .. } => "not_fetched",
            Self::Unsigned { .. } => "unsigned",
            Self::BadAdapter(_) => "bad_adapter",
            Self::OtherBase { .. } => "other_base",
            Self::Release(error) => error.kind(),
            Self::Learn(error) => error.kind(),
        }
    }
}
