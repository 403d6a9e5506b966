//! A plant at work whose versions are rolled out: nodes, tags, labels, commands, and a model that can be made ill.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gaisnet::actors::Busy;
use gaisnet::actors::lanes::inline_serve_lane;
use gaisnet::bus::memory::{Faults, MemoryBus};
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::ids::BootId;
use gaisnet::learn::{DriftConfig, LearnError, Prediction, Predictor, TensorSet};
use gaisnet::ledger::Event;
use gaisnet::node::{AnswerLane, Answering};
use gaisnet::protocol::{Input, update};
use gaisnet::scada::command::CommandPolicy;
use gaisnet::scada::tags::{Binds, Format, Tag};
use gaisnet::topic::{Branch, CommandName, Prefix};
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Body, Command};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::federation::{Plant, key_of, name};

pub(crate) const DEVICES: [&str; 4] = ["dev0-0", "dev0-1", "dev0-2", "dev0-3"];

/// The same where there are two sites.
pub(crate) const OF_BOTH: [&str; 4] = ["dev0-0", "dev0-1", "dev1-0", "dev1-1"];

/// What is wrong with an adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ill {
    /// Each answer is the other class.
    Wrong,
    /// No answer is a probability; the built-in window is answered.
    Sick,
    /// Not even that.
    Dead,
}

/// Illnesses by the adapter's first value.
type Illnesses = Arc<Mutex<BTreeMap<u32, Ill>>>;

/// Answers whether a sample is above a half.
struct Model {
    ill: Illnesses,
    adapter: f32,
}

impl Predictor for Model {
    fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
        self.adapter = adapter.tensors()[0].data[0];
        Ok(())
    }

    fn predict(&mut self, x: &[f32], _: usize) -> Result<Vec<Prediction>, LearnError> {
        let ill = self.ill.lock().unwrap().get(&self.adapter.to_bits()).copied();
        let one = |x: &f32| {
            // What comes from the plant is 0 or 1; the built-in window is something else.
            let of_plant = [0.0, 1.0].contains(x);
            let class = usize::from((*x > 0.5) != (ill == Some(Ill::Wrong)));
            let none = ill == Some(Ill::Dead) || (ill == Some(Ill::Sick) && of_plant);
            let mut probabilities = vec![if none { f32::NAN } else { 0.1 }; 2];
            probabilities[class] = if none { f32::NAN } else { 0.9 };
            Prediction { probabilities, class }
        };
        Ok(x.iter().map(one).collect())
    }
}

pub(crate) fn branch(site: &str, line: &str, node: &str) -> Branch {
    let prefix = Prefix::new("gaisnet").unwrap();
    Branch { prefix, site: name(site), line: name(line), node: name(node) }
}

pub(crate) fn edge() -> Branch {
    branch("site0", "_", "edge0")
}

fn site_of(device: &str) -> &'static str {
    if device.starts_with("dev1") { "site1" } else { "site0" }
}

/// One site, or two that the cloud decides about.
pub(crate) struct Site {
    pub(crate) plant: Plant,
    /// Where SCADA listens: each site's broker, and that of the federation as `_`.
    buses: BTreeMap<&'static str, MemoryBus>,
    events: mpsc::UnboundedReceiver<BusEvent>,
    pub(crate) sealers: BTreeMap<&'static str, Sealer>,
    ill: Illnesses,
    follow: bool,
    four_eyes: bool,
    pub(crate) devices: [&'static str; 4],
    pub(crate) steward: Branch,
    /// Devices watch whether their inputs drift.
    watches: bool,
    /// So far are the inputs off from what they were.
    pub(crate) moved: u32,
    ticks: u32,
}

impl Site {
    pub(crate) async fn new(follow: bool, four_eyes: bool) -> Self {
        let plant = Plant::new(1, 4, 0, &Faults::none(1));
        Self::of(plant, DEVICES, edge(), (follow, four_eyes, false)).await
    }

    /// One whose devices watch for drift.
    pub(crate) async fn watching() -> Self {
        let plant = Plant::new(1, 4, 0, &Faults::none(1));
        Self::of(plant, DEVICES, edge(), (true, false, true)).await
    }

    /// Two sites of two devices each.
    pub(crate) async fn two() -> Self {
        let plant = Plant::new(2, 2, 0, &Faults::none(1));
        Self::of(plant, OF_BOTH, branch("_", "_", "cloud"), (true, false, false)).await
    }

    async fn of(
        plant: Plant,
        devices: [&'static str; 4],
        steward: Branch,
        (follow, four_eyes, watches): (bool, bool, bool),
    ) -> Self {
        let (all, events) = mpsc::unbounded_channel();
        let mut buses = BTreeMap::new();
        let sites = ["site0", "site1"]
            .into_iter()
            .filter_map(|site| Some((site, plant.site_buses.get(&name(site))?)));
        for (site, broker) in sites.chain([("_", &plant.federation_bus)]) {
            let (bus, mut events) = broker.connect("hmi", None);
            bus.subscribe(&[format!("gaisnet/v1/{site}/+/+/reply/+")]).unwrap();
            buses.insert(site, bus);
            let all = all.clone();
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    let _ = all.send(event);
                }
            });
        }
        let sealer = |node: &'static str| {
            let own = branch("_", "_", node);
            (node, Sealer::new(key_of(&name(node)), name("fed"), own, BootId([77; 16])))
        };
        let sealers = [sealer("ops"), sealer("anna")].into();
        let (ill, moved, ticks) = (Illnesses::default(), 0, 0);
        let mut site = Self {
            plant,
            buses,
            events,
            sealers,
            ill,
            follow,
            four_eyes,
            devices,
            steward,
            watches,
            moved,
            ticks,
        };
        for node in site.owners().iter().chain(&devices) {
            site.start(node);
        }
        sleep(Duration::from_secs(5)).await;
        site
    }

    fn owners(&self) -> &'static [&'static str] {
        if self.devices == OF_BOTH { &["cloud", "edge0", "edge1"] } else { &["cloud", "edge0"] }
    }

    fn start(&mut self, node: &str) {
        let mut parts = self.plant.parts(&name(node));
        parts.policy =
            CommandPolicy::new(["infer", "rollout.status", "model.list", "feedback"]).unwrap();
        parts.rollout.steward = node == self.steward.node.as_str();
        // An edge passes on what its cloud decides, where that does.
        parts.rollout.follow = node.starts_with("edge") && !parts.rollout.steward;
        parts.rollout.four_eyes = self.four_eyes;
        if self.devices.contains(&node) {
            let drift = DriftConfig { reference: 32, recent: 16, every: 1, alpha: 0.001 };
            parts.drift = self.watches.then_some(drift);
            parts.rollout.follow = self.follow;
            let feature = Binds::Feature { model: name("toy") };
            let tag = |topic: String, binds| Tag::new(&topic, Format::Json, "", binds).unwrap();
            parts.answering = Some(Answering {
                lane: AnswerLane::Windows(inline_serve_lane(Model {
                    ill: Arc::clone(&self.ill),
                    adapter: 0.0,
                })),
                tags: vec![
                    tag(format!("plant/{node}"), feature),
                    tag(format!("plant/{node}/label"), Binds::Label),
                ],
                busy: Arc::new(Busy::default()),
                max_gap_ms: 5_000,
                stale_after_ms: 600_000,
                cascade: None,
            });
        }
        self.plant.run(parts);
    }

    pub(crate) async fn restart(&mut self, node: &str) {
        self.plant.running.remove(&name(node)).unwrap().stop("test", 0).await;
        self.start(node);
        sleep(Duration::from_secs(3)).await;
    }

    /// One version more, known to all. Gives its adapter's first value.
    pub(crate) async fn round(&mut self) -> u32 {
        let known = async |site: &Self| *site.plant.versions().await.values().min().unwrap();
        let before = known(self).await;
        self.plant.running[&name("cloud")].order(Input::StartRound).await;
        for _ in 0..200 {
            sleep(Duration::from_secs(1)).await;
            if known(self).await > before {
                sleep(Duration::from_secs(2)).await;
                let (_, bytes) = self.plant.running[&name("edge0")].serving.borrow().clone();
                return update::unpack(&bytes).unwrap().tensors()[0].data[0].to_bits();
            }
        }
        panic!("no new version");
    }

    pub(crate) fn falls_ill(&self, adapter: u32, ill: Ill) {
        self.ill.lock().unwrap().insert(adapter, ill);
    }

    /// The plant at work: each device's machine tells a label and a sample a second.
    pub(crate) async fn works(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.ticks += 1;
            let class = self.ticks % 2;
            for device in self.devices {
                let label = if class == 1 { "b" } else { "a" };
                self.publish(format!("plant/{device}/label"), format!("\"{label}\"").into_bytes());
                self.publish(
                    format!("plant/{device}"),
                    (class + self.moved).to_string().into_bytes(),
                );
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// The plant at work, of whose windows nothing is known until quality inspection has looked: it labels ten seconds that
    /// are over, on each machine, if it does at all.
    pub(crate) async fn works_and_inspects(&mut self, inspects: bool) {
        for class in [0, 1] {
            sleep(Duration::from_millis(100)).await;
            let from = self.plant.clock.now().wall.0;
            for _ in 0..10 {
                for device in self.devices {
                    self.publish(format!("plant/{device}"), class.to_string().into_bytes());
                }
                sleep(Duration::from_secs(1)).await;
            }
            let to = self.plant.clock.now().wall.0;
            let label = json!({"from": from, "to": to, "label": class}).to_string();
            for device in self.devices.into_iter().filter(|_| inspects) {
                let topic = branch(site_of(device), "line", device).feedback(&name("toy"));
                self.publish(topic, label.clone().into_bytes());
                let data = self.reply().await["data"].clone();
                assert_eq!(data, json!({"labelled": 10, "repeated": 0, "contradicted": 0}));
            }
        }
    }

    /// At the broker of the topic's site.
    pub(crate) fn publish(&self, topic: String, payload: Vec<u8>) {
        let site = topic.strip_prefix("gaisnet/v1/").and_then(|rest| rest.split('/').next());
        let site = site.unwrap_or_else(|| site_of(topic.trim_start_matches("plant/")));
        let bus = &self.buses[site];
        let (at_least_once, retain, priority) = (true, false, Priority::Control);
        bus.publish(Publish { topic, payload, at_least_once, retain, priority }).unwrap();
    }

    /// At the federation's broker, whatever the topic says.
    pub(crate) fn at_the_cloud(&self, topic: String, payload: Vec<u8>) {
        let (at_least_once, retain, priority) = (true, false, Priority::Control);
        let message = Publish { topic, payload, at_least_once, retain, priority };
        self.buses["_"].publish(message).unwrap();
    }

    pub(crate) async fn reply(&mut self) -> Value {
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

    /// Signs a command of `by` for a node, sends it and waits for its reply.
    pub(crate) async fn command(
        &mut self,
        by: &'static str,
        to: Branch,
        command: &str,
        args: Value,
    ) -> Value {
        let to = To::Command(to, CommandName::new(command).unwrap());
        let json = serde_json::to_vec(&json!({ "args": args })).unwrap();
        let body = Body::Command(Command { name: command.into(), json });
        let now = self.plant.clock.now().wall;
        let (topic, bytes) = self.sealers.get_mut(by).unwrap().seal(&to, &body, 0, 0, now).unwrap();
        self.publish(topic, bytes);
        self.reply().await
    }

    /// The same for the steward; gives its word, or `ok`.
    pub(crate) async fn orders(&mut self, command: &str, args: Value) -> String {
        outcome(&self.command("ops", self.steward.clone(), command, args).await)
    }

    pub(crate) async fn plans(&mut self, version: u64, stages: Value) -> String {
        let args = json!({"model": "toy", "version": version, "automatic": true, "stages": stages});
        self.orders("rollout.plan", args).await
    }

    pub(crate) async fn begins(&mut self, version: u64, stages: Value) {
        assert_eq!(self.plans(version, stages).await, "ok");
        assert_eq!(self.orders("rollout.start", json!({"model": "toy"})).await, "ok");
        sleep(Duration::from_secs(2)).await;
    }

    pub(crate) async fn status(&mut self) -> Value {
        let topic = format!("{}/cmd/rollout.status", self.steward);
        self.publish(topic, br#"{"args":{"model":"toy"}}"#.to_vec());
        let reply = self.reply().await;
        assert_eq!(reply["status"], "ok", "{reply}");
        reply["data"]["rollout"].clone()
    }

    /// The versions that the devices answer by, in their order.
    pub(crate) async fn answers(&mut self) -> Vec<u64> {
        let mut versions = Vec::new();
        for device in self.devices {
            let topic = format!("gaisnet/v1/{}/line/{device}/infer/toy", site_of(device));
            self.publish(topic, br#"{"input":[1.0]}"#.to_vec());
            versions.push(self.reply().await["model_version"].as_u64().unwrap());
        }
        versions
    }

    /// What a node's ledger says of versions and stages.
    pub(crate) fn story(&self, node: &str) -> Vec<String> {
        let mut story = Vec::new();
        for event in self.plant.entries(node) {
            match event {
                Event::Rollout { version, .. } => story.push(format!("serves {version}")),
                Event::Rollback { from, reason, to } => {
                    story.push(format!("{from} to {to}: {}", reason.as_str()));
                }
                Event::RolloutStep { outcome, stage, .. } => {
                    story.push(format!("{} {}", stage.as_str(), outcome.as_str()));
                }
                _ => {}
            }
        }
        story
    }

    /// Lets the plant work until nothing is rolled out any more; gives the seconds that took.
    pub(crate) async fn until_over(&mut self) -> u32 {
        for seconds in 0..1_200 {
            if self.status().await["version"].is_null() {
                return seconds;
            }
            self.works(1).await;
        }
        panic!("it never ends: {}", self.status().await);
    }

    pub(crate) fn counted(&self, node: &str, kind: &str) -> u64 {
        let view = self.plant.running[&name(node)].figures.view();
        view.counted.get(kind).copied().unwrap_or(0)
    }
}

pub(crate) fn outcome(reply: &Value) -> String {
    match reply["error"]["kind"].as_str() {
        Some(kind) => kind.to_owned(),
        None => reply["status"].as_str().unwrap().to_owned(),
    }
}

fn gate(rules: &Value) -> Value {
    let mut gate = json!({
        "least_answers": 32, "least_nodes": 1, "least_ms": 60_000, "most_ms": 900_000, "delta": 0.1,
        "max_errors": 0.2,
        "expected": {"answers": 600, "judged": 600, "base_judged": 600, "compared": 600},
    });
    gate.as_object_mut().unwrap().extend(rules.as_object().unwrap().clone());
    gate
}

pub(crate) fn stage(stage: &str, nodes: &[&str], rules: &Value) -> Value {
    json!({"stage": stage, "nodes": nodes, "gate": gate(rules)})
}
