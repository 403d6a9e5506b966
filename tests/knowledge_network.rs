//! Three models that share no architecture teach each other, in a whole network on the in-memory bus under
//! tokio's paused clock: real actors, machines, envelopes and ledgers.
//!
//! ```text
//!   cloud    one table of logits a class                      knows all classes
//!   edge     two tables whose sum is its answer               knows nothing
//!   device   softmax on spectral features                     has never seen the class "inner"
//! ```

#![cfg(feature = "runtime")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;

use std::sync::Arc;

use federation::{Plant, name, paused};
use gaisnet::actors::InlineBench;
use gaisnet::bus::memory::Faults;
use gaisnet::ids::{Digest, NodeId};
use gaisnet::learn::{
    BEARING_PHYSICS, ClassLogits, Control, Examples, LearnError, Learner, MachineSpeeds, Predictor,
    Progress, ReferenceSet, SoftmaxLearner, SoftmaxPredictor, Tensor, TensorSet, TrainJob, Trained,
    Windows, class_spectra, labels_digest, physics,
};
use gaisnet::ledger::Event;
use gaisnet::node::{Learning, NodeParts};
use gaisnet::protocol::{Distils, update};
use gaisnet::rng::Stream;
use gaisnet::trust::keyring::Role;
use gaisnet::wire::{Coding, KnowledgePlan, Merging, Plan, Reference, SpectraPlan};

const SAMPLES: u32 = 60;
const SEED: u64 = 5;

/// Its adapter is how its lesson's reference inputs sound, class by class.
struct Ears;

const BANDS: u16 = 16;

impl Learner for Ears {
    fn initial_adapter(&self) -> TensorSet {
        sounds(vec![0.0; 3 * usize::from(BANDS)])
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        progress(Progress { step: job.steps, loss: 1.0 });
        let lesson = job.lesson.as_ref().ok_or(LearnError::NoUpdates)?;
        let heard = class_spectra(&lesson.windows, usize::from(BANDS))?;
        Ok(Trained {
            class_logits: ClassLogits::of(&[], &[], 3),
            steps: job.steps,
            ..Trained::of(sounds(heard.means), data.num_examples(), &[1.0, 0.5])
        })
    }
}

fn sounds(means: Vec<f32>) -> TensorSet {
    let shape = vec![3, usize::from(BANDS)];
    TensorSet::new(vec![Tensor { name: "sounds".into(), shape, data: means }]).unwrap()
}

/// Says of each reference input the sum of its tables' rows for the input's label.
struct Tables(usize);

impl Learner for Tables {
    fn initial_adapter(&self) -> TensorSet {
        // The cloud's one table knows its classes already.
        let row = |at: usize| if self.0 == 1 && at.is_multiple_of(4) { 4.0 } else { 0.0 };
        let tensor = |table: usize| Tensor {
            name: format!("table{table}"),
            shape: vec![3, 3],
            data: (0..9).map(row).collect(),
        };
        TensorSet::new((0..self.0).map(tensor).collect()).unwrap()
    }

    fn train(
        &mut self,
        _: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        progress(Progress { step: job.steps, loss: 1.0 });
        let lesson = job.lesson.as_ref().ok_or(LearnError::NoUpdates)?;
        let mut adapter = job.start.clone();
        // Towards the logarithm of each class's mean target.
        let mut mean = [0.0_f32; 9];
        for (target, label) in lesson.targets.chunks(3).zip(&lesson.windows.labels) {
            (0..3).for_each(|c| mean[label * 3 + c] += 3.0 * target[c] / SAMPLES as f32);
        }
        let share = 1.0 / self.0 as f32;
        for values in adapter.values_mut() {
            for (value, mean) in values.iter_mut().zip(&mean) {
                *value += 0.5 * (share * (mean + 1e-3).ln() - *value);
            }
        }
        let said = lesson.windows.labels.iter().flat_map(|label| {
            let sum = |c: usize| adapter.tensors().iter().map(|t| t.data[label * 3 + c]).sum();
            [0, 1, 2].map(sum)
        });
        Ok(Trained {
            reference_logits: said.collect(),
            class_logits: ClassLogits::of(&[], &[], 3),
            steps: job.steps,
            ..Trained::of(adapter.clone(), 0, &[1.0, 0.5])
        })
    }
}

fn softmax() -> SoftmaxLearner {
    SoftmaxLearner::new(MachineSpeeds::default(), physics::WINDOW_LEN, 3).unwrap()
}

/// Windows without a class.
fn one_sided(lacks: usize) -> Windows {
    let all = physics::windows(&mut Stream::new(11, "plant"), 180);
    let mut some = Windows { len: all.len, classes: 3, ..Windows::default() };
    for (at, label) in all.labels.iter().enumerate().filter(|(_, label)| **label != lacks) {
        some.x.extend_from_slice(all.row(at).unwrap());
        some.labels.push(*label);
    }
    some
}

fn plan(reference: &ReferenceSet, of: &Plan) -> Plan {
    Plan {
        adapter_delta: false,
        class_logits: true,
        local_steps: 40,
        batch_size: 32,
        learning_rate: 0.1,
        distill_lambda: 1.0,
        coding: Coding::Int8,
        block: 64,
        knowledge: Some(KnowledgePlan {
            prototypes: false,
            reference_logits: true,
            reference: Some(Reference {
                generator: name(BEARING_PHYSICS),
                seed: SEED,
                count: SAMPLES,
                digest: reference.digest,
                classes: None,
                unlabelled: false,
            }),
            labels: labels_digest(&classes()),
            alpha: 0.1,
            reference_weight: 1.0,
            prototype_weight: 0.0,
            merging: Merging::Median,
            generator_weight: None,
            top_logits: None,
            spectra: None,
        }),
        ..of.clone()
    }
}

fn classes() -> Vec<String> {
    physics::CLASSES.iter().map(|class| (*class).to_owned()).collect()
}

/// What a node of each tier is made of.
fn parts(plant: &mut Plant, node: &NodeId, reference: &Arc<ReferenceSet>) -> NodeParts {
    let role = plant.members.place(node).role;
    let (learner, data): (Box<dyn Learner>, Examples) = match role {
        Role::Cloud => (Box::new(Tables(1)), Windows::default().into()),
        Role::Edge => (Box::new(Tables(2)), Windows::default().into()),
        _ => (Box::new(softmax()), one_sided(1).into()),
    };
    let mut parts = plant.parts(node);
    let mut model = parts.learning.model.clone();
    model.labels = classes();
    parts.learning = Learning {
        model,
        base: Digest::of(format!("{role:?}").as_bytes()),
        adapter: update::pack(&learner.initial_adapter(), Coding::F32, 0).unwrap(),
        plan: plan(reference, &parts.learning.plan),
        reference: Some(Arc::clone(reference)),
        distils: (role != Role::Device).then_some(Distils {
            steps: 10,
            learning_rate: 0.1,
            final_rate: None,
        }),
        ..parts.learning
    };
    let bench = InlineBench::new(node.clone(), Some((learner, data)));
    parts.bench = Box::new(bench.with_reference(Some(Arc::clone(reference))));
    parts
}

fn start(plant: &mut Plant, reference: &Arc<ReferenceSet>) {
    let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
    for node in nodes {
        let parts = parts(plant, &node, reference);
        plant.run(parts);
    }
}

fn reference(seed: u64) -> Arc<ReferenceSet> {
    Arc::new(ReferenceSet::make(BEARING_PHYSICS, seed, SAMPLES).unwrap())
}

/// Right answers of a device's model on windows of the class that it has never seen.
fn knows_inner(adapter: &[u8]) -> usize {
    let mut predictor =
        SoftmaxPredictor::new(MachineSpeeds::default(), physics::WINDOW_LEN, 3).unwrap();
    predictor.load(&update::unpack(adapter).unwrap()).unwrap();
    let unseen = physics::windows(&mut Stream::new(12, "unseen"), 60);
    let answers = predictor.predict(&unseen.x, unseen.len).unwrap();
    answers.iter().zip(&unseen.labels).filter(|(a, label)| **label == 1 && a.class == 1).count()
}

#[test]
fn three_architectures_teach_each_other_over_two_tiers() {
    paused(async {
        let reference = reference(SEED);
        let mut plant = Plant::new(2, 2, 3, &Faults::none(1));
        start(&mut plant, &reference);
        plant.converge(30).await;
        for (owner, at_least) in [("cloud", 3), ("edge0", 3), ("edge1", 3)] {
            plant.check_owner(owner);
            let distilled = |event: &Event| matches!(event, Event::Distil { steps: 10, .. });
            let times = plant.entries(owner).iter().filter(|event| distilled(event)).count();
            assert!(times >= at_least, "{owner} learned {times} times");
        }
        // What each serves has the shape of its own model, and a device knows what it never saw.
        let served = |node: &str| plant.running[&name(node)].serving.borrow().1.clone();
        let shape = |node: &str| update::unpack(&served(node)).unwrap().layout();
        assert_eq!(shape("cloud"), Tables(1).initial_adapter().layout());
        assert_eq!(shape("edge0"), Tables(2).initial_adapter().layout());
        assert_eq!(shape("dev0-0"), softmax().initial_adapter().layout());
        let known = knows_inner(&served("dev0-0"));
        assert!(known >= 10, "{known} of 20");
        let learned = update::unpack(&served("edge0")).unwrap();
        let row = &learned.tensors()[0].data[3..6];
        assert!(row[1] > row[0] + 0.5 && row[1] > row[2] + 0.5, "the edge knows inner: {row:?}");
    });
}

#[test]
fn faults_on_the_way_change_nothing_but_time() {
    paused(async {
        let reference = reference(SEED);
        let faults =
            Faults { seed: 3, loss: 0.1, duplicate: 0.1, delay_ms: 0..=2_000, reorder: true };
        let mut plant = Plant::new(2, 2, 2, &faults);
        start(&mut plant, &reference);
        plant.converge(120).await;
        plant.check_owner("cloud");
        plant.check_owner("edge0");
    });
}

/// Windows without a class of a machine that sounds shriller than the reference inputs do.
fn shrill(lacks: usize) -> Windows {
    let mut windows = one_sided(lacks);
    let before = windows.x.clone();
    for (x, before) in windows.x.iter_mut().skip(1).zip(&before) {
        *x -= 0.9 * before;
    }
    windows
}

/// How far what a node's lesson sounds like is from these, in mean decades a band.
fn far(node: &[u8], from: &[f32]) -> f32 {
    let heard = update::unpack(node).unwrap();
    let heard = &heard.tensors()[0].data;
    heard.iter().zip(from).map(|(a, b)| (a - b).abs()).sum::<f32>() / from.len() as f32
}

#[test]
fn each_tier_learns_inputs_that_sound_as_the_plants_do_though_each_site_lacks_a_class() {
    paused(async {
        let reference = reference(SEED);
        let mut plant = Plant::new(2, 2, 3, &Faults::none(1));
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in nodes {
            let mut parts = parts(&mut plant, &node, &reference);
            parts.learning.adapter = update::pack(&Ears.initial_adapter(), Coding::F32, 0).unwrap();
            let plan = &mut parts.learning.plan;
            plan.class_logits = false;
            if let Some(knowledge) = plan.knowledge.as_mut() {
                knowledge.reference_logits = false;
                knowledge.spectra = Some(SpectraPlan { bands: BANDS, grades: 1 });
            }
            let data = match node.as_str() {
                name if name.starts_with("dev0") => shrill(1),
                name if name.starts_with("dev1") => shrill(0),
                _ => Windows::default(),
            };
            let bench = InlineBench::new(node.clone(), Some((Box::new(Ears), data.into())));
            parts.bench = Box::new(bench.with_reference(Some(Arc::clone(&reference))));
            plant.run(parts);
        }
        plant.converge(30).await;
        let of = |lacks| class_spectra(&shrill(lacks), usize::from(BANDS)).unwrap();
        let (north, south) = (of(1), of(0));
        let rows = [north.row(0), south.row(1), north.row(2)].map(Option::unwrap);
        let plants = rows.concat();
        let plain = class_spectra(&reference.windows, usize::from(BANDS)).unwrap();
        let plain = update::pack(&sounds(plain.means), Coding::F32, 0).unwrap();
        assert!(far(&plain, &plants) > 0.4, "{}", far(&plain, &plants));
        for node in ["cloud", "edge0", "edge1", "dev0-0", "dev1-1"] {
            let served = plant.running[&name(node)].serving.borrow().1.clone();
            assert!(far(&served, &plants) < 0.1, "{node}: {}", far(&served, &plants));
        }
    });
}

/// Why a device declined, when its reference inputs or its classes are others.
fn declined(change: impl FnOnce(&mut Learning) + 'static) -> Vec<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    paused(async move {
        let reference = reference(SEED);
        let mut plant = Plant::new(1, 2, 1, &Faults::none(1));
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        let mut change = Some(change);
        for node in nodes {
            let mut parts = parts(&mut plant, &node, &reference);
            if node.as_str() == "dev0-1"
                && let Some(change) = change.take()
            {
                change(&mut parts.learning);
            }
            plant.run(parts);
        }
        tokio::time::sleep(std::time::Duration::from_secs(90)).await;
        let reasons = plant.entries("dev0-1").into_iter().filter_map(|event| match event {
            Event::Decline { reason, .. } => Some(reason.as_str().to_owned()),
            _ => None,
        });
        sender.send(reasons.collect()).unwrap();
    });
    receiver.recv().unwrap()
}

#[test]
fn who_has_other_reference_inputs_or_classes_says_so_and_who_has_not_takes_part() {
    let other = declined(|learning| learning.reference = Some(reference(SEED + 1)));
    assert!(!other.is_empty() && other.iter().all(|word| word == "unknown_reference_digest"));
    let swapped = declined(|learning| learning.model.labels.swap(0, 1));
    assert!(!swapped.is_empty() && swapped.iter().all(|word| word == "other_classes"));
    assert!(declined(|_| ()).is_empty());
}
