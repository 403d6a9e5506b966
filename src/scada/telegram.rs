//! Telegrams: the JSON that people and SCADA systems read.
//!
//! [`Inference`] and [`Kpi`] are flat, and all their keys are always there: SCADA systems bind
//! top-level keys to tags, nested values come out as null. Figures that don't exist yet are `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{Digest, KeyId, Name, NodeId, RoundNo, Version};
use crate::scada::request_id::RequestId;
use crate::time::Wall;

/// Presence of a node on `status`, retained; with `online` false also its last will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Connected right now.
    pub online: bool,
    /// Its roles: trainer, inferencer, relay, aggregator.
    pub roles: Vec<String>,
    /// Version of the program.
    pub version: String,
    /// Last round it took part in, 0 for none.
    pub round: RoundNo,
    /// When the process started.
    pub started: Wall,
    /// When this was written (for a last will: when the node connected).
    pub ts: Wall,
    /// Per cent of its base that have come from the parent; only while it is being fetched, when the node takes part
    /// in nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetching_base: Option<u8>,
}

/// Self-description of a node on `meta`, retained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Models that it serves.
    pub models: Vec<ModelMeta>,
    /// Unit of each figure that has one, by its key in the other telegrams.
    pub units: BTreeMap<String, String>,
    /// Topics of the node by what they are for: `inference/bearing` and its full topic.
    pub topics: BTreeMap<String, String>,
    /// Key that signs its messages.
    pub key_id: KeyId,
    /// When this was written.
    pub ts: Wall,
}

/// One model in [`Meta`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMeta {
    /// Its name, a topic level.
    pub name: Name,
    /// Version that is served now.
    pub version: Version,
    /// Samples in an input window; 0 for a model that takes text.
    pub window: u32,
    /// Sampling rate that it was trained for, in Hz.
    pub rate_hz: f64,
    /// Its classes in the order of their indices; empty for a regression or text.
    pub labels: Vec<String>,
    /// Most tokens that prompt and answer have together; `null` for a model that takes windows.
    pub context: Option<u32>,
    /// Adapters beside the federation's that a request may name.
    #[serde(default)]
    pub adapters: Vec<AdapterMeta>,
}

/// An adapter of the node's own, in [`ModelMeta`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterMeta {
    /// Its name.
    pub name: Name,
    /// SHA-256 of what it is; `gaisnet adapter import` prints it.
    pub digest: Digest,
}

/// How far a value may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// As good as the model is.
    Good,
    /// The model answered, but isn't sure.
    Uncertain,
    /// The input was unusable: there is no answer.
    Bad,
    /// The input stopped: the value is an old one.
    Stale,
}

/// Where in the federation an answer was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// On the device itself.
    Device,
    /// On the site's edge.
    Edge,
    /// In the cloud.
    Cloud,
}

/// One answer of a model. Flat; on `inference/{model}` the last one, retained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inference {
    /// Index of the class, or the predicted quantity; `null` when there is no answer.
    pub value: Option<f64>,
    /// Name of the class.
    pub label: Option<String>,
    /// Probability of the answer, 0 to 1.
    pub confidence: Option<f64>,
    /// How far it may be believed.
    pub quality: Quality,
    /// When the answer was made.
    pub ts: Wall,
    /// Version of the adapter that made it.
    pub model_version: Version,
    /// From the complete input to the answer, in milliseconds.
    pub latency_ms: f64,
    /// Where it was computed.
    pub tier: Tier,
    /// The request's id; `null` for a model that is driven by tags.
    pub id: Option<RequestId>,
    /// Whose answer it is; where the cascade is off none of its keys is there.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<Provenance>,
}

/// Whose answer it is, and what it is worth, where a cascade of tiers answers. Its keys stand beside those
/// of the [`Inference`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Node that answered.
    pub node: NodeId,
    /// Upper bound of the rate of wrong ones among answers as sure as this; `null` where it has none.
    pub bound: Option<f64>,
    /// The node that gives it passed the request on, and this is the reply.
    pub escalated: bool,
    /// Why a tier that should have answered didn't; `null` when nothing went wrong.
    pub degraded: Option<Degraded>,
    /// The model is split: its front ran on the device, its back on `node`. Absent where it isn't.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub split: bool,
}

/// Why the tier above didn't answer in the place of an unsure model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Degraded {
    /// The link to it is down.
    LinkDown,
    /// No reply came in time.
    Deadline,
    /// It was busy, or too many requests waited for it.
    Busy,
    /// It couldn't answer this request.
    Refused,
    /// It wasn't asked, though nothing is known yet about how often the served version is wrong.
    Uncalibrated,
    /// It has another version of a split model than the device that asks.
    Version,
}

impl Degraded {
    /// A short word for metrics and logs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::LinkDown => "cascade_link_down",
            Self::Deadline => "cascade_deadline",
            Self::Busy => "cascade_busy",
            Self::Refused => "cascade_refused",
            Self::Uncalibrated => "cascade_uncalibrated",
            Self::Version => "split_version",
        }
    }
}

/// Figures about a node on `kpi`, retained. Flat. Counters count from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kpi {
    /// Share of right answers on the labels that the node has, 0 to 1.
    pub accuracy: Option<f64>,
    /// Mean training loss of the last round, in nats.
    pub loss: Option<f64>,
    /// Median answer latency in milliseconds.
    pub latency_ms_p50: Option<f64>,
    /// 99th percentile of the answer latency in milliseconds.
    pub latency_ms_p99: Option<f64>,
    /// Answers given.
    pub answers: u64,
    /// Payload bytes published.
    pub bytes_up: u64,
    /// Payload bytes received.
    pub bytes_down: u64,
    /// Processor time used, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident memory, in MiB.
    pub peak_rss_mib: f64,
    /// Messages and requests refused.
    pub refused: u64,
    /// Last round it took part in, 0 for none.
    pub round: RoundNo,
    /// Messages that wait for a receipt.
    pub outbox: u64,
    /// Share of the last round's examples that an attacker would find out, at one false alarm in a hundred;
    /// 0.01 is guessing.
    #[serde(default)]
    pub privacy_risk: Option<f64>,
    /// Chance that such an attacker takes an example of the round for likelier than another; 0.5 is guessing.
    #[serde(default)]
    pub privacy_risk_auc: Option<f64>,
    /// Share of the served version's answers that labels on `feedback/{model}` call right, 0 to 1.
    #[serde(default)]
    pub online_accuracy: Option<f64>,
    /// Lower end of its interval (Wilson, 95 %).
    #[serde(default)]
    pub online_accuracy_low: Option<f64>,
    /// Upper end of it.
    #[serde(default)]
    pub online_accuracy_high: Option<f64>,
    /// Answers that got a label on `feedback/{model}`, of all versions.
    #[serde(default)]
    pub labels: u64,
    /// How far the inputs are distributed from those that the served version had first, at the last look: 0 to 1.
    #[serde(default)]
    pub input_drift: Option<f64>,
    /// How likely that is where nothing changed, 0 to 1.
    #[serde(default)]
    pub input_drift_p: Option<f64>,
    /// Times that a drift of inputs or of confidence was told of.
    #[serde(default)]
    pub drifts: u64,
    /// When this was written.
    pub ts: Wall,
}

/// What became of a command or request; on `reply/{name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The asker's id, `null` when there was none or it couldn't be read.
    pub id: Option<RequestId>,
    /// Whether it was done.
    pub status: ReplyStatus,
    /// What was asked for; `null` on an error.
    pub data: Value,
    /// What went wrong; `null` when nothing did.
    pub error: Option<ReplyError>,
}

/// See [`Reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyStatus {
    /// Done.
    Ok,
    /// Not done; `error` says why.
    Error,
}

/// Why something wasn't done, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyError {
    /// A short word that doesn't change between versions.
    pub kind: String,
    /// What was wrong.
    pub message: String,
    /// The way out.
    pub hint: String,
}

/// Something happened; on `event/{kind}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What kind of thing, also the last level of the topic.
    pub kind: EventKind,
    /// How urgent.
    pub severity: Severity,
    /// One sentence for people.
    pub message: String,
    /// Model, sender or command that it is about.
    pub subject: Option<String>,
    /// Node that it concerns, where that is another one.
    pub node: Option<NodeId>,
    /// When.
    pub ts: Wall,
}

/// Kinds of [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Inputs or answers look different from those the model was made with.
    Drift,
    /// A message, request or command was refused.
    Refusal,
    /// Another version is served.
    Rollout,
    /// Somebody should look.
    Alarm,
}

/// How urgent an [`Event`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// May become a problem.
    Warning,
    /// Is a problem.
    Alarm,
}

impl Status {
    /// The same node's last will.
    pub fn offline(self) -> Self {
        Self { online: false, ..self }
    }
}

impl Inference {
    /// An answer that there is none, because the input was unusable.
    pub fn bad(ts: Wall, model_version: Version, tier: Tier) -> Self {
        Self {
            value: None,
            label: None,
            confidence: None,
            quality: Quality::Bad,
            ts,
            model_version,
            latency_ms: 0.0,
            tier,
            id: None,
            cascade: None,
        }
    }

    /// The last answer again, after its input stopped. Its `ts` stays: it tells the value's age.
    pub fn stale(self) -> Self {
        Self { quality: Quality::Stale, ..self }
    }
}

impl Reply {
    /// It was done.
    pub fn ok(id: Option<RequestId>, data: Value) -> Self {
        Self { id, status: ReplyStatus::Ok, data, error: None }
    }

    /// It wasn't done, and why.
    pub fn error(
        id: Option<RequestId>,
        kind: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let error =
            ReplyError { kind: kind.to_owned(), message: message.into(), hint: hint.into() };
        Self { id, status: ReplyStatus::Error, data: Value::Null, error: Some(error) }
    }
}

impl EventKind {
    /// Last level of its topic.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drift => "drift",
            Self::Refusal => "refusal",
            Self::Rollout => "rollout",
            Self::Alarm => "alarm",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Inference {
        Inference {
            value: Some(2.0),
            label: Some("outer_race".to_owned()),
            confidence: Some(0.97),
            quality: Quality::Good,
            ts: Wall(1_700_000_000_000),
            model_version: 4,
            latency_ms: 3.5,
            tier: Tier::Device,
            id: None,
            cascade: None,
        }
    }

    fn of_the_edge() -> Inference {
        let node = NodeId::new("edge-north").unwrap();
        let cascade =
            Provenance { node, bound: Some(0.04), escalated: true, degraded: None, split: false };
        Inference { tier: Tier::Edge, cascade: Some(cascade), ..answer() }
    }

    fn assert_flat(telegram: &Value, keys: &[&str]) {
        let object = telegram.as_object().unwrap();
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        let mut wanted = keys.to_vec();
        wanted.sort_unstable();
        assert_eq!(found, wanted); // serde_json's map is ordered
        for (key, value) in object {
            assert!(!value.is_object() && !value.is_array(), "{key} is nested");
        }
    }

    #[test]
    fn every_key_of_an_inference_is_top_level_and_scalar() {
        let keys = [
            "value",
            "label",
            "confidence",
            "quality",
            "ts",
            "model_version",
            "latency_ms",
            "tier",
            "id",
        ];
        for telegram in [answer(), answer().stale(), Inference::bad(Wall(5), 4, Tier::Edge)] {
            let json = serde_json::to_value(&telegram).unwrap();
            assert_flat(&json, &keys);
            assert_eq!(serde_json::from_value::<Inference>(json).unwrap(), telegram);
        }
    }

    #[test]
    fn an_answer_of_a_cascade_has_four_keys_more_and_without_one_not_a_byte() {
        let text = |telegram: &Inference| serde_json::to_string(telegram).unwrap();
        let plain = r#"{"value":2.0,"label":"outer_race","confidence":0.97,"quality":"good","ts":1700000000000,"model_version":4,"latency_ms":3.5,"tier":"device","id":null}"#;
        assert_eq!(text(&answer()), plain);
        let more = plain.replace("device", "edge").replace(
            "null}",
            r#"null,"node":"edge-north","bound":0.04,"escalated":true,"degraded":null}"#,
        );
        assert_eq!(text(&of_the_edge()), more);
        for telegram in [answer(), of_the_edge()] {
            assert_eq!(serde_json::from_str::<Inference>(&text(&telegram)).unwrap(), telegram);
        }
        let words = [
            Degraded::LinkDown,
            Degraded::Deadline,
            Degraded::Busy,
            Degraded::Refused,
            Degraded::Uncalibrated,
        ];
        for word in words {
            let text = serde_json::to_value(word).unwrap();
            assert_eq!(format!("cascade_{}", text.as_str().unwrap()), word.kind());
        }
    }

    #[test]
    fn every_key_of_a_kpi_is_top_level_and_scalar() {
        let keys = [
            "accuracy",
            "loss",
            "latency_ms_p50",
            "latency_ms_p99",
            "answers",
            "bytes_up",
            "bytes_down",
            "cpu_seconds",
            "peak_rss_mib",
            "refused",
            "round",
            "outbox",
            "privacy_risk",
            "privacy_risk_auc",
            "online_accuracy",
            "online_accuracy_low",
            "online_accuracy_high",
            "labels",
            "input_drift",
            "input_drift_p",
            "drifts",
            "ts",
        ];
        assert_flat(&serde_json::to_value(Kpi::default()).unwrap(), &keys);
    }

    #[test]
    fn quality_is_never_left_out() {
        let words: Vec<_> = [Quality::Good, Quality::Uncertain, Quality::Bad, Quality::Stale]
            .map(|quality| serde_json::to_value(Inference { quality, ..answer() }).unwrap())
            .map(|json| json["quality"].as_str().unwrap().to_owned())
            .into();
        assert_eq!(words, ["good", "uncertain", "bad", "stale"]);
        let mut without = serde_json::to_value(answer()).unwrap();
        without.as_object_mut().unwrap().remove("quality");
        assert!(serde_json::from_value::<Inference>(without).is_err());
    }

    #[test]
    fn a_figure_that_is_no_number_becomes_null() {
        let telegram = Inference { confidence: Some(f64::NAN), ..answer() };
        assert_eq!(serde_json::to_value(telegram).unwrap()["confidence"], Value::Null);
    }

    #[test]
    fn replies_have_the_same_keys_whatever_happened() {
        let id = RequestId::new("7").unwrap();
        assert_eq!(
            serde_json::to_value(Reply::ok(Some(id), json!({"round": 3}))).unwrap(),
            json!({"id": "7", "status": "ok", "data": {"round": 3}, "error": null})
        );
        assert_eq!(
            serde_json::to_value(Reply::error(None, "busy", "queue is full", "try later")).unwrap(),
            json!({"id": null, "status": "error", "data": null, "error": {
                "kind": "busy", "message": "queue is full", "hint": "try later"
            }})
        );
    }

    #[test]
    fn event_kinds_are_the_words_of_their_topics() {
        for kind in [EventKind::Drift, EventKind::Refusal, EventKind::Rollout, EventKind::Alarm] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn a_last_will_differs_only_in_online() {
        let status = Status {
            online: true,
            roles: vec!["trainer".to_owned()],
            version: "0.1.0".to_owned(),
            round: 2,
            started: Wall(1),
            ts: Wall(2),
            fetching_base: None,
        };
        assert_eq!(Status { online: true, ..status.clone().offline() }, status);
        assert!(!status.offline().online);
    }
}
