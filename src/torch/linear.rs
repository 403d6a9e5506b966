//! Linear layers, with what an adapter may change of them.
//!
//! ```text
//! x --(* ia3_in)--+-- W x + b ------------------+-- + --(* ia3_out)-- y
//!                 '-- dropout -- A -- B -- * s --'
//! ```
//! The low-rank path costs `tokens x rank` values a layer; W itself never gets a gradient and is never
//! copied. Layers that read the same input share one product ([`Fused`]).

use tch::{Kind, Tensor};

use super::decoder::{DecoderChange, Matrix, Product};
use super::frozen::Frozen;
use super::parts::Parts;
use super::values;
use crate::learn::LearnError;

/// What an adapter changes of one linear layer.
#[derive(Debug, Default)]
struct Change {
    low_rank: Option<LowRank>,
    /// `[input]`
    ia3_in: Option<Tensor>,
    /// `[out]`
    ia3_out: Option<Tensor>,
}

#[derive(Debug)]
struct LowRank {
    /// `[rank, input]`
    a: Tensor,
    /// `[out, rank]`
    b: Tensor,
    scaling: f64,
    dropout: f64,
}

impl Change {
    /// Takes `<path>.{lora_a,lora_b,ia3_in,ia3_out}`, each brought to the base's kind.
    fn new(parts: &Parts<'_>, path: &str, kind: Kind) -> Result<Self, LearnError> {
        let added = |leaf: &str| -> Result<Option<Tensor>, LearnError> {
            let found = parts.added(&format!("{path}.{leaf}"));
            Ok(found.map(|t| t.f_to_kind(kind)).transpose()?)
        };
        let low_rank = match (added("lora_a")?, added("lora_b")?) {
            (Some(a), Some(b)) => {
                let (scaling, dropout) = (parts.scaling(path), parts.dropout());
                Some(LowRank { a, b, scaling, dropout })
            }
            _ => None,
        };
        Ok(Self { low_rank, ia3_in: added("ia3_in")?, ia3_out: added("ia3_out")? })
    }

    fn decoder(&self, width: usize) -> Result<DecoderChange, LearnError> {
        let vector = |t: &Option<Tensor>| t.as_ref().map(values).transpose();
        #[expect(clippy::cast_possible_truncation, reason = "a factor fits an f32")]
        let low_rank = match &self.low_rank {
            Some(low) => Some((matrix(&low.a)?, matrix(&low.b)?, low.scaling as f32)),
            None => None,
        };
        let (ia3_in, ia3_out) = (vector(&self.ia3_in)?, vector(&self.ia3_out)?);
        Ok(DecoderChange { width, low_rank, ia3_in, ia3_out })
    }

    fn before(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        match &self.ia3_in {
            Some(scale) => Ok(x.f_mul(scale)?),
            None => Ok(x.shallow_clone()),
        }
    }

    /// Adds the low-rank path of `x` to the base's answer `y`.
    fn after(&self, x: &Tensor, y: Tensor) -> Result<Tensor, LearnError> {
        let y = match &self.low_rank {
            Some(low) => {
                let dropped = low.dropout > 0.0 && low.a.requires_grad();
                let hidden = if dropped {
                    x.f_dropout(low.dropout, true)?.f_linear(&low.a, None::<&Tensor>)?
                } else {
                    x.f_linear(&low.a, None::<&Tensor>)?
                };
                let scaled = hidden.f_mul_scalar(low.scaling)?;
                y.f_add(&scaled.f_linear(&low.b, None::<&Tensor>)?)?
            }
            None => y,
        };
        match &self.ia3_out {
            Some(scale) => Ok(y.f_mul(scale)?),
            None => Ok(y),
        }
    }
}

/// `y = x W^T + b`, and what an adapter makes of it.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    change: Change,
}

impl Linear {
    /// Takes `<path>.weight` `[out, input]` and, where there is one, `<path>.bias` `[out]`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when the weight is absent or one has another shape.
    pub fn new(parts: &Parts<'_>, path: &str, out: u32, input: u32) -> Result<Self, LearnError> {
        let (out, input) = (i64::from(out), i64::from(input));
        let weight = parts.get(&format!("{path}.weight"), &[out, input])?;
        let bias = bias_of(parts, path, out, weight.kind())?;
        let change = Change::new(parts, path, weight.kind())?;
        Ok(Self { weight, bias, change })
    }

    /// The same on slices.
    pub(super) fn decoder(&self) -> Result<Product, LearnError> {
        let weight = matrix(&self.weight)?;
        let width = self.weight.size().first().copied().unwrap_or_default();
        let bias = self.bias.as_ref().map(values).transpose()?;
        Ok(Product { weight, bias, changes: vec![self.change.decoder(usize_of(width))?] })
    }

    /// `[.., input]` to `[.., out]`, in the kind of the weight.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input's width differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, LearnError> {
        let x = self.change.before(&x.f_to_kind(self.weight.kind())?)?;
        let y = x.f_linear(&self.weight, self.bias.as_ref())?;
        self.change.after(&x, y)
    }
}

/// Linear layers of one input, done as one product.
#[derive(Debug)]
pub struct Fused {
    weight: Tensor,
    bias: Option<Tensor>,
    widths: Vec<i64>,
    changes: Vec<Change>,
}

impl Fused {
    /// Takes the layers `<path>.<name>` with their output widths. A base that holds them joined as
    /// `<path>.<joined>.weight` (`Weights::fuse`) gives that; else they are joined here.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a weight is absent or has another shape.
    pub fn new(
        parts: &Parts<'_>,
        path: &str,
        joined: &str,
        layers: &[(&str, u32)],
        input: u32,
    ) -> Result<Self, LearnError> {
        let input = i64::from(input);
        let widths: Vec<i64> = layers.iter().map(|(_, out)| i64::from(*out)).collect();
        let named = |name: &str| format!("{path}.{name}");
        let replaced =
            |(name, _): &(&str, u32)| parts.added(&format!("{path}.{name}.weight")).is_some();
        let whole = format!("{path}.{joined}.weight");
        let ready = parts.find(&whole, &[widths.iter().sum(), input])?;
        let weight = match ready {
            Some(weight) if !layers.iter().any(replaced) => weight,
            _ => {
                let mut all = Vec::with_capacity(layers.len());
                for (name, out) in layers {
                    all.push(parts.get(&format!("{path}.{name}.weight"), &[(*out).into(), input])?);
                }
                Tensor::f_cat(&all, 0)?
            }
        };
        let kind = weight.kind();
        let mut biases = Vec::with_capacity(layers.len());
        let mut changes = Vec::with_capacity(layers.len());
        for (name, out) in layers {
            biases.extend(bias_of(parts, &named(name), (*out).into(), kind)?);
            changes.push(Change::new(parts, &named(name), kind)?);
        }
        let bias =
            if biases.len() == layers.len() { Some(Tensor::f_cat(&biases, 0)?) } else { None };
        Ok(Self { weight, bias, widths, changes })
    }

    /// The same on slices.
    pub(super) fn decoder(&self) -> Result<Product, LearnError> {
        let layers = self.changes.iter().zip(&self.widths);
        let changes = layers.map(|(change, width)| change.decoder(usize_of(*width)));
        Ok(Product {
            weight: matrix(&self.weight)?,
            bias: self.bias.as_ref().map(values).transpose()?,
            changes: changes.collect::<Result<_, _>>()?,
        })
    }

    /// `[.., input]` to each layer's `[.., out]`, in their order.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the input's width differs.
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>, LearnError> {
        let x = x.f_to_kind(self.weight.kind())?;
        let y = x.f_linear(&self.weight, self.bias.as_ref())?;
        let each = y.f_split_with_sizes(self.widths.as_slice(), -1)?;
        let mut all = Vec::with_capacity(each.len());
        let mut start = 0;
        for ((y, width), change) in each.into_iter().zip(&self.widths).zip(&self.changes) {
            all.push(if change.ia3_in.is_some() {
                // Its input isn't that of the others.
                let own = change.before(&x)?;
                let rows = |t: &Tensor| t.f_narrow(0, start, *width);
                let bias = self.bias.as_ref().map(rows).transpose()?;
                change.after(&own, own.f_linear(&rows(&self.weight)?, bias.as_ref())?)?
            } else {
                change.after(&x, y)?
            });
            start += width;
        }
        Ok(all)
    }
}

/// A tensor `[out, input]` for a decoder.
pub(super) fn matrix(tensor: &Tensor) -> Result<Matrix, LearnError> {
    let input = tensor.size().last().copied().unwrap_or_default();
    Ok(Matrix { numbers: Frozen::new(tensor)?, input: usize_of(input) })
}

fn usize_of(size: i64) -> usize {
    usize::try_from(size).unwrap_or_default()
}

/// The matrix `<path>.weight` with what an adapter changes of it, for a layer that isn't used as a
/// [`Linear`]: a head whose logits are never all computed at once.
///
/// # Errors
/// [`LearnError::LayoutMismatch`] when it is absent or has another shape.
pub fn whole_matrix(parts: &Parts<'_>, path: &str, shape: [i64; 2]) -> Result<Tensor, LearnError> {
    let mut weight = parts.get(&format!("{path}.weight"), &shape)?;
    let change = Change::new(parts, path, weight.kind())?;
    if let Some(low) = &change.low_rank {
        weight = weight.f_add(&low.b.f_matmul(&low.a)?.f_mul_scalar(low.scaling)?)?;
    }
    if let Some(scale) = &change.ia3_in {
        weight = weight.f_mul(scale)?;
    }
    if let Some(scale) = &change.ia3_out {
        weight = weight.f_mul(&scale.f_unsqueeze(1)?)?;
    }
    Ok(weight)
}

fn bias_of(
    parts: &Parts<'_>,
    path: &str,
    out: i64,
    kind: Kind,
) -> Result<Option<Tensor>, LearnError> {
    let bias = parts.find(&format!("{path}.bias"), &[out])?;
    Ok(bias.map(|b| b.f_to_kind(kind)).transpose()?)
}
