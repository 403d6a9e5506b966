//! Learning with libtorch: the transformer, LoRA, its training and its answers.
//!
//! ```text
//! safetensors, GGUF -> base (frozen) --+
//!                                      +-> Parts -> model -> logits
//! TensorSet -> flat buffer ------------+
//!                  ^-- AdamW <-- gradient
//! ```
//! The block is written once, and asks [`parts::Parts`] for tensors by name: what an adapter adds or
//! replaces, [`adapter`] has put there. All that trains lies in one flat buffer, so that the optimiser
//! is a few kernels whatever the number of tensors.
//!
//! Text after a prompt is written without libtorch: [`decoder`] does the blocks on slices.
//!
//! Callers are the lanes (a thread each, see `actors/lanes.rs`); nothing here starts a thread but the
//! decoder's pool. Only the fallible `f_...` calls of tch are used: a panic would end the node.

pub mod adamw;
pub mod adapter;
pub mod adopted;
pub mod attention;
pub mod card;
pub mod checkpoint;
pub mod cnn;
pub mod cnn_split;
pub mod cnn_trainer;
pub mod cost;
pub mod cross_entropy;
pub mod cuttable;
pub mod decoder;
pub mod encoder;
mod evaluate;
pub mod few_rows;
pub mod frozen;
pub mod generate;
pub mod gguf;
pub mod huggingface;
pub mod kv_cache;
pub mod language;
pub mod language_trainer;
pub mod linear;
pub mod memory;
pub mod norm;
pub mod parts;
pub mod peft;
pub mod peft_format;
pub mod predictor;
pub mod pretrain;
mod prompted;
pub mod rope;
pub mod safetensors;
mod shared_rows;
pub mod shipped;
pub mod signal;
pub mod split;
pub mod split_predictor;
pub mod text_vectors;
pub mod tokenizer;
pub mod trainer;
pub mod transformer;
pub mod vision;
pub mod vision_trainer;
pub mod weights;
pub mod weights_error;

pub use adopted::{AdoptedBase, AdoptedCard, load_adopted, load_language, seal_adopted};
pub use attention::Pass;
pub use card::{Card, ModelCard, load_base, load_part, make_base, seal_base};
pub use cnn::CnnConfig;
pub use cnn_split::{CNN_CUT, CnnBack, CnnFront};
pub use cnn_trainer::{CnnLearner, CnnPredictor, CnnTrainerConfig};
pub use peft::{LoraConfig, PeftConfig};
pub use predictor::SignalPredictor;
pub use pretrain::{PretrainConfig, pretrain};
pub use signal::SignalTransformerConfig;
pub use split::{SignalBack, SignalFront};
pub use split_predictor::{SignalFrontPredictor, SplitPredictor};
pub use text_vectors::TextVectors;
pub use trainer::{SignalLearner, TrainerConfig};
pub use vision::VisionConfig;
pub use vision_trainer::{VisionLearner, VisionPredictor, VisionTrainerConfig};

use std::num::NonZeroU16;

use tch::{Device, TchError, Tensor};

use crate::learn::LearnError;

impl From<TchError> for LearnError {
    /// Keeps the first line: libtorch's texts go on with C++ backtraces.
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim().to_owned();
        Self::Engine { engine: "libtorch", message }
    }
}

/// Gives this thread its share of the cores; call it first on each thread that uses libtorch.
///
/// libtorch's own setting doesn't reach threads that run already.
pub fn use_threads(threads: NonZeroU16) {
    tch::set_num_threads(i32::from(threads.get()));
}

/// The device that a setting names: `cpu`, `cuda:N`, or `auto` for a GPU where there is one.
///
/// # Errors
/// [`LearnError::OutOfRange`] when it is none of these, or the GPU isn't there (a libtorch without CUDA
/// has none: `make setup` installs such a one, your own by `LIBTORCH` may have it).
pub fn device_of(name: &str) -> Result<Device, LearnError> {
    let gpus = tch::Cuda::device_count();
    let bad = |expected: String| {
        Err(LearnError::OutOfRange { what: "device", expected, actual: name.to_owned() })
    };
    match name.strip_prefix("cuda:") {
        _ if name == "cpu" => Ok(Device::Cpu),
        _ if name == "auto" => Ok(if gpus > 0 { Device::Cuda(0) } else { Device::Cpu }),
        Some(number) => match number.parse::<i64>() {
            Ok(n) if (0..gpus).contains(&n) => {
                Ok(Device::Cuda(usize::try_from(n).unwrap_or_default()))
            }
            _ => bad(format!("one of the {gpus} GPUs that libtorch sees here")),
        },
        None => bad("auto, cpu or cuda:N".into()),
    }
}

/// A tensor of `shape` from row-major values.
fn tensor(data: &[f32], shape: &[i64]) -> Result<Tensor, LearnError> {
    Ok(Tensor::f_from_slice(data)?.f_reshape(shape)?)
}

/// The row-major values of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>, LearnError> {
    let flat = tensor.f_detach()?.f_to_kind(tch::Kind::Float)?.f_contiguous()?;
    let mut out = vec![0.0; flat.numel()];
    let n = out.len();
    flat.f_copy_data(&mut out, n)?;
    Ok(out)
}

/// A size as libtorch takes it.
fn dim(size: usize) -> Result<i64, LearnError> {
    i64::try_from(size).map_err(|_| LearnError::OutOfRange {
        what: "tensor size",
        expected: "below 2^63".into(),
        actual: size.to_string(),
    })
}
