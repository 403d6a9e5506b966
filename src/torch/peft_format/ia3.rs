//! (IA)^3 in the PEFT format: a "feedforward" layer has its inputs scaled, any other its outputs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::config::AdapterConfig;
use super::differs;
use super::names::{Module, Modules, PREFIX};
use crate::learn::{Tensor, TensorSet};
use crate::torch::peft::PeftConfig;
use crate::torch::weights_error::WeightsError;

pub(super) fn read(
    config: &AdapterConfig,
    mut tensors: BTreeMap<String, Tensor>,
    modules: &Modules,
) -> Result<(PeftConfig, TensorSet), WeightsError> {
    config.only(&["target_modules", "exclude_modules", "feedforward_modules"])?;
    let targets = config.targets()?;
    let inputs = config.names("feedforward_modules")?;
    let mut set = Vec::with_capacity(tensors.len());
    for module in modules.iter() {
        let name = format!("{PREFIX}{}{LEAF}", module.theirs);
        let found = tensors.remove(&name);
        let wanted = targets.as_ref().map_or(found.is_some(), |t| t.choose(module));
        let actual = found.as_ref().map(|t| t.shape.as_slice());
        let (column, row) = ([module.out, 1], [1, module.input]);
        let of_inputs = inputs.ends(&module.theirs).unwrap_or(actual == Some(&row));
        let shape = if of_inputs { row } else { column };
        let expected = wanted.then_some(shape.as_slice());
        if expected != actual {
            return Err(differs(&name, expected, actual));
        }
        let Some(found) = found else { continue };
        let leaf = if of_inputs { "ia3_in" } else { "ia3_out" };
        let name = format!("{}.{leaf}", module.ours);
        set.push(Tensor { name, shape: vec![found.data.len()], data: found.data });
    }
    if let Some((name, tensor)) = tensors.into_iter().next() {
        return Err(differs(&name, None, Some(&tensor.shape)));
    }
    let set = TensorSet::new(set)?;
    let scaled = |leaf: &str| {
        modules.list(|m| set.get(&format!("{}.{leaf}", m.ours)).is_some(), |m| m.ours.as_str())
    };
    let (ia3, ia3_inputs) = (scaled("ia3_out"), scaled("ia3_in"));
    Ok((PeftConfig { ia3, ia3_inputs, ..PeftConfig::none() }, set))
}

pub(super) fn write(
    adapter: &TensorSet,
    modules: &Modules,
) -> Result<(Value, Vec<Tensor>), WeightsError> {
    let scale = |m: &Module, leaf: &str| adapter.get(&format!("{}.{leaf}", m.ours)).cloned();
    let mut tensors = Vec::new();
    for module in modules.iter() {
        let name = format!("{PREFIX}{}{LEAF}", module.theirs);
        let (shape, data) = match (scale(module, "ia3_out"), scale(module, "ia3_in")) {
            (None, None) => continue,
            (Some(outputs), None) => (vec![module.out, 1], outputs.data),
            (None, Some(inputs)) => (vec![1, module.input], inputs.data),
            (Some(_), Some(_)) => {
                return Err(WeightsError::Unsupported {
                    what: "(IA)^3 of one layer's inputs and outputs",
                    found: module.ours.clone(),
                    known: "the PEFT format holds one of the two; write gaisnet's own format",
                });
            }
        };
        tensors.push(Tensor { name, shape, data });
    }
    let inputs = modules.list(|m| scale(m, "ia3_in").is_some(), |m| m.theirs.as_str());
    let mut targets = modules.list(|m| scale(m, "ia3_out").is_some(), |m| m.theirs.as_str());
    targets.extend(inputs.iter().cloned());
    targets.sort();
    let config = json!({
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": inputs,
        "fan_in_fan_out": false,
        "init_ia3_weights": true,
    });
    Ok((config, tensors))
}

const LEAF: &str = ".ia3_l";
