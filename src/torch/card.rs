//! Cards of bases: a base is a safetensors file, beside it a card that pins its digest, and the seal
//! of a release key on the card (`trust/release.rs`).
//!
//! `models/signal-bearing.toml` tells what the weights are, how they were made and under which
//! licence; nothing loads weights that their card doesn't know, or a card that nobody answers for.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::adopted::AdoptedCard;
use super::pretrain::{PretrainConfig, pretrain};
use super::safetensors::{self, WeightsError};
use super::signal::SignalTransformerConfig;
use crate::ids::Digest;
use crate::learn::{Control, Layout, LearnError, Progress, TensorSet, physics};
use crate::trust::keys::SigningKey;
use crate::trust::release::{
    MAX_CARD_BYTES, MAX_SEAL_BYTES, ReleaseError, ReleaseTrust, seal_card,
};

/// What is known of a base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// Name of the model; the files are `<name>.toml` and `<name>.safetensors`.
    pub name: String,
    /// SPDX licence of the weights.
    pub licence: String,
    /// SHA-256 of the safetensors file.
    pub sha256: Digest,
    /// Size of the safetensors file.
    pub bytes: u64,
    /// Names of the classes, in the order of their indices.
    pub classes: Vec<String>,
    /// Samples a second that a window has.
    pub sample_rate_hz: f64,
    /// Where the weights come from, in a sentence.
    pub made: String,
    /// Sizes of the model; the shapes of all tensors follow from them.
    pub architecture: SignalTransformerConfig,
}

impl ModelCard {
    /// Reads a card.
    ///
    /// # Errors
    /// [`WeightsError::BadCard`] when it isn't TOML or has missing or unknown keys.
    pub fn parse(text: &str) -> Result<Self, WeightsError> {
        toml::from_str(text).map_err(|e| WeightsError::BadCard(e.to_string()))
    }

    /// The card as TOML.
    pub fn to_toml(&self) -> String {
        let a = &self.architecture;
        let classes: Vec<String> = self.classes.iter().map(|c| format!("{c:?}")).collect();
        format!(
            "name = {:?}\nlicence = {:?}\nsha256 = \"{}\"\nbytes = {}\nclasses = [{}]\n\
             sample_rate_hz = {:?}\nmade = {:?}\n\n\
             [architecture] # signal transformer, src/torch/signal.rs\n\
             window = {}\npatch = {}\nstride = {}\nlayers = {}\nclasses = {}\n\n\
             [architecture.block]\nd_model = {}\nheads = {}\nd_ff = {}\n",
            self.name,
            self.licence,
            self.sha256,
            self.bytes,
            classes.join(", "),
            self.sample_rate_hz,
            self.made,
            a.window,
            a.patch,
            a.stride,
            a.layers,
            a.classes,
            a.block.d_model,
            a.block.heads,
            a.block.d_ff,
        )
    }
}

/// Pre-trains a base and writes `<dir>/<name>.safetensors` and `<dir>/<name>.toml`.
///
/// # Errors
/// [`WeightsError`] when training fails or a file can't be written.
pub fn make_base(
    config: &PretrainConfig,
    dir: &Path,
    name: &str,
    progress: &mut dyn FnMut(Progress) -> Control,
) -> Result<ModelCard, WeightsError> {
    let weights = pretrain(config, progress)?;
    let bytes = safetensors::encode(&weights)?;
    let card = ModelCard {
        name: name.to_owned(),
        licence: "Apache-2.0".into(),
        sha256: sha256(&bytes),
        bytes: bytes.len() as u64,
        classes: physics::CLASSES.iter().map(|c| (*c).to_owned()).collect(),
        sample_rate_hz: physics::SAMPLE_RATE_HZ,
        made: format!(
            "gaisnet pretrain, seed {}, {} steps of {} windows, peak learning rate {}: trained on \
             signals generated from bearing physics (src/learn/physics.rs), without any plant data",
            config.seed, config.steps, config.batch_size, config.learning_rate
        ),
        architecture: config.model,
    };
    fs::create_dir_all(dir).map_err(io(dir))?;
    replace(&dir.join(format!("{name}.safetensors")), &bytes)?;
    replace(&dir.join(format!("{name}.toml")), card.to_toml().as_bytes())?;
    Ok(card)
}

/// Seals the card of a base with release keys, as `<name>.sig` beside it; gives that path.
///
/// # Errors
/// [`WeightsError`] when card and weights don't belong together: then nothing is sealed.
pub fn seal_base(card_path: &Path, release: &[&SigningKey]) -> Result<PathBuf, WeightsError> {
    let card = read_card(card_path)?;
    read_weights(card_path, &card)?;
    let seal = seal_card(&card, release).map_err(ReleaseError::from)?;
    let path = card_path.with_extension(SEAL);
    replace(&path, &seal)?;
    Ok(path)
}

/// Reads a card that a trusted key has sealed, and the weights beside it.
///
/// Nothing of a card is looked at before its seal is good.
///
/// # Errors
/// [`WeightsError`] when the seal is missing or isn't one of `trust`, or when size, digest, names,
/// shapes or values aren't those of the card.
pub fn load_base(
    card_path: &Path,
    trust: &ReleaseTrust,
) -> Result<(ModelCard, TensorSet), WeightsError> {
    read_weights(card_path, &read_sealed(card_path, trust)?)
}

/// A card of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Card {
    /// A base that gaisnet's own `pretrain` made.
    Signal(Box<ModelCard>),
    /// A base that others made.
    Adopted(Box<AdoptedCard>),
}

impl Card {
    /// Reads a card.
    ///
    /// # Errors
    /// [`WeightsError::BadCard`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WeightsError> {
        let bad = |e: &dyn std::fmt::Display| WeightsError::BadCard(e.to_string());
        let text = std::str::from_utf8(bytes).map_err(|e| bad(&e))?;
        let table: toml::Table = toml::from_str(text).map_err(|e| bad(&e))?;
        if table.contains_key("files") {
            return Ok(Self::Adopted(Box::new(AdoptedCard::parse(text)?)));
        }
        Ok(Self::Signal(Box::new(ModelCard::parse(text)?)))
    }

    /// Reads a card without asking who signed it: for looking at, not for loading.
    ///
    /// # Errors
    /// [`WeightsError::BadCard`]; [`WeightsError::TooBig`].
    pub fn read_unsealed(card_path: &Path) -> Result<Self, WeightsError> {
        Self::parse(&read_card(card_path)?)
    }

    /// Reads a card that a trusted key has sealed.
    ///
    /// # Errors
    /// [`WeightsError`] when the seal is missing or isn't one of `trust`.
    pub fn read(card_path: &Path, trust: &ReleaseTrust) -> Result<Self, WeightsError> {
        Self::parse(&read_sealed(card_path, trust)?)
    }
}

/// The bytes of a card that a trusted key has sealed. Nothing of it is looked at before.
pub(super) fn read_sealed(card_path: &Path, trust: &ReleaseTrust) -> Result<Vec<u8>, WeightsError> {
    let (card, seal) = read_files(card_path)?;
    let Some(seal) = seal else {
        return Err(WeightsError::Unsigned { path: card_path.with_extension(SEAL) });
    };
    trust.check(&card, &seal)?;
    Ok(card)
}

/// The bytes of a card, and those of its seal if there is one.
///
/// # Errors
/// [`WeightsError::Io`]; [`WeightsError::TooBig`].
pub fn read_files(card_path: &Path) -> Result<(Vec<u8>, Option<Vec<u8>>), WeightsError> {
    let card = read_card(card_path)?;
    let path = card_path.with_extension(SEAL);
    if !path.exists() {
        return Ok((card, None));
    }
    let cap = u64::try_from(MAX_SEAL_BYTES).unwrap_or(u64::MAX);
    Ok((card, Some(safetensors::read_bytes(&path, cap)?)))
}

pub(super) fn read_card(card_path: &Path) -> Result<Vec<u8>, WeightsError> {
    safetensors::read_bytes(card_path, u64::try_from(MAX_CARD_BYTES).unwrap_or(u64::MAX))
}

/// Reads a card that a trusted key has sealed, and those of the weights beside it for whose names `keep`
/// holds. The others are gone through for the digest, and never in memory together.
///
/// # Errors
/// As [`load_base`].
pub fn load_part(
    card_path: &Path,
    trust: &ReleaseTrust,
    keep: impl Fn(&str) -> bool,
) -> Result<(ModelCard, TensorSet), WeightsError> {
    let card = model_card(&read_sealed(card_path, trust)?)?;
    let path = card_path.with_extension("safetensors");
    let (weights, actual) = safetensors::read_part(&path, card.bytes, &keep)?;
    if actual != card.sha256 {
        return Err(WeightsError::BadDigest { expected: card.sha256, actual });
    }
    let layout = card.architecture.layout().0.into_iter().filter(|(name, _)| keep(name));
    weights.check_layout(&Layout(layout.collect()))?;
    Ok((card, weights))
}

/// A card with sizes that go together.
fn model_card(card: &[u8]) -> Result<ModelCard, WeightsError> {
    let text = std::str::from_utf8(card).map_err(|e| WeightsError::BadCard(e.to_string()))?;
    let card = ModelCard::parse(text)?;
    card.architecture.check()?;
    if card.bytes > MAX_BASE_BYTES {
        let (max, actual) = (MAX_BASE_BYTES, card.bytes);
        return Err(WeightsError::TooBig { what: "bytes of a base", max, actual });
    }
    if card.classes.len() != card.architecture.classes as usize {
        return Err(WeightsError::Learn(LearnError::OutOfRange {
            what: "class names",
            expected: card.architecture.classes.to_string(),
            actual: card.classes.len().to_string(),
        }));
    }
    Ok(card)
}

fn read_weights(card_path: &Path, card: &[u8]) -> Result<(ModelCard, TensorSet), WeightsError> {
    let card = model_card(card)?;
    let path = card_path.with_extension("safetensors");
    let bytes = safetensors::read_bytes(&path, card.bytes)?;
    let actual = sha256(&bytes);
    if actual != card.sha256 {
        return Err(WeightsError::BadDigest { expected: card.sha256, actual });
    }
    let weights = safetensors::decode(&bytes)?;
    weights.check_layout(&card.architecture.layout())?;
    Ok((card, weights))
}

/// Writes a file whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(io(path))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> WeightsError {
    let path = path.display().to_string();
    move |source| WeightsError::Io { path: path.clone(), source }
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Digest(out)
}

/// Extension of the seal on a card.
pub(super) const SEAL: &str = "sig";

/// A base for sensor windows that is larger than this is none.
const MAX_BASE_BYTES: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::transformer::BlockConfig;

    fn make(dir: &Path) -> ModelCard {
        let model = SignalTransformerConfig {
            layers: 1,
            stride: 64,
            block: BlockConfig { d_model: 8, heads: 2, d_ff: 8 },
            ..SignalTransformerConfig::default()
        };
        let config = PretrainConfig { model, steps: 1, batch_size: 3, ..PretrainConfig::default() };
        make_base(&config, dir, "tiny", &mut |_| Control::Continue).unwrap()
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::generate(&[seed; 32])
    }

    fn trust() -> ReleaseTrust {
        ReleaseTrust::pinned(*key(1).public())
    }

    fn kind(card: &Path) -> &'static str {
        load_base(card, &trust()).map_or_else(|e| e.kind(), |_| "ok")
    }

    #[test]
    fn a_sealed_base_comes_back_with_its_card() {
        let dir = tempfile::tempdir().unwrap();
        let card = make(dir.path());
        let path = dir.path().join("tiny.toml");
        assert_eq!(seal_base(&path, &[&key(1)]).unwrap(), dir.path().join("tiny.sig"));
        let (read, weights) = load_base(&path, &trust()).unwrap();
        assert_eq!(read, card);
        assert_eq!(weights.layout(), card.architecture.layout());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left over");
    }

    #[test]
    fn a_part_of_a_base_is_read_alone_and_the_whole_file_is_pinned() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let path = dir.path().join("tiny.toml");
        seal_base(&path, &[&key(1)]).unwrap();
        let (card, whole) = load_base(&path, &trust()).unwrap();
        let front = |name: &str| name.starts_with("embed") || name.starts_with("blocks.0");
        for keep in [&front as &dyn Fn(&str) -> bool, &|_| true, &|_| false, &|name| !front(name)] {
            let (same, part) = load_part(&path, &trust(), keep).unwrap();
            assert_eq!((&same, part), (&card, whole.filtered(keep)));
        }
        let file = path.with_extension("safetensors");
        let good = fs::read(&file).unwrap();
        let kind = || load_part(&path, &trust(), front).map_or_else(|e| e.kind(), |_| "ok");
        assert_eq!(kind(), "ok");
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1; // in a tensor that isn't read
        fs::write(&file, &flipped).unwrap();
        assert_eq!(kind(), "bad_digest");
        fs::write(&file, [good.as_slice(), &[0]].concat()).unwrap();
        assert_eq!(kind(), "too_big");
        let mut long = good.clone();
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&file, &long).unwrap();
        assert_eq!(kind(), "too_big", "a header's length is nobody's allocation");
        fs::write(&file, &good[..good.len() / 2]).unwrap();
        assert!(["io", "bad_digest", "malformed"].contains(&kind()), "{}", kind());
    }

    #[test]
    fn a_base_without_the_seal_of_a_trusted_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let card = dir.path().join("tiny.toml");
        assert_eq!(kind(&card), "unsigned");
        let text = load_base(&card, &trust()).unwrap_err().to_string();
        assert!(text.contains("tiny.sig") && text.contains("gaisnet model sign"), "{text}");
        seal_base(&card, &[&key(2)]).unwrap();
        assert_eq!(kind(&card), "release_foreign_key");
        seal_base(&card, &[&key(1)]).unwrap();
        assert_eq!(kind(&card), "ok", "the valid twin");
        fs::write(card.with_extension(SEAL), vec![0; MAX_SEAL_BYTES + 1]).unwrap();
        assert_eq!(kind(&card), "too_big");
    }

    #[test]
    fn what_its_card_does_not_pin_is_not_sealed() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let card = dir.path().join("tiny.toml");
        fs::write(card.with_extension("safetensors"), b"other weights").unwrap();
        assert_eq!(seal_base(&card, &[&key(1)]).unwrap_err().kind(), "bad_digest");
        assert!(!card.with_extension(SEAL).exists());
    }

    #[test]
    fn the_shipped_base_is_the_one_its_card_pins_and_knows_bearing_physics() {
        use crate::learn::Predictor;
        use crate::torch::{PeftConfig, SignalPredictor};
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/signal-bearing.toml");
        let trust = crate::torch::shipped::trust().unwrap();
        let (card, weights) = load_base(&path, &trust).unwrap();
        assert_eq!(card.architecture, PretrainConfig::default().model);
        assert!(card.bytes < 2_000_000);
        let fresh = physics::windows(&mut crate::rng::Stream::new(77, "fresh"), 90);
        let threads = std::num::NonZeroU16::MIN;
        let peft = PeftConfig::default();
        let mut base = SignalPredictor::new(&weights, card.architecture, &peft, threads).unwrap();
        let answers = base.predict(&fresh.x, fresh.len).unwrap();
        let right = answers.iter().zip(&fresh.labels).filter(|(a, label)| a.class == **label);
        let right = right.count();
        assert!(right >= 54, "{right} of 90, chance is 30");
    }

    #[test]
    fn a_base_that_differs_from_its_card_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let card = make(dir.path());
        let (card_path, path) = (dir.path().join("tiny.toml"), dir.path().join("tiny.safetensors"));
        let kind = || kind(&card_path);
        let seal = || seal_base(&card_path, &[&key(1)]);
        seal().unwrap();
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(kind(), "bad_digest");
        fs::write(&path, [good.as_slice(), &[0]].concat()).unwrap();
        assert_eq!(kind(), "too_big");
        fs::write(&path, &good).unwrap();
        assert_eq!(kind(), "ok");
        let deeper = card.to_toml().replace("layers = 1", "layers = 2");
        fs::write(&card_path, &deeper).unwrap();
        assert_eq!(kind(), "release_other_card");
        assert_eq!(seal().unwrap_err().kind(), "layout_mismatch");
        // Also where a release key was careless.
        let careless = |card: &str| {
            fs::write(&card_path, card).unwrap();
            let seal = seal_card(card.as_bytes(), &[&key(1)]).unwrap();
            fs::write(card_path.with_extension(SEAL), seal).unwrap();
        };
        careless(&deeper);
        assert_eq!(kind(), "layout_mismatch");
        careless(&(card.to_toml() + "extra = 1\n"));
        assert_eq!(kind(), "bad_card");
    }
}
