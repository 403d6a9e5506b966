//! What tests against real brokers need: mosquitto, free ports, certificates, a proxy that can cut
//! connections, and a peer that waits for events.
//!
//! Each test binary uses a part of it.
#![allow(dead_code, reason = "each test binary uses a part")]

#[cfg(feature = "cli")]
pub(crate) mod process;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gaisnet::bus::mqtt::{MqttBus, MqttSettings};
use gaisnet::bus::{Bus, BusEvent, Delivery, Priority, Publish};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Longest wait for anything; far more than it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

static PEERS: AtomicUsize = AtomicUsize::new(0);

/// Says that a test couldn't run. `make test` collects and counts, since runners hide what tests print
/// that pass.
pub(crate) fn skip(why: &str) {
    let line = format!("SKIPPED {}: {why}", std::thread::current().name().unwrap_or("a test"));
    eprintln!("{line}");
    if let Some(log) = std::env::var_os("GAISNET_SKIP_LOG") {
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        writeln!(log, "{line}").unwrap();
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A mosquitto process on a free port, with its configuration in a directory of its own. Killed when
/// dropped.
pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    pub(crate) dir: TempDir,
    child: Child,
}

impl Mosquitto {
    /// Starts one that lets anybody in. `None`, counted, where mosquitto isn't installed.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("allow_anonymous true")
    }

    /// Starts one with these lines after the listener's; `DIR` in them is its directory.
    pub(crate) fn start_with(lines: &str) -> Option<Self> {
        Self::start_in(tempfile::tempdir().unwrap(), lines)
    }

    /// The same in a directory that holds files already.
    pub(crate) fn start_in(dir: TempDir, lines: &str) -> Option<Self> {
        let listener = "persistence false\nset_tcp_nodelay true\nlistener PORT 127.0.0.1";
        Self::start_as(dir, &format!("{listener}\n{lines}"))
    }

    /// A configuration for [`Mosquitto::shipped`]: passwords and the access list, nothing else.
    pub(crate) const GUARDED: &str = "persistence false\nset_tcp_nodelay true\nlistener PORT 127.0.0.1\n\
        allow_anonymous false\nacl_file DIR/gaisnet.acl\npassword_file DIR/gaisnet.passwd\n";

    /// Starts one with a configuration of `brokers/mosquitto`, this access list, and users whose
    /// passwords are their names. Everything is logged.
    pub(crate) fn shipped(config: &str, list: &str, users: &[&str]) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        certificates(dir.path());
        std::fs::write(dir.path().join("gaisnet.acl"), list).unwrap();
        std::fs::write(dir.path().join("gaisnet.passwd"), "").unwrap();
        for user in users {
            let _ = Command::new("mosquitto_passwd")
                .args(["-b", "gaisnet.passwd", user, user])
                .current_dir(dir.path())
                .output();
        }
        let config = config
            .replace("listener 1883", "listener PORT")
            .replace("listener 8883", "listener PORT")
            .replace("/etc/mosquitto/", "DIR/")
            .replace("/var/lib/mosquitto/", "DIR/");
        Self::start_as(dir, &format!("{config}\nlog_type all\n"))
    }

    /// Starts one with a whole configuration, `PORT` and `DIR` filled in.
    pub(crate) fn start_as(dir: TempDir, config: &str) -> Option<Self> {
        let Some(program) = mosquitto() else {
            skip("mosquitto is not installed (apt install mosquitto)");
            return None;
        };
        let port = free_port();
        let path = dir.path().to_str().unwrap();
        let config = config.replace("DIR", path).replace("PORT", &port.to_string());
        let config = format!("user root\nlog_dest file {path}/log\n{config}\n");
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let child = spawn(&program, dir.path());
        let this = Self { port, dir, child };
        this.wait_until_it_listens();
        Some(this)
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port with the same configuration.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&mosquitto().unwrap(), self.dir.path());
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&self) {
        let listens = (0..600).any(|_| {
            std::thread::park_timeout(Duration::from_millis(50));
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        assert!(listens, "mosquitto doesn't listen: {log}");
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, dir: &Path) -> Child {
    Command::new(program)
        .arg("-c")
        .arg(dir.join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn mosquitto() -> Option<PathBuf> {
    ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

/// Writes ca.pem, server.pem + .key (for the name `localhost` only), client.pem + .key and a
/// stranger's stranger.pem into `dir`.
pub(crate) fn certificates(dir: &Path) {
    for authority in ["ca", "stranger"] {
        openssl(
            dir,
            &format!(
                "req -x509 {NEW_KEY} -keyout {authority}.key -out {authority}.pem -days 2 \
                 -subj /CN={authority}"
            ),
        );
    }
    std::fs::write(dir.join("server.ext"), "subjectAltName=DNS:localhost\n").unwrap();
    std::fs::write(dir.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for name in ["server", "client"] {
        openssl(dir, &format!("req {NEW_KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -extfile {name}.ext -out {name}.pem"
            ),
        );
    }
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn openssl(dir: &Path, arguments: &str) {
    let done = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Settings for a broker on this machine, with short waits.
pub(crate) fn settings(port: u16, client: &str) -> MqttSettings {
    let mut settings = MqttSettings::new("127.0.0.1", port, client);
    settings.retry_min_ms = 20;
    settings.retry_max_ms = 200;
    settings
}

/// A QoS 1 message of the update class.
pub(crate) fn message(topic: &str, payload: impl Into<Vec<u8>>) -> Publish {
    Publish {
        topic: topic.into(),
        payload: payload.into(),
        at_least_once: true,
        retain: false,
        priority: Priority::Update,
    }
}

/// The same, retained.
pub(crate) fn kept(topic: &str, payload: impl Into<Vec<u8>>) -> Publish {
    Publish { retain: true, ..message(topic, payload) }
}

/// A link and what it reports.
pub(crate) struct Peer {
    pub(crate) bus: MqttBus,
    pub(crate) events: mpsc::Receiver<BusEvent>,
    name: String,
    sync: String,
}

impl Peer {
    /// Starts a link; doesn't wait.
    pub(crate) fn new(settings: MqttSettings) -> Self {
        let sync = format!("sync/{}", PEERS.fetch_add(1, Ordering::Relaxed));
        let name = format!("{} (port {})", settings.client_id, settings.port);
        let (bus, events) = MqttBus::connect(settings, 1).unwrap();
        Self { bus, events, name, sync }
    }

    /// A link that is up.
    pub(crate) async fn up(port: u16, client: &str) -> Self {
        let mut this = Self::new(settings(port, client));
        this.connected().await;
        this
    }

    /// Subscribes, and waits until the broker has done it. What is retained comes later or is lost
    /// in between: so only for filters without retained values.
    pub(crate) async fn listen(&mut self, filters: &[&str]) {
        let mut all: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        all.push(self.sync.clone());
        self.bus.subscribe(&all).unwrap();
        self.bus.publish(message(&self.sync, "in sync")).unwrap();
        while self.delivery().await.0 != self.sync {}
        // Until the broker's acknowledgement is here too, a break would send it again.
        while self.bus.queued_bytes() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn next(&mut self) -> BusEvent {
        let Ok(event) = timeout(PATIENCE, self.events.recv()).await else {
            panic!("no event came at {}", self.name)
        };
        event.expect("the link ended")
    }

    /// Waits for the link; whether the broker kept no session.
    pub(crate) async fn connected(&mut self) -> bool {
        loop {
            if let BusEvent::Connected { fresh } = self.next().await {
                return fresh;
            }
        }
    }

    /// Waits for the link to go down; why.
    pub(crate) async fn disconnected(&mut self) -> String {
        loop {
            if let BusEvent::Disconnected { reason } = self.next().await {
                return reason;
            }
        }
    }

    /// The next message, not acknowledged.
    pub(crate) async fn held(&mut self) -> Delivery {
        loop {
            if let BusEvent::Delivery(delivery) = self.next().await {
                return delivery;
            }
        }
    }

    /// The next message, acknowledged: topic, payload, retained.
    pub(crate) async fn delivery(&mut self) -> (String, String, bool) {
        let Delivery { topic, payload, retained, ack } = self.held().await;
        ack.release();
        (topic, String::from_utf8_lossy(&payload).into_owned(), retained)
    }

    /// Payloads of the next `count` messages, acknowledged.
    pub(crate) async fn payloads(&mut self, count: usize) -> Vec<String> {
        let mut payloads = Vec::new();
        for _ in 0..count {
            payloads.push(self.delivery().await.1);
        }
        payloads
    }

    /// Says goodbye and waits for its end.
    pub(crate) async fn leave(mut self) {
        self.bus.close(5_000);
        while timeout(PATIENCE, self.events.recv()).await.expect("link doesn't end").is_some() {}
    }
}

/// A TCP proxy that can hold back what goes to the broker and cut connections.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    frozen: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    listening: AbortHandle,
}

impl Proxy {
    pub(crate) async fn before(target: u16) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let frozen = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (ice, list) = (Arc::clone(&frozen), Arc::clone(&connections));
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let handle = tokio::spawn(pass(client, target, Arc::clone(&ice))).abort_handle();
                list.lock().unwrap().push(handle);
            }
        });
        Self { port, frozen, connections, listening: listening.abort_handle() }
    }

    /// Holds back what comes from clients, or lets it flow again.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Drops all connections; new ones are welcome.
    pub(crate) fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn pass(client: tokio::net::TcpStream, target: u16, frozen: Arc<AtomicBool>) {
    let address = SocketAddr::from(([127, 0, 0, 1], target));
    let Ok(server) = tokio::net::TcpStream::connect(address).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(bytes @ 1..) = from_client.read(&mut buffer).await {
            while frozen.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(5)).await;
            }
            if to_server.write_all(&buffer[..bytes]).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
