//! Nodes and brokers as child processes: started, watched, started again, stopped.
//!
//! They end with the demo (`crate::child`, `--end-with-stdin`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Child;
use tokio::time::timeout;

use super::DemoError;
use crate::child;

/// All child processes of a demo.
pub(super) struct Children {
    program: PathBuf,
    folder: PathBuf,
    nodes: Vec<Process>,
    brokers: Vec<Process>,
}

/// One of them.
struct Process {
    name: String,
    args: Vec<OsString>,
    log: PathBuf,
    child: Child,
    deaths: u32,
    peak_rss_bytes: u64,
}

impl Children {
    /// None yet; their logs will be `<folder>/<name>/log.txt`.
    pub(super) fn new(program: &Path, folder: &Path) -> Self {
        let (program, folder) = (program.to_owned(), folder.to_owned());
        Self { program, folder, nodes: Vec::new(), brokers: Vec::new() }
    }

    /// Starts a broker on a free port of loopback, which it keeps; gives the port.
    pub(super) async fn start_broker(&mut self, name: &str) -> Result<u16, DemoError> {
        let log = self.log_of(name)?;
        let mut child = spawn(&self.program, &child::broker_args(0), &log, Stdio::piped())?;
        let Some(port) = child::port_of(&mut child).await else {
            return Err(ended(name, "it told no port", &log));
        };
        self.brokers.push(Process::new(name, child::broker_args(port), log, child));
        Ok(port)
    }

    /// Starts a node with its settings.
    pub(super) fn start_node(&mut self, name: &str, settings: &Path) -> Result<(), DemoError> {
        let args: Vec<OsString> =
            vec!["run".into(), "--config".into(), settings.into(), "--end-with-stdin".into()];
        let log = self.log_of(name)?;
        let child = spawn(&self.program, &args, &log, Stdio::null())?;
        self.nodes.push(Process::new(name, args, log, child));
        Ok(())
    }

    /// Ends a node and starts it again, with the settings that its file has now.
    pub(super) async fn restart_node(&mut self, name: &str) -> Result<(), DemoError> {
        for node in self.nodes.iter_mut().filter(|node| node.name == name) {
            node.measure();
            end(&mut node.child).await;
            node.child = spawn(&self.program, &node.args, &node.log, Stdio::null())?;
        }
        Ok(())
    }

    /// Starts again what has ended by itself, and says so.
    ///
    /// # Errors
    /// [`DemoError::Child`] for one whose settings are wrong, or that has ended too often.
    pub(super) fn tend(&mut self) -> Result<Vec<String>, DemoError> {
        let mut news = Vec::new();
        for process in self.brokers.iter_mut().chain(&mut self.nodes) {
            process.measure();
            let status = process.child.try_wait().map_err(|error| DemoError::start(&error))?;
            let Some(status) = status else { continue };
            process.deaths += 1;
            if status.code() == Some(WRONG_SETTINGS) || process.deaths > MAX_DEATHS {
                return Err(ended(&process.name, &status.to_string(), &process.log));
            }
            news.push(process.again(&self.program, status)?);
        }
        Ok(news)
    }

    /// Sum of the largest resident memory of each process, in bytes.
    pub(super) fn peak_rss_bytes(&self) -> u64 {
        self.brokers.iter().chain(&self.nodes).map(|process| process.peak_rss_bytes).sum()
    }

    /// Ends the nodes, then the brokers; who doesn't go in time is killed.
    pub(super) async fn stop(mut self) {
        for group in [&mut self.nodes, &mut self.brokers] {
            for process in group.iter_mut() {
                process.child.stdin = None;
            }
            for process in group.iter_mut() {
                end(&mut process.child).await;
            }
        }
    }

    fn log_of(&self, name: &str) -> Result<PathBuf, DemoError> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).map_err(DemoError::file(&folder))?;
        Ok(folder.join("log.txt"))
    }
}

impl Process {
    fn new(name: &str, args: Vec<OsString>, log: PathBuf, child: Child) -> Self {
        Self { name: name.to_owned(), args, log, child, deaths: 0, peak_rss_bytes: 0 }
    }

    fn measure(&mut self) {
        let peak = self.child.id().and_then(|id| crate::telemetry::peak_rss_bytes_of(id).ok());
        self.peak_rss_bytes = self.peak_rss_bytes.max(peak.unwrap_or(0));
    }

    fn again(&mut self, program: &Path, status: ExitStatus) -> Result<String, DemoError> {
        self.child = spawn(program, &self.args, &self.log, Stdio::null())?;
        let Self { name, deaths, .. } = self;
        Ok(format!(
            "{name} ended ({status}) and was started again ({deaths} of {MAX_DEATHS} times)"
        ))
    }
}

/// Has it end in order, or kills it.
async fn end(child: &mut Child) {
    child.stdin = None;
    if timeout(STOP_WITHIN, child.wait()).await.is_err() {
        // Gone already is as good.
        let _ = child.kill().await;
    }
}

fn spawn(program: &Path, args: &[OsString], log: &Path, stdout: Stdio) -> Result<Child, DemoError> {
    child::start(program, args, log, stdout).map_err(|(path, error)| DemoError::file(&path)(error))
}

fn ended(name: &str, status: &str, log: &Path) -> DemoError {
    let (name, status, tail) = (name.to_owned(), status.to_owned(), child::last_lines(log));
    DemoError::Child { name, status, log: log.display().to_string(), tail }
}

/// Restarts of one child in one run.
const MAX_DEATHS: u32 = 10;
/// The exit code of a command whose settings are wrong: no restart mends them.
const WRONG_SETTINGS: i32 = 2;
/// More than a node takes to drain its links.
const STOP_WITHIN: Duration = Duration::from_secs(10);
