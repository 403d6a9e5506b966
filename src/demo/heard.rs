//! What the listeners heard, counted: bytes by tier, answers, losses, who is up; and the news in
//! it. Pure. It knows no more than anybody who may read the topics, and believes what it reads:
//! figures hang on it, no decision of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plant::{PLACES, PREFIX, Place, place_of};
use crate::ids::{KeyId, RoundNo, Version};
use crate::report::Crossing;
use crate::scada::telegram::{Inference, Quality, Reply, Status};
use crate::settings::Tier;
use crate::topic::{self, Leaf, Prefix};
use crate::wire::{Blob, Body, Envelope, Head, Kind, MAX_MESSAGE_BYTES, decode, split_pair};

/// Payload and topic bytes; what is for several nodes counts once for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flow {
    /// Towards the cloud, or to SCADA.
    pub(super) up: u64,
    /// Towards the devices.
    pub(super) down: u64,
}

/// See the module. What is kept over a restart of the demo is serialised.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Learning between devices and edges.
    pub(super) sites: Flow,
    /// Learning between edges and the cloud.
    pub(super) federation: Flow,
    /// Answers and telegrams up, samples and commands down: inside the sites.
    pub(super) plant: Flow,
    /// Everything that went from a site to the federation.
    pub(super) crossings: Vec<Crossing>,
    /// Bytes of the devices' contributions, chunks included, and how many contributions.
    pub(super) contributions: (u64, u64),
    /// Milliseconds from input to answer, of the devices.
    #[serde(skip)]
    pub(super) latencies_ms: Vec<f64>,
    /// Keys of this federation: a broker may keep what another run has left there.
    #[serde(skip)]
    keys: BTreeSet<KeyId>,
    #[serde(skip)]
    online: BTreeSet<&'static str>,
    #[serde(skip)]
    spoke: BTreeSet<&'static str>,
    #[serde(skip)]
    losses: BTreeMap<&'static str, f64>,
    /// Last round that each owner offered.
    #[serde(skip)]
    offered: BTreeMap<&'static str, RoundNo>,
    /// Last round that each member contributed to.
    #[serde(skip)]
    contributed: BTreeMap<&'static str, RoundNo>,
}

/// Something that the demo waits for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum News {
    /// The cloud has published a version.
    Out {
        /// Which.
        version: Version,
        /// Its adapter.
        adapter: Blob,
    },
    /// A node says which version it has.
    Has {
        /// Who.
        node: &'static str,
        /// Which.
        version: Version,
    },
}

impl Counts {
    /// Goes on counting, in the federation with these keys.
    pub(super) fn with(self, keys: BTreeSet<KeyId>) -> Self {
        Self { keys, ..self }
    }

    /// Takes a message that `site`'s broker passed on. What was retained there counts no second
    /// time.
    pub(super) fn hear(
        &mut self,
        site: &str,
        topic: &str,
        payload: &[u8],
        retained: bool,
    ) -> Option<News> {
        let bytes = (topic.len() + payload.len()) as u64;
        let prefix = Prefix::new(PREFIX).ok()?;
        let parsed = topic::parse(&prefix, topic);
        if !retained && site == "_" {
            self.cross(parsed.as_ref(), bytes);
        }
        let Some(parsed) = parsed else {
            if !retained && site != "_" {
                self.plant.down += bytes;
            }
            return None;
        };
        let place = place_of(parsed.branch.node.as_str())?;
        if !retained {
            self.count(site, place, &parsed.leaf, bytes);
            self.spoke.insert(place.name);
        }
        self.understand(place, &parsed.leaf, payload, retained)
    }

    /// Mean loss at the end of each device's last training, in nats.
    pub(super) fn loss(&self) -> Option<f64> {
        (!self.losses.is_empty()).then(|| mean(self.losses.values()))
    }

    /// Nodes that say that they are up.
    pub(super) fn num_online(&self) -> usize {
        self.online.len()
    }

    /// A node is about to be started again: what it said of itself counts no more.
    pub(super) fn leaves(&mut self, node: &str) {
        self.online.remove(node);
    }

    /// Whether a node says that it is up.
    pub(super) fn is_online(&self, node: &str) -> bool {
        self.online.contains(node)
    }

    /// Who keeps the federation waiting, the lowest first, and which topics that may hang on.
    pub(super) fn silence(&self) -> String {
        let silent = |place: &&Place| !self.spoke.contains(place.name);
        if let Some(place) = PLACES.iter().find(silent) {
            return Self::silence_of(place);
        }
        for owner in PLACES.iter().rev() {
            let Some(round) = self.offered.get(owner.name) else { continue };
            let late = |member: &&Place| self.contributed.get(member.name) < Some(round);
            if let Some(member) = owner.children().find(late) {
                return format!(
                    "{0} doesn't contribute to round {round} of {1}: may the user {0} read {2}/m/# and \
                     write {3}/m/#? See {0}/log.txt",
                    member.name,
                    owner.name,
                    owner.branch(),
                    member.branch(),
                );
            }
        }
        let top = PLACES.iter().find(|place| place.parent.is_none()).map_or("", |top| top.name);
        format!("see {top}/log.txt")
    }

    /// What to look at when nothing comes from a node.
    pub(super) fn silence_of(place: &Place) -> String {
        format!(
            "nothing came from {0} on {1}/status: may the user {0} write below {1}? See {0}/log.txt",
            place.name,
            place.branch(),
        )
    }

    fn count(&mut self, site: &str, from: &Place, leaf: &Leaf, bytes: u64) {
        let learning = matches!(leaf, Leaf::Machine(_) | Leaf::To(..));
        let copies = match leaf {
            Leaf::Machine(_) => from.children().count().max(1) as u64,
            _ => 1,
        };
        let to_node = matches!(leaf, Leaf::Cmd(_) | Leaf::Infer(_) | Leaf::Feedback(_));
        match (site == "_", from.tier) {
            (true, Tier::Edge) if learning => self.federation.up += bytes,
            (true, Tier::Cloud) if learning => self.federation.down += bytes * copies,
            (true, _) => {}
            (false, Tier::Device) if learning => self.sites.up += bytes,
            (false, _) if learning => self.sites.down += bytes * copies,
            (false, _) if to_node => self.plant.down += bytes,
            (false, _) => self.plant.up += bytes,
        }
        let chunk = |kind: &crate::ids::Name| kind.as_str() == "chunk";
        if from.tier == Tier::Device && matches!(leaf, Leaf::To(_, kind) if chunk(kind)) {
            self.contributions.0 += bytes;
        }
    }

    /// Counts what isn't the cloud's own. What isn't known to be free of samples counts as
    /// telling of them.
    fn cross(&mut self, parsed: Option<&topic::Parsed>, bytes: u64) {
        let (what, per_sample) = match parsed {
            None => ("plant topic".to_owned(), true),
            Some(parsed) if parsed.branch.site.as_str() == "_" => return,
            Some(parsed) => match &parsed.leaf {
                Leaf::Machine(kind) | Leaf::To(_, kind) => {
                    (kind.to_string(), kind.as_str() == "frame")
                }
                Leaf::Status => ("status".to_owned(), false),
                Leaf::Meta => ("meta".to_owned(), false),
                Leaf::Kpi => ("kpi".to_owned(), false),
                Leaf::Event(_) => ("event".to_owned(), false),
                Leaf::Cmd(_) => ("command".to_owned(), false),
                Leaf::Inference(_)
                | Leaf::InferenceField(..)
                | Leaf::Infer(_)
                | Leaf::Feedback(_)
                | Leaf::Reply(_)
                | Leaf::Stream(_) => ("request or answer".to_owned(), true),
            },
        };
        let known = self.crossings.iter_mut().find(|crossing| crossing.what == what);
        match known {
            Some(crossing) => {
                crossing.messages += 1;
                crossing.bytes += bytes;
            }
            None => self.crossings.push(Crossing { what, messages: 1, bytes, per_sample }),
        }
    }

    fn understand(
        &mut self,
        from: &'static Place,
        leaf: &Leaf,
        payload: &[u8],
        retained: bool,
    ) -> Option<News> {
        match leaf {
            Leaf::Status => {
                let status: Status = serde_json::from_slice(payload).ok()?;
                if status.online {
                    self.online.insert(from.name);
                } else {
                    self.online.remove(from.name);
                }
            }
            Leaf::Inference(_) if from.tier == Tier::Device && !retained => {
                let answer: Inference = serde_json::from_slice(payload).ok()?;
                let answered = matches!(answer.quality, Quality::Good | Quality::Uncertain);
                if answered && self.latencies_ms.len() < MAX_LATENCIES {
                    self.latencies_ms.push(answer.latency_ms);
                }
            }
            Leaf::Reply(name) if name.as_str() == "status" => {
                let reply: Reply = serde_json::from_slice(payload).ok()?;
                let version = reply.data.get("version").and_then(serde_json::Value::as_u64)?;
                return Some(News::Has { node: from.name, version });
            }
            Leaf::Machine(kind) => {
                let kind = Kind::parse(kind.as_str())?;
                return self.learn_of(from, kind, payload, retained);
            }
            _ => {}
        }
        None
    }

    fn learn_of(
        &mut self,
        from: &'static Place,
        kind: Kind,
        payload: &[u8],
        retained: bool,
    ) -> Option<News> {
        let (head, body) = match kind {
            Kind::Offer | Kind::Contribution | Kind::Result => self.read(kind, payload)?,
            _ => return None,
        };
        match body {
            Body::Offer(_) => {
                self.offered.insert(from.name, head.round);
            }
            Body::Contribution(body) => {
                let before = self.contributed.insert(from.name, head.round);
                if from.tier == Tier::Device && !retained {
                    self.losses.insert(from.name, f64::from(body.loss_last));
                    self.contributions.0 += payload.len() as u64;
                    // A repeat costs bytes and is no other contribution.
                    self.contributions.1 += u64::from(before != Some(head.round));
                }
            }
            Body::Result(body) if from.tier == Tier::Cloud => {
                let version = body.version;
                return Some(News::Out { version, adapter: Arc::unwrap_or_clone(body).adapter });
            }
            _ => {}
        }
        None
    }

    /// What somebody of this federation says to have signed; nobody has checked it.
    pub(super) fn read(&self, kind: Kind, payload: &[u8]) -> Option<(Head, Body)> {
        let envelope = Envelope::from_bytes(payload, MAX_MESSAGE_BYTES).ok()?;
        if !envelope.signatures.iter().any(|signature| self.keys.contains(&signature.key)) {
            return None;
        }
        let (head, body) = split_pair(&envelope.payload, MAX_MESSAGE_BYTES).ok()?;
        Some((decode(head, MAX_MESSAGE_BYTES).ok()?, Body::from_bytes(kind, body).ok()?))
    }
}

#[expect(clippy::cast_precision_loss, reason = "as many as there are nodes")]
fn mean<'a>(values: impl ExactSizeIterator<Item = &'a f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// Hours of answers.
const MAX_LATENCIES: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: &str = "gaisnet/v1/north/_/edge-north";
    const P1: &str = "gaisnet/v1/north/bearings/p1";

    fn golden(kind: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/wire/");
        std::fs::read(format!("{folder}{kind}.sealed.bin")).unwrap()
    }

    /// In the federation of the golden messages.
    fn counts() -> Counts {
        let envelope = Envelope::from_bytes(&golden("offer"), MAX_MESSAGE_BYTES).unwrap();
        Counts::default().with(envelope.signatures.iter().map(|s| s.key).collect())
    }

    #[test]
    fn what_tells_of_samples_is_told_from_what_does_not() {
        let of = |topic: &str| {
            let mut counts = counts();
            counts.hear("_", topic, b"1", false);
            counts.crossings.pop().map(|crossing| (crossing.what, crossing.per_sample))
        };
        let some = |what: &str, per_sample| Some((what.to_owned(), per_sample));
        assert_eq!(of(&format!("{EDGE}/m/contribution")), some("contribution", false));
        assert_eq!(of(&format!("{EDGE}/to/cloud/chunk")), some("chunk", false));
        assert_eq!(of(&format!("{EDGE}/inference/bearing")), some("request or answer", true));
        assert_eq!(of(&format!("{EDGE}/m/frame")), some("frame", true));
        assert_eq!(of("plant/north/p1/vibration"), some("plant topic", true));
        assert_eq!(of("gaisnet/v1/_/_/cloud/m/offer"), None);
    }

    #[test]
    fn bytes_go_up_or_down_a_tier_and_what_is_for_all_children_counts_for_each() {
        let mut counts = counts();
        let mut hear = |site: &str, topic: &str| {
            let before = counts.clone();
            counts.hear(site, topic, &[0; 100], false);
            let flow = |now: Flow, then: Flow| (now.up - then.up, now.down - then.down);
            [
                flow(counts.sites, before.sites),
                flow(counts.federation, before.federation),
                flow(counts.plant, before.plant),
            ]
        };
        let size = |topic: &str| topic.len() as u64 + 100;
        let topic = format!("{P1}/m/answer");
        assert_eq!(hear("north", &topic), [(size(&topic), 0), (0, 0), (0, 0)]);
        let topic = format!("{EDGE}/m/offer");
        assert_eq!(hear("north", &topic), [(0, 2 * size(&topic)), (0, 0), (0, 0)]);
        let topic = format!("{EDGE}/to/p1/receipt");
        assert_eq!(hear("north", &topic), [(0, size(&topic)), (0, 0), (0, 0)]);
        let topic = format!("{EDGE}/m/answer");
        assert_eq!(hear("_", &topic), [(0, 0), (size(&topic), 0), (0, 0)]);
        let topic = "gaisnet/v1/_/_/cloud/m/offer";
        assert_eq!(hear("_", topic), [(0, 0), (0, 2 * size(topic)), (0, 0)]);
        let topic = format!("{P1}/inference/bearing");
        assert_eq!(hear("north", &topic), [(0, 0), (0, 0), (size(&topic), 0)]);
        let topic = "plant/north/p1/vibration";
        assert_eq!(hear("north", topic), [(0, 0), (0, 0), (0, size(topic))]);
    }

    #[test]
    fn a_contribution_that_comes_twice_costs_twice_and_counts_once() {
        let mut counts = counts();
        let (topic, sealed) = (format!("{P1}/m/contribution"), golden("contribution"));
        counts.hear("north", &topic, &sealed, false);
        assert_eq!(counts.contributions, (sealed.len() as u64, 1));
        assert!(counts.loss().is_some());
        counts.hear("north", &topic, &sealed, false);
        counts.hear("north", &topic, &sealed, true);
        assert_eq!(counts.contributions, (2 * sealed.len() as u64, 1));
    }

    #[test]
    fn the_clouds_result_is_news_and_an_edges_is_not() {
        let mut counts = counts();
        let sealed = golden("result");
        let news = counts.hear("_", "gaisnet/v1/_/_/cloud/m/result", &sealed, true);
        assert!(matches!(news, Some(News::Out { .. })), "{news:?}");
        assert_eq!(counts.hear("north", &format!("{EDGE}/m/result"), &sealed, false), None);
        assert_eq!(counts.federation, Flow::default());
        // What a federation with other keys has left at the broker is no news.
        let mut other = Counts::default();
        assert_eq!(other.hear("_", "gaisnet/v1/_/_/cloud/m/result", &sealed, true), None);
        let reply = br#"{"id":"1","status":"ok","data":{"version":7},"error":null}"#;
        let news = counts.hear("north", &format!("{P1}/reply/status"), reply, false);
        assert_eq!(news, Some(News::Has { node: "p1", version: 7 }));
    }

    #[test]
    fn the_silent_are_named_with_their_topics() {
        let mut counts = counts();
        for place in PLACES.iter().filter(|place| place.name != "p3") {
            counts.hear(place.site, &format!("{}/status", place.branch()), b"{}", false);
        }
        let hint = counts.silence();
        assert!(hint.contains("gaisnet/v1/south/bearings/p3/status"), "{hint}");
        counts.hear("south", "gaisnet/v1/south/bearings/p3/status", b"{}", false);
        counts.hear("north", &format!("{EDGE}/m/offer"), &golden("offer"), true);
        let hint = counts.silence();
        assert!(
            hint.contains(&format!("{EDGE}/m/#")) && hint.contains(&format!("{P1}/m/#")),
            "{hint}"
        );
    }
}
