//! The adopted models as they are: token ids, logits and vectors against reference values.
//!
//! They aren't in the repository: `gaisnet model fetch smollm2-135m` and `minilm-l6` bring them. Where
//! they aren't in the cache, a test says so and is counted.
#![cfg(all(feature = "torch", feature = "cli"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::path::PathBuf;

use gaisnet::data::Cache;
use gaisnet::torch::adopted::{AdoptedBase, AdoptedCard};
use gaisnet::torch::encoder::Encoder;
use gaisnet::torch::language::{LanguageBase, Precision, TokenBatch};
use gaisnet::torch::parts::Parts;
use gaisnet::torch::{load_adopted, shipped};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// A base from the user's cache, loaded as a node loads it; `None`, counted, where it isn't.
fn base(name: &str) -> Option<(AdoptedCard, AdoptedBase)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("models/{name}.toml"));
    let cache = Cache::from_env().unwrap().models();
    match load_adopted(&path, &shipped::trust().unwrap(), &cache) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == "not_fetched" => {
            support::skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn ids_of(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn smollm2_gives_the_reference_ids_logits_and_likelihoods() {
    let golden: Value = serde_json::from_str(include_str!("golden/smollm2-135m.json")).unwrap();
    let Some((card, AdoptedBase::Language(loaded))) = base("smollm2-135m") else { return };
    assert_eq!(
        card.digest().to_string(),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    );
    let row = |name: &str, rows: i64, at: i64| {
        let row = loaded.weights.get(name, &[rows, 576]).unwrap().get(at);
        (0..4).map(|i| row.double_value(&[i])).collect::<Vec<f64>>()
    };
    let near = |a: &[f64], b: &[f64], by: f64| {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= by), "{a:?} {b:?}");
    };
    near(&row("embed.weight", 49_152, 1_000), &numbers(&golden["embedding_row_1000"]), 1e-6);
    near(&row("blocks.0.attn.q.weight", 576, 0), &numbers(&golden["q_of_block_0_row_0"]), 1e-6);
    let tokenizer = loaded.tokenizer;
    let base =
        LanguageBase::new(loaded.config, loaded.weights, Precision::F32, Device::Cpu).unwrap();
    let model = base.model(None).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<i64> = tokenizer.encode(text).unwrap().into_iter().map(i64::from).collect();
        let wanted = ids_of(&case["ids"]);
        assert_eq!(ids, wanted, "{text}");
        let short: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
        assert_eq!(tokenizer.decode(&short).unwrap(), text);
        let _guard = tch::no_grad_guard();
        let ids = Tensor::from_slice(&ids).unsqueeze(0);
        let batch = TokenBatch { ids: ids.shallow_clone(), positions: None, segments: None };
        let logits = model.logits(&model.hidden(&batch).unwrap()).unwrap().squeeze_dim(0);
        let (top, at) = logits.get(-1).topk(5, 0, true, true);
        let top_ids: Vec<i64> = (0..5).map(|i| at.int64_value(&[i])).collect();
        let wanted = ids_of(&case["last_top5_ids"]);
        assert_eq!(top_ids, wanted, "{text}");
        let top: Vec<f64> = (0..5).map(|i| top.double_value(&[i])).collect();
        near(&top, &numbers(&case["last_top5_logits"]), 2e-3);
        let tokens = ids.size()[1];
        let log = logits.narrow(0, 0, tokens - 1).log_softmax(-1, Kind::Double);
        let picked =
            log.gather(1, &ids.squeeze_dim(0).narrow(0, 1, tokens - 1).unsqueeze(1), false);
        let nll = -picked.sum(Kind::Double).double_value(&[]);
        near(&[nll], &[case["sum_nll_nats"].as_f64().unwrap()], 1e-3);
    }
}

#[test]
fn minilm_knows_which_work_orders_mean_the_same() {
    let Some((_, AdoptedBase::Encoder(loaded))) = base("minilm-l6") else { return };
    let texts =
        ["hydraulic hose leaking oil", "oil leak from hydraulic line", "replace broken seat belt"];
    let rows: Vec<_> = texts.iter().map(|text| loaded.tokenizer.encode(text).unwrap()).collect();
    let encoder = Encoder::new(&Parts::bare(&loaded.weights), &loaded.config).unwrap();
    let vectors = encoder.vectors(&rows).unwrap();
    let cosine = |a: i64, b: i64| vectors.get(a).dot(&vectors.get(b)).double_value(&[]);
    assert!((cosine(0, 1) - 0.84).abs() < 0.006, "{}", cosine(0, 1));
    assert!((cosine(0, 2) - 0.04).abs() < 0.006, "{}", cosine(0, 2));
    assert!((cosine(0, 0) - 1.0).abs() < 1e-5);
    // Alone or side by side: the filler changes nothing.
    let alone = encoder.vectors(&rows[2..]).unwrap();
    assert!((alone.get(0) - vectors.get(2)).abs().max().double_value(&[]) < 1e-5);
}
