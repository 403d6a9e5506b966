//! Answers of two halves beside those of the whole.

use super::*;
use crate::learn::{ActivationCoding, Learner, TrainJob};
use crate::rng::Stream;
use crate::torch::signal::tests::tiny;
use crate::torch::trainer::tests::tones;
use crate::torch::{LoraConfig, SignalFront, SignalLearner, TrainerConfig};

const THREADS: NonZeroU16 = NonZeroU16::MIN;

fn config(layers: u32) -> TrainerConfig {
    let targets = ["q", "v", "up"].map(str::to_owned).to_vec();
    let lora = LoraConfig { rank: 2, alpha: 4.0, targets, ..LoraConfig::default() };
    TrainerConfig {
        model: SignalTransformerConfig { layers, ..tiny() },
        peft: PeftConfig { lora: Some(lora), ..PeftConfig::default() },
        ..TrainerConfig::default()
    }
}

fn base(config: &TrainerConfig) -> TensorSet {
    config.model.initial_weights(&mut Stream::new(1, "weights"))
}

/// The front of a device, the back of its edge, and the whole.
fn all(
    config: &TrainerConfig,
    cut: Cut,
) -> (SignalFrontPredictor, SplitPredictor, SignalPredictor) {
    let front = base(config).filtered(|name| cut.is_front(name));
    let front = SignalFront::new(&front, config.clone(), cut, 3).unwrap();
    let (base, peft) = (base(config), &config.peft);
    (
        front.predictor(THREADS).unwrap(),
        SplitPredictor::new(&base, config.model, peft, cut, THREADS).unwrap(),
        SignalPredictor::new(&base, config.model, peft, THREADS).unwrap(),
    )
}

/// An adapter that has learned something.
fn trained(config: &TrainerConfig, seed: u64) -> TensorSet {
    let mut learner = SignalLearner::new(&base(config), config.clone(), 3).unwrap();
    let job = TrainJob::plain(learner.initial_adapter(), 4, 12, 0.05, seed);
    let data = tones(24, seed).into();
    learner.train(&data, &job, &mut |_| crate::learn::Control::Continue).unwrap().adapter
}

fn gap(a: &[Prediction], b: &[Prediction]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a.probabilities.iter().zip(&b.probabilities));
    pairs.fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
}

#[test]
fn the_halves_answer_as_the_whole_does_for_each_cut() {
    let config = config(3);
    let data = tones(20, 9);
    for blocks in 1..=3 {
        let cut = Cut { blocks, head_in_front: false };
        let (mut front, mut back, mut whole) = all(&config, cut);
        for adapter in [None, Some(trained(&config, 1)), Some(trained(&config, 2))] {
            if let Some(adapter) = adapter {
                front.load(&front_of(&adapter, cut)).unwrap();
                back.load(&adapter).unwrap();
                whole.load(&adapter).unwrap();
            }
            let expected = whole.predict(&data.x, data.len).unwrap();
            let at_cut = front.pass(&data.x, data.len).unwrap();
            let split = back.finish(&at_cut, Kept::Last).unwrap();
            assert!(gap(&split, &expected) < 1e-5, "cut {blocks}: {}", gap(&split, &expected));
            assert!(gap(&back.predict(&data.x, data.len).unwrap(), &expected) < 1e-7);
            let int8 = ActivationCoding::Int8;
            let short = Activations::decode(int8, &at_cut.shape, &at_cut.encode(int8).unwrap());
            let split = back.finish(&short.unwrap(), Kept::Last).unwrap();
            let same = split.iter().zip(&expected).filter(|(a, b)| a.class == b.class).count();
            assert!(same >= 19 && gap(&split, &expected) < 0.05, "{same} of 20");
        }
    }
}

fn front_of(adapter: &TensorSet, cut: Cut) -> TensorSet {
    adapter.filtered(|name| cut.is_front(name))
}

#[test]
fn the_back_before_the_one_in_use_goes_on_for_fronts_that_are_late() {
    let config = config(2);
    let cut = Cut { blocks: 1, head_in_front: false };
    let (mut front, mut back, mut whole) = all(&config, cut);
    let data = tones(6, 4);
    let untrained = front.pass(&data.x, data.len).unwrap();
    assert_eq!(back.finish(&untrained, Kept::Before).unwrap_err().kind(), "out_of_range");
    let expected = whole.predict(&data.x, data.len).unwrap();
    let next = trained(&config, 1);
    back.load(&next).unwrap();
    assert!(gap(&back.finish(&untrained, Kept::Before).unwrap(), &expected) < 1e-5);
    // What mixed halves would say is something else.
    assert!(gap(&back.finish(&untrained, Kept::Last).unwrap(), &expected) > 1e-3);
    whole.load(&next).unwrap();
    front.load(&front_of(&next, cut)).unwrap();
    let at_cut = front.pass(&data.x, data.len).unwrap();
    let expected = whole.predict(&data.x, data.len).unwrap();
    assert!(gap(&back.finish(&at_cut, Kept::Last).unwrap(), &expected) < 1e-5);
    // An adapter that doesn't fit changes neither.
    assert!(back.load(&front_of(&next, cut)).is_err());
    assert!(gap(&back.finish(&at_cut, Kept::Last).unwrap(), &expected) < 1e-5);
    assert!(back.finish(&untrained, Kept::Before).is_ok());
}

#[test]
fn values_that_no_front_makes_are_refused() {
    let config = config(2);
    let cut = Cut { blocks: 1, head_in_front: false };
    let (mut front, mut back, _) = all(&config, cut);
    let data = tones(1, 4);
    let good = front.pass(&data.x, data.len).unwrap();
    assert!(back.finish(&good, Kept::Last).is_ok());
    let kind = |back: &mut SplitPredictor, at_cut: &Activations| {
        back.finish(at_cut, Kept::Last).unwrap_err().kind()
    };
    let flat = Activations::new(vec![good.data.len()], good.data.clone()).unwrap();
    assert_eq!(kind(&mut back, &flat), "out_of_range");
    let [n, tokens, d] = good.shape[..] else { panic!("{:?}", good.shape) };
    let turned = Activations::new(vec![n, d, tokens], good.data.clone()).unwrap();
    assert_eq!(kind(&mut back, &turned), "out_of_range");
    let mut nan = good.clone();
    nan.data[3] = f32::NAN;
    assert_eq!(kind(&mut back, &nan), "not_finite");
    assert!(front.pass(&data.x, data.len - 1).is_err());
    assert_eq!(front.pass(&vec![f32::NAN; data.len], data.len).unwrap_err().kind(), "not_finite");
    let head = Cut { head_in_front: true, ..cut };
    let made = SplitPredictor::new(&base(&config), config.model, &config.peft, head, THREADS);
    assert_eq!(made.unwrap_err().kind(), "out_of_range");
}
