//! One node of a federation, alone in its process: it runs as it would beside the others, and tells what the
//! federation asks for line by line (`apart.rs` is the other end).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::ExperimentError;
use super::apart::Said;
use super::brokers::Brokers;
use super::federation::{Common, DRAIN_MS, Federation, OVER, Works};
use super::places::Enrolled;
use crate::actors::Figures;
use crate::ids::{NodeId, Side};
use crate::learn::TensorSet;
use crate::node::SystemClock;
use crate::protocol::update;
use crate::telemetry::usage;
use crate::trust::keyring::Role;
use crate::wire::Coding;

impl Federation<'_> {
    /// Runs one of its nodes until SIGTERM, or until nobody hears what it says. Blocks.
    pub(super) fn run_one(
        &self,
        node: &NodeId,
        start: &TensorSet,
        works: impl FnOnce(Role) -> Result<Works, ExperimentError>,
        say: &mut dyn FnMut(&Said) -> io::Result<()>,
    ) -> Result<(), ExperimentError> {
        let Enrolled { place, key, keyring } = Enrolled::read(self.folder, node)?;
        actix::System::new().block_on(async {
            let mut terminate = signal(SignalKind::terminate()).map_err(ExperimentError::Thread)?;
            let (gave_up, mut reasons) = mpsc::channel(16);
            let common = Common {
                keyring: Arc::new(keyring),
                adapter: update::pack(start, Coding::F32, 0)?,
                brokers: Brokers::new(self.broker, &[]),
                clock: Arc::new(SystemClock::new()),
                gave_up,
            };
            let works = works(place.role)?;
            let node = self.start(&common, &place, key, works)?;
            let mut serving = node.serving.clone();
            let figures = Arc::clone(&node.figures);
            // The common model is the cloud's; those of their own are the devices'.
            let own = self.settings.knowledge.own_models;
            let is_judged = place.role == if own { Role::Device } else { Role::Cloud };
            let mut last = Said::default();
            loop {
                tokio::select! {
                    biased;
                    _ = terminate.recv() => break,
                    Some(error) = reasons.recv() => return Err(error),
                    Ok(()) = serving.changed() => {
                        let (version, adapter) = serving.borrow_and_update().clone();
                        let adapter = if is_judged { adapter.as_slice() } else { &[] };
                        if say(&counted(&figures).with_version(version, adapter)).is_err() {
                            break;
                        }
                    }
                    () = tokio::time::sleep(TICK) => {
                        let now = counted(&figures);
                        if now != last && say(&now).is_err() {
                            break;
                        }
                        last = now;
                    }
                }
            }
            node.stop(OVER, DRAIN_MS).await;
            // Who started us may be gone.
            let _ = say(&counted(&figures));
            Ok(())
        })
    }
}

fn counted(figures: &Figures) -> Said {
    let view = figures.view();
    let at = |bytes: &std::collections::BTreeMap<Side, u64>| bytes.get(&Side::Up).copied();
    Said {
        steps: view.train_steps,
        bytes_up: at(&view.bytes_out).unwrap_or(0),
        bytes_down: at(&view.bytes_in).unwrap_or(0),
        peak_rss_bytes: usage().map_or(0, |usage| usage.peak_rss_bytes),
        ..Said::default()
    }
}

/// How often it is looked whether there is something to tell.
const TICK: Duration = Duration::from_millis(100);
