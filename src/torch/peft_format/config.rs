//! `adapter_config.json`: what is understood, and a refusal of everything else that has an effect.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::names::{HEAD, Module};
use crate::torch::safetensors::read_bytes;
use crate::torch::weights_error::WeightsError;

/// Kinds that have a counterpart here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Lora,
    Ia3,
    Prompts,
    Prefix,
}

/// An `adapter_config.json`.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    values: Map<String, Value>,
    /// Ranks of some layers, by pattern.
    pub(super) ranks: Patterns<u32>,
    /// Alphas of some layers, by pattern.
    pub(super) alphas: Patterns<f32>,
}

#[derive(serde::Deserialize)]
struct Ordered {
    #[serde(default)]
    rank_pattern: Patterns<u32>,
    #[serde(default)]
    alpha_pattern: Patterns<f32>,
}

impl AdapterConfig {
    pub(super) fn read(path: &Path) -> Result<Self, WeightsError> {
        Self::parse(&read_bytes(path, MAX_CONFIG_BYTES)?)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, WeightsError> {
        let bad = |e: serde_json::Error| bad(&e.to_string());
        let values = serde_json::from_slice(bytes).map_err(bad)?;
        let ordered: Ordered = serde_json::from_slice(bytes).map_err(bad)?;
        Ok(Self { values, ranks: ordered.rank_pattern, alphas: ordered.alpha_pattern })
    }

    pub(super) fn kind(&self) -> Result<Kind, WeightsError> {
        let task = self.values.get("task_type").unwrap_or(&Value::Null);
        if !(task.is_null() || task == "CAUSAL_LM") {
            return Err(self.unsupported("task_type", "expected CAUSAL_LM"));
        }
        match self.values.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => Ok(Kind::Lora),
            Some("IA3") => Ok(Kind::Ia3),
            Some("PROMPT_TUNING") => Ok(Kind::Prompts),
            Some("PREFIX_TUNING") => Ok(Kind::Prefix),
            _ => {
                let known = "expected LORA, IA3, PROMPT_TUNING or PREFIX_TUNING";
                Err(self.unsupported("peft_type", known))
            }
        }
    }

    /// Refuses every setting that says something, unless it is one of these or has no effect on what
    /// an adapter answers.
    pub(super) fn only(&self, understood: &[&str]) -> Result<(), WeightsError> {
        for (key, value) in &self.values {
            let known = understood.contains(&key.as_str()) || NO_EFFECT.contains(&key.as_str());
            if known || says_nothing(value) {
                continue;
            }
            return Err(WeightsError::Unsupported {
                what: "setting of an adapter",
                found: shorten(&format!("{key} = {value}")),
                known: "only plain adapters are read; leave it out where it was trained, or merge \
                        the adapter there",
            });
        }
        Ok(())
    }

    /// A whole number that must be there.
    pub(super) fn number(&self, key: &str) -> Result<u32, WeightsError> {
        let value = self.values.get(key).and_then(Value::as_u64);
        let value = value.and_then(|n| u32::try_from(n).ok());
        value.ok_or_else(|| bad(&format!("{key} is absent or no small number")))
    }

    /// Checks a whole number that may be absent.
    pub(super) fn agrees(&self, key: &str, expected: u32) -> Result<(), WeightsError> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value.as_u64() == Some(expected.into()) => Ok(()),
            Some(value) => {
                let value = shorten(&value.to_string());
                let text = format!("{key}: this base has {expected}, the adapter wants {value}");
                Err(WeightsError::BadAdapter(text))
            }
        }
    }

    /// A number, or this one.
    #[expect(clippy::cast_possible_truncation, reason = "an f32 is what is calculated with")]
    pub(super) fn real(&self, key: &str, absent: f32) -> Result<f32, WeightsError> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(absent),
            Some(value) => {
                let number = value.as_f64().map(|x| x as f32);
                number.ok_or_else(|| bad(&format!("{key} is no number")))
            }
        }
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.values.get(key) == Some(&Value::Bool(true))
    }

    /// The text of a key, if it is one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_str()
    }

    /// Which layers a key of names chooses.
    pub(super) fn names(&self, key: &str) -> Result<Names, WeightsError> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(Names::List(Vec::new())),
            Some(Value::String(text)) if text == "all-linear" => Ok(Names::AllLinear),
            Some(Value::String(_)) => Ok(Names::Expression),
            Some(Value::Array(all)) => {
                let text = |v: &Value| v.as_str().map(str::to_owned);
                let list: Option<Vec<String>> = all.iter().map(text).collect();
                list.map(Names::List).ok_or_else(|| bad(&format!("{key} isn't a list of names")))
            }
            Some(_) => Err(bad(&format!("{key} isn't a list of names"))),
        }
    }

    /// Tells which layers get something of their own; nothing when only the file can tell.
    pub(super) fn targets(&self) -> Result<Option<Targets>, WeightsError> {
        let layers = match self.values.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let one = std::slice::from_ref(value);
                let all = value.as_array().map_or(one, Vec::as_slice);
                let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
                let layers: Option<BTreeSet<u32>> = all.iter().map(number).collect();
                let layers =
                    layers.ok_or_else(|| bad("layers_to_transform isn't a list of numbers"))?;
                (!layers.is_empty()).then_some(layers)
            }
        };
        let pattern = self.values.get("layers_pattern").unwrap_or(&Value::Null);
        if !(says_nothing(pattern)
            || pattern == "layers"
            || *pattern == serde_json::json!(["layers"]))
        {
            return Err(self.unsupported("layers_pattern", "expected layers"));
        }
        let (names, excluded) = (self.names("target_modules")?, self.names("exclude_modules")?);
        if matches!(names, Names::Expression) || matches!(excluded, Names::Expression) {
            return Ok(None);
        }
        Ok(Some(Targets { names, excluded, layers }))
    }

    pub(super) fn unsupported(&self, key: &'static str, known: &'static str) -> WeightsError {
        let found = self.values.get(key).map_or_else(String::new, |v| match v {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        WeightsError::Unsupported { what: key, found: shorten(&found), known }
    }
}

/// What `target_modules` and its kin say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Last names or whole paths.
    List(Vec<String>),
    /// All but the head.
    AllLinear,
    /// A regular expression: not evaluated.
    Expression,
}

impl Names {
    fn choose(&self, module: &Module) -> bool {
        match self {
            Self::List(names) => names.iter().any(|n| ends_in(&module.theirs, n)),
            Self::AllLinear => module.theirs != HEAD.1,
            Self::Expression => true,
        }
    }

    fn has(&self, path: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|n| n == path))
    }

    /// As PEFT reads `feedforward_modules`; nothing for an expression.
    pub(super) fn ends(&self, path: &str) -> Option<bool> {
        match self {
            Self::List(names) => Some(names.iter().any(|n| path.ends_with(n.as_str()))),
            Self::AllLinear | Self::Expression => None,
        }
    }
}

/// Which layers an adapter is for.
#[derive(Debug)]
pub(super) struct Targets {
    names: Names,
    excluded: Names,
    layers: Option<BTreeSet<u32>>,
}

impl Targets {
    pub(super) fn choose(&self, module: &Module) -> bool {
        if self.excluded.choose(module) {
            return false;
        }
        let wanted = |layers: &BTreeSet<u32>| module.layer.is_some_and(|i| layers.contains(&i));
        let here = self.layers.as_ref().is_none_or(wanted);
        self.names.has(&module.theirs) || (self.names.choose(module) && here)
    }
}

/// Values for some layers; the first pattern that fits counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Patterns<T>(Vec<(String, T)>);

impl<T: Copy> Patterns<T> {
    /// The value for a layer.
    ///
    /// # Errors
    /// [`WeightsError::Unsupported`] when a pattern is more than a name or a path.
    pub(super) fn of(&self, path: &str) -> Result<Option<T>, WeightsError> {
        for (pattern, value) in &self.0 {
            let name = pattern.strip_prefix('^').unwrap_or(pattern);
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            if name.is_empty() || !name.bytes().all(plain) {
                return Err(WeightsError::Unsupported {
                    what: "pattern for ranks or alphas",
                    found: shorten(pattern),
                    known: "expected the name of a layer or its path",
                });
            }
            let whole = pattern.starts_with('^');
            if if whole { path == name } else { ends_in(path, name) } {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    /// In the order of the file, which decides between two patterns.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Patterns::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Patterns(all))
            }
        }
        deserializer.deserialize_any(InOrder(PhantomData))
    }
}

/// Whether a path is `name` or ends in `.name`.
fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

fn bad(what: &str) -> WeightsError {
    WeightsError::BadAdapter(format!("adapter_config.json: {what}"))
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Settings that say where an adapter came from or how it began, not what it answers.
const NO_EFFECT: [&str; 19] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "init_ia3_weights",
    "init_weights",
    "megatron_core",
    "peft_type",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
    "encoder_hidden_size",
    "prefix_projection", // what is saved is what the projection gave
];
const MAX_CONFIG_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> AdapterConfig {
        AdapterConfig::parse(json.as_bytes()).unwrap()
    }

    fn module(theirs: &str, layer: u32) -> Module {
        Module { ours: String::new(), theirs: theirs.into(), layer: Some(layer), out: 1, input: 1 }
    }

    #[test]
    fn the_first_pattern_of_the_file_counts_not_the_first_of_the_alphabet() {
        let json = r#"{"rank_pattern": {"layers.1.q_proj": 3, "q_proj": 2, "^a.v_proj": 5}}"#;
        let ranks = config(json).ranks;
        assert_eq!(ranks.of("layers.1.q_proj").unwrap(), Some(3));
        assert_eq!(ranks.of("layers.11.q_proj").unwrap(), Some(2));
        assert_eq!(ranks.of("a.v_proj").unwrap(), Some(5));
        assert_eq!(ranks.of("b.a.v_proj").unwrap(), None);
        let other = r#"{"rank_pattern": {"q_proj": 2, "layers.1.q_proj": 3}}"#;
        assert_eq!(config(other).ranks.of("layers.1.q_proj").unwrap(), Some(2));
        let regex = config(r#"{"rank_pattern": {".*q_proj": 2}}"#);
        assert_eq!(regex.ranks.of("q_proj").unwrap_err().kind(), "unsupported");
    }

    #[test]
    fn layers_to_transform_narrows_names_but_not_whole_paths() {
        let json = r#"{"target_modules": ["q_proj", "layers.0.v_proj"], "layers_to_transform": 1}"#;
        let targets = config(json).targets().unwrap().unwrap();
        assert!(targets.choose(&module("layers.1.q_proj", 1)));
        assert!(!targets.choose(&module("layers.0.q_proj", 0)));
        assert!(targets.choose(&module("layers.0.v_proj", 0)));
        assert!(!targets.choose(&module("layers.1.xq_proj", 1)));
    }

    #[test]
    fn a_setting_with_an_effect_that_is_not_known_is_refused_and_an_empty_one_is_not() {
        let refused = |json: &str| config(json).only(&["r"]).is_err();
        assert!(!refused(r#"{"r": 8, "use_dora": false, "new": null, "megatron_core": "x"}"#));
        assert!(refused(r#"{"use_dora": true}"#));
        assert!(refused(r#"{"modules_to_save": ["lm_head"]}"#));
        assert!(refused(r#"{"anything_new": 1}"#));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = AdapterConfig::parse(&bytes);
        }
    }
}
