//! `LlamaForCausalLM` as Hugging Face writes it.

use std::path::Path;

use serde_json::{Value, json};

use super::{Config, Named, layer, tokenizer, weights};
use crate::torch::gguf::LoadedLanguage;
use crate::torch::language::LanguageConfig;
use crate::torch::weights_error::WeightsError;

/// Loads a folder with a Llama-like language model.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with it.
pub fn load_llama(folder: &Path) -> Result<LoadedLanguage, WeightsError> {
    let config = Config::read(folder)?;
    let sizes = sizes(&config)?;
    let (bos, eos) = (config.token("bos_token_id"), config.token("eos_token_id"));
    let tokenizer = tokenizer(folder, sizes.vocab, bos, eos)?;
    let weights = weights(folder, &sizes.layout(), |name| rename(name, sizes.tied))?;
    Ok(LoadedLanguage { config: sizes, weights, tokenizer })
}

fn sizes(config: &Config) -> Result<LanguageConfig, WeightsError> {
    let heads = config.number("num_attention_heads")?;
    // Newer files keep what is about positions in an object of its own.
    let nested = config.values.get("rope_parameters").filter(|value| value.is_object());
    let theta = nested.and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64);
    let sizes = LanguageConfig {
        vocab: config.number("vocab_size")?,
        d_model: config.number("hidden_size")?,
        layers: config.number("num_hidden_layers")?,
        heads,
        kv_heads: config.number("num_key_value_heads").unwrap_or(heads),
        d_ff: config.number("intermediate_size")?,
        rope_theta: match theta {
            Some(theta) => theta,
            None => config.real("rope_theta")?,
        },
        norm_eps: config.real("rms_norm_eps")?,
        context: config.number("max_position_embeddings")?,
        tied: config.values.get("tie_word_embeddings") == Some(&json!(true)),
    };
    sizes.check()?;
    let plain = nested.and_then(|rope| rope.get("rope_type")).unwrap_or(&Value::Null);
    if !plain.is_null() && *plain != json!("default") {
        return Err(config.unsupported("rope_type", &plain.to_string(), "expected default"));
    }
    config.must_be("rope_scaling", &Value::Null, "expected none")?;
    config.must_be("hidden_act", &json!("silu"), "expected silu")?;
    config.must_be("attention_bias", &json!(false), "expected false")?;
    config.must_be("mlp_bias", &json!(false), "expected false")?;
    let width = sizes.d_model / sizes.heads;
    config.must_be("head_dim", &json!(width), "expected hidden_size / num_attention_heads")?;
    Ok(sizes)
}

fn rename(theirs: &str, tied: bool) -> Named {
    let name = match theirs {
        "model.embed_tokens.weight" => "embed.weight".to_owned(),
        "model.norm.weight" => "norm.weight".to_owned(),
        "lm_head.weight" if tied => return Named::Unused,
        "lm_head.weight" => "head.weight".to_owned(),
        _ => {
            let Some((i, part)) = layer(theirs, "model.layers.") else { return Named::Unknown };
            let Some((_, ours)) = PARTS.iter().find(|(name, _)| *name == part) else {
                let frequencies = part == "self_attn.rotary_emb.inv_freq"; // computed here
                return if frequencies { Named::Unused } else { Named::Unknown };
            };
            format!("blocks.{i}.{ours}.weight")
        }
    };
    Named::Ours(name)
}

/// A block's tensors: theirs, and ours without `.weight`.
pub(in crate::torch) const PARTS: [(&str, &str); 9] = [
    ("input_layernorm.weight", "norm1"),
    ("self_attn.q_proj.weight", "attn.q"),
    ("self_attn.k_proj.weight", "attn.k"),
    ("self_attn.v_proj.weight", "attn.v"),
    ("self_attn.o_proj.weight", "attn.o"),
    ("post_attention_layernorm.weight", "norm2"),
    ("mlp.gate_proj.weight", "mlp.gate"),
    ("mlp.up_proj.weight", "mlp.up"),
    ("mlp.down_proj.weight", "mlp.down"),
];
