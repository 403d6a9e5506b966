//! `BertModel` as Hugging Face writes it: MiniLM and its kin.

use std::path::Path;

use serde_json::json;

use super::{Config, Named, layer, tokenizer, weights};
use crate::torch::encoder::EncoderConfig;
use crate::torch::tokenizer::TextTokenizer;
use crate::torch::weights::Weights;
use crate::torch::weights_error::WeightsError;

/// A text encoder as it comes out of a folder.
#[derive(Debug)]
pub struct LoadedEncoder {
    /// Its sizes.
    pub config: EncoderConfig,
    /// Its tensors in f32, under the names of [`EncoderConfig::layout`].
    pub weights: Weights,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
}

/// Loads a folder with a BERT-like encoder.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with it.
pub fn load_bert(folder: &Path) -> Result<LoadedEncoder, WeightsError> {
    let config = Config::read(folder)?;
    let sizes = EncoderConfig {
        vocab: config.number("vocab_size")?,
        d_model: config.number("hidden_size")?,
        layers: config.number("num_hidden_layers")?,
        heads: config.number("num_attention_heads")?,
        d_ff: config.number("intermediate_size")?,
        context: config.number("max_position_embeddings")?,
        segments: config.number("type_vocab_size")?,
        norm_eps: config.real("layer_norm_eps")?,
        classes: None,
    };
    sizes.check()?;
    config.must_be("hidden_act", &json!("gelu"), "expected gelu")?;
    config.must_be("position_embedding_type", &json!("absolute"), "expected absolute")?;
    config.must_be("is_decoder", &json!(false), "expected false")?;
    let tokenizer = tokenizer(folder, sizes.vocab, None, None)?;
    let weights = weights(folder, &sizes.layout(), rename)?;
    Ok(LoadedEncoder { config: sizes, weights, tokenizer })
}

fn rename(theirs: &str) -> Named {
    // The pooler serves a task that MiniLM isn't used for; positions are counted here.
    if theirs.starts_with("pooler.") || theirs == "embeddings.position_ids" {
        return Named::Unused;
    }
    let whole = EMBEDDING.iter().find(|(name, _)| *name == theirs);
    if let Some((_, ours)) = whole {
        return Named::Ours((*ours).to_owned());
    }
    let Some((i, part)) = layer(theirs, "encoder.layer.") else { return Named::Unknown };
    let Some((path, leaf)) = part.rsplit_once('.') else { return Named::Unknown };
    match PARTS.iter().find(|(name, _)| *name == path) {
        Some((_, ours)) if matches!(leaf, "weight" | "bias") => {
            Named::Ours(format!("blocks.{i}.{ours}.{leaf}"))
        }
        _ => Named::Unknown,
    }
}

const EMBEDDING: [(&str, &str); 5] = [
    ("embeddings.word_embeddings.weight", "embed.weight"),
    ("embeddings.position_embeddings.weight", "embed.position"),
    ("embeddings.token_type_embeddings.weight", "embed.segment"),
    ("embeddings.LayerNorm.weight", "embed.norm.weight"),
    ("embeddings.LayerNorm.bias", "embed.norm.bias"),
];

const PARTS: [(&str, &str); 8] = [
    ("attention.self.query", "attn.q"),
    ("attention.self.key", "attn.k"),
    ("attention.self.value", "attn.v"),
    ("attention.output.dense", "attn.o"),
    ("attention.output.LayerNorm", "norm1"),
    ("intermediate.dense", "mlp.up"),
    ("output.dense", "mlp.down"),
    ("output.LayerNorm", "norm2"),
];
