//! The transformer block, written once: pre-norm attention and MLP, each with a residual.
//!
//! ```text
//! x -> norm1 -> attention -> + -> norm2 -> up -> GELU -> down -> +
//! |__________________________|   |________________________________|
//! ```
//! A block is a handful of tensor handles taken from [`Weights`]; making one costs microseconds, so
//! training makes them anew each step from the step's effective weights.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::weights::Weights;
use crate::learn::LearnError;

/// Sizes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// Width d of a token.
    pub d_model: u32,
    /// Attention heads; they divide `d_model`.
    pub heads: u32,
    /// Width of the MLP's hidden layer.
    pub d_ff: u32,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self { d_model: 64, heads: 4, d_ff: 128 }
    }
}

impl BlockConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first that doesn't.
    pub fn check(&self) -> Result<(), LearnError> {
        let fits = self.heads > 0 && self.d_model > 0 && self.d_model.is_multiple_of(self.heads);
        if !fits {
            return Err(LearnError::OutOfRange {
                what: "heads",
                expected: format!("a divisor of d_model {}", self.d_model),
                actual: self.heads.to_string(),
            });
        }
        if self.d_ff == 0 {
            return Err(LearnError::OutOfRange {
                what: "d_ff",
                expected: "at least 1".into(),
                actual: "0".into(),
            });
        }
        Ok(())
    }

    /// Names (under the block's path) and shapes of a block's tensors.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.d_model as usize, self.d_ff as usize);
        let mut all = norm_tensors("norm1", d);
        for part in ["q", "k", "v", "o"] {
            all.extend(linear_tensors(&format!("attn.{part}"), d, d));
        }
        all.extend(norm_tensors("norm2", d));
        all.extend(linear_tensors("mlp.up", f, d));
        all.extend(linear_tensors("mlp.down", d, f));
        all
    }
}

/// Names and shapes of a linear layer.
pub fn linear_tensors(path: &str, out: usize, input: usize) -> Vec<(String, Vec<usize>)> {
    vec![(format!("{path}.weight"), vec![out, input]), (format!("{path}.bias"), vec![out])]
}

/// Names and shapes of a layer norm.
pub fn norm_tensors(path: &str, width: usize) -> Vec<(String, Vec<usize>)> {
    vec![(format!("{path}.weight"), vec![width]), (format!("{path}.bias"), vec![width])]
}

/// `y = x W^T + b`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Takes `<path>.weight` `[out, input]` and `<path>.bias` `[out]`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(weights: &Weights, path: &str, out: u32, input: u32) -> Result<Self, LearnError> {
        let (out, input) = (i64::from(out), i64::from(input));
        Ok(Self {
            weight: weights.get(&format!("{path}.weight"), &[out, input])?,
            bias: weights.get(&format!("{path}.bias"), &[out])?,
        })
    }

    /// `[.., input]` to `[.., out]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input's width differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}

/// Layer norm over the last axis.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
}

impl LayerNorm {
    /// Takes `<path>.weight` and `<path>.bias`, `[width]`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(weights: &Weights, path: &str, width: u32) -> Result<Self, LearnError> {
        let width = i64::from(width);
        Ok(Self {
            weight: weights.get(&format!("{path}.weight"), &[width])?,
            bias: weights.get(&format!("{path}.bias"), &[width])?,
            width,
        })
    }

    /// Keeps the shape.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input's width differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        Ok(x.f_layer_norm([self.width], Some(&self.weight), Some(&self.bias), NORM_EPS, false)?)
    }
}

/// Multi-head self-attention over all tokens (no mask).
#[derive(Debug)]
struct Attention {
    qkv: Linear,
    out: Linear,
    heads: i64,
    head_width: i64,
}

impl Attention {
    fn new(weights: &Weights, path: &str, config: &BlockConfig) -> Result<Self, LearnError> {
        let d = config.d_model;
        let part = |name: &str| Linear::new(weights, &format!("{path}.{name}"), d, d);
        let (q, k, v) = (part("q")?, part("k")?, part("v")?);
        // One matrix product instead of three: joining the weights costs far less.
        let qkv = Linear {
            weight: Tensor::f_cat(&[q.weight, k.weight, v.weight], 0)?,
            bias: Tensor::f_cat(&[q.bias, k.bias, v.bias], 0)?,
        };
        let heads = i64::from(config.heads);
        Ok(Self { qkv, out: part("o")?, heads, head_width: i64::from(d) / heads })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let (batch, tokens, width) = x.size3()?;
        let split = [batch, tokens, 3, self.heads, self.head_width];
        let qkv = self.qkv.forward(x)?.f_view(split)?.f_permute([2, 0, 3, 1, 4])?;
        let (query, key, value) = (qkv.f_select(0, 0)?, qkv.f_select(0, 1)?, qkv.f_select(0, 2)?);
        let mask: Option<&Tensor> = None;
        let mixed = Tensor::f_scaled_dot_product_attention(
            &query, &key, &value, mask, 0.0, false, None, false,
        )?;
        self.out.forward(&mixed.f_transpose(1, 2)?.f_reshape([batch, tokens, width])?)
    }
}

/// One transformer block.
#[derive(Debug)]
pub struct Block {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    /// Takes the tensors of [`BlockConfig::tensors`] under `path`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(weights: &Weights, path: &str, config: &BlockConfig) -> Result<Self, LearnError> {
        let (d, f) = (config.d_model, config.d_ff);
        Ok(Self {
            norm1: LayerNorm::new(weights, &format!("{path}.norm1"), d)?,
            attention: Attention::new(weights, &format!("{path}.attn"), config)?,
            norm2: LayerNorm::new(weights, &format!("{path}.norm2"), d)?,
            up: Linear::new(weights, &format!("{path}.mlp.up"), f, d)?,
            down: Linear::new(weights, &format!("{path}.mlp.down"), d, f)?,
        })
    }

    /// `[batch, tokens, d]` to the same shape.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let x = x.f_add(&self.attention.forward(&self.norm1.forward(x)?)?)?;
        let hidden = self.up.forward(&self.norm2.forward(&x)?)?.f_gelu("tanh")?;
        Ok(x.f_add(&self.down.forward(&hidden)?)?)
    }
}

const NORM_EPS: f64 = 1e-5;
