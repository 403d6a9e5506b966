//! LoRA in the PEFT format.
//!
//! Theirs may have an alpha for each layer, ours has one: another alpha is multiplied into B, which
//! gives the same product.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::config::AdapterConfig;
use super::differs;
use super::names::{Module, Modules, PREFIX, last};
use crate::learn::{Tensor, TensorSet};
use crate::torch::peft::{LoraConfig, PeftConfig};
use crate::torch::weights_error::WeightsError;

/// Factors of one layer.
#[derive(Default)]
struct Factors {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

pub(super) fn read(
    config: &AdapterConfig,
    tensors: BTreeMap<String, Tensor>,
    modules: &Modules,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    config.only(&UNDERSTOOD)?;
    if config.text("bias").is_some_and(|bias| bias != "none") {
        return Err(config.unsupported("bias", "expected none"));
    }
    if config.text("init_lora_weights").is_some_and(|how| !KEEPS_BASE.contains(&how)) {
        let known =
            "it changed the base's weights as well; expected true, gaussian, orthogonal or eva";
        return Err(config.unsupported("init_lora_weights", known));
    }
    let mut lora = LoraConfig {
        rank: config.number("r")?,
        alpha: config.real("lora_alpha", 8.0)?,
        dropout: config.real("lora_dropout", 0.0)?,
        rank_stabilised: config.flag("use_rslora"),
        targets: Vec::new(),
        ranks: BTreeMap::new(),
    };
    let found = sort(tensors, modules)?;
    let targets = config.targets()?;
    let mut ranks = BTreeMap::new();
    let mut set = Vec::with_capacity(2 * found.len());
    for module in modules.iter() {
        let factors = found.get(&module.ours);
        let wanted = targets.as_ref().map_or(factors.is_some(), |t| t.choose(module));
        let rank = config.ranks.of(&module.theirs)?.unwrap_or(lora.rank);
        let (a, b) = (factors.and_then(|f| f.a.as_ref()), factors.and_then(|f| f.b.as_ref()));
        let shapes = [vec![rank as usize, module.input], vec![module.out, rank as usize]];
        for ((factor, shape), leaf) in [a, b].into_iter().zip(&shapes).zip(LEAVES) {
            let expected = wanted.then_some(shape.as_slice());
            let actual = factor.map(|t| t.shape.as_slice());
            if expected != actual {
                return Err(differs(&format!("{PREFIX}{}{leaf}", module.theirs), expected, actual));
            }
        }
        let (Some(a), Some(b)) = (a, b) else { continue };
        ranks.insert(module.ours.as_str(), rank);
        let more = config.alphas.of(&module.theirs)?.map_or(1.0, |alpha| alpha / lora.alpha);
        let b = b.data.iter().map(|x| x * more).collect();
        let ours = |leaf, shape: &Vec<usize>, data| Tensor {
            name: format!("{}.{leaf}", module.ours),
            shape: shape.clone(),
            data,
        };
        let [shape_a, shape_b] = &shapes;
        set.push(ours("lora_a", shape_a, a.data.clone()));
        set.push(ours("lora_b", shape_b, b));
    }
    lora.targets = modules.list(|m| ranks.contains_key(m.ours.as_str()), |m| m.ours.as_str());
    lora.ranks = other_ranks(&ranks, lora.rank);
    Ok((PeftConfig::lora(lora), TensorSet::new(set)?))
}

/// Brings the tensors of a file to their layers, by our names.
fn sort(
    tensors: BTreeMap<String, Tensor>,
    modules: &Modules,
) -> Result<BTreeMap<String, Factors>, WeightsError> {
    let mut found: BTreeMap<String, Factors> = BTreeMap::new();
    for (name, tensor) in tensors {
        let unknown = differs(&name, None, Some(&tensor.shape));
        let mut leaves = LEAVES.iter().chain(&[FROZEN]);
        let part = leaves.find_map(|leaf| Some((name.strip_suffix(leaf)?, *leaf)));
        let Some((path, leaf)) = part else { return Err(unknown) };
        let Some(module) = modules.of_theirs(path) else { return Err(unknown) };
        if leaf == FROZEN {
            // A copy of a layer of the base, which doesn't train: peft writes it for heads.
            let shape = [module.out, module.input];
            if tensor.shape != shape {
                return Err(differs(&name, Some(&shape), Some(&tensor.shape)));
            }
            continue;
        }
        let factors = found.entry(module.ours.clone()).or_default();
        if leaf == LEAVES[0] { factors.a = Some(tensor) } else { factors.b = Some(tensor) }
    }
    Ok(found)
}

/// Ranks that aren't the usual one: by last name where all layers of it have the same, else by path.
fn other_ranks(ranks: &BTreeMap<&str, u32>, usual: u32) -> BTreeMap<String, u32> {
    let mut all = BTreeMap::new();
    for (path, rank) in ranks {
        let same = |(other, r): (&&str, &u32)| last(other) != last(path) || r == rank;
        let name = if ranks.iter().all(same) { last(path) } else { path };
        if *rank != usual {
            all.insert(name.to_owned(), *rank);
        }
    }
    all
}

pub(super) fn write(
    lora: &LoraConfig,
    adapter: &TensorSet,
    modules: &Modules,
) -> (Value, Vec<Tensor>) {
    let mut tensors = Vec::new();
    let mut ranks = Map::new();
    let factors = |m: &Module| {
        let get = |leaf: &str| adapter.get(&format!("{}.{leaf}", m.ours));
        get("lora_a").zip(get("lora_b"))
    };
    for module in modules.iter() {
        let Some((a, b)) = factors(module) else { continue };
        for (tensor, leaf) in [a, b].into_iter().zip(LEAVES) {
            let name = format!("{PREFIX}{}{leaf}", module.theirs);
            tensors.push(Tensor { name, ..tensor.clone() });
        }
        let rank = lora.rank_of(&module.ours);
        if rank != lora.rank {
            ranks.insert(module.theirs.clone(), rank.into());
        }
    }
    let targets = modules.list(|m| factors(m).is_some(), |m| m.theirs.as_str());
    let config = json!({
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": targets,
        "rank_pattern": ranks,
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
    });
    (config, tensors)
}

/// Endings of A `[rank, input]` and B `[out, rank]`.
const LEAVES: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
const FROZEN: &str = ".base_layer.weight";
const UNDERSTOOD: [&str; 13] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "loftq_config",
];
/// Ways to begin that leave the base's weights as they are.
const KEEPS_BASE: [&str; 3] = ["gaussian", "orthogonal", "eva"];
