//! Our own format: `adapter.json` says what trains and on which base, `adapter.safetensors` holds it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{AdapterBase, AdapterFile, differs, encode, pretty, same_base, write_new};
use crate::ids::Digest;
use crate::learn::TensorSet;
use crate::torch::language::LanguageConfig;
use crate::torch::peft::PeftConfig;
use crate::torch::safetensors::read_bytes;
use crate::torch::weights_error::WeightsError;

/// What `adapter.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`Manifest::FORMAT`].
    pub format: String,
    /// The base.
    pub base: ManifestBase,
    /// What trains, and how.
    pub peft: PeftConfig,
    /// The tensors, in the order of their names.
    pub tensors: Vec<ManifestTensor>,
    /// Number of values in all tensors.
    pub values: u64,
}

/// The base of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestBase {
    /// What its owner calls it.
    pub name: String,
    /// SHA-256 of its weights, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Its sizes.
    pub sizes: LanguageConfig,
}

/// Name and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTensor {
    /// Dotted path.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl Manifest {
    /// Format and version.
    pub const FORMAT: &str = "gaisnet-adapter-1";

    fn of(base: &AdapterBase<'_>, peft: &PeftConfig, adapter: &TensorSet) -> Self {
        let tensors = adapter.tensors().iter();
        let tensor = |t: &crate::learn::Tensor| ManifestTensor {
            name: t.name.clone(),
            shape: t.shape.clone(),
        };
        Self {
            format: Self::FORMAT.to_owned(),
            base: ManifestBase {
                name: base.name.to_owned(),
                sha256: base.digest,
                sizes: *base.sizes,
            },
            peft: peft.clone(),
            tensors: tensors.map(tensor).collect(),
            values: adapter.num_values() as u64,
        }
    }
}

/// Reads the manifest of a folder, without its tensors.
///
/// # Errors
/// [`WeightsError`] when there is none, or it isn't one.
pub fn read_manifest(folder: &Path) -> Result<Manifest, WeightsError> {
    let bytes = read_bytes(&folder.join(CONFIG), MAX_MANIFEST_BYTES)?;
    let bad = |what: String| WeightsError::BadAdapter(format!("{CONFIG}: {what}"));
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if manifest.format != Manifest::FORMAT {
        return Err(bad(format!("format isn't {}", Manifest::FORMAT)));
    }
    Ok(manifest)
}

pub(super) fn read(
    folder: &Path,
    base: &AdapterBase<'_>,
    max_bytes: u64,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    let manifest = read_manifest(folder)?;
    if let (Some(expected), Some(actual)) = (base.digest, manifest.base.sha256) {
        same_base(expected, actual)?;
    }
    // Formats round the other numbers differently.
    let shape = |s: &LanguageConfig| (s.layout(), s.heads, s.kv_heads);
    manifest.base.sizes.check()?;
    if shape(&manifest.base.sizes) != shape(base.sizes) {
        let (theirs, ours) = (&manifest.base.sizes, base.sizes);
        let text = format!("it is for a base of other sizes: {theirs:?}, this one has {ours:?}");
        return Err(WeightsError::BadAdapter(text));
    }
    let mut file = AdapterFile::read(&folder.join(WEIGHTS), max_bytes)?;
    let mut tensors = Vec::with_capacity(manifest.tensors.len());
    for wanted in &manifest.tensors {
        match file.tensors.remove(&wanted.name) {
            Some(tensor) if tensor.shape == wanted.shape => tensors.push(tensor),
            other => {
                let actual = other.as_ref().map(|t| t.shape.as_slice());
                return Err(differs(&wanted.name, Some(&wanted.shape), actual));
            }
        }
    }
    if let Some((name, other)) = file.tensors.into_iter().next() {
        return Err(differs(&name, None, Some(&other.shape)));
    }
    Ok((manifest.peft, TensorSet::new(tensors)?))
}

pub(super) fn write(
    folder: &Path,
    base: &AdapterBase<'_>,
    peft: &PeftConfig,
    adapter: &TensorSet,
) -> Result<(), WeightsError> {
    let manifest = serde_json::to_value(Manifest::of(base, peft, adapter));
    let json = pretty(&manifest.map_err(|e| WeightsError::BadAdapter(e.to_string()))?)?;
    write_new(folder, CONFIG, json.as_bytes())?;
    write_new(folder, WEIGHTS, &encode(adapter.tensors(), base.digest)?)
}

pub(super) const CONFIG: &str = "adapter.json";
const WEIGHTS: &str = "adapter.safetensors";
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
