//! Two of the five comparisons as commands, with few examples: each cell has its record, a second run does
//! none again, and nothing is claimed of what wasn't run.
#![cfg(all(feature = "cli", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use gaisnet::data::images::ImageSet;
use serde_json::Value;

/// Nothing is fetched by tests.
fn sets_are_there() -> bool {
    let cache = Cache::from_env().unwrap();
    let images = ImageSet::ALL.iter().all(|set| set.cached(&cache).unwrap().is_some());
    let there = images && Bearings::cached(&cache).is_some();
    if !there {
        support::skip("a set is missing: gaisnet data fetch bearings, fashion-mnist and mnist");
    }
    there
}

fn program(experiment: &str, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaisnet"));
    command.args(["experiment", "run", experiment, "--quick", "--json", "--out"]);
    command.arg(out).args(more).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

fn told(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} {errors}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_comparison_goes_on_cell_by_cell() {
    if !sets_are_there() {
        return;
    }
    let room = tempfile::tempdir().unwrap();
    let out = room.path().join("out");
    let one = told(&program("paper-a", &out, &["--cell", "bearings-random-lora-1"]));
    let state = |json: &Value, name: &str| {
        let cells = json["cells"].as_array().unwrap();
        cells.iter().find(|cell| cell["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!(state(&one, "bearings-random-lora-1"), "finished");
    assert_eq!(state(&one, "bearings-random-full-1"), "not run");
    let record = out.join("bearings-random-lora-1").join("record.json");
    let before = std::fs::read(&record).unwrap();

    let refused = program("paper-a", &out, &[]);
    assert!(!refused.status.success(), "without --resume the folder is left alone");
    let all = told(&program("paper-a", &out, &["--resume"]));
    assert_eq!(std::fs::read(&record).unwrap(), before, "what was done stays");
    for cell in all["cells"].as_array().unwrap() {
        assert_eq!(cell["state"], "finished", "{cell}");
        let record = &cell["record"];
        assert_eq!(record["audit"]["verified"], true);
        assert_eq!(record["config"].as_str().unwrap().len(), 64);
        assert!(record["cell"]["seed"].is_u64() && record["machine"].is_string());
    }
    let arms = all["arms"].as_array().unwrap();
    assert_eq!(arms.len(), 8, "four on bearings, four on images");
    assert!(arms.iter().all(|arm| arm["device_up_bytes_per_round"].as_u64().unwrap() > 0));
    for name in ["paper-a.json", "paper-a.html"] {
        assert!(out.join(name).exists(), "{name}");
    }
}

#[test]
fn costs_are_measured_in_processes_of_their_own() {
    if !sets_are_there() {
        return;
    }
    let room = tempfile::tempdir().unwrap();
    let all = told(&program("paper-c", &room.path().join("out"), &[]));
    let arm = |name: &str| {
        let arms = all["arms"].as_array().unwrap();
        arms.iter().find(|arm| arm["arm"] == name).unwrap().clone()
    };
    let (fl, hybrid) = (arm("bearings-fl"), arm("bearings-hfsl"));
    assert_eq!(fl["share_on_device"], 1.0);
    assert!(hybrid["share_on_device"].as_f64().unwrap() < 0.2);
    assert!(hybrid["share_trained_on_device"].as_f64().unwrap() < 0.2);
    let up = |arm: &Value| arm["device_up_bytes_per_round"].as_u64().unwrap();
    assert!(up(&hybrid) > up(&fl), "frames");
    assert!(up(&arm("bearings-hfsl-f32")) > 2 * up(&hybrid), "of f32");
    assert_eq!(arm("bearings-cloud")["device_up_bytes_per_round"], Value::Null);
    for name in ["bearings-fl", "bearings-sl", "bearings-cloud", "fashion-mnist-fl"] {
        assert!(arm(name)["peak_memory_mib"].as_f64().unwrap() > 10.0, "{name}");
    }
    assert_eq!(all["checks"].as_array().unwrap().len(), 5);
}
