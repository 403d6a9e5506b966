//! What stands at the end of a topic, below a node's branch.

use std::fmt;
use std::str::FromStr;

use crate::ids::{Name, NodeId};

/// The end of a topic below `{prefix}/v1/{site}/{line}/{node}/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaf {
    /// `status`
    Status,
    /// `meta`
    Meta,
    /// `kpi`
    Kpi,
    /// `inference/{model}`
    Inference(Name),
    /// `inference/{model}/{field}`
    InferenceField(Name, Name),
    /// `infer/{model}`
    Infer(Name),
    /// `feedback/{model}`
    Feedback(Name),
    /// `cmd/{name}`
    Cmd(CommandName),
    /// `reply/{name}`
    Reply(CommandName),
    /// `event/{kind}`
    Event(Name),
    /// `stream/{id}`
    Stream(Name),
    /// `m/{kind}`
    Machine(Name),
    /// `to/{node}/{kind}`
    To(NodeId, Name),
}

impl FromStr for Leaf {
    type Err = UnknownLeaf;

    fn from_str(text: &str) -> Result<Self, UnknownLeaf> {
        parse(text).ok_or(UnknownLeaf)
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::Meta => f.write_str("meta"),
            Self::Kpi => f.write_str("kpi"),
            Self::Inference(model) => write!(f, "inference/{model}"),
            Self::InferenceField(model, field) => write!(f, "inference/{model}/{field}"),
            Self::Infer(model) => write!(f, "infer/{model}"),
            Self::Feedback(model) => write!(f, "feedback/{model}"),
            Self::Cmd(name) => write!(f, "cmd/{name}"),
            Self::Reply(name) => write!(f, "reply/{name}"),
            Self::Event(kind) => write!(f, "event/{kind}"),
            Self::Stream(id) => write!(f, "stream/{id}"),
            Self::Machine(kind) => write!(f, "m/{kind}"),
            Self::To(node, kind) => write!(f, "to/{node}/{kind}"),
        }
    }
}

/// A text that isn't one of our leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such topic below a node's branch")]
pub struct UnknownLeaf;

/// Name of a command as a topic level: a [`Name`] in which dots are allowed (`round.start`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandName(String);

impl CommandName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`CommandNameError`] when the text is empty, over 64 bytes or has another character.
    pub fn new(text: impl Into<String>) -> Result<Self, CommandNameError> {
        let text = text.into();
        let fits = (1..=Name::MAX_LEN).contains(&text.len());
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if fits && text.bytes().all(plain) { Ok(Self(text)) } else { Err(CommandNameError) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that can't be the name of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no valid command name: use 1 to 64 characters of A-Z a-z 0-9 _ - .")]
pub struct CommandNameError;

fn parse(text: &str) -> Option<Leaf> {
    let mut levels = text.split('/');
    let first = levels.next()?;
    let second = levels.next();
    let third = levels.next();
    if levels.next().is_some() {
        return None;
    }
    let name = |level: &str| Name::new(level).ok();
    let command = |level: &str| CommandName::new(level).ok();
    Some(match (first, second, third) {
        ("status", None, None) => Leaf::Status,
        ("meta", None, None) => Leaf::Meta,
        ("kpi", None, None) => Leaf::Kpi,
        ("inference", Some(model), None) => Leaf::Inference(name(model)?),
        ("inference", Some(model), Some(field)) => Leaf::InferenceField(name(model)?, name(field)?),
        ("infer", Some(model), None) => Leaf::Infer(name(model)?),
        ("feedback", Some(model), None) => Leaf::Feedback(name(model)?),
        ("cmd", Some(verb), None) => Leaf::Cmd(command(verb)?),
        ("reply", Some(verb), None) => Leaf::Reply(command(verb)?),
        ("event", Some(kind), None) => Leaf::Event(name(kind)?),
        ("stream", Some(id), None) => Leaf::Stream(name(id)?),
        ("m", Some(kind), None) => Leaf::Machine(name(kind)?),
        ("to", Some(node), Some(kind)) => Leaf::To(name(node)?, name(kind)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_have_exactly_their_levels() {
        for good in ["status", "inference/bearing", "inference/bearing/label", "cmd/round.start"] {
            assert_eq!(good.parse::<Leaf>().unwrap().to_string(), good);
        }
        for bad in ["", "status/", "status/x", "cmd", "cmd/", "inference/a/b/c", "to/n", "m/a.b"] {
            assert_eq!(bad.parse::<Leaf>(), Err(UnknownLeaf), "{bad:?}");
        }
    }

    #[test]
    fn command_names_take_dots_but_no_wildcards() {
        assert!(CommandName::new("round.start").is_ok());
        for bad in ["", "+", "#", "a/b", "größe", &"x".repeat(65)] {
            assert!(CommandName::new(bad).is_err(), "{bad:?}");
        }
    }
}
