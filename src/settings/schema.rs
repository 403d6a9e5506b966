//! The settings as types: who the node is, where its files and brokers are, its bounds.
//!
//! What is learned and how is in `learning.rs`. Units and ranges are in `keys.rs`, prose is in
//! `config/default.toml`; a test keeps the three together. Optional keys are `Option`s and are
//! written out as null, so that the list of fields is complete.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cascade::CascadeSettings;
use super::feedback::{DriftSettings, FeedbackSettings};
use super::learning::{
    DataSettings, KnowledgeSettings, ModelSettings, PrivacySettings, RoundSettings, SplitSettings,
    StrategySettings, TagSettings,
};
use super::rollout::RolloutSettings;
use super::schedule::ScheduleSettings;
use crate::ids::{Name, NodeId};

/// Everything that a node is told before it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Who it is.
    pub node: NodeSettings,
    /// Where its files are.
    pub paths: PathSettings,
    /// Its brokers.
    pub bus: BusSettings,
    /// When a round opens and closes.
    pub round: RoundSettings,
    /// How contributions are made and combined.
    pub strategy: StrategySettings,
    /// How models of different kinds teach each other.
    pub knowledge: KnowledgeSettings,
    /// What learns.
    pub model: ModelSettings,
    /// Whether a site's devices have the front of the model alone.
    pub split: SplitSettings,
    /// What it learns from, if a known data set.
    #[serde(default)]
    pub data: DataSettings,
    /// What it learns from and answers on, if live topics.
    #[serde(default)]
    pub tags: Vec<TagSettings>,
    /// What may leave.
    pub privacy: PrivacySettings,
    /// Who may steer it.
    pub commands: CommandSettings,
    /// What it tells about itself.
    pub telemetry: TelemetrySettings,
    /// Bounds on disk and processor.
    pub limits: LimitSettings,
    /// When it may train, and how much of the time.
    pub schedule: ScheduleSettings,
    /// Who answers what.
    pub cascade: CascadeSettings,
    /// Which versions are served where, in stages.
    pub rollout: RolloutSettings,
    /// Labels that come late.
    pub feedback: FeedbackSettings,
    /// Whether inputs and answers change.
    pub drift: DriftSettings,
}

/// Section `[node]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// Unique in the federation.
    pub name: NodeId,
    /// `_` for the cloud.
    pub site: Name,
    /// `_` for an edge or cloud.
    pub line: Name,
    /// What it does.
    pub roles: Vec<NodeRole>,
    /// Signed in each message.
    pub federation: Name,
    /// First levels of all topics.
    pub prefix: String,
    /// The node above.
    pub parent: Option<NodeId>,
}

impl NodeSettings {
    /// Whether it has this role.
    pub fn has(&self, role: NodeRole) -> bool {
        self.roles.contains(&role)
    }

    /// Its branch of topics, `{prefix}/v1/{site}/{line}/{name}`: the only one that it writes to.
    pub fn branch(&self) -> String {
        format!("{}/v1/{}/{}/{}", self.prefix, self.site, self.line, self.name)
    }
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// A device that trains on its own data.
    Trainer,
    /// An edge between the devices of its site and the cloud.
    Relay,
    /// The cloud that owns the rounds.
    Aggregator,
    /// Answers on inference topics.
    Inferencer,
}

/// Section `[paths]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathSettings {
    /// Folder of the SQLite file and the blobs.
    pub store: PathBuf,
    /// Folder of private keys.
    pub keys: PathBuf,
    /// The federation's signed keyring.
    pub keyring: PathBuf,
}

/// Section `[bus]`: one link, two on an edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSettings {
    /// The site's broker; for the cloud, the federation's.
    pub site: LinkSettings,
    /// The federation's broker, for an edge. None: the site's broker serves both sides.
    pub parent: Option<LinkSettings>,
}

/// Sections `[bus.site]` and `[bus.parent]`: the connection to one broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSettings {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// MQTT client id, see [`LinkSettings::client_id_of`].
    pub client_id: Option<Name>,
    /// User name.
    pub username: Option<String>,
    /// File whose first line is the password.
    pub password_file: Option<PathBuf>,
    /// TLS, when a CA is given.
    #[serde(default)]
    pub tls: TlsSettings,
    /// Ping interval.
    pub keep_alive_s: u16,
    /// Bound of one connection attempt.
    pub connect_timeout_s: u16,
    /// Longest pause between attempts.
    pub reconnect_max_s: u32,
    /// Rebuilds the connection when messages wait and the broker acknowledged nothing for so long.
    pub watchdog_s: u32,
    /// Largest packet that is sent.
    pub max_packet_bytes: u32,
    /// Size of a chunk of a big body.
    pub chunk_bytes: u32,
    /// QoS 1 messages without acknowledgement at a time.
    pub in_flight: u16,
    /// Bound of what waits to be sent.
    pub send_queue_bytes: usize,
    /// Bound of what was received and isn't worked through.
    pub receive_queue_bytes: usize,
}

impl LinkSettings {
    /// The client id that was set, or the node's own one: stable, since sessions hang on it.
    pub fn client_id_of(&self, node: &NodeSettings) -> String {
        match &self.client_id {
            Some(id) => id.to_string(),
            None => format!("gaisnet-{}-{}", node.federation, node.name),
        }
    }
}

/// Sections `[bus.*.tls]`. Files, all PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The broker's certificate authority; TLS is on when it is given.
    pub ca: Option<PathBuf>,
    /// Our certificate, for mutual TLS.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
}

/// Section `[commands]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSettings {
    /// Names of harmless commands that need no signature.
    pub unsigned: Vec<String>,
}

/// Section `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetrySettings {
    /// Form of the log.
    pub log: LogFormat,
    /// Level or filter of the log.
    pub level: String,
    /// Address of the health page, if any.
    pub metrics_listen: Option<SocketAddr>,
    /// Allows an address that isn't loopback.
    pub metrics_public: bool,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Section `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// Bound of messages that wait on disk.
    pub outbox_bytes: u64,
    /// Age at which waiting messages that aren't updates are dropped.
    pub outbox_hours: u32,
    /// Fill of the disk above which new work is refused.
    pub disk_full_percent: u8,
    /// Threads that train; 0: half of the cores.
    pub train_threads: usize,
    /// Threads that answer; 0: the other half.
    pub serve_threads: usize,
    /// Memory that training a language model may take with its base, in MiB; 0: no cap.
    pub max_memory_mib: u32,
    /// A language model's training is kept on disk after every so many steps; 0: never.
    pub checkpoint_steps: u32,
    /// Adapters that have names.
    pub adapters: usize,
    /// Their values together, in MiB.
    pub adapters_mib: u32,
}
