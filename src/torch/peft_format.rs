//! Adapters in and out of a folder: Hugging Face's PEFT format, and our own manifest.
//!
//! ```text
//! adapter_config.json + adapter_model.safetensors   LoRA, (IA)^3, prompts, prefix: Python's peft reads it
//! adapter.json        + adapter.safetensors         every kind, with the base's digest and sizes
//! ```
//! Only a model of [`LanguageConfig`] has names on both sides. What is read must be exactly what its
//! config says, on exactly this base: a name too many or too few, another shape, a value that isn't
//! finite, or a setting that isn't known here is an error, never a guess.

mod config;
mod ia3;
mod lora;
mod manifest;
mod names;
mod tokens;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use ring::digest::{Context, SHA256};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

use self::config::{AdapterConfig, Kind};
pub use self::manifest::{Manifest, read_manifest};
use self::names::Modules;
use super::adapter::AdapterPlan;
use super::huggingface::to_f32;
use super::language::LanguageConfig;
use super::peft::PeftConfig;
use super::safetensors::{check_name, check_shape, read_bytes};
use super::weights_error::WeightsError;
use crate::ids::Digest;
use crate::learn::{LearnError, Tensor, TensorSet};
use crate::trust::pins::is_pickle;

/// The base that an adapter belongs to.
#[derive(Debug, Clone, Copy)]
pub struct AdapterBase<'a> {
    /// What its owner calls it, say a folder or a name on a hub.
    pub name: &'a str,
    /// SHA-256 of its file of weights, where known.
    pub digest: Option<Digest>,
    /// Its sizes.
    pub sizes: &'a LanguageConfig,
}

/// How a folder holds an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Hugging Face's.
    Peft,
    /// Ours.
    Manifest,
}

/// Reads the adapter in a folder, in whichever format it is, for this base.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with it, or that it is one of another base.
pub fn import(
    folder: &Path,
    base: &AdapterBase<'_>,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    import_within(folder, base, MAX_WEIGHTS_BYTES)
}

/// The same for a folder whose file of tensors has at most so many bytes.
///
/// # Errors
/// As for [`import`]; [`WeightsError::TooBig`] before more is read.
pub fn import_within(
    folder: &Path,
    base: &AdapterBase<'_>,
    max_bytes: u64,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    let max_bytes = max_bytes.min(MAX_WEIGHTS_BYTES);
    let (peft, tensors) = if folder.join(manifest::CONFIG).is_file() {
        manifest::read(folder, base, max_bytes)?
    } else {
        import_peft(folder, base, max_bytes)?
    };
    let plan = AdapterPlan::new(&base.sizes.layout(), &peft)?;
    tensors.check_layout(&plan.layout())?;
    tensors.check_finite()?;
    Ok((peft, tensors))
}

/// Writes an adapter into a folder, which is made; files that are there already are kept.
///
/// # Errors
/// [`WeightsError`] when the adapter isn't one of this base, when [`Format::Peft`] can't hold what
/// trains, or when a file is there.
pub fn export(
    folder: &Path,
    format: Format,
    base: &AdapterBase<'_>,
    peft: &PeftConfig,
    adapter: &TensorSet,
) -> Result<(), WeightsError> {
    let plan = AdapterPlan::new(&base.sizes.layout(), peft)?;
    adapter.check_layout(&plan.layout())?;
    adapter.check_finite()?;
    match format {
        Format::Peft => {
            let (config, tensors) = to_peft(base, peft, adapter)?;
            let json = pretty(&config)?;
            write_new(folder, CONFIG, json.as_bytes())?;
            write_new(folder, WEIGHTS, &encode(&tensors, base.digest)?)
        }
        Format::Manifest => manifest::write(folder, base, peft, adapter),
    }
}

/// What names an adapter, whichever format it came in: SHA-256 of its config as JSON, a newline, and for each
/// tensor in the order of names its name, shape and values (f32, little endian), a newline behind the first two.
///
/// # Errors
/// [`WeightsError::BadAdapter`] when the config can't be written.
pub fn digest_of(peft: &PeftConfig, adapter: &TensorSet) -> Result<Digest, WeightsError> {
    let bad = |e: serde_json::Error| WeightsError::BadAdapter(e.to_string());
    let mut hash = Context::new(&SHA256);
    hash.update(&serde_json::to_vec(peft).map_err(bad)?);
    hash.update(b"\n");
    for tensor in adapter.tensors() {
        hash.update(format!("{} {:?}\n", tensor.name, tensor.shape).as_bytes());
        for value in &tensor.data {
            hash.update(&value.to_le_bytes());
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Ok(Digest(digest))
}

fn import_peft(
    folder: &Path,
    base: &AdapterBase<'_>,
    max_bytes: u64,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    let config = AdapterConfig::read(&folder.join(CONFIG))?;
    let path = folder.join(WEIGHTS);
    if !path.is_file() {
        let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
        let pickle = |p: &Path| p.file_name().is_some_and(|n| is_pickle(&n.to_string_lossy()));
        if let Some(path) = names.into_iter().filter(|p| pickle(p)).min() {
            return Err(WeightsError::Pickle { path });
        }
    }
    let file = AdapterFile::read(&path, max_bytes)?;
    if let (Some(expected), Some(actual)) = (base.digest, file.base) {
        same_base(expected, actual)?;
    }
    let modules = Modules::of(base.sizes);
    match config.kind()? {
        Kind::Lora => lora::read(&config, file.tensors, &modules),
        Kind::Ia3 => ia3::read(&config, file.tensors, &modules),
        Kind::Prompts => tokens::read_prompts(&config, file.tensors, base.sizes),
        Kind::Prefix => tokens::read_prefix(&config, file.tensors, base.sizes),
    }
}

/// The config and the tensors of the PEFT format.
fn to_peft(
    base: &AdapterBase<'_>,
    peft: &PeftConfig,
    adapter: &TensorSet,
) -> Result<(Value, Vec<Tensor>), WeightsError> {
    let parts = [
        ("LoRA", peft.lora.is_some()),
        ("(IA)^3", !peft.ia3.is_empty() || !peft.ia3_inputs.is_empty()),
        ("prompts", peft.prompts > 0),
        ("prefix", peft.prefix > 0),
        ("deep_prompts", peft.deep_prompts > 0),
        ("bottleneck", peft.bottleneck > 0),
        ("whole", !peft.whole.is_empty()),
    ];
    let used: Vec<&str> = parts.iter().filter(|(_, used)| *used).map(|(name, _)| *name).collect();
    let modules = Modules::of(base.sizes);
    let (mut config, tensors) = match (used.as_slice(), &peft.lora) {
        (["LoRA"], Some(lora)) => lora::write(lora, adapter, &modules),
        (["(IA)^3"], _) => ia3::write(adapter, &modules)?,
        (["prompts"], _) => tokens::write_prompts(adapter, base.sizes)?,
        (["prefix"], _) => tokens::write_prefix(adapter, base.sizes)?,
        _ => {
            return Err(WeightsError::Unsupported {
                what: "kind of adapter in the PEFT format",
                found: used.join(" + "),
                known: "it holds one of LoRA, (IA)^3, prompts and prefix; write gaisnet's own format",
            });
        }
    };
    let common = [
        ("base_model_name_or_path", Value::from(base.name)),
        ("task_type", Value::from("CAUSAL_LM")),
        ("inference_mode", Value::from(true)),
    ];
    if let Some(config) = config.as_object_mut() {
        config.extend(common.map(|(key, value)| (key.to_owned(), value)));
    }
    Ok((config, tensors))
}

fn same_base(expected: Digest, actual: Digest) -> Result<(), WeightsError> {
    if expected == actual { Ok(()) } else { Err(WeightsError::OtherBase { expected, actual }) }
}

/// A file of an adapter's tensors, under the names that it uses.
struct AdapterFile {
    tensors: BTreeMap<String, Tensor>,
    /// Of which base, if it says so.
    base: Option<Digest>,
}

impl AdapterFile {
    fn read(path: &Path, max_bytes: u64) -> Result<Self, WeightsError> {
        let bytes = read_bytes(path, max_bytes)?;
        let malformed = |e: safetensors::SafeTensorError| WeightsError::Malformed(e.to_string());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(malformed)?;
        let count = metadata.offset_keys().len();
        if count > MAX_TENSORS {
            let (max, actual) = (MAX_TENSORS as u64, count as u64);
            return Err(WeightsError::TooBig { what: "tensors", max, actual });
        }
        let base = match metadata.metadata().as_ref().and_then(|all| all.get(BASE_KEY)) {
            None => None,
            Some(text) => {
                let bad = |_| WeightsError::BadAdapter(format!("{BASE_KEY} is no digest"));
                Some(text.parse::<Digest>().map_err(bad)?)
            }
        };
        let file = SafeTensors::deserialize(&bytes).map_err(malformed)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            check_name(name)?;
            check_shape(name, view.shape())?;
            let data = to_f32(name, view.dtype(), view.data())?;
            if let Some(index) = data.iter().position(|x| !x.is_finite()) {
                return Err(LearnError::NotFinite { name: name.to_owned(), index }.into());
            }
            let tensor = Tensor { name: name.to_owned(), shape: view.shape().to_vec(), data };
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(Self { tensors, base })
    }
}

/// A safetensors file whose metadata names the base.
fn encode(tensors: &[Tensor], base: Option<Digest>) -> Result<Vec<u8>, WeightsError> {
    let malformed = |e: safetensors::SafeTensorError| WeightsError::Malformed(e.to_string());
    let bytes = |t: &Tensor| t.data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let all: Vec<(&Tensor, Vec<u8>)> = tensors.iter().map(|t| (t, bytes(t))).collect();
    let mut views = Vec::with_capacity(all.len());
    for (t, bytes) in &all {
        let view = TensorView::new(Dtype::F32, t.shape.clone(), bytes).map_err(malformed)?;
        views.push((t.name.as_str(), view));
    }
    // One key alone: several would come in random order.
    let metadata = base.map(|digest| [(BASE_KEY.to_owned(), digest.to_string())].into());
    safetensors::serialize(views, metadata).map_err(malformed)
}

fn pretty(value: &Value) -> Result<String, WeightsError> {
    let text = serde_json::to_string_pretty(value);
    Ok(text.map_err(|e| WeightsError::BadAdapter(e.to_string()))? + "\n")
}

fn write_new(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
    let path = folder.join(name);
    let io = |source| WeightsError::Io { path: path.display().to_string(), source };
    fs::create_dir_all(folder).map_err(io)?;
    let mut file = fs::File::create_new(&path).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)
}

/// The error for a tensor whose shape (or presence) isn't that which the config asks for.
fn differs(name: &str, expected: Option<&[usize]>, actual: Option<&[usize]>) -> WeightsError {
    let text = |s: Option<&[usize]>| s.map_or_else(|| "absent".to_owned(), |s| format!("{s:?}"));
    let (expected, actual) = (text(expected), text(actual));
    LearnError::LayoutMismatch { name: name.to_owned(), expected, actual }.into()
}

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Key of a file's metadata.
const BASE_KEY: &str = "gaisnet.base.sha256";
/// 2 GiB.
const MAX_WEIGHTS_BYTES: u64 = 2 << 30;
const MAX_TENSORS: usize = 1 << 16;

#[cfg(test)]
#[path = "peft_format_tests.rs"]
mod tests;
