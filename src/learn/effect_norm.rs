//! How far an adapter's effect is from that of another: the length of what a member has learned.

use super::lora_product::{Pair, Parts, rank_weight};
use super::{LearnError, TensorSet};

/// Euclidean norm of what `adapter` does less what `base` does: over the products
/// `(alpha / r) B A` of pairs, and over the values of all other tensors.
///
/// A factor by itself says nothing (twice B with half of A is the same adapter), so lengths are
/// taken of products. No product is formed: with the factors of both side by side,
/// `|| L R^T ||^2 = sum (L^T L) * (R^T R)`.
///
/// # Shapes
/// Ranks may differ; all else is as in [`super::LoraAverage`].
/// # Determinism
/// Sums in f64 in one order.
/// # Errors
/// [`LearnError::LayoutMismatch`] when the sets don't fit each other, [`LearnError::NotFinite`] when
/// a value isn't.
/// # Examples
/// ```
/// use gaisnet::learn::{Tensor, TensorSet, effect_norm};
/// let set = |b: f32, a: f32, bias: f32| TensorSet::new(vec![
///     Tensor { name: "q.lora_a".into(), shape: vec![1, 1], data: vec![a] },
///     Tensor { name: "q.lora_b".into(), shape: vec![1, 1], data: vec![b] },
///     Tensor { name: "head.bias".into(), shape: vec![1], data: vec![bias] },
/// ]);
/// // products 6 and 2, scaled by 1; biases 3 and 0: a triangle of 4 and 3
/// assert_eq!(effect_norm(1.0, &set(2.0, 3.0, 3.0)?, &set(1.0, 2.0, 0.0)?)?, 5.0);
/// // the same adapter, written otherwise
/// assert_eq!(effect_norm(1.0, &set(4.0, 0.5, 0.0)?, &set(1.0, 2.0, 0.0)?)?, 0.0);
/// # Ok::<(), gaisnet::learn::LearnError>(())
/// ```
pub fn effect_norm(alpha: f64, adapter: &TensorSet, base: &TensorSet) -> Result<f64, LearnError> {
    let (trained, started) = (Parts::of(adapter)?, Parts::of(base)?);
    trained.check_fits(&started)?;
    let mut squares = 0.0;
    for (own, before) in trained.dense.iter().zip(&started.dense) {
        let values = own.data.iter().zip(&before.data);
        squares += values.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>();
    }
    for (own, before) in trained.pairs.values().zip(started.pairs.values()) {
        squares += product_distance(alpha, own, before);
    }
    Ok(squares.max(0.0).sqrt())
}

/// Squared Frobenius norm of the difference of two scaled products.
fn product_distance(alpha: f64, own: &Pair<'_>, before: &Pair<'_>) -> f64 {
    let (plus, minus) = (alpha / rank_weight(own.rank), -alpha / rank_weight(before.rank));
    let n = own.rank + before.rank;
    let mut left = vec![0.0; n * n];
    let mut row = Vec::with_capacity(n);
    for (b, b_before) in own.b.chunks(own.rank).zip(before.b.chunks(before.rank)) {
        row.clear();
        row.extend(b.iter().map(|x| plus * f64::from(*x)));
        row.extend(b_before.iter().map(|x| minus * f64::from(*x)));
        for (sums, x) in left.chunks_mut(n).zip(&row) {
            sums.iter_mut().zip(&row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let columns: Vec<&[f32]> = own.a.chunks(own.k).chain(before.a.chunks(before.k)).collect();
    let mut total = 0.0;
    for (sums, x) in left.chunks(n).zip(&columns) {
        for (sum, y) in sums.iter().zip(&columns) {
            let products = x.iter().zip(*y).map(|(x, y)| f64::from(*x) * f64::from(*y));
            total += sum * products.sum::<f64>();
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::Tensor;

    fn set(rank: usize, values: &[f32]) -> TensorSet {
        let mut values = values.iter().copied().cycle();
        let mut tensor = |name: &str, shape: [usize; 2]| Tensor {
            name: name.into(),
            shape: shape.to_vec(),
            data: values.by_ref().take(shape[0] * shape[1]).collect(),
        };
        let tensors = vec![
            tensor("q.lora_a", [rank, 4]),
            tensor("q.lora_b", [3, rank]),
            tensor("head.bias", [1, 2]),
        ];
        TensorSet::new(tensors).unwrap()
    }

    /// The definition, with the product written out.
    fn by_hand(alpha: f64, x: &TensorSet, y: &TensorSet) -> f64 {
        let product = |set: &TensorSet, row: usize, column: usize| {
            let (a, b) = (set.get("q.lora_a").unwrap(), set.get("q.lora_b").unwrap());
            let rank = a.shape[0];
            let terms = (0..rank)
                .map(|j| f64::from(b.data[row * rank + j]) * f64::from(a.data[j * 4 + column]));
            alpha / rank_weight(rank) * terms.sum::<f64>()
        };
        let mut squares = 0.0;
        for row in 0..3 {
            for column in 0..4 {
                squares += (product(x, row, column) - product(y, row, column)).powi(2);
            }
        }
        let bias = |set: &TensorSet| set.get("head.bias").unwrap().data.clone();
        let biases = bias(x).into_iter().zip(bias(y));
        squares += biases.map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        squares.sqrt()
    }

    #[test]
    fn sets_that_do_not_fit_are_refused() {
        let wrong = TensorSet::new(vec![]).unwrap();
        assert_eq!(
            effect_norm(1.0, &set(1, &[1.0]), &wrong).unwrap_err().kind(),
            "layout_mismatch"
        );
    }

    proptest! {
        #[test]
        fn it_is_the_norm_of_the_difference_of_products_whatever_the_ranks(
            x in prop::collection::vec(-2.0_f32..2.0, 30),
            y in prop::collection::vec(-2.0_f32..2.0, 30),
            ranks in (1_usize..4, 1_usize..4),
        ) {
            let (x, y) = (set(ranks.0, &x), set(ranks.1, &y));
            let (fast, slow) = (effect_norm(8.0, &x, &y).unwrap(), by_hand(8.0, &x, &y));
            prop_assert!((fast - slow).abs() <= 1e-6 * (1.0 + slow), "{fast} {slow}");
            prop_assert!(effect_norm(8.0, &x, &x).unwrap() < 1e-5);
        }
    }
}
