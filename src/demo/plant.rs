//! Who takes part in the pilot, their keys, and the settings of each.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::brokers::Brokers;
use super::{DemoError, DemoOptions};
use crate::ids::{Name, NodeId};
use crate::settings::{Compression, Contribute, Layers, LearnerName, PILOT, Settings, Tier};
use crate::store::keyfile;
use crate::time::Wall;
use crate::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use crate::trust::keyring_document::seal_document;
use crate::trust::keys::SigningKey;

/// One node of the pilot.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) name: &'static str,
    pub(super) site: &'static str,
    pub(super) line: &'static str,
    pub(super) parent: Option<&'static str>,
    pub(super) tier: Tier,
    /// Index of its recordings, of devices.
    pub(super) data: Option<usize>,
}

const fn place(
    name: &'static str,
    site: &'static str,
    parent: Option<&'static str>,
    tier: Tier,
    data: Option<usize>,
) -> Place {
    let line = if data.is_some() { "bearings" } else { "_" };
    Place { name, site, line, parent, tier, data }
}

/// What a node's settings have beside what every demo sets.
#[derive(Debug, Clone, Default)]
pub(super) struct More {
    /// Keys and their values, as TOML.
    pub(super) keys: Vec<(&'static str, String)>,
    /// Devices hear what their machine really does.
    pub(super) labels: bool,
}

/// Where the demo puts the base that ships with the program, below its folder.
pub(super) const BASE_CARD: &str = "base/signal-bearing.toml";

/// First level of the pilot's topics.
pub(super) const PREFIX: &str = "gaisnet";

/// The pilot: a cloud, two sites, two test rigs each.
pub(super) const PLACES: [Place; 7] = [
    place("cloud", "_", None, Tier::Cloud, None),
    place("edge-north", "north", Some("cloud"), Tier::Edge, None),
    place("edge-south", "south", Some("cloud"), Tier::Edge, None),
    place("p1", "north", Some("edge-north"), Tier::Device, Some(0)),
    place("p2", "north", Some("edge-north"), Tier::Device, Some(1)),
    place("p3", "south", Some("edge-south"), Tier::Device, Some(2)),
    place("p4", "south", Some("edge-south"), Tier::Device, Some(3)),
];

/// The place of this name.
pub(super) fn place_of(name: &str) -> Option<&'static Place> {
    PLACES.iter().find(|place| place.name == name)
}

impl Place {
    /// Its part of the topic tree.
    pub(super) fn branch(&self) -> String {
        format!("{PREFIX}/v1/{}/{}/{}", self.site, self.line, self.name)
    }

    /// Nodes under it.
    pub(super) fn children(&self) -> impl Iterator<Item = &'static Place> {
        let name = self.name;
        PLACES.iter().filter(move |place| place.parent == Some(name))
    }

    /// Its folder in the demo's.
    pub(super) fn folder(&self, options: &DemoOptions) -> PathBuf {
        options.folder.join(self.name)
    }

    /// Its settings file, as `gaisnet run --config` takes it.
    pub(super) fn settings_file(&self, options: &DemoOptions) -> PathBuf {
        self.folder(options).join("gaisnet.toml")
    }

    /// Topic that its sensor gateway publishes on.
    pub(super) fn sensor_topic(&self) -> String {
        format!("plant/{}/{}/vibration", self.site, self.name)
    }

    /// Topic on which its quality inspection says what the machine really does.
    pub(super) fn label_topic(&self) -> String {
        format!("plant/{}/{}/label", self.site, self.name)
    }

    /// Writes its settings file; gives the settings.
    pub(super) fn write_settings(
        &self,
        options: &DemoOptions,
        brokers: &Brokers,
        more: &More,
    ) -> Result<Settings, DemoError> {
        let (settings, text) = self.settings(options, brokers, more)?;
        let file = self.settings_file(options);
        std::fs::write(&file, text).map_err(DemoError::file(&file))?;
        Ok(settings)
    }

    /// Its settings, and the file that says them.
    fn settings(
        &self,
        options: &DemoOptions,
        brokers: &Brokers,
        more: &More,
    ) -> Result<(Settings, String), DemoError> {
        let mut layers = Layers::new();
        layers.tier(self.tier).text("pilot", PILOT);
        let folder = self.folder(options);
        let mut own = String::new();
        let mut set = |key: &str, value: String| own.extend([key, " = ", &value, "\n"]);
        set("node.name", quoted(self.name));
        set("node.site", quoted(self.site));
        set("node.line", quoted(self.line));
        if let Some(parent) = self.parent {
            set("node.parent", quoted(parent));
        }
        set("paths.store", quoted(&folder.join("store").display().to_string()));
        set("paths.keys", quoted(&folder.join("keys").display().to_string()));
        set("paths.keyring", quoted(&options.folder.join("keyring").display().to_string()));
        if let Some(at) = brokers.get(self.site) {
            at.settings_of("bus.site", self.name, &mut set);
        }
        if self.tier == Tier::Edge
            && let Some(at) = brokers.get("_")
        {
            at.settings_of("bus.parent", self.name, &mut set);
        }
        set(
            "model.learner",
            quoted(match options.learner {
                LearnerName::Softmax => "softmax",
                LearnerName::SignalTransformer => "signal-transformer",
                LearnerName::Language => "language",
                LearnerName::TextSoftmax => "text-softmax",
                LearnerName::TextEncoder => "text-encoder",
            }),
        );
        if options.learner == LearnerName::SignalTransformer {
            let card = options.folder.join(BASE_CARD);
            set("model.base", quoted(&card.display().to_string()));
        }
        set("round.rounds", options.rounds.to_string());
        set("round.pause_s", "0".into());
        set("strategy.local_steps", options.local_steps.to_string());
        set("strategy.learning_rate", format!("{:?}", options.learning_rate));
        set("strategy.seed", options.seed.to_string());
        set(
            "strategy.compression",
            quoted(match options.compression {
                Compression::None => "none",
                Compression::Int8 => "int8",
                Compression::Int4 => "int4",
            }),
        );
        let kinds = options.contribute.iter().map(|kind| match kind {
            Contribute::AdapterDelta => "\"adapter_delta\"",
            Contribute::ClassLogits => "\"class_logits\"",
            Contribute::Prototypes => "\"prototypes\"",
            Contribute::ReferenceLogits => "\"reference_logits\"",
            Contribute::Generator => "\"generator\"",
            Contribute::Spectra => "\"spectra\"",
        });
        set("strategy.contribute", format!("[{}]", kinds.collect::<Vec<_>>().join(", ")));
        for (key, value) in &more.keys {
            set(key, value.clone());
        }
        let mut tags = String::new();
        if self.data.is_some() {
            set("data.set", quoted("bearings"));
            set("data.client", quoted(self.name));
            let topic = quoted(&self.sensor_topic());
            tags = format!(
                "\n[[tags]]\ntopic = {topic}\nformat = \"json\"\npointer = \"/values\"\nbinds = \
                 \"feature\"\nmodel = \"bearing\"\n"
            );
            if more.labels {
                let topic = quoted(&self.label_topic());
                let rest = "\nformat = \"json\"\nbinds = \"label\"\n";
                tags.extend(["\n[[tags]]\ntopic = ", &topic, rest]);
            }
        }
        own.push_str(&tags);
        layers.text("demo", &own);
        let loaded = layers.load();
        // Only what isn't a default, so that the file stays readable.
        let mut file = format!("# {}, as the demo has set it up.\n", self.name);
        for (key, value, origin) in loaded.values() {
            if origin.0 != "default" && !key.starts_with("tags[") {
                file.extend([key, " = ", value, "\n"]);
            }
        }
        file.push_str(&tags);
        Ok((loaded.into_settings()?, file))
    }
}

/// Makes the keys that are missing, and the keyring of all nodes, and of an operator where one is asked for, as a file.
pub(super) fn enrol(
    folder: &Path,
    operator: Option<&'static str>,
    now: Wall,
) -> Result<Keyring, DemoError> {
    let federation = name("pilot");
    let root_key = key(&folder.join("root"))?;
    let until = now.plus_ms(YEAR_MS);
    let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*root_key.public()] };
    let mut keyring = Keyring::first(federation.clone(), root, now, until)?;
    let nodes = PLACES.iter().map(|place| {
        let role = match place.tier {
            Tier::Cloud => Role::Cloud,
            Tier::Edge => Role::Edge,
            Tier::Device => Role::Device,
        };
        (place.clone(), role)
    });
    let person = |name| (place(name, "_", None, Tier::Cloud, None), Role::Operator);
    for (place, role) in nodes.chain(operator.map(person)) {
        let key = key(&key_folder(folder, place.name))?;
        let (node, roles) = (name(place.name), BTreeSet::from([role]));
        let proof = key.prove_possession(&federation, &node, &roles);
        let entry = NodeEntry {
            node,
            site: name(place.site),
            line: name(place.line),
            roles,
            parent: place.parent.map(name),
            key: *key.public(),
        };
        keyring = keyring.enrol(&Enrolment { entry, proof }, now, until)?;
    }
    // For the nodes, and for auditors: `gaisnet audit verify --all demo --keyring demo/keyring`.
    let document = seal_document(&keyring, &[&root_key])?;
    let path = folder.join("keyring");
    std::fs::write(&path, document).map_err(DemoError::file(&path))?;
    Ok(keyring)
}

/// A name that stands in this file.
pub(super) fn name(text: &'static str) -> NodeId {
    Name::new(text).unwrap_or_else(|_| unreachable!("names of the pilot are valid"))
}

/// Where a node's or an operator's key lies, below the demo's folder.
pub(super) fn key_folder(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).join("keys")
}

fn key(folder: &Path) -> Result<SigningKey, DemoError> {
    let path = folder.join("node.pem");
    if path.exists() {
        Ok(keyfile::read_signing_key(&path, None)?)
    } else {
        let key = keyfile::new_signing_key()?;
        keyfile::write_signing_key(&path, &key)?;
        Ok(key)
    }
}

/// As TOML text.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

const YEAR_MS: u64 = 365 * 86_400_000;
