//! One strategy as a federation: real nodes with real stores in one process, over brokers in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Sent, Strategy, Subject};
use crate::actors::lanes::train_lane;
use crate::actors::{Bounds, Figures, LaneBench, Pace};
use crate::experiment::ExperimentError;
use crate::experiment::brokers::Brokers;
use crate::experiment::federation::audit_of;
use crate::experiment::places::{Place, Places};
use crate::ids::{Digest, Side};
use crate::learn::{Examples, TensorSet, Windows};
use crate::ledger::Event;
use crate::node::{Identity, Learning, Node, NodeParts, SystemClock, learning_of};
use crate::protocol::update;
use crate::scada::command::CommandPolicy;
use crate::settings::{Compression, Contribute, Settings};
use crate::store::keyfile::new_boot_id;
use crate::store::{BlobCaps, SqliteStore};
use crate::time::Clock;
use crate::topic::Prefix;
use crate::trust::keyring::Role;
use crate::wire::Coding;

/// What came of it.
pub(super) struct Outcome {
    /// What each node has last.
    pub(super) adapters: BTreeMap<String, TensorSet>,
    pub(super) sent: Sent,
}

/// Runs all rounds; blocks until the last version is everywhere and the nodes have ended.
pub(super) fn run(
    subject: &dyn Subject,
    strategy: Strategy,
    folder: &Path,
    patience_s: u64,
) -> Result<Outcome, ExperimentError> {
    let settings = settings_of(subject, strategy);
    let system = actix::System::new();
    system.block_on(learn(subject, &settings, strategy, folder, patience_s))
}

async fn learn(
    subject: &dyn Subject,
    settings: &Settings,
    strategy: Strategy,
    folder: &Path,
    patience_s: u64,
) -> Result<Outcome, ExperimentError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let plants = subject.parties();
    let mut places = Places::open(folder, &settings.node.federation, &plants, clock.now().wall)?;
    let keyring = Arc::new(places.keyring.clone());
    let brokers = Brokers::new(None, &places.all);
    let (gave_up, mut reasons) = mpsc::channel(16);
    let mut nodes = Vec::new();
    for place in &places.all {
        let key = places.keys.remove(&place.node);
        let key = key.ok_or_else(|| ExperimentError::Name(place.node.to_string()))?;
        let identity = Identity {
            prefix: Prefix::new(settings.node.prefix.clone())
                .map_err(|_| ExperimentError::Name(settings.node.prefix.clone()))?,
            me: place.node.clone(),
            key,
            keyring: Arc::clone(&keyring),
            boot: new_boot_id()?,
            config: Digest::of(b"experiment"),
        };
        let (base, learner) = subject.learner(place.role, strategy)?;
        let adapter = update::pack(&learner.initial_adapter(), Coding::F32, 0)?;
        let data: Examples = match place.party.and_then(|at| subject.own(at)) {
            Some(windows) => windows.clone().into(),
            None => Windows::default().into(),
        };
        let learning = learning(subject, settings, strategy, place, (base, adapter))?;
        let figures = Arc::new(Figures::default());
        let lane = train_lane(learner, 1).map_err(ExperimentError::Thread)?;
        let lane = Some((lane, Arc::new(data)));
        let pace = Arc::new(Pace::free(Arc::clone(&clock)));
        let reference = learning.reference.clone();
        let gave_up = gave_up.clone();
        let parts = NodeParts {
            store: Box::new(SqliteStore::open(
                &folder.join(place.node.as_str()),
                BlobCaps::default(),
            )?),
            bench: Box::new(
                LaneBench::new(identity.me.clone(), lane, Arc::clone(&figures), pace)
                    .with_reference(reference),
            ),
            learning,
            bases: None,
            rollout: crate::node::RolloutTerms::default(),
            book: crate::scada::answer_book::BookLimits::default(),
            drift: None,
            links: brokers.links(place)?,
            clock: Arc::clone(&clock),
            answering: None,
            policy: CommandPolicy::new([""; 0])
                .map_err(|error| ExperimentError::Name(error.to_string()))?,
            figures,
            resources: Arc::new(|| (0.0, 0.0)),
            bounds: Bounds::default(),
            adopt: None,
            fatal: Arc::new(move |what| {
                let _ = gave_up.try_send(what.to_owned());
            }),
            identity,
        };
        nodes.push(crate::node::start(parts)?);
    }
    wait(&nodes, settings.round.rounds, &mut reasons, patience_s).await?;
    let mut adapters = BTreeMap::new();
    for (node, place) in nodes.iter().zip(&places.all) {
        adapters.insert(place.node.to_string(), update::unpack(&node.serving.borrow().1)?);
    }
    let mut sent = sent(&nodes, &places.all, settings.round.rounds);
    for node in nodes {
        node.stop("experiment_over", 200).await;
    }
    let (mut works, mut bytes_of_work) = (0.0, 0.0);
    sent.audit = true;
    for place in &places.all {
        let store = SqliteStore::open_read_only(&folder.join(place.node.as_str()))?;
        let (events, verified) = audit_of(&store, &place.node, &keyring)?;
        sent.audit &= verified;
        for event in events {
            if let Event::Contribute { bytes, .. } = event
                && place.role == Role::Device
            {
                works += 1.0;
                bytes_of_work += as_f64(bytes);
            }
        }
    }
    sent.work_up = bytes_of_work / f64::max(works, 1.0);
    Ok(Outcome { adapters, sent })
}

/// Waits until all nodes have the last version.
async fn wait(
    nodes: &[Node],
    rounds: u64,
    reasons: &mut mpsc::Receiver<String>,
    patience_s: u64,
) -> Result<(), ExperimentError> {
    let (mut version, mut quiet) = (0, 0);
    loop {
        tokio::select! {
            biased;
            Some(reason) = reasons.recv() => return Err(ExperimentError::GaveUp(reason)),
            () = tokio::time::sleep(Duration::from_millis(TICK_MS)) => quiet += TICK_MS,
        }
        let mut lowest = u64::MAX;
        for node in nodes {
            lowest = lowest.min(node.view().await.map_or(0, |view| view.version));
        }
        if lowest >= rounds {
            return Ok(());
        }
        if lowest > version {
            (version, quiet) = (lowest, 0);
        }
        if quiet > patience_s * 1_000 {
            return Err(ExperimentError::Stuck { seconds: patience_s, version });
        }
    }
}

fn learning(
    subject: &dyn Subject,
    settings: &Settings,
    strategy: Strategy,
    place: &Place,
    (base, adapter): (Digest, Vec<u8>),
) -> Result<Learning, ExperimentError> {
    let set = subject.reference(place.role)?;
    let reference = match strategy {
        Strategy::Weights => None,
        Strategy::Unlabelled => Some(Arc::new(set.as_ref().clone().without_labels())),
        _ => Some(Arc::clone(set)),
    };
    let learning = learning_of(settings, subject.model(), base, adapter, reference);
    let distils =
        learning.distils.filter(|_| place.party.is_none()).map(|_| subject.how(place.role));
    Ok(Learning { distils, ..learning })
}

/// The settings with what a strategy changes.
fn settings_of(subject: &dyn Subject, strategy: Strategy) -> Settings {
    let mut settings = subject.settings().clone();
    settings.strategy.seed = subject.seed();
    settings.knowledge.reference_seed = subject.seed();
    settings.strategy.contribute = match strategy {
        Strategy::ReferenceLogits | Strategy::Unlabelled => vec![Contribute::ReferenceLogits],
        Strategy::ClassLogits => vec![Contribute::ClassLogits],
        Strategy::Prototypes => vec![Contribute::Prototypes],
        Strategy::Both => vec![Contribute::ReferenceLogits, Contribute::Prototypes],
        Strategy::Weights => vec![Contribute::AdapterDelta],
        Strategy::Generator => vec![Contribute::Generator],
        Strategy::Spectra => vec![Contribute::Spectra],
        Strategy::SpectraAndPrototypes => vec![Contribute::Spectra, Contribute::Prototypes],
    };
    if strategy == Strategy::Weights {
        // As raw as in the comparison that is asked for.
        settings.knowledge.own_models = false;
        settings.strategy.compression = Compression::None;
        settings.strategy.learning_rate = subject.rate_of_weights();
    }
    settings
}

/// Bytes that nodes published, a round.
fn sent(nodes: &[Node], places: &[Place], rounds: u64) -> Sent {
    let mut sent = Sent::default();
    let count = |role| as_f64(places.iter().filter(|place| place.role == role).count() as u64);
    for (node, place) in nodes.iter().zip(places) {
        let view = node.figures.view();
        let bytes = |side| {
            let all = view.bytes_out.get(&side).copied().unwrap_or(0);
            as_f64(all) / as_f64(rounds.max(1)) / f64::max(count(place.role), 1.0)
        };
        match place.role {
            Role::Cloud => sent.cloud_down += bytes(Side::Down),
            Role::Edge => {
                sent.edge_up += bytes(Side::Up);
                sent.edge_down += bytes(Side::Down);
            }
            _ => sent.device_up += bytes(Side::Up),
        }
    }
    sent
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

/// How often is looked.
const TICK_MS: u64 = 50;
