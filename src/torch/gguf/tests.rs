//! Small files made by the crate's own writer, and the same files spoilt.

use ggml_quants::{bf16, f16};
use gguf_rs_lib::builder::gguf_builder::GGUFBuilder;
use gguf_rs_lib::format::{GGUFTensorType, GGUFValueType, MetadataArray};

use super::*;
use crate::torch::values;

fn texts(all: &[&str]) -> MetadataValue {
    let values = all.iter().map(|text| MetadataValue::String((*text).to_owned())).collect();
    array(GGUFValueType::String, values)
}

fn array(kind: GGUFValueType, values: Vec<MetadataValue>) -> MetadataValue {
    MetadataValue::Array(Box::new(MetadataArray::new(kind, values).unwrap()))
}

/// Metadata and tensors of a file; a test changes what it wants.
struct Draft {
    metadata: BTreeMap<String, MetadataValue>,
    /// Name, sizes from the innermost out, format, bytes.
    tensors: Vec<(String, Vec<u64>, GGUFTensorType, Vec<u8>)>,
}

/// d 32, one block, 2 heads of 16, 1 head of keys, 9 tokens.
fn draft() -> Draft {
    let number = MetadataValue::U32;
    let text = |text: &str| MetadataValue::String(text.to_owned());
    let kinds = [3, 1, 1, 1, 1, 1, 1, 1, 1].map(MetadataValue::I32).to_vec();
    let metadata = [
        ("general.architecture", text("llama")),
        ("llama.block_count", number(1)),
        ("llama.context_length", number(64)),
        ("llama.embedding_length", number(32)),
        ("llama.feed_forward_length", number(3)),
        ("llama.attention.head_count", number(2)),
        ("llama.attention.head_count_kv", number(1)),
        ("llama.rope.freq_base", MetadataValue::F32(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", MetadataValue::F32(1e-5)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        (TOKENS, texts(&["<end>", "a", "b", "1", "2", "Ġ", "ab", "Ġab", "12"])),
        ("tokenizer.ggml.token_type", array(GGUFValueType::I32, kinds)),
        ("tokenizer.ggml.merges", texts(&["a b", "Ġ ab", "1 2"])),
        ("tokenizer.ggml.eos_token_id", number(0)),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let shapes: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[32, 9]),
        ("output_norm.weight", &[32]),
        ("blk.0.attn_norm.weight", &[32]),
        ("blk.0.attn_q.weight", &[32, 32]),
        ("blk.0.attn_k.weight", &[32, 16]),
        ("blk.0.attn_v.weight", &[32, 16]),
        ("blk.0.attn_output.weight", &[32, 32]),
        ("blk.0.ffn_norm.weight", &[32]),
        ("blk.0.ffn_gate.weight", &[32, 3]),
        ("blk.0.ffn_up.weight", &[32, 3]),
        ("blk.0.ffn_down.weight", &[3, 32]),
    ];
    // Each value is the number of its row.
    let rows = |sizes: &[u64]| {
        let (width, count) = (sizes[0], sizes.iter().skip(1).product::<u64>());
        let row = |r: u64| {
            let value = f32::from(u16::try_from(r).unwrap()).to_le_bytes();
            value.repeat(usize::try_from(width).unwrap())
        };
        (0..count).flat_map(row).collect::<Vec<u8>>()
    };
    let tensors = shapes
        .map(|(name, sizes)| (name.to_owned(), sizes.to_vec(), GGUFTensorType::F32, rows(sizes)));
    Draft { metadata, tensors: tensors.to_vec() }
}

impl Draft {
    fn bytes(self) -> Vec<u8> {
        let mut builder = GGUFBuilder::new();
        for (key, value) in self.metadata {
            builder = builder.add_metadata(key, value);
        }
        for (name, sizes, kind, data) in self.tensors {
            builder = builder.add_tensor(name, sizes, kind, data).unwrap();
        }
        builder.build_to_bytes().unwrap().0
    }
}

fn refused(change: impl FnOnce(&mut Draft)) -> &'static str {
    let mut draft = draft();
    change(&mut draft);
    read_gguf(draft.bytes().as_slice()).map_or_else(|e| e.kind(), |_| "ok")
}

fn set(key: &'static str, value: MetadataValue) -> impl FnOnce(&mut Draft) {
    move |draft| drop(draft.metadata.insert(key.to_owned(), value))
}

#[test]
fn sizes_tokenizer_and_weights_come_out_of_one_file() {
    let loaded = read_gguf(draft().bytes().as_slice()).unwrap();
    let config = LanguageConfig {
        vocab: 9,
        d_model: 32,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        d_ff: 3,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        context: 64,
        tied: true,
    };
    assert_eq!(loaded.config, config);
    assert_eq!(loaded.weights.layout(), config.layout());
    assert_eq!(loaded.tokenizer.encode("ab ab12<end>").unwrap(), [6, 7, 3, 4, 0]);
    assert_eq!(loaded.tokenizer.eos(), Some(0));
}

#[test]
fn rows_of_q_and_k_are_brought_in_order_and_those_of_v_are_in_order() {
    let loaded = read_gguf(draft().bytes().as_slice()).unwrap();
    let first_column = |name: &str, rows: i64| -> Vec<f32> {
        let all = values(&loaded.weights.get(name, &[rows, 32]).unwrap()).unwrap();
        all.chunks(32).map(|row| row[0]).collect()
    };
    let head = [0., 2., 4., 6., 8., 10., 12., 14., 1., 3., 5., 7., 9., 11., 13., 15.];
    let both: Vec<f32> = head.into_iter().chain(head.map(|row| row + 16.0)).collect();
    assert_eq!(first_column("blocks.0.attn.q.weight", 32), both);
    assert_eq!(first_column("blocks.0.attn.k.weight", 16), head);
    let plain: Vec<f32> = (0_u8..16).map(f32::from).collect();
    assert_eq!(first_column("blocks.0.attn.v.weight", 16), plain);
}

/// A block of each format, and its values by the format's own formula.
#[test]
fn quantised_blocks_become_the_numbers_that_their_formats_define() {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    let quants: Vec<u8> = (0_u8..16).map(|i| i | ((15 - i) << 4)).collect();
    let nibble = |i: usize| if i < 16 { i } else { 31 - i };
    let high = 0b1010_0110_0000_1111_0101_0000_1111_0000_u32;
    let five = |i: usize| nibble(i) + 16 * usize::from(high >> i & 1 == 1);
    let number = |n: usize| f32::from(u8::try_from(n).unwrap());
    let check = |kind, bytes: Vec<u8>, expected: &dyn Fn(usize) -> f32| {
        let got = dequantise("x", kind, &bytes).unwrap();
        assert_eq!(got.len(), 32);
        for (i, x) in got.into_iter().enumerate() {
            assert!((x - expected(i)).abs() < 1e-6, "{kind:?} {i}: {x} {}", expected(i));
        }
    };
    let (d, m) = (half(0.5), half(-1.25));
    let high_bytes = high.to_le_bytes();
    check(GGUFTensorType::Q4_0, [&d, quants.as_slice()].concat(), &|i| {
        0.5 * (number(nibble(i)) - 8.0)
    });
    check(GGUFTensorType::Q4_1, [&d, &m, quants.as_slice()].concat(), &|i| {
        0.5 * number(nibble(i)) - 1.25
    });
    let bytes = [&d, high_bytes.as_slice(), quants.as_slice()].concat();
    check(GGUFTensorType::Q5_0, bytes, &|i| 0.5 * (number(five(i)) - 16.0));
    let bytes = [&d, m.as_slice(), high_bytes.as_slice(), quants.as_slice()].concat();
    check(GGUFTensorType::Q5_1, bytes, &|i| 0.5 * number(five(i)) - 1.25);
    let signed: Vec<u8> = (0_i8..32).map(|i| (i * 4 - 64).cast_unsigned()).collect();
    check(GGUFTensorType::Q8_0, [&d, signed.as_slice()].concat(), &|i| {
        0.5 * (4.0 * number(i) - 64.0)
    });
    let halves: Vec<u8> = (0_u8..32).flat_map(|i| half(f32::from(i) / 4.0)).collect();
    check(GGUFTensorType::F16, halves, &|i| number(i) / 4.0);
    let brains = (0_u8..32).flat_map(|i| bf16::from_f32(f32::from(i) * 2.0).to_le_bytes());
    check(GGUFTensorType::BF16, brains.collect(), &|i| number(i) * 2.0);
}

#[test]
fn what_is_not_a_model_of_this_kind_is_refused() {
    let text = |text: &str| MetadataValue::String(text.to_owned());
    let number = MetadataValue::U32;
    assert_eq!(refused(|_| ()), "ok");
    assert_eq!(refused(set("general.architecture", text("mamba"))), "unsupported");
    assert_eq!(refused(set("tokenizer.ggml.pre", text("llama-bpe"))), "unsupported");
    assert_eq!(refused(set("llama.rope.scaling.type", text("yarn"))), "unsupported");
    assert_eq!(refused(set("llama.rope.dimension_count", number(8))), "unsupported");
    let bos = MetadataValue::Bool(true);
    assert_eq!(refused(set("tokenizer.ggml.add_bos_token", bos)), "unsupported");
    assert_eq!(refused(set("llama.block_count", number(0))), "out_of_range");
    assert_eq!(refused(set("llama.block_count", number(u32::MAX))), "out_of_range");
    assert_eq!(refused(set("llama.embedding_length", number(u32::MAX))), "out_of_range");
    assert_eq!(refused(set("llama.block_count", MetadataValue::U64(u64::MAX))), "bad_gguf");
    assert_eq!(refused(|d| drop(d.metadata.remove("llama.context_length"))), "bad_gguf");
    assert_eq!(refused(|d| drop(d.tensors.remove(0))), "bad_gguf");
    assert_eq!(refused(|d| drop(d.tensors.remove(1))), "layout_mismatch");
    assert_eq!(refused(|d| d.tensors[3].1 = vec![16, 64]), "layout_mismatch");
    assert_eq!(refused(|d| d.tensors[1].0 = "blk.0.attn_q.bias".into()), "layout_mismatch");
    assert_eq!(refused(|d| d.tensors[1].0 = "../../etc/passwd".into()), "layout_mismatch");
    let nan = |d: &mut Draft| d.tensors[4].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(refused(nan), "not_finite");
    let k_quants = |d: &mut Draft| {
        d.tensors[2].2 = GGUFTensorType::I32;
    };
    assert_eq!(refused(k_quants), "unsupported");
}

#[test]
fn a_tokenizer_of_another_model_is_refused_with_both_sizes() {
    let mut draft = draft();
    drop(
        draft
            .metadata
            .insert(TOKENS.to_owned(), texts(&["<end>", "a", "b", "1", "2", "Ġ", "ab", "Ġab"])),
    );
    drop(draft.metadata.insert("tokenizer.ggml.merges".to_owned(), texts(&["a b"])));
    let error = read_gguf(draft.bytes().as_slice()).unwrap_err();
    assert_eq!(error.kind(), "other_tokenizer");
    assert!(error.to_string().contains("8 tokens"), "{error}");
}

#[test]
fn a_cut_file_is_an_error_wherever_it_is_cut() {
    let whole = draft().bytes();
    for length in (0..whole.len()).step_by(13) {
        assert_eq!(read_gguf(&whole[..length]).unwrap_err().kind(), "bad_gguf", "{length}");
    }
}

#[test]
fn numbers_that_promise_too_much_cost_nothing() {
    let whole = draft().bytes();
    // tensors and metadata: counts right behind magic and version
    for at in [8, 16] {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(read_gguf(bytes.as_slice()).unwrap_err().kind(), "bad_gguf");
        bytes[at..at + 8].copy_from_slice(&4_000_u64.to_le_bytes());
        assert_eq!(read_gguf(bytes.as_slice()).unwrap_err().kind(), "bad_gguf");
    }
    // the length of the first key
    let mut bytes = whole.clone();
    bytes[24..32].copy_from_slice(&(u64::MAX - 3).to_le_bytes());
    assert_eq!(read_gguf(bytes.as_slice()).unwrap_err().kind(), "bad_gguf");
}

#[test]
fn the_fuzzers_seed_is_a_whole_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gguf/s-tiny");
    let loaded = load_gguf(&path).unwrap();
    assert_eq!(loaded.config.vocab, 9);
}
