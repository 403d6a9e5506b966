//! Folders that aren't what they should be, each beside one that is.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::rng::Stream;
use crate::torch::peft::LoraConfig;

fn sizes() -> LanguageConfig {
    LanguageConfig {
        vocab: 16,
        d_model: 8,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        d_ff: 12,
        rope_theta: 1e4,
        norm_eps: 1e-5,
        context: 32,
        tied: true,
    }
}

fn base(sizes: &LanguageConfig) -> AdapterBase<'_> {
    AdapterBase { name: "tiny", digest: Some(Digest::of(b"base")), sizes }
}

#[expect(clippy::cast_possible_truncation, reason = "test values are f32")]
fn adapter(peft: &PeftConfig) -> TensorSet {
    let plan = AdapterPlan::new(&sizes().layout(), peft).unwrap();
    let mut set = TensorSet::zeros(&plan.layout());
    let mut stream = Stream::new(5, "adapter");
    set.values_mut().for_each(|v| v.iter_mut().for_each(|x| *x = stream.normal() as f32));
    set
}

fn lora() -> PeftConfig {
    let ranks = BTreeMap::from([("v".into(), 2), ("blocks.1.mlp.down".into(), 4)]);
    let targets = vec!["q".into(), "v".into(), "blocks.1.mlp.down".into()];
    PeftConfig::lora(LoraConfig { rank: 3, ranks, targets, dropout: 0.25, ..LoraConfig::default() })
}

fn kinds() -> Vec<PeftConfig> {
    let none = PeftConfig::none;
    let (k, down) = (vec!["k".to_owned()], vec!["blocks.0.mlp.down".to_owned()]);
    let stable = LoraConfig { rank_stabilised: true, ..LoraConfig::default() };
    vec![
        lora(),
        PeftConfig::lora(stable),
        PeftConfig { ia3: k, ia3_inputs: down, ..none() },
        PeftConfig { prompts: 3, ..none() },
        PeftConfig { prefix: 2, ..none() },
    ]
}

/// LoRA in the PEFT format, in a folder of its own.
fn written() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    let sizes = sizes();
    export(&path, Format::Peft, &base(&sizes), &lora(), &adapter(&lora())).unwrap();
    (dir, path)
}

fn refused(path: &Path) -> WeightsError {
    import(path, &base(&sizes())).unwrap_err()
}

fn change_config(path: &Path, change: impl FnOnce(&mut Value)) {
    let path = path.join(CONFIG);
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn change_tensors(path: &Path, change: impl FnOnce(&mut Vec<Tensor>)) {
    let path = path.join(WEIGHTS);
    let mut all: Vec<Tensor> =
        AdapterFile::read(&path, MAX_WEIGHTS_BYTES).unwrap().tensors.into_values().collect();
    change(&mut all);
    fs::write(path, encode(&all, None).unwrap()).unwrap();
}

#[test]
fn each_kind_comes_back_as_it_went_in_both_formats() {
    let sizes = sizes();
    for peft in kinds() {
        let set = adapter(&peft);
        for format in [Format::Peft, Format::Manifest] {
            let dir = tempfile::tempdir().unwrap();
            export(dir.path(), format, &base(&sizes), &peft, &set).unwrap();
            let (back, tensors) = import(dir.path(), &base(&sizes)).unwrap();
            assert_eq!(tensors, set, "{peft:?} in {format:?}");
            let plan = |peft| AdapterPlan::new(&sizes.layout(), peft).unwrap().layout();
            assert_eq!(plan(&back), plan(&peft));
        }
    }
}

#[test]
fn what_peft_has_no_format_for_is_refused_there_and_kept_in_ours() {
    let sizes = sizes();
    let none = PeftConfig::none;
    let both = PeftConfig { prompts: 1, ..lora() };
    for peft in [
        PeftConfig { deep_prompts: 2, ..none() },
        PeftConfig { bottleneck: 2, ..none() },
        PeftConfig::whole(vec!["norm".into()]),
        PeftConfig { ia3: vec!["q".into()], ia3_inputs: vec!["q".into()], ..none() },
        both,
    ] {
        let (dir, set) = (tempfile::tempdir().unwrap(), adapter(&peft));
        let error = export(dir.path(), Format::Peft, &base(&sizes), &peft, &set).unwrap_err();
        assert_eq!(error.kind(), "unsupported");
        assert!(error.to_string().contains("gaisnet's own format"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "half of an adapter was written");
        export(dir.path(), Format::Manifest, &base(&sizes), &peft, &set).unwrap();
        assert_eq!(import(dir.path(), &base(&sizes)).unwrap(), (peft, set));
    }
}

#[test]
fn a_manifest_lists_names_shapes_and_their_number() {
    let (dir, sizes) = (tempfile::tempdir().unwrap(), sizes());
    let peft = PeftConfig { deep_prompts: 3, ..PeftConfig::none() };
    export(dir.path(), Format::Manifest, &base(&sizes), &peft, &adapter(&peft)).unwrap();
    let manifest = read_manifest(dir.path()).unwrap();
    let names: Vec<&str> = manifest.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["blocks.0.prompts", "blocks.1.prompts"]);
    assert_eq!((manifest.values, manifest.tensors[0].shape.as_slice()), (48, [3, 8].as_slice()));
    let taken = export(dir.path(), Format::Manifest, &base(&sizes), &peft, &adapter(&peft));
    assert_eq!(taken.unwrap_err().kind(), "io", "a file that is there is kept");
}

#[test]
fn an_adapter_of_another_base_is_refused_by_digest_and_by_size() {
    let (_dir, path) = written();
    let sizes = sizes();
    let other = AdapterBase { digest: Some(Digest::of(b"other")), ..base(&sizes) };
    assert_eq!(import(&path, &other).unwrap_err().kind(), "other_base");
    assert!(import(&path, &AdapterBase { digest: None, ..base(&sizes) }).is_ok());
    let wider = LanguageConfig { d_ff: 16, ..sizes };
    let text = import(&path, &base(&wider)).unwrap_err().to_string();
    assert!(text.contains("down_proj.lora_A.weight") && text.contains("[4, 16]"), "{text}");
    let deeper = LanguageConfig { layers: 3, ..sizes };
    assert_eq!(import(&path, &base(&deeper)).unwrap_err().kind(), "layout_mismatch");
}

#[test]
fn tensors_that_are_missing_too_many_or_of_another_shape_are_named() {
    let at = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let (_dir, path) = written();
        change_tensors(&path, |all| change(all));
        import(&path, &base(&sizes())).map(drop)
    };
    assert!(at(&|_| {}).is_ok());
    let one = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
    let missing = at(&|all| all.retain(|t| t.name != one)).unwrap_err().to_string();
    assert!(missing.contains(one) && missing.ends_with("got absent"), "{missing}");
    let module = "layers.1.self_attn.q_proj";
    assert!(at(&|all| all.retain(|t| !t.name.contains(module))).is_err(), "both factors");
    let rename = |new: &str| {
        let new = new.to_owned();
        at(&move |all| all[0].name.clone_from(&new)).unwrap_err().kind()
    };
    assert_eq!(
        rename("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"),
        "layout_mismatch"
    );
    assert_eq!(
        rename("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"),
        "layout_mismatch"
    );
    assert_eq!(rename("../../weights"), "bad_name");
    let turn = at(&|all| all[0].shape.reverse()).unwrap_err();
    assert_eq!(turn.kind(), "layout_mismatch");
    let infinite = at(&|all| all[0].data[0] = f32::INFINITY).unwrap_err();
    assert_eq!(infinite.kind(), "not_finite");
}

#[test]
fn settings_that_would_change_the_answer_are_refused() {
    let with = |key: &str, value: Value| {
        let (_dir, path) = written();
        change_config(&path, |config| config[key] = value);
        import(&path, &base(&sizes())).map(drop)
    };
    assert!(with("peft_version", json!("9.0")).is_ok());
    let unknown = with("peft_type", json!("LOHA")).unwrap_err().to_string();
    assert!(unknown.contains("\"LOHA\"") && unknown.contains("LORA, IA3, PROMPT"), "{unknown}");
    for (key, value) in [
        ("peft_type", json!(7)),
        ("task_type", json!("SEQ_CLS")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("init_lora_weights", json!("pissa")),
        ("modules_to_save", json!(["lm_head"])),
        ("some_new_thing", json!(1)),
        ("rank_pattern", json!({".*": 2})),
    ] {
        assert_eq!(with(key, value).unwrap_err().kind(), "unsupported", "{key}");
    }
    for value in [json!(0), json!(1 << 20)] {
        assert!(with("r", value).is_err(), "a rank that doesn't fit the tensors");
    }
    for value in [json!(-1), json!("8"), Value::Null, json!(u64::MAX)] {
        assert_eq!(with("r", value).unwrap_err().kind(), "bad_adapter");
    }
    assert!(with("lora_alpha", json!(0)).is_err());
    assert!(with("lora_dropout", json!(1.0)).is_err());
    assert!(with("target_modules", json!(["q_proj"])).is_err(), "more tensors than targets");
    assert!(with("target_modules", json!("all-linear")).is_err(), "fewer tensors than targets");
    assert!(with("target_modules", json!(".*")).is_ok(), "the file tells");
    assert!(with("layers_to_transform", json!([0])).is_err());
}

#[test]
fn prompts_and_prefixes_must_have_the_sizes_of_the_base() {
    let sizes = sizes();
    for peft in [
        PeftConfig { prompts: 3, ..PeftConfig::none() },
        PeftConfig { prefix: 3, ..PeftConfig::none() },
    ] {
        let with = |key: &str, value: Value| {
            let dir = tempfile::tempdir().unwrap();
            export(dir.path(), Format::Peft, &base(&sizes), &peft, &adapter(&peft)).unwrap();
            change_config(dir.path(), |config| config[key] = value);
            import(dir.path(), &base(&sizes)).map(drop)
        };
        assert!(with("num_layers", json!(2)).is_ok());
        assert_eq!(with("num_layers", json!(3)).unwrap_err().kind(), "bad_adapter");
        assert_eq!(with("token_dim", json!(5)).unwrap_err().kind(), "bad_adapter");
        assert_eq!(with("num_transformer_submodules", json!(2)).unwrap_err().kind(), "bad_adapter");
        let more = with("num_virtual_tokens", json!(4_000_000_000_u32)).unwrap_err();
        assert_eq!(more.kind(), "layout_mismatch");
    }
}

#[test]
fn pickles_and_broken_files_are_refused() {
    let (_dir, path) = written();
    fs::rename(path.join(WEIGHTS), path.join("adapter_model.bin")).unwrap();
    assert_eq!(refused(&path).kind(), "pickle");
    fs::remove_file(path.join("adapter_model.bin")).unwrap();
    assert_eq!(refused(&path).kind(), "io");
    let (_dir, path) = written();
    let bytes = fs::read(path.join(WEIGHTS)).unwrap();
    fs::write(path.join(WEIGHTS), &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(refused(&path).kind(), "malformed");
    fs::write(path.join(CONFIG), "{").unwrap();
    assert_eq!(refused(&path).kind(), "bad_adapter");
    fs::remove_file(path.join(CONFIG)).unwrap();
    assert_eq!(refused(&path).kind(), "io");
}
