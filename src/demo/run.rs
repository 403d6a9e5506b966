//! The demo from beginning to end.

use std::collections::BTreeMap;
use std::io::Write;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::brokers::{self, BrokerAt, Brokers, SITES};
use super::children::Children;
use super::compare::compare;
use super::federation::{Federation, Outcome};
use super::plant::{self, More, PLACES};
use super::{DemoError, DemoOptions, Story, ledgers, progress};
use crate::data::bearings::{Bearings, fetch_bearings};
use crate::data::{Cache, Step};
use crate::node::SystemClock;
use crate::report::DemoReport;
use crate::settings::Settings;
use crate::telemetry;
use crate::time::Clock;
use crate::trust::keyring::Keyring;

/// Runs the demo; gives what it has shown. Blocks until the last round, or until Ctrl-C or SIGTERM.
///
/// # Errors
/// [`DemoError`]. No process of the demo is left then.
pub fn run(options: &DemoOptions) -> Result<DemoReport, DemoError> {
    let clock = SystemClock::new();
    let keyring = prepare(options)?;
    let data = load(options)?;
    let runtime = runtime()?;
    let report = runtime.block_on(learn_and_compare(options, &clock, &keyring, data));
    // A comparison that was interrupted isn't waited for.
    runtime.shutdown_background();
    report
}

/// What a demo's own tasks run on.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, DemoError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(|error| DemoError::start(&error))
}

async fn learn_and_compare(
    options: &DemoOptions,
    clock: &SystemClock,
    keyring: &Keyring,
    data: Bearings,
) -> Result<DemoReport, DemoError> {
    let mut interrupt = Interrupt::new()?;
    let began = clock.now();
    let cpu_before = cpu_seconds()?;
    let mut children = Children::new(&options.program, &options.folder);
    let learned = learn(options, clock, keyring, &mut children, &data, &mut interrupt).await;
    let seconds = seconds(clock.now().micros - began.micros);
    let peak_rss_bytes = children.peak_rss_bytes();
    children.stop().await;
    let (settings, outcome) = learned?;

    // Its own part of the work, and that of the children, which are all gone by now.
    let cpu_seconds = cpu_seconds()? - cpu_before;
    let version = outcome.versions.last().map_or(0, |seen| seen.version);
    let ledgers = ledgers::read(options, keyring)?;
    let (own, ring) = (options.clone(), keyring.clone());
    let compared =
        tokio::task::spawn_blocking(move || compare(&own, &settings, &ring, &data, &outcome));
    let mut report = tokio::select! {
        biased;
        () = interrupt.asked() => return Err(DemoError::Interrupted { version }),
        report = compared => report.map_err(|error| DemoError::start(&error))??,
    };
    report.seconds = seconds;
    report.cpu_seconds = cpu_seconds;
    report.peak_rss_mib = telemetry::mib(peak_rss_bytes);
    report.up_per_device_round = ledgers.work_per_round();
    report.refused = ledgers.refused;
    report.audit = ledgers.audit;
    Ok(report)
}

/// Of this process and its children that are gone. They may be older than the demo: `cargo run`
/// becomes the program that it has built, and the compilers count as its children.
fn cpu_seconds() -> Result<f64, DemoError> {
    let usage = telemetry::usage().map_err(|error| DemoError::start(&error))?;
    Ok(usage.cpu_seconds + usage.children_cpu_seconds)
}

async fn learn(
    options: &DemoOptions,
    clock: &SystemClock,
    keyring: &Keyring,
    children: &mut Children,
    data: &Bearings,
    interrupt: &mut Interrupt,
) -> Result<(Settings, Outcome), DemoError> {
    let brokers = brokers_of(options, children).await?;
    let settings = write_settings(options, &brokers)?;
    let device = settings.get("p1").ok_or_else(|| DemoError::start(&"no device"))?.clone();
    let federation = Federation { options, brokers: &brokers, keyring, clock };
    Ok((device, federation.learn(children, data, interrupt).await?))
}

pub(super) async fn brokers_of(
    options: &DemoOptions,
    children: &mut Children,
) -> Result<Brokers, DemoError> {
    match &options.brokers {
        Some(file) => brokers::read(file),
        None => start_brokers(children).await,
    }
}

async fn start_brokers(children: &mut Children) -> Result<Brokers, DemoError> {
    let mut brokers = Brokers::new();
    for site in SITES {
        let name = if site == "_" { "broker".to_owned() } else { format!("broker-{site}") };
        brokers.insert(site, BrokerAt::own(children.start_broker(&name).await?));
    }
    Ok(brokers)
}

fn write_settings(
    options: &DemoOptions,
    brokers: &Brokers,
) -> Result<BTreeMap<&'static str, Settings>, DemoError> {
    let mut all = BTreeMap::new();
    for place in &PLACES {
        all.insert(place.name, place.write_settings(options, brokers, &More::default())?);
    }
    Ok(all)
}

/// Makes the demo's folder ready: keys, keyring, base. An unfinished run of the same options is
/// gone on with; another one is forgotten.
///
/// # Errors
/// [`DemoError::File`], and what is wrong with keys that are there.
pub fn prepare(options: &DemoOptions) -> Result<Keyring, DemoError> {
    let folder = &options.folder;
    let note = folder.join("options");
    let wanted = format!(
        "{:?} {:?} {:?} {:?}",
        (options.learner, options.rounds, options.local_steps, options.seed),
        options.contribute,
        (options.compression, options.learning_rate),
        options.story,
    );
    let same = std::fs::read_to_string(&note).is_ok_and(|text| text == wanted);
    let report = folder.join("report.html");
    let finished = report.exists();
    if folder.exists() && (options.fresh || finished || !same) {
        // Only what the demo itself has made is removed. The keys go too: a broker that isn't ours
        // may still hold what the old ones have signed, which nobody must believe now.
        let nodes = PLACES.iter().map(|place| place.folder(options));
        for path in nodes.chain([progress::folder(options)]).filter(|path| path.exists()) {
            std::fs::remove_dir_all(&path).map_err(DemoError::file(&path))?;
        }
        if finished {
            std::fs::remove_file(&report).map_err(DemoError::file(&report))?;
        }
    }
    let operator = options.story.map(|story| folder.join(story.operator()));
    let folders = PLACES.iter().map(|place| place.folder(options)).chain(operator);
    for path in folders.chain([progress::folder(options)]) {
        std::fs::create_dir_all(&path).map_err(DemoError::file(&path))?;
    }
    // The shipped base, so that the program needs no checkout to run from.
    let card = folder.join(plant::BASE_CARD);
    let base = card.parent().unwrap_or(folder);
    std::fs::create_dir_all(base).map_err(DemoError::file(base))?;
    let shipped: [(&str, &[u8]); 3] = [
        ("toml", include_bytes!("../../models/signal-bearing.toml")),
        ("sig", include_bytes!("../../models/signal-bearing.sig")),
        ("safetensors", include_bytes!("../../models/signal-bearing.safetensors")),
    ];
    for (extension, bytes) in shipped {
        let path = card.with_extension(extension);
        std::fs::write(&path, bytes).map_err(DemoError::file(&path))?;
    }
    std::fs::write(&note, wanted).map_err(DemoError::file(&note))?;
    plant::enrol(folder, options.story.map(Story::operator), SystemClock::new().now().wall)
}

pub(super) fn load(options: &DemoOptions) -> Result<Bearings, DemoError> {
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
    Bearings::cached(&cache).ok_or_else(|| DemoError::start(&"the data set vanished"))
}

/// Ctrl-C or SIGTERM, from its making on.
pub(super) struct Interrupt {
    terminate: Signal,
    interrupt: Signal,
}

impl Interrupt {
    pub(super) fn new() -> Result<Self, DemoError> {
        let on = |kind| signal(kind).map_err(|error| DemoError::start(&error));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
        })
    }

    /// Waits for it. May be dropped at any time.
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A progress bar, or a hidden one.
pub(super) fn bar(quiet: bool, length: u64, title: &'static str) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
    let template = "{prefix:>16} [{bar:30}] {pos}/{len} {elapsed} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.with_prefix(title)
}

/// Tells the user something, beside the results on standard output.
pub(super) fn say(options: &DemoOptions, text: &str) {
    if !options.quiet {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
