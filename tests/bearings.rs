//! The real recordings: what is unpacked, what windows it gives, and that federation pays on them.
//!
//! Only training recordings are learned from and judged here; the test part is merely counted.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::collections::BTreeMap;

use gaisnet::data::Cache;
use gaisnet::data::bearings::{Bearings, CLASSES, PLANTS, Recording, WINDOW_LEN, fetch_bearings};
use gaisnet::learn::{
    Control, Learner, MachineSpeeds, Predictor, SoftmaxLearner, SoftmaxPredictor, TensorSet,
    TrainJob, Windows, at_temperature, calibrate,
};
use gaisnet::rng::Stream;
use support::skip;

fn counts(windows: &Windows) -> [usize; 3] {
    let mut counts = [0; 3];
    windows.labels.iter().for_each(|label| counts[*label] += 1);
    counts
}

#[test]
fn the_set_has_exactly_the_windows_that_it_should() {
    let Some(bearings) = bearings_or_skip() else { return };
    let set = bearings.load().unwrap();
    let plants: Vec<_> = set.plants.iter().map(counts).collect();
    assert_eq!(plants, [[143, 0, 143], [143, 0, 143], [0, 142, 142], [0, 213, 213]]);
    assert_eq!(counts(&set.pooled), [286, 355, 641]);
    assert_eq!(counts(&set.test), [143, 142, 285]);
    assert!(set.pooled.x.len() == set.pooled.labels.len() * WINDOW_LEN);
}

#[test]
#[ignore = "downloads 67 MB into the cache that GAISNET_CACHE names"]
fn the_registry_still_has_the_pinned_archive() {
    let cache = Cache::from_env().unwrap();
    let fetched = fetch_bearings(&cache, &mut |step| eprintln!("{step:?}")).unwrap();
    eprintln!("fresh: {}, {}\n{}", fetched.fresh, fetched.folder.display(), fetched.notice);
    assert!(Bearings::cached(&cache).is_some());
}

#[test]
fn plants_that_federate_know_the_class_that_each_of_them_lacks() {
    let Some(bearings) = bearings_or_skip() else { return };
    let held_out = ["baseline_2", "OuterRaceFault_vload_5", "InnerRaceFault_vload_5"];
    let mut plants = Vec::new();
    let mut judged = none();
    for plant in 0..PLANTS.len() {
        let mut windows = none();
        for recording in bearings.plant_recordings(plant).unwrap() {
            let unseen = held_out.contains(&recording.name);
            add(if unseen { &mut judged } else { &mut windows }, &recording);
        }
        plants.push(windows);
    }
    let federated = macro_f1(&judged, &federate(&plants, 10, 1));
    for (plant, windows) in plants.iter().enumerate() {
        let alone = macro_f1(&judged, &federate(std::slice::from_ref(windows), 10, 1));
        eprintln!("{}: alone {alone:.3}, federated {federated:.3}", PLANTS[plant]);
        assert!(federated > alone + 0.15, "{alone} {federated}");
    }
    assert!(federated > 0.9, "{federated}");
}

/// The promise of a threshold on real windows: a model of half of the training recordings, and random
/// halves of the others' windows to take the threshold from and to judge.
#[test]
fn the_bound_of_sure_answers_holds_over_twenty_random_calibration_splits() {
    const SPLITS: u64 = 20;
    let Some(bearings) = bearings_or_skip() else { return };
    let (alpha, delta) = (0.05, 0.05);
    let (mut learned, mut judged) = (none(), none());
    for plant in 0..PLANTS.len() {
        for (at, recording) in bearings.plant_recordings(plant).unwrap().iter().enumerate() {
            add(if at % 2 == 0 { &mut learned } else { &mut judged }, recording);
        }
    }
    let mut predictor =
        SoftmaxPredictor::new(MachineSpeeds::default(), WINDOW_LEN, CLASSES.len()).unwrap();
    predictor.load(&federate(&[learned], 10, 1)).unwrap();
    let answers = predictor.predict(&judged.x, judged.len).unwrap();
    let mut order: Vec<usize> = (0..answers.len()).collect();
    let mut stream = Stream::new(1, "splits");
    let (mut broken, mut found) = (0, 0);
    for _ in 0..SPLITS {
        stream.shuffle(&mut order);
        let (known, fresh) = order.split_at(order.len() / 2);
        let probabilities: Vec<f32> =
            known.iter().flat_map(|i| answers[*i].probabilities.clone()).collect();
        let labels: Vec<usize> = known.iter().map(|i| judged.labels[*i]).collect();
        let measured = calibrate(&probabilities, &labels, CLASSES.len(), alpha, delta).unwrap();
        let Some(threshold) = measured.threshold else { continue };
        let is_sure = |i: &&usize| {
            let scaled = at_temperature(&answers[**i].probabilities, measured.temperature);
            scaled[answers[**i].class] >= threshold.confidence
        };
        let sure: Vec<&usize> = fresh.iter().filter(is_sure).collect();
        let wrong = sure.iter().filter(|i| answers[***i].class != judged.labels[***i]).count();
        found += 1;
        broken += u64::from(wrong as f64 > alpha * sure.len() as f64);
    }
    eprintln!("{} windows: {found} thresholds, {broken} violations", answers.len());
    assert!(found >= SPLITS / 2, "{found}");
    // More than four in twenty have a probability of 0.3 % where each has one of 5 %.
    assert!(broken <= 4, "{broken} of {found}");
}

fn none() -> Windows {
    Windows { x: Vec::new(), len: WINDOW_LEN, labels: Vec::new(), classes: CLASSES.len() }
}

fn add(windows: &mut Windows, recording: &Recording) {
    let more = recording.windows().unwrap();
    windows.x.extend(more.x);
    windows.labels.extend(more.labels);
}

/// `FedAvg` in a plain loop: what the protocol must come to when nothing goes wrong.
fn federate(plants: &[Windows], rounds: u64, seed: u64) -> TensorSet {
    let new = || SoftmaxLearner::new(MachineSpeeds::default(), WINDOW_LEN, CLASSES.len()).unwrap();
    let mut learners: Vec<SoftmaxLearner> = plants.iter().map(|_| new()).collect();
    let mut global = learners[0].initial_adapter();
    let total: usize = plants.iter().map(Windows::num_examples).sum();
    for round in 0..rounds {
        let mut mean = TensorSet::zeros(&global.layout());
        for (plant, (learner, windows)) in learners.iter_mut().zip(plants).enumerate() {
            let job = TrainJob {
                class_logits: true,
                ..TrainJob::plain(
                    global.clone(),
                    20,
                    32,
                    0.1,
                    seed * 10_000 + round * 10 + plant as u64,
                )
            };
            let trained =
                learner.train(&windows.clone().into(), &job, &mut |_| Control::Continue).unwrap();
            let share = windows.num_examples() as f32 / total as f32;
            for (to, from) in mean.values_mut().zip(trained.adapter.tensors()) {
                to.iter_mut().zip(&from.data).for_each(|(to, x)| *to += share * x);
            }
        }
        global = mean;
    }
    global
}

fn macro_f1(judged: &Windows, adapter: &TensorSet) -> f64 {
    let mut predictor =
        SoftmaxPredictor::new(MachineSpeeds::default(), WINDOW_LEN, CLASSES.len()).unwrap();
    predictor.load(adapter).unwrap();
    let answers = predictor.predict(&judged.x, judged.len).unwrap();
    let mut cells = BTreeMap::new();
    for (answer, label) in answers.iter().zip(&judged.labels) {
        *cells.entry((*label, answer.class)).or_insert(0.0) += 1.0;
    }
    let sum = |wanted: &dyn Fn(&(usize, usize)) -> bool| -> f64 {
        cells.iter().filter(|(cell, _)| wanted(cell)).map(|(_, n)| n).sum()
    };
    let f1 = |class| {
        2.0 * sum(&|c| *c == (class, class)) / (sum(&|c| c.0 == class) + sum(&|c| c.1 == class))
    };
    (0..CLASSES.len()).map(f1).sum::<f64>() / CLASSES.len() as f64
}

/// The `bearings` set from the cache; else the test is skipped, which is printed and counted.
fn bearings_or_skip() -> Option<Bearings> {
    let found = Bearings::cached(&Cache::from_env().unwrap());
    if found.is_none() {
        skip("data set bearings is not in the cache (gaisnet data fetch bearings)");
    }
    found
}
