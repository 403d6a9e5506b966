//! Tiny models that Hugging Face's own code made and ran (tests/golden/huggingface/make.py), and
//! folders that must not be loaded.

use std::fs;

use safetensors::tensor::TensorView;
use tch::{Device, Tensor};

use super::*;
use crate::torch::encoder::Encoder;
use crate::torch::language::{LanguageBase, Precision, TokenBatch};
use crate::torch::parts::Parts;
use crate::torch::values;
use crate::torch::vision::VisionTransformer;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/huggingface").join(name)
}

fn expected(pointer: &str) -> Vec<f32> {
    let text = fs::read_to_string(golden("expected.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let rows = all.pointer(pointer).unwrap().as_array().unwrap();
    let numbers = rows.iter().flat_map(|row| row.as_array().unwrap());
    #[expect(clippy::cast_possible_truncation, reason = "they were f32")]
    numbers.map(|x| x.as_f64().unwrap() as f32).collect()
}

fn assert_close(actual: &Tensor, expected: &[f32]) {
    let actual = values(actual).unwrap();
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() < 2e-5 * (1.0 + e.abs()), "{a} against {e}");
    }
}

#[test]
fn a_tiny_llama_answers_as_in_its_own_house() {
    let loaded = load_llama(&golden("llama")).unwrap();
    let ids = loaded.tokenizer.encode("oil leak on hydraulic line").unwrap();
    assert_eq!(ids, [4, 5, 6, 7, 9]);
    assert_eq!((loaded.tokenizer.bos(), loaded.tokenizer.eos()), (Some(2), Some(3)));
    let cpu = Device::Cpu;
    let base = LanguageBase::new(loaded.config, loaded.weights, Precision::F32, cpu).unwrap();
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let ids = Tensor::f_from_slice(&ids).unwrap().f_unsqueeze(0).unwrap();
    let model = base.model(None).unwrap();
    let hidden = model.hidden(&TokenBatch { ids, positions: None, segments: None }).unwrap();
    assert_close(&model.logits(&hidden).unwrap(), &expected("/llama/logits"));
}

#[test]
fn a_tiny_bert_gives_the_vectors_of_its_own_house_also_side_by_side() {
    let loaded = load_bert(&golden("bert")).unwrap();
    let texts = ["oil leak on hydraulic line", "hose"];
    let rows: Vec<_> = texts.iter().map(|t| loaded.tokenizer.encode(t).unwrap()).collect();
    assert_eq!(rows, [vec![2, 4, 5, 6, 7, 9, 3], vec![2, 8, 3]]);
    let encoder = Encoder::new(&Parts::bare(&loaded.weights), &loaded.config).unwrap();
    assert_close(&encoder.vectors(&rows).unwrap(), &expected("/bert/vectors"));
    assert_eq!(encoder.vectors(&[vec![]]).unwrap_err().kind(), "out_of_range");
    assert_eq!(encoder.vectors(&[vec![1; 21]]).unwrap_err().kind(), "out_of_range");
    assert_eq!(encoder.vectors(&[vec![12]]).unwrap_err().kind(), "out_of_range");
    assert_eq!(encoder.logits(&rows).unwrap_err().kind(), "layout_mismatch", "no head");
}

#[test]
fn an_encoder_with_a_head_sorts_texts_into_classes() {
    let mut loaded = load_bert(&golden("bert")).unwrap();
    loaded.config.classes = Some(2);
    let mut pick = [0.0_f32; 32];
    (pick[0], pick[16 + 1]) = (1.0, 1.0);
    loaded.weights.insert("head.weight".into(), crate::torch::tensor(&pick, &[2, 16]).unwrap());
    loaded.weights.insert("head.bias".into(), crate::torch::tensor(&[0.5, 0.0], &[2]).unwrap());
    let encoder = Encoder::new(&Parts::bare(&loaded.weights), &loaded.config).unwrap();
    let rows = [vec![2, 8, 3]];
    let logits = values(&encoder.logits(&rows).unwrap()).unwrap();
    let vector = values(&encoder.vectors(&rows).unwrap()).unwrap();
    // The head reads the mean before it is brought to unit length.
    let ratio = (logits[0] - 0.5) / vector[0];
    assert!((logits[1] - ratio * vector[1]).abs() < 1e-5, "{logits:?} {vector:?}");
}

#[test]
fn a_tiny_vit_answers_as_in_its_own_house() {
    let loaded = load_vit(&golden("vit")).unwrap();
    let model = VisionTransformer::new(&Parts::bare(&loaded.weights), &loaded.config).unwrap();
    let image: Vec<f32> = (0_u16..2 * 3 * 8 * 8).map(|i| (f32::from(i) * 0.37).sin()).collect();
    let image = crate::torch::tensor(&image, &[2, 3, 8, 8]).unwrap();
    assert_close(&model.forward(&image).unwrap(), &expected("/vit/logits"));
}

/// A copy of a golden folder that a test may spoil.
fn copy(name: &str) -> tempfile::TempDir {
    let room = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), room.path().join(file.file_name())).unwrap();
    }
    room
}

/// What loading says after the config was edited.
fn after_config(change: impl FnOnce(&mut Value)) -> &'static str {
    let room = copy("llama");
    let path = room.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    load_llama(room.path()).map_or_else(|e| e.kind(), |_| "ok")
}

#[test]
fn sizes_out_of_bounds_and_variants_that_are_not_known_are_refused() {
    assert_eq!(after_config(|_| ()), "ok");
    assert_eq!(after_config(|c| c["hidden_size"] = u64::MAX.into()), "bad_card");
    assert_eq!(after_config(|c| c["hidden_size"] = u32::MAX.into()), "out_of_range");
    assert_eq!(after_config(|c| c["num_hidden_layers"] = 1_000_000_000.into()), "out_of_range");
    assert_eq!(after_config(|c| c["num_attention_heads"] = 0.into()), "out_of_range");
    assert_eq!(after_config(|c| c["rms_norm_eps"] = 0.into()), "out_of_range");
    assert_eq!(after_config(|c| c["vocab_size"] = Value::Null), "bad_card");
    assert_eq!(after_config(|c| c["rope_parameters"]["rope_type"] = "yarn".into()), "unsupported");
    assert_eq!(after_config(|c| c["rope_scaling"] = 2.into()), "unsupported");
    assert_eq!(after_config(|c| c["hidden_act"] = "relu".into()), "unsupported");
    assert_eq!(after_config(|c| c["num_hidden_layers"] = 3.into()), "layout_mismatch");
    assert_eq!(after_config(|c| c["num_hidden_layers"] = 1.into()), "layout_mismatch");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let room = copy("llama");
    let path = room.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"line\":9", "\"line\":12")).unwrap();
    let error = load_llama(room.path()).unwrap_err();
    assert_eq!(error.kind(), "other_tokenizer");
    assert!(error.to_string().contains("13 tokens") && error.to_string().contains("12 rows"));
    assert_eq!(after_config(|c| c["eos_token_id"] = 11.into()), "other_tokenizer");
}

/// Loads the tiny Llama with its file of weights written anew.
fn after_weights(change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) -> String {
    let room = copy("llama");
    let path = room.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file
        .iter()
        .map(|(n, v)| (n.to_owned(), v.dtype(), v.shape().to_vec(), v.data().to_vec()))
        .collect();
    change(&mut all);
    let views = all.iter().map(|(name, dtype, shape, data)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    load_llama(room.path()).map_or_else(|e| e.kind().to_owned(), |_| "ok".to_owned())
}

#[test]
fn weights_that_are_not_those_of_the_model_are_refused() {
    assert_eq!(after_weights(|_| ()), "ok");
    assert_eq!(after_weights(|all| all.truncate(20)), "layout_mismatch");
    assert_eq!(after_weights(|all| all[0].0 = "../../etc/passwd".into()), "bad_name");
    assert_eq!(after_weights(|all| all[0].0 = "model.layers.0.extra".into()), "layout_mismatch");
    let turned = |all: &mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>| {
        let up = all.iter_mut().find(|t| t.0 == "model.layers.0.mlp.up_proj.weight");
        up.unwrap().2.reverse();
    };
    assert_eq!(after_weights(turned), "layout_mismatch");
    let nan = |all: &mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>| {
        all[0].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    assert_eq!(after_weights(nan), "not_finite");
    assert_eq!(after_weights(|all| all[0].1 = Dtype::I32), "bad_dtype");
}

#[test]
fn bfloat16_weights_are_read_as_numbers_of_their_own() {
    let halve = |all: &mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>| {
        for (_, dtype, _, data) in all {
            *dtype = Dtype::BF16;
            let words = data.as_chunks::<4>().0.iter();
            *data = words.flat_map(|[_, _, high, higher]| [*high, *higher]).collect();
        }
    };
    assert_eq!(after_weights(halve), "ok");
    let three = to_f32("x", Dtype::BF16, &[0x40, 0x40]).unwrap();
    assert_eq!(three, [3.0]);
    assert_eq!(to_f32("x", Dtype::F16, &[0x00, 0xc2]).unwrap(), [-3.0]);
}

#[test]
fn cut_files_are_errors_and_pickles_are_never_opened() {
    let room = copy("llama");
    let path = room.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(load_llama(room.path()).unwrap_err().kind(), "malformed", "{length}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(load_llama(room.path()).unwrap_err().kind(), "io");
    fs::write(room.path().join("pytorch_model.bin"), b"\x80\x02ctorch").unwrap();
    let error = load_llama(room.path()).unwrap_err();
    assert_eq!(error.kind(), "pickle");
    assert!(error.to_string().contains("can run a program"), "{error}");
    fs::write(room.path().join("model.safetensors.index.json"), b"{}").unwrap();
    assert_eq!(load_llama(room.path()).unwrap_err().kind(), "unsupported");
}

#[test]
fn the_kind_of_a_folder_is_what_its_config_says() {
    for (name, kind) in [("llama", Kind::Llama), ("bert", Kind::Bert), ("vit", Kind::Vit)] {
        assert_eq!(kind_of(&golden(name)).unwrap(), kind);
    }
    let room = tempfile::tempdir().unwrap();
    fs::write(room.path().join("config.json"), r#"{"architectures":["MambaForCausalLM"]}"#)
        .unwrap();
    let error = kind_of(room.path()).unwrap_err();
    assert_eq!(error.kind(), "unsupported");
    assert!(error.to_string().contains("MambaForCausalLM"), "{error}");
}

#[test]
fn shapes_fit_when_only_ones_in_front_and_sizes_at_the_end_differ() {
    assert!(fits(&[1, 1, 16], &[16]));
    assert!(fits(&[16, 3, 4, 4], &[16, 48]));
    assert!(fits(&[1, 5, 16], &[5, 16]));
    assert!(fits(&[2, 3], &[2, 3]));
    assert!(!fits(&[3, 2], &[2, 3]));
    assert!(!fits(&[6], &[2, 3]));
    assert!(!fits(&[2, usize::MAX, 2], &[2, 6]));
    assert!(!fits(&[], &[1]));
}
