//! `[[tags]]`: which plant topic feeds which input.
//!
//! A tag binds a topic filter and a place in the payload to an input window, a label, the flag
//! that says the machine is idle, or a value beyond whose bounds nothing is to be trained. Plants write what they like, so a value that can't be read is an
//! error with its cause, and a sample that is no finite number passes as NaN: the window that it
//! lies in is dropped, the stream goes on.

use std::num::NonZeroUsize;
use std::str::FromStr;

use serde_json::Value;

use crate::ids::Name;
use crate::scada::object::{describe, shorten};
use crate::topic::filter::{Filter, FilterError};

/// Most bytes of a plant telegram that is read.
pub const MAX_TELEGRAM_BYTES: usize = 1024 * 1024;

/// Most samples in one telegram.
pub const MAX_SAMPLES: usize = 65_536;

/// One entry of `[[tags]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    filter: Filter,
    format: Format,
    pointer: String,
    binds: Binds,
    hop: Option<NonZeroUsize>,
    max_gap_ms: Option<u64>,
}

/// What a tag's payload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// JSON, also a bare number or array; the pointer says where the value lies.
    #[default]
    Json,
    /// Text: numbers between commas, semicolons, blanks or line ends; or one word.
    Csv,
    /// Little-endian 32-bit floats, nothing else.
    F32Le,
}

/// What a tag's value is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Binds {
    /// Samples of a model's input.
    Feature {
        /// The model.
        model: Name,
    },
    /// The true class of what is measured now.
    Label,
    /// Whether the machine stands still.
    Idle,
    /// A measurement, a temperature or a battery's charge, that forbids training beyond its bounds.
    Veto {
        /// Forbids it above this.
        above: Option<f64>,
        /// Forbids it below this.
        below: Option<f64>,
    },
}

/// What a telegram said.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// Samples in their order; NaN or infinite where the plant sent no finite number.
    Samples(Vec<f32>),
    /// A class name.
    Label(String),
    /// The machine stands still, or not.
    Idle(bool),
    /// The value forbids training, or not.
    Veto(bool),
}

impl FromStr for Format {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        match text {
            "json" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            "f32le" => Ok(Self::F32Le),
            _ => Err(TagError::Format { got: shorten(text) }),
        }
    }
}

impl Tag {
    /// Longest label in bytes.
    pub const MAX_LABEL_LEN: usize = 64;

    /// Checks an entry. The pointer is RFC 6901; empty means that the payload is the value.
    ///
    /// # Errors
    /// [`TagError`] for a broken filter or pointer, or a pointer into a payload that isn't JSON, or
    /// a label or flag as binary floats.
    pub fn new(
        filter: &str,
        format: Format,
        pointer: &str,
        binds: Binds,
    ) -> Result<Self, TagError> {
        check_pointer(pointer)?;
        if format != Format::Json && !pointer.is_empty() {
            return Err(TagError::PointerOutsideJson { pointer: pointer.to_owned() });
        }
        if format == Format::F32Le && !matches!(binds, Binds::Feature { .. }) {
            return Err(TagError::BinaryWord);
        }
        Ok(Self {
            filter: Filter::new(filter)?,
            format,
            pointer: pointer.to_owned(),
            binds,
            hop: None,
            max_gap_ms: None,
        })
    }

    /// Says how its samples become windows, where that differs from the node's own way.
    pub fn with_windows(self, hop: Option<NonZeroUsize>, max_gap_ms: Option<u64>) -> Self {
        Self { hop, max_gap_ms, ..self }
    }

    /// Samples from the start of one window to the start of the next; `None`: no overlap.
    pub fn hop(&self) -> Option<NonZeroUsize> {
        self.hop
    }

    /// A pause between telegrams that breaks a window, in milliseconds; `None`: the node's.
    pub fn max_gap_ms(&self) -> Option<u64> {
        self.max_gap_ms
    }

    /// The filter to subscribe to.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// What the value is for.
    pub fn binds(&self) -> &Binds {
        &self.binds
    }

    /// Reads the value out of a payload of one of its topics.
    ///
    /// # Errors
    /// [`TagError`] says what was found instead.
    pub fn read(&self, payload: &[u8]) -> Result<Reading, TagError> {
        if payload.len() > MAX_TELEGRAM_BYTES {
            return Err(TagError::TooLarge { bytes: payload.len() });
        }
        match self.format {
            Format::Json => {
                let json: Value = serde_json::from_slice(payload)
                    .map_err(|error| TagError::NotJson { cause: error.to_string() })?;
                let value = json.pointer(&self.pointer).ok_or_else(|| TagError::Absent {
                    pointer: self.pointer.clone(),
                    got: outline(&json),
                })?;
                self.read_json(value)
            }
            Format::Csv => {
                let text = std::str::from_utf8(payload).map_err(|_| TagError::NotText)?;
                self.read_text(text.trim())
            }
            Format::F32Le => read_f32le(payload),
        }
    }

    fn read_json(&self, value: &Value) -> Result<Reading, TagError> {
        let wrong = |expected| TagError::Wrong { expected, got: describe(value) };
        match &self.binds {
            Binds::Feature { .. } => match value {
                Value::Array(items) if items.len() > MAX_SAMPLES => {
                    Err(TagError::TooMany { samples: items.len() })
                }
                Value::Array(items) => {
                    Ok(Reading::Samples(items.iter().map(sample).collect::<Result<_, _>>()?))
                }
                Value::Object(_) | Value::Bool(_) => Err(wrong("a number or an array of numbers")),
                one => Ok(Reading::Samples(vec![sample(one)?])),
            },
            Binds::Label => match value {
                Value::String(text) => label(text),
                Value::Number(number) => label(&number.to_string()),
                _ => Err(wrong("a class name or number")),
            },
            Binds::Idle => match value {
                Value::Bool(flag) => Ok(Reading::Idle(*flag)),
                Value::String(text) => flag(text),
                Value::Number(number) => flag(&number.to_string()),
                _ => Err(wrong("true or false")),
            },
            Binds::Veto { above, below } => match value.as_f64() {
                Some(value) => Ok(Reading::Veto(is_beyond(value, *above, *below))),
                None => Err(wrong("a number")),
            },
        }
    }

    fn read_text(&self, text: &str) -> Result<Reading, TagError> {
        match &self.binds {
            Binds::Feature { .. } => {
                let cells = || {
                    text.split(|c: char| matches!(c, ',' | ';') || c.is_whitespace())
                        .filter(|cell| !cell.is_empty())
                };
                let samples = cells().count();
                if samples > MAX_SAMPLES {
                    return Err(TagError::TooMany { samples });
                }
                let values: Vec<f32> = cells().map(parse_sample).collect::<Result<_, _>>()?;
                Ok(Reading::Samples(values))
            }
            Binds::Label => label(text),
            Binds::Idle => flag(text),
            Binds::Veto { above, below } => match text.parse::<f64>() {
                Ok(value) if value.is_finite() => {
                    Ok(Reading::Veto(is_beyond(value, *above, *below)))
                }
                _ => Err(TagError::Wrong { expected: "a number", got: shorten(text) }),
            },
        }
    }
}

fn is_beyond(value: f64, above: Option<f64>, below: Option<f64>) -> bool {
    above.is_some_and(|most| value > most) || below.is_some_and(|least| value < least)
}

/// All of a node's tags.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TagMap(Vec<Tag>);

impl TagMap {
    /// Takes the entries in the order of the config.
    pub fn new(tags: Vec<Tag>) -> Self {
        Self(tags)
    }

    /// The entries.
    pub fn tags(&self) -> &[Tag] {
        &self.0
    }

    /// Entries with their positions that a topic belongs to; one telegram may feed several.
    pub fn of<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = (usize, &'a Tag)> {
        self.0.iter().enumerate().filter(move |(_, tag)| tag.filter.covers(topic))
    }
}

/// What is wrong with a tag's configuration or payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TagError {
    /// The topic filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The pointer isn't RFC 6901.
    #[error("JSON pointer {pointer:?} must be empty or start with '/', with ~0 for ~ and ~1 for /")]
    Pointer {
        /// The pointer.
        pointer: String,
    },
    /// A pointer, but no JSON to point into.
    #[error("JSON pointer {pointer:?} needs format \"json\"")]
    PointerOutsideJson {
        /// The pointer.
        pointer: String,
    },
    /// Labels and flags are no floats.
    #[error("a label, idle flag or veto can't have format \"f32le\": use \"json\" or \"csv\"")]
    BinaryWord,
    /// No such format.
    #[error("format {got:?} isn't known: use \"json\", \"csv\" or \"f32le\"")]
    Format {
        /// The word, shortened.
        got: String,
    },
    /// Larger than any plant telegram.
    #[error("the telegram has {bytes} bytes, at most {MAX_TELEGRAM_BYTES} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// More samples than one telegram may have.
    #[error("the telegram has {samples} samples, at most {MAX_SAMPLES} are read")]
    TooMany {
        /// Their number.
        samples: usize,
    },
    /// Not JSON.
    #[error("the telegram is not JSON: {cause}")]
    NotJson {
        /// What the parser met.
        cause: String,
    },
    /// Not UTF-8.
    #[error("the telegram is no UTF-8 text")]
    NotText,
    /// Floats have four bytes.
    #[error("the telegram has {bytes} bytes, which is no whole number of 32-bit floats")]
    PartialFloat {
        /// Its size.
        bytes: usize,
    },
    /// Nothing lies where the pointer points.
    #[error("the telegram has nothing at JSON pointer {pointer:?}; it is {got}")]
    Absent {
        /// The pointer.
        pointer: String,
        /// What the telegram is, with its first keys.
        got: String,
    },
    /// Something else lies there.
    #[error("the tag's value must be {expected}, got {got}")]
    Wrong {
        /// What should be there.
        expected: &'static str,
        /// What is there, shortened.
        got: String,
    },
}

impl TagError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Filter(error) => error.kind(),
            Self::Pointer { .. } => "tag_pointer",
            Self::PointerOutsideJson { .. } => "tag_pointer_outside_json",
            Self::BinaryWord => "tag_binary_word",
            Self::Format { .. } => "tag_format",
            Self::TooLarge { .. } => "tag_too_large",
            Self::TooMany { .. } => "tag_too_many",
            Self::NotJson { .. } => "tag_not_json",
            Self::NotText => "tag_not_text",
            Self::PartialFloat { .. } => "tag_partial_float",
            Self::Absent { .. } => "tag_absent",
            Self::Wrong { .. } => "tag_wrong",
        }
    }
}

/// What a telegram looks like, so that the right pointer can be seen.
fn outline(json: &Value) -> String {
    const SHOWN: usize = 5;
    match json {
        Value::Object(map) if !map.is_empty() => {
            let keys =
                map.keys().take(SHOWN).map(|key| format!("/{}", shorten(key).escape_debug()));
            format!("an object with {}", keys.collect::<Vec<_>>().join(", "))
        }
        other => describe(other),
    }
}

fn check_pointer(pointer: &str) -> Result<(), TagError> {
    let starts = pointer.is_empty() || pointer.starts_with('/');
    let escapes = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if starts && escapes { Ok(()) } else { Err(TagError::Pointer { pointer: pointer.to_owned() }) }
}

/// A sample of a JSON array. JSON has no NaN: `null` and the usual words stand for it.
fn sample(value: &Value) -> Result<f32, TagError> {
    match value {
        Value::Null => Ok(f32::NAN),
        Value::Number(number) => Ok(narrow(number.as_f64().unwrap_or(f64::NAN))),
        Value::String(text) => parse_sample(text.trim()),
        _ => Err(TagError::Wrong { expected: "a number", got: describe(value) }),
    }
}

fn parse_sample(text: &str) -> Result<f32, TagError> {
    let wrong =
        |_| TagError::Wrong { expected: "a number", got: format!("the text {:?}", shorten(text)) };
    text.parse::<f32>().map_err(wrong)
}

#[expect(clippy::cast_possible_truncation, reason = "out of range becomes infinite: a bad sample")]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

fn label(text: &str) -> Result<Reading, TagError> {
    if (1..=Tag::MAX_LABEL_LEN).contains(&text.len()) {
        return Ok(Reading::Label(text.to_owned()));
    }
    let got = format!("the text {:?}", shorten(text));
    Err(TagError::Wrong { expected: "a class name of 1 to 64 bytes", got })
}

fn flag(text: &str) -> Result<Reading, TagError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "on" => Ok(Reading::Idle(true)),
        "0" | "false" | "off" => Ok(Reading::Idle(false)),
        _ => {
            let got = format!("the text {:?}", shorten(text));
            Err(TagError::Wrong { expected: "true, false, on, off, 1 or 0", got })
        }
    }
}

fn read_f32le(payload: &[u8]) -> Result<Reading, TagError> {
    let (floats, rest) = payload.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(TagError::PartialFloat { bytes: payload.len() });
    }
    if floats.len() > MAX_SAMPLES {
        return Err(TagError::TooMany { samples: floats.len() });
    }
    Ok(Reading::Samples(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feature() -> Binds {
        Binds::Feature { model: Name::new("bearing").unwrap() }
    }

    fn tag(format: Format, pointer: &str, binds: Binds) -> Tag {
        Tag::new("plant/+/vibration", format, pointer, binds).unwrap()
    }

    fn samples(tag: &Tag, payload: &[u8]) -> Vec<f32> {
        match tag.read(payload) {
            Ok(Reading::Samples(samples)) => samples,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pointer_finds_numbers_and_arrays() {
        let nested = tag(Format::Json, "/a~1b/1/values", feature());
        assert_eq!(samples(&nested, br#"{"a/b":[0,{"values":[1,-2.5,3e1]}]}"#), [1.0, -2.5, 30.0]);
        let whole = tag(Format::Json, "", feature());
        assert_eq!(samples(&whole, b"4.5"), [4.5]);
        assert_eq!(samples(&whole, b" [1, \"2\"]"), [1.0, 2.0]);
    }

    #[test]
    fn samples_that_are_no_finite_number_pass_so_that_their_window_can_be_dropped() {
        let json = tag(Format::Json, "", feature());
        let read = samples(&json, br#"[1,null,"NaN","-inf",1e300]"#);
        assert_eq!(read[..1], [1.0]);
        assert!(read[1..].iter().all(|x| !x.is_finite()), "{read:?}");
        let text = tag(Format::Csv, "", feature());
        assert!(samples(&text, b"1,nan")[1].is_nan());
    }

    #[test]
    fn text_and_binary_payloads_are_read() {
        let text = tag(Format::Csv, "", feature());
        assert_eq!(samples(&text, b"1,2;3 4\r\n5\n"), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(samples(&text, b"-0.25"), [-0.25]);
        let binary = tag(Format::F32Le, "", feature());
        let bytes: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(samples(&binary, &bytes), [1.5, -2.0]);
        assert_eq!(binary.read(&bytes[..7]), Err(TagError::PartialFloat { bytes: 7 }));
    }

    #[test]
    fn labels_and_flags_are_words_or_numbers() {
        let label = tag(Format::Json, "/class", Binds::Label);
        assert_eq!(label.read(br#"{"class":"inner"}"#), Ok(Reading::Label("inner".into())));
        assert_eq!(label.read(br#"{"class":2}"#), Ok(Reading::Label("2".into())));
        assert_eq!(label.read(br#"{"class":""}"#).unwrap_err().kind(), "tag_wrong");
        let idle = tag(Format::Csv, "", Binds::Idle);
        for (word, expected) in [("1", true), ("on", true), ("FALSE", false), (" 0\n", false)] {
            assert_eq!(idle.read(word.as_bytes()), Ok(Reading::Idle(expected)));
        }
        assert!(idle.read(b"maybe").unwrap_err().to_string().contains("true, false"));
    }

    #[test]
    fn wrong_telegrams_are_errors_that_say_what_was_found() {
        let json = tag(Format::Json, "/values", feature());
        for (payload, message) in [
            ("{", "not JSON"),
            (
                "{\"value\":1,\"ts\":2}",
                "nothing at JSON pointer \"/values\"; it is an object with /ts, /value",
            ),
            ("[1]", "it is an array of 1"),
            ("{\"values\":{}}", "must be a number or an array of numbers, got an object of 0"),
            ("{\"values\":[1,[2]]}", "must be a number, got an array of 1"),
            ("{\"values\":[1,\"x\"]}", "must be a number, got the text \"x\""),
            ("{\"values\":true}", "must be a number or an array of numbers, got true"),
        ] {
            let error = json.read(payload.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let huge = vec![b' '; MAX_TELEGRAM_BYTES + 1];
        assert_eq!(json.read(&huge).unwrap_err().kind(), "tag_too_large");
        let many = format!("[{}1]", "1,".repeat(MAX_SAMPLES));
        let whole = tag(Format::Json, "", feature());
        assert_eq!(whole.read(many.as_bytes()).unwrap_err().kind(), "tag_too_many");
        assert_eq!(samples(&whole, many.replacen("1,", "", 1).as_bytes()).len(), MAX_SAMPLES);
    }

    #[test]
    fn wrong_entries_are_refused() {
        let kind = |filter, format, pointer, binds| {
            Tag::new(filter, format, pointer, binds).unwrap_err().kind()
        };
        assert_eq!(kind("a/#/b", Format::Json, "", feature()), "filter_hash");
        assert_eq!(kind("a", Format::Json, "values", feature()), "tag_pointer");
        assert_eq!(kind("a", Format::Json, "/a~2", feature()), "tag_pointer");
        assert_eq!(kind("a", Format::Csv, "/a", feature()), "tag_pointer_outside_json");
        assert_eq!(kind("a", Format::F32Le, "", Binds::Idle), "tag_binary_word");
        assert_eq!("xml".parse::<Format>().unwrap_err().kind(), "tag_format");
    }

    #[test]
    fn one_telegram_may_feed_several_tags() {
        let map = TagMap::new(vec![
            tag(Format::Json, "/values", feature()),
            tag(Format::Json, "/idle", Binds::Idle),
            Tag::new("other/#", Format::Json, "", Binds::Label).unwrap(),
        ]);
        let positions = |topic| map.of(topic).map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(positions("plant/p1/vibration"), [0, 1]);
        assert_eq!(positions("other/Prüfstand"), [2]);
        assert!(positions("ünknown").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            for format in [Format::Json, Format::Csv] {
                for binds in [feature(), Binds::Label, Binds::Idle] {
                    let _ = tag(format, "", binds).read(&payload);
                }
            }
            let _ = tag(Format::F32Le, "", feature()).read(&payload);
        }
    }
}
