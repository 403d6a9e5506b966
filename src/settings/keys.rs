//! The table of all keys: which values each one takes, with unit and range.
//!
//! It is what lets every problem be reported at once and by name: a file is checked against it key
//! by key before it becomes a typed [`super::Settings`].

use std::fmt;
use std::net::SocketAddr;

use config::{Value, ValueKind};

use crate::ids::Name;
use crate::time::Wall;

/// One key and what it takes.
#[derive(Debug)]
pub(super) struct Key {
    /// Dotted path; `[]` stands for any element of an array of tables.
    pub path: &'static str,
    /// Its values.
    pub expect: Expect,
    /// There is no default and none can be made up.
    pub required: bool,
}

/// The values that a key takes. Displays as unit and range.
#[derive(Debug)]
pub(super) enum Expect {
    /// A topic level, see [`Name`].
    Name,
    /// First levels of topics.
    Prefix,
    /// A topic filter with or without wildcards.
    Filter,
    /// A file or folder.
    Path,
    /// An address to listen on.
    Address,
    /// Text of 1 to so many characters.
    Text(usize),
    /// A JSON pointer (RFC 6901).
    Pointer,
    /// A filter of log levels.
    LogFilter,
    /// A moment in UTC.
    Moment,
    /// A switch.
    Flag,
    /// An integer: unit, least, most.
    Whole(&'static str, i64, i64),
    /// A number: unit, least, most.
    Real(&'static str, f64, f64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Any of these words, each at most once.
    ListOf(&'static [&'static str]),
}

use Expect::{
    Address, Filter, Flag, ListOf, LogFilter, OneOf, Path, Pointer, Prefix, Real, Text, Whole,
};

/// All keys of the settings. `bus.parent` has the keys of `bus.site`, see [`find`].
pub(super) const KEYS: &[Key] = &[
    required("node.name", Expect::Name),
    required("node.site", Expect::Name),
    key("node.line", Expect::Name),
    key("node.roles", ListOf(&["trainer", "relay", "aggregator", "inferencer"])),
    key("node.federation", Expect::Name),
    key("node.prefix", Prefix),
    key("node.parent", Expect::Name),
    key("paths.store", Path),
    key("paths.keys", Path),
    key("paths.keyring", Path),
    required("bus.site.host", Text(253)),
    key("bus.site.port", Whole("port", 1, 65_535)),
    key("bus.site.client_id", Expect::Name),
    key("bus.site.username", Text(253)),
    key("bus.site.password_file", Path),
    key("bus.site.tls.ca", Path),
    key("bus.site.tls.cert", Path),
    key("bus.site.tls.key", Path),
    key("bus.site.keep_alive_s", Whole("seconds", 5, 1200)),
    key("bus.site.connect_timeout_s", Whole("seconds", 1, 300)),
    key("bus.site.reconnect_max_s", Whole("seconds", 1, 3600)),
    key("bus.site.watchdog_s", Whole("seconds", 10, 86_400)),
    key("bus.site.max_packet_bytes", Whole("bytes", 8192, 268_435_455)),
    key("bus.site.chunk_bytes", Whole("bytes", 4096, 524_288)),
    key("bus.site.in_flight", Whole("messages", 2, 10)),
    key("bus.site.send_queue_bytes", Whole("bytes", 1 << 20, 1 << 30)),
    key("bus.site.receive_queue_bytes", Whole("bytes", 1 << 20, 1 << 30)),
    key("round.auto_start", Flag),
    key("round.rounds", Whole("rounds", 1, 1_000_000)),
    key("round.quorum", Real("share of members", 0.01, 1.0)),
    key("round.deadline_s", Whole("seconds", 1, 604_800)),
    key("round.relay_margin_s", Whole("seconds", 0, 86_400)),
    key("round.republish_s", Whole("seconds", 1, 3600)),
    key("round.pause_s", Whole("seconds", 0, 604_800)),
    key("round.late_max_staleness", Whole("versions", 0, 10)),
    key("round.island_after_s", Whole("seconds", 0, 604_800)),
    key("round.second_edge_after_s", Whole("seconds", 0, 604_800)),
    key("round.lease_s", Whole("seconds", 2, 3600)),
    key("round.triggers", ListOf(&["on_schedule", "on_drift", "on_n_labels"])),
    key("round.every_s", Whole("seconds", 60, 31_536_000)),
    key("round.drifts", Whole("drifts", 1, 1_000_000)),
    key("round.labels", Whole("labels", 1, 1_000_000_000)),
    key("round.apart_s", Whole("seconds", 1, 31_536_000)),
    key("strategy.name", OneOf(&["fedavg", "fedprox"])),
    key(
        "strategy.contribute",
        ListOf(&[
            "adapter_delta",
            "class_logits",
            "prototypes",
            "reference_logits",
            "generator",
            "spectra",
        ]),
    ),
    key("strategy.local_steps", Whole("steps", 1, 1_000_000)),
    key("strategy.batch_size", Whole("examples", 1, 65_536)),
    key("strategy.learning_rate", Real("no unit", 1e-7, 10.0)),
    key("strategy.schedule", OneOf(&["constant", "cosine", "cosine_steps"])),
    key("strategy.prox_mu", Real("no unit", 0.0, 10.0)),
    key("strategy.distill_lambda", Real("no unit", 0.0, 100.0)),
    key("strategy.rank", Whole("no unit", 1, 256)),
    key("strategy.alpha", Real("no unit", 0.001, 4096.0)),
    key("strategy.compression", OneOf(&["none", "int8", "int4"])),
    key("strategy.block", Whole("values", 64, 256)),
    key("strategy.seed", Whole("no unit", 0, (1 << 53) - 1)),
    key("strategy.local_epochs", Whole("passes", 0, 10_000)),
    key("strategy.max_share", Real("share of a round", 0.5, 1.0)),
    key("strategy.clip_norms", Flag),
    key("strategy.cluster_rounds", Whole("rounds", 1, 1_000)),
    key("knowledge.own_models", Flag),
    key("knowledge.reference", OneOf(&["bearing-physics-1"])),
    key("knowledge.reference_seed", Whole("no unit", 0, (1 << 53) - 1)),
    key("knowledge.reference_count", Whole("inputs", 1, 10_000)),
    key("knowledge.reference_file", Path),
    key("knowledge.reference_digest", Text(64)),
    key("knowledge.reference_labels", Flag),
    key("knowledge.label_share", Real("share of the target", 0.0, 1.0)),
    key("knowledge.reference_weight", Real("no unit", 0.0, 100.0)),
    key("knowledge.prototype_weight", Real("no unit", 0.0, 100.0)),
    key("knowledge.distil_steps", Whole("steps", 0, 1_000_000)),
    key("knowledge.distil_rate", Real("no unit", 1e-7, 10.0)),
    key("knowledge.distil_falls", Flag),
    key("knowledge.merging", OneOf(&["mean", "median", "trimmed"])),
    key("knowledge.generator_weight", Real("no unit", 0.0, 100.0)),
    key("knowledge.spectra_bands", Whole("bands", 8, 1_024)),
    key("knowledge.spectra_grades", Whole("grades", 1, 100)),
    key("knowledge.top_logits", Whole("tokens", 1, 512)),
    key("model.name", Expect::Name),
    key(
        "model.learner",
        OneOf(&["softmax", "signal-transformer", "language", "text-softmax", "text-encoder"]),
    ),
    key("model.base", Path),
    key("model.release_key", Path),
    key(
        "model.device",
        OneOf(&[
            "auto", "cpu", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6",
            "cuda:7",
        ]),
    ),
    key("model.from_parent", Flag),
    required("model.adapters[].name", Expect::Name),
    required("model.adapters[].path", Path),
    key("split.cut", Whole("blocks", 1, 256)),
    key("split.version", OneOf(&["v1", "v2"])),
    key("split.labels", OneOf(&["edge", "device"])),
    key("split.coding", OneOf(&["int8", "f32"])),
    key("split.step_timeout_s", Whole("seconds", 1, 3600)),
    key("data.set", OneOf(&["bearings", "excavators", "excavator-systems"])),
    key("data.client", Expect::Name),
    key("data.file", Path),
    key("data.column", Text(200)),
    key("data.labels", Text(200)),
    key("data.cache", Path),
    required("tags[].topic", Filter),
    key("tags[].pointer", Pointer),
    key("tags[].format", OneOf(&["json", "csv", "f32le"])),
    required("tags[].binds", OneOf(&["feature", "label", "idle", "veto"])),
    key("tags[].above", Real("the value's unit", -1e6, 1e6)),
    key("tags[].below", Real("the value's unit", -1e6, 1e6)),
    key("tags[].model", Expect::Name),
    key("tags[].hop", Whole("samples", 1, 65_536)),
    key("tags[].max_gap_ms", Whole("milliseconds", 1, 86_400_000)),
    key("privacy.profile", OneOf(&["standard", "strict", "lab"])),
    key("privacy.risk_meter", Flag),
    key(
        "commands.unsigned",
        ListOf(&[
            "status",
            "infer",
            "pause",
            "resume",
            "round.start",
            "model.list",
            "rollout.status",
            "feedback",
        ]),
    ),
    key("telemetry.log", OneOf(&["text", "json"])),
    key("telemetry.level", LogFilter),
    key("telemetry.metrics_listen", Address),
    key("telemetry.metrics_public", Flag),
    key("limits.outbox_bytes", Whole("bytes", 1 << 20, 1 << 40)),
    key("limits.outbox_hours", Whole("hours", 1, 8760)),
    key("limits.disk_full_percent", Whole("percent", 50, 99)),
    key("limits.train_threads", Whole("threads", 0, 1024)),
    key("limits.serve_threads", Whole("threads", 0, 1024)),
    key("limits.max_memory_mib", Whole("MiB", 0, 1 << 20)),
    key("limits.checkpoint_steps", Whole("steps", 0, 100_000)),
    key("limits.adapters", Whole("adapters", 0, 1000)),
    key("limits.adapters_mib", Whole("MiB", 1, 1 << 20)),
    key("schedule.zone", Text(64)),
    key("schedule.cpu_percent", Whole("percent", 1, 100)),
    key("schedule.windows[].days", ListOf(&["mon", "tue", "wed", "thu", "fri", "sat", "sun"])),
    required("schedule.windows[].from", Text(5)),
    required("schedule.windows[].until", Text(5)),
    key("cascade.enabled", Flag),
    key("cascade.alpha", Real("rate of wrong answers", 0.001, 0.5)),
    key("cascade.delta", Real("probability", 0.001, 0.5)),
    key("cascade.holdout", Real("share of examples", 0.05, 0.5)),
    key("cascade.wait_ms", Whole("milliseconds", 10, 600_000)),
    key("cascade.in_flight", Whole("requests", 1, 1024)),
    key("cascade.uncalibrated", OneOf(&["escalate", "local"])),
    key("cascade.on_no_reply", OneOf(&["local", "abstain"])),
    key("cascade.safe_default", Text(64)),
    key("cascade.to_cloud", Flag),
    key("rollout.steward", Flag),
    key("rollout.follow", Flag),
    key("rollout.four_eyes", Flag),
    required("rollout.freezes[].from", Expect::Moment),
    required("rollout.freezes[].until", Expect::Moment),
    key("feedback.keep_answers", Whole("answers", 1, 1_000_000)),
    key("feedback.keep_hours", Whole("hours", 1, 8_760)),
    key("drift.watch", Flag),
    key("drift.reference", Whole("windows", 32, 4096)),
    key("drift.recent", Whole("windows", 16, 1024)),
    key("drift.every", Whole("windows", 1, 10_000)),
    key("drift.alpha", Real("share of looks", 0.000_001, 0.1)),
];

const fn key(path: &'static str, expect: Expect) -> Key {
    Key { path, expect, required: false }
}

const fn required(path: &'static str, expect: Expect) -> Key {
    Key { path, expect, required: true }
}

/// The key of a concrete path such as `bus.parent.port` or `tags[2].topic`.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let pattern = pattern(path);
    KEYS.iter().find(|key| key.path == pattern)
}

/// The table's spelling of a concrete path.
pub(super) fn pattern(path: &str) -> String {
    if let Some(rest) = path.strip_prefix("bus.parent.") {
        return format!("bus.site.{rest}");
    }
    for array in ARRAYS {
        let element = path.strip_prefix(array).and_then(|rest| rest.strip_prefix('['));
        if let Some((_, rest)) = element.and_then(|element| element.split_once(']')) {
            return format!("{array}[]{rest}");
        }
    }
    path.to_owned()
}

/// Arrays of tables.
pub(super) const ARRAYS: [&str; 4] =
    ["model.adapters", "rollout.freezes", "schedule.windows", "tags"];

/// The known key that an unknown one was probably meant to be.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let pattern = pattern(path);
    let last = pattern.rsplit('.').next().unwrap_or(&pattern);
    KEYS.iter()
        .map(|key| {
            let same_leaf = key.path.rsplit('.').next() == Some(last);
            (if same_leaf { 1 } else { distance(&pattern, key.path) }, key.path)
        })
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, path)| path)
}

/// Number of single-character changes between two texts (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.chars().enumerate() {
            let [left, above, diagonal] =
                [next.get(j), row.get(j + 1), row.get(j)].map(|cell| *cell.unwrap_or(&usize::MAX));
            let replaced = diagonal.saturating_add(usize::from(from != to));
            next.push(replaced.min(left.saturating_add(1)).min(above.saturating_add(1)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

impl Expect {
    /// Whether the value is one of these.
    pub(super) fn accepts(&self, value: &Value) -> bool {
        match (self, &value.kind) {
            (Flag, ValueKind::Boolean(_)) => true,
            (Whole(_, least, most), ValueKind::I64(found)) => (least..=most).contains(&found),
            (Real(_, least, most), ValueKind::Float(found)) => (least..=most).contains(&found),
            (Real(_, least, most), ValueKind::I64(found)) => {
                i32::try_from(*found).is_ok_and(|small| (least..=most).contains(&&f64::from(small)))
            }
            (ListOf(words), ValueKind::Array(items)) => {
                let known = items.iter().all(|item| match &item.kind {
                    ValueKind::String(word) => words.contains(&word.as_str()),
                    _ => false,
                });
                let mut texts: Vec<String> = items.iter().map(ToString::to_string).collect();
                texts.sort();
                texts.dedup();
                known && texts.len() == items.len()
            }
            (_, ValueKind::String(text)) => self.accepts_text(text),
            _ => false,
        }
    }

    fn accepts_text(&self, text: &str) -> bool {
        let printable = !text.chars().any(char::is_control);
        match self {
            Self::Name => Name::new(text).is_ok(),
            Prefix => text.len() <= 200 && text.split('/').all(plain_level),
            Filter => (1..=200).contains(&text.len()) && printable && is_filter(text),
            Path => !text.is_empty() && printable,
            Address => text.parse::<SocketAddr>().is_ok(),
            Text(most) => (1..=*most).contains(&text.chars().count()) && printable,
            Pointer => (text.is_empty() || text.starts_with('/')) && printable,
            LogFilter => text.split(',').all(is_log_directive),
            Self::Moment => Wall::parse_utc(text).is_some(),
            OneOf(words) => words.contains(&text),
            Flag | Whole(..) | Real(..) | ListOf(_) => false,
        }
    }

    /// The value that a text of the environment or the command line stands for.
    ///
    /// A text that can't be read as what is expected stays a text, and [`Expect::accepts`] says no.
    pub(super) fn read(&self, text: &str) -> ValueKind {
        let read = match self {
            Flag => text.parse().ok().map(ValueKind::Boolean),
            Whole(..) => text.parse().ok().map(ValueKind::I64),
            Real(..) => text.parse().ok().map(ValueKind::Float),
            ListOf(_) => {
                let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
                let words = inner.split(',').map(|word| word.trim().trim_matches('"'));
                let words = words.filter(|word| !word.is_empty());
                Some(ValueKind::Array(words.map(|word| Value::new(None, word)).collect()))
            }
            _ => None,
        };
        read.unwrap_or_else(|| ValueKind::String(text.to_owned()))
    }
}

/// A level without wildcards, printable, not empty.
fn plain_level(level: &str) -> bool {
    !level.is_empty() && !level.contains(['+', '#', '$']) && !level.chars().any(char::is_control)
}

/// Wildcards stand alone in their level, and `#` stands last.
fn is_filter(text: &str) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    levels.iter().enumerate().all(|(at, level)| match *level {
        "+" => true,
        "#" => at + 1 == levels.len(),
        other => !other.contains(['+', '#']),
    })
}

/// A level, or `target=level`: the part of the filter language that can't be mistaken.
fn is_log_directive(text: &str) -> bool {
    let (target, level) = text.rsplit_once('=').unwrap_or(("gaisnet", text));
    let plain = !target.is_empty()
        && target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':'));
    plain && ["off", "error", "warn", "info", "debug", "trace"].contains(&level)
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("name, 1 to 64 of A-Z a-z 0-9 _ -"),
            Prefix => f.write_str("topic levels, 1 to 200 characters, no + # or empty level"),
            Filter => f.write_str("topic filter, 1 to 200 characters"),
            Path => f.write_str("path"),
            Address => f.write_str("address, ip:port"),
            Text(most) => write!(f, "text, 1 to {most} characters"),
            Pointer => f.write_str("JSON pointer, starts with / or is empty"),
            LogFilter => f.write_str("log filter"),
            Self::Moment => f.write_str("UTC, like 2026-12-24T00:00:00Z"),
            Flag => f.write_str("true or false"),
            Whole(unit, least, most) => write!(f, "{unit}, whole number {least} to {most}"),
            Real(unit, least, most) => write!(f, "{unit}, {least} to {most}"),
            OneOf(words) => write!(f, "one of {}", words.join(", ")),
            ListOf(words) => write!(f, "list of {}", words.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(path: &str, value: impl Into<ValueKind>) -> bool {
        find(path).unwrap().expect.accepts(&Value::new(None, value))
    }

    #[test]
    fn ranges_include_their_ends_and_nothing_beyond() {
        for key in KEYS {
            if let Whole(_, least, most) = key.expect {
                assert!(accepts(key.path, least) && accepts(key.path, most), "{}", key.path);
                assert!(!accepts(key.path, least - 1) && !accepts(key.path, most + 1));
            }
            if let Real(_, least, most) = key.expect {
                assert!(accepts(key.path, least) && accepts(key.path, most), "{}", key.path);
                assert!(!accepts(key.path, least - 1e-9) && !accepts(key.path, most + 1e-9));
                assert!(!accepts(key.path, f64::NAN) && !accepts(key.path, f64::INFINITY));
            }
        }
        assert!(accepts("round.quorum", 1_i64), "an integer is a number too");
        assert!(!accepts("round.rounds", 1.0), "but not the other way round");
    }

    #[test]
    fn texts_are_checked_by_what_they_are_for() {
        assert!(accepts("node.prefix", "company/plant-1") && !accepts("node.prefix", "a//b"));
        assert!(!accepts("node.prefix", "a/#") && !accepts("node.prefix", ""));
        for good in ["a/+/c", "#", "plant/värme/#", "+"] {
            assert!(accepts("tags[0].topic", good), "{good}");
        }
        for bad in ["", "a/#/c", "a/b+", "x\u{0}"] {
            assert!(!accepts("tags[0].topic", bad), "{bad}");
        }
        assert!(accepts("telemetry.metrics_listen", "[::1]:9464"));
        assert!(!accepts("telemetry.metrics_listen", "localhost"));
        assert!(accepts("telemetry.level", "warn,gaisnet::bus=debug"));
        assert!(!accepts("telemetry.level", "loud"));
        assert!(accepts("node.roles", vec!["relay", "inferencer"]));
        assert!(!accepts("node.roles", vec!["relay", "relay"]));
        assert!(!accepts("node.roles", "relay"));
    }

    #[test]
    fn parents_and_array_elements_share_their_keys() {
        assert_eq!(find("bus.parent.tls.ca").unwrap().path, "bus.site.tls.ca");
        assert_eq!(find("tags[12].model").unwrap().path, "tags[].model");
        assert_eq!(find("model.adapters[3].path").unwrap().path, "model.adapters[].path");
        assert!(find("bus.parent").is_none() && find("tags[0]").is_none());
        assert!(find("model.adapters[0]").is_none());
    }

    #[test]
    fn typing_errors_get_a_suggestion() {
        assert_eq!(nearest("round.qorum"), Some("round.quorum"));
        assert_eq!(nearest("quorum"), Some("round.quorum"));
        assert_eq!(nearest("tags[0].topc"), Some("tags[].topic"));
        assert_eq!(nearest("weather.forecast_region"), None);
    }

    #[test]
    fn texts_of_the_environment_become_what_is_expected() {
        let read = |path: &str, text: &str| find(path).unwrap().expect.read(text);
        assert_eq!(read("round.rounds", "7"), ValueKind::I64(7));
        assert_eq!(read("round.auto_start", "true"), ValueKind::Boolean(true));
        assert_eq!(read("bus.site.username", "007"), ValueKind::String("007".into()));
        let two = vec!["relay", "inferencer"];
        assert_eq!(read("node.roles", "[\"relay\", \"inferencer\"]"), two.clone().into());
        assert_eq!(read("node.roles", "relay,inferencer"), two.into());
    }
}
