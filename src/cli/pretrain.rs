//! `gaisnet pretrain`: makes the base for vibration from a seed, on generated signals.

use std::io::Write;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::model::sign;
use super::{Exit, trust_files::read_root_keys};
use crate::ids::Name;
use crate::learn::Control;
use crate::torch::{PretrainConfig, make_base};

/// Examples under the options.
pub(super) const HELP: &str = "\
Examples:
  gaisnet pretrain --out base --key release/release.pem    what models/signal-bearing.* is made by
  gaisnet pretrain --seed 2 --steps 400 --out /tmp/base    another one, not signed yet
  gaisnet pretrain --out base --json | jq -r .sha256

No plant data is used: the signals come from the physics of bearings (impacts at fault frequencies,
resonance, load, noise), so anybody can make the same base again. Nodes take a base only with a
release key's signature: --key, or `gaisnet model sign` later.";

/// Arguments of `gaisnet pretrain`.
#[derive(Debug, Args)]
pub(super) struct PretrainArgs {
    /// Folder for NAME.safetensors, NAME.toml (the card) and NAME.sig
    #[arg(long)]
    out: PathBuf,
    /// Name of the base
    #[arg(long, default_value = "signal-bearing")]
    name: Name,
    /// Seed of the signals and of the initial weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Optimiser steps
    #[arg(long, default_value_t = 1_600, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Fresh windows a step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(3..=4_096))]
    batch_size: u32,
    /// Threads of libtorch; the same base comes out bit by bit only with the same number
    #[arg(long, default_value = "1")]
    threads: NonZeroU16,
    /// Release key that signs the card; may be repeated
    #[arg(long)]
    key: Vec<PathBuf>,
    /// One JSON object at the end, no progress bar
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What keeps the base from being made, written or signed.
pub(super) fn run(args: &PretrainArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let release = read_root_keys(&args.key)?;
    let config = PretrainConfig {
        seed: args.seed,
        steps: args.steps,
        batch_size: args.batch_size,
        threads: args.threads,
        ..PretrainConfig::default()
    };
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(args.steps.into()) };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    #[expect(clippy::disallowed_methods, reason = "a figure to show")]
    let began = Instant::now();
    let mut loss = f32::NAN;
    let card = make_base(&config, &args.out, args.name.as_str(), &mut |at| {
        loss = at.loss;
        bar.set_position(at.step.into());
        bar.set_message(format!("loss {loss:.3}"));
        Control::Continue
    })?;
    bar.finish_and_clear();
    let path = args.out.join(format!("{}.toml", args.name));
    let seal = if release.is_empty() { None } else { Some(sign(&path, &release)?) };
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        let told = json!({
            "card": path, "signature": seal, "sha256": card.sha256, "bytes": card.bytes,
            "seed": args.seed, "steps": args.steps, "loss": loss, "seconds": seconds,
        });
        writeln!(out, "{told}")?;
        return Ok(Exit::Ok);
    }
    writeln!(out, "made    {} in {seconds:.0} s, loss {loss:.3} at the end", path.display())?;
    writeln!(out, "sha256  {} ({} bytes)", card.sha256, card.bytes)?;
    match seal {
        Some(seal) => writeln!(out, "signed  {}", seal.display())?,
        None => writeln!(out, "next    gaisnet model sign {} --key RELEASE.pem", path.display())?,
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::super::tests::gaisnet;
    use super::*;

    #[test]
    fn a_base_is_made_signed_and_verified_by_the_commands() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (release, other) = (path("release/release.pem"), path("other/release.pem"));
        for key in [&release, &other] {
            gaisnet(&["keys", "new", key]).0.unwrap();
        }
        let (out, card) = (path("base"), path("base/tiny.toml"));
        let line = ["pretrain", "--out", &out, "--name", "tiny", "--steps", "1"];
        let small = ["--batch-size", "3", "--json"];
        let (exit, text) = gaisnet(&[&line[..], &small].concat());
        assert_eq!(exit.unwrap(), Exit::Ok);
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&told["seed"], &told["steps"]), (&json!(1), &json!(1)));
        assert_eq!(told["signature"], json!(null));

        let verify = |key: &str| gaisnet(&["model", "verify", &card, "--key", key]);
        assert!(verify(&release).0.unwrap_err().to_string().contains("gaisnet model sign"));
        gaisnet(&["model", "sign", &card, "--key", &release]).0.unwrap();
        let (exit, text) = verify(&release);
        assert_eq!(exit.unwrap(), Exit::Ok);
        assert!(text.contains(told["sha256"].as_str().unwrap()), "{text}");
        let foreign = verify(&other).0.unwrap_err().to_string();
        assert!(foreign.contains("may not release"), "{foreign}");

        let signed = gaisnet(&[&line[..], &small, &["--key", &other]].concat()).1;
        let again: serde_json::Value = serde_json::from_str(&signed).unwrap();
        assert_eq!(again["sha256"], told["sha256"], "one seed makes one base");
        assert_eq!(verify(&other).0.unwrap(), Exit::Ok);
    }
}
