//! Answers of a predictor beside the labels of the test part.

use crate::learn::{Confusion, LearnError, Predictor, Windows};

/// What a predictor says of each window, counted by label; in pieces, so that memory stays small.
///
/// # Errors
/// [`LearnError`] when the windows don't fit the model.
pub(super) fn answers(
    predictor: &mut dyn Predictor,
    test: &Windows,
) -> Result<Confusion, LearnError> {
    const PIECE: usize = 64;
    let mut confusion = Confusion::new(test.classes)?;
    for (piece, labels) in test.x.chunks(test.len * PIECE).zip(test.labels.chunks(PIECE)) {
        for (answer, label) in predictor.predict(piece, test.len)?.iter().zip(labels) {
            confusion.record(*label, answer.class)?;
        }
    }
    Ok(confusion)
}
