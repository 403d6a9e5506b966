//! Programs of ours as child processes, and what their logs say when they don't stay.
//!
//! A child holds the reading end of a pipe as its standard input and ends in order when the pipe
//! closes. So stopping is closing, and a parent that is killed takes its children along. Each child
//! is in a process group of its own: Ctrl-C reaches the parent alone. Called by `demo/` and `experiment/`.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Starts one; what it writes to standard error goes behind what is in `log`. Dropped, it is killed.
///
/// # Errors
/// The file that can't be used, and why.
pub(crate) fn start(
    program: &Path,
    args: &[OsString],
    log: &Path,
    stdout: Stdio,
) -> Result<Child, (PathBuf, io::Error)> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    let file = file.map_err(|error| (log.to_owned(), error))?;
    Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(file)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| (program.to_owned(), error))
}

/// Arguments of a broker on a port of loopback; 0 takes a free one.
pub(crate) fn broker_args(port: u16) -> Vec<OsString> {
    let listen = format!("127.0.0.1:{port}");
    ["broker", "--json", "--listen", &listen, "--end-with-stdin"].map(OsString::from).into()
}

/// The port that a broker tells on its standard output; none when it doesn't in time.
pub(crate) async fn port_of(broker: &mut Child) -> Option<u16> {
    let mut told = BufReader::new(broker.stdout.take()?);
    let mut line = String::new();
    timeout(START_WITHIN, told.read_line(&mut line)).await.ok()?.ok()?;
    let address: serde_json::Value = serde_json::from_str(&line).ok()?;
    u16::try_from(address.get("port")?.as_u64()?).ok()
}

/// The end of a log.
pub(crate) fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
}

const START_WITHIN: Duration = Duration::from_secs(30);
const TAIL_LINES: usize = 5;
