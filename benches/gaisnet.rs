//! What gaisnet costs beside what it can't do without: messages beside a bare MQTT client and bare
//! Ed25519, answers beside a bare round trip, aggregation beside a memory copy.
//!
//! Shows: a table of figures, each with its reference measured in the same run.
//! Run: `make bench`, or `cargo bench --bench gaisnet -- [--quick] [--json FILE] [envelope aggregation messages chunks latency federation]`.
//! Expect: about two minutes, and one line a figure; docs/benchmarks.md tells what each means.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints a table")]

mod suite;

use std::process::ExitCode;

use suite::{Effort, Part};

fn main() -> ExitCode {
    let mut effort = Effort::Full;
    let mut json = None;
    let mut parts = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo says so to every benchmark
            "--quick" => effort = Effort::Quick,
            "--json" => json = arguments.next(),
            word => {
                let Some(part) = Part::parse(word) else {
                    eprintln!("{word:?} is none of: --quick, --json FILE, {}", Part::words());
                    return ExitCode::from(2);
                };
                parts.push(part);
            }
        }
    }
    if parts.is_empty() {
        parts.extend(Part::ALL);
    }
    println!("{}\n{}", suite::output::machine(), suite::output::heading());
    let mut rows = Vec::new();
    for part in parts {
        part.run(effort, &mut |row| {
            println!("{}", suite::output::line(&row));
            rows.push(row);
        });
    }
    if let Some(path) = json
        && let Err(error) = std::fs::write(&path, suite::output::json(&rows))
    {
        eprintln!("{path}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
