//! The demo from beginning to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::oneshot;

use super::arms;
use super::brokers::Three;
use super::feeder;
use super::plant::{self, Brokers, PLACES, Place};
use super::{DemoError, DemoOptions};
use crate::actors::Served;
use crate::data::bearings::{Bearings, CLASSES, Dataset, fetch_bearings};
use crate::data::{Cache, Step};
use crate::ids::{BootId, Digest, Name};
use crate::learn::{TensorSet, percentile};
use crate::ledger::{Origin, verify};
use crate::node::{self, Identity, Node, SystemClock, brain, data_of, parts_of, plan_of};
use crate::protocol::update;
use crate::report::{
    Arm, AuditSummary, ConfusionTable, Contribution, Crossing, DemoReport, Latency, RoundPoint,
    TierTraffic,
};
use crate::settings::{Compression, Settings, Tier};
use crate::store::{SqliteStore, Store};
use crate::time::{Clock, Wall};
use crate::topic::Prefix;
use crate::trust::keyring::Keyring;
use crate::trust::keys::SigningKey;
use crate::wire::Coding;

/// Runs the demo; gives what it has shown. Blocks until the last round, or until Ctrl-C.
///
/// # Errors
/// [`DemoError`].
pub fn run(options: &DemoOptions) -> Result<DemoReport, DemoError> {
    let clock = SystemClock::new();
    let began = clock.now();
    let data = load(options)?;
    prepare(options)?;
    let (keyring, keys) = plant::enrol(&options.folder, began.wall)?;
    let brokers = Three::start()?;
    let addresses = brokers.addresses();
    let mut settings = BTreeMap::new();
    for place in &PLACES {
        settings.insert(place.name, place.settings(options, &addresses)?);
    }
    let federation = Federation { options, addresses, settings, keyring, data: &data };
    let outcome = System::new().block_on(federation.learn(keys, began.wall));
    let stats = brokers.stats();
    brokers.stop();
    let outcome = outcome?;

    let any = federation.settings.get("p1").ok_or_else(|| DemoError::Start("no device".into()))?;
    let traffic = traffic(&stats);
    let mut report = compare(options, any, &data, &outcome)?;
    report.audit = audit(options, &federation.keyring)?;
    report.traffic = traffic;
    let usage = crate::telemetry::usage().ok();
    report.cpu_seconds = usage.map_or(0.0, |usage| usage.cpu_seconds);
    report.peak_rss_mib = usage.map_or(0.0, |usage| usage.peak_rss_mib());
    report.seconds = seconds_since(&clock, began.micros);
    Ok(report)
}

/// What the federation's run leaves behind.
struct Outcome {
    adapters: Vec<Served>,
    losses: BTreeMap<u64, f64>,
    deltas: (u64, u64),
    latencies_ms: Vec<f64>,
    answers: u64,
    refused: BTreeMap<String, u64>,
    crossing: (u64, u64),
}

struct Federation<'a> {
    options: &'a DemoOptions,
    addresses: Brokers,
    settings: BTreeMap<&'static str, Settings>,
    keyring: Arc<Keyring>,
    data: &'a Bearings,
}

impl Federation<'_> {
    async fn learn(
        &self,
        keys: BTreeMap<&'static str, SigningKey>,
        now: Wall,
    ) -> Result<Outcome, DemoError> {
        let mut nodes = Vec::new();
        for (name, key) in keys {
            let Some(place) = PLACES.iter().find(|place| place.name == name) else { continue };
            nodes.push((place, self.start(place, key).await?));
        }
        let gateways = feeder::start(self.data, &self.addresses, self.options.speed, now)?;
        let watched = self.watch(&nodes).await;
        for gateway in &gateways {
            gateway.abort();
        }
        let outcome = watched.map(|(adapters, losses)| collect(&nodes, adapters, losses));
        for (_, node) in nodes {
            node.stop("demo_over", 500).await;
        }
        // Their last words need a moment on the way to the brokers.
        tokio::time::sleep(Duration::from_millis(600)).await;
        outcome
    }

    async fn start(&self, place: &Place, key: SigningKey) -> Result<Node, DemoError> {
        let missing = || DemoError::Start(format!("no settings for {}", place.name));
        let settings = self.settings.get(place.name).ok_or_else(missing)?;
        let mut boot = [0; 16];
        let random = SystemRandom::new().fill(&mut boot);
        random.map_err(|_| DemoError::Start("the system gives no random bytes".into()))?;
        let identity = Identity {
            prefix: Prefix::new(settings.node.prefix.clone())
                .map_err(|error| DemoError::Start(error.to_string()))?,
            me: settings.node.name.clone(),
            key,
            keyring: Arc::clone(&self.keyring),
            boot: BootId(boot),
            config: Digest::of(&serde_json::to_vec(settings).unwrap_or_default()),
        };
        let data = match place.data {
            Some(_) => {
                let mut own = settings.clone();
                own.data.set = Some("bearings".into());
                own.data.client = Name::new(place.name).ok();
                data_of(&own)?
            }
            None => None,
        };
        let parts = parts_of(settings, identity, brain(settings)?, data)?;
        let (started, starting) = oneshot::channel();
        let arbiter = Arbiter::new();
        arbiter.spawn(async move {
            let _ = started.send(node::start(parts));
        });
        let ended = |_| DemoError::Start("a node's thread ended".into());
        Ok(starting.await.map_err(ended)??)
    }

    /// Shows progress until the last version is out, and keeps each version's adapter.
    async fn watch(
        &self,
        nodes: &[(&Place, Node)],
    ) -> Result<(Vec<Served>, BTreeMap<u64, f64>), DemoError> {
        let bar = bar(self.options.quiet, self.options.rounds, "federation");
        let no_cloud = || DemoError::Start("no cloud".into());
        let (_, cloud) = nodes.iter().find(|(p, _)| p.tier == Tier::Cloud).ok_or_else(no_cloud)?;
        let mut serving = cloud.serving.clone();
        let mut adapters: Vec<Served> = Vec::new();
        let mut losses = BTreeMap::new();
        let mut quiet_ticks = 0;
        loop {
            let (version, adapter) = serving.borrow_and_update().clone();
            if adapters.last().is_none_or(|(last, _)| *last != version) {
                let all = nodes.iter().filter_map(|(_, node)| node.figures.view().loss);
                let all: Vec<f64> = all.collect();
                let loss = mean(&all);
                if version > 0 && !all.is_empty() {
                    losses.insert(version, loss);
                }
                adapters.push((version, adapter));
                quiet_ticks = 0;
                bar.set_position(version);
            }
            let bytes: u64 = nodes.iter().map(|(_, n)| n.figures.view().deltas.0).sum();
            let up = nodes.iter().filter(|(_, n)| n.figures.view().connected.values().all(|c| *c));
            let loss =
                losses.values().last().map_or(String::new(), |loss| format!("loss {loss:.3}, "));
            bar.set_message(format!(
                "{loss}{} of {} nodes up, {} kB of deltas",
                up.count(),
                nodes.len(),
                bytes / 1_000
            ));
            if version >= self.options.rounds && self.all_have(nodes, version).await {
                bar.finish();
                return Ok((adapters, losses));
            }
            quiet_ticks += 1;
            if quiet_ticks > STUCK_AFTER_TICKS {
                return Err(DemoError::Stuck { seconds: STUCK_AFTER_TICKS / 5, version });
            }
            tokio::select! {
                biased;
                _ = tokio::signal::ctrl_c() => {
                    bar.abandon();
                    return Err(DemoError::Interrupted { version });
                }
                changed = serving.changed() => {
                    if changed.is_err() {
                        return Err(DemoError::Start("the cloud stopped; see the log".into()));
                    }
                }
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    async fn all_have(&self, nodes: &[(&Place, Node)], version: u64) -> bool {
        for (_, node) in nodes {
            if node.view().await.is_none_or(|view| view.version < version) {
                return false;
            }
        }
        true
    }
}

fn collect(nodes: &[(&Place, Node)], adapters: Vec<Served>, losses: BTreeMap<u64, f64>) -> Outcome {
    let mut outcome = Outcome {
        adapters,
        losses,
        deltas: (0, 0),
        latencies_ms: Vec::new(),
        answers: 0,
        refused: BTreeMap::new(),
        crossing: (0, 0),
    };
    for (place, node) in nodes {
        let view = node.figures.view();
        if place.tier == Tier::Device {
            outcome.deltas = (outcome.deltas.0 + view.deltas.0, outcome.deltas.1 + view.deltas.1);
            outcome.latencies_ms.extend(view.latencies_ms.iter());
            outcome.answers += view.answers;
        }
        if place.tier == Tier::Edge {
            let (bytes, messages) = view.deltas;
            outcome.crossing = (outcome.crossing.0 + bytes, outcome.crossing.1 + messages);
        }
        for (reason, count) in view.counted {
            *outcome.refused.entry(reason.to_owned()).or_default() += count;
        }
    }
    outcome
}

fn load(options: &DemoOptions) -> Result<Bearings, DemoError> {
    let cache = Cache::from_env()?;
    let spinner = bar(options.quiet, 0, "data");
    let fetched = fetch_bearings(&cache, &mut |step| {
        spinner.set_message(match step {
            Step::Download => "bearings: downloading 67 MB, once".to_owned(),
            Step::Check => "bearings: checking the digest".to_owned(),
            Step::Unpack { files } => format!("bearings: {files} files"),
        });
        spinner.tick();
    })?;
    spinner.finish_and_clear();
    if fetched.fresh && !options.quiet {
        tracing::info!("{}", fetched.notice);
    }
    Bearings::cached(&cache).ok_or_else(|| DemoError::Start("the data set vanished".into()))
}

/// Goes on with an unfinished run of the same options, else starts from nothing.
fn prepare(options: &DemoOptions) -> Result<(), DemoError> {
    let folder = &options.folder;
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error| DemoError::File { path, error }
    };
    let note = folder.join("options");
    let wanted = format!(
        "{:?} {:?} {:?}",
        (options.learner, options.rounds, options.local_steps, options.seed),
        options.contribute,
        (options.compression, options.learning_rate),
    );
    let same = std::fs::read_to_string(&note).is_ok_and(|text| text == wanted);
    let finished = folder.join("report.html").exists();
    if folder.exists() && (options.fresh || finished || !same) {
        // Only what the demo itself has made is removed.
        for place in &PLACES {
            let path = folder.join(place.name);
            if path.exists() {
                std::fs::remove_dir_all(&path).map_err(failed(&path))?;
            }
        }
        if finished {
            let path = folder.join("report.html");
            std::fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    for place in &PLACES {
        let path = folder.join(place.name);
        std::fs::create_dir_all(&path).map_err(failed(&path))?;
    }
    // The shipped base, so that the program needs no checkout to run from.
    let card = folder.join(plant::BASE_CARD);
    let weights = card.with_extension("safetensors");
    let base = card.parent().unwrap_or(folder);
    std::fs::create_dir_all(base).map_err(failed(base))?;
    let shipped = include_bytes!("../../models/signal-bearing.toml");
    std::fs::write(&card, shipped).map_err(failed(&card))?;
    let shipped = include_bytes!("../../models/signal-bearing.safetensors");
    std::fs::write(&weights, shipped).map_err(failed(&weights))?;
    std::fs::write(&note, wanted).map_err(failed(&note))
}

fn compare(
    options: &DemoOptions,
    settings: &Settings,
    bearings: &Bearings,
    outcome: &Outcome,
) -> Result<DemoReport, DemoError> {
    let Dataset { plants, pooled, test } = bearings.load()?;
    let arms = plants.len() as u64 + 1;
    let bar = bar(options.quiet, arms * options.rounds, "to compare with");
    let mut mine = brain(settings)?;
    let start = mine.learner.initial_adapter();
    let mut trained = Vec::new();
    for (place, data) in PLACES.iter().filter(|place| place.data.is_some()).zip(&plants) {
        bar.set_message(format!("{} alone", place.name));
        trained.push((place.name, arms::train(&mut mine, settings, data, &mut || bar.inc(1))?));
    }
    bar.set_message("all data in one place");
    let pooled_adapter = arms::train(&mut mine, settings, &pooled, &mut || bar.inc(1))?;
    bar.finish_and_clear();

    let last = outcome.adapters.last().map(|(_, bytes)| update::unpack(bytes)).transpose()?;
    let federated: TensorSet = last.unwrap_or(start.clone());
    // The test part is read here and nowhere else: every choice was made before.
    let predictor = mine.predictor.as_mut();
    let mut alone = Vec::new();
    for (name, adapter) in &trained {
        let confusion = arms::confusion(predictor, adapter, &test)?;
        alone.push(Arm { name: (*name).to_owned(), score: arms::score(&confusion) });
    }
    let pooled_score = arms::score(&arms::confusion(predictor, &pooled_adapter, &test)?);
    let confusion = arms::confusion(predictor, &federated, &test)?;
    let federated_score = arms::score(&confusion);
    let mut curve = Vec::new();
    for (version, bytes) in outcome.adapters.iter().filter(|(version, _)| *version > 0) {
        // How it learns is shown on the training recordings.
        let seen = arms::confusion(predictor, &update::unpack(bytes)?, &pooled)?;
        curve.push(RoundPoint {
            round: *version,
            loss: outcome.losses.get(version).copied().unwrap_or(0.0),
            macro_f1: arms::score(&seen).macro_f1,
            bytes_up: outcome.deltas.0 / options.rounds.max(1),
            bytes_down: bytes.len() as u64 * plants.len() as u64,
        });
    }
    let raw = update::pack(&start, Coding::F32, 0)?.len().max(start.num_values() * 4);
    let per_round = outcome.deltas.0 / outcome.deltas.1.max(1);
    Ok(DemoReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: commit(),
        data: "bearings: 20 recordings of MFPT bearing test rigs, 4 plants".to_owned(),
        model: format!("{:?}, {} values in the adapter", options.learner, start.num_values()),
        settings: described(options, settings),
        alone,
        federated: federated_score,
        pooled: pooled_score,
        curve,
        confusion: table_of(&confusion),
        traffic: Vec::new(),
        up_per_device_round: per_round,
        raw_f32_per_device_round: raw as u64,
        crossings: vec![Crossing {
            what: "adapter stack of a site, to the federation".to_owned(),
            messages: outcome.crossing.1,
            bytes: outcome.crossing.0,
            per_sample: false,
        }],
        contributions: vec![Contribution {
            kind: format!("{:?}, {}", options.contribute, coding(options.compression)),
            bytes_per_device_round: per_round,
            macro_f1: federated_score.macro_f1,
        }],
        seconds: 0.0,
        cpu_seconds: 0.0,
        peak_rss_mib: 0.0,
        latency_ms: Latency {
            p50: percentile(&outcome.latencies_ms, 50.0).unwrap_or(0.0),
            p99: percentile(&outcome.latencies_ms, 99.0).unwrap_or(0.0),
            answers: outcome.answers,
        },
        refused: outcome.refused.clone(),
        audit: AuditSummary { entries: 0, verified: false },
    })
}

fn table_of(confusion: &crate::learn::Confusion) -> ConfusionTable {
    ConfusionTable {
        classes: CLASSES.iter().map(|class| (*class).to_owned()).collect(),
        counts: confusion.counts().chunks(CLASSES.len()).map(<[u64]>::to_vec).collect(),
    }
}

fn described(options: &DemoOptions, settings: &Settings) -> Vec<(String, String)> {
    let plan = plan_of(settings);
    [
        ("rounds", options.rounds.to_string()),
        ("local steps", plan.local_steps.to_string()),
        ("batch", plan.batch_size.to_string()),
        ("learning rate", plan.learning_rate.to_string()),
        ("compression", coding(options.compression).to_owned()),
        ("seed", options.seed.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

fn coding(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "f32",
        Compression::Int8 => "int8",
        Compression::Int4 => "int4",
    }
}

/// Bytes at the brokers: what the clients of a tier sent towards the cloud and got from above.
fn traffic(stats: &BTreeMap<&'static str, crate::bus::embedded::BrokerStats>) -> Vec<TierTraffic> {
    let sum = |site: &str, tier: Tier| {
        let names: Vec<String> = PLACES
            .iter()
            .filter(|place| place.tier == tier)
            .map(|place| format!("gaisnet-pilot-{}", place.name))
            .collect();
        let clients = stats.get(site).map(|stats| &stats.clients);
        let mine = clients.into_iter().flatten().filter(|(id, _)| names.contains(id));
        mine.fold((0, 0), |(i, o), (_, t)| (i + t.bytes_in, o + t.bytes_out))
    };
    let (north, south) = (sum("north", Tier::Device), sum("south", Tier::Device));
    let edges = sum("_", Tier::Edge);
    vec![
        TierTraffic {
            tier: "devices and their site's broker (sensor samples and answers too)".into(),
            up: north.0 + south.0,
            down: north.1 + south.1,
        },
        TierTraffic {
            tier: "sites and the federation's broker".into(),
            up: edges.0,
            down: edges.1,
        },
    ]
}

/// Re-derives each node's ledger from its store and checks every signed head.
fn audit(options: &DemoOptions, keyring: &Keyring) -> Result<AuditSummary, DemoError> {
    let mut summary = AuditSummary { entries: 0, verified: true };
    for place in &PLACES {
        let store = SqliteStore::open_read_only(&options.folder.join(place.name).join("store"))?;
        let total = store.num_entries()?;
        let entries = store.entries(0, total)?;
        let notes = store.checkpoints()?;
        let node = plant::name(place.name);
        let origin = Origin { federation: keyring.federation().clone(), node: node.clone() };
        let keys: Vec<_> = keyring.node(&node).map(|entry| entry.key).into_iter().collect();
        summary.entries += total;
        if let Err(error) = verify(&origin, &keys, &entries, &notes) {
            tracing::error!(node = place.name, %error, "the ledger can't be verified");
            summary.verified = false;
        }
    }
    Ok(summary)
}

fn commit() -> String {
    option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned()
}

fn bar(quiet: bool, length: u64, title: &'static str) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
    let template = "{prefix:>16} [{bar:30}] {pos}/{len} {elapsed} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.with_prefix(title)
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
fn seconds_since(clock: &SystemClock, micros: u64) -> f64 {
    (clock.now().micros - micros) as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "as many as there are nodes")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

const TICK: Duration = Duration::from_millis(200);
const STUCK_AFTER_TICKS: u64 = 5 * 300;
