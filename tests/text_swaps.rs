//! 200 versions in ten seconds, each the result of a round, while somebody asks: a cloud, an edge and a device
//! behind a real mosquitto, in real time, with a small language model of libtorch on the lane's own thread.
#![cfg(all(feature = "runtime", feature = "mqtt", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;
#[path = "support/small_language.rs"]
mod small_language;
mod support;
#[path = "support/toy_generator.rs"]
mod toy_generator;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use federation::{Links, Members, learning, name, until, windows};
use gaisnet::actors::text_lane::{TextLane, Writer};
use gaisnet::actors::{Busy, InlineBench};
use gaisnet::bus::Bus;
use gaisnet::bus::mqtt::MqttBus;
use gaisnet::ids::{Digest, Side};
use gaisnet::learn::{
    BatchLimits, ClassLogits, Control, Examples, Generator, LearnError, Learner, Progress,
    TensorSet, TrainJob, Trained,
};
use gaisnet::node::{AnswerLane, Answering, Learning, Node};
use gaisnet::protocol::update;
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::telegram::{AdapterMeta, ModelMeta};
use gaisnet::store::MemoryStore;
use gaisnet::wire::Coding;
use serde_json::{Value, json};
use small_language::{LETTERS, adapter, alone, generator, peft, prompt, untrained};
use support::{Mosquitto, Peer, message, settings};
use tokio::time::Instant;
use toy_generator::ToyTokens;

const VERSIONS: u64 = 200;
const DEADLINE_MS: u64 = 2_000;
const BRANCH: &str = "gaisnet/v1/site0/line/dev0-0";
/// An adapter beside the versions, which some requests name.
const PUMPS: u64 = 7_777;

/// Has a new adapter ready for each round, and keeps what each round began with: the versions.
struct Draws {
    ready: Vec<TensorSet>,
    versions: Arc<Mutex<Vec<TensorSet>>>,
}

impl Learner for Draws {
    fn initial_adapter(&self) -> TensorSet {
        untrained()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        progress(Progress { step: job.steps, loss: 1.0 });
        self.versions.lock().unwrap().push(job.start.clone());
        Ok(Trained {
            class_logits: ClassLogits { mean_logits: vec![0.5; 4], counts: vec![60, 60] },
            steps: job.steps,
            ..Trained::of(self.ready.pop().unwrap(), data.num_examples(), &[1.0, 0.5])
        })
    }
}

/// The rounds come as quickly as the brokers carry them, with a pause that spreads them over the test.
fn fast_rounds() -> Learning {
    let model = ModelMeta {
        name: name("toy"),
        version: 0,
        window: 0,
        rate_hz: 0.0,
        labels: vec![],
        context: Some(64),
        adapters: vec![AdapterMeta { name: name("pumps"), digest: Digest([5; 32]) }],
    };
    let packed = update::pack(&untrained(), Coding::F32, 0).unwrap();
    Learning { model, adapter: packed, pause_ms: 20, ..learning(VERSIONS) }
}

/// A cloud, an edge and a device that writes, all behind one broker.
fn nodes(port: u16, versions: &Arc<Mutex<Vec<TensorSet>>>) -> Vec<Node> {
    let members = Members::new(1, 1);
    let link = |client: &str| {
        let (bus, events) = MqttBus::connect(settings(port, client), 1).unwrap();
        (Arc::new(bus) as Arc<dyn Bus>, events)
    };
    let start = |node: &str, links: Links| {
        let store = Box::new(MemoryStore::new());
        let mut parts = members.parts(&name(node), 1, fast_rounds(), store, links);
        if node == "dev0-0" {
            let ready = (1..=VERSIONS).map(adapter).collect();
            let learner = Draws { ready, versions: Arc::clone(versions) };
            let learner: Box<dyn Learner> = Box::new(learner);
            parts.bench = Box::new(InlineBench::new(name(node), Some((learner, windows()))));
            parts.policy = CommandPolicy::new(["infer"]).unwrap();
            let mut generator = generator();
            generator.hold(name("pumps"), &peft(), &adapter(PUMPS)).unwrap();
            let writer = Writer { generator: Box::new(generator), tokens: Arc::new(ToyTokens) };
            let clock = Arc::clone(&parts.clock);
            let lane = TextLane::spawn(writer, BatchLimits::default(), clock, 128).unwrap();
            parts.answering = Some(Answering {
                lane: AnswerLane::Text(lane),
                tags: vec![],
                busy: Arc::new(Busy::default()),
                max_gap_ms: 5_000,
                stale_after_ms: 10_000,
                cascade: None,
            });
        }
        gaisnet::node::start(parts).unwrap()
    };
    vec![
        start("dev0-0", Links::from([(Side::Up, link("dev0-0"))])),
        start("edge0", Links::from([(Side::Down, link("edge0")), (Side::Up, link("edge0-up"))])),
        start("cloud", Links::from([(Side::Down, link("cloud"))])),
    ]
}

/// What was asked, and when.
struct Asked {
    prompt: String,
    named: bool,
    at: Instant,
}

#[test]
#[ignore = "ten seconds of real time: 20 requests a second with a deadline of 2 s, as many swaps"]
fn two_hundred_swaps_over_mqtt_in_real_time_leave_no_answer_failed_late_or_mixed() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let versions: Arc<Mutex<Vec<TensorSet>>> = Arc::default();
    let (answers, last) = actix::System::new().block_on(async {
        let mut hmi = Peer::up(mosquitto.port, "hmi").await;
        hmi.listen(&[&format!("{BRANCH}/reply/infer")]).await;
        let nodes = nodes(mosquitto.port, &versions);
        until("the links", async || nodes.iter().all(|node| node.figures.is_connected())).await;
        let device = &nodes[0];
        let (mut asked, mut waiting, mut answers) = (0_u64, BTreeMap::new(), Vec::new());
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        let began = Instant::now();
        let mut swapped_s = None;
        loop {
            let version = device.serving.borrow().0;
            if version == VERSIONS && swapped_s.is_none() {
                swapped_s = Some(began.elapsed().as_secs_f64());
            }
            let more = asked < VERSIONS || version < VERSIONS;
            if !more && waiting.is_empty() {
                break;
            }
            tokio::select! {
                _ = beat.tick(), if more => {
                    let (id, prompt, named) = (format!("q{asked}"), prompt(asked), asked % 5 == 4);
                    let mut request = json!({"id": id, "prompt": prompt, "max_tokens": LETTERS,
                        "deadline_ms": DEADLINE_MS});
                    if named {
                        request["adapter"] = json!("pumps");
                    }
                    let topic = format!("{BRANCH}/infer/toy");
                    hmi.bus.publish(message(&topic, request.to_string())).unwrap();
                    waiting.insert(id, Asked { prompt, named, at: Instant::now() });
                    asked += 1;
                }
                (_, payload, _) = hmi.delivery() => {
                    let reply: Value = serde_json::from_str(&payload).unwrap();
                    let asked = waiting.remove(reply["id"].as_str().unwrap()).expect("one answer each");
                    let took_ms = asked.at.elapsed().as_millis() as u64;
                    answers.push((asked, took_ms, reply));
                }
            }
        }
        let (rate, all_s) = (asked, began.elapsed().as_secs_f64());
        eprintln!("{rate} requests in {all_s:.1} s, version {VERSIONS} after {swapped_s:?} s");
        let last = device.serving.borrow().1.clone();
        for node in nodes {
            node.stop("test", 0).await;
        }
        (answers, update::unpack(&last).unwrap())
    });
    let mut versions = versions.lock().unwrap().clone();
    assert_eq!(versions.len() as u64, VERSIONS, "each round began with the version before");
    versions.push(last);
    check(&answers, &versions);
}

/// Each answer is whole, in time, and letter for letter what its version writes alone.
fn check(answers: &[(Asked, u64, Value)], versions: &[TensorSet]) {
    let mut single = generator();
    let (mut seen, mut texts, mut slowest) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (asked, took_ms, reply) in answers {
        assert_eq!(reply["status"], "ok", "{reply}");
        assert!(["stop", "length"].contains(&reply["finish"].as_str().unwrap()), "{reply}");
        assert!(*took_ms < DEADLINE_MS, "late by the asker's clock: {took_ms} ms, {reply}");
        slowest = slowest.max(*took_ms);
        let set = if asked.named {
            assert_eq!(
                (&reply["adapter"], &reply["model_version"]),
                (&json!("pumps"), &Value::Null)
            );
            assert_eq!(reply["adapter_digest"], json!(Digest([5; 32])));
            adapter(PUMPS)
        } else {
            let version = reply["model_version"].as_u64().unwrap();
            seen.insert(version);
            versions[version as usize].clone()
        };
        single.load(1, &set).unwrap();
        let right = alone(&mut single, &asked.prompt);
        assert_eq!(reply["text"], json!(right), "mixed, or of another version: {reply}");
        texts.insert(right);
    }
    eprintln!(
        "{} answers of {} versions, the slowest after {slowest} ms",
        answers.len(),
        seen.len()
    );
    assert!(seen.len() > 50, "answers of many versions: {}", seen.len());
    assert!(texts.len() > 50, "versions write differently: {}", texts.len());
}
