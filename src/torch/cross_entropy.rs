//! Cross-entropy over a large vocabulary in chunks: the logits of all tokens are never in memory.
//!
//! ```text
//! hidden [n, d] -- a chunk of rows --> logits [c, vocab] -> loss, and d loss / d hidden at once
//! ```
//! The gradient with respect to the hidden states is `(softmax - one hot) W / n`: it is worked out with
//! the loss, while the chunk's logits are still there, so that the backward pass never needs them. That
//! holds while the head itself is frozen.

use tch::{Kind, Tensor};

use crate::learn::LearnError;

/// Loss of a batch, and its gradient.
#[derive(Debug)]
pub struct HeadLoss {
    /// Sum over the targets, in nats.
    pub sum: f64,
    /// Gradient of the *mean* loss with respect to the hidden states, `[n, d]`.
    pub gradient: Tensor,
}

/// Cross-entropy of hidden states `[n, d]` with targets `[n]` under a frozen head `[vocab, d]`.
///
/// The gradient is that of `sum / divisor`.
///
/// # Errors
/// [`LearnError::Engine`] when shapes differ.
pub fn head_loss(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    divisor: f64,
) -> Result<HeadLoss, LearnError> {
    let _guard = tch::no_grad_guard();
    let hidden = hidden.f_detach()?.f_to_kind(head.kind())?;
    let (rows, _) = hidden.size2()?;
    let mut sum = 0.0;
    let mut gradients = Vec::new();
    let mut start = 0;
    while start < rows {
        let len = CHUNK.min(rows - start);
        let target = targets.f_narrow(0, start, len)?.f_unsqueeze(1)?;
        let mut shares = log_shares(&hidden.f_narrow(0, start, len)?, head)?;
        sum -= shares.f_gather(1, &target, false)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        let _ = shares.f_exp_()?;
        let minus_one = Tensor::f_full([len, 1], -1.0, (Kind::Float, shares.device()))?;
        let _ = shares.f_scatter_add_(1, &target, &minus_one)?;
        let gradient = shares.f_to_kind(head.kind())?.f_matmul(head)?.f_to_kind(Kind::Float)?;
        gradients.push(gradient.f_div_scalar(divisor)?);
        start += len;
    }
    Ok(HeadLoss { sum, gradient: Tensor::f_cat(&gradients, 0)? })
}

/// Negative log-likelihood of each target, in nats, `[n]`; nothing is kept for a gradient.
///
/// # Errors
/// [`LearnError::Engine`] when shapes differ.
pub fn nats_of(hidden: &Tensor, head: &Tensor, targets: &Tensor) -> Result<Tensor, LearnError> {
    let _guard = tch::no_grad_guard();
    let hidden = hidden.f_detach()?.f_to_kind(head.kind())?;
    let (rows, _) = hidden.size2()?;
    let mut all = Vec::new();
    let mut start = 0;
    while start < rows {
        let len = CHUNK.min(rows - start);
        let target = targets.f_narrow(0, start, len)?.f_unsqueeze(1)?;
        let shares = log_shares(&hidden.f_narrow(0, start, len)?, head)?;
        all.push(shares.f_gather(1, &target, false)?.f_squeeze_dim(1)?.f_neg()?);
        start += len;
    }
    Ok(Tensor::f_cat(&all, 0)?)
}

/// Logarithms of the probabilities `[c, vocab]`, f32.
fn log_shares(hidden: &Tensor, head: &Tensor) -> Result<Tensor, LearnError> {
    let logits = hidden.f_linear(head, None::<&Tensor>)?.f_to_kind(Kind::Float)?;
    Ok(logits.f_log_softmax(-1, Kind::Float)?)
}

/// Rows of logits in memory at a time: 25 MB for 49,152 tokens.
const CHUNK: i64 = 128;
