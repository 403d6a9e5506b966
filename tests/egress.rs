//! What leaves a site, looked for: canaries are planted in the windows, labels, tags and requests of one site,
//! and after some rounds and answers they are searched in everything that crossed the federation's broker, in
//! each store, in each ledger and in the logs; raw, as text, in base64 and hex, and inside what is compressed.
//! The same search finds them where they may be, and where a leak is made on purpose.
#![cfg(all(feature = "runtime", feature = "store"))]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/canary.rs"]
mod canary;
#[path = "support/federation.rs"]
mod federation;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use canary::Canaries;
use federation::{Plant, name, paused};
use gaisnet::actors::lanes::{inline_back_serve_lane, inline_front_serve_lane, inline_serve_lane};
use gaisnet::actors::split_lane::{BackCopies, FrontRuns};
use gaisnet::actors::{Busy, Half, InlineBench, Measure};
use gaisnet::bus::memory::{Faults, MemoryBroker, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::ids::NodeId;
use gaisnet::learn::{
    Activations, BEARING_PHYSICS, BackCopy, BackJob, BackPredictor, BackStep, Cut, Examples,
    FrontBegun, FrontPredictor, FrontRun, Kept, LearnError, Learner, MachineSpeeds, Prediction,
    Predictor, ReferenceSet, Smashed, SoftmaxLearner, SplitBack, SplitFront, Tensor, TensorSet,
    TrainJob, Windows, labels_digest, physics,
};
use gaisnet::node::{AnswerLane, Answering, Cascading, NodeParts, Split};
use gaisnet::protocol::cascade::{CascadeConfig, OnNoReply, Uncalibrated};
use gaisnet::protocol::{Backs, Distils, SplitTerms, update};
use gaisnet::rng::Stream;
use gaisnet::scada::at_cut::FrontMark;
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::tags::{Binds, Format, Tag};
use gaisnet::store::{BlobCaps, SqliteStore, Store};
use gaisnet::trust::keyring::Role;
use gaisnet::wire::{Coding, KnowledgePlan, Merging, Reference, SpectraPlan, SplitCoding};
use serde_json::json;
use tokio::time::sleep;
use tracing::field::{Field, Visit};

const ROUNDS: u64 = 3;
/// Where the canaries are.
const SITE: &str = "site0";
const REQUEST: &str = "canary-request-7f3a9c";
const TAG: &str = "0.731058578";

/// What a federation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Adapters travel.
    Deltas,
    /// Mean logits a class.
    ClassLogits,
    /// Reference logits and prototypes, each owner with a model of its own.
    Knowledge,
    /// Mean spectra and prototypes, each owner with a model of its own.
    Spectra,
    /// Devices train the front.
    Split,
    /// Adapters travel, and the device asks its edge.
    Cascade,
    /// The same, and the edge may ask the cloud.
    ToCloud,
}

impl Mode {
    fn window_len(self) -> usize {
        // Frames of short windows are one part each.
        if self == Self::Split { 64 } else { physics::WINDOW_LEN }
    }

    /// A device's examples, each in its own order.
    fn data_of(self, node: &NodeId) -> Windows {
        let mut stream = Stream::new(7, node.as_str());
        let all = if self == Self::Split {
            let labels: Vec<usize> = (0..120).map(|i| i % 3).collect();
            let x = (0..120 * 64).map(|_| stream.normal() as f32).collect();
            Windows { x, len: 64, labels, classes: 3 }
        } else {
            physics::windows(&mut stream, 120)
        };
        let mut order: Vec<usize> = (0..120).collect();
        stream.shuffle(&mut order);
        let mut mixed = Windows { len: all.len, classes: 3, ..Windows::default() };
        for at in order {
            mixed.x.extend_from_slice(all.row(at).unwrap());
            mixed.labels.push(all.labels[at]);
        }
        mixed
    }

    /// A window that is asked for, and none that is learned from.
    fn question(self) -> Vec<f32> {
        let mut stream = Stream::new(8, "question");
        (0..self.window_len()).map(|_| stream.normal() as f32).collect()
    }

    fn canaries(self) -> Canaries {
        let mut canaries = Canaries::default();
        for node in ["dev0-0", "dev0-1"] {
            let data = self.data_of(&name(node));
            for row in [0, 1, 57] {
                canaries.samples(&format!("window of {node}"), &data.row(row).unwrap()[20..24]);
            }
            canaries.labels(&format!("labels of {node}"), &data.labels[..48]);
        }
        canaries.samples("question", &self.question()[20..24]);
        canaries.text("request", REQUEST);
        canaries.text("tag", TAG);
        canaries
    }

    /// What a node of this federation is made of.
    fn parts(self, plant: &mut Plant, node: &NodeId, dir: &Path) -> NodeParts {
        let role = plant.members.place(node).role;
        let mut parts = plant.parts(node);
        parts.store = Box::new(SqliteStore::open(&dir.join(node.as_str()), caps()).unwrap());
        let learning = &mut parts.learning;
        learning.model.window = self.window_len() as u32;
        learning.model.labels = physics::CLASSES.map(str::to_owned).to_vec();
        learning.plan.class_logits = false;
        let teaches = matches!(self, Self::Knowledge | Self::Spectra);
        let learns = role == Role::Device || teaches;
        let data = if role == Role::Device { self.data_of(node) } else { Windows::default() };
        let mut bench = InlineBench::new(node.clone(), None);
        if self == Self::Split {
            learning.split = (role != Role::Cloud).then_some(SPLIT);
            learning.adapter = packed(&[tensor("blocks.0.w"), tensor("blocks.1.w")]);
            bench = match role {
                Role::Device => {
                    learning.adapter = packed(&[tensor("blocks.0.w")]);
                    let data = Arc::new(data.into());
                    let runs = FrontRuns::new(node.clone(), Box::new(Identity), data);
                    bench.with_half(Half::Front(runs))
                }
                Role::Edge => {
                    let copies = BackCopies::new(Box::new(Idle), Backs::Each);
                    bench.with_half(Half::Back(copies))
                }
                _ => bench,
            };
        } else {
            let speeds = MachineSpeeds::default();
            let learner = SoftmaxLearner::new(speeds, self.window_len(), 3).unwrap();
            learning.adapter = update::pack(&learner.initial_adapter(), Coding::F32, 0).unwrap();
            if learns {
                let learner: Box<dyn Learner> = Box::new(learner);
                bench = InlineBench::new(node.clone(), Some((learner, data.into())));
            }
        }
        if self == Self::ClassLogits {
            learning.plan.adapter_delta = false;
            learning.plan.class_logits = true;
            learning.plan.distill_lambda = 1.0;
        }
        if teaches {
            let reference = Arc::new(ReferenceSet::make(BEARING_PHYSICS, 5, 60).unwrap());
            learning.plan.adapter_delta = false;
            learning.plan.class_logits = self == Self::Knowledge;
            learning.plan.distill_lambda = 1.0;
            learning.plan.coding = Coding::Int8;
            learning.plan.block = 64;
            learning.plan.knowledge = Some(KnowledgePlan {
                prototypes: true,
                reference_logits: self == Self::Knowledge,
                reference: Some(Reference {
                    generator: name(BEARING_PHYSICS),
                    seed: 5,
                    count: 60,
                    digest: reference.digest,
                    classes: None,
                    unlabelled: false,
                }),
                labels: labels_digest(&learning.model.labels),
                alpha: 0.1,
                reference_weight: 1.0,
                prototype_weight: 0.5,
                merging: Merging::Median,
                generator_weight: None,
                top_logits: None,
                spectra: (self == Self::Spectra).then_some(SpectraPlan { bands: 1_024, grades: 1 }),
            });
            learning.distils = (role != Role::Device).then_some(Distils {
                steps: 10,
                learning_rate: 0.1,
                final_rate: None,
            });
            learning.reference = Some(Arc::clone(&reference));
            bench = bench.with_reference(Some(reference));
        }
        parts.bench = Box::new(bench);
        parts.policy = CommandPolicy::new(["infer", "status"]).unwrap();
        let lane = match (self, role) {
            (Self::Split, Role::Device) => {
                let untrained = FrontMark::new(0, &parts.learning.base, &parts.learning.adapter);
                Some(inline_front_serve_lane(Identity, untrained))
            }
            (Self::Split, Role::Edge) => {
                let (base, adapter) = (&parts.learning.base, &parts.learning.adapter);
                let untrained = SPLIT.terms.front_of(0, base, adapter);
                Some(inline_back_serve_lane(Unsure, untrained))
            }
            (Self::Cascade | Self::ToCloud, _) | (_, Role::Device) => {
                Some(inline_serve_lane(Unsure))
            }
            _ => None,
        };
        if let Some(lane) = lane {
            let binds = Binds::Feature { model: name("toy") };
            let tags = vec![Tag::new("plant/press", Format::Json, "", binds).unwrap()];
            parts.answering = Some(Answering {
                lane: AnswerLane::Windows(lane),
                tags: if role == Role::Device { tags } else { Vec::new() },
                busy: Arc::new(Busy::default()),
                max_gap_ms: 5_000,
                stale_after_ms: 600_000,
                cascade: self.cascade(role),
            });
        }
        parts
    }

    fn cascade(self, role: Role) -> Option<Cascading> {
        let asks = matches!(self, Self::Cascade | Self::ToCloud)
            || self == Self::Split && role == Role::Device;
        if !asks {
            return None;
        }
        let config = CascadeConfig {
            above: role == Role::Device || self == Self::ToCloud,
            wait_ms: 2_000,
            in_flight: 4,
            on_no_reply: OnNoReply::Own,
            uncalibrated: Uncalibrated::Escalate,
        };
        let held_out = Windows {
            x: vec![0.25; 200 * self.window_len()],
            len: self.window_len(),
            labels: (0..200).map(|i| i % 3).collect(),
            classes: 3,
        };
        let measure = Measure { held_out: Arc::new(held_out), alpha: 0.05, delta: 0.05 };
        Some(Cascading {
            config,
            to_cloud: matches!(self, Self::ToCloud),
            safe_default: None,
            measure: (role == Role::Edge).then_some(measure),
        })
    }
}

const SPLIT: Split = Split {
    terms: SplitTerms {
        cut: Cut { blocks: 1, head_in_front: false },
        coding: SplitCoding::F32,
        part_bytes: 16_384,
    },
    backs: Backs::Each,
    step_timeout_ms: 2_000,
};

fn caps() -> BlobCaps {
    BlobCaps::default()
}

fn tensor(name: &str) -> Tensor {
    Tensor { name: name.into(), shape: vec![4], data: vec![0.0; 4] }
}

fn packed(tensors: &[Tensor]) -> Vec<u8> {
    update::pack(&TensorSet::new(tensors.to_vec()).unwrap(), Coding::F32, 0).unwrap()
}

/// Knows nothing: each class is about as likely.
struct Unsure;

impl Predictor for Unsure {
    fn load(&mut self, _: &TensorSet) -> Result<(), LearnError> {
        Ok(())
    }

    fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
        let one = Prediction { probabilities: vec![0.4, 0.3, 0.3], class: 0 };
        Ok(vec![one; x.len() / len])
    }
}

impl BackPredictor for Unsure {
    fn finish(&mut self, at_cut: &Activations, _: Kept) -> Result<Vec<Prediction>, LearnError> {
        self.predict(&at_cut.data, at_cut.data.len())
    }
}

/// A front that changes nothing: what is at the cut are the windows as they are.
struct Identity;

impl FrontPredictor for Identity {
    fn load(&mut self, _: &TensorSet) -> Result<(), LearnError> {
        Ok(())
    }

    fn pass(&mut self, x: &[f32], len: usize) -> Result<Activations, LearnError> {
        Activations::new(vec![x.len() / len, 1, len], x.to_vec())
    }
}

struct IdentityRun {
    labels: Vec<usize>,
    adapter: TensorSet,
    at: usize,
    batch: usize,
    steps: u32,
}

impl SplitFront for Identity {
    fn initial_adapter(&self) -> TensorSet {
        TensorSet::new(vec![tensor("blocks.0.w")]).unwrap()
    }

    fn begin(&self, data: &Examples, job: &TrainJob) -> Result<Box<dyn FrontRun>, LearnError> {
        let labels = data.windows()?.labels.clone();
        let (adapter, batch) = (job.start.clone(), job.batch_size as usize);
        let steps = job.steps_over(data.num_examples());
        Ok(Box::new(IdentityRun { labels, adapter, at: 0, batch, steps }))
    }
}

impl FrontRun for IdentityRun {
    fn begun(&self) -> FrontBegun {
        let of = |class| self.labels.iter().filter(|label| **label == class).count() as u64;
        FrontBegun {
            num_examples: self.labels.len() as u64,
            class_counts: (0..3).map(of).collect(),
            steps: self.steps,
        }
    }

    fn forward(&mut self, data: &Examples) -> Result<Smashed, LearnError> {
        let data = data.windows()?;
        let rows: Vec<usize> = (0..self.batch).map(|i| (self.at + i) % data.labels.len()).collect();
        self.at += self.batch;
        let x = rows.iter().flat_map(|row| data.row(*row).unwrap().to_vec()).collect();
        let activations = Activations::new(vec![rows.len(), 1, data.len], x)?;
        let labels = rows.iter().map(|row| data.labels[*row] as u32).collect();
        Ok(Smashed { activations, labels })
    }

    fn head(&mut self, output: &Activations) -> Result<(f32, Activations), LearnError> {
        Ok((1.0, output.clone()))
    }

    fn backward(&mut self, _: &Activations, _: f64) -> Result<f64, LearnError> {
        self.adapter.values_mut().flatten().for_each(|value| *value += 0.01);
        Ok(1.0)
    }

    fn adapter(&self) -> Result<TensorSet, LearnError> {
        Ok(self.adapter.clone())
    }
}

/// A back that learns nothing of what it gets.
struct Idle;

struct IdleCopy(TensorSet);

impl SplitBack for Idle {
    fn initial_adapter(&self) -> TensorSet {
        TensorSet::new(vec![tensor("blocks.1.w")]).unwrap()
    }

    fn open(&self, job: &BackJob) -> Result<Box<dyn BackCopy>, LearnError> {
        Ok(Box::new(IdleCopy(job.start.clone())))
    }
}

impl BackCopy for IdleCopy {
    fn step(&mut self, _: &NodeId, said: &Smashed, _: &[u64]) -> Result<BackStep, LearnError> {
        let (shape, n) = (said.activations.shape.clone(), said.activations.data.len());
        let gradient = Activations::new(shape, vec![0.001; n])?;
        Ok(BackStep { loss: 1.0, gradient, squared: 1.0 })
    }

    fn forward(&mut self, _: &NodeId, at_cut: &Activations) -> Result<Activations, LearnError> {
        Ok(at_cut.clone())
    }

    fn backward(&mut self, _: &NodeId, gradient: &Activations) -> Result<BackStep, LearnError> {
        Ok(BackStep { loss: 1.0, gradient: gradient.clone(), squared: 1.0 })
    }

    fn settle(&mut self, _: &NodeId, took: Option<f64>) -> Result<(), LearnError> {
        if took.is_some() {
            self.0.values_mut().flatten().for_each(|value| *value += 0.01);
        }
        Ok(())
    }

    fn adapter(&self) -> Result<TensorSet, LearnError> {
        Ok(self.0.clone())
    }
}

/// Everything that a broker gave out: topics and payloads.
type Tape = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Hears all of a broker.
fn tap(broker: &MemoryBroker) -> (MemoryBus, Tape) {
    let (bus, mut events) = broker.connect("tap", None);
    bus.subscribe(&["#".to_owned()]).unwrap();
    let tape = Tape::default();
    let into = Arc::clone(&tape);
    actix::spawn(async move {
        while let Some(event) = events.recv().await {
            if let BusEvent::Delivery(delivery) = event {
                into.lock().unwrap().push((delivery.topic, delivery.payload));
                delivery.ack.release();
            }
        }
    });
    (bus, tape)
}

/// Writes down each event and span with all its fields.
struct Log(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut Fields(&mut self.0.lock().unwrap()));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut log = self.0.lock().unwrap();
        log.push('\n');
        event.record(&mut Fields(&mut log));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// What a run left behind.
struct Seen {
    canaries: Canaries,
    federation: Vec<(String, Vec<u8>)>,
    site: Vec<(String, Vec<u8>)>,
    /// Of each node: its store's files, and all that the store gives.
    stores: BTreeMap<NodeId, Vec<Vec<u8>>>,
    log: String,
}

impl Seen {
    fn on(&self, tape: &[(String, Vec<u8>)]) -> BTreeSet<String> {
        let found = |(topic, payload): &(String, Vec<u8>)| {
            let mut found = self.canaries.found_in(topic.as_bytes());
            found.extend(self.canaries.found_in(payload));
            found
        };
        tape.iter().flat_map(found).collect()
    }

    fn on_federation(&self) -> BTreeSet<String> {
        self.on(&self.federation)
    }

    fn on_site(&self) -> BTreeSet<String> {
        self.on(&self.site)
    }

    fn at_rest(&self) -> BTreeSet<String> {
        let stores = self.stores.iter().flat_map(|(node, pieces)| {
            let found = pieces.iter().flat_map(|piece| self.canaries.found_in(piece));
            found.map(move |what| format!("{what} at {node}"))
        });
        let logged = self.canaries.found_in(self.log.as_bytes()).into_iter();
        stores.chain(logged.map(|what| format!("{what} in the log"))).collect()
    }
}

/// All that a store holds.
fn held(dir: &Path) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                pieces.push(std::fs::read(&path).unwrap());
            }
        }
    }
    let store = SqliteStore::open_read_only(dir).unwrap();
    pieces.extend(store.state("").unwrap().into_iter().map(|(_, value)| value));
    pieces.extend(store.entries(0, store.num_entries().unwrap()).unwrap());
    pieces.extend(store.checkpoints().unwrap());
    pieces.extend(store.outbox().unwrap().into_iter().map(|item| item.wire));
    pieces
}

/// Runs a federation of two sites through its rounds, with questions and tags at one of them.
fn run(mode: Mode) -> Seen {
    let (sender, receiver) = std::sync::mpsc::channel();
    paused(async move {
        let log = Arc::new(Mutex::new(String::new()));
        let _logging = tracing::subscriber::set_default(Log(Arc::clone(&log)));
        let dir = tempfile::tempdir().unwrap();
        let mut plant = Plant::new(2, 2, ROUNDS, &Faults::none(1));
        let (_tap, federation) = tap(&plant.federation_bus);
        let (_site_tap, site) = tap(&plant.site_buses[&name(SITE)]);
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in &nodes {
            let parts = mode.parts(&mut plant, node, dir.path());
            plant.run(parts);
        }
        plant.converge(60).await;
        sleep(Duration::from_secs(10)).await;
        let (hmi, _events) = plant.site_buses[&name(SITE)].connect("hmi", None);
        let say = |topic: &str, payload: String| {
            let (topic, payload) = (topic.to_owned(), payload.into_bytes());
            let (at_least_once, retain, priority) = (true, false, Priority::Control);
            hmi.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
        };
        for device in ["dev0-0", "dev0-1"] {
            let request = json!({ "id": REQUEST, "input": mode.question() });
            say(&format!("gaisnet/v1/{SITE}/line/{device}/infer/toy"), request.to_string());
            sleep(Duration::from_secs(5)).await;
        }
        say("plant/press", TAG.to_owned());
        // Status, figures, heads of ledgers, what is told of a minute.
        sleep(Duration::from_secs(150)).await;
        let stores = nodes.iter().map(|node| (node.clone(), held(&dir.path().join(node.as_str()))));
        let taken = |tape: &Tape| std::mem::take(&mut *tape.lock().unwrap());
        let seen = Seen {
            canaries: mode.canaries(),
            federation: taken(&federation),
            site: taken(&site),
            stores: stores.collect(),
            log: log.lock().unwrap().clone(),
        };
        sender.send(seen).unwrap();
    });
    receiver.recv().unwrap()
}

fn has(found: &BTreeSet<String>, what: &str) -> bool {
    found.iter().any(|name| name.starts_with(what))
}

/// Runs a federation, and finds nothing of the site where nothing may be; and where it may, it does.
fn nothing_leaves(mode: Mode) -> Seen {
    let seen = run(mode);
    assert_eq!(seen.on_federation(), BTreeSet::new(), "{mode:?}: on the federation's broker");
    assert_eq!(seen.at_rest(), BTreeSet::new(), "{mode:?}: in a store or the log");
    // Something was there to search.
    let kinds = |kind: &str| {
        let ends = |(topic, _): &&(String, Vec<u8>)| topic.ends_with(kind);
        seen.federation.iter().filter(ends).count()
    };
    assert!(kinds("contribution") >= 6 && kinds("status") > 0, "{mode:?}");
    assert!(seen.log.len() > 1_000 && seen.stores.values().all(|pieces| pieces.len() > 3));
    let here = seen.on_site();
    assert!(has(&here, "request as text") && has(&here, "question as decimals"), "{here:?}");
    assert!(has(&here, "tag as text"), "{here:?}");
    let answered = seen.site.iter().any(|(topic, payload)| {
        topic.ends_with("dev0-0/reply/infer") && String::from_utf8_lossy(payload).contains(REQUEST)
    });
    assert!(answered, "{mode:?}");
    seen
}

#[test]
fn adapters_take_nothing_of_a_sample_along() {
    let seen = nothing_leaves(Mode::Deltas);
    assert!(!has(&seen.on_site(), "window"), "and nothing goes to the edge either");
}

#[test]
fn class_means_take_nothing_of_a_sample_along() {
    let seen = nothing_leaves(Mode::ClassLogits);
    assert!(!has(&seen.on_site(), "window"));
}

#[test]
fn what_models_say_takes_nothing_of_a_sample_along() {
    let seen = nothing_leaves(Mode::Knowledge);
    assert!(!has(&seen.on_site(), "window"));
}

#[test]
fn how_classes_sound_takes_nothing_of_a_sample_along() {
    let seen = nothing_leaves(Mode::Spectra);
    assert!(!has(&seen.on_site(), "window"));
}

#[test]
fn split_training_shows_windows_to_the_site_and_to_nobody_else() {
    let seen = nothing_leaves(Mode::Split);
    let here = seen.on_site();
    assert!(has(&here, "window of dev0-0 as f32") && has(&here, "window of dev0-1"), "{here:?}");
    // Answers in halves: what the front made of the question went to the edge, and was answered.
    let to = |end: &str| -> Vec<_> {
        seen.site.iter().filter(|(topic, _)| topic.ends_with(end)).cloned().collect()
    };
    let asked = seen.on(&to("edge0/infer/toy"));
    assert!(has(&asked, "question, base64") || has(&asked, "question as f32"), "{asked:?}");
    let answered = to("dev0-0/reply/infer");
    let text: Vec<_> = answered.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect();
    assert!(text.iter().any(|text| text.contains("\"split\":true")), "{text:?}");
}

#[test]
fn a_cascade_asks_the_edge_and_nobody_else() {
    let seen = nothing_leaves(Mode::Cascade);
    let asked: Vec<_> =
        seen.site.iter().filter(|(topic, _)| topic.ends_with("edge0/infer/toy")).cloned().collect();
    assert!(has(&seen.on(&asked), "question as decimals"), "{}", asked.len());
}

#[test]
fn with_the_door_to_the_cloud_open_the_question_leaves_and_nothing_else_does() {
    let seen = run(Mode::ToCloud);
    let out = seen.on_federation();
    assert!(has(&out, "question as decimals"), "{out:?}");
    assert!(out.iter().all(|name| name.starts_with("question")), "{out:?}");
    assert_eq!(seen.at_rest(), BTreeSet::new(), "it is answered, and kept nowhere");
}

#[test]
fn a_leak_is_found_however_it_is_written() {
    use base64::Engine;
    let canaries = Mode::Deltas.canaries();
    let data = Mode::Deltas.data_of(&name("dev0-0"));
    let window = data.row(57).unwrap();
    let raw: Vec<u8> = window.iter().flat_map(|x| x.to_le_bytes()).collect();
    let wide: Vec<u8> = window.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect();
    let half = |x: &f32| half::f16::from_f32(*x).to_le_bytes();
    let labels: Vec<u8> = data.labels.iter().map(|label| *label as u8).collect();
    let base64 = base64::engine::general_purpose::STANDARD;
    let zipped = zstd::bulk::compress(&[&[9; 3][..], &raw].concat(), 3).unwrap();
    let leaks: [(&str, Vec<u8>); 12] = [
        ("f32", raw.clone()),
        ("f64", wide),
        ("f16", window.iter().flat_map(half).collect()),
        ("base64", base64.encode(&raw).into_bytes()),
        ("base64 at an odd place", base64.encode([&[1][..], &raw].concat()).into_bytes()),
        ("hex", hex::encode(&raw).into_bytes()),
        ("decimals", json!({ "x": window }).to_string().into_bytes()),
        ("msgpack", gaisnet::wire::encode(&window).unwrap()),
        ("zstd", zipped.clone()),
        ("zstd in zstd", zstd::bulk::compress(&zipped, 3).unwrap()),
        ("labels", labels.clone()),
        ("labels as digits", json!(data.labels).to_string().into_bytes()),
    ];
    for (how, leak) in leaks {
        // In the middle of something else.
        let hay = [&[0x42; 37][..], &leak, b" and so on"].concat();
        let found = canaries.found_in(&hay);
        assert!(has(&found, "window of dev0-0") || has(&found, "labels of dev0-0"), "{how}");
    }
    assert_eq!(canaries.found_in(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0]), BTreeSet::new());
    #[cfg(feature = "cli")]
    {
        use std::io::Write as _;
        let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        deflate.write_all(&raw).unwrap();
        assert!(has(&canaries.found_in(&deflate.finish().unwrap()), "window of dev0-0"));
    }
}

#[test]
fn a_node_that_gave_a_window_to_the_federation_would_be_found_out() {
    let (sender, receiver) = std::sync::mpsc::channel();
    paused(async move {
        let broker = MemoryBroker::new(Faults::none(1));
        let (_tap, tape) = tap(&broker);
        let (leaky, _events) = broker.connect("edge0", None);
        let data = Mode::Deltas.data_of(&name("dev0-0"));
        let payload = zstd::bulk::compress(
            &data.row(0).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(),
            3,
        )
        .unwrap();
        let topic = "gaisnet/v1/site0/_/edge0/m/contribution".to_owned();
        let (at_least_once, retain, priority) = (true, false, Priority::Update);
        leaky.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
        sleep(Duration::from_secs(1)).await;
        let taken = std::mem::take(&mut *tape.lock().unwrap());
        sender.send(taken).unwrap();
    });
    let canaries = Mode::Deltas.canaries();
    let federation = receiver.recv().unwrap();
    let seen = Seen {
        canaries,
        federation,
        site: Vec::new(),
        stores: BTreeMap::new(),
        log: "value=0".to_owned(),
    };
    assert!(has(&seen.on_federation(), "window of dev0-0 as f32"));
    let logged = format!("failed on {:?}", Mode::Deltas.data_of(&name("dev0-1")).row(1).unwrap());
    let kept = Seen { log: logged, ..seen };
    assert!(has(&kept.at_rest(), "window of dev0-1 as decimals"));
}
