//! A real gateway, role and runner over a real link and an SQLite file, around a machine of the
//! benchmark's own, in a thread with an actor system of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use actix::prelude::*;
use gaisnet::actors::{
    Figures, Gateway, GatewayParts, InlineBench, Introduce, Machine, MachineView, Role, Runner,
    RunnerParts, pump, subscribe, subscriptions,
};
use gaisnet::bus::mqtt::{MqttBus, MqttSettings};
use gaisnet::bus::{Bus, Line};
use gaisnet::ids::{Digest, Side};
use gaisnet::ledger::{Origin, Replay};
use gaisnet::node::SystemClock;
use gaisnet::protocol::{Effect, Input, Slots, SlotsConfig};
use gaisnet::store::{BlobCaps, SqliteStore};
use gaisnet::time::{Clock, Now};
use tokio::sync::oneshot;

use super::plant::{Plant, name};

/// What it does with an input.
pub type Step = Box<dyn FnMut(Input) -> Vec<Effect> + Send>;

/// Runs until dropped.
pub struct Station {
    pub figures: Arc<Figures>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Stepper(Step);

impl Machine for Stepper {
    fn step(&mut self, _: Now, input: Input) -> Vec<Effect> {
        (self.0)(input)
    }

    fn blobs(&self) -> BTreeSet<Digest> {
        BTreeSet::new()
    }

    fn view(&self) -> MachineView {
        MachineView::default()
    }
}

impl Station {
    /// Starts node `me` with one link, on its `side`.
    pub fn start(plant: &Plant, me: &str, side: Side, port: u16, store: &Path, step: Step) -> Self {
        let figures = Arc::new(Figures::default());
        let (stop, stopped) = oneshot::channel();
        let (up, is_up) = mpsc::channel();
        let (me, store, shown) = (name(me), store.to_owned(), Arc::clone(&figures));
        let (keyring, prefix) = (Arc::clone(&plant.keyring), plant.prefix.clone());
        let (federation, sealer) = (plant.federation.clone(), plant.sealer(me.as_str()));
        let body = async move {
            let (bus, events) = MqttBus::connect(settings(port, me.as_str()), 1).unwrap();
            let bus: Arc<dyn Bus> = Arc::new(bus);
            let buses = BTreeMap::from([(side, Arc::clone(&bus))]);
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            let origin = Origin { federation: federation.clone(), node: me.clone() };
            let (served, _serving) = tokio::sync::watch::channel((0, Arc::default()));
            let runner = Runner::new(RunnerParts {
                store: Box::new(SqliteStore::open(&store, BlobCaps::default()).unwrap()),
                sealer,
                log: Replay::new(origin, &[]).unwrap().finish().unwrap(),
                lines: BTreeMap::from([(side, Line::Inside(Arc::clone(&bus)))]),
                parent: keyring.node(&me).and_then(|entry| entry.parent.clone()),
                clock: Arc::clone(&clock),
                bench: Box::new(InlineBench::new(me.clone(), None)),
                figures: Arc::clone(&figures),
                seed: 1,
                bounds: gaisnet::actors::Bounds::default(),
                served,
                fatal: Arc::new(|what| panic!("a station gave up: {what}")),
            });
            let runner = runner.unwrap().start();
            let nothing = Digest::of(b"");
            let slots =
                SlotsConfig { base: nothing, untrained: nothing, checks: false, follow: false };
            let slots = Slots::new(slots, &[]).unwrap();
            let role = Role::new(
                Stepper(step),
                slots,
                gaisnet::protocol::Rollouts::default(),
                runner.clone(),
                Arc::clone(&clock),
            )
            .start();
            let gateway = Gateway::new(GatewayParts {
                federation,
                prefix: prefix.clone(),
                me: me.clone(),
                keyring: Arc::clone(&keyring),
                role: role.clone().recipient(),
                runner: runner.clone(),
                requests: None,
                labels: None,
                plant: side,
                samples: None,
                operator: None,
                bases: None,
                clock,
                figures,
                chunk_bytes: super::plant::CHUNK_BYTES,
                above: None,
            });
            let gateway = gateway.start();
            let role = role.recipient();
            runner.send(Introduce { role, server: None, watcher: None }).await.unwrap();
            subscribe(&buses, &subscriptions(&keyring, &prefix, &me, &[side], &[]));
            actix::spawn(pump(side, events, gateway));
            up.send(()).unwrap();
            let _ = stopped.await;
            bus.close(100);
        };
        let thread = thread::spawn(move || System::new().block_on(body));
        is_up.recv().unwrap();
        Self { figures: shown, stop: Some(stop), thread: Some(thread) }
    }

    /// Ledger entries that are on disk.
    pub fn entries(&self) -> u64 {
        let mut entries = 0;
        self.figures.update(|view| entries = view.entries);
        entries
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A link of ours as a node has it, but with the client's own default of messages in flight.
pub fn settings(port: u16, client: &str) -> MqttSettings {
    let mut settings = MqttSettings::new("127.0.0.1", port, client);
    settings.in_flight = 100;
    settings
}
