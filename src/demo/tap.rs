//! A listener at the federation's broker: counts everything that the sites send there, whatever it
//! is. It knows no more than a broker's owner would: topics and sizes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::DemoError;
use crate::bus::mqtt::{MqttBus, MqttSettings};
use crate::bus::{Bus, BusEvent};
use crate::report::Crossing;
use crate::topic::{self, Leaf, Prefix};

/// Messages and bytes by what they are.
type Counts = Arc<Mutex<BTreeMap<Kind, (u64, u64)>>>;

/// What a message is, and whether it tells of a single sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    what: String,
    per_sample: bool,
}

/// See the module.
pub(super) struct Tap {
    counts: Counts,
    // Dropping the link ends it.
    _bus: MqttBus,
}

impl Tap {
    /// Listens to every topic of the broker, on the current runtime.
    pub(super) fn start(broker: SocketAddr, prefix: Prefix) -> Result<Self, DemoError> {
        let start = |error: &dyn std::fmt::Display| DemoError::Start(error.to_string());
        let settings = MqttSettings::new(&broker.ip().to_string(), broker.port(), "tap");
        let (bus, mut events) = MqttBus::connect(settings, 0).map_err(|error| start(&error))?;
        bus.subscribe(&["#".to_owned()]).map_err(|error| start(&error))?;
        let counts = Counts::default();
        let mine = Arc::clone(&counts);
        actix::spawn(async move {
            while let Some(event) = events.recv().await {
                let BusEvent::Delivery(delivery) = event else { continue };
                if let Some(kind) = crossing(&prefix, &delivery.topic) {
                    let mut counts = mine.lock().unwrap_or_else(PoisonError::into_inner);
                    let (messages, bytes) = counts.entry(kind).or_default();
                    *messages += 1;
                    *bytes += delivery.payload.len() as u64;
                }
                delivery.ack.release();
            }
        });
        Ok(Self { counts, _bus: bus })
    }

    /// What was heard so far.
    pub(super) fn crossings(&self) -> Vec<Crossing> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |(kind, (messages, bytes)): (&Kind, &(u64, u64))| Crossing {
            what: kind.what.clone(),
            messages: *messages,
            bytes: *bytes,
            per_sample: kind.per_sample,
        };
        counts.iter().map(row).collect()
    }
}

/// What a message of this topic is, unless the cloud itself sent it. What isn't known to be free
/// of samples counts as telling of them.
fn crossing(prefix: &Prefix, topic: &str) -> Option<Kind> {
    let Some(parsed) = topic::parse(prefix, topic) else {
        return Some(Kind { what: "plant topic".into(), per_sample: true });
    };
    if parsed.branch.site.as_str() == "_" {
        return None;
    }
    let (what, per_sample) = match parsed.leaf {
        Leaf::Machine(kind) | Leaf::To(_, kind) => (kind.to_string(), kind.as_str() == "frame"),
        Leaf::Status => ("status".to_owned(), false),
        Leaf::Meta => ("meta".to_owned(), false),
        Leaf::Kpi => ("kpi".to_owned(), false),
        Leaf::Event(_) => ("event".to_owned(), false),
        Leaf::Cmd(_) => ("command".to_owned(), false),
        Leaf::Inference(_)
        | Leaf::InferenceField(..)
        | Leaf::Infer(_)
        | Leaf::Reply(_)
        | Leaf::Stream(_) => ("request or answer".to_owned(), true),
    };
    Some(Kind { what, per_sample })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_of_samples_is_told_from_what_does_not() {
        let prefix = Prefix::new("gaisnet").unwrap();
        let of = |topic: &str| crossing(&prefix, topic).map(|kind| (kind.what, kind.per_sample));
        let some = |what: &str, per_sample| Some((what.to_owned(), per_sample));
        let edge = "gaisnet/v1/north/_/edge-north";
        assert_eq!(of(&format!("{edge}/m/contribution")), some("contribution", false));
        assert_eq!(of(&format!("{edge}/to/cloud/chunk")), some("chunk", false));
        assert_eq!(of(&format!("{edge}/inference/bearing")), some("request or answer", true));
        assert_eq!(of(&format!("{edge}/m/frame")), some("frame", true));
        assert_eq!(of("plant/north/p1/vibration"), some("plant topic", true));
        assert_eq!(of("gaisnet/v1/_/_/cloud/m/offer"), None);
    }
}
