//! The named tensors that a model is built from.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{dim, tensor, values};
use crate::learn::{LearnError, TensorSet};

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

    /// Copies the tensors out of libtorch.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn to_set(&self) -> Result<TensorSet, LearnError> {
        let mut tensors = Vec::with_capacity(self.0.len());
        for (name, t) in &self.0 {
            let shape = t.size().iter().filter_map(|d| usize::try_from(*d).ok()).collect();
            tensors.push(crate::learn::Tensor { name: name.clone(), shape, data: values(t)? });
        }
        TensorSet::new(tensors)
    }
}
