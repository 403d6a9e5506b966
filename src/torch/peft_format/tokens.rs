//! Prompt tuning and prefix tuning in the PEFT format: one tensor, `prompt_embeddings`.
//!
//! ```text
//! prompts  [n, d]                    in front of the embedded input, positions from 0
//! prefix   [n, layers * 2 * kv]      a row: keys of block 0, values of block 0, keys of block 1, ..
//! ```
//! A prefix's keys are used as they are, without a turn; the input's positions go on behind it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::config::AdapterConfig;
use super::differs;
use crate::learn::{Tensor, TensorSet};
use crate::torch::language::LanguageConfig;
use crate::torch::peft::PeftConfig;
use crate::torch::weights_error::WeightsError;

pub(super) fn read_prompts(
    config: &AdapterConfig,
    tensors: BTreeMap<String, Tensor>,
    sizes: &LanguageConfig,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    let n = count(config, sizes, sizes.d_model, sizes.heads)?;
    let data = only_tensor(tensors, &[n as usize, sizes.d_model as usize])?;
    let shape = vec![n as usize, sizes.d_model as usize];
    let set = TensorSet::new(vec![Tensor { name: PROMPTS.into(), shape, data }])?;
    Ok((PeftConfig { prompts: n, ..PeftConfig::none() }, set))
}

pub(super) fn read_prefix(
    config: &AdapterConfig,
    tensors: BTreeMap<String, Tensor>,
    sizes: &LanguageConfig,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    let kv = sizes.spec().kv_width();
    let n = count(config, sizes, kv, sizes.kv_heads)?;
    let (rows, kv) = (n as usize, kv as usize);
    let names = prefix_names(sizes);
    let data = only_tensor(tensors, &[rows, names.len() * kv])?;
    let mut set: Vec<Tensor> = Vec::with_capacity(names.len());
    for name in names {
        set.push(Tensor { name, shape: vec![rows, kv], data: Vec::with_capacity(rows * kv) });
    }
    for row in data.chunks(set.len() * kv) {
        for (tensor, part) in set.iter_mut().zip(row.chunks(kv)) {
            tensor.data.extend_from_slice(part);
        }
    }
    Ok((PeftConfig { prefix: n, ..PeftConfig::none() }, TensorSet::new(set)?))
}

pub(super) fn write_prompts(
    adapter: &TensorSet,
    sizes: &LanguageConfig,
) -> Result<(Value, Vec<Tensor>), WeightsError> {
    let prompts = adapter.get(PROMPTS).ok_or_else(|| differs(PROMPTS, Some(&[]), None))?;
    let n = prompts.shape.first().copied().unwrap_or_default();
    let mut config = settings("PROMPT_TUNING", n, sizes, sizes.d_model, sizes.heads);
    if let Some(config) = config.as_object_mut() {
        config.insert("prompt_tuning_init".into(), "RANDOM".into());
    }
    Ok((config, vec![Tensor { name: TENSOR.into(), ..prompts.clone() }]))
}

pub(super) fn write_prefix(
    adapter: &TensorSet,
    sizes: &LanguageConfig,
) -> Result<(Value, Vec<Tensor>), WeightsError> {
    let kv = sizes.spec().kv_width();
    let names = prefix_names(sizes);
    let mut parts = Vec::with_capacity(names.len());
    for name in &names {
        let part = adapter.get(name).ok_or_else(|| differs(name, Some(&[]), None))?;
        parts.push(part.data.chunks(kv as usize));
    }
    let n = parts.first().map_or(0, ExactSizeIterator::len);
    let mut data = Vec::with_capacity(n * names.len() * kv as usize);
    for _ in 0..n {
        for rows in &mut parts {
            data.extend_from_slice(rows.next().unwrap_or_default());
        }
    }
    let mut config = settings("PREFIX_TUNING", n, sizes, kv, sizes.kv_heads);
    if let Some(config) = config.as_object_mut() {
        config.insert("prefix_projection".into(), false.into());
    }
    let shape = vec![n, names.len() * kv as usize];
    Ok((config, vec![Tensor { name: TENSOR.into(), shape, data }]))
}

/// Number of tokens, once all other sizes are those of the base.
fn count(
    config: &AdapterConfig,
    sizes: &LanguageConfig,
    width: u32,
    heads: u32,
) -> Result<u32, WeightsError> {
    let known =
        ["num_virtual_tokens", "num_layers", "token_dim", "num_attention_heads", SUBMODULES];
    config.only(&known)?;
    config.agrees("num_layers", sizes.layers)?;
    config.agrees("token_dim", width)?;
    config.agrees("num_attention_heads", heads)?;
    config.agrees(SUBMODULES, 1)?;
    config.number("num_virtual_tokens")
}

fn settings(kind: &str, n: usize, sizes: &LanguageConfig, width: u32, heads: u32) -> Value {
    json!({
        "peft_type": kind,
        "num_virtual_tokens": n,
        "num_layers": sizes.layers,
        "token_dim": width,
        "num_attention_heads": heads,
        SUBMODULES: 1,
    })
}

/// The values of the one tensor that there is.
fn only_tensor(
    mut tensors: BTreeMap<String, Tensor>,
    shape: &[usize],
) -> Result<Vec<f32>, WeightsError> {
    let found = tensors.remove(TENSOR);
    if let Some((name, other)) = tensors.into_iter().next() {
        return Err(differs(&name, None, Some(&other.shape)));
    }
    match found {
        Some(t) if t.shape == shape => Ok(t.data),
        other => Err(differs(TENSOR, Some(shape), other.as_ref().map(|t| t.shape.as_slice()))),
    }
}

/// In the order of a row.
fn prefix_names(sizes: &LanguageConfig) -> Vec<String> {
    let both = |i| ["prefix_k", "prefix_v"].map(|leaf| format!("blocks.{i}.attn.{leaf}"));
    (0..sizes.layers).flat_map(both).collect()
}

const PROMPTS: &str = "embed.prompts";
const TENSOR: &str = "prompt_embeddings";
const SUBMODULES: &str = "num_transformer_submodules";
