//! `ViTModel` and `ViTForImageClassification` as Hugging Face writes them.

use std::path::Path;

use serde_json::json;

use super::{Config, Named, layer, weights};
use crate::torch::vision::VisionConfig;
use crate::torch::weights::Weights;
use crate::torch::weights_error::WeightsError;

/// An image encoder as it comes out of a folder.
#[derive(Debug)]
pub struct LoadedVision {
    /// Its sizes.
    pub config: VisionConfig,
    /// Its tensors in f32, under the names of [`VisionConfig::layout`].
    pub weights: Weights,
}

/// Loads a folder with a vision transformer, with or without a classification head.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with it.
pub fn load_vit(folder: &Path) -> Result<LoadedVision, WeightsError> {
    let config = Config::read(folder)?;
    let has_head = config.architecture == "ViTForImageClassification";
    let classes = match config.values.get("id2label").and_then(|labels| labels.as_object()) {
        Some(labels) => u32::try_from(labels.len()).unwrap_or(u32::MAX),
        None => 2, // Hugging Face's own default
    };
    let sizes = VisionConfig {
        image: config.number("image_size")?,
        patch: config.number("patch_size")?,
        d_model: config.number("hidden_size")?,
        layers: config.number("num_hidden_layers")?,
        heads: config.number("num_attention_heads")?,
        d_ff: config.number("intermediate_size")?,
        norm_eps: config.real("layer_norm_eps")?,
        classes: has_head.then_some(classes),
    };
    sizes.check()?;
    config.must_be("hidden_act", &json!("gelu"), "expected gelu")?;
    config.must_be("num_channels", &json!(3), "expected 3")?;
    config.must_be("qkv_bias", &json!(true), "expected true")?;
    let weights = weights(folder, &sizes.layout(), rename)?;
    Ok(LoadedVision { config: sizes, weights })
}

fn rename(theirs: &str) -> Named {
    let name = theirs.strip_prefix("vit.").unwrap_or(theirs);
    if name.starts_with("pooler.") {
        return Named::Unused;
    }
    if let Some((_, ours)) = WHOLE.iter().find(|(whole, _)| *whole == name) {
        return Named::Ours((*ours).to_owned());
    }
    let Some((i, part)) = layer(name, "encoder.layer.") else { return Named::Unknown };
    let Some((path, leaf)) = part.rsplit_once('.') else { return Named::Unknown };
    match PARTS.iter().find(|(name, _)| *name == path) {
        Some((_, ours)) if matches!(leaf, "weight" | "bias") => {
            Named::Ours(format!("blocks.{i}.{ours}.{leaf}"))
        }
        _ => Named::Unknown,
    }
}

const WHOLE: [(&str, &str); 8] = [
    ("embeddings.cls_token", "embed.class"),
    ("embeddings.position_embeddings", "embed.position"),
    ("embeddings.patch_embeddings.projection.weight", "embed.weight"),
    ("embeddings.patch_embeddings.projection.bias", "embed.bias"),
    ("layernorm.weight", "norm.weight"),
    ("layernorm.bias", "norm.bias"),
    ("classifier.weight", "head.weight"),
    ("classifier.bias", "head.bias"),
];

const PARTS: [(&str, &str); 8] = [
    ("layernorm_before", "norm1"),
    ("attention.attention.query", "attn.q"),
    ("attention.attention.key", "attn.k"),
    ("attention.attention.value", "attn.v"),
    ("attention.output.dense", "attn.o"),
    ("layernorm_after", "norm2"),
    ("intermediate.dense", "mlp.up"),
    ("output.dense", "mlp.down"),
];
