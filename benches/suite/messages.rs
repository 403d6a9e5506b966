//! Signed, verified and committed messages a second through mosquitto.
//!
//! ```text
//! ours: Sealer -> MqttBus -> mosquitto -> MqttBus -> Gateway (trust::open) -> Role -> Runner:
//!       one state value and one ledger entry a message, committed together -> acknowledged
//! bare: rumqttc -> mosquitto -> rumqttc
//! ```

use std::time::Duration;

use gaisnet::bus::mqtt::MqttBus;
use gaisnet::bus::{Bus, Priority, Publish};
use gaisnet::ids::Side;
use gaisnet::ledger::Event;
use gaisnet::protocol::{Effect, Input};
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Blob, Body};

use super::bare::{self, OUTSTANDING, pause};
use super::plant::{DEVICE, EDGE, Plant, contribution, key, name};
use super::station::{Station, Step, settings};
use super::stats::{Effort, Row, in_turns, median, micros_each, time};
use super::support::Mosquitto;

pub fn run(effort: Effort, report: &mut dyn FnMut(Row)) {
    let Some(mosquitto) = Mosquitto::start_with(BROKER) else { return };
    let count = effort.count(20_000);
    let mut ours = Ours::start(mosquitto.port, 1 << 10);
    let (mut verify, mut both) = (Vec::new(), Vec::new());
    let references = || {
        let limits = ed25519(effort.count(4_000), 1 << 10);
        verify.push(limits.verify);
        both.push(limits.both);
        bare::rate(mosquitto.port, 1 << 10, count)
    };
    let (our_rate, bare_rate) = in_turns(effort, || ours.rate(count), references);
    let (verify, both) = (median(&mut verify), median(&mut both));
    let least = bare_rate.min(verify);
    let row = |name: &str, reference, remark: &str| {
        Row::new(format!("messages 1 KiB {name}"), (our_rate, reference), "1/s", remark)
    };
    let rows = [
        row("against bare MQTT", bare_rate, "rumqttc, QoS 1"),
        row("against Ed25519 verify", verify, "one core verifies"),
        row("against Ed25519 both", both, "one core signs and verifies"),
        row("against the lower", least, "bare or verify; target >= 0.5"),
    ];
    rows.into_iter().for_each(report);
}

/// A device that seals and an edge that commits.
struct Ours {
    plant: Plant,
    bus: MqttBus,
    sealer: Sealer,
    station: Station,
    /// Bytes of the delta that make a message of the wanted size.
    delta: usize,
    number: u64,
    _store: tempfile::TempDir,
}

impl Ours {
    fn start(port: u16, bytes: usize) -> Self {
        let plant = Plant::new();
        let store = tempfile::tempdir().unwrap();
        let station = Station::start(&plant, EDGE, Side::Down, port, store.path(), intake());
        let (bus, events) = MqttBus::connect(settings(port, DEVICE), 1).unwrap();
        // Nobody sends to the device; its events end with the link.
        std::thread::spawn(move || {
            let mut events = events;
            while events.blocking_recv().is_some() {}
        });
        let sealer = plant.sealer(DEVICE);
        let mut this = Self { plant, bus, sealer, station, delta: 0, number: 0, _store: store };
        let rest = this.seal().payload.len();
        this.delta = bytes - rest - 2; // two more for the length of longer bytes
        assert_eq!(this.seal().payload.len(), bytes);
        this.wait_for_the_link();
        this
    }

    fn seal(&mut self) -> Publish {
        self.number += 1;
        // Numbers of one length in msgpack.
        let body = contribution(self.delta, self.number + 70_000);
        let (to, now) = (To::Named(name(EDGE)), self.plant.now);
        let (topic, payload) = self.sealer.seal(&to, &body, 1, 1, now).unwrap();
        let (at_least_once, retain, priority) = (true, false, Priority::Update);
        Publish { topic, payload, at_least_once, retain, priority }
    }

    /// Sends until something arrives: a subscription says nothing when it is granted.
    fn wait_for_the_link(&mut self) {
        for _ in 0..300 {
            let probe = self.seal();
            self.bus.publish(probe).unwrap();
            pause(Duration::from_millis(100));
            if self.station.entries() > 0 {
                pause(Duration::from_millis(200));
                return;
            }
        }
        panic!("no message arrives: {:?}", self.station.figures.view());
    }

    fn rate(&mut self, count: usize) -> f64 {
        let before = self.station.entries();
        let taken = time(|| {
            let mut sent = 0;
            while sent < count {
                let there = (self.station.entries() - before) as usize;
                if sent - there >= OUTSTANDING {
                    pause(Duration::from_micros(200));
                    continue;
                }
                for _ in 0..BURST {
                    let message = self.seal();
                    self.bus.publish(message).unwrap();
                }
                sent += BURST;
            }
            while ((self.station.entries() - before) as usize) < sent {
                pause(Duration::from_micros(200));
            }
            sent
        });
        let view = self.station.figures.view();
        assert_eq!(view.refused(), 0, "{:?}", view.counted);
        count as f64 / taken.as_secs_f64()
    }
}

/// As an owner takes contributions in: what is said goes into the state, that it came into the ledger.
fn intake() -> Step {
    let mut slot = 0_u32;
    Box::new(move |input| {
        let Input::Message(message) = input else { return Vec::new() };
        let Body::Contribution(contribution) = message.body() else { return Vec::new() };
        let Some(Blob::Inline(delta)) = &contribution.delta else { return Vec::new() };
        slot = (slot + 1) % 1024;
        vec![
            Effect::Put(format!("bench/{slot:04}").into(), delta.clone()),
            Effect::Record(Event::Accept {
                body: message.body_digest(),
                round: message.round(),
                sender: message.sender().clone(),
                update: message.update_id(),
            }),
        ]
    })
}

struct Limits {
    verify: f64,
    both: f64,
}

/// What one core can do in a second.
fn ed25519(count: usize, bytes: usize) -> Limits {
    let key = key(DEVICE);
    let message = vec![0x5a; bytes];
    let signature = key.sign(&message);
    let sign = micros_each(count, |_| assert!(key.sign(&message).0[0] == signature.0[0]));
    let verify = micros_each(count, |_| assert!(key.public().verify(&message, &signature).is_ok()));
    Limits { verify: 1e6 / verify, both: 1e6 / (sign + verify) }
}

const BURST: usize = 10;

/// As many on their way as the benchmark keeps: with mosquitto's 20 both sides wait for it.
pub const BROKER: &str = "allow_anonymous true\nmax_inflight_messages 1000\nmax_queued_messages 0";
