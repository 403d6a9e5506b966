//! Bases, and what learns from and answers with them.

use std::fs;
use std::num::NonZeroU16;
use std::path::Path;

use super::cell::{Base, Cell, How};
use super::record::{Point, Values};
use crate::experiment::ExperimentError;
use crate::experiment::score::answers;
use crate::ids::Digest;
use crate::learn::{
    Control, Cut, LearnError, Predictor, SplitBack, SplitFront, TensorSet, Windows,
};
use crate::rng::Stream;
use crate::torch::safetensors;
use crate::torch::{
    PretrainConfig, SignalBack, SignalFront, SignalLearner, SignalPredictor,
    SignalTransformerConfig, TrainerConfig, load_base, pretrain,
};

/// A base with what trains of it.
pub(super) struct Model {
    pub(super) digest: Digest,
    base: TensorSet,
    config: TrainerConfig,
    /// Where it is cut, if it is.
    cut: Option<Cut>,
}

impl Model {
    /// The base of a cell: one that comes along in `models/`, a random one, or the deep one that is kept in
    /// `folder`.
    ///
    /// # Errors
    /// [`ExperimentError`] when there is none.
    pub(super) fn of(
        cell: &Cell,
        folder: &Path,
        told: &mut dyn FnMut(&str),
    ) -> Result<Self, ExperimentError> {
        let shipped = |told: &mut dyn FnMut(&str)| -> Result<_, ExperimentError> {
            told("reading the base");
            let trust = crate::torch::shipped::trust()?;
            let (card, base) = load_base(Path::new(SHIPPED), &trust)?;
            Ok((card.architecture, base))
        };
        let (model, base) = match cell.base {
            Base::Shipped => shipped(told)?,
            Base::Random => {
                let model = SignalTransformerConfig::default();
                let weights = model.initial_weights(&mut Stream::new(cell.seed, "paper/weights"));
                (model, weights)
            }
            Base::Deep { steps } => deep(steps, folder, told)?,
        };
        let peft = cell.method.peft();
        let config =
            TrainerConfig { model, peft, threads: NonZeroU16::MIN, ..TrainerConfig::default() };
        let cut = matches!(cell.how, How::Split { .. });
        let cut = cut.then_some(Cut { blocks: CUT, head_in_front: false });
        let bytes = base.tensors().iter().flat_map(|t| &t.data).flat_map(|x| x.to_le_bytes());
        let digest = Digest::of(&bytes.collect::<Vec<u8>>());
        Ok(Self { digest, base, config, cut })
    }

    pub(super) fn learner(&self) -> Result<SignalLearner, LearnError> {
        SignalLearner::new(&self.base, self.config.clone(), ADAPTER_SEED)
    }

    /// A device's half, where the model is cut.
    pub(super) fn front(&self) -> Result<Option<Box<dyn SplitFront>>, LearnError> {
        let Some(cut) = self.cut else { return Ok(None) };
        Ok(Some(Box::new(self.front_at(cut)?)))
    }

    fn front_at(&self, cut: Cut) -> Result<SignalFront, LearnError> {
        let front = self.base.filtered(|name| cut.is_front(name));
        SignalFront::new(&front, self.config.clone(), cut, ADAPTER_SEED)
    }

    /// An edge's half; the whole model where it isn't cut.
    pub(super) fn back(&self) -> Result<Box<dyn SplitBack>, LearnError> {
        let cut = self.cut.unwrap_or(Cut { blocks: CUT, head_in_front: false });
        let back = self.base.filtered(|name| !cut.is_front(name));
        Ok(Box::new(SignalBack::new(&back, self.config.clone(), cut, ADAPTER_SEED)?))
    }

    /// Numbers of values; a device has the whole model where it isn't cut.
    pub(super) fn values(&self, how: How) -> Result<Values, LearnError> {
        use crate::learn::Learner;

        let model = self.base.num_values() as u64;
        let trained = match how {
            How::Untrained => 0,
            _ => self.learner()?.initial_adapter().num_values() as u64,
        };
        let (on_device, trained_on_device) = match (how, self.cut) {
            (_, Some(cut)) => self.front_at(cut)?.num_values(),
            (How::Pooled, None) => (0, 0),
            (How::Untrained, None) => (model, 0),
            (_, None) => (model, trained),
        };
        Ok(Values { model, trained, on_device, trained_on_device })
    }

    /// Judges adapters one after the other.
    pub(super) fn judge(&self) -> Result<Judge, LearnError> {
        let TrainerConfig { model, peft, threads, .. } = &self.config;
        Ok(Judge(SignalPredictor::new(&self.base, *model, peft, *threads)?))
    }

    /// In a few words.
    pub(super) fn describe(&self) -> String {
        let SignalTransformerConfig { layers, block, .. } = &self.config.model;
        format!("signal transformer, {layers} blocks of width {}", block.d_model)
    }
}

/// Says how well adapters answer.
pub(super) struct Judge(SignalPredictor);

impl Judge {
    /// The figures of an adapter after a round.
    pub(super) fn point(
        &mut self,
        round: u64,
        adapter: &TensorSet,
        test: &Windows,
    ) -> Result<Point, LearnError> {
        self.0.load(adapter)?;
        let confusion = answers(&mut self.0, test)?;
        let (macro_f1, accuracy) = (confusion.macro_f1(), confusion.accuracy());
        Ok(Point { round, macro_f1: macro_f1.unwrap_or(0.0), accuracy: accuracy.unwrap_or(0.0) })
    }
}

/// The deep base that an earlier cell has left in `folder`, or a new one that is left there.
fn deep(
    steps: u32,
    folder: &Path,
    told: &mut dyn FnMut(&str),
) -> Result<(SignalTransformerConfig, TensorSet), ExperimentError> {
    let model = SignalTransformerConfig { layers: DEEP_LAYERS, ..Default::default() };
    let path = folder.join(format!("base-{DEEP_LAYERS}-blocks-{steps}-steps.safetensors"));
    let at = |error| ExperimentError::Io(path.clone(), error);
    if path.exists() {
        let base = safetensors::read_file(&path, MAX_BASE_BYTES)?;
        base.check_layout(&model.layout())?;
        return Ok((model, base));
    }
    told("pre-training the deep base on generated physics");
    let config = PretrainConfig { model, steps, batch_size: 32, ..PretrainConfig::default() };
    let base = pretrain(&config, &mut |_| Control::Continue)?;
    let fresh = path.with_extension("new");
    fs::create_dir_all(folder).map_err(at)?;
    fs::write(&fresh, safetensors::encode(&base)?).map_err(at)?;
    fs::rename(&fresh, &path).map_err(at)?;
    Ok((model, base))
}

const SHIPPED: &str = "models/signal-bearing.toml";
/// Blocks on a device whose model is cut.
pub(super) const CUT: u32 = 1;
/// Blocks of the deep base: with one of them, a device holds a seventh of it.
const DEEP_LAYERS: u32 = 8;
/// The factors of version 0 are the same on each node.
const ADAPTER_SEED: u64 = 1;
/// The deep base is 1.2 MB.
const MAX_BASE_BYTES: u64 = 16 << 20;
