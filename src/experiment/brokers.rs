//! The brokers of a federation: real, or in memory one a site and one for the federation; and what a node's
//! links to them are.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::ExperimentError;
use super::places::Place;
use crate::bus::memory::{Faults, MemoryBroker};
use crate::bus::mqtt::{MqttBus, MqttSettings};
use crate::bus::{Bus, BusEvent};
use crate::ids::{Name, Side};
use crate::node::SettingsProblem;
use crate::trust::keyring::Role;

/// A broker that lets anybody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Name or address.
    pub host: String,
    /// Port, without TLS.
    pub port: u16,
}

impl std::str::FromStr for Broker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = text.rsplit_once(':').and_then(|(host, port)| {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            (!host.is_empty()).then(|| Self { host: host.to_owned(), port })
        });
        found.ok_or_else(|| format!("{text:?} isn't HOST:PORT, as in localhost:1883"))
    }
}

pub(super) type Links = BTreeMap<Side, (Arc<dyn Bus>, mpsc::Receiver<BusEvent>)>;

/// The brokers of a federation.
pub(super) enum Brokers<'a> {
    Memory { federation: MemoryBroker, sites: BTreeMap<Name, MemoryBroker> },
    Real(&'a Broker),
}

impl<'a> Brokers<'a> {
    pub(super) fn new(real: Option<&'a Broker>, places: &[Place]) -> Self {
        if let Some(broker) = real {
            return Self::Real(broker);
        }
        let broker = || MemoryBroker::new(Faults::none(0));
        let edges = places.iter().filter(|place| place.role == Role::Edge);
        let sites = edges.map(|place| (place.site.clone(), broker())).collect();
        Self::Memory { federation: broker(), sites }
    }

    pub(super) fn links(&self, place: &Place) -> Result<Links, ExperimentError> {
        let sides: &[Side] = match place.role {
            Role::Cloud => &[Side::Down],
            Role::Edge => &[Side::Down, Side::Up],
            _ => &[Side::Up],
        };
        let mut links = Links::new();
        for side in sides {
            match self {
                Self::Memory { federation, sites } => {
                    let outside =
                        place.role == Role::Cloud || place.role == Role::Edge && *side == Side::Up;
                    let broker = if outside { Some(federation) } else { sites.get(&place.site) };
                    if let Some(broker) = broker {
                        let (bus, events) = broker.connect(place.node.as_str(), None);
                        links.insert(*side, (Arc::new(bus), events));
                    }
                }
                Self::Real(Broker { host, port }) => {
                    let client = format!("{}-{side:?}", place.node).to_lowercase();
                    let mut link = MqttSettings::new(host, *port, &client);
                    link.max_packet_bytes = MAX_PACKET_BYTES;
                    let (bus, events) = MqttBus::connect(link, 1).map_err(SettingsProblem::from)?;
                    links.insert(*side, (Arc::new(bus), events));
                }
            }
        }
        Ok(links)
    }
}

/// Room for a chunk of any size that settings allow.
const MAX_PACKET_BYTES: usize = 1 << 20;
