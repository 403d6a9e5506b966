//! Error feedback: what a lossy encoding leaves out of one round is added to the next.
//!
//! ```text
//! sent = Q(D + e)        e <- e + D - Q(D + e)
//! ```
//! The member keeps `e` beside its state, so that a restart doesn't lose it.
//!
//! # When the residual is void
//! `e` lives in the coordinates of the tensors. When the federation publishes an adapter whose LoRA
//! factors come from an SVD (`lora_product.rs`), the basis of every `lora_a` / `lora_b` is another
//! one and old residuals of these mean nothing: call [`ErrorFeedback::reset_lora`] for each such
//! version adopted. Dense tensors (heads, biases) keep their coordinates and their residuals.
//!
//! Source: Karimireddy et al. 2019, arXiv:1901.09847.

use super::lora_product::is_lora_factor;
use super::{Layout, LearnError, Quantizer, TensorSet};

/// The part of a member's deltas that was not sent yet.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorFeedback {
    residual: TensorSet,
}

impl ErrorFeedback {
    /// Starts with nothing left over.
    pub fn new(layout: &Layout) -> Self {
        Self { residual: TensorSet::zeros(layout) }
    }

    /// Goes on with the residual of an earlier run.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] when it is damaged.
    pub fn resume(residual: TensorSet) -> Result<Self, LearnError> {
        residual.check_finite()?;
        Ok(Self { residual })
    }

    /// Encodes `delta` plus the residual and keeps what the encoding lost.
    ///
    /// After an error nothing has changed.
    ///
    /// # Shapes
    /// `delta` has the layout that this was made for.
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when it hasn't, and those of [`Quantizer::encode`].
    pub fn encode(
        &mut self,
        quantizer: &Quantizer,
        delta: &TensorSet,
    ) -> Result<Vec<u8>, LearnError> {
        let layout = self.residual.layout();
        delta.check_layout(&layout)?;
        let mut wanted = delta.clone();
        for (sum, left) in wanted.values_mut().zip(self.residual.tensors()) {
            sum.iter_mut().zip(&left.data).for_each(|(s, e)| *s += e);
        }
        let encoded = quantizer.encode(&wanted)?;
        let sent = quantizer.decode(&layout, &encoded)?;
        for (left, sent) in wanted.values_mut().zip(sent.tensors()) {
            left.iter_mut().zip(&sent.data).for_each(|(s, q)| *s -= q);
        }
        self.residual = wanted;
        Ok(encoded)
    }

    /// Forgets the residuals of LoRA factors, whose basis has changed; keeps those of dense tensors.
    pub fn reset_lora(&mut self) {
        let factors: Vec<bool> =
            self.residual.tensors().iter().map(|t| is_lora_factor(&t.name)).collect();
        for (values, is_factor) in self.residual.values_mut().zip(factors) {
            if is_factor {
                values.fill(0.0);
            }
        }
    }

    /// What is left over, to be stored.
    pub fn residual(&self) -> &TensorSet {
        &self.residual
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::{Tensor, Width};

    fn set(parts: &[(&str, &[f32])]) -> TensorSet {
        let tensor = |(name, data): &(&str, &[f32])| Tensor {
            name: (*name).into(),
            shape: vec![data.len()],
            data: data.to_vec(),
        };
        TensorSet::new(parts.iter().map(tensor).collect()).unwrap()
    }

    fn int4() -> Quantizer {
        Quantizer::new(Width::Int4, 64).unwrap()
    }

    #[test]
    fn a_value_too_small_for_a_code_is_sent_in_the_end() {
        let delta = set(&[("w", &[7.0, 0.25])]); // scale 1: 0.25 alone rounds to 0 each time
        let mut feedback = ErrorFeedback::new(&delta.layout());
        let mut sent = Vec::new();
        for _ in 0..4 {
            let bytes = feedback.encode(&int4(), &delta).unwrap();
            sent.push(int4().decode(&delta.layout(), &bytes).unwrap().tensors()[0].data[1]);
        }
        assert_eq!(sent, [0.0, 0.0, 1.0, 0.0]); // 0.25, 0.5 (ties to even), 0.75 -> 1, -0.25 + 0.25
        assert_eq!(sent.iter().sum::<f32>(), 4.0 * 0.25);
        assert_eq!(feedback.residual(), &set(&[("w", &[0.0, 0.0])]));
    }

    #[test]
    fn a_rotated_basis_voids_the_factors_only() {
        let delta = set(&[
            ("head.weight", &[7.0, 0.2]),
            ("q.lora_a", &[7.0, 0.2]),
            ("q.lora_b", &[7.0, 0.2]),
        ]);
        let mut feedback = ErrorFeedback::new(&delta.layout());
        feedback.encode(&int4(), &delta).unwrap();
        feedback.reset_lora();
        let left =
            set(&[("head.weight", &[0.0, 0.2]), ("q.lora_a", &[0.0; 2]), ("q.lora_b", &[0.0; 2])]);
        assert_eq!(feedback.residual(), &left);
        assert_eq!(ErrorFeedback::resume(left).unwrap(), feedback);
    }

    #[test]
    fn a_refused_delta_leaves_the_residual_alone() {
        let delta = set(&[("w", &[7.0, 0.2])]);
        let mut feedback = ErrorFeedback::new(&delta.layout());
        feedback.encode(&int4(), &delta).unwrap();
        let before = feedback.clone();
        for bad in [set(&[("w", &[f32::NAN, 0.0])]), set(&[("v", &[0.0, 0.0])])] {
            assert!(feedback.encode(&int4(), &bad).is_err());
            assert_eq!(feedback, before);
        }
        assert_eq!(
            ErrorFeedback::resume(set(&[("w", &[f32::INFINITY])])).unwrap_err().kind(),
            "not_finite"
        );
    }

    proptest! {
        #[test]
        fn what_was_sent_and_what_is_left_are_what_was_learned(
            rounds in prop::collection::vec(prop::collection::vec(-1.0_f32..1.0, 70), 1..12),
        ) {
            let layout = set(&[("w", &[0.0; 70])]).layout();
            let mut feedback = ErrorFeedback::new(&layout);
            let (mut learned, mut sent) = (vec![0.0_f64; 70], vec![0.0_f64; 70]);
            for delta in &rounds {
                let bytes = feedback.encode(&int4(), &set(&[("w", delta)])).unwrap();
                let decoded = int4().decode(&layout, &bytes).unwrap();
                for at in 0..70 {
                    learned[at] += f64::from(delta[at]);
                    sent[at] += f64::from(decoded.tensors()[0].data[at]);
                }
            }
            for at in 0..70 {
                let left = f64::from(feedback.residual().tensors()[0].data[at]);
                prop_assert!((learned[at] - sent[at] - left).abs() < 1e-5);
            }
        }
    }
}
