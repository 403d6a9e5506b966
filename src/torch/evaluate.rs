//! Logits of many windows, a chunk at a time, without gradients.

use super::signal::{SignalTransformer, Spectra};
use super::values;
use crate::learn::LearnError;

/// Logits `[n, classes]` row-major of windows `[n, window]`.
pub(super) fn logits(
    model: &SignalTransformer,
    spectra: &Spectra,
    x: &[f32],
    window: usize,
) -> Result<Vec<f32>, LearnError> {
    let _guard = tch::no_grad_guard();
    let mut all = Vec::new();
    for chunk in x.chunks(CHUNK * window.max(1)) {
        all.extend(values(&model.forward(&spectra.forward(chunk)?)?)?);
    }
    Ok(all)
}

/// Windows a forward pass: bounds the memory of activations.
const CHUNK: usize = 64;
