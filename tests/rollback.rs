//! Going back to the version before: by a signed command, by failed checks, on a node that is stopped. Whole nodes
//! on the in-memory bus under a paused clock, with a toy model that can be made sick.

#![cfg(feature = "runtime")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]
#![allow(clippy::cast_precision_loss, reason = "a number of a device")]

#[path = "support/federation.rs"]
mod federation;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use federation::{Plant, key_of, name, paused};
use gaisnet::actors::Busy;
use gaisnet::actors::lanes::inline_serve_lane;
use gaisnet::bus::memory::{Faults, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::ids::BootId;
use gaisnet::learn::{LearnError, Prediction, Predictor, TensorSet};
use gaisnet::ledger::Event;
use gaisnet::node::{AnswerLane, Answering, roll_back_at_rest};
use gaisnet::protocol::Input;
use gaisnet::scada::command::CommandPolicy;
use gaisnet::topic::{Branch, CommandName, Prefix};
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Body, Command};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

const DEVICE: &str = "gaisnet/v1/site0/line/dev0-0";

/// What makes a version sick, for all lives of the device.
#[derive(Default)]
struct Sickness {
    /// From now on adapters that are loaded answer nothing that is a number.
    infects: AtomicBool,
}

/// Answers 0, or nothing that is a probability where its adapter came while the sickness went round.
struct Model {
    sickness: Arc<Sickness>,
    healthy: Vec<f32>,
    adapter: f32,
}

impl Predictor for Model {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        self.adapter = adapter.tensors()[0].data[0];
        if !self.sickness.infects.load(Ordering::Relaxed) {
            self.healthy.push(self.adapter);
        }
        Ok(())
    }

    fn predict(&mut self, _: &[f32], _: usize) -> Result<Vec<Prediction>, LearnError> {
        let healthy = self.healthy.contains(&self.adapter);
        let probabilities = if healthy { vec![0.9, 0.1] } else { vec![f32::NAN; 2] };
        Ok(vec![Prediction { probabilities, class: 0 }])
    }
}

struct Site {
    plant: Plant,
    bus: MemoryBus,
    events: mpsc::Receiver<BusEvent>,
    sealer: Sealer,
    sickness: Arc<Sickness>,
}

fn branch(site: &str, line: &str, node: &str) -> Branch {
    let prefix = Prefix::new("gaisnet").unwrap();
    Branch { prefix, site: name(site), line: name(line), node: name(node) }
}

impl Site {
    async fn new(rounds: u64) -> Self {
        let plant = Plant::new(1, 1, 0, &Faults::none(1));
        let (bus, events) = plant.site_buses[&name("site0")].connect("hmi", None);
        bus.subscribe(&[format!("{DEVICE}/reply/+")]).unwrap();
        let (key, operator) = (key_of(&name("ops")), branch("_", "_", "ops"));
        let sealer = Sealer::new(key, name("fed"), operator, BootId([77; 16]));
        let mut site = Self { plant, bus, events, sealer, sickness: Arc::default() };
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
        parts.policy = CommandPolicy::new(["infer", "status", "model.list"]).unwrap();
        if node == "dev0-0" {
            let sickness = Arc::clone(&self.sickness);
            let model = Model { sickness, healthy: vec![0.0], adapter: 0.0 };
            parts.answering = Some(Answering {
                lane: AnswerLane::Windows(inline_serve_lane(model)),
                tags: Vec::new(),
                busy: Arc::new(Busy::default()),
                max_gap_ms: 5_000,
                stale_after_ms: 600_000,
                cascade: None,
            });
        }
        self.plant.run(parts);
    }

    async fn restart_device(&mut self) {
        self.plant.running.remove(&name("dev0-0")).unwrap().stop("test", 0).await;
        self.start("dev0-0");
        sleep(Duration::from_secs(3)).await;
    }

    /// One version more, known to all.
    async fn round(&mut self) {
        let known = async |site: &Self| *site.plant.versions().await.values().min().unwrap();
        let before = known(self).await;
        self.plant.running[&name("cloud")].order(Input::StartRound).await;
        for _ in 0..200 {
            sleep(Duration::from_secs(1)).await;
            if known(self).await > before {
                return sleep(Duration::from_secs(2)).await;
            }
        }
        panic!("no new version");
    }

    /// What comes back.
    async fn reply(&mut self) -> Value {
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

    fn publish(&self, topic: String, payload: Vec<u8>) {
        let (at_least_once, retain, priority) = (true, false, Priority::Control);
        self.bus.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
    }

    /// Signs a command for the device as `gaisnet cmd sign` does: topic and bytes.
    fn signed(&mut self, command: &str, args: &Value) -> (String, Vec<u8>) {
        let to = To::Command(branch("site0", "line", "dev0-0"), CommandName::new(command).unwrap());
        let json = serde_json::to_vec(&json!({ "args": args })).unwrap();
        let body = Body::Command(Command { name: command.into(), json });
        self.sealer.seal(&to, &body, 0, 0, self.plant.clock.now().wall).unwrap()
    }

    /// Sends a signed command and waits for its reply.
    async fn command(&mut self, command: &str, args: Value) -> Value {
        let (topic, bytes) = self.signed(command, &args);
        self.publish(topic, bytes);
        self.reply().await
    }

    /// The version that answers a question, and what the answer is worth.
    async fn answers(&mut self) -> (u64, String) {
        self.publish(format!("{DEVICE}/infer/toy"), br#"{"input":[1.0]}"#.to_vec());
        let reply = self.reply().await;
        let quality = reply["quality"].as_str().unwrap().to_owned();
        (reply["model_version"].as_u64().unwrap(), quality)
    }

    /// What the device's ledger says of versions.
    fn story(&self) -> Vec<String> {
        let mut story = Vec::new();
        for event in self.plant.entries("dev0-0") {
            match event {
                Event::Rollout { version, .. } => story.push(format!("serves {version}")),
                Event::Rollback { from, reason, to } => {
                    story.push(format!("{from} to {to}: {}", reason.as_str()));
                }
                Event::Command { name, outcome, operator: Some(operator), .. } => {
                    let (name, outcome) = (name.as_str(), outcome.as_str());
                    story.push(format!("{operator}: {name} {outcome}"));
                }
                _ => {}
            }
        }
        story
    }
}

fn good(version: u64) -> (u64, String) {
    (version, "good".to_owned())
}

#[test]
fn a_signed_rollback_is_served_from_the_next_answer_on_and_newer_rounds_wait_for_a_release() {
    paused(async {
        let mut site = Site::new(2).await;
        assert_eq!(site.answers().await, good(2));
        let reply = site.command("rollback", json!({"model": "toy", "version": 1})).await;
        let serving = json!({"served": 1, "versions": [1, 2], "held_since": 2, "floor": 0});
        assert_eq!((&reply["status"], &reply["data"]["serving"]), (&json!("ok"), &serving));
        assert_eq!(site.answers().await, good(1));
        site.round().await;
        site.restart_device().await;
        assert_eq!(site.answers().await, good(1), "it learns on, and serves what it was told to");
        assert_eq!(site.plant.versions().await[&name("dev0-0")], 3);
        site.command("version.release", json!({"model": "toy", "version": 3})).await;
        assert_eq!(site.answers().await, good(3));
        site.round().await;
        assert_eq!(site.answers().await, good(4));
        assert_eq!(
            site.story(),
            ["serves 1", "serves 2", "ops: rollback ok", "2 to 1: operator"]
                .into_iter()
                .chain(["ops: version.release ok", "serves 3", "serves 4"])
                .collect::<Vec<_>>()
        );
    });
}

#[test]
fn what_is_no_way_back_is_refused_with_what_is_there_and_changes_nothing() {
    paused(async {
        let mut site = Site::new(3).await;
        let before = site.plant.running[&name("dev0-0")].view().await.unwrap().slots;
        for (command, args, kind, says) in [
            ("rollback", json!({"model": "toy", "version": 1}), "version_never_had", "it has 2, 3"),
            ("rollback", json!({"model": "toy", "version": 3}), "version_already_served", "3"),
            ("rollback", json!({"model": "other"}), "unknown_model", "other"),
            ("version.release", json!({"model": "toy", "version": 3}), "nothing_held", "as they"),
            (
                "version.floor",
                json!({"model": "toy", "version": 4}),
                "floor_out_of_reach",
                "0 to 3",
            ),
        ] {
            let reply = site.command(command, args).await;
            assert_eq!(reply["error"]["kind"], kind, "{reply}");
            assert!(reply["error"]["message"].as_str().unwrap().contains(says), "{reply}");
            assert!(!reply["error"]["hint"].as_str().unwrap().is_empty());
        }
        // Plain, and by who is no operator: never.
        site.publish(format!("{DEVICE}/cmd/rollback"), br#"{"args":{"model":"toy"}}"#.to_vec());
        assert_eq!(site.reply().await["error"]["kind"], "needs_signature");
        let view = site.plant.running[&name("dev0-0")].view().await.unwrap();
        assert_eq!(view.slots, before);
        assert_eq!(site.answers().await, good(3));
        // The same order works once.
        let order = site.signed("rollback", &json!({"model": "toy"}));
        site.publish(order.0.clone(), order.1.clone());
        assert_eq!(site.reply().await["status"], "ok");
        site.command("version.release", json!({"model": "toy", "version": 3})).await;
        site.publish(order.0, order.1);
        assert_eq!(site.answers().await, good(3), "a repeat of a captured rollback does nothing");
    });
}

#[test]
fn a_version_that_fails_its_checks_is_given_up_and_stays_so() {
    paused(async {
        let mut site = Site::new(1).await;
        assert_eq!(site.answers().await, good(1));
        site.sickness.infects.store(true, Ordering::Relaxed);
        site.round().await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(site.answers().await, good(1), "it went back by itself");
        site.sickness.infects.store(false, Ordering::Relaxed);
        site.round().await;
        assert_eq!(site.answers().await, good(1), "what was made of it waits");
        assert_eq!(site.story(), ["serves 1", "serves 2", "2 to 1: failed_checks"]);
        site.restart_device().await;
        assert_eq!(site.answers().await, good(1));
        site.command("version.release", json!({"model": "toy", "version": 3})).await;
        assert_eq!(site.answers().await, good(3));
    });
}

#[test]
fn below_the_floor_goes_a_signer_and_no_failed_check() {
    paused(async {
        let mut site = Site::new(2).await;
        let reply = site.command("version.floor", json!({"model": "toy", "version": 2})).await;
        assert_eq!(reply["data"]["serving"]["floor"], 2, "{reply}");
        let reply = site.command("rollback", json!({"model": "toy"})).await;
        assert_eq!(reply["data"]["serving"]["served"], 1, "{reply}");
        assert_eq!(site.answers().await, good(1));
        let mut site = Site::new(1).await;
        site.command("version.floor", json!({"model": "toy", "version": 1})).await;
        site.sickness.infects.store(true, Ordering::Relaxed);
        site.restart_device().await;
        sleep(Duration::from_secs(10)).await;
        let (version, quality) = site.answers().await;
        assert_eq!((version, quality.as_str()), (1, "bad"), "said, and not hidden");
        assert!(site.story().iter().all(|line| !line.contains(" to ")));
    });
}

#[test]
fn a_stopped_node_is_rolled_back_at_its_own_terminal_and_its_ledger_says_so() {
    paused(async {
        let mut site = Site::new(2).await;
        let device = name("dev0-0");
        site.plant.running.remove(&device).unwrap().stop("test", 0).await;
        let (mut store, key) = (site.plant.stores[&device].clone(), key_of(&device));
        let now = site.plant.clock.now().wall;
        let mut at_rest = |to| roll_back_at_rest(&mut store, &key, &name("fed"), &device, to, now);
        let refused = at_rest(Some(7)).unwrap_err();
        assert_eq!(refused.to_string(), "version 7 isn't on this node; it has 1, 2");
        assert_eq!(at_rest(None).unwrap().served, 1);
        assert!(at_rest(None).is_err(), "nothing before that");
        // It starts: its ledger is what its last head says.
        site.start("dev0-0");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(site.answers().await, good(1));
        site.round().await;
        assert_eq!(site.answers().await, good(1));
        assert_eq!(site.story(), ["serves 1", "serves 2", "2 to 1: local"]);
    });
}
