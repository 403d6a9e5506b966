//! An answer over MQTT beside a bare round trip of the same bytes plus the forward pass alone.
//!
//! ```text
//! ours: rumqttc -> mosquitto -> node (gateway, inferencer, serve lane) -> mosquitto -> rumqttc
//! bare: rumqttc -> mosquitto -> rumqttc echo                          -> mosquitto -> rumqttc
//! ```

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use actix::prelude::*;
use gaisnet::data::bearings;
use gaisnet::ids::Digest;
use gaisnet::node::{self, Brain, Identity, brain, parts_of};
use gaisnet::protocol::update;
use gaisnet::rng::Stream;
use gaisnet::settings::{Layers, PILOT, Settings, Tier};
use tokio::sync::oneshot;

use super::bare::{self, Asker, Echo};
use super::plant::{DEVICE, EDGE, Plant, key, name};
use super::stats::{Effort, Row, median, micros_each};
use super::support::Mosquitto;

pub fn run(effort: Effort, report: &mut dyn FnMut(Row)) {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let port = mosquitto.port;
    let store = tempfile::tempdir().unwrap();
    let mut alone = engine(&settings(port, store.path()));
    let alone = alone.predictor().unwrap();
    let _node = Running::start(port, store.path());
    let (window, question) = question();

    let branch = Plant::new().branch(DEVICE).to_string();
    let (ask, answer) = (format!("{branch}/infer/{MODEL}"), format!("{branch}/reply/infer"));
    let mut ours = Asker::new(port, "asker", &ask, &answer, question.clone());
    let first = first_answer(&mut ours);
    let _echo = Echo::start(port, first.len());
    let mut bare = Asker::new(port, "bare-asker", bare::TOPIC, bare::BACK, question);

    let count = effort.count(400);
    let (mut answers, mut trips, mut passes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.turns() {
        answers.extend(ours.millis(count));
        trips.extend(bare.millis(count));
        let pass = |_| assert!(alone.predict(&window, window.len()).is_ok());
        passes.push(micros_each(count, pass) / 1_000.0);
    }
    let pass = median(&mut passes);
    let [p50, p99] = [0.50, 0.99].map(|part| (at(&mut answers, part), at(&mut trips, part) + pass));
    let rows = [
        Row::new("answer p50", p50, "ms", "round trip + forward pass; target within 1 ms"),
        Row::new("answer p99", p99, "ms", "round trip + forward pass"),
        Row::new("forward pass", (pass, at(&mut trips, 0.50)), "ms", "the bare round trip"),
    ];
    rows.into_iter().for_each(report);
}

/// A whole device node; ends when dropped.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(port: u16, store: &std::path::Path) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (up, is_up) = mpsc::channel();
        let settings = settings(port, store);
        let body = async move {
            let plant = Plant::new();
            let identity = Identity {
                prefix: plant.prefix.clone(),
                me: name(DEVICE),
                key: key(DEVICE),
                keyring: Arc::clone(&plant.keyring),
                boot: gaisnet::ids::BootId([2; 16]),
                config: Digest([0; 32]),
            };
            let parts = parts_of(&settings, identity, engine(&settings), None).unwrap();
            let node = node::start(parts).unwrap();
            up.send(()).unwrap();
            let _ = stopped.await;
            node.stop("benchmark", 100).await;
        };
        let thread = thread::spawn(move || System::new().block_on(body));
        is_up.recv().unwrap();
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Its subscription may come after the first question: that one is lost.
fn first_answer(asker: &mut Asker) -> Vec<u8> {
    for _ in 0..100 {
        if let Some(answer) = asker.ask(Duration::from_millis(200)) {
            asker.drain();
            return answer;
        }
    }
    panic!("the node doesn't answer")
}

fn settings(port: u16, store: &std::path::Path) -> Settings {
    let mut layers = Layers::new();
    let learner = if cfg!(feature = "torch") { "signal-transformer" } else { "softmax" };
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/models/signal-bearing.toml");
    let own = format!(
        "node.name = {DEVICE:?}\nnode.site = \"_\"\nnode.line = \"_\"\nnode.parent = {EDGE:?}\n\
         model.name = {MODEL:?}\nmodel.learner = {learner:?}\nmodel.base = {base:?}\n\
         paths.store = {:?}\nbus.site.host = \"127.0.0.1\"\nbus.site.port = {port}\n\
         commands.unsigned = [\"infer\"]\n",
        store.display().to_string()
    );
    layers.tier(Tier::Device).text("pilot", PILOT).text("benchmark", &own);
    layers.load().into_settings().unwrap()
}

/// The model with its untrained adapter.
fn engine(settings: &Settings) -> Brain {
    let mut brain = brain(settings, &Plant::new().keyring).unwrap();
    let adapter = update::unpack(&brain.adapter).unwrap();
    brain.predictor().unwrap().load(&adapter).unwrap();
    brain
}

/// A window as a sensor gateway would send it, and the request for it.
fn question() -> (Vec<f32>, Vec<u8>) {
    let mut stream = Stream::new(1, "bench/window");
    let sample = |_| (stream.normal() * 1_000.0).round() as f32 / 1_000.0;
    let window: Vec<f32> = (0..bearings::WINDOW_LEN).map(sample).collect();
    let question = serde_json::json!({ "id": "q1", "input": window });
    (window, serde_json::to_vec(&question).unwrap())
}

fn at(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * part) as usize;
    values[place.min(values.len() - 1)]
}

const MODEL: &str = "bearing";
