//! Adapters go to Hugging Face's peft and back, and both sides answer alike.
//!
//! tests/golden/peft holds what `tests/peft/peer.py make .` wrote there (transformers 5.24, peft 0.21).
//! Tests that run Python need the environment of `benches/peers/make-venv` and are skipped, counted,
//! where it is absent.
#![cfg(feature = "torch")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gaisnet::ids::Digest;
use gaisnet::learn::TensorSet;
use gaisnet::torch::PeftConfig;
use gaisnet::torch::adapter::AdapterPlan;
use gaisnet::torch::huggingface::load_llama;
use gaisnet::torch::language::{LanguageBase, Precision, TokenBatch};
use gaisnet::torch::peft_format::{AdapterBase, Format, export, import};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const NAMES: [&str; 7] = ["ia3", "ia3_inputs", "lora", "lora_all", "prefix", "prompts", "rslora"];
/// Logits of a model with f32 weights, two programs apart.
const TOLERANCE: f64 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft")
}

fn load(folder: &Path) -> LanguageBase {
    let loaded = load_llama(folder).unwrap();
    LanguageBase::new(loaded.config, loaded.weights, Precision::F32, Device::Cpu).unwrap()
}

fn digest(folder: &Path) -> Digest {
    Digest::of(&fs::read(folder.join("model.safetensors")).unwrap())
}

fn expected(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

/// Nested lists of numbers as one flat list.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(all) => all.iter().flat_map(flat).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn logits(
    base: &LanguageBase,
    adapter: Option<(&PeftConfig, &TensorSet)>,
    ids: &Value,
) -> Vec<f64> {
    let rows = i64::try_from(ids.as_array().unwrap().len()).unwrap();
    let ids = Tensor::from_slice(&flat(ids)).to_kind(Kind::Int64).reshape([rows, -1]);
    let attached = adapter.map(|(peft, set)| {
        let plan = AdapterPlan::new(&base.weights().layout(), peft).unwrap();
        plan.attach(&plan.flatten(set).unwrap()).unwrap()
    });
    let model = base.model(attached.as_ref()).unwrap();
    let batch = TokenBatch { ids, positions: None, segments: None };
    let logits = model.logits(&model.hidden(&batch).unwrap()).unwrap();
    Vec::<f64>::try_from(logits.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Imports each of peft's adapters and compares the logits; each must also change something.
fn ours_answers_as_theirs(folder: &Path) {
    let base = load(&folder.join("base"));
    let (theirs, at) = (expected(folder), digest(&folder.join("base")));
    let bare = logits(&base, None, &theirs["ids"]);
    assert!(distance(&bare, &flat(&theirs["logits"]["base"])) < TOLERANCE);
    let identity = AdapterBase { name: "base", digest: Some(at), sizes: base.config() };
    for name in NAMES {
        let (peft, set) = import(&folder.join(name), &identity).unwrap();
        let ours = logits(&base, Some((&peft, &set)), &theirs["ids"]);
        let apart = distance(&ours, &flat(&theirs["logits"][name]));
        println!("{name}: {apart:.1e} apart, {:.1} from the bare base", distance(&ours, &bare));
        assert!(apart < TOLERANCE, "{name}: {apart}");
        assert!(distance(&ours, &bare) > 0.1, "{name} changes nothing");
    }
}

/// Python with peft, or a counted skip.
fn python() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let venv = std::env::var_os("GAISNET_PEERS_VENV").map(PathBuf::from);
    let venv = venv.or_else(|| Some(cache?.join("gaisnet/peers-venv")));
    let python = venv.map(|venv| venv.join("bin/python")).filter(|python| python.is_file());
    if python.is_none() {
        support::skip("transformers and peft are missing (benches/peers/make-venv)");
    }
    python
}

fn peer(python: &Path, args: &[&Path]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft/peer.py");
    let mut command = Command::new(python);
    command.arg(script).args(args).env("HF_HUB_OFFLINE", "1").env("OMP_NUM_THREADS", "1");
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn adapters_that_peft_wrote_answer_here_as_they_do_there() {
    ours_answers_as_theirs(&golden());
}

#[test]
fn adapters_that_peft_writes_today_answer_here_as_they_do_there() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    peer(&python, &["make".as_ref(), dir.path()]);
    ours_answers_as_theirs(dir.path());
}

#[test]
fn adapters_that_are_written_here_answer_in_peft_as_they_do_here() {
    let Some(python) = python() else { return };
    let (dir, folder) = (tempfile::tempdir().unwrap(), golden().join("base"));
    let base = load(&folder);
    let identity =
        AdapterBase { name: "tiny-llama", digest: Some(digest(&folder)), sizes: base.config() };
    let ids = expected(&golden())["ids"].clone();
    let mut ours = Vec::new();
    for name in NAMES {
        let (peft, mut set) = import(&golden().join(name), &identity).unwrap();
        // Other values than those that came from there.
        set.values_mut().for_each(|v| v.iter_mut().for_each(|x| *x = *x * 0.8 + 0.01));
        export(&dir.path().join(name), Format::Peft, &identity, &peft, &set).unwrap();
        ours.push((name, logits(&base, Some((&peft, &set)), &ids)));
        let again = import(&dir.path().join(name), &identity).unwrap();
        assert_eq!(again, (peft, set), "{name}");
    }
    peer(&python, &["read".as_ref(), &folder, dir.path()]);
    let theirs = expected(dir.path());
    for (name, ours) in ours {
        let apart = distance(&ours, &flat(&theirs["logits"][name]));
        println!("{name}: {apart:.1e} apart");
        assert!(apart < TOLERANCE, "{name}: {apart}");
    }
}
