//! Maths on slices: tensor sets, averaging, compression, metrics. Plain Rust, no libtorch, no IO.

mod augment;
mod batches;
mod learner;
pub mod physics;
mod tensors;

pub use augment::Augment;
pub use batches::Batches;
pub use learner::{
    ClassLogits, Control, Learner, Prediction, Predictor, Progress, TrainJob, Trained, Windows,
};
pub use tensors::{Layout, Tensor, TensorSet};

/// What can be wrong with numbers that are to be learned from or combined.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// Names or shapes differ from what was agreed.
    #[error("layout mismatch at tensor {name:?}: expected {expected}, got {actual}")]
    LayoutMismatch {
        /// The first tensor that differs.
        name: String,
        /// Shape (or "absent") that was agreed.
        expected: String,
        /// Shape (or "absent") that was found.
        actual: String,
    },
    /// A number is NaN or infinite.
    #[error("tensor {name:?} has a value that is not finite at index {index}")]
    NotFinite {
        /// Its tensor.
        name: String,
        /// Row-major index in it.
        index: usize,
    },
    /// There is nothing to combine.
    #[error("no updates to combine")]
    NoUpdates,
    /// A setting or size is out of its range.
    #[error("{what}: expected {expected}, got {actual}")]
    OutOfRange {
        /// The quantity.
        what: &'static str,
        /// Its range.
        expected: String,
        /// What was given.
        actual: String,
    },
    /// The learner's engine failed (libtorch, say); the text is its first line.
    #[error("{engine}: {message}")]
    Engine {
        /// Which engine.
        engine: &'static str,
        /// First line of its message.
        message: String,
    },
}

impl LearnError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LayoutMismatch { .. } => "layout_mismatch",
            Self::NotFinite { .. } => "not_finite",
            Self::NoUpdates => "no_updates",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Engine { .. } => "engine",
        }
    }
}
