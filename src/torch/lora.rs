//! LoRA by substitution: the model gets `W + alpha/rank * B A` under W's name and never knows.
//!
//! For layers as small as these that is also the cheapest way: the product of two thin matrices and
//! one sum a step, and the forward pass costs what it costs without an adapter.
//!
//! # Source
//! Hu et al. 2021, arXiv:2106.09685.

use tch::Tensor;

use super::weights::Weights;
use super::{dim, tensor, values};
use crate::learn::{Layout, LearnError, TensorSet};
use crate::rng::Stream;

/// What of a base trains, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank r of B A; at least 1.
    pub rank: u32,
    /// The product is scaled by alpha / rank.
    pub alpha: f32,
    /// Last names of the linear layers that get factors: of `q k v o up down`.
    pub targets: Vec<String>,
    /// Paths whose tensors train whole: a layer (`head`), or all layers of a last name (`norm1`).
    pub whole: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect();
        Self { rank: 8, alpha: 16.0, targets: words(&["q", "v"]), whole: words(&["head"]) }
    }
}

/// Where each trainable tensor lies in the flat buffer, and what it does to the base.
#[derive(Debug, Clone)]
pub struct AdapterPlan {
    entries: Vec<Entry>,
    /// Linear layers that have factors.
    targets: Vec<String>,
    scaling: f64,
    num_values: i64,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    sizes: Vec<i64>,
    offset: i64,
    len: i64,
    whole: bool,
}

impl AdapterPlan {
    /// Finds the trainable tensors in a base of this layout.
    ///
    /// Entries are sorted by name, so that the flat buffer is the adapter's [`TensorSet`], laid
    /// end to end.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the rank is 0, alpha isn't positive or a name finds nothing.
    pub fn new(base: &Layout, config: &LoraConfig) -> Result<Self, LearnError> {
        if config.rank == 0 || !(config.alpha > 0.0 && config.alpha.is_finite()) {
            return Err(LearnError::OutOfRange {
                what: "LoRA rank and alpha",
                expected: "both positive".into(),
                actual: format!("rank {}, alpha {}", config.rank, config.alpha),
            });
        }
        let rank = config.rank as usize;
        let mut targets = Vec::new();
        let mut tensors: Vec<(String, Vec<usize>, bool)> = Vec::new();
        let mut used = std::collections::BTreeSet::new();
        for (name, shape) in &base.0 {
            let Some((module, leaf)) = name.rsplit_once('.') else { continue };
            let last = module.rsplit('.').next().unwrap_or(module);
            if let Some(word) = config.whole.iter().find(|w| *w == module || *w == last) {
                used.insert(word);
                tensors.push((name.clone(), shape.clone(), true));
            } else if let (Some(word), "weight", [out, input]) =
                (config.targets.iter().find(|t| *t == last), leaf, shape.as_slice())
            {
                used.insert(word);
                targets.push(module.to_owned());
                tensors.push((format!("{module}.lora_a"), vec![rank, *input], false));
                tensors.push((format!("{module}.lora_b"), vec![*out, rank], false));
            }
        }
        if let Some(word) = config.targets.iter().chain(&config.whole).find(|w| !used.contains(w)) {
            return Err(LearnError::OutOfRange {
                what: "LoRA target",
                expected: "a layer of the base that isn't named twice".into(),
                actual: word.clone(),
            });
        }
        tensors.sort();
        let mut entries = Vec::with_capacity(tensors.len());
        let mut offset = 0;
        for (name, shape, whole) in tensors {
            let sizes = shape.iter().map(|d| dim(*d)).collect::<Result<Vec<_>, _>>()?;
            let len = sizes.iter().product();
            entries.push(Entry { name, shape, sizes, offset, len, whole });
            offset += len;
        }
        let scaling = f64::from(config.alpha) / f64::from(config.rank);
        Ok(Self { entries, targets, scaling, num_values: offset })
    }

    /// Names and shapes of the adapter.
    pub fn layout(&self) -> Layout {
        Layout(self.entries.iter().map(|e| (e.name.clone(), e.shape.clone())).collect())
    }

    /// The adapter that changes nothing: A drawn (uniform, bound `sqrt(3 / in)`), B zero, whole
    /// tensors as in the base.
    ///
    /// # Determinism
    /// Each tensor has a stream of its own name, so that ranks and targets don't shift others.
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the base lacks a tensor.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "f32 weights")]
    pub fn initial(&self, base: &TensorSet, seed: u64) -> Result<TensorSet, LearnError> {
        let mut set = TensorSet::zeros(&self.layout());
        for (entry, data) in self.entries.iter().zip(set.values_mut()) {
            if entry.whole {
                let source = base.get(&entry.name).filter(|t| t.shape == entry.shape);
                let source = source.ok_or_else(|| LearnError::LayoutMismatch {
                    name: entry.name.clone(),
                    expected: format!("{:?}", entry.shape),
                    actual: "absent".into(),
                })?;
                data.copy_from_slice(&source.data);
            } else if let (true, [_, input]) = (entry.name.ends_with("lora_a"), &*entry.shape) {
                let mut stream = Stream::new(seed, &entry.name);
                let bound = (3.0 / *input as f64).sqrt();
                for x in data {
                    *x = stream.range(-bound, bound) as f32;
                }
            }
        }
        Ok(set)
    }

    /// The adapter as one flat tensor.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] or [`LearnError::NotFinite`] when it isn't one of this plan.
    pub fn flatten(&self, adapter: &TensorSet) -> Result<Tensor, LearnError> {
        adapter.check_layout(&self.layout())?;
        adapter.check_finite()?;
        let flat: Vec<f32> =
            adapter.tensors().iter().flat_map(|t| t.data.iter().copied()).collect();
        tensor(&flat, &[self.num_values])
    }

    /// The adapter back from the flat tensor.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the tensor has another length.
    pub fn unflatten(&self, flat: &Tensor) -> Result<TensorSet, LearnError> {
        let flat = values(&flat.f_view([self.num_values])?)?;
        let mut set = TensorSet::zeros(&self.layout());
        let mut rest = flat.as_slice();
        for data in set.values_mut() {
            let Some((head, tail)) = rest.split_at_checked(data.len()) else { break };
            data.copy_from_slice(head);
            rest = tail;
        }
        Ok(set)
    }

    /// The base with the adapter in it, under the base's names; gradients flow to `flat`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the base isn't that of the plan.
    pub fn effective(&self, base: &Weights, flat: &Tensor) -> Result<Weights, LearnError> {
        let mut adapter = Weights::default();
        let mut weights = base.share();
        for entry in &self.entries {
            let part = flat.f_narrow(0, entry.offset, entry.len)?.f_view(entry.sizes.as_slice())?;
            if entry.whole {
                weights.insert(entry.name.clone(), part);
            } else {
                adapter.insert(entry.name.clone(), part);
            }
        }
        for module in &self.targets {
            let (a, b) = (self.sizes(module, "lora_a"), self.sizes(module, "lora_b"));
            let (Some(a), Some(b)) = (a, b) else { continue };
            let (&[rank, input], &[out, _]) = (a, b) else { continue };
            let name = format!("{module}.weight");
            let lora_a = adapter.get(&format!("{module}.lora_a"), &[rank, input])?;
            let lora_b = adapter.get(&format!("{module}.lora_b"), &[out, rank])?;
            let product = lora_b.f_matmul(&lora_a)?.f_mul_scalar(self.scaling)?;
            let merged = weights.get(&name, &[out, input])?.f_add(&product)?;
            weights.insert(name, merged);
        }
        Ok(weights)
    }

    fn sizes(&self, module: &str, leaf: &str) -> Option<&[i64]> {
        let name = format!("{module}.{leaf}");
        let at = self.entries.binary_search_by(|e| e.name.as_str().cmp(&name)).ok()?;
        self.entries.get(at).map(|e| e.sizes.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::Tensor as Plain;

    fn plain(name: &str, shape: &[usize], data: &[f32]) -> Plain {
        Plain { name: name.into(), shape: shape.to_vec(), data: data.to_vec() }
    }

    /// Two layers `[2 x 3]` and a head.
    fn base() -> TensorSet {
        TensorSet::new(vec![
            plain("blocks.0.attn.q.weight", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            plain("blocks.0.attn.q.bias", &[2], &[0.1, 0.2]),
            plain("blocks.0.attn.k.weight", &[2, 3], &[0.0; 6]),
            plain("blocks.0.attn.k.bias", &[2], &[0.0; 2]),
            plain("head.weight", &[2, 2], &[7.0, 8.0, 9.0, 10.0]),
            plain("head.bias", &[2], &[11.0, 12.0]),
        ])
        .unwrap()
    }

    fn config(rank: u32, alpha: f32) -> LoraConfig {
        LoraConfig { rank, alpha, targets: vec!["q".into()], whole: vec!["head".into()] }
    }

    #[test]
    fn a_layer_gets_two_factors_and_the_head_trains_whole() {
        let plan = AdapterPlan::new(&base().layout(), &config(2, 4.0)).unwrap();
        let shapes: Vec<(String, Vec<usize>)> = vec![
            ("blocks.0.attn.q.lora_a".into(), vec![2, 3]),
            ("blocks.0.attn.q.lora_b".into(), vec![2, 2]),
            ("head.bias".into(), vec![2]),
            ("head.weight".into(), vec![2, 2]),
        ];
        assert_eq!(plan.layout().0, shapes);
    }

    #[test]
    fn the_initial_adapter_changes_nothing_and_is_the_same_for_one_seed() {
        let plan = AdapterPlan::new(&base().layout(), &config(2, 4.0)).unwrap();
        let initial = plan.initial(&base(), 5).unwrap();
        assert_eq!(initial, plan.initial(&base(), 5).unwrap());
        assert_ne!(initial, plan.initial(&base(), 6).unwrap());
        let lora_a = initial.get("blocks.0.attn.q.lora_a").unwrap();
        assert!(lora_a.data.iter().all(|x| *x != 0.0 && x.abs() <= 1.0));
        let flat = plan.flatten(&initial).unwrap();
        let weights = plan.effective(&Weights::from_set(&base()).unwrap(), &flat).unwrap();
        assert_eq!(weights.to_set().unwrap(), base());
    }

    #[test]
    fn the_effective_weight_is_w_plus_scaled_b_a() {
        let plan = AdapterPlan::new(&base().layout(), &config(1, 3.0)).unwrap();
        let mut adapter = plan.initial(&base(), 1).unwrap();
        let values: [&[f32]; 4] = [&[1.0, -1.0, 2.0], &[0.5, -0.5], &[1.0, 2.0], &[3.0; 4]];
        adapter.values_mut().zip(values).for_each(|(data, v)| data.copy_from_slice(v));
        let flat = plan.flatten(&adapter).unwrap();
        let weights = plan.effective(&Weights::from_set(&base()).unwrap(), &flat).unwrap();
        let weights = weights.to_set().unwrap();
        // alpha / rank = 3; B A = [0.5 -0.5 1; -0.5 0.5 -1].
        let want = [2.5, 0.5, 6.0, 2.5, 6.5, 3.0];
        assert_eq!(weights.get("blocks.0.attn.q.weight").unwrap().data, want);
        assert_eq!(weights.get("head.weight").unwrap().data, [3.0; 4]);
        assert_eq!(weights.get("blocks.0.attn.k.weight").unwrap().data, [0.0; 6]);
        assert_eq!(plan.unflatten(&flat).unwrap(), adapter, "and back from the flat buffer");
    }

    #[test]
    fn targets_that_do_not_exist_and_ranks_of_0_are_refused() {
        let refused = |config: LoraConfig| {
            AdapterPlan::new(&base().layout(), &config).is_err_and(|e| e.kind() == "out_of_range")
        };
        assert!(!refused(config(1, 1.0)));
        assert!(refused(config(0, 1.0)));
        assert!(refused(config(1, 0.0)));
        assert!(refused(config(1, f32::NAN)));
        assert!(refused(LoraConfig { targets: vec!["qq".into()], ..config(1, 1.0) }));
        assert!(refused(LoraConfig { whole: vec!["tail".into()], ..config(1, 1.0) }));
    }

    #[test]
    fn an_adapter_of_another_base_or_with_nan_is_refused() {
        let plan = AdapterPlan::new(&base().layout(), &config(1, 1.0)).unwrap();
        let other = AdapterPlan::new(&base().layout(), &config(2, 1.0)).unwrap();
        let foreign = other.initial(&base(), 1).unwrap();
        assert_eq!(plan.flatten(&foreign).unwrap_err().kind(), "layout_mismatch");
        let mut broken = plan.initial(&base(), 1).unwrap();
        broken.values_mut().next().unwrap()[0] = f32::NAN;
        assert_eq!(plan.flatten(&broken).unwrap_err().kind(), "not_finite");
    }
}
