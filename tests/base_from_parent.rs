//! A base's way from parent to child: over a wire that does harm, with parents and strangers that do, and over
//! restarts of either side.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use federation::{Plant, key_of, name, paused};
use gaisnet::actors::Figures;
use gaisnet::bus::memory::Faults;
use gaisnet::bus::{Bus, BusEvent, Priority, Publish};
use gaisnet::data::Cache;
use gaisnet::ids::{BootId, Digest, Name};
use gaisnet::ledger::Event;
use gaisnet::node::{BaseError, BaseFetchParts, BaseProgress, HeldFiles, WantedBase, fetch_base};
use gaisnet::protocol::Giving;
use gaisnet::rng::Stream;
use gaisnet::topic::{Branch, Prefix};
use gaisnet::trust::pins::FilePin;
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{BaseChunk, BaseFile, Body, Envelope, Get, Kind, Wanted, split_pair};
use tempfile::TempDir;

const CHUNK: u32 = 4_096;
const CHILD: &str = "dev0-0";

/// A base of two files that lies in a folder of its parent, and the child's empty cache.
struct Base {
    room: TempDir,
    files: Vec<FilePin>,
}

impl Base {
    fn new() -> Self {
        let room = tempfile::tempdir().unwrap();
        let held = room.path().join("held");
        std::fs::create_dir(&held).unwrap();
        let mut stream = Stream::new(1, "tests/base");
        let mut file = |name: &str, len: usize| {
            let bytes: Vec<u8> = (0..len).map(|_| stream.below(256) as u8).collect();
            std::fs::write(held.join(name), &bytes).unwrap();
            let (sha256, bytes) = (Digest::of(&bytes), len as u64);
            FilePin { name: name.into(), path: None, sha256, bytes }
        };
        let files = vec![file("config.json", 700), file("model.safetensors", 2_000_003)];
        Self { room, files }
    }

    fn held(&self) -> PathBuf {
        self.room.path().join("held")
    }

    fn wanted(&self) -> WantedBase {
        WantedBase {
            name: "tiny".into(),
            folder: "tiny-1".into(),
            files: self.files.clone(),
            papers: vec![("tiny.toml".into(), b"card".to_vec())],
            cache: Cache::at(self.room.path().join("cache")),
        }
    }

    /// The child's unfinished part of the big file.
    fn unfinished(&self) -> PathBuf {
        let sha256 = self.files[1].sha256.to_string();
        self.room.path().join("cache/models/unfinished").join(sha256)
    }

    fn is_whole(&self, folder: &Path) {
        for file in &self.files {
            let there = std::fs::read(folder.join(&file.name)).unwrap();
            assert_eq!(Digest::of(&there), file.sha256, "{}", file.name);
        }
        assert_eq!(std::fs::read(folder.join("tiny.toml")).unwrap(), b"card");
        assert!(!self.unfinished().exists());
    }

    fn chunks(&self) -> u64 {
        self.files.iter().map(|file| file.bytes.div_ceil(CHUNK.into())).sum()
    }
}

/// Starts the parent, with or without the base.
fn start_parent(plant: &mut Plant, base: Option<&Base>) {
    let mut parts = plant.parts(&name("edge0"));
    parts.bases = base.map(|base| {
        let held = HeldFiles::new(&base.held(), &base.files, CHUNK);
        Arc::new(held) as Arc<_>
    });
    plant.run(parts);
}

fn parts_of(plant: &mut Plant) -> BaseFetchParts {
    let parts = plant.parts(&name(CHILD));
    BaseFetchParts {
        identity: parts.identity,
        links: parts.links,
        clock: parts.clock,
        figures: parts.figures,
    }
}

type Outcome = Result<Option<PathBuf>, BaseError>;

/// Fetches until it ends, or until `enough` bytes are on disk; what it told last, and its counters.
async fn fetch(
    plant: &mut Plant,
    base: &Base,
    enough: u64,
) -> (Outcome, BaseProgress, Arc<Figures>) {
    let (parts, wanted) = (parts_of(plant), base.wanted());
    let figures = Arc::clone(&parts.figures);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (mut stop, mut last) = (Some(stop), None);
    let mut told = |progress: &BaseProgress| {
        last = Some(progress.clone());
        if progress.have >= enough {
            drop(stop.take());
        }
    };
    let stopped = pin!(async { drop(stopped.await) });
    let outcome = fetch_base(&wanted, parts, &mut told, stopped).await;
    (outcome, last.unwrap(), figures)
}

fn given(plant: &Plant) -> u64 {
    plant.running[&name("edge0")].figures.view().sent.get("base").copied().unwrap_or(0)
}

#[test]
fn a_base_comes_whole_over_a_wire_that_loses_repeats_and_reorders() {
    for seed in 1..=3 {
        paused(async move {
            let faults =
                Faults { seed, loss: 0.1, duplicate: 0.1, delay_ms: 0..=200, reorder: true };
            let (mut plant, base) = (Plant::new(1, 1, 1, &faults), Base::new());
            start_parent(&mut plant, Some(&base));
            let (outcome, last, _) = fetch(&mut plant, &base, u64::MAX).await;
            base.is_whole(&outcome.unwrap().unwrap());
            assert_eq!(last.problem, None);
        });
    }
}

#[test]
fn a_child_that_is_stopped_anywhere_goes_on_and_only_what_is_missing_is_given_again() {
    paused(async {
        // The wire takes its time, so that there is a middle to stop in.
        let slow = Faults { delay_ms: 10..=20, ..Faults::none(1) };
        let (mut plant, base) = (Plant::new(1, 1, 1, &slow), Base::new());
        start_parent(&mut plant, Some(&base));
        let mut starts = 0;
        let mut have = 0;
        let folder = loop {
            let (outcome, last, _) = fetch(&mut plant, &base, have + 300_000).await;
            starts += 1;
            assert!(last.have > have, "each start brings something");
            have = last.have;
            if let Some(folder) = outcome.unwrap() {
                break folder;
            }
            // As if it had been killed while it wrote.
            let rubbish = std::fs::read(base.unfinished()).unwrap();
            std::fs::write(base.unfinished(), [rubbish, vec![7; 33]].concat()).unwrap();
        };
        base.is_whole(&folder);
        assert!(starts > 3, "{starts}");
        // A start costs the first chunk once more, and what was on its way when it was stopped.
        let most = base.chunks() + starts * 17;
        assert!((base.chunks()..=most).contains(&given(&plant)), "{} of {most}", given(&plant));
    });
}

#[test]
fn a_parent_that_starts_again_in_the_middle_is_asked_for_the_rest() {
    paused(async {
        let slow = Faults { delay_ms: 10..=20, ..Faults::none(1) };
        let (mut plant, base) = (Plant::new(1, 1, 1, &slow), Base::new());
        start_parent(&mut plant, Some(&base));
        let (outcome, ..) = fetch(&mut plant, &base, 600_000).await;
        assert!(outcome.unwrap().is_none());
        let (parts, wanted) = (parts_of(&mut plant), base.wanted());
        let child = async {
            let mut told = |_: &BaseProgress| {};
            fetch_base(&wanted, parts, &mut told, pin!(std::future::pending())).await
        };
        let parent = async {
            plant.running.remove(&name("edge0")).unwrap().stop("test", 0).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            start_parent(&mut plant, Some(&base));
        };
        let (outcome, ()) = tokio::join!(child, parent);
        base.is_whole(&outcome.unwrap().unwrap());
        let rest = base.chunks() - 600_000 / u64::from(CHUNK) + 34;
        assert!(given(&plant) <= rest, "{} of {rest}", given(&plant));
    });
}

#[test]
fn a_parent_without_the_base_is_told_with_what_to_do_there() {
    paused(async {
        let (mut plant, base) = (Plant::new(1, 1, 1, &Faults::none(1)), Base::new());
        let (parts, wanted) = (parts_of(&mut plant), base.wanted());
        let mut seen = Vec::new();
        let child = async {
            let mut told = |progress: &BaseProgress| {
                if seen.last().is_none_or(|(giving, _)| *giving != progress.giving) {
                    seen.push((progress.giving, progress.to_string()));
                }
            };
            fetch_base(&wanted, parts, &mut told, pin!(std::future::pending())).await
        };
        let parent = async {
            tokio::time::sleep(Duration::from_secs(90)).await;
            start_parent(&mut plant, None);
            tokio::time::sleep(Duration::from_secs(90)).await;
            plant.running.remove(&name("edge0")).unwrap().stop("test", 0).await;
            start_parent(&mut plant, Some(&base));
        };
        let (outcome, ()) = tokio::join!(child, parent);
        base.is_whole(&outcome.unwrap().unwrap());
        let words: Vec<Giving> = seen.iter().map(|(giving, _)| *giving).collect();
        assert_eq!(words[..3], [Giving::Chunks, Giving::Nothing, Giving::Absent]);
        assert!(seen[1].1.contains("edge0 doesn't answer"), "{}", seen[1].1);
        assert!(seen[2].1.contains("run `gaisnet model fetch tiny` there"), "{}", seen[2].1);
    });
}

/// Says on the site's broker what the test likes, signed by whom it likes.
struct Stranger {
    bus: Arc<dyn Bus>,
    events: tokio::sync::mpsc::Receiver<BusEvent>,
}

fn branch(node: &str, line: &str) -> Branch {
    let (site, line, prefix) = (name("site0"), name(line), Prefix::new("gaisnet").unwrap());
    Branch { prefix, site, line, node: name(node) }
}

fn sealed(by: &str, line: &str, to: &str, file: &BaseFile) -> (String, Vec<u8>) {
    let boot = BootId([99; 16]);
    let mut sealer = Sealer::new(key_of(&name(by)), name("fed"), branch(by, line), boot);
    let to = To::Directly(name(to));
    sealer.seal(&to, &Body::Base(file.clone()), 0, 0, federation::START).unwrap()
}

impl Stranger {
    fn at(plant: &Plant) -> Self {
        let (bus, events) = plant.site_buses[&name("site0")].connect("stranger", None);
        bus.subscribe(&["gaisnet/v1/site0/line/dev0-0/to/edge0/get".to_owned()]).unwrap();
        Self { bus: Arc::new(bus), events }
    }

    fn say(&self, topic: &str, payload: Vec<u8>) {
        let (topic, priority) = (topic.to_owned(), Priority::Bulk);
        let message = Publish { topic, payload, at_least_once: true, retain: false, priority };
        self.bus.publish(message).unwrap();
    }

    /// The next request of the child.
    async fn asked(&mut self) -> (Digest, Vec<u32>) {
        loop {
            let BusEvent::Delivery(delivery) = self.events.recv().await.unwrap() else { continue };
            delivery.ack.release();
            let envelope = Envelope::from_bytes(&delivery.payload, 4_096).unwrap();
            let (_, body) = split_pair(&envelope.payload, 4_096).unwrap();
            let Ok(Body::Get(Get { wanted: Wanted::Base { sha256, indices } })) =
                Body::from_bytes(Kind::Get, body)
            else {
                panic!("something else is asked for")
            };
            return (sha256, indices);
        }
    }

    /// Plays the parent, with its key; `lie` may change a chunk.
    async fn give(&mut self, base: &Base, mut lie: impl FnMut(&mut BaseChunk)) {
        loop {
            let (sha256, indices) = self.asked().await;
            let pin = base.files.iter().find(|file| file.sha256 == sha256).unwrap();
            let bytes = std::fs::read(base.held().join(&pin.name)).unwrap();
            for index in indices {
                let data = bytes.chunks(CHUNK as usize).nth(index as usize).unwrap().to_vec();
                let mut chunk = BaseChunk { index, chunk_bytes: CHUNK, data };
                lie(&mut chunk);
                let file = BaseFile { sha256, chunk: Some(chunk) };
                let (topic, payload) = sealed("edge0", "_", CHILD, &file);
                self.say(&topic, payload);
            }
        }
    }
}

/// A parent that changes a byte of the 100th chunk so many times.
async fn with_a_liar(lies: u32) -> (Outcome, Base, Arc<Figures>, u32) {
    let (mut plant, base) = (Plant::new(1, 1, 1, &Faults::none(1)), Base::new());
    let mut liar = Stranger::at(&plant);
    let mut told = 0;
    let lie = |chunk: &mut BaseChunk| {
        if chunk.index == 100 && told < lies {
            told += 1;
            chunk.data[5] ^= 1;
        }
    };
    let (outcome, _, figures) = tokio::select! {
        () = liar.give(&base, lie) => unreachable!("it gives for ever"),
        done = fetch(&mut plant, &base, u64::MAX) => done,
    };
    (outcome, base, figures, told)
}

#[test]
fn a_parent_that_gives_another_file_is_asked_three_times_and_one_that_erred_once_is_forgiven() {
    paused(async {
        let (outcome, base, figures, told) = with_a_liar(u32::MAX).await;
        let error = outcome.unwrap_err();
        let BaseError::Wrong { times, .. } = &error else { panic!("{error}") };
        assert_eq!((*times, told), (3, 3));
        assert!(error.to_string().contains("edge0 gave something else"), "{error}");
        assert_eq!(figures.view().counted["base_wrong"], 3);
        assert!(!base.unfinished().exists(), "what is wrong isn't kept");

        let (outcome, base, figures, _) = with_a_liar(1).await;
        base.is_whole(&outcome.unwrap().unwrap());
        assert_eq!(figures.view().counted["base_wrong"], 1);
    });
}

#[test]
fn chunks_of_strangers_are_refused_and_counted_and_those_of_the_parent_make_the_base() {
    paused(async {
        let slow = Faults { delay_ms: 10..=20, ..Faults::none(1) };
        let (mut plant, base) = (Plant::new(1, 2, 1, &slow), Base::new());
        start_parent(&mut plant, Some(&base));
        let mut stranger = Stranger::at(&plant);
        let sha256 = base.files[1].sha256;
        let hostile = async {
            // Once the big file is on its way.
            while stranger.asked().await != (sha256, (9..17).collect()) {}
            let chunk =
                |index, len| Some(BaseChunk { index, chunk_bytes: CHUNK, data: vec![6; len] });
            let file = |index, len| BaseFile { sha256, chunk: chunk(index, len) };
            let topic = branch("edge0", "_").to(&name(CHILD), "base");
            let (_, siblings) = sealed("dev0-1", "line", CHILD, &file(12, 4_096));
            stranger.say(&topic, siblings);
            let (_, for_another) = sealed("edge0", "_", "dev0-1", &file(12, 4_096));
            stranger.say(&topic, for_another);
            stranger.say(&topic, vec![0xdf, 0xff, 0xff, 0xff, 0xff]);
            stranger.say(&topic, vec![0; 100_000]);
            let (_, mut changed) = sealed("edge0", "_", CHILD, &file(12, 4_096));
            let last = changed.len() - 200;
            changed[last] ^= 1;
            stranger.say(&topic, changed);
            // The parent's key, but nothing that anybody asked for.
            for (index, len) in [(12, 4_095), (400, 4_096), (u32::MAX, 4_096)] {
                stranger.say(&topic, sealed("edge0", "_", CHILD, &file(index, len)).1);
            }
            let other = BaseFile { sha256: Digest([9; 32]), chunk: chunk(12, 4_096) };
            stranger.say(&topic, sealed("edge0", "_", CHILD, &other).1);
            std::future::pending::<()>().await;
        };
        let (outcome, _, figures) = tokio::select! {
            () = hostile => unreachable!("it waits for ever"),
            done = fetch(&mut plant, &base, u64::MAX) => done,
        };
        base.is_whole(&outcome.unwrap().unwrap());
        let counted = figures.view().counted;
        for word in [
            "foreign_branch",
            "wrong_topic",
            "malformed_envelope",
            "over_cap",
            "bad_signature",
            "base_chunk_length",
            "base_chunk_not_asked_for",
            "base_chunk_out_of_range",
            "base_not_asked_for",
        ] {
            assert_eq!(counted.get(word), Some(&1), "{word} in {counted:?}");
        }
    });
}

#[test]
fn rounds_go_on_while_a_base_is_given_out() {
    paused(async {
        let slow = Faults { delay_ms: 10..=20, ..Faults::none(1) };
        let (mut plant, base) = (Plant::new(1, 3, 2, &slow), Base::new());
        start_parent(&mut plant, Some(&base));
        for node in ["cloud", "dev0-1", "dev0-2"] {
            plant.start(&name(node));
        }
        let (outcome, ..) = fetch(&mut plant, &base, u64::MAX).await;
        base.is_whole(&outcome.unwrap().unwrap());
        let entries = plant.entries("edge0");
        let accepted = entries.iter().filter(|event| matches!(event, Event::Accept { .. })).count();
        assert!(accepted > 0, "nothing of a round came through beside the base: {entries:?}");
        let child: Name = name(CHILD);
        plant.start(&child);
        plant.converge(30).await;
        plant.check_owner("edge0");
    });
}
