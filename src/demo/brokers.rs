//! The pilot's three brokers, and the bytes that went through them by tier.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use super::DemoError;
use super::plant::Brokers;
use crate::bus::embedded::{BrokerSettings, BrokerStats, EmbeddedBroker};

/// What each broker has counted, by site.
pub(super) type AllStats = BTreeMap<&'static str, BrokerStats>;

/// Running brokers, on threads of their own.
pub(super) struct Three {
    runtime: tokio::runtime::Runtime,
    running: BTreeMap<&'static str, EmbeddedBroker>,
}

impl Three {
    /// Starts the federation's broker and one a site, on free ports of loopback.
    pub(super) fn start() -> Result<Self, DemoError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("broker")
            .enable_all()
            .build()
            .map_err(|error| DemoError::Start(error.to_string()))?;
        let mut running = BTreeMap::new();
        for site in ["_", "north", "south"] {
            let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let settings = BrokerSettings { listen, ..BrokerSettings::default() };
            running.insert(site, runtime.block_on(EmbeddedBroker::start(settings))?);
        }
        Ok(Self { runtime, running })
    }

    /// Where they listen.
    pub(super) fn addresses(&self) -> Brokers {
        self.running.iter().map(|(site, broker)| (*site, broker.address())).collect()
    }

    /// What each has counted.
    pub(super) fn stats(&self) -> AllStats {
        self.running.iter().map(|(site, broker)| (*site, broker.stats())).collect()
    }

    /// Stops them.
    pub(super) fn stop(self) {
        for broker in self.running.into_values() {
            self.runtime.block_on(broker.stop());
        }
    }
}
