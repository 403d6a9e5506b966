//! The named tensors that a model is built from.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};

use super::{dim, tensor, values};
use crate::learn::{Layout, LearnError, TensorSet};

/// Tensors by dotted path, e.g. `blocks.0.attn.q.weight`.
#[derive(Debug, Default)]
pub struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    /// Copies a tensor set into libtorch.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch can't take it.
    pub fn from_set(set: &TensorSet) -> Result<Self, LearnError> {
        let mut weights = Self::default();
        for t in set.tensors() {
            let shape = t.shape.iter().map(|d| dim(*d)).collect::<Result<Vec<_>, _>>()?;
            weights.insert(t.name.clone(), tensor(&t.data, &shape)?);
        }
        Ok(weights)
    }

    /// Puts a tensor under its name; an older one of that name goes.
    pub fn insert(&mut self, name: String, tensor: Tensor) {
        self.0.insert(name, tensor);
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The tensor of this name, of any shape.
    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).map(Tensor::shallow_clone)
    }

    /// All names with their tensors, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, t)| (name.as_str(), t))
    }

    /// Checks that names and shapes are those of `layout`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] names the first difference.
    pub fn check_layout(&self, layout: &Layout) -> Result<(), LearnError> {
        for (name, shape) in &layout.0 {
            let sizes = shape.iter().map(|d| dim(*d)).collect::<Result<Vec<_>, _>>()?;
            let _ = self.get(name, &sizes)?;
        }
        let wanted: BTreeSet<&str> = layout.0.iter().map(|(name, _)| name.as_str()).collect();
        match self.0.iter().find(|(name, _)| !wanted.contains(name.as_str())) {
            None => Ok(()),
            Some((name, t)) => Err(LearnError::LayoutMismatch {
                name: name.clone(),
                expected: "absent".into(),
                actual: format!("{:?}", t.size()),
            }),
        }
    }

    /// Checks that each value is finite.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] names the first tensor with one that isn't.
    pub fn check_finite(&self) -> Result<(), LearnError> {
        for (name, t) in &self.0 {
            // A sum is finite when all values are (and small enough): one pass, no copy.
            if t.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() {
                continue;
            }
            let index = values(t)?.iter().position(|x| !x.is_finite()).unwrap_or_default();
            return Err(LearnError::NotFinite { name: name.clone(), index });
        }
        Ok(())
    }

    /// Brings matrices to a kind and everything to a device. What was joined stays joined.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when memory is short.
    pub fn convert(&mut self, kind: Kind, device: Device) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let names: Vec<String> = self.0.keys().cloned().collect();
        let joined: Vec<&String> = names.iter().filter(|name| is_joined(name)).collect();
        let whole: Vec<&String> = names.iter().filter(|name| !is_joined(name)).collect();
        for name in joined {
            let Some(t) = self.0.get(name) else { continue };
            let new = t.f_to_device_(device, kind, false, false)?;
            let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
            let (layer, parts) = parts_of(layer);
            let mut start = 0;
            for part in parts {
                let part_name = format!("{layer}.{part}.weight");
                let Some(old) = self.0.get(&part_name) else { continue };
                let rows = old.size().first().copied().unwrap_or_default();
                self.0.insert(part_name, new.f_narrow(0, start, rows)?);
                start += rows;
            }
            self.0.insert(name.clone(), new);
        }
        for name in whole {
            let Some(t) = self.0.get(name) else { continue };
            let wanted = if t.dim() == 2 { kind } else { Kind::Float };
            if t.kind() != wanted || t.device() != device {
                let new = t.f_to_device_(device, wanted, false, false)?;
                self.0.insert(name.clone(), new);
            }
        }
        Ok(())
    }

    /// Joins matrices of one input under a new name: one block of memory, the old names become views
    /// of it.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a part is absent.
    pub fn fuse(&mut self, parts: &[String], joined: String) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let mut all = Vec::with_capacity(parts.len());
        for name in parts {
            all.push(self.0.remove(name).ok_or_else(|| LearnError::LayoutMismatch {
                name: name.clone(),
                expected: "a matrix".into(),
                actual: "absent".into(),
            })?);
        }
        let whole = Tensor::f_cat(&all, 0)?;
        let mut start = 0;
        for (name, part) in parts.iter().zip(&all) {
            let rows = part.size().first().copied().unwrap_or_default();
            self.0.insert(name.clone(), whole.f_narrow(0, start, rows)?);
            start += rows;
        }
        self.0.insert(joined, whole);
        Ok(())
    }

    /// Forgets joined matrices, after one of their parts was replaced.
    pub fn unfuse(&mut self) {
        self.0.retain(|name, _| !is_joined(name));
    }

    /// Another handle to each tensor (the values are shared).
    pub fn share(&self) -> Self {
        Self(self.0.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect())
    }

    /// The tensor of this name, which must have this shape.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] names both shapes.
    pub fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, LearnError> {
        let found = self.0.get(name);
        match found {
            Some(t) if t.size() == shape => Ok(t.shallow_clone()),
            _ => Err(LearnError::LayoutMismatch {
                name: name.to_owned(),
                expected: format!("{shape:?}"),
                actual: found.map_or_else(|| "absent".to_owned(), |t| format!("{:?}", t.size())),
            }),
        }
    }

    /// Names and shapes, in order; joined matrices are left out.
    pub fn layout(&self) -> Layout {
        let sizes = |t: &Tensor| t.size().iter().filter_map(|d| usize::try_from(*d).ok()).collect();
        let own = self.0.iter().filter(|(name, _)| !is_joined(name));
        Layout(own.map(|(name, t)| (name.clone(), sizes(t))).collect())
    }

    /// Bytes of all values; what is joined counts once.
    pub fn num_bytes(&self) -> u64 {
        let own = self.0.iter().filter(|(name, _)| !is_joined(name));
        own.map(|(_, t)| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum()
    }

    /// Copies the tensors out of libtorch; joined matrices are left out.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn to_set(&self) -> Result<TensorSet, LearnError> {
        let mut tensors = Vec::with_capacity(self.0.len());
        for (name, t) in self.0.iter().filter(|(name, _)| !is_joined(name)) {
            let shape = t.size().iter().filter_map(|d| usize::try_from(*d).ok()).collect();
            tensors.push(crate::learn::Tensor { name: name.clone(), shape, data: values(t)? });
        }
        TensorSet::new(tensors)
    }
}

/// Layer and parts of a joined matrix.
fn parts_of(joined: &str) -> (&str, &'static [&'static str]) {
    match joined.rsplit_once('.') {
        Some((layer, "qkv")) => (layer, &["q", "k", "v"]),
        Some((layer, "gate_up")) => (layer, &["gate", "up"]),
        _ => (joined, &[]),
    }
}

fn is_joined(name: &str) -> bool {
    JOINED.iter().any(|joined| name.ends_with(joined))
}

/// Endings of names that [`Weights::fuse`] made.
const JOINED: [&str; 2] = [".qkv.weight", ".gate_up.weight"];
