//! Knowledge as a generator: a small network that makes latents of a class, so that whoever lacks the class can
//! learn what the others tell it by.
//!
//! ```text
//!   noise [32] ---+
//!                 +--> linear, ReLU [64] --> linear --> latent [E] --> classification layer of the ensemble
//!   class [C] ----+
//!
//!   minimised:  mean CE(class, p(latent))  +  exp(- mean over pairs of |noise apart|^2 |latents apart|)
//!             + 10 mean over values of (mean^2 + (variance - 1)^2)
//! ```
//! Its maker needs the members' classification layers ([`ClassHead`]) and no example of anybody. The second term, over the
//! pairs of one class, keeps it from making one and the same latent of a class. The third keeps latents where
//! embeddings lie: latents are trained in standard deviations from their mean. Without it they satisfy the layers
//! somewhere far off, and teach a model that has examples of its own next to nothing. Members take
//! latents as examples, see [`super::Lesson`]; their models have to see inputs as the layers do.
//!
//! Classes are drawn evenly among those that anybody knows, and not by the members' counts: those are claims, and one
//! liar would own the draw.
//!
//! Source: Zhu et al. 2021, arXiv:2105.10056 (`FedGen`); the third term is Zhang et al. 2022, arXiv:2112.12371 (DENSE), with
//! moments of embeddings in the place of a network's own. Called by `protocol/heads.rs` and the learners.

use super::softmax_head::softmax;
use super::{ClassHead, EMBEDDING_BOUND, LearnError, Tensor, TensorSet, count_weight, narrow};
use crate::rng::Stream;

/// Largest absolute value of a generator's parameter that is believed.
pub const GENERATOR_BOUND: f32 = 1e3;

/// Most values of noise, and most hidden values, of a generator that is believed.
pub const MAX_HIDDEN: usize = 1_024;

/// A generator of latents.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentGenerator {
    /// `[H, Z + C]`, a class's inputs last; `[H]`; `[E, H]`; `[E]`.
    parts: [Vec<f64>; 4],
    noise: usize,
    /// `[C]`: examples behind each class, 0 where nobody knows it.
    counts: Vec<u64>,
}

/// Latents with their classes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Latents {
    /// `[n, E]` row-major.
    pub x: Vec<f32>,
    /// `[n]`.
    pub labels: Vec<usize>,
}

/// What a batch comes to.
struct Value {
    objective: f64,
    /// In the order of [`LatentGenerator::parts`].
    gradient: [Vec<f64>; 4],
}

impl LatentGenerator {
    /// Trains one against a layer, for as many steps as suffice for the sizes that are believed.
    ///
    /// # Determinism
    /// The same layer and seed give the same bits on one machine.
    /// # Errors
    /// Those of [`ClassHead::check`], and [`LearnError::NotFinite`] when a loss isn't.
    pub fn train(head: &ClassHead, seed: u64) -> Result<Self, LearnError> {
        head.check(head.classes(), head.width())?;
        let mut stream = Stream::new(seed, "latent generator");
        let mut generator = Self::new(NOISE, HIDDEN, head, &mut stream);
        let known = generator.known();
        if known.is_empty() {
            return Ok(generator); // nobody has enough examples of anything
        }
        // What the layers say of latents in standard deviations from the mean.
        let places: Vec<(f64, f64)> = head.places().collect();
        let layer: Vec<(usize, Vec<f64>)> = known
            .iter()
            .filter_map(|class| Some((*class, in_deviations(head.rows.row(*class)?, &places))))
            .collect();
        let mut adam = Adam::new(&generator.parts);
        for _ in 0..STEPS {
            let noise: Vec<f64> = (0..BATCH * NOISE).map(|_| stream.normal()).collect();
            let labels: Vec<usize> = known.iter().copied().cycle().take(BATCH).collect();
            let value = generator.value(&layer, &noise, &labels);
            if !value.objective.is_finite() {
                return Err(LearnError::NotFinite { name: "loss of a generator".into(), index: 0 });
            }
            adam.step(&mut generator.parts, &value.gradient);
        }
        generator.put(&places);
        Ok(generator)
    }

    /// Makes latents as embeddings are, from those in standard deviations.
    fn put(&mut self, places: &[(f64, f64)]) {
        let [first, hidden, second, biases] = &mut self.parts;
        let rows = second.chunks_exact_mut(hidden.len().max(1)).zip(biases.iter_mut());
        for ((row, bias), (mean, spread)) in rows.zip(places) {
            for w in row {
                *w *= spread;
            }
            *bias = mean + spread * *bias;
        }
        // Coding rounds, so the bound is kept with some room.
        let bound = 0.95 * f64::from(GENERATOR_BOUND);
        let all = [first, hidden, second, biases].into_iter().flatten();
        all.for_each(|x| *x = x.clamp(-bound, bound));
    }

    fn new(noise: usize, hidden: usize, head: &ClassHead, stream: &mut Stream) -> Self {
        let (width, counts) = (head.width(), head.rows.counts.clone());
        let mut drawn = |n: usize, inputs: usize, part: f64| -> Vec<f64> {
            let scale = part * (2.0 / count_weight(inputs as u64)).sqrt();
            (0..n).map(|_| scale * stream.normal()).collect()
        };
        // Of the classes' inputs one is on at a time. Latents begin near the mean: else where a class happens to
        // begin would be taught too.
        let first = drawn(hidden * (noise + counts.len()), noise + 1, 1.0);
        let second = drawn(width * hidden, hidden, 0.1);
        Self { parts: [first, vec![0.0; hidden], second, vec![0.0; width]], noise, counts }
    }

    /// Values of a latent, E.
    pub fn width(&self) -> usize {
        self.parts[3].len()
    }

    /// Classes, C.
    pub fn classes(&self) -> usize {
        self.counts.len()
    }

    /// `[C]`: examples behind each class, 0 where nobody knows it.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Whether it knows two classes or more.
    pub fn tells_apart(&self) -> bool {
        self.known().len() > 1
    }

    /// So many latents, of classes drawn evenly among those that anybody knows; none where nobody knows any.
    pub fn latents(&self, n: usize, stream: &mut Stream) -> Latents {
        let known = self.known();
        let mut latents = Latents::default();
        if known.is_empty() {
            return latents;
        }
        for _ in 0..n {
            let noise: Vec<f64> = (0..self.noise).map(|_| stream.normal()).collect();
            let Some(label) = known.get(stream.below(known.len())) else { continue };
            let row = self.outputs(&self.hidden(&noise, *label));
            // No embedding goes beyond, whatever the parameters.
            let bound = f64::from(EMBEDDING_BOUND);
            latents.x.extend(row.into_iter().map(|x| narrow(x.clamp(-bound, bound))));
            latents.labels.push(*label);
        }
        latents
    }

    /// Its parameters, as they travel.
    pub fn to_tensors(&self) -> Vec<Tensor> {
        let [first, hidden, second, width] = &self.parts;
        let shapes = [
            vec![hidden.len(), self.noise + self.classes()],
            vec![hidden.len()],
            vec![width.len(), hidden.len()],
            vec![width.len()],
        ];
        let parts = [first, hidden, second, width].into_iter().zip(NAMES).zip(shapes);
        let tensor = |((values, name), shape): ((&Vec<f64>, &str), Vec<usize>)| Tensor {
            name: name.into(),
            shape,
            data: values.iter().map(|x| narrow(*x)).collect(),
        };
        parts.map(tensor).collect()
    }

    /// Reads what [`LatentGenerator::to_tensors`] wrote; the set may come from an enemy. None where it has no
    /// tensor of a generator's.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] for a tensor that is absent or of another shape than the others ask for,
    /// [`LearnError::NotFinite`], [`LearnError::OutOfRange`] beyond [`GENERATOR_BOUND`].
    pub fn from_tensors(set: &TensorSet, counts: &[u64]) -> Result<Option<Self>, LearnError> {
        if NAMES.iter().all(|name| set.get(name).is_none()) {
            return Ok(None);
        }
        let classes = counts.len();
        let size = |name| match set.get(name).map(|tensor| tensor.shape.as_slice()) {
            Some([size]) => *size,
            _ => 0,
        };
        let [hidden, width] = [size(NAMES[1]), size(NAMES[3])];
        let inputs = set.get(NAMES[0]).and_then(|tensor| tensor.shape.get(1)).copied().unwrap_or(0);
        let noise = inputs.saturating_sub(classes);
        let shapes = [vec![hidden, inputs], vec![hidden], vec![width, hidden], vec![width]];
        let sized =
            (1..=MAX_HIDDEN).contains(&hidden) && (1..=MAX_HIDDEN).contains(&noise) && width > 0;
        let mut parts = [const { Vec::new() }; 4];
        for ((part, name), shape) in parts.iter_mut().zip(NAMES).zip(shapes) {
            let tensor = set.get(name).filter(|tensor| sized && tensor.shape == shape);
            let tensor = tensor.ok_or_else(|| LearnError::LayoutMismatch {
                name: name.into(),
                expected: format!(
                    "noise and hidden values of 1 to {MAX_HIDDEN}, {classes} classes"
                ),
                actual: format!("{:?}", set.get(name).map(|tensor| &tensor.shape)),
            })?;
            if let Some(index) = tensor.data.iter().position(|x| !x.is_finite()) {
                return Err(LearnError::NotFinite { name: name.into(), index });
            }
            if let Some(x) = tensor.data.iter().find(|x| x.abs() > GENERATOR_BOUND) {
                return Err(LearnError::OutOfRange {
                    what: "parameter of a generator",
                    expected: format!("within {GENERATOR_BOUND} of 0"),
                    actual: x.to_string(),
                });
            }
            *part = tensor.data.iter().map(|x| f64::from(*x)).collect();
        }
        Ok(Some(Self { parts, noise, counts: counts.to_vec() }))
    }

    fn known(&self) -> Vec<usize> {
        let counts = self.counts.iter().enumerate();
        counts.filter(|(_, count)| **count > 0).map(|(class, _)| class).collect()
    }

    /// `[H]`, after the `ReLU`.
    fn hidden(&self, noise: &[f64], label: usize) -> Vec<f64> {
        let [weights, biases, ..] = &self.parts;
        let rows = weights.chunks_exact(self.noise + self.classes()).zip(biases);
        let value = |(row, bias): (&[f64], &f64)| {
            let class = row.get(self.noise + label).copied().unwrap_or_default();
            (dot(row, noise) + class + bias).max(0.0)
        };
        rows.map(value).collect()
    }

    /// `[E]`.
    fn outputs(&self, hidden: &[f64]) -> Vec<f64> {
        let [.., weights, biases] = &self.parts;
        let rows = weights.chunks_exact(hidden.len().max(1)).zip(biases);
        rows.map(|(row, bias)| dot(row, hidden) + bias).collect()
    }

    /// The objective over a batch and its gradient; the layer has a row of weights and a bias for each class that is
    /// known, noise is `[n, Z]`, labels `[n]` of those classes.
    fn value(&self, layer: &[(usize, Vec<f64>)], noise: &[f64], labels: &[usize]) -> Value {
        let noises: Vec<&[f64]> = noise.chunks_exact(self.noise.max(1)).collect();
        let hidden: Vec<Vec<f64>> =
            noises.iter().zip(labels).map(|(z, y)| self.hidden(z, *y)).collect();
        let latents: Vec<Vec<f64>> = hidden.iter().map(|hidden| self.outputs(hidden)).collect();
        let n = count_weight(labels.len().max(1) as u64);
        let (mut objective, mut towards) = diversity(&noises, &latents, labels);
        objective += away(&latents, &mut towards);
        for ((latent, label), slope) in latents.iter().zip(labels).zip(&mut towards) {
            let says = |(_, row): &(usize, Vec<f64>)| {
                dot(row, latent) + row.last().copied().unwrap_or_default()
            };
            let p = softmax(layer.iter().map(says).collect());
            for ((class, row), p) in layer.iter().zip(p) {
                let hit = if class == label { 1.0 } else { 0.0 };
                objective -= hit * p.max(f64::MIN_POSITIVE).ln() / n;
                slope.iter_mut().zip(row).for_each(|(to, w)| *to += (p - hit) / n * w);
            }
        }
        let mut gradient = self.parts.each_ref().map(|part| vec![0.0; part.len()]);
        for (((slope, hidden), z), label) in towards.iter().zip(&hidden).zip(&noises).zip(labels) {
            self.add_gradient(&mut gradient, slope, hidden, z, *label);
        }
        Value { objective, gradient }
    }

    /// Adds one latent's: `slope` is that of the objective in it.
    fn add_gradient(
        &self,
        [first, hidden_bias, second, bias]: &mut [Vec<f64>; 4],
        slope: &[f64],
        hidden: &[f64],
        noise: &[f64],
        label: usize,
    ) {
        let size = hidden.len().max(1);
        let mut back = vec![0.0; hidden.len()];
        let rows = second.chunks_exact_mut(size).zip(self.parts[2].chunks_exact(size));
        for ((bias, slope), (to, weights)) in bias.iter_mut().zip(slope).zip(rows) {
            *bias += slope;
            to.iter_mut().zip(hidden).for_each(|(to, h)| *to += slope * h);
            back.iter_mut().zip(weights).for_each(|(to, w)| *to += slope * w);
        }
        let rows = first.chunks_exact_mut(self.noise + self.classes()).zip(hidden_bias);
        let rows = rows.zip(back.iter().zip(hidden)).filter(|(_, (_, h))| **h > 0.0);
        for ((to, bias), (slope, _)) in rows {
            *bias += slope;
            to.iter_mut().zip(noise).for_each(|(to, z)| *to += slope * z);
            if let Some(class) = to.get_mut(self.noise + label) {
                *class += slope;
            }
        }
    }
}

/// A row of a layer over embeddings as one over standard deviations from their mean.
fn in_deviations(row: &[f32], places: &[(f64, f64)]) -> Vec<f64> {
    let weights = row.iter().map(|w| f64::from(*w)).zip(places);
    let bias = f64::from(row.last().copied().unwrap_or_default());
    let moved = weights.clone().map(|(w, (mean, _))| w * mean).sum::<f64>();
    weights.map(|(w, (_, spread))| w * spread).chain([bias + moved]).collect()
}

/// Mean over the values of a latent of (mean^2 + (variance - 1)^2) over the batch, [`MOMENTS`] times; adds its slope in
/// each latent.
fn away(latents: &[Vec<f64>], slopes: &mut [Vec<f64>]) -> f64 {
    let n = count_weight(latents.len().max(1) as u64);
    let width = latents.first().map_or(0, Vec::len);
    let share = MOMENTS / count_weight(width.max(1) as u64);
    let mut value = 0.0;
    for at in 0..width {
        let column = || latents.iter().filter_map(|latent| latent.get(at));
        let mean = column().sum::<f64>() / n;
        let over = column().map(|x| (x - mean).powi(2)).sum::<f64>() / n - 1.0;
        value += share * (mean * mean + over * over);
        for (x, slope) in column().zip(slopes.iter_mut().filter_map(|slope| slope.get_mut(at))) {
            *slope += share * (2.0 * mean + 4.0 * over * (x - mean)) / n;
        }
    }
    value
}

/// exp(-mean over all pairs of mean-squared distance of noises times mean absolute distance of latents, 0 for
/// those of two classes), and its slope in each latent.
fn diversity(noises: &[&[f64]], latents: &[Vec<f64>], labels: &[usize]) -> (f64, Vec<Vec<f64>>) {
    let pairs = count_weight((latents.len() * latents.len()).max(1) as u64);
    let mut slopes: Vec<Vec<f64>> = latents.iter().map(|latent| vec![0.0; latent.len()]).collect();
    let mut mean = 0.0;
    for (((noise, latent), label), slope) in noises.iter().zip(latents).zip(labels).zip(&mut slopes)
    {
        let same = noises.iter().zip(latents).zip(labels).filter(|(_, other)| *other == label);
        for ((other, far), _) in same {
            let apart = noise.iter().zip(*other).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            let share = apart
                / count_weight(noise.len().max(1) as u64)
                / count_weight(latent.len().max(1) as u64)
                / pairs;
            for ((to, a), b) in slope.iter_mut().zip(latent).zip(far) {
                mean += share * (a - b).abs();
                // Each pair is met twice.
                *to += 2.0
                    * share
                    * if a > b {
                        1.0
                    } else if a < b {
                        -1.0
                    } else {
                        0.0
                    };
            }
        }
    }
    let value = (-mean).exp();
    slopes.iter_mut().flatten().for_each(|slope| *slope *= -value);
    (value, slopes)
}

/// Adam (Kingma and Ba 2014, arXiv:1412.6980) with its usual constants.
struct Adam {
    first: [Vec<f64>; 4],
    second: [Vec<f64>; 4],
    decays: (f64, f64),
}

impl Adam {
    fn new(parts: &[Vec<f64>; 4]) -> Self {
        let zeros = || parts.each_ref().map(|part| vec![0.0; part.len()]);
        Self { first: zeros(), second: zeros(), decays: (1.0, 1.0) }
    }

    fn step(&mut self, parts: &mut [Vec<f64>; 4], gradient: &[Vec<f64>; 4]) {
        self.decays = (self.decays.0 * BETA.0, self.decays.1 * BETA.1);
        let (first, second) = (self.first.iter_mut().flatten(), self.second.iter_mut().flatten());
        let values = parts.iter_mut().flatten().zip(gradient.iter().flatten());
        for ((x, g), (m, v)) in values.zip(first.zip(second)) {
            *m = BETA.0 * *m + (1.0 - BETA.0) * g;
            *v = BETA.1 * *v + (1.0 - BETA.1) * g * g;
            let (mean, square) = (*m / (1.0 - self.decays.0), *v / (1.0 - self.decays.1));
            *x -= RATE * mean / (square.sqrt() + 1e-8);
        }
    }
}

/// Sum of products, as far as both go.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

const NAMES: [&str; 4] = [
    "generator.hidden.weight",
    "generator.hidden.bias",
    "generator.latent.weight",
    "generator.latent.bias",
];
const NOISE: usize = 32;
const HIDDEN: usize = 64;
const BATCH: usize = 32;
const STEPS: u32 = 200;
const MOMENTS: f64 = 10.0;
const RATE: f64 = 5e-3;
const BETA: (f64, f64) = (0.9, 0.999);

#[cfg(test)]
#[path = "latent_generator_tests.rs"]
mod tests;
