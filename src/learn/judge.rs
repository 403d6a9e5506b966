//! The port to whatever says how well texts are foreseen.

use super::{LearnError, TensorSet, Texts};

/// Judges adapters of one base on texts.
pub trait Judge {
    /// Summed negative log-likelihood of the texts' tokens in nats, with this adapter.
    ///
    /// Which token a text's first one is foreseen from is the judge's affair, the same for all adapters;
    /// what it adds between texts isn't judged.
    ///
    /// # Errors
    /// [`LearnError`] when the adapter doesn't fit the model, or a likelihood isn't finite.
    fn nats(&mut self, adapter: &TensorSet, texts: &Texts) -> Result<f64, LearnError>;
}
