//! Requests for an answer: `infer/{model}` with `{"id": .., "input": [..]}`, answers on
//! `reply/infer`.
//!
//! The input is a whole window of the model's length, as an array or as `{"window": [..]}`; from a device with
//! the front of a split model it is `{"activations": {..}}` ([`super::at_cut`]). A
//! request is refused rather than repaired: a sample that is no finite number, or a wrong length,
//! would get an answer that means nothing. `deadline_ms` says how long the asker can wait, and `via` which
//! nodes passed it on, where a cascade of tiers answers ([`super::escalation`]).

use std::num::NonZeroUsize;

use serde::Serialize;
use serde_json::Value;

use crate::ids::{Name, NodeId, Version};
use crate::scada::at_cut::{self, AtCut};
use crate::scada::command::CommandPolicy;
use crate::scada::object::{FieldError, Fields, describe};
use crate::scada::request_id::RequestId;
use crate::scada::tags::narrow;
use crate::scada::telegram::{Inference, Quality, Reply, ReplyStatus};
use crate::scada::text::MAX_DEADLINE_MS;
use crate::scada::window::{WrongLength, check_length};

/// Most bytes of a request's payload.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// Nodes that may pass a request on, one to the next; then it is answered where it is.
pub const MAX_HOPS: usize = 4;

/// A request that may be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// The asker's id, to be echoed.
    pub id: Option<RequestId>,
    /// What is asked about.
    pub input: Input,
    /// Milliseconds from the request's arrival that the asker waits, 1 to 600 000, if it said so.
    pub deadline_ms: Option<u64>,
    /// Nodes that passed it on, the first first; at most [`MAX_HOPS`].
    pub via: Vec<NodeId>,
}

/// What an answer is asked about.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Finite samples, as many as the model takes.
    Window(Vec<f32>),
    /// What the front of the model made of a window.
    AtCut(AtCut),
}

/// A request that gets no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct InferError {
    /// The asker's id, where it could be read.
    pub id: Option<RequestId>,
    /// Why not.
    pub fault: InferFault,
}

/// Why a request gets no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InferFault {
    /// Larger than any request; it wasn't parsed.
    #[error("the request has {bytes} bytes, at most {MAX_REQUEST_BYTES} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The payload's form.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The broker had kept it from before we connected: nobody waits for it any more.
    #[error("the request was retained by the broker, so nobody waits for it; it was not answered")]
    Retained,
    /// The node's config doesn't allow requests.
    #[error("this node takes no requests")]
    NotAllowed,
    /// The node doesn't serve this model.
    #[error("this node doesn't serve a model called {model:?}")]
    UnknownModel {
        /// The model.
        model: String,
    },
    /// The window doesn't fit the model.
    #[error(transparent)]
    Length(#[from] WrongLength),
    /// As many requests as may wait are waiting.
    #[error("busy: {waiting} requests are waiting already")]
    Busy {
        /// Their number.
        waiting: usize,
    },
    /// Another request has this id and isn't answered yet.
    #[error("another request with this id is being answered")]
    IdInUse,
    /// Nothing with this id is being answered.
    #[error("no request with this id is being answered")]
    UnknownId,
    /// The model can't answer it.
    #[error("{message}")]
    NoAnswer {
        /// A short word.
        kind: &'static str,
        /// What is wrong.
        message: String,
        /// The way out.
        hint: &'static str,
    },
}

impl InferError {
    /// The model isn't served here.
    pub fn unknown_model(id: Option<RequestId>, model: &Name) -> Self {
        Self { id, fault: InferFault::UnknownModel { model: model.to_string() } }
    }

    /// As many requests as may wait are waiting.
    pub fn busy(id: Option<RequestId>, waiting: usize) -> Self {
        Self { id, fault: InferFault::Busy { waiting } }
    }

    /// [`Self::kind`] of a question of a front whose back isn't here.
    pub const OTHER_FRONT: &str = "split_version";

    /// A front asks whose back isn't here: device and edge have other versions of the model.
    pub fn other_front(id: Option<RequestId>, front: Version, served: Version) -> Self {
        let message = format!(
            "the front is of version {front}, and no back of the same adapter is here: version {served} \
             is served"
        );
        let hint = "ask again in a moment: one of the two is behind, and fetches the newer version";
        Self { id, fault: InferFault::NoAnswer { kind: Self::OTHER_FRONT, message, hint } }
    }

    /// The values of a front can't be gone on from; `kind` says why.
    pub fn no_half(id: Option<RequestId>, kind: &'static str) -> Self {
        let (message, hint) = match kind {
            "no_back" => (
                "this node has no back of a split model",
                "ask the device's own edge, with split.cut in its settings",
            ),
            "split_coding" => (
                "the activations are in another coding than this node's",
                "set split.coding alike on the edge and its devices",
            ),
            "split_not_finite" => (
                "the activations have a value that is not finite",
                "look at the device's windows and its base",
            ),
            _ => (
                "the activations have another shape than this node's model has at its cut",
                "set split.cut and model.base alike on the edge and its devices",
            ),
        };
        let message = message.to_owned();
        Self { id, fault: InferFault::NoAnswer { kind, message, hint } }
    }

    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match &self.fault {
            InferFault::TooLarge { .. } => "too_large",
            InferFault::Field(error) => error.kind(),
            InferFault::Retained => "retained",
            InferFault::NotAllowed => "not_allowed",
            InferFault::UnknownModel { .. } => "unknown_model",
            InferFault::Length(_) => "wrong_length",
            InferFault::Busy { .. } => "busy",
            InferFault::IdInUse => "id_in_use",
            InferFault::UnknownId => "unknown_id",
            InferFault::NoAnswer { kind, .. } => kind,
        }
    }

    /// The way out, for the person who sent it.
    pub fn hint(&self) -> &'static str {
        match &self.fault {
            InferFault::TooLarge { .. } => "send one window a request, with fewer digits",
            InferFault::Field(error) => error.hint(),
            InferFault::Retained => "publish it again without the retain flag (no -r)",
            InferFault::NotAllowed => "add \"infer\" to commands.unsigned in the node's config",
            InferFault::UnknownModel { .. } => "the node's `meta` topic lists its models",
            InferFault::Length(_) => "the node's `meta` topic tells the window of each model",
            InferFault::Busy { .. } => "try again in a moment",
            InferFault::IdInUse => "take an id of its own for each request",
            InferFault::UnknownId => "it has ended: its answer is on reply/infer",
            InferFault::NoAnswer { hint, .. } => hint,
        }
    }

    /// The answer for the asker.
    pub fn reply(&self) -> InferReply {
        let reply = Reply::error(self.id.clone(), self.kind(), self.to_string(), self.hint());
        InferReply::Refused { reply, quality: Quality::Bad }
    }
}

/// What goes out on `reply/infer`: flat like `inference/{model}`, and `status` beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum InferReply {
    /// The answer, its keys at the top level.
    Answer {
        /// Always [`ReplyStatus::Ok`].
        status: ReplyStatus,
        /// The answer with the asker's id.
        #[serde(flatten)]
        inference: Inference,
    },
    /// No answer, and why.
    Refused {
        /// An error reply.
        #[serde(flatten)]
        reply: Reply,
        /// Always [`Quality::Bad`]: a display never shows an old value as good.
        quality: Quality,
    },
}

impl InferReply {
    /// The answer to a request.
    pub fn answer(id: Option<RequestId>, inference: Inference) -> Self {
        Self::Answer { status: ReplyStatus::Ok, inference: Inference { id, ..inference } }
    }
}

/// Reads a request for a model that takes windows of `len` samples.
///
/// `retained` is the broker's flag: such a request is older than the connection.
///
/// # Errors
/// [`InferError`]; its [`reply`](InferError::reply) is for the asker.
pub fn parse(
    payload: &[u8],
    retained: bool,
    len: NonZeroUsize,
    policy: &CommandPolicy,
) -> Result<InferRequest, InferError> {
    let (mut fields, id) = opened(payload, retained, policy)?;
    let rest = read_way(&mut fields).and_then(|way| Ok((way, read_input(fields, len)?)));
    match rest {
        Ok(((deadline_ms, via), input)) => Ok(InferRequest { id, input, deadline_ms, via }),
        Err(fault) => Err(InferError { id, fault }),
    }
}

/// How long the asker waits, and whose hands the request went through.
fn read_way(fields: &mut Fields) -> Result<(Option<u64>, Vec<NodeId>), InferFault> {
    let deadline_ms = fields.convert("deadline_ms", "1 to 600000 milliseconds", |value| {
        value.as_u64().filter(|ms| (1..=MAX_DEADLINE_MS).contains(ms))
    })?;
    let via = fields.convert("via", "a list of at most 4 names of nodes", |value| {
        let names = value.as_array().filter(|names| names.len() <= MAX_HOPS)?;
        names.iter().map(|name| NodeId::new(name.as_str()?).ok()).collect()
    })?;
    Ok((deadline_ms, via.unwrap_or_default()))
}

/// What any request begins with: a size, a JSON object, an id, and the right to ask.
pub(super) fn opened(
    payload: &[u8],
    retained: bool,
    policy: &CommandPolicy,
) -> Result<(Fields, Option<RequestId>), InferError> {
    let fail = |id: &Option<RequestId>, fault| InferError { id: id.clone(), fault };
    if payload.len() > MAX_REQUEST_BYTES {
        return Err(fail(&None, InferFault::TooLarge { bytes: payload.len() }));
    }
    let mut fields = Fields::parse(payload).map_err(|error| fail(&None, error.into()))?;
    let id = fields.id().map_err(|error| fail(&None, error.into()))?;
    if retained {
        return Err(fail(&id, InferFault::Retained));
    }
    if !policy.allows_infer() {
        return Err(fail(&id, InferFault::NotAllowed));
    }
    Ok((fields, id))
}

fn read_input(mut fields: Fields, len: NonZeroUsize) -> Result<Input, InferFault> {
    const EXPECTED: &str = "an array of numbers, or an object like {\"window\":[1,2]}";
    let input = fields.take("input");
    fields.finish()?;
    let wrong = |got: &Value| FieldError::Wrong {
        field: "input".to_owned(),
        expected: EXPECTED.to_owned(),
        got: describe(got),
    };
    let (path, items) = match &input {
        None => {
            return Err(
                FieldError::Missing { field: "input".to_owned(), expected: EXPECTED }.into()
            );
        }
        Some(Value::Array(items)) => ("input", items),
        Some(Value::Object(map)) => match map.get("window") {
            Some(Value::Array(items)) if map.len() == 1 => ("input.window", items),
            None if map.len() == 1 && map.contains_key("activations") => {
                let value = map.get("activations").unwrap_or(&Value::Null);
                let at_cut = AtCut::from_json(value).ok_or_else(|| FieldError::Wrong {
                    field: "input.activations".to_owned(),
                    expected: at_cut::EXPECTED.to_owned(),
                    got: describe(value),
                })?;
                return Ok(Input::AtCut(at_cut));
            }
            _ => return Err(wrong(&Value::Object(map.clone())).into()),
        },
        Some(other) => return Err(wrong(other).into()),
    };
    check_length(len, items.len())?;
    let mut window = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let sample = item.as_f64().map(narrow).filter(|sample| sample.is_finite());
        window.push(sample.ok_or_else(|| FieldError::Wrong {
            field: format!("{path}[{at}]"),
            expected: "a finite number".to_owned(),
            got: describe(item),
        })?);
    }
    Ok(Input::Window(window))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::scada::telegram::Tier;
    use crate::time::Wall;

    fn ask(payload: &str) -> Result<InferRequest, InferError> {
        let policy = CommandPolicy::new(["infer"]).unwrap();
        parse(payload.as_bytes(), false, NonZeroUsize::new(3).unwrap(), &policy)
    }

    fn inference() -> Inference {
        Inference {
            value: Some(1.0),
            label: Some("inner".to_owned()),
            confidence: Some(0.9),
            quality: Quality::Good,
            ts: Wall(7),
            model_version: 2,
            latency_ms: 1.5,
            tier: Tier::Edge,
            id: None,
            cascade: None,
        }
    }

    #[test]
    fn a_window_comes_as_an_array_or_by_name() {
        for payload in
            [r#"{"id":"a","input":[1,2.5,-3]}"#, r#"{"id":"a","input":{"window":[1,2.5,-3]}}"#]
        {
            let request = ask(payload).unwrap();
            assert_eq!(request.id.unwrap().as_str(), "a");
            assert_eq!(request.input, Input::Window(vec![1.0, 2.5, -3.0]));
        }
    }

    #[test]
    fn bad_requests_are_refused_with_what_is_wrong() {
        for (payload, kind, message) in [
            ("", "missing_field", "field \"input\" is missing: expected an array of numbers"),
            ("nonsense", "not_json", "not JSON"),
            (r#"{"input":[1,2]}"#, "wrong_length", "takes windows of 3 samples, got 2"),
            (
                r#"{"input":[1,null,3]}"#,
                "wrong_field",
                "field \"input[1]\": expected a finite number, got null",
            ),
            (r#"{"input":[1,"NaN",3]}"#, "wrong_field", "got the text \"NaN\""),
            (r#"{"input":{"window":[1,2,1e300]}}"#, "wrong_field", "field \"input.window[2]\""),
            (r#"{"input":{"windows":[1,2,3]}}"#, "wrong_field", "got an object of 1 fields"),
            (r#"{"input":{"activations":{}}}"#, "wrong_field", "field \"input.activations\""),
            (r#"{"input":{"activations":[],"x":1}}"#, "wrong_field", "got an object of 2 fields"),
            (r#"{"input":"1,2,3"}"#, "wrong_field", "got the text \"1,2,3\""),
            (r#"{"input":[1,2,3],"deadline_ms":0}"#, "wrong_field", "field \"deadline_ms\""),
            (r#"{"input":[1,2,3],"deadline_ms":600001}"#, "wrong_field", "field \"deadline_ms\""),
            (r#"{"input":[1,2,3],"via":["a b"]}"#, "wrong_field", "field \"via\""),
            (r#"{"input":[1,2,3],"via":["a","b","c","d","e"]}"#, "wrong_field", "at most 4"),
            (
                r#"{"input":[1,2,3],"x":1}"#,
                "unknown_field",
                "unknown field \"x\": known here are id, deadline_ms, via, input",
            ),
        ] {
            let error = ask(payload).unwrap_err();
            assert_eq!(error.kind(), kind, "{payload}");
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn too_large_retained_and_unwanted_requests_are_refused() {
        let len = NonZeroUsize::new(3).unwrap();
        let good = br#"{"id":"a","input":[1,2,3]}"#;
        let policy = CommandPolicy::new(["infer"]).unwrap();
        let kind = |payload: &[u8], retained, policy: &CommandPolicy| {
            parse(payload, retained, len, policy).unwrap_err().kind()
        };
        assert_eq!(kind(&vec![b'['; 10_000_000], false, &policy), "too_large");
        assert_eq!(kind(good, true, &policy), "retained");
        assert_eq!(kind(good, false, &CommandPolicy::default()), "not_allowed");
        assert!(parse(good, false, len, &policy).is_ok());
    }

    #[test]
    fn answers_are_flat_and_carry_the_askers_id() {
        let reply = InferReply::answer(RequestId::new("a").ok(), inference());
        assert_eq!(
            serde_json::to_value(reply).unwrap(),
            json!({"status": "ok", "id": "a", "value": 1.0, "label": "inner", "confidence": 0.9,
                "quality": "good", "ts": 7, "model_version": 2, "latency_ms": 1.5, "tier": "edge"})
        );
    }

    #[test]
    fn refusals_have_quality_bad_and_say_the_way_out() {
        let busy = InferError::busy(RequestId::new("a").ok(), 64).reply();
        assert_eq!(
            serde_json::to_value(busy).unwrap(),
            json!({"id": "a", "status": "error", "data": null, "quality": "bad", "error": {
                "kind": "busy",
                "message": "busy: 64 requests are waiting already",
                "hint": "try again in a moment",
            }})
        );
        let unknown = InferError::unknown_model(None, &Name::new("pump").unwrap());
        assert_eq!(unknown.kind(), "unknown_model");
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer_of_bounded_size(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let policy = CommandPolicy::new(["infer"]).unwrap();
            if let Err(error) = parse(&payload, false, NonZeroUsize::MIN, &policy) {
                prop_assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 2_000);
            }
        }
    }
}
