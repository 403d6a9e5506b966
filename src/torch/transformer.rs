//! The transformer block, written once for all architectures.
//!
//! ```text
//! pre-norm   x -> norm1 -> attention -> (bottleneck) -> + -> norm2 -> mlp -> (bottleneck) -> +
//!            |__________________________________________|   |_______________________________|
//! post-norm  x -> attention -> + -> norm1 -> mlp -> + -> norm2        (BERT)
//! ```
//! A block is a handful of tensor handles taken from [`Parts`]; making one costs microseconds, so
//! training makes them anew each step from the step's adapter.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::attention::{Attention, Pass};
use super::decoder::DecoderLayer;
use super::linear::{Fused, Linear};
use super::norm::{Norm, NormKind};
use super::parts::Parts;
use crate::learn::{Layout, LearnError, TensorSet};
use crate::rng::Stream;

/// Sizes of a block of the signal transformer and of ViT.
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
        self.spec().check()
    }

    /// Layer norm before each half, biases, GELU by its tanh formula, attention over all tokens.
    pub fn spec(&self) -> BlockSpec {
        BlockSpec {
            d_model: self.d_model,
            heads: self.heads,
            kv_heads: self.heads,
            d_ff: self.d_ff,
            norm: NormKind::Layer,
            eps: 1e-5,
            order: Order::PreNorm,
            mlp: Mlp::GeluTanh,
            bias: true,
        }
    }
}

/// Where the norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Before attention and MLP.
    PreNorm,
    /// After their residuals.
    PostNorm,
}

/// The block's second half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(gelu(up(x)))` with GELU's tanh formula.
    GeluTanh,
    /// The same with the error function.
    GeluErf,
    /// `down(silu(gate(x)) * up(x))` (arXiv:2002.05202).
    SwiGlu,
}

/// All that tells one architecture's block from another's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockSpec {
    /// Width d of a token.
    pub d_model: u32,
    /// Attention heads; they divide `d_model`.
    pub heads: u32,
    /// Heads of keys and values; they divide `heads` (arXiv:2305.13245).
    pub kv_heads: u32,
    /// Width of the MLP's hidden layer.
    pub d_ff: u32,
    /// Kind of the norms.
    pub norm: NormKind,
    /// Keeps their division finite.
    pub eps: f64,
    /// Where they stand.
    pub order: Order,
    /// Kind of the MLP.
    pub mlp: Mlp,
    /// Whether the linear layers have biases.
    pub bias: bool,
}

impl BlockSpec {
    /// Width of a head.
    pub fn head_width(&self) -> u32 {
        self.d_model / self.heads.max(1)
    }

    /// Width of all keys (or values) of a token.
    pub fn kv_width(&self) -> u32 {
        self.head_width() * self.kv_heads
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first that doesn't.
    pub fn check(&self) -> Result<(), LearnError> {
        let bad = |what, expected: String, actual: u32| {
            Err(LearnError::OutOfRange { what, expected, actual: actual.to_string() })
        };
        if self.heads == 0 || self.d_model == 0 || !self.d_model.is_multiple_of(self.heads) {
            return bad("heads", format!("a divisor of d_model {}", self.d_model), self.heads);
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return bad("kv_heads", format!("a divisor of heads {}", self.heads), self.kv_heads);
        }
        if self.d_ff == 0 {
            return bad("d_ff", "at least 1".into(), 0);
        }
        Ok(())
    }

    /// Names (under the block's path) and shapes of a block's tensors.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f, kv) = (self.d_model as usize, self.d_ff as usize, self.kv_width() as usize);
        let mut all = norm_tensors("norm1", d, self.norm);
        all.extend(norm_tensors("norm2", d, self.norm));
        let mut linear = |path: &str, out, input| {
            all.extend(
                linear_tensors(path, out, input).into_iter().take(1 + usize::from(self.bias)),
            );
        };
        for (part, out) in [("q", d), ("k", kv), ("v", kv), ("o", d)] {
            linear(&format!("attn.{part}"), out, d);
        }
        if self.mlp == Mlp::SwiGlu {
            linear("mlp.gate", f, d);
        }
        linear("mlp.up", f, d);
        linear("mlp.down", d, f);
        all
    }
}

/// Names and shapes of a linear layer, the weight first.
pub fn linear_tensors(path: &str, out: usize, input: usize) -> Vec<(String, Vec<usize>)> {
    vec![(format!("{path}.weight"), vec![out, input]), (format!("{path}.bias"), vec![out])]
}

/// Names and shapes of a norm.
pub fn norm_tensors(path: &str, width: usize, kind: NormKind) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![(format!("{path}.weight"), vec![width])];
    if kind == NormKind::Layer {
        all.push((format!("{path}.bias"), vec![width]));
    }
    all
}

/// Weights to pre-train from: normal matrices of variance 1/input, tokens and positions of deviation 0.02,
/// norms 1, biases 0.
///
/// # Determinism
/// The same stream gives the same values.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "f32 weights")]
pub(super) fn drawn_weights(layout: &Layout, stream: &mut Stream) -> TensorSet {
    let mut set = TensorSet::zeros(layout);
    for ((name, shape), data) in layout.0.iter().zip(set.values_mut()) {
        let scale = match shape.as_slice() {
            _ if name == "embed.position" || name == "embed.class" => 0.02,
            [_, input] => 1.0 / (*input as f64).sqrt(),
            _ => 0.0,
        };
        let norm_weight = name.contains("norm") && name.ends_with(".weight");
        for value in data {
            *value = if norm_weight { 1.0 } else { (scale * stream.normal()) as f32 };
        }
    }
    set
}

/// The block's second half on one set of weights.
#[derive(Debug)]
enum Feed {
    Gelu { up: Linear, approximate: &'static str },
    SwiGlu { gate_up: Fused },
}

/// A small layer between a half and its residual: `x + up(gelu(down(x)))` (arXiv:1902.00751).
#[derive(Debug)]
struct Bottleneck {
    down: Linear,
    up: Linear,
}

impl Bottleneck {
    /// Takes `<path>.{down,up}`, if the adapter has them.
    fn new(parts: &Parts<'_>, path: &str, width: u32) -> Result<Option<Self>, LearnError> {
        let Some(weight) = parts.added(&format!("{path}.down.weight")) else { return Ok(None) };
        let inner = weight.size().first().and_then(|n| u32::try_from(*n).ok()).unwrap_or_default();
        Ok(Some(Self {
            down: Linear::new(parts, &format!("{path}.down"), inner, width)?,
            up: Linear::new(parts, &format!("{path}.up"), width, inner)?,
        }))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let hidden = self.down.forward(x)?.f_gelu("none")?;
        Ok(x.f_add(&self.up.forward(&hidden)?)?)
    }
}

/// One transformer block.
#[derive(Debug)]
pub struct Block {
    order: Order,
    norm1: Norm,
    attention: Attention,
    after_attention: Option<Bottleneck>,
    norm2: Norm,
    feed: Feed,
    down: Linear,
    after_mlp: Option<Bottleneck>,
}

impl Block {
    /// Takes the tensors of [`BlockSpec::tensors`] under `path`, and what an adapter adds there.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(parts: &Parts<'_>, path: &str, spec: &BlockSpec) -> Result<Self, LearnError> {
        let (d, f) = (spec.d_model, spec.d_ff);
        let norm = |name: &str| Norm::new(parts, &format!("{path}.{name}"), d, spec.norm, spec.eps);
        let mlp = format!("{path}.mlp");
        let gelu = |approximate| -> Result<Feed, LearnError> {
            Ok(Feed::Gelu { up: Linear::new(parts, &format!("{mlp}.up"), f, d)?, approximate })
        };
        let feed = match spec.mlp {
            Mlp::GeluTanh => gelu("tanh")?,
            Mlp::GeluErf => gelu("none")?,
            Mlp::SwiGlu => {
                let layers = [("gate", f), ("up", f)];
                Feed::SwiGlu { gate_up: Fused::new(parts, &mlp, "gate_up", &layers, d)? }
            }
        };
        Ok(Self {
            order: spec.order,
            norm1: norm("norm1")?,
            attention: Attention::new(parts, &format!("{path}.attn"), spec)?,
            after_attention: Bottleneck::new(parts, &format!("{path}.attn.bottleneck"), d)?,
            norm2: norm("norm2")?,
            feed,
            down: Linear::new(parts, &format!("{mlp}.down"), d, f)?,
            after_mlp: Bottleneck::new(parts, &format!("{mlp}.bottleneck"), d)?,
        })
    }

    /// The same on slices; none for a kind of block or adapter that isn't written that way.
    pub(super) fn decoder(&self) -> Result<Option<DecoderLayer>, LearnError> {
        let plain = self.order == Order::PreNorm
            && self.after_attention.is_none()
            && self.after_mlp.is_none();
        let (true, Feed::SwiGlu { gate_up }) = (plain, &self.feed) else { return Ok(None) };
        let (Some(norm1), Some(norm2)) = (self.norm1.decoder()?, self.norm2.decoder()?) else {
            return Ok(None);
        };
        let (gate_up, down) = (gate_up.decoder()?, self.down.decoder()?);
        let attention = self.attention.decoder()?;
        Ok(Some(DecoderLayer { norm1, attention, norm2, gate_up, down }))
    }

    /// `[batch, tokens, d]` to the same shape.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, LearnError> {
        match self.order {
            Order::PreNorm => {
                let x = x.f_add(&self.attend(&self.norm1.forward(x)?, pass)?)?;
                Ok(x.f_add(&self.feed(&self.norm2.forward(&x)?)?)?)
            }
            Order::PostNorm => {
                let x = self.norm1.forward(&x.f_add(&self.attend(x, pass)?)?)?;
                self.norm2.forward(&x.f_add(&self.feed(&x)?)?)
            }
        }
    }

    fn attend(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, LearnError> {
        let y = self.attention.forward(x, pass)?;
        match &self.after_attention {
            Some(bottleneck) => bottleneck.forward(&y),
            None => Ok(y),
        }
    }

    fn feed(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let hidden = match &self.feed {
            Feed::Gelu { up, approximate } => up.forward(x)?.f_gelu(approximate)?,
            Feed::SwiGlu { gate_up } => {
                let both = gate_up.forward(x)?;
                let [gate, up] = both.as_slice() else {
                    let message = "gate and up didn't come as two".into();
                    return Err(LearnError::Engine { engine: "libtorch", message });
                };
                gate.f_silu()?.f_mul(up)?
            }
        };
        let y = self.down.forward(&hidden)?;
        match &self.after_mlp {
            Some(bottleneck) => bottleneck.forward(&y),
            None => Ok(y),
        }
    }
}
