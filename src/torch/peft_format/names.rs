//! The linear layers of a Llama by both names, and the short lists that choose some of them.

use std::collections::BTreeMap;

use crate::torch::huggingface::LLAMA_PARTS;
use crate::torch::language::LanguageConfig;

/// One linear layer.
#[derive(Debug)]
pub(super) struct Module {
    /// `blocks.0.attn.q`
    pub(super) ours: String,
    /// `model.layers.0.self_attn.q_proj`
    pub(super) theirs: String,
    /// The block that it is in.
    pub(super) layer: Option<u32>,
    pub(super) out: usize,
    pub(super) input: usize,
}

/// All linear layers of a model.
#[derive(Debug)]
pub(super) struct Modules(Vec<Module>);

impl Modules {
    pub(super) fn of(sizes: &LanguageConfig) -> Self {
        let mut all = Vec::new();
        let shapes: BTreeMap<String, Vec<usize>> = sizes.spec().tensors().into_iter().collect();
        for layer in 0..sizes.layers {
            for (theirs, ours) in LLAMA_PARTS {
                let shape = shapes.get(&format!("{ours}.weight")).map(Vec::as_slice);
                let (Some(&[out, input]), Some(theirs)) = (shape, theirs.strip_suffix(".weight"))
                else {
                    continue; // a norm
                };
                all.push(Module {
                    ours: format!("blocks.{layer}.{ours}"),
                    theirs: format!("model.layers.{layer}.{theirs}"),
                    layer: Some(layer),
                    out,
                    input,
                });
            }
        }
        if !sizes.tied {
            let (ours, theirs) = (HEAD.0.to_owned(), HEAD.1.to_owned());
            let (out, input) = (sizes.vocab as usize, sizes.d_model as usize);
            all.push(Module { ours, theirs, layer: None, out, input });
        }
        Self(all)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Module> {
        self.0.iter()
    }

    /// The layer that PEFT writes as `base_model.model.<theirs>`.
    pub(super) fn of_theirs(&self, name: &str) -> Option<&Module> {
        let name = name.strip_prefix(PREFIX)?;
        self.0.iter().find(|m| m.theirs == name)
    }

    /// The shortest list that chooses exactly these: last names where all layers of one are chosen,
    /// else whole paths.
    pub(super) fn list(
        &self,
        chosen: impl Fn(&Module) -> bool,
        name: impl Fn(&Module) -> &str,
    ) -> Vec<String> {
        let mut by_last: BTreeMap<&str, Vec<&Module>> = BTreeMap::new();
        for module in &self.0 {
            by_last.entry(last(name(module))).or_default().push(module);
        }
        let mut list = Vec::new();
        for (last, modules) in by_last {
            if modules.iter().all(|m| chosen(m)) {
                list.push(last.to_owned());
            } else {
                let paths = modules.into_iter().filter(|m| chosen(m));
                list.extend(paths.map(|m| name(m).to_owned()));
            }
        }
        list
    }
}

/// The last name of a path.
pub(super) fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// What PEFT puts before the names of the model that it wraps.
pub(super) const PREFIX: &str = "base_model.model.";
/// The head, ours and theirs.
pub(super) const HEAD: (&str, &str) = ("head", "lm_head");
