//! A federation as processes: two clouds, two edges and four devices of the real program at one mosquitto, each
//! behind a wire of its own. Here they are started, ended, asked through their logs; what to do to them is
//! decided elsewhere.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gaisnet::ledger::Event;
use tokio::runtime::Handle;

use crate::link::Link;
use crate::support::{self, Mosquitto};

/// Both clouds; the first one begins.
pub(crate) const CLOUDS: [&str; 2] = ["cloud", "cloud-2"];
/// Edges with their devices, and whose recordings those have.
pub(crate) const SITES: [(&str, [(&str, &str); 2]); 2] = [
    ("edge-a", [("dev-a1", "P1"), ("dev-a2", "P2")]),
    ("edge-b", [("dev-b1", "P3"), ("dev-b2", "P4")]),
];

/// The node whose store lies on a small file system of its own, where one can be mounted.
pub(crate) const SMALL_DISK: &str = "edge-b";
const SMALL_BYTES: &str = "size=64m,mode=0700";

const SETTINGS: [&str; 11] = [
    "round.auto_start=true",
    "round.rounds=1000000",
    "round.quorum=1",
    "round.republish_s=1",
    "round.lease_s=2",
    "strategy.local_steps=4",
    "privacy.profile=lab",
    "bus.site.reconnect_max_s=1",
    "bus.site.keep_alive_s=5",
    "bus.site.watchdog_s=10",
    "bus.site.connect_timeout_s=5",
];

/// Which part a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Whichever cloud leads.
    Leader,
    /// The other one.
    Standby,
    Edge,
    Device,
}

/// A process, or the place of one.
struct Process {
    name: &'static str,
    child: Option<Child>,
    log: PathBuf,
    /// Bytes of the log that were read.
    read: u64,
    /// Ends that nobody brought about.
    deaths: u64,
}

/// See the module.
pub(crate) struct Federation {
    keys: support::process::Federation,
    broker: Mosquitto,
    links: BTreeMap<&'static str, Link>,
    nodes: BTreeMap<&'static str, Process>,
    small_disk: Option<PathBuf>,
    /// Addresses of the nodes' health pages.
    pages: BTreeMap<&'static str, String>,
    /// What nodes had recorded when they were put back from a backup, behind the entries that this one had.
    put_back: Vec<(&'static str, usize, Vec<Event>)>,
    /// Variables of the environment of all nodes, `NAME=value`.
    variables: Vec<String>,
    leader: &'static str,
    version: u64,
    /// Contributions that the clouds counted since the last fault.
    counted: u64,
}

impl Federation {
    /// Makes keys and folders, and starts everything. `None`, counted, without mosquitto.
    pub(crate) fn start(runtime: &Handle, variables: Vec<String>) -> Option<Self> {
        let broker = Mosquitto::start()?;
        let keys = support::process::Federation::with_cloud();
        keys.init_standby(CLOUDS[1]);
        let mut names = CLOUDS.to_vec();
        for (edge, devices) in SITES {
            keys.init(&["edge", "--name", edge, "--site", edge, "--parent", "cloud"]);
            names.push(edge);
            for (device, _) in devices {
                keys.init(&["device", "--name", device, "--site", edge, "--parent", edge]);
                names.push(device);
            }
        }
        let (mut links, mut nodes, mut pages) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for name in names {
            pages.insert(name, free_page());
            links.insert(name, Link::to(broker.port, runtime));
            let log = PathBuf::from(keys.path(&format!("{name}.log")));
            nodes.insert(name, Process { name, child: None, log, read: 0, deaths: 0 });
        }
        let (leader, version, counted) = (CLOUDS[0], 0, 0);
        let small_disk = mount(&PathBuf::from(keys.path(SMALL_DISK)).join("store"));
        let mut this = Self {
            keys,
            broker,
            links,
            nodes,
            small_disk,
            pages,
            put_back: Vec::new(),
            variables,
            leader,
            version,
            counted,
        };
        for name in this.names() {
            this.spawn(name, &[]);
        }
        Some(this)
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.nodes.keys().copied().collect()
    }

    /// Those that have a part now.
    pub(crate) fn with(&self, role: Role) -> Vec<&'static str> {
        let standby = if self.leader == CLOUDS[0] { CLOUDS[1] } else { CLOUDS[0] };
        match role {
            Role::Leader => vec![self.leader],
            Role::Standby => vec![standby],
            Role::Edge => SITES.iter().map(|(edge, _)| *edge).collect(),
            Role::Device => {
                SITES.iter().flat_map(|(_, devices)| devices.map(|(device, _)| device)).collect()
            }
        }
    }

    /// The cloud that has last closed something.
    pub(crate) fn leader(&self) -> &'static str {
        self.leader
    }

    /// The last version that was heard of.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn link(&self, node: &str) -> &Link {
        &self.links[node]
    }

    pub(crate) fn folder(&self, node: &str) -> PathBuf {
        self.keys.path(node).into()
    }

    pub(crate) fn has_small_disk(&self) -> bool {
        self.small_disk.is_some()
    }

    /// Starts a node; `more` are variables of its environment, `NAME=value`.
    pub(crate) fn spawn(&mut self, name: &'static str, more: &[String]) {
        self.spawn_under(name, &[], more);
    }

    /// The same by another program, whose line it stands behind.
    pub(crate) fn spawn_under(&mut self, name: &'static str, before: &[&str], more: &[String]) {
        let line = self.keys.about(name, self.links[name].port);
        let process = self.nodes.get_mut(name).unwrap();
        let log = OpenOptions::new().create(true).append(true).open(&process.log).unwrap();
        let mut words: Vec<OsString> = vec!["--end-with-stdin".into(), "run".into()];
        words.extend(line.into_iter().map(OsString::from));
        let data = |client| ["data.set=bearings".to_owned(), format!("data.client={client}")];
        let data = client_of(name).map(data).into_iter().flatten();
        let page = format!("telemetry.metrics_listen={}", self.pages[name]);
        for setting in SETTINGS.map(str::to_owned).into_iter().chain([page]).chain(data) {
            words.extend(["--set".into(), setting.into()]);
        }
        let variables =
            self.variables.iter().chain(more).filter_map(|variable| variable.split_once('='));
        let mut line = before.iter().copied().chain([env!("CARGO_BIN_EXE_gaisnet")]);
        let child = Command::new(line.next().unwrap())
            .args(line)
            .args(words)
            .env("RUST_LOG", "info")
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        process.child = Some(child.unwrap());
    }

    /// kill -9, and waits for its end.
    pub(crate) fn kill(&mut self, name: &str) {
        if let Some(mut child) = self.nodes.get_mut(name).unwrap().child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Ends it in order, also where it stands under another program.
    pub(crate) fn end(&mut self, name: &str) {
        if let Some(mut child) = self.nodes.get_mut(name).unwrap().child.take() {
            child.stdin = None;
            let _ = child.wait();
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str, signal: &str) {
        if let Some(child) = &self.nodes[name].child {
            let _ = Command::new("kill").args([signal, &child.id().to_string()]).status();
        }
    }

    /// Whether it has ended by itself; it is gone then.
    pub(crate) fn has_ended(&mut self, name: &str) -> bool {
        let process = self.nodes.get_mut(name).unwrap();
        let ended = process.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
        if ended {
            process.child = None;
        }
        ended
    }

    /// kill -9 of the broker, which forgets everything.
    pub(crate) fn kill_broker(&mut self) {
        self.broker.kill();
    }

    /// Starts the broker again, empty.
    pub(crate) fn start_broker(&mut self) {
        self.broker.start_again();
    }

    /// All that is said for a while: topics and bytes, what the broker keeps first.
    pub(crate) fn hear(&self, time: Duration) -> Vec<(String, Vec<u8>)> {
        let said = self.root().join("heard");
        let heard = std::fs::File::create(&said).unwrap();
        let listener = Command::new("mosquitto_sub")
            .args(["-h", "127.0.0.1", "-p", &self.broker.port.to_string(), "-q", "1"])
            .args(["-t", "gaisnet/v1/+/+/+/m/+", "-t", "gaisnet/v1/+/+/+/to/+/+", "-F", "%t %x"])
            .stdout(heard)
            .spawn();
        pause(time);
        if let Ok(mut listener) = listener {
            let _ = listener.kill();
            let _ = listener.wait();
        }
        let text = std::fs::read_to_string(said).unwrap_or_default();
        let message = |line: &str| {
            let (topic, bytes) = line.split_once(' ')?;
            Some((topic.to_owned(), hex::decode(bytes).ok()?))
        };
        text.lines().filter_map(message).collect()
    }

    /// Says it again, as whoever is at the broker can; what goes to all so that the broker keeps it, if that is wanted.
    ///
    /// # Errors
    /// What keeps this machine from it.
    pub(crate) fn say_again(&self, said: &[(String, Vec<u8>)], keep: bool) -> Result<(), String> {
        if said.is_empty() {
            return Err("nothing was heard: is mosquitto_sub installed?".to_owned());
        }
        let (port, file) = (self.broker.port.to_string(), self.root().join("said"));
        for (topic, bytes) in said {
            std::fs::write(&file, bytes).map_err(|error| error.to_string())?;
            let told = Command::new("mosquitto_pub")
                .args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", topic, "-f"])
                .arg(&file)
                .args((keep && topic.contains("/m/")).then_some("-r"))
                .status();
            if !told.is_ok_and(|status| status.success()) {
                return Err("mosquitto_pub fails".to_owned());
            }
        }
        Ok(())
    }

    /// How often a running node has counted this since it started.
    pub(crate) fn counted_by(&self, name: &str, reason: &str) -> u64 {
        let figure = format!("refused_messages_total{{reason=\"{reason}\"}}");
        self.figure(name, &figure).unwrap_or(0)
    }

    /// Messages of a kind that a node has heard since it started, if it runs.
    pub(crate) fn heard_by(&self, name: &str, kind: &str) -> Option<u64> {
        self.figure(name, &format!("messages_total{{kind=\"{kind}\",direction=\"in\"}}"))
    }

    /// What a node's health page says; it is a second old at most.
    fn figure(&self, name: &str, figure: &str) -> Option<u64> {
        let (code, page) = support::process::get(&self.pages[name], "/metrics");
        let line = format!("gaisnet_{figure} ");
        let found = page.lines().find_map(|text| text.strip_prefix(&line)?.trim().parse().ok());
        (code == 200).then_some(found.unwrap_or(0))
    }

    /// Contributions that the clouds counted since the mark, as far as their logs were read.
    pub(crate) fn num_counted(&self) -> u64 {
        self.counted
    }

    /// A node goes on from an older disk: behind the first `kept` of its entries it had recorded this.
    pub(crate) fn note_put_back(&mut self, name: &'static str, kept: usize, lost: Vec<Event>) {
        self.put_back.push((name, kept, lost));
    }

    /// A ledger with what its node recorded before it was put back.
    pub(crate) fn with_what_was_put_back(&self, name: &str, mut own: Vec<Event>) -> Vec<Event> {
        for (_, kept, lost) in self.put_back.iter().rev().filter(|(of, ..)| *of == name) {
            own.splice(kept..kept, lost.iter().cloned());
        }
        own
    }

    /// From now on what is counted is behind the fault.
    pub(crate) fn mark(&mut self) {
        self.listen();
        self.counted = 0;
    }

    /// Reads on in the clouds' logs; whether a round closed with a contribution that was counted since the mark.
    pub(crate) fn listen(&mut self) -> bool {
        let mut closed = false;
        for name in CLOUDS {
            for line in self.nodes.get_mut(name).unwrap().news() {
                if line.contains("a contribution counts") {
                    self.counted += 1;
                } else if line.contains("the result is fixed") {
                    let version =
                        line.rsplit("version=").next().and_then(|n| n.trim().parse().ok());
                    self.version = self.version.max(version.unwrap_or(0));
                    self.leader = name;
                    closed |= self.counted > 0;
                }
            }
        }
        closed
    }

    /// Starts again what ended though nobody wanted it, as a service manager does.
    pub(crate) fn tend(&mut self) {
        for name in self.names() {
            if self.has_ended(name) {
                self.nodes.get_mut(name).unwrap().deaths += 1;
                self.spawn(name, &[]);
            }
        }
    }

    /// Waits for a round that closes with work from behind the mark.
    ///
    /// # Errors
    /// The ends of all logs, when it takes too long.
    pub(crate) fn recover(&mut self, since: Instant, within: Duration) -> Result<Duration, String> {
        while since.elapsed() < within {
            if self.listen() {
                return Ok(since.elapsed());
            }
            self.tend();
            pause(Duration::from_millis(20));
        }
        let mut told = format!("no round closed within {within:?}");
        for process in self.nodes.values() {
            told = format!("{told}\n--- {}\n{}", process.name, process.tail());
        }
        Err(told)
    }

    /// Ends of nodes that nobody brought about.
    pub(crate) fn deaths(&self) -> u64 {
        self.nodes.values().map(|process| process.deaths).sum()
    }

    /// Ends all nodes in order; who didn't end so.
    pub(crate) fn stop(&mut self) -> Vec<&'static str> {
        for process in self.nodes.values_mut() {
            if let Some(child) = &mut process.child {
                child.stdin = None;
            }
        }
        let mut unruly = Vec::new();
        for process in self.nodes.values_mut() {
            let Some(mut child) = process.child.take() else { continue };
            let begun = since_now();
            let code = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break status.code(),
                    None if begun.elapsed() > STOP_WITHIN => {
                        let _ = child.kill();
                        let _ = child.wait();
                        break None;
                    }
                    None => pause(Duration::from_millis(20)),
                }
            };
            if code != Some(0) {
                unruly.push(process.name);
            }
        }
        unruly
    }

    /// The folder of all.
    pub(crate) fn root(&self) -> PathBuf {
        self.keys.path("").into()
    }

    /// The keyring's file.
    pub(crate) fn keyring(&self) -> String {
        self.keys.path("keyring")
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        for process in self.nodes.values_mut() {
            if let Some(child) = &mut process.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if let Some(small) = &self.small_disk {
            let _ = Command::new("umount").arg(small).status();
        }
    }
}

/// An address of this machine that no other node has, nor any connection.
fn free_page() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (run, n) = (std::process::id() % 250, NEXT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{}:9464", 1 + run, n / 250, 1 + n % 250)
}

/// Puts a small file system there.
fn mount(at: &Path) -> Option<PathBuf> {
    std::fs::create_dir_all(at).unwrap();
    let line = ["-t", "tmpfs", "-o", SMALL_BYTES, "tmpfs"];
    let mounted = Command::new("mount").args(line).arg(at).stderr(Stdio::null()).status();
    mounted.is_ok_and(|status| status.success()).then(|| at.to_owned())
}

impl Process {
    /// Whole lines that were logged since the last time.
    fn news(&mut self) -> Vec<String> {
        let Ok(mut file) = std::fs::File::open(&self.log) else { return Vec::new() };
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        file.read_to_end(&mut text).unwrap();
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += whole as u64;
        String::from_utf8_lossy(&text[..whole]).lines().map(str::to_owned).collect()
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// Whose recordings a device has.
fn client_of(name: &str) -> Option<&'static str> {
    let mut devices = SITES.iter().flat_map(|(_, devices)| devices);
    devices.find(|(device, _)| *device == name).map(|(_, client)| *client)
}

/// Waits.
pub(crate) fn pause(time: Duration) {
    let until = since_now() + time;
    while let Some(left) = until.checked_duration_since(since_now()).filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}

/// The clock: how long recovery takes is measured, nothing is decided by it but when to give up.
pub(crate) fn since_now() -> Instant {
    tokio::time::Instant::now().into_std()
}

const STOP_WITHIN: Duration = Duration::from_secs(15);
