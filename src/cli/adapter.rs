//! `gaisnet adapter`: adapters of language models from and to Python's peft.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};

use super::Exit;
use crate::ids::Digest;
use crate::torch::adopted::digest_of_file;
use crate::torch::gguf::load_gguf;
use crate::torch::huggingface::load_llama;
use crate::torch::language::LanguageConfig;
use crate::torch::peft_format::{AdapterBase, Format, digest_of, export, import, read_manifest};

/// Arguments of `gaisnet adapter`.
#[derive(Debug, Args)]
pub(super) struct AdapterArgs {
    #[command(subcommand)]
    command: AdapterCommand,
}

#[derive(Debug, Subcommand)]
enum AdapterCommand {
    /// Check an adapter against its base and write it in gaisnet's own format
    #[command(after_help = IMPORT_HELP)]
    Import(MoveArgs),
    /// Write an adapter as Python's peft loads it
    #[command(after_help = EXPORT_HELP)]
    Export(MoveArgs),
    /// List what trains: names, shapes and their number
    #[command(after_help = SHOW_HELP)]
    Show {
        /// Folder with adapter.json
        adapter: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct MoveArgs {
    /// Folder of the adapter, in either format
    adapter: PathBuf,
    /// Its base: a GGUF file, or a Hugging Face folder
    #[arg(long)]
    base: PathBuf,
    /// How the adapter's new folder names the base; default: the name of its file or folder
    #[arg(long)]
    base_name: Option<String>,
    /// The new folder; files that are there already are kept
    #[arg(long)]
    out: PathBuf,
    /// Instead of what the command's name says
    #[arg(long)]
    format: Option<FormatArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// The files that Python's peft reads
    Peft,
    /// Our manifest and its tensors
    Gaisnet,
}

/// Runs `gaisnet adapter`.
///
/// # Errors
/// What is wrong with an adapter, a base or a file.
pub(super) fn run(args: &AdapterArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    match &args.command {
        AdapterCommand::Import(args) => pass_on(args, Format::Manifest, out)?,
        AdapterCommand::Export(args) => pass_on(args, Format::Peft, out)?,
        AdapterCommand::Show { adapter, json } => show(adapter, *json, out)?,
    }
    Ok(Exit::Ok)
}

fn pass_on(args: &MoveArgs, usual: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    let (sizes, digest) = base(&args.base)?;
    let file = args.base.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = args.base_name.clone().or(file).unwrap_or_default();
    let base = AdapterBase { name: &name, digest: Some(digest), sizes: &sizes };
    let (peft, adapter) = import(&args.adapter, &base).context("reading the adapter")?;
    let format = match args.format {
        None => usual,
        Some(FormatArg::Peft) => Format::Peft,
        Some(FormatArg::Gaisnet) => Format::Manifest,
    };
    export(&args.out, format, &base, &peft, &adapter).context("writing the adapter")?;
    writeln!(out, "base    {name}, sha256 {digest}")?;
    writeln!(out, "digest  {}", digest_of(&peft, &adapter)?)?;
    writeln!(
        out,
        "trains  {} values in {} tensors",
        adapter.num_values(),
        adapter.tensors().len()
    )?;
    writeln!(out, "wrote   {}", args.out.display())?;
    Ok(())
}

fn show(folder: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let manifest = read_manifest(folder)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &manifest)?;
        writeln!(out)?;
        return Ok(());
    }
    for tensor in &manifest.tensors {
        writeln!(out, "{}  {:?}", tensor.name, tensor.shape)?;
    }
    let (values, count) = (manifest.values, manifest.tensors.len());
    writeln!(out, "{values} values in {count} tensors, for the base {}", manifest.base.name)?;
    Ok(())
}

/// Sizes of a base, and the digest of its weights.
fn base(path: &Path) -> anyhow::Result<(LanguageConfig, Digest)> {
    if path.is_dir() {
        let sizes = load_llama(path).context("reading the base")?.config;
        Ok((sizes, digest_of_file(&path.join("model.safetensors"))?.0))
    } else {
        let sizes = load_gguf(path).context("reading the base")?.config;
        Ok((sizes, digest_of_file(path)?.0))
    }
}

const IMPORT_HELP: &str = "\
Example:
  gaisnet adapter import from-python/ --base SmolLM2-135M/ --out adapter/

from-python/ holds adapter_config.json and adapter_model.safetensors, as model.save_pretrained() of
Python's peft writes them: LoRA, (IA)^3, prompt tuning or prefix tuning. An adapter of another base, or
with settings that gaisnet doesn't have, ends with 3. Pickles (adapter_model.bin) aren't opened.";

const EXPORT_HELP: &str = "\
Example:
  gaisnet adapter export adapter/ --base SmolLM2-135M/ --base-name HuggingFaceTB/SmolLM2-135M --out for-python/
  python -c 'import peft; peft.AutoPeftModelForCausalLM.from_pretrained(\"for-python\")'

The PEFT format holds one of LoRA, (IA)^3, prompt tuning and prefix tuning. Prompts in front of each block,
bottlenecks and layers that train whole have none there; --format gaisnet writes them.";

const SHOW_HELP: &str = "\
Examples:
  gaisnet adapter show adapter/
  gaisnet adapter show adapter/ --json | jq .values";

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;
    use crate::torch::weights_error::WeightsError;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: AdapterArgs,
    }

    fn gaisnet(line: &[&str]) -> anyhow::Result<String> {
        let line = Line::try_parse_from([&["adapter"], line].concat())?;
        let mut out = Vec::new();
        run(&line.args, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn an_adapter_goes_in_is_shown_and_goes_out_again() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft");
        let golden = |name: &str| golden.join(name).display().to_string();
        let dir = tempfile::tempdir().unwrap();
        let new = |name: &str| dir.path().join(name).display().to_string();
        let (base, own, back) = (golden("base"), new("own"), new("back"));
        let text = gaisnet(&["import", &golden("lora"), "--base", &base, "--out", &own]).unwrap();
        assert!(text.contains("base    base, sha256 "), "{text}");
        let shown = gaisnet(&["show", &own, "--json"]).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        // q of two ranks, v, down and the head: (32 + 32) 2 + (32 + 32) 3 + 2 (32 + 16) 4 + ..
        assert_eq!(shown["values"], 128 + 192 + 2 * 192 + 2 * 320 + 384);
        gaisnet(&["export", &own, "--base", &base, "--out", &back]).unwrap();
        let config = fs::read_to_string(dir.path().join("back/adapter_config.json")).unwrap();
        assert!(config.contains("\"peft_type\": \"LORA\""), "{config}");
        assert!(
            gaisnet(&["export", &own, "--base", &base, "--out", &back]).is_err(),
            "it is there"
        );
    }

    #[test]
    fn an_adapter_of_another_base_ends_with_a_refusal() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft");
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (dir.path().join("own"), dir.path().join("other"));
        fs::create_dir(&other).unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::copy(golden.join("base").join(file), other.join(file)).unwrap();
        }
        let import = |adapter: &Path, base: &Path, out: &Path| {
            let [adapter, base, out] = [adapter, base, out].map(|p| p.display().to_string());
            gaisnet(&["import", &adapter, "--base", &base, "--out", &out])
        };
        import(&golden.join("prefix"), &golden.join("base"), &own).unwrap();
        let weights = other.join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        let error = import(&own, &other, &dir.path().join("new")).unwrap_err();
        assert_eq!(error.downcast_ref::<WeightsError>().unwrap().kind(), "other_base");
        assert!(!dir.path().join("new").exists());
    }
}
