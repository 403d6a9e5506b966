//! Chaos: federations of real processes at real mosquitto brokers, and what can happen to them, one thing after
//! another. Between two faults a round closes with work that was counted after the first one. In the end all
//! nodes stop, and their ledgers are counted against each other. `make chaos` starts it; docs/chaos.md tells how to
//! read it. Only the counting runs with the other tests.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test"
)]

mod clouds;
mod count;
mod faults;
mod federation;
mod link;
mod machine;
mod report;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use count::{Ledgers, Seat};
use faults::Fault;
use federation::{CLOUDS, Federation, SITES, pause, since_now};
use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;
use gaisnet::ids::Digest;
use gaisnet::rng::Stream;
use report::Report;
use support::skip;
use tokio::runtime::Handle;

/// What a run is asked for.
#[derive(Debug, Clone)]
struct Plan {
    seconds: u64,
    federations: u64,
    seed: u64,
    /// Versions that are compared with a run without faults.
    versions: u64,
    /// Only faults whose name in the code begins so.
    only: String,
    /// A guard that is taken away from all nodes.
    without: Option<String>,
}

impl Plan {
    fn from_env() -> Self {
        let quick = std::env::var_os("QUICK").is_some_and(|quick| quick == "1");
        let number = |name: &str, or: u64| {
            let found = std::env::var(name).ok().filter(|text| !text.is_empty());
            found.map_or(or, |text| {
                text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
            })
        };
        Self {
            seconds: number("SECONDS_OF_CHAOS", if quick { 180 } else { 3_300 }),
            federations: number("FEDERATIONS", if quick { 1 } else { 3 }),
            seed: number("SEED", 1),
            versions: number("VERSIONS", if quick { 60 } else { 400 }),
            only: std::env::var("ONLY").unwrap_or_default(),
            without: std::env::var("WITHOUT").ok().filter(|text| !text.is_empty()),
        }
    }
}

#[test]
#[ignore = "minutes of processes that die: make chaos"]
fn chaos() {
    if Bearings::cached(&Cache::from_env().unwrap()).is_none() {
        return skip("data set bearings is not in the cache (gaisnet data fetch bearings)");
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let plan = Plan::from_env();
    let begun = since_now();
    let handle = runtime.handle();
    let mut report = Report { seed: plan.seed, ..Report::default() };
    std::thread::scope(|scope| {
        let twin = scope.spawn(|| undisturbed(&plan, handle));
        let number = |number| (number, &plan);
        let all: Vec<_> = (1..=plan.federations)
            .map(number)
            .map(|(number, plan)| scope.spawn(move || disturbed(number, plan, handle)))
            .collect();
        let twin = twin.join().unwrap();
        for one in all {
            let Some(mut one) = one.join().unwrap() else { continue };
            for (version, result) in &one.counts.results {
                let Some(expected) = twin.get(version) else { continue };
                one.compared += 1;
                one.differing += u64::from(expected != result);
            }
            report.add(one);
        }
    });
    report.seconds = begun.elapsed().as_secs();
    if report.federations == 0 {
        return; // said and counted
    }
    let path = std::env::var("JSON").ok().filter(|path| !path.is_empty());
    let text = serde_json::to_string_pretty(&report.json()).unwrap();
    if let Some(path) = path {
        std::fs::write(&path, &text).unwrap();
    }
    println!("{text}");
    println!("{}", report.line());
    assert!(report.is_good(), "{}", report.line());
}

/// A federation that nothing happens to: its results by version.
fn undisturbed(plan: &Plan, runtime: &Handle) -> BTreeMap<u64, Digest> {
    if plan.versions == 0 {
        return BTreeMap::new();
    }
    let Some(mut federation) = Federation::start(runtime, Vec::new()) else {
        return BTreeMap::new();
    };
    let begun = since_now();
    let most = STARTS_WITHIN.as_secs() + plan.seconds;
    while federation.version() < plan.versions && begun.elapsed().as_secs() < most {
        federation.listen();
        pause(Duration::from_millis(100));
    }
    federation.stop();
    count::count(&ledgers(&federation), &seats()).results
}

/// A federation to which one fault happens after another until the time is over.
fn disturbed(number: u64, plan: &Plan, runtime: &Handle) -> Option<Report> {
    // Several federations share a machine, and a round in between is enough.
    let mut variables = vec!["GAISNET__ROUND__PAUSE_S=1".to_owned()];
    variables.extend(plan.without.iter().map(|guard| format!("GAISNET_WITHOUT={guard}")));
    let mut federation = Federation::start(runtime, variables)?;
    let mut report = Report::default();
    let mut draw = Stream::new(plan.seed, &format!("chaos {number}"));
    let mut ended = federation.recover(since_now(), STARTS_WITHIN).map(|_| ());
    let begun = since_now();
    let mut deck = Vec::new();
    while ended.is_ok() && begun.elapsed().as_secs() < plan.seconds {
        if deck.is_empty() {
            deck = plan.without.as_deref().map_or_else(Fault::deck, Fault::deck_without);
            deck.retain(|fault| format!("{fault:?}").starts_with(&plan.only));
            assert!(!deck.is_empty(), "ONLY={} leaves no fault", plan.only);
            draw.shuffle(&mut deck);
        }
        let Some(fault) = deck.pop() else { continue };
        let struck = match fault.strike(&mut federation, &mut draw) {
            Ok(struck) => struck,
            Err(why) => {
                *report.skipped.entry(why).or_default() += 1;
                continue;
            }
        };
        report.failures.extend(struck.missed.map(|what| format!("federation {number}: {what}")));
        ended = federation.recover(struck.at, RECOVERS_WITHIN).map(|took| {
            report.note(&struck.kind, took);
            let (version, took) = (federation.version(), took.as_millis());
            eprintln!("{number}: {} recovered in {took} ms, version {version}", struck.kind);
        });
        ended = ended.map_err(|what| format!("federation {number} after {}: {what}", struck.kind));
        // Not in step with the rounds.
        pause(Duration::from_millis(draw.below(700) as u64));
    }
    if let Err(what) = ended {
        eprintln!("{number}: {what}");
        report.failures.push(what);
    }
    report.deaths = federation.deaths();
    let unruly = federation.stop();
    if !unruly.is_empty() {
        report.failures.push(format!("federation {number}: {unruly:?} didn't end in order"));
    }
    report.counts = count::count(&ledgers(&federation), &seats());
    let audit = support::process::gaisnet(&[
        "audit",
        "verify",
        "--all",
        federation.root().to_str().unwrap(),
        "--keyring",
        &federation.keyring(),
    ]);
    if !audit.status.success() {
        report.failures.push(format!("federation {number}: {}", support::process::text(&audit)));
    }
    for finding in report.counts.findings.iter().chain(&report.failures) {
        eprintln!("{number}: {finding}");
    }
    Some(report)
}

/// Each node's ledger; nobody runs any more.
fn ledgers(federation: &Federation) -> Ledgers {
    let read = |name: &'static str| {
        let own = machine::entries(&federation.folder(name).join("store"));
        (name, federation.with_what_was_put_back(name, own))
    };
    federation.names().into_iter().map(read).collect()
}

/// Who owns the rounds of whom.
fn seats() -> Vec<Seat> {
    let edges = SITES.iter().map(|(edge, _)| *edge).collect();
    let mut seats = vec![Seat { owners: CLOUDS.to_vec(), members: edges }];
    for (edge, devices) in SITES {
        seats
            .push(Seat { owners: vec![edge], members: devices.map(|(device, _)| device).to_vec() });
    }
    seats
}

/// What a federation may take at most, on a machine that does other things too.
const RECOVERS_WITHIN: Duration = Duration::from_secs(180);
/// The same for nine processes that start at once and read their recordings.
const STARTS_WITHIN: Duration = Duration::from_secs(300);
