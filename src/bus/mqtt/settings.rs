//! What a link needs to know, and the errors of settings that can't work.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rumqttc::{AckMode, LastWill, MqttOptions, QoS, TlsConfiguration, Transport};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::bus::Publish;

/// Where the broker is, who we are, and the link's limits.
#[derive(Clone)]
pub struct MqttSettings {
    /// Name or address. With TLS it must be in the server's certificate.
    pub host: String,
    /// 1883 is usual, 8883 with TLS.
    pub port: u16,
    /// Stable over restarts, else the broker's session is lost; different for each node.
    pub client_id: String,
    /// User name, if the broker wants one.
    pub username: Option<String>,
    /// Its password. Never printed.
    pub password: Option<String>,
    /// Encryption; plain TCP without it.
    pub tls: Option<TlsSettings>,
    /// Seconds of silence after which a ping is sent. 30.
    pub keep_alive_s: u16,
    /// Seconds that connecting, and one flush of the socket, may take. 30.
    pub connection_timeout_s: u64,
    /// Largest packet, both ways, with its header. Stay below the broker's limit. 256 KiB.
    pub max_packet_bytes: usize,
    /// Largest packet that is read, if that is more: what is larger ends the connection, and the next
    /// one begins a new session, so that it doesn't come again. None: `max_packet_bytes`.
    pub max_incoming_bytes: Option<usize>,
    /// Bytes that have arrived and aren't acknowledged by us; then we read no more. 16 MiB.
    pub inbox_bytes: usize,
    /// Bytes that wait to be sent; then `publish` says full. 64 MiB.
    pub outbox_bytes: usize,
    /// Unacknowledged messages at a time. 10, the least that brokers in plants allow.
    pub in_flight: u16,
    /// Shortest wait before the next attempt, milliseconds. 1,000.
    pub retry_min_ms: u32,
    /// Longest wait before the next attempt, milliseconds. 60,000.
    pub retry_max_ms: u32,
    /// Seconds without any acknowledgement from the broker after which the client is rebuilt. 60.
    pub stall_s: u64,
    /// What the broker publishes for us when we vanish.
    pub will: Option<Publish>,
}

/// Files for TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Certificates of the authorities that may have signed the server's.
    pub ca_file: PathBuf,
    /// Our certificate chain and its private key, if the broker asks for one (mutual TLS).
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Why a link can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MqttError {
    /// A setting makes no sense.
    #[error("{key} {problem}")]
    Setting {
        /// Which.
        key: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A PEM file can't be used.
    #[error("{role} {path}: {problem}")]
    Pem {
        /// What it is for.
        role: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Certificate and key don't fit together.
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
    /// No thread or runtime.
    #[error("cannot start the link's thread: {0}")]
    Start(std::io::Error),
}

impl MqttError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "mqtt_setting",
            Self::Pem { .. } => "mqtt_pem",
            Self::Tls(_) => "mqtt_tls",
            Self::Start(_) => "mqtt_start",
        }
    }
}

impl MqttSettings {
    /// Plain TCP without a user, every limit at its default.
    pub fn new(host: &str, port: u16, client_id: &str) -> Self {
        Self {
            host: host.into(),
            port,
            client_id: client_id.into(),
            username: None,
            password: None,
            tls: None,
            keep_alive_s: 30,
            connection_timeout_s: 30,
            max_packet_bytes: 256 << 10,
            max_incoming_bytes: None,
            inbox_bytes: 16 << 20,
            outbox_bytes: 64 << 20,
            in_flight: 10,
            retry_min_ms: 1_000,
            retry_max_ms: 60_000,
            stall_s: 60,
            will: None,
        }
    }

    /// The client's options, with the PEM files read.
    ///
    /// # Errors
    /// [`MqttError`].
    pub(super) fn options(&self) -> Result<MqttOptions, MqttError> {
        self.check()?;
        let broker = (self.host.clone(), self.port);
        let mut options = MqttOptions::new(self.client_id.clone(), broker);
        options.set_clean_session(false);
        options.set_keep_alive(self.keep_alive_s);
        let incoming = self.max_incoming_bytes.unwrap_or(0).max(self.max_packet_bytes);
        options.set_max_packet_size(incoming, self.max_packet_bytes);
        options.set_inflight(self.in_flight);
        options.set_ack_mode(AckMode::Manual);
        options.set_max_request_batch(32);
        if let Some(username) = &self.username {
            let password = self.password.clone().unwrap_or_default();
            options.set_credentials(username.clone(), password);
        }
        if let Some(will) = &self.will {
            let qos = if will.at_least_once { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            let payload = will.payload.clone();
            options.set_last_will(LastWill::new(&will.topic, payload, qos, will.retain));
        }
        if let Some(tls) = &self.tls {
            let config = Arc::new(tls.client_config()?);
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(config)));
        }
        Ok(options)
    }

    fn check(&self) -> Result<(), MqttError> {
        let problem = |key, problem| Err(MqttError::Setting { key, problem });
        if self.client_id.is_empty() {
            return problem("client_id", "is empty; the broker can't keep a session for nobody");
        }
        if self.in_flight < 2 {
            return problem("in_flight", "must be 2 or more");
        }
        if self.max_packet_bytes < 1_024 || self.max_packet_bytes > MAX_PACKET_BYTES {
            return problem("max_packet_bytes", "must lie between 1,024 and 268,435,455");
        }
        if self.keep_alive_s < 5 {
            return problem("keep_alive_s", "must be 5 or more");
        }
        Ok(())
    }
}

impl fmt::Debug for MqttSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MqttSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl TlsSettings {
    fn client_config(&self) -> Result<ClientConfig, MqttError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("CA file", &self.ca_file)? {
            roots.add(certificate)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let Some((certificate_file, key_file)) = &self.client else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates("client certificate", certificate_file)?;
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|error| unusable("client key", key_file, error.to_string()))?;
        Ok(builder.with_client_auth_cert(chain, key)?)
    }
}

fn certificates(
    role: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, MqttError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(role, path, error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable(role, path, "holds no certificate".into()));
    }
    Ok(certificates)
}

fn unusable(role: &'static str, path: &Path, problem: String) -> MqttError {
    MqttError::Pem { role, path: path.to_owned(), problem }
}

/// What the length field of an MQTT packet can say.
const MAX_PACKET_BYTES: usize = 268_435_455;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let mut settings = MqttSettings::new("h", 1, "");
        assert!(settings.options().unwrap_err().to_string().starts_with("client_id is empty"));
        settings.client_id = "n".into();
        settings.in_flight = 0;
        assert!(settings.options().unwrap_err().to_string().starts_with("in_flight"));
    }

    #[test]
    fn missing_or_empty_pem_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "no certificate here").unwrap();
        let mut settings = MqttSettings::new("h", 1, "n");
        for path in [dir.path().join("missing.pem"), empty] {
            settings.tls = Some(TlsSettings { ca_file: path.clone(), client: None });
            let error = settings.options().unwrap_err();
            assert_eq!(error.kind(), "mqtt_pem");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn password_is_never_printed() {
        let mut settings = MqttSettings::new("h", 1, "n");
        settings.password = Some("secret-word".into());
        assert!(!format!("{settings:?}").contains("secret-word"));
    }
}
