//! Logits and embeddings of many windows, a chunk at a time, without gradients.

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

/// Windows a forward pass: bounds the memory of activations.
const CHUNK: usize = 64;
