//! Tiers that answer together, as whole nodes on the in-memory bus under a paused clock: a device, its
//! edge and the cloud, each with a toy model of its own skill, asked as `mosquitto_pub` would ask.

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
#[path = "support/toy_tiers.rs"]
mod toy_tiers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use federation::{Plant, name, paused};
use gaisnet::actors::Busy;
use gaisnet::actors::lanes::inline_serve_lane;
use gaisnet::bus::memory::{Faults, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::ledger::Event;
use gaisnet::node::{AnswerLane, Answering, Cascading};
use gaisnet::protocol::Input;
use gaisnet::protocol::cascade::{CascadeConfig, OnNoReply};
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::tags::{Binds, Format, Tag};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use toy_tiers::{CONFIG, SKILLS, Toy, measure};

const DEVICE: &str = "gaisnet/v1/site0/line/dev0-0";
const EDGE: &str = "gaisnet/v1/site0/_/edge0";
const CLOUD: &str = "gaisnet/v1/_/_/cloud";

/// How a tier answers; `None`: without a cascade.
type Way = Option<CascadeConfig>;

struct Site {
    plant: Plant,
    bus: MemoryBus,
    events: mpsc::Receiver<BusEvent>,
    /// Windows that the device's model was asked.
    asked: Arc<AtomicUsize>,
    ways: [Way; 3],
}

impl Site {
    /// Device, edge and cloud with these ways, after so many rounds.
    async fn new(ways: [Way; 3], rounds: u64) -> Self {
        let plant = Plant::new(1, 1, 0, &Faults::none(1));
        let (bus, events) = plant.site_buses[&name("site0")].connect("hmi", None);
        let replies = [format!("{DEVICE}/reply/infer"), format!("{DEVICE}/inference/+")];
        bus.subscribe(&replies).unwrap();
        let mut site = Self { plant, bus, events, asked: Arc::default(), ways };
        for node in ["cloud", "edge0", "dev0-0"] {
            site.start(node);
        }
        sleep(Duration::from_secs(5)).await;
        for _ in 0..rounds {
            site.round().await;
        }
        site
    }

    fn start(&mut self, node: &str) {
        let mut parts = self.plant.parts(&name(node));
        let tier = match node {
            "cloud" => 2,
            "edge0" => 1,
            _ => 0,
        };
        let asked = if tier == 0 { Arc::clone(&self.asked) } else { Arc::default() };
        let cascade = self.ways[tier].map(|config| Cascading {
            config,
            to_cloud: config.above,
            safe_default: Some("stop".into()),
            // The cloud has nothing to measure by.
            measure: (tier < 2).then(measure),
        });
        parts.policy = CommandPolicy::new(["infer", "status"]).unwrap();
        let binds = Binds::Feature { model: name("toy") };
        parts.answering = Some(Answering {
            lane: AnswerLane::Windows(inline_serve_lane(Toy { skill: SKILLS[tier], asked })),
            tags: vec![Tag::new("plant/press", Format::Json, "", binds).unwrap()],
            busy: Arc::new(Busy::default()),
            max_gap_ms: 5_000,
            stale_after_ms: 600_000,
            cascade,
        });
        self.plant.run(parts);
    }

    async fn stop(&mut self, node: &str) {
        self.plant.running.remove(&name(node)).unwrap().stop("test", 0).await;
    }

    /// One version more, adopted by all.
    async fn round(&mut self) {
        let before = self.version().await;
        self.plant.running[&name("cloud")].order(Input::StartRound).await;
        for _ in 0..200 {
            sleep(Duration::from_secs(1)).await;
            if self.version().await > before {
                return sleep(Duration::from_secs(2)).await;
            }
        }
        panic!("no new version");
    }

    async fn version(&self) -> u64 {
        *self.plant.versions().await.values().min().unwrap()
    }

    fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        let (topic, payload) = (topic.to_owned(), payload.into());
        let (at_least_once, retain, priority) = (true, false, Priority::Control);
        self.bus.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
    }

    /// The next telegram.
    async fn heard(&mut self) -> Value {
        let waited = timeout(Duration::from_secs(60), async {
            loop {
                if let BusEvent::Delivery(delivery) = self.events.recv().await.unwrap() {
                    delivery.ack.release();
                    return serde_json::from_slice(&delivery.payload).unwrap();
                }
            }
        });
        waited.await.unwrap()
    }

    /// Asks the device and waits for its answer.
    async fn ask(&mut self, question: f32) -> Value {
        self.publish(
            &format!("{DEVICE}/infer/toy"),
            json!({"id": "q", "input": [question]}).to_string(),
        );
        let answer = self.heard().await;
        assert_eq!(answer["id"], "q");
        answer
    }

    fn counted(&self, node: &str, reason: &str) -> u64 {
        self.plant.running[&name(node)].figures.view().counted.get(reason).copied().unwrap_or(0)
    }

    fn escalated(&self, node: &str) -> u64 {
        self.plant.running[&name(node)].figures.view().escalated
    }

    /// Requests that a node's ledger says have left the site.
    fn recorded(&self, node: &str) -> Vec<u64> {
        let requests = |event: &Event| match event {
            Event::Escalate { requests, to, .. } => {
                assert_eq!(to.as_str(), "cloud");
                Some(*requests)
            }
            _ => None,
        };
        self.plant.entries(node).iter().filter_map(requests).collect()
    }
}

/// Who answered: tier, node, escalated, degraded; and the class.
fn who(answer: &Value) -> Value {
    json!([
        answer["tier"],
        answer["node"],
        answer["escalated"],
        answer["degraded"],
        answer["value"]
    ])
}

#[test]
fn each_question_is_answered_by_the_lowest_tier_that_is_sure_enough() {
    paused(async {
        let mut site = Site::new([Some(CONFIG); 3], 1).await;
        let easy = site.ask(1.1).await;
        assert_eq!(who(&easy), json!(["device", "dev0-0", false, null, 1.0]));
        assert!(easy["bound"].as_f64().unwrap() <= 0.05 && easy["quality"] == "good", "{easy}");
        let harder = site.ask(1.65).await;
        assert_eq!(who(&harder), json!(["edge", "edge0", true, null, 1.0]));
        assert!(harder["bound"].as_f64().unwrap() <= 0.05 && harder["model_version"] == 1);
        let hardest = site.ask(0.95).await;
        assert_eq!(who(&hardest), json!(["cloud", "cloud", true, null, 0.0]));
        assert_eq!(hardest["bound"], Value::Null, "the cloud has nothing to measure by");
        assert_eq!((site.escalated("dev0-0"), site.escalated("edge0")), (2, 1));
    });
}

#[test]
fn nothing_of_a_sample_leaves_the_site_unless_it_was_asked_for_and_then_it_is_recorded() {
    paused(async {
        let inside = CascadeConfig { above: false, ..CONFIG };
        let mut site = Site::new([Some(CONFIG), Some(inside), Some(CONFIG)], 1).await;
        for i in 0..5 {
            let answer = site.ask(0.95).await;
            let who = who(&answer);
            assert_eq!(
                who,
                json!(["edge", "edge0", true, null, 1.0]),
                "{i}: wrong, but the edge's own"
            );
            assert_eq!(answer["bound"], Value::Null, "it isn't sure, and says so");
        }
        let leaves = |site: &Site| {
            let trace = site.plant.federation_bus.trace();
            trace.iter().filter(|entry| entry.topic.contains("infer")).count()
        };
        assert_eq!((leaves(&site), site.recorded("edge0")), (0, vec![]));
        site.stop("edge0").await;
        site.ways[1] = Some(CONFIG);
        site.start("edge0");
        sleep(Duration::from_secs(5)).await;
        for _ in 0..5 {
            assert_eq!(site.ask(0.95).await["tier"], "cloud");
        }
        assert!(leaves(&site) > 0);
        assert_eq!(site.recorded("edge0"), [1], "the first at once");
        sleep(Duration::from_secs(61)).await;
        assert_eq!(site.recorded("edge0"), [1, 4], "those of a minute together");
        site.ask(0.95).await;
        site.ask(0.95).await;
        site.stop("edge0").await;
        assert_eq!(site.recorded("edge0"), [1, 4, 2], "and what is left when it stops");
        assert_eq!(site.recorded("dev0-0"), [0; 0], "its edge is inside the site");
    });
}

#[test]
fn tag_windows_go_up_like_requests() {
    paused(async {
        let mut site = Site::new([Some(CONFIG); 3], 1).await;
        site.publish("plant/press", "1.65");
        let answer = site.heard().await;
        assert_eq!(who(&answer), json!(["edge", "edge0", true, null, 1.0]));
        assert_eq!(answer["id"], Value::Null, "it says nothing of how it was asked for");
    });
}

#[test]
fn without_a_reply_the_own_answer_comes_marked_when_the_asker_needs_it() {
    paused(async {
        let mut site = Site::new([Some(CONFIG); 3], 1).await;
        site.stop("edge0").await;
        let since = Instant::now();
        assert_eq!(who(&site.ask(1.9).await), json!(["device", "dev0-0", false, "deadline", 0.0]));
        let waited = since.elapsed().as_millis();
        assert!((2_000..2_100).contains(&waited), "{waited}");
        let since = Instant::now();
        let hurry = json!({"id": "q", "input": [1.9], "deadline_ms": 300}).to_string();
        site.publish(&format!("{DEVICE}/infer/toy"), hurry);
        let answer = site.heard().await;
        assert_eq!(
            (&answer["degraded"], &answer["quality"]),
            (&json!("deadline"), &json!("uncertain"))
        );
        let waited = since.elapsed().as_millis();
        assert!((300..400).contains(&waited), "{waited}");
        assert!(site.ask(1.1).await["bound"].is_f64(), "what it is sure of doesn't wait");
    });
}

#[test]
fn a_node_that_abstains_gives_its_safe_default() {
    paused(async {
        let careful = CascadeConfig { on_no_reply: OnNoReply::Abstain, ..CONFIG };
        let mut site = Site::new([Some(careful), Some(CONFIG), Some(CONFIG)], 1).await;
        site.stop("edge0").await;
        let answer = site.ask(1.9).await;
        assert_eq!(who(&answer), json!(["device", "dev0-0", false, "deadline", null]));
        assert_eq!((&answer["label"], &answer["confidence"]), (&json!("stop"), &Value::Null));
    });
}

#[test]
fn a_link_that_is_down_is_told_at_once_and_by_whom() {
    paused(async {
        let mut site = Site::new([Some(CONFIG); 3], 1).await;
        site.plant.federation_bus.partition("edge0");
        sleep(Duration::from_secs(120)).await;
        let since = Instant::now();
        let answer = site.ask(0.95).await;
        assert_eq!(who(&answer), json!(["edge", "edge0", true, "link_down", 1.0]));
        assert!(since.elapsed() < Duration::from_millis(100));
        site.plant.federation_bus.heal("edge0");
        sleep(Duration::from_secs(120)).await;
        assert_eq!(site.ask(0.95).await["tier"], "cloud");
    });
}

#[test]
fn each_version_is_measured_once_also_over_a_restart() {
    paused(async {
        let mut site = Site::new([Some(CONFIG); 3], 0).await;
        let untrained = site.ask(1.1).await;
        assert_eq!(untrained["tier"], "edge", "nothing is known of version 0: {untrained}");
        assert_eq!(untrained["degraded"], "uncalibrated", "and so it doesn't leave the site");
        let so_far = |site: &Site| site.asked.swap(0, Ordering::Relaxed);
        assert_eq!(so_far(&site), 1);
        site.round().await;
        assert_eq!(so_far(&site), 802, "version 0 as it was offered, and 1; each with a probe");
        assert_eq!(site.ask(1.1).await["tier"], "device");
        site.stop("dev0-0").await;
        site.start("dev0-0");
        sleep(Duration::from_secs(5)).await;
        let again = site.ask(1.1).await;
        assert!(again["bound"].is_f64() && again["model_version"] == 1, "{again}");
        assert_eq!(so_far(&site), 3, "it knew, and took one probe");
        site.round().await;
        assert_eq!(so_far(&site), 401, "another version, another measure");
        assert_eq!(site.ask(1.1).await["model_version"], 2);
    });
}

#[test]
fn forged_replayed_and_broken_replies_end_nothing_and_are_counted() {
    paused(async {
        let mut site = Site::new([Some(CONFIG); 3], 1).await;
        site.stop("edge0").await;
        site.bus.subscribe(&[format!("{EDGE}/infer/toy"), format!("{EDGE}/reply/infer")]).unwrap();
        sleep(Duration::from_secs(1)).await;
        site.publish(
            &format!("{DEVICE}/infer/toy"),
            json!({"id": "q", "input": [1.9]}).to_string(),
        );
        let escalated = site.heard().await;
        assert_eq!(escalated["via"], json!(["dev0-0"]));
        assert_eq!(escalated["deadline_ms"], 1_750, "some time is kept for the way back");
        let id = escalated["id"].as_str().unwrap().to_owned();
        assert!(id.ends_with("-0"), "{id}");
        let good = json!({"status": "ok", "id": id, "value": 1.0, "label": "b", "confidence": 0.9,
            "quality": "good", "ts": 1, "model_version": 1, "latency_ms": 1.0, "tier": "edge"});
        let with = |key: &str, value: Value| {
            let mut reply = good.clone();
            reply[key] = value;
            reply.to_string()
        };
        let topic = format!("{EDGE}/reply/infer");
        for reply in [
            with("label", json!("c")),
            with("confidence", json!(7)),
            with("tier", json!("device")),
            with("id", json!(format!("{}7", &id[..id.len() - 1]))),
            "{".to_owned(),
            "x".repeat(100_000),
            with("id", json!("q")),
        ] {
            site.publish(&topic, reply);
        }
        sleep(Duration::from_millis(200)).await;
        while let Ok(Some(BusEvent::Delivery(delivery))) =
            timeout(Duration::from_millis(10), site.events.recv()).await
        {
            assert!(delivery.topic != format!("{DEVICE}/reply/infer"), "{delivery:?}");
            delivery.ack.release();
        }
        for (reason, times) in [
            ("cascade_reply_implausible", 3),
            ("cascade_no_such_request", 1),
            ("cascade_reply_unreadable", 1),
            ("cascade_reply_too_large", 1),
        ] {
            assert_eq!(site.counted("dev0-0", reason), times, "{reason}");
        }
        // From another branch nothing is heard; from the edge's own, once.
        site.publish(&format!("{CLOUD}/reply/infer"), good.to_string());
        site.publish(&topic, good.to_string());
        site.publish(&topic, good.to_string());
        let answers = async {
            loop {
                let answer = site.heard().await;
                if answer["id"] == "q" {
                    return answer;
                }
            }
        };
        let answer = answers.await;
        assert_eq!(
            who(&answer),
            json!(["edge", "edge0", true, null, 1.0]),
            "it said no node of its own"
        );
        sleep(Duration::from_secs(5)).await;
        assert_eq!(site.counted("dev0-0", "cascade_late_reply"), 1);
    });
}

#[test]
fn a_request_that_went_through_many_hands_goes_no_further() {
    paused(async {
        let mut site = Site::new([Some(CONFIG); 3], 1).await;
        site.bus.subscribe(&[format!("{EDGE}/reply/infer")]).unwrap();
        sleep(Duration::from_secs(1)).await;
        let via = |n: usize| {
            let names: Vec<String> = (0..n).map(|i| format!("n{i}")).collect();
            json!({"id": "q", "input": [0.95], "via": names}).to_string()
        };
        site.publish(&format!("{EDGE}/infer/toy"), via(3));
        assert_eq!(site.heard().await["tier"], "cloud");
        site.publish(&format!("{EDGE}/infer/toy"), via(4));
        assert_eq!(who(&site.heard().await), json!(["edge", "edge0", false, null, 1.0]));
        site.publish(&format!("{EDGE}/infer/toy"), via(5));
        assert_eq!(site.heard().await["error"]["kind"], "wrong_field");
    });
}

#[test]
fn without_a_cascade_answers_are_what_they_were_and_an_edge_without_one_may_be_asked() {
    paused(async {
        let mut site = Site::new([None, None, None], 1).await;
        let answer = site.ask(1.9).await;
        assert_eq!(answer["tier"], "device");
        let keys: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
        let plain =
            ["confidence", "id", "label", "latency_ms", "model_version", "quality", "status"];
        assert_eq!(keys, [&plain[..], &["tier", "ts", "value"]].concat());
        site.stop("dev0-0").await;
        site.ways[0] = Some(CONFIG);
        site.start("dev0-0");
        sleep(Duration::from_secs(10)).await;
        let answer = site.ask(1.65).await;
        assert_eq!(who(&answer), json!(["edge", "edge0", true, null, 1.0]));
        assert_eq!(answer["bound"], Value::Null);
    });
}
