//! Named tensors in one fixed order: what an adapter, a delta or a head is made of.

use super::LearnError;

/// One named tensor of f32, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Dotted path, e.g. `blocks.0.attn.q.lora_a`.
    pub name: String,
    /// Sizes, outermost first; an empty shape is a scalar.
    pub shape: Vec<usize>,
    /// `shape`'s product many values.
    pub data: Vec<f32>,
}

/// Tensors sorted by name, each name once.
///
/// The order is part of the value: all sums run in it, so that all nodes get the same bits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TensorSet {
    tensors: Vec<Tensor>,
}

/// Names and shapes of a [`TensorSet`], in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout(pub Vec<(String, Vec<usize>)>);

impl TensorSet {
    /// Sorts and takes the tensors.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a name comes twice or a shape disagrees with its data.
    pub fn new(mut tensors: Vec<Tensor>) -> Result<Self, LearnError> {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for tensor in &tensors {
            let wanted = tensor.shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
            if wanted != Some(tensor.data.len()) {
                return Err(LearnError::LayoutMismatch {
                    name: tensor.name.clone(),
                    expected: format!("{:?}", tensor.shape),
                    actual: format!("{} values", tensor.data.len()),
                });
            }
        }
        for pair in tensors.windows(2) {
            if let [a, b] = pair
                && a.name == b.name
            {
                return Err(LearnError::LayoutMismatch {
                    name: a.name.clone(),
                    expected: "one tensor of this name".into(),
                    actual: "two".into(),
                });
            }
        }
        Ok(Self { tensors })
    }

    /// All zeros in the given layout.
    pub fn zeros(layout: &Layout) -> Self {
        let zero = |(name, shape): &(String, Vec<usize>)| Tensor {
            name: name.clone(),
            shape: shape.clone(),
            data: vec![0.0; shape.iter().product()],
        };
        Self { tensors: layout.0.iter().map(zero).collect() }
    }

    /// Values of each tensor, for changes in place (names and shapes stay).
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.tensors.iter_mut().map(|t| t.data.as_mut_slice())
    }

    /// Name and values of each tensor, for changes in place.
    pub fn named_values_mut(&mut self) -> impl Iterator<Item = (&str, &mut [f32])> {
        self.tensors.iter_mut().map(|t| (t.name.as_str(), t.data.as_mut_slice()))
    }

    /// The tensors for whose names `keep` holds.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self { tensors: self.tensors.iter().filter(|t| keep(&t.name)).cloned().collect() }
    }

    /// The tensors in order of their names.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    /// Number of values in all tensors.
    pub fn num_values(&self) -> usize {
        self.tensors.iter().map(|t| t.data.len()).sum()
    }

    /// Names and shapes.
    pub fn layout(&self) -> Layout {
        Layout(self.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect())
    }

    /// Checks that names and shapes are those of `layout`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] names the first difference.
    pub fn check_layout(&self, layout: &Layout) -> Result<(), LearnError> {
        let absent = || "absent".to_owned();
        for at in 0..layout.0.len().max(self.tensors.len()) {
            let want = layout.0.get(at);
            let have = self.tensors.get(at);
            let same = match (want, have) {
                (Some((name, shape)), Some(t)) => *name == t.name && *shape == t.shape,
                _ => false,
            };
            if !same {
                let name = want.map(|(n, _)| n).or(have.map(|t| &t.name)).cloned();
                return Err(LearnError::LayoutMismatch {
                    name: name.unwrap_or_default(),
                    expected: want.map_or_else(absent, |(n, s)| format!("{n} {s:?}")),
                    actual: have.map_or_else(absent, |t| format!("{} {:?}", t.name, t.shape)),
                });
            }
        }
        Ok(())
    }

    /// Checks that each value is finite.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] names the first that isn't.
    pub fn check_finite(&self) -> Result<(), LearnError> {
        for tensor in &self.tensors {
            if let Some(index) = tensor.data.iter().position(|x| !x.is_finite()) {
                return Err(LearnError::NotFinite { name: tensor.name.clone(), index });
            }
        }
        Ok(())
    }

    /// Euclidean norm over all values, summed in f64 in order.
    pub fn norm(&self) -> f64 {
        let squares = |t: &Tensor| t.data.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        self.tensors.iter().map(squares).sum::<f64>().sqrt()
    }
}

/// Number of values that a shape asks for; it may come from outside.
pub(super) fn num_values(shape: &[usize]) -> Result<usize, LearnError> {
    shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).ok_or_else(|| LearnError::OutOfRange {
        what: "values of a tensor",
        expected: "a number that fits a usize".into(),
        actual: format!("shape {shape:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], data: &[f32]) -> Tensor {
        Tensor { name: name.into(), shape: shape.to_vec(), data: data.to_vec() }
    }

    #[test]
    fn a_set_is_sorted_and_names_are_unique() {
        let set = TensorSet::new(vec![tensor("b", &[1], &[2.0]), tensor("a", &[1], &[1.0])]);
        assert_eq!(set.unwrap().tensors()[0].name, "a");
        let twice = TensorSet::new(vec![tensor("a", &[1], &[2.0]), tensor("a", &[1], &[1.0])]);
        assert_eq!(twice.unwrap_err().kind(), "layout_mismatch");
    }

    #[test]
    fn a_shape_that_overflows_is_refused() {
        let huge = tensor("a", &[0, usize::MAX, 2], &[]);
        assert!(TensorSet::new(vec![huge]).is_ok(), "0 x anything is 0 values");
        let huge = tensor("a", &[usize::MAX, 2], &[]);
        assert!(TensorSet::new(vec![huge]).is_err());
    }

    #[test]
    fn the_first_bad_value_is_named() {
        let set = TensorSet::new(vec![tensor("w", &[3], &[0.0, f32::NAN, 1.0])]).unwrap();
        let error = set.check_finite().unwrap_err();
        assert_eq!(error, LearnError::NotFinite { name: "w".into(), index: 1 });
    }
}
