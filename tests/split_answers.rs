//! A site whose devices have the front of a model answers by it, over the in-memory bus: as the whole model
//! would, of one version each, and with a clear answer when the edge has none.
#![cfg(all(feature = "runtime", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::print_stderr,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use federation::{Plant, name, paused};
use gaisnet::actors::lanes::{inline_back_serve_lane, inline_front_serve_lane};
use gaisnet::actors::split_lane::{BackCopies, FrontRuns};
use gaisnet::actors::{Busy, Half, InlineBench};
use gaisnet::bus::memory::{Faults, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::ids::Version;
use gaisnet::learn::{Cut, Learner, Prediction, Predictor, TensorSet, Windows};
use gaisnet::node::{AnswerLane, Answering, Cascading, NodeParts, Split};
use gaisnet::privacy::{Gate, Profile};
use gaisnet::protocol::cascade::{CascadeConfig, OnNoReply, Uncalibrated};
use gaisnet::protocol::{Backs, Input, SplitTerms, update};
use gaisnet::rng::Stream;
use gaisnet::scada::at_cut::FrontMark;
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::tags::{Binds, Format, Tag};
use gaisnet::torch::transformer::BlockConfig;
use gaisnet::torch::{
    LoraConfig, PeftConfig, SignalBack, SignalFront, SignalLearner, SignalPredictor,
    SignalTransformerConfig, SplitPredictor, TrainerConfig,
};
use gaisnet::wire::{Coding, SplitCoding};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

const SEED: u64 = 3;
const THREADS: NonZeroU16 = NonZeroU16::MIN;
const CUT: Cut = Cut { blocks: 1, head_in_front: false };
const DEVICE: &str = "gaisnet/v1/site0/line/dev0-0";
const EDGE: &str = "gaisnet/v1/site0/_/edge0";

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
            layers: 3,
            block: BlockConfig { d_model: 16, heads: 2, d_ff: 16 },
            classes: 3,
        },
        peft: PeftConfig { lora: Some(lora), ..PeftConfig::default() },
        ..TrainerConfig::default()
    }
}

fn base() -> TensorSet {
    trainer().model.initial_weights(&mut Stream::new(1, "weights"))
}

fn tones(n: usize, seed: u64) -> Windows {
    let mut stream = Stream::new(seed, "tones");
    let mut data = Windows { len: 64, classes: 3, ..Windows::default() };
    for label in (0..3).cycle().take(n) {
        let (rate, phase) = ([0.4, 1.1, 2.2][label], stream.range(0.0, 6.3));
        let noisy = |i: i32| (rate * f64::from(i) + phase).sin() + 0.5 * stream.normal();
        data.x.extend((0..64).map(noisy).map(|x| x as f32));
        data.labels.push(label);
    }
    data
}

fn asking(safe_default: Option<&str>) -> Cascading {
    let config = CascadeConfig {
        above: true,
        wait_ms: 2_000,
        in_flight: 4,
        on_no_reply: OnNoReply::Abstain,
        uncalibrated: Uncalibrated::Escalate,
    };
    Cascading {
        config,
        to_cloud: false,
        safe_default: safe_default.map(str::to_owned),
        measure: None,
    }
}

struct Site {
    plant: Plant,
    bus: MemoryBus,
    events: mpsc::Receiver<BusEvent>,
    coding: SplitCoding,
    safe_default: Option<&'static str>,
    /// Adapters that the edge served, by version.
    adapters: BTreeMap<Version, TensorSet>,
    asked: u32,
}

impl Site {
    async fn new(coding: SplitCoding, safe_default: Option<&'static str>) -> Self {
        let plant = Plant::new(1, 2, 0, &Faults::none(1));
        let (bus, events) = plant.site_buses[&name("site0")].connect("hmi", None);
        let adapters = BTreeMap::new();
        let mut site = Self { plant, bus, events, coding, safe_default, adapters, asked: 0 };
        let replies = [
            format!("{DEVICE}/reply/infer"),
            format!("{DEVICE}/inference/+"),
            format!("{EDGE}/reply/infer"),
            format!("{EDGE}/infer/+"),
        ];
        site.bus.subscribe(&replies).unwrap();
        for node in ["cloud", "edge0", "dev0-0", "dev0-1"] {
            site.start(node);
        }
        sleep(Duration::from_secs(5)).await;
        site.keep();
        site
    }

    fn start(&mut self, node: &str) {
        let parts = self.plant.parts(&name(node));
        let parts = self.with_halves(parts, node);
        self.plant.run(parts);
    }

    fn with_halves(&self, mut parts: NodeParts, node: &str) -> NodeParts {
        let (config, id) = (trainer(), name(node));
        let whole = SignalLearner::new(&base(), config.clone(), SEED).unwrap();
        let learning = &mut parts.learning;
        learning.model.window = 64;
        learning.model.labels = ["low", "mid", "high"].map(str::to_owned).to_vec();
        learning.plan.class_logits = false;
        learning.plan.local_steps = 16;
        learning.plan.learning_rate = 0.02;
        learning.gate = Gate::from(Profile::Standard);
        let packed = |set: &TensorSet| update::pack(set, Coding::F32, 0).unwrap();
        learning.adapter = packed(&whole.initial_adapter());
        let terms = SplitTerms { cut: CUT, coding: self.coding, part_bytes: 16_384 };
        let split = Split { terms, backs: Backs::Each, step_timeout_ms: 2_000 };
        let bench = InlineBench::new(id.clone(), None);
        let (lane, half, cascade) = match node {
            "cloud" => return parts,
            "edge0" => {
                let back = base().filtered(|name| !CUT.is_front(name));
                let back = SignalBack::new(&back, config.clone(), CUT, SEED).unwrap();
                let half = Half::Back(BackCopies::new(Box::new(back), Backs::Each));
                let (model, peft) = (config.model, &config.peft);
                let back = SplitPredictor::new(&base(), model, peft, CUT, THREADS).unwrap();
                let untrained = terms.front_of(0, &learning.base, &learning.adapter);
                (inline_back_serve_lane(back, untrained), half, None)
            }
            device => {
                let front = base().filtered(|name| CUT.is_front(name));
                let front = SignalFront::new(&front, config, CUT, SEED).unwrap();
                learning.adapter = packed(&gaisnet::learn::SplitFront::initial_adapter(&front));
                let untrained = FrontMark::new(0, &learning.base, &learning.adapter);
                let lane = inline_front_serve_lane(front.predictor(THREADS).unwrap(), untrained);
                let seed = if device == "dev0-0" { 10 } else { 11 };
                let data = Arc::new(tones(120, seed).into());
                let half = Half::Front(FrontRuns::new(id, Box::new(front), data));
                (lane, half, Some(asking(self.safe_default)))
            }
        };
        learning.split = Some(split);
        parts.bench = Box::new(bench.with_half(half));
        parts.policy = CommandPolicy::new(["infer", "status"]).unwrap();
        let binds = Binds::Feature { model: name("toy") };
        let tags =
            (node == "dev0-0").then(|| Tag::new("plant/press", Format::Json, "", binds).unwrap());
        parts.answering = Some(Answering {
            lane: AnswerLane::Windows(lane),
            tags: tags.into_iter().collect(),
            busy: Arc::new(Busy::default()),
            max_gap_ms: 5_000,
            stale_after_ms: 600_000,
            cascade,
        });
        parts
    }

    /// Keeps what the edge serves.
    fn keep(&mut self) {
        let (version, packed) = self.plant.running[&name("edge0")].serving.borrow().clone();
        self.adapters.insert(version, update::unpack(&packed).unwrap());
    }

    async fn version(&self) -> Version {
        *self.plant.versions().await.values().min().unwrap()
    }

    async fn begin_round(&self) {
        self.plant.running[&name("cloud")].order(Input::StartRound).await;
    }

    /// One version more, adopted by all.
    async fn round(&mut self) {
        let before = self.version().await;
        self.begin_round().await;
        for _ in 0..600 {
            sleep(Duration::from_secs(1)).await;
            if self.version().await > before {
                sleep(Duration::from_secs(2)).await;
                return self.keep();
            }
        }
        panic!("no new version");
    }

    fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        let (topic, payload) = (topic.to_owned(), payload.into());
        let (at_least_once, retain, priority) = (true, false, Priority::Control);
        self.bus.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
    }

    /// The next message on one of these topics.
    async fn heard(&mut self, topics: &str) -> Option<Value> {
        let waited = timeout(Duration::from_secs(30), async {
            loop {
                if let BusEvent::Delivery(delivery) = self.events.recv().await.unwrap() {
                    delivery.ack.release();
                    if delivery.topic.starts_with(topics) {
                        return serde_json::from_slice(&delivery.payload).unwrap();
                    }
                }
            }
        });
        waited.await.ok()
    }

    fn send(&mut self, window: &[f32]) -> String {
        self.asked += 1;
        let id = format!("q-{}", self.asked);
        let question = json!({"id": id, "input": window}).to_string();
        self.publish(&format!("{DEVICE}/infer/toy"), question);
        id
    }

    /// Asks the device and waits for its answer.
    async fn ask(&mut self, window: &[f32]) -> Value {
        let id = self.send(window);
        let answer = self.heard(&format!("{DEVICE}/reply")).await.expect("an answer");
        assert_eq!(answer["id"], *id);
        answer
    }

    /// A question of the device to its edge, as it went over the bus.
    async fn question(&mut self, window: &[f32]) -> Value {
        self.send(window);
        let question = self.heard(&format!("{EDGE}/infer")).await.unwrap();
        self.heard(&format!("{DEVICE}/reply")).await.unwrap();
        question
    }

    /// Asks the edge as a device would.
    async fn ask_edge(&mut self, mut question: Value) -> Value {
        self.asked += 1;
        question["id"] = json!(format!("again-{}", self.asked));
        self.publish(&format!("{EDGE}/infer/toy"), question.to_string());
        loop {
            let reply = self.heard(&format!("{EDGE}/reply")).await.expect("a reply");
            if reply["id"] == question["id"] {
                return reply;
            }
        }
    }

    fn counted(&self, node: &str, reason: &str) -> u64 {
        let view = self.plant.running[&name(node)].figures.view();
        view.counted.get(reason).copied().unwrap_or(0)
    }

    /// What the whole model of a version says.
    fn whole(&self, version: Version, window: &[f32]) -> Prediction {
        let config = trainer();
        let mut whole = SignalPredictor::new(&base(), config.model, &config.peft, THREADS).unwrap();
        whole.load(&self.adapters[&version]).unwrap();
        whole.predict(window, 64).unwrap().remove(0)
    }

    async fn stop(&mut self, node: &str) {
        self.plant.running.remove(&name(node)).unwrap().stop("test", 0).await;
    }
}

fn window(data: &Windows, at: usize) -> &[f32] {
    &data.x[at * data.len..(at + 1) * data.len]
}

/// Class of an answer, and how far its confidence is from that of the whole model.
fn beside(answer: &Value, whole: &Prediction) -> (bool, f64) {
    let same = answer["value"] == whole.class as f64;
    let expected = f64::from(whole.probabilities[answer["value"].as_f64().unwrap() as usize]);
    (same, (answer["confidence"].as_f64().unwrap() - expected).abs())
}

#[test]
fn a_device_with_the_front_answers_as_the_whole_model_does() {
    paused(async {
        for (coding, most) in [(SplitCoding::F32, 1e-5), (SplitCoding::Int8, 0.05)] {
            let mut site = Site::new(coding, None).await;
            let data = tones(30, 99);
            let untrained = site.ask(window(&data, 0)).await;
            assert_eq!(
                (&untrained["quality"], &untrained["model_version"]),
                (&json!("uncertain"), &json!(0))
            );
            assert!(beside(&untrained, &site.whole(0, window(&data, 0))).1 < most);
            site.round().await;
            site.round().await;
            let mut same = 0;
            for at in 0..30 {
                let answer = site.ask(window(&data, at)).await;
                let who = ["tier", "node", "split", "escalated", "degraded", "model_version"];
                let who: Vec<&Value> = who.iter().map(|key| &answer[*key]).collect();
                assert_eq!(json!(who), json!(["edge", "edge0", true, true, null, 2]), "{answer}");
                assert_eq!((&answer["status"], &answer["quality"]), (&json!("ok"), &json!("good")));
                let (class, gap) = beside(&answer, &site.whole(2, window(&data, at)));
                assert!(gap < most, "{coding:?} {gap}");
                same += u32::from(class);
            }
            assert!(same == 30 || coding == SplitCoding::Int8 && same >= 28, "{same}");
            // What sensors say is answered as well.
            site.publish("plant/press", json!(window(&data, 1)).to_string());
            let shown = site.heard(&format!("{DEVICE}/inference")).await.unwrap();
            assert_eq!((&shown["split"], &shown["id"]), (&json!(true), &Value::Null));
            assert!(beside(&shown, &site.whole(2, window(&data, 1))).1 < most);
            for node in ["edge0", "dev0-0", "dev0-1"] {
                let counted = site.plant.running[&name(node)].figures.view().counted;
                assert_eq!(counted, BTreeMap::new(), "{node}");
            }
        }
    });
}

#[test]
fn no_answer_mixes_versions_while_they_change_under_it() {
    paused(async {
        let mut site = Site::new(SplitCoding::F32, None).await;
        let data = tones(60, 98);
        let (mut seen, mut without) = (BTreeMap::new(), 0);
        for at in 0..60 {
            if at % 12 == 0 {
                site.begin_round().await;
            }
            let answer = site.ask(window(&data, at % 60)).await;
            site.keep();
            if answer["value"].is_null() {
                assert_eq!(answer["degraded"], "version", "{answer}");
                without += 1;
            } else {
                let version = answer["model_version"].as_u64().unwrap();
                let (same, gap) = beside(&answer, &site.whole(version, window(&data, at)));
                assert!(same && gap < 1e-5, "version {version}: {gap}");
                *seen.entry(version).or_insert(0) += 1;
            }
            sleep(Duration::from_millis(700)).await;
        }
        eprintln!("answers by version: {seen:?}, without one: {without}");
        assert!(seen.len() >= 3 && without <= 3, "{seen:?} {without}");
    });
}

#[test]
fn a_late_front_gets_the_back_before_and_one_that_is_later_is_refused_by_its_version() {
    paused(async {
        let mut site = Site::new(SplitCoding::F32, None).await;
        let data = tones(3, 97);
        site.round().await;
        let question = site.question(window(&data, 0)).await;
        assert_eq!(question["input"]["activations"]["version"], 1);
        assert_eq!(question["via"], json!(["dev0-0"]));
        site.round().await;
        let answer = site.ask_edge(question.clone()).await;
        assert_eq!((&answer["model_version"], &answer["split"]), (&json!(1), &json!(true)));
        assert!(beside(&answer, &site.whole(1, window(&data, 0))).1 < 1e-5);
        site.round().await;
        let refused = site.ask_edge(question.clone()).await;
        assert_eq!(
            (&refused["error"]["kind"], &refused["quality"]),
            (&json!("split_version"), &json!("bad"))
        );
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("version 1") && message.contains("version 3"), "{message}");
        assert_eq!(site.counted("edge0", "split_version"), 1);
        // The right number with another adapter behind it is no better.
        let mut forged = question;
        forged["input"]["activations"]["version"] = json!(3);
        assert_eq!(site.ask_edge(forged).await["error"]["kind"], "split_version");
    });
}

#[test]
fn without_its_edge_a_device_says_so_or_gives_the_safe_default() {
    paused(async {
        for safe_default in [None, Some("high")] {
            let mut site = Site::new(SplitCoding::Int8, safe_default).await;
            let data = tones(3, 96);
            site.round().await;
            site.stop("edge0").await;
            let answer = site.ask(window(&data, 0)).await;
            assert_eq!(
                (&answer["degraded"], &answer["confidence"]),
                (&json!("deadline"), &Value::Null)
            );
            let (label, quality) = match safe_default {
                Some(label) => (json!(label), json!("uncertain")),
                None => (Value::Null, json!("bad")),
            };
            assert_eq!((&answer["label"], &answer["quality"]), (&label, &quality), "{answer}");
            assert_eq!(site.counted("dev0-0", "cascade_deadline"), 1);
            site.start("edge0");
            sleep(Duration::from_secs(20)).await;
            let answer = site.ask(window(&data, 0)).await;
            assert_eq!((&answer["split"], &answer["model_version"]), (&json!(true), &json!(1)));
            // Nothing that was asked meanwhile waits anywhere: it was sent at most once.
            assert_eq!(site.counted("dev0-0", "cascade_late_reply"), 0);
        }
    });
}

#[test]
fn malformed_activations_are_counted_and_harm_nobody() {
    paused(async {
        let mut site = Site::new(SplitCoding::Int8, None).await;
        let data = tones(3, 95);
        site.round().await;
        let good = site.question(window(&data, 0)).await;
        let with = |key: &str, value: Value| {
            let mut bad = good.clone();
            bad["input"]["activations"][key] = value;
            bad
        };
        let shape = good["input"]["activations"]["shape"].clone();
        let (tokens, width) = (shape[1].as_u64().unwrap(), shape[2].as_u64().unwrap());
        let text = good["input"]["activations"]["data"].as_str().unwrap().to_owned();
        let nan = format!("wH{}", &text[2..]);
        let cases = [
            (with("shape", json!([1, width, tokens])), "split_shape"),
            (with("shape", json!([2, tokens, width])), "split_shape"),
            (with("shape", json!([1, tokens])), "split_shape"),
            (with("shape", json!([1, 4_294_967_295_u64, 4_294_967_295_u64])), "split_shape"),
            (with("data", json!("")), "split_shape"),
            (with("data", json!(nan)), "split_not_finite"),
            (with("coding", json!("f32")), "split_coding"),
            (with("version", json!(9)), "split_version"),
            (with("front", json!("00".repeat(32))), "split_version"),
            (with("data", json!("!!")), "wrong_field"),
            (with("more", json!(1)), "wrong_field"),
        ];
        let mut counts = BTreeMap::<&str, u64>::new();
        for (bad, kind) in cases {
            let reply = site.ask_edge(bad).await;
            assert_eq!(reply["error"]["kind"], kind, "{reply}");
            *counts.entry(kind).or_default() += 1;
            assert_eq!(site.counted("edge0", kind), counts[kind]);
        }
        // A device has no back, and gives none of its own by the way.
        let device = format!("{DEVICE}/infer/toy");
        site.publish(&device, good.to_string());
        let reply = site.heard(&format!("{DEVICE}/reply")).await.unwrap();
        assert_eq!(reply["error"]["kind"], "no_back");
        let answer = site.ask(window(&data, 0)).await;
        assert_eq!(answer["split"], true, "and the good go on");
    });
}

#[test]
fn a_repeated_question_is_answered_once_and_a_forged_reply_of_another_version_not_believed() {
    paused(async {
        let mut site = Site::new(SplitCoding::F32, None).await;
        let data = tones(3, 94);
        site.round().await;
        let mut question = site.question(window(&data, 0)).await;
        question["id"] = json!("once");
        for _ in 0..2 {
            site.publish(&format!("{EDGE}/infer/toy"), question.to_string());
        }
        sleep(Duration::from_secs(2)).await;
        let mut replies = 0;
        while let Some(reply) = site.heard(&format!("{EDGE}/reply")).await {
            replies += u32::from(reply["id"] == "once");
        }
        assert_eq!((replies, site.counted("edge0", "split_repeated")), (1, 1));
        // Whoever may write the edge's replies can answer, but not with another version.
        site.stop("edge0").await;
        let id = site.send(window(&data, 1));
        let asked = site.heard(&format!("{EDGE}/infer")).await.unwrap();
        let forged = json!({"id": asked["id"], "status": "ok", "value": 0.0, "label": "low",
            "confidence": 1.0, "quality": "good", "ts": 1, "model_version": 9, "latency_ms": 1.0,
            "tier": "edge"});
        for _ in 0..2 {
            site.publish(&format!("{EDGE}/reply/infer"), forged.to_string());
        }
        let answer = site.heard(&format!("{DEVICE}/reply")).await.unwrap();
        assert_eq!((&answer["id"], &answer["degraded"]), (&json!(id), &json!("version")));
        assert_eq!((&answer["value"], &answer["quality"]), (&Value::Null, &json!("bad")));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(site.counted("dev0-0", "cascade_late_reply"), 1);
        assert_eq!(site.counted("dev0-0", "split_version"), 1);
    });
}

#[test]
fn nothing_of_an_answer_in_halves_crosses_the_federations_broker() {
    paused(async {
        let mut site = Site::new(SplitCoding::F32, None).await;
        let (bus, mut events) = site.plant.federation_bus.connect("spy", None);
        bus.subscribe(&["#".to_owned()]).unwrap();
        let data = tones(3, 93);
        for at in 0..3 {
            assert_eq!(site.ask(window(&data, at)).await["split"], true);
        }
        site.round().await;
        let mut topics = Vec::new();
        while let Ok(event) = events.try_recv() {
            if let BusEvent::Delivery(delivery) = event {
                topics.push(delivery.topic);
                delivery.ack.release();
            }
        }
        assert!(topics.iter().any(|topic| topic.contains("/m/")), "the spy hears");
        assert!(!topics.iter().any(|topic| topic.contains("infer")), "{topics:?}");
    });
}
