//! `gaisnet run`: one node, until it is told to stop.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::trust_files::read_keyring;
use super::{Exit, SettingsArgs};
use crate::node::{self, Node, brain, data_of, identity_of, parts_of};
use crate::settings::{LogFormat, NodeRole, Settings};
use crate::store::keyfile::read_signing_key;
use crate::telemetry::logging;

/// Examples under the options.
pub(super) const HELP: &str = "\
Examples:
  gaisnet run --config ./press-7/gaisnet.toml
  GAISNET__BUS__SITE__HOST=10.0.0.5 gaisnet run --config ./press-7/gaisnet.toml
  gaisnet run --config ./press-7/gaisnet.toml --set telemetry.metrics_listen=127.0.0.1:9464

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
    let key_file = settings.paths.keys.join("node.pem");
    let key = read_signing_key(&key_file, None)?;
    let brain = brain(&settings, &keyring)?;
    let identity = identity_of(&settings, key, Arc::new(keyring))?;
    // What doesn't train measures its answers by it.
    let wanted = settings.node.has(NodeRole::Trainer) || settings.cascade.enabled;
    let data = if wanted { data_of(&settings, &brain)? } else { None };
    let parts = parts_of(&settings, identity, brain, data)?;
    let name = settings.node.branch();
    let again = actix::System::new().block_on(async {
        // Before anybody can know that we run, and so before anybody can end us.
        let stop = StopSignal::listen().context("no signal handler")?;
        let page = Page::open(&settings, out).await?;
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

    async fn comes(mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The health page, if the settings ask for one.
#[cfg(feature = "web")]
struct Page(Option<crate::web::HealthPage>);

#[cfg(feature = "web")]
impl Page {
    /// Listens before the node starts, so that a port that is taken is told at once.
    async fn open(settings: &Settings, out: &mut dyn Write) -> anyhow::Result<Self> {
        let telemetry = &settings.telemetry;
        let Some(listen) = telemetry.metrics_listen else { return Ok(Self(None)) };
        let page = crate::web::HealthPage::listen(listen, telemetry.metrics_public).await?;
        writeln!(out, "health: http://{}/readyz and /livez, /metrics", page.address())?;
        Ok(Self(Some(page)))
    }

    /// Shows the node; only ends when the page breaks.
    async fn keep(self, node: &Node) -> anyhow::Result<()> {
        use std::time::Duration;

        use crate::node::Health;
        use crate::telemetry::Metrics;
        use crate::web::Readiness;

        let Some(page) = self.0 else { return std::future::pending().await };
        let (metrics, readiness) = (Arc::new(Metrics::new()), Readiness::starting());
        let mut health = Health::new(Arc::clone(&metrics), readiness.clone());
        let mut served = std::pin::pin!(page.serve(metrics, readiness, std::future::pending()));
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                biased;
                ended = &mut served => return Ok(ended?),
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

    async fn keep(self, _: &Node) -> anyhow::Result<()> {
        std::future::pending().await
    }
}

/// What is queued for the brokers gets so long to leave.
const DRAIN_MS: u64 = 1_000;
