//! Rotary positions: each pair of a head's values turns by an angle that grows with the position.
//!
//! Half-rotation order, as Hugging Face has it: value i is paired with value i + width/2.
//!
//! # Source
//! Su et al. 2021, arXiv:2104.09864.

use tch::{Kind, Tensor};

use super::decoder::Matrix;
use super::linear::matrix;
use super::tensor;
use crate::learn::LearnError;

/// Cosines and sines of all positions of a context.
#[derive(Debug)]
pub struct RopeTable {
    /// `[context, head_width]`, the first half repeated.
    cos: Tensor,
    /// `[context, head_width]`; the first half negated, for the rotated halves.
    sin: Tensor,
}

/// The rows of a [`RopeTable`] that one forward pass needs, `[tokens, head_width]`.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl RopeTable {
    /// Angles `position * theta^(-2i/width)`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    #[expect(clippy::cast_possible_truncation, reason = "cosines fit an f32")]
    pub fn new(context: u32, head_width: u32, theta: f64) -> Result<Self, LearnError> {
        let half = head_width / 2;
        let mut cos = Vec::with_capacity((context * head_width) as usize);
        let mut sin = Vec::with_capacity((context * head_width) as usize);
        for position in 0..context {
            for sign in [-1.0, 1.0] {
                for i in 0..half {
                    let turn = theta.powf(-2.0 * f64::from(i) / f64::from(head_width));
                    let angle = f64::from(position) * turn;
                    cos.push(angle.cos() as f32);
                    sin.push((sign * angle.sin()) as f32);
                }
            }
        }
        let shape = [i64::from(context), i64::from(head_width)];
        Ok(Self { cos: tensor(&cos, &shape)?, sin: tensor(&sin, &shape)? })
    }

    /// The rows of consecutive positions.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when they go beyond the context.
    pub fn range(&self, start: i64, len: i64) -> Result<Rope, LearnError> {
        Ok(Rope { cos: self.cos.f_narrow(0, start, len)?, sin: self.sin.f_narrow(0, start, len)? })
    }

    /// The rows of any positions `[batch, tokens]`, as `[batch, 1, tokens, head_width]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when one goes beyond the context.
    pub fn at(&self, positions: &Tensor) -> Result<Rope, LearnError> {
        let (batch, tokens) = positions.size2()?;
        let rows = positions.f_reshape([-1])?;
        let shape = [batch, 1, tokens, -1];
        Ok(Rope {
            cos: self.cos.f_index_select(0, &rows)?.f_reshape(shape)?,
            sin: self.sin.f_index_select(0, &rows)?.f_reshape(shape)?,
        })
    }

    /// Cosines and sines for a decoder.
    pub(super) fn decoder(&self) -> Result<(Matrix, Matrix), LearnError> {
        Ok((matrix(&self.cos)?, matrix(&self.sin)?))
    }

    /// Another handle to the same memory.
    pub fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// To another device.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the device has no room.
    pub fn to(&self, device: tch::Device) -> Result<Self, LearnError> {
        Ok(Self { cos: self.cos.f_to(device)?, sin: self.sin.f_to(device)? })
    }
}

impl Rope {
    /// Turns `[.., tokens, head_width]`, which must be of the same kind ([`Rope::in_kind`]).
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the shapes differ.
    pub fn turn(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let half = x.size().last().copied().unwrap_or_default() / 2;
        let swapped = x.f_roll([half], [-1])?;
        Ok(x.f_mul(&self.cos)?.f_addcmul(&swapped, &self.sin)?)
    }

    /// The same in another kind, once for all layers.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn in_kind(&self, kind: Kind) -> Result<Self, LearnError> {
        Ok(Self { cos: self.cos.f_to_kind(kind)?, sin: self.sin.f_to_kind(kind)? })
    }
}
