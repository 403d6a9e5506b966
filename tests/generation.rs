//! Text over the in-memory bus under tokio's paused clock: a whole device with a toy that writes, asked
//! as `mosquitto_pub` would ask it. The toy's adapter is a shift of letters, so that an answer of mixed
//! versions shows it.

#![cfg(feature = "runtime")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;
#[path = "support/toy_generator.rs"]
mod toy_generator;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use federation::{Plant, name, paused};
use gaisnet::actors::Busy;
use gaisnet::actors::text_lane::{TextLane, Writer};
use gaisnet::bus::memory::{Faults, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::ids::Digest;
use gaisnet::learn::{
    BatchLimits, ClassLogits, Control, Examples, Generator, LearnError, Learner, Progress,
    TensorSet, TrainJob, Trained,
};
use gaisnet::node::{AnswerLane, Answering};
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::telegram::AdapterMeta;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;
use toy_generator::{ToyGenerator, ToyTokens, answer, shift_by};

const BRANCH: &str = "gaisnet/v1/site0/line/dev0-0";
const DEVICE: &str = "dev0-0";

/// Each round moves the adapter on by one, so that it is the version's number.
struct CountsUp;

impl Learner for CountsUp {
    fn initial_adapter(&self) -> TensorSet {
        shift_by(0)
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        progress(Progress { step: job.steps, loss: 1.0 });
        let shift = job.start.tensors()[0].data[0] as u16;
        Ok(Trained {
            class_logits: ClassLogits { mean_logits: vec![0.5; 4], counts: vec![60, 60] },
            steps: job.steps,
            ..Trained::of(shift_by(shift + 1), data.num_examples(), &[1.0, 0.5])
        })
    }
}

/// Of each adapter with a name.
fn digest_of_named() -> Digest {
    Digest([0xAB; 32])
}

/// A federation whose only device writes, and somebody who asks it.
struct Site {
    plant: Plant,
    bus: MemoryBus,
    events: mpsc::Receiver<BusEvent>,
}

impl Site {
    /// `versions` rounds are played; each step of the toy takes so long.
    async fn new(versions: u64, toy: ToyGenerator, limits: BatchLimits, step_ms: u64) -> Self {
        let mut plant = Plant::new(1, 1, versions, &Faults::none(1));
        let (bus, events) = plant.site_buses[&name("site0")].connect("hmi", None);
        bus.subscribe(&[format!("{BRANCH}/reply/infer"), format!("{BRANCH}/stream/+")]).unwrap();
        let mut parts = plant.parts(&name(DEVICE));
        parts.bench = Box::new(gaisnet::actors::InlineBench::new(
            name(DEVICE),
            Some((Box::new(CountsUp) as Box<dyn Learner>, federation::windows())),
        ));
        parts.policy = CommandPolicy::new(["infer", "status"]).unwrap();
        let adapter = |name| AdapterMeta { name, digest: digest_of_named() };
        parts.learning.model.adapters = toy.named().into_iter().map(adapter).collect();
        let writer = Writer { generator: Box::new(toy), tokens: Arc::new(ToyTokens) };
        let step = Duration::from_millis(step_ms);
        let lane = TextLane::inline(writer, limits, Arc::clone(&parts.clock), 128, step);
        parts.answering = Some(Answering {
            lane: AnswerLane::Text(lane),
            tags: vec![],
            busy: Arc::new(Busy::default()),
            max_gap_ms: 5_000,
            stale_after_ms: 10_000,
            cascade: None,
        });
        plant.run(parts);
        for node in ["edge0", "cloud"] {
            plant.start(&name(node));
        }
        sleep(Duration::from_secs(1)).await;
        Self { plant, bus, events }
    }

    async fn plain() -> Self {
        Self::new(0, ToyGenerator::default(), BatchLimits::default(), 10).await
    }

    fn send(&self, model: &str, payload: impl Into<Vec<u8>>) {
        let (topic, payload) = (format!("{BRANCH}/infer/{model}"), payload.into());
        let (at_least_once, retain, priority) = (true, false, Priority::Control);
        self.bus.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
    }

    fn ask(&self, request: &Value) {
        self.send("toy", request.to_string());
    }

    /// The next telegram: last level of its topic, and what it says.
    async fn heard(&mut self) -> (String, Value) {
        let waited = tokio::time::timeout(Duration::from_secs(700), async {
            loop {
                if let BusEvent::Delivery(delivery) = self.events.recv().await.unwrap() {
                    delivery.ack.release();
                    let leaf = delivery.topic.rsplit('/').next().unwrap().to_owned();
                    return (leaf, serde_json::from_slice(&delivery.payload).unwrap());
                }
            }
        });
        waited.await.unwrap()
    }

    async fn reply(&mut self) -> Value {
        loop {
            if let (leaf, telegram) = self.heard().await
                && leaf == "infer"
            {
                return telegram;
            }
        }
    }

    async fn meta(&mut self) -> Value {
        loop {
            if let (leaf, telegram) = self.heard().await
                && leaf == "meta"
            {
                return telegram;
            }
        }
    }

    fn counted(&self, reason: &'static str) -> u64 {
        let view = self.plant.running[&name(DEVICE)].figures.view();
        view.counted.get(reason).copied().unwrap_or(0)
    }
}

#[test]
fn an_answer_comes_with_its_version_and_why_it_ended() {
    paused(async {
        let mut site = Site::new(3, ToyGenerator::default(), BatchLimits::default(), 10).await;
        site.plant.converge(30).await;
        site.ask(&json!({"id": "q-1", "prompt": "see a", "max_tokens": 5}));
        let reply = site.reply().await;
        let wanted = json!({"id": "q-1", "status": "ok", "text": "dgjmp", "finish": "length",
            "quality": "good", "tokens": 5, "prompt_tokens": 5, "model_version": 3, "adapter": null,
            "tier": "device"});
        for (key, value) in wanted.as_object().unwrap() {
            assert_eq!(reply[key], *value, "{key}");
        }
        assert!(reply["latency_ms"].as_f64().unwrap() >= 50.0, "a step takes 10 ms: {reply}");
        site.ask(&json!({"id": "q-2", "prompt": "a", "stop": "mp", "adapter": 3}));
        let reply = site.reply().await;
        assert_eq!((&reply["text"], &reply["finish"]), (&json!("dgj"), &json!("stop")));
        site.ask(&json!({"prompt": "c", "max_tokens": 2, "adapter": 0}));
        let reply = site.reply().await;
        assert_eq!((&reply["text"], &reply["model_version"]), (&json!("cc"), &json!(0)));
        assert_eq!(reply["id"], Value::Null);
    });
}

#[test]
fn adapters_with_names_are_listed_and_answer_whoever_names_them_whatever_version_is_served() {
    paused(async {
        let toy = ToyGenerator::default().holding("pumps", 7).holding("belts", 2);
        let mut site = Site::new(3, toy, BatchLimits::default(), 10).await;
        site.bus.subscribe(&[format!("{BRANCH}/meta")]).unwrap();
        let listed = site.meta().await["models"][0]["adapters"].clone();
        let digest = json!(digest_of_named());
        let wanted =
            json!([{"name": "pumps", "digest": digest}, {"name": "belts", "digest": digest}]);
        assert_eq!(listed, wanted);
        site.plant.converge(30).await;
        let ask = |id: &str, adapter: Value| json!({"id": id, "prompt": "a", "max_tokens": 3, "adapter": adapter, "stream": false});
        site.ask(&ask("p", json!("pumps")));
        site.ask(&ask("b", json!("belts")));
        site.ask(&ask("v", json!(3)));
        let mut heard = BTreeMap::new();
        for _ in 0..3 {
            let reply = site.reply().await;
            let id = reply["id"].as_str().unwrap().to_owned();
            let told = ["text", "adapter", "adapter_digest", "model_version"]
                .map(|key| reply[key].clone());
            heard.insert(id, told);
        }
        assert_eq!(heard["p"], [json!("hov"), json!("pumps"), digest.clone(), Value::Null]);
        assert_eq!(heard["b"], [json!("ceg"), json!("belts"), digest, Value::Null]);
        assert_eq!(heard["v"], [json!("dgj"), Value::Null, Value::Null, json!(3)]);
        site.ask(&ask("n", json!("pump")));
        let refused = site.reply().await;
        assert_eq!(refused["error"]["kind"], "unknown_adapter");
        let said = refused["error"]["message"].as_str().unwrap();
        assert!(said.contains("\"pump\"") && said.contains("belts, pumps"), "{said}");
    });
}

#[test]
fn a_streamed_answer_comes_piece_by_piece_and_then_whole() {
    paused(async {
        let mut site = Site::plain().await;
        site.ask(&json!({"id": "s-1", "prompt": "g", "max_tokens": 3, "stream": true}));
        let mut pieces = Vec::new();
        loop {
            let (leaf, telegram) = site.heard().await;
            if leaf == "infer" {
                assert_eq!(telegram["text"], "ggg");
                break;
            }
            assert_eq!((leaf.as_str(), &telegram["id"]), ("s-1", &json!("s-1")));
            pieces.push((
                telegram["n"].clone(),
                telegram["text"].clone(),
                telegram["finish"].clone(),
            ));
        }
        let wanted = [
            (json!(0), json!("g"), Value::Null),
            (json!(1), json!("g"), Value::Null),
            (json!(2), json!("g"), Value::Null),
            (json!(3), json!(""), json!("length")),
        ];
        assert_eq!(pieces, wanted);
    });
}

#[test]
fn bad_requests_get_a_reason_each_and_a_good_one_after_them_an_answer() {
    paused(async {
        let mut site = Site::plain().await;
        let mut megabyte = br#"{"id":"big","prompt":""#.to_vec();
        megabyte.resize(1_000_000, b'x');
        megabyte.extend_from_slice(b"\"}");
        site.send("toy", megabyte);
        site.send("toy", *b"{\"id\":\"u\",\"prompt\":\"a\xFF\"}");
        site.ask(&json!({"id": "e", "prompt": ""}));
        site.ask(&json!({"id": "l", "prompt": "a".repeat(70)}));
        site.ask(&json!({"id": "v", "prompt": "a", "adapter": 9}));
        site.ask(&json!({"id": "n", "prompt": "a", "adapter": "pumps"}));
        site.send("pump", br#"{"id":"m","prompt":"a"}"#.to_vec());
        site.ask(&json!({"id": "c", "cancel": true}));
        site.ask(&json!({"id": "w", "input": [1, 2, 3]}));
        site.ask(&json!({"id": "ok", "prompt": "a", "max_tokens": 2}));
        let mut kinds = BTreeMap::new();
        for _ in 0..10 {
            let reply = site.reply().await;
            let id = reply["id"].as_str().unwrap_or("-").to_owned();
            if reply["status"] == "error" {
                assert_eq!(reply["quality"], "bad");
                let text = reply["error"]["message"].as_str().unwrap().to_owned();
                assert!(text.len() < 300 && !reply["error"]["hint"].as_str().unwrap().is_empty());
                let before = kinds.insert((reply["error"]["kind"].clone().to_string(), id), text);
                assert!(before.is_none());
            } else {
                assert_eq!((id.as_str(), &reply["text"]), ("ok", &json!("aa")));
            }
        }
        let found: Vec<(&str, &str)> =
            kinds.keys().map(|(kind, id)| (kind.trim_matches('"'), id.as_str())).collect();
        assert_eq!(
            found,
            [
                ("missing_field", "w"),
                ("not_utf8", "-"),
                ("prompt_too_long", "l"),
                ("too_large", "-"),
                ("unknown_adapter", "n"),
                ("unknown_adapter", "v"),
                ("unknown_id", "c"),
                ("unknown_model", "m"),
                ("wrong_field", "e"),
            ]
        );
        let long = &kinds[&("\"prompt_too_long\"".to_owned(), "l".to_owned())];
        assert!(long.contains("70 tokens") && long.contains("64"), "both lengths: {long}");
    });
}

#[test]
fn more_than_can_wait_are_told_busy_and_the_others_answered() {
    paused(async {
        let mut site = Site::plain().await;
        for i in 0..100 {
            site.ask(&json!({"id": format!("q{i}"), "prompt": "a", "max_tokens": 20}));
        }
        let (mut busy, mut answered) = (0, 0);
        for _ in 0..100 {
            let reply = site.reply().await;
            if reply["status"] == "ok" {
                answered += 1;
            } else {
                assert_eq!(reply["error"]["kind"], "busy");
                busy += 1;
            }
        }
        assert!(answered >= 64 && busy > 0, "{answered} {busy}");
        assert_eq!(site.counted("busy"), busy);
        site.ask(&json!({"id": "later", "prompt": "a", "max_tokens": 1}));
        assert_eq!(site.reply().await["status"], "ok");
    });
}

#[test]
fn a_request_is_cancelled_by_its_id_and_one_whose_asker_is_gone_by_its_deadline() {
    paused(async {
        let mut site = Site::plain().await;
        site.ask(&json!({"id": "c", "prompt": "a", "max_tokens": 60}));
        site.ask(&json!({"id": "gone", "prompt": "b", "max_tokens": 60, "deadline_ms": 300,
            "stream": true}));
        sleep(Duration::from_millis(105)).await;
        site.ask(&json!({"id": "c", "cancel": true}));
        let reply = site.reply().await;
        assert_eq!((&reply["id"], &reply["finish"]), (&json!("c"), &json!("cancelled")));
        assert_eq!(reply["quality"], "bad");
        let so_far = reply["tokens"].as_u64().unwrap();
        assert!((8..=12).contains(&so_far), "a step takes 10 ms: {so_far}");
        sleep(Duration::from_millis(10)).await; // its acknowledgement arrives
        site.plant.site_buses[&name("site0")].partition("hmi");
        sleep(Duration::from_millis(400)).await;
        assert_eq!(site.counted("deadline"), 1, "nobody is written for any more");
        site.plant.site_buses[&name("site0")].heal("hmi");
        let reply = site.reply().await;
        assert_eq!((&reply["id"], &reply["finish"]), (&json!("gone"), &json!("deadline")));
        let late = reply["latency_ms"].as_f64().unwrap();
        assert!((300.0..=320.0).contains(&late), "at most a step late: {late}");
    });
}

#[test]
fn a_repeat_is_answered_once_and_another_request_of_that_id_is_refused() {
    paused(async {
        let mut site = Site::plain().await;
        let request = json!({"id": "r", "prompt": "a", "max_tokens": 5});
        site.ask(&request);
        site.ask(&request);
        site.ask(&json!({"id": "r", "prompt": "b"}));
        assert_eq!(site.reply().await["error"]["kind"], "id_in_use");
        assert_eq!(site.reply().await["text"], "aaaaa");
        site.ask(&json!({"id": "r", "prompt": "b", "max_tokens": 1}));
        assert_eq!(site.reply().await["text"], "b", "the repeat got no answer of its own");
        assert_eq!(site.counted("repeated_request"), 1);
    });
}

/// What came of 20 requests a second while the federation made its versions.
#[derive(Debug, Default)]
struct Tally {
    asked: u64,
    good: u64,
    mixed: u64,
    slowest_ms: f64,
    versions: std::collections::BTreeSet<u64>,
}

async fn swaps_under_load(versions: u64, toy: ToyGenerator) -> Tally {
    const LETTERS: usize = 16;
    let mut site = Site::new(versions, toy, BatchLimits::default(), 10).await;
    let mut tally = Tally::default();
    let mut waiting = BTreeMap::new();
    let mut after = 40;
    while after > 0 || !waiting.is_empty() {
        if after > 0 {
            let id = format!("q{}", tally.asked);
            let prompt = char::from(b'a' + (tally.asked % 25) as u8).to_string();
            site.ask(
                &json!({"id": id, "prompt": prompt, "max_tokens": LETTERS, "deadline_ms": 2000}),
            );
            waiting.insert(id, prompt);
            tally.asked += 1;
        }
        let until = tokio::time::Instant::now() + Duration::from_millis(50);
        while let Ok(event) = tokio::time::timeout_at(until, site.events.recv()).await {
            let BusEvent::Delivery(delivery) = event.unwrap() else { continue };
            delivery.ack.release();
            let reply: Value = serde_json::from_slice(&delivery.payload).unwrap();
            let prompt = waiting.remove(reply["id"].as_str().unwrap()).unwrap();
            // Anything but a whole answer counts as failed: busy, late, cut off.
            if reply["status"] == "ok"
                && ["stop", "length"].contains(&reply["finish"].as_str().unwrap())
            {
                tally.good += 1;
                tally.slowest_ms = tally.slowest_ms.max(reply["latency_ms"].as_f64().unwrap());
                let version = reply["model_version"].as_u64().unwrap();
                tally.versions.insert(version);
                let right = answer(&prompt, version, LETTERS);
                tally.mixed += u64::from(reply["text"] != json!(right));
            }
        }
        let device = site.plant.running[&name(DEVICE)].view().await.unwrap();
        after -= u64::from(device.version >= versions && after > 0);
    }
    tally
}

#[test]
fn two_hundred_swaps_under_twenty_requests_a_second_fail_delay_and_mix_no_answer() {
    paused(async {
        let tally = swaps_under_load(200, ToyGenerator::default()).await;
        assert_eq!((tally.good, tally.mixed), (tally.asked, 0), "{tally:?}");
        assert!(tally.slowest_ms < 2_000.0, "{tally:?}");
        assert!(tally.asked >= 4_000, "200 rounds take 200 seconds and more: {tally:?}");
        assert_eq!(tally.versions, (0..=200).collect(), "every version answered");
    });
}

/// The twin: a generator without slots mixes versions under the same load.
#[test]
fn without_slots_the_same_load_sees_mixed_answers() {
    paused(async {
        let tally = swaps_under_load(20, ToyGenerator::without_slots()).await;
        assert!(tally.mixed > 0, "{tally:?}");
    });
}
