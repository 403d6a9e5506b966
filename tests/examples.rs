//! The examples do what they say, against nodes that were made with the README's own commands.
//!
//! Each test asserts on what an example printed. paho and Node-RED are looked for in the cache that
//! `.ci/example-tools` fills; an example whose tools are missing is skipped, said and counted.
#![cfg(all(feature = "cli", feature = "broker"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gaisnet::bus::mqtt::MqttBus;
use gaisnet::bus::{Bus, Priority, Publish};
use gaisnet::scada::telegram::{Inference, Quality, Status};
use serde_json::Value;
use support::{Peer, free_port, settings, skip};
use tempfile::TempDir;

const BRANCH: &str = "gaisnet/v1/north/_/press-7";
const SENSOR: &str = "plant/north/press-7/vibration";

const UNSIGNED: &str = "status,infer,pause,resume,round.start,model.list,feedback";

/// A broker, nodes of the README's federation, and a sensor of the device.
struct Site {
    folder: TempDir,
    port: u16,
    processes: Vec<Child>,
    measuring: Arc<AtomicBool>,
}

impl Site {
    /// Makes the three nodes and starts these.
    async fn start(nodes: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let made = shell(folder.path(), &[]).arg("-c").arg(readme()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let settings = folder.path().join("press-7/gaisnet.toml");
        let tag = format!(
            "\n[[tags]]\ntopic = \"{SENSOR}\"\npointer = \"/values\"\nbinds = \"feature\"\n\
             model = \"bearing\"\n"
        );
        let text = std::fs::read_to_string(&settings).unwrap() + &tag;
        std::fs::write(&settings, text).unwrap();

        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let mut broker = gaisnet(folder.path())
            .args(["broker", "--json", "--listen", &listen])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = String::new();
        BufReader::new(broker.stdout.take().unwrap()).read_line(&mut told).unwrap();
        let mut processes = vec![broker];
        for node in nodes {
            let log = std::fs::File::create(folder.path().join(format!("{node}.log"))).unwrap();
            let node = gaisnet(folder.path())
                .args(["run", "--config", &format!("{node}/gaisnet.toml")])
                .env("GAISNET__BUS__SITE__PORT", port.to_string())
                .env("GAISNET__COMMANDS__UNSIGNED", UNSIGNED)
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            processes.push(node);
        }
        let measuring = Arc::new(AtomicBool::new(true));
        let this = Self { folder, port, processes, measuring };
        this.wait_for(nodes.len()).await;
        this.measure();
        this
    }

    async fn wait_for(&self, nodes: usize) {
        let mut watcher = Peer::up(self.port, "watcher").await;
        watcher.bus.subscribe(&["gaisnet/v1/+/+/+/status".into()]).unwrap();
        let mut online = std::collections::BTreeSet::new();
        while online.len() < nodes {
            let (topic, payload, _) = watcher.delivery().await;
            let status: Status = serde_json::from_str(&payload).unwrap();
            if status.online {
                online.insert(topic);
            }
        }
        watcher.leave().await;
    }

    /// Ten windows of vibration a second, until the test ends.
    fn measure(&self) {
        let (bus, events) = MqttBus::connect(settings(self.port, "sensor"), 1).unwrap();
        let measuring = Arc::clone(&self.measuring);
        std::thread::spawn(move || {
            let _events = events;
            let values: Vec<f64> = (0..2048).map(|i| (f64::from(i) * 0.3).sin()).collect();
            let payload = serde_json::json!({ "ts": 0, "values": values }).to_string();
            while measuring.load(Ordering::Relaxed) {
                let (topic, payload) = (SENSOR.to_owned(), payload.clone().into_bytes());
                let (at_least_once, retain, priority) = (false, false, Priority::Control);
                let _ = bus.publish(Publish { topic, payload, at_least_once, retain, priority });
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
    }

    /// Runs a script of examples/mqtt; what it printed, and whether it ended with 0.
    fn script(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (String, bool) {
        let port = self.port.to_string();
        let mut given = vec![("PORT", port.as_str()), ("BROKER", "127.0.0.1"), ("BRANCH", BRANCH)];
        given.extend(variables);
        let script = example("mqtt").join(name);
        let done = shell(self.folder.path(), &given).arg(script).args(arguments).output().unwrap();
        let printed = String::from_utf8(done.stdout).unwrap();
        eprintln!("{name} {arguments:?}: {printed}{}", String::from_utf8_lossy(&done.stderr));
        (printed, done.status.success())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.measuring.store(false, Ordering::Relaxed);
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
                if entry.path().extension().is_some_and(|end| end == "log") {
                    let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    eprintln!("{}:\n{log}", entry.path().display());
                }
            }
        }
    }
}

/// The README's commands that make a federation, as they stand there. The fingerprint, which one
/// would type, is read.
fn readme() -> String {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## Plug into your own broker\n").nth(1).unwrap();
    let block = section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(block.contains("gaisnet init device --name press-7") && block.contains("5e1f..."));
    block.replace("5e1f...", "$(gaisnet keyring show keyring | awk '/^root fing/ {print $3}')")
}

/// bash in a folder, with our program on its path.
fn shell(folder: &Path, variables: &[(&str, &str)]) -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_gaisnet")).parent().unwrap().to_str().unwrap();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.arg("-euo").arg("pipefail").current_dir(folder).env("PATH", path);
    command.envs(variables.iter().copied());
    command
}

fn gaisnet(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaisnet"));
    command.current_dir(folder);
    command
}

fn example(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(folder)
}

/// A folder that `.ci/example-tools` made.
fn tool(name: &str) -> Option<PathBuf> {
    let home = || std::env::var("HOME").map(|home| Path::new(&home).join(".cache/gaisnet"));
    let cache = std::env::var("GAISNET_CACHE").map(PathBuf::from).or_else(|_| home()).ok()?;
    let mut found = std::fs::read_dir(cache.join("example-tools")).ok()?.flatten();
    let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(name);
    found.find_map(|entry| Some(entry.path()).filter(is_it))
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--help").output().is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shell_scripts_watch_ask_and_steer() {
    if !is_installed("mosquitto_sub") {
        return skip("examples/mqtt: mosquitto_sub is missing (apt install mosquitto-clients)");
    }
    let site = Site::start(&["cloud", "edge-north", "press-7"]).await;
    let (answers, well) = site.script("watch-answers.sh", &[], &[("COUNT", "3")]);
    assert!(well && answers.lines().count() == 3, "{answers}");
    for line in answers.lines() {
        let (topic, telegram) = line.split_once(' ').unwrap();
        assert_eq!(topic, format!("{BRANCH}/inference/bearing"));
        let answer: Inference = serde_json::from_str(telegram).unwrap();
        assert_eq!((answer.quality, answer.id), (Quality::Uncertain, None)); // nobody has trained yet
    }

    let reply = |(printed, well): (String, bool)| -> Value {
        assert!(well, "{printed}");
        serde_json::from_str(&printed).unwrap()
    };
    let answer = reply(site.script("ask.sh", &[], &[]));
    assert!(answer["status"] == "ok" && answer["label"].is_string(), "{answer}");
    assert!(answer["id"].as_str().unwrap().starts_with("ask-"));
    // Another length than the model's is refused with the way out, and the twin above isn't.
    let refused = reply(site.script("ask.sh", &[], &[("SAMPLES", "7")]));
    assert!(refused["status"] == "error" && refused["quality"] == "bad", "{refused}");

    let asked = answer["id"].as_str().unwrap();
    let class = answer["label"].as_str().unwrap();
    assert_eq!(reply(site.script("label.sh", &[asked, class], &[]))["data"]["labelled"], 1);
    let refused = reply(site.script("label.sh", &["ask-0", class], &[]));
    assert_eq!(refused["error"]["kind"], "feedback_unknown_request");

    let models = reply(site.script("command.sh", &["model.list"], &[]));
    assert_eq!(models["data"]["models"][0]["name"], "bearing");
    let cloud = [("BRANCH", "gaisnet/v1/_/_/cloud")];
    assert_eq!(reply(site.script("command.sh", &["round.start"], &cloud))["status"], "ok");
    let state = reply(site.script("command.sh", &["status"], &cloud));
    assert_eq!(state["data"]["round"], 1, "{state}");
    let refused = reply(site.script("command.sh", &["rollback", "{}"], &[]));
    assert_eq!(refused["status"], "error");
    assert!(refused["error"]["hint"].as_str().unwrap().contains("gaisnet cmd sign"), "{refused}");
    let nobody = [("BRANCH", "gaisnet/v1/north/_/press-8"), ("TIMEOUT", "1")];
    let (printed, well) = site.script("ask.sh", &[], &nobody);
    assert!(!well && printed.is_empty(), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_client_asks_and_watches() {
    let programs = Path::new(env!("CARGO_BIN_EXE_gaisnet")).parent().unwrap();
    let ask = programs.join("examples/ask");
    assert!(ask.exists(), "cargo build --example ask --no-default-features --features mqtt");
    let site = Site::start(&["press-7"]).await;
    let broker = format!("127.0.0.1:{}", site.port);
    let run = |more: &[&str]| {
        let line = ["--broker", &broker, "--branch", BRANCH];
        let done = Command::new(&ask).args(line).args(more).output().unwrap();
        (String::from_utf8(done.stdout).unwrap(), done.status.success())
    };
    let (printed, well) = run(&["--watch", "2"]);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(well && lines.len() == 4, "{printed}");
    assert!(lines[0].starts_with("press-7 serves bearing v0: windows of 2048 samples, classes "));
    assert!(lines[1].starts_with("asked: ") && lines[1].contains(" % [uncertain] "), "{printed}");
    assert!(lines[2..].iter().all(|line| line.starts_with("seen: ")), "{printed}");
    let (printed, well) = run(&["--model", "gearbox"]);
    assert!(!well && printed.contains("doesn't serve \"gearbox\""), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_subscriber_prints_presence_and_answers() {
    let library = tool("python-").unwrap_or_default();
    let python = || {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &library);
        command
    };
    let probe = "import paho.mqtt.client as m; m.CallbackAPIVersion.VERSION2";
    if !python().args(["-c", probe]).output().is_ok_and(|done| done.status.success()) {
        return skip("examples/python: paho-mqtt 2 is missing (.ci/example-tools)");
    }
    let site = Site::start(&["press-7"]).await;
    let done = python()
        .arg(example("python/subscriber.py"))
        .args(["--broker", "127.0.0.1", "--port", &site.port.to_string(), "--count", "2"])
        .output()
        .unwrap();
    let printed = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{printed}{}", String::from_utf8_lossy(&done.stderr));
    let online = "north/press-7 online, roles trainer inferencer, round 0";
    assert!(printed.lines().any(|line| line == online), "{printed}");
    let answer = |line: &&str| line.starts_with("north/press-7 bearing v0: ");
    let answers: Vec<&str> = printed.lines().filter(answer).collect();
    assert!(answers.len() == 2 && answers[0].contains(" % [uncertain] "), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_red_flow_shows_presence_answers_and_a_reply() {
    let red = tool("node-red-").map(|folder| folder.join("node_modules/node-red/red.js"));
    let Some(red) = red.filter(|red| red.exists() && is_installed("node")) else {
        return skip("examples/node-red: Node-RED is missing (npm, then .ci/example-tools)");
    };
    let site = Site::start(&["press-7"]).await;
    let folder = site.folder.path().join("red");
    std::fs::create_dir(&folder).unwrap();
    // What the flow's README says to change: the broker's port and the device.
    let flows = std::fs::read_to_string(example("node-red/flows.json")).unwrap();
    let flows = flows
        .replace("\"port\": \"1883\"", &format!("\"port\": \"{}\"", site.port))
        .replace("\"broker\": \"localhost\"", "\"broker\": \"127.0.0.1\"")
        .replace("gaisnet/v1/north/bearings/p1", BRANCH);
    std::fs::write(folder.join("flows.json"), flows).unwrap();
    let settings = format!(
        "module.exports = {{ flowFile: \"flows.json\", uiHost: \"127.0.0.1\", uiPort: {},\n\
         telemetry: {{ enabled: false, updateNotification: false }} }};\n",
        free_port()
    );
    std::fs::write(folder.join("settings.js"), settings).unwrap();
    let mut child = Command::new("node")
        .arg(red)
        .arg("-u")
        .arg(&folder)
        .arg("flows.json")
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut printed = String::new();
    // Nobody has trained yet, so the answers are doubtful.
    let wanted = ["[debug:presence]", "[debug:doubtful]", "[debug:reply]", "status: 'ok'"];
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Node-RED ends only when it is killed, so a flow that is silent shows as the test's time limit.
    while wanted.iter().any(|word| !printed.contains(word)) {
        let Some(Ok(line)) = lines.next() else { break };
        printed += &line;
        printed.push('\n');
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(wanted.iter().all(|word| printed.contains(word)), "{printed}");
    assert!(printed.contains("north/press-7 is online"), "{printed}");
    assert!(printed.contains(" % [uncertain]"), "{printed}");
}
