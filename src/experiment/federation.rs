//! The federated arm: real nodes with real stores in one process, over brokers in memory: one a site, one
//! for the federation. What is signed, recorded, coded and combined is what a plant would get.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::places::{Place, Places};
use super::{ExperimentError, Machine, News, Shared};
use crate::actors::lanes::train_lane;
use crate::actors::{Bounds, Busy, Figures, LaneBench};
use crate::bus::memory::{Faults, MemoryBroker};
use crate::bus::{Bus, BusEvent};
use crate::ids::{Digest, Name, NodeId, Side};
use crate::learn::{
    Control, Examples, LearnError, Learner, Progress, TensorSet, TrainJob, Trained,
};
use crate::ledger::{Entry, Event, Origin, verify};
use crate::node::{Identity, Node, NodeParts, SettingsProblem, SystemClock, learning_of};
use crate::protocol::update;
use crate::report::AuditSummary;
use crate::scada::command::CommandPolicy;
use crate::scada::telegram::ModelMeta;
use crate::settings::Settings;
use crate::store::keyfile::new_boot_id;
use crate::store::{BlobCaps, SqliteStore, Store};
use crate::time::Clock;
use crate::topic::Prefix;
use crate::trust::keyring::{Keyring, Role};
use crate::wire::Coding;

/// What is federated.
pub(super) struct Federation<'a> {
    pub(super) settings: &'a Settings,
    pub(super) base: Digest,
    /// A store for each node is made in here.
    pub(super) folder: &'a Path,
    pub(super) patience_s: u64,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Outcome {
    /// The last version.
    pub(super) adapter: TensorSet,
    /// Mean loss of the machines after each round.
    pub(super) losses: Vec<f64>,
    /// Bytes that a device published in a round, mean.
    pub(super) bytes_up: u64,
    /// Of it, the coded work.
    pub(super) work: u64,
    pub(super) audit: Option<AuditSummary>,
}

pub(super) type Links = BTreeMap<Side, (Arc<dyn Bus>, mpsc::Receiver<BusEvent>)>;

impl Federation<'_> {
    /// Runs all rounds; blocks until the last version is out and the nodes have ended.
    pub(super) fn run(
        &self,
        learner: &Shared,
        start: &TensorSet,
        machines: &[Machine],
        news: &mut dyn FnMut(News),
    ) -> Result<Outcome, ExperimentError> {
        let system = actix::System::new();
        system.block_on(self.learn(learner, start, machines, news))
    }

    async fn learn(
        &self,
        learner: &Shared,
        start: &TensorSet,
        machines: &[Machine],
        news: &mut dyn FnMut(News),
    ) -> Result<Outcome, ExperimentError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let federation = &self.settings.node.federation;
        let mut places = Places::new(federation, machines, clock.now().wall)?;
        let keyring = Arc::new(places.keyring.clone());
        let brokers = Brokers::new(&places.all);
        let (gave_up, mut reasons) = mpsc::channel(16);
        let lanes = Arc::new(Watched::default());
        let adapter = update::pack(start, Coding::F32, 0)?;
        let mut nodes = Vec::new();
        for place in &places.all {
            let texts = place.machine.and_then(|at| machines.get(at)).map(|machine| &machine.train);
            let told = Told { learner: learner.clone(), lanes: Arc::clone(&lanes), jobs: 0 };
            let trains = texts.map(|texts| (told, Arc::new(Examples::Texts(texts.clone()))));
            let key = places.keys.remove(&place.node);
            let key = key.ok_or_else(|| ExperimentError::Name(place.node.to_string()))?;
            let identity = Identity {
                prefix: self.prefix()?,
                me: place.node.clone(),
                key,
                keyring: Arc::clone(&keyring),
                boot: new_boot_id()?,
                config: Digest::of(b"experiment"),
            };
            let parts = self.parts(
                identity,
                adapter.clone(),
                brokers.links(place),
                trains,
                Arc::clone(&clock),
                gave_up.clone(),
            )?;
            nodes.push(crate::node::start(parts)?);
        }

        let waited = self.wait(&nodes, &lanes.steps, &mut reasons, machines.len(), news).await;
        let mut outcome = waited?;
        outcome.losses = lanes.losses(self.settings.round.rounds);
        let rounds = self.settings.round.rounds.max(1);
        let mut devices = 0;
        for (node, place) in nodes.iter().zip(&places.all) {
            if place.machine.is_some() {
                let view = node.figures.view();
                outcome.bytes_up += view.bytes_out.get(&Side::Up).copied().unwrap_or(0);
                devices += 1;
            }
        }
        outcome.bytes_up /= rounds * u64::max(devices, 1);
        for node in nodes {
            node.stop("experiment_over", 200).await;
        }
        self.read_ledgers(&places.all, &keyring, &mut outcome)?;
        Ok(outcome)
    }

    /// Waits for version after version until the last is everywhere.
    async fn wait(
        &self,
        nodes: &[Node],
        steps: &AtomicU64,
        reasons: &mut mpsc::Receiver<String>,
        machines: usize,
        news: &mut dyn FnMut(News),
    ) -> Result<Outcome, ExperimentError> {
        let rounds = self.settings.round.rounds;
        let per_machine = rounds * u64::from(self.settings.strategy.local_steps);
        let of = per_machine * machines as u64;
        let cloud = nodes.first().ok_or_else(|| ExperimentError::Name("cloud".to_owned()))?;
        let mut outcome = Outcome::default();
        let (mut version, mut quiet, mut seen) = (0, 0, 0);
        while version < rounds {
            tokio::select! {
                biased;
                Some(reason) = reasons.recv() => return Err(ExperimentError::GaveUp(reason)),
                () = tokio::time::sleep(Duration::from_millis(TICK_MS)) => quiet += 1,
            }
            // Before the steps are counted: those behind this version are done.
            let served = cloud.serving.borrow().clone();
            let done = steps.load(Ordering::Acquire);
            if done != seen {
                (seen, quiet) = (done, 0);
                news(News::Step { done, of });
            }
            if served.0 > version {
                (version, quiet) = (served.0, 0);
                outcome.adapter = update::unpack(&served.1)?;
            }
            if quiet * TICK_MS > self.patience_s * 1_000 {
                return Err(ExperimentError::Stuck { seconds: self.patience_s, version });
            }
        }
        // The last version still has to reach the devices, so that their ledgers tell of it.
        for _ in 0..SETTLE_TICKS {
            let at_last = nodes.iter().all(|node| node.serving.borrow().0 >= rounds);
            if at_last {
                break;
            }
            tokio::time::sleep(Duration::from_millis(TICK_MS)).await;
        }
        Ok(outcome)
    }

    fn parts(
        &self,
        identity: Identity,
        adapter: Vec<u8>,
        links: Links,
        trains: Option<(Told, Arc<Examples>)>,
        clock: Arc<dyn Clock>,
        gave_up: mpsc::Sender<String>,
    ) -> Result<NodeParts, ExperimentError> {
        let settings = self.settings;
        let figures = Arc::new(Figures::default());
        let lane = match trains {
            Some((learner, data)) => {
                Some((train_lane(learner, 1).map_err(ExperimentError::Thread)?, data))
            }
            None => None,
        };
        let busy = Arc::new(Busy::default());
        let model = ModelMeta {
            name: settings.model.name.clone(),
            version: 0,
            window: 0,
            rate_hz: 0.0,
            labels: Vec::new(),
            context: None,
        };
        let none: [&str; 0] = [];
        let policy = CommandPolicy::new(none).map_err(|error| SettingsProblem::Key {
            key: "commands.unsigned",
            problem: error.to_string(),
        })?;
        Ok(NodeParts {
            store: Box::new(SqliteStore::open(&self.store_of(&identity.me), BlobCaps::default())?),
            bench: Box::new(LaneBench::new(identity.me.clone(), lane, Arc::clone(&figures), busy)),
            learning: learning_of(settings, model, self.base, adapter, None),
            links,
            clock,
            answering: None,
            policy,
            figures,
            resources: Arc::new(|| (0.0, 0.0)),
            bounds: Bounds::default(),
            adopt: None,
            fatal: Arc::new(move |what| {
                let _ = gave_up.try_send(what.to_owned());
            }),
            identity,
        })
    }

    fn prefix(&self) -> Result<Prefix, ExperimentError> {
        let prefix = Prefix::new(self.settings.node.prefix.clone());
        Ok(prefix.map_err(|error| SettingsProblem::Key {
            key: "node.prefix",
            problem: error.to_string(),
        })?)
    }

    fn store_of(&self, node: &NodeId) -> std::path::PathBuf {
        self.folder.join(node.as_str())
    }

    /// Verifies each ledger, and counts the bytes of the devices' work.
    fn read_ledgers(
        &self,
        places: &[Place],
        keyring: &Keyring,
        outcome: &mut Outcome,
    ) -> Result<(), ExperimentError> {
        let mut audit = AuditSummary { entries: 0, verified: true };
        let (mut bytes_of_work, mut works) = (0, 0);
        for place in places {
            let store = SqliteStore::open_read_only(&self.store_of(&place.node))?;
            let (events, verified) = audit_of(&store, &place.node, keyring)?;
            audit.entries += store.num_entries()?;
            audit.verified &= verified;
            for event in events {
                if let Event::Contribute { bytes, .. } = event
                    && place.role == Role::Device
                {
                    bytes_of_work += bytes;
                    works += 1;
                }
            }
        }
        outcome.work = bytes_of_work / u64::max(works, 1);
        outcome.audit = Some(audit);
        Ok(())
    }
}

/// A node's recorded events, and whether its ledger verifies.
pub(super) fn audit_of(
    store: &SqliteStore,
    node: &NodeId,
    keyring: &Keyring,
) -> Result<(Vec<Event>, bool), ExperimentError> {
    let entries = store.entries(0, store.num_entries()?)?;
    let origin = Origin { federation: keyring.federation().clone(), node: node.clone() };
    let keys: Vec<_> = keyring.node(node).map(|entry| entry.key).into_iter().collect();
    let verified = verify(&origin, &keys, &entries, &store.checkpoints()?);
    if let Err(error) = &verified {
        tracing::error!(%node, %error, "the ledger can't be verified");
    }
    let events = entries.iter().filter_map(|bytes| Some(Entry::parse(bytes).ok()?.event));
    Ok((events.collect(), verified.is_ok()))
}

/// The brokers of a federation.
pub(super) struct Brokers {
    federation: MemoryBroker,
    sites: BTreeMap<Name, MemoryBroker>,
}

impl Brokers {
    pub(super) fn new(places: &[Place]) -> Self {
        let broker = || MemoryBroker::new(Faults::none(0));
        let edges = places.iter().filter(|place| place.role == Role::Edge);
        let sites = edges.map(|place| (place.site.clone(), broker())).collect();
        Self { federation: broker(), sites }
    }

    pub(super) fn links(&self, place: &Place) -> Links {
        let mut links = Links::new();
        let mut link = |side: Side, broker: Option<&MemoryBroker>| {
            if let Some(broker) = broker {
                let (bus, events) = broker.connect(place.node.as_str(), None);
                links.insert(side, (Arc::new(bus), events));
            }
        };
        let site = self.sites.get(&place.site);
        match place.role {
            Role::Cloud => link(Side::Down, Some(&self.federation)),
            Role::Edge => {
                link(Side::Down, site);
                link(Side::Up, Some(&self.federation));
            }
            _ => link(Side::Up, site),
        }
        links
    }
}

/// What the training lanes of all machines did.
#[derive(Default)]
struct Watched {
    steps: AtomicU64,
    /// Losses of the machines' first jobs, of their second, and so on.
    losses: Mutex<BTreeMap<u64, Vec<f64>>>,
}

impl Watched {
    /// Mean loss of the machines at the end of each of the first `rounds` jobs.
    #[expect(clippy::cast_precision_loss, reason = "a handful of machines")]
    fn losses(&self, rounds: u64) -> Vec<f64> {
        let losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        let mean = |of: &Vec<f64>| of.iter().sum::<f64>() / of.len().max(1) as f64;
        losses.range(..rounds).map(|(_, of)| mean(of)).collect()
    }
}

/// A machine's learner that tells what it does.
struct Told {
    learner: Shared,
    lanes: Arc<Watched>,
    jobs: u64,
}

impl Learner for Told {
    fn initial_adapter(&self) -> TensorSet {
        self.learner.initial_adapter()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let lanes = &self.lanes;
        let trained = self.learner.train(data, job, &mut |at| {
            lanes.steps.fetch_add(1, Ordering::Release);
            progress(at)
        })?;
        let mut losses = lanes.losses.lock().unwrap_or_else(PoisonError::into_inner);
        losses.entry(self.jobs).or_default().push(f64::from(trained.loss_last));
        self.jobs += 1;
        Ok(trained)
    }
}

/// How often is looked.
const TICK_MS: u64 = 50;
/// How long the last version may take to the devices: half a minute.
const SETTLE_TICKS: u32 = 600;
