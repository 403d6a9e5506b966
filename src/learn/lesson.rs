//! What a learner is taught beside its own examples: targets on reference inputs, points a class, latents of a
//! generator.

use std::sync::Arc;

use super::reference_logits::probabilities;
use super::{
    LatentGenerator, LearnError, Prototypes, ReferenceTokens, TopLogits, Windows,
    check_reference_logits, narrow,
};

/// Targets on reference inputs, prototypes, and a generator.
///
/// ```text
///   loss = CE(own examples) + weight CE(targets, p(reference)) + prototype_weight (pull to the prototypes)
///        + generator_weight CE(class, p(generated latent))
/// ```
/// Each optimiser step takes as many reference samples, and as many latents, as own ones. A model without examples of its own
/// learns from the reference alone.
#[derive(Debug, Clone, Default)]
pub struct Lesson {
    /// Reference inputs, n of them, perhaps none.
    pub windows: Arc<Windows>,
    /// `[n, C]` probabilities, row-major.
    pub targets: Vec<f32>,
    /// Weight of the reference term, >= 0.
    pub weight: f32,
    /// The federation's mean embeddings, where they are of this model's width.
    pub prototypes: Option<Prototypes>,
    /// Weight of the pull towards them, >= 0.
    pub prototype_weight: f32,
    /// Makes latents of each class, where they are of this model's width.
    pub generator: Option<LatentGenerator>,
    /// Weight of those, >= 0.
    pub generator_weight: f32,
    /// For a model that writes: reference texts instead of all this, of the same `weight`.
    pub texts: Option<TextLesson>,
}

/// What is taught to a model that writes, at each token of the reference texts.
///
/// ```text
///   loss = CE(own texts) + weight [ alpha CE(text) + (1 - alpha) CE(teacher, p(text)) ]
/// ```
/// The teacher counts on those texts only that it knows better than the model did before the lesson.
#[derive(Debug, Clone)]
pub struct TextLesson {
    /// The texts.
    pub tokens: Arc<ReferenceTokens>,
    /// What is said of them, if anybody has said something yet.
    pub teacher: Option<Arc<TopLogits>>,
    /// Share of a text's own next token, 0 to 1; the rest is the teacher's.
    pub alpha: f32,
    /// Words a place that the model is to name afterwards.
    pub top: u16,
}

impl Lesson {
    /// Checks the sizes and that each target is a distribution: not negative, finite, sums to one.
    ///
    /// # Errors
    /// [`LearnError`] names what is wrong first.
    pub fn check(&self, classes: usize) -> Result<(), LearnError> {
        let bad = |what, expected: &str, actual: String| {
            Err(LearnError::OutOfRange { what, expected: expected.into(), actual })
        };
        for (what, weight) in [
            ("weight of reference targets", self.weight),
            ("weight of prototypes", self.prototype_weight),
            ("weight of generated latents", self.generator_weight),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return bad(what, "0 or more", weight.to_string());
            }
        }
        if self.texts.is_some() {
            return bad("lesson", "none of texts: this model doesn't write", "one".into());
        }
        let n = self.windows.num_examples();
        if classes == 0 || n.checked_mul(classes) != Some(self.targets.len()) {
            let (expected, actual) = (n.saturating_mul(classes) * 4, self.targets.len() * 4);
            return Err(LearnError::WrongLength { what: "reference targets", expected, actual });
        }
        for row in self.targets.chunks_exact(classes) {
            let sum: f32 = row.iter().sum();
            if !((sum - 1.0).abs() < 1e-3 && row.iter().all(|p| *p >= 0.0)) {
                return bad("target of a reference sample", "a distribution", format!("{row:?}"));
            }
        }
        if let Some(generator) = self.generator.as_ref().filter(|g| g.classes() != classes) {
            let actual = generator.classes().to_string();
            return bad("classes of a generator", &classes.to_string(), actual);
        }
        match &self.prototypes {
            Some(prototypes) => prototypes.check(classes, prototypes.width()),
            None => Ok(()),
        }
    }

    /// The generator, where its latents are of this width, tell classes apart, and weigh anything.
    pub fn generator_for(&self, width: usize) -> Option<&LatentGenerator> {
        let generator = self.generator.as_ref().filter(|_| self.generator_weight > 0.0);
        generator.filter(|generator| generator.width() == width && generator.tells_apart())
    }
}

/// Targets from what a teacher says and from the labels: `alpha` of the label, the rest of softmax(logits).
///
/// Cross-entropy with such a target is alpha CE(label) + (1 - alpha) KD(teacher) at temperature 1.
/// Without a teacher the labels are all there is.
///
/// # Shapes
/// `teacher` is `[n, classes]` logits, `labels` `[n]`; `[n, classes]` probabilities come out.
/// # Errors
/// [`LearnError::OutOfRange`] unless alpha is 0 to 1 and labels are classes, and those of
/// [`check_reference_logits`].
/// # Source
/// Fan et al. 2024, arXiv:2406.02224 (`FedMKT`).
/// # Examples
/// ```
/// let half = gaisnet::learn::reference_targets(Some(&[0.0, 0.0]), &[1], 2, 0.5)?;
/// assert_eq!(half, [0.25, 0.75]);
/// # Ok::<(), gaisnet::learn::LearnError>(())
/// ```
pub fn reference_targets(
    teacher: Option<&[f32]>,
    labels: &[usize],
    classes: usize,
    alpha: f32,
) -> Result<Vec<f32>, LearnError> {
    if !(0.0..=1.0).contains(&alpha) {
        let (expected, actual) = ("0 to 1".into(), alpha.to_string());
        return Err(LearnError::OutOfRange { what: "share of the labels", expected, actual });
    }
    if let Some(label) = labels.iter().find(|label| **label >= classes) {
        let (expected, actual) = (format!("below {classes}"), label.to_string());
        return Err(LearnError::OutOfRange { what: "label", expected, actual });
    }
    if let Some(logits) = teacher {
        check_reference_logits(logits, labels.len(), classes)?;
    }
    let mut rows = teacher.map(|logits| logits.chunks_exact(classes));
    let mut targets = Vec::with_capacity(labels.len().saturating_mul(classes));
    for label in labels {
        let hard = |class: usize| if class == *label { 1.0_f64 } else { 0.0 };
        match rows.as_mut().and_then(Iterator::next) {
            None => targets.extend((0..classes).map(|class| narrow(hard(class)))),
            Some(row) => {
                let soft = probabilities(row).into_iter().enumerate();
                let share = f64::from(alpha);
                targets.extend(
                    soft.map(|(class, p)| {
                        narrow(share * hard(class) + (1.0 - share) * f64::from(p))
                    }),
                );
            }
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lesson(targets: &[f32]) -> Lesson {
        let windows = Windows { x: vec![0.0; 4], len: 2, labels: vec![0, 1], classes: 2 };
        Lesson {
            windows: Arc::new(windows),
            targets: targets.to_vec(),
            weight: 1.0,
            ..Lesson::default()
        }
    }

    #[test]
    fn targets_blend_label_and_teacher() {
        let third = 3.0_f32.ln();
        let teach = |alpha| reference_targets(Some(&[third, 0.0]), &[1], 2, alpha).unwrap();
        assert!((teach(0.0)[0] - 0.75).abs() < 1e-6);
        assert!((teach(0.9)[1] - (0.9 + 0.025)).abs() < 1e-6);
        assert_eq!(reference_targets(None, &[1], 2, 0.3).unwrap(), [0.0, 1.0]);
    }

    #[test]
    fn what_can_not_teach_is_refused() {
        let kind = |teacher: &[f32], label, alpha| {
            reference_targets(Some(teacher), &[label], 2, alpha).unwrap_err().kind()
        };
        assert_eq!(kind(&[0.0, 0.0], 2, 0.5), "out_of_range");
        assert_eq!(kind(&[0.0, 0.0], 0, 1.5), "out_of_range");
        assert_eq!(kind(&[0.0, f32::NAN], 0, 0.5), "not_finite");
        assert_eq!(kind(&[0.0], 0, 0.5), "wrong_length");
    }

    #[test]
    fn targets_that_are_no_distributions_are_refused_and_their_twin_is_taken() {
        assert!(lesson(&[0.25, 0.75, 1.0, 0.0]).check(2).is_ok());
        let bad: [&[f32]; 5] = [
            &[0.25, 0.7, 1.0, 0.0],
            &[1.5, -0.5, 1.0, 0.0],
            &[f32::NAN, 0.5, 1.0, 0.0],
            &[1.0, 0.0],
            &[],
        ];
        for targets in bad {
            assert!(lesson(targets).check(2).is_err(), "{targets:?}");
        }
        let heavy = Lesson { weight: f32::INFINITY, ..lesson(&[0.5; 4]) };
        assert_eq!(heavy.check(2).unwrap_err().kind(), "out_of_range");
        let generator_weight = f32::NAN;
        let unclear = Lesson { generator_weight, ..lesson(&[0.5; 4]) };
        assert_eq!(unclear.check(2).unwrap_err().kind(), "out_of_range");
        let tokens = ReferenceTokens {
            texts: crate::learn::Texts::default(),
            vocab: 9,
            tokenizer: crate::ids::Digest([0; 32]),
        };
        let texts = TextLesson { tokens: Arc::new(tokens), teacher: None, alpha: 0.5, top: 3 };
        let written = Lesson { texts: Some(texts), ..lesson(&[0.25, 0.75, 1.0, 0.0]) };
        assert_eq!(written.check(2).unwrap_err().kind(), "out_of_range");
        let prototypes = Some(Prototypes { means: vec![f32::NAN; 2], counts: vec![1, 1] });
        let broken = Lesson { prototypes, ..lesson(&[0.5; 4]) };
        assert_eq!(broken.check(2).unwrap_err().kind(), "not_finite");
    }
}
