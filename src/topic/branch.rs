//! A node's branch of the topic tree, and the way back from a topic to its parts.

use std::fmt;
use std::str::FromStr;

use crate::ids::{Name, NodeId};
use crate::topic::leaf::{CommandName, Leaf};

/// What stands before `/v1/`: one or more levels, `gaisnet` by default or a plant's ISA-95 path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix(String);

impl Prefix {
    /// Longest prefix in bytes.
    pub const MAX_LEN: usize = 256;

    /// Checks and takes a prefix.
    ///
    /// # Errors
    /// [`PrefixError`] when it is over 256 bytes or one of its levels isn't a [`Name`].
    pub fn new(text: impl Into<String>) -> Result<Self, PrefixError> {
        let text = text.into();
        let good = text.len() <= Self::MAX_LEN && text.split('/').all(|l| Name::new(l).is_ok());
        if good { Ok(Self(text)) } else { Err(PrefixError { text }) }
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        Self::new(text)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that can't stand before `/v1/`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no valid topic prefix: levels of A-Z a-z 0-9 _ - joined by '/', no '/' at its ends"
)]
pub struct PrefixError {
    text: String,
}

/// `{prefix}/v1/{site}/{line}/{node}`: the only part of the tree that a node writes to.
///
/// An edge has the line `_`, the cloud the site `_` and the line `_`.
///
/// # Examples
/// ```
/// use gaisnet::ids::Name;
/// use gaisnet::topic::{Branch, Prefix};
///
/// let branch = Branch {
///     prefix: Prefix::new("gaisnet")?,
///     site: Name::new("north")?,
///     line: Name::new("bearings")?,
///     node: Name::new("p1")?,
/// };
/// assert_eq!(branch.inference(&Name::new("bearing")?), "gaisnet/v1/north/bearings/p1/inference/bearing");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Branch {
    /// What stands before `/v1/`.
    pub prefix: Prefix,
    /// Site, `_` for the cloud.
    pub site: Name,
    /// Line in the site, `_` for an edge and the cloud.
    pub line: Name,
    /// The node.
    pub node: NodeId,
}

impl Branch {
    /// The topic of a leaf.
    pub fn topic(&self, leaf: &Leaf) -> String {
        format!("{self}/{leaf}")
    }

    /// `status`: presence, retained, also the last will.
    pub fn status(&self) -> String {
        self.topic(&Leaf::Status)
    }

    /// `meta`: self-description.
    pub fn meta(&self) -> String {
        self.topic(&Leaf::Meta)
    }

    /// `kpi`: figures about the node.
    pub fn kpi(&self) -> String {
        self.topic(&Leaf::Kpi)
    }

    /// `inference/{model}`: last answer of a model that is driven by tags.
    pub fn inference(&self, model: &Name) -> String {
        format!("{self}/inference/{model}")
    }

    /// `inference/{model}/{field}`: one field of it as bare text.
    pub fn inference_field(&self, model: &Name, field: &Name) -> String {
        format!("{self}/inference/{model}/{field}")
    }

    /// `infer/{model}`: requests to this node.
    pub fn infer(&self, model: &Name) -> String {
        format!("{self}/infer/{model}")
    }

    /// `feedback/{model}`: labels for this node's answers.
    pub fn feedback(&self, model: &Name) -> String {
        format!("{self}/feedback/{model}")
    }

    /// `cmd/{name}`: commands to this node.
    pub fn cmd(&self, name: &CommandName) -> String {
        format!("{self}/cmd/{name}")
    }

    /// `reply/{name}`: answers to commands, and to requests under the name `infer`.
    pub fn reply(&self, name: &CommandName) -> String {
        format!("{self}/reply/{name}")
    }

    /// `event/{kind}`. The kind is a word of ours, so it must be a valid level.
    pub fn event(&self, kind: &str) -> String {
        self.word("event", kind)
    }

    /// `stream/{id}`: tokens for the asker.
    pub fn stream(&self, id: &Name) -> String {
        format!("{self}/stream/{id}")
    }

    /// `m/{kind}`: signed, to whoever may read it. The kind is a word of ours.
    pub fn machine(&self, kind: &str) -> String {
        self.word("m", kind)
    }

    /// `to/{node}/{kind}`: signed, to one node. The kind is a word of ours.
    pub fn to(&self, node: &NodeId, kind: &str) -> String {
        debug_assert!(Name::new(kind).is_ok(), "{kind:?} is no topic level");
        format!("{self}/to/{node}/{kind}")
    }

    fn word(&self, group: &str, kind: &str) -> String {
        debug_assert!(Name::new(kind).is_ok(), "{kind:?} is no topic level");
        format!("{self}/{group}/{kind}")
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/v1/{}/{}/{}", self.prefix, self.site, self.line, self.node)
    }
}

/// A topic of ours, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Whose branch.
    pub branch: Branch,
    /// What lies there.
    pub leaf: Leaf,
}

/// Takes a topic apart; `None` when it isn't one of ours. Any text may come here.
pub fn parse(prefix: &Prefix, topic: &str) -> Option<Parsed> {
    let tail = topic.strip_prefix(prefix.as_str())?.strip_prefix("/v1/")?;
    let mut parts = tail.splitn(4, '/');
    let site = Name::new(parts.next()?).ok()?;
    let line = Name::new(parts.next()?).ok()?;
    let node = Name::new(parts.next()?).ok()?;
    let leaf = parts.next()?.parse().ok()?;
    Some(Parsed { branch: Branch { prefix: prefix.clone(), site, line, node }, leaf })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = Name> {
        "[A-Za-z0-9_-]{1,64}".prop_map(|text| Name::new(text).unwrap())
    }

    fn command() -> impl Strategy<Value = CommandName> {
        "[A-Za-z0-9_.-]{1,64}".prop_map(|text| CommandName::new(text).unwrap())
    }

    fn leaf() -> impl Strategy<Value = Leaf> {
        prop_oneof![
            Just(Leaf::Status),
            Just(Leaf::Meta),
            Just(Leaf::Kpi),
            name().prop_map(Leaf::Inference),
            (name(), name()).prop_map(|(model, field)| Leaf::InferenceField(model, field)),
            name().prop_map(Leaf::Infer),
            name().prop_map(Leaf::Feedback),
            command().prop_map(Leaf::Cmd),
            command().prop_map(Leaf::Reply),
            name().prop_map(Leaf::Event),
            name().prop_map(Leaf::Stream),
            name().prop_map(Leaf::Machine),
            (name(), name()).prop_map(|(node, kind)| Leaf::To(node, kind)),
        ]
    }

    fn branch() -> impl Strategy<Value = Branch> {
        let prefix = prop::collection::vec("[A-Za-z0-9_-]{1,20}", 1..5)
            .prop_map(|levels| Prefix::new(levels.join("/")).unwrap());
        (prefix, name(), name(), name()).prop_map(|(prefix, site, line, node)| Branch {
            prefix,
            site,
            line,
            node,
        })
    }

    fn p1() -> Branch {
        Branch {
            prefix: Prefix::new("gaisnet").unwrap(),
            site: Name::new("north").unwrap(),
            line: Name::new("bearings").unwrap(),
            node: Name::new("p1").unwrap(),
        }
    }

    proptest! {
        #[test]
        fn topics_come_back_as_their_parts(branch in branch(), leaf in leaf()) {
            let topic = branch.topic(&leaf);
            let parsed = parse(&branch.prefix, &topic);
            prop_assert_eq!(parsed, Some(Parsed { branch, leaf }));
        }

        #[test]
        fn any_text_is_taken_apart_without_panic(text in any::<String>(), tail in any::<String>()) {
            let prefix = Prefix::new("gaisnet").unwrap();
            for topic in [text.clone(), format!("gaisnet/v1/{tail}"), format!("gaisnet/v1/a/b/c/{tail}")] {
                if let Some(parsed) = parse(&prefix, &topic) {
                    prop_assert_eq!(parsed.branch.topic(&parsed.leaf), topic);
                }
            }
            let _ = Prefix::new(text);
        }
    }

    #[test]
    fn short_forms_agree_with_the_leaves() {
        let (branch, word) = (p1(), Name::new("w").unwrap());
        let verb = CommandName::new("round.start").unwrap();
        let pairs = [
            (branch.status(), Leaf::Status),
            (branch.meta(), Leaf::Meta),
            (branch.kpi(), Leaf::Kpi),
            (branch.inference(&word), Leaf::Inference(word.clone())),
            (
                branch.inference_field(&word, &word),
                Leaf::InferenceField(word.clone(), word.clone()),
            ),
            (branch.infer(&word), Leaf::Infer(word.clone())),
            (branch.feedback(&word), Leaf::Feedback(word.clone())),
            (branch.cmd(&verb), Leaf::Cmd(verb.clone())),
            (branch.reply(&verb), Leaf::Reply(verb.clone())),
            (branch.event("w"), Leaf::Event(word.clone())),
            (branch.stream(&word), Leaf::Stream(word.clone())),
            (branch.machine("w"), Leaf::Machine(word.clone())),
            (branch.to(&word, "w"), Leaf::To(word.clone(), word.clone())),
        ];
        for (topic, leaf) in pairs {
            assert_eq!(
                parse(&branch.prefix, &topic),
                Some(Parsed { branch: p1(), leaf }),
                "{topic}"
            );
        }
    }

    #[test]
    fn a_prefix_is_taken_whole_and_nothing_foreign_is_ours() {
        let prefix = Prefix::new("acme/dresden").unwrap();
        assert!(parse(&prefix, "acme/dresden/v1/north/bearings/p1/status").is_some());
        for foreign in [
            "acme/v1/north/bearings/p1/status",
            "acme/dresdenv1/north/bearings/p1/status",
            "acme/dresden/v2/north/bearings/p1/status",
            "acme/dresden/v1/north/bearings/p1",
            "acme/dresden/v1/north/+/p1/status",
            "acme/dresden/v1/nörd/bearings/p1/status",
            "über/dresden/v1/north/bearings/p1/status",
        ] {
            assert_eq!(parse(&prefix, foreign), None, "{foreign}");
        }
        for bad in ["", "/a", "a/", "a//b", "$SYS", "a/+", &"a".repeat(257)] {
            assert!(Prefix::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_deepest_topic_keeps_within_seven_slashes() {
        let deepest = p1().to(&Name::new("edge-north").unwrap(), "receipt");
        assert_eq!(deepest.matches('/').count(), 7); // AWS IoT Core takes no more
    }
}
