//! `FedAvg` over LoRA adapters in product space: averages what the adapters do, not how they are
//! written.
//!
//! A LoRA pair `<m>.lora_a` `[r, k]` and `<m>.lora_b` `[d, r]` adds `(alpha / r) B A` to a frozen
//! matrix. The mean of B times the mean of A isn't the mean of the products, so pairs are combined
//! as products and brought back to the wanted rank by a truncated SVD (`factors.rs`); members may
//! have other ranks. Everything else in the set (heads, biases) averages plainly.
//!
//! ```text
//! new = global + sum_i p_i (member_i - base_i)      as products; dense tensors likewise
//! ```
//! A member that trained from the current version has `base_i = global`; with all of them and
//! sum p = 1 both terms cancel, and are left out instead of subtracted.
//!
//! A relay passes its members on as a [`stack`]: still the exact sum, of a higher rank, so that
//! truncation happens once, where the round is owned.
//!
//! Mind: the SVD rotates the basis. Residuals and optimiser moments in factor coordinates are void
//! for the new version ([`super::ErrorFeedback::reset_lora`]).
//!
//! Sources: Bai et al. 2024, arXiv:2402.11505 (`FlexLoRA`); Wang et al. 2024, arXiv:2409.05976
//! (stacking).

use std::collections::BTreeMap;

use super::factors::{Factors, complete_rows};
use super::fedavg::{add_scaled, check_weight};
use super::{LearnError, Tensor, TensorSet, count_weight, narrow};
use crate::ids::NodeId;

/// One member's part of a round.
#[derive(Debug, Clone, Copy)]
pub struct Contribution<'a> {
    /// Weight p, see [`super::weights`]; those of a round sum to 1.
    pub weight: f64,
    /// The whole adapter after training.
    pub adapter: &'a TensorSet,
    /// The adapter that it was trained from: the current one, or an older one when it comes late.
    pub base: &'a TensorSet,
}

/// What a round made.
#[derive(Debug, Clone, PartialEq)]
pub struct Combined {
    /// The new adapter: pairs of the rank asked for, dense tensors as in the global adapter.
    pub adapter: TensorSet,
    /// For each pair `<m>` the share of the product's energy (sum of squared singular values) that
    /// truncation left out, 0 to 1.
    pub discarded_energy: BTreeMap<String, f64>,
}

/// Averages adapters in product space and truncates each pair to `rank`.
///
/// # Shapes
/// Pairs of `global`, members and bases agree in d and k and may differ in rank; all other tensors
/// have the shapes of `global`. The result's pairs are `[rank, k]` and `[d, rank]`:
/// `B = U S / (alpha / rank)`, `A = V^T`. Where the product has a lower rank, B is filled with zeros
/// and A with rows at right angles, the global adapter's first, so that training can use them.
/// # Determinism
/// Sums in f64 in the order of sender ids; the sign of each singular pair is fixed. The same inputs
/// give the same bits.
/// # Errors
/// [`LearnError::NoUpdates`] without contributions, and those of [`LoraAverage`].
/// # Source
/// Bai et al. 2024, arXiv:2402.11505.
/// # Examples
/// ```
/// # use std::collections::BTreeMap;
/// use gaisnet::learn::{Contribution, Tensor, TensorSet, combine};
/// let pair = |b: f32, a: f32| TensorSet::new(vec![
///     Tensor { name: "q.lora_a".into(), shape: vec![1, 1], data: vec![a] },
///     Tensor { name: "q.lora_b".into(), shape: vec![1, 1], data: vec![b] },
/// ]);
/// let (start, one, two) = (pair(0.0, 1.0)?, pair(2.0, 1.0)?, pair(1.0, 4.0)?);
/// let half = |adapter| Contribution { weight: 0.5, adapter, base: &start };
/// let members = BTreeMap::from([("a".parse().unwrap(), half(&one)), ("b".parse().unwrap(), half(&two))]);
/// let new = combine(1.0, 1, &start, &members)?.adapter;
/// // mean of the products 2 * 1 and 1 * 4; the product of the means would be 1.5 * 2.5 = 3.75
/// assert_eq!(new, pair(3.0, 1.0)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn combine(
    alpha: f64,
    rank: usize,
    global: &TensorSet,
    contributions: &BTreeMap<NodeId, Contribution<'_>>,
) -> Result<Combined, LearnError> {
    summed(alpha, global, contributions)?.truncate(rank)
}

/// Combines adapters without truncation, for a relay to pass on as one member's adapter.
///
/// A pair's rank is the sum of its members' ranks while that is at most `cap`; else the pair is
/// truncated to `cap`. Its scaling is `alpha` over its own rank, which B makes up for.
///
/// # Errors
/// As for [`combine`].
/// # Source
/// Wang et al. 2024, arXiv:2409.05976.
pub fn stack(
    alpha: f64,
    cap: usize,
    global: &TensorSet,
    contributions: &BTreeMap<NodeId, Contribution<'_>>,
) -> Result<Combined, LearnError> {
    summed(alpha, global, contributions)?.stack(cap)
}

/// The running sum behind [`combine`] and [`stack`], for members that come from disk one by one.
///
/// Memory doesn't grow with the members: a stack of more than 512 columns is multiplied out where a
/// side of the layer is at most 256 (exact), else cut to its 256 leading columns, and what that
/// costs is part of the discarded energy.
///
/// # Determinism
/// The bits depend on the order of the calls: add in the order of sender ids.
#[derive(Debug, Clone)]
pub struct LoraAverage<'g> {
    alpha: f64,
    global: Parts<'g>,
    global_set: &'g TensorSet,
    /// What is left of the global term: 1 less the weights of those who trained from it.
    of_global: f64,
    dense: Vec<Vec<f64>>,
    products: Vec<Factors>,
    added: usize,
}

impl<'g> LoraAverage<'g> {
    /// Starts a round on the current adapter.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] unless `alpha` is positive and finite;
    /// [`LearnError::LayoutMismatch`] when a pair isn't one, [`LearnError::NotFinite`] when a value
    /// isn't.
    pub fn new(alpha: f64, global: &'g TensorSet) -> Result<Self, LearnError> {
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(LearnError::OutOfRange {
                what: "alpha",
                expected: "positive and finite".into(),
                actual: alpha.to_string(),
            });
        }
        let parts = Parts::of(global)?;
        Ok(Self {
            alpha,
            global_set: global,
            of_global: 1.0,
            dense: parts.dense.iter().map(|t| vec![0.0; t.data.len()]).collect(),
            products: parts.pairs.values().map(|pair| Factors::new(pair.d, pair.k)).collect(),
            global: parts,
            added: 0,
        })
    }

    /// Adds `weight` times what a member learned on top of `base`.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the weight isn't finite, [`LearnError::LayoutMismatch`] when
    /// a set doesn't fit the global one, [`LearnError::NotFinite`] when a value isn't: then nothing
    /// was added. [`LearnError::Engine`] when an SVD doesn't converge: then the sum is spoilt.
    pub fn add(
        &mut self,
        weight: f64,
        adapter: &TensorSet,
        base: &TensorSet,
    ) -> Result<(), LearnError> {
        check_weight(weight)?;
        let trained = Parts::of(adapter)?;
        trained.check_fits(&self.global)?;
        if std::ptr::eq(base, self.global_set) || base == self.global_set {
            self.add_parts(weight, &trained)?;
            self.of_global -= weight;
        } else {
            let started = Parts::of(base)?;
            started.check_fits(&self.global)?;
            self.add_parts(weight, &trained)?;
            self.add_parts(-weight, &started)?;
        }
        self.added += 1;
        Ok(())
    }

    /// The new adapter, each pair truncated to `rank`; see [`combine`].
    ///
    /// # Errors
    /// [`LearnError::NoUpdates`] when nothing was added, [`LearnError::OutOfRange`] when `rank` is
    /// 0, [`LearnError::NotFinite`] when the result leaves the range of f32,
    /// [`LearnError::Engine`] when an SVD doesn't converge.
    pub fn truncate(mut self, rank: usize) -> Result<Combined, LearnError> {
        check_rank(rank)?;
        self.add_rest_of_global()?;
        let mut tensors = self.dense_tensors();
        let mut discarded_energy = BTreeMap::new();
        for ((module, pair), product) in self.global.pairs.iter().zip(&self.products) {
            let mut leading = product.leading(rank)?;
            let own_rows =
                pair.a.chunks(pair.k).map(|row| row.iter().map(|x| f64::from(*x)).collect());
            complete_rows(&mut leading.right, rank, pair.k, own_rows);
            let energy = leading.discarded_energy;
            discarded_energy.insert((*module).to_owned(), energy);
            let scaling = self.alpha / rank_weight(rank);
            tensors.extend(pair_tensors(
                module,
                pair,
                rank,
                scaling,
                &leading.left,
                &leading.right,
            ));
        }
        finished(tensors, discarded_energy)
    }

    /// The sum as it is, each pair of at most `cap` columns; see [`stack`].
    ///
    /// # Errors
    /// As for [`LoraAverage::truncate`].
    pub fn stack(mut self, cap: usize) -> Result<Combined, LearnError> {
        check_rank(cap)?;
        self.add_rest_of_global()?;
        let mut tensors = self.dense_tensors();
        let mut discarded_energy = BTreeMap::new();
        for ((module, pair), product) in self.global.pairs.iter().zip(self.products) {
            let (left, right, energy) = if product.columns() <= cap && product.is_exact() {
                let (left, right) = product.into_columns();
                (left, right, 0.0)
            } else {
                let leading = product.leading(cap)?;
                (leading.left, leading.right, leading.discarded_energy)
            };
            discarded_energy.insert((*module).to_owned(), energy);
            let rank = left.len().max(1); // a product of zeros still needs a pair
            let scaling = self.alpha / rank_weight(rank);
            tensors.extend(pair_tensors(module, pair, rank, scaling, &left, &right));
        }
        finished(tensors, discarded_energy)
    }

    fn add_parts(&mut self, weight: f64, parts: &Parts<'_>) -> Result<(), LearnError> {
        for (sum, tensor) in self.dense.iter_mut().zip(&parts.dense) {
            add_scaled(sum, weight, &tensor.data);
        }
        for (sum, pair) in self.products.iter_mut().zip(parts.pairs.values()) {
            let scaling = self.alpha / rank_weight(pair.rank);
            sum.add(weight * scaling, pair.b, pair.a, pair.rank)?;
        }
        Ok(())
    }

    fn add_rest_of_global(&mut self) -> Result<(), LearnError> {
        if self.added == 0 {
            return Err(LearnError::NoUpdates);
        }
        if self.of_global.abs() <= CANCELLED {
            return Ok(());
        }
        let global = self.global.clone();
        self.add_parts(self.of_global, &global)
    }

    fn dense_tensors(&self) -> Vec<Tensor> {
        let tensor = |(like, sum): (&&Tensor, &Vec<f64>)| Tensor {
            name: like.name.clone(),
            shape: like.shape.clone(),
            data: sum.iter().map(|x| narrow(*x)).collect(),
        };
        self.global.dense.iter().zip(&self.dense).map(tensor).collect()
    }
}

/// A tensor set taken apart.
#[derive(Debug, Clone)]
pub(super) struct Parts<'a> {
    /// By module name.
    pub(super) pairs: BTreeMap<&'a str, Pair<'a>>,
    /// Everything else, in order of names.
    pub(super) dense: Vec<&'a Tensor>,
}

/// One LoRA pair: `b` is `[d, rank]`, `a` is `[rank, k]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) b: &'a [f32],
    pub(super) a: &'a [f32],
    d: usize,
    pub(super) k: usize,
    pub(super) rank: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn of(set: &'a TensorSet) -> Result<Self, LearnError> {
        set.check_finite()?;
        let (mut pairs, mut dense) = (BTreeMap::new(), Vec::new());
        for tensor in set.tensors() {
            if let Some(module) = tensor.name.strip_suffix(LORA_A) {
                let b = set.get(&format!("{module}{LORA_B}"));
                pairs.insert(module, Pair::of(tensor, b)?);
            } else if let Some(module) = tensor.name.strip_suffix(LORA_B) {
                let a = format!("{module}{LORA_A}");
                if set.get(&a).is_none() {
                    return Err(mismatch(a, "the other half of a pair", "absent"));
                }
            } else {
                dense.push(tensor);
            }
        }
        Ok(Self { pairs, dense })
    }

    /// Checks names and shapes, all but the ranks, against the global adapter.
    pub(super) fn check_fits(&self, global: &Parts<'_>) -> Result<(), LearnError> {
        for at in 0..self.dense.len().max(global.dense.len()) {
            let (own, wanted) = (self.dense.get(at), global.dense.get(at));
            let key = |t: &&Tensor| (t.name.clone(), t.shape.clone());
            if own.map(key) != wanted.map(key) {
                let name = wanted.or(own).map(|t| t.name.clone()).unwrap_or_default();
                return Err(mismatch(name, describe(wanted), describe(own)));
            }
        }
        let sizes = |parts: &Parts<'_>| -> Vec<(String, usize, usize)> {
            let size = |(m, pair): (&&str, &Pair<'_>)| ((*m).to_owned(), pair.d, pair.k);
            parts.pairs.iter().map(size).collect()
        };
        let (own, wanted) = (sizes(self), sizes(global));
        if own == wanted {
            return Ok(());
        }
        let at = own.iter().zip(&wanted).take_while(|(own, wanted)| own == wanted).count();
        let (own, wanted) = (own.get(at), wanted.get(at));
        let text = |pair: Option<&(String, usize, usize)>| match pair {
            Some((module, d, k)) => format!("pair {module}, {d} x {k}"),
            None => "absent".to_owned(),
        };
        let name = wanted.or(own).map(|(m, _, _)| m.clone()).unwrap_or_default();
        Err(mismatch(name, text(wanted), text(own)))
    }
}

impl<'a> Pair<'a> {
    fn of(a: &'a Tensor, b: Option<&'a Tensor>) -> Result<Self, LearnError> {
        let shapes = (a.shape.as_slice(), b.map(|b| b.shape.as_slice()));
        if let (&[rank, k], Some(&[d, b_rank]), Some(b)) = (shapes.0, shapes.1, b)
            && rank == b_rank
            && rank.min(k).min(d) > 0
        {
            return Ok(Self { b: &b.data, a: &a.data, d, k, rank });
        }
        let actual = format!("{:?} and {}", a.shape, describe(b.as_ref()));
        Err(mismatch(a.name.clone(), "a pair [r, k] and [d, r] without zeros", actual))
    }
}

/// Says if a tensor is half of a LoRA pair.
pub(super) fn is_lora_factor(name: &str) -> bool {
    name.ends_with(LORA_A) || name.ends_with(LORA_B)
}

fn summed<'g>(
    alpha: f64,
    global: &'g TensorSet,
    contributions: &BTreeMap<NodeId, Contribution<'_>>,
) -> Result<LoraAverage<'g>, LearnError> {
    let mut sum = LoraAverage::new(alpha, global)?;
    for contribution in contributions.values() {
        sum.add(contribution.weight, contribution.adapter, contribution.base)?;
    }
    Ok(sum)
}

fn finished(
    tensors: Vec<Tensor>,
    discarded_energy: BTreeMap<String, f64>,
) -> Result<Combined, LearnError> {
    let adapter = TensorSet::new(tensors)?;
    adapter.check_finite()?;
    Ok(Combined { adapter, discarded_energy })
}

/// Both halves from columns: column j of `left` divided by the scaling, row j of `right`; zeros
/// where there are fewer than `rank`.
fn pair_tensors(
    module: &str,
    pair: &Pair<'_>,
    rank: usize,
    scaling: f64,
    left: &[Vec<f64>],
    right: &[Vec<f64>],
) -> [Tensor; 2] {
    let mut b = vec![0.0; pair.d * rank];
    for (at, column) in left.iter().enumerate() {
        let places = b.iter_mut().skip(at).step_by(rank);
        places.zip(column).for_each(|(place, x)| *place = narrow(x / scaling));
    }
    let mut a: Vec<f32> = right.iter().flatten().map(|x| narrow(*x)).collect();
    a.resize(rank * pair.k, 0.0);
    [
        Tensor { name: format!("{module}{LORA_A}"), shape: vec![rank, pair.k], data: a },
        Tensor { name: format!("{module}{LORA_B}"), shape: vec![pair.d, rank], data: b },
    ]
}

fn check_rank(rank: usize) -> Result<(), LearnError> {
    if rank > 0 {
        return Ok(());
    }
    Err(LearnError::OutOfRange { what: "rank", expected: "at least 1".into(), actual: "0".into() })
}

pub(super) fn rank_weight(rank: usize) -> f64 {
    count_weight(u64::try_from(rank).unwrap_or(u64::MAX))
}

fn describe(tensor: Option<&&Tensor>) -> String {
    tensor.map_or_else(|| "absent".to_owned(), |t| format!("{} {:?}", t.name, t.shape))
}

fn mismatch(name: String, expected: impl Into<String>, actual: impl Into<String>) -> LearnError {
    LearnError::LayoutMismatch { name, expected: expected.into(), actual: actual.into() }
}

const LORA_A: &str = ".lora_a";
const LORA_B: &str = ".lora_b";

/// What is left of 1 after subtracting weights that sum to 1.
const CANCELLED: f64 = 1e-12;

#[cfg(test)]
#[path = "lora_product_tests.rs"]
mod tests;
