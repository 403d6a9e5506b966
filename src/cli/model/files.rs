//! `gaisnet model fetch`.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{TrustArgs, find};
use crate::data::Cache;
use crate::data::models::{BaseFiles, ModelStep, Origin};
use crate::torch::Card;
use crate::torch::safetensors::WeightsError;

#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// Name of a base that comes with gaisnet, or a card
    base: String,
    /// A file, a folder, or a folder's address (http, https, s3, file); default: where the card says
    #[arg(long)]
    from: Option<String>,
    #[command(flatten)]
    trust: TrustArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn fetch(args: &FetchArgs, cache: &Cache, out: &mut dyn Write) -> anyhow::Result<()> {
    let found = find(&args.base)?;
    let seal = found.seal.ok_or_else(|| {
        let path = found.path.unwrap_or_default().with_extension("sig");
        WeightsError::Unsigned { path }
    })?;
    let trust = args.trust.read()?;
    trust.check(&found.card, &seal).map_err(WeightsError::from)?;
    let Card::Adopted(card) = Card::parse(&found.card)? else {
        anyhow::bail!("{} has its weights beside its card: there is nothing to fetch", args.base);
    };
    let papers =
        [(format!("{}.toml", card.name), found.card), (format!("{}.sig", card.name), seal)];
    let folder_name = card.folder_name();
    let base = BaseFiles {
        name: &card.name,
        folder: &folder_name,
        files: &card.files,
        source: card.source.as_ref(),
        papers: &papers,
    };
    let origin = args.from.as_deref().map_or(Origin::Card, Origin::of);
    // On standard error, and only where that is a terminal.
    let bar = ProgressBar::new(0);
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut told = |step: ModelStep<'_>| tell(&bar, step);
    let done = base.fetch(&origin, cache, &mut told);
    bar.finish_and_clear();
    let (folder, fresh) = done.with_context(|| card.name.clone())?;
    let card_path = folder.join(format!("{}.toml", card.name));
    if args.json {
        let told = json!({
            "name": card.name, "card": card_path, "sha256": card.digest(), "fetched": fresh,
            "licence": card.licence, "made": card.made,
        });
        writeln!(out, "{told:#}")?;
    } else {
        let how = if fresh { "fetched into" } else { "already in" };
        writeln!(out, "{how} {}", folder.display())?;
        writeln!(out, "{}: {}; licence {}", card.name, card.made, card.licence)?;
        writeln!(out, "settings: model.base = {:?}", card_path.display().to_string())?;
    }
    Ok(())
}

fn tell(bar: &ProgressBar, step: ModelStep<'_>) {
    let style = |text: &str| ProgressStyle::with_template(text).map(|style| bar.set_style(style));
    // A template that is wrong costs the bar, not the fetch.
    let _ = match step {
        ModelStep::Package { name } => {
            bar.set_message(format!("downloading {name}"));
            style("{spinner} {elapsed} {msg}")
        }
        ModelStep::Check { file } => {
            bar.set_message(format!("comparing {file}"));
            style("{spinner} {elapsed} {msg}")
        }
        ModelStep::Bytes { file, done, of } => {
            bar.set_length(of);
            bar.set_position(done);
            bar.set_message(file.to_owned());
            style("{bar:30} {bytes}/{total_bytes} {eta} {msg}")
        }
    };
}

pub(super) const HELP: &str = "\
Examples:
  gaisnet model fetch smollm2-135m
  gaisnet model fetch smollm2-135m --from https://models.example.com/smollm2
  gaisnet model fetch our-model.toml --from /media/stick --key release/release.pub.pem

The cache is ~/.cache/gaisnet, or GAISNET_CACHE. A second call costs nothing; one that broke off goes on
where it stopped. Ends with 3 when card or files aren't to be trusted. s3 takes the usual AWS_ variables.";

#[cfg(test)]
mod tests {
    use super::*;

    fn args(base: &str, from: &str) -> FetchArgs {
        FetchArgs {
            base: base.to_owned(),
            from: Some(from.to_owned()),
            trust: TrustArgs { key: None, keyring: None },
            json: true,
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones_and_an_unsigned_card_is_refused() {
        let room = tempfile::tempdir().unwrap();
        let cache = Cache::at(room.path());
        let mut out = Vec::new();
        let error = fetch(&args("smollm9", "x"), &cache, &mut out).unwrap_err().to_string();
        assert!(error.contains("smollm2-135m, minilm-l6"), "{error}");
        let card = room.path().join("ours.toml");
        std::fs::write(&card, crate::torch::shipped::ADOPTED[0].card).unwrap();
        let card = card.to_str().unwrap();
        let error = fetch(&args(card, "x"), &cache, &mut out).unwrap_err();
        let kind = error.downcast_ref::<WeightsError>().map(WeightsError::kind);
        assert_eq!(kind, Some("unsigned"));
    }

    #[test]
    fn a_folder_without_the_files_leaves_no_base_behind() {
        let room = tempfile::tempdir().unwrap();
        let cache = Cache::at(room.path().join("cache"));
        let from = room.path().to_str().unwrap();
        let mut out = Vec::new();
        let error = fetch(&args("minilm-l6", from), &cache, &mut out).unwrap_err();
        assert!(format!("{error:#}").contains("config.json"), "{error:#}");
        assert_eq!(std::fs::read_dir(cache.models()).unwrap().count(), 0);
    }
}
