//! Attacks on what a device really sends: class means, and a model's confidence in its own examples.

use super::*;
use crate::learn::{
    Control, Examples, Learner, MachineSpeeds, Prediction, SoftmaxLearner, Spectrum, TensorSet,
    TrainJob, Windows, mean_class_logits, physics,
};
use crate::privacy::{Gate, Profile};
use crate::rng::Stream;

const CLASSES: usize = physics::CLASSES.len();

fn learner() -> SoftmaxLearner {
    SoftmaxLearner::new(MachineSpeeds::default(), physics::WINDOW_LEN, CLASSES).unwrap()
}

fn windows(seed: u64, n: usize) -> Windows {
    physics::windows(&mut Stream::new(seed, "risk"), n)
}

fn features(data: &Windows) -> Vec<Vec<f32>> {
    let spectrum = Spectrum::new(MachineSpeeds::default(), data.len).unwrap();
    data.x.chunks(data.len).map(|window| spectrum.features(window).unwrap()).collect()
}

/// A model that learned these windows for so many steps.
fn model(data: Windows, steps: u32) -> TensorSet {
    let mut learner = learner();
    let job = TrainJob::plain(learner.initial_adapter(), steps, 16, 0.1, 3);
    learner.train(&Examples::from(data), &job, &mut |_| Control::Continue).unwrap().adapter
}

/// What a model says of features: logits `[C]`.
fn logits(model: &TensorSet, features: &[f32]) -> Vec<f64> {
    let of = |name| &model.get(name).unwrap().data;
    let rows = of("head.weight").chunks(features.len()).zip(of("head.bias"));
    rows.map(|(w, bias)| {
        let products = w.iter().zip(features).map(|(w, f)| f64::from(*w) * f64::from(*f));
        products.sum::<f64>() + f64::from(*bias)
    })
    .collect()
}

/// How well nearness to its class's mean over `k` members tells a member from another window.
///
/// The model learned from neither: only the mean tells who is in it.
fn from_class_means(model: &TensorSet, k: usize) -> Membership {
    let (mut members, mut others) = (Vec::new(), Vec::new());
    // Devices until there are enough candidates of each kind.
    for device in 0..(60 / k).max(4) as u64 {
        let [inside, outside] = [0, 1].map(|side| windows(100 + 2 * device + side, k * CLASSES));
        let of = |data: &Windows| -> Vec<f64> {
            features(data).iter().flat_map(|row| logits(model, row)).collect()
        };
        let said = of(&inside);
        let sent = mean_class_logits(&said, &inside.labels, CLASSES).unwrap();
        assert!(sent.counts.iter().all(|count| *count == k as u64));
        let nearness = |row: &[f64], label: usize| {
            let mean = sent.mean_logits.chunks(CLASSES).nth(label).unwrap();
            -row.iter().zip(mean).map(|(z, m)| (z - f64::from(*m)).powi(2)).sum::<f64>()
        };
        let score = |said: &[f64], labels: &[usize], into: &mut Vec<f64>| {
            into.extend(said.chunks(CLASSES).zip(labels).map(|(row, label)| nearness(row, *label)));
        };
        score(&said, &inside.labels, &mut members);
        score(&of(&outside), &outside.labels, &mut others);
    }
    Membership::of(&members, &others).unwrap()
}

#[test]
fn a_class_mean_of_one_example_tells_who_it_was_and_one_of_the_gates_minimum_does_not() {
    let cell = usize::try_from(Gate::from(Profile::Standard).min_cell).unwrap();
    let model = model(windows(1, 120), 200);
    let [one, few, gate] = [1, 3, cell].map(|k| from_class_means(&model, k));
    eprintln!("means over 1: {one:?}\nover 3: {few:?}\nover {cell}: {gate:?}");
    assert!(one.auc > 0.95 && one.tpr_at_1_percent > 0.9, "without protection: {one:?}");
    assert!(few.auc < one.auc && gate.auc < few.auc, "{few:?}");
    assert!((gate.auc - 0.5).abs() < 0.08 && gate.tpr_at_1_percent < 0.1, "{gate:?}");
}

fn chosen(data: &Windows, rows: &[usize]) -> Windows {
    let mut out = Windows { len: data.len, classes: data.classes, ..Windows::default() };
    for row in rows {
        out.x.extend_from_slice(data.row(*row).unwrap());
        out.labels.push(data.labels[*row]);
    }
    out
}

/// The likelihood-ratio attack with eight shadow models on one that learned `n` of `2 n` windows.
fn from_confidence(n: usize, steps: u32) -> (Membership, Membership) {
    let data = windows(7, 2 * n);
    let half = |seed: u64| {
        let mut rows: Vec<usize> = (0..2 * n).collect();
        Stream::new(seed, "half").shuffle(&mut rows);
        rows.truncate(n);
        rows.sort_unstable();
        rows
    };
    let features = features(&data);
    // Probability that a model of these rows gives each window's own class.
    let attacked = |rows: &[usize]| -> Vec<f32> {
        let model = model(chosen(&data, rows), steps);
        let own = features.iter().zip(&data.labels).map(|(row, label)| {
            let said: Vec<f32> = logits(&model, row).into_iter().map(|z| z as f32).collect();
            Prediction::of_logits(&said).probabilities[*label]
        });
        own.collect()
    };
    let own = half(0);
    let observed = attacked(&own);
    let shadows: Vec<Vec<Option<f32>>> = (1..=8)
        .map(|seed| {
            let seen = half(seed);
            let said = attacked(&seen).into_iter().enumerate();
            said.map(|(row, p)| seen.binary_search(&row).is_err().then_some(p)).collect()
        })
        .collect();
    let judge = |scores: &[f64]| {
        let of = |member: bool| -> Vec<f64> {
            let all = scores.iter().enumerate();
            all.filter(|(row, _)| own.binary_search(row).is_ok() == member)
                .map(|(_, s)| *s)
                .collect()
        };
        Membership::of(&of(true), &of(false)).unwrap()
    };
    let plain: Vec<f64> = observed.iter().map(|p| f64::from(*p)).collect();
    (judge(&likelihood_ratios(&observed, &shadows)), judge(&plain))
}

#[test]
fn a_models_confidence_tells_less_of_who_was_learned_where_there_were_many_and_few_steps() {
    let gate = Gate::from(Profile::Standard);
    let least = usize::try_from(gate.min_examples).unwrap();
    let (by_heart, plain_by_heart) = from_confidence(24, 2_000);
    let (allowed, plain) = from_confidence(2 * least, gate.min_steps);
    eprintln!("24 windows by heart: {by_heart:?}, by plain confidence {plain_by_heart:?}");
    eprintln!(
        "{} windows, {} steps: {allowed:?}, by plain confidence {plain:?}",
        2 * least,
        gate.min_steps
    );
    assert!(by_heart.auc > 0.7, "{by_heart:?}");
    // Numbers of examples make it harder, not impossible: nothing here promises a half.
    assert!(allowed.auc < by_heart.auc - 0.05 && allowed.auc < 0.75, "{allowed:?}");
}
