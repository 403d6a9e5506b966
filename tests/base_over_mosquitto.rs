//! A base goes from the cloud to an edge and from there to a device, through a real mosquitto and the real program,
//! while one side after the other is killed.
#![cfg(all(feature = "cli", feature = "torch", feature = "web"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gaisnet::bus::Bus;
use gaisnet::learn::{Tensor, TensorSet};
use gaisnet::rng::Stream;
use gaisnet::torch::safetensors;
use support::process::{Federation, Running, gaisnet, page_says, text, wait_for};
use support::{Mosquitto, Peer};

/// Small chunks, so that there is a middle to kill in.
const CHUNK_BYTES: u64 = 4_096;

/// Writes a Llama of about 6 MB with random weights, as Hugging Face's folders have it.
fn write_model(folder: &Path) {
    let (wide, narrow, vocab) = (512, 256, 12);
    let mut stream = Stream::new(1, "tests/base");
    let mut tensor = |name: &str, shape: &[usize]| {
        let norm = shape.len() == 1;
        let size: usize = shape.iter().product();
        let draw = |_| if norm { 1.0 } else { 0.05 * stream.normal() as f32 };
        Tensor { name: name.into(), shape: shape.into(), data: (0..size).map(draw).collect() }
    };
    let block = "model.layers.0";
    let tensors = vec![
        tensor("model.embed_tokens.weight", &[vocab, wide]),
        tensor(&format!("{block}.input_layernorm.weight"), &[wide]),
        tensor(&format!("{block}.self_attn.q_proj.weight"), &[wide, wide]),
        tensor(&format!("{block}.self_attn.k_proj.weight"), &[narrow, wide]),
        tensor(&format!("{block}.self_attn.v_proj.weight"), &[narrow, wide]),
        tensor(&format!("{block}.self_attn.o_proj.weight"), &[wide, wide]),
        tensor(&format!("{block}.post_attention_layernorm.weight"), &[wide]),
        tensor(&format!("{block}.mlp.gate_proj.weight"), &[wide, wide]),
        tensor(&format!("{block}.mlp.up_proj.weight"), &[wide, wide]),
        tensor(&format!("{block}.mlp.down_proj.weight"), &[wide, wide]),
        tensor("model.norm.weight", &[wide]),
    ];
    let weights = safetensors::encode(&TensorSet::new(tensors).unwrap()).unwrap();
    let config = r#"{"architectures":["LlamaForCausalLM"],"attention_bias":false,"bos_token_id":2,"eos_token_id":3,
        "head_dim":128,"hidden_act":"silu","hidden_size":512,"intermediate_size":512,"max_position_embeddings":32,
        "mlp_bias":false,"model_type":"llama","num_attention_heads":4,"num_hidden_layers":1,"num_key_value_heads":2,
        "rms_norm_eps":1e-05,"rope_theta":5000.0,"tie_word_embeddings":true,"vocab_size":12}"#;
    let tokenizer = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"[PAD]":0,
        "[UNK]":1,"[CLS]":2,"[SEP]":3,"oil":4,"leak":5,"on":6,"hydraulic":7,"hose":8,"line":9,"\n":10},
        "unk_token":"[UNK]"}}"#;
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
}

/// A cloud that has a signed base, an edge and a device that have its card only.
struct Chain {
    federation: Federation,
    port: u16,
}

impl Chain {
    fn new(port: u16) -> Self {
        let federation = Federation::with_cloud();
        federation.init(&["edge", "--name", "edge-n", "--site", "north", "--parent", "cloud"]);
        federation.init(&["device", "--name", "p1", "--site", "north", "--parent", "edge-n"]);
        let model = federation.path("model");
        write_model(Path::new(&model));
        let (key, cards) = (federation.path("release/release.pem"), federation.path("cards"));
        std::fs::create_dir(&cards).unwrap();
        for line in [
            &["keys", "new", &key][..],
            &["model", "import", &model, "--name", "tiny", "--licence", "MIT", "--made", "here"],
            &["model", "sign", &format!("{model}/tiny.toml"), "--key", &key],
        ] {
            let done = gaisnet(line);
            assert!(done.status.success(), "{line:?}: {}", text(&done));
        }
        for name in ["tiny.toml", "tiny.sig"] {
            std::fs::copy(format!("{model}/{name}"), format!("{cards}/{name}")).unwrap();
        }
        Self { federation, port }
    }

    fn run(&self, node: &str, folder: &str) -> Running {
        let path = |name: &str| self.federation.path(name);
        let settings = [
            "model.learner=language".to_owned(),
            format!("model.base={}/tiny.toml", path(folder)),
            format!("model.release_key={}", path("release/release.pub.pem")),
            format!("data.cache={}", path(&format!("{node}-cache"))),
            format!("bus.site.chunk_bytes={CHUNK_BYTES}"),
            "telemetry.metrics_listen=127.0.0.1:0".to_owned(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        self.federation.run(node, self.port, &settings)
    }

    /// The node's unfinished weights, which are the only file that is larger than a few chunks.
    fn unfinished(&self, node: &str) -> u64 {
        let folder = self.federation.path(&format!("{node}-cache/models/unfinished"));
        let files = std::fs::read_dir(folder).into_iter().flatten();
        files.map(|file| file.unwrap().metadata().map_or(0, |m| m.len())).max().unwrap_or(0)
    }

    fn wait_for_bytes(&self, node: &str, bytes: u64) {
        wait_for("the middle", || match self.unfinished(node) {
            have if have >= bytes => Ok(()),
            have => Err(format!("{have} of {bytes} bytes")),
        });
    }

    fn has_the_base(&self, node: &str) {
        let models = PathBuf::from(self.federation.path(&format!("{node}-cache/models")));
        let folder =
            |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("tiny-");
        let entries = std::fs::read_dir(&models).unwrap().map(Result::unwrap);
        let folder = entries.into_iter().find(folder).expect("a folder of the base").path();
        for name in ["config.json", "tokenizer.json", "model.safetensors", "tiny.toml", "tiny.sig"]
        {
            let original = std::fs::read(self.federation.path(&format!("model/{name}"))).unwrap();
            assert!(std::fs::read(folder.join(name)).unwrap() == original, "{name} differs");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_goes_down_the_tree_over_kills_of_both_sides_and_the_nodes_take_part_then() {
    let Some(broker) = Mosquitto::start() else { return };
    let chain = Chain::new(broker.port);
    let mut watch = Peer::up(broker.port, "watch").await;
    watch.bus.subscribe(&["gaisnet/v1/north/_/edge-n/status".to_owned()]).unwrap();
    let mut chunks = Peer::up(broker.port, "chunks").await;
    chunks.bus.subscribe(&["gaisnet/v1/_/_/cloud/to/edge-n/base".to_owned()]).unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            chunks.delivery().await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });

    // The edge is there first, and waits.
    let mut edge = chain.run("edge-n", "cards");
    let page = edge.page();
    edge.says("is fetching its base tiny");
    let answer = page_says(&page, "/readyz", 503);
    wait_for("the reason", || {
        let (_, answer) = support::process::get(&page, "/readyz");
        let told = answer.contains("the base tiny is being fetched from cloud: 0 %");
        if told { Ok(()) } else { Err(answer) }
    });
    assert!(!answer.contains("\"ready\":true"));
    loop {
        let (_, payload, _) = watch.delivery().await;
        if payload.contains(r#""online":true"#) {
            assert!(payload.contains(r#""fetching_base":0"#), "{payload}");
            break;
        }
    }
    let mut cloud = chain.run("cloud", "model");
    chain.wait_for_bytes("edge-n", 1_000_000);
    edge.kill();
    let kept = chain.unfinished("edge-n");
    assert!(kept >= 1_000_000);
    let mut edge = chain.run("edge-n", "cards");
    chain.wait_for_bytes("edge-n", kept + 500_000);
    cloud.kill();
    let mut cloud = chain.run("cloud", "model");
    let page = edge.page();
    edge.says("is running");
    page_says(&page, "/readyz", 200);
    chain.has_the_base("edge-n");

    // Three ends cost what was on its way, not the file again.
    let weights =
        std::fs::metadata(chain.federation.path("model/model.safetensors")).unwrap().len();
    let whole = weights.div_ceil(CHUNK_BYTES) + 2;
    let seen = seen.load(Ordering::Relaxed);
    assert!((whole..whole + 100).contains(&seen), "{seen} chunks for {whole}");

    // The edge gives on what it got.
    let mut device = chain.run("p1", "cards");
    device.says("is running");
    chain.has_the_base("p1");
    assert_eq!(device.terminate(), Some(0), "{}", device.log());
    assert_eq!(edge.terminate(), Some(0), "{}", edge.log());
    assert_eq!(cloud.terminate(), Some(0), "{}", cloud.log());
}

#[test]
fn a_node_that_may_not_ask_its_parent_says_how_the_base_can_be_had() {
    let chain = Chain::new(support::free_port());
    let cache = format!("data.cache={}", chain.federation.path("p1-cache"));
    let base = format!("model.base={}/tiny.toml", chain.federation.path("cards"));
    let key = format!("model.release_key={}", chain.federation.path("release/release.pub.pem"));
    let set = ["model.learner=language", &base, &key, &cache, "model.from_parent=false"];
    let mut device = chain.federation.run("p1", chain.port, &set);
    assert_ne!(device.ends(), Some(0));
    assert!(device.log().contains("gaisnet model fetch"), "{}", device.log());
}
