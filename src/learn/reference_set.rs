//! Inputs that nobody owns, made by a generator: what reference logits are about.
//!
//! A generated set needs not travel. Who knows generator, seed and count makes it, and compares digests:
//! another version of a generator gives other bytes, and is found out before anything is learned. Texts that a
//! model wrote ([`ReferenceTexts`]) lie in a file instead, and the digest is the file's.

use std::sync::Arc;

use super::{LearnError, ReferenceTexts, ReferenceTokens, TextFeatures, Windows, physics};
use crate::ids::Digest;
use crate::rng::Stream;

/// Vibration of bearings as physics tells it, version 1 (`learn/physics.rs`); each window has mean 0 and
/// variance 1 like those of the plants.
pub const BEARING_PHYSICS: &str = "bearing-physics-1";

/// Samples of a reference set at most: bounds what an offer can make a node generate and send.
pub const MAX_REFERENCE: u32 = 10_000;

/// A made set with its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceSet {
    /// The windows, with the labels that they were generated for; lessons share them. Of a set of texts: their
    /// features in this node's eyes.
    pub windows: Arc<Windows>,
    /// SHA-256 over generator, seed, count, classes, labels and samples; of texts, that of their file.
    pub digest: Digest,
    /// Name of the generator, or of the set of texts.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// Whether the labels may be learned from.
    pub labelled: bool,
    /// Texts as a model that writes reads them; the windows have no features then.
    pub tokens: Option<Arc<ReferenceTokens>>,
}

impl ReferenceSet {
    /// Makes a set.
    ///
    /// # Determinism
    /// The same arguments give the same bytes on each machine of one kind.
    /// # Errors
    /// [`LearnError::OutOfRange`] for a generator that isn't known here, or a count that isn't 1 to
    /// [`MAX_REFERENCE`].
    pub fn make(generator: &str, seed: u64, count: u32) -> Result<Self, LearnError> {
        let bad = |what, expected: String, actual: String| {
            Err(LearnError::OutOfRange { what, expected, actual })
        };
        if generator != BEARING_PHYSICS {
            return bad("generator of a reference set", BEARING_PHYSICS.into(), generator.into());
        }
        if !(1..=MAX_REFERENCE).contains(&count) {
            return bad("reference samples", format!("1 to {MAX_REFERENCE}"), count.to_string());
        }
        let n = usize::try_from(count).unwrap_or(usize::MAX);
        let mut windows = physics::windows(&mut Stream::new(seed, generator), n);
        for window in windows.x.chunks_exact_mut(windows.len) {
            let normalised = super::normalise_window(window)?;
            window.copy_from_slice(&normalised);
        }
        let digest = digest_of(generator, seed, count, &windows);
        let (windows, name) = (Arc::new(windows), generator.to_owned());
        Ok(Self { windows, digest, name, seed, labelled: true, tokens: None })
    }

    /// A set of texts, read by what a node reads texts with.
    ///
    /// # Errors
    /// [`LearnError`] when a text can't be read.
    pub fn of_texts(
        set: &ReferenceTexts,
        reader: &mut dyn TextFeatures,
    ) -> Result<Self, LearnError> {
        let texts: Vec<&str> = set.texts.iter().map(String::as_str).collect();
        let x = reader.features(&texts)?;
        let (len, classes) = (reader.width(), set.classes.len());
        let labels = labels_in_turn(classes, texts.len());
        Ok(Self {
            windows: Arc::new(Windows { x, len, labels, classes }),
            digest: set.digest()?,
            name: set.name.to_string(),
            seed: set.seed,
            labelled: set.labelled,
            tokens: None,
        })
    }

    /// A set of texts for a model that writes: each is of itself, whatever class it was asked for.
    ///
    /// # Errors
    /// [`LearnError`] for a set that isn't sound.
    pub fn of_tokens(set: &ReferenceTexts, tokens: ReferenceTokens) -> Result<Self, LearnError> {
        let classes = set.classes.len();
        let labels = labels_in_turn(classes, set.texts.len());
        Ok(Self {
            windows: Arc::new(Windows { labels, classes, ..Windows::default() }),
            digest: set.digest()?,
            name: set.name.to_string(),
            seed: set.seed,
            labelled: true,
            tokens: Some(Arc::new(tokens)),
        })
    }

    /// The same inputs for rounds in which nobody says what they are of.
    #[must_use]
    pub fn without_labels(self) -> Self {
        Self { labelled: false, ..self }
    }

    /// Number of inputs.
    pub fn count(&self) -> u32 {
        u32::try_from(self.windows.num_examples()).unwrap_or(u32::MAX)
    }
}

/// Labels of a set with labels: each class in turn, so that nobody needs the inputs to know them.
pub fn labels_in_turn(classes: usize, count: usize) -> Vec<usize> {
    (0..classes).cycle().take(count).collect()
}

/// Classes that a generator's labels speak of; `None` for one that isn't known here.
pub fn reference_classes(generator: &str) -> Option<usize> {
    (generator == BEARING_PHYSICS).then_some(physics::CLASSES.len())
}

/// Names and order of classes, as one digest: who counts them otherwise learns nonsense.
pub fn labels_digest(names: &[String]) -> Digest {
    let mut bytes = b"gaisnet labels 1\n".to_vec();
    for name in names {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'\n');
    }
    Digest::of(&bytes)
}

fn digest_of(generator: &str, seed: u64, count: u32, windows: &Windows) -> Digest {
    let mut bytes = format!(
        "gaisnet reference 1\n{generator}\n{seed}\n{count}\n{} {}\n",
        windows.classes, windows.len
    )
    .into_bytes();
    bytes.extend(windows.labels.iter().flat_map(|label| (*label as u64).to_le_bytes()));
    bytes.extend(windows.x.iter().flat_map(|x| x.to_le_bytes()));
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_three_words_make_the_same_set_and_others_another() {
        let make = |seed, count| ReferenceSet::make(BEARING_PHYSICS, seed, count).unwrap();
        let set = make(1, 7);
        assert_eq!(set, make(1, 7));
        assert_ne!(set.digest, make(2, 7).digest);
        assert_ne!(set.digest, make(1, 6).digest);
        assert_eq!(set.windows.labels, labels_in_turn(3, 7));
        assert_eq!((set.count(), set.labelled), (7, true));
        assert!(!set.clone().without_labels().labelled);
        assert_eq!(reference_classes(BEARING_PHYSICS), Some(set.windows.classes));
        let first = set.windows.row(0).unwrap();
        let power = first.iter().map(|x| x * x).sum::<f32>() / 2_048.0;
        assert!((power - 1.0).abs() < 1e-3, "{power}");
    }

    #[test]
    fn a_changed_generator_is_found_out_by_the_digest() {
        let mut set = ReferenceSet::make(BEARING_PHYSICS, 1, 3).unwrap();
        let again = |windows: &Windows| digest_of(BEARING_PHYSICS, 1, 3, windows);
        assert_eq!(again(&set.windows), set.digest);
        Arc::make_mut(&mut set.windows).x[5] += 1e-3;
        assert_ne!(again(&set.windows), set.digest);
    }

    #[test]
    fn unknown_generators_and_counts_out_of_range_are_refused() {
        assert!(ReferenceSet::make("somebody's", 1, 3).is_err());
        assert!(ReferenceSet::make(BEARING_PHYSICS, 1, 0).is_err());
        assert!(ReferenceSet::make(BEARING_PHYSICS, 1, u32::MAX).is_err());
    }

    #[test]
    fn texts_are_what_a_node_reads_them_as_and_their_digest_is_the_files() {
        let texts = ReferenceTexts {
            name: crate::ids::Name::new("orders-1").unwrap(),
            seed: 3,
            written_by: "a test".into(),
            labelled: false,
            classes: vec!["a".into(), "b".into()],
            texts: ["oil", "tooth", "hose"].map(str::to_owned).to_vec(),
        };
        let set = ReferenceSet::of_texts(&texts, &mut crate::learn::HashedRuns).unwrap();
        assert_eq!(set.digest, texts.digest().unwrap());
        assert_eq!((set.windows.labels.clone(), set.labelled), (vec![0, 1, 0], false));
        assert_eq!(set.windows.x.len(), 3 * set.windows.len);
    }

    #[test]
    fn names_and_order_of_classes_are_in_their_digest() {
        let digest = |names: &[&str]| {
            labels_digest(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(digest(&["a", "b"]), digest(&["a", "b"]));
        assert_ne!(digest(&["a", "b"]), digest(&["b", "a"]));
        assert_ne!(digest(&["ab"]), digest(&["a", "b"]));
    }
}
