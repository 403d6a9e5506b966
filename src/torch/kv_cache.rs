//! Keys and values of a sequence's tokens, so that a new token costs one token.

use tch::Tensor;

use super::decoder::HeadCache;
use crate::learn::LearnError;

/// One layer's keys and values of one batch row, grown in steps.
#[derive(Debug, Default)]
pub struct LayerCache {
    room: Option<(Tensor, Tensor)>,
    len: i64,
}

impl LayerCache {
    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys and values of each head of the first row, for a decoder.
    pub(super) fn decoder(&self) -> Result<Vec<HeadCache>, LearnError> {
        let Some((keys, values)) = &self.room else { return Ok(Vec::new()) };
        let (_, heads, _, _) = keys.size4()?;
        let of = |all: &Tensor, head: i64| -> Result<Vec<f32>, LearnError> {
            super::values(&all.f_narrow(0, 0, 1)?.f_narrow(1, head, 1)?.f_narrow(2, 0, self.len)?)
        };
        (0..heads)
            .map(|head| Ok(HeadCache { keys: of(keys, head)?, values: of(values, head)? }))
            .collect()
    }

    /// Adds keys and values `[1, kv_heads, tokens, head_width]`; gives all so far.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the shapes differ or memory is short.
    pub fn append(&mut self, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor), LearnError> {
        let (batch, heads, tokens, width) = key.size4()?;
        let len = self.len + tokens;
        let capacity = self.room.as_ref().map_or(0, |(k, _)| k.size().get(2).copied().unwrap_or(0));
        if len > capacity {
            let wanted = len.max(capacity * 2).max(STEP);
            let grow = |old: Option<&Tensor>, like: &Tensor| -> Result<Tensor, LearnError> {
                let options = (like.kind(), like.device());
                let new = Tensor::f_empty([batch, heads, wanted, width], options)?;
                if let Some(old) = old {
                    new.f_narrow(2, 0, self.len)?.f_copy_(&old.f_narrow(2, 0, self.len)?)?;
                }
                Ok(new)
            };
            let old = self.room.take();
            let keys = grow(old.as_ref().map(|(k, _)| k), key)?;
            let values = grow(old.as_ref().map(|(_, v)| v), value)?;
            self.room = Some((keys, values));
        }
        let Some((keys, values)) = &self.room else {
            let message = "the cache has no room".into();
            return Err(LearnError::Engine { engine: "libtorch", message });
        };
        keys.f_narrow(2, self.len, tokens)?.f_copy_(key)?;
        values.f_narrow(2, self.len, tokens)?.f_copy_(value)?;
        self.len = len;
        Ok((keys.f_narrow(2, 0, len)?, values.f_narrow(2, 0, len)?))
    }
}

/// Tokens of room that a cache begins with.
const STEP: i64 = 64;
