//! `gaisnet sim`: the protocol of thousands of machines in virtual time, with faults, over seeds.

use std::io::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::Exit;
use super::exit::Misuse;
use crate::report::{SimReport, SimRow, SimViolation, sim_to_html, sim_to_json, sim_to_table};
use crate::sim::{self, INVARIANTS, Outcome, Progress, SHIPPED, Scenario, TrustKind};
use crate::telemetry::{machine, usage};

/// Arguments of `gaisnet sim`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct SimArgs {
    #[command(subcommand)]
    command: Option<SimCommand>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum SimCommand {
    /// List the scenarios that the program brings along
    #[command(after_help = LIST_HELP)]
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Name of a scenario (see `gaisnet sim list`), or a TOML file
    #[arg(value_name = "SCENARIO")]
    scenario: Option<String>,
    /// Run this seed alone
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds, both ends too, instead of the scenario's
    #[arg(long, value_name = "A..B", value_parser = seeds_of)]
    seeds: Option<RangeInclusive<u64>>,
    /// Run it once for each of these numbers of edges, to see what a device and round costs
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    edges: Vec<u32>,
    /// With --edges: run each size again with so many federations in turns, seeds from the first on, that memory holds
    /// about this many devices at each. Tells what a federation's size costs from most of what caches do
    #[arg(long, value_name = "DEVICES", requires = "edges", conflicts_with = "threads",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    abreast: Option<u32>,
    /// Seeds at a time; else one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Folder for sim.json and sim.html
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs `gaisnet sim`.
pub(super) fn run(args: &SimArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    if let Some(SimCommand::List { json }) = args.command {
        return list(json, out);
    }
    let args = &args.run;
    let Some(name) = &args.scenario else {
        return Err(Misuse(format!("name a scenario: {}, or a file", names())).into());
    };
    let scenario = read(name)?;
    let seeds = match (args.seed, &args.seeds) {
        (Some(seed), _) => seed..=seed,
        (None, Some(seeds)) => seeds.clone(),
        (None, None) => scenario.seeds[0]..=scenario.seeds[1],
    };
    let report = simulate(&scenario, &seeds, args)?;
    if let Some(folder) = &args.out {
        write(&report, folder)?;
    }
    if args.json {
        writeln!(out, "{:#}", sim_to_json(&report))?;
    } else {
        writeln!(out, "{}", sim_to_table(&report))?;
        if let Some(folder) = &args.out {
            writeln!(out, "The page with its plots: {}", folder.join("sim.html").display())?;
        }
    }
    Ok(if report.is_broken() { Exit::Violated } else { Exit::Ok })
}

fn list(json: bool, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let mut all = Vec::new();
    for (name, text) in SHIPPED {
        let scenario = Scenario::from_toml(name, name, text)?;
        let [first, last] = scenario.seeds;
        if json {
            all.push(serde_json::json!({
                "scenario": name,
                "what": scenario.what,
                "nodes": scenario.num_nodes(),
                "seeds": [first, last],
            }));
        } else {
            writeln!(out, "{name:8} {} (seeds {first} to {last})", scenario.what)?;
        }
    }
    if json {
        writeln!(out, "{:#}", serde_json::Value::from(all))?;
    }
    Ok(Exit::Ok)
}

/// A scenario of the program's own by its name, or one of a file.
fn read(name: &str) -> anyhow::Result<Scenario> {
    if let Some((name, text)) = SHIPPED.iter().find(|(known, _)| *known == name) {
        return Ok(Scenario::from_toml(name, &format!("{name}.toml"), text)?);
    }
    let path = Path::new(name);
    if !path.is_file() {
        let known = names();
        return Err(Misuse(format!("{name} is no file and no scenario: there are {known}")).into());
    }
    let text = std::fs::read_to_string(path).with_context(|| name.to_owned())?;
    Ok(Scenario::from_toml(name, name, &text)?)
}

fn simulate(
    scenario: &Scenario,
    seeds: &RangeInclusive<u64>,
    args: &RunArgs,
) -> anyhow::Result<SimReport> {
    let trust = match scenario.trust {
        TrustKind::Signed => "each message is signed (Ed25519) and opened as a node opens it",
        TrustKind::Assumed => {
            "assumed: senders are believed, nothing is signed; marked forgeries are refused"
        }
    };
    let mut report = SimReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned(),
        machine: machine(),
        scenario: scenario.name.clone(),
        what: scenario.what.clone(),
        trust: trust.to_owned(),
        devices_abreast: args.abreast,
        invariants: INVARIANTS.map(|(name, what)| (name.to_owned(), what.to_owned())).into(),
        rows: Vec::new(),
    };
    if args.edges.is_empty() {
        report.rows.push(runs_of(scenario, seeds, args)?);
    }
    let sizes = args.edges.iter().map(|&edges| sized(scenario, edges));
    let sizes: Vec<Scenario> = sizes.collect::<Result<_, _>>()?;
    if let Some(devices) = args.abreast {
        check_abreast(devices, &sizes, *seeds.start())?;
    }
    for size in &sizes {
        report.rows.push(runs_of(size, seeds, args)?);
    }
    let Some(devices) = args.abreast else { return Ok(report) };
    for size in &sizes {
        let abreast = u64::from(devices / size.num_devices());
        report.rows.push(runs_abreast(size, *seeds.start(), abreast, args)?);
    }
    Ok(report)
}

/// The scenario with another number of edges.
fn sized(scenario: &Scenario, edges: u32) -> anyhow::Result<Scenario> {
    let mut sized = scenario.clone();
    sized.tiers.edges = edges;
    sized.name = format!("{} --edges {edges}", scenario.name);
    sized.check("--edges")?;
    Ok(sized)
}

/// That each size fits into so many devices, and that there are seeds for as many federations.
fn check_abreast(devices: u32, sizes: &[Scenario], first: u64) -> Result<(), Misuse> {
    let largest = sizes.iter().map(Scenario::num_devices).max().unwrap_or_default();
    if devices < largest {
        let what = "take as many or more, the largest size has them by itself";
        return Err(Misuse(format!("--abreast {devices} is less than {largest}: {what}")));
    }
    match first.checked_add(u64::from(devices)) {
        Some(_) => Ok(()),
        None => Err(Misuse(format!("--abreast {devices}: too few seeds from {first} on"))),
    }
}

/// Runs the seeds, each from its beginning to its end; one after the other where they are compared with runs in turns.
fn runs_of(
    scenario: &Scenario,
    seeds: &RangeInclusive<u64>,
    args: &RunArgs,
) -> anyhow::Result<SimRow> {
    let threads = args.abreast.map_or(args.threads, |_| Some(1));
    row_of(scenario, seeds, args, |bar| all_seeds(scenario, seeds, threads, bar))
}

/// Runs so many seeds in turns.
fn runs_abreast(
    scenario: &Scenario,
    first: u64,
    abreast: u64,
    args: &RunArgs,
) -> anyhow::Result<SimRow> {
    let last = first + (abreast - 1);
    let row = row_of(scenario, &(first..=last), args, |bar| {
        bar.set_message(format!("{abreast} x {}", scenario.name));
        bar.set_length(scenario.rounds.count.saturating_mul(abreast));
        let watch = &mut |progress: Progress| bar.set_position(progress.versions);
        let run = || sim::run_in_turns(scenario, first..=last, watch);
        // A thread of its own, as the others have: its memory is managed the same way.
        let outcomes = std::thread::scope(|scope| scope.spawn(run).join());
        outcomes.map_err(|_| anyhow::anyhow!(PANICKED))
    })?;
    Ok(SimRow { abreast: Some(abreast), ..row })
}

fn row_of(
    scenario: &Scenario,
    seeds: &RangeInclusive<u64>,
    args: &RunArgs,
    runs: impl FnOnce(&ProgressBar) -> anyhow::Result<Vec<Outcome>>,
) -> anyhow::Result<SimRow> {
    let bar = bar(args.json);
    let before = usage()?;
    let outcomes = runs(&bar)?;
    let after = usage()?;
    bar.finish_and_clear();
    let mut row = SimRow {
        edges: scenario.tiers.edges,
        devices: scenario.num_devices(),
        rounds: scenario.rounds.count,
        seeds: (*seeds.start(), *seeds.end()),
        cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        peak_rss_mib: after.peak_rss_mib(),
        trace: outcomes.first().map(|outcome| outcome.trace.to_string()).unwrap_or_default(),
        ..SimRow::default()
    };
    let mut counted = std::collections::BTreeMap::new();
    for outcome in &outcomes {
        for (at, (name, count)) in counts(outcome).into_iter().enumerate() {
            match row.counts.get_mut(at) {
                Some((_, sum)) => *sum += count,
                None => row.counts.push((name.to_owned(), count)),
            }
        }
        for (word, count) in &outcome.figures.counted {
            *counted.entry(*word).or_insert(0) += count;
        }
    }
    row.counted = counted.into_iter().map(|(word, count)| (word.to_owned(), count)).collect();
    row.violations = outcomes.iter().filter_map(violation).collect();
    Ok(row)
}

/// Runs all seeds, several at a time; gives their outcomes in the order of seeds.
fn all_seeds(
    scenario: &Scenario,
    seeds: &RangeInclusive<u64>,
    threads: Option<u64>,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Outcome>> {
    let (first, last) = (*seeds.start(), *seeds.end());
    let many = (last - first).saturating_add(1);
    bar.set_length(if many == 1 { scenario.rounds.count } else { many });
    bar.set_message(scenario.name.clone());
    let next = AtomicU64::new(first);
    let done = Mutex::new(Vec::new());
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if !(first..=last).contains(&seed) {
            break;
        }
        let outcome = sim::run(scenario, seed, &mut |progress| {
            if many == 1 {
                bar.set_position(progress.versions);
            }
        });
        bar.inc(u64::from(many > 1));
        done.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get) as u64;
    let threads = threads.unwrap_or(cores).min(many);
    let all_ended = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().all(|handle| handle.join().is_ok())
    });
    anyhow::ensure!(all_ended, PANICKED);
    let mut outcomes = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.seed);
    Ok(outcomes)
}

const PANICKED: &str = "a simulated node has panicked: this is a bug";

fn counts(outcome: &Outcome) -> [(&'static str, u64); 19] {
    let figures = &outcome.figures;
    [
        ("virtual_ms", figures.virtual_ms),
        ("versions", figures.versions),
        ("steps", figures.steps),
        ("commits", figures.commits),
        ("sent", figures.sent),
        ("bytes", figures.bytes),
        ("delivered", figures.delivered),
        ("lost", figures.lost),
        ("repeated", figures.repeated),
        ("chunks", figures.chunks),
        ("forged", figures.forged),
        ("refused", figures.refused),
        ("crashes", figures.crashes),
        ("departures", figures.departures),
        ("lapses", figures.lapses),
        ("cuts", figures.cuts),
        ("moves", figures.moves),
        ("accepted", figures.accepted),
        ("late", figures.late),
    ]
}

fn violation(outcome: &Outcome) -> Option<SimViolation> {
    let violation = outcome.violation.as_ref()?;
    Some(SimViolation {
        seed: outcome.seed,
        invariant: violation.invariant.clone(),
        what: violation.what.clone(),
        step: violation.step,
        at_ms: violation.at_ms,
        trace: outcome.trace.to_string(),
        command: outcome.command(),
    })
}

fn write(report: &SimReport, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let json = format!("{:#}\n", sim_to_json(report));
    for (name, text) in [("sim.json", json), ("sim.html", sim_to_html(report))] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn bar(quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    if let Ok(style) = ProgressStyle::with_template("{msg:>24} [{bar:30}] {pos}/{len} {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn names() -> String {
    SHIPPED.map(|(name, _)| name).join(", ")
}

fn seeds_of(text: &str) -> Result<RangeInclusive<u64>, String> {
    const MOST: u64 = 1_000_000;
    let wrong = || format!("{text:?} has to be A..B, two whole numbers with A <= B");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let last = last.strip_prefix('=').unwrap_or(last);
    let first: u64 = first.trim().parse().map_err(|_| wrong())?;
    let last: u64 = last.trim().parse().map_err(|_| wrong())?;
    if first > last {
        return Err(wrong());
    }
    if last - first >= MOST {
        return Err(format!("{text:?} is more than {MOST} seeds"));
    }
    Ok(first..=last)
}

pub(super) const HELP: &str = "\
Examples:
  gaisnet sim list
  gaisnet sim small
  gaisnet sim faults --seeds 1..200
  gaisnet sim faults --seed 17 --json | jq '.runs[0].trace'
  gaisnet sim scale --edges 2,20,200 --out ./scale
  gaisnet sim scale --edges 2,20,200 --abreast 10000 --out ./scale
  gaisnet sim ./our-plant.toml --seed 1

The run is a pure function of scenario and seed: the same two give the same trace. Exit code 4 says
that an invariant was broken; the output names the seed, the step and the command that shows it again.";

const LIST_HELP: &str = "\
Examples:
  gaisnet sim list
  gaisnet sim list --json | jq -r '.[].scenario'";

#[cfg(test)]
mod tests {
    use super::super::tests::gaisnet;
    use super::*;

    #[test]
    fn what_is_listed_can_be_read() {
        let (exit, out) = gaisnet(&["sim", "list", "--json"]);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let listed: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
        assert_eq!(listed.len(), SHIPPED.len());
        for scenario in listed {
            read(scenario["scenario"].as_str().unwrap()).unwrap();
        }
    }

    #[test]
    fn small_and_island_run_and_the_same_seed_has_the_same_trace() {
        for name in ["small", "island"] {
            let trace = || {
                let (exit, out) = gaisnet(&["sim", name, "--seed", "3", "--json"]);
                assert_eq!(exit.unwrap(), Exit::Ok, "{out}");
                let json: serde_json::Value = serde_json::from_str(&out).unwrap();
                assert_eq!(json["broken"], false);
                json["runs"][0]["trace"].as_str().unwrap().to_owned()
            };
            assert_eq!(trace(), trace());
        }
    }

    #[test]
    fn seeds_run_in_threads_and_the_page_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().to_str().unwrap();
        let line = ["sim", "faults", "--seeds", "1..3", "--threads", "2", "--out", out];
        let (exit, table) = gaisnet(&line);
        assert_eq!(exit.unwrap(), Exit::Ok, "{table}");
        assert!(table.contains("3 runs, and no invariant was broken"), "{table}");
        let page = std::fs::read_to_string(folder.path().join("sim.html")).unwrap();
        assert!(page.contains("<svg") && page.contains("counted_once"));
    }

    #[test]
    fn sizes_run_alone_and_then_with_as_many_devices_in_memory() {
        let line =
            ["sim", "faults", "--edges", "1,2,4", "--seed", "5", "--abreast", "16", "--json"];
        let (exit, out) = gaisnet(&line);
        assert_eq!(exit.unwrap(), Exit::Ok, "{out}");
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        let runs = json["runs"].as_array().unwrap();
        let told =
            |key: &str| runs.iter().map(|run| run[key].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(told("devices"), [4, 8, 16, 4, 8, 16]);
        let abreast: Vec<_> = runs.iter().map(|run| run["abreast"].as_u64()).collect();
        assert_eq!(abreast, [None, None, None, Some(4), Some(2), Some(1)]);
        assert_eq!(json["devices_abreast"], 16);
        assert_eq!(runs[3]["seeds"], serde_json::json!([5, 8]));
        for size in 0..3 {
            assert_eq!(runs[size]["trace"], runs[size + 3]["trace"]);
        }
    }

    #[test]
    fn an_invariant_that_is_broken_ends_with_its_own_code() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hasty.toml");
        let text =
            "what = \"no time to finish\"\n[tiers]\nedges = 1\ndevices = 1\n[pace]\nend_ms = 300\n";
        std::fs::write(&file, text).unwrap();
        let (exit, out) = gaisnet(&["sim", file.to_str().unwrap()]);
        assert_eq!(exit.unwrap(), Exit::Violated);
        assert!(out.contains("converges") && out.contains("--seed 1"), "{out}");
    }

    #[test]
    fn mistakes_say_what_would_fit() {
        let error = |line: &[&str]| format!("{:#}", gaisnet(line).0.unwrap_err());
        assert!(
            error(&["sim", "fast"]).contains("small, faults, island, standby, second-edge, scale")
        );
        assert!(error(&["sim"]).contains("name a scenario"));
        assert!(error(&["sim", "small", "--edges", "0"]).contains("1 to 1000"));
        let abreast = |seed, devices| {
            error(&["sim", "faults", "--edges", "2,1", "--seed", seed, "--abreast", devices])
        };
        assert!(abreast("1", "7").contains("less than 8: take as many or more"));
        assert!(abreast(&u64::MAX.to_string(), "8").contains("too few seeds"));
        for (text, fits) in [("1..3", true), ("1..=3", true), ("3..1", false), ("x", false)] {
            assert_eq!(seeds_of(text).is_ok(), fits, "{text}");
        }
        assert!(seeds_of("0..9999999999").unwrap_err().contains("more than"));
    }
}
