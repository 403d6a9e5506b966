//! How each topic travels: form, `QoS`, retain, size caps, durability, senders.
//!
//! The one table behind subscriptions, publishing, size checks and ACLs. `docs/asyncapi.yaml` and
//! `docs/topics.md` say the same for people; tests below compare them line by line.

use crate::topic::Leaf;

/// What the payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON for people and SCADA.
    Json,
    /// A bare scalar as text.
    Text,
    /// A signed envelope (msgpack).
    Signed,
    /// JSON, or a signed envelope of the same command.
    JsonOrSigned,
    /// A piece of a blob, unsigned; the signed manifest has its digest.
    Chunk,
}

/// Who may write a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// A device that learns.
    Trainer,
    /// A node that answers.
    Inferencer,
    /// An edge.
    Relay,
    /// The cloud.
    Aggregator,
    /// A person or program that steers and asks.
    Operator,
    /// A second person for commands that need two.
    Approver,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSpec {
    /// The leaf with `{parameters}`, below `{prefix}/v1/{site}/{line}/{node}/`.
    pub pattern: &'static str,
    /// What the payload is.
    pub form: Form,
    /// `QoS` 1 if true, else 0.
    pub at_least_once: bool,
    /// The broker keeps the last one.
    pub retain: bool,
    /// Committed before it is sent and before it is acknowledged.
    pub durable: bool,
    /// Most bytes of one packet's payload, with the default chunk size.
    pub cap_bytes: usize,
    /// Most bytes of a body that comes in chunks; the same as `cap_bytes` where none does.
    pub body_cap_bytes: usize,
    /// Who may write it.
    pub senders: &'static [Sender],
}

impl TopicSpec {
    /// Finds the line for a leaf; `None` for a machine kind that isn't in the table.
    pub fn of(leaf: &Leaf) -> Option<&'static Self> {
        let pattern = match leaf {
            Leaf::Status => "status".to_owned(),
            Leaf::Meta => "meta".to_owned(),
            Leaf::Kpi => "kpi".to_owned(),
            Leaf::Inference(_) => "inference/{model}".to_owned(),
            Leaf::InferenceField(..) => "inference/{model}/{field}".to_owned(),
            Leaf::Infer(_) => "infer/{model}".to_owned(),
            Leaf::Feedback(_) => "feedback/{model}".to_owned(),
            Leaf::Cmd(_) => "cmd/{name}".to_owned(),
            Leaf::Reply(_) => "reply/{name}".to_owned(),
            Leaf::Event(_) => "event/{kind}".to_owned(),
            Leaf::Stream(_) => "stream/{id}".to_owned(),
            Leaf::Machine(kind) => format!("m/{kind}"),
            Leaf::To(_, kind) => format!("to/{{node}}/{kind}"),
        };
        TOPICS.iter().find(|spec| spec.pattern == pattern)
    }

    /// Whether others write it to the branch's owner (commands, requests and labels).
    pub fn is_to_owner(&self) -> bool {
        ["cmd/", "infer/", "feedback/"].iter().any(|first| self.pattern.starts_with(first))
    }

    const fn json(pattern: &'static str, cap_bytes: usize, senders: &'static [Sender]) -> Self {
        Self {
            pattern,
            form: Form::Json,
            at_least_once: true,
            retain: false,
            durable: false,
            cap_bytes,
            body_cap_bytes: cap_bytes,
            senders,
        }
    }

    const fn signed(pattern: &'static str, cap_bytes: usize, senders: &'static [Sender]) -> Self {
        Self { form: Form::Signed, durable: true, ..Self::json(pattern, cap_bytes, senders) }
    }

    const fn volatile(self) -> Self {
        Self { durable: false, ..self }
    }

    const fn retained(self) -> Self {
        Self { retain: true, ..self }
    }

    const fn at_most_once(self) -> Self {
        Self { at_least_once: false, ..self }
    }

    const fn body_up_to(self, body_cap_bytes: usize) -> Self {
        Self { body_cap_bytes, ..self }
    }
}

/// Every topic that gaisnet writes or reads below a node's branch.
pub static TOPICS: &[TopicSpec] = &[
    TopicSpec::json("status", 4 * KIB, NODES).retained(),
    TopicSpec::json("meta", 64 * KIB, NODES).retained(),
    TopicSpec::json("kpi", 4 * KIB, NODES).retained(),
    TopicSpec::json("inference/{model}", 4 * KIB, ANSWERING).retained(),
    TopicSpec {
        form: Form::Text,
        ..TopicSpec::json("inference/{model}/{field}", 256, ANSWERING).retained()
    },
    TopicSpec::json("infer/{model}", 256 * KIB, ASKING),
    TopicSpec::json("feedback/{model}", 4 * KIB, LABELLING),
    TopicSpec {
        form: Form::JsonOrSigned,
        durable: true,
        ..TopicSpec::json("cmd/{name}", 16 * KIB, STEERING)
    },
    TopicSpec::json("reply/{name}", 64 * KIB, NODES),
    TopicSpec::json("event/{kind}", 4 * KIB, NODES),
    TopicSpec::json("stream/{id}", 4 * KIB, ANSWERING).at_most_once(),
    TopicSpec::signed("m/offer", 72 * KIB, OWNERS).retained(),
    TopicSpec::signed("m/contribution", 72 * KIB, LEARNING).body_up_to(64 * MIB),
    TopicSpec::signed("m/result", 72 * KIB, OWNERS).retained().body_up_to(64 * MIB),
    TopicSpec::signed("m/keyring", 64 * KIB, OWNERS).retained(),
    TopicSpec::signed("m/checkpoint", 16 * KIB, NODES).retained(),
    TopicSpec::signed("m/assignment", 72 * KIB, OWNERS).retained(),
    TopicSpec::signed("to/{node}/answer", 2 * KIB, LEARNING).volatile(),
    TopicSpec::signed("to/{node}/receipt", 2 * KIB, OWNERS),
    TopicSpec::signed("to/{node}/get", 4 * KIB, NODES).volatile(),
    TopicSpec {
        form: Form::Chunk,
        ..TopicSpec::signed("to/{node}/chunk", 64 * KIB + CHUNK_OVERHEAD, NODES).volatile()
    },
    TopicSpec::signed("to/{node}/base", 66 * KIB, OWNERS).volatile(),
    TopicSpec::signed("to/{node}/frame", 72 * KIB, LEARNING)
        .volatile()
        .at_most_once()
        .body_up_to(4 * MIB),
    TopicSpec::signed("m/lease", 2 * KIB, ROOTS).retained(),
    TopicSpec::signed("to/{node}/contribution", 72 * KIB, DEVICES).body_up_to(64 * MIB),
    TopicSpec::signed("to/{node}/promise", 2 * KIB, RELAYS).volatile(),
    TopicSpec::signed("to/{node}/mirror", 72 * KIB, ROOTS).volatile().body_up_to(64 * MIB),
    TopicSpec::signed("to/{node}/evidence", 2 * KIB, DEVICES).volatile(),
    TopicSpec::signed("to/{node}/site_evidence", 2 * KIB, RELAYS).volatile(),
];

/// Bytes of a chunk's packet beside its data.
const CHUNK_OVERHEAD: usize = 128;

const NODES: &[Sender] = &[Sender::Trainer, Sender::Inferencer, Sender::Relay, Sender::Aggregator];
const ANSWERING: &[Sender] = &[Sender::Inferencer];
const ASKING: &[Sender] =
    &[Sender::Trainer, Sender::Inferencer, Sender::Relay, Sender::Aggregator, Sender::Operator];
const LABELLING: &[Sender] = &[Sender::Operator];
const STEERING: &[Sender] = &[Sender::Operator, Sender::Approver];
const ROOTS: &[Sender] = &[Sender::Aggregator];
const RELAYS: &[Sender] = &[Sender::Relay];
const OWNERS: &[Sender] = &[Sender::Relay, Sender::Aggregator];
const LEARNING: &[Sender] = &[Sender::Trainer, Sender::Relay];
const DEVICES: &[Sender] = &[Sender::Trainer, Sender::Inferencer];

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write as _;

    use super::*;
    use crate::wire::{Chunk, Kind};

    /// Scalars of a YAML file in block style by their path (`channels.status.address`), which is
    /// all that the comparison needs.
    fn scalars(yaml: &str) -> BTreeMap<String, String> {
        let mut path: Vec<(usize, String)> = Vec::new();
        let mut found = BTreeMap::new();
        for line in yaml.lines() {
            let indent = line.len() - line.trim_start().len();
            let Some((key, value)) = line.trim_start().split_once(':') else { continue };
            path.retain(|(depth, _)| *depth < indent);
            path.push((indent, key.to_owned()));
            let name = path.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
            let value = value.trim().trim_matches('\'').to_owned();
            if !value.is_empty() {
                assert!(found.insert(name.clone(), value).is_none(), "{name} stands twice");
            }
        }
        found
    }

    /// The key of a pattern in the YAML: `to/{node}/chunk` is `to_chunk`.
    fn key(pattern: &str) -> String {
        let levels = pattern.split('/').filter(|level| *level != "{node}");
        levels.map(|l| l.trim_matches(['{', '}'])).collect::<Vec<_>>().join("_")
    }

    #[test]
    fn asyncapi_says_what_the_table_says() {
        let yaml = scalars(include_str!("../../docs/asyncapi.yaml"));
        let mut wanted = BTreeMap::new();
        for spec in TOPICS {
            let key = key(spec.pattern);
            let address = spec.pattern.replace("to/{node}", "to/{receiver}");
            let content = match spec.form {
                Form::Json => "application/json".to_owned(),
                Form::JsonOrSigned => "application/json".to_owned(),
                Form::Text => "text/plain".to_owned(),
                Form::Chunk => "application/octet-stream".to_owned(),
                Form::Signed => {
                    let kind = spec.pattern.rsplit('/').next().unwrap();
                    format!("application/vnd.gaisnet.{kind}.v1+msgpack")
                }
            };
            let senders: Vec<_> = spec.senders.iter().map(|s| format!("{s:?}")).collect();
            let channel = format!("channels.{key}");
            let operation = format!("operations.{key}");
            let action = if spec.is_to_owner() { "receive" } else { "send" };
            for (path, value) in [
                (
                    format!("{channel}.address"),
                    format!("{{prefix}}/v1/{{site}}/{{line}}/{{node}}/{address}"),
                ),
                (format!("{channel}.x-cap-bytes"), spec.cap_bytes.to_string()),
                (format!("{channel}.x-body-cap-bytes"), spec.body_cap_bytes.to_string()),
                (format!("{channel}.x-durable"), spec.durable.to_string()),
                (format!("{channel}.x-senders"), senders.join(" ").to_lowercase()),
                (format!("{operation}.action"), action.to_owned()),
                (
                    format!("{operation}.bindings.mqtt.qos"),
                    u8::from(spec.at_least_once).to_string(),
                ),
                (format!("{operation}.bindings.mqtt.retain"), spec.retain.to_string()),
                (format!("components.messages.{key}.contentType"), content),
            ] {
                wanted.insert(path, value);
            }
        }
        let checked = |path: &&String| {
            let field = path.rsplit('.').next().unwrap();
            path.starts_with("channels.") && (field == "address" || field.starts_with("x-"))
                || path.starts_with("operations.") && ["action", "qos", "retain"].contains(&field)
                || path.starts_with("components.messages.") && field == "contentType"
        };
        let mut differences = String::new();
        for path in wanted.keys().chain(yaml.keys().filter(checked)).collect::<BTreeSet<_>>() {
            let (table, file) = (wanted.get(path), yaml.get(path));
            if table != file {
                writeln!(differences, "{path}: table {table:?}, file {file:?}").unwrap();
            }
        }
        assert!(
            differences.is_empty(),
            "docs/asyncapi.yaml differs from the table:\n{differences}"
        );
    }

    #[test]
    fn the_topics_page_says_what_the_table_says() {
        let page = include_str!("../../docs/topics.md");
        let headings: Vec<&str> = page.lines().filter(|line| line.starts_with("### `")).collect();
        let wanted: Vec<String> = TOPICS
            .iter()
            .map(|spec| {
                let qos = u8::from(spec.at_least_once);
                let retain = if spec.retain { ", retained" } else { "" };
                format!("### `{}` (QoS {qos}{retain})", spec.pattern)
            })
            .collect();
        assert_eq!(headings, wanted);
        for section in page.split("\n### `").skip(1) {
            assert!(section.contains("mosquitto_"), "no line to copy: {section}");
        }
    }

    /// Topics after `-t` in the lines to copy, shell variables filled in, wildcards by a level.
    fn topics_of(section: &str, page: &str) -> Vec<String> {
        let variable = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
            line.unwrap().split_whitespace().next().unwrap().to_owned()
        };
        let words: Vec<&str> = section.split_whitespace().collect();
        let topics = words.windows(2).filter(|two| two[0] == "-t" && two[1] != "...");
        let filled = topics.map(|two| {
            let topic = two[1].trim_matches('\'').replace(['+', '#'], "x");
            ["P1", "EDGE", "CLOUD"]
                .into_iter()
                .fold(topic, |topic, name| topic.replace(&format!("${name}"), &variable(name)))
        });
        filled.collect()
    }

    #[test]
    fn the_lines_to_copy_are_about_their_topic() {
        let page = include_str!("../../docs/topics.md");
        let prefix: crate::topic::Prefix = "gaisnet".parse().unwrap();
        for section in page.split("\n### `").skip(1) {
            let pattern = section.split('`').next().unwrap();
            let topics = topics_of(section.split("\n## ").next().unwrap(), page);
            assert!(!topics.is_empty(), "no topic in the lines of {pattern}");
            for topic in topics {
                let leaf = crate::topic::parse(&prefix, &topic).unwrap().leaf;
                assert_eq!(TopicSpec::of(&leaf).map(|spec| spec.pattern), Some(pattern), "{topic}");
            }
        }
    }

    #[test]
    fn each_leaf_finds_its_line_and_unknown_kinds_find_none() {
        for spec in TOPICS {
            let example = spec.pattern.replace(['{', '}'], "");
            let leaf: Leaf = example.parse().unwrap();
            assert_eq!(TopicSpec::of(&leaf), Some(spec), "{example}");
        }
        assert_eq!(TopicSpec::of(&"m/nonsense".parse().unwrap()), None);
    }

    #[test]
    fn every_kind_of_the_wire_has_its_topic_with_the_same_cap() {
        for kind in Kind::ALL {
            let word = format!("/{}", kind.as_str());
            let is_its = |spec: &&TopicSpec| match kind {
                Kind::Command => spec.form == Form::JsonOrSigned,
                _ => spec.form == Form::Signed && spec.pattern.ends_with(&word),
            };
            let found: Vec<_> = TOPICS.iter().filter(is_its).collect();
            // A second edge is told alone what a device's own edge hears with whoever may.
            let topics = if kind == Kind::Contribution { 2 } else { 1 };
            assert_eq!(found.len(), topics, "{kind:?}");
            assert!(found.iter().all(|spec| spec.cap_bytes == kind.cap_bytes()), "{kind:?}");
        }
        assert_eq!(CHUNK_OVERHEAD, Chunk::OVERHEAD_BYTES);
    }

    #[test]
    fn nothing_that_is_asked_of_a_node_is_retained() {
        for spec in TOPICS.iter().filter(|spec| spec.is_to_owner()) {
            assert!(!spec.retain, "{}", spec.pattern);
        }
    }
}
