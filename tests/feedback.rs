//! Labels that come late, on whole nodes over the in-memory bus: what they judge, what is refused of them, and that none
//! leaves the site.

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
use std::time::Duration;

use federation::{Plant, name, paused};
use gaisnet::actors::Busy;
use gaisnet::actors::lanes::inline_serve_lane;
use gaisnet::bus::memory::{Faults, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::learn::{DriftConfig, LearnError, Prediction, Predictor, TensorSet};
use gaisnet::ledger::Event;
use gaisnet::node::{AnswerLane, Answering};
use gaisnet::protocol::Triggers;
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::tags::{Binds, Format, Tag};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

const DEVICE: &str = "gaisnet/v1/site0/line/dev0-0";
const EDGE: &str = "gaisnet/v1/site0/_/edge0";

/// Answers whether a sample is above a half.
struct Model;

impl Predictor for Model {
    fn load(&mut self, _: &TensorSet) -> Result<(), LearnError> {
        Ok(())
    }

    fn predict(&mut self, x: &[f32], _: usize) -> Result<Vec<Prediction>, LearnError> {
        let one = |x: &f32| {
            let class = usize::from(*x > 0.5);
            let mut probabilities = vec![0.2; 2];
            probabilities[class] = 0.8;
            Prediction { probabilities, class }
        };
        Ok(x.iter().map(one).collect())
    }
}

struct Site {
    plant: Plant,
    hmi: MemoryBus,
    events: mpsc::Receiver<BusEvent>,
    unsigned: Vec<String>,
    triggers: Option<Triggers>,
}

impl Site {
    /// A cloud, an edge and two devices that answer; `unsigned` comes without a signature.
    async fn new(unsigned: &[&str]) -> Self {
        Self::with_triggers(unsigned, None).await
    }

    /// The same with a cloud whose rounds these open, and devices that watch for drift.
    async fn with_triggers(unsigned: &[&str], triggers: Option<Triggers>) -> Self {
        let plant = Plant::new(1, 2, 0, &Faults::none(1));
        let (hmi, events) = plant.site_buses[&name("site0")].connect("hmi", None);
        let heard = ["reply/+", "kpi", "event/drift"].map(|leaf| format!("{DEVICE}/{leaf}"));
        hmi.subscribe(&heard).unwrap();
        let unsigned = unsigned.iter().map(|&name| name.to_owned()).collect();
        let mut site = Self { plant, hmi, events, unsigned, triggers };
        for node in ["cloud", "edge0", "dev0-0", "dev0-1"] {
            site.start(node);
        }
        sleep(Duration::from_secs(5)).await;
        site
    }

    fn start(&mut self, node: &str) {
        let mut parts = self.plant.parts(&name(node));
        parts.policy = CommandPolicy::new(self.unsigned.iter().map(String::as_str)).unwrap();
        parts.learning.triggers = self.triggers.filter(|_| node == "cloud");
        parts.drift = self.triggers.map(|_| DriftConfig {
            reference: 64,
            recent: 32,
            every: 1,
            alpha: 0.001,
        });
        let feature = Binds::Feature { model: name("toy") };
        let tag = Tag::new(&format!("plant/{node}"), Format::Json, "", feature).unwrap();
        parts.answering = (node != "cloud").then(|| Answering {
            lane: AnswerLane::Windows(inline_serve_lane(Model)),
            tags: vec![tag],
            busy: Arc::new(Busy::default()),
            max_gap_ms: 5_000,
            stale_after_ms: 600_000,
            cascade: None,
        });
        self.plant.run(parts);
    }

    async fn restart(&mut self, node: &str) {
        self.plant.running.remove(&name(node)).unwrap().stop("test", 0).await;
        self.start(node);
        sleep(Duration::from_secs(2)).await;
    }

    /// Rounds that the cloud has opened.
    fn rounds(&self) -> usize {
        let opened = |event: &Event| matches!(event, Event::RoundOpen { .. });
        self.plant.entries("cloud").iter().filter(|event| opened(event)).count()
    }

    fn now(&self) -> u64 {
        self.plant.clock.now().wall.0
    }

    fn publish(&self, topic: &str, payload: &str, retain: bool) {
        let (topic, payload) = (topic.to_owned(), payload.as_bytes().to_vec());
        let (at_least_once, priority) = (true, Priority::Control);
        self.hmi.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
    }

    /// The next message of the device on `reply/{name}` or `kpi`.
    async fn hears(&mut self, leaf: &str) -> Value {
        let topic = format!("{DEVICE}/{leaf}");
        let heard = timeout(Duration::from_secs(30), async {
            loop {
                if let BusEvent::Delivery(delivery) = self.events.recv().await.unwrap() {
                    delivery.ack.release();
                    if delivery.topic == topic {
                        return serde_json::from_slice(&delivery.payload).unwrap();
                    }
                }
            }
        });
        heard.await.unwrap()
    }

    async fn asks(&mut self, id: &str, sample: f32) {
        let request = json!({"id": id, "input": [sample]}).to_string();
        self.publish(&format!("{DEVICE}/infer/toy"), &request, false);
        assert_eq!(self.hears("reply/infer").await["status"], "ok");
    }

    /// The machine says a sample each second, for so long.
    async fn works(&self, samples: &[u32]) {
        for sample in samples {
            self.publish("plant/dev0-0", &sample.to_string(), false);
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Sends a label; gives what became of it: the word of the refusal, or the three counts.
    async fn says(&mut self, label: &str) -> String {
        self.publish(&format!("{DEVICE}/feedback/toy"), label, false);
        let reply = self.hears("reply/feedback").await;
        match reply["error"]["kind"].as_str() {
            Some(kind) => {
                assert!(!reply["error"]["hint"].as_str().unwrap().is_empty());
                kind.to_owned()
            }
            None => ["labelled", "repeated", "contradicted"]
                .map(|of| reply["data"][of].to_string())
                .join(" "),
        }
    }

    fn counted(&self, node: &str, kind: &str) -> u64 {
        let view = self.plant.running[&name(node)].figures.view();
        view.counted.get(kind).copied().unwrap_or(0)
    }
}

#[test]
fn late_labels_judge_answers_to_requests_and_on_tags_and_kpi_and_status_show_it() {
    paused(async {
        let mut site = Site::new(&["infer", "status", "feedback"]).await;
        assert_eq!(site.hears("kpi").await["online_accuracy"], Value::Null);
        site.asks("q-1", 1.0).await;
        site.asks("q-2", 0.0).await;
        let from = site.now();
        site.works(&[0, 1, 1, 0]).await;
        let to = site.now();
        sleep(Duration::from_millis(10)).await;
        site.works(&[1]).await;
        sleep(Duration::from_secs(3_600)).await; // inspection takes its time
        assert_eq!(site.says(r#"{"id":"q-1","label":"b"}"#).await, "1 0 0");
        assert_eq!(site.says(r#"{"id":"q-2","label":1}"#).await, "1 0 0", "the answer was wrong");
        let shift = json!({"from": from, "to": to, "label": "b"}).to_string();
        assert_eq!(
            site.says(&shift).await,
            "4 0 0",
            "half of them were wrong; the last is outside"
        );
        assert_eq!(site.says(&shift).await, "0 4 0", "a broker may deliver twice");
        while site.hears("kpi").await["labels"] != 6 {}
        let kpi = site.hears("kpi").await;
        assert_eq!(kpi["online_accuracy"], 0.5);
        // scipy 1.17: binomtest(3, 6).proportion_ci(method="wilson")
        for (key, wanted) in [("online_accuracy_low", 0.187_61), ("online_accuracy_high", 0.812_39)]
        {
            assert!((kpi[key].as_f64().unwrap() - wanted).abs() < 1e-4, "{key} {kpi}");
        }
        site.publish(&format!("{DEVICE}/cmd/status"), "", false);
        let online = site.hears("reply/status").await["data"]["online"][0].clone();
        assert_eq!(
            (&online["version"], &online["labelled"], &online["right"]),
            (&json!(0), &json!(6), &json!(3))
        );
        assert_eq!(site.counted("dev0-0", "feedback_repeated"), 4);
    });
}

#[test]
fn what_is_refused_says_why_is_counted_and_changes_nothing() {
    paused(async {
        let mut site = Site::new(&["infer", "feedback"]).await;
        site.asks("q-1", 1.0).await;
        let from = site.now();
        site.works(&[1]).await;
        let to = site.now();
        let about = |from: u64, to: u64| json!({"from": from, "to": to, "label": "b"}).to_string();
        assert_eq!(site.says(r#"{"id":"q-1","label":"b"}"#).await, "1 0 0");
        let day = 86_400_000;
        for (label, word) in [
            (r#"{"id":"q-1","label":"a"}"#.to_owned(), "feedback_contradicts"),
            (r#"{"id":"q-9","label":"b"}"#.to_owned(), "feedback_unknown_request"),
            (r#"{"id":"q-1","label":"c"}"#.to_owned(), "feedback_unknown_label"),
            (about(to, from), "feedback_empty_span"),
            (about(from, site.now() + 60_000), "feedback_in_the_future"),
            (about(to - day - 1, to), "feedback_too_wide"),
            (about(from - 2_000, from - 1_000), "feedback_no_answers"),
            ("not json".to_owned(), "not_json"),
        ] {
            assert_eq!(site.says(&label).await, word, "{label}");
            assert_eq!(site.counted("dev0-0", word), 1, "{word}");
        }
        site.publish(&format!("{DEVICE}/feedback/other"), &about(from, to), false);
        assert_eq!(site.hears("reply/feedback").await["error"]["kind"], "unknown_model");
        site.publish(&format!("{EDGE}/feedback/toy"), "{}", false);
        assert_eq!(site.plant.running[&name("dev0-0")].figures.view().labels, 1);
        assert_eq!(site.says(&about(from, to)).await, "1 0 0", "the twin of the times above");
        // Kept by the broker it comes again with each connection: the first time it is news, then it isn't.
        site.publish(&format!("{DEVICE}/feedback/toy"), &about(from, to), true);
        assert_eq!(site.hears("reply/feedback").await["data"]["repeated"], 1);
        site.restart("dev0-0").await;
        assert_eq!(site.hears("reply/feedback").await["error"]["kind"], "retained");
    });
}

#[test]
fn a_node_whose_settings_do_not_name_it_takes_no_labels() {
    paused(async {
        let mut site = Site::new(&["infer"]).await;
        site.asks("q-1", 1.0).await;
        assert_eq!(site.says(r#"{"id":"q-1","label":"b"}"#).await, "not_allowed");
        assert_eq!(site.counted("dev0-0", "not_allowed"), 1);
    });
}

#[test]
fn labels_come_from_the_site_and_stay_in_it() {
    paused(async {
        let mut site = Site::new(&["infer", "feedback"]).await;
        let (federation, mut heard) = site.plant.federation_bus.connect("eavesdropper", None);
        federation.subscribe(&["#".to_owned()]).unwrap();
        site.asks("q-1", 1.0).await;
        let at_edge = format!("{EDGE}/infer/toy");
        site.publish(&at_edge, r#"{"id":"e-1","input":[1.0]}"#, false);
        assert_eq!(site.says(r#"{"id":"q-1","label":"b"}"#).await, "1 0 0");
        // From the federation's side nobody labels an edge's answers, and nobody the cloud's at all.
        for node in [EDGE, "gaisnet/v1/_/_/cloud"] {
            let (topic, payload) =
                (format!("{node}/feedback/toy"), br#"{"id":"e-1","label":"b"}"#.to_vec());
            let (at_least_once, retain, priority) = (true, false, Priority::Control);
            federation
                .publish(Publish { topic, payload, at_least_once, retain, priority })
                .unwrap();
        }
        site.plant.running[&name("cloud")].order(gaisnet::protocol::Input::StartRound).await;
        sleep(Duration::from_secs(60)).await;
        let labels = |node: &str| site.plant.running[&name(node)].figures.view().labels;
        assert_eq!([labels("dev0-0"), labels("edge0"), labels("cloud")], [1, 0, 0]);
        site.publish(&format!("{EDGE}/feedback/toy"), r#"{"id":"e-1","label":"b"}"#, false);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(
            site.plant.running[&name("edge0")].figures.view().labels,
            1,
            "its twin on the site's side"
        );
        let mut others = 0;
        while let Ok(event) = heard.try_recv() {
            let BusEvent::Delivery(delivery) = event else { continue };
            delivery.ack.release();
            if delivery.topic.contains("/feedback/") {
                continue; // our own
            }
            others += 1;
            let text = String::from_utf8_lossy(&delivery.payload);
            assert!(!text.contains("q-1") && !text.contains("e-1"), "{} {text}", delivery.topic);
            assert!(!delivery.topic.contains("/reply/"), "{}", delivery.topic);
        }
        assert!(others > 3, "a round went over the federation's broker");
    });
}

/// What opens rounds here: half an hour apart at least.
fn triggers(drifts: u64, labels: u64) -> Triggers {
    Triggers { every_ms: 0, drifts, labels, apart_ms: 1_800_000 }
}

#[test]
fn enough_labels_open_one_round_whoever_dies_between_and_the_next_ones_another() {
    paused(async {
        let mut site = Site::with_triggers(&["infer", "feedback"], Some(triggers(0, 3))).await;
        sleep(Duration::from_secs(1_800)).await;
        for (at, node) in [(0, "dev0-0"), (1, "edge0"), (2, "cloud")] {
            assert_eq!(site.rounds(), 0, "two labels aren't enough");
            let id = format!("q-{at}");
            site.asks(&id, 1.0).await;
            let label = json!({"id": id, "label": "b"}).to_string();
            assert_eq!(site.says(&label).await, "1 0 0");
            assert_eq!(site.says(&label).await, "0 1 0");
            site.restart(node).await;
            sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(site.rounds(), 1);
        for node in ["cloud", "edge0", "dev0-0"] {
            site.restart(node).await;
        }
        sleep(Duration::from_secs(1_900)).await;
        assert_eq!(site.rounds(), 1, "what was told again opened nothing");
        assert!(site.plant.versions().await.values().all(|version| *version == 1));
        let from = site.now();
        site.works(&[1, 1, 0]).await;
        let shift = json!({"from": from, "to": site.now(), "label": "b"}).to_string();
        assert_eq!(site.says(&shift).await, "3 0 0");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(site.rounds(), 2);
    });
}

#[test]
fn a_device_whose_inputs_move_says_so_once_and_the_cloud_opens_a_round() {
    paused(async {
        let mut site = Site::with_triggers(&["infer"], Some(triggers(1, 0))).await;
        sleep(Duration::from_secs(1_800)).await;
        let steady: Vec<u32> = (0..128).map(|at| at * 7 % 10).collect();
        site.works(&steady).await;
        let kpi = site.hears("kpi").await;
        assert_eq!((&kpi["drifts"], site.rounds()), (&json!(0), 0), "nothing has changed");
        let moved: Vec<u32> = steady.iter().map(|sample| sample + 6).collect();
        site.works(&moved[..100]).await;
        let event = site.hears("event/drift").await;
        assert_eq!((&event["kind"], &event["subject"]), (&json!("drift"), &json!("toy")));
        while site.hears("kpi").await["drifts"] != 1 {}
        sleep(Duration::from_secs(60)).await;
        assert_eq!(site.rounds(), 1);
        sleep(Duration::from_secs(1_900)).await;
        site.works(&moved).await;
        assert_eq!(site.rounds(), 1, "the new version knows nothing else");
    });
}
