//! Adapters that the settings name: a node takes them along, or says at start what is wrong with one.
//!
//! The base and most adapters are those of tests/golden/peft, which Python's peft wrote.
#![cfg(all(feature = "torch", feature = "cli"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Command;

use gaisnet::ids::{Digest, Name};
use gaisnet::learn::TensorSet;
use gaisnet::node::{Brain, Server, SettingsProblem, brain};
use gaisnet::settings::Layers;
use gaisnet::time::Wall;
use gaisnet::torch::adapter::AdapterPlan;
use gaisnet::torch::adopted::{About, AdoptedCard, seal_adopted, write_card};
use gaisnet::torch::huggingface::{FILES, load_llama};
use gaisnet::torch::language::{LanguageBase, Precision, TokenBatch};
use gaisnet::torch::peft_format::{AdapterBase, Format, digest_of, export, import};
use gaisnet::torch::{LoraConfig, PeftConfig};
use gaisnet::trust::keyring::{Keyring, RootRole};
use gaisnet::trust::keys::SigningKey;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const PROMPT: [u32; 5] = [3, 9, 4, 41, 7];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft").join(name)
}

/// A folder with a signed base and room for adapters.
struct Room {
    dir: TempDir,
    weights: Digest,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in FILES {
            fs::copy(golden("base").join(file), dir.path().join(file)).unwrap();
        }
        let card = AdoptedCard::of(dir.path(), "tiny", &About::default()).unwrap();
        let path = dir.path().join("tiny.toml");
        write_card(&path, &card).unwrap();
        seal_adopted(&path, &[&key()], dir.path()).unwrap();
        fs::write(dir.path().join("release.pem"), key().public().to_pem()).unwrap();
        let weights = Digest::of(&fs::read(dir.path().join("model.safetensors")).unwrap());
        Self { dir, weights }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies one of Python's adapters; gives its new folder.
    fn pythons(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::create_dir(&to).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(golden(name).join(file), to.join(file)).unwrap();
        }
        to
    }

    /// Writes an adapter of zeros in our own format, for a base of this digest.
    fn own(&self, name: &str, peft: &PeftConfig, base: Digest) {
        let sizes = load_llama(&golden("base")).unwrap().config;
        let of = AdapterBase { name: "tiny", digest: Some(base), sizes: &sizes };
        let plan = AdapterPlan::new(&sizes.layout(), peft).unwrap();
        let zeros = TensorSet::zeros(&plan.layout());
        export(&self.path(name), Format::Manifest, &of, peft, &zeros).unwrap();
    }

    /// The node's model with adapters of these names, each in the folder of its name.
    fn brain(&self, adapters: &[&str], set: &[&str]) -> Result<Brain, SettingsProblem> {
        let block =
            |name: &&str| format!("[[model.adapters]]\nname = \"{name}\"\npath = {name:?}\n");
        let file = self.path("node.toml");
        let text = "[model]\nlearner = \"language\"\nbase = \"tiny.toml\"\nrelease_key = \"release.pem\"\n";
        let blocks: String = adapters.iter().map(block).collect();
        fs::write(&file, format!("{text}device = \"cpu\"\n{blocks}")).unwrap();
        let mut layers = Layers::new();
        layers.file(&file).set("node.name=n").set("node.site=s");
        for setting in set {
            layers.set(setting);
        }
        brain(&layers.load().into_settings().unwrap(), &keyring())
    }

    /// Why a node with this adapter, and a good one, doesn't start.
    fn refused(&self, adapter: &str, set: &[&str]) -> String {
        let error = self.brain(&["lora", adapter], set).err().expect("it is refused");
        let text = error.to_string();
        assert!(text.starts_with("model.adapters: ") && text.contains(adapter), "{text}");
        text
    }
}

fn key() -> SigningKey {
    SigningKey::generate(&[7; 32])
}

fn keyring() -> Keyring {
    let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*key().public()] };
    Keyring::first(Name::new("fed").unwrap(), root, Wall(1), Wall(9)).unwrap()
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let file = path.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    fs::write(file, config.to_string()).unwrap();
}

/// The logits after the prompt, of the adapter in a folder.
fn expected(folder: &Path) -> (Digest, Vec<f32>) {
    let loaded = load_llama(&golden("base")).unwrap();
    let of = AdapterBase { name: "", digest: None, sizes: &loaded.config };
    let (peft, set) = import(folder, &of).unwrap();
    let base =
        LanguageBase::new(loaded.config, loaded.weights, Precision::F32, Device::Cpu).unwrap();
    let plan = AdapterPlan::new(&base.weights().layout(), &peft).unwrap();
    let model = base.model(Some(&plan.attach(&plan.flatten(&set).unwrap()).unwrap())).unwrap();
    let ids = PROMPT.map(i64::from);
    let batch = TokenBatch {
        ids: Tensor::from_slice(&ids).reshape([1, -1]),
        positions: None,
        segments: None,
    };
    let logits = model.logits(&model.hidden(&batch).unwrap()).unwrap().squeeze_dim(0).get(-1);
    let logits = Vec::<f32>::try_from(logits.to_kind(Kind::Float)).unwrap();
    (digest_of(&peft, &set).unwrap(), logits)
}

#[test]
fn a_node_takes_adapters_of_several_kinds_along_and_answers_with_each() {
    let room = Room::new();
    let kinds = ["lora_all", "prefix", "ia3", "prompts"];
    let folders = kinds.map(|name| room.pythons(name));
    let made = room.brain(&kinds, &[]).unwrap();
    let listed: Vec<_> = made.model.adapters.iter().map(|a| (a.name.as_str(), a.digest)).collect();
    let Server::Text(writer) = made.server else { panic!("it writes") };
    let mut generator = writer.generator;
    let names: Vec<String> = generator.named().iter().map(ToString::to_string).collect();
    assert_eq!(names, kinds);
    for ((slot, folder), listed) in (1..).zip(&folders).zip(listed) {
        let (digest, wanted) = expected(folder);
        assert_eq!(listed, (kinds[slot as usize - 1], digest));
        let logits = generator.start(slot.into(), slot, &PROMPT).unwrap();
        let apart = logits.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // The node holds the base in bf16 where the processor multiplies it.
        assert!(apart < 0.1, "{}: {apart}", folder.display());
    }
    let bare = generator.start(77, 0, &PROMPT).unwrap();
    assert_ne!(bare, generator.start(78, 2, &PROMPT).unwrap());
}

#[test]
fn an_adapter_has_one_digest_in_both_formats_and_another_when_its_alpha_changes() {
    let room = Room::new();
    let theirs = room.pythons("lora");
    let sizes = load_llama(&golden("base")).unwrap().config;
    let of = AdapterBase { name: "tiny", digest: Some(room.weights), sizes: &sizes };
    let (peft, set) = import(&theirs, &of).unwrap();
    export(&room.path("ours"), Format::Manifest, &of, &peft, &set).unwrap();
    let digest = |name: &str| room.brain(&[name], &[]).unwrap().model.adapters[0].digest;
    let first = digest("lora");
    assert_eq!(digest("ours"), first);
    change(&theirs, |config| config["lora_alpha"] = json!(1.5));
    assert_ne!(digest("lora"), first);
}

#[test]
fn what_is_wrong_with_an_adapter_is_said_at_start() {
    let room = Room::new();
    room.pythons("lora");
    assert!(room.brain(&["lora"], &[]).is_ok());
    let lora = PeftConfig::lora(LoraConfig::default());
    room.own("own", &lora, room.weights);
    assert!(room.brain(&["lora", "own"], &[]).is_ok());

    room.own("other", &lora, Digest([3; 32]));
    let text = room.refused("other", &[]);
    assert!(text.contains("is for the base 0303") && text.contains(&room.weights.to_string()));

    let text = room.refused("nowhere", &[]);
    assert!(text.contains("adapter_config.json"), "{text}");

    let rank = room.pythons("rslora");
    change(&rank, |config| config["r"] = json!(0));
    let text = room.refused("rslora", &[]);
    assert!(text.contains("[0, ") || text.contains("rank"), "{text}");

    let nan = room.path("own/adapter.safetensors");
    let mut bytes = fs::read(&nan).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&nan, bytes).unwrap();
    let text = room.refused("own", &[]);
    assert!(text.contains("lora_b") && text.contains("a value that is not finite"), "{text}");

    // Another shape of the same number of values.
    let shapes = room.pythons("lora_all");
    let file = shapes.join("adapter_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let key = b"\"shape\":[";
    let start = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    let len = bytes[start..].iter().position(|byte| *byte == b']').unwrap();
    let shape = String::from_utf8(bytes[start..start + len].to_vec()).unwrap();
    let (rank, width) = shape.split_once(',').unwrap();
    bytes[start..start + len].copy_from_slice(format!("{width},{rank}").as_bytes());
    fs::write(&file, bytes).unwrap();
    let text = room.refused("lora_all", &[]);
    assert!(text.contains(&format!("[{width}, {rank}]")), "{text}");
}

#[test]
fn adapters_that_take_too_much_memory_together_are_refused_and_one_alone_is_not() {
    let room = Room::new();
    // 2 blocks x 4096 x 32 values: one MiB.
    let prompts = PeftConfig { deep_prompts: 4_096, ..PeftConfig::none() };
    room.own("big", &prompts, room.weights);
    room.pythons("lora");
    let cap = "limits.adapters_mib=1";
    assert!(room.brain(&["big"], &[cap]).is_ok());
    let text = room.refused("big", &[cap]);
    assert!(text.contains("limits.adapters_mib = 1"), "{text}");
    assert!(room.brain(&["lora", "big"], &["limits.adapters_mib=2"]).is_ok());
}

#[test]
fn the_command_infer_writes_with_an_adapter() {
    let room = Room::new();
    let adapter = room.pythons("lora_all");
    let infer = |more: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
            .args(["infer", "w3 w9", "--json", "--max-tokens", "6", "--precision", "f32"])
            .args(["--model".as_ref(), room.path("tiny.toml").as_os_str()])
            .args(["--key".as_ref(), room.path("release.pem").as_os_str()])
            .args(more)
            .output()
            .unwrap();
        (
            done.status.code(),
            String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned(),
        )
    };
    let parse = |(code, text): (Option<i32>, String)| {
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let bare = parse(infer(&[]));
    let changed = parse(infer(&["--adapter", adapter.to_str().unwrap()]));
    assert_eq!(bare["adapter_digest"], Value::Null);
    assert_eq!(changed["adapter_digest"], expected(&adapter).0.to_string());
    assert_ne!(bare["text"], changed["text"]);
    room.own("other", &PeftConfig::lora(LoraConfig::default()), Digest([3; 32]));
    let (code, text) = infer(&["--adapter", room.path("other").to_str().unwrap()]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("is for the base 0303"), "{text}");
}
