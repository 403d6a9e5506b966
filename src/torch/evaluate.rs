//! Logits and embeddings of many windows, a chunk at a time, without gradients.

use super::signal::{SignalTransformer, Spectra};
use tch::{Device, Kind, Tensor};

use super::{dim, values};
use crate::learn::LearnError;

/// Logits `[n, classes]` row-major of windows `[n, window]`.
pub(super) fn logits(
    model: &SignalTransformer,
    spectra: &Spectra,
    x: &[f32],
    window: usize,
) -> Result<Vec<f32>, LearnError> {
    Ok(both(model, spectra, x, window)?.1)
}

/// Embeddings `[n, d_model]` and logits `[n, classes]`, row-major, of windows `[n, window]`.
pub(super) fn both(
    model: &SignalTransformer,
    spectra: &Spectra,
    x: &[f32],
    window: usize,
) -> Result<(Vec<f32>, Vec<f32>), LearnError> {
    let _guard = tch::no_grad_guard();
    let (mut embeddings, mut logits) = (Vec::new(), Vec::new());
    for chunk in x.chunks(CHUNK * window.max(1)) {
        let embedded = model.embed(&spectra.forward(chunk)?)?;
        embeddings.extend(values(&embedded)?);
        logits.extend(values(&model.classify(&embedded)?)?);
    }
    Ok((embeddings, logits))
}

/// The classification layer: weights `[classes, d_model]` and biases `[classes]`, read off what it says of zero and of
/// each unit vector, whatever an adapter has made of it.
pub(super) fn head(
    model: &SignalTransformer,
    width: usize,
) -> Result<(Vec<f32>, Vec<f32>), LearnError> {
    let _guard = tch::no_grad_guard();
    let each = Tensor::f_eye(dim(width)?, (Kind::Float, Device::Cpu))?;
    let biases = model.classify(&each.f_zeros_like()?.f_narrow(0, 0, 1)?)?;
    let weights = model.classify(&each)?.f_sub(&biases)?.f_transpose(0, 1)?;
    Ok((values(&weights)?, values(&biases)?))
}

/// Windows a forward pass: bounds the memory of activations.
const CHUNK: usize = 64;
