//! Runs the demo in a folder of its own, and looks at its processes from outside.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::skip;

/// Longest wait for one line of the demo: rounds that fail once end by their deadline.
const PATIENCE: Duration = Duration::from_secs(600);

/// A folder for demos.
pub(crate) struct Stage {
    folder: TempDir,
}

/// A demo that runs, and what it tells on standard error.
pub(crate) struct Demo {
    pub(crate) child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    out: JoinHandle<String>,
}

/// How a demo ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: Vec<String>,
}

impl Stage {
    /// `None`, counted, where the recordings aren't in the cache.
    pub(crate) fn new() -> Option<Self> {
        if Bearings::cached(&Cache::from_env().unwrap()).is_none() {
            skip("the recordings are not in the cache (gaisnet data fetch bearings)");
            return None;
        }
        Some(Self { folder: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("demo").join(name)
    }

    /// Starts the demo with the linear learner.
    pub(crate) fn start(&self, rounds: u64, more: &[&str]) -> Demo {
        let mut child = self.command(rounds, more).spawn().unwrap();
        let mut told = child.stdout.take().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                eprintln!("  demo: {line}");
                let _ = sender.send(line);
            }
        });
        let out = std::thread::spawn(move || {
            let mut text = String::new();
            told.read_to_string(&mut text).unwrap();
            text
        });
        Demo { child, lines, out }
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, rounds: u64, more: &[&str]) -> Ended {
        self.start(rounds, more).end().await
    }

    /// The port of the broker that a node is at.
    pub(crate) fn port_of(&self, node: &str) -> u16 {
        let settings = std::fs::read_to_string(self.path(node).join("gaisnet.toml")).unwrap();
        let port = settings.lines().find_map(|line| line.strip_prefix("bus.site.port = "));
        port.unwrap().parse().unwrap()
    }

    /// Processes that log into this folder, as `(name, id)`.
    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        let logs = self.folder.path().join("demo");
        let mut found = Vec::new();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(id) = process.file_name().to_string_lossy().parse() else { continue };
            let Ok(log) = std::fs::read_link(process.path().join("fd/2")) else { continue };
            if let Some(name) = name_of(&log, &logs) {
                found.push((name, id));
            }
        }
        found.sort();
        found
    }

    /// kill -9 of a node or broker.
    pub(crate) fn kill(&self, name: &str) {
        let all = self.processes();
        let (_, id) = all.iter().find(|(found, _)| found == name).expect(name);
        signal("-KILL", *id);
    }

    /// Waits until nothing of a demo runs any more.
    pub(crate) async fn is_empty(&self) {
        let empty = async {
            while !self.processes().is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let gone = timeout(PATIENCE, empty).await;
        assert!(gone.is_ok(), "still there: {:?}", self.processes());
    }

    fn command(&self, rounds: u64, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaisnet"));
        command
            .args(["demo", "--processes", "--learner", "softmax", "--rounds", &rounds.to_string()])
            .arg("--folder")
            .arg(self.folder.path().join("demo"))
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Demo {
    /// Waits for a line with these words, and gives it.
    pub(crate) async fn says(&mut self, words: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.lines.recv()).await.expect(words).expect(words);
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Waits for the next version, and gives its number.
    pub(crate) async fn next_version(&mut self) -> u64 {
        let line = self.says("version ").await;
        line.split(' ').find_map(|word| word.parse().ok()).unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Ended {
        let mut err = Vec::new();
        while let Some(line) = timeout(PATIENCE, self.lines.recv()).await.expect("no end") {
            err.push(line);
        }
        let code = self.child.wait().unwrap().code();
        Ended { code, out: self.out.join().unwrap(), err }
    }
}

impl Ended {
    /// The object that `--json` ends with.
    pub(crate) fn json(&self) -> serde_json::Value {
        let told = serde_json::from_str(&self.out);
        told.unwrap_or_else(|error| panic!("{error}: {}", self.err.join("\n")))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for (_, id) in self.processes() {
            signal("-KILL", id);
        }
    }
}

fn name_of(log: &Path, logs: &Path) -> Option<String> {
    let below = log.strip_prefix(logs).ok()?;
    (below.file_name()? == "log.txt").then(|| below.parent().unwrap().display().to_string())
}

fn signal(name: &str, id: u32) {
    // It may be gone already.
    let _ = Command::new("kill").args([name, &id.to_string()]).stderr(Stdio::null()).status();
}
