//! Normalisation over the last axis: layer norm and root mean square norm.

use tch::{Kind, Tensor};

use super::decoder::Gain;
use super::parts::Parts;
use super::values;
use crate::learn::LearnError;

/// Which normalisation a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Zero mean, unit variance, weight and bias.
    Layer,
    /// Unit mean square, weight only (arXiv:1910.07467).
    Rms,
}

/// A normalisation layer; it computes in f32 whatever the base's kind.
#[derive(Debug)]
pub struct Norm {
    weight: Tensor,
    /// Layer norm has one, root mean square norm doesn't.
    bias: Option<Tensor>,
    width: i64,
    eps: f64,
}

impl Norm {
    /// Takes `<path>.weight` and, for a layer norm, `<path>.bias`, `[width]`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(
        parts: &Parts<'_>,
        path: &str,
        width: u32,
        kind: NormKind,
        eps: f64,
    ) -> Result<Self, LearnError> {
        let width = i64::from(width);
        let bias = match kind {
            NormKind::Layer => Some(parts.get(&format!("{path}.bias"), &[width])?),
            NormKind::Rms => None,
        };
        Ok(Self { weight: parts.get(&format!("{path}.weight"), &[width])?, bias, width, eps })
    }

    /// The same on slices; none for a layer norm.
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon fits an f32")]
    pub(super) fn decoder(&self) -> Result<Option<Gain>, LearnError> {
        if self.bias.is_some() {
            return Ok(None);
        }
        Ok(Some(Gain { weight: values(&self.weight)?, eps: self.eps as f32 }))
    }

    /// Keeps the shape.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input's width differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let x = x.f_to_kind(Kind::Float)?;
        match &self.bias {
            Some(bias) => {
                Ok(x.f_layer_norm([self.width], Some(&self.weight), Some(bias), self.eps, false)?)
            }
            None => Ok(x.f_rms_norm([self.width], Some(&self.weight), self.eps)?),
        }
    }
}
