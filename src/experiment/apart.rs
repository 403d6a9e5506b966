//! Nodes that are processes of their own, as a federation sees them: each is told on its standard input who
//! it is and what it has, tells line by line on its standard output what a node in this process would be
//! asked for, and ends when its standard input closes.
//!
//! The other end is `alone.rs`. Nobody is started again: who dies ends the run, which can be gone on with.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ExperimentError;
use super::brokers::Broker;
use crate::actors::{Figures, Served};
use crate::child;
use crate::ids::{NodeId, Side};
use crate::learn::Examples;

/// How nodes become processes.
pub(super) struct Apart<'a> {
    /// The `gaisnet` program.
    pub(super) program: &'a Path,
    /// What it is told on its standard input.
    pub(super) order: &'a OrderOf<'a>,
}

/// What a node's process is told: whose it is, over which broker, from which examples it learns.
pub(super) type OrderOf<'a> =
    dyn Fn(&NodeId, &Broker, Option<&Examples>) -> Result<Vec<u8>, ExperimentError> + 'a;

/// A line that a node's process says.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    /// Optimiser steps so far.
    pub(super) steps: u64,
    /// Payload bytes so far, published upwards.
    pub(super) bytes_up: u64,
    /// The same, received from above.
    pub(super) bytes_down: u64,
    /// Largest resident memory so far.
    pub(super) peak_rss_bytes: u64,
    /// The version that it has come to, if this line is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u64>,
    /// The version's packed adapter in base64; empty where the federation doesn't need it from this node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) adapter: String,
}

#[cfg(any(test, feature = "torch"))]
impl Said {
    /// This, about a version.
    pub(super) fn with_version(self, version: u64, adapter: &[u8]) -> Self {
        Self { version: Some(version), adapter: STANDARD.encode(adapter), ..self }
    }
}

/// A node that is a process of its own. Dropped, it is killed.
pub(super) struct NodeProcess {
    pub(super) figures: Arc<Figures>,
    pub(super) serving: watch::Receiver<Served>,
    peak_rss_bytes: Arc<AtomicU64>,
    name: NodeId,
    end: Option<oneshot::Sender<()>>,
    attended: JoinHandle<()>,
}

impl NodeProcess {
    /// Starts one on the current runtime. Its log is `<folder>/<node>.log`; how it fails comes through `failed`.
    pub(super) fn start(
        program: &Path,
        folder: &Path,
        node: &NodeId,
        order: Vec<u8>,
        failed: mpsc::Sender<ExperimentError>,
    ) -> Result<Self, ExperimentError> {
        let log = folder.join(format!("{node}.log"));
        let args = ["experiment", "node"].map(Into::into);
        let child = child::start(program, &args, &log, Stdio::piped());
        let child = child.map_err(|(path, error)| ExperimentError::Io(path, error))?;
        let figures = Arc::new(Figures::default());
        let (served, serving) = watch::channel((0, Arc::default()));
        let peak_rss_bytes = Arc::new(AtomicU64::new(0));
        let (end, ends) = oneshot::channel();
        let heard = Heard {
            figures: Arc::clone(&figures),
            served,
            peak_rss_bytes: Arc::clone(&peak_rss_bytes),
        };
        let name = node.clone();
        let attended = tokio::task::spawn(async move {
            if let Err(status) = attend(child, order, ends, &heard).await {
                let _ = failed.send(ended(name.as_str(), status, log)).await;
            }
        });
        let (name, end) = (node.clone(), Some(end));
        Ok(Self { figures, serving, peak_rss_bytes, name, end, attended })
    }

    /// Tells it to end; doesn't wait.
    pub(super) fn tell_end(&mut self) {
        if let Some(end) = self.end.take() {
            // Who is gone already needs no telling.
            let _ = end.send(());
        }
    }

    /// Waits until it has ended, and kills it where it doesn't; its name and its largest memory.
    pub(super) async fn ended(mut self) -> (String, u64) {
        self.tell_end();
        if timeout(END_WITHIN, &mut self.attended).await.is_err() {
            tracing::warn!(node = %self.name, "killed: it didn't end when it was told to");
        }
        (self.name.to_string(), self.peak_rss_bytes.load(Ordering::Relaxed))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // The task has the process, which goes with it.
        self.attended.abort();
    }
}

/// Where it goes what a process says.
struct Heard {
    figures: Arc<Figures>,
    served: watch::Sender<Served>,
    peak_rss_bytes: Arc<AtomicU64>,
}

impl Heard {
    fn hear(&self, line: &str) -> Result<(), String> {
        let bad = |why: String| {
            let start: String = line.chars().take(80).collect();
            format!("it said {start:?}, {why}")
        };
        let said: Said = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        self.figures.update(|view| {
            view.train_steps = said.steps;
            view.bytes_out.insert(Side::Up, said.bytes_up);
            view.bytes_in.insert(Side::Up, said.bytes_down);
        });
        self.peak_rss_bytes.fetch_max(said.peak_rss_bytes, Ordering::Relaxed);
        if let Some(version) = said.version {
            let adapter = STANDARD.decode(&said.adapter).map_err(|error| bad(error.to_string()))?;
            self.served.send_replace((version, Arc::new(adapter)));
        }
        Ok(())
    }
}

/// Tells a process its order, hears it until its end; an error is how it ended otherwise than it should.
async fn attend(
    mut child: Child,
    order: Vec<u8>,
    mut ends: oneshot::Receiver<()>,
    heard: &Heard,
) -> Result<(), String> {
    let mut input = child.stdin.take();
    if let Some(input) = &mut input {
        // A process that died can't be told; its end says more about why.
        let _ = input.write_all(&order).await;
    }
    drop(order);
    let output = child.stdout.take().ok_or("it has no standard output")?;
    let mut lines = BufReader::new(output).lines();
    loop {
        tokio::select! {
            biased;
            _ = &mut ends, if input.is_some() => input = None,
            line = lines.next_line() => match line {
                Ok(Some(line)) => heard.hear(&line)?,
                Ok(None) => break,
                Err(error) => return Err(error.to_string()),
            },
        }
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    match (status.success(), input) {
        (true, None) => Ok(()),
        (true, Some(_)) => Err(format!("{status}, though nobody told it to")),
        (false, _) => Err(status.to_string()),
    }
}

/// A broker of this machine that ends with us. Dropped, it is killed.
pub(super) struct OwnBroker {
    pub(super) at: Broker,
    attended: JoinHandle<()>,
}

impl OwnBroker {
    /// Starts the program's own broker on a free port of loopback; its end comes through `failed`.
    pub(super) async fn start(
        program: &Path,
        folder: &Path,
        failed: mpsc::Sender<ExperimentError>,
    ) -> Result<Self, ExperimentError> {
        let log = folder.join("broker.log");
        let mut args = child::broker_args(0);
        args.extend(["--max-payload-bytes", MAX_PAYLOAD_BYTES].map(Into::into));
        let child = child::start(program, &args, &log, Stdio::piped());
        let mut child = child.map_err(|(path, error)| ExperimentError::Io(path, error))?;
        let Some(port) = child::port_of(&mut child).await else {
            return Err(ended(BROKER, "it told no port".to_owned(), log));
        };
        let attended = tokio::task::spawn(async move {
            // Held here, since it ends with it; waiting would close it.
            let _input = child.stdin.take();
            let status = child.wait().await;
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let _ = failed.send(ended(BROKER, status, log)).await;
        });
        Ok(Self { at: Broker { host: "127.0.0.1".to_owned(), port }, attended })
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        self.attended.abort();
    }
}

fn ended(name: &str, status: String, log: PathBuf) -> ExperimentError {
    let tail = child::last_lines(&log);
    ExperimentError::Ended { name: name.to_owned(), status, log, tail }
}

/// What it is called when it fails.
const BROKER: &str = "the broker";
/// Far more than a node takes to drain its links.
const END_WITHIN: Duration = Duration::from_secs(60);
/// A chunk of any size that settings allow, and the envelope around it.
const MAX_PAYLOAD_BYTES: &str = "1048576";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that does what a shell is told.
    fn program(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// Starts it, lets `look` wait for something, tells it to end; what it came to, and what went wrong.
    fn run(
        text: &str,
        look: impl AsyncFnOnce(&NodeProcess),
    ) -> (u64, Option<ExperimentError>, String) {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path(), text);
        actix::System::new().block_on(async {
            let (failed, mut failures) = mpsc::channel(1);
            let node = NodeId::new("machine-3").unwrap();
            let order = b"an order".to_vec();
            let process =
                NodeProcess::start(&program, folder.path(), &node, order, failed).unwrap();
            look(&process).await;
            let (name, peak) = process.ended().await;
            (peak, failures.recv().await, name)
        })
    }

    async fn version(process: &NodeProcess, wanted: u64) {
        let mut serving = process.serving.clone();
        serving.wait_for(|(version, _)| *version == wanted).await.unwrap();
    }

    #[test]
    fn what_a_process_says_is_what_a_node_here_would_show() {
        let said =
            Said { steps: 7, bytes_up: 5, bytes_down: 6, peak_rss_bytes: 99, ..Said::default() };
        let of_version = said.with_version(2, &[1, 2, 3]);
        let line = serde_json::to_string(&of_version).unwrap();
        // It goes on until its input closes, and tells its peak at last.
        let text = format!(
            "echo '{line}'; cat > /dev/null; \
             echo '{{\"steps\":8,\"bytes_up\":5,\"bytes_down\":6,\"peak_rss_bytes\":100}}'"
        );
        let (peak, failure, name) = run(&text, async |process| {
            version(process, 2).await;
            assert_eq!(*process.serving.borrow().1, [1, 2, 3]);
            let view = process.figures.view();
            assert_eq!(
                (view.train_steps, view.bytes_out[&Side::Up], view.bytes_in[&Side::Up]),
                (7, 5, 6)
            );
        });
        assert!(failure.is_none(), "{failure:?}");
        assert_eq!((peak, name.as_str()), (100, "machine-3"));
    }

    #[test]
    fn a_process_that_ends_by_itself_is_told_with_the_end_of_its_log() {
        for (text, how) in [
            ("head -c 8 > /dev/null; echo the disk is on fire >&2; exit 3", "exit status: 3"),
            ("head -c 8 > /dev/null", "though nobody told it to"),
            ("head -c 8 > /dev/null; echo hello; cat", "it said \"hello\""),
            ("kill -9 $$", "signal: 9"),
        ] {
            let (_, failure, _) = run(text, async |process| {
                let mut serving = process.serving.clone();
                // Its end is that of what it serves.
                while serving.changed().await.is_ok() {}
            });
            let failure = failure.unwrap();
            assert_eq!(failure.kind(), "ended");
            let told = failure.to_string();
            assert!(told.contains("machine-3 ended") && told.contains(how), "{text}: {told}");
            assert_eq!(told.contains("on fire"), text.contains("on fire"), "{told}");
        }
    }
}
