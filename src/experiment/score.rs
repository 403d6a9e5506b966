//! Answers of a predictor beside the labels of the test part.

use crate::learn::{Confusion, LearnError, Prediction, Predictor, Windows};

/// What a predictor says of each window, counted by label.
///
/// # Errors
/// [`LearnError`] when the windows don't fit the model.
pub(super) fn answers(
    predictor: &mut dyn Predictor,
    test: &Windows,
) -> Result<Confusion, LearnError> {
    let mut confusion = Confusion::new(test.classes)?;
    for (answer, label) in predictions(predictor, test)?.iter().zip(&test.labels) {
        confusion.record(*label, answer.class)?;
    }
    Ok(confusion)
}

/// What a predictor says of each window; asked in pieces, so that memory stays small.
///
/// # Errors
/// As [`answers`].
pub(super) fn predictions(
    predictor: &mut dyn Predictor,
    test: &Windows,
) -> Result<Vec<Prediction>, LearnError> {
    const PIECE: usize = 64;
    let mut all = Vec::with_capacity(test.num_examples());
    for piece in test.x.chunks((test.len * PIECE).max(1)) {
        all.extend(predictor.predict(piece, test.len)?);
    }
    Ok(all)
}
