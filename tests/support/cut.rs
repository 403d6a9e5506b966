//! A knife over a node: ports that count what takes effect, and stop letting anything through after
//! the n-th effect, as when the power goes.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use gaisnet::actors::{Done, Task, Workbench};
use gaisnet::bus::{self, Ack, BusError, BusEvent, Delivery, Publish};
use gaisnet::ids::Digest;
use gaisnet::store::{Batch, BlobReader, OutboxItem, SqliteStore, Store, StoreError};
use gaisnet::time::Wall;
use tokio::sync::mpsc;

/// Strikes after the n-th effect.
pub(crate) struct Knife(Mutex<Blade>);

struct Blade {
    effects: u64,
    after: u64,
    /// What the dead node still holds: its files' lock and its links.
    held: Vec<Box<dyn FnOnce() + Send>>,
}

impl Knife {
    pub(crate) fn after(effects: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Blade { effects: 0, after: effects, held: Vec::new() })))
    }

    pub(crate) fn never() -> Arc<Self> {
        Self::after(u64::MAX)
    }

    /// Effects so far.
    pub(crate) fn effects(&self) -> u64 {
        self.blade().effects
    }

    pub(crate) fn has_struck(&self) -> bool {
        let blade = self.blade();
        blade.effects >= blade.after
    }

    /// Strikes now.
    pub(crate) fn strike(&self) {
        self.blade().after = 0;
    }

    /// What the system takes back from a dead process: locks, files, connections.
    pub(crate) fn take_away_what_it_held(&self) {
        let held = std::mem::take(&mut self.blade().held);
        for take in held {
            take();
        }
    }

    /// Counts an effect; whether the node still lives to have it.
    fn lets_through(&self) -> bool {
        let mut blade = self.blade();
        let alive = blade.effects < blade.after;
        blade.effects += u64::from(alive);
        alive
    }

    fn hold(&self, take: impl FnOnce() + Send + 'static) {
        self.blade().held.push(Box::new(take));
    }

    fn blade(&self) -> std::sync::MutexGuard<'_, Blade> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store on disk under the knife.
pub(crate) struct Memory {
    /// Gone once the dead node's files were taken away.
    store: Arc<Mutex<Option<SqliteStore>>>,
    /// Says "committed" at once and writes with the next commit.
    lying: bool,
    unwritten: Vec<Batch>,
    knife: Arc<Knife>,
}

impl Memory {
    pub(crate) fn new(store: SqliteStore, lying: bool, knife: Arc<Knife>) -> Self {
        let store = Arc::new(Mutex::new(Some(store)));
        let held = Arc::clone(&store);
        knife.hold(move || drop(held.lock().unwrap().take()));
        Self { store, lying, unwritten: Vec::new(), knife }
    }

    fn with<T>(
        &self,
        act: impl FnOnce(&mut SqliteStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.store.lock().unwrap().as_mut().map_or_else(|| Err(dead()), act)
    }

    fn effect<T>(
        &self,
        act: impl FnOnce(&mut SqliteStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.knife.lets_through() { self.with(act) } else { Err(dead()) }
    }
}

fn dead() -> StoreError {
    StoreError::Io { path: "store".into(), message: "the process is dead".into() }
}

impl Store for Memory {
    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        if !self.lying {
            return self.effect(|store| store.commit(batches));
        }
        let due = std::mem::replace(&mut self.unwritten, batches.to_vec());
        self.effect(|store| if due.is_empty() { Ok(()) } else { store.commit(&due) })
    }

    fn state(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.with(|store| store.state(prefix))
    }

    fn outbox(&self) -> Result<Vec<OutboxItem>, StoreError> {
        self.with(|store| store.outbox())
    }

    fn num_entries(&self) -> Result<u64, StoreError> {
        self.with(|store| store.num_entries())
    }

    fn entries(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        self.with(|store| store.entries(from, to))
    }

    fn checkpoints(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        self.with(|store| store.checkpoints())
    }

    fn kpis(&self, name: &str) -> Result<Vec<(Wall, f64)>, StoreError> {
        self.with(|store| store.kpis(name))
    }

    fn put_blob(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
        self.effect(|store| store.put_blob(bytes))
    }

    fn put_checked_blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        self.effect(|store| store.put_checked_blob(digest, bytes))
    }

    fn fill_percent(&self) -> u64 {
        self.with(|store| Ok(store.fill_percent())).unwrap_or(0)
    }

    fn blob_reader(&self) -> Box<dyn BlobReader> {
        self.with(|store| Ok(store.blob_reader())).unwrap_or_else(|_| Box::new(Gone))
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|store| store.blob(digest))
    }

    fn retain_blobs(&mut self, keep: &BTreeSet<Digest>) -> Result<(), StoreError> {
        self.effect(|store| store.retain_blobs(keep))
    }
}

/// Reads from a store that was taken away.
#[derive(Debug)]
struct Gone;

impl BlobReader for Gone {
    fn blob(&self, _: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Err(dead())
    }
}

/// A link under the knife: publishing and acknowledging are effects. Telegrams for people aren't
/// counted, since nothing is promised of them, but end as well.
pub(crate) struct Bus {
    bus: Arc<Mutex<Option<Arc<dyn bus::Bus>>>>,
    knife: Arc<Knife>,
}

/// A link with its events, as a node takes it.
pub(crate) type Link = (Arc<dyn bus::Bus>, mpsc::Receiver<BusEvent>);

impl Bus {
    pub(crate) fn over((bus, mut events): Link, knife: &Arc<Knife>) -> Link {
        let (passed_on, received) = mpsc::channel(1);
        let guard = Arc::clone(knife);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let event = match event {
                    BusEvent::Delivery(delivery) => {
                        BusEvent::Delivery(guarded(delivery, Arc::clone(&guard)))
                    }
                    other => other,
                };
                if passed_on.send(event).await.is_err() {
                    return;
                }
            }
        });
        let bus = Arc::new(Mutex::new(Some(bus)));
        let held = Arc::clone(&bus);
        knife.hold(move || drop(held.lock().unwrap().take()));
        (Arc::new(Self { bus, knife: Arc::clone(knife) }), received)
    }

    fn link(&self) -> Result<Arc<dyn bus::Bus>, BusError> {
        self.bus.lock().unwrap().clone().ok_or(BusError::Closed)
    }
}

fn guarded(delivery: Delivery, knife: Arc<Knife>) -> Delivery {
    let Delivery { topic, payload, retained, ack } = delivery;
    // Dropped, not released, when the node is dead: the broker keeps it.
    let ack = Ack::new(move || {
        if knife.lets_through() {
            ack.release();
        }
    });
    Delivery { topic, payload, retained, ack }
}

impl bus::Bus for Bus {
    fn subscribe(&self, filters: &[String]) -> Result<(), BusError> {
        self.link()?.subscribe(filters)
    }

    fn publish(&self, message: Publish) -> Result<(), BusError> {
        let for_machines = message.topic.contains("/m/") || message.topic.contains("/to/");
        let alive = if for_machines { self.knife.lets_through() } else { !self.knife.has_struck() };
        if alive { self.link()?.publish(message) } else { Err(BusError::Closed) }
    }

    fn close(&self, drain_ms: u64) {
        if let Ok(link) = self.link() {
            link.close(drain_ms);
        }
    }
}

/// Long work under the knife.
pub(crate) struct Bench {
    bench: Box<dyn Workbench>,
    knife: Arc<Knife>,
}

impl Bench {
    pub(crate) fn new(bench: Box<dyn Workbench>, knife: Arc<Knife>) -> Self {
        Self { bench, knife }
    }
}

impl Workbench for Bench {
    fn start(&mut self, task: Task, done: Done) {
        if self.knife.lets_through() {
            self.bench.start(task, done);
        }
    }
}
