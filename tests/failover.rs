//! Whole nodes with a standby of the cloud, on the in-memory bus under tokio's paused clock. What may go wrong
//! on the way is run by the simulator (`src/sim`), over thousands of messages more.
//!
//! The learner's arithmetic is exact and every device is in every round, so the last adapter tells whether a
//! contribution was lost or counted twice: it is that of a network in which nothing happened.

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

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cut::{Bench, Bus, Knife, Link, Memory};
use federation::{Members, Plant, name, paused};
use gaisnet::bus::memory::Faults;
use gaisnet::bus::{self, BusError, Publish};
use gaisnet::ids::NodeId;
use gaisnet::ledger::Event;
use gaisnet::node::{Node, NodeParts};
use gaisnet::store::{BlobCaps, SqliteStore};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::Instant;

const VERSIONS: u64 = 4;
const LEASE: Duration = Duration::from_secs(8);
const TICK: Duration = Duration::from_millis(50);

async fn wait(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn plant(seed: u64, versions: u64) -> Plant {
    Plant::of(Members::with_standby(3, 2), 3, versions, &Faults::none(seed))
}

async fn until(plant: &Plant, node: &str, version: u64) {
    while plant.versions().await[&name(node)] < version {
        tokio::time::sleep(TICK).await;
    }
}

async fn phase(plant: &Plant, node: &str) -> &'static str {
    plant.running[&name(node)].view().await.unwrap().phase
}

/// Whether it owns the rounds.
async fn leads(plant: &Plant, node: &str) -> bool {
    !["following", "standing"].contains(&phase(plant, node).await)
}

/// What an edge has learned.
fn learned(plant: &Plant) -> Vec<u8> {
    plant.running[&name("edge0")].serving.borrow().1.to_vec()
}

fn counted(node: &Node, reason: &str) -> u64 {
    node.figures.view().counted.get(reason).copied().unwrap_or(0)
}

fn with_store(mut parts: NodeParts, folder: &Path) -> NodeParts {
    parts.store = Box::new(SqliteStore::open(folder, BlobCaps::default()).unwrap());
    parts
}

/// What a network learns in which nothing happens.
fn undisturbed() -> Vec<u8> {
    let (sender, receiver) = channel();
    paused(async move {
        let mut plant = plant(1, VERSIONS);
        plant.start_all();
        plant.converge(10).await;
        sender.send(learned(&plant)).unwrap();
    });
    receiver.recv().unwrap()
}

/// A network whose cloud, with its store on disk, is under a knife.
struct Mortal {
    plant: Plant,
    folder: TempDir,
    knife: Arc<Knife>,
}

impl Mortal {
    fn start(knife: Arc<Knife>) -> Self {
        let mut plant = plant(1, VERSIONS);
        let folder = tempfile::tempdir().unwrap();
        let cloud = name("cloud");
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in nodes.iter().filter(|node| **node != cloud) {
            plant.start(node);
        }
        let mut parts = plant.parts(&cloud);
        let store = SqliteStore::open(&folder.path().join("cloud"), BlobCaps::default()).unwrap();
        parts.store = Box::new(Memory::new(store, false, Arc::clone(&knife)));
        let links = std::mem::take(&mut parts.links);
        parts.links =
            links.into_iter().map(|(side, link)| (side, Bus::over(link, &knife))).collect();
        parts.bench = Box::new(Bench::new(parts.bench, Arc::clone(&knife)));
        let dead = Arc::clone(&knife);
        parts.fatal = Arc::new(move |what| assert!(dead.has_struck(), "a node gave up: {what}"));
        plant.run(parts);
        Self { plant, folder, knife }
    }

    fn bury(&mut self) {
        self.knife.take_away_what_it_held();
        self.plant.running.remove(&name("cloud"));
    }

    /// Starts the cloud again from its files.
    fn revive(&mut self) {
        let parts = self.plant.parts(&name("cloud"));
        self.plant.run(with_store(parts, &self.folder.path().join("cloud")));
    }
}

/// Effects of a cloud that lives: when its standby has the first version, and when the last round is over.
fn life() -> (u64, u64) {
    let (sender, receiver) = channel();
    paused(async move {
        let world = Mortal::start(Knife::never());
        until(&world.plant, "cloud-2", 1).await;
        let first = world.knife.effects();
        until(&world.plant, "cloud", VERSIONS).await;
        sender.send((first, world.knife.effects())).unwrap();
    });
    receiver.recv().unwrap()
}

/// The cloud dies after so many effects. What was learned.
fn dies_after(effects: u64) -> Vec<u8> {
    let (sender, receiver) = channel();
    paused(async move {
        let mut world = Mortal::start(Knife::after(effects));
        while !world.knife.has_struck() {
            tokio::time::sleep(TICK).await;
        }
        let died = Instant::now();
        world.bury();
        while !leads(&world.plant, "cloud-2").await {
            let silent = died.elapsed();
            assert!(silent < LEASE + Duration::from_secs(5), "effect {effects}: {silent:?}");
            tokio::time::sleep(TICK).await;
        }
        world.plant.converge(10).await;
        let adapter = learned(&world.plant);
        world.revive();
        world.plant.converge(10).await;
        wait(20).await;
        assert_eq!(phase(&world.plant, "cloud").await, "following", "effect {effects}");
        assert!(leads(&world.plant, "cloud-2").await, "effect {effects}");
        for edge in ["edge0", "edge1", "edge2"] {
            world.plant.check_owner(edge);
        }
        sender.send(adapter).unwrap();
    });
    receiver.recv().unwrap()
}

#[test]
fn a_standby_takes_over_in_mid_round_within_a_lease_and_five_seconds_and_nothing_is_lost_or_twice()
{
    let (first, last) = life();
    assert!(last - first > 40, "{first} {last}");
    let right = undisturbed();
    let step = usize::try_from((last - first) / 16).unwrap();
    for effects in (first + 1..last - 1).step_by(step) {
        assert_eq!(dies_after(effects), right, "it died after effect {effects} of {last}");
    }
}

/// A process that stops and goes on: what comes waits at it, and what it said meanwhile leaves when it wakes.
/// Its own timers go on, which makes it the worse: it has found out by then that nobody answers.
#[derive(Default)]
struct Sleep {
    asleep: AtomicBool,
    said: Mutex<Vec<(Arc<dyn bus::Bus>, Publish)>>,
}

impl Sleep {
    fn over(self: &Arc<Self>, (bus, mut events): Link) -> Link {
        let (passed_on, received) = mpsc::channel(1);
        let sleep = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                while sleep.asleep.load(Ordering::Relaxed) {
                    tokio::time::sleep(TICK).await;
                }
                if passed_on.send(event).await.is_err() {
                    return;
                }
            }
        });
        (Arc::new(Sleeper { bus, sleep: Arc::clone(self) }), received)
    }

    fn wakes(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        for (bus, message) in self.said.lock().unwrap().drain(..) {
            bus.publish(message).unwrap();
        }
    }
}

struct Sleeper {
    bus: Arc<dyn bus::Bus>,
    sleep: Arc<Sleep>,
}

impl bus::Bus for Sleeper {
    fn subscribe(&self, filters: &[String]) -> Result<(), BusError> {
        self.bus.subscribe(filters)
    }

    fn publish(&self, message: Publish) -> Result<(), BusError> {
        if self.sleep.asleep.load(Ordering::Relaxed) {
            self.sleep.said.lock().unwrap().push((Arc::clone(&self.bus), message));
            return Ok(());
        }
        self.bus.publish(message)
    }

    fn close(&self, drain_ms: u64) {
        self.bus.close(drain_ms);
    }
}

#[test]
fn a_cloud_that_wakes_from_a_pause_is_refused_by_its_lower_epoch_and_stands_by() {
    let right = undisturbed();
    for stops_after_ms in [0, 100, 350, 600] {
        let (sender, receiver) = channel();
        paused(async move {
            let mut plant = plant(1, VERSIONS);
            let sleep = Arc::new(Sleep::default());
            let cloud = name("cloud");
            let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
            for node in nodes.iter().filter(|node| **node != cloud) {
                plant.start(node);
            }
            let mut parts = plant.parts(&cloud);
            let links = std::mem::take(&mut parts.links);
            parts.links = links.into_iter().map(|(side, link)| (side, sleep.over(link))).collect();
            plant.run(parts);
            until(&plant, "cloud-2", 1).await;
            tokio::time::sleep(Duration::from_millis(stops_after_ms)).await;
            sleep.asleep.store(true, Ordering::Relaxed);
            let slept = Instant::now();
            while !leads(&plant, "cloud-2").await {
                assert!(slept.elapsed() < LEASE + Duration::from_secs(5));
                tokio::time::sleep(TICK).await;
            }
            wait(5).await;
            sleep.wakes();
            plant.converge(10).await;
            wait(30).await;
            assert!(leads(&plant, "cloud-2").await);
            assert_eq!(phase(&plant, "cloud").await, "following");
            let stale = |node: &str| counted(&plant.running[&name(node)], "stale_epoch");
            for node in ["cloud-2", "edge0", "edge1", "edge2"] {
                assert!(stale(node) > 0, "{node} refused nothing");
            }
            sender.send(learned(&plant)).unwrap();
        });
        assert_eq!(receiver.recv().unwrap(), right, "it stopped {stops_after_ms} ms later");
    }
}

#[test]
fn a_standby_takes_over_from_a_cloud_that_is_gone_and_the_cloud_stands_by_when_it_is_back() {
    paused(async {
        let mut plant = plant(1, 40);
        plant.start_all();
        until(&plant, "cloud-2", 3).await;
        plant.running.remove(&name("cloud")).unwrap().stop("test", 0).await;
        let before = plant.versions().await[&name("edge0")];
        assert!(before < 40);
        plant.converge(20).await;
        let committed = |event: &Event| matches!(event, Event::RoundCommit { .. });
        assert!(plant.entries("cloud-2").iter().any(committed));

        plant.start(&name("cloud"));
        plant.converge(20).await;
        assert_eq!(phase(&plant, "cloud").await, "following");
    });
}

#[test]
fn a_cloud_goes_on_without_its_standby() {
    paused(async {
        let mut plant = plant(2, 40);
        plant.start_all();
        until(&plant, "cloud-2", 3).await;
        plant.running.remove(&name("cloud-2")).unwrap().stop("test", 0).await;
        plant.converge(20).await;
        plant.start(&name("cloud-2"));
        plant.converge(20).await;
    });
}

#[test]
fn a_standby_that_was_away_while_the_cloud_went_on_does_not_take_over_and_says_so() {
    paused(async {
        let mut plant = plant(3, 60);
        plant.start_all();
        until(&plant, "cloud-2", 3).await;
        plant.running.remove(&name("cloud-2")).unwrap().stop("test", 0).await;
        until(&plant, "cloud", 20).await; // alone by now
        plant.running.remove(&name("cloud")).unwrap().stop("test", 0).await;
        let before = plant.versions().await[&name("edge0")];
        plant.start(&name("cloud-2"));
        wait(120).await;
        assert!(!leads(&plant, "cloud-2").await);
        let standby = &plant.running[&name("cloud-2")];
        assert!(counted(standby, "standby_behind") + counted(standby, "standby_not_in_step") > 0);
        assert_eq!(plant.versions().await[&name("edge0")], before);
        plant.start(&name("cloud"));
        plant.converge(20).await;
    });
}

/// Copies a store's files, as a backup does.
fn back_up(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            back_up(&file.path(), &to);
        } else {
            std::fs::copy(file.path(), to).unwrap();
        }
    }
}

/// The cloud's store was backed up after version 1. After version 2 a node starts from the copy: beside the
/// cloud, or when that is gone.
fn a_backup_starts(beside: bool) -> Vec<u8> {
    let (sender, receiver) = channel();
    paused(async move {
        let mut world = Mortal::start(Knife::never());
        world.plant.gave_up = Some(Arc::default());
        until(&world.plant, "cloud-2", 1).await;
        let copy = world.folder.path().join("copy");
        back_up(&world.folder.path().join("cloud"), &copy);
        until(&world.plant, "cloud-2", 2).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        if !beside {
            world.knife.strike();
            world.bury();
        }
        let cloud = name("cloud");
        let client = if beside { "copy" } else { "cloud" };
        let parts = world.plant.parts_as(client, &cloud);
        let parts = with_store(parts, &copy);
        let of_copy = Arc::clone(&parts.figures);
        let twin = gaisnet::node::start(parts).unwrap();
        if beside {
            std::mem::forget(twin); // it is beside the other one until it stops by itself
        } else {
            world.plant.running.insert(cloud.clone(), twin);
        }
        wait(120).await;
        world.plant.converge(10).await;
        let reason = |reason| of_copy.view().counted.get(reason).copied().unwrap_or(0);
        let gave_up = world.plant.gave_up.clone().unwrap().lock().unwrap().clone();
        if beside {
            assert_eq!((reason("twin"), gave_up.len()), (1, 1), "{gave_up:?}");
            assert!(gave_up[0].contains("copy of its disk"), "{gave_up:?}");
        } else {
            assert!(gave_up.is_empty(), "{gave_up:?}");
            assert!(counted(&world.plant.running[&name("cloud-2")], "copy_knows_less") > 0);
            assert_eq!(phase(&world.plant, "cloud").await, "following");
        }
        sender.send(learned(&world.plant)).unwrap();
    });
    receiver.recv().unwrap()
}

#[test]
fn a_cloud_from_a_backup_beside_its_twin_stops_and_nothing_is_lost() {
    assert_eq!(a_backup_starts(true), undisturbed());
}

#[test]
fn a_cloud_from_a_backup_gets_what_it_lacks_from_its_standby_and_nothing_is_lost() {
    assert_eq!(a_backup_starts(false), undisturbed());
}
