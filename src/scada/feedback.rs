//! What quality inspection finds out later: `feedback/{model}` with `{"id": .., "label": ..}` or
//! `{"from": .., "to": .., "label": ..}`, what became of it on `reply/feedback`.
//!
//! An `id` names the request on `infer/{model}` whose answer is judged. A time names the answers on
//! windows of the plant's tags that lie wholly in it; `source` bounds it to one tag's topic. What was answered
//! is remembered by [`AnswerBook`](super::answer_book::AnswerBook). A label is judged here, never passed on.

use serde_json::{Value, json};

use crate::ids::Name;
use crate::scada::command::CommandPolicy;
use crate::scada::object::{FieldError, Fields, shorten};
use crate::scada::request_id::RequestId;
use crate::scada::telegram::Reply;
use crate::time::Wall;

/// Most bytes of a label's payload.
pub const MAX_FEEDBACK_BYTES: usize = 4 * 1024;

/// Longest time that one label may be about, in milliseconds: a day.
pub const MAX_SPAN_MS: u64 = 24 * 3_600_000;

/// A label, and which answers it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    /// Which answers.
    pub about: About,
    /// The class that was right: its name or its index.
    pub label: String,
}

/// Which answers a label is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// The answer to the request of this id.
    Request(RequestId),
    /// Answers on tags whose window lies wholly in this time.
    Span {
        /// From here on.
        from: Wall,
        /// Up to here, after `from` and not in the future.
        to: Wall,
        /// Topic of the tag; all tags without it.
        source: Option<String>,
    },
}

/// A label that isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct FeedbackError {
    /// The id that it names, where it could be read.
    pub id: Option<RequestId>,
    /// Why not.
    pub fault: FeedbackFault,
}

/// Why a label isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FeedbackFault {
    /// Larger than any label; it wasn't parsed.
    #[error("the label has {bytes} bytes, at most {MAX_FEEDBACK_BYTES} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The payload's form.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The broker had kept it: it comes again with each connection.
    #[error("the label was retained by the broker; it was not taken")]
    Retained,
    /// The node's config doesn't allow labels.
    #[error("this node takes no labels")]
    NotAllowed,
    /// The node doesn't serve this model.
    #[error("this node doesn't serve a model called {model:?}")]
    UnknownModel {
        /// The model.
        model: String,
    },
    /// It names a request and a time, or neither.
    #[error("a label is about one request (\"id\") or about a time (\"from\" and \"to\")")]
    About,
    /// The time has no length.
    #[error("the time from {from_ms} to {to_ms} is empty")]
    EmptySpan {
        /// Its start, epoch milliseconds.
        from_ms: u64,
        /// Its end, epoch milliseconds.
        to_ms: u64,
    },
    /// The time isn't over yet.
    #[error("the time ends at {to_ms}, {ahead_ms} ms ahead of this node's clock")]
    Future {
        /// Its end, epoch milliseconds.
        to_ms: u64,
        /// By how much.
        ahead_ms: u64,
    },
    /// The time is longer than one label may speak for.
    #[error("the time is {span_ms} ms long, at most {MAX_SPAN_MS} ms are taken at once")]
    TooWide {
        /// Its length.
        span_ms: u64,
    },
    /// The model has no such class.
    #[error("no class is called {label:?}")]
    UnknownLabel {
        /// The label, shortened.
        label: String,
    },
    /// No answer of this id is remembered.
    #[error("no answer to a request with the id {id:?} is remembered")]
    UnknownRequest {
        /// The id.
        id: String,
    },
    /// No answer on tags is remembered of that time.
    #[error("no answer on a tag's window is remembered from that time")]
    NoAnswers,
    /// All that it is about has another label; that one stands.
    #[error("{answers} answers have another label already ({stands:?} the first), which stands")]
    Contradicts {
        /// How many.
        answers: usize,
        /// The label of the first of them.
        stands: String,
    },
}

/// Reads a label that came at `now`. `retained` is what the broker says.
///
/// # Errors
/// [`FeedbackError`], to be counted by its kind and told by [`FeedbackError::reply`].
pub fn parse(
    payload: &[u8],
    retained: bool,
    now: Wall,
    policy: &CommandPolicy,
) -> Result<Feedback, FeedbackError> {
    let fail = |fault| Err(FeedbackError { id: None, fault });
    if payload.len() > MAX_FEEDBACK_BYTES {
        return fail(FeedbackFault::TooLarge { bytes: payload.len() });
    }
    let mut fields = match Fields::parse(payload) {
        Ok(fields) => fields,
        Err(error) => return fail(error.into()),
    };
    let id = match fields.id() {
        Ok(id) => id,
        Err(error) => return fail(error.into()),
    };
    let checked = if retained {
        Err(FeedbackFault::Retained)
    } else if !policy.allows_feedback() {
        Err(FeedbackFault::NotAllowed)
    } else {
        read(fields, id.clone(), now)
    };
    checked.map_err(|fault| FeedbackError { id, fault })
}

fn read(mut fields: Fields, id: Option<RequestId>, now: Wall) -> Result<Feedback, FeedbackFault> {
    const LABEL: &str = "the name of a class, or its index";
    const MOMENT: &str = "milliseconds since 1970-01-01 UTC, or a text like 2026-12-24T00:00:00Z";
    let label = fields.convert("label", LABEL, |value| match value {
        Value::String(name) if !name.is_empty() => Some(name.clone()),
        other => other.as_u64().map(|index| index.to_string()),
    })?;
    let label = fields.need(label, "label", LABEL)?;
    let from = fields.convert("from", MOMENT, moment)?;
    let to = fields.convert("to", MOMENT, moment)?;
    let source = fields.convert("source", "the topic of a tag", |value| {
        value.as_str().filter(|topic| !topic.is_empty()).map(str::to_owned)
    })?;
    fields.finish()?;
    let about = match (id, from, to, source) {
        (Some(id), None, None, None) => About::Request(id),
        (None, Some(from), Some(to), source) => span(from, to, source, now)?,
        _ => return Err(FeedbackFault::About),
    };
    Ok(Feedback { about, label })
}

fn span(from: Wall, to: Wall, source: Option<String>, now: Wall) -> Result<About, FeedbackFault> {
    let span_ms = to.0.saturating_sub(from.0);
    if span_ms == 0 {
        return Err(FeedbackFault::EmptySpan { from_ms: from.0, to_ms: to.0 });
    }
    if to > now {
        return Err(FeedbackFault::Future { to_ms: to.0, ahead_ms: to.0 - now.0 });
    }
    if span_ms > MAX_SPAN_MS {
        return Err(FeedbackFault::TooWide { span_ms });
    }
    Ok(About::Span { from, to, source })
}

fn moment(value: &Value) -> Option<Wall> {
    match value {
        Value::String(text) => Wall::parse_utc(text),
        other => other.as_u64().map(Wall),
    }
}

impl Feedback {
    /// The class that it names, by its name or its index in `labels`.
    ///
    /// # Errors
    /// [`FeedbackError`] where there is no such class.
    pub fn class(&self, labels: &[String]) -> Result<usize, FeedbackError> {
        let named = labels.iter().position(|known| *known == self.label);
        let index = || self.label.parse().ok().filter(|index| *index < labels.len());
        named.or_else(index).ok_or_else(|| {
            let label = shorten(&self.label);
            FeedbackError { id: self.id(), fault: FeedbackFault::UnknownLabel { label } }
        })
    }

    /// The id of the request that it is about.
    pub fn id(&self) -> Option<RequestId> {
        match &self.about {
            About::Request(id) => Some(id.clone()),
            About::Span { .. } => None,
        }
    }
}

impl FeedbackError {
    /// The model isn't served here.
    pub fn unknown_model(id: Option<RequestId>, model: &Name) -> Self {
        Self { id, fault: FeedbackFault::UnknownModel { model: model.to_string() } }
    }

    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match &self.fault {
            FeedbackFault::TooLarge { .. } => "too_large",
            FeedbackFault::Field(error) => error.kind(),
            FeedbackFault::Retained => "retained",
            FeedbackFault::NotAllowed => "not_allowed",
            FeedbackFault::UnknownModel { .. } => "unknown_model",
            FeedbackFault::About => "feedback_about",
            FeedbackFault::EmptySpan { .. } => "feedback_empty_span",
            FeedbackFault::Future { .. } => "feedback_in_the_future",
            FeedbackFault::TooWide { .. } => "feedback_too_wide",
            FeedbackFault::UnknownLabel { .. } => "feedback_unknown_label",
            FeedbackFault::UnknownRequest { .. } => "feedback_unknown_request",
            FeedbackFault::NoAnswers => "feedback_no_answers",
            FeedbackFault::Contradicts { .. } => "feedback_contradicts",
        }
    }

    /// The way out, for the person who sent it.
    pub fn hint(&self) -> &'static str {
        match &self.fault {
            FeedbackFault::TooLarge { .. } => "send one label a message",
            FeedbackFault::Field(error) => error.hint(),
            FeedbackFault::Retained => "publish it again without the retain flag (no -r)",
            FeedbackFault::NotAllowed => {
                "add \"feedback\" to commands.unsigned in the node's config"
            }
            FeedbackFault::UnknownModel { .. } => "the node's `meta` topic lists its models",
            FeedbackFault::About => {
                "send {\"id\":..,\"label\":..} or {\"from\":..,\"to\":..,\"label\":..}"
            }
            FeedbackFault::EmptySpan { .. } => "`from` is the start of the time, `to` its end",
            FeedbackFault::Future { .. } => "check both clocks; label a time once it is over",
            FeedbackFault::TooWide { .. } => "send a label for each day of it",
            FeedbackFault::UnknownLabel { .. } => {
                "the node's `meta` topic lists the model's labels"
            }
            FeedbackFault::UnknownRequest { .. } | FeedbackFault::NoAnswers => {
                "the node remembers feedback.keep_answers of them for feedback.keep_hours, and none from before it started"
            }
            FeedbackFault::Contradicts { .. } => {
                "the first label stands; nothing was changed, see docs/feedback.md"
            }
        }
    }

    /// The answer for whoever sent it.
    pub fn reply(&self) -> Reply {
        Reply::error(self.id.clone(), self.kind(), self.to_string(), self.hint())
    }
}

/// What became of a label, for whoever sent it: answers that it labelled, those that had the same label before,
/// and those that have another one, which stands.
pub fn taken(
    id: Option<RequestId>,
    labelled: usize,
    repeated: usize,
    contradicted: usize,
) -> Reply {
    let data = json!({"labelled": labelled, "repeated": repeated, "contradicted": contradicted});
    Reply::ok(id, data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Wall = Wall(1_767_225_600_000);

    fn policy() -> CommandPolicy {
        CommandPolicy::new(["feedback"]).unwrap()
    }

    fn read_json(text: &str) -> Result<Feedback, FeedbackError> {
        parse(text.as_bytes(), false, NOW, &policy())
    }

    fn kind(text: &str) -> &'static str {
        read_json(text).unwrap_err().kind()
    }

    #[test]
    fn labels_are_about_a_request_or_a_time_in_either_form() {
        let id = RequestId::new("q-17").unwrap();
        assert_eq!(
            read_json(r#"{"id":"q-17","label":"outer"}"#),
            Ok(Feedback { about: About::Request(id), label: "outer".into() })
        );
        let (from, to) = (Wall(NOW.0 - 3_600_000), Wall(NOW.0 - 1_800_000));
        for text in [
            r#"{"from":1767222000000,"to":1767223800000,"label":2}"#,
            r#"{"from":"2025-12-31T23:00:00Z","to":"2025-12-31T23:30:00Z","label":"2"}"#,
        ] {
            let about = About::Span { from, to, source: None };
            assert_eq!(read_json(text), Ok(Feedback { about, label: "2".into() }));
        }
    }

    #[test]
    fn each_refusal_has_a_word_and_its_twin_is_taken() {
        let twins = [
            (r#"{"id":"q","label":""}"#, "wrong_field", r#"{"id":"q","label":"a"}"#),
            (r#"{"id":"q"}"#, "missing_field", r#"{"id":"q","label":0}"#),
            (r#"{"label":"a"}"#, "feedback_about", r#"{"id":"q","label":"a"}"#),
            (
                r#"{"id":"q","from":1,"to":2,"label":"a"}"#,
                "feedback_about",
                r#"{"from":1,"to":2,"label":"a"}"#,
            ),
            (r#"{"from":1,"label":"a"}"#, "feedback_about", r#"{"from":1,"to":2,"label":"a"}"#),
            (
                r#"{"id":"q","source":"t","label":"a"}"#,
                "feedback_about",
                r#"{"from":1,"to":2,"source":"t","label":"a"}"#,
            ),
            (
                r#"{"from":2,"to":2,"label":"a"}"#,
                "feedback_empty_span",
                r#"{"from":1,"to":2,"label":"a"}"#,
            ),
            (
                r#"{"from":3,"to":2,"label":"a"}"#,
                "feedback_empty_span",
                r#"{"from":2,"to":3,"label":"a"}"#,
            ),
            (
                r#"{"from":1767225500000,"to":1767225600001,"label":"a"}"#,
                "feedback_in_the_future",
                r#"{"from":1767225500000,"to":1767225600000,"label":"a"}"#,
            ),
            (
                r#"{"from":0,"to":86400001,"label":"a"}"#,
                "feedback_too_wide",
                r#"{"from":0,"to":86400000,"label":"a"}"#,
            ),
            (
                r#"{"from":-1,"to":2,"label":"a"}"#,
                "wrong_field",
                r#"{"from":1,"to":2,"label":"a"}"#,
            ),
            (r#"{"id":"q","label":"a","why":1}"#, "unknown_field", r#"{"id":"q","label":"a"}"#),
            ("[]", "not_an_object", r#"{"id":"q","label":"a"}"#),
        ];
        for (bad, word, good) in twins {
            assert_eq!(kind(bad), word, "{bad}");
            assert!(read_json(good).is_ok(), "{good}");
        }
        let good = br#"{"id":"q","label":"a"}"#;
        assert_eq!(parse(good, true, NOW, &policy()).unwrap_err().kind(), "retained");
        let none = CommandPolicy::default();
        assert_eq!(parse(good, false, NOW, &none).unwrap_err().kind(), "not_allowed");
        let large = format!(r#"{{"id":"q","label":"{}"}}"#, "a".repeat(MAX_FEEDBACK_BYTES));
        assert_eq!(kind(&large), "too_large");
    }

    #[test]
    fn a_class_goes_by_its_name_or_its_index() {
        let labels = ["inner".to_owned(), "outer".to_owned()];
        let class = |label: &str| {
            let about = About::Span { from: Wall(0), to: Wall(1), source: None };
            Feedback { about, label: label.to_owned() }.class(&labels)
        };
        assert_eq!((class("outer"), class("0")), (Ok(1), Ok(0)));
        for unknown in ["none", "2", "Outer"] {
            assert_eq!(class(unknown).unwrap_err().kind(), "feedback_unknown_label");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_answered_in_bounds(bytes in any::<Vec<u8>>()) {
            if let Err(error) = parse(&bytes, false, NOW, &policy()) {
                prop_assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 4_096);
            }
        }
    }
}
