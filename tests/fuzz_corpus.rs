//! The fuzz targets' parsers without a fuzzer: each seed of `fuzz/corpus`, and thousands of inputs that
//! a seeded stream makes from them, so that neither targets nor seeds can rot.
//!
//! An input that made a parser panic becomes a seed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

#[path = "support/parsers.rs"]
mod parsers;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use gaisnet::rng::Stream;
use parsers::Parser;

/// Inputs made from the seeds of one parser.
const MUTATED: usize = 3_000;

/// The same where one input takes milliseconds: settings are six whole loads each.
#[cfg(feature = "cli")]
const MUTATED_SLOW: usize = 150;

/// Longest input that is made.
const MAX_BYTES: usize = 4_096;

/// Numbers that lengths and counts like to break at.
const EDGES: [&[u8]; 8] = [
    &[0xff, 0xff, 0xff, 0xff],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0xdf, 0xff, 0xff, 0xff, 0xff],
    &[0xdd, 0xff, 0xff, 0xff, 0xff],
    &[0xca, 0x7f, 0xc0, 0, 0],
    b"../",
    b"99999999999999999999",
];

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|file| file.unwrap().path())
        .collect();
    files.sort(); // the same inputs on each machine
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One change after another to some seed.
fn mutated(seeds: &[Vec<u8>], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = seeds[stream.below(seeds.len())].clone();
    for _ in 0..=stream.below(4) {
        let at = stream.below(bytes.len() + 1);
        match stream.below(8) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << stream.below(8),
            2 if at < bytes.len() => bytes[at] = u8::try_from(stream.below(256)).unwrap(),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => {
                let other = &seeds[stream.below(seeds.len())];
                let tail = other[stream.below(other.len() + 1)..].to_vec();
                bytes.truncate(at);
                bytes.extend(tail);
            }
            5 => {
                let end = (at + stream.below(16)).min(bytes.len());
                let piece = bytes[at..end].repeat(1 + stream.below(8));
                bytes.splice(at..at, piece);
            }
            6 => drop(bytes.splice(at..at, EDGES[stream.below(EDGES.len())].iter().copied())),
            _ => {
                let edge = EDGES[stream.below(EDGES.len())];
                let end = (at + edge.len()).min(bytes.len());
                bytes.splice(at..end, edge.iter().copied());
            }
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn replay(parsers: &[(&str, Parser)], mutated_inputs: usize) {
    for (target, parser) in parsers {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        let mut stream = Stream::new(1, target);
        let made = (0..mutated_inputs).map(|_| mutated(&seeds, &mut stream));
        for input in seeds.iter().cloned().chain(made) {
            let sound = catch_unwind(|| parser(&input)).is_ok();
            assert!(sound, "{target} panics on {}", hex::encode(&input));
        }
    }
}

#[test]
fn no_seed_and_no_mutation_makes_a_parser_of_the_pure_half_panic() {
    replay(&parsers::PURE, MUTATED);
}

#[cfg(feature = "cli")]
#[test]
fn no_seed_and_no_mutation_makes_settings_or_recordings_panic() {
    replay(&parsers::CLI, MUTATED_SLOW);
}

#[cfg(feature = "torch")]
#[test]
fn no_seed_and_no_mutation_makes_a_models_reader_panic() {
    replay(&parsers::TORCH, MUTATED);
}

#[cfg(feature = "broker")]
#[test]
fn no_seed_and_no_mutation_makes_the_brokers_codec_panic() {
    replay(&parsers::BROKER, MUTATED);
}

#[cfg(feature = "torch")]
#[test]
fn no_seed_and_no_mutation_makes_weights_panic() {
    replay(&parsers::TORCH, MUTATED);
}

#[test]
fn each_parser_has_its_target_and_each_target_its_parser() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let files = fs::read_dir(folder.join("fuzz_targets")).unwrap();
    let mut targets: Vec<String> = files
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    targets.sort();
    for target in &targets {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
    }
    for (name, _) in parsers::PURE {
        assert!(targets.contains(&name.to_owned()), "{name} has no target");
    }
    let text = include_str!("support/parsers.rs");
    for target in &targets {
        assert!(text.contains(&format!("(\"{target}\", {target})")), "{target} has no parser");
    }
}

#[test]
fn the_mutations_would_find_a_parser_that_panics() {
    let careless: Parser = |bytes| assert!(!bytes.ends_with(&[0xff; 4]), "found");
    let (seeds, mut stream) = (seeds("envelope"), Stream::new(1, "careless"));
    let made = (0..MUTATED).map(|_| mutated(&seeds, &mut stream));
    let found = made.into_iter().filter(|input| catch_unwind(|| careless(input)).is_err());
    assert!(found.count() > 0);
}
