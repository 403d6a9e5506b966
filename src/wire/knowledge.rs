//! What travels where models don't: each node has one of its own kind, and they teach each other.
//!
//! A plan that has a [`KnowledgePlan`] makes a round of knowledge: no adapter is offered, sent or passed on,
//! and bases may differ. What is said about reference inputs and classes is a packed set with these tensors:
//! ```text
//!   reference.logits  [samples, classes]   what a model says of each reference input
//!   prototypes        [classes, width]     mean embedding a class, zeros where suppressed
//!   spectra           [classes, bands]     logarithm of the mean power a band and class, zeros where suppressed
//!   head              [classes, width + 1] classification layer, bias last, zeros where suppressed: upwards, with
//!   head.moments      [2, width]           mean and standard deviation of embeddings over all examples
//!   generator.hidden.weight [hidden, noise + classes], .bias [hidden], generator.latent.weight [width, hidden],
//!   .bias [width]                          what an owner trained against such layers: downwards
//! ```
//! or, between models that write, in f32 whose values are whole numbers (`learn/top_logits.rs`):
//! ```text
//!   text.lengths      [texts]              tokens of each reference text
//!   text.tokens       [tokens]             their ids
//!   text.own          [tokens]             1/1024 nats that each token was unlikely by
//!   top.ids           [tokens, top]        ids of the likeliest tokens there, the likeliest first
//!   top.gaps          [tokens, top]        1/1024 nats that each is less likely than the one before
//! ```

use serde::{Deserialize, Serialize};

use super::blob::Blob;
use crate::ids::{Digest, Name};

/// What a round of knowledge asks for. Part of the plan, so of the offer's digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnowledgePlan {
    /// Contribute mean embeddings a class.
    pub prototypes: bool,
    /// Contribute logits of the reference inputs.
    pub reference_logits: bool,
    /// The reference inputs, where any are learned on.
    pub reference: Option<Reference>,
    /// Names and order of the classes.
    pub labels: Digest,
    /// Share of a reference input's own label in its target, 0 to 1; the rest is the teacher's.
    pub alpha: f32,
    /// Weight of the reference inputs in the loss, >= 0.
    pub reference_weight: f32,
    /// Weight of the pull to the prototypes in the loss, >= 0.
    pub prototype_weight: f32,
    /// How members' values become one, where no label says who is right.
    pub merging: Merging,
    /// Contribute the classification layer, and learn from a generator that is trained against those: weight of its
    /// latents in the loss, >= 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator_weight: Option<f32>,
    /// The models write: what is said of the reference texts is the likeliest tokens at each place of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_logits: Option<TopLogitsPlan>,
    /// Contribute the mean spectrum of each class's windows, and learn from reference inputs that sound so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spectra: Option<SpectraPlan>,
}

/// See [`KnowledgePlan::spectra`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpectraPlan {
    /// Bands between 0 and half the sampling rate, > 0.
    pub bands: u16,
    /// In so many grades reference inputs are filtered, 1 to 100, from not at all to wholly; with one grade all wholly.
    pub grades: u16,
}

/// See [`KnowledgePlan::top_logits`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopLogitsPlan {
    /// Tokens that are named a place, > 0.
    pub top: u16,
    /// Number of ids: more than two above `top`.
    pub vocab: u32,
    /// SHA-256 over the names of all ids: one tokenizer for all.
    pub tokenizer: Digest,
    /// SHA-256 over lengths and ids of the reference texts.
    pub tokens: Digest,
}

impl TopLogitsPlan {
    /// Whether tokens mean the same here as there, however many are named.
    pub fn has_tokens_of(&self, other: &Self) -> bool {
        Self { top: other.top, ..self.clone() } == *other
    }
}

/// Inputs that nobody owns. Whoever knows the generator makes them, or has the file that a model wrote, and compares
/// digests. Inputs with labels have each class in turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Name and version of the generator, or of the written set.
    pub generator: Name,
    /// Its seed.
    pub seed: u64,
    /// Number of samples, > 0.
    pub count: u32,
    /// What they must come to.
    pub digest: Digest,
    /// Classes of a set that was written once and lies in a file; absent where the generator's name tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<u32>,
    /// Nobody says what the inputs are of: only what members say of them teaches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlabelled: bool,
}

/// How values of several members become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Merging {
    /// Their mean.
    Mean,
    /// The middle one of each coordinate.
    Median,
    /// The mean without the largest and smallest fifth.
    Trimmed,
}

/// What somebody says: see the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knowledge {
    /// A packed set.
    pub set: Blob,
    /// `[classes]`: examples behind each class's row, 0 where suppressed; empty where nothing has a row a class.
    pub counts: Vec<u64>,
}

impl KnowledgePlan {
    /// Whether contributions have a packed set, beside class logits.
    pub fn asks_for_a_set(&self) -> bool {
        self.reference_logits || self.asks_for_rows()
    }

    /// Whether that set has a row a class, and counts with it.
    pub fn asks_for_rows(&self) -> bool {
        self.prototypes || self.generator_weight.is_some() || self.spectra.is_some()
    }
}
