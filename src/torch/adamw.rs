//! AdamW over one flat buffer: the same few kernels whatever the number of tensors.
//!
//! # Source
//! Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.

use tch::{Kind, Tensor};

use crate::learn::LearnError;

/// Settings of the optimiser; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Keeps the division finite.
    pub epsilon: f64,
    /// Decoupled weight decay a unit of learning rate.
    pub weight_decay: f64,
    /// The gradient's norm is clipped to this.
    pub max_gradient_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_gradient_norm: 1.0 }
    }
}

/// Running means of one buffer.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    mean: Tensor,
    square: Tensor,
    step: i32,
}

impl AdamW {
    /// Starts at zero, for a buffer like `flat`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when libtorch refuses.
    pub fn new(flat: &Tensor, config: AdamWConfig) -> Result<Self, LearnError> {
        let zeros = || flat.f_detach()?.f_zeros_like();
        Ok(Self { config, mean: zeros()?, square: zeros()?, step: 0 })
    }

    /// Running means of the gradient and of its square.
    pub fn means(&self) -> (&Tensor, &Tensor) {
        (&self.mean, &self.square)
    }

    /// Goes to where an optimiser of the same buffer stood after so many steps.
    pub fn go_on(&mut self, mean: Tensor, square: Tensor, steps: i32) {
        (self.mean, self.square, self.step) = (mean, square, steps);
    }

    /// Changes `flat` in place. Both have the same length.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the shapes differ; [`LearnError::NotFinite`] when the gradient
    /// isn't finite (nothing is changed then).
    pub fn step(
        &mut self,
        flat: &mut Tensor,
        gradient: &Tensor,
        learning_rate: f64,
    ) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let norm = gradient.f_norm()?.f_to_kind(Kind::Double)?.f_double_value(&[])?;
        self.step_of(flat, gradient, norm, learning_rate)
    }

    /// The same for a part of a gradient whose whole length is `norm`: what was cut in two is clipped as
    /// one.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step_of(
        &mut self,
        flat: &mut Tensor,
        gradient: &Tensor,
        norm: f64,
        learning_rate: f64,
    ) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let c = &self.config;
        if !norm.is_finite() {
            return Err(LearnError::NotFinite { name: "gradient".into(), index: 0 });
        }
        let clip = (c.max_gradient_norm / norm.max(1e-12)).min(1.0);
        let gradient = gradient.f_mul_scalar(clip)?;
        self.step = self.step.saturating_add(1);
        let _ = self.mean.f_lerp_(&gradient, 1.0 - c.beta1)?;
        let _ = self.square.f_lerp_(&gradient.f_square()?, 1.0 - c.beta2)?;
        let corrected1 = 1.0 - c.beta1.powi(self.step);
        let corrected2 = 1.0 - c.beta2.powi(self.step);
        let spread = self.square.f_div_scalar(corrected2)?.f_sqrt()?.f_add_scalar(c.epsilon)?;
        let update = self.mean.f_div(&spread)?.f_mul_scalar(learning_rate / corrected1)?;
        if c.weight_decay > 0.0 {
            let _ = flat.f_mul_scalar_(1.0 - learning_rate * c.weight_decay)?;
        }
        let _ = flat.f_sub_(&update)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::{tensor, values};

    /// The algorithm written out on one number.
    fn by_hand(mut w: f64, gradients: &[f64], lr: f64, c: &AdamWConfig) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (t, g) in (1_i32..).zip(gradients) {
            m = c.beta1 * m + (1.0 - c.beta1) * g;
            v = c.beta2 * v + (1.0 - c.beta2) * g * g;
            let (m_hat, v_hat) = (m / (1.0 - c.beta1.powi(t)), v / (1.0 - c.beta2.powi(t)));
            w -= lr * c.weight_decay * w;
            w -= lr * m_hat / (v_hat.sqrt() + c.epsilon);
        }
        w
    }

    #[test]
    fn three_steps_are_those_of_the_algorithm() {
        let config =
            AdamWConfig { weight_decay: 0.1, max_gradient_norm: 1e9, ..AdamWConfig::default() };
        let gradients = [[0.3, -1.0], [0.1, 2.0], [-0.7, 0.5]];
        let mut flat = tensor(&[1.0, -2.0], &[2]).unwrap();
        let mut adam = AdamW::new(&flat, config).unwrap();
        for g in gradients {
            adam.step(&mut flat, &tensor(&g, &[2]).unwrap(), 0.01).unwrap();
        }
        let got = values(&flat).unwrap();
        for (at, start) in [1.0, -2.0].into_iter().enumerate() {
            let column: Vec<f64> = gradients.iter().map(|g| f64::from(g[at])).collect();
            let want = by_hand(start, &column, 0.01, &config);
            assert!((f64::from(got[at]) - want).abs() < 1e-6, "{} {want}", got[at]);
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut flat = tensor(&[1.0], &[1]).unwrap();
        let mut adam = AdamW::new(&flat, AdamWConfig::default()).unwrap();
        let bad = tensor(&[f32::NAN], &[1]).unwrap();
        assert_eq!(adam.step(&mut flat, &bad, 0.1).unwrap_err().kind(), "not_finite");
        assert_eq!(values(&flat).unwrap(), [1.0]);
    }

    #[test]
    fn a_long_gradient_is_clipped() {
        let run = |g: f32| {
            let mut flat = tensor(&[0.0, 0.0], &[2]).unwrap();
            let config = AdamWConfig { epsilon: 1.0, ..AdamWConfig::default() };
            let mut adam = AdamW::new(&flat, config).unwrap();
            adam.step(&mut flat, &tensor(&[g, 0.0], &[2]).unwrap(), 0.1).unwrap();
            values(&flat).unwrap()
        };
        assert_eq!(run(1.0), run(50.0));
        assert_ne!(run(1.0), run(0.5));
    }
}
