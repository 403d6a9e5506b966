//! Cards of bases: a base is a safetensors file and beside it a card that pins its digest.
//!
//! `models/signal-bearing.toml` tells what the weights are, how they were made and under which
//! licence; nothing loads weights that their card doesn't know.

use std::fs;
use std::io::Write;
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::pretrain::{PretrainConfig, pretrain};
use super::safetensors::{self, WeightsError};
use super::signal::SignalTransformerConfig;
use crate::ids::Digest;
use crate::learn::{Control, LearnError, Progress, TensorSet, physics};

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
    /// [`WeightsError::Malformed`] when it isn't TOML or has missing or unknown keys.
    pub fn parse(text: &str) -> Result<Self, WeightsError> {
        toml::from_str(text).map_err(|e| WeightsError::Malformed(e.to_string()))
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

/// Reads a card and the weights beside it.
///
/// # Errors
/// [`WeightsError`] when size, digest, names, shapes or values aren't those of the card.
pub fn load_base(card_path: &Path) -> Result<(ModelCard, TensorSet), WeightsError> {
    let card = ModelCard::parse(&fs::read_to_string(card_path).map_err(io(card_path))?)?;
    card.architecture.check()?;
    if card.bytes > MAX_BASE_BYTES {
        let (max, actual) = (MAX_BASE_BYTES, card.bytes);
        return Err(WeightsError::TooBig { what: "bytes of a base", max, actual });
    }
    let path = card_path.with_extension("safetensors");
    let bytes = safetensors::read_bytes(&path, card.bytes)?;
    let actual = sha256(&bytes);
    if actual != card.sha256 {
        return Err(WeightsError::BadDigest { expected: card.sha256, actual });
    }
    let weights = safetensors::decode(&bytes)?;
    weights.check_layout(&card.architecture.layout())?;
    if card.classes.len() != card.architecture.classes as usize {
        return Err(WeightsError::Learn(LearnError::OutOfRange {
            what: "class names",
            expected: card.architecture.classes.to_string(),
            actual: card.classes.len().to_string(),
        }));
    }
    Ok((card, weights))
}

/// Writes a file whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
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

    #[test]
    fn a_base_comes_back_with_its_card() {
        let dir = tempfile::tempdir().unwrap();
        let card = make(dir.path());
        let (read, weights) = load_base(&dir.path().join("tiny.toml")).unwrap();
        assert_eq!(read, card);
        assert_eq!(weights.layout(), card.architecture.layout());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
    }

    #[test]
    fn the_shipped_base_is_the_one_its_card_pins_and_knows_bearing_physics() {
        use crate::learn::Predictor;
        use crate::torch::{LoraConfig, SignalPredictor};
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/signal-bearing.toml");
        let (card, weights) = load_base(&path).unwrap();
        assert_eq!(card.architecture, PretrainConfig::default().model);
        assert!(card.bytes < 2_000_000);
        let fresh = physics::windows(&mut crate::rng::Stream::new(77, "fresh"), 90);
        let threads = std::num::NonZeroU16::MIN;
        let lora = LoraConfig::default();
        let mut base = SignalPredictor::new(&weights, card.architecture, &lora, threads).unwrap();
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
        let kind = || load_base(&card_path).map_or_else(|e| e.kind(), |_| "ok");
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
        fs::write(&card_path, deeper).unwrap();
        assert_eq!(kind(), "layout_mismatch");
        fs::write(&card_path, card.to_toml() + "extra = 1\n").unwrap();
        assert_eq!(kind(), "malformed");
    }
}
