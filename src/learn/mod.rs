//! Maths on slices: tensor sets, averaging, compression, metrics. Plain Rust, no libtorch, no IO.
//!
//! Everything that combines members takes them in a map by sender, so that a sum has one order and
//! the result depends neither on arrival nor on repeats.

mod activation;
mod adapter_slots;
mod answer_text;
mod augment;
mod batches;
mod binomial;
mod bits;
mod calibration;
mod class_head;
mod class_logits;
mod class_spectra;
mod clip;
mod drift;
mod effect_norm;
mod error_feedback;
mod factors;
mod feature_map;
mod fedavg;
mod generation;
mod generator;
mod guess;
mod holdout;
mod judge;
mod latent_generator;
mod learner;
mod lesson;
mod linear_classifier;
mod lora_product;
mod metrics;
mod packing;
pub mod physics;
mod plan;
mod probe;
mod prototypes;
mod quant;
mod reference_logits;
mod reference_recipe;
mod reference_set;
mod reference_texts;
mod robust;
mod sampling;
mod schedule;
mod scheduler;
mod soft_labels;
mod softmax;
mod softmax_head;
mod spectrum;
mod split;
mod splits;
mod staleness;
mod tensors;
mod text_features;
mod top_logits;
#[cfg(test)]
#[path = "../../tests/support/toy_generator.rs"]
pub(crate) mod toy_generator;
mod two_samples;
mod window;

pub use activation::{ActivationCoding, Activations};
pub use adapter_slots::{AdapterId, AdapterSlots};
pub use answer_text::{AnswerText, Piece};
pub use augment::Augment;
pub use batches::{Batches, PassEnd};
pub use binomial::{lower_bound, upper_bound, wilson_interval};
pub use bits::Bits;
pub use calibration::{
    Calibration, Judged, LEAST_HELD_OUT, Threshold, at_temperature, calibrate, temperature,
    threshold,
};
pub use class_head::{ClassHead, HEAD_BOUND, merge_heads};
pub use class_logits::{LOGIT_BOUND, MAX_MARGIN, average_class_logits, merge_class_logits};
pub use class_spectra::{MAX_GRADES, SPECTRUM_BOUND, class_spectra, recolour};
pub use clip::{LEAST_NORMS, NORMS_REMEMBERED, NormClip};
pub use drift::{ConfidenceDrift, DriftConfig, FEATURES, InputDrift, InputLook, window_features};
pub use effect_norm::effect_norm;
pub use error_feedback::ErrorFeedback;
pub use feature_map::{FeatureMap, MAX_FEATURES};
pub use fedavg::{Accumulator, Share, WeightedDelta, fed_avg, weights, weights_up_to};
pub use generation::{Ask, BatchLimits, Finish, GenerateError, Generated, Told};
pub use generator::{Generator, Tokens};
pub use guess::guess;
pub use holdout::hold_out;
pub use judge::Judge;
pub use latent_generator::{GENERATOR_BOUND, LatentGenerator, Latents, MAX_HIDDEN};
pub use learner::{
    ClassLogits, Control, Examples, Images, Learner, MAX_STEPS, Prediction, Predictor, Progress,
    Texts, TrainJob, Trained, Windows, loss_ends,
};
pub use lesson::{Lesson, TextLesson, reference_targets};
pub use linear_classifier::{FitConfig, LinearClassifier, hashed_ngrams};
pub use lora_product::{Combined, Contribution, LoraAverage, combine, stack};
pub use metrics::{Confusion, percentile};
pub use packing::{Frame, MAX_LENGTH, Packed, lay_end_to_end, pack};
pub use plan::{
    AnsweredBy, Considered, Cost, MemberFigures, ModelCost, Obstacle, PartCost, Proposal,
    RoundWork, SHARE, Way, align, propose, training_bytes,
};
pub use probe::{probe_window, sound};
pub use prototypes::{EMBEDDING_BOUND, Prototypes, merge_prototypes};
pub use quant::{Quantizer, Width};
pub use reference_logits::{
    ENTROPY_TEMPERATURE, REFERENCE_LOGIT_BOUND, check_reference_logits, entropy_reduction,
    lowest_loss,
};
pub use reference_recipe::{RecipeClass, ReferenceRecipe, WriteConfig};
pub use reference_set::{
    BEARING_PHYSICS, MAX_REFERENCE, ReferenceSet, labels_digest, labels_in_turn, reference_classes,
};
pub use reference_texts::ReferenceTexts;
pub use robust::{MIN_MEMBERS, MergeRule, TRIM};
pub use sampling::{Sampler, Sampling};
pub use schedule::{RateSchedule, Rates};
pub use scheduler::Scheduler;
pub use soft_labels::mean_class_logits;
pub use softmax::{SoftmaxLearner, SoftmaxPredictor};
pub use spectrum::{MachineSpeeds, Spectrum};
pub use split::{
    BackCopy, BackJob, BackPredictor, BackStep, Cut, FrontBegun, FrontPredictor, FrontRun, Kept,
    Smashed, SplitBack, SplitFront,
};
pub use splits::{
    LEAST_ROWS, MOST_DRAWS, Split, split_by_dirichlet, split_by_labels, split_by_owned_labels,
    split_evenly,
};
pub use staleness::{MAX_STALENESS, buffer_size, is_too_stale, staleness_factor};
pub use tensors::{Layout, Tensor, TensorSet};
pub use text_features::{HASHED_PLACES, HashedRuns, TextFeatures};
pub use top_logits::{MAX_NAMED, MAX_TOP, ReferenceTokens, TaughtPlace, TopLogits, TopShape};
pub use two_samples::{TwoSamples, two_samples};
pub use window::normalise_window;

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
    /// Encoded numbers are cut short or have something after them.
    #[error("{what}: expected {expected} bytes, got {actual}")]
    WrongLength {
        /// What was decoded.
        what: &'static str,
        /// Bytes that the layout asks for.
        expected: usize,
        /// Bytes that came.
        actual: usize,
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
            Self::WrongLength { .. } => "wrong_length",
            Self::Engine { .. } => "engine",
        }
    }
}

/// Rounds a sum to the precision that tensors have; beyond its range it becomes infinite.
#[expect(clippy::cast_possible_truncation, reason = "tensors are f32, sums are f64")]
fn narrow(sum: f64) -> f32 {
    sum as f32
}

/// A count as a weight.
#[expect(clippy::cast_precision_loss, reason = "a weight needs 53 bits at most")]
fn count_weight(count: u64) -> f64 {
    count as f64
}
