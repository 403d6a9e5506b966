//! The demo from beginning to end.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::oneshot;

use super::arms;
use super::brokers::{AllStats, Three};
use super::feeder;
use super::plant::{self, Brokers, PLACES, Place};
use super::tap::Tap;
use super::{DemoError, DemoOptions};
use crate::data::bearings::{Bearings, CLASSES, Dataset, fetch_bearings};
use crate::data::{Cache, Step};
use crate::ids::Name;
use crate::learn::{TensorSet, percentile};
use crate::ledger::{Origin, verify};
use crate::node::{self, Node, SystemClock, brain, data_of, identity_of, parts_of, plan_of};
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
    let federation =
        Federation { options, brokers: &brokers, addresses, settings, keyring, data: &data };
    let outcome = System::new().block_on(federation.learn(keys, began.wall));
    let Federation { settings, keyring, .. } = federation;
    let traffic = traffic(&brokers.stats());
    brokers.stop();
    let outcome = outcome?;

    let any = settings.get("p1").ok_or_else(|| DemoError::Start("no device".into()))?;
    let mut report = compare(options, any, &data, &outcome)?;
    report.audit = audit(options, &keyring)?;
    report.traffic = traffic;
    let usage = crate::telemetry::usage().ok();
    report.cpu_seconds = usage.map_or(0.0, |usage| usage.cpu_seconds);
    report.peak_rss_mib = usage.map_or(0.0, |usage| usage.peak_rss_mib());
    report.seconds = seconds_since(&clock, began.micros);
    Ok(report)
}

/// What the federation's run leaves behind.
struct Outcome {
    versions: Vec<Seen>,
    deltas: (u64, u64),
    latencies_ms: Vec<f64>,
    answers: u64,
    refused: BTreeMap<String, u64>,
    crossings: Vec<Crossing>,
}

/// A version as it came out.
struct Seen {
    version: u64,
    adapter: Arc<Vec<u8>>,
    /// Mean training loss of the devices by then, in nats.
    loss: Option<f64>,
    /// Bytes between the sites and the federation by then, up and down.
    bytes: (u64, u64),
}

struct Federation<'a> {
    options: &'a DemoOptions,
    brokers: &'a Three,
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
        let federation = self.addresses.get("_").copied();
        let prefix = self.settings.values().next().map(|own| Prefix::new(own.node.prefix.clone()));
        let (Some(federation), Some(Ok(prefix))) = (federation, prefix) else {
            return Err(DemoError::Start("no broker of the federation".into()));
        };
        let tap = Tap::start(federation, prefix)?;
        for (site, address) in &self.addresses {
            let whose = if *site == "_" { "the federation" } else { site };
            say(self.options, &format!("broker of {whose}: {address}"));
        }
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
        let outcome = watched.map(|versions| collect(&nodes, versions, tap.crossings()));
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
        let identity = identity_of(settings, key, Arc::clone(&self.keyring))?;
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

    /// Shows progress until the last version is out, and keeps what each version was.
    async fn watch(&self, nodes: &[(&Place, Node)]) -> Result<Vec<Seen>, DemoError> {
        let bar = bar(self.options.quiet, self.options.rounds, "federation");
        let no_cloud = || DemoError::Start("no cloud".into());
        let (_, cloud) = nodes.iter().find(|(p, _)| p.tier == Tier::Cloud).ok_or_else(no_cloud)?;
        let mut serving = cloud.serving.clone();
        let mut versions: Vec<Seen> = Vec::new();
        let mut quiet_ticks = 0;
        loop {
            let (version, adapter) = serving.borrow_and_update().clone();
            if versions.last().is_none_or(|last| last.version != version) {
                let seen = self.see(nodes, version, adapter);
                bar.set_position(version);
                let up = nodes.iter().filter(|(_, n)| n.figures.is_connected()).count();
                let loss = seen.loss.map_or(String::new(), |loss| format!("loss {loss:.3}, "));
                let kilobytes = seen.bytes.0 / 1_000;
                let all = nodes.len();
                let text = format!("{loss}{up} of {all} nodes up, {kilobytes} kB from the sites");
                if bar.is_hidden() {
                    say(
                        self.options,
                        &format!("version {version} of {}: {text}", self.options.rounds),
                    );
                }
                bar.set_message(text);
                versions.push(seen);
                quiet_ticks = 0;
            }
            if version >= self.options.rounds && self.all_have(nodes, version).await {
                bar.finish();
                return Ok(versions);
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
                () = tokio::time::sleep(TICK) => quiet_ticks += 1,
            }
            if quiet_ticks > STUCK_AFTER_TICKS {
                return Err(DemoError::Stuck { seconds: STUCK_AFTER_TICKS / 5, version });
            }
        }
    }

    fn see(&self, nodes: &[(&Place, Node)], version: u64, adapter: Arc<Vec<u8>>) -> Seen {
        let losses: Vec<f64> = nodes.iter().filter_map(|(_, node)| node.figures.loss()).collect();
        let loss = (version > 0 && !losses.is_empty()).then(|| mean(&losses));
        let bytes = bytes_of(&self.brokers.stats(), "_", Tier::Edge);
        Seen { version, adapter, loss, bytes }
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

fn collect(nodes: &[(&Place, Node)], versions: Vec<Seen>, crossings: Vec<Crossing>) -> Outcome {
    let mut outcome = Outcome {
        versions,
        deltas: (0, 0),
        latencies_ms: Vec::new(),
        answers: 0,
        refused: BTreeMap::new(),
        crossings,
    };
    for (place, node) in nodes {
        let view = node.figures.view();
        if place.tier == Tier::Device {
            outcome.deltas = (outcome.deltas.0 + view.deltas.0, outcome.deltas.1 + view.deltas.1);
            outcome.latencies_ms.extend(view.latencies_ms.iter());
            outcome.answers += view.answers;
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
    say(options, fetched.notice);
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

    let last = outcome.versions.last().map(|seen| update::unpack(&seen.adapter)).transpose()?;
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
    for (before, seen) in outcome.versions.iter().zip(outcome.versions.iter().skip(1)) {
        let Some(loss) = seen.loss else { continue };
        // How it learns is shown on the training recordings.
        let known = arms::confusion(predictor, &update::unpack(&seen.adapter)?, &pooled)?;
        curve.push(RoundPoint {
            round: seen.version,
            loss,
            macro_f1: arms::score(&known).macro_f1,
            bytes_up: seen.bytes.0 - before.bytes.0,
            bytes_down: seen.bytes.1 - before.bytes.1,
        });
    }
    let raw = start.num_values() * 4;
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
        crossings: outcome.crossings.clone(),
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

/// What the clients of a tier sent to a site's broker, and got from it.
fn bytes_of(stats: &AllStats, site: &str, tier: Tier) -> (u64, u64) {
    let of = |place: &&Place| place.tier == tier;
    let names: Vec<String> =
        PLACES.iter().filter(of).map(|place| format!("gaisnet-pilot-{}", place.name)).collect();
    let clients = stats.get(site).map(|stats| &stats.clients);
    let mine = clients.into_iter().flatten().filter(|(id, _)| names.contains(id));
    mine.fold((0, 0), |(i, o), (_, t)| (i + t.bytes_in, o + t.bytes_out))
}

/// Bytes at the brokers: towards the cloud, and from above.
fn traffic(stats: &AllStats) -> Vec<TierTraffic> {
    let (north, south) =
        (bytes_of(stats, "north", Tier::Device), bytes_of(stats, "south", Tier::Device));
    let (up, down) = bytes_of(stats, "_", Tier::Edge);
    vec![
        TierTraffic {
            tier: "in the sites (samples, answers too)".into(),
            up: north.0 + south.0,
            down: north.1 + south.1,
        },
        TierTraffic { tier: "between sites and federation".into(), up, down },
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

/// Tells the user something, beside the results on standard output.
fn say(options: &DemoOptions, text: &str) {
    if !options.quiet {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "as many as there are nodes")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

const TICK: Duration = Duration::from_millis(200);
const STUCK_AFTER_TICKS: u64 = 5 * 300;
