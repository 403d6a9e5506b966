//! Models in Hugging Face's folders: `config.json`, `tokenizer.json`, `model.safetensors`.
//!
//! ```text
//! config.json -> sizes (bounded) -> layout
//! model.safetensors -> every tensor renamed, its shape compared with the layout -> f32 -> Weights
//! ```
//! Only safetensors are read: the other formats of such folders are pickles, which can run a program
//! when they are loaded.

mod bert;
mod llama;
mod vit;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use bert::{LoadedEncoder, load_bert};
use half::{bf16, f16};
pub(super) use llama::PARTS as LLAMA_PARTS;
pub use llama::load_llama;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;
pub use vit::{LoadedVision, load_vit};

use super::safetensors::{check_name, read_bytes};
use super::tokenizer::TextTokenizer;
use super::weights::Weights;
use super::weights_error::WeightsError;
use super::{dim, tensor};
use crate::learn::{Layout, LearnError};
use crate::trust::pins::is_pickle;

/// The files of such a folder that are read, in the order in which cards name them.
pub const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// What a folder's `config.json` says that its model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A causal language model.
    Llama,
    /// A text encoder.
    Bert,
    /// An image encoder.
    Vit,
}

/// Which kind of model lies in a folder.
///
/// # Errors
/// [`WeightsError::Unsupported`] names the architecture that was found.
pub fn kind_of(folder: &Path) -> Result<Kind, WeightsError> {
    let config = Config::read(folder)?;
    match config.architecture.as_str() {
        "LlamaForCausalLM" => Ok(Kind::Llama),
        "BertModel" => Ok(Kind::Bert),
        "ViTModel" | "ViTForImageClassification" => Ok(Kind::Vit),
        other => Err(config.unsupported("architecture", other, KNOWN)),
    }
}

/// A `config.json`.
struct Config {
    architecture: String,
    values: Value,
}

impl Config {
    fn read(folder: &Path) -> Result<Self, WeightsError> {
        let bytes = read_bytes(&folder.join("config.json"), MAX_CONFIG_BYTES)?;
        let bad = |what: String| WeightsError::BadCard(format!("config.json: {what}"));
        let values: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        let name = values.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
        Ok(Self { architecture: name.chars().take(64).collect(), values })
    }

    /// A whole number that must be there.
    fn number(&self, key: &str) -> Result<u32, WeightsError> {
        let value = self.values.get(key).and_then(Value::as_u64);
        let value = value.and_then(|value| u32::try_from(value).ok());
        let bad =
            || WeightsError::BadCard(format!("config.json: {key} is absent or no small number"));
        value.ok_or_else(bad)
    }

    /// A number that must be there.
    fn real(&self, key: &str) -> Result<f64, WeightsError> {
        let bad = || WeightsError::BadCard(format!("config.json: {key} is absent or no number"));
        self.values.get(key).and_then(Value::as_f64).ok_or_else(bad)
    }

    /// A token id, or the first of a list of them.
    fn token(&self, key: &str) -> Option<u32> {
        let value = self.values.get(key)?;
        let first = value.as_array().and_then(|all| all.first()).unwrap_or(value);
        first.as_u64().and_then(|id| u32::try_from(id).ok())
    }

    /// Refuses any value of a key but this one; an absent or null one is as good.
    fn must_be(
        &self,
        key: &'static str,
        wanted: &Value,
        known: &'static str,
    ) -> Result<(), WeightsError> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value == wanted => Ok(()),
            Some(other) => Err(self.unsupported(key, &other.to_string(), known)),
        }
    }

    #[expect(clippy::unused_self, reason = "reads better at the call")]
    fn unsupported(&self, what: &'static str, found: &str, known: &'static str) -> WeightsError {
        WeightsError::Unsupported { what, found: found.chars().take(64).collect(), known }
    }
}

/// Reads the folder's tokenizer; all its ids must be rows of the embedding.
fn tokenizer(
    folder: &Path,
    rows: u32,
    bos: Option<u32>,
    eos: Option<u32>,
) -> Result<TextTokenizer, WeightsError> {
    let json = read_bytes(&folder.join("tokenizer.json"), MAX_TOKENIZER_BYTES)?;
    let tokenizer = TextTokenizer::from_json(&json, bos, eos)?;
    let tokens = tokenizer.vocab();
    if tokens > rows || [bos, eos].into_iter().flatten().any(|id| id >= tokens) {
        return Err(WeightsError::OtherTokenizer { tokens, rows });
    }
    Ok(tokenizer)
}

/// What becomes of a tensor of the file.
enum Named {
    /// It has this name here.
    Ours(String),
    /// The model here doesn't need it.
    Unused,
    /// No such model has it.
    Unknown,
}

/// Reads `model.safetensors`; what comes out has exactly this layout.
fn weights(
    folder: &Path,
    layout: &Layout,
    rename: impl Fn(&str) -> Named,
) -> Result<Weights, WeightsError> {
    let path = weights_file(folder)?;
    let wanted: BTreeMap<&str, &Vec<usize>> =
        layout.0.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    let bytes = read_bytes(&path, MAX_WEIGHTS_BYTES)?;
    let malformed = |e: safetensors::SafeTensorError| WeightsError::Malformed(e.to_string());
    let file = SafeTensors::deserialize(&bytes).map_err(malformed)?;
    let differs = |name: &str, expected: Option<&Vec<usize>>, actual: Option<&[usize]>| {
        let absent = || "absent".to_owned();
        WeightsError::from(LearnError::LayoutMismatch {
            name: name.to_owned(),
            expected: expected.map_or_else(absent, |shape| format!("{shape:?}")),
            actual: actual.map_or_else(absent, |shape| format!("{shape:?}")),
        })
    };
    let mut all = Weights::default();
    let mut found = BTreeSet::new();
    for (theirs, view) in file.iter() {
        check_name(theirs)?;
        let name = match rename(theirs) {
            Named::Ours(name) => name,
            Named::Unused => continue,
            Named::Unknown => return Err(differs(theirs, None, Some(view.shape()))),
        };
        let shape = match wanted.get(name.as_str()) {
            Some(shape) if fits(view.shape(), shape) => *shape,
            other => return Err(differs(theirs, other.copied(), Some(view.shape()))),
        };
        let values = to_f32(&name, view.dtype(), view.data())?;
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(LearnError::NotFinite { name, index }.into());
        }
        let sizes = shape.iter().map(|d| dim(*d)).collect::<Result<Vec<_>, _>>()?;
        if !found.insert(name.clone()) {
            return Err(differs(theirs, None, Some(view.shape())));
        }
        all.insert(name, tensor(&values, &sizes)?);
    }
    match wanted.iter().find(|(name, _)| !found.contains(**name)) {
        Some((name, shape)) => Err(differs(name, Some(shape), None)),
        None => Ok(all),
    }
}

/// The file of weights, or why there is none.
fn weights_file(folder: &Path) -> Result<PathBuf, WeightsError> {
    let path = folder.join("model.safetensors");
    if path.is_file() {
        return Ok(path);
    }
    if folder.join("model.safetensors.index.json").is_file() {
        let (what, found) = ("weights", "several files".to_owned());
        let known = "expected one model.safetensors; save the model again in one piece";
        return Err(WeightsError::Unsupported { what, found, known });
    }
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let mut pickles: Vec<PathBuf> =
        names.filter(|p| p.file_name().is_some_and(|n| is_pickle(&n.to_string_lossy()))).collect();
    pickles.sort();
    match pickles.into_iter().next() {
        Some(path) => Err(WeightsError::Pickle { path }),
        None => Ok(path), // opening it tells that it is absent
    }
}

/// Whether values of shape `theirs` can stand as `wanted`: sizes 1 in front are dropped, sizes at the
/// end are joined (a patch's channels, rows and columns are the inputs of one linear layer).
fn fits(theirs: &[usize], wanted: &[usize]) -> bool {
    let mut rest = theirs;
    while let [1, tail @ ..] = rest
        && rest.len() > wanted.len()
    {
        rest = tail;
    }
    let (Some((last, front)), true) = (wanted.split_last(), rest.len() >= wanted.len()) else {
        return rest == wanted;
    };
    let (same, joined) = rest.split_at(front.len());
    same == front && joined.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)) == Some(*last)
}

pub(super) fn to_f32(name: &str, dtype: Dtype, data: &[u8]) -> Result<Vec<f32>, WeightsError> {
    match dtype {
        Dtype::F32 => Ok(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => {
            Ok(data.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
        }
        Dtype::BF16 => {
            Ok(data.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect())
        }
        other => {
            Err(WeightsError::BadDtype { name: name.to_owned(), actual: format!("{other:?}") })
        }
    }
}

/// Splits `<prefix><number>.<rest>`.
fn layer<'a>(name: &'a str, prefix: &str) -> Option<(u32, &'a str)> {
    let (text, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some((number, rest))
}

const KNOWN: &str = "expected LlamaForCausalLM, BertModel, ViTModel or ViTForImageClassification";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// 8 GiB.
const MAX_WEIGHTS_BYTES: u64 = 8 << 30;

#[cfg(test)]
mod tests;
