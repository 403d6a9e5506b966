//! `gaisnet model list` and `show`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::find;
use crate::data::Cache;
use crate::torch::adopted::AdoptedCard;
use crate::torch::{Card, ModelCard, shipped};
use crate::trust::pins::Source;

pub(super) fn list(cache: &Cache, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut cards = BTreeMap::new();
    for built_in in shipped::ADOPTED {
        if let Card::Adopted(card) = Card::parse(built_in.card)? {
            cards.insert(card.folder_name(), card);
        }
    }
    for folder in std::fs::read_dir(cache.models()).into_iter().flatten().flatten() {
        // Only folders of the form that fetch makes; anything else there is somebody else's.
        let name = folder.file_name().to_string_lossy().into_owned();
        let Some((model, _)) = name.rsplit_once('-') else { continue };
        let path = folder.path().join(format!("{model}.toml"));
        if let Ok(Card::Adopted(card)) = Card::read_unsealed(&path)
            && card.folder_name() == name
        {
            cards.entry(name).or_insert(card);
        }
    }
    let mut all = Vec::new();
    for (folder, card) in &cards {
        let place = cache.models().join(folder);
        let here = card.place(&place.join("card"), &cache.models()).is_ok();
        let bytes: u64 = card.files.iter().map(|file| file.bytes).sum();
        if json {
            all.push(json!({
                "name": card.name, "sha256": card.digest(), "bytes": bytes, "cached": here,
                "licence": card.licence, "folder": place,
            }));
        } else {
            let state = if here { "in the cache" } else { "not fetched" };
            let size = bytes.div_ceil(1_000_000);
            writeln!(out, "{:14} {state:12} {size:>5} MB  {}", card.name, card.licence)?;
        }
    }
    if json {
        writeln!(out, "{:#}", Value::from(all))?;
    }
    Ok(())
}

pub(super) fn show(
    base: &str,
    cache: &Cache,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let found = find(base)?;
    let seal = match &found.seal {
        None => "unsigned",
        Some(seal) if shipped::trust()?.check(&found.card, seal).is_ok() => "signed by gaisnet",
        Some(_) => "signed by somebody else: gaisnet model verify --key",
    };
    match Card::parse(&found.card)? {
        Card::Signal(card) => show_signal(&card, seal, json, out),
        Card::Adopted(card) => {
            let path = found.path.unwrap_or_default();
            show_adopted(&card, seal, &path, cache, json, out)
        }
    }
}

fn show_signal(
    card: &ModelCard,
    seal: &str,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut told = as_object(card)?;
    if json {
        told.insert("signature".into(), seal.into());
        let told = Value::from(told);
        writeln!(out, "{told:#}")?;
        return Ok(());
    }
    writeln!(
        out,
        "name       {}\nlicence    {}\nmade       {}",
        card.name, card.licence, card.made
    )?;
    writeln!(out, "sha256     {} ({} bytes)\nsignature  {seal}", card.sha256, card.bytes)?;
    let values = count(&card.architecture.layout().0);
    writeln!(
        out,
        "sizes      {}\nvalues     {values}",
        told.get("architecture").unwrap_or(&Value::Null)
    )?;
    Ok(())
}

fn as_object(card: &impl Serialize) -> anyhow::Result<Map<String, Value>> {
    match serde_json::to_value(card)? {
        Value::Object(object) => Ok(object),
        other => anyhow::bail!("a card is an object, not {other}"),
    }
}

fn show_adopted(
    card: &AdoptedCard,
    seal: &str,
    path: &Path,
    cache: &Cache,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let place = card.place(path, &cache.models()).ok();
    let layout = card.architecture.layout().0;
    if json {
        let mut told = as_object(card)?;
        told.insert("sha256".into(), card.digest().to_string().into());
        told.insert("signature".into(), seal.into());
        told.insert("folder".into(), place.map(|folder| folder.display().to_string()).into());
        told.insert("values".into(), count(&layout).into());
        told.insert(
            "shapes".into(),
            layout.into_iter().map(|(name, s)| (name, Value::from(s))).collect(),
        );
        let told = Value::from(told);
        writeln!(out, "{told:#}")?;
        return Ok(());
    }
    writeln!(
        out,
        "name       {}\nlicence    {}\nmade       {}",
        card.name, card.licence, card.made
    )?;
    writeln!(out, "for        {}", card.intended_use)?;
    writeln!(out, "tokenizer  {}", card.tokenizer)?;
    match &card.source {
        Some(Source::Package(pin)) => {
            writeln!(out, "source     {} {} (Python package index)", pin.package, pin.version)?;
        }
        Some(Source::Address(pin)) => writeln!(out, "source     {}", pin.address)?,
        None => writeln!(out, "source     none named: gaisnet model fetch --from")?,
    }
    for file in &card.files {
        writeln!(out, "file       {} {} ({} bytes)", file.sha256, file.name, file.bytes)?;
    }
    writeln!(out, "sha256     {}\nsignature  {seal}", card.digest())?;
    writeln!(out, "sizes      {}", serde_json::to_value(card.architecture)?)?;
    writeln!(out, "values     {} in {} tensors", count(&layout), layout.len())?;
    match place {
        Some(folder) => writeln!(out, "folder     {}", folder.display())?,
        None => writeln!(out, "folder     not fetched: gaisnet model fetch {}", card.name)?,
    }
    Ok(())
}

fn count(layout: &[(String, Vec<usize>)]) -> usize {
    layout.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

pub(super) const LIST_HELP: &str = "\
Examples:
  gaisnet model list
  gaisnet model list --json | jq '.[] | select(.cached) | .name'";

pub(super) const SHOW_HELP: &str = "\
Examples:
  gaisnet model show smollm2-135m
  gaisnet model show models/signal-bearing.toml
  gaisnet model show smollm2-135m --json | jq '.shapes | keys'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bases_that_come_along_are_listed_before_they_are_fetched() {
        let room = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        list(&Cache::at(room.path()), true, &mut out).unwrap();
        let told: Value = serde_json::from_slice(&out).unwrap();
        let names: Vec<&str> =
            told.as_array().unwrap().iter().filter_map(|b| b["name"].as_str()).collect();
        assert_eq!(names, ["minilm-l6", "smollm2-135m"]);
        assert_eq!(told[1]["cached"], false);
    }

    #[test]
    fn a_card_is_shown_with_the_number_of_its_values() {
        let room = tempfile::tempdir().unwrap();
        let cache = Cache::at(room.path());
        let mut out = Vec::new();
        show("smollm2-135m", &cache, true, &mut out).unwrap();
        let told: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(told["values"], 134_515_008);
        assert_eq!(told["signature"], "signed by gaisnet");
        assert_eq!(told["shapes"]["blocks.0.attn.k.weight"], json!([192, 576]));
        let mut out = Vec::new();
        show("models/signal-bearing.toml", &cache, false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("values     105603") && text.contains("signed by gaisnet"), "{text}");
    }
}
