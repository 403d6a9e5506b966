//! The real program as processes: a federation's folders made by its own commands, and nodes that
//! are started, asked and ended as a person would.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use gaisnet::ledger::{Entry, Event};
use gaisnet::store::{SqliteStore, Store};
use tempfile::TempDir;

use super::PATIENCE;

/// Runs a command of the program to its end.
pub(crate) fn gaisnet(line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gaisnet")).args(line).output().unwrap()
}

/// Both streams as text.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

fn must(line: &[&str]) -> Output {
    let done = gaisnet(line);
    assert!(done.status.success(), "{line:?}: {}", text(&done));
    done
}

/// A federation's folders: root key, keyring, and one folder a node.
pub(crate) struct Federation {
    dir: TempDir,
}

impl Federation {
    /// A root and nobody else.
    pub(crate) fn new() -> Self {
        Self::named("pilot")
    }

    /// The same under another name than that of the default settings.
    pub(crate) fn named(name: &str) -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        let (root, keyring) = (this.path("root/root.pem"), this.path("keyring"));
        must(&["keys", "new", &root]);
        must(&["keyring", "new", &keyring, "--federation", name, "--root", &root]);
        this
    }

    /// One with a cloud.
    pub(crate) fn with_cloud() -> Self {
        let this = Self::new();
        this.init(&["cloud", "--name", "cloud"]);
        this
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// `gaisnet init` and enrolment of a node; its folder is its name.
    pub(crate) fn init(&self, line: &[&str]) {
        let name = line.iter().skip_while(|word| **word != "--name").nth(1).unwrap();
        let folder = self.path(name);
        must(&[&["init"], line, &[&folder]].concat());
        self.enrol(&format!("{folder}/enrolment.json"));
    }

    /// The same for a second cloud, which stands by for `cloud`.
    pub(crate) fn init_standby(&self, name: &str) {
        let folder = self.path(name);
        must(&["init", "cloud", "--name", name, &folder]);
        self.enrol_with(&format!("{folder}/enrolment.json"), &["--standby-of", "cloud"]);
    }

    /// Enrols a request that lies in this file.
    pub(crate) fn enrol(&self, request: &str) {
        self.enrol_with(request, &[]);
    }

    fn enrol_with(&self, request: &str, more: &[&str]) {
        let (root, keyring) = (self.path("root/root.pem"), self.path("keyring"));
        let line = ["keys", "enrol", request, "--root", &root, "--keyring", &keyring];
        must(&[&line, more].concat());
    }

    /// A file with a user's password, which is its name here, for its owner alone.
    pub(crate) fn password(&self, user: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(&format!("{user}.password"));
        std::fs::write(&path, user).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// What a node's ledger tells so far, also of one that runs.
    pub(crate) fn entries(&self, node: &str) -> Vec<Event> {
        let path = self.path(&format!("{node}/store"));
        // It may commit while it is read.
        let store = (0..100).find_map(|_| {
            let opened = SqliteStore::open_read_only(Path::new(&path)).ok();
            if opened.is_none() {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            opened
        });
        let store = store.expect("a store that can be read");
        let entries = store.entries(0, store.num_entries().unwrap()).unwrap();
        entries.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
    }

    /// The first words of a command about a node: its settings, its keyring, a broker's port.
    pub(crate) fn about(&self, node: &str, port: u16) -> Vec<String> {
        let keyring = format!("paths.keyring={}", self.path("keyring"));
        let words = [
            "--config",
            &self.path(&format!("{node}/gaisnet.toml")),
            "--set",
            &keyring,
            "--set",
            &format!("bus.site.port={port}"),
        ];
        words.map(str::to_owned).to_vec()
    }

    /// Starts a node; `set` are further settings.
    pub(crate) fn run(&self, node: &str, port: u16, set: &[&str]) -> Running {
        let mut line = self.about(node, port);
        for setting in set {
            line.extend(["--set".to_owned(), (*setting).to_owned()]);
        }
        let log = self.dir.path().join(format!("{node}.log"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
            .arg("run")
            .args(&line)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out, log, said: String::new() }
    }
}

/// A node as a process. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    log: PathBuf,
    said: String,
}

impl Running {
    /// Reads its standard output up to the line that holds `words`; gives the line.
    pub(crate) fn says(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.out.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended: {}{}", self.said, self.log());
            self.said.push_str(&line);
            if line.contains(words) {
                return line;
            }
        }
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log holds `words`.
    pub(crate) fn logs(&mut self, words: &str) {
        wait_for(words, || {
            if self.log().contains(words) {
                return Ok(());
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended with {ended:?} without {words:?}: {}", self.log());
            Err(self.log())
        });
    }

    /// Address of its health page; the settings must ask for one.
    pub(crate) fn page(&mut self) -> String {
        let line = self.says("health: http://");
        let address = line.trim_start_matches("health: http://");
        address.split('/').next().unwrap().to_owned()
    }

    /// Ends it as a service manager does; its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.ends()
    }

    /// Stops it where it is (SIGSTOP), or lets it go on (SIGCONT).
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; its exit code.
    pub(crate) fn ends(&mut self) -> Option<i32> {
        let mut code = None;
        wait_for("the end of the process", || match self.child.try_wait().unwrap() {
            Some(status) => {
                code = status.code();
                Ok(())
            }
            None => Err(self.log()),
        });
        code
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks a page over HTTP: the status code and the whole answer; 0 where nobody answers in time.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let Ok(answer) = ask() else { return (0, String::new()) };
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, answer)
}

/// Waits until a page answers with this code; the answer.
pub(crate) fn page_says(address: &str, path: &str, code: u16) -> String {
    let mut last = String::new();
    wait_for(path, || {
        let (found, answer) = get(address, path);
        last.clone_from(&answer);
        if found == code { Ok(()) } else { Err(answer) }
    });
    last
}

/// Tries until it works, far longer than it takes; then tells what was seen last.
pub(crate) fn wait_for(what: &str, mut attempt: impl FnMut() -> Result<(), String>) {
    let pause = Duration::from_millis(25);
    let mut last = String::new();
    for _ in 0..PATIENCE.as_millis() / pause.as_millis() {
        match attempt() {
            Ok(()) => return,
            Err(seen) => last = seen,
        }
        std::thread::park_timeout(pause);
    }
    panic!("{what} never came; seen: {last}");
}

/// `mosquitto_pub` on this machine.
pub(crate) fn mosquitto_pub(port: u16, more: &[&str]) {
    let port = port.to_string();
    let done = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port, "-q", "1"])
        .args(more)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done));
}

/// Whether a folder or file is there.
pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
