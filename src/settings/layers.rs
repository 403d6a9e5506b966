//! Layers of settings, their order, and the memory of where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};

use super::keys::{self, Expect};
use super::{Problem, Settings, SettingsError, Tier, check};

/// Collects layers, lowest first, and merges them.
///
/// # Examples
/// ```
/// use gaisnet::settings::{Layers, Tier};
///
/// let mut layers = Layers::new();
/// layers.tier(Tier::Device);
/// layers.set("node.name=press-7").set("node.site=north").set("node.line=hall-1");
/// layers.set("node.parent=edge-north");
/// let settings = layers.load().into_settings().unwrap();
/// assert_eq!(settings.node.branch(), "gaisnet/v1/north/hall-1/press-7");
/// ```
#[derive(Debug)]
pub struct Layers {
    layers: Vec<Layer>,
    problems: Vec<Problem>,
}

/// Where a value came from: `default`, a tier, a file's path, a variable's name or `--set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(pub String);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Merged and checked layers.
#[derive(Debug)]
pub struct Loaded {
    values: BTreeMap<String, (String, Origin)>,
    settings: Result<Settings, SettingsError>,
}

impl Default for Layers {
    fn default() -> Self {
        Self::new()
    }
}

impl Layers {
    /// Just the defaults.
    pub fn new() -> Self {
        let mut layers = Self { layers: Vec::new(), problems: Vec::new() };
        layers.text("default", DEFAULT);
        layers
    }

    /// Adds the settings of a tier.
    pub fn tier(&mut self, tier: Tier) -> &mut Self {
        self.text(tier.as_str(), tier.settings())
    }

    /// Adds TOML under a name; relative paths in it count from the working folder.
    pub fn text(&mut self, origin: &str, toml: &str) -> &mut Self {
        self.toml(origin, toml, Path::new(""))
    }

    /// Adds a TOML file; relative paths in it count from its folder.
    pub fn file(&mut self, path: &Path) -> &mut Self {
        let origin = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(toml) => self.toml(&origin, &toml, path.parent().unwrap_or(Path::new(""))),
            Err(error) => {
                self.problem(&origin, "--config", format!("can't be read: {error}"));
                self
            }
        }
    }

    /// Adds the variables named `GAISNET__SECTION__KEY`; others are ignored.
    pub fn environment(&mut self, vars: impl IntoIterator<Item = (String, String)>) -> &mut Self {
        for (name, text) in vars {
            if let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) {
                let path = rest.to_ascii_lowercase().replace("__", ".");
                self.single(&path, &text, &name);
            }
        }
        self
    }

    /// Adds one `section.key=value`. Lists are written `a,b`.
    pub fn set(&mut self, assignment: &str) -> &mut Self {
        match assignment.split_once('=') {
            Some((path, text)) => self.single(path.trim(), text.trim(), "--set"),
            None => self.problem(assignment, "--set", "expected section.key=value".to_owned()),
        }
        self
    }

    /// Merges and checks.
    pub fn load(self) -> Loaded {
        let Self { layers, mut problems } = self;
        let base = layers.first().map(|layer| leaves(&layer.0)).unwrap_or_default();
        let mut builder = Config::builder();
        for layer in layers {
            builder = builder.add_source(layer);
        }
        let mut values = match builder.build().map(|merged| merged.cache.into_table()) {
            Ok(Ok(merged)) => leaves(&merged),
            Ok(Err(error)) | Err(error) => {
                problems.push(Problem {
                    key: "settings".to_owned(),
                    origin: "all layers".to_owned(),
                    message: error.to_string(),
                });
                base.clone()
            }
        };
        complete_parent(&mut values, &base);
        let printed = values
            .iter()
            .map(|(path, value)| {
                let origin = Origin(value.origin().unwrap_or("default").to_owned());
                (path.clone(), (toml_text(value), origin))
            })
            .collect();
        let settings = check::check(values, &base, problems);
        Loaded { values: printed, settings }
    }

    fn toml(&mut self, origin: &str, toml: &str, folder: &Path) -> &mut Self {
        match File::from_str(toml, FileFormat::Toml).collect() {
            Ok(table) => {
                let name = origin.to_owned();
                self.layers.push(Layer(stamp_table(table, &name, folder, "")));
            }
            Err(ConfigError::FileParse { cause, .. }) => {
                self.problem(origin, origin, format!("no valid TOML: {cause}"));
            }
            Err(error) => self.problem(origin, origin, error.to_string()),
        }
        self
    }

    fn single(&mut self, path: &str, text: &str, origin: &str) {
        let kind = match keys::find(path) {
            Some(key) => key.expect.read(text),
            None => ValueKind::String(text.to_owned()),
        };
        let value = Value::new(Some(&origin.to_owned()), kind);
        self.layers.push(Layer(Map::from([(path.to_owned(), value)])));
    }

    fn problem(&mut self, key: &str, origin: &str, message: String) {
        self.problems.push(Problem { key: key.to_owned(), origin: origin.to_owned(), message });
    }
}

impl Loaded {
    /// The typed settings.
    ///
    /// # Errors
    /// [`SettingsError`] with every problem.
    pub fn into_settings(self) -> Result<Settings, SettingsError> {
        self.settings
    }

    /// The typed settings, still with their origins.
    ///
    /// # Errors
    /// [`SettingsError`] with every problem.
    pub fn settings(&self) -> Result<&Settings, &SettingsError> {
        self.settings.as_ref()
    }

    /// Each value that is set, as `(key, TOML, where from)`, sorted by key.
    pub fn values(&self) -> impl Iterator<Item = (&str, &str, &Origin)> {
        self.values.iter().map(|(path, (text, origin))| (path.as_str(), text.as_str(), origin))
    }
}

/// A layer that is already read.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// Values by dotted path; a table isn't a value, an array is, an array of tables isn't.
pub(super) type Leaves = BTreeMap<String, Value>;

fn leaves(table: &Map<String, Value>) -> Leaves {
    let mut found = Leaves::new();
    collect_leaves(table, "", &mut found);
    found
}

fn collect_leaves(table: &Map<String, Value>, parent: &str, found: &mut Leaves) {
    for (name, value) in table {
        let path = join(parent, name);
        match &value.kind {
            ValueKind::Table(inner) if !inner.is_empty() => collect_leaves(inner, &path, found),
            ValueKind::Table(_) => {}
            ValueKind::Array(items) if items.iter().any(is_table) => {
                for (at, item) in items.iter().enumerate() {
                    match &item.kind {
                        ValueKind::Table(inner) => {
                            collect_leaves(inner, &format!("{path}[{at}]"), found);
                        }
                        _ => drop(found.insert(format!("{path}[{at}]"), item.clone())),
                    }
                }
            }
            _ => drop(found.insert(path, value.clone())),
        }
    }
}

/// Gives `[bus.parent]`, where there is one, the defaults of `[bus.site]`; a host has no default.
fn complete_parent(values: &mut Leaves, base: &Leaves) {
    if !values.keys().any(|path| path.starts_with("bus.parent.")) {
        return;
    }
    for (path, value) in base {
        if let Some(rest) = path.strip_prefix("bus.site.").filter(|rest| *rest != "host") {
            values.entry(format!("bus.parent.{rest}")).or_insert_with(|| value.clone());
        }
    }
}

/// Writes the origin into each value, and resolves relative paths.
fn stamp_table(
    table: Map<String, Value>,
    origin: &String,
    folder: &Path,
    parent: &str,
) -> Map<String, Value> {
    table
        .into_iter()
        .map(|(name, value)| {
            let path = join(parent, &name);
            (name, stamp(value, origin, folder, &path))
        })
        .collect()
}

fn stamp(value: Value, origin: &String, folder: &Path, path: &str) -> Value {
    let is_path = keys::find(path).is_some_and(|key| matches!(key.expect, Expect::Path));
    let kind = match value.kind {
        ValueKind::Table(inner) => ValueKind::Table(stamp_table(inner, origin, folder, path)),
        ValueKind::Array(items) => {
            let items = items.into_iter().enumerate();
            let stamped = items.map(|(at, item)| stamp(item, origin, folder, &index(path, at)));
            ValueKind::Array(stamped.collect())
        }
        ValueKind::String(text) if is_path && !text.is_empty() => {
            ValueKind::String(PathBuf::from(folder).join(text).display().to_string())
        }
        other => other,
    };
    Value::new(Some(origin), kind)
}

fn is_table(value: &Value) -> bool {
    matches!(value.kind, ValueKind::Table(_))
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

fn index(path: &str, at: usize) -> String {
    format!("{path}[{at}]")
}

/// The value as it would stand in a TOML file.
pub(super) fn toml_text(value: &Value) -> String {
    match &value.kind {
        // JSON's escapes are all valid in a TOML basic string.
        ValueKind::String(text) => serde_json::Value::from(text.as_str()).to_string(),
        ValueKind::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_text).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Float(number) => format!("{number:?}"),
        other => other.to_string(),
    }
}

/// Start of the variables' names.
const ENVIRONMENT_PREFIX: &str = "GAISNET__";

/// The lowest layer.
const DEFAULT: &str = include_str!("../../config/default.toml");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A device's layers without a problem.
    fn device() -> Layers {
        let mut layers = Layers::new();
        layers.tier(Tier::Device).set("node.name=press-7").set("node.site=north");
        layers.set("node.parent=edge-north");
        layers
    }

    fn problems(layers: Layers) -> Vec<String> {
        let error = layers.load().into_settings().unwrap_err();
        error.problems.iter().map(|problem| problem.key.clone()).collect()
    }

    fn origin_of(loaded: &Loaded, key: &str) -> String {
        let found = loaded.values().find(|(path, ..)| *path == key);
        found.map(|(_, _, origin)| origin.to_string()).unwrap()
    }

    #[test]
    fn later_layers_win_and_each_value_tells_where_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        std::fs::write(
            &file,
            "[round]\nrounds = 3\nquorum = 0.7\ndeadline_s = 30\nrelay_margin_s = 1\n",
        )
        .unwrap();
        let mut layers = device();
        layers.file(&file);
        layers.environment([
            ("GAISNET__ROUND__QUORUM".to_owned(), "0.8".to_owned()),
            ("GAISNET__ROUND__DEADLINE_S".to_owned(), "31".to_owned()),
            ("GAISNET_LIBTORCH_CACHE".to_owned(), "not ours".to_owned()),
        ]);
        layers.set("round.deadline_s=32");
        let loaded = layers.load();
        let round = &loaded.settings().unwrap().round;
        assert_eq!((round.rounds, round.quorum, round.deadline_s), (3, 0.8, 32));
        assert_eq!(origin_of(&loaded, "round.pause_s"), "default");
        assert_eq!(origin_of(&loaded, "node.roles"), "device");
        assert_eq!(origin_of(&loaded, "round.rounds"), file.display().to_string());
        assert_eq!(origin_of(&loaded, "round.quorum"), "GAISNET__ROUND__QUORUM");
        assert_eq!(origin_of(&loaded, "round.deadline_s"), "--set");
    }

    #[test]
    fn all_problems_come_at_once_by_name_with_unit_and_range() {
        let mut layers = Layers::new();
        layers.text(
            "node.toml",
            "[round]\nquorum = 1.5\nqorum = 0.5\nrounds = \"many\"\n[weather]\nrain = 1\n",
        );
        layers.environment([("GAISNET__BUS__SITE__PORT".to_owned(), "0".to_owned())]);
        layers.set("strategy.name=magic").set("nonsense");
        let error = layers.load().into_settings().unwrap_err();
        let text = error.to_string();
        for expected in [
            "9 problems in the settings:",
            "bus.site.port: found 0, expected port, whole number 1 to 65535 (from GAISNET__BUS__SITE__PORT)",
            "node.name: missing, expected name, 1 to 64 of A-Z a-z 0-9 _ - (from no layer)",
            "node.site: missing",
            "nonsense: expected section.key=value (from --set)",
            "round.qorum: unknown key, did you mean round.quorum? (from node.toml)",
            "round.quorum: found 1.5, expected share of members, 0.01 to 1 (from node.toml)",
            "round.rounds: found \"many\", expected rounds, whole number 1 to 1000000",
            "strategy.name: found \"magic\", expected one of fedavg, fedprox (from --set)",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
        assert!(text.contains("weather.rain: unknown key (from node.toml)"), "{text}");
    }

    #[test]
    fn broken_toml_and_unreadable_files_are_problems_beside_the_others() {
        let mut layers = Layers::new();
        layers.text("bad.toml", "[round\nrounds = 3");
        layers.file(Path::new("/nowhere/node.toml"));
        let found = problems(layers);
        assert_eq!(found, ["/nowhere/node.toml", "bad.toml", "node.name", "node.site"]);
    }

    #[test]
    fn a_table_in_place_of_a_value_and_a_value_in_place_of_a_table_are_problems() {
        let mut layers = device();
        layers.text("bad.toml", "limits = 3\n[round.quorum]\nshare = 0.5\n");
        let found = problems(layers);
        assert!(found.contains(&"limits".to_owned()), "{found:?}");
        assert!(found.contains(&"round.quorum.share".to_owned()), "{found:?}");
    }

    #[test]
    fn paths_in_a_file_count_from_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        let toml = "[paths]\nstore = \"s\"\nkeys = \"/k\"\n[bus.site.tls]\nca = \"ca.pem\"\n";
        std::fs::write(&file, toml).unwrap();
        let mut layers = device();
        layers.file(&file);
        let settings = layers.load().into_settings().unwrap();
        assert_eq!(settings.paths.store, folder.path().join("s"));
        assert_eq!(settings.paths.keys, Path::new("/k"));
        assert_eq!(settings.bus.site.tls.ca, Some(folder.path().join("ca.pem")));
        assert_eq!(settings.paths.keyring, Path::new("keys/keyring"));
    }

    #[test]
    fn a_parent_link_has_the_site_links_defaults_but_no_default_host() {
        assert_eq!(device().load().into_settings().unwrap().bus.parent, None);
        let edge = || {
            let mut layers = Layers::new();
            layers.tier(Tier::Edge).set("node.name=e").set("node.site=s").set("node.parent=p");
            layers
        };
        let mut layers = edge();
        layers.set("bus.parent.host=mqtt.example").set("bus.site.port=2883");
        let bus = layers.load().into_settings().unwrap().bus;
        let parent = bus.parent.unwrap();
        assert_eq!((parent.host.as_str(), parent.port), ("mqtt.example", 1883));
        assert_eq!(parent.keep_alive_s, bus.site.keep_alive_s);
        let mut hostless = edge();
        hostless.set("bus.parent.port=1884");
        assert_eq!(problems(hostless), ["bus.parent.host"]);
    }

    #[test]
    fn tags_are_checked_one_by_one() {
        let mut layers = device();
        layers.text("tags.toml", "[[tags]]\ntopic = \"a/b\"\nbinds = \"feature\"\nmodel = \"x\"\n");
        assert_eq!(layers.load().into_settings().unwrap().tags.len(), 1);
        let mut bad = device();
        bad.text(
            "tags.toml",
            "[[tags]]\ntopic = \"a/#/b\"\nbinds = \"feature\"\n[[tags]]\nbinds = \"truth\"\n",
        );
        assert_eq!(problems(bad), ["tags[0].topic", "tags[1].binds", "tags[1].topic"]);
    }

    #[test]
    fn what_is_printed_is_toml_that_gives_the_same_settings() {
        let mut layers = device();
        layers.set("bus.site.username=a \"quoted\" \\ name").set("strategy.learning_rate=1e-7");
        let loaded = layers.load();
        let printed: Vec<String> =
            loaded.values().map(|(key, value, _)| format!("{key} = {value}")).collect();
        let mut again = Layers::new();
        again.text("printed", &printed.join("\n"));
        assert_eq!(again.load().into_settings(), loaded.into_settings());
    }

    /// `default.toml` with the keys that are off switched on, so that it names every key.
    fn everything() -> String {
        let lines = DEFAULT.lines();
        let on = lines.map(|line| match line.strip_prefix("# ") {
            Some(key) => key,
            None => line,
        });
        on.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn default_file_key_table_and_fields_name_the_same_keys() {
        let mut layers = Layers::new();
        layers.text("everything", &everything());
        let loaded = layers.load();
        let in_file: BTreeSet<String> =
            loaded.values().map(|(path, ..)| keys::pattern(path)).collect();
        let in_table: BTreeSet<String> = keys::KEYS.iter().map(|key| key.path.to_owned()).collect();
        assert_eq!(in_file, in_table);
        // A relay has a second broker, a device a set or a file, and a language model adapters, but no cut,
        // and texts that nobody wrote down.
        let consistent = everything().replace("[\"inferencer\"]", "[\"relay\"]");
        let consistent = consistent.replace("set = \"bearings\"", "");
        let consistent = consistent.replace("learner = \"softmax\"", "learner = \"language\"");
        let consistent = consistent.replace("cut = 1", "");
        // No tag is a feature and a veto.
        let others = [
            "above = 75.0",
            "below = 30.0",
            r#"reference_file = "/etc/gaisnet/excavator-orders-1.txt""#,
            r#"reference_digest = "0000000000000000000000000000000000000000000000000000000000000000""#,
            r#"labels = "system""#,
        ];
        let consistent = others.iter().fold(consistent, |text, line| text.replace(line, ""));
        let mut layers = Layers::new();
        layers.text("consistent", &consistent);
        let fields = serde_json::to_value(layers.load().into_settings().unwrap()).unwrap();
        let mut in_struct = BTreeSet::new();
        name_fields(&fields, "", &mut in_struct);
        assert_eq!(in_struct, in_table);
    }

    fn name_fields(value: &serde_json::Value, path: &str, names: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    name_fields(field, &join(path, name), names);
                }
            }
            serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
                for item in items {
                    name_fields(item, &index(path, 0), names);
                }
            }
            _ => drop(names.insert(keys::pattern(path))),
        }
    }

    #[test]
    fn every_key_of_the_default_file_is_explained_with_its_unit_and_range() {
        let mut section = String::new();
        let mut prose = String::new();
        for line in DEFAULT.lines() {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            if let Some(text) = line.strip_prefix("##") {
                prose.push_str(text);
            } else if let Some(name) = bare.strip_prefix("[[").or(bare.strip_prefix('[')) {
                section = name.trim_end_matches(']').to_owned();
                if keys::ARRAYS.contains(&section.as_str()) {
                    section.push_str("[]");
                }
                prose.clear();
            } else if let Some((name, _)) = bare.split_once(" = ") {
                if section != "bus.parent" {
                    let path = format!("{section}.{name}");
                    let expected = format!("[{}]", keys::find(&path).unwrap().expect);
                    assert!(prose.contains(&expected), "{path} lacks {expected}: {prose}");
                }
                prose.clear();
            }
        }
    }

    #[test]
    fn shipped_files_are_good_settings() {
        for tier in Tier::ALL {
            let mut layers = Layers::new();
            layers.tier(tier).text("pilot", super::super::PILOT);
            layers.set("node.name=n");
            if tier != Tier::Cloud {
                layers.set("node.site=s").set("node.parent=p");
            }
            layers.load().into_settings().unwrap_or_else(|error| panic!("{tier}: {error}"));
        }
    }
}
