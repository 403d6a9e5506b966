//! Softmax regression on features of any origin, and features of a text that need no model: hashed runs of
//! its characters.
//!
//! The small end of a cascade. It isn't federated: where rounds train, [`super::SoftmaxLearner`] does.

use super::softmax_head::Head;
use super::{Batches, LearnError, Prediction};
use crate::rng::Stream;

/// A softmax head on features `[F]`.
#[derive(Debug, Clone)]
pub struct LinearClassifier {
    head: Head,
    width: usize,
}

/// How a [`LinearClassifier`] is fitted.
#[derive(Debug, Clone, Copy)]
pub struct FitConfig {
    /// Steps of plain SGD.
    pub steps: u32,
    /// Rows a step.
    pub batch: usize,
    /// Step size.
    pub learning_rate: f64,
    /// L2 on the weights.
    pub weight_decay: f64,
    /// Of the order of rows.
    pub seed: u64,
}

impl LinearClassifier {
    /// Fits features `[n, width]` row-major to labels `[n]`, from zero, by the mean cross-entropy.
    ///
    /// # Determinism
    /// The same rows and seed give the same values.
    /// # Errors
    /// [`LearnError::OutOfRange`] without rows, or when sizes or labels don't fit; [`LearnError::NotFinite`].
    pub fn fit(
        features: &[f32],
        width: usize,
        labels: &[usize],
        classes: usize,
        config: &FitConfig,
    ) -> Result<Self, LearnError> {
        let fits = width.checked_mul(labels.len()) == Some(features.len());
        if labels.is_empty() || !fits || labels.iter().any(|label| *label >= classes) {
            return Err(LearnError::OutOfRange {
                what: "rows",
                expected: format!("1 or more of {width} features, labels below {classes}"),
                actual: format!("{} features, {} labels", features.len(), labels.len()),
            });
        }
        if let Some(index) = features.iter().position(|x| !x.is_finite()) {
            return Err(LearnError::NotFinite { name: "features".into(), index });
        }
        let mut head = Head::zeros(classes, width);
        let size = config.batch.clamp(1, labels.len());
        let mut batches = Batches::new(labels.len(), Stream::new(config.seed, "linear"));
        for _ in 0..config.steps {
            let mut gradient = Head::zeros_like(&head);
            for i in batches.next(size) {
                let row = features.get(i * width..(i + 1) * width).unwrap_or_default();
                let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                let label = labels.get(i).copied();
                let error = head.probabilities(&row).into_iter().enumerate();
                let error = error.map(|(k, p)| p - if label == Some(k) { 1.0 } else { 0.0 });
                gradient.add_outer(error, &row);
            }
            gradient.scale(1.0 / super::count_weight(size as u64));
            gradient.add_scaled_weight(config.weight_decay, &head);
            head.add_scaled(-config.learning_rate, &gradient);
        }
        Ok(Self { head, width })
    }

    /// One prediction a row of features `[n, F]`; a rest that is no row is left out.
    pub fn predict(&self, features: &[f32]) -> Vec<Prediction> {
        let rows = features.chunks_exact(self.width.max(1));
        let widened = rows.map(|row| row.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>());
        widened.map(|row| self.head.prediction(&row)).collect()
    }
}

/// Features `[width]` of a text: its runs of 2 to 4 characters, lower case, each at the place that its hash
/// names; of length 1 together.
///
/// # Source
/// Weinberger et al. 2009, arXiv:0902.2206 (hashing), without signs.
pub fn hashed_ngrams(text: &str, width: usize) -> Vec<f32> {
    let lower: Vec<char> = format!(" {} ", text.to_lowercase()).chars().collect();
    let mut features = vec![0.0_f32; width];
    for n in 2..=4 {
        for run in lower.windows(n) {
            // FNV-1a: the same on each machine.
            let hash = run.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, c| {
                (hash ^ u64::from(u32::from(*c))).wrapping_mul(0x0100_0000_01b3)
            });
            let place = usize::try_from(hash % width.max(1) as u64).unwrap_or_default();
            if let Some(feature) = features.get_mut(place) {
                *feature += 1.0;
            }
        }
    }
    let length = features.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        for x in &mut features {
            *x /= length;
        }
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: FitConfig =
        FitConfig { steps: 200, batch: 8, learning_rate: 5.0, weight_decay: 0.0, seed: 1 };

    #[test]
    fn texts_are_told_apart_by_their_letters() {
        let texts = ["oil leak at hose", "hose leaking oil", "tooth worn", "worn bucket tooth"];
        let features: Vec<f32> = texts.iter().flat_map(|text| hashed_ngrams(text, 256)).collect();
        let model = LinearClassifier::fit(&features, 256, &[0, 0, 1, 1], 2, &CONFIG).unwrap();
        let ask = |text: &str| model.predict(&hashed_ngrams(text, 256))[0].clone();
        assert_eq!((ask("OIL LEAKS").class, ask("teeth worn, tooth gone").class), (0, 1));
        assert!(ask("hose leaking oil").probabilities[0] > 0.9);
    }

    #[test]
    fn features_have_length_one_and_odd_texts_are_no_error() {
        let length = |text: &str| hashed_ngrams(text, 64).iter().map(|x| x * x).sum::<f32>();
        assert!((length("bucket") - 1.0).abs() < 1e-5);
        assert!((length("") - 1.0).abs() < 1e-5, "two spaces");
        assert!(hashed_ngrams("x", 0).is_empty());
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let fit = |features: &[f32], labels: &[usize]| {
            LinearClassifier::fit(features, 2, labels, 2, &CONFIG).map(|_| ()).unwrap_err().kind()
        };
        assert_eq!(fit(&[], &[]), "out_of_range");
        assert_eq!(fit(&[1.0; 3], &[0]), "out_of_range");
        assert_eq!(fit(&[1.0; 2], &[2]), "out_of_range");
        assert_eq!(fit(&[f32::NAN; 2], &[1]), "not_finite");
    }
}
