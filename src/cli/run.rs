//! `gaisnet run`: one node, until it is told to stop.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;

use super::trust_files::read_keyring;
use super::{Exit, SettingsArgs};
use crate::node::{self, brain, data_of, identity_of, parts_of};
use crate::settings::{LogFormat, NodeRole};
use crate::store::keyfile::read_signing_key;
use crate::telemetry::logging;

/// Examples under the options.
pub(super) const HELP: &str = "\
Examples:
  gaisnet run --config ./press-7/gaisnet.toml
  GAISNET__BUS__SITE__HOST=10.0.0.5 gaisnet run --config ./press-7/gaisnet.toml

Ctrl-C or SIGTERM ends it in order; after a crash the same command goes on where it was.";

/// Runs the command.
///
/// # Errors
/// What keeps the node from starting.
pub(super) fn run(settings: &SettingsArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let settings = settings.layers().load().into_settings()?;
    let telemetry = &settings.telemetry;
    let directives = std::env::var("RUST_LOG").ok();
    logging::init(telemetry.log == LogFormat::Json, &telemetry.level, directives.as_deref())?;
    let keyring = read_keyring(&settings.paths.keyring)?;
    let key_file = settings.paths.keys.join("node.pem");
    let key = read_signing_key(&key_file, None)?;
    let identity = identity_of(&settings, key, Arc::new(keyring))?;
    let data = if settings.node.has(NodeRole::Trainer) { data_of(&settings)? } else { None };
    let parts = parts_of(&settings, identity, brain(&settings)?, data)?;
    let name = settings.node.branch();
    actix::System::new().block_on(async {
        let node = node::start(parts)?;
        writeln!(out, "{name} is running; Ctrl-C ends it")?;
        stop_signal().await.context("no signal handler")?;
        node.stop("signal", DRAIN_MS).await;
        tokio::time::sleep(std::time::Duration::from_millis(DRAIN_MS)).await;
        Ok(Exit::Ok)
    })
}

async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = terminate.recv() => Ok(()),
        done = tokio::signal::ctrl_c() => done,
    }
}

/// What is queued for the brokers gets so long to leave.
const DRAIN_MS: u64 = 1_000;
