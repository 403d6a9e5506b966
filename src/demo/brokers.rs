//! Where the pilot's three brokers are: the demo's own, or yours.
//!
//! Yours are told in a TOML file with the sections `[bus.federation]`, `[bus.north]` and
//! `[bus.south]`. User names are those of `gaisnet acl`: a node's own, `feed` for the sensor
//! gateways, and `demo` for the listener, which reads everything and may ask for `status`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::DemoError;
use super::plant::quoted;
use crate::bus::mqtt::{MqttSettings, TlsSettings};

/// Brokers by site; `_` is the federation's.
pub(super) type Brokers = BTreeMap<&'static str, BrokerAt>;

/// The federation's place and the sites, each with a broker.
pub(super) const SITES: [&str; 3] = ["_", "north", "south"];

/// One broker, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BrokerAt {
    /// Name or address; with TLS it must be in the certificate.
    pub(super) host: String,
    /// TCP port.
    pub(super) port: u16,
    /// Authority of its certificate, PEM; switches TLS on.
    pub(super) ca: Option<PathBuf>,
    /// Folder in which each user's password lies in a file of the user's name.
    pub(super) passwords: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokersFile {
    bus: Three,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Three {
    federation: BrokerAt,
    north: BrokerAt,
    south: BrokerAt,
}

/// Reads the file; relative paths in it count from its folder.
pub(super) fn read(path: &Path) -> Result<Brokers, DemoError> {
    let path = std::path::absolute(path).map_err(DemoError::file(path))?;
    let text = std::fs::read_to_string(&path).map_err(DemoError::file(&path))?;
    let BrokersFile { bus } = toml::from_str(&text).map_err(|error| DemoError::Brokers {
        path: path.display().to_string(),
        problem: error.to_string(),
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let all = [("_", bus.federation), ("north", bus.north), ("south", bus.south)];
    Ok(all.into_iter().map(|(site, at)| (site, at.below(folder))).collect())
}

/// `federation` or the site, for people.
pub(super) fn called(site: &str) -> &str {
    if site == "_" { "the federation" } else { site }
}

impl BrokerAt {
    /// One of the demo's own.
    pub(super) fn own(port: u16) -> Self {
        Self { host: "127.0.0.1".into(), port, ca: None, passwords: None }
    }

    /// Writes the link's keys for a node.
    pub(super) fn settings_of(&self, link: &str, user: &str, set: &mut impl FnMut(&str, String)) {
        set(&format!("{link}.host"), quoted(&self.host));
        set(&format!("{link}.port"), self.port.to_string());
        if let Some(passwords) = &self.passwords {
            set(&format!("{link}.username"), quoted(user));
            let file = passwords.join(user).display().to_string();
            set(&format!("{link}.password_file"), quoted(&file));
        }
        if let Some(ca) = &self.ca {
            set(&format!("{link}.tls.ca"), quoted(&ca.display().to_string()));
        }
    }

    /// How a client of the demo itself gets in.
    pub(super) fn client(&self, id: &str, user: &str) -> Result<MqttSettings, DemoError> {
        let mut mqtt = MqttSettings::new(&self.host, self.port, id);
        if let Some(passwords) = &self.passwords {
            let path = passwords.join(user);
            let text = std::fs::read_to_string(&path).map_err(DemoError::file(&path))?;
            mqtt.username = Some(user.to_owned());
            mqtt.password = text.lines().next().map(str::to_owned);
        }
        mqtt.tls = self.ca.clone().map(|ca_file| TlsSettings { ca_file, client: None });
        mqtt.retry_max_ms = RETRY_MAX_MS;
        Ok(mqtt)
    }

    /// The `mosquitto_pub` by which a person says the same as the demo.
    pub(super) fn mosquitto_pub(&self, user: &str) -> String {
        let mut words = vec![format!("mosquitto_pub -h {} -p {}", self.host, self.port)];
        if let Some(ca) = &self.ca {
            words.push(format!("--cafile {}", ca.display()));
        }
        if let Some(passwords) = &self.passwords {
            let password = passwords.join(user);
            words.push(format!("-u {user} -P \"$(cat {})\"", password.display()));
        }
        words.push("-q 1".to_owned());
        words.join(" ")
    }

    fn below(mut self, folder: &Path) -> Self {
        for path in [&mut self.ca, &mut self.passwords].into_iter().flatten() {
            *path = folder.join(&path);
        }
        self
    }
}

/// A demo doesn't wait a minute for a broker that comes back.
const RETRY_MAX_MS: u32 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[bus.federation]\nhost = \"f\"\nport = 1\n[bus.north]\nhost = \"n\"\nport = 2\nca = \
                        \"ca.pem\"\npasswords = \"pw\"\n[bus.south]\nhost = \"s\"\nport = 3\n";

    fn parsed(text: &str) -> Result<Brokers, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("brokers.toml");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn paths_count_from_the_file_and_a_node_logs_in_under_its_name() {
        let brokers = parsed(FILE).unwrap();
        let mut lines = Vec::new();
        brokers["north"].settings_of("bus.site", "p1", &mut |key, value| {
            lines.push(format!("{key}={value}"));
        });
        assert_eq!(
            lines[..3],
            ["bus.site.host=\"n\"", "bus.site.port=2", "bus.site.username=\"p1\""]
        );
        assert!(lines[3].ends_with("/pw/p1\"") && lines[4].ends_with("/ca.pem\""), "{lines:?}");
        assert!(brokers["_"].client("id", "demo").unwrap().username.is_none());
    }

    #[test]
    fn a_missing_broker_and_an_unknown_key_are_named() {
        let two = FILE.split("[bus.south]").next().unwrap();
        assert!(parsed(two).unwrap_err().contains("south"));
        let odd = FILE.replace("passwords", "pasword");
        assert!(parsed(&odd).unwrap_err().contains("pasword"));
    }
}
