//! The language model as what an experiment is about: a base with LoRA, judged in full precision.

use std::num::NonZeroU16;
use std::path::Path;

use super::{ExperimentError, Subject};
use crate::learn::{Frame, Judge, LearnError, TensorSet, Texts};
use crate::settings::Settings;
use crate::torch::adamw::AdamWConfig;
use crate::torch::adopted::load_language;
use crate::torch::language::{LanguageBase, Precision};
use crate::torch::language_trainer::{LanguageLearner, LanguageTrainerConfig};
use crate::torch::tokenizer::TextTokenizer;
use crate::torch::{LoraConfig, PeftConfig, device_of, shipped};

/// Tokens a sequence: what a text may be foreseen from.
pub const SEQUENCE: u32 = 256;

/// Loads the base that a card pins and makes it ready: the learner holds it as this machine multiplies it quickest, the judge
/// in f32.
///
/// A machine's texts are its log book: a newline stands between them, and each is foreseen from those
/// before it in a sequence of [`SEQUENCE`] tokens. The card must be signed by a key that ships with the program;
/// its weights lie beside it, or in the folder `models`.
///
/// # Errors
/// [`ExperimentError`] when the base can't be read or doesn't go with the settings.
pub fn subject(
    card: &Path,
    models: &Path,
    settings: &Settings,
    threads: NonZeroU16,
) -> Result<(Subject, TextTokenizer), ExperimentError> {
    let (card, loaded) = load_language(card, &shipped::trust()?, models)?;
    let tokenizer = loaded.tokenizer;
    let newline = tokenizer.encode("\n")?;
    let [newline] = newline.as_slice() else {
        return Err(ExperimentError::Learn(LearnError::OutOfRange {
            what: "tokens of a newline",
            expected: "1: it stands between texts".into(),
            actual: newline.len().to_string(),
        }));
    };
    let lora = LoraConfig {
        rank: settings.strategy.rank,
        alpha: narrow(settings.strategy.alpha),
        ..LoraConfig::default()
    };
    let config = LanguageTrainerConfig {
        peft: PeftConfig::lora(lora),
        adamw: AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() },
        sequence: SEQUENCE,
        frame: Frame::log_book(*newline),
        max_memory_mib: None,
        threads,
    };
    let device = device_of(&settings.model.device)?;
    let precision = Precision::best(device);
    let (sizes, shared) = (loaded.config, loaded.weights.share());
    let exact = LanguageBase::new(sizes, shared, Precision::F32, device)?;
    let quick = match precision {
        Precision::F32 => exact.share(),
        Precision::Bf16 => LanguageBase::new(sizes, loaded.weights, precision, device)?,
    };
    let seed = settings.strategy.seed;
    let judge = LanguageLearner::new(exact, config.clone(), seed)?;
    let learner = LanguageLearner::new(quick, config, seed)?;
    let subject = Subject {
        learner: Box::new(learner),
        judge: Box::new(LanguageJudge(judge)),
        base: card.digest(),
        model: format!("{} with LoRA on q and v, base in {}", card.name, called(precision)),
        tokens_per_step: u64::from(SEQUENCE) * u64::from(settings.strategy.batch_size),
    };
    Ok((subject, tokenizer))
}

fn called(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// A learner that is only asked how well it foresees.
struct LanguageJudge(LanguageLearner);

impl Judge for LanguageJudge {
    fn nats(&mut self, adapter: &TensorSet, texts: &Texts) -> Result<f64, LearnError> {
        self.0.nats(texts, adapter)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a setting in the range of f32")]
fn narrow(value: f64) -> f32 {
    value as f32
}
