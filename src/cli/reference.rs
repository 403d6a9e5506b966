//! `gaisnet reference`: reference inputs, made from generator, seed and count, or written by a language model.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;

use super::Exit;
use crate::data::texts::read_capped;
use crate::ids::Digest;
use crate::learn::{BEARING_PHYSICS, ReferenceSet, ReferenceTexts};

/// Arguments of `gaisnet reference`.
#[derive(Debug, Args)]
pub(super) struct ReferenceArgs {
    #[command(subcommand)]
    command: ReferenceCommand,
}

#[derive(Debug, Subcommand)]
enum ReferenceCommand {
    /// Make a set and tell its digest: nodes with the same digest understand each other
    #[command(after_help = MAKE_HELP)]
    Make(MakeArgs),
    /// Have a language model write a set of texts into a file, once for a federation
    #[command(after_help = WRITE_HELP)]
    Write(WriteArgs),
    /// Check a file of texts and tell its digest
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct WriteArgs {
    /// What to write: classes, with words and examples of each
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Card of the language model that writes
    #[arg(long, value_name = "FILE", default_value = "smollm2-135m")]
    base: PathBuf,
    /// Its seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many
    #[arg(long, default_value_t = 1_100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: u16,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The file
    file: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct MakeArgs {
    /// What makes the inputs
    #[arg(long, default_value = BEARING_PHYSICS)]
    generator: String,
    /// Its seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A generator that isn't known here; a recipe, base or file that can't be used.
pub(super) fn run(args: &ReferenceArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    match &args.command {
        ReferenceCommand::Make(args) => make(args, out),
        ReferenceCommand::Write(args) => write(args, out),
        ReferenceCommand::Show(args) => show(args, out),
    }
}

fn make(args: &MakeArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let set = ReferenceSet::make(&args.generator, args.seed, args.count)?;
    let (classes, len) = (set.windows.classes, set.windows.len);
    if args.json {
        let made = json!({
            "generator": args.generator, "seed": args.seed, "count": args.count,
            "classes": classes, "window": len, "digest": set.digest.to_string(),
        });
        writeln!(out, "{made:#}")?;
    } else {
        writeln!(out, "{} inputs of {len} samples, {classes} classes in turn", args.count)?;
        writeln!(out, "digest {}", set.digest)?;
    }
    Ok(Exit::Ok)
}

fn show(args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let named = || args.file.display().to_string();
    let bytes = read_capped(&args.file)?;
    let set = ReferenceTexts::parse(&bytes).with_context(named)?;
    let digest = Digest::of(&bytes);
    if args.json {
        let told = json!({
            "name": set.name, "seed": set.seed, "written_by": set.written_by, "labelled": set.labelled,
            "classes": set.classes, "count": set.texts.len(), "digest": digest.to_string(),
        });
        writeln!(out, "{told:#}")?;
    } else {
        let (n, classes) = (set.texts.len(), set.classes.join(", "));
        writeln!(out, "{}: {n} texts by {}, seed {}", set.name, set.written_by, set.seed)?;
        let labels = if set.labelled { "in turn" } else { "nobody says which" };
        writeln!(out, "classes ({labels}): {classes}")?;
        writeln!(out, "digest {digest}")?;
    }
    Ok(Exit::Ok)
}

#[cfg(not(feature = "torch"))]
fn write(_: &WriteArgs, _: &mut dyn Write) -> anyhow::Result<Exit> {
    anyhow::bail!(
        "this gaisnet was built without libtorch: build it with the feature torch (make build)"
    )
}

#[cfg(feature = "torch")]
fn write(args: &WriteArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    use std::num::NonZeroU16;

    use crate::data::Cache;
    use crate::learn::{ReferenceRecipe, Sampling, WriteConfig};
    use crate::torch::generate::LanguageGenerator;
    use crate::torch::language::{LanguageBase, Precision};
    use crate::torch::{LoraConfig, PeftConfig, load_language, shipped};

    let named = || args.recipe.display().to_string();
    let text = std::fs::read_to_string(&args.recipe).with_context(named)?;
    let recipe: ReferenceRecipe = toml::from_str(&text).with_context(named)?;
    recipe.check().with_context(named)?;
    let draft = Draft::open(&args.out)?;
    let models = Cache::from_env()?.models();
    let (card, loaded) = load_language(&args.base, &shipped::trust()?, &models)?;
    let base = LanguageBase::new(loaded.config, loaded.weights, Precision::F32, tch::Device::Cpu)?;
    let threads = NonZeroU16::new(args.threads).unwrap_or(NonZeroU16::MIN);
    // No adapter is ever loaded: the bare base writes.
    let peft = PeftConfig::lora(LoraConfig::default());
    let mut generator = LanguageGenerator::new(base, &peft, threads)?;
    let sampling = Sampling::new(TEMPERATURE, TOP_P)?;
    let config = WriteConfig { seed: args.seed, count: args.count, sampling };
    let bar = indicatif::ProgressBar::new(args.count.into());
    let written_by = format!("{} {}", card.name, card.digest());
    let mut told = |text: &str| {
        bar.inc(1);
        bar.set_message(text.to_owned());
    };
    let set = recipe.write(&config, &mut generator, &loaded.tokenizer, &written_by, &mut told)?;
    bar.finish_and_clear();
    let bytes = set.to_bytes()?;
    draft.keep(&bytes)?;
    let written = set.texts.len();
    if written < args.count as usize {
        writeln!(out, "fewer than {}: of some class the model had no more to say", args.count)?;
    }
    writeln!(out, "{written} texts in {}", args.out.display())?;
    writeln!(out, "digest {}", Digest::of(&bytes))?;
    Ok(Exit::Ok)
}

/// A file beside the one that is wanted, opened before there is anything to write: a place that can't be written to shows
/// before the model has written for an hour, and what is there stays until the new file is whole.
#[cfg(any(feature = "torch", test))]
struct Draft {
    file: std::fs::File,
    at: PathBuf,
    place: PathBuf,
}

#[cfg(any(feature = "torch", test))]
impl Draft {
    fn open(place: &std::path::Path) -> anyhow::Result<Self> {
        let named = || format!("can't write {}", place.display());
        anyhow::ensure!(!place.is_dir(), "{}: it is a folder", named());
        let mut at = place.as_os_str().to_owned();
        at.push(".draft");
        let at = PathBuf::from(at);
        let file = std::fs::File::create(&at).with_context(named)?;
        Ok(Self { file, at, place: place.to_owned() })
    }

    fn keep(mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let named = || format!("can't write {}", self.place.display());
        self.file.write_all(bytes).and_then(|()| self.file.sync_all()).with_context(named)?;
        std::fs::rename(&self.at, &self.place).with_context(named)
    }
}

#[cfg(any(feature = "torch", test))]
impl Drop for Draft {
    /// A draft that was kept has another name by now.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.at);
    }
}

/// Chosen by looking at what a small model writes: above, it wanders off; below, it repeats itself.
#[cfg(feature = "torch")]
const TEMPERATURE: f64 = 0.7;
#[cfg(feature = "torch")]
const TOP_P: f64 = 0.9;

const WRITE_HELP: &str = "\
Examples:
  gaisnet reference write --recipe config/reference-orders.toml --out excavator-orders-1.txt
  gaisnet reference show excavator-orders-1.txt

The file goes to each node: knowledge.reference_file names it, knowledge.reference_digest pins it. Two machines
needn't write the same texts from one seed, so make it once. Look through it: a small model writes nonsense too.";

const SHOW_HELP: &str = "\
Examples:
  gaisnet reference show models/reference/orders-1.txt
  gaisnet reference show orders-1.txt --json | jq -r .digest";

const MAKE_HELP: &str = "\
Examples:
  gaisnet reference make                         what a node with the default [knowledge] settings makes
  gaisnet reference make --seed 7 --count 2000
  gaisnet reference make --json | jq -r .digest

A set is made anew by each node and travels nowhere. If two machines print different digests for the
same words, their mathematics library differs: they can't learn from reference inputs together.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_to_fails_before_the_work_and_its_twin_is_written() {
        let room = tempfile::tempdir().unwrap();
        let place = room.path().join("orders-1.txt");
        std::fs::write(&place, "old").unwrap();
        let read = || std::fs::read_to_string(&place).unwrap();
        for bad in [room.path().to_owned(), room.path().join("no/such/folder.txt")] {
            assert!(Draft::open(&bad).is_err(), "{}", bad.display());
        }
        drop(Draft::open(&place).unwrap());
        assert_eq!(read(), "old", "a set that never came leaves what was there");
        Draft::open(&place).unwrap().keep(b"new").unwrap();
        assert_eq!(read(), "new");
        assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 1, "no draft is left");
    }
}
