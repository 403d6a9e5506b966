//! A JSON object that is read field by field: a wrong one is named, a left-over one too.

use serde_json::{Map, Value};

use crate::ids::Name;
use crate::scada::request_id::RequestId;

/// The fields of one object. Each reader takes its field out; [`Fields::finish`] refuses the rest.
#[derive(Debug)]
pub(super) struct Fields {
    /// Path in front of the field names, for messages: empty or `args.`.
    path: &'static str,
    map: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Fields {
    /// Parses an object. An empty (or blank) payload is an object without fields.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, FieldError> {
        if payload.trim_ascii().is_empty() {
            return Ok(Self::of("", Map::new()));
        }
        if let Err(error) = std::str::from_utf8(payload) {
            return Err(FieldError::NotUtf8 { at: error.valid_up_to() });
        }
        match serde_json::from_slice(payload) {
            Ok(Value::Object(map)) => Ok(Self::of("", map)),
            Ok(other) => Err(FieldError::NotAnObject { got: describe(&other) }),
            Err(error) => Err(FieldError::NotJson { cause: error.to_string() }),
        }
    }

    pub(super) fn id(&mut self) -> Result<Option<RequestId>, FieldError> {
        self.convert("id", "a text of 1 to 64 bytes without control characters", |value| {
            RequestId::new(value.as_str()?).ok()
        })
    }

    /// The object under `args`; without it an object without fields.
    pub(super) fn args(&mut self) -> Result<Self, FieldError> {
        let map = self.convert("args", "an object", |value| value.as_object().cloned())?;
        Ok(Self::of("args.", map.unwrap_or_default()))
    }

    pub(super) fn whole_number(
        &mut self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<u64>, FieldError> {
        self.convert(field, expected, Value::as_u64)
    }

    pub(super) fn name(&mut self, field: &'static str) -> Result<Option<Name>, FieldError> {
        let expected = "a name of 1 to 64 characters of A-Z a-z 0-9 _ -";
        self.convert(field, expected, |value| Name::new(value.as_str()?).ok())
    }

    /// A field through `read`, which gives `None` when it isn't what was expected.
    pub(super) fn convert<T>(
        &mut self,
        field: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match read(&value) {
            Some(good) => Ok(Some(good)),
            None => Err(FieldError::Wrong {
                field: self.full(field),
                expected: expected.to_owned(),
                got: describe(&value),
            }),
        }
    }

    /// Takes the value of a field out.
    pub(super) fn take(&mut self, field: &'static str) -> Option<Value> {
        self.asked.push(field);
        self.map.remove(field)
    }

    /// Turns a missing field into an error.
    pub(super) fn need<T>(
        &self,
        found: Option<T>,
        field: &'static str,
        expected: &'static str,
    ) -> Result<T, FieldError> {
        found.ok_or_else(|| FieldError::Missing { field: self.full(field), expected })
    }

    /// Refuses fields that nobody asked for.
    pub(super) fn finish(self) -> Result<(), FieldError> {
        let Some(field) = self.map.keys().next() else { return Ok(()) };
        let known = if self.asked.is_empty() { "none".to_owned() } else { self.asked.join(", ") };
        Err(FieldError::Unknown { field: self.full(&shorten(field)), known })
    }

    fn of(path: &'static str, map: Map<String, Value>) -> Self {
        Self { path, map, asked: Vec::new() }
    }

    fn full(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }
}

/// What is wrong with a JSON object from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// Not text: JSON is UTF-8.
    #[error("the payload is not UTF-8: byte {at} begins no character")]
    NotUtf8 {
        /// Number of the first byte that is wrong, from 0.
        at: usize,
    },
    /// Not JSON at all.
    #[error("the payload is not JSON: {cause}")]
    NotJson {
        /// What the parser met, with line and column.
        cause: String,
    },
    /// JSON, but no object.
    #[error("the payload must be a JSON object like {{\"id\":\"1\"}}, got {got}")]
    NotAnObject {
        /// What it is.
        got: String,
    },
    /// A field is required.
    #[error("field {field:?} is missing: expected {expected}")]
    Missing {
        /// Its path.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A field has another type or range.
    #[error("field {field:?}: expected {expected}, got {got}")]
    Wrong {
        /// Its path.
        field: String,
        /// What it should be.
        expected: String,
        /// What it is, shortened.
        got: String,
    },
    /// A field that isn't known here.
    #[error("unknown field {field:?}: known here are {known}")]
    Unknown {
        /// Its path, shortened.
        field: String,
        /// The fields that may stand there.
        known: String,
    },
}

impl FieldError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotUtf8 { .. } => "not_utf8",
            Self::NotJson { .. } => "not_json",
            Self::NotAnObject { .. } => "not_an_object",
            Self::Missing { .. } => "missing_field",
            Self::Wrong { .. } => "wrong_field",
            Self::Unknown { .. } => "unknown_field",
        }
    }

    /// The way out, one sentence for the person who sent it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotUtf8 { .. } => "send the text as UTF-8, not in a code page (iconv -t UTF-8)",
            Self::NotJson { .. } => {
                "in a shell put the JSON into single quotes: -m '{\"id\":\"1\"}'"
            }
            Self::NotAnObject { .. } => {
                "send an object, or an empty payload if there is nothing to say"
            }
            Self::Missing { .. } => "add the field and send it again",
            Self::Wrong { .. } => "correct the field and send it again",
            Self::Unknown { .. } => "remove the field or correct its name",
        }
    }
}

/// A value in a few words, for messages: never long.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {:?}", shorten(text)),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(map) => format!("an object of {} fields", map.len()),
    }
}

/// The first characters of a text from outside.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_payload_is_an_empty_object() {
        for payload in ["", "  \n", "{}"] {
            let mut fields = Fields::parse(payload.as_bytes()).unwrap();
            assert_eq!(fields.id(), Ok(None));
            assert_eq!(fields.finish(), Ok(()));
        }
    }

    #[test]
    fn errors_name_the_field_and_what_is_expected() {
        let mut fields = Fields::parse(br#"{"id":7,"args":{"key":1}}"#).unwrap();
        assert_eq!(
            fields.id().unwrap_err().to_string(),
            "field \"id\": expected a text of 1 to 64 bytes without control characters, got the number 7"
        );
        let mut args = fields.args().unwrap();
        let version = args.whole_number("version", "a whole number").unwrap();
        assert_eq!(
            args.need(version, "version", "a whole number").unwrap_err().to_string(),
            "field \"args.version\" is missing: expected a whole number"
        );
        assert_eq!(
            args.finish().unwrap_err().to_string(),
            "unknown field \"args.key\": known here are version"
        );
    }

    #[test]
    fn foreign_text_in_messages_stays_short() {
        let long = "ü".repeat(10_000);
        let fields = Fields::parse(format!(r#"{{"{long}":1}}"#).as_bytes()).unwrap();
        assert!(fields.finish().unwrap_err().to_string().len() < 200);
        assert!(describe(&Value::String(long)).len() < 200);
    }
}
