//! The federated arm: real nodes with real stores in one process, over brokers in memory: one a site, one
//! for the federation; or each node as a process of its own, over a real broker. What is signed, recorded,
//! coded and combined is what a plant would get.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::ExperimentError;
use super::apart::{Apart, NodeProcess, OwnBroker};
use super::brokers::{Broker, Brokers, Links};
use super::places::{Place, Places};
use super::turns::Turns;
use super::versions::Versions;
use crate::actors::lanes::train_lane;
use crate::actors::split_lane::{BackCopies, FrontRuns, back_lane, front_lane};
use crate::actors::{Bounds, Figures, Half, LaneBench, Pace, Served};
use crate::ids::{Digest, NodeId, Side};
use crate::learn::{
    Control, Examples, LearnError, Learner, Progress, SplitBack, SplitFront, TensorSet, TrainJob,
    Trained,
};
use crate::ledger::{Entry, Event, Origin, verify};
use crate::node::{Identity, Node, NodeParts, SettingsProblem, SystemClock, learning_of, split_of};
use crate::protocol::{Backs, update};
use crate::report::AuditSummary;
use crate::scada::command::CommandPolicy;
use crate::scada::telegram::ModelMeta;
use crate::settings::Settings;
use crate::store::keyfile::new_boot_id;
use crate::store::{BlobCaps, SqliteStore, Store};
use crate::telemetry::mib;
use crate::time::Clock;
use crate::topic::Prefix;
use crate::trust::keyring::{Keyring, Role};
use crate::trust::keys::SigningKey;
use crate::wire::Coding;

/// What is federated.
pub(super) struct Federation<'a> {
    pub(super) settings: &'a Settings,
    pub(super) base: Digest,
    /// A store for each node is made in here, or gone on with.
    pub(super) folder: &'a Path,
    pub(super) patience_s: u64,
    /// So many parties train at the same time; all where each is a process of its own.
    pub(super) at_once: usize,
    /// A real broker for all links, instead of one in memory for each site and one for the federation.
    pub(super) broker: Option<&'a Broker>,
    /// Nodes are processes of their own, over a broker that is started for them if there is none.
    pub(super) apart: Option<Apart<'a>>,
}

/// One that takes part with data of its own.
pub(super) struct Party {
    pub(super) name: String,
    pub(super) site: String,
    pub(super) data: Arc<Examples>,
    pub(super) part: Part,
}

/// What a party trains.
pub(super) enum Part {
    /// The whole model.
    Whole(Box<dyn Learner>),
    /// The front of a split one; the edge of its site has the rest.
    Front(Box<dyn SplitFront>),
}

/// What a node of a federation works with.
pub(super) enum Works {
    /// It combines.
    Owner,
    /// It trains the whole model.
    Whole(Watching, Arc<Examples>),
    /// It trains the front.
    Front(Box<dyn SplitFront>, Arc<Examples>),
    /// It combines, and trains the back for its devices.
    Back(Box<dyn SplitBack>),
}

impl Works {
    fn of(part: Part, data: Arc<Examples>, lanes: &Arc<Watched>) -> Self {
        match part {
            Part::Whole(learner) => {
                Self::Whole(Watching { learner, lanes: Arc::clone(lanes), jobs: 0 }, data)
            }
            Part::Front(front) => Self::Front(front, data),
        }
    }

    /// What the one party of a process works with.
    #[cfg(feature = "torch")]
    pub(super) fn alone(part: Part, data: Examples) -> Self {
        Self::of(part, Arc::new(data), &Arc::new(Watched::new(1)))
    }
}

/// What the nodes of a process have in common.
pub(super) struct Common<'a> {
    pub(super) keyring: Arc<Keyring>,
    /// What all start from, packed.
    pub(super) adapter: Vec<u8>,
    pub(super) brokers: Brokers<'a>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) gave_up: mpsc::Sender<ExperimentError>,
}

/// A node that runs, in this process or in one of its own.
enum Running {
    Here(Node),
    Apart(NodeProcess),
}

impl Running {
    fn figures(&self) -> &Arc<Figures> {
        match self {
            Self::Here(node) => &node.figures,
            Self::Apart(process) => &process.figures,
        }
    }

    fn serving(&self) -> &watch::Receiver<Served> {
        match self {
            Self::Here(node) => &node.serving,
            Self::Apart(process) => &process.serving,
        }
    }
}

/// What a federation tells on its way.
pub(super) enum Told<'a> {
    /// Optimiser steps of all devices so far, in this process.
    Steps(u64),
    /// A version that the federation has come to.
    Version {
        version: u64,
        /// The common model; where each party has its own, all of those in the parties' order.
        models: &'a [TensorSet],
        /// Bytes that a device published since the last one, mean over the devices.
        bytes_up: u64,
    },
}

/// What came of it.
#[derive(Default)]
pub(super) struct Outcome {
    /// The last version: the common model, or the first party's own.
    pub(super) adapter: TensorSet,
    /// Mean loss of the parties after each of this process's rounds; none of split models.
    pub(super) losses: Vec<f64>,
    /// Bytes that a device published in a round, mean.
    pub(super) bytes_up: u64,
    /// Of it, the coded work.
    pub(super) work: u64,
    /// All payload bytes of this process.
    pub(super) traffic: Traffic,
    pub(super) audit: Option<AuditSummary>,
    /// Largest resident memory of each node's process in MiB; none where they have no process of their own.
    pub(super) peak_rss_mib: BTreeMap<String, f64>,
}

/// Payload bytes of a node, means over the nodes of its kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// That a device published.
    pub(super) device_up: u64,
    /// That a device received.
    pub(super) device_down: u64,
    /// That an edge published towards the cloud.
    pub(super) edge_up: u64,
    /// That an edge received from the cloud.
    pub(super) edge_down: u64,
}

impl Federation<'_> {
    /// Runs all rounds that are still to do; blocks until the last version is out and the nodes have
    /// ended. `backs` are those of a split model, one an edge.
    pub(super) fn run(
        &self,
        start: &TensorSet,
        parties: Vec<Party>,
        backs: Vec<Box<dyn SplitBack>>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<Outcome, ExperimentError> {
        let system = actix::System::new();
        system.block_on(self.learn(start, parties, backs, told))
    }

    async fn learn(
        &self,
        start: &TensorSet,
        parties: Vec<Party>,
        backs: Vec<Box<dyn SplitBack>>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<Outcome, ExperimentError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let federation = &self.settings.node.federation;
        let names: Vec<(&str, &str)> =
            parties.iter().map(|party| (party.name.as_str(), party.site.as_str())).collect();
        let mut places = Places::open(self.folder, federation, &names, clock.now().wall)?;
        let keyring = Arc::new(places.keyring.clone());
        let (gave_up, mut reasons) = mpsc::channel(16);
        let lanes = Arc::new(Watched::new(self.at_once));
        // Goes last: the nodes say goodbye over it.
        let mut own_broker = None;
        let mut nodes = if let Some(apart) = &self.apart {
            let broker = if let Some(broker) = self.broker {
                broker.clone()
            } else {
                let started = OwnBroker::start(apart.program, self.folder, gave_up.clone());
                own_broker.insert(started.await?).at.clone()
            };
            self.start_apart(apart, &broker, &places.all, &parties, &gave_up)?
        } else {
            let common = Common {
                keyring: Arc::clone(&keyring),
                adapter: update::pack(start, Coding::F32, 0)?,
                brokers: Brokers::new(self.broker, &places.all),
                clock,
                gave_up,
            };
            self.start_here(&common, &mut places, parties, backs, &lanes)?
        };

        let figures_of = |role| -> Vec<Arc<Figures>> {
            let of_role = nodes.iter().zip(&places.all).filter(|(_, place)| place.role == role);
            of_role.map(|(node, _)| Arc::clone(node.figures())).collect()
        };
        let (devices, edges) = (figures_of(Role::Device), figures_of(Role::Edge));
        let own = self.settings.knowledge.own_models;
        let models =
            if own { of_parties(&nodes, &places.all) } else { nodes.iter().take(1).collect() };
        let served = models.iter().map(|node| node.serving().clone()).collect();
        let mut versions = Versions::follow(served, own, self.settings.round.rounds);
        let mut outcome = self.wait(&mut versions, &devices, &mut reasons, told).await?;
        if !own {
            self.settle(&nodes).await;
        }
        outcome.losses = lanes.losses(self.settings.round.rounds);
        outcome.bytes_up = bytes_up(&devices) / self.settings.round.rounds.max(1);
        outcome.traffic = Traffic {
            device_up: bytes_up(&devices),
            device_down: bytes_down(&devices),
            edge_up: bytes_up(&edges),
            edge_down: bytes_down(&edges),
        };
        for node in &mut nodes {
            if let Running::Apart(process) = node {
                process.tell_end();
            }
        }
        for node in nodes {
            match node {
                Running::Here(node) => node.stop(OVER, DRAIN_MS).await,
                Running::Apart(process) => {
                    let (name, bytes) = process.ended().await;
                    outcome.peak_rss_mib.insert(name, mib(bytes));
                }
            }
        }
        drop(own_broker);
        if self.apart.is_some()
            && let Ok(error) = reasons.try_recv()
        {
            return Err(error);
        }
        self.read_ledgers(&places.all, &keyring, &mut outcome)?;
        Ok(outcome)
    }

    /// All nodes, in this process.
    fn start_here(
        &self,
        common: &Common<'_>,
        places: &mut Places,
        parties: Vec<Party>,
        backs: Vec<Box<dyn SplitBack>>,
        lanes: &Arc<Watched>,
    ) -> Result<Vec<Running>, ExperimentError> {
        let mut parties: Vec<Option<Party>> = parties.into_iter().map(Some).collect();
        let mut backs = backs.into_iter();
        let mut nodes = Vec::new();
        for place in &places.all {
            let party = place.party.and_then(|at| parties.get_mut(at)?.take());
            let works = match party {
                Some(Party { part, data, .. }) => Works::of(part, data, lanes),
                None if place.role == Role::Edge => backs.next().map_or(Works::Owner, Works::Back),
                None => Works::Owner,
            };
            let key = places.keys.remove(&place.node);
            let key = key.ok_or_else(|| ExperimentError::Name(place.node.to_string()))?;
            nodes.push(Running::Here(self.start(common, place, key, works)?));
        }
        Ok(nodes)
    }

    /// All nodes, a process each. What the parties would train is left alone: the processes make their own.
    fn start_apart(
        &self,
        apart: &Apart<'_>,
        broker: &Broker,
        places: &[Place],
        parties: &[Party],
        gave_up: &mpsc::Sender<ExperimentError>,
    ) -> Result<Vec<Running>, ExperimentError> {
        let mut nodes = Vec::new();
        for place in places {
            let party = place.party.and_then(|at| parties.get(at));
            let data = party.map(|party| party.data.as_ref());
            let order = (apart.order)(&place.node, broker, data)?;
            let (program, gave_up) = (apart.program, gave_up.clone());
            let node = NodeProcess::start(program, self.folder, &place.node, order, gave_up)?;
            nodes.push(Running::Apart(node));
        }
        Ok(nodes)
    }

    /// One node, in this process.
    pub(super) fn start(
        &self,
        common: &Common<'_>,
        place: &Place,
        key: SigningKey,
        works: Works,
    ) -> Result<Node, ExperimentError> {
        let identity = Identity {
            prefix: self.prefix()?,
            me: place.node.clone(),
            key,
            keyring: Arc::clone(&common.keyring),
            boot: new_boot_id()?,
            config: Digest::of(b"experiment"),
        };
        let parts = self.parts(
            identity,
            common.adapter.clone(),
            common.brokers.links(place)?,
            works,
            Arc::clone(&common.clock),
            common.gave_up.clone(),
        )?;
        Ok(crate::node::start(parts)?)
    }

    /// Waits for version after version until the last is there.
    async fn wait(
        &self,
        versions: &mut Versions,
        devices: &[Arc<Figures>],
        reasons: &mut mpsc::Receiver<ExperimentError>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<Outcome, ExperimentError> {
        let rounds = self.settings.round.rounds;
        let mut outcome = Outcome::default();
        let (mut version, mut quiet, mut seen, mut sent) = (0, 0, 0, 0);
        while version < rounds {
            tokio::select! {
                biased;
                Some(error) = reasons.recv() => return Err(error),
                () = tokio::time::sleep(Duration::from_millis(TICK_MS)) => quiet += 1,
            }
            // Before the steps are counted: those behind this version are done.
            let news = versions.next();
            let done = steps(devices);
            if done != seen {
                (seen, quiet) = (done, 0);
                told(Told::Steps(done));
            }
            if let Some((next, packed)) = news {
                (version, quiet) = (next, 0);
                let models: Result<Vec<TensorSet>, _> =
                    packed.iter().map(|bytes| update::unpack(bytes)).collect();
                let models = models?;
                let all = bytes_up(devices);
                let bytes_up = all.saturating_sub(sent);
                sent = all;
                told(Told::Version { version, models: &models, bytes_up });
                outcome.adapter = models.into_iter().next().unwrap_or_default();
            }
            if quiet * TICK_MS > self.patience_s * 1_000 {
                return Err(ExperimentError::Stuck { seconds: self.patience_s, version });
            }
        }
        Ok(outcome)
    }

    /// The last version still has to reach the devices, so that their ledgers tell of it.
    async fn settle(&self, nodes: &[Running]) {
        for _ in 0..SETTLE_TICKS {
            let last = self.settings.round.rounds;
            if nodes.iter().all(|node| node.serving().borrow().0 >= last) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(TICK_MS)).await;
        }
    }

    fn parts(
        &self,
        identity: Identity,
        mut adapter: Vec<u8>,
        links: Links,
        works: Works,
        clock: Arc<dyn Clock>,
        gave_up: mpsc::Sender<ExperimentError>,
    ) -> Result<NodeParts, ExperimentError> {
        let settings = self.settings;
        let (figures, pace) =
            (Arc::new(Figures::default()), Arc::new(Pace::free(Arc::clone(&clock))));
        let me = identity.me.clone();
        let bench =
            |lane| LaneBench::new(me.clone(), lane, Arc::clone(&figures), Arc::clone(&pace));
        let no_thread = ExperimentError::Thread;
        let bench = match works {
            Works::Owner => bench(None),
            Works::Whole(learner, data) => {
                bench(Some((train_lane(learner, 1).map_err(no_thread)?, data)))
            }
            Works::Front(front, data) => {
                adapter = update::pack(&front.initial_adapter(), Coding::F32, 0)?;
                let runs = FrontRuns::new(me.clone(), front, data);
                let lane = front_lane(runs, Arc::clone(&figures), Arc::clone(&pace), QUEUE);
                bench(None).with_half(Half::Front(lane.map_err(no_thread)?))
            }
            Works::Back(back) => {
                let backs = split_of(settings).map_or(Backs::Each, |split| split.backs);
                let copies = BackCopies::new(back, backs);
                let lane = back_lane(copies, Arc::clone(&figures), QUEUE).map_err(no_thread)?;
                bench(None).with_half(Half::Back(lane))
            }
        };
        let model = ModelMeta {
            name: settings.model.name.clone(),
            version: 0,
            window: 0,
            rate_hz: 0.0,
            labels: Vec::new(),
            context: None,
            adapters: vec![],
        };
        let none: [&str; 0] = [];
        let policy = CommandPolicy::new(none).map_err(|error| SettingsProblem::Key {
            key: "commands.unsigned",
            problem: error.to_string(),
        })?;
        Ok(NodeParts {
            store: Box::new(SqliteStore::open(&self.store_of(&identity.me), BlobCaps::default())?),
            bench: Box::new(bench),
            learning: learning_of(settings, model, self.base, adapter, None),
            links,
            clock,
            answering: None,
            policy,
            figures,
            resources: Arc::new(|| (0.0, 0.0)),
            bounds: Bounds::default(),
            adopt: None,
            bases: None,
            rollout: crate::node::RolloutTerms::default(),
            book: crate::scada::answer_book::BookLimits::default(),
            drift: None,
            fatal: Arc::new(move |what| {
                let _ = gave_up.try_send(ExperimentError::GaveUp(what.to_owned()));
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

/// The parties' nodes, in the parties' order.
fn of_parties<'a>(nodes: &'a [Running], places: &[Place]) -> Vec<&'a Running> {
    let mut all: Vec<_> =
        nodes.iter().zip(places).filter_map(|(node, place)| Some((place.party?, node))).collect();
    all.sort_by_key(|(party, _)| *party);
    all.into_iter().map(|(_, node)| node).collect()
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

/// Bytes that a node has published towards above, mean over the nodes.
fn bytes_up(nodes: &[Arc<Figures>]) -> u64 {
    let up = |figures: &Arc<Figures>| figures.view().bytes_out.get(&Side::Up).copied();
    let all: u64 = nodes.iter().filter_map(up).sum();
    all / u64::try_from(nodes.len()).unwrap_or(1).max(1)
}

/// Bytes that a node has received from above, mean over the nodes.
fn bytes_down(nodes: &[Arc<Figures>]) -> u64 {
    let down = |figures: &Arc<Figures>| figures.view().bytes_in.get(&Side::Up).copied();
    let all: u64 = nodes.iter().filter_map(down).sum();
    all / u64::try_from(nodes.len()).unwrap_or(1).max(1)
}

/// Optimiser steps that the devices have done.
fn steps(devices: &[Arc<Figures>]) -> u64 {
    devices.iter().map(|figures| figures.view().train_steps).sum()
}

/// What the training lanes of all parties did, and whose turn it is.
struct Watched {
    turns: Turns,
    /// Losses of the parties' first jobs, of their second, and so on.
    losses: Mutex<BTreeMap<u64, Vec<f64>>>,
}

impl Watched {
    fn new(at_once: usize) -> Self {
        Self { turns: Turns::new(at_once), losses: Mutex::new(BTreeMap::new()) }
    }

    /// Mean loss of the parties at the end of each of the first `rounds` jobs.
    #[expect(clippy::cast_precision_loss, reason = "a handful of parties")]
    fn losses(&self, rounds: u64) -> Vec<f64> {
        let losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        let mean = |of: &Vec<f64>| of.iter().sum::<f64>() / of.len().max(1) as f64;
        losses.range(..rounds).map(|(_, of)| mean(of)).collect()
    }
}

/// A party's learner that waits for its turn and tells its loss.
pub(super) struct Watching {
    learner: Box<dyn Learner>,
    lanes: Arc<Watched>,
    jobs: u64,
}

impl Learner for Watching {
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
        let turn = lanes.turns.take(u64::from(job.steps_over(data.num_examples())));
        let trained = self.learner.train(data, job, progress)?;
        drop(turn);
        let mut losses = lanes.losses.lock().unwrap_or_else(PoisonError::into_inner);
        losses.entry(self.jobs).or_default().push(f64::from(trained.loss_last));
        self.jobs += 1;
        Ok(trained)
    }
}

/// Why nodes end, as their ledgers have it.
pub(super) const OVER: &str = "experiment_over";
/// How long their links may take to say goodbye.
pub(super) const DRAIN_MS: u64 = 200;
/// Tasks that wait for a half of a model: each device has one on its way.
const QUEUE: usize = 128;
/// How often is looked.
const TICK_MS: u64 = 20;
/// How long the last version may take to the devices: half a minute.
const SETTLE_TICKS: u32 = 1_500;
