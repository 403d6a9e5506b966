//! A small convolutional network for grey images: the `LeNet` kind that federated benchmarks use.
//!
//! ```text
//! [n, 1, 28, 28] -> conv 5x5, 6 -> pool 2 -> ReLU -> conv 5x5, 16 -> pool 2 -> ReLU
//!                -> [n, 256] -> 120 -> ReLU -> 84 -> ReLU -> [n, C] logits
//! ```
//! All of it trains: there is no frozen base, and the "adapter" of the federation is the whole model.
//! Pooling goes before the rectifier, which gives the same values and gradients with a quarter of the work.
//!
//! What trains and serves it is in `cnn_trainer.rs`, its halves are in `cnn_split.rs`.

use rand_mt::Mt;
use tch::{Kind, Tensor};

use super::tensor;
use crate::learn::{Layout, LearnError, Tensor as Values, TensorSet};

/// Sizes of the network that may differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CnnConfig {
    /// Number of classes C.
    pub classes: u32,
    /// Mean of the pixels after division by 255.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
}

/// Rows and columns of an image.
pub const SIDE: usize = 28;

/// Values of an embedding, the last hidden layer.
pub const WIDTH: usize = 84;

/// Values that the convolutions make of an image: 16 maps of 4 x 4.
pub const FLAT: usize = 256;

/// How many convolutions there are.
pub const CONVOLUTIONS: u32 = 2;

impl CnnConfig {
    /// Names and shapes of all weights: 44,426 values for ten classes.
    pub fn layout(&self) -> Layout {
        let classes = usize::try_from(self.classes).unwrap_or(usize::MAX);
        let shapes: [(&str, &[usize]); LAYERS] = [
            ("conv1", &[6, 1, 5, 5]),
            ("conv2", &[16, 6, 5, 5]),
            ("fc1", &[120, FLAT]),
            ("fc2", &[WIDTH, 120]),
            ("fc3", &[classes, WIDTH]),
        ];
        let mut all = Vec::with_capacity(2 * LAYERS);
        for (name, shape) in shapes {
            all.push((format!("{name}.bias"), shape.iter().take(1).copied().collect()));
            all.push((format!("{name}.weight"), shape.to_vec()));
        }
        Layout(all)
    }

    /// Checks what no network can have.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names it.
    pub fn check(&self) -> Result<(), LearnError> {
        let bad = |what, expected: &str, actual: String| {
            Err(LearnError::OutOfRange { what, expected: expected.to_owned(), actual })
        };
        if !(2..=256).contains(&self.classes) {
            return bad("classes", "2 to 256", self.classes.to_string());
        }
        if !(self.mean.is_finite() && self.deviation.is_finite() && self.deviation > 0.0) {
            let actual = format!("{}, {}", self.mean, self.deviation);
            return bad("mean and deviation of pixels", "finite, the latter positive", actual);
        }
        Ok(())
    }

    /// Starting weights: those that `PyTorch` gives these layers after `torch.manual_seed(seed)`, so that curves
    /// published with a seed can be followed from their first point.
    ///
    /// Uniform within 1 / sqrt(inputs of a unit), biases too; of the seed its lower 32 bits.
    ///
    /// # Errors
    /// [`LearnError`] when the layout can't be that of a set.
    pub fn initial(&self, seed: u64) -> Result<TensorSet, LearnError> {
        #[expect(clippy::cast_possible_truncation, reason = "as PyTorch seeds its generator")]
        let mut twister = Mt::new(seed as u32);
        let mut tensors = Vec::with_capacity(2 * LAYERS);
        for layer in self.layout().0.chunks_exact(2) {
            let [(bias, per_unit), (weight, shape)] = layer else { continue };
            let fan_in = shape.iter().skip(1).product();
            let mut draw = |shape: &[usize]| -> Vec<f32> {
                let count = shape.iter().product();
                (0..count).map(|_| uniform(&mut twister, inverse_root(fan_in))).collect()
            };
            // Weights are drawn before their biases and stand behind them.
            let (weights, biases) = (draw(shape), draw(per_unit));
            let values = |name: &String, shape: &Vec<usize>, data| Values {
                name: name.clone(),
                shape: shape.clone(),
                data,
            };
            tensors.push(values(bias, per_unit, biases));
            tensors.push(values(weight, shape, weights));
        }
        TensorSet::new(tensors)
    }

    /// Images `[n, SIDE, SIDE]` as the network takes them, `[n, 1, SIDE, SIDE]`.
    ///
    /// # Errors
    /// [`LearnError`] when there are no whole images.
    pub(super) fn input(&self, pixels: &Tensor) -> Result<Tensor, LearnError> {
        let side = super::dim(SIDE)?;
        let x = pixels.f_reshape([-1, 1, side, side])?;
        // (p / 255 - mean) / deviation in two kernels, in the one copy that is made: a client's images are most
        // of its memory.
        let mut x = x.f_to_dtype(Kind::Float, false, true)?;
        let _ = x.f_mul_scalar_(1.0 / (255.0 * self.deviation))?;
        let _ = x.f_sub_scalar_(self.mean / self.deviation)?;
        Ok(x)
    }
}

/// The weights as tensors that libtorch may take gradients of.
#[derive(Debug)]
pub(super) struct Cnn {
    /// In the order of the layout: bias, weight, layer by layer.
    leaves: Vec<Tensor>,
}

impl Cnn {
    /// Views into `flat`, which holds all values in the order of the layout: whoever changes it changes
    /// the network.
    pub(super) fn over(flat: &Tensor, layout: &Layout, train: bool) -> Result<Self, LearnError> {
        let mut leaves = Vec::with_capacity(layout.0.len());
        let mut from = 0;
        for (_, shape) in &layout.0 {
            let shape: Vec<i64> = shape.iter().map(|d| super::dim(*d)).collect::<Result<_, _>>()?;
            let count: i64 = shape.iter().product();
            let view = flat.f_narrow(0, from, count)?.f_view(shape.as_slice())?.f_detach()?;
            leaves.push(view.f_set_requires_grad(train)?);
            from += count;
        }
        Ok(Self { leaves })
    }

    pub(super) fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// Logits `[n, C]` of `[n, 1, SIDE, SIDE]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        self.classify(&self.embed(x)?)
    }

    /// What the last layer sees, `[n, WIDTH]`, of `[n, 1, SIDE, SIDE]`.
    pub(super) fn embed(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        self.hidden(&self.convolve(x)?)
    }

    /// What the convolutions make, `[n, FLAT]`, of `[n, 1, SIDE, SIDE]`; the first leaves are theirs.
    pub(super) fn convolve(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let [b1, w1, b2, w2, ..] = self.leaves.as_slice() else { return Err(missing()) };
        let x = convolved(x, w1, b1)?;
        Ok(convolved(&x, w2, b2)?.f_flatten(1, -1)?)
    }

    /// What the last layer sees, `[n, WIDTH]`, of `[n, FLAT]`; the last leaves are the dense layers'.
    pub(super) fn hidden(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let [.., b3, w3, b4, w4, _, _] = self.leaves.as_slice() else { return Err(missing()) };
        let x = x.f_linear(w3, Some(b3))?.f_relu()?;
        Ok(x.f_linear(w4, Some(b4))?.f_relu()?)
    }

    /// Logits `[n, C]` of embeddings `[n, WIDTH]`.
    pub(super) fn classify(&self, embeddings: &Tensor) -> Result<Tensor, LearnError> {
        let [.., bias, weight] = self.leaves.as_slice() else { return Err(missing()) };
        Ok(embeddings.f_linear(weight, Some(bias))?)
    }
}

fn missing() -> LearnError {
    LearnError::Engine { engine: "cnn", message: "a layer is missing".into() }
}

fn convolved(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, LearnError> {
    let x = x.f_conv2d(weight, Some(bias), [1, 1], [0, 0], [1, 1], 1)?;
    Ok(x.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?.f_relu()?)
}

/// All values of a set, one after the other.
pub(super) fn flattened(set: &TensorSet) -> Result<Tensor, LearnError> {
    let all: Vec<f32> = set.tensors().iter().flat_map(|t| t.data.iter().copied()).collect();
    let count = super::dim(all.len())?;
    tensor(&all, &[count])
}

#[expect(clippy::cast_precision_loss, reason = "inputs of a unit")]
fn inverse_root(n: usize) -> f64 {
    1.0 / (n.max(1) as f64).sqrt()
}

/// A draw as libtorch's `uniform_(-bound, bound)` makes it on the processor: 24 bits of the generator.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "24 bits; weights are f32"
)]
fn uniform(twister: &mut Mt, bound: f64) -> f32 {
    const BITS: u32 = 1 << 24;
    let (from, to) = (-bound as f32, bound as f32);
    let x = (twister.next_u32() % BITS) as f32 / BITS as f32;
    x * (to - from) + from
}

const LAYERS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use crate::torch::values;

    const CONFIG: CnnConfig = CnnConfig { classes: 10, mean: 0.286, deviation: 0.353 };

    #[test]
    fn it_has_44426_values_and_starts_from_its_seed() {
        let set = CONFIG.initial(1).unwrap();
        assert_eq!(set.num_values(), 44_426);
        assert_eq!(set.layout(), CONFIG.layout());
        assert_eq!(set, CONFIG.initial(1).unwrap());
        assert_ne!(set, CONFIG.initial(2).unwrap());
        let within = |name: &str, bound: f32| {
            set.get(name).unwrap().data.iter().all(|value| value.abs() <= bound)
        };
        assert!(within("conv1.weight", 0.2) && within("conv1.bias", 0.2));
        assert!(within("fc1.weight", 1.0 / 16.0) && within("fc1.bias", 1.0 / 16.0));
        assert!(!within("fc1.weight", 0.9 / 16.0));
    }

    /// First and last values and the sums of `torch.nn` layers made after `torch.manual_seed(0)`, torch 2.13.
    #[test]
    fn it_starts_where_pytorch_starts() {
        let set = CONFIG.initial(0).unwrap();
        for (name, first, last, sum) in [
            ("conv1.weight", -0.001_497_364, -0.153_262_36, -1.023_465_2),
            ("conv1.bias", -0.187_170_42, -0.192_886_38, -0.371_616_38),
            ("fc1.weight", 0.034_364_745, 0.043_235_846, 11.078_575),
            ("fc3.bias", -0.015_489_018, 0.038_255_263, 0.111_476_9),
        ] {
            let data = &set.get(name).unwrap().data;
            assert!((data[0] - first).abs() < 1e-7, "{name}: {}", data[0]);
            assert!((data[data.len() - 1] - last).abs() < 1e-7, "{name}");
            let ours: f64 = data.iter().copied().map(f64::from).sum();
            assert!((ours - sum).abs() < 1e-5, "{name}: {ours}");
        }
    }

    #[test]
    fn pixels_are_scaled_by_mean_and_deviation() {
        let pixels = Tensor::f_from_slice(&[255_u8; SIDE * SIDE]).unwrap();
        let x = values(&CONFIG.input(&pixels).unwrap()).unwrap();
        assert!((f64::from(x[5]) - (1.0 - 0.286) / 0.353).abs() < 1e-5);
        assert!(CONFIG.input(&Tensor::f_from_slice(&[0_u8; 100]).unwrap()).is_err());
    }

    /// The network written out in plain Rust, the rectifier before pooling as in the papers.
    fn by_hand(set: &TensorSet, image: &[f32]) -> Vec<f32> {
        let get = |name: &str| set.get(name).unwrap();
        let conv = |maps: &[Vec<f32>], side: usize, layer: &str| -> (Vec<Vec<f32>>, usize) {
            let (weight, bias) = (get(&format!("{layer}.weight")), get(&format!("{layer}.bias")));
            let (out, size) = (side - 4, (side - 4) / 2);
            let mut all = Vec::new();
            for (o, bias) in bias.data.iter().enumerate() {
                let mut map = vec![0.0_f32; out * out];
                for y in 0..out {
                    for x in 0..out {
                        let mut sum = f64::from(*bias);
                        for (i, from) in maps.iter().enumerate() {
                            for dy in 0..5 {
                                for dx in 0..5 {
                                    let w = weight.data[((o * maps.len() + i) * 5 + dy) * 5 + dx];
                                    sum += f64::from(w * from[(y + dy) * side + x + dx]);
                                }
                            }
                        }
                        map[y * out + x] = narrow(sum.max(0.0));
                    }
                }
                let pooled = (0..size * size).map(|at| {
                    let (y, x) = (2 * (at / size), 2 * (at % size));
                    let four = [0, 1, out, out + 1].map(|more| map[y * out + x + more]);
                    four.into_iter().fold(0.0, f32::max)
                });
                all.push(pooled.collect());
            }
            (all, size)
        };
        let (maps, side) = conv(&[image.to_vec()], SIDE, "conv1");
        let (maps, _) = conv(&maps, side, "conv2");
        let mut x = maps.concat();
        for layer in ["fc1", "fc2", "fc3"] {
            let (weight, bias) = (get(&format!("{layer}.weight")), get(&format!("{layer}.bias")));
            let rows = weight.data.chunks(x.len());
            let unit = |(row, bias): (&[f32], &f32)| {
                let sum: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(w * x)).sum();
                let y = narrow(sum + f64::from(*bias));
                if layer == "fc3" { y } else { y.max(0.0) }
            };
            x = rows.zip(&bias.data).map(unit).collect();
        }
        x
    }

    #[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
    fn narrow(value: f64) -> f32 {
        value as f32
    }

    #[test]
    fn logits_are_those_of_the_network_written_out() {
        let set = CONFIG.initial(3).unwrap();
        let mut stream = Stream::new(3, "image");
        let image: Vec<f32> = (0..SIDE * SIDE).map(|_| narrow(stream.normal())).collect();
        let net = Cnn::over(&flattened(&set).unwrap(), &CONFIG.layout(), false).unwrap();
        let x = tensor(&image, &[1, 1, 28, 28]).unwrap();
        let logits = values(&net.forward(&x).unwrap()).unwrap();
        for (ours, expected) in logits.iter().zip(by_hand(&set, &image)) {
            assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
        }
    }

    #[test]
    fn sizes_that_no_network_has_are_refused() {
        for bad in [
            CnnConfig { classes: 1, ..CONFIG },
            CnnConfig { classes: 257, ..CONFIG },
            CnnConfig { deviation: 0.0, ..CONFIG },
            CnnConfig { mean: f64::NAN, ..CONFIG },
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), "out_of_range");
        }
        assert!(CONFIG.check().is_ok());
    }
}
