//! Llama-like language models from GGUF files: sizes, weights and tokenizer in one file.
//!
//! The container is read by `gguf-rs-lib`, which bounds every length before it allocates; blocks are
//! turned back to f32 by `ggml-quants`. Here is what neither knows: which tensors a model has, that
//! llama.cpp stores the rows of q and k in another order, and what isn't a number.
//!
//! ```text
//! metadata -> LanguageConfig -> layout: every tensor must be in it, with its shape
//! tensors, in the order of the file -> f32 -> rows of q and k in order -> Weights
//! ```

mod blocks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use blocks::{block_bytes, dequantise};
use gguf_rs_lib::format::{Metadata, MetadataValue};
use gguf_rs_lib::reader::{GGUFStreamReader, StreamReaderConfig};

use super::language::LanguageConfig;
use super::tokenizer::{BytePairs, TextTokenizer};
use super::weights::Weights;
use super::weights_error::WeightsError;
use super::{dim, tensor};
use crate::learn::LearnError;

/// A language model as it comes out of a file.
#[derive(Debug)]
pub struct LoadedLanguage {
    /// Its sizes.
    pub config: LanguageConfig,
    /// Its tensors in f32, under the names of [`LanguageConfig::layout`].
    pub weights: Weights,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
}

/// Loads a GGUF file.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with it.
pub fn load_gguf(path: &Path) -> Result<LoadedLanguage, WeightsError> {
    let io = |source| WeightsError::Io { path: path.display().to_string(), source };
    read_gguf(BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?))
}

/// Loads a GGUF file from a stream; see [`load_gguf`].
///
/// # Errors
/// As [`load_gguf`].
pub fn read_gguf(stream: impl Read) -> Result<LoadedLanguage, WeightsError> {
    let limits = StreamReaderConfig {
        max_metadata_size: MAX_METADATA_BYTES,
        max_decoded_metadata_size: MAX_METADATA_DECODED_BYTES,
        max_tensor_count: MAX_TENSORS,
        ..StreamReaderConfig::default()
    };
    let mut file = GGUFStreamReader::with_config(stream, limits).map_err(crates_words)?;
    let tied = file.get_tensor_info("output.weight").is_none();
    let rows = file.get_tensor_info("token_embd.weight").and_then(|info| info.shape().dim(1));
    let rows = rows.and_then(|rows| u32::try_from(rows).ok());
    let no_rows = || WeightsError::BadGguf("token_embd.weight is absent or no matrix".to_owned());
    let config = config(file.metadata(), rows.ok_or_else(no_rows)?, tied)?;
    let tokenizer = tokenizer(file.metadata())?;
    if tokenizer.vocab() != config.vocab {
        let (tokens, rows) = (tokenizer.vocab(), config.vocab);
        return Err(WeightsError::OtherTokenizer { tokens, rows });
    }
    let wanted: BTreeMap<String, Vec<usize>> = config.layout().0.into_iter().collect();
    check_tensors(&file, &wanted)?;
    let mut kinds = BTreeMap::new();
    for info in file.tensor_infos() {
        kinds.insert(info.name().to_owned(), info.tensor_type());
    }
    let mut weights = Weights::default();
    while let Some((theirs, data)) = file.read_next_tensor().map_err(crates_words)? {
        let Some(name) = our_name(&theirs) else { continue };
        let (Some(shape), Some(kind)) = (wanted.get(&name), kinds.get(&theirs)) else { continue };
        let bytes = data.try_as_slice().map_err(crates_words)?;
        let mut values = dequantise(&name, *kind, bytes)?;
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(LearnError::NotFinite { name, index }.into());
        }
        let width = (config.d_model / config.heads) as usize;
        if name.ends_with("attn.q.weight") || name.ends_with("attn.k.weight") {
            values = in_order(&values, width, config.d_model as usize);
        }
        let sizes = shape.iter().map(|d| dim(*d)).collect::<Result<Vec<_>, _>>()?;
        weights.insert(name, tensor(&values, &sizes)?);
    }
    Ok(LoadedLanguage { config, weights, tokenizer })
}

/// Every tensor of the file must be one of the model, and the other way round.
fn check_tensors<R: Read>(
    file: &GGUFStreamReader<R>,
    wanted: &BTreeMap<String, Vec<usize>>,
) -> Result<(), WeightsError> {
    let mut values = 0_u64;
    for shape in wanted.values() {
        let size = shape.iter().try_fold(1_u64, |n, d| n.checked_mul(*d as u64));
        values = values.saturating_add(size.unwrap_or(u64::MAX));
    }
    if values > MAX_VALUES {
        return Err(WeightsError::TooBig { what: "values", max: MAX_VALUES, actual: values });
    }
    let differs = |name: &str, expected: Option<&Vec<usize>>, actual: Option<&[u64]>| {
        let text = |shape: Option<String>| shape.unwrap_or_else(|| "absent".to_owned());
        WeightsError::from(LearnError::LayoutMismatch {
            name: name.chars().take(64).collect(),
            expected: text(expected.map(|shape| format!("{shape:?}"))),
            // outermost first, as everywhere else
            actual: text(actual.map(|s| format!("{:?}", s.iter().rev().collect::<Vec<_>>()))),
        })
    };
    let mut found = BTreeSet::new();
    for info in file.tensor_infos() {
        let dims = info.shape().dims();
        let name = our_name(info.name());
        let expected = name.as_ref().and_then(|name| wanted.get(name));
        let same = expected.is_some_and(|expected| {
            expected.len() == dims.len()
                && expected.iter().zip(dims.iter().rev()).all(|(a, b)| *a as u64 == *b)
        });
        if !same {
            return Err(differs(info.name(), expected, Some(dims)));
        }
        block_bytes(info.name(), info.tensor_type())?;
        found.extend(name);
    }
    match wanted.iter().find(|(name, _)| !found.contains(*name)) {
        Some((name, shape)) => Err(differs(name, Some(shape), None)),
        None => Ok(()),
    }
}

fn config(metadata: &Metadata, vocab: u32, tied: bool) -> Result<LanguageConfig, WeightsError> {
    let architecture = metadata.get_string("general.architecture").unwrap_or_default();
    if architecture != "llama" {
        let (what, known) = ("architecture", "expected \"llama\"");
        return Err(WeightsError::Unsupported { what, found: shown(architecture), known });
    }
    let number = |key: &str| {
        let value = metadata.get_u64(key).and_then(|value| u32::try_from(value).ok());
        value.ok_or_else(|| WeightsError::BadGguf(format!("{key} is absent or no small number")))
    };
    let heads = number("llama.attention.head_count")?;
    let config = LanguageConfig {
        vocab,
        d_model: number("llama.embedding_length")?,
        layers: number("llama.block_count")?,
        heads,
        kv_heads: match metadata.get("llama.attention.head_count_kv") {
            Some(_) => number("llama.attention.head_count_kv")?,
            None => heads,
        },
        d_ff: number("llama.feed_forward_length")?,
        rope_theta: real(metadata, "llama.rope.freq_base")?,
        norm_eps: real(metadata, "llama.attention.layer_norm_rms_epsilon")?,
        context: number("llama.context_length")?,
        tied,
    };
    config.check()?;
    let width = u64::from(config.d_model / config.heads);
    for key in
        ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"]
    {
        let found = metadata.get_u64(key).unwrap_or(width);
        if found != width {
            let (what, known) = ("width of a head", "expected embedding_length / head_count");
            return Err(WeightsError::Unsupported { what, found: found.to_string(), known });
        }
    }
    let scaling = metadata.get_string("llama.rope.scaling.type").unwrap_or("none");
    if scaling != "none" {
        let (what, known) = ("scaling of positions", "expected none");
        return Err(WeightsError::Unsupported { what, found: shown(scaling), known });
    }
    Ok(config)
}

fn tokenizer(metadata: &Metadata) -> Result<TextTokenizer, WeightsError> {
    let model = metadata.get_string("tokenizer.ggml.model").unwrap_or_default();
    let pattern = metadata.get_string("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let split_digits = match (model, pattern) {
        ("gpt2", "smollm") => true,
        ("gpt2", "gpt-2") => false,
        _ => {
            let found = shown(&format!("{model}/{pattern}"));
            let known = "expected gpt2/smollm or gpt2/gpt-2";
            return Err(WeightsError::Unsupported { what: "tokenizer", found, known });
        }
    };
    if metadata.get_bool("tokenizer.ggml.add_bos_token") == Some(true) {
        let (what, known) = ("add_bos_token", "expected false");
        return Err(WeightsError::Unsupported { what, found: "true".into(), known });
    }
    let tokens = strings(metadata, TOKENS)?;
    let (mut control, mut whole) = (Vec::new(), Vec::new());
    if let Some(MetadataValue::Array(kinds)) = metadata.get("tokenizer.ggml.token_type") {
        for (id, kind) in (0..).zip(kinds.iter()) {
            match kind.as_i64() {
                Some(CONTROL) => control.push(id),
                Some(USER_DEFINED) => whole.push(id),
                _ => {}
            }
        }
    }
    let id = |key| metadata.get_u64(key).and_then(|id| u32::try_from(id).ok());
    TextTokenizer::from_byte_pairs(BytePairs {
        tokens,
        merges: strings(metadata, "tokenizer.ggml.merges")?,
        control,
        whole,
        split_digits,
        bos: id("tokenizer.ggml.bos_token_id"),
        eos: id("tokenizer.ggml.eos_token_id"),
    })
}

fn strings(metadata: &Metadata, key: &str) -> Result<Vec<String>, WeightsError> {
    let absent = || WeightsError::BadGguf(format!("{key} is absent or no list of texts"));
    let Some(MetadataValue::Array(values)) = metadata.get(key) else { return Err(absent()) };
    values.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(absent)).collect()
}

/// `blk.3.attn_q.weight` is our `blocks.3.attn.q.weight`; `None` when no model here has it.
fn our_name(theirs: &str) -> Option<String> {
    let name = match theirs {
        "token_embd.weight" => "embed.weight".to_owned(),
        "output_norm.weight" => "norm.weight".to_owned(),
        "output.weight" => "head.weight".to_owned(),
        _ => {
            let (number, part) = theirs.strip_prefix("blk.")?.split_once('.')?;
            let block: u32 = number.parse().ok()?;
            if block.to_string() != number {
                return None; // 007 would be 7 twice
            }
            let ours = PARTS.iter().find(|(name, _)| *name == part)?.1;
            format!("blocks.{block}.{ours}.weight")
        }
    };
    Some(name)
}

/// Rows of each head from llama.cpp's order (pairs of neighbours turn together) to that in which
/// the first half of a head turns with the second.
fn in_order(values: &[f32], head_width: usize, row: usize) -> Vec<f32> {
    let half = head_width / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_width * row) {
        for part in 0..2 {
            for pair in 0..half {
                let from = (2 * pair + part) * row;
                out.extend_from_slice(head.get(from..from + row).unwrap_or_default());
            }
        }
    }
    out
}

fn crates_words(error: impl std::fmt::Display) -> WeightsError {
    WeightsError::BadGguf(error.to_string().chars().take(300).collect())
}

/// A number that the file has in f32, as people write it: 1e-5, not 9.999999747378752e-6.
fn real(metadata: &Metadata, key: &str) -> Result<f64, WeightsError> {
    let value = match metadata.get(key) {
        Some(MetadataValue::F32(value)) => value.to_string().parse().ok(),
        other => other.and_then(MetadataValue::as_f64),
    };
    value.ok_or_else(|| WeightsError::BadGguf(format!("{key} is absent or no number")))
}

/// Text from a file, short enough for an error.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

const TOKENS: &str = "tokenizer.ggml.tokens";
/// Kinds of tokens.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The parts of a block, theirs and ours.
const PARTS: [(&str, &str); 9] = [
    ("attn_norm.weight", "norm1"),
    ("attn_q.weight", "attn.q"),
    ("attn_k.weight", "attn.k"),
    ("attn_v.weight", "attn.v"),
    ("attn_output.weight", "attn.o"),
    ("ffn_norm.weight", "norm2"),
    ("ffn_gate.weight", "mlp.gate"),
    ("ffn_up.weight", "mlp.up"),
    ("ffn_down.weight", "mlp.down"),
];

/// A vocabulary of 260,000 tokens has some 10 MB.
const MAX_METADATA_BYTES: usize = 32 << 20;
const MAX_METADATA_DECODED_BYTES: usize = 128 << 20;
const MAX_TENSORS: usize = 4_096;
/// 8 GiB in f32.
const MAX_VALUES: u64 = 1 << 31;

#[cfg(test)]
mod tests;
