//! From texts to features: what lets one softmax head learn from texts, whatever reads them.

use super::{LearnError, hashed_ngrams};

/// Turns texts into rows of features.
pub trait TextFeatures: Send {
    /// Features of a text.
    fn width(&self) -> usize;

    /// Features `[n, width]` of the texts, row-major.
    ///
    /// # Errors
    /// [`LearnError`] when a text can't be read by the model behind it.
    fn features(&mut self, texts: &[&str]) -> Result<Vec<f32>, LearnError>;
}

/// Runs of characters, hashed: needs no model, and is the same on each machine. See [`hashed_ngrams`].
#[derive(Debug, Clone, Copy, Default)]
pub struct HashedRuns;

impl TextFeatures for HashedRuns {
    fn width(&self) -> usize {
        HASHED_PLACES
    }

    fn features(&mut self, texts: &[&str]) -> Result<Vec<f32>, LearnError> {
        Ok(texts.iter().flat_map(|text| hashed_ngrams(text, HASHED_PLACES)).collect())
    }
}

/// Places that runs of characters are hashed to. Another number is another model.
pub const HASHED_PLACES: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_a_text() {
        let mut runs = HashedRuns;
        let both = runs.features(&["oil leak", "tooth"]).unwrap();
        assert_eq!(both.len(), 2 * runs.width());
        assert_eq!(both.get(..HASHED_PLACES).unwrap(), hashed_ngrams("oil leak", HASHED_PLACES));
    }
}
