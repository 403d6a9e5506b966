//! `gaisnet model`: get, look at, import, sign and check bases.

mod files;
mod look;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::Exit;
use super::trust_files::{read_keyring, read_public_key, read_root_keys};
use crate::data::Cache;
use crate::torch::adopted::{About, AdoptedCard};
use crate::torch::shipped::{self, Shipped};
use crate::torch::{Card, adopted, load_adopted, load_base, seal_adopted, seal_base};
use crate::trust::keys::SigningKey;
use crate::trust::release::ReleaseTrust;

/// Arguments of `gaisnet model`.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Bring the files of a base into the cache, and compare them with its signed card
    #[command(after_help = files::HELP)]
    Fetch(files::FetchArgs),
    /// List the bases that come with gaisnet and those in the cache
    #[command(after_help = look::LIST_HELP)]
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show the card of a base
    #[command(after_help = look::SHOW_HELP)]
    Show {
        /// Name of a base that comes with gaisnet, or a card
        base: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the card of a GGUF file or a Hugging Face folder, for you to sign
    #[command(after_help = IMPORT_HELP)]
    Import(ImportArgs),
    /// Sign a base's card: NAME.sig beside NAME.toml
    #[command(after_help = SIGN_HELP)]
    Sign {
        /// The card; its weights must lie beside it or in the cache, and be those that it pins
        card: PathBuf,
        /// Private release key; may be repeated
        #[arg(long, required = true)]
        key: Vec<PathBuf>,
    },
    /// Check a base as a node does: signature, digest, names and shapes of its weights
    #[command(after_help = VERIFY_HELP)]
    Verify {
        /// The card
        card: PathBuf,
        #[command(flatten)]
        trust: TrustArgs,
    },
}

/// Whose signature is believed.
#[derive(Debug, Clone, Args)]
pub(super) struct TrustArgs {
    /// Public release key; default: those that signed the bases that come with gaisnet
    #[arg(long)]
    key: Option<PathBuf>,
    /// Also believe this keyring's release keys and its root
    #[arg(long)]
    keyring: Option<PathBuf>,
}

impl TrustArgs {
    pub(super) fn read(&self) -> anyhow::Result<ReleaseTrust> {
        let trust = match &self.key {
            Some(path) => ReleaseTrust::pinned(read_public_key(path)?),
            None => shipped::trust()?,
        };
        Ok(match &self.keyring {
            Some(path) => trust.and_keyring(&read_keyring(path)?),
            None => trust,
        })
    }
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// A GGUF file, or a folder with config.json, tokenizer.json and model.safetensors
    path: PathBuf,
    /// Name of the base; the card is NAME.toml
    #[arg(long)]
    name: String,
    /// SPDX licence of the weights
    #[arg(long)]
    licence: String,
    /// Who made the weights
    #[arg(long)]
    made: String,
    /// What it is good for
    #[arg(long, default_value = "")]
    intended_use: String,
    /// Folder of the card; default: where the weights lie
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs `gaisnet model`.
///
/// # Errors
/// What is wrong with a base, a key or a file.
pub(super) fn run(args: &ModelArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    match &args.command {
        ModelCommand::Fetch(args) => files::fetch(args, &Cache::from_env()?, out)?,
        ModelCommand::List { json } => look::list(&Cache::from_env()?, *json, out)?,
        ModelCommand::Show { base, json } => look::show(base, &Cache::from_env()?, *json, out)?,
        ModelCommand::Import(args) => import(args, out)?,
        ModelCommand::Sign { card, key } => {
            let seal = sign(card, &read_root_keys(key)?)?;
            writeln!(out, "signed  {}", seal.display())?;
        }
        ModelCommand::Verify { card, trust } => verify(card, &trust.read()?, out)?,
    }
    Ok(Exit::Ok)
}

/// Signs a card; gives the path of the signature.
pub(super) fn sign(card: &Path, release: &[SigningKey]) -> anyhow::Result<PathBuf> {
    let keys: Vec<&SigningKey> = release.iter().collect();
    Ok(match Card::read_unsealed(card)? {
        Card::Signal(_) => seal_base(card, &keys)?,
        Card::Adopted(_) => seal_adopted(card, &keys, &Cache::from_env()?.models())?,
    })
}

fn verify(path: &Path, trust: &ReleaseTrust, out: &mut dyn Write) -> anyhow::Result<()> {
    match Card::read(path, trust)? {
        Card::Signal(_) => {
            let (base, _) = load_base(path, trust)?;
            writeln!(out, "good    {}, licence {}", base.name, base.licence)?;
            writeln!(out, "sha256  {} ({} bytes)", base.sha256, base.bytes)?;
            writeln!(out, "made    {}", base.made)?;
        }
        Card::Adopted(_) => {
            let (card, _) = load_adopted(path, trust, &Cache::from_env()?.models())?;
            let bytes: u64 = card.files.iter().map(|file| file.bytes).sum();
            writeln!(out, "good    {}, licence {}", card.name, card.licence)?;
            writeln!(out, "sha256  {} ({bytes} bytes)", card.digest())?;
            writeln!(out, "made    {}", card.made)?;
        }
    }
    Ok(())
}

fn import(args: &ImportArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    crate::ids::Name::new(args.name.as_str()).context("--name")?;
    let about = About {
        licence: args.licence.clone(),
        made: args.made.clone(),
        intended_use: args.intended_use.clone(),
    };
    let card = AdoptedCard::of(&args.path, &args.name, &about)?;
    let beside = if args.path.is_dir() { Some(args.path.as_path()) } else { args.path.parent() };
    let folder = args.out.as_deref().or(beside).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("{}.toml", args.name));
    if path.exists() {
        anyhow::bail!("{} is there already: a card is never replaced", path.display());
    }
    adopted::write_card(&path, &card)?;
    writeln!(out, "card    {}", path.display())?;
    writeln!(out, "sha256  {}", card.digest())?;
    writeln!(out, "next    gaisnet model sign {} --key RELEASE_KEY", path.display())?;
    Ok(())
}

/// A base by what a user calls it.
pub(super) struct Found {
    pub(super) card: Vec<u8>,
    /// Absent for a card that nobody has signed yet.
    pub(super) seal: Option<Vec<u8>>,
    /// Where the card lies, if it isn't built in.
    pub(super) path: Option<PathBuf>,
}

/// A built-in card by its name, else a card's file.
pub(super) fn find(base: &str) -> anyhow::Result<Found> {
    if let Some(Shipped { card, seal, .. }) = shipped::by_name(base) {
        return Ok(Found { card: card.to_vec(), seal: Some(seal.to_vec()), path: None });
    }
    let path = PathBuf::from(base);
    if !path.is_file() {
        let names: Vec<&str> = shipped::ADOPTED.iter().map(|s| s.name).collect();
        anyhow::bail!("{base} is neither a card nor one of {}", names.join(", "));
    }
    let (card, seal) = crate::torch::card::read_files(&path)?;
    Ok(Found { card, seal, path: Some(path) })
}

const IMPORT_HELP: &str = "\
Examples:
  gaisnet model import SmolLM2.gguf --name our-smollm2 --licence Apache-2.0 --made 'Hugging Face'
  gaisnet model import ./minilm --name our-minilm --licence Apache-2.0 --made 'sentence-transformers'
  gaisnet model sign our-smollm2.toml --key release/release.pem

The model is loaded and checked first. Ends with 3 when it is damaged or of a kind that gaisnet doesn't
know; pickles (.bin, .pt, .pkl) are never opened.";

const SIGN_HELP: &str = "\
Example:
  gaisnet keys new release/release.pem
  gaisnet model sign base/signal-bearing.toml --key release/release.pem

Nodes believe the key that model.release_key names, and those that the keyring has with the role
release (gaisnet keys prove --role release).";

const VERIFY_HELP: &str = "\
Examples:
  gaisnet model verify models/signal-bearing.toml
  gaisnet model verify base/signal-bearing.toml --key release/release.pub.pem

Ends with 3 when the base isn't one to trust.";
