//! Two halves beside the whole: the same losses, the same adapter.

use super::*;
use crate::learn::{ActivationCoding, ClassLogits, Control, Learner, Progress, Windows};
use crate::torch::signal::tests::tiny;
use crate::torch::trainer::tests::tones;
use crate::torch::transformer::drawn_weights;
use crate::torch::vision_trainer::tests::{config as vision, stripes};
use crate::torch::{LoraConfig, PeftConfig, SignalLearner, VisionLearner};

fn config(layers: u32) -> TrainerConfig {
    let targets = ["q", "v", "up"].map(str::to_owned).to_vec();
    let lora = LoraConfig { rank: 2, alpha: 4.0, targets, ..LoraConfig::default() };
    TrainerConfig {
        model: SignalTransformerConfig { layers, ..tiny() },
        peft: PeftConfig { lora: Some(lora), ..PeftConfig::default() },
        ..TrainerConfig::default()
    }
}

fn base(config: &impl Cuttable) -> TensorSet {
    drawn_weights(&config.layout(), &mut Stream::new(1, "weights"))
}

fn halves<C: Cuttable>(config: &C, cut: Cut) -> (Front<C>, Back<C>) {
    let front = base(config).filtered(|name| cut.is_front(name));
    let back = base(config).filtered(|name| !cut.is_front(name));
    (
        Front::new(&front, config.clone(), cut, 3).unwrap(),
        Back::new(&back, config.clone(), cut, 3).unwrap(),
    )
}

fn job(start: TensorSet, steps: u32) -> TrainJob {
    TrainJob {
        prox_mu: 0.1,
        distill_lambda: 0.5,
        class_targets: Some(ClassLogits { mean_logits: vec![0.5; 9], counts: vec![20; 3] }),
        ..TrainJob::plain(start, steps, 12, 0.02, 4)
    }
}

fn back_job(job: &TrainJob, start: TensorSet) -> BackJob {
    BackJob {
        start,
        learning_rate: job.learning_rate,
        prox_mu: job.prox_mu,
        distill_lambda: job.distill_lambda,
        class_targets: job.class_targets.clone(),
    }
}

fn node() -> NodeId {
    NodeId::new("d1").unwrap()
}

/// As over the wire.
fn travel(a: &Activations, coding: ActivationCoding) -> Activations {
    Activations::decode(coding, &a.shape, &a.encode(coding).unwrap()).unwrap()
}

/// Losses of the steps that weren't lost, and both adapters.
fn split(
    config: &impl Cuttable,
    cut: Cut,
    data: impl Clone + Into<Examples>,
    steps: u32,
    coding: ActivationCoding,
    lost: &[u32],
) -> (Vec<f32>, TensorSet) {
    let (front, back) = halves(config, cut);
    let data: Examples = data.into();
    let job = job(front.initial_adapter(), steps);
    let mut device = front.begin(&data, &job).unwrap();
    let mut edge = back.open(&back_job(&job, back.initial_adapter())).unwrap();
    let counts = device.begun().class_counts;
    let (mut losses, mut settled) = (Vec::new(), None);
    for step in 1..=steps {
        let smashed = device.forward(&data).unwrap();
        let activations = travel(&smashed.activations, coding);
        edge.settle(&node(), settled.take()).unwrap();
        let (loss, answer) = if cut.head_in_front {
            let output = travel(&edge.forward(&node(), &activations).unwrap(), coding);
            let (loss, gradient) = device.head(&output).unwrap();
            (loss, edge.backward(&node(), &travel(&gradient, coding)).unwrap())
        } else {
            let smashed = Smashed { activations, labels: smashed.labels };
            let answer = edge.step(&node(), &smashed, &counts).unwrap();
            (answer.loss, answer)
        };
        if lost.contains(&step) {
            continue; // the answer never came
        }
        let gradient = travel(&answer.gradient, coding);
        settled = Some(device.backward(&gradient, answer.squared).unwrap());
        losses.push(loss);
    }
    edge.settle(&node(), settled.take()).unwrap();
    let both = [device.adapter().unwrap(), edge.adapter().unwrap()];
    let tensors = both.iter().flat_map(TensorSet::tensors).cloned().collect();
    (losses, TensorSet::new(tensors).unwrap())
}

fn whole(config: &TrainerConfig, data: &Windows, steps: u32) -> (Vec<f32>, TensorSet) {
    let learner = SignalLearner::new(&base(config), config.clone(), 3).unwrap();
    in_one_place(learner, data.clone(), steps)
}

fn in_one_place(
    mut learner: impl Learner,
    data: impl Into<Examples>,
    steps: u32,
) -> (Vec<f32>, TensorSet) {
    let job = job(learner.initial_adapter(), steps);
    let mut losses = Vec::new();
    let trained = learner
        .train(&data.into(), &job, &mut |at: Progress| {
            losses.push(at.loss);
            Control::Continue
        })
        .unwrap();
    (losses, trained.adapter)
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn split_training_is_training_in_one_place_for_each_cut_and_both_places_of_the_head() {
    let config = config(3);
    let data = tones(30, 1);
    let (expected, adapter) = whole(&config, &data, 50);
    assert!(expected[49] < 0.8 * expected[0], "it learns: {expected:?}");
    for blocks in 1..=3 {
        for head_in_front in [false, true] {
            if blocks == 3 && head_in_front {
                continue; // nothing would train on the edge
            }
            let cut = Cut { blocks, head_in_front };
            let (losses, both) = split(&config, cut, data.clone(), 50, ActivationCoding::F32, &[]);
            assert!(gap(&losses, &expected) < 1e-5, "{cut:?} {}", gap(&losses, &expected));
            assert_eq!(both.layout(), adapter.layout());
            for (a, b) in both.tensors().iter().zip(adapter.tensors()) {
                assert!(gap(&a.data, &b.data) < 1e-4, "{cut:?} {}", a.name);
            }
        }
    }
}

#[test]
fn a_vision_transformer_in_two_halves_is_the_one_in_one_place() {
    let lora = config(2).peft;
    let config = vision(lora);
    let images = stripes(30, 1);
    let learner = VisionLearner::new(&base(&config), config.clone(), 3).unwrap();
    let (expected, adapter) = in_one_place(learner, images.clone(), 50);
    assert!(expected[49] < 0.8 * expected[0], "it learns: {expected:?}");
    for (blocks, head_in_front) in [(1, false), (1, true), (2, false)] {
        let cut = Cut { blocks, head_in_front };
        let (losses, both) = split(&config, cut, images.clone(), 50, ActivationCoding::F32, &[]);
        assert!(gap(&losses, &expected) < 1e-5, "{cut:?} {}", gap(&losses, &expected));
        for (a, b) in both.tensors().iter().zip(adapter.tensors()) {
            assert!(gap(&a.data, &b.data) < 1e-4, "{cut:?} {}", a.name);
        }
    }
    let front = halves(&config, Cut { blocks: 1, head_in_front: false }).0;
    let windows: Examples = tones(12, 1).into();
    assert!(front.begin(&windows, &job(front.initial_adapter(), 1)).is_err(), "no images");
}

#[test]
fn a_lost_answer_costs_one_step_on_both_sides() {
    let config = config(2);
    let data = tones(30, 1);
    let cut = Cut { blocks: 1, head_in_front: false };
    let f32 = ActivationCoding::F32;
    let (all, _) = split(&config, cut, data.clone(), 40, f32, &[]);
    let (some, _) = split(&config, cut, data.clone(), 40, f32, &[5, 6, 20]);
    assert_eq!(some.len(), 37);
    assert_eq!(some[..4], all[..4], "before the first loss nothing differs");
    assert!(some[36] < all[0] * 0.8, "{some:?}");
    // Neither half moved: as if the batch had never been there.
    let front = halves(&config, cut).0;
    let examples: Examples = data.clone().into();
    let job = job(front.initial_adapter(), 2);
    let mut device = front.begin(&examples, &job).unwrap();
    let before = device.adapter().unwrap();
    device.forward(&examples).unwrap();
    device.forward(&examples).unwrap();
    assert_eq!(device.adapter().unwrap(), before);
}

#[test]
fn eight_bits_both_ways_learn_as_well() {
    let config = config(2);
    let data = tones(60, 1);
    let cut = Cut { blocks: 1, head_in_front: false };
    let (exact, _) = split(&config, cut, data.clone(), 60, ActivationCoding::F32, &[]);
    let (coded, _) = split(&config, cut, data.clone(), 60, ActivationCoding::Int8, &[]);
    assert_ne!(exact, coded);
    let last = |losses: &[f32]| losses[50..].iter().sum::<f32>() / 10.0;
    assert!((last(&coded) - last(&exact)).abs() < 0.1, "{} {}", last(&coded), last(&exact));
}

#[test]
fn a_device_needs_no_tensor_behind_the_cut_and_few_of_the_model() {
    let deep = TrainerConfig {
        model: SignalTransformerConfig { layers: 8, ..SignalTransformerConfig::default() },
        ..TrainerConfig::default()
    };
    let cut = Cut { blocks: 1, head_in_front: false };
    let (front, back) = halves(&deep, cut);
    assert!(base(&deep).filtered(|n| cut.is_front(n)).get("blocks.1.attn.q.weight").is_none());
    let (holds, trains) = front.num_values();
    let all = base(&deep).num_values() as u64;
    let all_train = trains + back.initial_adapter().num_values() as u64;
    eprintln!("holds {holds} of {all}, trains {trains} of {all_train}");
    assert!(holds * 5 <= all && trains * 5 <= all_train, "{holds} {all} {trains} {all_train}");
    let whole_base = SignalFront::new(&base(&deep), deep.clone(), cut, 3).unwrap_err();
    assert_eq!(whole_base.kind(), "layout_mismatch");
    let bytes = |blocks| SignalFront::num_bytes(&deep.model, Cut { blocks, ..cut }, trains, 32);
    assert!(bytes(1) > 4 * holds && bytes(2) > bytes(1));
}

#[test]
fn cuts_that_leave_a_half_with_nothing_to_train_are_refused() {
    let config = config(2);
    let new = |blocks, head_in_front| {
        let cut = Cut { blocks, head_in_front };
        let back = base(&config).filtered(|name| !cut.is_front(name));
        SignalBack::new(&back, config.clone(), cut, 3).map_err(|e| e.to_string())
    };
    assert!(new(2, false).is_ok());
    assert!(new(2, true).unwrap_err().contains("each side of the cut"));
    assert!(new(3, false).unwrap_err().contains("after block 1 to 2"));
    assert!(new(0, false).unwrap_err().contains("after block 1 to 2"));
}

#[test]
fn what_does_not_fit_is_refused_and_its_twin_is_taken() {
    let config = config(2);
    let data: Examples = tones(12, 1).into();
    let cut = Cut { blocks: 1, head_in_front: false };
    let (front, back) = halves(&config, cut);
    let job = job(front.initial_adapter(), 4);
    let mut device = front.begin(&data, &job).unwrap();
    let mut edge = back.open(&back_job(&job, back.initial_adapter())).unwrap();
    let good = device.forward(&data).unwrap();
    let counts = device.begun().class_counts;
    let mut kind = |smashed: &Smashed, counts: &[u64]| {
        edge.step(&node(), smashed, counts).map_or_else(|e| e.kind(), |_| "ok")
    };
    assert_eq!(kind(&good, &counts), "ok");
    let with = |activations| Smashed { activations, labels: good.labels.clone() };
    let narrow = Activations::new(vec![12, 7, 4], vec![0.0; 12 * 28]).unwrap();
    assert_eq!(kind(&with(narrow), &counts), "out_of_range");
    let flat = Activations::new(vec![12, 56], vec![0.0; 12 * 56]).unwrap();
    assert_eq!(kind(&with(flat), &counts), "out_of_range");
    let mut nan = good.activations.clone();
    nan.data[3] = f32::NAN;
    assert_eq!(kind(&with(nan), &counts), "not_finite");
    let labels = |labels| Smashed { labels, ..good.clone() };
    assert_eq!(kind(&labels(vec![3; 12]), &counts), "out_of_range");
    assert_eq!(kind(&labels(vec![0; 11]), &counts), "out_of_range");
    assert_eq!(kind(&labels(vec![]), &counts), "out_of_range");
    assert_eq!(kind(&good, &counts[..2]), "out_of_range");
    let gradient = good.activations.clone();
    let small = Activations::new(vec![1, 7, 8], vec![0.0; 56]).unwrap();
    let before = device.adapter().unwrap();
    assert_eq!(device.backward(&small, 1.0).unwrap_err().kind(), "out_of_range");
    assert_eq!(device.backward(&gradient, f64::NAN).unwrap_err().kind(), "not_finite");
    assert_eq!(device.head(&small).unwrap_err().kind(), "out_of_range");
    assert_eq!(device.adapter().unwrap(), before);
    assert!(device.backward(&gradient, 1.0).is_ok(), "the twin");
    assert_eq!(device.backward(&gradient, 1.0).unwrap_err().kind(), "out_of_range", "once only");
}

#[test]
fn a_shared_back_changes_between_the_two_halves_of_another_devices_step() {
    let config = config(2);
    let data: Examples = tones(30, 1).into();
    let cut = Cut { blocks: 1, head_in_front: true };
    let (front, back) = halves(&config, cut);
    let job = job(front.initial_adapter(), 4);
    let open = || back.open(&back_job(&job, back.initial_adapter())).unwrap();
    let (a, b) = (node(), NodeId::new("d2").unwrap());
    let begin = |seed| front.begin(&data, &TrainJob { seed, ..job.clone() }).unwrap();
    let (mut device_a, mut device_b) = (begin(1), begin(2));
    let at_cut = device_a.forward(&data).unwrap().activations;
    // Alone.
    let mut alone = open();
    let (_, asked) = device_a.head(&alone.forward(&a, &at_cut).unwrap()).unwrap();
    let expected = alone.backward(&a, &asked).unwrap();
    // With a whole step of another device in between.
    let mut shared = open();
    let before = shared.adapter().unwrap();
    shared.forward(&a, &at_cut).unwrap();
    let other = device_b.forward(&data).unwrap().activations;
    let (_, gradient) = device_b.head(&shared.forward(&b, &other).unwrap()).unwrap();
    let step = shared.backward(&b, &gradient).unwrap();
    let settled = device_b.backward(&step.gradient, step.squared).unwrap();
    shared.settle(&b, Some(settled)).unwrap();
    let changed = shared.adapter().unwrap();
    assert_ne!(changed, before);
    let answer = shared.backward(&a, &asked).unwrap();
    assert_eq!(answer.gradient, expected.gradient, "of the weights that A's output was made with");
    let settled = device_a.backward(&answer.gradient, answer.squared).unwrap();
    shared.settle(&a, Some(settled)).unwrap();
    assert_ne!(shared.adapter().unwrap(), changed, "and A's step counts");
}

#[test]
fn whole_passes_end_with_a_short_batch_and_a_rate_that_falls_within_a_run_is_refused() {
    let config = config(2);
    let cut = Cut { blocks: 1, head_in_front: false };
    let data: Examples = tones(30, 1).into();
    let front = halves(&config, cut).0;
    let passes = TrainJob { epochs: Some(2), ..job(front.initial_adapter(), 1) };
    let mut device = front.begin(&data, &passes).unwrap();
    let sizes: Vec<usize> = (0..device.begun().steps)
        .map(|_| device.forward(&data).unwrap().activations.shape[0])
        .collect();
    assert_eq!(sizes, [12, 12, 6, 12, 12, 6]);
    let by_steps = TrainJob { epochs: None, steps: 7, ..passes.clone() };
    assert_eq!(front.begin(&data, &by_steps).unwrap().begun().steps, 7);
    let falling = TrainJob { final_rate: Some(0.0), ..passes };
    assert_eq!(front.begin(&data, &falling).map(drop).unwrap_err().kind(), "out_of_range");
}

#[test]
fn batches_of_the_plan_are_held_against_the_cap_and_lessons_are_refused() {
    let config = config(2);
    let cut = Cut { blocks: 1, head_in_front: false };
    let data: Examples = tones(12, 1).into();
    let front = halves(&config, cut).0.within(Some(2));
    let job = job(front.initial_adapter(), 4);
    assert!(front.begin(&data, &job).is_ok());
    let refused = |job: &TrainJob| front.begin(&data, job).map(drop).unwrap_err().to_string();
    let text = refused(&TrainJob { batch_size: 65_536, ..job.clone() });
    assert!(text.contains("batches of 65536") && text.contains("max_memory_mib"), "{text}");
    let lesson = crate::learn::Lesson {
        windows: std::sync::Arc::default(),
        targets: Vec::new(),
        weight: 1.0,
        ..crate::learn::Lesson::default()
    };
    assert!(refused(&TrainJob { lesson: Some(lesson), ..job }).contains("lesson"));
}
