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
                data.iter_mut().for_each(|x| *x = stream.range(-bound, bound) as f32);
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
