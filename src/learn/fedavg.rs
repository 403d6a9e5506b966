//! Federated averaging: weights of the members, and the weighted mean of their deltas.
//!
//! The mean is a pure function of who took part with what: members come in a map by sender, sums
//! are f64 in that order, so neither arrival nor repeats change a bit of the result.
//! Tensors of LoRA pairs don't belong here: the mean of products isn't the product of means
//! (see `lora_product.rs`).

use std::collections::BTreeMap;

use super::{Layout, LearnError, Tensor, TensorSet, count_weight, narrow, staleness_factor};
use crate::ids::NodeId;

/// What the weight of one member is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Distinct training examples behind the update, > 0.
    pub num_examples: u64,
    /// Versions that the update's base is behind the current one.
    pub staleness: u64,
}

/// One member's update with its share.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedDelta {
    /// What its weight is made of.
    pub share: Share,
    /// Trained values less those of the base.
    pub delta: TensorSet,
}

/// Weights p of the members: by examples times the staleness factor, sum 1.
///
/// From three members on none gets more than one half, so that none owns the model; the others
/// share the other half as they did before. Dividing by the sum means that a round of only late
/// updates still takes a whole step (`FedBuff` itself would shorten it).
///
/// # Errors
/// [`LearnError::NoUpdates`] without members, [`LearnError::OutOfRange`] when one has no examples.
/// # Source
/// arXiv:1602.05629, algorithm 1 (`FedAvg`) and, for the factor, arXiv:2106.06639 (`FedBuff`).
/// # Examples
/// ```
/// # use std::collections::BTreeMap;
/// use gaisnet::learn::{Share, weights};
/// let share = |num_examples| Share { num_examples, staleness: 0 };
/// let node = |name: &str| name.parse::<gaisnet::ids::NodeId>().unwrap();
/// // 800 of 1,000 examples would be 0.8: capped; 150 and 50 share the rest 3 to 1.
/// let members = BTreeMap::from([(node("a"), share(800)), (node("b"), share(150)), (node("c"), share(50))]);
/// let p: Vec<f64> = weights(&members)?.into_values().collect();
/// assert_eq!(p, [0.5, 0.375, 0.125]);
/// # Ok::<(), gaisnet::learn::LearnError>(())
/// ```
pub fn weights<K: Ord + Clone + std::fmt::Debug>(
    members: &BTreeMap<K, Share>,
) -> Result<BTreeMap<K, f64>, LearnError> {
    weights_up_to(MAX_WEIGHT, members)
}

/// As [`weights`], with another cap: from three members on none gets more than `max_weight`.
///
/// 1 is no cap: the weights of plain `FedAvg`.
///
/// # Errors
/// Those of [`weights`], and [`LearnError::OutOfRange`] for a cap outside of 0.5 to 1: below, two members
/// could be above it at once.
pub fn weights_up_to<K: Ord + Clone + std::fmt::Debug>(
    max_weight: f64,
    members: &BTreeMap<K, Share>,
) -> Result<BTreeMap<K, f64>, LearnError> {
    if !(0.5..=1.0).contains(&max_weight) {
        return Err(LearnError::OutOfRange {
            what: "largest weight of a member",
            expected: "0.5 to 1".into(),
            actual: max_weight.to_string(),
        });
    }
    if members.is_empty() {
        return Err(LearnError::NoUpdates);
    }
    let mut raw = BTreeMap::new();
    for (sender, share) in members {
        if share.num_examples == 0 {
            return Err(LearnError::OutOfRange {
                what: "num_examples",
                expected: "at least 1".into(),
                actual: format!("0 from {sender:?}"),
            });
        }
        let weight = count_weight(share.num_examples) * staleness_factor(share.staleness);
        raw.insert(sender.clone(), weight);
    }
    let total: f64 = raw.values().sum();
    let owner = raw.iter().find(|(_, weight)| **weight > max_weight * total);
    match owner.map(|(sender, _)| sender.clone()) {
        Some(owner) if members.len() >= CAPPED_FROM => {
            let others: f64 = raw.iter().filter(|(s, _)| **s != owner).map(|(_, w)| w).sum();
            for (sender, weight) in &mut raw {
                *weight = if *sender == owner {
                    max_weight
                } else {
                    (1.0 - max_weight) * (*weight / others)
                };
            }
        }
        _ => raw.values_mut().for_each(|weight| *weight /= total),
    }
    Ok(raw)
}

/// Averages client deltas by their weights (`FedAvg`); see [`weights`] and [`Accumulator`].
///
/// # Shapes
/// Each delta has the layout of `layout`, and so has the result.
/// # Determinism
/// Sums in f64 in the order of sender ids, so all nodes get the same bits.
/// # Errors
/// Those of [`weights`], [`Accumulator::add`] and [`Accumulator::finish`].
/// # Source
/// arXiv:1602.05629, algorithm 1 (`FedAvg`).
pub fn fed_avg(
    layout: &Layout,
    updates: &BTreeMap<NodeId, WeightedDelta>,
) -> Result<TensorSet, LearnError> {
    let shares = updates.iter().map(|(sender, update)| (sender.clone(), update.share)).collect();
    let weights = weights(&shares)?;
    let mut sum = Accumulator::new(layout)?;
    for (update, weight) in updates.values().zip(weights.values()) {
        sum.add(*weight, &update.delta)?;
    }
    sum.finish()
}

/// A running weighted sum of tensor sets: one f64 a value, however many members.
///
/// # Determinism
/// The bits depend on the order of the calls: add in the order of sender ids.
#[derive(Debug, Clone)]
pub struct Accumulator {
    layout: Layout,
    sums: Vec<Vec<f64>>,
    added: usize,
}

impl Accumulator {
    /// Starts at zero.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when a shape has more values than a machine can count.
    pub fn new(layout: &Layout) -> Result<Self, LearnError> {
        let mut sums = Vec::with_capacity(layout.0.len());
        for (_, shape) in &layout.0 {
            sums.push(vec![0.0; super::tensors::num_values(shape)?]);
        }
        Ok(Self { layout: layout.clone(), sums, added: 0 })
    }

    /// Adds `weight` times `set`; a weight may be negative. After an error nothing was added.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the set has another layout,
    /// [`LearnError::OutOfRange`] when the weight isn't finite.
    pub fn add(&mut self, weight: f64, set: &TensorSet) -> Result<(), LearnError> {
        set.check_layout(&self.layout)?;
        check_weight(weight)?;
        for (sum, tensor) in self.sums.iter_mut().zip(set.tensors()) {
            add_scaled(sum, weight, &tensor.data);
        }
        self.added += 1;
        Ok(())
    }

    /// The sum, rounded to f32.
    ///
    /// # Errors
    /// [`LearnError::NoUpdates`] when nothing was added, [`LearnError::NotFinite`] when a value
    /// added wasn't finite or the sum leaves the range of f32.
    pub fn finish(self) -> Result<TensorSet, LearnError> {
        if self.added == 0 {
            return Err(LearnError::NoUpdates);
        }
        let mut tensors = Vec::with_capacity(self.sums.len());
        for ((name, shape), sum) in self.layout.0.into_iter().zip(self.sums) {
            let data = sum.into_iter().map(narrow).collect();
            tensors.push(Tensor { name, shape, data });
        }
        let mean = TensorSet::new(tensors)?;
        mean.check_finite()?;
        Ok(mean)
    }
}

/// Refuses a weight that would spoil a whole sum.
pub(super) fn check_weight(weight: f64) -> Result<(), LearnError> {
    if weight.is_finite() {
        return Ok(());
    }
    Err(LearnError::OutOfRange {
        what: "weight",
        expected: "a finite number".into(),
        actual: weight.to_string(),
    })
}

/// `sum += weight * values`; a zip of two slices, which the compiler turns into vector code.
pub(super) fn add_scaled(sum: &mut [f64], weight: f64, values: &[f32]) {
    for (s, x) in sum.iter_mut().zip(values) {
        *s += weight * f64::from(*x);
    }
}

/// Largest weight of a member, from [`CAPPED_FROM`] members on, where nothing else is set.
const MAX_WEIGHT: f64 = 0.5;

/// Two members can't both stay below one half, so the cap starts at three.
const CAPPED_FROM: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(at: usize) -> NodeId {
        NodeId::new(format!("n{at:03}")).unwrap()
    }

    fn set(values: &[f32]) -> TensorSet {
        let split = values.len() / 2;
        let part = |name: &str, data: &[f32]| Tensor {
            name: name.into(),
            shape: vec![data.len()],
            data: data.to_vec(),
        };
        TensorSet::new(vec![part("a", &values[..split]), part("b", &values[split..])]).unwrap()
    }

    fn update(num_examples: u64, staleness: u64, values: &[f32]) -> WeightedDelta {
        WeightedDelta { share: Share { num_examples, staleness }, delta: set(values) }
    }

    #[test]
    fn the_mean_is_weighted_by_examples() {
        let updates = BTreeMap::from([
            (node(0), update(30, 0, &[1.0, 2.0])),
            (node(1), update(10, 0, &[5.0, -2.0])),
        ]);
        let mean = fed_avg(&set(&[0.0; 2]).layout(), &updates).unwrap();
        assert_eq!(mean, set(&[2.0, 1.0])); // 3/4 * 1 + 1/4 * 5, 3/4 * 2 - 1/4 * 2
    }

    #[test]
    fn an_update_three_versions_late_counts_half() {
        let shares = BTreeMap::from([
            (node(0), Share { num_examples: 10, staleness: 0 }),
            (node(1), Share { num_examples: 20, staleness: 3 }),
        ]);
        let p: Vec<f64> = weights(&shares).unwrap().into_values().collect();
        assert_eq!(p, [0.5, 0.5]);
    }

    #[test]
    fn one_of_two_may_outweigh_the_other() {
        let shares = BTreeMap::from([
            (node(0), Share { num_examples: 90, staleness: 0 }),
            (node(1), Share { num_examples: 10, staleness: 0 }),
        ]);
        let p: Vec<f64> = weights(&shares).unwrap().into_values().collect();
        assert_eq!(p, [0.9, 0.1]);
    }

    #[test]
    fn a_higher_cap_takes_effect_later_and_without_one_examples_alone_decide() {
        let share = |num_examples| Share { num_examples, staleness: 0 };
        let members =
            BTreeMap::from([(node(0), share(800)), (node(1), share(150)), (node(2), share(50))]);
        let p = |cap| -> Vec<f64> { weights_up_to(cap, &members).unwrap().into_values().collect() };
        assert_eq!(p(1.0), [0.8, 0.15, 0.05]);
        assert_eq!(p(0.9), [0.8, 0.15, 0.05]);
        assert_eq!(p(0.5), [0.5, 0.375, 0.125]);
        for bad in [0.49, 1.01, f64::NAN] {
            assert_eq!(weights_up_to(bad, &members).unwrap_err().kind(), "out_of_range");
        }
    }

    #[test]
    fn a_member_without_examples_and_an_empty_round_are_refused() {
        let none = BTreeMap::from([(node(0), Share { num_examples: 0, staleness: 0 })]);
        assert_eq!(weights(&none).unwrap_err().kind(), "out_of_range");
        assert_eq!(weights::<NodeId>(&BTreeMap::new()).unwrap_err(), LearnError::NoUpdates);
        let empty = Accumulator::new(&set(&[0.0; 2]).layout()).unwrap();
        assert_eq!(empty.finish().unwrap_err(), LearnError::NoUpdates);
    }

    #[test]
    fn a_delta_of_another_layout_is_refused_and_changes_nothing() {
        let mut sum = Accumulator::new(&set(&[0.0; 2]).layout()).unwrap();
        sum.add(1.0, &set(&[1.0, 2.0])).unwrap();
        let error = sum.add(1.0, &set(&[1.0, 2.0, 3.0])).unwrap_err();
        assert_eq!(error.kind(), "layout_mismatch");
        assert_eq!(sum.add(f64::NAN, &set(&[1.0, 2.0])).unwrap_err().kind(), "out_of_range");
        assert_eq!(sum.finish().unwrap(), set(&[1.0, 2.0]));
    }

    #[test]
    fn a_sum_that_is_not_finite_is_refused() {
        let mut sum = Accumulator::new(&set(&[0.0; 2]).layout()).unwrap();
        sum.add(2.0, &set(&[0.0, f32::MAX])).unwrap();
        let error = sum.finish().unwrap_err();
        assert_eq!(error, LearnError::NotFinite { name: "b".into(), index: 0 });
    }

    #[test]
    fn a_layout_too_big_to_count_is_refused() {
        let layout = Layout(vec![("a".into(), vec![usize::MAX, 2])]);
        assert_eq!(Accumulator::new(&layout).unwrap_err().kind(), "out_of_range");
    }

    proptest! {
        #[test]
        fn weights_sum_to_one_and_the_cap_holds(
            shares in prop::collection::vec((1..=u64::MAX, 0..=u64::MAX), 3..40),
        ) {
            let members = shares.iter().enumerate().map(|(at, (num_examples, staleness))| {
                (node(at), Share { num_examples: *num_examples, staleness: *staleness })
            });
            let p = weights(&members.collect()).unwrap();
            prop_assert!((p.values().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!(p.values().all(|w| (0.0..=0.5).contains(w)));
        }

        #[test]
        fn the_mean_does_not_depend_on_arrival_order(
            (updates, arrival) in prop::collection::vec(
                (1_u64..1000, 0_u64..10, prop::collection::vec(-1e3_f32..1e3, 6)), 1..12,
            ).prop_flat_map(|updates| {
                let order: Vec<usize> = (0..updates.len()).collect();
                (Just(updates), Just(order).prop_shuffle())
            }),
        ) {
            let member = |at: usize| {
                let (n, tau, values) = &updates[at];
                (node(at), update(*n, *tau, values))
            };
            let layout = set(&[0.0; 6]).layout();
            let sorted = fed_avg(&layout, &(0..updates.len()).map(member).collect()).unwrap();
            let arrived = fed_avg(&layout, &arrival.into_iter().map(member).collect()).unwrap();
            prop_assert_eq!(sorted, arrived);
        }

        #[test]
        fn a_mean_of_equal_deltas_is_that_delta(
            values in prop::collection::vec(-1e6_f32..1e6, 6), members in 1_usize..30,
        ) {
            let updates = (0..members).map(|at| (node(at), update(7, 0, &values))).collect();
            let mean = fed_avg(&set(&values).layout(), &updates).unwrap();
            prop_assert_eq!(mean, set(&values));
        }
    }
}
