//! Cross-entropy over a large vocabulary in chunks: the logits of all tokens are never in memory.
//!
//! ```text
//! hidden [n, d] -- a chunk of rows --> logits [c, vocab] -> loss, and d loss / d hidden at once
//! ```
//! The gradient with respect to the hidden states is `(softmax - one hot) W / n`: it is worked out with
//! the loss, while the chunk's logits are still there, so that the backward pass never needs them. That
//! holds while the head itself is frozen.
//!
//! A teacher of some words and a rest ([`Taught`]) is learned from in the same chunks. With q the model's shares, t the
//! teacher's and r its rest, the loss of a place is `-sum t ln q - r ln(q of all others)`, and its gradient with respect to
//! the logits is `q - t` where a word is named, `q - r q / (q of all others)` elsewhere: nothing at all where q is t.

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

/// What a teacher says at places with a target.
#[derive(Debug)]
pub struct Taught {
    /// Words that it names, `[n, k]`, i64; not all there are.
    pub ids: Tensor,
    /// Their shares, `[n, k]`; 0 for a word that comes a second time.
    pub shares: Tensor,
    /// Share of all other words together, `[n, 1]`.
    pub rest: Tensor,
    /// Weight of the teacher at each place, `[n, 1]`; 0 where it isn't listened to.
    pub weight: Tensor,
    /// Weight of the target itself at all places.
    pub alpha: f64,
}

impl Taught {
    /// `alpha CE(target) + weight CE(teacher)` at each place, from logarithms of the model's shares: `[n]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when shapes differ.
    pub fn nats(&self, log_shares: &Tensor, targets: &Tensor) -> Result<Tensor, LearnError> {
        let own = log_shares.f_gather(1, &targets.f_unsqueeze(1)?, false)?;
        let named = log_shares.f_gather(1, &self.ids, false)?.f_mul(&self.shares)?;
        let named = named.f_sum_dim_intlist([-1_i64].as_slice(), true, Kind::Float)?;
        let rest = self.others(log_shares)?.f_logsumexp([-1_i64].as_slice(), true)?;
        let taught = named.f_add(&rest.f_mul(&self.rest)?)?.f_mul(&self.weight)?;
        Ok(own.f_mul_scalar(self.alpha)?.f_add(&taught)?.f_neg()?.f_squeeze_dim(1)?)
    }

    /// Gradient of [`Taught::nats`] with respect to the logits, `[n, vocab]`.
    fn gradient(&self, log_shares: &Tensor, targets: &Tensor) -> Result<Tensor, LearnError> {
        let both = self.weight.f_add_scalar(self.alpha)?;
        // In place where it goes: no more chunks at a time than the memory budget counts.
        let mut gradient = log_shares.f_exp()?;
        let _ = gradient.f_mul_(&both)?;
        let mut others = self.others(log_shares)?;
        let all = others.f_logsumexp([-1_i64].as_slice(), true)?;
        let _ = others.f_sub_(&all)?;
        let _ = others.f_exp_()?;
        let _ = others.f_mul_(&self.rest.f_mul(&self.weight)?)?;
        let _ = gradient.f_sub_(&others)?;
        let named = self.shares.f_mul(&self.weight)?.f_neg()?;
        let _ = gradient.f_scatter_add_(1, &self.ids, &named)?;
        let own = Tensor::f_full_like(&both, -self.alpha)?;
        let _ = gradient.f_scatter_add_(1, &targets.f_unsqueeze(1)?, &own)?;
        Ok(gradient)
    }

    /// The logarithms without those of words that are named.
    fn others(&self, log_shares: &Tensor) -> Result<Tensor, LearnError> {
        Ok(log_shares.f_scatter_value(1, &self.ids, f64::NEG_INFINITY)?)
    }

    fn narrow(&self, start: i64, len: i64) -> Result<Self, LearnError> {
        let part = |whole: &Tensor| whole.f_narrow(0, start, len);
        let (ids, shares) = (part(&self.ids)?, part(&self.shares)?);
        let (rest, weight) = (part(&self.rest)?, part(&self.weight)?);
        Ok(Self { ids, shares, rest, weight, alpha: self.alpha })
    }
}

/// As [`head_loss`], with a teacher.
///
/// # Errors
/// [`LearnError::Engine`] when shapes differ.
pub fn taught_loss(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    taught: &Taught,
    divisor: f64,
) -> Result<HeadLoss, LearnError> {
    let _guard = tch::no_grad_guard();
    let hidden = hidden.f_detach()?.f_to_kind(head.kind())?;
    let (rows, _) = hidden.size2()?;
    let (mut sum, mut gradients) = (0.0, Vec::new());
    let mut start = 0;
    while start < rows {
        let len = CHUNK.min(rows - start);
        let (target, taught) = (targets.f_narrow(0, start, len)?, taught.narrow(start, len)?);
        let shares = log_shares(&hidden.f_narrow(0, start, len)?, head)?;
        sum += taught.nats(&shares, &target)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        let gradient = taught.gradient(&shares, &target)?.f_to_kind(head.kind())?;
        let gradient = gradient.f_matmul(head)?.f_to_kind(Kind::Float)?;
        gradients.push(gradient.f_div_scalar(divisor)?);
        start += len;
    }
    Ok(HeadLoss { sum, gradient: Tensor::f_cat(&gradients, 0)? })
}

/// Logarithms of the model's shares at some places, `[vocab]` each, in turn; a chunk of them is in memory.
///
/// # Errors
/// [`LearnError::Engine`] when shapes differ, and what `each` says.
pub fn each_place(
    hidden: &Tensor,
    head: &Tensor,
    each: &mut dyn FnMut(&[f32]) -> Result<(), LearnError>,
) -> Result<(), LearnError> {
    let _guard = tch::no_grad_guard();
    let hidden = hidden.f_detach()?.f_to_kind(head.kind())?;
    let ((rows, _), (vocab, _)) = (hidden.size2()?, head.size2()?);
    let vocab = usize::try_from(vocab).unwrap_or(usize::MAX);
    let mut start = 0;
    while start < rows {
        let len = CHUNK.min(rows - start);
        let shares = super::values(&log_shares(&hidden.f_narrow(0, start, len)?, head)?)?;
        shares.chunks_exact(vocab).try_for_each(&mut *each)?;
        start += len;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::{tensor, values};

    fn hidden() -> Tensor {
        let values: Vec<f32> = (0..6_u8).map(|i| f32::from(i) * 0.3 - 0.7).collect();
        tensor(&values, &[2, 3]).unwrap()
    }

    fn head() -> Tensor {
        let values: Vec<f32> = (0..21_u8).map(|i| (f32::from(i) * 0.9).cos()).collect();
        tensor(&values, &[7, 3]).unwrap()
    }

    fn taught(alpha: f64, weight: f32) -> Taught {
        Taught {
            ids: Tensor::from_slice(&[1_i64, 4, 2, 0, 3, 6]).reshape([2, 3]),
            shares: tensor(&[0.5, 0.2, 0.0, 0.4, 0.3, 0.1], &[2, 3]).unwrap(),
            rest: tensor(&[0.3, 0.2], &[2, 1]).unwrap(),
            weight: tensor(&[weight; 2], &[2, 1]).unwrap(),
            alpha,
        }
    }

    fn near(found: &Tensor, expected: &[f32]) -> bool {
        let found = values(found).unwrap();
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-5)
    }

    #[test]
    fn loss_and_gradient_with_a_teacher_are_those_of_another_program() {
        // PyTorch's autograd in f64, of the loss as the module writes it.
        let rows: [(f64, f32, f64, [f32; 6]); 3] = [
            (
                0.9,
                0.1,
                4.944_098_5,
                [-0.460_536, -0.627_124, -0.319_117, 0.453_699, 0.317_565, -0.058_895],
            ),
            (
                0.0,
                1.0,
                3.357_864_9,
                [0.079_492, 0.020_924, -0.053_479, -0.066_399, 0.199_076, 0.313_893],
            ),
            (
                0.25,
                0.75,
                3.798_485_4,
                [-0.070_516, -0.159_089, -0.127_268, 0.078_073, 0.231_99, 0.210_341],
            ),
        ];
        let targets = Tensor::from_slice(&[2_i64, 6]);
        for (alpha, weight, sum, gradient) in rows {
            let taught = taught(alpha, weight);
            let loss = taught_loss(&hidden(), &head(), &targets, &taught, 2.0).unwrap();
            assert!((loss.sum - sum).abs() < 1e-5, "{alpha}: {}", loss.sum);
            assert!(near(&loss.gradient, &gradient), "{alpha}: {:?}", values(&loss.gradient));
            // And by libtorch's own derivative of what it sums.
            let free = hidden().set_requires_grad(true);
            let log = free.linear(&head(), None::<&Tensor>).log_softmax(-1, Kind::Float);
            (taught.nats(&log, &targets).unwrap().sum(Kind::Float) / 2.0).backward();
            assert!(near(&free.grad(), &gradient), "{alpha}");
        }
    }

    #[test]
    fn a_teacher_with_no_weight_leaves_cross_entropy_and_a_teacher_like_the_model_leaves_nothing() {
        let targets = Tensor::from_slice(&[2_i64, 6]);
        let plain = head_loss(&hidden(), &head(), &targets, 2.0).unwrap();
        let alone = taught_loss(&hidden(), &head(), &targets, &taught(1.0, 0.0), 2.0).unwrap();
        assert!((alone.sum - plain.sum).abs() < 1e-5);
        assert!(near(&alone.gradient, &values(&plain.gradient).unwrap()));
        // It hears its own three likeliest words, and how much it left to the others.
        let own = log_shares(&hidden(), &head()).unwrap().exp();
        let (shares, ids) = own.topk(3, -1, true, true);
        let rest = shares.sum_dim_intlist([-1_i64].as_slice(), true, Kind::Float).neg() + 1.0;
        let same = |rest: Tensor, shares: &Tensor| {
            let (ids, shares) = (ids.shallow_clone(), shares.shallow_clone());
            let taught = Taught { ids, shares, rest, ..taught(0.0, 1.0) };
            taught_loss(&hidden(), &head(), &targets, &taught, 2.0).unwrap().gradient
        };
        assert!(near(&same(rest.shallow_clone(), &shares), &[0.0; 6]));
        // With the rest given to the words that are named, it would be moved by what it says itself.
        let sharper = &shares / (rest.neg() + 1.0);
        assert!(!near(&same(rest.zeros_like(), &sharper), &[0.0; 6]));
    }
}
