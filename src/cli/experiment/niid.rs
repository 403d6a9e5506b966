//! `gaisnet experiment run niid`: the table of a federated benchmark, cell by cell.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;

use super::{bar, told};
use crate::cli::Exit;
use crate::cli::exit::Misuse;
use crate::data::Cache;
use crate::data::images::{Dataset, ImageSet};
#[cfg(feature = "torch")]
use crate::experiment::niid;
use crate::experiment::niid::{
    Broker, Cell, CellNews, CellOptions, CellRecord, CellSubject, has_begun, run_cell,
};
use crate::report::{CellRow, NiidReport, niid_to_html, niid_to_json, niid_to_table};

/// Arguments of `gaisnet experiment run niid`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Only these cells, as set/split/strategy [default: all that published figures are known for]
    #[arg(long = "cell", value_name = "CELL", value_delimiter = ',')]
    cells: Vec<Cell>,
    /// Rounds of each cell [default: 50 of those that are judged by published figures, 10 of the rest]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: Option<u64>,
    /// Passes of a client over its images in a round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    local_epochs: u32,
    /// Seed of weights (its lower 32 bits), batches and draws of the splits
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Two rounds of one pass over 200 images a client: whether all works, no figure to tell
    #[arg(long)]
    quick: bool,
    /// Go on with what is in the folder, also in the middle of a cell
    #[arg(long, requires = "out")]
    resume: bool,
    /// Tell what is in the folder, and run nothing
    #[arg(long, requires = "out", conflicts_with = "resume")]
    report: bool,
    /// Clients that train at the same time, a thread each [default: all cores]
    #[arg(long, conflicts_with = "processes", value_parser = clap::value_parser!(u16).range(1..=256))]
    lanes: Option<u16>,
    /// Where niid.json, niid.html, records and stores go; without it nothing is kept
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Give up after so many seconds without progress
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    patience: u64,
    /// All links over this broker (one of its own: it lets anybody in and keeps what is retained), instead
    /// of brokers in memory
    #[arg(long, value_name = "HOST:PORT")]
    broker: Option<Broker>,
    /// Each device, edge and cloud as a process of its own, whose largest memory is told; over a small broker of
    /// this program unless --broker names one
    #[arg(long)]
    processes: bool,
    /// One JSON object at the end, no bars, no table
    #[arg(long)]
    json: bool,
}

/// Runs `gaisnet experiment run niid`.
pub(super) fn run(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let cells = if args.cells.is_empty() { Cell::all() } else { args.cells.clone() };
    for (at, cell) in cells.iter().enumerate() {
        if cells.iter().take(at).any(|earlier| earlier == cell) {
            return Err(Misuse(format!("--cell {cell} comes twice")).into());
        }
    }
    if args.processes && args.broker.is_none() && cfg!(not(feature = "broker")) {
        let why =
            "this gaisnet was built without its broker: name another one by --broker HOST:PORT";
        return Err(Misuse(why.to_owned()).into());
    }
    let program = program(args)?;
    let temporary = tempdir(args)?;
    let folder = args.out.clone().unwrap_or_else(|| temporary.0.clone());
    let begun = cells.iter().any(|cell| has_begun(&folder.join(cell.folder())));
    if begun && !args.resume && !args.report {
        bail!(
            "{} has cells of another run: go on with them by --resume, or choose another folder",
            folder.display()
        );
    }
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let cache = Cache::from_env()?;
    let bar = bar(args.json);
    let mut rows = Vec::new();
    let mut verified = true;
    for cell in &cells {
        let record = stored(cell, args, &folder)?;
        if args.report {
            let audit = record.as_ref().and_then(|record| record.audit);
            verified &= audit.is_none_or(|audit| audit.verified);
        }
        rows.push(row(cell, args, record));
    }
    let mut report = NiidReport::new(rows);
    for (at, cell) in cells.iter().enumerate().filter(|_| !args.report) {
        bar.set_message(cell.to_string());
        let options = CellOptions {
            processes: program.clone(),
            ..options(cell, args, &folder.join(cell.folder()))
        };
        let record = one(cell, args, &options, &cache, &bar).with_context(|| cell.to_string())?;
        verified &= record.audit.is_none_or(|audit| audit.verified);
        if let Some(place) = report.rows.get_mut(at) {
            *place = row(cell, args, Some(record));
        }
        // After each cell, since the next one may take hours.
        if args.out.is_some() {
            write(&report, &folder)?;
        }
    }
    bar.finish_and_clear();
    if args.report {
        write(&report, &folder)?;
    }
    if args.json {
        writeln!(out, "{:#}", niid_to_json(&report))?;
    } else {
        writeln!(out, "{}", niid_to_table(&report))?;
        if args.out.is_some() {
            writeln!(out, "The page with its plots: {}", folder.join("niid.html").display())?;
        }
    }
    Ok(if verified { Exit::Ok } else { Exit::Refused })
}

fn one(
    cell: &Cell,
    args: &RunArgs,
    options: &CellOptions,
    cache: &Cache,
    bar: &ProgressBar,
) -> anyhow::Result<CellRecord> {
    let Dataset { train, test } = images(cell.set, args, cache, bar)?;
    let test = if args.quick { test.choose(&(0..1_000).collect::<Vec<_>>()) } else { test };
    let subject = subject(cell, test, args.seed)?;
    let record = run_cell(cell, options, &train, subject, &mut |news| match news {
        CellNews::Step { done, of } => {
            bar.set_length(of);
            bar.set_position(done);
        }
    })?;
    Ok(record)
}

fn options(cell: &Cell, args: &RunArgs, folder: &Path) -> CellOptions {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    CellOptions {
        folder: folder.to_owned(),
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { cell.rounds() }),
        local_epochs: if args.quick { 1 } else { args.local_epochs },
        seed: args.seed,
        lanes: args.lanes.map_or(cores, usize::from),
        most_images: args.quick.then_some(200),
        patience_s: args.patience,
        broker: args.broker.clone(),
        processes: None,
    }
}

/// What nodes are processes of: this very program.
fn program(args: &RunArgs) -> anyhow::Result<Option<PathBuf>> {
    let this = || std::env::current_exe().context("where this program lies isn't known");
    args.processes.then(this).transpose()
}

/// The images, fetched where they aren't there yet.
fn images(
    set: ImageSet,
    args: &RunArgs,
    cache: &Cache,
    bar: &ProgressBar,
) -> anyhow::Result<Dataset> {
    let fetched = set.fetch(cache, &mut |_| bar.tick())?;
    if fetched.fresh {
        bar.suspend(|| told(args.json, fetched.notice));
    }
    set.cached(cache)?.context("the images vanished")
}

#[cfg(feature = "torch")]
fn subject(cell: &Cell, test: crate::learn::Images, seed: u64) -> anyhow::Result<CellSubject> {
    Ok(niid::subject(cell, test, seed)?)
}

#[cfg(not(feature = "torch"))]
fn subject(_: &Cell, _: crate::learn::Images, _: u64) -> anyhow::Result<CellSubject> {
    bail!("this gaisnet was built without libtorch: build it with the feature torch (make build)")
}

/// What an earlier run has left of a cell; a record that can't be read shows when its turn comes, and at
/// once where only a report is made.
fn stored(cell: &Cell, args: &RunArgs, folder: &Path) -> anyhow::Result<Option<CellRecord>> {
    let record = CellRecord::read(&folder.join(cell.folder()));
    if args.report {
        return record.with_context(|| cell.to_string());
    }
    Ok(record.ok().flatten())
}

fn row(cell: &Cell, args: &RunArgs, record: Option<CellRecord>) -> CellRow {
    let wanted = options(cell, args, Path::new(""));
    let mut row = CellRow {
        dataset: cell.set.name().to_owned(),
        split: cell.split.to_string(),
        strategy: cell.strategy.name().to_owned(),
        conditions: cell.conditions.name().to_owned(),
        judged: cell.strategy.judged().name().to_owned(),
        rounds: wanted.rounds,
        local_epochs: wanted.local_epochs,
        seed: args.seed,
        ..CellRow::default()
    };
    if let Some(record) = record {
        row.finished = record.is_finished();
        row.rounds_done = record.rounds_done();
        row.accuracy_best = record.accuracy_best();
        row.bytes_up_per_client_round = record.bytes_up_per_client_round();
        row.seconds = record.seconds();
        row.curve = record.curve.iter().map(|at| at.accuracy).collect();
        (row.rounds, row.local_epochs, row.seed) =
            (record.rounds, record.local_epochs, record.seed);
        row.client_sizes = record.client_sizes;
        row.halves = record.halves;
        row.config = record.config;
        row.commit = record.commit;
        row.machine = record.machine;
        row.audit = record.audit;
        row.peak_rss_mib = record.peak_rss_mib;
    }
    // With fewer rounds or passes a figure isn't that of the published table.
    row.published = cell.published().filter(|_| row.local_epochs == 10 && row.rounds >= 50);
    row
}

fn write(report: &NiidReport, folder: &Path) -> anyhow::Result<()> {
    for (name, text) in [
        ("niid.html", niid_to_html(report)),
        ("niid.json", format!("{:#}\n", niid_to_json(report))),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A folder that goes with the guard; empty where the results are kept elsewhere.
fn tempdir(args: &RunArgs) -> anyhow::Result<super::Temporary> {
    let path = std::env::temp_dir().join(format!("gaisnet-niid-{}", std::process::id()));
    if args.out.is_none() {
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    }
    Ok(super::Temporary(path))
}

pub(super) const RUN_HELP: &str = "\
Examples:
  gaisnet experiment run niid --quick
  gaisnet experiment run niid --cell fashion-mnist/dir0.5/fedavg --local-epochs 1 --rounds 10
  gaisnet experiment run niid --cell fashion-mnist/dir0.5/fedavg --local-epochs 1 --processes
  gaisnet experiment run niid --out results --resume     all cells, hours; call it again after a break
  gaisnet experiment run niid --out results --report     the table of what is there
  gaisnet experiment run niid --json | jq '.cells[] | {dataset, split, accuracy_best}'

Sets: fashion-mnist, mnist. Splits: iid, dirALPHA, labelsN. Strategies: fedavg, fedprox, feddistill,
fedproto, splitfed, hfsl. /niid-bench behind it takes pixels, weight decay and a tenth kept out as Flower's niid_bench
does.";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn args(line: &[&str]) -> RunArgs {
        Line::try_parse_from([&["niid"], line].concat()).unwrap().args
    }

    #[test]
    fn cells_that_are_judged_get_fifty_rounds_and_arguments_change_them() {
        let cell: Cell = "fashion-mnist/dir0.5/fedavg".parse().unwrap();
        let rounds = |line: &[&str]| {
            let options = options(&cell, &args(line), Path::new("x"));
            (options.rounds, options.local_epochs)
        };
        assert_eq!(rounds(&[]), (50, 10));
        assert_eq!(rounds(&["--rounds", "3", "--local-epochs", "1"]), (3, 1));
        assert_eq!(rounds(&["--quick"]), (2, 1));
        let named = args(&["--cell", "mnist/iid/fedavg,mnist/dir0.1/fedprox"]);
        assert_eq!(named.cells.len(), 2);
        assert!(Line::try_parse_from(["niid", "--cell", "mnist/iid/magic"]).is_err());
        assert!(Line::try_parse_from(["niid", "--resume"]).is_err(), "of which folder?");
        let over = args(&["--broker", "localhost:1884"]).broker.unwrap();
        assert_eq!((over.host.as_str(), over.port), ("localhost", 1884));
        assert!(args(&["--processes"]).processes);
        assert!(Line::try_parse_from(["niid", "--processes", "--lanes", "2"]).is_err());
        for bad in ["localhost", ":1883", "localhost:0", "localhost:99999"] {
            assert!(Line::try_parse_from(["niid", "--broker", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_folder_of_another_run_is_left_alone_unless_it_is_to_go_on() {
        let room = tempfile::tempdir().unwrap();
        let cell = "mnist-iid-fedavg";
        std::fs::create_dir_all(room.path().join(cell).join("nodes")).unwrap();
        let path = room.path().to_str().unwrap();
        let args = args(&["--cell", "mnist/iid/fedavg", "--out", path]);
        let error = run(&args, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("--resume"), "{error}");
    }

    #[test]
    fn what_was_not_run_is_listed_as_such_and_only_like_is_compared_with_published_figures() {
        let cell: Cell = "fashion-mnist/dir0.5/fedavg".parse().unwrap();
        let row = row(&cell, &args(&[]), None);
        assert!(!row.finished && row.curve.is_empty());
        assert_eq!(row.published, Some((0.8809, 0.006)));
        assert_eq!(super::row(&cell, &args(&["--local-epochs", "1"]), None).published, None);
        assert_eq!(super::row(&cell, &args(&["--rounds", "10"]), None).published, None);
    }
}
