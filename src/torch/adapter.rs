//! The adapter of one base: which tensors train, and where each lies in the flat buffer.
//!
//! All that trains lies end to end in one buffer, sorted by name, so that it is the adapter's
//! [`TensorSet`] and the optimiser is a few kernels. A model gets it either *attached* (factors beside
//! the layers, for large layers) or *merged* (effective weights, for small layers and for serving).

use std::collections::{BTreeMap, BTreeSet};

use tch::Tensor;

use super::parts::{Attached, Parts};
use super::peft::{LoraConfig, PeftConfig, fits, no_such_layer};
use super::weights::Weights;
use super::{dim, tensor, values};
use crate::learn::{Layout, LearnError, TensorSet};
use crate::rng::Stream;

/// Where each trainable tensor lies, and what it does to the base.
#[derive(Debug, Clone)]
pub struct AdapterPlan {
    entries: Vec<Entry>,
    /// Factor of the product of each layer that has one.
    scaling: BTreeMap<String, f64>,
    dropout: f64,
    num_values: i64,
}

/// A base with an adapter in it or beside it.
#[derive(Debug)]
pub struct Applied {
    weights: Weights,
    attached: Option<Attached>,
}

impl Applied {
    /// What a model is built from.
    pub fn parts(&self) -> Parts<'_> {
        match &self.attached {
            Some(attached) => Parts::with(&self.weights, attached),
            None => Parts::bare(&self.weights),
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    sizes: Vec<i64>,
    len: i64,
    start: Start,
}

/// What a tensor holds before training.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Start {
    /// The base's own values; it replaces them.
    Base,
    Zero,
    One,
    /// Uniform, of this bound.
    Uniform(f64),
    /// Normal, of this deviation.
    Normal(f64),
}

impl AdapterPlan {
    /// Finds the trainable tensors in a base of this layout.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when a number is out of range, nothing would train, or a pattern
    /// finds nothing (the error lists names near it).
    pub fn new(base: &Layout, config: &PeftConfig) -> Result<Self, LearnError> {
        config.check()?;
        let mut found = Found { base, all: BTreeMap::new(), used: BTreeSet::new() };
        let mut scaling = BTreeMap::new();
        found.whole(&config.whole);
        if let Some(lora) = &config.lora {
            found.lora(lora, &mut scaling);
        }
        found.scales(&config.ia3, "ia3_out", 0);
        found.scales(&config.ia3_inputs, "ia3_in", 1);
        found.tokens(config)?;
        let lora = config.lora.iter().flat_map(|l| &l.targets);
        let patterns = lora.chain(&config.ia3).chain(&config.ia3_inputs).chain(&config.whole);
        for pattern in patterns {
            if !found.used.contains(pattern.as_str()) {
                return Err(no_such_layer(pattern, base));
            }
        }
        if found.all.is_empty() {
            return Err(LearnError::OutOfRange {
                what: "adapter",
                expected: "at least one tensor that trains".into(),
                actual: "none".into(),
            });
        }
        let mut entries = Vec::with_capacity(found.all.len());
        let mut num_values = 0;
        for (name, (shape, start)) in found.all {
            let sizes = shape.iter().map(|d| dim(*d)).collect::<Result<Vec<_>, _>>()?;
            let len = sizes.iter().product();
            entries.push(Entry { name, shape, sizes, len, start });
            num_values += len;
        }
        let dropout = config.lora.as_ref().map_or(0.0, |l| f64::from(l.dropout));
        Ok(Self { entries, scaling, dropout, num_values })
    }

    /// The plan of one half of a cut model: the tensors for which `keep` holds.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when nothing would train there.
    pub fn part(mut self, keep: impl Fn(&str) -> bool) -> Result<Self, LearnError> {
        self.entries.retain(|entry| keep(&entry.name));
        self.num_values = self.entries.iter().map(|entry| entry.len).sum();
        if self.entries.is_empty() {
            return Err(LearnError::OutOfRange {
                what: "adapter of a half",
                expected: "at least one tensor that trains on each side of the cut".into(),
                actual: "none".into(),
            });
        }
        Ok(self)
    }

    /// Names and shapes of the adapter.
    pub fn layout(&self) -> Layout {
        Layout(self.entries.iter().map(|e| (e.name.clone(), e.shape.clone())).collect())
    }

    /// Number of values that train.
    pub fn num_values(&self) -> i64 {
        self.num_values
    }

    /// The adapter before training. Factors, scales, prefixes and bottlenecks change nothing yet
    /// (LoRA: A drawn uniformly with bound `sqrt(3 / in)`, B zero); whole tensors are the base's;
    /// prompts and prefixes are drawn.
    ///
    /// # Determinism
    /// Each tensor has a stream of its own name, so that ranks and targets don't shift others.
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the base lacks a tensor.
    #[expect(clippy::cast_possible_truncation, reason = "f32 weights")]
    pub fn initial(&self, base: &Weights, seed: u64) -> Result<TensorSet, LearnError> {
        let mut set = TensorSet::zeros(&self.layout());
        for (entry, data) in self.entries.iter().zip(set.values_mut()) {
            let mut stream = Stream::new(seed, &entry.name);
            match entry.start {
                Start::Base => {
                    data.copy_from_slice(&values(&base.get(&entry.name, &entry.sizes)?)?);
                }
                Start::Zero => {}
                Start::One => data.fill(1.0),
                Start::Uniform(bound) => {
                    for x in data {
                        *x = stream.range(-bound, bound) as f32;
                    }
                }
                Start::Normal(deviation) => {
                    for x in data {
                        *x = (deviation * stream.normal()) as f32;
                    }
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

    /// Handles into the flat buffer, for layers to use beside the base; gradients flow to `flat`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the tensor has another length.
    pub fn attach(&self, flat: &Tensor) -> Result<Attached, LearnError> {
        let mut tensors = Weights::default();
        let sizes: Vec<i64> = self.entries.iter().map(|e| e.len).collect();
        // One split has one gradient: a slice a tensor would each bring a buffer of the whole length.
        let all = flat.f_split_with_sizes(sizes.as_slice(), 0)?;
        for (entry, part) in self.entries.iter().zip(all) {
            tensors.insert(entry.name.clone(), part.f_view(entry.sizes.as_slice())?);
        }
        Ok(Attached { tensors, scaling: self.scaling.clone(), dropout: self.dropout })
    }

    /// The base with the adapter in it where all of it can be merged, else beside it; gradients flow to
    /// `flat`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the base isn't that of the plan; [`LearnError::Engine`].
    pub fn apply(&self, base: &Weights, flat: &Tensor) -> Result<Applied, LearnError> {
        let merges = |entry: &Entry| {
            let leaf = entry.name.rsplit('.').next().unwrap_or_default();
            entry.start == Start::Base || ["lora_a", "lora_b", "ia3_out", "ia3_in"].contains(&leaf)
        };
        if self.entries.iter().all(merges) {
            return Ok(Applied { weights: self.merge(base, flat)?, attached: None });
        }
        Ok(Applied { weights: base.share(), attached: Some(self.attach(flat)?) })
    }

    /// The base with the adapter in it, under the base's names; gradients flow to `flat`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the base isn't that of the plan;
    /// [`LearnError::OutOfRange`] when the adapter has parts that no weight can hold (tokens,
    /// bottlenecks).
    pub fn merge(&self, base: &Weights, flat: &Tensor) -> Result<Weights, LearnError> {
        let attached = self.attach(flat)?;
        let mut weights = base.share();
        for entry in &self.entries {
            let part = attached.tensors.get(&entry.name, &entry.sizes)?;
            let (layer, leaf) = entry.name.rsplit_once('.').unwrap_or(("", &entry.name));
            let name = format!("{layer}.weight");
            match leaf {
                _ if entry.start == Start::Base => weights.insert(entry.name.clone(), part),
                "lora_a" => {
                    let Some(b) = attached.tensors.find(&format!("{layer}.lora_b")) else {
                        continue;
                    };
                    let scaling = self.scaling.get(layer).copied().unwrap_or(1.0);
                    let product = b.f_matmul(&part)?.f_mul_scalar(scaling)?;
                    let weight = weight_of(&weights, &name)?;
                    weights.insert(name, weight.f_add(&product.f_to_kind(weight.kind())?)?);
                }
                "lora_b" | "ia3_out" | "ia3_in" => {}
                _ => {
                    return Err(LearnError::OutOfRange {
                        what: "part of an adapter to merge",
                        expected: "LoRA, (IA)^3 or whole tensors".into(),
                        actual: entry.name.clone(),
                    });
                }
            }
        }
        merge_scales(&attached, &mut weights)?;
        weights.unfuse();
        Ok(weights)
    }
}

/// Scales work on what the layer answers with its low-rank part: they go in last.
fn merge_scales(attached: &Attached, weights: &mut Weights) -> Result<(), LearnError> {
    for (name, scale) in attached.tensors.iter() {
        let (layer, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        let weight_name = format!("{layer}.weight");
        let column = match leaf {
            "ia3_out" => scale.f_unsqueeze(1)?,
            "ia3_in" => scale.f_unsqueeze(0)?,
            _ => continue,
        };
        let weight = weight_of(weights, &weight_name)?;
        weights.insert(weight_name, weight.f_mul(&column)?.f_to_kind(weight.kind())?);
        let bias_name = format!("{layer}.bias");
        if let ("ia3_out", Some(bias)) = (leaf, weights.find(&bias_name)) {
            weights.insert(bias_name, bias.f_mul(scale)?.f_to_kind(bias.kind())?);
        }
    }
    Ok(())
}

fn weight_of(weights: &Weights, name: &str) -> Result<Tensor, LearnError> {
    weights.find(name).ok_or_else(|| LearnError::LayoutMismatch {
        name: name.to_owned(),
        expected: "a matrix".into(),
        actual: "absent".into(),
    })
}

/// The trainable tensors found so far.
struct Found<'a> {
    base: &'a Layout,
    all: BTreeMap<String, (Vec<usize>, Start)>,
    used: BTreeSet<&'a str>,
}

impl<'a> Found<'a> {
    /// Matrices of linear layers whose path fits, with the path.
    fn linear(&mut self, patterns: &'a [String]) -> Vec<(&'a str, [usize; 2])> {
        let mut layers = Vec::new();
        // A table of tokens is no linear layer; a patch projection is one, and has a bias.
        let table = !self.base.0.iter().any(|(name, _)| name == "embed.bias");
        for (name, shape) in &self.base.0 {
            let Some((path, "weight")) = name.rsplit_once('.') else { continue };
            if table && path == "embed" {
                continue;
            }
            let &[out, input] = shape.as_slice() else { continue };
            let fitting = patterns.iter().filter(|p| fits(p, path));
            let before = layers.len();
            for pattern in fitting {
                self.used.insert(pattern);
                if layers.len() == before {
                    layers.push((path, [out, input]));
                }
            }
        }
        layers
    }

    fn whole(&mut self, patterns: &'a [String]) {
        for (name, shape) in &self.base.0 {
            let path = name.rsplit_once('.').map_or(name.as_str(), |(path, _)| path);
            for pattern in patterns {
                if fits(pattern, path) || fits(pattern, name) {
                    self.used.insert(pattern);
                    self.all.insert(name.clone(), (shape.clone(), Start::Base));
                }
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "widths are small")]
    fn lora(&mut self, lora: &'a LoraConfig, scaling: &mut BTreeMap<String, f64>) {
        for (path, [out, input]) in self.linear(&lora.targets) {
            if self.all.contains_key(&format!("{path}.weight")) {
                continue; // trains whole already
            }
            let rank = lora.rank_of(path) as usize;
            let bound = (3.0 / input as f64).sqrt();
            let a = (vec![rank, input], Start::Uniform(bound));
            self.all.insert(format!("{path}.lora_a"), a);
            self.all.insert(format!("{path}.lora_b"), (vec![out, rank], Start::Zero));
            scaling.insert(path.to_owned(), lora.scaling_of(path));
        }
    }

    fn scales(&mut self, patterns: &'a [String], leaf: &str, axis: usize) {
        for (path, shape) in self.linear(patterns) {
            let width = shape.get(axis).copied().unwrap_or_default();
            self.all.insert(format!("{path}.{leaf}"), (vec![width], Start::One));
        }
    }

    /// Everything that stands in front of tokens or behind halves of blocks.
    #[expect(clippy::cast_precision_loss, reason = "widths are small")]
    fn tokens(&mut self, config: &PeftConfig) -> Result<(), LearnError> {
        let wanted = [config.deep_prompts, config.prompts, config.prefix, config.bottleneck];
        if wanted.iter().all(|n| *n == 0) {
            return Ok(());
        }
        let [deep, prompts, prefix, inner] = wanted.map(|n| n as usize);
        let mut width = 0;
        let blocks: Vec<(&str, usize, usize)> = (self.base.0.iter())
            .filter_map(|(name, shape)| {
                let path = name.strip_suffix(".attn.k.weight")?;
                let &[kv, d] = shape.as_slice() else { return None };
                Some((path, d, kv))
            })
            .collect();
        for (path, d, kv) in blocks {
            width = d;
            let mut add = |name: String, shape: Vec<usize>, start| {
                self.all.insert(name, (shape, start));
            };
            if deep > 0 {
                add(format!("{path}.prompts"), vec![deep, d], Start::Normal(DRAW));
            }
            if prefix > 0 {
                add(format!("{path}.attn.prefix_k"), vec![prefix, kv], Start::Normal(DRAW));
                add(format!("{path}.attn.prefix_v"), vec![prefix, kv], Start::Normal(DRAW));
            }
            for half in ["attn", "mlp"].into_iter().filter(|_| inner > 0) {
                let at = format!("{path}.{half}.bottleneck");
                let narrow = Start::Normal(1.0 / (d as f64).sqrt());
                add(format!("{at}.down.weight"), vec![inner, d], narrow);
                add(format!("{at}.down.bias"), vec![inner], Start::Zero);
                add(format!("{at}.up.weight"), vec![d, inner], Start::Zero);
                add(format!("{at}.up.bias"), vec![d], Start::Zero);
            }
        }
        if width == 0 {
            return Err(no_such_layer("blocks", self.base));
        }
        if prompts > 0 {
            self.all.insert("embed.prompts".into(), (vec![prompts, width], Start::Normal(DRAW)));
        }
        Ok(())
    }
}

/// Deviation of drawn tokens.
const DRAW: f64 = 0.02;

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
