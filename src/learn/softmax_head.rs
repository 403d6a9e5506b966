//! One linear layer with softmax: what the first learner adapts. Internal to `learn`.

use super::{ClassHead, Layout, LearnError, Prediction, TensorSet};

/// `[C, F + 1]` row-major in f64: weights of a class, then its bias.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    values: Vec<f64>,
    classes: usize,
    width: usize,
}

impl Head {
    pub(super) fn zeros(classes: usize, width: usize) -> Self {
        Self { values: vec![0.0; classes * (width + 1)], classes, width }
    }

    pub(super) fn zeros_like(other: &Self) -> Self {
        Self::zeros(other.classes, other.width)
    }

    /// Reads `head.weight` `[C, F]` and `head.bias` `[C]`.
    pub(super) fn from_tensors(
        adapter: &TensorSet,
        classes: usize,
        width: usize,
    ) -> Result<Self, LearnError> {
        let layout = Layout(vec![
            (BIAS.to_owned(), vec![classes]),
            (WEIGHT.to_owned(), vec![classes, width]),
        ]);
        adapter.check_layout(&layout)?;
        adapter.check_finite()?;
        let values = |name| adapter.get(name).map_or(&[][..], |t| t.data.as_slice());
        let mut head = Self::zeros(classes, width);
        let rows = values(WEIGHT).chunks_exact(width).zip(values(BIAS));
        for (to, (weights, bias)) in head.values.chunks_exact_mut(width + 1).zip(rows) {
            for (to, from) in to.iter_mut().zip(weights.iter().chain([bias])) {
                *to = f64::from(*from);
            }
        }
        Ok(head)
    }

    /// Adds the outer product of an error a class and (features, 1).
    pub(super) fn add_outer(&mut self, error: impl Iterator<Item = f64>, row: &[f64]) {
        let row = not_zero(row);
        for (to, error) in self.values.chunks_exact_mut(self.width + 1).zip(error) {
            for (at, x) in &row {
                if let Some(to) = to.get_mut(*at) {
                    *to += error * x;
                }
            }
            if let Some(bias) = to.last_mut() {
                *bias += error;
            }
        }
    }

    pub(super) fn scale(&mut self, factor: f64) {
        self.values.iter_mut().for_each(|x| *x *= factor);
    }

    /// Adds `factor` times the other's values.
    pub(super) fn add_scaled(&mut self, factor: f64, other: &Self) {
        for (to, x) in self.values.iter_mut().zip(&other.values) {
            *to += factor * x;
        }
    }

    /// Adds `factor` times the other's weights, and leaves the biases.
    pub(super) fn add_scaled_weight(&mut self, factor: f64, other: &Self) {
        let rows = other.values.chunks_exact(self.width + 1);
        for (to, from) in self.values.chunks_exact_mut(self.width + 1).zip(rows) {
            for (to, x) in to.iter_mut().zip(from).take(self.width) {
                *to += factor * x;
            }
        }
    }

    pub(super) fn classes(&self) -> usize {
        self.classes
    }

    /// As `head.weight` and `head.bias`, rounded to f32.
    #[expect(clippy::cast_possible_truncation, reason = "an adapter is f32; infinity is caught")]
    pub(super) fn to_tensors(&self) -> TensorSet {
        let mut set = TensorSet::zeros(&Layout(vec![
            (BIAS.to_owned(), vec![self.classes]),
            (WEIGHT.to_owned(), vec![self.classes, self.width]),
        ]));
        let rows = || self.values.chunks_exact(self.width + 1);
        let biases = rows().filter_map(|row| row.last());
        let weights = rows().flat_map(|row| row.iter().take(self.width));
        let mut parts = set.values_mut();
        for (to, x) in parts.next().into_iter().flatten().zip(biases) {
            *to = *x as f32;
        }
        for (to, x) in parts.next().into_iter().flatten().zip(weights) {
            *to = *x as f32;
        }
        drop(parts);
        set
    }

    /// The same as a layer that was learned from embeddings `[n, F]` with labels `[n]`.
    pub(super) fn to_class_head(&self, embeddings: &[f32], labels: &[usize]) -> ClassHead {
        let set = self.to_tensors();
        let values = |name| set.get(name).map_or(&[][..], |tensor| tensor.data.as_slice());
        ClassHead::of(values(WEIGHT), values(BIAS), embeddings, labels)
    }

    /// `[C]`.
    pub(super) fn logits(&self, row: &[f64]) -> Vec<f64> {
        let row = not_zero(row);
        let dot = |class: &[f64]| -> f64 {
            let of = |(at, x): &(usize, f64)| class.get(*at).map_or(0.0, |w| w * x);
            row.iter().map(of).sum::<f64>() + class.last().copied().unwrap_or_default()
        };
        self.values.chunks_exact(self.width + 1).map(dot).collect()
    }

    /// `[C]`, sums to 1.
    pub(super) fn probabilities(&self, row: &[f64]) -> Vec<f64> {
        softmax(self.logits(row))
    }

    #[expect(clippy::cast_possible_truncation, reason = "probabilities are answered as f32")]
    pub(super) fn prediction(&self, row: &[f64]) -> Prediction {
        let p = self.probabilities(row);
        let best = p.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let class = best.map_or(0, |(class, _)| class);
        Prediction { class, probabilities: p.into_iter().map(|p| p as f32).collect() }
    }

    #[cfg(test)]
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        self.values.iter_mut()
    }
}

/// Where a row isn't zero: of a text's thousands of hashed places it is in a few dozen.
fn not_zero(row: &[f64]) -> Vec<(usize, f64)> {
    row.iter().copied().enumerate().filter(|(_, x)| *x != 0.0).collect()
}

/// Probabilities of logits, shifted by the largest so that nothing overflows.
pub(super) fn softmax(logits: Vec<f64>) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.into_iter().map(|z| (z - top).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

const WEIGHT: &str = "head.weight";
const BIAS: &str = "head.bias";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_and_back() {
        let mut head = Head::zeros(2, 3);
        for (x, value) in head.values_mut().zip(1_u8..) {
            *x = f64::from(value);
        }
        let tensors = head.to_tensors();
        assert_eq!(tensors.get(WEIGHT).unwrap().data, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0]);
        assert_eq!(tensors.get(BIAS).unwrap().data, [4.0, 8.0]);
        assert_eq!(Head::from_tensors(&tensors, 2, 3).unwrap(), head);
    }

    #[test]
    fn softmax_survives_large_logits() {
        assert_eq!(softmax(vec![1e300, 1e300]), [0.5, 0.5]);
        let p = softmax(vec![0.0, 2.0_f64.ln()]);
        assert!((p[1] - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_bias_counts_as_a_feature_of_one() {
        let mut head = Head::zeros(1, 2);
        head.add_outer([2.0].into_iter(), &[3.0, 5.0]);
        assert_eq!(head.logits(&[1.0, 1.0]), [6.0 + 10.0 + 2.0]);
    }
}
