//! `gaisnet experiment run paper-a` to `paper-e`: five comparisons, cell by cell.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Exit;

/// Arguments of `gaisnet experiment run paper-a` to `paper-e`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Only these cells, as the table calls them
    #[arg(long = "cell", value_name = "CELL", value_delimiter = ',')]
    cells: Vec<String>,
    /// One seed, two steps and few examples each: whether all works, no figure to tell
    #[arg(long)]
    quick: bool,
    /// Go on with what is in the folder, cell by cell
    #[arg(long, requires = "out")]
    resume: bool,
    /// Tell what is in the folder, and run nothing
    #[arg(long, requires = "out", conflicts_with = "resume")]
    report: bool,
    /// Devices that train at the same time, a thread each [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    lanes: Option<u16>,
    /// Where JSON, HTML, records and stores go; without it nothing is kept
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Give up a cell after so many seconds without progress
    #[arg(long, default_value_t = 1_800, value_name = "SECONDS")]
    patience: u64,
    /// One JSON object at the end, no bars, no table
    #[arg(long)]
    json: bool,
}

pub(super) const RUN_HELP: &str = "\
Examples:
  gaisnet experiment run paper-c --quick
  gaisnet experiment run paper-a --out results --resume     minutes; call it again after a break
  gaisnet experiment run paper-b --out results --report     the table of what is there
  gaisnet experiment run paper-d --json | jq '.arms[] | {arm, macro_f1}'";

/// Runs one of the comparisons, by its letter.
#[cfg(not(feature = "torch"))]
pub(super) fn run(_: char, _: &RunArgs, _: &mut dyn Write) -> anyhow::Result<Exit> {
    anyhow::bail!(
        "this gaisnet was built without libtorch: build it with the feature torch (make build)"
    )
}

#[cfg(feature = "torch")]
pub(super) use with_torch::run;

#[cfg(feature = "torch")]
mod with_torch {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use anyhow::{Context, bail};
    use indicatif::ProgressBar;

    use super::super::{Temporary, bar, told};
    use super::{Exit, RunArgs, Write};
    use crate::cli::exit::Misuse;
    use crate::data::Cache;
    use crate::data::bearings::{Bearings, fetch_bearings};
    use crate::data::images::ImageSet;
    use crate::experiment::paper::{
        Cell, CellOptions, Material, Paper, Record, Set, State, run_cell, summary,
    };
    use crate::report::{paper_to_html, paper_to_json, paper_to_table};

    /// Runs one of the comparisons, by its letter.
    pub(in crate::cli::experiment) fn run(
        letter: char,
        args: &RunArgs,
        out: &mut dyn Write,
    ) -> anyhow::Result<Exit> {
        let paper = match letter {
            'a' => Paper::A,
            'b' => Paper::B,
            'c' => Paper::C,
            'd' => Paper::D,
            _ => Paper::E,
        };
        let chosen = chosen(paper, args)?;
        let (_temporary, folder) = folder_of(paper, args)?;
        let mut cells: Vec<(Cell, State)> = Vec::new();
        for cell in paper.cells(args.quick) {
            let state = match Record::read(&folder.join(cell.name()))? {
                Some(record) if record.cell == cell => State::Finished(Box::new(record)),
                _ => State::NotRun,
            };
            cells.push((cell, state));
        }
        let bar = bar(args.json);
        if !args.report {
            bar.set_length(chosen.len() as u64);
            // With one cell this process has it for itself.
            let apart = paper.tells_memory() && chosen.len() > 1;
            let mut sets = Sets::default();
            for at in chosen {
                let Some((cell, _)) = cells.get(at) else { continue };
                bar.set_message(cell.name());
                let done = if apart {
                    apart_from_others(paper, cell, args, &folder)
                } else {
                    let set = sets.of(cell.set, args, &bar)?;
                    here(cell, set, &options(args, &folder, !paper.tells_memory()), &bar)
                };
                let state = done.map_or_else(
                    |error| {
                        bar.suspend(|| told(false, &format!("{}: {error:#}", cell.name())));
                        State::Failed(format!("{error:#}"))
                    },
                    |record| State::Finished(Box::new(record)),
                );
                if let Some((_, place)) = cells.get_mut(at) {
                    *place = state;
                }
                bar.inc(1);
                if args.out.is_some() && args.cells.is_empty() {
                    write(paper, &cells, &folder)?;
                }
            }
        }
        bar.finish_and_clear();
        show(paper, args, &cells, &folder, out)
    }

    fn show(
        paper: Paper,
        args: &RunArgs,
        cells: &[(Cell, State)],
        folder: &Path,
        out: &mut dyn Write,
    ) -> anyhow::Result<Exit> {
        let report = summary(paper, cells)?;
        if args.out.is_some() {
            write(paper, cells, folder)?;
        }
        if args.json {
            writeln!(out, "{:#}", paper_to_json(&report))?;
        } else {
            writeln!(out, "{}", paper_to_table(&report))?;
            if args.out.is_some() {
                let page = folder.join(format!("{paper}.html"));
                writeln!(out, "The page with its plots: {}", page.display())?;
            }
        }
        if cells.iter().any(|(_, state)| matches!(state, State::Failed(_))) {
            return Ok(Exit::Failed);
        }
        let sound = cells.iter().all(|(_, state)| match state {
            State::Finished(record) => record.audit.is_none_or(|audit| audit.verified),
            State::NotRun | State::Failed(_) => true,
        });
        Ok(if sound { Exit::Ok } else { Exit::Refused })
    }

    /// Indices of the cells that are to be run.
    fn chosen(paper: Paper, args: &RunArgs) -> anyhow::Result<Vec<usize>> {
        let names: Vec<String> = paper.cells(args.quick).iter().map(Cell::name).collect();
        if args.cells.is_empty() {
            return Ok((0..names.len()).collect());
        }
        let mut chosen = Vec::new();
        for wanted in &args.cells {
            match names.iter().position(|name| name == wanted) {
                Some(at) if !chosen.contains(&at) => chosen.push(at),
                Some(_) => return Err(Misuse(format!("--cell {wanted} comes twice")).into()),
                None => {
                    let known = names.join(", ");
                    return Err(Misuse(format!("no cell {wanted} in {paper}: {known}")).into());
                }
            }
        }
        Ok(chosen)
    }

    /// The folder of the records, and what removes it where none is to be kept.
    fn folder_of(
        paper: Paper,
        args: &RunArgs,
    ) -> anyhow::Result<(Option<Temporary>, std::path::PathBuf)> {
        let Some(out) = &args.out else { return super::super::folder_of(None) };
        let begun = |cell: &Cell| out.join(cell.name()).exists();
        if !args.resume && !args.report && paper.cells(args.quick).iter().any(begun) {
            bail!(
                "{} has cells of another run: go on with them by --resume, or choose another folder",
                out.display()
            );
        }
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        Ok((None, out.clone()))
    }

    /// The sets, each read when a cell asks for it.
    #[derive(Default)]
    struct Sets {
        bearings: Option<Material>,
        images: Option<Material>,
    }

    impl Sets {
        fn of(&mut self, set: Set, args: &RunArgs, bar: &ProgressBar) -> anyhow::Result<&Material> {
            let (place, read): (_, fn(&RunArgs, &ProgressBar) -> _) = match set {
                Set::Bearings => (&mut self.bearings, recordings),
                Set::FashionMnist => (&mut self.images, images),
            };
            if place.is_none() {
                *place = Some(read(args, bar)?);
            }
            place.as_ref().context("a set that was read")
        }
    }

    /// The recordings, fetched where they aren't there yet.
    fn recordings(args: &RunArgs, bar: &ProgressBar) -> anyhow::Result<Material> {
        let cache = Cache::from_env()?;
        let fetched = fetch_bearings(&cache, &mut |_| bar.tick())?;
        if fetched.fresh {
            bar.suspend(|| told(args.json, fetched.notice));
        }
        let set = Bearings::cached(&cache).context("the data set vanished")?;
        Ok(Material::bearings(set.load()?))
    }

    /// The images, fetched where they aren't there yet.
    fn images(args: &RunArgs, bar: &ProgressBar) -> anyhow::Result<Material> {
        let cache = Cache::from_env()?;
        let read = |set: ImageSet| {
            let fetched = set.fetch(&cache, &mut |_| bar.tick())?;
            if fetched.fresh {
                bar.suspend(|| told(args.json, fetched.notice));
            }
            set.cached(&cache)?.context("the images vanished")
        };
        Ok(Material::images(&read(ImageSet::FashionMnist)?, &read(ImageSet::Mnist)?))
    }

    fn options(args: &RunArgs, folder: &Path, shared: bool) -> CellOptions {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        CellOptions {
            folder: folder.to_owned(),
            lanes: args.lanes.map_or(cores, usize::from),
            patience_s: args.patience,
            alone: !shared,
        }
    }

    fn here(
        cell: &Cell,
        set: &Material,
        options: &CellOptions,
        bar: &ProgressBar,
    ) -> anyhow::Result<Record> {
        let mut news = |what: &str| {
            tracing::info!(cell = cell.name(), what, "experiment");
            bar.tick();
        };
        Ok(run_cell(cell, set, options, &mut news)?)
    }

    /// Runs a cell in a process of its own: the same command, for this cell alone.
    fn apart_from_others(
        paper: Paper,
        cell: &Cell,
        args: &RunArgs,
        folder: &Path,
    ) -> anyhow::Result<Record> {
        let program = std::env::current_exe().context("this program's own path")?;
        let mut command = Command::new(program);
        command.args(["experiment", "run", paper.name(), "--resume", "--json", "--out"]);
        command.arg(folder).args(["--cell", &cell.name()]);
        command.args(["--patience", &args.patience.to_string()]);
        if args.quick {
            command.arg("--quick");
        }
        if let Some(lanes) = args.lanes {
            command.args(["--lanes", &lanes.to_string()]);
        }
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        if !status.success() {
            bail!("its process ended with {status}");
        }
        Record::read(&folder.join(cell.name()))?.context("it left no record")
    }

    fn write(paper: Paper, cells: &[(Cell, State)], folder: &Path) -> anyhow::Result<()> {
        let report = summary(paper, cells)?;
        for (ending, text) in
            [("html", paper_to_html(&report)), ("json", format!("{:#}\n", paper_to_json(&report)))]
        {
            let path = folder.join(format!("{paper}.{ending}"));
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

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
            Line::try_parse_from([&["paper-a"], line].concat()).unwrap().args
        }

        #[test]
        fn cells_are_chosen_by_name_and_a_wrong_one_tells_the_right_ones() {
            let all = chosen(Paper::A, &args(&[])).unwrap();
            assert_eq!(all.len(), 16, "three seeds of four arms, and images");
            let one = args(&["--cell", "bearings-random-full-2"]);
            assert_eq!(chosen(Paper::A, &one).unwrap().len(), 1);
            let why = chosen(Paper::A, &args(&["--cell", "x"])).unwrap_err().to_string();
            assert!(why.contains("bearings-pretrained-lora-1"), "{why}");
            let twice = args(&["--cell", "bearings-random-full-2,bearings-random-full-2"]);
            assert!(chosen(Paper::A, &twice).is_err());
            assert!(Line::try_parse_from(["paper-a", "--resume"]).is_err(), "of which folder?");
        }

        #[test]
        fn a_folder_of_another_run_is_left_alone_and_what_is_missing_is_told() {
            let room = tempfile::tempdir().unwrap();
            let path = room.path().to_str().unwrap();
            std::fs::create_dir_all(room.path().join("bearings-random-full-1")).unwrap();
            let error = run('a', &args(&["--out", path]), &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("--resume"), "{error}");
            let mut out = Vec::new();
            let report = args(&["--out", path, "--report", "--json"]);
            assert_eq!(run('a', &report, &mut out).unwrap(), Exit::Ok);
            let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let cells = json["cells"].as_array().unwrap();
            assert_eq!(cells.len(), 16);
            assert!(cells.iter().all(|cell| cell["state"] == "not run"));
            assert!(room.path().join("paper-a.html").exists());
        }
    }
}
