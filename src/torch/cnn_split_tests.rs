//! Two halves beside the whole: the same losses, the same weights.

use super::*;
use crate::learn::{ActivationCoding, ClassLogits, Control, Images, Learner, Progress};
use crate::torch::cnn_trainer::tests::{bars, config};
use crate::torch::{CnnLearner, CnnTrainerConfig};

fn halves() -> (CnnFront, CnnBack) {
    (CnnFront::new(config(), CNN_CUT, 1).unwrap(), CnnBack::new(config(), CNN_CUT, 1).unwrap())
}

fn job(start: TensorSet) -> TrainJob {
    TrainJob {
        prox_mu: 0.1,
        distill_lambda: 0.5,
        class_targets: Some(ClassLogits { mean_logits: vec![0.5; 100], counts: vec![20; 10] }),
        epochs: Some(3),
        ..TrainJob::plain(start, 1, 8, 0.01, 4)
    }
}

fn back_job(start: TensorSet) -> BackJob {
    let TrainJob { start, learning_rate, prox_mu, distill_lambda, class_targets, .. } = job(start);
    BackJob { start, learning_rate, prox_mu, distill_lambda, class_targets }
}

fn node() -> NodeId {
    NodeId::new("d1").unwrap()
}

/// As over the wire.
fn travel(a: &Activations, coding: ActivationCoding) -> Activations {
    Activations::decode(coding, &a.shape, &a.encode(coding).unwrap()).unwrap()
}

/// Losses of the steps that weren't lost, and the weights of both halves.
fn split(images: &Images, coding: ActivationCoding, lost: &[u32]) -> (Vec<f32>, TensorSet) {
    let (front, back) = halves();
    let data: Examples = images.clone().into();
    let mut device = front.begin(&data, &job(front.initial_adapter())).unwrap();
    let mut edge = back.open(&back_job(back.initial_adapter())).unwrap();
    let FrontBegun { steps, class_counts, .. } = device.begun();
    let (mut losses, mut settled) = (Vec::new(), None);
    for step in 1..=steps {
        let Smashed { activations, labels } = device.forward(&data).unwrap();
        edge.settle(&node(), settled.take()).unwrap();
        let smashed = Smashed { activations: travel(&activations, coding), labels };
        let answer = edge.step(&node(), &smashed, &class_counts).unwrap();
        if lost.contains(&step) {
            continue; // the answer never came
        }
        let gradient = travel(&answer.gradient, coding);
        settled = Some(device.backward(&gradient, answer.squared).unwrap());
        losses.push(answer.loss);
    }
    edge.settle(&node(), settled.take()).unwrap();
    let both = [device.adapter().unwrap(), edge.adapter().unwrap()];
    let tensors = both.iter().flat_map(TensorSet::tensors).cloned().collect();
    (losses, TensorSet::new(tensors).unwrap())
}

fn whole(images: &Images) -> (Vec<f32>, TensorSet) {
    let mut learner = CnnLearner::new(config(), 1).unwrap();
    let job = job(learner.initial_adapter());
    let mut losses = Vec::new();
    let mut note = |at: Progress| {
        losses.push(at.loss);
        Control::Continue
    };
    let trained = learner.train(&images.clone().into(), &job, &mut note).unwrap();
    (losses, trained.adapter)
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn weight_gap(a: &TensorSet, b: &TensorSet) -> f32 {
    assert_eq!(a.layout(), b.layout());
    let pairs = a.tensors().iter().zip(b.tensors());
    pairs.map(|(a, b)| gap(&a.data, &b.data)).fold(0.0, f32::max)
}

#[test]
fn split_training_is_training_in_one_place_short_batches_proximal_and_soft_label_terms_included() {
    let images = bars(60, 1);
    let (expected, weights) = whole(&images);
    let (losses, both) = split(&images, ActivationCoding::F32, &[]);
    assert_eq!(losses.len(), 3 * 8, "the last of eight has four images");
    assert!(gap(&losses, &expected) < 1e-5, "{losses:?} {expected:?}");
    assert!(weight_gap(&both, &weights) < 1e-5);
    let pass = |at: usize| expected[8 * at..8 * at + 8].iter().sum::<f32>();
    assert!(pass(2) < pass(0), "it learns: {expected:?}");
}

#[test]
fn eight_bits_change_little_and_a_lost_step_changes_neither_half() {
    let images = bars(60, 1);
    let (exact, _) = split(&images, ActivationCoding::F32, &[]);
    let (coarse, _) = split(&images, ActivationCoding::Int8, &[]);
    let off = gap(&exact, &coarse);
    assert!(off > 0.0 && off < 0.05, "{off}");
    // A run whose steps are all lost but the first three is a run of three steps.
    let (early, few) = split(&images, ActivationCoding::F32, &(4..=24).collect::<Vec<_>>());
    assert_eq!(early, exact[..3]);
    let mut learner = CnnLearner::new(config(), 1).unwrap();
    let job = job(learner.initial_adapter());
    let mut third = |at: Progress| if at.step == 3 { Control::Stop } else { Control::Continue };
    let trained = learner.train(&images.into(), &job, &mut third).unwrap();
    assert!(weight_gap(&few, &trained.adapter) < 1e-5);
}

#[test]
fn a_device_has_a_seventeenth_of_the_network() {
    let (front, back) = halves();
    assert_eq!(front.num_values(), 2_572);
    let rest = back.initial_adapter().num_values();
    assert_eq!(front.initial_adapter().num_values() + rest, 44_426);
    let names = |set: TensorSet| -> Vec<String> {
        set.tensors().iter().map(|tensor| tensor.name.clone()).collect()
    };
    assert!(names(front.initial_adapter()).iter().all(|name| name.starts_with("conv")));
    assert!(names(back.initial_adapter()).iter().all(|name| name.starts_with("fc")));
}

#[test]
fn other_cuts_jobs_and_turns_are_refused() {
    for cut in [Cut { blocks: 1, ..CNN_CUT }, Cut { head_in_front: true, ..CNN_CUT }] {
        assert_eq!(CnnFront::new(config(), cut, 1).unwrap_err().kind(), "out_of_range");
        assert_eq!(CnnBack::new(config(), cut, 1).unwrap_err().kind(), "out_of_range");
    }
    let wild = CnnTrainerConfig { momentum: 1.0, ..config() };
    assert_eq!(CnnFront::new(wild, CNN_CUT, 1).unwrap_err().kind(), "out_of_range");
    let (front, back) = halves();
    let data: Examples = bars(10, 1).into();
    let begin = |job: &TrainJob| front.begin(&data, job).map_or_else(|e| e.kind(), |_| "ok");
    let good = job(front.initial_adapter());
    assert_eq!(begin(&good), "ok");
    assert_eq!(begin(&TrainJob { final_rate: Some(0.0), ..good.clone() }), "out_of_range");
    assert_eq!(begin(&job(back.initial_adapter())), "layout_mismatch");
    let mut device = front.begin(&data, &good).unwrap();
    let mut edge = back.open(&back_job(back.initial_adapter())).unwrap();
    let smashed = device.forward(&data).unwrap();
    let mut step = |smashed: &Smashed| {
        edge.step(&node(), smashed, &[]).map_or_else(|error| error.kind(), |_| "ok")
    };
    assert_eq!(step(&smashed), "ok");
    let labels = vec![10; 8];
    assert_eq!(step(&Smashed { labels, ..smashed.clone() }), "out_of_range");
    assert_eq!(step(&Smashed { labels: vec![1; 7], ..smashed.clone() }), "out_of_range");
    let narrow = Activations::new(vec![8, 1], vec![0.0; 8]).unwrap();
    assert_eq!(step(&Smashed { activations: narrow.clone(), ..smashed.clone() }), "out_of_range");
    let mut wrong = smashed.activations.clone();
    wrong.data[3] = f32::NAN;
    assert_eq!(step(&Smashed { activations: wrong, ..smashed.clone() }), "not_finite");
    let before = device.adapter().unwrap();
    assert!(device.backward(&narrow, 1.0).is_err());
    assert!(device.backward(&smashed.activations, f64::NAN).is_err());
    assert!(device.head(&smashed.activations).is_err());
    assert_eq!(device.adapter().unwrap(), before, "nothing is changed then");
    assert!(device.backward(&smashed.activations, 1.0).is_ok());
    assert!(device.backward(&smashed.activations, 1.0).is_err(), "once for a batch");
}
