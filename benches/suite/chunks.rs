//! Messages of 64 KiB: what is bigger than a packet travels as chunks under a signed manifest.
//!
//! ```text
//! ours: a signed manifest -> signed requests for eight chunks at a time -> chunks, each checked by
//!       SHA-256 against the manifest -> the whole checked, on disk, recorded in the ledger
//! bare: rumqttc -> mosquitto -> rumqttc, as many bytes a message
//! ```

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use gaisnet::bus::mqtt::MqttBus;
use gaisnet::bus::{Bus, Priority, Publish};
use gaisnet::ids::Side;
use gaisnet::ledger::Event;
use gaisnet::protocol::{Effect, Input};
use gaisnet::rng::Stream;
use gaisnet::store::{BlobCaps, SqliteStore, Store};
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Blob, Body, Contribution, Manifest, Wanted};

use super::bare::{self, pause};
use super::messages::BROKER;
use super::plant::{CHUNK_BYTES, DEVICE, EDGE, Plant, contribution, name};
use super::station::{Station, Step, settings};
use super::stats::{Effort, Row, in_turns, median, time};
use super::support::Mosquitto;

pub fn run(effort: Effort, report: &mut dyn FnMut(Row)) {
    let Some(mosquitto) = Mosquitto::start_with(BROKER) else { return };
    let (port, chunks) = (mosquitto.port, effort.count(CHUNKS));
    let mut ours = Ours::start(port, chunks, effort.turns() + 1);
    let mut disk = Vec::new();
    let references = || {
        disk.push(disk_rate(chunks));
        bare::rate(port, CHUNK_BYTES as usize, 2 * chunks)
    };
    let (our_rate, bare_rate) = in_turns(effort, || ours.rate(), references);
    let row = |name: &str, reference, remark: &str| {
        Row::new(format!("messages 64 KiB {name}"), (our_rate, reference), "1/s", remark)
    };
    report(row("against bare MQTT", bare_rate, "rumqttc, QoS 1; target >= 0.8"));
    report(row("against the disk", median(&mut disk), "as many bytes written and synced"));
}

/// A device that has blobs and an edge that fetches them.
struct Ours {
    plant: Plant,
    edge: Station,
    device: Station,
    announcer: MqttBus,
    sealer: Sealer,
    /// Not announced yet.
    blobs: Vec<Manifest>,
    number: u64,
    /// Live as long as the stations.
    stores: [tempfile::TempDir; 2],
}

impl Ours {
    fn start(port: u16, chunks: usize, blobs: usize) -> Self {
        let plant = Plant::new();
        let stores = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [at_device, at_edge] = stores.each_ref().map(tempfile::TempDir::path);
        let mut store = SqliteStore::open(at_device, BlobCaps::default()).unwrap();
        let mut manifest = |seed| {
            let bytes = noise(seed as u64, chunks * CHUNK_BYTES as usize);
            store.put_blob(&bytes).unwrap();
            Manifest::of(&bytes, CHUNK_BYTES)
        };
        let blobs = (0..blobs).map(&mut manifest).collect();
        drop(store);
        let device = Station::start(&plant, DEVICE, Side::Up, port, at_device, giving());
        let edge = Station::start(&plant, EDGE, Side::Down, port, at_edge, fetching());
        let (announcer, events) = MqttBus::connect(settings(port, "announcer"), 1).unwrap();
        std::thread::spawn(move || {
            let mut events = events;
            while events.blocking_recv().is_some() {}
        });
        let sealer = plant.sealer(DEVICE);
        let mut this = Self { plant, edge, device, announcer, sealer, blobs, number: 0, stores };
        this.wait_for_the_links();
        this
    }

    /// Announces one blob until it is there: a subscription says nothing when it is granted.
    fn wait_for_the_links(&mut self) {
        let manifest = self.blobs.pop().unwrap();
        for _ in 0..100 {
            self.announce(manifest.clone());
            pause(Duration::from_millis(300));
            if self.edge.entries() > 0 {
                pause(Duration::from_millis(500));
                return;
            }
        }
        panic!("no blob arrives: {:?}", self.edge.figures.view());
    }

    fn announce(&mut self, manifest: Manifest) {
        self.number += 1;
        let Body::Contribution(said) = contribution(0, self.number) else { return };
        let body =
            Contribution { delta: Some(Blob::Manifest(manifest)), ..Contribution::clone(&said) };
        let (to, now) = (To::Named(name(EDGE)), self.plant.now);
        let (topic, payload) =
            self.sealer.seal(&to, &Body::Contribution(body.into()), 1, 1, now).unwrap();
        let (at_least_once, retain, priority) = (true, false, Priority::Update);
        let message = Publish { topic, payload, at_least_once, retain, priority };
        self.announcer.publish(message).unwrap();
    }

    fn rate(&mut self) -> f64 {
        let manifest = self.blobs.pop().unwrap();
        let chunks = manifest.chunks.len();
        let before = self.edge.entries();
        let taken = time(|| {
            self.announce(manifest);
            while self.edge.entries() == before {
                pause(Duration::from_micros(200));
            }
        });
        chunks as f64 / taken.as_secs_f64()
    }
}

/// As an owner: fetches what a contribution names, and records it once it is on disk.
fn fetching() -> Step {
    let mut waiting = None;
    Box::new(move |input| match input {
        Input::Message(message) => {
            let Body::Contribution(said) = message.body() else { return Vec::new() };
            let Some(Blob::Manifest(manifest)) = said.delta.clone() else { return Vec::new() };
            let from = message.sender().clone();
            waiting = Some(Event::Accept {
                body: message.body_digest(),
                round: message.round(),
                sender: from.clone(),
                update: message.update_id(),
            });
            vec![Effect::Fetch { from, side: Side::Down, manifest }]
        }
        Input::Fetched { .. } => waiting.take().map(Effect::Record).into_iter().collect(),
        _ => Vec::new(),
    })
}

/// As a member: gives out the chunks that it is asked for.
fn giving() -> Step {
    Box::new(|input| {
        let Input::Message(message) = input else { return Vec::new() };
        let Body::Get(get) = message.body() else { return Vec::new() };
        let Wanted::Chunks { sha256, indices } = get.wanted.clone() else { return Vec::new() };
        let to = message.sender().clone();
        vec![Effect::SendChunks { to, side: Side::Up, sha256, chunk_bytes: CHUNK_BYTES, indices }]
    })
}

/// Chunks a second that the disk takes, synced once: nothing that is committed is quicker.
fn disk_rate(chunks: usize) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let bytes = vec![0x5a; chunks * CHUNK_BYTES as usize];
    let write = || {
        let mut file = File::create(folder.path().join("blob")).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
    };
    chunks as f64 / time(write).as_secs_f64()
}

/// Bytes that nothing compresses.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut stream = Stream::new(seed, "bench/blob");
    (0..bytes / 8).flat_map(|_| stream.next_u64().to_le_bytes()).collect()
}

/// 32 MiB a blob.
const CHUNKS: usize = 512;
