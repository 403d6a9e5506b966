//! `gaisnet broker`: an MQTT 3.1.1 broker for demos, tests and a single small site.
//!
//! rumqttd's router moves the messages; everything a client can touch is ours:
//! ```text
//! socket -> connection.rs (handshake, access, limits, retained values, acknowledgements)
//!                -> rumqttd's Router -> writer.rs (SUBACK, retained values, QoS) -> socket
//! ```
//! The front keeps from the router what harms it: client ids and topics are mapped to plain ASCII
//! beginnings, acknowledgements reach it in order, and it never has a reason to throw a client out.
//!
//! Not for plants that depend on it: nothing is kept on disk, there is no TLS, and a subscriber that
//! falls more than its log behind (`segment_bytes` x `segments`) misses messages. A plant's own broker
//! is the place for that; `brokers/` holds configurations.

mod access;
mod connection;
mod front;
mod house;
mod names;
mod packet;
mod retained;
mod stats;
mod writer;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use stats::{BrokerStats, Traffic};

use front::Front;

/// Where the broker listens, who may do what, and its limits. As TOML: `brokers/embedded.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerSettings {
    /// Address and port; port 0 takes a free one. Without users it must be a loopback address.
    pub listen: SocketAddr,
    /// Who may connect. Empty: anybody, and everything is allowed.
    pub users: Vec<BrokerUser>,
    /// Largest payload of a message. 256 KiB.
    pub max_payload_bytes: usize,
    /// Connections at a time. 1,000.
    pub max_connections: usize,
    /// Sessions that are kept for clients that come back. 1,000.
    pub max_sessions: usize,
    /// Retained values. 10,000.
    pub max_retained: usize,
    /// Size of one piece of a filter's log; it bounds how far a subscriber may fall behind. 4 MiB.
    pub segment_bytes: usize,
    /// Pieces of a filter's log. 2.
    pub segments: usize,
    /// How long the router may take to answer the health check, milliseconds. 5,000.
    pub health_timeout_ms: u64,
    /// How often traffic is published on `$SYS/gaisnet/bytes`, milliseconds. 10,000.
    pub stats_every_ms: u64,
}

/// A user of the embedded broker.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerUser {
    /// User name.
    pub name: String,
    /// Password. Never printed.
    pub password: String,
    /// Filters that it may subscribe, or any narrower one.
    #[serde(default)]
    pub read: Vec<String>,
    /// Filters of the topics that it may publish on.
    #[serde(default)]
    pub write: Vec<String>,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            users: Vec::new(),
            max_payload_bytes: 256 << 10,
            max_connections: 1_000,
            max_sessions: 1_000,
            max_retained: 10_000,
            segment_bytes: 4 << 20,
            segments: 2,
            health_timeout_ms: 5_000,
            stats_every_ms: 10_000,
        }
    }
}

impl std::fmt::Debug for BrokerUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why the broker didn't start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Anybody on the network could use it.
    #[error(
        "refusing to listen on {listen} without users: set users with passwords, or listen on 127.0.0.1"
    )]
    OpenToAll {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// The port is taken or not allowed.
    #[error("cannot listen on {listen}: {source}")]
    Bind {
        /// The address asked for.
        listen: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// A setting makes no sense.
    #[error("{key} {problem}")]
    Setting {
        /// Which.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The router answers no more. Nothing can be done but to start the process again.
    #[error("the router is dead: it didn't pass on the health check's message")]
    RouterDead,
    /// No runtime or signal handler.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl BrokerError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OpenToAll { .. } => "broker_open_to_all",
            Self::Bind { .. } => "broker_bind",
            Self::Setting { .. } => "broker_setting",
            Self::RouterDead => "broker_router_dead",
            Self::Start(_) => "broker_start",
        }
    }
}

/// A running broker. Dropped, it stops at once.
///
/// Its router is a thread that rumqttd can't end; it sleeps until the process ends.
pub struct EmbeddedBroker {
    front: Arc<Front>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    dead: watch::Receiver<bool>,
    accepting: JoinHandle<()>,
    house: JoinHandle<()>,
}

impl EmbeddedBroker {
    /// Starts a broker on the current tokio runtime.
    ///
    /// # Errors
    /// [`BrokerError`]: an address that may not be used, or settings that make no sense.
    pub async fn start(settings: BrokerSettings) -> Result<Self, BrokerError> {
        check(&settings)?;
        let listen = settings.listen;
        let bind = |source| BrokerError::Bind { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (stop, stopped) = watch::channel(false);
        let (dying, dead) = watch::channel(false);
        let front = Arc::new(Front::new(settings, stopped));
        let house = tokio::spawn(house::run(Arc::clone(&front), dying));
        let accepting = tokio::spawn(front::accept(Arc::clone(&front), listener));
        tracing::info!(%address, "broker listens");
        Ok(Self { front, address, stop, dead, accepting, house })
    }

    /// Where it listens, with the port that was found.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Traffic since the start.
    pub fn stats(&self) -> BrokerStats {
        self.front.stats.snapshot()
    }

    /// Waits until the router is dead.
    pub async fn died(&self) -> BrokerError {
        // An error means that the watching task is gone, which is as bad.
        let _ = self.dead.clone().wait_for(|dead| *dead).await;
        BrokerError::RouterDead
    }

    /// Closes all connections and the port, and waits for it. No wills are published.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.house.abort();
    }
}

/// Runs a broker until Ctrl-C or SIGTERM, as a process of its own. `started` gets the address.
///
/// # Errors
/// [`BrokerError`]; the process should end non-zero.
pub fn run(settings: BrokerSettings, started: impl FnOnce(SocketAddr)) -> Result<(), BrokerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(BrokerError::Start)?;
    runtime.block_on(async {
        let mut terminated =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .map_err(BrokerError::Start)?;
        let broker = EmbeddedBroker::start(settings).await?;
        started(broker.address());
        tokio::select! {
            biased;
            error = broker.died() => return Err(error),
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        broker.stop().await;
        Ok(())
    })
}

fn check(settings: &BrokerSettings) -> Result<(), BrokerError> {
    if settings.users.is_empty() && !settings.listen.ip().is_loopback() {
        return Err(BrokerError::OpenToAll { listen: settings.listen });
    }
    let problem = |key, problem: &str| Err(BrokerError::Setting { key, problem: problem.into() });
    if settings.max_payload_bytes == 0 || settings.max_payload_bytes > MAX_PAYLOAD_BYTES {
        return problem("max_payload_bytes", "must lie between 1 and 268,000,000");
    }
    if settings.segment_bytes < 64 << 10 || settings.segments == 0 {
        return problem("segment_bytes", "must be 65,536 or more, and segments 1 or more");
    }
    access::check(&settings.users)
}

/// A little below what MQTT's length field can say, for the topic.
const MAX_PAYLOAD_BYTES: usize = 268_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> BrokerSettings {
        BrokerSettings { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Default::default() }
    }

    #[tokio::test]
    async fn port_0_gives_a_free_port_and_a_taken_port_is_an_error() {
        let broker = EmbeddedBroker::start(free()).await.unwrap();
        assert_ne!(broker.address().port(), 0);
        let settings = BrokerSettings { listen: broker.address(), ..free() };
        let error = EmbeddedBroker::start(settings).await.err().unwrap();
        assert_eq!(error.kind(), "broker_bind");
        let address = broker.address();
        broker.stop().await;
        TcpListener::bind(address).await.unwrap();
    }

    #[tokio::test]
    async fn broker_without_users_stays_on_loopback() {
        let listen = SocketAddr::from(([0, 0, 0, 0], 0));
        let error = EmbeddedBroker::start(BrokerSettings { listen, ..free() }).await.err().unwrap();
        assert_eq!(error.kind(), "broker_open_to_all");
        let user = BrokerUser {
            name: "a".into(),
            password: "b".into(),
            read: vec!["#".into()],
            write: Vec::new(),
        };
        assert!(!format!("{user:?}").contains('b') || !format!("{user:?}").contains("password"));
        let settings = BrokerSettings { listen, users: vec![user], ..free() };
        EmbeddedBroker::start(settings).await.unwrap();
    }

    #[tokio::test]
    async fn user_with_a_filter_that_is_none_is_named() {
        let user = BrokerUser {
            name: "press".into(),
            password: "b".into(),
            read: vec!["a/#/b".into()],
            write: Vec::new(),
        };
        let settings = BrokerSettings { users: vec![user], ..free() };
        let error = EmbeddedBroker::start(settings).await.err().unwrap().to_string();
        assert!(error.contains("press") && error.contains("a/#/b"), "{error}");
    }
}
