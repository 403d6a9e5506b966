//! A whole site whose devices train the front of a model and whose edge trains the rest, over the
//! in-memory bus: it learns about what the same devices learn with the whole model each, its devices hold
//! a fifth of it, and lost frames cost steps, not runs.
#![cfg(all(feature = "runtime", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use federation::{Plant, name, paused, until};
use gaisnet::actors::split_lane::{BackCopies, FrontRuns, back_lane, front_lane};
use gaisnet::actors::{Half, InlineBench, LaneBench, Pace, Workbench};
use gaisnet::bus::memory::Faults;
use gaisnet::ids::NodeId;
use gaisnet::learn::{
    ActivationCoding, Cut, Examples, Learner, Predictor, SplitFront, TensorSet, TrainJob, Windows,
    physics,
};
use gaisnet::ledger::Event;
use gaisnet::node::{Learning, NodeParts, Split};
use gaisnet::privacy::{Gate, Profile};
use gaisnet::protocol::{Backs, SplitTerms, update};
use gaisnet::rng::Stream;
use gaisnet::torch::transformer::BlockConfig;
use gaisnet::torch::{
    LoraConfig, PeftConfig, SignalBack, SignalFront, SignalLearner, SignalPredictor,
    SignalTransformerConfig, TrainerConfig,
};
use gaisnet::wire::{Cells, Coding, SplitCoding, SplitMessage};

const SEED: u64 = 3;
const ROUNDS: u64 = 3;
const DEVICES: usize = 3;

/// Eight blocks, so that a cut behind the first leaves most of them to the edge.
fn trainer() -> TrainerConfig {
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        targets: ["q", "v", "up"].map(str::to_owned).to_vec(),
        ..LoraConfig::default()
    };
    TrainerConfig {
        model: SignalTransformerConfig {
            window: 64,
            patch: 16,
            stride: 8,
            layers: 8,
            block: BlockConfig { d_model: 32, heads: 2, d_ff: 32 },
            classes: 3,
        },
        peft: PeftConfig { lora: Some(lora), ..PeftConfig::default() },
        ..TrainerConfig::default()
    }
}

fn base() -> TensorSet {
    trainer().model.initial_weights(&mut Stream::new(1, "weights"))
}

/// Tones of three pitches in noise; no device has all three.
fn tones(classes: &[usize], n: usize, seed: u64) -> Windows {
    let mut stream = Stream::new(seed, "tones");
    let mut data = Windows { len: 64, classes: 3, ..Windows::default() };
    for label in classes.iter().copied().cycle().take(n) {
        let rate = [0.4, 1.1, 2.2][label];
        let phase = stream.range(0.0, 6.3);
        let noisy = |i: i32| (rate * f64::from(i) + phase).sin() + 0.5 * stream.normal();
        data.x.extend((0..64).map(noisy).map(|x| x as f32));
        data.labels.push(label);
    }
    data
}

fn data_of(device: usize) -> Windows {
    let classes: [&[usize]; DEVICES] = [&[0, 1], &[1, 2], &[2, 0]];
    tones(classes[device], 120, 10 + device as u64)
}

/// How a site learns.
#[derive(Debug, Clone, Copy)]
struct Arm {
    split: bool,
    coding: SplitCoding,
    backs: Backs,
    head_in_front: bool,
    /// On threads of their own, in real time.
    lanes: bool,
}

const WHOLE: Arm = Arm {
    split: false,
    coding: SplitCoding::Int8,
    backs: Backs::Each,
    head_in_front: false,
    lanes: false,
};
const SPLIT: Arm = Arm { split: true, ..WHOLE };

impl Arm {
    fn cut(self) -> Cut {
        Cut { blocks: 1, head_in_front: self.head_in_front }
    }

    fn learning(adapter: &TensorSet) -> Learning {
        let mut learning = federation::learning(ROUNDS);
        learning.adapter = update::pack(adapter, Coding::F32, 0).unwrap();
        learning.plan.class_logits = false;
        learning.plan.local_steps = 20;
        learning.plan.batch_size = 16;
        learning.plan.learning_rate = 0.015;
        learning.gate = Gate::from(Profile::Standard);
        learning.deadline_ms = 600_000;
        learning
    }

    fn terms(self) -> Split {
        let terms = SplitTerms { cut: self.cut(), coding: self.coding, part_bytes: 16_384 };
        Split { terms, backs: self.backs, step_timeout_ms: 2_000 }
    }

    /// A node's parts with a model in place of the toy.
    fn parts(self, plant: &mut Plant, node: &NodeId) -> NodeParts {
        let mut parts = plant.parts(node);
        let config = trainer();
        let whole = SignalLearner::new(&base(), config.clone(), SEED).unwrap();
        let mut learning = Self::learning(&whole.initial_adapter());
        let mut bench = InlineBench::new(node.clone(), None);
        let mut half = Half::None;
        let device = node.as_str().strip_prefix("dev0-").map(|d| d.parse::<usize>().unwrap());
        match device {
            Some(d) if self.split => {
                let front = base().filtered(|name| self.cut().is_front(name));
                let front = SignalFront::new(&front, config, self.cut(), SEED).unwrap();
                learning = Self::learning(&front.initial_adapter());
                learning.split = Some(self.terms());
                let data = Arc::new(data_of(d).into());
                let runs = FrontRuns::new(node.clone(), Box::new(front), data);
                half = Half::Front(runs);
            }
            Some(d) => {
                bench = InlineBench::new(node.clone(), Some((Box::new(whole), data_of(d).into())));
            }
            None if self.split && node.as_str().starts_with("edge") => {
                learning.split = Some(self.terms());
                let back = base().filtered(|name| !self.cut().is_front(name));
                let back = SignalBack::new(&back, config, self.cut(), SEED).unwrap();
                half = Half::Back(BackCopies::new(Box::new(back), self.backs));
            }
            None => {}
        }
        parts.learning = learning;
        parts.bench =
            if self.lanes { on_lanes(node, half, &parts) } else { Box::new(bench.with_half(half)) };
        parts
    }

    /// A site that runs to its last version: the adapter, and the plant.
    async fn run(self, faults: &Faults) -> (TensorSet, Plant) {
        let mut plant = Plant::new(1, DEVICES, ROUNDS, faults);
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in &nodes {
            let parts = self.parts(&mut plant, node);
            plant.run(parts);
        }
        plant.converge(60).await;
        let cloud = &plant.running[&name("cloud")];
        let adapter = update::unpack(&cloud.serving.borrow().1).unwrap();
        (adapter, plant)
    }
}

/// The halves as a node has them: each on a lane of its own.
fn on_lanes(
    node: &NodeId,
    half: Half<FrontRuns, BackCopies>,
    parts: &NodeParts,
) -> Box<dyn Workbench> {
    let figures = Arc::clone(&parts.figures);
    let pace = Arc::new(Pace::free(Arc::clone(&parts.clock)));
    let half = match half {
        Half::Front(runs) => {
            let lane = front_lane(runs, Arc::clone(&figures), Arc::clone(&pace), 8).unwrap();
            Half::Front(lane)
        }
        Half::Back(copies) => Half::Back(back_lane(copies, Arc::clone(&figures), 8).unwrap()),
        Half::None => Half::None,
    };
    Box::new(LaneBench::new(node.clone(), None, figures, pace).with_half(half))
}

/// Share of fresh windows that an adapter answers right.
fn accuracy(adapter: &TensorSet) -> f64 {
    let threads = NonZeroU16::MIN;
    let config = trainer();
    let mut predictor = SignalPredictor::new(&base(), config.model, &config.peft, threads).unwrap();
    predictor.load(adapter).unwrap();
    let fresh = tones(&[0, 1, 2], 150, 99);
    let answers = predictor.predict(&fresh.x, fresh.len).unwrap();
    let right = answers.iter().zip(&fresh.labels).filter(|(a, label)| a.class == **label).count();
    right as f64 / fresh.labels.len() as f64
}

fn counted(plant: &Plant, node: &str) -> BTreeMap<&'static str, u64> {
    plant.running[&name(node)].figures.view().counted
}

#[test]
fn a_split_site_learns_what_a_whole_one_learns_at_equal_steps() {
    paused(async {
        let (whole, plant) = WHOLE.run(&Faults::none(1)).await;
        plant.check_owner("edge0");
        let untrained = SignalLearner::new(&base(), trainer(), SEED).unwrap().initial_adapter();
        let reference = accuracy(&whole);
        let start = accuracy(&untrained);
        for arm in [
            SPLIT,
            Arm { coding: SplitCoding::F32, ..SPLIT },
            Arm { backs: Backs::Shared, ..SPLIT },
            Arm { head_in_front: true, ..SPLIT },
            Arm { head_in_front: true, backs: Backs::Shared, ..SPLIT },
        ] {
            let (split, plant) = arm.run(&Faults::none(1)).await;
            assert_eq!(split.layout(), whole.layout());
            plant.check_owner("edge0");
            plant.check_owner("cloud");
            let reached = accuracy(&split);
            eprintln!("untrained {start:.3}, whole {reference:.3}, split {reached:.3}: {arm:?}");
            assert!(reached > reference - 0.08 && reached > start + 0.2, "{arm:?} {reached}");
            for node in ["edge0", "dev0-0", "dev0-1", "dev0-2", "cloud"] {
                assert_eq!(counted(&plant, node), BTreeMap::new(), "{node} {arm:?}");
            }
            // Each device's own, signed contribution of its front, and the site's one of it all.
            let sent = |node: &str| plant.running[&name(node)].figures.view().sent;
            assert_eq!(sent("dev0-1")["contribution"], ROUNDS);
            assert_eq!(sent("edge0")["contribution"], ROUNDS);
            assert!(sent("dev0-1")["frame"] > 20 * ROUNDS);
            assert!(!sent("cloud").contains_key("frame"));
        }
    });
}

#[test]
fn exact_frames_give_the_adapter_that_whole_training_gives() {
    paused(async {
        let arm = Arm { coding: SplitCoding::F32, ..SPLIT };
        let (whole, _) = WHOLE.run(&Faults::none(1)).await;
        let (split, _) = arm.run(&Faults::none(1)).await;
        // Heads are averaged value by value; factors may turn their basis.
        let head = |set: &TensorSet| set.get("head.weight").unwrap().data.clone();
        let (whole, split) = (head(&whole), head(&split));
        let gap = whole.iter().zip(&split).map(|(a, b)| (a - b).abs());
        let gap = gap.fold(0.0, f32::max);
        eprintln!("largest gap in the head after {ROUNDS} rounds: {gap}");
        assert!(gap < 1e-3, "{gap}");
    });
}

#[test]
fn a_device_holds_and_trains_a_fifth_and_sends_a_quarter_of_what_f32_would_take() {
    let config = trainer();
    let front = base().filtered(|name| SPLIT.cut().is_front(name));
    let front = SignalFront::new(&front, config.clone(), SPLIT.cut(), SEED).unwrap();
    let (holds, trains) = front.num_values();
    let all = base().num_values() as u64;
    let whole = SignalLearner::new(&base(), config, SEED).unwrap();
    let all_train = whole.initial_adapter().num_values() as u64;
    eprintln!("a device holds {holds} of {all} values and trains {trains} of {all_train}");
    assert!(holds * 5 <= all && trains * 5 <= all_train);
    // What a batch takes on its way to the edge, and as f32.
    let config = TrainerConfig {
        model: SignalTransformerConfig::default(),
        peft: PeftConfig::default(),
        ..trainer()
    };
    let base = config.model.initial_weights(&mut Stream::new(1, "weights"));
    let front = base.filtered(|name| SPLIT.cut().is_front(name));
    let front = SignalFront::new(&front, config, SPLIT.cut(), SEED).unwrap();
    let windows: Examples = physics::windows(&mut Stream::new(5, "windows"), 96).into();
    let job = TrainJob::plain(front.initial_adapter(), 3, 32, 0.01, 1);
    let mut run = front.begin(&windows, &job).unwrap();
    for _ in 0..3 {
        let smashed = run.forward(&windows).unwrap();
        let activations = Cells {
            shape: smashed.activations.shape.iter().map(|d| *d as u32).collect(),
            coding: SplitCoding::Int8,
            data: smashed.activations.encode(ActivationCoding::Int8).unwrap(),
        };
        let labels = smashed.labels.clone();
        let said = SplitMessage::Forward { settled: None, activations, labels };
        let (sent, raw) = (said.to_bytes().unwrap().len(), smashed.activations.data.len() * 4);
        eprintln!("a batch of 32 windows: {sent} bytes, {raw} as f32");
        assert!(sent * 4 <= raw, "{sent} {raw}");
    }
}

#[test]
fn lost_repeated_and_late_frames_cost_steps_and_no_round() {
    paused(async {
        let faults = Faults { loss: 0.02, ..Faults::none(7) };
        let (split, plant) = SPLIT.run(&faults).await;
        let lost: u64 = (0..DEVICES)
            .filter_map(|d| counted(&plant, &format!("dev0-{d}")).get("split_step_lost").copied())
            .sum();
        eprintln!("{lost} steps lost, accuracy {:.3}", accuracy(&split));
        assert!(lost > 0);
        assert!(accuracy(&split) > 0.6);
        plant.check_owner("edge0");
    });
}

#[test]
fn an_edge_that_starts_again_in_the_middle_loses_no_round() {
    paused(async {
        let mut plant =
            Plant::new(1, DEVICES, ROUNDS, &Faults { delay_ms: 1..=3, ..Faults::none(1) });
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in &nodes {
            let parts = SPLIT.parts(&mut plant, node);
            plant.run(parts);
        }
        // Until some frames went over.
        let edge = name("edge0");
        while plant.running[&edge].figures.view().received.get("frame").copied().unwrap_or(0) < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        plant.running.remove(&edge).unwrap().stop("test", 0).await;
        let parts = SPLIT.parts(&mut plant, &edge);
        plant.run(parts);
        plant.converge(60).await;
        let begun_again: u64 = (0..DEVICES)
            .filter_map(|d| counted(&plant, &format!("dev0-{d}")).get("run_begun_again").copied())
            .sum();
        assert!(begun_again > 0, "some run was under way");
        let rounds = plant.entries("cloud").into_iter();
        let commits = rounds.filter(|event| matches!(event, Event::RoundCommit { .. })).count();
        assert_eq!(commits as u64, ROUNDS);
        plant.check_owner("edge0");
    });
}

#[test]
fn on_lanes_of_their_own_the_halves_learn_in_real_time() {
    actix::System::new().block_on(async {
        let arm = Arm { lanes: true, ..SPLIT };
        let mut plant = Plant::new(1, DEVICES, ROUNDS, &Faults::none(1));
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in &nodes {
            let parts = arm.parts(&mut plant, node);
            plant.run(parts);
        }
        until("the last version everywhere", async || {
            plant.versions().await.values().all(|version| *version == ROUNDS)
        })
        .await;
        let adapter = update::unpack(&plant.running[&name("cloud")].serving.borrow().1).unwrap();
        assert!(accuracy(&adapter) > 0.6);
        let steps = |node: &str| plant.running[&name(node)].figures.view().train_steps;
        assert!(steps("dev0-0") > 0 && steps("edge0") >= steps("dev0-0"));
        plant.check_owner("edge0");
    });
}
