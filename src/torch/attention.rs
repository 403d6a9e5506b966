//! Multi-head self-attention: grouped keys and values, rotary positions, masks, a cache.

use tch::{Kind, Tensor};

use super::decoder::DecoderAttention;
use super::kv_cache::LayerCache;
use super::linear::{Fused, Linear};
use super::parts::Parts;
use super::rope::Rope;
use super::transformer::BlockSpec;
use crate::learn::LearnError;

/// What a forward pass tells every attention layer.
#[derive(Debug, Default)]
pub struct Pass<'a> {
    /// Positions, for models that turn queries and keys.
    pub rope: Option<&'a Rope>,
    /// Added to the scores, `[batch or 1, 1, tokens, keys]`; without it `causal` decides.
    pub mask: Option<&'a Tensor>,
    /// A token sees itself and those before it only.
    pub causal: bool,
    /// Keys and values of the tokens before these, one cache a row; each gets its row's as well. Empty
    /// where rows are whole texts.
    pub caches: Vec<&'a mut LayerCache>,
}

/// See the module.
#[derive(Debug)]
pub struct Attention {
    qkv: Fused,
    out: Linear,
    heads: i64,
    kv_heads: i64,
    head_width: i64,
    /// Keys and values that stand before all tokens, `[n, kv_width]` each (arXiv:2101.00190).
    prefix: Option<(Tensor, Tensor)>,
}

impl Attention {
    /// Takes `<path>.{q,k,v,o}`, and `<path>.prefix_{k,v}` where an adapter has them.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(parts: &Parts<'_>, path: &str, spec: &BlockSpec) -> Result<Self, LearnError> {
        let (d, kv) = (spec.d_model, spec.kv_width());
        let layers = [("q", d), ("k", kv), ("v", kv)];
        let prefix = |leaf: &str| parts.added(&format!("{path}.{leaf}"));
        Ok(Self {
            qkv: Fused::new(parts, path, "qkv", &layers, d)?,
            out: Linear::new(parts, &format!("{path}.o"), d, d)?,
            heads: spec.heads.into(),
            kv_heads: spec.kv_heads.into(),
            head_width: spec.head_width().into(),
            prefix: prefix("prefix_k").zip(prefix("prefix_v")),
        })
    }

    /// The same on slices, for tokens that come after others.
    pub(super) fn decoder(&self) -> Result<DecoderAttention, LearnError> {
        let size = |n: i64| usize::try_from(n).unwrap_or_default();
        Ok(DecoderAttention {
            qkv: self.qkv.decoder()?,
            out: self.out.decoder()?,
            heads: size(self.heads),
            kv_heads: size(self.kv_heads),
            head_width: size(self.head_width),
        })
    }

    /// `[batch, tokens, d]` to the same shape.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when shapes differ.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, LearnError> {
        let (batch, tokens, _) = x.size3()?;
        let all = self.qkv.forward(x)?;
        let [query, key, value] = all.as_slice() else {
            let message = "queries, keys and values didn't come as three".into();
            return Err(LearnError::Engine { engine: "libtorch", message });
        };
        let split = |t: &Tensor, heads| -> Result<Tensor, LearnError> {
            Ok(t.f_reshape([batch, tokens, heads, self.head_width])?.f_transpose(1, 2)?)
        };
        let mut query = split(query, self.heads)?;
        let (mut key, mut value) = (split(key, self.kv_heads)?, split(value, self.kv_heads)?);
        if let Some(rope) = pass.rope {
            query = rope.turn(&query)?;
            key = rope.turn(&key)?;
        }
        let fresh = pass.caches.iter().all(|cache| cache.is_empty());
        if let (Some((front_key, front_value)), true) = (&self.prefix, fresh) {
            key = self.behind(front_key, &key)?;
            value = self.behind(front_value, &value)?;
        }
        let mixed = match pass.caches.as_mut_slice() {
            [] => self.mix(&query, &key, &value, pass)?,
            [cache] => {
                let (key, value) = cache.append(&key, &value)?;
                self.mix(&query, &key, &value, pass)?
            }
            caches => {
                let mut rows = Vec::with_capacity(caches.len());
                for (row, cache) in (0..).zip(caches) {
                    let own = |t: &Tensor| t.f_narrow(0, row, 1);
                    let (key, value) = cache.append(&own(&key)?, &own(&value)?)?;
                    rows.push((own(&query)?, key, value));
                }
                let mix = |(q, k, v): &(Tensor, Tensor, Tensor)| self.mix(q, k, v, pass);
                Tensor::f_cat(&rows.iter().map(mix).collect::<Result<Vec<_>, _>>()?, 0)?
            }
        };
        let joined = mixed.f_transpose(1, 2)?.f_reshape([batch, tokens, -1])?;
        self.out.forward(&joined)
    }

    /// Puts an adapter's keys (or values) before those of the tokens.
    fn behind(&self, front: &Tensor, rest: &Tensor) -> Result<Tensor, LearnError> {
        let batch = rest.size().first().copied().unwrap_or(1);
        let shape = [1, -1, self.kv_heads, self.head_width];
        let front = front.f_to_kind(rest.kind())?.f_reshape(shape)?.f_transpose(1, 2)?;
        Ok(Tensor::f_cat(&[&front.f_expand([batch, -1, -1, -1], false)?, rest], 2)?)
    }

    fn mix(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor, LearnError> {
        let (_, _, tokens, _) = query.size4()?;
        // A single token comes after all keys.
        let causal = pass.causal && tokens > 1;
        let mask = match pass.mask {
            Some(mask) => Some(mask.f_to_kind(query.kind())?),
            None => mask_of_late_tokens(query, key, causal)?,
        };
        // One query a sequence: the heads of a group share their keys without a copy.
        let shared = tokens == 1 && self.heads != self.kv_heads;
        let wide = |t: &Tensor| if shared { Ok(t.shallow_clone()) } else { self.widen(t) };
        Ok(Tensor::f_scaled_dot_product_attention(
            query,
            &wide(key)?,
            &wide(value)?,
            mask.as_ref(),
            0.0,
            causal && mask.is_none(),
            None,
            shared,
        )?)
    }

    /// Repeats keys (or values) for the heads of their group.
    fn widen(&self, t: &Tensor) -> Result<Tensor, LearnError> {
        let group = self.heads / self.kv_heads;
        if group == 1 {
            return Ok(t.shallow_clone());
        }
        let (batch, _, keys, width) = t.size4()?;
        let wide = t.f_unsqueeze(2)?.f_expand([batch, self.kv_heads, group, keys, width], false)?;
        Ok(wide.f_reshape([batch, self.heads, keys, width])?)
    }
}

/// Where keys stand before the first token, "causal" has to be spelled out.
fn mask_of_late_tokens(
    query: &Tensor,
    key: &Tensor,
    causal: bool,
) -> Result<Option<Tensor>, LearnError> {
    let (_, _, tokens, _) = query.size4()?;
    let (_, _, keys, _) = key.size4()?;
    if !causal || keys == tokens {
        return Ok(None);
    }
    let later = Tensor::f_ones([tokens, keys], (Kind::Bool, query.device()))?;
    let later = later.f_triu(keys - tokens + 1)?;
    let zeros = Tensor::f_zeros([tokens, keys], (query.kind(), query.device()))?;
    Ok(Some(zeros.f_masked_fill(&later, f64::NEG_INFINITY)?))
}
