//! `gaisnet data`: fetch, list and show the real data sets.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Exit;
use crate::data::bearings::{Bearings, CLASSES, PACKAGE, PLANTS, Recording, Split, fetch_bearings};
use crate::data::{Cache, Step};

/// Arguments of `gaisnet data`.
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Download a data set into the cache, check its digest, print its licence
    #[command(after_help = FETCH_HELP)]
    Fetch {
        /// Which
        #[arg(value_enum)]
        set: Set,
    },
    /// List the data sets and whether they are in the cache
    #[command(after_help = LIST_HELP)]
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show the recordings of a data set
    #[command(after_help = SHOW_HELP)]
    Show {
        /// Which
        #[arg(value_enum)]
        set: Set,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
}

/// The known data sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Set {
    /// Vibration of rolling-element bearings
    Bearings,
}

/// Runs `gaisnet data`.
pub(super) fn run(args: &DataArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let cache = Cache::from_env()?;
    match args.command {
        DataCommand::Fetch { set: Set::Bearings } => fetch(&cache, out)?,
        DataCommand::List { json } => list(&cache, json, out)?,
        DataCommand::Show { set: Set::Bearings, json } => {
            let bearings = cached(&cache)?;
            let mut recordings = Vec::new();
            for plant in 0..PLANTS.len() {
                recordings.extend(bearings.plant_recordings(plant)?);
            }
            recordings.extend(bearings.test_recordings()?);
            show(&recordings, json, out)?;
        }
    }
    Ok(Exit::Ok)
}

/// The bearings in the cache, or what to do.
pub(super) fn cached(cache: &Cache) -> anyhow::Result<Bearings> {
    let found = Bearings::cached(cache);
    found.ok_or_else(|| {
        let place = PACKAGE.folder(cache);
        anyhow::anyhow!("{} isn't there: gaisnet data fetch bearings", place.display())
    })
}

fn fetch(cache: &Cache, out: &mut dyn Write) -> anyhow::Result<()> {
    // On standard error, and only where that is a terminal.
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let fetched = fetch_bearings(cache, &mut |step| bar.set_message(told(step)));
    bar.finish_and_clear();
    let fetched = fetched?;
    let how = if fetched.fresh { "fetched into" } else { "already in" };
    writeln!(out, "{how} {}", fetched.folder.display())?;
    writeln!(out, "{}", fetched.notice)?;
    Ok(())
}

fn told(step: Step) -> String {
    match step {
        Step::Download => format!("downloading {} {}", PACKAGE.name, PACKAGE.version),
        Step::Check => "comparing its SHA-256".to_owned(),
        Step::Unpack { files } => format!("unpacking: {files} files"),
    }
}

fn list(cache: &Cache, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let (here, folder) = (PACKAGE.is_cached(cache), PACKAGE.folder(cache));
    if json {
        let set = json!({
            "set": PACKAGE.set, "package": PACKAGE.name, "version": PACKAGE.version,
            "sha256": PACKAGE.sha256, "cached": here, "folder": folder, "notice": PACKAGE.notice,
        });
        writeln!(out, "{:#}", json!([set]))?;
    } else {
        let state = if here { "in the cache" } else { "not fetched" };
        writeln!(out, "{:10} {state:12} {}", PACKAGE.set, folder.display())?;
        writeln!(out, "           {}", PACKAGE.notice)?;
    }
    Ok(())
}

fn show(recordings: &[Recording], json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for recording in recordings {
        let windows = recording.windows()?.labels.len();
        let class = CLASSES.get(recording.label).copied().unwrap_or("?");
        let plant = recording.plant.and_then(|plant| PLANTS.get(plant)).copied();
        let part = match recording.split {
            Split::Train => "train",
            Split::Test => "test",
        };
        let (name, rate, samples) = (recording.name, recording.rate_hz, recording.samples.len());
        if json {
            rows.push(json!({
                "name": name, "part": part, "plant": plant, "class": class,
                "rate_hz": rate, "samples": samples, "windows": windows,
            }));
        } else {
            let plant = plant.unwrap_or("-");
            writeln!(
                out,
                "{name:22} {part:5} {plant:3} {class:8} {rate:>6} Hz {samples:>7} samples {windows:>4} windows"
            )?;
        }
    }
    if json {
        writeln!(out, "{:#}", serde_json::Value::from(rows))?;
    }
    Ok(())
}

const FETCH_HELP: &str = "\
Example:
  gaisnet data fetch bearings

The cache is ~/.cache/gaisnet, or GAISNET_CACHE. A second call costs nothing.";

const LIST_HELP: &str = "\
Examples:
  gaisnet data list
  gaisnet data list --json | jq -r '.[].folder'";

const SHOW_HELP: &str = "\
Examples:
  gaisnet data show bearings
  gaisnet data show bearings --json | jq '.[] | select(.plant == \"P1\")'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_is_not_there_is_listed_as_such_and_shown_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let mut out = Vec::new();
        list(&cache, false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("not fetched") && text.contains("CC BY-NC-SA"), "{text}");
        let mut out = Vec::new();
        list(&cache, true, &mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&json[0]["set"], &json[0]["cached"]), (&"bearings".into(), &false.into()));
        let error = cached(&cache).unwrap_err().to_string();
        assert!(error.contains("gaisnet data fetch bearings"), "{error}");
    }

    #[test]
    fn a_recording_is_a_row_with_its_windows() {
        let samples = (0..5_000_u16).map(|n| f32::from(n % 7)).collect();
        let recording = Recording {
            name: "r",
            rate_hz: 48_828,
            samples,
            label: 2,
            plant: Some(0),
            split: Split::Train,
        };
        let mut out = Vec::new();
        show(std::slice::from_ref(&recording), true, &mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&json[0]["class"], &json[0]["windows"]), (&"outer".into(), &2.into()));
        let mut out = Vec::new();
        show(&[recording], false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("train P1  outer") && text.contains("2 windows"), "{text}");
    }
}
