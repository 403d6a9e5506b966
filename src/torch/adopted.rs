//! Adopted bases: models that others trained, in the files that they come in.
//!
//! ```text
//! <name>.toml   the card: licence, source, files by digest, sizes
//! <name>.sig    the seal of a release key on it (trust/release.rs)
//! files         beside the card, or in the cache under the base's digest
//! ```
//! The card says the sizes once more, so that a person sees them before anything is fetched; what is
//! loaded must agree.

mod card;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

pub use self::card::{AdoptedCard, Architecture};
use super::card::{SEAL, read_card, read_sealed, replace};
use super::gguf::{LoadedLanguage, load_gguf};
use super::huggingface::{
    self, FILES, Kind, LoadedEncoder, LoadedVision, load_bert, load_llama, load_vit,
};
use super::weights_error::WeightsError;
use crate::ids::Digest;
use crate::trust::keys::SigningKey;
use crate::trust::pins::{FilePin, check_pins, is_pickle};
use crate::trust::release::{ReleaseError, ReleaseTrust, seal_card};

/// An adopted base in memory.
#[derive(Debug)]
pub enum AdoptedBase {
    /// A causal language model.
    Language(LoadedLanguage),
    /// A text encoder.
    Encoder(LoadedEncoder),
    /// An image encoder.
    Vision(LoadedVision),
}

impl AdoptedCard {
    /// Makes the card of a GGUF file or a Hugging Face folder, which is loaded and checked for that.
    ///
    /// # Errors
    /// What is wrong with the model; [`WeightsError::Pickle`] for a file that may be one.
    pub fn of(path: &Path, name: &str, about: &About) -> Result<Self, WeightsError> {
        let is_folder = path.is_dir();
        let file_name = |path: &Path| {
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        if !is_folder && is_pickle(&file_name(path)) {
            return Err(WeightsError::Pickle { path: path.to_owned() });
        }
        let loaded = load_from(path)?;
        let architecture = loaded.architecture();
        let names = if is_folder {
            let tokenizer = !matches!(loaded, AdoptedBase::Vision(_));
            FILES.into_iter().filter(|name| tokenizer || *name != "tokenizer.json").collect()
        } else {
            vec![""]
        };
        drop(loaded);
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let file = if is_folder { path.join(name) } else { path.to_owned() };
            let (sha256, bytes) = digest_of_file(&file)?;
            files.push(FilePin { name: file_name(&file), path: None, sha256, bytes });
        }
        check_pins(&files, None).map_err(WeightsError::BadCard)?;
        let tokenizer = match (&architecture, is_folder) {
            (Architecture::Vit(_), _) => "",
            (_, true) => "tokenizer.json",
            (_, false) => "byte-level BPE, in the GGUF file",
        };
        Ok(Self {
            name: name.to_owned(),
            licence: about.licence.clone(),
            made: about.made.clone(),
            intended_use: about.intended_use.clone(),
            tokenizer: tokenizer.to_owned(),
            source: None,
            files,
            architecture,
        })
    }

    /// Loads the files in `folder`, if they are those that the card pins.
    ///
    /// # Errors
    /// [`WeightsError::BadDigest`]; what is wrong with the model.
    pub fn load(&self, folder: &Path) -> Result<AdoptedBase, WeightsError> {
        for file in &self.files {
            let (actual, _) = digest_of_file(&folder.join(&file.name))?;
            if actual != file.sha256 {
                return Err(WeightsError::BadDigest { expected: file.sha256, actual });
            }
        }
        let path = match self.files.as_slice() {
            [only] => folder.join(&only.name),
            _ => folder.to_owned(),
        };
        let loaded = load_from(&path)?;
        if loaded.architecture() != self.architecture {
            let (card, file) = (self.architecture, loaded.architecture());
            let what = format!("it says {card:?}, its files are {file:?}");
            return Err(WeightsError::BadCard(what));
        }
        Ok(loaded)
    }
}

/// What only a person knows of a model.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// SPDX licence of the weights.
    pub licence: String,
    /// Who made the weights.
    pub made: String,
    /// What it is good for here, and what not.
    pub intended_use: String,
}

impl AdoptedBase {
    /// Its sizes.
    pub fn architecture(&self) -> Architecture {
        match self {
            Self::Language(loaded) => Architecture::Llama(loaded.config),
            Self::Encoder(loaded) => Architecture::Bert(loaded.config),
            Self::Vision(loaded) => Architecture::Vit(loaded.config),
        }
    }
}

/// Reads a card that a trusted key has sealed, and the base that it pins. Where there is no such file, a card
/// of that name that is built in: `smollm2-135m` will do.
///
/// # Errors
/// [`WeightsError`] when the seal is missing or isn't one of `trust`, or when the base isn't whole.
pub fn load_adopted(
    card_path: &Path,
    trust: &ReleaseTrust,
    cache: &Path,
) -> Result<(AdoptedCard, AdoptedBase), WeightsError> {
    let card = if let Some(shipped) = super::shipped::instead_of(card_path) {
        trust.check(shipped.card, shipped.seal)?;
        parse(shipped.card)?
    } else {
        parse(&read_sealed(card_path, trust)?)?
    };
    let base = card.load(&card.place(card_path, cache)?)?;
    Ok((card, base))
}

/// As [`load_adopted`], for a node that wants a language model.
///
/// # Errors
/// As [`load_adopted`]; [`WeightsError::Unsupported`] for another kind of model.
pub fn load_language(
    card_path: &Path,
    trust: &ReleaseTrust,
    cache: &Path,
) -> Result<(AdoptedCard, LoadedLanguage), WeightsError> {
    match load_adopted(card_path, trust, cache)? {
        (card, AdoptedBase::Language(loaded)) => Ok((card, loaded)),
        (card, _) => {
            let (what, known) = ("base", "expected a language model");
            Err(WeightsError::Unsupported { what, found: card.name, known })
        }
    }
}

/// Seals the card of an adopted base with release keys, as `<name>.sig` beside it; gives that path.
///
/// # Errors
/// [`WeightsError`] when card and files don't belong together: then nothing is sealed.
pub fn seal_adopted(
    card_path: &Path,
    release: &[&SigningKey],
    cache: &Path,
) -> Result<PathBuf, WeightsError> {
    let bytes = read_card(card_path)?;
    let card = parse(&bytes)?;
    card.load(&card.place(card_path, cache)?)?;
    let seal = seal_card(&bytes, release).map_err(ReleaseError::from)?;
    let path = card_path.with_extension(SEAL);
    replace(&path, &seal)?;
    Ok(path)
}

/// Writes the card of an adopted base.
///
/// # Errors
/// [`WeightsError::Io`].
pub fn write_card(path: &Path, card: &AdoptedCard) -> Result<(), WeightsError> {
    replace(path, card.to_toml()?.as_bytes())
}

fn parse(bytes: &[u8]) -> Result<AdoptedCard, WeightsError> {
    let text = std::str::from_utf8(bytes).map_err(|e| WeightsError::BadCard(e.to_string()))?;
    AdoptedCard::parse(text)
}

/// A GGUF file or a folder.
fn load_from(path: &Path) -> Result<AdoptedBase, WeightsError> {
    if !path.is_dir() {
        return Ok(AdoptedBase::Language(load_gguf(path)?));
    }
    Ok(match huggingface::kind_of(path)? {
        Kind::Llama => AdoptedBase::Language(load_llama(path)?),
        Kind::Bert => AdoptedBase::Encoder(load_bert(path)?),
        Kind::Vit => AdoptedBase::Vision(load_vit(path)?),
    })
}

/// SHA-256 and size of a file, however large.
///
/// # Errors
/// [`WeightsError::Io`].
pub fn digest_of_file(path: &Path) -> Result<(Digest, u64), WeightsError> {
    let io = |source| WeightsError::Io { path: path.display().to_string(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(io)?;
        if n == 0 {
            break;
        }
        hash.update(buffer.get(..n).unwrap_or_default());
        bytes += n as u64;
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Ok((Digest(digest), bytes))
}

#[cfg(test)]
mod tests;
