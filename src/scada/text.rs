//! Requests for text: `infer/{model}` with `{"id": .., "prompt": ..}`, the answer on `reply/infer`, and
//! on `stream/{id}` piece by piece where that was asked for.
//!
//! Like a request for a window it is refused rather than repaired. `{"id": .., "cancel": true}` ends a
//! request; one whose asker has gone without a word ends by its `deadline_ms`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{Digest, Name, Version};
use crate::scada::command::CommandPolicy;
use crate::scada::infer::{InferError, opened};
use crate::scada::object::{FieldError, Fields};
use crate::scada::request_id::RequestId;
use crate::scada::telegram::{Quality, ReplyStatus, Tier};
use crate::time::Wall;

/// What came on `infer/{model}` of a model that writes text.
#[derive(Debug, Clone, PartialEq)]
pub enum TextRequest {
    /// Continue a prompt.
    Ask(TextAsk),
    /// End the request of this id.
    Cancel(RequestId),
}

/// A request for text, all fields checked.
#[derive(Debug, Clone, PartialEq)]
pub struct TextAsk {
    /// The asker's id, to be echoed.
    pub id: Option<RequestId>,
    /// What to continue, not empty.
    pub prompt: String,
    /// Most tokens of the answer, 1 to 4096.
    pub max_tokens: u32,
    /// 0 (the likeliest token each time) to 10.
    pub temperature: f64,
    /// Above 0, at most 1.
    pub top_p: f64,
    /// For the draws; none: the node draws one.
    pub seed: Option<u64>,
    /// The answer ends before the first of these; at most 8 of 1 to 256 bytes.
    pub stop: Vec<String>,
    /// Level of the topic for the pieces; none when the answer alone is enough.
    pub stream: Option<Name>,
    /// Milliseconds from the request's arrival, 1 to 600 000.
    pub deadline_ms: u64,
    /// With which adapter; none for the version that is served.
    pub adapter: Option<WantedAdapter>,
}

/// Names an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedAdapter {
    /// A version of the federation's.
    Version(Version),
    /// One of the node's own.
    Name(Name),
}

/// A generated answer on `reply/infer`. Flat; all keys are always there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextAnswer {
    /// The asker's id.
    pub id: Option<RequestId>,
    /// Always [`ReplyStatus::Ok`]; what was refused gets an error reply.
    pub status: ReplyStatus,
    /// The text without the prompt; as far as it came, where it was cut off.
    pub text: String,
    /// Why it ended: `stop`, `length`, `cancelled` or `deadline`.
    pub finish: String,
    /// [`Quality::Bad`] where it was cut off.
    pub quality: Quality,
    /// Tokens of the answer.
    pub tokens: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Version of the adapter that made all of it; `null` for one with a name.
    pub model_version: Option<Version>,
    /// Name of the adapter that made it, where it has one.
    pub adapter: Option<Name>,
    /// Digest of that adapter, as in `meta`.
    #[serde(default)]
    pub adapter_digest: Option<Digest>,
    /// From the request to the answer, in milliseconds.
    pub latency_ms: f64,
    /// Where it was computed.
    pub tier: Tier,
    /// When the answer was made.
    pub ts: Wall,
}

/// A piece of an answer on `stream/{id}`. Flat; all keys are always there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextPiece {
    /// The asker's id.
    pub id: Name,
    /// Counts the pieces from 0: a gap is a lost telegram.
    pub n: u64,
    /// The next piece of the text: whole characters, and nothing of a stop string.
    pub text: String,
    /// `null` until the last piece, which has no text and says why it is the last.
    pub finish: Option<String>,
    /// Version of the adapter that makes it; `null` for one with a name, and in a last piece after which
    /// there is nothing.
    pub model_version: Option<Version>,
    /// Name of the adapter, where it has one.
    pub adapter: Option<Name>,
    /// When it was made.
    pub ts: Wall,
}

/// Most tokens that may be asked for at once.
pub const MAX_TOKENS: u32 = 4096;
/// Tokens of an answer where the request doesn't say.
pub const DEFAULT_TOKENS: u32 = 128;
/// The longest time that an asker may wait, in milliseconds.
pub const MAX_DEADLINE_MS: u64 = 600_000;
/// How long an asker waits who doesn't say, in milliseconds.
pub const DEFAULT_DEADLINE_MS: u64 = 60_000;
/// Most stop strings, and bytes of one.
const MAX_STOPS: usize = 8;
const MAX_STOP_BYTES: usize = 256;

/// Reads a request for text.
///
/// `retained` is the broker's flag: such a request is older than the connection.
///
/// # Errors
/// [`InferError`]; its [`reply`](InferError::reply) is for the asker.
pub fn parse(
    payload: &[u8],
    retained: bool,
    policy: &CommandPolicy,
) -> Result<TextRequest, InferError> {
    let (fields, id) = opened(payload, retained, policy)?;
    read(fields, id.clone()).map_err(|error| InferError { id, fault: error.into() })
}

fn read(mut fields: Fields, id: Option<RequestId>) -> Result<TextRequest, FieldError> {
    if flag(&mut fields, "cancel")? {
        fields.finish()?;
        let expected = "the id of the request that is to end";
        return Ok(TextRequest::Cancel(id.ok_or_else(|| missing("id", expected))?));
    }
    let prompt = fields.convert("prompt", PROMPT, |value| {
        value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    })?;
    let prompt = fields.need(prompt, "prompt", PROMPT)?;
    let max_tokens = fields.convert("max_tokens", "a whole number of 1 to 4096", |value| {
        value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=MAX_TOKENS).contains(n))
    })?;
    let temperature = fields.convert("temperature", "a number of 0 to 10", |value| {
        value.as_f64().filter(|t| (0.0..=10.0).contains(t))
    })?;
    let top_p = fields.convert("top_p", "a number above 0, at most 1", |value| {
        value.as_f64().filter(|p| *p > 0.0 && *p <= 1.0)
    })?;
    let seed = fields.whole_number("seed", "a whole number of 0 or more")?;
    let stop = fields.convert("stop", "a text of 1 to 256 bytes, or up to 8 of them", texts)?;
    let streamed = flag(&mut fields, "stream")?;
    let deadline_ms = fields.convert("deadline_ms", "a whole number of 1 to 600000", |value| {
        value.as_u64().filter(|ms| (1..=MAX_DEADLINE_MS).contains(ms))
    })?;
    let adapter = fields.convert("adapter", "a version or an adapter's name", wanted)?;
    fields.finish()?;
    let stream = match (streamed, &id) {
        (false, _) => None,
        (true, None) => return Err(missing("id", FOR_A_TOPIC)),
        (true, Some(id)) => Some(Name::new(id.as_str()).map_err(|_| FieldError::Wrong {
            field: "id".to_owned(),
            expected: FOR_A_TOPIC.to_owned(),
            got: format!("the text {id:?}"),
        })?),
    };
    Ok(TextRequest::Ask(TextAsk {
        id,
        prompt,
        max_tokens: max_tokens.unwrap_or(DEFAULT_TOKENS),
        temperature: temperature.unwrap_or(0.0),
        top_p: top_p.unwrap_or(1.0),
        seed,
        stop: stop.unwrap_or_default(),
        stream,
        deadline_ms: deadline_ms.unwrap_or(DEFAULT_DEADLINE_MS),
        adapter,
    }))
}

const PROMPT: &str = "a text that is not empty";
/// The id of a streamed answer is a level of its topic.
const FOR_A_TOPIC: &str = "1 to 64 characters of A-Z a-z 0-9 _ - for the topic stream/{id}";

fn missing(field: &str, expected: &'static str) -> FieldError {
    FieldError::Missing { field: field.to_owned(), expected }
}

fn flag(fields: &mut Fields, field: &'static str) -> Result<bool, FieldError> {
    Ok(fields.convert(field, "true or false", Value::as_bool)?.unwrap_or(false))
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let fits = |text: &str| (1..=MAX_STOP_BYTES).contains(&text.len()).then(|| text.to_owned());
    match value {
        Value::String(text) => Some(vec![fits(text)?]),
        Value::Array(items) if items.len() <= MAX_STOPS => {
            items.iter().map(|item| fits(item.as_str()?)).collect()
        }
        _ => None,
    }
}

fn wanted(value: &Value) -> Option<WantedAdapter> {
    match value {
        Value::String(name) => Name::new(name.as_str()).ok().map(WantedAdapter::Name),
        other => other.as_u64().map(WantedAdapter::Version),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn ask(payload: &str) -> Result<TextRequest, InferError> {
        parse(payload.as_bytes(), false, &CommandPolicy::new(["infer"]).unwrap())
    }

    fn id(text: &str) -> Option<RequestId> {
        RequestId::new(text).ok()
    }

    #[test]
    fn a_prompt_alone_is_enough_and_every_field_is_read() {
        let TextRequest::Ask(plain) = ask(r#"{"prompt":"The pump"}"#).unwrap() else { panic!() };
        let wanted = TextAsk {
            id: None,
            prompt: "The pump".into(),
            max_tokens: 128,
            temperature: 0.0,
            top_p: 1.0,
            seed: None,
            stop: vec![],
            stream: None,
            deadline_ms: 60_000,
            adapter: None,
        };
        assert_eq!(plain, wanted);
        let full = r#"{"id":"g-1","prompt":"x","max_tokens":9,"temperature":0.5,"top_p":0.9,"seed":7,
            "stop":["\n","END"],"stream":true,"deadline_ms":2000,"adapter":"pumps"}"#;
        let TextRequest::Ask(full) = ask(full).unwrap() else { panic!() };
        let wanted = TextAsk {
            id: id("g-1"),
            prompt: "x".into(),
            max_tokens: 9,
            temperature: 0.5,
            top_p: 0.9,
            seed: Some(7),
            stop: vec!["\n".into(), "END".into()],
            stream: Name::new("g-1").ok(),
            deadline_ms: 2_000,
            adapter: Some(WantedAdapter::Name(Name::new("pumps").unwrap())),
        };
        assert_eq!(full, wanted);
        let TextRequest::Ask(older) = ask(r#"{"prompt":"x","stop":"a","adapter":3}"#).unwrap()
        else {
            panic!()
        };
        assert_eq!(older.adapter, Some(WantedAdapter::Version(3)));
        assert_eq!(older.stop, ["a"]);
    }

    #[test]
    fn a_cancel_names_its_request() {
        let cancel = ask(r#"{"id":"g-1","cancel":true}"#);
        assert_eq!(cancel.unwrap(), TextRequest::Cancel(id("g-1").unwrap()));
        assert_eq!(ask(r#"{"cancel":true}"#).unwrap_err().kind(), "missing_field");
        let both = ask(r#"{"id":"g-1","cancel":true,"prompt":"x"}"#).unwrap_err();
        assert_eq!(both.kind(), "unknown_field");
        assert!(matches!(ask(r#"{"cancel":false,"prompt":"x"}"#), Ok(TextRequest::Ask(_))));
    }

    #[test]
    fn bad_requests_are_refused_with_what_is_wrong() {
        let long = format!(r#"{{"prompt":"x","stop":["{}"]}}"#, "s".repeat(257));
        for (payload, kind, message) in [
            ("", "missing_field", "field \"prompt\" is missing: expected a text that is not empty"),
            (
                r#"{"prompt":""}"#,
                "wrong_field",
                "field \"prompt\": expected a text that is not empty",
            ),
            (r#"{"prompt":7}"#, "wrong_field", "got the number 7"),
            (r#"{"prompt":"x","max_tokens":0}"#, "wrong_field", "1 to 4096"),
            (r#"{"prompt":"x","max_tokens":4097}"#, "wrong_field", "1 to 4096"),
            (r#"{"prompt":"x","temperature":-1}"#, "wrong_field", "0 to 10"),
            (r#"{"prompt":"x","top_p":0}"#, "wrong_field", "above 0"),
            (r#"{"prompt":"x","stop":""}"#, "wrong_field", "1 to 256 bytes"),
            (
                r#"{"prompt":"x","stop":["1","2","3","4","5","6","7","8","9"]}"#,
                "wrong_field",
                "up to 8",
            ),
            (&long, "wrong_field", "1 to 256 bytes"),
            (r#"{"prompt":"x","deadline_ms":0}"#, "wrong_field", "1 to 600000"),
            (r#"{"prompt":"x","adapter":-1}"#, "wrong_field", "a version or an adapter's name"),
            (r#"{"prompt":"x","adapter":"a/b"}"#, "wrong_field", "a version or an adapter's name"),
            (r#"{"prompt":"x","stream":"yes"}"#, "wrong_field", "true or false"),
            (r#"{"prompt":"x","stream":true}"#, "missing_field", "for the topic stream/{id}"),
            (r#"{"id":"a b","prompt":"x","stream":true}"#, "wrong_field", "got the text \"a b\""),
            (r#"{"input":[1,2,3]}"#, "missing_field", "field \"prompt\" is missing"),
            (r#"{"prompt":"x","n":2}"#, "unknown_field", "unknown field \"n\""),
        ] {
            let error = ask(payload).unwrap_err();
            assert_eq!(error.kind(), kind, "{payload}");
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn a_megabyte_invalid_utf8_retained_and_unwanted_requests_are_refused() {
        let policy = CommandPolicy::new(["infer"]).unwrap();
        let refused = |payload: &[u8], retained, policy: &CommandPolicy| {
            parse(payload, retained, policy).unwrap_err()
        };
        let good = br#"{"id":"a","prompt":"x"}"#;
        let mut megabyte = vec![b'x'; 1 << 20];
        megabyte.splice(..0, *br#"{"prompt":""#);
        assert_eq!(refused(&megabyte, false, &policy).kind(), "too_large");
        let broken = refused(b"{\"prompt\":\"a\xE2\x82\"}", false, &policy);
        assert_eq!(
            (broken.kind(), broken.to_string()),
            ("not_utf8", "the payload is not UTF-8: byte 12 begins no character".into())
        );
        assert_eq!(refused(good, true, &policy).kind(), "retained");
        assert_eq!(refused(good, false, &CommandPolicy::default()).kind(), "not_allowed");
        assert!(parse(good, false, &policy).is_ok());
    }

    #[test]
    fn telegrams_are_flat_and_have_all_their_keys() {
        let answer = TextAnswer {
            id: id("g-1"),
            status: ReplyStatus::Ok,
            text: "hums".into(),
            finish: "stop".into(),
            quality: Quality::Good,
            tokens: 2,
            prompt_tokens: 3,
            model_version: Some(4),
            adapter: None,
            adapter_digest: None,
            latency_ms: 12.5,
            tier: Tier::Edge,
            ts: Wall(7),
        };
        assert_eq!(
            serde_json::to_value(answer).unwrap(),
            json!({"id": "g-1", "status": "ok", "text": "hums", "finish": "stop", "quality": "good",
                "tokens": 2, "prompt_tokens": 3, "model_version": 4, "adapter": null,
                "adapter_digest": null, "latency_ms": 12.5, "tier": "edge", "ts": 7})
        );
        let piece = TextPiece {
            id: Name::new("g-1").unwrap(),
            n: 0,
            text: "hu".into(),
            finish: None,
            model_version: None,
            adapter: Name::new("pumps").ok(),
            ts: Wall(7),
        };
        assert_eq!(
            serde_json::to_value(piece).unwrap(),
            json!({"id": "g-1", "n": 0, "text": "hu", "finish": null, "model_version": null,
                "adapter": "pumps", "ts": 7})
        );
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer_of_bounded_size(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let policy = CommandPolicy::new(["infer"]).unwrap();
            if let Err(error) = parse(&payload, false, &policy) {
                prop_assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 2_000);
            }
        }
    }
}
