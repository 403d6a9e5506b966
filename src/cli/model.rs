//! `gaisnet model`: sign the card of a base, check a base before it goes anywhere.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::Exit;
use super::trust_files::{read_keyring, read_public_key, read_root_keys};
use crate::torch::{SHIPPED_KEY, load_base, seal_base};
use crate::trust::keys::{SigningKey, VerifyingKey};
use crate::trust::release::ReleaseTrust;

/// Arguments of `gaisnet model`.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Sign a base's card: NAME.sig beside NAME.toml
    #[command(after_help = SIGN_HELP)]
    Sign {
        /// The card; its weights must lie beside it and be those that it pins
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
        /// Public release key; default: the one that signed the bases that come with gaisnet
        #[arg(long)]
        key: Option<PathBuf>,
        /// Also believe this keyring's release keys and its root
        #[arg(long)]
        keyring: Option<PathBuf>,
    },
}

/// Runs `gaisnet model`.
///
/// # Errors
/// What is wrong with a base, a key or a file.
pub(super) fn run(args: &ModelArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    match &args.command {
        ModelCommand::Sign { card, key } => {
            let seal = sign(card, &read_root_keys(key)?)?;
            writeln!(out, "signed  {}", seal.display())?;
        }
        ModelCommand::Verify { card, key, keyring } => {
            let key = match key {
                Some(path) => read_public_key(path)?,
                None => VerifyingKey::from_pem(SHIPPED_KEY)?,
            };
            let mut trust = ReleaseTrust::pinned(key);
            if let Some(path) = keyring {
                trust = trust.and_keyring(&read_keyring(path)?);
            }
            let (base, _) = load_base(card, &trust)?;
            writeln!(out, "good    {}, licence {}", base.name, base.licence)?;
            writeln!(out, "sha256  {} ({} bytes)", base.sha256, base.bytes)?;
            writeln!(out, "made    {}", base.made)?;
        }
    }
    Ok(Exit::Ok)
}

/// Signs a card; gives the path of the signature.
pub(super) fn sign(card: &Path, release: &[SigningKey]) -> anyhow::Result<PathBuf> {
    Ok(seal_base(card, &release.iter().collect::<Vec<_>>())?)
}

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
