//! What a softmax head sees of an input: spectral features of a window, or features that were worked out before.
//!
//! Called by the softmax learner and predictor, which are the same whatever the map.

use super::{LearnError, Spectrum};

/// From inputs to features.
#[derive(Debug)]
pub enum FeatureMap {
    /// Gain-free features of vibration windows.
    Spectrum(Spectrum),
    /// An input is its features already: those of a text, see [`super::TextFeatures`].
    Given {
        /// Values an input.
        width: usize,
    },
}

impl FeatureMap {
    /// Inputs that are features, `width` values each.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] unless the width is 1 to [`MAX_FEATURES`].
    pub fn given(width: usize) -> Result<Self, LearnError> {
        if (1..=MAX_FEATURES).contains(&width) {
            return Ok(Self::Given { width });
        }
        let (expected, actual) = (format!("1 to {MAX_FEATURES}"), width.to_string());
        Err(LearnError::OutOfRange { what: "features of an input", expected, actual })
    }

    /// Values of an input.
    pub fn input_len(&self) -> usize {
        match self {
            Self::Spectrum(spectrum) => spectrum.window_len(),
            Self::Given { width } => *width,
        }
    }

    /// Number of features F.
    pub fn num_features(&self) -> usize {
        match self {
            Self::Spectrum(spectrum) => spectrum.num_features(),
            Self::Given { width } => *width,
        }
    }

    /// L2 on the weights of a head on these features.
    ///
    /// Spectral features are of order one and few; its value was tuned by leaving recordings out of the training part.
    /// Features of a text have length one all together, so that a head needs larger weights.
    pub fn weight_decay(&self) -> f64 {
        match self {
            Self::Spectrum(_) => 0.01,
            Self::Given { .. } => 1e-5,
        }
    }

    /// Features `[n, F]` of inputs `[n, len]`; a rest that is no whole input is left out.
    ///
    /// # Errors
    /// Those of [`Spectrum::features`]; [`LearnError::NotFinite`].
    pub fn features(&self, x: &[f32]) -> Result<Vec<f64>, LearnError> {
        match self {
            Self::Spectrum(spectrum) => {
                let mut features = Vec::new();
                for window in x.chunks_exact(spectrum.window_len()) {
                    features.extend(spectrum.features(window)?.into_iter().map(f64::from));
                }
                Ok(features)
            }
            Self::Given { width } => {
                if let Some(index) = x.iter().position(|x| !x.is_finite()) {
                    return Err(LearnError::NotFinite { name: "features".into(), index });
                }
                let whole = x.len() - x.len() % (*width).max(1);
                Ok(x.iter().take(whole).map(|x| f64::from(*x)).collect())
            }
        }
    }
}

/// Most features of an input: as many values as an embedding that is spoken of may have.
pub const MAX_FEATURES: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_features_stay_as_they_are_and_broken_ones_are_refused() {
        let map = FeatureMap::given(2).unwrap();
        assert_eq!((map.input_len(), map.num_features()), (2, 2));
        assert_eq!(map.features(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(map.features(&[1.0, f32::NAN]).unwrap_err().kind(), "not_finite");
        for width in [0, MAX_FEATURES + 1] {
            assert_eq!(FeatureMap::given(width).unwrap_err().kind(), "out_of_range");
        }
    }
}
