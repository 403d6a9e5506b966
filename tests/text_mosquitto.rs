//! A device that writes, behind a real mosquitto, asked with the shipped script: real time, the lane on
//! its own thread. The model is a toy, so that the text is known.
#![cfg(all(feature = "runtime", feature = "mqtt"))]
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
mod support;
#[path = "support/toy_generator.rs"]
mod toy_generator;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use federation::{Links, Members, learning, name, until};
use gaisnet::actors::Busy;
use gaisnet::actors::text_lane::{TextLane, Writer};
use gaisnet::bus::mqtt::MqttBus;
use gaisnet::ids::Side;
use gaisnet::learn::BatchLimits;
use gaisnet::node::{AnswerLane, Answering, Node};
use gaisnet::scada::command::CommandPolicy;
use gaisnet::store::MemoryStore;
use serde_json::Value;
use support::{Mosquitto, settings, skip};
use toy_generator::{ToyGenerator, ToyTokens};

const DEVICE: &str = "dev0-0";
const BRANCH: &str = "gaisnet/v1/site0/line/dev0-0";

/// A device that writes `a` after `a`, and `b` after `b`.
fn device(port: u16) -> Node {
    let (bus, events) = MqttBus::connect(settings(port, DEVICE), 1).unwrap();
    let links = Links::from([(Side::Up, (Arc::new(bus) as Arc<_>, events))]);
    let members = Members::new(1, 1);
    let mut parts =
        members.parts(&name(DEVICE), 1, learning(0), Box::new(MemoryStore::new()), links);
    parts.policy = CommandPolicy::new(["infer"]).unwrap();
    let writer =
        Writer { generator: Box::new(ToyGenerator::default()), tokens: Arc::new(ToyTokens) };
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
    gaisnet::node::start(parts).unwrap()
}

/// Runs the shipped script without holding up the node, which shares this thread.
async fn write(port: u16, prompt: &'static str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mqtt/write.sh");
    let run = move || {
        Command::new(script)
            .arg(prompt)
            .env("PORT", port.to_string())
            .env("BROKER", "127.0.0.1")
            .envs([("BRANCH", BRANCH), ("MODEL", "toy"), ("TOKENS", "6")])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[test]
fn the_shipped_script_shows_an_answer_piece_by_piece_and_a_refusal_with_its_reason() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let tools =
        ["jq", "mosquitto_sub"].map(|tool| Command::new(tool).arg("--help").output().is_ok());
    if tools != [true, true] {
        return skip("jq or mosquitto-clients are not installed");
    }
    actix::System::new().block_on(async {
        let node = device(mosquitto.port);
        until("the link", async || node.figures.is_connected()).await;
        let done = write(mosquitto.port, "see a").await;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        assert_eq!(String::from_utf8_lossy(&done.stdout), "aaaaaa\n");
        let answer: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&answer["text"], &answer["finish"]), (&"aaaaaa".into(), &"length".into()));
        assert_eq!((&answer["model_version"], &answer["quality"]), (&0.into(), &"good".into()));

        let long =
            "longer than the toy's context of sixty-four letters, so that there is no room at all";
        let done = write(mosquitto.port, long).await;
        assert_eq!(done.status.code(), Some(1));
        let refused: Value = serde_json::from_slice(&done.stderr).unwrap();
        assert_eq!(refused["error"]["kind"], "prompt_too_long");
        node.stop("test", 0).await;
    });
}
