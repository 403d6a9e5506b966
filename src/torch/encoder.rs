//! The text encoder: token ids to one vector a text (BERT, MiniLM).
//!
//! ```text
//! ids -> embed + position + segment 0 -> norm -> blocks (post-norm) -> mean over a text's tokens -> unit length
//!                                                                      '-> head -> classes
//! ```

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::attention::Pass;
use super::linear::Linear;
use super::norm::{Norm, NormKind};
use super::parts::Parts;
use super::transformer::{Block, BlockSpec, Mlp, Order, linear_tensors, norm_tensors};
use crate::learn::{Layout, LearnError};

/// Sizes of a text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Number of token ids.
    pub vocab: u32,
    /// Width d of a token.
    pub d_model: u32,
    /// Number of blocks.
    pub layers: u32,
    /// Attention heads; they divide `d_model`.
    pub heads: u32,
    /// Width of the MLP's hidden layer.
    pub d_ff: u32,
    /// Longest text in tokens.
    pub context: u32,
    /// Kinds of segments that the embedding knows; the first is used.
    pub segments: u32,
    /// Keeps the norms' division finite.
    pub norm_eps: f64,
    /// Classes of the head, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<u32>,
}

impl EncoderConfig {
    /// Checks that the sizes fit together and are those of a model that a node may hold.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first that isn't.
    pub fn check(&self) -> Result<(), LearnError> {
        self.spec().check()?;
        within("vocab", self.vocab, 1 << 20)?;
        within("d_model", self.d_model, 1 << 14)?;
        within("layers", self.layers, 256)?;
        within("d_ff", self.d_ff, 1 << 17)?;
        within("context", self.context, 1 << 16)?;
        within("segments", self.segments, 64)?;
        within("classes", self.classes.unwrap_or(1), 1 << 16)?;
        check_eps(self.norm_eps)
    }

    /// What its blocks are.
    pub fn spec(&self) -> BlockSpec {
        BlockSpec {
            d_model: self.d_model,
            heads: self.heads,
            kv_heads: self.heads,
            d_ff: self.d_ff,
            norm: NormKind::Layer,
            eps: self.norm_eps,
            order: Order::PostNorm,
            mlp: Mlp::GeluErf,
            bias: true,
        }
    }

    /// Names and shapes of all weights, in the order of their names.
    pub fn layout(&self) -> Layout {
        let d = self.d_model as usize;
        let mut all = vec![
            ("embed.weight".to_owned(), vec![self.vocab as usize, d]),
            ("embed.position".to_owned(), vec![self.context as usize, d]),
            ("embed.segment".to_owned(), vec![self.segments as usize, d]),
        ];
        all.extend(norm_tensors("embed.norm", d, NormKind::Layer));
        for i in 0..self.layers {
            let block = self.spec().tensors();
            all.extend(
                block.into_iter().map(|(name, shape)| (format!("blocks.{i}.{name}"), shape)),
            );
        }
        if let Some(classes) = self.classes {
            all.extend(linear_tensors("head", classes as usize, d));
        }
        all.sort();
        Layout(all)
    }
}

/// An encoder with one set of weights.
#[derive(Debug)]
pub struct Encoder {
    embed: Tensor,
    position: Tensor,
    /// `[d]`
    segment: Tensor,
    norm: Norm,
    blocks: Vec<Block>,
    head: Option<Linear>,
    config: EncoderConfig,
}

impl Encoder {
    /// Takes the tensors of [`EncoderConfig::layout`], and what an adapter adds.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(parts: &Parts<'_>, config: &EncoderConfig) -> Result<Self, LearnError> {
        let (spec, d) = (config.spec(), i64::from(config.d_model));
        let block = |i| Block::new(parts, &format!("blocks.{i}"), &spec);
        let head = |classes| Linear::new(parts, "head", classes, config.d_model);
        let segments = parts.get("embed.segment", &[config.segments.into(), d])?;
        Ok(Self {
            embed: parts.get("embed.weight", &[config.vocab.into(), d])?,
            position: parts.get("embed.position", &[config.context.into(), d])?,
            segment: segments.f_select(0, 0)?,
            norm: Norm::new(parts, "embed.norm", config.d_model, spec.norm, spec.eps)?,
            blocks: (0..config.layers).map(block).collect::<Result<_, _>>()?,
            head: config.classes.map(head).transpose()?,
            config: *config,
        })
    }

    /// One vector of unit length a text, `[texts, d]`.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for a text without tokens, with too many, or with an id that isn't
    /// one.
    pub fn vectors(&self, texts: &[Vec<u32>]) -> Result<Tensor, LearnError> {
        let mean = self.means(texts)?;
        let length = mean.f_norm_scalaropt_dim(2.0, [-1].as_slice(), true)?;
        Ok(mean.f_div(&length.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?)
    }

    /// Logits of the head, `[texts, classes]`.
    ///
    /// # Errors
    /// As [`Encoder::vectors`]; [`LearnError::LayoutMismatch`] without a head.
    pub fn logits(&self, texts: &[Vec<u32>]) -> Result<Tensor, LearnError> {
        let absent = || LearnError::LayoutMismatch {
            name: "head.weight".into(),
            expected: "a head".into(),
            actual: "absent".into(),
        };
        self.head.as_ref().ok_or_else(absent)?.forward(&self.means(texts)?)
    }

    /// Mean of each text's hidden states, `[texts, d]`.
    fn means(&self, texts: &[Vec<u32>]) -> Result<Tensor, LearnError> {
        let batch = Padded::new(texts, &self.config)?;
        let hidden = self.hidden(&batch)?;
        // `[texts, tokens, 1]`, 1 where there is a token
        let here = batch.here.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?;
        let sum = hidden.f_mul(&here)?.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
        let count = here.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
        Ok(sum.f_div(&count)?)
    }

    fn hidden(&self, batch: &Padded) -> Result<Tensor, LearnError> {
        let (rows, tokens) = batch.ids.size2()?;
        let x = Tensor::f_embedding(&self.embed, &batch.ids, -1, false, false)?;
        let x = x.f_add(&self.position.f_narrow(0, 0, tokens)?)?.f_add(&self.segment)?;
        let mut x = self.norm.forward(&x)?;
        let zeros = Tensor::f_zeros([rows, 1, 1, tokens], (Kind::Float, x.device()))?;
        let absent = batch.here.f_logical_not()?.f_reshape([rows, 1, 1, tokens])?;
        let mask = zeros.f_masked_fill(&absent, f64::NEG_INFINITY)?;
        let mask = mask.f_expand([rows, 1, tokens, tokens], false)?;
        for block in &self.blocks {
            let mut pass = Pass { mask: Some(&mask), ..Pass::default() };
            x = block.forward(&x, &mut pass)?;
        }
        Ok(x)
    }
}

/// Texts side by side, the shorter ones filled up.
struct Padded {
    /// `[texts, tokens]`, i64
    ids: Tensor,
    /// `[texts, tokens]`, whether there is a token
    here: Tensor,
}

impl Padded {
    fn new(texts: &[Vec<u32>], config: &EncoderConfig) -> Result<Self, LearnError> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or_default();
        let shortest = texts.iter().map(Vec::len).min().unwrap_or_default();
        if shortest == 0 || longest > config.context as usize {
            let actual = if shortest == 0 { 0 } else { longest };
            return Err(LearnError::OutOfRange {
                what: "tokens of a text",
                expected: format!("1 to {}", config.context),
                actual: actual.to_string(),
            });
        }
        let (mut ids, mut here) = (Vec::new(), Vec::new());
        for text in texts {
            if let Some(id) = text.iter().find(|id| **id >= config.vocab) {
                let (expected, actual) = (format!("below {}", config.vocab), id.to_string());
                return Err(LearnError::OutOfRange { what: "token id", expected, actual });
            }
            let filler = longest - text.len();
            ids.extend(text.iter().map(|id| i64::from(*id)).chain(std::iter::repeat_n(0, filler)));
            here.extend(std::iter::repeat_n(true, text.len()));
            here.extend(std::iter::repeat_n(false, filler));
        }
        let shape = [super::dim(texts.len())?, super::dim(longest)?];
        let ids = Tensor::f_from_slice(&ids)?.f_reshape(shape)?;
        let here = Tensor::f_from_slice(&here)?.f_reshape(shape)?;
        Ok(Self { ids, here })
    }
}

/// A size that comes from a file.
pub(super) fn within(what: &'static str, value: u32, max: u32) -> Result<(), LearnError> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    let (expected, actual) = (format!("1 to {max}"), value.to_string());
    Err(LearnError::OutOfRange { what, expected, actual })
}

/// An epsilon that comes from a file.
pub(super) fn check_eps(eps: f64) -> Result<(), LearnError> {
    if eps > 0.0 && eps < 1.0 {
        return Ok(());
    }
    let (expected, actual) = ("between 0 and 1".to_owned(), eps.to_string());
    Err(LearnError::OutOfRange { what: "norm_eps", expected, actual })
}
