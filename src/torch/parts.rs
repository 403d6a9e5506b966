//! What a model is built from: the base's tensors, and what an adapter puts beside or over them.
//!
//! Layers ask by name and never know which kind of adapter there is: `q.lora_a` lies beside
//! `q.weight`, a `head.weight` that trains whole lies over the base's.

use std::collections::BTreeMap;

use tch::Tensor;

use super::weights::Weights;
use crate::learn::LearnError;

/// An adapter's tensors as handles into its flat buffer.
#[derive(Debug, Default)]
pub struct Attached {
    /// By name: new ones, and those that replace one of the base.
    pub tensors: Weights,
    /// Factor of the low-rank product of each module that has one.
    pub scaling: BTreeMap<String, f64>,
    /// Share of a low-rank path's inputs that a training step leaves out.
    pub dropout: f64,
}

/// A base with or without an adapter.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    base: &'a Weights,
    adapter: Option<&'a Attached>,
}

impl<'a> Parts<'a> {
    /// The bare base.
    pub fn bare(base: &'a Weights) -> Self {
        Self { base, adapter: None }
    }

    /// The base with an adapter.
    pub fn with(base: &'a Weights, adapter: &'a Attached) -> Self {
        Self { base, adapter: Some(adapter) }
    }

    /// The tensor of this name and shape; the adapter's goes before the base's.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] names both shapes.
    pub fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, LearnError> {
        match self.adapter {
            Some(adapter) if adapter.tensors.has(name) => adapter.tensors.get(name, shape),
            _ => self.base.get(name, shape),
        }
    }

    /// As [`Parts::get`], or nothing where neither has the name.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when it has another shape.
    pub fn find(&self, name: &str, shape: &[i64]) -> Result<Option<Tensor>, LearnError> {
        let there = self.base.has(name) || self.adapter.is_some_and(|a| a.tensors.has(name));
        if there { self.get(name, shape).map(Some) } else { Ok(None) }
    }

    /// What the adapter alone has under a name, of any shape.
    pub fn added(&self, name: &str) -> Option<Tensor> {
        self.adapter?.tensors.find(name)
    }

    /// Factor of a module's low-rank product.
    pub fn scaling(&self, module: &str) -> f64 {
        self.adapter.and_then(|a| a.scaling.get(module).copied()).unwrap_or(1.0)
    }

    /// See [`Attached::dropout`].
    pub fn dropout(&self) -> f64 {
        self.adapter.map_or(0.0, |a| a.dropout)
    }
}
