//! The language model: token ids to logits of the next token (Llama).
//!
//! ```text
//! ids -> embed -> (prompts in front) -> blocks (RoPE, causal) -> norm -> head (the embedding again, if tied)
//! ```
//! [`LanguageBase`] is a base in memory, shared by whoever trains or answers with it;
//! [`LanguageModel`] is that base with one adapter, made anew for each training step.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::attention::Pass;
use super::decoder::{Decoder, RowCache};
use super::kv_cache::LayerCache;
use super::linear::{matrix, whole_matrix};
use super::norm::{Norm, NormKind};
use super::parts::{Attached, Parts};
use super::rope::{Rope, RopeTable};
use super::transformer::{Block, BlockSpec, Mlp, Order, norm_tensors};
use super::weights::Weights;
use crate::learn::{Layout, LearnError};

/// Sizes of a language model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    /// Number of token ids.
    pub vocab: u32,
    /// Width d of a token.
    pub d_model: u32,
    /// Number of blocks.
    pub layers: u32,
    /// Attention heads; they divide `d_model`.
    pub heads: u32,
    /// Heads of keys and values; they divide `heads`.
    pub kv_heads: u32,
    /// Width of the MLP's hidden layer.
    pub d_ff: u32,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Keeps the norms' division finite.
    pub norm_eps: f64,
    /// Longest input in tokens.
    pub context: u32,
    /// The head is the embedding.
    pub tied: bool,
}

impl LanguageConfig {
    /// Checks that the sizes fit together and are those of a model that a node may hold.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first that isn't.
    pub fn check(&self) -> Result<(), LearnError> {
        self.spec().check()?;
        let limits = [
            ("vocab", self.vocab, MAX_VOCAB),
            ("d_model", self.d_model, MAX_WIDTH),
            ("layers", self.layers, MAX_LAYERS),
            ("d_ff", self.d_ff, MAX_WIDTH * 8),
            ("context", self.context, MAX_CONTEXT),
        ];
        for (what, actual, max) in limits {
            if actual == 0 || actual > max {
                let expected = format!("1 to {max}");
                return Err(LearnError::OutOfRange { what, expected, actual: actual.to_string() });
            }
        }
        if !self.spec().head_width().is_multiple_of(2) {
            return Err(LearnError::OutOfRange {
                what: "width of a head",
                expected: "even, for rotary positions".into(),
                actual: self.spec().head_width().to_string(),
            });
        }
        for (what, actual) in [("rope_theta", self.rope_theta), ("norm_eps", self.norm_eps)] {
            if !(actual > 0.0 && actual.is_finite()) {
                let expected = "positive".into();
                return Err(LearnError::OutOfRange { what, expected, actual: actual.to_string() });
            }
        }
        Ok(())
    }

    /// What its blocks are.
    pub fn spec(&self) -> BlockSpec {
        BlockSpec {
            d_model: self.d_model,
            heads: self.heads,
            kv_heads: self.kv_heads,
            d_ff: self.d_ff,
            norm: NormKind::Rms,
            eps: self.norm_eps,
            order: Order::PreNorm,
            mlp: Mlp::SwiGlu,
            bias: false,
        }
    }

    /// Names and shapes of all weights.
    pub fn layout(&self) -> Layout {
        let (d, vocab) = (self.d_model as usize, self.vocab as usize);
        let mut all = vec![("embed.weight".to_owned(), vec![vocab, d])];
        for layer in 0..self.layers {
            let block = self.spec().tensors();
            all.extend(block.into_iter().map(|(n, s)| (format!("blocks.{layer}.{n}"), s)));
        }
        all.extend(norm_tensors("norm", d, NormKind::Rms));
        if !self.tied {
            all.push(("head.weight".into(), vec![vocab, d]));
        }
        all.sort();
        Layout(all)
    }
}

/// Kind of numbers that a frozen base is held in; adapters are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// bfloat16 matrices, f32 norms: half of the memory, and quicker where the CPU multiplies it.
    Bf16,
}

impl Precision {
    /// [`Precision::Bf16`] where this machine multiplies bfloat16 in hardware, else f32.
    pub fn best(device: Device) -> Self {
        #[cfg(target_arch = "x86_64")]
        let cpu = std::arch::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let cpu = false;
        if cpu || device.is_cuda() { Self::Bf16 } else { Self::F32 }
    }

    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// A base in memory.
#[derive(Debug)]
pub struct LanguageBase {
    config: LanguageConfig,
    weights: Weights,
    rope: RopeTable,
    precision: Precision,
    device: Device,
}

impl LanguageBase {
    /// Takes the tensors of [`LanguageConfig::layout`], f32; joins what is multiplied together.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape;
    /// [`LearnError::NotFinite`] when a value isn't finite.
    pub fn new(
        config: LanguageConfig,
        mut weights: Weights,
        precision: Precision,
        device: Device,
    ) -> Result<Self, LearnError> {
        let _guard = tch::no_grad_guard();
        config.check()?;
        weights.check_layout(&config.layout())?;
        weights.check_finite()?;
        for layer in 0..config.layers {
            let names = |half: &str, parts: &[&str]| -> Vec<String> {
                parts.iter().map(|p| format!("blocks.{layer}.{half}.{p}.weight")).collect()
            };
            let joined = |half: &str, name: &str| format!("blocks.{layer}.{half}.{name}.weight");
            weights.fuse(&names("attn", &["q", "k", "v"]), joined("attn", "qkv"))?;
            weights.fuse(&names("mlp", &["gate", "up"]), joined("mlp", "gate_up"))?;
        }
        weights.convert(precision.kind(), device)?;
        let head_width = config.spec().head_width();
        let rope = RopeTable::new(config.context, head_width, config.rope_theta)?.to(device)?;
        Ok(Self { config, weights, rope, precision, device })
    }

    /// Another handle to the same memory, for another thread.
    pub fn share(&self) -> Self {
        Self {
            config: self.config,
            weights: self.weights.share(),
            rope: self.rope.share(),
            precision: self.precision,
            device: self.device,
        }
    }

    /// Sizes.
    pub fn config(&self) -> &LanguageConfig {
        &self.config
    }

    /// The tensors.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What its matrices are held in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same base on other weights of its names, say with a merged adapter.
    pub fn on(&self, weights: Weights) -> Self {
        let (config, rope) = (self.config, self.rope.share());
        Self { config, weights, rope, precision: self.precision, device: self.device }
    }

    /// The base with an adapter, or bare.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the adapter isn't one of this base.
    pub fn model(&self, adapter: Option<&Attached>) -> Result<LanguageModel, LearnError> {
        let parts = match adapter {
            Some(adapter) => Parts::with(&self.weights, adapter),
            None => Parts::bare(&self.weights),
        };
        let config = &self.config;
        let spec = config.spec();
        let sizes = [i64::from(config.vocab), i64::from(config.d_model)];
        let embed = parts.get("embed.weight", &sizes)?;
        let head =
            if config.tied { embed.shallow_clone() } else { whole_matrix(&parts, "head", sizes)? };
        let block = |i| Block::new(&parts, &format!("blocks.{i}"), &spec);
        let deep = |i| parts.added(&format!("blocks.{i}.prompts"));
        Ok(LanguageModel {
            blocks: (0..config.layers).map(block).collect::<Result<_, _>>()?,
            norm: Norm::new(&parts, "norm", config.d_model, spec.norm, spec.eps)?,
            prompts: parts.added("embed.prompts"),
            deep_prompts: (0..config.layers).map(deep).collect(),
            prefix: parts.added("blocks.0.attn.prefix_k").map_or(0, |t| first_size(&t)),
            embed,
            head,
            context: config.context.into(),
            rope: self.rope.share(),
            kind: self.precision.kind(),
        })
    }
}

/// Rows of token ids that go through the model together.
#[derive(Debug)]
pub struct TokenBatch {
    /// `[batch, tokens]`, i64.
    pub ids: Tensor,
    /// Position of each token in its text, `[batch, tokens]`; without it rows count from 0.
    pub positions: Option<Tensor>,
    /// Number of the text that a token belongs to, `[batch, tokens]`; texts don't see each other.
    /// Without it each row is one text.
    pub segments: Option<Tensor>,
}

/// A base with one adapter.
#[derive(Debug)]
pub struct LanguageModel {
    embed: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    head: Tensor,
    /// `[n, d]`
    prompts: Option<Tensor>,
    /// `[n, d]` a block
    deep_prompts: Vec<Option<Tensor>>,
    /// Keys that stand before all tokens.
    prefix: i64,
    context: i64,
    rope: RopeTable,
    /// What the base's matrices are held in.
    kind: Kind,
}

/// What the blocks of one forward pass share, and the input of the first.
#[derive(Debug)]
pub struct Entrance {
    /// `[batch, front + tokens, d]`
    pub x: Tensor,
    rope: Rope,
    mask: Option<Tensor>,
    /// Tokens that stand in front of the ids.
    front: i64,
}

impl LanguageModel {
    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// The head's matrix `[vocab, d]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Embeds a batch.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when it is longer than the context.
    pub fn enter(&self, batch: &TokenBatch) -> Result<Entrance, LearnError> {
        let (rows, tokens) = batch.ids.size2()?;
        let mut x = Tensor::f_embedding(&self.embed, &batch.ids, -1, false, false)?
            .f_to_kind(Kind::Float)?;
        let deep = self.deep_prompts.first().and_then(Option::as_ref);
        let mut front = 0;
        for prompts in self.prompts.iter().chain(deep) {
            x = before(prompts, &x, rows)?;
            front += first_size(prompts);
        }
        let shift = front + self.prefix;
        let context = self.context;
        if tokens + shift > context {
            return Err(LearnError::OutOfRange {
                what: "tokens of an input",
                expected: format!("at most {}", context - shift),
                actual: tokens.to_string(),
            });
        }
        let rope = match &batch.positions {
            Some(positions) => {
                let rest = positions.f_add_scalar(shift)?;
                let first =
                    Tensor::f_arange_start(self.prefix, shift, (Kind::Int64, positions.device()))?;
                let first = first.f_unsqueeze(0)?.f_expand([rows, -1], false)?;
                self.rope.at(&Tensor::f_cat(&[first, rest], 1)?)?
            }
            None => self.rope.range(self.prefix, front + tokens)?,
        };
        let mask = match &batch.segments {
            Some(segments) => Some(text_mask(segments, front, self.prefix)?),
            None => None,
        };
        Ok(Entrance { x, rope: rope.in_kind(self.kind)?, mask, front })
    }

    /// One block of a forward pass.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when shapes differ.
    pub fn block(&self, i: usize, x: &Tensor, way: &Entrance) -> Result<Tensor, LearnError> {
        let mut pass =
            Pass { rope: Some(&way.rope), mask: way.mask.as_ref(), causal: true, caches: vec![] };
        let deep = self.deep_prompts.get(i).and_then(Option::as_ref);
        let x = match deep {
            Some(prompts) if i > 0 => replace_front(prompts, x)?,
            _ => x.shallow_clone(),
        };
        match self.blocks.get(i) {
            Some(block) => block.forward(&x, &mut pass),
            None => Ok(x),
        }
    }

    /// The last norm, for the tokens of the ids only: `[batch, tokens, d]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when shapes differ.
    pub fn leave(&self, x: &Tensor, way: &Entrance) -> Result<Tensor, LearnError> {
        let (_, all, _) = x.size3()?;
        self.norm.forward(&x.f_narrow(1, way.front, all - way.front)?)
    }

    /// Batch to hidden states `[batch, tokens, d]`, f32.
    ///
    /// # Errors
    /// As for [`LanguageModel::enter`].
    pub fn hidden(&self, batch: &TokenBatch) -> Result<Tensor, LearnError> {
        let way = self.enter(batch)?;
        let mut x = way.x.shallow_clone();
        for i in 0..self.layers() {
            x = self.block(i, &x, &way)?;
        }
        self.leave(&x, &way)
    }

    /// Hidden states `[.., d]` to logits `[.., vocab]`, f32.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when shapes differ.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, LearnError> {
        let hidden = hidden.f_to_kind(self.head.kind())?;
        Ok(hidden.f_linear(&self.head, None::<&Tensor>)?.f_to_kind(Kind::Float)?)
    }

    /// The next tokens `[rows, tokens]` of as many sequences; gives the hidden states `[rows, 1, d]` of
    /// the last. Rows that begin do so together and alone: their caches are empty, the others' aren't.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when a sequence is longer than the context, or some rows begin while
    /// others go on.
    pub fn extend(
        &self,
        ids: &Tensor,
        caches: &mut [&mut SequenceCache],
    ) -> Result<Tensor, LearnError> {
        let _guard = tch::no_grad_guard();
        let (_, tokens) = ids.size2()?;
        let begin = caches.iter().filter(|cache| cache.tokens == 0).count();
        let (mut x, rope) = if begin == 0 {
            self.go_on(ids, caches)?
        } else if begin == caches.len() {
            let batch = TokenBatch { ids: ids.shallow_clone(), positions: None, segments: None };
            let way = self.enter(&batch)?;
            for cache in caches.iter_mut() {
                cache.tokens = self.prefix + way.front;
                cache.layers.resize_with(self.blocks.len(), LayerCache::default);
            }
            (way.x, way.rope)
        } else {
            return Err(LearnError::OutOfRange {
                what: "sequences that begin",
                expected: format!("none or all {}", caches.len()),
                actual: begin.to_string(),
            });
        };
        for (i, block) in self.blocks.iter().enumerate() {
            let deep = self.deep_prompts.get(i).and_then(Option::as_ref);
            if let (Some(prompts), true) = (deep, i > 0 && begin > 0) {
                x = replace_front(prompts, &x)?;
            }
            let layers = caches.iter_mut().filter_map(|cache| cache.layers.get_mut(i)).collect();
            let mut pass = Pass { rope: Some(&rope), mask: None, causal: true, caches: layers };
            x = block.forward(&x, &mut pass)?;
        }
        for cache in caches.iter_mut() {
            cache.tokens += tokens;
        }
        let (_, all, _) = x.size3()?;
        self.norm.forward(&x.f_narrow(1, all - 1, 1)?)
    }

    /// The same model for one token a sequence, without libtorch; none where it lies on a GPU or the adapter
    /// has layers of its own.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn decoder(&self) -> Result<Option<Decoder>, LearnError> {
        if self.embed.device() != Device::Cpu {
            return Ok(None);
        }
        let mut layers = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let Some(layer) = block.decoder()? else { return Ok(None) };
            layers.push(layer);
        }
        let Some(norm) = self.norm.decoder()? else { return Ok(None) };
        let (embed, head) = (matrix(&self.embed)?, matrix(&self.head)?);
        let (cos, sin) = self.rope.decoder()?;
        Ok(Some(Decoder { embed, layers, norm, head, cos, sin }))
    }

    /// Embeds tokens that come after others.
    fn go_on(
        &self,
        ids: &Tensor,
        caches: &[&mut SequenceCache],
    ) -> Result<(Tensor, Rope), LearnError> {
        let (_, tokens) = ids.size2()?;
        let starts: Vec<i64> = caches.iter().map(|cache| cache.tokens).collect();
        let (context, longest) = (self.context, starts.iter().max().copied().unwrap_or_default());
        if longest + tokens > context {
            return Err(LearnError::OutOfRange {
                what: "tokens of a sequence",
                expected: format!("at most {context}"),
                actual: (longest + tokens).to_string(),
            });
        }
        let rope = match starts.as_slice() {
            [start] => self.rope.range(*start, tokens)?,
            starts => {
                let first = Tensor::f_from_slice(starts)?.f_to(ids.device())?.f_unsqueeze(1)?;
                let next = Tensor::f_arange(tokens, (Kind::Int64, ids.device()))?;
                self.rope.at(&first.f_add(&next)?)?
            }
        };
        let x = Tensor::f_embedding(&self.embed, ids, -1, false, false)?;
        Ok((x.f_to_kind(Kind::Float)?, rope.in_kind(self.kind)?))
    }
}

/// What a sequence's next token needs of those before it.
#[derive(Debug, Default)]
pub struct SequenceCache {
    layers: Vec<LayerCache>,
    tokens: i64,
}

impl SequenceCache {
    /// What it holds of one sequence, for a [`Decoder`].
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn row(&self) -> Result<RowCache, LearnError> {
        let layers = self.layers.iter().map(LayerCache::decoder).collect::<Result<_, _>>()?;
        Ok(RowCache { layers, tokens: usize::try_from(self.tokens).unwrap_or(usize::MAX) })
    }

    /// Positions that are taken, what stands in front included.
    pub fn tokens(&self) -> i64 {
        self.tokens
    }
}

/// Puts `[n, d]` in front of each row of `[rows, tokens, d]`.
fn before(front: &Tensor, x: &Tensor, rows: i64) -> Result<Tensor, LearnError> {
    let front = front.f_to_kind(x.kind())?.f_unsqueeze(0)?.f_expand([rows, -1, -1], false)?;
    Ok(Tensor::f_cat(&[&front, x], 1)?)
}

/// Puts this block's prompts where those of the block before stood.
fn replace_front(prompts: &Tensor, x: &Tensor) -> Result<Tensor, LearnError> {
    let (rows, all, _) = x.size3()?;
    let count = first_size(prompts);
    before(prompts, &x.f_narrow(1, count, all - count)?, rows)
}

/// Added to the scores: 0 where a token may look (itself, what is before it in its own text, all that
/// stands in front), else minus infinity. `[rows, 1, front + tokens, prefix + front + tokens]`.
fn text_mask(segments: &Tensor, front: i64, prefix: i64) -> Result<Tensor, LearnError> {
    let _guard = tch::no_grad_guard();
    let (rows, tokens) = segments.size2()?;
    let device = segments.device();
    let same = segments.f_unsqueeze(2)?.f_eq_tensor(&segments.f_unsqueeze(1)?)?.f_tril(0)?;
    let mut allowed = same;
    if front > 0 {
        let none = Tensor::f_zeros([rows, front, tokens], (Kind::Bool, device))?;
        allowed = Tensor::f_cat(&[none, allowed], 1)?;
        let own = Tensor::f_ones([front, front], (Kind::Bool, device))?.f_tril(0)?;
        let below = Tensor::f_ones([tokens, front], (Kind::Bool, device))?;
        let left = Tensor::f_cat(&[own, below], 0)?.f_unsqueeze(0)?;
        allowed = Tensor::f_cat(&[left.f_expand([rows, -1, -1], false)?, allowed], 2)?;
    }
    if prefix > 0 {
        let all = Tensor::f_ones([rows, front + tokens, prefix], (Kind::Bool, device))?;
        allowed = Tensor::f_cat(&[all, allowed], 2)?;
    }
    let shape = [rows, 1, front + tokens, prefix + front + tokens];
    let zeros = Tensor::f_zeros(shape, (Kind::Float, device))?;
    Ok(zeros.f_masked_fill(&allowed.f_logical_not()?.f_unsqueeze(1)?, f64::NEG_INFINITY)?)
}

fn first_size(t: &Tensor) -> i64 {
    t.size().first().copied().unwrap_or_default()
}

const MAX_VOCAB: u32 = 1 << 20;
const MAX_WIDTH: u32 = 1 << 14;
const MAX_LAYERS: u32 = 256;
const MAX_CONTEXT: u32 = 1 << 18;
