//! `gaisnet run`: one node, until it is told to stop.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::trust_files::read_keyring;
use super::{Exit, SettingsArgs};
use crate::actors::Figures;
use crate::node::{
    self, BaseFetchParts, BaseProgress, Node, NodeParts, SystemClock, WantedBase, brain, data_of,
    fetch_base, front_half, front_parts_of, identity_of, links_of, missing_base, parts_of,
};
use crate::settings::{LogFormat, NodeRole, Settings};
use crate::store::keyfile::read_signing_key;
use crate::telemetry::logging;
use crate::time::Clock;
use crate::trust::keyring::{Keyring, Standing};
use crate::trust::keys::SigningKey;

/// Examples under the options.
pub(super) const HELP: &str = "\
Examples:
  gaisnet run --config ./press-7/gaisnet.toml
  GAISNET__BUS__SITE__HOST=10.0.0.5 gaisnet run --config ./press-7/gaisnet.toml
  gaisnet run --config ./press-7/gaisnet.toml --set telemetry.metrics_listen=127.0.0.1:9464

A language model's base that isn't in the cache is fetched from the node's parent first (model.from_parent).
Ctrl-C or SIGTERM ends it in order; after a crash the same command goes on where it was. A signed
keyring.update ends it in order too, and starts it again in the same process.";

/// Runs the command.
///
/// # Errors
/// What keeps the node from starting.
pub(super) fn run(settings: &SettingsArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let settings = settings.layers().load().into_settings()?;
    let telemetry = &settings.telemetry;
    let directives = std::env::var("RUST_LOG").ok();
    logging::init(telemetry.log == LogFormat::Json, &telemetry.level, directives.as_deref())?;
    let keyring = read_keyring(&settings.paths.keyring)
        .context("no keyring that could be used: get it by gaisnet keyring accept")?;
    let keyring = Arc::new(keyring);
    let missing = missing_base(&settings, &keyring);
    let mut parts = if missing.is_none() { Some(ready(&settings, &keyring)?) } else { None };
    let name = settings.node.branch();
    let again = actix::System::new().block_on(async {
        // Before anybody can know that we run, and so before anybody can end us.
        let mut stop = StopSignal::listen().context("no signal handler")?;
        let mut page = Page::open(&settings, out).await?;
        if let Some(base) = &missing {
            writeln!(out, "{name} is fetching its base {} from its parent", base.name)?;
            out.flush()?;
            if fetch(&settings, &keyring, base, &mut page, &mut stop).await? {
                parts = Some(ready(&settings, &keyring)?);
            }
        }
        let Some(parts) = parts else {
            writeln!(out, "{name} has stopped")?;
            out.flush()?;
            return Ok(false);
        };
        let node = node::start(parts)?;
        writeln!(out, "{name} is running; Ctrl-C ends it")?;
        out.flush()?;
        let again = tokio::select! {
            biased;
            () = stop.comes() => false,
            () = node.must_start_again() => true,
            ended = page.keep(&node) => ended.map(|()| false)?,
        };
        node.stop(if again { "keyring" } else { "signal" }, DRAIN_MS).await;
        writeln!(out, "{name} has stopped")?;
        out.flush()?;
        anyhow::Ok(again)
    })?;
    if again { Err(start_again()) } else { Ok(Exit::Ok) }
}

/// What the node is started from: loads its model, and connects.
fn ready(settings: &Settings, keyring: &Arc<Keyring>) -> anyhow::Result<NodeParts> {
    let key = key_of(settings)?;
    if let Some(half) = front_half(settings, keyring)? {
        let identity = identity_of(settings, key, Arc::clone(keyring))?;
        return Ok(front_parts_of(settings, identity, half)?);
    }
    let mut brain = brain(settings, keyring)?;
    let identity = identity_of(settings, key, Arc::clone(keyring))?;
    // What doesn't train measures its answers by it.
    let wanted = settings.node.has(NodeRole::Trainer) || settings.cascade.enabled;
    let data = if wanted { data_of(settings, &mut brain)? } else { None };
    Ok(parts_of(settings, identity, brain, data)?)
}

fn key_of(settings: &Settings) -> anyhow::Result<SigningKey> {
    Ok(read_signing_key(&settings.paths.keys.join("node.pem"), None)?)
}

/// Brings a base from the parent; false when a signal came first.
async fn fetch(
    settings: &Settings,
    keyring: &Arc<Keyring>,
    base: &WantedBase,
    page: &mut Page,
    stop: &mut StopSignal,
) -> anyhow::Result<bool> {
    let identity = identity_of(settings, key_of(settings)?, Arc::clone(keyring))?;
    let links = links_of(settings, &identity.boot)?;
    let figures = Arc::new(Figures::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let standing = keyring.standing(clock.now().wall);
    let parts = BaseFetchParts { identity, links, clock, figures: Arc::clone(&figures) };
    let mut told = |progress: &BaseProgress| page.show_fetch(&figures, standing, progress);
    let stop = std::pin::pin!(stop.comes());
    Ok(fetch_base(base, parts, &mut told, stop).await?.is_some())
}

/// Runs the same command line in this process, from the start: what is left of the old run is on disk.
/// Only comes back when that can't be done.
fn start_again() -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return anyhow::Error::from(error).context("can't start again"),
    };
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    anyhow::Error::from(error).context("can't start again")
}

/// SIGTERM or Ctrl-C.
struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    /// From now on neither ends the process by itself.
    fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn comes(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The health page, if the settings ask for one.
#[cfg(feature = "web")]
struct Page(Option<Shown>);

/// A page that answers, and what it shows.
#[cfg(feature = "web")]
struct Shown {
    served: tokio::task::JoinHandle<Result<(), crate::web::WebError>>,
    readiness: crate::web::Readiness,
    health: node::Health,
}

#[cfg(feature = "web")]
impl Page {
    /// Listens before the node starts, so that a port that is taken is told at once.
    async fn open(settings: &Settings, out: &mut dyn Write) -> anyhow::Result<Self> {
        use crate::telemetry::Metrics;
        use crate::web::Readiness;

        let telemetry = &settings.telemetry;
        let Some(listen) = telemetry.metrics_listen else { return Ok(Self(None)) };
        let page = crate::web::HealthPage::listen(listen, telemetry.metrics_public).await?;
        writeln!(out, "health: http://{}/readyz and /livez, /metrics", page.address())?;
        let (metrics, readiness) = (Arc::new(Metrics::new()), Readiness::starting());
        let health = node::Health::new(Arc::clone(&metrics), readiness.clone());
        let serve = page.serve(metrics, readiness.clone(), std::future::pending());
        Ok(Self(Some(Shown { served: actix::spawn(serve), readiness, health })))
    }

    /// Shows how far the base is; then the node isn't ready.
    fn show_fetch(&mut self, figures: &Figures, keyring: Standing, progress: &BaseProgress) {
        let Some(shown) = &mut self.0 else { return };
        let no_machine = crate::actors::MachineView::default();
        shown.health.show(figures.view(), &no_machine, keyring);
        shown.readiness.block("base", progress.to_string());
    }

    /// Shows the node; only ends when the page breaks.
    async fn keep(self, node: &Node) -> anyhow::Result<()> {
        let Some(Shown { mut served, readiness, mut health }) = self.0 else {
            return std::future::pending().await;
        };
        readiness.clear("base");
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
        loop {
            tokio::select! {
                biased;
                ended = &mut served => return Ok(ended??),
                _ = ticks.tick() => {}
            }
            if let Some(view) = node.view().await {
                health.show(node.figures.view(), &view, node.standing());
                health.started();
            }
        }
    }
}

#[cfg(not(feature = "web"))]
struct Page;

#[cfg(not(feature = "web"))]
impl Page {
    async fn open(settings: &Settings, _: &mut dyn Write) -> anyhow::Result<Self> {
        anyhow::ensure!(
            settings.telemetry.metrics_listen.is_none(),
            "telemetry.metrics_listen is set, but this gaisnet was built without its health page: \
             remove the key, or build it with the feature web"
        );
        Ok(Self)
    }

    fn show_fetch(&mut self, _: &Figures, _: Standing, _: &BaseProgress) {}

    async fn keep(self, _: &Node) -> anyhow::Result<()> {
        std::future::pending().await
    }
}

/// What is queued for the brokers gets so long to leave.
const DRAIN_MS: u64 = 1_000;
