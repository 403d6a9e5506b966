//! What a node says to the tier above when its own answer isn't sure enough, and what it hears.
//!
//! The request is one like any other on `infer/{model}`; `via` names the nodes that passed it on, so that
//! it can be attributed and goes on no further than [`MAX_HOPS`]. The reply comes on `reply/infer` of the
//! tier above, where everybody's replies come: those with an id of ours are meant for us.

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, NodeId, Version};
#[cfg(doc)]
use crate::scada::infer::MAX_HOPS;
use crate::scada::infer::{InferError, Input, MAX_REQUEST_BYTES};
use crate::scada::request_id::RequestId;
use crate::scada::telegram::{Degraded, Quality, ReplyStatus, Tier};

/// An answer of the tier above, as far as it is passed on.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// Index of the class, or the predicted quantity.
    pub value: f64,
    /// Name of the class.
    pub label: Option<String>,
    /// Probability of the answer, 0 to 1.
    pub confidence: f64,
    /// How far it may be believed.
    pub quality: Quality,
    /// Version that answered.
    pub model_version: Version,
    /// Tier that answered.
    pub tier: Tier,
    /// Node that answered.
    pub node: NodeId,
    /// Upper bound of the rate of wrong ones among such answers, if it has one.
    pub bound: Option<f64>,
    /// Why a tier still higher didn't answer.
    pub degraded: Option<Degraded>,
}

/// A reply to a request of this node: its ticket, and the answer or why there is none.
pub type Told = (u64, Result<Heard, Degraded>);

/// A reply that can't be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyFault {
    /// Larger than any reply; it wasn't parsed.
    #[error("the reply is larger than any")]
    TooLarge,
    /// Not JSON, or not with the keys of a reply.
    #[error("the reply can't be read")]
    Unreadable,
    /// Its numbers or names can't be those of an answer to us.
    #[error("the reply can't be an answer to a request of ours")]
    Implausible,
}

impl ReplyFault {
    /// A short word for metrics and logs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::TooLarge => "cascade_reply_too_large",
            Self::Unreadable => "cascade_reply_unreadable",
            Self::Implausible => "cascade_reply_implausible",
        }
    }
}

/// Id of a request that this start of the node escalates.
pub fn id_of(boot: BootId, ticket: u64) -> Option<RequestId> {
    RequestId::new(format!("{}{ticket}", own(boot))).ok()
}

/// The request to the tier above; nothing when it takes more than a request may.
pub fn request(id: &RequestId, input: &Input, deadline_ms: u64, via: &[NodeId]) -> Option<Vec<u8>> {
    let payload = match input {
        Input::Window(input) => serde_json::to_vec(&Request { id, input, deadline_ms, via }),
        Input::AtCut(at_cut) => {
            let input = Halfway { activations: at_cut.to_json() };
            serde_json::to_vec(&Request { id, input, deadline_ms, via })
        }
    };
    let payload = payload.ok()?;
    (payload.len() <= MAX_REQUEST_BYTES).then_some(payload)
}

/// Reads a reply of the tier above: the ticket that it is about, and the answer or why there is none.
/// Nothing where it is meant for somebody else.
///
/// `parent` wrote it; `labels` are those of the model, by index.
///
/// # Errors
/// [`ReplyFault`]: it is dropped then.
pub fn parse_reply(
    payload: &[u8],
    boot: BootId,
    parent: &NodeId,
    labels: &[String],
) -> Result<Option<Told>, ReplyFault> {
    if payload.len() > MAX_REPLY_BYTES {
        return Err(ReplyFault::TooLarge);
    }
    let reply: Reply = serde_json::from_slice(payload).map_err(|_| ReplyFault::Unreadable)?;
    let ours = own(boot);
    let ticket = reply.id.as_ref().and_then(|id| id.as_str().strip_prefix(&ours));
    let Some(ticket) = ticket else { return Ok(None) };
    // One way to write a number, so that a ticket has one id.
    let number = ticket.parse::<u64>().ok().filter(|number| number.to_string() == ticket);
    let ticket = number.ok_or(ReplyFault::Implausible)?;
    if reply.status == ReplyStatus::Error {
        let why = match reply.error.as_ref().map(|error| error.kind.as_str()) {
            Some("busy") => Degraded::Busy,
            Some(InferError::OTHER_FRONT) => Degraded::Version,
            _ => Degraded::Refused,
        };
        return Ok(Some((ticket, Err(why))));
    }
    if reply.quality == Some(Quality::Bad) || reply.confidence.is_none() {
        return Ok(Some((ticket, Err(Degraded::Refused)))); // no answer, or a safe default
    }
    let heard = reply.heard(parent, labels).ok_or(ReplyFault::Implausible)?;
    Ok(Some((ticket, Ok(heard))))
}

/// Most bytes of a reply, as its topic says.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// What our ids begin with.
fn own(boot: BootId) -> String {
    format!("c-{boot}-")
}

#[derive(Serialize)]
struct Request<'a, T> {
    id: &'a RequestId,
    input: T,
    deadline_ms: u64,
    via: &'a [NodeId],
}

#[derive(Serialize)]
struct Halfway<T> {
    activations: T,
}

/// What is read of a reply; of other keys nothing is.
#[derive(Deserialize)]
struct Reply {
    id: Option<RequestId>,
    status: ReplyStatus,
    value: Option<f64>,
    label: Option<String>,
    confidence: Option<f64>,
    quality: Option<Quality>,
    model_version: Option<Version>,
    tier: Option<Tier>,
    node: Option<NodeId>,
    bound: Option<f64>,
    degraded: Option<Degraded>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    kind: String,
}

impl Reply {
    fn heard(self, parent: &NodeId, labels: &[String]) -> Option<Heard> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let value = self.value.filter(|value| value.is_finite())?;
        let named = labels.iter().position(|label| Some(label) == self.label.as_ref());
        let fits = match named {
            Some(index) => same(index, value),
            None => labels.is_empty() && self.label.is_none(),
        };
        let tier = self.tier.filter(|tier| *tier != Tier::Device)?;
        if !fits || self.bound.is_some_and(|bound| !share(bound)) {
            return None;
        }
        Some(Heard {
            value,
            label: self.label,
            confidence: self.confidence.filter(|confidence| share(*confidence))?,
            quality: self.quality?,
            model_version: self.model_version?,
            tier,
            // A tier above without a cascade of its own doesn't say who it is.
            node: self.node.unwrap_or_else(|| parent.clone()),
            bound: self.bound,
            degraded: self.degraded,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a class index is small")]
fn same(index: usize, value: f64) -> bool {
    (index as f64 - value).abs() < f64::EPSILON
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::ids::{Digest, Name};
    use crate::scada::at_cut::{AtCut, Coding, FrontMark};
    use crate::scada::command::CommandPolicy;
    use crate::scada::infer;

    const BOOT: BootId = BootId([0xab; 16]);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn read(reply: &Value) -> Result<Option<Told>, ReplyFault> {
        let labels = ["healthy".to_owned(), "inner".to_owned()];
        parse_reply(&serde_json::to_vec(reply).unwrap(), BOOT, &name("edge"), &labels)
    }

    fn good() -> Value {
        json!({"id": id_of(BOOT, 7), "status": "ok", "value": 1.0, "label": "inner", "confidence": 0.9,
            "quality": "good", "ts": 1, "model_version": 3, "latency_ms": 1.5, "tier": "edge"})
    }

    fn with(key: &str, value: Value) -> Value {
        let mut reply = good();
        reply[key] = value;
        reply
    }

    #[test]
    fn what_is_escalated_is_a_request_like_any_other() {
        let id = id_of(BOOT, 7).unwrap();
        let window = Input::Window(vec![0.1_f32, -1e-30, 16_777_215.0]);
        let payload = request(&id, &window, 900, &[name("p1")]).unwrap();
        let policy = CommandPolicy::new(["infer"]).unwrap();
        let len = NonZeroUsize::new(3).unwrap();
        let parsed = infer::parse(&payload, false, len, &policy).unwrap();
        assert_eq!(parsed.input, window, "to the bit");
        assert_eq!((parsed.id, parsed.deadline_ms), (Some(id.clone()), Some(900)));
        assert_eq!(parsed.via, [name("p1")]);
        let long = Input::Window(vec![0.123_456_7; 65_536]);
        assert!(request(&id, &long, 900, &[]).is_none());
        let front = FrontMark { version: 3, digest: Digest([1; 32]) };
        let (shape, data) = (vec![1, 1, 2], vec![0x80, 0x3f, 1, 255]);
        let half = Input::AtCut(AtCut { front, coding: Coding::Int8, shape, data });
        let payload = request(&id, &half, 900, &[name("p1")]).unwrap();
        let parsed = infer::parse(&payload, false, len, &policy).unwrap();
        assert_eq!((parsed.input, parsed.deadline_ms), (half, Some(900)));
    }

    #[test]
    fn an_answer_is_read_with_or_without_a_cascade_above() {
        let (ticket, reply) = read(&good()).unwrap().unwrap();
        let heard = reply.unwrap();
        assert_eq!((ticket, heard.node.as_str(), heard.bound), (7, "edge", None));
        let mut more = good();
        for (key, value) in
            [("node", json!("edge-2")), ("bound", json!(0.04)), ("degraded", json!("deadline"))]
        {
            more[key] = value;
        }
        let heard = read(&more).unwrap().unwrap().1.unwrap();
        assert_eq!((heard.node.as_str(), heard.bound), ("edge-2", Some(0.04)));
        assert_eq!(heard.degraded, Some(Degraded::Deadline));
    }

    #[test]
    fn no_answer_is_told_from_busy() {
        let error = |kind: &str| {
            json!({"id": id_of(BOOT, 7), "status": "error", "data": null,
            "quality": "bad", "error": {"kind": kind, "message": "m", "hint": "h"}})
        };
        assert_eq!(read(&error("busy")), Ok(Some((7, Err(Degraded::Busy)))));
        assert_eq!(read(&error("wrong_length")), Ok(Some((7, Err(Degraded::Refused)))));
        assert_eq!(read(&error("split_version")), Ok(Some((7, Err(Degraded::Version)))));
        assert_eq!(read(&with("quality", json!("bad"))), Ok(Some((7, Err(Degraded::Refused)))));
        let default = with("confidence", Value::Null);
        assert_eq!(read(&default), Ok(Some((7, Err(Degraded::Refused)))), "it abstained itself");
    }

    #[test]
    fn replies_to_others_are_left_alone() {
        for id in [json!("q-17"), Value::Null, json!(id_of(BootId([1; 16]), 7))] {
            assert_eq!(read(&with("id", id)), Ok(None));
        }
        let of = |ticket: &str| read(&with("id", json!(format!("c-{BOOT}-{ticket}"))));
        for ticket in ["", "07", "+7", "x", "99999999999999999999"] {
            assert_eq!(of(ticket), Err(ReplyFault::Implausible), "{ticket}");
        }
    }

    #[test]
    fn hostile_replies_are_no_answers() {
        for (key, value) in [
            ("value", json!(0.0)),
            ("value", json!(7.0)),
            ("value", Value::Null),
            ("label", json!("outer")),
            ("label", Value::Null),
            ("confidence", json!(1.5)),
            ("confidence", json!(-0.1)),
            ("bound", json!(2.0)),
            ("tier", json!("device")),
            ("model_version", Value::Null),
        ] {
            let reply = with(key, value);
            assert_eq!(read(&reply), Err(ReplyFault::Implausible), "{reply}");
        }
        for (key, value) in [
            ("status", json!("fine")),
            ("node", json!("a b")),
            ("model_version", json!(-1)),
            ("label", json!(["inner"])),
            ("id", json!("x".repeat(65))),
        ] {
            assert_eq!(read(&with(key, value)), Err(ReplyFault::Unreadable), "{key}");
        }
        let long = vec![b'['; MAX_REPLY_BYTES + 1];
        assert_eq!(parse_reply(&long, BOOT, &name("e"), &[]), Err(ReplyFault::TooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_reply_or_none(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_reply(&payload, BOOT, &name("edge"), &[]);
        }
    }
}
