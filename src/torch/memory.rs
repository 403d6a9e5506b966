//! How much memory a training step takes, and how it is brought under a cap.

use super::adapter::AdapterPlan;
use super::language::{LanguageBase, Precision};
use crate::learn::LearnError;

/// What a training step needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Base, adapter, optimiser, one chunk of logits, libtorch itself.
    pub fixed: u64,
    /// What one sequence's forward pass keeps.
    pub activations: u64,
    /// What one sequence keeps when blocks are computed again: their inputs, and one block's inside.
    pub by_blocks: u64,
}

/// How a batch goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Sequences at a time.
    pub rows: usize,
    /// Blocks are computed again for the backward pass.
    pub a_block_at_a_time: bool,
}

impl Budget {
    /// Estimates from the sizes, for sequences of `tokens` tokens.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn of(base: &LanguageBase, plan: &AdapterPlan, tokens: usize) -> Result<Self, LearnError> {
        let config = base.config();
        let spec = config.spec();
        let wide = match base.precision() {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        };
        let (d, f, kv) =
            (u64::from(config.d_model), u64::from(config.d_ff), u64::from(spec.kv_width()));
        let (layers, tokens) = (u64::from(config.layers), tokens as u64);
        // Kept a token and block: normed inputs and their statistics, queries, keys, values before and
        // behind the turn, the mixed heads; gate, up, silu(gate), their product.
        let inside = (2 * d + 2 * (2 * d + 2 * kv)) * wide + 4 * 4 * d + 4 * f * wide;
        let vocab = u64::from(config.vocab);
        let weights: u64 = base.weights().num_bytes();
        let trains = plan.num_values().unsigned_abs() * 4;
        let optimiser = trains * 8;
        let logits = 3 * 128 * vocab * 4;
        Ok(Self {
            fixed: weights + optimiser + logits + ENGINE,
            activations: tokens * layers * inside,
            by_blocks: tokens * (layers * d * 4 + inside),
        })
    }

    /// Chooses how `rows` sequences go through under a cap in MiB.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when not even one sequence fits, with what it needs.
    pub fn plan(&self, rows: usize, max_memory_mib: Option<u32>) -> Result<Plan, LearnError> {
        let Some(cap_mib) = max_memory_mib else {
            return Ok(Plan { rows, a_block_at_a_time: false });
        };
        let cap = u64::from(cap_mib) << 20;
        let room = cap.saturating_sub(self.fixed);
        for (each, a_block_at_a_time) in [(self.activations, false), (self.by_blocks, true)] {
            let fitting = usize::try_from(room / each.max(1)).unwrap_or(usize::MAX);
            if fitting > 0 {
                return Ok(Plan { rows: rows.min(fitting), a_block_at_a_time });
            }
        }
        Err(LearnError::OutOfRange {
            what: "max_memory_mib",
            expected: format!(
                "at least {} for this model and sequence",
                (self.fixed + self.by_blocks).div_ceil(1 << 20)
            ),
            actual: cap_mib.to_string(),
        })
    }
}

/// libtorch, its threads and its working memory.
const ENGINE: u64 = 200 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// 100 MiB in any case, 30 a sequence, or 10 when blocks are computed again.
    const BUDGET: Budget = Budget { fixed: 100 * MIB, activations: 30 * MIB, by_blocks: 10 * MIB };

    #[test]
    fn a_batch_goes_through_in_parts_then_block_by_block_as_memory_gets_short() {
        let plan = |cap| BUDGET.plan(4, cap).map(|p| (p.rows, p.a_block_at_a_time));
        assert_eq!(plan(None), Ok((4, false)));
        assert_eq!(plan(Some(220)), Ok((4, false)));
        assert_eq!(plan(Some(219)), Ok((3, false)));
        assert_eq!(plan(Some(130)), Ok((1, false)));
        assert_eq!(plan(Some(129)), Ok((2, true)));
        assert_eq!(plan(Some(110)), Ok((1, true)));
    }

    #[test]
    fn a_cap_that_is_too_small_is_refused_with_what_would_do() {
        let text = BUDGET.plan(4, Some(109)).unwrap_err().to_string();
        assert!(text.contains("at least 110") && text.ends_with("got 109"), "{text}");
        assert!(BUDGET.plan(4, Some(110)).is_ok());
    }
}
