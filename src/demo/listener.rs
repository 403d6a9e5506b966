//! A listener at each broker: hears every topic, as the broker's owner could, and asks nodes for
//! their status as an operator would.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::DemoError;
use super::brokers::{Brokers, called};
use super::plant::Place;
use crate::bus::mqtt::MqttBus;
use crate::bus::{Bus, BusError, BusEvent, Delivery, Priority, Publish};
use crate::time::Wall;

/// See the module.
pub(super) struct Listener {
    buses: BTreeMap<&'static str, MqttBus>,
    events: mpsc::Receiver<(&'static str, BusEvent)>,
}

/// What a broker passed on.
pub(super) struct Heard {
    /// Whose broker.
    pub(super) site: &'static str,
    /// The message.
    pub(super) delivery: Delivery,
}

impl Listener {
    /// Listens to everything at each broker, on the current runtime; waits until it does.
    ///
    /// # Errors
    /// [`DemoError::Broker`] for one that doesn't let us in.
    pub(super) async fn start(brokers: &Brokers) -> Result<Self, DemoError> {
        let (sender, events) = mpsc::channel(QUEUE);
        let mut buses = BTreeMap::new();
        for (site, at) in brokers {
            let (bus, mut events) = MqttBus::connect(at.client("gaisnet-demo", "demo")?, 0)?;
            bus.subscribe(&["#".to_owned()]).map_err(|error| DemoError::start(&error))?;
            buses.insert(*site, bus);
            let (site, sender) = (*site, sender.clone());
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    if sender.send((site, event)).await.is_err() {
                        return;
                    }
                }
            });
        }
        let mut this = Self { buses, events };
        this.connected().await?;
        Ok(this)
    }

    /// The next message; waits for ever when there is none. May be dropped at any time.
    ///
    /// # Errors
    /// [`DemoError::Broker`] when a broker doesn't let us listen.
    pub(super) async fn next(&mut self) -> Result<Heard, DemoError> {
        loop {
            match self.events.recv().await {
                Some((site, BusEvent::Delivery(delivery))) => return Ok(Heard { site, delivery }),
                Some((site, BusEvent::SubscriptionRefused { filter })) => {
                    let reason = format!("the user demo may not read {filter}");
                    return Err(DemoError::Broker { site: called(site).to_owned(), reason });
                }
                Some((site, BusEvent::Disconnected { reason })) => {
                    tracing::warn!(site = called(site), reason, "a broker is away");
                }
                Some((_, BusEvent::Connected { .. })) => {}
                None => return Err(DemoError::start(&"the links to the brokers ended")),
            }
        }
    }

    /// Sends the command `status` to a node; its reply will be heard.
    pub(super) fn ask(&self, place: &Place, now: Wall) {
        let topic = format!("{}/cmd/status", place.branch());
        // It will be asked again.
        let _ = self.say(place.site, topic, format!("{{\"id\":\"demo-{}\"}}", now.0).into_bytes());
    }

    /// Publishes at a site's broker.
    ///
    /// # Errors
    /// What the link says.
    pub(super) fn say(&self, site: &str, topic: String, payload: Vec<u8>) -> Result<(), BusError> {
        let (at_least_once, retain, priority) = (true, false, Priority::Control);
        let message = Publish { topic, payload, at_least_once, retain, priority };
        self.buses.get(site).map_or(Err(BusError::Closed), |bus| bus.publish(message))
    }

    async fn connected(&mut self) -> Result<(), DemoError> {
        let mut missing: BTreeSet<&str> = self.buses.keys().copied().collect();
        let mut reasons = BTreeMap::new();
        let all = async {
            while !missing.is_empty() {
                match self.events.recv().await {
                    Some((site, BusEvent::Connected { .. })) => {
                        missing.remove(site);
                    }
                    Some((site, BusEvent::Disconnected { reason })) => {
                        reasons.insert(site, reason);
                    }
                    Some(_) => {}
                    None => return,
                }
            }
        };
        let _ = timeout(CONNECT_WITHIN, all).await;
        match missing.first() {
            None => Ok(()),
            Some(site) => {
                let reason = reasons.remove(site).unwrap_or_else(|| "no answer".to_owned());
                Err(DemoError::Broker { site: called(site).to_owned(), reason })
            }
        }
    }
}

const QUEUE: usize = 256;
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
