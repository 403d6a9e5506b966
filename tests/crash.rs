//! Nodes that die: a cloud, an edge and two devices with their stores on disk, on the in-memory bus
//! under the paused clock. One of them is cut off right after its n-th effect (a blob on disk, a
//! commit, a publish, an acknowledgement, a job): nothing of it takes effect any more, until it starts
//! again from its files. Whatever n: the network comes to the last version, no update that got a
//! receipt is lost, none counts twice, and every ledger verifies.
//!
//! The pair: with a disk that says "committed" before it is, the same harness finds the loss.

#![cfg(all(feature = "runtime", feature = "store"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/cut.rs"]
mod cut;
#[path = "support/federation.rs"]
mod federation;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use cut::{Bench, Bus, Knife, Memory};
use federation::{Plant, key_of, name, paused};
use gaisnet::bus::memory::Faults;
use gaisnet::ids::{Digest, NodeId, UpdateId};
use gaisnet::ledger::{Entry, Event, Origin, verify};
use gaisnet::store::{BlobCaps, SqliteStore, Store};
use tempfile::TempDir;

/// How a node's store keeps what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// What was committed is on disk.
    Honest,
    /// It says "committed" and writes with the next commit: a cache that isn't flushed.
    Lying,
}

/// The network, its folders, and the knife over one of its nodes.
struct World {
    plant: Plant,
    folder: TempDir,
    victim: NodeId,
    disk: Disk,
    knife: Arc<Knife>,
}

const VERSIONS: u64 = 2;

impl World {
    fn new(victim: &str, disk: Disk, after: u64) -> Self {
        let plant = Plant::new(1, 2, VERSIONS, &Faults::none(1));
        let folder = tempfile::tempdir().unwrap();
        Self { plant, folder, victim: name(victim), disk, knife: Knife::after(after) }
    }

    fn store_of(&self, node: &NodeId) -> PathBuf {
        self.folder.path().join(node.as_str())
    }

    /// Starts a node from its files, under this knife.
    fn start(&mut self, node: &NodeId, knife: &Arc<Knife>) {
        let mut parts = self.plant.parts(node);
        let store = SqliteStore::open(&self.store_of(node), BlobCaps::default()).unwrap();
        let lying = self.disk == Disk::Lying && *node == self.victim;
        parts.store = Box::new(Memory::new(store, lying, Arc::clone(knife)));
        let links = std::mem::take(&mut parts.links);
        parts.links =
            links.into_iter().map(|(side, link)| (side, Bus::over(link, knife))).collect();
        parts.bench = Box::new(Bench::new(parts.bench, Arc::clone(knife)));
        let dead = Arc::clone(knife);
        parts.fatal = Arc::new(move |what| assert!(dead.has_struck(), "a node gave up: {what}"));
        self.plant.run(parts);
    }

    /// Lets all run, the victim die and come back, until everybody has the last version.
    async fn run(&mut self) -> Result<(), String> {
        let nodes: Vec<NodeId> = self.plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in &nodes {
            let knife = if *node == self.victim { Arc::clone(&self.knife) } else { Knife::never() };
            self.start(node, &knife);
        }
        for _ in 0..PATIENCE_S {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.knife.has_struck() && self.plant.running.contains_key(&self.victim) {
                self.knife.take_away_what_it_held();
                self.plant.running.remove(&self.victim);
                tokio::time::sleep(Duration::from_secs(2)).await;
                let (victim, never) = (self.victim.clone(), Knife::never());
                self.start(&victim, &never);
                self.knife = never;
            }
            let versions = self.plant.versions().await;
            if versions.values().all(|version| *version == VERSIONS) && self.settled() {
                return self.check();
            }
        }
        Err(format!("no convergence: {:?}", self.plant.versions().await))
    }

    /// Whether every contribution has its receipt.
    fn settled(&self) -> bool {
        self.plant.running.values().all(|node| node.figures.view().outbox == 0)
    }

    fn check(&self) -> Result<(), String> {
        let mut books = BTreeMap::new();
        for place in &self.plant.members.places {
            books.insert(place.node.clone(), self.book(&place.node)?);
        }
        for (node, book) in &books {
            book.check_owner().map_err(|what| format!("{node}: {what}"))?;
            let Some(parent) = self.plant.members.keyring.node(node).unwrap().parent.clone() else {
                continue;
            };
            let lost: Vec<&UpdateId> = book.receipts.difference(&books[&parent].taken).collect();
            if !lost.is_empty() {
                return Err(format!("{parent} gave {node} receipts for updates it lost: {lost:?}"));
            }
        }
        Ok(())
    }

    /// A node's ledger, verified against its heads.
    fn book(&self, node: &NodeId) -> Result<Book, String> {
        let store = SqliteStore::open_read_only(&self.store_of(node)).unwrap();
        let entries = store.entries(0, store.num_entries().unwrap()).unwrap();
        let origin = Origin { federation: name("fed"), node: node.clone() };
        let heads = store.checkpoints().unwrap();
        let keys = [*key_of(node).public()];
        verify(&origin, &keys, &entries, &heads).map_err(|error| format!("{node}: {error}"))?;
        let mut book = Book::default();
        let mut story = Vec::new();
        for bytes in &entries {
            let event = Entry::parse(bytes).unwrap().event;
            story.push(format!("{event:?}"));
            book.read(event).map_err(|what| format!("{node}: {what}\n{}", story.join("\n")))?;
        }
        Ok(book)
    }
}

/// What a ledger says about contributions.
#[derive(Default)]
struct Book {
    /// Every update that was ever accepted, in time or late.
    taken: BTreeSet<UpdateId>,
    /// Those that no closed round has counted yet, in the order in which a round counts them.
    waiting: BTreeSet<(NodeId, UpdateId)>,
    committed: BTreeSet<u64>,
    /// Own updates that the parent says it has.
    receipts: BTreeSet<UpdateId>,
    owner: bool,
}

impl Book {
    fn read(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Accept { sender, update, .. } | Event::Late { sender, update, .. } => {
                self.owner = true;
                if !self.taken.insert(update) {
                    return Err(format!("{update} of {sender} was accepted twice"));
                }
                self.waiting.insert((sender, update));
            }
            // Each accepted update is in exactly one set: the digest and the number say which.
            Event::RoundClose { contributions, round, set, .. } => {
                let ids: Vec<u8> = self.waiting.iter().flat_map(|(_, id)| id.0).collect();
                if (contributions, set) != (self.waiting.len() as u64, Digest::of(&ids)) {
                    return Err(format!("round {round} counts other updates than were accepted"));
                }
                self.waiting.clear();
            }
            Event::RoundCommit { round, .. } if !self.committed.insert(round) => {
                return Err(format!("round {round} was committed twice"));
            }
            Event::ReceiptGot { update, verdict, .. } if verdict.as_str() != "refused" => {
                self.receipts.insert(update);
            }
            Event::Equivocation { sender, .. } => return Err(format!("{sender} equivocated")),
            _ => {}
        }
        Ok(())
    }

    fn check_owner(&self) -> Result<(), String> {
        if self.owner && self.committed.len() < usize::try_from(VERSIONS).unwrap() {
            return Err(format!("only the rounds {:?} were committed", self.committed));
        }
        Ok(())
    }
}

/// Virtual seconds until a network that lives has come to its end.
const PATIENCE_S: u64 = 1_800;

/// One run. Gives the number of the victim's effects, as far as it came.
fn run(victim: &'static str, disk: Disk, after: u64) -> (u64, Result<(), String>) {
    let (sender, receiver) = channel();
    paused(async move {
        let mut world = World::new(victim, disk, after);
        let knife = Arc::clone(&world.knife);
        let outcome = world.run().await;
        sender.send((knife.effects(), outcome)).unwrap();
    });
    receiver.recv().unwrap()
}

/// Dies after each effect in turn.
fn dies_after_each_effect(victim: &'static str, part: u64) {
    let (effects, outcome) = run(victim, Disk::Honest, u64::MAX);
    outcome.unwrap();
    assert!(effects > 10, "{victim} has only {effects} effects");
    for n in (1..=effects).filter(|n| n % PARTS == part) {
        let (_, outcome) = run(victim, Disk::Honest, n);
        outcome.unwrap_or_else(|what| panic!("{victim} died after effect {n}: {what}"));
    }
}

/// Tests run side by side: each takes every second effect.
const PARTS: u64 = 2;

#[test]
fn a_cloud_may_die_after_any_effect_a() {
    dies_after_each_effect("cloud", 0);
}

#[test]
fn a_cloud_may_die_after_any_effect_b() {
    dies_after_each_effect("cloud", 1);
}

#[test]
fn an_edge_may_die_after_any_effect_a() {
    dies_after_each_effect("edge0", 0);
}

#[test]
fn an_edge_may_die_after_any_effect_b() {
    dies_after_each_effect("edge0", 1);
}

#[test]
fn a_device_may_die_after_any_effect_a() {
    dies_after_each_effect("dev0-0", 0);
}

#[test]
fn a_device_may_die_after_any_effect_b() {
    dies_after_each_effect("dev0-0", 1);
}

#[test]
fn with_a_disk_that_says_committed_before_it_is_a_loss_is_found() {
    let (effects, outcome) = run("edge0", Disk::Lying, u64::MAX);
    outcome.expect("as long as nobody dies, nobody notices");
    let found = (1..=effects).find_map(|n| run("edge0", Disk::Lying, n).1.err());
    let what = found.expect("an update that was promised and lost goes unnoticed");
    assert!(what.contains("lost") || what.contains("twice"), "{what}");
}
