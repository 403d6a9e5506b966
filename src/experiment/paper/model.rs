//! Bases, and what learns from and answers with them.

use std::fs;
use std::num::NonZeroU16;
use std::path::Path;

use super::cell::{Base, Cell, How, Set};
use super::record::{Point, Values};
use crate::data::images::ImageSet;
use crate::experiment::ExperimentError;
use crate::experiment::score::answers;
use crate::ids::Digest;
use crate::learn::{
    Control, Cut, Examples, Images, Layout, LearnError, Learner, Predictor, SplitBack, SplitFront,
    TensorSet, TrainJob, Windows,
};
use crate::rng::Stream;
use crate::torch::adamw::AdamWConfig;
use crate::torch::cuttable::Cuttable;
use crate::torch::safetensors;
use crate::torch::split::{Back, Front};
use crate::torch::{
    PeftConfig, PretrainConfig, SignalLearner, SignalPredictor, SignalTransformerConfig,
    TrainerConfig, VisionConfig, VisionLearner, VisionPredictor, VisionTrainerConfig, load_base,
    pretrain,
};

/// A device's half, how many values it holds, and how many of them train.
type CountedFront = (Box<dyn SplitFront>, (u64, u64));

/// A base with what trains of it.
pub(super) struct Model {
    pub(super) digest: Digest,
    base: TensorSet,
    kind: Kind,
    /// Where it is cut, if it is.
    cut: Option<Cut>,
}

enum Kind {
    Signal(TrainerConfig),
    Vision(VisionTrainerConfig),
}

impl Model {
    /// The base of a cell: one that comes along in `models/`, a random one, or one that the experiment makes
    /// itself and keeps in `folder`; `elsewhere` are the images that a base of images is pre-trained on.
    ///
    /// # Errors
    /// [`ExperimentError`] when there is none.
    pub(super) fn of(
        cell: &Cell,
        elsewhere: Option<&Images>,
        folder: &Path,
        told: &mut dyn FnMut(&str),
    ) -> Result<Self, ExperimentError> {
        let random = || Stream::new(cell.seed, "paper/weights");
        let (kind, base) = match (cell.set, cell.base) {
            (Set::Bearings, Base::Random) => {
                let model = SignalTransformerConfig::default();
                (signal(model, cell), model.initial_weights(&mut random()))
            }
            (Set::Bearings, Base::Deep { steps }) => {
                let model = SignalTransformerConfig { layers: DEEP_LAYERS, ..Default::default() };
                (signal(model, cell), deep(model, steps, folder, told)?)
            }
            (Set::Bearings, _) => {
                told("reading the base");
                let trust = crate::torch::shipped::trust()?;
                let (card, base) = load_base(Path::new(SHIPPED), &trust)?;
                (signal(card.architecture, cell), base)
            }
            (Set::FashionMnist, Base::Digits { steps }) => {
                let base = digits(elsewhere, steps, folder, told)?;
                (Kind::Vision(vision(cell.method.peft(), ImageSet::FashionMnist.scale())), base)
            }
            (Set::FashionMnist, _) => {
                let config = vision(cell.method.peft(), ImageSet::FashionMnist.scale());
                let base = config.model.initial_weights(&mut random());
                (Kind::Vision(config), base)
            }
        };
        let cut = matches!(cell.how, How::Split { .. });
        let cut = cut.then_some(Cut { blocks: CUT, head_in_front: false });
        let bytes = base.tensors().iter().flat_map(|t| &t.data).flat_map(|x| x.to_le_bytes());
        let digest = Digest::of(&bytes.collect::<Vec<u8>>());
        Ok(Self { digest, base, kind, cut })
    }

    pub(super) fn learner(&self) -> Result<Box<dyn Learner>, LearnError> {
        Ok(match &self.kind {
            Kind::Signal(config) => {
                Box::new(SignalLearner::new(&self.base, config.clone(), ADAPTER_SEED)?)
            }
            Kind::Vision(config) => {
                Box::new(VisionLearner::new(&self.base, config.clone(), ADAPTER_SEED)?)
            }
        })
    }

    /// A device's half, where the model is cut.
    pub(super) fn front(&self) -> Result<Option<Box<dyn SplitFront>>, LearnError> {
        let Some(cut) = self.cut else { return Ok(None) };
        Ok(Some(self.front_at(cut)?.0))
    }

    /// A device's half.
    fn front_at(&self, cut: Cut) -> Result<CountedFront, LearnError> {
        let front = self.base.filtered(|name| cut.is_front(name));
        Ok(match &self.kind {
            Kind::Signal(config) => counted(Front::new(&front, config.clone(), cut, ADAPTER_SEED)?),
            Kind::Vision(config) => counted(Front::new(&front, config.clone(), cut, ADAPTER_SEED)?),
        })
    }

    /// An edge's half.
    pub(super) fn back(&self) -> Result<Box<dyn SplitBack>, LearnError> {
        let cut = self.cut.unwrap_or(Cut { blocks: CUT, head_in_front: false });
        let back = self.base.filtered(|name| !cut.is_front(name));
        Ok(match &self.kind {
            Kind::Signal(config) => Box::new(Back::new(&back, config.clone(), cut, ADAPTER_SEED)?),
            Kind::Vision(config) => Box::new(Back::new(&back, config.clone(), cut, ADAPTER_SEED)?),
        })
    }

    /// Numbers of values; a device has the whole model where it isn't cut.
    pub(super) fn values(&self, how: How) -> Result<Values, LearnError> {
        let model = self.base.num_values() as u64;
        let trained = match how {
            How::Untrained => 0,
            _ => self.learner()?.initial_adapter().num_values() as u64,
        };
        let (on_device, trained_on_device) = match (how, self.cut) {
            (_, Some(cut)) => self.front_at(cut)?.1,
            (How::Pooled, None) => (0, 0),
            (How::Untrained, None) => (model, 0),
            (_, None) => (model, trained),
        };
        Ok(Values { model, trained, on_device, trained_on_device })
    }

    /// Judges adapters one after the other.
    pub(super) fn judge(&self) -> Result<Judge, LearnError> {
        Ok(Judge(match &self.kind {
            Kind::Signal(TrainerConfig { model, peft, threads, .. }) => {
                Box::new(SignalPredictor::new(&self.base, *model, peft, *threads)?)
            }
            Kind::Vision(config) => Box::new(VisionPredictor::new(&self.base, config.clone())?),
        }))
    }

    /// In a few words.
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Signal(TrainerConfig { model, .. }) => format!(
                "signal transformer, {} blocks of width {}",
                model.layers, model.block.d_model
            ),
            Kind::Vision(VisionTrainerConfig { model, .. }) => format!(
                "vision transformer, {} blocks of width {}, patches of {patch} x {patch}",
                model.layers,
                model.d_model,
                patch = model.patch
            ),
        }
    }
}

fn counted<C: Cuttable>(front: Front<C>) -> CountedFront {
    let values = front.num_values();
    (Box::new(front), values)
}

/// Says how well adapters answer.
pub(super) struct Judge(Box<dyn Predictor>);

impl Judge {
    /// The figures of an adapter after a round.
    pub(super) fn point(
        &mut self,
        round: u64,
        adapter: &TensorSet,
        test: &Windows,
    ) -> Result<Point, LearnError> {
        self.0.load(adapter)?;
        let confusion = answers(self.0.as_mut(), test)?;
        let (macro_f1, accuracy) = (confusion.macro_f1(), confusion.accuracy());
        Ok(Point { round, macro_f1: macro_f1.unwrap_or(0.0), accuracy: accuracy.unwrap_or(0.0) })
    }
}

fn signal(model: SignalTransformerConfig, cell: &Cell) -> Kind {
    let peft = cell.method.peft();
    Kind::Signal(TrainerConfig { model, peft, threads: NonZeroU16::MIN, ..Default::default() })
}

/// A vision transformer for images of 28 x 28 whose pixels have this mean and deviation.
fn vision(peft: PeftConfig, (mean, deviation): (f64, f64)) -> VisionTrainerConfig {
    let model = VisionConfig {
        image: 28,
        patch: 7,
        d_model: 48,
        layers: 3,
        heads: 4,
        d_ff: 96,
        norm_eps: 1e-5,
        classes: Some(10),
    };
    VisionTrainerConfig {
        model,
        mean,
        deviation,
        peft,
        correct_prior: true,
        adamw: AdamWConfig::default(),
        threads: NonZeroU16::MIN,
    }
}

/// The deep base, pre-trained on generated physics.
fn deep(
    model: SignalTransformerConfig,
    steps: u32,
    folder: &Path,
    told: &mut dyn FnMut(&str),
) -> Result<TensorSet, ExperimentError> {
    let name = format!("base-{}-blocks-{steps}-steps", model.layers);
    kept(&folder.join(name), &model.layout(), || {
        told("pre-training the deep base on generated physics");
        let config = PretrainConfig { model, steps, batch_size: 32, ..PretrainConfig::default() };
        pretrain(&config, &mut |_| Control::Continue)
    })
}

/// The base of images, pre-trained on digits.
fn digits(
    digits: Option<&Images>,
    steps: u32,
    folder: &Path,
    told: &mut dyn FnMut(&str),
) -> Result<TensorSet, ExperimentError> {
    let config = vision(PeftConfig::whole(vec!["*".into()]), ImageSet::Mnist.scale());
    let name = format!("base-digits-{steps}-steps");
    kept(&folder.join(name), &config.model.layout(), || {
        told("pre-training the base on digits");
        let data = Examples::from(digits.cloned().unwrap_or_default());
        let start = config.model.initial_weights(&mut Stream::new(PRETRAIN_SEED, "weights"));
        let job = TrainJob::plain(start.clone(), steps, 64, 1e-3, PRETRAIN_SEED);
        let mut learner = VisionLearner::new(&start, config.clone(), PRETRAIN_SEED)?;
        Ok(learner.train(&data, &job, &mut |_| Control::Continue)?.adapter)
    })
}

/// The base that an earlier cell has left, or a new one that is left there.
fn kept(
    name: &Path,
    layout: &Layout,
    make: impl FnOnce() -> Result<TensorSet, LearnError>,
) -> Result<TensorSet, ExperimentError> {
    let path = name.with_extension("safetensors");
    let at = |error| ExperimentError::Io(path.clone(), error);
    if path.exists() {
        let base = safetensors::read_file(&path, MAX_BASE_BYTES)?;
        base.check_layout(layout)?;
        return Ok(base);
    }
    let base = make()?;
    let fresh = path.with_extension("new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(at)?;
    }
    fs::write(&fresh, safetensors::encode(&base)?).map_err(at)?;
    fs::rename(&fresh, &path).map_err(at)?;
    Ok(base)
}

const SHIPPED: &str = "models/signal-bearing.toml";
/// Blocks on a device whose model is cut.
pub(super) const CUT: u32 = 1;
/// Blocks of the deep base: with one of them, a device holds a seventh of it.
const DEEP_LAYERS: u32 = 8;
/// The factors of version 0 are the same on each node.
const ADAPTER_SEED: u64 = 1;
/// A base that the experiment makes is the same for all of its seeds.
const PRETRAIN_SEED: u64 = 1;
/// The deep base is 1.2 MB.
const MAX_BASE_BYTES: u64 = 16 << 20;
