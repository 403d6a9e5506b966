//! From settings to a language model that trains and writes: one base in memory, shared by both lanes.

use std::num::NonZeroU32;

use super::settings::{
    ADAPTER_SEED, Brain, Server, SettingsProblem, cache_of, core_share, narrow, pack, release_trust,
};
use super::texts::reference_texts;
use crate::actors::text_lane::Writer;
use crate::learn::{Frame, Learner, ReferenceSet, ReferenceTokens, Texts, TopLogits};
use crate::scada::telegram::{AdapterMeta, ModelMeta};
use crate::settings::{AdapterSettings, Settings};
use crate::torch::adamw::AdamWConfig;
use crate::torch::adopted::load_language;
use crate::torch::checkpoint::Checkpoints;
use crate::torch::generate::LanguageGenerator;
use crate::torch::gguf::LoadedLanguage;
use crate::torch::language::{LanguageBase, Precision};
use crate::torch::language_trainer::{LanguageLearner, LanguageTrainerConfig};
use crate::torch::peft_format::{AdapterBase, digest_of, import_within};
use crate::torch::tokenizer::TextTokenizer;
use crate::torch::weights_error::WeightsError;
use crate::torch::{LoraConfig, PeftConfig, device_of};
use crate::trust::keyring::Keyring;

/// Makes the language model of the card at `model.base`, with `LoRA` of the strategy's rank on it.
///
/// A machine's texts are its log book, as in the experiment on excavators: a newline stands between them, and
/// each is foreseen from those before it.
///
/// # Errors
/// [`SettingsProblem`] when the base isn't sealed by a trusted key, isn't in the cache, or isn't one that
/// writes.
pub fn language_brain(settings: &Settings, keyring: &Keyring) -> Result<Brain, SettingsProblem> {
    let bad = |problem: String| SettingsProblem::Key { key: "model.base", problem };
    let path = settings.model.base.clone().ok_or_else(|| {
        bad("a language model needs a base: name the card of one (gaisnet model list)".into())
    })?;
    let trust = release_trust(settings, keyring)?;
    let cache = cache_of(settings)?;
    let (card, loaded) = load_language(&path, &trust, &cache.models())
        .map_err(|error| bad(format!("{}: {error}", path.display())))?;
    let LoadedLanguage { config, weights, tokenizer } = loaded;
    let newline = tokenizer.encode("\n")?;
    let [newline] = newline.as_slice() else {
        return Err(bad(format!(
            "{}: its tokenizer writes a newline as {newline:?}, not as one token",
            path.display()
        )));
    };
    let reference = reference_in(settings, &tokenizer, config.vocab)?;
    let device = device_of(&settings.model.device)?;
    let base = LanguageBase::new(config, weights, Precision::best(device), device)?;
    let share = core_share(&settings.limits, std::thread::available_parallelism().ok());
    let peft = PeftConfig::lora(LoraConfig {
        rank: settings.strategy.rank,
        alpha: narrow(settings.strategy.alpha),
        ..LoraConfig::default()
    });
    let trainer = LanguageTrainerConfig {
        peft: peft.clone(),
        adamw: AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() },
        sequence: SEQUENCE.min(config.context),
        frame: Frame::log_book(*newline),
        max_memory_mib: NonZeroU32::new(settings.limits.max_memory_mib).map(NonZeroU32::get),
        threads: share.train,
    };
    let mut learner = LanguageLearner::new(base.share(), trainer, ADAPTER_SEED)?;
    if let Some(every) = NonZeroU32::new(settings.limits.checkpoint_steps) {
        let folder = settings.paths.store.join("training");
        learner = learner.keeping(Checkpoints::new(folder, every, card.digest()));
    }
    let mut generator = LanguageGenerator::new(base, &peft, share.serve)?;
    let (name, digest) = (card.name.as_str(), card.weights_digest());
    let of = AdapterBase { name, digest, sizes: &config };
    let adapters = named_adapters(settings, &of, &mut generator)?;
    let model = ModelMeta {
        name: settings.model.name.clone(),
        version: 0,
        window: 0,
        rate_hz: 0.0,
        labels: Vec::new(),
        context: Some(config.context),
        adapters,
    };
    Ok(Brain {
        model,
        base: card.digest(),
        adapter: pack(&learner.initial_adapter())?,
        learner: Box::new(learner),
        server: Server::Text(Writer {
            generator: Box::new(generator),
            tokens: std::sync::Arc::new(tokenizer),
        }),
        back: None,
        reader: None,
        reference,
    })
}

/// The federation's reference texts as the model reads them, where nodes have models of their own.
fn reference_in(
    settings: &Settings,
    tokenizer: &TextTokenizer,
    vocab: u32,
) -> Result<Option<ReferenceSet>, SettingsProblem> {
    if !settings.knowledge.own_models {
        return Ok(None);
    }
    let written = reference_texts(settings)?;
    let texts = Texts::encoded(&written.texts, &mut |text| tokenizer.encode(text))?;
    // Told at the start, before a round is spent on it.
    TopLogits::silent(&texts, u16::try_from(settings.knowledge.top_logits).unwrap_or(u16::MAX))?;
    let tokens = ReferenceTokens { texts, vocab, tokenizer: tokenizer.digest() };
    Ok(Some(ReferenceSet::of_tokens(&written, tokens)?))
}

/// Brings the settings' adapters to the generator; each is checked against the base.
fn named_adapters(
    settings: &Settings,
    base: &AdapterBase<'_>,
    generator: &mut LanguageGenerator,
) -> Result<Vec<AdapterMeta>, SettingsProblem> {
    let cap_mib = settings.limits.adapters_mib;
    let mut left = u64::from(cap_mib) << 20;
    let mut all = Vec::with_capacity(settings.model.adapters.len());
    for AdapterSettings { name, path } in &settings.model.adapters {
        let bad = |problem: String| SettingsProblem::Key {
            key: "model.adapters",
            problem: format!("{name} ({}): {problem}", path.display()),
        };
        let too_big = || {
            bad(format!(
                "with it the adapters take more than limits.adapters_mib = {cap_mib}: raise it, or take \
                 some of them out"
            ))
        };
        // A file of f64 values is twice as long as they are here.
        let (peft, adapter) = import_within(path, base, left.saturating_mul(2) + HEAD_BYTES)
            .map_err(|error| match error {
                WeightsError::TooBig { what: "bytes", .. } => too_big(),
                other => bad(other.to_string()),
            })?;
        let bytes = (adapter.num_values() as u64).saturating_mul(4);
        left = left.checked_sub(bytes).ok_or_else(too_big)?;
        let fits = generator.hold(name.clone(), &peft, &adapter);
        fits.map_err(|error| bad(error.to_string()))?;
        let digest = digest_of(&peft, &adapter).map_err(|error| bad(error.to_string()))?;
        tracing::info!(%name, %digest, "an adapter that requests may name");
        all.push(AdapterMeta { name: name.clone(), digest });
    }
    Ok(all)
}

/// More than the names of an adapter's tensors take in a file.
const HEAD_BYTES: u64 = 16 << 20;
/// Tokens of a training sequence.
const SEQUENCE: u32 = 256;
