//! A block with the tokens that an adapter puts in front of its input.

use tch::Tensor;

use super::attention::Pass;
use super::parts::Parts;
use super::transformer::{Block, BlockSpec};
use crate::learn::LearnError;

/// A block that sees all tokens, and the prompts in front of them if it has some (VPT-deep,
/// arXiv:2203.12119): what it makes of the prompts goes no further.
#[derive(Debug)]
pub(super) struct Prompted {
    block: Block,
    /// `[n, d]`
    prompts: Option<Tensor>,
}

impl Prompted {
    /// Takes the block under `path` and `<path>.prompts`, if the adapter has them.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a tensor is absent or has another shape.
    pub(super) fn new(parts: &Parts<'_>, path: &str, spec: &BlockSpec) -> Result<Self, LearnError> {
        let prompts = parts.added(&format!("{path}.prompts"));
        Ok(Self { block: Block::new(parts, path, spec)?, prompts })
    }

    /// `[batch, tokens, d]` to the same shape.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input has another shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let Some(prompts) = &self.prompts else {
            return self.block.forward(x, &mut Pass::default());
        };
        let (n, _) = prompts.size2()?;
        let (batch, tokens, _) = x.size3()?;
        let front = prompts.f_unsqueeze(0)?.f_expand([batch, -1, -1], false)?;
        let y = self.block.forward(&Tensor::f_cat(&[&front, x], 1)?, &mut Pass::default())?;
        Ok(y.f_narrow(1, n, tokens)?)
    }
}

/// One block after the other.
pub(super) fn through(blocks: &[Prompted], mut x: Tensor) -> Result<Tensor, LearnError> {
    for block in blocks {
        x = block.forward(&x)?;
    }
    Ok(x)
}
